/* Whether standard input is read, and whether it is a regular file. */
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/cli/cli_internal.h"

/* Was one of the options "a|b" given? */
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

/* Does an option read standard input? */
static bool option_takes_stdin(const struct cli *c) {
    for (const struct cli_option *o = c->program->options; o && o->name; o++) {
        if (o->type == CLI_STRING && o->completes_files && is_dash(*(const char **)o->to)) return true;
        const struct cli_list *list = o->type == CLI_LIST ? o->to : NULL;
        for (size_t i = 0; list && i < list->n; i++)
            if (is_dash(list->items[i])) return true;
    }
    return false;
}

/* The user may have expected it to be read. */
void stdin_note_pipe(struct cli *c) {
    struct stat st;
    if (c->program->stdin_unless && !c->args.n_operands && !cli_wants_stdin(c) && !option_takes_stdin(c) &&
        fstat(STDIN_FILENO, &st) == 0 && S_ISFIFO(st.st_mode))
        cli_say(c, "standard input is a pipe and is not read (write - as the operand to read it)");
}

bool cli_is_file(const char *path) {
    struct stat st;
    if (!is_dash(path)) return stat(path, &st) == 0 && S_ISREG(st.st_mode);
    return fstat(STDIN_FILENO, &st) == 0 && S_ISREG(st.st_mode) && lseek(STDIN_FILENO, 0, SEEK_CUR) == 0;
}

bool cli_wants_stdin(const struct cli *c) {
    if (!c->program->reads_stdin || c->args.n_operands) return false;
    return !any_given(c, c->program->stdin_unless) || (!option_takes_stdin(c) && cli_is_file("-"));
}
