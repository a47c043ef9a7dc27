/*
 * Reads the data of a tensor in three ways that share one state: in stored form (to skip or to forward), raw chunks
 * straight into the caller's memory, and compressed chunks in groups that are decoded on all threads.
 */
#include "lib/stream/stream_internal.h"

#include <inttypes.h>

/* Small enough to hash while the bytes are still in a cache, and for threads to share the reading. */
enum { PIECE_BYTES = 4 << 20 };

void reader_begin_data(struct stream_reader *r) {
    r->dtype = dtype_info(r->seg.desc.dtype);
    r->chunk_ready = r->inside = false;
    r->given = 0;
    r->storage = (struct stream_storage){0};
    r->plain.len = r->plain_from = 0;
}

static int fail_in_tensor(struct stream_reader *r, struct err *e) {
    err_prefix(e, "tensor '%s'", r->seg.desc.name);
    return reader_fail(r, e);
}

/* ---- chunk headers ----------------------------------------------------------------------------------------------- */

bool reader_has_chunk(const struct stream_reader *r) {
    return r->chunk_ready || r->seg.tensor_open;
}

int reader_chunk(struct stream_reader *r, struct err *e) {
    if (r->chunk_ready) return 0;
    if (reader_header(r, e)) return e->code;
    const struct wire_record *h = &r->rec;
    if (h->tag == TAG_ABRT) return reader_aborted(r, e);
    int code = 0;
    char tag[5];
    wire_tag_text(h->tag, tag);
    if (h->tag != TAG_DATA)
        code = err_set(e, ERR_DATA, "%s record inside tensor '%s', which has %" PRIu64 " of %" PRIu64 " bytes", tag,
                       r->seg.desc.name, r->seg.data_at, r->seg.tensor_bytes);
    else if (h->codec > CODEC_SPARSE)
        code = err_set(e, ERR_DATA, "tensor '%s': codec %u, this version understands codecs 0 to %d", r->seg.desc.name,
                       h->codec, CODEC_SPARSE);
    else if (h->flags & ~WIRE_LAST_CHUNK)
        code = err_set(e, ERR_DATA, "tensor '%s': chunk with unknown flags 0x%x", r->seg.desc.name, h->flags);
    else
        code = segment_data(&r->seg, h, e);
    if (code) return reader_fail(r, e);
    segment_count(&r->seg, h);
    r->storage.bytes += h->stored;
    r->storage.chunks++;
    if (h->codec != CODEC_RAW) r->storage.codec = (enum stream_codec)h->codec;
    r->chunk_ready = true;
    return 0;
}

/* ---- a payload in stored form ---- */

void reader_stored_begin(struct stream_reader *r) {
    r->chunk_ready = false;
    r->inside = true;
    r->left = r->rec.stored;
    checksum_restart(r->hash);
}

static int stored_end(struct stream_reader *r, struct err *e) {
    r->inside = false;
    if (checksum_get(r->hash) == r->rec.payload_hash) return reader_padding(r, e);
    err_set(e, ERR_DATA, "checksum mismatch");
    return fail_in_tensor(r, e);
}

int reader_stored_take(struct stream_reader *r, const unsigned char **p, size_t *got, struct err *e) {
    *got = 0;
    if (r->left == 0) return stored_end(r, e);
    if (input_take(&r->in, r->left, p, got, e)) return reader_remember(r, e);
    if (*got == 0) return reader_truncated(r, e);
    checksum_update(r->hash, *p, *got);
    r->left -= *got;
    return 0;
}

static int skip_stored(struct stream_reader *r, struct err *e) {
    const unsigned char *p;
    size_t got = 1;
    while (got > 0)
        if (reader_stored_take(r, &p, &got, e)) return e->code;
    return 0;
}

int reader_skip_data(struct stream_reader *r, struct err *e) {
    r->plain.len = r->plain_from = 0;
    if (r->inside && skip_stored(r, e)) return e->code;
    while (reader_has_chunk(r)) {
        if (reader_chunk(r, e)) return e->code;
        if (!r->skim) {
            reader_stored_begin(r);
            if (skip_stored(r, e)) return e->code;
        } else if (input_seek_past(&r->in, r->rec.stored + wire_padding(r->rec.stored), e)) {
            return reader_remember(r, e);
        } else {
            r->chunk_ready = false;
        }
    }
    return 0;
}

/* ---- raw chunks: into the caller's memory ------------------------------------------------------------------------ */

static int read_raw(struct stream_reader *r, unsigned char *dst, size_t n, size_t *done, struct err *e) {
    *done = 0;
    if (n > r->left) n = (size_t)r->left;
    while (*done < n) {
        size_t now = n - *done < PIECE_BYTES ? n - *done : PIECE_BYTES, got;
        if (input_read(&r->in, dst + *done, now, &got, e)) return reader_remember(r, e);
        if (got < now) return reader_truncated(r, e);
        checksum_update(r->hash, dst + *done, got);
        *done += got;
    }
    r->left -= n;
    return r->left == 0 ? stored_end(r, e) : 0;
}

/* ---- compressed chunks: in groups -------------------------------------------------------------------------------- */

/* Reads compressed chunks, starting with the one whose header was read, until the group is full or a raw chunk
 * comes. */
static int gather(struct stream_reader *r, uint64_t *total, struct err *e) {
    size_t from[CODEC_GROUP];
    r->n_group = 0;
    r->stored.len = 0;
    *total = 0;
    do {
        struct chunk *k = &r->group[r->n_group];
        from[r->n_group] = r->stored.len;
        r->group_at[r->n_group] = r->rec_at;
        r->group_number[r->n_group] = r->rec_number;
        if (reader_append(r, &r->stored, r->rec.stored, e) || reader_padding(r, e)) return e->code;
        k->codec = (enum stream_codec)r->rec.codec;
        k->dtype = r->dtype;
        k->n_stored = r->rec.stored;
        k->n_raw = r->rec.raw;
        k->payload_hash = r->rec.payload_hash;
        *total += k->n_raw;
        r->n_group++;
        r->chunk_ready = false;
        if (!r->seg.tensor_open) break;
        if (reader_chunk(r, e)) return e->code;
    } while (r->n_group < CODEC_GROUP && r->rec.codec != CODEC_RAW && *total + r->rec.raw <= LIMIT_CHUNK);
    for (size_t i = 0; i < r->n_group; i++)
        r->group[i].stored = r->stored.data ? r->stored.data + from[i] : NULL; /* NULL if all of them are empty */
    return 0;
}

static int decode(struct stream_reader *r, unsigned char *dst, struct err *e) {
    size_t failed;
    for (size_t i = 0; i < r->n_group; i++) {
        r->group[i].raw = dst;
        dst += r->group[i].n_raw;
    }
    if (!codec_decode(&r->codecs, r->group, r->n_group, &failed, e)) return 0;
    r->rec_at = r->group_at[failed];
    r->rec_number = r->group_number[failed];
    return fail_in_tensor(r, e);
}

/* Decodes straight into dst if the whole group fits, else through r->plain. */
static int read_group(struct stream_reader *r, unsigned char *dst, size_t n, size_t *done, struct err *e) {
    uint64_t total;
    *done = 0;
    if (gather(r, &total, e)) return e->code;
    if (total <= n) {
        *done = (size_t)total;
        return decode(r, dst, e);
    }
    r->plain.len = r->plain_from = 0;
    if (buf_reserve(&r->plain, (size_t)total, e)) return reader_remember(r, e);
    r->plain.len = (size_t)total;
    return decode(r, r->plain.data, e);
}

/* ---- public functions ---- */

static size_t take_plain(struct stream_reader *r, unsigned char *dst, size_t n) {
    size_t have = r->plain.len - r->plain_from;
    if (n > have) n = have;
    if (n) memcpy(dst, r->plain.data + r->plain_from, n);
    r->plain_from += n;
    return n;
}

static int read_data(struct stream_reader *r, unsigned char *dst, size_t n, size_t *got, struct err *e) {
    *got = 0;
    while (*got < n) {
        size_t done = take_plain(r, dst + *got, n - *got);
        if (done == 0 && !r->inside) {
            if (!reader_has_chunk(r)) break;
            if (reader_chunk(r, e)) return e->code;
            if (r->rec.codec == CODEC_RAW) reader_stored_begin(r);
        }
        if (done == 0 &&
            (r->inside ? read_raw(r, dst + *got, n - *got, &done, e) : read_group(r, dst + *got, n - *got, &done, e)))
            return e->code;
        *got += done;
        r->given += done;
    }
    return 0;
}

int stream_read_data(struct stream_reader *r, void *dst, size_t n, size_t *got, struct err *e) {
    PROFILE(READING);
    return reader_failed(r, e) ? e->code : read_data(r, dst, n, got, e);
}

int stream_read_f32(struct stream_reader *r, float *dst, size_t n, size_t *got, struct err *e) {
    PROFILE(READING);
    const struct dtype_info *t = r->dtype;
    *got = 0;
    if (reader_failed(r, e)) return e->code;
    size_t want = n / t->block_elems * t->block_bytes;
    r->values.len = 0;
    if (buf_reserve(&r->values, want, e)) return reader_remember(r, e);
    if (read_data(r, r->values.data, want, got, e)) return e->code;
    *got = *got / t->block_bytes * t->block_elems; /* the tensor and the request are whole numbers of blocks */
    tensor_to_f32(t->dtype, r->values.data, dst, *got);
    return 0;
}

int stream_skip_tensor(struct stream_reader *r, struct err *e) {
    PROFILE(READING);
    return reader_failed(r, e) ? e->code : reader_skip_data(r, e);
}

void stream_reader_storage(const struct stream_reader *r, struct stream_storage *out) {
    *out = r->storage;
}

static int begin_whole(struct stream_reader *r, uint64_t n_bytes, struct err *e) {
    if (reader_failed(r, e)) return e->code;
    if (r->given || n_bytes != r->seg.tensor_bytes) {
        err_set(e, ERR_DATA, "tensor '%s': has %" PRIu64 " bytes, %" PRIu64 " of them read before, %" PRIu64 " wanted",
                r->seg.desc.name, r->seg.tensor_bytes, r->given, n_bytes);
        return reader_fail(r, e);
    }
    return 0;
}

int stream_read_tensor(struct stream_reader *r, void *dst, uint64_t n_bytes, struct err *e) {
    PROFILE(READING);
    size_t got;
    if (begin_whole(r, n_bytes, e) || read_data(r, dst, (size_t)n_bytes, &got, e)) return e->code;
    return reader_skip_data(r, e); /* an empty tensor still has one chunk */
}

int stream_load_tensor(struct stream_reader *r, struct buf *b, struct err *e) {
    PROFILE(READING);
    const uint64_t step = (uint64_t)64 << 20;
    uint64_t left = r->seg.tensor_bytes;
    b->len = 0;
    if (begin_whole(r, left, e)) return e->code;
    if (left > b->cap && mem_check(left - b->cap, e)) { /* before reading any of it */
        err_prefix(e, "tensor '%s'", r->seg.desc.name);
        return reader_remember(r, e);
    }
    while (left > 0) {
        uint64_t now = b->len > step ? b->len : step;
        size_t got;
        if (!r->inside && reader_has_chunk(r) && reader_chunk(r, e)) return e->code;
        /* Raw data cannot be longer than the rest of the file, so there is no need to go by steps and copy. */
        if (r->in.regular && r->chunk_ready && r->rec.codec == CODEC_RAW && r->in.size - r->in.at > now)
            now = r->in.size - r->in.at;
        if (now > left) now = left;
        if (buf_reserve(b, (size_t)now, e)) return reader_remember(r, e);
        if (read_data(r, b->data + b->len, (size_t)now, &got, e)) return e->code;
        b->len += got;
        left -= got;
    }
    return reader_skip_data(r, e);
}
