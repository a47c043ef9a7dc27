/*
 * The log of a run: a line of names, then a line for each step. A resumed run goes on in the log of the one before: it finds
 * the line of the checkpoint's step, and what comes after it goes before the first new line is written. A line that a
 * killed run wrote in part goes with them.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/distill/distill_internal.h"

static const char names[] = "step\tkl\tce\tlr\tgrad_norm\ttokens\n";

static int put_line(struct buf *b, const struct distill_progress *p, struct err *e) {
    b->len = 0;
    return buf_printf(b, e, "%" PRIu64 "\t%.6g\t%.6g\t%.6g\t%.6g\t%" PRIu64 "\n", p->step, p->kl, p->ce, p->lr,
                      p->grad_norm, p->positions);
}

/* ---- the place of a restored run --------------------------------------------------------------------------------------- */

struct reading {
    const char *path;
    FILE *file;
    char *text; /* of the last line, with its end */
    size_t room;
    uint64_t at;
};

/* One line; *n is -1 at the end of the file. */
static int next_line(struct reading *r, ssize_t *n, struct err *e) {
    errno = 0;
    *n = getline(&r->text, &r->room, r->file);
    if (*n < 0 && !feof(r->file)) return err_sys(e, errno, "%s", r->path);
    if (*n > 0) r->at += (uint64_t)*n;
    return 0;
}

/* *keep is where the line of names ends, 0 for a file that has none yet. */
static int read_names(struct reading *r, uint64_t *keep, struct err *e) {
    ssize_t n;
    if (next_line(r, &n, e)) return e->code;
    size_t length = n < 0 ? 0 : (size_t)n;
    if (length > strlen(names) || memcmp(length ? r->text : "", names, length) != 0)
        return err_set(e, ERR_DATA, "%s is not the log of a distillation", r->path);
    *keep = length == strlen(names) ? length : 0;
    return 0;
}

/* *keep is where the line of the step ends, which must be `line`. A log without any step may be begun with the next one. */
static int find_line(struct reading *r, uint64_t step, const struct buf *line, uint64_t *keep, struct err *e) {
    ssize_t n;
    do {
        if (next_line(r, &n, e)) return e->code;
        if (n < 0 && r->at == *keep) return 0;
        if (n < 0)
            return err_set(e, ERR_DATA, "%s has no line of step %" PRIu64 ", which the checkpoint is at", r->path,
                           step);
    } while (strtoull(r->text, NULL, 10) != step);
    if ((size_t)n != line->len || memcmp(r->text, line->data, line->len) != 0)
        return err_set(e, ERR_DATA, "%s is the log of another run: its step %" PRIu64 " is not the checkpoint's",
                       r->path, step);
    *keep = r->at;
    return 0;
}

static int look(struct reading *r, const struct distill_progress *p, const struct buf *line, uint64_t *keep,
                struct err *e) {
    if (read_names(r, keep, e)) return e->code;
    if (!*keep) return 0;
    if (p->step) return find_line(r, p->step, line, keep, e);
    if (fgetc(r->file) == EOF) return 0;
    return err_set(e, ERR_DATA, "%s has steps and the checkpoint is at none: it may be the log of another run",
                   r->path);
}

static int find_place(struct step_log *l, const struct distill_progress *p, struct err *e) {
    struct buf line = {0};
    struct reading r = {.path = l->path, .file = fopen(l->path, "re")};
    if (!r.file) return err_sys(e, errno, "%s", l->path);
    int rc = put_line(&line, p, e);
    if (!rc) rc = look(&r, p, &line, &l->keep, e);
    fclose(r.file);
    free(r.text);
    buf_release(&line);
    return rc;
}

/* ---- writing ------------------------------------------------------------------------------------------------------------ */

int step_log_open(struct step_log *l, const char *path, const struct trainer *t, struct err *e) {
    struct stat st;
    *l = (struct step_log){.path = path, .fd = -1};
    if (!path) return 0;
    l->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0666);
    if (l->fd < 0 || fstat(l->fd, &st)) return err_sys(e, errno, "%s", path);
    l->regular = S_ISREG(st.st_mode);
    return l->regular && t->restored ? find_place(l, &t->progress, e) : 0;
}

static int write_all(const struct step_log *l, const void *data, size_t n, struct err *e) {
    const char *at = data;
    while (n) {
        ssize_t done = write(l->fd, at, n);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return err_sys(e, errno, "%s", l->path);
        at += done;
        n -= (size_t)done;
    }
    return 0;
}

static int begin(struct step_log *l, struct err *e) {
    if (l->begun) return 0;
    if (l->regular && ftruncate(l->fd, (off_t)l->keep)) return err_sys(e, errno, "%s", l->path);
    l->begun = true;
    return l->keep ? 0 : write_all(l, names, sizeof names - 1, e);
}

int step_log_put(struct step_log *l, const struct distill_progress *p, struct err *e) {
    struct buf line = {0};
    if (l->fd < 0) return 0;
    int rc = begin(l, e);
    if (!rc) rc = put_line(&line, p, e);
    if (!rc) rc = write_all(l, line.data, line.len, e);
    buf_release(&line);
    return rc;
}

int step_log_sync(struct step_log *l, struct err *e) {
    if (l->fd < 0 || !l->regular) return 0;
    return fsync(l->fd) && errno != EINVAL && errno != ENOTSUP ? err_sys(e, errno, "%s", l->path) : 0;
}

int step_log_end(struct step_log *l, struct err *e) {
    if (l->fd < 0) return 0;
    if (begin(l, e)) return e->code;
    int fd = l->fd;
    l->fd = -1;
    return close(fd) ? err_sys(e, errno, "%s", l->path) : 0;
}

void step_log_release(struct step_log *l) {
    if (l->fd >= 0) close(l->fd);
    l->fd = -1;
}
