/*
 * codec: one chunk of tensor data, stored and raw. A set of contexts (one per thread) belongs to one reader or writer.
 */
#ifndef RILL_STREAM_CODEC_INTERNAL_H
#define RILL_STREAM_CODEC_INTERNAL_H

#include "lib/stream/wire_internal.h"

/* Chunks coded at a time. Fixed, so that memory does not follow the number of threads. */
enum { CODEC_GROUP = 16 };

struct codec_thread; /* zstd contexts and scratch of one thread */
struct codecs {
    struct codec_thread *threads;
    int n;
};
/* Enough contexts for a parallel_for that starts now. */
int codecs_prepare(struct codecs *c, struct err *e) MUST_CHECK;
void codecs_release(struct codecs *c);

struct chunk {
    enum stream_codec codec;
    const struct dtype_info *dtype;
    const void *stored; /* encode: out, points to src or into out */
    uint64_t n_stored;
    void *raw;
    uint64_t n_raw;
    uint64_t payload_hash; /* of what is stored: encode sets it, decode checks it */
    struct buf out;        /* encode: memory for `stored` */
    struct err err;        /* code 0: fine */
};
/* n <= CODEC_GROUP chunks on all threads. The first chunk's error, if any. `level` 0: the codec's default. */
int codec_encode(struct codecs *c, struct chunk *chunks, size_t n, int level, struct err *e) MUST_CHECK;
/* As codec_encode; *failed is the index of the chunk the error speaks of. */
int codec_decode(struct codecs *c, struct chunk *chunks, size_t n, size_t *failed, struct err *e) MUST_CHECK;

/* planes.c: bytes of equal significance side by side. `stride` is an element's size, or a quantized block's. */
size_t planes_stride(const struct dtype_info *t);
void planes_split(const struct dtype_info *t, const void *src, size_t n, unsigned char *dst);
void planes_join(const struct dtype_info *t, const unsigned char *src, size_t n, void *dst);

/*
 * sparse.c: elements whose bytes are all 0 left out. map [sparse_bits_bytes(n)], bit i % 8 of byte i / 8 set where element i is
 * stored.
 */
size_t sparse_bits_bytes(size_t n);
size_t sparse_fours_bytes(size_t n); /* of a map of 2:4, packed */
/* Fills the map and dst, with room for all n, with the elements that are stored. Returns their number. */
size_t sparse_split(size_t stride, const void *src, size_t n, unsigned char *map, unsigned char *dst);
void sparse_join(size_t stride, const unsigned char *map, const unsigned char *src, size_t n, void *dst);
size_t sparse_count(const unsigned char *map, size_t n); /* SIZE_MAX: bits after the last element are set */
/* False: it is no map of 2:4, packed or not. */
bool sparse_fours_pack(const unsigned char *map, size_t n, unsigned char *packed);
bool sparse_fours_unpack(const unsigned char *packed, size_t n, unsigned char *map);

#endif
