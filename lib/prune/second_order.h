/*
 * Private to lib/prune: one matrix with the Gram matrix of its inputs, G = sum y y^T over positions. With b = sum t y^T of the outputs
 * t that are wanted, the squared error of weights w is tr(w G w^T) - 2 tr(w b^T), but for a constant.
 *
 * Order of files, each calling only those before it: sparsegpt, refit, alps.
 */
#ifndef RILL_PRUNE_SECOND_ORDER_H
#define RILL_PRUNE_SECOND_ORDER_H

#include "lib/obs/obs.h"
#include "lib/prune/prune_internal.h"

/*
 * SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1): column by column, what a weight that goes did is made up for in
 * the columns to come. Of a share, the weights of smallest w^2 / u_jj^2 of each block of columns go, over all rows; of a pattern,
 * those of each group of columns, row by row, when the first of them comes. The factor is in the order of the inputs.
 */
int prune_sparsegpt(const struct prune_matrix *w, const struct obs_factor *factor, struct prune_sparsity s,
                    struct err *e) MUST_CHECK;

struct prune_fit {
    const float *gram; /* [cols][cols] */
    const float *b;    /* [rows][cols] */
    double ridge;      /* added to the diagonal; b has its share of it */
    unsigned iterations;
};
/*
 * Least squares within a mask: the weights that are not 0 become, row by row, those of the least error, by conjugate gradients from what
 * they are, with the diagonal as preconditioner. Ends early when the residual has become small. What is 0 stays 0.
 */
int prune_refit(const struct prune_matrix *w, const struct prune_fit *fit, struct err *e) MUST_CHECK;

/*
 * ALPS (Meng et al. 2024, arXiv 2406.07831): min error of w with at most so many weights, by ADMM over copies w and d = w, of which d is
 * projected on the largest ones, with a penalty that grows as long as the mask moves; then prune_refit within the mask.
 * Inputs are scaled to a diagonal of 1 meanwhile. At most fit->iterations steps of the refit.
 */
int prune_alps(const struct prune_matrix *w, const struct prune_fit *fit, struct prune_sparsity s,
               struct err *e) MUST_CHECK;

#endif
