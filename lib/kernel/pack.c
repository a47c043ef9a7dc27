/*
 * bf16 and its layouts: conversion, transposition, panels of a right-hand matrix. Everything is built from four loops
 * of the CPU path: to bf16, pairs from two rows, transposition of 32-bit words (pairs), and from bf16.
 */
#include "lib/kernel/kernel_internal.h"

/* ---- conversions ---- */

struct convert {
    const struct simd *v;
    uint16_t *h;
    float *f;
    const uint16_t *h_in;
    const float *f_in;
};

static void to_bf16_piece(void *ctx, size_t begin, size_t end) {
    const struct convert *c = ctx;
    c->v->to_bf16(c->h + begin, c->f_in + begin, end - begin);
}

void to_bf16(uint16_t *y, const float *x, size_t n) {
    kernel_split(n, PIECE, to_bf16_piece, &(struct convert){.v = simd(), .h = y, .f_in = x});
}

static void from_bf16_piece(void *ctx, size_t begin, size_t end) {
    const struct convert *c = ctx;
    c->v->from_bf16(c->f + begin, c->h_in + begin, end - begin);
}

void from_bf16(float *y, const uint16_t *x, size_t n) {
    kernel_split(n, PIECE, from_bf16_piece, &(struct convert){.v = simd(), .f = y, .h_in = x});
}

static size_t round_up(size_t n, size_t unit) {
    return (n + unit - 1) / unit * unit;
}

/* ---- panels from [n][k] ---- */

#define LANES   16  /* rows transposed at a time */
#define K_CHUNK 512 /* elements of k: whole blocks of every type */
#define LD      (K_CHUNK + 32)

/* A matrix that is not packed, in bytes. */
struct pack_rows {
    const struct simd *v;
    enum dtype type;
    const unsigned char *data;
    size_t row_bytes, block_elems, block_bytes;
};

static struct pack_rows rows_of(const struct panels *b) {
    const struct dtype_info *type = dtype_info(b->dtype);
    return (struct pack_rows){simd(),           b->dtype, b->data, dtype_row_bytes(b->dtype, b->k), type->block_elems,
                              type->block_bytes};
}

/* n elements, whole blocks. Quantized elements are those of tensor_to_f32, rounded. */
static void round_blocks(const struct pack_rows *b, uint16_t *to, const unsigned char *from, size_t n) {
    enum { STEP = 256 };
    if (b->type == DT_BF16) {
        memcpy(to, from, n * sizeof *to);
    } else if (b->type == DT_F32) {
        b->v->to_bf16(to, (const float *)(const void *)from, n);
    } else if (!b->v->dequantize || !b->v->dequantize(b->type, from, to, n)) {
        float f[STEP];
        for (size_t i = 0; i < n; i += STEP, from += STEP / b->block_elems * b->block_bytes) {
            tensor_to_f32(b->type, from, f, smaller(STEP, n - i));
            b->v->to_bf16(to + i, f, smaller(STEP, n - i));
        }
    }
}

/* The hardware prefetcher stops at page boundaries. */
static void prefetch(const unsigned char *p, size_t n) {
    for (size_t i = 0; i < n; i += 64) __builtin_prefetch(p + i, 0, 2);
}

/* Can pairs of bf16 be read in place? */
static bool are_words(const struct pack_rows *b, const unsigned char *from) {
    return ((uintptr_t)from | b->row_bytes) % sizeof(uint32_t) == 0;
}

/* Makes one panel, or only its first `cols` columns. */
static void make_panel(const struct pack_rows *b, uint16_t *to, size_t col, size_t cols, size_t first, size_t count) {
    _Alignas(64) uint16_t rows[LANES * LD];
    for (size_t k = 0; k < count; k += K_CHUNK) {
        size_t n = smaller(K_CHUNK, count - k), padded = round_up(n, 32);
        size_t bytes = n / b->block_elems * b->block_bytes, offset = (first + k) / b->block_elems * b->block_bytes;
        for (size_t half = 0; half < PANEL; half += LANES) {
            const unsigned char *from = b->data + (col + half) * b->row_bytes + offset;
            uint32_t *words = (uint32_t *)(void *)(to + k * PANEL) + half;
            if (b->type == DT_BF16 && half + LANES <= cols && n == padded && are_words(b, from)) {
                for (size_t i = LANES; i < 2 * LANES; i++) prefetch(from + i * b->row_bytes, bytes);
                b->v->transpose_words(words, PANEL, (const uint32_t *)(const void *)from, b->row_bytes / sizeof *words,
                                      LANES, n / 2);
                continue;
            }
            for (size_t i = 0; i < LANES; i++, from += b->row_bytes) {
                uint16_t *row = rows + i * LD;
                size_t filled = half + i < cols ? n : 0;
                if (filled) {
                    prefetch(from + LANES * b->row_bytes, bytes);
                    round_blocks(b, row, from, n);
                }
                if (filled < padded) memset(row + filled, 0, (padded - filled) * sizeof *row);
            }
            b->v->transpose_words(words, PANEL, (const uint32_t *)(const void *)rows, LD / 2, LANES, padded / 2);
        }
    }
}

void make_panels(uint16_t *to, const struct panels *b, size_t col, size_t cols, size_t first, size_t count) {
    struct pack_rows rows = rows_of(b);
    for (size_t j = 0; j < cols; j += PANEL)
        make_panel(&rows, to + j * round_up(count, 32), col + j, smaller(PANEL, cols - j), first, count);
}

size_t panels_bytes(size_t n, size_t k) {
    return round_up(n, PANEL) * round_up(k, 32) * sizeof(uint16_t);
}

struct packing_bf16 {
    const struct simd *v;
    uint16_t *to;
    struct panels b; /* not packed */
};

static void pack_nt_task(void *ctx, size_t i, int thread) {
    const struct packing_bf16 *p = ctx;
    (void)thread;
    size_t col = i * PANEL;
    make_panels(p->to + col * round_up(p->b.k, 32), &p->b, col, smaller(PANEL, p->b.n - col), 0, p->b.k);
}

void pack_nt(uint16_t *to, size_t n, size_t k, enum dtype type, const void *b) {
    struct packing_bf16 p = {simd(), to, {.n = n, .k = k, .dtype = type, .data = b}};
    parallel_for((n + PANEL - 1) / PANEL, pack_nt_task, &p);
}

/* ---- panels from [k][n]: pairs come from two rows ---------------------------------------------------------------- */

#define NN_COLS 256
#define NN_ROWS 256
#define AHEAD   16 /* rows */

/* `count` elements of row r from column c on of a matrix in bf16: in place, or zeros for a row past the end. */
static const uint16_t *row_part(uint16_t *scratch, const struct panels *b, size_t r, size_t c, size_t count) {
    if (r < b->k) return (const uint16_t *)b->data + r * b->n + c;
    memset(scratch, 0, count * sizeof *scratch);
    return scratch;
}

/* Pairs of rows r and r + 1 of a matrix in f32, columns [c, c + count): words of a panel each, `stride` apart. */
static void pair_rows_f32(const struct packing_bf16 *p, uint32_t *to, size_t stride, size_t r, size_t c, size_t count) {
    static const float zeros[NN_COLS];
    size_t rows = p->b.k, cols = p->b.n;
    const float *x = r < rows ? (const float *)p->b.data + r * cols + c : zeros, *z = r + 1 < rows ? x + cols : zeros;
    if (r + AHEAD < rows) prefetch((const unsigned char *)(x + AHEAD * cols), count * sizeof *x);
    if (r + 1 + AHEAD < rows) prefetch((const unsigned char *)(z + AHEAD * cols), count * sizeof *z);
    for (size_t j = 0; j < count; j += PANEL, to += stride) p->v->pair_f32(to, x + j, z + j, smaller(PANEL, count - j));
}

static void pack_nn_task(void *ctx, size_t i, int thread) {
    const struct packing_bf16 *p = ctx;
    (void)thread;
    size_t n = p->b.n, k = p->b.k, padded = round_up(k, 32), strips = (n - 1) / NN_COLS + 1;
    size_t col = i % strips * NN_COLS, first = i / strips * NN_ROWS, cols = smaller(NN_COLS, n - col);
    uint16_t even[NN_COLS], odd[NN_COLS];
    for (size_t r = first; r < smaller(first + NN_ROWS, padded); r += 2) {
        uint16_t *to = p->to + col * padded + r * PANEL;
        const uint16_t *x = NULL, *z = NULL;
        if (p->b.dtype == DT_F32) {
            pair_rows_f32(p, (uint32_t *)(void *)to, PANEL * padded / 2, r, col, cols);
        } else {
            x = row_part(even, &p->b, r, col, cols);
            z = row_part(odd, &p->b, r + 1, col, cols);
        }
        for (size_t j = 0; j < cols; j += PANEL, to += PANEL * padded) {
            size_t width = smaller(PANEL, cols - j);
            if (x) p->v->pair((uint32_t *)(void *)to, x + j, z + j, width);
            if (width < PANEL) memset(to + 2 * width, 0, (PANEL - width) * 2 * sizeof *to);
        }
    }
}

void pack_nn(uint16_t *to, size_t n, size_t k, enum dtype type, const void *b) {
    struct packing_bf16 p = {simd(), to, {.n = n, .k = k, .dtype = type, .data = b}};
    if (n && k) parallel_for(((n - 1) / NN_COLS + 1) * ((k - 1) / NN_ROWS + 1), pack_nn_task, &p);
}

/* ---- transposition ---- */

#define T_STEP 128
#define T_COLS 64

/* f32 is rounded in strips of columns through a small buffer. */
void transpose_to_bf16(uint16_t *y, size_t ldy, enum dtype type, const void *x, size_t ldx, size_t rows, size_t cols) {
    const struct simd *v = simd();
    if (type == DT_BF16) {
        v->transpose_bf16(y, ldy, x, ldx, rows, cols);
        return;
    }
    uint16_t rounded[T_STEP * T_COLS];
    for (size_t c = 0; c < cols; c += T_COLS) {
        size_t width = smaller(T_COLS, cols - c);
        for (size_t r = 0; r < rows; r += T_STEP) {
            size_t n = smaller(T_STEP, rows - r);
            for (size_t j = 0; j < n; j++) {
                const float *from = (const float *)x + (r + j) * ldx + c;
                prefetch((const unsigned char *)(from + AHEAD * ldx), width * sizeof *from);
                v->to_bf16(rounded + j * T_COLS, from, width);
            }
            v->transpose_bf16(y + c * ldy + r, ldy, rounded, T_COLS, n, width);
        }
    }
}
