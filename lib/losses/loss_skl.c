/* Skew Kullback-Leibler divergence: mixing the student with the teacher keeps it finite. */
#include "lib/losses/losses_internal.h"

static int logits(struct loss *l, struct loss_block *b, struct err *e) {
    return loss_divergence(l, b, DIVERGENCE_SKEW, loss_number(l, "alpha"), 0, e);
}

static const struct loss_key keys[] = {
    LOSS_TEMPERATURE, {"alpha", LOSS_NUMBER, "A", "0.1", 0, 0.999, "the teacher's share of the mixture"}, {0}};

const struct loss_type loss_skl = {
    .name = "skl",
    .summary = "forward KL from a mixture of teacher and student",
    .formula = "sum_i t_i ln(t_i / m_i), m = A t + (1 - A) p; without T^2",
    .source = "Ko, Kim, Chen, Yun 2024, DistiLLM (arXiv 2402.03898)",
    .keys = keys,
    .encodings = LOSS_ON_PARTITION,
    .on_sparse = "ghost: over its entries and the rest as one token, a lower bound by the data processing inequality",
    .logits = logits,
};
