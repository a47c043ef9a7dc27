/* Losses between rows of features, and their gradients. */
#include <math.h>

#include "lib/kernel/kernel_internal.h"

struct feature {
    const struct simd *v;
    double (*row)(const struct feature *c, const float *x, const float *t, double weight, float *dx);
    float weight;
    const float *t, *row_weight, *x;
    size_t d;
    float *dx;
    double *sums; /* of pieces, in order */
};

#define ROWS 8 /* per piece */

static double mse_row(const struct feature *c, const float *x, const float *t, double weight, float *dx) {
    double sum = 0, scale = 2 * weight / (double)c->d;
    for (size_t i = 0; i < c->d; i++) {
        double y = (double)x[i] - t[i];
        sum += y * y;
        if (dx) dx[i] = (float)(scale * y);
    }
    return sum / (double)c->d;
}

/* d(1 - cos)/dx = (cos x / |x| - t / |t|) / |x| */
static double cosine_row(const struct feature *c, const float *x, const float *t, double weight, float *dx) {
    double xx = c->v->dot(x, x, c->d), tt = c->v->dot(t, t, c->d), xt = c->v->dot(x, t, c->d);
    double length = sqrt(xx * tt), cosine = length > 0 ? xt / length : 0;
    double of_x = length > 0 ? weight * cosine / xx : 0, of_t = length > 0 ? weight / length : 0;
    for (size_t i = 0; dx && i < c->d; i++) dx[i] = (float)(of_x * x[i] - of_t * t[i]);
    return 1 - cosine;
}

/* With u = x / |x|: du = sign(u - t / |t|), dx = (du - u (u . du)) / |x|. */
static double factor_row(const struct feature *c, const float *x, const float *t, double weight, float *dx) {
    double xx = c->v->dot(x, x, c->d), tt = c->v->dot(t, t, c->d), sum = 0, along = 0;
    double inv = xx > 0 ? 1 / sqrt(xx) : 0, inv_t = tt > 0 ? 1 / sqrt(tt) : 0;
    for (size_t i = 0; i < c->d; i++) {
        double u = x[i] * inv, gap = u - t[i] * inv_t;
        sum += fabs(gap);
        along += gap > 0 ? u : gap < 0 ? -u : 0;
    }
    for (size_t i = 0; dx && i < c->d; i++) {
        double u = x[i] * inv, gap = u - t[i] * inv_t, sign = gap > 0 ? 1 : gap < 0 ? -1 : 0;
        dx[i] = (float)(weight * inv * (sign - along * u));
    }
    return sum;
}

static void feature_rows(void *ctx, size_t begin, size_t end) {
    const struct feature *c = ctx;
    double sum = 0;
    for (size_t r = begin; r < end; r++) {
        double weight = c->row_weight ? c->row_weight[r] : 1;
        float *dx = c->dx ? c->dx + r * c->d : NULL;
        if (weight != 0)
            sum += weight * c->row(c, c->x + r * c->d, c->t + r * c->d, weight * c->weight, dx);
        else if (dx)
            memset(dx, 0, c->d * sizeof *dx);
    }
    c->sums[begin / ROWS] = sum;
}

/* A fixed number of pieces at a time, so that their sums need no allocation. */
static double sum_rows(const struct feature *c, size_t rows) {
    enum { PIECES = 256 };
    double sums[PIECES], total = 0;
    for (size_t at = 0; at < rows; at += PIECES * ROWS) {
        struct feature part = *c;
        part.sums = sums;
        size_t n = smaller(PIECES * ROWS, rows - at);
        part.x += at * c->d;
        part.t += at * c->d;
        if (c->dx) part.dx += at * c->d;
        if (c->row_weight) part.row_weight += at;
        kernel_split(n, ROWS, feature_rows, &part);
        for (size_t i = 0; i < (n + ROWS - 1) / ROWS; i++) total += sums[i];
    }
    return total;
}

double kernel_rows_mse(float weight, const float *t, const float *row_weight, const float *x, size_t rows, size_t d,
                       float *dx) {
    PROFILE(LOSSES);
    struct feature c = {simd(), mse_row, weight, t, row_weight, x, d, dx, NULL};
    return sum_rows(&c, rows);
}

double kernel_rows_cosine(float weight, const float *t, const float *row_weight, const float *x, size_t rows, size_t d,
                          float *dx) {
    PROFILE(LOSSES);
    struct feature c = {simd(), cosine_row, weight, t, row_weight, x, d, dx, NULL};
    return sum_rows(&c, rows);
}

double kernel_rows_factor(float weight, const float *t, const float *row_weight, const float *x, size_t rows, size_t d,
                          float *dx) {
    PROFILE(LOSSES);
    struct feature c = {simd(), factor_row, weight, t, row_weight, x, d, dx, NULL};
    return sum_rows(&c, rows);
}
