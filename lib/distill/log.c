/*
 * The log of a run: a line of names, then a line per step. A resumed run continues the log: it finds the line of the
 * checkpoint's step, and truncates the file after it before writing the first new line. That also removes a partial
 * line that a killed run left.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/distill/distill_internal.h"

/* Values of evaluations come last, so that the rest of a step's line is the same with and without them. */
static int put_names(struct buf *b, const struct step_log *l, struct err *e) {
    const struct distill_progress *p = l->names;
    int rc = buf_printf(b, e, "step\t");
    for (size_t i = 0; i < p->n_losses && !rc; i++) rc = buf_printf(b, e, "%s\t", p->losses[i].name);
    if (!rc) rc = buf_printf(b, e, "lr\tgrad_norm\ttokens\tnoise_scale");
    for (size_t i = 0; !rc && l->groups->n_groups && i <= l->groups->n_groups; i++)
        rc = buf_printf(b, e, "\tgrad_norm:%s", i ? l->groups->groups[i - 1].glob : "rest");
    for (size_t i = 0; !rc && i < p->eval.n; i++) rc = buf_printf(b, e, "\t%s", p->eval.values[i].name);
    return rc ? rc : buf_append(b, "\n", 1, e);
}

static int put_step(struct buf *b, const struct step_log *l, const struct distill_progress *p, struct err *e) {
    int rc = buf_printf(b, e, "%" PRIu64 "\t", p->step);
    for (size_t i = 0; i < p->n_losses && !rc; i++) rc = buf_printf(b, e, "%.6g\t", p->losses[i].value);
    if (!rc) rc = buf_printf(b, e, "%.6g\t%.6g\t%" PRIu64 "\t", p->lr, p->grad_norm, p->positions);
    double noise = train_noise_scale(&p->noise);
    if (!rc) rc = isnan(noise) ? buf_append(b, "nan", 3, e) : buf_printf(b, e, "%.6g", noise);
    for (size_t i = 0; !rc && l->groups->n_groups && i <= l->groups->n_groups; i++)
        rc = buf_printf(b, e, "\t%.6g", p->group_norm[i]);
    return rc;
}

static int put_evaluation(struct buf *b, const struct distill_progress *p, struct err *e) {
    int rc = 0;
    for (size_t i = 0; !rc && i < p->eval.n; i++)
        rc = p->eval.step == p->step ? buf_printf(b, e, "\t%.6g", p->eval.values[i].value)
                                     : buf_append(b, "\tnan", 4, e);
    return rc ? rc : buf_append(b, "\n", 1, e);
}

/* ---- resuming ---------------------------------------------------------------------------------------------------- */

static int read_file(const char *path, struct buf *b, struct err *e) {
    ssize_t n = 1;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY), rc = fd < 0 ? err_sys(e, errno, "%s", path) : 0;
    while (!rc && n > 0) {
        rc = buf_reserve(b, 1 << 16, e);
        n = rc ? 0 : fd_read(fd, b->data + b->len, 1 << 16);
        if (n < 0) rc = err_sys(e, errno, "%s", path);
        if (n > 0) b->len += (size_t)n;
    }
    if (fd >= 0) close(fd);
    return rc;
}

/* Returns the length of the first line, with its newline; of the whole text if there is none. */
static size_t line_length(const char *text, size_t n) {
    const char *end = n ? memchr(text, '\n', n) : NULL;
    return end ? (size_t)(end - text) + 1 : n;
}

/* Does the line begin with this number? A line torn within the number does not match. */
static bool is_line_of(const char *text, size_t n, uint64_t step) {
    char number[32];
    size_t length = (size_t)snprintf(number, sizeof number, "%" PRIu64 "\t", step);
    return n >= length && memcmp(text, number, length) == 0;
}

/* Sets *keep to the end of the step's own part of its line, which must equal `line`: the values of an evaluation after
 * the checkpoint are cut off. *found: the line exists. A file without any complete line is started again. */
static int find_place(const char *path, const struct buf *file, uint64_t step, const struct buf *names,
                      const struct buf *line, uint64_t *keep, bool *found, struct err *e) {
    const char *text = (const char *)file->data;
    size_t at = line_length(text, file->len), n = at < names->len ? at : names->len;
    if (at > names->len || (n && memcmp(text, names->data, n) != 0))
        return err_set(e, ERR_DATA, "%s is not the log of a distillation like this", path);
    if (at < names->len) return 0; /* torn, or empty */
    *keep = at;
    if (at == file->len) return 0;
    if (!step)
        return err_set(e, ERR_DATA, "%s has steps and the checkpoint is at none: it may be the log of another run",
                       path);
    for (; at < file->len; at += n) {
        n = line_length(text + at, file->len - at);
        if (!is_line_of(text + at, n, step)) continue;
        if (n < line->len || memcmp(text + at, line->data, line->len) != 0 ||
            (n > line->len && !strchr("\t\n", text[at + line->len])))
            return err_set(e, ERR_DATA, "%s is the log of another run: its step %" PRIu64 " is not the checkpoint's",
                           path, step);
        *keep = at + line->len;
        *found = true;
        return 0;
    }
    return err_set(e, ERR_DATA, "%s has no line of step %" PRIu64 ", which the checkpoint is at", path, step);
}

static int look(struct step_log *l, const struct distill_progress *p, struct err *e) {
    struct buf file = {0}, names = {0}, line = {0};
    bool found = false;
    int rc = read_file(l->path, &file, e);
    if (!rc) rc = put_names(&names, l, e);
    if (!rc) rc = put_step(&line, l, p, e);
    if (!rc) rc = find_place(l->path, &file, p->step, &names, &line, &l->keep, &found, e);
    if (!rc && found) rc = put_evaluation(&l->rest, p, e);
    buf_release(&file);
    buf_release(&names);
    buf_release(&line);
    return rc;
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

int step_log_open(struct step_log *l, const char *path, const struct trainer *t, struct err *e) {
    struct stat st;
    *l = (struct step_log){.path = path, .fd = -1, .names = &t->progress, .groups = &t->o.train};
    if (!path) return 0;
    l->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0666);
    if (l->fd < 0 || fstat(l->fd, &st)) return err_sys(e, errno, "%s", path);
    l->regular = S_ISREG(st.st_mode);
    return l->regular && t->restored ? look(l, &t->progress, e) : 0;
}

static int write_text(struct step_log *l, const struct buf *text, struct err *e) {
    l->end += text->len;
    return fd_write(l->fd, text->data, text->len) ? 0 : err_sys(e, errno, "%s", l->path);
}

static int cut(struct step_log *l, uint64_t length, struct err *e) {
    if (l->regular && ftruncate(l->fd, (off_t)length)) return err_sys(e, errno, "%s", l->path);
    l->end = length;
    return 0;
}

static int begin(struct step_log *l, struct err *e) {
    struct buf names = {0};
    if (l->begun) return 0;
    if (cut(l, l->keep, e)) return e->code;
    l->begun = true;
    l->evaluation = l->end;
    int rc = l->keep ? 0 : put_names(&names, l, e);
    if (!rc) rc = write_text(l, l->keep ? &l->rest : &names, e);
    buf_release(&names);
    return rc;
}

static int write_evaluation(struct step_log *l, const struct distill_progress *p, struct err *e) {
    l->rest.len = 0;
    return put_evaluation(&l->rest, p, e) ? e->code : write_text(l, &l->rest, e);
}

int step_log_put(struct step_log *l, const struct distill_progress *p, struct err *e) {
    struct buf line = {0};
    if (l->fd < 0) return 0;
    int rc = begin(l, e);
    if (!rc) rc = put_step(&line, l, p, e);
    size_t n = line.len;
    if (!rc) rc = put_evaluation(&line, p, e);
    if (!rc) rc = write_text(l, &line, e);
    l->evaluation = l->end - (line.len - n);
    buf_release(&line);
    return rc;
}

int step_log_amend(struct step_log *l, const struct distill_progress *p, struct err *e) {
    if (l->fd < 0) return 0;
    if (l->begun && !l->regular) return step_log_put(l, p, e);
    /* A kill between truncating and writing leaves the step's own part, by which a checkpoint finds the line. */
    if (l->begun) return cut(l, l->evaluation, e) ? e->code : write_evaluation(l, p, e);
    if (!l->rest.len) return 0;
    l->rest.len = 0; /* begin() will write it with the new values */
    return put_evaluation(&l->rest, p, e);
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
    buf_release(&l->rest);
}
