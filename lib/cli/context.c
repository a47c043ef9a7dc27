/* Services of the running program that all parts use: messages, exit codes, the command line, the output's name. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "lib/cli/cli_internal.h"

/* ---- messages ---------------------------------------------------------------------------------------------------- */

void cli_message(struct cli *c, const char *label, const char *text) {
    char line[2304];
    progress_hide(c);
    int n = snprintf(line, 256, "rill %s: %s", c->program->name, label);
    size_t at = n < 0 ? 0 : n < 256 ? (size_t)n : 255;
    at += escape_text(line + at, sizeof line - at - 1, text, strlen(text));
    line[at++] = '\n';
    (void)fd_write(STDERR_FILENO, line, at); /* an error here cannot be reported */
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

/* ---- the command line -------------------- */

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

bool cli_given(const struct cli *c, const char *option) {
    for (size_t i = 0; i < c->args.n_rows; i++)
        if (strcmp(c->args.rows[i].name, option) == 0) return c->args.values[i].given;
    return false;
}

int cli_remember(struct cli *c, const char *option, const char *const *values, size_t n, struct err *e) {
    return args_remember(&c->args, &c->arena, option, values, n, e);
}

/* ---- results -------------------- */

cJSON *cli_report(struct cli *c) {
    return c->report;
}
cJSON *cli_settings(struct cli *c) {
    return c->settings;
}

bool output_is_stdout(const struct cli *c) {
    return !c->output_path || strcmp(c->output_path, "-") == 0;
}

const char *cli_output_path(const struct cli *c) {
    return output_is_stdout(c) ? NULL : c->output_path;
}

const char *output_name(const struct cli *c) {
    return output_is_stdout(c) ? "standard output" : c->output_path;
}

int output_fd(const struct cli *c) {
    return c->output ? c->output->file.fd : STDOUT_FILENO;
}
