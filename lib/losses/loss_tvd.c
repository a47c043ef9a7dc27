/* Total variation distance. */
#include "lib/losses/losses_internal.h"

static int logits(struct loss *l, struct loss_block *b, struct err *e) {
    return loss_divergence(l, b, DIVERGENCE_VARIATION, 0, 0, e);
}

static const struct loss_key keys[] = {LOSS_TEMPERATURE, {0}};

const struct loss_type loss_tvd = {
    .name = "tvd",
    .summary = "total variation distance",
    .formula = "1/2 sum_i |t_i - p_i|; without T^2",
    .source = "Wen, Li, Du, Mou 2023, f-divergence minimization for sequence-level knowledge distillation "
              "(arXiv 2307.15190); token by token, on the data",
    .keys = keys,
    .encodings = LOSS_ON_PARTITION,
    .on_sparse = "ghost: over its entries and the rest as one token, a lower bound by the data processing inequality",
    .logits = logits,
};
