/*
 * Fuzzes tokenizer files, separated by zero bytes: tokenizer.json, tokenizer_config.json, special_tokens_map.json,
 * added_tokens.json, chat_template.jinja; if the first is empty, also vocab.json and merges.txt, as for a Qwen2 model.
 * An accepted tokenizer is written and read again, which must give the same vocabulary.
 */
#include "lib/formats/formats_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void write_and_read(const struct vocab *v) {
    struct err e;
    struct vocab *back = NULL;
    struct buf json = {0}, config = {0}, before = {0}, after = {0};
    if (hf_tokenizer_write(v, &json, &config, &e) == 0) { /* two added tokens with the same text cannot be written */
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

/* Returns the next part, or {NULL, 0} after the last zero byte. */
static struct span next_part(const uint8_t **data, size_t *size) {
    if (!*data) return (struct span){NULL, 0};
    const uint8_t *zero = *size ? memchr(*data, 0, *size) : NULL;
    struct span part = {(const char *)*data, zero ? (size_t)(zero - *data) : *size};
    *size -= part.n + (zero != NULL);
    *data = zero ? zero + 1 : NULL;
    return part;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct err e;
    struct vocab *v, spec;
    struct hf_tokenizer_files f = {.n_rows = 512};
    struct span *const parts[] = {&f.tokenizer, &f.config, &f.map, &f.added, &f.chat_template, &f.vocab, &f.merges};
    for (size_t i = 0; i < COUNT_OF(parts); i++) *parts[i] = next_part(&data, &size);
    if (!f.tokenizer.n && f.vocab.s && f.merges.s) f.tokenizer.s = NULL;
    cJSON *model = json_parse("{\"model_type\":\"qwen2\"}", 22, &e);
    f.model_config = model;
    draft_init(&spec);
    int rc = hf_tokenizer_parse(&spec, &f, &e);
    if (!rc) rc = draft_finish(&spec, &v, &e);
    arena_release(&spec.memory);
    cJSON_Delete(model);
    if (rc) return 0;
    write_and_read(v);
    vocab_free(v);
    return 0;
}
