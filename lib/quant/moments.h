/*
 * Private to lib/quant: second moments of what comes into the points of a layer, in halves of the data, and of how that differs from
 * what came in before anything was quantized.
 *
 * Order of files, each calling only those before it: those of second_order.h, moments, target.
 */
#ifndef RILL_QUANT_MOMENTS_H
#define RILL_QUANT_MOMENTS_H

#include "lib/quant/second_order.h"
#include "lib/stats/stats.h"

/* ---- what came in before anything was quantized -------------------------------------------------------------------- */

#define MOMENTS_POINTS 4 /* of attention, o, feed-forward part, down */

/* Of one pass in `every`, side by side: what comes into the points of one layer as it was. */
struct dense_inputs {
    size_t every, positions;                                               /* of these passes */
    float *x[MOMENTS_POINTS];                                              /* [positions][cols] */
    size_t cols[MOMENTS_POINTS], room[MOMENTS_POINTS], at[MOMENTS_POINTS]; /* rows that have come */
};
/* For the passes that model_layerwise_change makes over `in`, of which `limit` positions or a few more are kept. */
void dense_inputs_init(struct dense_inputs *d, const struct model_input *in, size_t n, size_t limit);
void dense_inputs_release(struct dense_inputs *d);
/* A model_changes.dense_tap's work. */
int dense_inputs_see(struct dense_inputs *d, const struct model_seen *seen, struct err *e) MUST_CHECK;
/* Before the next layer. */
void dense_inputs_forget(struct dense_inputs *d);

/* ---- moments ----------------------------------------------------------------------------------------------------------- */

/*
 * Sums over positions of one half of the data. y: what comes in now; x: what came in when nothing was quantized. Rows of both are
 * multiplied by a number so that |y|^2 is at most 16 times its median.
 */
struct half_moments {
    float *gram; /* [cols][cols] sum y y^T */
    float
        *of_dense; /* the same over the positions of which x is at hand; gram itself if these are all; NULL: as shift */
    float *shift;  /* [cols][cols] sum (x - y) y^T over them; NULL: not wanted */
};
struct moments {
    enum model_point point;
    size_t cols, experts;
    struct half_moments half[2]; /* of points of experts: none, but */
    float *squares;              /* [experts][cols] sum y^2 */
};
/* In a visit, of a layer: runs it up to the point. dense NULL: without shift. The caller releases m, on failure too. */
int moments_collect(struct moments *m, struct model_layerwise *l, enum model_point point, uint32_t layer,
                    const struct dense_inputs *dense, struct phase_clock *clock, struct err *e) MUST_CHECK;
void moments_release(struct moments *m);

/* ---- what follows from them (target.c) ----------------------------------------------------------------------------------- */

#define MOMENTS_TRIES 4 /* more to factor, with ten times the damping each */

/* What all matrices that read from a point share. */
struct relation {
    const struct moments *m;
    float *gram;               /* [cols][cols] of all data; what of its correlations is noise is gone */
    struct obs_factor *factor; /* of gram, by act-order */
    /* Of what x is known for, for obs_solve: of all of that, and of its first half; NULL: not wanted. `whole` may be factor. */
    struct obs_factor *whole, *half;
};
/* damp, act_order: of struct obs_options. ERR_DATA where the moments do not factor. The caller releases r, on failure too. */
int relation_init(struct relation *r, const struct moments *m, double damp, bool act_order, struct err *e) MUST_CHECK;
void relation_release(struct relation *r);
/*
 * The values that a matrix w [rows][cols] should have for what comes in now: t = w + s w C H^-1 with C = sum (x - y) y^T, the least squares
 * solution of t y = w x, and s in [0, 1] how much of the solution of the first half of the data is right for the second.
 */
int relation_target(const struct relation *r, const float *w, size_t rows, float *t, struct err *e) MUST_CHECK;

#endif
