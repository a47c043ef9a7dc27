/*
 * Private to lib/cli: the parts of a running program. main.c owns the one `struct cli`.
 *
 * The files in order; each calls only those before it (`make check-deps` verifies that there are no cycles):
 *     process, signals, text, idset, names     descriptors, signals, printing, sets, recorded names
 *     shell                                    commands of the user
 *     hints, needs, options, common, help      the option table: parsed, checked, printed; names of other tools
 *     progress, context                        the bar; messages, exit code, command line
 *     stdin, overlap, file_out, settings       is it read; is an input an output; temporary files; effective options
 *     input, prov, output, table, report       what is read, its provenance, what is written
 *     main                                     the frame around run()
 *     dispatch                                 the program rill, which finds the others
 */
#ifndef RILL_CLI_INTERNAL_H
#define RILL_CLI_INTERNAL_H

#include <stdio.h>
#include <sys/stat.h>
#include <time.h>

#include "lib/cli/cli.h"

/* ---- process.c --------------------------------------------------------------------------------------------------- */

/* Before anything else: makes sure that descriptors 0 to 2 exist, SIGPIPE has its default, SIGXFSZ is ignored. */
void cli_process_setup(void);
/* Grows the main thread's stack in advance: once allocations have used up RLIMIT_AS, growing it would kill the process. */
int cli_reserve_stack(struct err *e) MUST_CHECK;

/* ---- signals.c ------------------------------------------------------------------------------------------------- */

void cli_signals_install(void); /* from here on a fatal signal removes temporary files first */
/* Is there a line on stderr without an end (the bar)? A signal that ends the program ends it first. */
void signals_line_open(bool open);
void signals_end(void); /* re-raises the signal of cli_stop_requested, if any */

/* ---- hints.c --------------------------------------------------------------------------------------------------- */

/* For a word that a user of another tool may write; all return NULL when there is nothing to say. The one of `names` that does the same;
 * what to do instead of an option of `program`; instead of a value of an option; the program that does what `name` does. */
const char *hint_option(const char *word, const char *const *names, size_t n);
const char *hint_advice(const char *program, const char *word);
const char *hint_value(const char *option, const char *value);
const char *hint_program(const char *name);

/* ---- text.c ---------------------------------------------------------------------------------------------------- */

/* A FILE on top of a descriptor that stays open when it is closed; writes through fd_write. NULL with errno. */
FILE *text_open(int fd);
int text_close(FILE *f, const char *name, struct err *e) MUST_CHECK; /* reports an earlier failed write, too */

/* ---- idset.c ----------------------------------------------------------------------------------------------------- */

/* A set of strings it does not own: NULL slots are free. Zero is an empty set; give back with idset_release. */
struct idset {
    const char **slots;
    size_t n, cap;
};
int idset_add(struct idset *s, const char *id, bool *added, struct err *e) MUST_CHECK;
bool idset_has(const struct idset *s, const char *id);
void idset_release(struct idset *s);

/* ---- names.c ----------------------------------------------------------------------------------------------------- */

/* The path of a descriptor, by names_relative; *out is NULL unless it is a regular file. */
int names_fd_path(struct arena *a, int fd, const char **out, struct err *e) MUST_CHECK;
/* `path` relative to the working folder, up through .. if need be; unchanged if that is unknown. Symbolic links in the
 * folder are resolved, in the last component not. */
int names_relative(struct arena *a, const char *path, const char **out, struct err *e) MUST_CHECK;
/* How the provenance records a path that was given: an absolute one relative to the working folder; others, /dev and /proc
 * unchanged. */
int names_recorded(struct arena *a, const char *path, const char **out, struct err *e) MUST_CHECK;
/* `path`, or NULL if it is not UTF-8: JSON cannot hold it, and a wrong name is worse than none. */
const char *names_in_json(const char *path);
/* `s`, or a copy in which invalid UTF-8 is replaced by U+FFFD. */
int names_utf8(struct arena *a, const char *s, const char **out, struct err *e) MUST_CHECK;

/* ---- options.c: one table in, values and operands out ------------------------------------------------------------ */

struct cli_value {
    bool given;
};

struct cli_args {
    struct cli_option *rows; /* the program's own, then the common ones */
    size_t n_rows, n_own;
    struct cli_value *values; /* [n_rows] */
    const char **operands;
    size_t n_operands;
    const char **kept; /* argv without transient options: what the provenance records */
    size_t *kept_file; /* [n_kept]: offset of a file's name in the word, from 1; 0: there is none */
    size_t n_kept;
    const struct cli_option *action; /* --help and its like: parsing stopped there */
    const struct cli_program *program;
};

/* Sets defaults, then parses argv; all memory comes from the arena. ERR_USAGE suggests the nearest option. */
int args_parse(struct cli_args *a, struct arena *arena, const struct cli_program *p, const struct cli_option *common,
               size_t n_common, int argc, char **argv, struct err *e) MUST_CHECK;
/* Checks required options and the number of operands; after --help and the like have been handled. */
int args_check(const struct cli_args *a, const struct cli_program *p, struct err *e) MUST_CHECK;
/* needs.c: refuses an option that has no effect with the others given (ERR_USAGE); the condition in words, for help. */
int needs_check(const struct cli_args *a, struct err *e) MUST_CHECK;
void needs_describe(const struct cli_option *o, char *out, size_t size);
/* Replaces the values given for a long option in `kept`; the new ones come right after the program's name. */
int args_remember(struct cli_args *a, struct arena *arena, const char *option, const char *const *values, size_t n,
                  struct err *e) MUST_CHECK;
/* An option like --help: without a value, and parsing stops at it. */
bool option_is_action(const struct cli_option *o);
bool option_is_hidden(const struct cli_option *o);
bool option_takes_value(const struct cli_option *o);
const char *option_arg(const struct cli_option *o); /* its placeholder in help */

/* ---- common.c: the options that programs share ------------------------------------------------------------------ */

#define CLI_MAX_COMMON 28
size_t common_options(struct cli *c, const struct cli_program *p, struct cli_option rows[CLI_MAX_COMMON]);

/* ---- help.c: the table printed ----------------------------------------------------------------------------------- */

#define CLI_MAN_DATE "November 22, 2025" /* of the texts; the date of the build would make two builds differ */

void help_text(FILE *f, const struct cli_program *p, const struct cli_args *a);
void help_usage(FILE *f, const struct cli_program *p, const struct cli_args *a);
void help_man(FILE *f, const struct cli_program *p, const struct cli_args *a);
void help_options(FILE *f, const struct cli_args *a); /* what scripts depend on, for tests/golden/cli */

/* ---- complete.c: the table as completions. Functions of bash and zsh, lines of fish; dispatch.c makes them a script ---- */

void complete_bash(FILE *f, const struct cli_program *p, const struct cli_args *a);
void complete_zsh(FILE *f, const struct cli_program *p, const struct cli_args *a);
void complete_fish(FILE *f, const struct cli_program *p, const struct cli_args *a);

/* ---- progress.c -------------------------------------------------------------------------------------------------- */

struct progress {
    bool enabled, terminal, running, shown;
    double period; /* seconds from one drawing to the next, at least */
    const char *unit;
    uint64_t total, done;
    struct timespec start, last;
    char note[128];
};
void progress_setup(struct cli *c);
void progress_hide(struct cli *c); /* before anything else is written to stderr */
/* "1.5 k", "12.3 M"; "0:07", "1:02:03". For the bar; public to the tests. */
void progress_format(const struct progress *p, double seconds, int width, char *out, size_t size);

/* ---- context.c ------------------------------------------------------------------------------------------------- */

/* One line on stderr in one write, escaped, without allocating. `label` may be "". */
void cli_message(struct cli *c, const char *label, const char *text);
int cli_exit_code(int code);
bool output_is_stdout(const struct cli *c);
const char *output_name(const struct cli *c); /* for messages */
int output_fd(const struct cli *c);           /* of what cli_open_output, cli_text or cli_binary has opened */

/* ---- stdin.c --------------------------------------------------------------------------------------------------- */

/* A note if standard input is a pipe that is not going to be read. */
void stdin_note_pipe(struct cli *c);

/* ---- overlap.c ------------------------------------------------------------------------------------------------- */

int outputs_check(struct cli *c, struct err *e) MUST_CHECK; /* all outputs that options name, before run() */
/* With `>> a.rill` a program could read its own output for ever: refused when the second of the two is opened. */
int check_not_output(struct cli *c, const struct stat *in, const char *name, struct err *e) MUST_CHECK;

/* ---- file_out.c -------------------------------------------------------------------------------------------------- */

struct cli_out_file {
    struct cli_out_file *next;
    struct out_file file;
};
/* A file under a temporary name; renamed by out_file_commit or cli_commit. */
int file_out_create(struct cli *c, const char *path, bool overwrite, struct cli_out_file **out,
                    struct err *e) MUST_CHECK;
void file_out_release(struct cli *c); /* unlinks what was not committed */

/* ---- settings.c -------------------------------------------------------------------------------------------------- */

/* The effective value of every option of the program; NULL: out of memory. */
cJSON *settings_json(struct cli *c);

/* ---- input.c ----------------------------------------------------------------------------------------------------- */

struct cli_file {
    int fd;
    const char *name; /* for messages */
    uint64_t size;
    struct digest_state *digest;
    bool ended;
};

struct cli_input {
    struct cli_input *next;
    const char *role;
    const char *path; /* as recorded in the provenance; NULL: a pipe */
    bool is_stdin;
    int fd; /* -1: none, or standard input */
    /* at most one of these; none after cli_note_input */
    struct stream_reader *reader;
    struct stream_map *map;
    struct cli_file *file;
    struct digest digest;
};
/* Reads all inputs to their end and sets their digests; a truncated input is noticed here at the latest. */
int inputs_finish(struct cli *c, struct err *e) MUST_CHECK;
void inputs_release(struct cli *c);
int check_inputs_not_output(struct cli *c, struct err *e) MUST_CHECK; /* check_not_output for all of them */
const cJSON *input_prov(const struct cli_input *in);                  /* array or NULL */

/* ---- prov.c ------------------------------------------------------------------------------------------------------ */

/* Writes all entries of all inputs, each once, and then this program's. Inputs must be finished. */
int prov_write(struct cli *c, struct stream_writer *w, struct err *e) MUST_CHECK;
/* Appends to `heads` the ids of those entries that no other entry of the array names as a parent. */
int prov_heads(const cJSON *entries, cJSON *heads, struct err *e) MUST_CHECK;
/* "xxh3:..." of the canonical text of the entry without its id. */
int prov_id(const cJSON *entry, char out[DIGEST_TEXT_SIZE], struct err *e) MUST_CHECK;

/* ---- output.c ---------------------------------------------------------------------------------------------------- */

/* After run() has succeeded: finish syncs everything to disk before commit gives the first file its name. */
int output_finish(struct cli *c, struct err *e) MUST_CHECK;
int output_commit(struct cli *c, struct err *e) MUST_CHECK;
void output_abort(struct cli *c, const char *why);

/* ---- report.c ---------------------------------------------------------------------------------------------------- */

int report_begin(struct cli *c, struct err *e) MUST_CHECK;
int report_finish(struct cli *c, int code, const char *message, struct err *e) MUST_CHECK; /* written and synced */
int report_commit(struct cli *c, struct err *e) MUST_CHECK;                                /* under its name */
void report_retract(struct cli *c);
void profile_print(struct cli *c); /* --profile's line */
/* "NAME VERSION"; if `verbose` also the CPU path and kernels, as in a report's "backend". */
void cli_put_version(FILE *out, const char *name, bool verbose);

/* ---- main.c ------------------------------------------------------------------------------------------------------ */

struct cli {
    const struct cli_program *program;
    struct cli_args args;
    struct arena arena; /* lives as long as the program */
    int argc;
    char **argv;

    bool verbose, quiet, force, no_provenance, profile;
    const char *progress_mode, *report_path, *output_path, *codec;
    uint64_t level, seed, threads, max_memory;

    struct cli_input *inputs;
    bool stdin_taken;

    struct cli_out_file *out_files;
    struct cli_out_file *output, *report_file; /* two of the above, or NULL */
    struct stream_writer *writer;
    struct stream_totals totals;
    bool writer_open, writer_closed;
    bool hands_off;              /* the output is one of the inputs: nothing may be written, not even ABRT */
    FILE *text;                  /* on standard output or on top of output's descriptor */
    const char *recorded_output; /* path of the output in the provenance; NULL: unknown */

    cJSON *report, *settings;
    struct timespec start;
    struct progress progress;
};

#endif
