/*
 * The k-quants without a min: 256 elements in 16 sub-blocks of 16, x = d sc (q - half), where sc is a small integer.
 *
 * Q3_K: half = 4, sc in [-32, 32).    u8 hmask[32] | u8 qs[64] | u8 scales[12] | f16 d
 * Q6_K: half = 32, sc in [-128, 128). u8 ql[128] | u8 qh[64] | i8 scales[16] | f16 d
 */
#include <math.h>
#include <string.h>

#include "lib/tensor/quantize_internal.h"

enum { N = 256, SUBS = 16, SUB = N / SUBS };

/* Returns the scale of largest magnitude, which gets the code that has no positive counterpart. NaN if any scale is not
 * finite. */
static float largest(const float scales[SUBS]) {
    float found = 0;
    for (int s = 0; s < SUBS; s++) {
        if (!isfinite(scales[s])) return NAN;
        if (fabsf(scales[s]) > fabsf(found)) found = scales[s];
    }
    return found;
}

/* Recomputes the codes for the quantized scales. If a scale became 0, any code will do. */
static void round_to_grid(const float *x, float d, const int scales[SUBS], int half, uint8_t codes[N]) {
    for (int s = 0; s < SUBS; s++) {
        float scale = d * (float)scales[s];
        if (scale == 0) continue;
        fit_round(SUB, x + s * SUB, 0, scale, -half, half - 1, codes + s * SUB);
    }
}

static void squares_of(const float *x, float squares[N]) {
    for (int i = 0; i < N; i++) squares[i] = x[i] * x[i];
}

/* ==== Q3_K ==== */

enum { HALF_3 = 4, LOW_3_AT = 32, SCALES_3_AT = 96, D_3_AT = 108, SIZE_3 = 110 };

/* Sixteen 6-bit numbers with an offset of 32: the low nibbles of 0-7 and 8-15 share bytes 0-7; byte 8 + s % 4 has the
 * two high bits of s % 4, s % 4 + 4, + 8 and + 12. */
static void q3_unpack_scales(const uint8_t p[12], int scales[SUBS]) {
    for (int s = 0; s < SUBS; s++) {
        int low = p[s % 8] >> s / 8 * 4 & 15, high = p[8 + s % 4] >> s / 4 * 2 & 3;
        scales[s] = (low | high << 4) - 32;
    }
}

static void q3_pack_scales(const uint8_t codes[SUBS], uint8_t p[12]) {
    memset(p, 0, 12);
    for (int s = 0; s < SUBS; s++) {
        p[s % 8] |= (uint8_t)((codes[s] & 15) << s / 8 * 4);
        p[8 + s % 4] |= (uint8_t)(codes[s] >> 4 << s / 4 * 2);
    }
}

/* Bit i / 32 of hmask[i % 32] is the third bit of element i. */
static void q3_pack_codes(const uint8_t codes[N], uint8_t *block) {
    pack_2_bits(codes, block + LOW_3_AT);
    memset(block, 0, 32);
    for (int i = 0; i < N; i++) block[i % 32] |= (uint8_t)((codes[i] >> 2) << i / 32);
}

/* Unpacks the codes of sub-block s. */
static void q3_unpack_codes(const uint8_t *block, int s, uint8_t codes[SUB]) {
    const uint8_t *high = block + s % 2 * SUB;
    unpack_2_bits(block + LOW_3_AT, s, codes);
    for (int i = 0; i < SUB; i++) codes[i] |= (uint8_t)((high[i] >> s / 2 & 1) << 2);
}

static void q3_k_decode(const void *blocks, float *dst, size_t n_blocks) {
    const uint8_t *block = blocks;
    for (size_t b = 0; b < n_blocks; b++, block += SIZE_3) {
        int scales[SUBS];
        float d = load_f16(block + D_3_AT);
        q3_unpack_scales(block + SCALES_3_AT, scales);
        for (int s = 0; s < SUBS; s++, dst += SUB) {
            float scale = d * (float)scales[s];
            uint8_t codes[SUB];
            q3_unpack_codes(block, s, codes);
            for (int i = 0; i < SUB; i++) dst[i] = scale * (float)(codes[i] - HALF_3);
        }
    }
}

static void q3_k_parts(const uint8_t *block, struct quant_parts *p) {
    int scales[SUBS];
    q3_unpack_scales(block + SCALES_3_AT, scales);
    p->d = f16_bits(block + D_3_AT);
    p->min = 0;
    for (int s = 0; s < SUBS; s++) {
        p->scales[s] = (int8_t)scales[s];
        q3_unpack_codes(block, s, p->codes + s * SUB);
    }
}

static void q3_k_join(const struct quant_parts *p, uint8_t *block) {
    uint8_t scales[SUBS];
    for (int s = 0; s < SUBS; s++) scales[s] = (uint8_t)(p->scales[s] + 32);
    put_bits(block + D_3_AT, p->d);
    q3_pack_scales(scales, block + SCALES_3_AT);
    q3_pack_codes(p->codes, block);
}

/* Rounds scales to 6 bits without importance: the largest becomes -32. */
static float q3_round_scales(const float scales[SUBS], uint8_t codes[SUBS]) {
    memset(codes, 0, SUBS);
    float extreme = largest(scales);
    if (extreme == 0 || isnan(extreme)) return extreme;
    float inverse = -32.0f / extreme;
    for (int s = 0; s < SUBS; s++) codes[s] = (uint8_t)(nearest_code(inverse * scales[s], -32, 31) + 32);
    return 1 / inverse;
}

/* Fits the sub-blocks by coordinate descent without importance; with it by trial scales, also for their scales. */
static float q3_fit(const float *x, const float *importance, uint8_t codes[N], uint8_t scale_codes[SUBS]) {
    float scales[SUBS], weights[N];
    if (!importance) {
        squares_of(x, weights);
        for (int s = 0; s < N; s += SUB) scales[s / SUB] = fit_descent(SUB, HALF_3, x + s, weights + s, codes + s);
        return q3_round_scales(scales, scale_codes);
    }
    float sum = 0, weight_of_sub[SUBS] = {0}, d;
    for (int i = 0; i < N; i++) sum += x[i] * x[i];
    float sigma2 = 2 * sum / N;
    fit_weigh(N, x, importance, sigma2, weights);
    for (int i = 0; i < SUB; i++)
        for (int s = 0; s < SUBS; s++) weight_of_sub[s] += weights[s * SUB + i];
    fit_symmetric(SUBS, SUB, HALF_3, x, weights, codes, scales);
    if (isnan(largest(scales))) return NAN;
    fit_symmetric(1, SUBS, 32, scales, weight_of_sub, scale_codes, &d);
    return d;
}

static size_t q3_k_encode(const float *src, void *blocks, size_t n_blocks, const struct row_weights *w) {
    uint8_t *block = blocks;
    for (size_t b = 0; b < n_blocks; b++, block += SIZE_3, src += N) {
        uint8_t codes[N], scale_codes[SUBS];
        int scales[SUBS];
        float d = q3_fit(src, importance_of(w, b * N), codes, scale_codes);
        if (!store_f16(block + D_3_AT, d)) return b;
        q3_pack_scales(scale_codes, block + SCALES_3_AT);
        q3_unpack_scales(block + SCALES_3_AT, scales);
        round_to_grid(src, load_f16(block + D_3_AT), scales, HALF_3, codes);
        q3_pack_codes(codes, block);
    }
    return n_blocks;
}

const struct element_type q3_k_type = {
    .info = {BLOCK_INFO(Q3_K, "q3_k", N, SIZE_3, 11), .fallback = DT_Q4_0, .weighed = true, .summary = "blocks of 256"},
    .decode = q3_k_decode,
    .encode = q3_k_encode,
    .scale_at = {D_3_AT, -1},
    .parts = q3_k_parts,
    .join = q3_k_join,
    .form = {DT_Q3_K, 3, SUB, HALF_3, false, true, -32, 31, 7, NULL},
};

/* ==== Q6_K ==== */

enum { HALF_6 = 32, HIGH_6_AT = 128, SCALES_6_AT = 192, D_6_AT = 208, SIZE_6 = 210 };

/* Unpacks the codes of sub-block s. In each half of 128 elements, quarter k of 32 has its low nibbles in ql[(k & 1) *
 * 32 + l] >> (k >> 1) * 4 and its two high bits in qh[l] >> 2k. */
static inline void q6_unpack_codes(const uint8_t *block, int s, uint8_t codes[SUB]) {
    int half = s / 8, k = s / 2 % 4, l = s % 2 * SUB; /* a sub-block is half a quarter */
    const uint8_t *low = block + half * 64 + (k & 1) * 32 + l, *high = block + HIGH_6_AT + half * 32 + l;
    for (int i = 0; i < SUB; i++) codes[i] = (uint8_t)((low[i] >> (k >> 1) * 4 & 15) | (high[i] >> 2 * k & 3) << 4);
}

static void q6_k_parts(const uint8_t *block, struct quant_parts *p) {
    p->d = f16_bits(block + D_6_AT);
    p->min = 0;
    memcpy(p->scales, block + SCALES_6_AT, SUBS);
    for (int s = 0; s < SUBS; s++) q6_unpack_codes(block, s, p->codes + s * SUB);
}

static void q6_k_decode(const void *blocks, float *dst, size_t n_blocks) {
    const uint8_t *block = blocks;
    for (size_t b = 0; b < n_blocks; b++, block += SIZE_6) {
        const uint8_t *scales = block + SCALES_6_AT;
        float d = load_f16(block + D_6_AT);
        for (int s = 0; s < SUBS; s++, dst += SUB) {
            float scale = d * (int8_t)scales[s];
            uint8_t codes[SUB];
            q6_unpack_codes(block, s, codes);
            for (int i = 0; i < SUB; i++) dst[i] = scale * (float)(codes[i] - HALF_6);
        }
    }
}

static void q6_pack_codes(const uint8_t codes[N], uint8_t *block) {
    for (int half = 0; half < 2; half++, codes += 128) {
        uint8_t *low = block + half * 64, *high = block + HIGH_6_AT + half * 32;
        for (int l = 0; l < 32; l++) {
            uint8_t a = codes[l], b = codes[l + 32], c = codes[l + 64], d = codes[l + 96];
            low[l] = (uint8_t)((a & 15) | (c & 15) << 4);
            low[l + 32] = (uint8_t)((b & 15) | (d & 15) << 4);
            high[l] = (uint8_t)(a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6);
        }
    }
}

static void q6_k_join(const struct quant_parts *p, uint8_t *block) {
    put_bits(block + D_6_AT, p->d);
    memcpy(block + SCALES_6_AT, p->scales, SUBS);
    q6_pack_codes(p->codes, block);
}

static bool q6_encode_block(const float *x, const float *importance, uint8_t *block) {
    uint8_t codes[N];
    int scale_codes[SUBS];
    float scales[SUBS], squares[N];
    squares_of(x, squares);
    fit_symmetric(SUBS, SUB, HALF_6, x, importance ? importance : squares, codes, scales);
    float extreme = largest(scales);
    if (isnan(extreme)) return false;
    memset(block, 0, SIZE_6);
    if (fabsf(extreme) < FIT_NEARLY_ZERO) return true;
    float inverse = -128.0f / extreme;
    if (!store_f16(block + D_6_AT, 1 / inverse)) return false;
    for (int s = 0; s < SUBS; s++) {
        scale_codes[s] = nearest_code(inverse * scales[s], -128, 127);
        block[SCALES_6_AT + s] = (uint8_t)scale_codes[s];
    }
    round_to_grid(x, load_f16(block + D_6_AT), scale_codes, HALF_6, codes);
    q6_pack_codes(codes, block);
    return true;
}

static size_t q6_k_encode(const float *src, void *blocks, size_t n_blocks, const struct row_weights *w) {
    for (size_t b = 0; b < n_blocks; b++)
        if (!q6_encode_block(src + b * N, importance_of(w, b * N), (uint8_t *)blocks + b * SIZE_6)) return b;
    return n_blocks;
}

const struct element_type q6_k_type = {
    .info = {BLOCK_INFO(Q6_K, "q6_k", N, SIZE_6, 18), .fallback = DT_Q8_0, .weighed = true, .summary = "blocks of 256"},
    .decode = q6_k_decode,
    .encode = q6_k_encode,
    .scale_at = {D_6_AT, -1},
    .parts = q6_k_parts,
    .join = q6_k_join,
    .form = {DT_Q6_K, 6, SUB, HALF_6, false, true, -128, 127, 63, NULL},
};
