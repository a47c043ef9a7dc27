/* The divergence of a model's predictions from a reference: another model's, or its own before a change from some layer
 * on. */
#include <math.h>
#include <string.h>

#include "lib/judge/judge.h"

/* ---- divergence -------------------------------------------------------------------------------------------------- */

struct block {
    const struct judge_reference *of;
    const float *logits;
    size_t first; /* position of its first row in the input */
};

static double log_sum(const float *x, size_t n, float *top) {
    double sum = 0;
    *top = x[0];
    for (size_t i = 1; i < n; i++) *top = x[i] > *top ? x[i] : *top;
    for (size_t i = 0; i < n; i++) sum += exp((double)x[i] - *top);
    return log(sum) + *top;
}

/* sum p (log p - log q), in f64 */
static void diverge_row(void *ctx, size_t r, int thread) {
    const struct block *b = ctx;
    size_t n = b->of->columns;
    const float *p = b->of->logits + (b->first + r) * n, *q = b->logits + r * n;
    float top;
    double of_p = log_sum(p, n, &top), of_q = log_sum(q, n, &top), sum = 0;
    (void)thread;
    for (size_t i = 0; i < n; i++) {
        double log_p = p[i] - of_p;
        sum += exp(log_p) * (log_p - (q[i] - of_q));
    }
    b->of->rows[b->first + r] = sum;
}

struct judged {
    const struct judge_reference *of;
    size_t first; /* position where the part begins */
};

static int add_divergence(void *ctx, size_t first, size_t rows, size_t vocab, float *logits, struct err *e) {
    const struct judged *p = ctx;
    struct block b = {p->of, logits, p->first + first};
    (void)vocab, (void)e;
    parallel_for(rows, diverge_row, &b);
    return 0;
}

static double mean_of(const struct judged *p, size_t positions) {
    double kl = 0;
    for (size_t r = 0; r < positions; r++) kl += p->of->rows[p->first + r] / (double)positions;
    return kl;
}

/* ---- predictions of a model -------------------------------------------------------------------------------------- */

static int keep_logits(void *ctx, size_t first, size_t rows, size_t vocab, float *logits, struct err *e) {
    struct judge_reference *of = ctx;
    (void)e;
    memcpy(of->logits + first * vocab, logits, rows * vocab * sizeof *logits);
    return 0;
}

/* Allocates a reference without computing its logits. */
static int reference_allocate(struct judge_reference **out, const struct model *m, const struct model_input *in,
                              struct err *e) {
    int rc = model_check_next_token(&m->config, e);
    struct judge_reference *of = rc ? NULL : mem_zalloc(sizeof *of, e);
    if (!of) return e->code;
    *out = of;
    of->in = in, of->positions = in->n_positions, of->columns = model_columns(m);
    of->logits = mem_array(of->positions, of->columns * sizeof *of->logits, e);
    of->rows = of->logits ? mem_array(of->positions, sizeof *of->rows, e) : NULL;
    return of->rows ? 0 : err_prefix(e, "logits of %zu positions", of->positions);
}

int judge_reference_new(struct judge_reference **out, struct model *m, struct grad_tape *scratch,
                        const struct model_input *in, struct err *e) {
    struct judge_reference *of = NULL;
    int rc = reference_allocate(&of, m, in, e);
    if (!rc) rc = model_infer(m, scratch, in, NULL, NULL, keep_logits, of, e);
    if (rc)
        judge_reference_free(of);
    else
        *out = of;
    return rc;
}

int judge_reference_compare(struct judge_reference *of, struct model *m, struct grad_tape *scratch, double *kl,
                            struct err *e) {
    struct judged p = {of, 0};
    if (model_columns(m) != of->columns)
        return err_set(e, ERR_USAGE, "%u logits and %zu cannot be compared", model_columns(m), of->columns);
    int rc = model_infer(m, scratch, of->in, NULL, NULL, add_divergence, &p, e);
    *kl = rc ? INFINITY : mean_of(&p, of->positions);
    return rc;
}

void judge_reference_free(struct judge_reference *of) {
    if (!of) return;
    mem_free(of->logits);
    mem_free(of->rows);
    mem_free(of);
}

/* ---- candidates that differ from some layer on ------------------------------------------------------------------- */

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

#define PARTS 4

size_t judge_parts(const struct judge *j) {
    return j->in->n_seqs < PARTS ? j->in->n_seqs : PARTS;
}

struct judge_part judge_part_at(const struct judge *j, uint64_t number) {
    size_t n = j->in->n_seqs, parts = judge_parts(j), at = (size_t)(number % parts), first = n * at / parts;
    return (struct judge_part){first, n * (at + 1) / parts - first};
}

/* The sequences of a part, and the position of the first one. */
static struct model_input take_part(const struct judge *j, const struct judge_part *part, size_t *first) {
    *first = 0;
    if (!part) return *j->in;
    for (size_t i = 0; i < part->first; i++) *first += j->in->lengths[i];
    return model_input_part(j->in, part->first, part->n, *first);
}

int judge_try(struct judge *j, size_t i, const uint32_t *layers, size_t n, const struct judge_part *part, double *kl,
              struct err *e) {
    struct judged p = {j->first, 0};
    struct model_input in = take_part(j, part, &p.first);
    const float *from = i == JUDGE_INPUT ? NULL : into(j, i) + p.first * j->hidden;
    int rc = model_infer_layers(j->model, j->scratch, &in, from, layers, n, j->states, e);
    if (!rc) rc = model_infer_head(j->model, j->scratch, &in, j->states, add_divergence, &p, e);
    *kl = rc ? INFINITY : mean_of(&p, in.n_positions);
    return rc;
}

static int allocate(struct judge *j, struct err *e) {
    const struct model_config *c = &j->model->config;
    uint64_t floats;
    j->positions = j->in->n_positions, j->hidden = c->hidden;
    if (!u64_mul((uint64_t)j->positions * j->hidden, c->n_layers + 1, &floats))
        return err_set(e, ERR_USAGE, "states of %zu positions are too large", j->positions);
    j->layers = arena_array(&j->memory, c->n_layers, sizeof *j->layers, e);
    j->into = j->layers ? mem_array(floats, sizeof *j->into, e) : NULL;
    j->states = j->into ? mem_array(j->positions, j->hidden * sizeof *j->states, e) : NULL;
    if (!j->states) return err_prefix(e, "states of %zu positions", j->positions);
    j->n = c->n_layers;
    for (uint32_t i = 0; i < c->n_layers; i++) j->layers[i] = i;
    return 0;
}

int judge_begin(struct judge *j, struct err *e) {
    int rc = reference_allocate(&j->first, j->model, j->in, e);
    if (!rc) rc = allocate(j, e);
    if (!rc) rc = judge_base(j, JUDGE_INPUT, e);
    return rc ? rc : model_infer_head(j->model, j->scratch, j->in, into(j, j->n), keep_logits, j->first, e);
}

void judge_release(struct judge *j) {
    mem_free(j->into);
    mem_free(j->states);
    judge_reference_free(j->first);
    arena_release(&j->memory);
}
