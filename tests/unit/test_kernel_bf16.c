/* Tests of lib/kernel: conversions to and from bf16, its layouts, and products in it. */
#include "tests/unit/kernel_test.h"

static uint16_t *rounded(const float *x, size_t n) {
    uint16_t *h = take(n, sizeof *h);
    for (size_t i = 0; i < n; i++) h[i] = f32_to_bf16(x[i]);
    return h;
}

/* Random numbers that bf16 holds exactly. */
static struct pair bf16_normals(struct rng *r, size_t n) {
    struct pair p = zeros(n);
    for (size_t i = 0; i < n; i++) set(p, i, bf16_to_f32(f32_to_bf16((float)rng_normal(r))));
    return p;
}

/* ---- conversions: must give the bits of lib/tensor's scalar functions ---- */

static float from_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static void test_conversions(void **state) {
    (void)state;
    enum { N = 70000 };
    struct rng r = rng_init(1, 1);
    float *x = take(N, sizeof *x), *back = take(N, sizeof *back);
    uint16_t *y = take(N, sizeof *y);
    for (size_t i = 0; i < N; i++) x[i] = from_bits(rng_u32(&r) & (i % 3 ? 0xffffffff : 0xffff8000)); /* ties too */
    const uint32_t special[] = {0,          0x80000000, 0x7f800000, 0xff800000, 0x7f800001, 0xffffffff,
                                0x7f7fffff, 0x00000001, 0x00008000, 0x00018000, 0x7fc00000, 0x3f808000};
    for (size_t i = 0; i < COUNT_OF(special); i++) x[i] = from_bits(special[i]);
    EACH_PATH(path) {
        for (size_t n = 0; n <= N; n = n < 40 ? n + 1 : n * 7) {
            memset(y, 0x5a, N * sizeof *y);
            kernel_convert(kernel_bf16(y), kernel_f32(x), n);
            for (size_t i = 0; i < n; i++) assert_int_equal(y[i], f32_to_bf16(x[i]));
            if (n < N) assert_int_equal(y[n], 0x5a5a);
            back[n < N ? n : 0] = 7;
            kernel_convert(kernel_f32(back), kernel_bf16(y), n);
            for (size_t i = 0; i < n; i++) assert_true((isnan(x[i]) && isnan(back[i])) || back[i] == bf16_to_f32(y[i]));
            if (n < N) assert_true(back[n] == 7);
        }
    }
}

/* ---- products ---- */

/* The layout and type in which b is passed. */
enum source { NT_F32, NT_BF16, NN_F32, NN_BF16, ROWS_F32, ROWS_BF16, SOURCES };

struct product {
    size_t m, n, k;
    enum dtype a_type, c_type;
    const void *a, *b;
    bool transposed; /* a is [k][m] */
    enum source source;
    enum dtype rows; /* of b, when neither f32 nor bf16 */
    struct kernel_epilogue how;
};

static struct kernel_matrix matrix_of(const struct product *p) {
    bool f32 = p->source == NT_F32 || p->source == NN_F32 || p->source == ROWS_F32;
    enum dtype type = p->rows ? p->rows : f32 ? DT_F32 : DT_BF16;
    struct kernel_array from = kernel_host_array(type, p->b);
    struct kernel_matrix stored = kernel_matrix_of(from, p->n, p->k);
    if (p->source >= ROWS_F32) return stored;
    struct err e;
    size_t bytes = kernel_matrix_bytes(KERNEL_PACKED_BF16, DT_BF16, p->n, p->k);
    void *packed = arena_alloc(&memory, bytes, &e);
    assert_non_null(packed);
    memset(packed, 0xff, bytes); /* NaN wherever packing writes nothing */
    return p->source == NN_F32 || p->source == NN_BF16 ? kernel_pack_nn(kernel_bf16(packed), p->n, p->k, from)
                                                       : kernel_pack_nt(kernel_bf16(packed), &stored);
}

static void run_product(void *ctx, float *c) {
    const struct product *p = ctx;
    struct kernel_matrix b = matrix_of(p);
    uint16_t *h = p->c_type == DT_BF16 ? take(p->m * p->n, sizeof *h) : NULL;
    void *to = h ? (void *)h : (void *)c;
    if (p->transposed)
        kernel_multiply_tn(p->m, kernel_host_array(p->a_type, p->a), &b, &p->how, kernel_host_array(p->c_type, to));
    else
        kernel_multiply(p->m, kernel_host_array(p->a_type, p->a), &b, &p->how, kernel_host_array(p->c_type, to));
    if (!h) return;
    for (size_t i = 0; i < p->m * p->n; i++) c[i] = bf16_to_f32(h[i]);
}

/*
 * Products of bf16 are exact in f32; so the sum of k products and the epilogue cost (k + 3) U of the terms' magnitudes.
 * A result in bf16 is rounded once more, by at most 2^-8 of itself.
 */
static void check_product(struct product *p, struct pair a, struct pair b, struct pair c, struct pair bias,
                          struct pair residual) {
    size_t n = p->m * p->n;
    double *tolerance = magnitudes(c), *want = take(n, sizeof *want);
    memcpy(want, c.d, n * sizeof *want);
    double beta = p->how.accumulate;
    plain64_multiply(p->m, p->n, p->k, magnitudes(a), magnitudes(b), beta,
                     kernel_has_data(p->how.bias) ? magnitudes(bias) : NULL,
                     kernel_has_data(p->how.residual) ? magnitudes(residual) : NULL, tolerance);
    plain64_multiply(p->m, p->n, p->k, a.d, b.d, beta, kernel_has_data(p->how.bias) ? bias.d : NULL,
                     kernel_has_data(p->how.residual) ? residual.d : NULL, want);
    for (size_t i = 0; i < n; i++) {
        tolerance[i] *= (double)(p->k + 3) * U;
        if (p->c_type == DT_BF16) tolerance[i] += 0x1p-8 * (fabs(want[i]) + tolerance[i]);
    }
    check_kernel("multiply", run_product, p, n, p->how.accumulate ? c.f : NULL, want, tolerance);
}

static void check_shape(struct rng *r, size_t m, size_t n, size_t k, unsigned variant) {
    struct pair a = bf16_normals(r, m * k), b = bf16_normals(r, n * k), c = normals(r, m * n, 1);
    struct pair bias = normals(r, n, 1), residual = normals(r, m * n, 1);
    struct product p = {.m = m, .n = n, .k = k, .a_type = variant & 1 ? DT_F32 : DT_BF16};
    p.c_type = variant & 2 ? DT_BF16 : DT_F32;
    p.transposed = variant & 32;
    p.source = (enum source)(variant % (p.transposed ? ROWS_F32 : SOURCES)); /* b must be packed when a is transposed */
    const float *a_as_read = a.f;
    if (p.transposed) {
        float *t = take(m * k, sizeof *t);
        plain32_transpose(t, a.f, m, k);
        a_as_read = t;
    }
    p.a = variant & 1 ? (const void *)a_as_read : rounded(a_as_read, m * k);
    p.how = (struct kernel_epilogue){.accumulate = p.c_type == DT_F32 && variant & 4,
                                     .bias = kernel_f32(variant & 8 ? bias.f : NULL),
                                     .residual = kernel_f32(variant & 16 ? residual.f : NULL)};
    const float *b_as_read = b.f;
    if (p.source == NN_F32 || p.source == NN_BF16) {
        float *t = take(n * k, sizeof *t);
        plain32_transpose(t, b.f, n, k);
        b_as_read = t;
    }
    p.b = p.source == NT_F32 || p.source == NN_F32 || p.source == ROWS_F32 ? (const void *)b_as_read
                                                                           : rounded(b_as_read, n * k);
    check_product(&p, a, b, c, bias, residual);
    arena_reset(&memory);
}

/* Shapes around the edges of micro-kernels, panels, blocks, tiles and strips. The bits of a variant choose the types
 * and the epilogue; all but tall shapes are run with every variant. */
static void test_products(void **state) {
    static const size_t shapes[][3] = {{1, 1, 1},    {1, 300, 64},  {3, 65, 7},      {4, 64, 32},   {5, 5, 5},
                                       {13, 31, 29}, {31, 33, 2},   {130, 70, 1000}, {64, 513, 96}, {29, 64, 1},
                                       {45, 96, 64}, {7, 600, 100}, {300, 48, 32}};
    (void)state;
    struct rng r = rng_init(3, 1);
    for (size_t i = 0; i < COUNT_OF(shapes); i++)
        for (unsigned variant = 0; variant < 64; variant += 1 + (shapes[i][0] > 20))
            check_shape(&r, shapes[i][0], shapes[i][1], shapes[i][2], variant);
    for (unsigned variant = 0; variant < 8; variant++) check_shape(&r, 33, 40, 4200, variant); /* strips of k */
    for (unsigned variant = 32; variant < 38; variant++) {
        check_shape(&r, 570, 40, 1100, variant);
        check_shape(&r, 140, 550, 600, variant); /* more columns than have partial sums */
    }
    check_shape(&r, 20, 32, 2048, 0); /* rows that map to the same cache lines */
    check_shape(&r, 2100, 33, 32, 4); /* tiles of rows, with b unpacked */
}

/* SwiGLU in the epilogue must give the bits of SwiGLU after the product, also when it overwrites the gate. */
static void test_gated_products(void **state) {
    (void)state;
    static const size_t shapes[][3] = {{1, 1, 1},      {3, 65, 7}, {29, 200, 64},  {130, 33, 96},
                                       {33, 40, 4200}, {2, 5, 0},  {130, 96, 800}, {100, 470, 1000}};
    struct rng r = rng_init(8, 1);
    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        size_t m = shapes[i][0], n = shapes[i][1], k = shapes[i][2];
        struct pair a = bf16_normals(&r, m * k + 1), b = bf16_normals(&r, n * k + 1), gate = bf16_normals(&r, m * n);
        struct pair bias = normals(&r, n, 1);
        uint16_t *g = rounded(gate.f, m * n), *x = rounded(a.f, m * k + 1), *up = take(m * n, sizeof *up);
        uint16_t *want = take(m * n, sizeof *want), *got = take(m * n + 1, sizeof *got);
        struct product p = {.m = m, .n = n, .k = k, .b = b.f, .source = NT_F32};
        EACH_PATH(path) {
            struct kernel_matrix panels = matrix_of(&p);
            struct kernel_epilogue how = {.bias = kernel_f32(i % 2 ? bias.f : NULL)};
            kernel_multiply(m, kernel_bf16(x), &panels, &how, kernel_bf16(up));
            kernel_glu(ACT_SILU, kernel_bf16(want), kernel_bf16(g), kernel_bf16(up), m * n);
            for (int in_place = 0; in_place < 2; in_place++) {
                memcpy(got, g, m * n * sizeof *got);
                got[m * n] = 0x5a5a;
                how.gate = kernel_bf16(in_place ? got : g);
                kernel_multiply(m, kernel_bf16(x), &panels, &how, kernel_bf16(got));
                assert_memory_equal(got, want, m * n * sizeof *got);
                assert_int_equal(got[m * n], 0x5a5a);
            }
        }
        arena_reset(&memory);
    }
}

/* A residual, also the result itself, is added to sums that are complete in f32. */
static void test_residual_in_place(void **state) {
    (void)state;
    static const size_t shapes[][3] = {{1, 1, 1}, {29, 200, 64}, {130, 96, 800}, {100, 470, 1000}, {70, 64, 4200}};
    struct rng r = rng_init(10, 1);
    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        size_t m = shapes[i][0], n = shapes[i][1], k = shapes[i][2];
        struct pair a = bf16_normals(&r, m * k), b = bf16_normals(&r, n * k), residual = normals(&r, m * n, 1);
        uint16_t *x = rounded(a.f, m * k);
        float *want = take(m * n, sizeof *want), *got = take(m * n, sizeof *got);
        struct product p = {.m = m, .n = n, .k = k, .b = b.f, .source = NT_F32};
        EACH_PATH(path) {
            struct kernel_matrix panels = matrix_of(&p);
            kernel_multiply(m, kernel_bf16(x), &panels, NULL, kernel_f32(want));
            kernel_add(kernel_f32(want), kernel_f32(residual.f), m * n);
            for (int in_place = 0; in_place < 2; in_place++) {
                memcpy(got, residual.f, m * n * sizeof *got);
                struct kernel_epilogue how = {.residual = kernel_f32(in_place ? got : residual.f)};
                kernel_multiply(m, kernel_bf16(x), &panels, &how, kernel_f32(got));
                assert_memory_equal(got, want, m * n * sizeof *got);
            }
        }
        arena_reset(&memory);
    }
}

/* f32 rows are rounded once, into the product's scratch memory; without it each tile rounds them, to the same bits. */
static void test_rounding_without_memory(void **state) {
    (void)state;
    enum { M = 150, N = 70, K = 300 };
    struct rng r = rng_init(9, 1);
    struct pair a = normals(&r, M * K, 1), b = bf16_normals(&r, N * K);
    struct product p = {.m = M, .n = N, .k = K, .b = b.f, .source = NT_F32};
    float *with = take(M * N, sizeof *with), *without = take(M * N, sizeof *without);
    EACH_PATH(path) {
        struct kernel_matrix panels = matrix_of(&p);
        kernel_multiply(M, kernel_f32(a.f), &panels, NULL, kernel_f32(with));
        mem_fail_at(1);
        kernel_multiply(M, kernel_f32(a.f), &panels, NULL, kernel_f32(without));
        mem_fail_at(0);
        assert_memory_equal(with, without, M * N * sizeof *with);
    }
}

/* Without rows or columns nothing is written. With an empty inner dimension the result is what the epilogue adds. */
static void test_empty_products(void **state) {
    (void)state;
    float c[4] = {1, 2, 3, 4}, bias[2] = {10, 20};
    uint16_t x[1] = {0};
    struct kernel_matrix none = kernel_matrix_in(kernel_bf16(x), KERNEL_PACKED_BF16, DT_BF16, 0, 0);
    kernel_multiply(4, kernel_bf16(x), &none, NULL, kernel_f32(c));
    none.n = 2;
    kernel_multiply(0, kernel_bf16(x), &none, NULL, kernel_f32(c));
    assert_true(c[0] == 1 && c[3] == 4);
    kernel_multiply(2, kernel_bf16(x), &none, &(struct kernel_epilogue){.accumulate = true, .bias = kernel_f32(bias)},
                    kernel_f32(c));
    assert_true(c[0] == 11 && c[3] == 24);
    kernel_multiply(2, kernel_bf16(x), &none, NULL, kernel_f32(c));
    assert_true(c[0] == 0 && c[3] == 0);
    assert_int_equal(kernel_matrix_bytes(KERNEL_PACKED_BF16, DT_BF16, 33, 1), 64 * 32 * 2);
}

/* A row of c must not depend on the number of rows: decoding token by token gives what a pass over the whole text
 * gives. */
static void test_rows_do_not_depend_on_each_other(void **state) {
    (void)state;
    enum { M = 77, N = 71, K = 5000 };
    struct rng r = rng_init(4, 1);
    struct pair a = bf16_normals(&r, M * K), b = bf16_normals(&r, N * K);
    uint16_t *h = rounded(a.f, M * K);
    struct product p = {.m = M, .n = N, .k = K, .b = b.f, .source = NT_F32};
    float *all = take(M * N, sizeof *all), *one = take(N, sizeof *one);
    EACH_PATH(path) {
        struct kernel_matrix panels = matrix_of(&p), rows = kernel_matrix_of(kernel_f32(b.f), N, K);
        kernel_multiply(M, kernel_bf16(h), &panels, NULL, kernel_f32(all));
        for (size_t row = 0; row < M; row += 19) {
            kernel_multiply(1, kernel_f32(a.f + row * K), row % 2 ? &rows : &panels, NULL, kernel_f32(one));
            assert_memory_equal(one, all + row * N, N * sizeof *one);
        }
    }
}

/* The loops of each path must give the bits of lib/tensor. */
static void test_dequantization(void **state) {
    (void)state;
    enum { N = 256 * 7 };
    struct rng r = rng_init(7, 1);
    struct pair w = normals(&r, N, 0.1);
    for (size_t j = 0; j < 256; j++) set(w, j, 0);
    for (size_t j = 512; j < 1024; j++) set(w, j, w.d[j] * 1e-5); /* scales that are subnormal in f16 */
    for (size_t i = 0; dtype_at(i); i++) {
        const struct dtype_info *type = dtype_at(i);
        if (!type->is_quantized || type->read_only) continue;
        struct err e;
        float *f = take(N, sizeof *f);
        unsigned char *blocks = take(dtype_row_bytes(type->dtype, N) + 1, 1);
        uint16_t *h = take(N, sizeof *h);
        assert_int_equal(tensor_from_f32(type->dtype, w.f, blocks + 1, N, NULL, &e), 0);
        tensor_to_f32(type->dtype, blocks + 1, f, N);
        EACH_PATH(path) {
            if (!simd()->dequantize || !simd()->dequantize(type->dtype, blocks + 1, h, N)) continue;
            for (size_t j = 0; j < N; j++)
                if (h[j] != f32_to_bf16(f[j]))
                    fail_msg("%s, %s: element %zu is %g, should be %g", type->name, path, j, (double)bf16_to_f32(h[j]),
                             (double)f[j]);
        }
    }
}

/* ---- quantized weights: as if rounded to bf16 first, which costs 2^-8 of every term ---- */

static void test_quantized_products(void **state) {
    (void)state;
    enum { M = 19, N = 37, K = 768 };
    struct rng r = rng_init(5, 1);
    struct pair a = bf16_normals(&r, M * K), c = zeros(M * N), w = normals(&r, N * K, 0.1);
    for (size_t i = 0; dtype_at(i); i++) {
        const struct dtype_info *type = dtype_at(i);
        if ((!type->is_quantized && !type->is_float) || type->read_only) continue;
        struct err e;
        struct pair b = zeros(N * K);
        unsigned char *blocks = take(dtype_row_bytes(type->dtype, N * K), 1);
        assert_int_equal(tensor_from_f32(type->dtype, w.f, blocks, N * K, NULL, &e), 0);
        tensor_to_f32(type->dtype, blocks, b.f, N * K);
        for (size_t j = 0; j < N * K; j++) set(b, j, bf16_to_f32(f32_to_bf16(b.f[j])));
        for (int packed = 0; packed < 2; packed++) {
            struct product p = {.m = M, .n = N, .k = K, .a_type = DT_F32, .c_type = DT_F32, .a = a.f, .b = blocks};
            p.source = packed ? NT_F32 : ROWS_F32;
            p.rows = type->dtype;
            check_product(&p, a, b, c, c, c);
        }
    }
}

static void test_gather(void **state) {
    (void)state;
    enum { N = 70, K = 67 };
    const uint32_t ids[] = {0, 69, 33, 31, 32, 33};
    struct rng r = rng_init(6, 1);
    struct pair b = bf16_normals(&r, N * K);
    float y[COUNT_OF(ids) * K];
    for (int source = NT_F32; source <= ROWS_F32; source += ROWS_F32) {
        struct product p = {.n = N, .k = K, .b = b.f, .source = (enum source)source};
        struct kernel_matrix panels = matrix_of(&p);
        kernel_matrix_gather(kernel_f32(y), &panels, ids, COUNT_OF(ids));
        for (size_t i = 0; i < COUNT_OF(y); i++) assert_true(y[i] == b.f[ids[i / K] * K + i % K]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_conversions, release_memory),
        cmocka_unit_test_teardown(test_products, release_memory),
        cmocka_unit_test_teardown(test_gated_products, release_memory),
        cmocka_unit_test_teardown(test_residual_in_place, release_memory),
        cmocka_unit_test_teardown(test_rounding_without_memory, release_memory),
        cmocka_unit_test(test_empty_products),
        cmocka_unit_test_teardown(test_rows_do_not_depend_on_each_other, release_memory),
        cmocka_unit_test_teardown(test_dequantization, release_memory),
        cmocka_unit_test_teardown(test_quantized_products, release_memory),
        cmocka_unit_test_teardown(test_gather, release_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
