/* Losses between the relations among a teacher's instances and those among a student's, and their gradients. */
#include <math.h>

#include "lib/kernel/kernel_internal.h"

enum base { BASE_DOT, BASE_COSINE, BASE_DISTANCE, BASE_SQUARE };

struct side {
    const struct simd *v;
    enum base base;
    const float *x;
    size_t n, d;
    double *r;      /* [n][n] the relation, later the gradient of the loss with respect to it */
    double *length; /* [n] of rows, for cosines */
    double *f;      /* [n][n] weight of x_j in the gradient of x_i */
    double weight;
    float *dx;
};

/* ---- relations of rows ------------------------------------------------------------------------------------------- */

static double square_distance(const float *x, const float *y, size_t n) {
    double sum[4] = {0};
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (size_t k = 0; k < 4; k++) {
            double z = (double)x[i + k] - y[i + k];
            sum[k] += z * z;
        }
    for (; i < n; i++) sum[0] += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

static double relation(const struct side *s, size_t i, size_t j) {
    const float *x = s->x + i * s->d, *y = s->x + j * s->d;
    switch (s->base) {
    case BASE_DOT: return s->v->dot(x, y, s->d);
    case BASE_COSINE: {
        double length = s->length[i] * s->length[j];
        return length > 0 ? s->v->dot(x, y, s->d) / length : 0;
    }
    case BASE_DISTANCE: return sqrt(square_distance(x, y, s->d));
    case BASE_SQUARE: return square_distance(x, y, s->d) / (double)s->d;
    }
    return 0;
}

static void relation_rows(void *ctx, size_t begin, size_t end) {
    const struct side *s = ctx;
    for (size_t i = begin; i < end; i++)
        for (size_t j = 0; j < s->n; j++) s->r[i * s->n + j] = relation(s, i, j);
}

static void find_relations(struct side *s) {
    for (size_t i = 0; s->base == BASE_COSINE && i < s->n; i++)
        s->length[i] = sqrt(s->v->dot(s->x + i * s->d, s->x + i * s->d, s->d));
    kernel_split(s->n, 1, relation_rows, s);
}

/* ---- from relations back to rows --------------------------------------------------------------------------------- */

#define COLUMNS 64 /* per step */

/* Columns [c, c + n) of row i of the gradient: the sum of f_ij y, where y is x_j, or x_i - x_j for distances. */
static void gradient_part(const struct side *s, size_t i, size_t c, size_t n, double acc[COLUMNS]) {
    const float *own = s->x + i * s->d + c;
    bool distance = s->base == BASE_DISTANCE || s->base == BASE_SQUARE;
    for (size_t k = 0; k < n; k++) acc[k] = 0;
    for (size_t j = 0; j < s->n; j++) {
        const float *x = s->x + j * s->d + c;
        double f = s->f[i * s->n + j];
        if (f == 0) continue;
        if (distance)
            for (size_t k = 0; k < n; k++) acc[k] += f * ((double)own[k] - x[k]);
        else
            for (size_t k = 0; k < n; k++) acc[k] += f * x[k];
    }
}

static double factor(const struct side *s, size_t i, size_t j) {
    double e = s->r[i * s->n + j] + s->r[j * s->n + i];
    switch (s->base) {
    case BASE_DOT: return e;
    case BASE_COSINE: {
        double length = s->length[i] * s->length[j];
        return length > 0 ? e / length : 0;
    }
    case BASE_SQUARE: return 2 * e / (double)s->d;
    case BASE_DISTANCE: {
        double z = sqrt(square_distance(s->x + i * s->d, s->x + j * s->d, s->d));
        return z > 0 ? e / z : 0;
    }
    }
    return 0;
}

/* The gradient of a cosine is orthogonal to the row itself. */
static void gradient_rows(void *ctx, size_t begin, size_t end) {
    const struct side *s = ctx;
    double acc[COLUMNS];
    for (size_t i = begin; i < end; i++) {
        float *dx = s->dx + i * s->d;
        const float *x = s->x + i * s->d;
        double along = 0, length2 = s->base == BASE_COSINE ? s->length[i] * s->length[i] : 0;
        for (size_t j = 0; j < s->n; j++) s->f[i * s->n + j] = s->weight * factor(s, i, j);
        /* sum_j f_ij x_i . x_j / |x_i|^2: the component along the row */
        for (size_t j = 0; length2 > 0 && j < s->n; j++)
            along += s->f[i * s->n + j] * s->v->dot(x, s->x + j * s->d, s->d) / length2;
        for (size_t c = 0; c < s->d; c += COLUMNS) {
            size_t n = smaller(COLUMNS, s->d - c);
            gradient_part(s, i, c, n, acc);
            for (size_t k = 0; k < n; k++) dx[c + k] = (float)(acc[k] - along * x[c + k]);
        }
    }
}

/* ---- losses: return the value and replace s->r by the gradient --------------------------------------------------- */

static double similarity(const double *t, double *r, size_t n) {
    double sum = 0, share = 1 / ((double)n * (double)n);
    for (size_t i = 0; i < n; i++, t += n, r += n) {
        double tt = 0, rr = 0, along = 0;
        for (size_t j = 0; j < n; j++) tt += t[j] * t[j], rr += r[j] * r[j];
        double inv_t = tt > 0 ? 1 / sqrt(tt) : 0, inv_r = rr > 0 ? 1 / sqrt(rr) : 0;
        for (size_t j = 0; j < n; j++) {
            double u = r[j] * inv_r - t[j] * inv_t;
            sum += share * u * u;
            along += 2 * share * u * r[j] * inv_r;
        }
        for (size_t j = 0; j < n; j++) {
            double y = r[j] * inv_r;
            r[j] = inv_r * (2 * share * (y - t[j] * inv_t) - along * y);
        }
    }
    return sum;
}

/* e^(-2 g) sum over p of (2 g)^p / p! c^p, and its derivative; c itself if the order is 0. */
static double correlate(const struct kernel_relation *how, double c, double *slope) {
    double value = 0, term = exp(-2 * how->gamma), power = 1, before = 0;
    *slope = 1;
    if (!how->order) return c;
    *slope = 0;
    for (unsigned p = 0; p <= how->order; p++) {
        value += term * power;
        *slope += term * p * before;
        before = power;
        power *= c;
        term *= 2 * how->gamma / (p + 1);
    }
    return value;
}

static double correlation(const struct kernel_relation *how, const double *t, double *r, size_t n) {
    double sum = 0, share = 1 / ((double)n * (double)n), slope, ignored;
    for (size_t i = 0; i < n * n; i++) {
        double u = correlate(how, r[i], &slope) - correlate(how, t[i], &ignored);
        sum += share * u * u;
        r[i] = 2 * share * u * slope;
    }
    return sum;
}

/* (c + 1) / 2 for all others, divided by their sum. */
static double shares(double *r, size_t n, size_t i) {
    double sum = 0;
    for (size_t j = 0; j < n; j++) sum += r[j] = j == i ? 0 : fmax((r[j] + 1) / 2, 0);
    for (size_t j = 0; j < n; j++) r[j] = sum > 0 ? r[j] / sum : 0;
    return sum;
}

static double probability(double *t, double *r, size_t n) {
    double value = 0, e = KERNEL_RELATION_EPS;
    for (size_t i = 0; i < n; i++, t += n, r += n) {
        double mean = 0, sum = shares(r, n, i);
        shares(t, n, i);
        for (size_t j = 0; j < n; j++) {
            value += t[j] * log((t[j] + e) / (r[j] + e)) / (double)n;
            mean -= t[j] / (r[j] + e) * r[j];
        }
        for (size_t j = 0; j < n; j++)
            r[j] = j == i || sum == 0 ? 0 : (-t[j] / (r[j] + e) - mean) / (2 * sum * (double)n);
    }
    return value;
}

static double huber(double u, double *slope) {
    *slope = u > 1 ? 1 : u < -1 ? -1 : u;
    return fabs(u) <= 1 ? u * u / 2 : fabs(u) - 0.5;
}

static double mean_distance(const double *r, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n * n; i++) sum += r[i];
    return sum / ((double)n * (double)(n - 1));
}

static double distance(const double *t, double *r, size_t n) {
    double pairs = (double)n * (double)(n - 1), sum = 0, along = 0, slope;
    double of_t = mean_distance(t, n), of_r = mean_distance(r, n);
    double inv_t = of_t > 0 ? 1 / of_t : 0, inv_r = of_r > 0 ? 1 / of_r : 0;
    for (size_t i = 0; i < n * n; i++) {
        if (i % (n + 1) == 0) continue; /* a row's distance from itself */
        sum += huber(r[i] * inv_r - t[i] * inv_t, &slope) / pairs;
        along += slope * r[i] * inv_r / pairs;
    }
    for (size_t i = 0; i < n * n; i++) {
        huber(r[i] * inv_r - t[i] * inv_t, &slope);
        r[i] = i % (n + 1) ? inv_r * (slope - along) / pairs : 0;
    }
    return sum;
}

static double graph(const double *t, double *r, size_t n) {
    double sum = 0, share = 1 / ((double)n * (double)n);
    for (size_t i = 0; i < n * n; i++) {
        double u = r[i] - t[i];
        sum += share * u * u;
        r[i] = 2 * share * u;
    }
    return sum;
}

size_t kernel_relation_scratch(size_t n) {
    return 3 * n * n + n;
}

double kernel_relation(const struct kernel_relation *how, size_t n, const float *t, size_t td, const float *x, size_t d,
                       double *scratch, float *dx) {
    PROFILE(LOSSES);
    static const enum base bases[] = {[RELATION_SIMILARITY] = BASE_DOT,
                                      [RELATION_CORRELATION] = BASE_COSINE,
                                      [RELATION_PROBABILITY] = BASE_COSINE,
                                      [RELATION_DISTANCE] = BASE_DISTANCE,
                                      [RELATION_GRAPH] = BASE_SQUARE};
    double *of_t = scratch, *of_x = scratch + n * n, *f = of_x + n * n, *length = f + n * n, value = 0;
    struct side teacher = {.v = simd(), .base = bases[how->kind], .x = t, .n = n, .d = td, .r = of_t, .length = length};
    struct side student = {.v = simd(),
                           .base = bases[how->kind],
                           .x = x,
                           .n = n,
                           .d = d,
                           .r = of_x,
                           .length = length,
                           .f = f,
                           .weight = how->weight,
                           .dx = dx};
    if (dx) memset(dx, 0, n * d * sizeof *dx);
    if (n < 2) return 0;
    find_relations(&teacher);
    find_relations(&student);
    switch (how->kind) {
    case RELATION_SIMILARITY: value = similarity(of_t, of_x, n); break;
    case RELATION_CORRELATION: value = correlation(how, of_t, of_x, n); break;
    case RELATION_PROBABILITY: value = probability(of_t, of_x, n); break;
    case RELATION_DISTANCE: value = distance(of_t, of_x, n); break;
    case RELATION_GRAPH: value = graph(of_t, of_x, n); break;
    }
    if (dx) kernel_split(n, 1, gradient_rows, &student);
    return value;
}

/* ---- angles ------------------------------------------------------------------------------------------------------ */

struct angles {
    const struct simd *v;
    size_t n, d;
    const float *x;
    float *u;    /* [n][d] unit vectors from the corner to the others */
    double *c;   /* [n][n] their cosines, later the gradient */
    double *inv; /* [n] 1 / length of the differences */
    size_t corner;
};

static void unit_rows(void *ctx, size_t begin, size_t end) {
    const struct angles *a = ctx;
    const float *corner = a->x + a->corner * a->d;
    for (size_t i = begin; i < end; i++) {
        const float *x = a->x + i * a->d;
        double length = sqrt(square_distance(x, corner, a->d));
        a->inv[i] = length > 0 ? 1 / length : 0;
        for (size_t k = 0; k < a->d; k++) a->u[i * a->d + k] = (float)(a->inv[i] * ((double)x[k] - corner[k]));
    }
}

static void cosine_rows_of(void *ctx, size_t begin, size_t end) {
    const struct angles *a = ctx;
    for (size_t i = begin; i < end; i++)
        for (size_t j = 0; j < a->n; j++) a->c[i * a->n + j] = a->v->dot(a->u + i * a->d, a->u + j * a->d, a->d);
}

static void find_angles(struct angles *a, size_t corner) {
    a->corner = corner;
    kernel_split(a->n, 4, unit_rows, a);
    kernel_split(a->n, 4, cosine_rows_of, a);
}

/* d cos(u_i, u_k) / du_i = u_k and du_i / dx_i = (1 - u u^T) / length; the corner gets the negative. */
static void angle_gradient(const struct angles *a, double weight, double *g, double *dx) {
    for (size_t i = 0; i < a->n; i++) {
        double along = 0;
        if (i == a->corner || a->inv[i] == 0) continue;
        for (size_t k = 0; k < a->d; k++) g[k] = 0;
        for (size_t j = 0; j < a->n; j++) {
            double f = a->c[i * a->n + j] + a->c[j * a->n + i];
            for (size_t k = 0; f != 0 && k < a->d; k++) g[k] += f * a->u[j * a->d + k];
        }
        for (size_t k = 0; k < a->d; k++) along += g[k] * a->u[i * a->d + k];
        for (size_t k = 0; k < a->d; k++) {
            double z = weight * a->inv[i] * (g[k] - along * a->u[i * a->d + k]);
            dx[i * a->d + k] += z;
            dx[a->corner * a->d + k] -= z;
        }
    }
}

size_t kernel_angles_scratch(size_t n, size_t td, size_t d) {
    return 2 * n * n + 2 * n + n * d + d + (n * (td + d) + 1) / 2;
}

double kernel_angles(double weight, size_t n, const float *t, size_t td, const float *x, size_t d, double *scratch,
                     float *dx) {
    PROFILE(LOSSES);
    double *ct = scratch, *cx = ct + n * n, *inv = cx + n * n, *sum = inv + 2 * n, *g = sum + n * d, value = 0, slope;
    float *u = (float *)(g + d);
    struct angles of_t = {.v = simd(), .n = n, .d = td, .x = t, .u = u, .c = ct, .inv = inv};
    struct angles of_x = {.v = simd(), .n = n, .d = d, .x = x, .u = u + n * td, .c = cx, .inv = inv + n};
    if (dx) memset(dx, 0, n * d * sizeof *dx);
    if (n < 3) return 0;
    double share = 1 / ((double)n * (double)(n - 1) * (double)(n - 2));
    for (size_t i = 0; i < n * d; i++) sum[i] = 0;
    for (size_t corner = 0; corner < n; corner++) {
        find_angles(&of_t, corner);
        find_angles(&of_x, corner);
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < n; j++) {
                bool counts = i != j && i != corner && j != corner;
                slope = 0;
                if (counts) value += share * huber(cx[i * n + j] - ct[i * n + j], &slope);
                cx[i * n + j] = share * slope;
            }
        if (dx) angle_gradient(&of_x, weight, g, sum);
    }
    for (size_t i = 0; dx && i < n * d; i++) dx[i] = (float)sum[i];
    return value;
}
