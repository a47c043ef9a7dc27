/*
 * overlap: checks the outputs before the work begins: each can be written as its option requires, no two are the same
 * file, and none is an input.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "lib/cli/cli_internal.h"

/* ---- a stream written to standard output ---- */

static bool writes_stdout(const struct cli *c) {
    return (c->program->writes_stream || c->program->writes_text) && output_is_stdout(c);
}

int check_not_output(struct cli *c, const struct stat *in, const char *name, struct err *e) {
    struct stat out;
    if (!writes_stdout(c) || !S_ISREG(in->st_mode) || fstat(STDOUT_FILENO, &out)) return 0;
    if (out.st_dev != in->st_dev || out.st_ino != in->st_ino) return 0;
    c->hands_off = true;
    return err_set(e, ERR_USAGE, "%s is the output too, and is written while it is read (use -o)", name);
}

/* ---- files that options name ----------------------------------------------------------------------------------- */

struct named {
    const struct cli_option *option;
    const char *path;
    struct out_id id;
};

static const char *value_of(const struct cli_option *o) {
    return o->type == CLI_STRING && o->to ? *(const char **)o->to : NULL;
}

static enum out_use use_of(const struct cli *c, const struct cli_option *o) {
    switch (o->writes) {
    case CLI_REPLACES: return OUT_REPLACE;
    case CLI_APPENDS: return OUT_APPEND;
    case CLI_RESULT:
        if (c->program->makes_folder && c->program->makes_folder()) return OUT_FOLDER;
        return c->force ? OUT_REPLACE : OUT_NEW;
    default: return OUT_NEW;
    }
}

static bool is_file(const struct stat *st, const struct out_id *id) {
    return id->known && id->file && S_ISREG(st->st_mode) && st->st_dev == id->file_dev && st->st_ino == id->file;
}

/* The files in a folder that is an input are inputs, too. */
static bool is_in_folder(const struct stat *st, const struct out_id *id) {
    return id->known && id->file && S_ISDIR(st->st_mode) && st->st_dev == id->dev && st->st_ino == id->folder;
}

static int refuse_input(const struct named *n, const struct stat *st, const char *input, struct err *e) {
    if (!is_file(st, &n->id) && !is_in_folder(st, &n->id)) return 0;
    return err_set(e, ERR_USAGE, "--%s %s would replace %s, which is an input", n->option->name, n->path, input);
}

static int check_path(const struct named *n, const char *input, struct err *e) {
    struct stat st;
    return input && stat(input, &st) == 0 ? refuse_input(n, &st, input, e) : 0;
}

/* -o FILE --force may name an input: it is replaced after it was read. */
static int check_inputs(const struct cli *c, const struct named *n, struct err *e) {
    struct stat st;
    if (n->option->writes == CLI_RESULT) return 0;
    if (fstat(STDIN_FILENO, &st) == 0 && refuse_input(n, &st, "standard input", e)) return e->code;
    for (size_t i = 0; i < c->args.n_operands; i++)
        if (check_path(n, c->args.operands[i], e)) return e->code;
    for (size_t i = 0; i < c->args.n_rows; i++) {
        const struct cli_option *o = &c->args.rows[i];
        bool continued = n->option->continues && strcmp(n->option->continues, o->name) == 0;
        if (!o->completes_files || o->writes || continued) continue;
        if (check_path(n, value_of(o), e)) return e->code;
        const struct cli_list *list = o->type == CLI_LIST ? o->to : NULL;
        for (size_t k = 0; list && k < list->n; k++)
            if (check_path(n, list->items[k], e)) return e->code;
    }
    return 0;
}

static int check_stdout(const struct cli *c, const struct named *n, struct err *e) {
    struct stat st;
    if (!writes_stdout(c) || fstat(STDOUT_FILENO, &st) || !is_file(&st, &n->id)) return 0;
    return err_set(e, ERR_USAGE, "--%s %s is the file that standard output goes to", n->option->name, n->path);
}

int outputs_check(struct cli *c, struct err *e) {
    struct named *all = arena_array(&c->arena, c->args.n_rows, sizeof *all, e);
    size_t n = 0;
    if (!all) return e->code;
    for (size_t i = 0; i < c->args.n_rows; i++) {
        struct named *x = &all[n];
        *x = (struct named){.option = &c->args.rows[i], .path = value_of(&c->args.rows[i])};
        if (!x->option->writes || !x->path) continue;
        if (x->option->writes == CLI_RESULT && output_is_stdout(c)) continue;
        if (out_check(x->path, use_of(c, x->option), &x->id, e) || check_inputs(c, x, e) || check_stdout(c, x, e))
            return e->code;
        for (size_t k = 0; k < n; k++)
            if (out_same(&all[k].id, &x->id))
                return err_set(e, ERR_USAGE, "--%s and --%s name the same file, %s", all[k].option->name,
                               x->option->name, x->path);
        n++;
    }
    return 0;
}
