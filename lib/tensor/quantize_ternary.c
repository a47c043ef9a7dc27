/*
 * Ternary blocks of 256, x = d (q - 1) with q in [0, 2], for models trained with ternary weights.
 *
 * TQ1_0: five codes per byte, as the base-3 fraction 0.q0q1q2q3q4 times 256, rounded up; so q0 is (3 byte) >> 8, and
 *        multiplying by 3 brings the next one to the front.
 *        u8 qs[48]: the first 160 elements with stride 32, the next 80 with stride 16 | u8 qh[4]: the last 16, four per
 *        byte with stride 4 | f16 d
 * TQ2_0: two bits per code; 3 is decoded, too, as 2 d.  u8 qs[64], packed as in Q2_K | f16 d
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/tensor/quantize_internal.h"

enum { N = 256, SUB = 16, TQ1_D_AT = 52, TQ1_SIZE = 54, TQ2_D_AT = 64, TQ2_SIZE = 66 };

/* ---- encoding ---- */

static int descending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

/*
 * Finds the scale: the k largest magnitudes become d, the others 0. The best d for a given k is their weighted mean,
 * and the best k maximises (sum w |x|)^2 / sum w. For weights that are already ternary this is their magnitude, as in
 * ggml.
 */
static float fit(const float *x, const float *importance) {
    struct {
        float magnitude, weight;
    } sorted[N];
    double sum_x = 0, sum_w = 0, best = 0;
    float d = 0;
    for (int i = 0; i < N; i++) sorted[i].magnitude = fabsf(x[i]), sorted[i].weight = importance ? importance[i] : 1;
    qsort(sorted, N, sizeof *sorted, descending);
    for (int i = 0; i < N; i++) {
        sum_x += (double)sorted[i].weight * (double)sorted[i].magnitude;
        sum_w += (double)sorted[i].weight;
        if (i + 1 < N && sorted[i].magnitude == sorted[i + 1].magnitude) continue; /* take equal magnitudes together */
        if (!(sum_w > 0) || sum_x * sum_x <= best * sum_w) continue;
        best = sum_x * sum_x / sum_w;
        d = (float)(sum_x / sum_w);
    }
    return d;
}

static bool all_zero(const float *importance) {
    for (int i = 0; i < N; i++)
        if (importance[i] > 0) return false;
    return true;
}

/* Finds d, and the codes for d as stored in f16. */
static bool fit_block(const float *x, const float *importance, uint8_t *d_at, uint8_t codes[N]) {
    float d = fit(x, importance && all_zero(importance) ? NULL : importance);
    if (!store_f16(d_at, d)) return false;
    d = load_f16(d_at);
    for (int i = 0; i < N; i++) codes[i] = (uint8_t)(1 + (d > 0 ? (2 * x[i] > d) - (2 * x[i] < -d) : 0));
    return true;
}

/* ---- TQ1_0 ---- */

/* The elements of a byte: the first one, their stride and number. */
struct tq1_byte {
    int first, apart, n;
};
static struct tq1_byte tq1_elements(int byte) {
    if (byte < 32) return (struct tq1_byte){byte, 32, 5};
    if (byte < 48) return (struct tq1_byte){160 + byte - 32, 16, 5};
    return (struct tq1_byte){240 + byte - 48, 4, 4};
}

static void tq1_0_codes(const uint8_t *block, uint8_t codes[N]) {
    for (int byte = 0; byte < TQ1_D_AT; byte++) {
        struct tq1_byte e = tq1_elements(byte);
        unsigned rest = block[byte];
        for (int k = 0; k < e.n; k++, rest = rest * 3 & 255) codes[e.first + k * e.apart] = (uint8_t)(rest * 3 >> 8);
    }
}

static void tq1_0_decode(const void *blocks, float *dst, size_t n_blocks) {
    const uint8_t *block = blocks;
    for (size_t b = 0; b < n_blocks; b++, block += TQ1_SIZE, dst += N) {
        uint8_t codes[N];
        float d = load_f16(block + TQ1_D_AT);
        tq1_0_codes(block, codes);
        for (int i = 0; i < N; i++) dst[i] = (float)(codes[i] - 1) * d;
    }
}

static void tq1_0_pack(const uint8_t codes[N], uint8_t *block) {
    for (int byte = 0; byte < TQ1_D_AT; byte++) {
        struct tq1_byte e = tq1_elements(byte);
        unsigned number = 0;
        for (int k = 0; k < 5; k++) number = number * 3 + (k < e.n ? codes[e.first + k * e.apart] : 0);
        block[byte] = (uint8_t)((number * 256 + 242) / 243);
    }
}

static size_t tq1_0_encode(const float *src, void *blocks, size_t n_blocks, const struct row_weights *w) {
    uint8_t *block = blocks;
    for (size_t b = 0; b < n_blocks; b++, block += TQ1_SIZE) {
        uint8_t codes[N];
        if (!fit_block(src + b * N, importance_of(w, b * N), block + TQ1_D_AT, codes)) return b;
        tq1_0_pack(codes, block);
    }
    return n_blocks;
}

static void parts_of(const uint8_t *d_at, struct quant_parts *p) {
    p->d = f16_bits(d_at);
    p->min = 0;
    memset(p->scales, 1, N / SUB);
}

static void tq1_0_parts(const uint8_t *block, struct quant_parts *p) {
    parts_of(block + TQ1_D_AT, p);
    tq1_0_codes(block, p->codes);
}

static void tq1_0_join(const struct quant_parts *p, uint8_t *block) {
    put_bits(block + TQ1_D_AT, p->d);
    tq1_0_pack(p->codes, block);
}

const struct element_type tq1_0_type = {
    .info = {BLOCK_INFO(TQ1_0, "tq1_0", N, TQ1_SIZE, 36), .fallback = DT_Q4_0, .weighed = true,
             .summary = "for models that are ternary"},
    .decode = tq1_0_decode,
    .encode = tq1_0_encode,
    .scale_at = {TQ1_D_AT, -1},
    .parts = tq1_0_parts,
    .join = tq1_0_join,
    .form = {DT_TQ1_0, 2, SUB, 1, false, true, 1, 1, 2, NULL},
};

/* ---- TQ2_0 ---- */

static void tq2_0_parts(const uint8_t *block, struct quant_parts *p) {
    parts_of(block + TQ2_D_AT, p);
    for (int s = 0; s < N / SUB; s++) unpack_2_bits(block, s, p->codes + s * SUB);
}

static void tq2_0_join(const struct quant_parts *p, uint8_t *block) {
    put_bits(block + TQ2_D_AT, p->d);
    pack_2_bits(p->codes, block);
}

static void tq2_0_decode(const void *blocks, float *dst, size_t n_blocks) {
    const uint8_t *block = blocks;
    for (size_t b = 0; b < n_blocks; b++, block += TQ2_SIZE) {
        float d = load_f16(block + TQ2_D_AT);
        for (int s = 0; s < N / SUB; s++, dst += SUB) {
            uint8_t codes[SUB];
            unpack_2_bits(block, s, codes);
            for (int i = 0; i < SUB; i++) dst[i] = (float)(codes[i] - 1) * d;
        }
    }
}

static size_t tq2_0_encode(const float *src, void *blocks, size_t n_blocks, const struct row_weights *w) {
    uint8_t *block = blocks;
    for (size_t b = 0; b < n_blocks; b++, block += TQ2_SIZE) {
        uint8_t codes[N];
        if (!fit_block(src + b * N, importance_of(w, b * N), block + TQ2_D_AT, codes)) return b;
        pack_2_bits(codes, block);
    }
    return n_blocks;
}

const struct element_type tq2_0_type = {
    .info = {BLOCK_INFO(TQ2_0, "tq2_0", N, TQ2_SIZE, 37), .fallback = DT_Q4_0, .weighed = true,
             .summary = "for models that are ternary"},
    .decode = tq2_0_decode,
    .encode = tq2_0_encode,
    .scale_at = {TQ2_D_AT, -1},
    .parts = tq2_0_parts,
    .join = tq2_0_join,
    .form = {DT_TQ2_0, 2, SUB, 1, false, true, 1, 1, 2, NULL},
};
