/* Tests of summaries and differences of values against sums done by hand. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "lib/tensor/tensor.h"

static void assert_near(double a, double b) {
    if (!(fabs(a - b) <= 1e-12 * fmax(1, fabs(b)))) fail_msg("%.17g is not %.17g", a, b);
}

static void summarizes(void **state) {
    (void)state;
    const float x[] = {0, -0.0f, 1, NAN, 3, -2, INFINITY, 0.5f, -INFINITY};
    struct tensor_summary s = {0};
    tensor_summarize(&s, x, COUNT_OF(x));
    assert_int_equal(s.n, 9);
    assert_int_equal(s.n_zero, 2);
    assert_int_equal(s.n_nan, 1);
    assert_int_equal(s.n_inf, 2);
    assert_true(s.min == -2 && s.max == 3);
    assert_near(s.mean, 2.5 / 6);
    assert_near(tensor_summary_std(&s), sqrt((0 + 0 + 1 + 9 + 4 + 0.25) / 6 - 2.5 / 6 * 2.5 / 6));
}

/* A mean far from zero, in pieces of every size: the textbook formula would lose all digits. */
static void pieces_make_no_difference(void **state) {
    (void)state;
    float x[1000];
    for (size_t i = 0; i < COUNT_OF(x); i++) x[i] = 10000 + (float)(i % 5);
    for (size_t piece = 1; piece <= COUNT_OF(x); piece = piece * 3 + 1) {
        struct tensor_summary s = {0};
        for (size_t i = 0; i < COUNT_OF(x); i += piece)
            tensor_summarize(&s, x + i, COUNT_OF(x) - i < piece ? COUNT_OF(x) - i : piece);
        assert_near(s.mean, 10002);
        assert_near(tensor_summary_std(&s), sqrt(2));
    }
    struct tensor_summary empty = {0};
    tensor_summarize(&empty, x, 0);
    assert_near(tensor_summary_std(&empty), 0);
}

static void counts_into_bins(void **state) {
    (void)state;
    const float x[] = {0, 1, 1.5f, 2, 4, NAN, INFINITY, 3.9f};
    struct tensor_summary s = {0};
    uint64_t bins[4] = {0};
    tensor_summarize(&s, x, COUNT_OF(x));
    tensor_histogram(&s, x, COUNT_OF(x), bins, 4);
    assert_memory_equal(bins, ((uint64_t[]){1, 2, 1, 2}), sizeof bins);
    struct tensor_summary same = {0};
    uint64_t one[4] = {0};
    tensor_summarize(&same, x + 1, 1);
    tensor_histogram(&same, x + 1, 1, one, 4);
    assert_memory_equal(one, ((uint64_t[]){1, 0, 0, 0}), sizeof one);
}

static void compares(void **state) {
    (void)state;
    const float a[] = {1, 2, 3, 4}, b[] = {1, 2.5f, 2, 4};
    struct tensor_difference d = {0};
    tensor_compare(&d, a, b, 2);
    tensor_compare(&d, a + 2, b + 2, 2);
    assert_int_equal(d.n, 4);
    assert_int_equal(d.n_different, 2);
    assert_int_equal(d.at, 2);
    assert_near(d.max_abs, 1);
    assert_near(tensor_difference_mean_abs(&d), 1.5 / 4);
    assert_near(tensor_difference_rmse(&d), sqrt(1.25 / 4));
    assert_near(tensor_difference_relative(&d), sqrt(1.25 / 30));
    assert_near(tensor_difference_cosine(&d), (1 + 5 + 6 + 16) / sqrt(30 * (1 + 6.25 + 4 + 16)));
}

static void differences_add_up(void **state) {
    (void)state;
    const float a[] = {1, 2, 3, 4}, b[] = {1, 2.5f, 2, 4};
    struct tensor_difference whole = {0}, first = {0}, second = {0};
    tensor_compare(&whole, a, b, 4);
    tensor_compare(&first, a, b, 2);
    tensor_compare(&second, a + 2, b + 2, 2);
    tensor_difference_add(&first, &second);
    assert_int_equal(first.n, whole.n);
    assert_int_equal(first.n_different, whole.n_different);
    assert_int_equal(first.at, whole.at);
    assert_near(first.max_abs, whole.max_abs);
    assert_near(first.sum_abs, whole.sum_abs);
    assert_near(first.sum_square, whole.sum_square);
    assert_near(tensor_difference_relative(&first), tensor_difference_relative(&whole));
    assert_near(tensor_difference_cosine(&first), tensor_difference_cosine(&whole));
}

static void nan_differs_from_all_but_nan(void **state) {
    (void)state;
    const float odd[] = {NAN, INFINITY, -INFINITY, 0};
    for (size_t i = 0; i < 4; i++)
        for (size_t k = 0; k < 4; k++) {
            struct tensor_difference d = {0};
            tensor_compare(&d, &odd[i], &odd[k], 1);
            assert_int_equal(d.n_different, i != k);
            assert_true(d.max_abs == (i == k ? 0 : INFINITY));
        }
}

static void zero_has_no_direction(void **state) {
    (void)state;
    const float zero = 0, one = 1;
    struct tensor_difference same = {0}, other = {0};
    tensor_compare(&same, &zero, &zero, 1);
    tensor_compare(&other, &zero, &one, 1);
    assert_near(tensor_difference_cosine(&same), 1);
    assert_near(tensor_difference_cosine(&other), 0);
    assert_near(tensor_difference_relative(&same), 0);
    assert_true(isinf(tensor_difference_relative(&other)));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(summarizes),
        cmocka_unit_test(pieces_make_no_difference),
        cmocka_unit_test(counts_into_bins),
        cmocka_unit_test(compares),
        cmocka_unit_test(differences_add_up),
        cmocka_unit_test(nan_differs_from_all_but_nan),
        cmocka_unit_test(zero_has_no_direction),
    };
    return cmocka_run_group_tests_name("tensor-summary", tests, NULL, NULL);
}
