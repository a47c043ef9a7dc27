/* Factor transfer: a paraphraser compresses the teacher's features, and a translator maps the student's to the
 * result. */
#include "lib/losses/losses_internal.h"

struct ft {
    struct loss_pairs map; /* must be first: loss_map_needs */
    struct maps {
        struct loss_projector encode, decode, translate;
    } maps[LOSS_MAX_PAIRS];
};

static int needs(struct loss *l, const struct loss_setting *s, struct err *e) {
    return loss_map_needs(l, s, sizeof(struct ft), e);
}

static int prepare(struct loss *l, const struct loss_setting *s, struct param_set *own, struct err *e) {
    struct ft *f = l->state;
    for (size_t i = 0; i < f->map.n; i++) {
        uint32_t layer = f->map.pairs[i].student;
        size_t in = s->student->hidden, cols = loss_teacher_cols(s, POINT_LAYER, f->map.pairs[i].teacher);
        size_t factors = (size_t)((double)cols * loss_number(l, "rate") + 0.5);
        if (!factors) factors = 1;
        if (loss_projector_new(&f->maps[i].encode, l, "encode", layer, cols, factors, own, e) ||
            loss_projector_new(&f->maps[i].decode, l, "decode", layer, factors, cols, own, e) ||
            loss_projector_new(&f->maps[i].translate, l, "translate", layer, in, factors, own, e))
            return e->code;
    }
    return 0;
}

/* The paraphraser is trained only by its reconstruction: for the student its factors are constant. */
static int pair(struct loss *l, struct loss_points *p, size_t i, struct err *e) {
    struct ft *f = l->state;
    const float *rows; /* a copy, because the backward pass reads it */
    size_t cols, n = p->in->n_positions;
    if (loss_teacher_copy(p, POINT_LAYER, f->map.pairs[i].teacher, &rows, &cols, e)) return e->code;
    struct grad_var *factors =
        loss_project(p->t, &f->maps[i].encode, grad_leaf(p->t, kernel_f32(rows), kernel_none(DT_F32), n, cols));
    struct grad_var *again = loss_project(p->t, &f->maps[i].decode, factors);
    struct grad_var *own =
        loss_project(p->t, &f->maps[i].translate, loss_student_point(p, POINT_LAYER, f->map.pairs[i].student));
    const float *target = grad_host_value(p->t, factors);
    if (!target || !again || !own) return grad_error(p->t, e);
    double share = 1 / (double)f->map.n;
    if (loss_rows(p, kernel_rows_factor, share, target, own, e)) return e->code;
    return loss_rows(p, kernel_rows_mse, share * loss_number(l, "paraphrase"), rows, again, e);
}

static int points(struct loss *l, struct loss_points *p, struct err *e) {
    const struct ft *f = l->state;
    for (size_t i = 0; i < f->map.n; i++)
        if (pair(l, p, i, e)) return e->code;
    return 0;
}

static const struct loss_key keys[] = {
    {"rate", LOSS_NUMBER, "K", "0.5", 1e-3, 1, "factors for each feature of the teacher"},
    {"paraphrase", LOSS_NUMBER, "W", "1", 1e-6, 1e6, "weight of the teacher's reconstruction from its factors"},
    LOSS_MAP("last"),
    {0}};

const struct loss_type loss_ft = {
    .name = "ft",
    .summary = "factor transfer: the teacher's factors by a paraphraser, the student's by a translator",
    .formula = "mean over layers of |f_s / |f_s| - f_t / |f_t||_1 + W 1/d |t - D f_t|^2, f_t = E t, f_s = L h_s; "
               "linear maps, E and D "
               "trained by the second term only",
    .source = "Kim, Park, Kwak 2018, Paraphrasing complex network: network compression via factor transfer "
              "(arXiv 1802.04977), with p = 1; position by position with linear maps instead of convolutions; "
              "the paraphraser is trained along instead of before",
    .keys = keys,
    .taps = "hidden",
    .needs = needs,
    .prepare = prepare,
    .points = points,
    .release = loss_state_release,
};
