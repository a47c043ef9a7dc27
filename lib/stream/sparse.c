/*
 * Sparse elements: those with all bytes 0 are left out, and a map says where. It has one bit per element, or, if of
 * each four consecutive elements exactly two are stored (2:4), one of six patterns per four elements, three patterns to
 * a byte.
 */
#include "lib/stream/codec_internal.h"

enum { FOUR = 4, FOURS = 3, PATTERNS = 6 };
/* Bits of four elements, the first one lowest. */
static const unsigned char two_of_four[PATTERNS] = {0x3, 0x5, 0x6, 0x9, 0xa, 0xc};

/* Is any byte non-zero? */
static bool is_stored(const unsigned char *p, size_t stride) {
    unsigned char any = 0;
    for (size_t i = 0; i < stride; i++) any |= p[i];
    return any;
}

/* With a constant stride the compiler unrolls the loops over bytes. */
static inline size_t split(const unsigned char *src, size_t n, const size_t stride, unsigned char *map,
                           unsigned char *dst) {
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        bool stored = is_stored(src + i * stride, stride);
        map[i / 8] |= (unsigned char)(stored << i % 8);
        /* The next element overwrites one that is not stored. */
        memcpy(dst + k * stride, src + i * stride, stride);
        k += stored;
    }
    return k;
}

size_t sparse_split(size_t stride, const void *src, size_t n, unsigned char *map, unsigned char *dst) {
    memset(map, 0, sparse_bits_bytes(n));
    switch (stride) {
    case 2: return split(src, n, 2, map, dst);
    case 4: return split(src, n, 4, map, dst);
    default: return split(src, n, stride, map, dst);
    }
}

static inline void join(const unsigned char *map, const unsigned char *src, size_t n, const size_t stride,
                        unsigned char *dst) {
    memset(dst, 0, n * stride);
    for (size_t i = 0; i < n; i++)
        if (map[i / 8] >> i % 8 & 1) {
            memcpy(dst + i * stride, src, stride);
            src += stride;
        }
}

void sparse_join(size_t stride, const unsigned char *map, const unsigned char *src, size_t n, void *dst) {
    switch (stride) {
    case 2: join(map, src, n, 2, dst); return;
    case 4: join(map, src, n, 4, dst); return;
    default: join(map, src, n, stride, dst);
    }
}

size_t sparse_bits_bytes(size_t n) {
    return (n + 7) / 8;
}

size_t sparse_fours_bytes(size_t n) {
    return (n + FOUR * FOURS - 1) / (FOUR * FOURS);
}

size_t sparse_count(const unsigned char *map, size_t n) {
    size_t k = 0;
    for (size_t i = 0; i < sparse_bits_bytes(n); i++) k += (size_t)__builtin_popcount(map[i]);
    return n % 8 && map[n / 8] >> n % 8 ? SIZE_MAX : k;
}

/* The pattern of the i-th group of four elements; PATTERNS: not two of four. */
static unsigned pattern_of(const unsigned char *map, size_t i) {
    unsigned bits = map[i / 2] >> i % 2 * FOUR & 0xf, p = 0;
    while (p < PATTERNS && two_of_four[p] != bits) p++;
    return p;
}

bool sparse_fours_pack(const unsigned char *map, size_t n, unsigned char *packed) {
    if (n % FOUR) return false;
    for (size_t i = 0; i < n / FOUR; i += FOURS) {
        unsigned code = 0;
        for (size_t k = FOURS; k-- > 0;) {
            unsigned p = i + k < n / FOUR ? pattern_of(map, i + k) : 0;
            if (p == PATTERNS) return false;
            code = code * PATTERNS + p;
        }
        packed[i / FOURS] = (unsigned char)code;
    }
    return true;
}

bool sparse_fours_unpack(const unsigned char *packed, size_t n, unsigned char *map) {
    if (n % FOUR) return false;
    memset(map, 0, sparse_bits_bytes(n));
    for (size_t i = 0; i < n / FOUR; i += FOURS) {
        unsigned code = packed[i / FOURS];
        for (size_t k = i; k < i + FOURS; k++, code /= PATTERNS) {
            unsigned p = code % PATTERNS;
            if (k < n / FOUR)
                map[k / 2] |= (unsigned char)(two_of_four[p] << k % 2 * FOUR);
            else if (p)
                return false;
        }
        if (code) return false;
    }
    return true;
}
