/*
 * The vector of the AVX-512 paths: sixteen lanes, with masks for partial vectors. The including file defines
 * SIMD_TARGET, and SIMD_HAS_BF16 if that includes the bf16 instructions.
 */
#include <immintrin.h>
#include <math.h>

#include "lib/kernel/kernel_internal.h"

#define SIMD_GEMM            gemm_avx512
#define SIMD_INT8            &int8_avx2 /* dispatch.c replaces it with VNNI */
#define SIMD_TRANSPOSE(what) transpose_##what##_avx512
#define W                    16
#define VF                   static inline SIMD_TARGET
#define NEAREST              (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC) /* a macro: clang accepts no variable */
#define SUBNORMAL            0x20                                            /* a category of VFPCLASSPS */

typedef __m512 vec;
typedef struct {
    __m512d lo, hi;
} dvec;

VF vec v_set(float a) {
    return _mm512_set1_ps(a);
}
VF vec v_load(const float *p) {
    return _mm512_loadu_ps(p);
}
VF void v_store(float *p, vec v) {
    _mm512_storeu_ps(p, v);
}

/* Mask of the first n lanes, n < 16. Masked loads and stores do not touch memory outside them. */
VF __mmask16 first(size_t n) {
    return (__mmask16)((1u << n) - 1);
}

VF vec v_load_part(const float *p, size_t n, float fill) {
    return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), first(n), p);
}

VF void v_store_part(float *p, vec v, size_t n) {
    _mm512_mask_storeu_ps(p, first(n), v);
}

VF vec v_add(vec a, vec b) {
    return _mm512_add_ps(a, b);
}
VF vec v_sub(vec a, vec b) {
    return _mm512_sub_ps(a, b);
}
VF vec v_mul(vec a, vec b) {
    return _mm512_mul_ps(a, b);
}
VF vec v_div(vec a, vec b) {
    return _mm512_div_ps(a, b);
}
VF vec v_fma(vec a, vec b, vec c) {
    return _mm512_fmadd_ps(a, b, c);
}
VF vec v_sqrt(vec a) {
    return _mm512_sqrt_ps(a);
}
VF vec v_abs(vec a) {
    return _mm512_abs_ps(a);
}
VF vec v_max(vec a, vec b) {
    return _mm512_max_ps(a, b);
}
VF vec v_min(vec a, vec b) {
    return _mm512_min_ps(a, b);
}
VF vec v_round(vec a) {
    return _mm512_roundscale_ps(a, NEAREST);
}
VF vec v_ldexp(vec x, vec n) {
    return _mm512_scalef_ps(x, n);
}
VF vec v_exponent(vec a) {
    return _mm512_getexp_ps(a);
}
VF float v_hmax(vec a) {
    return _mm512_reduce_max_ps(a);
}
VF float v_hsum(vec a) {
    return _mm512_reduce_add_ps(a);
}
VF unsigned v_above(vec a, vec b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
}

VF vec v_if_below(vec a, vec b, vec x, vec y) {
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), x);
}
/* Newton's method from 14 bits, because a division takes the unit for products 16 cycles. After two steps the bits no longer depend
 * on the instruction, whose last ones may differ between CPUs: of all floats in [1, 2] one is not rounded as a division
 * is, whatever the first 14 bits were. */
VF vec v_inverse(vec a) {
    vec one = _mm512_set1_ps(1), r = _mm512_rcp14_ps(a);
    r = _mm512_fmadd_ps(r, _mm512_fnmadd_ps(a, r, one), r);
    return _mm512_fmadd_ps(r, _mm512_fnmadd_ps(a, r, one), r);
}

VF __m512d low(vec a) {
    return _mm512_cvtps_pd(_mm512_castps512_ps256(a));
}
VF __m512d high(vec a) {
    return _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1));
}
VF dvec d_zero(void) {
    return (dvec){_mm512_setzero_pd(), _mm512_setzero_pd()};
}
VF dvec d_add(dvec d, vec a) {
    return (dvec){_mm512_add_pd(d.lo, low(a)), _mm512_add_pd(d.hi, high(a))};
}

VF dvec d_widen(const float *p) {
    return (dvec){_mm512_cvtps_pd(_mm256_loadu_ps(p)), _mm512_cvtps_pd(_mm256_loadu_ps(p + 8))};
}

VF dvec d_fma(dvec d, vec a, vec b) {
    return (dvec){_mm512_fmadd_pd(low(a), low(b), d.lo), _mm512_fmadd_pd(high(a), high(b), d.hi)};
}

VF double d_sum(dvec d) {
    return _mm512_reduce_add_pd(_mm512_add_pd(d.lo, d.hi));
}
VF dvec d_set(double a) {
    return (dvec){_mm512_set1_pd(a), _mm512_set1_pd(a)};
}

VF dvec d_load_part(const double *p, size_t n) {
    __mmask16 m = n < W ? first(n) : 0xffff;
    return (dvec){_mm512_maskz_loadu_pd((__mmask8)m, p), _mm512_maskz_loadu_pd((__mmask8)(m >> 8), p + 8)};
}

VF dvec d_muladd(dvec a, dvec b, dvec c) {
    return (dvec){_mm512_fmadd_pd(a.lo, b.lo, c.lo), _mm512_fmadd_pd(a.hi, b.hi, c.hi)};
}

VF dvec d_round(dvec a) {
    return (dvec){_mm512_roundscale_pd(a.lo, NEAREST), _mm512_roundscale_pd(a.hi, NEAREST)};
}

VF vec d_narrow(dvec a) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(a.lo)), _mm512_cvtpd_ps(a.hi), 1);
}

VF __m512i words(const uint16_t *p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

VF vec v_load_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

VF void v_store_f16(uint16_t *p, vec v) {
    _mm256_storeu_si256((__m256i *)(void *)p, _mm512_cvtps_ph(v, NEAREST));
}

VF vec v_load_bf16(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(words(p), 16));
}

/* Adding 0x7fff plus the last kept bit carries into the upper half exactly if the lower half rounds up. */
VF __m256i rounded(vec v) {
    __m512i u = _mm512_castps_si512(v), high = _mm512_srli_epi32(u, 16);
    __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    __m512i h = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    h = _mm512_mask_or_epi32(h, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), high, _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(h);
}

/* VCVTNEPS2BF16 does this in one instruction but flushes subnormals, so the bits would depend on the path. */
VF void v_store_bf16(uint16_t *p, vec v) {
#ifdef SIMD_HAS_BF16
    __m256i h = (__m256i)_mm512_cvtneps_pbh(v);
    if (__builtin_expect(_mm512_fpclass_ps_mask(v, SUBNORMAL), 0)) h = rounded(v);
#else
    __m256i h = rounded(v);
#endif
    _mm256_storeu_si256((__m256i *)(void *)p, h);
}

#ifdef SIMD_HAS_BF16
/* Both vectors in one, a in the lower half */
VF __m512i rounded_two(vec a, vec b) {
    if (__builtin_expect(_mm512_fpclass_ps_mask(a, SUBNORMAL) | _mm512_fpclass_ps_mask(b, SUBNORMAL), 0))
        return _mm512_inserti64x4(_mm512_castsi256_si512(rounded(a)), rounded(b), 1);
    return (__m512i)_mm512_cvtne2ps_pbh(b, a);
}
#else
VF __m512i rounded_two(vec a, vec b) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(rounded(a)), rounded(b), 1);
}
#endif

VF void v_store_bf16_two(uint16_t *p, vec a, vec b) {
    _mm512_storeu_si512(p, rounded_two(a, b));
}

VF vec v_pair_f32(vec a, vec b) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, rounded_two(a, b)));
}

VF vec v_pair(const uint16_t *p, const uint16_t *q) {
    return _mm512_castsi512_ps(_mm512_or_si512(words(p), _mm512_slli_epi32(words(q), 16)));
}
