/*
 * Rows in 16 bits for AVX512-VNNI: VPDPWSSD multiplies 32 pairs and adds neighbors into a lane, twice the rate of fused
 * multiply-adds. Intermediate sums may wrap, which is harmless because the final sum fits (kernel.h).
 */
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
#include <float.h>
#include <math.h>

#include "lib/kernel/avx512.h"

#define TARGET_VNNI __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")))
#define INLINE_VNNI static inline __attribute__((always_inline)) TARGET_VNNI

#define MR    8   /* of the 32 rows of a block: 8 x 2 accumulators */
#define PAIRS 128 /* at a time: 16 KiB each of a and b, which stay in L1 */

/* ---- rounding ---- */

/* 46200, not 46340 = sqrt(2^31): rounding adds up to 1/2 to each of 1024 numbers, and the norm is a sum in f32. */
#define NORM_TOP  46200.0f
#define VALUE_TOP 32767.0f

TARGET_VNNI static void take_half(__mmask16 mask, size_t rows, const float *x, size_t ld, float *scale,
                                  uint32_t *words) {
    __m512 squares = _mm512_setzero_ps(), most = _mm512_setzero_ps();
    for (size_t r = 0; r < rows; r++) {
        __m512 v = _mm512_maskz_loadu_ps(mask, x + r * ld);
        squares = _mm512_fmadd_ps(v, v, squares);
        most = _mm512_max_ps(most, _mm512_abs_ps(v));
    }
    __m512 s = _mm512_max_ps(_mm512_div_ps(most, _mm512_set1_ps(VALUE_TOP)),
                             _mm512_div_ps(_mm512_sqrt_ps(squares), _mm512_set1_ps(NORM_TOP)));
    /* NaN stays NaN, and so does every sum with it. Columns with a scale below FLT_MIN become 0: their squares vanish
     * in f32, too. */
    __mmask16 none = _mm512_cmp_ps_mask(squares, squares, _CMP_UNORD_Q),
              some = _mm512_cmp_ps_mask(s, _mm512_set1_ps(FLT_MIN), _CMP_GE_OQ);
    __m512 inverse = _mm512_maskz_div_ps(some, _mm512_set1_ps(1), s);
    s = _mm512_mask_mov_ps(_mm512_maskz_mov_ps(some, s), none, squares);
    _mm512_storeu_ps(scale, s);
    for (size_t r = 0; r < rows; r += 2) {
        __m512 v = _mm512_maskz_loadu_ps(mask, x + r * ld);
        __m512 w = r + 1 < rows ? _mm512_maskz_loadu_ps(mask, x + (r + 1) * ld) : _mm512_setzero_ps();
        __m512i low = _mm512_cvtps_epi32(_mm512_mul_ps(v, inverse)),
                high = _mm512_cvtps_epi32(_mm512_mul_ps(w, inverse));
        low = _mm512_and_si512(low, _mm512_set1_epi32(0xffff));
        _mm512_storeu_si512(words + r / 2 * ROWS16_PANEL, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}

TARGET_VNNI static void take(size_t n, size_t rows, const float *x, size_t ld, float *scale, uint32_t *words) {
    take_half(first(n), rows, x, ld, scale, words);
    take_half(n > 16 ? first(n - 16) : 0, rows, x + (n > 16 ? 16 : 0), ld, scale + 16, words + 16);
}

/* ---- products ---- */

INLINE_VNNI __m512i broadcast(const uint32_t *p) {
    int word;
    memcpy(&word, p, sizeof word);
    return _mm512_set1_epi32(word);
}

/* Continues the sums [MR][32] of MR rows over some pairs. */
TARGET_VNNI static void add_pairs(size_t pairs, const uint32_t *a, const uint32_t *b, int32_t *sums) {
    __m512i c0[MR], c1[MR];
    UNROLL for (int i = 0; i < MR; i++) {
        c0[i] = _mm512_loadu_si512(sums + i * ROWS16_PANEL);
        c1[i] = _mm512_loadu_si512(sums + i * ROWS16_PANEL + 16);
    }
    for (size_t p = 0; p < pairs; p++, a += ROWS16_PANEL, b += ROWS16_PANEL) {
        __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 16);
        UNROLL for (int i = 0; i < MR; i++) {
            __m512i x = broadcast(a + i);
            c0[i] = _mm512_dpwssd_epi32(c0[i], x, b0);
            c1[i] = _mm512_dpwssd_epi32(c1[i], x, b1);
        }
    }
    UNROLL for (int i = 0; i < MR; i++) {
        _mm512_storeu_si512(sums + i * ROWS16_PANEL, c0[i]);
        _mm512_storeu_si512(sums + i * ROWS16_PANEL + 16, c1[i]);
    }
}

/* c += scale scale sum, each operation rounded separately. */
TARGET_VNNI static void add_sums(const struct block_rows16 *t, const int32_t *sums) {
    for (size_t i = 0; i < t->rows; i++)
        for (size_t j = 0; j < t->cols; j += 16) {
            __mmask16 mask = first(t->cols - j);
            __m512 by = _mm512_mul_ps(_mm512_set1_ps(t->a_scale[i]), _mm512_maskz_loadu_ps(mask, t->b_scale + j));
            __m512 sum = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(sums + i * ROWS16_PANEL + j)), by);
            float *c = t->c + i * t->ldc + j;
            _mm512_mask_storeu_ps(c, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, c), sum));
        }
}

/* c is needed last, and comes from the L3 cache: without this, waiting for it takes an eighth of the time. */
static void prefetch_result(const struct block_rows16 *t) {
    for (size_t i = 0; i < t->rows; i++)
        for (size_t j = 0; j < t->cols; j += 16) _mm_prefetch(t->c + i * t->ldc + j, _MM_HINT_T1);
}

TARGET_VNNI static void add(const struct block_rows16 *t) {
    _Alignas(64) int32_t sums[ROWS16_PANEL * ROWS16_PANEL] = {0};
    prefetch_result(t);
    for (size_t p = 0; p < t->pairs; p += PAIRS)
        for (size_t i = 0; i < t->rows; i += MR)
            add_pairs(smaller(PAIRS, t->pairs - p), t->a + p * ROWS16_PANEL + i, t->b + p * ROWS16_PANEL,
                      sums + i * ROWS16_PANEL);
    add_sums(t, sums);
}

const struct micro_rows16 rows16_vnni = {.take = take, .add = add};
#else
typedef int gram16_vnni_needs_x86_64; /* ISO C wants a declaration in every file */
#endif
