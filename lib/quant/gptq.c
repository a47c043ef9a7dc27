/* Quantizes one matrix: error feedback over the codes of its grid, then descent. */
#include <math.h>
#include <string.h>

#include "lib/quant/second_order.h"

#define COLUMNS 128 /* columns between two updates of the rest */

bool second_order_takes(enum dtype dtype) {
    return quant_form(dtype) != NULL;
}

/* ---- feedback ---- */

struct feedback {
    struct grid *g;
    const struct obs_factor *factor;
};

/* A dead input keeps its codes: calibration has no information on it, which is no reason to zero its weights. */
static void decide(void *ctx, size_t column, size_t left, size_t row, size_t n, const float *w, float *kept) {
    const struct feedback *f = ctx;
    const struct grid *g = f->g;
    size_t j = f->factor->order ? f->factor->order[column] : column, group = j / g->form->group;
    (void)left;
    if (f->factor->dead[j]) {
        memcpy(kept, w, n * sizeof *w);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        size_t at = (row + i) * g->groups + group;
        uint8_t *code = grid_code(g, row + i, j);
        if (g->scales[at] != 0) *code = quant_nearest(g->form, (w[i] - g->mins[at]) / g->scales[at]);
        kept[i] = grid_value(g, row + i, j, *code);
    }
}

/* ---- errors ---- */

struct work {
    const struct second_order *s;
    const float *wanted;
    struct grid g;
    float *diff, *residual; /* [rows][cols]: t - q, and (t - q) H */
    double *error, *before; /* [rows] */
};

static void subtract_row(void *ctx, size_t row, int thread) {
    const struct work *w = ctx;
    size_t n = w->g.cols;
    (void)thread;
    float *diff = w->diff + row * n;
    grid_values(&w->g, row, 0, n, diff);
    for (size_t j = 0; j < n; j++) diff[j] = w->wanted[row * n + j] - diff[j];
}

static void error_row(void *ctx, size_t row, int thread) {
    const struct work *w = ctx;
    size_t n = w->g.cols;
    (void)thread;
    w->error[row] = kernel_dot(kernel_f32(w->diff + row * n), kernel_f32(w->residual + row * n), n);
}

/* Computes differences, residuals (unless they are up to date) and row errors of the current grid; returns the sum of
 * the errors. */
static double measure(struct work *w, bool has_residuals) {
    double sum = 0;
    size_t n = w->g.cols;
    parallel_for(w->g.rows, subtract_row, w);
    if (!has_residuals)
        kernel_matmul_nn(w->g.rows, n, n, kernel_f32(w->diff), kernel_f32(w->s->gram), 0, kernel_f32(w->residual));
    parallel_for(w->g.rows, error_row, w);
    for (size_t i = 0; i < w->g.rows; i++) sum += w->error[i];
    return sum;
}

/* ---- one matrix ---- */

static int feed_back(struct work *w, struct err *e) {
    struct feedback f = {&w->g, w->s->factor};
    struct obs_method m = {.block = COLUMNS, .decide = decide, .ctx = &f};
    return obs_sweep(w->s->factor, &m, w->wanted, w->g.rows, NULL, NULL, e);
}

struct keeping {
    const struct work *w;
    unsigned char *packed;
};

static void keep_row(void *ctx, size_t row, int thread) {
    const struct keeping *k = ctx;
    const struct grid *g = &k->w->g;
    (void)thread;
    if (k->w->error[row] < k->w->before[row]) grid_put(g, row, k->packed + row * g->blocks * g->block_bytes);
}

/* Writes the blocks of the rows that improved; returns the resulting error. */
static double keep_better(const struct work *w, unsigned char *packed) {
    double after = 0;
    parallel_for(w->g.rows, keep_row, &(struct keeping){w, packed});
    for (size_t row = 0; row < w->g.rows; row++)
        after += w->error[row] < w->before[row] ? w->error[row] : w->before[row];
    return after;
}

static int quantize(struct work *w, unsigned char *packed, struct second_order_error *error, struct err *e) {
    struct phase_clock *clock = w->s->clock;
    if (clock) phase_enter(clock, QUANT_FEEDBACK);
    grid_take(&w->g, packed);
    error->before = measure(w, false);
    memcpy(w->before, w->error, w->g.rows * sizeof *w->before);
    int rc = feed_back(w, e);
    if (rc) return rc;
    error->fed_back = measure(w, false);
    if (clock) phase_enter(clock, QUANT_DESCENT);
    if (w->s->sweeps && grid_refine(&w->g, w->s->gram, w->residual, error->fed_back, w->s->sweeps, e)) return e->code;
    if (w->s->sweeps) measure(w, true); /* the descent's running total accumulates rounding errors */
    error->after = keep_better(w, packed);
    return 0;
}

int second_order_quantize(const struct second_order *s, enum dtype dtype, const float *wanted, size_t rows, size_t cols,
                          unsigned char *packed, struct second_order_error *error, struct err *e) {
    struct work w = {.s = s, .wanted = wanted};
    int rc = grid_new(&w.g, dtype, rows, cols, e);
    w.diff = rc ? NULL : mem_alloc(rows * cols * sizeof *w.diff, e);
    w.residual = w.diff ? mem_alloc(rows * cols * sizeof *w.residual, e) : NULL;
    w.error = w.residual ? mem_array(rows, sizeof *w.error, e) : NULL;
    w.before = w.error ? mem_array(rows, sizeof *w.before, e) : NULL;
    rc = w.before ? quantize(&w, packed, error, e) : e->code;
    grid_release(&w.g);
    mem_free(w.diff);
    mem_free(w.residual);
    mem_free(w.error);
    mem_free(w.before);
    return rc;
}
