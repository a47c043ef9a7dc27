/* lib/formats: the safetensors reader and the folder. */
#include "tests/unit/formats_samples.h"

/* ---- one file ---- */

static struct buf file_with(const char *header, size_t n_data) {
    struct buf b = {0};
    add_string(&b, header);
    for (size_t i = 0; i < n_data; i++) add_bytes(&b, "", 1);
    return b;
}

/* A copy of exactly n bytes, so that a sanitizer sees the first byte too many. */
static int parse(const void *data, size_t n, size_t *n_tensors, struct err *e) {
    struct raw_table t = {0};
    struct arena a = {0};
    unsigned char *copy = malloc(n ? n : 1);
    assert_non_null(copy);
    memcpy(copy, data, n);
    int rc = safetensors_parse(&t, copy, n, &a, e);
    if (!rc) rc = raw_table_sort(&t, e);
    volatile unsigned char sum = 0;
    for (size_t i = 0; i < t.n && !rc; i++)
        for (uint64_t k = 0; k < t.items[i].n_bytes; k++) sum = (unsigned char)(sum + t.items[i].data[k]);
    *n_tensors = t.n;
    raw_table_release(&t);
    arena_release(&a);
    free(copy);
    return rc;
}

static void check_header(const char *header, size_t n_data, const char *says) {
    struct err e = {0};
    size_t n;
    struct buf b = file_with(header, n_data);
    int rc = parse(b.data, b.len, &n, &e);
    if (says) {
        assert_int_equal(rc, ERR_DATA);
        if (!strstr(e.msg, says)) fail_msg("%s\nsaid '%s', expected '%s'", header, e.msg, says);
    } else if (rc) {
        fail_msg("%s: %s", header, e.msg);
    }
    buf_release(&b);
}

#define F32_AT(name, shape, a, b)                                                                                      \
    "\"" name "\":{\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":[" #a "," #b "]}"

static void test_sound_files(void **state) {
    (void)state;
    check_header("{}", 0, NULL);
    check_header("{\"__metadata__\":{\"format\":\"pt\"}}   ", 0, NULL);
    check_header("{" F32_AT("a", "[2,3]", 0, 24) "," F32_AT("b", "[]", 24, 28) "}", 28, NULL);
    check_header("{" F32_AT("b", "[1]", 24, 28) "," F32_AT("a", "[2,3]", 0, 24) "}", 28, NULL); /* any order of names */
    check_header("{\"x\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[0,2]}}", 2, NULL);
}

/* Overlapping, gapped and repeated offsets; shapes that are no such number of bytes; more than 2^32 and 2^64. */
static void test_lying_headers(void **state) {
    (void)state;
    static const struct {
        const char *header;
        size_t n_data;
        const char *says;
    } cases[] = {
        {"{" F32_AT("a", "[2]", 0, 8) "," F32_AT("b", "[2]", 4, 12) "}", 12, "a gap or an overlap"},
        {"{" F32_AT("a", "[2]", 0, 8) "," F32_AT("b", "[2]", 0, 8) "}", 8, "a gap or an overlap"},
        {"{" F32_AT("a", "[2]", 0, 8) "," F32_AT("b", "[2]", 12, 20) "}", 20, "a gap or an overlap"},
        {"{" F32_AT("a", "[2]", 4, 12) "}", 12, "a gap or an overlap"},
        {"{" F32_AT("a", "[2]", 0, 8) "}", 12, "the tensors end at byte 8 of 12"},
        {"{" F32_AT("a", "[2]", 0, 8) "}", 4, "ends at byte 8 of 4"},
        {"{" F32_AT("a", "[3]", 0, 8) "}", 8, "need 12 bytes"},
        {"{" F32_AT("a", "[2]", 8, 0) "}", 8, "need 8 bytes"},
        {"{" F32_AT("a", "[0]", 0, 0) "}", 0, "dimension 0 is zero"},
        {"{" F32_AT("a", "[4294967296,4294967296]", 0, 0) "}", 0, "overflow"},
        {"{" F32_AT("a", "[4611686018427387904]", 0, 0) "}", 0, "below 2^53"},
        {"{" F32_AT("a", "[4503599627370496,2048]", 0, 0) "}", 0, "overflow"},
        {"{" F32_AT("a", "[4294967296]", 0, 17179869184) "}", 0, "ends at byte 17179869184 of 0"},
        {"{" F32_AT("a", "[-1]", 0, 0) "}", 0, "no whole number"},
        {"{" F32_AT("a", "[1.5]", 0, 6) "}", 6, "no whole number"},
        {"{" F32_AT("a", "[1,1,1,1,1,1,1,1,1]", 0, 4) "}", 4, "more than 8 entries"},
        {"{" F32_AT("a", "4", 0, 4) "}", 4, "\"shape\" is not a list"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "not two numbers"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4, "more than 2 entries"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "\"data_offsets\" is not a list"},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype"},
        {"{\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "tensor 'a': dtype 'F8_E4M3'"},
        {"{\"a\":7}", 0, "tensor 'a'"},
        {"{" F32_AT("a", "[1]", 0, 4) "," F32_AT("a", "[1]", 4, 8) "}", 8, "duplicate key"},
        {"{" F32_AT("", "[1]", 0, 4) "}", 4, "a tensor name is not"},
        {"{\"__metadata__\":{\"format\":1}}", 0, "is not a string"},
        {"{\"__metadata__\":[]}", 0, "is not an object"},
        {"[]", 0, "no JSON object"},
        {"{} {}", 0, "bytes after the value"},
        {"", 0, "header"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) check_header(cases[i].header, cases[i].n_data, cases[i].says);
}

static void test_header_sizes(void **state) {
    (void)state;
    const uint64_t sizes[] = {3, 100000001, UINT64_C(1) << 32, INT64_MAX, UINT64_MAX - 7, UINT64_MAX};
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        struct err e = {0};
        size_t n;
        struct buf b = file_with("{}", 0);
        memcpy(b.data, &sizes[i], 8);
        assert_int_equal(parse(b.data, b.len, &n, &e), ERR_DATA);
        assert_non_null(strstr(e.msg, "the header has"));
        buf_release(&b);
    }
}

static void test_deep_json(void **state) {
    (void)state;
    char deep[201] = {0};
    memset(deep, '[', 200);
    check_header(deep, 0, "deep");
}

static void test_every_cut(void **state) {
    (void)state;
    struct err e;
    size_t n;
    struct buf b = file_with("{" F32_AT("a", "[2,3]", 0, 24) "," F32_AT("b", "[1]", 24, 28) "}", 28);
    for (size_t cut = 0; cut < b.len; cut++) assert_int_equal(parse(b.data, cut, &n, &e), ERR_DATA);
    OK(parse(b.data, b.len, &n, &e));
    assert_int_equal(n, 2);
    buf_release(&b);
}

/* ---- shards ---- */

static void check_index(const char *index, const char *says) {
    struct err e = {0};
    struct foreign_model *f = NULL;
    char folder[64], command[512];
    temp_folder(folder);
    snprintf(command, sizeof command, "cp " GOLDEN "tiny-llama/sharded/* '%s'", folder);
    assert_int_equal(system(command), 0);
    if (index) write_text(folder, "model.safetensors.index.json", index, strlen(index));
    int rc = foreign_open(&f, folder, NULL, &e);
    if (says) {
        assert_int_equal(rc, ERR_DATA);
        if (!strstr(e.msg, says)) fail_msg("%s: said '%s'", index, e.msg);
    } else {
        OK(rc);
        foreign_close(f);
    }
    remove_folder(folder);
}

static void test_index(void **state) {
    (void)state;
    check_index(NULL, NULL);
    check_index("{}", "\"weight_map\" is not an object");
    check_index("{\"weight_map\":{\"a\":\"../x\"}}", "in no file of this folder");
    check_index("{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "in no file of this folder");
    check_index("{\"weight_map\":{\"a\":7}}", "in no file of this folder");
    check_index("{\"weight_map\":{\"a\":\"model-00001-of-00002.safetensors\"}}", "does not say");
    check_index("{\"weight_map\":{}}", "tensor 'model.embed_tokens.weight' is missing");
}

static void test_missing_files(void **state) {
    (void)state;
    struct err e = {0};
    struct foreign_model *f;
    char folder[64];
    temp_folder(folder);
    assert_int_equal(foreign_open(&f, folder, NULL, &e), ERR_IO);
    assert_non_null(strstr(e.msg, "config.json: No such file"));
    write_text(folder, "config.json", "{" LLAMA "}", strlen("{" LLAMA "}"));
    assert_int_equal(foreign_open(&f, folder, NULL, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "neither model.safetensors nor model.safetensors.index.json"));
    write_text(folder, "model.safetensors", "", 0);
    assert_int_equal(foreign_open(&f, folder, NULL, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "a safetensors file of 0 bytes"));
    assert_int_equal(foreign_open(&f, "/nonexistent", NULL, &e), ERR_IO);
    assert_int_equal(foreign_open(&f, "/dev/null", NULL, &e), ERR_IO);
    assert_non_null(strstr(e.msg, "/dev/null: not a regular file"));
    remove_folder(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sound_files),   cmocka_unit_test(test_lying_headers), cmocka_unit_test(test_header_sizes),
        cmocka_unit_test(test_deep_json),     cmocka_unit_test(test_every_cut),     cmocka_unit_test(test_index),
        cmocka_unit_test(test_missing_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
