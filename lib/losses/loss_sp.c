/* Similarity preserving: instances that are similar for the teacher should be similar for the student. */
#include "lib/losses/losses_internal.h"

static int group(struct loss *l, struct loss_group *g, double *value, struct err *e) {
    (void)l;
    return loss_relation(g, &(struct kernel_relation){RELATION_SIMILARITY, g->weight, 0, 0}, value, e);
}

static const struct loss_key keys[] = {LOSS_MAP("last"), LOSS_PER, LOSS_POSITIONS("128"), {0}};

const struct loss_type loss_sp = {
    .name = "sp",
    .summary = "similarity preserving: products of all pairs of instances",
    .formula = "1/b^2 |G_t - G_s|^2 with G = F F^T of b instances, each row divided by its length",
    .source = "Tung and Mori 2019, Similarity-preserving knowledge distillation (arXiv 1907.09682)",
    .keys = keys,
    .taps = "hidden",
    .sampled = true,
    .needs = loss_relation_needs,
    .points = loss_relation_points,
    .group = group,
    .release = loss_state_release,
};
