/* Copies a model that cannot be read twice to a temporary file. */
#include <unistd.h>

#include "lib/formats/arch_internal.h"

static int copy_rest(struct stream_writer *w, struct stream_reader *in, const struct model_head *h,
                     struct stream_item *item, struct err *e) {
    int rc = stream_write_meta(w, h->meta, e);
    if (!rc && h->vocab.len) rc = stream_write_vocab(w, h->vocab.data, h->vocab.len, e);
    while (!rc && item->type != ITEM_EOF) {
        if (item->type == ITEM_TENSOR) rc = stream_forward(in, w, item, e);
        if (!rc) rc = stream_next(in, item, e);
    }
    return rc ? rc : stream_writer_finish(w, NULL, e);
}

int export_spool(struct stream_map **out, struct stream_reader *in, const struct model_head *h,
                 struct stream_item *item, struct err *e) {
    static const char name[] = "temporary copy of the model (TMPDIR)";
    struct stream_writer *w = NULL;
    char path[32];
    int fd, rc = out_scratch(&fd, e);
    if (rc) return rc;
    snprintf(path, sizeof path, "/dev/fd/%d", fd);
    rc = stream_writer_open(&w, fd, name, &(struct stream_write_options){0}, e);
    if (!rc) rc = copy_rest(w, in, h, item, e);
    stream_writer_free(w);
    if (!rc) rc = stream_map_open(out, path, STREAM_MODEL, e);
    close(fd);
    return rc;
}
