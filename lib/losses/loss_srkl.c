/* Skew reverse Kullback-Leibler divergence. */
#include "lib/losses/losses_internal.h"

static int logits(struct loss *l, struct loss_block *b, struct err *e) {
    return loss_divergence(l, b, DIVERGENCE_SKEW_REVERSE, loss_number(l, "alpha"), 0, e);
}

static const struct loss_key keys[] = {
    LOSS_TEMPERATURE, {"alpha", LOSS_NUMBER, "A", "0.1", 0, 0.999, "the student's share of the mixture"}, {0}};

const struct loss_type loss_srkl = {
    .name = "srkl",
    .summary = "reverse KL to a mixture of student and teacher",
    .formula = "sum_i p_i ln(p_i / m_i), m = (1 - A) t + A p; without T^2",
    .source = "Ko, Kim, Chen, Yun 2024, DistiLLM (arXiv 2402.03898)",
    .keys = keys,
    .encodings = LOSS_ON_PARTITION,
    .on_sparse = "ghost: over its entries and the rest as one token, a lower bound by the data processing inequality",
    .logits = logits,
};
