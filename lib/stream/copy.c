/* Concatenates streams: as they are, with some tensors left out, re-encoded, or merged into one segment. */
#include "lib/stream/stream_internal.h"

enum { PIECE_BYTES = 16 << 20 }; /* read at a time when a tensor is re-encoded */

struct stream_copier {
    struct stream_writer *w;
    struct stream_copy_options options;
    cJSON *meta;  /* of the segment being written; NULL before the first */
    char *source; /* the name of the stream it came from */
    cJSON *prov;  /* of that segment, held back: the caller writes that of the last segment */
    bool has_vocab;
    struct digest vocab;
    uint64_t next_seq; /* when merging: number of the next sequence of the output */
    uint64_t shift;    /* ... and its difference to the input's numbers, modulo 2^64 */
    bool shift_known;
    struct batch batch;
    struct buf data;
};

int stream_copier_new(struct stream_copier **out, struct stream_writer *w, const struct stream_copy_options *options,
                      struct err *e) {
    struct stream_copier *k = mem_zalloc(sizeof *k, e);
    if (!k) return e->code;
    k->w = w;
    k->options = *options;
    *out = k;
    if ((k->prov = cJSON_CreateArray())) return 0;
    mem_free(k);
    return err_nomem(e, "provenance");
}

void stream_copier_free(struct stream_copier *k) {
    if (!k) return;
    cJSON_Delete(k->meta);
    cJSON_Delete(k->prov);
    mem_free(k->source);
    batch_release(&k->batch);
    buf_release(&k->data);
    mem_free(k);
}

/* ---- segments ---------------------------------------------------------------------------------------------------- */

static int write_held_prov(struct stream_copier *k, struct err *e) {
    const cJSON *entry;
    cJSON_ArrayForEach(entry, k->prov) if (stream_write_prov(k->w, entry, e)) return e->code;
    cJSON_Delete(k->prov);
    k->prov = cJSON_CreateArray();
    return k->prov ? 0 : err_nomem(e, "provenance");
}

static int refuse_merge(const struct stream_copier *k, const struct stream_reader *r, const cJSON *meta,
                        struct err *e) {
    const cJSON *a;
    const char *key = "(other keys)";
    cJSON_ArrayForEach(a, k->meta) {
        const cJSON *b = cJSON_GetObjectItemCaseSensitive(meta, a->string);
        if (b && cJSON_Compare(a, b, true)) continue;
        if (name_valid(a->string, strlen(a->string))) key = a->string;
        break;
    }
    return err_set(e, ERR_DATA, "%s and %s disagree in '%.64s' of their descriptions: they cannot be merged", k->source,
                   stream_reader_name(r), key);
}

static int begin_segment(struct stream_copier *k, struct stream_reader *r, const struct stream_item *item,
                         struct err *e) {
    bool data = item->kind == STREAM_TOKENS || item->kind == STREAM_KNOWLEDGE;
    k->shift_known = false;
    if (k->options.merge && !data)
        return err_set(e, ERR_DATA, "%s: a %s stream cannot be merged, only tokens and knowledge",
                       stream_reader_name(r), stream_kind_name(item->kind));
    if (k->options.merge && k->meta)
        return cJSON_Compare(k->meta, item->json, true) ? 0 : refuse_merge(k, r, item->json, e);
    if (k->meta && (write_held_prov(k, e) || stream_writer_segment(k->w, e))) return e->code;
    cJSON_Delete(k->meta);
    mem_free(k->source);
    k->has_vocab = false;
    k->source = NULL;
    if (!(k->meta = cJSON_Duplicate(item->json, true))) return err_nomem(e, "description");
    if (!(k->source = mem_strdup(stream_reader_name(r), e))) return e->code;
    return stream_forward(r, k->w, item, e);
}

static int hold_prov(struct stream_copier *k, const cJSON *entry, struct err *e) {
    cJSON *copy = cJSON_Duplicate(entry, true);
    if (!copy) return err_nomem(e, "provenance");
    cJSON_AddItemToArray(k->prov, copy);
    return 0;
}

/* When merging, every input may carry the same vocabulary; it is written once. */
static int copy_vocab(struct stream_copier *k, struct stream_reader *r, const struct stream_item *item, struct err *e) {
    struct digest d = digest_bytes(item->bytes, item->n_bytes);
    if (!k->has_vocab) {
        k->has_vocab = true;
        k->vocab = d;
        return stream_forward(r, k->w, item, e);
    }
    if (digest_equal(d, k->vocab)) return 0;
    return err_set(e, ERR_DATA, "%s and %s have different vocabularies: they cannot be merged", k->source,
                   stream_reader_name(r));
}

/* ---- tensors and batches ----------------------------------------------------------------------------------------- */

static bool kept(const struct stream_copier *k, const char *name) {
    return !k->options.keep || k->options.keep(k->options.ctx, name);
}

/* Re-encodes a tensor in pieces. */
static int recode_tensor(struct stream_copier *k, struct stream_reader *r, const struct stream_item *item,
                         struct err *e) {
    size_t got;
    k->data.len = 0;
    if (buf_reserve(&k->data, PIECE_BYTES, e) || stream_begin_tensor(k->w, &item->desc, item->attrs, e)) return e->code;
    do {
        if (stream_read_data(r, k->data.data, PIECE_BYTES, &got, e) || stream_write_data(k->w, k->data.data, got, e))
            return e->code;
    } while (got > 0);
    return stream_end_tensor(k->w, e);
}

static int copy_tensor(struct stream_copier *k, struct stream_reader *r, const struct stream_item *item,
                       struct err *e) {
    /* In a batch, copy_some_of_batch has already dropped the others. */
    if (!item->in_batch && !kept(k, item->desc.name)) return stream_skip_tensor(r, e);
    if (!k->options.recode) return stream_forward(r, k->w, item, e);
    if (k->w->options.codec != CODEC_RAW) return recode_tensor(k, r, item, e);
    /* A tensor written whole and raw is one chunk, whose checksum precedes the data. */
    if (stream_load_tensor(r, &k->data, e)) return e->code;
    return stream_write_tensor(k->w, &item->desc, item->attrs, k->data.data, e);
}

static bool kept_in_batch(const struct stream_copier *k, const char *name) {
    return !strcmp(name, "tokens") || !strcmp(name, "lengths") || kept(k, name);
}

/* The head states the number of tensors, so the whole batch must be read before some are dropped. */
static int copy_some_of_batch(struct stream_copier *k, struct stream_reader *r, const struct stream_item *item,
                              struct stream_batch head, struct err *e) {
    struct batch *b = &k->batch;
    if (batch_load(r, b, item, e)) return e->code;
    head.n_tensors = 0;
    for (uint32_t i = 0; i < b->head.n_tensors; i++) head.n_tensors += kept_in_batch(k, b->tensors[i].desc.name);
    if (stream_write_batch(k->w, &head, e)) return e->code;
    for (uint32_t i = 0; i < b->head.n_tensors; i++) {
        const struct tensor *t = &b->tensors[i];
        if (kept_in_batch(k, t->desc.name) && stream_write_tensor(k->w, &t->desc, NULL, t->data, e)) return e->code;
    }
    return 0;
}

static int copy_batch(struct stream_copier *k, struct stream_reader *r, const struct stream_item *item, struct err *e) {
    struct stream_batch head = item->batch;
    if (!k->shift_known && k->options.merge) k->shift = k->next_seq - head.first_seq;
    k->shift_known = true;
    if (k->options.merge) head.first_seq += k->shift;
    k->next_seq = head.first_seq + head.n_seqs;
    return k->options.keep ? copy_some_of_batch(k, r, item, head, e) : stream_write_batch(k->w, &head, e);
}

static int copy_other(struct stream_copier *k, struct stream_reader *r, const struct stream_item *item, struct err *e) {
    bool changed = k->options.keep || k->options.recode || k->options.merge;
    if (!changed || item->safe_to_copy) return stream_forward(r, k->w, item, e);
    log_line(LOG_WARN, "%s: dropped a record of unknown type '%s'", stream_reader_name(r), item->tag);
    return 0;
}

int stream_copier_add(struct stream_copier *k, struct stream_reader *r, struct err *e) {
    struct stream_item item;
    int code;
    do {
        code = stream_next(r, &item, e);
        if (code) break;
        switch (item.type) {
        case ITEM_META: code = begin_segment(k, r, &item, e); break;
        case ITEM_PROV: code = hold_prov(k, item.json, e); break;
        case ITEM_VOCAB: code = copy_vocab(k, r, &item, e); break;
        case ITEM_BATCH: code = copy_batch(k, r, &item, e); break;
        case ITEM_TENSOR: code = copy_tensor(k, r, &item, e); break;
        case ITEM_OTHER: code = copy_other(k, r, &item, e); break;
        case ITEM_SEGMENT_END:
        case ITEM_EOF: break;
        }
    } while (!code && item.type != ITEM_EOF);
    return code;
}
