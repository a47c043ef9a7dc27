/*
 * input: opens streams, maps and foreign files, and records each for the provenance. The part that a program did not
 * read is read at the end, because the digest covers everything and truncation must be noticed.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lib/cli/cli_internal.h"

static bool is_dash(const char *path) {
    return strcmp(path, "-") == 0;
}

static int add_input(struct cli *c, const char *role, struct cli_input **out, struct err *e) {
    struct cli_input *in = arena_array(&c->arena, 1, sizeof *in, e);
    if (!in) return e->code;
    in->fd = -1;
    in->role = arena_strdup(&c->arena, role, e);
    if (!in->role) return e->code;
    struct cli_input **last = &c->inputs; /* the provenance lists inputs in the order of opening */
    while (*last) last = &(*last)->next;
    *last = in;
    *out = in;
    return 0;
}

/* `path` must live as long as the cli. */
static int name_input(struct cli *c, struct cli_input *in, const char *path, struct err *e) {
    const char *name;
    if (names_recorded(&c->arena, path, &name, e)) return e->code;
    in->path = names_in_json(name);
    return 0;
}

static int take_stdin(struct cli *c, struct cli_input *in, struct err *e) {
    if (c->stdin_taken) return err_set(e, ERR_USAGE, "standard input is used twice (%s)", in->role);
    c->stdin_taken = true;
    in->is_stdin = true;
    return names_fd_path(&c->arena, STDIN_FILENO, &in->path, e);
}

static int check_kind_of_file(struct cli *c, int fd, const char *name, struct err *e) {
    struct stat st;
    if (fstat(fd, &st)) return err_sys(e, errno, "%s", name);
    if (S_ISDIR(st.st_mode)) {
        bool model = faccessat(fd, "config.json", F_OK, 0) == 0;
        return err_set(e, ERR_IO, "%s is a folder, expected a file%s", name,
                       model ? " (rill import makes a model stream of it)" : "");
    }
    return check_not_output(c, &st, name, e);
}

/* Also checks operands: a program may open them after its output. */
int check_inputs_not_output(struct cli *c, struct err *e) {
    struct stat st;
    for (size_t i = 0; i < c->args.n_operands; i++)
        if (stat(c->args.operands[i], &st) == 0 && check_not_output(c, &st, c->args.operands[i], e)) return e->code;
    for (const struct cli_input *in = c->inputs; in; in = in->next) {
        int fd = in->is_stdin ? STDIN_FILENO : in->fd;
        const char *name = in->is_stdin ? "standard input" : in->path ? in->path : in->role;
        if (fd >= 0 && fstat(fd, &st) == 0 && check_not_output(c, &st, name, e)) return e->code;
    }
    return 0;
}

/* ---- a look at the beginning: the descriptor is kept, since opening a named pipe again could wait for ever ---- */

static void drop_peeked(struct cli *c) {
    if (c->peeked_path) close(c->peeked);
    c->peeked_path = NULL;
}

/* Opens a path, or takes over the descriptor of cli_peek. */
static int open_path(struct cli *c, const char *path) {
    if (!c->peeked_path || strcmp(path, c->peeked_path) != 0) return open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    c->peeked_path = NULL;
    return c->peeked;
}

static ssize_t peek_pipe(int fd, void *begin, size_t n) {
    int copy[2];
    if (pipe2(copy, O_CLOEXEC)) return -1;
    ssize_t got = tee(fd, copy[1], n, 0);
    if (got > 0) got = read(copy[0], begin, (size_t)got);
    close(copy[0]);
    close(copy[1]);
    return got;
}

size_t cli_peek(struct cli *c, const char *path, void *begin, size_t n) {
    int fd = is_dash(path) ? STDIN_FILENO : open_path(c, path);
    struct stat st;
    ssize_t got = -1;
    if (fd < 0) return 0;
    if (!is_dash(path)) {
        drop_peeked(c);
        c->peeked_path = path, c->peeked = fd;
    }
    if (fstat(fd, &st)) return 0;
    if (S_ISREG(st.st_mode)) got = fd_read_at(fd, begin, n, lseek(fd, 0, SEEK_CUR));
    if (S_ISFIFO(st.st_mode)) got = peek_pipe(fd, begin, n);
    if (S_ISSOCK(st.st_mode)) got = recv(fd, begin, n, MSG_PEEK | MSG_WAITALL);
    return got > 0 ? (size_t)got : 0;
}

/* Opens the input, records path and role, and returns the descriptor and a name for messages. */
static int open_input(struct cli *c, const char *path, const char *role, struct cli_input **out, int *fd,
                      const char **name, struct err *e) {
    struct cli_input *in;
    if (add_input(c, role, &in, e)) return e->code;
    if (is_dash(path)) {
        *fd = STDIN_FILENO;
        *name = "standard input";
        if (take_stdin(c, in, e)) return e->code;
    } else {
        *name = arena_strdup(&c->arena, path, e);
        if (!*name) return e->code;
        if (name_input(c, in, *name, e)) return e->code;
        *fd = in->fd = open_path(c, path);
        if (*fd < 0) return err_sys(e, errno, "%s", path);
    }
    *out = in;
    return check_kind_of_file(c, *fd, *name, e);
}

int cli_open_stream(struct cli *c, const char *path, const char *role, enum stream_kind expect,
                    struct stream_reader **out, struct err *e) {
    struct cli_input *in;
    const char *name;
    int fd;
    if (open_input(c, path, role, &in, &fd, &name, e)) return e->code;
    if (isatty(fd)) return err_set(e, ERR_USAGE, "%s is a terminal, expected a stream", name);
    if (stream_reader_open(&in->reader, fd, name, expect, e)) {
        in->reader = NULL;
        return e->code;
    }
    *out = in->reader;
    return 0;
}

int cli_open_map(struct cli *c, const char *path, const char *role, enum stream_kind expect, struct stream_map **out,
                 struct err *e) {
    struct cli_input *in;
    if (add_input(c, role, &in, e)) return e->code;
    if (is_dash(path)) {
        if (take_stdin(c, in, e)) return e->code;
        path = "/dev/stdin"; /* reopens a regular file; messages still say standard input */
    } else {
        const char *copy = arena_strdup(&c->arena, path, e);
        if (!copy || name_input(c, in, copy, e)) return e->code;
    }
    if (stream_map_open(&in->map, path, expect, e)) {
        in->map = NULL;
        return e->code;
    }
    *out = in->map;
    return 0;
}

int cli_open_file(struct cli *c, const char *path, const char *role, struct cli_file **out, struct err *e) {
    struct cli_input *in;
    struct cli_file *f = arena_array(&c->arena, 1, sizeof *f, e);
    struct stat st;
    if (!f) return e->code;
    if (open_input(c, path, role, &in, &f->fd, &f->name, e)) return e->code;
    f->digest = digest_new(e);
    if (!f->digest) return e->code;
    if (fstat(f->fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0) f->size = (uint64_t)st.st_size;
    in->file = f;
    *out = f;
    return 0;
}

int cli_file_read(struct cli_file *f, void *dst, size_t n, size_t *got, struct err *e) {
    unsigned char *at = dst;
    *got = 0;
    while (*got < n && !f->ended) {
        ssize_t r = fd_read(f->fd, at + *got, n - *got);
        if (r < 0) return err_sys(e, errno, "%s", f->name);
        if (r == 0) f->ended = true;
        *got += (size_t)r;
    }
    digest_update(f->digest, dst, *got);
    return 0;
}

int cli_file_read_all(struct cli_file *f, size_t most, struct buf *out, struct err *e) {
    enum { PIECE = 65536 };
    size_t got = 1;
    while (got && out->len <= most) {
        if (buf_reserve(out, PIECE, e) || cli_file_read(f, out->data + out->len, PIECE, &got, e)) return e->code;
        out->len += got;
    }
    return 0;
}

void cli_file_stop(struct cli_file *f) {
    if (f->size == 0) f->ended = true;
}

void cli_file_close(struct cli *c, struct cli_file *f) {
    for (struct cli_input *in = c->inputs; in && f->ended; in = in->next) {
        if (in->file != f || in->fd < 0) continue;
        close(in->fd);
        in->fd = f->fd = -1;
    }
}

const char *cli_file_name(const struct cli_file *f) {
    return f->name;
}
uint64_t cli_file_size(const struct cli_file *f) {
    return f->size;
}

int cli_note_input(struct cli *c, const char *path, const char *role, struct digest digest, struct err *e) {
    struct cli_input *in;
    if (add_input(c, role, &in, e)) return e->code;
    const char *copy = arena_strdup(&c->arena, path, e);
    if (!copy) return e->code;
    in->digest = digest;
    return name_input(c, in, copy, e);
}

static int finish_file(struct cli_file *f, struct err *e) {
    char block[16384];
    size_t got = 1;
    while (got)
        if (cli_file_read(f, block, sizeof block, &got, e)) return e->code;
    return 0;
}

int inputs_finish(struct cli *c, struct err *e) {
    struct stream_totals totals;
    for (struct cli_input *in = c->inputs; in; in = in->next) {
        if (in->reader) {
            if (stream_drain(in->reader, e)) return e->code;
            stream_reader_totals(in->reader, &totals);
            in->digest = totals.digest;
        } else if (in->map) {
            if (stream_map_totals(in->map, &totals, e)) return e->code;
            in->digest = totals.digest;
        } else if (in->file) {
            if (finish_file(in->file, e)) return e->code;
            in->digest = digest_get(in->file->digest);
        }
    }
    return 0;
}

const cJSON *input_prov(const struct cli_input *in) {
    if (in->reader) return stream_reader_prov(in->reader);
    return in->map ? stream_map_prov(in->map) : NULL;
}

void inputs_release(struct cli *c) {
    for (struct cli_input *in = c->inputs; in; in = in->next) {
        stream_reader_free(in->reader);
        stream_map_free(in->map);
        if (in->file) digest_free(in->file->digest);
        if (in->fd >= 0) close(in->fd);
    }
    c->inputs = NULL;
    drop_peeked(c);
}
