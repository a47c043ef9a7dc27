/*
 * tensor: what a tensor is. Element types (plain and GGUF's quantized blocks), shapes, conversion to and from f32.
 *
 * Shapes are row-major: dims[rank-1] is contiguous (numpy's and PyTorch's order; GGUF's ne[] is the reverse).
 * Quantized types group the contiguous dimension in blocks; a row never shares a block with another.
 */
#ifndef RILL_TENSOR_H
#define RILL_TENSOR_H

#include "lib/base/base.h"

/*
 * GGUF's quantized types: enumerator, name in C, GGUF's number. A row here, and a file that defines `struct element_type
 * NAME_type` with all that is known of the type: README.md, "How to add a type".
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

/* Numbers on the wire: pinned for ever. Quantized types are 64 + their GGUF number. */
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
    bool is_float;        /* a plain floating type */
    bool is_quantized;    /* blocks of more than one element */

    /* Of types that weights can have in a GGUF. */
    int file_type;         /* llama.cpp's enum llama_ftype, of a file whose weights are mostly of this type; -1: none */
    const char *summary;   /* for help: "blocks of 32 with a minimum" */
    unsigned fallback;     /* the type for rows that are not a whole number of blocks, as in llama.cpp; 0: f16 */
    bool read_only;        /* is decoded, but tensor_from_f32 does not make it */
    bool weighed;          /* importance changes what tensor_from_f32 makes */
    bool needs_importance; /* so coarse that llama-quantize refuses to make it without */
};

/* NULL for a number, a name or a GGUF type that this version does not know. */
const struct dtype_info *dtype_info(unsigned dtype);
const struct dtype_info *dtype_by_name(const char *name);
const struct dtype_info *dtype_by_ggml(int ggml_type);
/* Iteration over all known types, for help texts and tests: NULL past the end. */
const struct dtype_info *dtype_at(size_t index);

#define TENSOR_MAX_RANK 8
#define TENSOR_MAX_NAME 1024

/* What is known of a tensor before its data. */
struct tensor_desc {
    char name[TENSOR_MAX_NAME + 1];
    enum dtype dtype;
    unsigned rank;                  /* 0 (a scalar) to TENSOR_MAX_RANK */
    uint64_t dims[TENSOR_MAX_RANK]; /* row-major */
};

/* A tensor in memory. Who owns `data` is said where one is handed out. */
struct tensor {
    struct tensor_desc desc;
    void *data;
    uint64_t n_bytes;
};

/* Fills d. ERR_DATA on an invalid name, rank or size overflow, or a row that is not a whole number of blocks. */
int tensor_desc_init(struct tensor_desc *d, const char *name, enum dtype dtype, unsigned rank, const uint64_t *dims,
                     struct err *e) MUST_CHECK;
/* Checks name, dtype, rank, every product (padding to 64 included) and the block rule; gives the sizes. */
int tensor_desc_check(const struct tensor_desc *d, uint64_t *n_elems, uint64_t *n_bytes, struct err *e) MUST_CHECK;
/* Of a desc that was checked. */
uint64_t tensor_elems(const struct tensor_desc *d);
uint64_t tensor_bytes(const struct tensor_desc *d);
uint64_t tensor_row_elems(const struct tensor_desc *d);       /* dims[rank-1], 1 for a scalar */
uint64_t tensor_rows(const struct tensor_desc *d);            /* elements / row elements */
uint64_t dtype_row_bytes(enum dtype dtype, uint64_t n_elems); /* n_elems a multiple of the block */
bool tensor_same_shape(const struct tensor_desc *a, const struct tensor_desc *b);
/* "[49152, 576]" into out; returns out. */
char *tensor_shape_text(const struct tensor_desc *d, char *out, size_t size);

/* Half-precision conversions, round to nearest even, NaN kept NaN. */
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
 * n elements (a whole number of blocks) from any type to f32. Integers convert exactly where f32 can.
 * Dequantization is bit-exact with ggml's reference (same order of f32 operations). Shared among threads when n is large.
 * Here and below the encoded side may have any alignment.
 */
void tensor_to_f32(enum dtype dtype, const void *src, float *dst, uint64_t n);

/*
 * n elements of f32 to any type. Plain types round to nearest even; integers saturate, and NaN becomes 0.
 * Quantized types: the search of GGUF's reference quantizer, whose bytes it gives. `importance` ([n] for the n elements,
 * finite, >= 0: the mean square of what each column is multiplied with) weighs the squared error where dtype_info says
 * `weighed`; with it n is ONE row, because some types look at the whole row. NULL: GGUF's weights without an importance
 * matrix, and n may be many rows.
 * ERR_USAGE for a type that is read_only. ERR_DATA, for quantized types only: a value is NaN or infinite, or so large (beyond about 500,000) that its block's f16
 * scale overflows; names the elements. n must be whole blocks.
 */
int tensor_from_f32(enum dtype dtype, const float *src, void *dst, uint64_t n, const float *importance,
                    struct err *e) MUST_CHECK;

/*
 * The same for what is kept: ERR_DATA too when a result is not finite, because the value was not, or is beyond the
 * type's range (f16 ends at 65504, bf16 rounds up to infinity just below the end of f32). Names the element.
 */
int tensor_from_f32_checked(enum dtype dtype, const float *src, void *dst, uint64_t n, const float *importance,
                            struct err *e) MUST_CHECK;

/*
 * Quantized types as integers and scales, for products of integers. An element of group g = i / form.group is
 *
 *     d scales[g] (codes[i] - offset)             a type without minima
 *     d scales[g] codes[i] + min mins[g]          with them
 *
 * and these f32 operations from left to right give the bits of tensor_to_f32, for d scales[g] and min mins[g] are exact.
 */
struct quant_form {
    enum dtype dtype;
    unsigned bits;  /* codes are in [0, 2^bits) */
    unsigned group; /* elements of a scale: 16 or 32 */
    int offset;     /* 0 where there are minima. Codes of types with uneven steps are the values, in 8 bits */
    bool has_min;
    bool has_scales;          /* of groups, in blocks of several; else the only group's scales and mins are 1 */
    int scale_low, scale_top; /* what scales can be, and mins from 0 up */
    unsigned code_top;        /* the largest code that is written: 2^bits - 1 but for ternary types */
    const int8_t *steps;      /* [16], ascending: the only codes - offset that there are; NULL: all */
};
#define QUANT_MAX_BLOCK  256
#define QUANT_MAX_GROUPS 16
struct quant_parts {
    uint16_t d, min; /* f16; GGUF's dmin negated */
    int8_t scales[QUANT_MAX_GROUPS], mins[QUANT_MAX_GROUPS];
    uint8_t codes[QUANT_MAX_BLOCK];
};
/* NULL for a type that is not quantized, or whose scales are no f16 times small integers (mxfp4, the codebooks). */
const struct quant_form *quant_form(enum dtype dtype);
void quant_take_apart(enum dtype dtype, const void *block, struct quant_parts *p);
/* The inverse: the parts that quant_take_apart would give, as a block. Codes up to form.code_top, and of the form's steps. */
void quant_put_together(enum dtype dtype, const struct quant_parts *p, void *block);
/* The code nearest to v, which is in units of the scale, the min taken off: of two as near the one whose value is even,
 * or with uneven steps the higher. NaN gets some code. */
uint8_t quant_nearest(const struct quant_form *f, float v);

/* n elements of f32 into blocks that are there, of a type with a quant_form: scales and mins stay as they are, each code becomes the
 * nearest one to its element (quant_nearest; where the scale is 0, that of 0). Shared among threads. */
void tensor_round_at(enum dtype dtype, const float *src, void *blocks, uint64_t n);

/* Index of the first element that is NaN or infinite in n elements of a floating or quantized type, or n. */
uint64_t tensor_first_nonfinite(enum dtype dtype, const void *src, uint64_t n);

/* {"name": ..., "dtype": ..., "shape": [...]} for the programs' --json; NULL when memory is out. */
cJSON *tensor_desc_json(const struct tensor_desc *d);

/*
 * Summary statistics of values. Begin with {0}, add a tensor in pieces in order; sums in f64. min, max, mean and
 * deviation are of the finite values only.
 */
struct tensor_summary {
    uint64_t n, n_zero, n_nan, n_inf;
    float min, max;
    double mean, m2; /* m2: sum of squared distances from the mean */
};
void tensor_summarize(struct tensor_summary *s, const float *x, size_t n);
double tensor_summary_std(const struct tensor_summary *s);
/* Counts finite values into n_bins equal bins from min to max, both included. */
void tensor_histogram(const struct tensor_summary *s, const float *x, size_t n, uint64_t *bins, size_t n_bins);

/* The distance of b from a. NaN against NaN and an infinity against itself are equal; either against anything else
 * is infinite. */
struct tensor_difference {
    uint64_t n, n_different;
    double max_abs, sum_abs, sum_square;
    double dot, square_a, square_b;
    uint64_t at; /* element of max_abs, the first one */
};
void tensor_compare(struct tensor_difference *d, const float *a, const float *b, size_t n);
/* Adds another tensor's difference, as if its elements came after those of d. */
void tensor_difference_add(struct tensor_difference *d, const struct tensor_difference *more);
double tensor_difference_mean_abs(const struct tensor_difference *d);
double tensor_difference_rmse(const struct tensor_difference *d);
/* ||a - b|| / ||a|| in the Euclidean (of matrices: Frobenius) norm; 0 when both are equal, infinite when only a is zero. */
double tensor_difference_relative(const struct tensor_difference *d);
double tensor_difference_cosine(const struct tensor_difference *d); /* 1 when both are zero, 0 when one is */

#endif
