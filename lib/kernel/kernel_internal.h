/*
 * Private to lib/kernel: the vector operations that each CPU path provides, how work is split, and the building blocks
 * of matrix products. lib/kernel/README.md explains how these fit together.
 */
#ifndef RILL_KERNEL_INTERNAL_H
#define RILL_KERNEL_INTERNAL_H

#include <stdatomic.h>

#include "lib/kernel/kernel.h"

/* ---- arrays in host memory, for the CPU's loops ------------------------------------------------------------------ */

struct view {
    enum dtype dtype;
    void *data;
};
static inline void *host_of(struct kernel_array a) {
    return a.buffer ? (char *)a.buffer + a.offset : NULL;
}
static inline float *host_f32(struct kernel_array a) {
    return host_of(a);
}
static inline struct view view_of(struct kernel_array a) {
    return (struct view){a.dtype, host_of(a)};
}
static inline struct view view_part(struct view a, size_t at) {
    return (struct view){a.dtype, (char *)a.data + kernel_array_bytes(a.dtype, at)};
}

/* A right-hand matrix in host memory. */
struct panels {
    size_t n, k;
    bool packed;
    enum dtype dtype; /* packed: DT_BF16, or a quantized type for integer products */
    const void *data;
};
static inline struct panels panels_of(const struct kernel_matrix *b) {
    const char *data = b->buffer ? (const char *)b->buffer + b->offset : NULL;
    return (struct panels){b->n, b->k, b->packing != KERNEL_STORED, b->dtype, data};
}

void to_bf16(uint16_t *y, const float *x, size_t n);
void from_bf16(float *y, const uint16_t *x, size_t n);

/* ---- matrix products on one thread ------------------------------------------------------------------------------- */

enum gemm_form { GEMM_NT, GEMM_NN, GEMM_TN };

/* c[m][n] (row stride ldc) = product + beta c, as kernel_matmul_* but with row strides. For use inside a task. */
typedef void gemm_fn(enum gemm_form form, size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b,
                     size_t ldb, float beta, float *c, size_t ldc);
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
gemm_fn gemm_avx512;
#endif

/* ---- the result of a product (gemm_result.c) --------------------------------------------------------------------- */

/* kernel_epilogue in host memory. */
struct epilogue {
    bool accumulate;
    const float *bias, *residual;
    const uint16_t *gate;
    enum kernel_act act;
};
struct result {
    struct epilogue how;
    enum dtype type;
    void *data;
    size_t n; /* columns */
};
/* Some columns of a block of rows, and their sums if they are not in the result itself. */
struct part {
    size_t row, rows, col, cols;
    float *sums;
    size_t ld;
};
/* For sums in a buffer of their own: begin adds what the result held, finish applies the rest of the epilogue. */
void result_begin(const struct result *c, const struct part *x);
void result_finish(const struct result *c, const struct part *x);

/* Rows [row, end) of a part of whole panels with complete sums, to be finished while a micro-kernel multiplies another block. */
struct earlier {
    const struct result *of;
    struct part part;
    size_t row, end;
};

/* The activation functions, in the order of enum kernel_act */
#define ACTIVATIONS(X) X(silu) X(gelu) X(gelu_tanh) X(gelu_quick) X(relu) X(relu_squared) X(tanh)

/* ---- bf16 products on one thread --------------------------------------------------------------------------------- */

#define PANEL       KERNEL_PANEL /* k is padded to multiples of it, too */
#define MAX_BLOCK   128
#define MAX_K_BLOCK 768
#define MAX_GROUP   18
/* A micro-kernel that finishes earlier parts has blocks of at most 32 rows, and does so in those of more than 16. */
#define MAX_BLOCK_FINISHING 32
#define FINISHING_ROWS      16
/* Row stride of copied blocks: not a power of two, which would map all rows to the same cache sets. */
#define MAX_ROW_STRIDE (MAX_K_BLOCK + 32)

/* c[rows][n_panels * PANEL] = [c +] a b. k is a multiple of 32. */
struct block_bf16 {
    size_t rows, k, n_panels;
    const uint16_t *a;
    size_t lda;
    const uint16_t *b; /* panel j starts at b + j * stride and is [k/2][PANEL][2] */
    size_t stride;
    bool accumulate;
    float *c;
    size_t ldc;
    const struct simd *path;       /* used only by bf16_widened, for its loops */
    const struct earlier *earlier; /* to be finished meanwhile, or NULL; in blocks of more than FINISHING_ROWS rows */
};

/* The micro-kernel of a path: rows <= block, k <= k_block. */
struct micro_bf16 {
    const char *name;    /* for reports */
    size_t block;        /* maximum and best number of rows, at most MAX_BLOCK */
    size_t unit;         /* row granularity */
    size_t k_block;      /* maximum k, a multiple of 32 and at most MAX_K_BLOCK */
    size_t group;        /* best number of panels for a call, at most MAX_GROUP */
    bool finishes;       /* takes block_bf16.earlier */
    void (*begin)(void); /* called before and after a task's calls, on its thread; or NULL */
    void (*end)(void);
    void (*multiply)(const struct block_bf16 *t);
};

/* Rows [row_block(i), row_block(i + 1)) are the i-th of n blocks, as equal as possible because a block of few rows
 * costs more per row. */
static inline size_t row_blocks(const struct micro_bf16 *m, size_t rows) {
    return (rows + m->block - 1) / m->block;
}
static inline size_t row_block(const struct micro_bf16 *m, size_t rows, size_t n, size_t i) {
    size_t at = (i * rows + n - 1) / n;
    return i == n ? rows : (at + m->unit - 1) / m->unit * m->unit;
}

/* Dequantizes n elements in whole blocks to bf16, with the bits of tensor_to_f32 followed by rounding. False, without
 * doing anything, if the path has no loop for the type. */
typedef bool dequantize_fn(enum dtype type, const void *blocks, uint16_t *to, size_t n);

extern const struct micro_bf16 bf16_widened; /* multiplies in f32, by the path's own product */
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
extern const struct micro_bf16 bf16_avx512, bf16_avx512_fma, bf16_amx;
dequantize_fn dequantize_avx512bf16;
bool amx_available(void); /* requests the tiles from the system */
#endif

/* For attention in generation, with n queries x of k elements and `count` keys: out[i * ldo + j] = x[i] . keys[j]; and
 * for the values: y[i] += sum_j p[i * ldp + j] values[j]. Rows are contiguous. `next` is where the following calls will
 * read as many rows, which are prefetched. */
typedef void decode_dots_fn(float *out, size_t ldo, const uint16_t *x, size_t n, const uint16_t *keys, size_t count,
                            size_t k, const uint16_t *next);
typedef void decode_mix_fn(float *y, const float *p, size_t ldp, size_t n, const uint16_t *values, size_t count,
                           size_t k, const uint16_t *next);
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
decode_dots_fn decode_dots_avx512, decode_dots_avx512bf16;
decode_mix_fn decode_mix_avx512;
#endif

/* y[p * ldy + i] = x[i * ldx + p], i < n <= 16, p < k, for 32-bit words: pairs of bf16. */
typedef void transpose_words_fn(uint32_t *y, size_t ldy, const uint32_t *x, size_t ldx, size_t n, size_t k);
transpose_words_fn transpose_words_plain;
/* y[c * ldy + r] = x[r * ldx + c], r < rows, c < cols */
typedef void transpose_bf16_fn(uint16_t *y, size_t ldy, const uint16_t *x, size_t ldx, size_t rows, size_t cols);
transpose_bf16_fn transpose_bf16_plain;
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
transpose_words_fn transpose_words_avx512;
transpose_bf16_fn transpose_bf16_avx512;
#endif

/* The same for f32 or bf16, rounded to bf16. */
void transpose_to_bf16(uint16_t *y, size_t ldy, enum dtype type, const void *x, size_t ldx, size_t rows, size_t cols);

/* Makes panels of columns [col, col + cols) and k [first, first + count) of a matrix that is not packed: each is
 * [count/2 rounded up to 16][PANEL][2], padded with zeros, contiguous. */
void make_panels(uint16_t *to, const struct panels *b, size_t col, size_t cols, size_t first, size_t count);

/* Packs [n][k] of any floating-point or quantized type, or the transpose of b [k][n] in f32 or bf16. */
size_t panels_bytes(size_t n, size_t k);
void pack_nt(uint16_t *to, size_t n, size_t k, enum dtype type, const void *b);
void pack_nn(uint16_t *to, size_t n, size_t k, enum dtype type, const void *b);

/* ---- products of 8-bit integers on one thread -------------------------------------------------------------------- */

#define INT8_CHUNK  256 /* k per chunk of a panel; pack_int8.c has the layout */
#define INT8_GROUPS (INT8_CHUNK / 16)

struct chunk_int8 {
    size_t groups; /* of elements with a common scale, in the chunk */
    unsigned planes;
    const uint8_t *d, *min; /* f16 */
    const int8_t *scales, *mins;
    const uint8_t *codes, *masks;
    const uint8_t *end;
};
struct chunk_int8 chunk_at(const struct quant_form *f, const uint8_t *p, size_t blocks);
size_t panels_int8_bytes(enum dtype type, size_t n, size_t k);
void pack_int8(uint8_t *to, size_t n, size_t k, enum dtype type, const void *blocks);
size_t panel_int8_bytes(const struct quant_form *f, size_t k);
void int8_column(float *y, const struct panels *b, size_t col);

/* The contribution of a group of activations apart from the product of codes: -offset times their sum, as an integer;
 * or their sum times their scale, to be multiplied by the minimum. */
union extra_int8 {
    int32_t times_offset;
    float times_min;
};

/* c[rows][PANEL] = [c +] a b, for one chunk of a panel. */
struct block_int8 {
    const struct quant_form *form;
    size_t rows, blocks;           /* blocks: of 32 along k */
    const uint32_t *a;             /* [k/4][rows], four signed bytes each */
    const float *d;                /* scales of a, [blocks][rows] */
    const union extra_int8 *extra; /* [k/group][rows] */
    struct chunk_int8 b;
    bool accumulate;
    float *c;
};

/* Rounds a row to integers in blocks of 32; results for consecutive groups of four elements, blocks and groups are
 * `stride` apart. */
typedef void round_int8_fn(const float *x, size_t blocks, const struct quant_form *f, size_t stride, uint32_t *a,
                           float *d, union extra_int8 *extra);

/* The micro-kernel of a path; all give the same bits. */
struct micro_int8 {
    const char *name; /* for reports */
    size_t rows;      /* maximum and best number of rows, at most INT8_MAX_ROWS */
    round_int8_fn *round;
    void (*multiply)(const struct block_int8 *t);
};
#define INT8_MAX_ROWS 32

extern const struct micro_int8 int8_portable;
round_int8_fn round_int8_portable;
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
extern const struct micro_int8 int8_avx2, int8_vnni;
#endif

/* ---- Gram matrices from 16-bit integers (gram16.c) --------------------------------------------------------------- */

/* Columns of a panel: words[panel][pair of rows][column], the first row in the low half. */
#define FACTOR_BLOCK 64 /* columns factored without matrix products */
#define FACTOR_SIDE  8  /* rows factored together */

#define ROWS16_PANEL 32

/* c [rows][cols] += a_scale b_scale sums; rows, cols <= ROWS16_PANEL. */
struct block_rows16 {
    size_t pairs, rows, cols;
    const uint32_t *a, *b;
    const float *a_scale, *b_scale;
    float *c;
    size_t ldc;
};
/* n <= ROWS16_PANEL columns of x, f32 or bf16, at a row stride of ld elements; by [rows] or NULL: factors of rows. */
struct columns16 {
    size_t n, rows;
    struct view x;
    size_t ld;
    const float *by;
    float *scale;
    uint32_t *words;
};
struct micro_rows16 {
    /* Rounds columns; writes scales and words of all ROWS16_PANEL columns. */
    void (*take)(const struct columns16 *t);
    void (*add)(const struct block_rows16 *t);
};
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
extern const struct micro_rows16 rows16_vnni;
#endif

/* For paths without special loops: a chunk unpacked to a byte per code and an f32 per factor. */
struct unpacked_int8 {
    uint8_t scratch[INT8_CHUNK * PANEL];
    float scale[INT8_GROUPS * PANEL], min[INT8_GROUPS * PANEL]; /* min: only for types with minima */
    const uint8_t *codes;                                       /* [k/4][PANEL][4], in scratch or in place */
};
void unpack_int8(const struct block_int8 *t, struct unpacked_int8 *to);

/* c = a b, with b packed for integer products. */
void multiply_int8(size_t m, enum dtype a_type, const void *a, const struct panels *b, const struct result *c);

/* The loops of one activation function; backward of y = act(x) and of y = act(gate) up. */
struct simd_act {
    void (*apply)(float *y, const float *x, size_t n);
    void (*backward)(float *dx, const float *dy, const float *x, size_t n); /* dx = dy act'(x) */
    void (*glu)(float *y, const float *gate, const float *up, size_t n);
    void (*glu_bf16)(uint16_t *y, const uint16_t *gate, const uint16_t *up, size_t n);
    void (*glu_backward)(float *dgate, float *dup, const float *dy, const float *gate, const float *up, size_t n);
    void (*glu_backward_bf16)(uint16_t *dgate, uint16_t *dup, const uint16_t *dy, const uint16_t *gate,
                              const uint16_t *up, size_t n);
    /* For rows of n: c = act(gate) (sums + bias), where the second factor is rounded, and the product again; bias may
     * be NULL, gate has the layout of c. */
    void (*finish_glu)(uint16_t *c, size_t ldc, size_t rows, size_t n, const float *sums, size_t ld, const float *bias,
                       const uint16_t *gate);
};

/* ---- one CPU path ---------------------------------------------------------------------------------------------------
 *
 * Loops over contiguous floats, single-threaded, written once in simd_body.h over an abstract vector and compiled for
 * each path. n may be any number including 0; pointers need no alignment; y may be x. */
/*
 * Parameters of a divergence between a row of logits and the teacher's log-probabilities, with log p = (x - m) s - c
 * and terms f. dx NULL: adds the sums of f and of p df/dp over the elements to `sums`. Else adds factor (p df/dp - p
 * mean) to dx, which is the gradient with respect to the logits if mean is the sum of p df/dp over the row.
 */
struct divergence_pass {
    float m, s, c;
    float a, b; /* of struct kernel_divergence */
    float mean, factor;
};

struct simd {
    const char *name;
    gemm_fn *gemm;
    const struct micro_bf16 *bf16;
    const struct micro_int8 *int8;
    const struct micro_rows16 *rows16; /* or NULL */
    transpose_words_fn *transpose_words;
    transpose_bf16_fn *transpose_bf16;
    dequantize_fn *dequantize;   /* or NULL */
    decode_dots_fn *decode_dots; /* both or neither */
    decode_mix_fn *decode_mix;

    void (*fill)(float *y, size_t n, float a);                       /* y = a */
    void (*scale)(float *y, size_t n, float a);                      /* y *= a */
    void (*scale_copy)(float *y, float a, const float *x, size_t n); /* y = a x */
    void (*add)(float *y, const float *x, size_t n);                 /* y += x */
    void (*axpy)(float *y, float a, const float *x, size_t n);       /* y += a x */
    /* Of the triangular factor (cholesky.c): solves for FACTOR_SIDE rows x against the upper triangle of d [b][b]. */
    void (*solve_side)(double (*x)[FACTOR_SIDE], const double (*d)[FACTOR_BLOCK], size_t b);
    void (*subtract_wide)(double *y, double a, const float *x, size_t n);            /* y -= a x */
    void (*mul_scaled)(float *y, const float *x, const float *w, float a, size_t n); /* y = a x w */
    double (*dot)(const float *x, const float *y, size_t n);                         /* sum x y, in f64 */
    double (*dot3)(const float *x, const float *y, const float *z, size_t n);        /* sum x y z, in f64 */
    double (*distance)(const float *x, const float *y, size_t n);                    /* sum (x - y)^2, added in f64 */
    void (*square_acc)(float *y, const float *x, size_t n);                          /* y += x^2 */
    void (*abs_acc)(float *y, const float *x, size_t n);                             /* y += |x| */
    void (*mul_acc)(float *y, float a, const float *x, const float *z, size_t n);    /* y += a x z */

    void (*to_bf16)(uint16_t *y, const float *x, size_t n);
    void (*from_bf16)(float *y, const uint16_t *x, size_t n);
    void (*scale_bf16)(uint16_t *y, float a, const float *x, size_t n);                      /* y = a x */
    void (*mul_scaled_bf16)(uint16_t *y, const float *x, const float *w, float a, size_t n); /* y = a x w */
    void (*rotate_bf16)(uint16_t *x1, uint16_t *x2, const float *cosine, const float *sine, size_t n);
    void (*pair)(uint32_t *y, const uint16_t *x, const uint16_t *z, size_t n); /* y = x | z << 16 */
    void (*pair_f32)(uint32_t *y, const float *x, const float *z, size_t n);   /* the same of x and z rounded */
    /* y[i][PANEL] = the pairs of rows 2i and 2i + 1, with row stride ld */
    void (*pair_rows)(uint32_t *y, const uint16_t *x, size_t ld, size_t pairs);
    /* rows of n: c = sums + bias + residual, where the last two may be NULL; residual has the layout of c */
    void (*finish_f32)(float *c, size_t ldc, size_t rows, size_t n, const float *sums, size_t ld, const float *bias,
                       const float *residual);
    void (*finish_bf16)(uint16_t *c, size_t ldc, size_t rows, size_t n, const float *sums, size_t ld, const float *bias,
                        const float *residual);

    float (*max)(const float *x, size_t n);                        /* -infinity for n = 0; NaNs are ignored */
    float (*max_finite)(const float *x, size_t n, bool *finite);   /* the same; sets *finite to false if one is not */
    size_t (*find_above)(const float *x, size_t n, float bound);   /* first index with x > bound, or n */
    double (*exp_sum)(const float *x, size_t n, float m, float s); /* sum of exp((x - m) s), in f64 */
    double (*exp_store)(float *y, const float *x, size_t n, float m, float s); /* y = exp((x - m) s); their sum */
    float (*exp2_sum)(const float *x, size_t n, float m, float s);            /* sum of 2^((x - m) s), x <= m, in f32 */
    void (*exp2_store)(float *y, const float *x, size_t n, float m, float s); /* y = 2^((x - m) s) */
    /*
     * Online softmax of rows of scores, with row stride ld, where the first seen[r] <= width count: p = exp((x - m) s),
     * rounded, and zeros up to `width`, a multiple of PANEL. m[r] is raised to the maximum; l[r] and o[r][d] are scaled
     * by exp((old m - m) s), and the sum of unrounded p is added to l[r]; it is computed in f32 in W lanes.
     */
    void (*softmax_rows)(uint16_t *p, const float *x, size_t rows, size_t ld, const uint32_t *seen, size_t width,
                         float s, float *m, double *l, float *o, size_t d);
    /* Backward for a row of n <= width scores: p = exp((x - m) s), ds = p (dp - a) s, rounded, and zeros up to `width`,
     * a multiple of PANEL. */
    void (*softmax_backward_bf16)(uint16_t *p, uint16_t *ds, const float *x, const float *dp, size_t n, size_t width,
                                  float m, float s, float a);
    void (*affine)(float *y, const float *x, size_t n, float m, float s, float c); /* y = (x - m) s - c */
    void (*from_f16)(float *y, const uint16_t *x, size_t n);
    /* y = affine rounded to f16; returns whether all of it is finite. m, s, c = 0, 1, 0: x */
    bool (*affine_f16)(uint16_t *y, const float *x, size_t n, float m, float s, float c);

    struct simd_act act[KERNEL_ACTS];
    void (*softcap)(float *y, const float *x, size_t n, float cap, float factor); /* y = cap tanh(factor x) */
    void (*softcap_backward)(float *dx, const float *y, size_t n, float inv_cap); /* dx *= 1 - (y / cap)^2 */
    double (*sum)(const float *x, size_t n);                                      /* in f64 */
    /* y = (x - mean) inv w + b; b may be NULL */
    void (*layernorm)(float *y, const float *x, const float *w, const float *b, float mean, float inv, size_t n);
    /* dx += inv w dy - a - c (x - mean) */
    void (*layernorm_dx)(float *dx, const float *dy, const float *x, const float *w, float mean, float inv, float a,
                         float c, size_t n);
    /* dx += inv w dy - a x */
    void (*rmsnorm_dx)(float *dx, const float *dy, const float *x, const float *w, float inv, float a, size_t n);
    /* cos and sign * sin of position * inv_freq[n], accurate to 0.51 ulp of 1 */
    void (*angles)(float *cosine, float *sine, double position, const double *inv_freq, double sign, size_t n);
    /* rotates (x1, x2) by the angles with these cosines and sines */
    void (*rotate)(float *x1, float *x2, const float *cosine, const float *sine, size_t n);
    /* ds = p (dp - a) */
    void (*softmax_backward)(float *ds, const float *p, const float *dp, float a, size_t n);

    /* out[i] = x . rows[i], for `count` rows of k floats with stride ld */
    void (*dots)(float *out, const float *x, const float *rows, size_t ld, size_t count, size_t k);
    /* y[k] += sum_i p[i] rows[i] */
    void (*mix_rows)(float *y, const float *p, const float *rows, size_t ld, size_t count, size_t k);
    /* y[r][n] += sum_i p[r][i] b[i][n] over k, in order, for 1 to 4 rows; the bits do not depend on the other rows */
    void (*mix_block)(float *const *y, const float *const *p, size_t rows, const float *b, size_t k, size_t n);
    /* One step of an LSTM (kernel.h): replaces gates [4][units] by their activations. before: the previous cell; NULL:
     * zeros. Backward: *dcell, the gradient of this cell from later steps, becomes that of the previous cell. */
    void (*lstm_cell)(float *gates, float *cell, float *h, const float *before, size_t units);
    void (*lstm_cell_backward)(float *dgates, float *dcell, const float *dh, const float *gates, const float *cell,
                               const float *before, size_t units);

    /* sum t (log t - log p), given log t and log p = (x - m) s - c; *mass += sum t */
    double (*kl_dense)(const float *logt, const float *x, size_t n, float m, float s, double c, double *mass);
    /* dx = a exp((x - m) s) + b exp(x - m) - c exp(logt); b 0 and logt NULL omit their terms */
    void (*loss_gradient)(float *dx, const float *x, const float *logt, size_t n, float m, float s, float a, float b,
                          float c);
    /* One divergence of a row: see struct divergence_pass. */
    void (*divergence[KERNEL_DIVERGENCES])(const struct divergence_pass *o, const float *logt, const float *x, size_t n,
                                           double sums[2], float *dx);
    /* Words of philox(seed, stream, counter + i) for i < 16 blocks, one counter per lane: out[(i / 16 * 4 + word) * 16
     * + i % 16]. */
    void (*random)(uint32_t *out, uint64_t seed, uint64_t stream, uint64_t counter, size_t blocks);
    /* y = the upper half of x + (random >> shift & 0xffff), as integers; x is finite */
    void (*to_bf16_random)(uint16_t *y, const float *x, const uint32_t *random, int shift, size_t n);
    void (*adamw)(const struct kernel_adamw *o, float step_size, float root_correction, float *w, float *m, float *v,
                  const float *g, size_t n);
};

extern const struct simd simd_portable;
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
extern const struct simd simd_avx2, simd_avx512, simd_avx512bf16;
#endif

/* The path in use: the best that this CPU supports, or the one named by RILL_CPU. */
const struct simd *simd(void);
/* For tests: selects a path by name; false if it is unknown or not supported by the CPU. */
bool simd_select(const char *name);

/* ---- splitting work ---------------------------------------------------------------------------------------------- */

/* Calls body over [0, n) in pieces [begin, end) of `piece` elements (the last may be shorter), distributed by
 * parallel_for. */
typedef void split_body(void *ctx, size_t begin, size_t end);
void kernel_split(size_t n, size_t piece, split_body *body, void *ctx);

/* Elements per piece of an elementwise loop (64 KiB), and columns per piece of a loop over rows. */
#define PIECE   16384
#define COLUMNS 64

/* memcpy by all threads: one core alone does not use all memory channels. */
void copy_bytes(void *to, const void *from, size_t bytes);

static inline size_t smaller(size_t a, size_t b) {
    return a < b ? a : b;
}

/* The size of equal parts of n, at most `most` and a multiple of `unit`, so that no thin remainder is left. */
static inline size_t equal_parts(size_t n, size_t most, size_t unit) {
    size_t parts = (n - 1) / most + 1;
    return ((n - 1) / parts / unit + 1) * unit;
}

/* Number of rows of d elements that make about one PIECE. */
static inline size_t piece_rows(size_t d) {
    return d < PIECE ? PIECE / (d ? d : 1) : 1;
}

/* ---- arrays of f32 or bf16 for loops over f32 ----------------------------------------------------------------- */

#define WIDENED 1024 /* elements widened at a time: several such arrays fit into L1 */

/* n <= WIDENED elements from `at` on: in place, or widened into `scratch`. */
static inline const float *array_get(const struct simd *v, struct view a, size_t at, size_t n, float *scratch) {
    if (a.dtype == DT_F32) return (const float *)a.data + at;
    v->from_bf16(scratch, (const uint16_t *)a.data + at, n);
    return scratch;
}
/* Where to write elements from `at` on before array_put rounds them: the array itself if it is f32. */
static inline float *array_target(struct view a, size_t at, float *scratch) {
    return a.dtype == DT_F32 ? (float *)a.data + at : scratch;
}
static inline void array_put(const struct simd *v, struct view a, size_t at, size_t n, const float *scratch) {
    if (a.dtype != DT_F32) v->to_bf16((uint16_t *)a.data + at, scratch, n);
}

/* ---- matrix products of parts of matrices (gemm.c) ---- */

/* As kernel_matmul_nt, _nn and _tn, with row strides lda, ldb and ldc in floats; k is at least 1. */
void gemm_part(enum gemm_form form, size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b,
               size_t ldb, float beta, float *c, size_t ldc);

/* ---- rows of logits ---------------------------------------------------------------------------------------------- */

#define LOG2_E    1.44269504088896341f
#define WEIGHED   128  /* powers of two that are summed in f32 */
#define ROW_CHUNK 2048 /* floats of a row that are read twice: 8 KiB, in L1 */

/* Atomically lowers *first to r if r is less. */
void first_row(atomic_size_t *first, size_t r);

/* sum = sum exp((x - max) s) */
struct softmax_sum {
    float max;
    double sum;
};
struct softmax_sum row_softmax_sum(const struct simd *v, const float *x, size_t d, float s);

/* Floats per chunk of a row that is processed with k entries: large, because each chunk scans all their ids. */
#define ENTRY_CHUNK 8192

/* Sum of exp((x_i - max) s) over tokens not among k ids, raised to at least OTHERS_MIN times the largest token's term,
 * so that it can be a divisor. */
#define OTHERS_MIN 1e-30
double row_others_sum(const struct simd *v, const float *x, size_t d, float max, float s, const uint32_t *ids,
                      size_t k);

#endif
