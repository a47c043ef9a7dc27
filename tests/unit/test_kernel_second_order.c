/* Tests of lib/kernel: Gram matrices, the factor of an inverse, error feedback over columns. */
#include <stdlib.h>

#include "tests/unit/kernel_test.h"

/* h = x^T x of `rows` random rows with correlated columns, plus `damp` on the diagonal. */
static struct pair gram(struct rng *r, size_t n, size_t rows, double damp) {
    struct pair x = normals(r, rows * n, 1), h = zeros(n * n);
    for (size_t i = 0; i < rows; i++)
        for (size_t c = 1; c < n; c++) set(x, i * n + c, x.d[i * n + c] + 0.7 * x.d[i * n + c - 1]);
    plain64_matmul_tn(n, n, rows, x.d, x.d, 0, h.d);
    for (size_t i = 0; i < n * n; i++) set(h, i, h.d[i] + (i % (n + 1) == 0 ? damp * (double)rows : 0));
    return h;
}

/* ---- Gram matrices ---- */

struct half {
    size_t n, rows;
    float beta;
    const float *x, *c;
};

static void run_gram(void *ctx, float *c) {
    const struct half *h = ctx;
    memcpy(c, h->c, h->n * h->n * sizeof *c);
    kernel_gram(h->n, h->rows, h->x, h->beta, c);
    kernel_mirror(h->n, c);
}

/* Compared with the textbook product of whole matrices, and bit for bit with the kernel's own product. */
static void test_gram(void **state) {
    static const size_t sizes[][2] = {{1, 1}, {7, 3}, {126, 20}, {127, 600}, {128, 1}, {300, 77}, {513, 33}};
    (void)state;
    struct rng r = rng_init(8, 1);
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        size_t n = sizes[i][0], rows = sizes[i][1];
        struct pair x = normals(&r, rows * n, 1), c = gram(&r, n, 3, 0);
        double *tolerance = take(n * n, sizeof *tolerance);
        float *whole = take(n * n, sizeof *whole), *half = take(n * n, sizeof *half);
        struct half h = {n, rows, i % 2 ? 1 : 0.5f, x.f, c.f};
        for (size_t k = 0; k < n * n; k++) set(c, k, (double)c.f[k / n < k % n ? k : k % n * n + k / n]);
        EACH_PATH(path) {
            run_gram(&h, half);
            memcpy(whole, c.f, n * n * sizeof *whole);
            kernel_matmul_tn(n, n, rows, kernel_f32(x.f), kernel_f32(x.f), h.beta, kernel_f32(whole));
            for (size_t k = 0; k < n * n; k++)
                if (k / n <= k % n) assert_memory_equal(&half[k], &whole[k], sizeof *half);
        }
        plain64_matmul_tn(n, n, rows, x.d, x.d, h.beta, c.d);
        for (size_t k = 0; k < n * n; k++)
            tolerance[k] = 4 * U * (double)(rows + 8) * (1 + sqrt(fabs(c.d[k / n * (n + 1)] * c.d[k % n * (n + 1)])));
        check_kernel("gram", run_gram, &h, n * n, NULL, c.d, tolerance);
        arena_reset(&memory);
    }
}

/* ---- Gram matrices in 16 bits ---- */

/* The definition: values are rounded to multiples of the scale, summed exactly, and multiplied by both scales. */
static float product16(const struct kernel_rows16 *a, size_t i, const float *x, const struct kernel_rows16 *b, size_t j,
                       const float *y, float c) {
    int64_t sum = 0;
    for (size_t r = 0; r < a->rows; r++) {
        float p = a->scale[i] > 0 ? x[r * a->n + i] * (1 / a->scale[i]) : 0;
        float q = b->scale[j] > 0 ? y[r * b->n + j] * (1 / b->scale[j]) : 0;
        assert_true(fabsf(p) < 32767.5f && fabsf(q) < 32767.5f);
        sum += (int64_t)lrintf(p) * lrintf(q);
    }
    assert_true(llabs(sum) <= INT32_MAX);
    return c + (float)sum * (a->scale[i] * b->scale[j]);
}

/* Compares both products bit for bit; a NaN must stay in its column. */
static void check_products16(float *x, size_t n, const float *y, size_t m, size_t rows) {
    float *gram16 = take(n * n, sizeof *gram16), *c = take(n * m, sizeof *c);
    struct kernel_rows16 a = kernel_rows16_in(take(kernel_rows16_bytes(n), 1), n),
                         b = kernel_rows16_in(take(kernel_rows16_bytes(m), 1), m);
    for (size_t k = 0; k < n * n; k++) gram16[k] = 2;
    for (size_t k = 0; k < n * m; k++) c[k] = 3;
    kernel_rows16_take(&a, rows, kernel_f32(x), NULL);
    kernel_rows16_take(&b, rows, kernel_f32(y), NULL);
    kernel_gram16(&a, gram16);
    kernel_product16(&a, &b, c);
    for (size_t k = 0; k < n; k++)
        for (size_t l = k; l < n; l++) {
            float want = product16(&a, k, x, &a, l, x, 2);
            assert_memory_equal(&gram16[k * n + l], &want, sizeof want);
        }
    for (size_t k = 0; k < n; k++)
        for (size_t l = 0; l < m; l++) {
            float want = product16(&a, k, x, &b, l, y, 3);
            assert_memory_equal(&c[k * m + l], &want, sizeof want);
        }
    /* against f64: half a scale is 1 / 92400 of the norm, for each column separately */
    for (size_t k = 0; k + 1 < n; k++) {
        double sum = 0;
        for (size_t l = 0; l < rows; l++) sum += (double)x[l * n + k] * x[l * n + k];
        assert_true(fabs(gram16[k * (n + 1)] - 2 - sum) <= sum * sqrt((double)rows) / 46200 + 1e-5 * sum + 1e-6);
    }
    float first = x[0];
    x[0] = NAN;
    kernel_rows16_take(&a, rows, kernel_f32(x), NULL);
    kernel_gram16(&a, gram16);
    assert_true(isnan(gram16[0]) && (n == 1 || (isnan(gram16[1]) && isfinite(gram16[n + 1]))));
    x[0] = first;
}

/* Values as an array of a kernel, and in f32. */
struct values {
    struct kernel_array array;
    const float *f;
};

static struct values as_f32(const struct pair *x) {
    return (struct values){kernel_f32(x->f), x->f};
}

static struct values as_bf16(const struct pair *x) {
    uint16_t *rounded = take(x->n, sizeof *rounded);
    float *f = take(x->n, sizeof *f);
    for (size_t k = 0; k < x->n; k++) f[k] = bf16_to_f32(rounded[k] = f32_to_bf16(x->f[k]));
    return (struct values){kernel_bf16(rounded), f};
}

/* Rows in bf16 and with factors: the words and scales of the same values in f32. */
static void check_rows16(const struct pair *x, size_t n, size_t rows) {
    const struct values values[] = {as_f32(x), as_bf16(x)};
    float *by = take(rows, sizeof *by), *scaled = take(rows * n, sizeof *scaled);
    size_t bytes = kernel_rows16_bytes(n);
    void *want = take(bytes, 1), *got = take(bytes, 1);
    struct kernel_rows16 a = kernel_rows16_in(want, n), b = kernel_rows16_in(got, n);
    for (size_t r = 0; r < rows; r++) by[r] = r % 3 ? 1 : 0.375f + (float)r / 999;
    for (int t = 0; t < 2; t++) {
        for (size_t k = 0; k < rows * n; k++) scaled[k] = by[k / n] * values[t].f[k];
        kernel_rows16_take(&a, rows, kernel_f32(values[t].f), NULL);
        kernel_rows16_take(&b, rows, values[t].array, NULL);
        assert_memory_equal(got, want, bytes);
        kernel_rows16_take(&a, rows, kernel_f32(scaled), NULL);
        kernel_rows16_take(&b, rows, values[t].array, by);
        assert_memory_equal(got, want, bytes);
    }
}

static void test_products16(void **state) {
    static const size_t sizes[][3] = {{1, 1, 1}, {33, 70, 17}, {96, 31, 1024}, {40, 64, 999}};
    (void)state;
    struct rng r = rng_init(9, 1);
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        size_t n = sizes[i][0], m = sizes[i][1], rows = sizes[i][2];
        struct pair x = normals(&r, rows * n, 1), y = normals(&r, rows * m, 1e-3);
        for (size_t k = 0; k < rows; k++) x.f[k * n] = 5; /* as large a norm as the largest element allows */
        x.f[rows / 2 * n + n - 1] = 3e6f;                 /* a single large element */
        for (size_t k = 0; m > 1 && k < rows; k++) y.f[k * m + 1] = k % 3 ? 0 : 1e-39f; /* almost zero */
        EACH_PATH(path) {
            for (int threads = 1; kernel_has_rows16() && threads <= 4; threads += 3) {
                parallel_set_threads(threads);
                check_products16(x.f, n, y.f, m, rows);
                check_rows16(&x, n, rows);
            }
        }
        parallel_set_threads(parallel_default_threads());
        arena_reset(&memory);
    }
}

/* Products with a triangular matrix against the textbook loop; zeros that are skipped change no sum. */
static void test_triangular_products(void **state) {
    static const size_t sizes[][2] = {{1, 1}, {3, 70}, {130, 33}, {520, 410}};
    (void)state;
    struct rng r = rng_init(11, 1);
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        size_t m = sizes[i][0], n = sizes[i][1];
        struct pair a = normals(&r, m * n, 1), u = normals(&r, n * n, 1);
        float *c = take(m * n, sizeof *c), *t = take(m * n, sizeof *t);
        for (size_t j = 0; j < n * n; j++)
            if (j % n < j / n) u.f[j] = 0;
        EACH_PATH(path) {
            for (size_t j = 0; j < m * n; j++) c[j] = t[j] = NAN; /* overwritten */
            kernel_upper_nn(m, n, a.f, u.f, c);
            kernel_upper_nt(m, n, a.f, u.f, t);
            for (size_t j = 0; j < m * n; j++) {
                double nn = 0, nt = 0, terms = 0;
                for (size_t k = 0; k < n; k++) {
                    double x = a.f[j / n * n + k], right = u.f[k * n + j % n], left = u.f[j % n * n + k];
                    nn += x * right;
                    nt += x * left;
                    terms += fabs(x) * (fabs(right) + fabs(left));
                }
                assert_true(fabs(c[j] - nn) <= (double)(n + 1) * U * terms);
                assert_true(fabs(t[j] - nt) <= (double)(n + 1) * U * terms);
            }
        }
        arena_reset(&memory);
    }
}

/* A vector times a matrix has a path of its own. */
static void test_one_row(void **state) {
    static const size_t sizes[][2] = {{1, 1}, {5, 7}, {32, 256}, {3, 2100}};
    (void)state;
    struct rng r = rng_init(12, 1);
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        size_t k = sizes[i][0], n = sizes[i][1];
        struct pair a = normals(&r, k, 1), b = normals(&r, k * n, 1), before = normals(&r, n, 1);
        float *c = take(n, sizeof *c);
        static const float betas[] = {0, 1, -0.5f};
        EACH_PATH(path) {
            for (size_t which = 0; which < COUNT_OF(betas); which++) {
                for (size_t j = 0; j < n; j++) c[j] = which ? before.f[j] : NAN;
                kernel_matmul_nn(1, n, k, kernel_f32(a.f), kernel_f32(b.f), betas[which], kernel_f32(c));
                for (size_t j = 0; j < n; j++) {
                    double want = which ? betas[which] * before.f[j] : 0, terms = fabs(want);
                    for (size_t l = 0; l < k; l++) {
                        want += (double)a.f[l] * b.f[l * n + j];
                        terms += fabs((double)a.f[l] * b.f[l * n + j]);
                    }
                    assert_true(fabs(c[j] - want) <= (double)(k + 2) * U * terms);
                }
            }
        }
        arena_reset(&memory);
    }
}

/* A row is scaled only if it is too long, and its difference with it; only what is asked for is written. */
static void check_bounded_rows(const struct values *x, const struct values *other, double most, size_t rows, size_t d) {
    struct kernel_array a = x->array, b = other->array;
    float *by = take(rows, sizeof *by), *y = take(rows * d, sizeof *y), *diff = take(rows * d, sizeof *diff);
    kernel_bound_rows(by, y, diff, a, b, most, rows, d);
    for (size_t i = 0; i < rows; i++) {
        double square = 0;
        for (size_t k = i * d; k < (i + 1) * d; k++) square += (double)x->f[k] * x->f[k];
        double want = square > most ? sqrt(most / square) : 1;
        assert_true(fabs(by[i] - want) <= (want == 1 ? 0 : 1e-6 * want));
        for (size_t k = i * d; k < (i + 1) * d; k++) {
            assert_true(y[k] == by[i] * x->f[k] && diff[k] == by[i] * (other->f[k] - x->f[k]));
        }
    }
    float want = by[5];
    by[5] = y[0] = diff[0] = 0;
    kernel_bound_rows(by, NULL, diff, a, b, most, rows, d);
    assert_true(by[5] == want && y[0] == 0 && diff[1] != 0);
    diff[1] = 0;
    kernel_bound_rows(by, y, NULL, a, kernel_none(DT_F32), most, rows, d);
    assert_true(y[0] != 0 && diff[1] == 0);
    kernel_bound_rows(by, NULL, NULL, a, kernel_none(DT_F32), most, rows, d);
}

static void test_bounded_rows(void **state) {
    (void)state;
    struct rng r = rng_init(10, 1);
    size_t rows = 301, d = 1067; /* more than are widened at once */
    struct pair x = normals(&r, rows * d, 1), other = normals(&r, rows * d, 1);
    for (size_t k = 0; k < d; k++) x.f[5 * d + k] *= 100, x.f[300 * d + k] = 0;
    struct values a[] = {as_f32(&x), as_bf16(&x)}, b[] = {as_f32(&other), as_bf16(&other)};
    for (int bounded = 0; bounded < 2; bounded++) {
        double most = bounded ? (double)d : INFINITY;
        EACH_PATH(path) {
            for (int t = 0; t < 2; t++) check_bounded_rows(&a[t], &b[t], most, rows, d);
        }
    }
    arena_reset(&memory);
}

struct factor {
    size_t n;
    const float *h;
};

static void run_factor(void *ctx, float *u) {
    const struct factor *f = ctx;
    size_t at;
    assert_true(kernel_inverse_factor(u, copy_f32(f->h, f->n * f->n), f->n, &at));
}

/* The condition of h in the Frobenius norm, times n U, bounds the relative error of the factor (Higham 2002, theorem
 * 10.3). */
static void check_factor(struct rng *r, size_t n) {
    struct pair h = gram(r, n, 2 * n + 3, 0.05), u = zeros(n * n);
    double *scratch = take(n * n, sizeof *scratch), *tolerance = take(n * n, sizeof *tolerance), norm = 0;
    plain64_inverse_factor(u.d, h.d, n, scratch);
    for (size_t i = 0; i < n * n; i++) norm = fmax(norm, fabs(u.d[i]));
    for (size_t i = 0; i < n * n; i++) tolerance[i] = 400 * U * norm;
    /* the definition: u h u^T = 1 for u^T u = h^-1 */
    double *uh = take(n * n, sizeof *uh), *one = take(n * n, sizeof *one);
    plain64_matmul_nn(n, n, n, u.d, h.d, 0, uh);
    plain64_matmul_nt(n, n, n, uh, u.d, 0, one);
    for (size_t i = 0; i < n * n; i++) assert_true(fabs(one[i] - (i % (n + 1) == 0)) < 1e-9);
    struct factor f = {n, h.f};
    check_kernel("inverse_factor", run_factor, &f, n * n, NULL, u.d, tolerance);
}

static void test_inverse_factor(void **state) {
    static const size_t sizes[] = {1, 2, 7, 63, 64, 65, 130, 200};
    (void)state;
    struct rng r = rng_init(5, 1);
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        check_factor(&r, sizes[i]);
        arena_reset(&memory);
    }
}

/* If h is not positive definite, the function reports the column and never divides by zero. */
static void test_no_factor(void **state) {
    (void)state;
    size_t at = 0, n = 70;
    struct rng r = rng_init(6, 1);
    float *u = take(n * n, sizeof *u);
    EACH_PATH(path) {
        float *h = copy_f32(gram(&r, n, n, 1).f, n * n);
        h[66 * n + 66] = 0;
        assert_false(kernel_inverse_factor(u, h, n, &at));
        assert_int_equal(at, 66);
        h = copy_f32(gram(&r, n, n, 1).f, n * n);
        h[3 * n + 3] = NAN;
        assert_false(kernel_inverse_factor(u, h, n, &at));
        assert_int_equal(at, 3);
        h[3 * n + 3] = INFINITY;
        assert_false(kernel_inverse_factor(u, h, n, &at));
    }
}

/* ---- error feedback ---- */

/* A quantizer without discontinuities, so that rounding errors cannot flip a decision: of seven values, two become
 * 0, two are halved, the rest are kept. */
static double keep64(size_t row, size_t col, double w) {
    size_t which = (row * 3 + col) % 7;
    return which < 2 ? 0 : which < 4 ? w / 2 : w;
}

struct feedback {
    struct kernel_feedback how;
    const float *w;
    float *scratch;
    double *loss;
    size_t began; /* columns passed to `begin`, times rows */
};

static void begin(void *ctx, size_t first, size_t n, const float *w) {
    struct feedback *f = ctx;
    (void)w;
    assert_int_equal(first * f->how.rows, f->began);
    f->began += n * f->how.rows;
}

static void decide(void *ctx, size_t column, size_t left, size_t row, size_t n, const float *w, float *kept) {
    const struct feedback *f = ctx;
    assert_int_equal(left, smaller(f->how.cols, (column / f->how.block + 1) * f->how.block) - column);
    for (size_t i = 0; i < n; i++) kept[i] = (float)keep64(row + i, column, w[i]);
}

static void run_feedback(void *ctx, float *w) {
    struct feedback *f = ctx;
    f->how.ctx = f;
    f->began = 0;
    memcpy(w, f->w, f->how.rows * f->how.cols * sizeof *w);
    memset(f->loss, 0, f->how.rows * sizeof *f->loss);
    kernel_feedback(&f->how, w, f->scratch, f->loss);
    assert_int_equal(f->began, f->how.rows * f->how.cols);
}

static void check_feedback(struct rng *r, size_t rows, size_t cols, size_t block) {
    struct pair h = gram(r, cols, cols + 5, 0.1), w = normals(r, rows * cols, 1), u = zeros(cols * cols);
    double *scratch = take(cols * cols, sizeof *scratch), *loss = take(rows, sizeof *loss);
    double *want = take(rows * cols, sizeof *want), *tolerance = take(rows * cols, sizeof *tolerance), most = 0;
    float *turned = take(rows * cols, sizeof *turned);
    plain64_inverse_factor(u.d, h.d, cols, scratch);
    for (size_t i = 0; i < cols * cols; i++) set(u, i, u.d[i]);
    kernel_transpose(turned, w.f, rows, cols);
    for (size_t i = 0; i < rows * cols; i++) assert_true(turned[i % cols * rows + i / cols] == w.f[i]);
    plain64_feedback(w.d, u.d, rows, cols, keep64, loss);
    for (size_t i = 0; i < rows * cols; i++) most = fmax(most, fabs(w.d[i]));
    for (size_t i = 0; i < rows * cols; i++) {
        want[i % cols * rows + i / cols] = w.d[i];
        tolerance[i] = 100 * U * most;
    }
    struct feedback f = {.how = {rows, cols, u.f, block, begin, decide, NULL}, .w = turned};
    f.scratch = take(block * rows, sizeof *f.scratch);
    f.loss = take(rows, sizeof *f.loss);
    check_kernel("feedback", run_feedback, &f, rows * cols, NULL, want, tolerance);
    for (size_t i = 0; i < rows; i++) assert_true(fabs(f.loss[i] - loss[i]) <= 1e-4 * loss[i]);
}

static void test_feedback(void **state) {
    static const size_t shapes[][3] = {{1, 1, 1}, {3, 40, 128}, {65, 128, 128}, {70, 130, 64}, {130, 96, 32}};
    (void)state;
    struct rng r = rng_init(7, 1);
    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        check_feedback(&r, shapes[i][0], shapes[i][1], shapes[i][2]);
        arena_reset(&memory);
    }
}

/* What the method promises: the error of the outputs is `loss`, and it is smaller than without feedback. */
static void test_feedback_reduces_the_error(void **state) {
    (void)state;
    enum { ROWS = 8, COLS = 48 };
    struct rng r = rng_init(8, 1);
    struct pair h = gram(&r, COLS, 60, 1e-3), w = normals(&r, ROWS * COLS, 1), u = zeros(COLS * COLS);
    double *scratch = take(COLS * COLS, sizeof *scratch), loss[ROWS] = {0}, total = 0, with = 0, without = 0;
    double *before = take(ROWS * COLS, sizeof *before), hd[COLS];
    memcpy(before, w.d, ROWS * COLS * sizeof *before);
    plain64_inverse_factor(u.d, h.d, COLS, scratch);
    for (size_t i = 0; i < COLS * COLS; i++) set(u, i, u.d[i]);
    float *turned = take(ROWS * COLS, sizeof *turned), *part = take(16 * ROWS, sizeof *part);
    kernel_transpose(turned, w.f, ROWS, COLS);
    struct feedback f = {.how = {ROWS, COLS, u.f, 16, NULL, decide, NULL}};
    f.how.ctx = &f;
    kernel_feedback(&f.how, turned, part, loss);
    for (size_t i = 0; i < ROWS; i++) {
        double d[2][COLS];
        total += loss[i];
        for (size_t c = 0; c < COLS; c++) {
            d[0][c] = turned[c * ROWS + i] - before[i * COLS + c];
            d[1][c] = keep64(i, c, before[i * COLS + c]) - before[i * COLS + c];
        }
        for (int k = 0; k < 2; k++) {
            plain64_matmul_nt(1, COLS, COLS, d[k], h.d, 0, hd);
            for (size_t c = 0; c < COLS; c++) *(k ? &without : &with) += hd[c] * d[k][c];
        }
    }
    assert_true(fabs(with - total) < 1e-3 * total);
    assert_true(with < 0.75 * without);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_gram, release_memory),
        cmocka_unit_test_teardown(test_products16, release_memory),
        cmocka_unit_test_teardown(test_bounded_rows, release_memory),
        cmocka_unit_test_teardown(test_triangular_products, release_memory),
        cmocka_unit_test_teardown(test_one_row, release_memory),
        cmocka_unit_test_teardown(test_inverse_factor, release_memory),
        cmocka_unit_test_teardown(test_no_factor, release_memory),
        cmocka_unit_test_teardown(test_feedback, release_memory),
        cmocka_unit_test_teardown(test_feedback_reduces_the_error, release_memory),
    };
    return cmocka_run_group_tests_name("kernel second order", tests, NULL, NULL);
}
