/* Which layers can be missed, by the true divergence of the model without them. */
#include <math.h>
#include <string.h>

#include "lib/prune/prune.h"

struct search {
    const struct prune_divergence *o;
    size_t positions, hidden, columns;
    uint32_t *kept; /* layers, ascending */
    uint32_t n_kept;
    float *prefix; /* [n_layers + 1][positions][hidden]: what comes into each layer that is kept, and out of the last */
    float *states; /* [positions][hidden] */
    float *reference; /* [positions][columns] logits of the whole model */
    double *rows;     /* [positions] divergence */
    uint64_t done;
    struct arena memory;
};

static float *prefix_at(const struct search *s, size_t i) {
    return s->prefix + i * s->positions * s->hidden;
}

/* States into each layer from the i-th that is kept on. */
static int run_base(struct search *s, size_t i, struct err *e) {
    const struct prune_divergence *o = s->o;
    int rc = 0;
    for (; !rc && i < s->n_kept; i++)
        rc = model_infer_layers(o->model, o->scratch, o->in, prefix_at(s, i), &s->kept[i], 1, prefix_at(s, i + 1), e);
    return rc;
}

static int keep_reference(void *ctx, size_t first, size_t rows, size_t vocab, float *logits, struct err *e) {
    struct search *s = ctx;
    (void)e;
    memcpy(s->reference + first * vocab, logits, rows * vocab * sizeof *logits);
    return 0;
}

struct block {
    struct search *s;
    const float *logits;
    size_t first;
};

static double log_sum(const float *x, size_t n, float *top) {
    double sum = 0;
    *top = x[0];
    for (size_t i = 1; i < n; i++) *top = x[i] > *top ? x[i] : *top;
    for (size_t i = 0; i < n; i++) sum += exp((double)x[i] - *top);
    return log(sum) + *top;
}

/* sum p (log p - log q) */
static void diverge_row(void *ctx, size_t r, int thread) {
    const struct block *b = ctx;
    size_t n = b->s->columns;
    const float *p = b->s->reference + (b->first + r) * n, *q = b->logits + r * n;
    float top;
    double of_p = log_sum(p, n, &top), of_q = log_sum(q, n, &top), sum = 0;
    (void)thread;
    for (size_t i = 0; i < n; i++) {
        double log_p = p[i] - of_p;
        sum += exp(log_p) * (log_p - (q[i] - of_q));
    }
    b->s->rows[b->first + r] = sum;
}

static int add_divergence(void *ctx, size_t first, size_t rows, size_t vocab, float *logits, struct err *e) {
    struct block b = {ctx, logits, first};
    (void)vocab, (void)e;
    parallel_for(rows, diverge_row, &b);
    return 0;
}

/* The mean divergence without the i-th layer that is kept. */
static int try_without(struct search *s, size_t i, double *kl, struct err *e) {
    const struct prune_divergence *o = s->o;
    int rc = model_infer_layers(o->model, o->scratch, o->in, prefix_at(s, i), s->kept + i + 1, s->n_kept - i - 1,
                                s->states, e);
    if (!rc) rc = model_infer_head(o->model, o->scratch, o->in, s->states, add_divergence, s, e);
    *kl = 0;
    for (size_t r = 0; r < s->positions; r++) *kl += s->rows[r] / (double)s->positions;
    if (!rc && o->progress) o->progress(o->progress_ctx, (uint32_t)++s->done);
    if (!rc && !isfinite(*kl)) return err_set(e, ERR_DATA, "without layer %u the divergence is %g", s->kept[i], *kl);
    return rc;
}

static int drop_one(struct search *s, uint32_t *layer, double *kl, struct err *e) {
    size_t best = 0;
    *kl = INFINITY;
    for (size_t i = 0; i < s->n_kept; i++) {
        double without;
        if (try_without(s, i, &without, e)) return e->code;
        if (without < *kl) *kl = without, best = i;
    }
    *layer = s->kept[best];
    memmove(s->kept + best, s->kept + best + 1, (s->n_kept - best - 1) * sizeof *s->kept);
    s->n_kept--;
    return run_base(s, best, e);
}

static int allocate(struct search *s, struct err *e) {
    const struct model_config *c = &s->o->model->config;
    uint64_t floats;
    s->positions = s->o->in->n_positions, s->hidden = c->hidden, s->columns = model_columns(s->o->model);
    if (!u64_mul((uint64_t)s->positions * s->hidden, c->n_layers + 1, &floats))
        return err_set(e, ERR_USAGE, "states of %zu positions are too large", s->positions);
    s->kept = arena_array(&s->memory, c->n_layers, sizeof *s->kept, e);
    s->prefix = s->kept ? mem_array(floats, sizeof *s->prefix, e) : NULL;
    s->states = s->prefix ? mem_array(s->positions, s->hidden * sizeof *s->states, e) : NULL;
    s->reference = s->states ? mem_array(s->positions, s->columns * sizeof *s->reference, e) : NULL;
    s->rows = s->reference ? mem_array(s->positions, sizeof *s->rows, e) : NULL;
    if (!s->rows) return err_prefix(e, "states and logits of %zu positions", s->positions);
    s->n_kept = c->n_layers;
    for (uint32_t i = 0; i < c->n_layers; i++) s->kept[i] = i;
    return 0;
}

int prune_layers_by_divergence(const struct prune_divergence *o, uint32_t n, uint32_t *layers, double *kl,
                               struct err *e) {
    struct search s = {.o = o};
    const struct model_config *c = &o->model->config;
    int rc = model_check_next_token(c, e);
    if (!rc && n >= c->n_layers) rc = err_set(e, ERR_USAGE, "cannot drop %u layers of %u", n, c->n_layers);
    if (!rc) rc = allocate(&s, e);
    if (!rc) rc = model_infer_layers(o->model, o->scratch, o->in, NULL, NULL, 0, s.prefix, e);
    if (!rc) rc = run_base(&s, 0, e);
    if (!rc) rc = model_infer_head(o->model, o->scratch, o->in, prefix_at(&s, s.n_kept), keep_reference, &s, e);
    for (uint32_t i = 0; !rc && i < n; i++) rc = drop_one(&s, &layers[i], &kl[i], e);
    mem_free(s.prefix);
    mem_free(s.states);
    mem_free(s.reference);
    mem_free(s.rows);
    arena_release(&s.memory);
    return rc;
}
