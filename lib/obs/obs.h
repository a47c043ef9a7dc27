/*
 * obs: the common part of second-order methods after "Optimal Brain Surgeon" (Hassibi and Stork 1993). When a weight is
 * changed, later weights of its row are updated to compensate for the error in the layer's output, by the inverse of
 * the Gram matrix H = sum x x^T of the layer's inputs. GPTQ quantizes and SparseGPT prunes in this way: they differ in
 * the decision per column.
 *
 * Matrices are [rows][cols], rows outputs and cols inputs, as in a model, all in host memory. Results do not depend on
 * the number of threads.
 */
#ifndef RILL_OBS_H
#define RILL_OBS_H

#include "lib/base/base.h"
#include "lib/kernel/kernel.h"

struct obs_options {
    double damp;    /* damping added to the diagonal, as a fraction of its mean: 0.01 (GPTQ) */
    unsigned tries; /* further attempts with ten times the damping each, if H does not factor */
    bool act_order; /* process columns in descending order of H's diagonal (GPTQ's act-order, desc_act) */
};

struct obs_factor {
    size_t n;        /* inputs */
    float *u;        /* [n][n], in processing order: u^T u = (H + damping)^-1 */
    uint32_t *order; /* [n] input processed at position i; NULL: i */
    uint8_t *dead;   /* [n] 1 if input i is always 0: its weights have no effect and become 0 */
    size_t n_dead;
    double damp;  /* damping used, as a fraction ... */
    double added; /* ... and as the value added */
};

/*
 * Factors H, given as gram [n][n], of which the upper triangle is read: sets the diagonal of dead inputs to 1, orders,
 * damps and factors. The caller frees *out. ERR_DATA: a diagonal element is negative or not finite, or H does not
 * factor after all tries (with the last damping).
 */
int obs_factor_new(struct obs_factor **out, const float *gram, size_t n, const struct obs_options *o,
                   struct err *e) MUST_CHECK;
void obs_factor_free(struct obs_factor *f); /* no-op if NULL */

/* The decisions of a method, called as in struct kernel_feedback. */
struct obs_method {
    size_t block; /* columns between two updates of the rest; 128 unless a grid's groups are longer */
    /* Before a block of n columns from position `first` on: w [n][rows], their current values. NULL: none. */
    void (*begin)(void *ctx, size_t first, size_t n, const float *w);
    /* Writes to kept [n] the new values of rows [row, row + n) of the column at position `column` (input
     * factor->order[column]). */
    void (*decide)(void *ctx, size_t column, size_t left, size_t row, size_t n, const float *w, float *kept);
    void *ctx;
};

/*
 * Applies a method to w [rows][f->n]. kept [rows][f->n]: the values that it kept; may be w, or NULL if its decisions
 * suffice. loss [rows], or NULL: sum |w x - kept x|^2 is added for each row. Memory: two copies of w. ERR_IO: out
 * of memory.
 */
int obs_sweep(const struct obs_factor *f, const struct obs_method *m, const float *w, size_t rows, float *kept,
              double *loss, struct err *e) MUST_CHECK;

/*
 * Least squares for changed inputs: w [rows][f->n] becomes b H^-1, which minimizes sum |t - w y|^2 + damping |w|^2 for
 * inputs y with Gram matrix H, where b [rows][f->n] = sum t y^T for target outputs t. ERR_IO: out of memory.
 */
int obs_solve(const struct obs_factor *f, const float *b, float *w, size_t rows, struct err *e) MUST_CHECK;

#endif
