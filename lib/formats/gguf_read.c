/*
 * The structure of GGUF: a header, key/value pairs, tensor descriptions, padding, data. Every size is checked against
 * the rest of the file before it is used, and no count alone determines an allocation. gguf_model.c interprets the
 * keys.
 *
 * The file is little-endian, as is every machine that Rill runs on.
 */
#include <math.h>
#include <stdlib.h>

#include "lib/formats/formats_internal.h"

/* ---- a bounds-checked cursor ---- */

struct cursor {
    const unsigned char *data;
    uint64_t at, end;
};

static uint64_t left(const struct cursor *c) {
    return c->end - c->at;
}

static int cut_short(const struct cursor *c, const char *what, struct err *e) {
    return err_set(e, ERR_DATA, "byte %llu: the file ends within %s", (unsigned long long)c->at, what);
}

static int take(struct cursor *c, void *out, size_t n, const char *what, struct err *e) {
    if (left(c) < n) {
        memset(out, 0, n);
        return cut_short(c, what, e);
    }
    memcpy(out, c->data + c->at, n);
    c->at += n;
    return 0;
}

static int take_string(struct cursor *c, struct span *out, const char *what, struct err *e) {
    uint64_t n;
    int rc = take(c, &n, sizeof n, what, e);
    if (rc) return rc;
    if (n > left(c))
        return err_set(e, ERR_DATA, "byte %llu: %s has %llu bytes, but only %llu are left",
                       (unsigned long long)c->at - sizeof n, what, (unsigned long long)n, (unsigned long long)left(c));
    *out = (struct span){(const char *)c->data + c->at, n};
    c->at += n;
    return 0;
}

/* ---- keys and values ---- */

/* Bytes per element; 0 for strings, whose size varies. */
static const unsigned char type_bytes[GGUF_TYPE_COUNT] = {
    [GGUF_U8] = 1,  [GGUF_I8] = 1,   [GGUF_U16] = 2, [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4,
    [GGUF_F32] = 4, [GGUF_BOOL] = 1, [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8,
};

static int take_type(struct cursor *c, const char *key, enum gguf_type *out, struct err *e) {
    uint32_t type;
    int rc = take(c, &type, sizeof type, "the type of a value", e);
    if (rc) return rc;
    if (type >= GGUF_TYPE_COUNT) return err_set(e, ERR_DATA, "key '%s': unknown value type %u", key, type);
    *out = (enum gguf_type)type;
    return 0;
}

/* Checks the n elements of a value and moves the cursor past them. A string takes at least 8 bytes, which bounds n. */
static int take_elements(struct cursor *c, const struct gguf_kv *kv, struct err *e) {
    uint64_t size = kv->type == GGUF_STRING ? 8 : type_bytes[kv->type], bytes;
    if (!u64_mul(kv->n, size, &bytes) || bytes > left(c))
        return err_set(e, ERR_DATA, "key '%s': %llu elements do not fit in the %llu bytes left (a truncated file?)",
                       kv->key, (unsigned long long)kv->n, (unsigned long long)left(c));
    if (kv->type == GGUF_BOOL)
        for (uint64_t i = 0; i < kv->n; i++)
            if (c->data[c->at + i] > 1) return err_set(e, ERR_DATA, "key '%s': a bool is neither 0 nor 1", kv->key);
    if (kv->type != GGUF_STRING) {
        c->at += bytes;
        return 0;
    }
    int rc = 0;
    struct span s;
    for (uint64_t i = 0; i < kv->n && !rc; i++) rc = take_string(c, &s, "a string", e);
    return rc ? err_prefix(e, "key '%s'", kv->key) : 0;
}

static int take_kv(struct cursor *c, struct gguf_kv *kv, struct arena *a, struct err *e) {
    struct span key;
    int rc = take_string(c, &key, "a key", e);
    if (rc) return rc;
    if (!name_valid(key.s, key.n))
        return err_set(e, ERR_DATA, "byte %llu: a key is not 1 to 1024 bytes of UTF-8 without control characters",
                       (unsigned long long)(c->at - key.n));
    kv->key = arena_strndup(a, key.s, key.n, e);
    if (!kv->key) return e->code;
    kv->n = 1;
    rc = take_type(c, kv->key, &kv->type, e);
    if (!rc && kv->type == GGUF_ARRAY) {
        kv->is_array = true;
        rc = take_type(c, kv->key, &kv->type, e);
        if (!rc) rc = take(c, &kv->n, sizeof kv->n, "the length of an array", e);
        if (!rc && kv->type == GGUF_ARRAY)
            rc = err_set(e, ERR_DATA, "key '%s': arrays of arrays are not supported", kv->key);
    }
    if (rc) return rc;
    kv->data = c->data + c->at;
    return take_elements(c, kv, e);
}

static int by_key(const void *a, const void *b) {
    return strcmp(((const struct gguf_kv *)a)->key, ((const struct gguf_kv *)b)->key);
}

static int take_kvs(struct cursor *c, struct gguf_file *g, uint64_t n, struct arena *a, struct err *e) {
    const uint64_t least = 8 + 1 + 4 + 1; /* a one-byte key, its type, a one-byte value */
    if (n > GGUF_MAX_KEYS || n > left(c) / least)
        return err_set(e, ERR_DATA, "%llu keys do not fit in the %llu bytes left (and %u are allowed)",
                       (unsigned long long)n, (unsigned long long)left(c), GGUF_MAX_KEYS);
    g->kv = arena_array(a, n, sizeof *g->kv, e);
    if (!g->kv) return e->code;
    for (; g->n_kv < n; g->n_kv++) {
        int rc = take_kv(c, &g->kv[g->n_kv], a, e);
        if (rc) return rc;
    }
    if (n) qsort(g->kv, n, sizeof *g->kv, by_key);
    for (size_t i = 1; i < g->n_kv; i++)
        if (strcmp(g->kv[i - 1].key, g->kv[i].key) == 0)
            return err_set(e, ERR_DATA, "key '%s' occurs twice", g->kv[i].key);
    return 0;
}

/* ---- tensors ---- */

static int take_dims(struct cursor *c, struct raw_tensor *t, struct err *e) {
    uint32_t rank;
    int rc = take(c, &rank, sizeof rank, "a tensor description", e);
    if (rc) return rc;
    if (rank > GGUF_MAX_DIMS)
        return err_set(e, ERR_DATA, "tensor '%s' has %u dimensions, at most %d are allowed", t->name, rank,
                       GGUF_MAX_DIMS);
    t->rank = rank;
    for (unsigned i = 0; i < rank && !rc; i++) /* GGUF's ne[0] is the row length: the reverse of our order */
        rc = take(c, &t->dims[rank - 1 - i], sizeof t->dims[0], "a tensor description", e);
    return rc;
}

static int take_dtype(struct cursor *c, struct raw_tensor *t, struct err *e) {
    int32_t type;
    int rc = take(c, &type, sizeof type, "a tensor description", e);
    if (rc) return rc;
    const struct dtype_info *info = dtype_by_ggml(type);
    if (!info) return err_set(e, ERR_DATA, "tensor '%s' is of GGUF type %d, which is not supported", t->name, type);
    t->dtype = info->dtype;
    return 0;
}

/* `running` is where this tensor's data must begin: the sum of the padded sizes of the tensors before it. */
static int take_tensor(struct cursor *c, struct gguf_file *g, uint64_t *running, struct raw_tensor *t, struct arena *a,
                       struct err *e) {
    struct span name;
    uint64_t offset;
    int rc = take_string(c, &name, "a tensor name", e);
    if (rc) return rc;
    if (name.n > GGUF_MAX_TENSOR_NAME || !name_valid(name.s, name.n))
        return err_set(e, ERR_DATA, "byte %llu: a tensor name is not 1 to %d bytes of UTF-8 without control characters",
                       (unsigned long long)(c->at - name.n), GGUF_MAX_TENSOR_NAME);
    t->name = arena_strndup(a, name.s, name.n, e);
    if (!t->name) return e->code;
    rc = take_dims(c, t, e);
    if (!rc) rc = take_dtype(c, t, e);
    if (!rc) rc = take(c, &offset, sizeof offset, "a tensor description", e);
    if (!rc) rc = raw_tensor_size(t, &t->n_bytes, e);
    if (rc) return rc;
    if (offset != *running)
        return err_set(e, ERR_DATA, "tensor '%s' is at offset %llu, expected %llu (after the tensor before it)",
                       t->name, (unsigned long long)offset, (unsigned long long)*running);
    uint64_t end;
    if (!u64_add(*running, t->n_bytes, &end) || !u64_align(end, g->alignment, running))
        return err_set(e, ERR_DATA, "tensor '%s': offset and size overflow", t->name);
    return 0;
}

static int take_tensors(struct cursor *c, struct gguf_file *g, uint64_t n, struct arena *a, struct err *e) {
    const uint64_t least = 8 + 1 + 4 + 4 + 8; /* a one-byte name, rank 0, type, offset */
    if (n > GGUF_MAX_TENSORS || n > left(c) / least)
        return err_set(e, ERR_DATA, "%llu tensors do not fit in the %llu bytes left (and %u are allowed)",
                       (unsigned long long)n, (unsigned long long)left(c), GGUF_MAX_TENSORS);
    int rc = raw_table_reserve(&g->tensors, n, e);
    uint64_t running = 0;
    for (; !rc && g->tensors.n < n; g->tensors.n++)
        rc = take_tensor(c, g, &running, &g->tensors.items[g->tensors.n], a, e);
    return rc;
}

/* Sets the tensors' data pointers. All data must be present, and nothing may follow it. */
static int place_data(struct cursor *c, struct gguf_file *g, struct err *e) {
    if (!u64_align(c->at, g->alignment, &g->data_offset)) return err_set(e, ERR_DATA, "the header's size overflows");
    uint64_t running = g->data_offset, end;
    for (size_t i = 0; i < g->tensors.n; i++) {
        struct raw_tensor *t = &g->tensors.items[i];
        if (!u64_add(running, t->n_bytes, &end) || end > c->end)
            return err_set(e, ERR_DATA, "tensor '%s' needs %llu bytes at byte %llu of a file of %llu bytes", t->name,
                           (unsigned long long)t->n_bytes, (unsigned long long)running, (unsigned long long)c->end);
        t->data = c->data + running;
        if (!u64_align(end, g->alignment, &running)) return err_set(e, ERR_DATA, "offsets overflow");
    }
    if (c->end > running) /* some writers pad the last tensor, some do not */
        return err_set(e, ERR_DATA, "%llu bytes after the last tensor", (unsigned long long)(c->end - running));
    return 0;
}

/* ---- the file ---- */

static int take_version(struct cursor *c, struct gguf_file *g, struct err *e) {
    char magic[4];
    int rc = take(c, magic, sizeof magic, "the magic", e);
    if (rc) return rc;
    if (memcmp(magic, "GGUF", 4) != 0) return err_set(e, ERR_DATA, "not a GGUF file (it does not begin with 'GGUF')");
    rc = take(c, &g->version, sizeof g->version, "the version", e);
    if (rc) return rc;
    if (g->version == __builtin_bswap32(2) || g->version == __builtin_bswap32(3))
        return err_set(e, ERR_DATA, "a big-endian GGUF file, which is not supported");
    if (g->version != 2 && g->version != 3) /* version 3 only added big-endian files */
        return err_set(e, ERR_DATA, "GGUF version %u, expected 2 or 3", g->version);
    return 0;
}

int gguf_parse(struct gguf_file *g, const unsigned char *data, uint64_t n, struct arena *a, struct err *e) {
    struct cursor c = {data, 0, n};
    uint64_t n_tensors, n_kv, alignment = GGUF_DEFAULT_ALIGNMENT;
    int rc = take_version(&c, g, e);
    if (!rc) rc = take(&c, &n_tensors, sizeof n_tensors, "the number of tensors", e);
    if (!rc) rc = take(&c, &n_kv, sizeof n_kv, "the number of keys", e);
    if (!rc) rc = take_kvs(&c, g, n_kv, a, e);
    if (!rc) rc = gguf_opt_u64(g, "general.alignment", 1, UINT32_MAX, &alignment, e);
    if (!rc && (alignment & (alignment - 1)))
        rc = err_set(e, ERR_DATA, "key 'general.alignment' is %llu, expected a power of two",
                     (unsigned long long)alignment);
    if (rc) return rc;
    g->alignment = (uint32_t)alignment;
    rc = take_tensors(&c, g, n_tensors, a, e);
    if (!rc) rc = place_data(&c, g, e);
    return rc ? rc : raw_table_sort(&g->tensors, e);
}

void gguf_release(struct gguf_file *g) {
    raw_table_release(&g->tensors);
    *g = (struct gguf_file){0};
}

/* ---- values by key ---- */

const struct gguf_kv *gguf_find(const struct gguf_file *g, const char *key) {
    struct gguf_kv wanted = {.key = key};
    return g->n_kv ? bsearch(&wanted, g->kv, g->n_kv, sizeof wanted, by_key) : NULL;
}

/* False for a negative value, which is never a count. */
bool gguf_kv_u64(const struct gguf_kv *kv, uint64_t i, uint64_t *out) {
    const unsigned char *p = kv->data + i * type_bytes[kv->type];
    bool is_signed = kv->type == GGUF_I8 || kv->type == GGUF_I16 || kv->type == GGUF_I32 || kv->type == GGUF_I64;
    bool is_unsigned = kv->type == GGUF_U8 || kv->type == GGUF_U16 || kv->type == GGUF_U32 || kv->type == GGUF_U64;
    if (!is_signed && !is_unsigned) return false;
    uint64_t v = 0;
    memcpy(&v, p, type_bytes[kv->type]);
    if (is_signed && (p[type_bytes[kv->type] - 1] & 0x80)) return false;
    *out = v;
    return true;
}

bool gguf_kv_f64(const struct gguf_kv *kv, uint64_t i, double *out) {
    const unsigned char *p = kv->data + i * type_bytes[kv->type];
    if (kv->type == GGUF_F64) {
        memcpy(out, p, sizeof *out);
    } else if (kv->type == GGUF_F32) {
        float f;
        memcpy(&f, p, sizeof f);
        *out = f;
    } else {
        return false;
    }
    return isfinite(*out);
}

struct span gguf_kv_next_string(const struct gguf_kv *kv, uint64_t *at) {
    uint64_t n;
    memcpy(&n, kv->data + *at, sizeof n);
    struct span s = {(const char *)kv->data + *at + sizeof n, n};
    *at += sizeof n + n;
    return s;
}

static int missing(const char *key, struct err *e) {
    return err_set(e, ERR_DATA, "key '%s' is missing", key);
}

int gguf_opt_u64(const struct gguf_file *g, const char *key, uint64_t min, uint64_t max, uint64_t *out, struct err *e) {
    const struct gguf_kv *kv = gguf_find(g, key);
    uint64_t v;
    if (!kv) return 0;
    if (kv->is_array || !gguf_kv_u64(kv, 0, &v))
        return err_set(e, ERR_DATA, "key '%s' is not one whole number >= 0", key);
    if (v < min || v > max)
        return err_set(e, ERR_DATA, "key '%s' is %llu, expected %llu to %llu", key, (unsigned long long)v,
                       (unsigned long long)min, (unsigned long long)max);
    *out = v;
    return 0;
}

int gguf_get_u64(const struct gguf_file *g, const char *key, uint64_t min, uint64_t max, uint64_t *out, struct err *e) {
    return gguf_find(g, key) ? gguf_opt_u64(g, key, min, max, out, e) : missing(key, e);
}

int gguf_opt_f64(const struct gguf_file *g, const char *key, double min, double max, double *out, struct err *e) {
    const struct gguf_kv *kv = gguf_find(g, key);
    double v;
    if (!kv) return 0;
    if (kv->is_array || !gguf_kv_f64(kv, 0, &v)) return err_set(e, ERR_DATA, "key '%s' is not one finite number", key);
    if (v < min || v > max) return err_set(e, ERR_DATA, "key '%s' is %g, expected %g to %g", key, v, min, max);
    *out = v;
    return 0;
}

int gguf_opt_bool(const struct gguf_file *g, const char *key, bool *out, struct err *e) {
    const struct gguf_kv *kv = gguf_find(g, key);
    if (!kv) return 0;
    if (kv->is_array || kv->type != GGUF_BOOL) return err_set(e, ERR_DATA, "key '%s' is not a bool", key);
    *out = kv->data[0] != 0;
    return 0;
}

int gguf_opt_str(const struct gguf_file *g, const char *key, struct arena *a, const char **out, struct err *e) {
    const struct gguf_kv *kv = gguf_find(g, key);
    if (!kv) return 0;
    if (kv->is_array || kv->type != GGUF_STRING) return err_set(e, ERR_DATA, "key '%s' is not a string", key);
    uint64_t at = 0;
    struct span s = gguf_kv_next_string(kv, &at);
    if (memchr(s.s, 0, s.n) || !utf8_valid(s.s, s.n)) return err_set(e, ERR_DATA, "key '%s' is not UTF-8 text", key);
    *out = arena_strndup(a, s.s, s.n, e);
    return *out ? 0 : e->code;
}

int gguf_opt_array(const struct gguf_file *g, const char *key, enum gguf_type type, const struct gguf_kv **out,
                   struct err *e) {
    *out = gguf_find(g, key);
    if (*out && (!(*out)->is_array || (*out)->type != type))
        return err_set(e, ERR_DATA, "key '%s' is not an array of the expected type (%d)", key, type);
    return 0;
}
