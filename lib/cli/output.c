/*
 * output: files appear under their final name complete, on disk, or not at all. A temporary file in the same folder is
 * synced and renamed when the program has succeeded; on failure and on a signal it is removed.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "lib/cli/cli_internal.h"

/* ---- temporary names, known to the signal handler ----------------------------------------------------------------- */

#define MAX_TEMPORARY 64
static const char *volatile temporary[MAX_TEMPORARY];
static const int ending_signals[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGXCPU};

static void remove_temporary(int sig) {
    for (size_t i = 0; i < MAX_TEMPORARY; i++)
        if (temporary[i]) unlink(temporary[i]);
    signal(sig, SIG_DFL); /* the parent sees the signal, as if we had not been here */
    raise(sig);
}

void out_signals_install(void) {
    struct sigaction sa = {.sa_handler = remove_temporary}, old;
    sigemptyset(&sa.sa_mask);
    for (size_t i = 0; i < COUNT_OF(ending_signals); i++) {
        /* nohup and background jobs ignore some on purpose */
        if (sigaction(ending_signals[i], NULL, &old) == 0 && old.sa_handler == SIG_IGN) continue;
        sigaction(ending_signals[i], &sa, NULL);
    }
}

/* Between the file's creation and its place in the list no signal may end the program. */
static void hold_signals(sigset_t *old) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, old);
}

static void forget_temporary(const char *tmp) {
    for (size_t i = 0; i < MAX_TEMPORARY; i++)
        if (temporary[i] == tmp) temporary[i] = NULL;
}

static int make_temporary(struct cli_out_file *f, mode_t mode, struct err *e) {
    sigset_t old;
    size_t slot = 0;
    int rc = 0;
    while (slot < MAX_TEMPORARY && temporary[slot]) slot++;
    if (slot == MAX_TEMPORARY) return err_set(e, ERR_IO, "%s: more than %d outputs are open", f->path, MAX_TEMPORARY);
    hold_signals(&old);
    f->fd = mkostemp(f->tmp, O_CLOEXEC);
    if (f->fd >= 0)
        temporary[slot] = f->tmp;
    else
        rc = err_sys(e, errno, "%s: cannot create a file in its folder", f->path);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc) {
        f->tmp = NULL;
        return rc;
    }
    if (fchmod(f->fd, mode)) { /* a file system without modes: what it gave will do */
    }
    return 0;
}

/* ---- one output file --------------------------------------------------------------------------------------------------- */

/* "DIR/NAME.tmp.XXXXXX"; a name near the file system's limit is shortened. */
static char *temporary_name(struct arena *a, const char *target, struct err *e) {
    const char *slash = strrchr(target, '/'), *base = slash ? slash + 1 : target;
    int keep = strlen(base) > 200 ? 200 : (int)strlen(base);
    return arena_printf(a, e, "%.*s%.*s.tmp.XXXXXX", (int)(base - target), target, keep, base);
}

static int refuse_overwrite(const char *path, struct err *e) {
    return err_set(e, ERR_USAGE, "%s exists (--force replaces it)", path);
}

/* A device or a FIFO is written in place: nothing to rename, nothing that could be lost. */
static int open_in_place(struct cli_out_file *f, struct err *e) {
    f->fd = open(f->path, O_WRONLY | O_CLOEXEC | O_NOCTTY);
    return f->fd < 0 ? err_sys(e, errno, "%s", f->path) : 0;
}

static int open_target(struct cli *c, struct cli_out_file *f, struct err *e) {
    struct stat st;
    char resolved[PATH_MAX];
    mode_t mode = umask(0);
    umask(mode);
    mode = 0666 & ~mode;
    if (!*f->path) return err_set(e, ERR_USAGE, "the output's name is empty");
    bool exists = stat(f->path, &st) == 0;
    if (exists && S_ISDIR(st.st_mode)) return err_set(e, ERR_USAGE, "%s is a folder, a file name is expected", f->path);
    if (exists && !S_ISREG(st.st_mode)) return open_in_place(f, e);
    if (!exists && errno != ENOENT) return err_sys(e, errno, "%s", f->path);
    if (exists && !f->overwrite) return refuse_overwrite(f->path, e);
    if (exists) mode = st.st_mode & 0777;
    const char *target = exists && realpath(f->path, resolved) ? resolved : f->path; /* a link stays a link */
    f->target = arena_strdup(&c->arena, target, e);
    if (!f->target) return e->code;
    f->tmp = temporary_name(&c->arena, f->target, e);
    return f->tmp ? make_temporary(f, mode, e) : e->code;
}

int out_file_create(struct cli *c, const char *path, bool overwrite, struct cli_out_file **out, struct err *e) {
    struct cli_out_file *f = arena_array(&c->arena, 1, sizeof *f, e);
    if (!f) return e->code;
    f->path = path;
    f->overwrite = overwrite;
    f->fd = -1;
    if (open_target(c, f, e)) return e->code;
    f->next = c->out_files;
    c->out_files = f;
    *out = f;
    return 0;
}

int out_file_sync(struct cli_out_file *f, struct err *e) {
    if (f->fd < 0) return 0;
    int fd = f->fd, rc = 0;
    if (f->tmp && fsync(fd) && errno != EINVAL && errno != ENOTSUP) rc = err_sys(e, errno, "%s", f->path);
    f->fd = -1;
    if (close(fd) && !rc) rc = err_sys(e, errno, "%s", f->path);
    return rc;
}

/* So that the new name survives a power cut too. Best effort: not every file system lets a folder be synced. */
static void sync_folder(const char *target) {
    char folder[PATH_MAX];
    const char *slash = strrchr(target, '/');
    int length = slash == target ? 1 : slash ? (int)(slash - target) : 1;
    if (snprintf(folder, sizeof folder, "%.*s", length, slash ? target : ".") >= (int)sizeof folder) return;
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    fsync(fd);
    close(fd);
}

/* Another process may have made the file while we worked: without --force it stays. */
static int give_name(struct cli_out_file *f, struct err *e) {
    if (f->overwrite) return rename(f->tmp, f->target) ? err_sys(e, errno, "%s", f->path) : 0;
    if (renameat2(AT_FDCWD, f->tmp, AT_FDCWD, f->target, RENAME_NOREPLACE) == 0) return 0;
    if (errno == EEXIST) return refuse_overwrite(f->path, e);
    if (errno != EINVAL && errno != ENOSYS) return err_sys(e, errno, "%s", f->path);
    if (link(f->tmp, f->target) == 0) return unlink(f->tmp) ? err_sys(e, errno, "%s", f->tmp) : 0;
    if (errno == EEXIST) return refuse_overwrite(f->path, e);
    return rename(f->tmp, f->target) ? err_sys(e, errno, "%s", f->path) : 0;
}

int out_file_commit(struct cli_out_file *f, struct err *e) {
    if (f->done) return 0;
    if (out_file_sync(f, e)) return e->code;
    if (f->tmp) {
        if (give_name(f, e)) return e->code;
        forget_temporary(f->tmp);
        sync_folder(f->target);
    }
    f->done = true;
    return 0;
}

void out_files_release(struct cli *c) {
    for (struct cli_out_file *f = c->out_files; f; f = f->next) {
        if (f->fd >= 0) close(f->fd);
        f->fd = -1;
        if (f->done || !f->tmp) continue;
        unlink(f->tmp);
        forget_temporary(f->tmp);
    }
    c->out_files = NULL;
}

int cli_create(struct cli *c, const char *path, bool overwrite, int *fd, struct cli_out_file **out, struct err *e) {
    if (out_file_create(c, path, overwrite, out, e)) return e->code;
    *fd = (*out)->fd;
    return 0;
}

int cli_commit(struct cli *c, struct cli_out_file *f, struct err *e) {
    (void)c;
    return out_file_commit(f, e);
}

/* ---- the program's output -------------------------------------------------------------------------------------------------- */

static bool to_stdout(const struct cli *c) {
    return !c->output_path || strcmp(c->output_path, "-") == 0;
}

int check_not_output(struct cli *c, const struct stat *in, const char *name, struct err *e) {
    struct stat out;
    if (!(c->program->writes_stream || c->program->writes_text) || !to_stdout(c)) return 0;
    if (!S_ISREG(in->st_mode) || fstat(STDOUT_FILENO, &out)) return 0;
    if (out.st_dev != in->st_dev || out.st_ino != in->st_ino) return 0;
    c->hands_off = true;
    return err_set(e, ERR_USAGE, "%s is the output too, and is written while it is read (use -o)", name);
}

/* -o FILE under the name that > FILE would have: the recipe uses one or the other, and the bytes must not differ. */
static int record_named(struct cli *c, struct err *e) {
    char folder[PATH_MAX], cwd[PATH_MAX];
    const char *path = c->output->target, *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    char *dir = arena_strndup(&c->arena, path, slash == path ? 1 : (size_t)(base - path), e);
    if (!dir) return e->code;
    if (!realpath(*dir ? dir : ".", folder) || !getcwd(cwd, sizeof cwd)) return 0;
    const char *full = arena_printf(&c->arena, e, "%s/%s", strcmp(folder, "/") == 0 ? "" : folder, base);
    if (!full) return e->code;
    size_t length = strlen(cwd);
    if (length > 1 && strncmp(full, cwd, length) == 0 && full[length] == '/') full += length + 1;
    c->recorded_output = prov_path(full);
    return 0;
}

const char *cli_output_path(const struct cli *c) {
    return to_stdout(c) ? NULL : c->output_path;
}

/* What the recipe will call the output. A file that is only appended to has other contents than ours: no name then. */
static int record_output(struct cli *c, struct err *e) {
    if (!to_stdout(c)) return c->output->tmp ? record_named(c, e) : 0;
    struct stat st;
    if (fstat(STDOUT_FILENO, &st) == 0 && S_ISREG(st.st_mode) && st.st_size != 0) return 0;
    return prov_fd_path(&c->arena, STDOUT_FILENO, &c->recorded_output, e);
}

static int open_place(struct cli *c, bool binary, int *fd, struct err *e) {
    if (to_stdout(c)) {
        *fd = STDOUT_FILENO;
        if (check_inputs_not_output(c, e)) return e->code;
    } else {
        if (out_file_create(c, c->output_path, c->force, &c->output, e)) return e->code;
        *fd = c->output->fd;
    }
    if (binary && !c->force && isatty(*fd))
        return err_set(e, ERR_USAGE, "the output is binary and would go to a terminal (redirect it, or --force)");
    return record_output(c, e);
}

int cli_open_output(struct cli *c, struct stream_writer **out, struct err *e) {
    struct stream_write_options options = {.level = (int)c->level};
    int fd;
    if (stream_codec_parse(c->codec, &options.codec, e)) return e->code;
    if (open_place(c, true, &fd, e)) return e->code;
    const char *name = to_stdout(c) ? "standard output" : c->output_path;
    if (stream_writer_open(&c->writer, fd, name, &options, e)) return e->code;
    c->writer_open = true;
    *out = c->writer;
    return 0;
}

int cli_close_output(struct cli *c, struct err *e) {
    if (!c->writer_open) return 0;
    if (inputs_finish(c, e)) return e->code;
    if (!c->no_provenance && prov_write(c, c->writer, e)) return e->code;
    if (stream_writer_finish(c->writer, &c->totals, e)) return e->code;
    c->writer_open = false;
    c->writer_closed = true;
    return c->output ? out_file_sync(c->output, e) : 0;
}

static int open_text(struct cli *c, bool binary, FILE **out, struct err *e) {
    int fd;
    if (c->text) {
        *out = c->text;
        return 0;
    }
    if (open_place(c, binary, &fd, e)) return e->code;
    if (to_stdout(c)) {
        c->text = stdout;
    } else {
        /* on a copy: fclose gives back the copy, and the file itself is still there to be synced */
        int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        c->text = copy >= 0 ? fdopen(copy, "w") : NULL;
        if (!c->text) {
            err_sys(e, errno, "%s", c->output_path);
            if (copy >= 0) close(copy);
            return e->code;
        }
    }
    *out = c->text;
    return 0;
}

int cli_text(struct cli *c, FILE **out, struct err *e) {
    /* results on the terminal and a bar on the same terminal do not mix */
    if (to_stdout(c) && isatty(STDOUT_FILENO)) c->progress.enabled &= strcmp(c->progress_mode, "always") == 0;
    return open_text(c, false, out, e);
}

int cli_binary(struct cli *c, FILE **out, struct err *e) {
    return open_text(c, true, out, e);
}

/* fclose alone reports only its own failure, not that of an earlier write. */
static int close_checked(FILE *f, const char *name, struct err *e) {
    bool failed = fflush(f) != 0 || ferror(f);
    int saved = errno;
    if (fclose(f) != 0 && !failed) {
        failed = true;
        saved = errno;
    }
    return failed ? err_sys(e, saved, "%s", name) : 0;
}

int output_finish(struct cli *c, struct err *e) {
    if (cli_close_output(c, e)) return e->code;
    FILE *text = c->text;
    c->text = NULL;
    if (text && text != stdout && close_checked(text, c->output_path, e)) return e->code;
    if (c->output && out_file_sync(c->output, e)) return e->code;
    return close_checked(stdout, "standard output", e);
}

int output_commit(struct cli *c, struct err *e) {
    return c->output ? out_file_commit(c->output, e) : 0;
}

void output_abort(struct cli *c, const char *why) {
    /* Into a temporary file nobody will read, there is no need. */
    bool seen = !c->output || !c->output->tmp;
    if (c->writer_open && seen && !c->hands_off) stream_writer_abort(c->writer, why);
    c->writer_open = false;
    if (c->text && c->text != stdout) fclose(c->text);
    c->text = NULL;
}
