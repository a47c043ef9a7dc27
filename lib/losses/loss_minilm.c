/* MiniLM: attention of the last layer, and the self-relation of its values. */
#include "lib/losses/losses_internal.h"

struct minilm {
    struct loss_pair pair;
    struct loss_attention attention;
    size_t heads;
};

static int want_values(struct loss *l, const struct loss_setting *s, struct minilm *m, struct err *e) {
    m->heads = s->student->layers[m->pair.student].n_kv_heads;
    if (loss_want_pair(l, s, POINT_V, &m->pair, e)) return e->code;
    size_t cols = loss_teacher_cols(s, POINT_V, m->pair.teacher);
    return cols % m->heads == 0
               ? 0
               : err_set(e, ERR_USAGE,
                         "the loss minilm: %zu heads of the student's values, %zu columns of the teacher's", m->heads,
                         cols);
}

static int needs(struct loss *l, const struct loss_setting *s, struct err *e) {
    static const char *const terms[] = {"attention", "values"};
    if (loss_some_term(l, terms, COUNT_OF(terms), e)) return e->code;
    struct minilm *m = mem_zalloc(sizeof *m, e);
    if (!m) return e->code;
    l->state = m;
    bool attention = loss_number(l, "attention") > 0;
    uint32_t layers = attention ? loss_attention_layers(s, l, e) : loss_teacher_layers(s, l, POINT_V, e);
    if (loss_map_one(l, s, layers, &m->pair, e)) return e->code;
    if (attention && loss_want_attention(l, s, &m->pair, false, &m->attention, e)) return e->code;
    return loss_number(l, "values") > 0 ? want_values(l, s, m, e) : 0;
}

static int points(struct loss *l, struct loss_points *p, struct err *e) {
    const struct minilm *m = l->state;
    if (loss_number(l, "attention") > 0 &&
        loss_attention_pair(p, &m->pair, &m->attention, loss_number(l, "attention"), e))
        return e->code;
    return loss_number(l, "values") > 0
               ? loss_self_relation(p, POINT_V, &m->pair, m->heads, loss_number(l, "values"), e)
               : 0;
}

static const struct loss_key keys[] = {{"attention", LOSS_NUMBER, "W", "1", 0, 1e6, "weight of attention"},
                                       {"values", LOSS_NUMBER, "W", "1", 0, 1e6, "weight of the relation of values"},
                                       LOSS_MAP("last"),
                                       {0}};

const struct loss_type loss_minilm = {
    .name = "minilm",
    .summary = "MiniLM: attention and value relation of the last layer",
    .formula = "mean over labelled queries and heads of KL(a_t || a_s), plus the same of r = softmax(V V^T / sqrt(d)) "
               "over all positions of "
               "the sequence; values have as many heads as the student keeps of them",
    .source = "Wang et al. 2020, MiniLM (arXiv 2002.10957), sections 3.1 and 3.2",
    .keys = keys,
    .taps = "attention, v",
    .needs = needs,
    .points = points,
    .release = loss_state_release,
};
