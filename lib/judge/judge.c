/* The divergence of a changed model from what it was, from any layer on. */
#include <math.h>
#include <string.h>

#include "lib/judge/judge.h"

static float *into(const struct judge *j, size_t i) {
    return j->into + i * j->positions * j->hidden;
}

int judge_base(struct judge *j, size_t i, struct err *e) {
    int rc = 0;
    if (i == JUDGE_INPUT) {
        rc = model_infer_layers(j->model, j->scratch, j->in, NULL, NULL, 0, j->into, e);
        i = 0;
    }
    for (; !rc && i < j->n; i++)
        rc = model_infer_layers(j->model, j->scratch, j->in, into(j, i), &j->layers[i], 1, into(j, i + 1), e);
    return rc;
}

static int keep_reference(void *ctx, size_t first, size_t rows, size_t vocab, float *logits, struct err *e) {
    struct judge *j = ctx;
    (void)e;
    memcpy(j->reference + first * vocab, logits, rows * vocab * sizeof *logits);
    return 0;
}

/* ---- divergence -------------------------------------------------------------------------------------------------- */

struct block {
    const struct judge *j;
    const float *logits;
    size_t first; /* position of its first row */
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
    size_t n = b->j->columns;
    const float *p = b->j->reference + (b->first + r) * n, *q = b->logits + r * n;
    float top;
    double of_p = log_sum(p, n, &top), of_q = log_sum(q, n, &top), sum = 0;
    (void)thread;
    for (size_t i = 0; i < n; i++) {
        double log_p = p[i] - of_p;
        sum += exp(log_p) * (log_p - (q[i] - of_q));
    }
    b->j->rows[b->first + r] = sum;
}

struct judged {
    const struct judge *j;
    size_t first; /* position at which the part begins */
};

static int add_divergence(void *ctx, size_t first, size_t rows, size_t vocab, float *logits, struct err *e) {
    const struct judged *p = ctx;
    struct block b = {p->j, logits, p->first + first};
    (void)vocab, (void)e;
    parallel_for(rows, diverge_row, &b);
    return 0;
}

/* The sequences of a part, and the position of the first. */
static struct model_input take_part(const struct judge *j, const struct judge_part *part, size_t *first) {
    struct model_input in = *j->in;
    *first = 0;
    if (!part) return in;
    for (size_t i = 0; i < part->first; i++) *first += in.lengths[i];
    in.lengths += part->first;
    in.tokens += *first;
    in.types = in.types ? in.types + *first : NULL;
    in.n_seqs = part->n;
    in.n_positions = 0;
    for (size_t i = 0; i < part->n; i++) in.n_positions += in.lengths[i];
    return in;
}

int judge_try(struct judge *j, size_t i, const uint32_t *layers, size_t n, const struct judge_part *part, double *kl,
              struct err *e) {
    struct judged p = {j, 0};
    struct model_input in = take_part(j, part, &p.first);
    const float *from = i == JUDGE_INPUT ? NULL : into(j, i) + p.first * j->hidden;
    int rc = model_infer_layers(j->model, j->scratch, &in, from, layers, n, j->states, e);
    if (!rc) rc = model_infer_head(j->model, j->scratch, &in, j->states, add_divergence, &p, e);
    *kl = 0;
    for (size_t r = 0; r < in.n_positions; r++) *kl += j->rows[p.first + r] / (double)in.n_positions;
    return rc;
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

static int allocate(struct judge *j, struct err *e) {
    const struct model_config *c = &j->model->config;
    uint64_t floats;
    j->positions = j->in->n_positions, j->hidden = c->hidden, j->columns = model_columns(j->model);
    if (!u64_mul((uint64_t)j->positions * j->hidden, c->n_layers + 1, &floats))
        return err_set(e, ERR_USAGE, "states of %zu positions are too large", j->positions);
    j->layers = arena_array(&j->memory, c->n_layers, sizeof *j->layers, e);
    j->into = j->layers ? mem_array(floats, sizeof *j->into, e) : NULL;
    j->states = j->into ? mem_array(j->positions, j->hidden * sizeof *j->states, e) : NULL;
    j->reference = j->states ? mem_array(j->positions, j->columns * sizeof *j->reference, e) : NULL;
    j->rows = j->reference ? mem_array(j->positions, sizeof *j->rows, e) : NULL;
    if (!j->rows) return err_prefix(e, "states and logits of %zu positions", j->positions);
    j->n = c->n_layers;
    for (uint32_t i = 0; i < c->n_layers; i++) j->layers[i] = i;
    return 0;
}

int judge_begin(struct judge *j, struct err *e) {
    int rc = model_check_next_token(&j->model->config, e);
    if (!rc) rc = allocate(j, e);
    if (!rc) rc = judge_base(j, JUDGE_INPUT, e);
    return rc ? rc : model_infer_head(j->model, j->scratch, j->in, into(j, j->n), keep_reference, j, e);
}

void judge_release(struct judge *j) {
    mem_free(j->into);
    mem_free(j->states);
    mem_free(j->reference);
    mem_free(j->rows);
    arena_release(&j->memory);
}
