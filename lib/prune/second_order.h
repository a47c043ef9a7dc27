/*
 * Private to lib/prune: one matrix with the Gram matrix of its inputs, G = sum y y^T over positions. With b = sum t y^T of the outputs
 * t that are wanted, the squared error of weights w is tr(w G w^T) - 2 tr(w b^T), but for a constant.
 *
 * Order of files, each calling only those before it: sparsegpt, refit, alps, lowrank, held, greedy, consume; sequential, structure, hidden,
 * layerwise.
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

/*
 * Low-rank factors: w becomes second first, first [rank][cols] and second [rows][rank], whose outputs differ least from those of w on
 * inputs of the factored Gram matrix H = S S^T, damping included: the truncated singular value decomposition of w S, times S^-1 (Wang et al.
 * 2024, "SVD-LLM", arXiv 2403.07378, truncation-aware data whitening). The squared error tr(d H d^T) is the sum of the squared
 * singular values that are dropped. f (without an order) NULL: H = 1, plain SVD. Both factors take the square roots of the
 * singular values. Columns of dead inputs count as 0. Memory: 24 bytes a weight. ERR_DATA: no decomposition is found.
 */
struct prune_factors {
    float *first, *second; /* the caller's */
};
int prune_low_rank(const struct prune_matrix *w, const struct obs_factor *f, uint32_t rank,
                   const struct prune_factors *out, struct err *e) MUST_CHECK;
/* The second factor becomes that of least squares, given the first. */
int prune_fit_second(const struct prune_matrix *w, const struct prune_fit *fit, uint32_t rank,
                     const struct prune_factors *out, struct err *e) MUST_CHECK;

/* ---- on the way through a model, layer by layer (held.c) ---- */

/* What the two ways have in common. */
struct prune_walk {
    const struct prune_calibration *c;
    struct stream_writer *out;
    struct prune_report *report;
};
/* Report, name and the head of the output. */
int prune_walk_begin(const struct prune_walk *k, const struct prune_plan *plan, struct err *e) MUST_CHECK;
/* A tensor as model_save_param writes it, without the rows of tokens that go. */
int prune_write_param(const struct prune_walk *k, const struct prune_plan *plan, const struct model_param *p,
                      struct buf *scratch, struct err *e) MUST_CHECK;
/* Single weights (sequential.c), or layers, heads and channels (structure.c): ERR_USAGE when the plan asks for what cannot be done so. */
int prune_weights(const struct prune_walk *k, const struct prune_plan *plan, struct err *e) MUST_CHECK;
int prune_structure(const struct prune_walk *k, const struct prune_plan *plan, struct err *e) MUST_CHECK;
/* The residual stream (hidden.c): the same. */
int prune_hidden(const struct prune_walk *k, const struct prune_plan *plan, struct err *e) MUST_CHECK;
/* Tensors [first, end) of the model in stream order; ERR_DATA. */
int prune_check_finite(const struct model *m, size_t first, size_t end, struct err *e) MUST_CHECK;
/* Rounds to the type of the stream; quantized ones become f32 and are left. */
int prune_round(struct model_param *p, struct buf *scratch, struct err *e) MUST_CHECK;
/* tr(d G d^T) of the difference d to the weights as they were, over that of these. */
int prune_output_error(const struct prune_matrix *w, const float *gram, const float *was, double *out,
                       struct err *e) MUST_CHECK;

/* ---- columns of a matrix (greedy.c, consume.c) ---- */

/*
 * Which columns of w can be missed: units of `width` consecutive columns, of which `keep` stay, ascending into kept. One after another goes
 * that whose going costs least when the others make up for it, tr(w_S ((G^-1)_SS)^-1 w_S^T) (optimal brain surgeon, of columns: Ling et al. 2024,
 * "SlimGPT", arXiv 2412.18110), and they do, before the next is looked for. w [rows][cols] and inverse [cols][cols] = G^-1 are
 * overwritten.
 */
int prune_greedy(const struct prune_matrix *w, float *inverse, size_t width, uint32_t keep, uint32_t *kept,
                 struct err *e) MUST_CHECK;
/* What each unit alone would cost: cost [cols / width]. w and inverse stay. */
int prune_unit_costs(const struct prune_matrix *w, const float *inverse, size_t width, double *cost,
                     struct err *e) MUST_CHECK;

/* Least squares of a matrix and its bias, of some inputs: min sum |t - w y - bias|^2. */
struct prune_consumer {
    struct prune_matrix w; /* as it is */
    float *bias;           /* [rows], as it is; NULL: none */
    float *gram;           /* [cols][cols] sum y y^T, of y less their mean where there is a bias */
    float *b;              /* [rows][cols] sum t y^T likewise, t without the bias */
    const float *sum;      /* [cols] sum y */
    float *wanted;         /* [rows] sum t */
    double n, damp;
};
/* The weights of the inputs that are kept become those of the least squares, drawn to what they are by the damping, and the others 0. */
int prune_refit_columns(const struct prune_consumer *c, const struct prune_kept *kept, struct err *e) MUST_CHECK;
/* Units of columns to keep, by prune_greedy; cost not NULL: what each would cost, and kept is left. */
int prune_consumer_units(const struct prune_consumer *c, size_t width, uint32_t keep, uint32_t *kept, double *cost,
                         struct err *e) MUST_CHECK;

#endif
