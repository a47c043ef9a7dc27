/* Gradients into weights: the mean over the step, clipping, the optimizer. */
#include <math.h>

#include "lib/distill/distill_internal.h"

int trainer_update(struct trainer *t, struct err *e) {
    struct distill_progress *p = &t->progress;
    double labelled = t->step_labelled ? (double)t->step_labelled : 1; /* only one-token sequences: all sums are 0 */
    double scale = 1 / labelled, norm = train_gradient_norm(&t->set, scale);
    if (!isfinite(norm))
        return err_set(e, ERR_DATA, "step %llu: the gradient is not finite (sequences from %llu on; lower --lr?)",
                       (unsigned long long)p->step + 1, (unsigned long long)t->step_first_seq);
    if (t->o.clip > 0 && norm > t->o.clip) scale *= t->o.clip / norm;
    p->step++;
    p->lr = train_lr(&t->o.plan, p->step);
    train_step(&t->set, p->step, p->lr, scale);

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
