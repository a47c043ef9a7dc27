/* Measures how sensitive the next-token distribution is to each matrix: traces of the Fisher information, by sampled
 * labels. */
#include "lib/quant/quant.h"

static int add_squares(void *ctx, const struct model *m, struct err *e) {
    double *sum = ctx;
    (void)e;
    for (size_t i = 0; i < m->n_params; i++)
        if (m->params[i].grad_begun) sum[i] += kernel_sum_squares(m->params[i].grad, m->params[i].n);
    return 0;
}

int quant_fisher_traces(struct model *m, const struct model_input *in, uint64_t seed, double *out, struct err *e) {
    struct grad_tape *t = NULL;
    struct stats_labels labels = {.drawn = true, .seed = seed};
    int rc = model_check_next_token(&m->config, e);
    if (!rc) rc = model_enable_grad(m, e);
    if (!rc) rc = grad_tape_new(&t, m->device, true, DT_F32, e);
    for (size_t i = 0; i < m->n_params; i++) out[i] = 0;
    if (!rc) rc = stats_each_gradient(m, t, in, &labels, add_squares, out, e);
    grad_tape_free(t);
    for (size_t i = 0; i < m->n_params; i++) out[i] /= (double)in->n_positions;
    return rc;
}
