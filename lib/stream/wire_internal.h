/*
 * wire: the bytes of the format (formats/rill.md) and nothing else: all multi-byte fields of a stream are encoded and
 * decoded in wire.c. Decoders check what needs no context; segment_internal.h checks the order of records.
 */
#ifndef RILL_STREAM_WIRE_INTERNAL_H
#define RILL_STREAM_WIRE_INTERNAL_H

#include "lib/stream/stream.h"

enum {
    WIRE_ALIGN = 64,
    WIRE_HEAD_BYTES = 64,   /* segment head */
    WIRE_RECORD_BYTES = 64, /* record header */
    WIRE_TENS_BYTES = 88,   /* TENS payload before name and attributes */
    WIRE_BTCH_BYTES = 40,
    WIRE_ENTRY_BYTES = 32, /* of an index entry */
    WIRE_ENDS_BYTES = 128,
};

#define WIRE_TAG(a, b, c, d) ((uint32_t)(a) | (uint32_t)(b) << 8 | (uint32_t)(c) << 16 | (uint32_t)(d) << 24)
#define TAG_META             WIRE_TAG('M', 'E', 'T', 'A')
#define TAG_PROV             WIRE_TAG('P', 'R', 'O', 'V')
#define TAG_VOCB             WIRE_TAG('V', 'O', 'C', 'B')
#define TAG_TENS             WIRE_TAG('T', 'E', 'N', 'S')
#define TAG_DATA             WIRE_TAG('D', 'A', 'T', 'A')
#define TAG_BTCH             WIRE_TAG('B', 'T', 'C', 'H')
#define TAG_INDX             WIRE_TAG('i', 'N', 'D', 'X')
#define TAG_ENDS             WIRE_TAG('E', 'N', 'D', 'S')
#define TAG_ABRT             WIRE_TAG('A', 'B', 'R', 'T')

/* Limits of format version 1: formats/rill.md, "Limits". */
#define LIMIT_CHUNK   ((uint64_t)16 << 20) /* decoded size of a compressed chunk */
#define LIMIT_META    ((uint64_t)16 << 20)
#define LIMIT_PROV    ((uint64_t)1 << 20)
#define LIMIT_VOCAB   ((uint64_t)256 << 20)
#define LIMIT_OTHER   ((uint64_t)16 << 20)
#define LIMIT_ATTRS   ((uint64_t)64 << 10)
#define LIMIT_ABORT   ((uint64_t)4096)
#define LIMIT_TENSORS ((uint64_t)1 << 20) /* outside batches, per segment */
#define LIMIT_PROVS   ((uint64_t)1 << 16) /* per segment */
#define LIMIT_STRIDED 4096                /* batches in the index */
#define LIMIT_INDEX   ((LIMIT_TENSORS + LIMIT_PROVS + LIMIT_STRIDED + 1) * WIRE_ENTRY_BYTES)
#define LIMIT_WINDOW  ((uint64_t)1 << 24) /* zstd window */

struct wire_head {
    uint16_t major, minor;
    uint32_t incompatible, compatible; /* flags */
    uint64_t hash;
};
#define WIRE_INCOMPATIBLE_KNOWN 0u

struct wire_record {
    uint32_t tag;
    uint64_t stored, raw, raw_offset;
    uint32_t seq, tensor;
    uint16_t codec, flags;
    uint64_t payload_hash;
    uint64_t hash; /* of the header itself; set by encode and decode */
};
#define WIRE_LAST_CHUNK 1u

struct wire_tens {
    struct tensor_desc desc;
    uint64_t n_bytes;
    const char *attrs; /* points into the payload; n_attrs bytes of JSON, 0: none */
    size_t n_attrs;
};

struct wire_entry {
    uint32_t tag;
    uint64_t number, offset, key;
};

struct wire_ends {
    struct digest digest;
    uint64_t segment_bytes, index_offset, records, tensors, batches, positions, raw_bytes;
};

uint64_t wire_hash(const void *data, size_t n); /* XXH3 64 */
/* Number of zero bytes after n bytes of payload. */
static inline size_t wire_padding(uint64_t n) {
    return (size_t)(-n & (WIRE_ALIGN - 1));
}
bool wire_all_zero(const void *p, size_t n);
static inline bool wire_optional(uint32_t tag) {
    return tag & 0x20;
}
static inline bool wire_safe_to_copy(uint32_t tag) {
    return tag >> 24 & 0x20;
}
uint64_t wire_payload_limit(uint32_t tag); /* of every record except DATA */
void wire_tag_text(uint32_t tag, char out[5]);

void wire_head_encode(unsigned char out[WIRE_HEAD_BYTES], struct wire_head *h);
/* Decodes a head from the n bytes available. ERR_DATA tells foreign formats and text apart. */
int wire_head_decode(const unsigned char *p, size_t n, struct wire_head *h, struct err *e) MUST_CHECK;
void wire_record_encode(unsigned char out[WIRE_RECORD_BYTES], struct wire_record *r);
/* The part of a record header that enters the content digest: all but its number in the segment. */
#define WIRE_CONTENT_BYTES 44
void wire_record_content(unsigned char out[WIRE_CONTENT_BYTES], const struct wire_record *r);
static inline bool wire_is_content(uint32_t tag) {
    return tag != TAG_PROV && tag != TAG_INDX && tag != TAG_ENDS;
}
int wire_record_decode(const unsigned char p[WIRE_RECORD_BYTES], struct wire_record *r, struct err *e) MUST_CHECK;
int wire_tens_encode(struct buf *out, const struct wire_tens *t, struct err *e) MUST_CHECK;
int wire_tens_decode(const unsigned char *p, size_t n, struct wire_tens *t, struct err *e) MUST_CHECK;
void wire_batch_encode(unsigned char out[WIRE_BTCH_BYTES], const struct stream_batch *b);
int wire_batch_decode(const unsigned char *p, size_t n, struct stream_batch *b, struct err *e) MUST_CHECK;
void wire_entry_encode(unsigned char out[WIRE_ENTRY_BYTES], const struct wire_entry *x);
int wire_entry_decode(const unsigned char p[WIRE_ENTRY_BYTES], struct wire_entry *x, struct err *e) MUST_CHECK;
void wire_ends_encode(unsigned char out[WIRE_ENDS_BYTES], const struct wire_ends *x);
int wire_ends_decode(const unsigned char *p, size_t n, struct wire_ends *x, struct err *e) MUST_CHECK;
void wire_u64_encode(unsigned char out[8], uint64_t v);
void wire_u32_encode(unsigned char out[4], uint32_t v);
uint32_t wire_u32_decode(const unsigned char *p);

#endif
