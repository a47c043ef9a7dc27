/*
 * Products of attention in generation for AVX-512: a few queries with many keys and values, which are bf16 in memory.
 * Scores use VDPBF16PS, or widen in registers. The order of a sum depends only on its length.
 */
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
#include "lib/kernel/avx512.h"

/* The lower and upper halves of 16 pairs as f32. */
INLINE __m512 even(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
}

INLINE __m512 odd(__m512i pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
}

/* ---- scores: along a row, then sums over the lanes of sixteen rows at once --------------------------------------- */

/* Partial sums over the lanes of a and b: half as many terms of each, those of a and b interleaved in each 128 bits. */
INLINE __m512 fold(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
}

INLINE __m512 fold_pairs(__m512 a, __m512 b) {
    __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
}

/* The same for 128-bit lanes. */
INLINE __m512 fold_lanes(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

/* Prefetches n elements from p on; p may be past the end. */
INLINE void fetch(const uint16_t *p, size_t n) {
    for (size_t i = 0; i < n; i += 32) __builtin_prefetch(p + i);
}

INLINE __m512bh halves_at(__mmask32 mask, const uint16_t *p) {
    return (__m512bh)_mm512_maskz_loadu_epi16(mask, p);
}

/* s[i] += products of the lanes of x and row[i], for 32 elements from c on. */
static inline __attribute__((always_inline)) TARGET_BF16 void
step_bf16(__m512 s[4], const uint16_t *x, const uint16_t *const row[4], size_t c, __mmask32 mask) {
    __m512bh a = halves_at(mask, x + c);
    UNROLL for (int i = 0; i < 4; i++) s[i] = _mm512_dpbf16_ps(s[i], a, halves_at(mask, row[i] + c));
}

INLINE void step_fma(__m512 s[4], const uint16_t *x, const uint16_t *const row[4], size_t c, __mmask32 mask) {
    __m512i a = _mm512_maskz_loadu_epi16(mask, x + c);
    __m512 a0 = even(a), a1 = odd(a);
    UNROLL for (int i = 0; i < 4; i++) {
        __m512i b = _mm512_maskz_loadu_epi16(mask, row[i] + c);
        s[i] = _mm512_fmadd_ps(a1, odd(b), _mm512_fmadd_ps(a0, even(b), s[i]));
    }
}

/* name##4: x with four rows gives in each 128 bits four partial sums, one per row. Both functions are instantiated for
 * each step, because a function cannot be inlined into one for a lesser CPU. Past the last key, that key is read again
 * and the result not stored. */
#define DECODE_DOTS(name, TARGET_OF, step)                                                                             \
    static inline __attribute__((always_inline))                                                                       \
    TARGET_OF __m512 name##4(const uint16_t *x, const uint16_t *const row[4], size_t k) {                              \
        __m512 s[4];                                                                                                   \
        UNROLL for (int i = 0; i < 4; i++) s[i] = _mm512_setzero_ps();                                                 \
        for (size_t c = 0; c < k; c += 32) step(s, x, row, c, halves(k - c));                                          \
        return fold_pairs(fold(s[0], s[1]), fold(s[2], s[3]));                                                         \
    }                                                                                                                  \
    TARGET_OF void name(float *out, size_t ldo, const uint16_t *x, size_t n, const uint16_t *keys, size_t count,       \
                        size_t k, const uint16_t *next) {                                                              \
        for (size_t j = 0; j < count; j += 16) {                                                                       \
            fetch(next + j * k, smaller(16, count - j) * k);                                                           \
            for (size_t i = 0; i < n; i++) {                                                                           \
                __m512 four[4];                                                                                        \
                UNROLL for (size_t q = 0; q < 4; q++) {                                                                \
                    const uint16_t *row[4];                                                                            \
                    UNROLL for (size_t r = 0; r < 4; r++) row[r] = keys + smaller(j + 4 * q + r, count - 1) * k;       \
                    four[q] = name##4(x + i * k, row, k);                                                              \
                }                                                                                                      \
                __m512 sums = fold_lanes(fold_lanes(four[0], four[1]), fold_lanes(four[2], four[3]));                  \
                _mm512_mask_storeu_ps(out + i * ldo + j, first(count - j), sums);                                      \
            }                                                                                                          \
        }                                                                                                              \
    }
DECODE_DOTS(decode_dots_avx512bf16, TARGET_BF16, step_bf16)
DECODE_DOTS(decode_dots_avx512, TARGET, step_fma)

/* ---- values: widened in registers, even and odd elements of 32 separately ---------------------------------------- */

#define TOGETHER 4 /* queries that share a value in registers */

/* Splits 32 consecutive floats into even and odd ones; join undoes it. */
INLINE void split(const float *p, size_t n, __m512 *even, __m512 *odd) {
    __m512 a = _mm512_maskz_loadu_ps(first(n), p), b = _mm512_maskz_loadu_ps(first(n < 16 ? 0 : n - 16), p + 16);
    __m512i e = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    *even = _mm512_permutex2var_ps(a, e, b);
    *odd = _mm512_permutex2var_ps(a, _mm512_add_epi32(e, _mm512_set1_epi32(1)), b);
}

INLINE void join(float *p, size_t n, __m512 even, __m512 odd) {
    __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    _mm512_mask_storeu_ps(p, first(n), _mm512_permutex2var_ps(even, low, odd));
    if (n > 16) _mm512_mask_storeu_ps(p + 16, first(n - 16), _mm512_permutex2var_ps(even, high, odd));
}

/* Columns [0, cols) with cols <= 64 of n queries. n is a constant in each call. */
INLINE void mix_columns(const int n, float *y, const float *p, size_t ldp, const uint16_t *values, size_t count,
                        size_t k, size_t cols, const uint16_t *next) {
    size_t right = cols < 32 ? 0 : cols - 32;
    __mmask32 mask0 = halves(cols), mask1 = halves(right);
    __m512 e0[TOGETHER], o0[TOGETHER], e1[TOGETHER], o1[TOGETHER];
    UNROLL for (int i = 0; i < n; i++) {
        split(y + (size_t)i * k, cols, &e0[i], &o0[i]);
        split(y + (size_t)i * k + 32, right, &e1[i], &o1[i]);
    }
    for (size_t j = 0; j < count; j++, values += k, next += k) {
        fetch(next, cols);
        __m512i v0 = _mm512_maskz_loadu_epi16(mask0, values), v1 = _mm512_maskz_loadu_epi16(mask1, values + 32);
        UNROLL for (int i = 0; i < n; i++) {
            __m512 a = _mm512_set1_ps(p[(size_t)i * ldp + j]);
            e0[i] = _mm512_fmadd_ps(a, even(v0), e0[i]);
            o0[i] = _mm512_fmadd_ps(a, odd(v0), o0[i]);
            e1[i] = _mm512_fmadd_ps(a, even(v1), e1[i]);
            o1[i] = _mm512_fmadd_ps(a, odd(v1), o1[i]);
        }
    }
    UNROLL for (int i = 0; i < n; i++) {
        join(y + (size_t)i * k, cols, e0[i], o0[i]);
        join(y + (size_t)i * k + 32, right, e1[i], o1[i]);
    }
}

TARGET void decode_mix_avx512(float *y, const float *p, size_t ldp, size_t n, const uint16_t *values, size_t count,
                              size_t k, const uint16_t *next) {
    for (size_t i = 0; i < n; i += TOGETHER)
        for (size_t c = 0; c < k; c += 64) {
            float *to = y + i * k + c;
            const float *weight = p + i * ldp;
            size_t cols = smaller(64, k - c);
            switch (smaller(TOGETHER, n - i)) {
            case 1: mix_columns(1, to, weight, ldp, values + c, count, k, cols, next + c); break;
            case 2: mix_columns(2, to, weight, ldp, values + c, count, k, cols, next + c); break;
            case 3: mix_columns(3, to, weight, ldp, values + c, count, k, cols, next + c); break;
            default: mix_columns(TOGETHER, to, weight, ldp, values + c, count, k, cols, next + c); break;
            }
        }
}
#else
typedef int decode_avx512_needs_x86_64; /* ISO C wants a declaration in every file */
#endif
