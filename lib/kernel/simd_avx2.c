/* The path for x86-64 with AVX2 and FMA: eight lanes. */
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
#include <immintrin.h>
#include <math.h>

#include "lib/kernel/kernel_internal.h"

#define SIMD_TARGET          __attribute__((target("avx2,fma,f16c")))
#define SIMD_NAME            "avx2"
#define SIMD_TABLE           simd_avx2
#define SIMD_GEMM            gemm
#define SIMD_INT8            &int8_avx2
#define SIMD_TRANSPOSE(what) transpose_##what##_plain
#define W                    8
#define VF                   static inline SIMD_TARGET
#define NEAREST              (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC) /* a macro: clang accepts no variable */

typedef __m256 vec;
typedef struct {
    __m256d lo, hi;
} dvec;

VF vec v_set(float a) {
    return _mm256_set1_ps(a);
}
VF vec v_load(const float *p) {
    return _mm256_loadu_ps(p);
}
VF void v_store(float *p, vec v) {
    _mm256_storeu_ps(p, v);
}

/* Mask of the first n lanes, n < 8. Masked loads and stores do not touch memory outside them. */
VF __m256i first(size_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

VF vec v_load_part(const float *p, size_t n, float fill) {
    __m256i m = first(n);
    return _mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(p, m), _mm256_castsi256_ps(m));
}

VF void v_store_part(float *p, vec v, size_t n) {
    _mm256_maskstore_ps(p, first(n), v);
}

VF vec v_add(vec a, vec b) {
    return _mm256_add_ps(a, b);
}
VF vec v_sub(vec a, vec b) {
    return _mm256_sub_ps(a, b);
}
VF vec v_mul(vec a, vec b) {
    return _mm256_mul_ps(a, b);
}
VF vec v_div(vec a, vec b) {
    return _mm256_div_ps(a, b);
}
VF vec v_fma(vec a, vec b, vec c) {
    return _mm256_fmadd_ps(a, b, c);
}
VF vec v_sqrt(vec a) {
    return _mm256_sqrt_ps(a);
}
VF vec v_abs(vec a) {
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a);
}
VF vec v_max(vec a, vec b) {
    return _mm256_max_ps(a, b);
}
VF vec v_min(vec a, vec b) {
    return _mm256_min_ps(a, b);
}
VF vec v_round(vec a) {
    return _mm256_round_ps(a, NEAREST);
}

VF vec power_of_two(__m256i k) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(k, _mm256_set1_epi32(127)), 23));
}

/* In two halves, because 2^n itself may be out of range where the product is not. */
VF vec v_ldexp(vec x, vec n) {
    __m256i k = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(k, 1);
    return _mm256_mul_ps(_mm256_mul_ps(x, power_of_two(half)), power_of_two(_mm256_sub_epi32(k, half)));
}

VF vec v_exponent(vec a) {
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32(_mm256_castps_si256(a), 23), _mm256_set1_epi32(127)));
}

VF float v_hmax(vec a) {
    __m128 h = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    h = _mm_max_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_max_ss(h, _mm_shuffle_ps(h, h, 1)));
}

VF float v_hsum(vec a) {
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_shuffle_ps(h, h, 1)));
}

VF unsigned v_above(vec a, vec b) {
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ));
}

VF vec v_if_below(vec a, vec b, vec x, vec y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
VF vec v_inverse(vec a) {
    return _mm256_div_ps(_mm256_set1_ps(1), a);
}

VF __m256d low(vec a) {
    return _mm256_cvtps_pd(_mm256_castps256_ps128(a));
}
VF __m256d high(vec a) {
    return _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1));
}
VF dvec d_zero(void) {
    return (dvec){_mm256_setzero_pd(), _mm256_setzero_pd()};
}
VF dvec d_add(dvec d, vec a) {
    return (dvec){_mm256_add_pd(d.lo, low(a)), _mm256_add_pd(d.hi, high(a))};
}

VF dvec d_widen(const float *p) {
    return (dvec){_mm256_cvtps_pd(_mm_loadu_ps(p)), _mm256_cvtps_pd(_mm_loadu_ps(p + 4))};
}

VF dvec d_fma(dvec d, vec a, vec b) {
    return (dvec){_mm256_fmadd_pd(low(a), low(b), d.lo), _mm256_fmadd_pd(high(a), high(b), d.hi)};
}

VF double d_sum(dvec d) {
    __m256d s = _mm256_add_pd(d.lo, d.hi);
    __m128d h = _mm_add_pd(_mm256_castpd256_pd128(s), _mm256_extractf128_pd(s, 1));
    return _mm_cvtsd_f64(_mm_add_sd(h, _mm_unpackhi_pd(h, h)));
}

VF dvec d_set(double a) {
    return (dvec){_mm256_set1_pd(a), _mm256_set1_pd(a)};
}

VF dvec d_load_part(const double *p, size_t n) {
    double lane[W] = {0};
    memcpy(lane, p, (n < W ? n : W) * sizeof *p);
    return (dvec){_mm256_loadu_pd(lane), _mm256_loadu_pd(lane + 4)};
}

VF dvec d_muladd(dvec a, dvec b, dvec c) {
    return (dvec){_mm256_fmadd_pd(a.lo, b.lo, c.lo), _mm256_fmadd_pd(a.hi, b.hi, c.hi)};
}

VF dvec d_round(dvec a) {
    return (dvec){_mm256_round_pd(a.lo, NEAREST), _mm256_round_pd(a.hi, NEAREST)};
}

VF vec d_narrow(dvec a) {
    return _mm256_set_m128(_mm256_cvtpd_ps(a.hi), _mm256_cvtpd_ps(a.lo));
}

VF __m256i words(const uint16_t *p) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
}

VF vec v_load_f16(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

VF void v_store_f16(uint16_t *p, vec v) {
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

VF vec v_load_bf16(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(words(p), 16));
}

/* Adding 0x7fff plus the last kept bit carries into the upper half exactly if the lower half rounds up. */
VF void v_store_bf16(uint16_t *p, vec v) {
    __m256i u = _mm256_castps_si256(v), high = _mm256_srli_epi32(u, 16);
    __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    __m256i h = _mm256_blendv_epi8(rounded, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), is_nan);
    h = _mm256_permute4x64_epi64(_mm256_packus_epi32(h, h), 0x08);
    _mm_storeu_si128((__m128i *)(void *)p, _mm256_castsi256_si128(h));
}

VF void v_store_bf16_two(uint16_t *p, vec a, vec b) {
    v_store_bf16(p, a);
    v_store_bf16(p + W, b);
}

VF vec v_pair(const uint16_t *p, const uint16_t *q) {
    return _mm256_castsi256_ps(_mm256_or_si256(words(p), _mm256_slli_epi32(words(q), 16)));
}
VF vec v_pair_f32(vec a, vec b) {
    uint16_t p[W], q[W];
    v_store_bf16(p, a);
    v_store_bf16(q, b);
    return v_pair(p, q);
}

#include "lib/kernel/gemm_body.h"

#include "lib/kernel/simd_body.h"
#else
typedef int simd_avx2_needs_x86_64; /* ISO C wants a declaration in every file */
#endif
