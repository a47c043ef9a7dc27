/* Losses on attention: the teacher's probabilities or scores against those from the student's q and k, by blocks of
 * queries. */
#include <math.h>

#include "lib/losses/losses_internal.h"

#define QUERIES 64 /* per block, to bound memory: three arrays [QUERIES][heads][length] */

/* ---- requests ---------------------------------------------------------------------------------------------------- */

uint32_t loss_attention_layers(const struct loss_setting *s, const struct loss *l, struct err *e) {
    uint32_t layers = s->live ? s->live->n_layers : loss_layers_in_data(s->data, LOSS_ATTENTION_FIELD);
    if (!layers) loss_no_field(l, LOSS_ATTENTION_FIELD, NULL, e);
    return layers;
}

static int check_heads(const struct loss *l, size_t student, size_t teacher, struct err *e) {
    return student == teacher ? 0
                              : err_set(e, ERR_USAGE,
                                        "the loss %s: %zu heads of the student against %zu of the teacher (minilm2 has "
                                        "relations for any number)",
                                        l->type->name, student, teacher);
}

static int want_of_data(struct loss *l, const struct loss_setting *s, uint32_t layer, struct loss_attention *out,
                        struct err *e) {
    const struct knowledge_field *f = &s->data->fields[knowledge_field_find(s->data, LOSS_ATTENTION_FIELD, layer)];
    if (f->sampled) return loss_sampled_field(l, f, e);
    if (f->causal == out->student.bidirectional)
        return err_set(e, ERR_DATA, "the loss %s: %s is %s, and the student's attention is not", l->type->name, f->name,
                       f->causal ? "causal" : "of both directions");
    return check_heads(l, out->student.n_heads, f->heads, e);
}

int loss_want_attention(struct loss *l, const struct loss_setting *s, const struct loss_pair *pair, bool scores,
                        struct loss_attention *out, struct err *e) {
    *out = (struct loss_attention){.layer = pair->teacher, .student = model_attention_shape(s->student, pair->student)};
    bool in_data = !scores && knowledge_field_find(s->data, LOSS_ATTENTION_FIELD, pair->teacher) >= 0;
    if (loss_want_student(s, POINT_Q, pair->student, e) || loss_want_student(s, POINT_K, pair->student, e))
        return e->code;
    if (in_data) return want_of_data(l, s, pair->teacher, out, e);
    if (!s->live && scores)
        return err_set(e, ERR_DATA,
                       "the loss %s: scores are of a teacher beside the student: give --teacher MODEL, or of=weights",
                       l->type->name);
    if (!s->live) return loss_no_field(l, LOSS_ATTENTION_FIELD, &pair->teacher, e);
    out->teacher = model_attention_shape(s->live, pair->teacher);
    if (loss_want_live(s, POINT_Q, pair->teacher, e) || loss_want_live(s, POINT_K, pair->teacher, e)) return e->code;
    if (out->teacher.bidirectional != out->student.bidirectional)
        return err_set(e, ERR_USAGE,
                       "the loss %s: one of student and teacher attends in both directions, and the other does not",
                       l->type->name);
    return check_heads(l, out->student.n_heads, out->teacher.n_heads, e);
}

/* ---- a layer ----------------------------------------------------------------------------------------------------- */

struct run {
    struct loss_points *p;
    struct loss_attention a;
    struct kernel_attention_loss how;
    const float *q, *k;
    float *dq, *dk;
};

static int teacher_block(struct run *r, size_t seq, size_t first, size_t n, size_t length, float *out, struct err *e) {
    const struct loss_attention *a = &r->a;
    if (!a->tq) return r->p->pairs(r->p->ctx, a->layer, seq, first, n, length, out, e);
    (a->kind == ATTENTION_SCORES ? kernel_attention_scores : kernel_attention_weights)(
        &a->teacher, seq, first, n, kernel_f32(out), kernel_f32(a->tq), kernel_f32(a->tk));
    return 0;
}

static int run_block(struct run *r, size_t seq, size_t first, size_t n, double *sum, struct err *e) {
    struct loss_points *p = r->p;
    struct arena *m = &p->list->memory;
    size_t heads = r->a.student.n_heads, length = p->starts[seq + 1] - p->starts[seq], cells = n * heads * length;
    float *t = arena_array(m, cells, sizeof *t, e);
    float *scratch = t ? arena_array(m, 2 * cells, sizeof *scratch, e) : NULL;
    double *values = scratch ? arena_array(m, n * heads, sizeof *values, e) : NULL;
    int rc = values ? teacher_block(r, seq, first, n, length, t, e) : e->code;
    if (!rc) {
        kernel_attention_loss(&r->how, &r->a.student, seq, first, n, t, p->row_weight, r->q, r->k, scratch, values,
                              r->dq, r->dk);
        for (size_t i = 0; i < n * heads; i++) *sum += values[i] / (double)heads;
    }
    arena_reset(m);
    return rc;
}

static int allocate(struct run *r, struct err *e) {
    struct grad_tape *t = r->p->t;
    struct grad_var *q = r->a.q, *k = r->a.k;
    r->q = loss_host_value(r->p, q);
    r->k = q == k ? r->q : loss_host_value(r->p, k);
    if (!r->q || !r->k) return grad_error(t, e);
    if (r->p->weight == 0) return 0;
    r->dq = loss_gradient(r->p, q);
    r->dk = q == k ? r->dq : loss_gradient(r->p, k);
    return r->dq && r->dk ? 0 : grad_error(t, e);
}

int loss_attention_run(struct loss_points *p, const struct loss_attention *a, struct err *e) {
    struct run r = {.p = p, .a = *a};
    double sum = 0;
    r.a.student.n_seqs = r.a.teacher.n_seqs = p->in->n_seqs;
    r.a.student.starts = r.a.teacher.starts = p->starts;
    r.how = (struct kernel_attention_loss){a->kind, (float)(p->weight * a->share / (double)a->student.n_heads)};
    if (allocate(&r, e)) return e->code;
    for (size_t s = 0; s < p->in->n_seqs; s++)
        for (size_t at = 0; at < p->in->lengths[s]; at += QUERIES) {
            size_t left = p->in->lengths[s] - at;
            if (run_block(&r, s, at, left < QUERIES ? left : QUERIES, &sum, e)) return e->code;
        }
    p->sum += a->share * sum;
    if (r.dq) grad_add_to(p->t, a->q, r.dq);
    if (r.dk && a->k != a->q) grad_add_to(p->t, a->k, r.dk);
    return 0;
}

int loss_attention_pair(struct loss_points *p, const struct loss_pair *pair, const struct loss_attention *wanted,
                        double share, struct err *e) {
    struct loss_attention a = *wanted;
    size_t cols;
    a.q = loss_student_point(p, POINT_Q, pair->student);
    a.k = loss_student_point(p, POINT_K, pair->student);
    a.share = share;
    if (a.teacher.n_heads && (loss_teacher_point(p, POINT_Q, pair->teacher, &a.tq, &cols, e) ||
                              loss_teacher_point(p, POINT_K, pair->teacher, &a.tk, &cols, e)))
        return e->code;
    return loss_attention_run(p, &a, e);
}

static struct kernel_attention self(size_t cols, size_t heads) {
    return (struct kernel_attention){.n_heads = heads,
                                     .n_kv_heads = heads,
                                     .head_dim = cols / heads,
                                     .scale = (float)(1 / sqrt((double)(cols / heads))),
                                     .bidirectional = true};
}

int loss_self_relation(struct loss_points *p, enum model_point point, const struct loss_pair *pair, size_t heads,
                       double share, struct err *e) {
    struct loss_attention a = {.kind = ATTENTION_KL, .share = share, .layer = pair->teacher};
    size_t cols;
    a.q = a.k = loss_student_point(p, point, pair->student);
    if (loss_teacher_point(p, point, pair->teacher, &a.tq, &cols, e)) return e->code;
    a.tk = a.tq;
    a.student = self(a.q->cols, heads);
    a.teacher = self(cols, heads);
    return loss_attention_run(p, &a, e);
}
