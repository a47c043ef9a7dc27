/* The layouts of bf16 for AVX-512. */
#if defined(__x86_64__)
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
#else
typedef int pack_avx512_needs_x86_64; /* ISO C wants a declaration in every file */
#endif
