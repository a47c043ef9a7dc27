/*
 * cli: what every program has in common, so that a program is a table of options, wiring and a report.
 * Option parsing, --help, the man page and the shell completion come from one table; messages, exit codes,
 * terminals, progress, atomic output and provenance live here and nowhere else.
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
    CLI_U64,    /* uint64_t *, within [min, max], at most what a JSON number holds exactly */
    CLI_F64,    /* double *, within [min, max]    */
    CLI_SHARE,  /* double *, within [min, max]: 0.5, or the percentage 50% */
    CLI_AMOUNT, /* struct cli_amount *: 20, at most max, or the percentage 67% of what there is */
    CLI_CHOICE, /* const char **, one of `choices` ("a|b|c") */
    CLI_LIST,   /* struct cli_list *, repeatable  */
};
struct cli_list {
    const char **items; /* owned by the cli */
    size_t n;
};

#define CLI_MAX_NEEDS 16

/* n, or when that is 0 a share in (0, 1]; both 0: all. */
struct cli_amount {
    uint64_t n;
    double share;
    const char *text; /* as it was written, for messages */
};

/* What an option's file is for. Outputs are checked before run(): they can be written, no two are one file, none is
 * an input. */
enum cli_writes {
    CLI_READS,    /* nothing, or an input */
    CLI_CREATES,  /* a file that must not exist */
    CLI_REPLACES, /* ... that may */
    CLI_APPENDS,  /* ... that may, and is written in place */
    CLI_RESULT,   /* -o itself */
};

struct cli_option {
    const char *name; /* long name without dashes; NULL ends the table */
    char letter;      /* only the shared ones: h V v q o j m n */
    enum cli_type type;
    void *to;
    const char *arg;      /* placeholder in help: FILE, N, TYPE */
    const char *fallback; /* the default, as a user would write it, parsed by the same code; NULL: none */
    const char *choices;
    const char *suggests; /* "topk:|sample:": what a shell completes where choices would be too narrow; NULL: nothing */
    double min, max;      /* both 0: the type's own range */
    bool required;
    bool completes_files;
    /* Clauses that must hold for the option to have an effect (lib/cli/needs.c): "tsv" only with that option, "!tsv"
     * only without it, "codec=zstd|codec=planes". Otherwise the option is refused; help says so. */
    const char *needs[CLI_MAX_NEEDS];
    enum cli_writes writes; /* of a CLI_STRING */
    const char *continues;  /* the option that may name the same file as its input (a state that is continued) */
    bool transient;         /* changes nothing in the output (a log, a checkpoint): not recorded in the provenance */
    /* Of a CLI_FLAG without `to`: like --help it ends parsing, this is printed, and the program ends. */
    void (*prints)(FILE *out);
    /* NULL: hidden. One or more sentences, lower case first letter, no full stop at the end of the last */
    const char *help;
};

struct cli;
struct cli_program {
    const char *name;               /* "teacher-infer" */
    const char *summary;            /* one line, lower case first letter, no full stop */
    const char *operands;           /* "[FILE]", "FILE...", "" */
    int min_operands, max_operands; /* max -1: any number */
    bool reads_stdin;               /* with no operand: read stdin; with a terminal there, print usage and exit 2 */
    /* "reference|task": with one of these options, standard input is read only if it is a file (< FILE): a terminal,
     * or the open pipe of a build machine, would be waited for. To read it then, name it: "-" */
    const char *stdin_unless;
    bool writes_stream;       /* has -o, --force, --codec, --level, --no-provenance */
    bool writes_text;         /* has -o, --force for text or foreign files */
    const char *stream_needs; /* "!tsv": a clause, without which the output is no stream: for --codec and --level */
    /* what else --force allows in this program (its whole help text); the provenance then records it. NULL: nothing
     * else */
    const char *force_help;
    bool (*makes_folder)(void); /* asked once the options are known: is -o the name of a folder? NULL: never */
    bool seeded;                /* has --seed */
    const char *seed_needs[2];  /* clauses of --seed */
    bool threaded;              /* has -j */
    const char *description;    /* paragraphs for help and the man page */
    const char *examples;       /* "COMMAND\n    what it does\n" pairs; every one is run by a test */
    const struct cli_option *options;
    int (*run)(struct cli *c, struct err *e);
};

/* Parses, runs, reports, maps the error to the exit code. Common options: -h --help, -V --version, -v, -q,
 * --progress=auto|always|never, --report FILE, and those that the flags above switch on. Hidden: --help-man, and
 * --help-bash, --help-zsh and --help-fish for completion. */
int cli_main(const struct cli_program *p, int argc, char **argv);

/* ---- what run() may ask ------------------------------------------------------------------------------------------ */

size_t cli_operands(const struct cli *c);
const char *cli_operand(const struct cli *c, size_t i);
/* The path of operand i, or "-" (stdin) when there are not that many. */
const char *cli_input_path(const struct cli *c, size_t i);
uint64_t cli_seed(const struct cli *c);
bool cli_given(const struct cli *c, const char *option); /* said on the command line, not defaulted */
bool cli_verbose(const struct cli *c);
bool cli_quiet(const struct cli *c);
bool cli_wants_stdin(const struct cli *c); /* reads_stdin, stdin_unless and the operands say so */
/* A regular file, which can be opened again: `path`, or standard input ("-") while nothing has been read from it. */
bool cli_is_file(const char *path);

/* ---- input: streams and other files. Names appear in messages as the user wrote them; "-" is `standard input` --------- */

/* `role` names the input in the provenance ("stdin", "model", "reference"). Freed by the cli at the end, with its
 * descriptor. Every input opened here becomes a parent in the provenance of the output. */
int cli_open_stream(struct cli *c, const char *path, const char *role, enum stream_kind expect,
                    struct stream_reader **out, struct err *e) MUST_CHECK;
int cli_open_map(struct cli *c, const char *path, const char *role, enum stream_kind expect, struct stream_map **out,
                 struct err *e) MUST_CHECK;
/* A foreign file or text, read through the cli so that its digest is known at the end: */
struct cli_file;
int cli_open_file(struct cli *c, const char *path, const char *role, struct cli_file **out, struct err *e) MUST_CHECK;
int cli_file_read(struct cli_file *f, void *dst, size_t n, size_t *got, struct err *e) MUST_CHECK; /* *got 0: end */
/* Appends the whole file; of one that is longer than `most`, a little more than that, which the caller refuses. */
int cli_file_read_all(struct cli_file *f, size_t most, struct buf *out, struct err *e) MUST_CHECK;
/* Stops reading a pipe, which may never end: its digest covers what was read. A file is still read to its end, for a
 * digest of the whole. */
void cli_file_stop(struct cli_file *f);
/* Gives back the descriptor of a file that has been read to its end, for programs that read many. */
void cli_file_close(struct cli *c, struct cli_file *f);
const char *cli_file_name(const struct cli_file *f);
uint64_t cli_file_size(const struct cli_file *f); /* 0 when unknown (a pipe); for progress */
/* A folder or file that library code opened itself (import): recorded by path and digest. */
int cli_note_input(struct cli *c, const char *path, const char *role, struct digest digest, struct err *e) MUST_CHECK;

/* ---- output ------------------------------------------------------------------------------------------------------ */

/* The program's stream: stdout, or -o FILE under a temporary name in the same folder until cli_main has seen run()
 * succeed. Refuses a terminal without --force. One per program. */
int cli_open_output(struct cli *c, struct stream_writer **out, struct err *e) MUST_CHECK;
/* Reads what is left of the inputs (so that a cut one is noticed), writes the provenance of inputs and this program,
 * ends the stream, fsyncs and renames. Call last in run(). */
int cli_close_output(struct cli *c, struct err *e) MUST_CHECK;
/* Text: stdout or -o FILE under a temporary name. Checked when run() ends. Has no descriptor (fileno fails). */
int cli_text(struct cli *c, FILE **out, struct err *e) MUST_CHECK;
/* A foreign file, to the same places: refuses a terminal without --force. */
int cli_binary(struct cli *c, int *fd, struct err *e) MUST_CHECK;
/* The name after -o, NULL when the result goes to stdout: for a program that makes a folder of that name itself. */
const char *cli_output_path(const struct cli *c);
/* A result on the program's text output: a flat object as one line of canonical JSON, flushed. */
int cli_result(struct cli *c, const cJSON *object, struct err *e) MUST_CHECK;
/* An array of flat objects as an aligned table: consecutive objects with the same keys share a head, others get a
 * line for each member. */
int cli_table(struct cli *c, const cJSON *objects, struct err *e) MUST_CHECK;
/* A further output under a final name given by an option (checkpoints): temporary name now, rename on _commit. */
struct cli_out_file;
int cli_create(struct cli *c, const char *path, bool overwrite, int *fd, struct cli_out_file **out,
               struct err *e) MUST_CHECK;
int cli_commit(struct cli *c, struct cli_out_file *f, struct err *e) MUST_CHECK;

/* ---- signals: any that ends a program removes its temporary files first ---------------------------------------- */

/* From here on the first SIGINT or SIGTERM is a request: run() finishes what it must and returns. If it returns an
 * error, the program prints its message and dies of the signal. A second signal kills it. A signal that the parent
 * ignored stays ignored. */
void cli_catch_stop(void);
int cli_stop_requested(void); /* the signal, or 0 */
/* From here on SIGUSR1 is recorded instead of killing the program. */
void cli_catch_usr1(void);
bool cli_take_usr1(void); /* has one come since the last call? */

/* ---- commands ---------------------------------------------------------------------------------------------------- */

/* Runs a shell command with a variable in its environment, nothing on its standard input and its standard output going to fd. ERR_IO: it
 * fails, with how it ended. */
int cli_shell(const char *command, const char *variable, const char *value, int fd, struct err *e) MUST_CHECK;

/* ---- progress and report ----------------------------------------------------------------------------------------- */

/* A bar with rate and time left on stderr when it is a terminal (or --progress=always); total 0: unknown, a counter. */
void cli_progress_begin(struct cli *c, const char *unit, uint64_t total);
void cli_progress(struct cli *c, uint64_t done, const char *note_fmt, ...) PRINTF_LIKE(3, 4); /* note_fmt NULL: none */
void cli_progress_end(struct cli *c);
/* The object that --report writes and nothing else shows; add what was done. It also has settings, seconds, peak
 * memory. */
cJSON *cli_report(struct cli *c);
/* A line on stderr ("rill NAME: ..."), for notes that the user should see unless -q. */
void cli_say(struct cli *c, const char *fmt, ...) PRINTF_LIKE(2, 3);
/* Effective settings, as JSON, that the provenance records beside argv (what defaults resolved to). Add before
 * cli_close_output. */
cJSON *cli_settings(struct cli *c);
/* Makes the recorded command have these values of a repeatable option (its long name) instead of those given, for a
 * program that determined otherwise what makes the same bytes. The values are copied. */
int cli_remember(struct cli *c, const char *option, const char *const *values, size_t n, struct err *e) MUST_CHECK;

/* ---- what people and programs read ------------------------------------------------------------------------------- */

/* Writes text from a file or a command line (a name, a path), escaped by escape_text. */
void cli_put(FILE *out, const char *text);
/* Writes text that is the result itself (generate --text, tokenize --decode) to cli_text's place: as it is, but to a
 * terminal everything is escaped except line ends and tabs. */
int cli_put_document(struct cli *c, const void *text, size_t n, struct err *e) MUST_CHECK;
/* Writes j as a line of JSON, by json_text_shown, and frees it. `complete`: every addition to it succeeded (else out
 * of memory). */
int cli_put_json(FILE *out, cJSON *j, bool complete, struct err *e) MUST_CHECK;
/* The plain facts of an object on one line as "  key=value", including those of nested objects: "  of.key=value" if
 * the object before has the same key. Lists of numbers are "5,5,0", equal neighbours with a count: "5x512,0"; long ones are
 * cut. Other lists and what is false are left out. */
void cli_put_facts(FILE *out, const cJSON *object);

/* ---- the program rill ------------------------------------------------------------ */

/* The candidate that a mistyped word most probably means (a prefix, or few letters differ), or NULL. */
const char *cli_nearest(const char *word, const char *const *names, size_t n);
/* A page that `rill help NAME` prints from a registry, in addition to the programs. */
struct cli_topic {
    const char *name, *summary;
    void (*print)(FILE *out);
};
/* A topic: the options that programs share. */
void cli_help_common(FILE *out);
/* `rill NAME ...`: finds rill-NAME and execs it; lists the programs when there is no NAME. topics end with a NULL
 * name. */
int cli_dispatch(int argc, char **argv, const struct cli_topic *topics);

#endif
