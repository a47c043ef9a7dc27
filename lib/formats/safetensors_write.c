/* Writes a Hugging Face folder: config.json, model.safetensors, the tokenizer's files, generation_config.json. */
#include <errno.h>
#include <unistd.h>

#include "lib/formats/arch_internal.h"

/* The export in progress: tensors under Hugging Face's names. */
struct out {
    struct export_source x;
    struct out_tensors tensors;
    unsigned wanted; /* requested type, or 0 */
};

/* Quantized tensors become f32, which represents them exactly; others keep their type unless one is requested. */
static enum dtype type_in_file(const struct out *o, enum dtype stored) {
    if (o->wanted) return (enum dtype)o->wanted;
    return dtype_info(stored)->is_quantized ? DT_F32 : stored;
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

static int put_entry(const struct out *o, cJSON *header, const struct out_tensor *t, uint64_t *at, struct err *e) {
    enum dtype as = type_in_file(o, t->stored);
    const char *type = safetensors_dtype_name(as);
    if (!type)
        return err_set(e, ERR_DATA, "tensor '%s' is of type %s, which safetensors does not have", t->name,
                       dtype_info(as)->name);
    uint64_t offsets[2] = {*at, *at + out_tensor_bytes(t, as)};
    cJSON *entry = cJSON_AddObjectToObject(header, t->name);
    bool ok = entry && json_put_str(entry, "dtype", type) && put_list(entry, "shape", t->dims, t->rank) &&
              put_list(entry, "data_offsets", offsets, 2);
    *at = offsets[1];
    return ok ? 0 : err_nomem(e, "model.safetensors");
}

/* Pads the header with spaces to at least `reserved` bytes. */
static int build_header(const struct out *o, uint64_t reserved, struct buf *out, struct err *e) {
    cJSON *header = cJSON_CreateObject(), *metadata = header ? cJSON_AddObjectToObject(header, "__metadata__") : NULL;
    uint64_t at = 0;
    int rc = metadata && json_put_str(metadata, "format", "pt") ? 0 : err_nomem(e, "model.safetensors");
    for (size_t i = 0; i < o->tensors.n && !rc; i++) rc = put_entry(o, header, &o->tensors.items[i], &at, e);
    char *text = rc ? NULL : json_text(header, e);
    if (!rc) rc = text ? buf_append(out, text, strlen(text), e) : e->code;
    /* also to align the data */
    while (!rc && (out->len % 8 || out->len < reserved)) rc = buf_append(out, " ", 1, e);
    mem_free(text);
    cJSON_Delete(header);
    return rc;
}

static int put_header(const struct out *o, uint64_t reserved, int fd, struct err *e) {
    struct buf header = {0};
    int rc = build_header(o, reserved, &header, e);
    uint64_t n = header.len;
    if (!rc) rc = write_all(fd, &n, sizeof n, e);
    if (!rc) rc = write_all(fd, header.data, header.len, e);
    buf_release(&header);
    return rc;
}

static int write_weights(struct out *o, int fd, struct err *e) {
    int rc = put_header(o, 0, fd, e);
    for (size_t i = 0; i < o->tensors.n && !rc; i++) {
        const struct out_tensor *t = &o->tensors.items[i];
        enum dtype as = type_in_file(o, t->stored);
        const void *data;
        rc = out_tensor_data(&o->x, t, as, false, &data, e);
        if (!rc) rc = write_all(fd, data, out_tensor_bytes(t, as), e);
    }
    return rc;
}

/* ---- weights from a stream that is read once ---- */

/* Data are written to their places as they arrive; the header, for which space is reserved, is written last. */
struct arriving {
    struct out *o;
    struct arrivals a;
    struct model_head head;
    struct stream_item item;
    struct stream_reader *in;
    int fd;
    uint64_t end;
};

static enum dtype type_of(void *ctx, const struct out_tensor *t) {
    return type_in_file(((struct arriving *)ctx)->o, t->stored);
}

static int place(void *ctx, size_t i, uint64_t bytes, int *fd, uint64_t *at, struct err *e) {
    struct arriving *x = ctx;
    (void)i, (void)e;
    *fd = x->fd;
    *at = x->end;
    x->end += bytes;
    return 0;
}

static int arrive(void *ctx, struct model_slot s, const struct tensor_desc *d, const cJSON *attrs, const void *data,
                  struct err *e) {
    struct arriving *x = ctx;
    (void)attrs;
    return arrivals_take(&x->a, s, d, data, e);
}

/* The header is longest with the longest type name and the largest offsets. */
static int reserve(const struct out *o, uint64_t *bytes, struct err *e) {
    struct buf header = {0};
    for (size_t i = 0; i < o->tensors.n; i++) o->tensors.items[i].stored = DT_F64;
    int rc = build_header(o, 0, &header, e);
    *bytes = header.len;
    if (!o->wanted) *bytes = (*bytes + o->tensors.n + 7) / 8 * 8; /* "BF16" is a letter longer */
    buf_release(&header);
    return rc;
}

static int write_arriving(struct arriving *x, int fd, struct err *e) {
    uint64_t reserved;
    x->a = (struct arrivals){.x = &x->o->x, .tensors = &x->o->tensors, .ctx = x, .type = type_of, .place = place};
    x->fd = fd;
    int rc = reserve(x->o, &reserved, e);
    x->end = sizeof reserved + reserved;
    if (!rc) rc = arrivals_begin(&x->a, e);
    if (!rc) rc = model_each_tensor(x->in, &x->head.config, &x->item, arrive, x, e);
    if (!rc) rc = arrivals_end(&x->a, e);
    if (!rc) rc = stream_drain(x->in, e);
    if (!rc && lseek(fd, 0, SEEK_SET) < 0) rc = err_sys(e, errno, "seek");
    return rc ? rc : put_header(x->o, reserved, fd, e);
}

/* ---- the JSON files ---- */

static int write_json(struct out_folder *f, const char *name, const cJSON *json, struct err *e) {
    char *text = json_text(json, e);
    if (!text) return err_prefix(e, "%s", name);
    int rc = out_folder_write(f, name, text, strlen(text), e);
    mem_free(text);
    return rc;
}

static int write_config(struct out *o, struct out_folder *f, struct err *e) {
    struct export_source *x = &o->x;
    cJSON *json = hf_config_write(&x->config, x->vocab, type_in_file(o, o->tensors.items[0].stored), e);
    if (!json) return e->code;
    const char *name = export_name(x);
    bool ok = labels_to_hf(json, &x->config, x->meta) && (!name || json_put_str(json, "_name_or_path", name));
    int rc = !ok ? err_nomem(e, "config.json") : write_json(f, "config.json", json, e);
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

/* Writes one end of a generation, or a list with EOS first. A list imported before vocabularies had
 * several ends is kept. */
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

/* Writes the imported settings, with the ids that they lack. */
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

/* ---- the folder ---- */

/* x NULL: the source is read by random access. config.json names a type, so it is written after the weights. */
static int write_folder(struct out *o, struct arriving *x, struct out_folder *f, struct err *e) {
    static const char name[] = "model.safetensors";
    int fd, rc = out_folder_create(f, name, &fd, e);
    if (rc) return rc;
    rc = x ? write_arriving(x, fd, e) : write_weights(o, fd, e);
    if (rc) {
        close(fd);
        return rc;
    }
    rc = out_folder_close(f, name, fd, e);
    if (!rc) rc = write_config(o, f, e);
    if (!rc && o->x.vocab) rc = write_tokenizer(o->x.vocab, f, e);
    return rc ? rc : write_generation(&o->x, f, e);
}

static int prepare(struct out *o, struct err *e) {
    const struct arch *arch;
    int rc = target_check(TARGET_TRANSFORMERS, &o->x.config, e);
    if (!rc) rc = arch_of_config(&o->x.config, &arch, e);
    o->tensors.by_value = true;
    return rc ? rc : out_tensors_make(&o->tensors, &o->x, &arch->hf.tensors, NULL, arch->hf.zeros, e);
}

static int make_folder(struct out *o, struct arriving *x, const char *folder, struct err *e) {
    struct out_folder f = OUT_FOLDER_NONE;
    int rc = out_folder_begin(&f, folder, e);
    if (!rc) rc = write_folder(o, x, &f, e);
    if (!rc) rc = out_folder_commit(&f, e);
    out_folder_release(&f);
    return rc;
}

int safetensors_export(struct stream_map *m, const char *folder, unsigned dtype, struct err *e) {
    struct out o = {.wanted = dtype};
    int rc = export_open(&o.x, m, e);
    if (!rc) rc = prepare(&o, e);
    if (!rc) rc = make_folder(&o, NULL, folder, e);
    export_release(&o.x);
    return rc;
}

int safetensors_export_stream(struct stream_reader *in, const char *folder, unsigned dtype, struct err *e) {
    struct out o = {.wanted = dtype};
    struct arriving x = {.o = &o, .in = in};
    int rc = model_head_read(in, &x.head, &x.item, e);
    if (!rc) rc = export_open_arriving(&o.x, &x.head, e);
    if (!rc) rc = prepare(&o, e);
    if (!rc) rc = make_folder(&o, &x, folder, e);
    export_release(&o.x);
    model_head_release(&x.head);
    return rc;
}
