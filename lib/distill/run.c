/* A whole run: the data, as often as it is to be read, into steps, with the log and the times to save. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "lib/distill/distill_internal.h"

struct run {
    struct trainer *t;
    struct distill_run *d;
    struct batch batch;
    FILE *log;
    double started;
    uint64_t started_positions;
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- after a step -------------------------------------------------------------------------------------------------- */

static int open_log(struct run *r, struct err *e) {
    if (!r->d->log) return 0;
    bool resumed = r->t->progress.step > 0;
    r->log = fopen(r->d->log, resumed ? "ae" : "we");
    if (!r->log) return err_sys(e, errno, "%s", r->d->log);
    const char *teacher = distill_kl_name(&r->d->format);
    if (!resumed) fprintf(r->log, "step\t%s%sce\tlr\tgrad_norm\ttokens\n", teacher ? teacher : "", teacher ? "\t" : "");
    return 0;
}

static int write_log(struct run *r, const struct distill_progress *p, struct err *e) {
    if (!r->log) return 0;
    fprintf(r->log, "%" PRIu64 "\t", p->step);
    if (distill_kl_name(&r->d->format)) fprintf(r->log, "%.6g\t", p->kl);
    fprintf(r->log, "%.6g\t%.6g\t%.6g\t%" PRIu64 "\n", p->ce, p->lr, p->grad_norm, p->positions);
    return fflush(r->log) ? err_sys(e, errno, "%s", r->d->log) : 0;
}

static int after_step(struct run *r, struct err *e) {
    struct distill_run *d = r->d;
    const struct distill_progress *p = &r->t->progress;
    d->tokens_per_second = (double)(p->positions - r->started_positions) / (now() - r->started);
    if (d->stepped) d->stepped(d->ctx, p, d->tokens_per_second);
    if (write_log(r, p, e)) return e->code;
    return d->save && p->step % d->save_every == 0 ? d->save(d->ctx, r->t, e) : 0;
}

/* ---- the data into steps --------------------------------------------------------------------------------------------- */

static bool done(const struct run *r) {
    return r->t->progress.step == r->t->o.steps;
}

/* All steps that the queue is good for. */
static int take_steps(struct run *r, bool last, struct err *e) {
    for (bool stepped = true; stepped && !done(r);)
        if (trainer_step(r->t, last, &stepped, e) || (stepped && after_step(r, e))) return e->code;
    return 0;
}

static int run_epoch(struct run *r, struct stream_reader *data, struct err *e) {
    for (bool more = true; !done(r);) {
        if (knowledge_read(data, &r->d->format, &r->batch, &more, e)) return e->code;
        if (!more) break;
        if (trainer_feed(r->t, &r->batch, e) || take_steps(r, false, e)) return e->code;
    }
    if (done(r)) return 0;
    return take_steps(r, true, e) ? e->code : trainer_end_epoch(r->t, e);
}

static int run_epochs(struct run *r, struct err *e) {
    struct stream_reader *data;
    for (uint64_t epoch = r->t->progress.epoch; epoch < r->d->epochs && !done(r); epoch++)
        if (r->d->open(r->d->ctx, &data, e) || run_epoch(r, data, e)) return e->code;
    return 0;
}

int distill_run(struct trainer *t, struct distill_run *d, struct err *e) {
    struct run r = {.t = t, .d = d, .started = now(), .started_positions = t->progress.positions};
    int rc = open_log(&r, e);
    if (!rc) rc = run_epochs(&r, e);
    batch_release(&r.batch);
    if (r.log && fclose(r.log) && !rc) rc = err_sys(e, errno, "%s", d->log);
    return rc;
}
