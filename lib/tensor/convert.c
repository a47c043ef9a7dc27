/*
 * Conversion of every type to and from f32: one table of codecs, and the two loops that share the blocks among threads.
 * Plain types are codecs with blocks of one element. The encoded side may have any alignment, since it is often a
 * mapped file.
 */
#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "lib/tensor/quantize_internal.h"

/* ---- plain types ---- */

static void f32_decode(const void *src, float *dst, size_t n) {
    memcpy(dst, src, n * sizeof *dst);
}

static size_t f32_encode(const float *src, void *dst, size_t n, const struct row_weights *w) {
    (void)w;
    memcpy(dst, src, n * sizeof *src);
    return n;
}

/* An integer rounds to nearest even and saturates; NaN becomes 0. Limits are exact in f32: `past` is the maximum + 1. */
#define CODEC_INTEGER(v, type, min, past, max)                                                                         \
    (isnan(v) ? 0 : (v) < (min) ? (type)(min) : (v) >= (past) ? (max) : (type)(v))

#define PLAIN_CODEC(name, type, DECODE, ENCODE)                                                                        \
    static void name##_decode(const void *src, float *dst, size_t n) {                                                 \
        for (size_t i = 0; i < n; i++) {                                                                               \
            type v;                                                                                                    \
            memcpy(&v, (const unsigned char *)src + i * sizeof v, sizeof v);                                           \
            dst[i] = DECODE;                                                                                           \
        }                                                                                                              \
    }                                                                                                                  \
    static size_t name##_encode(const float *src, void *dst, size_t n, const struct row_weights *w) {                  \
        (void)w;                                                                                                       \
        for (size_t i = 0; i < n; i++) {                                                                               \
            float f = src[i];                                                                                          \
            type v = ENCODE;                                                                                           \
            memcpy((unsigned char *)dst + i * sizeof v, &v, sizeof v);                                                 \
        }                                                                                                              \
        return n;                                                                                                      \
    }
#define INTEGER_CODEC(name, type, min, past, max)                                                                      \
    PLAIN_CODEC(name, type, (float)v, CODEC_INTEGER(rintf(f), type, min, past, max))

PLAIN_CODEC(f64, double, (float)v, (double)f)
INTEGER_CODEC(i8, int8_t, -0x1p7f, 0x1p7f, INT8_MAX)
INTEGER_CODEC(i16, int16_t, -0x1p15f, 0x1p15f, INT16_MAX)
INTEGER_CODEC(i32, int32_t, -0x1p31f, 0x1p31f, INT32_MAX)
INTEGER_CODEC(i64, int64_t, -0x1p63f, 0x1p63f, INT64_MAX)
INTEGER_CODEC(u8, uint8_t, 0.0f, 0x1p8f, UINT8_MAX)
INTEGER_CODEC(u16, uint16_t, 0.0f, 0x1p16f, UINT16_MAX)
INTEGER_CODEC(u32, uint32_t, 0.0f, 0x1p32f, UINT32_MAX)
INTEGER_CODEC(u64, uint64_t, 0.0f, 0x1p64f, UINT64_MAX)

/* ---- the table ---- */

struct codec {
    enum dtype dtype;
    quant_decode_fn *decode;
    quant_encode_fn *encode;
    int scale_at[2]; /* where a block's f16 scale and min are, -1 for none: what can make it decode to a non-number */
    quant_parts_fn *parts;
};

/* clang-format off */
static const struct codec codecs[] = {
    {DT_F32, f32_decode, f32_encode, {-1, -1}, NULL},
    {DT_F16, f16_decode, f16_encode, {-1, -1}, NULL},
    {DT_BF16, bf16_decode, bf16_encode, {-1, -1}, NULL},
    {DT_F64, f64_decode, f64_encode, {-1, -1}, NULL},
    {DT_I8, i8_decode, i8_encode, {-1, -1}, NULL},
    {DT_I16, i16_decode, i16_encode, {-1, -1}, NULL},
    {DT_I32, i32_decode, i32_encode, {-1, -1}, NULL},
    {DT_I64, i64_decode, i64_encode, {-1, -1}, NULL},
    {DT_U8, u8_decode, u8_encode, {-1, -1}, NULL},
    {DT_U16, u16_decode, u16_encode, {-1, -1}, NULL},
    {DT_U32, u32_decode, u32_encode, {-1, -1}, NULL},
    {DT_U64, u64_decode, u64_encode, {-1, -1}, NULL},
    {DT_Q4_0, q4_0_decode, q4_0_encode, {0, -1}, q4_0_parts},
    {DT_Q4_1, q4_1_decode, q4_1_encode, {0, 2}, q4_1_parts},
    {DT_Q5_0, q5_0_decode, q5_0_encode, {0, -1}, q5_0_parts},
    {DT_Q5_1, q5_1_decode, q5_1_encode, {0, 2}, q5_1_parts},
    {DT_Q8_0, q8_0_decode, q8_0_encode, {0, -1}, q8_0_parts},
    {DT_Q2_K, q2_k_decode, q2_k_encode, {80, 82}, q2_k_parts},
    {DT_Q3_K, q3_k_decode, q3_k_encode, {108, -1}, q3_k_parts},
    {DT_Q4_K, q4_k_decode, q4_k_encode, {0, 2}, q4_k_parts},
    {DT_Q5_K, q5_k_decode, q5_k_encode, {0, 2}, q5_k_parts},
    {DT_Q6_K, q6_k_decode, q6_k_encode, {208, -1}, q6_k_parts},
};
/* clang-format on */

static const struct codec *codec_of(enum dtype dtype) {
    for (size_t i = 0; i < COUNT_OF(codecs); i++)
        if (codecs[i].dtype == dtype) return &codecs[i];
    return NULL;
}

/* ---- codes and scales ---- */

const struct quant_form *quant_form(enum dtype dtype) {
    static const struct quant_form forms[] = {
        {DT_Q4_0, 4, 32, 8, false, false}, {DT_Q4_1, 4, 32, 0, true, false},    {DT_Q5_0, 5, 32, 16, false, false},
        {DT_Q5_1, 5, 32, 0, true, false},  {DT_Q8_0, 8, 32, 128, false, false}, {DT_Q2_K, 2, 16, 0, true, true},
        {DT_Q3_K, 3, 16, 4, false, true},  {DT_Q4_K, 4, 32, 0, true, true},     {DT_Q5_K, 5, 32, 0, true, true},
        {DT_Q6_K, 6, 16, 32, false, true},
    };
    for (size_t i = 0; i < COUNT_OF(forms); i++)
        if (forms[i].dtype == dtype) return &forms[i];
    return NULL;
}

void quant_take_apart(enum dtype dtype, const void *block, struct quant_parts *p) {
    codec_of(dtype)->parts(block, p);
}

/* ---- sharing the work ---- */

/* Elements per piece. A single piece is converted without threads: small tensors are common. */
#define PIECE 32768

struct job {
    const struct codec *codec;
    const struct dtype_info *type;
    const float *floats_in;
    float *floats_out;
    const unsigned char *bytes_in;
    unsigned char *bytes_out;
    size_t n_blocks, piece; /* in blocks */
    const struct row_weights *weights;
    atomic_size_t bad_block; /* the first that cannot be encoded, or n_blocks */
};

static size_t piece_length(const struct job *j, size_t first) {
    return j->n_blocks - first < j->piece ? j->n_blocks - first : j->piece;
}

static void decode_piece(void *ctx, size_t i, int thread) {
    (void)thread;
    struct job *j = ctx;
    size_t first = i * j->piece;
    j->codec->decode(j->bytes_in + first * j->type->block_bytes, j->floats_out + first * j->type->block_elems,
                     piece_length(j, first));
}

static void encode_piece(void *ctx, size_t i, int thread) {
    (void)thread;
    struct job *j = ctx;
    size_t first = i * j->piece, n = piece_length(j, first);
    struct row_weights w, *weights = NULL;
    if (j->weights) {
        w = *j->weights;
        w.importance += first * j->type->block_elems;
        weights = &w;
    }
    size_t done = j->codec->encode(j->floats_in + first * j->type->block_elems,
                                   j->bytes_out + first * j->type->block_bytes, n, weights);
    size_t bad = first + done, seen = atomic_load(&j->bad_block);
    while (done < n && bad < seen && !atomic_compare_exchange_weak(&j->bad_block, &seen, bad)) {
    }
}

static struct job job_init(enum dtype dtype, uint64_t n) {
    struct job j = {.codec = codec_of(dtype), .type = dtype_info(dtype)};
    j.n_blocks = n / j.type->block_elems;
    j.piece = PIECE / j.type->block_elems;
    atomic_init(&j.bad_block, j.n_blocks);
    return j;
}

void tensor_to_f32(enum dtype dtype, const void *src, float *dst, uint64_t n) {
    struct job j = job_init(dtype, n);
    j.bytes_in = src;
    j.floats_out = dst;
    parallel_for((j.n_blocks + j.piece - 1) / j.piece, decode_piece, &j);
}

/* ---- encoding ---- */

/* More than any block can hold (Q4_K: 65504 * 63 * 15), and small enough that no sum of squares overflows. */
#define MAX_QUANTIZED 1e9f

/* Index of the first value that is NaN, infinite or too large, or n: a step at a time without a branch. */
static uint64_t first_unfit(const float *src, uint64_t n) {
    enum { STEP = 1024 };
    for (uint64_t i = 0; i < n; i += STEP) {
        uint64_t m = n - i < STEP ? n - i : STEP;
        int unfit = 0;
        for (uint64_t k = 0; k < m; k++) unfit |= !(fabsf(src[i + k]) <= MAX_QUANTIZED);
        for (uint64_t k = 0; unfit && k < m; k++)
            if (!(fabsf(src[i + k]) <= MAX_QUANTIZED)) return i + k;
    }
    return n;
}

static int check_importance(const float *importance, uint64_t n, struct err *e) {
    for (uint64_t i = 0; i < n; i++)
        if (!(importance[i] >= 0) || isinf(importance[i]))
            return err_set(e, ERR_DATA, "importance of column %" PRIu64 " is %g", i, (double)importance[i]);
    return 0;
}

int tensor_from_f32(enum dtype dtype, const float *src, void *dst, uint64_t n, const float *importance, struct err *e) {
    struct job j = job_init(dtype, n);
    struct row_weights w = {.importance = importance};
    j.floats_in = src;
    j.bytes_out = dst;
    if (j.type->is_quantized) {
        uint64_t bad = first_unfit(src, n);
        if (bad < n)
            return err_set(e, ERR_DATA, "element %" PRIu64 " is %g: %s cannot hold it", bad, (double)src[bad],
                           j.type->name);
        if (importance) {
            int rc = check_importance(importance, n, e);
            if (rc) return rc;
            float sum = 0;
            for (uint64_t i = 0; i < n; i++) sum += src[i] * src[i];
            w.mean_square = n ? sum / (float)n : 0;
            j.weights = &w;
        }
    }
    parallel_for((j.n_blocks + j.piece - 1) / j.piece, encode_piece, &j);
    size_t bad = atomic_load(&j.bad_block);
    if (bad < j.n_blocks)
        return err_set(e, ERR_DATA, "elements %" PRIu64 " to %" PRIu64 ": %s cannot hold their scale",
                       (uint64_t)bad * j.type->block_elems, (uint64_t)(bad + 1) * j.type->block_elems - 1,
                       j.type->name);
    return 0;
}

/* ---- looking for NaN and infinities ---- */

/* Does the unsigned number at p, `size` bytes of little-endian, have all bits of `mask` set? */
static bool bits_all_set(const unsigned char *p, size_t size, uint64_t mask) {
    uint64_t v = 0;
    memcpy(&v, p, size);
    return (v & mask) == mask;
}

static uint64_t first_with_bits(const unsigned char *p, size_t size, uint64_t mask, uint64_t n) {
    for (uint64_t i = 0; i < n; i++)
        if (bits_all_set(p + i * size, size, mask)) return i;
    return n;
}

/*
 * The commonest types, a step at a time without a branch: are all bits of the mask set in any element? The lanes are
 * those of SSE2 and NEON.
 */
#define STEP 512
typedef uint32_t lanes32 __attribute__((vector_size(16)));
typedef uint16_t lanes16 __attribute__((vector_size(16)));

#define FIRST_NONFINITE(name, lanes, element, mask)                                                                    \
    static uint64_t name(const unsigned char *p, uint64_t n) {                                                         \
        const size_t per = sizeof(lanes) / sizeof(element);                                                            \
        const lanes bits = (lanes){0} + (element)(mask);                                                               \
        uint64_t i = 0;                                                                                                \
        for (; i + STEP <= n; i += STEP) {                                                                             \
            lanes found = {0};                                                                                         \
            for (size_t k = 0; k < STEP; k += per) {                                                                   \
                lanes v;                                                                                               \
                memcpy(&v, p + (i + k) * sizeof(element), sizeof v);                                                   \
                found |= (lanes)((v & bits) == bits);                                                                  \
            }                                                                                                          \
            uint64_t any[2];                                                                                           \
            memcpy(any, &found, sizeof any);                                                                           \
            if (any[0] | any[1]) break;                                                                                \
        }                                                                                                              \
        return i + first_with_bits(p + i * sizeof(element), sizeof(element), mask, n - i);                             \
    }
FIRST_NONFINITE(first_nonfinite_f32, lanes32, uint32_t, 0x7f800000)
FIRST_NONFINITE(first_nonfinite_f16, lanes16, uint16_t, 0x7c00)
FIRST_NONFINITE(first_nonfinite_bf16, lanes16, uint16_t, 0x7f80)

uint64_t tensor_first_nonfinite(enum dtype dtype, const void *src, uint64_t n) {
    const uint64_t f16_mask = 0x7c00;
    const unsigned char *p = src;
    switch (dtype) {
    case DT_F32: return first_nonfinite_f32(p, n);
    case DT_F16: return first_nonfinite_f16(p, n);
    case DT_BF16: return first_nonfinite_bf16(p, n);
    case DT_F64: return first_with_bits(p, 8, UINT64_C(0x7ff0000000000000), n);
    default: break;
    }
    const struct dtype_info *type = dtype_info(dtype);
    if (!type->is_quantized) return n;
    /* No code can compensate a non-finite scale; with finite scales every product is finite. */
    const int *at = codec_of(dtype)->scale_at;
    for (uint64_t i = 0; i < n; i += type->block_elems, p += type->block_bytes)
        for (int k = 0; k < 2; k++)
            if (at[k] >= 0 && bits_all_set(p + at[k], 2, f16_mask)) return i;
    return n;
}

int tensor_from_f32_checked(enum dtype dtype, const float *src, void *dst, uint64_t n, const float *importance,
                            struct err *e) {
    int rc = tensor_from_f32(dtype, src, dst, n, importance, e);
    const struct dtype_info *type = dtype_info(dtype);
    uint64_t bad = rc || !(type->is_float || type->is_quantized) ? n : tensor_first_nonfinite(dtype, dst, n);
    if (rc || bad == n) return rc;
    return err_set(e, ERR_DATA, "element %" PRIu64 ", %g, does not fit in %s", bad, (double)src[bad], type->name);
}
