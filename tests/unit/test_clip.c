/* Tests of lib/quant's clipping of ranges: its guarantees for each type. */
#include "tests/unit/kernel_test.h"

#include "lib/quant/second_order.h"

enum { ROWS = 7, COLS = 512 };

static double error_of(enum dtype t, const float *w, const float *importance, const unsigned char *packed, size_t at,
                       size_t n) {
    float *q = take(n, sizeof *q);
    double sum = 0;
    tensor_to_f32(t, packed, q, n);
    for (size_t i = 0; i < n; i++) sum += (double)importance[(at + i) % COLS] * (q[i] - w[at + i]) * (q[i] - w[at + i]);
    return sum;
}

/* No block's weighted error may grow, most types must improve, and threads must not change the result. */
static void test_blocks(void **state) {
    (void)state;
    struct rng r = rng_init(8, 0);
    float *w = take((size_t)ROWS * COLS, sizeof *w), *importance = take(COLS, sizeof *importance);
    const struct dtype_info *t;
    unsigned n = 0, gained = 0;
    for (size_t i = 0; i < (size_t)ROWS * COLS; i++)
        w[i] = (float)(rng_normal(&r) * (i % 41 ? 0.3 : 1.5)) * (i / COLS == 4 ? 0 : 1); /* a row of zeros */
    for (size_t i = 0; i < COLS; i++) importance[i] = (float)exp(2 * rng_normal(&r)) * (i % 41 ? 1 : 0.01f);
    for (size_t i = 0; (t = dtype_at(i)); i++) {
        struct err e;
        if (!t->is_quantized || t->read_only || !quant_form(t->dtype)) continue;
        size_t row = dtype_row_bytes(t->dtype, COLS), blocks = COLS / t->block_elems;
        unsigned char *nearest = take(ROWS, row), *got[2];
        double before = 0, after = 0;
        for (size_t k = 0; k < ROWS; k++)
            assert_int_equal(tensor_from_f32(t->dtype, w + k * COLS, nearest + k * row, COLS, importance, &e), 0);
        for (int k = 0; k < 2; k++) {
            parallel_set_threads(k ? 4 : 1);
            got[k] = take(ROWS, row);
            memcpy(got[k], nearest, ROWS * row);
            assert_int_equal(clip_improve(t->dtype, w, ROWS, COLS, importance, got[k], &e), 0);
        }
        assert_memory_equal(got[0], got[1], ROWS * row);
        for (size_t b = 0; b < ROWS * blocks; b++) {
            size_t at = b * t->block_elems;
            double x = error_of(t->dtype, w, importance, nearest + b * t->block_bytes, at, t->block_elems);
            double y = error_of(t->dtype, w, importance, got[0] + b * t->block_bytes, at, t->block_elems);
            assert_true(y <= x);
            before += x, after += y;
        }
        n++;
        gained += after < 0.99 * before;
    }
    assert_true(n >= 12 && gained >= n / 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test_teardown(test_blocks, release_memory)};
    return cmocka_run_group_tests_name("clip", tests, NULL, NULL);
}
