/* Patient knowledge distillation: hidden states, normalised to length 1. */
#include "lib/losses/losses_internal.h"

static int needs(struct loss *l, const struct loss_setting *s, struct err *e) {
    if (loss_relation_needs(l, s, e)) return e->code;
    const struct loss_pairs *r = l->state;
    for (size_t i = 0; i < r->n; i++) {
        size_t cols = loss_teacher_cols(s, POINT_LAYER, r->pairs[i].teacher);
        if (cols != s->student->hidden)
            return err_set(e, ERR_USAGE, "the loss pkd: widths of %u and %zu (hidden has a learned map)",
                           s->student->hidden, cols);
    }
    return 0;
}

/* |x / |x| - t / |t||^2 = 2 (1 - cos) */
static int group(struct loss *l, struct loss_group *g, double *value, struct err *e) {
    double share = 2 / (double)g->n;
    (void)l, (void)e;
    *value = share * kernel_rows_cosine((float)(g->weight * share), g->x[1], NULL, g->x[0], g->n, g->d[0], g->dx[0]);
    return 0;
}

static const struct loss_key keys[] = {LOSS_MAP("skip"), LOSS_PER, {0}};

const struct loss_type loss_pkd = {
    .name = "pkd",
    .summary = "patient distillation: hidden states divided by their lengths",
    .formula = "mean over layers and instances of |h_s / |h_s| - h_t / |h_t||^2; map=skip or tail (PKD-Last)",
    .source = "Sun, Cheng, Gan, Liu 2019, Patient knowledge distillation for BERT model compression (arXiv "
              "1908.09355), section 3.2; of positions or means of sequences instead of [CLS], a mean instead "
              "of a sum",
    .keys = keys,
    .taps = "hidden",
    .sampled = true,
    .needs = needs,
    .points = loss_relation_points,
    .group = group,
    .release = loss_state_release,
};
