/* Losses on the order of the teacher's most probable tokens, whatever their probabilities. */
#include "lib/losses/losses_internal.h"

/* Returns the first k tokens of dense rows as entries; sparse rows are in descending order already. */
static int entries(struct loss_block *b, size_t k, struct kernel_target *t, struct err *e) {
    struct arena *a = &b->list->memory;
    if (loss_block_target(b, loss_temperature(b->loss), t, e)) return e->code;
    if (!t->dense) return 0;
    if (k > b->vocab) k = b->vocab;
    uint32_t *ids = arena_array(a, b->rows * k, sizeof *ids, e);
    float *values = ids ? arena_array(a, b->rows * k, sizeof *values, e) : NULL;
    uint64_t *offset = values ? arena_array(a, b->rows + 1, sizeof *offset, e) : NULL;
    if (!offset) return e->code;
    kernel_topk(ids, values, kernel_f32(t->dense), b->rows, b->vocab, k);
    for (size_t r = 0; r <= b->rows; r++) offset[r] = r * k;
    *t = (struct kernel_target){.offset = offset, .ids = ids, .probs = values};
    return 0;
}

static int rank(struct loss *l, struct loss_block *b, bool logistic, struct err *e) {
    struct kernel_target t;
    struct kernel_rank how = {logistic, (float)loss_number(l, "margin"), b->weight, (size_t)loss_number(l, "k")};
    int rc = entries(b, how.most, &t, e);
    if (!rc)
        kernel_rank(&how, t.offset, t.ids, t.probs, b->row_weight, b->logits, b->rows, b->vocab, b->values, b->dlogits);
    arena_reset(&b->list->memory);
    return rc;
}

static int hinge(struct loss *l, struct loss_block *b, struct err *e) {
    return rank(l, b, false, e);
}

static int logistic(struct loss *l, struct loss_block *b, struct err *e) {
    return rank(l, b, true, e);
}

static const struct loss_key hinge_keys[] = {
    {"k", LOSS_NUMBER, "K", "8", 2, 256, "the teacher's first tokens that are put in order"},
    {"margin", LOSS_NUMBER, "M", "1", 0, 1e3, "by which a logit should be larger"},
    {0}};
static const struct loss_key logistic_keys[] = {
    {"k", LOSS_NUMBER, "K", "8", 2, 256, "the teacher's first tokens that are put in order"},
    {"margin", LOSS_NUMBER, "M", "0", 0, 1e3, "by which a logit should be larger"},
    {0}};

#define ON_SPARSE                                                                                                      \
    "topk, topp, ghost: of the first K entries, exactly; sample: refused, counts of draws do not give an order"

const struct loss_type loss_hinge = {
    .name = "hinge",
    .summary = "pairwise hinge loss on the order of the teacher's first tokens",
    .formula = "mean over pairs i, j of the first K with t_i > t_j of max(0, M - (x_i - x_j))",
    .source =
        "Herbrich, Graepel, Obermayer 2000, Large margin rank boundaries for ordinal regression; for distillation "
        "after Reddi et al. 2021, RankDistil",
    .keys = hinge_keys,
    .encodings = LOSS_ON(KNOW_DENSE) | LOSS_ON_TOP,
    .on_sparse = ON_SPARSE,
    .logits = hinge,
};

const struct loss_type loss_logistic = {
    .name = "logistic",
    .summary = "pairwise logistic loss on the order of the teacher's first tokens",
    .formula = "mean over pairs i, j of the first K with t_i > t_j of ln(1 + e^(M - (x_i - x_j)))",
    .source =
        "Burges et al. 2005, Learning to rank using gradient descent (RankNet), with a target of 1 and M = 0; for "
        "distillation after Reddi et al. 2021, RankDistil",
    .keys = logistic_keys,
    .encodings = LOSS_ON(KNOW_DENSE) | LOSS_ON_TOP,
    .on_sparse = ON_SPARSE,
    .logits = logistic,
};
