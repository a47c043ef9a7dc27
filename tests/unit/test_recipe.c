/* Tests of recipes: quoting for make and the shell, paths, and graphs of forged entries. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "lib/recipe/recipe_internal.h"

static struct err e;

static void expect_shell(const char *word, const char *quoted) {
    struct buf b = {0};
    assert_int_equal(recipe_quote_shell(&b, word, &e), 0);
    assert_int_equal(buf_append(&b, "", 1, &e), 0);
    assert_string_equal((char *)b.data, quoted);
    buf_release(&b);
}

static void shell_words(void **state) {
    (void)state;
    expect_shell("plain-1.5_%@a/b:c,d+e=f", "plain-1.5_%@a/b:c,d+e=f");
    expect_shell("", "''");
    expect_shell("two words", "'two words'");
    expect_shell("it's", "'it'\\''s'");
    expect_shell("$HOME", "'$$HOME'");
    expect_shell("#", "'#'");
    expect_shell("~", "'~'");
    expect_shell("back\\slash", "'back\\slash'");
    expect_shell("a\nb", "$$'a\\x0ab'");
    expect_shell("\t'$\\", "$$'\\x09\\'$$\\\\'");
}

static void expect_make(const char *name, const char *target, const char *prerequisite) {
    struct buf b = {0};
    assert_int_equal(recipe_quote_make(&b, name, true, &e), 0);
    assert_int_equal(buf_append(&b, "", 1, &e), 0);
    assert_string_equal((char *)b.data, target);
    b.len = 0;
    assert_int_equal(recipe_quote_make(&b, name, false, &e), 0);
    assert_int_equal(buf_append(&b, "", 1, &e), 0);
    assert_string_equal((char *)b.data, prerequisite);
    buf_release(&b);
}

static void make_names(void **state) {
    (void)state;
    expect_make("a.rill", "a.rill", "a.rill");
    expect_make("a b#c", "a\\ b\\#c", "a\\ b\\#c");
    expect_make("a$b=c", "a$$b$(eq)c", "a$$b$(eq)c");
    expect_make("100%", "100\\%", "100%");
    expect_make("~x", "./~x", "./~x");
    static const char *const impossible[] = {"a;b", "a|b", "a\\b", "a\nb", "a\tb"};
    for (size_t i = 0; i < COUNT_OF(impossible); i++) {
        struct buf b = {0};
        assert_int_equal(recipe_quote_make(&b, impossible[i], true, &e), ERR_DATA);
        buf_release(&b);
    }
}

static void normal_paths(void **state) {
    (void)state;
    static const char *const pairs[][2] = {{"a", "a"},           {"./a", "a"},     {"./././a/./b", "a/b"},
                                           {"a//b", "a/b"},      {"/./a", "/a"},   {"../a/.b", "../a/.b"},
                                           {"a/../b", "a/../b"}, {"a./b", "a./b"}, {"", ""}};
    struct arena a = {0};
    for (size_t i = 0; i < COUNT_OF(pairs); i++) {
        const char *out;
        assert_int_equal(recipe_normal_path(&a, pairs[i][0], &out, &e), 0);
        assert_string_equal(out, pairs[i][1]);
    }
    arena_release(&a);
}

/* ---- graphs ------------------------------------------------------------------------------------------------------ */

static int make(const char *json, const char *target, char **text) {
    struct recipe r;
    struct buf b = {0};
    cJSON *entries = json_parse(json, strlen(json), &e);
    assert_non_null(entries);
    int rc = recipe_build(&r, entries, target, &e);
    if (!rc) rc = recipe_print(&r, &b, &e);
    *text = NULL;
    if (!rc) {
        assert_int_equal(buf_append(&b, "", 1, &e), 0);
        *text = strdup((char *)b.data);
    }
    buf_release(&b);
    recipe_release(&r);
    cJSON_Delete(entries);
    return rc;
}

static void expect_rules(const char *json, const char *target, const char *rules) {
    char *text;
    assert_int_equal(make(json, target, &text), 0);
    const char *body = strstr(text, "eq := =\n\n");
    assert_non_null(body);
    assert_string_equal(body + 9, rules);
    free(text);
}

#define STEP(id, tool, inputs, output)                                                                                 \
    "{\"id\":\"" id "\",\"tool\":\"" tool "\",\"version\":\"" RILL_VERSION "\",\"argv\":[\"" tool                      \
    "\"],\"inputs\":[" inputs "],\"output\":" output "}"
#define STDIN(path, parents) "{\"role\":\"stdin\",\"path\":" path ",\"stdin\":true,\"parents\":[" parents "]}"

static void pipe_and_files(void **state) {
    (void)state;
    expect_rules("[" STEP("1", "a", "", "\"x\"") "," STEP("2", "b", STDIN("\"x\"", "\"1\""), "null") "," STEP(
                     "3", "c", STDIN("null", "\"2\""), "\"y\"") "]",
                 NULL, "y: x\n\t$(RILL) b < x | \\\n\t$(RILL) c > y\n\nx:\n\t$(RILL) a > x\n");
}

static void renamed_and_missing(void **state) {
    (void)state;
    expect_rules("[" STEP("1", "a", "", "\"x\"") "]", "z", "z: x\n\ttest x -ef z || cp x z\n\nx:\n\t$(RILL) a > x\n");
    /* a parent that is missing: its output is taken as given */
    expect_rules("[" STEP("2", "b", STDIN("\"x\"", "\"1\""), "\"y\"") "]", NULL,
                 "y: x\n\t$(RILL) b < x > y\n\n# These must be there:\n#   x\n");
}

static void diamond(void **state) {
    (void)state;
    expect_rules(
        "[" STEP("1", "a", "", "null") "," STEP("2", "b", STDIN("null", "\"1\""), "\"l\"") "," STEP(
            "3", "c", STDIN("null", "\"1\""), "\"r\"") "," STEP("4", "d", STDIN("null", "\"2\",\"3\""), "\"y\"") "]",
        NULL,
        "y: l r\n\t{ cat l; cat r; } | \\\n\t$(RILL) d > y\n"
        "\nl: pipe-step.rill\n\tcat pipe-step.rill | \\\n\t$(RILL) b > l\n"
        "\nr: pipe-step.rill\n\tcat pipe-step.rill | \\\n\t$(RILL) c > r\n"
        "\npipe-step.rill:\n\t$(RILL) a | cat > pipe-step.rill\n");
}

/* Two programs of one pipeline read x, the last one twice: it is one prerequisite. */
static void read_twice(void **state) {
    (void)state;
    static const char x[] = "{\"role\":\"model\",\"path\":\"x\",\"parents\":[]}";
    char json[1000];
    snprintf(json, sizeof json, "[" STEP("1", "a", "%s", "null") "," STEP("2", "b", "%s,%s,%s", "\"y\"") "]", x, x, x,
             STDIN("null", "\"1\""));
    expect_rules(json, NULL, "y: x\n\t$(RILL) a | \\\n\t$(RILL) b > y\n\n# These must be there:\n#   x\n");
}

/* A process substitution that is used twice becomes a file: if its pipeline were printed at each use, the text would
 * double with every step. */
static void named_twice(void **state) {
    (void)state;
    struct buf json = {0};
    char *text;
    for (int i = 0; i < 40; i++)
        assert_int_equal(buf_printf(&json, &e,
                                    "%s{\"id\":\"%d\",\"tool\":\"a\",\"argv\":[\"a\",\"/dev/fd/63\",\"-m=/dev/fd/63\"],"
                                    "\"inputs\":[{\"path\":\"/dev/fd/63\",\"parents\":[\"%d\"]}]}",
                                    i ? "," : "[", i, i - 1),
                         0);
    assert_int_equal(buf_append(&json, "]", 2, &e), 0);
    assert_int_equal(make((const char *)json.data, "y", &text), 0);
    assert_non_null(
        strstr(text, "y: pipe-step.rill.38\n\t$(RILL) a <(cat pipe-step.rill.38) -m=<(cat pipe-step.rill.38)"));
    assert_true(strlen(text) < 10000);
    free(text);
    buf_release(&json);
}

static void in_place(void **state) {
    (void)state;
    /* x was read and then overwritten: the original input keeps the name */
    expect_rules("[" STEP("1", "a", STDIN("\"x\"", ""), "\"x\"") "]", NULL,
                 "x.1: x\n\t$(RILL) a < x > x.1\n\n# These must be there:\n#   x\n");
}

static void hostile(void **state) {
    (void)state;
    char *text;
    static const char *const refused[] = {
        "[]",
        "[{}]",
        "[{\"id\":\"1\"}]",
        "[{\"id\":\"1\",\"tool\":\"a\",\"argv\":[\"a\",7],\"output\":\"x\"}]",
        "[{\"id\":1,\"tool\":\"a\"}]",
        "[[]]",
        "[null]",
    };
    for (size_t i = 0; i < COUNT_OF(refused); i++) assert_int_equal(make(refused[i], "t", &text), ERR_DATA);
    /* a step that claims to be its own child, or that of a later one, has no parent: cycles cannot be expressed */
    expect_rules("[" STEP("1", "a", STDIN("null", "\"1\""), "\"x\"") "]", NULL,
                 "x: unknown-input\n\tcat unknown-input | \\\n\t$(RILL) a > x\n\n# These must be there:\n"
                 "#   unknown-input  it came through a pipe: save it under this name\n");
    /* nothing may escape from a word or a comment */
    assert_int_equal(
        make("[{\"id\":\"1\",\"tool\":\"a; rm x\",\"version\":\"1\\n\\trm x\",\"argv\":[\"a\",\"$(rm x)\",\"`rm`\"],"
             "\"output\":\"x\"}]",
             NULL, &text),
        0);
    assert_non_null(strstr(text, "\t$(RILL) 'a; rm x' '$$(rm x)' '`rm`' > x\n"));
    assert_non_null(strstr(text, "by rill 1\\n\\trm x, this"));
    free(text);
}

static void unnamed(void **state) {
    (void)state;
    char *text;
    assert_int_equal(make("[" STEP("1", "a", "", "null") "]", NULL, &text), ERR_USAGE);
    expect_rules("[" STEP("1", "a", "", "null") "]", "t", "t:\n\t$(RILL) a | cat > t\n");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shell_words),
        cmocka_unit_test(make_names),
        cmocka_unit_test(normal_paths),
        cmocka_unit_test(pipe_and_files),
        cmocka_unit_test(renamed_and_missing),
        cmocka_unit_test(diamond),
        cmocka_unit_test(read_twice),
        cmocka_unit_test(named_twice),
        cmocka_unit_test(in_place),
        cmocka_unit_test(hostile),
        cmocka_unit_test(unnamed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
