/*
 * Tests of lib/kernel with bf16 activations. A kernel that takes arrays of either type computes in f32 and rounds its
 * result once; so its result for bf16 inputs is, bit for bit, the rounded result of the f32 kernel on the widened
 * inputs. The exception is attention on paths that multiply bf16. test_kernel.c tests the f32 kernels themselves.
 */
#include "tests/unit/kernel_test.h"

/* Random numbers that bf16 holds exactly, in both types. */
struct twin {
    struct kernel_array f32, bf16;
    size_t n;
};

static struct twin empty(size_t n) {
    return (struct twin){kernel_f32(take(n, sizeof(float))), kernel_bf16(take(n + 1, sizeof(uint16_t))), n};
}

static struct twin numbers(struct rng *r, size_t n) {
    struct twin t = empty(n);
    uint16_t *h = host_of(t.bf16);
    for (size_t i = 0; i < n; i++) {
        h[i] = f32_to_bf16((float)rng_normal(r));
        ((float *)host_of(t.f32))[i] = bf16_to_f32(h[i]);
    }
    return t;
}

static void check_rounded(const char *what, const char *path, struct twin t) {
    const float *want = host_of(t.f32);
    const uint16_t *got = host_of(t.bf16);
    for (size_t i = 0; i < t.n; i++)
        if (got[i] != f32_to_bf16(want[i]))
            fail_msg("%s, %s: element %zu is %.9g, should be %.9g rounded", what, path, i, (double)bf16_to_f32(got[i]),
                     (double)want[i]);
}

static const size_t shapes[][2] = {{1, 1}, {3, 64}, {7, 33}, {5, 576}, {129, 100}, {2, 1024}};

static void test_norm_and_gate(void **state) {
    (void)state;
    struct rng r = rng_init(31, 1);
    for (size_t s = 0; s < COUNT_OF(shapes); s++) {
        size_t rows = shapes[s][0], d = shapes[s][1], n = rows * d;
        float *w = normals(&r, d, 1).f, *inv = take(4 * rows, sizeof *inv), *dw = take(4 * d, sizeof *dw);
        EACH_PATH(path) {
            struct twin x = numbers(&r, n), dy = numbers(&r, n), up = numbers(&r, n), y = empty(n), dup = empty(n);
            kernel_rmsnorm(y.f32, kernel_f32(inv), x.f32, kernel_f32(w), rows, d, 1e-5f);
            kernel_rmsnorm(y.bf16, kernel_f32(inv + rows), x.bf16, kernel_f32(w), rows, d, 1e-5f);
            assert_memory_equal(inv, inv + rows, rows * sizeof *inv);
            check_rounded("rmsnorm", path, y);
            struct twin dx = numbers(&r, n); /* must be added to */
            memset(dw, 0, 2 * d * sizeof *dw);
            kernel_rmsnorm_backward(dx.f32, kernel_f32(dw), dy.f32, x.f32, kernel_f32(w), kernel_f32(inv), rows, d);
            kernel_rmsnorm_backward(dx.bf16, kernel_f32(dw + d), dy.bf16, x.bf16, kernel_f32(w), kernel_f32(inv), rows,
                                    d);
            assert_memory_equal(dw, dw + d, d * sizeof *dw);
            check_rounded("rmsnorm backward", path, dx);
            kernel_layernorm(y.f32, kernel_f32(inv), x.f32, kernel_f32(w), kernel_f32(w), rows, d, 1e-5f);
            kernel_layernorm(y.bf16, kernel_f32(inv + 2 * rows), x.bf16, kernel_f32(w), kernel_f32(w), rows, d, 1e-5f);
            assert_memory_equal(inv, inv + 2 * rows, 2 * rows * sizeof *inv);
            check_rounded("layernorm", path, y);
            memset(dw, 0, 4 * d * sizeof *dw);
            kernel_layernorm_backward(dx.f32, kernel_f32(dw), kernel_f32(dw + 2 * d), dy.f32, x.f32, kernel_f32(w),
                                      kernel_f32(inv), rows, d);
            kernel_layernorm_backward(dx.bf16, kernel_f32(dw + d), kernel_f32(dw + 3 * d), dy.bf16, x.bf16,
                                      kernel_f32(w), kernel_f32(inv), rows, d);
            assert_memory_equal(dw, dw + d, d * sizeof *dw);
            assert_memory_equal(dw + 2 * d, dw + 3 * d, d * sizeof *dw);
            kernel_glu(ACT_SILU, y.f32, x.f32, up.f32, n);
            kernel_glu(ACT_SILU, y.bf16, x.bf16, up.bf16, n);
            check_rounded("swiglu", path, y);
            kernel_glu_backward(ACT_SILU, y.f32, dup.f32, dy.f32, x.f32, up.f32, n);
            kernel_glu_backward(ACT_SILU, y.bf16, dup.bf16, dy.bf16, x.bf16, up.bf16, n);
            check_rounded("swiglu backward, gate", path, y);
            check_rounded("swiglu backward, up", path, dup);
        }
        arena_reset(&memory);
    }
}

/* Rows longer than the buffer for widening; one type in, the other out. */
static void test_mixed_types(void **state) {
    (void)state;
    enum { D = 5000, ROWS = 3, N = D * ROWS };
    struct rng r = rng_init(32, 1);
    float *w = normals(&r, D, 1).f, *inv = take(2 * ROWS, sizeof *inv);
    struct twin x = numbers(&r, N), y = empty(N), z = numbers(&r, N);
    kernel_rmsnorm(y.f32, kernel_f32(inv), x.f32, kernel_f32(w), ROWS, D, 1e-5f);
    kernel_rmsnorm(y.bf16, kernel_f32(inv + ROWS), x.f32, kernel_f32(w), ROWS, D, 1e-5f);
    for (size_t i = 0; i < ROWS; i++) /* a mean in f64, summed in another order */
        assert_true(fabsf(inv[i] - inv[ROWS + i]) <= 2 * U * inv[i]);
    for (size_t i = 0; i < N; i++) {
        float want = ((float *)host_of(y.f32))[i];
        assert_true(fabsf(bf16_to_f32(((uint16_t *)host_of(y.bf16))[i]) - want) <= (0x1p-8f + 4 * U) * fabsf(want));
    }
    kernel_convert(y.bf16, x.f32, N);
    assert_memory_equal(host_of(y.bf16), host_of(x.bf16), N * sizeof(uint16_t));
    kernel_convert(y.f32, z.bf16, N);
    assert_memory_equal(host_of(y.f32), host_of(z.f32), N * sizeof(float));
    kernel_convert(y.bf16, z.bf16, N);
    assert_memory_equal(host_of(y.bf16), host_of(z.bf16), N * sizeof(uint16_t));
    kernel_add(y.f32, x.bf16, N);
    kernel_add(y.bf16, x.f32, N);
    check_rounded("add", "mixed", y);
    float *sums = take(2 * D, sizeof *sums);
    kernel_sum_rows(kernel_f32(sums), x.f32, ROWS, D);
    kernel_sum_rows(kernel_f32(sums + D), x.bf16, ROWS, D);
    assert_memory_equal(sums, sums + D, D * sizeof *sums);
}

static void test_rope(void **state) {
    (void)state;
    static const size_t dims[] = {2, 34, 64, 256};
    static const uint32_t position[] = {0, 1, 77, 131071};
    struct rng r = rng_init(33, 1);
    for (size_t i = 0; i < COUNT_OF(dims); i++) {
        double inv_freq[128];
        for (size_t j = 0; j < dims[i] / 2; j++) inv_freq[j] = pow(10000, -2.0 * (double)j / (double)dims[i]);
        EACH_PATH(path) {
            struct twin x = numbers(&r, 4 * 3 * dims[i]);
            struct kernel_rotation how = {.dims = dims[i], .inv_freq = inv_freq};
            kernel_rope(x.f32, 4, 3, dims[i], position, &how, -1);
            kernel_rope(x.bf16, 4, 3, dims[i], position, &how, -1);
            check_rounded("rope", path, x);
        }
    }
}

/*
 * Online softmax over three blocks of scores against one softmax over all of them in f64. z = (x - m) s has an error of
 * 3 U |z| (the difference, s in base 2, their product), 2^z one of 3 U. Sums of 128 in f32 add at most 31 + 2
 * roundings; three blocks and the rescaling between them add 3 (3 U |z| + 3 U).
 */
static void test_softmax_rows(void **state) {
    (void)state;
    enum { ROWS = 70, LD = 128, BLOCKS = 3, D = 40, ALL = LD * BLOCKS };
    static const size_t widths[BLOCKS] = {128, 96, 32};
    const float s = 0.125f;
    struct rng r = rng_init(34, 1);
    EACH_PATH(path) {
        struct pair x = normals(&r, ROWS * ALL, 30);
        uint16_t *p = take(ROWS * LD, sizeof *p);
        float m[ROWS], *o = take(ROWS * D, sizeof *o);
        double l[ROWS] = {0}, spread[ROWS] = {0};
        uint32_t seen[ROWS];
        for (size_t i = 0; i < ROWS; i++) m[i] = -INFINITY;
        for (size_t b = 0; b < BLOCKS; b++) {
            float before[ROWS];
            memcpy(before, m, sizeof m);
            for (size_t i = 0; i < ROWS; i++) {
                seen[i] = b == 0 ? 1 + (uint32_t)i : (uint32_t)(i * 7 % (widths[b] + 1)); /* none, some, all */
                for (size_t j = 0; j < D; j++) o[i * D + j] = 1;
            }
            double l_before[ROWS];
            memcpy(l_before, l, sizeof l);
            memset(p, 0x5a, ROWS * LD * sizeof *p);
            simd()->softmax_rows(p, x.f + b * ROWS * LD, ROWS, LD, seen, widths[b], s, m, l, o, D);
            for (size_t i = 0; i < ROWS; i++) {
                const double *row = x.d + (b * ROWS + i) * LD;
                double top = before[i], sum = 0;
                for (size_t j = 0; j < seen[i]; j++) top = row[j] > top ? row[j] : top;
                assert_true(m[i] == (float)top);
                for (size_t j = 0; j < widths[b]; j++) {
                    double z = j < seen[i] ? (row[j] - top) * s : -INFINITY, want = exp(z),
                           got = bf16_to_f32(p[i * LD + j]);
                    if (z > -80 && fabs(got - want) > (0x1p-8 + 3 * U * -z + 3 * U) * want)
                        fail_msg("%s: row %zu, key %zu is %g, should be %g", path, i, j, got, want);
                    if (z <= -80) assert_true(got >= 0 && got <= 1e-34);
                    if (z > -80 && -z > spread[i]) spread[i] = -z;
                    sum += want;
                }
                double shrink = exp((before[i] - top) * s), want = l_before[i] * shrink + sum;
                if (before[i] > -INFINITY && (top - before[i]) * s > spread[i]) spread[i] = (top - before[i]) * s;
                if (fabs(l[i] - want) > (33 + 3 + 3 * spread[i]) * U * want)
                    fail_msg("%s: row %zu sums to %g, should be %g", path, i, l[i], want);
                if (b > 0) assert_true(fabs(o[i * D + D - 1] - shrink) <= (4 + 3 * spread[i]) * U * shrink);
                assert_int_equal(widths[b] < LD ? p[i * LD + widths[b]] : 0x5a5a, 0x5a5a);
            }
        }
        arena_reset(&memory);
    }
}

/*
 * Where bf16 is multiplied directly, p and ds are rounded as well (UH each); the rest are errors of f32. |y| <= max
 * |v|, so y is within 2.1 UH of that. dv = sum p dy: UH sum p |dy|. ds = scale p (dy.v - D): UH |ds|, which is summed
 * into dq and dk. Each bound has a tenth to spare for errors of f32.
 */
#define UH 0x1p-8

struct bounds {
    double *dq, *dk, *dv;
};

static struct bounds attention_bounds(const struct kernel_attention *a, struct twin q, struct twin k, struct twin v,
                                      struct twin dy, struct twin y, const float *lse) {
    const float *fq = host_of(q.f32), *fk = host_of(k.f32), *fv = host_of(v.f32), *fdy = host_of(dy.f32),
                *fy = host_of(y.f32);
    struct bounds b = {take(q.n, sizeof(double)), take(k.n, sizeof(double)), take(k.n, sizeof(double))};
    size_t d = a->head_dim, group = a->n_heads / a->n_kv_heads;
    for (size_t s = 0; s < a->n_seqs; s++)
        for (size_t i = a->starts[s]; i < a->starts[s + 1]; i++)
            for (size_t h = 0; h < a->n_heads; h++)
                for (size_t j = a->starts[s]; j <= i; j++) {
                    size_t at = (i * a->n_heads + h) * d, kv = (j * a->n_kv_heads + h / group) * d;
                    double score = 0, dp = 0, mean = 0;
                    for (size_t c = 0; c < d; c++) {
                        score += (double)fq[at + c] * fk[kv + c];
                        dp += (double)fdy[at + c] * fv[kv + c];
                        mean += (double)fdy[at + c] * fy[at + c];
                    }
                    double p = exp(a->scale * score - lse[at / d]), ds = a->scale * p * fabs(dp - mean);
                    for (size_t c = 0; c < d; c++) {
                        b.dq[at + c] += 1.1 * UH * ds * fabs(fk[kv + c]);
                        b.dk[kv + c] += 1.1 * UH * ds * fabs(fq[at + c]);
                        b.dv[kv + c] += 1.1 * UH * p * fabs(fdy[at + c]);
                    }
                }
    return b;
}

static void check_near(const char *what, const char *path, float got, float want, double bound) {
    if (fabs((double)got - (double)want) > bound)
        fail_msg("%s, %s: %.9g, should be %.9g +- %.3g", what, path, (double)got, (double)want, bound);
}

/* Backward gets the same y and log-sum-exp in both types. */
static void test_attention(void **state) {
    (void)state;
    static const uint32_t starts[] = {0, 5, 6, 320};
    static const size_t heads[][3] = {{3, 1, 64}, {4, 4, 20}, {9, 3, 32}, {2, 1, 256}};
    struct rng r = rng_init(34, 1);
    for (size_t i = 0; i < COUNT_OF(heads); i++) {
        struct kernel_attention a = {heads[i][0], heads[i][1], heads[i][2], 3, starts, 0.2f};
        size_t n = starts[3], q_size = n * a.n_heads * a.head_dim, kv_size = n * a.n_kv_heads * a.head_dim;
        struct twin q = numbers(&r, q_size), k = numbers(&r, kv_size), v = numbers(&r, kv_size);
        struct twin dy = numbers(&r, q_size), y = empty(q_size), dq = empty(q_size);
        size_t rows = n * a.n_heads;
        float *lse = take(2 * rows, sizeof *lse), *dk = take(4 * kv_size, sizeof *dk), *dv = dk + 2 * kv_size;
        struct bounds b = {0};
        EACH_PATH(path) {
            bool rounds = kernel_has_bf16() && a.head_dim % 32 == 0;
            kernel_attention(&a, y.f32, kernel_f32(lse + rows), q.bf16, k.bf16, v.bf16); /* as generation calls it */
            kernel_attention(&a, y.bf16, kernel_f32(lse + rows), q.bf16, k.bf16, v.bf16);
            check_rounded("attention to f32", path, y);
            kernel_attention(&a, y.f32, kernel_f32(lse), q.f32, k.f32, v.f32);
            if (!rounds) {
                assert_memory_equal(lse, lse + rows, rows * sizeof *lse);
                check_rounded("attention", path, y);
            }
            for (size_t j = 0; j < rows; j++) check_near("log-sum-exp", path, lse[rows + j], lse[j], 1e-4);
            for (size_t j = 0; j < q_size; j++)
                check_near("attention", path, bf16_to_f32(((uint16_t *)host_of(y.bf16))[j]),
                           ((float *)host_of(y.f32))[j], 2.1 * UH * 4.5); /* |v| < 4.5 */
            kernel_convert(y.f32, y.bf16, q_size);
            kernel_attention_backward(&a, dq.f32, kernel_f32(dk), kernel_f32(dv), dy.f32, y.f32, kernel_f32(lse), q.f32,
                                      k.f32, v.f32);
            kernel_attention_backward(&a, dq.bf16, kernel_f32(dk + kv_size), kernel_f32(dv + kv_size), dy.bf16, y.bf16,
                                      kernel_f32(lse), q.bf16, k.bf16, v.bf16);
            if (!rounds) {
                check_rounded("attention backward", path, dq);
                assert_memory_equal(dk, dk + kv_size, kv_size * sizeof *dk);
                assert_memory_equal(dv, dv + kv_size, kv_size * sizeof *dv);
                continue;
            }
            if (!b.dq) b = attention_bounds(&a, q, k, v, dy, y, lse);
            for (size_t j = 0; j < q_size; j++) {
                float want = ((float *)host_of(dq.f32))[j];
                check_near("dq", path, bf16_to_f32(((uint16_t *)host_of(dq.bf16))[j]), want,
                           b.dq[j] + UH * fabsf(want) + 1e-5);
            }
            for (size_t j = 0; j < kv_size; j++) {
                check_near("dk", path, dk[kv_size + j], dk[j], b.dk[j] + 1e-5);
                check_near("dv", path, dv[kv_size + j], dv[j], b.dv[j] + 1e-5);
            }
        }
        arena_reset(&memory);
    }
}

/* One and four threads must give the same bits, and what follows a position must not affect it. */
static void test_attention_bits(void **state) {
    (void)state;
    static const uint32_t starts[] = {0, 150, 333}, shorter[] = {0, 150, 200};
    enum { H = 3, D = 64, N = 333, KEPT = 200 };
    struct kernel_attention a = {H, 1, D, 2, starts, 0.125f}, cut = a;
    struct rng r = rng_init(36, 1);
    struct twin q = numbers(&r, N * H * D), k = numbers(&r, N * D), v = numbers(&r, N * D), dy = numbers(&r, N * H * D);
    float *lse = take(N * H, sizeof *lse), *sums = take(4 * N * D, sizeof *sums);
    cut.starts = shorter;
    EACH_PATH(path) {
        struct twin y[2] = {empty(N * H * D), empty(N * H * D)}, dq[2] = {empty(N * H * D), empty(N * H * D)};
        for (int i = 0; i < 2; i++) {
            parallel_set_threads(i ? 4 : 1);
            kernel_attention(&a, y[i].bf16, kernel_f32(lse), q.bf16, k.bf16, v.bf16);
            kernel_attention_backward(&a, dq[i].bf16, kernel_f32(sums + 2 * i * N * D),
                                      kernel_f32(sums + (2 * i + 1) * N * D), dy.bf16, y[i].bf16, kernel_f32(lse),
                                      q.bf16, k.bf16, v.bf16);
        }
        assert_memory_equal(host_of(y[0].bf16), host_of(y[1].bf16), N * H * D * sizeof(uint16_t));
        assert_memory_equal(host_of(dq[0].bf16), host_of(dq[1].bf16), N * H * D * sizeof(uint16_t));
        assert_memory_equal(sums, sums + 2 * N * D, 2 * N * D * sizeof *sums);
        kernel_attention(&cut, y[1].bf16, kernel_f32(lse), q.bf16, k.bf16, v.bf16);
        assert_memory_equal(host_of(y[0].bf16), host_of(y[1].bf16), KEPT * H * D * sizeof(uint16_t));
    }
    parallel_set_threads(parallel_default_threads());
}

/* Heads so wide that fewer keys are widened at a time: sums are split differently, so the last bits may differ. */
static void test_wide_heads(void **state) {
    (void)state;
    static const uint32_t starts[] = {0, 90};
    enum { D = 1000, N = 90 };
    struct kernel_attention a = {1, 1, D, 1, starts, 0.03f};
    struct rng r = rng_init(35, 1);
    struct twin q = numbers(&r, N * D), k = numbers(&r, N * D), v = numbers(&r, N * D), y = empty(N * D);
    kernel_attention(&a, y.f32, kernel_none(DT_F32), q.f32, k.f32, v.f32);
    kernel_attention(&a, y.bf16, kernel_none(DT_F32), q.bf16, k.bf16, v.bf16);
    for (size_t i = 0; i < N * D;
         i++) { /* values around 1: half a unit of bf16, 2^-8, and (N + D) U of the terms in f32 */
        float want = ((float *)host_of(y.f32))[i], got = bf16_to_f32(((uint16_t *)host_of(y.bf16))[i]);
        assert_true(fabsf(got - want) <= 0x1p-8f * fabsf(want) + 5 * (N + D) * (float)U);
    }
}

/* Memory of a device: an upload downloads unchanged, parts begin where they should, and impossible requests are
 * errors. */
static void test_memory(void **state) {
    (void)state;
    struct err e;
    static const enum dtype types[] = {DT_F32, DT_BF16, DT_U8};
    const unsigned char sent[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        size_t size = kernel_array_bytes(types[i], 1), n = sizeof sent / size;
        unsigned char back[12] = {0};
        struct kernel_array a = kernel_alloc(kernel_cpu(), types[i], n, &e);
        assert_true(kernel_has_data(a) && a.dtype == types[i]);
        kernel_upload(a, sent, n);
        kernel_download(back, a, n);
        assert_memory_equal(back, sent, sizeof sent);
        assert_memory_equal(kernel_host(kernel_part(a, 1), n - 1), sent + size, sizeof sent - size);
        assert_true(kernel_same_data(kernel_typed(a, DT_U8), a) && !kernel_same_data(kernel_part(a, 1), a));
        kernel_free(kernel_cpu(), a);
    }
    struct kernel_array none = kernel_alloc(kernel_cpu(), DT_F32, UINT64_MAX / 2, &e);
    assert_false(kernel_has_data(none));
    assert_int_equal(e.code, ERR_IO);
    assert_null(kernel_host(kernel_none(DT_F32), 0));
    kernel_free(kernel_cpu(), none);
}

/* A matrix filled in parts must equal one made at once, in any packing. */
static void test_matrix_in_parts(void **state) {
    (void)state;
    enum { N = 100, K = 96 };
    struct err e;
    struct rng r = rng_init(41, 1);
    float *w = normals(&r, N * K, 1).f;
    unsigned char *blocks = take(dtype_row_bytes(DT_Q8_0, N * K), 1);
    assert_int_equal(tensor_from_f32(DT_Q8_0, w, blocks, N * K, NULL, &e), 0);
    for (int packing = KERNEL_STORED; packing <= KERNEL_PACKED_INT8; packing++) {
        size_t bytes = kernel_matrix_bytes((enum kernel_packing)packing, DT_Q8_0, N, K);
        struct kernel_matrix made[2];
        for (int parts = 0; parts < 2; parts++) {
            struct kernel_array memory_of = kernel_host_array(DT_U8, take(bytes, 1));
            made[parts] = kernel_matrix_in(memory_of, (enum kernel_packing)packing, DT_Q8_0, N, K);
            for (size_t at = 0, n; at < N; at += n) {
                n = !parts ? N : N - at < 2 * KERNEL_PANEL ? N - at : 2 * KERNEL_PANEL;
                kernel_matrix_fill(&made[parts], at, n, DT_Q8_0, blocks + dtype_row_bytes(DT_Q8_0, at * K));
            }
        }
        assert_memory_equal(host_of(kernel_matrix_memory(&made[0])), host_of(kernel_matrix_memory(&made[1])), bytes);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_norm_and_gate, release_memory),
        cmocka_unit_test_teardown(test_mixed_types, release_memory),
        cmocka_unit_test_teardown(test_softmax_rows, release_memory),
        cmocka_unit_test_teardown(test_rope, release_memory),
        cmocka_unit_test_teardown(test_attention, release_memory),
        cmocka_unit_test_teardown(test_attention_bits, release_memory),
        cmocka_unit_test_teardown(test_wide_heads, release_memory),
        cmocka_unit_test_teardown(test_memory, release_memory),
        cmocka_unit_test_teardown(test_matrix_in_parts, release_memory),
    };
    return cmocka_run_group_tests_name("kernel arrays", tests, NULL, NULL);
}
