/* Builds the header of a GGUF in memory: keys and descriptions of tensors. */
#include "lib/formats/formats_internal.h"

void gguf_put_bytes(struct gguf_header *h, const void *data, size_t n) {
    if (!h->rc) h->rc = buf_append(&h->bytes, data, n, h->e);
}

void gguf_put_u32(struct gguf_header *h, uint32_t v) {
    gguf_put_bytes(h, &v, sizeof v);
}

void gguf_put_u64(struct gguf_header *h, uint64_t v) {
    gguf_put_bytes(h, &v, sizeof v);
}

void gguf_put_bool(struct gguf_header *h, bool v) {
    unsigned char byte = v;
    gguf_put_bytes(h, &byte, 1);
}

void gguf_put_string(struct gguf_header *h, const void *s, size_t n) {
    gguf_put_u64(h, n);
    gguf_put_bytes(h, s, n);
}

/* A key that begins with a dot belongs to the architecture. */
static void put_key(struct gguf_header *h, const char *key, enum gguf_type type) {
    char full[128];
    snprintf(full, sizeof full, "%s%s", *key == '.' ? h->prefix : "", key);
    gguf_put_string(h, full, strlen(full));
    gguf_put_u32(h, type);
    h->n_keys++;
}

void gguf_key_u32(struct gguf_header *h, const char *key, uint32_t v) {
    put_key(h, key, GGUF_U32);
    gguf_put_u32(h, v);
}

void gguf_key_f32(struct gguf_header *h, const char *key, double v) {
    float f = (float)v;
    put_key(h, key, GGUF_F32);
    gguf_put_bytes(h, &f, sizeof f);
}

void gguf_key_f64(struct gguf_header *h, const char *key, double v) {
    put_key(h, key, GGUF_F64);
    gguf_put_bytes(h, &v, sizeof v);
}

void gguf_key_bool(struct gguf_header *h, const char *key, bool v) {
    put_key(h, key, GGUF_BOOL);
    gguf_put_bool(h, v);
}

void gguf_key_string(struct gguf_header *h, const char *key, const char *v) {
    put_key(h, key, GGUF_STRING);
    gguf_put_string(h, v, strlen(v));
}

void gguf_key_array(struct gguf_header *h, const char *key, enum gguf_type type, uint64_t n) {
    put_key(h, key, GGUF_ARRAY);
    gguf_put_u32(h, type);
    gguf_put_u64(h, n);
}
