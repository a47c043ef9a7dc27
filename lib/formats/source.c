/* The files of a foreign model: each is mapped as long as the model is open, and all except shards are
 * added to its digest. */
#include "lib/formats/formats_internal.h"

int source_open(struct foreign_model *f, const char *path, const struct mapped_file **out, struct err *e) {
    struct source_file *x = arena_array(&f->memory, 1, sizeof *x, e);
    if (!x) return e->code;
    int rc = mapped_file_open(&x->m, path, e);
    if (rc) return rc;
    x->next = f->source->files;
    f->source->files = x;
    *out = &x->m;
    return 0;
}

int source_map(struct foreign_model *f, const char *path, const struct mapped_file **out, struct err *e) {
    int rc = source_open(f, path, out, e);
    if (!rc && (*out)->size) digest_update(f->source->digest, (*out)->data, (*out)->size);
    return rc;
}
