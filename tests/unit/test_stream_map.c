/*
 * Tests of random access: it gives what the reader gives, and does not trust a false index. Batches with their tensors.
 */
#include "tests/unit/stream_forge.h"

static char path[64];

static const char *saved(const void *data, size_t n) {
    snprintf(path, sizeof path, "/tmp/rill-test-map-%d", (int)getpid());
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, n), n);
    close(fd);
    return path;
}

static int remove_saved(void **state) {
    (void)state;
    unlink(path);
    return 0;
}

static void put_mixed(struct stream_writer *w) {
    struct err e;
    put_model(w);
    put_f32(w, "large", 300, 1000, "{\"n\":1}");
    struct tensor_desc d = desc_of("in.pieces", DT_U8, 1, (uint64_t[]){700000});
    OK(stream_begin_tensor(w, &d, NULL, &e));
    for (int i = 0; i < 7; i++) {
        unsigned char x[100000];
        memset(x, i, sizeof x);
        OK(stream_write_data(w, x, sizeof x, &e));
    }
    OK(stream_end_tensor(w, &e));
}

/* Compares the map's tensors with the reader's, both by index and by name. */
static void assert_equal_to_reader(struct stream_map *m, const struct buf *b) {
    struct err e;
    struct stream_reader *r;
    struct stream_item item;
    struct buf data = {0}, scratch = {0};
    int fd = file_of(b->data, b->len);
    size_t n = 0;
    OK(stream_reader_open(&r, fd, "in", STREAM_MODEL, &e));
    do {
        OK(stream_next(r, &item, &e));
        if (item.type != ITEM_TENSOR) continue;
        struct stream_map_entry entry;
        struct stream_storage storage;
        const void *p;
        OK(stream_load_tensor(r, &data, &e));
        OK(stream_map_entry(m, n, &entry, &e));
        assert_memory_equal(&entry.desc, &item.desc, sizeof item.desc);
        assert_int_equal(entry.offset, item.offset);
        stream_reader_storage(r, &storage);
        assert_int_equal(entry.stored_bytes, storage.bytes);
        assert_int_equal(!entry.attrs, !item.attrs);
        assert_int_equal(stream_map_find(m, item.desc.name), n);
        OK(stream_map_data(m, n, &scratch, &p, &e));
        assert_memory_equal(p, data.data, data.len);
        n++;
    } while (item.type != ITEM_EOF);
    assert_int_equal(stream_map_count(m), n);
    struct stream_totals a, c;
    stream_reader_totals(r, &a);
    OK(stream_map_totals(m, &c, &e));
    assert_memory_equal(&a, &c, sizeof a);
    assert_true(cJSON_Compare(stream_map_prov(m), stream_reader_prov(r), true));
    stream_reader_free(r);
    close(fd);
    buf_release(&data);
    buf_release(&scratch);
}

static void equals_the_reader(void **state) {
    (void)state;
    struct err e;
    for (int i = 0; i < 6; i++) {
        struct stream_write_options o = {.codec = (enum stream_codec)(i % 3), .chunk_bytes = i < 3 ? 0 : 10000};
        struct buf b = stream_of(&o, put_mixed, NULL);
        struct stream_map *m;
        const void *vocab;
        size_t n;
        OK(stream_map_open(&m, saved(b.data, b.len), STREAM_MODEL, &e));
        assert_equal_to_reader(m, &b);
        assert_string_equal(cJSON_GetObjectItem(stream_map_meta(m), "arch")->valuestring, "test");
        OK(stream_map_vocab(m, &vocab, &n, &e));
        assert_int_equal(n, 10);
        assert_memory_equal(vocab, "vocabulary", 10);
        assert_int_equal(stream_map_find(m, "none"), -1);
        stream_map_free(m);
        buf_release(&b);
    }
}

static void points_into_the_file_when_raw(void **state) {
    (void)state;
    struct err e;
    struct buf b = stream_of(NULL, put_mixed, NULL), scratch = {0};
    struct stream_map *m;
    const void *p;
    OK(stream_map_open(&m, saved(b.data, b.len), STREAM_MODEL, &e));
    for (size_t i = 0; i < 3; i++) {
        OK(stream_map_data(m, i, &scratch, &p, &e));
        assert_null(scratch.data);
        assert_int_equal((uintptr_t)p % 64, 0);
    }
    stream_map_free(m);
    buf_release(&b);
}

static void needs_no_index(void **state) {
    (void)state;
    struct err e;
    struct buf b = stream_of(NULL, put_mixed, NULL);
    struct forged f = forge(&b);
    b = sealed(&f);
    struct stream_map *m;
    OK(stream_map_open(&m, saved(b.data, b.len), STREAM_MODEL, &e));
    assert_equal_to_reader(m, &b);
    stream_map_free(m);
    buf_release(&b);
}

/* Opens the map and reads everything. */
static int use_map(const char *file, struct err *e) {
    struct stream_map *m;
    struct buf scratch = {0};
    const void *p;
    size_t n;
    int code = stream_map_open(&m, file, STREAM_ANY, e);
    if (code) return code;
    code = stream_map_vocab(m, &p, &n, e);
    for (size_t i = 0; !code && i < stream_map_count(m); i++) {
        struct stream_map_entry entry;
        code = stream_map_entry(m, i, &entry, e);
        if (!code) code = stream_map_data(m, i, &scratch, &p, e);
        if (!code) assert_int_equal(stream_map_find(m, entry.desc.name), i);
    }
    buf_release(&scratch);
    stream_map_free(m);
    return code;
}

static void does_not_believe_the_index(void **state) {
    (void)state;
    struct err e;
    struct buf b = stream_of(NULL, put_model, NULL), index = {0};
    OK(buf_append(&index, b.data + b.len - 192 - 128, 128, &e));
    struct forged f = forge(&b);
    b = sealed(&f); /* no index: the end record says so */
    for (size_t i = 0; i < 2 * 128; i++) {
        size_t byte = i / 2;
        struct buf lying = {0};
        OK(buf_append(&lying, b.data, b.len, &e));
        f = forge(&lying);
        forged_insert(&f, f.n - 1, TAG_INDX, index.data, index.len);
        f.records[f.n - 2].payload.data[byte] ^= i % 2 ? 0x40 : 1; /* points to another record, or to none */
        struct wire_ends ends;
        struct forged_record *last = &f.records[f.n - 1];
        OK(wire_ends_decode(last->payload.data, last->payload.len, &ends, &e));
        ends.index_offset = b.len - 192;
        ends.segment_bytes = b.len + 192;
        wire_ends_encode(last->payload.data, &ends);
        f.keep_ends = true;
        lying = sealed(&f);
        if (use_map(saved(lying.data, lying.len), &e) != ERR_DATA) fail_msg("lie in byte %zu accepted", byte);
        buf_release(&lying);
    }
    buf_release(&b);
    buf_release(&index);
}

static void notices_cuts(void **state) {
    (void)state;
    struct err e;
    struct buf b = stream_of(NULL, put_model, NULL);
    for (size_t n = 0; n < b.len; n += 7) assert_int_equal(use_map(saved(b.data, n), &e), ERR_DATA);
    buf_release(&b);
}

/* Opening the map and reading everything in it covers every byte. */
static void notices_flips_in_what_it_reads(void **state) {
    (void)state;
    struct err e;
    struct stream_write_options o = {.codec = CODEC_ZSTD, .chunk_bytes = 300};
    struct buf b = stream_of(&o, put_model, NULL);
    for (size_t i = 0; i < b.len; i++) {
        b.data[i] ^= (unsigned char)(1 << i % 8);
        if (use_map(saved(b.data, b.len), &e) != ERR_DATA) fail_msg("byte %zu", i);
        b.data[i] ^= (unsigned char)(1 << i % 8);
    }
    OK(use_map(saved(b.data, b.len), &e));
    buf_release(&b);
}

static void refuses_what_it_cannot_map(void **state) {
    (void)state;
    struct err e;
    struct stream_map *m;
    struct buf b = stream_of(NULL, put_model, put_model), c = stream_of(NULL, put_tokens, NULL);
    assert_int_equal(stream_map_open(&m, saved(b.data, b.len), STREAM_ANY, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "has several segments"));
    assert_int_equal(stream_map_open(&m, saved(c.data, c.len), STREAM_ANY, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "read in order"));
    assert_int_equal(stream_map_open(&m, saved(c.data, c.len), STREAM_MODEL, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "this is a tokens stream, expected a model stream"));
    assert_int_equal(stream_map_open(&m, "/dev/null", STREAM_ANY, &e), ERR_IO);
    assert_int_equal(stream_map_open(&m, "/nonexistent", STREAM_ANY, &e), ERR_IO);
    assert_string_equal(e.msg, "/nonexistent: No such file or directory");
    buf_release(&b);
    buf_release(&c);
}

/* ---- batches ----------------------------------------------------------------------------------------------------- */

static void reads_batches(void **state) {
    (void)state;
    struct err e;
    struct buf b = stream_of(NULL, put_tokens, put_tokens);
    struct stream_reader *r;
    struct batch batch = {0};
    bool more;
    int fd = file_of(b.data, b.len);
    OK(stream_reader_open(&r, fd, "in", STREAM_TOKENS, &e));
    for (int i = 0; i < 4; i++) {
        OK(batch_read(r, &batch, &more, &e));
        assert_true(more);
        assert_int_equal(batch.head.n_positions, i % 2 ? 2 : 5);
        assert_int_equal(batch_tokens(&batch)[0], i % 2 ? 6 : 1);
        assert_int_equal(batch_lengths(&batch)[0], i % 2 ? 2 : 3);
        assert_null(batch_find(&batch, "ids"));
        const struct tensor *t;
        OK(batch_need(&batch, "tokens", DT_U32, 1, (uint64_t[]){0}, &t, &e));
        assert_ptr_equal(t->data, batch_tokens(&batch));
        assert_int_equal(batch_need(&batch, "ids", DT_U32, 1, (uint64_t[]){0}, &t, &e), ERR_DATA);
        assert_int_equal(batch_need(&batch, "tokens", DT_F32, 1, (uint64_t[]){0}, &t, &e), ERR_DATA);
        assert_int_equal(batch_need(&batch, "tokens", DT_U32, 1, (uint64_t[]){9}, &t, &e), ERR_DATA);
        assert_non_null(strstr(e.msg, i % 2 ? "tensor 'tokens' is u32 [2], expected u32 [9]"
                                            : "tensor 'tokens' is u32 [5], expected u32 [9]"));
    }
    OK(batch_read(r, &batch, &more, &e));
    assert_false(more);
    OK(batch_read(r, &batch, &more, &e));
    assert_false(more);
    stream_reader_free(r);
    batch_release(&batch);
    close(fd);
    buf_release(&b);
}

static int read_batches(const struct buf *b, struct err *e) {
    struct stream_reader *r;
    struct batch batch = {0};
    bool more = true;
    int fd = file_of(b->data, b->len), code = stream_reader_open(&r, fd, "in", STREAM_TOKENS, e);
    if (code) return code;
    while (!code && more) code = batch_read(r, &batch, &more, e);
    stream_reader_free(r);
    batch_release(&batch);
    close(fd);
    return code;
}

static void checks_what_a_batch_says_of_itself(void **state) {
    (void)state;
    static const struct {
        size_t nth; /* of the DATA record: tokens, lengths, tokens, lengths */
        uint32_t values[2];
        size_t n;
        const char *message;
    } lies[] = {
        {1, {3, 3}, 2, "lengths add up to 6, it has 5 positions"},
        {1, {5, 0}, 2, "sequence 1 is empty"},
        {1, {1, 4}, 2, "sequence 1 continues at position 2, expected 4"},
        {1, {UINT32_MAX, 6}, 2, "lengths add up to 4294967301"},
    };
    for (size_t i = 0; i < COUNT_OF(lies); i++) {
        struct err e = {0};
        struct buf b = stream_of(NULL, put_tokens, NULL);
        struct forged f = forge(&b);
        forged_set(&f, forged_find(&f, TAG_DATA, lies[i].nth), lies[i].values, lies[i].n * 4);
        b = sealed(&f);
        assert_int_equal(read_batches(&b, &e), ERR_DATA);
        if (!strstr(e.msg, lies[i].message)) fail_msg("'%s', expected '%s'", e.msg, lies[i].message);
        buf_release(&b);
    }
}

static void put_without_lengths(struct stream_writer *w) {
    struct err e;
    put_meta(w, "{\"kind\":\"tokens\"}");
    OK(stream_write_batch(w, &(struct stream_batch){.n_seqs = 1, .n_positions = 2, .n_tensors = 1}, &e));
    put_u32(w, "tokens", (uint32_t[]){1, 2}, 2);
}

static void a_batch_has_tokens_and_lengths(void **state) {
    (void)state;
    struct err e;
    struct buf b = stream_of(NULL, put_without_lengths, NULL);
    assert_int_equal(read_batches(&b, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "batch of sequence 0 has no tensor 'lengths'"));
    buf_release(&b);
}

/* Ten thousand batches: the index stays small, and is what the reader expects. */
static void put_many(struct stream_writer *w) {
    struct err e;
    put_meta(w, "{\"kind\":\"tokens\"}");
    for (uint64_t i = 0; i < 10000; i++)
        OK(stream_write_batch(w, &(struct stream_batch){.first_seq = i, .n_seqs = 1, .n_positions = 1}, &e));
}

static void indexes_few_of_many_batches(void **state) {
    (void)state;
    struct err e;
    struct buf b = stream_of(NULL, put_many, NULL);
    struct wire_record r;
    struct wire_entry x;
    size_t index = b.len - 192 - 64 - 2500 * 32; /* entries for every fourth batch */
    OK(wire_record_decode(b.data + index, &r, &e));
    assert_int_equal(r.tag, TAG_INDX);
    assert_int_equal(r.stored, 2500 * 32);
    OK(wire_entry_decode(b.data + index + 64 + 32 * 2499, &x, &e));
    assert_int_equal(x.tag, TAG_BTCH);
    assert_int_equal(x.number, 4 * 2499);
    OK(wire_record_decode(b.data + x.offset, &r, &e));
    assert_int_equal(r.tag, TAG_BTCH);
    OK(read_bytes(b.data, b.len, &e));
    buf_release(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_the_reader),
        cmocka_unit_test(points_into_the_file_when_raw),
        cmocka_unit_test(needs_no_index),
        cmocka_unit_test(does_not_believe_the_index),
        cmocka_unit_test(notices_cuts),
        cmocka_unit_test(notices_flips_in_what_it_reads),
        cmocka_unit_test(refuses_what_it_cannot_map),
        cmocka_unit_test(reads_batches),
        cmocka_unit_test(checks_what_a_batch_says_of_itself),
        cmocka_unit_test(a_batch_has_tokens_and_lengths),
        cmocka_unit_test(indexes_few_of_many_batches),
    };
    return cmocka_run_group_tests_name("stream-map", tests, NULL, remove_saved);
}
