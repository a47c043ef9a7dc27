/* Tests of lib/kernel: exp, softmax, top-k, sampling, storing logits. */
#include "tests/unit/kernel_test.h"

/* Rows of logits of several kinds, some of them extreme. */
static struct pair logits(struct rng *r, size_t rows, size_t d) {
    struct pair x = normals(r, rows * d, 3);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < d; j++) {
            size_t at = i * d + j;
            if (i % 6 == 1) set(x, at, 2.5);                              /* all equal */
            if (i % 6 == 2) set(x, at, x.d[at] * 3000);                   /* up to +-1e4 */
            if (i % 6 == 3) set(x, at, j == d / 2 ? 1e4 : -1e4);          /* one token has all the mass */
            if (i % 6 == 4) set(x, at, x.d[at] + 9000);                   /* far from 0 */
            if (i % 6 == 5) set(x, at, (double)j * 0.01);                 /* ascending: the maximum changes each time */
            if (i % 6 == 0 && d > 3 && j % 3 == 1) set(x, at, -INFINITY); /* masked */
        }
    return x;
}

/* ---- exp ---- */

/* Every 1009th float, the edges of the range, and values beyond. */
static void test_exp(void **state) {
    (void)state;
    EACH_PATH(path) {
        double worst = 0;
        float x[1000], y[1000];
        for (uint32_t bits = 0; bits < 0x42d20000; bits += 1009 * 1000) /* up to 105 */
            for (int sign = 0; sign < 2; sign++) {
                for (uint32_t i = 0; i < 1000; i++) {
                    uint32_t u = (bits + i * 1009) | (uint32_t)sign << 31;
                    memcpy(&x[i], &u, sizeof u);
                }
                simd()->exp_store(y, x, 1000, 0, 1);
                for (size_t i = 0; i < 1000; i++) {
                    double want = exp(x[i]);
                    if (want > 3.4028234e38) {
                        if (x[i] > 88.73f) assert_true(isinf(y[i]));
                        continue;
                    }
                    double ulp = ldexp(1, (want < 0x1p-126 ? -126 : ilogb(want)) - 23);
                    worst = fmax(worst, fabs(y[i] - want) / ulp);
                }
            }
        if (worst > 1.1) fail_msg("%s: exp is wrong by %.3f ulp", path, worst);
        static const float special[] = {0, -0.0f, INFINITY, -INFINITY, 1e30f, -1e30f, -104.5f};
        static const float want[] = {1, 1, INFINITY, 0, INFINITY, 0, 0};
        simd()->exp_store(y, special, COUNT_OF(special), 0, 1);
        for (size_t i = 0; i < COUNT_OF(special); i++) assert_true(y[i] == want[i]);
        x[0] = NAN;
        simd()->exp_store(y, x, 1, 0, 1);
        assert_true(isnan(y[0]));
    }
}

/* ---- softmax ---- */

struct rows {
    size_t rows, d, k;
    const float *x;
    float inv_temperature;
    bool in_place;
};

static void run_logsumexp(void *ctx, float *out) {
    const struct rows *c = ctx;
    kernel_logsumexp(out, kernel_f32(c->x), c->rows, c->d, c->inv_temperature);
}

static void run_log_softmax(void *ctx, float *out) {
    const struct rows *c = ctx;
    if (c->in_place) memcpy(out, c->x, c->rows * c->d * sizeof *out);
    kernel_log_softmax(kernel_f32(out), kernel_f32(c->in_place ? out : c->x), c->rows, c->d, c->inv_temperature);
}

/*
 * With z = (x - max) s: rounding z changes the sum by 2 U sum p |z| <= 2 U log d (bounded by the entropy), exp by 3 U;
 * sums are f64. The result is rounded once; a log-softmax in two steps of sizes |z| and log sum.
 */
static void test_softmax(void **state) {
    static const size_t sizes[] = {1, 2, 3, 15, 16, 17, 100, 2048, 2049, 5000};
    static const float temperatures[] = {1, 0.5f, 4, 0.9f};
    (void)state;
    struct rng r = rng_init(30, 1);
    for (size_t i = 0; i < COUNT_OF(sizes) * COUNT_OF(temperatures); i++) {
        enum { ROWS = 7 };
        size_t d = sizes[i / COUNT_OF(temperatures)];
        struct pair x = logits(&r, ROWS, d);
        struct rows c = {ROWS, d, 0, x.f, 1 / temperatures[i % COUNT_OF(temperatures)], false};
        double lse[ROWS], sum_error = (2 * log((double)d) + 4) * U;
        double tolerance[ROWS], *y = take(ROWS * d, sizeof *y), *y_tolerance = take(ROWS * d, sizeof *y);
        for (size_t k = 0; k < ROWS; k++) {
            double max = -INFINITY;
            for (size_t j = 0; j < d; j++) max = fmax(max, x.d[k * d + j]);
            lse[k] = plain64_logsumexp(x.d + k * d, d, c.inv_temperature);
            tolerance[k] = U * fabs(lse[k]) + sum_error;
            plain64_log_softmax(y + k * d, x.d + k * d, d, c.inv_temperature);
            for (size_t j = 0; j < d; j++) {
                double z = fabs(x.d[k * d + j] - max) * c.inv_temperature;
                y_tolerance[k * d + j] = U * (2 * z + 2 * log((double)d) + fabs(y[k * d + j])) + sum_error;
            }
        }
        check_kernel("logsumexp", run_logsumexp, &c, ROWS, NULL, lse, tolerance);
        check_kernel("log_softmax", run_log_softmax, &c, ROWS * d, NULL, y, y_tolerance);
        c.in_place = true;
        check_kernel("log_softmax in place", run_log_softmax, &c, ROWS * d, NULL, y, y_tolerance);
        arena_reset(&memory);
    }
}

/* ---- top-k ---- */

static const float *sort_values; /* qsort has no context */

static int compare_entries(const void *a, const void *b) {
    uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    float x = sort_values[i], y = sort_values[j];
    if (isnan(x)) x = -INFINITY;
    if (isnan(y)) y = -INFINITY;
    return x != y ? (x < y) - (x > y) : (i > j) - (i < j);
}

static void check_topk(const float *x, size_t rows, size_t d, size_t k) {
    uint32_t *order = take(d, sizeof *order), *ids = take(rows * k, sizeof *ids), *best = take(rows, sizeof *best);
    float *values = take(rows * k, sizeof *values);
    EACH_PATH(path) {
        kernel_topk(ids, values, kernel_f32(x), rows, d, k);
        kernel_argmax(best, kernel_f32(x), rows, d);
        for (size_t row = 0; row < rows; row++) {
            sort_values = x + row * d;
            for (uint32_t i = 0; i < d; i++) order[i] = i;
            qsort(order, d, sizeof *order, compare_entries);
            assert_int_equal(best[row], order[0]);
            assert_memory_equal(ids + row * k, order, k * sizeof *order);
            for (size_t i = 0; i < k; i++)
                assert_true(values[row * k + i] == (isnan(sort_values[order[i]]) ? -INFINITY : sort_values[order[i]]));
        }
    }
}

static void test_topk(void **state) {
    static const size_t shapes[][2] = {{1, 1}, {2, 2}, {17, 5}, {33, 33}, {1000, 1}, {1000, 50}, {5000, 300}};
    (void)state;
    struct rng r = rng_init(31, 1);
    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        size_t d = shapes[i][0], k = shapes[i][1];
        struct pair x = logits(&r, 12, d);
        for (size_t j = 0; j < 2 * d; j++) x.f[j] = (float)rng_below(&r, 7); /* many ties */
        for (size_t j = 9 * d; j < 10 * d; j += 3) x.f[j] = NAN;
        check_topk(x.f, 12, d, k);
        arena_reset(&memory);
    }
}

/* ---- sampling ---- */

static int compare_f64(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/*
 * The draw for u is the twin's, unless u is so near a boundary of the cumulative distribution that errors may put it on
 * the other side. f32 powers of two are wrong by 3 U + 3 U |z|, on average over the row (3 log d + 3) U; 128 of them
 * are added in f32 (in the narrowest path's lanes 16 at a time, then 3 sums: 19 U).
 */
static void check_draws(const struct pair *x, size_t d, size_t n, double *u, float inv_temperature) {
    uint32_t *ids = take(n, sizeof *ids);
    EACH_PATH(path) {
        kernel_sample(ids, u, kernel_f32(x->f), 1, d, n, inv_temperature);
        double *sorted = take(n, sizeof *sorted), slack = (3 * log((double)d) + 22) * U;
        memcpy(sorted, u, n * sizeof *sorted);
        qsort(sorted, n, sizeof *sorted, compare_f64);
        for (size_t i = 0; i < n; i++) {
            uint32_t low = plain64_sample(fmax(0, sorted[i] - slack), x->d, d, inv_temperature);
            uint32_t high = plain64_sample(fmin(1, sorted[i] + slack), x->d, d, inv_temperature);
            assert_in_range(ids[i], low, high);
            if (i > 0) assert_true(ids[i] >= ids[i - 1]);
        }
    }
}

static void test_sample(void **state) {
    static const size_t shapes[][2] = {{1, 3}, {2, 50}, {17, 50}, {5000, 12}, {3000, 600}, {600000, 2}};
    (void)state;
    struct rng r = rng_init(32, 1);
    for (size_t i = 0; i < COUNT_OF(shapes); i++)
        for (size_t row = 0; row < (shapes[i][0] > 100000 ? 1 : 6); row++) {
            size_t d = shapes[i][0], n = shapes[i][1];
            struct pair all = logits(&r, row + 1, d), x = {all.f + row * d, all.d + row * d, d};
            double *u = take(n, sizeof *u);
            for (size_t j = 0; j < n; j++) u[j] = rng_f64(&r);
            u[0] = 0;
            if (n > 1) u[1] = 1 - 0x1p-53;
            check_draws(&x, d, n, u, row % 2 ? 1 : 0.7f);
            arena_reset(&memory);
        }
}

/* A masked token is never drawn, not even for u = 0 or the largest u below 1. */
static void test_sample_skips_impossible_tokens(void **state) {
    (void)state;
    float x[5] = {-INFINITY, 1, -INFINITY, 2, -1e4f};
    double u[4] = {0, 1 - 0x1p-53, 0.2, 0.9};
    uint32_t ids[4];
    EACH_PATH(path) {
        kernel_sample(ids, u, kernel_f32(x), 1, 5, 4, 1);
        assert_int_equal(ids[0], 1);
        assert_int_equal(ids[1], 1);
        assert_int_equal(ids[2], 3);
        assert_int_equal(ids[3], 3);
    }
    /* So it is in a row of many thousands where only tokens in the middle are possible. The first part has the
     * largest weights until the middle comes, which leaves them no mass. */
    enum { D = 9000 };
    float *row = take(D, sizeof *row);
    for (size_t i = 0; i < D; i++) row[i] = i < 3000 ? -300 : i < 5000 || i > 5009 ? -INFINITY : 3;
    double v[3] = {0, 0.55, 1 - 0x1p-53};
    EACH_PATH(path) {
        kernel_sample(ids, v, kernel_f32(row), 1, D, 3, 1);
        assert_int_equal(ids[0], 5000);
        assert_int_equal(ids[1], 5005);
        assert_int_equal(ids[2], 5009);
    }
    /* Weights just below the smallest normal number add up to more than it, but each counts as 0. */
    for (size_t i = 0; i < D; i++) row[i] = i == 0 ? -INFINITY : i < 3000 ? -85 : i < 5000 || i > 5009 ? -INFINITY : 3;
    EACH_PATH(path) {
        kernel_sample(ids, v, kernel_f32(row), 1, D, 3, 1);
        assert_int_equal(ids[0], 5000);
    }
    for (size_t i = 0; i < D; i++) row[i] = NAN; /* NaN must not lead out of bounds */
    kernel_sample(ids, v, kernel_f32(row), 1, D, 3, 1);
    assert_true(ids[0] < D && ids[1] < D && ids[2] < D);
}

/* Frequencies of draws approximate the distribution: chi-squared over 20 cells, whose 99.99% quantile for 19 degrees
 * of freedom is 50.8 (fixed seed, so this passes always or never). */
static void test_sample_is_unbiased(void **state) {
    enum { D = 20, N = 200, ROWS = 500 };
    (void)state;
    struct rng r = rng_init(33, 1);
    struct pair one = normals(&r, D, 1);
    float *x = take(ROWS * D, sizeof *x);
    double *u = take(ROWS * N, sizeof *u), p[D], chi = 0;
    uint32_t *ids = take(ROWS * N, sizeof *ids);
    for (size_t i = 0; i < ROWS; i++) memcpy(x + i * D, one.f, D * sizeof *x);
    for (size_t i = 0; i < ROWS * N; i++) u[i] = rng_f64(&r);
    kernel_sample(ids, u, kernel_f32(x), ROWS, D, N, 1);
    plain64_log_softmax(p, one.d, D, 1);
    size_t count[D] = {0};
    for (size_t i = 0; i < ROWS * N; i++) count[ids[i]]++;
    for (size_t i = 0; i < D; i++) {
        double want = exp(p[i]) * ROWS * N, off = (double)count[i] - want;
        chi += off * off / want;
    }
    assert_true(chi < 50.8);
}

/* f16 and bf16 rows are sampled as their f32 values are; the first row with a value that is not finite is reported. */
static void test_sample_of_halves(void **state) {
    enum { ROWS = 5, D = 4500, N = 40 };
    static const enum dtype types[] = {DT_F16, DT_BF16};
    (void)state;
    struct rng r = rng_init(35, 1);
    struct pair x = normals(&r, ROWS * D, 3);
    struct err e;
    double *u = take(ROWS * N, sizeof *u);
    uint32_t *want = take(ROWS * N, sizeof *want), *got = take(ROWS * N, sizeof *got);
    uint16_t *h = take(ROWS * D, sizeof *h);
    for (size_t i = 0; i < ROWS * N; i++) u[i] = rng_f64(&r);
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        assert_int_equal(tensor_from_f32(types[i], x.f, h, ROWS * D, NULL, &e), 0);
        tensor_to_f32(types[i], h, x.f, ROWS * D);
        EACH_PATH(path) {
            assert_int_equal(kernel_sample(want, u, kernel_f32(x.f), ROWS, D, N, 0.9f), ROWS);
            assert_int_equal(kernel_sample(got, u, kernel_host_array(types[i], h), ROWS, D, N, 0.9f), ROWS);
            assert_memory_equal(got, want, ROWS * N * sizeof *got);
        }
    }
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < 3 * COUNT_OF(bad); i++) EACH_PATH(path) {
            size_t first = 2 * D + (i / 3 == 0 ? 0 : i / 3 == 1 ? 2049 : D - 1), second = 4 * D + 17;
            float kept[2] = {x.f[first], x.f[second]};
            x.f[first] = x.f[second] = bad[i % 3];
            assert_int_equal(kernel_sample(got, u, kernel_f32(x.f), ROWS, D, N, 1), 2);
            x.f[first] = kept[0];
            assert_int_equal(kernel_sample(got, u, kernel_f32(x.f), ROWS, D, N, 1), 4);
            x.f[second] = kept[1];
        }
}

/* A row so long that its pieces must be larger. */
static void test_sample_of_long_rows(void **state) {
    enum { D = 1100003, N = 9 };
    (void)state;
    struct rng r = rng_init(36, 1);
    struct pair x = logits(&r, 1, D);
    double u[N] = {0, 1 - 0x1p-53, 1e-9};
    for (size_t i = 3; i < N; i++) u[i] = rng_f64(&r);
    check_draws(&x, D, N, u, 1);
}

/*
 * Stored are the logits, converted by lib/tensor, or the log-softmax: in f32 and bf16 the bits of kernel_log_softmax,
 * in f16 within its rounding (2^-11, at least 2^-25) and errors of f32: 2 U |z| + U |y|, U (|y| + |z|) of the sum, (3
 * log d + 22) U of its logarithm.
 */
static void check_stored_f16(const uint16_t *got, const struct pair *x, size_t rows, size_t d, double s) {
    double *want = take(rows * d, sizeof *want), top;
    for (size_t r = 0; r < rows; r++) {
        plain64_log_softmax(want + r * d, x->d + r * d, d, s);
        top = x->d[r * d];
        for (size_t i = 0; i < d; i++) top = fmax(top, x->d[r * d + i]);
        for (size_t i = 0; i < d; i++) {
            double y = want[r * d + i], z = (top - x->d[r * d + i]) * s;
            double tolerance = 0x1p-11 * fabs(y) + 0x1p-25 + (3 * z + 2 * fabs(y) + 3 * log((double)d) + 22) * U;
            if (fabs(f16_to_f32(got[r * d + i]) - y) > tolerance)
                fail_msg("row %zu, token %zu is %g, should be %g", r, i, (double)f16_to_f32(got[r * d + i]), y);
        }
    }
}

static void test_store(void **state) {
    enum { ROWS = 3, D = 4503 };
    static const enum dtype types[] = {DT_F32, DT_F16, DT_BF16};
    (void)state;
    struct rng r = rng_init(37, 1);
    struct pair x = normals(&r, ROWS * D, 3);
    struct err e;
    float *y = take(ROWS * D, sizeof *y);
    unsigned char *want = take(ROWS * D, sizeof *y), *got = take(ROWS * D + 1, sizeof *y);
    for (size_t i = 0; i < 2 * COUNT_OF(types); i++) EACH_PATH(path) {
            enum dtype type = types[i / 2];
            bool log_probs = i % 2;
            size_t bytes = dtype_row_bytes(type, ROWS * D);
            if (log_probs) kernel_log_softmax(kernel_f32(y), kernel_f32(x.f), ROWS, D, 0.8f);
            assert_int_equal(tensor_from_f32(type, log_probs ? y : x.f, want, ROWS * D, NULL, &e), 0);
            got[bytes] = 0x5a;
            assert_int_equal(kernel_store_logits(type, got, kernel_f32(x.f), ROWS, D, 0.8f, log_probs), ROWS);
            if (type == DT_F16 && log_probs)
                check_stored_f16((const uint16_t *)(void *)got, &x, ROWS, D, 0.8f);
            else
                assert_memory_equal(got, want, bytes);
            assert_int_equal(got[bytes], 0x5a);
            static const float bad[] = {NAN, INFINITY, -INFINITY, 65520};
            for (size_t j = 0; j < COUNT_OF(bad); j++) {
                float kept = x.f[2 * D - 1];
                x.f[2 * D - 1] = bad[j];
                /* as a log-probability the largest logit is 0; bf16 and f32 hold it as a logit */
                size_t first = bad[j] == 65520 && (log_probs || type != DT_F16) ? ROWS : 1;
                assert_int_equal(kernel_store_logits(type, got, kernel_f32(x.f), ROWS, D, 0.8f, log_probs), first);
                x.f[2 * D - 1] = kept;
            }
        }
    x.f[0] = 65519; /* rounds to the largest f16 */
    assert_int_equal(kernel_store_logits(DT_F16, got, kernel_f32(x.f), ROWS, D, 1, false), ROWS);
}

/* The bits must not depend on the number of threads. */
static void test_rows_are_thread_independent(void **state) {
    enum { ROWS = 40, D = 3001, N = 30, K = 20 };
    (void)state;
    struct rng r = rng_init(34, 1);
    struct pair x = logits(&r, ROWS, D);
    double *u = take(ROWS * N, sizeof *u);
    for (size_t i = 0; i < ROWS * N; i++) u[i] = rng_f64(&r);
    uint32_t *ids = take(2 * ROWS * N, sizeof *ids), *top = take(2 * ROWS * K, sizeof *top);
    float *values = take(2 * ROWS * K, sizeof *values);
    for (size_t i = 0; i < 2; i++) {
        parallel_set_threads(i ? 4 : 1);
        kernel_sample(ids + i * ROWS * N, u, kernel_f32(x.f), ROWS, D, N, 0.8f);
        kernel_topk(top + i * ROWS * K, values + i * ROWS * K, kernel_f32(x.f), ROWS, D, K);
    }
    parallel_set_threads(parallel_default_threads());
    assert_memory_equal(ids, ids + ROWS * N, ROWS * N * sizeof *ids);
    assert_memory_equal(top, top + ROWS * K, ROWS * K * sizeof *top);
    assert_memory_equal(values, values + ROWS * K, ROWS * K * sizeof *values);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_exp, release_memory),
        cmocka_unit_test_teardown(test_softmax, release_memory),
        cmocka_unit_test_teardown(test_topk, release_memory),
        cmocka_unit_test_teardown(test_sample, release_memory),
        cmocka_unit_test_teardown(test_sample_skips_impossible_tokens, release_memory),
        cmocka_unit_test_teardown(test_sample_is_unbiased, release_memory),
        cmocka_unit_test_teardown(test_sample_of_halves, release_memory),
        cmocka_unit_test_teardown(test_sample_of_long_rows, release_memory),
        cmocka_unit_test_teardown(test_store, release_memory),
        cmocka_unit_test_teardown(test_rows_are_thread_independent, release_memory),
    };
    return cmocka_run_group_tests_name("kernel logits", tests, NULL, NULL);
}
