/* Mean squared error of the logits. */
#include "lib/losses/losses_internal.h"

static int logits(struct loss *l, struct loss_block *b, struct err *e) {
    const float *z;
    bool centred = !strcmp(loss_words(l, "centred"), "yes");
    if (loss_block_logits(b, &z, e)) return e->code;
    kernel_logit_mse(centred, b->weight, z, b->row_weight, b->logits, b->rows, b->vocab, b->values, b->dlogits);
    return 0;
}

static const struct loss_key keys[] = {
    {"centred", LOSS_CHOICE, "yes|no", "yes",
     .help = "take the mean of a row off both, which no softmax sees: then log-probabilities do as well as logits"},
    {0}};

const struct loss_type loss_mse = {
    .name = "mse",
    .summary = "mean squared error of the logits",
    .formula = "1/n sum_i (x_i - z_i)^2 over the n tokens of the vocabulary, of logits x and z less their means unless "
               "centred=no",
    .source = "Ba, Caruana 2014, Do deep nets really need to be deep? (arXiv 1312.6184); Kim et al. 2021, "
              "Comparing Kullback-Leibler divergence and mean squared error loss in knowledge distillation "
              "(arXiv 2105.08919); taking off the means is not in the papers",
    .keys = keys,
    .encodings = LOSS_ON(KNOW_DENSE),
    .raw_logits = true,
    .logits = logits,
};
