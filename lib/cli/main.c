/*
 * main: the code around every program's run(). In order: process set-up, options, help or usage, run(), and then either
 * everything is written, synced and renamed, or no file is left that looks valid.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/cli/cli_internal.h"

/* Honours -v after --version, too, where parsing stopped. */
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
        complete_bash(out, p, &c->args);
    else if (strcmp(name, "help-zsh") == 0)
        complete_zsh(out, p, &c->args);
    else if (strcmp(name, "help-fish") == 0)
        complete_fish(out, p, &c->args);
    else if (strcmp(name, "help-options") == 0)
        help_options(out, &c->args);
    else
        fprintf(out, "%s\n", p->summary);
    return text_close(out, "standard output", e);
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

/* ---- around run() ---- */

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
    if (c->profile) profile_start();
    log_set_sink(on_log, c);
    progress_setup(c);
    c->report = cJSON_CreateObject();
    c->settings = cJSON_CreateObject();
    if (!c->report || !c->settings) return err_nomem(e, "report");
    return outputs_check(c, e) ? e->code : report_begin(c, e);
}

/* A failed check is also a result, so its output is kept. The output is renamed last, so that its existence means
 * success. */
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
    struct err ignored; /* the first error is the one reported */
    cli_progress_end(c);
    output_abort(c, e->msg);
    if (report_finish(c, code, e->msg, &ignored) || report_commit(c, &ignored)) report_retract(c);
}

static int run_program(struct cli *c, struct err *e) {
    int code = start(c, e);
    if (!code) stdin_note_pipe(c);
    if (!code) code = c->program->run(c, e);
    if (code == 0 || (code == ERR_CHECK && !c->writer_open)) code = finish(c, code, e);
    if (code != 0 && code != ERR_CHECK) abandon(c, code, e);
    profile_print(c);
    /* programs such as diff print on stdout what does not hold, and set no message */
    if (code != 0 && (*e->msg || code != ERR_CHECK))
        cli_message(c, "", *e->msg ? e->msg : "failed, and did not say why");
    return cli_exit_code(code);
}

static void release(struct cli *c) {
    file_out_release(c);
    stream_writer_free(c->writer);
    inputs_release(c);
    log_set_sink(NULL, NULL);
    cJSON_Delete(c->report);
    cJSON_Delete(c->settings);
    arena_release(&c->arena);
}

int cli_main(const struct cli_program *p, int argc, char **argv) {
    struct cli c = {.program = p, .argc = argc, .argv = argv, .codec = "raw", .progress_mode = "auto"};
    struct cli_option common[CLI_MAX_COMMON];
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
