/*
 * The types of 32-element blocks. Q4_0, Q5_0: x = (q - half) d. Q4_1, Q5_1: x = q d + m. Q8_0: x = q d.
 *
 *     f16 d | f16 m (the _1 types) | u8 qh[4] (the 5-bit types) | u8 qs[16]: byte j = code j | code (j + 16) << 4
 *
 * One implementation serves the four 4- and 5-bit types; the compiler folds the constants.
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "lib/tensor/quantize_internal.h"

#define N      32
#define INLINE static inline __attribute__((always_inline))

/* ---- packing codes into nibbles ---- */

INLINE size_t block_size(int bits, bool has_min) {
    return 2u + (has_min ? 2u : 0u) + (bits == 5 ? 4u : 0u) + 16u;
}

INLINE void unpack(const uint8_t *p, int bits, uint8_t codes[N]) {
    uint32_t high = 0; /* bit j is the fifth bit of code j */
    if (bits == 5) {
        high = (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
        p += 4;
    }
    for (int j = 0; j < N / 2; j++) {
        codes[j] = (uint8_t)((p[j] & 15) | (high >> j & 1) << 4);
        codes[j + 16] = (uint8_t)(p[j] >> 4 | (high >> (j + 16) & 1) << 4);
    }
}

INLINE void pack(const uint8_t codes[N], int bits, uint8_t *p) {
    if (bits == 5) {
        uint32_t high = 0;
        for (int j = 0; j < N; j++) high |= (uint32_t)(codes[j] >> 4) << j;
        for (int k = 0; k < 4; k++) *p++ = (uint8_t)(high >> 8 * k);
    }
    for (int j = 0; j < N / 2; j++) p[j] = (uint8_t)((codes[j] & 15) | (codes[j + 16] & 15) << 4);
}

/* ---- decoding ---- */

INLINE void decode(const uint8_t *block, float *y, size_t n_blocks, int bits, bool has_min) {
    for (size_t b = 0; b < n_blocks; b++, block += block_size(bits, has_min), y += N) {
        uint8_t codes[N];
        float d = load_f16(block);
        unpack(block + (has_min ? 4 : 2), bits, codes);
        if (has_min) {
            float m = load_f16(block + 2);
            for (int j = 0; j < N; j++) y[j] = (float)codes[j] * d + m;
        } else {
            for (int j = 0; j < N; j++) y[j] = (float)(codes[j] - (1 << (bits - 1))) * d;
        }
    }
}

INLINE void take_apart(const uint8_t *block, struct quant_parts *p, int bits, bool has_min) {
    p->d = f16_bits(block);
    p->min = has_min ? f16_bits(block + 2) : 0;
    p->scales[0] = p->mins[0] = 1;
    unpack(block + (has_min ? 4 : 2), bits, p->codes);
}

INLINE void join(const struct quant_parts *p, uint8_t *block, int bits, bool has_min) {
    put_bits(block, p->d);
    if (has_min) put_bits(block + 2, p->min);
    pack(p->codes, bits, block + (has_min ? 4 : 2));
}

/* ---- encoding: plain rounding without weights; with weights, the searches of quantize_fit.c ---- */

/* 1/d, or 0 if that overflows: d is then 0 in f16, and every code decodes to the same value. */
INLINE float inverse_of(float d) {
    float inverse = d != 0 ? 1.0f / d : 0.0f;
    return isinf(inverse) ? 0.0f : inverse;
}

/* The element of largest magnitude gets code 0, which stands for -half. */
INLINE float round_symmetric(const float *x, int bits, uint8_t codes[N]) {
    float extreme = 0, half = (float)(1 << (bits - 1));
    int top = (1 << bits) - 1;
    for (int j = 0; j < N; j++)
        if (fabsf(x[j]) > fabsf(extreme)) extreme = x[j];
    float d = extreme / -half, inverse = inverse_of(d);
    for (int j = 0; j < N; j++) {
        int code = (int)(x[j] * inverse + (half + 0.5f));
        codes[j] = (uint8_t)(code > top ? top : code);
    }
    return d;
}

INLINE float round_affine(const float *x, int bits, uint8_t codes[N], float *min) {
    float low = FLT_MAX, high = -FLT_MAX;
    int top = (1 << bits) - 1;
    for (int j = 0; j < N; j++) {
        if (x[j] < low) low = x[j];
        if (x[j] > high) high = x[j];
    }
    float d = (high - low) / (float)top, inverse = inverse_of(d);
    *min = low;
    if (isinf(d)) return d; /* the caller reports it */
    for (int j = 0; j < N; j++) {
        int code = (int)((x[j] - low) * inverse + 0.5f);
        codes[j] = (uint8_t)(code > top ? top : code);
    }
    return d;
}

/* As many blocks as the vectorised search processes at once. */
#define BATCH FIT_AT_ONCE

/* The fit of a batch of blocks before it is packed. */
struct batch {
    uint8_t codes[BATCH * N];
    float scales[BATCH], mins[BATCH], sum_w[BATCH];
};

INLINE void fit_batch(const float *x, size_t n_blocks, const float *importance, float mean_square, int bits,
                      bool has_min, struct batch *b) {
    static const struct fit_search search = {-0.9f, 0.05f, 36, false};
    float weights[BATCH * N];
    fit_weigh(n_blocks * N, x, importance, mean_square, weights);
    if (!has_min) {
        fit_symmetric(n_blocks, N, 1 << (bits - 1), x, weights, b->codes, b->scales);
        return;
    }
    fit_affine(n_blocks, N, (1 << bits) - 1, x, weights, &search,
               &(struct fit_result){b->codes, b->scales, b->mins, b->sum_w});
    for (size_t k = 0; k < n_blocks; k++) b->mins[k] = -b->mins[k];
}

INLINE void round_batch(const float *x, size_t n_blocks, int bits, bool has_min, struct batch *b) {
    for (size_t k = 0; k < n_blocks; k++)
        b->scales[k] = has_min ? round_affine(x + k * N, bits, b->codes + k * N, &b->mins[k])
                               : round_symmetric(x + k * N, bits, b->codes + k * N);
}

INLINE size_t encode(const float *x, uint8_t *block, size_t n_blocks, const struct row_weights *w, int bits,
                     bool has_min) {
    struct batch b;
    for (size_t first = 0; first < n_blocks; first += BATCH) {
        size_t n = n_blocks - first < BATCH ? n_blocks - first : BATCH;
        if (w)
            fit_batch(x + first * N, n, importance_of(w, first * N), w->mean_square, bits, has_min, &b);
        else
            round_batch(x + first * N, n, bits, has_min, &b);
        for (size_t k = 0; k < n; k++, block += block_size(bits, has_min)) {
            if (!store_f16(block, b.scales[k]) || (has_min && !store_f16(block + 2, b.mins[k]))) return first + k;
            pack(b.codes + k * N, bits, block + (has_min ? 4 : 2));
        }
    }
    return n_blocks;
}

/* ---- the types ---- */

#define CODEC(name, bits, has_min)                                                                                     \
    static void name##_decode(const void *blocks, float *dst, size_t n_blocks) {                                       \
        decode(blocks, dst, n_blocks, bits, has_min);                                                                  \
    }                                                                                                                  \
    static void name##_parts(const uint8_t *block, struct quant_parts *p) {                                            \
        take_apart(block, p, bits, has_min);                                                                           \
    }                                                                                                                  \
    static void name##_join(const struct quant_parts *p, uint8_t *block) {                                             \
        join(p, block, bits, has_min);                                                                                 \
    }                                                                                                                  \
    static size_t name##_encode(const float *src, void *blocks, size_t n_blocks, const struct row_weights *w) {        \
        return encode(src, blocks, n_blocks, w, bits, has_min);                                                        \
    }
CODEC(q4_0, 4, false)
CODEC(q4_1, 4, true)
CODEC(q5_0, 5, false)
CODEC(q5_1, 5, true)

const struct element_type q4_0_type = {
    .info = {BLOCK_INFO(Q4_0, "q4_0", N, 18, 2), .weighed = true, .summary = "blocks of 32"},
    .decode = q4_0_decode,
    .encode = q4_0_encode,
    .scale_at = {0, -1},
    .parts = q4_0_parts,
    .join = q4_0_join,
    .form = {DT_Q4_0, 4, N, 8, false, false, 1, 1, 15, NULL},
};
const struct element_type q4_1_type = {
    .info = {BLOCK_INFO(Q4_1, "q4_1", N, 20, 3), .weighed = true, .summary = "blocks of 32 with a minimum"},
    .decode = q4_1_decode,
    .encode = q4_1_encode,
    .scale_at = {0, 2},
    .parts = q4_1_parts,
    .join = q4_1_join,
    .form = {DT_Q4_1, 4, N, 0, true, false, 1, 1, 15, NULL},
};
const struct element_type q5_0_type = {
    .info = {BLOCK_INFO(Q5_0, "q5_0", N, 22, 8), .weighed = true, .summary = "blocks of 32"},
    .decode = q5_0_decode,
    .encode = q5_0_encode,
    .scale_at = {0, -1},
    .parts = q5_0_parts,
    .join = q5_0_join,
    .form = {DT_Q5_0, 5, N, 16, false, false, 1, 1, 31, NULL},
};
const struct element_type q5_1_type = {
    .info = {BLOCK_INFO(Q5_1, "q5_1", N, 24, 9), .weighed = true, .summary = "blocks of 32 with a minimum"},
    .decode = q5_1_decode,
    .encode = q5_1_encode,
    .scale_at = {0, 2},
    .parts = q5_1_parts,
    .join = q5_1_join,
    .form = {DT_Q5_1, 5, N, 0, true, false, 1, 1, 31, NULL},
};

#define Q8_SIZE (2 + N)

static void q8_0_decode(const void *blocks, float *dst, size_t n_blocks) {
    const uint8_t *block = blocks;
    for (size_t b = 0; b < n_blocks; b++, block += Q8_SIZE, dst += N) {
        float d = load_f16(block);
        int8_t codes[N];
        memcpy(codes, block + 2, N);
        for (int j = 0; j < N; j++) dst[j] = (float)codes[j] * d;
    }
}

static void q8_0_parts(const uint8_t *block, struct quant_parts *p) {
    p->d = f16_bits(block);
    p->min = 0;
    p->scales[0] = p->mins[0] = 1;
    for (int j = 0; j < N; j++) p->codes[j] = block[2 + j] ^ 0x80; /* + 128 */
}

static void q8_0_join(const struct quant_parts *p, uint8_t *block) {
    put_bits(block, p->d);
    for (int j = 0; j < N; j++) block[2 + j] = p->codes[j] ^ 0x80;
}

/* roundf without the call: to nearest, ties away from zero. Exact for |v| < 2^23. */
INLINE int round_away(float v) {
    int i = (int)v;
    float rest = v - (float)i;
    return i + (rest >= 0.5f) - (rest <= -0.5f);
}

/* With eight bits a search gains nothing, so the weights are not used. Ties round away from zero. */
static size_t q8_0_encode(const float *src, void *blocks, size_t n_blocks, const struct row_weights *w) {
    (void)w;
    uint8_t *block = blocks;
    for (size_t b = 0; b < n_blocks; b++, block += Q8_SIZE, src += N) {
        float d = largest_magnitude(src, N) / 127, inverse = inverse_of(d);
        if (!store_f16(block, d)) return b;
        int8_t codes[N]; /* a local copy, which does not alias src */
        for (int j = 0; j < N; j++) codes[j] = (int8_t)round_away(src[j] * inverse);
        memcpy(block + 2, codes, N);
    }
    return n_blocks;
}

const struct element_type q8_0_type = {
    .info = {BLOCK_INFO(Q8_0, "q8_0", N, Q8_SIZE, 7), .summary = "nearly lossless"},
    .decode = q8_0_decode,
    .encode = q8_0_encode,
    .scale_at = {0, -1},
    .parts = q8_0_parts,
    .join = q8_0_join,
    .form = {DT_Q8_0, 8, N, 128, false, false, 1, 1, 255, NULL},
};
