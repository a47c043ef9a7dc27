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

/* The first or second 16 columns of row r, times its factor; 0 outside the mask. */
INLINE_VNNI __m512 load_row(const struct columns16 *t, bool is_bf16, __mmask16 mask, int half, size_t r) {
    size_t place = r * t->ld + (size_t)(16 * half);
    __m512 v;
    if (is_bf16) {
        __m256i words = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)t->x.data + place);
        v = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
    } else {
        v = _mm512_maskz_loadu_ps(mask, (const float *)t->x.data + place);
    }
    return t->by ? _mm512_mul_ps(v, _mm512_set1_ps(t->by[r])) : v;
}

/* The scales of 16 columns, and what to multiply by. NaN stays NaN, and so does every sum with it. Columns with a scale
 * below FLT_MIN become 0: their squares vanish in f32, too. */
INLINE_VNNI __m512 put_scales(float *scale, __m512 squares, __m512 most) {
    __m512 s = _mm512_max_ps(_mm512_div_ps(most, _mm512_set1_ps(VALUE_TOP)),
                             _mm512_div_ps(_mm512_sqrt_ps(squares), _mm512_set1_ps(NORM_TOP)));
    __mmask16 none = _mm512_cmp_ps_mask(squares, squares, _CMP_UNORD_Q),
              some = _mm512_cmp_ps_mask(s, _mm512_set1_ps(FLT_MIN), _CMP_GE_OQ);
    _mm512_storeu_ps(scale, _mm512_mask_mov_ps(_mm512_maskz_mov_ps(some, s), none, squares));
    return _mm512_maskz_div_ps(some, _mm512_set1_ps(1), s);
}

INLINE_VNNI void take_columns(const struct columns16 *t, bool is_bf16) {
    const __mmask16 mask[2] = {first(t->n), t->n > 16 ? first(t->n - 16) : 0};
    __m512 squares[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, most[2] = {squares[0], squares[0]}, inverse[2];
    for (size_t r = 0; r < t->rows; r++) UNROLL for (int i = 0; i < 2; i++) {
            __m512 v = load_row(t, is_bf16, mask[i], i, r);
            squares[i] = _mm512_fmadd_ps(v, v, squares[i]);
            most[i] = _mm512_max_ps(most[i], _mm512_abs_ps(v));
        }
    UNROLL for (int i = 0; i < 2; i++) inverse[i] = put_scales(t->scale + 16 * i, squares[i], most[i]);
    for (size_t r = 0; r < t->rows; r += 2) UNROLL for (int i = 0; i < 2; i++) {
            __m512 v = load_row(t, is_bf16, mask[i], i, r);
            __m512 w = r + 1 < t->rows ? load_row(t, is_bf16, mask[i], i, r + 1) : _mm512_setzero_ps();
            __m512i low = _mm512_cvtps_epi32(_mm512_mul_ps(v, inverse[i])),
                    high = _mm512_cvtps_epi32(_mm512_mul_ps(w, inverse[i]));
            low = _mm512_and_si512(low, _mm512_set1_epi32(0xffff));
            _mm512_storeu_si512(t->words + r / 2 * ROWS16_PANEL + 16 * i,
                                _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
}

TARGET_VNNI static void take(const struct columns16 *t) {
    if (t->x.dtype == DT_BF16)
        take_columns(t, true);
    else
        take_columns(t, false);
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
