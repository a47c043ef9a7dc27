/*
 * Codebooks of about 2 bits: 256 elements in vectors of 8, whose magnitudes are points of a codebook with coordinates
 * 8, 25 and 43 (about 1, 3 and 5 times 8); x = d (2 sc + 1) / 8 * point, with separate signs.
 *
 * IQ2_XXS: 256 points, a scale per 32 elements.
 *   f16 d | 8 x (u8 point[4] | u32: 7 sign bits of each, sc << 28)
 * IQ2_XS: 512 points, a scale per 16 elements.
 *   f16 d | u16[32]: point | 7 sign bits << 9 | u8 scales[8]: sc, sc << 4
 * IQ2_S: 1024 points, a scale per 16 elements.
 *   f16 d | u8 point[32] | u8 signs[32] | u8 qh[8]: bits 8 and 9 of the points | u8 scales[8]
 *
 *
 * With 7 sign bits the number of negative elements is even. IQ2_S stores all 8.
 */
#include <string.h>

#include "lib/tensor/codebook_internal.h"

enum { N = 256, VECTORS = 32, XXS_SIZE = 66, XS_SIZE = 74, S_SIZE = 82 };
enum { XS_SCALES_AT = 66, S_SIGNS_AT = 34, S_HIGH_AT = 66, S_SCALES_AT = 74 };

/* d (2 sc + 1) / 8, in ggml's order of operations. */
static float scale_of(float d, unsigned sc) {
    return d * (0.5f + (float)sc) * 0.25f;
}

/* ---- IQ2_XXS ---- */

static void iq2_xxs_decode(const void *blocks, float *dst, size_t n_blocks) {
    const uint8_t *block = blocks;
    for (size_t b = 0; b < n_blocks; b++, block += XXS_SIZE) {
        float d = load_f16(block);
        for (int v = 0; v < VECTORS; v++, dst += 8) {
            const uint8_t *p = block + 2 + v / 4 * 8;
            uint32_t word = load_u32(p + 4);
            codebook_decode(&iq2_xxs_book, p[v % 4], scale_of(d, word >> 28), signs_of_7_bits(word >> v % 4 * 7 & 127),
                            dst);
        }
    }
}

static void iq2_xxs_pack(const struct codebook_block *made, uint8_t *block) {
    for (int i = 0; made->d != 0 && i < 8; i++) {
        uint32_t word = (uint32_t)made->scales[i] << 28;
        for (int v = 0; v < 4; v++) {
            block[2 + 8 * i + v] = (uint8_t)made->points[4 * i + v];
            word |= (uint32_t)(made->signs[4 * i + v] & 127) << 7 * v;
        }
        store_u32(block + 2 + 8 * i + 4, word);
    }
}

static size_t iq2_xxs_encode(const float *src, void *blocks, size_t n_blocks, const struct row_weights *w) {
    static const struct codebook_search search = {.book = &iq2_xxs_book,
                                                  .group = 32,
                                                  .trials = 6,
                                                  .step = 0.1f,
                                                  .sigma = 1,
                                                  .floor = 0.5f,
                                                  .least = FIT_NEARLY_ZERO,
                                                  .even_signs = true,
                                                  .from_fit = true,
                                                  .again = true,
                                                  .again_all = true,
                                                  .stretch = 1};
    return codebook_encode(&search, iq2_xxs_pack, XXS_SIZE, src, blocks, n_blocks, w);
}

const struct element_type iq2_xxs_type = {
    .info = {BLOCK_INFO(IQ2_XXS, "iq2_xxs", N, XXS_SIZE, 19), .fallback = DT_IQ4_NL, .weighed = true,
             .needs_importance = true, .summary = "256 points"},
    .decode = iq2_xxs_decode,
    .encode = iq2_xxs_encode,
    .scale_at = {0, -1},
};

/* ---- IQ2_XS ---- */

static void iq2_xs_decode(const void *blocks, float *dst, size_t n_blocks) {
    const uint8_t *block = blocks;
    for (size_t b = 0; b < n_blocks; b++, block += XS_SIZE) {
        float d = load_f16(block);
        for (int v = 0; v < VECTORS; v++, dst += 8) {
            unsigned word = f16_bits(block + 2 + 2 * v);
            codebook_decode(&iq2_xs_book, word & 511, scale_of(d, nibble(block + XS_SCALES_AT, v / 2)),
                            signs_of_7_bits(word >> 9), dst);
        }
    }
}

static void iq2_xs_pack(const struct codebook_block *made, uint8_t *block) {
    if (made->d == 0) return;
    for (int v = 0; v < VECTORS; v++) {
        block[2 + 2 * v] = (uint8_t)made->points[v];
        block[2 + 2 * v + 1] = (uint8_t)(made->points[v] >> 8 | (made->signs[v] & 127) << 1);
    }
    put_nibbles(block + XS_SCALES_AT, made->scales, 16);
}

static size_t iq2_xs_encode(const float *src, void *blocks, size_t n_blocks, const struct row_weights *w) {
    static const struct codebook_search search = {.book = &iq2_xs_book,
                                                  .group = 16,
                                                  .trials = 9,
                                                  .step = 0.1f,
                                                  .sigma = 1,
                                                  .floor = 0.5f,
                                                  .least = FIT_NEARLY_ZERO,
                                                  .even_signs = true,
                                                  .stretch = 1};
    return codebook_encode(&search, iq2_xs_pack, XS_SIZE, src, blocks, n_blocks, w);
}

const struct element_type iq2_xs_type = {
    .info = {BLOCK_INFO(IQ2_XS, "iq2_xs", N, XS_SIZE, 20), .fallback = DT_IQ4_NL, .weighed = true,
             .needs_importance = true, .summary = "512 points"},
    .decode = iq2_xs_decode,
    .encode = iq2_xs_encode,
    .scale_at = {0, -1},
};

/* ---- IQ2_S ---- */

static void iq2_s_decode(const void *blocks, float *dst, size_t n_blocks) {
    const uint8_t *block = blocks;
    for (size_t b = 0; b < n_blocks; b++, block += S_SIZE) {
        float d = load_f16(block);
        for (int v = 0; v < VECTORS; v++, dst += 8) {
            int point = block[2 + v] | (block[S_HIGH_AT + v / 4] >> v % 4 * 2 & 3) << 8;
            codebook_decode(&iq2_s_book, point, scale_of(d, nibble(block + S_SCALES_AT, v / 2)), block[S_SIGNS_AT + v],
                            dst);
        }
    }
}

static void iq2_s_pack(const struct codebook_block *made, uint8_t *block) {
    for (int v = 0; v < VECTORS; v++) {
        block[2 + v] = (uint8_t)made->points[v];
        block[S_HIGH_AT + v / 4] |= (uint8_t)(made->points[v] >> 8 << v % 4 * 2);
    }
    memcpy(block + S_SIGNS_AT, made->signs, VECTORS);
    put_nibbles(block + S_SCALES_AT, made->scales, 16);
}

static size_t iq2_s_encode(const float *src, void *blocks, size_t n_blocks, const struct row_weights *w) {
    static const struct codebook_search search = {.book = &iq2_s_book,
                                                  .group = 16,
                                                  .trials = 9,
                                                  .step = 0.1f,
                                                  .sigma = 2,
                                                  .floor = 0.5f,
                                                  .least = 1e-8f,
                                                  .stretch = 0.9875f};
    return codebook_encode(&search, iq2_s_pack, S_SIZE, src, blocks, n_blocks, w);
}

const struct element_type iq2_s_type = {
    .info = {BLOCK_INFO(IQ2_S, "iq2_s", N, S_SIZE, 29), .fallback = DT_IQ4_NL, .weighed = true,
             .needs_importance = true, .summary = "1024 points"},
    .decode = iq2_s_decode,
    .encode = iq2_s_encode,
    .scale_at = {0, -1},
};
