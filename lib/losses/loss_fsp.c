/* Flow of the solution procedure: Gram matrices between the features of two layers. */
#include "lib/losses/losses_internal.h"

struct fsp {
    struct loss_pairs map; /* must be first: loss_map_needs */
    struct loss_projector projectors[LOSS_MAX_PAIRS];
};

static int needs(struct loss *l, const struct loss_setting *s, struct err *e) {
    if (loss_map_needs(l, s, sizeof(struct fsp), e)) return e->code;
    const struct fsp *f = l->state;
    return f->map.n > 1 ? 0
                        : err_set(e, ERR_USAGE, "the loss fsp is of two layers at least: map=%s", loss_words(l, "map"));
}

static int prepare(struct loss *l, const struct loss_setting *s, struct param_set *own, struct err *e) {
    struct fsp *f = l->state;
    if (loss_one_width(l, s, &f->map, e)) return e->code;
    for (size_t i = 0; i < f->map.n; i++) {
        size_t in = s->student->hidden, out = loss_teacher_cols(s, POINT_LAYER, f->map.pairs[i].teacher);
        if (in != out &&
            loss_projector_new(&f->projectors[i], l, "projector", f->map.pairs[i].student, in, out, own, e))
            return e->code;
    }
    return 0;
}

static int group(struct loss *l, struct loss_group *g, double *value, struct err *e) {
    float *scratch = arena_array(g->memory, 2 * g->d[0] * g->d[0], sizeof *scratch, e);
    (void)l;
    if (!scratch) return e->code;
    *value = kernel_flow(g->weight, g->n, g->d[0], g->x[2], g->x[3], g->x[0], g->x[1], scratch, g->dx[0], g->dx[1]);
    return 0;
}

static struct grad_var *features(struct loss_points *p, struct fsp *f, size_t i) {
    return loss_project(p->t, &f->projectors[i], loss_student_point(p, POINT_LAYER, f->map.pairs[i].student));
}

static int points(struct loss *l, struct loss_points *p, struct err *e) {
    struct fsp *f = l->state;
    struct grad_var *before = features(p, f, 0);
    for (size_t i = 0; i + 1 < f->map.n; i++) {
        struct grad_var *after = features(p, f, i + 1);
        if (!before || !after) return grad_error(p->t, e);
        if (loss_two_vars(l, p, &f->map.pairs[i], before, after, group, 1 / (double)(f->map.n - 1), e)) return e->code;
        before = after;
    }
    return 0;
}

static const struct loss_key keys[] = {LOSS_MAP("ends"), {0}};

const struct loss_type loss_fsp = {
    .name = "fsp",
    .summary = "flow of the solution procedure: Gram matrices between two layers",
    .formula = "mean over layers of the map, one and the next, of 1/d^2 |G_t - G_s|^2, G = X^T Y / n over a sequence's "
               "n labelled positions; "
               "through a learned linear map where widths differ",
    .source = "Yim, Joo, Bae, Kim 2017, A gift from knowledge distillation; the mean over the elements of G "
              "instead of the sum",
    .keys = keys,
    .taps = "hidden",
    .sampled = true,
    .needs = needs,
    .prepare = prepare,
    .points = points,
    .release = loss_state_release,
};
