/* Writes a stream record by record. */
#include "lib/stream/stream_internal.h"

#include <inttypes.h>

enum { CHUNK_BYTES = 1 << 20, CHUNK_MIN = 256 };

/* ---- failure: the first one is kept, so that a writer that lost a byte never completes its stream ---- */

int writer_fail(struct stream_writer *w, struct err *e) {
    err_prefix(e, "%s", w->name);
    if (!w->failed.code) w->failed = *e;
    return e->code;
}

bool writer_failed(const struct stream_writer *w, struct err *e) {
    if (w->failed.code) err_set(e, w->failed.code, "%s", w->failed.msg);
    return w->failed.code != 0;
}

/* ---- records ----------------------------------------------------------------------------------------------------- */

int writer_put_begin(struct stream_writer *w, struct wire_record *r, struct err *e) {
    unsigned char header[WIRE_RECORD_BYTES];
    r->seq = (uint32_t)w->seg.records;
    wire_record_encode(header, r);
    w->partial = true;
    return output_write(&w->out, header, sizeof header, e);
}

int writer_put_end(struct stream_writer *w, const struct wire_record *r, struct err *e) {
    static const unsigned char zeros[WIRE_ALIGN];
    if (output_write(&w->out, zeros, wire_padding(r->stored), e)) return e->code;
    w->partial = false;
    segment_count(&w->seg, r);
    return 0;
}

int writer_put(struct stream_writer *w, struct wire_record *r, const void *payload, struct err *e) {
    if (writer_put_begin(w, r, e) || output_write(&w->out, payload, (size_t)r->stored, e)) return e->code;
    return writer_put_end(w, r, e);
}

/* Writes a record other than DATA, which is always stored raw. */
static int put_plain(struct stream_writer *w, uint32_t tag, uint32_t tensor, const void *payload, size_t n,
                     struct err *e) {
    struct wire_record r = {.tag = tag, .stored = n, .raw = n, .tensor = tensor, .payload_hash = wire_hash(payload, n)};
    return writer_put(w, &r, payload, e);
}

/* ---- segments ---------------------------------------------------------------------------------------------------- */

static int begin_segment(struct stream_writer *w, struct err *e) {
    unsigned char p[WIRE_HEAD_BYTES];
    struct wire_head head = {.major = STREAM_VERSION_MAJOR, .minor = STREAM_VERSION_MINOR};
    wire_head_encode(p, &head);
    if (segment_begin(&w->seg, &head, e)) return e->code;
    w->began = true;
    return output_write(&w->out, p, sizeof p, e);
}

static int put_index(struct stream_writer *w, uint64_t *offset, struct err *e) {
    w->scratch.len = 0;
    *offset = 0;
    if (segment_index_build(&w->seg, &w->scratch, e)) return e->code;
    if (w->scratch.len == 0) return 0;
    *offset = w->seg.bytes;
    if (segment_index(&w->seg, e)) return e->code;
    return put_plain(w, TAG_INDX, 0, w->scratch.data, w->scratch.len, e);
}

static int end_segment(struct stream_writer *w, struct err *e) {
    unsigned char p[WIRE_ENDS_BYTES];
    uint64_t index_offset;
    struct wire_ends ends;
    if (segment_ends(&w->seg, e) || put_index(w, &index_offset, e)) return e->code;
    segment_summary(&w->seg, index_offset, &ends);
    wire_ends_encode(p, &ends);
    if (put_plain(w, TAG_ENDS, 0, p, sizeof p, e)) return e->code;
    totals_add(&w->totals, &w->seg);
    w->began = false;
    return 0;
}

int stream_writer_open(struct stream_writer **out, int fd, const char *name, const struct stream_write_options *options,
                       struct err *e) {
    struct stream_writer *w = mem_zalloc(sizeof *w, e);
    if (!w) return e->code;
    if (options) w->options = *options;
    if (!w->options.chunk_bytes) w->options.chunk_bytes = CHUNK_BYTES;
    if (w->options.chunk_bytes < CHUNK_MIN || w->options.chunk_bytes > LIMIT_CHUNK) {
        err_set(e, ERR_USAGE, "chunks of %zu bytes: from %d to %" PRIu64 " are possible", w->options.chunk_bytes,
                CHUNK_MIN, LIMIT_CHUNK);
        goto fail;
    }
    if (!(w->name = mem_strdup(name, e)) || totals_init(&w->totals, e) || output_open(&w->out, fd, e) ||
        begin_segment(w, e))
        goto fail;
    *out = w;
    return 0;
fail:
    stream_writer_free(w);
    return err_prefix(e, "%s", name);
}

int stream_writer_segment(struct stream_writer *w, struct err *e) {
    if (writer_failed(w, e)) return e->code;
    return end_segment(w, e) || begin_segment(w, e) ? writer_fail(w, e) : 0;
}

int stream_writer_finish(struct stream_writer *w, struct stream_totals *totals, struct err *e) {
    PROFILE(WRITING);
    if (writer_failed(w, e)) return e->code;
    if (end_segment(w, e) || output_flush(&w->out, e)) return writer_fail(w, e);
    if (totals) *totals = w->totals.sum;
    err_set(&w->failed, ERR_USAGE, "%s: written to after its end", w->name);
    return 0;
}

void stream_writer_abort(struct stream_writer *w, const char *why) {
    struct err ignored;
    size_t n = strlen(why);
    if (!w || w->failed.code == ERR_IO || w->partial || !w->began) return;
    if (n > LIMIT_ABORT) n = (size_t)LIMIT_ABORT;
    while (n > 0 && !utf8_valid(why, n)) n--;
    if (!put_plain(w, TAG_ABRT, 0, why, n, &ignored)) (void)!output_flush(&w->out, &ignored);
    w->began = false;
    if (!w->failed.code) err_set(&w->failed, ERR_USAGE, "%s: written to after it was aborted", w->name);
}

void stream_writer_free(struct stream_writer *w) {
    if (!w) return;
    for (size_t i = 0; i < CODEC_GROUP; i++) buf_release(&w->group[i].out);
    codecs_release(&w->codecs);
    buf_release(&w->pending);
    buf_release(&w->scratch);
    segment_release(&w->seg);
    totals_release(&w->totals);
    output_close(&w->out);
    mem_free(w->name);
    mem_free(w);
}

uint64_t stream_writer_bytes(const struct stream_writer *w) {
    return w->out.at;
}

/* ---- META, PROV, VOCB, BTCH -------------------------------------------------------------------------------------- */

static int put_json(struct stream_writer *w, uint32_t tag, const cJSON *json, uint64_t limit, const char *what,
                    struct err *e) {
    char *text = json_text(json, e);
    if (!text) return e->code;
    size_t n = strlen(text);
    int code = n > limit ? err_set(e, ERR_DATA, "%s of %zu bytes, at most %" PRIu64, what, n, limit)
                         : put_plain(w, tag, 0, text, n, e);
    mem_free(text);
    return code;
}

int stream_write_meta(struct stream_writer *w, const cJSON *meta, struct err *e) {
    const char *name;
    enum stream_kind kind;
    if (writer_failed(w, e)) return e->code;
    if (json_get_str(meta, "kind", &name, e) || stream_kind_parse(name, &kind, e) || segment_meta(&w->seg, kind, e) ||
        put_json(w, TAG_META, meta, LIMIT_META, "description", e) || output_flush(&w->out, e))
        return writer_fail(w, e);
    return 0;
}

int stream_write_prov(struct stream_writer *w, const cJSON *entry, struct err *e) {
    const char *id;
    if (writer_failed(w, e)) return e->code;
    if (json_get_str(entry, "id", &id, e) || segment_prov(&w->seg, e) ||
        put_json(w, TAG_PROV, entry, LIMIT_PROV, "provenance entry", e))
        return writer_fail(w, e);
    return 0;
}

int stream_write_vocab(struct stream_writer *w, const void *data, size_t n, struct err *e) {
    if (writer_failed(w, e)) return e->code;
    if (n > LIMIT_VOCAB) {
        err_set(e, ERR_DATA, "vocabulary of %zu bytes, at most %" PRIu64, n, LIMIT_VOCAB);
        return writer_fail(w, e);
    }
    return segment_vocab(&w->seg, e) || put_plain(w, TAG_VOCB, 0, data, n, e) ? writer_fail(w, e) : 0;
}

int stream_write_batch(struct stream_writer *w, const struct stream_batch *batch, struct err *e) {
    PROFILE(WRITING);
    unsigned char p[WIRE_BTCH_BYTES];
    if (writer_failed(w, e)) return e->code;
    wire_batch_encode(p, batch);
    return segment_batch(&w->seg, batch, e) || put_plain(w, TAG_BTCH, 0, p, sizeof p, e) ? writer_fail(w, e) : 0;
}

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

int writer_begin_tensor(struct stream_writer *w, const struct tensor_desc *d, const void *payload, size_t n,
                        struct err *e) {
    if (segment_tensor(&w->seg, d, e)) return e->code;
    w->dtype = dtype_info(d->dtype);
    w->chunk = w->options.chunk_bytes / w->dtype->block_bytes * w->dtype->block_bytes;
    w->pending.len = 0;
    return put_plain(w, TAG_TENS, w->seg.number, payload, n, e);
}

/* Flush a complete batch, so that the program downstream can start on it. */
int writer_tensor_done(struct stream_writer *w, struct err *e) {
    return w->seg.batches && !w->seg.batch_left ? output_flush(&w->out, e) : 0;
}

static int begin_tensor(struct stream_writer *w, const struct tensor_desc *d, const cJSON *attrs, struct err *e) {
    struct wire_tens t = {.desc = *d};
    uint64_t n_elems;
    char *text = NULL;
    if (tensor_desc_check(d, &n_elems, &t.n_bytes, e)) return err_prefix(e, "tensor '%s'", d->name);
    if (attrs && !(text = json_text(attrs, e))) return e->code;
    t.attrs = text;
    t.n_attrs = text ? strlen(text) : 0;
    w->scratch.len = 0;
    int code = 0;
    if (attrs && w->seg.batch_left)
        code = err_set(e, ERR_DATA, "tensor '%s': attributes in a batch", d->name);
    else if (attrs && !cJSON_IsObject(attrs))
        code = err_set(e, ERR_DATA, "tensor '%s': attributes are not a JSON object", d->name);
    else if (t.n_attrs > LIMIT_ATTRS)
        code = err_set(e, ERR_DATA, "tensor '%s': attributes of %zu bytes, at most %" PRIu64, d->name, t.n_attrs,
                       LIMIT_ATTRS);
    else if (!(code = wire_tens_encode(&w->scratch, &t, e)))
        code = writer_begin_tensor(w, d, w->scratch.data, w->scratch.len, e);
    mem_free(text);
    return code;
}

static int put_chunk(struct stream_writer *w, const struct chunk *k, struct err *e) {
    struct segment *s = &w->seg;
    struct wire_record r = {
        .tag = TAG_DATA,
        .stored = k->n_stored,
        .raw = k->n_raw,
        .raw_offset = s->data_at,
        .tensor = s->number,
        .codec = (uint16_t)k->codec,
        .flags = s->data_at + k->n_raw == s->tensor_bytes ? WIRE_LAST_CHUNK : 0,
        .payload_hash = k->payload_hash,
    };
    return segment_data(s, &r, e) ? e->code : writer_put(w, &r, k->stored, e);
}

/* Cuts n bytes into chunks and writes them. n ends at a chunk boundary or at the end of the tensor. */
static int put_chunks(struct stream_writer *w, const void *from, size_t n, struct err *e) {
    const unsigned char *data = from;
    do {
        size_t k = 0;
        for (; k < CODEC_GROUP && (n > 0 || k == 0); k++) {
            struct chunk *c = &w->group[k];
            c->codec = w->options.codec;
            c->dtype = w->dtype;
            c->raw = (void *)data;
            c->n_raw = n < w->chunk ? n : w->chunk;
            data += c->n_raw;
            n -= (size_t)c->n_raw;
        }
        if (codec_encode(&w->codecs, w->group, k, w->options.level, e)) return e->code;
        for (size_t i = 0; i < k; i++)
            if (put_chunk(w, &w->group[i], e)) return e->code;
    } while (n > 0);
    return 0;
}

/* Collects data into groups of whole chunks; chunk boundaries do not depend on how the data was passed in. */
static int add_data(struct stream_writer *w, const unsigned char *data, size_t n, struct err *e) {
    size_t unit = w->chunk * (w->options.codec == CODEC_RAW ? 1 : CODEC_GROUP);
    while (n > 0) {
        if (w->pending.len == 0 && n >= unit) {
            size_t direct = n / w->chunk * w->chunk;
            if (put_chunks(w, data, direct, e)) return e->code;
            data += direct;
            n -= direct;
            continue;
        }
        size_t take = unit - w->pending.len < n ? unit - w->pending.len : n;
        if (buf_append(&w->pending, data, take, e)) return e->code;
        data += take;
        n -= take;
        if (w->pending.len < unit && w->seg.data_at + w->pending.len < w->seg.tensor_bytes) continue;
        if (put_chunks(w, w->pending.data, w->pending.len, e)) return e->code;
        w->pending.len = 0;
    }
    return 0;
}

int stream_write_tensor(struct stream_writer *w, const struct tensor_desc *d, const cJSON *attrs, const void *data,
                        struct err *e) {
    PROFILE(WRITING);
    if (writer_failed(w, e)) return e->code;
    if (begin_tensor(w, d, attrs, e)) return writer_fail(w, e);
    size_t n = (size_t)w->seg.tensor_bytes;
    if (w->options.codec == CODEC_RAW) w->chunk = n;
    return put_chunks(w, n ? data : "", n, e) || writer_tensor_done(w, e) ? writer_fail(w, e) : 0;
}

int stream_begin_tensor(struct stream_writer *w, const struct tensor_desc *d, const cJSON *attrs, struct err *e) {
    PROFILE(WRITING);
    if (writer_failed(w, e)) return e->code;
    return begin_tensor(w, d, attrs, e) ? writer_fail(w, e) : 0;
}

int stream_write_data(struct stream_writer *w, const void *data, size_t n, struct err *e) {
    PROFILE(WRITING);
    if (writer_failed(w, e)) return e->code;
    uint64_t left = w->seg.tensor_open ? w->seg.tensor_bytes - w->seg.data_at - w->pending.len : 0;
    if (n > left) {
        err_set(e, ERR_DATA, "tensor '%s': %zu bytes of data, %" PRIu64 " are missing", w->seg.desc.name, n, left);
        return writer_fail(w, e);
    }
    return add_data(w, data, n, e) ? writer_fail(w, e) : 0;
}

int stream_end_tensor(struct stream_writer *w, struct err *e) {
    PROFILE(WRITING);
    if (writer_failed(w, e)) return e->code;
    struct segment *s = &w->seg;
    int code = 0;
    if (s->tensor_open && s->tensor_bytes == 0)
        code = put_chunks(w, "", 0, e);
    else if (s->tensor_open)
        code = err_set(e, ERR_DATA, "tensor '%s': ended after %" PRIu64 " of %" PRIu64 " bytes", s->desc.name,
                       s->data_at + w->pending.len, s->tensor_bytes);
    return code || writer_tensor_done(w, e) ? writer_fail(w, e) : 0;
}
