/* Output files: written under a temporary name and renamed when complete. */
#include "lib/cli/cli_internal.h"

int file_out_create(struct cli *c, const char *path, bool overwrite, struct cli_out_file **out, struct err *e) {
    struct cli_out_file *f = arena_array(&c->arena, 1, sizeof *f, e);
    if (!f) return e->code;
    f->file = OUT_FILE_NONE;
    f->next = c->out_files;
    c->out_files = f;
    if (out_file_create(&f->file, path, overwrite, e)) return e->code;
    *out = f;
    return 0;
}

void file_out_release(struct cli *c) {
    for (struct cli_out_file *f = c->out_files; f; f = f->next) out_file_release(&f->file);
    c->out_files = NULL;
}

int cli_create(struct cli *c, const char *path, bool overwrite, int *fd, struct cli_out_file **out, struct err *e) {
    if (file_out_create(c, path, overwrite, out, e)) return e->code;
    *fd = (*out)->file.fd;
    return 0;
}

int cli_commit(struct cli *c, struct cli_out_file *f, struct err *e) {
    (void)c;
    return out_file_commit(&f->file, e);
}
