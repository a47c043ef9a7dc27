/*
 * The micro-kernel for AVX512-BF16: VDPBF16PS multiplies 32 pairs of bf16 and adds both products of a pair to a lane, the
 * odd one first, each addition rounded to nearest; subnormal inputs and results are zero.
 */
#if defined(__x86_64__)
#include "lib/kernel/avx512.h"

/* 14 x 2 accumulators, two vectors of b, one broadcast of a: 31 of 32 registers. */
#define MR 14

/* c[rows][32] = [c +] a b for one panel. rows is a constant at each call. */
static inline __attribute__((always_inline)) TARGET_BF16 void micro(const int rows, size_t k, const uint16_t *a,
                                                                    size_t lda, const uint16_t *b, bool accumulate,
                                                                    float *c, size_t ldc) {
    __m512 c0[MR], c1[MR];
    UNROLL for (int i = 0; i < rows; i++) {
        c0[i] = accumulate ? _mm512_loadu_ps(c + (size_t)i * ldc) : _mm512_setzero_ps();
        c1[i] = accumulate ? _mm512_loadu_ps(c + (size_t)i * ldc + 16) : _mm512_setzero_ps();
    }
    for (size_t p = 0; p < k; p += 2, a += 2, b += 2 * PANEL) {
        __m512bh b0 = (__m512bh)_mm512_loadu_si512(b), b1 = (__m512bh)_mm512_loadu_si512(b + PANEL);
        UNROLL for (int i = 0; i < rows; i++) {
            int pair;
            memcpy(&pair, a + (size_t)i * lda, sizeof pair);
            __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
            c0[i] = _mm512_dpbf16_ps(c0[i], x, b0);
            c1[i] = _mm512_dpbf16_ps(c1[i], x, b1);
        }
    }
    UNROLL for (int i = 0; i < rows; i++) {
        _mm512_storeu_ps(c + (size_t)i * ldc, c0[i]);
        _mm512_storeu_ps(c + (size_t)i * ldc + 16, c1[i]);
    }
}

typedef void micro_fn(size_t k, const uint16_t *a, size_t lda, const uint16_t *b, bool accumulate, float *c,
                      size_t ldc);

#define MICRO(rows)                                                                                                    \
    TARGET_BF16 static void micro_##rows(size_t k, const uint16_t *a, size_t lda, const uint16_t *b, bool accumulate,  \
                                         float *c, size_t ldc) {                                                       \
        micro(rows, k, a, lda, b, accumulate, c, ldc);                                                                 \
    }
#define EACH_COUNT(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14)
EACH_COUNT(MICRO)

#define ENTRY(rows) [rows] = micro_##rows,
static micro_fn *const micros[MR + 1] = {EACH_COUNT(ENTRY)};

static void multiply(const struct block_bf16 *t) {
    for (size_t j = 0; j < t->n_panels; j++) {
        fetch_for_panel(t, j);
        micros[t->rows](t->k, t->a, t->lda, t->b + j * t->stride, t->accumulate, t->c + j * PANEL, t->ldc);
    }
}

const struct micro_bf16 bf16_avx512 = {.block = MR, .k_block = MAX_K_BLOCK, .multiply = multiply};
#else
typedef int gemm_avx512bf16_needs_x86_64; /* ISO C wants a declaration in every file */
#endif
