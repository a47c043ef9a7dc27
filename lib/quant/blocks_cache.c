/* Caches quantized tensors on disk, one file per tensor, named by the digest of everything its blocks depend on. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "lib/quant/quant_internal.h"

#define HEAD "rill blocks 1\n"

/* The errors stored with the blocks. */
struct numbers {
    double rmse, relative, output_error_nearest, output_error, block_error_before, block_error, damp;
    uint64_t unweighed, informed;
};
struct ends {
    char head[16];
    struct numbers numbers;
    struct digest of; /* of numbers and blocks */
};

static int digest_of(const struct numbers *x, const void *blocks, uint64_t n, struct digest *out, struct err *e) {
    struct digest_state *s = digest_new(e);
    if (!s) return e->code;
    digest_update(s, x, sizeof *x);
    digest_update(s, blocks, n);
    *out = digest_get(s);
    digest_free(s);
    return 0;
}

/* Reads exactly n bytes; false: end of file or error. */
static bool read_all(int fd, void *to, uint64_t n) {
    for (ssize_t got; n; n -= (uint64_t)got, to = (char *)to + got)
        if ((got = fd_read(fd, to, n)) <= 0) return false;
    return true;
}

static int read_file(int fd, const char *path, struct numbers *x, void *blocks, uint64_t n, struct err *e) {
    struct ends ends;
    struct digest found;
    char more;
    if (read_all(fd, &ends, sizeof ends) && read_all(fd, blocks, n) && fd_read(fd, &more, 1) == 0) {
        int rc = digest_of(&ends.numbers, blocks, n, &found, e);
        ends.head[sizeof ends.head - 1] = 0;
        *x = ends.numbers;
        if (rc || (!strcmp(ends.head, HEAD) && digest_equal(found, ends.of))) return rc;
    }
    return err_set(e, ERR_DATA, "%s: no quantized tensor, or cut: remove it", path);
}

int blocks_recall(const char *folder, struct digest key, struct quant_tensor_report *t, void *blocks, uint64_t n,
                  bool *found, struct err *e) {
    char path[CACHE_PATH];
    struct numbers x = {0};
    *found = false;
    if (cache_path(folder, key, ".blocks", path, e)) return e->code;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return errno == ENOENT ? 0 : err_sys(e, errno, "%s", path);
    int rc = read_file(fd, path, &x, blocks, n, e);
    close(fd);
    if (rc) return rc;
    *found = true;
    t->rmse = x.rmse, t->relative = x.relative, t->damp = x.damp;
    t->output_error_nearest = x.output_error_nearest, t->output_error = x.output_error;
    t->block_error_before = x.block_error_before, t->block_error = x.block_error;
    t->unweighed = x.unweighed, t->informed = x.informed;
    return 0;
}

int blocks_store(const char *folder, struct digest key, const struct quant_tensor_report *t, const void *blocks,
                 uint64_t n, struct err *e) {
    char path[CACHE_PATH];
    struct out_file f = OUT_FILE_NONE;
    struct ends ends = {.head = HEAD,
                        .numbers = {t->rmse, t->relative, t->output_error_nearest, t->output_error,
                                    t->block_error_before, t->block_error, t->damp, t->unweighed, t->informed}};
    int rc = digest_of(&ends.numbers, blocks, n, &ends.of, e);
    if (!rc) rc = cache_path(folder, key, ".blocks", path, e);
    if (!rc) rc = out_file_create(&f, path, true, e);
    if (!rc && !fd_write2(f.fd, &ends, sizeof ends, blocks, n)) rc = err_sys(e, errno, "%s", path);
    if (!rc) rc = out_file_commit(&f, e);
    out_file_release(&f);
    return rc;
}
