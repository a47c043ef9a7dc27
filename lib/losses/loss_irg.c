/* Instance relationship graph: its edges, and how its vertices change from one layer to another. */
#include "lib/losses/losses_internal.h"

static int edges(struct loss *l, struct loss_group *g, double *value, struct err *e) {
    double weight = loss_number(l, "edges");
    if (loss_relation(g, &(struct kernel_relation){RELATION_GRAPH, g->weight * weight, 0, 0}, value, e)) return e->code;
    *value *= weight;
    return 0;
}

/* Sides: the student's two layers, then the teacher's. */
static int moves(struct loss *l, struct loss_group *g, double *value, struct err *e) {
    double weight = loss_number(l, "moves");
    (void)e;
    *value = weight * kernel_moves(g->weight * weight, g->n, g->x[2], g->x[3], g->d[2], g->x[0], g->x[1], g->d[0],
                                   g->dx[0], g->dx[1]);
    return 0;
}

static int points(struct loss *l, struct loss_points *p, struct err *e) {
    const struct loss_pairs *r = l->state;
    if (loss_number(l, "edges") > 0 && loss_relation_run(l, p, "positions", edges, e)) return e->code;
    for (size_t i = 0; loss_number(l, "moves") > 0 && i + 1 < r->n; i++)
        if (loss_two_layers(l, p, &r->pairs[i], moves, 1 / (double)(r->n - 1), e)) return e->code;
    return 0;
}

static int needs(struct loss *l, const struct loss_setting *s, struct err *e) {
    static const char *const terms[] = {"edges", "moves"};
    return loss_some_term(l, terms, COUNT_OF(terms), e) ? e->code : loss_relation_needs(l, s, e);
}

static const struct loss_key keys[] = {
    {"edges", LOSS_NUMBER, "W", "1", 0, 1e6, "weight of the edges"},
    {"moves", LOSS_NUMBER, "W", "1", 0, 1e6, "weight of the vertices' way between the map's layers, one and the next"},
    LOSS_MAP("ends"),
    LOSS_PER,
    LOSS_POSITIONS("128"),
    {0}};

const struct loss_type loss_irg = {
    .name = "irg",
    .summary = "instance relationship graph: distances of pairs, and each instance's way between layers",
    .formula = "mean over layers of 1/b^2 |A_t - A_s|^2, A_ij = |x_i - x_j|^2 / d, plus mean of 1/b |m_t - m_s|^2, m_i "
               "= |x_i - x'_i|^2 / "
               "d of a layer x and the next one x'",
    .source = "Liu et al. 2019, Knowledge distillation via instance relationship graph: edges and vertex "
              "transformation, per feature and instance; for its vertices at the head add the loss mse",
    .keys = keys,
    .taps = "hidden",
    .sampled = true,
    .needs = needs,
    .points = points,
    .release = loss_state_release,
};
