/* Reads single records: header, payload, padding, and their error messages. reader.c builds segments from them. */
#include "lib/stream/stream_internal.h"

#include <inttypes.h>

/* ---- failure: the message names stream, record and byte; the first failure is kept ---- */

int reader_remember(struct stream_reader *r, struct err *e) {
    err_prefix(e, "%s", r->name);
    if (!r->failed.code) r->failed = *e;
    return e->code;
}

/* "record 812 at byte 4096", "segment 2, record 3 at byte 70000" */
static void locate(struct stream_reader *r, uint64_t number, uint64_t at, struct err *e) {
    if (r->totals.sum.segments)
        err_prefix(e, "segment %" PRIu64 ", record %" PRIu64 " at byte %" PRIu64, r->totals.sum.segments + 1, number,
                   at);
    else
        err_prefix(e, "record %" PRIu64 " at byte %" PRIu64, number, at);
}

int reader_fail(struct stream_reader *r, struct err *e) {
    if (e->code == ERR_DATA) locate(r, r->rec_number, r->rec_at, e);
    return reader_remember(r, e);
}

bool reader_failed(const struct stream_reader *r, struct err *e) {
    if (r->failed.code) err_set(e, r->failed.code, "%s", r->failed.msg);
    return r->failed.code != 0;
}

int reader_truncated(struct stream_reader *r, struct err *e) {
    uint64_t end = r->in.size < UINT64_MAX && r->in.size > r->in.at ? r->in.size : r->in.at;
    if (end == r->rec_at)
        err_set(e, ERR_DATA, "truncated: end of file at byte %" PRIu64 " before record %" PRIu64 ", no end record", end,
                r->rec_number);
    else
        err_set(e, ERR_DATA, "truncated: end of file at byte %" PRIu64 " inside record %" PRIu64, end, r->rec_number);
    return reader_remember(r, e);
}

static int read_exact(struct stream_reader *r, void *dst, size_t n, struct err *e) {
    size_t got;
    if (input_read(&r->in, dst, n, &got, e)) return reader_remember(r, e);
    return got == n ? 0 : reader_truncated(r, e);
}

/* ---- record headers ---------------------------------------------------------------------------------------------- */

int reader_header(struct stream_reader *r, struct err *e) {
    unsigned char p[WIRE_RECORD_BYTES];
    r->rec_at = r->in.at;
    r->rec_number = r->seg.records;
    if (read_exact(r, p, sizeof p, e)) return e->code;
    if (wire_record_decode(p, &r->rec, e)) return reader_fail(r, e);
    if (r->sought) r->seg.records = r->rec.seq;
    r->sought = false;
    if (r->rec.seq != (uint32_t)r->seg.records) {
        err_set(e, ERR_DATA, "has number %u: records are missing, repeated or out of order", r->rec.seq);
        return reader_fail(r, e);
    }
    /* If the file ends before the payload does, report it before allocating memory. */
    uint64_t padded;
    if (!u64_align(r->rec.stored, WIRE_ALIGN, &padded)) {
        err_set(e, ERR_DATA, "payload of %" PRIu64 " bytes", r->rec.stored);
        return reader_fail(r, e);
    }
    return r->in.regular && padded > r->in.size - r->in.at ? reader_truncated(r, e) : 0;
}

int reader_padding(struct stream_reader *r, struct err *e) {
    unsigned char p[WIRE_ALIGN];
    size_t n = wire_padding(r->rec.stored);
    if (read_exact(r, p, n, e)) return e->code;
    if (wire_all_zero(p, n)) return 0;
    err_set(e, ERR_DATA, "padding is not zero");
    return reader_fail(r, e);
}

int reader_append(struct stream_reader *r, struct buf *b, uint64_t n, struct err *e) {
    const uint64_t step = (uint64_t)64 << 20; /* untouched pages cost nothing */
    while (n > 0) {
        uint64_t now = r->in.regular ? n : step > b->len ? step : b->len;
        if (now > n) now = n;
        if (buf_reserve(b, (size_t)now, e)) return reader_remember(r, e);
        if (read_exact(r, b->data + b->len, (size_t)now, e)) return e->code;
        b->len += (size_t)now;
        n -= now;
    }
    return 0;
}

int reader_payload(struct stream_reader *r, struct err *e) {
    const uint64_t limit = wire_payload_limit(r->rec.tag);
    const struct wire_record *h = &r->rec;
    r->payload.len = 0;
    if (h->stored > limit)
        err_set(e, ERR_DATA, "payload of %" PRIu64 " bytes, at most %" PRIu64, h->stored, limit);
    else if (reader_append(r, &r->payload, h->stored, e) || reader_padding(r, e))
        return e->code;
    else if (wire_hash(r->payload.data, r->payload.len) == h->payload_hash)
        return 0;
    else
        err_set(e, ERR_DATA, "checksum mismatch");
    return reader_fail(r, e);
}

int reader_aborted(struct stream_reader *r, struct err *e) {
    if (reader_payload(r, e)) return e->code;
    for (size_t i = 0; i < r->payload.len; i++)
        if (r->payload.data[i] < ' ') r->payload.data[i] = ' ';
    err_set(e, ERR_DATA, "incomplete, the program that wrote it failed: %.*s", (int)r->payload.len,
            utf8_valid((const char *)r->payload.data, r->payload.len) ? (const char *)r->payload.data : "?");
    return reader_remember(r, e);
}
