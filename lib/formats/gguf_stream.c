/*
 * Writes GGUF from a stream that is read once, into files that can be written at any position. The size of a header
 * follows from the tensors' names and shapes, which the stream's head determines; types and offsets are known at the
 * end, when the header is written in front of the data.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/formats/arch_internal.h"

struct job {
    struct gguf_out o;
    struct arrivals a;
    struct model_head head;
    struct stream_item item;
    const char *name;        /* the model's, or NULL */
    struct gguf_header keys; /* the model's; general.file_type is wrong until the types are known */
};

static enum dtype type_of(void *ctx, const struct out_tensor *t) {
    (void)ctx;
    return gguf_out_type(t);
}

static int arrive(void *ctx, struct model_slot s, const struct tensor_desc *d, const cJSON *attrs, const void *data,
                  struct err *e) {
    (void)attrs;
    struct job *j = ctx;
    return arrivals_take(&j->a, s, d, data, e);
}

/* ctx: argument of the callbacks in j->a, which the caller has set. */
static int open_job(struct job *j, void *ctx, struct err *e) {
    int rc = gguf_out_open_arriving(&j->o, &j->head, e);
    if (rc) return rc;
    j->a.x = &j->o.x;
    j->a.tensors = &j->o.tensors;
    j->a.interleaved = j->o.name->interleaved;
    j->a.type = type_of;
    j->a.ctx = ctx;
    j->keys.e = e;
    return arrivals_begin(&j->a, e);
}

static int take_all(struct job *j, struct stream_reader *in, struct err *e) {
    int rc = model_each_tensor(in, &j->head.config, &j->item, arrive, j, e);
    if (!rc) rc = arrivals_end(&j->a, e);
    if (!rc) rc = stream_drain(in, e);
    return rc ? rc : gguf_out_label(&j->keys, &j->o, e);
}

static void close_job(struct job *j) {
    buf_release(&j->keys.bytes);
    export_release(&j->o.x);
    model_head_release(&j->head);
}

static int go_to(int fd, uint64_t at, struct err *e) {
    return lseek(fd, (off_t)at, SEEK_SET) < 0 ? err_sys(e, errno, "seek") : 0;
}

static int pad_after(int fd, uint64_t end, uint64_t padded, struct err *e) {
    static const unsigned char zeros[GGUF_DEFAULT_ALIGNMENT];
    return padded > end ? write_at(fd, end, zeros, padded - end, e) : 0;
}

/* *bytes, *n = size and number of the rotary factor tensors, which precede the others. */
static int rope_bytes(const struct gguf_out *o, uint64_t *bytes, uint32_t *n, struct err *e) {
    struct gguf_header rope = {.e = e};
    gguf_put_rope_tensors(&rope, &o->x.config);
    *bytes = rope.data_bytes;
    *n = (uint32_t)rope.n_tensors;
    buf_release(&rope.bytes);
    return rope.rc;
}

static int put_rope(const struct gguf_out *o, int fd, uint64_t at, struct err *e) {
    int rc = go_to(fd, at, e);
    return rc ? rc : gguf_write_rope_tensors(&o->x.config, fd, e);
}

/* ---- one file ---- */

struct single {
    struct job j;
    int fd;
    uint64_t end; /* of all data so far */
};

static int place_single(void *ctx, size_t i, uint64_t bytes, int *fd, uint64_t *at, struct err *e) {
    struct single *s = ctx;
    if (gguf_out_check_type(&s->j.o.tensors.items[i], e)) return e->code;
    *fd = s->fd;
    *at = s->end;
    s->end += gguf_padded(bytes);
    return pad_after(*fd, *at + bytes, s->end, e);
}

/* Can earlier parts of the file be overwritten? Not in append mode. */
static bool goes_back(int fd) {
    struct stat st;
    int flags = fcntl(fd, F_GETFL);
    return fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && flags >= 0 && !(flags & O_APPEND);
}

/* Writes the header for the current types at the file position. */
static int put_header(struct single *s, struct err *e) {
    struct gguf_header infos = {.e = e};
    gguf_out_infos(&infos, &s->j.o, (struct gguf_range){0, s->j.o.tensors.n});
    int rc = infos.rc ? infos.rc : gguf_write_header(s->fd, &s->j.keys, &infos, e);
    buf_release(&infos.bytes);
    return rc;
}

/* Until the header is written, the file begins with zeros, so that an incomplete one is not a valid GGUF. */
static int write_single(struct single *s, struct stream_reader *in, struct err *e) {
    struct gguf_header infos = {.e = e};
    uint64_t before;
    uint32_t n_rope;
    off_t start = lseek(s->fd, 0, SEEK_CUR);
    if (start < 0) return err_sys(e, errno, "seek");
    if (gguf_out_keys(&s->j.keys, &s->j.o, s->j.name, e)) return e->code;
    gguf_out_infos(&infos, &s->j.o, (struct gguf_range){0, s->j.o.tensors.n});
    s->end = (uint64_t)start + gguf_header_bytes(&s->j.keys, &infos);
    buf_release(&infos.bytes);
    int rc = infos.rc ? infos.rc : rope_bytes(&s->j.o, &before, &n_rope, e);
    if (!rc) rc = put_rope(&s->j.o, s->fd, s->end, e);
    if (rc) return rc;
    s->end += before;
    rc = take_all(&s->j, in, e);
    if (!rc) rc = go_to(s->fd, (uint64_t)start, e);
    if (!rc) rc = put_header(s, e);
    return rc ? rc : go_to(s->fd, s->end, e); /* later writes are appended */
}

/* Exports a copy of the model, because the header cannot be written last or its size depends on the types. */
static int write_copy(struct job *j, struct stream_reader *in, int fd, struct err *e) {
    struct stream_map *copy = NULL;
    int rc = export_spool(&copy, in, &j->head, &j->item, e);
    if (!rc) rc = gguf_export(copy, fd, j->name, e);
    stream_map_free(copy);
    return rc;
}

int gguf_export_stream(struct stream_reader *in, int fd, const char *name, struct err *e) {
    struct single s = {.j.name = name, .j.a.place = place_single, .fd = fd};
    int rc = model_head_read(in, &s.j.head, &s.j.item, e);
    bool copied = !goes_back(fd);
    if (!rc && !copied) rc = open_job(&s.j, &s, e);
    if (!rc) copied = copied || out_tensors_follow_types(&s.j.o.tensors, &s.j.o.x);
    if (!rc) rc = copied ? write_copy(&s.j, in, fd, e) : write_single(&s, in, e);
    close_job(&s.j);
    return rc;
}

/* ---- in parts ---- */

/* A part; until its header is known, its data are in an unnamed file. */
struct part {
    int fd;
    uint64_t end;
    struct gguf_range range;
    size_t missing; /* number of incomplete tensors */
    bool written;
};
struct parts {
    struct job j;
    struct out_folder folder;
    uint64_t limit, before_first;
    uint32_t n_tensors, n, first_open;
    struct part *items; /* [n], all parts */
    struct buf memory;
    size_t *part_of; /* by tensor */
};

static const char *provisional(char out[16], uint32_t no) {
    snprintf(out, 16, "%05u", no);
    return out;
}

static int in_folder(const struct parts *p, const char *name, int flags, int *fd, struct err *e) {
    *fd = openat(p->folder.dir, name, flags | O_CLOEXEC, 0666);
    return *fd < 0 ? err_sys(e, errno, "%s/%s", p->folder.place.path, name) : 0;
}

static int begin_part(struct parts *p, size_t from, struct err *e) {
    struct part new = {.range = {from, from}, .fd = -1};
    if (p->n == GGUF_MAX_PARTS)
        return err_set(e, ERR_USAGE, "more than %u parts of %llu bytes, and a GGUF has no more: they must be larger",
                       GGUF_MAX_PARTS, (unsigned long long)p->limit);
    int rc = in_folder(p, "data", O_RDWR | O_CREAT | O_EXCL, &new.fd, e);
    if (rc) return rc;
    if (unlinkat(p->folder.dir, "data", 0) != 0) rc = err_sys(e, errno, "%s/data", p->folder.place.path);
    if (!rc && from == 0) rc = put_rope(&p->j.o, new.fd, 0, e);
    if (from == 0) new.end = p->before_first;
    if (!rc) rc = buf_append(&p->memory, &new, sizeof new, e);
    if (rc) {
        close(new.fd);
        return rc;
    }
    p->items = (void *)p->memory.data;
    p->n++;
    return 0;
}

static int place_in_part(void *ctx, size_t i, uint64_t bytes, int *fd, uint64_t *at, struct err *e) {
    struct parts *p = ctx;
    struct part *last = p->n ? &p->items[p->n - 1] : NULL;
    uint64_t padded = gguf_padded(bytes);
    if (gguf_out_check_type(&p->j.o.tensors.items[i], e)) return e->code;
    if (!last || (i > last->range.from && last->end + padded > p->limit)) {
        if (begin_part(p, i, e)) return e->code;
        last = &p->items[p->n - 1];
    }
    p->part_of[i] = p->n - 1;
    *fd = last->fd;
    *at = last->end;
    last->end += padded;
    last->range.to = i + 1;
    last->missing++;
    return pad_after(*fd, *at + bytes, last->end, e);
}

static int copy_data(int from, int to, uint64_t n, struct err *e) {
    enum { BLOCK = 1 << 20 };
    unsigned char *block = mem_array(BLOCK, 1, e);
    int rc = block ? go_to(from, 0, e) : e->code;
    while (n && !rc) {
        ssize_t got = fd_read(from, block, n < BLOCK ? n : BLOCK);
        if (got <= 0)
            rc = err_sys(e, got ? errno : EIO, "data of a part");
        else if (!fd_write(to, block, (size_t)got))
            rc = err_sys(e, errno, "write");
        else
            n -= (uint64_t)got;
    }
    mem_free(block);
    return rc;
}

/* Writes the header, with the number of parts so far, and the first time the data after it. */
static int write_part(struct parts *p, uint32_t no, int fd, struct err *e) {
    const struct part *part = &p->items[no];
    struct gguf_header own = {.e = e}, infos = {.e = e}, *keys = no == 0 ? &p->j.keys : &own;
    uint64_t n_keys = keys->n_keys;
    size_t n_bytes = keys->bytes.len;
    gguf_put_split(keys, no, p->n, p->n_tensors);
    gguf_out_infos(&infos, &p->j.o, part->range);
    int rc = keys->rc ? keys->rc : infos.rc;
    if (!rc) rc = gguf_write_header(fd, keys, &infos, e);
    if (!rc && part->fd >= 0) rc = copy_data(part->fd, fd, part->end, e);
    keys->n_keys = n_keys; /* removes the keys of this part again */
    keys->bytes.len = n_bytes;
    buf_release(&own.bytes);
    buf_release(&infos.bytes);
    return rc;
}

static int close_part(struct parts *p, uint32_t no, struct err *e) {
    char name[16];
    int fd, rc = out_folder_create(&p->folder, provisional(name, no), &fd, e);
    if (rc) return rc;
    rc = write_part(p, no, fd, e);
    close(p->items[no].fd);
    p->items[no].fd = -1;
    if (close(fd) != 0 && !rc) rc = err_sys(e, errno, "%s/%s", p->folder.place.path, name);
    return rc;
}

/* Writes the parts that will get no more tensors; `all`: including the last. */
static int close_parts(struct parts *p, bool all, struct err *e) {
    int rc = 0;
    for (; !rc && p->first_open + !all < p->n && p->items[p->first_open].missing == 0; p->first_open++)
        rc = close_part(p, p->first_open, e);
    return rc;
}

static int done_in_part(void *ctx, size_t i, struct err *e) {
    struct parts *p = ctx;
    p->items[p->part_of[i]].missing--;
    return close_parts(p, false, e);
}

/* Gives a part its final name and header, once the number of parts is known. */
static int name_part(struct parts *p, uint32_t no, struct err *e) {
    char own[16];
    const char *name = gguf_part_name(&p->j.o.x.memory, "model", strlen("model"), no, p->n, e);
    int fd = -1, rc = name ? in_folder(p, provisional(own, no), O_WRONLY, &fd, e) : e->code;
    if (rc) return rc;
    rc = write_part(p, no, fd, e);
    if (rc)
        close(fd);
    else
        rc = out_folder_close(&p->folder, name, fd, e);
    if (!rc && renameat(p->folder.dir, own, p->folder.dir, name) != 0)
        rc = err_sys(e, errno, "%s/%s", p->folder.place.path, name);
    return rc;
}

static int write_parts(struct parts *p, struct stream_reader *in, const char *folder, struct err *e) {
    uint32_t n_rope;
    int rc = gguf_out_keys(&p->j.keys, &p->j.o, p->j.name, e);
    if (!rc) rc = rope_bytes(&p->j.o, &p->before_first, &n_rope, e);
    if (rc) return rc;
    p->n_tensors = (uint32_t)(n_rope + p->j.o.tensors.n);
    p->part_of = arena_array(&p->j.o.x.memory, p->j.o.tensors.n, sizeof *p->part_of, e);
    rc = p->part_of ? out_folder_begin(&p->folder, folder, e) : e->code;
    if (!rc) rc = take_all(&p->j, in, e);
    if (!rc) rc = close_parts(p, true, e);
    for (uint32_t no = 0; no < p->n && !rc; no++) rc = name_part(p, no, e);
    return rc ? rc : out_folder_commit(&p->folder, e);
}

int gguf_export_stream_parts(struct stream_reader *in, const char *folder, uint64_t limit, const char *name,
                             struct err *e) {
    struct parts p = {.j.name = name,
                      .j.a.place = place_in_part,
                      .j.a.done = done_in_part,
                      .folder = OUT_FOLDER_NONE,
                      .limit = limit};
    struct stream_map *copy = NULL;
    int rc = model_head_read(in, &p.j.head, &p.j.item, e);
    if (!rc) rc = open_job(&p.j, &p, e);
    if (!rc && out_tensors_follow_types(&p.j.o.tensors, &p.j.o.x)) {
        rc = export_spool(&copy, in, &p.j.head, &p.j.item, e);
        if (!rc) rc = gguf_export_parts(copy, folder, limit, name, e);
    } else if (!rc) {
        rc = write_parts(&p, in, folder, e);
    }
    for (uint32_t no = 0; no < p.n; no++)
        if (p.items[no].fd >= 0) close(p.items[no].fd);
    buf_release(&p.memory);
    out_folder_release(&p.folder);
    stream_map_free(copy);
    close_job(&p.j);
    return rc;
}
