/*
 * Tests of the sparse codec: exact for every pattern of zeros and every type, smaller, and everything that the
 * specification forbids is refused.
 */
#include "tests/unit/stream_forge.h"
#include "tests/unit/stream_samples.h"

#define GOLDEN "formats/golden/v1-zeros-sparse.rill"
enum { MANY = 6000 };

static const struct stream_write_options sparse = {.codec = CODEC_SPARSE},
                                         small = {.codec = CODEC_SPARSE, .chunk_bytes = 300};

/* ---- the values ---- */

/* A nonzero bit pattern: NaN, -0, subnormal numbers and all others. */
static uint16_t element(size_t i) {
    static const uint16_t special[] = {0x8000, 0x7fc0, 0x0001, 0xff80, 0x0100};
    return i % 97 < COUNT_OF(special) ? special[i % 97] : (uint16_t)(0x3c00 | (i * 2654435761u >> 20 & 0x83ff) | 1);
}

/* Whether element i is nonzero, by `kind`: none, all, random ones, two of each four, 2:4 with one more, three of
 * each four. */
enum { NONE, ALL, RANDOM, FOURS, ALMOST_FOURS, DENSE, KINDS };
static bool is_there(int kind, size_t i) {
    switch (kind) {
    case NONE: return false;
    case ALL: return true;
    case RANDOM: return i * 2246822519u >> 13 & 1;
    case FOURS: return (0xca9653u >> i / 4 % 6 * 4 & 0xf) >> i % 4 & 1;
    case ALMOST_FOURS: return i == 2 || is_there(FOURS, i);
    default: return i % 4 != 1;
    }
}

static void fill(int kind, uint16_t *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = is_there(kind, i) ? element(i) : 0;
}

static void put_kinds(struct stream_writer *w) {
    static const uint64_t sizes[] = {1, 2, 3, 4, 7, 8, 11, 12, 13, 20, 24, 600, MANY};
    struct err e;
    uint16_t x[MANY];
    char name[32];
    put_meta(w, "{\"kind\":\"stats\"}");
    for (int kind = 0; kind < KINDS; kind++)
        for (size_t s = 0; s < COUNT_OF(sizes); s++) {
            snprintf(name, sizeof name, "k%d.%u", kind, (unsigned)sizes[s]);
            struct tensor_desc d = desc_of(name, DT_BF16, 1, &sizes[s]);
            fill(kind, x, sizes[s]);
            OK(stream_write_tensor(w, &d, NULL, x, &e));
        }
}

static void put_types(struct stream_writer *w) {
    static const enum dtype types[] = {DT_F32, DT_F64, DT_U8, DT_I16, DT_I64, DT_Q8_0};
    struct err e;
    unsigned char bytes[64 * 34];
    put_meta(w, "{\"kind\":\"stats\"}");
    for (size_t t = 0; t < COUNT_OF(types); t++) {
        const struct dtype_info *info = dtype_info(types[t]);
        uint64_t n = 64 * info->block_elems;
        struct tensor_desc d = desc_of(info->name, types[t], 1, &n);
        for (size_t i = 0; i < 64 * info->block_bytes; i++)
            bytes[i] = is_there(RANDOM, i / info->block_bytes) ? (unsigned char)(i * 7 + 1) : 0;
        OK(stream_write_tensor(w, &d, NULL, bytes, &e));
    }
}

/* ---- reading back ---- */

static void assert_same_data(struct buf a, struct buf b) {
    assert_same_content(&a, &b);
    buf_release(&a);
    buf_release(&b);
}

static void gives_back_every_bit(void **state) {
    (void)state;
    assert_same_data(stream_of(NULL, put_kinds, NULL), stream_of(&sparse, put_kinds, NULL));
    assert_same_data(stream_of(NULL, put_kinds, NULL), stream_of(&small, put_kinds, NULL));
    assert_same_data(stream_of(NULL, put_types, NULL), stream_of(&sparse, put_types, NULL));
}

/* A bf16 matrix of noise, half of it 0. */
static int noise_kind;
static void put_noise(struct stream_writer *w) {
    struct err e;
    uint64_t n = 1 << 20;
    uint16_t *x = mem_alloc(n * sizeof *x, &e);
    struct rng r = rng_init(1, 0);
    struct tensor_desc d = desc_of("noise", DT_BF16, 1, &n);
    for (size_t i = 0; i < n; i++) x[i] = is_there(noise_kind, i) ? (uint16_t)(rng_u32(&r) | 1) : 0;
    put_meta(w, "{\"kind\":\"stats\"}");
    OK(stream_write_tensor(w, &d, NULL, x, &e));
    mem_free(x);
}

/* Noise takes 16 bits per element kept, plus one bit per element for the map, or two thirds of a bit in 2:4. */
static void half_the_zeros_are_half_the_bytes(void **state) {
    (void)state;
    static const struct {
        int kind;
        double bits;
    } cases[] = {{RANDOM, 9}, {FOURS, 8 + 2.0 / 3}, {ALMOST_FOURS, 9}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        noise_kind = cases[i].kind;
        struct buf b = stream_of(&sparse, put_noise, NULL);
        double bits = 8.0 * (double)b.len / (1 << 20);
        if (!(bits < cases[i].bits + 0.02)) fail_msg("kind %d: %.3f bits", noise_kind, bits);
        int threads = parallel_threads();
        parallel_set_threads(threads == 1 ? 4 : 1);
        struct buf again = stream_of(&sparse, put_noise, NULL);
        parallel_set_threads(threads);
        assert_int_equal(again.len, b.len);
        assert_memory_equal(again.data, b.data, b.len);
        buf_release(&again);
        buf_release(&b);
    }
}

/* ---- damage ---- */

static void put_two(struct stream_writer *w) {
    struct err e;
    uint16_t x[120];
    put_meta(w, "{\"kind\":\"stats\"}");
    for (int kind = RANDOM; kind <= FOURS; kind++) {
        struct tensor_desc d = desc_of(kind == RANDOM ? "random" : "fours", DT_BF16, 1, (uint64_t[]){120});
        fill(kind, x, 120);
        OK(stream_write_tensor(w, &d, NULL, x, &e));
    }
}

static void notices_cuts_and_flips(void **state) {
    (void)state;
    struct err e;
    struct buf b = stream_of(&sparse, put_two, NULL);
    for (size_t n = 0; n < b.len; n++) assert_int_equal(read_bytes(b.data, n, &e), ERR_DATA);
    notices_flips_in(b);
}

static void put_plain(struct stream_writer *w) {
    put_meta(w, "{\"kind\":\"stats\"}");
    put_f32(w, "x", 1, 1, NULL);
}

/* 24 bytes of u8 as a handmade sparse chunk, valid except for the given payload. */
static struct forged chunk(const void *payload, size_t n) {
    struct err e;
    struct buf whole = stream_of(NULL, put_plain, NULL), b = {0};
    struct forged f = forge(&whole);
    size_t t = forged_find(&f, TAG_TENS, 0);
    struct wire_tens x = {.desc = desc_of("x", DT_U8, 1, (uint64_t[]){24}), .n_bytes = 24};
    OK(wire_tens_encode(&b, &x, &e));
    forged_set(&f, t, b.data, b.len);
    buf_release(&b);
    forged_set(&f, t + 1, payload, n);
    f.records[t + 1].h.codec = CODEC_SPARSE;
    f.records[t + 1].h.raw = 24;
    f.records[t + 1].h.stored = 0;
    return f;
}

static void refuses_what_the_page_refuses(void **state) {
    (void)state;
    /* k, a map of 24 bits, one raw plane */
    static const unsigned char good[] = {2, 0, 0, 0, 0x80, 0, 1, 2, 0, 0, 0x80, 8, 9};
    static const unsigned char fours[] = {12, 0, 0, 0x80, 5 + 6 * 4, 215, 12, 0, 0,  0x80, 1,
                                          2,  3, 4, 5,    6,         7,   8,  9, 10, 11,   12};
    static const unsigned char none[] = {0, 0, 0, 0, 0, 0, 0};
    static const struct {
        unsigned char at, to;
        const char *says;
    } cases[] = {
        {0, 3, "the map of a sparse chunk is not one of 3 of 24 elements"},
        {0, 25, "cannot be sparse u8"},
        {3, 0x40, "cannot be sparse u8"},
        {4, 0x81, "the map of a sparse chunk is not one of 2"},
        {7, 3, "plane 0 has a wrong size"},
        {10, 0, "plane 0: chunk is not one whole zstd frame"},
        {3, 0x80, "the map of a sparse chunk is not one of 2"},
    };
    unsigned char p[64];
    struct forged f = chunk(good, sizeof good);
    accepted(&f);
    f = chunk(none, sizeof none);
    accepted(&f);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        memcpy(p, good, sizeof good);
        p[cases[i].at] = cases[i].to;
        f = chunk(p, sizeof good);
        refused(&f, cases[i].says);
    }
    for (size_t n = 0; n < sizeof good; n++) { /* truncated, with a correct checksum */
        f = chunk(good, n);
        refused(&f, "");
    }
    memcpy(p, none, sizeof none);
    f = chunk(p, sizeof none + 1);
    refused(&f, "bytes after the map");
    f = chunk(fours, sizeof fours);
    accepted(&f);
    memcpy(p, fours, sizeof fours);
    p[5] = 216; /* not three patterns */
    f = chunk(p, sizeof fours);
    refused(&f, "the map of a sparse chunk");
    p[5] = 215, p[0] = 11;
    f = chunk(p, sizeof fours);
    refused(&f, "the map of a sparse chunk is not one of 11 of 24");
}

/* ---- the file of version 1 ---- */

static void put_golden(struct stream_writer *w) {
    struct err e;
    uint16_t x[600];
    put_meta(w, "{\"kind\":\"stats\"}");
    for (int kind = 0; kind < KINDS; kind++) {
        char name[8] = {(char)('a' + kind)};
        struct tensor_desc d = desc_of(name, DT_BF16, 2, (uint64_t[]){10, 60});
        fill(kind, x, 600);
        OK(stream_write_tensor(w, &d, NULL, x, &e));
    }
}

static void reads_version_1(void **state) {
    (void)state;
    int fd = open(GOLDEN, O_RDONLY);
    if (fd < 0) fail_msg(GOLDEN " is missing (run this test from the top folder)");
    assert_same_data(contents(fd), stream_of(NULL, put_golden, NULL));
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "--write")) {
        struct buf b = stream_of(&sparse, put_golden, NULL);
        int fd = open(argv[2], O_WRONLY | O_CREAT | O_EXCL, 0644);
        return fd < 0 || write(fd, b.data, b.len) != (ssize_t)b.len;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gives_back_every_bit),   cmocka_unit_test(half_the_zeros_are_half_the_bytes),
        cmocka_unit_test(notices_cuts_and_flips), cmocka_unit_test(refuses_what_the_page_refuses),
        cmocka_unit_test(reads_version_1),
    };
    return cmocka_run_group_tests_name("stream-sparse", tests, NULL, NULL);
}
