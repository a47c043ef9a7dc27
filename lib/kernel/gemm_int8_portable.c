/* Products of 8-bit integers for any CPU: rounding of activations, unpacking of a chunk, the micro-kernel. */
#include <math.h>

#include "lib/kernel/kernel_internal.h"

#define BLOCK   32
#define STEPS   (BLOCK / 4) /* per block; a step is four elements of k */
#define TINIEST 0x1p-120f   /* near the point where 127 / |x| overflows; a block below counts as zeros */

/* Rounds to nearest even; |v| < 2^22. */
static inline int nearest(float v) {
    union {
        float f;
        int32_t i;
    } u = {.f = v + 0x1.8p23f};
    return u.i - 0x4b400000;
}

/* Rounds x to integers q nearest to x / d and returns d = max |x| / 127, or NaN if an element is not finite. */
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

/* Spreads eight bits to the lowest bits of eight bytes. */
static inline uint64_t spread(uint8_t bits) {
    uint64_t x = bits * 0x0101010101010101u & 0x8040201008040201u; /* one significant bit in each byte */
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

/* The factors of each group and column: an f16, times a small integer for types that have one per group. */
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

/* The sums of one row over a group of elements, `steps` steps of codes. */
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
