/* A Hugging Face folder: config.json, model.safetensors, the tokenizer's files, generation_config.json. */
#include <unistd.h>

#include "lib/formats/formats_internal.h"

/* A quantized tensor is exact in f32; a plain one stays what it is unless a type was asked for. */
static enum dtype type_in_file(const struct tensor_desc *d, unsigned wanted) {
    if (wanted) return (enum dtype)wanted;
    return dtype_info(d->dtype)->is_quantized ? DT_F32 : d->dtype;
}

/* ---- the tensors: those of the stream, and zeros where transformers wants a bias that Rill has no role for ----- */

/* "attention_bias" of Llama in transformers means q, k, v and o. */
static bool has_zero_bias(const struct model_config *c, struct model_slot s) {
    return c->arch == ARCH_LLAMA && c->qkv_bias && s.role == ROLE_O;
}

static void zero_bias_name(struct model_slot s, char out[TENSOR_MAX_NAME + 1]) {
    snprintf(out, TENSOR_MAX_NAME + 1, "model.layers.%u.self_attn.o_proj.bias", s.layer);
}

static bool put_list(cJSON *o, const char *key, const uint64_t *v, unsigned n) {
    cJSON *list = cJSON_AddArrayToObject(o, key);
    for (unsigned i = 0; i < n && list; i++) {
        cJSON *x = cJSON_CreateNumber((double)v[i]);
        if (!x || !cJSON_AddItemToArray(list, x)) {
            cJSON_Delete(x);
            return false;
        }
    }
    return list != NULL;
}

static int put_entry(cJSON *header, const char *name, const struct tensor_desc *d, uint64_t *at, struct err *e) {
    const char *type = safetensors_dtype_name(d->dtype);
    if (!type)
        return err_set(e, ERR_DATA, "tensor '%s' is of type %s, which safetensors does not have", name,
                       dtype_info(d->dtype)->name);
    uint64_t offsets[2] = {*at, *at + tensor_bytes(d)};
    cJSON *o = cJSON_AddObjectToObject(header, name);
    bool ok = o && json_put_str(o, "dtype", type) && put_list(o, "shape", d->dims, d->rank) &&
              put_list(o, "data_offsets", offsets, 2);
    *at = offsets[1];
    return ok ? 0 : err_nomem(e, "model.safetensors");
}

static int put_slot(struct export_source *x, cJSON *header, struct model_slot s, unsigned wanted, uint64_t *at,
                    struct err *e) {
    struct stream_map_entry entry;
    size_t number;
    char name[TENSOR_MAX_NAME + 1];
    int rc = export_find(x, s, &entry, &number, e);
    if (rc) return rc;
    entry.desc.dtype = type_in_file(&entry.desc, wanted);
    rc = put_entry(header, slot_foreign_name(NAMES_HF, s, name), &entry.desc, at, e);
    if (rc || !has_zero_bias(&x->config, s)) return rc;
    entry.desc.rank = 1; /* [hidden], what o's rows are */
    zero_bias_name(s, name);
    return put_entry(header, name, &entry.desc, at, e);
}

static int build_header(struct export_source *x, unsigned wanted, struct buf *out, struct err *e) {
    cJSON *header = cJSON_CreateObject(), *metadata = header ? cJSON_AddObjectToObject(header, "__metadata__") : NULL;
    uint64_t at = 0;
    int rc = metadata && json_put_str(metadata, "format", "pt") ? 0 : err_nomem(e, "model.safetensors");
    for (size_t i = 0; i < model_slot_count(&x->config) && !rc; i++)
        rc = put_slot(x, header, model_slot_at(&x->config, i), wanted, &at, e);
    char *text = rc ? NULL : json_text(header, e);
    if (!rc) rc = text ? buf_append(out, text, strlen(text), e) : e->code;
    while (!rc && out->len % 8) rc = buf_append(out, " ", 1, e); /* so that the data is aligned */
    mem_free(text);
    cJSON_Delete(header);
    return rc;
}

static int write_slot(struct export_source *x, struct model_slot s, unsigned wanted, int fd, struct err *e) {
    struct stream_map_entry entry;
    size_t number;
    const void *data;
    int rc = export_find(x, s, &entry, &number, e);
    if (rc) return rc;
    struct tensor_desc in_file = entry.desc;
    in_file.dtype = type_in_file(&entry.desc, wanted);
    rc = export_data(x, number, &entry.desc, in_file.dtype, &data, e);
    if (!rc) rc = write_all(fd, data, tensor_bytes(&in_file), e);
    if (rc || !has_zero_bias(&x->config, s)) return rc;
    in_file.rank = 1;
    for (uint64_t left = tensor_bytes(&in_file); left && !rc;) {
        size_t n = left < 4096 ? left : 4096;
        rc = write_zeros(fd, n, e);
        left -= n;
    }
    return rc;
}

static int write_weights(struct export_source *x, unsigned wanted, int fd, struct err *e) {
    struct buf header = {0};
    int rc = build_header(x, wanted, &header, e);
    uint64_t n = header.len;
    if (!rc) rc = write_all(fd, &n, sizeof n, e);
    if (!rc) rc = write_all(fd, header.data, header.len, e);
    buf_release(&header);
    for (size_t i = 0; i < model_slot_count(&x->config) && !rc; i++)
        rc = write_slot(x, model_slot_at(&x->config, i), wanted, fd, e);
    return rc;
}

/* ---- the JSON files ---- */

static int write_json(struct out_folder *f, const char *name, const cJSON *json, struct err *e) {
    char *text = json_text(json, e);
    if (!text) return err_prefix(e, "%s", name);
    int rc = out_folder_write(f, name, text, strlen(text), e);
    mem_free(text);
    return rc;
}

static int write_config(struct export_source *x, unsigned wanted, struct out_folder *f, struct err *e) {
    struct stream_map_entry entry;
    size_t number;
    int rc = export_find(x, (struct model_slot){.role = ROLE_EMBED}, &entry, &number, e);
    if (rc) return rc;
    cJSON *json = hf_config_write(&x->config, x->vocab, type_in_file(&entry.desc, wanted), e);
    if (!json) return e->code;
    const char *name = export_name(x);
    rc = name && !json_put_str(json, "_name_or_path", name) ? err_nomem(e, "config.json")
                                                            : write_json(f, "config.json", json, e);
    cJSON_Delete(json);
    return rc;
}

static bool put_id(cJSON *o, const char *key, uint32_t id) {
    return id == TOKEN_NONE || cJSON_GetObjectItemCaseSensitive(o, key) || json_put_u64(o, key, id);
}

static bool add_number(cJSON *list, uint32_t id) {
    cJSON *x = cJSON_CreateNumber(id);
    if (x && cJSON_AddItemToArray(list, x)) return true;
    cJSON_Delete(x);
    return false;
}

/* One end of a generation, or a list of several with EOS in front. A list that was imported before vocabularies had more
 * than one stays. */
static bool put_ends(cJSON *o, const struct vocab *v) {
    static const char key[] = "eos_token_id";
    if (v->n_ends < 2) return !v->n_ends || put_id(o, key, v->ends[0]);
    cJSON_DeleteItemFromObjectCaseSensitive(o, key);
    cJSON *list = cJSON_AddArrayToObject(o, key);
    bool ok = list && (v->eos == TOKEN_NONE || add_number(list, v->eos));
    for (uint32_t i = 0; i < v->n_ends && ok; i++)
        if (v->ends[i] != v->eos) ok = add_number(list, v->ends[i]);
    return ok;
}

/* What was imported, and the ids where it does not say them itself. */
static int write_generation(struct export_source *x, struct out_folder *f, struct err *e) {
    const cJSON *kept = cJSON_GetObjectItemCaseSensitive(x->meta, "generation");
    cJSON *json = cJSON_IsObject(kept) ? cJSON_Duplicate(kept, true) : cJSON_CreateObject();
    const struct vocab *v = x->vocab;
    bool ok =
        json &&
        (!v || (put_id(json, "bos_token_id", v->bos) && put_ends(json, v) && put_id(json, "pad_token_id", v->pad)));
    int rc = ok ? write_json(f, "generation_config.json", json, e) : err_nomem(e, "generation_config.json");
    cJSON_Delete(json);
    return rc;
}

static int write_tokenizer(const struct vocab *v, struct out_folder *f, struct err *e) {
    struct buf json = {0}, config = {0};
    int rc = hf_tokenizer_write(v, &json, &config, e);
    if (!rc) rc = out_folder_write(f, "tokenizer.json", json.data, json.len, e);
    if (!rc) rc = out_folder_write(f, "tokenizer_config.json", config.data, config.len, e);
    buf_release(&json);
    buf_release(&config);
    return rc;
}

/* ---- the whole ---- */

static int write_folder(struct export_source *x, unsigned wanted, struct out_folder *f, struct err *e) {
    static const char name[] = "model.safetensors";
    int fd, rc = write_config(x, wanted, f, e);
    if (!rc && x->vocab) rc = write_tokenizer(x->vocab, f, e);
    if (!rc) rc = write_generation(x, f, e);
    if (!rc) rc = out_folder_create(f, name, &fd, e);
    if (rc) return rc;
    rc = write_weights(x, wanted, fd, e);
    if (rc) {
        close(fd);
        return rc;
    }
    return out_folder_close(f, name, fd, e);
}

int safetensors_export(struct stream_map *m, const char *folder, unsigned dtype, struct err *e) {
    struct export_source x;
    struct out_folder f = OUT_FOLDER_NONE;
    int rc = export_open(&x, m, e);
    if (!rc) rc = out_folder_begin(&f, folder, e);
    if (!rc) rc = write_folder(&x, dtype, &f, e);
    if (!rc) rc = out_folder_commit(&f, e);
    out_folder_release(&f);
    export_release(&x);
    return rc;
}
