/*
 * Packs sequences by best-fit decreasing (Ding et al. 2024, "Fewer truncations improve language modeling"): from the
 * longest to the shortest, each goes into the pack with the least space that it fits into. Pools of a bounded number of
 * tokens are packed one after another, so that memory does not grow with the input.
 *
 * The sequence that opens a pack did not fit into any earlier pack, and packs are written in that order. Therefore a
 * reader that adds sequences while they fit recovers the same packs. The last pack of a pool is carried over to the
 * next one as its first pack, so that this also holds across pools.
 */
#include <stdlib.h>
#include <string.h>

#include "lib/text/corpus_internal.h"

#define POOL_TOKENS ((size_t)4 << 20)
#define NONE        UINT32_MAX
#define MAX_LEVELS  5 /* of 64 children each: covers CORPUS_MAX_BATCH */

/* ---- a set of bounded numbers, with the next larger member in constant time ---- */

/* A bit of a level is set if the word of the level below is not zero. */
struct levels {
    uint64_t *words[MAX_LEVELS];
    size_t n_words[MAX_LEVELS], n;
};

static int levels_init(struct levels *s, size_t limit, struct err *e) {
    do {
        limit = (limit + 63) / 64;
        s->n_words[s->n] = limit;
        s->words[s->n] = mem_array(limit, sizeof **s->words, e);
        if (!s->words[s->n]) return e->code;
        s->n++;
    } while (limit > 1);
    return 0;
}

static void levels_add(struct levels *s, size_t i) {
    for (size_t l = 0; l < s->n; l++, i /= 64) s->words[l][i / 64] |= UINT64_C(1) << i % 64;
}

static void levels_remove(struct levels *s, size_t i) {
    for (size_t l = 0; l < s->n; l++, i /= 64)
        if (s->words[l][i / 64] &= ~(UINT64_C(1) << i % 64)) return;
}

/* Returns the smallest member from i on, or NONE. */
static size_t levels_next(const struct levels *s, size_t i) {
    for (size_t l = 0; l < s->n && i / 64 < s->n_words[l]; l++, i = i / 64 + 1) {
        uint64_t from = s->words[l][i / 64] & ~UINT64_C(0) << i % 64;
        if (!from) continue;
        i = i / 64 * 64 + (size_t)__builtin_ctzll(from);
        while (l-- > 0) i = i * 64 + (size_t)__builtin_ctzll(s->words[l][i]);
        return i;
    }
    return NONE;
}

/* ---- the pool ---- */

struct item {
    size_t start; /* index in tokens */
    uint32_t n;
    uint32_t next; /* in its pack */
};
struct pack {
    uint32_t first, last; /* items */
    uint32_t space;
    uint32_t next; /* of the same space */
};
struct pool {
    const struct corpus_options *o;
    corpus_write *write;
    void *ctx;
    struct corpus_totals *totals;
    struct buf tokens, mask, items; /* u32, u8, struct item */
    size_t carried;                 /* number of first items that already form a pack */

    struct buf order, packs; /* u32: items by length; struct pack */
    struct levels spaces;    /* the spaces that occur */
    uint32_t *of_space;      /* [pack + 1]: latest pack with each space */

    struct buf out_tokens, out_mask, out_lengths; /* the batch being built */
    uint64_t seqs, batches;                       /* written */
};

int pool_new(struct pool **out, const struct corpus_options *o, corpus_write *write, void *ctx,
             struct corpus_totals *totals, struct err *e) {
    struct pool *p = mem_zalloc(sizeof *p, e);
    if (!p) return e->code;
    *p = (struct pool){.o = o, .write = write, .ctx = ctx, .totals = totals};
    p->of_space = mem_array((size_t)o->pack + 1, sizeof *p->of_space, e);
    if (!p->of_space || levels_init(&p->spaces, (size_t)o->pack + 1, e)) {
        pool_free(p);
        return e->code;
    }
    memset(p->of_space, 0xFF, ((size_t)o->pack + 1) * sizeof *p->of_space);
    *out = p;
    return 0;
}

void pool_free(struct pool *p) {
    if (!p) return;
    struct buf *all[] = {&p->tokens, &p->mask,       &p->items,    &p->order,
                         &p->packs,  &p->out_tokens, &p->out_mask, &p->out_lengths};
    for (size_t i = 0; i < COUNT_OF(all); i++) buf_release(all[i]);
    for (size_t l = 0; l < p->spaces.n; l++) mem_free(p->spaces.words[l]);
    mem_free(p->of_space);
    mem_free(p);
}

/* ---- packing ---- */

static size_t n_items(const struct pool *p) {
    return p->items.len / sizeof(struct item);
}

static struct item *item_at(const struct pool *p, size_t i) {
    return (struct item *)(void *)p->items.data + i;
}

static struct pack *pack_at(const struct pool *p, size_t i) {
    return (struct pack *)(void *)p->packs.data + i;
}

/* Indexes a pack by its space. */
static void file_pack(struct pool *p, uint32_t i) {
    struct pack *x = pack_at(p, i);
    x->next = p->of_space[x->space];
    p->of_space[x->space] = i;
    levels_add(&p->spaces, x->space);
}

static uint32_t take_pack(struct pool *p, size_t space) {
    uint32_t i = p->of_space[space];
    p->of_space[space] = pack_at(p, i)->next;
    if (p->of_space[space] == NONE) levels_remove(&p->spaces, space);
    return i;
}

static int open_pack(struct pool *p, uint32_t item, struct err *e) {
    struct pack x = {.first = item, .last = item, .space = p->o->pack - item_at(p, item)->n};
    return buf_append(&p->packs, &x, sizeof x, e);
}

static void add_to_pack(struct pool *p, uint32_t pack, uint32_t item) {
    struct pack *x = pack_at(p, pack);
    item_at(p, x->last)->next = item;
    x->last = item;
    x->space -= item_at(p, item)->n;
}

static int place(struct pool *p, uint32_t item, struct err *e) {
    size_t space = levels_next(&p->spaces, item_at(p, item)->n);
    uint32_t pack = (uint32_t)(p->packs.len / sizeof(struct pack));
    if (space == NONE) {
        if (open_pack(p, item, e)) return e->code;
    } else {
        pack = take_pack(p, space);
        add_to_pack(p, pack, item);
    }
    file_pack(p, pack);
    return 0;
}

/* Counting sort of the items after those carried over: longest first, stable. */
static int sort_items(struct pool *p, struct err *e) {
    size_t n = n_items(p) - p->carried, sums = (size_t)p->o->pack + 1;
    p->order.len = 0;
    if (buf_reserve(&p->order, n * sizeof(uint32_t), e)) return e->code;
    uint32_t *order = (uint32_t *)(void *)p->order.data, *at = mem_array(sums, sizeof *at, e);
    if (!at) return e->code;
    for (size_t i = p->carried; i < n_items(p); i++) at[item_at(p, i)->n - 1]++;
    for (size_t l = sums - 1; l-- > 0;) at[l] += at[l + 1]; /* then at[l] is the number of items longer than l */
    for (size_t i = p->carried; i < n_items(p); i++) order[at[item_at(p, i)->n]++] = (uint32_t)i;
    mem_free(at);
    p->order.len = n * sizeof *order;
    return 0;
}

static int pack_items(struct pool *p, struct err *e) {
    p->packs.len = 0;
    if (sort_items(p, e)) return e->code;
    for (uint32_t i = 0; i < p->carried; i++)
        if (i)
            add_to_pack(p, 0, i);
        else if (open_pack(p, i, e))
            return e->code;
    if (p->carried) file_pack(p, 0);
    const uint32_t *order = (const uint32_t *)(const void *)p->order.data;
    for (size_t i = 0; i < p->order.len / sizeof *order; i++)
        if (place(p, order[i], e)) return e->code;
    for (size_t s; (s = levels_next(&p->spaces, 0)) != NONE;) take_pack(p, s);
    return 0;
}

/* ---- writing ---- */

static int write_out(struct pool *p, struct err *e) {
    uint32_t n_seqs = (uint32_t)(p->out_lengths.len / sizeof(uint32_t));
    const struct corpus_batch b = {.first_seq = p->seqs,
                                   .n_positions = p->out_tokens.len / sizeof(uint32_t),
                                   .n_seqs = n_seqs,
                                   .tokens = (const uint32_t *)(const void *)p->out_tokens.data,
                                   .mask = p->out_mask.len ? p->out_mask.data : NULL,
                                   .lengths = (const uint32_t *)(const void *)p->out_lengths.data};
    if (!n_seqs) return 0;
    p->seqs += n_seqs;
    p->batches++;
    p->out_tokens.len = p->out_mask.len = p->out_lengths.len = 0;
    return p->write(p->ctx, &b, e);
}

static int put_item(struct pool *p, const struct item *x, struct buf *tokens, struct buf *mask, struct buf *lengths,
                    struct err *e) {
    if (buf_append(tokens, p->tokens.data + x->start * sizeof(uint32_t), x->n * sizeof(uint32_t), e) ||
        buf_append(lengths, &x->n, sizeof x->n, e))
        return e->code;
    return p->mask.len ? buf_append(mask, p->mask.data + x->start, x->n, e) : 0;
}

/* Adds a pack to the batch; a pack is never split between batches. */
static int put_pack(struct pool *p, const struct pack *x, struct err *e) {
    size_t most = p->o->batch_tokens < p->o->pack ? p->o->pack : p->o->batch_tokens;
    p->totals->packs++;
    if (p->out_tokens.len / sizeof(uint32_t) + p->o->pack - x->space > most && write_out(p, e)) return e->code;
    for (uint32_t i = x->first;; i = item_at(p, i)->next) {
        if (put_item(p, item_at(p, i), &p->out_tokens, &p->out_mask, &p->out_lengths, e)) return e->code;
        if (i == x->last) return 0;
    }
}

/* Reduces the pool to the items of this pack, in order; NULL: empties it. */
static int keep_pack(struct pool *p, const struct pack *x, struct err *e) {
    struct buf tokens = {0}, mask = {0}, lengths = {0};
    int rc = 0;
    for (uint32_t i = x ? x->first : 0; x && !rc; i = item_at(p, i)->next) {
        rc = put_item(p, item_at(p, i), &tokens, &mask, &lengths, e);
        if (i == x->last) break;
    }
    p->tokens.len = p->mask.len = p->items.len = 0;
    if (!rc && tokens.len) rc = buf_append(&p->tokens, tokens.data, tokens.len, e);
    if (!rc && mask.len) rc = buf_append(&p->mask, mask.data, mask.len, e);
    p->carried = lengths.len / sizeof(uint32_t);
    size_t start = 0;
    for (size_t i = 0; !rc && i < p->carried; i++) {
        struct item item = {.start = start, .n = ((const uint32_t *)(const void *)lengths.data)[i]};
        rc = buf_append(&p->items, &item, sizeof item, e);
        start += item.n;
    }
    buf_release(&tokens);
    buf_release(&mask);
    buf_release(&lengths);
    return rc;
}

static int empty_pool(struct pool *p, bool last, struct err *e) {
    if (pack_items(p, e)) return e->code;
    size_t n = p->packs.len / sizeof(struct pack), written = last || !n ? n : n - 1;
    for (size_t i = 0; i < written; i++)
        if (put_pack(p, pack_at(p, i), e)) return e->code;
    return keep_pack(p, written < n ? pack_at(p, written) : NULL, e);
}

/* ---- filling ---- */

static int add_sequence(struct pool *p, const struct corpus_batch *b, size_t at, uint32_t n, struct err *e) {
    struct item x = {.start = p->tokens.len / sizeof(uint32_t), .n = n};
    if (buf_append(&p->tokens, b->tokens + at, n * sizeof *b->tokens, e) ||
        (b->mask && buf_append(&p->mask, b->mask + at, n, e)) || buf_append(&p->items, &x, sizeof x, e))
        return e->code;
    size_t full = p->o->pool ? p->o->pool : POOL_TOKENS;
    return p->tokens.len / sizeof(uint32_t) >= full ? empty_pool(p, false, e) : 0;
}

int pool_add(void *ctx, const struct corpus_batch *b, struct err *e) {
    struct pool *p = ctx;
    size_t at = 0;
    for (uint32_t i = 0; i < b->n_seqs; at += b->lengths[i++])
        if (add_sequence(p, b, at, b->lengths[i], e)) return e->code;
    p->totals->batches = p->batches; /* not the batches that came in */
    return 0;
}

int pool_finish(struct pool *p, struct err *e) {
    if (empty_pool(p, true, e) || write_out(p, e)) return e->code;
    p->totals->batches = p->batches;
    return 0;
}
