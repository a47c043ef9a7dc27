/*
 * Quantized blocks to bf16, with the bits of tensor_to_f32 followed by rounding. lib/tensor/quantize_*.c describe the
 * blocks. Codes of four and five bits index vectors of the 16 or 32 values that a scale allows. Two vectors are rounded
 * at once by an instruction that would flush subnormal numbers, but no f16 scale is that small.
 */
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
#include "lib/kernel/avx512.h"

#define INLINE16 static inline __attribute__((always_inline)) TARGET_BF16

/* The f16 at p, in all lanes. */
INLINE16 __m512 scale_at(const uint8_t *p) {
    short h;
    memcpy(&h, p, sizeof h);
    return _mm512_cvtph_ps(_mm256_set1_epi16(h));
}

INLINE16 __m512i bytes_at(const uint8_t *p) { /* 16 bytes, widened */
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
}

INLINE16 void store_32(uint16_t *to, __m512 low, __m512 high) {
    _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

INLINE16 __m512 counting(float from) {
    return _mm512_add_ps(_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_ps(from));
}

TARGET_BF16 static void q8_0(const uint8_t *p, uint16_t *to, size_t n) {
    for (size_t i = 0; i < n; i += 32, p += 34) {
        __m512 d = scale_at(p), v[2];
        for (int h = 0; h < 2; h++) {
            __m128i codes = _mm_loadu_si128((const __m128i *)(const void *)(p + 2 + 16 * h));
            v[h] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)), d);
        }
        store_32(to + i, v[0], v[1]);
    }
}

/* The permutation uses only the low four bits of an index, so the low codes need no mask. */
INLINE16 void store_nibbles(uint16_t *to, const uint8_t *p, __m512 values) {
    __m512i codes = bytes_at(p);
    store_32(to, _mm512_permutexvar_ps(codes, values), _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4), values));
}

TARGET_BF16 static void q4_0(const uint8_t *p, uint16_t *to, size_t n) {
    __m512 codes = counting(-8);
    for (size_t i = 0; i < n; i += 32, p += 18) store_nibbles(to + i, p + 2, _mm512_mul_ps(codes, scale_at(p)));
}

TARGET_BF16 static void q4_1(const uint8_t *p, uint16_t *to, size_t n) {
    __m512 codes = counting(0);
    for (size_t i = 0; i < n; i += 32, p += 20)
        store_nibbles(to + i, p + 4, _mm512_add_ps(_mm512_mul_ps(codes, scale_at(p)), scale_at(p + 2)));
}

/* 32 codes of five bits: nibbles, and their fifth bits in a word. `lower` has the values of codes 0 to 15, `upper`
 * those of 16 to 31. */
INLINE16 void store_5_bits(uint16_t *to, const uint8_t *top, const uint8_t *p, __m512 lower, __m512 upper) {
    const __m512i nibble = _mm512_set1_epi32(15), bit = _mm512_set1_epi32(16);
    uint32_t tops;
    memcpy(&tops, top, sizeof tops);
    __m512i codes = bytes_at(p), first = _mm512_and_si512(codes, nibble), second = _mm512_srli_epi32(codes, 4);
    first = _mm512_mask_or_epi32(first, (__mmask16)tops, first, bit);
    second = _mm512_mask_or_epi32(second, (__mmask16)(tops >> 16), second, bit);
    store_32(to, _mm512_permutex2var_ps(lower, first, upper), _mm512_permutex2var_ps(lower, second, upper));
}

TARGET_BF16 static void q5_0(const uint8_t *p, uint16_t *to, size_t n) {
    __m512 lower = counting(-16), upper = counting(0);
    for (size_t i = 0; i < n; i += 32, p += 22) {
        __m512 d = scale_at(p);
        store_5_bits(to + i, p + 2, p + 6, _mm512_mul_ps(lower, d), _mm512_mul_ps(upper, d));
    }
}

TARGET_BF16 static void q5_1(const uint8_t *p, uint16_t *to, size_t n) {
    __m512 lower = counting(0), upper = counting(16);
    for (size_t i = 0; i < n; i += 32, p += 24) {
        __m512 d = scale_at(p), m = scale_at(p + 2);
        store_5_bits(to + i, p + 4, p + 8, _mm512_add_ps(_mm512_mul_ps(lower, d), m),
                     _mm512_add_ps(_mm512_mul_ps(upper, d), m));
    }
}

/* Sixteen 6-bit numbers in 12 bytes, as in unpack_6_bits of quantize_k_affine.c, four at a time: scales in bytes 0 to
 * 7, then minima. */
static __m128i q4_k_scales(const uint8_t *p) {
    uint32_t a, b, c;
    memcpy(&a, p, 4);
    memcpy(&b, p + 4, 4);
    memcpy(&c, p + 8, 4);
    uint32_t low = 0x3f3f3f3f, nibble = 0x0f0f0f0f, top = 0x30303030;
    return _mm_setr_epi32((int)(a & low), (int)((c & nibble) | (a >> 2 & top)), (int)(b & low),
                          (int)((c >> 4 & nibble) | (b >> 2 & top)));
}

/* Sub-blocks 2j and 2j + 1 share 32 bytes. */
TARGET_BF16 static void q4_k(const uint8_t *p, uint16_t *to, size_t n) {
    __m512 codes = counting(0);
    for (size_t i = 0; i < n; i += 256, p += 144) {
        _Alignas(64) float scale[16]; /* scales, then minima */
        __m512 factors = _mm512_mask_mov_ps(scale_at(p), 0xff00, scale_at(p + 2));
        _mm512_store_ps(scale, _mm512_mul_ps(factors, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(q4_k_scales(p + 4)))));
        for (int s = 0; s < 8; s += 2) {
            const uint8_t *q = p + 16 + 16 * s;
            __m512i first_half = bytes_at(q), second_half = bytes_at(q + 16);
            __m512 low = _mm512_sub_ps(_mm512_mul_ps(_mm512_set1_ps(scale[s]), codes), _mm512_set1_ps(scale[8 + s]));
            __m512 high =
                _mm512_sub_ps(_mm512_mul_ps(_mm512_set1_ps(scale[s + 1]), codes), _mm512_set1_ps(scale[9 + s]));
            store_32(to + i + 32 * s, _mm512_permutexvar_ps(first_half, low), _mm512_permutexvar_ps(second_half, low));
            store_32(to + i + 32 * s + 32, _mm512_permutexvar_ps(_mm512_srli_epi32(first_half, 4), high),
                     _mm512_permutexvar_ps(_mm512_srli_epi32(second_half, 4), high));
        }
    }
}

/* 64 one-byte codes: four groups of 16, each with a scale. */
INLINE16 void store_q6(uint16_t *to, __m512i codes, const float *scale) {
    __m512 v[4];
    v[0] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm512_castsi512_si128(codes)));
    v[1] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32(codes, 1)));
    v[2] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32(codes, 2)));
    v[3] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32(codes, 3)));
    for (int g = 0; g < 4; g++) v[g] = _mm512_mul_ps(_mm512_set1_ps(scale[g]), v[g]);
    store_32(to, v[0], v[1]);
    store_32(to + 32, v[2], v[3]);
}

/* Each half of 128 elements: 64 bytes of low nibbles, for quarters 0 and 1, then 2 and 3; 32 bytes of top bits, two per
 * quarter. */
TARGET_BF16 static void q6_k(const uint8_t *p, uint16_t *to, size_t n) {
    const __m512i nibble = _mm512_set1_epi8(15), two = _mm512_set1_epi8(3), bias = _mm512_set1_epi8(32);
    /* shifts of 16-bit words, for the quarters in the lower and the upper half of a vector */
    const __m512i first_pair = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(2), 1);
    const __m512i second_pair = _mm512_add_epi16(first_pair, _mm512_set1_epi16(4));
    for (size_t i = 0; i < n; i += 256, p += 210) {
        _Alignas(64) float scale[16];
        __m128i scales = _mm_loadu_si128((const __m128i *)(const void *)(p + 192));
        _mm512_store_ps(scale, _mm512_mul_ps(scale_at(p + 208), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(scales))));
        for (int half = 0; half < 2; half++) {
            __m512i low = _mm512_loadu_si512(p + 64 * half);
            __m512i high =
                _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(const void *)(p + 128 + 32 * half)));
            __m512i top = _mm512_and_si512(_mm512_srlv_epi16(high, first_pair), two);
            __m512i codes = _mm512_or_si512(_mm512_and_si512(low, nibble), _mm512_slli_epi16(top, 4));
            store_q6(to + i + 128 * half, _mm512_sub_epi8(codes, bias), scale + 8 * half);
            top = _mm512_and_si512(_mm512_srlv_epi16(high, second_pair), two);
            codes = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(low, 4), nibble), _mm512_slli_epi16(top, 4));
            store_q6(to + i + 128 * half + 64, _mm512_sub_epi8(codes, bias), scale + 8 * half + 4);
        }
    }
}

bool dequantize_avx512bf16(enum dtype type, const void *blocks, uint16_t *to, size_t n) {
    switch (type) {
    case DT_Q8_0: q8_0(blocks, to, n); return true;
    case DT_Q4_0: q4_0(blocks, to, n); return true;
    case DT_Q4_1: q4_1(blocks, to, n); return true;
    case DT_Q5_0: q5_0(blocks, to, n); return true;
    case DT_Q5_1: q5_1(blocks, to, n); return true;
    case DT_Q4_K: q4_k(blocks, to, n); return true;
    case DT_Q6_K: q6_k(blocks, to, n); return true;
    default: return false;
    }
}
#else
typedef int dequantize_avx512bf16_needs_x86_64; /* ISO C wants a declaration in every file */
#endif
