/* Tests of lib/base: UTF-8, names, numbers. */
#include <locale.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "lib/base/base.h"

/* The encoding by the table of RFC 3629, for every code point. */
static size_t encode(uint32_t c, char out[4]) {
    unsigned char b[4];
    size_t n;
    if (c < 0x80) {
        n = 1, b[0] = (unsigned char)c;
    } else if (c < 0x800) {
        n = 2, b[0] = (unsigned char)(0xc0 | c >> 6), b[1] = (unsigned char)(0x80 | (c & 63));
    } else if (c < 0x10000) {
        n = 3, b[0] = (unsigned char)(0xe0 | c >> 12), b[1] = (unsigned char)(0x80 | (c >> 6 & 63)),
        b[2] = (unsigned char)(0x80 | (c & 63));
    } else {
        n = 4, b[0] = (unsigned char)(0xf0 | c >> 18), b[1] = (unsigned char)(0x80 | (c >> 12 & 63)),
        b[2] = (unsigned char)(0x80 | (c >> 6 & 63)), b[3] = (unsigned char)(0x80 | (c & 63));
    }
    memcpy(out, b, n);
    return n;
}

static void test_utf8_accepts_exactly_the_code_points(void **state) {
    (void)state;
    for (uint32_t c = 0; c < 0x1fffff; c++) {
        char text[4 + 9] = {0};
        size_t n = encode(c, text);
        bool sound = c <= 0x10ffff && !(c >= 0xd800 && c <= 0xdfff);
        if (utf8_valid(text, n) != sound) fail_msg("U+%04X", c);
        for (size_t cut = 1; cut < n; cut++)
            if (utf8_valid(text, cut)) fail_msg("U+%04X cut to %zu bytes", c, cut);
    }
}

static void test_utf8_traps(void **state) {
    (void)state;
    assert_true(utf8_valid("", 0));
    assert_true(utf8_valid("a\0b", 3));
    static const char *const bad[] = {
        "\x80",             /* continuation alone */
        "\xc0\x80",         /* overlong NUL */
        "\xc1\xbf",         /* overlong */
        "\xe0\x80\x80",     /* overlong */
        "\xe0\x9f\xbf",     /* overlong */
        "\xf0\x80\x80\x80", /* overlong */
        "\xf0\x8f\xbf\xbf", /* overlong */
        "\xed\xa0\x80",     /* surrogate */
        "\xf4\x90\x80\x80", /* past U+10FFFF */
        "\xf5\x80\x80\x80",
        "\xfe",
        "\xff",
        "\xe2\x82z",
        "\xe2z\xac",
        "\xc3\xc3\xa9",
        "\xe2\x82\xac\xac",
    };
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        for (size_t before = 0; before < 17; before++) { /* every offset within the eight-byte steps */
            char text[64];
            memset(text, 'a', sizeof text);
            memcpy(text + before, bad[i], strlen(bad[i]));
            assert_true(utf8_valid(text, before));
            assert_false(utf8_valid(text, before + strlen(bad[i])));
            assert_false(utf8_valid(text, sizeof text));
        }
}

static void test_names(void **state) {
    (void)state;
    char name[1026];
    memset(name, 'n', sizeof name);
    assert_true(name_valid(name, 1));
    assert_true(name_valid(name, 1024));
    assert_false(name_valid(name, 1025));
    assert_false(name_valid(name, 0));
    assert_true(name_valid("model.layers.0 weight/größe", strlen("model.layers.0 weight/größe")));
    for (uint32_t c = 0; c < 0x200; c++) {
        char text[4];
        size_t n = encode(c, text);
        bool control = c < 0x20 || (c >= 0x7f && c <= 0x9f);
        if (name_valid(text, n) == control) fail_msg("U+%04X", c);
    }
    assert_false(name_valid("\xff", 1));
    assert_false(name_valid("a\0b", 3));
}

static void test_u64(void **state) {
    (void)state;
    static const struct {
        const char *text;
        uint64_t value;
    } good[] = {
        {"0", 0},
        {"007", 7},
        {"18446744073709551615", UINT64_MAX},
        {"1K", 1024},
        {"3M", 3 << 20},
        {"2G", UINT64_C(2) << 30},
        {"17179869183G", UINT64_C(17179869183) << 30},
    };
    for (size_t i = 0; i < COUNT_OF(good); i++) {
        uint64_t v = 99;
        assert_true(parse_u64(good[i].text, &v));
        assert_int_equal(v, good[i].value);
    }
    static const char *const bad[] = {"",
                                      " 1",
                                      "1 ",
                                      "+1",
                                      "-1",
                                      "0x10",
                                      "1k",
                                      "1KB",
                                      "1KK",
                                      "K",
                                      "1.5",
                                      "1e3",
                                      "18446744073709551616",
                                      "184467440737095516150",
                                      "17179869184G",
                                      "\xd9\xa1"};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        uint64_t v = 99;
        if (parse_u64(bad[i], &v)) fail_msg("accepted \"%s\"", bad[i]);
        assert_int_equal(v, 99);
    }
}

static void test_f64(void **state) {
    (void)state;
    static const struct {
        const char *text;
        double value;
    } good[] = {{"0", 0},       {"-1.5", -1.5}, {"+2", 2},
                {".5", .5},     {"5.", 5},      {"1e3", 1000},
                {"1E-3", 1e-3}, {"1e-999", 0},  {"1.7976931348623157e308", 1.7976931348623157e308},
                {"0.1", 0.1}};
    for (size_t i = 0; i < COUNT_OF(good); i++) {
        double v = 99;
        if (!parse_f64(good[i].text, &v)) fail_msg("refused \"%s\"", good[i].text);
        assert_true(v == good[i].value);
    }
    static const char *const bad[] = {"",    " 1",  "1 ",   "+",     "-",      ".",   "e5",    "1e",  "1e+", "0x1p3",
                                      "inf", "nan", "-inf", "1e999", "-1e999", "1,5", "1.2.3", "--1", "1f"};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        double v = 99;
        if (parse_f64(bad[i], &v)) fail_msg("accepted \"%s\"", bad[i]);
        assert_true(v == 99);
    }
}

static void test_escape(void **state) {
    (void)state;
    static const struct {
        const char *text, *shown;
    } cases[] = {
        {"plain \\u0041 \xc3\xa9 \xe4\xb8\xad \xf0\x9f\x98\x80", NULL}, /* NULL: unchanged */
        {"\xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x92\xbb", NULL},         /* joined with U+200D */
        {"a\nb\tc\rd", "a\\nb\\tc\\rd"},
        {"\x1b[2J\x7f\x01", "\\u001b[2J\\u007f\\u0001"},
        {"\xc2\x9b"
         "2J",
         "\\u009b2J"}, /* CSI in one character */
        {"\x9b"
         "2J \xff \xc3",
         "\\x9b2J \\xff \\xc3"}, /* not UTF-8 */
        {"\xe2\x80\xae"
         "exe.\xe2\x81\xa6",
         "\\u202eexe.\\u2066"}, /* bidirectional */
        {"\xe2\x80\x8f\xe2\x80\xa8\xe2\x80\xa9\xef\xbb\xbf", "\\u200f\\u2028\\u2029\\ufeff"},
        {"\xf3\xa0\x80\x81", "\\udb40\\udc01"}, /* a tag, U+E0001 */
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char out[128], again[128];
        const char *want = cases[i].shown ? cases[i].shown : cases[i].text;
        assert_int_equal(escape_text(out, sizeof out, cases[i].text, strlen(cases[i].text)), strlen(want));
        assert_string_equal(out, want);
        escape_text(again, sizeof again, out, strlen(out));
        assert_string_equal(again, out);
    }
    /* an escape or character that does not fit is left out whole */
    char out[8];
    assert_int_equal(escape_text(out, sizeof out, "ab\x1b\x1b", 4), 2);
    assert_int_equal(escape_text(out, sizeof out, "abcdef\xc3\xa9", 8), 6);
    assert_string_equal(out, "abcdef");
    assert_int_equal(escape_text(out, 1, "a", 1), 0);
    assert_int_equal(escape_text(out, sizeof out, "a\0", 2), 7);
    assert_string_equal(out, "a\\u0000");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_utf8_accepts_exactly_the_code_points),
        cmocka_unit_test(test_utf8_traps),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_u64),
        cmocka_unit_test(test_f64),
        cmocka_unit_test(test_escape),
    };
    return cmocka_run_group_tests_name("base_string", tests, NULL, NULL);
}
