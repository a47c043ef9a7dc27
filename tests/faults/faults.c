/*
 * faults: an LD_PRELOAD library that makes the N-th call of a kind fail (an idea of SQLite's). For tests/faults/run.
 *
 *   FAULT_KIND=alloc|read|write|sync|rename|open|trickle|kill  which calls
 *   FAULT_AT=N             the N-th call fails, counted from 1; trickle: every read and write is partial, none fails;
 *                          kill: the process is killed before the N-th call that changes a file, or halfway in a write
 *   FAULT_ON=1             all calls from the N-th on fail, not only that one
 *   FAULT_MARK=FILE        FILE is created when a call was made to fail
 *
 * Only programs called rill-* are affected, from main() on (constructors of libraries are not under test), and no
 * allocation of the OpenMP or BLAS runtime, of the loader or of this library itself.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <malloc.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t size);
void *__libc_memalign(size_t align, size_t size);
void __libc_free(void *p);

enum kind { NONE, ALLOC, READ, WRITE, SYNC, RENAME, OPEN, TRICKLE, KILL };
static const char *const kind_name[] = {"none", "alloc", "read", "write", "sync", "rename", "open", "trickle", "kill"};

static enum kind kind = NONE;
static bool from_then_on;
static unsigned long fail_at, calls;
static const char *mark;

/* Address ranges of libraries whose allocations must not fail. */
static struct { uintptr_t from, to; } spared[16];
static size_t n_spared;

static int note_library(struct dl_phdr_info *info, size_t size, void *ctx) {
    static const char *const names[] = {"libgomp", "libomp", "openblas", "ld-linux", "faults.so", "libasan"};
    (void)size, (void)ctx;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!strstr(info->dlpi_name, names[i]) || n_spared == 16) continue;
        uintptr_t low = UINTPTR_MAX, high = 0;
        for (int k = 0; k < info->dlpi_phnum; k++) {
            if (info->dlpi_phdr[k].p_type != PT_LOAD) continue;
            uintptr_t at = info->dlpi_addr + info->dlpi_phdr[k].p_vaddr;
            if (at < low) low = at;
            if (at + info->dlpi_phdr[k].p_memsz > high) high = at + info->dlpi_phdr[k].p_memsz;
        }
        spared[n_spared].from = low;
        spared[n_spared++].to = high;
    }
    return 0;
}

/* A preloaded library is initialised last, right before main. */
__attribute__((constructor)) static void begin(void) {
    const char *wanted = getenv("FAULT_KIND"), *at = getenv("FAULT_AT");
    if (!wanted || strncmp(program_invocation_short_name, "rill-", 5) != 0) return;
    dl_iterate_phdr(note_library, NULL);
    fail_at = at ? strtoul(at, NULL, 10) : 0;
    from_then_on = getenv("FAULT_ON") != NULL;
    mark = getenv("FAULT_MARK");
    for (size_t i = 0; i < sizeof kind_name / sizeof *kind_name; i++)
        if (strcmp(wanted, kind_name[i]) == 0) kind = (enum kind)i;
}

static bool is_spared(const void *caller) {
    for (size_t i = 0; i < n_spared; i++)
        if ((uintptr_t)caller >= spared[i].from && (uintptr_t)caller < spared[i].to) return true;
    return false;
}

static void leave_mark(void) {
    long fd = mark ? syscall(SYS_openat, AT_FDCWD, mark, O_WRONLY | O_CREAT | O_CLOEXEC, 0644) : -1;
    if (fd >= 0) syscall(SYS_close, fd);
}

static bool its_turn(const void *caller) {
    if (is_spared(caller)) return false;
    unsigned long n = __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
    if (n != fail_at && !(from_then_on && n > fail_at)) return false;
    leave_mark();
    return true;
}

static void die(void) {
    kill(getpid(), SIGKILL);
}

static bool fails(enum kind of, const void *caller) {
    if (kind == KILL && (of == SYNC || of == RENAME || of == OPEN) && its_turn(caller)) die();
    return kind == of && its_turn(caller);
}

static void maybe_die_writing(int fd, const void *data, size_t n, const void *caller) {
    if (kind != KILL || fd == 2 || !its_turn(caller)) return;
    syscall(SYS_write, fd, data, n / 2);
    die();
}

#define CALLER __builtin_return_address(0)
#define EXPORT __attribute__((visibility("default")))

/* ---- memory ------------------------------------------------------------------------------------------------------ */

static void *no_memory(void) {
    errno = ENOMEM;
    return NULL;
}

EXPORT void *malloc(size_t size) {
    return fails(ALLOC, CALLER) ? no_memory() : __libc_malloc(size);
}
EXPORT void *calloc(size_t n, size_t size) {
    return fails(ALLOC, CALLER) ? no_memory() : __libc_calloc(n, size);
}
EXPORT void *realloc(void *p, size_t size) {
    return fails(ALLOC, CALLER) ? no_memory() : __libc_realloc(p, size);
}
EXPORT void *aligned_alloc(size_t align, size_t size) {
    return fails(ALLOC, CALLER) ? no_memory() : __libc_memalign(align, size);
}
EXPORT void *memalign(size_t align, size_t size) {
    return fails(ALLOC, CALLER) ? no_memory() : __libc_memalign(align, size);
}
EXPORT int posix_memalign(void **out, size_t align, size_t size) {
    if (fails(ALLOC, CALLER)) return ENOMEM;
    *out = __libc_memalign(align, size);
    return *out ? 0 : ENOMEM;
}
EXPORT void free(void *p) {
    __libc_free(p);
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

static int broken(int errnum) {
    errno = errnum;
    return -1;
}

/* Messages to stderr show the failure, so they always succeed. */
static size_t part_of(size_t n) {
    return kind == TRICKLE && n > 1 ? (n > 4096 ? n / 3 : (n + 1) / 2) : n;
}

EXPORT ssize_t write(int fd, const void *data, size_t n) {
    maybe_die_writing(fd, data, n, CALLER);
    if (fd != 2 && fails(WRITE, CALLER)) return broken(ENOSPC);
    return syscall(SYS_write, fd, data, fd == 2 ? n : part_of(n));
}
EXPORT ssize_t writev(int fd, const struct iovec *v, int n) {
    if (n > 0) maybe_die_writing(fd, v[0].iov_base, v[0].iov_len, CALLER);
    if (fd != 2 && fails(WRITE, CALLER)) return broken(ENOSPC);
    if (kind == TRICKLE && n > 0) return syscall(SYS_write, fd, v[0].iov_base, part_of(v[0].iov_len));
    return syscall(SYS_writev, fd, v, n);
}
EXPORT ssize_t read(int fd, void *data, size_t n) {
    if (fails(READ, CALLER)) return broken(EIO);
    return syscall(SYS_read, fd, data, part_of(n));
}
EXPORT ssize_t pread(int fd, void *data, size_t n, off_t at) {
    if (fails(READ, CALLER)) return broken(EIO);
    return syscall(SYS_pread64, fd, data, part_of(n), at);
}
EXPORT ssize_t pread64(int fd, void *data, size_t n, off_t at) {
    if (fails(READ, CALLER)) return broken(EIO);
    return syscall(SYS_pread64, fd, data, part_of(n), at);
}
EXPORT void *mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset) {
    if (fd >= 0 && fails(READ, CALLER)) {
        errno = ENODEV;
        return (void *)-1;
    }
    return (void *)syscall(SYS_mmap, at, n, protection, flags, fd, offset);
}
EXPORT int fsync(int fd) {
    return fails(SYNC, CALLER) ? broken(EIO) : (int)syscall(SYS_fsync, fd);
}
EXPORT int ftruncate(int fd, off_t size) {
    return fails(SYNC, CALLER) ? broken(EIO) : (int)syscall(SYS_ftruncate, fd, size);
}
EXPORT int close(int fd) {
    int rc = (int)syscall(SYS_close, fd);
    return fails(SYNC, CALLER) ? broken(EIO) : rc;
}
EXPORT int rename(const char *from, const char *to) {
    return fails(RENAME, CALLER) ? broken(EACCES) : (int)syscall(SYS_rename, from, to);
}
EXPORT int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
    return fails(RENAME, CALLER) ? broken(EACCES) : (int)syscall(SYS_renameat2, a, from, b, to, flags);
}
EXPORT int open(const char *path, int flags, ...) {
    va_list ap;
    va_start(ap, flags);
    int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, int) : 0;
    va_end(ap);
    if (fails(OPEN, CALLER)) return broken(EMFILE);
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}
EXPORT int openat(int folder, const char *path, int flags, ...) {
    va_list ap;
    va_start(ap, flags);
    int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, int) : 0;
    va_end(ap);
    if (fails(OPEN, CALLER)) return broken(EMFILE);
    return (int)syscall(SYS_openat, folder, path, flags, mode);
}
EXPORT char *mkdtemp(char *name) {
    static char *(*real)(char *);
    if (fails(OPEN, CALLER)) {
        errno = ENOSPC;
        return NULL;
    }
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "mkdtemp");
    return real(name);
}
EXPORT int mkostemp(char *name, int flags) {
    static int (*real)(char *, int);
    if (fails(OPEN, CALLER)) return broken(EMFILE);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "mkostemp");
    return real(name, flags);
}
