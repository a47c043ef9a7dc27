/* An online teacher: every micro-batch goes through it, too, and nothing is kept, except the states of a layerwise
 * teacher, which runs once for all micro-batches of a step. */
#include <string.h>

#include "lib/distill/distill_internal.h"

const struct model *teacher_model(const struct distill_teacher *d) {
    return d->layerwise ? model_layerwise_model(d->layerwise) : d->model;
}

int teacher_check(const struct distill_teacher *d, const struct model *student, struct err *e) {
    const struct model *m = teacher_model(d);
    char ours[DIGEST_TEXT_SIZE], theirs[DIGEST_TEXT_SIZE];
    if (!m) return 0;
    if (model_check_head(&m->config, e)) return err_prefix(e, "the teacher");
    if (model_predicts(&m->config) != model_predicts(&student->config))
        return err_set(e, ERR_DATA,
                       "student and teacher do not predict the same: next tokens, masked ones, classes or tags");
    digest_text(student->vocab_digest, ours);
    digest_text(m->vocab_digest, theirs);
    if (student->vocab && m->vocab && strcmp(ours, theirs) != 0)
        return err_set(e, ERR_DATA,
                       "student and teacher disagree: vocabulary %s against %s (rill realign translates predictions)",
                       ours, theirs);
    if (model_columns(student) != model_columns(m))
        return err_set(e, ERR_DATA, "student and teacher disagree: %u columns of logits against %u",
                       model_columns(student), model_columns(m));
    return 0;
}

/* ---- points ------------------------------------------------------------------------------------------------------ */

/* Collects points of a layerwise teacher, whose rows arrive in order, some sequences at a time. */
static int tap(void *ctx, const struct model_seen *s, struct err *e) {
    struct trainer *t = ctx;
    const float *x;
    for (size_t i = 0; i < t->losses.n_of_teacher; i++) {
        if (t->losses.of_teacher[i].point != s->point || t->losses.of_teacher[i].layer != s->layer) continue;
        int rc = model_seen_f32(s, &x, e);
        return rc ? rc : buf_append(&t->teacher_taps[i], x, s->rows * s->cols * sizeof *x, e);
    }
    return 0;
}

/* Limits the run to as many positions as have states and tapped rows within an eighth of the free memory. */
static void limit_run_ahead(struct trainer *t) {
    const struct model_config *c = &teacher_model(&t->o.teacher)->config;
    double floats = c->hidden;
    for (size_t i = 0; i < t->losses.n_of_teacher; i++)
        floats += (double)model_point_cols(c, t->losses.of_teacher[i].point, t->losses.of_teacher[i].layer);
    t->most_ahead = (uint64_t)((double)mem_left() / 8 / (floats * sizeof(float))) + 1;
}

int teacher_prepare(struct trainer *t, struct err *e) {
    const struct distill_teacher *d = &t->o.teacher;
    size_t n = t->losses.n_of_teacher;
    if (loss_list_uses(&t->losses, LOSS_TEACHER_EMA) &&
        grad_tape_new(&t->ema_tape, t->m->device, false, t->o.precision, e))
        return e->code;
    if (!teacher_model(d)) return 0;
    if (grad_tape_new(&t->teacher_tape, teacher_model(d)->device, false, model_precision(teacher_model(d)), e))
        return e->code;
    if (d->layerwise) limit_run_ahead(t);
    if (!d->layerwise || !n) return 0;
    if (!(t->teacher_taps = mem_array(n, sizeof *t->teacher_taps, e))) return e->code;
    memset(t->teacher_taps, 0, n * sizeof *t->teacher_taps);
    model_layerwise_tap(d->layerwise, tap, t);
    return 0;
}

void teacher_release(struct trainer *t) {
    for (size_t i = 0; t->teacher_taps && i < t->losses.n_of_teacher; i++) buf_release(&t->teacher_taps[i]);
    if (t->teacher_taps) model_layerwise_tap(t->o.teacher.layerwise, NULL, NULL);
    mem_free(t->teacher_taps);
    buf_release(&t->ahead_inputs);
    grad_tape_free(t->teacher_tape);
    grad_tape_free(t->ema_tape);
}

bool teacher_point(const struct trainer *t, enum model_point p, uint32_t layer, const float **rows, size_t *cols) {
    for (size_t i = 0; i < t->losses.n_of_teacher; i++) {
        const struct model_want *w = &t->teacher_wants[i];
        if (w->point != p || w->layer != layer) continue;
        *cols = model_point_cols(&teacher_model(&t->o.teacher)->config, p, layer);
        *rows = t->teacher_taps ? (const float *)t->teacher_taps[i].data + t->ahead_row * *cols
                                : kernel_host(w->var->value, w->var->rows * w->var->cols);
        return true;
    }
    return false;
}

/* ---- a forward pass ---------------------------------------------------------------------------------------------- */

static int forward_resident(struct trainer *t, const struct model_input *in, struct grad_var **h, struct err *e) {
    grad_reset(t->teacher_tape);
    *h = model_graph_want(t->o.teacher.model, t->teacher_tape, in, t->teacher_wants, t->losses.n_of_teacher, e);
    return *h ? 0 : e->code;
}

static int run_layers(struct trainer *t, const struct model_input *in, size_t n, struct err *e) {
    for (size_t i = 0; t->teacher_taps && i < t->losses.n_of_teacher; i++) t->teacher_taps[i].len = 0;
    t->ahead = t->ahead_at = 0;
    if (model_layerwise_run(t->o.teacher.layerwise, t->teacher_tape, in, n, NULL, NULL, e)) return e->code;
    for (size_t i = 0; i < n; i++) t->ahead += in[i].n_positions;
    return 0;
}

int teacher_run_ahead(struct trainer *t, const struct teacher_ahead *a, bool *ready, struct err *e) {
    struct buf *inputs = &t->ahead_inputs;
    size_t seq = a->seq, position = a->position;
    uint64_t taken = 0;
    bool full = false;
    *ready = true;
    if (!t->o.teacher.layerwise || t->ahead_at < t->ahead) return 0;
    inputs->len = 0;
    while (taken < t->most_ahead) {
        struct model_input in = {.tokens = a->rows->tokens + position, .lengths = a->rows->lengths + seq};
        if (a->rows->types) in.types = a->rows->types + position;
        in.n_seqs = a->next(t, a, seq, taken, &in.n_positions, &full);
        if (!in.n_seqs) break;
        if (buf_append(inputs, &in, sizeof in, e)) return e->code;
        seq += in.n_seqs;
        position += in.n_positions;
        taken += in.n_positions;
    }
    *ready = a->last || full || taken >= t->most_ahead;
    if (!*ready || !taken) return 0;
    if (run_layers(t, (const struct model_input *)inputs->data, inputs->len / sizeof(struct model_input), e))
        return err_prefix(e, "the teacher");
    return 0;
}

static int forward_layerwise(struct trainer *t, const struct model_input *in, struct grad_var **h, struct err *e) {
    if (t->ahead_at == t->ahead && run_layers(t, in, 1, e)) return e->code;
    *h = model_layerwise_hidden(t->o.teacher.layerwise, t->teacher_tape, in, t->ahead_at, e);
    t->ahead_row = t->ahead_at;
    t->ahead_at += in->n_positions;
    return *h ? 0 : e->code;
}

int teacher_forward(struct trainer *t, const struct model_input *in, struct grad_head_input *out, struct err *e) {
    const struct distill_teacher *d = &t->o.teacher;
    struct grad_var *h;
    if (d->layerwise ? forward_layerwise(t, in, &h, e) : forward_resident(t, in, &h, e))
        return err_prefix(e, "the teacher");
    struct model *m = d->layerwise ? model_layerwise_held(d->layerwise) : d->model;
    *out = (struct grad_head_input){t->teacher_tape, h, model_logits_head(m, t->teacher_tape)};
    return 0;
}

int trainer_forward_averages(struct trainer *t, struct grad_tape *tape, const struct model_input *in,
                             struct grad_head_input *out, struct err *e) {
    grad_reset(tape);
    train_use_averages(&t->set, t->m, true);
    struct grad_var *h = model_graph(t->m, tape, in, NULL, NULL, e);
    *out = (struct grad_head_input){tape, h, model_logits_head(t->m, tape)};
    train_use_averages(&t->set, t->m, false);
    return h ? 0 : e->code;
}
