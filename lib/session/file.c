/* Reads a stream more than once, by opening its file again. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "lib/session/session.h"

void session_file_init(struct session_file *f, const char *path) {
    bool dash = !strcmp(path, "-");
    *f = (struct session_file){
        .is_file = cli_is_file(path), .path = dash ? "/dev/stdin" : path, .name = dash ? "standard input" : path};
}

void session_file_release(struct session_file *f) {
    if (!f->again) return;
    stream_reader_free(f->again);
    close(f->fd);
    f->again = NULL;
}

int session_file_again(struct session_file *f, enum stream_kind expect, struct stream_reader **out, struct err *e) {
    session_file_release(f);
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
