/* What the files of lib/losses share: the rows of the table, and what several losses are made of. */
#ifndef RILL_LOSSES_INTERNAL_H
#define RILL_LOSSES_INTERNAL_H

#include "lib/losses/losses.h"

extern const struct loss_type loss_kl, loss_rkl, loss_skl, loss_srkl, loss_jsd, loss_akl, loss_tvd, loss_ab;
extern const struct loss_type loss_ce, loss_smooth, loss_tfkd, loss_mse, loss_hinge, loss_logistic;
extern const struct loss_type loss_hidden;

/* The key that losses against a teacher's distribution have. */
#define LOSS_TEMPERATURE                                                                                               \
    {                                                                                                                  \
        "temperature", LOSS_NUMBER, "T", NULL, 1e-3, 1e3,                                                              \
            "of both softmaxes; without it, that of the data, 1 in-process"                                            \
    }

/* Value and gradient of one divergence with the loss's temperature. */
int loss_divergence(struct loss *l, struct loss_block *b, enum kernel_divergence_kind kind, double first, double second,
                    struct err *e) MUST_CHECK;
/* The temperature after binding. */
double loss_temperature(const struct loss *l);
/* kl's value from the kernel's sum of t ln(t / p). */
double loss_kl_value(const struct knowledge_format *f, const struct kernel_target *target, size_t r, double kl);
/* n floats; what the buffer held is lost. NULL and *e when memory is out. */
float *loss_reserve(struct buf *b, size_t n, struct err *e);
/* The index of a type's key, or -1. */
int loss_key_index(const struct loss_type *t, const char *key);

#endif
