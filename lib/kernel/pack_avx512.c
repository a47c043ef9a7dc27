/* Transposition of bf16 for AVX-512. */
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
#include "lib/kernel/avx512.h"

TARGET void transpose_words_avx512(uint32_t *y, size_t ldy, const uint32_t *x, size_t ldx, size_t n, size_t k) {
    __mmask16 rows = first(n);
    for (size_t p = 0; p < k; p += 16) {
        __mmask16 mask = first(k - p);
        __m512 r[16];
        UNROLL for (size_t i = 0; i < 16; i++) r[i] =
            i < n ? _mm512_castsi512_ps(_mm512_maskz_loadu_epi32(mask, x + i * ldx + p)) : _mm512_setzero_ps();
        transpose16(r);
        if (k - p >= 16 && n == 16) {
            UNROLL for (size_t i = 0; i < 16; i++) _mm512_storeu_si512(y + (p + i) * ldy, _mm512_castps_si512(r[i]));
        } else {
            for (size_t i = 0; i < smaller(16, k - p); i++)
                _mm512_mask_storeu_epi32(y + (p + i) * ldy, rows, _mm512_castps_si512(r[i]));
        }
    }
}

/* 16 columns of two rows, interleaved as pairs. */
INLINE __m512i paired(const uint16_t *x, const uint16_t *z, __mmask16 mask) {
    __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x));
    return _mm512_or_si512(low, _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, z)), 16));
}

/* Rows are too far apart for the hardware prefetcher. */
INLINE void prefetch_rows(const uint16_t *x, size_t ldx, size_t rows, size_t cols) {
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < cols; c += 32) __builtin_prefetch(x + r * ldx + c);
}

/* 32 rows x 16 columns at a time: first pairs of rows, then words. Each store is a whole cache line if y is aligned. */
TARGET void transpose_bf16_avx512(uint16_t *y, size_t ldy, const uint16_t *x, size_t ldx, size_t rows, size_t cols) {
    static const uint16_t zero[16];
    for (size_t i = 0; i < rows; i += 32, x += 32 * ldx) {
        size_t n = smaller(32, rows - i);
        if (rows - i > 32) prefetch_rows(x + 32 * ldx, ldx, smaller(32, rows - i - 32), cols);
        for (size_t c = 0; c < cols; c += 16) {
            __mmask16 mask = first(cols - c);
            __m512 r[16];
            if (n == 32) {
                UNROLL for (size_t p = 0; p < 16; p++) r[p] =
                    _mm512_castsi512_ps(paired(x + 2 * p * ldx + c, x + (2 * p + 1) * ldx + c, mask));
            } else {
                for (size_t p = 0; p < 16; p++) {
                    const uint16_t *even = 2 * p < n ? x + 2 * p * ldx + c : zero;
                    const uint16_t *odd = 2 * p + 1 < n ? x + (2 * p + 1) * ldx + c : zero;
                    r[p] = _mm512_castsi512_ps(paired(even, odd, mask));
                }
            }
            transpose16(r);
            uint16_t *to = y + c * ldy + i;
            if (n == 32 && cols - c >= 16) {
                UNROLL for (size_t p = 0; p < 16; p++) _mm512_storeu_si512(to + p * ldy, _mm512_castps_si512(r[p]));
            } else {
                for (size_t p = 0; p < smaller(16, cols - c); p++)
                    _mm512_mask_storeu_epi16(to + p * ldy, halves(n), _mm512_castps_si512(r[p]));
            }
        }
    }
}
#else
typedef int pack_avx512_needs_x86_64; /* ISO C wants a declaration in every file */
#endif
