/* Losses on a sequence's features as a whole: energies of positions, products of layers, distributions of channels,
 * contrast. */
#include <math.h>

#include "lib/kernel/kernel_internal.h"

/* ---- energies of positions --------------------------------------------------------------------------------------- */

/* q_i = sum_c x_ic^2 for each row; returns the length of q. */
static double energies(double *q, const float *x, size_t n, size_t d) {
    const struct simd *v = simd();
    double sum = 0;
    for (size_t i = 0; i < n; i++) q[i] = v->dot(x + i * d, x + i * d, d), sum += q[i] * q[i];
    return sqrt(sum);
}

double kernel_energy_map(double weight, size_t n, const float *t, size_t td, const float *x, size_t d, double *scratch,
                         float *dx) {
    PROFILE(LOSSES);
    double *qt = scratch, *qx = scratch + n, sum = 0, along = 0;
    double length_t = energies(qt, t, n, td), length = energies(qx, x, n, d);
    double inv_t = length_t > 0 ? 1 / length_t : 0, inv = length > 0 ? 1 / length : 0, share = 1 / (double)n;
    for (size_t i = 0; i < n; i++) {
        double u = qx[i] * inv - qt[i] * inv_t;
        sum += share * u * u;
        along += 2 * share * u * qx[i] * inv;
    }
    for (size_t i = 0; dx && i < n; i++) {
        double y = qx[i] * inv, dq = inv * (2 * share * (y - qt[i] * inv_t) - along * y);
        for (size_t k = 0; k < d; k++) dx[i * d + k] = (float)(2 * weight * dq * x[i * d + k]);
    }
    return sum;
}

/* ---- products of two layers -------------------------------------------------------------------------------------- */

double kernel_flow(double weight, size_t n, size_t d, const float *ta, const float *tb, const float *xa,
                   const float *xb, float *scratch, float *da, float *db) {
    PROFILE(LOSSES);
    float *gap = scratch, *of_t = scratch + d * d;
    double sum = 0, cells = (double)d * (double)d, inv = 1 / (double)n;
    kernel_matmul_tn(d, d, n, kernel_f32(xa), kernel_f32(xb), 0, kernel_f32(gap));
    kernel_matmul_tn(d, d, n, kernel_f32(ta), kernel_f32(tb), 0, kernel_f32(of_t));
    for (size_t i = 0; i < d * d; i++) {
        double u = inv * ((double)gap[i] - of_t[i]);
        sum += u * u / cells;
        gap[i] = (float)(2 * weight * inv * u / cells);
    }
    if (da) kernel_matmul_nt(n, d, d, kernel_f32(xb), kernel_f32(gap), 0, kernel_f32(da));
    if (db) kernel_matmul_nn(n, d, d, kernel_f32(xa), kernel_f32(gap), 0, kernel_f32(db));
    return sum;
}

static double move(const float *a, const float *b, size_t d) {
    double sum = 0;
    for (size_t k = 0; k < d; k++) sum += ((double)a[k] - b[k]) * ((double)a[k] - b[k]);
    return sum / (double)d;
}

double kernel_moves(double weight, size_t n, const float *ta, const float *tb, size_t td, const float *xa,
                    const float *xb, size_t d, float *da, float *db) {
    PROFILE(LOSSES);
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        double u = move(xa + i * d, xb + i * d, d) - move(ta + i * td, tb + i * td, td);
        double scale = 4 * weight * u / ((double)n * (double)d);
        sum += u * u / (double)n;
        for (size_t k = i * d; da && k < (i + 1) * d; k++) {
            da[k] = (float)(scale * ((double)xa[k] - xb[k]));
            db[k] = -da[k];
        }
    }
    return sum;
}

/* ---- distributions of channels ----------------------------------------------------------------------------------- */

struct channels {
    const struct simd *v;
    size_t n, d;
    float *u;    /* [d][n] channels over positions, of length 1 */
    double *inv; /* [d] 1 / length */
    /* For the Gaussian kernel, against own and the other's channels: */
    const struct channels *other;
    double own_share, other_share, variance; /* factors of exp(c / variance) in the value */
    double *values;                          /* [d] */
    float *g;                                /* [d][n], or NULL */
};

static void channel_rows(struct channels *c, const float *x) {
    for (size_t k = 0; k < c->d; k++) {
        double sum = 0;
        for (size_t i = 0; i < c->n; i++) sum += (double)x[i * c->d + k] * x[i * c->d + k];
        c->inv[k] = sum > 0 ? 1 / sqrt(sum) : 0;
        for (size_t i = 0; i < c->n; i++) c->u[k * c->n + i] = (float)(c->inv[k] * x[i * c->d + k]);
    }
}

static void mean_channel(double *m, const struct channels *c) {
    for (size_t i = 0; i < c->n; i++) m[i] = 0;
    for (size_t k = 0; k < c->d; k++)
        for (size_t i = 0; i < c->n; i++) m[i] += c->u[k * c->n + i] / (double)c->d;
}

/* |mean of the student's channels - mean of the teacher's|^2 */
static double linear(struct channels *t, struct channels *x, double *scratch) {
    double *mt = scratch, *mx = scratch + x->n, sum = 0;
    mean_channel(mt, t);
    mean_channel(mx, x);
    for (size_t i = 0; i < x->n; i++) sum += (mx[i] - mt[i]) * (mx[i] - mt[i]);
    for (size_t k = 0; x->g && k < x->d; k++)
        for (size_t i = 0; i < x->n; i++) x->g[k * x->n + i] = (float)(2 * (mx[i] - mt[i]) / (double)x->d);
    return sum;
}

/* For (u . w)^2 the sum over pairs is that over [n][n] of the squared difference of the means of u u^T. */
static double poly(struct channels *t, struct channels *x, double *scratch) {
    size_t n = x->n;
    float *gt = (float *)scratch, *gx = gt + n * n;
    double sum = 0;
    kernel_matmul_tn(n, n, t->d, kernel_f32(t->u), kernel_f32(t->u), 0, kernel_f32(gt));
    kernel_matmul_tn(n, n, x->d, kernel_f32(x->u), kernel_f32(x->u), 0, kernel_f32(gx));
    for (size_t i = 0; i < n * n; i++) {
        double u = gx[i] / (double)x->d - gt[i] / (double)t->d;
        sum += u * u;
        gx[i] = (float)(4 * u / (double)x->d);
    }
    if (x->g) kernel_matmul_nn(x->d, n, n, kernel_f32(x->u), kernel_f32(gx), 0, kernel_f32(x->g));
    return sum;
}

/* Returns the sum over channels b of exp((u . b - 1) / variance), and adds its gradient times share to g. */
static double gauss_row(const struct channels *c, const struct channels *b, const float *u, double share, float *g) {
    double sum = 0;
    for (size_t j = 0; j < b->d; j++) {
        double k = exp((c->v->dot(u, b->u + j * b->n, b->n) - 1) / c->variance);
        sum += k;
        if (g) c->v->axpy(g, (float)(share * k / c->variance), b->u + j * b->n, b->n);
    }
    return sum;
}

static void gauss_rows(void *ctx, size_t begin, size_t end) {
    const struct channels *c = ctx;
    for (size_t k = begin; k < end; k++) {
        const float *u = c->u + k * c->n;
        float *g = c->g ? c->g + k * c->n : NULL;
        for (size_t i = 0; g && i < c->n; i++) g[i] = 0;
        c->values[k] = c->own_share * gauss_row(c, c, u, 2 * c->own_share, g);
        if (c->other) c->values[k] -= 2 * c->other_share * gauss_row(c, c->other, u, -2 * c->other_share, g);
    }
}

static double gaussian(struct channels *t, struct channels *x, double *scratch) {
    double *mt = scratch, *mx = mt + x->n, common = 0, sum = 0;
    mean_channel(mt, t);
    mean_channel(mx, x);
    for (size_t i = 0; i < x->n; i++) common += mt[i] * mx[i];
    t->variance = x->variance = fmax(2 - 2 * common, 1e-6); /* mean |u - w|^2 over pairs of student and teacher */
    t->values = scratch, x->values = scratch + t->d;
    t->own_share = 1 / ((double)t->d * (double)t->d);
    x->own_share = 1 / ((double)x->d * (double)x->d);
    x->other = t, x->other_share = 1 / ((double)x->d * (double)t->d);
    kernel_split(t->d, 16, gauss_rows, t);
    kernel_split(x->d, 16, gauss_rows, x);
    for (size_t i = 0; i < t->d + x->d; i++) sum += scratch[i];
    return sum;
}

/* The gradient with respect to the features from that of the normalized channels. */
static void channel_gradient(const struct channels *c, double weight, float *dx) {
    for (size_t k = 0; k < c->d; k++) {
        const float *u = c->u + k * c->n, *g = c->g + k * c->n;
        double along = c->v->dot(u, g, c->n);
        for (size_t i = 0; i < c->n; i++) dx[i * c->d + k] = (float)(weight * c->inv[k] * (g[i] - along * u[i]));
    }
}

size_t kernel_mmd_scratch(size_t n, size_t td, size_t d) {
    size_t work = n * n + 2 * n + td + d;
    return work + td + d + (n * (td + 2 * d) + 1) / 2;
}

double kernel_mmd(enum kernel_mmd_kind kind, double weight, size_t n, const float *t, size_t td, const float *x,
                  size_t d, double *scratch, float *dx) {
    PROFILE(LOSSES);
    double *inv = scratch + n * n + 2 * n + td + d, value;
    float *u = (float *)(inv + td + d);
    struct channels of_t = {.v = simd(), .n = n, .d = td, .u = u, .inv = inv};
    struct channels of_x = {
        .v = simd(), .n = n, .d = d, .u = u + n * td, .inv = inv + td, .g = dx ? u + n * (td + d) : NULL};
    channel_rows(&of_t, t);
    channel_rows(&of_x, x);
    value = (kind == MMD_LINEAR ? linear : kind == MMD_POLY ? poly : gaussian)(&of_t, &of_x, scratch);
    if (dx) channel_gradient(&of_x, weight, dx);
    return value;
}

/* ---- contrast ---------------------------------------------------------------------------------------------------- */

static void to_units(double *u, double *inv, const float *x, size_t n, size_t d) {
    const struct simd *v = simd();
    for (size_t i = 0; i < n; i++) {
        double length = sqrt(v->dot(x + i * d, x + i * d, d));
        inv[i] = length > 0 ? 1 / length : 0;
        for (size_t k = 0; k < d; k++) u[i * d + k] = inv[i] * x[i * d + k];
    }
}

/* -ln softmax of n scores with stride `step`, at index `own`; adds share (softmax - 1 at `own`) to e. */
static double own_place(const double *s, double *e, size_t n, size_t step, size_t own, double share) {
    double max = -INFINITY, sum = 0;
    for (size_t j = 0; j < n; j++) max = fmax(max, s[j * step]);
    for (size_t j = 0; j < n; j++) sum += exp(s[j * step] - max);
    for (size_t j = 0; j < n; j++) e[j * step] += share * exp(s[j * step] - max) / sum;
    e[own * step] -= share;
    return log(sum) + max - s[own * step];
}

static void contrast_gradient(float *dx, const double *u, const double *w, const double *inv, const double *e, size_t n,
                              size_t d, size_t row, size_t col, double scale, double *g) {
    for (size_t i = 0; i < n; i++) {
        double along = 0;
        for (size_t k = 0; k < d; k++) g[k] = 0;
        for (size_t j = 0; j < n; j++)
            for (size_t k = 0; k < d; k++) g[k] += e[i * row + j * col] * w[j * d + k];
        for (size_t k = 0; k < d; k++) along += g[k] * u[i * d + k];
        for (size_t k = 0; k < d; k++) dx[i * d + k] = (float)(scale * inv[i] * (g[k] - along * u[i * d + k]));
    }
}

size_t kernel_contrast_scratch(size_t n, size_t d) {
    return 2 * n * n + 2 * n * d + 2 * n + d;
}

double kernel_contrast(double weight, double temperature, size_t n, size_t d, const float *t, const float *x,
                       double *scratch, float *dt, float *dx) {
    PROFILE(LOSSES);
    double *ut = scratch, *ux = ut + n * d, *s = ux + n * d, *e = s + n * n, *inv = e + n * n, *g = inv + 2 * n,
           sum = 0;
    to_units(ut, inv, t, n, d);
    to_units(ux, inv + n, x, n, d);
    for (size_t i = 0; i < n * n; i++) {
        double dot = 0;
        for (size_t k = 0; k < d; k++) dot += ux[i / n * d + k] * ut[i % n * d + k];
        s[i] = dot / temperature;
        e[i] = 0;
    }
    for (size_t i = 0; i < n; i++) {
        sum += own_place(s + i * n, e + i * n, n, 1, i, 0.5 / (double)n);
        sum += own_place(s + i, e + i, n, n, i, 0.5 / (double)n);
    }
    if (dx) contrast_gradient(dx, ux, ut, inv + n, e, n, d, n, 1, weight / temperature, g);
    if (dt) contrast_gradient(dt, ut, ux, inv, e, n, d, 1, n, weight / temperature, g);
    return sum * 0.5 / (double)n;
}
