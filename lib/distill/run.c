/* Runs a whole training: reads the data for all epochs, takes steps, and writes log and checkpoints. */
#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "lib/distill/distill_internal.h"

struct run {
    struct trainer *t;
    struct distill_run *d;
    struct step_log log;
    bool saved;     /* the current state has been saved */
    uint64_t steps; /* in this run */
    double started;
    uint64_t started_positions;
};

double trainer_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- after a step ------------------------------------------------------------------------------------------------ */

static int save(struct run *r, struct err *e) {
    if (step_log_sync(&r->log, e) || r->d->save(r->d->ctx, r->t, e)) return e->code;
    r->saved = true;
    return 0;
}

/* Time spent here does not count as training. */
static int evaluate(struct run *r, struct err *e) {
    double begin = trainer_now();
    int rc = trainer_evaluate(r->t, e);
    r->d->eval_seconds += trainer_now() - begin;
    return rc;
}

static double trained_seconds(const struct run *r) {
    return trainer_now() - r->started - r->d->eval_seconds;
}

static void note_kl(struct run *r) {
    const struct loss_list *l = &r->t->losses;
    size_t i = 0;
    while (i < l->n && (strcmp(l->items[i].type->name, "kl") != 0 || l->items[i].at != LOSS_AT_FINAL)) i++;
    r->d->has_kl = i < l->n;
    if (r->d->has_kl) r->d->last_kl = l->items[i].value;
    if (!r->steps++) r->d->first_kl = r->d->last_kl;
}

static int after_step(struct run *r, struct err *e) {
    struct distill_run *d = r->d;
    const struct distill_progress *p = &r->t->progress;
    note_kl(r);
    r->saved = false;
    d->tokens_per_second = (double)(p->positions - r->started_positions) / trained_seconds(r);
    if (trainer_evaluation_due(r->t) && evaluate(r, e)) return e->code;
    if (d->stepped) d->stepped(d->ctx, p, d->tokens_per_second);
    if (step_log_put(&r->log, p, e)) return e->code;
    if (!d->save) return 0;
    bool wanted = d->save_wanted && d->save_wanted(d->ctx);
    return wanted || p->step % d->save_every == 0 ? save(r, e) : 0;
}

/* ---- from data to steps ------------------------------------------------------------------------------------------ */

/* The answer is remembered, so that distill_run and the trainer see the same one. */
static bool stopped(void *ctx) {
    struct run *r = ctx;
    if (!r->d->stopped && r->d->stop_wanted) r->d->stopped = r->d->stop_wanted(r->d->ctx);
    return r->d->stopped;
}

static bool done(struct run *r) {
    r->d->stopped_early = trainer_waited_enough(r->t);
    return r->t->progress.step == r->t->o.plan.now.steps || r->d->stopped_early || stopped(r);
}

/* Takes all steps for which data is queued. */
static int take_steps(struct run *r, bool last, struct err *e) {
    for (bool stepped = true; stepped && !done(r);)
        if (trainer_step(r->t, last, &stepped, e) || (stepped && after_step(r, e))) return e->code;
    return 0;
}

static int run_epoch(struct run *r, const struct knowledge_source *data, struct err *e) {
    for (bool more = true; !done(r);) {
        /* Ctrl-C in a pipeline also ends the program that writes the data: ignore its truncated stream then. */
        if (trainer_feed(r->t, data, &more, e)) return stopped(r) ? 0 : e->code;
        if (!more) break;
        if (take_steps(r, false, e)) return e->code;
    }
    if (done(r)) return 0;
    if (take_steps(r, true, e)) return e->code;
    if (stopped(r)) return 0;
    return done(r) ? knowledge_decode_end(&r->t->rows, e) : trainer_end_epoch(r->t, e);
}

static int run_stream(struct run *r, struct err *e) {
    struct knowledge_stream data = {.meta = &r->d->format, .format = trainer_format(r->t)};
    struct knowledge_source source = knowledge_stream_source(&data);
    int rc = 0;
    for (uint64_t epoch = r->t->progress.epoch; !rc && epoch < r->d->epochs && !done(r); epoch++) {
        rc = r->d->open(r->d->ctx, &data.r, e);
        if (!rc) rc = run_epoch(r, &source, e);
    }
    knowledge_stream_release(&data);
    return rc;
}

/* With decay weights the passes over the first file do not matter: the plan's steps end the run. */
static uint64_t most_epochs(const struct trainer *t, const struct distill_run *d) {
    return t->o.mixture && mixture_has_decay(t->o.mixture) ? UINT64_MAX : d->epochs;
}

static int run_mixture(struct run *r, struct err *e) {
    struct trainer *t = r->t;
    struct knowledge_source source = mixture_source(t->o.mixture, trainer_format(t));
    mixture_begin(t->o.mixture, &t->o.plan, t->o.batch_tokens, t->progress.epoch);
    for (uint64_t epoch = t->progress.epoch; epoch < most_epochs(t, r->d) && !done(r); epoch++) {
        if (run_epoch(r, &source, e)) return e->code;
        mixture_next_epoch(t->o.mixture);
    }
    return 0;
}

static int run_epochs(struct run *r, struct err *e) {
    return r->t->o.mixture ? run_mixture(r, e) : run_stream(r, e);
}

/* Otherwise the model would have been trained for longer than requested. */
static int check_epoch(const struct trainer *t, uint64_t epochs, struct err *e) {
    uint64_t begun = t->progress.epoch + (t->saved.sequences > 0);
    if (begun <= epochs) return 0;
    return err_set(e, ERR_USAGE, "the checkpoint is in epoch %" PRIu64 ", this run has %" PRIu64, begun, epochs);
}

/* Makes the evaluation that was due at the checkpoint's step, if it was interrupted then. */
static int catch_up(struct run *r, struct err *e) {
    if (!trainer_evaluation_due(r->t)) return 0;
    return evaluate(r, e) ? e->code : step_log_amend(&r->log, &r->t->progress, e);
}

/* Evaluates after the last step. The result is not in a checkpoint, because a longer run has no evaluation here. */
static int evaluate_end(struct run *r, struct err *e) {
    const struct distill_progress *p = &r->t->progress;
    if (!r->t->eval || !p->step || p->eval.step == p->step || stopped(r)) return 0;
    return evaluate(r, e) ? e->code : step_log_amend(&r->log, p, e);
}

int distill_run(struct trainer *t, struct distill_run *d, struct err *e) {
    struct run r = {.t = t, .d = d, .started = trainer_now(), .started_positions = t->progress.positions, .log.fd = -1};
    d->stopped = false;
    d->eval_seconds = 0;
    trainer_stop_when(t, stopped, &r);
    t->watch_noise = d->log != NULL;
    int rc = check_epoch(t, most_epochs(t, d), e);
    if (!rc) rc = step_log_open(&r.log, d->log, t, e);
    if (!rc) rc = catch_up(&r, e);
    if (!rc) rc = run_epochs(&r, e);
    double positions = (double)(t->progress.positions - r.started_positions + t->step_positions);
    d->seconds = trained_seconds(&r);
    d->mean_context = positions > 0 ? t->contexts / positions : 0;
    if (!rc && d->save && !r.saved) rc = save(&r, e);
    if (!rc) rc = evaluate_end(&r, e);
    if (!rc) rc = step_log_end(&r.log, e);
    trainer_stop_when(t, NULL, NULL);
    step_log_release(&r.log);
    return rc;
}
