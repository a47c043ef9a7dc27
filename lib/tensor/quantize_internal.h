/*
 * Private to lib/tensor: shared by the block codecs (quantize_*.c) and convert.c.
 *
 * A codec works on whole blocks and knows nothing of rows, threads or errors. A vectorised twin is a function of the
 * same type that gives the same bytes; it is selected only in the type's struct element_type.
 *
 * Order of files, each calling only those before it: half, desc, quantize_fit_avx2, quantize_fit_avx512 (both of
 * quantize_fit_lanes.h), quantize_fit, codebooks, codebook, quantize_32, quantize_k_affine, quantize_k_symmetric,
 * quantize_iq1, quantize_iq2, quantize_iq3, quantize_iq4, quantize_mxfp4, quantize_ternary, plain, dtype (the table of
 * all types), convert, summary.
 */
#ifndef RILL_QUANTIZE_INTERNAL_H
#define RILL_QUANTIZE_INTERNAL_H

#include <math.h>

#include "lib/tensor/tensor.h"

/* Weights of the squared errors of rows. */
struct row_weights {
    const float *importance; /* [cols], the same for all rows */
    size_t cols, first;      /* index of the first element to be encoded, from the start of a row */
    float mean_square;       /* of the only row, for the 32-element types; the k-quants use that of each block */
};
/* From an element to the end of its row; NULL without weights. */
static inline const float *importance_of(const struct row_weights *w, size_t element) {
    return w ? w->importance + (w->first + element) % w->cols : NULL;
}

typedef void quant_decode_fn(const void *blocks, float *dst, size_t n_blocks);
/* `w` may be NULL. Returns n_blocks, or the index of the first block whose scale does not fit in f16. */
typedef size_t quant_encode_fn(const float *src, void *blocks, size_t n_blocks, const struct row_weights *w);

/* Convert one block; see quant_take_apart. */
typedef void quant_parts_fn(const uint8_t *block, struct quant_parts *p);
typedef void quant_join_fn(const struct quant_parts *p, uint8_t *block);

/*
 * All properties of an element type. The plain types are in plain.c; each quantized type is defined in the file of its
 * codec, and the tables of types are generated from the rows of QUANTIZED_TYPES in tensor.h.
 */
struct element_type {
    struct dtype_info info;
    quant_decode_fn *decode;
    quant_encode_fn *encode; /* NULL if read_only */

    /* A quantized block decodes to finite numbers if its f16 scale and min, at these offsets (-1: none), are finite
     * ... */
    int scale_at[2];
    bool (*is_finite)(const uint8_t *block); /* ... or, for other kinds of scales, if this returns true; else NULL */

    /* The integer form; NULL and zeros if quant_form returns NULL. */
    quant_parts_fn *parts;
    quant_join_fn *join;
    struct quant_form form;
};

#define DTYPE_DECLARE(upper, lower, ggml) extern const struct element_type lower##_type;
QUANTIZED_TYPES(DTYPE_DECLARE)
extern const struct element_type plain_types[]; /* ends with dtype 0 */

/* Returns NULL for an unknown number. */
const struct element_type *element_type(unsigned dtype);

quant_decode_fn f16_decode, bf16_decode; /* half.c */
quant_encode_fn f16_encode, bf16_encode;

/* The fields common to the info of quantized types. */
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

/* Returns false if v is too large for f16 (or NaN): the block would decode to infinities. */
static inline bool store_f16(uint8_t *p, float v) {
    uint16_t h = f32_to_f16(v);
    put_bits(p, h);
    return (h & 0x7c00) != 0x7c00;
}

/* ---- the two low bits of the 256 codes of Q2_K and Q3_K: per 128, byte l has those of l, l + 32, l + 64, l + 96 -- */

static inline void pack_2_bits(const uint8_t codes[256], uint8_t p[64]) {
    for (int half = 0; half < 2; half++, codes += 128, p += 32)
        for (int l = 0; l < 32; l++)
            p[l] = (uint8_t)((codes[l] & 3) | (codes[l + 32] & 3) << 2 | (codes[l + 64] & 3) << 4 |
                             (codes[l + 96] & 3) << 6);
}

/* Unpacks the sixteen codes of sub-block s. */
static inline void unpack_2_bits(const uint8_t p[64], int s, uint8_t codes[16]) {
    const uint8_t *bytes = p + s / 8 * 32 + s % 2 * 16;
    int shift = s / 2 % 4 * 2;
    for (int i = 0; i < 16; i++) codes[i] = bytes[i] >> shift & 3;
}

/* ---- searches for scales (quantize_fit.c); README.md explains the method ---- */

#define FIT_MAX_GROUP   32        /* elements in a group */
#define FIT_NEARLY_ZERO 1e-15f    /* a group with smaller magnitudes is stored as zeros */
#define ROUNDING        0x1.8p23f /* adding and subtracting it rounds to an integer */

/* Rounds v to nearest, ties to even, and clamps to [low, high]; NaN gives low. |low|, |high| < 2^22. */
static inline int nearest_code(float v, int low, int high) {
    v = v > (float)low ? v : (float)low;
    v = v < (float)high ? v : (float)high;
    return (int)(v + ROUNDING - ROUNDING);
}

/* Of n elements, a multiple of 8; NaNs do not count. In eight parts, which the compiler keeps in vectors: a maximum does
 * not depend on the order. */
static inline float largest_magnitude(const float *x, size_t n) {
    enum { PARTS = 8 };
    float part[PARTS] = {0}, max = 0;
    for (size_t j = 0; j < n; j += PARTS)
        for (size_t k = 0; k < PARTS; k++) {
            float v = fabsf(x[j + k]);
            part[k] = v > part[k] ? v : part[k];
        }
    for (size_t k = 0; k < PARTS; k++) max = part[k] > max ? part[k] : max;
    return max;
}

/* The trial scales are range / (top + first + step * i) for i in [0, n]. */
struct fit_search {
    float first, step;
    int n;
    bool absolute; /* compare trials by absolute error, not squared error */
    bool rms;      /* without weights: |x| plus the root mean square of the group, instead of |x| alone */
};
struct fit_result {
    uint8_t *codes;                     /* [groups][n] */
    float *scales, *minus_mins, *sum_w; /* [groups]; the min negated, and the sum of the group's weights */
};

/* w = importance * sqrt(mean_square + x^2). */
void fit_weigh(size_t n, const float *x, const float *importance, float mean_square, float *w);

/* codes = nearest_code((x + add) / scale, low, high) - low. */
void fit_round(size_t n, const float *x, float add, float scale, int low, int high, uint8_t *codes);

/*
 * For each of n_groups groups of n elements, contiguous in x, w and codes: finds scale >= 0, min <= 0 and codes in [0,
 * top] that minimise sum w (scale * code + min - x)^2 over the trials. w may be NULL: see fit_search.
 */
void fit_affine(size_t n_groups, int n, int top, const float *x, const float *w, const struct fit_search *search,
                const struct fit_result *fit);

/* The same without a min, and with codes in [-half, half), stored as code + half (all 0 if x is 0). A scale may be
 * negative. */
void fit_symmetric(size_t n_groups, int n, int half, const float *x, const float *w, uint8_t *codes, float *scales);

/* The same for one group; improves plain rounding by coordinate descent over the codes. Returns the scale. */
float fit_descent(int n, int half, const float *x, const float *w, uint8_t *codes);

/* For one group with x >= 0, codes in [0, top] and no min: trial scales, then coordinate descent. Quantizes the scales
 * of sub-blocks. Returns the scale. */
float fit_positive(int n, int top, const float *x, const float *w, uint8_t *codes);

/* Implementations of all of these but fit_descent and fit_positive: one group at a time, and, where the processor
 * supports it (fit_has_*), 8 or 16 groups with n 16 or 32. */
#define FIT_AT_ONCE 16
void fit_affine_scalar(int n, int top, const float *x, const float *w, const struct fit_search *search,
                       const struct fit_result *fit);
float fit_symmetric_scalar(int n, int half, const float *x, const float *w, uint8_t *codes);
void fit_round_scalar(size_t n, const float *x, float add, float scale, int low, int high, uint8_t *codes);
void fit_weigh_scalar(size_t n, const float *x, const float *importance, float mean_square, float *w);
typedef void fit_affine_fn(int n, int top, const float *x, const float *w, const struct fit_search *search,
                           const struct fit_result *fit);
typedef void fit_symmetric_fn(int n, int half, const float *x, const float *w, uint8_t *codes, float *scales);
typedef void fit_weigh_fn(size_t n, const float *x, const float *importance, float mean_square, float *w);
bool fit_has_avx2(void), fit_has_avx512(void);
typedef void fit_round_fn(size_t n, const float *x, float add, float scale, int low, int high, uint8_t *codes);
fit_round_fn fit_round_avx2, fit_round_avx512;
fit_weigh_fn fit_weigh_avx2, fit_weigh_avx512;
fit_affine_fn fit_affine_avx2, fit_affine_avx512;
fit_symmetric_fn fit_symmetric_avx2, fit_symmetric_avx512;

#endif
