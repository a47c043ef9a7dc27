/*
 * Matrix products in bf16: the frame around the paths' micro-kernels. C is cut into tiles whose size depends on the
 * shape only, a thread makes a whole tile, and every sum goes over k in order: a block of k that is not the first begins
 * with the sums so far, which f32 memory holds exactly. So neither the blocks nor the threads can change a bit.
 */
#include "lib/kernel/kernel_internal.h"

/* README.md has the measurements behind these. */
#define STRIP    (256 * 1024) /* elements of b that a tile uses at a time: 512 KiB of the second cache */
#define K_MOST   2048         /* of k in a strip, */
#define K_LONG   512          /* or of a longer k: more columns then share the copies of rows of a */
#define N_MOST   448          /* columns */
#define SUMS     (64 * 1024)  /* of a tile that keeps them apart from c */
#define FEW_ROWS 64
#define FEW_COLS 64

struct product {
    const struct simd *v;
    size_t m;
    enum dtype a_type;
    const void *a;
    const struct kernel_panels *b;
    struct kernel_epilogue how;
    enum dtype c_type;
    void *c;
    bool in_place; /* sums are made in c: it is f32 and nothing is added at the end */
    size_t tile_m, tile_n, tiles_n, strip_k;
};

/* Where a thread is: its tile, the strip of k, and scratch. */
struct tile {
    const struct product *p;
    const struct micro_bf16 *micro;
    size_t row, rows, col, cols;
    size_t first, count; /* of k, in this strip */
    const uint16_t *b;
    size_t stride; /* from panel to panel */
    uint16_t *a_room;
    float *sums;
};

static size_t round_up(size_t n, size_t unit) {
    return (n + unit - 1) / unit * unit;
}

/* Rows of a, k from `first` on: where they lie when they are bf16 and need no padding, else a copy. (Rows of 4 KiB all fall
 * on the same lines of the first cache; a copy costs more than that.) */
static const uint16_t *rows_of_a(const struct tile *t, size_t row, size_t rows, size_t first, size_t count,
                                 size_t *lda) {
    const struct product *p = t->p;
    size_t k = p->b->k;
    if (p->a_type == DT_BF16 && k % 32 == 0) {
        *lda = k;
        return (const uint16_t *)p->a + row * k + first;
    }
    *lda = MAX_ROW_STRIDE;
    for (size_t i = 0; i < rows; i++) {
        uint16_t *to = t->a_room + i * MAX_ROW_STRIDE;
        size_t at = (row + i) * k + first;
        if (p->a_type == DT_BF16)
            memcpy(to, (const uint16_t *)p->a + at, count * sizeof *to);
        else
            p->v->to_bf16(to, (const float *)p->a + at, count);
        memset(to + count, 0, (round_up(count, 32) - count) * sizeof *to);
    }
    return t->a_room;
}

/* The sums of `rows` rows from `row` on over the strip's k, for n_panels panels of the tile. */
static void multiply_rows(const struct tile *t, size_t row, size_t rows, size_t panel, size_t n_panels, bool accumulate,
                          float *sums, size_t ld) {
    size_t k_block = equal_parts(t->count, t->micro->k_block, 32);
    for (size_t k = 0; k < t->count; k += k_block) {
        size_t count = smaller(k_block, t->count - k);
        struct block_bf16 block = {.rows = rows,
                                   .k = round_up(count, 32),
                                   .n_panels = n_panels,
                                   .b = t->b + panel * t->stride + k * PANEL,
                                   .stride = t->stride,
                                   .accumulate = accumulate || k > 0,
                                   .c = sums,
                                   .ldc = ld};
        block.a = rows_of_a(t, row, rows, t->first + k, count, &block.lda);
        t->micro->multiply(&block);
    }
}

/* Sums that were made apart: what c held before comes first, everything else last. */
static void begin_sums(const struct tile *t, size_t row, size_t rows, size_t col, size_t cols, float *sums) {
    const float *c = (const float *)t->p->c + row * t->p->b->n + t->col + col;
    for (size_t i = 0; i < rows; i++) memcpy(sums + i * t->p->tile_n, c + i * t->p->b->n, cols * sizeof *sums);
}

static void finish_sums(const struct tile *t, size_t row, size_t rows, size_t col, size_t cols, const float *sums) {
    const struct product *p = t->p;
    const float *bias = p->how.bias ? p->how.bias + t->col + col : NULL;
    for (size_t i = 0; i < rows; i++, sums += p->tile_n) {
        size_t at = (row + i) * p->b->n + t->col + col;
        const float *residual = p->how.residual ? p->how.residual + at : NULL;
        if (p->c_type == DT_F32)
            p->v->finish_f32((float *)p->c + at, sums, bias, residual, cols);
        else
            p->v->finish_bf16((uint16_t *)p->c + at, sums, bias, residual, cols);
    }
}

static void run_strip(const struct tile *t) {
    const struct product *p = t->p;
    bool is_first = t->first == 0, is_last = t->first + t->count == p->b->k, one = is_first && is_last;
    /* whole panels are summed in c where that is possible, the rest apart */
    size_t direct = p->in_place ? t->cols / PANEL : 0, apart = (t->cols + PANEL - 1) / PANEL - direct;
    for (size_t i = 0; i < t->rows; i += t->micro->block) {
        size_t row = t->row + i, rows = smaller(t->micro->block, t->rows - i), col = direct * PANEL;
        float *sums = t->sums + (one ? 0 : i * p->tile_n);
        if (direct)
            multiply_rows(t, row, rows, 0, direct, p->how.accumulate || !is_first,
                          (float *)p->c + row * p->b->n + t->col, p->b->n);
        if (!apart) continue;
        if (is_first && p->how.accumulate) begin_sums(t, row, rows, col, t->cols - col, sums);
        multiply_rows(t, row, rows, direct, apart, p->how.accumulate || !is_first, sums, p->tile_n);
        if (is_last) finish_sums(t, row, rows, col, t->cols - col, sums);
    }
}

static void run_tile(void *ctx, size_t i, int thread) {
    const struct product *p = ctx;
    const struct kernel_panels *b = p->b;
    (void)thread;
    _Alignas(64) uint16_t strip[STRIP], a_room[MAX_BLOCK * MAX_ROW_STRIDE];
    _Alignas(64) float sums[SUMS];
    struct tile t = {.p = p, .micro = p->v->bf16, .a_room = a_room, .sums = sums};
    t.row = i / p->tiles_n * p->tile_m;
    t.col = i % p->tiles_n * p->tile_n;
    t.rows = smaller(p->tile_m, p->m - t.row);
    t.cols = smaller(p->tile_n, b->n - t.col);
    if (t.micro->begin) t.micro->begin();
    for (t.first = 0; t.first < b->k; t.first += p->strip_k) {
        t.count = smaller(p->strip_k, b->k - t.first);
        if (b->packed) {
            t.stride = PANEL * round_up(b->k, 32);
            t.b = (const uint16_t *)b->data + t.col / PANEL * t.stride + t.first * PANEL;
        } else {
            t.stride = PANEL * round_up(t.count, 32);
            t.b = strip;
            make_panels(strip, b, t.col, t.cols, t.first, t.count);
        }
        run_strip(&t);
    }
    if (t.micro->end) t.micro->end();
}

/*
 * Tiles: all of k, as many columns as leave the strip of b in the second cache, and rows enough to be worth making that
 * strip. A product with few tiles is cut further, for there may be many threads: rows, or where they are few, columns.
 */
static void cut(struct product *p) {
    size_t n = p->b->n, block = p->v->bf16->block;
    p->strip_k = equal_parts(p->b->k, p->b->k > K_MOST ? K_LONG : K_MOST, 256);
    p->tile_n = equal_parts(n, smaller(N_MOST, STRIP / p->strip_k / PANEL * PANEL), PANEL);
    p->tile_m = equal_parts(p->m, p->b->packed ? 256 : 2048, block);
    if (p->strip_k < p->b->k) p->tile_m = smaller(p->tile_m, SUMS / p->tile_n / block * block);
    while (p->tile_m > 128 && ((p->m - 1) / p->tile_m + 1) * ((n - 1) / p->tile_n + 1) < 16)
        p->tile_m = round_up(p->tile_m / 2, block);
    if (p->m <= FEW_ROWS) p->tile_n = smaller(p->tile_n, FEW_COLS);
    while (p->m <= FEW_ROWS && p->tile_n > PANEL && (n - 1) / p->tile_n + 1 < 16)
        p->tile_n = round_up(p->tile_n / 2, PANEL);
    p->tiles_n = (n - 1) / p->tile_n + 1;
}

/* k = 0: the sums are empty. */
static void without_sums(const struct product *p) {
    static const float zero[PANEL];
    struct tile t = {.p = p};
    for (size_t i = 0; i < p->m; i++)
        for (size_t j = 0; j < p->b->n; j += PANEL) {
            float sums[PANEL];
            size_t cols = smaller(PANEL, p->b->n - j);
            memcpy(sums, zero, sizeof sums);
            if (p->how.accumulate) begin_sums(&t, i, 1, j, cols, sums);
            finish_sums(&t, i, 1, j, cols, sums);
        }
}

void kernel_multiply(size_t m, enum dtype a_type, const void *a, const struct kernel_panels *b,
                     const struct kernel_epilogue *how, enum dtype c_type, void *c) {
    struct product p = {.v = simd(), .m = m, .a_type = a_type, .a = a, .b = b, .c_type = c_type, .c = c};
    if (how) p.how = *how;
    if (m == 0 || b->n == 0) return;
    if (b->k == 0) {
        without_sums(&p);
        return;
    }
    p.in_place = c_type == DT_F32 && !p.how.bias && !p.how.residual;
    cut(&p);
    parallel_for(((m - 1) / p.tile_m + 1) * p.tiles_n, run_tile, &p);
}

/* ---- without bf16 instructions: widened to f32, and the path's f32 product ---- */

#define WIDE_K 320
#define WIDE_N 320

static void widen_panel(float *to, size_t ld, const uint16_t *panel, size_t k) {
    const uint32_t *words = (const uint32_t *)(const void *)panel;
    for (size_t p = 0; p < k; p += 2, words += PANEL, to += 2 * ld)
        for (size_t j = 0; j < PANEL; j++) {
            to[j] = bf16_to_f32((uint16_t)words[j]);
            to[ld + j] = bf16_to_f32((uint16_t)(words[j] >> 16));
        }
}

static void multiply_widened(const struct block_bf16 *t) {
    const struct simd *v = simd();
    _Alignas(64) float wide_a[MAX_BLOCK * WIDE_K], wide_b[WIDE_K * WIDE_N];
    for (size_t i = 0; i < t->rows; i++) v->from_bf16(wide_a + i * t->k, t->a + i * t->lda, t->k);
    for (size_t j = 0; j < t->n_panels; j += WIDE_N / PANEL) {
        size_t n = smaller(WIDE_N / PANEL, t->n_panels - j);
        for (size_t i = 0; i < n; i++) widen_panel(wide_b + i * PANEL, WIDE_N, t->b + (j + i) * t->stride, t->k);
        v->gemm(GEMM_NN, t->rows, n * PANEL, t->k, wide_a, t->k, wide_b, WIDE_N, t->accumulate, t->c + j * PANEL,
                t->ldc);
    }
}

const struct micro_bf16 bf16_widened = {.block = MAX_BLOCK, .k_block = WIDE_K, .multiply = multiply_widened};
