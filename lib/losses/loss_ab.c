/* Alpha-beta divergence, between the forward and the reverse one. */
#include "lib/losses/losses_internal.h"

static int logits(struct loss *l, struct loss_block *b, struct err *e) {
    return loss_divergence(l, b, DIVERGENCE_ALPHA_BETA, loss_number(l, "alpha"), loss_number(l, "beta"), e);
}

static const struct loss_key keys[] = {LOSS_TEMPERATURE,
                                       {"alpha", LOSS_NUMBER, "A", "0.2", 0.01, 10, "power of the teacher"},
                                       {"beta", LOSS_NUMBER, "B", "0.7", 0.01, 10, "power of the student"},
                                       {0}};

const struct loss_type loss_ab = {
    .name = "ab",
    .summary = "alpha-beta divergence",
    .formula = "-sum_i (t_i^A p_i^B - A/(A+B) t_i^(A+B) - B/(A+B) p_i^(A+B)) / (A B); without T^2",
    .source = "Cichocki, Cruces, Amari 2011, Generalized alpha-beta divergences and their application to "
              "robust nonnegative matrix factorization; for distillation, with these defaults, Wang et al. "
              "2025, ABKD (arXiv 2505.04560)",
    .keys = keys,
    .encodings = LOSS_ON(KNOW_DENSE),
    .logits = logits,
};
