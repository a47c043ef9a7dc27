/*
 * Builds the graph of a Makefile from provenance entries. A step whose output was written to or read from a path
 * becomes a rule; a step that only wrote to a pipe is printed within the rule that read it; a pipe with several readers
 * becomes a file. Entries come from the stream and are not trusted.
 */
#include <stdio.h>
#include <string.h>

#include "lib/recipe/recipe_internal.h"

/* ---- reading the entries ----------------------------------------------------------------------------------------- */

static const char *string_at(const cJSON *object, const char *key) {
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, key));
}

int recipe_normal_path(struct arena *a, const char *path, const char **out, struct err *e) {
    char *copy = arena_strdup(a, path, e), *to = copy;
    if (!copy) return e->code;
    for (const char *s = path; *s;) {
        bool part_begins = s == path || s[-1] == '/';
        if (part_begins && s[0] == '.' && s[1] == '/')
            s += 2;
        else if (*s == '/' && s != path && s[-1] == '/')
            s++;
        else
            *to++ = *s++;
    }
    *to = 0;
    *out = copy;
    return 0;
}

static size_t find_step(const struct recipe *r, const char *id, size_t before) {
    for (size_t i = before; i-- > 0;)
        if (strcmp(r->steps[i].id, id) == 0) return i;
    return NO_STEP;
}

static bool is_shell_fd(const char *path) {
    return strncmp(path, "/dev/fd/", 8) == 0 || strncmp(path, "/proc/self/fd/", 14) == 0;
}

static int read_input(struct recipe *r, size_t step, struct recipe_input *in, const cJSON *o, struct err *e) {
    const char *path = string_at(o, "path"), *digest = string_at(o, "digest");
    struct digest parsed;
    const cJSON *id, *parents = cJSON_GetObjectItemCaseSensitive(o, "parents");
    in->digest = digest && digest_parse(digest, &parsed) ? digest : "";
    in->is_stdin = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(o, "stdin"));
    in->is_fd = path && !in->is_stdin && is_shell_fd(path);
    if (path && !in->is_fd && recipe_normal_path(&r->arena, path, &in->path, e)) return e->code;
    if (in->is_fd) in->path = path;
    in->parents = arena_array(&r->arena, (size_t)cJSON_GetArraySize(parents) + 1, sizeof *in->parents, e);
    if (!in->parents) return e->code;
    cJSON_ArrayForEach(id, parents) {
        /* an unknown parent means that this input cannot be rebuilt: it is a leaf */
        size_t parent = cJSON_IsString(id) ? find_step(r, id->valuestring, step) : NO_STEP;
        if (parent == NO_STEP) {
            in->n_parents = 0;
            break;
        }
        in->parents[in->n_parents++] = parent;
    }
    return 0;
}

static int read_step(struct recipe *r, size_t i, const cJSON *entry, struct err *e) {
    struct recipe_step *s = &r->steps[i];
    const cJSON *item, *argv = cJSON_GetObjectItemCaseSensitive(entry, "argv");
    const cJSON *inputs = cJSON_GetObjectItemCaseSensitive(entry, "inputs");
    const char *output = string_at(entry, "output");
    s->id = string_at(entry, "id");
    s->tool = string_at(entry, "tool");
    s->version = string_at(entry, "version");
    if (!s->id || !s->tool) return err_set(e, ERR_DATA, "provenance entry %zu has no id or no tool", i);
    if (output && recipe_normal_path(&r->arena, output, &s->output, e)) return e->code;
    s->argv = arena_array(&r->arena, (size_t)cJSON_GetArraySize(argv) + 1, sizeof *s->argv, e);
    if (!s->argv) return e->code;
    cJSON_ArrayForEach(item, argv) {
        if (item == argv->child) continue; /* the program's name */
        if (!cJSON_IsString(item)) return err_set(e, ERR_DATA, "provenance entry %zu: an argument is not a string", i);
        s->argv[s->n_argv++] = item->valuestring;
    }
    s->inputs = arena_array(&r->arena, (size_t)cJSON_GetArraySize(inputs) + 1, sizeof *s->inputs, e);
    if (!s->inputs) return e->code;
    cJSON_ArrayForEach(item, inputs) {
        if (read_input(r, i, &s->inputs[s->n_inputs++], item, e)) return e->code;
    }
    return 0;
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

static struct recipe_file *find_name(const struct recipe *r, const char *name) {
    for (size_t i = 0; i < r->n_files; i++)
        if (strcmp(r->files[i]->name, name) == 0) return r->files[i];
    return NULL;
}

static bool same_rule(const struct recipe_file *f, const struct recipe_file *want) {
    if (f->rule != want->rule || f->from != want->from || f->n_steps != want->n_steps) return false;
    return f->n_steps == 0 || memcmp(f->steps, want->steps, f->n_steps * sizeof *f->steps) == 0;
}

/* Finds or adds the file of that name and rule. If the name already means something else (a file was overwritten
 * between two steps), a number is appended, because a Makefile cannot have two rules for one name. */
static int add_file(struct recipe *r, const struct recipe_file *want, struct recipe_file **out, struct err *e) {
    const char *name = want->wanted;
    for (unsigned n = 1;; n++) {
        struct recipe_file *f = find_name(r, name);
        if (!f) break;
        if (same_rule(f, want)) {
            *out = f;
            return 0;
        }
        name = arena_printf(&r->arena, e, "%s.%u", want->wanted, n);
        if (!name) return e->code;
    }
    if (name != want->wanted)
        log_line(LOG_WARN, "%s had two contents: the recipe calls one of them %s, and what is recorded will differ",
                 want->wanted, name);
    if (r->n_files == r->cap_files) {
        size_t cap = r->cap_files ? 2 * r->cap_files : 32;
        struct recipe_file **bigger = arena_array(&r->arena, cap, sizeof *bigger, e);
        if (!bigger) return e->code;
        if (r->n_files) memcpy(bigger, r->files, r->n_files * sizeof *bigger);
        r->files = bigger;
        r->cap_files = cap;
    }
    struct recipe_file *f = arena_array(&r->arena, 1, sizeof *f, e);
    if (!f) return e->code;
    *f = *want;
    f->name = name;
    r->files[r->n_files++] = f;
    *out = f;
    return 0;
}

static int add_step_file(struct recipe *r, size_t step, const char *name, struct err *e) {
    struct recipe_file want = {.wanted = name, .rule = FILE_STEP, .n_steps = 1};
    want.steps = arena_array(&r->arena, 1, sizeof *want.steps, e);
    if (!want.steps) return e->code;
    want.steps[0] = step;
    return add_file(r, &want, &r->steps[step].file, e);
}

/* Leaves are added first, so they keep their names; products of the same name get a number. */
static int add_leaf(struct recipe *r, struct recipe_input *in, struct err *e) {
    struct recipe_file want = {.wanted = in->path, .rule = FILE_LEAF, .digest = in->digest};
    if (!in->path || in->is_fd) {
        want.note = in->is_fd ? "came from a shell's <(...)" : "came through a pipe";
        const char *hex = *in->digest ? in->digest + 5 : "input";
        want.wanted = arena_printf(&r->arena, e, "unknown-%.12s", hex);
        if (!want.wanted) return e->code;
    }
    return add_file(r, &want, &in->file, e);
}

/* How often a step's command reads a pipe: once, or for <(...) as often as its name occurs as an argument, which in a
 * forged entry may be any number of times. */
static size_t count_reads(const struct recipe_step *s, const struct recipe_input *in) {
    size_t n = 0;
    for (size_t i = 0; in->is_fd && i < s->n_argv; i++) {
        const char *sign = strchr(s->argv[i], '=');
        n += strcmp(s->argv[i], in->path) == 0 || (sign && strcmp(sign + 1, in->path) == 0);
    }
    return n ? n : 1;
}

/* Names files for outputs: the path that the output was written to, or else the path that a later step read it from.
 * Counts the readers of the remaining outputs, which are pipes. */
static int place_outputs(struct recipe *r, struct err *e) {
    for (size_t i = 0; i < r->n_steps; i++)
        if (r->steps[i].output && add_step_file(r, i, r->steps[i].output, e)) return e->code;
    for (size_t i = 0; i < r->n_steps; i++) {
        for (size_t k = 0; k < r->steps[i].n_inputs; k++) {
            const struct recipe_input *in = &r->steps[i].inputs[k];
            bool named = in->path && !in->is_fd;
            for (size_t p = 0; p < in->n_parents; p++) {
                struct recipe_step *parent = &r->steps[in->parents[p]];
                if (!named)
                    parent->n_pipe_readers += count_reads(&r->steps[i], in);
                else if (in->n_parents == 1 && !parent->file && add_step_file(r, in->parents[p], in->path, e))
                    return e->code;
                else if (in->n_parents > 1)
                    parent->n_pipe_readers++;
            }
        }
    }
    return 0;
}

static int place_shared_pipes(struct recipe *r, struct err *e) {
    for (size_t i = 0; i < r->n_steps; i++) {
        struct recipe_step *s = &r->steps[i];
        if (s->file || s->n_pipe_readers < 2) continue;
        struct digest id;
        const char *hex = digest_parse(s->id, &id) ? s->id + 5 : "step";
        const char *name = arena_printf(&r->arena, e, "pipe-%.12s.rill", hex);
        if (!name || add_step_file(r, i, name, e)) return e->code;
    }
    return 0;
}

/* Returns the file named `path` with the concatenated outputs of these steps. */
static int file_of_steps(struct recipe *r, const char *path, size_t *steps, size_t n, struct recipe_file **out,
                         struct err *e) {
    struct recipe_file want = {.wanted = path, .rule = FILE_CAT, .steps = steps, .n_steps = n};
    if (n > 1) return add_file(r, &want, out, e);
    struct recipe_step *s = &r->steps[steps[0]];
    if (!s->file && add_step_file(r, steps[0], path, e)) return e->code;
    if (strcmp(s->file->wanted, path) == 0) {
        *out = s->file;
        return 0;
    }
    want = (struct recipe_file){.wanted = path, .rule = FILE_COPY, .from = s->file};
    return add_file(r, &want, out, e);
}

static int resolve_inputs(struct recipe *r, struct err *e) {
    for (size_t i = 0; i < r->n_steps; i++) {
        for (size_t k = 0; k < r->steps[i].n_inputs; k++) {
            struct recipe_input *in = &r->steps[i].inputs[k];
            if (in->n_parents == 0 || !in->path || in->is_fd) continue;
            if (file_of_steps(r, in->path, in->parents, in->n_parents, &in->file, e)) return e->code;
        }
    }
    return 0;
}

/* ---- the target ---- */

/* Finds the steps that no other step reads from. */
static int find_heads(struct recipe *r, size_t **heads, size_t *n, struct err *e) {
    bool *read = arena_array(&r->arena, r->n_steps, sizeof *read, e);
    *heads = arena_array(&r->arena, r->n_steps, sizeof **heads, e);
    if (!read || !*heads) return e->code;
    for (size_t i = 0; i < r->n_steps; i++)
        for (size_t k = 0; k < r->steps[i].n_inputs; k++)
            for (size_t p = 0; p < r->steps[i].inputs[k].n_parents; p++) read[r->steps[i].inputs[k].parents[p]] = true;
    *n = 0;
    for (size_t i = 0; i < r->n_steps; i++)
        if (!read[i]) (*heads)[(*n)++] = i;
    return 0;
}

int recipe_build(struct recipe *r, const cJSON *entries, const char *target, struct err *e) {
    const cJSON *entry;
    size_t *heads = NULL, n_heads = 0, i = 0;
    const char *name = NULL;
    *r = (struct recipe){.n_steps = (size_t)cJSON_GetArraySize(entries)};
    if (r->n_steps == 0) return err_set(e, ERR_DATA, "no provenance in it (made with --no-provenance?)");
    r->steps = arena_array(&r->arena, r->n_steps, sizeof *r->steps, e);
    if (!r->steps) return e->code;
    cJSON_ArrayForEach(entry, entries) {
        if (read_step(r, i++, entry, e)) return e->code;
    }
    for (i = 0; i < r->n_steps; i++)
        for (size_t k = 0; k < r->steps[i].n_inputs; k++)
            if (r->steps[i].inputs[k].n_parents == 0 && add_leaf(r, &r->steps[i].inputs[k], e)) return e->code;
    if (place_outputs(r, e) || find_heads(r, &heads, &n_heads, e)) return e->code;
    if (target && recipe_normal_path(&r->arena, target, &name, e)) return e->code;
    if (!name) name = n_heads == 1 ? r->steps[heads[0]].output : NULL;
    if (!name) return err_set(e, ERR_USAGE, "the file's name is not recorded (give it with --target NAME)");
    if (n_heads == 1 && !r->steps[heads[0]].file && add_step_file(r, heads[0], name, e)) return e->code;
    if (place_shared_pipes(r, e) || resolve_inputs(r, e)) return e->code;
    return file_of_steps(r, name, heads, n_heads, &r->target, e);
}

void recipe_release(struct recipe *r) {
    arena_release(&r->arena);
}
