/* Small streams in memory for the tests of lib/stream. */
#ifndef RILL_TESTS_STREAM_SAMPLES_H
#define RILL_TESTS_STREAM_SAMPLES_H

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "lib/stream/stream_internal.h"

/* The call must return 0; otherwise fails with the message of its `struct err e`. */
#define OK(call)                                                                                                       \
    do {                                                                                                               \
        if ((call) != 0) fail_msg("%s: %s", #call, e.msg);                                                             \
    } while (0)

/* Creates an empty file in memory. */
static inline int memory_file(void) {
    int fd = memfd_create("rill-test", MFD_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

static inline int file_of(const void *data, size_t n) {
    int fd = memory_file();
    assert_int_equal(write(fd, data, n), n);
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    return fd;
}

/* Returns all bytes of a file and closes it. */
static inline struct buf contents(int fd) {
    struct err e;
    struct buf b = {0};
    off_t n = lseek(fd, 0, SEEK_END);
    OK(buf_reserve(&b, (size_t)n + 1, &e));
    assert_int_equal(pread(fd, b.data, (size_t)n, 0), n);
    b.len = (size_t)n;
    close(fd);
    return b;
}

static inline cJSON *json_of(const char *text) {
    struct err e;
    cJSON *j = json_parse(text, strlen(text), &e);
    if (!j) fail_msg("%s", e.msg);
    return j;
}

static inline struct tensor_desc desc_of(const char *name, enum dtype dtype, unsigned rank, const uint64_t *dims) {
    struct err e;
    struct tensor_desc d;
    OK(tensor_desc_init(&d, name, dtype, rank, dims, &e));
    return d;
}

static inline void put_meta(struct stream_writer *w, const char *text) {
    struct err e;
    cJSON *j = json_of(text);
    OK(stream_write_meta(w, j, &e));
    cJSON_Delete(j);
}

static inline void put_prov(struct stream_writer *w, const char *text) {
    struct err e;
    cJSON *j = json_of(text);
    OK(stream_write_prov(w, j, &e));
    cJSON_Delete(j);
}

/* Fixed f32 values: a fraction of the hash of a counter. */
static inline void fill_f32(float *x, size_t n, uint32_t seed) {
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(((uint32_t)i * 2654435761u + seed * 40503u) >> 8 & 0xffff) / 65536.0f - 0.5f;
}

static inline void put_f32(struct stream_writer *w, const char *name, size_t rows, size_t cols, const char *attrs) {
    struct err e;
    struct tensor_desc d = desc_of(name, DT_F32, 2, (uint64_t[]){rows, cols});
    float *x = mem_alloc(rows * cols * 4, &e);
    cJSON *a = attrs ? json_of(attrs) : NULL;
    fill_f32(x, rows * cols, (uint32_t)strlen(name));
    OK(stream_write_tensor(w, &d, a, x, &e));
    cJSON_Delete(a);
    mem_free(x);
}

/* A model segment: META, VOCB, two matrices and an empty tensor, PROV. */
static inline void put_model(struct stream_writer *w) {
    struct err e;
    put_meta(w, "{\"kind\":\"model\",\"arch\":\"test\"}");
    OK(stream_write_vocab(w, "vocabulary", 10, &e));
    put_f32(w, "a.weight", 3, 8, "{\"scale\":0.5}");
    put_f32(w, "b", 1, 5, NULL);
    put_prov(w, "{\"id\":\"xxh3:00000000000000000000000000000001\",\"tool\":\"test\"}");
}

static inline void put_u32(struct stream_writer *w, const char *name, const uint32_t *x, size_t n) {
    struct err e;
    struct tensor_desc d = desc_of(name, DT_U32, 1, (uint64_t[]){n});
    OK(stream_write_tensor(w, &d, NULL, x, &e));
}

static inline void put_batch(struct stream_writer *w, struct stream_batch b, const uint32_t *tokens,
                             const uint32_t *lengths) {
    struct err e;
    b.n_tensors = 2;
    OK(stream_write_batch(w, &b, &e));
    put_u32(w, "tokens", tokens, b.n_positions);
    put_u32(w, "lengths", lengths, b.n_seqs);
}

/* A tokens segment: two batches; the second sequence spans both. */
static inline void put_tokens(struct stream_writer *w) {
    put_meta(w, "{\"kind\":\"tokens\"}");
    put_batch(w, (struct stream_batch){.n_seqs = 2, .n_positions = 5, .flags = BATCH_CONTINUES},
              (uint32_t[]){1, 2, 3, 4, 5}, (uint32_t[]){3, 2});
    put_batch(w, (struct stream_batch){.first_seq = 1, .first_pos = 2, .n_seqs = 1, .n_positions = 2},
              (uint32_t[]){6, 7}, (uint32_t[]){2});
    put_prov(w, "{\"id\":\"xxh3:00000000000000000000000000000002\",\"tool\":\"test\"}");
}

typedef void put_fn(struct stream_writer *w);
/* A stream with one segment per function. */
static inline struct buf stream_of(const struct stream_write_options *o, put_fn *first, put_fn *second) {
    struct err e;
    struct stream_writer *w;
    int fd = memory_file();
    OK(stream_writer_open(&w, fd, "out", o, &e));
    first(w);
    if (second) {
        OK(stream_writer_segment(w, &e));
        second(w);
    }
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    return contents(fd);
}

/* Reads everything and decodes every tensor. Returns the error code; the message is in *e. */
static inline int read_all(int fd, struct stream_totals *totals, struct err *e) {
    struct stream_reader *r;
    struct stream_item item;
    struct buf data = {0};
    int code = stream_reader_open(&r, fd, "in", STREAM_ANY, e);
    if (code) return code;
    do {
        code = stream_next(r, &item, e);
        if (!code && item.type == ITEM_TENSOR) code = stream_load_tensor(r, &data, e);
    } while (!code && item.type != ITEM_EOF);
    if (totals) stream_reader_totals(r, totals);
    buf_release(&data);
    stream_reader_free(r);
    return code;
}

/* read_all of bytes, through one file that is reused: tests do this thousands of times. */
static inline int read_bytes(const void *data, size_t n, struct err *e) {
    static int fd = -1;
    if (fd < 0) fd = memory_file();
    assert_int_equal(ftruncate(fd, (off_t)n), 0);
    assert_int_equal(pwrite(fd, data, n, 0), n);
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    return read_all(fd, NULL, e);
}

/* Both streams must have the same items with the same content, however each item is stored. */
static inline void assert_same_content(const struct buf *a, const struct buf *b) {
    struct err e;
    struct stream_reader *r[2];
    struct stream_item item[2];
    struct buf data[2] = {{0}, {0}};
    int fd[2] = {file_of(a->data, a->len), file_of(b->data, b->len)};
    for (int i = 0; i < 2; i++) OK(stream_reader_open(&r[i], fd[i], "in", STREAM_ANY, &e));
    do {
        for (int i = 0; i < 2; i++) {
            OK(stream_next(r[i], &item[i], &e));
            data[i].len = 0;
            if (item[i].type == ITEM_TENSOR) OK(stream_load_tensor(r[i], &data[i], &e));
        }
        assert_int_equal(item[0].type, item[1].type);
        assert_memory_equal(&item[0].desc, &item[1].desc, sizeof item[0].desc);
        assert_memory_equal(&item[0].batch, &item[1].batch, sizeof item[0].batch);
        assert_true(!item[0].json || cJSON_Compare(item[0].json, item[1].json, true));
        assert_int_equal(!item[0].attrs, !item[1].attrs);
        assert_true(!item[0].attrs || cJSON_Compare(item[0].attrs, item[1].attrs, true));
        assert_int_equal(item[0].n_bytes, item[1].n_bytes);
        if (item[0].type == ITEM_VOCAB) assert_memory_equal(item[0].bytes, item[1].bytes, item[0].n_bytes);
        assert_int_equal(data[0].len, data[1].len);
        if (data[0].len) assert_memory_equal(data[0].data, data[1].data, data[0].len);
    } while (item[0].type != ITEM_EOF);
    for (int i = 0; i < 2; i++) {
        stream_reader_free(r[i]);
        buf_release(&data[i]);
        close(fd[i]);
    }
}

/* Flipping any bit of the stream must be an error. Releases b. */
static inline void notices_flips_in(struct buf b) {
    struct err e;
    for (size_t i = 0; i < 8 * b.len; i++) {
        b.data[i / 8] ^= (unsigned char)(1 << i % 8);
        if (read_bytes(b.data, b.len, &e) != ERR_DATA) fail_msg("bit %zu of byte %zu", i % 8, i / 8);
        b.data[i / 8] ^= (unsigned char)(1 << i % 8);
    }
    OK(read_bytes(b.data, b.len, &e));
    buf_release(&b);
}

/* Returns a pipe to read the bytes from; if they do not fit into it, a child process writes them. */
static inline int pipe_of(const void *data, size_t n, pid_t *child) {
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    *child = 0;
    if (n <= 65536) {
        assert_int_equal(write(fds[1], data, n), n);
    } else if ((*child = fork()) == 0) {
        for (const unsigned char *p = data; n > 0;) {
            ssize_t w = write(fds[1], p, n < 7777 ? n : 7777); /* in uneven pieces */
            if (w < 0) _exit(1);
            p += w;
            n -= (size_t)w;
        }
        _exit(0);
    }
    close(fds[1]);
    return fds[0];
}

static inline int read_piped(const void *data, size_t n, struct err *e) {
    pid_t child;
    int fd = pipe_of(data, n, &child), code = read_all(fd, NULL, e);
    close(fd);
    if (child) waitpid(child, NULL, 0);
    return code;
}

#endif
