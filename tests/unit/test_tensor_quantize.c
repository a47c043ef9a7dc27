/*
 * Tests of lib/tensor: quantized blocks. References: tests/golden/quant, by the gguf package and by llama.cpp's
 * llama-quantize; everything is compared bit for bit.
 */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "lib/tensor/quantize_internal.h"
#include "lib/tensor/tensor.h"

static const struct dtype_info *quantized(size_t index) {
    const struct dtype_info *t;
    for (size_t i = 0; (t = dtype_at(i)); i++)
        if (t->is_quantized && index-- == 0) return t;
    return NULL;
}

/* The types that tensor_from_f32 can produce. */
static const struct dtype_info *made(size_t index) {
    const struct dtype_info *t;
    for (size_t i = 0; (t = quantized(i)); i++)
        if (!t->read_only && index-- == 0) return t;
    return NULL;
}

static bool is_codebook(const struct dtype_info *t) {
    return !strncmp(t->name, "iq1", 3) || !strncmp(t->name, "iq2", 3) || !strncmp(t->name, "iq3", 3);
}

static bool is_ternary(const struct dtype_info *t) {
    return t->dtype == DT_TQ1_0 || t->dtype == DT_TQ2_0;
}

/* tests/golden/quant/PREFIX TYPE SUFFIX */
static struct buf read_golden(const char *prefix, const char *type, const char *suffix) {
    char path[256];
    snprintf(path, sizeof path, "tests/golden/quant/%s%s%s", prefix, type, suffix);
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("cannot open %s (run from the root of the tree)", path);
    struct buf b = {0};
    struct err e;
    size_t got;
    do {
        if (buf_reserve(&b, 1 << 16, &e) != 0) fail_msg("%s", e.msg);
        got = fread(b.data + b.len, 1, 1 << 16, f);
        b.len += got;
    } while (got);
    assert_int_equal(fclose(f), 0);
    return b;
}

/* Reports the first block that differs. */
static void assert_blocks_equal(const struct dtype_info *t, const unsigned char *got, const unsigned char *want,
                                size_t n_bytes, const char *what) {
    for (size_t at = 0; at < n_bytes; at += t->block_bytes)
        if (memcmp(got + at, want + at, t->block_bytes) != 0)
            fail_msg("%s %s: block %zu differs", t->name, what, at / t->block_bytes);
}

/* ---- golden files ---- */

static void test_decoding_is_bit_exact(void **state) {
    (void)state;
    const struct dtype_info *t;
    for (size_t i = 0; (t = quantized(i)); i++) {
        struct buf raw = read_golden("", t->name, ".raw"), want = read_golden("", t->name, ".deq.f32");
        size_t n = raw.len / t->block_bytes * t->block_elems;
        assert_int_equal(raw.len, 64 * t->block_bytes);
        assert_int_equal(want.len, n * sizeof(float));
        struct err e;
        float *got = mem_array(n, sizeof *got, &e);
        tensor_to_f32(t->dtype, raw.data, got, n);
        for (size_t k = 0; k < n; k++)
            if (memcmp(&got[k], want.data + k * sizeof(float), sizeof(float)) != 0)
                fail_msg("%s: element %zu is %a", t->name, k, (double)got[k]);
        mem_free(got);
        buf_release(&raw);
        buf_release(&want);
    }
}

/* Codes and scales, combined as tensor.h says, must give the decoder's bits for arbitrary bytes. */
static void test_parts_make_the_elements(void **state) {
    (void)state;
    const struct dtype_info *t;
    struct rng r = rng_init(8, 1);
    for (size_t i = 0; (t = quantized(i)); i++) {
        const struct quant_form *form = quant_form(t->dtype);
        if (!form) { /* its scales are not f16 times integers */
            assert_true(is_codebook(t) || t->dtype == DT_MXFP4);
            continue;
        }
        for (int trial = 0; trial < 200; trial++) {
            uint8_t block[256];
            struct quant_parts p;
            float want[QUANT_MAX_BLOCK];
            for (size_t k = 0; k < sizeof block; k++) block[k] = (uint8_t)rng_u32(&r);
            quant_take_apart(t->dtype, block, &p);
            tensor_to_f32(t->dtype, block, want, t->block_elems);
            for (size_t k = 0; k < t->block_elems; k++) {
                size_t g = k / form->group;
                assert_in_range(p.codes[k], 0, (1u << form->bits) - 1);
                float x = f16_to_f32(p.d) * p.scales[g] * (float)(p.codes[k] - form->offset);
                if (form->has_min) x += f16_to_f32(p.min) * p.mins[g];
                if (!(isnan(x) && isnan(want[k])) && memcmp(&x, &want[k], sizeof x) != 0)
                    fail_msg("%s: element %zu is %g, should be %g", t->name, k, (double)x, (double)want[k]);
            }
            uint8_t joined[256];
            float again[QUANT_MAX_BLOCK];
            memset(joined, 0x55, sizeof joined);
            quant_put_together(t->dtype, &p, joined);
            tensor_to_f32(t->dtype, joined, again, t->block_elems);
            assert_memory_equal(again, want, t->block_elems * sizeof *again);
        }
    }
    assert_null(quant_form(DT_F32));
}

/* No code of the form is nearer. */
static void test_nearest_code_of_a_form(void **state) {
    (void)state;
    const struct dtype_info *t;
    struct rng r = rng_init(9, 1);
    for (size_t i = 0; (t = quantized(i)); i++) {
        const struct quant_form *f = quant_form(t->dtype);
        for (int trial = 0; f && trial < 300; trial++) {
            float v = (float)rng_normal(&r) * (float)(1u << (f->bits - 1)), best = INFINITY;
            for (int code = 0; code <= (int)f->code_top; code++) {
                bool written = !f->steps;
                for (int k = 0; !written && k < 16; k++) written = f->steps[k] == code - f->offset;
                if (written) best = fminf(best, fabsf(v - (float)(code - f->offset)));
            }
            assert_true(fabsf(v - (float)(quant_nearest(f, v) - f->offset)) == best);
        }
    }
}

/* Rounding other values into given blocks must keep everything but the codes, and each code must be the first of the
 * nearest ones, up to ties. */
static void rounding_at_given_scales_changes_codes_alone(void **state) {
    (void)state;
    const struct dtype_info *t;
    enum { N = 4 * QUANT_MAX_BLOCK };
    for (size_t i = 0; (t = made(i)); i++) {
        const struct quant_form *f = quant_form(t->dtype);
        float x[N], y[N];
        unsigned char blocks[N * 2];
        struct err e;
        struct rng rng = rng_init(7, i);
        if (!f) continue;
        for (size_t k = 0; k < N; k++) x[k] = (float)rng_normal(&rng), y[k] = x[k] + 0.3f * (float)rng_normal(&rng);
        for (size_t k = 0; k < t->block_elems; k++) x[k] = 0; /* a scale of 0 */
        y[N - 1] = 1e20f, y[N - 2] = -1e20f;
        assert_int_equal(tensor_from_f32(t->dtype, x, blocks, N, NULL, &e), 0);
        struct quant_parts before[N / 32] = {0}, p = {0};
        for (size_t b = 0; b < N / t->block_elems; b++)
            quant_take_apart(t->dtype, blocks + b * t->block_bytes, &before[b]);
        tensor_round_at(t->dtype, y, blocks, N);
        for (size_t b = 0; b < N / t->block_elems; b++) {
            quant_take_apart(t->dtype, blocks + b * t->block_bytes, &p);
            assert_memory_equal(&p, &before[b], offsetof(struct quant_parts, codes));
            for (size_t k = 0; k < t->block_elems; k++) {
                double scale = f16_to_f32(p.d) * p.scales[k / f->group];
                double min = f->has_min ? f16_to_f32(p.min) * p.mins[k / f->group] : 0,
                       want = y[b * t->block_elems + k];
                double best = INFINITY, got = fabs(scale * (p.codes[k] - f->offset) + min - want);
                for (unsigned code = 0; code <= f->code_top; code++) {
                    bool is_one = !f->steps;
                    for (size_t s = 0; f->steps && s < 16; s++) is_one |= f->steps[s] == (int)code - f->offset;
                    if (is_one) best = fmin(best, fabs(scale * ((int)code - f->offset) + min - want));
                }
                assert_true(got <= best * (1 + 1e-6) + 1e-6);
                if (scale == 0 && !f->steps && !f->has_min) assert_int_equal(p.codes[k], f->offset);
            }
        }
    }
}

static void test_gguf_package_encodes_the_same(void **state) {
    (void)state;
    static const enum dtype types[] = {DT_Q4_0, DT_Q4_1, DT_Q5_0, DT_Q5_1, DT_Q8_0};
    struct buf in = read_golden("quantize-in", "", ".f32");
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        const struct dtype_info *t = dtype_info(types[i]);
        struct buf want = read_golden("quantize-", t->name, ".raw");
        struct err e;
        unsigned char *got = mem_array(want.len, 1, &e);
        assert_int_equal(dtype_row_bytes(t->dtype, in.len / 4), want.len);
        assert_int_equal(tensor_from_f32(t->dtype, (float *)(void *)in.data, got, in.len / 4, NULL, &e), 0);
        /* for a block of -0 only, the package gives d the opposite sign of ggml's C, which we follow */
        const size_t minus_zeros = 14 * t->block_bytes;
        if (t->dtype == DT_Q4_0 || t->dtype == DT_Q5_0) {
            assert_int_equal(got[minus_zeros + 1], 0x80);
            got[minus_zeros + 1] = 0;
        }
        assert_blocks_equal(t, got, want.data, want.len, "gguf");
        mem_free(got);
        buf_release(&want);
    }
    buf_release(&in);
}

/* sum of importance times squared error */
static double weighted_error(const struct dtype_info *t, const unsigned char *blocks, const float *x, size_t n,
                             const float *importance, size_t columns) {
    struct err e;
    float *y = mem_array(n, sizeof *y, &e);
    double sum = 0;
    tensor_to_f32(t->dtype, blocks, y, n);
    for (size_t i = 0; i < n; i++)
        sum += (importance ? (double)importance[i % columns] : 1) * pow((double)y[i] - (double)x[i], 2);
    mem_free(y);
    return sum;
}

/*
 * Where our search is better than ggml's, the error is lower instead of the bytes equal: for ternary types and for
 * mxfp4 with importance, ggml uses the largest magnitude as the scale; its iq2_xxs starts from codes that wrapped below
 * 0.
 */
static bool is_better_than_ggml(const struct dtype_info *t, bool weighted) {
    return is_ternary(t) || (t->dtype == DT_MXFP4 && weighted) || t->dtype == DT_IQ2_XXS;
}

static void test_llama_quantize_encodes_the_same(void **state) {
    (void)state;
    enum { COLUMNS = 256 };
    struct buf in = read_golden("llama-in", "", ".f32"), importance = read_golden("llama-imatrix", "", ".f32");
    size_t rows = in.len / sizeof(float) / COLUMNS;
    const float *x = (float *)(void *)in.data, *seen = (float *)(void *)importance.data;
    assert_int_equal(importance.len, COLUMNS * sizeof(float));
    const struct dtype_info *t;
    for (size_t i = 0; (t = made(i)); i++)
        for (int weighted = 0; weighted < 2; weighted++) {
            if (!weighted && (t->dtype == DT_IQ2_XXS || t->dtype == DT_IQ2_XS)) continue; /* ggml aborts */
            struct buf want = read_golden("llama-", t->name, weighted ? "-imatrix.raw" : ".raw");
            size_t row_bytes = dtype_row_bytes(t->dtype, COLUMNS);
            struct err e;
            unsigned char *got = mem_array(want.len, 1, &e);
            assert_int_equal(want.len, rows * row_bytes);
            for (size_t r = 0; r < rows; r++)
                assert_int_equal(tensor_from_f32(t->dtype, x + r * COLUMNS, got + r * row_bytes, COLUMNS,
                                                 weighted ? seen : NULL, &e),
                                 0);
            if (is_better_than_ggml(t, weighted)) {
                double ours = weighted_error(t, got, x, rows * COLUMNS, weighted ? seen : NULL, COLUMNS);
                double theirs = weighted_error(t, want.data, x, rows * COLUMNS, weighted ? seen : NULL, COLUMNS);
                if (!(ours <= theirs)) fail_msg("%s: error %g, llama.cpp's %g", t->name, ours, theirs);
            } else
                assert_blocks_equal(t, got, want.data, want.len, weighted ? "llama, importance" : "llama");
            mem_free(got);
            buf_release(&want);
        }
    buf_release(&in);
    buf_release(&importance);
}

/* ---- properties ---- */

static void test_nearest_code(void **state) {
    (void)state;
    for (int i = -2000; i <= 2000; i++) {
        float v = (float)i / 16;
        assert_int_equal(nearest_code(v, -1000, 1000), (int)rintf(v));
        assert_int_equal(nearest_code(nextafterf(v, 1e9f), -1000, 1000), (int)rintf(nextafterf(v, 1e9f)));
    }
    static const float huge[] = {64, 4194303, 4194304, 8388608, 16777216, 1e10f, FLT_MAX, INFINITY};
    for (size_t i = 0; i < COUNT_OF(huge); i++) {
        assert_int_equal(nearest_code(huge[i], 0, 63), 63);
        assert_int_equal(nearest_code(-huge[i], -32, 31), -32);
    }
    assert_in_range(nearest_code(NAN, 0, 63), 0, 63);
}

/*
 * The largest error, relative to the largest magnitude of the block. Half a step is range / codes / 2, where the range
 * is at most twice that magnitude; a symmetric type may have to cut a whole step off the side opposite to its extreme.
 * A 6-bit scale is off by 1/126 of the largest, which the code multiplies (2/126 of the range), and the min by 1/126.
 */
static double tolerance(enum dtype dtype) {
    const double f16 = 1.0 / 2048, scales = 3.0 / 126;
    switch (dtype) {
    case DT_Q4_0: return 1.0 / 8 + f16;
    case DT_Q4_1: return 1.0 / 15 + 2 * f16;
    case DT_Q5_0: return 1.0 / 16 + f16;
    case DT_Q5_1: return 1.0 / 31 + 2 * f16;
    case DT_Q8_0: return 0.5 / 127 + f16;
    case DT_Q2_K: return 1.0 / 3 + 3.0 / 30;       /* 4-bit scales */
    case DT_Q3_K: return 1.0 / 4 + 1.0 / 64 + f16; /* 6-bit scales */
    case DT_Q4_K: return 1.0 / 15 + scales;
    case DT_Q5_K: return 1.0 / 31 + scales;
    case DT_Q6_K: return 1.0 / 32 + 1.0 / 256 + f16; /* 8-bit scales */
    case DT_IQ4_NL: return 14.0 / 127 + 0.06;        /* an extreme of the other sign; the search's steps of 7/127 */
    case DT_IQ4_XS: return 14.0 / 127 + 0.06 + 1.0 / 64;
    case DT_MXFP4: return 1.0 / 4 + f16; /* 8 becomes 6 */
    default: return 1.0;                 /* codebooks and ternary types: at least the right sign for large values */
    }
}

static void fill_normal(float *x, size_t n, uint64_t stream, float scale) {
    struct rng r = rng_init(7, stream);
    for (size_t i = 0; i < n; i++) x[i] = scale * (float)rng_normal(&r);
}

static void test_errors_are_within_the_step(void **state) {
    (void)state;
    enum { N = 256 * 64 };
    static float x[N], y[N];
    static unsigned char bytes[N * 2];
    struct err e = {0};
    const struct dtype_info *t;
    for (size_t i = 0; (t = made(i)); i++)
        for (int exponent = -2; exponent <= 10; exponent += 4) { /* at exponents below, scales are f16 subnormals */
            fill_normal(x, N, (uint64_t)(100 + exponent), ldexpf(1, exponent));
            assert_int_equal(tensor_from_f32(t->dtype, x, bytes, N, NULL, &e), 0);
            tensor_to_f32(t->dtype, bytes, y, N);
            for (size_t b = 0; b < N; b += t->block_elems) {
                double largest = 0;
                for (size_t k = b; k < b + t->block_elems; k++) largest = fmax(largest, fabs((double)x[k]));
                for (size_t k = b; k < b + t->block_elems; k++)
                    if (fabs((double)x[k] - (double)y[k]) > tolerance(t->dtype) * largest)
                        fail_msg("%s: %g became %g, largest of the block %g", t->name, (double)x[k], (double)y[k],
                                 largest);
            }
        }
}

static void test_zero_and_constant_blocks(void **state) {
    (void)state;
    enum { N = 256 };
    float x[N], y[N];
    unsigned char bytes[N * 2];
    struct err e = {0};
    const struct dtype_info *t;
    static const float values[] = {0.0f, -0.0f, 1.0f, -1.0f, 0.5f, -1024.0f, 1e-30f, -1e-40f, FLT_MIN / 2};
    for (size_t i = 0; (t = made(i)); i++)
        for (size_t v = 0; v < COUNT_OF(values); v++)
            for (int weighted = 0; weighted < 2; weighted++) {
                float importance[N];
                for (int k = 0; k < N; k++) x[k] = values[v], importance[k] = (float)(k % 7);
                memset(y, 0xff, sizeof y);
                assert_int_equal(tensor_from_f32(t->dtype, x, bytes, N, weighted ? importance : NULL, &e), 0);
                assert_int_equal(tensor_first_nonfinite(t->dtype, bytes, N), N);
                tensor_to_f32(t->dtype, bytes, y, N);
                /* f16 has 11 bits, the scales of k-quants 6; below 2^-25 of f16 only zero remains */
                double allowed = fabs((double)values[v]) < 1e-8 ? 1e-8 : fabs((double)values[v]) / 32;
                /* codebooks lack points with equal coordinates; E2M1 has 2 mantissa bits */
                if (is_codebook(t) || t->dtype == DT_MXFP4) allowed = fmax(allowed, fabs((double)values[v]));
                for (int k = 0; k < N; k++)
                    if (!(fabs((double)y[k] - (double)x[k]) <= allowed))
                        fail_msg("%s: constant %g became %g", t->name, (double)x[k], (double)y[k]);
            }
}

static void test_importance_moves_the_error(void **state) {
    (void)state;
    enum { N = 4096 };
    static float x[N], y[2][N], importance[N];
    static unsigned char bytes[N * 2];
    struct err e = {0};
    fill_normal(x, N, 1, 1);
    struct rng r = rng_init(8, 0);
    for (int k = 0; k < N; k++) importance[k] = rng_below(&r, 4) ? 0.01f : 10.0f;
    const struct dtype_info *t;
    for (size_t i = 0; (t = made(i)); i++) {
        double weighted_error[2] = {0, 0};
        for (int weighted = 0; weighted < 2; weighted++) {
            assert_int_equal(tensor_from_f32(t->dtype, x, bytes, N, weighted ? importance : NULL, &e), 0);
            tensor_to_f32(t->dtype, bytes, y[weighted], N);
            for (int k = 0; k < N; k++) {
                double d = (double)y[weighted][k] - (double)x[k];
                weighted_error[weighted] += (double)importance[k] * d * d;
            }
        }
        double gain = weighted_error[1] / weighted_error[0];
        if (!t->weighed ? gain != 1 : gain > (t->dtype == DT_MXFP4 || is_ternary(t) ? 0.99 : 0.95))
            fail_msg("%s: importance changes the error by a factor of %g", t->name, gain);
    }
}

/* Columns without activations in calibration must not be wiped out: their group is rounded as if all counted the
 * same. */
static void test_importance_of_zero(void **state) {
    (void)state;
    enum { N = 256, UNSEEN = 128 };
    float x[N], y[N], importance[N];
    unsigned char bytes[N * 2];
    struct err e = {0};
    fill_normal(x, N, 2, 1);
    const struct dtype_info *t;
    for (size_t i = 0; (t = made(i)); i++) {
        double plain = 0;
        for (int kind = 0; kind < 3; kind++) {
            for (int k = 0; k < N; k++) importance[k] = kind == 2 && k >= UNSEEN ? 1.0f : 0.0f;
            assert_int_equal(tensor_from_f32(t->dtype, x, bytes, N, kind ? importance : NULL, &e), 0);
            tensor_to_f32(t->dtype, bytes, y, N);
            double error = 0;
            for (int k = 0; k < UNSEEN; k++) error += pow((double)y[k] - (double)x[k], 2);
            if (kind == 0) plain = error;
            assert_true(error <= 2 * plain);
        }
    }
}

/* The bytes must be those of one thread, and of quantizing row by row. */
static void test_threads_change_nothing(void **state) {
    (void)state;
    enum { N = 256 * 600 };
    struct err e = {0};
    float *x = mem_array(N, sizeof *x, &e), *w = mem_array(N, sizeof *w, &e), *y = mem_array(2 * N, sizeof *y, &e);
    unsigned char *bytes = mem_array(4, N * 2, &e);
    fill_normal(x, N, 3, 1);
    for (int i = 0; i < N; i++) w[i] = fabsf(x[(i * 31) % N]);
    const struct dtype_info *t;
    for (size_t i = 0; (t = made(i)); i++)
        for (int weighted = 0; weighted < 2; weighted++) {
            size_t n_bytes = dtype_row_bytes(t->dtype, N);
            for (int threads = 1; threads <= 3; threads += 2) {
                parallel_set_threads(threads);
                unsigned char *out = bytes + (threads > 1 ? n_bytes : 0);
                assert_int_equal(tensor_from_f32(t->dtype, x, out, N, weighted ? w : NULL, &e), 0);
                tensor_to_f32(t->dtype, out, y + (threads > 1 ? N : 0), N);
            }
            assert_memory_equal(bytes, bytes + n_bytes, n_bytes);
            assert_memory_equal(y, y + N, N * sizeof *y);
            if (weighted) continue;
            for (size_t k = 0; k < N; k += t->block_elems) /* block by block */
                assert_int_equal(tensor_from_f32(t->dtype, x + k, bytes + n_bytes + dtype_row_bytes(t->dtype, k),
                                                 t->block_elems, NULL, &e),
                                 0);
            assert_memory_equal(bytes, bytes + n_bytes, n_bytes);
        }
    mem_free(x);
    mem_free(w);
    mem_free(y);
    mem_free(bytes);
}

/* Rows together must give the bytes of rows one by one. An error names the row, counted from the given one. */
static void test_rows(void **state) {
    (void)state;
    enum { ROWS = 37, COLS = 768, N = ROWS * COLS };
    struct err e = {0};
    static float x[N], importance[COLS];
    static unsigned char together[N * 4], single[N * 4];
    fill_normal(x, N, 5, 1);
    for (int i = 0; i < COLS; i++) importance[i] = fabsf(x[(i * 31) % N]);
    parallel_set_threads(3);
    const struct dtype_info *t;
    for (size_t i = 0; (t = made(i)); i++)
        for (int weighted = 0; weighted < 2; weighted++) {
            const float *w = weighted ? importance : NULL;
            size_t bytes = dtype_row_bytes(t->dtype, COLS);
            assert_int_equal(tensor_rows_from_f32(t->dtype, x, 0, ROWS, COLS, together, w, &e), 0);
            for (size_t r = 0; r < ROWS; r++)
                assert_int_equal(tensor_from_f32(t->dtype, x + r * COLS, single + r * bytes, COLS, w, &e), 0);
            if (memcmp(together, single, ROWS * bytes) != 0) fail_msg("%s, %d: rows differ", t->name, weighted);
            float was = x[30 * COLS + 700];
            x[30 * COLS + 700] = NAN;
            assert_int_equal(tensor_rows_from_f32(t->dtype, x, 100, ROWS, COLS, together, w, &e), ERR_DATA);
            if (!strstr(e.msg, "row 130: element 700 is nan")) fail_msg("%s: %s", t->name, e.msg);
            x[30 * COLS + 700] = was;
        }
    importance[9] = -1;
    assert_int_equal(tensor_rows_from_f32(DT_Q4_K, x, 0, ROWS, COLS, together, importance, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "importance of column 9"));
    assert_int_equal(tensor_rows_from_f32(DT_F16, x, 0, 0, COLS, together, NULL, &e), 0);
}

static void test_any_alignment(void **state) {
    (void)state;
    enum { N = 512 };
    float x[N], y[N], aligned_y[N];
    unsigned char aligned[N * 2], shifted[N * 2 + 1];
    struct err e = {0};
    fill_normal(x, N, 4, 1);
    const struct dtype_info *t;
    for (size_t i = 0; (t = made(i)); i++) {
        assert_int_equal(tensor_from_f32(t->dtype, x, aligned, N, NULL, &e), 0);
        assert_int_equal(tensor_from_f32(t->dtype, x, shifted + 1, N, NULL, &e), 0);
        assert_memory_equal(aligned, shifted + 1, dtype_row_bytes(t->dtype, N));
        tensor_to_f32(t->dtype, aligned, aligned_y, N);
        tensor_to_f32(t->dtype, shifted + 1, y, N);
        assert_memory_equal(aligned_y, y, sizeof y);
    }
}

/* ---- refusals ---- */

static void test_nan_and_infinity_are_refused(void **state) {
    (void)state;
    enum { N = 1024 };
    static float x[N];
    static unsigned char bytes[N * 2];
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    static const size_t places[] = {0, 31, 32, 255, 256, 700, N - 1};
    const struct dtype_info *t;
    for (size_t i = 0; (t = made(i)); i++)
        for (size_t p = 0; p < COUNT_OF(places); p++)
            for (size_t b = 0; b < COUNT_OF(bad); b++) {
                struct err e = {0};
                char element[32];
                fill_normal(x, N, 5, 1);
                x[places[p]] = bad[b];
                if (p + 1 < COUNT_OF(places)) x[N - 1] = NAN; /* the first one is reported */
                assert_int_equal(tensor_from_f32(t->dtype, x, bytes, N, NULL, &e), ERR_DATA);
                snprintf(element, sizeof element, "element %zu ", places[p]);
                assert_memory_equal(e.msg, element, strlen(element));
            }
}

/* Finite values whose block would decode to infinities must be an error, not silently wrong. */
static void test_values_beyond_the_scale_are_refused(void **state) {
    (void)state;
    enum { N = 1024 };
    static float x[N], y[N];
    static unsigned char bytes[N * 2];
    static const float sizes[] = {3e4f, 3e5f, 4e6f, 1e10f, 1e20f, 1e30f, FLT_MAX};
    const struct dtype_info *t;
    for (size_t i = 0; (t = made(i)); i++)
        for (size_t s = 0; s < COUNT_OF(sizes); s++)
            for (int kind = 0; kind < 4; kind++)
                for (int weighted = 0; weighted < 2; weighted++) {
                    struct err e = {0};
                    float importance[N];
                    fill_normal(x, N, 6, 1);
                    for (int k = 0; k < N; k++) importance[k] = 1;
                    x[300] = kind % 2 ? -sizes[s] : sizes[s];
                    if (kind >= 2) x[310] = kind % 2 ? sizes[s] : -sizes[s];
                    int rc = tensor_from_f32(t->dtype, x, bytes, N, weighted ? importance : NULL, &e);
                    if (rc) {
                        assert_int_equal(rc, ERR_DATA);
                        const char *where = sizes[s] > 1e9f        ? "element 300 "
                                            : t->block_elems == 32 ? "elements 288 to 319"
                                                                   : "elements 256 to 511";
                        assert_memory_equal(e.msg, where, strlen(where));
                        assert_true(sizes[s] > 60000);
                        continue;
                    }
                    assert_true(sizes[s] < 1e10f);
                    assert_int_equal(tensor_first_nonfinite(t->dtype, bytes, N), N);
                    tensor_to_f32(t->dtype, bytes, y, N);
                    assert_true(fabs((double)y[300] - (double)x[300]) < fmax(0.2, tolerance(t->dtype)) * sizes[s]);
                }
}

static void test_bad_importance_is_refused(void **state) {
    (void)state;
    enum { N = 256 };
    float x[N], importance[N];
    unsigned char bytes[N * 2];
    static const float bad[] = {NAN, -1.0f, INFINITY, -1e-30f};
    fill_normal(x, N, 7, 1);
    for (size_t b = 0; b < COUNT_OF(bad); b++) {
        struct err e = {0};
        for (int k = 0; k < N; k++) importance[k] = 1;
        importance[77] = bad[b];
        assert_int_equal(tensor_from_f32(DT_Q4_K, x, bytes, N, importance, &e), ERR_DATA);
        assert_non_null(strstr(e.msg, "column 77 "));
    }
}

/* Blocks from a hostile file: any bytes must decode safely, and a block with a bad scale must be found. */
static void test_first_nonfinite_block(void **state) {
    (void)state;
    enum { BLOCKS = 20 };
    static unsigned char bytes[BLOCKS * 256];
    static float y[BLOCKS * 256];
    struct rng r = rng_init(9, 9);
    const struct dtype_info *t;
    for (size_t i = 0; (t = quantized(i)); i++)
        for (int round = 0; round < 300; round++) {
            size_t n = BLOCKS * t->block_elems, expected = n;
            for (size_t k = 0; k < BLOCKS * t->block_bytes; k++) bytes[k] = (unsigned char)rng_u32(&r);
            if (round == 0) memset(bytes, 0xff, sizeof bytes);
            tensor_to_f32(t->dtype, bytes, y, n);
            for (size_t k = n; k-- > 0;)
                if (!isfinite(y[k])) expected = k;
            assert_int_equal(tensor_first_nonfinite(t->dtype, bytes, n), expected);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decoding_is_bit_exact),
        cmocka_unit_test(test_parts_make_the_elements),
        cmocka_unit_test(test_nearest_code_of_a_form),
        cmocka_unit_test(rounding_at_given_scales_changes_codes_alone),
        cmocka_unit_test(test_gguf_package_encodes_the_same),
        cmocka_unit_test(test_llama_quantize_encodes_the_same),
        cmocka_unit_test(test_nearest_code),
        cmocka_unit_test(test_errors_are_within_the_step),
        cmocka_unit_test(test_zero_and_constant_blocks),
        cmocka_unit_test(test_importance_moves_the_error),
        cmocka_unit_test(test_importance_of_zero),
        cmocka_unit_test(test_threads_change_nothing),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_any_alignment),
        cmocka_unit_test(test_nan_and_infinity_are_refused),
        cmocka_unit_test(test_values_beyond_the_scale_are_refused),
        cmocka_unit_test(test_bad_importance_is_refused),
        cmocka_unit_test(test_first_nonfinite_block),
    };
    return cmocka_run_group_tests_name("tensor_quantize", tests, NULL, NULL);
}
