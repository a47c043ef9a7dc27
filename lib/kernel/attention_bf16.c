/*
 * Attention with bf16 products: blocks and online softmax as in attention_f32.c. Scores, sums and the softmax are f32;
 * probabilities and the gradients of scores are rounded to bf16 as operands of products.
 */
#include <math.h>

#include "lib/kernel/attention_block.h"

#define WIDEST 256                            /* maximum head_dim; a multiple of PANEL */
#define LD     (MAX_ROWS + 32)                /* row stride of the transpose: not a power of two */
#define PART   64                             /* rows of queries between whose products nothing leaves the cache */
#define PANELS (ROWS_FLOATS + PANEL * WIDEST) /* elements of a block of queries as panels */

bool attention_is_bf16(const struct simd *v, const struct kernel_attention *a, struct view q, struct view k,
                       struct view values) {
    return v->bf16 != &bf16_widened && q.dtype == DT_BF16 && k.dtype == DT_BF16 && values.dtype == DT_BF16 &&
           a->head_dim % PANEL == 0 && a->head_dim <= WIDEST;
}

static size_t padded(size_t n) {
    return (n + PANEL - 1) / PANEL * PANEL;
}

/* c[rows][n] = [c +] a b: rows of a have stride lda, b is panels of `depth` >= k. All but rows are multiples of PANEL. */
static void multiply(const struct simd *v, size_t rows, size_t k, size_t n, const uint16_t *a, size_t lda,
                     const uint16_t *b, size_t depth, bool accumulate, float *c, size_t ldc) {
    const struct micro_bf16 *micro = v->bf16;
    size_t blocks = row_blocks(micro, rows);
    for (size_t i = 0; i < blocks; i++) {
        size_t row = row_block(micro, rows, blocks, i);
        micro->multiply(&(struct block_bf16){.path = v,
                                             .rows = row_block(micro, rows, blocks, i + 1) - row,
                                             .k = k,
                                             .n_panels = n / PANEL,
                                             .a = a + row * lda,
                                             .lda = lda,
                                             .b = b,
                                             .stride = depth * PANEL,
                                             .accumulate = accumulate,
                                             .c = c + row * ldc,
                                             .ldc = ldc});
    }
}

/* Prefetches a row of queries, because they are too far apart for the hardware prefetcher. */
static inline __attribute__((always_inline)) void
fetch_row(const struct kernel_attention *a, const struct attention_block *b, struct view from, size_t r) {
    enum { ROWS_AHEAD = 8 };
    if (r + ROWS_AHEAD >= b->heads * b->n) return;
    const uint16_t *row = (const uint16_t *)from.data + query_at(a, b, r + ROWS_AHEAD);
    for (size_t i = 0; i < a->head_dim; i += 32) __builtin_prefetch(row + i);
}

/* Copies the rows of a block of queries to be contiguous. */
static void copy_rows(const struct kernel_attention *a, const struct attention_block *b, uint16_t *to,
                      struct view from) {
    for (size_t r = 0; r < b->heads * b->n; r++) {
        fetch_row(a, b, from, r);
        memcpy(to + r * a->head_dim, (const uint16_t *)from.data + query_at(a, b, r), a->head_dim * sizeof *to);
    }
}

/* Panels with keys (or values) as columns: for scores, q k^T. */
static void panels_transposed(const struct kernel_attention *a, const struct attention_block *b, struct view k,
                              size_t from, size_t keys, uint16_t *to) {
    struct panels all = {.k = a->n_kv_heads * a->head_dim, .dtype = DT_BF16, .data = k.data};
    make_panels(to, &all, b->start + from, keys, b->kv_head * a->head_dim, a->head_dim);
}

/* Panels of n <= 256 rows of d with row stride ld, not transposed: for p v. Padded with zeros. */
static void panels_plain(const struct simd *v, const uint16_t *x, size_t ld, size_t n, size_t d, uint16_t *to) {
    static const uint16_t zeros[PANEL];
    size_t k = padded(n), whole = n / 2 * 2;
    for (size_t j = 0; j < d; j += PANEL) v->pair_rows((uint32_t *)(void *)(to + j * k), x + j, ld, n / 2);
    for (size_t r = whole; r < k; r += 2)
        for (size_t j = 0; j < d; j += PANEL)
            v->pair((uint32_t *)(void *)(to + j * k + r * PANEL), r < n ? x + r * ld + j : zeros,
                    r + 1 < n ? x + (r + 1) * ld + j : zeros, PANEL);
}

static const uint16_t *key_rows(const struct kernel_attention *a, const struct attention_block *b, struct view k,
                                size_t from) {
    return (const uint16_t *)k.data + key_at(a, b, from);
}

/* Sets the scores before the first key that a row sees to minus infinity, so that their weights are 0. */
static void mask_before(float *row, struct keys see) {
    for (size_t i = 0; i < see.begin; i++) row[i] = -INFINITY;
}

/* ---- forward ---- */

/* Rows [first, first + rows) of a block of queries, at most PART of them: as few as stay in cache from product to product. */
struct part_of_block {
    const struct forward *f;
    const struct attention_block *b;
    size_t first, rows;
    const uint16_t *q; /* ... and o, m, l: of these rows */
    float *o, *m;
    double *l;
};

/* A block of keys and values as panels: of head_dim, and of `depth`, which is the number of keys, padded. */
struct key_block {
    size_t from, count, depth;
    _Alignas(64) uint16_t keys[KEYS * WIDEST], values[KEYS * WIDEST];
};

static void pack_keys(const struct forward *f, const struct attention_block *b, struct key_block *k) {
    const struct kernel_attention *a = f->a;
    k->depth = padded(k->count);
    panels_transposed(a, b, f->k, k->from, k->count, k->keys);
    panels_plain(f->v, key_rows(a, b, f->values, k->from), a->n_kv_heads * a->head_dim, k->count, a->head_dim,
                 k->values);
}

/* Caps the scores of a row and masks those before the first key that it sees. */
static void prepare_scores(const struct forward *f, struct keys see, float *s) {
    const struct kernel_attention *a = f->a;
    if (a->softcap > 0) f->v->softcap(s, s, see.end, a->softcap, a->scale / a->softcap);
    mask_before(s, see);
}

/* The factor of scores that remains to be applied after prepare_scores. */
static float remaining_scale(const struct kernel_attention *a) {
    return a->softcap > 0 ? 1 : a->scale;
}

/* Adds a block of keys to the sums of some rows. Keys that none of the rows sees are left out: their weights are 0. */
static void add_keys(const struct part_of_block *x, const struct key_block *k) {
    const struct forward *f = x->f;
    size_t d = f->a->head_dim, most = 0;
    _Alignas(64) float s[PART * KEYS];
    _Alignas(64) uint16_t p[PART * KEYS];
    struct keys see[PART];
    uint32_t seen[PART];
    for (size_t r = 0; r < x->rows; r++) {
        see[r] = visible(f->a, x->b, x->first + r, k->from, k->count);
        seen[r] = (uint32_t)see[r].end;
        if (see[r].end > most) most = see[r].end;
    }
    if (most == 0) return;
    size_t width = padded(most);
    multiply(f->v, x->rows, d, width, x->q, d, k->keys, d, false, s, KEYS);
    for (size_t r = 0; r < x->rows; r++) prepare_scores(f, see[r], s + r * KEYS);
    f->v->softmax_rows(p, s, x->rows, KEYS, seen, width, remaining_scale(f->a), x->m, x->l, x->o, d);
    multiply(f->v, x->rows, width, d, p, KEYS, k->values, k->depth, true, x->o, d);
}

void forward_block_bf16(const struct forward *f, const struct attention_block *b) {
    const struct kernel_attention *a = f->a;
    size_t d = a->head_dim, rows = b->heads * b->n;
    _Alignas(64) uint16_t q[FORWARD_FLOATS];
    _Alignas(64) float o[FORWARD_FLOATS];
    struct key_block k;
    float m[FORWARD_ROWS];
    double l[FORWARD_ROWS];
    size_t part = f->v->bf16->block < PART ? PART / f->v->bf16->block * f->v->bf16->block : PART; /* whole blocks */
    copy_rows(a, b, q, f->q);
    memset(o, 0, rows * d * sizeof *o);
    for (size_t r = 0; r < rows; r++) m[r] = -INFINITY, l[r] = 0;
    if (f->v->bf16->begin) f->v->bf16->begin();
    struct keys all = keys_of(a, b);
    for (k.from = all.begin; k.from < all.end; k.from += KEYS) {
        k.count = smaller(KEYS, all.end - k.from);
        pack_keys(f, b, &k);
        for (size_t r = 0; r < rows; r += part)
            add_keys(&(struct part_of_block){f, b, r, smaller(part, rows - r), q + r * d, o + r * d, m + r, l + r}, &k);
    }
    if (f->v->bf16->end) f->v->bf16->end();
    for (size_t r = 0; r < rows; r++) {
        size_t at = query_at(a, b, r);
        if (f->y.dtype == DT_BF16)
            f->v->scale_bf16((uint16_t *)f->y.data + at, (float)(1 / l[r]), o + r * d, d);
        else
            f->v->scale_copy((float *)f->y.data + at, (float)(1 / l[r]), o + r * d, d);
        if (f->lse) f->lse[at / d] = (float)(m[r] * remaining_scale(a) + log(l[r]));
    }
}

/* ---- backward ---- */

/* A block of queries, with the scratch of its backward pass against one block of keys. */
struct work {
    _Alignas(64) uint16_t q[ROWS_FLOATS], dy[ROWS_FLOATS]; /* [rows][head_dim] */
    uint16_t q_panels[PANELS], dy_panels[PANELS];
    uint16_t p[MAX_ROWS * KEYS], ds[MAX_ROWS * KEYS]; /* rounded */
    uint16_t transposed[KEYS * LD];                   /* p or ds, transposed */
    uint16_t panels[KEYS * WIDEST];                   /* of keys or values */
    float scores[MAX_ROWS * KEYS], dp[MAX_ROWS * KEYS], dq[ROWS_FLOATS];
    float lse[MAX_ROWS], dot[MAX_ROWS]; /* dot = dy . y, D in algorithm 4 */
};

static void begin_block(const struct backward *w, const struct attention_block *b, struct work *t) {
    const struct kernel_attention *a = w->a;
    size_t d = a->head_dim, rows = b->heads * b->n;
    float y[WIDEST], dy[WIDEST];
    copy_rows(a, b, t->q, w->q);
    copy_rows(a, b, t->dy, w->dy);
    panels_plain(w->v, t->q, d, rows, d, t->q_panels);
    panels_plain(w->v, t->dy, d, rows, d, t->dy_panels);
    memset(t->dq, 0, rows * d * sizeof *t->dq);
    for (size_t r = 0; r < rows; r++) {
        size_t at = query_at(a, b, r);
        fetch_row(a, b, w->y, r);
        w->v->from_bf16(y, (const uint16_t *)w->y.data + at, d);
        w->v->from_bf16(dy, t->dy + r * d, d);
        t->lse[r] = w->lse[at / d];
        t->dot[r] = (float)w->v->dot(dy, y, d);
    }
}

/* Scores become probabilities, and their gradient becomes that of the scores. */
static void softmax_backward(const struct backward *w, const struct attention_block *b, size_t from, size_t keys,
                             size_t width, struct work *t) {
    float scale = w->a->scale;
    for (size_t r = 0; r < b->heads * b->n; r++) {
        struct keys see = visible(w->a, b, r, from, keys);
        mask_before(t->scores + r * KEYS, see);
        w->v->softmax_backward_bf16(t->p + r * KEYS, t->ds + r * KEYS, t->scores + r * KEYS, t->dp + r * KEYS, see.end,
                                    width, t->lse[r] / scale, scale, t->dot[r]);
    }
}

/* Transposes x [rows][width] into t->transposed [width][rows], padded with zeros to a multiple of PANEL. */
static void transpose(const struct simd *v, const uint16_t *x, size_t rows, size_t width, struct work *t) {
    static const uint16_t zeros[KEYS];
    _Alignas(64) uint32_t pairs[PANEL / 2 * KEYS];
    for (size_t r = 0; r < rows; r += PANEL) {
        for (size_t i = 0; i < PANEL / 2; i++) {
            size_t row = r + 2 * i;
            v->pair(pairs + i * KEYS, row < rows ? x + row * KEYS : zeros,
                    row + 1 < rows ? x + (row + 1) * KEYS : zeros, width);
        }
        v->transpose_words((uint32_t *)(void *)(t->transposed + r), LD / 2, pairs, KEYS, PANEL / 2, width);
    }
}

/* dv += p^T dy, dk += ds^T q, dq += ds k, for one block of keys. */
static void with_keys(const struct backward *w, const struct attention_block *b, size_t from, size_t keys,
                      struct work *t) {
    const struct kernel_attention *a = w->a;
    size_t d = a->head_dim, ld = a->n_kv_heads * d, rows = b->heads * b->n, width = padded(keys), k = padded(rows);
    size_t at = key_at(a, b, from);
    panels_transposed(a, b, w->k, from, keys, t->panels);
    multiply(w->v, rows, d, width, t->q, d, t->panels, d, false, t->scores, KEYS);
    panels_transposed(a, b, w->values, from, keys, t->panels);
    multiply(w->v, rows, d, width, t->dy, d, t->panels, d, false, t->dp, KEYS);
    softmax_backward(w, b, from, keys, width, t);
    transpose(w->v, t->p, rows, width, t);
    multiply(w->v, keys, k, d, t->transposed, LD, t->dy_panels, k, true, w->dv + at, ld);
    transpose(w->v, t->ds, rows, width, t);
    multiply(w->v, keys, k, d, t->transposed, LD, t->q_panels, k, true, w->dk + at, ld);
    panels_plain(w->v, key_rows(a, b, w->k, from), ld, keys, d, t->panels);
    multiply(w->v, rows, width, d, t->ds, KEYS, t->panels, width, true, t->dq, d);
}

void backward_block_bf16(const struct backward *w, const struct attention_block *b) {
    const struct kernel_attention *a = w->a;
    struct work t;
    begin_block(w, b, &t);
    if (w->v->bf16->begin) w->v->bf16->begin();
    struct keys all = keys_of(a, b);
    for (size_t from = all.begin; from < all.end; from += KEYS)
        with_keys(w, b, from, smaller(KEYS, all.end - from), &t);
    if (w->v->bf16->end) w->v->bf16->end();
    for (size_t r = 0; r < b->heads * b->n; r++)
        w->v->to_bf16((uint16_t *)w->dq.data + query_at(a, b, r), t.dq + r * a->head_dim, a->head_dim);
}
