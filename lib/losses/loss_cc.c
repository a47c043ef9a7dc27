/* Correlation congruence: correlations of pairs of instances, by a kernel. */
#include <string.h>

#include "lib/losses/losses_internal.h"

static int group(struct loss *l, struct loss_group *g, double *value, struct err *e) {
    bool bilinear = !strcmp(loss_words(l, "kernel"), "bilinear");
    struct kernel_relation how = {RELATION_CORRELATION, g->weight, loss_number(l, "gamma"),
                                  bilinear ? 0 : (unsigned)loss_number(l, "order")};
    return loss_relation(g, &how, value, e);
}

static const struct loss_key keys[] = {
    {"kernel", LOSS_CHOICE, "gaussian|bilinear", "gaussian", .help = "of the correlation"},
    {"gamma", LOSS_NUMBER, "G", "0.4", 1e-3, 10, "of the Gaussian"},
    {"order", LOSS_NUMBER, "P", "2", 1, 16, "of its Taylor series"},
    LOSS_MAP("last"),
    LOSS_PER,
    LOSS_POSITIONS("128"),
    {0}};

const struct loss_type loss_cc = {
    .name = "cc",
    .summary = "correlation congruence: correlations of pairs of instances",
    .formula = "1/b^2 |C_t - C_s|^2 of b instances of length 1; C_ij = x_i . x_j, or sum_{p <= P} e^(-2 G) (2 G)^p / "
               "p! (x_i . x_j)^p",
    .source = "Peng et al. 2019, Correlation congruence for knowledge distillation (arXiv 1904.01802)",
    .keys = keys,
    .taps = "hidden",
    .sampled = true,
    .needs = loss_relation_needs,
    .points = loss_relation_points,
    .group = group,
    .release = loss_state_release,
};
