/*
 * Takes a stream apart into records and seals it again with correct checksums and counts, so that a test can falsify
 * one field while everything else is valid.
 */
#ifndef RILL_TESTS_STREAM_FORGE_H
#define RILL_TESTS_STREAM_FORGE_H

#include "tests/unit/stream_samples.h"

struct forged_record {
    struct wire_record h;
    struct buf payload;
    bool keep_sizes; /* keep stored and raw as the test set them */
    bool keep_seq;
};

struct forged {
    struct wire_head head;
    struct forged_record records[64];
    size_t n;
    bool keep_ends; /* keep the end record as the test set it */
};

/* Takes one segment apart. The index is dropped, since its offsets would depend on every change. */
static inline struct forged forge(struct buf *b) {
    struct err e;
    struct forged f = {0};
    OK(wire_head_decode(b->data, b->len, &f.head, &e));
    for (size_t at = WIRE_HEAD_BYTES; at < b->len;) {
        struct forged_record *r = &f.records[f.n];
        OK(wire_record_decode(b->data + at, &r->h, &e));
        at += WIRE_RECORD_BYTES;
        if (r->h.tag != TAG_INDX) {
            OK(buf_append(&r->payload, b->data + at, (size_t)r->h.stored, &e));
            f.n++;
        }
        at += (size_t)r->h.stored + wire_padding(r->h.stored);
    }
    buf_release(b);
    return f;
}

static inline size_t forged_find(const struct forged *f, uint32_t tag, size_t nth) {
    for (size_t i = 0; i < f->n; i++)
        if (f->records[i].h.tag == tag && nth-- == 0) return i;
    fail_msg("no such record");
    return 0;
}

static inline void forged_insert(struct forged *f, size_t at, uint32_t tag, const void *payload, size_t n) {
    struct err e;
    memmove(&f->records[at + 1], &f->records[at], (f->n - at) * sizeof f->records[0]);
    f->records[at] = (struct forged_record){.h = {.tag = tag}};
    OK(buf_append(&f->records[at].payload, payload, n, &e));
    f->n++;
}

static inline void forged_remove(struct forged *f, size_t at) {
    buf_release(&f->records[at].payload);
    f->n--;
    memmove(&f->records[at], &f->records[at + 1], (f->n - at) * sizeof f->records[0]);
}

static inline void forged_set(struct forged *f, size_t at, const void *payload, size_t n) {
    struct err e;
    f->records[at].payload.len = 0;
    OK(buf_append(&f->records[at].payload, payload, n, &e));
}

static inline void forged_count(const struct forged_record *r, struct wire_ends *ends) {
    struct err e;
    struct wire_tens t;
    struct stream_batch b;
    const unsigned char *p = r->payload.data;
    ends->records++;
    if (r->h.tag == TAG_TENS && !wire_tens_decode(p, r->payload.len, &t, &e)) {
        ends->tensors++;
        ends->raw_bytes += t.n_bytes;
    }
    if (r->h.tag == TAG_BTCH && !wire_batch_decode(p, r->payload.len, &b, &e)) {
        ends->batches++;
        ends->positions += b.n_positions;
    }
}

/* Returns the sealed stream. Releases f. */
static inline struct buf sealed(struct forged *f) {
    struct err e;
    struct buf out = {0};
    struct wire_ends ends = {.segment_bytes = WIRE_HEAD_BYTES};
    struct digest_state *digest = digest_new(&e);
    unsigned char head[WIRE_HEAD_BYTES], hash[8];
    wire_head_encode(head, &f->head);
    OK(buf_append(&out, head, sizeof head, &e));
    wire_u64_encode(hash, f->head.hash);
    digest_update(digest, hash, 8);
    for (size_t i = 0; i < f->n; i++) {
        struct forged_record *r = &f->records[i];
        unsigned char header[WIRE_RECORD_BYTES], ended[WIRE_ENDS_BYTES];
        static const unsigned char zeros[WIRE_ALIGN];
        forged_count(r, &ends);
        if (r->h.tag == TAG_ENDS && !f->keep_ends) {
            ends.digest = digest_get(digest);
            ends.segment_bytes = out.len + WIRE_RECORD_BYTES + WIRE_ENDS_BYTES;
            wire_ends_encode(ended, &ends);
            forged_set(f, i, ended, sizeof ended);
        }
        if (!r->keep_seq) r->h.seq = (uint32_t)i;
        if (!r->keep_sizes && r->h.raw == r->h.stored) r->h.raw = r->payload.len;
        if (!r->keep_sizes) r->h.stored = r->payload.len;
        r->h.payload_hash = wire_hash(r->payload.data, r->payload.len);
        wire_record_encode(header, &r->h);
        wire_u64_encode(hash, r->h.hash);
        digest_update(digest, hash, 8);
        OK(buf_append(&out, header, sizeof header, &e));
        OK(buf_append(&out, r->payload.data, r->payload.len, &e));
        OK(buf_append(&out, zeros, wire_padding(r->payload.len), &e));
        buf_release(&r->payload);
    }
    digest_free(digest);
    f->n = 0;
    return out;
}

/* Seals f and reads it from a file and from a pipe: both must fail with ERR_DATA and `message`. */
static inline void refused(struct forged *f, const char *message) {
    struct err e = {0};
    struct buf b = sealed(f);
    if (read_bytes(b.data, b.len, &e) != ERR_DATA) fail_msg("accepted, expected '%s'", message);
    if (!strstr(e.msg, message)) fail_msg("message '%s', expected '%s'", e.msg, message);
    memset(&e, 0, sizeof e);
    if (read_piped(b.data, b.len, &e) != ERR_DATA || !strstr(e.msg, message))
        fail_msg("from a pipe: '%s', expected '%s'", e.msg, message);
    buf_release(&b);
}

static inline void accepted(struct forged *f) {
    struct err e = {0};
    struct buf b = sealed(f);
    if (read_bytes(b.data, b.len, &e)) fail_msg("%s", e.msg);
    buf_release(&b);
}

#endif
