/* Universal logit distillation: compares sorted probabilities, whatever their tokens. */
#include "lib/losses/losses_internal.h"

static int logits(struct loss *l, struct loss_block *b, struct err *e) {
    struct kernel_target target;
    struct arena *a = &b->list->memory;
    if (loss_block_target(b, loss_temperature(l), &target, e)) return e->code;
    void *scratch = arena_alloc(a, kernel_sorted_scratch(b->vocab), e);
    if (scratch)
        kernel_sorted_distance((float)loss_temperature(l), b->weight, &target, b->row_weight, b->logits, b->rows,
                               b->vocab, scratch, b->values, b->dlogits);
    arena_reset(a);
    return scratch ? 0 : e->code;
}

static const struct loss_key keys[] = {LOSS_TEMPERATURE, {0}};

const struct loss_type loss_uld = {
    .name = "uld",
    .summary = "universal logit distillation: the Wasserstein distance of probabilities in descending order",
    .formula = "sum_i |p_(i) - t_(i)|, both in descending order, the shorter one filled up with zeros",
    .source = "Boizard, El Haddad, Hudelot, Colombo 2024, Towards cross-tokenizer distillation: the universal "
              "logit distillation loss for LLMs (arXiv 2402.12030)",
    .keys = keys,
    .encodings = LOSS_ON(KNOW_DENSE) | LOSS_ON_TOP,
    .on_sparse = "topk, topp, ghost: the entries, and zeros as the paper fills up a smaller vocabulary; sample: "
                 "refused, counts of draws "
                 "are not in order. Positions must be the student's: rill realign makes them of another tokenizer's",
    .logits = logits,
};
