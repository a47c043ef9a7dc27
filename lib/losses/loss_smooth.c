/* Label smoothing: a part of the label's probability is spread over all tokens. */
#include "lib/losses/losses_internal.h"

static int logits(struct loss *l, struct loss_block *b, struct err *e) {
    float share = (float)(loss_number(l, "epsilon") / (double)b->vocab);
    struct kernel_label_target how = {
        .temperature = 1, .own = 1 - (float)loss_number(l, "epsilon") + share, .other = share, .weight = b->weight};
    (void)e;
    kernel_label_target(&how, b->labels, b->row_weight, b->logits, b->rows, b->vocab, b->values, b->dlogits);
    return 0;
}

static const struct loss_key keys[] = {{"epsilon", LOSS_NUMBER, "E", "0.1", 0, 0.999, "what is shared out"}, {0}};

const struct loss_type loss_smooth = {
    .name = "smooth",
    .summary = "cross-entropy of smoothed labels",
    .formula = "-sum_i t_i ln p_i, t = (1 - E) [i = label] + E / vocabulary",
    .source = "Szegedy et al. 2016, Rethinking the inception architecture for computer vision (arXiv "
              "1512.00567), section 7",
    .keys = keys,
    .logits = logits,
};
