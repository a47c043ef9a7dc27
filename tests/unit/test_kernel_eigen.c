/*
 * Tests of lib/kernel's eigenvectors of symmetric matrices: their defining properties, and matrices with known
 * eigenvalues.
 */
#include "tests/unit/kernel_test.h"

#include <float.h>

static double *copy(const double *x, size_t n) {
    double *y = take(n, sizeof *y);
    memcpy(y, x, n * sizeof *y);
    return y;
}

/* a v = value v; rows are orthonormal; values descend; one and four threads give the same bits. */
static void check(const double *a, size_t n, double *values) {
    double *z = copy(a, n * n), *again = copy(a, n * n), *scratch = take(KERNEL_EIGEN_SCRATCH(n), sizeof *scratch),
           norm = 0;
    double *other = take(n, sizeof *other);
    parallel_set_threads(4);
    assert_true(kernel_eigen(z, values, n, scratch));
    parallel_set_threads(1);
    assert_true(kernel_eigen(again, other, n, scratch));
    assert_memory_equal(z, again, n * n * sizeof *z);
    assert_memory_equal(values, other, n * sizeof *values);
    for (size_t i = 0; i < n * n; i++) norm += a[i] * a[i];
    double tolerance = 1e-13 * (double)n;
    for (size_t i = 0; i < n; i++) {
        assert_true(i == 0 || values[i] <= values[i - 1]);
        for (size_t k = 0; k < n; k++) {
            double av = 0, dot = 0;
            for (size_t j = 0; j < n; j++) av += a[k * n + j] * z[i * n + j], dot += z[k * n + j] * z[i * n + j];
            assert_true(fabs(av - values[i] * z[i * n + k]) <= tolerance * (sqrt(norm) + DBL_MIN));
            assert_true(fabs(dot - (i == k)) <= tolerance);
        }
    }
}

static void test_random(void **state) {
    (void)state;
    static const size_t sizes[] = {1, 2, 3, 5, 16, 17, 64, 65, 150};
    for (size_t s = 0; s < COUNT_OF(sizes); s++) {
        size_t n = sizes[s];
        struct rng r = rng_init(7, n);
        double *a = take(n * n, sizeof *a), *values = take(n, sizeof *values);
        for (size_t i = 0; i < n; i++)
            for (size_t k = 0; k <= i; k++) a[i * n + k] = a[k * n + i] = rng_normal(&r);
        check(a, n, values);
    }
}

/* Low rank as in matrix products: most of the eigenvalues are rounding errors. */
static void test_low_rank(void **state) {
    (void)state;
    enum { N = 136, RANK = 16 };
    struct rng r = rng_init(9, 1);
    double *a = take(N * N, sizeof *a), *x = take(N * RANK, sizeof *x), values[N];
    for (size_t i = 0; i < N * RANK; i++) x[i] = exp(rng_normal(&r)) * rng_normal(&r);
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j < N; j++)
            for (size_t k = 0; k < RANK; k++) a[i * N + j] += x[i * RANK + k] * x[j * RANK + k];
    check(a, N, values);
    assert_true(values[RANK - 1] > 0 && fabs(values[RANK]) < 1e-12 * values[0]);
}

/* Zeros, multiples of the identity, low rank, graded over many powers of ten, and the second difference, whose
 * eigenvalues are known. */
static void test_special(void **state) {
    (void)state;
    enum { N = 40 };
    struct rng r = rng_init(8, 1);
    double *a = take(N * N, sizeof *a), values[N], x[3][N];
    check(a, N, values);
    assert_true(values[0] == 0 && values[N - 1] == 0);
    for (size_t i = 0; i < N; i++) a[i * (N + 1)] = 2.5;
    check(a, N, values);
    assert_true(values[0] == 2.5 && values[N - 1] == 2.5);
    memset(a, 0, N * N * sizeof *a);
    for (size_t k = 0; k < 3; k++)
        for (size_t i = 0; i < N; i++) x[k][i] = rng_normal(&r);
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j < N; j++)
            for (size_t k = 0; k < 3; k++) a[i * N + j] += x[k][i] * x[k][j];
    check(a, N, values);
    assert_true(values[2] > 1 && fabs(values[3]) < 1e-10 && fabs(values[N - 1]) < 1e-10);
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j < N; j++) a[i * N + j] = pow(10, -0.2 * (double)(i + j)) * (i == j ? 2 : 1);
    check(a, N, values);
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j < N; j++) a[i * N + j] = i == j ? 2 : i == j + 1 || j == i + 1 ? -1 : 0;
    check(a, N, values);
    for (size_t i = 0; i < N; i++) {
        double s = sin((double)(N - i) * acos(-1) / (2 * (N + 1)));
        assert_true(fabs(values[i] - 4 * s * s) < 1e-13);
    }
}

static void test_not_finite(void **state) {
    (void)state;
    enum { N = 8 };
    double *a = take(N * N, sizeof *a), values[N], *scratch = take(KERNEL_EIGEN_SCRATCH(N), sizeof *scratch);
    for (size_t i = 0; i < N * N; i++) a[i] = 1.0 / (double)(1 + i / N + i % N);
    a[3 * N + 5] = a[5 * N + 3] = NAN;
    assert_false(kernel_eigen(a, values, N, scratch));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_random, release_memory),
        cmocka_unit_test_teardown(test_low_rank, release_memory),
        cmocka_unit_test_teardown(test_special, release_memory),
        cmocka_unit_test_teardown(test_not_finite, release_memory),
    };
    return cmocka_run_group_tests_name("eigenvectors", tests, NULL, NULL);
}
