/* Buffered reading from and writing to a descriptor. */
#include "lib/stream/io_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    BUFFER_BYTES = 1 << 20,
    PEEK_BYTES = 4096,      /* smallest buffer */
    SKIM_BYTES = 4096,      /* read after a skip: a record header and a small payload */
    BATCH_BYTES = 64 << 10, /* read after a seek to a batch: a batch of tokens, or the small tensors of a larger one */
    /* larger transfers bypass the buffer */
    DIRECT_BYTES = 128 << 10,
    PART_BYTES = 1 << 20, /* of a large read that threads share */
    MOST_PARTS = 16,
};

/* Best effort: a full pipe costs a context switch, and the default of 64 KiB fills up sixteen times as often. */
static void enlarge_pipe(int fd, const struct stat *st) {
    if (S_ISFIFO(st->st_mode)) (void)fcntl(fd, F_SETPIPE_SZ, BUFFER_BYTES);
}

/* ---- input ------------------------------------------------------------------------------------------------------- */

int input_open(struct input *in, int fd, struct err *e) {
    struct stat st;
    *in = (struct input){.fd = fd, .size = UINT64_MAX, .cap = BUFFER_BYTES};
    if (fstat(fd, &st)) return err_sys(e, errno, "cannot read");
    if (S_ISDIR(st.st_mode)) return err_set(e, ERR_IO, "is a directory");
    off_t start = lseek(fd, 0, SEEK_CUR);
    if (S_ISREG(st.st_mode) && start >= 0) {
        in->regular = true;
        in->start = (uint64_t)start;
        in->size = st.st_size > start ? (uint64_t)(st.st_size - start) : 0;
        (void)posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    }
    if (in->size < BUFFER_BYTES - PEEK_BYTES) in->cap = (size_t)in->size + PEEK_BYTES;
    enlarge_pipe(fd, &st);
    in->buf = mem_alloc(in->cap, e);
    return in->buf ? 0 : e->code;
}

void input_close(struct input *in) {
    mem_free(in->buf);
    in->buf = NULL;
}

/* ---- large reads: copying from the page cache keeps one core busy, so the threads share it ---- */

struct shared_read {
    int fd;
    off_t at;
    unsigned char *dst;
    size_t got[MOST_PARTS]; /* of each part */
    atomic_int error;       /* errno of a part that failed; 0: none */
};

static void read_part(void *ctx, size_t i, int thread) {
    (void)thread;
    struct shared_read *k = ctx;
    size_t first = i * PART_BYTES;
    ssize_t r = fd_read_at(k->fd, k->dst + first, PART_BYTES, k->at + (off_t)first);
    if (r < 0) atomic_store(&k->error, errno);
    k->got[i] = r < 0 ? 0 : (size_t)r;
}

/* Reads like a single call to read: what follows a part that is cut short does not count. */
static int read_parts(struct input *in, unsigned char *dst, size_t n, size_t *got, struct err *e) {
    struct shared_read k = {.fd = in->fd, .at = lseek(in->fd, 0, SEEK_CUR), .dst = dst};
    size_t parts = n / PART_BYTES < MOST_PARTS ? n / PART_BYTES : MOST_PARTS;
    *got = 0;
    if (k.at < 0) return err_sys(e, errno, "cannot read");
    parallel_for(parts, read_part, &k);
    int error = atomic_load(&k.error);
    if (error) return err_sys(e, error, "cannot read");
    for (size_t i = 0; i < parts; i++) {
        *got += k.got[i];
        if (k.got[i] < PART_BYTES) break;
    }
    if (*got == 0) in->ended = true;
    return lseek(in->fd, k.at + (off_t)*got, SEEK_SET) < 0 ? err_sys(e, errno, "cannot seek") : 0;
}

/* A single read; *got is 0 at the end of the file. */
static int read_some(struct input *in, void *dst, size_t n, size_t *got, struct err *e) {
    if (in->regular && !in->ended && n >= 2 * PART_BYTES && parallel_threads() > 1)
        return read_parts(in, dst, n, got, e);
    ssize_t r = in->ended ? 0 : fd_read(in->fd, dst, n);
    *got = 0;
    if (r < 0) return err_sys(e, errno, "cannot read");
    if (r == 0) in->ended = true;
    *got = (size_t)r;
    return 0;
}

/* After a large payload a header and another one are likely: what is buffered of that is copied once more. */
static int fill(struct input *in, struct err *e) {
    size_t got, n = in->cap - in->to;
    if (in->direct && n > SKIM_BYTES) n = SKIM_BYTES;
    in->direct = false;
    if (read_some(in, in->buf + in->to, n, &got, e)) return e->code;
    in->to += got;
    return 0;
}

static size_t take_buffered(struct input *in, void *dst, size_t n) {
    size_t have = in->to - in->from;
    if (n > have) n = have;
    if (n) memcpy(dst, in->buf + in->from, n);
    in->from += n;
    if (in->from == in->to) in->from = in->to = 0;
    in->at += n;
    return n;
}

int input_read(struct input *in, void *dst, size_t n, size_t *got, struct err *e) {
    unsigned char *p = dst;
    *got = take_buffered(in, p, n);
    while (*got < n && !in->ended) {
        size_t left = n - *got, now = 0;
        if (left >= DIRECT_BYTES) {
            if (read_some(in, p + *got, left, &now, e)) return e->code;
            in->at += now;
            in->direct = true;
        } else {
            if (fill(in, e)) return e->code;
            now = take_buffered(in, p + *got, left);
        }
        *got += now;
    }
    return 0;
}

int input_peek(struct input *in, size_t n, const unsigned char **p, size_t *got, struct err *e) {
    if (in->from + n > in->cap) {
        memmove(in->buf, in->buf + in->from, in->to - in->from);
        in->to -= in->from;
        in->from = 0;
    }
    while (in->to - in->from < n && !in->ended)
        if (fill(in, e)) return e->code;
    *p = in->buf + in->from;
    *got = in->to - in->from < n ? in->to - in->from : n;
    return 0;
}

int input_take(struct input *in, uint64_t max, const unsigned char **p, size_t *got, struct err *e) {
    if (in->from == in->to) {
        in->from = in->to = 0;
        if (!in->ended && fill(in, e)) return e->code;
    }
    size_t n = in->to - in->from;
    if (n > max) n = (size_t)max;
    *p = in->buf + in->from;
    *got = n;
    in->from += n;
    in->at += n;
    return 0;
}

int input_seek_past(struct input *in, uint64_t n, struct err *e) {
    size_t have = in->to - in->from;
    if (n < have) {
        in->from += (size_t)n;
        in->at += n;
        return 0;
    }
    if (lseek(in->fd, (off_t)(n - have), SEEK_CUR) < 0) return err_sys(e, errno, "cannot seek");
    in->from = in->to = 0;
    if (in->cap > SKIM_BYTES) in->cap = SKIM_BYTES; /* a caller that skips reads only headers */
    in->ended = false;
    in->at += n;
    return 0;
}

int input_seek(struct input *in, uint64_t at, struct err *e) {
    if (lseek(in->fd, (off_t)(in->start + at), SEEK_SET) < 0) return err_sys(e, errno, "cannot seek");
    in->from = in->to = 0;
    if (in->cap > BATCH_BYTES) in->cap = BATCH_BYTES;
    in->ended = false;
    in->at = at;
    return 0;
}

/* ---- output ------------------------------------------------------------------------------------------------------ */

int output_open(struct output *out, int fd, struct err *e) {
    struct stat st;
    *out = (struct output){.fd = fd, .cap = BUFFER_BYTES};
    if (fstat(fd, &st)) return err_sys(e, errno, "cannot write");
    enlarge_pipe(fd, &st);
    out->buf = mem_alloc(out->cap, e);
    return out->buf ? 0 : e->code;
}

void output_close(struct output *out) {
    mem_free(out->buf);
    out->buf = NULL;
}

/* Writes the buffer and n more bytes, in as few calls as the kernel allows. */
static int write_all(struct output *out, const unsigned char *data, size_t n, struct err *e) {
    if (!fd_write2(out->fd, out->buf, out->len, data, n)) return err_sys(e, errno, "cannot write");
    out->len = 0;
    return 0;
}

int output_write(struct output *out, const void *data, size_t n, struct err *e) {
    out->at += n;
    if (n >= DIRECT_BYTES) return write_all(out, data, n, e);
    if (n > out->cap - out->len && write_all(out, out->buf, 0, e)) return e->code;
    if (n) memcpy(out->buf + out->len, data, n);
    out->len += n;
    return 0;
}

int output_flush(struct output *out, struct err *e) {
    return write_all(out, out->buf, 0, e);
}
