/*
 * Products of 8-bit integers: quantized weights times activations rounded to 8 bits in blocks of 32. The sum over a
 * group of elements is exact; the rest is f32, in order of k, each operation rounded separately. So an element of c has
 * the same bits whatever m, n, the tiles, the threads and the CPU path are.
 *
 * A tile goes through its panels and the chunks of each; a chunk is multiplied by all rows of the tile while it is in
 * cache.
 */
#include "lib/kernel/kernel_internal.h"

#define SCRATCH (512 * 1024) /* bytes of rounded activations at a time */
#define TILE_M  192
#define TILE_N  256
#define BLOCK   32
#define STEPS   (BLOCK / 4) /* a step is four elements of k */

/* Rows of activations as integers, in groups of rows that are interleaved for the micro-kernel. */
struct rounded {
    uint32_t *a;
    float *d;
    union extra_int8 *extra;
};

struct product_int8 {
    const struct simd *v;
    const struct quant_form *form;
    size_t m;
    enum dtype a_type;
    const void *a;
    const struct panels *b;
    struct result c;
    size_t group_rows, first, rows; /* first, rows: the current rows */
    struct rounded rounded;         /* the current rows if rounded.a is not NULL; else each tile rounds what it needs */
    size_t tile_m, tile_n, tiles_n, panel_bytes;
};

/* ---- activations ---- */

/* Rounds blocks [block, block + blocks) of a row, interleaved with those of the other rows of its group. */
static void round_row(const struct product_int8 *p, size_t row, size_t block, size_t blocks, size_t stride,
                      struct rounded to) {
    enum { AT_ONCE = 16 };
    float scratch[AT_ONCE * BLOCK];
    struct view a = {p->a_type, (void *)p->a};
    size_t groups = BLOCK / p->form->group;
    for (size_t i = 0; i < blocks; i += AT_ONCE) {
        size_t n = smaller(AT_ONCE, blocks - i);
        const float *x = array_get(p->v, a, row * p->b->k + (block + i) * BLOCK, n * BLOCK, scratch);
        p->v->int8->round(x, n, p->form, stride, to.a + i * STEPS * stride, to.d + i * stride,
                          to.extra + i * groups * stride);
    }
}

/* Start of a group of `rows` rounded rows, from block `block` on. */
static struct rounded rounded_at(const struct product_int8 *p, size_t row, size_t rows, size_t block) {
    size_t blocks = p->b->k / BLOCK, groups = BLOCK / p->form->group;
    return (struct rounded){p->rounded.a + row * blocks * STEPS + block * STEPS * rows,
                            p->rounded.d + row * blocks + block * rows,
                            p->rounded.extra + (row * blocks + block * rows) * groups};
}

static size_t rows_of_group(const struct product_int8 *p, size_t row) {
    return smaller(p->group_rows, p->rows - row);
}

static void round_group(const struct product_int8 *p, size_t row, size_t rows, size_t block, size_t blocks,
                        struct rounded to) {
    for (size_t i = 0; i < rows; i++)
        round_row(p, p->first + row + i, block, blocks, rows, (struct rounded){to.a + i, to.d + i, to.extra + i});
}

static void round_groups(void *ctx, size_t begin, size_t end) {
    const struct product_int8 *p = ctx;
    for (size_t i = begin; i < end; i++) {
        size_t row = i * p->group_rows, rows = rows_of_group(p, row);
        round_group(p, row, rows, 0, p->b->k / BLOCK, rounded_at(p, row, rows, 0));
    }
}

/* ---- a tile ---- */

/* Multiplies one chunk of a panel by all rows of a tile. */
static void multiply_chunk(const struct product_int8 *p, size_t first, size_t rows, size_t block, size_t blocks,
                           const struct chunk_int8 *b, bool accumulate, float *sums) {
    uint32_t a[INT8_CHUNK / 4 * INT8_MAX_ROWS];
    float d[INT8_CHUNK / BLOCK * INT8_MAX_ROWS];
    union extra_int8 extra[INT8_GROUPS * INT8_MAX_ROWS];
    for (size_t row = first; row < first + rows; row += p->group_rows) {
        struct rounded r = {a, d, extra};
        size_t n = rows_of_group(p, row);
        if (p->rounded.a)
            r = rounded_at(p, row, n, block);
        else
            round_group(p, row, n, block, blocks, r);
        p->v->int8->multiply(&(struct block_int8){.form = p->form,
                                                  .rows = n,
                                                  .blocks = blocks,
                                                  .a = r.a,
                                                  .d = r.d,
                                                  .extra = r.extra,
                                                  .b = *b,
                                                  .accumulate = accumulate,
                                                  .c = sums + (row - first) * PANEL});
    }
}

static void run_tile(void *ctx, size_t i, int thread) {
    const struct product_int8 *p = ctx;
    const struct panels *b = p->b;
    (void)thread;
    _Alignas(64) float sums[TILE_M * PANEL];
    size_t row = i / p->tiles_n * p->tile_m, rows = smaller(p->tile_m, p->rows - row);
    size_t col = i % p->tiles_n * p->tile_n, end = smaller(col + p->tile_n, b->n);
    for (; col < end; col += PANEL) {
        size_t cols = smaller(PANEL, b->n - col);
        const uint8_t *from = (const uint8_t *)b->data + col / PANEL * p->panel_bytes;
        struct part x = {p->first + row, rows, col, cols, sums, PANEL};
        if (p->c.how.accumulate) result_begin(&p->c, &x);
        for (size_t k = 0; k < b->k; k += INT8_CHUNK) {
            size_t blocks = smaller(INT8_CHUNK, b->k - k) / BLOCK;
            struct chunk_int8 c = chunk_at(p->form, from, blocks);
            multiply_chunk(p, row, rows, k / BLOCK, blocks, &c, p->c.how.accumulate || k > 0, sums);
            from = c.end;
        }
        result_finish(&p->c, &x);
    }
}

/* ---- the product ---- */

/* Rounds the current rows once, for all tiles, and multiplies them. */
static void multiply_rows(struct product_int8 *p) {
    size_t groups = (p->rows - 1) / p->group_rows + 1;
    p->tile_m = equal_parts(p->rows, TILE_M / p->group_rows * p->group_rows, p->group_rows);
    size_t tiles_m = (p->rows - 1) / p->tile_m + 1;
    p->tile_n = TILE_N;
    while (p->tile_n > PANEL && tiles_m * ((p->b->n - 1) / p->tile_n + 1) < 16) p->tile_n /= 2;
    p->tiles_n = (p->b->n - 1) / p->tile_n + 1;
    if (p->rounded.a) kernel_split(groups, piece_rows(p->group_rows * p->b->k), round_groups, p);
    parallel_for(tiles_m * p->tiles_n, run_tile, p);
}

void multiply_int8(size_t m, enum dtype a_type, const void *a, const struct panels *b, const struct result *c) {
    uint32_t integers[SCRATCH / 4];
    float d[SCRATCH / BLOCK];
    union extra_int8 extra[SCRATCH / 16];
    struct product_int8 p = {
        .v = simd(), .form = quant_form(b->dtype), .m = m, .a_type = a_type, .a = a, .b = b, .c = *c};
    p.panel_bytes = panel_int8_bytes(p.form, b->k);
    p.group_rows = equal_parts(m, p.v->int8->rows, 1);
    size_t most = SCRATCH / b->k / p.group_rows * p.group_rows;
    if (most)
        p.rounded = (struct rounded){integers, d, extra};
    else
        most = m; /* rows are longer than the scratch */
    for (p.first = 0; p.first < m; p.first += most) {
        p.rows = smaller(most, m - p.first);
        multiply_rows(&p);
    }
}
