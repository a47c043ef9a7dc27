/*
 * Private to lib/prune: the judge of all searches is the true divergence from what the whole model said. For candidates that differ from the
 * model from some layer on, what comes into each layer is kept, so that they run from there.
 */
#ifndef RILL_PRUNE_JUDGE_H
#define RILL_PRUNE_JUDGE_H

#include "lib/prune/prune.h"

struct prune_reference {
    const struct model_input *in;
    size_t positions, columns;
    float *logits; /* [positions][columns] */
    double *rows;  /* [positions]: divergence of what was judged last */
};

struct prune_judge {
    struct model *model;
    struct grad_tape *scratch; /* that does not record */
    const struct model_input *in;
    size_t positions, hidden;
    uint32_t *layers; /* [n] of the base, ascending; all of the model's at first */
    uint32_t n;
    float *into;   /* [n_layers + 1][positions][hidden]: what comes into each layer of the base, and out of the last */
    float *states; /* [positions][hidden] */
    struct prune_reference *first; /* the model as it was */
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
