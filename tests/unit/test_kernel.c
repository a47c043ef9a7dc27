/*
 * Tests of lib/kernel: matrix products, elementwise operations, sums, embedding, RMSNorm, rotary positions, SwiGLU,
 * optimizers, random rounding, selection by magnitude.
 */
#include "tests/unit/kernel_test.h"

/* ---- matrix products ---- */

struct product {
    enum gemm_form form;
    size_t m, n, k;
    const float *a, *b;
    float beta;
};

static void run_product(void *ctx, float *c) {
    const struct product *p = ctx;
    if (p->form == GEMM_NT)
        kernel_matmul_nt(p->m, p->n, p->k, kernel_f32(p->a), kernel_f32(p->b), p->beta, kernel_f32(c));
    if (p->form == GEMM_NN)
        kernel_matmul_nn(p->m, p->n, p->k, kernel_f32(p->a), kernel_f32(p->b), p->beta, kernel_f32(c));
    if (p->form == GEMM_TN)
        kernel_matmul_tn(p->m, p->n, p->k, kernel_f32(p->a), kernel_f32(p->b), p->beta, kernel_f32(c));
}

static void plain_product(const struct product *p, const double *a, const double *b, double *c) {
    if (p->form == GEMM_NT) plain64_matmul_nt(p->m, p->n, p->k, a, b, p->beta, c);
    if (p->form == GEMM_NN) plain64_matmul_nn(p->m, p->n, p->k, a, b, p->beta, c);
    if (p->form == GEMM_TN) plain64_matmul_tn(p->m, p->n, p->k, a, b, p->beta, c);
}

/* k products, their sum and the addition of beta c: (k + 2) U sum |a||b| + 2 U |beta c|. */
static void check_product(struct rng *r, enum gemm_form form, size_t m, size_t n, size_t k, float beta) {
    struct pair a = normals(r, m * k, 1), b = normals(r, n * k, 1), c = normals(r, m * n, 1);
    struct product p = {form, m, n, k, a.f, b.f, beta};
    double *tolerance = magnitudes(c);
    plain_product(&p, magnitudes(a), magnitudes(b), tolerance);
    plain_product(&p, a.d, b.d, c.d);
    for (size_t i = 0; i < m * n; i++) tolerance[i] *= (double)(k + 2) * U;
    check_kernel("matmul", run_product, &p, m * n, c.f, c.d, tolerance);
}

/* Shapes around the edges of tiles, panels and blocks, and the strides for which gemm_avx512.c packs rows. */
static void test_matrix_products(void **state) {
    static const size_t shapes[][3] = {{1, 1, 1},    {1, 300, 64},   {3, 65, 7},     {4, 64, 17},   {5, 5, 5},
                                       {13, 31, 29}, {31, 33, 2},    {257, 259, 19}, {300, 1, 40},  {64, 513, 100},
                                       {29, 64, 1},  {128, 96, 600}, {7, 600, 3},    {520, 48, 130}};
    (void)state;
    struct rng r = rng_init(1, 1);
    for (size_t i = 0; i < COUNT_OF(shapes); i++)
        for (enum gemm_form form = GEMM_NT; form <= GEMM_TN; form++) {
            check_product(&r, form, shapes[i][0], shapes[i][1], shapes[i][2], 0);
            check_product(&r, form, shapes[i][0], shapes[i][1], shapes[i][2], 1);
            arena_reset(&memory);
        }
    check_product(&r, GEMM_NT, 20, 20, 20, -0.5f);
}

/* Without rows or columns nothing is written. With an empty inner dimension the result is beta c. */
static void test_empty_products(void **state) {
    (void)state;
    float c[4] = {1, 2, 3, 4}, x[1] = {0};
    kernel_matmul_nn(0, 4, 1, kernel_f32(x), kernel_f32(x), 0, kernel_f32(c));
    kernel_matmul_tn(4, 0, 1, kernel_f32(x), kernel_f32(x), 0, kernel_f32(c));
    assert_true(c[0] == 1 && c[3] == 4);
    kernel_matmul_nn(2, 2, 0, kernel_f32(x), kernel_f32(x), 2, kernel_f32(c));
    assert_true(c[0] == 2 && c[3] == 8);
    kernel_matmul_nt(2, 2, 0, kernel_f32(x), kernel_f32(x), 2, kernel_f32(c));
    assert_true(c[0] == 4 && c[3] == 16);
    kernel_matmul_nn(2, 2, 0, kernel_f32(x), kernel_f32(x), 0, kernel_f32(c));
    assert_true(c[0] == 0 && c[3] == 0);
}

/* beta 0 overwrites c, which may hold anything. */
static void test_beta_zero_ignores_nan(void **state) {
    (void)state;
    float a[6] = {1, 2, 3, 4, 5, 6}, b[6] = {1, 1, 1, 1, 1, 1};
    EACH_PATH(path) {
        float c[36];
        for (int i = 0; i < 36; i++) c[i] = NAN;
        kernel_matmul_nn(6, 6, 1, kernel_f32(a), kernel_f32(b), 0, kernel_f32(c));
        for (int i = 0; i < 36; i++) assert_true(c[i] == a[i / 6]);
        c[0] = NAN;
        kernel_matmul_nt(1, 1, 6, kernel_f32(a), kernel_f32(b), 0, kernel_f32(c));
        assert_true(c[0] == 21);
    }
}

/* ---- elementwise ---- */

struct vectors {
    int which;
    size_t rows, n;
    const float *x, *x2;
    const uint32_t *ids;
};

enum { FILL, COPY, SCALE, ADD, AXPY, ADD_BIAS, SUM_ROWS, COL_NORMS, COL_ABS, ROW_NORMS, GATHER, SCATTER, SWIGLU };

static void run_vectors(void *ctx, float *y) {
    const struct vectors *c = ctx;
    switch (c->which) {
    case FILL: kernel_fill(kernel_f32(y), c->n, 2.5f); break;
    case COPY: kernel_convert(kernel_f32(y), kernel_f32(c->x), c->n); break;
    case SCALE: kernel_scale(kernel_f32(y), c->n, -1.7f); break;
    case ADD: kernel_add(kernel_f32(y), kernel_f32(c->x), c->n); break;
    case AXPY: kernel_axpy(kernel_f32(y), 0.3f, kernel_f32(c->x), c->n); break;
    case ADD_BIAS: kernel_add_bias(kernel_f32(y), kernel_f32(c->x), c->rows, c->n); break;
    case SUM_ROWS: kernel_sum_rows(kernel_f32(y), kernel_f32(c->x), c->rows, c->n); break;
    case COL_NORMS: kernel_col_norms2(y, c->x, c->rows, c->n); break;
    case COL_ABS: kernel_col_abs_sum(y, c->x, c->rows, c->n); break;
    case ROW_NORMS: kernel_row_norms2(y, c->x, c->rows, c->n); break;
    case GATHER: kernel_gather(kernel_f32(y), kernel_f32(c->x), c->ids, c->rows, c->n); break;
    case SCATTER: kernel_scatter_add(kernel_f32(y), kernel_f32(c->x), c->ids, c->rows, c->n); break;
    case SWIGLU: kernel_glu(ACT_SILU, kernel_f32(y), kernel_f32(c->x), kernel_f32(c->x2), c->n); break;
    default: fail();
    }
}

static const size_t lengths[] = {1, 3, 4, 7, 8, 15, 16, 17, 31, 33, 64, 100, 1000, 16384, 40001};

/* At most two roundings, of terms no larger than |y| + |a x|. */
static void test_element_by_element(void **state) {
    (void)state;
    struct rng r = rng_init(2, 1);
    for (size_t i = 0; i < COUNT_OF(lengths); i++) {
        size_t n = lengths[i];
        struct pair x = normals(&r, n, 1), y = normals(&r, n, 1);
        double *tolerance = take(n, sizeof *tolerance), *want = take(n, sizeof *want);
        for (size_t j = 0; j < n; j++) tolerance[j] = 2 * U * (2 * fabs(y.d[j]) + fabs(x.d[j]));
        for (int which = FILL; which <= AXPY; which++) {
            memcpy(want, y.d, n * sizeof *want);
            if (which == FILL) plain64_fill(want, n, 2.5);
            if (which == COPY) plain64_copy(want, x.d, n);
            if (which == SCALE) plain64_scale(want, n, -1.7f);
            if (which == ADD) plain64_add(want, x.d, n);
            if (which == AXPY) plain64_axpy(want, 0.3f, x.d, n);
            check_kernel("element by element", run_vectors, &(struct vectors){which, 1, n, x.f, NULL, NULL}, n, y.f,
                         want, tolerance);
        }
        arena_reset(&memory);
    }
}

static const size_t matrices[][2] = {{1, 1}, {1, 70}, {2, 64}, {3, 65}, {130, 3}, {129, 200}, {1000, 17}};

/* Rows are summed in blocks of 128: a term passes through at most 128 + rows / 128 + 2 additions. */
static void test_sums_over_rows_and_columns(void **state) {
    (void)state;
    struct rng r = rng_init(3, 1);
    for (size_t i = 0; i < COUNT_OF(matrices); i++) {
        size_t rows = matrices[i][0], d = matrices[i][1], n = rows * d, out = d > rows ? d : rows;
        struct pair x = normals(&r, n, 1), y = normals(&r, n > out ? n : out, 1);
        double *want = take(y.n, sizeof *want), *tolerance = take(y.n, sizeof *tolerance);
        for (int which = ADD_BIAS; which <= ROW_NORMS; which++) {
            size_t n_out = which == ADD_BIAS ? n : which == ROW_NORMS ? rows : d;
            memcpy(want, y.d, y.n * sizeof *want);
            if (which == ROW_NORMS) plain64_fill(want, rows, 0);
            for (size_t j = 0; j < n_out; j++) tolerance[j] = fabs(want[j]);
            for (size_t j = 0; j < n; j++) {
                double v = x.d[which == ADD_BIAS ? j % d : j];
                double term = which == COL_NORMS || which == ROW_NORMS ? v * v : which == COL_ABS ? fabs(v) : v;
                size_t at = which == ADD_BIAS ? j : which == ROW_NORMS ? j / d : j % d;
                want[at] += term;
                tolerance[at] += fabs(term);
            }
            double operations = (double)(rows < 128 ? rows : 128) + (double)rows / 128 + 3;
            for (size_t j = 0; j < n_out; j++) tolerance[j] *= operations * U;
            check_kernel("sums", run_vectors, &(struct vectors){which, rows, d, x.f, NULL, NULL}, n_out, y.f, want,
                         tolerance);
        }
        arena_reset(&memory);
    }
}

/* In f64 throughout: the result is that of an f64 loop up to (n + 64) 2^-53 of the terms. */
static void test_dot_is_exact_in_f64(void **state) {
    (void)state;
    struct rng r = rng_init(4, 1);
    static const size_t sizes[] = {0, 1, 5, 17, 1000, 16384, 16385, 1200000};
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        size_t n = sizes[i];
        struct pair x = normals(&r, n + 1, 1), y = normals(&r, n + 1, 1);
        double want = plain64_dot(x.d, y.d, n), terms = plain64_dot(magnitudes(x), magnitudes(y), n);
        EACH_PATH(path) {
            double got[2], squares[2], distance[2], between = 0;
            for (size_t k = 0; k < n; k++) between += pow((double)(x.f[k] - y.f[k]), 2);
            for (int threads = 1; threads <= 4; threads += 3) {
                parallel_set_threads(threads);
                got[threads / 4] = kernel_dot(kernel_f32(x.f), kernel_f32(y.f), n);
                squares[threads / 4] = kernel_sum_squares(kernel_f32(x.f), n);
                distance[threads / 4] = kernel_squared_distance(kernel_f32(x.f), kernel_f32(y.f), n);
            }
            assert_true(fabs(distance[0] - between) <= ((double)n + 64) * 0x1p-53 * between);
            assert_true(distance[0] == distance[1]);
            assert_true(fabs(got[0] - want) <= ((double)n + 64) * 0x1p-53 * terms);
            assert_true(fabs(squares[0] / (n ? plain64_dot(x.d, x.d, n) : 1) - (n ? 1 : 0)) <= (double)n * 0x1p-52);
            assert_true(got[0] == got[1] && squares[0] == squares[1]);
        }
        arena_reset(&memory);
    }
    parallel_set_threads(parallel_default_threads());
}

/* ---- embedding ---- */

/* Gathering is exact. Scattering adds up to `count` times to a row. */
static void test_embedding(void **state) {
    (void)state;
    enum { VOCAB = 11, N = 50 };
    struct rng r = rng_init(5, 1);
    for (size_t d = 1; d < 200; d = d * 3 + 1) {
        struct pair table = normals(&r, VOCAB * d, 1), dy = normals(&r, N * d, 1);
        uint32_t ids[N];
        for (size_t i = 0; i < N; i++) ids[i] = (uint32_t)rng_below(&r, VOCAB);
        double *want = take(N * d, sizeof *want), *tolerance = take(N * d, sizeof *tolerance);
        plain64_gather(want, table.d, ids, N, d);
        struct vectors c = {GATHER, N, d, table.f, NULL, ids};
        check_kernel("gather", run_vectors, &c, N * d, NULL, want, tolerance);
        double *terms = magnitudes(table);
        plain64_scatter_add(terms, magnitudes(dy), ids, N, d);
        plain64_scatter_add(table.d, dy.d, ids, N, d);
        for (size_t i = 0; i < VOCAB * d; i++) terms[i] *= N * U;
        c = (struct vectors){SCATTER, N, d, dy.f, NULL, ids};
        check_kernel("scatter_add", run_vectors, &c, VOCAB * d, table.f, table.d, terms);
        arena_reset(&memory);
    }
}

/* ---- RMSNorm ---- */

struct norm {
    size_t rows, d;
    const float *x, *w, *dy;
    float eps;
};

static void run_rmsnorm(void *ctx, float *out) {
    const struct norm *c = ctx;
    kernel_rmsnorm(kernel_f32(out), kernel_f32(out + c->rows * c->d), kernel_f32(c->x), kernel_f32(c->w), c->rows, c->d,
                   c->eps);
}

/* out: dx [rows][d], dw [d] */
static void run_rmsnorm_backward(void *ctx, float *out) {
    const struct norm *c = ctx;
    float *y = take(c->rows * c->d, sizeof *y), *inv = take(c->rows, sizeof *inv);
    struct kernel_array x = kernel_f32(c->x);
    kernel_rmsnorm(kernel_f32(y), kernel_f32(inv), x, kernel_f32(c->w), c->rows, c->d, c->eps);
    kernel_rmsnorm_backward(kernel_f32(out), kernel_f32(out + c->rows * c->d), kernel_f32(c->dy), x, kernel_f32(c->w),
                            kernel_f32(inv), c->rows, c->d);
}

static void check_rmsnorm(struct rng *r, size_t rows, size_t d, double scale) {
    size_t n = rows * d;
    struct pair x = normals(r, n, scale), w = normals(r, d, 1), dy = normals(r, n, 1), start = normals(r, n + d, 1);
    struct norm c = {rows, d, x.f, w.f, dy.f, 1e-5f};
    double *y = take(n + rows, sizeof *y), *tolerance = take(n + rows + d, sizeof *tolerance);
    plain64_rmsnorm(y, y + n, x.d, w.d, rows, d, c.eps);
    for (size_t i = 0; i < n + rows; i++) tolerance[i] = 4 * U * fabs(y[i]); /* inv and two products */
    check_kernel("rmsnorm", run_rmsnorm, &c, n + rows, NULL, y, tolerance);

    double *dx = start.d, *dw = start.d + n;
    for (size_t j = 0; j < d; j++) tolerance[n + j] = fabs(dw[j]);
    for (size_t i = 0; i < rows; i++) {
        double inv = y[n + i], dot = 0;
        for (size_t j = 0; j < d; j++) dot += fabs(dy.d[i * d + j] * w.d[j] * x.d[i * d + j]);
        for (size_t j = 0; j < d; j++) {
            size_t at = i * d + j;
            double terms = fabs(inv * w.d[j] * dy.d[at]) + inv * inv * inv / (double)d * dot * fabs(x.d[at]);
            tolerance[at] = 8 * U * (terms + fabs(dx[at]));
            tolerance[n + j] += fabs(dy.d[at] * x.d[at] * inv);
        }
    }
    for (size_t j = 0; j < d; j++) tolerance[n + j] *= ((double)(rows < 128 ? rows : 128) + (double)rows / 128 + 6) * U;
    plain64_rmsnorm_backward(dx, dw, dy.d, x.d, w.d, y + n, rows, d);
    check_kernel("rmsnorm backward", run_rmsnorm_backward, &c, n + d, start.f, start.d, tolerance);
    arena_reset(&memory);
}

static void test_rmsnorm(void **state) {
    (void)state;
    struct rng r = rng_init(6, 1);
    for (size_t i = 0; i < COUNT_OF(matrices); i++) check_rmsnorm(&r, matrices[i][0], matrices[i][1], 1);
    check_rmsnorm(&r, 3, 576, 1e-4);  /* eps dominates */
    check_rmsnorm(&r, 3, 576, 1e15);  /* squares beyond f32 */
    check_rmsnorm(&r, 130, 20000, 1); /* more blocks of rows than have partial sums, */
    check_rmsnorm(&r, 2, 40000, 1);   /* and rows too long for any */
}

/* ---- rotary positions ---- */

struct rope {
    size_t rows, heads, head_dim;
    const uint32_t *position;
    struct kernel_rotation how;
    int sign;
};

static void run_rope(void *ctx, float *x) {
    const struct rope *c = ctx;
    kernel_rope(kernel_f32(x), c->rows, c->heads, c->head_dim, c->position, &c->how, c->sign);
}

/* Cosine and sine to half an ulp, one product each, one sum: 3 U (|a| + |b|). The angle itself is f64. A scale adds
 * one product each; here its factors are exact. */
static void test_rope(void **state) {
    (void)state;
    static const size_t dims[] = {2, 4, 6, 34, 64, 128, 130, 256};
    struct rng r = rng_init(7, 1);
    for (size_t i = 0; i < COUNT_OF(dims); i++) {
        enum { ROWS = 5, HEADS = 3 };
        size_t d = dims[i] + (i % 2 ? 3 * i : 0), rotated = dims[i], n = ROWS * HEADS * d; /* all or part of a head */
        const uint32_t position[ROWS] = {0, 1, 77, 131071, 4000000000u};
        static const uint8_t table[ROWS] = {1, 0, 1, 1, 0};
        double *inv_freq = take(rotated, sizeof *inv_freq); /* two tables */
        for (size_t j = 0; j < rotated; j++) inv_freq[j] = pow(10000, -2.0 * (double)j / (double)rotated);
        for (int v = 0; v < 4; v++) {
            struct rope c = {ROWS, HEADS, d, position, {rotated, inv_freq, NULL, 0}, v % 2 ? 1 : -1};
            if (v / 2) c.how.table = table, c.how.scale = 1.25f;
            double scale = v / 2 ? 1.25 : 1, roundings = v / 2 ? 4 : 3;
            struct pair x = normals(&r, n, 1);
            double *tolerance = take(n, sizeof *tolerance);
            for (size_t j = 0; j < n; j++) {
                size_t half = rotated / 2, twin = j % d < half ? j + half : j % d < rotated ? j - half : j;
                tolerance[j] = scale * roundings * U * (fabs(x.d[j]) + fabs(x.d[twin]));
            }
            plain64_rope(x.d, ROWS, HEADS, d, position, &c.how, c.sign);
            check_kernel("rope", run_rope, &c, n, x.f, x.d, tolerance);
        }
        arena_reset(&memory);
    }
}

/* ---- SwiGLU ---- */

/* out: dgate [n], dup [n] */
struct gated {
    size_t n;
    const float *dy, *gate, *up;
};

static void run_swiglu_backward(void *ctx, float *out) {
    const struct gated *c = ctx;
    kernel_glu_backward(ACT_SILU, kernel_f32(out), kernel_f32(out + c->n), kernel_f32(c->dy), kernel_f32(c->gate),
                        kernel_f32(c->up), c->n);
}

/*
 * The sigmoid e^-|x| / (1 + e^-|x|) or 1 / (1 + e^-|x|): exp to 1.1 ulp (at most 2.2 U; e / (1 + e) has less of its error), an
 * addition, an inverse (1.1 U), a product, each relative: 5.3 U; with two more products 7.3 U. Tested: 7 U, since not all of
 * them err by so much in the same direction. Below the smallest normal number the sigmoid may be 0.
 */
static void test_swiglu(void **state) {
    (void)state;
    static const double special[] = {0, 1e4, -1e4, 88, -88, 90, -90, 87.5, -87.5, 200, -103.5, -1e-30};
    struct rng r = rng_init(8, 1);
    for (size_t i = 0; i < COUNT_OF(lengths); i++) {
        size_t n = lengths[i];
        struct pair gate = normals(&r, n, 4), up = normals(&r, n, 1), dy = normals(&r, n, 1);
        double *grads = take(2 * n, sizeof *grads);
        for (size_t j = 0; j < COUNT_OF(special) && n > 40; j++) set(gate, j + 3, special[j]);
        double *y = take(n, sizeof *y), *tolerance = take(2 * n, sizeof *tolerance);
        plain64_glu(ACT_SILU, y, gate.d, up.d, n);
        for (size_t j = 0; j < n; j++) tolerance[j] = 7 * U * fabs(y[j]) + 0x1p-126 * fabs(gate.d[j] * up.d[j]);
        check_kernel("swiglu", run_vectors, &(struct vectors){SWIGLU, 1, n, gate.f, up.f, NULL}, n, NULL, y, tolerance);
        for (size_t j = 0; j < n; j++) {
            double g = gate.d[j], s = 1 / (1 + exp(-g)), floor = 0x1p-126 * (1 + fabs(g));
            tolerance[j] = (16 * U * s * (1 + fabs(g) * (1 - s)) + floor) * fabs(dy.d[j] * up.d[j]);
            /* 1 - s has an absolute error of U when s is near 1, which g multiplies */
            tolerance[j] += 6 * U * fabs(g) * s * fabs(dy.d[j] * up.d[j]);
            tolerance[n + j] = (8 * U * s * fabs(g) + floor) * fabs(dy.d[j]);
        }
        plain64_glu_backward(ACT_SILU, grads, grads + n, dy.d, gate.d, up.d, n);
        struct gated c = {n, dy.f, gate.f, up.f};
        check_kernel("swiglu backward", run_swiglu_backward, &c, 2 * n, NULL, grads, tolerance);
        arena_reset(&memory);
    }
}

/* ---- AdamW ---- */

struct adamw {
    struct kernel_adamw how;
    size_t n;
    const float *g;
};

static void run_adamw(void *ctx, float *out) { /* w, m, v */
    const struct adamw *c = ctx;
    kernel_adamw(&c->how, kernel_f32(out), kernel_f32(out + c->n), kernel_f32(out + 2 * c->n), kernel_f32(c->g), c->n);
}

/* About 4 roundings in m, 5 in v, and 12 in the step, which is at most lr m / (c1 sqrt(v)). */
static void test_adamw(void **state) {
    (void)state;
    static const uint64_t steps[] = {1, 2, 1000, 1000000};
    struct rng r = rng_init(9, 1);
    for (size_t i = 0; i < COUNT_OF(lengths) * COUNT_OF(steps); i++) {
        size_t n = lengths[i / COUNT_OF(steps)];
        struct pair s = normals(&r, 3 * n, 1), g = normals(&r, n, 1);
        double *tolerance = take(3 * n, sizeof *tolerance);
        for (size_t j = 0; j < n; j++) {
            set(s, 2 * n + j, fabs(s.d[2 * n + j]) * 0.1);
            if (j % 13 == 5) set(g, j, 0), set(s, n + j, 0), set(s, 2 * n + j, 0); /* gradient and moments 0 */
        }
        struct adamw c = {{1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.37f, steps[i % COUNT_OF(steps)], 0}, n, g.f};
        double *before = take(n, sizeof *before);
        memcpy(before, s.d, n * sizeof *before);
        for (size_t j = 0; j < n; j++) {
            tolerance[n + j] = 5 * U * (fabs(s.d[n + j]) + fabs(g.d[j]));
            tolerance[2 * n + j] = 6 * U * (s.d[2 * n + j] + g.d[j] * g.d[j]);
        }
        plain64_adamw(&c.how, s.d, s.d + n, s.d + 2 * n, g.d, n);
        for (size_t j = 0; j < n; j++) {
            double step = fabs(s.d[j] - before[j]) + 0.1 * c.how.lr * fabs(before[j]);
            double cancelled = tolerance[n + j] / (1e-30 + fabs(s.d[n + j])); /* in m */
            tolerance[j] = 3 * U * fabs(before[j]) + (16 * U + cancelled) * step;
        }
        check_kernel("adamw", run_adamw, &c, 3 * n, s.f, s.d, tolerance);
        arena_reset(&memory);
    }
}

/* bf16 moments must be the f32 ones rounded with the random bits of their element, on any path, with any threads. */
static void test_adamw_rounded(void **state) {
    (void)state;
    struct rng r = rng_init(11, 1);
    for (size_t i = 0; i < COUNT_OF(lengths); i++) {
        size_t n = lengths[i];
        float *g = normals(&r, n, 1).f, *start = normals(&r, n, 1).f, *moments[2];
        uint16_t *before[2];
        for (int k = 0; k < 2; k++) {
            before[k] = take(n, sizeof(uint16_t));
            moments[k] = take(n, sizeof(float));
            for (size_t j = 0; j < n; j++) {
                before[k][j] = f32_to_bf16((float)fabs(rng_normal(&r)));
                moments[k][j] = bf16_to_f32(before[k][j]);
            }
        }
        struct kernel_adamw how = {1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.37f, 12345678901, 5 + i};
        EACH_PATH(path) {
            float *m = copy_f32(moments[0], n), *v = copy_f32(moments[1], n), *w = copy_f32(start, n);
            kernel_adamw(&how, kernel_f32(w), kernel_f32(m), kernel_f32(v), kernel_f32(g), n);
            for (int threads = 1; threads <= 4; threads += 3) {
                uint16_t *hm = take(n, sizeof *hm), *hv = take(n, sizeof *hv);
                float *hw = copy_f32(start, n);
                memcpy(hm, before[0], n * sizeof *hm);
                memcpy(hv, before[1], n * sizeof *hv);
                parallel_set_threads(threads);
                kernel_adamw(&how, kernel_f32(hw), kernel_bf16(hm), kernel_bf16(hv), kernel_f32(g), n);
                assert_memory_equal(w, hw, n * sizeof *w);
                for (size_t j = 0; j < n; j++)
                    if (hm[j] != plain32_round_randomly(m[j], how.step, how.stream, j, false) ||
                        hv[j] != plain32_round_randomly(v[j], how.step, how.stream, j, true))
                        fail_msg("%s, %d threads: moments of element %zu of %zu", path, threads, j, n);
            }
        }
        arena_reset(&memory);
    }
    parallel_set_threads(parallel_default_threads());
}

struct momentum {
    struct kernel_momentum how;
    size_t n;
    const float *g;
};

static void run_momentum(void *ctx, float *out) { /* u, m */
    const struct momentum *c = ctx;
    kernel_momentum(&c->how, kernel_f32(out), kernel_f32(out + c->n), kernel_f32(c->g), c->n);
}

/* Four roundings in m, seven in u; then bf16 moments, which are rounded as AdamW's first moment is. */
static void test_momentum(void **state) {
    (void)state;
    struct rng r = rng_init(13, 1);
    for (size_t i = 0; i < COUNT_OF(lengths); i++) {
        size_t n = lengths[i];
        struct pair s = normals(&r, 2 * n, 1), g = normals(&r, n, 1);
        double *tolerance = take(2 * n, sizeof *tolerance);
        for (size_t j = 0; j < n; j++) {
            set(s, n + j, bf16_to_f32(f32_to_bf16(s.f[n + j])));
            tolerance[j] = 8 * U * (fabs(s.d[n + j]) + fabs(g.d[j]));
            tolerance[n + j] = 5 * U * (fabs(s.d[n + j]) + fabs(g.d[j]));
        }
        float *start = copy_f32(s.f + n, n);
        struct momentum c = {{0.95f, 0.37f, 12345678901, 5 + i}, n, g.f};
        plain64_momentum(&c.how, s.d, s.d + n, g.d, n);
        check_kernel("momentum", run_momentum, &c, 2 * n, s.f, s.d, tolerance);
        EACH_PATH(path) {
            float *m = copy_f32(start, n), *u = take(n, sizeof *u), *hu = take(n, sizeof *hu);
            uint16_t *hm = take(n, sizeof *hm);
            for (size_t j = 0; j < n; j++) hm[j] = f32_to_bf16(start[j]);
            kernel_momentum(&c.how, kernel_f32(u), kernel_f32(m), kernel_f32(g.f), n);
            kernel_momentum(&c.how, kernel_f32(hu), kernel_bf16(hm), kernel_f32(g.f), n);
            assert_memory_equal(u, hu, n * sizeof *u);
            for (size_t j = 0; j < n; j++)
                if (hm[j] != plain32_round_randomly(m[j], c.how.step, c.how.stream, j, false))
                    fail_msg("%s: momentum of element %zu of %zu", path, j, n);
        }
        arena_reset(&memory);
    }
}

/*
 * The mean of many roundings of x is x: each is the lower neighbour of x plus a unit with probability p, so the mean
 * over n has a standard deviation of sqrt(p (1 - p) / n) of a unit. Exceeding five of these has a chance of 6e-7, and
 * the draws are fixed.
 */
static void test_random_rounding_is_fair(void **state) {
    (void)state;
    static const double shares[] = {0, 0.001, 0.25, 0.5, 0.9};
    enum { N = 65536 };
    float *m = take(N, sizeof *m), *g = take(N, sizeof *g), *w = take(N, sizeof *w);
    uint16_t *hm = take(N, sizeof *hm), *hv = take(N, sizeof *hv);
    for (size_t s = 0; s < COUNT_OF(shares); s++) {
        double x = 1 + shares[s] * 0x1p-7, sum = 0;
        for (size_t i = 0; i < N; i++)
            g[i] = (float)(2 * x - 1), hm[i] = f32_to_bf16(1), hv[i] = 0; /* so that m becomes x */
        struct kernel_adamw how = {0, 0.5f, 0.5f, 1, 0, 1, 3, s};
        kernel_adamw(&how, kernel_f32(w), kernel_bf16(hm), kernel_bf16(hv), kernel_f32(g), N);
        for (size_t i = 0; i < N; i++) {
            double got = bf16_to_f32(hm[i]);
            assert_true(got == 1 || got == 1 + 0x1p-7);
            sum += got;
        }
        assert_true(fabs(sum / N - x) <= 5 * 0x1p-7 * sqrt(shares[s] * (1 - shares[s]) / N) + 0x1p-7 / 65536);
    }
}

/* ---- the k-th smallest magnitude ---- */

static int compare_magnitude(const void *a, const void *b) {
    float x = fabsf(*(const float *)a), y = fabsf(*(const float *)b);
    return (x > y) - (x < y);
}

static void test_kth_abs(void **state) {
    (void)state;
    struct rng r = rng_init(10, 1);
    for (size_t n = 1; n < 3000; n = n * 2 + 1) {
        float *x = normals(&r, n, 1).f, *sorted = take(n, sizeof *sorted), *scratch = take(n, sizeof *scratch);
        for (size_t i = 0; i < n; i++) {
            if (i % 3 == 0) x[i] = roundf(x[i] * 4) / 4; /* ties, and both zeros */
            if (i % 50 == 7) x[i] = i % 4 ? 1e-42f : -INFINITY;
            sorted[i] = x[i];
        }
        qsort(sorted, n, sizeof *sorted, compare_magnitude);
        for (size_t k = 0; k < n; k += n / 17 + 1) assert_true(kernel_kth_abs(x, n, k, scratch) == fabsf(sorted[k]));
        assert_true(kernel_kth_abs(x, n, n - 1, scratch) == fabsf(sorted[n - 1]));
        arena_reset(&memory);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_matrix_products, release_memory),
        cmocka_unit_test_teardown(test_empty_products, release_memory),
        cmocka_unit_test_teardown(test_beta_zero_ignores_nan, release_memory),
        cmocka_unit_test_teardown(test_element_by_element, release_memory),
        cmocka_unit_test_teardown(test_sums_over_rows_and_columns, release_memory),
        cmocka_unit_test_teardown(test_dot_is_exact_in_f64, release_memory),
        cmocka_unit_test_teardown(test_embedding, release_memory),
        cmocka_unit_test_teardown(test_rmsnorm, release_memory),
        cmocka_unit_test_teardown(test_rope, release_memory),
        cmocka_unit_test_teardown(test_swiglu, release_memory),
        cmocka_unit_test_teardown(test_adamw, release_memory),
        cmocka_unit_test_teardown(test_adamw_rounded, release_memory),
        cmocka_unit_test_teardown(test_momentum, release_memory),
        cmocka_unit_test_teardown(test_random_rounding_is_fair, release_memory),
        cmocka_unit_test_teardown(test_kth_abs, release_memory),
    };
    return cmocka_run_group_tests_name("kernel", tests, NULL, NULL);
}
