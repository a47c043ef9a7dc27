/*
 * Tests of lib/kernel: products of 8-bit integers with quantized weights. The bits must be those of the plain float
 * twin; that they are a product with the weights is checked in f64.
 */
#include "tests/unit/kernel_test.h"

/* Types whose blocks are integers and scales. */
static const struct dtype_info *quantized(size_t index) {
    for (size_t i = 0; dtype_at(i); i++)
        if (dtype_at(i)->is_quantized && quant_form(dtype_at(i)->dtype) && index-- == 0) return dtype_at(i);
    return NULL;
}

/* Weights [n][k] in a quantized type, with their codes, scales and minima. */
struct weights {
    const struct dtype_info *type;
    size_t n, k, group;
    unsigned char *blocks;
    int *codes;         /* without the offset */
    float *scale, *min; /* [n][k/group]; min is NULL where the type has none */
    float *values;
};

static void take_apart(struct weights *w) {
    const struct quant_form *form = quant_form(w->type->dtype);
    size_t elems = w->type->block_elems;
    w->group = form->group;
    w->codes = take(w->n * w->k, sizeof *w->codes);
    w->scale = take(w->n * w->k / w->group, sizeof *w->scale);
    w->min = form->has_min ? take(w->n * w->k / w->group, sizeof *w->min) : NULL;
    w->values = take(w->n * w->k, sizeof *w->values);
    tensor_to_f32(w->type->dtype, w->blocks, w->values, w->n * w->k);
    for (size_t i = 0; i < w->n * w->k; i += elems) {
        struct quant_parts p;
        quant_take_apart(w->type->dtype, w->blocks + i / elems * w->type->block_bytes, &p);
        for (size_t j = 0; j < elems; j++) w->codes[i + j] = p.codes[j] - form->offset;
        for (size_t g = 0; g < elems / w->group; g++) {
            w->scale[i / w->group + g] = f16_to_f32(p.d) * p.scales[g];
            if (w->min) w->min[i / w->group + g] = f16_to_f32(p.min) * p.mins[g];
        }
    }
}

static struct weights random_weights(struct rng *r, const struct dtype_info *type, size_t n, size_t k) {
    struct weights w = {.type = type, .n = n, .k = k};
    struct pair x = normals(r, n * k, 0.1);
    struct err e;
    w.blocks = take(dtype_row_bytes(type->dtype, n * k), 1);
    assert_int_equal(tensor_from_f32(type->dtype, x.f, w.blocks, n * k, NULL, &e), 0);
    take_apart(&w);
    return w;
}

static struct kernel_matrix pack(const struct weights *w) {
    enum dtype type = w->type->dtype;
    size_t bytes = kernel_matrix_bytes(KERNEL_PACKED_INT8, type, w->n, w->k);
    unsigned char *to = take(bytes + 64, 1);
    memset(to, 0xff, bytes + 64);
    struct kernel_matrix p = kernel_matrix_in(kernel_host_array(type, to), KERNEL_PACKED_INT8, type, w->n, w->k);
    kernel_matrix_fill(&p, 0, w->n, type, w->blocks);
    for (size_t i = 0; i < 64; i++) assert_int_equal(to[bytes + i], 0xff);
    return p;
}

static void assert_bits(const char *what, const struct weights *w, size_t m, const float *got, const float *want) {
    for (size_t i = 0; i < m * w->n; i++)
        if (memcmp(&got[i], &want[i], sizeof *got) != 0 && !(isnan(got[i]) && isnan(want[i])))
            fail_msg("%s, %s: %zu x %zu x %zu: element %zu is %.9g, should be %.9g", what, w->type->name, m, w->n, w->k,
                     i, (double)got[i], (double)want[i]);
}

/* On every path, with 1 and 3 threads. */
static void check_bits(const struct weights *w, size_t m, const float *a) {
    float *want = take(m * w->n, sizeof *want), *got = take(m * w->n + 1, sizeof *got);
    plain32_multiply_int8(m, w->n, w->k, w->group, a, w->codes, w->scale, w->min, want);
    EACH_PATH(path) {
        struct kernel_matrix panels = pack(w);
        for (int threads = 1; threads <= 3; threads += 2) {
            parallel_set_threads(threads);
            for (size_t i = 0; i <= m * w->n; i++) got[i] = -7;
            kernel_multiply(m, kernel_f32(a), &panels, NULL, kernel_f32(got));
            assert_bits(path, w, m, got, want);
            assert_true(got[m * w->n] == -7);
        }
    }
    parallel_set_threads(parallel_default_threads());
}

/* Shapes around the edges of row groups, panels, chunks and tiles. */
static void test_bits(void **state) {
    static const size_t shapes[][3] = {{1, 1, 256},  {1, 70, 512}, {2, 33, 768},
                                       {5, 32, 256}, {7, 31, 256}, {40, 65, 256}};
    (void)state;
    struct rng r = rng_init(1, 1);
    for (size_t t = 0; quantized(t); t++) {
        for (size_t i = 0; i < COUNT_OF(shapes); i++) {
            struct weights w = random_weights(&r, quantized(t), shapes[i][1], shapes[i][2]);
            check_bits(&w, shapes[i][0], normals(&r, shapes[i][0] * w.k, 1).f);
            arena_reset(&memory);
        }
        for (size_t m = 1; m <= 40 && quantized(t)->block_elems == 32; m += 1 + m / 8) {
            struct weights w = random_weights(&r, quantized(t), 1 + 7 * m, 32 * m);
            check_bits(&w, m, normals(&r, m * w.k, 1).f);
            arena_reset(&memory);
        }
    }
    struct weights w = random_weights(&r, dtype_info(DT_Q4_0), 33, 96);
    check_bits(&w, 430, normals(&r, 430 * w.k, 1).f); /* tiles of rows */
    arena_reset(&memory);
    w = random_weights(&r, dtype_info(DT_Q8_0), 3, 65536);
    check_bits(&w, 20, normals(&r, 20 * w.k, 1).f); /* more rows than are quantized at a time */
    arena_reset(&memory);
    w = random_weights(&r, dtype_info(DT_Q4_1), 2, (1 << 19) + 32);
    check_bits(&w, 3, normals(&r, 3 * w.k, 1).f); /* a single row that exceeds that */
}

/*
 * Rounding an activation changes it by at most half a unit d, and slightly more for the two roundings before the
 * integer: an element by 0.5001 sum |w| d. Sums of groups are exact; their factors and the sum over groups are 4 + k /
 * 16 operations in f32, twice as many with minima.
 */
static void test_value(void **state) {
    enum { M = 9, N = 37, K = 768 };
    (void)state;
    struct rng r = rng_init(2, 1);
    for (size_t t = 0; quantized(t); t++) {
        struct weights w = random_weights(&r, quantized(t), N, K);
        struct pair a = normals(&r, M * K, 1);
        for (size_t i = 0; i < M * K; i++) set(a, i, a.d[i] * pow(10, (double)(i / 64 % 7) - 3));
        float *got = take(M * N, sizeof *got);
        struct kernel_matrix panels = pack(&w);
        kernel_multiply(M, kernel_f32(a.f), &panels, NULL, kernel_f32(got));
        for (size_t i = 0; i < M * N; i++) {
            double want = 0, tolerance = 0;
            for (size_t p = 0; p < K; p++) {
                const double *x = a.d + i / N * K + p;
                double weight = w.values[i % N * K + p], max = 0;
                size_t at = i % N * K + p;
                double parts =
                    fabs((double)w.codes[at] * w.scale[at / w.group]) + (w.min ? fabs(w.min[at / w.group]) : 0);
                for (size_t j = p / 32 * 32; j < p / 32 * 32 + 32; j++) max = fmax(max, fabs(a.d[i / N * K + j]));
                want += weight * *x;
                tolerance += 0.5001 * fabs(weight) * max / 127 + parts * max * U * (4 + K / 8);
            }
            assert_true(fabs(got[i] - want) <= tolerance);
            assert_true(tolerance > 0);
        }
        arena_reset(&memory);
    }
}

/* Zero, the smallest and the largest f16, codes of every kind, all random but finite. */
static void test_hostile_scales(void **state) {
    static const uint16_t scales[] = {0, 0x8000, 1, 0x8001, 0x3ff, 0x7bff, 0xfbff};
    enum { M = 3, N = 5, K = 512 };
    (void)state;
    struct rng r = rng_init(3, 1);
    for (size_t t = 0; quantized(t); t++) {
        struct weights w = {.type = quantized(t), .n = N, .k = K};
        size_t bytes = dtype_row_bytes(w.type->dtype, N * K);
        w.blocks = take(bytes, 1);
        for (size_t i = 0; i < bytes; i++) w.blocks[i] = (unsigned char)rng_u32(&r);
        for (size_t b = 0; b < bytes; b += w.type->block_bytes) {
            /* where f16 fields may be: at the beginning (d, then min) or at the end */
            size_t at[] = {b, b + 2, b + w.type->block_bytes - 4, b + w.type->block_bytes - 2};
            for (size_t i = 0; i < COUNT_OF(at); i++) {
                uint16_t h = scales[rng_u32(&r) % COUNT_OF(scales)];
                memcpy(w.blocks + at[i], &h, sizeof h);
            }
        }
        take_apart(&w);
        check_bits(&w, M, normals(&r, M * K, 1).f);
        arena_reset(&memory);
    }
}

/* Subnormal numbers and zeros; a block with a value that is not finite gives NaN, in its row only. */
static void test_hostile_activations(void **state) {
    enum { M = 8, N = 40, K = 256 };
    (void)state;
    struct rng r = rng_init(4, 1);
    const float specials[M] = {0, -0.0f, 1e-45f, 0x1p-120f, 0x1.fffffep-121f, 1e35f, INFINITY, NAN};
    float *got = take(M * N, sizeof *got);
    struct weights w = random_weights(&r, dtype_info(DT_Q4_1), N, K);
    struct pair a = normals(&r, M * K, 1);
    for (size_t i = 0; i < M; i++)
        for (size_t j = 32; j < 64; j++) a.f[i * K + j] = i < 6 ? specials[i] * (j % 3 ? 1.0f : -0.5f) : a.f[i * K + j];
    a.f[6 * K + 40] = -INFINITY;
    a.f[7 * K + 50] = NAN;
    check_bits(&w, M, a.f);
    EACH_PATH(path) {
        struct kernel_matrix panels = pack(&w);
        kernel_multiply(M, kernel_f32(a.f), &panels, NULL, kernel_f32(got));
        for (size_t i = 0; i < M * N; i++) assert_int_equal(isnan(got[i]) != 0, i / N >= 6);
    }
}

/* bf16 activations, bf16 results, and the terms of the epilogue. */
static void test_types_and_epilogue(void **state) {
    enum { M = 11, N = 50, K = 160 };
    (void)state;
    struct rng r = rng_init(5, 1);
    struct weights w = random_weights(&r, dtype_info(DT_Q5_0), N, K);
    struct pair a = normals(&r, M * K, 1), c = normals(&r, M * N, 1), bias = normals(&r, N, 1);
    struct pair residual = normals(&r, M * N, 1);
    uint16_t *h = take(M * K, sizeof *h), *made = take(M * N, sizeof *made);
    float *sums = take(M * N, sizeof *sums), *got = take(M * N, sizeof *got);
    for (size_t i = 0; i < M * K; i++) h[i] = f32_to_bf16(a.f[i]), a.f[i] = bf16_to_f32(h[i]);
    plain32_multiply_int8(M, N, K, w.group, a.f, w.codes, w.scale, w.min, sums);
    EACH_PATH(path) {
        struct kernel_matrix panels = pack(&w);
        struct kernel_epilogue how = {.bias = kernel_f32(bias.f), .residual = kernel_f32(residual.f)};
        kernel_multiply(M, kernel_bf16(h), &panels, &how, kernel_f32(got));
        kernel_multiply(M, kernel_bf16(h), &panels, &how, kernel_bf16(made));
        for (size_t i = 0; i < M * N; i++) {
            assert_true(got[i] == sums[i] + bias.f[i % N] + residual.f[i]);
            assert_int_equal(made[i], f32_to_bf16(got[i]));
        }
        uint16_t gate[M * N], gated[M * N];
        for (size_t i = 0; i < M * N; i++) gate[i] = f32_to_bf16(c.f[i]);
        kernel_multiply(M, kernel_bf16(h), &panels, &(struct kernel_epilogue){.gate = kernel_bf16(gate)},
                        kernel_bf16(gated));
        kernel_multiply(M, kernel_bf16(h), &panels, NULL, kernel_bf16(made));
        kernel_glu(ACT_SILU, kernel_bf16(made), kernel_bf16(gate), kernel_bf16(made), M * N);
        assert_memory_equal(gated, made, M * N * sizeof *made);
        /* accumulate: the sum starts from c, so the bits are not those of c + sum */
        memcpy(got, c.f, M * N * sizeof *got);
        kernel_multiply(M, kernel_bf16(h), &panels, &(struct kernel_epilogue){.accumulate = true}, kernel_f32(got));
        for (size_t i = 0; i < M * N; i++)
            assert_true(fabsf(got[i] - (c.f[i] + sums[i])) <= U * (K / 32 + 2) * (fabsf(c.f[i]) + 60));
    }
}

static void test_empty(void **state) {
    (void)state;
    float c[4] = {1, 2, 3, 4}, bias[2] = {10, 20};
    struct kernel_matrix none = kernel_matrix_in(kernel_f32(c), KERNEL_PACKED_INT8, DT_Q8_0, 0, 0);
    kernel_multiply(4, kernel_f32(c), &none, NULL, kernel_f32(c));
    none.n = 2;
    kernel_multiply(0, kernel_f32(c), &none, NULL, kernel_f32(c));
    assert_true(c[0] == 1 && c[3] == 4);
    kernel_multiply(2, kernel_f32(c), &none, &(struct kernel_epilogue){.bias = kernel_f32(bias)}, kernel_f32(c));
    assert_true(c[0] == 10 && c[3] == 20);
    assert_int_equal(kernel_matrix_bytes(KERNEL_PACKED_INT8, DT_Q8_0, 33, 32), 2 * 32 * 34);
    assert_int_equal(kernel_matrix_bytes(KERNEL_PACKED_INT8, DT_Q4_0, 32, 288), 9 * 32 * 18);
    assert_int_equal(kernel_matrix_bytes(KERNEL_PACKED_INT8, DT_Q4_K, 32, 512),
                     2 * 32 * (144 + 4)); /* factors take 8 bits, not 6 */
}

/* Every element must keep its bits. */
static void test_gather(void **state) {
    enum { N = 70, K = 512 };
    static const uint32_t ids[] = {0, 69, 33, 31, 32, 33};
    (void)state;
    struct rng r = rng_init(6, 1);
    float *y = take(COUNT_OF(ids) * K, sizeof *y);
    for (size_t t = 0; quantized(t); t++) {
        struct weights w = random_weights(&r, quantized(t), N, K);
        struct kernel_matrix panels = pack(&w);
        kernel_matrix_gather(kernel_f32(y), &panels, ids, COUNT_OF(ids));
        for (size_t i = 0; i < COUNT_OF(ids) * K; i++) assert_true(y[i] == w.values[ids[i / K] * K + i % K]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_bits, release_memory),
        cmocka_unit_test_teardown(test_value, release_memory),
        cmocka_unit_test_teardown(test_hostile_scales, release_memory),
        cmocka_unit_test_teardown(test_hostile_activations, release_memory),
        cmocka_unit_test_teardown(test_types_and_epilogue, release_memory),
        cmocka_unit_test(test_empty),
        cmocka_unit_test_teardown(test_gather, release_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
