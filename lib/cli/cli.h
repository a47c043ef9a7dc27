/*
 * cli: what all programs have in common, so that a program is a table of options, wiring and a report. Option parsing,
 * --help, the man page and shell completion are generated from one table; messages, exit codes, terminal handling,
 * progress, atomic output and provenance are implemented here and nowhere else.
 *
 *     static const char *encode = NULL;
 *     static const struct cli_option options[] = {
 *         {.name = "encode", .type = CLI_STRING, .to = &encode, .arg = "ENC", .fallback = "sample:50", .help = "..."},
 *         {0},
 *     };
 *     static int run(struct cli *c, struct err *e) { ... }
 *     int main(int argc, char **argv) {
 *         static const struct cli_program p = {.name = "logit-dump", .options = options, .run = run, ...};
 *         return cli_main(&p, argc, argv);
 *     }
 */
#ifndef RILL_CLI_H
#define RILL_CLI_H

#include "lib/base/base.h"
#include "lib/stream/stream.h"

enum cli_type {
    CLI_FLAG,   /* bool *                         */
    CLI_STRING, /* const char **                  */
    CLI_U64,    /* uint64_t *, within [min, max] and at most JSON_MAX_INTEGER */
    CLI_F64,    /* double *, within [min, max]    */
    CLI_SHARE,  /* double *, within [min, max]: 0.5 or the percentage 50% */
    CLI_AMOUNT, /* struct cli_amount *: 20, at most max, or the percentage 67% of the total */
    CLI_CHOICE, /* const char **, one of `choices` ("a|b|c") */
    CLI_LIST,   /* struct cli_list *, repeatable  */
};
struct cli_list {
    const char **items; /* owned by the cli */
    size_t n;
};

#define CLI_MAX_NEEDS 16

/* n, or if n is 0 a share in (0, 1]; both 0: all. */
struct cli_amount {
    uint64_t n;
    double share;
    const char *text; /* as written, for messages */
};

/* What an option does with the file it names. Outputs are checked before run(): each can be written, no two are the
 * same file, and none is an input. */
enum cli_writes {
    CLI_READS,    /* not an output */
    CLI_CREATES,  /* a file that must not exist yet */
    CLI_REPLACES, /* a file that is replaced if it exists */
    CLI_APPENDS,  /* a file that is created or appended to in place */
    CLI_RESULT,   /* the file of -o */
};

struct cli_option {
    const char *name; /* long name without dashes; NULL ends the table */
    char letter;      /* only for the shared ones: h V v q o j m n */
    enum cli_type type;
    void *to;
    const char *arg;      /* placeholder in help: FILE, N, TYPE */
    const char *fallback; /* the default as a user would write it, parsed like a value; NULL: none */
    const char *choices;
    /* "topk:|sample:": completions for the shell where `choices` would be too strict; NULL: none */
    const char *suggests;
    double min, max; /* both 0: the full range of the type */
    bool required;
    bool completes_files;
    /* Clauses that must hold for the option to have an effect (syntax: lib/cli/needs.c): "tsv": only with that
     * option, "!tsv": only without it, "codec=zstd|codec=planes". Otherwise the option is refused; help states the
     * condition. */
    const char *needs[CLI_MAX_NEEDS];
    enum cli_writes writes; /* for a CLI_STRING */
    const char *continues;  /* name of an option whose input may be this very file (a state that is continued) */
    bool transient;         /* does not affect the output (a log, a checkpoint): not recorded in the provenance */
    /* For a CLI_FLAG without `to`: like --help it ends parsing; this is called and the program ends. */
    void (*prints)(FILE *out);
    /* NULL: hidden. One or more sentences, first letter in lower case, no full stop at the end. */
    const char *help;
};

struct cli;
struct cli_program {
    const char *name;               /* "teacher-infer" */
    const char *summary;            /* one line, first letter in lower case, no full stop */
    const char *operands;           /* "[FILE]", "FILE...", "" */
    int min_operands, max_operands; /* max -1: any number */
    bool reads_stdin;               /* without operands: read stdin; if that is a terminal, print usage and exit 2 */
    /* "reference|task": with one of these options, standard input is read only if it is a file (< FILE), because the
     * program would wait for a terminal or for the open pipe of a build machine. The operand "-" still reads it. */
    const char *stdin_unless;
    bool writes_stream;       /* has -o, --force, --codec, --level, --no-provenance */
    bool writes_text;         /* has -o, --force for text or foreign files */
    const char *stream_needs; /* "!tsv": clause that holds if the output is a stream; --codec and --level need it */
    /* the help of --force if it allows more than usual in this program; it is then recorded in the provenance. NULL:
     * the usual help */
    const char *force_help;
    bool (*makes_folder)(void); /* called after parsing: does -o name a folder? NULL: never */
    bool seeded;                /* has --seed */
    const char *seed_needs[2];  /* needs clauses of --seed */
    bool threaded;              /* has -j */
    const char *description;    /* paragraphs for help and the man page */
    const char *examples;       /* "COMMAND\n    what it does\n" pairs; a test runs each command */
    const struct cli_option *options;
    int (*run)(struct cli *c, struct err *e);
};

/* Parses argv, calls run(), reports, and returns the exit code of its error. Common options: -h --help, -V --version,
 * -v, -q, --progress=auto|always|never, --report FILE, and those that the flags above enable. Hidden: --help-man, and
 * for completion --help-bash, --help-zsh and --help-fish. */
int cli_main(const struct cli_program *p, int argc, char **argv);

/* ---- for use in run() ---- */

size_t cli_operands(const struct cli *c);
const char *cli_operand(const struct cli *c, size_t i);
/* The path of operand i, or "-" (stdin) if there are fewer operands. */
const char *cli_input_path(const struct cli *c, size_t i);
uint64_t cli_seed(const struct cli *c);
bool cli_given(const struct cli *c, const char *option); /* on the command line, not by default */
bool cli_verbose(const struct cli *c);
bool cli_quiet(const struct cli *c);
bool cli_wants_stdin(const struct cli *c); /* according to reads_stdin, stdin_unless and the operands */
/* Is it a regular file that can be opened again: `path`, or standard input ("-") if nothing was read from it yet? */
bool cli_is_file(const char *path);

/* ---- input: streams and other files. Messages name them as the user wrote them, and "-" as `standard input` ---- */

/* Copies the first n bytes of the next input, a file, pipe or socket, and returns how many there are; 0 if it cannot be
 * opened. They stay in it: a cli_open_* of the same path follows, which also reports errors. */
size_t cli_peek(struct cli *c, const char *path, void *begin, size_t n);
/* Open an input. `role` names it in the provenance ("stdin", "model", "reference"). The cli owns and frees the result
 * and its descriptor. Every input becomes a parent in the provenance of the output. Errors as stream_reader_open and
 * stream_map_open; ERR_USAGE if standard input is used twice or the input is the output. */
int cli_open_stream(struct cli *c, const char *path, const char *role, enum stream_kind expect,
                    struct stream_reader **out, struct err *e) MUST_CHECK;
int cli_open_map(struct cli *c, const char *path, const char *role, enum stream_kind expect, struct stream_map **out,
                 struct err *e) MUST_CHECK;
/* Opens a foreign file or text; reading through the cli computes its digest. */
struct cli_file;
int cli_open_file(struct cli *c, const char *path, const char *role, struct cli_file **out, struct err *e) MUST_CHECK;
/* *got 0: end of file */
int cli_file_read(struct cli_file *f, void *dst, size_t n, size_t *got, struct err *e) MUST_CHECK;
/* Appends the whole file to `out`. Stops soon after `most` bytes; the caller then refuses it. */
int cli_file_read_all(struct cli_file *f, size_t most, struct buf *out, struct err *e) MUST_CHECK;
/* Stops reading a pipe, which may never end: its digest covers what was read. A regular file is still read to its end
 * later, so that its digest is complete. */
void cli_file_stop(struct cli_file *f);
/* Closes the descriptor of a file that was read to its end, for programs that read many. */
void cli_file_close(struct cli *c, struct cli_file *f);
const char *cli_file_name(const struct cli_file *f);
uint64_t cli_file_size(const struct cli_file *f); /* 0 if unknown (a pipe); for progress */
/* Records path and digest of a folder or file that library code opened itself (import). */
int cli_note_input(struct cli *c, const char *path, const char *role, struct digest digest, struct err *e) MUST_CHECK;

/* ---- output ------------------------------------------------------------------------------------------------------ */

/* Opens the program's output stream: stdout or -o FILE, which has a temporary name in the same folder until run() has
 * succeeded. ERR_USAGE for a terminal without --force. At most one per program. */
int cli_open_output(struct cli *c, struct stream_writer **out, struct err *e) MUST_CHECK;
/* Reads the rest of the inputs (so that truncation is noticed), writes the provenance of the inputs and of this
 * program, ends the stream and syncs it. Call last in run(). */
int cli_close_output(struct cli *c, struct err *e) MUST_CHECK;
/* Opens the text output: stdout or a temporary name for -o FILE. Write errors are checked when run() returns. It has no
 * descriptor (fileno fails). */
int cli_text(struct cli *c, FILE **out, struct err *e) MUST_CHECK;
/* Opens the output for a foreign file format, in the same places. ERR_USAGE for a terminal without --force. */
int cli_binary(struct cli *c, int *fd, struct err *e) MUST_CHECK;
/* The value of -o, or NULL if the result goes to stdout: for programs that create a folder of that name themselves. */
const char *cli_output_path(const struct cli *c);
/* Prints a result to the text output: a flat object as one line of canonical JSON, flushed. */
int cli_result(struct cli *c, const cJSON *object, struct err *e) MUST_CHECK;
/* Prints an array of flat objects as an aligned table: consecutive objects with the same keys share a header, a single
 * object gets one line per member. */
int cli_table(struct cli *c, const cJSON *objects, struct err *e) MUST_CHECK;
/* Opens another output whose name an option gives (checkpoints), under a temporary name; cli_commit renames it. */
struct cli_out_file;
int cli_create(struct cli *c, const char *path, bool overwrite, int *fd, struct cli_out_file **out,
               struct err *e) MUST_CHECK;
int cli_commit(struct cli *c, struct cli_out_file *f, struct err *e) MUST_CHECK;

/* ---- signals: a signal that ends the program first removes its temporary files ---- */

/* Makes the first SIGINT or SIGTERM a request that run() polls: it finishes what it must and returns. If it returns an
 * error, the program prints its message and dies of the signal. A second signal kills it. A signal that was ignored on
 * start stays ignored, one that was blocked is unblocked. */
void cli_catch_stop(void);
int cli_stop_requested(void); /* the signal, or 0 */
/* Records SIGUSR1 instead of dying of it. */
void cli_catch_usr1(void);
bool cli_take_usr1(void); /* has one arrived since the last call? */

/* ---- commands ---------------------------------------------------------------------------------------------------- */

/* Runs a shell command with `variable` set to `value` in its environment, its standard input empty and its standard
 * output sent to `fd`. ERR_IO if it fails; the message says how it ended. */
int cli_shell(const char *command, const char *variable, const char *value, int fd, struct err *e) MUST_CHECK;

/* ---- progress and report ----------------------------------------------------------------------------------------- */

/* Shows a bar with rate and remaining time on stderr if that is a terminal (or with --progress=always). total 0:
 * unknown, shows a counter. */
void cli_progress_begin(struct cli *c, const char *unit, uint64_t total);
void cli_progress(struct cli *c, uint64_t done, const char *note_fmt, ...) PRINTF_LIKE(3, 4); /* note_fmt NULL: none */
void cli_progress_end(struct cli *c);
/* The object for facts about the run that only --report writes, beside settings, times and peak memory. */
cJSON *cli_report(struct cli *c);
/* Prints a note "rill NAME: ..." on stderr, unless -q. */
void cli_say(struct cli *c, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* The object for resolved settings, which the provenance records beside argv (what defaults resolved to). Add to it
 * before cli_close_output. */
cJSON *cli_settings(struct cli *c);
/* Replaces the values of a repeatable option (by its long name) in the recorded command, for a program that determined
 * equivalent values in another way. The values are copied. */
int cli_remember(struct cli *c, const char *option, const char *const *values, size_t n, struct err *e) MUST_CHECK;

/* ---- output for people and programs ---- */

/* Writes a name or path from a file or command line, escaped by escape_text. */
void cli_put(FILE *out, const char *text);
/* Writes a text result (generate --text, tokenize --decode) to the output of cli_text: unchanged, but escaped except
 * for line ends and tabs if it is a terminal. */
int cli_put_document(struct cli *c, const void *text, size_t n, struct err *e) MUST_CHECK;
/* Writes j as a line of JSON (json_text_shown) and frees it. `complete`: whether all additions to it succeeded; if not,
 * fails with out of memory. */
int cli_put_json(FILE *out, cJSON *j, bool complete, struct err *e) MUST_CHECK;
/* Writes the scalar members of an object on one line as "  key=value", recursively. Members of a nested object are
 * written as "of.key=value" if the sibling before that object has the same key. Lists of numbers become "5,5,0", runs
 * "5x512,0"; long ones are truncated. Other lists and false values are omitted. */
void cli_put_facts(FILE *out, const cJSON *object);

/* ---- the program rill ------------------------------------------------------------ */

/* The candidate that a mistyped word most likely means (by prefix or edit distance), or NULL. */
const char *cli_nearest(const char *word, const char *const *names, size_t n);
/* A page that `rill help NAME` prints, in addition to those of the programs. */
struct cli_topic {
    const char *name, *summary;
    void (*print)(FILE *out);
};
/* Prints the topic on common options. */
void cli_help_common(FILE *out);
/* Implements `rill NAME ...`: finds rill-NAME and execs it; without NAME lists the programs. `topics` ends with a NULL
 * name. Returns an exit code. */
int cli_dispatch(int argc, char **argv, const struct cli_topic *topics);

#endif
