/*
 * Products of 8-bit integers: quantized weights times activations that are rounded to 8 bits in blocks of 32. The sums
 * of a group of elements are exact; what follows is f32, in order of k, each operation rounded on its own. So an
 * element of c has the same bits whatever m, n, the tiles, the threads and the CPU path are.
 *
 * A tile goes through its panels and the chunks of each; a chunk is multiplied with all rows of the tile while it is in
 * the cache.
 */
#include <math.h>

#include "lib/kernel/kernel_internal.h"

#define SCRATCH (512 * 1024) /* activations that are rounded at a time, in bytes */
#define TILE_M  192
#define TILE_N  256
#define BLOCK   32
#define STEPS   (BLOCK / 4) /* four of k are a step */
#define TINIEST 0x1p-120f   /* magnitudes below have no inverse times 127; a block of them is zeros */

/* Rows of activations as integers, in groups: a micro-kernel reads those of a group side by side. */
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
    const struct kernel_panels *b;
    struct result c;
    size_t group_rows, first, rows; /* the current rows */
    struct rounded rounded;         /* all of them, when a is not NULL; else a tile rounds what it needs */
    size_t tile_m, tile_n, tiles_n, panel_bytes;
};

/* ---- activations ---- */

/* Blocks [block, block + blocks) of a row, to be side by side with those of the other rows of its group. */
static void round_row(const struct product_int8 *p, size_t row, size_t block, size_t blocks, size_t stride,
                      struct rounded to) {
    enum { AT_ONCE = 16 };
    float scratch[AT_ONCE * BLOCK];
    struct kernel_array a = {p->a_type, (void *)p->a};
    size_t groups = BLOCK / p->form->group;
    for (size_t i = 0; i < blocks; i += AT_ONCE) {
        size_t n = smaller(AT_ONCE, blocks - i);
        const float *x = array_get(p->v, a, row * p->b->k + (block + i) * BLOCK, n * BLOCK, scratch);
        p->v->int8->round(x, n, p->form, stride, to.a + i * STEPS * stride, to.d + i * stride,
                          to.extra + i * groups * stride);
    }
}

/* Start of a group of `rows` rounded rows, from a block on. */
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

/* One chunk of a panel for all rows of a tile. */
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
    const struct kernel_panels *b = p->b;
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

void multiply_int8(size_t m, enum dtype a_type, const void *a, const struct kernel_panels *b, const struct result *c) {
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
        most = m; /* rows longer than the scratch */
    for (p.first = 0; p.first < m; p.first += most) {
        p.rows = smaller(most, m - p.first);
        multiply_rows(&p);
    }
}

/* ---- for any CPU ---- */

/* To nearest even, |v| < 2^22. */
static inline int nearest(float v) {
    union {
        float f;
        int32_t i;
    } u = {.f = v + 0x1.8p23f};
    return u.i - 0x4b400000;
}

/* d = max |x| / 127, or NaN when an x is no number; integers nearest to x / d. */
static float round_block(const float *x, int8_t *q) {
    uint32_t bits[BLOCK], most = 0;
    float max;
    memcpy(bits, x, sizeof bits);
    for (int i = 0; i < BLOCK; i++) most = (bits[i] & 0x7fffffff) > most ? bits[i] & 0x7fffffff : most;
    memcpy(&max, &most, sizeof max);
    memset(q, 0, BLOCK);
    if (!(max < INFINITY)) return NAN;
    if (max < TINIEST) return 0;
    float inverse = 127 / max;
    for (int i = 0; i < BLOCK; i++) q[i] = (int8_t)nearest(x[i] * inverse);
    return max / 127;
}

void round_int8_portable(const float *x, size_t blocks, const struct quant_form *f, size_t stride, uint32_t *a,
                         float *d, union extra_int8 *extra) {
    for (size_t b = 0; b < blocks; b++, x += BLOCK, d += stride) {
        int8_t q[BLOCK];
        *d = round_block(x, q);
        for (int s = 0; s < STEPS; s++, a += stride) memcpy(a, q + 4 * s, 4);
        for (unsigned g = 0; g < BLOCK; g += f->group, extra += stride) {
            int32_t sum = 0;
            for (unsigned i = g; i < g + f->group; i++) sum += q[i];
            if (f->has_min)
                extra->times_min = (float)sum * *d;
            else
                extra->times_offset = -f->offset * sum;
        }
    }
}

/* Eight bits to the low bits of eight bytes. */
static inline uint64_t spread(uint8_t bits) {
    uint64_t x = bits * 0x0101010101010101u & 0x8040201008040201u; /* in each byte one that counts */
    return (x + 0x7f7f7f7f7f7f7f7fu) >> 7 & 0x0101010101010101u;
}

static void unpack_codes(const struct chunk_int8 *c, size_t steps, uint8_t *restrict to) {
    enum { STEP = 4 * PANEL };
    for (size_t s = 0; s < steps; s += 2)
        for (size_t i = 0; i < STEP; i++) {
            to[s * STEP + i] = c->codes[s / 2 * STEP + i] & 15;
            to[(s + 1) * STEP + i] = c->codes[s / 2 * STEP + i] >> 4;
        }
    const uint8_t *masks = c->masks;
    for (size_t s = 0; s < steps; s++)
        for (unsigned plane = 0; plane < c->planes; plane++)
            for (size_t i = 0; i < STEP; i += 8) {
                uint64_t x;
                memcpy(&x, to + s * STEP + i, sizeof x);
                x |= spread(*masks++) << (4 + plane);
                memcpy(to + s * STEP + i, &x, sizeof x);
            }
}

/* A factor of each group and column: f16, times a small integer where groups have one. */
static void unpack_factors(const uint8_t *f16, const int8_t *small, size_t groups, float *to) {
    for (size_t j = 0; j < PANEL; j++)
        for (size_t g = 0; g < groups; g++) {
            uint16_t h;
            memcpy(&h, f16 + ((small ? 0 : g) * PANEL + j) * sizeof h, sizeof h);
            to[g * PANEL + j] = f16_to_f32(h) * (small ? (float)small[g * PANEL + j] : 1);
        }
}

void unpack_int8(const struct block_int8 *t, struct unpacked_int8 *to) {
    bool in_bytes = t->form->bits == 8;
    to->codes = in_bytes ? t->b.codes : to->scratch;
    if (!in_bytes) unpack_codes(&t->b, t->blocks * STEPS, to->scratch);
    unpack_factors(t->b.d, t->b.scales, t->b.groups, to->scale);
    if (t->form->has_min) unpack_factors(t->b.min, t->b.mins, t->b.groups, to->min);
}

/* One row's sums over a group of elements, from codes of `steps` steps. */
static void sum_group(const uint8_t *codes, const uint32_t *a, size_t stride, size_t steps, int32_t *restrict sums) {
    for (size_t s = 0; s < steps; s++, codes += 4 * PANEL, a += stride) {
        int8_t x[4];
        memcpy(x, a, sizeof x);
        for (size_t j = 0; j < PANEL; j++)
            sums[j] +=
                codes[4 * j] * x[0] + codes[4 * j + 1] * x[1] + codes[4 * j + 2] * x[2] + codes[4 * j + 3] * x[3];
    }
}

static void multiply_portable(const struct block_int8 *t) {
    struct unpacked_int8 b;
    unpack_int8(t, &b);
    size_t per_block = BLOCK / t->form->group, steps = STEPS / per_block;
    if (!t->accumulate) memset(t->c, 0, t->rows * PANEL * sizeof *t->c);
    for (size_t g = 0; g < t->b.groups; g++)
        for (size_t row = 0; row < t->rows; row++) {
            const union extra_int8 *extra = &t->extra[g * t->rows + row];
            const float *scale = b.scale + g * PANEL, *min = b.min + g * PANEL;
            float *c = t->c + row * PANEL, d = t->d[g / per_block * t->rows + row];
            int32_t sums[PANEL];
            for (size_t j = 0; j < PANEL; j++) sums[j] = t->form->has_min ? 0 : extra->times_offset;
            sum_group(b.codes + g * steps * 4 * PANEL, t->a + g * steps * t->rows + row, t->rows, steps, sums);
            for (size_t j = 0; j < PANEL; j++) c[j] += (float)sums[j] * scale[j] * d;
            for (size_t j = 0; t->form->has_min && j < PANEL; j++) c[j] += min[j] * extra->times_min;
        }
}

const struct micro_int8 int8_portable = {
    .name = "portable", .rows = INT8_MAX_ROWS, .round = round_int8_portable, .multiply = multiply_portable};
