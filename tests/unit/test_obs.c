/* Tests of lib/obs: damping, dead inputs, order, sweeps and least squares. */
#include "tests/unit/kernel_test.h"

#include "lib/obs/obs.h"

enum { ROWS = 5, N = 40 };

/* Inputs [n_x][N], of which input 7 is always 0, and their Gram matrix. */
static struct pair inputs(struct rng *r, size_t n_x, float *gram) {
    struct pair x = normals(r, n_x * N, 1);
    double *h = take(N * N, sizeof *h);
    for (size_t i = 0; i < n_x; i++)
        for (size_t c = 0; c < N; c++)
            set(x, i * N + c, c == 7 ? 0 : (1 + (double)(c % 5)) * x.d[i * N + c] + 0.4 * x.d[i * N + (c + 1) % N]);
    plain64_matmul_tn(N, N, n_x, x.d, x.d, 0, h);
    for (size_t i = 0; i < N * N; i++) gram[i] = (float)h[i];
    return x;
}

/* Removes two of three columns. */
static void decide(void *ctx, size_t column, size_t left, size_t row, size_t n, const float *w, float *kept) {
    const struct obs_factor *f = ctx;
    size_t input = f->order ? f->order[column] : column;
    (void)row, (void)left;
    for (size_t i = 0; i < n; i++) kept[i] = input % 3 ? 0 : w[i];
}

static void check_sweep(bool act_order) {
    struct err e;
    struct rng r = rng_init(3, act_order);
    float gram[N * N], w[ROWS * N];
    double loss[ROWS] = {0}, total = 0, error = 0;
    struct pair x = inputs(&r, 100, gram), dense = normals(&r, ROWS * N, 1);
    struct obs_options o = {.damp = 1e-4, .act_order = act_order};
    struct obs_factor *f;
    assert_int_equal(obs_factor_new(&f, gram, N, &o, &e), 0);
    assert_true(f->n_dead == 1 && f->dead[7] && f->damp == 1e-4 && !f->order == !act_order);
    for (size_t i = 1; act_order && i < N; i++)
        assert_true(gram[f->order[i - 1] * (N + 1)] >= gram[f->order[i] * (N + 1)]);
    struct obs_method m = {.block = 16, .decide = decide, .ctx = f};
    assert_int_equal(obs_sweep(f, &m, dense.f, ROWS, NULL, loss, &e), 0);
    total = loss[0];
    memset(loss, 0, sizeof loss);
    memcpy(w, dense.f, sizeof w);
    assert_int_equal(obs_sweep(f, &m, w, ROWS, w, loss, &e), 0);
    assert_true(total > 0 && total == loss[0]);
    total = 0;
    for (size_t row = 0; row < ROWS; row++) {
        for (size_t c = 0; c < N; c++) assert_true((c % 3 == 0 && c != 7) || w[row * N + c] == 0);
        for (size_t i = 0; i < 100; i++) {
            double d = 0;
            for (size_t c = 0; c < N; c++) d += (w[row * N + c] - dense.d[row * N + c]) * x.d[i * N + c];
            error += d * d;
        }
        total += loss[row];
    }
    assert_true(fabs(error - total) < 0.01 * total); /* up to the share of the damping */
    obs_factor_free(f);
}

static void test_sweep(void **state) {
    (void)state;
    check_sweep(false);
    check_sweep(true);
}

/* A matrix of rank 1 can only be factored with enough damping. */
static void test_damping(void **state) {
    (void)state;
    struct err e;
    float gram[N * N];
    struct obs_factor *f;
    struct obs_options o = {.damp = 1e-9, .tries = 0};
    for (size_t i = 0; i < N * N; i++) gram[i] = (float)((1 + i / N % 3) * (1 + i % N % 3));
    assert_int_equal(obs_factor_new(&f, gram, N, &o, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "does not factor"));
    o.tries = 8;
    assert_int_equal(obs_factor_new(&f, gram, N, &o, &e), 0);
    assert_true(f->damp > 1e-9 && f->damp <= 0.1);
    obs_factor_free(f);
    gram[3 * N + 3] = -1;
    assert_int_equal(obs_factor_new(&f, gram, N, &o, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "input 3"));
    gram[3 * N + 3] = NAN;
    assert_int_equal(obs_factor_new(&f, gram, N, &o, &e), ERR_DATA);
}

/* With t = w y exactly, least squares must recover w. */
static void check_solve(bool act_order) {
    struct err e;
    struct rng r = rng_init(4, 1);
    float gram[N * N], b[ROWS * N], w[ROWS * N];
    struct pair y = inputs(&r, 120, gram), dense = normals(&r, ROWS * N, 1), t = zeros(120 * ROWS);
    double bd[ROWS * N];
    struct obs_options o = {.damp = 1e-7, .act_order = act_order};
    struct obs_factor *f;
    plain64_matmul_nt(120, ROWS, N, y.d, dense.d, 0, t.d);
    plain64_matmul_tn(ROWS, N, 120, t.d, y.d, 0, bd);
    for (size_t i = 0; i < ROWS * N; i++) b[i] = (float)bd[i];
    assert_int_equal(obs_factor_new(&f, gram, N, &o, &e), 0);
    assert_int_equal(obs_solve(f, b, w, ROWS, &e), 0);
    for (size_t i = 0; i < ROWS * N; i++) assert_true(fabs(w[i] - (i % N == 7 ? 0 : dense.d[i])) < 1e-4);
    obs_factor_free(f);
}

static void test_solve(void **state) {
    (void)state;
    check_solve(false);
    check_solve(true);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_sweep, release_memory),
        cmocka_unit_test_teardown(test_damping, release_memory),
        cmocka_unit_test_teardown(test_solve, release_memory),
    };
    return cmocka_run_group_tests_name("obs", tests, NULL, NULL);
}
