/*
 * Private to lib/tensor: types that store vectors of eight or four elements, each as a point of a fixed codebook
 * (quantize_iq*.c). codebooks.c has the points, codebook.c finds the nearest one.
 */
#ifndef RILL_CODEBOOK_INTERNAL_H
#define RILL_CODEBOOK_INTERNAL_H

#include "lib/tensor/quantize_internal.h"

struct codebook {
    int dims, bits; /* coordinates of a point; bits of each in `points` */
    int n_values;   /* coordinates are in [0, n_values) */
    int n;
    const uint16_t *points;
    int8_t values[8]; /* the decoded value of each coordinate */

    /* For encoding; filled on first use. NULL in a codebook that is only decoded. */
    int levels;           /* the neighbours are the points at this many smallest distances */
    int32_t *places;      /* [1 << dims * bits]: number of the point, or -1 - index of its neighbours */
    uint16_t *neighbours; /* lists: their count, then their numbers, nearest first */
};
extern const struct codebook iq2_xxs_book, iq2_xs_book, iq2_s_book, iq3_xxs_book, iq3_s_book, iq1_s_book;

static inline int codebook_coordinate(const struct codebook *b, int point, int k) {
    return b->points[point] >> b->bits * k & ((1 << b->bits) - 1);
}

/* Expands 8 signs stored in 7 bits: the number of negative ones is even. */
static inline uint8_t signs_of_7_bits(unsigned seven) {
    return (uint8_t)(seven | (unsigned)__builtin_parity(seven) << 7);
}

/* y[k] = scale value[k], negated if bit k of signs is set. */
static inline void codebook_decode(const struct codebook *b, int point, float scale, unsigned signs, float *y) {
    for (int k = 0; k < b->dims; k++) {
        float v = scale * (float)b->values[codebook_coordinate(b, point, k)];
        y[k] = signs >> k & 1 ? -v : v;
    }
}

/* Loads an unaligned little-endian u32. */
static inline uint32_t load_u32(const uint8_t *p) {
    return (uint32_t)f16_bits(p) | (uint32_t)f16_bits(p + 2) << 16;
}

static inline void store_u32(uint8_t *p, uint32_t v) {
    for (int i = 0; i < 4; i++) p[i] = (uint8_t)(v >> 8 * i);
}

/* Scale i of four bits, the low half of a byte first. */
static inline unsigned nibble(const uint8_t *p, int i) {
    return p[i / 2] >> i % 2 * 4 & 15;
}

static inline void put_nibbles(uint8_t *p, const uint8_t *codes, int n) {
    for (int i = 0; i < n; i += 2) p[i / 2] = (uint8_t)(codes[i] | codes[i + 1] << 4);
}

/* The fit of a block of 256 before it is packed. */
struct codebook_block {
    float d;
    uint8_t scales[16];  /* [256 / group], 0 to 15: x is about d (2 scale + 1) (2 coordinate + 1) */
    uint16_t points[64]; /* [256 / dims] */
    uint8_t signs[32];
};

/* How a type searches for the points and scales of a block. Each group has one scale, found by trial with its
 * points. */
struct codebook_search {
    const struct codebook *book;
    int group; /* elements per scale */
    /* trial scales are max / (2 top + 1 + step i) for i in [-trials, trials], top = the largest coordinate */
    int trials;
    float step;
    float sigma;     /* with importance a the weight is a sqrt(sigma mean x^2 + x^2) */
    float floor;     /* without importance the weight is floor mean x^2 + x^2 */
    float least;     /* a group with smaller magnitudes is stored with scale 0 */
    bool even_signs; /* of each eight signs an even number is negative: the element of least weight may be negated */
    bool from_fit;   /* trials are around the scale that fit_positive finds, not around the largest magnitude */
    /* search again with the scale found: again: even if all vectors are on the grid; again_all: for all vectors, not
     * only those off the grid */
    bool again, again_all;
    float stretch; /* factor on the block's scale, which compensates for rounding the groups' scales */
};

/* Implements the quant_encode_fn of a type: fits each block, stores d at its start and calls `pack` on the zeroed
 * rest. */
typedef void codebook_pack_fn(const struct codebook_block *made, uint8_t *block);
size_t codebook_encode(const struct codebook_search *s, codebook_pack_fn *pack, size_t block_bytes, const float *src,
                       void *blocks, size_t n_blocks, const struct row_weights *w);

#endif
