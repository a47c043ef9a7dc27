/*
 * Private to lib/fold. Order of files, each calling only those before it: pairs, inputs, awq, smooth, rotation, rotate, pca, fold.
 */
#ifndef RILL_FOLD_INTERNAL_H
#define RILL_FOLD_INTERNAL_H

#include "lib/fold/fold.h"

/* ---- weights of the model in memory (pairs.c) ---- */

/* A copy of a tensor's weights in *out, which may be used again; and back. */
int fold_take(const struct model_param *p, struct buf *out, float **x, struct err *e) MUST_CHECK;
void fold_put(struct model *m, struct model_param *p, const float *x, bool *changed);

/* ---- what came into a point of a layer (inputs.c) ---- */

/* Sums over n positions, by channel. */
struct fold_inputs {
    size_t cols;
    double n;
    const double *abs, *sq; /* |x|, x^2 [cols] */
    const float *max;       /* the largest |x| [cols]; NULL: not known */
    const float *gram;      /* x x^T [cols][cols]; NULL: not known */
};
/* Where they come from: statistics, or a run of the layer. */
struct fold_watch {
    const struct model_config *config;
    const struct stats *stats; /* NULL: */
    struct fold_sums *sums;    /* of the layer at hand: of points of all positions, then of experts, two each */
    uint32_t layer;
    bool gram; /* x x^T is wanted, of points of all positions */
};
/* Runs the layer, unless there are statistics, and keeps what comes into its points until fold_watch_release. */
int fold_watch_layer(struct fold_watch *w, const struct fold_model *m, uint32_t layer, struct err *e) MUST_CHECK;
void fold_watch_release(struct fold_watch *w);
/* False: nothing is seen there. */
bool fold_watch_inputs(const struct fold_watch *w, enum model_point p, uint32_t expert, struct fold_inputs *out);

/* ---- scales of a pair (awq.c, smooth.c) ---- */

struct fold_scaling {
    struct model *m;
    const struct fold_options *o;
    const struct fold_watch *watch;
    struct quant_plan plan; /* AWQ: the types */
    bool *changed;          /* [n_params] */
};
/* Finds the scales and folds them. */
int fold_awq(const struct fold_scaling *s, const struct fold_pair *p, struct fold_report *r, struct err *e) MUST_CHECK;
int fold_smooth(const struct fold_scaling *s, const struct fold_pair *p, struct fold_report *r,
                struct err *e) MUST_CHECK;

/* ---- a random rotation (rotation.c) ---- */

/* R [n][n] orthogonal, n = p m with p a power of two and m odd: signs times the Hadamard matrix [p][p] over sqrt(p) (x) a random
 * orthogonal [m][m], with (x) the Kronecker product. */
struct fold_rotation {
    size_t n, p, m;
    double *signs; /* [n]: 1 or -1 */
    double *small; /* [m][m] */
};
int fold_rotation_new(struct fold_rotation *r, size_t n, struct rng rng, struct err *e) MUST_CHECK;
/* r [n][n] itself, orthogonal: p is 1. */
int fold_rotation_of(struct fold_rotation *r, size_t n, const double *matrix, struct err *e) MUST_CHECK;
void fold_rotation_release(struct fold_rotation *r);
/* x [n] becomes x R; scratch [m]. */
void fold_rotate_vector(const struct fold_rotation *r, double *x, double *scratch);

/* ---- the model rotated (rotate.c) ---- */

/* ERR_DATA: why the residual stream of this model cannot be rotated. */
int fold_check_r1(const struct model_config *c, struct err *e) MUST_CHECK;
/* Each x[i], of `rows` rows of r->n or more elements, a whole number of r->n: x R run by run. */
int fold_rotate_rows(const struct fold_rotation *r, float *x, size_t rows, size_t cols, struct err *e) MUST_CHECK;
/* R^T x for x [rows][cols], rows a whole number of r->n, run by run. */
int fold_rotate_columns(const struct fold_rotation *r, float *x, size_t rows, size_t cols, struct err *e) MUST_CHECK;
/* Folds the gains of the layer's norms and rotates what reads the stream and what is added to it. */
int fold_r1_layer(struct model *m, const struct fold_rotation *r, uint32_t layer, bool *changed,
                  struct err *e) MUST_CHECK;
/* The tables that make the first states; and what reads the last, of which the final norm's gain is folded into the head. */
int fold_r1_embed(struct model *m, const struct fold_rotation *r, bool *changed, struct err *e) MUST_CHECK;
int fold_r1_head(struct model *m, const struct fold_rotation *r, float *tied_head, bool *changed,
                 struct err *e) MUST_CHECK;
int fold_r2_layer(struct model *m, uint32_t layer, uint64_t seed, bool *changed, struct err *e) MUST_CHECK;

/* ---- axes (pca.c) ---- */

/* a [n][n] symmetric, overwritten; rows of v become its eigenvectors, in no order: v a a v^T is diagonal, and row i of what a becomes as
 * long as the magnitude of the eigenvalue. */
int fold_eigenvectors(double *a, double *v, size_t n, struct err *e) MUST_CHECK;

#endif
