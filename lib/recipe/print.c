/* Prints the graph as a Makefile, with file names quoted for make, and words quoted for make and the shell. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "lib/recipe/recipe_internal.h"

/* ---- quoting ----------------------------------------------------------------------------------------------------- */

static bool is_plain(const char *word) {
    static const char safe[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-";
    return *word && word[strspn(word, safe)] == 0;
}

/* Control characters are escaped even in the Makefile: people read it in a terminal before running it. */
static bool needs_escape(const char *text) {
    char shown[ESCAPE_MAX];
    bool found = false;
    for (size_t n = strlen(text), took; n && !found; text += took, n -= took)
        found = escape_char(text, n, &took, shown);
    return found;
}

/* Writes the bytes of a character as escapes for bash's $'...'. */
static int put_bytes(struct buf *b, const char *bytes, size_t n, struct err *e) {
    int rc = 0;
    for (size_t i = 0; i < n && !rc; i++) rc = buf_printf(b, e, "\\x%02x", (unsigned)(unsigned char)bytes[i]);
    return rc;
}

/* Within single quotes only the quote is special to the shell, but make needs $$ and no newline, hence bash's $'\n'. */
int recipe_quote_shell(struct buf *b, const char *word, struct err *e) {
    if (is_plain(word)) return buf_append(b, word, strlen(word), e);
    char shown[ESCAPE_MAX];
    bool escapes = needs_escape(word);
    int rc = buf_printf(b, e, escapes ? "$$'" : "'");
    for (size_t n = strlen(word), took; n && !rc; word += took, n -= took) {
        if (escape_char(word, n, &took, shown))
            rc = put_bytes(b, word, took, e);
        else if (*word == '$')
            rc = buf_append(b, "$$", 2, e);
        else if (escapes && (*word == '\'' || *word == '\\'))
            rc = buf_printf(b, e, "\\%c", *word);
        else if (*word == '\'')
            rc = buf_append(b, "'\\''", 4, e);
        else
            rc = buf_append(b, word, took, e);
    }
    return rc ? rc : buf_append(b, "'", 1, e);
}

/* Tested with GNU make 4.3, character by character. ERR_DATA for a name that make cannot express. */
int recipe_quote_make(struct buf *b, const char *name, bool is_target, struct err *e) {
    int rc = *name == '~' ? buf_append(b, "./", 2, e) : 0;
    bool escapes = needs_escape(name);
    for (const char *s = name; *s && !rc; s++) {
        unsigned char ch = (unsigned char)*s;
        if (escapes || strchr(";|\\", ch))
            return err_set(e, ERR_DATA, "the file name '%.200s' cannot be written in a Makefile", name);
        if (ch == '$')
            rc = buf_append(b, "$$", 2, e);
        else if (ch == '=')
            rc = buf_append(b, "$(eq)", 5, e);
        else if (strchr(" #:*?[", ch) || (ch == '%' && is_target))
            rc = buf_printf(b, e, "\\%c", ch);
        else
            rc = buf_append(b, s, 1, e);
    }
    return rc;
}

/* Prints text that cannot end the comment's line. */
static int print_comment(struct buf *b, const char *text, struct err *e) {
    char shown[ESCAPE_MAX];
    int rc = 0;
    for (size_t n = strlen(text), took; n && !rc; text += took, n -= took) {
        bool escaped = escape_char(text, n, &took, shown);
        if (!escaped && *shown == '\\') *shown = '?'; /* at the end of the line it would continue the comment */
        rc = buf_append(b, shown, strlen(shown), e);
    }
    return rc;
}

/* ---- one rule ---------------------------------------------------------------------------------------------------- */

struct printer {
    const struct recipe *r;
    struct buf *b;
    struct buf *prerequisites;  /* of the rule being printed */
    struct recipe_file **queue; /* files to print, without duplicates */
    size_t n_queue;
    size_t rule; /* number of the rule being printed, from 1 */
    struct err *e;
    int depth;
};

/* Adds a prerequisite once per rule, however often the command reads it. */
static int need_file(struct printer *p, struct recipe_file *f) {
    if (f->needed_by == p->rule) return 0;
    f->needed_by = p->rule;
    if (buf_append(p->prerequisites, " ", 1, p->e) || recipe_quote_make(p->prerequisites, f->name, false, p->e))
        return p->e->code;
    if (!f->emitted) p->queue[p->n_queue++] = f;
    f->emitted = true;
    return 0;
}

static int word(struct printer *p, const char *text) {
    return recipe_quote_shell(p->b, text, p->e);
}
static int raw(struct printer *p, const char *text) {
    return buf_append(p->b, text, strlen(text), p->e);
}

static int print_step(struct printer *p, size_t step);

/* Prints "cat FILE", or the pipeline that produces the step's output if it has no file. */
static int print_source(struct printer *p, size_t step) {
    struct recipe_file *f = p->r->steps[step].file;
    if (!f) return print_step(p, step);
    return raw(p, "cat ") || word(p, f->name) || need_file(p, f) ? p->e->code : 0;
}

/* Prints the left side of a pipe: the concatenated outputs of these steps. */
static int print_sources(struct printer *p, const size_t *steps, size_t n) {
    bool group = n > 1;
    if (group && raw(p, "{ ")) return p->e->code;
    for (size_t i = 0; i < n; i++) {
        if (print_source(p, steps[i])) return p->e->code;
        if (group && raw(p, i + 1 < n ? "; " : "; }")) return p->e->code;
    }
    return 0;
}

static const struct recipe_input *find_input(const struct recipe_step *s, const char *argument, size_t *prefix,
                                             struct arena *a, struct err *e) {
    for (size_t i = 0; i < s->n_inputs; i++) {
        const struct recipe_input *in = &s->inputs[i];
        if (in->is_stdin || !in->path) continue;
        const char *sign = strchr(argument, '='), *normal;
        for (int attached = 0; attached < (sign ? 2 : 1); attached++) {
            const char *text = attached ? sign + 1 : argument;
            *prefix = (size_t)(text - argument);
            if (strcmp(text, in->path) == 0) return in;
            if (!in->is_fd && recipe_normal_path(a, text, &normal, e) == 0 && strcmp(normal, in->path) == 0) return in;
        }
    }
    return NULL;
}

/* An argument that names an input is unchanged, unless the file was renamed or came from <(...). */
static int print_argument(struct printer *p, const struct recipe_step *s, const char *argument) {
    size_t prefix = 0;
    struct arena scratch = {0};
    const struct recipe_input *in = find_input(s, argument, &prefix, &scratch, p->e);
    arena_release(&scratch);
    if (!in) return word(p, argument);
    bool pipe = in->is_fd && in->n_parents > 0;
    if (!pipe && (!in->file || strcmp(in->file->name, in->file->wanted) == 0)) {
        if (!in->file || !in->file->note) return word(p, argument);
    }
    if (buf_printf(p->b, p->e, "%.*s", (int)prefix, argument)) return p->e->code;
    if (!pipe) return word(p, in->file->name);
    return raw(p, "<(") || print_sources(p, in->parents, in->n_parents) || raw(p, ")") ? p->e->code : 0;
}

static int print_command(struct printer *p, const struct recipe_step *s) {
    if (raw(p, "$(RILL) ") || word(p, s->tool)) return p->e->code;
    for (size_t i = 0; i < s->n_argv; i++)
        if (raw(p, " ") || print_argument(p, s, s->argv[i])) return p->e->code;
    return 0;
}

static int print_step(struct printer *p, size_t step) {
    const struct recipe_step *s = &p->r->steps[step];
    const struct recipe_input *from = NULL;
    if (++p->depth > 200) return err_set(p->e, ERR_DATA, "the provenance has a pipeline of more than 200 programs");
    for (size_t i = 0; i < s->n_inputs; i++) {
        if (s->inputs[i].is_stdin) from = &s->inputs[i];
        if (s->inputs[i].file && need_file(p, s->inputs[i].file)) return p->e->code;
    }
    bool pipe = from && (!from->path || from->is_fd);
    if (pipe) {
        if (from->file ? raw(p, "cat ") || word(p, from->file->name) : print_sources(p, from->parents, from->n_parents))
            return p->e->code;
        if (raw(p, " | \\\n\t")) return p->e->code;
    }
    if (print_command(p, s)) return p->e->code;
    if (from && !pipe && (raw(p, " < ") || word(p, from->file->name))) return p->e->code;
    p->depth--;
    return 0;
}

/* A step that wrote to a pipe must do so again, because its output path is part of the provenance. */
static int print_step_rule(struct printer *p, const struct recipe_file *f) {
    const struct recipe_step *s = &p->r->steps[f->steps[0]];
    if (print_step(p, f->steps[0])) return p->e->code;
    return raw(p, s->output ? " > " : " | cat > ") || word(p, f->name) || raw(p, "\n") ? p->e->code : 0;
}

static int print_copy_rule(struct printer *p, const struct recipe_file *f) {
    if (need_file(p, f->from) || raw(p, "test ") || word(p, f->from->name) || raw(p, " -ef ") || word(p, f->name) ||
        raw(p, " || cp ") || word(p, f->from->name) || raw(p, " ") || word(p, f->name))
        return p->e->code;
    return raw(p, "\n");
}

static int print_body(struct printer *p, const struct recipe_file *f) {
    switch (f->rule) {
    case FILE_STEP: return print_step_rule(p, f);
    case FILE_COPY: return print_copy_rule(p, f);
    case FILE_CAT:
        return print_sources(p, f->steps, f->n_steps) || raw(p, " > ") || word(p, f->name) || raw(p, "\n") ? p->e->code
                                                                                                           : 0;
    case FILE_LEAF: break;
    }
    return 0;
}

/* The prerequisites are known only after the command, which is therefore printed to a separate buffer first. */
static int print_rule(struct printer *p, const struct recipe_file *f) {
    struct buf body = {0}, prerequisites = {0}, *out = p->b;
    p->b = &body;
    p->prerequisites = &prerequisites;
    p->rule++;
    int rc = print_body(p, f);
    p->b = out;
    if (!rc) rc = buf_append(out, "\n", 1, p->e);
    if (!rc) rc = recipe_quote_make(out, f->name, true, p->e);
    if (!rc) rc = buf_append(out, ":", 1, p->e);
    if (!rc) rc = buf_append(out, prerequisites.data, prerequisites.len, p->e);
    if (!rc) rc = buf_append(out, "\n\t", 2, p->e);
    if (!rc) rc = buf_append(out, body.data, body.len, p->e);
    buf_release(&body);
    buf_release(&prerequisites);
    return rc;
}

static int print_leaves(struct printer *p) {
    bool any = false;
    for (size_t i = 0; i < p->r->n_files; i++) {
        const struct recipe_file *f = p->r->files[i];
        if (f->rule != FILE_LEAF || !f->emitted) continue;
        if (!any && raw(p, "\n# These must be there:\n")) return p->e->code;
        any = true;
        if (raw(p, "#   ") || print_comment(p->b, f->name, p->e) || raw(p, *f->digest ? "  " : "") || raw(p, f->digest))
            return p->e->code;
        if (f->note && (raw(p, "  it ") || raw(p, f->note) || raw(p, ": save it under this name"))) return p->e->code;
        if (raw(p, "\n")) return p->e->code;
    }
    return 0;
}

static int print_head(struct printer *p) {
    const struct recipe_file *t = p->r->target;
    const char *other = NULL;
    for (size_t i = 0; i < p->r->n_steps; i++) {
        const char *version = p->r->steps[i].version;
        if (version && strcmp(version, RILL_VERSION) != 0) other = version;
    }
    if (raw(p, "# Rebuilds ") || print_comment(p->b, t->name, p->e) ||
        raw(p, ": written by rill recipe from its provenance.\n"
               "# The same programs over the same inputs, in this folder, give the same bytes.\n"))
        return p->e->code;
    if (other && (raw(p, "# Some steps were run by rill ") || print_comment(p->b, other, p->e) ||
                  raw(p, ", this is " RILL_VERSION ": its bytes may differ.\n")))
        return p->e->code;
    return raw(p, "RILL ?= rill\nSHELL := /bin/bash\n.SHELLFLAGS := -e -o pipefail -c\n.DELETE_ON_ERROR:\neq := =\n");
}

int recipe_print(const struct recipe *r, struct buf *b, struct err *e) {
    struct arena scratch = {0};
    struct printer p = {.r = r, .b = b, .e = e};
    p.queue = arena_array(&scratch, r->n_files + 1, sizeof *p.queue, e);
    int rc = p.queue ? print_head(&p) : e->code;
    for (size_t i = 0; i < r->n_files; i++) r->files[i]->emitted = false, r->files[i]->needed_by = 0;
    if (!rc) {
        p.queue[p.n_queue++] = r->target;
        r->target->emitted = true;
    }
    for (size_t i = 0; !rc && i < p.n_queue; i++) {
        if (p.queue[i]->rule != FILE_LEAF) rc = print_rule(&p, p.queue[i]);
    }
    if (!rc) rc = print_leaves(&p);
    arena_release(&scratch);
    return rc;
}

int recipe_write(const cJSON *entries, const char *target, FILE *out, struct err *e) {
    struct recipe r;
    struct buf b = {0};
    int rc = recipe_build(&r, entries, target, e);
    if (!rc) rc = recipe_print(&r, &b, e);
    if (!rc && fwrite(b.data, 1, b.len, out) != b.len) rc = err_sys(e, errno, "standard output");
    buf_release(&b);
    recipe_release(&r);
    return rc;
}

const char *recipe_target(const cJSON *entries, const char *path) {
    const cJSON *last = cJSON_GetArrayItem(entries, cJSON_GetArraySize(entries) - 1);
    const char *output = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(last, "output"));
    if (!output) return path;
    const char *a = strrchr(output, '/'), *b = strrchr(path, '/');
    return strcmp(a ? a + 1 : output, b ? b + 1 : path) == 0 ? NULL : path;
}
