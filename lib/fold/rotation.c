/* Orthogonal matrices: random ones that are cheap to apply (a Hadamard matrix, and a small dense one if the width is
 * not a power of two), or any given one. */
#include <math.h>
#include <string.h>

#include "lib/fold/fold_internal.h"

static double dot(const double *a, const double *b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* Computes the orthogonal factor of a Gaussian matrix, with positive diagonal elements in the other factor, so that it
 * is uniformly distributed (Mezzadri 2007): Gram-Schmidt, applied twice for accuracy. */
static void orthonormal_rows(double *q, size_t m, struct rng *rng) {
    for (size_t i = 0; i < m * m; i++) q[i] = rng_normal(rng);
    for (size_t i = 0; i < m; i++) {
        double *row = q + i * m;
        for (int pass = 0; pass < 2; pass++)
            for (size_t k = 0; k < i; k++) {
                double along = dot(row, q + k * m, m);
                for (size_t j = 0; j < m; j++) row[j] -= along * q[k * m + j];
            }
        double length = sqrt(dot(row, row, m));
        for (size_t j = 0; j < m; j++) row[j] /= length;
    }
}

int fold_rotation_new(struct fold_rotation *r, size_t n, struct rng rng, struct err *e) {
    *r = (struct fold_rotation){.n = n, .p = 1};
    while (n % (2 * r->p) == 0) r->p *= 2;
    r->m = n / r->p;
    r->signs = mem_array(n, sizeof *r->signs, e);
    r->small = r->signs ? mem_array(r->m, r->m * sizeof *r->small, e) : NULL;
    if (!r->small) return err_prefix(e, "a rotation of width %zu", n);
    for (size_t i = 0; i < n; i++) r->signs[i] = rng_below(&rng, 2) ? 1 : -1;
    orthonormal_rows(r->small, r->m, &rng);
    return 0;
}

int fold_rotation_of(struct fold_rotation *r, size_t n, const double *matrix, struct err *e) {
    *r = (struct fold_rotation){.n = n, .p = 1, .m = n};
    r->signs = mem_array(n, sizeof *r->signs, e);
    r->small = r->signs ? mem_array(n, n * sizeof *r->small, e) : NULL;
    if (!r->small) return err_prefix(e, "a rotation of width %zu", n);
    for (size_t i = 0; i < n; i++) r->signs[i] = 1;
    memcpy(r->small, matrix, n * n * sizeof *matrix);
    return 0;
}

void fold_rotation_release(struct fold_rotation *r) {
    mem_free(r->signs);
    mem_free(r->small);
    *r = (struct fold_rotation){0};
}

/* Multiplies x [p][m] by the Hadamard matrix of order p over sqrt(p): the fast Walsh-Hadamard transform. */
static void hadamard(double *x, size_t p, size_t m) {
    for (size_t h = m; h < p * m; h *= 2)
        for (size_t i = 0; i < p * m; i += 2 * h)
            for (size_t j = i; j < i + h; j++) {
                double a = x[j], b = x[j + h];
                x[j] = a + b;
                x[j + h] = a - b;
            }
    double by = 1 / sqrt((double)p);
    for (size_t i = 0; i < p * m; i++) x[i] *= by;
}

void fold_rotate_vector(const struct fold_rotation *r, double *x, double *scratch) {
    for (size_t i = 0; i < r->n; i++) x[i] *= r->signs[i];
    for (size_t i = 0; r->m > 1 && i < r->p; i++) {
        double *part = x + i * r->m;
        memset(scratch, 0, r->m * sizeof *scratch);
        for (size_t k = 0; k < r->m; k++)
            for (size_t j = 0; j < r->m; j++) scratch[j] += part[k] * r->small[k * r->m + j];
        memcpy(part, scratch, r->m * sizeof *part);
    }
    hadamard(x, r->p, r->m);
}
