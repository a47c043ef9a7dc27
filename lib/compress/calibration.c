/* Reads calibration data: Rill's statistics or llama.cpp's importance matrix. */
#include <string.h>

#include "lib/compress/compress_internal.h"

/* Decides by the first bytes, if the file can be opened for a look; streams are taken as statistics. */
static bool is_imatrix(const char *path) {
    char begin[4];
    FILE *f = cli_is_file(path) && strcmp(path, "-") != 0 ? fopen(path, "rb") : NULL;
    if (!f) return false;
    size_t n = fread(begin, 1, sizeof begin, f);
    fclose(f);
    return n && imatrix_is(path, begin, n);
}

int compress_read_calibration(struct compress_calibration *out, struct cli *c, const char *path, struct err *e) {
    struct stream_reader *in;
    struct buf bytes = {0};
    if (!is_imatrix(path)) {
        int rc = cli_open_stream(c, path, "stats", STREAM_STATS, &in, e);
        return rc ? rc : stats_load(&out->stats, in, e);
    }
    int rc = compress_read_whole(c, path, "stats", &bytes, e);
    if (!rc && imatrix_read(&out->imatrix, &bytes, e)) rc = err_prefix(e, "%s", path);
    buf_release(&bytes);
    return rc;
}

void compress_calibration_release(struct compress_calibration *x) {
    stats_free(x->stats);
    imatrix_free(x->imatrix);
    *x = (struct compress_calibration){0};
}

struct prune_importance compress_squares(const struct compress_calibration *x) {
    return x->imatrix ? (struct prune_importance){imatrix_importance, x->imatrix} : (struct prune_importance){0};
}

int compress_imatrix_lacks(const char *path, const char *what, const char *use, struct err *e) {
    return err_set(
        e, ERR_DATA,
        "%s: an importance matrix of llama.cpp has mean squares of inputs alone, not %s, which %s needs: give "
        "statistics of rill calibrate",
        path, what, use);
}
