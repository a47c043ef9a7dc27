/* Teacher-free distillation: the teacher is a hand-made distribution around the label. */
#include <math.h>

#include "lib/losses/losses_internal.h"

static int logits(struct loss *l, struct loss_block *b, struct err *e) {
    double t = loss_number(l, "temperature"), a = loss_number(l, "a"), n = (double)b->vocab - 1;
    double own = pow(a, 1 / t), other = n > 0 ? pow((1 - a) / n, 1 / t) : 0, sum = own + n * other;
    struct kernel_label_target how = {.temperature = (float)t,
                                      .own = (float)(own / sum),
                                      .other = (float)(other / sum),
                                      .weight = b->weight,
                                      .divergence = true};
    (void)e;
    kernel_label_target(&how, b->labels, b->row_weight, b->logits, b->rows, b->vocab, b->values, b->dlogits);
    return 0;
}

static const struct loss_key keys[] = {
    {"a", LOSS_NUMBER, "A", "0.9", 1e-3, 0.999999, "what the teacher gives the label; above 1 / vocabulary"},
    {"temperature", LOSS_NUMBER, "T", "1", 1e-3, 1e3, "of both distributions"},
    {0}};

const struct loss_type loss_tfkd = {
    .name = "tfkd",
    .summary = "KL from a virtual teacher, made by hand from the label",
    .formula = "T^2 KL(t||p), t = (A of the label, (1 - A) / (vocabulary - 1) of each other)^(1/T), normalised; p at T",
    .source = "Yuan et al. 2020, Revisiting knowledge distillation via label smoothing regularization (arXiv "
              "1909.11723), equations 8 and 9; T^2, as in kl, is not in the paper, which has A from 0.9 and T "
              "from 20",
    .keys = keys,
    .prepare = loss_square_temperature,
    .logits = logits,
};
