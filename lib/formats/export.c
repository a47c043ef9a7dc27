/* Opens a model stream for exporters: configuration, vocabulary and tensors by role. */
#include "lib/formats/formats_internal.h"

static int read_head(struct export_source *x, const void *vocab, size_t n, struct err *e) {
    int rc = model_config_from_json(&x->config, cJSON_GetObjectItemCaseSensitive(x->meta, "model"), &x->memory, e);
    if (!rc && n) rc = vocab_unpack(&x->vocab, vocab, n, e);
    if (!rc && x->vocab && x->vocab->n_tokens != x->config.vocab_size)
        rc =
            err_set(e, ERR_DATA, "the tokenizer has %u tokens, the model %u", x->vocab->n_tokens, x->config.vocab_size);
    return rc;
}

int export_open_arriving(struct export_source *x, const struct model_head *h, struct err *e) {
    *x = (struct export_source){.meta = h->meta};
    return read_head(x, h->vocab.data, h->vocab.len, e);
}

int export_open(struct export_source *x, struct stream_map *m, struct err *e) {
    *x = (struct export_source){.map = m, .meta = stream_map_meta(m)};
    const void *vocab;
    size_t n;
    int rc = stream_map_vocab(m, &vocab, &n, e);
    if (!rc) rc = read_head(x, vocab, n, e);
    size_t slots = model_slot_count(&x->config);
    if (!rc && slots != stream_map_count(m))
        rc = err_set(e, ERR_DATA, "the stream has %zu tensors, its configuration %zu", stream_map_count(m), slots);
    return rc;
}

void export_release(struct export_source *x) {
    vocab_free(x->vocab);
    buf_release(&x->stored);
    buf_release(&x->values);
    buf_release(&x->made);
    buf_release(&x->altered);
    buf_release(&x->fused);
    for (size_t i = 0; i < COUNT_OF(x->held); i++) buf_release(&x->held[i].copy);
    arena_release(&x->memory);
    *x = (struct export_source){0};
}

int export_find(struct export_source *x, struct model_slot s, struct stream_map_entry *entry, size_t *number,
                struct err *e) {
    char name[TENSOR_MAX_NAME + 1];
    long i = stream_map_find(x->map, model_slot_name(s, name));
    if (i < 0) return err_set(e, ERR_DATA, "tensor '%s' is missing", name);
    *number = (size_t)i;
    int rc = stream_map_entry(x->map, *number, entry, e);
    const struct dtype_info *type = rc ? NULL : dtype_info(entry->desc.dtype);
    if (!rc && !type->is_float && !type->is_quantized)
        rc = err_set(e, ERR_DATA, "tensor '%s' holds %s, which is not a weight", name, type->name);
    return rc ? rc : model_slot_check(&x->config, s, &entry->desc, e);
}

int export_data(struct export_source *x, size_t number, const struct tensor_desc *d, enum dtype as, const void **data,
                struct err *e) {
    int rc = stream_map_data(x->map, number, &x->stored, data, e);
    return rc ? rc : export_convert(x, d, as, data, e);
}

int export_convert(struct export_source *x, const struct tensor_desc *d, enum dtype as, const void **data,
                   struct err *e) {
    if (as == d->dtype) return 0;
    uint64_t n = tensor_elems(d);
    x->values.len = x->made.len = 0;
    int rc = buf_reserve(&x->values, n * sizeof(float), e);
    if (rc) return rc;
    float *values = (void *)x->values.data;
    tensor_to_f32(d->dtype, *data, values, n);
    *data = values;
    if (as == DT_F32) return 0;
    rc = buf_reserve(&x->made, n * dtype_info(as)->block_bytes, e);
    if (rc) return rc;
    *data = x->made.data;
    return tensor_from_f32_checked(as, values, x->made.data, n, NULL, e) ? err_prefix(e, "tensor '%s'", d->name) : 0;
}

const char *export_name(const struct export_source *x) {
    const cJSON *general = cJSON_GetObjectItemCaseSensitive(x->meta, "general");
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(general, "name"));
}
