/* Runs a micro-batch: forward through the student and its teachers, losses, and backward. */
#include <string.h>

#include "lib/distill/distill_internal.h"

/* Context of the callback of grad_heads. Heads are the student's last one, its exits, and teachers in the process. */
struct micro {
    struct trainer *t;
    struct grad_head_input heads[3 + LOSS_MAX_EXITS];
    size_t n_heads, live, ema; /* live, ema: indices of the teachers' heads, or 0 */
};

static int block(void *ctx, size_t first, size_t rows, size_t vocab, const struct kernel_array *logits,
                 const struct kernel_array *dlogits, struct err *e) {
    struct micro *m = ctx;
    struct trainer *t = m->t;
    struct loss_rows r = {.rows = rows,
                          .vocab = vocab,
                          .first = first,
                          .at = knowledge_first_row(&t->format, t->used_seqs, t->used_positions),
                          .data = &t->rows,
                          .format = &t->format,
                          .final = logits[0],
                          .exits = logits + 1,
                          .live = m->live ? logits[m->live] : kernel_none(DT_F32),
                          .ema = m->ema ? logits[m->ema] : kernel_none(DT_F32),
                          .final_dlogits = dlogits[0],
                          .exit_dlogits = dlogits + 1};
    return loss_list_block(&t->losses, &r, e);
}

/* Adds the student's heads: all share the weight of the last one, and the norm before it. */
static int make_heads(struct trainer *t, const struct model_input *in, struct grad_var *h, struct micro *m,
                      struct err *e) {
    struct grad_head head = model_logits_head(t->m, t->tape);
    m->heads[m->n_heads++] = (struct grad_head_input){t->tape, h, head};
    for (size_t i = 0; i < t->o.n_exits; i++) {
        struct grad_var *x = model_exit(t->m, t->tape, in, t->wants[t->losses.n_student + i].var, e);
        if (!x) return e->code;
        m->heads[m->n_heads++] = (struct grad_head_input){t->tape, x, head};
    }
    return 0;
}

/* Context for losses that request points of the teacher, which come from the online teacher or a field of the data. */
struct asked {
    struct trainer *t;
    const struct model_input *in;
    uint8_t *sampled; /* [n_positions], or NULL */
    long held;        /* the field that t->field holds, or -1: consecutive losses often request the same */
};

/* Moves `made` rows, which belong to some of the n positions from `at` on, to their places; the others become 0. */
static void spread(const uint64_t *before, size_t at, size_t n, size_t made, size_t cols, float *out) {
    for (size_t i = n; before && i-- > 0;) /* backwards, because rows only move towards the end */
        if (before[at + i + 1] > before[at + i])
            memmove(out + i * cols, out + --made * cols, cols * sizeof *out);
        else
            memset(out + i * cols, 0, cols * sizeof *out);
}

/* Loads the rows of a field for this micro-batch, with zeros where it has none. */
static int read_field(const struct asked *a, size_t field, struct err *e) {
    struct trainer *t = a->t;
    size_t first, n = knowledge_feature_span(&t->rows, field, t->used_seqs, a->in->n_seqs, &first);
    size_t n_positions = a->in->n_positions, cols = t->format.fields[field].cols;
    t->field.len = 0;
    if (buf_reserve(&t->field, n_positions * cols * sizeof(float), e)) return e->code;
    float *out = (float *)t->field.data;
    knowledge_feature_rows(&t->rows, field, first, n, out);
    spread(knowledge_feature_before(&t->rows, field), t->used_positions, n_positions, n, cols, out);
    return 0;
}

static int teacher_rows(void *ctx, enum model_point p, uint32_t layer, const float **rows, size_t *cols,
                        struct err *e) {
    struct asked *a = ctx;
    struct trainer *t = a->t;
    if (teacher_point(t, p, layer, rows, cols)) return 0;
    long field = loss_field_find(&t->format, p, layer);
    if (field != a->held && read_field(a, (size_t)field, e)) return e->code;
    a->held = field;
    *cols = t->format.fields[field].cols;
    *rows = (const float *)t->field.data;
    return 0;
}

static int teacher_pairs(void *ctx, uint32_t layer, size_t seq, size_t first, size_t n, size_t length, float *out,
                         struct err *e) {
    const struct asked *a = ctx;
    struct trainer *t = a->t;
    size_t row, field = (size_t)knowledge_field_find(&t->format, "attention", layer), at = t->used_positions;
    const uint64_t *before = knowledge_feature_before(&t->rows, field);
    (void)e;
    for (size_t i = 0; i < seq; i++) at += a->in->lengths[i];
    knowledge_feature_span(&t->rows, field, t->used_seqs + seq, 1, &row);
    size_t from = before ? before[at + first] - before[at] : first;
    size_t rows = before ? before[at + first + n] - before[at + first] : n;
    knowledge_feature_pairs(&t->rows, field, row + from, rows, length, out);
    spread(before, at + first, n, rows, t->format.fields[field].heads * length, out);
    return 0;
}

/* Marks the positions of the micro-batch that are in sampled fields. */
static int find_sampled(struct trainer *t, struct asked *a, struct err *e) {
    const uint64_t *before = t->rows.sampled;
    if (!before) return 0;
    t->sampled.len = 0;
    if (buf_reserve(&t->sampled, a->in->n_positions, e)) return e->code;
    a->sampled = (uint8_t *)t->sampled.data;
    for (size_t i = 0; i < a->in->n_positions; i++)
        a->sampled[i] = before[t->used_positions + i + 1] > before[t->used_positions + i];
    return 0;
}

static int run_points(struct trainer *t, const struct model_input *in, struct err *e) {
    struct asked asked = {.t = t, .in = in, .held = -1};
    struct loss_points p = {
        .t = t->tape, .in = in, .student = t->wants, .teacher = teacher_rows, .pairs = teacher_pairs, .ctx = &asked};
    if (!t->losses.on_points) return 0;
    if (find_sampled(t, &asked, e)) return e->code;
    p.sampled = asked.sampled;
    t->row_weight.len = t->starts.len = 0;
    if (buf_reserve(&t->row_weight, in->n_positions * sizeof(float), e) ||
        buf_reserve(&t->starts, (in->n_seqs + 1) * sizeof(uint32_t), e))
        return e->code;
    float *row_weight = (float *)t->row_weight.data;
    uint32_t *starts = (uint32_t *)t->starts.data;
    for (size_t s = 0, i = 0; s < in->n_seqs; s++)
        for (uint32_t k = 0; k < in->lengths[s]; k++, i++) { /* a sequence's label is spread over its positions */
            bool whole = t->format.target == TARGET_SEQUENCE;
            uint32_t label = t->rows.labels[whole ? t->used_seqs + s : t->used_positions + i];
            row_weight[i] = label == UINT32_MAX ? 0 : whole ? 1 / (float)in->lengths[s] : 1;
            p.labelled += row_weight[i];
        }
    starts[0] = 0;
    for (size_t s = 0; s < in->n_seqs; s++) starts[s + 1] = starts[s] + in->lengths[s];
    p.row_weight = row_weight;
    p.starts = starts;
    return loss_list_points(&t->losses, &p, e);
}

int trainer_run_micro(struct trainer *t, size_t n_seqs, size_t n_positions, struct err *e) {
    struct micro m = {.t = t};
    struct model_input in = {.n_positions = n_positions,
                             .n_seqs = n_seqs,
                             .tokens = t->rows.tokens + t->used_positions,
                             .lengths = t->rows.lengths + t->used_seqs,
                             .types = t->rows.types ? t->rows.types + t->used_positions : NULL};
    size_t rows = model_output_rows(&t->m->config, &in),
           at = knowledge_first_row(&t->format, t->used_seqs, t->used_positions);
    grad_reset(t->tape);
    struct grad_var *h = model_graph_want(t->m, t->tape, &in, t->wants, t->losses.n_student + t->o.n_exits, e);
    if (!h || make_heads(t, &in, h, &m, e)) return e->code;
    if (t->teacher_tape) {
        if (teacher_forward(t, &in, &m.heads[m.n_heads], e)) return e->code;
        if (loss_list_uses(&t->losses, LOSS_TEACHER_LIVE)) m.live = m.n_heads++;
    }
    if (t->ema_tape) {
        t->m->masters = true; /* a teacher need not be quantized */
        int rc = trainer_forward_averages(t, t->ema_tape, &in, &m.heads[m.n_heads], e);
        t->m->masters = false;
        if (rc) return rc;
        m.ema = m.n_heads++;
    }
    if (run_points(t, &in, e)) return e->code;
    for (size_t i = 0; i < rows; i++) t->step_labelled += t->rows.labels[at + i] != UINT32_MAX;
    if (grad_heads(m.n_heads, m.heads, block, &m)) grad_backward(t->tape);
    return grad_error(t->tape, e);
}
