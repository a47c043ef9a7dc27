/*
 * Private to lib/prune: fits of one matrix given the Gram matrix of its inputs, G = sum y y^T over positions. For
 * target outputs t and b = sum t y^T, the squared error of weights w is tr(w G w^T) - 2 tr(w b^T) up to a constant.
 *
 * Order of files, each calling only earlier ones: sparsegpt, refit, alps, lowrank, held, moments, greedy,
 * consume; sequential, structure, hidden, layerwise. The pass over a stream (prune.c) calls moments.
 */
#ifndef RILL_PRUNE_SECOND_ORDER_H
#define RILL_PRUNE_SECOND_ORDER_H

#include "lib/obs/obs.h"
#include "lib/prune/prune_internal.h"

#define PRUNE_TRIES       4  /* further attempts to factor, each with ten times the damping */
#define PRUNE_REFIT_STEPS 20 /* of conjugate gradients, for single weights */

/*
 * SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1): column by column, the remaining columns
 * compensate for removed weights. For a share, the weights with the smallest w^2 / u_jj^2 in each block of columns are
 * removed, over all rows; for n:m, those of each group of columns, per row, when its first column is reached. The
 * factor is in input order.
 */
int prune_sparsegpt(const struct prune_matrix *w, const struct obs_factor *factor, struct prune_sparsity s,
                    struct err *e) MUST_CHECK;

struct prune_fit {
    const float *gram; /* [cols][cols] */
    const float *b;    /* [rows][cols] */
    double ridge;      /* added to the diagonal; already included in b */
    unsigned iterations;
};
/*
 * Least squares within a mask, row by row: conjugate gradients on the nonzero weights from their current values, with
 * the diagonal as preconditioner. Stops early once the residual is small. Zeros stay zero.
 */
int prune_refit(const struct prune_matrix *w, const struct prune_fit *fit, struct err *e) MUST_CHECK;

/*
 * ALPS (Meng et al. 2024, arXiv 2406.07831): minimises the error of w under a limit on its nonzero weights, by ADMM
 * over two copies w = d, where d is projected onto its largest weights and the penalty grows while the mask changes;
 * then prune_refit within the mask. Inputs are scaled to a unit diagonal during ADMM. The refit takes at most
 * fit->iterations steps.
 */
int prune_alps(const struct prune_matrix *w, const struct prune_fit *fit, struct prune_sparsity s,
               struct err *e) MUST_CHECK;

/* ---- one matrix, by the second moments of its inputs in o->stats (moments.c) ---- */

/* Of the matrix pruned last. Start with {0}. */
struct prune_moments {
    struct stats_known known;
    struct obs_factor *factor; /* for SparseGPT */
    struct buf rounded;        /* scratch */
};
/* o->method is SparseGPT or ALPS; s: slot in the old model. Rounds w to the type of `stored`. *output_error: as
 * prune_output_error. ERR_DATA: the moments do not factor, or the type cannot represent a weight. */
int prune_by_moments(struct prune_moments *k, const struct prune_options *o, struct model_slot s,
                     const struct tensor_desc *stored, const struct prune_matrix *w, struct prune_sparsity sparsity,
                     double *output_error, struct err *e) MUST_CHECK;
void prune_moments_release(struct prune_moments *k);

/*
 * Low-rank factors: replaces w by second * first, first [rank][cols] and second [rows][rank], with the least output
 * error on inputs with Gram matrix H = S S^T, damping included: the truncated singular value decomposition of w S,
 * times S^-1 (Wang et al. 2024, "SVD-LLM", arXiv 2403.07378, truncation-aware data whitening). The squared error tr(d H
 * d^T) is the sum of the squared singular values dropped. f (without an order) NULL: H = 1, plain SVD. Each factor gets
 * the square roots of the singular values. Columns of dead inputs count as 0. Memory: 24 bytes per weight. ERR_DATA:
 * the decomposition failed.
 */
struct prune_factors {
    float *first, *second; /* owned by the caller */
};
int prune_low_rank(const struct prune_matrix *w, const struct obs_factor *f, uint32_t rank,
                   const struct prune_factors *out, struct err *e) MUST_CHECK;
/* Replaces the second factor by the least-squares solution for the given first factor. */
int prune_fit_second(const struct prune_matrix *w, const struct prune_fit *fit, uint32_t rank,
                     const struct prune_factors *out, struct err *e) MUST_CHECK;

/* pruning layer by layer with data (held.c) */

/* Common to weights, structure and hidden. */
struct prune_walk {
    const struct prune_calibration *c;
    struct stream_writer *out;
    struct prune_report *report;
};
/* Fills in the report and writes the head of the output, with the new name. */
int prune_walk_begin(const struct prune_walk *k, const struct prune_plan *plan, struct err *e) MUST_CHECK;
/* Writes a tensor as model_save_param does, without the rows of removed tokens. */
int prune_write_param(const struct prune_walk *k, const struct prune_plan *plan, const struct model_param *p,
                      struct buf *scratch, struct err *e) MUST_CHECK;
/* Prune single weights (sequential.c), or layers, heads and channels (structure.c). ERR_USAGE: the plan needs another
 * path. */
int prune_weights(const struct prune_walk *k, const struct prune_plan *plan, struct err *e) MUST_CHECK;
int prune_structure(const struct prune_walk *k, const struct prune_plan *plan, struct err *e) MUST_CHECK;
/* Prunes the residual stream (hidden.c); fails likewise. */
int prune_hidden(const struct prune_walk *k, const struct prune_plan *plan, struct err *e) MUST_CHECK;
/* Checks tensors [first, end) of the model in stream order; ERR_DATA: one is not finite. */
int prune_check_finite(const struct model *m, size_t first, size_t end, struct err *e) MUST_CHECK;
/* Rounds the values to the type in the stream; quantized ones become f32 and are not rounded. */
int prune_round(struct model_param *p, struct buf *scratch, struct err *e) MUST_CHECK;
/* w (gram + shift + ridge) [rows][cols]: outputs on the original inputs, correlated with the current ones; shift NULL:
 * these are the same. The caller frees it. */
float *prune_wanted(const struct prune_matrix *w, const float *gram, const float *shift, double ridge, struct err *e);
/* Relative output error: tr(d G d^T) of the change d from the old weights `was`, divided by tr(was G was^T). */
int prune_output_error(const struct prune_matrix *w, const float *gram, const float *was, double *out,
                       struct err *e) MUST_CHECK;

/* ---- columns of a matrix (greedy.c, consume.c) ---- */

/*
 * Chooses which columns of w to keep: of units of `width` consecutive columns, `keep` stay, ascending into kept.
 * Repeatedly removes the unit with the least cost tr(w_S ((G^-1)_SS)^-1 w_S^T) (optimal brain surgeon for columns: Ling
 * et al. 2024, "SlimGPT", arXiv 2412.18110) and updates the others to compensate. w [rows][cols] and inverse
 * [cols][cols] = G^-1 are overwritten.
 */
int prune_greedy(const struct prune_matrix *w, float *inverse, size_t width, uint32_t keep, uint32_t *kept,
                 struct err *e) MUST_CHECK;
/* The cost of removing each unit alone: cost [cols / width]. w and inverse are unchanged. */
int prune_unit_costs(const struct prune_matrix *w, const float *inverse, size_t width, double *cost,
                     struct err *e) MUST_CHECK;

/* Least squares for a matrix and its bias on a subset of its inputs: min sum |t - w y - bias|^2. */
struct prune_consumer {
    struct prune_matrix w; /* current weights */
    float *bias;           /* [rows] current bias; NULL: none */
    float *gram;           /* [cols][cols] sum y y^T, of centred y if there is a bias */
    float *b;              /* [rows][cols] sum t y^T likewise, with t excluding the bias */
    const float *sum;      /* [cols] sum y */
    float *wanted;         /* [rows] sum t */
    double n, damp;
};
/* Refits the weights of the kept inputs by least squares, regularised towards their current values; zeroes the
 * others. */
int prune_refit_columns(const struct prune_consumer *c, const struct prune_kept *kept, struct err *e) MUST_CHECK;
/* Chooses the units of columns to keep by prune_greedy; if cost is not NULL, writes the cost of each unit there
 * instead. */
int prune_consumer_units(const struct prune_consumer *c, size_t width, uint32_t keep, uint32_t *kept, double *cost,
                         struct err *e) MUST_CHECK;

#endif
