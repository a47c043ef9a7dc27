/*
 * The k-quants: 256 elements in sub-blocks whose scales (and mins) are themselves quantized.
 *
 * Q4_K, Q5_K: 8 sub-blocks of 32, x = d sc q - dmin m, with 6-bit sc and m.
 *     f16 d | f16 dmin | u8 scales[12] | u8 qh[32] (Q5_K) | u8 qs[128]
 * Q6_K: 16 sub-blocks of 16, x = d sc (q - 32), with 8-bit signed sc.
 *     u8 ql[128] | u8 qh[64] | i8 scales[16] | f16 d
 */
#include <math.h>
#include <string.h>

#include "lib/tensor/quantize_internal.h"

#define N      256
#define INLINE static inline __attribute__((always_inline))

/* ==== Q4_K and Q5_K ==== */

enum { SUBS = 8, SUB = N / SUBS, SCALES_AT = 4, HIGH_AT = 16 };

INLINE size_t affine_size(int bits) {
    return (size_t)HIGH_AT + (bits == 5 ? SUB : 0) + N / 2;
}

/* Sixteen 6-bit numbers in 12 bytes: of the first four pairs the low 6 bits of a byte each, whose top 2 bits belong to the
 * last four pairs, which have their low 4 bits together in a byte. */
static void unpack_scales(const uint8_t p[12], uint8_t scales[SUBS], uint8_t mins[SUBS]) {
    for (int j = 0; j < 4; j++) {
        scales[j] = p[j] & 63;
        mins[j] = p[j + 4] & 63;
        scales[j + 4] = (uint8_t)((p[j + 8] & 15) | p[j] >> 6 << 4);
        mins[j + 4] = (uint8_t)(p[j + 8] >> 4 | p[j + 4] >> 6 << 4);
    }
}

static void pack_scales(const uint8_t scales[SUBS], const uint8_t mins[SUBS], uint8_t p[12]) {
    for (int j = 0; j < 4; j++) {
        p[j] = (uint8_t)(scales[j] | scales[j + 4] >> 4 << 6);
        p[j + 4] = (uint8_t)(mins[j] | mins[j + 4] >> 4 << 6);
        p[j + 8] = (uint8_t)((scales[j + 4] & 15) | (mins[j + 4] & 15) << 4);
    }
}

/* The codes of sub-blocks 2k and 2k + 1 share 32 bytes of qs; bit s of qh[l] is the fifth bit of element l of sub-block s. */
INLINE void affine_pack(const uint8_t codes[N], uint8_t *block, int bits) {
    uint8_t *high = block + HIGH_AT, *low = bits == 5 ? high + SUB : high;
    if (bits == 5) memset(high, 0, SUB);
    for (int s = 0; s < SUBS; s += 2, low += SUB, codes += 2 * SUB)
        for (int l = 0; l < SUB; l++) {
            low[l] = (uint8_t)((codes[l] & 15) | (codes[l + SUB] & 15) << 4);
            if (bits == 5) high[l] |= (uint8_t)((codes[l] >> 4) << s | (codes[l + SUB] >> 4) << (s + 1));
        }
}

INLINE void affine_decode(const uint8_t *block, float *y, size_t n_blocks, int bits) {
    for (size_t b = 0; b < n_blocks; b++, block += affine_size(bits)) {
        uint8_t scales[SUBS], mins[SUBS];
        unpack_scales(block + SCALES_AT, scales, mins);
        float d = load_f16(block), dmin = load_f16(block + 2);
        const uint8_t *high = block + HIGH_AT, *low = bits == 5 ? high + SUB : high;
        for (int s = 0; s < SUBS; s++, y += SUB) {
            const uint8_t *q = low + s / 2 * SUB;
            int shift = s % 2 * 4;
            float scale = d * scales[s], min = dmin * mins[s];
            uint8_t codes[SUB]; /* of its own, so that the compiler knows that y is elsewhere and vectorises */
            for (int l = 0; l < SUB; l++) codes[l] = q[l] >> shift & 15;
            for (int l = 0; bits == 5 && l < SUB; l++) codes[l] |= (uint8_t)((high[l] >> s & 1) << 4);
            for (int l = 0; l < SUB; l++) y[l] = scale * (float)codes[l] - min;
        }
    }
}

/* What is found for one block before its scales are quantized. */
struct affine_fit {
    float scales[SUBS], mins[SUBS]; /* the mins with their sign turned: >= 0 */
    float weight[SUBS];             /* of each sub-block in the fit of the scales */
    uint8_t codes[N];
};

static float sum_of_squares(const float *x, int n) {
    float sum = 0;
    for (int i = 0; i < n; i++) sum += x[i] * x[i];
    return sum;
}

/* False when a scale is not a number one can go on with. */
static bool fit_sub_blocks(const float *x, const float *importance, int bits, struct affine_fit *fit) {
    static const struct fit_search search_4 = {-1.0f, 0.1f, 20}, search_5 = {-0.5f, 0.1f, 15},
                                   search_weighted = {-0.9f, 0.05f, 36};
    const struct fit_search *search = importance ? &search_weighted : bits == 4 ? &search_4 : &search_5;
    float sigma2 = importance ? 2 * sum_of_squares(x, N) / N : 0;
    float weights[N];
    for (int s = 0; s < SUBS; s++) {
        const float *sub = x + s * SUB;
        float *weight = weights + s * SUB, rms = importance ? 0 : sqrtf(sum_of_squares(sub, SUB) / SUB);
        fit->weight[s] = 0;
        for (int l = 0; l < SUB; l++) {
            weight[l] = importance ? importance[s * SUB + l] * sqrtf(sigma2 + sub[l] * sub[l]) : rms + fabsf(sub[l]);
            fit->weight[s] += weight[l];
        }
    }
    fit_affine(SUBS, SUB, (1 << bits) - 1, x, weights, search, fit->codes, fit->scales, fit->mins);
    bool usable = true;
    for (int s = 0; s < SUBS; s++) usable &= isfinite(fit->scales[s]) && isfinite(fit->mins[s]);
    return usable;
}

/* Eight scales >= 0 to 6 bits: the largest gets 63. */
static float round_scales(const float x[SUBS], uint8_t codes[SUBS]) {
    float max = 0;
    for (int s = 0; s < SUBS; s++)
        if (x[s] > max) max = x[s];
    float inverse = max > 0 ? 63.0f / max : 0.0f;
    for (int s = 0; s < SUBS; s++) codes[s] = (uint8_t)nearest_code(inverse * x[s], 0, 63);
    return max / 63.0f;
}

/* The codes once more, now for the scales as a reader will see them. Where a scale became 0 any code will do. */
static void round_to_grid(const float *x, float d, float dmin, const uint8_t scales[SUBS], const uint8_t mins[SUBS],
                          int top, uint8_t codes[N]) {
    for (int s = 0; s < SUBS; s++, x += SUB, codes += SUB) {
        float scale = d * scales[s], min = dmin * mins[s];
        if (scale == 0) continue;
        for (int l = 0; l < SUB; l++) codes[l] = (uint8_t)nearest_code((x[l] + min) / scale, 0, top);
    }
}

INLINE size_t affine_encode(const float *x, uint8_t *block, size_t n_blocks, const struct row_weights *w, int bits) {
    for (size_t b = 0; b < n_blocks; b++, x += N, block += affine_size(bits)) {
        struct affine_fit fit;
        uint8_t scales[SUBS], mins[SUBS];
        float d, dmin;
        if (!fit_sub_blocks(x, w ? w->importance + b * N : NULL, bits, &fit)) return b;
        if (w) {
            d = fit_positive(SUBS, 63, fit.scales, fit.weight, scales);
            dmin = fit_positive(SUBS, 63, fit.mins, fit.weight, mins);
        } else {
            d = round_scales(fit.scales, scales);
            dmin = round_scales(fit.mins, mins);
        }
        if (!store_f16(block, d) || !store_f16(block + 2, dmin)) return b;
        pack_scales(scales, mins, block + SCALES_AT);
        round_to_grid(x, load_f16(block), load_f16(block + 2), scales, mins, (1 << bits) - 1, fit.codes);
        affine_pack(fit.codes, block, bits);
    }
    return n_blocks;
}

void q4_k_decode(const void *blocks, float *dst, size_t n_blocks) {
    affine_decode(blocks, dst, n_blocks, 4);
}
void q5_k_decode(const void *blocks, float *dst, size_t n_blocks) {
    affine_decode(blocks, dst, n_blocks, 5);
}

size_t q4_k_encode(const float *src, void *blocks, size_t n_blocks, const struct row_weights *w) {
    return affine_encode(src, blocks, n_blocks, w, 4);
}

size_t q5_k_encode(const float *src, void *blocks, size_t n_blocks, const struct row_weights *w) {
    return affine_encode(src, blocks, n_blocks, w, 5);
}

/* ==== Q6_K ==== */

enum { SUBS_6 = 16, SUB_6 = N / SUBS_6, HIGH_6_AT = 128, SCALES_6_AT = 192, D_6_AT = 208, SIZE_6 = 210 };

/* In each half of 128: quarter k of 32 has its low nibbles in ql[(k & 1) * 32 + l] >> (k >> 1) * 4 and its two high bits
 * in qh[l] >> 2k. */
void q6_k_decode(const void *blocks, float *dst, size_t n_blocks) {
    const uint8_t *block = blocks;
    for (size_t b = 0; b < n_blocks; b++, block += SIZE_6) {
        const uint8_t *scales = block + SCALES_6_AT;
        float d = load_f16(block + D_6_AT);
        for (int s = 0; s < SUBS_6; s++, dst += SUB_6) {
            int half = s / 8, k = s / 2 % 4, l = s % 2 * SUB_6; /* half a quarter */
            const uint8_t *low = block + half * 64 + (k & 1) * 32 + l, *high = block + HIGH_6_AT + half * 32 + l;
            float scale = d * (int8_t)scales[s];
            int8_t codes[SUB_6];
            for (int i = 0; i < SUB_6; i++)
                codes[i] = (int8_t)(((low[i] >> (k >> 1) * 4 & 15) | (high[i] >> 2 * k & 3) << 4) - 32);
            for (int i = 0; i < SUB_6; i++) dst[i] = scale * (float)codes[i];
        }
    }
}

static void q6_pack(const uint8_t codes[N], uint8_t *block) {
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

static bool q6_encode_block(const float *x, const float *importance, uint8_t *block) {
    uint8_t codes[N];
    float scales[SUBS_6], squares[N], largest = 0; /* of the scales by magnitude: it gets -128 */
    for (int i = 0; i < N; i++) squares[i] = x[i] * x[i];
    fit_symmetric(SUBS_6, SUB_6, 32, x, importance ? importance : squares, codes, scales);
    for (int s = 0; s < SUBS_6; s++) {
        if (!isfinite(scales[s])) return false;
        if (fabsf(scales[s]) > fabsf(largest)) largest = scales[s];
    }
    memset(block, 0, SIZE_6);
    if (fabsf(largest) < FIT_NEARLY_ZERO) return true;
    float inverse = -128.0f / largest;
    if (!store_f16(block + D_6_AT, 1 / inverse)) return false;
    float d = load_f16(block + D_6_AT);
    for (int s = 0; s < SUBS_6; s++) {
        int scale_code = nearest_code(inverse * scales[s], -128, 127);
        float scale = d * (float)scale_code;
        block[SCALES_6_AT + s] = (uint8_t)scale_code;
        if (scale == 0) continue;
        for (int i = s * SUB_6; i < (s + 1) * SUB_6; i++)
            codes[i] = (uint8_t)(nearest_code(x[i] / scale, -32, 31) + 32);
    }
    q6_pack(codes, block);
    return true;
}

size_t q6_k_encode(const float *src, void *blocks, size_t n_blocks, const struct row_weights *w) {
    for (size_t b = 0; b < n_blocks; b++)
        if (!q6_encode_block(src + b * N, w ? w->importance + b * N : NULL, (uint8_t *)blocks + b * SIZE_6)) return b;
    return n_blocks;
}
