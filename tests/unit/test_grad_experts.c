/*
 * Tests of lib/grad: a mixture of experts (here linear maps) with a gated part beside it, against central differences
 * of the f64 twins (test_grad.c). Which experts a row takes is a step function; with these seeds no difference crosses
 * a step.
 */
#include "tests/unit/grad_check.h"

enum { N = 12, D = 7, EXPERTS = 4, K = 2 };

/* inputs: x [N][D], router [EXPERTS][D], a matrix [D][D] for each expert, gate [1][D] */
enum { X, ROUTER, FIRST, GATE = FIRST + EXPERTS, N_IN };

static bool normalises(const struct function *f) {
    return f->act == ACT_RELU; /* the only unused member of struct function */
}

static struct grad_var *build_mixture(const struct function *f, struct grad_tape *t, struct grad_var **in) {
    struct grad_var *y = grad_zeros(t, N, D), *h = in[X];
    struct grad_routing *r = grad_route(t, grad_scores(t, h, in[ROUTER]), K, normalises(f));
    for (size_t i = 0; r && i < EXPERTS; i++) {
        if (grad_routed(r, i) == 0) continue;
        struct grad_var *rows = grad_take_rows(t, h, r, i);
        y = grad_mix_rows(t, y, grad_linear(t, rows, in[FIRST + i], NULL, NULL), r, i);
    }
    struct grad_var *gated = grad_gate_rows(t, grad_linear(t, h, in[FIRST], NULL, NULL), grad_scores(t, h, in[GATE]));
    return grad_add(t, y, gated);
}

static void twin_mixture(const struct function *f, double *const *in, double *y) {
    double logits[N * EXPERTS], probs[N * EXPERTS], weights[N * K], part[N * D], gate[N];
    uint32_t ids[N * K];
    plain64_matmul_nt(N, EXPERTS, D, in[X], in[ROUTER], 0, logits);
    plain64_route(probs, ids, weights, logits, N, EXPERTS, K, normalises(f));
    plain64_matmul_nt(N, D, D, in[X], in[FIRST], 0, part);
    plain64_matmul_nt(N, 1, D, in[X], in[GATE], 0, gate);
    plain64_gate_rows(y, part, gate, N, D);
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j < K; j++) {
            uint32_t slot = (uint32_t)(i * K + j), row = (uint32_t)i;
            plain64_matmul_nt(1, D, D, in[X] + i * D, in[FIRST + ids[slot]], 0, part);
            plain64_scatter_weighted(y, part, weights, &slot, &row, 1, D);
        }
}

static void test_mixtures(void **state) {
    (void)state;
    struct function f = {"mixture", N_IN,          {N, EXPERTS, D, D, D, D, 1}, {D, D, D, D, D, D, D}, N,
                         D,         build_mixture, .twin = twin_mixture};
    for (uint64_t seed = 20; seed < 24; seed++) {
        f.act = seed % 2 ? ACT_RELU : ACT_SILU;
        f.name = seed % 2 ? "mixture, weights normalised" : "mixture";
        check_function(&f, seed);
        release_memory(NULL);
    }
}

/* In f32 the rows of an expert must give the same bits whatever else is in the batch. */
static void test_rows_stand_alone(void **state) {
    (void)state;
    struct rng r = rng_init(60, 1);
    struct pair x = normals(&r, 40 * 64, 1), router = normals(&r, 6 * 64, 1), w = normals(&r, 6 * 64 * 64, 1);
    float *all = take(40 * 64, sizeof *all);
    for (size_t n = 40; n >= 5; n -= 5) {
        struct grad_tape *t = new_tape(DT_F32, false);
        struct grad_var *h = grad_leaf(t, kernel_f32(x.f), kernel_none(DT_F32), n, 64), *y = grad_zeros(t, n, 64);
        struct grad_routing *routing =
            grad_route(t, grad_scores(t, h, grad_leaf(t, kernel_f32(router.f), kernel_none(DT_F32), 6, 64)), 2, true);
        for (size_t i = 0; i < 6; i++) {
            struct grad_var *expert = grad_leaf(t, kernel_f32(w.f + i * 64 * 64), kernel_none(DT_F32), 64, 64);
            struct grad_var *rows = grad_take_rows(t, h, routing, i);
            assert_true(rows->rows >= grad_routed(routing, i) && rows->rows >= 5);
            y = grad_mix_rows(t, y, grad_linear(t, rows, expert, NULL, NULL), routing, i);
        }
        assert_non_null(y);
        if (n == 40) memcpy(all, kernel_host(y->value, 40 * 64), 40 * 64 * sizeof *all);
        assert_memory_equal(all, kernel_host(y->value, n * 64), n * 64 * sizeof *all);
        grad_tape_free(t);
    }
}

/* Values, then gradients of the inputs, on a tape in f32 or bf16. */
static size_t run_in(enum dtype precision, struct pair *in, const float *dy, float *out) {
    const struct function f = {.act = ACT_RELU};
    static const size_t rows[N_IN] = {N, EXPERTS, D, D, D, D, 1};
    struct err e;
    struct grad_tape *t = new_tape(precision, true);
    struct grad_var *leaf[N_IN];
    float *g = out + N * D;
    memset(out, 0, (N + EXPERTS * (D + 1) + N + 1) * D * sizeof *out);
    for (size_t i = 0; i < N_IN; g += rows[i++] * D)
        leaf[i] = grad_leaf(t, kernel_f32(in[i].f), kernel_f32(g), rows[i], D);
    struct grad_var *y = build_mixture(&f, t, leaf);
    assert_non_null(y);
    memcpy(out, kernel_host(y->value, N * D), N * D * sizeof *out);
    kernel_add(grad_of(t, y), kernel_f32(dy), N * D);
    grad_backward(t);
    if (grad_error(t, &e)) fail_msg("%s", e.msg);
    grad_tape_free(t);
    return (size_t)(g - out);
}

/* In bf16 the same experts are taken, since scores are f32; everything else is rounded. */
static void test_bf16(void **state) {
    static const size_t rows[N_IN] = {N, EXPERTS, D, D, D, D, 1};
    (void)state;
    struct rng r = rng_init(61, 1);
    struct pair in[N_IN], dy = normals(&r, N * D, 1);
    float *f32 = take(1000, sizeof *f32), *bf16 = take(1000, sizeof *bf16);
    for (size_t i = 0; i < N_IN; i++) in[i] = normals(&r, rows[i] * D, 0.7);
    size_t n = run_in(DT_F32, in, dy.f, f32);
    assert_int_equal(run_in(DT_BF16, in, dy.f, bf16), n);
    const float *a = f32, *b = bf16;
    for (size_t i = 0; i <= N_IN; i++) {
        size_t m = (i ? rows[i - 1] : N) * D;
        double error = 0, power = 0;
        for (size_t k = 0; k < m; k++)
            error += ((double)a[k] - b[k]) * ((double)a[k] - b[k]), power += (double)a[k] * a[k];
        if (!(error <= 1e-4 * power)) fail_msg("gradient %zu: off by %g of itself", i, sqrt(error / power));
        a += m, b += m;
    }
}

/* Shapes that do not fit are refused, and a failed tape stays failed. */
static void test_refusals(void **state) {
    (void)state;
    struct err e;
    float x[3 * 4] = {0}, w[2 * 4] = {0};
    struct grad_tape *t = new_tape(DT_F32, false);
    struct grad_var *h = grad_leaf(t, kernel_f32(x), kernel_none(DT_F32), 3, 4),
                    *router = grad_leaf(t, kernel_f32(w), kernel_none(DT_F32), 2, 4);
    assert_null(grad_route(t, grad_scores(t, h, router), 3, false));
    assert_int_equal(grad_error(t, &e), ERR_DATA);
    assert_string_equal(e.msg, "routing: 3 of 2 experts for 3 rows");
    assert_null(grad_zeros(t, 2, 2));
    grad_reset(t);
    h = grad_leaf(t, kernel_f32(x), kernel_none(DT_F32), 3, 4);
    assert_null(grad_scores(t, h, grad_leaf(t, kernel_f32(w), kernel_none(DT_F32), 4, 2)));
    assert_int_equal(grad_error(t, &e), ERR_DATA);
    grad_reset(t);
    assert_null(grad_gate_rows(t, grad_leaf(t, kernel_f32(x), kernel_none(DT_F32), 3, 4),
                               grad_leaf(t, kernel_f32(w), kernel_none(DT_F32), 2, 4)));
    assert_int_equal(grad_error(t, &e), ERR_DATA);
    grad_tape_free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_mixtures, release_memory),
        cmocka_unit_test_teardown(test_rows_stand_alone, release_memory),
        cmocka_unit_test_teardown(test_bf16, release_memory),
        cmocka_unit_test_teardown(test_refusals, release_memory),
    };
    return cmocka_run_group_tests_name("grad experts", tests, NULL, NULL);
}
