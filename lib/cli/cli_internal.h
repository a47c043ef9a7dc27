/*
 * Private to lib/cli: the parts of a running program. main.c owns the only `struct cli`.
 *
 * The files in order; each calls only those before it (`make check-cycles` verifies it):
 *     process, signals, text, idset, names     descriptors, signals, printing, sets, recorded names
 *     shell                                    commands of the user
 *     hints, needs, options, common, help      the option table: parsed, checked, printed; names of other tools
 *     progress, context                        the bar; messages, exit code, command line
 *     stdin, overlap, file_out, settings       is stdin read; input/output conflicts; temporary files; option values
 *     input, prov, output, table, report       inputs, provenance, outputs
 *     main                                     the code around run()
 *     dispatch                                 the program rill, which finds the others
 */
#ifndef RILL_CLI_INTERNAL_H
#define RILL_CLI_INTERNAL_H

#include <stdio.h>
#include <sys/stat.h>
#include <time.h>

#include "lib/cli/cli.h"

/* ---- process.c --------------------------------------------------------------------------------------------------- */

/* Call first: makes sure that descriptors 0 to 2 are open, resets SIGPIPE to its default and ignores SIGXFSZ. */
void cli_process_setup(void);
/* Grows the main thread's stack in advance: once RLIMIT_AS is exhausted, growing it would kill the process. ERR_IO. */
int cli_reserve_stack(struct err *e) MUST_CHECK;

/* ---- signals.c ------------------------------------------------------------------------------------------------- */

void cli_signals_install(void); /* makes fatal signals remove temporary files first */
/* Records whether stderr has an unfinished line (the bar), which a fatal signal then ends first. */
void signals_line_open(bool open);
void signals_end(void); /* re-raises the signal of cli_stop_requested, if any */

/* ---- hints.c --------------------------------------------------------------------------------------------------- */

/* Hints for a word that users of another tool may write; NULL if there is none. In this order: the equivalent among
 * `names`; what to do instead of an option of `program`, or of a value of an option; the program that does what `name`
 * does. */
const char *hint_option(const char *word, const char *const *names, size_t n);
const char *hint_advice(const char *program, const char *word);
const char *hint_value(const char *option, const char *value);
const char *hint_program(const char *name);

/* ---- text.c ---------------------------------------------------------------------------------------------------- */

/* Opens a FILE on a descriptor that stays open when it is closed; writes through fd_write. NULL with errno. */
FILE *text_open(int fd);
int text_close(FILE *f, const char *name, struct err *e) MUST_CHECK; /* also reports earlier failed writes */

/* ---- idset.c ----------------------------------------------------------------------------------------------------- */

/* A set of strings that it does not own; NULL slots are free. Initialise to {0}; release with idset_release. */
struct idset {
    const char **slots;
    size_t n, cap;
};
int idset_add(struct idset *s, const char *id, bool *added, struct err *e) MUST_CHECK;
bool idset_has(const struct idset *s, const char *id);
void idset_release(struct idset *s);

/* ---- names.c ----------------------------------------------------------------------------------------------------- */

/* The path of a descriptor, as by names_relative; *out is NULL unless it is a regular file. */
int names_fd_path(struct arena *a, int fd, const char **out, struct err *e) MUST_CHECK;
/* Makes `path` relative to the working directory, through .. if needed; unchanged if that is unknown. Symbolic links
 * are resolved in the folder part, not in the last component. */
int names_relative(struct arena *a, const char *path, const char **out, struct err *e) MUST_CHECK;
/* How the provenance records a given path: absolute paths become relative to the working directory; others, and those
 * in /dev and /proc, stay unchanged. */
int names_recorded(struct arena *a, const char *path, const char **out, struct err *e) MUST_CHECK;
/* `path`, or NULL if it is not UTF-8: JSON cannot represent it, and a wrong name is worse than none. */
const char *names_in_json(const char *path);
/* `s`, or a copy in which U+FFFD replaces invalid UTF-8. */
int names_utf8(struct arena *a, const char *s, const char **out, struct err *e) MUST_CHECK;

/* ---- options.c: parses argv by the option table ---- */

struct cli_value {
    bool given;
};

struct cli_args {
    struct cli_option *rows; /* the program's own, then the common ones */
    size_t n_rows, n_own;
    struct cli_value *values; /* [n_rows] */
    const char **operands;
    size_t n_operands;
    const char **kept; /* argv without transient options, for the provenance */
    size_t *kept_file; /* [n_kept]: offset of a file name within the word, plus 1; 0: none */
    size_t n_kept;
    const struct cli_option *action; /* --help or similar, where parsing stopped */
    const struct cli_program *program;
};

/* Sets defaults, then parses argv; all memory is from the arena. ERR_USAGE suggests the nearest option. */
int args_parse(struct cli_args *a, struct arena *arena, const struct cli_program *p, const struct cli_option *common,
               size_t n_common, int argc, char **argv, struct err *e) MUST_CHECK;
/* Checks required options and the number of operands; call after --help and the like were handled. */
int args_check(const struct cli_args *a, const struct cli_program *p, struct err *e) MUST_CHECK;
/* needs.c: refuses an option without effect (ERR_USAGE); describes the condition for help. */
int needs_check(const struct cli_args *a, struct err *e) MUST_CHECK;
void needs_describe(const struct cli_option *o, char *out, size_t size);
/* Replaces the values of a long option in `kept`; the new ones follow the program's name. */
int args_remember(struct cli_args *a, struct arena *arena, const char *option, const char *const *values, size_t n,
                  struct err *e) MUST_CHECK;
/* Is it an option like --help: without a value, and ends parsing? */
bool option_is_action(const struct cli_option *o);
bool option_is_hidden(const struct cli_option *o);
bool option_takes_value(const struct cli_option *o);
const char *option_arg(const struct cli_option *o); /* its placeholder in help */

/* ---- common.c: the options that programs share ------------------------------------------------------------------ */

#define CLI_MAX_COMMON 28
size_t common_options(struct cli *c, const struct cli_program *p, struct cli_option rows[CLI_MAX_COMMON]);

/* ---- help.c: prints the table ---- */

#define CLI_MAN_DATE "November 22, 2025" /* of the texts; a build date would make builds differ */

void help_text(FILE *f, const struct cli_program *p, const struct cli_args *a);
void help_usage(FILE *f, const struct cli_program *p, const struct cli_args *a);
void help_man(FILE *f, const struct cli_program *p, const struct cli_args *a);
void help_options(FILE *f, const struct cli_args *a); /* the interface that scripts depend on, for tests/golden/cli */

/* complete.c: the table as shell completions: functions for bash and zsh, lines for fish; dispatch.c joins those of all
 * programs. */

void complete_bash(FILE *f, const struct cli_program *p, const struct cli_args *a);
void complete_zsh(FILE *f, const struct cli_program *p, const struct cli_args *a);
void complete_fish(FILE *f, const struct cli_program *p, const struct cli_args *a);

/* ---- progress.c -------------------------------------------------------------------------------------------------- */

struct progress {
    bool enabled, terminal, running, shown;
    double period; /* minimum seconds between updates */
    const char *unit;
    uint64_t total, done;
    struct timespec start, last;
    char note[128];
};
void progress_setup(struct cli *c);
void progress_hide(struct cli *c); /* call before writing anything else to stderr */
/* Formats the bar in at most `width` columns; exported for the tests. */
void progress_format(const struct progress *p, double seconds, int width, char *out, size_t size);

/* ---- context.c ------------------------------------------------------------------------------------------------- */

/* Writes one escaped line to stderr with one write, without allocating. `label` may be "". */
void cli_message(struct cli *c, const char *label, const char *text);
int cli_exit_code(int code);
bool output_is_stdout(const struct cli *c);
const char *output_name(const struct cli *c); /* for messages */
int output_fd(const struct cli *c);           /* of the output that was opened */

/* ---- stdin.c --------------------------------------------------------------------------------------------------- */

/* Prints a note if standard input is a pipe that will not be read. */
void stdin_note_pipe(struct cli *c);

/* ---- overlap.c ------------------------------------------------------------------------------------------------- */

int outputs_check(struct cli *c, struct err *e) MUST_CHECK; /* checks all outputs that options name, before run() */
/* With `>> a.rill` a program could read its own output forever: ERR_USAGE if an input is the output. */
int check_not_output(struct cli *c, const struct stat *in, const char *name, struct err *e) MUST_CHECK;

/* ---- file_out.c -------------------------------------------------------------------------------------------------- */

struct cli_out_file {
    struct cli_out_file *next;
    struct out_file file;
};
/* Creates a file under a temporary name; out_file_commit or cli_commit renames it. */
int file_out_create(struct cli *c, const char *path, bool overwrite, struct cli_out_file **out,
                    struct err *e) MUST_CHECK;
void file_out_release(struct cli *c); /* removes files that were not committed */

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
    const char *path; /* as recorded in the provenance; NULL: none, e.g. a pipe */
    bool is_stdin;
    int fd; /* -1: none, or standard input */
    /* at most one of these; none after cli_note_input */
    struct stream_reader *reader;
    struct stream_map *map;
    struct cli_file *file;
    struct digest digest;
};
/* Reads all inputs to their ends and sets their digests; notices truncated inputs. */
int inputs_finish(struct cli *c, struct err *e) MUST_CHECK;
void inputs_release(struct cli *c);
int check_inputs_not_output(struct cli *c, struct err *e) MUST_CHECK; /* check_not_output for all inputs */
const cJSON *input_prov(const struct cli_input *in);                  /* an array or NULL */

/* ---- prov.c ------------------------------------------------------------------------------------------------------ */

/* Writes the entries of all inputs, without duplicates, and then that of this program. Call after inputs_finish. */
int prov_write(struct cli *c, struct stream_writer *w, struct err *e) MUST_CHECK;
/* Appends to `heads` the ids of the entries that no other entry of the array names as a parent. */
int prov_heads(const cJSON *entries, cJSON *heads, struct err *e) MUST_CHECK;
/* "xxh3:..." of the canonical text of the entry without its id. */
int prov_id(const cJSON *entry, char out[DIGEST_TEXT_SIZE], struct err *e) MUST_CHECK;

/* ---- output.c ---------------------------------------------------------------------------------------------------- */

/* Call after run() succeeded: finish syncs everything to disk before commit renames the first file. */
int output_finish(struct cli *c, struct err *e) MUST_CHECK;
int output_commit(struct cli *c, struct err *e) MUST_CHECK;
void output_abort(struct cli *c, const char *why);

/* ---- report.c ---------------------------------------------------------------------------------------------------- */

int report_begin(struct cli *c, struct err *e) MUST_CHECK;
int report_finish(struct cli *c, int code, const char *message, struct err *e) MUST_CHECK; /* writes and syncs */
int report_commit(struct cli *c, struct err *e) MUST_CHECK;                                /* renames */
void report_retract(struct cli *c);
void profile_print(struct cli *c); /* prints the line of --profile */
/* Prints "NAME VERSION"; if `verbose` also the CPU path and kernels, as in "backend" of a report. */
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
    const char *peeked_path; /* what cli_peek opened, as `peeked`; NULL: nothing */
    int peeked;

    struct cli_out_file *out_files;
    struct cli_out_file *output, *report_file; /* two of the above, or NULL */
    struct stream_writer *writer;
    struct stream_totals totals;
    bool writer_open, writer_closed;
    bool hands_off;              /* the output is an input: nothing may be written, not even ABRT */
    FILE *text;                  /* on standard output or the descriptor of `output` */
    const char *recorded_output; /* path of the output in the provenance; NULL: unknown */

    cJSON *report, *settings;
    struct timespec start;
    struct progress progress;
};

#endif
