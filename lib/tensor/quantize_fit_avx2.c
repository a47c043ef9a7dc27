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

TARGET void fit_affine_avx2(int n, int top, const float *x, const float *w, const struct fit_search *search,
                            uint8_t *codes, float *scales, float *minus_mins) {
    affine_of_size(n, top, x, w, search, codes, scales, minus_mins);
}

TARGET void fit_symmetric_avx2(int n, int half, const float *x, const float *w, uint8_t *codes, float *scales) {
    symmetric_of_size(n, half, x, w, codes, scales);
}

bool fit_has_avx2(void) {
    return __builtin_cpu_supports("avx2");
}

#else

bool fit_has_avx2(void) {
    return false;
}

#endif
