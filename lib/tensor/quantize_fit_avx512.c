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

TARGET void fit_affine_avx512(int n, int top, const float *x, const float *w, const struct fit_search *search,
                              uint8_t *codes, float *scales, float *minus_mins) {
    affine_of_size(n, top, x, w, search, codes, scales, minus_mins);
}

TARGET void fit_symmetric_avx512(int n, int half, const float *x, const float *w, uint8_t *codes, float *scales) {
    symmetric_of_size(n, half, x, w, codes, scales);
}

bool fit_has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
}

#else

bool fit_has_avx512(void) {
    return false;
}

#endif
