/*
 * Codebooks of about 3 bits: 256 elements in vectors of 4, whose magnitudes are points of a codebook with eight values
 * per coordinate; signs and scales are separate, with a scale per 32 elements.
 *
 * IQ3_XXS: 256 points, x = d (2 sc + 1) / 4 * point.
 *   f16 d | u8 point[64] | 8 x u32: 7 sign bits for each eight elements, sc << 28
 * IQ3_S: 512 points, x = d (2 sc + 1) * point.
 *   f16 d | u8 point[64] | u8 qh[8]: bit 8 of the points | u8 signs[32] | u8 scales[4]: sc, sc << 4
 *
 *
 * With 7 sign bits the number of negative elements is even.
 */
#include <string.h>

#include "lib/tensor/codebook_internal.h"

enum { N = 256, VECTORS = 64, XXS_SIZE = 98, S_SIZE = 110 };
enum { XXS_WORDS_AT = 66, S_HIGH_AT = 66, S_SIGNS_AT = 74, S_SCALES_AT = 106 };

/* ---- IQ3_XXS ---- */

static void iq3_xxs_decode(const void *blocks, float *dst, size_t n_blocks) {
    const uint8_t *block = blocks;
    for (size_t b = 0; b < n_blocks; b++, block += XXS_SIZE) {
        float d = load_f16(block);
        for (int v = 0; v < VECTORS; v++, dst += 4) {
            uint32_t word = load_u32(block + XXS_WORDS_AT + v / 8 * 4);
            float scale = d * (0.5f + (float)(word >> 28)) * 0.5f;
            unsigned signs = signs_of_7_bits(word >> v % 8 / 2 * 7 & 127);
            codebook_decode(&iq3_xxs_book, block[2 + v], scale, signs >> v % 2 * 4, dst);
        }
    }
}

static void iq3_xxs_pack(const struct codebook_block *made, uint8_t *block) {
    if (made->d == 0) return;
    for (int v = 0; v < VECTORS; v++) block[2 + v] = (uint8_t)made->points[v];
    for (int i = 0; i < 8; i++) {
        uint32_t word = (uint32_t)made->scales[i] << 28;
        for (int k = 0; k < 4; k++) word |= (uint32_t)(made->signs[4 * i + k] & 127) << 7 * k;
        store_u32(block + XXS_WORDS_AT + 4 * i, word);
    }
}

static size_t iq3_xxs_encode(const float *src, void *blocks, size_t n_blocks, const struct row_weights *w) {
    static const struct codebook_search search = {.book = &iq3_xxs_book,
                                                  .group = 32,
                                                  .trials = 15,
                                                  .step = 0.2f,
                                                  .sigma = 2,
                                                  .least = 1e-8f,
                                                  .even_signs = true,
                                                  .stretch = 1.0125f};
    return codebook_encode(&search, iq3_xxs_pack, XXS_SIZE, src, blocks, n_blocks, w);
}

const struct element_type iq3_xxs_type = {
    .info = {BLOCK_INFO(IQ3_XXS, "iq3_xxs", N, XXS_SIZE, 23), .fallback = DT_IQ4_NL, .weighed = true,
             .needs_importance = true, .summary = "256 points"},
    .decode = iq3_xxs_decode,
    .encode = iq3_xxs_encode,
    .scale_at = {0, -1},
};

/* ---- IQ3_S ---- */

static void iq3_s_decode(const void *blocks, float *dst, size_t n_blocks) {
    const uint8_t *block = blocks;
    for (size_t b = 0; b < n_blocks; b++, block += S_SIZE) {
        float d = load_f16(block);
        for (int v = 0; v < VECTORS; v++, dst += 4) {
            unsigned sc = nibble(block + S_SCALES_AT, v / 8);
            int point = block[2 + v] | (block[S_HIGH_AT + v / 8] >> v % 8 & 1) << 8;
            codebook_decode(&iq3_s_book, point, d * (float)(1 + 2 * sc), block[S_SIGNS_AT + v / 2] >> v % 2 * 4, dst);
        }
    }
}

static void iq3_s_pack(const struct codebook_block *made, uint8_t *block) {
    for (int v = 0; v < VECTORS; v++) {
        block[2 + v] = (uint8_t)made->points[v];
        block[S_HIGH_AT + v / 8] |= (uint8_t)(made->points[v] >> 8 << v % 8);
    }
    memcpy(block + S_SIGNS_AT, made->signs, 32);
    put_nibbles(block + S_SCALES_AT, made->scales, 8); /* 0 if d is 0 */
}

static size_t iq3_s_encode(const float *src, void *blocks, size_t n_blocks, const struct row_weights *w) {
    static const struct codebook_search search = {
        .book = &iq3_s_book, .group = 32, .trials = 9, .step = 0.2f, .sigma = 2, .again_all = true, .stretch = 1.033f};
    return codebook_encode(&search, iq3_s_pack, S_SIZE, src, blocks, n_blocks, w);
}

const struct element_type iq3_s_type = {
    .info = {BLOCK_INFO(IQ3_S, "iq3_s", N, S_SIZE, 26), .fallback = DT_IQ4_NL, .weighed = true,
             .summary = "512 points"},
    .decode = iq3_s_decode,
    .encode = iq3_s_encode,
    .scale_at = {0, -1},
};
