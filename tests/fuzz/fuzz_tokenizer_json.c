/*
 * The input as tokenizer.json, up to a zero byte as that and tokenizer_config.json; what is understood is written and read
 * again, which must give the same vocabulary.
 */
#include "lib/formats/formats_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void write_and_read(const struct vocab *v) {
    struct err e;
    struct vocab *back = NULL;
    struct buf json = {0}, config = {0}, before = {0}, after = {0};
    if (hf_tokenizer_write(v, &json, &config, &e) == 0) { /* two added tokens of one text cannot be written */
        if (hf_tokenizer_read(&back, json.data, json.len, config.data, config.len, &e)) {
            fprintf(stderr, "%s\n%.*s\n", e.msg, (int)json.len, (char *)json.data);
            abort();
        }
        if (vocab_pack(v, &before, &e) || vocab_pack(back, &after, &e)) abort();
        if (before.len != after.len || memcmp(before.data, after.data, before.len) != 0) abort();
    }
    vocab_free(back);
    buf_release(&json);
    buf_release(&config);
    buf_release(&before);
    buf_release(&after);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct err e;
    struct vocab *v;
    const uint8_t *zero = size ? memchr(data, 0, size) : NULL;
    size_t n = zero ? (size_t)(zero - data) : size;
    if (hf_tokenizer_read(&v, data, n, zero ? zero + 1 : NULL, zero ? size - n - 1 : 0, &e)) return 0;
    write_and_read(v);
    vocab_free(v);
    return 0;
}
