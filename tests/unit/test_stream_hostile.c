/*
 * Hostile streams, each false in one place, with every checksum correct. None may be accepted, and none may cost
 * memory.
 */
#include "tests/unit/stream_forge.h"

static struct forged model(void) {
    struct buf b = stream_of(NULL, put_model, NULL);
    return forge(&b);
}

static struct forged tokens(void) {
    struct buf b = stream_of(NULL, put_tokens, NULL);
    return forge(&b);
}

static void put_byte(struct forged *f, size_t at, size_t offset, size_t n, uint64_t v) {
    for (size_t i = 0; i < n; i++) f->records[at].payload.data[offset + i] = (unsigned char)(v >> 8 * i);
}

static void sealing_by_itself_changes_nothing(void **state) {
    (void)state;
    struct forged f = model();
    accepted(&f);
    f = tokens();
    accepted(&f);
}

/* ---- versions and types ------------------------------------------------------------------------------------------ */

static void tells_versions(void **state) {
    (void)state;
    struct forged f = model();
    f.head.major = 2;
    refused(&f, "in: format version 2.0, this program understands version 1 (a newer rill reads it)");
    f = model();
    f.head.incompatible = 4;
    refused(&f, "feature flags 0x4, this program understands 0x0");
    f = model();
    f.head.minor = 7;
    f.head.compatible = 0xff;
    accepted(&f);
}

static void refuses_unknown_critical_records(void **state) {
    (void)state;
    struct forged f = model();
    f.head.minor = 3;
    forged_insert(&f, 2, WIRE_TAG('X', 'T', 'R', 'A'), "hi", 2);
    refused(&f, "record type 'XTRA' is unknown and must not be skipped: the stream is of version 1.3, this program "
                "understands version 1.0");
    f = model();
    forged_insert(&f, 2, WIRE_TAG('X', 'T', 'R', 'a'), "hi", 2);
    refused(&f, "'XTRa' is unknown");
    f = model();
    forged_insert(&f, 2, WIRE_TAG('x', 'T', '1', 'a'), "hi", 2);
    refused(&f, "record type is not four letters");
}

static void gives_unknown_optional_records(void **state) {
    (void)state;
    struct err e;
    struct forged f = model();
    forged_insert(&f, 2, WIRE_TAG('x', 'T', 'R', 'a'), "hi", 2);
    forged_insert(&f, 3, WIRE_TAG('x', 'T', 'R', 'A'), "ho", 2);
    struct buf b = sealed(&f);
    struct stream_reader *r;
    struct stream_item item;
    int fd = file_of(b.data, b.len), found = 0;
    OK(stream_reader_open(&r, fd, "in", STREAM_ANY, &e));
    do {
        OK(stream_next(r, &item, &e));
        if (item.type != ITEM_OTHER) continue;
        assert_int_equal(item.n_bytes, 2);
        assert_memory_equal(item.bytes, found ? "ho" : "hi", 2);
        assert_string_equal(item.tag, found ? "xTRA" : "xTRa");
        assert_int_equal(item.safe_to_copy, !found);
        found++;
    } while (item.type != ITEM_EOF);
    assert_int_equal(found, 2);
    stream_reader_free(r);
    close(fd);
    buf_release(&b);
}

/* ---- lengths ----------------------------------------------------------------------------------------------------- */

static void sizes_do_not_drive_allocation(void **state) {
    (void)state;
    static const uint64_t sizes[] = {UINT64_MAX, UINT64_MAX - 63, (uint64_t)1 << 63, (uint64_t)1 << 40,
                                     (uint64_t)1 << 33};
    static const uint32_t tags[] = {TAG_META, TAG_VOCB, TAG_TENS, TAG_PROV, TAG_ENDS};
    for (size_t i = 0; i < COUNT_OF(tags); i++)
        for (size_t k = 0; k < COUNT_OF(sizes); k++) {
            struct err e;
            struct forged f = model();
            struct forged_record *r = &f.records[forged_find(&f, tags[i], 0)];
            r->keep_sizes = true;
            r->h.stored = r->h.raw = sizes[k];
            struct buf b = sealed(&f);
            assert_int_equal(read_bytes(b.data, b.len, &e), ERR_DATA);
            assert_int_equal(read_piped(b.data, b.len, &e), ERR_DATA);
            buf_release(&b);
        }
}

/* A tensor of 2^50 bytes with only 96 bytes of data: reading it as a whole is refused for its size; reading it in
 * pieces takes memory only for the data that arrives. */
static void a_huge_tensor_costs_what_arrives(void **state) {
    (void)state;
    for (int whole = 0; whole < 2; whole++) {
        struct forged f = model();
        size_t t = forged_find(&f, TAG_TENS, 0), d = t + 1;
        put_byte(&f, t, 8, 8, (uint64_t)1 << 50);
        put_byte(&f, t, 16, 8, (uint64_t)1 << 45);
        f.records[d].h.flags = whole ? WIRE_LAST_CHUNK : 0;
        if (whole) f.records[d].keep_sizes = true, f.records[d].h.stored = f.records[d].h.raw = (uint64_t)1 << 50;
        struct err e;
        struct buf b = sealed(&f);
        if (!whole) assert_int_equal(read_bytes(b.data, b.len, &e), ERR_IO);
        mem_set_limit((uint64_t)1 << 60);
        assert_int_equal(read_bytes(b.data, b.len, &e), ERR_DATA);
        assert_int_equal(read_piped(b.data, b.len, &e), ERR_DATA);
        mem_set_limit(0);
        buf_release(&b);
    }
}

static void checks_chunks(void **state) {
    (void)state;
    for (int i = 0; i < 8; i++) {
        struct forged f = model();
        struct forged_record *r = &f.records[forged_find(&f, TAG_DATA, 0)];
        static const char *const messages[] = {
            "chunk of 100 bytes, 96 bytes are missing",
            "data for byte 8, expected byte 0",
            "data of tensor 1 inside tensor 0",
            "the chunk is not marked as the last",
            "codec 9, this version understands codecs 0 to 3",
            "unknown flags 0x3",
            "chunk of 96 bytes stored as 96 with codec zstd",
            "chunk of 0 bytes",
        };
        struct err e;
        if (i == 0) OK(buf_append(&r->payload, "abcd", 4, &e));
        if (i == 1) r->h.raw_offset = 8;
        if (i == 2) r->h.tensor = 1;
        if (i == 3) r->h.flags = 0;
        if (i == 4) r->h.codec = 9;
        if (i == 5) r->h.flags |= 2;
        if (i == 6) r->h.codec = CODEC_ZSTD;
        if (i == 7) r->payload.len = 0;
        refused(&f, messages[i]);
    }
}

static void checks_that_a_chunk_ends_the_tensor(void **state) {
    (void)state;
    struct forged f = model();
    size_t d = forged_find(&f, TAG_DATA, 0);
    f.records[d].payload.len = 50;
    refused(&f, "the last chunk does not complete it");
    f = model();
    f.records[d].payload.len = 50;
    f.records[d].h.flags = 0;
    refused(&f, "TENS record inside tensor 'a.weight', which has 50 of 96 bytes");
    f = model();
    forged_remove(&f, d);
    refused(&f, "TENS record inside tensor 'a.weight'");
    f = model();
    forged_insert(&f, d + 1, TAG_DATA, "abcd", 4);
    refused(&f, "data without a tensor");
}

/* ---- tensors ----------------------------------------------------------------------------------------------------- */

static void checks_tensor_records(void **state) {
    (void)state;
    static const struct {
        size_t offset, n;
        uint64_t value;
        const char *message;
    } lies[] = {
        {0, 2, 104, "element type 104 is unknown"},
        {0, 2, DT_Q4_K, "'a.weight'"}, /* 8 columns are not a whole block */
        {2, 2, 9, "rank 9, at most 8"},
        {2, 2, 65535, "rank 65535"},
        {4, 4, 1, "reserved bytes are not zero"},
        {8, 8, 95, "95 bytes stated, type and dimensions make 96"},
        {8, 8, UINT64_MAX, "bytes stated"},
        {16, 8, UINT64_MAX, "'a.weight'"},
        {16, 8, (uint64_t)1 << 61, "'a.weight'"},
        {16, 8, (uint64_t)1 << 33, "bytes stated"},
        {16, 8, (uint64_t)1 << 59, "'a.weight'"}, /* 2^64 bytes: wraps to 0 */
        {40, 8, 1, "reserved bytes are not zero"},
        {80, 4, 9, "does not fit a name of 9"},
        {80, 4, UINT32_MAX, "does not fit a name"},
        {84, 4, UINT32_MAX, "does not fit a name"},
        {84, 4, 0, "does not fit a name"},
        {88, 1, 0x80, "not UTF-8"},
        {88, 1, '\n', "control characters"},
        {88, 1, 0, "control characters"},
        {96, 1, '[', "attributes"},
    };
    for (size_t i = 0; i < COUNT_OF(lies); i++) {
        struct forged f = model();
        put_byte(&f, forged_find(&f, TAG_TENS, 0), lies[i].offset, lies[i].n, lies[i].value);
        refused(&f, lies[i].message);
    }
}

static void set_tensor(struct forged *f, size_t at, const char *name, const char *attrs) {
    struct err e;
    struct buf b = {0};
    struct wire_tens t = {.desc = desc_of("x", DT_F32, 2, (uint64_t[]){3, 8}), .n_bytes = 96};
    memset(t.desc.name, 0, sizeof t.desc.name);
    memcpy(t.desc.name, name, strlen(name));
    t.attrs = attrs;
    t.n_attrs = strlen(attrs);
    OK(wire_tens_encode(&b, &t, &e));
    forged_set(f, at, b.data, b.len);
    buf_release(&b);
}

static void checks_names_and_attributes(void **state) {
    (void)state;
    struct forged f = model();
    size_t first = forged_find(&f, TAG_TENS, 0);
    set_tensor(&f, first, "", "");
    refused(&f, "name is empty");
    f = model();
    set_tensor(&f, first, "b", "");
    refused(&f, "tensor 'b' occurs twice in one segment");
    f = model();
    set_tensor(&f, first, "x", "[1]");
    refused(&f, "attributes are not a JSON object");
    f = model();
    set_tensor(&f, first, "x", "{\"a\":1,\"a\":2}");
    refused(&f, "tensor 'x': attributes");
    f = model();
    char *large = calloc(1, 66000);
    memset(large, ' ', 65990);
    set_tensor(&f, first, "x", large);
    free(large);
    refused(&f, "does not fit");
}

static void a_batch_has_no_attributes(void **state) {
    (void)state;
    struct forged f = tokens();
    set_tensor(&f, forged_find(&f, TAG_TENS, 0), "x", "{}");
    refused(&f, "tensor 'x': attributes in a batch");
}

static void a_name_may_be_long_but_not_longer(void **state) {
    (void)state;
    char name[TENSOR_MAX_NAME + 1] = {0};
    memset(name, 'n', TENSOR_MAX_NAME);
    struct forged f = model();
    size_t first = forged_find(&f, TAG_TENS, 0);
    set_tensor(&f, first, name, "");
    accepted(&f);
    f = model();
    set_tensor(&f, first, name, "");
    put_byte(&f, first, 80, 4, TENSOR_MAX_NAME + 1);
    refused(&f, "does not fit a name of 1025");
}

/* ---- JSON -------------------------------------------------------------------------------------------------------- */

static void checks_json(void **state) {
    (void)state;
    static const struct {
        const char *meta, *message;
    } lies[] = {
        {"", "record 0 at byte 64"},
        {"[]", "record 0 at byte 64"},
        {"{}", "kind"},
        {"{\"kind\":1}", "kind"},
        {"{\"kind\":\"novel\"}", "stream kind 'novel' is unknown"},
        {"{\"kind\":\"model\",\"kind\":\"tokens\"}", "kind"},
        {"{\"kind\":\"model\"}x", "record 0 at byte 64"},
        {"{\"kind\":\"model\",\"a\":{\"b\":1,\"b\":1}}", "b"},
        {"{\"kind\":\"model\",\"a\":\"\xff\"}", "record 0 at byte 64"},
    };
    for (size_t i = 0; i < COUNT_OF(lies); i++) {
        struct forged f = model();
        forged_set(&f, 0, lies[i].meta, strlen(lies[i].meta));
        refused(&f, lies[i].message);
    }
    struct forged f = model();
    struct buf deep = {0};
    struct err e;
    OK(buf_printf(&deep, &e, "{\"kind\":\"model\",\"a\":"));
    for (int i = 0; i < 100000; i++) OK(buf_append(&deep, "[", 1, &e));
    forged_set(&f, 0, deep.data, deep.len);
    buf_release(&deep);
    refused(&f, "record 0 at byte 64");
    f = model();
    forged_set(&f, forged_find(&f, TAG_PROV, 0), "{\"tool\":\"x\"}", 12);
    refused(&f, "id");
}

/* ---- order ------------------------------------------------------------------------------------------------------- */

static void checks_order(void **state) {
    (void)state;
    struct forged f = model();
    f.records[2].h.seq = 7;
    f.records[2].keep_seq = true;
    refused(&f, "has number 7: records are missing, repeated or out of order");
    f = model();
    forged_remove(&f, 0);
    refused(&f, "the first record is not META");
    f = model();
    forged_insert(&f, 1, TAG_META, "{\"kind\":\"model\"}", 16);
    refused(&f, "second META");
    f = model();
    forged_insert(&f, 1, TAG_VOCB, "v", 1);
    refused(&f, "second vocabulary");
    f = model();
    f.records[1].h.flags = 1;
    refused(&f, "fields that are for tensor data");
    f = model();
    forged_insert(&f, f.n - 1, TAG_INDX, "", 0);
    refused(&f, "index does not describe");
    f = model();
    forged_insert(&f, 2, TAG_BTCH, "", 0);
    refused(&f, "batch record of 0 bytes");
}

static void checks_the_end_record(void **state) {
    (void)state;
    static const char *const messages[] = {
        "of another segment", "of another segment", "counts are not", "counts are not", "counts are not",
        "counts are not",     "counts are not",     "counts are not", "counts are not", "reserved bytes"};
    for (size_t i = 0; i < COUNT_OF(messages); i++) {
        struct forged f = model();
        struct buf b = sealed(&f);
        f = forge(&b);
        f.keep_ends = true;
        f.records[f.n - 1].payload.data[8 * i] ^= 0x40;
        refused(&f, messages[i]);
    }
}

static void checks_the_index(void **state) {
    (void)state;
    for (size_t byte = 0; byte < 4 * WIRE_ENTRY_BYTES; byte += 5) {
        struct err e;
        struct buf b = stream_of(NULL, put_model, NULL), index = {0};
        size_t at = b.len - 192 - 192; /* header and four entries */
        OK(buf_append(&index, b.data + at + 64, 128, &e));
        assert_memory_equal(b.data + at + 4, "iNDX", 4);
        struct forged f = forge(&b);
        forged_insert(&f, f.n - 1, TAG_INDX, index.data, index.len);
        f.records[f.n - 2].payload.data[byte] ^= 0x10;
        refused(&f, "index does not describe");
        buf_release(&index);
    }
}

/* ---- batches ----------------------------------------------------------------------------------------------------- */

static void set_batch(struct forged *f, size_t nth, struct stream_batch b) {
    unsigned char p[WIRE_BTCH_BYTES];
    wire_batch_encode(p, &b);
    forged_set(f, forged_find(f, TAG_BTCH, nth), p, sizeof p);
}

static void checks_batches(void **state) {
    (void)state;
    static const struct {
        struct stream_batch b;
        const char *message;
    } lies[] = {
        {{.n_seqs = 0, .n_positions = 0, .n_tensors = 2}, "at least one sequence"},
        {{.n_seqs = 2, .n_positions = 1, .n_tensors = 2}, "at least one sequence"},
        {{.n_seqs = 2, .n_positions = 5, .n_tensors = 1025}, "batch of 1025 tensors"},
        {{.n_seqs = 2, .n_positions = 5, .n_tensors = 2, .flags = 6}, "unknown flags"},
        {{.n_seqs = 2, .n_positions = 5, .n_tensors = 3, .flags = 1},
         "batch inside batch 0, 1 tensors of which are missing"},
        {{.n_seqs = 2, .n_positions = 5, .n_tensors = 1, .flags = 1}, "outside a batch"},
        {{.n_seqs = 2, .n_positions = 5, .n_tensors = 2}, "expected 2"},
        {{.n_seqs = 1, .n_positions = 5, .n_tensors = 2, .flags = 1}, "expected 0"},
        {{.first_seq = UINT64_MAX, .n_seqs = 2, .n_positions = 5, .n_tensors = 2, .flags = 1}, "overflow"},
        {{.n_seqs = 2, .n_positions = UINT64_MAX, .first_pos = 1, .n_tensors = 2, .flags = 1}, "overflow"},
    };
    for (size_t i = 0; i < COUNT_OF(lies); i++) {
        struct forged f = tokens();
        set_batch(&f, 0, lies[i].b);
        refused(&f, lies[i].message);
    }
    struct forged f = tokens();
    set_batch(
        &f, 1,
        (struct stream_batch){
            .first_seq = 1, .first_pos = 2, .n_seqs = 1, .n_positions = 2, .n_tensors = 2, .flags = BATCH_CONTINUES});
    refused(&f, "continues in a batch that is missing");
    f = tokens();
    set_batch(&f, 1, (struct stream_batch){.first_seq = 1, .n_seqs = 1, .n_positions = 2, .n_tensors = 2});
    refused(&f, "not where the batch before ended");
    f = tokens(); /* a batch is missing */
    size_t second = forged_find(&f, TAG_BTCH, 1);
    for (int i = 0; i < 5; i++) forged_remove(&f, second);
    refused(&f, "continues in a batch that is missing");
}

/* ---- compressed chunks ------------------------------------------------------------------------------------------- */

enum { ZEROS = 16000 };

/* A handmade zstd frame of n zero bytes that requires a window of 2^window_log. */
static size_t frame(unsigned char *p, uint32_t content, unsigned window_log, uint32_t n) {
    const unsigned char head[] = {0x28, 0xb5, 0x2f, 0xfd, 2 << 6, (unsigned char)((window_log - 10) << 3)};
    memcpy(p, head, sizeof head);
    wire_u32_encode(p + 6, content);
    wire_u32_encode(p + 10, n << 3 | 1 << 1 | 1); /* the last block, run-length */
    p[13] = 0;
    return 14;
}

static struct forged zeros(uint16_t codec, const void *payload, size_t n) {
    struct forged f = model();
    size_t t = forged_find(&f, TAG_TENS, 0), d = t + 1;
    struct err e;
    struct buf b = {0};
    struct wire_tens x = {.desc = desc_of("zeros", DT_F32, 1, (uint64_t[]){ZEROS / 4}), .n_bytes = ZEROS};
    OK(wire_tens_encode(&b, &x, &e));
    forged_set(&f, t, b.data, b.len);
    buf_release(&b);
    forged_set(&f, d, payload, n);
    f.records[d].h.codec = codec;
    f.records[d].h.raw = ZEROS;
    f.records[d].h.stored = 0; /* differs from raw, so that sealing keeps raw */
    return f;
}

static void checks_zstd_frames(void **state) {
    (void)state;
    unsigned char p[64] = {0};
    size_t n = frame(p, ZEROS, 20, ZEROS);
    struct forged f = zeros(CODEC_ZSTD, p, n);
    accepted(&f);
    f = zeros(CODEC_ZSTD, p, frame(p, ZEROS, 24, ZEROS));
    accepted(&f);
    f = zeros(CODEC_ZSTD, p, frame(p, ZEROS, 25, ZEROS));
    refused(&f, "needs a window of 33554432 bytes, at most 16777216");
    f = zeros(CODEC_ZSTD, p, frame(p, ZEROS, 31, ZEROS));
    refused(&f, "needs a window of 2147483648 bytes");
    f = zeros(CODEC_ZSTD, p, frame(p, ZEROS - 1, 20, ZEROS));
    refused(&f, "of another size");
    f = zeros(CODEC_ZSTD, p, frame(p, ZEROS, 20, 130000));
    refused(&f, "zstd");
    f = zeros(CODEC_ZSTD, p, frame(p, ZEROS, 20, ZEROS - 1));
    refused(&f, "zstd");
    n = frame(p, ZEROS, 20, ZEROS);
    n += frame(p + n, ZEROS, 20, ZEROS);
    f = zeros(CODEC_ZSTD, p, n);
    refused(&f, "not one whole zstd frame");
    f = zeros(CODEC_ZSTD, p, frame(p, ZEROS, 20, ZEROS) - 2);
    refused(&f, "not one whole zstd frame");
    f = zeros(CODEC_ZSTD, "garbage", 7);
    refused(&f, "not one whole zstd frame");
    f = zeros(CODEC_ZSTD, "", 0);
    refused(&f, "not one whole zstd frame");
    f = zeros(CODEC_ZSTD, "\x50\x2a\x4d\x18\x04\0\0\0abcd", 12); /* a skippable frame */
    refused(&f, "zstd frame of another size");
    frame(p, ZEROS, 20, ZEROS);
    p[4] = 0; /* no content size: the block follows the window */
    memmove(p + 6, p + 10, 4);
    f = zeros(CODEC_ZSTD, p, 10);
    refused(&f, "does not say its size");
}

static void checks_planes(void **state) {
    (void)state;
    unsigned char p[128] = {0};
    size_t at = 16;
    for (size_t i = 0; i < 4; i++) {
        size_t n = frame(p + at, ZEROS / 4, 20, ZEROS / 4);
        wire_u32_encode(p + 4 * i, (uint32_t)n);
        at += n;
    }
    struct forged f = zeros(CODEC_PLANES, p, at);
    accepted(&f);
    f = zeros(CODEC_PLANES, p, at + 1);
    refused(&f, "bytes after the last plane");
    f = zeros(CODEC_PLANES, p, at - 1);
    refused(&f, "plane 3 has a wrong size");
    f = zeros(CODEC_PLANES, p, 15);
    refused(&f, "cannot be planes of f32");
    wire_u32_encode(p, 14 | 0x80000000u);
    f = zeros(CODEC_PLANES, p, at);
    refused(&f, "plane 0 has a wrong size");
    wire_u32_encode(p, 0x7fffffff);
    f = zeros(CODEC_PLANES, p, at);
    refused(&f, "plane 0 has a wrong size");
    wire_u32_encode(p, 13);
    f = zeros(CODEC_PLANES, p, at);
    refused(&f, "plane 0: chunk is not one whole zstd frame");
}

/* 25 KB that would expand to 800 MB: a chunk may not declare more than 16 MiB. */
static void refuses_bombs(void **state) {
    (void)state;
    unsigned char p[64];
    struct forged f = zeros(CODEC_ZSTD, p, frame(p, 800000000, 24, ZEROS));
    size_t t = forged_find(&f, TAG_TENS, 0);
    put_byte(&f, t, 8, 8, 800000000);
    put_byte(&f, t, 16, 8, 200000000);
    f.records[t + 1].h.raw = 800000000;
    refused(&f, "chunk of 800000000 bytes stored as 14 with codec zstd");
}

/* ---- foreign files ----------------------------------------------------------------------------------------------- */

static void tells_foreign_files(void **state) {
    (void)state;
    static const struct {
        const char *bytes;
        size_t n;
        const char *message;
    } files[] = {
        {"", 0, "in: empty: not a rill stream"},
        {"Once upon a time", 16,
         "in: not a rill stream (starts with \"Once upon a time\"; if it is text, rill tokenize makes tokens of it)"},
        {"GGUF\3\0\0\0", 8, "looks like a GGUF file (rill import reads it)"},
        {"\x08\0\0\0\0\0\0\0{\"a\":1}", 15, "looks like a safetensors file (rill import reads it)"},
        {"\x28\xb5\x2f\xfd....", 8, "compressed with zstd (zstd -dc gives the stream)"},
        {"\x1f\x8b......", 8, "compressed with gzip"},
        {"PK\x03\x04....", 8, "zip"},
        {"\x89RILL\n\x1a.", 8, "line ends were changed"},
        {"\1\2\3\4\5\6\7\10", 8, "starts with bytes 01 02 03 04"},
        {"\x89RIL", 4, "truncated"},
    };
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        struct err e = {0};
        assert_int_equal(read_bytes(files[i].bytes, files[i].n, &e), ERR_DATA);
        if (!strstr(e.msg, files[i].message)) fail_msg("'%s', expected '%s'", e.msg, files[i].message);
        assert_int_equal(read_piped(files[i].bytes, files[i].n, &e), ERR_DATA);
        assert_non_null(strstr(e.msg, files[i].message));
    }
}

static void names_record_and_byte(void **state) {
    (void)state;
    struct err e;
    struct buf b = stream_of(NULL, put_model, put_model);
    struct buf one = stream_of(NULL, put_model, NULL);
    size_t data = 64 + 128 + 128 + 256 + 64; /* file header, META, VOCB, TENS, DATA's header */
    b.data[data] ^= 1;
    assert_int_equal(read_bytes(b.data, b.len, &e), ERR_DATA);
    assert_string_equal(e.msg, "in: record 3 at byte 512: tensor 'a.weight': checksum mismatch");
    b.data[data] ^= 1;
    b.data[one.len + data] ^= 1;
    assert_int_equal(read_bytes(b.data, b.len, &e), ERR_DATA);
    char want[128];
    snprintf(want, sizeof want, "in: segment 2, record 3 at byte %zu: tensor 'a.weight': checksum mismatch",
             one.len + 512);
    assert_string_equal(e.msg, want);
    buf_release(&b);
    buf_release(&one);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sealing_by_itself_changes_nothing),
        cmocka_unit_test(tells_versions),
        cmocka_unit_test(refuses_unknown_critical_records),
        cmocka_unit_test(gives_unknown_optional_records),
        cmocka_unit_test(sizes_do_not_drive_allocation),
        cmocka_unit_test(a_huge_tensor_costs_what_arrives),
        cmocka_unit_test(checks_chunks),
        cmocka_unit_test(checks_that_a_chunk_ends_the_tensor),
        cmocka_unit_test(checks_tensor_records),
        cmocka_unit_test(checks_names_and_attributes),
        cmocka_unit_test(a_batch_has_no_attributes),
        cmocka_unit_test(a_name_may_be_long_but_not_longer),
        cmocka_unit_test(checks_json),
        cmocka_unit_test(checks_order),
        cmocka_unit_test(checks_the_end_record),
        cmocka_unit_test(checks_the_index),
        cmocka_unit_test(checks_batches),
        cmocka_unit_test(checks_zstd_frames),
        cmocka_unit_test(checks_planes),
        cmocka_unit_test(refuses_bombs),
        cmocka_unit_test(tells_foreign_files),
        cmocka_unit_test(names_record_and_byte),
    };
    return cmocka_run_group_tests_name("stream-hostile", tests, NULL, NULL);
}
