/* Tests of lib/base: errors and log lines. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "lib/base/base.h"

static void test_set_returns_its_code(void **state) {
    (void)state;
    struct err e = {0};
    assert_int_equal(err_set(&e, ERR_DATA, "tensor %s at byte %d", "a.b", 7), ERR_DATA);
    assert_int_equal(e.code, ERR_DATA);
    assert_string_equal(e.msg, "tensor a.b at byte 7");
}

static void test_prefix_keeps_the_code(void **state) {
    (void)state;
    struct err e = {0};
    err_set(&e, ERR_USAGE, "100%% wrong");
    assert_int_equal(err_prefix(&e, "record %d", 3), ERR_USAGE);
    assert_int_equal(err_prefix(&e, "%s", "file"), ERR_USAGE);
    assert_string_equal(e.msg, "file: record 3: 100% wrong");
}

static void test_arguments_may_point_into_the_message(void **state) {
    (void)state;
    struct err e = {0};
    err_set(&e, ERR_DATA, "inner");
    err_set(&e, ERR_CHECK, "outer (%s)", e.msg);
    assert_string_equal(e.msg, "outer (inner)");
    err_prefix(&e, "again %s", e.msg);
    assert_string_equal(e.msg, "again outer (inner): outer (inner)");
}

static void test_sys_adds_the_reason(void **state) {
    (void)state;
    struct err e = {0};
    assert_int_equal(err_sys(&e, ENOENT, "cannot open %s", "x"), ERR_IO);
    assert_string_equal(e.msg, "cannot open x: No such file or directory");
    assert_int_equal(err_nomem(&e, "a table"), ERR_IO);
    assert_string_equal(e.msg, "out of memory: a table");
}

/* Whatever is quoted, the message must be one printable line that ends in a NUL. */
static void test_messages_are_one_line_of_text(void **state) {
    (void)state;
    struct err e = {0};
    err_set(&e, ERR_DATA, "a\nb\x1b[2Jc\x7f\t%s", "\x01");
    assert_string_equal(e.msg, "a\\nb\\u001b[2Jc\\u007f\\t\\u0001");
    for (size_t pad = 0; pad < 4; pad++) { /* the cut falls on each byte of a character */
        char wide[4096];
        memset(wide, 'x', pad);
        for (size_t i = pad; i + 3 < sizeof wide; i += 3) memcpy(wide + i, "\xe2\x82\xac", 4);
        err_set(&e, ERR_DATA, "%s", wide);
        assert_in_range(strlen(e.msg), sizeof e.msg - 4, sizeof e.msg - 1);
        assert_true(utf8_valid(e.msg, strlen(e.msg)));
        err_prefix(&e, "%s", wide);
        assert_true(utf8_valid(e.msg, strlen(e.msg)));
        err_sys(&e, EIO, "%s", wide);
        assert_true(utf8_valid(e.msg, strlen(e.msg)));
    }
}

struct lines {
    int n;
    enum log_level level;
    char last[256];
};

static void collect(void *ctx, enum log_level level, const char *line) {
    struct lines *lines = ctx;
    lines->n++;
    lines->level = level;
    snprintf(lines->last, sizeof lines->last, "%s", line);
}

static void test_log_reaches_the_sink_only_while_it_is_set(void **state) {
    (void)state;
    struct lines lines = {0};
    log_line(LOG_WARN, "nobody %s", "listens");
    log_set_sink(collect, &lines);
    log_line(LOG_INFO, "%d tensors", 3);
    assert_int_equal(lines.n, 1);
    assert_int_equal(lines.level, LOG_INFO);
    assert_string_equal(lines.last, "3 tensors");
    log_set_sink(NULL, NULL);
    log_line(LOG_DEBUG, "silence again");
    assert_int_equal(lines.n, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_set_returns_its_code),
        cmocka_unit_test(test_prefix_keeps_the_code),
        cmocka_unit_test(test_arguments_may_point_into_the_message),
        cmocka_unit_test(test_sys_adds_the_reason),
        cmocka_unit_test(test_messages_are_one_line_of_text),
        cmocka_unit_test(test_log_reaches_the_sink_only_while_it_is_set),
    };
    return cmocka_run_group_tests_name("base_err", tests, NULL, NULL);
}
