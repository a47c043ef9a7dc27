/*
 * Private to lib/prune: shapes for a target, and what they lose.
 * Order of files, each calling only those before it: weigh, widths, target.
 */
#ifndef RILL_PRUNE_TARGET_H
#define RILL_PRUNE_TARGET_H

#include "lib/prune/prune_internal.h"

/* What stays of a layer. groups 0: it goes. */
struct shape {
    uint32_t groups, each, ffn; /* each: query heads of a key/value head */
};
struct solution {
    struct shape *layers; /* [n] */
    double loss;
};

struct target {
    struct prune_plan *p;
    const struct model_config *from;
    uint32_t n;         /* layers */
    struct shape whole; /* of each of them */
    uint32_t unit;      /* widths are multiples of it */
    double *all;        /* [n] what all of the layer counts */
    double *ffn_loss;   /* [n][ffn + 1] what is lost when so many channels stay */
    double *head_loss;  /* [n][groups + 1][each + 1] ... so many groups, and so many heads of each */
    double limit;       /* of what target_measure says */
    double least;       /* measure of the smallest shape that loads */
    struct model_config trial;
    struct solution *best; /* [most], n_best of them, the best first */
    size_t n_best, most;
};

/* ---- weigh.c ---- */

/* Layers alike, with attention and a dense feed-forward part, weighed; most: solutions that are kept. Memory is the plan's. */
int target_begin(struct target *t, struct prune_plan *p, size_t most, struct err *e) MUST_CHECK;
/* all * (lost / all)^power of a layer in this shape; all of it when it goes. */
double target_lost(const struct target *t, const struct shape *s, uint32_t layer, double power);
/* Parameters, products or bytes of these layers [n] with what is around them; they are in t->trial then. */
int target_measure(struct target *t, const struct shape *layers, double *size, struct err *e) MUST_CHECK;
const char *target_unit(const struct target *t); /* "parameters" */
bool target_same(const struct target *t, const struct shape *a, const struct shape *b);
/* Copies the layers in among the best, behind those that lose as little. */
void target_keep(struct target *t, const struct shape *layers, double loss);

/* ---- widths.c ---- */

/*
 * Each layer its own shape, into layers [n]: from the whole model on, one step after another of those that a layer could make (a unit of
 * channels, a key/value head, a query head of each of these, all that is left), that which loses least for what it saves, until the limit
 * is kept; and then steps back that still fit. *fits: could it be kept?
 */
int target_allocate(struct target *t, double power, struct shape *layers, bool *fits, struct err *e) MUST_CHECK;

#endif
