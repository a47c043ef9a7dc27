/*
 * The triangular factor of an inverse. Blocks of columns are updated by matrix products; within a block the computation
 * is in f64, so the error is that of the products.
 */
#include <math.h>

#include "lib/kernel/kernel_internal.h"

#define BLOCK FACTOR_BLOCK
#define STRIP FACTOR_BLOCK /* columns of the inverse per task */
#define SIDE  FACTOR_SIDE

struct factor {
    size_t n;
    float *h; /* [n][n]: its upper triangle becomes R, h = R R^T */
    float *u; /* [n][n]: R^-1 */
    size_t first, last;
    double sign; /* -1 if a product has left the negated h in place */
    double diagonal[BLOCK][BLOCK];
};

/* ---- h = R R^T, from the last block of columns to the first ------------------------------------------------------ */

/* Factors the block's own rows. False if h is not positive definite. */
static bool factor_diagonal(struct factor *f, size_t *at) {
    size_t b = f->last - f->first;
    for (size_t c = b; c-- > 0;) {
        for (size_t i = 0; i <= c; i++) {
            double x = f->sign * f->h[(f->first + i) * f->n + f->first + c];
            for (size_t k = c + 1; k < b; k++) x -= f->diagonal[i][k] * f->diagonal[c][k];
            f->diagonal[i][c] = x;
        }
        *at = f->first + c;
        if (!(f->diagonal[c][c] > 0) || isinf(f->diagonal[c][c])) return false;
        f->diagonal[c][c] = sqrt(f->diagonal[c][c]);
        for (size_t i = 0; i < c; i++) f->diagonal[i][c] /= f->diagonal[c][c];
    }
    return true;
}

/*
 * The same recurrence for up to SIDE rows above the block. Each element is summed in the same order as for a single
 * row; processing rows together hides the latency of the additions.
 */
static void factor_side(const struct factor *f, size_t first, size_t n) {
    size_t b = f->last - f->first;
    double x[BLOCK][SIDE] = {0};
    for (size_t r = 0; r < n; r++)
        for (size_t c = 0; c < b; c++) x[c][r] = f->sign * f->h[(first + r) * f->n + f->first + c];
    simd()->solve_side(x, f->diagonal, b);
    for (size_t r = 0; r < n; r++)
        for (size_t c = 0; c < b; c++) f->h[(first + r) * f->n + f->first + c] = (float)x[c][r];
}

static void factor_rows(void *ctx, size_t begin, size_t end) {
    for (size_t i = begin; i < end; i += SIDE) factor_side(ctx, i, smaller(SIDE, end - i));
}

static bool factor_block(struct factor *f, size_t *at) {
    size_t n = f->n, b = f->last - f->first, done = n - f->last;
    const float *right = f->h + f->last;
    f->sign = done ? -1 : 1;
    if (done) /* leaves the negative: R R^T of the finished columns, minus h */
        gemm_part(GEMM_NT, f->last, b, done, right, n, right + f->first * n, n, -1, f->h + f->first, n);
    if (!factor_diagonal(f, at)) return false;
    kernel_split(f->first, BLOCK, factor_rows, f);
    for (size_t i = 0; i < b; i++)
        for (size_t c = i; c < b; c++) f->h[(f->first + i) * n + f->first + c] = (float)f->diagonal[i][c];
    return true;
}

/* ---- u = R^-1, from the last block of rows to the first ---------------------------------------------------------- */

/* Inverts the block on the diagonal. */
static void invert_diagonal(struct factor *f) {
    size_t b = f->last - f->first;
    for (size_t i = 0; i < b; i++)
        for (size_t c = i; c < b; c++) f->diagonal[i][c] = f->h[(f->first + i) * f->n + f->first + c];
    for (size_t c = 0; c < b; c++) {
        double inverse = 1 / f->diagonal[c][c];
        for (size_t i = 0; i < c; i++) {
            double x = 0; /* columns before c are inverted already */
            for (size_t k = i; k < c; k++) x += f->diagonal[i][k] * f->diagonal[k][c];
            f->diagonal[i][c] = -x * inverse;
        }
        f->diagonal[c][c] = inverse;
    }
}

/* Multiplies columns of the block's rows, which hold R times the rows below, by the negated inverse of the diagonal
 * block. */
static void finish_columns(void *ctx, size_t begin, size_t end) {
    const struct factor *f = ctx;
    size_t b = f->last - f->first, width = end - begin;
    for (size_t i = 0; i < b; i++) { /* row i needs rows from i on, which are still unchanged */
        double x[STRIP] = {0};
        for (size_t k = i; k < b; k++)
            simd()->subtract_wide(x, f->diagonal[i][k], f->u + (f->first + k) * f->n + f->last + begin, width);
        float *out = f->u + (f->first + i) * f->n + f->last + begin;
        for (size_t c = 0; c < width; c++) out[c] = (float)x[c];
    }
}

static void invert_block(struct factor *f) {
    size_t n = f->n, b = f->last - f->first, below = n - f->last;
    invert_diagonal(f);
    for (size_t i = 0; i < b; i++)
        for (size_t c = i; c < b; c++) f->u[(f->first + i) * n + f->first + c] = (float)f->diagonal[i][c];
    if (!below) return;
    gemm_part(GEMM_NN, b, below, below, f->h + f->first * n + f->last, n, f->u + f->last * n + f->last, n, 0,
              f->u + f->first * n + f->last, n);
    kernel_split(below, STRIP, finish_columns, f);
}

bool kernel_inverse_factor(float *u, float *h, size_t n, size_t *at) {
    PROFILE(SOLVING);
    struct factor f = {.n = n, .h = h, .u = u};
    for (f.last = n; f.last > 0; f.last = f.first) {
        f.first = (f.last - 1) / BLOCK * BLOCK;
        if (!factor_block(&f, at)) return false;
    }
    kernel_fill(kernel_f32(u), n * n, 0);
    for (f.last = n; f.last > 0; f.last = f.first) {
        f.first = (f.last - 1) / BLOCK * BLOCK;
        invert_block(&f);
    }
    return true;
}
