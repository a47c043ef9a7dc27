/* Tests of lib/kernel: an LSTM forward and backward through time, against its f64 twin. */
#include "tests/unit/kernel_test.h"

static const uint32_t one[] = {0, 1}, few[] = {0, 7, 8, 12, 21, 24, 29},
                      many[] = {0, 3, 40, 41, 42, 60, 61, 75, 76, 80};
static const struct {
    size_t units, n_seqs;
    const uint32_t *starts;
} shapes[] = {{1, 1, one}, {5, 6, few}, {16, 9, many}, {33, 6, few}, {64, 9, many}, {100, 6, few}};

struct lstm {
    struct kernel_lstm shape;
    const float *gates[2], *w[2], *bias[2], *dy, *kept_gates[2], *kept_cells[2];
    size_t n;
};

/* out: y [n][directions][units]; then gates and cells of each direction. */
static void run_forward(void *ctx, float *out) {
    struct lstm *c = ctx;
    size_t units = c->shape.units, g = c->n * 4 * units;
    struct kernel_lstm_direction d[2];
    float *scratch = take(c->shape.directions * 4 * units * units, sizeof *scratch);
    float *y = out, *at = out + c->n * c->shape.directions * units;
    for (size_t i = 0; i < c->shape.directions; i++, at += g + c->n * units) {
        memcpy(at, c->gates[i], g * sizeof *at);
        d[i] = (struct kernel_lstm_direction){kernel_f32(at), kernel_f32(at + g), kernel_f32(c->w[i]),
                                              c->bias[i] ? kernel_f32(c->bias[i]) : kernel_none(DT_F32)};
    }
    kernel_lstm(&c->shape, kernel_f32(y), d, kernel_f32(scratch));
}

/* out: dgates of each direction */
static void run_backward(void *ctx, float *out) {
    struct lstm *c = ctx;
    size_t units = c->shape.units;
    struct kernel_lstm_direction d[2];
    struct kernel_array dgates[2];
    float *scratch = take(c->shape.directions * c->shape.n_seqs * 2 * units, sizeof *scratch);
    for (size_t i = 0; i < c->shape.directions; i++) {
        dgates[i] = kernel_f32(out + i * c->n * 4 * units);
        d[i] = (struct kernel_lstm_direction){kernel_f32(c->kept_gates[i]), kernel_f32(c->kept_cells[i]),
                                              kernel_f32(c->w[i]), kernel_none(DT_F32)};
    }
    kernel_lstm_backward(&c->shape, dgates, kernel_f32(c->dy), d, kernel_f32(scratch));
}

/* Errors come from sums of `units` products and from earlier steps: 1e-5 of the largest value of an array of many
 * such. */
static double *tolerances(const double *want, size_t n) {
    double *tolerance = take(n, sizeof *tolerance), largest = 0;
    for (size_t i = 0; i < n; i++) largest = fmax(largest, fabs(want[i]));
    for (size_t i = 0; i < n; i++) tolerance[i] = 1e-5 * largest;
    return tolerance;
}

static void check_lstm(struct rng *r, size_t units, size_t n_seqs, const uint32_t *starts, size_t directions,
                       bool bias) {
    size_t n = starts[n_seqs], all = n * directions * units * 6, back = n * directions * units * 4;
    struct lstm c = {.shape = {n_seqs, starts, units, directions}, .n = n};
    struct pair dy = normals(r, n * directions * units, 1), w[2], b[2], g[2], kept[2], cells[2];
    double *want = take(all, sizeof *want), *at = want + n * directions * units, *dgates = take(back, sizeof *dgates);
    double *dh = take(units, sizeof *dh), *dc = take(units, sizeof *dc);
    c.dy = dy.f;
    for (size_t i = 0; i < directions; i++, at += n * 5 * units) {
        g[i] = normals(r, n * 4 * units, 1);
        w[i] = normals(r, 4 * units * units, 1 / sqrt((double)units));
        b[i] = normals(r, 4 * units, 0.5);
        kept[i] = zeros(n * 4 * units);
        cells[i] = zeros(n * units);
        memcpy(at, g[i].d, n * 4 * units * sizeof *at);
        plain64_lstm(&c.shape, i, want, at, at + n * 4 * units, w[i].d, bias ? b[i].d : NULL);
        for (size_t k = 0; k < n * 4 * units; k++) set(kept[i], k, at[k]);
        for (size_t k = 0; k < n * units; k++) set(cells[i], k, at[n * 4 * units + k]);
        plain64_lstm_backward(&c.shape, i, dgates + i * n * 4 * units, dy.d, kept[i].d, cells[i].d, w[i].d, dh, dc);
        c.gates[i] = g[i].f;
        c.w[i] = w[i].f;
        c.bias[i] = bias ? b[i].f : NULL;
        c.kept_gates[i] = kept[i].f;
        c.kept_cells[i] = cells[i].f;
    }
    check_kernel("lstm", run_forward, &c, all, NULL, want, tolerances(want, all));
    check_kernel("lstm backward", run_backward, &c, back, NULL, dgates, tolerances(dgates, back));
    arena_reset(&memory);
}

static void test_lstm(void **state) {
    (void)state;
    struct rng r = rng_init(70, 1);
    for (size_t i = 0; i < COUNT_OF(shapes); i++)
        for (size_t directions = 1; directions <= 2; directions++)
            check_lstm(&r, shapes[i].units, shapes[i].n_seqs, shapes[i].starts, directions, i % 2 == 0);
}

/* A sequence must give the same bits alone and among others; so must its gradients. */
static void test_sequences_stand_alone(void **state) {
    (void)state;
    enum { UNITS = 37, N = 29, G = 4 * UNITS, Y = 2 * UNITS };
    struct rng r = rng_init(71, 1);
    struct pair g[2] = {normals(&r, N * G, 1), normals(&r, N * G, 1)}, dy = normals(&r, N * Y, 1);
    struct pair w[2] = {normals(&r, G * UNITS, 0.2), normals(&r, G * UNITS, 0.2)};
    struct lstm whole = {.shape = {6, few, UNITS, 2}, .n = N, .dy = dy.f};
    for (int i = 0; i < 2; i++) whole.gates[i] = g[i].f, whole.w[i] = w[i].f;
    float *all = take(N * (Y + 2 * (G + UNITS)), sizeof *all), *part = take(N * (Y + 2 * (G + UNITS)), sizeof *part);
    float *dall = take(N * 2 * G, sizeof *dall), *dpart = take(N * 2 * G, sizeof *dpart);
    EACH_PATH(path) {
        run_forward(&whole, all);
        for (int i = 0; i < 2; i++) {
            whole.kept_gates[i] = all + N * Y + i * N * (G + UNITS);
            whole.kept_cells[i] = whole.kept_gates[i] + N * G;
        }
        run_backward(&whole, dall);
        for (size_t s = 0; s < 6; s++) {
            uint32_t first = few[s], n = few[s + 1] - first, starts[] = {0, n};
            struct lstm alone = {.shape = {1, starts, UNITS, 2}, .n = n, .dy = dy.f + first * Y};
            for (int i = 0; i < 2; i++) alone.gates[i] = g[i].f + first * G, alone.w[i] = w[i].f;
            run_forward(&alone, part);
            assert_memory_equal(part, all + first * Y, n * Y * sizeof *part);
            for (int i = 0; i < 2; i++) {
                alone.kept_gates[i] = part + n * Y + i * n * (G + UNITS);
                alone.kept_cells[i] = alone.kept_gates[i] + n * G;
            }
            run_backward(&alone, dpart);
            for (int i = 0; i < 2; i++)
                assert_memory_equal(dpart + i * n * G, dall + i * N * G + first * G, n * G * sizeof *dpart);
        }
    }
}

/* The states before each position: zeros where a sequence begins, in either direction. */
static void test_before(void **state) {
    (void)state;
    enum { UNITS = 3, N = 12, SEQS = 3 };
    const uint32_t starts[] = {0, 7, 8, 12};
    struct kernel_lstm shape = {SEQS, starts, UNITS, 2};
    float y[N * 2 * UNITS], to[N * UNITS];
    for (size_t i = 0; i < COUNT_OF(y); i++) y[i] = (float)i + 1;
    for (size_t d = 0; d < 2; d++) {
        kernel_lstm_before(&shape, d, kernel_f32(to), kernel_f32(y));
        for (size_t s = 0; s < SEQS; s++)
            for (size_t p = starts[s]; p < starts[s + 1]; p++)
                for (size_t j = 0; j < UNITS; j++) {
                    bool begins = d ? p + 1 == starts[s + 1] : p == starts[s];
                    size_t from = d ? p + 1 : p - 1;
                    assert_true(to[p * UNITS + j] == (begins ? 0 : y[(from * 2 + d) * UNITS + j]));
                }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_lstm, release_memory),
        cmocka_unit_test_teardown(test_sequences_stand_alone, release_memory),
        cmocka_unit_test_teardown(test_before, release_memory),
    };
    return cmocka_run_group_tests_name("kernel lstm", tests, NULL, NULL);
}
