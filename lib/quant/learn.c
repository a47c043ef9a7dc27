/* The loop of learned rounding: gradients over all sequences of half a layer, a step, and the best state on held-out
 * sequences. */
#include <math.h>
#include <string.h>

#include "lib/quant/learn.h"

#define BATCH     1024 /* minimum number of positions per batch; whole sequences */
#define HELD_OUT  8    /* one sequence in so many */
#define DAMP      15   /* initial damping */
#define PROBES    8    /* maximum number of batches to probe */
#define DAMP_LESS 0.7  /* factor after a step that lowered the error */
#define DAMP_MORE 3    /* factor after a step that did not and is undone */

/* A sequence of the data. */
struct part {
    const uint32_t *tokens, *types;
    uint32_t length;
    size_t first; /* index of its first position in the data */
};

struct learning {
    const struct learn_block *b;
    size_t width;
    struct part *parts; /* [n]; the first n_learned are trained on, the first n_sampled in every step */
    size_t n, n_learned, n_sampled;
    struct rounding *matrices; /* [b->n_matrices] */
    struct rng rng;
    double per_probed, per_sampled; /* training positions per probed position, and per position of the sample */
    double best, damp; /* smallest loss so far, INFINITY before the first step, and the damping of the next step */
    double beyond;     /* loss beyond that of the sample, at the start */
    /* the current batch: */
    struct buf tokens, types, lengths, at; /* at: the position in the data of each row */
    struct model_input in;
    float *gradient; /* [rows][width] of the loss with respect to the output */
    float *weight;   /* [rows] 1 / |target|^2 */
    double *error;   /* [rows] */
    size_t rows;     /* allocated */
};

/* ---- sequences ---- */

/* Whether item i of n is one of m that are spread evenly. */
static bool is_spread(size_t i, size_t m, size_t n) {
    return (i + 1) * m / n != i * m / n;
}

static double positions_of(const struct learning *l, size_t first, size_t end) {
    double sum = 0;
    for (size_t i = first; i < end; i++) sum += l->parts[i].length;
    return sum;
}

/* Moves the sample, `count` of the training sequences, to the front; both groups stay in order. */
static int list_sample_first(struct learning *l, size_t count, struct err *e) {
    struct part *ordered = mem_array(l->n_learned, sizeof *ordered, e);
    size_t at[2] = {count, 0};
    if (!ordered) return e->code;
    for (size_t i = 0; i < l->n_learned; i++) ordered[at[is_spread(i, count, l->n_learned)]++] = l->parts[i];
    memcpy(l->parts, ordered, l->n_learned * sizeof *ordered);
    mem_free(ordered);
    l->n_sampled = count;
    return 0;
}

static int choose_sample(struct learning *l, struct err *e) {
    double all = positions_of(l, 0, l->n_learned), sample = (double)l->b->sample;
    int rc = 0;
    l->n_sampled = l->n_learned;
    if (sample > 0 && all >= 2 * sample) rc = list_sample_first(l, (size_t)ceil(l->n_learned * sample / all), e);
    l->per_sampled = all / positions_of(l, 0, l->n_sampled);
    return rc;
}

/* Lists training sequences before held-out ones, each in order. A single sequence serves as both. */
static int list_parts(struct learning *l, struct err *e) {
    const struct learn_block *b = l->b;
    size_t first = 0, number = 0, at[2] = {0};
    for (size_t i = 0; i < b->n; i++) l->n += b->in[i].n_seqs;
    size_t held = l->n < 2 ? 0 : l->n < HELD_OUT ? 1 : l->n / HELD_OUT;
    at[1] = l->n_learned = l->n - held;
    if (!(l->parts = mem_array(l->n, sizeof *l->parts, e))) return e->code;
    for (size_t i = 0; i < b->n; i++)
        for (size_t k = 0, from = 0; k < b->in[i].n_seqs; from += b->in[i].lengths[k++], number++) {
            const struct model_input *in = &b->in[i];
            l->parts[at[is_spread(number, held, l->n)]++] =
                (struct part){in->tokens + from, in->types ? in->types + from : NULL, in->lengths[k], first};
            first += in->lengths[k];
        }
    return 0;
}

/* ---- a batch ---- */

static int batch_reserve(struct learning *l, struct err *e) {
    if (l->rows >= l->in.n_positions) return 0;
    mem_free(l->gradient);
    mem_free(l->weight);
    mem_free(l->error);
    l->weight = NULL;
    l->error = NULL;
    l->rows = l->in.n_positions;
    l->gradient = mem_array(l->rows, l->width * sizeof *l->gradient, e);
    if (l->gradient) l->weight = mem_array(l->rows, sizeof *l->weight, e);
    if (l->weight) l->error = mem_array(l->rows, sizeof *l->error, e);
    if (!l->error) l->rows = 0;
    return l->error ? 0 : e->code;
}

static int batch_add(struct learning *l, const struct part *p, struct err *e) {
    size_t bytes = p->length * sizeof *p->tokens;
    int rc = buf_append(&l->tokens, p->tokens, bytes, e);
    if (!rc && p->types) rc = buf_append(&l->types, p->types, bytes, e);
    if (!rc) rc = buf_append(&l->lengths, &p->length, sizeof p->length, e);
    for (size_t i = p->first; !rc && i < p->first + p->length; i++) rc = buf_append(&l->at, &i, sizeof i, e);
    l->in.n_positions += p->length;
    l->in.n_seqs++;
    return rc;
}

/* Fills the batch with parts from *next on, before `end`. */
static int batch_take(struct learning *l, size_t *next, size_t end, struct err *e) {
    int rc = 0;
    l->tokens.len = l->types.len = l->lengths.len = l->at.len = 0;
    l->in = (struct model_input){0};
    while (!rc && *next < end && l->in.n_positions < BATCH) rc = batch_add(l, &l->parts[(*next)++], e);
    l->in.tokens = (const uint32_t *)l->tokens.data;
    l->in.lengths = (const uint32_t *)l->lengths.data;
    l->in.types = l->types.len ? (const uint32_t *)l->types.data : NULL;
    return rc ? rc : batch_reserve(l, e);
}

static size_t position_of(const struct learning *l, size_t row) {
    return ((const size_t *)l->at.data)[row];
}

/* ---- the loss ---- */

struct loss {
    const struct learning *l;
    const float *y;
};

/* w |y - target|^2 and its gradient; w = 1 / |target|^2, because the next norm removes the length of the stream. */
static void loss_row(void *ctx, size_t row, int thread) {
    const struct loss *j = ctx;
    const struct learning *l = j->l;
    size_t n = l->width;
    const float *y = j->y + row * n, *target = l->b->target + position_of(l, row) * n;
    float *gradient = l->gradient + row * n;
    double sum = 0, square = kernel_sum_squares(kernel_f32(target), n);
    (void)thread;
    l->weight[row] = square > 0 ? (float)(1 / square) : 0;
    for (size_t i = 0; i < n; i++) {
        float by = y[i] - target[i];
        sum += (double)by * by;
        gradient[i] = 2 * by * l->weight[row];
    }
    l->error[row] = sum * l->weight[row];
}

/* Runs the batch on a tape; returns the block's output, or NULL with e set. */
static struct grad_var *forward(struct learning *l, struct grad_tape *t, struct err *e) {
    grad_reset(t);
    size_t n = l->width;
    struct grad_var *x = grad_scratch(t, l->in.n_positions, n, DT_F32);
    if (!x) return grad_error(t, e) ? NULL : x;
    float *into = kernel_host(x->value, l->in.n_positions * n);
    for (size_t i = 0; i < l->in.n_positions; i++)
        memcpy(into + i * n, l->b->x + position_of(l, i) * n, n * sizeof *into);
    return model_graph_block(l->b->model, t, &l->in, l->b->layer, l->b->block, x, e);
}

static int add_loss(struct learning *l, struct grad_tape *t, struct grad_var *y, double *sum, struct err *e) {
    const float *host = grad_host_value(t, y);
    if (!host) return grad_error(t, e);
    parallel_for(l->in.n_positions, loss_row, &(struct loss){l, host});
    for (size_t i = 0; i < l->in.n_positions; i++) *sum += l->error[i];
    return 0;
}

/* The mean loss on the held-out sequences, or on all if none is held out. */
static int judge(struct learning *l, double *mean, struct err *e) {
    double sum = 0, rows = 0;
    int rc = 0;
    for (size_t next = l->n_learned < l->n ? l->n_learned : 0; !rc && next < l->n;) {
        rc = batch_take(l, &next, l->n, e);
        struct grad_var *y = rc ? NULL : forward(l, l->b->scratch, e);
        rc = y ? add_loss(l, l->b->scratch, y, &sum, e) : e->code;
        rows += (double)l->in.n_positions;
    }
    *mean = sum / rows;
    return rc;
}

/* ---- gradients ---- */

static void forget_gradients(struct learning *l) {
    for (size_t i = 0; i < l->b->n_matrices; i++) l->b->matrices[i].param->grad_begun = false;
}

static void put_probe(struct learning *l) {
    for (size_t i = 0; i < l->in.n_positions; i++) {
        float by = sqrtf(l->weight[i]);
        for (size_t j = 0; j < l->width; j++) l->gradient[i * l->width + j] = rng_u32(&l->rng) & 1 ? by : -by;
    }
}

/* Forward and backward pass of the next batch before sequence `end`; adds to the parameter gradients. */
static int run_batch(struct learning *l, size_t *next, size_t end, bool probing, double *sum, struct err *e) {
    struct grad_tape *t = l->b->record;
    int rc = batch_take(l, next, end, e);
    struct grad_var *y = rc ? NULL : forward(l, t, e);
    rc = y ? add_loss(l, t, y, sum, e) : e->code;
    if (rc) return rc;
    if (probing) put_probe(l);
    grad_add_to(t, y, l->gradient);
    grad_backward(t);
    return grad_error(t, e);
}

/* Estimates the curvature of each row of each matrix. */
static int probe(struct learning *l, struct err *e) {
    double ignored = 0, probed = 0;
    int rc = 0;
    for (size_t i = 0, next = 0; !rc && next < l->n_learned && i < PROBES; i++) {
        forget_gradients(l);
        rc = run_batch(l, &next, l->n_learned, true, &ignored, e);
        probed += (double)l->in.n_positions;
        for (size_t k = 0; !rc && k < l->b->n_matrices; k++)
            rounding_probe(&l->matrices[k], model_host_grad(l->b->matrices[k].param));
    }
    l->per_probed = positions_of(l, 0, l->n_learned) / probed;
    return rc;
}

/* Adds loss and gradients over training sequences first..end. */
static int run_parts(struct learning *l, size_t first, size_t end, double *sum, struct err *e) {
    int rc = 0;
    while (!rc && first < end) rc = run_batch(l, &first, end, false, sum, e);
    return rc;
}

/* Loss and gradients over all training sequences. If there is a sample, also what the others add to its share. */
static int measure_all(struct learning *l, double *sum, struct err *e) {
    bool sampled = l->n_sampled < l->n_learned;
    *sum = 0;
    forget_gradients(l);
    int rc = run_parts(l, 0, l->n_sampled, sum, e);
    l->beyond = -l->per_sampled * *sum;
    for (size_t i = 0; !rc && sampled && i < l->b->n_matrices; i++)
        rc = rounding_sampled(&l->matrices[i], l->per_sampled, model_host_grad(l->b->matrices[i].param), e);
    if (!rc) rc = run_parts(l, l->n_sampled, l->n_learned, sum, e);
    l->beyond += *sum;
    for (size_t i = 0; !rc && sampled && i < l->b->n_matrices; i++) {
        struct model_param *p = l->b->matrices[i].param;
        rounding_rest(&l->matrices[i], model_host_grad(p), model_host_value(p));
    }
    return rc;
}

/*
 * Loss and gradients over all training sequences, estimated from the sample: its own, scaled up, plus what the others
 * added at the start, to first order. At the start this is exact (Johnson & Zhang 2013, "Accelerating Stochastic Gradient
 * Descent using Predictive Variance Reduction").
 */
static int measure_sample(struct learning *l, double *sum, struct err *e) {
    *sum = 0;
    forget_gradients(l);
    int rc = run_parts(l, 0, l->n_sampled, sum, e);
    *sum = *sum * l->per_sampled + l->beyond;
    for (size_t i = 0; !rc && i < l->b->n_matrices; i++) {
        struct model_param *p = l->b->matrices[i].param;
        *sum += rounding_extend(&l->matrices[i], l->per_sampled, model_host_grad(p), model_host_value(p));
    }
    return rc;
}

static bool is_start(const struct learning *l) {
    return isinf(l->best);
}

static int measure(struct learning *l, double *sum, struct err *e) {
    return is_start(l) || l->n_sampled == l->n_learned ? measure_all(l, sum, e) : measure_sample(l, sum, e);
}

/* ---- steps ---- */

static int step(struct learning *l, struct err *e) {
    int rc = 0;
    for (size_t i = 0; !rc && i < l->b->n_matrices; i++) {
        struct model_param *p = l->b->matrices[i].param;
        rc = rounding_step(&l->matrices[i], l->damp * l->per_probed, model_host_grad(p), e);
        rounding_value(&l->matrices[i], model_host_value(p));
    }
    return rc;
}

/* Keeps the current state if no other had as small an error on the held-out sequences. */
static int keep_best(struct learning *l, struct learn_error *error, struct err *e) {
    double now;
    int rc = judge(l, &now, e);
    if (rc || !(now < error->after)) return rc;
    error->after = now;
    for (size_t i = 0; i < l->b->n_matrices; i++) rounding_keep(&l->matrices[i]);
    return 0;
}

/* A step's state: the base of the next one if the error fell, and otherwise undone with more damping. */
static int accept(struct learning *l, struct learn_error *error, struct err *e) {
    double now;
    bool first = is_start(l);
    int rc = measure(l, &now, e);
    if (rc) return rc;
    if (!(now < l->best)) {
        if (first) return 0; /* the error is not a number */
        l->damp *= DAMP_MORE;
        for (size_t k = 0; k < l->b->n_matrices; k++) rounding_back(&l->matrices[k]);
        return 0;
    }
    l->best = now;
    if (!first) l->damp *= DAMP_LESS;
    for (size_t i = 0; i < l->b->n_matrices; i++)
        rounding_accept(&l->matrices[i], model_host_grad(l->b->matrices[i].param));
    return first ? 0 : keep_best(l, error, e);
}

/* The state after the last step needs no gradient: the held-out sequences alone judge it. */
static int descend(struct learning *l, unsigned passes, struct learn_error *error, struct err *e) {
    l->best = INFINITY, l->damp = DAMP;
    int rc = judge(l, &error->before, e);
    error->after = error->before;
    if (!rc) rc = probe(l, e);
    for (unsigned i = 0; !rc && i < passes; i++) {
        rc = accept(l, error, e);
        if (rc || is_start(l)) return rc;
        rc = step(l, e);
        if (!rc && l->b->step) l->b->step(l->b->step_ctx, i + 1);
    }
    return rc ? rc : keep_best(l, error, e);
}

/* ---- setup ---- */

static int begin_matrix(struct learning *l, size_t i, struct err *e) {
    const struct learn_matrix *m = &l->b->matrices[i];
    struct model_param *p = m->param;
    size_t cols = tensor_row_elems(&p->desc);
    p->grad = kernel_alloc(l->b->model->device, DT_F32, p->n, e);
    if (!kernel_has_data(p->grad)) return err_prefix(e, "gradient of '%s'", p->desc.name);
    int rc = rounding_new(&l->matrices[i], m->dtype, p->n / cols, cols, m->gram, m->packed, e);
    return rc ? err_prefix(e, "tensor '%s'", p->desc.name) : 0;
}

static void end_matrix(struct learning *l, size_t i, bool put) {
    struct model_param *p = l->b->matrices[i].param;
    kernel_free(l->b->model->device, p->grad);
    p->grad = kernel_none(DT_F32);
    p->grad_begun = false;
    if (put) rounding_put(&l->matrices[i], l->b->matrices[i].packed);
    rounding_release(&l->matrices[i]);
}

static void learning_release(struct learning *l) {
    mem_free(l->parts);
    mem_free(l->matrices);
    mem_free(l->gradient);
    mem_free(l->weight);
    mem_free(l->error);
    buf_release(&l->tokens);
    buf_release(&l->types);
    buf_release(&l->lengths);
    buf_release(&l->at);
}

int learn_rounding(const struct learn_block *b, unsigned passes, struct learn_error *error, struct err *e) {
    struct learning l = {.b = b, .width = b->model->config.hidden, .rng = rng_init(b->layer, b->block)};
    size_t begun = 0;
    *error = (struct learn_error){0};
    int rc = list_parts(&l, e);
    if (!rc) rc = choose_sample(&l, e);
    if (!rc && !(l.matrices = mem_array(b->n_matrices, sizeof *l.matrices, e))) rc = e->code;
    while (!rc && begun < b->n_matrices) rc = begin_matrix(&l, begun++, e);
    if (!rc) rc = descend(&l, passes, error, e);
    for (size_t i = 0; i < begun; i++) end_matrix(&l, i, !rc);
    learning_release(&l);
    return rc;
}

int learn_run(const struct learn_block *b, float *y, struct err *e) {
    struct learning l = {.b = b, .width = b->model->config.hidden};
    int rc = list_parts(&l, e);
    for (size_t i = 0; !rc && i < l.n; i++) {
        size_t next = i;
        rc = batch_take(&l, &next, i + 1, e);
        struct grad_var *out = rc ? NULL : forward(&l, b->scratch, e);
        rc = out ? 0 : e->code;
        if (out) kernel_download(y + l.parts[i].first * l.width, out->value, out->rows * out->cols);
    }
    learning_release(&l);
    return rc;
}
