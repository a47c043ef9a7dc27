/* Contrastive representation distillation, with the other instances of the group as negatives. */
#include "lib/losses/losses_internal.h"

struct crd {
    struct loss_pairs map; /* must be first: loss_map_needs */
    struct maps {
        struct loss_projector student, teacher;
    } maps[LOSS_MAX_PAIRS];
};

static int needs(struct loss *l, const struct loss_setting *s, struct err *e) {
    return loss_map_needs(l, s, sizeof(struct crd), e);
}

static int prepare(struct loss *l, const struct loss_setting *s, struct param_set *own, struct err *e) {
    struct crd *c = l->state;
    size_t width = (size_t)loss_number(l, "width");
    for (size_t i = 0; i < c->map.n; i++) {
        size_t cols = loss_teacher_cols(s, POINT_LAYER, c->map.pairs[i].teacher);
        uint32_t layer = c->map.pairs[i].student;
        if (loss_projector_new(&c->maps[i].student, l, "student", layer, s->student->hidden, width, own, e) ||
            loss_projector_new(&c->maps[i].teacher, l, "teacher", layer, cols, width, own, e))
            return e->code;
    }
    return 0;
}

static int group(struct loss *l, struct loss_group *g, double *value, struct err *e) {
    double *scratch = arena_array(g->memory, kernel_contrast_scratch(g->n, g->d[0]), sizeof *scratch, e);
    if (!scratch) return e->code;
    *value = kernel_contrast(g->weight, loss_number(l, "temperature"), g->n, g->d[0], g->x[1], g->x[0], scratch,
                             g->dx[1], g->dx[0]);
    return 0;
}

static int pair(struct loss *l, struct loss_points *p, size_t i, struct err *e) {
    struct crd *c = l->state;
    struct loss_sides of = {.n = 2, .run = group, .share = 1 / (double)c->map.n, .most = loss_most(l, "positions")};
    const float *rows; /* a copy, because the backward pass reads it */
    size_t cols, n = p->in->n_positions;
    if (loss_teacher_copy(p, POINT_LAYER, c->map.pairs[i].teacher, &rows, &cols, e)) return e->code;
    of.var[0] = loss_project(p->t, &c->maps[i].student, loss_student_point(p, POINT_LAYER, c->map.pairs[i].student));
    of.var[1] =
        loss_project(p->t, &c->maps[i].teacher, grad_leaf(p->t, kernel_f32(rows), kernel_none(DT_F32), n, cols));
    return of.var[0] && of.var[1] ? loss_groups(l, p, &of, e) : grad_error(p->t, e);
}

static int points(struct loss *l, struct loss_points *p, struct err *e) {
    const struct crd *c = l->state;
    for (size_t i = 0; i < c->map.n; i++)
        if (pair(l, p, i, e)) return e->code;
    return 0;
}

static const struct loss_key keys[] = {{"temperature", LOSS_NUMBER, "T", "0.07", 1e-3, 1e3, "of the cosines"},
                                       {"width", LOSS_NUMBER, "D", "128", 1, 4096, "that both sides are mapped to"},
                                       LOSS_MAP("last"),
                                       LOSS_PER,
                                       LOSS_POSITIONS("128"),
                                       {0}};

const struct loss_type loss_crd = {
    .name = "crd",
    .summary = "contrastive distillation: a student's instance against the teacher's of all instances of the group",
    .formula = "-1/(2 b) sum_i (ln softmax_j(s_ij) at i + ln softmax_j(s_ji) at i), s_ij = cos(L x_i, M t_j) / T with "
               "learned maps L and M",
    .source = "Tian, Krishnan, Isola 2020, Contrastive representation distillation (arXiv 1910.10699), the "
              "score in the critic of equation 19 and both directions; negatives are the group's other "
              "instances instead of a memory, with the objective of van den Oord et al. 2018 (InfoNCE, arXiv "
              "1807.03748) for them",
    .keys = keys,
    .taps = "hidden",
    .sampled = true,
    .needs = needs,
    .prepare = prepare,
    .points = points,
    .release = loss_state_release,
};
