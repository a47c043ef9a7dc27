/* Reads a Hugging Face folder: config.json, one or more .safetensors, the tokenizer's files, generation_config.json. */
#include <stdlib.h>

#include "lib/formats/formats_internal.h"

#define MAX_JSON_BYTES (256u << 20) /* the largest vocabularies have a tokenizer.json of about 20 MB */

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

static int add_tensors(struct foreign_model *f, const char *path, const struct mapped_file *m, struct err *e) {
    int rc = safetensors_parse(&f->source->tensors, m->data, m->size, &f->memory, e);
    return rc ? err_prefix(e, "%s", path) : 0;
}

static int add_weights(struct foreign_model *f, const char *path, struct err *e) {
    const struct mapped_file *m;
    int rc = source_map(f, path, &m, e);
    return rc ? rc : add_tensors(f, path, m, e);
}

/* An entry of the index: the file that has this tensor. */
struct indexed {
    const char *file, *tensor;
};

static int by_file_and_tensor(const void *a, const void *b) {
    const struct indexed *x = a, *y = b;
    int order = strcmp(x->file, y->file);
    return order ? order : strcmp(x->tensor, y->tensor);
}

/* A shard must be in this folder; a name with a slash could lead anywhere. */
static int read_index(const cJSON *map, struct indexed *out, struct err *e) {
    for (const cJSON *x = map->child; x; x = x->next, out++) {
        const char *file = cJSON_GetStringValue(x);
        if (!file || !name_valid(file, strlen(file)) || strchr(file, '/') || file[0] == '.')
            return err_set(e, ERR_DATA, "\"weight_map\": '%.200s' is in no file of this folder", x->string);
        *out = (struct indexed){file, x->string};
    }
    return 0;
}

/* The n tensors that the index lists for a shard must be exactly those of the file. */
static int add_present(struct foreign_model *f, const char *path, const struct indexed *part, size_t n, struct err *e) {
    size_t first = f->source->tensors.n;
    const struct mapped_file *m;
    int rc = source_open(f, path, &m, e);
    if (!rc) rc = shards_add_known(f->source->shards, digest_bytes(m->data, m->size), e);
    if (!rc) rc = add_tensors(f, path, m, e);
    for (size_t i = first; i < f->source->tensors.n && !rc; i++) {
        struct indexed key = {part->file, f->source->tensors.items[i].name};
        if (!bsearch(&key, part, n, sizeof key, by_file_and_tensor))
            rc = err_set(e, ERR_DATA, "tensor '%s' is in %s, which %s does not say", key.tensor, key.file, SHARD_INDEX);
    }
    if (!rc && f->source->tensors.n - first != n)
        rc = err_set(e, ERR_DATA, "%s has %zu tensors, %s names %zu", part->file, f->source->tensors.n - first,
                     SHARD_INDEX, n);
    return rc;
}

static int add_absent(struct foreign_model *f, const struct indexed *part, size_t n, struct err *e) {
    const char **names = mem_array(n, sizeof *names, e);
    if (!names) return e->code;
    for (size_t i = 0; i < n; i++) names[i] = part[i].tensor;
    int rc = shards_add_absent(f, part->file, names, n, e);
    mem_free(names);
    return rc;
}

static int add_shard(struct foreign_model *f, const char *folder, const struct indexed *part, size_t n, struct err *e) {
    const char *path = path_join(&f->memory, folder, part->file, e);
    if (!path) return e->code;
    return shards_fetch(f->source->shards) && !file_exists(path) ? add_absent(f, part, n, e)
                                                                 : add_present(f, path, part, n, e);
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

static int add_shards(struct foreign_model *f, const char *folder, const struct foreign_options *o, struct err *e) {
    cJSON *index = NULL;
    int rc = shards_new(&f->source->shards, o, e);
    if (!rc) rc = read_json(f, folder, SHARD_INDEX, &index, e);
    if (rc) return rc;
    const cJSON *map = cJSON_GetObjectItemCaseSensitive(index, "weight_map");
    rc = cJSON_IsObject(map) ? add_all_shards(f, folder, map, e)
                             : err_set(e, ERR_DATA, "%s: \"weight_map\" is not an object", SHARD_INDEX);
    cJSON_Delete(index);
    return rc;
}

/* transformers would load an adapter beside the weights without being asked. */
static int check_adapter(struct foreign_model *f, const char *folder, struct err *e) {
    const char *path = path_join(&f->memory, folder, "adapter_config.json", e);
    if (!path) return e->code;
    if (!file_exists(path)) return 0;
    return err_set(e, ERR_DATA,
                   "adapter_config.json: an adapter beside the weights is not supported (merge it, or "
                   "remove the file if it is merged already)");
}

int hf_read_model(struct foreign_model *f, const char *folder, const char *weights, const struct foreign_options *o,
                  struct err *e) {
    int rc = check_adapter(f, folder, e);
    if (!rc) rc = read_json(f, folder, "config.json", &f->source->hf_config, e);
    if (rc) return rc;
    bool part;
    rc = hf_config_part(&f->source->hf_config, &part, e);
    if (!rc) rc = hf_config_read(&f->config, f->source->hf_config, &f->memory, e);
    if (rc) return err_prefix(e, "config.json");
    const char *whole = path_join(&f->memory, folder, "model.safetensors", e);
    if (!whole) return e->code;
    if (!weights && file_exists(whole)) weights = whole;
    const char *index = path_join(&f->memory, folder, SHARD_INDEX, e);
    if (!index) return e->code;
    if (!weights && !file_exists(index))
        return err_set(e, ERR_DATA, "no model.safetensors and no %s in this folder", SHARD_INDEX);
    rc = weights ? add_weights(f, weights, e) : add_shards(f, folder, o, e);
    if (!rc && part) rc = hf_tensors_part(&f->config, &f->source->tensors, &f->memory, e);
    return rc ? rc : raw_table_sort(&f->source->tensors, e);
}

/* ---- tokenizer ---- */

int hf_find_tokenizer(struct foreign_model *f, const char *folder, const char **path, struct err *e) {
    static const char *const known[] = {"tokenizer.json",          "vocab.json", "tokenizer.model", "spiece.model",
                                        "sentencepiece.bpe.model", "vocab.txt"};
    static const char *const others[] = {"tiktoken.model", "tekken.json"};
    for (size_t i = 0; i < COUNT_OF(known); i++) {
        *path = path_join(&f->memory, folder, known[i], e);
        if (!*path) return e->code;
        if (file_exists(*path)) return 0;
    }
    for (size_t i = 0; i < COUNT_OF(others); i++) {
        const char *other = path_join(&f->memory, folder, others[i], e);
        if (!other) return e->code;
        if (file_exists(other))
            return err_set(e, ERR_DATA, "a tokenizer in %s is not supported (tokenizer.json is)", others[i]);
    }
    *path = NULL;
    return 0;
}

/* Reads the file `name` beside `path`; *out is unchanged if there is none. */
static int read_beside(struct foreign_model *f, const char *path, const char *name, struct span *out, struct err *e) {
    const struct mapped_file *m;
    const char *slash = strrchr(path, '/');
    const char *folder = slash ? arena_strndup(&f->memory, path, (size_t)(slash - path) + 1, e) : "./";
    const char *other = folder ? path_join(&f->memory, folder, name, e) : NULL;
    if (!other) return e->code;
    if (!file_exists(other)) return 0;
    int rc = read_text(f, other, &m, e);
    if (!rc) *out = m->size ? (struct span){(const char *)m->data, m->size} : (struct span){"", 0};
    return rc;
}

/* Calls fn for each id under a key of config.json or generation_config.json, which holds one, a list, null or -1. */
static int each_id(const struct foreign_model *f, const cJSON *config, const char *file, const char *key,
                   int (*fn)(void *ctx, uint32_t id, struct err *e), void *ctx, struct err *e) {
    const cJSON *x = hf_member(config, key);
    bool list = cJSON_IsArray(x);
    int rc = 0;
    for (x = list ? x->child : x; x && !rc; x = list ? x->next : NULL) {
        double v = cJSON_IsNumber(x) ? x->valuedouble : -2;
        if (v == -1) continue; /* some files use -1 for "none" */
        if (!(v >= 0 && v < (double)f->config.vocab_size) || v != (double)(uint32_t)v)
            return err_set(e, ERR_DATA, "%s: \"%s\" is not a token of the model", file, key);
        rc = fn(ctx, (uint32_t)v, e);
    }
    return rc;
}

static int take_first(void *ctx, uint32_t id, struct err *e) {
    uint32_t *to = ctx;
    (void)e;
    if (*to == TOKEN_NONE) *to = id;
    return 0;
}

static int take_end(void *ctx, uint32_t id, struct err *e) {
    return draft_add_end(ctx, id, e);
}

#define GENERATION_FILE "generation_config.json"

/* config.json supplies ids that the tokenizer's files lack; if it lists several ends of a text, the first
 * separates documents. A generation is ended by all tokens that generation_config.json lists, or else config.json,
 * and by the tokenizer's own. */
static int ids_from_config(const struct foreign_model *f, struct vocab *spec, struct err *e) {
    const struct {
        const char *key;
        uint32_t *to;
    } ids[] = {{"bos_token_id", &spec->bos}, {"eos_token_id", &spec->eos}, {"pad_token_id", &spec->pad}};
    const cJSON *config = f->source->hf_config, *generation = f->source->hf_generation;
    int rc = 0;
    for (size_t i = 0; i < COUNT_OF(ids) && !rc; i++)
        rc = each_id(f, config, "config.json", ids[i].key, take_first, ids[i].to, e);
    if (!rc) rc = each_id(f, generation, GENERATION_FILE, "eos_token_id", take_first, &spec->eos, e);
    if (rc || hf_member(generation, "eos_token_id"))
        return rc ? rc : each_id(f, generation, GENERATION_FILE, "eos_token_id", take_end, spec, e);
    return each_id(f, config, "config.json", "eos_token_id", take_end, spec, e);
}

/* The member of `files` that this file belongs to. */
static struct span *file_of(struct hf_tokenizer_files *files, const char *path) {
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    size_t n = strlen(name);
    if (strcmp(name, "vocab.json") == 0) return &files->vocab;
    if (strcmp(name, "vocab.txt") == 0) return &files->words;
    return n > 6 && strcmp(name + n - 6, ".model") == 0 ? &files->model : &files->tokenizer;
}

static int read_tokenizer_files(struct foreign_model *f, const char *path, struct hf_tokenizer_files *files,
                                struct err *e) {
    const struct mapped_file *m;
    struct span *first = file_of(files, path);
    bool legacy = first == &files->vocab, binary = first == &files->model;
    int rc = binary ? source_map(f, path, &m, e) : read_text(f, path, &m, e);
    if (rc) return rc;
    *first = m->size ? (struct span){(const char *)m->data, m->size} : (struct span){"", 0};
    if (binary && m->size > MAX_JSON_BYTES) return err_set(e, ERR_DATA, "%s: more than 256 MiB", path);
    if (legacy) rc = read_beside(f, path, "merges.txt", &files->merges, e);
    if (!rc && legacy && !files->merges.s)
        return err_set(e, ERR_DATA, "vocab.json without merges.txt (or a tokenizer.json) is not a tokenizer");
    if (!rc) rc = read_beside(f, path, HF_CONFIG_FILE, &files->config, e);
    if (!rc) rc = read_beside(f, path, HF_MAP_FILE, &files->map, e);
    if (!rc) rc = read_beside(f, path, HF_ADDED_FILE, &files->added, e);
    return rc ? rc : read_beside(f, path, "chat_template.jinja", &files->chat_template, e);
}

int hf_read_vocab(struct foreign_model *f, const char *path, struct vocab *spec, struct err *e) {
    struct hf_tokenizer_files files = {.model_config = f->source->hf_config, .n_rows = f->config.vocab_size};
    int rc = read_tokenizer_files(f, path, &files, e);
    if (!rc) rc = hf_tokenizer_parse(spec, &files, e);
    return rc ? rc : ids_from_config(f, spec, e);
}

/* ---- generation settings ---- */

static bool is_id(const cJSON *x, uint32_t id) {
    return cJSON_IsNull(x) || (cJSON_IsNumber(x) && x->valuedouble == (double)id);
}

/* Drops keys that add nothing, so that an export with only such keys imports unchanged. End tokens are in the
 * vocabulary, where pruning renumbers them. */
static void drop_known(cJSON *generation, const struct vocab *v) {
    const struct {
        const char *key;
        uint32_t id;
    } ids[] = {{"bos_token_id", v ? v->bos : TOKEN_NONE}, {"pad_token_id", v ? v->pad : TOKEN_NONE}};
    for (size_t i = 0; i < COUNT_OF(ids); i++) {
        const cJSON *x = cJSON_GetObjectItemCaseSensitive(generation, ids[i].key);
        if (is_id(x, ids[i].id)) cJSON_DeleteItemFromObjectCaseSensitive(generation, ids[i].key);
    }
    if (v || cJSON_IsNull(cJSON_GetObjectItemCaseSensitive(generation, "eos_token_id")))
        cJSON_DeleteItemFromObjectCaseSensitive(generation, "eos_token_id");
    cJSON_DeleteItemFromObjectCaseSensitive(generation, "_from_model_config");
    cJSON_DeleteItemFromObjectCaseSensitive(generation, "transformers_version");
}

static int put_extra(struct foreign_model *f, const char *key, cJSON *item, struct err *e) {
    if (!f->extra) f->extra = cJSON_CreateObject();
    if (f->extra && cJSON_AddItemToObject(f->extra, key, item)) return 0;
    cJSON_Delete(item);
    return err_nomem(e, "description");
}

/* transformers records the model's origin: a repository's name, which is kept, or a path, which is
 * meaningless elsewhere. */
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
    const char *path = path_join(&f->memory, folder, GENERATION_FILE, e);
    if (!path) return e->code;
    return file_exists(path) ? read_json(f, folder, GENERATION_FILE, &f->source->hf_generation, e) : 0;
}

int hf_keep_generation(struct foreign_model *f, struct err *e) {
    cJSON *generation = f->source->hf_generation;
    int rc = read_name(f, e);
    if (rc || !generation) return rc;
    drop_known(generation, f->vocab);
    if (!generation->child) return 0;
    f->source->hf_generation = NULL;
    return put_extra(f, "generation", generation, e);
}
