/*
 * prov: records what made an output, from which inputs and with which arguments. One entry per program run, after the
 * entries of all inputs without duplicates; ids are digests of the entries, so that merging is a set union. Time, host
 * and thread count are not recorded: the same command on the same inputs writes the same bytes.
 */
#include <string.h>

#include "lib/cli/cli_internal.h"

/* ---- one entry --------------------------------------------------------------------------------------------------- */

static const char *entry_id(const cJSON *entry) {
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(entry, "id"));
}

/* Adds the parents that an entry names to the set. */
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

int prov_heads(const cJSON *entries, cJSON *heads, struct err *e) {
    struct idset parents = {0};
    const cJSON *entry;
    int rc = 0;
    cJSON_ArrayForEach(entry, entries) {
        if (!rc && add_parents(&parents, entry, e)) rc = e->code;
    }
    cJSON_ArrayForEach(entry, entries) {
        const char *id = entry_id(entry);
        if (rc || !id || idset_has(&parents, id)) continue;
        if (!cJSON_AddItemToArray(heads, cJSON_CreateString(id))) rc = err_nomem(e, "provenance");
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
    if (in->is_stdin) ok = ok && json_put_bool(o, "stdin", true); /* else it is among the arguments */
    ok = ok && json_put_str(o, "digest", digest);
    cJSON *parents = ok ? cJSON_AddArrayToObject(o, "parents") : NULL;
    if (!parents) return err_nomem(e, "provenance");
    return prov_heads(input_prov(in), parents, e);
}

/* A recorded word of the command line; a file name in it is recorded in the same form as the paths of inputs. */
static int kept_word(struct cli *c, size_t i, const char **out, struct err *e) {
    const char *word = c->args.kept[i], *file, *name;
    if (c->args.kept_file[i]) {
        file = word + c->args.kept_file[i] - 1;
        if (names_recorded(&c->arena, file, &name, e)) return e->code;
        if (name != file) word = arena_printf(&c->arena, e, "%.*s%s", (int)(file - word), word, name);
        if (!word) return e->code;
    }
    return names_utf8(&c->arena, word, out, e);
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
    cJSON *settings = settings_json(c), *copy;
    if (!settings || !cJSON_AddItemToObject(entry, "settings", settings)) {
        cJSON_Delete(settings);
        return err_nomem(e, "provenance");
    }
    const cJSON *item;
    cJSON_ArrayForEach(item, c->settings) { /* resolved values replace given ones */
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
    digest_text((struct digest){0}, id); /* placeholder: the id comes first but is computed last */
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
