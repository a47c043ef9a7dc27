/* Private to lib/cli: the parts of a running program. main.c owns the one `struct cli`. */
#ifndef RILL_CLI_INTERNAL_H
#define RILL_CLI_INTERNAL_H

#include <stdio.h>
#include <sys/stat.h>
#include <time.h>

#include "lib/cli/cli.h"

/* ---- options.c: one table in, values and operands out ------------------------------------------------------------- */

struct cli_value {
    bool given;
};

struct cli_args {
    struct cli_option *rows; /* the program's own, then the common ones */
    size_t n_rows, n_own;
    struct cli_value *values; /* [n_rows] */
    const char **operands;
    size_t n_operands;
    const char **kept; /* argv without what does not change the result: what the provenance remembers */
    size_t *kept_file; /* [n_kept]: where in the word the name of a file begins, from 1; 0: nowhere */
    size_t n_kept;
    const struct cli_option *action; /* --help and its like: parsing stopped there */
};

/* Everything comes from the arena. Sets defaults, then what argv says. ERR_USAGE with the nearest option's name. */
int args_parse(struct cli_args *a, struct arena *arena, const struct cli_program *p, const struct cli_option *common,
               size_t n_common, int argc, char **argv, struct err *e) MUST_CHECK;
/* What may only be asked once --help and the terminal have been dealt with: required options, number of operands. */
int args_check(const struct cli_args *a, const struct cli_program *p, struct err *e) MUST_CHECK;
/* `kept` with these values of a long option, right after the program's name, instead of those that were given. */
int args_remember(struct cli_args *a, struct arena *arena, const char *option, const char *const *values, size_t n,
                  struct err *e) MUST_CHECK;
/* An option with no value, of which the mere sight ends parsing. */
bool option_is_action(const struct cli_option *o);
bool option_is_hidden(const struct cli_option *o);
bool option_takes_value(const struct cli_option *o);
const char *option_arg(const struct cli_option *o); /* its placeholder in help */

/* ---- help.c: the table printed --------------------------------------------------------------------------------------- */

#define CLI_MAN_DATE "November 22, 2025" /* of the texts; a build's date would make two builds differ */

void help_text(FILE *f, const struct cli_program *p, const struct cli_args *a);
void help_usage(FILE *f, const struct cli_program *p, const struct cli_args *a);
void help_man(FILE *f, const struct cli_program *p, const struct cli_args *a);
void help_bash(FILE *f, const struct cli_program *p, const struct cli_args *a);
void help_options(FILE *f, const struct cli_args *a); /* what scripts depend on, for tests/golden/cli */

/* ---- input.c ----------------------------------------------------------------------------------------------------------- */

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
    const char *path; /* as the provenance has it; NULL: a pipe */
    bool is_stdin;
    int fd; /* -1: none, or standard input */
    /* one of these, or none (cli_note_input) */
    struct stream_reader *reader;
    struct stream_map *map;
    struct cli_file *file;
    struct digest digest;
};
/* Reads to the end and fills digests: the last moment at which a cut input is noticed. */
int inputs_finish(struct cli *c, struct err *e) MUST_CHECK;
void inputs_release(struct cli *c);
const cJSON *input_prov(const struct cli_input *in); /* array or NULL */

/* ---- output.c ------------------------------------------------------------------------------------------------------------- */

struct cli_out_file {
    struct cli_out_file *next;
    struct out_file file;
};
int output_file_create(struct cli *c, const char *path, bool overwrite, struct cli_out_file **out,
                       struct err *e) MUST_CHECK;
void output_files_release(struct cli *c); /* unlinks what was not committed */
bool output_is_stdout(const struct cli *c);
const char *output_name(const struct cli *c); /* for messages */
/* The steps of a run that went well: everything is on disk before the first name changes. */
int output_finish(struct cli *c, struct err *e) MUST_CHECK;
int output_commit(struct cli *c, struct err *e) MUST_CHECK;
void output_abort(struct cli *c, const char *why);

/* ---- overlap.c ------------------------------------------------------------------------------------------------- */

int outputs_check(struct cli *c, struct err *e) MUST_CHECK; /* all that options name, before run() */
/* With `>> a.rill` the shell lets a program read what it writes, for ever. Whichever is opened last notices. */
int check_not_output(struct cli *c, const struct stat *in, const char *name, struct err *e) MUST_CHECK;
int check_inputs_not_output(struct cli *c, struct err *e) MUST_CHECK; /* input.c */

/* ---- text.c ---------------------------------------------------------------------------------------------------- */

/* A FILE on top of a descriptor that stays open when it is closed; writes through fd_write. NULL with errno. */
FILE *text_open(int fd);
int text_close(FILE *f, const char *name, struct err *e) MUST_CHECK; /* with whatever went wrong before */

/* ---- signals.c ------------------------------------------------------------------------------------------------- */

void cli_signals_install(void); /* from here on no signal leaves a temporary file */
void signals_end(void);         /* dies of the signal that cli_stop_requested tells of, if any */

/* ---- prov.c ------------------------------------------------------------------------------------------------------------------ */

/* The path of a descriptor that is a regular file, as prov_relative has it; *out NULL for the rest. */
int prov_fd_path(struct arena *a, int fd, const char **out, struct err *e) MUST_CHECK;
/* `path` relative to the working folder, up through .. if need be; as it is when that is not known. The folder's
 * links are followed, the last name is kept. */
int prov_relative(struct arena *a, const char *path, const char **out, struct err *e) MUST_CHECK;
/* The same for an absolute path, and any other, /dev and /proc as they are: what the provenance says of a path
 * somebody wrote. */
int prov_name(struct arena *a, const char *path, const char **out, struct err *e) MUST_CHECK;
/* NULL for a path that is not UTF-8: JSON cannot hold it, and a wrong name is worse than none. */
const char *prov_path(const char *path);
/* `s`, or a copy with U+FFFD for what is not UTF-8. */
int prov_utf8(struct arena *a, const char *s, const char **out, struct err *e) MUST_CHECK;
/* The effective value of every option of the program. */
cJSON *prov_settings(struct cli *c);
/* All entries of all inputs, each once, and then ours. Inputs must be finished. */
int prov_write(struct cli *c, struct stream_writer *w, struct err *e) MUST_CHECK;
/* Adds the ids of those entries that no other entry of the array names as a parent to the array `tips`. */
int prov_tips(const cJSON *entries, cJSON *tips, struct err *e) MUST_CHECK;
/* "xxh3:..." over the canonical text of the entry without its id. */
int prov_id(const cJSON *entry, char out[DIGEST_TEXT_SIZE], struct err *e) MUST_CHECK;

/* A set of strings it does not own: NULL slots are free. Zero is an empty set; give back with idset_release. */
struct idset {
    const char **slots;
    size_t n, cap;
};
int idset_add(struct idset *s, const char *id, bool *added, struct err *e) MUST_CHECK;
bool idset_has(const struct idset *s, const char *id);
void idset_release(struct idset *s);

/* ---- progress.c ----------------------------------------------------------------------------------------------------------------- */

struct progress {
    bool enabled, terminal, running, shown;
    const char *unit;
    uint64_t total, done;
    struct timespec start, last;
    char note[128];
};
void progress_setup(struct cli *c);
void progress_hide(struct cli *c); /* before anything else is written to stderr */
/* "1.5 k", "12.3 M"; "0:07", "1:02:03". For the bar; public to the tests. */
void progress_format(const struct progress *p, double seconds, int width, char *out, size_t size);

/* ---- report.c --------------------------------------------------------------------------------------------------------------------- */

int report_begin(struct cli *c, struct err *e) MUST_CHECK;
int report_finish(struct cli *c, int code, const char *message, struct err *e) MUST_CHECK; /* written and synced */
int report_commit(struct cli *c, struct err *e) MUST_CHECK;                                /* under its name */
void report_retract(struct cli *c);

/* ---- main.c ------------------------------------------------------------------------------------------------------------------------- */

struct cli {
    const struct cli_program *program;
    struct cli_args args;
    struct arena arena; /* lives as long as the program */
    int argc;
    char **argv;

    bool verbose, quiet, force, no_provenance;
    const char *progress_mode, *report_path, *output_path, *codec;
    uint64_t level, seed, threads;

    struct cli_input *inputs;
    bool stdin_taken;

    struct cli_out_file *out_files;
    struct cli_out_file *output, *report_file; /* two of the above, or NULL */
    struct stream_writer *writer;
    struct stream_totals totals;
    bool writer_open, writer_closed;
    bool hands_off;              /* the output is one of the inputs: not even ABRT may go there */
    FILE *text;                  /* on standard output or on top of output's descriptor */
    const char *recorded_output; /* path of the output for the provenance, NULL: unknown */

    cJSON *report, *settings;
    struct timespec start;
    struct progress progress;
};

/* One line on stderr in one write, free of control characters, without allocating. `label` may be "". */
void cli_message(struct cli *c, const char *label, const char *text);
/* Before anything else: descriptors 0-2 exist, SIGPIPE has its default, SIGXFSZ is an error and not a crash. */
void cli_process_setup(void);
int cli_exit_code(int code);

#endif
