/*
 * Private to lib/tensor: what the block codecs (quantize_32.c, quantize_k.c) and convert.c share.
 *
 * A codec works on whole blocks and knows nothing of rows, threads or errors. A vectorised twin is a function of the
 * same type that gives the same bytes; convert.c's table is the one place to choose it.
 */
#ifndef RILL_QUANTIZE_INTERNAL_H
#define RILL_QUANTIZE_INTERNAL_H

#include "lib/tensor/tensor.h"

/* What weighs the squared error of each element of a row. */
struct row_weights {
    const float *importance; /* of the first element encoded */
    float mean_square;       /* of the whole row; the 32-element types use it, the k-quants take each block's own */
};

typedef void quant_decode_fn(const void *blocks, float *dst, size_t n_blocks);
/* `w` may be NULL. Returns n_blocks, or the number of the first block whose scale is not representable in f16. */
typedef size_t quant_encode_fn(const float *src, void *blocks, size_t n_blocks, const struct row_weights *w);

quant_decode_fn q4_0_decode, q4_1_decode, q5_0_decode, q5_1_decode, q8_0_decode;
quant_encode_fn q4_0_encode, q4_1_encode, q5_0_encode, q5_1_encode, q8_0_encode;
quant_decode_fn q4_k_decode, q5_k_decode, q6_k_decode;
quant_encode_fn q4_k_encode, q5_k_encode, q6_k_encode;

/* ---- the f16 fields of a block: little-endian, unaligned ---- */

static inline float load_f16(const uint8_t *p) {
    return f16_to_f32((uint16_t)(p[0] | p[1] << 8));
}

/* False when the value is too large for f16 (or NaN): the block would decode to infinities. */
static inline bool store_f16(uint8_t *p, float v) {
    uint16_t h = f32_to_f16(v);
    p[0] = (uint8_t)h;
    p[1] = (uint8_t)(h >> 8);
    return (h & 0x7c00) != 0x7c00;
}

/* ---- searches for scales (quantize_fit.c); README.md tells the method ---- */

/* v rounded to nearest, ties to even, and clamped. Any v is safe; NaN gives an arbitrary code in range. */
static inline int nearest_code(float v, int low, int high) {
    /* Adding 1.5 * 2^23 leaves the integer in the low bits of the sum: the hardware rounds, without a call to rintf. */
    const float magic = 12582912.0f, limit = 4194303.0f;
    union {
        float f;
        uint32_t u;
    } sum = {.f = (v < -limit ? -limit : v > limit ? limit : v) + magic};
    int i = (int)(sum.u & 0x7fffff) - 0x400000;
    return i < low ? low : i > high ? high : i;
}

/* The trial scales are range / (top + first + step * i) for i in [0, n]. */
struct fit_search {
    float first, step;
    int n;
};

/*
 * Finds scale >= 0, min <= 0 and codes in [0, top] that make sum w (scale * code + min - x)^2 small.
 * Returns scale; *minus_min is -min.
 */
float fit_affine(int n, int top, const float *x, const float *w, const struct fit_search *search, uint8_t *codes,
                 float *minus_min);

/* The same with codes in [-half, half) and no min. codes hold code + half (all 0 when x is 0). The scale has any sign. */
float fit_symmetric(int n, int half, const float *x, const float *w, uint8_t *codes);

/* The same for x >= 0, codes in [0, top], no min; improves code by code. For the scales of scales. */
float fit_positive(int n, int top, const float *x, const float *w, uint8_t *codes);

#endif
