/* Computes the gradients of a model's loss sequence by sequence, for gradient-based weight scores and
 * the Fisher information. */
#include "lib/stats/stats.h"

#include <math.h>

struct pass {
    const struct stats_labels *labels;
    const uint32_t *tokens; /* of the sequence; the last one predicts nothing */
    size_t n;
    uint64_t first; /* index of the sequence's first position */
};

struct rows {
    const struct pass *pass;
    size_t first, vocab;
    const float *logits;
    float *dlogits; /* may alias logits */
};

static size_t draw(const struct pass *p, size_t position, const float *weights, size_t vocab, double sum) {
    struct rng random = rng_init(p->labels->seed, p->first + position);
    double at = rng_f64(&random) * sum, seen = 0;
    size_t label = 0;
    for (size_t i = 0; i < vocab; i++) {
        if (weights[i] > 0 && seen <= at) label = i;
        seen += weights[i];
    }
    return label;
}

/* Row of softmax(x) minus one at the label: the gradient of -log p(label) with respect to the logits. */
static void differ_row(void *ctx, size_t r, int thread) {
    const struct rows *j = ctx;
    const float *x = j->logits + r * j->vocab;
    float *d = j->dlogits + r * j->vocab;
    float top = x[0];
    double sum = 0;
    size_t position = j->first + r;
    bool none = !j->pass->labels->drawn && position + 1 == j->pass->n;
    (void)thread;
    for (size_t i = 1; i < j->vocab; i++) top = x[i] > top ? x[i] : top;
    for (size_t i = 0; i < j->vocab; i++) sum += d[i] = expf(x[i] - top);
    size_t label = j->pass->labels->drawn ? draw(j->pass, position, d, j->vocab, sum)
                   : none                 ? 0
                                          : j->pass->tokens[position + 1];
    for (size_t i = 0; i < j->vocab; i++) d[i] = none ? 0 : (float)(d[i] / sum);
    if (!none) d[label] -= 1;
}

static int differ(void *ctx, size_t first, size_t rows, size_t vocab, struct kernel_array logits,
                  struct kernel_array dlogits, struct err *e) {
    struct rows j = {ctx, first, vocab, kernel_host(logits, rows * vocab), kernel_host(dlogits, rows * vocab)};
    (void)e;
    parallel_for(rows, differ_row, &j);
    return 0;
}

static int one_sequence(struct model *m, struct grad_tape *t, const struct model_input *one, struct pass *p,
                        struct err *e) {
    grad_reset(t);
    for (size_t i = 0; i < m->n_params; i++) m->params[i].grad_begun = false;
    struct grad_var *h = model_graph(m, t, one, NULL, NULL, e);
    struct grad_head head = model_logits_head(m, t);
    if (h && grad_head(t, h, &head, differ, p)) grad_backward(t);
    return grad_error(t, e);
}

int stats_each_gradient(struct model *m, struct grad_tape *t, const struct model_input *in,
                        const struct stats_labels *labels, stats_gradient_fn *fn, void *ctx, struct err *e) {
    size_t at = 0;
    int rc = model_check_next_token(&m->config, e);
    for (size_t s = 0; !rc && s < in->n_seqs; s++) {
        struct model_input one = model_input_part(in, s, 1, at);
        struct pass p = {labels, one.tokens, one.n_positions, labels->first + at};
        rc = one_sequence(m, t, &one, &p, e);
        if (!rc) rc = fn(ctx, m, e);
        at += one.n_positions;
    }
    return rc;
}
