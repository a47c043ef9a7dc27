/* Forecasts time, memory and size of a run by measuring one of its passes; and measures the machine's peak. */
#include <stdlib.h>
#include <sys/resource.h>

#include "lib/distill/distill_internal.h"

#define ENOUGH_SECONDS 0.5 /* to spend on one measurement */
#define FEW_REPEATS    3   /* repeats for a median, unless they take longer than MOST_SECONDS */
#define MOST_SECONDS   20
#define MOST_REPEATS   200

/* ---- the machine's peak ------------------------------------------------------------------------------------------ */

#define SIDE 512

/* Returns the best rate over several products of two [SIDE][SIDE] matrices, made the way layers do. */
static double peak_of(struct kernel_array memory, struct kernel_array packed, enum dtype precision) {
    size_t n = (size_t)SIDE * SIDE;
    struct kernel_array a = memory, b = kernel_part(memory, n), c = kernel_part(memory, 2 * n);
    struct kernel_matrix stored = kernel_matrix_of(b, SIDE, SIDE);
    double best = 0;
    kernel_fill(memory, 3 * n, 0);
    struct kernel_matrix matrix = kernel_pack_nt(packed, &stored);
    for (double begin = trainer_now(), last = begin; last - begin < ENOUGH_SECONDS / 2;) {
        if (precision == DT_BF16)
            kernel_multiply(SIDE, kernel_typed(a, DT_BF16), &matrix, NULL, c);
        else
            kernel_matmul_nt(SIDE, SIDE, SIDE, a, b, 0, c);
        double now = trainer_now(), rate = 2.0 * SIDE * SIDE * SIDE / (now - last);
        if (rate > best) best = rate;
        last = now;
    }
    return best;
}

int distill_peak(struct kernel_device *d, enum dtype precision, double *flops, struct err *e) {
    size_t packed_bytes = kernel_matrix_bytes(KERNEL_PACKED_BF16, DT_F32, SIDE, SIDE);
    struct kernel_array memory = kernel_alloc(d, DT_F32, (uint64_t)3 * SIDE * SIDE, e), packed = kernel_none(DT_U8);
    if (kernel_has_data(memory)) packed = kernel_alloc(d, DT_U8, packed_bytes, e);
    bool ok = kernel_has_data(packed);
    *flops = ok ? peak_of(memory, packed, precision) : 0;
    kernel_free(d, packed);
    kernel_free(d, memory);
    return ok ? 0 : e->code;
}

/* Each matrix takes one product in forward, one in backward for its input, and one for its own gradient if it is
 * trained. Attention takes two products of each position with (sequence + 1) / 2 positions on average, in forward and
 * twice in backward. */
double distill_flops(const struct trainer *t, double mean_context) {
    const struct model_config *c = &t->m->config;
    double flops = 0;
    for (size_t i = 0; i < t->m->n_params; i++) {
        const struct model_param *p = &t->m->params[i];
        if (p->slot.role == ROLE_EMBED ? !c->tied : !model_role_is_matrix(p->slot.role)) continue;
        flops += (kernel_has_data(p->grad) ? 6.0 : 4.0) * (double)p->n;
        if (p->adapter) flops += 6.0 * p->adapter->rank * (double)(p->desc.dims[0] + p->desc.dims[1]);
    }
    for (uint32_t i = 0; i < c->n_layers; i++)
        flops += 3 * 4.0 * (double)model_axis_size(c, AXIS_QUERY, i) * mean_context;
    return flops;
}

/* ---- measuring a run --------------------------------------------------------------------------------------------- */

struct measured {
    uint64_t steps;                   /* of the run */
    double positions;                 /* of the measured pass */
    double pass, update;              /* seconds, warm: medians */
    double first;                     /* additional seconds of the first step, which touches memory and grows buffers */
    double read, read_positions;      /* seconds of reading and decoding that many */
    double ahead;                     /* seconds per position of a layerwise teacher, which runs over a whole step */
    double eval_pass, eval_positions; /* of one pass; 0: no evaluation */
    double eval_ahead;                /* like `ahead`, for evaluations */
};

/* Runs a layerwise teacher again over the same positions, now warm; the first run took `ran` seconds. A teacher from a
 * pipe can be read only for one step, so then the first run is used. */
static int measure_ahead(struct trainer *t, struct measured *m, bool last, double ran, struct err *e) {
    bool ready;
    m->ahead = ran / (double)t->ahead;
    if (m->steps < 2) return 0;
    t->ahead = t->ahead_at = 0;
    double begin = trainer_now();
    if (trainer_run_teacher(t, last, &ready, e)) return e->code;
    double took = trainer_now() - begin;
    m->ahead = took / (double)t->ahead;
    if (ran > took) m->first += ran - took;
    return 0;
}

/* Feeds rows until there is a pass, and all that the teacher runs over at once. */
static int feed_pass(struct trainer *t, struct distill_run *d, struct measured *m, size_t *n_seqs, size_t *n_positions,
                     struct err *e) {
    struct knowledge_stream data = {.meta = &d->format, .format = trainer_format(t)};
    struct knowledge_source source = knowledge_stream_source(&data);
    double begin = trainer_now();
    double ran = 0;
    bool more = true, ready = false;
    int rc = 0;
    if (t->o.mixture) {
        source = mixture_source(t->o.mixture, trainer_format(t));
        mixture_begin(t->o.mixture, &t->o.plan, t->o.batch_tokens, 0);
    } else {
        rc = d->open(d->ctx, &data.r, e);
    }
    *n_seqs = 0;
    while (!rc && more && !(*n_seqs && ready)) {
        rc = trainer_feed(t, &source, &more, e);
        if (rc) break;
        *n_seqs = trainer_next_pass(t, !more, n_positions);
        double before = trainer_now();
        rc = trainer_run_teacher(t, !more, &ready, e);
        ran += trainer_now() - before;
    }
    knowledge_stream_release(&data);
    m->read = trainer_now() - begin - ran;
    m->read_positions = (double)t->rows.n_positions;
    if (!rc && t->ahead) rc = measure_ahead(t, m, !more, ran, e);
    return rc || *n_seqs ? rc : err_set(e, ERR_DATA, "the data holds no sequences");
}

/* Durations of repeated measurements. */
struct times {
    double seconds[MOST_REPEATS], sum;
    int n;
};

static void note(struct times *x, double since) {
    x->seconds[x->n] = trainer_now() - since;
    x->sum += x->seconds[x->n++];
}

static bool wants_more(const struct times *x) {
    if (x->n >= MOST_REPEATS) return false;
    return x->sum < ENOUGH_SECONDS || (x->n < FEW_REPEATS && x->sum < MOST_SECONDS);
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median, because other processes delay some repeats, a few of them by much. */
static double median(struct times *x) {
    qsort(x->seconds, (size_t)x->n, sizeof *x->seconds, ascending);
    return (x->seconds[(x->n - 1) / 2] + x->seconds[x->n / 2]) / 2;
}

/* Runs a pass and an update as in a step: with weighted losses, and with weights that have just changed. */
static int measure_step(struct trainer *t, size_t n_seqs, size_t n_positions, struct times *pass, struct times *update,
                        struct err *e) {
    loss_list_begin_step(&t->losses, t->progress.step + 1, train_schedule_at(&t->o.plan, t->progress.step + 1)->steps);
    t->ahead_at = 0; /* reuse the same positions */
    double begin = trainer_now();
    if (trainer_run_micro(t, n_seqs, n_positions, e)) return e->code;
    note(pass, begin);
    begin = trainer_now();
    if (trainer_update(t, e)) return e->code;
    note(update, begin);
    return 0;
}

/* Measures a pass and an update. The first one takes longer because pages are touched. */
static int measure(struct trainer *t, size_t n_seqs, size_t n_positions, struct measured *m, struct err *e) {
    struct times first = {.n = 0}, pass = {.n = 0}, update = {.n = 0};
    m->positions = (double)n_positions;
    t->o.plan.now.lr = t->o.plan.now.lr_min = 0; /* the same positions are repeated, so nothing should be learned */
    if (measure_step(t, n_seqs, n_positions, &first, &first, e)) return e->code;
    while (wants_more(&pass))
        if (measure_step(t, n_seqs, n_positions, &pass, &update, e)) return e->code;
    m->pass = median(&pass);
    m->update = median(&update);
    t->ahead = t->ahead_at = 0;
    if (first.sum > m->pass + m->update) m->first += first.sum - m->pass - m->update;
    return 0;
}

static int feed_evaluation(struct trainer *t, size_t *n_seqs, size_t *n_positions, struct measured *m, struct err *e) {
    struct evaluation *v = t->eval;
    struct knowledge_stream data = {.meta = t->o.eval.format, .format = &v->format};
    struct knowledge_source source = knowledge_stream_source(&data);
    bool more = true;
    int rc = t->o.eval.open(t->o.eval.ctx, &data.r, e);
    while (!rc && more && !*n_seqs) {
        rc = source.next(source.ctx, &v->rows, &more, e);
        if (!rc) *n_seqs = knowledge_next_pass(&v->rows, 0, t->o.micro_tokens, UINT64_MAX, !more, n_positions);
    }
    knowledge_stream_release(&data);
    double begin = trainer_now();
    if (!rc && v->live) rc = evaluation_run_teacher(t, !more, e);
    if (t->ahead) m->eval_ahead = (trainer_now() - begin) / (double)t->ahead;
    return rc;
}

/* Measures the first pass of the held-out stream. */
static int measure_evaluation(struct trainer *t, struct measured *m, struct err *e) {
    size_t n_seqs = 0, n_positions = 0;
    struct times pass = {.n = 0};
    if (!t->eval) return 0;
    loss_list_begin_step(&t->eval->losses, 1, 1);
    if (feed_evaluation(t, &n_seqs, &n_positions, m, e) || evaluation_pass(t, n_seqs, n_positions, e)) return e->code;
    while (wants_more(&pass)) {
        t->ahead_at = 0;
        double begin = trainer_now();
        if (evaluation_pass(t, n_seqs, n_positions, e)) return e->code;
        note(&pass, begin);
    }
    m->eval_pass = median(&pass);
    m->eval_positions = (double)n_positions;
    return 0;
}

static double process_peak(void) {
    struct rusage use;
    return getrusage(RUSAGE_SELF, &use) ? 0 : (double)use.ru_maxrss * 1024;
}

static double model_bytes(const struct model *m) {
    double bytes = (double)m->vocab_bytes.len;
    for (size_t i = 0; i < m->n_params; i++) {
        const struct model_param *p = &m->params[i];
        const struct dtype_info *type = dtype_info(p->desc.dtype);
        bytes += (double)dtype_row_bytes(p->grid ? p->grid->dtype : type->is_quantized ? DT_F32 : type->dtype, p->n);
    }
    return bytes;
}

/* Counts steps, positions, passes and evaluations that this run has left. */
static void count(const struct trainer *t, const struct distill_run *d, const struct distill_extent *x,
                  struct distill_forecast *f) {
    double of_data = (double)x->steps * (double)d->epochs, share;
    f->steps = t->o.plan.now.steps - t->progress.step;
    share = ((double)t->o.plan.now.steps < of_data ? (double)t->o.plan.now.steps : of_data) - (double)t->progress.step;
    if ((double)f->steps > share) f->steps = share > 0 ? (uint64_t)share : 0;
    double per_step = 1 / (double)x->steps;
    f->positions = (double)f->steps * (double)x->positions * per_step;
    f->passes = (double)f->steps * (double)x->passes * per_step;
    /* one every `every` steps, and one at the end */
    uint64_t every = t->o.eval.every, first = t->progress.step, last = first + f->steps;
    if (t->eval) f->evaluations = last / every - first / every + (last % every != 0);
}

/* Scales activations, which are proportional to the positions of a pass, to the largest pass. */
static void grow(struct distill_memory *m, double by, const struct trainer *t) {
    m->values *= by;
    m->value_gradients *= by;
    m->teacher = t->o.teacher.bytes + (m->teacher - t->o.teacher.bytes) * by;
}

static double sum(const struct distill_memory *m) {
    return m->weights + m->gradients + m->optimizer + m->best + m->values + m->value_gradients + m->scratch +
           m->teacher + m->evaluation;
}

int distill_predict(struct trainer *t, struct distill_run *d, const struct distill_extent *x,
                    struct distill_forecast *f, struct err *e) {
    struct measured m = {.steps = 0};
    struct distill_memory *memory = &f->memory;
    size_t n_seqs, n_positions;
    *f = (struct distill_forecast){0};
    count(t, d, x, f);
    m.steps = f->steps;
    t->skip = 0; /* any part of the data will do */
    if (feed_pass(t, d, &m, &n_seqs, &n_positions, e) || measure(t, n_seqs, n_positions, &m, e) ||
        measure_evaluation(t, &m, e))
        return e->code;
    if (t->eval)
        f->eval_seconds = (double)f->evaluations * (double)t->eval->extent.positions *
                          (m.eval_pass / m.eval_positions + m.eval_ahead);
    f->seconds = f->positions * (m.pass / m.positions + m.ahead + m.read / m.read_positions) +
                 (double)f->steps * m.update + (f->steps ? m.first : 0);
    f->tokens_per_second = f->seconds > 0 ? f->positions / f->seconds : 0;
    trainer_memory(t, memory);
    double measured = sum(memory);
    if ((double)x->largest_pass > m.positions) grow(memory, (double)x->largest_pass / m.positions, t);
    if (t->eval && (double)t->eval->extent.largest_pass > m.eval_positions)
        memory->evaluation *= (double)t->eval->extent.largest_pass / m.eval_positions;
    f->peak_bytes = process_peak() + sum(memory) - measured;
    f->model_bytes = model_bytes(t->m);
    f->checkpoint_bytes = (double)param_set_elements(&t->set) * sizeof(float) + (double)param_set_saved_bytes(&t->set);
    return 0;
}
