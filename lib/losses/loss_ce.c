/* Cross-entropy of the labels: plain language modelling. */
#include "lib/losses/losses_internal.h"

static int logits(struct loss *l, struct loss_block *b, struct err *e) {
    struct kernel_loss how = {1, 0, b->weight};
    struct kernel_target target = {.label = b->labels};
    float *dx = b->dlogits ? loss_block_scratch(b, e) : NULL;
    (void)l;
    if (b->dlogits && !dx) return e->code;
    kernel_distill_loss(&how, &target, b->row_weight, kernel_f32(b->logits), b->rows, b->vocab, NULL, b->values,
                        kernel_f32(dx));
    if (dx) kernel_add(kernel_f32(b->dlogits), kernel_f32(dx), b->rows * b->vocab);
    return 0;
}

static const struct loss_key keys[] = {{0}};

const struct loss_type loss_ce = {
    .name = "ce",
    .summary = "cross-entropy of the labels, without a teacher",
    .formula = "-ln p_label, p = softmax(x)",
    .source = "maximum likelihood; Bengio et al. 2003, A neural probabilistic language model, section 2",
    .keys = keys,
    .logits = logits,
};
