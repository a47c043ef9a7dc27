/*
 * Private to lib/quant: second moments of the inputs at the points of a layer, over two halves of the data, and their
 * cross moments with the inputs in the original model.
 *
 * Order of files, each calling only earlier ones: those of second_order.h, moments, target.
 */
#ifndef RILL_QUANT_MOMENTS_H
#define RILL_QUANT_MOMENTS_H

#include "lib/quant/second_order.h"
#include "lib/stats/stats.h"

/* ---- inputs in the original model -------------------------------------------------------------------------------- */

#define MOMENTS_POINTS 4 /* inputs of attention, o, feed-forward part, down */

/* The original inputs at the points of one layer, for one pass in `every`, concatenated. */
struct dense_inputs {
    size_t every, positions; /* positions: of these passes */
    void *x[MOMENTS_POINTS]; /* [positions][cols], of the type that the point's values have in a pass */
    /* room: bytes per row in x, as layers differ in width; at: rows stored */
    size_t room[MOMENTS_POINTS], at[MOMENTS_POINTS];
};
/* Prepares for the passes that model_layerwise_change makes over `in`; keeps the inputs at all positions if there are at
 * most twice as many as wanted, else at about as many as wanted. */
void dense_inputs_init(struct dense_inputs *d, const struct model_input *in, size_t n, size_t wanted);
void dense_inputs_release(struct dense_inputs *d);
/* Implements model_changes.dense_tap. ERR_IO: out of memory. */
int dense_inputs_see(struct dense_inputs *d, const struct model_seen *seen, struct err *e) MUST_CHECK;
/* Resets for the next layer. */
void dense_inputs_forget(struct dense_inputs *d);

/* ---- moments ----------------------------------------------------------------------------------------------------- */

/*
 * Sums over the positions of one half of the data. y: the current inputs; x: the inputs in the original model. Rows of
 * both are scaled so that |y|^2 is at most 16 times its median.
 */
struct half_moments {
    float *gram;     /* [cols][cols] sum y y^T */
    float *of_dense; /* the same over positions with known x; gram itself if that is all of them; NULL if shift is */
    float *shift;    /* [cols][cols] sum (x - y) y^T over those positions; NULL: not wanted */
};
struct moments {
    enum model_point point;
    size_t cols, experts;
    struct half_moments half[2]; /* unused at expert points, which have only */
    float *squares;              /* [experts][cols] sum y^2 */
};
/* Collects the moments at a point during the visit of a layer, running the layer up to it. dense NULL: without shift.
 * Call moments_release even on failure. */
int moments_collect(struct moments *m, struct model_layerwise *l, enum model_point point, uint32_t layer,
                    const struct dense_inputs *dense, struct phase_clock *clock, struct err *e) MUST_CHECK;
void moments_release(struct moments *m);

/* ---- targets (target.c) ------------------------------------------------------------------------------------------ */

/* Shared by the matrices that read from one point. */
struct relation {
    const struct moments *m;
    float *gram;               /* [cols][cols] over all data, shrunk towards its diagonal */
    float *shift;              /* [cols][cols] of both halves; NULL: not wanted */
    struct obs_factor *factor; /* of gram, in act-order */
    /* For obs_solve, over positions with known x: all of them, and the first half; NULL without shift. `whole` may equal
     * factor. */
    struct obs_factor *whole, *half;
};
/* ERR_DATA if the moments cannot be factored. Call relation_release even on
 * failure. */
int relation_init(struct relation *r, const struct moments *m, const struct quant_feedback *how,
                  struct err *e) MUST_CHECK;
void relation_release(struct relation *r);
/*
 * The target values of a matrix w [rows][cols] for its current inputs: t = w + s w C H^-1 with C = sum (x - y) y^T, the
 * least squares solution of t y = w x; s in [0, 1] is how well the solution from the first half of the data fits the
 * second.
 */
int relation_target(const struct relation *r, const float *w, size_t rows, float *t, struct err *e) MUST_CHECK;

#endif
