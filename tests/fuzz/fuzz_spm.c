/* Fuzzes SentencePiece models. An accepted model must encode and decode a text, and be written and read again. */
#include "lib/formats/formats_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool holds) {
    if (!holds) abort();
}

static void encode(const struct vocab *v) {
    static const char text[] = "  The  caf\xc3\xa9 \xe6\x95\xb0\xf0\x9f\xa6\x99\n<s> 12\xff ";
    struct err e;
    struct text_ids ids = {0};
    struct buf back = {0};
    must(text_encode(v, text, sizeof text - 1, NULL, &ids, &e) == 0);
    must(text_decode(v, ids.ids, ids.n, false, &back, &e) == 0);
    text_ids_release(&ids);
    buf_release(&back);
}

static void pack(const struct vocab *v) {
    struct err e;
    struct vocab *w;
    struct buf a = {0}, b = {0};
    must(vocab_pack(v, &a, &e) == 0 && vocab_unpack(&w, a.data, a.len, &e) == 0 && vocab_pack(w, &b, &e) == 0);
    must(a.len == b.len && memcmp(a.data, b.data, a.len) == 0);
    vocab_free(w);
    buf_release(&a);
    buf_release(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct err e;
    struct vocab *v, spec;
    struct buf json = {0}, config = {0};
    draft_init(&spec);
    int rc = spm_read(&spec, (struct span){(const char *)data, size}, &e);
    if (!rc) rc = draft_finish(&spec, &v, &e);
    arena_release(&spec.memory);
    if (rc) return 0;
    encode(v);
    pack(v);
    rc = hf_tokenizer_write(v, &json, &config, &e);
    buf_release(&json);
    buf_release(&config);
    vocab_free(v);
    return 0;
}
