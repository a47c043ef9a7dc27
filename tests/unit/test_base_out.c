/* Tests of lib/base: atomic outputs, checks before they are written, and the one place of read and write. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/base/base.h"

static struct err e;

#define OK(call)                                                                                                       \
    do {                                                                                                               \
        if (call) fail_msg("%s: %s", #call, e.msg);                                                                    \
    } while (0)

static int enter(void **state) {
    static char folder[] = "/tmp/rill-out.XXXXXX";
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/rill-out.XXXXXX");
    return mkdtemp(folder) && chdir(folder) == 0 ? 0 : -1;
}

static int leave(void **state) {
    char folder[4096], command[8300];
    (void)state;
    if (!getcwd(folder, sizeof folder) || chdir("/")) return -1;
    snprintf(command, sizeof command, "chmod -R u+w %s && rm -r %s", folder, folder);
    return system(command);
}

static void put(const char *path, const char *text) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void expect_text(const char *path, const char *text) {
    char found[64] = "";
    FILE *f = fopen(path, "r");
    if (!f) fail_msg("%s is not there", path);
    size_t n = fread(found, 1, sizeof found - 1, f);
    fclose(f);
    assert_true(n < sizeof found);
    assert_string_equal(found, text);
}

static bool is_link(const char *path) {
    struct stat st;
    return lstat(path, &st) == 0 && S_ISLNK(st.st_mode);
}

static int count_files(void) {
    return WEXITSTATUS(system("exit $(ls -A | wc -l)"));
}

static void write_file(const char *path, bool overwrite, const char *text) {
    struct out_file f;
    OK(out_file_create(&f, path, overwrite, &e));
    assert_true(fd_write(f.fd, text, strlen(text)));
    OK(out_file_commit(&f, &e));
    out_file_release(&f);
    expect_text(path, text);
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

static void a_file_is_there_whole_or_not_at_all(void **state) {
    (void)state;
    struct out_file f;
    write_file("a", false, "one");
    assert_int_equal(out_file_create(&f, "a", false, &e), ERR_USAGE);
    assert_string_equal(e.msg, "a exists (--force replaces it)");
    out_file_release(&f);
    OK(out_file_create(&f, "a", true, &e));
    assert_true(fd_write(f.fd, "two", 3));
    expect_text("a", "one");
    out_file_release(&f);
    expect_text("a", "one");
    assert_int_equal(count_files(), 1);
    /* another process creates the file first */
    OK(out_file_create(&f, "b", false, &e));
    put("b", "theirs");
    assert_int_equal(out_file_commit(&f, &e), ERR_USAGE);
    out_file_release(&f);
    expect_text("b", "theirs");
    assert_int_equal(count_files(), 2);
}

static void a_link_stays_and_its_target_is_written(void **state) {
    (void)state;
    struct out_file f;
    struct out_folder d;
    assert_int_equal(mkdir("d", 0755), 0);
    assert_int_equal(symlink("d/second", "latest"), 0);
    assert_int_equal(symlink("../real", "d/second"), 0);
    write_file("latest", false, "one");
    expect_text("real", "one");
    write_file("latest", true, "two");
    expect_text("real", "two");
    assert_true(is_link("latest") && is_link("d/second") && !is_link("real"));
    assert_int_equal(symlink("loop", "loop"), 0);
    assert_int_equal(out_file_create(&f, "loop", true, &e), ERR_IO);
    assert_string_equal(e.msg, "loop: Too many levels of symbolic links");
    out_file_release(&f);
    assert_int_equal(symlink("no/such/file", "far"), 0);
    assert_int_equal(out_file_create(&f, "far", true, &e), ERR_IO);
    assert_string_equal(e.msg, "far: cannot create a file in its folder: No such file or directory");
    out_file_release(&f);
    assert_int_equal(symlink("d/new", "folder"), 0);
    OK(out_folder_begin(&d, "folder/", &e));
    OK(out_folder_write(&d, "x", "y", 1, &e));
    OK(out_folder_commit(&d, &e));
    out_folder_release(&d);
    expect_text("d/new/x", "y");
    assert_true(is_link("folder"));
}

/* ---- checks before output ---------------------------------------------------------------------------------------- */

static void check_finds_what_is_wrong_and_leaves_nothing(void **state) {
    (void)state;
    char long_name[300];
    memset(long_name, 'n', sizeof long_name);
    long_name[256] = 0;
    assert_int_equal(mkdir("d", 0755), 0);
    put("a", "one");
    const struct {
        const char *path;
        enum out_use use;
        int code;
        const char *message;
    } cases[] = {
        {"new", OUT_NEW, 0, NULL},
        {"new", OUT_APPEND, 0, NULL},
        {"new/", OUT_FOLDER, 0, NULL},
        {"a", OUT_REPLACE, 0, NULL},
        {"a", OUT_APPEND, 0, NULL},
        {"/dev/null", OUT_NEW, 0, NULL},
        {"a", OUT_NEW, ERR_USAGE, "a exists (--force replaces it)"},
        {"d", OUT_REPLACE, ERR_USAGE, "d is a folder, expected a file name"},
        {"new/", OUT_NEW, ERR_USAGE, "new/ is a folder, expected a file name"},
        {"d", OUT_FOLDER, ERR_USAGE, "d exists (a folder is not replaced: remove it, or name another)"},
        {"a", OUT_FOLDER, ERR_USAGE, "a exists (a folder is not replaced: remove it, or name another)"},
        {"", OUT_NEW, ERR_USAGE, "the output's name is empty"},
        {"", OUT_FOLDER, ERR_USAGE, "the output's name is empty"},
        {"no/a", OUT_NEW, ERR_IO, "no/a: cannot create a file in its folder: No such file or directory"},
        {"no/a", OUT_APPEND, ERR_IO, "no/a: cannot create a file in its folder: No such file or directory"},
        {"no/a", OUT_FOLDER, ERR_IO, "no/a: cannot create a folder in its folder: No such file or directory"},
        {"a/b", OUT_NEW, ERR_IO, "a/b: Not a directory"},
        {"a/b", OUT_FOLDER, ERR_IO, "a/b: Not a directory"},
        {long_name, OUT_REPLACE, ERR_IO, NULL},
        {long_name, OUT_FOLDER, ERR_IO, NULL},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct out_id id;
        int code = out_check(cases[i].path, cases[i].use, &id, &e);
        if (code != cases[i].code) fail_msg("'%s': %d, expected %d: %s", cases[i].path, code, cases[i].code, e.msg);
        if (code && cases[i].message) assert_string_equal(e.msg, cases[i].message);
    }
    long_name[255] = 0; /* the longest name allowed */
    write_file(long_name, false, "x");
    unlink(long_name);
    assert_int_equal(count_files(), 2);
    expect_text("a", "one");
}

static void a_folder_nobody_may_write_to_is_known(void **state) {
    (void)state;
    struct out_id id;
    bool root = geteuid() == 0; /* root may do everything: then the check runs as another user */
    if (root) assert_int_equal(chmod(".", 01777), 0);
    put("theirs", "");
    if (root) assert_int_equal(seteuid(65534), 0);
    int sticky = root ? out_check("theirs", OUT_REPLACE, &id, &e) : ERR_IO;
    assert_int_equal(mkdir("d", 0755), 0);
    put("d/a", "one");
    assert_int_equal(chmod("d/a", 0444), 0);
    assert_int_equal(out_check("d/a", OUT_APPEND, &id, &e), ERR_IO);
    OK(out_check("d/a", OUT_REPLACE, &id, &e));
    assert_int_equal(chmod("d", 0555), 0);
    assert_int_equal(out_check("d/a", OUT_REPLACE, &id, &e), ERR_IO);
    assert_int_equal(out_check("d/b", OUT_FOLDER, &id, &e), ERR_IO);
    assert_int_equal(out_check("d/b", OUT_NEW, &id, &e), ERR_IO);
    assert_string_equal(e.msg, "d/b: cannot create a file in its folder: Permission denied");
    if (root) assert_int_equal(seteuid(0), 0);
    assert_int_equal(sticky, ERR_IO); /* files of other users in a folder like /tmp */
}

static void two_spellings_of_one_output_are_one(void **state) {
    (void)state;
    static const char *const same[] = {"a", "./a", "d/../a", "link", "d/link"}, *const other[] = {"b", "d/a",
                                                                                                  "/dev/null"};
    struct out_id first, id, null;
    assert_int_equal(mkdir("d", 0755), 0);
    assert_int_equal(symlink("a", "link"), 0);
    assert_int_equal(symlink("../a", "d/link"), 0);
    for (int exists = 0; exists < 2; exists++) {
        OK(out_check("a", OUT_REPLACE, &first, &e));
        for (size_t i = 0; i < COUNT_OF(same); i++) {
            OK(out_check(same[i], OUT_REPLACE, &id, &e));
            assert_true(out_same(&first, &id));
            assert_int_equal(id.file != 0, exists);
        }
        for (size_t i = 0; i < COUNT_OF(other); i++) {
            OK(out_check(other[i], OUT_REPLACE, &id, &e));
            assert_false(out_same(&first, &id));
        }
        put("a", "");
    }
    OK(out_check("/dev/null", OUT_NEW, &null, &e));
    OK(out_check("/dev/null", OUT_NEW, &id, &e));
    assert_false(out_same(&null, &id)); /* several outputs may go to /dev/null */
}

/* ---- signals ----------------------------------------------------------------------------------------------------- */

static void a_handler_removes_files_and_folders(void **state) {
    (void)state;
    struct out_file f, kept;
    struct out_folder d;
    write_file("before", false, "x");
    OK(out_file_create(&f, "a", false, &e));
    OK(out_file_create(&kept, "kept", false, &e));
    OK(out_folder_begin(&d, "folder", &e));
    for (int i = 0; i < 500; i++) { /* more than one call of getdents64 returns */
        char name[128];
        snprintf(name, sizeof name, "a-file-with-a-rather-long-name-number-%d", i);
        OK(out_folder_write(&d, name, "x", 1, &e));
    }
    OK(out_file_commit(&kept, &e));
    assert_int_equal(count_files(), 4);
    out_remove_temporaries();
    assert_int_equal(count_files(), 2);
    expect_text("kept", "");
    out_file_release(&f);
    out_file_release(&kept);
    out_folder_release(&d);
    assert_int_equal(count_files(), 2);
}

static void scratch_has_no_name(void **state) {
    (void)state;
    char folder[4096], c;
    int fd;
    assert_non_null(getcwd(folder, sizeof folder));
    setenv("TMPDIR", folder, 1);
    OK(out_scratch(&fd, &e));
    assert_int_equal(count_files(), 0);
    assert_true(fd_write(fd, "x", 1) && lseek(fd, 0, SEEK_SET) == 0 && fd_read(fd, &c, 1) == 1 && c == 'x');
    close(fd);
    setenv("TMPDIR", "/nonexistent", 1);
    assert_int_equal(out_scratch(&fd, &e), ERR_IO);
    assert_string_equal(e.msg, "/nonexistent: cannot create a temporary file (TMPDIR): No such file or directory");
    unsetenv("TMPDIR");
}

/* ---- descriptors ------------------------------------------------------------------------------------------------- */

enum { PIPED = 3 << 20 };

/* Both ends are non-blocking, and never ready at the same time for long. */
static void a_non_blocking_pipe_is_waited_for(void **state) {
    (void)state;
    int p[2], status;
    static unsigned char sent[PIPED], got[PIPED];
    for (size_t i = 0; i < PIPED; i++) sent[i] = (unsigned char)(i * 2654435761u >> 13);
    assert_int_equal(pipe2(p, O_NONBLOCK), 0);
    pid_t child = fork();
    if (child == 0) {
        close(p[0]);
        usleep(20000);
        bool ok = fd_write(p[1], sent, 5) && usleep(20000) == 0 && fd_write2(p[1], sent + 5, PIPED / 2, NULL, 0);
        ok = ok && fd_write2(p[1], sent + 5 + PIPED / 2, 1, sent + 6 + PIPED / 2, PIPED - 6 - PIPED / 2);
        _exit(ok ? 0 : 1);
    }
    close(p[1]);
    size_t n = 0;
    for (ssize_t r = 1; r > 0; n += r > 0 ? (size_t)r : 0) {
        r = fd_read(p[0], got + n, n < 1000 ? 100 : PIPED - n + (n == PIPED));
        assert_true(r >= 0);
        if (n == 0) usleep(50000); /* the writer meets a full pipe */
    }
    close(p[0]);
    waitpid(child, &status, 0);
    assert_int_equal(status, 0);
    assert_int_equal(n, PIPED);
    assert_memory_equal(sent, got, PIPED);
}

static void failures_keep_their_reason(void **state) {
    (void)state;
    char c;
    int fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
    assert_false(fd_write(fd, "x", 1));
    assert_int_equal(errno, ENOSPC);
    assert_int_equal(fd_read(fd, &c, 1), -1);
    assert_int_equal(errno, EBADF);
    assert_true(fd_write(fd, "", 0));
    close(fd);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_file_is_there_whole_or_not_at_all, enter, leave),
        cmocka_unit_test_setup_teardown(a_link_stays_and_its_target_is_written, enter, leave),
        cmocka_unit_test_setup_teardown(check_finds_what_is_wrong_and_leaves_nothing, enter, leave),
        cmocka_unit_test_setup_teardown(a_folder_nobody_may_write_to_is_known, enter, leave),
        cmocka_unit_test_setup_teardown(two_spellings_of_one_output_are_one, enter, leave),
        cmocka_unit_test_setup_teardown(a_handler_removes_files_and_folders, enter, leave),
        cmocka_unit_test_setup_teardown(scratch_has_no_name, enter, leave),
        cmocka_unit_test(a_non_blocking_pipe_is_waited_for),
        cmocka_unit_test(failures_keep_their_reason),
    };
    return cmocka_run_group_tests_name("base_out", tests, NULL, NULL);
}
