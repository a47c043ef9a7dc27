/* Adaptive Kullback-Leibler divergence: forward and reverse, weighted by how far off the student is in head and
 * tail. */
#include "lib/losses/losses_internal.h"

static int logits(struct loss *l, struct loss_block *b, struct err *e) {
    return loss_divergence(l, b, DIVERGENCE_ADAPTIVE, loss_number(l, "mu"), 0, e);
}

static const struct loss_key keys[] = {
    LOSS_TEMPERATURE, {"mu", LOSS_NUMBER, "M", "0.5", 1e-6, 1, "the teacher's mass in the head"}, {0}};

const struct loss_type loss_akl = {
    .name = "akl",
    .summary = "forward and reverse KL, weighted by the gaps in head and tail",
    .formula = "(g_head KL(t||p) + g_tail KL(p||t)) / (g_head + g_tail), g = sum |t_i - p_i| (a constant), head: "
               "fewest most probable tokens with a mass of M; without T^2",
    .source = "Wu et al. 2024, Rethinking Kullback-Leibler divergence in knowledge distillation for large "
              "language models (arXiv 2404.02657); the token with which the mass reaches M is in the head, "
              "while the authors' code leaves it out unless it is the first",
    .keys = keys,
    .encodings = LOSS_ON_PARTITION,
    .on_sparse = "ghost: over its entries and the rest as one token, which is in the tail; no bound",
    .logits = logits,
};
