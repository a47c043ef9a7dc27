/* Tests of lib/tensor: element types, shapes, sizes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "lib/tensor/tensor.h"

static void test_table_is_consistent(void **state) {
    (void)state;
    size_t n = 0;
    for (const struct dtype_info *t; (t = dtype_at(n)); n++) {
        assert_ptr_equal(dtype_info(t->dtype), t);
        assert_ptr_equal(dtype_by_name(t->name), t);
        assert_true(t->ggml_type < 0 || dtype_by_ggml(t->ggml_type) == t);
        assert_true(t->block_elems >= 1 && t->block_bytes >= 1);
        assert_int_equal(t->is_quantized, t->block_elems > 1);
        assert_false(t->is_quantized && t->is_float);
        assert_int_equal(t->dtype >= 64, t->is_quantized);
        if (t->is_quantized) assert_int_equal(t->dtype, 64 + t->ggml_type);
        assert_int_equal(dtype_row_bytes(t->dtype, 3 * t->block_elems), 3 * t->block_bytes);
        assert_int_equal(dtype_row_bytes(t->dtype, 0), 0);
    }
    assert_int_equal(n, 34);
    assert_null(dtype_at(n));
    assert_null(dtype_at(SIZE_MAX));
}

/* Pinned, since files contain these numbers. Bits per weight are as in GGUF's documentation. */
static void test_numbers_are_pinned(void **state) {
    (void)state;
    static const struct {
        unsigned dtype;
        const char *name;
        int ggml;
        unsigned elems, bytes;
    } pinned[] = {
        {1, "f32", 0, 1, 4},          {2, "f16", 1, 1, 2},          {3, "bf16", 30, 1, 2},
        {4, "f64", 28, 1, 8},         {5, "i8", 24, 1, 1},          {6, "i16", 25, 1, 2},
        {7, "i32", 26, 1, 4},         {8, "i64", 27, 1, 8},         {9, "u8", -1, 1, 1},
        {10, "u16", -1, 1, 2},        {11, "u32", -1, 1, 4},        {12, "u64", -1, 1, 8},
        {66, "q4_0", 2, 32, 18},      {67, "q4_1", 3, 32, 20},      {70, "q5_0", 6, 32, 22},
        {71, "q5_1", 7, 32, 24},      {72, "q8_0", 8, 32, 34},      {74, "q2_k", 10, 256, 84},
        {75, "q3_k", 11, 256, 110},   {76, "q4_k", 12, 256, 144},   {77, "q5_k", 13, 256, 176},
        {78, "q6_k", 14, 256, 210},   {80, "iq2_xxs", 16, 256, 66}, {81, "iq2_xs", 17, 256, 74},
        {82, "iq3_xxs", 18, 256, 98}, {83, "iq1_s", 19, 256, 50},   {84, "iq4_nl", 20, 32, 18},
        {85, "iq3_s", 21, 256, 110},  {86, "iq2_s", 22, 256, 82},   {87, "iq4_xs", 23, 256, 136},
        {93, "iq1_m", 29, 256, 56},   {98, "tq1_0", 34, 256, 54},   {99, "tq2_0", 35, 256, 66},
        {103, "mxfp4", 39, 32, 17},
    };
    for (size_t i = 0; i < COUNT_OF(pinned); i++) {
        const struct dtype_info *t = dtype_info(pinned[i].dtype);
        assert_non_null(t);
        assert_string_equal(t->name, pinned[i].name);
        assert_int_equal(t->ggml_type, pinned[i].ggml);
        assert_int_equal(t->block_elems, pinned[i].elems);
        assert_int_equal(t->block_bytes, pinned[i].bytes);
    }
    static const unsigned unknown[] = {0, 13, 63, 64, 65, 68, 73, 79, 94, 104, 255, 0x80000001u, UINT32_MAX};
    for (size_t i = 0; i < COUNT_OF(unknown); i++) assert_null(dtype_info(unknown[i]));
    assert_null(dtype_by_ggml(-1));
    assert_null(dtype_by_ggml(9)); /* q8_1: for activations only */
    assert_null(dtype_by_ggml(1000));
    assert_null(dtype_by_name("F32"));
    assert_null(dtype_by_name(""));
}

static void test_sizes(void **state) {
    (void)state;
    struct tensor_desc d;
    struct err e = {0};
    char text[128];
    uint64_t elems, bytes;
    const uint64_t dims[] = {3, 5, 256};
    assert_int_equal(tensor_desc_init(&d, "w", DT_Q4_K, 3, dims, &e), 0);
    assert_int_equal(tensor_desc_check(&d, &elems, &bytes, &e), 0);
    assert_int_equal(elems, 3840);
    assert_int_equal(bytes, 15 * 144);
    assert_int_equal(tensor_elems(&d), elems);
    assert_int_equal(tensor_bytes(&d), bytes);
    assert_int_equal(tensor_rows(&d), 15);
    assert_int_equal(tensor_row_elems(&d), 256);
    assert_string_equal(tensor_shape_text(&d, text, sizeof text), "[3, 5, 256]");

    assert_int_equal(tensor_desc_init(&d, "scalar", DT_F64, 0, NULL, &e), 0);
    assert_int_equal(tensor_elems(&d), 1);
    assert_int_equal(tensor_bytes(&d), 8);
    assert_int_equal(tensor_rows(&d), 1);
    assert_int_equal(tensor_row_elems(&d), 1);
    assert_string_equal(tensor_shape_text(&d, text, sizeof text), "[]");

    assert_int_equal(tensor_desc_init(&d, "vector", DT_BF16, 1, (uint64_t[]){7}, &e), 0);
    assert_int_equal(tensor_bytes(&d), 14);
    assert_int_equal(tensor_rows(&d), 1);

    for (int zero = 0; zero < 2; zero++) { /* empty in rows or in columns */
        assert_int_equal(tensor_desc_init(&d, "empty", DT_F32, 2, (uint64_t[]){zero ? 0 : 4, zero ? 4 : 0}, &e), 0);
        assert_int_equal(tensor_desc_check(&d, &elems, &bytes, &e), 0);
        assert_int_equal(elems + bytes + tensor_elems(&d) + tensor_bytes(&d), 0);
    }
    assert_int_equal(e.code, 0);
}

static void test_shape_text_stays_inside(void **state) {
    (void)state;
    struct tensor_desc d = {.dtype = DT_U8, .rank = 8};
    for (int i = 0; i < 8; i++) d.dims[i] = UINT64_MAX;
    char whole[256], guarded[256];
    tensor_shape_text(&d, whole, sizeof whole);
    assert_int_equal(strlen(whole), 8 * 20 + 7 * 2 + 2);
    for (size_t size = 1; size < 200; size++) {
        memset(guarded, 'x', sizeof guarded);
        tensor_shape_text(&d, guarded, size);
        assert_true(strlen(guarded) < size);
        assert_memory_equal(guarded, whole, strlen(guarded));
        assert_int_equal(guarded[size], 'x');
    }
}

static void test_same_shape(void **state) {
    (void)state;
    struct tensor_desc a, b;
    struct err e;
    assert_int_equal(tensor_desc_init(&a, "a", DT_F32, 2, (uint64_t[]){2, 3}, &e), 0);
    assert_int_equal(tensor_desc_init(&b, "b", DT_F16, 2, (uint64_t[]){2, 3}, &e), 0);
    assert_true(tensor_same_shape(&a, &b));
    b.dims[1] = 4;
    assert_false(tensor_same_shape(&a, &b));
    assert_int_equal(tensor_desc_init(&b, "b", DT_F16, 3, (uint64_t[]){2, 3, 1}, &e), 0);
    assert_false(tensor_same_shape(&a, &b));
    assert_int_equal(tensor_desc_init(&a, "a", DT_F32, 0, NULL, &e), 0);
    assert_true(tensor_same_shape(&a, &a));
}

static void assert_refused(const char *name, unsigned dtype, unsigned rank, const uint64_t *dims) {
    struct tensor_desc d, untouched;
    struct err e = {0};
    memset(&d, 0x5a, sizeof d);
    memcpy(&untouched, &d, sizeof d);
    assert_int_equal(tensor_desc_init(&d, name, (enum dtype)dtype, rank, dims, &e), ERR_DATA);
    assert_true(e.msg[0] != 0);
    assert_memory_equal(&d, &untouched, sizeof d);
}

static void test_hostile_shapes(void **state) {
    (void)state;
    const uint64_t big = UINT64_C(1) << 40;
    static const uint64_t ones[9] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
    assert_refused("w", DT_F32, 9, ones);
    assert_refused("w", DT_F32, UINT32_MAX, ones);
    assert_refused("w", 0, 1, ones);
    assert_refused("w", 73, 1, ones);
    assert_refused("w", DT_F32, 2, (uint64_t[]){big, big});
    assert_refused("w", DT_F32, 1, (uint64_t[]){UINT64_MAX});
    assert_refused("w", DT_U8, 1, (uint64_t[]){(uint64_t)INT64_MAX}); /* fits, but its padding does not */
    assert_refused("w", DT_U8, 1, (uint64_t[]){UINT64_MAX - 10});     /* the padding wraps */
    assert_refused("w", DT_F64, 1, (uint64_t[]){UINT64_C(1) << 61});  /* the byte count wraps to 0 */
    assert_refused("w", DT_Q8_0, 1, (uint64_t[]){UINT64_MAX - 31});   /* blocks times 34 wraps */
    assert_refused("w", DT_F32, 3, (uint64_t[]){0, big, big});        /* empty, yet its rows wrap */
    assert_refused("w", DT_F32, 3, (uint64_t[]){big, big, 0});
    assert_refused("w", DT_Q4_0, 2, (uint64_t[]){32, 31});
    assert_refused("w", DT_Q4_0, 2, (uint64_t[]){32, 1});
    assert_refused("w", DT_Q4_K, 2, (uint64_t[]){256, 576}); /* rows of SmolLM2 are not whole blocks */
    assert_refused("w", DT_Q4_0, 0, NULL);                   /* a scalar is not a whole block */
    struct tensor_desc d;
    struct err e = {0};
    assert_int_equal(tensor_desc_init(&d, "w", DT_U8, 1, (uint64_t[]){(uint64_t)INT64_MAX - 63}, &e), 0);
}

static void test_names(void **state) {
    (void)state;
    static const uint64_t dims[] = {1};
    char name[1026];
    memset(name, 'a', sizeof name);
    name[1025] = 0;
    assert_refused(name, DT_F32, 1, dims);
    assert_refused("", DT_F32, 1, dims);
    assert_refused("a\nb", DT_F32, 1, dims);
    assert_refused("\xff", DT_F32, 1, dims);
    struct tensor_desc d;
    struct err e = {0};
    name[1024] = 0;
    assert_int_equal(tensor_desc_init(&d, name, DT_F32, 1, dims, &e), 0);
    assert_string_equal(d.name, name);
    uint64_t elems, bytes;
    memset(d.name, 'a', sizeof d.name); /* no NUL at all */
    assert_int_equal(tensor_desc_check(&d, &elems, &bytes, &e), ERR_DATA);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table_is_consistent),
        cmocka_unit_test(test_numbers_are_pinned),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_shape_text_stays_inside),
        cmocka_unit_test(test_same_shape),
        cmocka_unit_test(test_hostile_shapes),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests_name("tensor_desc", tests, NULL, NULL);
}
