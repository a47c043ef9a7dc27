/* Builds the header of a GGUF in memory, keys and tensor descriptions, and writes it. */
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

/* A key that begins with a dot gets the architecture's prefix. */
static void put_key(struct gguf_header *h, const char *key, enum gguf_type type) {
    char full[128];
    snprintf(full, sizeof full, "%s%s", *key == '.' ? h->prefix : "", key);
    gguf_put_string(h, full, strlen(full));
    gguf_put_u32(h, type);
    h->n_keys++;
}

void gguf_key_u16(struct gguf_header *h, const char *key, uint16_t v) {
    put_key(h, key, GGUF_U16);
    gguf_put_bytes(h, &v, sizeof v);
}

void gguf_key_i32(struct gguf_header *h, const char *key, int32_t v) {
    put_key(h, key, GGUF_I32);
    gguf_put_bytes(h, &v, sizeof v);
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

/* ---- tensors ---- */

#define ALIGNMENT GGUF_DEFAULT_ALIGNMENT

uint64_t gguf_padded(uint64_t bytes) {
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

void gguf_put_tensor(struct gguf_header *h, const char *name, unsigned rank, const uint64_t *dims, enum dtype as,
                     uint64_t bytes) {
    gguf_put_string(h, name, strlen(name));
    gguf_put_u32(h, rank);
    for (unsigned i = rank; i-- > 0;) gguf_put_u64(h, dims[i]);
    gguf_put_u32(h, (uint32_t)dtype_info(as)->ggml_type);
    gguf_put_u64(h, h->data_bytes);
    h->data_bytes += gguf_padded(bytes);
    h->n_tensors++;
}

/* ---- writing ---- */

struct gguf_start {
    char magic[4];
    uint32_t version;
    uint64_t n_tensors, n_keys;
};

static int pad(int fd, uint64_t n, struct err *e) {
    static const unsigned char zeros[ALIGNMENT];
    return n % ALIGNMENT ? write_all(fd, zeros, ALIGNMENT - n % ALIGNMENT, e) : 0;
}

int gguf_write_padded(int fd, const void *data, uint64_t n, struct err *e) {
    int rc = write_all(fd, data, n, e);
    return rc ? rc : pad(fd, n, e);
}

uint64_t gguf_header_bytes(const struct gguf_header *keys, const struct gguf_header *infos) {
    return gguf_padded(sizeof(struct gguf_start) + keys->bytes.len + infos->bytes.len);
}

int gguf_write_header(int fd, const struct gguf_header *keys, const struct gguf_header *infos, struct err *e) {
    struct gguf_start start = {"GGUF", 3, infos->n_tensors, keys->n_keys};
    int rc = write_all(fd, &start, sizeof start, e);
    if (!rc) rc = write_all(fd, keys->bytes.data, keys->bytes.len, e);
    if (!rc) rc = write_all(fd, infos->bytes.data, infos->bytes.len, e);
    return rc ? rc : pad(fd, sizeof start + keys->bytes.len + infos->bytes.len, e);
}
