/*
 * What the tests of lib/text share: random texts, and the golden tokenizers (tests/golden/tokenizers), read by a small
 * loader that knows only the features of those files.
 */
#ifndef RILL_TEXT_SAMPLES_H
#define RILL_TEXT_SAMPLES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>
#include <zstd.h>

#include "lib/text/text.h"

#define TOKENIZERS "tests/golden/tokenizers/"

/* The frames of these files state their content size. */
static inline struct buf read_zst(const char *path) {
    struct err e = {0};
    struct buf packed = {0}, plain = {0};
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s: cannot open", path);
    for (size_t got = 1; got; packed.len += got) {
        assert_int_equal(buf_reserve(&packed, 1 << 20, &e), 0);
        got = fread(packed.data + packed.len, 1, 1 << 20, f);
    }
    fclose(f);
    unsigned long long size = ZSTD_getFrameContentSize(packed.data, packed.len);
    assert_true(size < (64u << 20));
    assert_int_equal(buf_reserve(&plain, size, &e), 0);
    plain.len = ZSTD_decompress(plain.data, size, packed.data, packed.len);
    assert_int_equal(plain.len, size);
    buf_release(&packed);
    return plain;
}

/* ---- tokenizer.json ---- */

static inline const cJSON *json_at(const cJSON *object, const char *key) {
    return cJSON_GetObjectItemCaseSensitive(object, key);
}

static inline void add_token(struct vocab *spec, const struct buf *bytes, uint32_t id, uint32_t flags) {
    struct err e = {0};
    unsigned char *copy = arena_alloc(&spec->memory, bytes->len, &e);
    assert_non_null(copy);
    memcpy(copy, bytes->data, bytes->len);
    assert_in_range(id, 0, spec->n_tokens - 1);
    spec->tokens[id] = (struct token){.bytes = copy, .n_bytes = (uint32_t)bytes->len, .flags = flags};
}

static inline uint32_t flag(const cJSON *token, const char *key, uint32_t bit) {
    return cJSON_IsTrue(json_at(token, key)) ? bit : 0;
}

static inline void read_tokens(struct vocab *spec, const cJSON *root) {
    struct err e = {0};
    struct buf b = {0};
    const cJSON *t;
    cJSON_ArrayForEach(t, json_at(json_at(root, "model"), "vocab")) {
        b.len = 0;
        if (text_unspell(t->string, strlen(t->string), &b, &e) != 0) continue; /* an added token, below */
        add_token(spec, &b, (uint32_t)t->valuedouble, 0);
    }
    cJSON_ArrayForEach(t, json_at(root, "added_tokens")) {
        const char *text = json_at(t, "content")->valuestring;
        b.len = 0;
        assert_int_equal(buf_append(&b, text, strlen(text), &e), 0);
        add_token(spec, &b, (uint32_t)json_at(t, "id")->valuedouble,
                  TOKEN_ADDED | flag(t, "special", TOKEN_SPECIAL) | flag(t, "lstrip", TOKEN_LSTRIP) |
                      flag(t, "rstrip", TOKEN_RSTRIP) | flag(t, "single_word", TOKEN_SINGLE_WORD) |
                      flag(t, "normalized", TOKEN_NORMALIZED));
    }
    buf_release(&b);
}

static inline uint32_t find_spelled(const struct vocab *v, const char *s, size_t n) {
    struct err e = {0};
    struct buf b = {0};
    assert_int_equal(text_unspell(s, n, &b, &e), 0);
    uint32_t id = vocab_find(v, b.data, b.len);
    buf_release(&b);
    return id;
}

static inline void read_merges(struct vocab *spec, const cJSON *merges) {
    struct err e = {0};
    struct vocab *bare;
    if (vocab_new(&bare, spec, &e) != 0) fail_msg("%s", e.msg);
    spec->merges = arena_array(&spec->memory, (size_t)cJSON_GetArraySize(merges), sizeof *spec->merges, &e);
    assert_non_null(spec->merges);
    struct buf joined = {0};
    const cJSON *m;
    cJSON_ArrayForEach(m, merges) {
        const char *left = m->valuestring, *space = strchr(left, ' ');
        joined.len = 0;
        assert_int_equal(buf_printf(&joined, &e, "%.*s%s", (int)(space - left), left, space + 1), 0);
        spec->merges[spec->n_merges++] = (struct merge){
            find_spelled(bare, left, (size_t)(space - left)),
            find_spelled(bare, space + 1, strlen(space + 1)),
            find_spelled(bare, (const char *)joined.data, joined.len),
        };
    }
    buf_release(&joined);
    vocab_free(bare);
}

static const char *const golden_names[] = {"smollm2", "llama-bpe", "qwen2", "gpt2"};
static const enum text_pre golden_pre[] = {PRE_SMOLLM, PRE_LLAMA_BPE, PRE_QWEN2, PRE_GPT2};
#define N_GOLDEN COUNT_OF(golden_names)

static inline struct vocab *load_tokenizer(const char *path, enum text_pre pre) {
    struct err e = {0};
    struct buf text = read_zst(path);
    cJSON *root = json_parse((const char *)text.data, text.len, &e);
    if (!root) fail_msg("%s: %s", path, e.msg);
    const cJSON *model = json_at(root, "model");
    struct vocab spec = {.pre = pre, .bos = TOKEN_NONE, .eos = TOKEN_NONE, .pad = TOKEN_NONE};
    spec.unk = TOKEN_NONE;
    spec.nfc = cJSON_IsObject(json_at(root, "normalizer"));
    spec.ignore_merges = cJSON_IsTrue(json_at(model, "ignore_merges"));
    const cJSON *t;
    cJSON_ArrayForEach(t, json_at(model, "vocab")) if (t->valuedouble >= spec.n_tokens) spec.n_tokens =
        (uint32_t)t->valuedouble + 1;
    cJSON_ArrayForEach(t, json_at(root, "added_tokens")) if (json_at(t, "id")->valuedouble >= spec.n_tokens)
        spec.n_tokens = (uint32_t)json_at(t, "id")->valuedouble + 1;
    spec.tokens = arena_array(&spec.memory, spec.n_tokens, sizeof *spec.tokens, &e);
    assert_non_null(spec.tokens);
    read_tokens(&spec, root);
    read_merges(&spec, json_at(model, "merges"));
    struct vocab *v;
    if (vocab_new(&v, &spec, &e) != 0) fail_msg("%s: %s", path, e.msg);
    arena_release(&spec.memory);
    cJSON_Delete(root);
    buf_release(&text);
    return v;
}

static inline struct vocab *load_golden(size_t which) {
    char path[256];
    snprintf(path, sizeof path, TOKENIZERS "%s.json.zst", golden_names[which]);
    return load_tokenizer(path, golden_pre[which]);
}

/* The first golden tokenizer, with tokens that begin and end a text. */
static inline struct vocab *load_golden_with_ends(void) {
    struct err e = {0};
    struct vocab *plain = load_golden(0), spec = *plain, *v;
    spec.bos = vocab_find(plain, "<|im_start|>", 12);
    spec.eos = vocab_find(plain, "<|endoftext|>", 13);
    assert_true(spec.bos != TOKEN_NONE && spec.eos != TOKEN_NONE);
    if (vocab_new(&v, &spec, &e) != 0) fail_msg("%s", e.msg);
    vocab_free(plain);
    return v;
}

/* ---- the golden texts and their ids ---- */

struct golden_texts {
    struct buf file;
    size_t n;
    const unsigned char **text;
    uint32_t *n_bytes;
};

static inline uint32_t u32_at(const struct buf *b, size_t at) {
    assert_true(at + 4 <= b->len);
    const unsigned char *p = b->data + at;
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline struct golden_texts load_golden_texts(void) {
    struct err e = {0};
    struct golden_texts g = {.file = read_zst(TOKENIZERS "lines.bin.zst")};
    for (size_t at = 0; at < g.file.len; g.n++) at += 4 + u32_at(&g.file, at);
    g.text = mem_array(g.n, sizeof *g.text, &e);
    g.n_bytes = mem_array(g.n, sizeof *g.n_bytes, &e);
    assert_true(g.text && g.n_bytes);
    for (size_t at = 0, i = 0; i < g.n; at += 4 + g.n_bytes[i], i++) {
        g.n_bytes[i] = u32_at(&g.file, at);
        g.text[i] = g.file.data + at + 4;
    }
    return g;
}

static inline void free_golden_texts(struct golden_texts *g) {
    mem_free(g->text);
    mem_free(g->n_bytes);
    buf_release(&g->file);
}

/* ---- encoding that must succeed ---- */

static inline struct text_ids must_encode(const struct vocab *v, const void *text, size_t n,
                                          const struct text_encode_options *o) {
    struct err e = {0};
    struct text_ids ids = {0};
    if (text_encode(v, text, n, o, &ids, &e) != 0) fail_msg("%s", e.msg);
    return ids;
}

/* ---- random texts: pieces of everything that the pre-tokenizers distinguish ---- */

static inline size_t random_text(struct rng *r, unsigned char *out, size_t max) {
    static const char *const parts[] = {"a",
                                        "the",
                                        " word",
                                        "Zx",
                                        "'s",
                                        "'S",
                                        "'ll",
                                        "'re",
                                        "1",
                                        "23",
                                        "4567",
                                        " ",
                                        "  ",
                                        "\n",
                                        "\r\n",
                                        "\t",
                                        "   ",
                                        "!",
                                        "...",
                                        ",",
                                        "_",
                                        "<",
                                        "|>",
                                        "{",
                                        "}",
                                        "\xc3\xa9",
                                        "\xc5\xbf",
                                        "e\xcc\x81",
                                        "\xcc\xa3\xcc\x87",
                                        "\xe4\xb8\xad\xe6\x96\x87",
                                        "\xe3\x80\x82",
                                        "\xf0\x9f\x98\x80",
                                        "\xef\xbc\x95",
                                        "\xc2\xa0",
                                        "\xe2\x80\x83",
                                        "\xe1\xa0\x8e",
                                        "\xe3\x80\x80",
                                        "\xd9\xa3",
                                        "\xea\xb0\x80",
                                        "\xe1\x84\x80\xe1\x85\xa1",
                                        "\xff",
                                        "\xc3",
                                        "\xe4\xb8",
                                        "\xed\xa0\x80",
                                        "\xf4\x90\x80\x80",
                                        "<|endoftext|>",
                                        "<|im_start|>",
                                        "<|eot_id|>",
                                        "<|endof",
                                        "\x00\x01"};
    size_t n = 0;
    for (;;) {
        const char *p = parts[rng_below(r, COUNT_OF(parts))];
        size_t len = *p ? strlen(p) : 2;
        char any = (char)rng_u32(r);
        if (rng_below(r, 8) == 0) len = 1, p = &any;
        if (n + len > max) return n;
        memcpy(out + n, p, len);
        n += len;
    }
}

#endif
