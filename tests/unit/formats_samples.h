/*
 * Samples for the tests of lib/formats: a GGUF built byte by byte, so that every count and offset in it can be
 * falsified; temporary folders; the stream that importing a foreign model gives.
 */
#ifndef RILL_TESTS_FORMATS_SAMPLES_H
#define RILL_TESTS_FORMATS_SAMPLES_H

#include "tests/unit/model_samples.h"

#include "lib/formats/formats_internal.h"

#define GOLDEN "tests/golden/"

/* ---- bytes of a GGUF ---- */

static inline void add_bytes(struct buf *b, const void *data, size_t n) {
    struct err e;
    OK(buf_append(b, data, n, &e));
}

/* Returns the bytes of a file in a folder. */
static inline struct buf file_of_folder(const char *folder, const char *name) {
    char path[512], piece[4096];
    struct buf b = {0};
    size_t n;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    while ((n = fread(piece, 1, sizeof piece, f)) > 0) add_bytes(&b, piece, n);
    assert_int_equal(fclose(f), 0);
    return b;
}

static inline void add_u32(struct buf *b, uint32_t v) {
    add_bytes(b, &v, sizeof v);
}

static inline void add_u64(struct buf *b, uint64_t v) {
    add_bytes(b, &v, sizeof v);
}

static inline void add_string(struct buf *b, const char *s) {
    add_u64(b, strlen(s));
    add_bytes(b, s, strlen(s));
}

/* Keys and tensor descriptions are collected separately; gguf_bytes joins them. */
struct gguf_sample {
    struct buf keys, infos, data;
    uint64_t n_keys, n_tensors;
    uint32_t version, alignment;
};

static inline void key_number(struct gguf_sample *g, const char *key, enum gguf_type type, uint64_t v, size_t bytes) {
    add_string(&g->keys, key);
    add_u32(&g->keys, type);
    add_bytes(&g->keys, &v, bytes);
    g->n_keys++;
}

static inline void key_u32(struct gguf_sample *g, const char *key, uint32_t v) {
    key_number(g, key, GGUF_U32, v, 4);
}

static inline void key_f32(struct gguf_sample *g, const char *key, float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    key_number(g, key, GGUF_F32, bits, 4);
}

static inline void key_string(struct gguf_sample *g, const char *key, const char *v) {
    add_string(&g->keys, key);
    add_u32(&g->keys, GGUF_STRING);
    add_string(&g->keys, v);
    g->n_keys++;
}

static inline void key_array(struct gguf_sample *g, const char *key, enum gguf_type type, uint64_t n) {
    add_string(&g->keys, key);
    add_u32(&g->keys, GGUF_ARRAY);
    add_u32(&g->keys, type);
    add_u64(&g->keys, n);
    g->n_keys++;
}

static inline void key_strings(struct gguf_sample *g, const char *key, const char *const *v, size_t n) {
    key_array(g, key, GGUF_STRING, n);
    for (size_t i = 0; i < n; i++) add_string(&g->keys, v[i]);
}

/* Adds a tensor description, which may be false; the caller adds the data. */
static inline void add_info(struct gguf_sample *g, const char *name, unsigned rank, const uint64_t *ne, uint32_t type,
                            uint64_t offset) {
    add_string(&g->infos, name);
    add_u32(&g->infos, rank);
    for (unsigned i = 0; i < rank; i++) add_u64(&g->infos, ne[i]);
    add_u32(&g->infos, type);
    add_u64(&g->infos, offset);
    g->n_tensors++;
}

static inline void pad(struct buf *b, size_t align) {
    while (b->len % align) add_bytes(b, "", 1);
}

/* Adds a valid f32 tensor of small numbers. Dimensions are in GGUF's order. */
static inline void add_f32(struct gguf_sample *g, const char *name, uint64_t row, uint64_t rows) {
    uint64_t ne[2] = {row, rows};
    add_info(g, name, rows ? 2 : 1, ne, 0, g->data.len);
    for (uint64_t i = 0; i < row * (rows ? rows : 1); i++) {
        float v = (float)(g->n_tensors * 1000 + i) / 1024;
        add_bytes(&g->data, &v, sizeof v);
    }
    pad(&g->data, g->alignment);
}

static inline struct buf gguf_bytes(const struct gguf_sample *g) {
    struct buf b = {0};
    add_bytes(&b, "GGUF", 4);
    add_u32(&b, g->version);
    add_u64(&b, g->n_tensors);
    add_u64(&b, g->n_keys);
    add_bytes(&b, g->keys.data, g->keys.len);
    add_bytes(&b, g->infos.data, g->infos.len);
    pad(&b, g->alignment);
    add_bytes(&b, g->data.data, g->data.len);
    return b;
}

static inline void gguf_sample_release(struct gguf_sample *g) {
    buf_release(&g->keys);
    buf_release(&g->infos);
    buf_release(&g->data);
}

static inline struct gguf_sample gguf_sample(void) {
    return (struct gguf_sample){.version = 3, .alignment = GGUF_DEFAULT_ALIGNMENT};
}

/* The smallest llama with a tokenizer: one layer, two heads of 4, one key/value head, six tokens. */
static inline void tiny_keys(struct gguf_sample *g) {
    static const char *const tokens[] = {"a", "b", "ab", "\xc4\xa0", "<s>", "[PAD5]"};
    static const char *const merges[] = {"a b"};
    static const uint32_t types[] = {1, 1, 1, 1, 3, 5};
    key_string(g, "general.architecture", "llama");
    key_u32(g, "llama.block_count", 1);
    key_u32(g, "llama.context_length", 32);
    key_u32(g, "llama.embedding_length", 8);
    key_u32(g, "llama.feed_forward_length", 4);
    key_u32(g, "llama.attention.head_count", 2);
    key_u32(g, "llama.attention.head_count_kv", 1);
    key_f32(g, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    key_string(g, "tokenizer.ggml.model", "gpt2");
    key_string(g, "tokenizer.ggml.pre", "smollm");
    key_strings(g, "tokenizer.ggml.tokens", tokens, COUNT_OF(tokens));
    key_array(g, "tokenizer.ggml.token_type", GGUF_I32, COUNT_OF(types));
    add_bytes(&g->keys, types, sizeof types);
    key_strings(g, "tokenizer.ggml.merges", merges, COUNT_OF(merges));
    key_u32(g, "tokenizer.ggml.bos_token_id", 4);
}

static inline void tiny_tensors(struct gguf_sample *g) {
    add_f32(g, "token_embd.weight", 8, 6);
    add_f32(g, "blk.0.attn_norm.weight", 8, 0);
    add_f32(g, "blk.0.attn_q.weight", 8, 8);
    add_f32(g, "blk.0.attn_k.weight", 8, 4);
    add_f32(g, "blk.0.attn_v.weight", 8, 4);
    add_f32(g, "blk.0.attn_output.weight", 8, 8);
    add_f32(g, "blk.0.ffn_norm.weight", 8, 0);
    add_f32(g, "blk.0.ffn_gate.weight", 8, 4);
    add_f32(g, "blk.0.ffn_up.weight", 8, 4);
    add_f32(g, "blk.0.ffn_down.weight", 4, 8);
    add_f32(g, "output_norm.weight", 8, 0);
}

static inline struct buf tiny_gguf(void) {
    struct gguf_sample g = gguf_sample();
    tiny_keys(&g);
    tiny_tensors(&g);
    struct buf b = gguf_bytes(&g);
    gguf_sample_release(&g);
    return b;
}

/* ---- opening a model, reading it in full, freeing it ---- */

/* The bytes are copied to an allocation of exactly n bytes, so that a sanitizer catches a read past the end. */
static inline int open_gguf_bytes(const void *data, size_t n, struct err *e) {
    struct foreign_model *f;
    unsigned char *copy = malloc(n ? n : 1);
    assert_non_null(copy);
    memcpy(copy, data, n);
    int rc = foreign_open_gguf(&f, copy, n, NULL, e);
    if (!rc) {
        struct tensor_desc d;
        const void *p;
        for (size_t i = 0; i < model_slot_count(&f->config) && !rc; i++)
            rc = foreign_tensor(f, model_slot_at(&f->config, i), &d, &p, e);
        foreign_close(f);
    }
    free(copy);
    return rc;
}

/* The model stream that import makes of an open model, or of the model at a path. */
static inline struct buf foreign_stream(struct foreign_model *f, unsigned dtype) {
    struct err e;
    struct stream_writer *w;
    int fd = memory_file();
    OK(stream_writer_open(&w, fd, "model", NULL, &e));
    OK(foreign_write(f, w, dtype, NULL, NULL, &e));
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    return contents(fd);
}

static inline struct buf imported_with(const char *path, unsigned dtype, const struct foreign_options *o) {
    struct err e;
    struct foreign_model *f;
    if (foreign_open(&f, path, o, &e)) fail_msg("%s", e.msg);
    struct buf stream = foreign_stream(f, dtype);
    foreign_close(f);
    return stream;
}

static inline struct buf imported(const char *path, unsigned dtype) {
    return imported_with(path, dtype, NULL);
}

/* Maps a stream in memory. The map's path goes through the descriptor, which must stay open. */
static inline struct stream_map *map_of(const struct buf *b, int *fd) {
    struct err e;
    struct stream_map *m;
    char path[64];
    *fd = file_of(b->data, b->len);
    snprintf(path, sizeof path, "/proc/self/fd/%d", *fd);
    OK(stream_map_open(&m, path, STREAM_ANY, &e));
    return m;
}

static inline int export_gguf(const struct buf *model, struct buf *out, struct err *e) {
    int fd, to = memory_file();
    struct stream_map *m = map_of(model, &fd);
    int rc = gguf_export(m, to, NULL, e);
    stream_map_free(m);
    close(fd);
    if (rc)
        close(to);
    else
        *out = contents(to);
    return rc;
}

/* Returns the path of a memory file with these bytes. Close *fd when done. */
static inline char *path_of(const struct buf *b, int *fd, char out[64]) {
    *fd = file_of(b->data, b->len);
    snprintf(out, 64, "/proc/self/fd/%d", *fd);
    return out;
}

static inline void assert_same_bytes(const struct buf *a, const struct buf *b) {
    assert_int_equal(a->len, b->len);
    assert_memory_equal(a->data, b->data, a->len);
}

/* ---- folders ---- */

/* Members of a config.json, to which each test adds its own. */
#define LLAMA                                                                                                          \
    "\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":2,"    \
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"vocab_size\":97,\"max_position_embeddings\":128"

static inline char *temp_folder(char out[64]) {
    snprintf(out, 64, "/tmp/rill-formats.XXXXXX");
    assert_non_null(mkdtemp(out));
    return out;
}

static inline void remove_folder(const char *path) {
    char command[256];
    snprintf(command, sizeof command, "rm -rf '%s'", path);
    assert_int_equal(system(command), 0);
}

static inline void write_text(const char *folder, const char *name, const char *text, size_t n) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

#endif
