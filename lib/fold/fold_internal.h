/*
 * Private to lib/fold. Order of files, each calling only those before it: pairs, inputs, awq, smooth, rotation, rotate,
 * pca, fold.
 */
#ifndef RILL_FOLD_INTERNAL_H
#define RILL_FOLD_INTERNAL_H

#include "lib/fold/fold.h"

/* ---- weights of the model in memory (pairs.c) ---- */

/* Copies a tensor's weights to *out, whose memory is reused; and back, which sets `changed`. */
int fold_take(const struct model_param *p, struct buf *out, float **x, struct err *e) MUST_CHECK;
void fold_put(struct model *m, struct model_param *p, const float *x, bool *changed);

/* ---- inputs observed at a point of a layer (inputs.c) ---- */

/* Sums over n positions, per channel. */
struct fold_inputs {
    size_t cols;
    double n;
    const double *abs, *sq; /* |x|, x^2 [cols] */
    const float *max;       /* largest |x| [cols]; NULL: unknown */
    const float *gram;      /* x x^T [cols][cols]; NULL: unknown */
};
/* Source of the inputs: statistics, or a run of the layer. */
struct fold_watch {
    const struct model_config *config;
    const struct stats *stats; /* NULL: run the layer */
    struct fold_sums *sums;    /* of the current layer: points of all positions, then two per expert */
    uint32_t layer;
    bool gram; /* also compute x x^T, at points of all positions */
};
/* Runs the layer, unless there are statistics, and keeps the inputs at its points until fold_watch_release. */
int fold_watch_layer(struct fold_watch *w, const struct fold_model *m, uint32_t layer, struct err *e) MUST_CHECK;
void fold_watch_release(struct fold_watch *w);
/* Sets *out to the inputs at a point; false: none were observed. */
bool fold_watch_inputs(const struct fold_watch *w, enum model_point p, uint32_t expert, struct fold_inputs *out);

/* ---- scales of a pair (awq.c, smooth.c) ---- */

struct fold_scaling {
    struct model *m;
    const struct fold_options *o;
    const struct fold_watch *watch;
    struct quant_plan plan; /* AWQ: the types */
    bool *changed;          /* [n_params] */
};
/* Choose the scales and fold them. */
int fold_awq(const struct fold_scaling *s, const struct fold_pair *p, struct fold_report *r, struct err *e) MUST_CHECK;
int fold_smooth(const struct fold_scaling *s, const struct fold_pair *p, struct fold_report *r,
                struct err *e) MUST_CHECK;

/* ---- rotations (rotation.c) ---- */

/* An orthogonal R [n][n], n = p m with p a power of two and m odd: signs times H / sqrt(p) (x) Q, with the Hadamard
 * matrix H [p][p], a random orthogonal Q [m][m] and the Kronecker product (x). */
struct fold_rotation {
    size_t n, p, m;
    double *signs; /* [n]: 1 or -1 */
    double *small; /* [m][m] */
};
int fold_rotation_new(struct fold_rotation *r, size_t n, struct rng rng, struct err *e) MUST_CHECK;
/* Makes a copy of an orthogonal matrix [n][n] a rotation, with p = 1. */
int fold_rotation_of(struct fold_rotation *r, size_t n, const double *matrix, struct err *e) MUST_CHECK;
void fold_rotation_release(struct fold_rotation *r);
/* x [n] becomes x R; scratch has [m]. */
void fold_rotate_vector(const struct fold_rotation *r, double *x, double *scratch);

/* ---- rotating a model (rotate.c) ---- */

/* ERR_DATA: the residual stream of this model cannot be rotated; says why. */
int fold_check_r1(const struct model_config *c, struct err *e) MUST_CHECK;
/* Replaces each row of x [rows][cols] by x R, run by run of r->n elements; cols is a multiple of r->n. */
int fold_rotate_rows(const struct fold_rotation *r, float *x, size_t rows, size_t cols, struct err *e) MUST_CHECK;
/* Replaces x [rows][cols] by R^T x, run by run of r->n rows; rows is a multiple of r->n. */
int fold_rotate_columns(const struct fold_rotation *r, float *x, size_t rows, size_t cols, struct err *e) MUST_CHECK;
/* Folds the gains of the layer's norms, and rotates the tensors that read the residual stream or add to it. */
int fold_r1_layer(struct model *m, const struct fold_rotation *r, uint32_t layer, bool *changed,
                  struct err *e) MUST_CHECK;
/* Rotate the embedding tables; and the head, into which the final norm's gain is folded. tied_head: the copy to rotate
 * for a model that was tied; else NULL. */
int fold_r1_embed(struct model *m, const struct fold_rotation *r, bool *changed, struct err *e) MUST_CHECK;
int fold_r1_head(struct model *m, const struct fold_rotation *r, float *tied_head, bool *changed,
                 struct err *e) MUST_CHECK;
int fold_r2_layer(struct model *m, uint32_t layer, uint64_t seed, bool *changed, struct err *e) MUST_CHECK;

#endif
