/* Tests of lib/quant's half-quadratic steps: against PyTorch, and their guarantees for each type. */
#include "tests/unit/kernel_test.h"

#include <stdio.h>

#include "lib/quant/second_order.h"

static double distance(const float *w, const float *q, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += fabs((double)w[i] - q[i]);
    return sum;
}

static bool block_of_one_group(enum dtype t) {
    const struct quant_form *f = quant_form(t);
    return !f->has_scales && f->group == 32;
}

/* For every type with codes: no group has a larger sum of |w - q| than rounding to nearest, with any number of
 * threads. */
static void test_never_worse(void **state) {
    (void)state;
    enum { ROWS = 9, COLS = 512 };
    const struct dtype_info *t;
    unsigned n = 0;
    struct rng r = rng_init(2, 0);
    float *w = take((size_t)ROWS * COLS, sizeof *w), *before = take((size_t)ROWS * COLS, sizeof *w),
          *after = take((size_t)ROWS * COLS, sizeof *w);
    for (size_t i = 0; i < (size_t)ROWS * COLS; i++)
        w[i] = (float)(rng_normal(&r) * (i % 37 ? 0.3 : 2)) * (i / COLS == 4 ? 0 : 1); /* a row of zeros */
    for (size_t i = 0; (t = dtype_at(i)); i++) {
        struct err e;
        if (!t->is_quantized || t->read_only || !hqq_takes(t->dtype)) continue;
        size_t bytes = dtype_row_bytes(t->dtype, (uint64_t)ROWS * COLS), group = quant_form(t->dtype)->group;
        unsigned char *packed = take(bytes, 1), *again = take(bytes, 1);
        n++;
        for (int k = 0; k < 2; k++) {
            parallel_set_threads(k ? 4 : 1);
            assert_int_equal(tensor_from_f32(t->dtype, w, packed, (uint64_t)ROWS * COLS, NULL, &e), 0);
            tensor_to_f32(t->dtype, packed, before, (uint64_t)ROWS * COLS);
            hqq_improve(t->dtype, w, ROWS, COLS, packed);
            if (!k) memcpy(again, packed, bytes);
        }
        assert_memory_equal(packed, again, bytes);
        tensor_to_f32(t->dtype, packed, after, (uint64_t)ROWS * COLS);
        for (size_t at = 0; at < (size_t)ROWS * COLS; at += group)
            assert_true(distance(w + at, after + at, group) <= distance(w + at, before + at, group) * (1 + 1e-6));
        if (block_of_one_group(t->dtype)) /* d and min are f16 and come from no search */
            assert_true(distance(w, after, (size_t)ROWS * COLS) < 0.995 * distance(w, before, (size_t)ROWS * COLS));
    }
    assert_true(n >= 12);
}

/* As described in make_fold_golden.py for Q4_1. */
static void test_torch(void **state) {
    (void)state;
    enum { ROWS = 8, COLS = 32 };
    static char text[1 << 16];
    struct err e;
    FILE *f = fopen("tests/golden/quant/fold.json", "rb");
    assert_non_null(f);
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    cJSON *j = cJSON_Parse(text);
    const cJSON *hqq = cJSON_GetObjectItemCaseSensitive(j, "hqq");
    const cJSON *weights = cJSON_GetObjectItemCaseSensitive(hqq, "weights"),
                *values = cJSON_GetObjectItemCaseSensitive(hqq, "values");
    float w[ROWS * COLS], nearest[ROWS * COLS], got[ROWS * COLS];
    unsigned char *packed = take(dtype_row_bytes(DT_Q4_1, (uint64_t)ROWS * COLS), 1);
    assert_int_equal(cJSON_GetArraySize(weights), ROWS * COLS);
    for (int i = 0; i < ROWS * COLS; i++) w[i] = (float)cJSON_GetArrayItem(weights, i)->valuedouble;
    assert_int_equal(tensor_from_f32(DT_Q4_1, w, packed, (uint64_t)ROWS * COLS, NULL, &e), 0);
    tensor_to_f32(DT_Q4_1, packed, nearest, (uint64_t)ROWS * COLS);
    hqq_improve(DT_Q4_1, w, ROWS, COLS, packed);
    tensor_to_f32(DT_Q4_1, packed, got, (uint64_t)ROWS * COLS);
    for (int i = 0; i < ROWS * COLS; i++) {
        double want = cJSON_GetArrayItem(values, i)->valuedouble;
        assert_true(fabs(got[i] - want) <= 1e-6 * fmax(fabs(want), 1e-2));
    }
    assert_true(memcmp(got, nearest, sizeof got) != 0);
    cJSON_Delete(j);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_never_worse, release_memory),
        cmocka_unit_test_teardown(test_torch, release_memory),
    };
    return cmocka_run_group_tests_name("hqq", tests, NULL, NULL);
}
