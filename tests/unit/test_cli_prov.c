/* Names of files as the provenance has them: relative to the working folder, wherever that is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/cli/cli_internal.h"

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

/* `path` is below `top` unless it begins with "=". */
static void expect(const char *cwd, const char *path, const char *want) {
    struct arena a = {0};
    struct err e;
    char folder[256], full[256];
    const char *got;
    snprintf(folder, sizeof folder, "%s/%s", top, cwd);
    assert_int_equal(chdir(*cwd == '/' ? cwd : folder), 0);
    snprintf(full, sizeof full, "%s/%s", top, path);
    const char *given = *path == '=' ? path + 1 : full;
    if (prov_name(&a, given, &got, &e)) fail_msg("%s: %s", given, e.msg);
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
    expect("a/b", "a/link/file", "../../c/file"); /* the folder's links are followed ... */
    expect("a/b", "a/link", "../link");           /* ... the last name is kept */
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
    expect("a", "=/no/such/folder/file", "/no/such/folder/file"); /* nobody knows where that is */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(absolute_names_become_relative),
        cmocka_unit_test(other_names_stay),
    };
    return cmocka_run_group_tests_name("cli_prov", tests, enter, leave);
}
