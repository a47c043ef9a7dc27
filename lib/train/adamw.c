/* AdamW as one fused kernel. */
#include "lib/train/train_internal.h"

void adamw_step(const struct train_update *u, struct param *p) {
    struct kernel_adamw how = {.lr = (float)u->lr,
                               .beta1 = (float)u->o->beta1,
                               .beta2 = (float)u->o->beta2,
                               .eps = (float)u->o->eps,
                               .weight_decay = (float)u->decay,
                               .grad_scale = (float)u->scale,
                               .step = u->step,
                               .stream = p->stream};
    kernel_adamw(&how, p->value, p->moments[0], p->moments[1], p->grad, p->n);
}

/* The size of Adam's steps does not depend on the gradient's, so the output of a wider sum of inputs moves more. */
double adamw_mup(const struct param *p) {
    return 1 / p->col_width;
}
