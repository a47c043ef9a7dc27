/* Tests of streams: what is written is read back, cuts and flips are detected, pipes and threads make no difference. */
#include "tests/unit/stream_samples.h"

#include <signal.h>

static const struct stream_write_options all_codecs[] = {{.codec = CODEC_RAW},
                                                         {.codec = CODEC_ZSTD},
                                                         {.codec = CODEC_PLANES},
                                                         {.codec = CODEC_PLANES, .level = 3},
                                                         {.codec = CODEC_ZSTD, .chunk_bytes = 300},
                                                         {.codec = CODEC_PLANES, .chunk_bytes = 300},
                                                         {.codec = CODEC_SPARSE}};

static void gives_back_what_was_written(void **state) {
    (void)state;
    struct err e;
    for (size_t i = 0; i < COUNT_OF(all_codecs); i++) {
        struct buf b = stream_of(&all_codecs[i], put_model, NULL);
        int fd = file_of(b.data, b.len);
        struct stream_reader *r;
        struct stream_item item;
        float x[24], want[24];
        OK(stream_reader_open(&r, fd, "in", STREAM_MODEL, &e));
        OK(stream_next(r, &item, &e));
        assert_int_equal(item.type, ITEM_META);
        assert_string_equal(cJSON_GetObjectItem(item.json, "arch")->valuestring, "test");
        OK(stream_next(r, &item, &e));
        assert_int_equal(item.type, ITEM_VOCAB);
        assert_int_equal(item.n_bytes, 10);
        assert_memory_equal(item.bytes, "vocabulary", 10);
        OK(stream_next(r, &item, &e));
        assert_int_equal(item.type, ITEM_TENSOR);
        assert_string_equal(item.desc.name, "a.weight");
        assert_int_equal(item.desc.rank, 2);
        assert_int_equal(item.desc.dims[0], 3);
        assert_int_equal(item.desc.dims[1], 8);
        assert_true(cJSON_GetObjectItem(item.attrs, "scale")->valuedouble == 0.5);
        OK(stream_read_tensor(r, x, sizeof x, &e));
        fill_f32(want, 24, 8);
        assert_memory_equal(x, want, sizeof x);
        OK(stream_next(r, &item, &e));
        assert_string_equal(item.desc.name, "b");
        assert_null(item.attrs);
        OK(stream_next(r, &item, &e)); /* its data is skipped */
        assert_int_equal(item.type, ITEM_PROV);
        OK(stream_next(r, &item, &e));
        assert_int_equal(item.type, ITEM_SEGMENT_END);
        OK(stream_next(r, &item, &e));
        assert_int_equal(item.type, ITEM_EOF);
        assert_int_equal(cJSON_GetArraySize(stream_reader_prov(r)), 1);
        stream_reader_free(r);
        close(fd);
        buf_release(&b);
    }
}

static void put_every_type(struct stream_writer *w) {
    struct err e;
    put_meta(w, "{\"kind\":\"checkpoint\"}");
    for (size_t i = 0; dtype_at(i); i++) {
        const struct dtype_info *t = dtype_at(i);
        unsigned char data[3 * 2 * 256 * 8];
        struct tensor_desc d = desc_of(t->name, t->dtype, 2, (uint64_t[]){3, 2 * t->block_elems});
        for (size_t k = 0; k < sizeof data; k++) data[k] = (unsigned char)(k * k >> 7);
        OK(stream_write_tensor(w, &d, NULL, data, &e));
    }
    OK(stream_write_tensor(w, &(struct tensor_desc){.name = "scalar", .dtype = DT_F64}, NULL, &(double){0.1}, &e));
}

static void knows_every_element_type(void **state) {
    (void)state;
    struct err e;
    for (size_t i = 0; i < COUNT_OF(all_codecs); i++) {
        struct buf b = stream_of(&all_codecs[i], put_every_type, NULL), data = {0};
        int fd = file_of(b.data, b.len);
        struct stream_reader *r;
        struct stream_item item;
        OK(stream_reader_open(&r, fd, "in", STREAM_ANY, &e));
        size_t tensors = 0;
        do {
            OK(stream_next(r, &item, &e));
            if (item.type != ITEM_TENSOR) continue;
            tensors++;
            OK(stream_load_tensor(r, &data, &e));
            if (item.desc.rank == 0) continue;
            for (size_t k = 0; k < data.len; k++) assert_int_equal(data.data[k], (unsigned char)(k * k >> 7));
        } while (item.type != ITEM_EOF);
        size_t types = 0;
        while (dtype_at(types)) types++;
        assert_int_equal(tensors, types + 1); /* and the scalar */
        stream_reader_free(r);
        close(fd);
        buf_release(&b);
        buf_release(&data);
    }
}

static void put_shared(struct stream_writer *w) {
    struct err e;
    put_meta(w, "{\"kind\":\"model\",\"arch\":\"test\"}");
    OK(stream_write_vocab(w, "vocabulary", 10, &e));
    put_f32(w, "large", 1500, 1000, NULL);
    put_f32(w, "small", 3, 5, NULL);
    put_f32(w, "larger", 1501, 1000, NULL);
    put_prov(w, "{\"id\":\"xxh3:00000000000000000000000000000001\",\"tool\":\"test\"}");
}

/* Data that is so large that threads share the reading of a file. */
static void reads_large_tensors(void **state) {
    (void)state;
    struct err e;
    struct buf b = stream_of(&all_codecs[0], put_shared, NULL), data = {0};
    float *want = mem_array(1501, 1000 * sizeof *want, &e);
    for (int threads = 1; threads <= 5; threads += 2) {
        struct stream_reader *r;
        struct stream_item item;
        size_t seen = 0;
        parallel_set_threads(threads);
        int fd = file_of(b.data, b.len);
        OK(stream_reader_open(&r, fd, "in", STREAM_MODEL, &e));
        for (;;) {
            OK(stream_next(r, &item, &e));
            if (item.type == ITEM_EOF) break;
            if (item.type != ITEM_TENSOR) continue;
            OK(stream_load_tensor(r, &data, &e));
            fill_f32(want, data.len / 4, (uint32_t)strlen(item.desc.name));
            assert_memory_equal(data.data, want, data.len);
            seen += data.len;
        }
        assert_int_equal(seen, (1500 * 1000 + 3 * 5 + 1501 * 1000) * 4);
        stream_reader_free(r);
        close(fd);
        for (size_t n = 2000; n < b.len; n += 499979) {
            memset(&e, 0, sizeof e);
            assert_int_equal(read_bytes(b.data, n, &e), ERR_DATA);
            if (!strstr(e.msg, "truncated")) fail_msg("cut at %zu: %s", n, e.msg);
        }
        b.data[3000000] ^= 1;
        assert_int_equal(read_bytes(b.data, b.len, &e), ERR_DATA);
        assert_non_null(strstr(e.msg, "checksum"));
        b.data[3000000] ^= 1;
    }
    parallel_set_threads(parallel_default_threads());
    mem_free(want);
    buf_release(&b);
    buf_release(&data);
}

static void notices_every_cut(void **state) {
    (void)state;
    struct err e;
    struct buf b = stream_of(&all_codecs[1], put_model, put_tokens);
    struct buf one = stream_of(&all_codecs[1], put_model, NULL);
    size_t first = one.len;
    buf_release(&one);
    for (size_t n = 0; n < b.len; n++) {
        if (n == first) continue; /* the first segment is a whole stream */
        memset(&e, 0, sizeof e);
        assert_int_equal(read_bytes(b.data, n, &e), ERR_DATA);
        if (n >= 8 && !strstr(e.msg, "truncated")) fail_msg("cut at %zu: %s", n, e.msg);
        memset(&e, 0, sizeof e);
        assert_int_equal(read_piped(b.data, n, &e), ERR_DATA);
        if (n >= 8 && !strstr(e.msg, "truncated")) fail_msg("pipe cut at %zu: %s", n, e.msg);
    }
    buf_release(&b);
}

/* Half noise, half zeros, in bf16's byte order: zstd keeps the noise as literals, planes keep it as a raw plane. */
static void put_half_noise(struct stream_writer *w) {
    struct err e;
    unsigned char x[600] = {0};
    struct tensor_desc d = desc_of("noise", DT_U16, 1, (uint64_t[]){300});
    for (size_t i = 0; i < 300; i++)
        x[w->options.codec == CODEC_PLANES ? 2 * i : i] = (unsigned char)(i * i * 2654435761u >> 13);
    put_meta(w, "{\"kind\":\"stats\"}");
    OK(stream_write_tensor(w, &d, NULL, x, &e));
}

static void notices_every_flipped_bit(void **state) {
    (void)state;
    notices_flips_in(stream_of(NULL, put_model, NULL));
    for (size_t i = 1; i < 3; i++) {
        struct buf b = stream_of(&all_codecs[i], put_half_noise, NULL);
        assert_true(b.len < 64 + 128 + 192 + 64 + 640 + 128 + 192); /* compressed */
        notices_flips_in(b);
    }
}

static void joins_by_concatenation(void **state) {
    (void)state;
    struct err e;
    struct buf a = stream_of(NULL, put_model, NULL), b = stream_of(NULL, put_tokens, NULL);
    struct buf both = stream_of(NULL, put_model, put_tokens);
    OK(buf_append(&a, b.data, b.len, &e));
    assert_int_equal(a.len, both.len);
    assert_memory_equal(a.data, both.data, a.len);
    struct stream_totals t;
    int fd = file_of(a.data, a.len);
    OK(read_all(fd, &t, &e));
    close(fd);
    assert_int_equal(t.segments, 2);
    assert_int_equal(t.tensors, 2 + 4);
    assert_int_equal(t.batches, 2);
    assert_int_equal(t.positions, 7);
    assert_int_equal(t.bytes, a.len);
    OK(buf_append(&a, "\0", 1, &e));
    assert_int_equal(read_bytes(a.data, a.len, &e), ERR_DATA);
    buf_release(&a);
    buf_release(&b);
    buf_release(&both);
}

/* A matrix of 5 MB: several chunks, several groups. */
static void put_large(struct stream_writer *w) {
    put_meta(w, "{\"kind\":\"model\"}");
    put_f32(w, "large", 1200, 1024, NULL);
    put_f32(w, "after", 2, 2, NULL);
}

static void put_large_in_pieces(struct stream_writer *w) {
    struct err e;
    size_t n = 1200 * 1024, at = 0, piece = 1;
    unsigned char *x = mem_alloc(n * 4, &e);
    struct tensor_desc d = desc_of("large", DT_F32, 2, (uint64_t[]){1200, 1024});
    fill_f32((float *)x, n, 5);
    put_meta(w, "{\"kind\":\"model\"}");
    OK(stream_begin_tensor(w, &d, NULL, &e));
    for (; at < 4 * n; at += piece) {
        piece = piece * 7 % 2000003 + 1;
        if (piece > 4 * n - at) piece = 4 * n - at;
        OK(stream_write_data(w, x + at, piece, &e));
    }
    OK(stream_end_tensor(w, &e));
    put_f32(w, "after", 2, 2, NULL);
    mem_free(x);
}

static void assert_same(struct buf a, struct buf b) {
    assert_int_equal(a.len, b.len);
    assert_memory_equal(a.data, b.data, a.len);
    buf_release(&a);
    buf_release(&b);
}

static void does_not_depend_on_pieces_or_threads(void **state) {
    (void)state;
    for (int codec = CODEC_ZSTD; codec <= CODEC_SPARSE; codec++) {
        struct stream_write_options o = {.codec = (enum stream_codec)codec, .chunk_bytes = 100000};
        int threads = parallel_threads();
        parallel_set_threads(1);
        struct buf one = stream_of(&o, put_large, NULL), pieces = stream_of(&o, put_large_in_pieces, NULL);
        parallel_set_threads(4);
        assert_same(one, stream_of(&o, put_large, NULL));
        assert_same(pieces, stream_of(&o, put_large_in_pieces, NULL));
        parallel_set_threads(threads);
        assert_same(stream_of(&o, put_large, NULL), stream_of(&o, put_large_in_pieces, NULL));
    }
}

/* Writes to a pipe, which a child drains into a file. */
static void writes_the_same_to_a_pipe(void **state) {
    (void)state;
    struct err e;
    struct stream_writer *w;
    int fds[2], file = memory_file();
    assert_int_equal(pipe(fds), 0);
    pid_t child = fork();
    if (child == 0) {
        char p[5000];
        ssize_t n;
        close(fds[1]);
        while ((n = read(fds[0], p, sizeof p)) > 0)
            if (write(file, p, (size_t)n) != n) _exit(1);
        _exit(0);
    }
    close(fds[0]);
    OK(stream_writer_open(&w, fds[1], "pipe", NULL, &e));
    put_large(w);
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    close(fds[1]);
    waitpid(child, NULL, 0);
    assert_same(contents(file), stream_of(NULL, put_large, NULL));
}

static void reads_the_same_from_a_pipe(void **state) {
    (void)state;
    struct err e;
    for (size_t i = 0; i < 3; i++) {
        struct buf b = stream_of(&all_codecs[i], put_large, put_model);
        struct stream_totals from_file, from_pipe;
        pid_t child;
        int file = file_of(b.data, b.len), fd = pipe_of(b.data, b.len, &child);
        OK(read_all(file, &from_file, &e));
        OK(read_all(fd, &from_pipe, &e));
        assert_memory_equal(&from_file, &from_pipe, sizeof from_pipe);
        close(file);
        close(fd);
        waitpid(child, NULL, 0);
        buf_release(&b);
    }
}

static void reads_large_data_in_small_pieces(void **state) {
    (void)state;
    struct err e;
    for (size_t i = 0; i < 3; i++) {
        struct buf b = stream_of(&all_codecs[i], put_large, NULL);
        float *want = mem_alloc(1200 * 4096, &e);
        fill_f32(want, 1200 * 1024, 5);
        int fd = file_of(b.data, b.len);
        struct stream_reader *r;
        struct stream_item item;
        OK(stream_reader_open(&r, fd, "in", STREAM_MODEL, &e));
        OK(stream_next(r, &item, &e));
        OK(stream_next(r, &item, &e));
        size_t at = 0, got;
        for (;;) {
            unsigned char piece[3333];
            OK(stream_read_data(r, piece, sizeof piece, &got, &e));
            assert_true(at + got <= 1200 * 4096);
            assert_memory_equal(piece, (unsigned char *)want + at, got);
            if (got == 0) break;
            at += got;
        }
        assert_int_equal(at, 1200 * 4096);
        OK(stream_next(r, &item, &e));
        assert_string_equal(item.desc.name, "after");
        OK(stream_drain(r, &e));
        stream_reader_free(r);
        close(fd);
        mem_free(want);
        buf_release(&b);
    }
}

/* Forwards every item of `in` as it is stored. */
static struct buf forwarded(const struct buf *in, const struct stream_write_options *o) {
    struct err e;
    int from = file_of(in->data, in->len), to = memory_file();
    struct stream_reader *r;
    struct stream_writer *w;
    struct stream_item item;
    bool first = true;
    OK(stream_reader_open(&r, from, "in", STREAM_ANY, &e));
    OK(stream_writer_open(&w, to, "out", o, &e));
    for (;;) {
        OK(stream_next(r, &item, &e));
        if (item.type == ITEM_EOF) break;
        if (item.type == ITEM_SEGMENT_END) continue;
        if (item.type == ITEM_META && !first) OK(stream_writer_segment(w, &e));
        first = false;
        OK(stream_forward(r, w, &item, &e));
    }
    struct stream_totals wrote, read;
    OK(stream_writer_finish(w, &wrote, &e));
    stream_reader_totals(r, &read);
    assert_memory_equal(&wrote, &read, sizeof wrote);
    stream_reader_free(r);
    stream_writer_free(w);
    close(from);
    return contents(to);
}

static void forwards_without_decoding(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT_OF(all_codecs); i++) {
        struct buf a = stream_of(&all_codecs[i], put_large, put_tokens);
        struct buf b = forwarded(&a, &all_codecs[(i + 1) % COUNT_OF(all_codecs)]);
        assert_same(a, b);
    }
}

static void a_full_disk_is_an_error_that_stays(void **state) {
    (void)state;
    struct err e;
    struct stream_writer *w;
    int fd = open("/dev/full", O_WRONLY);
    OK(stream_writer_open(&w, fd, "out.rill", NULL, &e));
    cJSON *meta = json_of("{\"kind\":\"model\"}");
    assert_int_equal(stream_write_meta(w, meta, &e), ERR_IO);
    assert_string_equal(e.msg, "out.rill: cannot write: No space left on device");
    assert_int_equal(stream_writer_finish(w, NULL, &e), ERR_IO);
    assert_string_equal(e.msg, "out.rill: cannot write: No space left on device");
    stream_writer_free(w);
    close(fd);
    cJSON_Delete(meta);
}

static void a_closed_pipe_is_an_error(void **state) {
    (void)state;
    struct err e;
    struct stream_writer *w;
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    close(fds[0]);
    sighandler_t before = signal(SIGPIPE, SIG_IGN);
    OK(stream_writer_open(&w, fds[1], "out", NULL, &e));
    cJSON *meta = json_of("{\"kind\":\"model\"}");
    assert_int_equal(stream_write_meta(w, meta, &e), ERR_IO);
    signal(SIGPIPE, before);
    stream_writer_free(w);
    close(fds[1]);
    cJSON_Delete(meta);
}

static void an_aborted_stream_says_why(void **state) {
    (void)state;
    struct err e;
    struct stream_writer *w;
    int fd = memory_file();
    OK(stream_writer_open(&w, fd, "out", NULL, &e));
    put_meta(w, "{\"kind\":\"model\"}");
    put_f32(w, "a", 2, 2, NULL);
    stream_writer_abort(w, "no more\nmemory");
    assert_int_equal(stream_writer_finish(w, NULL, &e), ERR_USAGE);
    stream_writer_free(w);
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    assert_int_equal(read_all(fd, NULL, &e), ERR_DATA);
    assert_string_equal(e.msg, "in: incomplete, the program that wrote it failed: no more memory");
    close(fd);
}

static void a_stream_that_was_not_finished_is_refused(void **state) {
    (void)state;
    struct err e;
    struct stream_writer *w;
    int fd = memory_file();
    OK(stream_writer_open(&w, fd, "out", NULL, &e));
    put_model(w);
    OK(output_flush(&w->out, &e));
    stream_writer_free(w);
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    assert_int_equal(read_all(fd, NULL, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "no end record"));
    close(fd);
}

static void the_first_error_stays(void **state) {
    (void)state;
    struct err e = {0}, again = {0};
    struct buf b = stream_of(NULL, put_model, NULL);
    b.data[b.len / 2] ^= 1;
    int fd = file_of(b.data, b.len);
    struct stream_reader *r;
    struct stream_item item;
    OK(stream_reader_open(&r, fd, "in", STREAM_ANY, &e));
    assert_int_equal(stream_drain(r, &e), ERR_DATA);
    assert_int_equal(stream_next(r, &item, &again), ERR_DATA);
    assert_string_equal(e.msg, again.msg);
    stream_reader_free(r);
    close(fd);
    buf_release(&b);
}

static void writer_keeps_the_rules(void **state) {
    (void)state;
    struct err e;
    struct stream_writer *w;
    float x[4] = {0};
    struct tensor_desc d = desc_of("t", DT_F32, 1, (uint64_t[]){4});
    int fd = memory_file();
    for (int i = 0; i < 7; i++) {
        memset(&e, 0, sizeof e);
        OK(stream_writer_open(&w, fd, "out", NULL, &e));
        if (i > 0) put_meta(w, i == 6 ? "{\"kind\":\"tokens\"}" : "{\"kind\":\"model\"}");
        if (i == 0) assert_int_equal(stream_write_tensor(w, &d, NULL, x, &e), ERR_DATA); /* before META */
        if (i == 1) OK(stream_write_tensor(w, &d, NULL, x, &e));
        if (i == 1) assert_int_equal(stream_write_tensor(w, &d, NULL, x, &e), ERR_DATA); /* again */
        if (i >= 2 && i < 5) OK(stream_begin_tensor(w, &d, NULL, &e));
        if (i == 2) assert_int_equal(stream_write_vocab(w, x, 4, &e), ERR_DATA); /* inside a tensor */
        if (i == 3) assert_int_equal(stream_write_data(w, x, 17, &e), ERR_DATA); /* too much */
        if (i == 4) OK(stream_write_data(w, x, 15, &e));
        if (i == 4) assert_int_equal(stream_end_tensor(w, &e), ERR_DATA); /* too little */
        if (i == 5)
            assert_int_equal(stream_write_batch(w, &(struct stream_batch){.n_seqs = 1, .n_positions = 1}, &e),
                             ERR_DATA);
        if (i == 6) assert_int_equal(stream_write_tensor(w, &d, NULL, x, &e), ERR_DATA); /* outside a batch */
        assert_int_not_equal(stream_writer_finish(w, NULL, &e), 0);
        stream_writer_free(w);
    }
    close(fd);
}

static void tells_another_kind(void **state) {
    (void)state;
    struct err e;
    struct buf b = stream_of(NULL, put_tokens, NULL);
    struct stream_reader *r;
    int fd = file_of(b.data, b.len);
    assert_int_equal(stream_reader_open(&r, fd, "x.rill", STREAM_MODEL, &e), ERR_DATA);
    assert_string_equal(e.msg, "x.rill: this is a tokens stream, expected a model stream");
    close(fd);
    buf_release(&b);
}

static void skims_a_file(void **state) {
    (void)state;
    struct err e;
    struct buf b = stream_of(&all_codecs[2], put_large, put_model);
    struct stream_totals want, got;
    struct stream_reader *r;
    int fd = file_of(b.data, b.len);
    OK(read_all(fd, &want, &e));
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    OK(stream_reader_open(&r, fd, "in", STREAM_ANY, &e));
    stream_reader_skim(r);
    OK(stream_drain(r, &e));
    stream_reader_totals(r, &got);
    assert_memory_equal(&want, &got, sizeof got);
    stream_reader_free(r);
    close(fd);
    buf_release(&b);
}

static void collects_provenance_once(void **state) {
    (void)state;
    struct err e;
    struct buf b = stream_of(NULL, put_model, put_model);
    struct stream_reader *r;
    int fd = file_of(b.data, b.len);
    OK(stream_reader_open(&r, fd, "in", STREAM_ANY, &e));
    OK(stream_drain(r, &e));
    assert_int_equal(cJSON_GetArraySize(stream_reader_prov(r)), 1);
    stream_reader_free(r);
    close(fd);
    buf_release(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gives_back_what_was_written),
        cmocka_unit_test(knows_every_element_type),
        cmocka_unit_test(reads_large_tensors),
        cmocka_unit_test(notices_every_cut),
        cmocka_unit_test(notices_every_flipped_bit),
        cmocka_unit_test(joins_by_concatenation),
        cmocka_unit_test(does_not_depend_on_pieces_or_threads),
        cmocka_unit_test(writes_the_same_to_a_pipe),
        cmocka_unit_test(reads_the_same_from_a_pipe),
        cmocka_unit_test(reads_large_data_in_small_pieces),
        cmocka_unit_test(forwards_without_decoding),
        cmocka_unit_test(a_full_disk_is_an_error_that_stays),
        cmocka_unit_test(a_closed_pipe_is_an_error),
        cmocka_unit_test(an_aborted_stream_says_why),
        cmocka_unit_test(a_stream_that_was_not_finished_is_refused),
        cmocka_unit_test(the_first_error_stays),
        cmocka_unit_test(writer_keeps_the_rules),
        cmocka_unit_test(tells_another_kind),
        cmocka_unit_test(skims_a_file),
        cmocka_unit_test(collects_provenance_once),
    };
    return cmocka_run_group_tests_name("stream", tests, NULL, NULL);
}
