/* Least squares within a mask, by conjugate gradients. */
#include <math.h>
#include <string.h>

#include "lib/prune/second_order.h"

#define ENOUGH 1e-10 /* stop at this share of the initial squared residual, in the norm of the preconditioner */

/* All rows at once, each an independent system. */
struct gradients {
    const struct prune_matrix *w;
    const struct prune_fit *fit;
    float *residual, *direction, *product; /* [rows][cols]; 0 outside the mask */
    double *rz;                            /* [rows] */
    unsigned char *stays;                  /* [rows][cols] */
};

static double preconditioned(const struct gradients *g, size_t j) {
    double d = (double)g->fit->gram[j * (g->w->cols + 1)] + g->fit->ridge;
    return d > 0 ? 1 / d : 0;
}

/* r = b - w (G + ridge), z = r / diagonal, p = z. product holds w G. */
static void begin_row(void *ctx, size_t row, int thread) {
    const struct gradients *g = ctx;
    size_t n = g->w->cols, at = row * n;
    (void)thread;
    g->rz[row] = 0;
    for (size_t j = 0; j < n; j++) {
        double w = g->w->x[at + j], r = (double)g->fit->b[at + j] - g->product[at + j] - g->fit->ridge * w;
        g->stays[at + j] = w != 0;
        if (w == 0) r = 0;
        double z = r * preconditioned(g, j);
        g->residual[at + j] = (float)r;
        g->direction[at + j] = (float)z;
        g->rz[row] += r * z;
    }
}

/* A step along p, then the next p. product holds p G. */
static void step_row(void *ctx, size_t row, int thread) {
    const struct gradients *g = ctx;
    size_t n = g->w->cols, at = row * n;
    double curvature = 0, rz = 0;
    (void)thread;
    for (size_t j = 0; j < n; j++) {
        g->product[at + j] += (float)(g->fit->ridge * g->direction[at + j]);
        curvature += (double)g->direction[at + j] * g->product[at + j];
    }
    if (!(curvature > 0)) return;
    double alpha = g->rz[row] / curvature;
    for (size_t j = 0; j < n; j++) {
        if (!g->stays[at + j]) continue;
        g->w->x[at + j] += (float)(alpha * g->direction[at + j]);
        g->residual[at + j] -= (float)(alpha * g->product[at + j]);
        rz += (double)g->residual[at + j] * g->residual[at + j] * preconditioned(g, j);
    }
    double beta = g->rz[row] > 0 ? rz / g->rz[row] : 0;
    for (size_t j = 0; j < n; j++)
        if (g->stays[at + j])
            g->direction[at + j] = (float)(g->residual[at + j] * preconditioned(g, j) + beta * g->direction[at + j]);
    g->rz[row] = rz;
}

static double sum(const double *x, size_t n) {
    double s = 0;
    for (size_t i = 0; i < n; i++) s += x[i];
    return s;
}

static void iterate(struct gradients *g) {
    size_t rows = g->w->rows, n = g->w->cols;
    kernel_matmul_nn(rows, n, n, kernel_f32(g->w->x), kernel_f32(g->fit->gram), 0, kernel_f32(g->product));
    parallel_for(rows, begin_row, g);
    double first = sum(g->rz, rows);
    for (unsigned i = 0; i < g->fit->iterations && sum(g->rz, rows) > ENOUGH * first; i++) {
        kernel_matmul_nn(rows, n, n, kernel_f32(g->direction), kernel_f32(g->fit->gram), 0, kernel_f32(g->product));
        parallel_for(rows, step_row, g);
    }
}

int prune_refit(const struct prune_matrix *w, const struct prune_fit *fit, struct err *e) {
    struct gradients g = {.w = w, .fit = fit};
    size_t n = w->rows * w->cols;
    g.residual = mem_array(n, sizeof *g.residual, e);
    g.direction = g.residual ? mem_array(n, sizeof *g.direction, e) : NULL;
    g.product = g.direction ? mem_array(n, sizeof *g.product, e) : NULL;
    g.stays = g.product ? mem_array(n, 1, e) : NULL;
    g.rz = g.stays ? mem_array(w->rows, sizeof *g.rz, e) : NULL;
    bool ok = g.rz;
    if (ok) iterate(&g);
    mem_free(g.residual);
    mem_free(g.direction);
    mem_free(g.product);
    mem_free(g.stays);
    mem_free(g.rz);
    return ok ? 0 : e->code;
}
