/* Maps a foreign file into memory, read-only. */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/formats/formats_internal.h"

int mapped_file_of(struct mapped_file *m, int fd, struct err *e) {
    struct stat st;
    *m = (struct mapped_file){0};
    if (fstat(fd, &st) != 0) return err_sys(e, errno, "cannot stat");
    if (!S_ISREG(st.st_mode)) return err_set(e, ERR_IO, "not a regular file");
    m->size = (uint64_t)st.st_size;
    if (m->size == 0) return 0; /* mmap rejects empty files; every parser rejects them with a better message */
    void *p = mmap(NULL, m->size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED) return err_sys(e, errno, "cannot map %llu bytes", (unsigned long long)m->size);
    m->data = p;
    return 0;
}

int mapped_file_open(struct mapped_file *m, const char *path, struct err *e) {
    *m = (struct mapped_file){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return err_sys(e, errno, "%s", path);
    int rc = mapped_file_of(m, fd, e);
    close(fd);
    return rc ? err_prefix(e, "%s", path) : 0;
}

void mapped_file_close(struct mapped_file *m) {
    if (m->data) munmap((void *)m->data, m->size);
    *m = (struct mapped_file){0};
}

bool file_exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0;
}

char *path_join(struct arena *a, const char *folder, const char *name, struct err *e) {
    size_t n = strlen(folder);
    return arena_printf(a, e, "%s%s%s", folder, n && folder[n - 1] == '/' ? "" : "/", name);
}
