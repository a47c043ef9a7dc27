/* Gradients into weights: the mean over the step, clipping, AdamW. */
#include <math.h>

#include "lib/distill/distill_internal.h"

/* A parameter that had no part in the step has no gradient. */
static void complete_gradients(const struct trainer *t) {
    for (size_t i = 0; i < t->m->n_params; i++) {
        struct model_param *p = &t->m->params[i];
        if (!p->grad_begun) kernel_fill(p->grad, p->n, 0);
        p->grad_begun = true;
    }
}

/* Norm of the mean gradient over all parameters. */
static double gradient_norm(const struct trainer *t, double scale) {
    double sum = 0;
    for (size_t i = 0; i < t->m->n_params; i++) sum += kernel_sum_squares(t->m->params[i].grad, t->m->params[i].n);
    return sqrt(sum) * scale;
}

static void apply(struct trainer *t, double lr, double scale) {
    struct kernel_adamw how = {.lr = (float)lr,
                               .beta1 = (float)t->o.beta1,
                               .beta2 = (float)t->o.beta2,
                               .eps = (float)t->o.eps,
                               .grad_scale = (float)scale,
                               .step = t->progress.step};
    for (size_t i = 0; i < t->m->n_params; i++) {
        struct model_param *p = &t->m->params[i];
        how.stream = i;
        how.weight_decay = trainer_decays(p->slot.role) ? (float)t->o.weight_decay : 0;
        kernel_adamw(&how, p->value, t->m1[i], t->m2[i], p->grad, p->n);
    }
}

int trainer_update(struct trainer *t, struct err *e) {
    struct distill_progress *p = &t->progress;
    double labelled = t->step_labelled ? (double)t->step_labelled : 1; /* only one-token sequences: all sums are 0 */
    complete_gradients(t);
    double scale = 1 / labelled, norm = gradient_norm(t, scale);
    if (!isfinite(norm))
        return err_set(e, ERR_DATA, "step %llu: the gradient is not finite (sequences from %llu on; lower --lr?)",
                       (unsigned long long)p->step + 1, (unsigned long long)t->step_first_seq);
    if (t->o.clip > 0 && norm > t->o.clip) scale *= t->o.clip / norm;
    p->step++;
    p->lr = distill_lr(&t->o.plan, p->step);
    apply(t, p->lr, scale);
    for (size_t i = 0; i < t->m->n_params; i++) t->m->params[i].grad_begun = false;

    const struct distill_loss *l = &t->o.loss;
    p->kl = t->step_kl / labelled;
    p->ce = t->step_ce / labelled;
    p->loss = l->kl_weight * l->temperature * l->temperature * p->kl + l->ce_weight * p->ce;
    p->grad_norm = norm;
    p->positions += t->step_positions;
    p->first_seq = t->step_first_seq;
    t->step_kl = t->step_ce = 0;
    t->step_positions = t->step_labelled = 0;
    t->saved = (struct place){t->sequences, digest_get(t->seen)};
    return 0;
}
