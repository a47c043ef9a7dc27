/*
 * Tests of lib/tensor: the searches for scales. A vectorised twin must give the scalar one's bits, and no search may be
 * worse than the plain rounding from which it starts.
 */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "lib/tensor/quantize_internal.h"

enum { GROUPS = FIT_AT_ONCE, MAX = GROUPS * FIT_MAX_GROUP };

/* Groups of every kind side by side, so that lanes that search are next to lanes with constant or zero groups; or all
 * of one kind, because what no lane needs is left out. */
enum { KINDS = 15 };
static void fill(struct rng *r, int n, float *x, float *w) {
    int of_all = rng_below(r, 2) ? (int)rng_below(r, KINDS) : -1;
    for (int g = 0; g < GROUPS; g++) {
        int kind = of_all < 0 ? (int)rng_below(r, KINDS) : of_all;
        float scale = ldexpf(1, (int)rng_below(r, 80) - 50);
        for (int i = g * n; i < (g + 1) * n; i++) {
            float v = (float)rng_normal(r);
            switch (kind) {
            case 0: v = 0; break;
            case 1: v = -0.0f; break;
            case 2: v = -1; break;
            case 3: v = fabsf(v); break;
            case 4: v = -fabsf(v); break;
            case 5: v = v * v * v * v * v; break;
            case 6: v = rng_below(r, 4) ? 0 : v; break;
            case 7: v = rintf(2 * v) / 2; break;
            case 8: v = 1000 + v; break;
            case 9: v *= 1e-38f; break;
            case 12: v = -fabsf(v) - 0.1f; break;
            case 13: v = fabsf(v) + 0.1f; break;
            default: break;
            }
            x[i] = v * scale;
            w[i] = rng_below(r, 8) ? (float)rng_f64(r) : 0;
            if (kind == 10) w[i] = 0;
            if (kind == 11) w[i] *= 1e36f; /* sums overflow */
            /* Few columns were active: a determinant that is positive by rounding alone makes a grid that starts above
             * all elements, which then descends. */
            if (kind > 11 && rng_below(r, (uint64_t)n) >= 2) w[i] = 0;
        }
    }
}

/* All NaNs count as equal, whatever their bits. */
static void assert_same(float a, float b, const char *what) {
    if (!(isnan(a) && isnan(b)) && memcmp(&a, &b, sizeof a) != 0) fail_msg("%s: %a and %a", what, (double)a, (double)b);
}

/* Compares the first n_groups of them with those of a vectorised twin. */
static void compare(struct rng *r, int round, int n_groups, fit_affine_fn *affine, fit_symmetric_fn *symmetric) {
    static const struct fit_search searches[] = {
        {-1.0f, 0.1f, 20, .rms = true}, {-0.5f, 0.1f, 15, .absolute = true}, {-0.9f, 0.05f, 36, false}};
    const struct fit_search *search = &searches[round % 3];
    int n = round % 2 ? 32 : 16, bits = 3 + round % 4, top = (1 << bits) - 1;
    float x[MAX], w[MAX], scales[GROUPS], mins[GROUPS], sums[GROUPS];
    uint8_t codes[MAX], expected[FIT_MAX_GROUP];
    fill(r, n, x, w);
    for (int own = 0; own < 2; own++) { /* its own weights: NULL */
        affine(n, top, x, own ? NULL : w, search, &(struct fit_result){codes, scales, mins, sums});
        for (int g = 0; g < n_groups; g++) {
            float scale, min, sum;
            fit_affine_scalar(n, top, x + g * n, own ? NULL : w + g * n, search,
                              &(struct fit_result){expected, &scale, &min, &sum});
            assert_same(scale, scales[g], "affine scale");
            assert_same(min, mins[g], "affine min");
            assert_same(sum, sums[g], "sum of weights");
            assert_memory_equal(expected, codes + g * n, (size_t)n);
        }
    }
    symmetric(n, 1 << (bits - 1), x, w, codes, scales);
    for (int g = 0; g < n_groups; g++) {
        assert_same(fit_symmetric_scalar(n, 1 << (bits - 1), x + g * n, w + g * n, expected), scales[g],
                    "symmetric scale");
        assert_memory_equal(expected, codes + g * n, (size_t)n);
    }
}

static void test_lanes_equal_scalar(void **state) {
    (void)state;
    if (!fit_has_avx2()) skip();
#ifdef __x86_64__
    struct rng r = rng_init(1, 0);
    for (int round = 0; round < 6000; round++) {
        compare(&r, round, 8, fit_affine_avx2, fit_symmetric_avx2);
        if (fit_has_avx512()) compare(&r, round, 16, fit_affine_avx512, fit_symmetric_avx512);
    }
#endif
}

static void test_weights(void **state) {
    (void)state;
    enum { N = 40 };
    struct rng r = rng_init(5, 0);
    float x[N], importance[N], w[N + 1];
    for (size_t n = 0; n <= N; n++) {
        for (size_t i = 0; i < N; i++) x[i] = (float)rng_normal(&r), importance[i] = (float)rng_f64(&r);
        w[n] = 7;
        fit_weigh(n, x, importance, 0.5f, w);
        for (size_t i = 0; i < n; i++) assert_same(importance[i] * sqrtf(0.5f + x[i] * x[i]), w[i], "weight");
        assert_true(w[n] == 7);
    }
}

/* Any number of groups: batches of sixteen, batches of eight and the rest must join correctly. */
static void test_any_number_of_groups(void **state) {
    (void)state;
    enum { N = 32, MOST = 40 };
    static const struct fit_search search = {-0.9f, 0.05f, 36, false};
    static float x[MOST * N + MAX], w[MOST * N + MAX];
    struct rng r = rng_init(2, 0);
    for (int g = 0; g < MOST; g += GROUPS) fill(&r, N, x + g * N, w + g * N);
    for (size_t n_groups = 0; n_groups <= MOST; n_groups++) {
        uint8_t codes[MOST * N], one[N];
        float scales[MOST], mins[MOST], sums[MOST], scale, min, sum;
        fit_affine(n_groups, N, 15, x, w, &search, &(struct fit_result){codes, scales, mins, sums});
        for (size_t g = 0; g < n_groups; g++) {
            fit_affine_scalar(N, 15, x + g * N, w + g * N, &search, &(struct fit_result){one, &scale, &min, &sum});
            assert_same(scale, scales[g], "scale");
            assert_same(sum, sums[g], "sum of weights");
            assert_same(min, mins[g], "min");
            assert_memory_equal(one, codes + g * N, N);
        }
        fit_symmetric(n_groups, N, 8, x, w, codes, scales);
        for (size_t g = 0; g < n_groups; g++) {
            assert_same(fit_symmetric_scalar(N, 8, x + g * N, w + g * N, one), scales[g], "scale");
            assert_memory_equal(one, codes + g * N, N);
        }
    }
}

static double weighted_error(int n, const float *x, const float *w, const uint8_t *codes, double scale, double min) {
    double error = 0;
    for (int i = 0; i < n; i++) error += (double)w[i] * pow(scale * codes[i] + min - (double)x[i], 2);
    return error;
}

/* Compared with plain rounding over [min, max] with the same weights: never worse, and on average clearly better. */
static void test_searches_beat_rounding(void **state) {
    (void)state;
    enum { N = 32 };
    static const struct fit_search search = {-0.9f, 0.05f, 36, false};
    struct rng r = rng_init(3, 0);
    double searched[4] = {0}, rounded[4] = {0};
    for (int round = 0; round < 2000; round++) {
        float x[N], w[N], low = 0, high = 0, minus_min, scale, sum;
        uint8_t codes[N], plain[N];
        for (int i = 0; i < N; i++) {
            x[i] = (float)rng_normal(&r);
            w[i] = (float)exp(2 * rng_normal(&r));
            low = fminf(low, x[i]);
            high = fmaxf(high, x[i]);
        }
        float step = (high - low) / 15, largest = fmaxf(high, -low);
        for (int i = 0; i < N; i++) plain[i] = (uint8_t)nearest_code((x[i] - low) / step, 0, 15);
        double before = weighted_error(N, x, w, plain, (double)step, (double)low);
        fit_affine_scalar(N, 15, x, w, &search, &(struct fit_result){codes, &scale, &minus_min, &sum});
        double after = weighted_error(N, x, w, codes, (double)scale, -(double)minus_min);
        assert_true(after <= before * (1 + 1e-5));
        searched[0] += after, rounded[0] += before;

        step = largest / 8 * (high > -low ? -1 : 1); /* the extreme gets code -8 */
        for (int i = 0; i < N; i++) plain[i] = (uint8_t)(nearest_code(x[i] / step, -8, 7) + 8);
        before = weighted_error(N, x, w, plain, (double)step, -8 * (double)step);
        scale = fit_symmetric_scalar(N, 8, x, w, codes);
        after = weighted_error(N, x, w, codes, (double)scale, -8 * (double)scale);
        assert_true(after <= before * (1 + 1e-5));
        searched[1] += after, rounded[1] += before;

        scale = fit_descent(N, 8, x, w, codes);
        after = weighted_error(N, x, w, codes, (double)scale, -8 * (double)scale);
        assert_true(after <= before * (1 + 1e-5));
        searched[3] += after, rounded[3] += before;

        for (int i = 0; i < N; i++) x[i] = fabsf(x[i]);
        for (int i = 0; i < N; i++) plain[i] = (uint8_t)nearest_code(x[i] / largest * 15, 0, 15);
        before = weighted_error(N, x, w, plain, (double)largest / 15, 0);
        scale = fit_positive(N, 15, x, w, codes);
        after = weighted_error(N, x, w, codes, (double)scale, 0);
        assert_true(after <= before * (1 + 1e-5));
        searched[2] += after, rounded[2] += before;
    }
    for (int k = 0; k < 4; k++) assert_true(searched[k] < 0.8 * rounded[k]);
}

/* Values on a grid must be found on it, with no error but the rounding of f32. */
static void test_grids_are_recovered(void **state) {
    (void)state;
    enum { N = 32 };
    static const struct fit_search search = {-1.0f, 0.1f, 20, false};
    struct rng r = rng_init(4, 0);
    for (int round = 0; round < 500; round++) {
        float x[N], w[N], minus_min, scale, sum, step = (float)(0.01 + rng_f64(&r));
        uint8_t codes[N], got[N];
        int offset = (int)rng_below(&r, 16);
        for (int i = 0; i < N; i++) {
            codes[i] = i < 2 ? (uint8_t)(15 * i) : (uint8_t)rng_below(&r, 16); /* both ends occur */
            x[i] = step * (float)(codes[i] - offset);
            w[i] = 1;
        }
        fit_affine_scalar(N, 15, x, w, &search, &(struct fit_result){got, &scale, &minus_min, &sum});
        assert_memory_equal(got, codes, N);
        assert_true(fabsf(scale - step) < 1e-5f * step);
        assert_true(fabsf(minus_min - step * (float)offset) < 1e-4f * step);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lanes_equal_scalar),   cmocka_unit_test(test_weights),
        cmocka_unit_test(test_any_number_of_groups), cmocka_unit_test(test_searches_beat_rounding),
        cmocka_unit_test(test_grids_are_recovered),
    };
    return cmocka_run_group_tests_name("tensor_fit", tests, NULL, NULL);
}
