/*
 * fold: rewrites the weights of a model without changing its function, so that rounding them (or their inputs) loses
 * less.
 *
 * The input x of a matrix W can be scaled by s if its producer takes the factor 1/s: W x = (W diag(s)) (diag(1/s) x);
 * see pairs.c. An orthogonal R works likewise, W x = (W R) (R^T x), even if x is produced by a sum (rotate.c). awq and
 * smooth choose scales; r1, r2 and pca rotate. Quantization itself is in lib/quant: fold first, then use any method.
 *
 * Order of files, each calling only those before it: pairs, inputs, awq, smooth, rotation, rotate, pca, fold.
 */
#ifndef RILL_FOLD_H
#define RILL_FOLD_H

#include "lib/base/base.h"
#include "lib/model/model.h"
#include "lib/quant/quant.h"
#include "lib/stats/stats.h"

/* ---- pairs (pairs.c) --------------------------------------------------------------------------------------------- */

/* A tensor's outputs and the matrices that read them, with only operations between that commute with scaling. */
struct fold_pair {
    struct model_slot from; /* gain of a norm, v, or up (also of an expert) */
    unsigned bias;          /* role of its bias; 0: none */
    enum model_point point; /* where the readers' input is observed */
    size_t n;               /* factors: one per output of `from` */
    size_t run, share;      /* each run of `run` outputs is read `share` times: a value head by its query heads */
    const char *obstacle;   /* why nothing can be folded; NULL: it can */
};
/* Sets *out to the i-th pair of a layer; false: there is none. */
bool fold_pair_at(const struct model_config *c, uint32_t layer, size_t i, struct fold_pair *out);
/* Does the tensor multiply the pair's output? It is a matrix, or the router or gate of experts in f32. */
bool fold_pair_feeds(const struct model_config *c, const struct fold_pair *p, struct model_slot s);
/* Returns the index of the factor for a column of the readers. */
size_t fold_pair_factor(const struct fold_pair *p, size_t column);
/*
 * Divides the outputs of p->from by scale [p->n] and multiplies the columns of its readers by it. Scales are finite and
 * above 0, except that a norm may be divided by its own gains, even if they are 0: these become 1. The layer's weights
 * must be in memory in f32. Sets changed [n_params] for each tensor that is modified. ERR_IO: out of memory.
 */
int fold_pair_scale(struct model *m, const struct fold_pair *p, const float *scale, bool *changed,
                    struct err *e) MUST_CHECK;

/* ---- a whole model (fold.c) -------------------------------------------------------------------------------------- */

enum fold_method {
    /*
     * Lin et al. 2023, "AWQ": s = mean|x|^r per channel, with the r from 0, 1/20 .. 19/20 that gives the least error in
     * the outputs of the readers when these are rounded to nearest in their types.
     */
    FOLD_AWQ,
    /*
     * Xiao et al. 2022, "SmoothQuant", equation 4: s = max|x|^a / max|w|^(1-a) per channel, for the readers of norms;
     * for products in which activations are rounded, too.
     */
    FOLD_SMOOTH,
    /* Rotations of the residual stream and of the values of each head (Liu et al. 2024, "SpinQuant", R1 and R2;
     * Ashkboos et al. 2024, "QuaRot"): a random Hadamard matrix; if the width has an odd factor m, times a random
     * orthogonal [m][m]. */
    FOLD_R1,
    FOLD_R2,
    /* R1 with the principal axes of the norms' outputs instead of a random matrix: channels become uncorrelated, in
     * descending order of variance, and prune can remove the last ones. (After Ashkboos et al. 2024, "SliceGPT", arXiv
     * 2401.15024. They use different axes for each block, hence a matrix in each residual connection, which the formats
     * here cannot hold; here all norms share their axes.) */
    FOLD_PCA,
};

/* Result for a pair, or for the rotation of a layer. */
struct fold_report {
    uint32_t layer, expert;
    const char *point;    /* name of the point */
    const char *obstacle; /* why it was skipped; NULL: it was not */
    double ratio;         /* AWQ: r */
    double error;         /* AWQ: error relative to that with r = 0 */
};
typedef int fold_report_fn(void *ctx, const struct fold_report *r, struct err *e);

struct fold_options {
    enum fold_method method;
    const struct quant_options *types; /* AWQ: future types of the matrices (quant_plan_make) */
    const struct stats *stats;         /* AWQ: mean |x|, and mean x^2 as weights of errors; NULL: from the data */
    double alpha;                      /* SmoothQuant's a, 0 to 1 */
    uint64_t seed;                     /* for random rotations */
    const double *axes;                /* PCA: [hidden][hidden], from fold_principal_axes */
};
/* A model, which is read once, and data for SmoothQuant, and for AWQ without statistics. */
struct fold_model {
    struct model_layerwise *model; /* in WEIGHTS_F32 */
    struct grad_tape *scratch;     /* not recording */
    const struct model_input *in;  /* [n]; n 0: none */
    size_t n;
};
/* For FOLD_PCA: sets axes [hidden][hidden]; column k is the k-th eigenvector, by descending eigenvalue, of the sum of
 * z z^T over positions and all norms, where z is the norm's output without its gain. Reads the model to its end.
 * ERR_DATA: the model cannot be rotated. */
int fold_principal_axes(const struct fold_model *m, double *axes, struct err *e) MUST_CHECK;
/*
 * Writes the model with rewritten weights, layer by layer. Memory: one layer; with data, the states of all positions;
 * for R1 and PCA with a tied head, the embedding. Rewritten tensors and quantized ones become f32; all others keep
 * their type. R1 and PCA untie the head. `report` is called for each pair; it may be NULL. ERR_DATA: a model of LSTMs
 * or with low-rank factors, one that cannot be rotated, statistics of another model, or a weight that a type cannot
 * hold. ERR_USAGE: none of the types is quantized (AWQ).
 */
int fold_model(const struct fold_model *m, struct stream_writer *out, const struct fold_options *o,
               fold_report_fn *report, void *ctx, struct err *e) MUST_CHECK;

#endif
