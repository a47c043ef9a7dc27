/*
 * judge: how far a model that is being changed is from what it was, for searches whose judge is the true divergence of the whole model.
 * What comes into each layer is kept, so that a candidate that differs from some layer on runs from there.
 */
#ifndef RILL_JUDGE_H
#define RILL_JUDGE_H

#include "lib/base/base.h"
#include "lib/model/model.h"

/* In place of a layer's number: the candidate differs from the embedding of the input on. */
#define JUDGE_INPUT SIZE_MAX

struct judge {
    struct model *model;
    struct grad_tape *scratch; /* that does not record */
    const struct model_input *in;
    size_t positions, hidden, columns;
    uint32_t *layers; /* [n] of the base, ascending; all of the model's at first */
    uint32_t n;
    float *into;   /* [n_layers + 1][positions][hidden]: what comes into each layer of the base, and out of the last */
    float *states; /* [positions][hidden] */
    float *reference; /* [positions][columns]: logits of the model as it was at first */
    double *rows;     /* [positions]: divergence of what was judged last, of the sequences that it was judged on */
    struct arena memory;
};

/* Sequences [first, first + n) of the input. */
struct judge_part {
    size_t first, n;
};

/* Runs the model as it is over the input and keeps its logits. Begin with {.model, .scratch, .in}; on failure too judge_release.
 * Memory: positions * (vocabulary + (layers + 2) * hidden) * 4 bytes. ERR_DATA: it does not predict the next token. ERR_USAGE: more
 * positions than fit. */
int judge_begin(struct judge *j, struct err *e) MUST_CHECK;
void judge_release(struct judge *j);
/* What comes into each layer of the base anew: its i-th has changed, or some after it; JUDGE_INPUT: all. */
int judge_base(struct judge *j, size_t i, struct err *e) MUST_CHECK;
/* The mean of sum_v p_v log(p_v / q_v), in nats a position, p the model at the beginning and q the base up to its i-th layer, then
 * these; on some of the sequences; part NULL: on all. With the i of JUDGE_INPUT, the input and then these. It may be infinite or no number. */
int judge_try(struct judge *j, size_t i, const uint32_t *layers, size_t n, const struct judge_part *part, double *kl,
              struct err *e) MUST_CHECK;

#endif
