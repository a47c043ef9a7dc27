/* Tests of lib/kernel: LayerNorm, activation functions, gated units and soft caps against the f64 twins. */
#include "tests/unit/kernel_test.h"

static const size_t lengths[] = {1, 2, 3, 7, 8, 15, 16, 17, 33, 100, 1023, 1025, 20000};

/* ---- LayerNorm ---- */

struct norm {
    size_t rows, d;
    const float *x, *w, *b, *dy;
};

#define EPS 1e-5f

/* out: y [rows][d], moments [rows][2] */
static void run_layernorm(void *ctx, float *out) {
    const struct norm *c = ctx;
    kernel_layernorm(kernel_f32(out), kernel_f32(out + c->rows * c->d), kernel_f32(c->x), kernel_f32(c->w),
                     kernel_f32(c->b), c->rows, c->d, EPS);
}

/* out: dx [rows][d], dw [d], db [d] */
static void run_layernorm_backward(void *ctx, float *out) {
    const struct norm *c = ctx;
    size_t n = c->rows * c->d;
    float *y = take(n, sizeof *y), *moments = take(2 * c->rows, sizeof *moments);
    kernel_layernorm(kernel_f32(y), kernel_f32(moments), kernel_f32(c->x), kernel_f32(c->w), kernel_f32(c->b), c->rows,
                     c->d, EPS);
    kernel_layernorm_backward(kernel_f32(out), kernel_f32(out + n), kernel_f32(out + n + c->d), kernel_f32(c->dy),
                              kernel_f32(c->x), kernel_f32(c->w), kernel_f32(moments), c->rows, c->d);
}

/*
 * The mean has an error of U of itself and of the spread; subtracting it leaves an error of 2 U |mean| in units of x,
 * which the deviation divides. Everything else is relative.
 */
static void check_layernorm(struct rng *r, size_t rows, size_t d, double mean, double scale) {
    size_t n = rows * d;
    struct pair x = normals(r, n, scale), w = normals(r, d, 1), b = normals(r, d, 1), dy = normals(r, n, 1);
    struct pair start = normals(r, n + 2 * d, 1);
    for (size_t i = 0; i < n; i++) set(x, i, x.d[i] + mean);
    struct norm c = {rows, d, x.f, w.f, b.f, dy.f};
    double *y = take(n + 2 * rows, sizeof *y), *moments = y + n,
           *tolerance = take(n + 2 * rows + 2 * d, sizeof *tolerance);
    plain64_layernorm(y, moments, x.d, w.d, b.d, rows, d, EPS);
    for (size_t i = 0; i < n; i++) {
        double inv = moments[i / d * 2 + 1], shift = 2 * U * fabs(moments[i / d * 2]) * inv;
        tolerance[i] = (shift + 6 * U * (fabs(y[i] - b.d[i % d]) + 1e-3)) * (fabs(w.d[i % d]) + 1) + 2 * U * fabs(y[i]);
    }
    for (size_t i = 0; i < rows; i++) {
        tolerance[n + 2 * i] = 2 * U * (fabs(moments[2 * i]) + 1e-6 * scale);
        tolerance[n + 2 * i + 1] = moments[2 * i + 1] * (4 * U + 2 * U * fabs(moments[2 * i]) * moments[2 * i + 1]);
    }
    check_kernel("layernorm", run_layernorm, &c, n + 2 * rows, NULL, y, tolerance);

    double *dx = start.d, *dw = dx + n, *db = dw + d;
    for (size_t j = 0; j < d; j++) tolerance[n + j] = fabs(dw[j]), tolerance[n + d + j] = fabs(db[j]);
    double shift = 0;
    for (size_t i = 0; i < rows; i++) {
        double inv = moments[2 * i + 1], sum = 0;
        double z_error = 2 * U * fabs(moments[2 * i]) * inv + 4 * U;
        shift = fmax(shift, z_error);
        for (size_t j = 0; j < d; j++) sum += fabs(dy.d[i * d + j] * w.d[j]) * 4 / (double)d;
        for (size_t j = 0; j < d; j++) {
            size_t at = i * d + j;
            double z = fabs((x.d[at] - moments[2 * i]) * inv);
            double terms = inv * (fabs(w.d[j] * dy.d[at]) + sum + z * sum);
            tolerance[at] = (12 * U + 4 * z_error) * (terms + inv * sum) + 8 * U * fabs(dx[at]);
            tolerance[n + j] += fabs(dy.d[at]) * (z + 1);
            tolerance[n + d + j] += fabs(dy.d[at]);
        }
    }
    double rounding = ((double)(rows < 128 ? rows : 128) + (double)rows / 128 + 6) * U;
    for (size_t j = 0; j < 2 * d; j++) tolerance[n + j] *= rounding + shift;
    plain64_layernorm_backward(dx, dw, db, dy.d, x.d, w.d, moments, rows, d);
    check_kernel("layernorm backward", run_layernorm_backward, &c, n + 2 * d, start.f, start.d, tolerance);
    arena_reset(&memory);
}

static void test_layernorm(void **state) {
    static const size_t shapes[][2] = {{1, 1},    {1, 7},    {3, 64},    {5, 1000},
                                       {7, 1025}, {200, 33}, {130, 768}, {2, 40000}};
    (void)state;
    struct rng r = rng_init(40, 1);
    for (size_t i = 0; i < COUNT_OF(shapes); i++) check_layernorm(&r, shapes[i][0], shapes[i][1], 0, 1);
    check_layernorm(&r, 3, 576, 100, 1);  /* a mean far from zero */
    check_layernorm(&r, 3, 576, 0, 1e-4); /* eps dominates */
    check_layernorm(&r, 3, 576, 0, 1e15); /* squares beyond f32 */
}

/* ---- activation functions ---- */

struct activation {
    enum kernel_act act;
    size_t n;
    const float *x, *up, *dy;
};

static void run_activate(void *ctx, float *y) {
    const struct activation *c = ctx;
    kernel_activate(c->act, kernel_f32(y), kernel_f32(c->x), c->n);
}
static void run_activate_backward(void *ctx, float *dx) {
    const struct activation *c = ctx;
    kernel_activate_backward(c->act, kernel_f32(dx), kernel_f32(c->dy), kernel_f32(c->x), c->n);
}
static void run_glu(void *ctx, float *y) {
    const struct activation *c = ctx;
    kernel_glu(c->act, kernel_f32(y), kernel_f32(c->x), kernel_f32(c->up), c->n);
}
static void run_glu_backward(void *ctx, float *out) {
    const struct activation *c = ctx;
    kernel_glu_backward(c->act, kernel_f32(out), kernel_f32(out + c->n), kernel_f32(c->dy), kernel_f32(c->x),
                        kernel_f32(c->up), c->n);
}

/*
 * Error bounds of act(x) and its derivative. That of act(x) is relative: some U (the fit of erfc is right to 2 U; exp
 * to 2 U and the error of its argument x^2 / 2, some roundings of it). That of the derivative, a sum of two terms, is
 * relative to their sizes.
 */
static double act_tolerance(enum kernel_act act, double x) {
    return (12 + 3 * x * x) * U * fabs(plain64_act(act, x)) + 0x1p-126 * (1 + fabs(x));
}
static double slope_tolerance(enum kernel_act act, double x) {
    return (20 + 3 * x * x) * U *
               (fabs(plain64_act_slope(act, x)) + fabs(plain64_act(act, x)) + fabs(x) * exp(-fabs(x) / 2)) +
           0x1p-126 * (1 + fabs(x)) + (act == ACT_TANH ? 8 * U : 0);
}

static void test_activations(void **state) {
    static const double special[] = {0, 1e4, -1e4, 88, -88, 12, -12, 5, -5, 0.01, -0.01, -1e-30, 1e-30, 3, -3};
    (void)state;
    struct rng r = rng_init(41, 1);
    for (int act = 0; act < KERNEL_ACTS; act++)
        for (size_t i = 0; i < COUNT_OF(lengths); i++) {
            size_t n = lengths[i];
            struct pair x = normals(&r, n, 2), up = normals(&r, n, 1), dy = normals(&r, n, 1);
            for (size_t j = 0; j < COUNT_OF(special) && n > 40; j++) set(x, j + 3, special[j]);
            struct activation c = {(enum kernel_act)act, n, x.f, up.f, dy.f};
            double *want = take(2 * n, sizeof *want), *tolerance = take(2 * n, sizeof *tolerance);
            plain64_activate(c.act, want, x.d, n);
            for (size_t j = 0; j < n; j++) tolerance[j] = act_tolerance(c.act, x.d[j]);
            check_kernel("activation", run_activate, &c, n, NULL, want, tolerance);
            plain64_activate_backward(c.act, want, dy.d, x.d, n);
            for (size_t j = 0; j < n; j++) tolerance[j] = slope_tolerance(c.act, x.d[j]) * fabs(dy.d[j]);
            check_kernel("activation backward", run_activate_backward, &c, n, NULL, want, tolerance);
            plain64_glu(c.act, want, x.d, up.d, n);
            for (size_t j = 0; j < n; j++)
                tolerance[j] = act_tolerance(c.act, x.d[j]) * fabs(up.d[j]) + U * fabs(want[j]);
            check_kernel("gated unit", run_glu, &c, n, NULL, want, tolerance);
            memset(want, 0, 2 * n * sizeof *want);
            plain64_glu_backward(c.act, want, want + n, dy.d, x.d, up.d, n);
            for (size_t j = 0; j < n; j++) {
                tolerance[j] = slope_tolerance(c.act, x.d[j]) * fabs(dy.d[j] * up.d[j]) + 2 * U * fabs(want[j]);
                tolerance[n + j] = act_tolerance(c.act, x.d[j]) * fabs(dy.d[j]) + U * fabs(want[n + j]);
            }
            check_kernel("gated unit backward", run_glu_backward, &c, 2 * n, NULL, want, tolerance);
            arena_reset(&memory);
        }
}

/* A bf16 array must give the f32 result for the widened numbers, rounded once. */
static void test_bf16(void **state) {
    enum { N = 1500 };
    (void)state;
    struct rng r = rng_init(42, 1);
    struct pair x = normals(&r, N, 2), dy = normals(&r, N, 1);
    uint16_t *x16 = take(N, sizeof *x16), *dy16 = take(N, sizeof *dy16), *got = take(N, sizeof *got),
             *want = take(N, sizeof *want);
    float *wide = take(N, sizeof *wide);
    kernel_convert(kernel_bf16(x16), kernel_f32(x.f), N);
    kernel_convert(kernel_bf16(dy16), kernel_f32(dy.f), N);
    kernel_convert(kernel_f32(x.f), kernel_bf16(x16), N);
    kernel_convert(kernel_f32(dy.f), kernel_bf16(dy16), N);
    struct kernel_array bx = kernel_bf16(x16), bdy = kernel_bf16(dy16), to = kernel_bf16(got);
    EACH_PATH(path)
    for (int act = 0; act < KERNEL_ACTS; act++) {
        kernel_activate((enum kernel_act)act, kernel_f32(wide), kernel_f32(x.f), N);
        kernel_convert(kernel_bf16(want), kernel_f32(wide), N);
        kernel_activate((enum kernel_act)act, to, bx, N);
        assert_memory_equal(got, want, N * sizeof *want);
        kernel_activate_backward((enum kernel_act)act, kernel_f32(wide), kernel_f32(dy.f), kernel_f32(x.f), N);
        kernel_convert(kernel_bf16(want), kernel_f32(wide), N);
        kernel_activate_backward((enum kernel_act)act, to, bdy, bx, N);
        assert_memory_equal(got, want, N * sizeof *want);
    }
}

/* ---- soft caps ---- */

static void run_softcap(void *ctx, float *y) {
    const struct activation *c = ctx;
    kernel_softcap(kernel_f32(y), kernel_f32(c->x), c->n, 30);
}
static void run_softcap_backward(void *ctx, float *dx) {
    const struct activation *c = ctx;
    float *y = take(c->n, sizeof *y);
    kernel_softcap(kernel_f32(y), kernel_f32(c->x), c->n, 30);
    kernel_softcap_backward(kernel_f32(dx), kernel_f32(y), c->n, 30);
}

static void test_softcap(void **state) {
    (void)state;
    struct rng r = rng_init(43, 1);
    for (size_t i = 0; i < COUNT_OF(lengths); i++) {
        size_t n = lengths[i];
        struct pair x = normals(&r, n, 20), dx = normals(&r, n, 1);
        if (n > 2) set(x, 0, 1e-6), set(x, 1, 1e30), set(x, 2, -1e30);
        struct activation c = {.n = n, .x = x.f};
        double *y = take(n, sizeof *y), *tolerance = take(n, sizeof *tolerance);
        plain64_softcap(y, x.d, n, 30);
        for (size_t j = 0; j < n; j++) tolerance[j] = 8 * U * fabs(y[j]);
        check_kernel("softcap", run_softcap, &c, n, NULL, y, tolerance);
        for (size_t j = 0; j < n; j++) tolerance[j] = 20 * U * fabs(dx.d[j]);
        plain64_softcap_backward(dx.d, y, n, 30);
        check_kernel("softcap backward", run_softcap_backward, &c, n, dx.f, dx.d, tolerance);
        arena_reset(&memory);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_layernorm, release_memory),
        cmocka_unit_test_teardown(test_activations, release_memory),
        cmocka_unit_test_teardown(test_bf16, release_memory),
        cmocka_unit_test_teardown(test_softcap, release_memory),
    };
    return cmocka_run_group_tests_name("kernel layers", tests, NULL, NULL);
}
