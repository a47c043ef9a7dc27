/*
 * The bf16 micro-kernel for AVX-512 by fused multiply-add in f32: for CPUs without VDPBF16PS or where it is slower
 * (dispatch.c has the list). Rows of a are widened once for all panels, b in registers: masking out the lower half of a
 * pair leaves the upper one as an f32, shifting up gives the lower one.
 *
 * An element of c is one sum over k in order, each product exact; subnormal numbers are kept.
 */
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
#include "lib/kernel/avx512.h"

/* 14 x 2 accumulators, two vectors of b, one broadcast of a: 31 of 32 registers. */
#define MR      14
#define K_BLOCK 384
#define LD      (K_BLOCK + 16) /* row stride: not a power of two, which would map all rows to the same cache sets */
#define AHEAD   4096           /* prefetch distance in bytes of b: 32 steps, the latency of memory */

INLINE __m512 even(const uint16_t *pairs) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(pairs), 16));
}
INLINE __m512 odd(const uint16_t *pairs) {
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(0xaaaaaaaa, pairs));
}

/* c[rows][32] = [c +] a b for one panel. rows is a constant in each call. */
INLINE void micro(const int rows, size_t k, const float *a, const uint16_t *b, bool accumulate, float *c, size_t ldc) {
    __m512 c0[MR], c1[MR];
    UNROLL for (int i = 0; i < rows; i++) {
        c0[i] = accumulate ? _mm512_loadu_ps(c + (size_t)i * ldc) : _mm512_setzero_ps();
        c1[i] = accumulate ? _mm512_loadu_ps(c + (size_t)i * ldc + 16) : _mm512_setzero_ps();
    }
    for (size_t p = 0; p < k; p += 2, a += 2, b += 2 * PANEL) {
        __builtin_prefetch((const unsigned char *)b + AHEAD);
        __builtin_prefetch((const unsigned char *)b + AHEAD + 64);
        __m512 b0 = even(b), b1 = even(b + PANEL);
        UNROLL for (int i = 0; i < rows; i++) {
            __m512 x = _mm512_set1_ps(a[i * LD]);
            c0[i] = _mm512_fmadd_ps(x, b0, c0[i]);
            c1[i] = _mm512_fmadd_ps(x, b1, c1[i]);
        }
        b0 = odd(b), b1 = odd(b + PANEL);
        UNROLL for (int i = 0; i < rows; i++) {
            __m512 x = _mm512_set1_ps(a[i * LD + 1]);
            c0[i] = _mm512_fmadd_ps(x, b0, c0[i]);
            c1[i] = _mm512_fmadd_ps(x, b1, c1[i]);
        }
    }
    UNROLL for (int i = 0; i < rows; i++) {
        _mm512_storeu_ps(c + (size_t)i * ldc, c0[i]);
        _mm512_storeu_ps(c + (size_t)i * ldc + 16, c1[i]);
    }
}

typedef void micro_fn(size_t k, const float *a, const uint16_t *b, bool accumulate, float *c, size_t ldc);

#define MICRO(rows)                                                                                                    \
    TARGET static void micro_##rows(size_t k, const float *a, const uint16_t *b, bool accumulate, float *c,            \
                                    size_t ldc) {                                                                      \
        micro(rows, k, a, b, accumulate, c, ldc);                                                                      \
    }
#define EACH_COUNT(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14)
EACH_COUNT(MICRO)

#define ENTRY(rows) [rows] = micro_##rows,
static micro_fn *const micros[MR + 1] = {EACH_COUNT(ENTRY)};

/* k is a multiple of 32. */
TARGET static void widen(float *to, const uint16_t *from, size_t k) {
    for (size_t p = 0; p < k; p += 16) {
        __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(from + p)));
        _mm512_store_ps(to + p, _mm512_castsi512_ps(_mm512_slli_epi32(words, 16)));
    }
}

static void multiply(const struct block_bf16 *t) {
    _Alignas(64) float a[MR * LD];
    for (size_t i = 0; i < t->rows; i++) widen(a + i * LD, t->a + i * t->lda, t->k);
    for (size_t j = 0; j < t->n_panels; j++)
        micros[t->rows](t->k, a, t->b + j * t->stride, t->accumulate, t->c + j * PANEL, t->ldc);
}

const struct micro_bf16 bf16_avx512_fma = {
    .name = "avx512-fma", .block = MR, .unit = 1, .k_block = K_BLOCK, .group = 4, .multiply = multiply};
#else
typedef int gemm_avx512_fma_needs_x86_64; /* ISO C wants a declaration in every file */
#endif
