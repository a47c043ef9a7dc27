/*
 * Tests of lib/quant's GPTQ and coordinate descent: against PyTorch, against the plain twin, and by their guarantees.
 */
#include "tests/unit/kernel_test.h"

#include <stdio.h>

#include "lib/quant/second_order.h"

/* A matrix, target values and second moments of its inputs, some of which are dead. */
struct sample {
    size_t rows, cols;
    float *w, *gram, *importance;
    struct obs_factor *factor;
};

static struct sample sample(enum dtype to, size_t rows, size_t cols, uint64_t seed) {
    struct err e;
    struct rng r = rng_init(seed, to);
    struct sample s = {
        rows, cols, take(rows * cols, sizeof(float)), take(cols * cols, sizeof(float)), take(cols, sizeof(float)),
        NULL};
    size_t n = cols * 2;
    struct pair x = normals(&r, n * cols, 1);
    double *gram = take(cols * cols, sizeof *gram);
    for (size_t i = 0; i < rows * cols; i++) s.w[i] = (float)rng_normal(&r);
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < cols; c++)
            x.d[i * cols + c] = c == 5 ? 0 : (1 + (double)(c % 7)) * x.d[i * cols + c] + 2 * x.d[i * cols];
    plain64_matmul_tn(cols, cols, n, x.d, x.d, 0, gram);
    for (size_t i = 0; i < cols * cols; i++) s.gram[i] = (float)gram[i];
    for (size_t c = 0; c < cols; c++) s.importance[c] = s.gram[c * (cols + 1)] / (float)n;
    struct obs_options o = {.damp = 0.01, .act_order = seed % 2};
    assert_int_equal(obs_factor_new(&s.factor, s.gram, cols, &o, &e), 0);
    return s;
}

static unsigned char *rounded(const struct sample *s, enum dtype to) {
    struct err e;
    size_t row_bytes = dtype_row_bytes(to, s->cols);
    unsigned char *packed = take(s->rows, row_bytes);
    for (size_t r = 0; r < s->rows; r++)
        assert_int_equal(tensor_from_f32(to, s->w + r * s->cols, packed + r * row_bytes, s->cols, s->importance, &e),
                         0);
    return packed;
}

/* sum (t - q)^T H (t - q), in f64 */
static double error_of(const struct sample *s, enum dtype to, const unsigned char *packed, size_t row) {
    float *q = take(s->cols, sizeof *q);
    double sum = 0;
    tensor_to_f32(to, packed + row * dtype_row_bytes(to, s->cols), q, s->cols);
    for (size_t i = 0; i < s->cols; i++)
        for (size_t j = 0; j < s->cols; j++)
            sum += ((double)s->w[row * s->cols + i] - q[i]) * s->gram[i * s->cols + j] *
                   ((double)s->w[row * s->cols + j] - q[j]);
    return sum;
}

/* For every type with codes: no row is worse than rounding to nearest, descent is better still, and 1 and 4 threads
 * give the same bits. */
static void test_never_worse(void **state) {
    (void)state;
    const struct dtype_info *t;
    unsigned n = 0;
    for (size_t i = 0; (t = dtype_at(i)); i++) {
        struct err e;
        if (!t->is_quantized || t->read_only || !second_order_takes(t->dtype)) continue;
        n++;
        struct sample s = sample(t->dtype, 5, 256, i);
        double sums[3] = {0};
        unsigned char *nearest = rounded(&s, t->dtype), *got[3];
        for (int k = 0; k < 3; k++) {
            struct second_order how = {s.gram, s.factor, k ? 6 : 0, NULL};
            struct second_order_error error;
            parallel_set_threads(k == 1 ? 4 : 1);
            got[k] = rounded(&s, t->dtype);
            assert_int_equal(second_order_quantize(&how, t->dtype, s.w, s.rows, s.cols, got[k], &error, &e), 0);
            for (size_t row = 0; row < s.rows; row++) {
                double now = error_of(&s, t->dtype, got[k], row);
                assert_true(now <= error_of(&s, t->dtype, nearest, row) * (1 + 1e-5));
                sums[k] += now;
            }
            assert_true(fabs(sums[k] - error.after) < 1e-3 * error.after && error.after <= error.before);
        }
        assert_memory_equal(got[1], got[2], s.rows * dtype_row_bytes(t->dtype, s.cols));
        if (!(sums[1] < sums[0])) fail_msg("%s: descent leaves %g of %g", t->name, sums[1], sums[0]);
        obs_factor_free(s.factor);
    }
    parallel_set_threads(1);
    assert_true(n >= 14);
}

/* ---- against the plain twin of the feedback ---- */

static const struct grid *twin_grid;
static uint8_t *twin_codes;

static double twin_keep(size_t row, size_t col, double w) {
    const struct grid *g = twin_grid;
    size_t at = row * g->groups + col / g->form->group;
    uint8_t code = g->scales[at] == 0 ? *grid_code(g, row, col)
                                      : quant_nearest(g->form, (float)((w - g->mins[at]) / g->scales[at]));
    twin_codes[row * g->cols + col] = code;
    return grid_value(g, row, col, code);
}

static void test_plain_twin(void **state) {
    (void)state;
    static const enum dtype types[] = {DT_Q2_K, DT_Q3_K, DT_Q4_K, DT_Q5_K, DT_Q6_K, DT_Q5_1, DT_IQ4_XS};
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        struct err e;
        struct sample s = sample(types[i], 4, 256, 2 * i);
        struct grid g, after;
        size_t n = s.rows * s.cols, same = 0;
        unsigned char *packed = rounded(&s, types[i]);
        double *w = take(n, sizeof *w), *u = take(s.cols * s.cols, sizeof *u), loss[4] = {0}, before[4];
        assert_int_equal(grid_new(&g, types[i], s.rows, s.cols, &e), 0);
        assert_int_equal(grid_new(&after, types[i], s.rows, s.cols, &e), 0);
        grid_take(&g, packed);
        twin_grid = &g;
        twin_codes = take(n, 1);
        for (size_t k = 0; k < n; k++) w[k] = k % s.cols == 5 ? 0 : s.w[k]; /* the dead input */
        for (size_t k = 0; k < s.cols * s.cols; k++) u[k] = s.factor->u[k];
        plain64_feedback(w, u, s.rows, s.cols, twin_keep, loss);
        for (size_t row = 0; row < s.rows; row++) before[row] = error_of(&s, types[i], packed, row);
        struct second_order how = {s.gram, s.factor, 0, NULL};
        struct second_order_error error;
        assert_int_equal(second_order_quantize(&how, types[i], s.w, s.rows, s.cols, packed, &error, &e), 0);
        grid_take(&after, packed);
        for (size_t k = 0; k < n; k++)
            same += k % s.cols == 5 || *grid_code(&after, k / s.cols, k % s.cols) == twin_codes[k];
        for (size_t row = 0; row < s.rows; row++) assert_true(error_of(&s, types[i], packed, row) < before[row]);
        /* once f32 and f64 differ in a column, later columns may differ as well */
        if (same < n * 95 / 100) fail_msg("%s: %zu of %zu codes", dtype_info(types[i])->name, same, n);
        grid_release(&g);
        grid_release(&after);
        obs_factor_free(s.factor);
    }
}

/* ---- against the plain twin of the descent: every sum over all columns, recomputed in f64 ---- */

struct refine_twin {
    const struct sample *s;
    struct grid *g;
    size_t row;
    double *residual; /* [cols] t - q */
};

static void twin_look(struct refine_twin *t) {
    for (size_t j = 0; j < t->s->cols; j++)
        t->residual[j] =
            (double)t->s->w[t->row * t->s->cols + j] - (double)grid_value(t->g, t->row, j, *grid_code(t->g, t->row, j));
}

/* Element j of (t - q) H. */
static double twin_residual(const struct refine_twin *t, size_t j) {
    double r = 0;
    for (size_t k = 0; k < t->s->cols; k++) r += t->s->gram[j * t->s->cols + k] * t->residual[k];
    return r;
}

/* a^T H b */
static double twin_form(const struct refine_twin *t, const double *a, const double *b) {
    double sum = 0;
    for (size_t i = 0; i < t->s->cols; i++)
        for (size_t j = 0; a[i] != 0 && j < t->s->cols; j++) sum += a[i] * t->s->gram[i * t->s->cols + j] * b[j];
    return sum;
}

static double twin_error(struct refine_twin *t) {
    twin_look(t);
    return twin_form(t, t->residual, t->residual);
}

static void twin_code(struct refine_twin *t, size_t j) {
    const struct grid *g = t->g;
    size_t at = t->row * g->groups + j / g->form->group;
    uint8_t *code = grid_code(g, t->row, j), before = *code;
    double h = t->s->gram[j * (t->s->cols + 1)], r;
    if (g->scales[at] == 0 || !(h > 0)) return;
    twin_look(t);
    r = twin_residual(t, j);
    double place = ((double)grid_value(g, t->row, j, before) + r / h - (double)g->mins[at]) / (double)g->scales[at];
    *code = quant_nearest(g->form, (float)place);
    double by = (double)grid_value(g, t->row, j, *code) - (double)grid_value(g, t->row, j, before);
    if (!(2 * by * r - by * by * h > 0)) *code = before;
}

/* The least squares steps for x = s u + m v: the change of the error in these two directions. */
static void twin_solve(struct refine_twin *t, const double *u, const double *v, bool both, double step[2]) {
    twin_look(t);
    double uu = twin_form(t, u, u), uv = twin_form(t, u, v), vv = twin_form(t, v, v);
    double bu = twin_form(t, u, t->residual), bv = twin_form(t, v, t->residual), det = uu * vv - uv * uv;
    step[0] = uu > 0 ? bu / uu : 0;
    step[1] = 0;
    if (!both || !(det > 1e-9 * uu * vv)) return;
    step[0] = (bu * vv - bv * uv) / det;
    step[1] = (bv * uu - bu * uv) / det;
}

static void twin_take(struct refine_twin *t, size_t block, const struct grid_block *p) {
    t->g->stored[t->row * t->g->blocks + block] = *p;
    grid_read_scales(t->g, t->row, block);
}

/* Keeps the new scales if the error is smaller. */
static void twin_try(struct refine_twin *t, size_t block, const struct grid_block *p) {
    struct grid_block before = t->g->stored[t->row * t->g->blocks + block];
    double error = twin_error(t);
    twin_take(t, block, p);
    if (!(twin_error(t) < error)) twin_take(t, block, &before);
}

static bool twin_units(struct grid_block *p, double d, double min) {
    p->d = f32_to_f16((float)d);
    p->min = f32_to_f16((float)min);
    return isfinite(f16_to_f32(p->d)) && isfinite(f16_to_f32(p->min));
}

static double twin_clamp(double v, double low, double high) {
    return v < low ? low : v > high ? high : v;
}

/* For a group within a block: tries the scales next to the best one, each with its best min. */
static void twin_scales(struct refine_twin *t, size_t block, size_t k, const double *u, const double *v) {
    const struct quant_form *f = t->g->form;
    struct grid_block was = t->g->stored[t->row * t->g->blocks + block];
    double d = f16_to_f32(was.d), unit = f->has_min ? f16_to_f32(was.min) : 0, step[2], zero[2] = {0, 0};
    twin_solve(t, u, v, unit != 0, step);
    for (int up = 0; up <= 1; up++) {
        struct grid_block p = was;
        double at = d != 0 ? was.scales[k] + step[0] / d : was.scales[k];
        p.scales[k] = (int8_t)twin_clamp(up ? ceil(at) : floor(at), f->scale_low, f->scale_top);
        if (unit != 0) {
            struct grid_block now = t->g->stored[t->row * t->g->blocks + block], moved = p;
            twin_take(t, block, &moved);
            twin_solve(t, v, v, false, zero);
            twin_take(t, block, &now);
            p.mins[k] = (int8_t)twin_clamp(rint(was.mins[k] + zero[0] / unit), 0, f->scale_top);
        }
        twin_try(t, block, &p);
    }
}

static void twin_group(struct refine_twin *t, size_t first) {
    const struct grid *g = t->g;
    size_t block = first / g->block, len = g->form->group;
    double *u = take(t->s->cols, sizeof *u), *v = take(t->s->cols, sizeof *v), step[2];
    struct grid_block p = g->stored[t->row * g->blocks + block];
    for (size_t j = first; j < first + len; j++) u[j] = *grid_code(g, t->row, j) - g->form->offset, v[j] = 1;
    if (g->form->has_scales) {
        twin_scales(t, block, first % g->block / len, u, v);
        return;
    }
    twin_solve(t, u, v, g->form->has_min, step);
    if (twin_units(&p, f16_to_f32(p.d) + step[0], f16_to_f32(p.min) + step[1])) twin_try(t, block, &p);
}

static void twin_block(struct refine_twin *t, size_t block) {
    const struct grid *g = t->g;
    double *u = take(t->s->cols, sizeof *u), *v = take(t->s->cols, sizeof *v), step[2];
    struct grid_block p = g->stored[t->row * g->blocks + block];
    for (size_t i = 0; i < g->block; i++) {
        int code = *grid_code(g, t->row, block * g->block + i) - g->form->offset;
        u[block * g->block + i] = p.scales[i / g->form->group] * code;
        v[block * g->block + i] = g->form->has_min ? p.mins[i / g->form->group] : 0;
    }
    twin_solve(t, u, v, g->form->has_min, step);
    if (twin_units(&p, f16_to_f32(p.d) + step[0], f16_to_f32(p.min) + step[1])) twin_try(t, block, &p);
}

static void twin_sweep(struct refine_twin *t) {
    const struct grid *g = t->g;
    for (size_t j = 0; j < g->cols; j++) {
        twin_code(t, j);
        if ((j + 1) % g->form->group == 0) twin_group(t, j + 1 - g->form->group);
        if (g->form->has_scales && (j + 1) % g->block == 0) twin_block(t, j / g->block);
    }
}

/* A sweep over two spans of columns must store nearly the same, with nearly the same error. Once f32 and f64 differ
 * in one place, later places may differ as well. */
static void test_descent_twin(void **state) {
    (void)state;
    static const enum dtype types[] = {DT_Q2_K, DT_Q5_1, DT_Q3_K, DT_Q4_K, DT_Q6_K, DT_Q4_0, DT_IQ4_XS, DT_IQ4_NL};
    enum { ROWS = 1 };
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        const size_t cols = i < 2 ? 512 : 256;
        struct err e;
        struct sample s = sample(types[i], ROWS, cols, i);
        struct grid fast, plain;
        unsigned char *packed = rounded(&s, types[i]);
        float *residual = take(ROWS * cols, sizeof *residual);
        double error = 0, before = 0, after = 0, off = 0, size = 0;
        size_t same = 0, scales = 0;
        assert_int_equal(grid_new(&fast, types[i], ROWS, cols, &e), 0);
        assert_int_equal(grid_new(&plain, types[i], ROWS, cols, &e), 0);
        grid_take(&fast, packed);
        grid_take(&plain, packed);
        for (size_t row = 0; row < ROWS; row++) {
            struct refine_twin t = {&s, &plain, row, take(cols, sizeof(double))};
            before += twin_error(&t);
            for (size_t j = 0; j < cols; j++) residual[row * cols + j] = (float)twin_residual(&t, j);
            twin_sweep(&t);
            after += twin_error(&t);
        }
        assert_int_equal(grid_refine(&fast, s.gram, residual, before, 1, &e), 0);
        for (size_t row = 0; row < ROWS; row++) {
            struct refine_twin t = {&s, &fast, row, take(cols, sizeof(double))};
            error += twin_error(&t);
            for (size_t j = 0; j < cols; j++) {
                same += *grid_code(&fast, row, j) == *grid_code(&plain, row, j);
                off += fabs(twin_residual(&t, j) - residual[row * cols + j]);
                size += fabs(twin_residual(&t, j));
            }
        }
        for (size_t k = 0; k < ROWS * fast.groups; k++)
            scales += fast.scales[k] == plain.scales[k] && fast.mins[k] == plain.mins[k];
        if (same < ROWS * cols * 98 / 100 || scales < ROWS * fast.groups * 95 / 100)
            fail_msg("%s: %zu of %zu codes, %zu of %zu scales", dtype_info(types[i])->name, same, ROWS * cols, scales,
                     ROWS * fast.groups);
        assert_true(after < before && fabs(error - after) < 1e-3 * after);
        assert_true(off < 1e-4 * size); /* the residual is kept up to date */
        grid_release(&fast);
        grid_release(&plain);
        obs_factor_free(s.factor);
    }
}

/* ---- descent ends where no single code can be improved ---- */

static void test_descent_ends_in_a_minimum(void **state) {
    (void)state;
    static const enum dtype types[] = {DT_Q4_K, DT_Q3_K, DT_Q5_0};
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        struct err e;
        struct sample s = sample(types[i], 2, 256, i);
        struct grid g;
        unsigned char *packed = rounded(&s, types[i]);
        struct second_order how = {s.gram, s.factor, 200, NULL};
        struct second_order_error error;
        assert_int_equal(second_order_quantize(&how, types[i], s.w, s.rows, s.cols, packed, &error, &e), 0);
        assert_int_equal(grid_new(&g, types[i], s.rows, s.cols, &e), 0);
        grid_take(&g, packed);
        unsigned better = 0;
        for (size_t row = 0; row < s.rows; row++)
            for (size_t c = 0; c < s.cols; c++) {
                double r = 0;
                for (size_t j = 0; j < s.cols; j++)
                    r += s.gram[c * s.cols + j] *
                         ((double)s.w[row * s.cols + j] - grid_value(&g, row, j, *grid_code(&g, row, j)));
                for (int step = -1; step <= 1; step += 2) {
                    int code = *grid_code(&g, row, c) + step;
                    if (code < 0 || code > (int)g.form->code_top) continue;
                    double by =
                        (double)grid_value(&g, row, c, (uint8_t)code) - grid_value(&g, row, c, *grid_code(&g, row, c));
                    better += 2 * by * r - by * by * s.gram[c * (s.cols + 1)] > 1e-3 * error.after / (double)s.rows;
                }
            }
        /* the last sweep changed the error by less than a thousandth */
        assert_int_equal(better, 0);
        grid_release(&g);
        obs_factor_free(s.factor);
    }
}

/* ---- against PyTorch ---- */

static float *golden(const char *name, size_t n) {
    char path[128];
    float *x = take(n, sizeof *x);
    snprintf(path, sizeof path, "tests/golden/quant/gptq-%s.f32", name);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fread(x, sizeof *x, n, f), n);
    fclose(f);
    return x;
}

static void test_torch(void **state) {
    (void)state;
    enum { ROWS = 6, COLS = 96 };
    struct err e;
    float *w = golden("weights", (size_t)ROWS * COLS), *gram = golden("gram", (size_t)COLS * COLS);
    float *want = golden("values", (size_t)ROWS * COLS), got[ROWS * COLS];
    unsigned char *packed = take(dtype_row_bytes(DT_Q4_0, (uint64_t)ROWS * COLS), 1);
    struct obs_options o = {.damp = 0.01, .act_order = true};
    struct obs_factor *f;
    assert_int_equal(obs_factor_new(&f, gram, COLS, &o, &e), 0);
    assert_int_equal(tensor_from_f32(DT_Q4_0, w, packed, (uint64_t)ROWS * COLS, NULL, &e), 0);
    struct second_order how = {gram, f, 0};
    struct second_order_error error;
    assert_int_equal(second_order_quantize(&how, DT_Q4_0, w, ROWS, COLS, packed, &error, &e), 0);
    tensor_to_f32(DT_Q4_0, packed, got, (uint64_t)ROWS * COLS);
    for (size_t i = 0; i < COUNT_OF(got); i++) assert_true(got[i] == want[i]); /* whatever the sign of a zero */
    obs_factor_free(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_never_worse, release_memory),
        cmocka_unit_test_teardown(test_plain_twin, release_memory),
        cmocka_unit_test_teardown(test_descent_twin, release_memory),
        cmocka_unit_test_teardown(test_descent_ends_in_a_minimum, release_memory),
        cmocka_unit_test_teardown(test_torch, release_memory),
    };
    return cmocka_run_group_tests_name("second order", tests, NULL, NULL);
}
