/* Tests of the tape of lib/grad: constants, failures, memory, rejected shapes, marks. Gradients are in test_grad.c. */
#include "tests/unit/grad_samples.h"

/* Constants get no gradient, and an operation on constants alone is not recorded. */
static void test_constants(void **state) {
    (void)state;
    float x[4] = {1, 2, 3, 4}, w[4] = {1, 1, 2, 2}, dw[4] = {0}, g[4];
    struct grad_tape *t = new_tape(DT_F32, true);
    struct grad_var *fixed = grad_leaf(t, kernel_f32(x), kernel_none(DT_F32), 2, 2),
                    *weight = grad_leaf(t, kernel_f32(w), kernel_f32(dw), 2, 2);
    struct grad_var *sum = twice(t, fixed);
    assert_false(kernel_has_data(grad_of(t, sum)));
    struct grad_var *y =
        grad_glu(t, ACT_SILU, sum, grad_linear(t, sum, weight, NULL, NULL)); /* the gate is constant, up is not */
    struct grad_var *a = grad_attention(t, sum, grad_linear(t, sum, weight, NULL, NULL), sum,
                                        &(struct kernel_attention){1, 1, 2, 1, (uint32_t[]){0, 2}, 1});
    ((float *)host_of(grad_of(t, y)))[0] = 1;
    ((float *)host_of(grad_of(t, a)))[3] = 1;
    grad_backward(t);
    struct err e;
    assert_int_equal(grad_error(t, &e), 0);
    assert_true(dw[0] != 0);
    memcpy(g, (float[]){1, 2, 3, 4}, sizeof g);
    assert_memory_equal(x, g, sizeof g);
    grad_tape_free(t);
}

static int uncalled_loss(void *ctx, size_t first, size_t rows, size_t vocab, struct kernel_array logits,
                         struct kernel_array dlogits, struct err *e) {
    (void)ctx, (void)first, (void)rows, (void)vocab, (void)logits, (void)dlogits, (void)e;
    fail_msg("the loss was called behind a failure");
    return 0;
}

/* The first error is kept, everything after it is NULL, and a reset clears it. */
static void test_failures_travel(void **state) {
    (void)state;
    float x[6] = {0};
    uint32_t id = 9;
    struct grad_tape *t = new_tape(DT_F32, true);
    struct grad_var *a = grad_leaf(t, kernel_f32(x), kernel_none(DT_F32), 2, 3),
                    *b = grad_leaf(t, kernel_f32(x), kernel_none(DT_F32), 3, 2);
    struct err e;
    assert_null(grad_linear(t, grad_linear(t, a, b, NULL, NULL), a, NULL, NULL));
    assert_null(grad_embed(t, a, &id, 1));
    assert_false(grad_head(t, a, &(struct grad_head){.w = a}, uncalled_loss, NULL));
    assert_int_equal(grad_error(t, &e), ERR_DATA);
    assert_string_equal(e.msg, "linear: input of 3, weight [3, 2]");
    grad_reset(t);
    assert_int_equal(grad_error(t, &e), 0);
    a = grad_leaf(t, kernel_f32(x), kernel_none(DT_F32), 2, 3);
    assert_null(grad_embed(t, a, &id, 1));
    assert_int_equal(grad_error(t, &e), ERR_DATA);
    assert_string_equal(e.msg, "token 9 at position 0: the vocabulary has 2");
    grad_tape_free(t);
}

static int failing_loss(void *ctx, size_t first, size_t rows, size_t vocab, struct kernel_array logits,
                        struct kernel_array dlogits, struct err *e) {
    (void)ctx, (void)first, (void)rows, (void)vocab, (void)logits, (void)dlogits;
    return err_set(e, ERR_CHECK, "no target");
}

static void test_failing_loss(void **state) {
    (void)state;
    float x[4] = {0};
    struct grad_tape *t = new_tape(DT_F32, true);
    struct grad_var *a = grad_leaf(t, kernel_f32(x), kernel_none(DT_F32), 2, 2);
    struct err e;
    assert_false(grad_head(t, a, &(struct grad_head){.w = a}, failing_loss, NULL));
    assert_int_equal(grad_error(t, &e), ERR_CHECK);
    assert_string_equal(e.msg, "no target");
    grad_tape_free(t);
}

/* Whichever allocation fails, the tape falls back to less memory or reports it; after a reset the same graph works. */
static void test_without_memory(void **state) {
    (void)state;
    enum { SIZE = 600 }; /* larger than a tape's first block */
    float *x = take(SIZE * SIZE, sizeof *x), *dx = take(SIZE * SIZE, sizeof *dx);
    int failed = 0;
    for (uint64_t nth = 1; nth < 12; nth++) {
        struct grad_tape *t = new_tape(DT_F32, true);
        struct err e;
        for (int again = 0; again < 2; again++) {
            mem_fail_at(again ? 0 : nth);
            struct grad_var *a = grad_leaf(t, kernel_f32(x), kernel_f32(dx), SIZE, SIZE), *y = a;
            for (int i = 0; i < 6; i++)
                y = grad_rmsnorm(t, grad_glu(t, ACT_SILU, y, a), grad_leaf(t, kernel_f32(x), kernel_f32(dx), 1, SIZE),
                                 1, DT_F32);
            grad_of(t, y);
            grad_backward(t);
            mem_fail_at(0);
            int code = grad_error(t, &e);
            if (again) assert_int_equal(code, 0);
            if (code != 0) {
                assert_int_equal(code, ERR_IO);
                assert_non_null(strstr(e.msg, "out of memory"));
                failed++;
            }
            grad_reset(t);
        }
        grad_tape_free(t);
    }
    assert_in_range(failed, 2, 10); /* some failed; the last ones were never reached */
}

static struct grad_var *narrow(void *ctx, struct grad_tape *t, struct grad_var *x) {
    return grad_linear(t, x, ctx, NULL, NULL);
}

/* Every mismatch of shapes is refused. */
static void test_shapes_are_checked(void **state) {
    (void)state;
    float x[64] = {0};
    double f[4] = {0};
    uint32_t p[8] = {0}, short_starts[] = {0, 3}, bad_starts[] = {0, 0, 4};
    struct grad_tape *t = new_tape(DT_F32, false);
    for (int i = 0; i < 11; i++) {
        struct grad_var *a = grad_leaf(t, kernel_f32(x), kernel_none(DT_F32), 4, 4),
                        *b = grad_leaf(t, kernel_f32(x), kernel_none(DT_F32), 2, 3), *y = a;
        struct kernel_attention s = {2, 2, 2, 1, short_starts, 1};
        if (i == 0) y = grad_linear(t, a, b, NULL, NULL);
        if (i == 1) y = grad_linear(t, a, a, b, NULL);
        if (i == 9) y = grad_linear(t, a, a, NULL, b);
        if (i == 10) y = grad_segment(t, a, a->cols, narrow, grad_leaf(t, kernel_f32(x), kernel_none(DT_F32), 2, 4));
        if (i == 2) y = grad_rmsnorm(t, a, b, 0, DT_F32);
        if (i == 3) y = grad_rope(t, a, 1, 3, p, &(struct kernel_rotation){.dims = 3, .inv_freq = f});
        if (i == 4) y = grad_rope(t, a, 3, 2, p, &(struct kernel_rotation){.dims = 2, .inv_freq = f});
        if (i == 5) y = grad_attention(t, a, a, a, &s);
        s.starts = bad_starts, s.n_seqs = 2;
        if (i == 6) y = grad_attention(t, a, a, a, &s);
        s.n_kv_heads = 3;
        if (i == 7) y = grad_attention(t, a, a, a, &s);
        if (i == 8) y = grad_glu(t, ACT_SILU, a, b);
        struct err e;
        assert_null(y);
        assert_int_equal(grad_error(t, &e), ERR_DATA);
        grad_reset(t);
    }
    grad_tape_free(t);
}

/* A packed leaf is for inference in bf16, where its product is that of the same weights in f32; elsewhere it is
 * refused. */
static void test_packed_leaf(void **state) {
    enum { ROWS = 5, IN = 40, OUT = 33 };
    (void)state;
    struct err e;
    struct rng r = rng_init(3, 1);
    float x[ROWS * IN], w[OUT * IN];
    for (size_t i = 0; i < COUNT_OF(x); i++) x[i] = (float)rng_normal(&r);
    for (size_t i = 0; i < COUNT_OF(w); i++) w[i] = (float)rng_normal(&r);
    void *scratch = mem_alloc(kernel_matrix_bytes(KERNEL_PACKED_BF16, DT_BF16, OUT, IN), &e);
    assert_non_null(scratch);
    struct kernel_matrix stored = kernel_matrix_of(kernel_f32(w), OUT, IN);
    struct kernel_matrix panels = kernel_pack_nt(kernel_bf16(scratch), &stored);
    for (int how = 0; how < 4; how++) {
        bool record = how / 2;
        enum dtype precision = how % 2 ? DT_BF16 : DT_F32;
        struct grad_tape *t;
        assert_int_equal(grad_tape_new(&t, kernel_cpu(), record, precision, &e), 0);
        struct grad_var *in = grad_leaf(t, kernel_f32(x), kernel_none(DT_F32), ROWS, IN),
                        *packed = grad_leaf_packed(t, &panels);
        if (!record && precision == DT_BF16) {
            struct grad_var *a = grad_linear(t, in, packed, NULL, NULL);
            struct grad_var *b =
                grad_linear(t, in, grad_leaf(t, kernel_f32(w), kernel_none(DT_F32), OUT, IN), NULL, NULL);
            assert_true(a && b && a->rows == ROWS && a->cols == OUT);
            assert_memory_equal(host_of(a->value), host_of(b->value), kernel_array_bytes(DT_BF16, ROWS * OUT));
        } else {
            assert_null(packed);
            assert_null(grad_linear(t, in, packed, NULL, NULL));
            assert_int_equal(grad_error(t, &e), ERR_USAGE);
        }
        grad_tape_free(t);
    }
    mem_free(scratch);
}

static int see_no_gradient(void *ctx, size_t first, size_t rows, size_t vocab, struct kernel_array logits,
                           struct kernel_array dlogits, struct err *e) {
    (void)first, (void)rows, (void)vocab, (void)logits, (void)e;
    *(bool *)ctx = !kernel_has_data(dlogits);
    return 0;
}

/* A tape that does not record leaves gradients untouched, also those of the head: the parameters may be in training
 * elsewhere. */
static void test_inference_leaves_gradients_alone(void **state) {
    (void)state;
    float x[4] = {1, 2, 3, 4}, w[4] = {1, 1, 2, 2}, dw[4] = {5, 6, 7, 8};
    for (int i = 0; i < 2; i++) {
        struct grad_tape *t = new_tape(i ? DT_BF16 : DT_F32, false);
        struct err e;
        bool begun = true, none = false;
        struct grad_var *h = grad_leaf(t, kernel_f32(x), kernel_none(DT_F32), 2, 2);
        struct grad_head head = {.w = grad_parameter(t, kernel_f32(w), kernel_f32(dw), &begun, 2, 2)};
        assert_true(grad_head(t, h, &head, see_no_gradient, &none));
        grad_backward(t);
        assert_int_equal(grad_error(t, &e), 0);
        assert_true(none && begun && dw[0] == 5 && dw[1] == 6 && dw[2] == 7 && dw[3] == 8);
        grad_tape_free(t);
    }
}

/* Rewinding a tape that does not record frees its memory: a thousand steps take as much as one. */
static void test_mark_and_rewind(void **state) {
    (void)state;
    enum { SIZE = 300 };
    float *x = take(SIZE * SIZE, sizeof *x);
    struct grad_tape *t = new_tape(DT_F32, false);
    struct grad_var *a = grad_leaf(t, kernel_f32(x), kernel_none(DT_F32), SIZE, SIZE);
    size_t held = 0;
    for (int step = 0; step < 50; step++) {
        struct grad_mark mark = grad_mark(t);
        struct grad_var *y = a;
        for (int i = 0; i < 20; i++) y = grad_glu(t, ACT_SILU, y, a);
        assert_non_null(y);
        assert_false(kernel_has_data(grad_of(t, y)));
        if (step == 0) held = grad_memory(t).values;
        assert_int_equal(grad_memory(t).values, held);
        grad_rewind(t, mark);
        struct grad_mark again = grad_mark(t);
        assert_true(again.values == mark.values && again.notes == mark.notes);
    }
    grad_tape_free(t);
}

/* Gradients of results live only as long as they are needed: a deep chain takes its values and a few buffers. */
static void test_gradients_are_recycled(void **state) {
    (void)state;
    enum { SIZE = 256, DEPTH = 40 };
    float *x = take(SIZE * SIZE, sizeof *x), *w = take(SIZE * SIZE, sizeof *w), *dw = take(SIZE * SIZE, sizeof *dw);
    struct grad_tape *t = new_tape(DT_F32, true);
    for (int step = 0; step < 2; step++) {
        struct grad_var *y = grad_leaf(t, kernel_f32(x), kernel_none(DT_F32), SIZE, SIZE),
                        *weight = grad_leaf(t, kernel_f32(w), kernel_f32(dw), SIZE, SIZE);
        for (int i = 0; i < DEPTH; i++) y = grad_linear(t, y, weight, NULL, NULL);
        assert_true(kernel_has_data(grad_of(t, y)));
        grad_backward(t);
        assert_true(grad_memory(t).gradients < 3 * SIZE * SIZE * sizeof(float));
        grad_reset(t);
    }
    grad_tape_free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_constants, release_memory),
        cmocka_unit_test_teardown(test_failures_travel, release_memory),
        cmocka_unit_test_teardown(test_failing_loss, release_memory),
        cmocka_unit_test_teardown(test_without_memory, release_memory),
        cmocka_unit_test_teardown(test_shapes_are_checked, release_memory),
        cmocka_unit_test_teardown(test_packed_leaf, release_memory),
        cmocka_unit_test_teardown(test_inference_leaves_gradients_alone, release_memory),
        cmocka_unit_test_teardown(test_mark_and_rewind, release_memory),
        cmocka_unit_test_teardown(test_gradients_are_recycled, release_memory),
    };
    return cmocka_run_group_tests_name("grad_tape", tests, NULL, NULL);
}
