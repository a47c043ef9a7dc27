/*
 * segment: the rules of order inside a segment. Reader and writer keep the same state through the same functions, so
 * that the reader accepts exactly what the writer can write. Messages carry no location.
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
    uint64_t records, bytes; /* so far, the head included in bytes */
    uint64_t raw_bytes, tensors, batches, positions, provs;
    uint64_t numbered;            /* tensors outside batches */
    struct digest_state *digest;  /* of all records: the end record's */
    struct digest_state *content; /* of what wire_is_content */
    struct nameset names, batch_names;

    struct stream_batch batch; /* the latest */
    uint32_t batch_left;       /* its tensors still to come */

    bool tensor_open; /* more DATA must follow */
    struct tensor_desc desc;
    uint32_t number;                /* of the latest tensor */
    uint64_t tensor_bytes, data_at; /* its size, and how much of it came */

    struct buf index;   /* entries of what is indexed in full */
    struct buf strided; /* entries of every stride-th batch */
    uint64_t stride;
};

/* Sums over the segments of a stream. */
struct totals {
    struct stream_totals sum;
    struct digest_state *digests; /* over the segments' content digests */
};
int totals_init(struct totals *t, struct err *e) MUST_CHECK;
void totals_release(struct totals *t);
void totals_add(struct totals *t, const struct segment *s); /* after the end record was counted */

/* Begins a segment whose head was read or written; forgets the one before. */
int segment_begin(struct segment *s, const struct wire_head *head, struct err *e) MUST_CHECK;
void segment_release(struct segment *s);

/* Whatever came before, a batch comes next: what the end record would say of the segment is no longer known. */
void segment_resume(struct segment *s);

/* Is this allowed next? Each updates the state if so. Call with the record's offset = s->bytes. */
int segment_meta(struct segment *s, enum stream_kind kind, struct err *e) MUST_CHECK;
int segment_prov(struct segment *s, struct err *e) MUST_CHECK;
int segment_vocab(struct segment *s, struct err *e) MUST_CHECK;
int segment_batch(struct segment *s, const struct stream_batch *b, struct err *e) MUST_CHECK;
int segment_tensor(struct segment *s, const struct tensor_desc *d, struct err *e) MUST_CHECK;
int segment_data(struct segment *s, const struct wire_record *r, struct err *e) MUST_CHECK;
int segment_other(struct segment *s, struct err *e) MUST_CHECK;
int segment_index(struct segment *s, struct err *e) MUST_CHECK;
int segment_ends(struct segment *s, struct err *e) MUST_CHECK;
/* Accounts for a record of `stored` payload bytes. ENDS is counted, but not part of the digest that it carries. */
void segment_count(struct segment *s, const struct wire_record *r);

/* The index that the records so far imply. Appends to `out`. */
int segment_index_build(const struct segment *s, struct buf *out, struct err *e) MUST_CHECK;
/* The end record's content, before segment_count of the end record itself. */
void segment_summary(const struct segment *s, uint64_t index_offset, struct wire_ends *out);

#endif
