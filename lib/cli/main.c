/*
 * main: what happens around every program's run(). In order: process set-up, options, help or usage, run, and then
 * either the end that everything is written, synced and named, or the end that nothing valid-looking is left behind.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/cli/cli_internal.h"

/* ---- messages ------------------------------------------------------------------------------------------------------- */

void cli_message(struct cli *c, const char *label, const char *text) {
    char line[2304];
    progress_hide(c);
    int n = snprintf(line, 256, "rill %s: %s", c->program->name, label);
    size_t at = n < 0 ? 0 : n < 256 ? (size_t)n : 255;
    at += escape_text(line + at, sizeof line - at - 1, text, strlen(text));
    line[at++] = '\n';
    (void)fd_write(STDERR_FILENO, line, at); /* there is nowhere left to say that it failed */
}

static void on_log(void *ctx, enum log_level level, const char *line) {
    struct cli *c = ctx;
    if (level == LOG_WARN && !c->quiet)
        cli_message(c, "warning: ", line);
    else if (level == LOG_INFO && c->verbose)
        cli_message(c, "", line);
    else if (level == LOG_DEBUG && getenv("RILL_DEBUG"))
        cli_message(c, "debug: ", line);
}

void cli_say(struct cli *c, const char *fmt, ...) {
    char line[1024];
    va_list ap;
    if (c->quiet) return;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    cli_message(c, "", line);
}

int cli_exit_code(int code) {
    return code == 0 ? 0 : code <= ERR_IO && code >= ERR_CHECK ? -code : 1;
}

/* ---- common options ----------------------------------------------------------------------------------------------------- */

#define MAX_COMMON 24
#define FORCE_HELP "replace an output file that exists; let binary output go to a terminal"

static size_t common_options(struct cli *c, const struct cli_program *p, struct cli_option rows[MAX_COMMON]) {
    size_t n = 0;
    if (p->writes_stream || p->writes_text) {
        rows[n++] = (struct cli_option){
            .name = "output",
            .letter = 'o',
            .type = CLI_STRING,
            .to = &c->output_path,
            .arg = "FILE",
            .completes_files = true,
            .writes = CLI_RESULT,
            .transient = true,
            .help = "write FILE instead of standard output, complete or not at all; - is standard output"};
        rows[n++] = (struct cli_option){.name = "force",
                                        .type = CLI_FLAG,
                                        .to = &c->force,
                                        .transient = !p->force_help,
                                        .help = p->force_help ? p->force_help : FORCE_HELP};
    }
    if (p->writes_stream) {
        rows[n++] = (struct cli_option){.name = "codec",
                                        .type = CLI_CHOICE,
                                        .to = &c->codec,
                                        .arg = "CODEC",
                                        .choices = "raw|zstd|planes",
                                        .fallback = "raw",
                                        .needs = {p->stream_needs},
                                        .help = "how tensors are stored: raw for pipes, zstd or planes (byte planes of "
                                                "each element, smaller and faster) for "
                                                "files that are kept"};
        rows[n++] = (struct cli_option){.name = "level",
                                        .type = CLI_U64,
                                        .to = &c->level,
                                        .arg = "N",
                                        .min = 1,
                                        .max = 19,
                                        .needs = {"codec=zstd|codec=planes", p->stream_needs},
                                        .help = "zstd's level; the codec knows a good one"};
        rows[n++] = (struct cli_option){.name = "no-provenance",
                                        .type = CLI_FLAG,
                                        .to = &c->no_provenance,
                                        .transient = true,
                                        .help = "do not write who made this from what"};
    }
    if (p->seeded)
        rows[n++] = (struct cli_option){.name = "seed",
                                        .type = CLI_U64,
                                        .to = &c->seed,
                                        .arg = "N",
                                        .fallback = "0",
                                        .min = 0,
                                        .max = (double)JSON_MAX_INTEGER,
                                        .needs = {p->seed_needs[0], p->seed_needs[1]},
                                        .help = "seed of all random numbers; the same seed gives the same result"};
    if (p->threaded)
        rows[n++] = (struct cli_option){
            .name = "threads",
            .letter = 'j',
            .type = CLI_U64,
            .to = &c->threads,
            .arg = "N",
            .min = 1,
            .max = 4096,
            .transient = true,
            .help = "threads to use; without it, all the cores this process may use. The result does not depend on it"};
    rows[n++] =
        (struct cli_option){.name = "max-memory",
                            .type = CLI_U64,
                            .to = &c->max_memory,
                            .arg = "BYTES",
                            .min = 1,
                            .max = 0x1p60,
                            .transient = true,
                            .help = "take no more memory than this for tensors and tables, and fail before it is "
                                    "taken; K, M and G are powers of 1024. Without it: what the machine has "
                                    "available, the control group and ulimit -v leave"};
    rows[n++] = (struct cli_option){
        .name = "progress",
        .type = CLI_CHOICE,
        .to = &c->progress_mode,
        .arg = "WHEN",
        .choices = "auto|always|never",
        .fallback = "auto",
        .needs = {"!progress=always|!quiet"},
        .transient = true,
        .help = "show how far the work is; auto: on a terminal, and only by the last program of a pipeline"};
    rows[n++] =
        (struct cli_option){.name = "report",
                            .type = CLI_STRING,
                            .to = &c->report_path,
                            .arg = "FILE",
                            .completes_files = true,
                            .writes = CLI_REPLACES,
                            .transient = true,
                            .help = "write what was done to FILE as JSON: settings, counts, seconds, peak memory"};
    rows[n++] = (struct cli_option){.name = "verbose",
                                    .letter = 'v',
                                    .type = CLI_FLAG,
                                    .to = &c->verbose,
                                    .needs = {"!quiet"},
                                    .transient = true,
                                    .help = "say more on standard error"};
    rows[n++] = (struct cli_option){.name = "quiet",
                                    .letter = 'q',
                                    .type = CLI_FLAG,
                                    .to = &c->quiet,
                                    .transient = true,
                                    .help = "no notes, warnings or progress; errors are always shown"};
    rows[n++] = (struct cli_option){.name = "help", .letter = 'h', .type = CLI_FLAG, .help = "show this text"};
    rows[n++] = (struct cli_option){
        .name = "version", .letter = 'V', .type = CLI_FLAG, .help = "show the version; with -v, what computes"};
    rows[n++] = (struct cli_option){.name = "help-man", .type = CLI_FLAG};
    rows[n++] = (struct cli_option){.name = "help-bash", .type = CLI_FLAG};
    rows[n++] = (struct cli_option){.name = "help-summary", .type = CLI_FLAG};
    rows[n++] = (struct cli_option){.name = "help-options", .type = CLI_FLAG};
    return n;
}

/* -v counts where parsing stopped at --version, too. */
static bool asks_more(const struct cli *c) {
    for (int i = 1; i < c->argc; i++)
        if (strcmp(c->argv[i], "--verbose") == 0 ||
            (c->argv[i][0] == '-' && c->argv[i][1] != '-' && strchr(c->argv[i], 'v')))
            return true;
    return false;
}

static void put_version(FILE *out, const char *program, bool verbose) {
    char name[256];
    snprintf(name, sizeof name, "rill-%s", program);
    cli_put_version(out, name, verbose);
}

static int act(const struct cli *c, struct err *e) {
    const char *name = c->args.action->name;
    const struct cli_program *p = c->program;
    FILE *out = text_open(STDOUT_FILENO);
    if (!out) return err_nomem(e, "text output");
    if (c->args.action->prints)
        c->args.action->prints(out);
    else if (strcmp(name, "help") == 0)
        help_text(out, p, &c->args);
    else if (strcmp(name, "version") == 0)
        put_version(out, p->name, c->verbose || asks_more(c));
    else if (strcmp(name, "help-man") == 0)
        help_man(out, p, &c->args);
    else if (strcmp(name, "help-bash") == 0)
        help_bash(out, p, &c->args);
    else if (strcmp(name, "help-options") == 0)
        help_options(out, &c->args);
    else
        fprintf(out, "%s\n", p->summary);
    return text_close(out, "standard output", e);
}

/* ---- the frame around run() ---------------------------------------------------------------------------------------------- */

static int check_common(struct cli *c, struct err *e) {
    if (c->output_path && !*c->output_path) return err_set(e, ERR_USAGE, "--output: the name is empty");
    if (c->report_path && strcmp(c->report_path, "-") == 0)
        return err_set(e, ERR_USAGE, "--report: - would mix the report with the result (name a file)");
    return 0;
}

static int start(struct cli *c, struct err *e) {
    if (args_check(&c->args, c->program, e) || check_common(c, e)) return e->code;
    if (c->threads) parallel_set_threads((int)c->threads);
    mem_set_limit(c->max_memory);
    log_set_sink(on_log, c);
    progress_setup(c);
    c->report = cJSON_CreateObject();
    c->settings = cJSON_CreateObject();
    if (!c->report || !c->settings) return err_nomem(e, "report");
    return outputs_check(c, e) ? e->code : report_begin(c, e);
}

/* A check that does not hold is a result like another: what was written about it stays. The output's name comes last,
 * so that whoever sees it knows that all went well. */
static int finish(struct cli *c, int code, struct err *e) {
    struct err late;
    cli_progress_end(c);
    if (output_finish(c, &late) || report_finish(c, code, code ? e->msg : NULL, &late) || report_commit(c, &late) ||
        output_commit(c, &late)) {
        report_retract(c);
        *e = late;
        return late.code;
    }
    return code;
}

static void abandon(struct cli *c, int code, const struct err *e) {
    struct err ignored; /* the first error is the one to tell */
    cli_progress_end(c);
    output_abort(c, e->msg);
    if (report_finish(c, code, e->msg, &ignored) || report_commit(c, &ignored)) report_retract(c);
}

/* ---- standard input ------------------------------------------------------------------------------------------ */

/* Is one of the options "a|b" given? */
static bool any_given(const struct cli *c, const char *names) {
    for (const char *s = names; s && *s;) {
        char name[64];
        size_t n = strcspn(s, "|");
        snprintf(name, sizeof name, "%.*s", (int)n, s);
        if (cli_given(c, name)) return true;
        s += n + (s[n] == '|');
    }
    return false;
}

static bool is_dash(const char *value) {
    return value && strcmp(value, "-") == 0;
}

/* Has an option named standard input? */
static bool option_takes_stdin(const struct cli *c) {
    for (const struct cli_option *o = c->program->options; o && o->name; o++) {
        if (o->type == CLI_STRING && o->completes_files && is_dash(*(const char **)o->to)) return true;
        const struct cli_list *list = o->type == CLI_LIST ? o->to : NULL;
        for (size_t i = 0; list && i < list->n; i++)
            if (is_dash(list->items[i])) return true;
    }
    return false;
}

/* Somebody may have meant it to be read. */
static void note_pipe(struct cli *c) {
    struct stat st;
    if (c->program->stdin_unless && !c->args.n_operands && !cli_wants_stdin(c) && !option_takes_stdin(c) &&
        fstat(STDIN_FILENO, &st) == 0 && S_ISFIFO(st.st_mode))
        cli_say(c, "standard input, a pipe, is not read: name it (-) if it should be");
}

static int run_program(struct cli *c, struct err *e) {
    int code = start(c, e);
    if (!code) note_pipe(c);
    if (!code) code = c->program->run(c, e);
    if (code == 0 || (code == ERR_CHECK && !c->writer_open)) code = finish(c, code, e);
    if (code != 0 && code != ERR_CHECK) abandon(c, code, e);
    /* diff and its like have said on stdout what does not hold, and set no message */
    if (code != 0 && (*e->msg || code != ERR_CHECK))
        cli_message(c, "", *e->msg ? e->msg : "failed, and did not say why");
    return cli_exit_code(code);
}

static void release(struct cli *c) {
    output_files_release(c);
    stream_writer_free(c->writer);
    inputs_release(c);
    log_set_sink(NULL, NULL);
    cJSON_Delete(c->report);
    cJSON_Delete(c->settings);
    arena_release(&c->arena);
}

int cli_main(const struct cli_program *p, int argc, char **argv) {
    struct cli c = {.program = p, .argc = argc, .argv = argv, .codec = "raw", .progress_mode = "auto"};
    struct cli_option common[MAX_COMMON];
    struct err e = {0};
    int code = 0;
    cli_process_setup();
    cli_signals_install();
    clock_gettime(CLOCK_MONOTONIC, &c.start);
    size_t n = common_options(&c, p, common);
    if (cli_reserve_stack(&e) || args_parse(&c.args, &c.arena, p, common, n, argc, argv, &e)) {
        cli_message(&c, "", e.msg);
        code = cli_exit_code(e.code);
    } else if (c.args.action) {
        code = cli_exit_code(act(&c, &e));
        if (code) cli_message(&c, "", e.msg);
    } else if (cli_wants_stdin(&c) && isatty(STDIN_FILENO)) {
        help_usage(stderr, p, &c.args);
        code = 2;
    } else {
        code = run_program(&c, &e);
    }
    release(&c);
    if (code != 0) signals_end();
    return code;
}

/* ---- small questions ------------------------------------------------------------------------------------------------------- */

size_t cli_operands(const struct cli *c) {
    return c->args.n_operands;
}
const char *cli_operand(const struct cli *c, size_t i) {
    return i < c->args.n_operands ? c->args.operands[i] : NULL;
}
const char *cli_input_path(const struct cli *c, size_t i) {
    return i < c->args.n_operands ? c->args.operands[i] : "-";
}
uint64_t cli_seed(const struct cli *c) {
    return c->seed;
}
bool cli_verbose(const struct cli *c) {
    return c->verbose;
}

bool cli_quiet(const struct cli *c) {
    return c->quiet;
}

bool cli_wants_stdin(const struct cli *c) {
    if (!c->program->reads_stdin || c->args.n_operands) return false;
    return !any_given(c, c->program->stdin_unless) || (!option_takes_stdin(c) && cli_is_file("-"));
}

bool cli_given(const struct cli *c, const char *option) {
    for (size_t i = 0; i < c->args.n_rows; i++)
        if (strcmp(c->args.rows[i].name, option) == 0) return c->args.values[i].given;
    return false;
}

int cli_remember(struct cli *c, const char *option, const char *const *values, size_t n, struct err *e) {
    return args_remember(&c->args, &c->arena, option, values, n, e);
}
