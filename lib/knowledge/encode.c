/*
 * Encodes a teacher's output into batches of knowledge, in three steps: `begin` announces positions, a codec appends
 * entries for a range of rows, and the cutter adds tokens and fields of these rows and closes the batch.
 */
#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/knowledge/knowledge_internal.h"

#define BATCH_BYTES     (16u << 20)
#define BATCH_POSITIONS 4096
#define BATCH_OVERDUE   16 /* times that many positions: longer sequences are cut */
#define DENSE_BLOCK     64 /* rows converted to f32 at a time */

/* ---- where batches are cut --------------------------------------------------------------------------------------- */

/* Returns the bytes per position in all fields and a sparse response. */
static double position_bytes(const struct knowledge_format *f) {
    double bytes = knowledge_typical_bytes(f);
    if (f->encoding == KNOW_TOPP) return bytes + 6.0 * KNOWLEDGE_TYPICAL_LENGTH;
    return knowledge_is_sparse(f) ? bytes + 6.0 * f->n : bytes; /* an entry is at most a u32 and an f16 */
}

static void set_limits(struct knowledge_encoder *k) {
    const struct knowledge_format *f = &k->format;
    double row = position_bytes(f);
    if (f->encoding == KNOW_DENSE && f->target != TARGET_SEQUENCE) {
        row += (double)dtype_row_bytes(f->dtype, knowledge_stored_columns(f));
        for (k->limit = 1; k->limit < BATCH_POSITIONS && 2 * (double)k->limit * row <= BATCH_BYTES;) k->limit *= 2;
        k->target = k->limit;
        return;
    }
    double fit = row > 0 ? BATCH_BYTES / row : BATCH_POSITIONS;
    k->target = fit < 1 ? 1 : fit < BATCH_POSITIONS ? (size_t)fit : BATCH_POSITIONS;
    k->limit = k->target * BATCH_OVERDUE;
}

/* Does sequence in_seq end in this announcement? */
static bool ends_here(const struct knowledge_encoder *k, size_t in_seq) {
    return in_seq + 1 < k->in.n_seqs || !(k->in.flags & BATCH_CONTINUES);
}

/* Returns the number of positions up to where the batch must be closed, or up to the last one announced. */
static size_t run_length(const struct knowledge_encoder *k) {
    uint64_t n = 0, collected = k->head.n_positions;
    for (size_t i = k->in_seq; i < k->in.n_seqs; i++) {
        n += i == k->in_seq ? k->seq_left : knowledge_in_lengths(k)[i];
        if (collected + n >= k->limit) return k->limit - collected;
        if (collected + n >= k->target && ends_here(k, i)) break;
    }
    return n;
}

/* ---- the batch --------------------------------------------------------------------------------------------------- */

static int put_field(struct knowledge_encoder *k, uint32_t i, struct err *e) {
    const struct knowledge_field *field = &k->format.fields[i];
    struct knowledge_part *part = &k->fields[i];
    char name[KNOWLEDGE_FIELD_NAME + 16];
    uint64_t cols = field->per == PER_PAIR ? 0 : field->cols;
    uint64_t rows = cols ? part->values.len / knowledge_vector_bytes(field->dtype, cols) : 0;
    snprintf(name, sizeof name, "teacher.%s", field->name);
    if (knowledge_put_tensor(k, name, field->dtype, rows, cols, &part->values, e)) return e->code;
    snprintf(name, sizeof name, "teacher.%s.scale", field->name);
    if (field->dtype == DT_I8 && knowledge_put_tensor(k, name, DT_F32, 0, 0, &part->scales, e)) return e->code;
    part->values.len = part->scales.len = 0;
    return 0;
}

static int put_plain(struct knowledge_encoder *k, const char *name, enum dtype dtype, const struct buf *b,
                     struct err *e) {
    return batch_write_vector(k->w, name, dtype, b->data, b->len / dtype_row_bytes(dtype, 1), e);
}

/* Optional tensors of a batch, written only if they differ from the default. */
struct extras {
    bool masked, typed, some; /* some: not all positions count */
};

static unsigned count_tensors(const struct knowledge_encoder *k, const struct extras *x) {
    const struct knowledge_format *f = &k->format;
    unsigned n = 2 + x->masked + x->typed + x->some + (f->target != TARGET_NEXT) + (f->tap_positions != 0);
    for (uint32_t i = 0; i < f->n_fields; i++) n += f->fields[i].dtype == DT_I8 ? 2 : 1;
    return n + (k->codec ? k->codec->n_tensors : 0);
}

static int put_tensors(struct knowledge_encoder *k, const struct extras *x, struct err *e) {
    const struct knowledge_format *f = &k->format;
    if (batch_write(k->w, &k->head, (const uint32_t *)k->tokens.data, (const uint32_t *)k->lengths.data, e) ||
        (x->masked && batch_write_mask(k->w, &k->head, k->mask.data, e)) ||
        (f->target != TARGET_NEXT && put_plain(k, BATCH_LABELS, DT_U32, &k->labels, e)) ||
        (x->typed && put_plain(k, BATCH_TYPES, DT_U8, &k->types, e)) ||
        (x->some && knowledge_put_tensor(k, KNOWLEDGE_COUNTED, DT_U8, 0, 0, &k->counted, e)) ||
        (k->codec && k->codec->write(k, k->rows, e)) ||
        (f->tap_positions && knowledge_put_tensor(k, "teacher.positions", DT_U32, 0, 0, &k->positions, e)))
        return e->code;
    for (uint32_t i = 0; i < f->n_fields; i++)
        if (put_field(k, i, e)) return e->code;
    return 0;
}

/* Writes the batch. `open`: its last sequence continues in the next one. */
static int write_batch(struct knowledge_encoder *k, bool open, struct err *e) {
    if (!k->head.n_positions) return 0;
    struct extras x = {.masked = memchr(k->mask.data, 0, k->mask.len) != NULL, /* a missing mask means all 1 */
                       .some = knowledge_may_count(&k->format) && memchr(k->counted.data, 0, k->counted.len) != NULL};
    for (size_t i = 0; i < k->types.len; i++) x.typed |= k->types.data[i] != 0; /* missing types mean all 0 */
    k->head.n_seqs = (uint32_t)(k->lengths.len / sizeof(uint32_t));
    k->head.n_tensors = count_tensors(k, &x);
    k->head.flags = open ? BATCH_CONTINUES : 0;
    if (put_tensors(k, &x, e)) return e->code;
    k->head = (struct stream_batch){0};
    struct buf *all[] = {&k->tokens,    &k->mask,    &k->lengths,     &k->labels,      &k->types,
                         &k->positions, &k->counted, &k->response[0], &k->response[1], &k->response[2]};
    for (size_t i = 0; i < COUNT_OF(all); i++) all[i]->len = 0;
    k->rows = 0;
    return 0;
}

/* Appends the next n bytes of `from` that were not taken before. */
static int take_bytes(struct buf *to, const struct buf *from, struct buf *done, size_t n, struct err *e) {
    assert(n <= from->len - done->len);
    if (buf_append(to, from->data + done->len, n, e)) return e->code;
    done->len += n;
    return 0;
}

static int take_field(struct knowledge_encoder *k, uint32_t i, uint64_t values, uint64_t vectors, struct err *e) {
    enum dtype dtype = k->format.fields[i].dtype;
    struct knowledge_part *to = &k->fields[i], *from = &k->waiting[i], *done = &k->taken[i];
    if (take_bytes(&to->values, &from->values, &done->values, knowledge_vector_bytes(dtype, values), e)) return e->code;
    size_t scale = knowledge_scale_bytes(dtype);
    return scale ? take_bytes(&to->scales, &from->scales, &done->scales, vectors * scale, e) : 0;
}

/* Takes the rows of fields for n positions, and for the sequence if it ends with them. */
static int take_fields(struct knowledge_encoder *k, size_t n, bool ends, struct err *e) {
    const struct knowledge_format *f = &k->format;
    const uint8_t *sampled = f->tap_positions ? k->in_sampled.data + k->done : NULL;
    const uint8_t *counted = k->in_counted.data + k->done;
    const struct knowledge_field *pair = knowledge_pair_field(f);
    uint64_t chosen = 0, count = 0;
    for (size_t i = 0; i < n; i++) count += counted[i] != 0;
    for (size_t i = 0; sampled && i < n; i++) {
        uint32_t at = (uint32_t)(k->head.n_positions + i);
        if (sampled[i] && buf_append(&k->positions, &at, sizeof at, e)) return e->code;
        chosen += sampled[i] != 0;
    }
    k->pair_lengths.len = 0;
    if (pair && (knowledge_pairs_step(&k->pairs, n,
                                      pair->sampled   ? sampled
                                      : pair->counted ? counted
                                                      : NULL,
                                      e) ||
                 (ends && knowledge_pairs_end(&k->pairs, f, &k->pair_lengths, e))))
        return e->code;
    const uint32_t *lengths = (const uint32_t *)k->pair_lengths.data;
    uint64_t rows = k->pair_lengths.len / sizeof *lengths;
    for (uint32_t i = 0; i < f->n_fields; i++) {
        const struct knowledge_field *field = &f->fields[i];
        uint64_t r = field->sampled ? chosen : field->counted ? count : n;
        if (field->per != PER_POSITION) r = field->per == PER_PAIR ? rows : ends;
        uint64_t values = knowledge_field_values(field, lengths, 0, r);
        if (take_field(k, i, values, r * field->codec->vectors(field), e)) return e->code;
    }
    return 0;
}

static int take_types(struct knowledge_encoder *k, size_t n, struct err *e) {
    const uint32_t *from = (const uint32_t *)k->in_types.data + k->done;
    uint8_t *to = knowledge_extend(&k->types, n, e);
    if (!to) return e->code;
    for (size_t i = 0; i < n; i++) to[i] = (uint8_t)from[i];
    return 0;
}

static int take_labels(struct knowledge_encoder *k, size_t n, bool ends, struct err *e) {
    const uint32_t *labels = (const uint32_t *)k->in_labels.data;
    if (buf_append(&k->mask, k->in_mask.data + k->done, n, e) || take_types(k, n, e) ||
        buf_append(&k->counted, k->in_counted.data + k->done, n, e))
        return e->code;
    if (k->format.target == TARGET_MASKED || k->format.target == TARGET_TOKEN)
        return buf_append(&k->labels, labels + k->done, n * sizeof *labels, e);
    if (k->format.target == TARGET_SEQUENCE && ends)
        return buf_append(&k->labels, labels + k->in_seq, sizeof *labels, e);
    return 0;
}

/* Moves the next `n` positions, all of one sequence, into the current batch. */
static int take_positions(struct knowledge_encoder *k, size_t n, struct err *e) {
    const uint32_t *tokens = (const uint32_t *)k->in_tokens.data + k->done;
    uint32_t length = (uint32_t)n;
    bool goes_on = k->head.n_positions && k->pos > 0; /* the batch already holds the previous position */
    bool ends = n == k->seq_left && ends_here(k, k->in_seq);
    if (!k->head.n_positions) k->head.first_seq = k->seq, k->head.first_pos = k->pos;
    if (buf_append(&k->tokens, tokens, n * sizeof *tokens, e) || take_labels(k, n, ends, e) ||
        take_fields(k, n, ends, e))
        return e->code;
    if (goes_on)
        ((uint32_t *)k->lengths.data)[k->lengths.len / sizeof length - 1] += length;
    else if (buf_append(&k->lengths, &length, sizeof length, e))
        return e->code;
    k->head.n_positions += n;
    k->counts.positions += n;
    k->done += n;
    k->pos += n;
    k->seq_left -= n;
    return 0;
}

/* Adds the tokens of n positions whose rows are in the batch already, and closes the batch when it is full. */
static int finish_run(struct knowledge_encoder *k, size_t n, struct err *e) {
    while (n) {
        size_t take = k->seq_left < n ? k->seq_left : n;
        if (take_positions(k, take, e)) return e->code;
        n -= take;
        if (k->seq_left) break;
        if (ends_here(k, k->in_seq)) k->pos = 0, k->seq++;
        if (++k->in_seq < k->in.n_seqs) k->seq_left = knowledge_in_lengths(k)[k->in_seq];
    }
    bool full = k->head.n_positions >= k->limit || (k->head.n_positions >= k->target && k->pos == 0);
    return full ? write_batch(k, k->pos > 0, e) : 0;
}

/* Takes all but the last `keep` positions that the current sequence has left in this announcement. */
static int take_rest(struct knowledge_encoder *k, size_t keep, struct err *e) {
    for (uint64_t n = k->seq_left - keep; n;) {
        uint64_t room = k->limit - k->head.n_positions, take = n < room ? n : room;
        if (finish_run(k, take, e)) return e->code;
        n -= take;
    }
    return 0;
}

/* ---- rows of the response --------------------------------------------------------------------------------------- */

/* Rows of the response in one of these forms: logits, stored dense rows, entries, or none. */
struct rows {
    struct logits x;
    const unsigned char *stored; /* dense rows, copied unchanged */
    float inv_temperature;
    const uint64_t *offset;
    const uint32_t *ids;
    const float *values;
};

/* Records the offsets of the counted ones among the next n positions, if not all are counted. */
static int place_rows(struct knowledge_encoder *k, size_t n, struct err *e) {
    k->row_at.len = 0;
    for (uint64_t i = 0; k->some && i < n; i++)
        if (k->in_counted.data[k->done + i] && buf_append(&k->row_at, &i, sizeof i, e)) return e->code;
    return 0;
}

/* Encodes the next n rows, which belong to the next `positions` positions. */
static int encode_run(struct knowledge_encoder *k, struct rows *r, size_t n, size_t positions, struct err *e) {
    int rc = place_rows(k, positions, e);
    if (rc) return rc;
    if (r->stored) {
        size_t bytes = n * dtype_row_bytes(k->format.dtype, knowledge_stored_columns(&k->format));
        rc = buf_append(&k->response[0], r->stored, bytes, e);
        r->stored += bytes;
    }
    if (r->x.data && n) {
        rc = k->codec->encode(k, n, r->x, r->inv_temperature, e);
        r->x.data += n * dtype_row_bytes(r->x.type, knowledge_stored_columns(&k->format));
    }
    for (size_t i = 0; !rc && r->offset && i < n; i++)
        rc = k->codec->entries(k, r->offset[i + 1] - r->offset[i], r->ids + r->offset[i], r->values + r->offset[i], e);
    if (r->offset) r->offset += n;
    k->rows += n;
    k->drawn += positions;
    k->row_at.len = 0;
    return rc;
}

/* Takes the positions that are left of the announcement, none of which is counted. */
static int take_uncounted(struct knowledge_encoder *k, struct err *e) {
    struct rows none = {0};
    while (k->done < k->in.n_positions) {
        size_t n = run_length(k);
        assert(k->some && !memchr(k->in_counted.data + k->done, 1, n)); /* all counted rows have come */
        if (encode_run(k, &none, 0, n, e) || finish_run(k, n, e)) return e->code;
    }
    return 0;
}

/* ---- the interface ----------------------------------------------------------------------------------------------- */

int knowledge_encoder_new(struct knowledge_encoder **out, struct stream_writer *w, const struct knowledge_format *f,
                          uint64_t seed, struct err *e) {
    uint32_t columns = knowledge_stored_columns(f);
    if (f->encoding && (!columns || columns > KNOWLEDGE_MAX_VOCAB))
        return err_set(e, ERR_DATA, "knowledge needs to know the columns of the teacher's logits");
    if (!f->encoding && !f->n_fields) return err_set(e, ERR_USAGE, "knowledge without a response and without fields");
    if (knowledge_is_top(f) && f->encoding != KNOW_TOPP && f->n > columns)
        return err_set(e, ERR_USAGE, "%u entries of a vocabulary of %u tokens", f->n, columns);
    struct knowledge_encoder *k = mem_zalloc(sizeof *k, e);
    if (!k) return e->code;
    k->format = *f;
    k->codec = knowledge_response_codec(f->encoding);
    k->w = w;
    k->seed = seed;
    set_limits(k);
    *out = k;
    return 0;
}

int knowledge_encoder_open(struct knowledge_encoder **out, struct stream_writer *w, const cJSON *meta,
                           const struct knowledge_format *f, uint64_t seed, struct err *e) {
    cJSON *ours = meta ? cJSON_Duplicate(meta, true) : cJSON_CreateObject();
    int rc = ours ? knowledge_meta_put(ours, f, e) : err_nomem(e, "META");
    if (!rc) rc = stream_write_meta(w, ours, e);
    cJSON_Delete(ours);
    return rc ? rc : knowledge_encoder_new(out, w, f, seed, e);
}

/* Copies n bytes; if `from` is NULL, fills them with `byte`. */
static int copy_in(struct buf *b, const void *from, int byte, size_t n, struct err *e) {
    b->len = 0;
    if (buf_reserve(b, n, e)) return e->code;
    if (from)
        memcpy(b->data, from, n);
    else
        memset(b->data, byte, n);
    b->len = n;
    return 0;
}

/* Discards the rows of a field that were taken. PER_PAIR rows of an open sequence may remain. */
static void forget_taken(struct buf *from, struct buf *done) {
    if (done->len) memmove(from->data, from->data + done->len, from->len - done->len);
    from->len -= done->len;
    done->len = 0;
}

int knowledge_encoder_begin(struct knowledge_encoder *k, const struct knowledge_input *in, struct err *e) {
    const struct stream_batch *head = &in->head;
    size_t n = head->n_positions;
    if (!n) return 0;
    if (take_uncounted(k, e)) return e->code;
    if (knowledge_cursor_step(&k->cursor, head, in->lengths, e)) return e->code;
    if (!k->counts.positions) k->seq = head->first_seq;
    size_t labels = k->format.target == TARGET_SEQUENCE ? knowledge_ended(head) : n;
    if (copy_in(&k->in_tokens, in->tokens, 0, n * sizeof *in->tokens, e) || copy_in(&k->in_mask, in->mask, 1, n, e) ||
        copy_in(&k->in_lengths, in->lengths, 0, head->n_seqs * sizeof *in->lengths, e) ||
        copy_in(&k->in_types, in->types, 0, n * sizeof *in->types, e) ||
        copy_in(&k->in_counted, in->counted, 1, n, e) ||
        (k->format.target != TARGET_NEXT && copy_in(&k->in_labels, in->labels, 0xFF, labels * sizeof *in->labels, e)) ||
        (k->format.tap_positions && copy_in(&k->in_sampled, in->sampled, 1, n, e)))
        return e->code;
    for (uint32_t i = 0; i < k->format.n_fields; i++) {
        forget_taken(&k->waiting[i].values, &k->taken[i].values);
        forget_taken(&k->waiting[i].scales, &k->taken[i].scales);
    }
    k->in = *head;
    k->some = k->codec && k->format.target != TARGET_SEQUENCE && memchr(k->in_counted.data, 0, n) != NULL;
    k->done = k->in_seq = 0;
    k->seq_left = in->lengths[0];
    k->pos = head->first_pos;
    return 0;
}

int knowledge_encoder_field(struct knowledge_encoder *k, size_t i, const struct knowledge_part *part, struct err *e) {
    struct knowledge_part *to = &k->waiting[i];
    if (buf_append(&to->values, part->values.data, part->values.len, e)) return e->code;
    return buf_append(&to->scales, part->scales.data, part->scales.len, e);
}

/* The row of a sequence belongs to the batch in which the sequence ends. */
static int encode_sequences(struct knowledge_encoder *k, size_t rows, struct rows *r, struct err *e) {
    for (; rows; rows--)
        if (take_rest(k, 1, e) || encode_run(k, r, 1, 1, e) || take_rest(k, 0, e)) return e->code;
    bool open = k->in_seq + 1 == k->in.n_seqs && (k->in.flags & BATCH_CONTINUES);
    return open && k->seq_left ? take_rest(k, 0, e) : 0; /* an open sequence has no row yet */
}

/* Returns how many of the next *n positions are counted, after cutting *n after the position of the last of `rows`
 * rows. */
static size_t rows_of(const struct knowledge_encoder *k, size_t *n, size_t rows) {
    size_t count = 0;
    if (!k->some) return *n < rows ? *n : (*n = rows);
    for (size_t i = 0; i < *n; i++) {
        count += k->in_counted.data[k->done + i] != 0;
        if (count == rows) *n = i + 1;
    }
    return count;
}

static int encode_rows(struct knowledge_encoder *k, size_t rows, struct rows r, struct err *e) {
    if (k->format.target == TARGET_SEQUENCE) return encode_sequences(k, rows, &r, e);
    while (rows) {
        size_t n = run_length(k), count = rows_of(k, &n, rows);
        assert(n);
        if (encode_run(k, &r, count, n, e) || finish_run(k, n, e)) return e->code;
        rows -= count;
    }
    return 0;
}

int knowledge_encoder_rows(struct knowledge_encoder *k, size_t rows, const float *x, double inv_temperature,
                           struct err *e) {
    struct rows r = {.x = {DT_F32, (const unsigned char *)x}, .inv_temperature = (float)inv_temperature};
    return encode_rows(k, rows, r, e);
}

int knowledge_encoder_entries(struct knowledge_encoder *k, size_t rows, const uint64_t *offset, const uint32_t *ids,
                              const float *values, struct err *e) {
    uint64_t zero = 0;
    size_t count = 0;
    assert(knowledge_is_sparse(&k->format));
    k->offsets.len = 0;
    if (k->some && buf_append(&k->offsets, &zero, sizeof zero, e)) return e->code;
    for (size_t i = 0; k->some && i < rows; i++) {
        if (!k->in_counted.data[k->done + i]) continue;
        if (buf_append(&k->offsets, &offset[i + 1], sizeof *offset, e)) return e->code;
        count++;
    }
    if (k->some) rows = count, offset = (const uint64_t *)(const void *)k->offsets.data;
    return encode_rows(k, rows, (struct rows){.offset = offset, .ids = ids, .values = values}, e);
}

/* ---- batches of another stream ----------------------------------------------------------------------------------- */

/* Encodes the dense rows of a batch in place: draws can be made from any type, other encodings need blocks of f32. */
static int encode_dense_batch(struct knowledge_encoder *k, const struct knowledge_format *f, const struct batch *b,
                              struct err *e) {
    const struct knowledge_rows *d = &k->decoded;
    double inv_temperature = knowledge_inv_temperature(f, k->format.temperature);
    size_t rows = knowledge_stored_row(d, f, d->n_rows);
    if (k->codec->draws_any_type) {
        struct rows r = {.x = {f->dtype, d->dense}, .inv_temperature = (float)inv_temperature};
        int rc = encode_rows(k, rows, r, e);
        struct err found; /* names the value at fault */
        if (rc == ERR_DATA && knowledge_check_dense(f, b, &found)) *e = found;
        return rc;
    }
    if (k->format.encoding == KNOW_DENSE)
        return knowledge_check_dense(f, b, e) ? e->code : encode_rows(k, rows, (struct rows){.stored = d->dense}, e);
    if (knowledge_check_dense(f, b, e) ||
        buf_reserve(&k->block, (size_t)DENSE_BLOCK * knowledge_stored_columns(f) * sizeof(float), e))
        return e->code;
    float *block = (float *)k->block.data;
    for (size_t first = 0; first < rows; first += DENSE_BLOCK) {
        size_t n = rows - first < DENSE_BLOCK ? rows - first : DENSE_BLOCK;
        knowledge_dense_stored(d, f, first, n, block);
        if (knowledge_encoder_rows(k, n, block, inv_temperature, e)) return e->code;
    }
    return 0;
}

/* Converts the batch's rows of a field to another type. */
static int convert_field(struct knowledge_encoder *k, uint32_t to, const struct knowledge_feature *from,
                         struct err *e) {
    const struct knowledge_field *field = from->field;
    struct knowledge_part made = {0};
    uint64_t most = field->cols;
    const uint32_t *lengths = k->decoded.pair_lengths;
    bool pairs = field->per == PER_PAIR;
    for (size_t r = 0; pairs && r < from->n_rows; r++)
        if ((uint64_t)lengths[r] * field->heads > most) most = (uint64_t)lengths[r] * field->heads;
    size_t number = (size_t)(from - k->decoded.fields);
    if (buf_reserve(&k->block, most * sizeof(float), e)) return e->code;
    float *x = (float *)k->block.data;
    int rc = 0;
    for (size_t r = 0; !rc && r < from->n_rows; r++) {
        if (pairs)
            knowledge_feature_pairs(&k->decoded, number, r, 1, lengths[r], x);
        else
            knowledge_feature_rows(&k->decoded, number, r, 1, x);
        rc = knowledge_part_add(&made, &k->format.fields[to], pairs ? field->heads : 1,
                                pairs ? lengths[r] : field->cols, x, e);
    }
    if (!rc) rc = knowledge_encoder_field(k, to, &made, e);
    knowledge_part_release(&made);
    return rc;
}

/* Passes on the fields of the output, converted if their type differs. */
static int forward_fields(struct knowledge_encoder *k, struct err *e) {
    for (uint32_t i = 0; i < k->format.n_fields; i++) {
        const struct knowledge_field *field = &k->format.fields[i];
        const struct knowledge_feature *from = k->decoded.fields;
        while (strcmp(from->field->name, field->name) != 0) from++; /* exists: knowledge_check_encode has checked */
        if (from->field->dtype == field->dtype ? knowledge_encoder_field(k, i, &from->stored, e)
                                               : convert_field(k, i, from, e))
            return e->code;
    }
    return 0;
}

static int flag_sampled(struct knowledge_encoder *k, const uint8_t **flags, struct err *e) {
    const struct knowledge_rows *d = &k->decoded;
    *flags = NULL;
    if (!d->sampled) return 0;
    k->scratch[0].len = 0;
    uint8_t *flag = knowledge_extend(&k->scratch[0], d->n_positions, e);
    if (!flag) return e->code;
    for (size_t i = 0; i < d->n_positions; i++) flag[i] = d->sampled[i + 1] > d->sampled[i];
    *flags = flag;
    return 0;
}

int knowledge_encoder_batch(struct knowledge_encoder *k, const struct knowledge_format *f, const struct batch *b,
                            struct err *e) {
    const struct knowledge_rows *d = &k->decoded;
    struct knowledge_input in = {.head = b->head};
    if (!b->head.n_positions) return 0;
    if (knowledge_view(&k->decoded, f, b, e) || flag_sampled(k, &in.sampled, e)) return e->code;
    if (d->counted) in.counted = d->memory[MEM_COUNT_FLAGS].data;
    in.tokens = d->tokens;
    in.lengths = d->lengths;
    in.mask = d->mask;
    in.labels = d->labels;
    in.types = d->types;
    if (knowledge_encoder_begin(k, &in, e) || forward_fields(k, e)) return e->code;
    if (!k->codec)
        return knowledge_encoder_rows(k, f->target == TARGET_SEQUENCE ? d->n_rows : d->n_positions, NULL, 0, e);
    if (f->encoding == KNOW_DENSE) return encode_dense_batch(k, f, b, e);
    for (uint64_t i = 0; f->encoding == KNOW_SAMPLE && i < d->offset[d->n_rows]; i++)
        d->probs[i] = rintf(d->probs[i] * (float)f->n); /* back to counts */
    return knowledge_encoder_entries(k, d->n_rows, d->offset, d->ids, d->probs, e);
}

int knowledge_encoder_end(struct knowledge_encoder *k, struct err *e) {
    if (knowledge_cursor_end(&k->cursor, e) || take_uncounted(k, e)) return e->code;
    return write_batch(k, false, e);
}

struct knowledge_counts knowledge_encoder_counts(const struct knowledge_encoder *k) {
    return k->counts;
}

void knowledge_encoder_free(struct knowledge_encoder *k) {
    if (!k) return;
    struct buf *all[] = {&k->in_tokens,  &k->in_lengths, &k->in_mask,     &k->in_labels,    &k->in_types,
                         &k->in_sampled, &k->mask,       &k->tokens,      &k->lengths,      &k->labels,
                         &k->types,      &k->positions,  &k->response[0], &k->response[1],  &k->response[2],
                         &k->scratch[0], &k->scratch[1], &k->scratch[2],  &k->pair_lengths, &k->block,
                         &k->pairs.open, &k->in_counted, &k->counted,     &k->row_at,       &k->offsets};
    for (size_t i = 0; i < COUNT_OF(all); i++) buf_release(all[i]);
    for (size_t i = 0; i < KNOWLEDGE_MAX_FIELDS; i++) {
        knowledge_part_release(&k->waiting[i]);
        knowledge_part_release(&k->fields[i]);
    }
    knowledge_rows_release(&k->decoded);
    mem_free(k);
}
