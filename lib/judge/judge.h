/*
 * judge: how far a model's predictions are from those of another model, or of itself before a change: for searches that
 * use the divergence of the whole model. For a model that is being changed, the input of each layer is kept, so a
 * candidate that differs from some layer on runs only from there.
 */
#ifndef RILL_JUDGE_H
#define RILL_JUDGE_H

#include "lib/base/base.h"
#include "lib/model/model.h"

/* ---- predictions of a model, for comparison ---------------------------------------------------------------------- */

/* The logits of a model for an input: positions * vocabulary * 4 bytes. The input is the caller's and must outlive the
 * reference; the model need not. The caller frees *out. ERR_DATA: the model does not predict the next token. */
struct judge_reference {
    const struct model_input *in;
    size_t positions, columns;
    float *logits; /* [positions][columns] */
    double *rows;  /* [positions] divergence in the last comparison */
};
int judge_reference_new(struct judge_reference **out, struct model *m, struct grad_tape *scratch,
                        const struct model_input *in, struct err *e) MUST_CHECK;
/* The mean Kullback-Leibler divergence from the reference's next-token distribution to the model's, in nats per
 * position; it may be infinite or NaN. ERR_USAGE: another number of logits. */
int judge_reference_compare(struct judge_reference *of, struct model *m, struct grad_tape *scratch, double *kl,
                            struct err *e) MUST_CHECK;
void judge_reference_free(struct judge_reference *of); /* no-op if NULL */

/* ---- a model that is being changed ------------------------------------------------------------------------------- */

/* In place of a layer's index: the candidate differs from the embedding on. */
#define JUDGE_INPUT SIZE_MAX

struct judge {
    struct model *model;
    struct grad_tape *scratch;    /* must not record */
    const struct model_input *in; /* all positions are compared: without `asked` */
    size_t positions, hidden;
    uint32_t *layers; /* [n] layers of the base, ascending; at first all of the model's */
    uint32_t n;
    float *into;   /* [n_layers + 1][positions][hidden]: input of each layer of the base, and output of the last */
    float *states; /* [positions][hidden] scratch */
    struct judge_reference *first; /* the unchanged model */
    struct arena memory;
};

/* Sequences [first, first + n) of the input. */
struct judge_part {
    size_t first, n;
};
/* Number of parts that the sequences are divided into, so that most of the cost of a bad candidate is saved: 4, or
 * fewer if there are fewer sequences; and the part for the number-th candidate, in turn. */
size_t judge_parts(const struct judge *j);
struct judge_part judge_part_at(const struct judge *j, uint64_t number);

/* Runs the unchanged model over the input and keeps its logits. Initialize with {.model, .scratch, .in}; call
 * judge_release even after a failure. Memory: positions * (vocabulary + (layers + 2) * hidden) * 4 bytes. ERR_DATA: the
 * model does not predict the next token. ERR_USAGE: more positions than fit. */
int judge_begin(struct judge *j, struct err *e) MUST_CHECK;
void judge_release(struct judge *j);
/* Updates the inputs of the base's layers after a change of its i-th layer or later ones; JUDGE_INPUT: of all. */
int judge_base(struct judge *j, size_t i, struct err *e) MUST_CHECK;
/* The mean of sum_v p_v log(p_v / q_v) in nats per position, where p is the unchanged model and q the base up to its
 * i-th layer, exclusive, followed by `layers` [n]; i = JUDGE_INPUT: the embedding followed by them. part NULL: on all
 * sequences. It may be infinite or NaN. */
int judge_try(struct judge *j, size_t i, const uint32_t *layers, size_t n, const struct judge_part *part, double *kl,
              struct err *e) MUST_CHECK;

#endif
