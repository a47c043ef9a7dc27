/* Random access to the sequences and packs of a file: an index of where they are, and reading one of them. */
#include <inttypes.h>
#include <string.h>

#include "lib/knowledge/knowledge_internal.h"

/* ---- indexing ---------------------------------------------------------------------------------------------------- */

/* Walks over the sequences. A sequence is located by a batch and the number of sequences to skip from its front. The
 * front may be the end of an earlier sequence, but not if there are PER_PAIR fields: their rows come with that end, so
 * the batch must be one that begins with a whole sequence. */
struct finder {
    struct knowledge_units *u;
    struct stream_item head; /* the current batch */
    uint64_t base;           /* offset of the batch that sequences are located from ... */
    uint32_t counted;        /* ... and how many sequences have begun since */
    uint64_t offset, pack;   /* of the current sequence; positions of the current pack, 0: none */
    uint32_t skip;
    uint64_t length;
    bool open;
};

static int add_unit(struct finder *s, struct err *e) {
    struct knowledge_units *u = s->u;
    struct knowledge_unit *last = (struct knowledge_unit *)(void *)(u->memory.data + u->memory.len) - 1;
    if (s->length > UINT32_MAX) return err_set(e, ERR_DATA, "a sequence has more than 2^32 positions");
    u->positions += s->length;
    if (!knowledge_begins_pack(u->format.pack, &s->pack, s->length)) {
        last->positions += (uint32_t)s->length;
        return 0;
    }
    struct knowledge_unit unit = {.offset = s->offset, .skip = s->skip, .positions = (uint32_t)s->length};
    if (u->n == UINT32_MAX) return err_set(e, ERR_DATA, "more than 2^32 sequences");
    u->n++;
    return buf_append(&u->memory, &unit, sizeof unit, e);
}

static int find_in_batch(struct finder *s, const uint32_t *lengths, struct err *e) {
    const struct stream_batch *b = &s->head.batch;
    bool continues = b->flags & BATCH_CONTINUES;
    if (!s->open && b->first_pos)
        return err_set(e, ERR_DATA, "the file begins at position %" PRIu64 " of sequence %" PRIu64, b->first_pos,
                       b->first_seq);
    bool whole = b->first_pos == 0;
    if (whole || !knowledge_pair_field(&s->u->format)) {
        s->base = s->head.offset;
        s->counted = !whole;
    }
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        if (!s->open) {
            s->offset = s->base;
            s->skip = s->counted++;
            s->length = 0;
        }
        s->length += lengths[i];
        s->open = continues && i + 1 == b->n_seqs;
        if (!s->open && add_unit(s, e)) return e->code;
    }
    return 0;
}

static int see_meta(struct finder *s, const struct stream_item *item, bool first, struct err *e) {
    struct knowledge_format now;
    s->pack = 0; /* packs do not cross segments */
    if (knowledge_meta_get(item->json, &now, e)) return e->code;
    if (first) s->u->format = now;
    return knowledge_check_same(&s->u->format, &now, e) ? err_prefix(e, "the segments disagree") : 0;
}

static int see_lengths(struct finder *s, struct stream_reader *r, const struct stream_item *item, struct buf *lengths,
                       struct err *e) {
    lengths->len = 0;
    if (stream_load_tensor(r, lengths, e)) return e->code;
    if (item->desc.dtype != DT_U32 || lengths->len != s->head.batch.n_seqs * sizeof(uint32_t))
        return err_set(e, ERR_DATA, "%s: the lengths of a batch are not of its sequences", stream_reader_name(r));
    return find_in_batch(s, (const uint32_t *)(const void *)lengths->data, e)
               ? err_prefix(e, "%s", stream_reader_name(r))
               : 0;
}

int knowledge_units_find(struct knowledge_units *u, struct stream_reader *r, struct err *e) {
    struct finder s = {.u = u};
    struct stream_item item;
    struct stream_totals totals;
    struct buf lengths = {0};
    bool first = true;
    int rc;
    stream_reader_skim(r);
    while (!(rc = stream_next(r, &item, e)) && item.type != ITEM_EOF) {
        if (item.type == ITEM_BATCH) s.head = item;
        if (item.type == ITEM_META && (rc = see_meta(&s, &item, first, e)))
            err_prefix(e, "%s", stream_reader_name(r));
        else if (item.type == ITEM_TENSOR && item.in_batch && !strcmp(item.desc.name, "lengths"))
            rc = see_lengths(&s, r, &item, &lengths, e);
        first = false;
        if (rc) break;
    }
    buf_release(&lengths);
    if (rc) return rc;
    stream_reader_totals(r, &totals);
    u->content = totals.digest;
    u->units = (void *)u->memory.data;
    return u->n ? 0 : err_set(e, ERR_DATA, "%s holds no sequences", stream_reader_name(r));
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

void knowledge_units_open(struct knowledge_units *u, struct stream_reader *r) {
    u->r = r;
    u->at = 0;
}

/* Reads the next batch. The first one after a seek may begin inside a sequence, whose beginning is then missing. */
static int read_batch(struct knowledge_units *u, const struct knowledge_format *f, bool first, struct err *e) {
    const struct stream_batch *head = &u->batch.head;
    bool more;
    if (batch_read(u->r, &u->batch, &more, e)) return e->code;
    if (!more) return err_set(e, ERR_DATA, "%s ends before a sequence that was there", stream_reader_name(u->r));
    if (first && head->first_pos)
        u->rows.cursor = (struct knowledge_cursor){.open = true, .seq = head->first_seq, .pos = head->first_pos};
    return knowledge_decode(&u->rows, f, &u->batch, e) ? err_prefix(e, "%s", stream_reader_name(u->r)) : 0;
}

static int go_to(struct knowledge_units *u, const struct knowledge_format *f, uint64_t offset, struct err *e) {
    if (u->at == offset) return 0;
    u->at = 0;
    batch_forget(&u->batch);
    knowledge_clear(&u->rows);
    u->rows.open = false;
    u->rows.cursor = (struct knowledge_cursor){0};
    u->rows.pairs.open.len = u->rows.pairs.at = 0;
    if (stream_reader_seek(u->r, offset, e) || read_batch(u, f, true, e)) return e->code;
    u->at = offset;
    return 0;
}

/* Sets *n to the number of sequences, starting with `first`, that have that many positions in total; 0: read more. */
static int count_seqs(const struct knowledge_units *u, size_t first, uint64_t positions, size_t *n, struct err *e) {
    const struct knowledge_rows *k = &u->rows;
    uint64_t sum = 0;
    for (size_t i = first, whole = knowledge_whole_seqs(k); i < whole; i++) {
        sum += k->lengths[i];
        *n = i + 1 - first;
        if (sum == positions) return 0;
        if (sum > positions)
            return err_set(e, ERR_DATA, "%s: its sequences are no longer as long as they were",
                           stream_reader_name(u->r));
    }
    *n = 0;
    return 0;
}

int knowledge_units_read(struct knowledge_units *u, const struct knowledge_format *f, size_t i,
                         struct knowledge_rows *k, struct err *e) {
    const struct knowledge_unit *x = &u->units[i];
    size_t n = 0;
    if (go_to(u, f, x->offset, e) || count_seqs(u, x->skip, x->positions, &n, e)) return e->code;
    while (!n)
        if (read_batch(u, f, false, e) || count_seqs(u, x->skip, x->positions, &n, e)) return e->code;
    return knowledge_append_seqs(k, &u->rows, f, x->skip, n, e);
}

void knowledge_units_release(struct knowledge_units *u) {
    buf_release(&u->memory);
    batch_release(&u->batch);
    knowledge_rows_release(&u->rows);
    *u = (struct knowledge_units){0};
}
