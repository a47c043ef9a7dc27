/*
 * The micro-kernel for AVX512-BF16: VDPBF16PS multiplies 32 pairs of bf16 and adds both products of a pair to a lane,
 * the odd one first, with each addition rounded to nearest; subnormal inputs and results count as zero.
 */
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
#include "lib/kernel/avx512.h"

/* 14 x 2 accumulators, two vectors of b, one broadcast of a: 31 of 32 registers. */
#define MR    14
#define AHEAD 4096 /* prefetch distance in bytes of b: 32 steps, the latency of memory */

/*
 * Fourteen rows need fourteen addresses, more than there are registers. Every third row has a pointer of its own; the
 * two after it are one and two strides away, which an addressing mode can express. The compiler would compute all
 * fourteen and spill half: HIDE hides the origin of the pointers from it.
 */
#define GROUPS  ((MR + 2) / 3)
#define HIDE(p) __asm__("" : "+r"(p))

INLINE int pair_at(const unsigned char *p) {
    int pair;
    memcpy(&pair, p, sizeof pair);
    return pair;
}

/* c[rows][32] = [c +] a b for one panel. rows is a constant in each call. */
static inline __attribute__((always_inline)) TARGET_BF16 void micro(const int rows, size_t k, const uint16_t *a,
                                                                    size_t lda, const uint16_t *b, bool accumulate,
                                                                    float *c, size_t ldc) {
    __m512 c0[MR], c1[MR];
    UNROLL for (int i = 0; i < rows; i++) {
        c0[i] = accumulate ? _mm512_loadu_ps(c + (size_t)i * ldc) : _mm512_setzero_ps();
        c1[i] = accumulate ? _mm512_loadu_ps(c + (size_t)i * ldc + 16) : _mm512_setzero_ps();
    }
    size_t stride = lda * sizeof *a;
    const unsigned char *group[GROUPS];
    UNROLL for (int g = 0; g < GROUPS; g++) group[g] = (const unsigned char *)a + (size_t)g * 3 * stride;
    for (size_t p = 0; p < k; p += 2, b += 2 * PANEL) {
        __m512bh b0 = (__m512bh)_mm512_loadu_si512(b), b1 = (__m512bh)_mm512_loadu_si512(b + PANEL);
        __builtin_prefetch((const unsigned char *)b + AHEAD);
        __builtin_prefetch((const unsigned char *)b + AHEAD + 64);
        UNROLL for (int i = 0; i < rows; i++) {
            if (i % 3 == 0) HIDE(group[i / 3]);
            __m512bh x = (__m512bh)_mm512_set1_epi32(pair_at(group[i / 3] + (size_t)(i % 3) * stride));
            c0[i] = _mm512_dpbf16_ps(c0[i], x, b0);
            c1[i] = _mm512_dpbf16_ps(c1[i], x, b1);
            if (i % 3 == 2 || i == rows - 1) group[i / 3] += 2 * sizeof *a;
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
        micros[t->rows](t->k, t->a, t->lda, t->b + j * t->stride, t->accumulate, t->c + j * PANEL, t->ldc);
    }
}

const struct micro_bf16 bf16_avx512 = {
    .name = "vdpbf16ps", .block = MR, .unit = 1, .k_block = 576, .group = 4, .multiply = multiply};
#else
typedef int gemm_avx512bf16_needs_x86_64; /* ISO C wants a declaration in every file */
#endif
