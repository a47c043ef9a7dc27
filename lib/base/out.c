/*
 * out: files and folders that appear under their name complete and synced, or not at all. They are written under a
 * temporary name in the same folder, which is renamed at the end, or removed on failure or by a signal.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/base/base.h"

#define MAX_LINKS 40 /* the kernel's limit */

/* ---- temporary names, for the signal handler ---- */

#define MAX_TEMPORARY 64
static struct {
    const char *volatile name;
    bool folder;
} temporary[MAX_TEMPORARY];

/* Removes a folder that contains only files. Runs in signal handlers, so it neither allocates nor locks. `dir` is its
 * open descriptor, which is closed; with -1 the folder is opened here. If that fails, it may still be empty and
 * removable. */
static void remove_folder(const char *path, int dir) {
    _Alignas(struct dirent64) char entries[4096];
    if (dir < 0) dir = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    for (bool removed = dir >= 0; removed && lseek(dir, 0, SEEK_SET) == 0;) { /* again: removing may skip some */
        ssize_t n;
        removed = false;
        while ((n = getdents64(dir, entries, sizeof entries)) > 0) {
            for (ssize_t at = 0; at < n;) {
                const struct dirent64 *x = (const void *)(entries + at);
                bool self = strcmp(x->d_name, ".") == 0 || strcmp(x->d_name, "..") == 0;
                if (!self && unlinkat(dir, x->d_name, 0) == 0) removed = true;
                at += x->d_reclen;
            }
        }
    }
    if (dir >= 0) close(dir);
    rmdir(path);
}

static void remove_temporary(const char *name, bool folder) {
    if (folder)
        remove_folder(name, -1);
    else
        unlink(name);
}

void out_remove_temporaries(void) {
    for (size_t i = 0; i < MAX_TEMPORARY; i++)
        if (temporary[i].name) remove_temporary(temporary[i].name, temporary[i].folder);
}

static void forget_temporary(const char *name) {
    for (size_t i = 0; i < MAX_TEMPORARY; i++)
        if (temporary[i].name == name) temporary[i].name = NULL;
}

/* Creates a file or folder from the pattern in p->tmp. Signals stay blocked until it is in the list of temporary
 * names. */
static int make_temporary(struct out_place *p, bool folder, int *fd, struct err *e) {
    sigset_t all, old;
    size_t slot = 0;
    while (slot < MAX_TEMPORARY && temporary[slot].name) slot++;
    if (slot == MAX_TEMPORARY) return err_set(e, ERR_IO, "%s: more than %d outputs are open", p->path, MAX_TEMPORARY);
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    *fd = folder ? mkdtemp(p->tmp) ? 0 : -1 : mkostemp(p->tmp, O_CLOEXEC);
    int saved = errno;
    if (*fd >= 0) {
        temporary[slot].folder = folder;
        temporary[slot].name = p->tmp;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (*fd >= 0) return 0;
    mem_free(p->tmp);
    p->tmp = NULL;
    return err_sys(e, saved, "%s: cannot create %s in its folder", p->path, folder ? "a folder" : "a file");
}

/* ---- where an output goes -------------------------------------------------------------------------------------- */

static int folder_length(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? (int)(slash - path) + 1 : 0;
}

static char *print_path(struct err *e, int n, const char *folder, const char *name, const char *suffix) {
    struct buf b = {0};
    if (buf_printf(&b, e, "%.*s%s%s", n, folder, name, suffix) || buf_append(&b, "", 1, e)) buf_release(&b);
    return (char *)b.data;
}

/* Resolves the symbolic links at the end of `path`; the target need not exist. Caller frees. */
static char *follow_links(const char *path, struct err *e) {
    char link[PATH_MAX], *at = mem_strdup(path, e);
    for (int i = 0; at; i++) {
        ssize_t n = readlink(at, link, sizeof link - 1);
        if (n < 0 && (errno == EINVAL || errno == ENOENT)) return at;
        if (n < 0 || i == MAX_LINKS) {
            err_sys(e, n < 0 ? errno : ELOOP, "%s", path);
            break;
        }
        link[n] = 0;
        char *next = print_path(e, link[0] == '/' ? 0 : folder_length(at), at, link, "");
        mem_free(at);
        at = next;
    }
    mem_free(at);
    return NULL;
}

/* Returns "DIR/NAME.tmp.XXXXXX", with NAME shortened to stay below the file system's limit. Caller frees. */
static char *temporary_name(const char *target, struct err *e) {
    char name[NAME_MAX + 1];
    int folder = folder_length(target);
    snprintf(name, sizeof name, "%.200s", target + folder);
    return print_path(e, folder, target, name, ".tmp.XXXXXX");
}

static int stat_folder(const char *target, struct stat *st) {
    char folder[PATH_MAX];
    int n = folder_length(target);
    if (snprintf(folder, sizeof folder, "%.*s", n ? n : 1, n ? target : ".") >= (int)sizeof folder) {
        errno = ENAMETOOLONG;
        return -1;
    }
    return stat(folder, st);
}

static int refuse_overwrite(const char *path, struct err *e) {
    return err_set(e, ERR_USAGE, "%s exists (--force replaces it)", path);
}
static int refuse_folder(const char *path, struct err *e) {
    return err_set(e, ERR_USAGE, "%s exists (a folder is not replaced: remove it, or name another)", path);
}

/* Checks in advance that the final rename can succeed. */
static int check_replaceable(const struct out_place *p, const struct stat *st, struct err *e) {
    struct stat folder;
    struct statx x;
    if (stat_folder(p->target, &folder)) return err_sys(e, errno, "%s: its folder", p->path);
    bool sticky = folder.st_mode & S_ISVTX && geteuid() != 0 && geteuid() != st->st_uid && geteuid() != folder.st_uid;
    if (sticky)
        return err_set(e, ERR_IO, "%s belongs to someone else, and its folder lets only the owner replace it", p->path);
    if (statx(AT_FDCWD, p->target, 0, STATX_BASIC_STATS, &x)) return 0; /* old kernel: leave it to the rename */
    if (x.stx_attributes & (STATX_ATTR_IMMUTABLE | STATX_ATTR_APPEND))
        return err_set(e, ERR_IO, "%s is marked as one not to be replaced (lsattr)", p->path);
    if (x.stx_attributes & STATX_ATTR_MOUNT_ROOT)
        return err_set(e, ERR_IO, "%s is mounted over, it cannot be replaced (name a file in a mounted folder)",
                       p->path);
    return 0;
}

/* Sets *in_place for a device or a FIFO, which is written directly. Otherwise sets p->target, and *mode to the mode of
 * the file to be replaced or -1 if there is none. */
static int find_file(struct out_place *p, bool overwrite, bool *in_place, long *mode, struct err *e) {
    struct stat st, again;
    size_t n = strlen(p->path);
    *in_place = false;
    *mode = -1;
    if (n == 0) return err_set(e, ERR_USAGE, "the output's name is empty");
    bool exists = stat(p->path, &st) == 0;
    if (!exists && errno != ENOENT) return err_sys(e, errno, "%s", p->path);
    if (exists ? S_ISDIR(st.st_mode) : p->path[n - 1] == '/')
        return err_set(e, ERR_USAGE, "%s is a folder, expected a file name", p->path);
    if (exists && S_ISSOCK(st.st_mode)) return err_set(e, ERR_USAGE, "%s is a socket, expected a file name", p->path);
    *in_place = exists && !S_ISREG(st.st_mode);
    if (*in_place) return faccessat(AT_FDCWD, p->path, W_OK, AT_EACCESS) ? err_sys(e, errno, "%s", p->path) : 0;
    if (!(p->target = follow_links(p->path, e))) return e->code;
    if (!exists) return 0;
    if (stat(p->target, &again) || again.st_dev != st.st_dev || again.st_ino != st.st_ino)
        return err_set(e, ERR_USAGE, "%s: the file that it was is no longer there", p->path);
    if (!overwrite) return refuse_overwrite(p->path, e);
    *mode = st.st_mode & 0777;
    return check_replaceable(p, &st, e);
}

static void place_release(struct out_place *p) {
    mem_free(p->path);
    mem_free(p->target);
    mem_free(p->tmp);
    *p = (struct out_place){0};
}

/* Makes the new name survive a power failure. Best effort: not every file system can sync a folder. */
static void sync_folder(const char *target) {
    char folder[PATH_MAX];
    int n = folder_length(target);
    if (snprintf(folder, sizeof folder, "%.*s", n ? n : 1, n ? target : ".") >= (int)sizeof folder) return;
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    fsync(fd);
    close(fd);
}

static mode_t file_mode_mask(void) {
    mode_t mask = umask(0);
    umask(mask);
    return mask;
}

/* ---- files ----------------------------------------------------------------------------------------------------- */

static int make_file(struct out_file *f, long mode, struct err *e) {
    f->place.tmp = temporary_name(f->place.target, e);
    if (!f->place.tmp || make_temporary(&f->place, false, &f->fd, e)) return e->code;
    if (fchmod(f->fd, mode >= 0 ? (mode_t)mode : 0666 & ~file_mode_mask())) {
        /* the file system has no modes: harmless */
    }
    return 0;
}

int out_file_create(struct out_file *f, const char *path, bool overwrite, struct err *e) {
    long mode;
    bool in_place;
    *f = (struct out_file){.fd = -1, .overwrite = overwrite, .place = {.path = mem_strdup(path, e)}};
    if (!f->place.path || find_file(&f->place, overwrite, &in_place, &mode, e)) return e->code;
    if (!in_place) return make_file(f, mode, e);
    f->fd = open(path, O_WRONLY | O_CLOEXEC | O_NOCTTY);
    return f->fd < 0 ? err_sys(e, errno, "%s", path) : 0;
}

int out_file_sync(struct out_file *f, struct err *e) {
    if (f->fd < 0) return 0;
    int fd = f->fd, rc = 0;
    if (f->place.tmp && fsync(fd) && errno != EINVAL && errno != ENOTSUP) rc = err_sys(e, errno, "%s", f->place.path);
    f->fd = -1;
    if (close(fd) && !rc) rc = err_sys(e, errno, "%s", f->place.path);
    return rc;
}

/* Renames p->tmp to p->target. Another process may have created the file meanwhile: without `overwrite` it stays. */
static int give_name(const struct out_place *p, bool overwrite, struct err *e) {
    if (overwrite) return rename(p->tmp, p->target) ? err_sys(e, errno, "%s", p->path) : 0;
    if (renameat2(AT_FDCWD, p->tmp, AT_FDCWD, p->target, RENAME_NOREPLACE) == 0) return 0;
    if (errno == EEXIST) return refuse_overwrite(p->path, e);
    if (errno != EINVAL && errno != ENOSYS) return err_sys(e, errno, "%s", p->path);
    if (link(p->tmp, p->target) == 0) return unlink(p->tmp) ? err_sys(e, errno, "%s", p->tmp) : 0;
    if (errno == EEXIST) return refuse_overwrite(p->path, e);
    return rename(p->tmp, p->target) ? err_sys(e, errno, "%s", p->path) : 0;
}

int out_file_commit(struct out_file *f, struct err *e) {
    if (f->done) return 0;
    if (out_file_sync(f, e)) return e->code;
    if (f->place.tmp) {
        if (give_name(&f->place, f->overwrite, e)) return e->code;
        forget_temporary(f->place.tmp);
        sync_folder(f->place.target);
    }
    f->done = true;
    return 0;
}

void out_file_release(struct out_file *f) {
    if (f->fd >= 0) close(f->fd);
    if (!f->done && f->place.tmp) {
        unlink(f->place.tmp);
        forget_temporary(f->place.tmp);
    }
    place_release(&f->place);
    *f = OUT_FILE_NONE;
}

int out_check(const char *path, enum out_use use, struct out_id *id, struct err *e) {
    struct out_file f = OUT_FILE_NONE;
    struct out_folder d = OUT_FOLDER_NONE;
    struct stat st;
    long mode;
    bool in_place = false;
    const struct out_place *p = use == OUT_FOLDER ? &d.place : &f.place;
    *id = (struct out_id){0};
    int rc = 0;
    if (use == OUT_FOLDER) {
        rc = out_folder_begin(&d, path, e);
    } else if (!(f.place.path = mem_strdup(path, e)) || find_file(&f.place, use != OUT_NEW, &in_place, &mode, e)) {
        rc = e->code;
    } else if (use == OUT_APPEND && mode >= 0) {
        rc = faccessat(AT_FDCWD, path, W_OK, AT_EACCESS) ? err_sys(e, errno, "%s", path) : 0;
    } else if (!in_place) {
        rc = make_file(&f, mode, e);
    }
    if (!rc && !in_place && stat_folder(p->target, &st)) rc = err_sys(e, errno, "%s: its folder", path);
    if (!rc && !in_place) {
        id->known = true;
        id->dev = st.st_dev;
        id->folder = st.st_ino;
        id->name = digest_bytes(p->target + folder_length(p->target), strlen(p->target + folder_length(p->target)));
        if (stat(p->target, &st) == 0) id->file = st.st_ino, id->file_dev = st.st_dev;
    }
    out_file_release(&f);
    out_folder_release(&d);
    return rc;
}

bool out_same(const struct out_id *a, const struct out_id *b) {
    return a->known && b->known && a->dev == b->dev && a->folder == b->folder && digest_equal(a->name, b->name);
}

/* ---- folders --------------------------------------------------------------------------------------------------- */

int out_folder_begin(struct out_folder *f, const char *path, struct err *e) {
    struct stat st;
    struct out_place *p = &f->place;
    int made;
    *f = OUT_FOLDER_NONE;
    if (!*path) return err_set(e, ERR_USAGE, "the output's name is empty");
    if (!(p->path = mem_strdup(path, e))) return e->code;
    for (size_t n = strlen(p->path); n > 1 && p->path[n - 1] == '/'; n--) p->path[n - 1] = 0; /* "out/" names "out" */
    if (!(p->target = follow_links(p->path, e))) return e->code;
    if (lstat(p->target, &st) == 0) return refuse_folder(p->path, e);
    if (errno != ENOENT) return err_sys(e, errno, "%s", p->path);
    if (!(p->tmp = temporary_name(p->target, e)) || make_temporary(p, true, &made, e)) return e->code;
    f->dir = open(p->tmp, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return f->dir < 0 ? err_sys(e, errno, "%s", p->tmp) : 0;
}

int out_folder_create(struct out_folder *f, const char *name, int *fd, struct err *e) {
    *fd = openat(f->dir, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    return *fd < 0 ? err_sys(e, errno, "%s/%s", f->place.path, name) : 0;
}

int out_folder_close(struct out_folder *f, const char *name, int fd, struct err *e) {
    int rc = fsync(fd) == 0 ? 0 : err_sys(e, errno, "%s/%s", f->place.path, name);
    if (close(fd) != 0 && !rc) rc = err_sys(e, errno, "%s/%s", f->place.path, name);
    return rc;
}

int out_folder_write(struct out_folder *f, const char *name, const void *data, size_t n, struct err *e) {
    int fd;
    if (out_folder_create(f, name, &fd, e)) return e->code;
    if (fd_write(fd, data, n)) return out_folder_close(f, name, fd, e);
    err_sys(e, errno, "%s/%s", f->place.path, name);
    close(fd);
    return e->code;
}

/* Uses RENAME_NOREPLACE where the file system supports it: plain rename would replace a new empty folder. */
static int rename_new(const char *from, const char *to) {
    int rc = renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE);
    return rc != 0 && (errno == EINVAL || errno == ENOSYS) ? rename(from, to) : rc;
}

int out_folder_commit(struct out_folder *f, struct err *e) {
    const struct out_place *p = &f->place;
    if (fchmod(f->dir, 0777 & ~file_mode_mask()) != 0 || fsync(f->dir) != 0) return err_sys(e, errno, "%s", p->path);
    if (rename_new(p->tmp, p->target) != 0)
        return errno == EEXIST ? refuse_folder(p->path, e) : err_sys(e, errno, "%s", p->path);
    forget_temporary(p->tmp);
    sync_folder(p->target);
    f->committed = true;
    return 0;
}

void out_folder_release(struct out_folder *f) {
    if (!f->committed && f->place.tmp) {
        remove_folder(f->place.tmp, f->dir); /* needs no new descriptor: they may be used up */
        forget_temporary(f->place.tmp);
    } else if (f->dir >= 0) {
        close(f->dir);
    }
    place_release(&f->place);
    *f = OUT_FOLDER_NONE;
}

/* ---- scratch --------------------------------------------------------------------------------------------------- */

int out_scratch(int *fd, struct err *e) {
    const char *tmpdir = getenv("TMPDIR"), *folder = tmpdir && *tmpdir ? tmpdir : "/tmp";
    sigset_t all, old;
    if ((*fd = open(folder, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600)) >= 0) return 0;
    char *path =
        /* for file systems without O_TMPFILE */
        print_path(e, (int)strlen(folder), folder, "/rill.tmp.XXXXXX", "");
    if (!path) return e->code;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    if ((*fd = mkostemp(path, O_CLOEXEC)) >= 0) unlink(path);
    int saved = errno;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    mem_free(path);
    return *fd < 0 ? err_sys(e, saved, "%s: cannot create a temporary file (TMPDIR)", folder) : 0;
}
