/*
 * Tests of lib/kernel: routing to experts, gathering and scattering their rows, gates of rows, against the f64 twins.
 */
#include "tests/unit/kernel_test.h"

static const size_t shapes[][3] = {{1, 1, 1},   {3, 5, 2},    {40, 8, 8},   {7, 60, 4},
                                   {33, 64, 8}, {500, 16, 3}, {2, 4096, 8}, {700, 128, 1}}; /* rows, experts, k */

/* ---- routing ---- */

struct route {
    size_t rows, experts, k;
    bool normalise;
    const float *logits, *probs, *dweights;
    uint32_t *ids;
};

/* out: probs [rows][experts], weights [rows][k] */
static void run_route(void *ctx, float *out) {
    const struct route *c = ctx;
    kernel_route(kernel_f32(out), c->ids, kernel_f32(out + c->rows * c->experts), kernel_f32(c->logits), c->rows,
                 c->experts, c->k, c->normalise);
}

static void run_route_backward(void *ctx, float *out) {
    const struct route *c = ctx;
    kernel_route_backward(kernel_f32(out), kernel_f32(c->dweights), c->ids, kernel_f32(c->probs), c->rows, c->experts,
                          c->k, c->normalise);
}

static void check_route(struct rng *r, size_t rows, size_t experts, size_t k, bool normalise) {
    size_t n = rows * experts, chosen = rows * k;
    struct pair x = normals(r, n, 3), dw = normals(r, chosen, 1), p = zeros(n);
    uint32_t *ids = take(chosen, sizeof *ids), *want_ids = take(chosen, sizeof *want_ids);
    double *want = take(n + chosen, sizeof *want), *tolerance = take(n + chosen, sizeof *tolerance);
    struct route c = {rows, experts, k, normalise, x.f, p.f, dw.f, ids};
    plain64_route(want, want_ids, want + n, x.d, rows, experts, k, normalise);
    /* exp of an argument with a relative error of U, at most about 30 here */
    for (size_t i = 0; i < n + chosen; i++) tolerance[i] = 64 * U * want[i] + 0x1p-126;
    check_kernel("routing", run_route, &c, n + chosen, NULL, want, tolerance);
    assert_memory_equal(ids, want_ids, chosen * sizeof *ids);

    for (size_t i = 0; i < n; i++) set(p, i, want[i]);
    plain64_route_backward(want, dw.d, ids, p.d, rows, experts, k, normalise);
    for (size_t i = 0; i < n; i++) {
        double sum = 1, terms = 0;
        const uint32_t *of = ids + i / experts * k;
        if (normalise) sum = 0;
        for (size_t j = 0; j < k && normalise; j++) sum += p.d[i / experts * experts + of[j]];
        for (size_t j = 0; j < k; j++) terms += fabs(dw.d[i / experts * k + j]);
        tolerance[i] = 16 * U * p.d[i] * terms / sum + 0x1p-126;
    }
    check_kernel("routing backward", run_route_backward, &c, n, NULL, want, tolerance);
    arena_reset(&memory);
}

static void test_routing(void **state) {
    (void)state;
    struct rng r = rng_init(50, 1);
    for (size_t i = 0; i < COUNT_OF(shapes); i++)
        for (int normalise = 0; normalise < 2; normalise++)
            check_route(&r, shapes[i][0], shapes[i][1], shapes[i][2], normalise);
}

/* Of equal scores the first are taken; NaN scores still give valid expert ids. */
static void test_ties(void **state) {
    (void)state;
    float logits[] = {1, 2, 2, 2, 0, 2, /* */ 0, 0, 0, 0, 0, 0, /* */ NAN, NAN, NAN, NAN, NAN, NAN}, probs[18],
          weights[9];
    uint32_t ids[9];
    kernel_route(kernel_f32(probs), ids, kernel_f32(weights), kernel_f32(logits), 3, 6, 3, false);
    assert_memory_equal(ids, ((uint32_t[]){1, 2, 3, 0, 1, 2}), 6 * sizeof *ids);
    for (size_t i = 6; i < 9; i++) assert_true(ids[i] < 6);
}

/* A stable sort: every element once, ascending within an expert. */
static void test_grouping(void **state) {
    (void)state;
    struct rng r = rng_init(51, 1);
    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        size_t n = shapes[i][0], experts = shapes[i][1], k = shapes[i][2];
        uint32_t *ids = take(n * k, sizeof *ids), *starts = take(experts + 1, sizeof *starts);
        uint32_t *slots = take(n * k, sizeof *slots), *rows = take(n * k, sizeof *rows), at = 0;
        for (size_t j = 0; j < n * k; j++) ids[j] = (uint32_t)rng_below(&r, (uint32_t)experts);
        kernel_group(starts, slots, rows, ids, n, k, experts);
        for (size_t e = 0; e < experts; e++) {
            assert_int_equal(starts[e], at);
            for (uint32_t j = 0; j < n * k; j++) {
                if (ids[j] != e) continue;
                assert_int_equal(slots[at], j);
                assert_int_equal(rows[at++], j / k);
            }
        }
        assert_int_equal(starts[experts], n * k);
        arena_reset(&memory);
    }
}

/* ---- rows ---- */

struct moving {
    size_t n, rows, d;
    const float *x, *dy, *weights;
    const uint32_t *slots, *to;
};

static void run_scatter(void *ctx, float *y) {
    const struct moving *c = ctx;
    kernel_scatter_weighted(kernel_f32(y), kernel_f32(c->x), kernel_f32(c->weights), c->slots, c->to, c->n, c->d);
}

/* out: dx [n][d], dweights [rows] */
static void run_scatter_backward(void *ctx, float *out) {
    const struct moving *c = ctx;
    kernel_scatter_weighted_backward(kernel_f32(out), kernel_f32(out + c->n * c->d), kernel_f32(c->dy),
                                     kernel_f32(c->x), kernel_f32(c->weights), c->slots, c->to, c->n, c->d);
}

static void run_gather(void *ctx, float *y) {
    const struct moving *c = ctx;
    kernel_gather_rows(kernel_f32(y), kernel_f32(c->dy), c->to, c->n, c->d);
}

/* Uses every third row; the weights are indexed in reverse order. */
static void check_rows(struct rng *r, size_t rows, size_t d) {
    size_t n = (rows + 2) / 3;
    struct pair x = normals(r, n * d, 1), y = normals(r, rows * d, 1), w = normals(r, rows, 1);
    uint32_t *to = take(n, sizeof *to), *slots = take(n, sizeof *slots);
    double *want = take(rows * d + rows, sizeof *want), *tolerance = take(rows * d + rows, sizeof *tolerance);
    for (size_t i = 0; i < n; i++) {
        to[i] = (uint32_t)(3 * i);
        slots[i] = (uint32_t)(n - 1 - i);
    }
    struct moving c = {n, rows, d, x.f, y.f, w.f, slots, to};
    for (size_t i = 0; i < n * d; i++) want[i] = y.d[to[i / d] * d + i % d], tolerance[i] = 0;
    check_kernel("rows", run_gather, &c, n * d, NULL, want, tolerance);
    plain64_scatter_weighted_backward(want, want + n * d, y.d, x.d, w.d, slots, to, n, d);
    for (size_t i = 0; i < n * d; i++) tolerance[i] = U * fabs(want[i]);
    for (size_t i = 0; i < n; i++) {
        tolerance[n * d + slots[i]] = 0x1p-126;
        for (size_t j = 0; j < d; j++) tolerance[n * d + slots[i]] += 2 * U * fabs(x.d[i * d + j] * y.d[to[i] * d + j]);
    }
    check_kernel("weighted rows backward", run_scatter_backward, &c, n * d + n, NULL, want, tolerance);
    for (size_t i = 0; i < rows * d; i++) want[i] = y.d[i];
    plain64_scatter_weighted(want, x.d, w.d, slots, to, n, d);
    for (size_t i = 0; i < rows * d; i++) tolerance[i] = 3 * U * (fabs(want[i]) + 2 * fabs(y.d[i]));
    check_kernel("weighted rows", run_scatter, &c, rows * d, y.f, want, tolerance);
    arena_reset(&memory);
}

static void test_rows(void **state) {
    (void)state;
    struct rng r = rng_init(52, 1);
    check_rows(&r, 1, 1);
    check_rows(&r, 7, 33);
    check_rows(&r, 100, 768);
    check_rows(&r, 5, 2500);
    check_rows(&r, 3000, 24);
}

/* ---- gates ---- */

struct gates {
    size_t rows, d;
    const float *x, *dy, *gate;
};

static void run_gate(void *ctx, float *y) {
    const struct gates *c = ctx;
    kernel_gate_rows(kernel_f32(y), kernel_f32(c->x), kernel_f32(c->gate), c->rows, c->d);
}

/* out: dx [rows][d], dgate [rows] */
static void run_gate_backward(void *ctx, float *out) {
    const struct gates *c = ctx;
    kernel_gate_rows_backward(kernel_f32(out), kernel_f32(out + c->rows * c->d), kernel_f32(c->dy), kernel_f32(c->x),
                              kernel_f32(c->gate), c->rows, c->d);
}

static void test_gates(void **state) {
    static const size_t sizes[][2] = {{1, 1}, {5, 33}, {40, 576}, {3, 2500}, {2000, 16}};
    (void)state;
    struct rng r = rng_init(53, 1);
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        size_t rows = sizes[i][0], d = sizes[i][1], n = rows * d;
        struct pair x = normals(&r, n, 1), dy = normals(&r, n, 1), gate = normals(&r, rows, 3);
        struct gates c = {rows, d, x.f, dy.f, gate.f};
        double *want = take(n + rows, sizeof *want), *tolerance = take(n + rows, sizeof *tolerance);
        if (rows > 2) set(gate, 1, 100), set(gate, 2, -80);
        plain64_gate_rows(want, x.d, gate.d, rows, d);
        /* the exponential has the relative error U of its argument */
        for (size_t j = 0; j < n; j++) tolerance[j] = (8 + fabs(gate.d[j / d])) * U * fabs(want[j]) + 0x1p-126;
        check_kernel("gates of rows", run_gate, &c, n, NULL, want, tolerance);
        plain64_gate_rows_backward(want, want + n, dy.d, x.d, gate.d, rows, d);
        for (size_t j = 0; j < n; j++) tolerance[j] = (8 + fabs(gate.d[j / d])) * U * fabs(want[j]) + 0x1p-126;
        for (size_t j = 0; j < rows; j++) {
            double sum = 0, s = 1 / (1 + exp(-gate.d[j])), scale = (16 + 2 * fabs(gate.d[j])) * U;
            for (size_t k = j * d; k < (j + 1) * d; k++) sum += fabs(x.d[k] * dy.d[k]);
            tolerance[n + j] = sum * (scale * s * (1 - s) + 2 * U * s) + 0x1p-126;
        }
        check_kernel("gates of rows backward", run_gate_backward, &c, n + rows, NULL, want, tolerance);
        arena_reset(&memory);
    }
}

/* A bf16 array must give the f32 result for the widened numbers, rounded once. */
static void test_bf16(void **state) {
    enum { N = 3, D = 1500 };
    (void)state;
    struct rng r = rng_init(54, 1);
    struct pair x = normals(&r, N * D, 1), y = normals(&r, N * D, 1), w = normals(&r, N, 1);
    uint16_t *x16 = take(N * D, sizeof *x16), *y16 = take(N * D, sizeof *y16), *got = take(N * D, sizeof *got),
             *want = take(N * D, sizeof *want);
    float *wide = take(N * D, sizeof *wide), *sum = copy_f32(y.f, N * D), *other = copy_f32(y.f, N * D), dw[N], dw2[N];
    const uint32_t slots[N] = {2, 0, 1}, rows[N] = {0, 2, 1};
    kernel_convert(kernel_bf16(x16), kernel_f32(x.f), N * D);
    kernel_convert(kernel_f32(x.f), kernel_bf16(x16), N * D);
    kernel_convert(kernel_bf16(y16), kernel_f32(y.f), N * D);
    struct kernel_array bx = kernel_bf16(x16), by = kernel_bf16(y16), to = kernel_bf16(got), weights = kernel_f32(w.f);
    EACH_PATH(path) {
        kernel_scatter_weighted(kernel_f32(sum), bx, weights, slots, rows, N, D);
        kernel_scatter_weighted(kernel_f32(other), kernel_f32(x.f), weights, slots, rows, N, D);
        assert_memory_equal(sum, other, N * D * sizeof *sum);
        kernel_scatter_weighted_backward(to, kernel_f32(dw), kernel_f32(y.f), bx, weights, slots, rows, N, D);
        kernel_scatter_weighted_backward(kernel_f32(wide), kernel_f32(dw2), kernel_f32(y.f), kernel_f32(x.f), weights,
                                         slots, rows, N, D);
        kernel_convert(kernel_bf16(want), kernel_f32(wide), N * D);
        assert_memory_equal(got, want, N * D * sizeof *got);
        assert_memory_equal(dw, dw2, sizeof dw);
        kernel_gate_rows(to, bx, weights, N, D);
        kernel_gate_rows(kernel_f32(wide), kernel_f32(x.f), weights, N, D);
        kernel_convert(kernel_bf16(want), kernel_f32(wide), N * D);
        assert_memory_equal(got, want, N * D * sizeof *got);
        kernel_gather_rows(to, by, rows, N, D);
        for (size_t i = 0; i < N; i++) assert_memory_equal(got + i * D, y16 + rows[i] * D, D * sizeof *got);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_routing, release_memory),  cmocka_unit_test_teardown(test_ties, release_memory),
        cmocka_unit_test_teardown(test_grouping, release_memory), cmocka_unit_test_teardown(test_rows, release_memory),
        cmocka_unit_test_teardown(test_gates, release_memory),    cmocka_unit_test_teardown(test_bf16, release_memory),
    };
    return cmocka_run_group_tests_name("kernel experts", tests, NULL, NULL);
}
