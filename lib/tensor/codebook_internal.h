/*
 * Private to lib/tensor: types whose elements are stored in vectors of eight or four, each a point of a fixed codebook
 * (quantize_iq*.c). codebooks.c has the points, codebook.c finds the nearest one.
 */
#ifndef RILL_CODEBOOK_INTERNAL_H
#define RILL_CODEBOOK_INTERNAL_H

#include "lib/tensor/quantize_internal.h"

struct codebook {
    int dims, bits; /* coordinates of a point, bits of each in `points` */
    int n_values;   /* a coordinate is in [0, n_values) */
    int n;
    const uint16_t *points;
    int8_t values[8]; /* what a decoder makes of a coordinate */

    /* For encoding; filled when first asked for. NULL in a codebook that is only decoded. */
    int levels;           /* the points of this many smallest distances are neighbours */
    int32_t *places;      /* [1 << dims * bits]: a point's number, or else -1 - where its neighbours are */
    uint16_t *neighbours; /* how many, and their numbers, nearest first */
};
extern const struct codebook iq2_xxs_book, iq2_xs_book, iq2_s_book, iq3_xxs_book, iq3_s_book, iq1_s_book;

static inline int codebook_coordinate(const struct codebook *b, int point, int k) {
    return b->points[point] >> b->bits * k & ((1 << b->bits) - 1);
}

/* 8 signs in 7 bits: the eighth makes their number even. */
static inline uint8_t signs_of_7_bits(unsigned seven) {
    return (uint8_t)(seven | (unsigned)__builtin_parity(seven) << 7);
}

/* y[k] = scale value[k], turned where bit k of signs is set. */
static inline void codebook_decode(const struct codebook *b, int point, float scale, unsigned signs, float *y) {
    for (int k = 0; k < b->dims; k++) {
        float v = scale * (float)b->values[codebook_coordinate(b, point, k)];
        y[k] = signs >> k & 1 ? -v : v;
    }
}

/* 32 bits of a block, little-endian, unaligned. */
static inline uint32_t load_u32(const uint8_t *p) {
    return (uint32_t)f16_bits(p) | (uint32_t)f16_bits(p + 2) << 16;
}

static inline void store_u32(uint8_t *p, uint32_t v) {
    for (int i = 0; i < 4; i++) p[i] = (uint8_t)(v >> 8 * i);
}

/* Scales of four bits, the lower ones first. */
static inline unsigned nibble(const uint8_t *p, int i) {
    return p[i / 2] >> i % 2 * 4 & 15;
}

static inline void put_nibbles(uint8_t *p, const uint8_t *codes, int n) {
    for (int i = 0; i < n; i += 2) p[i / 2] = (uint8_t)(codes[i] | codes[i + 1] << 4);
}

/* What a block of 256 becomes before it is packed. */
struct codebook_block {
    float d;
    uint8_t scales[16];  /* [256 / group], 0 to 15: x = d (2 scale + 1) (2 coordinate + 1), about */
    uint16_t points[64]; /* [256 / dims] */
    uint8_t signs[32];
};

/* How a type looks for the points and scales of a block. Groups share a scale; it and the points are found by trial. */
struct codebook_search {
    const struct codebook *book;
    int group;  /* elements of a scale */
    int trials; /* scales max / (2 top + 1 + step i) for i in [-trials, trials], top = the largest coordinate */
    float step;
    float sigma;     /* importance a weighs a sqrt(sigma mean x^2 + x^2) */
    float floor;     /* without importance the weight is floor mean x^2 + x^2 */
    float least;     /* a group whose magnitudes are below it is stored with scale 0 */
    bool even_signs; /* the number of negative elements in eight is even: the least weighty one may turn */
    bool from_fit;   /* trials are about the scale that fit_positive finds, not about the largest magnitude */
    bool again,
        again_all; /* look again with the scale found: even if all is on the grid; all vectors, not those off it */
    float stretch; /* of the block's scale, which makes up for the rounding of the groups' scales */
};

/* The quant_encode_fn of a type: fits each block, stores d at its beginning, and has the rest packed into zeros. */
typedef void codebook_pack_fn(const struct codebook_block *made, uint8_t *block);
size_t codebook_encode(const struct codebook_search *s, codebook_pack_fn *pack, size_t block_bytes, const float *src,
                       void *blocks, size_t n_blocks, const struct row_weights *w);

#endif
