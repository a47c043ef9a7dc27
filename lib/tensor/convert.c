/*
 * Converts every type to and from f32, splitting the blocks among threads. Plain types are codecs with blocks of one
 * element. The encoded side may have any alignment, since it is often a mapped file.
 */
#include <inttypes.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "lib/tensor/quantize_internal.h"

/* ---- codes and scales ---- */

const struct quant_form *quant_form(enum dtype dtype) {
    const struct element_type *t = element_type(dtype);
    return t->parts ? &t->form : NULL;
}

void quant_take_apart(enum dtype dtype, const void *block, struct quant_parts *p) {
    element_type(dtype)->parts(block, p);
}

void quant_put_together(enum dtype dtype, const struct quant_parts *p, void *block) {
    element_type(dtype)->join(p, block);
}

uint8_t quant_nearest(const struct quant_form *f, float v) {
    if (!f->steps) return (uint8_t)(nearest_code(v, -f->offset, (int)f->code_top - f->offset) + f->offset);
    int i = 0;
    while (i < 15 && v >= 0.5f * (float)(f->steps[i] + f->steps[i + 1])) i++;
    return (uint8_t)(f->steps[i] + f->offset);
}

/* ---- splitting the work ---- */

/* Elements per piece. A single piece is converted without threads: most tensors are small. */
#define PIECE 32768

struct job {
    const struct element_type *codec;
    const struct dtype_info *type;
    const float *floats_in;
    float *floats_out;
    const unsigned char *bytes_in;
    unsigned char *bytes_out;
    size_t n_blocks, piece; /* in blocks */
    const struct row_weights *weights;
    atomic_size_t bad_block; /* the first block that cannot be encoded, or n_blocks */
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
        w.first = first * j->type->block_elems % w.cols;
        weights = &w;
    }
    size_t done = j->codec->encode(j->floats_in + first * j->type->block_elems,
                                   j->bytes_out + first * j->type->block_bytes, n, weights);
    size_t bad = first + done, seen = atomic_load(&j->bad_block);
    while (done < n && bad < seen && !atomic_compare_exchange_weak(&j->bad_block, &seen, bad)) {
    }
}

static struct job job_init(enum dtype dtype, uint64_t n) {
    struct job j = {.codec = element_type(dtype)};
    j.type = &j.codec->info;
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

/* Larger than any block can represent (Q4_K: 65504 * 63 * 15), and small enough that sums of squares do not
 * overflow. */
#define MAX_QUANTIZED 1e9f

/* Returns the index of the first value that is NaN, infinite or too large, or n. Branches only once per step. */
static uint64_t first_unfit(const float *src, uint64_t n) {
    enum { STEP = 256 };
    uint64_t i = 0;
    for (; i + STEP <= n; i += STEP) {
        int unfit = 0;
        for (uint64_t k = 0; k < STEP; k++) unfit |= !(fabsf(src[i + k]) <= MAX_QUANTIZED);
        if (unfit) break;
    }
    while (i < n && fabsf(src[i]) <= MAX_QUANTIZED) i++;
    return i;
}

static int check_importance(const float *importance, uint64_t n, struct err *e) {
    for (uint64_t i = 0; i < n; i++)
        if (!(importance[i] >= 0) || isinf(importance[i]))
            return err_set(e, ERR_DATA, "importance of column %" PRIu64 " is %g", i, (double)importance[i]);
    return 0;
}

static float mean_square(const float *x, uint64_t n) {
    float sum = 0;
    for (uint64_t i = 0; i < n; i++) sum += x[i] * x[i];
    return n ? sum / (float)n : 0;
}

static int check_values(const struct job *j, const float *src, uint64_t n, struct err *e) {
    uint64_t bad = first_unfit(src, n);
    if (bad == n) return 0;
    return err_set(e, ERR_DATA, "element %" PRIu64 " is %g: %s cannot hold it", bad, (double)src[bad], j->type->name);
}

/* Encodes n elements: one row of w, or many if the type takes what it needs of w from single blocks. */
static int encode(enum dtype dtype, const float *src, uint64_t n, void *dst, const struct row_weights *w,
                  struct err *e) {
    struct job j = job_init(dtype, n);
    j.floats_in = src;
    j.bytes_out = dst;
    j.weights = w;
    if (!j.codec->encode)
        return err_set(e, ERR_USAGE, "%s is read, but not made: quantize to another type", j.type->name);
    int rc = j.type->is_quantized ? check_values(&j, src, n, e) : 0;
    if (rc) return rc;
    parallel_for((j.n_blocks + j.piece - 1) / j.piece, encode_piece, &j);
    size_t bad = atomic_load(&j.bad_block);
    if (bad < j.n_blocks)
        return err_set(e, ERR_DATA, "elements %" PRIu64 " to %" PRIu64 ": %s cannot hold their scale",
                       (uint64_t)bad * j.type->block_elems, (uint64_t)(bad + 1) * j.type->block_elems - 1,
                       j.type->name);
    return 0;
}

/* Do blocks of the type need the mean square of their row? */
static bool needs_row(const struct dtype_info *type) {
    return type->block_elems < 256;
}

int tensor_from_f32(enum dtype dtype, const float *src, void *dst, uint64_t n, const float *importance, struct err *e) {
    const struct dtype_info *type = dtype_info(dtype);
    struct row_weights w = {.importance = importance, .cols = n};
    if (!importance || !type->is_quantized) return encode(dtype, src, n, dst, NULL, e);
    int rc = check_importance(importance, n, e);
    if (rc) return rc;
    if (needs_row(type)) w.mean_square = mean_square(src, n);
    return encode(dtype, src, n, dst, &w, e);
}

/* ---- rounding with existing scales ---- */

static void round_group(const struct quant_form *f, float scale, float min, const float *x, uint8_t *codes) {
    for (unsigned i = 0; i < f->group; i++) codes[i] = quant_nearest(f, scale != 0 ? (x[i] - min) / scale : 0);
}

/* The same for even steps, without a call or a branch per element. */
static void round_even_group(const struct quant_form *f, float scale, float min, const float *x, uint8_t *codes) {
    int low = -f->offset, high = (int)f->code_top - f->offset;
    float divisor = scale != 0 ? scale : INFINITY;
    for (unsigned i = 0; i < f->group; i++)
        codes[i] = (uint8_t)(nearest_code((x[i] - min) / divisor, low, high) + f->offset);
}

static void round_piece(void *ctx, size_t i, int thread) {
    (void)thread;
    struct job *j = ctx;
    const struct quant_form *f = &j->codec->form;
    uint32_t elems = j->type->block_elems;
    size_t first = i * j->piece, n = piece_length(j, first);
    const float *x = j->floats_in + first * elems;
    unsigned char *block = j->bytes_out + first * j->type->block_bytes;
    for (size_t b = 0; b < n; b++, x += elems, block += j->type->block_bytes) {
        struct quant_parts p;
        j->codec->parts(block, &p);
        for (uint32_t g = 0; g < elems / f->group; g++) {
            float scale = f16_to_f32(p.d) * p.scales[g], min = f->has_min ? f16_to_f32(p.min) * p.mins[g] : 0;
            (f->steps ? round_group : round_even_group)(f, scale, min, x + g * f->group, p.codes + g * f->group);
        }
        j->codec->join(&p, block);
    }
}

void tensor_round_at(enum dtype dtype, const float *src, void *blocks, uint64_t n) {
    struct job j = job_init(dtype, n);
    j.floats_in = src;
    j.bytes_out = blocks;
    parallel_for((j.n_blocks + j.piece - 1) / j.piece, round_piece, &j);
}

/* ---- searching for NaN and infinities ---- */

/* Does the little-endian unsigned number of `size` bytes at p have all bits of `mask` set? */
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
 * For the most common types: tests whether any element has all bits of the mask set, branching only once per step. The
 * vectors have the width of SSE2 and NEON.
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

/* Returns the index of the first non-finite element in a block with a bad scale; 0 if all elements are finite. */
static uint64_t first_in_block(const struct element_type *type, const unsigned char *block) {
    float x[QUANT_MAX_BLOCK];
    type->decode(block, x, 1);
    for (uint32_t i = 0; i < type->info.block_elems; i++)
        if (!isfinite(x[i])) return i;
    return 0;
}

static uint64_t first_nonfinite(enum dtype dtype, const void *src, uint64_t n) {
    const uint16_t f16_mask = 0x7c00;
    const unsigned char *p = src;
    switch (dtype) {
    case DT_F32: return first_nonfinite_f32(p, n);
    case DT_F16: return first_nonfinite_f16(p, n);
    case DT_BF16: return first_nonfinite_bf16(p, n);
    case DT_F64: return first_with_bits(p, 8, UINT64_C(0x7ff0000000000000), n);
    default: break;
    }
    const struct element_type *type = element_type(dtype);
    if (!type->info.is_quantized) return n;
    /* No code can make up for a non-finite scale; with finite f16 scales every product is finite. */
    for (uint64_t i = 0; i < n; i += type->info.block_elems, p += type->info.block_bytes) {
        if (type->is_finite && !type->is_finite(p)) return i + first_in_block(type, p);
        for (int k = 0; k < 2 && !type->is_finite; k++)
            if (type->scale_at[k] >= 0 && (f16_bits(p + type->scale_at[k]) & f16_mask) == f16_mask) return i;
    }
    return n;
}

struct finite_job {
    enum dtype dtype;
    const struct dtype_info *type;
    const unsigned char *src;
    uint64_t n;
    atomic_uint_least64_t bad; /* the first found so far, or n */
};

static void search_piece(void *ctx, size_t i, int thread) {
    (void)thread;
    struct finite_job *j = ctx;
    uint64_t first = (uint64_t)i * PIECE, n = j->n - first < PIECE ? j->n - first : PIECE;
    const unsigned char *src = j->src + first / j->type->block_elems * j->type->block_bytes;
    uint64_t seen = atomic_load(&j->bad), bad = first < seen ? first_nonfinite(j->dtype, src, n) : n;
    while (bad < n && first + bad < seen && !atomic_compare_exchange_weak(&j->bad, &seen, first + bad)) {
    }
}

uint64_t tensor_first_nonfinite(enum dtype dtype, const void *src, uint64_t n) {
    struct finite_job j = {.dtype = dtype, .type = dtype_info(dtype), .src = src, .n = n};
    atomic_init(&j.bad, n);
    parallel_for((size_t)((n + PIECE - 1) / PIECE), search_piece, &j);
    return atomic_load(&j.bad);
}

static int rows_one_by_one(enum dtype dtype, const float *src, uint64_t first, uint64_t rows, uint64_t cols, void *dst,
                           const float *importance, struct err *e) {
    uint64_t bytes = dtype_row_bytes(dtype, cols);
    for (uint64_t r = 0; r < rows; r++)
        if (tensor_from_f32_checked(dtype, src + r * cols, (char *)dst + r * bytes, cols, importance, e))
            return err_prefix(e, "row %" PRIu64, first + r);
    return 0;
}

/* Many rows at once are faster. If that fails, row by row finds the place. */
int tensor_rows_from_f32(enum dtype dtype, const float *src, uint64_t first, uint64_t rows, uint64_t cols, void *dst,
                         const float *importance, struct err *e) {
    const struct dtype_info *type = dtype_info(dtype);
    struct row_weights w = {.importance = importance, .cols = cols};
    uint64_t n = rows * cols;
    bool together = !importance || (type->is_quantized && !needs_row(type));
    bool done = together && !(importance && check_importance(importance, cols, e)) &&
                !encode(dtype, src, n, dst, importance ? &w : NULL, e);
    if (done && (type->is_float || type->is_quantized)) done = tensor_first_nonfinite(dtype, dst, n) == n;
    return done ? 0 : rows_one_by_one(dtype, src, first, rows, cols, dst, importance, e);
}

int tensor_from_f32_checked(enum dtype dtype, const float *src, void *dst, uint64_t n, const float *importance,
                            struct err *e) {
    int rc = tensor_from_f32(dtype, src, dst, n, importance, e);
    const struct dtype_info *type = dtype_info(dtype);
    uint64_t bad = rc || !(type->is_float || type->is_quantized) ? n : tensor_first_nonfinite(dtype, dst, n);
    if (rc || bad == n) return rc;
    return err_set(e, ERR_DATA, "element %" PRIu64 ", %g, does not fit in %s", bad, (double)src[bad], type->name);
}
