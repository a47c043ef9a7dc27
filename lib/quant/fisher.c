/* How much the distribution of the next token hangs on each matrix: traces of the Fisher information, by sampled labels. */
#include "lib/quant/quant.h"

#include <math.h>

struct draw {
    uint64_t seed, position; /* of the block's first row among all positions */
};

struct rows {
    const struct draw *draw;
    size_t first, vocab;
    const float *logits;
    float *dlogits; /* may be the same memory */
};

/* softmax(x) minus one at a label drawn from it: the gradient of -log p(label). */
static void draw_row(void *ctx, size_t r, int thread) {
    const struct rows *j = ctx;
    const float *x = j->logits + r * j->vocab;
    float *d = j->dlogits + r * j->vocab;
    struct rng random = rng_init(j->draw->seed, j->draw->position + j->first + r);
    float top = x[0];
    double sum = 0, seen = 0;
    size_t label = 0;
    (void)thread;
    for (size_t i = 1; i < j->vocab; i++) top = x[i] > top ? x[i] : top;
    for (size_t i = 0; i < j->vocab; i++) sum += d[i] = expf(x[i] - top);
    double at = rng_f64(&random) * sum;
    for (size_t i = 0; i < j->vocab; i++) {
        if (d[i] > 0 && seen <= at) label = i;
        seen += d[i];
    }
    for (size_t i = 0; i < j->vocab; i++) d[i] = (float)(d[i] / sum);
    d[label] -= 1;
}

static int draw_labels(void *ctx, size_t first, size_t rows, size_t vocab, struct kernel_array logits,
                       struct kernel_array dlogits, struct err *e) {
    struct rows j = {ctx, first, vocab, kernel_host(logits, rows * vocab), kernel_host(dlogits, rows * vocab)};
    (void)e;
    parallel_for(rows, draw_row, &j);
    return 0;
}

static int add_sequence(struct model *m, struct grad_tape *t, const struct model_input *one, const struct draw *d,
                        double *sum, struct err *e) {
    grad_reset(t);
    for (size_t i = 0; i < m->n_params; i++) m->params[i].grad_begun = false;
    struct grad_var *h = model_graph(m, t, one, NULL, NULL, e);
    struct grad_head head = model_logits_head(m, t);
    if (h && grad_head(t, h, &head, draw_labels, (void *)d)) grad_backward(t);
    int rc = grad_error(t, e);
    for (size_t i = 0; !rc && i < m->n_params; i++)
        if (m->params[i].grad_begun) sum[i] += kernel_sum_squares(m->params[i].grad, m->params[i].n);
    return rc;
}

int quant_fisher_traces(struct model *m, const struct model_input *in, uint64_t seed, double *out, struct err *e) {
    struct grad_tape *t = NULL;
    struct draw d = {.seed = seed};
    int rc = model_check_next_token(&m->config, e);
    if (!rc) rc = model_enable_grad(m, e);
    if (!rc) rc = grad_tape_new(&t, m->device, true, DT_F32, e);
    for (size_t i = 0; i < m->n_params; i++) out[i] = 0;
    for (size_t s = 0; !rc && s < in->n_seqs; s++) {
        struct model_input one = {in->lengths[s], 1, in->tokens + d.position, in->lengths + s, NULL};
        rc = add_sequence(m, t, &one, &d, out, e);
        d.position += in->lengths[s];
    }
    grad_tape_free(t);
    for (size_t i = 0; i < m->n_params; i++) out[i] /= (double)d.position;
    return rc;
}
