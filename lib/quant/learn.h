/*
 * Private to lib/quant: learned rounding. Refines codes and scales, on the grids of their types, starting from the
 * result of GPTQ, by gradients of the output error of half a layer (README.md, "Learned rounding").
 *
 * Order of files, each calling only earlier ones: (second_order.h: grid, refine), rounding, learn.
 */
#ifndef RILL_QUANT_LEARN_H
#define RILL_QUANT_LEARN_H

#include "lib/quant/second_order.h"

/* ---- one matrix (rounding.c) ------------------------------------------------------------------------------------- */

struct rounding {
    struct grid g;     /* the current candidate */
    void *last, *kept; /* its states (grid_state_bytes) where the gradient was taken, and the best so far */
    float *gradient;   /* [rows][cols] */
    double *row_power; /* [rows] sums of squares of the probes */
    float *rest;  /* [rows][cols] with steps on a sample: the other sequences' gradient beyond the sample's share */
    float *start; /* [rows][cols] values where that was measured */
    const float *gram; /* [cols][cols] of its inputs; owned by the caller */
};
/* Starts from the stored blocks. Call rounding_release even on failure. */
int rounding_new(struct rounding *r, enum dtype dtype, size_t rows, size_t cols, const float *gram,
                 const unsigned char *packed, struct err *e) MUST_CHECK;
void rounding_release(struct rounding *r);
/* Adds a probe [rows][cols]: the weight gradient for independent output errors of mean square 1. */
void rounding_probe(struct rounding *r, const float *probe);
/* Makes the candidate the base of the next step, with the loss gradient [rows][cols] there. */
void rounding_accept(struct rounding *r, const float *gradient);
/*
 * Steps on a sample of the data. At the start: gradient [rows][cols] of the sample, which stands for `scale` times as
 * many positions, then that of all data and the values there.
 */
int rounding_sampled(struct rounding *r, double scale, const float *gradient, struct err *e) MUST_CHECK;
void rounding_rest(struct rounding *r, const float *gradient, const float *value);
/* Later: turns the sample's gradient into an estimate for all data. Returns what the loss of all data changed by since
 * the start, to first order, beyond `scale` times the change of the sample's. */
double rounding_extend(const struct rounding *r, double scale, float *gradient, const float *value);
void rounding_back(struct rounding *r); /* resets the candidate to the base */
void rounding_keep(struct rounding *r);
/*
 * Takes a step from the base. To second order the loss changes by <gradient, d> + sum over rows b d^T gram d, where b
 * is estimated per row from the probes (Gauss-Newton; Hutchinson's estimator of the diagonal) and multiplied by `damp`
 * to account for interaction between rows. A sweep of grid_refine lowers it on the grid, so codes and scales remain
 * storable. scratch [rows][cols].
 */
int rounding_step(struct rounding *r, double damp, float *scratch, struct err *e) MUST_CHECK;
void rounding_value(const struct rounding *r,
                    float *value); /* [rows][cols] of the candidate, bit-identical to what a reader gets */
void rounding_put(const struct rounding *r, unsigned char *packed); /* writes the best state */

/* ---- a layer or half of one (learn.c) ---------------------------------------------------------------------------- */

struct learn_matrix {
    struct model_param *param; /* f32 parameter of the model; its value is unspecified afterwards */
    const float *gram;         /* [cols][cols] sum over the data of y y^T for its inputs y */
    enum dtype dtype;
    unsigned char *packed; /* IN/OUT: blocks */
};
struct learn_block {
    struct model *model;
    struct grad_tape *record, *scratch; /* a tape that records and one that does not */
    const struct model_input *in;       /* [n] */
    size_t n;
    uint32_t layer;
    enum model_block block;
    const float *x, *target; /* [positions][hidden]: inputs and target outputs */
    struct learn_matrix *matrices;
    size_t n_matrices;
    size_t sample; /* positions of the steps after the first, if the data has at least twice as many; 0: all */
    void (*step)(void *ctx, unsigned steps); /* called after each step with the number done; NULL: not called */
    void *step_ctx;
};
/* Mean over positions of |y - target|^2 / |target|^2, on the held-out sequences. */
struct learn_error {
    double before, after;
};
/* Runs the block with its current weights on x, into y; both [positions][hidden]. One sequence at a time. */
int learn_run(const struct learn_block *b, float *y, struct err *e) MUST_CHECK;
/*
 * Lowers the error in `passes` steps, each using the gradient over all sequences that are not held out, or an estimate
 * of it from `sample` positions. Keeps the best state on the held-out ones, at least the initial one. Independent of the
 * number of threads. On failure (ERR_IO: out of memory) the blocks are unchanged.
 */
int learn_rounding(const struct learn_block *b, unsigned passes, struct learn_error *error, struct err *e) MUST_CHECK;

#endif
