/* Generalised Jensen-Shannon divergence, in the convention of TRL's GKDTrainer: other libraries mirror beta. */
#include "lib/losses/losses_internal.h"

/* At either end the mixture equals one of the two distributions, and the limit is a KL divergence. */
static int logits(struct loss *l, struct loss_block *b, struct err *e) {
    double beta = loss_number(l, "beta");
    if (beta == 0) return loss_divergence(l, b, DIVERGENCE_KL, 1, 0, e);
    if (beta == 1) return loss_divergence(l, b, DIVERGENCE_KL, 0, 1, e);
    return loss_divergence(l, b, DIVERGENCE_JENSEN_SHANNON, beta, 0, e);
}

static const struct loss_key keys[] = {
    LOSS_TEMPERATURE,
    {"beta", LOSS_NUMBER, "B", "0.5", 0, 1, "the teacher's share of the mixture; 0 is forward KL, 1 reverse KL"},
    {0}};

const struct loss_type loss_jsd = {
    .name = "jsd",
    .summary = "generalised Jensen-Shannon divergence, TRL's convention",
    .formula = "B KL(t||m) + (1 - B) KL(p||m), m = B t + (1 - B) p; B = 0: KL(t||p), B = 1: KL(p||t); without T^2",
    .source = "Agarwal et al. 2024, On-policy distillation of language models (GKD, arXiv 2306.13649), "
              "equation 1, as TRL's GKDTrainer has it",
    .keys = keys,
    .encodings = LOSS_ON_PARTITION,
    .on_sparse = "ghost: over its entries and the rest as one token, a lower bound by the data processing inequality",
    .logits = logits,
};
