/* Forwards a record from a reader to a writer in stored form: verifies the payload, rewrites only the header. */
#include "lib/stream/stream_internal.h"

/* A failure of the reader also fails the writer: its output can no longer be complete. */
static int fail_both(struct stream_reader *r, struct stream_writer *w, struct err *e) {
    if (!r->failed.code) return writer_fail(w, e);
    if (!w->failed.code) w->failed = *e;
    return e->code;
}

static int forward_chunk(struct stream_reader *r, struct stream_writer *w, struct err *e) {
    const unsigned char *p;
    size_t got = 1;
    if (reader_chunk(r, e)) return e->code;
    struct wire_record h = r->rec;
    h.tensor = w->seg.number;
    if (segment_data(&w->seg, &h, e) || writer_put_begin(w, &h, e)) return e->code;
    reader_stored_begin(r);
    for (;;) {
        if (reader_stored_take(r, &p, &got, e)) return e->code;
        if (got == 0) return writer_put_end(w, &h, e);
        if (output_write(&w->out, p, got, e)) return e->code;
    }
}

static int forward_tensor(struct stream_reader *r, struct stream_writer *w, const struct stream_item *item,
                          struct err *e) {
    if (r->given) return err_set(e, ERR_DATA, "tensor '%s': read before it was forwarded", item->desc.name);
    if (writer_begin_tensor(w, &item->desc, r->payload.data, r->payload.len, e)) return e->code;
    while (reader_has_chunk(r))
        if (forward_chunk(r, w, e)) return e->code;
    return writer_tensor_done(w, e);
}

static int allow(struct stream_reader *r, struct stream_writer *w, const struct stream_item *item, struct err *e) {
    switch (item->type) {
    case ITEM_META: return segment_meta(&w->seg, item->kind, e);
    case ITEM_PROV: return segment_prov(&w->seg, e);
    case ITEM_VOCAB: return segment_vocab(&w->seg, e);
    case ITEM_BATCH: return segment_batch(&w->seg, &item->batch, e);
    case ITEM_OTHER: return segment_other(&w->seg, e);
    default: return err_set(e, ERR_USAGE, "%s: this item cannot be forwarded", r->name);
    }
}

int stream_forward(struct stream_reader *r, struct stream_writer *w, const struct stream_item *item, struct err *e) {
    if (reader_failed(r, e) || writer_failed(w, e)) return e->code;
    if (item->type == ITEM_TENSOR) return forward_tensor(r, w, item, e) ? fail_both(r, w, e) : 0;
    struct wire_record h = r->rec;
    if (allow(r, w, item, e) || writer_put(w, &h, r->payload.data, e)) return fail_both(r, w, e);
    return 0;
}
