/*
 * Private to lib/tensor: what the block codecs (quantize_*.c) and convert.c share.
 *
 * A codec works on whole blocks and knows nothing of rows, threads or errors. A vectorised twin is a function of the
 * same type that gives the same bytes; the type's struct element_type is the one place to choose it.
 *
 * Order of files, each calling only those before it: half, desc, quantize_fit_avx2, quantize_fit_avx512 (both of quantize_fit_lanes.h), quantize_fit, codebooks, codebook,
 * quantize_32, quantize_k_affine, quantize_k_symmetric, quantize_iq1, quantize_iq2, quantize_iq3, quantize_iq4,
 * quantize_mxfp4, quantize_ternary, plain, dtype (the table of them all), convert, summary.
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

/* One block; see quant_take_apart. */
typedef void quant_parts_fn(const uint8_t *block, struct quant_parts *p);
typedef void quant_join_fn(const struct quant_parts *p, uint8_t *block);

/*
 * All that is known of an element type. Those of plain types are in plain.c; each quantized type has one in the file of its
 * codec, and a row in tensor.h's QUANTIZED_TYPES makes the tables of it.
 */
struct element_type {
    struct dtype_info info;
    quant_decode_fn *decode;
    quant_encode_fn *encode; /* NULL: read_only */

    /* What can make a quantized block decode to a non-number: its f16 scale and min, and where they are (-1: none) ... */
    int scale_at[2];
    bool (*is_finite)(const uint8_t *block); /* ... or, where the scale is no f16 of its own, an answer. Else NULL */

    /* As integers; NULL and zeros where quant_form says NULL. */
    quant_parts_fn *parts;
    quant_join_fn *join;
    struct quant_form form;
};

#define DTYPE_DECLARE(upper, lower, ggml) extern const struct element_type lower##_type;
QUANTIZED_TYPES(DTYPE_DECLARE)
extern const struct element_type plain_types[]; /* ends with dtype 0 */

/* NULL for a number that is not known. */
const struct element_type *element_type(unsigned dtype);

quant_decode_fn f16_decode, bf16_decode; /* half.c */
quant_encode_fn f16_encode, bf16_encode;

/* Most of the info of a quantized type. */
#define BLOCK_INFO(upper, text, elems, bytes, llama_file_type)                                                         \
    .dtype = DT_##upper, .name = text, .block_elems = elems, .block_bytes = bytes, .ggml_type = DT_##upper - 64,       \
    .is_quantized = true, .file_type = llama_file_type

/* ---- the f16 fields of a block: little-endian, unaligned ---- */

static inline uint16_t f16_bits(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}

static inline void put_bits(uint8_t *p, uint16_t h) {
    p[0] = (uint8_t)h;
    p[1] = (uint8_t)(h >> 8);
}

static inline float load_f16(const uint8_t *p) {
    return f16_to_f32(f16_bits(p));
}

/* False when the value is too large for f16 (or NaN): the block would decode to infinities. */
static inline bool store_f16(uint8_t *p, float v) {
    uint16_t h = f32_to_f16(v);
    put_bits(p, h);
    return (h & 0x7c00) != 0x7c00;
}

/* ---- the two low bits of Q2_K's and Q3_K's 256 codes: per 128, byte l holds those of l, l + 32, l + 64, l + 96 ---- */

static inline void pack_2_bits(const uint8_t codes[256], uint8_t p[64]) {
    for (int half = 0; half < 2; half++, codes += 128, p += 32)
        for (int l = 0; l < 32; l++)
            p[l] = (uint8_t)((codes[l] & 3) | (codes[l + 32] & 3) << 2 | (codes[l + 64] & 3) << 4 |
                             (codes[l + 96] & 3) << 6);
}

/* Of the sixteen elements from 16 s on. */
static inline void unpack_2_bits(const uint8_t p[64], int s, uint8_t codes[16]) {
    const uint8_t *bytes = p + s / 8 * 32 + s % 2 * 16;
    int shift = s / 2 % 4 * 2;
    for (int i = 0; i < 16; i++) codes[i] = bytes[i] >> shift & 3;
}

/* ---- searches for scales (quantize_fit.c); README.md tells the method ---- */

#define FIT_MAX_GROUP   32        /* elements in a group */
#define FIT_NEARLY_ZERO 1e-15f    /* a group whose magnitudes are below this is stored as zeros */
#define ROUNDING        0x1.8p23f /* added and subtracted: the sum has no room for a fraction */

/* v rounded to nearest, ties to even, and clamped to [low, high]; low for NaN. |low|, |high| < 2^22. */
static inline int nearest_code(float v, int low, int high) {
    v = v > (float)low ? v : (float)low;
    v = v < (float)high ? v : (float)high;
    return (int)(v + ROUNDING - ROUNDING);
}

/* The trial scales are range / (top + first + step * i) for i in [0, n]. */
struct fit_search {
    float first, step;
    int n;
    bool absolute; /* compare trials by the absolute error, not the squared */
};

/*
 * For each of n_groups groups of n elements, which are contiguous in x, w and codes: finds scale >= 0, min <= 0
 * and codes in [0, top] that make sum w (scale * code + min - x)^2 small. minus_mins holds -min.
 */
void fit_affine(size_t n_groups, int n, int top, const float *x, const float *w, const struct fit_search *search,
                uint8_t *codes, float *scales, float *minus_mins);

/* The same with codes in [-half, half) and no min. codes holds code + half (all 0 when x is 0). A scale has any sign. */
void fit_symmetric(size_t n_groups, int n, int half, const float *x, const float *w, uint8_t *codes, float *scales);

/* The same for one group, improving plain rounding code by code. Returns the scale. */
float fit_descent(int n, int half, const float *x, const float *w, uint8_t *codes);

/* One group, x >= 0, codes in [0, top], no min: trial scales, then code by code. For the scales of scales. */
float fit_positive(int n, int top, const float *x, const float *w, uint8_t *codes);

/* The implementations of the first two: one group at a time, and where the processor can (fit_has_*) 8 and 16, n 16 or 32. */
#define FIT_AT_ONCE 16
float fit_affine_scalar(int n, int top, const float *x, const float *w, const struct fit_search *search, uint8_t *codes,
                        float *minus_min);
float fit_symmetric_scalar(int n, int half, const float *x, const float *w, uint8_t *codes);
typedef void fit_affine_fn(int n, int top, const float *x, const float *w, const struct fit_search *search,
                           uint8_t *codes, float *scales, float *minus_mins);
typedef void fit_symmetric_fn(int n, int half, const float *x, const float *w, uint8_t *codes, float *scales);
bool fit_has_avx2(void), fit_has_avx512(void);
fit_affine_fn fit_affine_avx2, fit_affine_avx512;
fit_symmetric_fn fit_symmetric_avx2, fit_symmetric_avx512;

#endif
