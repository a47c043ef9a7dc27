/*
 * Rows of logits into batches of knowledge. Three steps that know little of each other: `begin` announces positions,
 * an encoding appends entries for a run of rows, and the cutter moves the run's tokens over and closes the batch.
 */
#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/knowledge/knowledge_internal.h"

#define BATCH_BYTES     (16u << 20)
#define BATCH_POSITIONS 4096
#define BATCH_OVERDUE   16 /* times that many positions: a sequence so long is cut */
#define DENSE_BLOCK     64 /* rows in f32 at a time */
#define DRAW_BLOCK      65536
#define F16_LOWEST      0xFBFF /* -65504 */

struct knowledge_encoder {
    struct knowledge_format format;
    struct stream_writer *w;
    uint64_t seed;
    size_t target, limit; /* positions at which a batch is closed: at a sequence's end, and anywhere */

    /* Announced by begin; rows have come for the first `done` positions. */
    struct stream_batch in;
    struct buf in_tokens, in_mask, in_lengths;
    size_t done, in_seq; /* in_seq: index of the sequence that the next row belongs to */
    uint64_t seq_left;   /* positions of it still to come in this announcement */
    uint64_t pos;        /* of the next row in its sequence */
    struct knowledge_cursor cursor;

    /* The batch being made. */
    struct stream_batch head;
    uint64_t
        seq; /* number of the next row's sequence: counted anew, for a concatenation's segments begin from 0 again */
    struct buf tokens, mask, lengths, n, ids, values;

    struct buf scratch[3];
    struct knowledge_rows decoded; /* knowledge_encoder_batch: its rows, and some of them in f32 */
    struct buf block;
    struct knowledge_counts counts;
};

/* ---- where batches are cut --------------------------------------------------------------------------------------- */

static void set_limits(struct knowledge_encoder *k) {
    const struct knowledge_format *f = &k->format;
    if (f->encoding == KNOW_DENSE) {
        uint64_t row = dtype_row_bytes(f->dtype, f->vocab_size);
        for (k->limit = 1; k->limit < BATCH_POSITIONS && 2 * k->limit * row <= BATCH_BYTES;) k->limit *= 2;
        k->target = k->limit;
        return;
    }
    k->target = BATCH_BYTES / (f->n * 6); /* an entry is at most a u32 and an f16 */
    if (k->target > BATCH_POSITIONS) k->target = BATCH_POSITIONS;
    k->limit = k->target * BATCH_OVERDUE;
}

static const uint32_t *in_lengths(const struct knowledge_encoder *k) {
    return (const uint32_t *)k->in_lengths.data;
}

/* Does the sequence end where the rows announced for it end? */
static bool ends_here(const struct knowledge_encoder *k, size_t in_seq) {
    return in_seq + 1 < k->in.n_seqs || !(k->in.flags & BATCH_CONTINUES);
}

/* Positions from here to where the batch must be closed, or to the last one announced. */
static size_t run_length(const struct knowledge_encoder *k) {
    uint64_t n = 0, collected = k->head.n_positions;
    for (size_t i = k->in_seq; i < k->in.n_seqs; i++) {
        n += i == k->in_seq ? k->seq_left : in_lengths(k)[i];
        if (collected + n >= k->limit) return k->limit - collected;
        if (collected + n >= k->target && ends_here(k, i)) break;
    }
    return n;
}

/* One of the teacher.* tensors. */
static int put_tensor(struct knowledge_encoder *k, const char *name, enum dtype dtype, const struct buf *b,
                      struct err *e) {
    struct tensor_desc d;
    uint64_t dims[2] = {b->len / dtype_row_bytes(dtype, 1)};
    unsigned rank = 1;
    if (!strcmp(name, "teacher.logits")) dims[0] = k->head.n_positions, dims[1] = k->format.vocab_size, rank = 2;
    k->counts.bytes += b->len;
    if (tensor_desc_init(&d, name, dtype, rank, dims, e)) return e->code;
    return stream_write_tensor(k->w, &d, NULL, b->data, e);
}

static int put_teacher(struct knowledge_encoder *k, struct err *e) {
    const struct knowledge_format *f = &k->format;
    if (f->encoding == KNOW_DENSE) return put_tensor(k, "teacher.logits", f->dtype, &k->values, e);
    if (put_tensor(k, "teacher.n", knowledge_count_type(f), &k->n, e)) return e->code;
    if (put_tensor(k, "teacher.ids", knowledge_id_type(f), &k->ids, e)) return e->code;
    if (knowledge_is_top(f)) return put_tensor(k, "teacher.logprobs", DT_F16, &k->values, e);
    return put_tensor(k, "teacher.counts", knowledge_count_type(f), &k->values, e);
}

/* Closes the batch; `open`: in the middle of its last sequence. */
static int write_batch(struct knowledge_encoder *k, bool open, struct err *e) {
    if (!k->head.n_positions) return 0;
    k->head.n_seqs = (uint32_t)(k->lengths.len / sizeof(uint32_t));
    bool masked = memchr(k->mask.data, 0, k->mask.len) != NULL; /* all 1 is what a batch without a mask says */
    k->head.n_tensors = (k->format.encoding == KNOW_DENSE ? 3 : 5) + masked;
    k->head.flags = open ? BATCH_CONTINUES : 0;
    const uint32_t *tokens = (const uint32_t *)k->tokens.data, *lengths = (const uint32_t *)k->lengths.data;
    if (batch_write(k->w, &k->head, tokens, lengths, e) ||
        (masked && batch_write_mask(k->w, &k->head, k->mask.data, e)) || put_teacher(k, e))
        return e->code;
    k->head = (struct stream_batch){0};
    k->tokens.len = k->mask.len = k->lengths.len = k->n.len = k->ids.len = k->values.len = 0;
    return 0;
}

/* Tokens and length of the next `n` positions, all of one sequence, into the batch being made. */
static int take_positions(struct knowledge_encoder *k, size_t n, struct err *e) {
    const uint32_t *tokens = (const uint32_t *)k->in_tokens.data + k->done;
    uint32_t length = (uint32_t)n;
    bool goes_on = k->head.n_positions && k->pos > 0; /* the batch holds the position before already */
    if (!k->head.n_positions) k->head.first_seq = k->seq, k->head.first_pos = k->pos;
    if (buf_append(&k->tokens, tokens, n * sizeof *tokens, e) || buf_append(&k->mask, k->in_mask.data + k->done, n, e))
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

/* The run's entries are in the batch: its tokens follow, and the batch is closed when it is full. */
static int finish_run(struct knowledge_encoder *k, size_t n, struct err *e) {
    while (n) {
        size_t take = k->seq_left < n ? k->seq_left : n;
        if (take_positions(k, take, e)) return e->code;
        n -= take;
        if (k->seq_left) break;
        if (ends_here(k, k->in_seq)) k->pos = 0, k->seq++;
        if (++k->in_seq < k->in.n_seqs) k->seq_left = in_lengths(k)[k->in_seq];
    }
    bool full = k->head.n_positions >= k->limit || (k->head.n_positions >= k->target && k->pos == 0);
    return full ? write_batch(k, k->pos > 0, e) : 0;
}

/* ---- encodings --------------------------------------------------------------------------------------------------- */

/* "sequence 7, position 12: " for the r-th row from the next one on. */
static int fail_at_row(const struct knowledge_encoder *k, size_t r, struct err *e, const char *what) {
    uint64_t seq = k->in_seq, pos = k->pos;
    for (uint64_t left = k->seq_left; r >= left && seq + 1 < k->in.n_seqs; left = in_lengths(k)[seq]) {
        r -= left;
        seq++;
        pos = 0;
    }
    return err_set(e, ERR_DATA, "sequence %" PRIu64 ", position %" PRIu64 ": %s", k->in.first_seq + seq, pos + r, what);
}

static int put_number(struct buf *b, enum dtype dtype, uint32_t v, struct err *e) {
    uint8_t u8 = (uint8_t)v;
    uint16_t u16 = (uint16_t)v;
    const void *from = dtype == DT_U8 ? (void *)&u8 : dtype == DT_U16 ? (void *)&u16 : (void *)&v;
    return buf_append(b, from, dtype_row_bytes(dtype, 1), e);
}

struct row_job {
    const struct knowledge_encoder *k;
    const float *x;
    unsigned char *bad;
};

static void check_row(void *ctx, size_t r, int thread) {
    const struct row_job *j = ctx;
    size_t d = j->k->format.vocab_size;
    (void)thread;
    j->bad[r] = tensor_first_nonfinite(DT_F32, j->x + r * d, d) < d;
}

static const char not_finite[] = "the teacher's output is not finite";

static int check_rows(struct knowledge_encoder *k, size_t rows, const float *x, struct err *e) {
    struct buf *flags = &k->scratch[0];
    flags->len = 0;
    if (buf_reserve(flags, rows, e)) return e->code;
    parallel_for(rows, check_row, &(struct row_job){k, x, flags->data});
    const unsigned char *bad = memchr(flags->data, 1, rows);
    return bad ? fail_at_row(k, (size_t)(bad - flags->data), e, not_finite) : 0;
}

static int encode_dense(struct knowledge_encoder *k, size_t rows, const float *x, float inv_temperature,
                        struct err *e) {
    const struct knowledge_format *f = &k->format;
    size_t bytes = rows * dtype_row_bytes(f->dtype, f->vocab_size);
    if (buf_reserve(&k->values, bytes, e)) return e->code;
    size_t bad = kernel_store_logits(f->dtype, k->values.data + k->values.len, x, rows, f->vocab_size, inv_temperature,
                                     f->log_probs);
    if (bad < rows)
        return fail_at_row(
            k, bad, e, f->dtype == DT_F16 ? "the teacher's output is not finite, or too large for f16" : not_finite);
    k->values.len += bytes;
    return 0;
}

/* The nearest f16 to a log-probability, or the nearest one below it. */
static uint16_t round_logprob(double v, bool down) {
    if (v > 0) v = 0;
    if (v < -65504) return F16_LOWEST;
    uint16_t h = f32_to_f16((float)v);
    return down && f16_to_f32(h) > v ? (h == 0 ? 0x8001 : h + 1) : h;
}

static int put_top_row(struct knowledge_encoder *k, const uint32_t *ids, double *logprobs, struct err *e) {
    const struct knowledge_format *f = &k->format;
    double sum = 0;
    for (size_t i = 0; i < f->n; i++) sum += exp(f16_to_f32(round_logprob(logprobs[i], false)));
    if (put_number(&k->n, knowledge_count_type(f), f->n, e)) return e->code;
    for (size_t i = 0; i < f->n; i++) {
        uint16_t h = round_logprob(logprobs[i], sum > 1);
        if (put_number(&k->ids, knowledge_id_type(f), ids[i], e) || buf_append(&k->values, &h, sizeof h, e))
            return e->code;
    }
    k->counts.entries += f->n;
    return 0;
}

static int put_sample_row(struct knowledge_encoder *k, size_t entries, const uint32_t *ids, const uint32_t *counts,
                          struct err *e) {
    const struct knowledge_format *f = &k->format;
    enum dtype type = knowledge_count_type(f);
    if (put_number(&k->n, type, (uint32_t)entries, e)) return e->code;
    for (size_t i = 0; i < entries; i++)
        if (put_number(&k->ids, knowledge_id_type(f), ids[i], e) || put_number(&k->values, type, counts[i], e))
            return e->code;
    k->counts.entries += entries;
    return 0;
}

/* Room for n values of each size, in scratch memory. */
static int make_room(struct knowledge_encoder *k, size_t n, const size_t sizes[3], struct err *e) {
    for (int i = 0; i < 3; i++) {
        k->scratch[i].len = 0;
        if (buf_reserve(&k->scratch[i], n * sizes[i], e)) return e->code;
    }
    return 0;
}

static int encode_top(struct knowledge_encoder *k, size_t rows, const float *x, float inv_temperature, struct err *e) {
    if (check_rows(k, rows, x, e)) return e->code;
    size_t n = k->format.n, d = k->format.vocab_size;
    size_t values_at = rows; /* one buffer: log-sum-exp of each row, then the values */
    if (make_room(k, rows * n, (size_t[]){sizeof(uint32_t), 2 * sizeof(float), sizeof(double)}, e)) return e->code;
    uint32_t *ids = (void *)k->scratch[0].data;
    float *lse = (void *)k->scratch[1].data, *values = lse + values_at;
    double *logprobs = (void *)k->scratch[2].data;
    kernel_logsumexp(lse, x, rows, d, inv_temperature);
    kernel_topk(ids, values, x, rows, d, n);
    for (size_t r = 0; r < rows; r++) {
        for (size_t i = 0; i < n; i++) logprobs[i] = (double)values[r * n + i] * inv_temperature - lse[r];
        if (put_top_row(k, ids + r * n, logprobs, e)) return e->code;
    }
    return 0;
}

/* n uniforms in [0, 1) with 53 bits for a position: a pure function of seed and position. */
static void draw_uniforms(double *u, size_t n, uint64_t seed, uint64_t position) {
    uint32_t word[4];
    for (size_t i = 0; i < n; i++) {
        if (i % 2 == 0) philox(seed, position, i / 2, word);
        uint64_t bits = word[i % 2 * 2] | (uint64_t)word[i % 2 * 2 + 1] << 32;
        u[i] = (double)(bits >> 11) * 0x1p-53;
    }
}

/* Rows of logits, in f32 or as a stream holds them. */
struct logits {
    enum dtype type;
    const unsigned char *data;
};

static struct logits rows_from(const struct knowledge_encoder *k, struct logits x, size_t first) {
    return (struct logits){x.type, x.data + first * dtype_row_bytes(x.type, k->format.vocab_size)};
}

static int encode_sample_block(struct knowledge_encoder *k, size_t first, size_t rows, struct logits x,
                               float inv_temperature, struct err *e) {
    size_t n = k->format.n;
    if (make_room(k, rows * n, (size_t[]){sizeof(uint32_t), sizeof(double), sizeof(uint32_t)}, e)) return e->code;
    uint32_t *ids = (void *)k->scratch[0].data, *counts = (void *)k->scratch[2].data;
    double *u = (void *)k->scratch[1].data;
    for (size_t r = 0; r < rows; r++) draw_uniforms(u + r * n, n, k->seed, k->counts.positions + first + r);
    size_t bad = kernel_sample(ids, u, x.type, x.data, rows, k->format.vocab_size, n, inv_temperature);
    if (bad < rows) return fail_at_row(k, first + bad, e, not_finite);
    for (size_t r = 0; r < rows; r++) {
        uint32_t *row = ids + r * n; /* ascending: equal draws are neighbours, and are counted in place */
        size_t entries = 0;
        for (size_t i = 0; i < n; i++) {
            if (entries && row[entries - 1] == row[i])
                counts[entries - 1]++;
            else
                row[entries] = row[i], counts[entries++] = 1;
        }
        if (put_sample_row(k, entries, row, counts, e)) return e->code;
    }
    return 0;
}

static int encode_sample(struct knowledge_encoder *k, size_t rows, struct logits x, float inv_temperature,
                         struct err *e) {
    size_t block = k->format.n < DRAW_BLOCK ? DRAW_BLOCK / k->format.n : 1;
    for (size_t first = 0; first < rows; first += block) {
        size_t n = rows - first < block ? rows - first : block;
        if (encode_sample_block(k, first, n, rows_from(k, x, first), inv_temperature, e)) return e->code;
    }
    return 0;
}

/* Anything but draws wants f32. */
static int encode_run(struct knowledge_encoder *k, size_t rows, struct logits x, float inv_temperature, struct err *e) {
    const float *f32 = (const float *)(const void *)x.data;
    if (k->format.encoding == KNOW_SAMPLE) return encode_sample(k, rows, x, inv_temperature, e);
    if (k->format.encoding == KNOW_DENSE) return encode_dense(k, rows, f32, inv_temperature, e);
    return encode_top(k, rows, f32, inv_temperature, e);
}

static int entries_row(struct knowledge_encoder *k, size_t n, const uint32_t *ids, const float *values, struct err *e) {
    size_t want = k->format.n;
    if (make_room(k, n > want ? n : want, (size_t[]){sizeof(uint32_t), 1, sizeof(double)}, e)) return e->code;
    if (k->format.encoding == KNOW_SAMPLE) {
        uint32_t *counts = (void *)k->scratch[0].data;
        for (size_t i = 0; i < n; i++) counts[i] = (uint32_t)values[i];
        return put_sample_row(k, n, ids, counts, e);
    }
    double *logprobs = (void *)k->scratch[2].data;
    if (n < want) return err_set(e, ERR_DATA, "%zu entries at a position: expected at least %zu", n, want);
    for (size_t i = 0; i < want; i++) logprobs[i] = values[i] > 0 ? log(values[i]) : -INFINITY;
    return put_top_row(k, ids, logprobs, e);
}

/* ---- the interface ----------------------------------------------------------------------------------------------- */

int knowledge_encoder_new(struct knowledge_encoder **out, struct stream_writer *w, const struct knowledge_format *f,
                          uint64_t seed, struct err *e) {
    if (!f->encoding || !f->vocab_size || f->vocab_size > KNOWLEDGE_MAX_VOCAB)
        return err_set(e, ERR_DATA, "knowledge needs an encoding and the size of the vocabulary");
    if (knowledge_is_top(f) && f->n > f->vocab_size)
        return err_set(e, ERR_USAGE, "%u entries of a vocabulary of %u tokens", f->n, f->vocab_size);
    struct knowledge_encoder *k = mem_zalloc(sizeof *k, e);
    if (!k) return e->code;
    k->format = *f;
    k->w = w;
    k->seed = seed;
    set_limits(k);
    *out = k;
    return 0;
}

static int append_ones(struct buf *b, size_t n, struct err *e) {
    if (buf_reserve(b, n, e)) return e->code;
    memset(b->data + b->len, 1, n);
    b->len += n;
    return 0;
}

int knowledge_encoder_begin(struct knowledge_encoder *k, const struct stream_batch *head, const uint32_t *tokens,
                            const uint8_t *mask, const uint32_t *lengths, struct err *e) {
    assert(k->done == k->in.n_positions); /* the rows of what was announced before have come */
    if (!head->n_positions) return 0;
    if (knowledge_cursor_step(&k->cursor, head, lengths, e)) return e->code;
    if (!k->counts.positions) k->seq = head->first_seq;
    k->in_tokens.len = k->in_mask.len = k->in_lengths.len = 0;
    if (buf_append(&k->in_tokens, tokens, head->n_positions * sizeof *tokens, e) ||
        (mask ? buf_append(&k->in_mask, mask, head->n_positions, e) : append_ones(&k->in_mask, head->n_positions, e)) ||
        buf_append(&k->in_lengths, lengths, head->n_seqs * sizeof *lengths, e))
        return e->code;
    k->in = *head;
    k->done = k->in_seq = 0;
    k->seq_left = lengths[0];
    k->pos = head->first_pos;
    return 0;
}

static int encode_rows(struct knowledge_encoder *k, size_t rows, struct logits x, double inv_temperature,
                       struct err *e) {
    assert(rows <= k->in.n_positions - k->done);
    while (rows) {
        size_t n = run_length(k);
        if (n > rows) n = rows;
        if (encode_run(k, n, x, (float)inv_temperature, e) || finish_run(k, n, e)) return e->code;
        x = rows_from(k, x, n);
        rows -= n;
    }
    return 0;
}

int knowledge_encoder_rows(struct knowledge_encoder *k, size_t rows, const float *x, double inv_temperature,
                           struct err *e) {
    return encode_rows(k, rows, (struct logits){DT_F32, (const unsigned char *)x}, inv_temperature, e);
}

int knowledge_encoder_entries(struct knowledge_encoder *k, size_t rows, const uint64_t *offset, const uint32_t *ids,
                              const float *values, struct err *e) {
    assert(rows <= k->in.n_positions - k->done && knowledge_is_sparse(&k->format));
    while (rows) {
        size_t n = run_length(k);
        if (n > rows) n = rows;
        for (size_t r = 0; r < n; r++)
            if (entries_row(k, offset[r + 1] - offset[r], ids + offset[r], values + offset[r], e)) return e->code;
        if (finish_run(k, n, e)) return e->code;
        offset += n;
        rows -= n;
    }
    return 0;
}

/* Dense rows of a batch, looked at where they lie: draws are made of them as they are, for else they are widened in blocks. */
static int encode_dense_batch(struct knowledge_encoder *k, const struct knowledge_format *f, const struct batch *b,
                              struct err *e) {
    const struct knowledge_rows *d = &k->decoded;
    double inv_temperature = knowledge_inv_temperature(f, k->format.temperature);
    if (k->format.encoding == KNOW_SAMPLE) {
        int rc = encode_rows(k, d->n_positions, (struct logits){f->dtype, d->dense}, inv_temperature, e);
        struct err found; /* says which value it is */
        if (rc == ERR_DATA && knowledge_check_dense(f, b, &found)) *e = found;
        return rc;
    }
    if (knowledge_check_dense(f, b, e) ||
        buf_reserve(&k->block, (size_t)DENSE_BLOCK * f->vocab_size * sizeof(float), e))
        return e->code;
    float *block = (float *)k->block.data;
    for (size_t first = 0; first < d->n_positions; first += DENSE_BLOCK) {
        size_t n = d->n_positions - first < DENSE_BLOCK ? d->n_positions - first : DENSE_BLOCK;
        knowledge_dense_rows(d, f, first, n, block);
        if (knowledge_encoder_rows(k, n, block, inv_temperature, e)) return e->code;
    }
    return 0;
}

int knowledge_encoder_batch(struct knowledge_encoder *k, const struct knowledge_format *f, const struct batch *b,
                            struct err *e) {
    const struct knowledge_rows *d = &k->decoded;
    if (knowledge_view(&k->decoded, f, b, e) || knowledge_encoder_begin(k, &b->head, d->tokens, d->mask, d->lengths, e))
        return e->code;
    if (!d->n_positions) return 0;
    if (f->encoding == KNOW_DENSE) return encode_dense_batch(k, f, b, e);
    return knowledge_encoder_entries(k, d->n_positions, d->offset, d->ids, d->probs, e);
}

int knowledge_encoder_end(struct knowledge_encoder *k, struct err *e) {
    if (knowledge_cursor_end(&k->cursor, e)) return e->code;
    return write_batch(k, false, e);
}

struct knowledge_counts knowledge_encoder_counts(const struct knowledge_encoder *k) {
    return k->counts;
}

void knowledge_encoder_free(struct knowledge_encoder *k) {
    if (!k) return;
    struct buf *all[] = {&k->in_tokens, &k->in_lengths, &k->in_mask, &k->mask,       &k->tokens,     &k->lengths,
                         &k->n,         &k->ids,        &k->values,  &k->scratch[0], &k->scratch[1], &k->scratch[2]};
    for (size_t i = 0; i < COUNT_OF(all); i++) buf_release(all[i]);
    knowledge_rows_release(&k->decoded);
    buf_release(&k->block);
    mem_free(k);
}
