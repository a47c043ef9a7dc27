/* The 16-bit floating types. Scalar conversions match the hardware instructions (VCVTPH2PS, VCVTPS2PH), NaN payloads
 * included, so that arrays can use the instructions where available. */
#include <string.h>

#include "lib/tensor/quantize_internal.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

union bits32 {
    float f;
    uint32_t u;
};

float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    union bits32 r;
    if (exponent == 0)
        r.f = (float)mantissa * 0x1p-24f; /* zero and subnormals: a small integer, scaled exactly */
    else if (exponent == 31)
        r.u = 0x7f800000 | mantissa << 13 | (mantissa ? 0x400000 : 0); /* infinity, or NaN made quiet */
    else
        r.u = (exponent + 127 - 15) << 23 | mantissa << 13;
    r.u |= sign;
    return r.f;
}

/* Rounds u / 2^shift to the nearest integer, ties to even. */
static uint32_t shift_round(uint32_t u, unsigned shift) {
    return (u + (1u << (shift - 1)) - 1 + (u >> shift & 1)) >> shift;
}

uint16_t f32_to_f16(float f) {
    union bits32 v = {.f = f};
    uint32_t sign = v.u >> 16 & 0x8000, magnitude = v.u & 0x7fffffff;
    uint32_t h;
    if (magnitude > 0x7f800000) {
        h = 0x7e00 | (magnitude >> 13 & 0x3ff);
    } else if (magnitude >= 0x47800000) { /* from 2^16 on: infinity; 65504 to 2^16 is rounded below */
        h = 0x7c00;
    } else if (magnitude >= 0x38800000) { /* from 2^-14 on: normal. A carry may make it infinity */
        h = shift_round(magnitude - ((127 - 15) << 23), 13);
    } else if (magnitude >= 0x33000000) { /* from 2^-25 on, half the smallest subnormal: a tie, which rounds to 0 */
        unsigned exponent = magnitude >> 23;
        h = shift_round((magnitude & 0x7fffff) | 0x800000, 126 - exponent);
    } else {
        h = 0;
    }
    return (uint16_t)(sign | h);
}

uint16_t f32_to_bf16(float f) {
    union bits32 v = {.f = f};
    if ((v.u & 0x7fffffff) > 0x7f800000) return (uint16_t)(v.u >> 16 | 0x40);
    return (uint16_t)shift_round(v.u, 16);
}

/* ---- arrays ---- */

#ifdef __x86_64__

#define WIDE __attribute__((target("avx2,f16c")))

/* clang has no builtin test for f16c, but every processor with AVX2 has it. */
static bool is_wide(void) {
    return __builtin_cpu_supports("avx2");
}

/* These convert whole groups of eight from the start and return the number of elements done. */
WIDE static size_t f16_decode_eights(const unsigned char *src, float *dst, size_t n) {
    size_t i = 0;
    for (; n - i >= 8; i += 8)
        _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(src + 2 * i))));
    return i;
}

WIDE static size_t f16_encode_eights(const float *src, unsigned char *dst, size_t n) {
    size_t i = 0;
    for (; n - i >= 8; i += 8)
        _mm_storeu_si128((__m128i *)(void *)(dst + 2 * i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    return i;
}

/* f32_to_bf16 without a branch: computes both results and selects one. */
WIDE static size_t bf16_encode_eights(const float *src, unsigned char *dst, size_t n) {
    size_t i = 0;
    for (; n - i >= 8; i += 8) {
        __m256i u = _mm256_loadu_si256((const __m256i *)(const void *)(src + i)), high = _mm256_srli_epi32(u, 16);
        __m256i magnitude = _mm256_and_si256(u, _mm256_set1_epi32(0x7fffffff));
        __m256i is_nan = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7f800000));
        __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
        __m256i rounded = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
        __m256i h = _mm256_blendv_epi8(_mm256_srli_epi32(rounded, 16), quiet, is_nan);
        __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(h, h), 0x08);
        _mm_storeu_si128((__m128i *)(void *)(dst + 2 * i), _mm256_castsi256_si128(packed));
    }
    return i;
}

#else

static bool is_wide(void) {
    return false;
}
static size_t f16_decode_eights(const unsigned char *src, float *dst, size_t n) {
    return (void)src, (void)dst, n - n;
}
static size_t f16_encode_eights(const float *src, unsigned char *dst, size_t n) {
    return (void)src, (void)dst, n - n;
}
static size_t bf16_encode_eights(const float *src, unsigned char *dst, size_t n) {
    return (void)src, (void)dst, n - n;
}

#endif

static uint16_t load_u16(const unsigned char *p) {
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

void f16_decode(const void *src, float *dst, size_t n) {
    for (size_t i = is_wide() ? f16_decode_eights(src, dst, n) : 0; i < n; i++)
        dst[i] = f16_to_f32(load_u16((const unsigned char *)src + 2 * i));
}

size_t f16_encode(const float *src, void *dst, size_t n, const struct row_weights *w) {
    (void)w;
    for (size_t i = is_wide() ? f16_encode_eights(src, dst, n) : 0; i < n; i++)
        memcpy((unsigned char *)dst + 2 * i, &(uint16_t){f32_to_f16(src[i])}, 2);
    return n;
}

void bf16_decode(const void *src, float *dst, size_t n) {
    for (size_t i = 0; i < n; i++) dst[i] = bf16_to_f32(load_u16((const unsigned char *)src + 2 * i));
}

size_t bf16_encode(const float *src, void *dst, size_t n, const struct row_weights *w) {
    (void)w;
    for (size_t i = is_wide() ? bf16_encode_eights(src, dst, n) : 0; i < n; i++)
        memcpy((unsigned char *)dst + 2 * i, &(uint16_t){f32_to_bf16(src[i])}, 2);
    return n;
}
