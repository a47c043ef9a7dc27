/* Reads and writes whole batches of sequences: tokens, lengths and other tensors. */
#include "lib/stream/stream.h"

#include <inttypes.h>

/* Memory reused from batch to batch: slot i belongs to the i-th tensor, whatever its name. */
struct batch_memory {
    struct tensor *tensors; /* [cap] */
    struct buf *data;       /* [cap] */
    uint32_t cap;
    const struct tensor *tokens, *lengths;
    bool goes_on; /* the last batch ended inside a sequence, next_pos positions into it */
    uint64_t next_pos;
};

static void release_memory(struct batch_memory *m) {
    for (uint32_t i = 0; i < m->cap; i++) buf_release(&m->data[i]);
    mem_free(m->data);
    mem_free(m->tensors);
    mem_free(m);
}

void batch_release(struct batch *b) {
    if (b->memory) release_memory(b->memory);
    *b = (struct batch){0};
}

void batch_forget(struct batch *b) {
    if (b->memory) b->memory->goes_on = false;
}

/* Makes room for n <= BATCH_MAX_TENSORS tensors. */
static int reserve(struct batch *b, uint32_t n, struct err *e) {
    if (!b->memory && !(b->memory = mem_zalloc(sizeof *b->memory, e))) return e->code;
    struct batch_memory *m = b->memory;
    if (n > m->cap) {
        struct tensor *tensors = mem_array(n, sizeof *tensors, e);
        struct buf *data = tensors ? mem_array(n, sizeof *data, e) : NULL;
        if (!data) {
            mem_free(tensors);
            return e->code;
        }
        if (m->cap) memcpy(data, m->data, m->cap * sizeof *data);
        mem_free(m->data);
        mem_free(m->tensors);
        m->data = data;
        m->tensors = tensors;
        m->cap = n;
    }
    b->tensors = m->tensors;
    return 0;
}

const struct tensor *batch_find(const struct batch *b, const char *name) {
    for (uint32_t i = 0; i < b->head.n_tensors; i++)
        if (!strcmp(b->tensors[i].desc.name, name)) return &b->tensors[i];
    return NULL;
}

int batch_need(const struct batch *b, const char *name, enum dtype dtype, unsigned rank, const uint64_t *dims,
               const struct tensor **out, struct err *e) {
    const struct tensor *t = batch_find(b, name);
    struct tensor_desc want = {.dtype = dtype, .rank = rank};
    char found[128], expected[128];
    if (!t) return err_set(e, ERR_DATA, "batch of sequence %" PRIu64 " has no tensor '%s'", b->head.first_seq, name);
    bool same = t->desc.dtype == dtype && t->desc.rank == rank;
    for (unsigned i = 0; i < rank && i < TENSOR_MAX_RANK; i++) {
        want.dims[i] = dims[i];
        if (same && dims[i] && dims[i] != t->desc.dims[i]) same = false;
    }
    *out = t;
    if (same) return 0;
    return err_set(e, ERR_DATA, "batch of sequence %" PRIu64 ": tensor '%s' is %s %s, expected %s %s (0: any)",
                   b->head.first_seq, name, dtype_info(t->desc.dtype)->name,
                   tensor_shape_text(&t->desc, found, sizeof found), dtype_info(dtype)->name,
                   tensor_shape_text(&want, expected, sizeof expected));
}

const uint32_t *batch_tokens(const struct batch *b) {
    return b->memory->tokens->data;
}
const uint32_t *batch_lengths(const struct batch *b) {
    return b->memory->lengths->data;
}

/* Checks that the lengths add up to the positions, none is 0, and the batch continues the previous one. */
static int check_lengths(struct batch *b, struct err *e) {
    struct batch_memory *m = b->memory;
    const uint32_t *lengths = m->lengths->data;
    const struct stream_batch *h = &b->head;
    uint64_t sum = 0;
    for (uint32_t i = 0; i < h->n_seqs; i++) {
        if (lengths[i] == 0) return err_set(e, ERR_DATA, "sequence %" PRIu64 " is empty", h->first_seq + i);
        sum += lengths[i];
    }
    if (sum != h->n_positions)
        return err_set(e, ERR_DATA,
                       "batch of sequence %" PRIu64 ": lengths add up to %" PRIu64 ", it has %" PRIu64 " positions",
                       h->first_seq, sum, h->n_positions);
    if (m->goes_on && h->first_pos != m->next_pos)
        return err_set(e, ERR_DATA, "sequence %" PRIu64 " continues at position %" PRIu64 ", expected %" PRIu64,
                       h->first_seq, h->first_pos, m->next_pos);
    m->goes_on = h->flags & BATCH_CONTINUES;
    m->next_pos = lengths[h->n_seqs - 1] + (h->n_seqs == 1 ? h->first_pos : 0);
    return 0;
}

static int check_batch(struct batch *b, struct err *e) {
    uint64_t n_positions = b->head.n_positions, n_seqs = b->head.n_seqs;
    if (batch_need(b, "tokens", DT_U32, 1, &n_positions, &b->memory->tokens, e) ||
        batch_need(b, "lengths", DT_U32, 1, &n_seqs, &b->memory->lengths, e))
        return e->code;
    return check_lengths(b, e);
}

static int load_tensors(struct stream_reader *r, struct batch *b, struct err *e) {
    struct stream_item item;
    for (uint32_t i = 0; i < b->head.n_tensors; i++) {
        struct buf *data = &b->memory->data[i];
        if (stream_next(r, &item, e)) return e->code; /* the segment rules allow only a tensor here */
        if (stream_load_tensor(r, data, e)) return e->code;
        b->tensors[i] = (struct tensor){.desc = item.desc, .data = data->data, .n_bytes = data->len};
    }
    return 0;
}

int batch_load(struct stream_reader *r, struct batch *b, const struct stream_item *item, struct err *e) {
    if (reserve(b, item->batch.n_tensors, e)) return e->code;
    b->head = item->batch;
    if (b->head.first_pos == 0)
        /* A continued sequence cannot restart at 0 within a stream, so this may only be a new stream. */
        b->memory->goes_on = false;
    if (load_tensors(r, b, e)) return e->code;
    return check_batch(b, e) ? err_prefix(e, "%s: record at byte %" PRIu64, stream_reader_name(r), item->offset) : 0;
}

int batch_read(struct stream_reader *r, struct batch *b, bool *more, struct err *e) {
    struct stream_item item;
    *more = false;
    do {
        if (stream_next(r, &item, e)) return e->code;
        if (item.type == ITEM_EOF) return 0;
    } while (item.type != ITEM_BATCH);
    if (batch_load(r, b, &item, e)) return e->code;
    *more = true;
    return 0;
}

int batch_write_vector(struct stream_writer *w, const char *name, enum dtype dtype, const void *data, uint64_t n,
                       struct err *e) {
    struct tensor_desc d;
    int rc = tensor_desc_init(&d, name, dtype, 1, &n, e);
    return rc ? rc : stream_write_tensor(w, &d, NULL, data, e);
}

int batch_write(struct stream_writer *w, const struct stream_batch *head, const uint32_t *tokens,
                const uint32_t *lengths, struct err *e) {
    int rc = stream_write_batch(w, head, e);
    if (!rc) rc = batch_write_vector(w, "tokens", DT_U32, tokens, head->n_positions, e);
    return rc ? rc : batch_write_vector(w, "lengths", DT_U32, lengths, head->n_seqs, e);
}

int batch_write_mask(struct stream_writer *w, const struct stream_batch *head, const uint8_t *mask, struct err *e) {
    return batch_write_vector(w, BATCH_MASK, DT_U8, mask, head->n_positions, e);
}
