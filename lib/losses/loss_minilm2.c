/* MiniLMv2: self-relations of queries, keys and values, split into any number of heads. */
#include "lib/losses/losses_internal.h"

static const enum model_point of[] = {POINT_Q, POINT_K, POINT_V};
static const char *const weights[] = {"qq", "kk", "vv"};

struct minilm2 {
    struct loss_pair pair;
    size_t heads;
};

static bool divides(const struct loss_setting *s, const struct loss *l, const struct minilm2 *m, size_t heads) {
    for (size_t i = 0; i < COUNT_OF(of); i++)
        if (loss_number(l, weights[i]) > 0 && (model_point_cols(s->student, of[i], m->pair.student) % heads ||
                                               loss_teacher_cols(s, of[i], m->pair.teacher) % heads))
            return false;
    return true;
}

static int choose_heads(struct loss *l, const struct loss_setting *s, struct minilm2 *m, struct err *e) {
    m->heads = s->student->layers[m->pair.student].n_heads;
    if (loss_given(l, "heads")) m->heads = (size_t)loss_number(l, "heads");
    while (!loss_given(l, "heads") && !divides(s, l, m, m->heads)) m->heads--;
    return divides(s, l, m, m->heads)
               ? 0
               : err_set(e, ERR_USAGE,
                         "the loss minilm2: heads=%zu does not divide the widths of queries, keys and values",
                         m->heads);
}

static int needs(struct loss *l, const struct loss_setting *s, struct err *e) {
    struct minilm2 *m = mem_zalloc(sizeof *m, e);
    size_t first = 0;
    if (!m) return e->code;
    l->state = m;
    if (loss_some_term(l, weights, COUNT_OF(weights), e)) return e->code;
    while (loss_number(l, weights[first]) == 0) first++;
    if (loss_map_one(l, s, loss_teacher_layers(s, l, of[first], e), &m->pair, e)) return e->code;
    for (size_t i = first; i < COUNT_OF(of); i++)
        if (loss_number(l, weights[i]) > 0 && loss_want_pair(l, s, of[i], &m->pair, e)) return e->code;
    return choose_heads(l, s, m, e);
}

static int points(struct loss *l, struct loss_points *p, struct err *e) {
    const struct minilm2 *m = l->state;
    for (size_t i = 0; i < COUNT_OF(of); i++)
        if (loss_number(l, weights[i]) > 0 &&
            loss_self_relation(p, of[i], &m->pair, m->heads, loss_number(l, weights[i]), e))
            return e->code;
    return 0;
}

static const struct loss_key keys[] = {
    {"qq", LOSS_NUMBER, "W", "1", 0, 1e6, "weight of the relation of queries"},
    {"kk", LOSS_NUMBER, "W", "1", 0, 1e6, "weight of the relation of keys"},
    {"vv", LOSS_NUMBER, "W", "1", 0, 1e6, "weight of the relation of values"},
    {"heads", LOSS_NUMBER, "N", NULL, 1, 4096,
     "relation heads; without it, the most up to the student's heads that divide all widths"},
    LOSS_MAP("last"),
    {0}};

const struct loss_type loss_minilm2 = {
    .name = "minilm2",
    .summary = "MiniLMv2: relations of queries, keys and values in any number of heads",
    .formula = "sum over X = Q, K, V of the mean over labelled positions and heads of KL(r_t || r_s), r = softmax(X "
               "X^T / sqrt(d)) over all "
               "positions of the sequence",
    .source = "Wang et al. 2021, MiniLMv2 (arXiv 2012.15828); queries and keys after rotation, where "
              "positions rotate them",
    .keys = keys,
    .taps = "q, k, v",
    .needs = needs,
    .points = points,
    .release = loss_state_release,
};
