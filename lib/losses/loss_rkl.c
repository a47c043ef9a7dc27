/* Reverse Kullback-Leibler divergence, which is mode-seeking. */
#include "lib/losses/losses_internal.h"

static int logits(struct loss *l, struct loss_block *b, struct err *e) {
    return loss_divergence(l, b, DIVERGENCE_KL, 0, 1, e);
}

static const struct loss_key keys[] = {LOSS_TEMPERATURE, {0}};

const struct loss_type loss_rkl = {
    .name = "rkl",
    .summary = "reverse KL of the teacher from the student",
    .formula = "sum_i p_i ln(p_i / t_i); without T^2",
    .source = "Gu, Dong, Wei, Huang 2024, MiniLLM (arXiv 2306.08543); token by token, on the data, where the "
              "paper samples from the student",
    .keys = keys,
    .encodings = LOSS_ON_PARTITION,
    .on_sparse = "ghost: over its entries and the rest as one token, a lower bound by the data processing inequality",
    .logits = logits,
};
