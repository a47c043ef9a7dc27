/*
 * Files of format version 1 that every later version must read, with the values below. formats/golden/ was written by
 * `test_stream_golden --write formats/golden`; do not write it again: add files when the format is extended.
 */
#include "tests/unit/stream_samples.h"

#define GOLDEN "formats/golden"

/* bf16 weights of decreasing size, 5-bit codes and a quantized tensor: data for each codec. */
static void put_weights(struct stream_writer *w) {
    struct err e;
    uint16_t x[3000];
    unsigned char codes[1024], blocks[32 * 34];
    for (size_t i = 0; i < COUNT_OF(x); i++)
        x[i] = f32_to_bf16((float)((i * 2654435761u >> 16 & 255) - 127.5f) / (float)(64 + i));
    for (size_t i = 0; i < COUNT_OF(codes); i++) codes[i] = (unsigned char)(i * i >> 4 & 31);
    for (size_t i = 0; i < COUNT_OF(blocks); i++) blocks[i] = i % 34 < 2 ? 0x2e : (unsigned char)(i * 7 >> 5);
    struct tensor_desc a = desc_of("blk.0.attn_q.weight", DT_BF16, 2, (uint64_t[]){50, 60});
    struct tensor_desc b = desc_of("codes", DT_U8, 1, (uint64_t[]){1024});
    struct tensor_desc c = desc_of("blk.0.ffn_up.weight", DT_Q8_0, 2, (uint64_t[]){16, 64});
    cJSON *attrs = json_of("{\"group\":32,\"scale\":0.125}");
    OK(stream_write_tensor(w, &a, NULL, x, &e));
    OK(stream_write_tensor(w, &b, NULL, codes, &e));
    OK(stream_write_tensor(w, &c, attrs, blocks, &e));
    put_f32(w, "norm \xc3\xa9", 1, 7, NULL);
    cJSON_Delete(attrs);
}

static void put_golden_prov(struct stream_writer *w) {
    put_prov(w, "{\"id\":\"xxh3:0123456789abcdef0123456789abcdef\",\"tool\":\"golden\",\"version\":\"0.1.0\","
                "\"argv\":[\"rill\",\"golden\"],\"seed\":0,\"settings\":{},\"inputs\":[]}");
}

static void put_golden_model(struct stream_writer *w) {
    struct err e;
    put_meta(w, "{\"kind\":\"model\",\"arch\":\"llama\",\"layers\":[{\"heads\":3}]}");
    OK(stream_write_vocab(w, "opaque to this module\0\xff", 23, &e));
    put_weights(w);
    put_golden_prov(w);
}

static void put_golden_stats(struct stream_writer *w) {
    put_meta(w, "{\"kind\":\"stats\"}");
    put_weights(w);
    put_golden_prov(w);
}

static void put_golden_checkpoint(struct stream_writer *w) {
    put_meta(w, "{\"kind\":\"checkpoint\",\"step\":1000}");
    put_weights(w);
    put_golden_prov(w);
}

static void put_sequences(struct stream_writer *w, bool knowledge) {
    struct err e;
    uint32_t tokens[600], lengths[] = {100, 500}, rest[] = {600};
    uint16_t values[600 * 4];
    for (size_t i = 0; i < COUNT_OF(tokens); i++) tokens[i] = (uint32_t)(i * i % 997);
    for (size_t i = 0; i < COUNT_OF(values); i++) values[i] = f32_to_f16(-(float)(i % 4) - (float)(i % 13) / 16);
    struct tensor_desc v = desc_of("values", DT_F16, 2, (uint64_t[]){600, 4});
    for (uint64_t i = 0; i < 2; i++) {
        struct stream_batch b = {.first_seq = i,
                                 .first_pos = 500 * i,
                                 .n_positions = 600,
                                 .n_seqs = 2 - (uint32_t)i,
                                 .n_tensors = knowledge ? 3 : 2,
                                 .flags = !i};
        OK(stream_write_batch(w, &b, &e));
        put_u32(w, "tokens", tokens, 600);
        put_u32(w, "lengths", i ? rest : lengths, b.n_seqs);
        if (knowledge) OK(stream_write_tensor(w, &v, NULL, values, &e));
    }
    put_golden_prov(w);
}

static void put_golden_tokens(struct stream_writer *w) {
    put_meta(w, "{\"kind\":\"tokens\"}");
    put_sequences(w, false);
}

static void put_golden_knowledge(struct stream_writer *w) {
    put_meta(w, "{\"kind\":\"knowledge\",\"encoding\":\"topk\",\"k\":4}");
    put_sequences(w, true);
}

static put_fn *const makers[] = {
    [STREAM_MODEL] = put_golden_model,           [STREAM_TOKENS] = put_golden_tokens,
    [STREAM_KNOWLEDGE] = put_golden_knowledge,   [STREAM_STATS] = put_golden_stats,
    [STREAM_CHECKPOINT] = put_golden_checkpoint,
};

static struct buf made(int kind, int codec) {
    struct stream_write_options o = {.codec = (enum stream_codec)codec};
    return stream_of(&o, makers[kind], NULL);
}

static void golden_path(char *out, size_t size, const char *folder, int kind, int codec) {
    snprintf(out, size, "%s/v1-%s-%s.rill", folder, stream_kind_name((enum stream_kind)kind),
             stream_codec_name((enum stream_codec)codec));
}

static struct buf golden(int kind, int codec) {
    char path[256];
    golden_path(path, sizeof path, GOLDEN, kind, codec);
    int fd = open(path, O_RDONLY);
    if (fd < 0) fail_msg("%s is missing (run this test from the top folder)", path);
    return contents(fd);
}

static void reads_version_1(void **state) {
    (void)state;
    for (int kind = STREAM_MODEL; kind <= STREAM_CHECKPOINT; kind++)
        for (int codec = CODEC_RAW; codec <= CODEC_PLANES; codec++) {
            struct buf file = golden(kind, codec), fresh = made(kind, CODEC_RAW);
            assert_same_content(&file, &fresh);
            buf_release(&file);
            buf_release(&fresh);
        }
}

/* Compressed bytes may change with the library; raw ones only with the format version. */
static void writes_version_1(void **state) {
    (void)state;
    for (int kind = STREAM_MODEL; kind <= STREAM_CHECKPOINT; kind++) {
        struct buf file = golden(kind, CODEC_RAW), fresh = made(kind, CODEC_RAW);
        assert_int_equal(file.len, fresh.len);
        assert_memory_equal(file.data, fresh.data, file.len);
        buf_release(&file);
        buf_release(&fresh);
    }
}

static void codecs_had_something_to_do(void **state) {
    (void)state;
    for (int kind = STREAM_MODEL; kind <= STREAM_CHECKPOINT; kind++) {
        struct buf raw = golden(kind, CODEC_RAW), zstd = golden(kind, CODEC_ZSTD), planes = golden(kind, CODEC_PLANES);
        assert_true(zstd.len < raw.len && planes.len < raw.len);
        buf_release(&raw);
        buf_release(&zstd);
        buf_release(&planes);
    }
}

/* ---- the worked example of formats/rill.md ----------------------------------------------------------------------- */

static void put_example(struct stream_writer *w) {
    struct err e;
    put_meta(w, "{\"kind\":\"stats\"}");
    struct tensor_desc d = desc_of("x", DT_F32, 1, (uint64_t[]){2});
    OK(stream_write_tensor(w, &d, NULL, (float[]){1.0f, -2.0f}, &e));
}

/* Lines such as "00000040 d2 52 45 43 ...": an offset and 16 bytes; lines of zeros are omitted. */
static struct buf documented(void) {
    struct err e;
    struct buf b = {0};
    char line[256];
    FILE *f = fopen("formats/rill.md", "r");
    if (!f) fail_msg("formats/rill.md is missing (run this test from the top folder)");
    while (fgets(line, sizeof line, f)) {
        unsigned offset, x[16];
        if (sscanf(line, "%8x  %2x %2x %2x %2x %2x %2x %2x %2x  %2x %2x %2x %2x %2x %2x %2x %2x", &offset, x, x + 1,
                   x + 2, x + 3, x + 4, x + 5, x + 6, x + 7, x + 8, x + 9, x + 10, x + 11, x + 12, x + 13, x + 14,
                   x + 15) != 17)
            continue;
        assert_true(offset >= b.len && offset % 16 == 0 && offset < 4096);
        OK(buf_reserve(&b, 4096, &e));
        memset(b.data + b.len, 0, offset + 16 - b.len);
        for (int i = 0; i < 16; i++) b.data[offset + (unsigned)i] = (unsigned char)x[i];
        b.len = offset + 16;
    }
    fclose(f);
    return b;
}

static void the_worked_example_is_true(void **state) {
    (void)state;
    struct buf text = documented(), real = stream_of(NULL, put_example, NULL);
    assert_true(text.len > 0 && text.len <= real.len);
    while (text.len < real.len) text.data[text.len++] = 0;
    assert_memory_equal(text.data, real.data, real.len);
    buf_release(&text);
    buf_release(&real);
}

/* ---- the content digest, as formats/rill.md defines it ----------------------------------------------------------- */

/* Computed from the bytes of a stream of one segment, without lib/stream. */
static struct digest digest_by_the_page(const struct buf *file) {
    struct err e;
    struct buf covered = {0};
    for (size_t at = 64; at < file->len;) {
        const unsigned char *h = file->data + at;
        uint64_t stored;
        memcpy(&stored, h + 8, sizeof stored);
        if (memcmp(h + 4, "PROV", 4) && memcmp(h + 4, "iNDX", 4) && memcmp(h + 4, "ENDS", 4)) {
            OK(buf_append(&covered, h + 4, 28, &e));
            OK(buf_append(&covered, h + 36, 8, &e));
            OK(buf_append(&covered, h + 48, 8, &e));
        }
        at += 64 + (stored + 63) / 64 * 64;
    }
    struct digest d = digest_bytes(covered.data, covered.len);
    buf_release(&covered);
    return d;
}

static struct digest digest_by_the_reader(const struct buf *file) {
    struct err e;
    struct stream_reader *r;
    struct stream_totals t;
    int fd = file_of(file->data, file->len);
    OK(stream_reader_open(&r, fd, "golden", STREAM_ANY, &e));
    OK(stream_drain(r, &e));
    stream_reader_totals(r, &t);
    stream_reader_free(r);
    close(fd);
    return t.digest;
}

static void the_content_digest_is_the_documented_one(void **state) {
    (void)state;
    for (int kind = STREAM_MODEL; kind <= STREAM_CHECKPOINT; kind++)
        for (int codec = CODEC_RAW; codec <= CODEC_PLANES; codec++) {
            struct buf file = golden(kind, codec);
            assert_true(digest_equal(digest_by_the_page(&file), digest_by_the_reader(&file)));
            buf_release(&file);
        }
    char text[DIGEST_TEXT_SIZE], page[1 << 16];
    struct buf example = stream_of(NULL, put_example, NULL);
    digest_text(digest_by_the_reader(&example), text);
    buf_release(&example);
    FILE *f = fopen("formats/rill.md", "r");
    assert_non_null(f);
    page[fread(page, 1, sizeof page - 1, f)] = 0;
    fclose(f);
    if (!strstr(page, text)) fail_msg("formats/rill.md does not say that its example has %s", text);
}

/* Two segments with equal content elsewhere: at other places in a file and with other provenance. */
static void put_without_prov(struct stream_writer *w) {
    put_meta(w, "{\"kind\":\"stats\"}");
    put_weights(w);
}
static void put_prov_first(struct stream_writer *w) {
    put_meta(w, "{\"kind\":\"stats\"}");
    put_golden_prov(w);
    put_weights(w);
}
static void put_both(struct stream_writer *w) {
    struct err e;
    put_golden_stats(w);
    OK(stream_writer_segment(w, &e));
    put_prov_first(w);
}
static void put_both_without(struct stream_writer *w) {
    struct err e;
    put_without_prov(w);
    OK(stream_writer_segment(w, &e));
    put_without_prov(w);
}

static void provenance_is_no_content(void **state) {
    (void)state;
    put_fn *const one[] = {put_golden_stats, put_without_prov, put_prov_first}, *const two[] = {put_both,
                                                                                                put_both_without};
    struct digest d[5];
    for (size_t i = 0; i < 5; i++) {
        struct buf b = stream_of(NULL, i < 3 ? one[i] : two[i - 3], NULL);
        d[i] = digest_by_the_reader(&b);
        buf_release(&b);
    }
    assert_true(digest_equal(d[0], d[1]) && digest_equal(d[0], d[2]) && digest_equal(d[3], d[4]));
    assert_false(digest_equal(d[0], d[3]));
}

static void save(const char *path, struct buf b) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0644);
    if (fd < 0 || write(fd, b.data, b.len) != (ssize_t)b.len) fprintf(stderr, "%s: not written\n", path);
    if (fd >= 0) close(fd);
    buf_release(&b);
}

static int write_files(const char *folder) {
    char path[256];
    for (int kind = STREAM_MODEL; kind <= STREAM_CHECKPOINT; kind++)
        for (int codec = CODEC_RAW; codec <= CODEC_PLANES; codec++) {
            golden_path(path, sizeof path, folder, kind, codec);
            save(path, made(kind, codec));
        }
    snprintf(path, sizeof path, "%s/example.rill", folder);
    save(path, stream_of(NULL, put_example, NULL));
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "--write")) return write_files(argv[2]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_version_1),
        cmocka_unit_test(writes_version_1),
        cmocka_unit_test(codecs_had_something_to_do),
        cmocka_unit_test(the_worked_example_is_true),
        cmocka_unit_test(the_content_digest_is_the_documented_one),
        cmocka_unit_test(provenance_is_no_content),
    };
    return cmocka_run_group_tests_name("stream-golden", tests, NULL, NULL);
}
