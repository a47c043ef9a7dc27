/* Prints knowledge as a table, one row at a time: speed does not matter here. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

#include "lib/knowledge/knowledge_internal.h"

struct entry {
    uint32_t id;
    float prob;
};

/* What the table shows of a position. */
struct row {
    bool counts;                 /* there is a prediction */
    const struct entry *entries; /* in descending order of probability */
    size_t n;
    bool known; /* the probability of the label is known */
    double p_label;
    size_t rank; /* of the label, from 1; 0: it was never drawn */
};

static int by_probability(const void *a, const void *b) {
    const struct entry *x = a, *y = b;
    if (x->prob != y->prob) return x->prob < y->prob ? 1 : -1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static int load_sparse(struct row *row, const struct knowledge_rows *k, const struct knowledge_format *f, size_t r,
                       uint32_t top, struct buf *memory, struct err *e) {
    size_t n = k->offset[r + 1] - k->offset[r];
    if (buf_reserve(memory, n * sizeof(struct entry), e)) return e->code;
    struct entry *entries = (void *)memory->data;
    for (size_t i = 0; i < n; i++) entries[i] = (struct entry){k->ids[k->offset[r] + i], k->probs[k->offset[r] + i]};
    if (n) qsort(entries, n, sizeof *entries, by_probability);
    *row = (struct row){.entries = entries, .n = n < top ? n : top};
    /* a token that was not drawn has frequency 0 */
    row->known = f->encoding == KNOW_SAMPLE && k->labels[r] != UINT32_MAX;
    for (size_t i = 0; i < n; i++)
        if (entries[i].id == k->labels[r]) row->known = true, row->p_label = entries[i].prob, row->rank = i + 1;
    return 0;
}

static int load_dense(struct row *row, const struct knowledge_rows *k, const struct knowledge_format *f, size_t r,
                      uint32_t top, struct buf *memory, struct err *e) {
    size_t d = knowledge_columns(f), n = top < d ? top : d;
    if (buf_reserve(memory, d * sizeof(float) + n * (sizeof(struct entry) + 8), e)) return e->code;
    struct entry *entries = (void *)memory->data;
    float *x = (float *)(entries + n), *values = x + d;
    uint32_t *ids = (void *)(values + n);
    knowledge_dense_rows(k, f, r, 1, x);
    /* logits are at temperature 1, log-probabilities at their own: no further division */
    kernel_log_softmax(kernel_f32(x), kernel_f32(x), 1, d, 1);
    kernel_topk(ids, values, kernel_f32(x), 1, d, n);
    for (size_t i = 0; i < n; i++) entries[i] = (struct entry){ids[i], expf(values[i])};
    uint32_t label = k->labels[r];
    *row = (struct row){.entries = entries, .n = n, .known = label < d};
    if (!row->known) return 0;
    row->p_label = exp(x[label]);
    row->rank = 1;
    for (size_t i = 0; i < d; i++) row->rank += x[i] > x[label];
    for (size_t i = 0; i < label; i++) row->rank += x[i] == x[label]; /* ties: the lower id ranks first */
    return 0;
}

/* Prints a token's id, and its piece if there is a `spell`. */
static int put_token(struct buf *out, const struct knowledge_tsv *t, uint32_t id, struct err *e) {
    if (id == UINT32_MAX) return buf_printf(out, e, t->spell ? "-\t-\t" : "-\t");
    if (buf_printf(out, e, "%u\t", id)) return e->code;
    if (!t->spell) return 0;
    if (t->spell(t->ctx, id, out, e)) return e->code;
    return buf_printf(out, e, "\t");
}

static int put_entry(struct buf *out, const struct knowledge_tsv *t, const struct entry *entry, bool first,
                     struct err *e) {
    if (buf_printf(out, e, "%s%u:", first ? "" : " ", entry->id)) return e->code;
    if (t->spell && (t->spell(t->ctx, entry->id, out, e) || buf_printf(out, e, ":"))) return e->code;
    return buf_printf(out, e, "%.4g", entry->prob);
}

static int put_row(struct buf *out, const struct knowledge_tsv *t, const struct row *row, struct err *e) {
    double rest = 1;
    int rc = row->known ? buf_printf(out, e, "%.4g\t", row->p_label) : buf_printf(out, e, "-\t");
    if (!row->counts) return rc ? rc : buf_printf(out, e, "-\t-\t");
    if (!rc) rc = row->rank ? buf_printf(out, e, "%zu\t", row->rank) : buf_printf(out, e, "-\t");
    for (size_t i = 0; i < row->n; i++) rest -= row->entries[i].prob;
    if (rest < 0.5e-6) rest = 0; /* what is left is f32 rounding */
    if (!rc) rc = buf_printf(out, e, "%.4g\t", rest);
    for (size_t i = 0; i < row->n && !rc; i++) rc = put_entry(out, t, &row->entries[i], i == 0, e);
    return rc;
}

/* The place of a table row: index of its sequence, and of that sequence's first position and the row's own, in the
 * queue. */
struct place {
    size_t seq, begin, position;
};

/* Prints a field's row at this place as its root mean square, or "-" if it has none; for PER_PAIR, the position with
 * the largest weight in the mean over heads, and that weight. */
static int put_field(struct buf *out, const struct knowledge_rows *k, size_t i, const struct place *at,
                     struct buf *memory, struct err *e) {
    const struct knowledge_field *field = k->fields[i].field;
    size_t first, rows = knowledge_feature_span(k, i, at->seq, 1, &first), length = k->lengths[at->seq];
    bool pairs = field->per == PER_PAIR, whole = at->seq < knowledge_whole_seqs(k);
    bool here = field->per == PER_SEQUENCE ? at->position == at->begin : whole || !pairs;
    if (field->per == PER_PAIR && at->seq == 0 && k->first_pos) here = false; /* its beginning was dropped */
    const uint64_t *before = knowledge_feature_before(k, i);
    if (before) {
        here = here && before[at->position + 1] > before[at->position];
        first += before[at->position] - before[at->begin];
    } else if (field->per != PER_SEQUENCE)
        first += at->position - at->begin;
    if (!here || !rows) return buf_printf(out, e, "\t-");
    size_t cols = pairs ? field->heads * length : field->cols, best = 0;
    memory->len = 0;
    if (buf_reserve(memory, cols * sizeof(float), e)) return e->code;
    float *x = (float *)memory->data;
    double sum = 0;
    if (!pairs) {
        knowledge_feature_rows(k, i, first, 1, x);
        for (size_t c = 0; c < cols; c++) sum += (double)x[c] * x[c];
        return buf_printf(out, e, "\t%.4g", sqrt(sum / (double)cols));
    }
    knowledge_feature_pairs(k, i, first, 1, length, x);
    for (size_t h = 1; h < field->heads; h++)
        for (size_t c = 0; c < length; c++) x[c] += x[h * length + c];
    for (size_t c = 0; c < length; c++)
        if (x[c] > x[best]) best = c;
    return buf_printf(out, e, "\t%zu:%.4g", best, x[best] / (float)field->heads);
}

int knowledge_tsv_rows(const struct knowledge_tsv *t, struct buf *out, const struct knowledge_rows *k,
                       const struct knowledge_format *f, size_t first, size_t rows, struct err *e) {
    struct buf memory = {0};
    int rc = 0;
    struct place at = {0};
    bool sequences = f->target == TARGET_SEQUENCE;
    struct knowledge_tsv labels = *t;
    if (stream_target_classes(f->target)) labels.spell = NULL; /* class labels are not tokens */
    for (size_t r = first; r < first + rows && !rc; r++) {
        struct row row = {0};
        while (sequences ? at.seq < r : r - at.begin >= k->lengths[at.seq]) at.begin += k->lengths[at.seq++];
        at.position = sequences ? at.begin : r;
        bool counts = knowledge_answered(k, f, r);
        if (counts)
            rc = f->encoding == KNOW_DENSE ? load_dense(&row, k, f, r, t->top, &memory, e)
                                           : load_sparse(&row, k, f, r, t->top, &memory, e);
        row.counts = counts;
        if (!rc)
            rc = buf_printf(out, e, "%" PRIu64 "\t%" PRIu64 "\t", k->seqs[at.seq],
                            at.position - at.begin + (at.seq ? 0 : k->first_pos));
        if (!rc) rc = put_token(out, t, k->tokens[at.position], e);
        if (!rc) rc = put_token(out, &labels, k->labels[r], e);
        if (!rc) rc = put_row(out, &labels, &row, e);
        for (size_t i = 0; !rc && i < k->n_fields; i++) rc = put_field(out, k, i, &at, &memory, e);
        if (!rc) rc = buf_printf(out, e, "\n");
    }
    buf_release(&memory);
    return rc;
}

/* ---- a stream ---------------------------------------------------------------------------------------------------- */

struct table {
    const struct knowledge_tsv *t;
    const struct knowledge_format *f;
    FILE *out;
    struct buf text;
    struct knowledge_rows rows;
    uint64_t base;       /* number of the first row in the stream */
    uint64_t next, left; /* positions to print */
};

static void print_head(struct table *p) {
    bool pieces = p->t->spell != NULL, draws = p->f->encoding == KNOW_SAMPLE;
    fprintf(p->out, "sequence\tposition\ttoken\t%slabel\t%s%s", pieces ? "piece\t" : "",
            pieces && !stream_target_classes(p->f->target) ? "label_piece\t" : "",
            draws ? "frequency\tfrequency_rank\tfrequency_rest\tdrawn" : "probability\trank\trest\ttop");
    for (uint32_t i = 0; i < p->f->n_fields; i++) fprintf(p->out, "\t%s", p->f->fields[i].name);
    fputc('\n', p->out);
}

static int print_batch(struct table *p, const struct batch *b, struct err *e) {
    if (knowledge_decode(&p->rows, p->f, b, e)) return e->code;
    /* The label of an open sequence's last position is in the next batch. */
    bool sequences = p->f->target == TARGET_SEQUENCE;
    uint64_t end = p->base + (sequences ? p->rows.n_rows : p->rows.n_positions - p->rows.open);
    uint64_t stop = end < p->next ? p->next : end - p->next < p->left ? end : p->next + p->left;
    p->text.len = 0;
    if (stop > p->next && knowledge_tsv_rows(p->t, &p->text, &p->rows, p->f, p->next - p->base, stop - p->next, e))
        return e->code;
    if (p->text.len) fwrite(p->text.data, 1, p->text.len, p->out);
    p->left -= stop - p->next;
    p->next = stop;
    size_t before = p->rows.n_rows;
    knowledge_drop(&p->rows, p->f, knowledge_whole_seqs(&p->rows));
    p->base += before - p->rows.n_rows;
    return 0;
}

int knowledge_tsv_print(const struct knowledge_tsv *t, struct stream_reader *r, const struct knowledge_format *f,
                        uint64_t first, uint64_t n, FILE *out, struct err *e) {
    struct table p = {.t = t, .f = f, .out = out, .next = first, .left = n};
    struct batch b = {0};
    bool more = true;
    print_head(&p);
    int rc = 0;
    while (!rc && p.left && !(rc = knowledge_read(r, f, &b, &more, e)) && more) rc = print_batch(&p, &b, e);
    batch_release(&b);
    knowledge_rows_release(&p.rows);
    buf_release(&p.text);
    return rc;
}
