/*
 * bf16 matrix products: tiles and strips around the paths' micro-kernels. C is split into tiles whose size depends only
 * on the shape, one thread computes a whole tile, and each sum goes over k in order: later blocks of k start from the
 * sums so far, which f32 memory holds exactly. So neither blocks nor threads can change a bit.
 */
#include "lib/kernel/kernel_internal.h"

/* README.md has the measurements. */
#define STRIP         (256 * 1024)  /* elements of b per strip: 512 KiB in L2 */
#define K_MOST        2048          /* maximum k of a strip ... */
#define K_LONG        512           /* ... or for a longer k: more columns then share the copies of rows of a */
#define N_MOST        448           /* maximum number of columns ... */
#define N_TRANSPOSED  576           /* ... or if rows are transposed for them and sums are made in c */
#define SUMS          (64 * 1024)   /* elements of a tile's sums that are not in c */
#define ROUNDED       (32 * 1024)   /* elements of a that are rounded on the stack */
#define TRANSPOSED_LD (K_LONG + 32) /* row stride: not a power of two, which would map rows to the same cache sets */
#define FETCHED       8 /* rows whose operands of the epilogue are fetched before, if the micro-kernel fetches others */
#define FEW_ROWS      64
#define FEW_COLS      64

struct product_bf16 {
    const struct simd *v;
    size_t m;
    enum dtype a_type;
    const void *a;
    bool transposed; /* a is [k][m]: its rows are transposed, one strip of k at a time */
    size_t lda;      /* row stride if a can be read in place (bf16, no padding needed); else 0 */
    const struct panels *b;
    struct result c;
    bool in_place; /* sums are made in c: it is f32 and nothing is added at the end */
    size_t tile_m, tile_n, tiles_n, strip_k;
};

/* A thread's position: its tile, its strip of k, and scratch. */
struct tile {
    const struct product_bf16 *p;
    const struct micro_bf16 *micro;
    size_t row, rows, col, cols;
    size_t first, count; /* k in this strip */
    size_t k_block;      /* maximum k per micro-kernel call */
    const uint16_t *b;
    size_t stride; /* between panels */
    uint16_t *a_scratch;
    const uint16_t *transposed; /* the tile's rows in this strip, if a is transposed */
    float *sums;
    struct earlier earlier; /* what the next block finishes, if the micro-kernel can; part.rows 0: nothing */
    bool second;            /* sums are in the second half of their memory, while the first is being finished */
};

/* Row stride of the sums of a group: an odd number of cache lines, which spreads rows over all sets of a cache. */
#define GROUP_STRIDE(group) ((group)*PANEL + 16)
_Static_assert(2 * MAX_BLOCK_FINISHING * GROUP_STRIDE(MAX_GROUP) <= SUMS, "two groups of sums");

static size_t round_up(size_t n, size_t unit) {
    return (n + unit - 1) / unit * unit;
}

/* Copies k [at, at + count) of one row as bf16, padded with zeros to a multiple of 32. */
static void copy_row(const struct product_bf16 *p, uint16_t *to, size_t row, size_t at, size_t count) {
    size_t from = row * p->b->k + at;
    if (p->a_type == DT_BF16)
        memcpy(to, (const uint16_t *)p->a + from, count * sizeof *to);
    else
        p->v->to_bf16(to, (const float *)p->a + from, count);
    memset(to + count, 0, (round_up(count, 32) - count) * sizeof *to);
}

/* Rows of a from k `first` on: in place, or copied. (Rows of 4 KiB all map to the same L1 sets, but a copy would cost
 * more than that.) */
static const uint16_t *rows_of_a(const struct tile *t, size_t row, size_t rows, size_t first, size_t count,
                                 size_t *lda) {
    const struct product_bf16 *p = t->p;
    if (t->transposed) {
        *lda = TRANSPOSED_LD;
        return t->transposed + (row - t->row) * TRANSPOSED_LD + first - t->first;
    }
    *lda = p->lda ? p->lda : MAX_ROW_STRIDE;
    if (p->lda) return (const uint16_t *)p->a + row * p->lda + first;
    for (size_t i = 0; i < rows; i++) copy_row(p, t->a_scratch + i * MAX_ROW_STRIDE, row + i, first, count);
    return t->a_scratch;
}

/* The sums of `rows` rows from `row` on over the strip's k, for n_panels panels of the tile. Meanwhile an earlier part is finished, spread
 * over k, if the block has all of its panels and enough rows. */
static void multiply_rows(struct tile *t, size_t row, size_t rows, size_t panel, size_t n_panels, bool accumulate,
                          float *sums, size_t ld) {
    bool finishes = t->earlier.part.cols <= n_panels * PANEL && rows > FINISHING_ROWS;
    struct earlier *w = t->earlier.part.rows && finishes ? &t->earlier : NULL;
    for (size_t k = 0; k < t->count; k += t->k_block) {
        size_t count = smaller(t->k_block, t->count - k);
        struct block_bf16 block = {.path = t->p->v,
                                   .rows = rows,
                                   .k = round_up(count, 32),
                                   .n_panels = n_panels,
                                   .b = t->b + panel * t->stride + k * PANEL,
                                   .stride = t->stride,
                                   .accumulate = accumulate || k > 0,
                                   .c = sums,
                                   .ldc = ld,
                                   .earlier = w};
        block.a = rows_of_a(t, row, rows, t->first + k, count, &block.lda);
        if (w) w->row = k * w->part.rows / t->count, w->end = (k + count) * w->part.rows / t->count;
        t->micro->multiply(&block);
    }
    if (w) w->part.rows = 0;
}

/* Always inlined: GCC assumes that a function that only prefetches has no effect, and drops calls of it. */
static inline __attribute__((always_inline)) void fetch_rows(const void *from, size_t stride, size_t rows,
                                                             size_t bytes) {
    const char *p = from;
    for (size_t i = 0; i < rows; i++, p += stride)
        for (size_t j = 0; j < bytes; j += 64) __builtin_prefetch(p + j, 1);
}

/* Prefetches what the epilogue reads of some rows, before the product, which takes much longer. */
static inline __attribute__((always_inline)) void fetch_part(const struct product_bf16 *p, const struct part *x,
                                                             size_t rows) {
    size_t n = p->b->n, at = x->row * n + x->col;
    if (p->c.how.residual) fetch_rows(p->c.how.residual + at, n * sizeof(float), rows, x->cols * sizeof(float));
    if (p->c.how.gate) fetch_rows(p->c.how.gate + at, n * sizeof(uint16_t), rows, x->cols * sizeof(uint16_t));
}

static void finish_earlier(struct tile *t) {
    if (t->earlier.part.rows) result_finish(&t->p->c, &t->earlier.part);
    t->earlier.part.rows = 0;
}

/* One block of rows times one group of panels. Whole panels are summed in c if possible; others in a buffer for this
 * strip alone or, if there are several strips, in the tile's buffer. A micro-kernel that can finishes them during the next block. */
static void run_group(struct tile *t, size_t row, size_t rows, size_t panel, size_t n_panels) {
    const struct product_bf16 *p = t->p;
    bool is_first = t->first == 0, is_last = t->first + t->count == p->b->k, one = is_first && is_last;
    bool accumulate = p->c.how.accumulate || !is_first;
    size_t col = panel * PANEL, cols = smaller(n_panels * PANEL, t->cols - col);
    struct part x = {.row = t->row + row, .rows = rows, .col = t->col + col, .cols = cols};
    if (p->in_place && cols == n_panels * PANEL) {
        multiply_rows(t, x.row, rows, panel, n_panels, accumulate, (float *)p->c.data + x.row * p->b->n + x.col,
                      p->b->n);
        return;
    }
    bool later = t->micro->finishes && is_last && cols == n_panels * PANEL;
    x.ld = one ? GROUP_STRIDE(t->micro->group) : p->tile_n;
    x.sums = t->sums + (one ? t->second * MAX_BLOCK_FINISHING * x.ld : row * p->tile_n + col);
    if (is_first && p->c.how.accumulate) result_begin(&p->c, &x);
    if (is_last) fetch_part(p, &x, later ? smaller(FETCHED, rows) : rows);
    multiply_rows(t, x.row, rows, panel, n_panels, accumulate, x.sums, x.ld);
    if (later) {
        finish_earlier(t); /* if the block could not */
        t->earlier = (struct earlier){.of = &p->c, .part = x};
        t->second = !t->second;
    } else if (is_last)
        result_finish(&p->c, &x);
}

/* A last panel that is not whole is a group of its own. */
static void run_strip(struct tile *t) {
    size_t whole = t->cols / PANEL, blocks = row_blocks(t->micro, t->rows), group = t->micro->group;
    for (size_t i = 0; i < blocks; i++) {
        size_t row = row_block(t->micro, t->rows, blocks, i), rows = row_block(t->micro, t->rows, blocks, i + 1) - row;
        for (size_t j = 0; j < whole; j += group) run_group(t, row, rows, j, smaller(group, whole - j));
        if (whole * PANEL < t->cols) run_group(t, row, rows, whole, 1);
    }
}

/* Transposes the strip of a tile's rows, padded with zeros. */
static void transpose_rows(struct tile *t, uint16_t *to) {
    const struct product_bf16 *p = t->p;
    size_t at = t->first * p->m + t->row, padding = round_up(t->count, 32) - t->count;
    struct view a = {p->a_type, (void *)p->a};
    transpose_to_bf16(to, TRANSPOSED_LD, p->a_type, view_part(a, at).data, p->m, t->count, t->rows);
    for (size_t i = 0; padding && i < t->rows; i++) memset(to + i * TRANSPOSED_LD + t->count, 0, padding * sizeof *to);
    t->transposed = to;
}

static void run_tile(void *ctx, size_t i, int thread) {
    const struct product_bf16 *p = ctx;
    const struct panels *b = p->b;
    (void)thread;
    _Alignas(64) uint16_t strip[STRIP], a_scratch[MAX_BLOCK * MAX_ROW_STRIDE];
    _Alignas(64) float sums[SUMS];
    struct tile t = {.p = p, .micro = p->v->bf16, .a_scratch = a_scratch, .sums = sums};
    t.row = i / p->tiles_n * p->tile_m;
    t.col = i % p->tiles_n * p->tile_n;
    t.rows = smaller(p->tile_m, p->m - t.row);
    t.cols = smaller(p->tile_n, b->n - t.col);
    if (t.micro->begin) t.micro->begin();
    for (t.first = 0; t.first < b->k; t.first += p->strip_k) {
        t.count = smaller(p->strip_k, b->k - t.first);
        t.k_block = equal_parts(t.count, t.micro->k_block, 32);
        if (b->packed) {
            t.stride = PANEL * round_up(b->k, 32);
            t.b = (const uint16_t *)b->data + t.col / PANEL * t.stride + t.first * PANEL;
        } else {
            t.stride = PANEL * round_up(t.count, 32);
            t.b = strip;
            make_panels(strip, b, t.col, t.cols, t.first, t.count);
        }
        if (p->transposed) transpose_rows(&t, strip);
        run_strip(&t);
    }
    finish_earlier(&t);
    if (t.micro->end) t.micro->end();
}

/*
 * Tiles: all of k, as many columns as keep the strip of b in L2, and enough rows to amortize packing that strip. A
 * product with few tiles is split further, as there may be many threads: by rows or, if these are few, by columns. A
 * transposed a uses short strips of k, which are transposed in cache, and many columns, because each tile transposes
 * again.
 */
static void cut(struct product_bf16 *p) {
    size_t n = p->b->n, block = p->v->bf16->block, least_m = p->transposed && block < 64 ? 64 : 128;
    p->strip_k = equal_parts(p->b->k, p->transposed || p->b->k > K_MOST ? K_LONG : K_MOST, 256);
    bool apart = !p->in_place || n % PANEL != 0, many = p->transposed && !apart;
    p->tile_n = equal_parts(n, many ? N_TRANSPOSED : smaller(N_MOST, STRIP / p->strip_k / PANEL * PANEL), PANEL);
    p->tile_m = equal_parts(p->m, p->b->packed ? 256 : 2048, block);
    if (apart && p->strip_k < p->b->k) p->tile_m = smaller(p->tile_m, SUMS / p->tile_n / block * block);
    while (p->tile_m > least_m && ((p->m - 1) / p->tile_m + 1) * ((n - 1) / p->tile_n + 1) < 16)
        p->tile_m = round_up(p->tile_m / 2, block);
    if (p->m <= FEW_ROWS) p->tile_n = smaller(p->tile_n, FEW_COLS);
    while (p->m <= FEW_ROWS && p->tile_n > PANEL && (n - 1) / p->tile_n + 1 < 16)
        p->tile_n = round_up(p->tile_n / 2, PANEL);
    p->tiles_n = (n - 1) / p->tile_n + 1;
}

/* k = 0: all sums are 0. */
static void without_sums(const struct product_bf16 *p) {
    for (size_t i = 0; i < p->m; i++)
        for (size_t j = 0; j < p->b->n; j += PANEL) {
            float sums[PANEL] = {0};
            struct part x = {i, 1, j, smaller(PANEL, p->b->n - j), sums, PANEL};
            if (p->c.how.accumulate) result_begin(&p->c, &x);
            result_finish(&p->c, &x);
        }
}

struct rounding {
    const struct product_bf16 *p;
    uint16_t *to;
    size_t ld;
};

static void round_piece(void *ctx, size_t begin, size_t end) {
    const struct rounding *c = ctx;
    for (size_t i = begin; i < end; i++) copy_row(c->p, c->to + i * c->ld, i, 0, c->p->b->k);
}

static void run_product(struct product_bf16 *p) {
    cut(p);
    parallel_for(((p->m - 1) / p->tile_m + 1) * p->tiles_n, run_tile, p);
}

/* Rows that cannot be read in place are rounded and padded once or, if there is no memory for that, by each tile that
 * reads them. */
static void run_rounded(struct product_bf16 *p) {
    uint16_t scratch[ROUNDED], *heap = NULL;
    struct err e;
    size_t ld = round_up(p->b->k, 32), n = p->m * ld;
    if (n > ROUNDED) heap = mem_alloc(n * sizeof *heap, &e);
    struct product_bf16 rounded = *p;
    rounded.a = heap ? heap : scratch;
    rounded.lda = ld;
    if (heap || n <= ROUNDED) {
        kernel_split(p->m, piece_rows(ld), round_piece, &(struct rounding){p, (uint16_t *)rounded.a, ld});
        p = &rounded;
    }
    run_product(p);
    mem_free(heap);
}

static void multiply(struct product_bf16 *p) {
    p->v = simd();
    if (p->m == 0 || p->b->n == 0) return;
    p->in_place = p->c.type == DT_F32 && !p->c.how.bias && !p->c.how.residual;
    if (!p->transposed && p->a_type == DT_BF16 && p->b->k % 32 == 0) p->lda = p->b->k;
    if (p->b->k == 0)
        without_sums(p);
    else if (p->b->packed && p->b->dtype != DT_BF16)
        multiply_int8(p->m, p->a_type, p->a, p->b, &p->c);
    else if (p->transposed || p->lda)
        run_product(p);
    else
        run_rounded(p);
}

static void multiply_into(struct kernel_array a, bool transposed, size_t m, const struct kernel_matrix *b,
                          const struct kernel_epilogue *how, struct kernel_array c) {
    static const struct kernel_epilogue plain;
    if (!how) how = &plain;
    struct panels panels = panels_of(b);
    struct epilogue end = {how->accumulate, host_f32(how->bias), host_f32(how->residual), host_of(how->gate), how->act};
    multiply(&(struct product_bf16){.m = m,
                                    .a_type = a.dtype,
                                    .a = host_of(a),
                                    .transposed = transposed,
                                    .b = &panels,
                                    .c = {.how = end, .type = c.dtype, .data = host_of(c), .n = b->n}});
}

void kernel_multiply(size_t m, struct kernel_array a, const struct kernel_matrix *b, const struct kernel_epilogue *how,
                     struct kernel_array c) {
    PROFILE(PRODUCTS);
    multiply_into(a, false, m, b, how, c);
}

void kernel_multiply_tn(size_t m, struct kernel_array a, const struct kernel_matrix *b,
                        const struct kernel_epilogue *how, struct kernel_array c) {
    PROFILE(PRODUCTS);
    multiply_into(a, true, m, b, how, c);
}
