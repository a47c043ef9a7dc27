/* The trainer: turns sequences into optimizer steps. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "lib/distill/distill_internal.h"

/* ---- construction ------------------------------------------------------------------------------------------------ */

static int check_options(const struct distill_options *o, struct err *e) {
    if (!o->batch_tokens || !o->micro_tokens)
        return err_set(e, ERR_USAGE, "the numbers of batch tokens and micro-batch tokens are at least 1");
    return train_plan_check(&o->plan, e);
}

/* Digests configuration and weights. */
static int digest_student(const struct model *m, struct digest *out, struct err *e) {
    struct digest_state *s = digest_new(e);
    if (!s) return e->code;
    int rc = model_config_digest(&m->config, s, e);
    for (size_t i = 0; !rc && i < m->n_params; i++)
        digest_update(s, model_host_value(&m->params[i]), m->params[i].n * sizeof(float));
    *out = digest_get(s);
    digest_free(s);
    return rc;
}

static int check_exits(const struct trainer *t, struct err *e) {
    for (size_t i = 0; i < t->o.n_exits; i++)
        if (!t->o.exits[i] || t->o.exits[i] >= t->m->config.n_layers || (i && t->o.exits[i] <= t->o.exits[i - 1]))
            return err_set(e, ERR_USAGE, "an exit after %u layers: expected ascending numbers from 1 to %u",
                           t->o.exits[i], t->m->config.n_layers - 1);
    return 0;
}

/* Binds the losses to the setting, and lists the points that they need for the graphs. */
static int bind_losses(struct trainer *t, struct err *e) {
    const struct model *teacher = teacher_model(&t->o.teacher);
    struct loss_list *l = &t->losses;
    struct loss_setting s = {.student = &t->m->config,
                             .data = &t->format,
                             .live = teacher ? &teacher->config : NULL,
                             .ema = t->o.train.ema > 0,
                             .exits = t->o.exits,
                             .n_exits = t->o.n_exits};
    *l = t->o.losses;
    if (check_exits(t, e) || loss_list_bind(l, &s, &t->set, e)) return e->code;
    if (teacher && !loss_list_uses(l, LOSS_TEACHER_LIVE) && !l->n_of_teacher)
        return err_set(e, ERR_USAGE, "--teacher has no effect: no loss asks it (teacher=live)");
    for (size_t i = 0; i < l->n_student; i++)
        t->wants[i] = (struct model_want){.point = l->student[i].point, .layer = l->student[i].layer};
    for (size_t i = 0; i < t->o.n_exits; i++)
        t->wants[l->n_student + i] = (struct model_want){.point = POINT_LAYER, .layer = t->o.exits[i] - 1};
    for (size_t i = 0; i < l->n_of_teacher; i++)
        t->teacher_wants[i] = (struct model_want){.point = l->of_teacher[i].point, .layer = l->of_teacher[i].layer};
    trainer_note_losses(t);
    return 0;
}

static int begin(struct trainer *t, struct err *e) {
    struct train_plan none = {0};
    t->seen = digest_new(e);
    if (!t->seen) return e->code;
    t->saved.seen = digest_get(t->seen);
    struct train_options how = t->o.train;
    how.precision = t->o.precision;
    if (param_set_init(&t->set, &how, e) || train_plan_continue(&t->o.plan, &none, 0, e) ||
        digest_student(t->m, &t->student, e) || train_add_model(&t->set, t->m, e) || bind_losses(t, e) ||
        param_set_begin(&t->set, e) || grad_tape_new(&t->tape, t->m->device, true, t->o.precision, e))
        return e->code;
    if (teacher_prepare(t, e) || evaluation_begin(t, e)) return e->code;
    grad_recompute(t->tape, t->o.recompute);
    return 0;
}

/* Plain tokens have labels only for the target `next`; with an online teacher labels are not needed. */
static int check_labels(const struct trainer *t, const struct knowledge_format *f, struct err *e) {
    enum stream_target target = model_predicts(&t->m->config);
    if (f->encoding != KNOW_NONE || f->target == target || teacher_model(&t->o.teacher)) return 0;
    return err_set(e, ERR_DATA, "the data has no labels of the target \"%s\", which the student learns (tokenize %s)",
                   stream_target_name(target), knowledge_labels_option(target));
}

int trainer_new(struct trainer **out, struct model *m, const struct distill_options *o,
                const struct knowledge_format *f, struct err *e) {
    if (check_options(o, e) || model_check_head(&m->config, e) || teacher_check(&o->teacher, m, e)) return e->code;
    struct knowledge_format fitted = *f;
    if (knowledge_fit_target(&fitted, model_predicts(&m->config), model_columns(m), e)) return e->code;
    struct trainer *t = mem_zalloc(sizeof *t, e);
    if (!t) return e->code;
    t->m = m;
    t->o = *o;
    t->format = fitted;
    t->packs = o->mixture ? mixture_has_packs(o->mixture) : fitted.pack > 0;
    if (check_labels(t, f, e) || begin(t, e)) {
        trainer_free(t);
        return e->code;
    }
    *out = t;
    return 0;
}

void trainer_stop_when(struct trainer *t, bool (*stop)(void *ctx), void *ctx) {
    t->stop = stop;
    t->stop_ctx = ctx;
}

void trainer_free(struct trainer *t) {
    if (!t) return;
    evaluation_release(t);
    param_set_release(&t->set);
    teacher_release(t);
    loss_list_release(&t->losses);
    grad_tape_free(t->tape);
    knowledge_rows_release(&t->rows);
    digest_free(t->seen);
    buf_release(&t->begins);
    buf_release(&t->row_weight);
    buf_release(&t->starts);
    buf_release(&t->field);
    buf_release(&t->sampled);
    mem_free(t);
}

/* Returns all memory that a tape has used. */
static double tape_bytes(const struct grad_tape *t) {
    struct grad_memory m = t ? grad_memory(t) : (struct grad_memory){0};
    return (double)m.values + (double)m.gradients + (double)m.scratch;
}

void trainer_memory(const struct trainer *t, struct distill_memory *m) {
    struct grad_memory tape = grad_memory(t->tape);
    double teacher = t->o.teacher.bytes + tape_bytes(t->teacher_tape) + tape_bytes(t->ema_tape);
    *m = (struct distill_memory){.weights = (double)model_parameters(&t->m->config) * sizeof(float),
                                 .gradients = (double)param_set_elements(&t->set) * sizeof(float),
                                 .optimizer = (double)(param_set_state_bytes(&t->set) - param_set_kept_bytes(&t->set)),
                                 .best = (double)param_set_kept_bytes(&t->set),
                                 .values = (double)tape.values,
                                 .value_gradients = (double)tape.gradients,
                                 .scratch = (double)tape.scratch,
                                 .teacher = teacher,
                                 .evaluation = t->eval ? tape_bytes(t->eval->tape) : 0};
}

/* ---- data -------------------------------------------------------------------------------------------------------- */

void trainer_use_seq(struct trainer *t, size_t i) {
    uint32_t n = t->rows.lengths[i];
    knowledge_digest_seq(t->seen, &t->rows, &t->format, i, t->used_positions);
    t->used_seqs++;
    t->used_positions += n;
    t->sequences++;
}

/* After a restore: skips complete sequences at the front of the queue that were trained on before. */
static int skip_trained(struct trainer *t, struct err *e) {
    while (t->skip && t->used_seqs < knowledge_whole_seqs(&t->rows)) {
        trainer_use_seq(t, t->used_seqs);
        if (--t->skip == 0 && !digest_equal(digest_get(t->seen), t->saved.seen))
            return err_set(e, ERR_DATA, "this is not the data of the checkpoint: its first %llu sequences differ",
                           (unsigned long long)t->sequences);
    }
    return 0;
}

/* Marks where packs begin among the sequences that have become complete: a mixture delivers one unit at a time;
 * otherwise struct knowledge_format has the rule. */
static int find_packs(struct trainer *t, struct err *e) {
    size_t from = t->begins.len, whole = knowledge_whole_seqs(&t->rows);
    if (!t->packs || from == whole) return 0;
    if (buf_reserve(&t->begins, whole - from, e)) return e->code;
    for (size_t i = from; i < whole; i++) {
        bool by_rule = knowledge_begins_pack(t->format.pack, &t->pack, t->rows.lengths[i]);
        t->begins.data[i] = t->o.mixture ? i == from : by_rule;
    }
    t->begins.len = whole;
    return 0;
}

/* Drops used sequences from the queue. */
static void drop_used(struct trainer *t) {
    knowledge_drop(&t->rows, &t->format, t->used_seqs);
    if (t->packs && t->used_seqs) {
        t->begins.len -= t->used_seqs;
        memmove(t->begins.data, t->begins.data + t->used_seqs, t->begins.len);
    }
    t->used_seqs = t->used_positions = 0;
}

const struct knowledge_format *trainer_format(const struct trainer *t) {
    return &t->format;
}

int trainer_feed(struct trainer *t, const struct knowledge_source *from, bool *more, struct err *e) {
    drop_used(t);
    if (from->next(from->ctx, &t->rows, more, e)) return e->code;
    if (!*more) return 0;
    if (find_packs(t, e)) return e->code;
    if (t->data_sequences && t->sequences + t->rows.n_seqs > t->data_sequences)
        return err_set(e, ERR_DATA, "the data has grown: it ended after %" PRIu64 " sequences when it was read before",
                       t->data_sequences);
    if (knowledge_check_context(&t->rows, t->m->config.context, "student", e)) return e->code;
    return skip_trained(t, e);
}

/* Checks the end of the data, when the queue holds all that is left: the last steps depend on where it is. Not for
 * mixtures, whose epochs differ and whose files were checked before the first. */
static int see_end(struct trainer *t, struct err *e) {
    if (t->o.mixture) return 0;
    uint64_t n = t->sequences + t->rows.n_seqs - t->used_seqs;
    if (t->data_sequences && n != t->data_sequences)
        return err_set(e, ERR_DATA,
                       "the data ends after %" PRIu64 " sequences: there were %" PRIu64 " when it was read before", n,
                       t->data_sequences);
    t->data_sequences = n;
    return 0;
}

int trainer_end_epoch(struct trainer *t, struct err *e) {
    struct digest now = digest_get(t->seen);
    if (knowledge_decode_end(&t->rows, e)) return e->code;
    if (t->skip)
        return err_set(e, ERR_DATA, "the data ends after %" PRIu64 " sequences, the checkpoint is at number %" PRIu64,
                       t->sequences, t->sequences + t->skip);
    if (see_end(t, e)) return e->code;
    if (t->data_known && !digest_equal(now, t->data_digest))
        return err_set(e, ERR_DATA, "the data is not what it was when it was read before");
    t->data_digest = now;
    t->data_known = !t->o.mixture;
    digest_free(t->seen);
    t->seen = digest_new(e);
    if (!t->seen) return e->code;
    drop_used(t);
    t->sequences = t->pack = 0;
    t->saved = (struct place){0, digest_get(t->seen)};
    t->progress.epoch++;
    return 0;
}

/* ---- steps ------------------------------------------------------------------------------------------------------- */

static void begin_step(struct trainer *t, uint64_t first_seq) {
    uint64_t step = t->progress.step + 1;
    t->step_first_seq = first_seq;
    loss_list_begin_step(&t->losses, step, train_schedule_at(&t->o.plan, step)->steps);
}

static int run_micro(struct trainer *t, size_t n_seqs, size_t n_positions, struct err *e) {
    unsigned long long first = t->rows.seqs[t->used_seqs], step = t->progress.step + 1;
    if (!t->step_positions) begin_step(t, first);
    if (trainer_run_micro(t, n_seqs, n_positions, e)) return e->code;
    if (!isfinite(loss_list_total(&t->losses, 1)))
        return err_set(e, ERR_DATA, "step %llu: the loss is not finite (sequences %llu to %llu; lower --lr?)", step,
                       first, (unsigned long long)t->rows.seqs[t->used_seqs + n_seqs - 1]);
    for (size_t i = 0; i < n_seqs; i++) {
        double n = t->rows.lengths[t->used_seqs];
        t->contexts += n * (n + 1) / 2;
        trainer_use_seq(t, t->used_seqs);
    }
    if (t->watch_noise && !t->step_positions && n_positions < t->o.batch_tokens) {
        t->first_square = train_gradient_square(&t->set);
        t->first_labelled = t->step_labelled;
    }
    t->step_positions += n_positions;
    return 0;
}

/* Like knowledge_next_pass from sequence `first` on, in a step that already has `before` positions, except that steps
 * end between packs. *full: the step is complete, which shows only when the next pack begins. */
static size_t next_pass_of_packs(const struct trainer *t, size_t first, uint64_t before, bool last, size_t *n_positions,
                                 bool *full) {
    size_t whole = knowledge_whole_seqs(&t->rows), i = first;
    for (*n_positions = 0; i < whole; i++) {
        if (t->begins.data[i] && before + *n_positions >= t->o.batch_tokens) {
            *full = i == first;
            return i - first;
        }
        if (i > first && *n_positions + t->rows.lengths[i] > t->o.micro_tokens) return i - first;
        *n_positions += t->rows.lengths[i];
    }
    return last ? i - first : 0;
}

/* Returns the step's next pass after `taken` further positions. */
static size_t pass_after(const struct trainer *t, size_t seq, uint64_t taken, bool last, size_t *n_positions,
                         bool *full) {
    uint64_t before = t->step_positions + taken, most = t->o.batch_tokens;
    if (t->packs) return next_pass_of_packs(t, seq, before, last, n_positions, full);
    *full = before >= most;
    return *full ? 0 : knowledge_next_pass(&t->rows, seq, t->o.micro_tokens, most - before, last, n_positions);
}

size_t trainer_next_pass(const struct trainer *t, bool last, size_t *n_positions) {
    bool full;
    return pass_after(t, t->used_seqs, 0, last, n_positions, &full);
}

/* Is the step complete? */
static bool step_is_full(const struct trainer *t) {
    if (t->step_positions < t->o.batch_tokens) return false;
    return !t->packs || (t->used_seqs < knowledge_whole_seqs(&t->rows) && t->begins.data[t->used_seqs]);
}

static size_t pass_ahead(const struct trainer *t, const struct teacher_ahead *a, size_t seq, uint64_t taken,
                         size_t *n_positions, bool *full) {
    return pass_after(t, seq, taken, a->last, n_positions, full);
}

int trainer_run_teacher(struct trainer *t, bool last, bool *ready, struct err *e) {
    struct teacher_ahead a = {&t->rows, t->used_seqs, t->used_positions, last, pass_ahead};
    return teacher_run_ahead(t, &a, ready, e);
}

int trainer_step(struct trainer *t, bool last, bool *stepped, struct err *e) {
    *stepped = false;
    if (t->skip) return 0;
    if (last && see_end(t, e)) return e->code;
    while (!step_is_full(t)) {
        size_t n_positions, n_seqs = trainer_next_pass(t, last, &n_positions);
        if (!n_seqs) break;
        if (t->stop && t->stop(t->stop_ctx)) return 0;
        bool ready;
        if (trainer_run_teacher(t, last, &ready, e)) return e->code;
        if (!ready) break;
        if (run_micro(t, n_seqs, n_positions, e)) return e->code;
    }
    if (!t->step_positions || (!step_is_full(t) && !last)) return 0;
    *stepped = true;
    return trainer_update(t, e);
}

void trainer_progress(const struct trainer *t, struct distill_progress *p) {
    *p = t->progress;
}

int trainer_start(struct trainer *t, struct stream_reader *r, struct err *e) {
    return train_start(&t->set, r, e);
}

int trainer_finish(struct trainer *t, struct err *e) {
    return param_set_finish(&t->set, e);
}

const struct train_plan *trainer_plan(const struct trainer *t) {
    return &t->o.plan;
}
