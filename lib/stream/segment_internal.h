/*
 * segment: the rules for the order of records in a segment. Reader and writer update the same state through the same
 * functions, so that the reader accepts exactly what the writer can write. Messages carry no location.
 */
#ifndef RILL_STREAM_SEGMENT_INTERNAL_H
#define RILL_STREAM_SEGMENT_INTERNAL_H

#include "lib/stream/wire_internal.h"

/* A set of strings as their 128-bit digests. */
struct nameset {
    struct digest *slots;
    size_t cap, n;
};
int nameset_add(struct nameset *s, const void *key, size_t n, bool *fresh, struct err *e) MUST_CHECK;
void nameset_clear(struct nameset *s);
void nameset_release(struct nameset *s);

struct segment {
    enum stream_kind kind; /* STREAM_ANY until META */
    bool has_vocab, has_index;
    uint64_t records, bytes; /* so far; bytes include the segment head */
    uint64_t raw_bytes, tensors, batches, positions, provs;
    uint64_t numbered;            /* number of tensors outside batches */
    struct digest_state *digest;  /* over all records, for the end record */
    struct digest_state *content; /* over the records for which wire_is_content */
    struct nameset names, batch_names;

    struct stream_batch batch; /* the latest */
    uint32_t batch_left;       /* tensors of it still to come */

    bool tensor_open; /* more DATA records must follow */
    struct tensor_desc desc;
    uint32_t number;                /* of the latest tensor */
    uint64_t tensor_bytes, data_at; /* its size, and the bytes seen so far */

    struct buf index;   /* index entries of everything but batches */
    struct buf strided; /* index entries of every stride-th batch */
    uint64_t stride;
};

/* Sums over the segments of a stream. */
struct totals {
    struct stream_totals sum;
    struct digest_state *digests; /* over the segments' content digests */
};
int totals_init(struct totals *t, struct err *e) MUST_CHECK;
void totals_release(struct totals *t);
void totals_add(struct totals *t, const struct segment *s); /* call after the end record was counted */

/* Begins a segment whose head was read or written; discards the state of the previous one. */
int segment_begin(struct segment *s, const struct wire_head *head, struct err *e) MUST_CHECK;
void segment_release(struct segment *s);

/* Continues at any batch of the segment (after a seek). Counts and digests then no longer match the end record. */
void segment_resume(struct segment *s);

/* Check that a record is allowed next, and update the state if it is; else ERR_DATA. Call when the record's offset in
 * the segment is s->bytes. */
int segment_meta(struct segment *s, enum stream_kind kind, struct err *e) MUST_CHECK;
int segment_prov(struct segment *s, struct err *e) MUST_CHECK;
int segment_vocab(struct segment *s, struct err *e) MUST_CHECK;
int segment_batch(struct segment *s, const struct stream_batch *b, struct err *e) MUST_CHECK;
int segment_tensor(struct segment *s, const struct tensor_desc *d, struct err *e) MUST_CHECK;
int segment_data(struct segment *s, const struct wire_record *r, struct err *e) MUST_CHECK;
int segment_other(struct segment *s, struct err *e) MUST_CHECK;
int segment_index(struct segment *s, struct err *e) MUST_CHECK;
int segment_ends(struct segment *s, struct err *e) MUST_CHECK;
/* Accounts for a record that was read or written. ENDS is counted, but not part of the digest that it carries. */
void segment_count(struct segment *s, const struct wire_record *r);

/* Appends to `out` the index of the records so far. */
int segment_index_build(const struct segment *s, struct buf *out, struct err *e) MUST_CHECK;
/* Computes the content of the end record; call before segment_count of the end record itself. */
void segment_summary(const struct segment *s, uint64_t index_offset, struct wire_ends *out);

#endif
