/* quantize_fit_lanes.h with AVX-512: sixteen groups at a time. */
#include "lib/tensor/quantize_internal.h"

#ifdef __x86_64__

#include <immintrin.h>

#define LANES  16
#define TARGET __attribute__((target("avx512f,avx512dq")))
#include "lib/tensor/quantize_fit_lanes.h"

INLINE lanes larger(lanes a, lanes b) {
    return (lanes)_mm512_max_ps((__m512)a, (__m512)b);
}
INLINE lanes smaller(lanes a, lanes b) {
    return (lanes)_mm512_min_ps((__m512)a, (__m512)b);
}
INLINE bool any(mask m) {
    return _mm512_movepi32_mask((__m512i)m) != 0;
}

INLINE lanes root(lanes a) {
    return (lanes)_mm512_sqrt_ps((__m512)a);
}
INLINE lanes whole(lanes a) {
    return (lanes)_mm512_roundscale_ps((__m512)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
INLINE lanes lower(lanes a, lanes b) {
    __m512i order = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    return (lanes)_mm512_permutex2var_ps((__m512)a, order, (__m512)b);
}
INLINE lanes upper(lanes a, lanes b) {
    __m512i order = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    return (lanes)_mm512_permutex2var_ps((__m512)a, order, (__m512)b);
}

TARGET void fit_affine_avx512(int n, int top, const float *x, const float *w, const struct fit_search *search,
                              const struct fit_result *fit) {
    affine_of_size(n, top, x, w, search, fit);
}

TARGET void fit_symmetric_avx512(int n, int half, const float *x, const float *w, uint8_t *codes, float *scales) {
    symmetric_of_size(n, half, x, w, codes, scales);
}

TARGET void fit_round_avx512(size_t n, const float *x, float add, float scale, int low, int high, uint8_t *codes) {
    round_to_codes(n, x, add, scale, low, high, codes);
}

TARGET void fit_weigh_avx512(size_t n, const float *x, const float *importance, float mean_square, float *w) {
    weigh(n, x, importance, mean_square, w);
}

bool fit_has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
}

#else

bool fit_has_avx512(void) {
    return false;
}

#endif
