/* Names of files as recorded in the provenance: relative to the working directory, in UTF-8. */
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "lib/cli/cli_internal.h"

const char *names_in_json(const char *path) {
    return utf8_valid(path, strlen(path)) ? path : NULL;
}

int names_utf8(struct arena *a, const char *s, const char **out, struct err *e) {
    size_t n = strlen(s);
    *out = s;
    if (utf8_valid(s, n)) return 0;
    char *copy = arena_alloc(a, 3 * n + 1, e), *to = copy;
    if (!copy) return e->code;
    for (size_t i = 0; i < n;) {
        size_t length = 1;
        while (length < 4 && i + length <= n && !utf8_valid(s + i, length)) length++;
        bool good = i + length <= n && utf8_valid(s + i, length);
        if (!good) length = 1;
        memcpy(to, good ? s + i : "\xEF\xBF\xBD", good ? length : 3);
        to += good ? length : 3;
        i += length;
    }
    *to = 0;
    *out = copy;
    return 0;
}

int names_relative(struct arena *a, const char *path, const char **out, struct err *e) {
    char folder[PATH_MAX], cwd[PATH_MAX];
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    char *dir = arena_strndup(a, path, slash == path ? 1 : (size_t)(base - path), e);
    *out = path;
    if (!dir) return e->code;
    if (!realpath(*dir ? dir : ".", folder) || !getcwd(cwd, sizeof cwd) || cwd[0] != '/') return 0;
    const char *full = arena_printf(a, e, "%s/%s", strcmp(folder, "/") == 0 ? "" : folder, base);
    if (!full) return e->code;
    size_t common = 0, i = 1; /* both begin with a slash; `common` is the index of the last slash that they share */
    for (; cwd[i] && full[i] && cwd[i] == full[i]; i++)
        if (cwd[i] == '/') common = i;
    if (!cwd[i] && full[i] == '/') common = i;
    struct buf b = {0};
    int rc = 0;
    for (const char *s = cwd + common; !rc && *s; s++)
        if (*s == '/' && s[1]) rc = buf_printf(&b, e, "../");
    if (!rc) rc = buf_printf(&b, e, "%s", full + common + 1);
    if (!rc && !(*out = arena_strndup(a, (const char *)b.data, b.len, e))) rc = e->code;
    buf_release(&b);
    return rc;
}

int names_recorded(struct arena *a, const char *path, const char **out, struct err *e) {
    bool system = strncmp(path, "/dev/", 5) == 0 || strncmp(path, "/proc/", 6) == 0;
    *out = path;
    return path[0] == '/' && !system ? names_relative(a, path, out, e) : 0;
}

int names_fd_path(struct arena *a, int fd, const char **out, struct err *e) {
    char link[64], path[PATH_MAX];
    struct stat of_fd, of_path;
    *out = NULL;
    if (fstat(fd, &of_fd) || !S_ISREG(of_fd.st_mode)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    /* the link of a deleted file reads "NAME (deleted)", which might even exist */
    if (stat(path, &of_path) || of_path.st_dev != of_fd.st_dev || of_path.st_ino != of_fd.st_ino) return 0;
    return names_in_json(path) ? names_relative(a, path, out, e) : 0;
}
