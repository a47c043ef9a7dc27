/* Probabilistic knowledge transfer: each instance's similarities to the others, as a distribution. */
#include "lib/losses/losses_internal.h"

static int group(struct loss *l, struct loss_group *g, double *value, struct err *e) {
    (void)l;
    return loss_relation(g, &(struct kernel_relation){RELATION_PROBABILITY, g->weight, 0, 0}, value, e);
}

static const struct loss_key keys[] = {LOSS_MAP("last"), LOSS_PER, LOSS_POSITIONS("128"), {0}};

const struct loss_type loss_pkt = {
    .name = "pkt",
    .summary = "probabilistic knowledge transfer: distributions over the other instances",
    .formula = "1/b sum_i KL(p_i || q_i) over j != i, p_ij the share of (cos(x_i, x_j) + 1) / 2 in its sum over j",
    .source = "Passalis and Tefas 2018, Learning deep representations with probabilistic knowledge transfer "
              "(arXiv 1803.10837), with the cosine kernel; the sum over i divided by their number; the "
              "authors' code does not leave out j = i",
    .keys = keys,
    .taps = "hidden",
    .sampled = true,
    .needs = loss_relation_needs,
    .points = loss_relation_points,
    .group = group,
    .release = loss_state_release,
};
