/*
 * MXFP4 (OCP Microscaling Formats 1.0, 2023): 32 floating-point numbers of 4 bits, E2M1, times a power of two.
 *
 *     u8 e: the scale is 2^(e - 127) | u8 qs[16]: byte j = code j | code (j + 16) << 4
 *
 *
 * As in ggml, values are doubled to be integers and the scale is halved. e = 255 means NaN.
 */
#include <math.h>
#include <string.h>

#include "lib/tensor/quantize_internal.h"

enum { N = 32, SIZE = 17, BIAS = 127, HIGHEST = 6 };

static const int8_t values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static float half_scale(int e) {
    return ldexpf(1, e - BIAS - 1);
}

static void mxfp4_decode(const void *blocks, float *dst, size_t n_blocks) {
    const uint8_t *block = blocks;
    for (size_t b = 0; b < n_blocks; b++, block += SIZE, dst += N) {
        float d = half_scale(block[0]);
        for (int j = 0; j < N / 2; j++) {
            dst[j] = (float)values[block[1 + j] & 15] * d;
            dst[j + 16] = (float)values[block[1 + j] >> 4] * d;
        }
    }
}

/* Scales at the top of the range of f32 turn the larger values into infinities. */
static bool mxfp4_is_finite(const uint8_t *block) {
    float x[N];
    bool finite = block[0] != 255;
    if (finite && block[0] < 252) return true;
    mxfp4_decode(block, x, 1);
    for (int j = 0; j < N; j++) finite &= isfinite(x[j]) != 0;
    return finite;
}

/* Returns the code of the value nearest to x; a tie goes to the lowest code. */
static uint8_t nearest_value(float x, float d) {
    int best = 0;
    float least = fabsf((float)values[0] * d - x);
    for (int i = 1; i < 16; i++) {
        float error = fabsf((float)values[i] * d - x);
        if (error < least) least = error, best = i;
    }
    return (uint8_t)best;
}

static float round_to(const float *x, const float *importance, int e, uint8_t codes[N]) {
    float d = half_scale(e), sum = 0;
    for (int j = 0; j < N; j++) {
        codes[j] = nearest_value(x[j], d);
        float error = (float)values[codes[j]] * d - x[j];
        sum += (importance ? importance[j] : 1) * error * error;
    }
    return sum;
}

/* ggml uses the power of two that scales the largest magnitude to [4, 8), although the largest value is 6. With
 * importance the adjacent powers are tried, too: the larger one helps if the clipped elements matter, the smaller one
 * if they do not. */
static size_t mxfp4_encode(const float *src, void *blocks, size_t n_blocks, const struct row_weights *w) {
    uint8_t *block = blocks;
    for (size_t b = 0; b < n_blocks; b++, block += SIZE, src += N) {
        uint8_t codes[N], tried[N];
        float largest = largest_magnitude(src, N);
        int e = largest > 0 ? ilogbf(largest) - 2 + BIAS : 0;
        if (e < 0) e = 0;
        const float *importance = importance_of(w, b * N);
        float least = round_to(src, importance, e, codes);
        int first = e;
        for (int other = first - 1; importance && largest > 0 && other <= first + 1; other++) {
            float error = other < 0 ? least : round_to(src, importance, other, tried);
            if (!(error < least)) continue;
            least = error;
            e = other;
            memcpy(codes, tried, N);
        }
        block[0] = (uint8_t)e;
        for (int j = 0; j < N / 2; j++) block[1 + j] = (uint8_t)(codes[j] | codes[j + 16] << 4);
    }
    return n_blocks;
}

const struct element_type mxfp4_type = {
    .info = {BLOCK_INFO(MXFP4, "mxfp4", N, SIZE, 38), .weighed = true, .summary = "blocks of 32, floating point E2M1"},
    .decode = mxfp4_decode,
    .encode = mxfp4_encode,
    .is_finite = mxfp4_is_finite,
};
