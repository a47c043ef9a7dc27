/* Attention transfer: the distribution of feature energy over positions. */
#include "lib/losses/losses_internal.h"

static int group(struct loss *l, struct loss_group *g, double *value, struct err *e) {
    double *scratch = arena_array(g->memory, 2 * g->n, sizeof *scratch, e);
    (void)l;
    if (!scratch) return e->code;
    *value = kernel_energy_map(g->weight, g->n, g->x[1], g->d[1], g->x[0], g->d[0], scratch, g->dx[0]);
    return 0;
}

static const struct loss_key keys[] = {LOSS_MAP("uniform"), {0}};

const struct loss_type loss_at = {
    .name = "at",
    .summary = "attention transfer: the energy of each position's features",
    .formula = "1/n |q_s / |q_s| - q_t / |q_t||^2, q_i = sum_c x_ic^2 of the n labelled positions of a sequence",
    .source = "Zagoruyko and Komodakis 2017, Paying more attention to attention (arXiv 1612.03928), maps of "
              "sums of squares; the difference squared and averaged as in the authors' code, where the paper "
              "has its norm",
    .keys = keys,
    .taps = "hidden",
    .sampled = true,
    .needs = loss_relation_needs,
    .points = loss_relation_points,
    .group = group,
    .release = loss_state_release,
};
