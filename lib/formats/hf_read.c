/* A Hugging Face folder: config.json, one or many .safetensors, the tokenizer's files, generation_config.json. */
#include <stdlib.h>

#include "lib/formats/formats_internal.h"

#define MAX_JSON_BYTES (256u << 20) /* tokenizer.json of the largest vocabularies has some 20 MB */

static int read_text(struct foreign_model *f, const char *path, const struct mapped_file **m, struct err *e) {
    int rc = source_map(f, path, m, e);
    if (!rc && (*m)->size > MAX_JSON_BYTES)
        rc = err_set(e, ERR_DATA, "%s: %llu bytes, at most %u are allowed", path, (unsigned long long)(*m)->size,
                     MAX_JSON_BYTES);
    return rc;
}

static int read_json(struct foreign_model *f, const char *folder, const char *name, cJSON **out, struct err *e) {
    const struct mapped_file *m;
    const char *path = path_join(&f->memory, folder, name, e);
    int rc = path ? read_text(f, path, &m, e) : e->code;
    if (rc) return rc;
    *out = json_parse((const char *)m->data, m->size, e);
    if (*out && cJSON_IsObject(*out)) return 0;
    if (*out) err_set(e, ERR_DATA, "not a JSON object");
    return err_prefix(e, "%s", name);
}

/* ---- weights ---- */

static int add_weights(struct foreign_model *f, const char *path, struct err *e) {
    const struct mapped_file *m;
    int rc = source_map(f, path, &m, e);
    if (rc) return rc;
    rc = safetensors_parse(&f->source->tensors, m->data, m->size, &f->memory, e);
    return rc ? err_prefix(e, "%s", path) : 0;
}

#define INDEX_NAME "model.safetensors.index.json"

/* One line of the index: this tensor is in that file. */
struct indexed {
    const char *file, *tensor;
};

static int by_file_and_tensor(const void *a, const void *b) {
    const struct indexed *x = a, *y = b;
    int order = strcmp(x->file, y->file);
    return order ? order : strcmp(x->tensor, y->tensor);
}

/* A shard is a file of this folder: a name with a slash could lead anywhere. */
static int read_index(const cJSON *map, struct indexed *out, struct err *e) {
    for (const cJSON *x = map->child; x; x = x->next, out++) {
        const char *file = cJSON_GetStringValue(x);
        if (!file || !name_valid(file, strlen(file)) || strchr(file, '/') || file[0] == '.')
            return err_set(e, ERR_DATA, "\"weight_map\": '%.200s' is in no file of this folder", x->string);
        *out = (struct indexed){file, x->string};
    }
    return 0;
}

/* The n tensors of one shard: those of the file, no more and no fewer. */
static int add_shard(struct foreign_model *f, const char *folder, const struct indexed *part, size_t n, struct err *e) {
    const char *path = path_join(&f->memory, folder, part->file, e);
    size_t first = f->source->tensors.n;
    int rc = path ? add_weights(f, path, e) : e->code;
    for (size_t i = first; i < f->source->tensors.n && !rc; i++) {
        struct indexed key = {part->file, f->source->tensors.items[i].name};
        if (!bsearch(&key, part, n, sizeof key, by_file_and_tensor))
            rc = err_set(e, ERR_DATA, "tensor '%s' is in %s, which %s does not say", key.tensor, key.file, INDEX_NAME);
    }
    if (!rc && f->source->tensors.n - first != n)
        rc = err_set(e, ERR_DATA, "%s has %zu tensors, %s names %zu", part->file, f->source->tensors.n - first,
                     INDEX_NAME, n);
    return rc;
}

static int add_all_shards(struct foreign_model *f, const char *folder, const cJSON *map, struct err *e) {
    size_t n = 0;
    for (const cJSON *x = map->child; x; x = x->next) n++;
    struct indexed *index = mem_array(n, sizeof *index, e);
    if (!index) return e->code;
    int rc = read_index(map, index, e);
    if (!rc && n) qsort(index, n, sizeof *index, by_file_and_tensor);
    for (size_t i = 0, end; i < n && !rc; i = end) {
        for (end = i + 1; end < n && strcmp(index[end].file, index[i].file) == 0;) end++;
        rc = add_shard(f, folder, index + i, end - i, e);
    }
    mem_free(index);
    return rc;
}

static int add_shards(struct foreign_model *f, const char *folder, struct err *e) {
    cJSON *index = NULL;
    int rc = read_json(f, folder, INDEX_NAME, &index, e);
    if (rc) return rc;
    const cJSON *map = cJSON_GetObjectItemCaseSensitive(index, "weight_map");
    rc = cJSON_IsObject(map) ? add_all_shards(f, folder, map, e)
                             : err_set(e, ERR_DATA, "%s: \"weight_map\" is not an object", INDEX_NAME);
    cJSON_Delete(index);
    return rc;
}

/* transformers adds an adapter to the weights beside it without being asked. */
static int check_adapter(struct foreign_model *f, const char *folder, struct err *e) {
    const char *path = path_join(&f->memory, folder, "adapter_config.json", e);
    if (!path) return e->code;
    if (!file_exists(path)) return 0;
    return err_set(e, ERR_DATA,
                   "adapter_config.json: an adapter beside the weights is not supported (merge it, or "
                   "remove the file if it is merged already)");
}

int hf_read_model(struct foreign_model *f, const char *folder, const char *weights, struct err *e) {
    int rc = check_adapter(f, folder, e);
    if (!rc) rc = read_json(f, folder, "config.json", &f->source->hf_config, e);
    if (rc) return rc;
    rc = hf_config_read(&f->config, f->source->hf_config, &f->memory, e);
    if (rc) return err_prefix(e, "config.json");
    const char *whole = path_join(&f->memory, folder, "model.safetensors", e);
    if (!whole) return e->code;
    if (!weights && file_exists(whole)) weights = whole;
    const char *index = path_join(&f->memory, folder, INDEX_NAME, e);
    if (!index) return e->code;
    if (!weights && !file_exists(index))
        return err_set(e, ERR_DATA, "neither model.safetensors nor %s is there", INDEX_NAME);
    rc = weights ? add_weights(f, weights, e) : add_shards(f, folder, e);
    return rc ? rc : raw_table_sort(&f->source->tensors, e);
}

/* ---- tokenizer ---- */

int hf_find_tokenizer(struct foreign_model *f, const char *folder, const char **path, struct err *e) {
    static const char *const others[] = {"tokenizer.model", "vocab.json", "spiece.model"};
    *path = path_join(&f->memory, folder, "tokenizer.json", e);
    if (!*path) return e->code;
    if (file_exists(*path)) return 0;
    for (size_t i = 0; i < COUNT_OF(others); i++) {
        const char *other = path_join(&f->memory, folder, others[i], e);
        if (!other) return e->code;
        if (file_exists(other))
            return err_set(e, ERR_DATA, "a tokenizer in %s is not supported (tokenizer.json is)", others[i]);
    }
    *path = NULL;
    return 0;
}

/* The file of that name beside `path`, or *m NULL. */
static int read_beside(struct foreign_model *f, const char *path, const char *name, const struct mapped_file **m,
                       struct err *e) {
    const char *slash = strrchr(path, '/');
    const char *folder = slash ? arena_strndup(&f->memory, path, (size_t)(slash - path) + 1, e) : "./";
    const char *other = folder ? path_join(&f->memory, folder, name, e) : NULL;
    *m = NULL;
    if (!other) return e->code;
    return file_exists(other) ? read_text(f, other, m, e) : 0;
}

/* config.json knows ids where the tokenizer's files are silent. A list of several ends with its first. */
static int ids_from_config(const cJSON *config, struct vocab *spec, struct err *e) {
    const struct {
        const char *key;
        uint32_t *to;
    } ids[] = {{"bos_token_id", &spec->bos}, {"eos_token_id", &spec->eos}, {"pad_token_id", &spec->pad}};
    for (size_t i = 0; i < COUNT_OF(ids); i++) {
        const cJSON *x = cJSON_GetObjectItemCaseSensitive(config, ids[i].key);
        if (cJSON_IsArray(x)) x = x->child;
        if (!x || cJSON_IsNull(x) || *ids[i].to != TOKEN_NONE) continue;
        double v = cJSON_IsNumber(x) ? x->valuedouble : -1;
        if (v == -1) continue; /* how some say "none" */
        if (!(v >= 0 && v < (double)spec->n_tokens) || v != (double)(uint32_t)v)
            return err_set(e, ERR_DATA, "config.json: \"%s\" is no token of the tokenizer", ids[i].key);
        *ids[i].to = (uint32_t)v;
    }
    return 0;
}

int hf_read_vocab(struct foreign_model *f, const char *path, const cJSON *model_config, struct vocab *spec,
                  struct err *e) {
    const struct mapped_file *json, *config, *template;
    int rc = read_text(f, path, &json, e);
    if (!rc) rc = read_beside(f, path, "tokenizer_config.json", &config, e);
    if (!rc) rc = read_beside(f, path, "chat_template.jinja", &template, e);
    if (rc) return rc;
    rc = hf_tokenizer_parse(spec, json->data, json->size, config ? config->data : NULL, config ? config->size : 0, e);
    if (!rc && model_config) rc = ids_from_config(model_config, spec, e);
    if (rc || !template || !template->size) return rc;
    const char *text = (const char *)template->data;
    if (memchr(text, 0, template->size) || !utf8_valid(text, template->size))
        return err_set(e, ERR_DATA, "chat_template.jinja is not UTF-8 text");
    spec->chat_template = arena_strndup(&spec->memory, text, template->size, e);
    return spec->chat_template ? 0 : e->code;
}

/* ---- generation settings ---- */

/* What says nothing new is dropped, so that an export with only such keys comes back as it was. */
static void drop_known(cJSON *generation, const struct vocab *v) {
    const struct {
        const char *key;
        uint32_t id;
    } ids[] = {{"bos_token_id", v ? v->bos : TOKEN_NONE},
               {"eos_token_id", v ? v->eos : TOKEN_NONE},
               {"pad_token_id", v ? v->pad : TOKEN_NONE}};
    for (size_t i = 0; i < COUNT_OF(ids); i++) {
        const cJSON *x = cJSON_GetObjectItemCaseSensitive(generation, ids[i].key);
        if (cJSON_IsNull(x) || (cJSON_IsNumber(x) && x->valuedouble == (double)ids[i].id))
            cJSON_DeleteItemFromObjectCaseSensitive(generation, ids[i].key);
    }
    cJSON_DeleteItemFromObjectCaseSensitive(generation, "_from_model_config");
    cJSON_DeleteItemFromObjectCaseSensitive(generation, "transformers_version");
}

static int put_extra(struct foreign_model *f, const char *key, cJSON *item, struct err *e) {
    if (!f->extra) f->extra = cJSON_CreateObject();
    if (f->extra && cJSON_AddItemToObject(f->extra, key, item)) return 0;
    cJSON_Delete(item);
    return err_nomem(e, "description");
}

/* transformers notes where a model came from: the name of a repository, or a path that says nothing to others. */
static int read_name(struct foreign_model *f, struct err *e) {
    const char *name = NULL;
    int rc = json_opt_str(f->source->hf_config, "_name_or_path", &name, e);
    if (rc || !name || !*name || *name == '/' || *name == '.') return rc;
    cJSON *general = cJSON_CreateObject();
    if (general && json_put_str(general, "name", name)) return put_extra(f, "general", general, e);
    cJSON_Delete(general);
    return err_nomem(e, "description");
}

int hf_read_generation(struct foreign_model *f, const char *folder, struct err *e) {
    cJSON *generation = NULL;
    const char *path = path_join(&f->memory, folder, "generation_config.json", e);
    if (!path) return e->code;
    int rc = read_name(f, e);
    if (rc || !file_exists(path)) return rc;
    rc = read_json(f, folder, "generation_config.json", &generation, e);
    if (rc) return rc;
    drop_known(generation, f->vocab);
    if (generation->child) return put_extra(f, "generation", generation, e);
    cJSON_Delete(generation);
    return 0;
}
