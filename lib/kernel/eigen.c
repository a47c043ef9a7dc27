/* Eigenvectors of a symmetric matrix in f64: Householder reduction to tridiagonal form, then QL steps with implicit
 * shifts (Golub and Van Loan 2013, "Matrix Computations", chapter 8). */
#include "lib/kernel/kernel_internal.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define MOST_STEPS 64 /* maximum of QL steps per eigenvalue */
#define STRIP      64 /* columns per task in rotations */
#define ROWS       16 /* rows of a matrix per task */

struct eigen {
    size_t n;
    double *a;         /* [n][n]: the matrix; after reduction, row k has the k-th reflector from column k + 1 on */
    double *z;         /* [n][n]: its rows become the eigenvectors */
    double *d, *e;     /* [n] diagonal and off-diagonal */
    double *beta;      /* [n] reflector k: 1 - beta v v^T */
    double *v, *w;     /* [n] scratch */
    double *turns;     /* [n][2]: cosine and sine of a step's rotations */
    size_t first, end; /* rows of the current step */
    double size;       /* the largest |d| + |e| of any row */
};

/* ---- tridiagonal form -------------------------------------------------------------------------------------------- */

struct reduction {
    struct eigen *g;
    size_t k; /* column */
};

static size_t strips(size_t n, size_t of) {
    return (n + of - 1) / of;
}

/* In eight partial sums, so that the compiler can vectorize it. */
static double dot(const double *x, const double *y, size_t n) {
    double part[8] = {0}, sum = 0;
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t k = 0; k < 8; k++) part[k] += x[i + k] * y[i + k];
    for (; i < n; i++) sum += x[i] * y[i];
    for (size_t k = 0; k < 8; k++) sum += part[k];
    return sum;
}

/* A task's rows after column k: [from, to). */
struct task_rows {
    size_t from, to;
};
static struct task_rows rows_of_task(const struct reduction *r, size_t block) {
    size_t from = r->k + 1 + block * ROWS, to = from + ROWS < r->g->n ? from + ROWS : r->g->n;
    return (struct task_rows){from, to};
}

/* w = A v for the rows after k. */
static void times_vector(void *ctx, size_t block, int thread) {
    const struct reduction *r = ctx;
    struct eigen *g = r->g;
    struct task_rows rows = rows_of_task(r, block);
    size_t n = g->n;
    (void)thread;
    for (size_t i = rows.from; i < rows.to; i++) {
        g->w[i] = dot(g->a + i * n + r->k + 1, g->v + r->k + 1, n - r->k - 1);
    }
}

/* A -= v w^T + w v^T */
static void subtract(void *ctx, size_t block, int thread) {
    const struct reduction *r = ctx;
    struct eigen *g = r->g;
    struct task_rows rows = rows_of_task(r, block);
    size_t n = g->n;
    (void)thread;
    for (size_t i = rows.from; i < rows.to; i++) {
        double v = g->v[i], w = g->w[i], *row = g->a + i * n;
        for (size_t j = r->k + 1; j < n; j++) row[j] -= v * g->w[j] + w * g->v[j];
    }
}

/* Applies from both sides the reflector that eliminates column k below its first subdiagonal element. */
static void reflect(struct eigen *g, size_t k) {
    size_t n = g->n, blocks = strips(n - k - 1, ROWS);
    struct reduction r = {g, k};
    double norm = 0, top = g->a[(k + 1) * n + k], along = 0;
    for (size_t i = k + 1; i < n; i++) norm = hypot(norm, g->a[i * n + k]);
    g->e[k] = top > 0 ? -norm : norm;
    g->beta[k] = 0;
    if (norm == 0) return;
    double first = top - g->e[k]; /* no cancellation: opposite signs */
    g->beta[k] = first / -g->e[k];
    for (size_t i = k + 1; i < n; i++) g->v[i] = i == k + 1 ? 1 : g->a[i * n + k] / first;
    parallel_for(blocks, times_vector, &r);
    for (size_t i = k + 1; i < n; i++) along += g->v[i] * g->w[i];
    for (size_t i = k + 1; i < n; i++) g->w[i] = g->beta[k] * (g->w[i] - g->beta[k] / 2 * along * g->v[i]);
    parallel_for(blocks, subtract, &r);
    memcpy(g->a + k * n + k + 1, g->v + k + 1, (n - k - 1) * sizeof *g->v);
}

static void reduce(struct eigen *g) {
    size_t n = g->n;
    for (size_t k = 0; k + 1 < n; k++) {
        g->d[k] = g->a[k * n + k];
        reflect(g, k);
    }
    g->d[n - 1] = g->a[n * n - 1];
    g->e[n - 1] = 0;
}

/* ---- QL ---------------------------------------------------------------------------------------------------------- */

/* Applies the rotations of a step, from the last row to the first, to some columns of z. */
static void turn_strip(void *ctx, size_t strip, int thread) {
    struct eigen *g = ctx;
    size_t n = g->n, from = strip * STRIP, to = from + STRIP < n ? from + STRIP : n;
    (void)thread;
    for (size_t i = g->end; i-- > g->first;) {
        double c = g->turns[2 * i], s = g->turns[2 * i + 1], *x = g->z + i * n, *y = x + n;
        for (size_t j = from; j < to; j++) {
            double was = y[j];
            y[j] = s * x[j] + c * was;
            x[j] = c * x[j] - s * was;
        }
    }
}

/* The first m >= l after which the matrix splits. Relative to the norm of the whole matrix: off-diagonal elements that
 * are small against it are rounding errors, for which steps need not converge (in matrices of low rank). */
static size_t split(const struct eigen *g, size_t l) {
    size_t m = l;
    while (m + 1 < g->n && fabs(g->e[m]) > DBL_EPSILON * g->size) m++;
    return m;
}

/* One QL step on rows l to m, with Wilkinson's shift. */
static void step(struct eigen *g, size_t l, size_t m) {
    double *d = g->d, *e = g->e, c = 1, s = 1, shift = 0;
    double x = (d[l + 1] - d[l]) / (2 * e[l]), r = hypot(x, 1);
    x = d[m] - d[l] + e[l] / (x + copysign(r, x));
    size_t i = m;
    g->end = m;
    while (i-- > l) {
        double f = s * e[i], b = c * e[i];
        e[i + 1] = r = hypot(f, x);
        if (r == 0) { /* the matrix splits here */
            d[i + 1] -= shift;
            break;
        }
        s = f / r, c = x / r;
        x = d[i + 1] - shift;
        r = (d[i] - x) * s + 2 * c * b;
        shift = s * r;
        d[i + 1] = x + shift;
        x = c * r - b;
        g->turns[2 * i] = c, g->turns[2 * i + 1] = s;
    }
    bool whole = i + 1 == l; /* i wrapped below l, l may be 0 */
    g->first = whole ? l : i + 1;
    if (whole) d[l] -= shift, e[l] = x;
    e[m] = 0;
    parallel_for(strips(g->n, STRIP), turn_strip, g);
}

static bool iterate(struct eigen *g) {
    for (size_t i = 0; i < g->n; i++) g->size = fmax(g->size, fabs(g->d[i]) + fabs(g->e[i]));
    for (size_t l = 0; l < g->n; l++)
        for (int steps = 0;; steps++) {
            size_t m = split(g, l);
            if (m == l) break;
            if (steps == MOST_STEPS) return false;
            step(g, l, m);
        }
    return true;
}

/* ---- back transformation ----------------------------------------------------------------------------------------- */

/* Turns an eigenvector of the tridiagonal matrix, a row, into one of the original matrix. */
static void reflect_row(void *ctx, size_t row, int thread) {
    struct eigen *g = ctx;
    size_t n = g->n;
    double *z = g->z + row * n;
    (void)thread;
    for (size_t k = n - 1; k-- > 0;) {
        const double *v = g->a + k * n;
        if (g->beta[k] == 0) continue;
        double sum = g->beta[k] * dot(v + k + 1, z + k + 1, n - k - 1);
        for (size_t j = k + 1; j < n; j++) z[j] -= sum * v[j];
    }
}

/* Sorts in descending order; equal values keep theirs. */
static void sort(struct eigen *g) {
    for (size_t i = 0; i < g->n; i++) {
        size_t most = i;
        for (size_t k = i + 1; k < g->n; k++)
            if (g->d[k] > g->d[most]) most = k;
        if (most == i) continue;
        double d = g->d[i], *x = g->z + i * g->n, *y = g->z + most * g->n;
        g->d[i] = g->d[most], g->d[most] = d;
        for (size_t k = 0; k < g->n; k++) d = x[k], x[k] = y[k], y[k] = d;
    }
}

bool kernel_eigen(double *a, double *values, size_t n, double *scratch) {
    struct eigen g = {.n = n, .a = scratch, .z = a, .d = values};
    g.e = scratch + n * n;
    g.beta = g.e + n, g.v = g.beta + n, g.w = g.v + n, g.turns = g.w + n;
    if (n == 0) return true;
    memcpy(g.a, a, n * n * sizeof *a);
    memset(a, 0, n * n * sizeof *a);
    for (size_t i = 0; i < n; i++) a[i * (n + 1)] = 1;
    reduce(&g);
    if (!iterate(&g)) return false;
    for (size_t i = 0; i < n; i++)
        if (!isfinite(values[i])) return false; /* fmax and comparisons ignore NaN */
    parallel_for(n, reflect_row, &g);
    sort(&g);
    return true;
}
