/* Checks the order of records within a segment, and keeps the counts for its index and end record. */
#include "lib/stream/segment_internal.h"

#include <inttypes.h>

/* ---- names ------------------------------------------------------------------------------------------------------- */

static size_t nameset_slot(const struct nameset *s, struct digest d) {
    size_t i = (size_t)d.lo & (s->cap - 1);
    while ((s->slots[i].lo || s->slots[i].hi) && !digest_equal(s->slots[i], d)) i = (i + 1) & (s->cap - 1);
    return i;
}

static int nameset_grow(struct nameset *s, struct err *e) {
    struct nameset bigger = {.cap = s->cap ? 2 * s->cap : 64, .n = s->n};
    bigger.slots = mem_array(bigger.cap, sizeof *bigger.slots, e);
    if (!bigger.slots) return e->code;
    for (size_t i = 0; i < s->cap; i++)
        if (s->slots[i].lo || s->slots[i].hi) bigger.slots[nameset_slot(&bigger, s->slots[i])] = s->slots[i];
    mem_free(s->slots);
    *s = bigger;
    return 0;
}

int nameset_add(struct nameset *s, const void *key, size_t n, bool *fresh, struct err *e) {
    struct digest d = digest_bytes(key, n);
    if (!d.lo && !d.hi) d.lo = 1; /* zero marks a free slot */
    if (2 * s->n >= s->cap && nameset_grow(s, e)) return e->code;
    size_t i = nameset_slot(s, d);
    *fresh = !s->slots[i].lo && !s->slots[i].hi;
    s->n += *fresh;
    s->slots[i] = d;
    return 0;
}

void nameset_clear(struct nameset *s) {
    if (s->n) memset(s->slots, 0, s->cap * sizeof *s->slots);
    s->n = 0;
}

void nameset_release(struct nameset *s) {
    mem_free(s->slots);
    *s = (struct nameset){0};
}

/* ---- the index: complete except for batches, whose number is not bounded ---- */

static int index_add(struct buf *to, uint32_t tag, uint64_t number, uint64_t offset, uint64_t key, struct err *e) {
    unsigned char p[WIRE_ENTRY_BYTES];
    wire_entry_encode(p, &(struct wire_entry){tag, number, offset, key});
    return buf_append(to, p, sizeof p, e);
}

/* Keeps every stride-th batch. When LIMIT_STRIDED are kept, drops every other one and doubles the stride. */
static int index_add_batch(struct segment *s, struct err *e) {
    if (s->batches % s->stride) return 0;
    if (s->strided.len == LIMIT_STRIDED * WIRE_ENTRY_BYTES) {
        for (size_t i = 0; i < LIMIT_STRIDED / 2; i++)
            memcpy(s->strided.data + i * WIRE_ENTRY_BYTES, s->strided.data + 2 * i * WIRE_ENTRY_BYTES,
                   WIRE_ENTRY_BYTES);
        s->strided.len /= 2;
        s->stride *= 2; /* LIMIT_STRIDED is even, so this batch's number is also a multiple of the new stride */
    }
    return index_add(&s->strided, TAG_BTCH, s->batches, s->bytes, s->batch.first_seq, e);
}

int segment_index_build(const struct segment *s, struct buf *out, struct err *e) {
    if (s->index.len && buf_append(out, s->index.data, s->index.len, e)) return e->code;
    return s->strided.len ? buf_append(out, s->strided.data, s->strided.len, e) : 0;
}

/* ---- begin and release ---- */

static void digest_hash(struct digest_state *d, uint64_t hash) {
    unsigned char p[8];
    wire_u64_encode(p, hash);
    digest_update(d, p, sizeof p);
}

int segment_begin(struct segment *s, const struct wire_head *head, struct err *e) {
    struct segment next = {.names = s->names,
                           .batch_names = s->batch_names,
                           .index = s->index,
                           .strided = s->strided,
                           .stride = 1,
                           .bytes = WIRE_HEAD_BYTES};
    nameset_clear(&next.names);
    nameset_clear(&next.batch_names);
    next.index.len = next.strided.len = 0;
    digest_free(s->digest);
    digest_free(s->content);
    s->digest = s->content = NULL;
    next.digest = digest_new(e);
    next.content = next.digest ? digest_new(e) : NULL;
    if (!next.content) {
        digest_free(next.digest);
        return e->code;
    }
    digest_hash(next.digest, head->hash);
    *s = next;
    return 0;
}

void segment_release(struct segment *s) {
    digest_free(s->digest);
    digest_free(s->content);
    nameset_release(&s->names);
    nameset_release(&s->batch_names);
    buf_release(&s->index);
    buf_release(&s->strided);
    *s = (struct segment){0};
}

void segment_resume(struct segment *s) {
    s->tensor_open = s->has_index = false;
    s->batch_left = 0;
    s->batches = s->positions = s->strided.len = 0; /* the next batch may start at any position */
    s->stride = 1;
}

/* ---- order ------------------------------------------------------------------------------------------------------- */

static bool kind_has_batches(enum stream_kind k) {
    return k == STREAM_TOKENS || k == STREAM_KNOWLEDGE;
}

/* Rules for every record except META and DATA. */
static int between_tensors(const struct segment *s, const char *what, struct err *e) {
    if (!s->kind) return err_set(e, ERR_DATA, "%s before the META record", what);
    if (s->has_index) return err_set(e, ERR_DATA, "%s after the index, only the end record may follow it", what);
    if (s->tensor_open)
        return err_set(e, ERR_DATA, "%s inside tensor '%s', which has %" PRIu64 " of %" PRIu64 " bytes", what,
                       s->desc.name, s->data_at, s->tensor_bytes);
    return 0;
}

static int between_batches(const struct segment *s, const char *what, struct err *e) {
    if (between_tensors(s, what, e)) return e->code;
    if (s->batch_left)
        return err_set(e, ERR_DATA, "%s inside batch %" PRIu64 ", %u tensors of which are missing", what,
                       s->batches - 1, s->batch_left);
    return 0;
}

int segment_meta(struct segment *s, enum stream_kind kind, struct err *e) {
    if (s->kind) return err_set(e, ERR_DATA, "second META record in a segment");
    if (s->records) return err_set(e, ERR_DATA, "META record is not the first");
    s->kind = kind;
    return 0;
}

int segment_prov(struct segment *s, struct err *e) {
    if (between_batches(s, "provenance", e)) return e->code;
    if (s->provs >= LIMIT_PROVS)
        return err_set(e, ERR_DATA, "more than %" PRIu64 " provenance records in a segment", LIMIT_PROVS);
    if (index_add(&s->index, TAG_PROV, s->provs, s->bytes, 0, e)) return e->code;
    s->provs++;
    return 0;
}

int segment_vocab(struct segment *s, struct err *e) {
    if (between_batches(s, "vocabulary", e)) return e->code;
    if (s->has_vocab) return err_set(e, ERR_DATA, "second vocabulary in a segment");
    if (index_add(&s->index, TAG_VOCB, 0, s->bytes, 0, e)) return e->code;
    s->has_vocab = true;
    return 0;
}

/* Checks that the batch continues the previous one. The position within its last sequence is known only if that batch
 * had a single sequence. */
static int batch_follows(const struct segment *s, const struct stream_batch *b, struct err *e) {
    if (s->batches == 0) return 0; /* a shard may start anywhere */
    const struct stream_batch *a = &s->batch;
    bool goes_on = a->flags & BATCH_CONTINUES;
    uint64_t seq = a->first_seq + a->n_seqs - goes_on;
    if (b->first_seq != seq)
        return err_set(e, ERR_DATA, "batch begins with sequence %" PRIu64 ", expected %" PRIu64, b->first_seq, seq);
    if (goes_on && a->n_seqs == 1 ? b->first_pos != a->first_pos + a->n_positions : goes_on != (b->first_pos > 0))
        return err_set(e, ERR_DATA,
                       "batch begins at position %" PRIu64 " of sequence %" PRIu64 ", which is not where the "
                       "batch before ended",
                       b->first_pos, b->first_seq);
    return 0;
}

int segment_batch(struct segment *s, const struct stream_batch *b, struct err *e) {
    uint64_t end;
    if (between_batches(s, "batch", e)) return e->code;
    if (!kind_has_batches(s->kind)) return err_set(e, ERR_DATA, "batch in a %s stream", stream_kind_name(s->kind));
    if (b->flags & ~BATCH_CONTINUES) return err_set(e, ERR_DATA, "batch with unknown flags 0x%x", b->flags);
    if (b->n_tensors > BATCH_MAX_TENSORS)
        return err_set(e, ERR_DATA, "batch of %u tensors, at most %d", b->n_tensors, BATCH_MAX_TENSORS);
    if (b->n_seqs == 0 || b->n_positions < b->n_seqs)
        return err_set(e, ERR_DATA,
                       "batch of %u sequences and %" PRIu64 " positions: at least one sequence, and one "
                       "position in each",
                       b->n_seqs, b->n_positions);
    if (!u64_add(b->first_seq, b->n_seqs, &end) || !u64_add(b->first_pos, b->n_positions, &end) ||
        !u64_add(s->positions, b->n_positions, &end))
        return err_set(e, ERR_DATA, "batch: sequence or position numbers overflow");
    if (batch_follows(s, b, e)) return e->code;
    s->batch = *b;
    if (index_add_batch(s, e)) return e->code;
    s->batch_left = b->n_tensors;
    s->batches++;
    s->positions += b->n_positions;
    nameset_clear(&s->batch_names);
    return 0;
}

int segment_tensor(struct segment *s, const struct tensor_desc *d, struct err *e) {
    uint64_t n_elems, n_bytes;
    bool fresh, in_batch = s->batch_left > 0;
    if (between_tensors(s, "tensor", e)) return e->code;
    if (tensor_desc_check(d, &n_elems, &n_bytes, e)) return err_prefix(e, "tensor '%s'", d->name);
    if (!in_batch && kind_has_batches(s->kind))
        return err_set(e, ERR_DATA, "tensor '%s' outside a batch, in a %s stream", d->name, stream_kind_name(s->kind));
    if (!in_batch && s->numbered >= LIMIT_TENSORS)
        return err_set(e, ERR_DATA, "more than %" PRIu64 " tensors in a segment", LIMIT_TENSORS);
    if (nameset_add(in_batch ? &s->batch_names : &s->names, d->name, strlen(d->name), &fresh, e)) return e->code;
    if (!fresh)
        return err_set(e, ERR_DATA, "tensor '%s' occurs twice in one %s", d->name, in_batch ? "batch" : "segment");
    if (!u64_add(s->raw_bytes, n_bytes, &(uint64_t){0})) return err_set(e, ERR_DATA, "tensor sizes overflow");
    if (in_batch) {
        s->number = s->batch.n_tensors - s->batch_left;
        s->batch_left--;
    } else {
        if (index_add(&s->index, TAG_TENS, s->numbered, s->bytes, wire_hash(d->name, strlen(d->name)), e))
            return e->code;
        s->number = (uint32_t)s->numbered++;
    }
    s->desc = *d;
    s->tensor_open = true;
    s->tensor_bytes = n_bytes;
    s->data_at = 0;
    s->tensors++;
    s->raw_bytes += n_bytes;
    return 0;
}

int segment_data(struct segment *s, const struct wire_record *r, struct err *e) {
    if (!s->tensor_open) return err_set(e, ERR_DATA, "data without a tensor");
    const char *name = s->desc.name;
    uint64_t left = s->tensor_bytes - s->data_at;
    bool last = r->flags & WIRE_LAST_CHUNK;
    if (r->tensor != s->number)
        return err_set(e, ERR_DATA, "data of tensor %u inside tensor %u ('%s')", r->tensor, s->number, name);
    if (r->raw_offset != s->data_at)
        return err_set(e, ERR_DATA, "tensor '%s': data for byte %" PRIu64 ", expected byte %" PRIu64, name,
                       r->raw_offset, s->data_at);
    if (r->raw > left || (r->raw == 0 && s->tensor_bytes))
        return err_set(e, ERR_DATA, "tensor '%s': chunk of %" PRIu64 " bytes, %" PRIu64 " bytes are missing", name,
                       r->raw, left);
    if (last != (r->raw == left))
        return err_set(e, ERR_DATA, "tensor '%s': %s", name,
                       last ? "the last chunk does not complete it"
                            : "complete, but the chunk is not marked as the last");
    if (r->codec == CODEC_RAW ? r->stored != r->raw : r->stored >= r->raw || r->raw > LIMIT_CHUNK)
        return err_set(e, ERR_DATA, "tensor '%s': chunk of %" PRIu64 " bytes stored as %" PRIu64 " with codec %s", name,
                       r->raw, r->stored, stream_codec_name((enum stream_codec)r->codec));
    s->data_at += r->raw;
    s->tensor_open = !last;
    return 0;
}

int segment_other(struct segment *s, struct err *e) {
    return between_batches(s, "optional record", e);
}

int segment_index(struct segment *s, struct err *e) {
    if (between_batches(s, "index", e)) return e->code;
    s->has_index = true;
    return 0;
}

int segment_ends(struct segment *s, struct err *e) {
    bool had = s->has_index;
    s->has_index = false;
    int code = between_batches(s, "end record", e);
    s->has_index = had;
    if (code) return code;
    if (s->batches && s->batch.flags & BATCH_CONTINUES)
        return err_set(e, ERR_DATA, "the segment ends, but its last sequence continues in a batch that is missing");
    return 0;
}

void segment_count(struct segment *s, const struct wire_record *r) {
    s->records++;
    s->bytes += WIRE_RECORD_BYTES + r->stored + wire_padding(r->stored);
    if (r->tag != TAG_ENDS) digest_hash(s->digest, r->hash);
    if (!wire_is_content(r->tag)) return;
    unsigned char p[WIRE_CONTENT_BYTES];
    wire_record_content(p, r);
    digest_update(s->content, p, sizeof p);
}

void segment_summary(const struct segment *s, uint64_t index_offset, struct wire_ends *out) {
    *out = (struct wire_ends){
        .digest = digest_get(s->digest),
        .segment_bytes = s->bytes + WIRE_RECORD_BYTES + WIRE_ENDS_BYTES,
        .index_offset = index_offset,
        .records = s->records + 1,
        .tensors = s->tensors,
        .batches = s->batches,
        .positions = s->positions,
        .raw_bytes = s->raw_bytes,
    };
}

/* ---- totals ------------------------------------------------------------------------------------------------------ */

int totals_init(struct totals *t, struct err *e) {
    *t = (struct totals){.digests = digest_new(e)};
    return t->digests ? 0 : e->code;
}

void totals_release(struct totals *t) {
    digest_free(t->digests);
    t->digests = NULL;
}

void totals_add(struct totals *t, const struct segment *s) {
    struct stream_totals *sum = &t->sum;
    struct digest digest = digest_get(s->content);
    unsigned char p[16];
    wire_u64_encode(p, digest.lo);
    wire_u64_encode(p + 8, digest.hi);
    digest_update(t->digests, p, sizeof p);
    sum->bytes += s->bytes;
    sum->raw_bytes += s->raw_bytes;
    sum->records += s->records;
    sum->tensors += s->tensors;
    sum->batches += s->batches;
    sum->positions += s->positions;
    sum->segments++;
    sum->digest = sum->segments == 1 ? digest : digest_get(t->digests);
}
