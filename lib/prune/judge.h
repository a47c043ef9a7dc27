/*
 * Private to lib/prune: searches whose judge is the true divergence of the whole model. What comes into each layer is kept, so that a
 * candidate that differs from some layer on runs from there.
 */
#ifndef RILL_PRUNE_JUDGE_H
#define RILL_PRUNE_JUDGE_H

#include "lib/prune/prune.h"

struct prune_judge {
    struct model *model;
    struct grad_tape *scratch; /* that does not record */
    const struct model_input *in;
    size_t positions, hidden, columns;
    uint32_t *layers; /* [n] of the base, ascending; all of the model's at first */
    uint32_t n;
    float *into;   /* [n_layers + 1][positions][hidden]: what comes into each layer of the base, and out of the last */
    float *states; /* [positions][hidden] */
    float *reference; /* [positions][columns]: logits of the model as it was at first */
    double *rows;     /* [positions]: divergence */
    struct arena memory;
};

/* Sequences [first, first + n) of the input. */
struct prune_part_of {
    size_t first, n;
};

/* Runs the model as it is over the input and keeps its logits. Begin with {.model, .scratch, .in}; on failure too prune_judge_release.
 * ERR_DATA: it does not predict the next token. ERR_USAGE: more positions than fit. */
int prune_judge_begin(struct prune_judge *j, struct err *e) MUST_CHECK;
void prune_judge_release(struct prune_judge *j);
/* What comes into each layer of the base from its i-th on, which have changed. */
int prune_judge_base(struct prune_judge *j, size_t i, struct err *e) MUST_CHECK;
/* The mean divergence, in nats a position, of the base up to its i-th layer and then of these, on some of the sequences; NULL: on all. It may
 * be infinite or no number. */
int prune_judge_try(struct prune_judge *j, size_t i, const uint32_t *layers, size_t n, const struct prune_part_of *part,
                    double *kl, struct err *e) MUST_CHECK;

#endif
