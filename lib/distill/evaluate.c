/*
 * Evaluation during training: runs the student as it would be saved now over a held-out stream, and keeps track of the
 * best state and of how long there has been no improvement.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/distill/distill_internal.h"

/* ---- the passes of a stream -------------------------------------------------------------------------------------- */

/* Processes the first sequences of the queue. */
typedef int pass_fn(struct trainer *t, size_t n_seqs, size_t n_positions, struct err *e);

static bool asked_to_stop(const struct trainer *t) {
    return t->stop && t->stop(t->stop_ctx);
}

/* A layerwise teacher runs over all queued sequences. */
static size_t pass_ahead(const struct trainer *t, const struct teacher_ahead *a, size_t seq, uint64_t taken,
                         size_t *n_positions, bool *full) {
    (void)taken;
    *full = true;
    return knowledge_next_pass(a->rows, seq, t->o.micro_tokens, UINT64_MAX, a->last, n_positions);
}

int evaluation_run_teacher(struct trainer *t, bool last, struct err *e) {
    struct teacher_ahead a = {&t->eval->rows, 0, 0, last, pass_ahead};
    bool ready;
    return teacher_run_ahead(t, &a, &ready, e);
}

static int queue_passes(struct trainer *t, pass_fn *pass, bool last, struct err *e) {
    struct evaluation *v = t->eval;
    size_t n_positions, n_seqs;
    if (v->begun && v->live && evaluation_run_teacher(t, last, e)) return e->code;
    while (!asked_to_stop(t) &&
           (n_seqs = knowledge_next_pass(&v->rows, 0, t->o.micro_tokens, UINT64_MAX, last, &n_positions)) > 0) {
        if (pass(t, n_seqs, n_positions, e)) return e->code;
        knowledge_drop(&v->rows, &v->format, n_seqs);
    }
    return 0;
}

static int stream_passes(struct trainer *t, struct knowledge_stream *data, pass_fn *pass, struct err *e) {
    struct evaluation *v = t->eval;
    struct knowledge_source source = knowledge_stream_source(data);
    for (bool more = true; more && !asked_to_stop(t);) {
        if (source.next(source.ctx, &v->rows, &more, e)) return e->code;
        if (more && knowledge_check_context(&v->rows, t->m->config.context, "student", e)) return e->code;
        if (queue_passes(t, pass, !more, e)) return e->code;
    }
    return asked_to_stop(t) ? 0 : knowledge_decode_end(&v->rows, e);
}

/* Processes the whole stream, unless the trainer is told to stop. */
static int all_passes(struct trainer *t, pass_fn *pass, struct err *e) {
    struct evaluation *v = t->eval;
    struct knowledge_stream data = {.meta = t->o.eval.format, .format = &v->format};
    if (t->o.eval.open(t->o.eval.ctx, &data.r, e)) return e->code;
    int rc = stream_passes(t, &data, pass, e);
    knowledge_stream_release(&data);
    if (rc) return err_prefix(e, "evaluation");
    /* a reading that was stopped leaves rows behind; the next one starts again */
    if (asked_to_stop(t)) knowledge_rows_release(&v->rows), v->rows = (struct knowledge_rows){0};
    return 0;
}

static uint64_t count_labelled(const struct trainer *t, size_t n_seqs, size_t n_positions) {
    const struct knowledge_rows *r = &t->eval->rows;
    size_t rows = knowledge_first_row(&t->eval->format, n_seqs, n_positions);
    uint64_t n = 0;
    for (size_t i = 0; i < rows; i++) n += r->labels[i] != UINT32_MAX;
    return n;
}

/* ---- before the first step --------------------------------------------------------------------------------------- */

static int look_at(struct trainer *t, size_t n_seqs, size_t n_positions, struct err *e) {
    struct evaluation *v = t->eval;
    (void)e;
    for (size_t i = 0, at = 0; i < n_seqs; at += v->rows.lengths[i++])
        knowledge_digest_seq(v->seen, &v->rows, &v->format, i, at);
    v->extent.passes++;
    v->extent.positions += n_positions;
    if (n_positions > v->extent.largest_pass) v->extent.largest_pass = n_positions;
    v->labelled += count_labelled(t, n_seqs, n_positions);
    return 0;
}

/* Reads the stream before the first step, so that errors in it are reported early. */
static int read_through(struct trainer *t, struct err *e) {
    struct evaluation *v = t->eval;
    v->seen = digest_new(e);
    if (!v->seen || all_passes(t, look_at, e)) return e->code;
    v->digest = digest_get(v->seen);
    v->begun = true;
    if (v->labelled) return 0;
    return err_set(e, ERR_DATA, "evaluation: the held-out stream %s",
                   v->extent.positions ? "has no position with a label" : "holds no sequences");
}

/* The metrics are kl, if there is a teacher, and ce. */
static int bind_metrics(struct trainer *t, struct err *e) {
    struct evaluation *v = t->eval;
    const struct model *teacher = teacher_model(&t->o.teacher);
    struct loss_setting s = {.student = &t->m->config, .data = &v->format, .live = teacher ? &teacher->config : NULL};
    bool answers = v->format.encoding != KNOW_NONE || teacher;
    if ((answers && loss_list_add(&v->losses, "kl", e)) || loss_list_add(&v->losses, "ce", e)) return e->code;
    if (loss_list_bind(&v->losses, &s, &t->set, e)) return e->code; /* they have no parameters */
    v->live = loss_list_uses(&v->losses, LOSS_TEACHER_LIVE);
    return 0;
}

static int name_values(struct trainer *t, struct err *e) {
    const struct loss_list *l = &t->eval->losses;
    struct distill_evaluation *p = &t->progress.eval;
    const char *metric = t->o.eval.metric;
    p->n = l->n;
    for (size_t i = 0; i < l->n; i++)
        snprintf(p->values[i].name, sizeof p->values[i].name, "eval_%s", l->items[i].column);
    p->metric = 0; /* kl comes first if there is one */
    while (metric && p->metric < l->n && strcmp(l->items[p->metric].type->name, metric) != 0) p->metric++;
    if (p->metric < l->n) return 0;
    return err_set(e, ERR_USAGE,
                   "--eval-metric %s: the held-out stream has no teacher's answers, and there is no --teacher", metric);
}

int evaluation_begin(struct trainer *t, struct err *e) {
    const struct distill_eval *o = &t->o.eval;
    if (!o->open) return 0;
    if (!o->every) return err_set(e, ERR_USAGE, "the number of steps between two evaluations is at least 1");
    struct evaluation *v = t->eval = mem_zalloc(sizeof *v, e);
    if (!v) return e->code;
    v->format = *o->format;
    if (knowledge_fit_target(&v->format, model_predicts(&t->m->config), model_columns(t->m), e))
        return err_prefix(e, "evaluation");
    if (bind_metrics(t, e)) return err_prefix(e, "evaluation");
    if (name_values(t, e) || grad_tape_new(&v->tape, t->m->device, false, t->o.precision, e)) return e->code;
    return read_through(t, e);
}

void evaluation_release(struct trainer *t) {
    struct evaluation *v = t->eval;
    if (!v) return;
    loss_list_release(&v->losses);
    grad_tape_free(v->tape);
    knowledge_rows_release(&v->rows);
    digest_free(v->seen);
    mem_free(v);
    t->eval = NULL;
}

/* ---- an evaluation ----------------------------------------------------------------------------------------------- */

static int block(void *ctx, size_t first, size_t rows, size_t vocab, const struct kernel_array *logits,
                 const struct kernel_array *dlogits, struct err *e) {
    struct trainer *t = ctx;
    struct evaluation *v = t->eval;
    struct loss_rows r = {.rows = rows,
                          .vocab = vocab,
                          .first = first,
                          .data = &v->rows,
                          .format = &v->format,
                          .final = logits[0],
                          .live = v->live ? logits[1] : kernel_none(DT_F32),
                          .ema = kernel_none(DT_F32),
                          .final_dlogits = dlogits[0]};
    return loss_list_block(&v->losses, &r, e);
}

int evaluation_pass(struct trainer *t, size_t n_seqs, size_t n_positions, struct err *e) {
    struct evaluation *v = t->eval;
    struct grad_head_input heads[2];
    struct model_input in = {.n_positions = n_positions,
                             .n_seqs = n_seqs,
                             .tokens = v->rows.tokens,
                             .lengths = v->rows.lengths,
                             .types = v->rows.types};
    if (trainer_forward_averages(t, v->tape, &in, &heads[0], e) || (v->live && teacher_forward(t, &in, &heads[1], e)))
        return e->code;
    grad_heads(1 + v->live, heads, block, t);
    return grad_error(v->tape, e);
}

/* Updates the best state, and the number of evaluations since the last improvement by more than min_delta. */
static void judge(struct trainer *t, bool first) {
    struct distill_evaluation *p = &t->progress.eval;
    double value = p->values[p->metric].value;
    if (first || value < p->best) {
        p->best = value;
        p->best_step = p->step;
        if (t->o.train.keep_best) param_set_keep(&t->set);
    }
    if (first || value < p->mark - t->o.eval.min_delta) {
        p->mark = value;
        p->wait = 0;
    } else if (++p->wait > p->longest_wait)
        p->longest_wait = p->wait;
}

int trainer_evaluate(struct trainer *t, struct err *e) {
    struct evaluation *v = t->eval;
    struct distill_evaluation *p = &t->progress.eval;
    bool first = !p->step;
    loss_list_begin_step(&v->losses, 1, 1);
    if (train_quantize_averages(&t->set, true, e) || all_passes(t, evaluation_pass, e) ||
        train_quantize_averages(&t->set, false, e))
        return e->code;
    if (asked_to_stop(t)) return 0;
    loss_list_end_step(&v->losses, (double)v->labelled);
    for (size_t i = 0; i < p->n; i++) {
        p->values[i].value = v->losses.items[i].value;
        if (!isfinite(p->values[i].value))
            return err_set(e, ERR_DATA, "evaluation after step %" PRIu64 ": %s is not finite (lower --lr?)",
                           t->progress.step, p->values[i].name);
    }
    p->step = t->progress.step;
    judge(t, first);
    return 0;
}

bool trainer_evaluation_due(const struct trainer *t) {
    uint64_t step = t->progress.step;
    return t->eval && step && step % t->o.eval.every == 0 && t->progress.eval.step != step;
}

bool trainer_waited_enough(const struct trainer *t) {
    return t->o.eval.patience && t->progress.eval.wait >= t->o.eval.patience;
}

/* ---- in a checkpoint --------------------------------------------------------------------------------------------- */

/* The result does not depend on an evaluation that only measures. */
bool evaluation_put_same(cJSON *to, const struct trainer *t) {
    const struct distill_eval *o = &t->o.eval;
    const struct distill_evaluation *p = &t->progress.eval;
    char digest[DIGEST_TEXT_SIZE];
    if (!t->eval || !(t->o.train.keep_best || o->patience)) return true;
    digest_text(t->eval->digest, digest);
    return json_put_str(to, "eval", digest) && json_put_u64(to, "eval-every", o->every) &&
           json_put_str(to, "eval-metric", t->eval->losses.items[p->metric].type->name) &&
           json_put_f64(to, "min-delta", o->min_delta);
}

bool evaluation_put(cJSON *meta, const struct trainer *t) {
    const struct distill_evaluation *p = &t->progress.eval;
    if (!t->eval || !p->step) return true;
    char digest[DIGEST_TEXT_SIZE];
    cJSON *o = cJSON_AddObjectToObject(meta, "evaluation");
    digest_text(t->eval->digest, digest);
    bool ok = o && json_put_str(o, "data", digest) && json_put_str(o, "metric", p->values[p->metric].name) &&
              json_put_u64(o, "step", p->step) && json_put_u64(o, "best_step", p->best_step) &&
              json_put_f64(o, "best", p->best) && json_put_f64(o, "mark", p->mark) &&
              json_put_u64(o, "wait", p->wait) && json_put_u64(o, "longest_wait", p->longest_wait);
    for (size_t i = 0; ok && i < p->n; i++) ok = json_put_f64(o, p->values[i].name, p->values[i].value);
    return ok;
}

/* With less patience, an uninterrupted run would have stopped earlier. */
static int check_patience(const struct trainer *t, struct err *e) {
    const struct distill_evaluation *p = &t->progress.eval;
    uint64_t patience = t->o.eval.patience;
    if (!patience || p->longest_wait < patience || (p->longest_wait == patience && p->wait == patience)) return 0;
    return err_set(e, ERR_USAGE,
                   "--patience %" PRIu64 ": the run of the checkpoint has had %" PRIu64
                   " evaluations in a row without improvement, and would have stopped",
                   patience, p->longest_wait);
}

/* A run that only measures may resume with another stream or metric; the old values then do not apply. */
static bool is_of(const cJSON *o, const struct trainer *t) {
    const struct distill_evaluation *p = &t->progress.eval;
    const char *data = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(o, "data"));
    const char *metric = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(o, "metric"));
    char digest[DIGEST_TEXT_SIZE];
    digest_text(t->eval->digest, digest);
    return data && metric && !strcmp(data, digest) && !strcmp(metric, p->values[p->metric].name);
}

int evaluation_get(struct trainer *t, const cJSON *meta, struct err *e) {
    struct distill_evaluation *p = &t->progress.eval;
    const cJSON *o = cJSON_GetObjectItemCaseSensitive(meta, "evaluation");
    if (!t->eval || !o || !is_of(o, t)) return 0;
    if (json_get_u64(o, "step", 1, t->progress.step, &p->step, e) ||
        json_get_u64(o, "best_step", 1, p->step, &p->best_step, e) ||
        json_get_f64(o, "best", -1e300, 1e300, &p->best, e) || json_get_f64(o, "mark", -1e300, 1e300, &p->mark, e) ||
        json_get_u64(o, "wait", 0, JSON_MAX_INTEGER, &p->wait, e) ||
        json_get_u64(o, "longest_wait", p->wait, JSON_MAX_INTEGER, &p->longest_wait, e))
        return err_prefix(e, "\"evaluation\"");
    for (size_t i = 0; i < p->n; i++)
        if (json_get_f64(o, p->values[i].name, -1e300, 1e300, &p->values[i].value, e))
            return err_prefix(e, "\"evaluation\"");
    t->set.kept = t->o.train.keep_best;
    return check_patience(t, e);
}
