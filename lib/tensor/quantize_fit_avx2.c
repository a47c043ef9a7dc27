/* quantize_fit_lanes.h with AVX2: eight groups at a time. */
#include "lib/tensor/quantize_internal.h"

#ifdef __x86_64__

#include <immintrin.h>

#define LANES  8
#define TARGET __attribute__((target("avx2")))
#include "lib/tensor/quantize_fit_lanes.h"

INLINE lanes larger(lanes a, lanes b) {
    return (lanes)_mm256_max_ps((__m256)a, (__m256)b);
}
INLINE lanes smaller(lanes a, lanes b) {
    return (lanes)_mm256_min_ps((__m256)a, (__m256)b);
}
INLINE bool any(mask m) {
    return _mm256_movemask_ps((__m256)m) != 0;
}

INLINE lanes root(lanes a) {
    return (lanes)_mm256_sqrt_ps((__m256)a);
}
INLINE lanes whole(lanes a) {
    return (lanes)_mm256_round_ps((__m256)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
INLINE lanes lower(lanes a, lanes b) {
    __m256 even = _mm256_unpacklo_ps((__m256)a, (__m256)b), odd = _mm256_unpackhi_ps((__m256)a, (__m256)b);
    return (lanes)_mm256_permute2f128_ps(even, odd, 0x20);
}
INLINE lanes upper(lanes a, lanes b) {
    __m256 even = _mm256_unpacklo_ps((__m256)a, (__m256)b), odd = _mm256_unpackhi_ps((__m256)a, (__m256)b);
    return (lanes)_mm256_permute2f128_ps(even, odd, 0x31);
}

TARGET void fit_affine_avx2(int n, int top, const float *x, const float *w, const struct fit_search *search,
                            const struct fit_result *fit) {
    affine_of_size(n, top, x, w, search, fit);
}

TARGET void fit_symmetric_avx2(int n, int half, const float *x, const float *w, uint8_t *codes, float *scales) {
    symmetric_of_size(n, half, x, w, codes, scales);
}

TARGET void fit_round_avx2(size_t n, const float *x, float add, float scale, int low, int high, uint8_t *codes) {
    round_to_codes(n, x, add, scale, low, high, codes);
}

TARGET void fit_weigh_avx2(size_t n, const float *x, const float *importance, float mean_square, float *w) {
    weigh(n, x, importance, mean_square, w);
}

bool fit_has_avx2(void) {
    return __builtin_cpu_supports("avx2");
}

#else

bool fit_has_avx2(void) {
    return false;
}

#endif
