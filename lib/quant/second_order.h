/*
 * Private to lib/quant: one matrix through the grid of its type with the Gram matrix of its inputs, H = sum x x^T, by which the
 * error of a row is (t - q)^T H (t - q), for the values t that are wanted and q that are stored.
 *
 * Order of files, each calling only those before it: phases, clip, grid, hqq, refine, gptq.
 */
#ifndef RILL_QUANT_SECOND_ORDER_H
#define RILL_QUANT_SECOND_ORDER_H

#include "lib/obs/obs.h"
#include "lib/quant/quant.h"

/* ---- a clock of processor time that runs for one phase after the other (phases.c) ------------------------------- */

struct phase_clock {
    double *seconds; /* [QUANT_PHASES], added to */
    enum quant_phase now;
    double since;
};
void phase_begin(struct phase_clock *c, double *seconds, enum quant_phase first);
enum quant_phase phase_enter(struct phase_clock *c, enum quant_phase next); /* the one that ends */

/* ---- a matrix as codes and scales (grid.c) ---------------------------------------------------------------------- */

/* An element of row r and column c is scales[r][c / group] * (code - offset) + mins[r][c / group], in f32, to the bit. */
struct grid {
    const struct quant_form *form;
    size_t rows, cols;
    size_t block, block_bytes;
    size_t blocks, groups;     /* of a row */
    struct quant_parts *parts; /* [rows][blocks] */
    float *scales, *mins;      /* [rows][groups], as the parts have them */
};
/* Of a type with a quant_form. On failure too *g is what grid_release takes. */
int grid_new(struct grid *g, enum dtype dtype, size_t rows, size_t cols, struct err *e) MUST_CHECK;
void grid_release(struct grid *g);
void grid_take(struct grid *g, const unsigned char *packed);     /* from the blocks as they are stored */
void grid_read_scales(struct grid *g, size_t row, size_t block); /* after its parts were changed */

static inline uint8_t *grid_code(const struct grid *g, size_t row, size_t col) {
    return &g->parts[row * g->blocks + col / g->block].codes[col % g->block];
}
static inline float grid_value(const struct grid *g, size_t row, size_t col, uint8_t code) {
    size_t at = row * g->groups + col / g->form->group;
    float x = g->scales[at] * (float)(code - g->form->offset);
    return g->form->has_min ? x + g->mins[at] : x;
}

/* n elements of a row from column `first` on, where a group begins, into out. */
void grid_values(const struct grid *g, size_t row, size_t first, size_t n, float *out);

/* ---- descent (refine.c) -------------------------------------------------------------------------------------------- */

/*
 * Makes the error of each row smaller, one code or one scale at a time, until a sweep over the columns changes little or `sweeps` are
 * done: a code moves to the best place for what all other columns have become (the coordinate descent of Behdin et al. 2023,
 * "QuantEase"); the scale and min of a group, and then those of a block, to the least squares solution for its codes,
 * rounded as they are stored. What does not lower the error is not done. gram [cols][cols]; residual [rows][cols] = (t - q) H,
 * which is kept up to date; error: its sum over rows.
 */
int grid_refine(struct grid *g, const float *gram, float *residual, double error, unsigned sweeps,
                struct err *e) MUST_CHECK;

/* ---- clipping (clip.c) ------------------------------------------------------------------------------------------------ */

/*
 * What AWQ (Lin et al. 2023) does after its scales: the weights of each group are cut off at the share 1, 0.95 .. 0.55 of their largest
 * magnitude at which they leave the least error when they are rounded, here weighed by importance [cols]. Blocks that
 * `packed` has stay where theirs is less. Types with a quant_form. ERR_DATA as tensor_from_f32.
 */
int clip_improve(enum dtype to, const float *w, size_t rows, size_t cols, const float *importance,
                 unsigned char *packed, struct err *e) MUST_CHECK;

/* ---- HQQ (hqq.c) ----------------------------------------------------------------------------------------------------- */

/*
 * Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models": codes, and the min of each group (of grids
 * without one the scale), for a small sum of |w - q|^p without any data, p 0.7. In turn outliers are taken from what is left, w - q, by
 * soft thresholding with weight 1 / beta (beta 10, times 1.01 each time), the min is fitted to w less these by least squares,
 * and codes are rounded; 20 times at most, while the sum of |w - q| of the group falls. Starts from the grid that `packed` has, whose
 * other parameters stay. Mins and scales are rounded as they are stored. w [rows][cols].
 */
bool hqq_takes(enum dtype dtype);
int hqq_improve(enum dtype dtype, const float *w, size_t rows, size_t cols, unsigned char *packed,
                struct err *e) MUST_CHECK;

/* ---- GPTQ (gptq.c) --------------------------------------------------------------------------------------------------- */

struct second_order {
    const float *gram;               /* [cols][cols] */
    const struct obs_factor *factor; /* of it */
    unsigned sweeps;                 /* of grid_refine after the feedback; 0: none */
    struct phase_clock *clock;       /* or NULL */
};
struct second_order_error {
    double before, fed_back,
        after; /* sum over rows of (t - q)^T H (t - q): of what came in, after GPTQ, of what went out */
};
/*
 * GPTQ (Frantar et al. 2022, "GPTQ", algorithm 1) on the grid that `packed` has: its scales stay as they were found (static groups), and
 * the error of each column is made up for in the columns to come; then grid_refine. A row whose error did not get smaller keeps
 * its blocks. wanted [rows][cols]. Types without a quant_form are refused by an assertion of the caller's: second_order_takes.
 */
bool second_order_takes(enum dtype dtype);
int second_order_quantize(const struct second_order *s, enum dtype dtype, const float *wanted, size_t rows, size_t cols,
                          unsigned char *packed, struct second_order_error *error, struct err *e) MUST_CHECK;

#endif
