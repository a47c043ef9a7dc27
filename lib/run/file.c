/* Streams that are read more than once. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "lib/run/run.h"

void run_file_init(struct run_file *f, const char *path) {
    bool dash = !strcmp(path, "-");
    *f = (struct run_file){
        .is_file = cli_is_file(path), .path = dash ? "/dev/stdin" : path, .name = dash ? "standard input" : path};
}

void run_file_release(struct run_file *f) {
    if (!f->again) return;
    stream_reader_free(f->again);
    close(f->fd);
    f->again = NULL;
}

int run_file_again(struct run_file *f, enum stream_kind expect, struct stream_reader **out, struct err *e) {
    run_file_release(f);
    f->fd = open(f->path, O_RDONLY | O_CLOEXEC);
    if (f->fd < 0) return err_sys(e, errno, "%s", f->name);
    if (stream_reader_open(&f->again, f->fd, f->name, expect, e)) {
        f->again = NULL;
        close(f->fd);
        return e->code;
    }
    *out = f->again;
    return 0;
}
