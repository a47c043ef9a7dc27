/*
 * Codebooks of less than 2 bits: 256 elements in vectors of 8, points of a codebook with coordinates -1, 0 and 1, all
 * shifted up or down by an eighth: x = d (2 sc + 1) (point +- 1/8). They are only decoded, not encoded.
 *
 * IQ1_S, a scale and a shift per 32 elements.
 *   f16 d | u8 point[32] | u16 qh[8]: 3 high bits of each of 4 points, sc << 12, shift down << 15
 * IQ1_M, a scale per 16 elements, a shift per 8.
 *   u8 point[32] | u8 qh[16]: for each of 2 vectors 3 high bits, shift down << 3 |
 *   u16 scales[4]: 3 bits of sc for each of 4 groups, 4 bits of d from bit 12 on
 */
#include "lib/tensor/codebook_internal.h"

enum { N = 256, VECTORS = 32, S_SIZE = 50, M_SIZE = 56 };
enum { S_HIGH_AT = 34, M_HIGH_AT = 32, M_SCALES_AT = 48 };

static void decode_vector(int point, float scale, bool down, float *y) {
    for (int k = 0; k < 8; k++)
        y[k] =
            scale * ((float)iq1_s_book.values[codebook_coordinate(&iq1_s_book, point, k)] + (down ? -0.125f : 0.125f));
}

static void iq1_s_decode(const void *blocks, float *dst, size_t n_blocks) {
    const uint8_t *block = blocks;
    for (size_t b = 0; b < n_blocks; b++, block += S_SIZE) {
        float d = load_f16(block);
        for (int v = 0; v < VECTORS; v++, dst += 8) {
            unsigned high = f16_bits(block + S_HIGH_AT + v / 4 * 2);
            decode_vector(block[2 + v] | (int)(high >> v % 4 * 3 & 7) << 8, d * (float)(2 * (high >> 12 & 7) + 1),
                          high >> 15, dst);
        }
    }
}

const struct element_type iq1_s_type = {
    .info = {BLOCK_INFO(IQ1_S, "iq1_s", N, S_SIZE, 24), .fallback = DT_IQ4_NL, .read_only = true},
    .decode = iq1_s_decode,
    .scale_at = {0, -1},
};

static uint16_t iq1_m_scale(const uint8_t *block) {
    unsigned d = 0;
    for (int i = 0; i < 4; i++) d |= (unsigned)f16_bits(block + M_SCALES_AT + 2 * i) >> 12 << 4 * i;
    return (uint16_t)d;
}

static void iq1_m_decode(const void *blocks, float *dst, size_t n_blocks) {
    const uint8_t *block = blocks;
    for (size_t b = 0; b < n_blocks; b++, block += M_SIZE) {
        float d = f16_to_f32(iq1_m_scale(block));
        for (int v = 0; v < VECTORS; v++, dst += 8) {
            unsigned high = block[M_HIGH_AT + v / 2] >> v % 2 * 4 & 15;
            unsigned sc = (unsigned)f16_bits(block + M_SCALES_AT + v / 8 * 2) >> v / 2 % 4 * 3 & 7;
            decode_vector(block[v] | (int)(high & 7) << 8, d * (float)(2 * sc + 1), high >> 3, dst);
        }
    }
}

static bool iq1_m_is_finite(const uint8_t *block) {
    return (iq1_m_scale(block) & 0x7c00) != 0x7c00;
}

const struct element_type iq1_m_type = {
    .info = {BLOCK_INFO(IQ1_M, "iq1_m", N, M_SIZE, 31), .fallback = DT_IQ4_NL, .read_only = true},
    .decode = iq1_m_decode,
    .is_finite = iq1_m_is_finite,
};
