/* Neuron selectivity transfer: channels are samples of a distribution over positions. */
#include "lib/losses/losses_internal.h"

static int group(struct loss *l, struct loss_group *g, double *value, struct err *e) {
    const char *word = loss_words(l, "kernel");
    enum kernel_mmd_kind kind = *word == 'l' ? MMD_LINEAR : *word == 'p' ? MMD_POLY : MMD_GAUSSIAN;
    double *scratch = arena_array(g->memory, kernel_mmd_scratch(g->n, g->d[1], g->d[0]), sizeof *scratch, e);
    if (!scratch) return e->code;
    *value = kernel_mmd(kind, g->weight, g->n, g->x[1], g->d[1], g->x[0], g->d[0], scratch, g->dx[0]);
    return 0;
}

static const struct loss_key keys[] = {
    {"kernel", LOSS_CHOICE, "poly|linear|gaussian", "poly", .help = "gaussian: work is quadratic in the widths"},
    LOSS_MAP("last"),
    LOSS_POSITIONS("256"),
    {0}};

const struct loss_type loss_nst = {
    .name = "nst",
    .summary = "neuron selectivity transfer: maximum mean discrepancy of the channels",
    .formula = "mean k(x, x') + mean k(t, t') - 2 mean k(x, t) over channels of length 1 across a sequence's "
               "positions; k = x . y, (x . "
               "y)^2, or e^(-|x - y|^2 / (2 s)), s the mean of |x - t|^2 (a constant)",
    .source = "Huang and Wang 2017, Like what you like: knowledge distill via neuron selectivity transfer "
              "(arXiv 1707.01219); without the paper's factor of 1/2",
    .keys = keys,
    .taps = "hidden",
    .sampled = true,
    .needs = loss_relation_needs,
    .points = loss_relation_points,
    .group = group,
    .release = loss_state_release,
};
