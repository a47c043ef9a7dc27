/* The cache folder: file names are digests of everything the contents depend on. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/quant/quant_internal.h"

int quant_cache_open(const char *folder, struct err *e) {
    struct stat s;
    if (mkdir(folder, 0777) == 0) return 0;
    if (errno != EEXIST || stat(folder, &s) != 0) return err_sys(e, errno, "%s", folder);
    return S_ISDIR(s.st_mode) ? 0 : err_set(e, ERR_IO, "%s: not a folder", folder);
}

int cache_path(const char *folder, struct digest key, const char *suffix, char out[CACHE_PATH], struct err *e) {
    char text[DIGEST_TEXT_SIZE];
    digest_text(key, text);
    const char *hex = strchr(text, ':');
    int n = snprintf(out, CACHE_PATH, "%s/%s%s", folder, hex ? hex + 1 : text, suffix);
    return n < CACHE_PATH ? 0 : err_set(e, ERR_USAGE, "the name of the cache is too long");
}

int cache_key(const struct tensor_desc *d, const void *data, const float *importance, const uint64_t *settings,
              size_t n, struct digest *out, struct err *e) {
    struct digest_state *s = digest_new(e);
    if (!s) return e->code;
    uint64_t cols = tensor_row_elems(d), head[] = {d->dtype, tensor_rows(d), cols, importance != NULL};
    digest_update(s, RILL_VERSION, sizeof RILL_VERSION);
    digest_update(s, head, sizeof head);
    digest_update(s, data, tensor_bytes(d));
    if (importance) digest_update(s, importance, cols * sizeof *importance);
    if (n) digest_update(s, settings, n * sizeof *settings);
    *out = digest_get(s);
    digest_free(s);
    return 0;
}
