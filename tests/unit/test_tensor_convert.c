/*
 * Tests of lib/tensor: plain types to and from f32. References: exhaustive search in double precision for the 16-bit
 * floats, tests/golden/quant (numpy, torch and the gguf package), and the definition for integers.
 */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "lib/tensor/tensor.h"

static float from_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static uint32_t to_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

/* The value of a 16-bit pattern by the definition of the format. */
static double half_value(uint16_t h, int exponent_bits) {
    int mantissa_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
    int exponent = (h & 0x7fff) >> mantissa_bits, mantissa = h & ((1 << mantissa_bits) - 1);
    double v = exponent ? ldexp(mantissa | 1 << mantissa_bits, exponent - bias - mantissa_bits)
                        : ldexp(mantissa, 1 - bias - mantissa_bits);
    return h & 0x8000 ? -v : v;
}

static bool half_is_finite(uint16_t h, int exponent_bits) {
    unsigned mask = ((1u << exponent_bits) - 1) << (15 - exponent_bits);
    return (h & mask) != mask;
}

static void test_every_half_to_f32_and_back(void **state) {
    (void)state;
    for (uint32_t i = 0; i < 65536; i++) {
        uint16_t h = (uint16_t)i;
        float f = f16_to_f32(h), b = bf16_to_f32(h);
        if (half_is_finite(h, 5)) {
            assert_true((double)f == half_value(h, 5));
            assert_int_equal(to_bits(f) >> 31, h >> 15);
            assert_int_equal(f32_to_f16(f), h);
        } else if (h & 0x3ff) {
            assert_true(isnan(f));
            assert_int_equal(f32_to_f16(f), h | 0x200); /* NaN stays NaN with its sign and payload, but becomes quiet */
        } else {
            assert_true(isinf(f) && (f < 0) == (h >> 15));
            assert_int_equal(f32_to_f16(f), h);
        }
        if (half_is_finite(h, 8)) {
            assert_true((double)b == half_value(h, 8));
            assert_int_equal(f32_to_bf16(b), h);
        } else if (h & 0x7f) {
            assert_true(isnan(b));
            assert_int_equal(f32_to_bf16(b), h | 0x40);
        } else {
            assert_true(isinf(b) && (b < 0) == (h >> 15));
            assert_int_equal(f32_to_bf16(b), h);
        }
    }
}

/* Around every finite value and every midpoint between neighbours: midpoints round to even. */
static void check_rounding(int exponent_bits, uint16_t (*convert)(float)) {
    for (uint32_t i = 0; i < 0x8000; i++) {
        uint16_t h = (uint16_t)i, next = (uint16_t)(i + 1);
        if (!half_is_finite(h, exponent_bits)) break;
        double low = half_value(h, exponent_bits);
        double high = half_is_finite(next, exponent_bits) ? half_value(next, exponent_bits)
                                                          : 2 * low - half_value((uint16_t)(h - 1), exponent_bits);
        float middle = (float)((low + high) / 2); /* exact: one more bit than the format has */
        for (int sign = 0; sign < 2; sign++) {
            uint16_t s = sign ? 0x8000 : 0;
            float m = sign ? -middle : middle;
            assert_int_equal(convert(m), (h & 1 ? next : h) | s);
            assert_int_equal(convert(nextafterf(m, 0)), h | s);
            assert_int_equal(convert(nextafterf(m, m * INFINITY)), next | s);
        }
    }
}

static void test_rounding_to_f16(void **state) {
    (void)state;
    check_rounding(5, f32_to_f16);
    assert_int_equal(f32_to_f16(65519.996f), 0x7bff);
    assert_int_equal(f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(f32_to_f16(FLT_MAX), 0x7c00);
    assert_int_equal(f32_to_f16(0x1p-25f), 0);
    assert_int_equal(f32_to_f16(from_bits(1)), 0);
    assert_int_equal(f32_to_f16(-FLT_MIN), 0x8000);
}

static void test_rounding_to_bf16(void **state) {
    (void)state;
    check_rounding(8, f32_to_bf16);
    assert_int_equal(f32_to_bf16(FLT_MAX), 0x7f80);
}

/* Quiet and signalling NaN, smallest and largest payload, both signs. */
static void test_nan_stays_nan(void **state) {
    (void)state;
    static const uint32_t nans[] = {0x7f800001, 0x7fbfffff, 0x7fc00000, 0x7fffffff, 0xff800001, 0xffffffff, 0x7f801000};
    for (size_t i = 0; i < COUNT_OF(nans); i++) {
        uint16_t h = f32_to_f16(from_bits(nans[i])), b = f32_to_bf16(from_bits(nans[i]));
        assert_true((h & 0x7c00) == 0x7c00 && (h & 0x3ff));
        assert_true((b & 0x7f80) == 0x7f80 && (b & 0x7f));
        assert_int_equal(h >> 15, nans[i] >> 31);
        assert_int_equal(b >> 15, nans[i] >> 31);
    }
}

/* Arrays may be converted by other instructions: every pattern, at every offset within their steps, and every kind
 * of f32. */
static void test_arrays_equal_single_conversions(void **state) {
    (void)state;
    enum { N = 65536 };
    static uint16_t patterns[N], halves[N];
    static float values[N];
    struct err e = {0};
    struct rng r = rng_init(11, 0);
    for (size_t i = 0; i < N; i++) patterns[i] = (uint16_t)i;
    for (size_t shift = 0; shift < 9; shift++) {
        tensor_to_f32(DT_F16, patterns + shift, values, N - shift);
        for (size_t i = 0; i < N - shift; i++)
            assert_int_equal(to_bits(values[i]), to_bits(f16_to_f32((uint16_t)(i + shift))));
        tensor_to_f32(DT_BF16, patterns + shift, values, N - shift);
        for (size_t i = 0; i < N - shift; i++)
            assert_int_equal(to_bits(values[i]), to_bits(bf16_to_f32((uint16_t)(i + shift))));
        for (size_t i = 0; i < N; i++) { /* every exponent equally often, including ties */
            uint32_t bits = rng_u32(&r) & (i % 3 ? 0xffffffff : i % 2 ? 0xfffff000 : 0xffff8000);
            values[i] = from_bits(bits);
        }
        assert_int_equal(tensor_from_f32(DT_F16, values, halves, N - shift, NULL, &e), 0);
        for (size_t i = 0; i < N - shift; i++) assert_int_equal(halves[i], f32_to_f16(values[i]));
        assert_int_equal(tensor_from_f32(DT_BF16, values, halves, N - shift, NULL, &e), 0);
        for (size_t i = 0; i < N - shift; i++) assert_int_equal(halves[i], f32_to_bf16(values[i]));
    }
}

/* ---- integers ---- */

static void check_from_f32(enum dtype dtype, float f, const void *expected, size_t size) {
    struct err e = {0};
    uint64_t got = 0;
    assert_int_equal(tensor_from_f32(dtype, &f, &got, 1, NULL, &e), 0);
    if (memcmp(&got, expected, size) != 0)
        fail_msg("%s of %g is %llx", dtype_info(dtype)->name, (double)f, (unsigned long long)got);
}

/* NaN becomes 0, values outside saturate, halves round to even. */
#define CHECK_INTEGER(number, type, lowest, highest)                                                                   \
    do {                                                                                                               \
        const struct {                                                                                                 \
            float in;                                                                                                  \
            type out;                                                                                                  \
        } cases[] = {                                                                                                  \
            {NAN, 0},                                                                                                  \
            {INFINITY, highest},                                                                                       \
            {-INFINITY, lowest},                                                                                       \
            {3e38f, highest},                                                                                          \
            {-3e38f, lowest},                                                                                          \
            {0.0f, 0},                                                                                                 \
            {-0.0f, 0},                                                                                                \
            {0.5f, 0},                                                                                                 \
            {1.5f, 2},                                                                                                 \
            {2.5f, 2},                                                                                                 \
            {100.49f, 100},                                                                                            \
            {0.49999997f, 0},                                                                                          \
            {(float)(highest), highest},                                                                               \
            {(float)(lowest), lowest},                                                                                 \
            {-0.5f, 0},                                                                                                \
            {1e-30f, 0},                                                                                               \
        };                                                                                                             \
        for (size_t i = 0; i < COUNT_OF(cases); i++) check_from_f32(number, cases[i].in, &cases[i].out, sizeof(type)); \
        type minus_two = (lowest) < 0 ? (type)-2 : 0;                                                                  \
        check_from_f32(number, -2.5f, &minus_two, sizeof(type));                                                       \
        static const type ends[] = {lowest, highest, 0, 1, 100};                                                       \
        float out[COUNT_OF(ends)];                                                                                     \
        tensor_to_f32(number, ends, out, COUNT_OF(ends));                                                              \
        for (size_t i = 0; i < COUNT_OF(ends); i++) assert_true(out[i] == (float)ends[i]);                             \
    } while (0)

static void test_integers(void **state) {
    (void)state;
    CHECK_INTEGER(DT_I8, int8_t, INT8_MIN, INT8_MAX);
    CHECK_INTEGER(DT_I16, int16_t, INT16_MIN, INT16_MAX);
    CHECK_INTEGER(DT_I32, int32_t, INT32_MIN, INT32_MAX);
    CHECK_INTEGER(DT_I64, int64_t, INT64_MIN, INT64_MAX);
    CHECK_INTEGER(DT_U8, uint8_t, 0, UINT8_MAX);
    CHECK_INTEGER(DT_U16, uint16_t, 0, UINT16_MAX);
    CHECK_INTEGER(DT_U32, uint32_t, 0, UINT32_MAX);
    CHECK_INTEGER(DT_U64, uint64_t, 0, UINT64_MAX);
    check_from_f32(DT_I8, 127.4f, &(int8_t){127}, 1);
    check_from_f32(DT_I8, 127.5f, &(int8_t){127}, 1);
    check_from_f32(DT_I8, -128.5f, &(int8_t){-128}, 1);
    check_from_f32(DT_U8, 255.5f, &(uint8_t){255}, 1);
    check_from_f32(DT_I32, 2147483520.0f, &(int32_t){2147483520}, 4); /* the largest below 2^31 */
}

static void test_f64(void **state) {
    (void)state;
    const double in[] = {0.1, -0.0, 1e300, -1e300, 1e-300, INFINITY, 1 + 0x1p-24, 1 + 0x1.8p-23};
    float out[COUNT_OF(in)];
    tensor_to_f32(DT_F64, in, out, COUNT_OF(in));
    const float expected[] = {0.1f, -0.0f, INFINITY, -INFINITY, 0, INFINITY, 1, 1 + 0x1p-22f};
    assert_memory_equal(out, expected, sizeof out);
    double nan_in = NAN;
    tensor_to_f32(DT_F64, &nan_in, out, 1);
    assert_true(isnan(out[0]));
}

/* ---- every plain type ---- */

/* Small integers exist in every type: a round trip, at every alignment of the encoded side, in 1 and 4 threads. */
static void test_round_trip_of_every_plain_type(void **state) {
    (void)state;
    enum { N = 100000 };
    struct err e = {0};
    float *in = mem_array(N, sizeof *in, &e), *out = mem_array(N, sizeof *out, &e);
    unsigned char *bytes = mem_array(N + 1, 8, &e);
    for (int i = 0; i < N; i++) in[i] = (float)((i * 7) % 127);
    const struct dtype_info *t;
    for (size_t k = 0; (t = dtype_at(k)); k++) {
        if (t->is_quantized) continue;
        for (size_t shift = 0; shift < 8; shift++) {
            parallel_set_threads(shift % 2 ? 4 : 1);
            memset(out, 0xff, N * sizeof *out);
            assert_int_equal(tensor_from_f32(t->dtype, in, bytes + shift, N, NULL, &e), 0);
            tensor_to_f32(t->dtype, bytes + shift, out, N);
            assert_memory_equal(in, out, N * sizeof *in);
        }
        assert_int_equal(tensor_from_f32(t->dtype, in, bytes, 0, NULL, &e), 0);
        tensor_to_f32(t->dtype, bytes, out, 0);
    }
    mem_free(in);
    mem_free(out);
    mem_free(bytes);
}

/* f32 keeps its bits, whatever they are. */
static void test_f32_is_copied(void **state) {
    (void)state;
    const uint32_t bits[] = {0x7f800001, 0x80000000, 1, 0xffffffff, 0x7f800000};
    uint32_t out[COUNT_OF(bits)], back[COUNT_OF(bits)];
    struct err e = {0};
    float in[COUNT_OF(bits)];
    memcpy(in, bits, sizeof in);
    assert_int_equal(tensor_from_f32(DT_F32, in, out, COUNT_OF(bits), NULL, &e), 0);
    assert_memory_equal(out, bits, sizeof bits);
    tensor_to_f32(DT_F32, out, (float *)(void *)back, COUNT_OF(bits));
    assert_memory_equal(back, bits, sizeof bits);
}

static void test_first_nonfinite(void **state) {
    (void)state;
    enum { N = 3000 };
    static float values[N];
    static unsigned char bytes[N * 8];
    struct err e = {0};
    const float bad[] = {NAN, INFINITY, -INFINITY, -NAN};
    static const enum dtype types[] = {DT_F32, DT_F16, DT_BF16, DT_F64};
    for (size_t t = 0; t < COUNT_OF(types); t++) {
        for (int i = 0; i < N; i++) values[i] = i % 2 ? 60000.0f : -6e-8f;
        assert_int_equal(tensor_from_f32(types[t], values, bytes, N, NULL, &e), 0);
        assert_int_equal(tensor_first_nonfinite(types[t], bytes, N), N);
        assert_int_equal(tensor_first_nonfinite(types[t], bytes, 0), 0);
        static const size_t places[] = {N - 1, 2049, 2048, 2047, 1025, 1024, 1023, 513, 511, 64, 8, 7, 3, 1, 0};
        for (size_t p = 0; p < COUNT_OF(places); p++) { /* from the back: the last one set is the first in order */
            size_t at = places[p];
            values[at] = bad[at % COUNT_OF(bad)];
            assert_int_equal(tensor_from_f32(types[t], values, bytes, N, NULL, &e), 0);
            assert_int_equal(tensor_first_nonfinite(types[t], bytes, N), at);
            assert_int_equal(tensor_first_nonfinite(types[t], bytes, at), at);
        }
    }
    memset(bytes, 0xff, sizeof bytes);
    assert_int_equal(tensor_first_nonfinite(DT_I64, bytes, N), N); /* integers are always finite */
    assert_int_equal(tensor_first_nonfinite(DT_U8, bytes, N), N);
}

/* Values must be finite in the target type; otherwise the first that is not is reported. */
static void test_checked(void **state) {
    (void)state;
    static const struct {
        enum dtype dtype;
        float value;
        const char *says; /* NULL: it fits */
    } cases[] = {
        {DT_F16, 65504, NULL},
        {DT_F16, 65519, NULL}, /* rounds down */
        {DT_F16, 65520, "element 40, 65520, does not fit in f16"},
        {DT_F16, -1e30f, "element 40, -1e+30, does not fit in f16"},
        {DT_BF16, 3.3895e38f, NULL},
        {DT_BF16, FLT_MAX, "element 40, 3.40282e+38, does not fit in bf16"},
        {DT_F32, FLT_MAX, NULL},
        {DT_F32, INFINITY, "element 40, inf, does not fit in f32"},
        {DT_F16, NAN, "does not fit in f16"},
        {DT_Q8_0, 1e7f, "q8_0 cannot hold their scale"},
        {DT_I8, 1e9f, NULL}, /* integers saturate */
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        float values[64] = {0};
        unsigned char bytes[256];
        struct err e = {0};
        values[40] = cases[i].value;
        int rc = tensor_from_f32_checked(cases[i].dtype, values, bytes, 64, NULL, &e);
        if (rc != (cases[i].says ? ERR_DATA : 0) || (cases[i].says && !strstr(e.msg, cases[i].says)))
            fail_msg("case %zu: %d '%s'", i, rc, e.msg);
    }
}

/* ---- golden files ---- */

static unsigned char *read_golden(const char *name, size_t *n) {
    char path[256];
    snprintf(path, sizeof path, "tests/golden/quant/%s", name);
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
    *n = b.len;
    return b.data;
}

static void test_goldens(void **state) {
    (void)state;
    static const struct {
        enum dtype dtype;
        const char *raw, *values, *rounded;
    } sets[] = {{DT_F16, "f16.raw", "f16.deq.f32", "round-f16.raw"},
                {DT_BF16, "bf16.raw", "bf16.deq.f32", "round-bf16.raw"}};
    for (size_t i = 0; i < COUNT_OF(sets); i++) {
        size_t n_raw, n_values, n_in, n_rounded;
        struct err e = {0};
        unsigned char *raw = read_golden(sets[i].raw, &n_raw), *values = read_golden(sets[i].values, &n_values);
        assert_int_equal(n_values, n_raw * 2);
        unsigned char *decoded = mem_alloc(n_values, &e);
        tensor_to_f32(sets[i].dtype, raw, (float *)(void *)decoded, n_raw / 2);
        assert_memory_equal(decoded, values, n_values);
        unsigned char *in = read_golden("round-in.f32", &n_in), *rounded = read_golden(sets[i].rounded, &n_rounded);
        assert_int_equal(n_in, n_rounded * 2);
        unsigned char *encoded = mem_alloc(n_rounded, &e);
        assert_int_equal(tensor_from_f32(sets[i].dtype, (float *)(void *)in, encoded, n_in / 4, NULL, &e), 0);
        assert_memory_equal(encoded, rounded, n_rounded);
        mem_free(raw);
        mem_free(values);
        mem_free(decoded);
        mem_free(in);
        mem_free(rounded);
        mem_free(encoded);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_half_to_f32_and_back),
        cmocka_unit_test(test_rounding_to_f16),
        cmocka_unit_test(test_rounding_to_bf16),
        cmocka_unit_test(test_nan_stays_nan),
        cmocka_unit_test(test_arrays_equal_single_conversions),
        cmocka_unit_test(test_integers),
        cmocka_unit_test(test_f64),
        cmocka_unit_test(test_round_trip_of_every_plain_type),
        cmocka_unit_test(test_f32_is_copied),
        cmocka_unit_test(test_first_nonfinite),
        cmocka_unit_test(test_checked),
        cmocka_unit_test(test_goldens),
    };
    return cmocka_run_group_tests_name("tensor_convert", tests, NULL, NULL);
}
