/* Reads whole files: plans and importance matrices. */
#include <string.h>

#include "lib/compress/compress_internal.h"

int compress_read_whole(struct cli *c, const char *path, const char *role, struct buf *bytes, struct err *e) {
    enum { MOST = 1 << 30 };
    struct cli_file *f;
    int rc = cli_open_file(c, path, role, &f, e);
    if (!rc) rc = cli_file_read_all(f, MOST, bytes, e);
    if (!rc && bytes->len > MOST) rc = err_set(e, ERR_DATA, "%s: more than %d bytes", cli_file_name(f), MOST);
    return rc;
}

int compress_read_plan(struct cli *c, const char *path, struct buf *text, struct err *e) {
    int rc = compress_read_whole(c, path, "plan", text, e);
    if (!rc && text->len && memchr(text->data, 0, text->len))
        rc = err_set(e, ERR_DATA, "%s: not a text file: it contains zero bytes", path);
    return rc ? rc : buf_append(text, "", 1, e);
}
