/* Relational knowledge distillation: distances of pairs and angles of triples. */
#include "lib/losses/losses_internal.h"

static int distances(struct loss *l, struct loss_group *g, double *value, struct err *e) {
    double weight = loss_number(l, "distance");
    if (loss_relation(g, &(struct kernel_relation){RELATION_DISTANCE, g->weight * weight, 0, 0}, value, e))
        return e->code;
    *value *= weight;
    return 0;
}

static int angles(struct loss *l, struct loss_group *g, double *value, struct err *e) {
    double weight = loss_number(l, "angle");
    double *scratch = arena_array(g->memory, kernel_angles_scratch(g->n, g->d[1], g->d[0]), sizeof *scratch, e);
    if (!scratch) return e->code;
    *value = weight * kernel_angles(g->weight * weight, g->n, g->x[1], g->d[1], g->x[0], g->d[0], scratch, g->dx[0]);
    return 0;
}

static int points(struct loss *l, struct loss_points *p, struct err *e) {
    if (loss_number(l, "distance") > 0 && loss_relation_run(l, p, "positions", distances, e)) return e->code;
    return loss_number(l, "angle") > 0 ? loss_relation_run(l, p, "corners", angles, e) : 0;
}

static int needs(struct loss *l, const struct loss_setting *s, struct err *e) {
    static const char *const terms[] = {"distance", "angle"};
    return loss_some_term(l, terms, COUNT_OF(terms), e) ? e->code : loss_relation_needs(l, s, e);
}

static const struct loss_key keys[] = {{"distance", LOSS_NUMBER, "W", "25", 0, 1e6, "weight of the distances"},
                                       {"angle", LOSS_NUMBER, "W", "50", 0, 1e6, "weight of the angles"},
                                       LOSS_MAP("last"),
                                       LOSS_PER,
                                       LOSS_POSITIONS("128"),
                                       {"corners", LOSS_NUMBER, "N", "24", 3, 256,
                                        "instances of a group for angles, evenly spaced: work is cubic in them"},
                                       {0}};

const struct loss_type loss_rkd = {
    .name = "rkd",
    .summary = "relational distillation: distances of pairs and angles of triples of instances",
    .formula =
        "25 mean_{i != j} h(d_ij / mean d - the teacher's) + 50 mean_{i, j, k distinct} h(cos of the angle at j - the "
        "teacher's), h(u) = u^2 / 2 up to 1, |u| - 1/2 beyond",
    .source = "Park, Kim, Lu, Cho 2019, Relational knowledge distillation (arXiv 1904.05068), sections 3.2.1 "
              "and 3.2.2, means instead of sums; the weights are those of RepDistiller (Tian et al. 2020), "
              "the paper's for metric learning are 1 and 2",
    .keys = keys,
    .taps = "hidden",
    .sampled = true,
    .needs = needs,
    .points = points,
    .release = loss_state_release,
};
