/* TinyBERT's losses on embeddings, hidden states and attention. Its fourth, on predictions, is kl. */
#include <string.h>

#include "lib/losses/losses_internal.h"

struct tinybert {
    struct loss_pairs map;
    struct loss_attention attention[LOSS_MAX_PAIRS];
    struct loss_projector embed, hidden; /* without data: widths are equal */
};

static bool has(const struct loss *l, const char *term) {
    return loss_number(l, term) > 0;
}

static bool of_scores(const struct loss *l) {
    return !strcmp(loss_words(l, "of"), "scores");
}

static int want_pair(struct loss *l, const struct loss_setting *s, struct tinybert *b, size_t i, struct err *e) {
    const struct loss_pair *pair = &b->map.pairs[i];
    if (has(l, "hidden") && loss_want_pair(l, s, POINT_LAYER, pair, e)) return e->code;
    if (!has(l, "attention")) return 0;
    if (loss_want_attention(l, s, pair, of_scores(l), &b->attention[i], e)) return e->code;
    b->attention[i].kind = of_scores(l) ? ATTENTION_SCORES : ATTENTION_SQUARE;
    return 0;
}

static int needs(struct loss *l, const struct loss_setting *s, struct err *e) {
    static const char *const terms[] = {"embed", "hidden", "attention"};
    if (loss_some_term(l, terms, COUNT_OF(terms), e)) return e->code;
    struct tinybert *b = mem_zalloc(sizeof *b, e);
    if (!b) return e->code;
    l->state = b;
    if (has(l, "embed") && loss_want_pair(l, s, POINT_EMBED, &(struct loss_pair){0, 0}, e)) return e->code;
    if (!has(l, "hidden") && !has(l, "attention")) return 0;
    uint32_t layers = has(l, "hidden") ? loss_teacher_layers(s, l, POINT_LAYER, e) : loss_attention_layers(s, l, e);
    if (!layers || loss_map_parse(loss_words(l, "map"), s->student->n_layers, layers, b->map.pairs, &b->map.n, e))
        return e->code;
    for (size_t i = 0; i < b->map.n; i++)
        if (want_pair(l, s, b, i, e)) return e->code;
    return 0;
}

static int project(struct loss_projector *p, struct loss *l, const struct loss_setting *s, enum model_point point,
                   uint32_t layer, struct param_set *own, struct err *e) {
    size_t in = model_point_cols(s->student, point, 0), out = loss_teacher_cols(s, point, layer);
    const char *what = point == POINT_EMBED ? "embed" : "hidden";
    return in == out ? 0 : loss_projector_new(p, l, what, 0, in, out, own, e);
}

/* One map serves all layers, as in the paper. */
static int prepare(struct loss *l, const struct loss_setting *s, struct param_set *own, struct err *e) {
    struct tinybert *b = l->state;
    if (has(l, "embed") && project(&b->embed, l, s, POINT_EMBED, 0, own, e)) return e->code;
    if (!has(l, "hidden")) return 0;
    if (loss_one_width(l, s, &b->map, e)) return e->code;
    return project(&b->hidden, l, s, POINT_LAYER, b->map.pairs[0].teacher, own, e);
}

static int points(struct loss *l, struct loss_points *p, struct err *e) {
    struct tinybert *b = l->state;
    if (has(l, "embed") &&
        loss_states(p, &b->embed, POINT_EMBED, &(struct loss_pair){0, 0}, kernel_rows_mse, loss_number(l, "embed"), e))
        return e->code;
    for (size_t i = 0; i < b->map.n; i++) {
        double share = 1 / (double)b->map.n;
        if (has(l, "hidden") && loss_states(p, &b->hidden, POINT_LAYER, &b->map.pairs[i], kernel_rows_mse,
                                            share * loss_number(l, "hidden"), e))
            return e->code;
        if (has(l, "attention") &&
            loss_attention_pair(p, &b->map.pairs[i], &b->attention[i], share * loss_number(l, "attention"), e))
            return e->code;
    }
    return 0;
}

static const struct loss_key keys[] = {
    {"embed", LOSS_NUMBER, "W", "1", 0, 1e6, "weight of the embeddings"},
    {"hidden", LOSS_NUMBER, "W", "1", 0, 1e6, "weight of the hidden states"},
    {"attention", LOSS_NUMBER, "W", "1", 0, 1e6, "weight of attention"},
    {"of", LOSS_CHOICE, "weights|scores", "weights",
     .help = "attention after its softmax, or before (the paper's, needs --teacher)"},
    LOSS_MAP("uniform"),
    {0}};

const struct loss_type loss_tinybert = {
    .name = "tinybert",
    .summary = "embeddings, hidden states and attention of mapped layers; with the loss kl TinyBERT's four",
    .formula = "1/d |W e_s - e_t|^2 + mean over layers of 1/d |V h_s - h_t|^2 + mean over layers, heads and keys of "
               "(a_s - a_t)^2; W, V "
               "learned where widths differ, V one for all layers; map=uniform is the paper's i b",
    .source = "Jiao et al. 2020, TinyBERT (arXiv 1909.10351), equations 7 to 9, the mean over layers instead "
              "of the sum; equation 7 is of attention before the softmax: of=scores; equation 10 is the loss "
              "kl",
    .keys = keys,
    .taps = "embed, hidden, attention",
    .needs = needs,
    .prepare = prepare,
    .points = points,
    .release = loss_state_release,
};
