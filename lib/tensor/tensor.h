/*
 * tensor: element types (plain and GGUF's quantized blocks), shapes, and conversion to and from f32.
 *
 * Shapes are row-major: dims[rank-1] is contiguous (the order of numpy and PyTorch; GGUF's ne[] is reversed). Quantized
 * types group the contiguous dimension into blocks; a block never spans two rows.
 */
#ifndef RILL_TENSOR_H
#define RILL_TENSOR_H

#include "lib/base/base.h"

/*
 * GGUF's quantized types: enumerator, C name, GGUF's number. A type is a row here and a file that defines `struct
 * element_type NAME_type`: see README.md, "How to add a type".
 */
#define QUANTIZED_TYPES(X)                                                                                             \
    X(Q4_0, q4_0, 2)                                                                                                   \
    X(Q4_1, q4_1, 3)                                                                                                   \
    X(Q5_0, q5_0, 6)                                                                                                   \
    X(Q5_1, q5_1, 7)                                                                                                   \
    X(Q8_0, q8_0, 8)                                                                                                   \
    X(Q2_K, q2_k, 10)                                                                                                  \
    X(Q3_K, q3_k, 11)                                                                                                  \
    X(Q4_K, q4_k, 12)                                                                                                  \
    X(Q5_K, q5_k, 13)                                                                                                  \
    X(Q6_K, q6_k, 14)                                                                                                  \
    X(IQ2_XXS, iq2_xxs, 16)                                                                                            \
    X(IQ2_XS, iq2_xs, 17)                                                                                              \
    X(IQ3_XXS, iq3_xxs, 18)                                                                                            \
    X(IQ1_S, iq1_s, 19)                                                                                                \
    X(IQ4_NL, iq4_nl, 20)                                                                                              \
    X(IQ3_S, iq3_s, 21)                                                                                                \
    X(IQ2_S, iq2_s, 22)                                                                                                \
    X(IQ4_XS, iq4_xs, 23)                                                                                              \
    X(IQ1_M, iq1_m, 29)                                                                                                \
    X(TQ1_0, tq1_0, 34)                                                                                                \
    X(TQ2_0, tq2_0, 35)                                                                                                \
    X(MXFP4, mxfp4, 39)

/* Numbers on the wire, fixed forever. Quantized types are 64 + their GGUF number. */
#define DTYPE_QUANTIZED(upper, lower, ggml) DT_##upper = 64 + (ggml),
enum dtype {
    DT_F32 = 1,
    DT_F16 = 2,
    DT_BF16 = 3,
    DT_F64 = 4,
    DT_I8 = 5,
    DT_I16 = 6,
    DT_I32 = 7,
    DT_I64 = 8,
    DT_U8 = 9,
    DT_U16 = 10,
    DT_U32 = 11,
    DT_U64 = 12,
    QUANTIZED_TYPES(DTYPE_QUANTIZED)
};

struct dtype_info {
    enum dtype dtype;
    const char *name;     /* "f32", "q4_k": lower case, as on the command line */
    uint32_t block_elems; /* elements in a block: 1 for plain types */
    uint32_t block_bytes; /* bytes in a block */
    int ggml_type;        /* GGUF's number, or -1 */
    bool is_float;        /* a plain floating-point type */
    bool is_quantized;    /* blocks of more than one element */

    /* For types that weights in a GGUF file can have. */
    int file_type;         /* llama.cpp's enum llama_ftype for files whose weights are mostly of this type; -1: none */
    const char *summary;   /* for help: "blocks of 32 with a minimum" */
    unsigned fallback;     /* type used for rows that are not whole blocks, as in llama.cpp; 0: f16 */
    bool read_only;        /* decoded, but not produced by tensor_from_f32 */
    bool weighed;          /* importance affects the result of tensor_from_f32 */
    bool needs_importance; /* so coarse that llama-quantize refuses to produce it without importance */
};

/* Return NULL for a number, name or GGUF type unknown to this version. */
const struct dtype_info *dtype_info(unsigned dtype);
const struct dtype_info *dtype_by_name(const char *name);
const struct dtype_info *dtype_by_ggml(int ggml_type);
/* Iterates over all known types, for help texts and tests: NULL past the end. */
const struct dtype_info *dtype_at(size_t index);

#define TENSOR_MAX_RANK 8
#define TENSOR_MAX_NAME 1024

/* Name, type and shape of a tensor. */
struct tensor_desc {
    char name[TENSOR_MAX_NAME + 1];
    enum dtype dtype;
    unsigned rank;                  /* 0 (a scalar) to TENSOR_MAX_RANK */
    uint64_t dims[TENSOR_MAX_RANK]; /* row-major */
};

/* A tensor in memory. Functions that return one state who owns `data`. */
struct tensor {
    struct tensor_desc desc;
    void *data;
    uint64_t n_bytes;
};

/* Fills *d. ERR_DATA for an invalid name or rank, a size that overflows, or rows that are not whole blocks. */
int tensor_desc_init(struct tensor_desc *d, const char *name, enum dtype dtype, unsigned rank, const uint64_t *dims,
                     struct err *e) MUST_CHECK;
/* Checks name, dtype, rank, all products (including padding to 64) and whole blocks per row; returns the sizes.
 * ERR_DATA. */
int tensor_desc_check(const struct tensor_desc *d, uint64_t *n_elems, uint64_t *n_bytes, struct err *e) MUST_CHECK;
/* For a desc that was checked. */
uint64_t tensor_elems(const struct tensor_desc *d);
uint64_t tensor_bytes(const struct tensor_desc *d);
uint64_t tensor_row_elems(const struct tensor_desc *d);       /* dims[rank-1]; 1 for a scalar */
uint64_t tensor_rows(const struct tensor_desc *d);            /* elements / row elements */
uint64_t dtype_row_bytes(enum dtype dtype, uint64_t n_elems); /* n_elems a multiple of the block */
bool tensor_same_shape(const struct tensor_desc *a, const struct tensor_desc *b);
/* Writes e.g. "[49152, 576]" to out and returns out. */
char *tensor_shape_text(const struct tensor_desc *d, char *out, size_t size);

/* Half-precision conversions: round to nearest even; a NaN stays a NaN. */
float f16_to_f32(uint16_t h);
uint16_t f32_to_f16(float f);
static inline float bf16_to_f32(uint16_t h) {
    union {
        uint32_t u;
        float f;
    } v = {.u = (uint32_t)h << 16};
    return v.f;
}
uint16_t f32_to_bf16(float f);

/*
 * Converts n elements (whole blocks) of any type to f32. Integers convert exactly where f32 can represent them.
 * Dequantization is bit-exact with ggml's reference (same order of f32 operations). Large n are split among threads.
 * Here and below the encoded side may have any alignment.
 */
void tensor_to_f32(enum dtype dtype, const void *src, float *dst, uint64_t n);

/*
 * Converts n elements (whole blocks) of f32 to any type. Plain types round to nearest even; integers saturate, and NaN
 * becomes 0. Quantized types use the search of GGUF's reference quantizer and give its bytes. `importance` ([n], one
 * per element, finite, >= 0: the mean square of the activations that multiply each column) weights the squared error of
 * types that are `weighed`; n must then be ONE row, because some types use statistics of the whole row. NULL: GGUF's
 * default weights; n may be many rows. ERR_USAGE if the type is read_only. ERR_DATA, for quantized types only, if a
 * value is NaN, infinite or so large (beyond about 500,000) that its block's f16 scale overflows; the message names the
 * elements.
 */
int tensor_from_f32(enum dtype dtype, const float *src, void *dst, uint64_t n, const float *importance,
                    struct err *e) MUST_CHECK;

/*
 * The same for rows of cols elements (whole blocks) each, whose columns have the same importance [cols], or NULL; also
 * ERR_DATA if a result is not finite. The message names the row, counted from `first` on, and the element in it.
 */
int tensor_rows_from_f32(enum dtype dtype, const float *src, uint64_t first, uint64_t rows, uint64_t cols, void *dst,
                         const float *importance, struct err *e) MUST_CHECK;

/*
 * tensor_from_f32 for results to be stored: also ERR_DATA if a result is not finite, because the value is not or exceeds
 * the type's range (f16 ends at 65504; bf16 rounds up to infinity just below the end of f32). The message names the
 * element.
 */
int tensor_from_f32_checked(enum dtype dtype, const float *src, void *dst, uint64_t n, const float *importance,
                            struct err *e) MUST_CHECK;

/*
 * Quantized types as integers and scales, for integer matrix products. Element i of group g = i / form.group is
 *
 *     d scales[g] (codes[i] - offset)             types without minima
 *     d scales[g] codes[i] + min mins[g]          types with minima
 *
 *
 * Evaluated in f32 from left to right, these give the bits of tensor_to_f32, since d scales[g] and min mins[g] are
 * exact.
 */
struct quant_form {
    enum dtype dtype;
    unsigned bits;  /* codes are in [0, 2^bits) */
    unsigned group; /* elements per scale: 16 or 32 */
    int offset;     /* 0 in types with minima. In types with uneven steps the 8-bit codes are the values */
    bool has_min;
    bool has_scales;          /* groups have scales (blocks of several groups); else the scales and mins are 1 */
    int scale_low, scale_top; /* range of scales; mins are in [0, scale_top] */
    unsigned code_top;        /* the largest code written: 2^bits - 1 except for ternary types */
    const int8_t *steps;      /* [16], ascending: the only values that codes - offset takes; NULL: all */
};
#define QUANT_MAX_BLOCK  256
#define QUANT_MAX_GROUPS 16
struct quant_parts {
    uint16_t d, min; /* f16; GGUF's dmin is stored negated */
    int8_t scales[QUANT_MAX_GROUPS], mins[QUANT_MAX_GROUPS];
    uint8_t codes[QUANT_MAX_BLOCK];
};
/* Returns NULL for a type that is not quantized, or whose scales are not an f16 times small integers (mxfp4,
 * codebooks). */
const struct quant_form *quant_form(enum dtype dtype);
void quant_take_apart(enum dtype dtype, const void *block, struct quant_parts *p);
/* The inverse. Codes are at most form.code_top and, with form.steps, one of the steps. */
void quant_put_together(enum dtype dtype, const struct quant_parts *p, void *block);
/* Returns the code nearest to v, which is in units of the scale with the min subtracted. A tie goes to the even value
 * or, with uneven steps, to the higher one. NaN gives some valid code. */
uint8_t quant_nearest(const struct quant_form *f, float v);

/* Re-encodes n elements of f32 into existing blocks of a type with a quant_form: scales and mins stay unchanged, each
 * code becomes the one nearest to its element (quant_nearest; that of 0 if the scale is 0). Split among threads. */
void tensor_round_at(enum dtype dtype, const float *src, void *blocks, uint64_t n);

/* Returns the index of the first NaN or infinity in n elements of a floating or quantized type, or n. */
uint64_t tensor_first_nonfinite(enum dtype dtype, const void *src, uint64_t n);

/* Returns {"name": ..., "dtype": ..., "shape": [...]} for --json; caller frees. NULL if out of memory. */
cJSON *tensor_desc_json(const struct tensor_desc *d);

/*
 * Summary statistics of values. Initialise to {0} and add a tensor in pieces, in order; sums are in f64. min, max, mean
 * and deviation cover the finite values only.
 */
struct tensor_summary {
    uint64_t n, n_zero, n_nan, n_inf;
    float min, max;
    double mean, m2; /* m2: sum of squared distances from the mean */
};
void tensor_summarize(struct tensor_summary *s, const float *x, size_t n);
double tensor_summary_std(const struct tensor_summary *s);
/* Counts finite values in n_bins equal bins over [min, max]. */
void tensor_histogram(const struct tensor_summary *s, const float *x, size_t n, uint64_t *bins, size_t n_bins);

/* The difference between a and b. NaN equals NaN, and an infinity equals itself; either compared with anything else
 * gives an infinite distance. */
struct tensor_difference {
    uint64_t n, n_different;
    double max_abs, sum_abs, sum_square;
    double dot, square_a, square_b;
    uint64_t at; /* index of the first element with distance max_abs */
};
void tensor_compare(struct tensor_difference *d, const float *a, const float *b, size_t n);
/* Adds the difference of another tensor, as if its elements followed those of d. */
void tensor_difference_add(struct tensor_difference *d, const struct tensor_difference *more);
double tensor_difference_mean_abs(const struct tensor_difference *d);
double tensor_difference_rmse(const struct tensor_difference *d);
/* |a - b|| / ||a|| in the Euclidean (for matrices: Frobenius) norm; 0 if both are equal, infinite if only a is zero. */
double tensor_difference_relative(const struct tensor_difference *d);
double tensor_difference_cosine(const struct tensor_difference *d); /* 1 if both are zero, 0 if only one is */

#endif
