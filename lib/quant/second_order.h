/*
 * Private to lib/quant: quantizes one matrix on the grid of its type, given the Gram matrix of its inputs H = sum x
 * x^T. The error of a row is (t - q)^T H (t - q), for target values t and stored values q.
 *
 * Order of files, each calling only earlier ones: phases, clip, grid, hqq, refine, gptq, shrink.
 */
#ifndef RILL_QUANT_SECOND_ORDER_H
#define RILL_QUANT_SECOND_ORDER_H

#include "lib/obs/obs.h"
#include "lib/quant/quant.h"

#define MOMENTS_TRIES 4 /* further factoring attempts, each with ten times the damping */

/* ---- clock of processor time by phase (phases.c) ----------------------------------------------------------------- */

struct phase_clock {
    double *seconds; /* [QUANT_PHASES], added to */
    enum quant_phase now;
    double since;
};
void phase_begin(struct phase_clock *c, double *seconds, enum quant_phase first);
enum quant_phase phase_enter(struct phase_clock *c, enum quant_phase next); /* returns the phase that ends */

/* ---- a matrix as codes and scales (grid.c) ---------------------------------------------------------------------- */

/* The scales of a block, as in struct quant_parts. */
struct grid_block {
    uint16_t d, min;
    int8_t scales[QUANT_MAX_GROUPS], mins[QUANT_MAX_GROUPS];
};
/* Element (r, c) is scales[r][c / group] * (code - offset) + mins[r][c / group] in f32, bit-exact. */
struct grid {
    const struct quant_form *form;
    size_t rows, cols;
    size_t block, block_bytes;
    size_t blocks, groups;     /* of a row */
    struct grid_block *stored; /* [rows][blocks], followed in memory by the codes, so that one copy keeps a state */
    uint8_t *codes;            /* [rows][cols] */
    float *scales, *mins;      /* [rows][groups], decoded from `stored` */
};
/* For a type with a quant_form. Call grid_release even on failure. */
int grid_new(struct grid *g, enum dtype dtype, size_t rows, size_t cols, struct err *e) MUST_CHECK;
void grid_release(struct grid *g);
void grid_take(struct grid *g, const unsigned char *packed);            /* reads stored blocks */
void grid_put(const struct grid *g, size_t row, unsigned char *packed); /* writes the blocks of one row */
void grid_read_scales(struct grid *g, size_t row, size_t block); /* updates scales and mins after `stored` changed */
size_t grid_state_bytes(const struct grid *g);                   /* of `stored` and the codes together */
void grid_view(struct grid *g, void *state); /* of so many bytes: g's stored and codes from now on */

static inline uint8_t *grid_code(const struct grid *g, size_t row, size_t col) {
    return &g->codes[row * g->cols + col];
}
static inline float grid_value(const struct grid *g, size_t row, size_t col, uint8_t code) {
    size_t at = row * g->groups + col / g->form->group;
    float x = g->scales[at] * (float)(code - g->form->offset);
    return g->form->has_min ? x + g->mins[at] : x;
}

/* Writes n elements of a row to out, starting at column `first`, where a group starts. */
void grid_values(const struct grid *g, size_t row, size_t first, size_t n, float *out);

/* ---- descent (refine.c) ------------------------------------------------------------------------------------------ */

/*
 * Lowers the error of each row by changing one code or one scale at a time, until a sweep over the columns gains little
 * or `sweeps` are done. A code moves to its optimum given all other columns (coordinate descent, Behdin et al. 2023,
 * "QuantEase"); the scale and min of a group, then those of a block, move to the least squares solution for their
 * codes, rounded as stored. Only changes that lower the error are made. gram [cols][cols]; residual [rows][cols] = (t -
 * q) H, kept up to date; error: its current sum over rows.
 */
int grid_refine(struct grid *g, const float *gram, float *residual, double error, unsigned sweeps,
                struct err *e) MUST_CHECK;

/* ---- clipping (clip.c) ------------------------------------------------------------------------------------------- */

/*
 * AWQ's clipping step (Lin et al. 2023): clips each group of weights at a share 1, 0.95 .. 0.55 of its largest
 * magnitude, whichever gives the least rounding error, weighted here by importance [cols]. Keeps existing blocks of
 * `packed` that are better. For types with a quant_form. Fails like tensor_from_f32: ERR_DATA.
 */
int clip_improve(enum dtype to, const float *w, size_t rows, size_t cols, const float *importance,
                 unsigned char *packed, struct err *e) MUST_CHECK;

/* ---- HQQ (hqq.c) ------------------------------------------------------------------------------------------------- */

/*
 * HQQ (Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models"): chooses codes and the min
 * of each group (the scale, for grids without mins) to lower sum |w - q|^p, p 0.7, without data. Alternates between
 * taking outliers from the residual w - q by soft thresholding with weight 1 / beta (beta 10, growing by 1.01 per
 * step), fitting the min to the rest of w by least squares, and rounding codes; at most 20 times, while the group's sum
 * |w - q| falls. Starts from the grid in `packed`, whose other parameters stay. Mins and scales are rounded as stored.
 * w [rows][cols].
 */
bool hqq_takes(enum dtype dtype);
void hqq_improve(enum dtype dtype, const float *w, size_t rows, size_t cols, unsigned char *packed);

/* ---- GPTQ (gptq.c) ----------------------------------------------------------------------------------------------- */

struct second_order {
    const float *gram;               /* [cols][cols] */
    const struct obs_factor *factor; /* of gram */
    unsigned sweeps;                 /* of grid_refine after the feedback; 0: none */
    struct phase_clock *clock;       /* may be NULL */
};
struct second_order_error {
    double before, fed_back,
        after; /* sum over rows of (t - q)^T H (t - q): of the input blocks, after GPTQ, of the result */
};
/*
 * GPTQ (Frantar et al. 2022, "GPTQ", algorithm 1) on the grid in `packed`: scales are fixed (static groups), and the
 * error of each column is compensated in later columns; then grid_refine. Rows whose error did not fall keep their
 * blocks. wanted [rows][cols]. The caller must check second_order_takes: only types with a quant_form.
 */
bool second_order_takes(enum dtype dtype);
int second_order_quantize(const struct second_order *s, enum dtype dtype, const float *wanted, size_t rows, size_t cols,
                          unsigned char *packed, struct second_order_error *error, struct err *e) MUST_CHECK;

/* ---- shrinkage (shrink.c) ---------------------------------------------------------------------------------------- */

/*
 * With few positions, correlations between inputs are partly noise. Two halves of the data show how much: for
 * correlations a and b in the halves, r = sum a b / (sum (a^2 + b^2) / 2) is the reliability of one half, and 2 r / (1
 * + r) that of their sum, which has half the noise (Spearman-Brown formula). Off-diagonal elements are multiplied by
 * it: shrinkage towards the diagonal, which is what rounding to nearest uses (the idea of Ledoit and Wolf).
 */
double shrink_reliability(const float *first, const float *second, size_t n); /* of one half: sums [n][n] over each */
double shrink_reliability_of(const struct stats_gram *g); /* the same from some rows of a half; 1 if there are none */
double shrink_of_sum(double reliability);                 /* 2 r / (1 + r) */
/* The sum of a and b (or NULL) [n][n], with off-diagonal elements multiplied by keep (1: the plain sum). The caller
 * frees it. */
float *shrink_sum(const float *a, const float *b, double keep, size_t n, struct err *e);

#endif
