/*
 * Private to lib/quant: rounding that is learned. Codes and scales of matrices, on the grids of their types, go on from what GPTQ left,
 * by gradients of the error that half a layer makes in what comes out of it (README.md, "Learned rounding").
 *
 * Order of files, each calling only those before it: (second_order.h: grid, refine), rounding, learn.
 */
#ifndef RILL_QUANT_LEARN_H
#define RILL_QUANT_LEARN_H

#include "lib/quant/second_order.h"

/* ---- one matrix (rounding.c) -------------------------------------------------------------------------------------------- */

struct rounding {
    struct grid g;                   /* as it is tried */
    struct quant_parts *last, *kept; /* [rows][blocks] of the place that the gradient is of, and the best so far */
    float *gradient;                 /* [rows][cols] */
    double *row_power;               /* [rows] sums of squares of the probes */
    const float *gram;               /* [cols][cols] of its inputs, the caller's */
};
/* From the blocks as they are stored. On failure too, *r is what rounding_release takes. */
int rounding_new(struct rounding *r, enum dtype dtype, size_t rows, size_t cols, const float *gram,
                 const unsigned char *packed, struct err *e) MUST_CHECK;
void rounding_release(struct rounding *r);
/* Adds a probe [rows][cols]: what comes back to the weights when independent values of mean square 1 are put into the errors. */
void rounding_probe(struct rounding *r, const float *probe);
/* What is tried is the place from which the next step goes, gradient [rows][cols] the loss's there. */
void rounding_accept(struct rounding *r, const float *gradient);
void rounding_back(struct rounding *r); /* what is tried becomes that place again */
void rounding_keep(struct rounding *r);
/*
 * A step from the last place. To second order the loss changes by <gradient, d> + sum over rows b d^T gram d, with b what the probes
 * say of the row (Gauss-Newton; Hutchinson's estimate of the diagonal), times `damp` for what errors of different rows do
 * together. It is made smaller on the grid, by a sweep of grid_refine, so codes and scales stay what can be stored.
 * scratch [rows][cols].
 */
int rounding_step(struct rounding *r, double damp, float *scratch, struct err *e) MUST_CHECK;
void rounding_value(const struct rounding *r,
                    float *value); /* [rows][cols] of what is tried, to the bit as read back */
void rounding_put(const struct rounding *r, unsigned char *packed); /* what was kept */

/* ---- a layer or half of one (learn.c) ----------------------------------------------------------------------------------- */

struct learn_matrix {
    struct model_param *param; /* f32, of the model: what it is afterwards is not said */
    const float *gram;         /* [cols][cols] sum over the data of y y^T, y what comes into it */
    enum dtype dtype;
    unsigned char *packed; /* IN/OUT: its blocks */
};
struct learn_block {
    struct model *model;
    struct grad_tape *record, *scratch; /* that records, and that does not */
    const struct model_input *in;       /* [n] */
    size_t n;
    uint32_t layer;
    enum model_block block;
    const float *x, *target; /* [positions][hidden]: what comes in, and what should come out */
    struct learn_matrix *matrices;
    size_t n_matrices;
    void (*step)(void *ctx, unsigned steps); /* told after each step how many there were; NULL: nobody */
    void *step_ctx;
};
/* Mean over positions of |y - target|^2 / |target|^2, on the sequences that are held out. */
struct learn_error {
    double before, after;
};
/* What the block makes of x with its weights as they are, into y; both [positions][hidden]. Sequence by sequence. */
int learn_run(const struct learn_block *b, float *y, struct err *e) MUST_CHECK;
/*
 * Makes the error smaller, in `passes` steps, each after the gradient over all sequences that are not held out. What was best
 * on those that are is kept, at first what came in. The same whatever the threads. On failure (ERR_IO: memory is out) the
 * blocks are as they were.
 */
int learn_rounding(const struct learn_block *b, unsigned passes, struct learn_error *error, struct err *e) MUST_CHECK;

#endif
