/*
 * 4 bits with uneven steps, denser near 0, where most weights are: x = scale values[code].
 *
 * IQ4_NL: 32 elements.
 *   f16 d | u8 qs[16]: byte j = code j | code (j + 16) << 4
 * IQ4_XS: 256 elements, scale = d sc for each 32, sc in [-32, 32).
 *   f16 d | u16: the two high bits of each sc, the first lowest | u8 scales[4]: the four low bits |
 *   u8 qs[128]: as in IQ4_NL, eight times
 */
#include <math.h>
#include <string.h>

#include "lib/tensor/quantize_internal.h"

enum { SUB = 32, N = 256, SUBS = N / SUB, NL_SIZE = 18, XS_SIZE = 136, XS_LOW_AT = 4, XS_CODES_AT = 8 };

/* Data of the format, from llama.cpp (MIT licence). */
static const int8_t values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
enum { OFFSET = 128 }; /* a value as an unsigned 8-bit code */

/* Returns the code of the value nearest to x; a tie goes to the higher one. */
static int nearest_value(float x) {
    if (x <= (float)values[0]) return 0;
    if (x >= (float)values[15]) return 15;
    int low = 0, high = 15;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (x < (float)values[middle])
            high = middle;
        else
            low = middle;
    }
    return x - (float)values[low] < (float)values[high] - x ? low : high;
}

static void unpack(const uint8_t *p, uint8_t codes[SUB]) {
    for (int j = 0; j < SUB / 2; j++) {
        codes[j] = p[j] & 15;
        codes[j + 16] = p[j] >> 4;
    }
}

static void pack(const uint8_t codes[SUB], uint8_t *p) {
    for (int j = 0; j < SUB / 2; j++) p[j] = (uint8_t)(codes[j] | codes[j + 16] << 4);
}

static void decode_sub(const uint8_t *p, float scale, float *y) {
    uint8_t codes[SUB];
    unpack(p, codes);
    for (int j = 0; j < SUB; j++) y[j] = scale * (float)values[codes[j]];
}

static void parts_of_sub(const uint8_t *p, uint8_t *codes) {
    unpack(p, codes);
    for (int j = 0; j < SUB; j++) codes[j] = (uint8_t)(values[codes[j]] + OFFSET);
}

static int code_of(uint8_t value) {
    int code = 0;
    while (code < 15 && values[code] + OFFSET < value) code++;
    return code;
}

static void join_sub(const uint8_t *value_codes, uint8_t *p) {
    uint8_t codes[SUB];
    for (int j = 0; j < SUB; j++) codes[j] = (uint8_t)code_of(value_codes[j]);
    pack(codes, p);
}

/* ---- the search for a scale: trials around those that map the extreme to the lowest or the highest value ---- */

static void sums_of(const float *x, const float *w, float inverse, float *sum_xv, float *sum_v2) {
    *sum_xv = *sum_v2 = 0;
    for (int j = 0; j < SUB; j++) {
        float v = (float)values[nearest_value(inverse * x[j])];
        *sum_xv += w[j] * v * x[j];
        *sum_v2 += w[j] * v * v;
    }
}

static float fit(const float *x, const float *w) {
    enum { TRIALS = 7 };
    float extreme = 0, sum_xv, sum_v2;
    for (int j = 0; j < SUB; j++)
        if (fabsf(x[j]) > fabsf(extreme)) extreme = x[j];
    if (fabsf(extreme) < FIT_NEARLY_ZERO) return 0;
    float scale = -extreme / (float)values[0];
    sums_of(x, w, 1 / scale, &sum_xv, &sum_v2);
    /* If all weights of a group are 0 (columns inactive during calibration), round plainly; ggml stores zeros. */
    if (sum_v2 > 0) scale = sum_xv / sum_v2;
    float best = scale * sum_xv;
    for (int trial = -TRIALS; trial <= TRIALS; trial++) {
        sums_of(x, w, (float)(trial + values[0]) / extreme, &sum_xv, &sum_v2);
        if (!(sum_v2 > 0 && sum_xv * sum_xv > best * sum_v2)) continue;
        scale = sum_xv / sum_v2;
        best = scale * sum_xv;
    }
    return scale;
}

static void weigh(const float *x, int n, const float *importance, float *w) {
    float sum = 0;
    for (int i = 0; i < n; i++) sum += x[i] * x[i];
    if (importance) fit_weigh((size_t)n, x, importance, sum * (2.0f / (float)n), w);
    for (int i = 0; !importance && i < n; i++) w[i] = x[i] * x[i];
}

static void round_to(const float *x, float scale, uint8_t codes[SUB]) {
    float inverse = scale != 0 ? 1 / scale : 0;
    for (int j = 0; j < SUB; j++) codes[j] = (uint8_t)nearest_value(inverse * x[j]);
}

/* ---- IQ4_NL ---- */

static void iq4_nl_decode(const void *blocks, float *dst, size_t n_blocks) {
    const uint8_t *block = blocks;
    for (size_t b = 0; b < n_blocks; b++, block += NL_SIZE, dst += SUB) decode_sub(block + 2, load_f16(block), dst);
}

static void iq4_nl_parts(const uint8_t *block, struct quant_parts *p) {
    p->d = f16_bits(block);
    p->min = 0;
    p->scales[0] = p->mins[0] = 1;
    parts_of_sub(block + 2, p->codes);
}

static void iq4_nl_join(const struct quant_parts *p, uint8_t *block) {
    put_bits(block, p->d);
    join_sub(p->codes, block + 2);
}

static size_t iq4_nl_encode(const float *src, void *blocks, size_t n_blocks, const struct row_weights *w) {
    uint8_t *block = blocks;
    for (size_t b = 0; b < n_blocks; b++, block += NL_SIZE, src += SUB) {
        float weights[SUB];
        uint8_t codes[SUB];
        weigh(src, SUB, importance_of(w, b * SUB), weights);
        float scale = fit(src, weights);
        if (!store_f16(block, scale)) return b;
        round_to(src, scale, codes);
        pack(codes, block + 2);
    }
    return n_blocks;
}

const struct element_type iq4_nl_type = {
    .info = {BLOCK_INFO(IQ4_NL, "iq4_nl", SUB, NL_SIZE, 25), .weighed = true, .summary = "blocks of 32, uneven steps"},
    .decode = iq4_nl_decode,
    .encode = iq4_nl_encode,
    .scale_at = {0, -1},
    .parts = iq4_nl_parts,
    .join = iq4_nl_join,
    .form = {DT_IQ4_NL, 8, SUB, OFFSET, false, false, 1, 1, 255, values},
};

/* ---- IQ4_XS ---- */

static int xs_scale(const uint8_t *block, int s) {
    return ((block[XS_LOW_AT + s / 2] >> s % 2 * 4 & 15) | (f16_bits(block + 2) >> 2 * s & 3) << 4) - 32;
}

/* Sets a scale in a block whose scales are zero. */
static void xs_put_scale(uint8_t *block, int s, int scale) {
    block[2 + s / 4] |= (uint8_t)((scale + 32) >> 4 << s % 4 * 2);
    block[XS_LOW_AT + s / 2] |= (uint8_t)(((scale + 32) & 15) << s % 2 * 4);
}

static void iq4_xs_decode(const void *blocks, float *dst, size_t n_blocks) {
    const uint8_t *block = blocks;
    for (size_t b = 0; b < n_blocks; b++, block += XS_SIZE) {
        float d = load_f16(block);
        for (int s = 0; s < SUBS; s++, dst += SUB)
            decode_sub(block + XS_CODES_AT + s * SUB / 2, d * (float)xs_scale(block, s), dst);
    }
}

static void iq4_xs_parts(const uint8_t *block, struct quant_parts *p) {
    p->d = f16_bits(block);
    p->min = 0;
    for (int s = 0; s < SUBS; s++) {
        p->scales[s] = (int8_t)xs_scale(block, s);
        parts_of_sub(block + XS_CODES_AT + s * SUB / 2, p->codes + s * SUB);
    }
}

static void iq4_xs_join(const struct quant_parts *p, uint8_t *block) {
    memset(block, 0, XS_SIZE);
    put_bits(block, p->d);
    for (int s = 0; s < SUBS; s++) {
        xs_put_scale(block, s, p->scales[s]);
        join_sub(p->codes + s * SUB, block + XS_CODES_AT + s * SUB / 2);
    }
}

static bool xs_encode_block(const float *x, const float *importance, uint8_t *block) {
    float weights[N], scales[SUBS], extreme = 0;
    weigh(x, N, importance, weights);
    for (int s = 0; s < SUBS; s++) {
        scales[s] = fit(x + s * SUB, weights + s * SUB);
        if (!isfinite(scales[s])) return false;
        if (fabsf(scales[s]) > fabsf(extreme)) extreme = scales[s];
    }
    float d = -extreme / 32, inverse = d != 0 ? 1 / d : 0;
    memset(block, 0, XS_SIZE);
    if (!store_f16(block, d)) return false;
    for (int s = 0; s < SUBS; s++) {
        int code = nearest_code(inverse * scales[s], -32, 31);
        uint8_t codes[SUB];
        round_to(x + s * SUB, d * (float)code, codes);
        pack(codes, block + XS_CODES_AT + s * SUB / 2);
        xs_put_scale(block, s, code);
    }
    return true;
}

static size_t iq4_xs_encode(const float *src, void *blocks, size_t n_blocks, const struct row_weights *w) {
    for (size_t b = 0; b < n_blocks; b++)
        if (!xs_encode_block(src + b * N, importance_of(w, b * N), (uint8_t *)blocks + b * XS_SIZE)) return b;
    return n_blocks;
}

const struct element_type iq4_xs_type = {
    .info = {BLOCK_INFO(IQ4_XS, "iq4_xs", N, XS_SIZE, 30), .fallback = DT_IQ4_NL, .weighed = true,
             .summary = "blocks of 256, uneven steps"},
    .decode = iq4_xs_decode,
    .encode = iq4_xs_encode,
    .scale_at = {0, -1},
    .parts = iq4_xs_parts,
    .join = iq4_xs_join,
    .form = {DT_IQ4_XS, 8, SUB, OFFSET, false, true, -32, 31, 255, values},
};
