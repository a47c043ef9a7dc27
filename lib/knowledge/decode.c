/* Batches of knowledge into rows that a loss can read. What arrives is not trusted: every value is checked here, once. */
#include <math.h>
#include <string.h>

#include "lib/knowledge/knowledge_internal.h"

#define SUM_SLACK 1e-3 /* above 1 that the probabilities of a row may come to */

/* One growing array per field of struct knowledge_rows. */
enum { SEQS, LENGTHS, TOKENS, LABELS, OFFSET, IDS, PROBS, REST, DENSE, MASK };

static void set_pointers(struct knowledge_rows *k, const struct knowledge_format *f) {
    k->seqs = (void *)k->memory[SEQS].data;
    k->lengths = (void *)k->memory[LENGTHS].data;
    k->tokens = (void *)k->memory[TOKENS].data;
    k->labels = (void *)k->memory[LABELS].data;
    k->mask = k->memory[MASK].data;
    k->offset = (void *)k->memory[OFFSET].data;
    k->ids = (void *)k->memory[IDS].data;
    k->probs = (void *)k->memory[PROBS].data;
    k->rest = f->encoding == KNOW_GHOST ? (void *)k->memory[REST].data : NULL;
    k->dense = f->encoding != KNOW_DENSE ? NULL : k->viewed ? k->viewed : k->memory[DENSE].data;
}

/* n more bytes at the end of a buffer; NULL when memory is out. */
static void *extend(struct buf *b, size_t n, struct err *e) {
    if (buf_reserve(b, n, e)) return NULL;
    b->len += n;
    return b->data + b->len - n;
}

/* ---- tokens, lengths and labels ------------------------------------------------------------------------------------- */

static int check_tokens(const struct knowledge_format *f, const uint32_t *tokens, uint64_t n, struct err *e) {
    uint32_t vocab = knowledge_columns(f);
    for (uint64_t i = 0; vocab && i < n; i++)
        if (tokens[i] >= vocab)
            return err_set(e, ERR_DATA, "position %llu of the batch: token %u of a vocabulary of %u",
                           (unsigned long long)i, tokens[i], vocab);
    return 0;
}

/* Appends lengths; the first is added to that of an open sequence. */
static int append_lengths(struct knowledge_rows *k, const struct stream_batch *head, const uint32_t *lengths,
                          struct err *e) {
    uint32_t first = 0;
    if (!k->n_seqs) k->first_pos = head->first_pos;
    if (k->open && k->n_seqs) {
        uint32_t *last = (uint32_t *)k->memory[LENGTHS].data + k->n_seqs - 1;
        if (*last + (uint64_t)lengths[0] > UINT32_MAX)
            return err_set(e, ERR_DATA, "sequence %llu has more than 2^32 positions",
                           (unsigned long long)head->first_seq);
        *last += lengths[0];
        first = 1;
    }
    for (uint32_t i = first; i < head->n_seqs; i++) {
        uint64_t seq = head->first_seq + i;
        if (buf_append(&k->memory[SEQS], &seq, sizeof seq, e) ||
            buf_append(&k->memory[LENGTHS], &lengths[i], sizeof lengths[i], e))
            return e->code;
    }
    k->n_seqs += head->n_seqs - first;
    return 0;
}

static int append_mask(struct knowledge_rows *k, const struct batch *b, struct err *e) {
    const struct tensor *t = batch_find(b, BATCH_MASK);
    uint64_t n = b->head.n_positions;
    uint8_t *mask = extend(&k->memory[MASK], n, e);
    if (!mask) return e->code;
    memset(mask, 1, n);
    if (!t) return 0;
    if (batch_need(b, BATCH_MASK, DT_U8, 1, &n, &t, e)) return e->code;
    memcpy(mask, t->data, n);
    for (uint64_t i = 0; i < n; i++)
        if (mask[i] > 1)
            return err_set(e, ERR_DATA, "position %llu of the batch: the mask is %u, expected 0 or 1",
                           (unsigned long long)i, mask[i]);
    return 0;
}

/* A position's label is the token behind it, if the mask lets it be one; the last position of a piece gets its own when
 * the next piece arrives. */
static void set_labels(struct knowledge_rows *k, const struct stream_batch *head, const uint32_t *lengths,
                       bool joined) {
    const uint32_t *tokens = (void *)k->memory[TOKENS].data;
    const uint8_t *mask = k->memory[MASK].data;
    uint32_t *labels = (void *)k->memory[LABELS].data;
    size_t at = k->n_positions;
    if (joined) labels[at - 1] = mask[at] ? tokens[at] : UINT32_MAX;
    for (uint32_t i = 0; i < head->n_seqs; i++) {
        for (uint32_t t = 0; t + 1 < lengths[i]; t++, at++) labels[at] = mask[at + 1] ? tokens[at + 1] : UINT32_MAX;
        labels[at++] = UINT32_MAX;
    }
}

/* ---- entries ------------------------------------------------------------------------------------------------------------ */

/* The sparse tensors of a batch, as stored. */
struct stored {
    const struct knowledge_format *f;
    const void *n, *ids, *values;
    uint64_t total;
};

static uint32_t number_at(enum dtype dtype, const void *data, uint64_t i) {
    if (dtype == DT_U8) return ((const uint8_t *)data)[i];
    return dtype == DT_U16 ? ((const uint16_t *)data)[i] : ((const uint32_t *)data)[i];
}

static int find_stored(struct stored *s, const struct knowledge_format *f, const struct batch *b, struct err *e) {
    bool top = knowledge_is_top(f);
    enum dtype counts = knowledge_count_type(f);
    const struct tensor *n, *ids, *values;
    if (batch_need(b, "teacher.n", counts, 1, &b->head.n_positions, &n, e)) return e->code;
    if (batch_need(b, "teacher.ids", knowledge_id_type(f), 1, &(uint64_t){0}, &ids, e)) return e->code;
    if (batch_need(b, top ? "teacher.logprobs" : "teacher.counts", top ? DT_F16 : counts, 1, ids->desc.dims, &values,
                   e))
        return e->code;
    if (values->desc.dims[0] != ids->desc.dims[0])
        return err_set(e, ERR_DATA, "\"teacher.ids\" and \"%s\" differ in length", values->desc.name);
    *s = (struct stored){f, n->data, ids->data, values->data, ids->desc.dims[0]};
    return 0;
}

static int check_ids(struct knowledge_rows *k, const struct knowledge_format *f, const uint32_t *ids, size_t n,
                     struct err *e) {
    uint32_t *seen = (void *)k->seen.data;
    if (++k->stamp == 0) {
        memset(seen, 0, k->seen.len);
        k->stamp = 1;
    }
    for (size_t i = 0; i < n; i++) {
        if (ids[i] >= f->vocab_size)
            return err_set(e, ERR_DATA, "entry %u of a vocabulary of %u", ids[i], f->vocab_size);
        if (seen[ids[i]] == k->stamp) return err_set(e, ERR_DATA, "entry %u comes twice", ids[i]);
        seen[ids[i]] = k->stamp;
        if (f->encoding == KNOW_SAMPLE && i && ids[i] < ids[i - 1])
            return err_set(e, ERR_DATA, "entries %u and %u are not in ascending order", ids[i - 1], ids[i]);
    }
    return 0;
}

static int read_top(const struct stored *s, uint64_t at, size_t n, float *probs, float *rest, struct err *e) {
    double sum = 0;
    float before = 0;
    for (size_t i = 0; i < n; i++) {
        float v = f16_to_f32(((const uint16_t *)s->values)[at + i]);
        if (!(v <= before) || isinf(v))
            return err_set(e, ERR_DATA, "log-probability %g after %g: expected descending ones, at most 0", v, before);
        before = v;
        probs[i] = (float)exp(v);
        sum += exp(v);
    }
    if (sum > 1 + SUM_SLACK) return err_set(e, ERR_DATA, "the probabilities sum to %g", sum);
    *rest = sum < 1 ? (float)(1 - sum) : 0;
    return 0;
}

static int read_counts(const struct stored *s, uint64_t at, size_t n, float *probs, struct err *e) {
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t count = number_at(knowledge_count_type(s->f), s->values, at + i);
        if (!count) return err_set(e, ERR_DATA, "an entry that was never drawn");
        sum += count;
        probs[i] = (float)count / (float)s->f->n;
    }
    if (sum != s->f->n)
        return err_set(e, ERR_DATA, "the counts sum to %llu: expected %u draws", (unsigned long long)sum, s->f->n);
    return 0;
}

/* One position's entries, from `at` of the stored ones to the end of the arrays. */
static int append_row(struct knowledge_rows *k, const struct stored *s, uint64_t at, size_t n, struct err *e) {
    const struct knowledge_format *f = s->f;
    float rest = 0;
    if (n < 1 || n > f->n || n > s->total - at)
        return err_set(e, ERR_DATA, "%zu entries: expected 1 to %u, %llu are left", n, f->n,
                       (unsigned long long)(s->total - at));
    uint32_t *ids = extend(&k->memory[IDS], n * sizeof *ids, e);
    float *probs = ids ? extend(&k->memory[PROBS], n * sizeof *probs, e) : NULL;
    if (!probs) return e->code;
    for (size_t i = 0; i < n; i++) ids[i] = number_at(knowledge_id_type(f), s->ids, at + i);
    if (check_ids(k, f, ids, n, e)) return e->code;
    if (f->encoding == KNOW_SAMPLE) return read_counts(s, at, n, probs, e);
    if (read_top(s, at, n, probs, &rest, e)) return e->code;
    return f->encoding == KNOW_GHOST ? buf_append(&k->memory[REST], &rest, sizeof rest, e) : 0;
}

static int append_sparse(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b,
                         struct err *e) {
    struct stored s = {0};
    uint64_t at = 0;
    if (find_stored(&s, f, b, e)) return e->code;
    if (!k->seen.len) {
        void *seen = extend(&k->seen, f->vocab_size * sizeof(uint32_t), e);
        if (!seen) return e->code;
        memset(seen, 0, k->seen.len);
    }
    for (uint64_t r = 0; r < b->head.n_positions; r++) {
        uint32_t n = number_at(knowledge_count_type(f), s.n, r);
        if (append_row(k, &s, at, n, e)) return err_prefix(e, "position %llu of the batch", (unsigned long long)r);
        at += n;
        uint64_t end = k->memory[IDS].len / sizeof(uint32_t);
        if (buf_append(&k->memory[OFFSET], &end, sizeof end, e)) return e->code;
    }
    if (at != s.total)
        return err_set(e, ERR_DATA, "\"teacher.n\" sums to %llu: expected the %llu entries of \"teacher.ids\"",
                       (unsigned long long)at, (unsigned long long)s.total);
    return 0;
}

/* Rows without entries. */
static int append_empty(struct knowledge_rows *k, uint64_t n, struct err *e) {
    uint64_t *offset = extend(&k->memory[OFFSET], n * sizeof *offset, e);
    if (!offset) return e->code;
    memset(offset, 0, n * sizeof *offset);
    return 0;
}

static int find_dense(const struct knowledge_format *f, const struct batch *b, const struct tensor **t, struct err *e) {
    return batch_need(b, "teacher.logits", f->dtype, 2, (uint64_t[]){b->head.n_positions, f->vocab_size}, t, e);
}

static int check_dense(const struct knowledge_format *f, const struct tensor *t, struct err *e) {
    uint64_t n = tensor_elems(&t->desc), bad = tensor_first_nonfinite(f->dtype, t->data, n);
    if (bad == n) return 0;
    return err_set(e, ERR_DATA, "position %llu of the batch: the value of token %llu is not finite",
                   (unsigned long long)(bad / f->vocab_size), (unsigned long long)(bad % f->vocab_size));
}

static int append_dense(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b, bool view,
                        struct err *e) {
    const struct tensor *t;
    if (find_dense(f, b, &t, e)) return e->code;
    if (view)
        k->viewed = t->data;
    else if (check_dense(f, t, e) || buf_append(&k->memory[DENSE], t->data, t->n_bytes, e))
        return e->code;
    return append_empty(k, b->head.n_positions, e);
}

/* ---- the queue ------------------------------------------------------------------------------------------------------------- */

static int append_batch(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b, bool view,
                        struct err *e) {
    const uint32_t *tokens = batch_tokens(b), *lengths = batch_lengths(b);
    uint64_t n = b->head.n_positions;
    bool joined = k->open && k->n_seqs;
    if (knowledge_cursor_step(&k->cursor, &b->head, lengths, e) || check_tokens(f, tokens, n, e)) return e->code;
    if (!k->memory[OFFSET].len && append_empty(k, 1, e)) return e->code;
    if (append_lengths(k, &b->head, lengths, e) || buf_append(&k->memory[TOKENS], tokens, n * sizeof *tokens, e))
        return e->code;
    if (append_mask(k, b, e) || !extend(&k->memory[LABELS], n * sizeof *k->labels, e)) return e->code;
    set_labels(k, &b->head, lengths, joined);
    k->open = k->cursor.open;
    k->n_positions += n;
    if (knowledge_is_sparse(f)) return append_sparse(k, f, b, e);
    return f->encoding == KNOW_DENSE ? append_dense(k, f, b, view, e) : append_empty(k, n, e);
}

static int in_batch(const struct batch *b, struct err *e) {
    unsigned long long first = b->head.first_seq;
    return err_prefix(e, "batch of sequences %llu to %llu", first, first + b->head.n_seqs - 1);
}

static int decode(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b, bool view,
                  struct err *e) {
    if (!b->head.n_positions) return 0;
    if (append_batch(k, f, b, view, e)) return in_batch(b, e);
    set_pointers(k, f);
    return 0;
}

int knowledge_decode(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b, struct err *e) {
    return decode(k, f, b, false, e);
}

int knowledge_view(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b, struct err *e) {
    knowledge_clear(k);
    return decode(k, f, b, true, e);
}

int knowledge_check_dense(const struct knowledge_format *f, const struct batch *b, struct err *e) {
    const struct tensor *t;
    return find_dense(f, b, &t, e) || check_dense(f, t, e) ? in_batch(b, e) : 0;
}

int knowledge_decode_end(const struct knowledge_rows *k, struct err *e) {
    return knowledge_cursor_end(&k->cursor, e);
}

size_t knowledge_whole_seqs(const struct knowledge_rows *k) {
    return k->n_seqs - (k->open && k->n_seqs ? 1 : 0);
}

int knowledge_check_context(const struct knowledge_rows *k, uint32_t context, const char *whose, struct err *e) {
    for (size_t i = 0; i < k->n_seqs; i++)
        if (k->lengths[i] > context)
            return err_set(e, ERR_DATA,
                           "sequence %llu has %u positions, the %s's context is %u (tokenize --context %u)",
                           (unsigned long long)k->seqs[i], k->lengths[i], whose, context, context);
    return 0;
}

void knowledge_clear(struct knowledge_rows *k) {
    for (size_t i = 0; i < COUNT_OF(k->memory); i++) k->memory[i].len = 0;
    k->n_positions = k->n_seqs = 0;
    k->viewed = NULL;
}

size_t knowledge_next_pass(const struct knowledge_rows *k, size_t first, uint64_t fit, uint64_t enough, bool last,
                           size_t *n_positions) {
    size_t whole = knowledge_whole_seqs(k), i = first;
    for (*n_positions = 0; i < whole; i++) {
        if (i > first && *n_positions + k->lengths[i] > fit) return i - first;
        *n_positions += k->lengths[i];
        if (*n_positions >= enough) return i + 1 - first;
    }
    return last ? i - first : 0;
}

static void drop_front(struct buf *b, size_t n) {
    if (!n) return;
    b->len -= n;
    memmove(b->data, b->data + n, b->len);
}

void knowledge_drop(struct knowledge_rows *k, const struct knowledge_format *f, size_t n_seqs) {
    if (!n_seqs) return;
    size_t n = 0;
    for (size_t i = 0; i < n_seqs; i++) n += k->lengths[i];
    uint64_t entries = k->offset[n];
    drop_front(&k->memory[SEQS], n_seqs * sizeof *k->seqs);
    drop_front(&k->memory[LENGTHS], n_seqs * sizeof *k->lengths);
    drop_front(&k->memory[TOKENS], n * sizeof *k->tokens);
    drop_front(&k->memory[LABELS], n * sizeof *k->labels);
    drop_front(&k->memory[MASK], n);
    drop_front(&k->memory[OFFSET], n * sizeof *k->offset);
    drop_front(&k->memory[IDS], entries * sizeof *k->ids);
    drop_front(&k->memory[PROBS], entries * sizeof *k->probs);
    if (f->encoding == KNOW_GHOST) drop_front(&k->memory[REST], n * sizeof *k->rest);
    if (f->encoding == KNOW_DENSE) drop_front(&k->memory[DENSE], n * dtype_row_bytes(f->dtype, f->vocab_size));
    k->first_pos = 0;
    k->n_seqs -= n_seqs;
    k->n_positions -= n;
    for (size_t i = 0; i <= k->n_positions; i++) k->offset[i] -= entries;
}

void knowledge_rows_release(struct knowledge_rows *k) {
    for (size_t i = 0; i < COUNT_OF(k->memory); i++) buf_release(&k->memory[i]);
    buf_release(&k->seen);
    *k = (struct knowledge_rows){0};
}

/* ---- for the loss ------------------------------------------------------------------------------------------------------------ */

double knowledge_inv_temperature(const struct knowledge_format *f, double temperature) {
    return f->temperature / temperature; /* that of logits is 1 */
}

struct dense_job {
    const struct knowledge_format *f;
    const unsigned char *from;
    float *to;
};

static void load_row(void *ctx, size_t r, int thread) {
    const struct dense_job *j = ctx;
    size_t d = knowledge_columns(j->f);
    (void)thread;
    tensor_to_f32(j->f->dtype, j->from + r * dtype_row_bytes(j->f->dtype, j->f->vocab_size), j->to + r * d, d);
}

void knowledge_dense_rows(const struct knowledge_rows *k, const struct knowledge_format *f, size_t first, size_t rows,
                          float *out) {
    size_t skip = first * dtype_row_bytes(f->dtype, f->vocab_size);
    struct dense_job j = {f, (const unsigned char *)k->dense + skip, out};
    parallel_for(rows, load_row, &j);
}

void knowledge_target(const struct knowledge_rows *k, const struct knowledge_format *f, double temperature,
                      size_t first, size_t rows, float *scratch, struct kernel_target *out) {
    *out = (struct kernel_target){
        .offset = k->offset + first,
        .ids = k->ids,
        .probs = k->probs,
        .rest = k->rest ? k->rest + first : NULL,
        .label = k->labels + first,
    };
    if (f->encoding != KNOW_DENSE) return;
    float inv_temperature = (float)knowledge_inv_temperature(f, temperature);
    knowledge_dense_rows(k, f, first, rows, scratch);
    kernel_log_softmax(scratch, scratch, rows, knowledge_columns(f), inv_temperature);
    out->dense = scratch;
}

double knowledge_t_ln_t(const struct kernel_target *t, size_t r, double *mass) {
    double sum = 0;
    *mass = 0;
    for (uint64_t i = t->offset[r]; i < t->offset[r + 1]; i++) {
        double p = t->probs[i];
        *mass += p;
        if (p > 0) sum += p * log(p);
    }
    return sum;
}
