/* Reads calibration data: Rill's statistics or llama.cpp's importance matrix. */
#include <string.h>

#include "lib/compress/compress_internal.h"

static int read_stats(struct compress_calibration *out, struct cli *c, const char *path, struct err *e) {
    struct stream_reader *in;
    struct stream_map *map = NULL; /* stays NULL for a pipe and for several segments, whose moments have to be loaded */
    struct err unmapped;
    int rc = cli_open_stream(c, path, "stats", STREAM_STATS, &in, e);
    if (!rc && cli_is_file(path)) (void)!stream_map_open(&map, path, STREAM_STATS, &unmapped);
    if (!rc && (rc = stats_load(&out->stats, in, map, e))) stream_map_free(map);
    return rc;
}

static int read_imatrix(struct compress_calibration *out, struct cli *c, const char *path, struct err *e) {
    struct buf bytes = {0};
    int rc = compress_read_whole(c, path, "stats", &bytes, e);
    if (!rc && imatrix_read(&out->imatrix, &bytes, e))
        rc = err_prefix(e, "%s", strcmp(path, "-") == 0 ? "standard input" : path);
    buf_release(&bytes);
    return rc;
}

int compress_read_calibration(struct compress_calibration *out, struct cli *c, const char *path, struct err *e) {
    char begin[4];
    size_t n = cli_peek(c, path, begin, sizeof begin);
    return n && imatrix_is(path, begin, n) ? read_imatrix(out, c, path, e) : read_stats(out, c, path, e);
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
