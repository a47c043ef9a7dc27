/* Writing foreign files: whole buffers to descriptors, and folders that appear complete or not at all. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/formats/formats_internal.h"

int write_all(int fd, const void *data, size_t n, struct err *e) {
    const unsigned char *p = data;
    while (n) {
        ssize_t done = write(fd, p, n);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return err_sys(e, errno, "write");
        p += done;
        n -= (size_t)done;
    }
    return 0;
}

int write_zeros(int fd, size_t n, struct err *e) {
    static const unsigned char zeros[4096];
    return write_all(fd, zeros, n, e);
}

/* ---- folders ---- */

static int exists(const char *path, struct err *e) {
    return err_set(e, ERR_USAGE, "%s exists (a folder is not replaced: remove it, or name another)", path);
}

int out_folder_begin(struct out_folder *f, const char *path, struct err *e) {
    struct stat st;
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--; /* "out/" is the folder "out" */
    f->path = mem_alloc(n + 1, e);
    f->temp = mem_alloc(n + sizeof ".tmp.XXXXXX", e);
    if (!f->path || !f->temp) return e->code;
    memcpy(f->path, path, n);
    f->path[n] = 0;
    if (lstat(f->path, &st) == 0) return exists(f->path, e);
    snprintf(f->temp, n + sizeof ".tmp.XXXXXX", "%s.tmp.XXXXXX", f->path);
    if (!mkdtemp(f->temp)) {
        err_sys(e, errno, "%s", f->path);
        mem_free(f->temp);
        f->temp = NULL;
        return e->code;
    }
    f->dir = open(f->temp, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return f->dir < 0 ? err_sys(e, errno, "%s", f->temp) : 0;
}

int out_folder_create(struct out_folder *f, const char *name, int *fd, struct err *e) {
    *fd = openat(f->dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    return *fd < 0 ? err_sys(e, errno, "%s/%s", f->path, name) : 0;
}

int out_folder_close(struct out_folder *f, const char *name, int fd, struct err *e) {
    int rc = fsync(fd) == 0 ? 0 : err_sys(e, errno, "%s/%s", f->path, name);
    if (close(fd) != 0 && !rc) rc = err_sys(e, errno, "%s/%s", f->path, name);
    return rc;
}

int out_folder_write(struct out_folder *f, const char *name, const void *data, size_t n, struct err *e) {
    int fd;
    int rc = out_folder_create(f, name, &fd, e);
    if (rc) return rc;
    rc = write_all(fd, data, n, e);
    if (rc) {
        close(fd);
        return err_prefix(e, "%s/%s", f->path, name);
    }
    return out_folder_close(f, name, fd, e);
}

/* RENAME_NOREPLACE where the file system knows it: an empty folder of that name may have appeared meanwhile. */
static int rename_new(const char *from, const char *to) {
    int rc = renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE);
    return rc != 0 && (errno == EINVAL || errno == ENOSYS) ? rename(from, to) : rc;
}

int out_folder_commit(struct out_folder *f, struct err *e) {
    mode_t mask = umask(0);
    umask(mask);
    if (fchmod(f->dir, 0777 & ~mask) != 0 || fsync(f->dir) != 0) return err_sys(e, errno, "%s", f->path);
    if (rename_new(f->temp, f->path) != 0)
        return errno == EEXIST ? exists(f->path, e) : err_sys(e, errno, "%s", f->path);
    f->committed = true;
    return 0;
}

static void remove_files(int dir) {
    DIR *d = fdopendir(dir); /* owns dir from here on */
    if (!d) {
        close(dir);
        return;
    }
    for (const struct dirent *x; (x = readdir(d));)
        if (strcmp(x->d_name, ".") != 0 && strcmp(x->d_name, "..") != 0) unlinkat(dirfd(d), x->d_name, 0);
    closedir(d);
}

void out_folder_release(struct out_folder *f) {
    if (f->dir >= 0 && f->committed) close(f->dir);
    if (f->dir >= 0 && !f->committed) remove_files(f->dir);
    if (f->temp && !f->committed) rmdir(f->temp);
    mem_free(f->path);
    mem_free(f->temp);
    *f = OUT_FOLDER_NONE;
}
