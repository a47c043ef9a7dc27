/*
 * Private to lib/prune: shapes for a target, and what they lose.
 * Order of files, each calling only those before it: weigh, widths, target; and, after plan, candidates.
 */
#ifndef RILL_PRUNE_TARGET_H
#define RILL_PRUNE_TARGET_H

#include "lib/prune/prune_internal.h"

struct solution {
    struct prune_shape *layers; /* [n] */
    double loss;
};

/*
 * What a model loses: of each layer (h heads + c channels)^power all^(1 - power), where h and c are the sums of |w dL/dw| of what goes and all
 * is the layer's, and `layers` times all of a layer that goes. The square of the share, as if the loss were quadratic in it, unless
 * measurements say otherwise (candidates.c). As plain sums, whole layers seem too cheap: lib/prune/README.md has the numbers.
 */
struct target_cost {
    double heads, channels, layers, power;
};
#define TARGET_COST ((struct target_cost){1, 1, 1, 2})

struct target {
    struct prune_plan *p;
    const struct model_config *from;
    uint32_t n;               /* layers */
    struct prune_shape whole; /* of each of them */
    uint32_t unit;            /* widths are multiples of it */
    double *all;              /* [n] what all of the layer counts */
    double *ffn_loss;         /* [n][ffn + 1] what is lost when so many channels stay */
    double *head_loss;        /* [n][groups + 1][each + 1] ... so many groups, and so many heads of each */
    double all_size;          /* of the model as it is, as target_measure says */
    double limit;             /* of what target_measure says */
    double least;             /* measure of the smallest shape that loads */
    struct model_config trial;
    struct solution *best; /* [most], n_best of them, the best first */
    size_t n_best, most;
};

/* ---- weigh.c ---- */

/* Layers alike, with attention and a dense feed-forward part, weighed; most: solutions that are kept. Memory is the plan's, whose `to` says
 * what is around the layers. */
int target_begin(struct target *t, struct prune_plan *p, size_t most, struct err *e) MUST_CHECK;
/* What this layer loses in this shape. */
double target_lost(const struct target *t, const struct prune_shape *s, uint32_t layer, const struct target_cost *cost);
/* Parameters, products or bytes of these layers [n] with what is around them; they are in t->trial then. */
int target_measure(struct target *t, const struct prune_shape *layers, double *size, struct err *e) MUST_CHECK;
const char *target_unit(const struct target *t); /* "parameters" */
bool target_same(const struct target *t, const struct prune_shape *a, const struct prune_shape *b);
/* Copies the layers in among the best, behind those that lose as little. */
void target_keep(struct target *t, const struct prune_shape *layers, double loss);

/* ---- widths.c ---- */

/*
 * Each layer its own shape, into layers [n]: from the whole model on, one step after another of those that a layer could make (a unit of
 * channels, a key/value head, a query head of each of these, all that is left), that which loses least for what it saves, until the limit
 * is kept; and then steps back that still fit. *fits: could it be kept?
 */
int target_allocate(struct target *t, const struct target_cost *cost, struct prune_shape *layers, bool *fits,
                    struct err *e) MUST_CHECK;

/* ---- target.c ---- */

/* The best shapes by this cost into t->best, instead of those that are there: t->most at most; of layers that differ, one. None: there is
 * none for this target. */
int target_search(struct target *t, const struct target_cost *cost, struct err *e) MUST_CHECK;
/* ERR_USAGE: no shape is that small. */
int target_none(const struct target *t, struct err *e) MUST_CHECK;

#endif
