/*
 * Private to lib/prune: shapes that meet a target, and their estimated loss.
 * Order of files, each calling only earlier ones: weigh, widths, target; and, after plan, candidates.
 */
#ifndef RILL_PRUNE_TARGET_H
#define RILL_PRUNE_TARGET_H

#include "lib/prune/prune_internal.h"

struct solution {
    struct prune_shape *layers; /* [n] */
    double loss;
};

/*
 * Estimated loss of a model, summed over layers: (heads h + channels c)^power all^(1 - power), where h and c are the
 * sums of |w dL/dw| over the removed parts and `all` over the layer; a removed layer costs `layers` * all. The default
 * squares the removed share, as if the loss were quadratic in it; candidates.c fits the constants to measurements. With
 * plain sums, whole layers look too cheap: lib/prune/README.md has the numbers.
 */
struct target_cost {
    double heads, channels, layers, power;
};
#define TARGET_COST ((struct target_cost){1, 1, 1, 2})

struct target {
    struct prune_plan *p;
    const struct model_config *from;
    uint32_t n;               /* layers */
    struct prune_shape whole; /* of each layer before pruning */
    uint32_t unit;            /* widths are multiples of this */
    double *all;              /* [n] score of the whole layer */
    double *ffn_loss;         /* [n][ffn + 1] loss when so many channels stay */
    double *head_loss;        /* [n][groups + 1][each + 1] loss for so many groups and heads per group */
    double all_size;          /* of the unpruned model, by target_measure */
    double limit;             /* on target_measure */
    double least;             /* measure of the smallest loadable shape */
    struct model_config trial;
    struct solution *best; /* [most], n_best of them used, best first */
    size_t n_best, most;
};

/* ---- weigh.c ---- */

/* Computes the scores for a model of identical layers with attention and a dense feed-forward part; `most`: solutions
 * to keep. Memory comes from the plan, whose `to` describes the parts outside layers. */
int target_begin(struct target *t, struct prune_plan *p, size_t most, struct err *e) MUST_CHECK;
/* The loss of this layer in this shape. */
double target_lost(const struct target *t, const struct prune_shape *s, uint32_t layer, const struct target_cost *cost);
/* Parameters, products or bytes of the model with these layers [n]; leaves them in t->trial. */
int target_measure(struct target *t, const struct prune_shape *layers, double *size, struct err *e) MUST_CHECK;
const char *target_unit(const struct target *t); /* "parameters" */
bool target_same(const struct target *t, const struct prune_shape *a, const struct prune_shape *b);
/* Inserts a copy of the layers among the best, after any with equal loss. */
void target_keep(struct target *t, const struct prune_shape *layers, double loss);

/* ---- widths.c ---- */

/*
 * Gives each layer its own shape, layers [n]. Starting from the unpruned model, repeatedly takes the step with the
 * least loss per saving (removing a unit of channels, a key/value head, a query head per key/value head, or the rest of
 * the layer) until the limit is met; then undoes steps that still fit. *fits: whether the limit was met.
 */
int target_allocate(struct target *t, const struct target_cost *cost, struct prune_shape *layers, bool *fits,
                    struct err *e) MUST_CHECK;

/* ---- target.c ---- */

/* Replaces t->best by the best shapes under this cost: at most t->most, or one if layers differ. n_best 0: no shape
 * meets the target. */
int target_search(struct target *t, const struct target_cost *cost, struct err *e) MUST_CHECK;
/* Sets ERR_USAGE: no shape is that small. */
int target_none(const struct target *t, struct err *e) MUST_CHECK;

#endif
