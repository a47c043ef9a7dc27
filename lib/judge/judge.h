/*
 * judge: how far a model is from what another one said, or it itself before it was changed: for searches whose judge is the true divergence
 * of the whole model. Of a model that is being changed, what comes into each layer is kept, so that a candidate that differs from some
 * layer on runs from there.
 */
#ifndef RILL_JUDGE_H
#define RILL_JUDGE_H

#include "lib/base/base.h"
#include "lib/model/model.h"

/* ---- what a model said ----------------------------------------------------------------------------------------------- */

/* What a model says of an input, to compare others with: its logits, positions * vocabulary * 4 bytes. ERR_DATA: a model that does not
 * predict the next token. The input is the caller's and lives as long as the reference; the model need not. */
struct judge_reference {
    const struct model_input *in;
    size_t positions, columns;
    float *logits; /* [positions][columns] */
    double *rows;  /* [positions]: divergence of what was judged last */
};
int judge_reference_new(struct judge_reference **out, struct model *m, struct grad_tape *scratch,
                        const struct model_input *in, struct err *e) MUST_CHECK;
/* The mean Kullback-Leibler divergence of the next token from it, in nats a position; it may be infinite or no number. ERR_USAGE: another
 * number of logits. */
int judge_reference_compare(struct judge_reference *of, struct model *m, struct grad_tape *scratch, double *kl,
                            struct err *e) MUST_CHECK;
void judge_reference_free(struct judge_reference *of); /* NULL is fine */

/* ---- a model that is being changed ------------------------------------------------------------------------------------ */

/* In place of a layer's number: the candidate differs from the embedding of the input on. */
#define JUDGE_INPUT SIZE_MAX

struct judge {
    struct model *model;
    struct grad_tape *scratch; /* that does not record */
    const struct model_input *in;
    size_t positions, hidden;
    uint32_t *layers; /* [n] of the base, ascending; all of the model's at first */
    uint32_t n;
    float *into;   /* [n_layers + 1][positions][hidden]: what comes into each layer of the base, and out of the last */
    float *states; /* [positions][hidden] */
    struct judge_reference *first; /* the model as it was */
    struct arena memory;
};

/* Sequences [first, first + n) of the input. */
struct judge_part {
    size_t first, n;
};
/* How many parts the sequences make for a first look at a candidate, which saves most of what a bad one costs: 4, or fewer where there are
 * fewer sequences; and one of them, taken in turn. */
size_t judge_parts(const struct judge *j);
struct judge_part judge_part_at(const struct judge *j, uint64_t number);

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
