#include "tests/unit/stream_samples.h"

static void writes_and_reads_back(void **state) {
    (void)state;
    struct err e;
    for (int codec = CODEC_RAW; codec <= CODEC_PLANES; codec++) {
        struct stream_write_options o = {.codec = (enum stream_codec)codec};
        struct buf b = stream_of(&o, put_model, put_tokens);
        assert_int_equal(b.len % 64, 0);
        int code = read_bytes(b.data, b.len, &e);
        if (code) fail_msg("%s", e.msg);
        buf_release(&b);
    }
}

static void notices_every_cut(void **state) {
    (void)state;
    struct err e;
    struct buf b = stream_of(NULL, put_model, NULL);
    for (size_t n = 0; n < b.len; n++) {
        memset(&e, 0, sizeof e);
        assert_int_equal(read_bytes(b.data, n, &e), ERR_DATA);
        if (n >= 8 && !strstr(e.msg, "truncated")) fail_msg("cut at %zu: %s", n, e.msg);
    }
    buf_release(&b);
}

static void notices_every_flipped_bit(void **state) {
    (void)state;
    struct err e;
    struct buf b = stream_of(NULL, put_model, put_tokens);
    for (size_t i = 0; i < 8 * b.len; i++) {
        b.data[i / 8] ^= (unsigned char)(1 << i % 8);
        if (read_bytes(b.data, b.len, &e) != ERR_DATA) fail_msg("bit %zu of byte %zu", i % 8, i / 8);
        b.data[i / 8] ^= (unsigned char)(1 << i % 8);
    }
    buf_release(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(writes_and_reads_back),
        cmocka_unit_test(notices_every_cut),
        cmocka_unit_test(notices_every_flipped_bit),
    };
    return cmocka_run_group_tests_name("stream", tests, NULL, NULL);
}
