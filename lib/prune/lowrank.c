/* Low-rank factors of a matrix, by a truncated singular value decomposition on whitened inputs. */
#include <math.h>
#include <string.h>

#include "lib/prune/second_order.h"

/* With the damped Gram matrix of the inputs H = S S^T: a = w S = U sigma V^T, truncated to the largest singular values.
 * The eigenvectors of the smaller of a a^T and a^T a are U or V. All in f64, because squared singular values span twice
 * as many orders of magnitude. */
struct decomposition {
    const struct prune_matrix *w;
    const struct obs_factor *f; /* u = S^-1; NULL: S = 1 */
    double *x;                  /* [rows][cols] w, with the columns of dead inputs 0 */
    double *a;                  /* [rows][cols] */
    double *vectors;            /* [n][n], n = min(rows, cols): its rows are the columns of U or V */
    double *values;             /* [n] sigma^2, descending */
    double *scratch;            /* of kernel_eigen */
    double *product;            /* [rank][cols] or [rows][rank] */
    size_t n, rank;
};

/* ---- products in f64 --------------------------------------------------------------------------------------------- */

/* out [m][n] = a b, where element (i, p) of a is a[i * row + p * col], b [k][n]. */
struct product {
    double *out;
    const double *a, *b;
    size_t n, k, row, col;
};

static void product_row(void *ctx, size_t i, int thread) {
    const struct product *p = ctx;
    double *out = p->out + i * p->n;
    (void)thread;
    memset(out, 0, p->n * sizeof *out);
    for (size_t k = 0; k < p->k; k++) {
        double by = p->a[i * p->row + k * p->col];
        const double *b = p->b + k * p->n;
        for (size_t j = 0; j < p->n; j++) out[j] += by * b[j];
    }
}

static void multiply(size_t m, struct product p) {
    parallel_for(m, product_row, &p);
}

static void transpose(double *out, const double *x, size_t rows, size_t cols) {
    for (size_t i = 0; i < rows; i++)
        for (size_t k = 0; k < cols; k++) out[k * rows + i] = x[i * cols + k];
}

/* ---- w S --------------------------------------------------------------------------------------------------------- */

/* A row of a solves a u = w by substitution, since u is upper triangular. */
static void whiten_row(void *ctx, size_t row, int thread) {
    const struct decomposition *d = ctx;
    size_t n = d->w->cols;
    double *a = d->a + row * n;
    (void)thread;
    for (size_t i = 0; i < n; i++) {
        const float *u = d->f->u + i * n;
        double by = a[i] /= u[i];
        for (size_t k = i + 1; k < n; k++) a[k] -= by * u[k];
    }
}

static void whiten(struct decomposition *d) {
    size_t rows = d->w->rows, cols = d->w->cols;
    for (size_t i = 0; i < rows * cols; i++) d->x[i] = d->f && d->f->dead[i % cols] ? 0 : (double)d->w->x[i];
    memcpy(d->a, d->x, rows * cols * sizeof *d->a);
    if (d->f) parallel_for(rows, whiten_row, d);
}

/* ---- the factors ------------------------------------------------------------------------------------------------- */

static int decompose(struct decomposition *d, struct err *e) {
    if (kernel_eigen(d->vectors, d->values, d->n, d->scratch)) return 0;
    return err_set(e, ERR_DATA, "no singular value decomposition is found");
}

/* sigma^(1/2); 1 for singular values that are zero up to rounding, whose vectors contribute nothing. */
static double root_of_sigma(const struct decomposition *d, size_t i) {
    return d->values[i] > 1e-28 * d->values[0] ? sqrt(sqrt(d->values[i])) : 1;
}

/* out [rows][cols] = x with row i multiplied by the root of singular value i, or divided by it if inverse. */
static void scale_rows(const struct decomposition *d, const double *x, size_t cols, bool inverse, float *out) {
    for (size_t i = 0; i < d->rank; i++) {
        double root = root_of_sigma(d, i), by = inverse ? 1 / root : root;
        for (size_t k = 0; k < cols; k++) out[i * cols + k] = (float)(by * x[i * cols + k]);
    }
}

static void scale_cols(const struct decomposition *d, const double *x, size_t rows, bool inverse, float *out) {
    for (size_t i = 0; i < rows * d->rank; i++) {
        double root = root_of_sigma(d, i % d->rank);
        out[i] = (float)(inverse ? x[i] / root : root * x[i]);
    }
}

/* From a a^T = U sigma^2 U^T: w becomes U U^T w, first = sigma^(-1/2) U^T w, second = U sigma^(1/2). */
static int by_outputs(struct decomposition *d, const struct prune_factors *out, struct err *e) {
    size_t rows = d->w->rows, cols = d->w->cols, rank = d->rank;
    transpose(d->product, d->a, rows, cols);
    multiply(rows, (struct product){d->vectors, d->a, d->product, rows, cols, cols, 1});
    if (decompose(d, e)) return e->code;
    multiply(rank, (struct product){d->product, d->vectors, d->x, cols, rows, rows, 1});
    scale_rows(d, d->product, cols, true, out->first);
    transpose(d->product, d->vectors, rank, rows);
    scale_cols(d, d->product, rows, false, out->second);
    return 0;
}

/* x [rank][cols] times the upper triangle of u, in place, from the last column back. */
static void unwhiten_row(void *ctx, size_t row, int thread) {
    const struct decomposition *d = ctx;
    size_t n = d->w->cols;
    double *x = d->vectors + row * n;
    (void)thread;
    for (size_t i = n; i-- > 0;) {
        const float *u = d->f->u + i * n;
        double by = x[i];
        x[i] = by * u[i];
        for (size_t k = i + 1; k < n; k++) x[k] += by * u[k];
    }
}

/* From a^T a = V sigma^2 V^T: w becomes a V V^T S^-1, first = sigma^(1/2) V^T S^-1, second = a V sigma^(-1/2). */
static int by_inputs(struct decomposition *d, const struct prune_factors *out, struct err *e) {
    size_t rows = d->w->rows, cols = d->w->cols, rank = d->rank;
    multiply(cols, (struct product){d->vectors, d->a, d->a, cols, rows, 1, cols});
    if (decompose(d, e)) return e->code;
    transpose(d->x, d->vectors, rank, cols); /* [cols][rank]: reuses x, which is large enough and no longer needed */
    multiply(rows, (struct product){d->product, d->a, d->x, rank, cols, cols, 1});
    scale_cols(d, d->product, rows, true, out->second);
    if (d->f) parallel_for(rank, unwhiten_row, d);
    scale_rows(d, d->vectors, cols, false, out->first);
    return 0;
}

static int allocate(struct decomposition *d, struct err *e) {
    size_t rows = d->w->rows, cols = d->w->cols, n = d->n;
    d->x = mem_array(rows, cols * sizeof *d->x, e);
    d->a = d->x ? mem_array(rows, cols * sizeof *d->a, e) : NULL;
    d->product = d->a ? mem_array(rows, cols * sizeof *d->product, e) : NULL;
    d->vectors = d->product ? mem_array(n, n * sizeof *d->vectors, e) : NULL;
    d->values = d->vectors ? mem_array(n, sizeof *d->values, e) : NULL;
    d->scratch = d->values ? mem_array(KERNEL_EIGEN_SCRATCH(n), sizeof *d->scratch, e) : NULL;
    return d->scratch ? 0 : e->code;
}

int prune_low_rank(const struct prune_matrix *w, const struct obs_factor *f, uint32_t rank,
                   const struct prune_factors *out, struct err *e) {
    struct decomposition d = {.w = w, .f = f, .n = w->rows < w->cols ? w->rows : w->cols, .rank = rank};
    int rc = allocate(&d, e);
    if (!rc) {
        whiten(&d);
        rc = w->rows <= w->cols ? by_outputs(&d, out, e) : by_inputs(&d, out, e);
    }
    mem_free(d.x);
    mem_free(d.a);
    mem_free(d.product);
    mem_free(d.vectors);
    mem_free(d.values);
    mem_free(d.scratch);
    return rc;
}

/* ---- least squares for the second factor ------------------------------------------------------------------------- */

/* b A^T (A H A^T)^-1 */
int prune_fit_second(const struct prune_matrix *w, const struct prune_fit *fit, uint32_t rank,
                     const struct prune_factors *out, struct err *e) {
    size_t rows = w->rows, cols = w->cols, square = (size_t)rank * rank;
    struct obs_options how = {.damp = 1e-6, .tries = 4};
    struct obs_factor *f = NULL;
    float *product = mem_array(rank, cols * sizeof *product, e);
    float *inner = product ? mem_array(square, sizeof *inner, e) : NULL;
    float *wanted = inner ? mem_array(rows, rank * sizeof *wanted, e) : NULL;
    int rc = wanted ? 0 : e->code;
    if (!rc) {
        kernel_matmul_nn(rank, cols, cols, kernel_f32(out->first), kernel_f32(fit->gram), 0, kernel_f32(product));
        for (size_t i = 0; i < (size_t)rank * cols; i++) product[i] += (float)(fit->ridge * out->first[i]);
        kernel_matmul_nt(rank, rank, cols, kernel_f32(product), kernel_f32(out->first), 0, kernel_f32(inner));
        kernel_matmul_nt(rows, rank, cols, kernel_f32(fit->b), kernel_f32(out->first), 0, kernel_f32(wanted));
        rc = obs_factor_new(&f, inner, rank, &how, e);
    }
    if (!rc) rc = obs_solve(f, wanted, out->second, rows, e);
    obs_factor_free(f);
    mem_free(product);
    mem_free(inner);
    mem_free(wanted);
    return rc;
}
