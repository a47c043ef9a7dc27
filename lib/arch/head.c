/* The head of a model stream (META, VOCB) and one pass over its tensors. */
#include "lib/arch/arch_internal.h"

#include <inttypes.h>
#include <stdlib.h>

void model_head_release(struct model_head *h) {
    cJSON_Delete(h->meta);
    buf_release(&h->vocab);
    arena_release(&h->memory);
    *h = (struct model_head){0};
}

static int head_take_meta(struct model_head *h, const struct stream_reader *r, const cJSON *meta, struct err *e) {
    if (h->meta)
        return err_set(e, ERR_DATA, "%s: more than one model in this stream (join none, or split with cat)",
                       stream_reader_name(r));
    h->meta = cJSON_Duplicate(meta, true);
    if (!h->meta) return err_nomem(e, "model description");
    const cJSON *model = cJSON_GetObjectItemCaseSensitive(meta, "model");
    int rc = model_config_from_json(&h->config, model, &h->memory, e);
    return rc ? err_prefix(e, "%s: model description", stream_reader_name(r)) : 0;
}

static int head_take_vocab(struct model_head *h, const struct stream_reader *r, const struct stream_item *item,
                           struct err *e) {
    if (h->vocab.len) return err_set(e, ERR_DATA, "%s: a second vocabulary", stream_reader_name(r));
    int rc = buf_append(&h->vocab, item->bytes, item->n_bytes, e);
    if (rc) return rc;
    rc = vocab_identity(h->vocab.data, h->vocab.len, &h->vocab_digest, e);
    if (rc) return err_prefix(e, "%s", stream_reader_name(r));
    const char *said = NULL;
    char found[DIGEST_TEXT_SIZE];
    digest_text(h->vocab_digest, found);
    rc = json_opt_str(h->meta, "vocab", &said, e);
    if (rc) return err_prefix(e, "%s", stream_reader_name(r));
    if (said && strcmp(said, found) != 0)
        return err_set(e, ERR_DATA, "%s: the vocabulary is %s, the description says %.64s", stream_reader_name(r),
                       found, said);
    return 0;
}

int model_head_read(struct stream_reader *r, struct model_head *h, struct stream_item *item, struct err *e) {
    for (;;) {
        int rc = stream_next(r, item, e);
        if (rc) return rc;
        switch (item->type) {
        case ITEM_META: rc = head_take_meta(h, r, item->json, e); break;
        case ITEM_VOCAB: rc = head_take_vocab(h, r, item, e); break;
        case ITEM_TENSOR:
        case ITEM_SEGMENT_END: return 0;
        case ITEM_EOF:
        case ITEM_BATCH: return err_set(e, ERR_DATA, "%s: not a model stream", stream_reader_name(r));
        default: break; /* provenance is kept by the reader; unknown optional records are skipped */
        }
        if (rc) return rc;
    }
}

int model_head_write(struct stream_writer *w, const struct model_config *c, const void *vocab, size_t n_vocab,
                     const cJSON *extra, struct err *e) {
    struct digest identity;
    int rc = model_config_check(c, e);
    if (!rc && n_vocab) rc = vocab_identity(vocab, n_vocab, &identity, e);
    if (rc) return rc;
    cJSON *meta = cJSON_CreateObject(), *model = model_config_to_json(c, e);
    bool ok = meta && model && json_put_str(meta, "kind", stream_kind_name(STREAM_MODEL)) &&
              cJSON_AddItemToObject(meta, "model", model);
    if (!ok) {
        cJSON_Delete(model);
        cJSON_Delete(meta);
        return err_nomem(e, "model description");
    }
    if (n_vocab) {
        char digest[DIGEST_TEXT_SIZE];
        digest_text(identity, digest);
        ok = json_put_str(meta, "vocab", digest);
    }
    for (const cJSON *x = extra ? extra->child : NULL; ok && x; x = x->next) {
        if (cJSON_GetObjectItemCaseSensitive(meta, x->string)) continue; /* kind, model and vocab are already written */
        cJSON *copy = cJSON_Duplicate(x, true);
        ok = copy && cJSON_AddItemToObject(meta, x->string, copy);
    }
    rc = ok ? stream_write_meta(w, meta, e) : err_nomem(e, "model description");
    if (!rc && n_vocab) rc = stream_write_vocab(w, vocab, n_vocab, e);
    cJSON_Delete(meta);
    return rc;
}

/* Larger buffers (for an embedding) are freed before layers are read; smaller ones are reused. */
#define LARGE ((size_t)32 << 20)

/* ---- the tensors, one after another ------------------------------------------------------------------------------ */

static int next_tensor_or_end(struct stream_reader *r, struct stream_item *item, struct err *e) {
    for (;;) {
        int rc = stream_next(r, item, e);
        if (rc || item->type == ITEM_TENSOR || item->type == ITEM_SEGMENT_END) return rc;
        if (item->type == ITEM_VOCAB || item->type == ITEM_BATCH || item->type == ITEM_META)
            return err_set(e, ERR_DATA, "%s: unexpected record '%s' among the tensors", stream_reader_name(r),
                           item->tag);
    }
}

/* Checks that the current tensor is the expected one and fits. */
static int check_place(struct model_tensors *t, const struct stream_item *item, struct err *e) {
    char expected[TENSOR_MAX_NAME + 1];
    if (t->next == model_slot_count(t->config))
        return err_set(e, ERR_DATA, "tensor '%s' after the last one of this configuration", item->desc.name);
    struct model_slot want = model_slot_at(t->config, t->next);
    int rc = model_slot_parse(item->desc.name, &t->slot, e);
    if (rc) return rc;
    if (t->slot.role != want.role || t->slot.layer != want.layer || t->slot.expert != want.expert)
        return err_set(e, ERR_DATA, "found tensor '%s', expected '%s'", item->desc.name,
                       model_slot_name(want, expected));
    const struct dtype_info *type = dtype_info(item->desc.dtype);
    if (!type->is_float && !type->is_quantized)
        return err_set(e, ERR_DATA, "tensor '%s' holds %s, expected floating-point or quantized weights",
                       item->desc.name, type->name);
    return model_slot_check(t->config, t->slot, &item->desc, e);
}

/* Prefixes a message with the stream's name unless it has it already. */
static int say_where(const struct model_tensors *t, int rc, struct err *e) {
    const char *name = stream_reader_name(t->r);
    return rc && rc != ERR_IO && strncmp(e->msg, name, strlen(name)) != 0 ? err_prefix(e, "%s", name) : rc;
}

static int check_finite(const struct tensor_desc *d, uint64_t first, const void *data, uint64_t n, struct err *e) {
    uint64_t bad = tensor_first_nonfinite(d->dtype, data, n);
    if (bad == n) return 0;
    return err_set(e, ERR_DATA, "tensor '%s': element %" PRIu64 " is not finite", d->name, first + bad);
}

void model_tensors_begin(struct model_tensors *t, struct stream_reader *r, const struct model_config *c,
                         struct stream_item *item) {
    *t = (struct model_tensors){.r = r, .config = c, .item = item};
}

int model_tensors_open(struct model_tensors *t, bool *more, struct err *e) {
    cJSON_Delete(t->attrs);
    t->attrs = NULL;
    *more = false;
    int rc = t->next ? next_tensor_or_end(t->r, t->item, e) : 0;
    if (rc) return rc;
    if (t->item->type != ITEM_TENSOR) {
        char missing[TENSOR_MAX_NAME + 1];
        if (t->next == model_slot_count(t->config)) return 0;
        return err_set(e, ERR_DATA, "%s: tensor '%s' is missing", stream_reader_name(t->r),
                       model_slot_name(model_slot_at(t->config, t->next), missing));
    }
    t->desc = t->item->desc;
    t->given = 0;
    if (t->item->attrs && !(t->attrs = cJSON_Duplicate(t->item->attrs, true))) return err_nomem(e, "attributes");
    rc = say_where(t, check_place(t, t->item, e), e);
    t->next++;
    *more = !rc;
    return rc;
}

int model_tensors_doubt(struct model_tensors *t, struct err *e) {
    struct err damage;
    if (e->code == ERR_DATA && stream_skip_tensor(t->r, &damage)) *e = damage;
    return say_where(t, e->code, e);
}

int model_tensors_part(struct model_tensors *t, void *dst, uint64_t n, struct err *e) {
    const struct dtype_info *type = dtype_info(t->desc.dtype);
    size_t got;
    int rc = stream_read_data(t->r, dst, n / type->block_elems * type->block_bytes, &got, e);
    if (rc) return say_where(t, rc, e);
    if (check_finite(&t->desc, t->given, dst, n, e)) return model_tensors_doubt(t, e);
    t->given += n;
    return 0;
}

int model_tensors_load(struct model_tensors *t, struct err *e) {
    if (t->data.cap > LARGE && tensor_bytes(&t->desc) < LARGE) buf_release(&t->data);
    int rc = stream_load_tensor(t->r, &t->data, e);
    if (!rc) rc = check_finite(&t->desc, 0, t->data.data, tensor_elems(&t->desc), e);
    return say_where(t, rc, e);
}

void model_tensors_release(struct model_tensors *t) {
    cJSON_Delete(t->attrs);
    buf_release(&t->data);
    *t = (struct model_tensors){0};
}

static int each(struct model_tensors *t, bool with_data, model_tensor_fn *fn, void *ctx, struct err *e) {
    bool more;
    int rc;
    while (!(rc = model_tensors_open(t, &more, e)) && more) {
        if (with_data) rc = model_tensors_load(t, e);
        if (rc || (rc = fn(ctx, t->slot, &t->desc, t->attrs, with_data ? t->data.data : NULL, e))) break;
    }
    model_tensors_release(t);
    return rc;
}

int model_each_tensor(struct stream_reader *r, const struct model_config *c, struct stream_item *item,
                      model_tensor_fn *fn, void *ctx, struct err *e) {
    struct model_tensors t;
    model_tensors_begin(&t, r, c, item);
    return each(&t, true, fn, ctx, e);
}

int model_each_desc(struct stream_reader *r, const struct model_config *c, struct stream_item *item,
                    model_tensor_fn *fn, void *ctx, struct err *e) {
    struct model_tensors t;
    model_tensors_begin(&t, r, c, item);
    return each(&t, false, fn, ctx, e);
}
