/*
 * Tests of streams when memory or disk space runs out: always an error, never a stream that looks complete. And of
 * streams in little memory.
 */
#include "tests/unit/stream_samples.h"

#include <signal.h>
#include <sys/resource.h>

static const struct stream_write_options codings[] = {{.codec = CODEC_RAW},
                                                      {.codec = CODEC_ZSTD, .chunk_bytes = 300},
                                                      {.codec = CODEC_PLANES, .chunk_bytes = 300},
                                                      {.codec = CODEC_SPARSE, .chunk_bytes = 300}};

/* ---- the n-th allocation fails, for all n ------------------------------------------------------------------------ */

static int write_model(int fd, const struct stream_write_options *o, const struct buf *in, struct err *e) {
    struct stream_writer *w;
    struct stream_reader *r = NULL;
    struct stream_copier *k = NULL;
    int from = file_of(in->data, in->len);
    int code = stream_writer_open(&w, fd, "out", o, e);
    if (code) {
        close(from);
        return code;
    }
    code = stream_reader_open(&r, from, "in", STREAM_ANY, e);
    if (!code) code = stream_copier_new(&k, w, &(struct stream_copy_options){.recode = true}, e);
    if (!code) code = stream_copier_add(k, r, e);
    if (!code) code = stream_writer_finish(w, NULL, e);
    stream_copier_free(k);
    stream_reader_free(r);
    stream_writer_free(w);
    close(from);
    return code;
}

static void out_of_memory_is_an_error(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT_OF(codings); i++) {
        struct buf in = stream_of(&codings[(i + 1) % 3], put_model, put_tokens), want = {0};
        uint64_t n = 0;
        int code;
        do {
            struct err e = {0};
            int fd = memory_file();
            mem_fail_at(++n);
            code = write_model(fd, &codings[i], &in, &e);
            mem_fail_at(0);
            want = contents(fd);
            if (code) {
                if (code != ERR_IO || !strstr(e.msg, "out of memory")) fail_msg("allocation %d: %s", (int)n, e.msg);
                assert_int_equal(read_bytes(want.data, want.len, &e), ERR_DATA);
                buf_release(&want);
            }
        } while (code && n < 10000);
        struct err e;
        assert_true(n > 20 && n < 10000);
        OK(read_bytes(want.data, want.len, &e));
        buf_release(&in);
        buf_release(&want);
    }
}

static int read_batches(int fd, struct err *e) {
    struct stream_reader *r;
    struct batch batch = {0};
    bool more = true;
    int code = stream_reader_open(&r, fd, "in", STREAM_TOKENS, e);
    if (code) return code;
    while (!code && more) code = batch_read(r, &batch, &more, e);
    batch_release(&batch);
    stream_reader_free(r);
    return code;
}

/* Fails each allocation in turn, until `use` succeeds. */
static void out_of_memory_in(int (*use)(int fd, struct err *e), const struct buf *b) {
    int fd = file_of(b->data, b->len), code;
    uint64_t n = 0;
    do {
        struct err e = {0};
        assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
        mem_fail_at(++n);
        code = use(fd, &e);
        mem_fail_at(0);
        if (code && (code != ERR_IO || !strstr(e.msg, "out of memory"))) fail_msg("allocation %d: %s", (int)n, e.msg);
    } while (code && n < 10000);
    assert_true(n > 10 && n < 10000);
    close(fd);
}

static int ignore_pair(void *ctx, const struct stream_pair *p, struct err *e) {
    (void)ctx, (void)p, (void)e;
    return 0;
}

static int compare_maps(int fd, struct err *e) {
    struct stream_reader *r;
    struct stream_map *m;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int code = stream_map_open(&m, path, STREAM_MODEL, e);
    if (code) return code;
    code = stream_reader_open(&r, fd, "in", STREAM_MODEL, e);
    if (!code) {
        code = stream_compare_map(r, m, ignore_pair, NULL, e);
        stream_reader_free(r);
    }
    stream_map_free(m);
    return code;
}

static void out_of_memory_anywhere_else(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT_OF(codings); i++) {
        struct buf model = stream_of(&codings[i], put_model, NULL), tokens = stream_of(&codings[i], put_tokens, NULL);
        out_of_memory_in(compare_maps, &model);
        out_of_memory_in(read_batches, &tokens);
        buf_release(&model);
        buf_release(&tokens);
    }
}

/* ---- the disk is full after n bytes, for all n ------------------------------------------------------------------- */

static void put_some_megabytes(struct stream_writer *w) {
    put_model(w);
    put_f32(w, "large", 700, 1024, NULL); /* bypasses the output buffer */
    put_f32(w, "after", 4, 4, NULL);
}

/* The samples' put functions cannot fail, so the items are forwarded. */
static int copy_within(const struct buf *in, rlim_t limit, struct buf *out, struct err *e) {
    struct rlimit before, now;
    int fd = memory_file();
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    int from = file_of(in->data, in->len), code;
    struct stream_reader *r;
    struct stream_writer *w;
    struct stream_item item = {.type = ITEM_META};
    if (stream_reader_open(&r, from, "in", STREAM_ANY, e)) fail_msg("%s", e->msg);
    now = before;
    now.rlim_cur = limit;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &now), 0);
    code = stream_writer_open(&w, fd, "out", NULL, e);
    while (!code && item.type != ITEM_SEGMENT_END) {
        code = stream_next(r, &item, e);
        if (!code && item.type != ITEM_SEGMENT_END) code = stream_forward(r, w, &item, e);
    }
    if (!code) code = stream_writer_finish(w, NULL, e);
    if (code) stream_writer_abort(w, "the disk is full");
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    stream_writer_free(w);
    stream_reader_free(r);
    close(from);
    *out = contents(fd);
    return code;
}

static void a_disk_that_fills_up_is_an_error(void **state) {
    (void)state;
    struct buf in = stream_of(NULL, put_some_megabytes, NULL), out;
    sighandler_t handler = signal(SIGXFSZ, SIG_IGN);
    rlim_t step = 64;
    for (rlim_t n = 0; n <= in.len; n += step) {
        struct err e = {0};
        int code = copy_within(&in, n, &out, &e);
        if (n < in.len && code != ERR_IO) fail_msg("%d bytes of %d: code %d", (int)n, (int)in.len, code);
        if (n == in.len && code) fail_msg("%s", e.msg);
        if (n < in.len) assert_int_equal(read_bytes(out.data, out.len, &e), ERR_DATA);
        if (n < in.len) assert_true(out.len <= n);
        buf_release(&out);
        step = n > 4096 && n + 4096 < in.len ? 204800 : 64;
        if (n + step > in.len && n < in.len) step = in.len - n;
    }
    signal(SIGXFSZ, handler);
    buf_release(&in);
}

/* ---- a tensor much larger than memory ---------------------------------------------------------------------------- */

enum { TENSOR = 96 << 20, MEMORY = 24 << 20 };

static void limit_memory(void) {
    struct rlimit now;
    long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f || fscanf(f, "%ld", &pages) != 1 || getrlimit(RLIMIT_AS, &now)) _exit(90);
    fclose(f);
    now.rlim_cur = (rlim_t)pages * 4096 + MEMORY;
    if (setrlimit(RLIMIT_AS, &now)) _exit(91);
}

/* Writes the tensor in pieces of 64 KiB. */
static int write_large(int fd) {
    static unsigned char piece[65536];
    struct err e;
    struct stream_writer *w;
    struct tensor_desc d = desc_of("large", DT_U8, 1, (uint64_t[]){TENSOR});
    if (stream_writer_open(&w, fd, "out", NULL, &e)) return 1;
    put_meta(w, "{\"kind\":\"stats\"}");
    if (stream_begin_tensor(w, &d, NULL, &e)) return 2;
    for (size_t i = 0; i < TENSOR / sizeof piece; i++)
        if (stream_write_data(w, piece, sizeof piece, &e)) return 3;
    return stream_end_tensor(w, &e) || stream_writer_finish(w, NULL, &e) ? 4 : 0;
}

static int forward_all(int from, int to) {
    struct err e;
    struct stream_reader *r;
    struct stream_writer *w;
    struct stream_item item;
    if (stream_reader_open(&r, from, "in", STREAM_ANY, &e) || stream_writer_open(&w, to, "out", NULL, &e)) return 1;
    do {
        if (stream_next(r, &item, &e)) return 2;
        if (item.type < ITEM_SEGMENT_END && stream_forward(r, w, &item, &e)) return 3;
    } while (item.type != ITEM_EOF);
    return stream_writer_finish(w, NULL, &e) ? 4 : 0;
}

static int read_large(int fd) {
    static unsigned char piece[65536];
    struct err e;
    struct stream_reader *r;
    struct stream_item item;
    size_t got = 1, all = 0;
    if (stream_reader_open(&r, fd, "in", STREAM_ANY, &e) || stream_next(r, &item, &e) || stream_next(r, &item, &e))
        return 1;
    for (; got; all += got)
        if (stream_read_data(r, piece, sizeof piece, &got, &e)) return 2;
    return all != TENSOR || stream_drain(r, &e) ? 3 : 0;
}

/* writer | forwarder | reader, each with little more memory than its buffers. */
static void large_tensors_need_little_memory(void **state) {
    (void)state;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    skip(); /* their shadow memory exceeds such a limit */
#endif
    int a[2], b[2], status;
    pid_t children[3];
    assert_int_equal(pipe(a), 0);
    assert_int_equal(pipe(b), 0);
    for (int i = 0; i < 3; i++) {
        if ((children[i] = fork()) != 0) continue;
        limit_memory();
        if (i != 0) close(a[1]);
        if (i != 1) close(b[1]);
        _exit(i == 0 ? write_large(a[1]) : i == 1 ? forward_all(a[0], b[1]) : read_large(b[0]));
    }
    close(a[0]), close(a[1]), close(b[0]), close(b[1]);
    for (int i = 0; i < 3; i++) {
        waitpid(children[i], &status, 0);
        if (!WIFEXITED(status) || WEXITSTATUS(status))
            fail_msg("process %d ended with status 0x%x", i, (unsigned)status);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(out_of_memory_is_an_error),
        cmocka_unit_test(out_of_memory_anywhere_else),
        cmocka_unit_test(a_disk_that_fills_up_is_an_error),
        cmocka_unit_test(large_tensors_need_little_memory),
    };
    return cmocka_run_group_tests_name("stream-faults", tests, NULL, NULL);
}
