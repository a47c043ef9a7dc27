/* Reads a stream item by item: segments, the order of their records, and what each must contain. */
#include "lib/stream/stream_internal.h"

#include <inttypes.h>

/* Checks that the fields reserved for DATA have their fixed values. */
static int check_plain(struct stream_reader *r, struct err *e) {
    const struct wire_record *h = &r->rec;
    bool ok = h->codec == CODEC_RAW && h->raw == h->stored && h->raw_offset == 0 && h->flags == 0;
    if (h->tag != TAG_TENS) ok = ok && h->tensor == 0;
    return ok ? 0 : err_set(e, ERR_DATA, "fields that are for tensor data are used in another record");
}

/* ---- segments ---------------------------------------------------------------------------------------------------- */

/* The buffer of an empty payload may be NULL. */
static cJSON *parse_payload(const struct stream_reader *r, struct err *e) {
    return json_parse(r->payload.len ? (const char *)r->payload.data : "", r->payload.len, e);
}

static int take_meta(struct stream_reader *r, struct err *e) {
    const char *name;
    enum stream_kind kind;
    cJSON *meta = parse_payload(r, e);
    if (!meta) return e->code;
    cJSON_Delete(r->meta);
    r->meta = meta;
    if (json_get_str(meta, "kind", &name, e) || stream_kind_parse(name, &kind, e) || segment_meta(&r->seg, kind, e))
        return e->code;
    return 0;
}

static int read_segment_start(struct stream_reader *r, struct err *e) {
    unsigned char p[WIRE_HEAD_BYTES];
    struct wire_head head;
    size_t got;
    r->segment_at = r->in.at;
    r->index_at = 0;
    r->between = false;
    if (input_read(&r->in, p, sizeof p, &got, e)) return reader_remember(r, e);
    if (wire_head_decode(p, got, &head, e)) {
        if (r->segment_at) err_prefix(e, "at byte %" PRIu64 ", after a complete segment", r->segment_at);
        return reader_remember(r, e);
    }
    if (segment_begin(&r->seg, &head, e)) return reader_remember(r, e);
    if (reader_header(r, e)) return e->code;
    if (r->rec.tag == TAG_ABRT) return reader_aborted(r, e);
    if (r->rec.tag != TAG_META) {
        err_set(e, ERR_DATA, "the first record is not META");
        return reader_fail(r, e);
    }
    r->minor = head.minor;
    if (check_plain(r, e)) return reader_fail(r, e);
    if (reader_payload(r, e)) return e->code;
    if (take_meta(r, e)) return reader_fail(r, e);
    segment_count(&r->seg, &r->rec);
    if (r->expect == STREAM_ANY || r->expect == r->seg.kind) return 0;
    err_set(e, ERR_DATA, "this is a %s stream, expected a %s stream", stream_kind_name(r->seg.kind),
            stream_kind_name(r->expect));
    return reader_remember(r, e);
}

static int take_ends(struct stream_reader *r, struct err *e) {
    struct wire_ends found, want;
    segment_summary(&r->seg, r->index_at, &want);
    if (wire_ends_decode(r->payload.data, r->payload.len, &found, e)) return e->code;
    if (!digest_equal(found.digest, want.digest)) return err_set(e, ERR_DATA, "the end record is of another segment");
    if (found.segment_bytes != want.segment_bytes || found.index_offset != want.index_offset ||
        found.records != want.records || found.tensors != want.tensors || found.batches != want.batches ||
        found.positions != want.positions || found.raw_bytes != want.raw_bytes)
        return err_set(e, ERR_DATA, "the end record's counts are not what the segment holds");
    return 0;
}

static int take_index(struct stream_reader *r, struct err *e) {
    struct buf want = {0};
    int code = segment_index_build(&r->seg, &want, e);
    if (!code && (want.len != r->payload.len || (want.len && memcmp(want.data, r->payload.data, want.len) != 0)))
        code = err_set(e, ERR_DATA, "the index does not describe the segment before it");
    buf_release(&want);
    return code;
}

/* ---- items ------------------------------------------------------------------------------------------------------- */

static void give_payload(const struct stream_reader *r, struct stream_item *item, enum stream_item_type type) {
    item->type = type;
    item->bytes = r->payload.data;
    item->n_bytes = r->payload.len;
    item->stored_bytes = r->payload.len;
}

static void give_meta(const struct stream_reader *r, struct stream_item *item) {
    give_payload(r, item, ITEM_META);
    item->offset = r->rec_at;
    item->kind = r->seg.kind;
    item->json = r->meta;
    memcpy(item->tag, "META", 5);
}

/* Keeps one entry per id. Beyond the limits it is still returned as an item, but not by stream_reader_prov. */
static int collect_prov(struct stream_reader *r, cJSON *entry, struct err *e) {
    const char *id;
    bool fresh = false;
    r->scratch = entry; /* freed with the reader's scratch unless it is kept */
    if (json_get_str(entry, "id", &id, e)) return e->code;
    if (r->prov_ids.n >= LIMIT_PROVS || r->prov_bytes + r->payload.len > LIMIT_META) {
        if (!r->prov_full) log_line(LOG_WARN, "%s: more provenance than is kept: older entries only", r->name);
        r->prov_full = true;
        return 0;
    }
    if (nameset_add(&r->prov_ids, id, strlen(id), &fresh, e)) return e->code;
    if (!fresh) return 0;
    r->prov_bytes += r->payload.len;
    r->scratch = NULL;
    cJSON_AddItemToArray(r->prov, entry);
    return 0;
}

static int take_prov(struct stream_reader *r, struct stream_item *item, struct err *e) {
    cJSON *entry = parse_payload(r, e);
    if (!entry) return e->code;
    item->json = entry;
    give_payload(r, item, ITEM_PROV);
    return collect_prov(r, entry, e) ? e->code : segment_prov(&r->seg, e);
}

static int take_tensor(struct stream_reader *r, struct stream_item *item, struct err *e) {
    struct wire_tens t;
    bool in_batch = r->seg.batch_left > 0;
    if (wire_tens_decode(r->payload.data, r->payload.len, &t, e)) return e->code;
    if (t.n_attrs && in_batch) return err_set(e, ERR_DATA, "tensor '%s': attributes in a batch", t.desc.name);
    if (t.n_attrs && !(r->scratch = json_parse(t.attrs, t.n_attrs, e)))
        return err_prefix(e, "tensor '%s': attributes", t.desc.name);
    if (t.n_attrs && !cJSON_IsObject(r->scratch))
        return err_set(e, ERR_DATA, "tensor '%s': attributes are not a JSON object", t.desc.name);
    if (segment_tensor(&r->seg, &t.desc, e)) return e->code;
    if (t.n_bytes != r->seg.tensor_bytes)
        return err_set(e, ERR_DATA, "tensor '%s': %" PRIu64 " bytes stated, type and dimensions make %" PRIu64,
                       t.desc.name, t.n_bytes, r->seg.tensor_bytes);
    if (r->rec.tensor != r->seg.number)
        return err_set(e, ERR_DATA, "tensor '%s' has number %u, expected %u", t.desc.name, r->rec.tensor,
                       r->seg.number);
    reader_begin_data(r);
    item->type = ITEM_TENSOR;
    item->desc = t.desc;
    item->attrs = r->scratch;
    item->in_batch = in_batch;
    return 0;
}

static int take_batch(struct stream_reader *r, struct stream_item *item, struct err *e) {
    give_payload(r, item, ITEM_BATCH);
    if (wire_batch_decode(r->payload.data, r->payload.len, &item->batch, e)) return e->code;
    return segment_batch(&r->seg, &item->batch, e);
}

static int take_vocab(struct stream_reader *r, struct stream_item *item, struct err *e) {
    give_payload(r, item, ITEM_VOCAB);
    return segment_vocab(&r->seg, e);
}

static int take_other(struct stream_reader *r, struct stream_item *item, struct err *e) {
    give_payload(r, item, ITEM_OTHER);
    item->safe_to_copy = wire_safe_to_copy(r->rec.tag);
    return segment_other(&r->seg, e);
}

static int refuse_unknown(const struct stream_reader *r, const char *tag, struct err *e) {
    return err_set(e, ERR_DATA,
                   "record type '%s' is unknown and must not be skipped: the stream is of version %u.%u, this "
                   "program understands version %u.%u",
                   tag, STREAM_VERSION_MAJOR, r->minor, STREAM_VERSION_MAJOR, STREAM_VERSION_MINOR);
}

/* Interprets the record just read. Leaves item->type at ITEM_EOF for records that callers do not see. */
static int take_record(struct stream_reader *r, struct stream_item *item, struct err *e) {
    switch (r->rec.tag) {
    case TAG_PROV: return take_prov(r, item, e);
    case TAG_VOCB: return take_vocab(r, item, e);
    case TAG_TENS: return take_tensor(r, item, e);
    case TAG_BTCH: return take_batch(r, item, e);
    case TAG_INDX:
        r->index_at = r->rec_at - r->segment_at;
        return segment_index(&r->seg, e) ? e->code : take_index(r, e);
    case TAG_ENDS: item->type = ITEM_SEGMENT_END; return segment_ends(&r->seg, e) ? e->code : take_ends(r, e);
    default: return take_other(r, item, e);
    }
}

static int next_record(struct stream_reader *r, struct stream_item *item, struct err *e) {
    item->type = ITEM_EOF;
    while (item->type == ITEM_EOF) {
        if (reader_header(r, e)) return e->code;
        uint32_t tag = r->rec.tag;
        wire_tag_text(tag, item->tag);
        item->offset = r->rec_at;
        if (tag == TAG_ABRT) return reader_aborted(r, e);
        int code = 0;
        bool known = tag == TAG_PROV || tag == TAG_VOCB || tag == TAG_TENS || tag == TAG_BTCH || tag == TAG_INDX ||
                     tag == TAG_ENDS;
        if (tag == TAG_META)
            code = segment_meta(&r->seg, r->seg.kind, e);
        else if (tag == TAG_DATA)
            code = segment_data(&r->seg, &r->rec, e);
        else if (!known && !wire_optional(tag))
            code = refuse_unknown(r, item->tag, e);
        else if (known)
            code = check_plain(r, e);
        if (code) return reader_fail(r, e);
        if (reader_payload(r, e)) return e->code;
        if (take_record(r, item, e)) return reader_fail(r, e);
        segment_count(&r->seg, &r->rec);
        if (tag != TAG_ENDS) continue;
        r->between = true;
        totals_add(&r->totals, &r->seg);
    }
    return 0;
}

int stream_next(struct stream_reader *r, struct stream_item *item, struct err *e) {
    PROFILE(READING);
    const unsigned char *p;
    size_t got;
    memset(item, 0, sizeof *item);
    item->type = ITEM_EOF;
    if (reader_failed(r, e)) return e->code;
    if (r->eof) return 0;
    if (!r->meta_pending && !r->between) {
        if (reader_skip_data(r, e)) return e->code;
        cJSON_Delete(r->scratch);
        r->scratch = NULL;
        return next_record(r, item, e);
    }
    if (r->between) {
        if (input_peek(&r->in, 1, &p, &got, e)) return reader_remember(r, e);
        r->eof = got == 0;
        if (r->eof) return 0;
        if (read_segment_start(r, e)) return e->code;
    }
    r->meta_pending = false;
    give_meta(r, item);
    return 0;
}

int stream_drain(struct stream_reader *r, struct err *e) {
    PROFILE(READING);
    struct stream_item item;
    do {
        if (stream_next(r, &item, e)) return e->code;
    } while (item.type != ITEM_EOF);
    return 0;
}

const char *stream_reader_name(const struct stream_reader *r) {
    return r->name;
}

enum stream_kind stream_reader_kind(const struct stream_reader *r) {
    return r->seg.kind;
}

const cJSON *stream_reader_meta(const struct stream_reader *r) {
    return r->meta;
}

const cJSON *stream_reader_prov(const struct stream_reader *r) {
    return r->prov;
}

void stream_reader_totals(const struct stream_reader *r, struct stream_totals *out) {
    *out = r->totals.sum;
}

void stream_reader_skim(struct stream_reader *r) {
    r->skim = r->in.regular;
}

int stream_reader_seek(struct stream_reader *r, uint64_t offset, struct err *e) {
    if (reader_failed(r, e)) return e->code;
    if (!r->in.regular) return err_set(e, ERR_IO, "%s: cannot seek: it is not a regular file", r->name);
    if (input_seek(&r->in, offset, e)) return reader_remember(r, e);
    r->meta_pending = r->between = r->eof = false;
    r->chunk_ready = r->inside = false;
    r->n_group = 0;
    r->sought = true;
    segment_resume(&r->seg);
    return 0;
}

/* ---- open, close ------------------------------------------------------------------------------------------------- */

int stream_reader_open(struct stream_reader **out, int fd, const char *name, enum stream_kind expect, struct err *e) {
    PROFILE(READING);
    struct stream_reader *r = mem_zalloc(sizeof *r, e);
    if (!r) return e->code;
    r->expect = expect;
    if (!(r->name = mem_strdup(name, e))) goto fail;
    if (totals_init(&r->totals, e)) goto fail;
    if (!(r->hash = checksum_new(e))) goto fail;
    if (!(r->prov = cJSON_CreateArray())) {
        err_nomem(e, "stream reader");
        goto fail;
    }
    if (input_open(&r->in, fd, e)) {
        err_prefix(e, "%s", name);
        goto fail;
    }
    if (read_segment_start(r, e)) goto fail;
    r->meta_pending = true;
    *out = r;
    return 0;
fail:
    stream_reader_free(r);
    return e->code;
}

void stream_reader_free(struct stream_reader *r) {
    if (!r) return;
    for (size_t i = 0; i < CODEC_GROUP; i++) buf_release(&r->group[i].out);
    codecs_release(&r->codecs);
    buf_release(&r->payload);
    buf_release(&r->stored);
    buf_release(&r->plain);
    buf_release(&r->values);
    segment_release(&r->seg);
    nameset_release(&r->prov_ids);
    cJSON_Delete(r->meta);
    cJSON_Delete(r->scratch);
    cJSON_Delete(r->prov);
    totals_release(&r->totals);
    checksum_free(r->hash);
    input_close(&r->in);
    mem_free(r->name);
    mem_free(r);
}
