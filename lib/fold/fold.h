/*
 * fold: rewriting the weights of a model without changing what it computes, so that rounding them, or their inputs, loses less.
 *
 * A scale s of what comes into a matrix W can be taken out of it where it is made and put into W: W x = (W diag(s)) (diag(1/s) x),
 * if whatever makes x takes the factor 1/s (pairs.c). An orthogonal R likewise: W x = (W R) (R^T x), which goes further, for what
 * makes x may be a sum (rotate.c). awq and smooth choose scales, r1, r2 and pca rotate. What is quantized afterwards, and how, is
 * lib/quant's: fold first, then any method.
 *
 * Order of files, each calling only those before it: pairs, inputs, awq, smooth, rotation, rotate, pca, fold.
 */
#ifndef RILL_FOLD_H
#define RILL_FOLD_H

#include "lib/base/base.h"
#include "lib/model/model.h"
#include "lib/quant/quant.h"
#include "lib/stats/stats.h"

/* ---- pairs (pairs.c) ------------------------------------------------------------------------------------------------- */

/* The outputs of a tensor and the matrices that read them, with nothing between that a factor could not pass. */
struct fold_pair {
    struct model_slot from; /* the gain of a norm, v, or up (of an expert) */
    unsigned bias;          /* the role of its bias, if the model has one; 0: none */
    enum model_point point; /* where the readers' input is seen */
    size_t n;               /* factors: one for each output of `from` */
    size_t run, share;    /* runs of `run` outputs are read `share` times in a row: value heads by their query heads */
    const char *obstacle; /* why nothing can be folded; NULL: it can */
};
/* The i-th pair of a layer; false: it has no more. */
bool fold_pair_at(const struct model_config *c, uint32_t layer, size_t i, struct fold_pair *out);
/* Does the tensor multiply what the pair makes? A matrix, or the router or gate of experts, in f32. */
bool fold_pair_feeds(const struct model_config *c, const struct fold_pair *p, struct model_slot s);
/* Which factor belongs to a column of its readers. */
size_t fold_pair_factor(const struct fold_pair *p, size_t column);
/*
 * Divides the outputs of p->from by scale [p->n], each finite and above 0, or all of them the gains of the norm, which become 1; and
 * multiplies the columns of its readers. The weights of the layer are in memory, in f32; changed [n_params] is set for each tensor
 * that is. ERR_IO: memory is out.
 */
int fold_pair_scale(struct model *m, const struct fold_pair *p, const float *scale, bool *changed,
                    struct err *e) MUST_CHECK;

/* ---- a whole model (fold.c) ------------------------------------------------------------------------------------------- */

enum fold_method {
    /*
     * Lin et al. 2023, "AWQ": s = mean|x|^r by channel, for the r of 0, 1/20 .. 19/20 whose s leaves the least error in the outputs of
     * the readers, rounded to nearest in the types that they are to have.
     */
    FOLD_AWQ,
    /*
     * Xiao et al. 2022, "SmoothQuant", equation 4: s = max|x|^a / max|w|^(1-a) by channel, of what norms feed, for products in which
     * activations are rounded too.
     */
    FOLD_SMOOTH,
    /* Rotations of the residual stream and of the values of each head (Liu et al. 2024, "SpinQuant", R1 and R2; Ashkboos et al. 2024,
     * "QuaRot"): a random Hadamard matrix, or where the width has an odd factor m that times a random orthogonal [m][m]. */
    FOLD_R1,
    FOLD_R2,
    /* R1 with the principal axes of what the norms see in place of a random matrix: channels become uncorrelated, the largest first, and
     * prune can take the last ones out (after Ashkboos et al. 2024, "SliceGPT", arXiv 2401.15024, who have axes for each block, and so a
     * matrix in each residual connection, which the formats here cannot hold; these are of all norms together). */
    FOLD_PCA,
};

/* Of a pair, or of what a rotation takes together in a layer. */
struct fold_report {
    uint32_t layer, expert;
    const char *point;    /* its name */
    const char *obstacle; /* why it was left out; NULL: it was not */
    double ratio;         /* of AWQ: r */
    double error;         /* ... and the error with it over that without, 1 where r is 0 */
};
typedef int fold_report_fn(void *ctx, const struct fold_report *r, struct err *e);

struct fold_options {
    enum fold_method method;
    const struct quant_options *types; /* AWQ: what the matrices will be rounded to (quant_plan_make) */
    const struct stats *stats;         /* AWQ: mean |x|, and mean x^2 by which errors are weighed; NULL: by the data */
    double alpha;                      /* SmoothQuant's a, 0 to 1 */
    uint64_t seed;                     /* of random rotations */
    const double *axes;                /* PCA: [hidden][hidden], of fold_principal_axes */
};
/* A model that is read once, and the data that AWQ without statistics and SmoothQuant look at. */
struct fold_model {
    struct model_layerwise *model; /* in WEIGHTS_F32 */
    struct grad_tape *scratch;     /* that does not record */
    const struct model_input *in;  /* [n]; n 0: none */
    size_t n;
};
/* For FOLD_PCA: axes [hidden][hidden], column k the k-th eigenvector of the sum over all norms of z z^T, z what the norm gives without its
 * gain, in falling order. Reads the model to its end. ERR_DATA: one that cannot be rotated. */
int fold_principal_axes(const struct fold_model *m, double *axes, struct err *e) MUST_CHECK;
/*
 * Writes the model with its weights rewritten, layer by layer: memory of one layer, with data of the states of all positions, and of
 * R1 and PCA with a tied head of the embedding. What is rewritten becomes f32, as does what was quantized; all else keeps its type. With these the
 * head is no longer tied. `report` sees each pair. ERR_DATA: a model of LSTMs, or one that they cannot rotate, and why; statistics of another
 * model; a weight that a type cannot hold. ERR_USAGE: none of the types is a quantized one (AWQ).
 */
int fold_model(const struct fold_model *m, struct stream_writer *out, const struct fold_options *o,
               fold_report_fn *report, void *ctx, struct err *e) MUST_CHECK;

#endif
