/* Cross-entropy of the labels: plain language modelling. */
#include "lib/losses/losses_internal.h"

static int logits(struct loss *l, struct loss_block *b, struct err *e) {
    struct kernel_loss how = {1, 0, b->weight};
    struct kernel_target target = {.label = b->labels};
    (void)l;
    return loss_distill(b, &how, &target, NULL, b->values, e);
}

static const struct loss_key keys[] = {{0}};

const struct loss_type loss_ce = {
    .name = "ce",
    .summary = "cross-entropy of the labels, without a teacher",
    .formula = "-ln p_label, p = softmax(x)",
    .source = "maximum likelihood; Bengio et al. 2003, A neural probabilistic language model",
    .keys = keys,
    .logits = logits,
};
