/* The optimizer step: mean gradient, clipping, update; and what is recorded of it. */
#include <math.h>
#include <string.h>

#include "lib/distill/distill_internal.h"

void trainer_note_losses(struct trainer *t) {
    struct distill_progress *p = &t->progress;
    p->n_losses = t->losses.n;
    for (size_t i = 0; i < p->n_losses; i++) {
        memcpy(p->losses[i].name, t->losses.items[i].column, sizeof p->losses[i].name);
        p->losses[i].value = t->losses.items[i].value;
    }
}

/* Records the gradient's values for the log. */
static void note_gradient(struct trainer *t, double norm, double labelled, double scale) {
    struct distill_progress *p = &t->progress;
    p->grad_norm = norm;
    for (size_t i = 0; i <= t->o.train.n_groups; i++) p->group_norm[i] = sqrt(t->set.group_square[i]) * scale;
    double part = (double)t->first_labelled;
    if (part > 0) train_noise_add(&p->noise, t->first_square / (part * part), part, norm * norm, labelled);
    t->first_labelled = 0;
}

int trainer_update(struct trainer *t, struct err *e) {
    struct distill_progress *p = &t->progress;
    double labelled = t->step_labelled ? (double)t->step_labelled : 1; /* only one-token sequences: all sums are 0 */
    double scale = 1 / labelled, norm = train_gradient_norm(&t->set, scale);
    if (!isfinite(norm))
        return err_set(e, ERR_DATA, "step %llu: the gradient is not finite (sequences from %llu on; lower --lr?)",
                       (unsigned long long)p->step + 1, (unsigned long long)t->step_first_seq);
    note_gradient(t, norm, labelled, scale);
    if (t->o.clip > 0 && norm > t->o.clip) scale *= t->o.clip / norm;
    p->step++;
    p->lr = train_lr(&t->o.plan, p->step);
    train_step(&t->set, p->step, p->lr, scale);
    if (train_quantize(&t->set, p->step, e)) return err_prefix(e, "step %llu", (unsigned long long)p->step);

    p->loss = loss_list_total(&t->losses, labelled);
    loss_list_end_step(&t->losses, labelled);
    trainer_note_losses(t);
    p->positions += t->step_positions;
    p->first_seq = t->step_first_seq;
    t->step_positions = t->step_labelled = 0;
    t->saved = (struct place){t->sequences, digest_get(t->seen)};
    return 0;
}
