/*
 * prov: who made this, from what, with which arguments. One entry per program run, the entries of all inputs before it,
 * each once; ids are digests of the entries, so that merging is a union of sets. No time, no host, no thread count:
 * the same command over the same inputs writes the same bytes.
 */
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/cli/cli_internal.h"

/* ---- set of ids ----------------------------------------------------------------------------------------------------- */

static size_t slot_of(const struct idset *s, const char *id) {
    size_t i = (size_t)digest_bytes(id, strlen(id)).lo & (s->cap - 1);
    while (s->slots[i] && strcmp(s->slots[i], id) != 0) i = (i + 1) & (s->cap - 1);
    return i;
}

static int grow(struct idset *s, struct err *e) {
    struct idset bigger = {.cap = s->cap ? 2 * s->cap : 64};
    bigger.slots = mem_array(bigger.cap, sizeof *bigger.slots, e);
    if (!bigger.slots) return e->code;
    for (size_t i = 0; i < s->cap; i++)
        if (s->slots[i]) bigger.slots[slot_of(&bigger, s->slots[i])] = s->slots[i];
    bigger.n = s->n;
    mem_free(s->slots);
    *s = bigger;
    return 0;
}

int idset_add(struct idset *s, const char *id, bool *added, struct err *e) {
    if (2 * (s->n + 1) > s->cap && grow(s, e)) return e->code;
    size_t i = slot_of(s, id);
    *added = !s->slots[i];
    s->n += *added;
    s->slots[i] = id;
    return 0;
}

bool idset_has(const struct idset *s, const char *id) {
    return s->n && s->slots[slot_of(s, id)];
}

void idset_release(struct idset *s) {
    mem_free(s->slots);
    *s = (struct idset){0};
}

/* ---- names -------------------------------------------------------------------------------------------------------------- */

const char *prov_path(const char *path) {
    return utf8_valid(path, strlen(path)) ? path : NULL;
}

int prov_utf8(struct arena *a, const char *s, const char **out, struct err *e) {
    size_t n = strlen(s);
    *out = s;
    if (utf8_valid(s, n)) return 0;
    char *copy = arena_alloc(a, 3 * n + 1, e), *to = copy;
    if (!copy) return e->code;
    for (size_t i = 0; i < n;) {
        size_t length = 1;
        while (length < 4 && i + length <= n && !utf8_valid(s + i, length)) length++;
        bool good = i + length <= n && utf8_valid(s + i, length);
        if (!good) length = 1;
        memcpy(to, good ? s + i : "\xEF\xBF\xBD", good ? length : 3);
        to += good ? length : 3;
        i += length;
    }
    *to = 0;
    *out = copy;
    return 0;
}

int prov_relative(struct arena *a, const char *path, const char **out, struct err *e) {
    char folder[PATH_MAX], cwd[PATH_MAX];
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    char *dir = arena_strndup(a, path, slash == path ? 1 : (size_t)(base - path), e);
    *out = path;
    if (!dir) return e->code;
    if (!realpath(*dir ? dir : ".", folder) || !getcwd(cwd, sizeof cwd) || cwd[0] != '/') return 0;
    const char *full = arena_printf(a, e, "%s/%s", strcmp(folder, "/") == 0 ? "" : folder, base);
    if (!full) return e->code;
    size_t common = 0, i = 1; /* both begin with a slash; `common` is behind the last one that they share */
    for (; cwd[i] && full[i] && cwd[i] == full[i]; i++)
        if (cwd[i] == '/') common = i;
    if (!cwd[i] && full[i] == '/') common = i;
    struct buf b = {0};
    int rc = 0;
    for (const char *s = cwd + common; !rc && *s; s++)
        if (*s == '/' && s[1]) rc = buf_printf(&b, e, "../");
    if (!rc) rc = buf_printf(&b, e, "%s", full + common + 1);
    if (!rc && !(*out = arena_strndup(a, (const char *)b.data, b.len, e))) rc = e->code;
    buf_release(&b);
    return rc;
}

int prov_name(struct arena *a, const char *path, const char **out, struct err *e) {
    bool system = strncmp(path, "/dev/", 5) == 0 || strncmp(path, "/proc/", 6) == 0;
    *out = path;
    return path[0] == '/' && !system ? prov_relative(a, path, out, e) : 0;
}

int prov_fd_path(struct arena *a, int fd, const char **out, struct err *e) {
    char link[64], path[PATH_MAX];
    struct stat of_fd, of_path;
    *out = NULL;
    if (fstat(fd, &of_fd) || !S_ISREG(of_fd.st_mode)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    /* a deleted file's link reads "NAME (deleted)", and that may even exist */
    if (stat(path, &of_path) || of_path.st_dev != of_fd.st_dev || of_path.st_ino != of_fd.st_ino) return 0;
    return prov_path(path) ? prov_relative(a, path, out, e) : 0;
}

/* ---- one entry --------------------------------------------------------------------------------------------------------------- */

/* Text that was given to an option, as it is recorded; *out NULL: JSON cannot hold it. */
static bool setting_text(struct cli *c, const struct cli_option *o, const char *text, const char **out) {
    struct err e;
    *out = text;
    if (text && o->completes_files && prov_name(&c->arena, text, out, &e)) return false;
    if (*out) *out = prov_path(*out);
    return true;
}

cJSON *prov_settings(struct cli *c) {
    cJSON *s = cJSON_CreateObject();
    bool ok = s != NULL;
    for (size_t i = 0; ok && i < c->args.n_own; i++) {
        const struct cli_option *o = &c->args.rows[i];
        if (o->transient || option_is_action(o)) continue;
        const char *text = NULL;
        switch (o->type) {
        case CLI_FLAG: ok = json_put_bool(s, o->name, *(bool *)o->to); break;
        case CLI_U64:
            if (o->fallback || c->args.values[i].given) ok = json_put_u64(s, o->name, *(uint64_t *)o->to);
            break;
        case CLI_F64:
        case CLI_SHARE:
            if (o->fallback || c->args.values[i].given) ok = json_put_f64(s, o->name, *(double *)o->to);
            break;
        case CLI_AMOUNT: ok = json_put_str(s, o->name, ((struct cli_amount *)o->to)->text); break;
        case CLI_STRING:
        case CLI_CHOICE:
            ok = setting_text(c, o, *(const char **)o->to, &text);
            if (ok && text) ok = json_put_str(s, o->name, text);
            break;
        case CLI_LIST: {
            const struct cli_list *list = o->to;
            cJSON *array = cJSON_AddArrayToObject(s, o->name);
            ok = array != NULL;
            for (size_t k = 0; ok && k < list->n; k++) {
                ok = setting_text(c, o, list->items[k], &text);
                if (ok && text) ok = cJSON_AddItemToArray(array, cJSON_CreateString(text));
            }
            break;
        }
        }
    }
    if (ok) return s;
    cJSON_Delete(s);
    return NULL;
}

static const char *entry_id(const cJSON *entry) {
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(entry, "id"));
}

/* Adds all parents that an entry names to the set. */
static int add_parents(struct idset *set, const cJSON *entry, struct err *e) {
    const cJSON *input, *parent;
    bool added;
    cJSON_ArrayForEach(input, cJSON_GetObjectItemCaseSensitive(entry, "inputs")) {
        cJSON_ArrayForEach(parent, cJSON_GetObjectItemCaseSensitive(input, "parents")) {
            if (cJSON_IsString(parent) && idset_add(set, parent->valuestring, &added, e)) return e->code;
        }
    }
    return 0;
}

int prov_tips(const cJSON *entries, cJSON *tips, struct err *e) {
    struct idset parents = {0};
    const cJSON *entry;
    int rc = 0;
    cJSON_ArrayForEach(entry, entries) {
        if (!rc && add_parents(&parents, entry, e)) rc = e->code;
    }
    cJSON_ArrayForEach(entry, entries) {
        const char *id = entry_id(entry);
        if (rc || !id || idset_has(&parents, id)) continue;
        if (!cJSON_AddItemToArray(tips, cJSON_CreateString(id))) rc = err_nomem(e, "provenance");
    }
    idset_release(&parents);
    return rc;
}

int prov_id(const cJSON *entry, char out[DIGEST_TEXT_SIZE], struct err *e) {
    cJSON *copy = cJSON_Duplicate(entry, true);
    if (!copy) return err_nomem(e, "provenance");
    cJSON_DeleteItemFromObjectCaseSensitive(copy, "id");
    char *text = json_text(copy, e);
    cJSON_Delete(copy);
    if (!text) return e->code;
    digest_text(digest_bytes(text, strlen(text)), out);
    mem_free(text);
    return 0;
}

static bool put_path(cJSON *object, const char *key, const char *path) {
    return path ? json_put_str(object, key, path) : cJSON_AddNullToObject(object, key) != NULL;
}

static int put_input(cJSON *inputs, const struct cli_input *in, struct err *e) {
    char digest[DIGEST_TEXT_SIZE];
    cJSON *o = cJSON_CreateObject();
    if (!o || !cJSON_AddItemToArray(inputs, o)) {
        cJSON_Delete(o);
        return err_nomem(e, "provenance");
    }
    digest_text(in->digest, digest);
    bool ok = json_put_str(o, "role", in->role) && put_path(o, "path", in->path);
    if (in->is_stdin) ok = ok && json_put_bool(o, "stdin", true); /* else it stands among the arguments */
    ok = ok && json_put_str(o, "digest", digest);
    cJSON *parents = ok ? cJSON_AddArrayToObject(o, "parents") : NULL;
    if (!parents) return err_nomem(e, "provenance");
    return prov_tips(input_prov(in), parents, e);
}

/* A word of the command line; one that is or ends with the name of a file says it as the inputs do. */
static int kept_word(struct cli *c, size_t i, const char **out, struct err *e) {
    const char *word = c->args.kept[i], *file, *name;
    if (c->args.kept_file[i]) {
        file = word + c->args.kept_file[i] - 1;
        if (prov_name(&c->arena, file, &name, e)) return e->code;
        if (name != file) word = arena_printf(&c->arena, e, "%.*s%s", (int)(file - word), word, name);
        if (!word) return e->code;
    }
    return prov_utf8(&c->arena, word, out, e);
}

static int put_argv(struct cli *c, cJSON *entry, struct err *e) {
    cJSON *argv = cJSON_AddArrayToObject(entry, "argv");
    for (size_t i = 0; argv && i < c->args.n_kept; i++) {
        const char *word;
        if (kept_word(c, i, &word, e)) return e->code;
        if (!cJSON_AddItemToArray(argv, cJSON_CreateString(word))) return err_nomem(e, "provenance");
    }
    return argv ? 0 : err_nomem(e, "provenance");
}

static int put_settings(struct cli *c, cJSON *entry, struct err *e) {
    cJSON *settings = prov_settings(c), *copy;
    if (!settings || !cJSON_AddItemToObject(entry, "settings", settings)) {
        cJSON_Delete(settings);
        return err_nomem(e, "provenance");
    }
    const cJSON *item;
    cJSON_ArrayForEach(item, c->settings) { /* what the program resolved replaces what was asked for */
        cJSON_DeleteItemFromObjectCaseSensitive(settings, item->string);
        copy = cJSON_Duplicate(item, true);
        if (!copy || !cJSON_AddItemToObject(settings, item->string, copy)) {
            cJSON_Delete(copy);
            return err_nomem(e, "provenance");
        }
    }
    return 0;
}

static int fill_entry(struct cli *c, cJSON *entry, struct err *e) {
    char id[DIGEST_TEXT_SIZE];
    digest_text((struct digest){0}, id); /* holds the place: the id stands first and is known last */
    bool ok = json_put_str(entry, "id", id) && json_put_str(entry, "tool", c->program->name) &&
              json_put_str(entry, "version", RILL_VERSION);
    if (!ok) return err_nomem(e, "provenance");
    if (put_argv(c, entry, e)) return e->code;
    if (!json_put_u64(entry, "seed", c->seed)) return err_nomem(e, "provenance");
    if (put_settings(c, entry, e)) return e->code;
    cJSON *inputs = cJSON_AddArrayToObject(entry, "inputs");
    if (!inputs) return err_nomem(e, "provenance");
    for (const struct cli_input *in = c->inputs; in; in = in->next)
        if (put_input(inputs, in, e)) return e->code;
    if (!put_path(entry, "output", c->recorded_output)) return err_nomem(e, "provenance");
    if (prov_id(entry, id, e)) return e->code;
    memcpy(cJSON_GetObjectItemCaseSensitive(entry, "id")->valuestring, id, DIGEST_TEXT_SIZE);
    return 0;
}

static int write_inherited(struct cli *c, struct stream_writer *w, struct idset *seen, struct err *e) {
    for (const struct cli_input *in = c->inputs; in; in = in->next) {
        const cJSON *entry;
        cJSON_ArrayForEach(entry, input_prov(in)) {
            const char *id = entry_id(entry);
            bool added = true;
            if (id && idset_add(seen, id, &added, e)) return e->code;
            if (added && stream_write_prov(w, entry, e)) return e->code;
        }
    }
    return 0;
}

int prov_write(struct cli *c, struct stream_writer *w, struct err *e) {
    struct idset seen = {0};
    cJSON *entry = cJSON_CreateObject();
    int rc = entry ? write_inherited(c, w, &seen, e) : err_nomem(e, "provenance");
    if (!rc) rc = fill_entry(c, entry, e);
    if (!rc) rc = stream_write_prov(w, entry, e);
    cJSON_Delete(entry);
    idset_release(&seen);
    return rc;
}
