/* Tests of provenance (file names relative to the working folder, ids and sets of them) and of the progress bar's
 * line. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/cli/cli_internal.h"

static struct err e;
static char top[] = "/tmp/rill-prov.XXXXXX";

static int enter(void **state) {
    (void)state;
    if (!mkdtemp(top) || chdir(top)) return -1;
    return system("mkdir -p a/b ab c && ln -s ../c a/link && touch c/file");
}

static int leave(void **state) {
    char command[128];
    (void)state;
    snprintf(command, sizeof command, "cd / && rm -r %s", top);
    return system(command);
}

/* `path` is relative to `top` unless it begins with "=". */
static void expect(const char *cwd, const char *path, const char *want) {
    struct arena a = {0};
    char folder[256], full[256];
    const char *got;
    snprintf(folder, sizeof folder, "%s/%s", top, cwd);
    assert_int_equal(chdir(*cwd == '/' ? cwd : folder), 0);
    snprintf(full, sizeof full, "%s/%s", top, path);
    const char *given = *path == '=' ? path + 1 : full;
    if (names_recorded(&a, given, &got, &e)) fail_msg("%s: %s", given, e.msg);
    if (strcmp(got, want) != 0) fail_msg("%s in %s: %s, expected %s", given, cwd, got, want);
    arena_release(&a);
}

static void absolute_names_become_relative(void **state) {
    (void)state;
    expect("", "file", "file");
    expect("", "a/b/file", "a/b/file");
    expect("a", "a/file", "file");
    expect("a", "file", "../file");
    expect("a", "ab/file", "../ab/file");
    expect("ab", "a/file", "../a/file");
    expect("a/b", "c/file", "../../c/file");
    expect("a/b", "a", "../../a");
    expect("a", "a", "../a");
    expect("a/b", "a/link/file", "../../c/file"); /* links to folders are followed ... */
    expect("a/b", "a/link", "../link");           /* ... but the last name is kept */
    expect("a", "a//./b/../file", "file");
    expect("", "a/", "a/");
    char want[64];
    snprintf(want, sizeof want, "%s/c/file", top + 1);
    expect("/", "c/file", want);
}

static void other_names_stay(void **state) {
    (void)state;
    expect("a", "=file", "file");
    expect("a", "=../c/file", "../c/file");
    expect("a", "=-", "-");
    expect("a", "=/dev/fd/63", "/dev/fd/63");
    expect("a", "=/dev/null", "/dev/null");
    expect("a", "=/proc/self/fd/0", "/proc/self/fd/0");
    expect("a", "=/no/such/folder/file", "/no/such/folder/file"); /* it cannot be resolved */
}

/* ---- provenance -------------------------------------------------------------------------------------------------- */

static void heads(void **state) {
    (void)state;
    static const char json[] = "[{\"id\":\"1\",\"inputs\":[]},"
                               "{\"id\":\"2\",\"inputs\":[{\"role\":\"stdin\",\"parents\":[\"1\"]}]},"
                               "{\"id\":\"3\",\"inputs\":[]}]";
    cJSON *entries = json_parse(json, strlen(json), &e), *out = cJSON_CreateArray();
    assert_int_equal(prov_heads(entries, out, &e), 0);
    assert_int_equal(cJSON_GetArraySize(out), 2);
    assert_string_equal(cJSON_GetArrayItem(out, 0)->valuestring, "2");
    assert_string_equal(cJSON_GetArrayItem(out, 1)->valuestring, "3");
    cJSON_Delete(entries);
    cJSON_Delete(out);
}

static void id_covers_all_but_itself(void **state) {
    (void)state;
    char a[DIGEST_TEXT_SIZE], b[DIGEST_TEXT_SIZE], c[DIGEST_TEXT_SIZE];
    static const char one[] = "{\"id\":\"x\",\"tool\":\"a\"}", same[] = "{\"id\":\"y\",\"tool\":\"a\"}",
                      other[] = "{\"id\":\"x\",\"tool\":\"b\"}";
    cJSON *j1 = json_parse(one, strlen(one), &e), *j2 = json_parse(same, strlen(same), &e),
          *j3 = json_parse(other, strlen(other), &e);
    assert_int_equal(prov_id(j1, a, &e) | prov_id(j2, b, &e) | prov_id(j3, c, &e), 0);
    assert_string_equal(a, b);
    assert_string_not_equal(a, c);
    cJSON_Delete(j1);
    cJSON_Delete(j2);
    cJSON_Delete(j3);
}

static void sets(void **state) {
    (void)state;
    struct idset s = {0};
    char ids[300][8];
    bool added;
    assert_false(idset_has(&s, "0"));
    for (int i = 0; i < 300; i++) {
        snprintf(ids[i], sizeof ids[i], "%d", i);
        assert_int_equal(idset_add(&s, ids[i], &added, &e), 0);
        assert_true(added);
    }
    for (int i = 0; i < 300; i++) {
        assert_true(idset_has(&s, ids[i]));
        assert_int_equal(idset_add(&s, ids[i], &added, &e), 0);
        assert_false(added);
    }
    assert_false(idset_has(&s, "300"));
    idset_release(&s);
}

static void utf8(void **state) {
    (void)state;
    static const char *const pairs[][2] = {{"abc", "abc"},
                                           {"\xC3\xA9", "\xC3\xA9"},
                                           {"a\xFF"
                                            "b",
                                            "a\xEF\xBF\xBD"
                                            "b"},
                                           {"\xC3", "\xEF\xBF\xBD"},
                                           {"\xE2\x82", "\xEF\xBF\xBD\xEF\xBF\xBD"},
                                           {"x\xF0\x9F\x98\x80\x80", "x\xF0\x9F\x98\x80\xEF\xBF\xBD"}};
    struct arena a = {0};
    for (size_t i = 0; i < COUNT_OF(pairs); i++) {
        const char *out;
        assert_int_equal(names_utf8(&a, pairs[i][0], &out, &e), 0);
        assert_string_equal(out, pairs[i][1]);
    }
    arena_release(&a);
}

static void progress_line(void **state) {
    (void)state;
    char line[200];
    struct progress p = {.unit = "seq", .total = 1000, .done = 250};
    progress_format(&p, 10, 200, line, sizeof line);
    assert_string_equal(line, " 25% [=====>              ] 250/1.0k seq, 25/s, 0:30 left");
    progress_format(&p, 10, 12, line, sizeof line);
    assert_string_equal(line, " 25% [=====>");
    p = (struct progress){.unit = "B", .done = 1500000, .note = "file 2"};
    progress_format(&p, 3725, 200, line, sizeof line);
    assert_string_equal(line, "1.5M B, 403/s, 1:02:05, file 2");
    p = (struct progress){.unit = "x", .total = 10, .done = 12}; /* more than announced must not crash */
    progress_format(&p, 1, 200, line, sizeof line);
    assert_string_equal(line, "100% [====================] 12/10 x, 12/s, 0:00 left");
    p = (struct progress){.unit = "steps", .total = 10, .done = 4}; /* less than one a second */
    progress_format(&p, 10, 200, line, sizeof line);
    assert_string_equal(line, " 40% [========>           ] 4/10 steps, 2.5 s/step, 0:15 left");
    progress_format(&p, 2000, 200, line, sizeof line);
    assert_string_equal(line, " 40% [========>           ] 4/10 steps, 500 s/step, 50:00 left");
}

/* Captures the bytes that `call` writes to standard error. */
static size_t written_by(void (*call)(struct cli *), struct cli *c, char *out, size_t size) {
    FILE *f = tmpfile();
    int saved = dup(STDERR_FILENO);
    assert_non_null(f);
    dup2(fileno(f), STDERR_FILENO);
    call(c);
    dup2(saved, STDERR_FILENO);
    close(saved);
    rewind(f);
    size_t n = fread(out, 1, size - 1, f);
    out[n] = 0;
    fclose(f);
    return n;
}

static void short_run(struct cli *c) {
    progress_setup(c);
    cli_progress_begin(c, "steps", 10);
    cli_progress(c, 1, NULL);
    cli_progress_end(c);
}

static void long_run(struct cli *c) {
    progress_setup(c);
    cli_progress_begin(c, "steps", 10);
    cli_progress(c, 1, NULL);
    c->progress.start.tv_sec -= 40, c->progress.last.tv_sec -= 31;
    cli_progress(c, 2, NULL);
    cli_progress(c, 3, NULL);
    cli_progress_end(c);
}

/* Without a terminal, -v writes a line every half minute, and none for a run that ends sooner. */
static void progress_of_minutes(void **state) {
    (void)state;
    char text[1000];
    static const struct cli_program program = {.name = "test"};
    struct cli c = {.program = &program, .progress_mode = "auto", .verbose = true};
    assert_int_equal(written_by(short_run, &c, text, sizeof text), 0);
    assert_true(written_by(long_run, &c, text, sizeof text) > 0);
    assert_string_equal(text, "rill test:  20% [====>               ] 2/10 steps, 20.0 s/step, 2:40 left\n"
                              "rill test:  30% [======>             ] 3/10 steps, 13.3 s/step, 1:33 left\n");
    c.verbose = false;
    assert_int_equal(written_by(long_run, &c, text, sizeof text), 0);
    c.verbose = true, c.progress_mode = "never";
    assert_int_equal(written_by(long_run, &c, text, sizeof text), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(absolute_names_become_relative),
        cmocka_unit_test(other_names_stay),
        cmocka_unit_test(heads),
        cmocka_unit_test(id_covers_all_but_itself),
        cmocka_unit_test(sets),
        cmocka_unit_test(utf8),
        cmocka_unit_test(progress_line),
        cmocka_unit_test(progress_of_minutes),
    };
    return cmocka_run_group_tests_name("cli_prov", tests, enter, leave);
}
