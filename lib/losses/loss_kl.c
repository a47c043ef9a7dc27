/* Forward Kullback-Leibler divergence, times T^2: the usual meaning of "distillation". */
#include <math.h>

#include "lib/losses/losses_internal.h"

const char *loss_kl_name(const struct knowledge_format *f) {
    static const char *const names[] = {[KNOW_NONE] = NULL,
                                        [KNOW_DENSE] = "kl",
                                        [KNOW_TOPK] = "kl_truncated",
                                        [KNOW_TOPP] = "kl_truncated",
                                        [KNOW_GHOST] = "kl_lower_bound",
                                        [KNOW_SAMPLE] = "teacher_ce"};
    return names[f->encoding];
}

/* The reported value differs from the kernel's sum by a term that does not depend on the student. */
double loss_kl_value(const struct knowledge_format *f, const struct kernel_target *target, size_t r, double kl) {
    double mass;
    if (target->dense || !target->ids || target->rest) return kl;
    double t_ln_t = knowledge_t_ln_t(target, r, &mass);
    return kl - (f->encoding == KNOW_SAMPLE ? t_ln_t : mass > 0 ? mass * log(mass) : 0);
}

static int logits(struct loss *l, struct loss_block *b, struct err *e) {
    struct kernel_loss how = {(float)loss_temperature(l), b->weight, 0};
    struct kernel_target target;
    if (loss_block_target(b, loss_temperature(l), &target, e)) return e->code;
    target.label = NULL;
    if (loss_distill(b, &how, &target, b->values, NULL, e)) return e->code;
    for (size_t r = 0; r < b->rows; r++) b->values[r] = loss_kl_value(b->of->format, &target, r, b->values[r]);
    return 0;
}

static const struct loss_key keys[] = {LOSS_TEMPERATURE, {0}};

const struct loss_type loss_kl = {
    .name = "kl",
    .summary = "forward KL of the student from the teacher",
    .formula = "T^2 sum_i t_i ln(t_i / p_i), t and p at temperature T",
    .source = "Hinton, Vinyals, Dean 2015, Distilling the knowledge in a neural network (arXiv 1503.02531), "
              "section 2; less the entropy of t, which is a constant",
    .keys = keys,
    .encodings = LOSS_ON_ALL,
    .on_sparse = "topk, topp: of the entries alone, which is biased; ghost: the rest as one token, a lower bound; "
                 "sample: unbiased",
    .prepare = loss_square_temperature,
    .logits = logits,
};
