/*
 * codec: encodes and decodes single chunks of tensor data. A set of contexts (one per thread) belongs to one reader or
 * writer.
 */
#ifndef RILL_STREAM_CODEC_INTERNAL_H
#define RILL_STREAM_CODEC_INTERNAL_H

#include "lib/stream/wire_internal.h"

/* Chunks coded per group; fixed, so that memory does not grow with the number of threads. */
enum { CODEC_GROUP = 16 };

struct codec_thread; /* zstd contexts and scratch of one thread */
struct codecs {
    struct codec_thread *threads;
    int n;
};
/* Allocates a context for each thread of a parallel_for that starts now. ERR_IO. */
int codecs_prepare(struct codecs *c, struct err *e) MUST_CHECK;
void codecs_release(struct codecs *c);

struct chunk {
    enum stream_codec codec;
    const struct dtype_info *dtype;
    const void *stored; /* encode: output, points to src or into `out` */
    uint64_t n_stored;
    void *raw;
    uint64_t n_raw;
    uint64_t payload_hash; /* of the stored bytes; encode sets it, decode checks it */
    struct buf out;        /* encode: memory behind `stored` */
    struct err err;        /* code 0: no error */
};
/* Encodes n <= CODEC_GROUP chunks on all threads. Returns the first failing chunk's error. `level` 0: the codec's
 * default. */
int codec_encode(struct codecs *c, struct chunk *chunks, size_t n, int level, struct err *e) MUST_CHECK;
/* Decodes n <= CODEC_GROUP chunks; on failure *failed is the index of the first failing chunk. */
int codec_decode(struct codecs *c, struct chunk *chunks, size_t n, size_t *failed, struct err *e) MUST_CHECK;

/* planes.c: groups bytes of equal significance. The stride is the size of an element or quantized block. n in bytes. */
size_t planes_stride(const struct dtype_info *t);
void planes_split(const struct dtype_info *t, const void *src, size_t n, unsigned char *dst);
void planes_join(const struct dtype_info *t, const unsigned char *src, size_t n, void *dst);

/*
 * sparse.c: stores only the elements with a non-zero byte. map [sparse_bits_bytes(n)] has bit i % 8 of byte i / 8 set
 * if element i is stored.
 */
size_t sparse_bits_bytes(size_t n);
size_t sparse_fours_bytes(size_t n); /* bytes of a packed 2:4 map */
/* Fills the map, and dst, which has room for n elements, with the stored ones. Returns their number. */
size_t sparse_split(size_t stride, const void *src, size_t n, unsigned char *map, unsigned char *dst);
void sparse_join(size_t stride, const unsigned char *map, const unsigned char *src, size_t n, void *dst);
/* number of bits set; SIZE_MAX: bits after the last element are set */
size_t sparse_count(const unsigned char *map, size_t n);
/* Return false if it is not a (packed) 2:4 map. */
bool sparse_fours_pack(const unsigned char *map, size_t n, unsigned char *packed);
bool sparse_fours_unpack(const unsigned char *packed, size_t n, unsigned char *map);

#endif
