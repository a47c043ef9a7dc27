/* Compares two streams tensor by tensor, or batch by batch. */
#include "lib/stream/stream.h"

#include <inttypes.h>

enum {
    PIECE = 1 << 14,       /* elements at a time: both sides stay in the cache, and conversion starts no threads */
    MAX_BLOCK_BYTES = 512, /* of any quantized type */
};

struct scratch {
    float a[PIECE], b[PIECE];
};

/* ---- a stream against a map -------------------------------------------------------------------------------------- */

struct against_map {
    struct stream_reader *a;
    struct stream_map *b;
    bool *met; /* [tensors of b]: has a counterpart in a */
    struct buf data;
    struct scratch *scratch;

    /* The current tensor. */
    const struct dtype_info *type; /* of b's */
    struct tensor_difference *d;
    size_t n_a, n_b;                    /* elements in the scratch; those of a come first */
    unsigned char cut[MAX_BLOCK_BYTES]; /* the first part of a block of b that continues in the next piece */
    size_t n_cut;
};

/* Compares `blocks` blocks of b with the next elements of a. */
static int compare_blocks(struct against_map *k, const unsigned char *data, uint64_t blocks, struct err *e) {
    struct scratch *s = k->scratch;
    for (uint64_t n = blocks * k->type->block_elems, now; n > 0; n -= now) {
        if (k->n_b == 0 && stream_read_f32(k->a, s->a, PIECE, &k->n_a, e)) return e->code;
        if (k->n_a == 0) return err_set(e, ERR_DATA, "%s: a tensor ends early", stream_reader_name(k->a));
        now = n < k->n_a - k->n_b ? n : k->n_a - k->n_b;
        tensor_to_f32(k->type->dtype, data, s->b + k->n_b, (size_t)now);
        data += dtype_row_bytes(k->type->dtype, now);
        k->n_b += (size_t)now;
        if (k->n_b < k->n_a) continue;
        tensor_compare(k->d, s->a, s->b, k->n_a);
        k->n_b = 0;
    }
    return 0;
}

static int compare_piece(void *ctx, const void *data, size_t n, struct err *e) {
    struct against_map *k = ctx;
    const unsigned char *p = data;
    size_t block = k->type->block_bytes;
    if (k->n_cut) {
        size_t take = block - k->n_cut < n ? block - k->n_cut : n;
        memcpy(k->cut + k->n_cut, p, take);
        k->n_cut += take;
        p += take;
        n -= take;
        if (k->n_cut < block) return 0;
        k->n_cut = 0;
        if (compare_blocks(k, k->cut, 1, e)) return e->code;
    }
    k->n_cut = n % block;
    memcpy(k->cut, p + n - k->n_cut, k->n_cut);
    return compare_blocks(k, p, n / block, e);
}

/* Compares the open tensor of a with tensor i of b. */
static int compare_data(struct against_map *k, size_t i, const struct tensor_desc *b, struct tensor_difference *d,
                        struct err *e) {
    k->type = dtype_info(b->dtype);
    k->d = d;
    k->n_a = k->n_b = k->n_cut = 0;
    return stream_map_pieces(k->b, i, &k->data, compare_piece, k, e);
}

static int compare_one(struct against_map *k, const struct tensor_desc *a, stream_pair_fn *fn, void *ctx,
                       struct err *e) {
    struct stream_map_entry entry;
    struct stream_pair p = {.a = a};
    long i = stream_map_find(k->b, a->name);
    if (i < 0) return fn(ctx, &p, e);
    k->met[i] = true;
    if (stream_map_entry(k->b, (size_t)i, &entry, e)) return e->code;
    p.b = &entry.desc;
    p.compared = tensor_same_shape(a, p.b);
    if (p.compared && compare_data(k, (size_t)i, p.b, &p.d, e)) return e->code;
    return fn(ctx, &p, e);
}

static int compare_all(struct against_map *k, stream_pair_fn *fn, void *ctx, struct err *e) {
    struct stream_item item;
    do {
        if (stream_next(k->a, &item, e)) return e->code;
        if (item.type == ITEM_TENSOR && compare_one(k, &item.desc, fn, ctx, e)) return e->code;
    } while (item.type != ITEM_EOF);
    for (size_t i = 0; i < stream_map_count(k->b); i++) {
        struct stream_map_entry entry;
        if (k->met[i]) continue;
        if (stream_map_entry(k->b, i, &entry, e)) return e->code;
        if (fn(ctx, &(struct stream_pair){.b = &entry.desc}, e)) return e->code;
    }
    return 0;
}

int stream_compare_map(struct stream_reader *a, struct stream_map *b, stream_pair_fn *fn, void *ctx, struct err *e) {
    struct against_map k = {.a = a, .b = b};
    int code = 0;
    if (!(k.met = mem_array(stream_map_count(b), sizeof *k.met, e)) || !(k.scratch = mem_alloc(sizeof *k.scratch, e)))
        code = e->code;
    else
        code = compare_all(&k, fn, ctx, e);
    buf_release(&k.data);
    mem_free(k.met);
    mem_free(k.scratch);
    return code;
}

/* ---- batches ----------------------------------------------------------------------------------------------------- */

struct name {
    struct tensor_desc a, b; /* storage for pair.a and pair.b */
    struct stream_pair pair;
};

struct by_batch {
    struct stream_reader *reader[2];
    struct batch batch[2];
    struct name *names; /* [BATCH_MAX_TENSORS] */
    size_t n;
    struct scratch *scratch;
};

/* Returns the slot of the name, or the unused one at k->n. NULL and ERR_DATA if all are taken. */
static struct name *find_name(struct by_batch *k, const char *name, struct err *e) {
    size_t i = 0;
    while (i < k->n && strcmp((k->names[i].pair.a ? &k->names[i].a : &k->names[i].b)->name, name) != 0) i++;
    if (i < BATCH_MAX_TENSORS) return &k->names[i];
    err_set(e, ERR_DATA, "more than %d names of tensors", BATCH_MAX_TENSORS);
    return NULL;
}

static void compare_tensors(const struct tensor *a, const struct tensor *b, struct scratch *s,
                            struct tensor_difference *d) {
    uint64_t n = tensor_elems(&a->desc), now;
    for (uint64_t at = 0; at < n; at += now) {
        now = n - at < PIECE ? n - at : PIECE;
        tensor_to_f32(a->desc.dtype, (unsigned char *)a->data + dtype_row_bytes(a->desc.dtype, at), s->a, now);
        tensor_to_f32(b->desc.dtype, (unsigned char *)b->data + dtype_row_bytes(b->desc.dtype, at), s->b, now);
        tensor_compare(d, s->a, s->b, (size_t)now);
    }
}

/* Adds a pair of tensors to its name's slot, which keeps the shapes of the first pair, or of the first that differs. */
static int add_pair(struct by_batch *k, const struct tensor *a, const struct tensor *b, struct err *e) {
    bool fits = a && b && tensor_same_shape(&a->desc, &b->desc);
    struct name *x = find_name(k, (a ? a : b)->desc.name, e);
    if (!x) return e->code;
    bool first = x == &k->names[k->n];
    k->n += first;
    if (fits) compare_tensors(a, b, k->scratch, &x->pair.d);
    if (!first && (fits || !x->pair.compared)) return 0;
    x->pair.compared = fits;
    x->pair.a = a ? &x->a : NULL;
    x->pair.b = b ? &x->b : NULL;
    if (a) x->a = a->desc;
    if (b) x->b = b->desc;
    return 0;
}

static int check_heads(const struct by_batch *k, struct err *e) {
    const struct stream_batch *a = &k->batch[0].head, *b = &k->batch[1].head;
    if (a->first_seq == b->first_seq && a->first_pos == b->first_pos && a->n_seqs == b->n_seqs &&
        a->n_positions == b->n_positions)
        return 0;
    return err_set(e, ERR_CHECK,
                   "the batches do not hold the same: sequence %" PRIu64 ", %u sequences, %" PRIu64
                   " positions in %s; sequence %" PRIu64 ", %u sequences, %" PRIu64 " positions in %s",
                   a->first_seq, a->n_seqs, a->n_positions, stream_reader_name(k->reader[0]), b->first_seq, b->n_seqs,
                   b->n_positions, stream_reader_name(k->reader[1]));
}

static int compare_batch(struct by_batch *k, struct err *e) {
    const struct batch *a = &k->batch[0], *b = &k->batch[1];
    if (check_heads(k, e)) return e->code;
    for (uint32_t i = 0; i < a->head.n_tensors; i++)
        if (add_pair(k, &a->tensors[i], batch_find(b, a->tensors[i].desc.name), e)) return e->code;
    for (uint32_t i = 0; i < b->head.n_tensors; i++)
        if (!batch_find(a, b->tensors[i].desc.name) && add_pair(k, NULL, &b->tensors[i], e)) return e->code;
    return 0;
}

static int compare_streams(struct by_batch *k, stream_pair_fn *fn, void *ctx, struct err *e) {
    bool more[2] = {true, true};
    while (more[0] && more[1]) {
        for (int i = 0; i < 2; i++)
            if (batch_read(k->reader[i], &k->batch[i], &more[i], e)) return e->code;
        if (more[0] && more[1] && compare_batch(k, e)) return e->code;
    }
    if (more[0] != more[1])
        return err_set(e, ERR_CHECK, "%s has more batches than %s", stream_reader_name(k->reader[more[1]]),
                       stream_reader_name(k->reader[more[0]]));
    for (size_t i = 0; i < k->n; i++)
        if (fn(ctx, &k->names[i].pair, e)) return e->code;
    return 0;
}

int stream_compare_batches(struct stream_reader *a, struct stream_reader *b, stream_pair_fn *fn, void *ctx,
                           struct err *e) {
    struct by_batch k = {.reader = {a, b}};
    int code = 0;
    if (!(k.names = mem_array(BATCH_MAX_TENSORS, sizeof *k.names, e)) || !(k.scratch = mem_alloc(sizeof *k.scratch, e)))
        code = e->code;
    else
        code = compare_streams(&k, fn, ctx, e);
    batch_release(&k.batch[0]);
    batch_release(&k.batch[1]);
    mem_free(k.names);
    mem_free(k.scratch);
    return code;
}
