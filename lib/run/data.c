/* The data that goes through a model; a regular file gives it as often as one likes. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/run/run.h"

static bool is_file(const char *path) {
    struct stat st;
    if (strcmp(path, "-") != 0) return stat(path, &st) == 0 && S_ISREG(st.st_mode);
    return fstat(STDIN_FILENO, &st) == 0 && S_ISREG(st.st_mode) && lseek(STDIN_FILENO, 0, SEEK_CUR) == 0;
}

int run_open_data(struct cli *c, const char *path, const char *role, enum stream_kind expect, const struct model *m,
                  struct run_data *d, struct err *e) {
    d->path = path;
    d->is_file = is_file(path); /* asked before reading moves standard input on */
    if (cli_open_stream(c, path, role, expect, &d->stream, e)) return e->code;
    const char *name = stream_reader_name(d->stream);
    const cJSON *meta = stream_reader_meta(d->stream);
    if (knowledge_meta_get(meta, &d->format, e)) return err_prefix(e, "%s", name);
    return m ? model_check_vocab(m, meta, name, e) : 0;
}

int run_check_vocab(const struct vocab *v, const struct run_data *d, const char *what, struct err *e) {
    char ours[DIGEST_TEXT_SIZE];
    digest_text(v->digest, ours);
    if (!d->format.vocab[0] || !strcmp(d->format.vocab, ours)) return 0;
    return err_set(e, ERR_DATA, "model and %s disagree: vocabulary %s against %s", what, ours, d->format.vocab);
}

static void forget(struct run_data *d) {
    if (!d->again) return;
    stream_reader_free(d->again);
    close(d->again_fd);
    d->again = NULL;
}

int run_again(struct run_data *d, struct stream_reader **out, struct err *e) {
    const char *name = stream_reader_name(d->stream);
    forget(d);
    d->again_fd = open(strcmp(d->path, "-") != 0 ? d->path : "/dev/stdin", O_RDONLY | O_CLOEXEC);
    if (d->again_fd < 0) return err_sys(e, errno, "%s", name);
    if (stream_reader_open(&d->again, d->again_fd, name, STREAM_ANY, e)) {
        d->again = NULL;
        close(d->again_fd);
        return e->code;
    }
    *out = d->again;
    return 0;
}

void run_data_release(struct run_data *d) {
    forget(d);
    *d = (struct run_data){0};
}
