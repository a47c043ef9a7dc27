/* Hidden states: outputs of the student's layers against the teacher's, through a learned map where widths differ. */
#include <string.h>

#include "lib/losses/losses_internal.h"

struct hidden {
    struct loss_pairs map;                            /* must be first: loss_map_needs */
    struct loss_projector projectors[LOSS_MAX_PAIRS]; /* without data: none */
};

static int needs(struct loss *l, const struct loss_setting *s, struct err *e) {
    return loss_map_needs(l, s, sizeof(struct hidden), e);
}

static int prepare(struct loss *l, const struct loss_setting *s, struct param_set *own, struct err *e) {
    struct hidden *h = l->state;
    const char *projector = loss_words(l, "projector");
    for (size_t i = 0; i < h->map.n; i++) {
        size_t in = s->student->hidden, out = loss_teacher_cols(s, POINT_LAYER, h->map.pairs[i].teacher);
        if (in != out && !strcmp(projector, "none"))
            return err_set(e, ERR_USAGE, "the loss hidden: widths of %zu and %zu need projector=linear", in, out);
        if (!strcmp(projector, "none") || (in == out && !strcmp(projector, "auto"))) continue;
        if (loss_projector_new(&h->projectors[i], l, "projector", h->map.pairs[i].student, in, out, own, e))
            return e->code;
    }
    return 0;
}

static int points(struct loss *l, struct loss_points *p, struct err *e) {
    struct hidden *h = l->state;
    bool cosine = !strcmp(loss_words(l, "kind"), "cosine");
    for (size_t i = 0; i < h->map.n; i++)
        if (loss_states(p, &h->projectors[i], POINT_LAYER, &h->map.pairs[i],
                        cosine ? kernel_rows_cosine : kernel_rows_mse, 1 / (double)h->map.n, e))
            return e->code;
    return 0;
}

static const struct loss_key keys[] = {
    {"kind", LOSS_CHOICE, "mse|cosine", "mse", .help = "squared distance, or 1 - cosine"},
    LOSS_MAP("uniform"),
    {"projector", LOSS_CHOICE, "auto|linear|none", "auto",
     .help = "a learned linear map of the student's states, trained along and dropped; auto: where widths differ"},
    {0}};

const struct loss_type loss_hidden = {
    .name = "hidden",
    .summary = "hidden states of layers, through a learned linear map",
    .formula = "mean over pairs of layers of 1/d |W h_s - h_t|^2, or of 1 - cos(W h_s, h_t)",
    .source = "Romero et al. 2015, FitNets (arXiv 1412.6550), equation 3, the mean over features instead of "
              "half the sum; cosine: Sanh et al. 2019, DistilBERT (arXiv 1910.01108), section 2",
    .keys = keys,
    .taps = "hidden",
    .needs = needs,
    .prepare = prepare,
    .points = points,
    .release = loss_state_release,
};
