/* Tests of lib/base: JSON. Accepted and rejected texts follow RFC 8259; the spelling of numbers follows RFC 8785,
 * appendix B. */
#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <cmocka.h>

#include "lib/base/base.h"

static cJSON *must_parse(const char *text) {
    struct err e = {0};
    cJSON *value = json_parse(text, strlen(text), &e);
    if (!value) fail_msg("%s: %s", text, e.msg);
    return value;
}

static void assert_refused(const char *text, size_t len) {
    struct err e = {0};
    cJSON *value = json_parse(text, len, &e);
    if (value) fail_msg("accepted: %.*s", (int)len, text);
    assert_int_equal(e.code, ERR_DATA);
    assert_memory_equal(e.msg, "json: ", 6);
}

static void assert_text(const cJSON *value, const char *expected) {
    struct err e = {0};
    char *text = json_text(value, &e);
    if (!text) fail_msg("%s", e.msg);
    assert_string_equal(text, expected);
    mem_free(text);
}

static void test_canonical_text(void **state) {
    (void)state;
    static const char *const pairs[][2] = {
        {" null ", "null"},
        {"\t[ 1 , 2.50 , -0.0e5 , true , false ]\r\n", "[1,2.5,-0,true,false]"},
        {"{ \"z\" : { } , \"a\" : [ ] , \"\" : \"\" }", "{\"z\":{},\"a\":[],\"\":\"\"}"},
        {"\"\\u0041\\u00e9\\ud83d\\ude00\\/\"", "\"A\xc3\xa9\xf0\x9f\x98\x80/\""},
        {"\"\\\"\\\\\\b\\f\\n\\r\\t\\u001f\x7f\"", "\"\\\"\\\\\\b\\f\\n\\r\\t\\u001f\x7f\""},
        {"1E2", "100"},
        {"9007199254740992", "9007199254740992"},
        {"[[[]],[{}],[{\"a\":[{}]}]]", "[[[]],[{}],[{\"a\":[{}]}]]"},
    };
    for (size_t i = 0; i < COUNT_OF(pairs); i++) {
        cJSON *value = must_parse(pairs[i][0]), *again = must_parse(pairs[i][1]);
        assert_text(value, pairs[i][1]);
        assert_text(again, pairs[i][1]); /* canonical text is its own canonical text */
        cJSON_Delete(value);
        cJSON_Delete(again);
    }
}

static void test_grammar_traps(void **state) {
    (void)state;
    static const char *const bad[] = {
        "[0.12345678901234567890123456789012345678901234567890123456789012345]", /* longer than cJSON's buffer */
        "",
        " ",
        "[",
        "]",
        "{",
        "}",
        "[1",
        "[1,",
        "[1,]",
        "[,1]",
        "[1 2]",
        "[1}",
        "{\"a\":1]",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{,}",
        "{1:2}",
        "{a:1}",
        "{'a':1}",
        "{\"a\" 1}",
        "{\"a\":1 \"b\":2}",
        "nul",
        "nulll",
        "True",
        "NaN",
        "Infinity",
        "-Infinity",
        "undefined",
        "+1",
        "01",
        "-01",
        "1.",
        ".5",
        "-.5",
        "-",
        "1e",
        "1e+",
        "1.e5",
        "0x10",
        "1_0",
        "1e999",
        "[-1e999]",
        "\"",
        "\"a",
        "\"a\nb\"",
        "\"\t\"",
        "\"\\x\"",
        "\"\\\"",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "\"\\u 123\"",
        "\"\\u0000\"",
        "{\"\\u0000\":1}",
        "\"\\ud800\"",
        "\"\\ud800x\"",
        "\"\\ud800\\u0041\"",
        "\"\\udc00\"",
        "\"\\ud800\\ud800\"",
        "\"\xff\"",
        "\"\xc0\x80\"",
        "\"\xed\xa0\x80\"",
        "\"\xe2\x82\"",
        "\xef\xbb\xbf{}",
        "{}{}",
        "1 2",
        "[]]",
        "[] x",
        "{}//",
        "/**/1",
        "\xc2\xa0[]",
        "{\"a\":1,\"a\":2}",
        "{\"a\":1,\"b\":0,\"\\u0061\":2}",
        "[{\"x\":{\"k\":1,\"k\":1}}]",
        "{\"\":1,\"\":2}",
    };
    for (size_t i = 0; i < COUNT_OF(bad); i++) assert_refused(bad[i], strlen(bad[i]));
    assert_refused("[1]\0", 4); /* NUL after, within, and in a string */
    assert_refused("[1\0]", 4);
    assert_refused("\"a\0b\"", 5);
}

/* The length is authoritative: the text need not end in NUL. Every proper prefix of an object must be rejected. */
static void test_every_cut_is_noticed(void **state) {
    (void)state;
    static const char text[] = "{\"a\":[1,-2.5e3,\"x\\u00e9\\n\"],\"b\":{\"c\":null,\"d\":[true,false,{}]}}";
    for (size_t n = 0; n < sizeof text - 1; n++) {
        char *exact = malloc(n + !n); /* so that AddressSanitizer catches a read past the end */
        memcpy(exact, text, n);
        assert_refused(exact, n);
        free(exact);
    }
    cJSON_Delete(must_parse(text));
}

static void test_depth(void **state) {
    (void)state;
    for (int object = 0; object < 2; object++) {
        struct buf b = {0};
        struct err e = {0};
        for (int depth = 1; depth <= JSON_MAX_DEPTH + 1; depth++) {
            b.len = 0;
            for (int i = 0; i < depth; i++) assert_int_equal(buf_printf(&b, &e, object ? "{\"k\":" : "["), 0);
            assert_int_equal(buf_printf(&b, &e, object ? "1" : ""), 0);
            for (int i = 0; i < depth; i++) assert_int_equal(buf_printf(&b, &e, object ? "}" : "]"), 0);
            cJSON *value = json_parse((char *)b.data, b.len, &e);
            assert_int_equal(value != NULL, depth <= JSON_MAX_DEPTH);
            cJSON_Delete(value);
        }
        buf_release(&b);
    }
    /* a megabyte of brackets must not overflow the stack */
    char *deep = malloc(1 << 20);
    memset(deep, '[', 1 << 20);
    assert_refused(deep, 1 << 20);
    free(deep);
    /* a tree that is too deep is not written */
    cJSON *root = cJSON_CreateArray(), *at = root;
    for (int i = 0; i < JSON_MAX_DEPTH; i++) {
        cJSON *next = cJSON_CreateArray();
        cJSON_AddItemToArray(at, next);
        at = next;
    }
    struct err e = {0};
    assert_null(json_text(root, &e));
    assert_int_equal(e.code, ERR_DATA);
    cJSON_Delete(root);
}

/* As in a tokenizer's vocabulary: 250,000 keys are checked for duplicates in well under a second. */
static void test_duplicates_among_many_keys(void **state) {
    (void)state;
    enum { N = 250000 };
    for (int duplicate = 0; duplicate < 2; duplicate++) {
        struct buf b = {0};
        struct err e = {0};
        for (int i = 0; i < N; i++) assert_int_equal(buf_printf(&b, &e, "%c\"tok%d\":%d", i ? ',' : '{', i, i), 0);
        assert_int_equal(buf_printf(&b, &e, "%s}", duplicate ? ",\"tok\\u0030\":1" : ""), 0);
        clock_t start = clock();
        cJSON *value = json_parse((char *)b.data, b.len, &e);
        double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
        assert_true(seconds < 10); /* minutes if all pairs were compared; leaves time for sanitizers */
        assert_int_equal(value == NULL, duplicate);
        if (duplicate) assert_string_equal(e.msg, "json: duplicate key \"tok0\"");
        if (!duplicate) assert_int_equal(cJSON_GetArraySize(value), N);
        cJSON_Delete(value);
        buf_release(&b);
    }
}

/* Around the size where the method changes, with the duplicates at every pair of places. */
static void test_duplicates_at_every_place(void **state) {
    (void)state;
    for (int n = 2; n < 40; n++)
        for (int first = 0; first < n; first++)
            for (int second = first + 1; second < n; second++) {
                char text[1024];
                size_t len = 0;
                for (int i = 0; i < n; i++)
                    len += (size_t)snprintf(text + len, sizeof text - len, "%c\"k%d\":0", i ? ',' : '{',
                                            i == second ? first : i);
                text[len++] = '}';
                assert_refused(text, len);
            }
}

static void test_numbers_of_rfc_8785(void **state) {
    (void)state;
    static const struct {
        uint64_t bits;
        const char *text;
    } table[] = {
        {0x0000000000000000, "0"},
        {0x8000000000000000, "-0"}, /* RFC 8785 has "0" here; we keep the sign */
        {0x0000000000000001, "5e-324"},
        {0x8000000000000001, "-5e-324"},
        {0x7fefffffffffffff, "1.7976931348623157e+308"},
        {0xffefffffffffffff, "-1.7976931348623157e+308"},
        {0x4340000000000000, "9007199254740992"},
        {0xc340000000000000, "-9007199254740992"},
        {0x4430000000000000, "295147905179352830000"},
        {0x44b52d02c7e14af5, "9.999999999999997e+22"},
        {0x44b52d02c7e14af6, "1e+23"},
        {0x44b52d02c7e14af7, "1.0000000000000001e+23"},
        {0x444b1ae4d6e2ef4e, "999999999999999700000"},
        {0x444b1ae4d6e2ef4f, "999999999999999900000"},
        {0x444b1ae4d6e2ef50, "1e+21"},
        {0x3eb0c6f7a0b5ed8c, "9.999999999999997e-7"},
        {0x3eb0c6f7a0b5ed8d, "0.000001"},
        {0x41b3de4355555553, "333333333.3333332"},
        {0x41b3de4355555554, "333333333.33333325"},
        {0x41b3de4355555555, "333333333.3333333"},
        {0x41b3de4355555556, "333333333.3333334"},
        {0x41b3de4355555557, "333333333.33333343"},
        {0xbecbf647612f3696, "-0.0000033333333333333333"},
        {0x43143ff3c1cb0959, "1424953923781206.2"},
        {0x3e70000000000000, "5.960464477539063e-8"}, /* 2^-24 and 2^-44: the nearest 16 digits do not read back */
        {0x3d30000000000000, "5.684341886080802e-14"},
    };
    for (size_t i = 0; i < COUNT_OF(table); i++) {
        double v;
        memcpy(&v, &table[i].bits, sizeof v);
        cJSON *number = cJSON_CreateNumber(v);
        assert_text(number, table[i].text);
        cJSON_Delete(number);
    }
}

/* Every double must read back with the same bits, and must not with one digit less. */
static void test_numbers_are_shortest_and_exact(void **state) {
    (void)state;
    struct rng r = rng_init(42, 0);
    for (int i = 0; i < 20000; i++) {
        uint64_t bits = (uint64_t)rng_u32(&r) << 32 | rng_u32(&r);
        double v;
        memcpy(&v, &bits, sizeof v);
        if (i % 4 == 1) v = (double)rng_below(&r, 100000) / 100; /* decimals as people write them */
        if (i % 4 == 2) v = (double)(float)rng_normal(&r);
        if (i % 4 == 3) v = ldexp(1, (int)rng_below(&r, 2098) - 1074);
        if (!isfinite(v)) continue;
        struct err e = {0};
        cJSON *number = cJSON_CreateNumber(v);
        char *text = json_text(number, &e);
        assert_non_null(text);
        cJSON *again = json_parse(text, strlen(text), &e);
        assert_non_null(again);
        assert_memory_equal(&again->valuedouble, &v, sizeof v);
        int digits = 0, zeros = 0; /* significant digits: neither leading nor trailing zeros */
        for (const char *p = text; *p && *p != 'e'; p++) {
            if (*p < '0' || *p > '9' || (*p == '0' && !digits)) continue;
            digits++;
            zeros = *p == '0' ? zeros + 1 : 0;
        }
        digits -= zeros;
        if (digits > 1) {
            char fewer[40];
            snprintf(fewer, sizeof fewer, "%.*e", digits - 2, v);
            assert_false(strtod(fewer, NULL) == v);
        }
        cJSON_Delete(again);
        cJSON_Delete(number);
        mem_free(text);
    }
}

static void test_text_refuses_what_parse_refuses(void **state) {
    (void)state;
    static const double not_finite[] = {NAN, INFINITY, -INFINITY};
    struct err e = {0};
    for (size_t i = 0; i < COUNT_OF(not_finite); i++) {
        cJSON *object = cJSON_CreateObject();
        assert_true(json_put_f64(object, "loss", not_finite[i]));
        assert_null(json_text(object, &e));
        assert_int_equal(e.code, ERR_DATA);
        assert_non_null(strstr(e.msg, "loss"));
        cJSON_Delete(object);
    }
    cJSON *object = cJSON_CreateObject();
    assert_true(json_put_u64(object, "k", 1) && json_put_u64(object, "k", 2));
    assert_null(json_text(object, &e));
    cJSON_Delete(object);
    object = cJSON_CreateObject();
    assert_true(json_put_str(object, "k", "\xff"));
    assert_null(json_text(object, &e));
    cJSON_Delete(object);
    object = cJSON_CreateObject();
    cJSON_AddRawToObject(object, "k", "[");
    assert_null(json_text(object, &e));
    cJSON_Delete(object);
}

static void test_accessors(void **state) {
    (void)state;
    cJSON *o = must_parse("{\"u\":7,\"f\":2.5,\"neg\":-1,\"big\":9007199254740992,\"ok\":9007199254740991,\"s\":\"x\","
                          "\"b\":true,\"n\":null,\"U\":8}");
    struct err e = {0};
    uint64_t u = 99;
    double f = 99;
    bool b = false;
    const char *s = NULL;
    assert_int_equal(json_get_u64(o, "u", 0, 10, &u, &e), 0);
    assert_int_equal(u, 7);
    assert_int_equal(json_get_u64(o, "u", 7, 7, &u, &e), 0);
    assert_int_equal(json_get_u64(o, "ok", 0, UINT64_MAX, &u, &e), 0);
    assert_int_equal(u, JSON_MAX_INTEGER);
    assert_int_equal(json_get_f64(o, "f", 2.5, 2.5, &f, &e), 0);
    assert_true(f == 2.5);
    assert_int_equal(json_get_str(o, "s", &s, &e), 0);
    assert_string_equal(s, "x");
    assert_int_equal(json_get_bool(o, "b", &b, &e), 0);
    assert_true(b);
    assert_int_equal(e.code, 0);

    u = 99, f = 99, s = NULL;
    static const char *const no_u64[] = {"f", "neg", "big", "s", "b", "n", "absent", ""};
    for (size_t i = 0; i < COUNT_OF(no_u64); i++) {
        assert_int_equal(json_get_u64(o, no_u64[i], 0, UINT64_MAX, &u, &e), ERR_DATA);
        assert_non_null(strstr(e.msg, no_u64[i]));
    }
    assert_int_equal(json_get_u64(o, "u", 8, 10, &u, &e), ERR_DATA);
    assert_int_equal(json_get_u64(o, "u", 0, 6, &u, &e), ERR_DATA);
    assert_int_equal(json_get_f64(o, "f", 3, 4, &f, &e), ERR_DATA);
    assert_int_equal(json_get_f64(o, "s", 0, 4, &f, &e), ERR_DATA);
    assert_int_equal(json_get_str(o, "u", &s, &e), ERR_DATA);
    assert_int_equal(json_get_bool(o, "u", &b, &e), ERR_DATA);
    assert_int_equal(json_get_u64(cJSON_GetObjectItem(o, "s"), "u", 0, 9, &u, &e), ERR_DATA);
    assert_int_equal(json_get_u64(NULL, "u", 0, 9, &u, &e), ERR_DATA);

    static const char *const absent[] = {"n", "absent"};
    for (size_t i = 0; i < COUNT_OF(absent); i++) {
        assert_int_equal(json_opt_u64(o, absent[i], 0, 1, &u, &e), 0);
        assert_int_equal(json_opt_f64(o, absent[i], 0, 1, &f, &e), 0);
        assert_int_equal(json_opt_str(o, absent[i], &s, &e), 0);
        assert_int_equal(json_opt_bool(o, absent[i], &b, &e), 0);
    }
    assert_int_equal(json_opt_u64(o, "f", 0, 9, &u, &e), ERR_DATA);
    assert_int_equal(json_opt_u64(o, "u", 0, 6, &u, &e), ERR_DATA);
    assert_int_equal(json_opt_f64(o, "f", 0, 1, &f, &e), ERR_DATA);
    assert_int_equal(json_opt_str(o, "u", &s, &e), ERR_DATA);
    assert_int_equal(json_opt_bool(o, "u", &b, &e), ERR_DATA);
    assert_int_equal(json_opt_u64(NULL, "u", 0, 9, &u, &e), ERR_DATA);
    assert_true(u == 99 && f == 99 && !s && b); /* a failure or an absence leaves the value alone */
    assert_int_equal(json_opt_u64(o, "u", 0, 7, &u, &e), 0);
    assert_int_equal(u, 7);
    cJSON_Delete(o);
}

static void test_put_and_read_back(void **state) {
    (void)state;
    cJSON *o = cJSON_CreateObject();
    assert_true(json_put_u64(o, "max", JSON_MAX_INTEGER));
    assert_false(json_put_u64(o, "more", JSON_MAX_INTEGER + 1));
    assert_true(json_put_f64(o, "lr", 3e-4));
    assert_true(json_put_str(o, "name", "q4_k"));
    assert_true(json_put_bool(o, "tied", true));
    assert_true(json_put_f64_or_null(o, "loss", 0.5) && json_put_f64_or_null(o, "nan", NAN));
    assert_text(o, "{\"max\":9007199254740991,\"lr\":0.0003,\"name\":\"q4_k\",\"tied\":true,"
                   "\"loss\":0.5,\"nan\":null}");
    cJSON_Delete(o);
}

/* JSON for a terminal: the same value, with its strings escaped. */
static void test_shown_text(void **state) {
    (void)state;
    static const char source[] = "{\"a\\n\x7f\":[1.5,\"\xc2\x9b\xe2\x80\xae\xc3\xa9\xf3\xa0\x80\x81\"]}";
    struct err e = {0};
    cJSON *value = json_parse(source, sizeof source - 1, &e);
    assert_non_null(value);
    char *text = json_text_shown(value, &e);
    assert_string_equal(text, "{\"a\\n\\u007f\":[1.5,\"\\u009b\\u202e\xc3\xa9\\udb40\\udc01\"]}");
    cJSON *back = json_parse(text, strlen(text), &e);
    assert_true(cJSON_Compare(value, back, true));
    assert_text(back, source);
    mem_free(text);
    cJSON_Delete(value);
    cJSON_Delete(back);
}

/* Every allocation fails in turn: the result must be an error, never a wrong value or a leak (ASan checks). */
static void test_out_of_memory(void **state) {
    (void)state;
    cJSON *value = NULL;
    char *text = NULL;
    struct err e = {0};
    static const char source[] = "{\"a\":1,\"b\":2,\"c\":3,\"d\":4,\"e\":5,\"f\":6,\"g\":7,\"h\":8,\"i\":9,\"j\":10,"
                                 "\"k\":11,\"l\":12,\"m\":13,\"n\":14,\"o\":15,\"p\":16,\"q\":17,\"r\":18,\"s\":19}";
    uint64_t n = 0;
    while (!text) {
        mem_fail_at(++n);
        if (!value) value = json_parse(source, sizeof source - 1, &e);
        if (value) text = json_text(value, &e);
        if (!text) assert_int_equal(e.code, ERR_IO);
    }
    mem_fail_at(0);
    assert_true(n > 3);
    assert_string_equal(text, source);
    mem_free(text);
    cJSON_Delete(value);
}

/* Whole numbers keep their point, so that readers that distinguish 30 from 30.0 see a float. */
static void test_floats_keep_a_point(void **state) {
    (void)state;
    struct err e;
    cJSON *o = cJSON_CreateObject();
    assert_true(json_put_float(o, "a", 30) && json_put_float(o, "b", -2) && json_put_float(o, "c", 0.5) &&
                json_put_float(o, "d", 1e20));
    char *text = json_text(o, &e);
    assert_non_null(text);
    assert_string_equal(text, "{\"a\":30.0,\"b\":-2.0,\"c\":0.5,\"d\":100000000000000000000}");
    mem_free(text);
    cJSON_Delete(o);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_canonical_text),
        cmocka_unit_test(test_grammar_traps),
        cmocka_unit_test(test_every_cut_is_noticed),
        cmocka_unit_test(test_depth),
        cmocka_unit_test(test_duplicates_among_many_keys),
        cmocka_unit_test(test_duplicates_at_every_place),
        cmocka_unit_test(test_numbers_of_rfc_8785),
        cmocka_unit_test(test_numbers_are_shortest_and_exact),
        cmocka_unit_test(test_text_refuses_what_parse_refuses),
        cmocka_unit_test(test_accessors),
        cmocka_unit_test(test_put_and_read_back),
        cmocka_unit_test(test_shown_text),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_floats_keep_a_point),
    };
    return cmocka_run_group_tests_name("base_json", tests, NULL, NULL);
}
