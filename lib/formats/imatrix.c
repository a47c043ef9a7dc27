/*
 * llama.cpp's importance matrix, as llama-imatrix writes it and llama-quantize reads it: for each matrix the sum of x^2 of
 * what its columns were multiplied with, and of how many rows. A GGUF of general.type "imatrix" (NAME.in_sum2, NAME.counts),
 * or the older .dat: i32 entries; each i32 length, name, i32 calls, i32 columns, f32 sums / rows x calls; after them, which
 * may be missing, i32 chunks, i32 length, name of the text.
 */
#include <math.h>

#include "lib/formats/arch_internal.h"

struct entry {
    const char *name; /* of the matrix */
    const unsigned char *sums;
    uint64_t cols;
    double count;
};
struct imatrix {
    struct buf bytes; /* the file */
    struct gguf_file gguf;
    struct arena memory;
    struct entry *entries;
    size_t n;
};

void imatrix_free(struct imatrix *m) {
    if (!m) return;
    gguf_release(&m->gguf);
    arena_release(&m->memory);
    buf_release(&m->bytes);
    mem_free(m);
}

bool imatrix_is(const char *path, const void *begin, size_t n) {
    size_t len = strlen(path);
    return (n >= 4 && memcmp(begin, "GGUF", 4) == 0) || (len > 4 && strcmp(path + len - 4, ".dat") == 0);
}

static float float_at(const unsigned char *p, uint64_t i) {
    float v;
    memcpy(&v, p + i * sizeof v, sizeof v);
    return v;
}

static int check_sums(const struct entry *x, struct err *e) {
    for (uint64_t i = 0; i < x->cols; i++) {
        float v = float_at(x->sums, i);
        if (!(v >= 0) || isinf(v))
            return err_set(e, ERR_DATA, "importance of '%s': column %llu has %g, no sum of squares", x->name,
                           (unsigned long long)i, (double)v);
    }
    return 0;
}

/* ---- GGUF ---- */

static uint64_t elems_of(const struct raw_tensor *t) {
    return t->n_bytes / sizeof(float);
}

/* The entry that NAME.in_sum2 belongs to. */
static int take_entry(struct imatrix *m, const struct raw_tensor *t, size_t name, struct err *e) {
    char counts[GGUF_MAX_TENSOR_NAME + 16];
    snprintf(counts, sizeof counts, "%.*s.counts", (int)name, t->name);
    const struct raw_tensor *c = raw_table_find(&m->gguf.tensors, counts);
    if (!c) return err_set(e, ERR_DATA, "'%s' without '%s'", t->name, counts);
    if (t->dtype != DT_F32 || c->dtype != DT_F32)
        return err_set(e, ERR_DATA, "'%.*s' has sums or counts of another type than f32", (int)name, t->name);
    if (elems_of(c) != 1)
        return err_set(e, ERR_DATA, "'%s' has %llu elements: importance by experts is not supported", counts,
                       (unsigned long long)elems_of(c));
    struct entry *x = &m->entries[m->n++];
    *x = (struct entry){.sums = t->data, .cols = elems_of(t), .count = (double)float_at(c->data, 0)};
    x->name = arena_strndup(&m->memory, t->name, name, e);
    if (!x->name) return e->code;
    if (!(x->count >= 0) || isinf(x->count)) return err_set(e, ERR_DATA, "'%s' is %g", counts, x->count);
    return check_sums(x, e);
}

static int read_gguf(struct imatrix *m, struct err *e) {
    const char *type = "model";
    int rc = gguf_parse(&m->gguf, m->bytes.data, m->bytes.len, &m->memory, e);
    if (!rc) rc = gguf_opt_str(&m->gguf, "general.type", &m->memory, &type, e);
    if (!rc && strcmp(type, "imatrix") != 0)
        rc = err_set(e, ERR_DATA, "general.type is '%.64s', expected 'imatrix'", type);
    if (!rc && !(m->entries = arena_array(&m->memory, m->gguf.tensors.n + 1, sizeof *m->entries, e))) rc = e->code;
    for (size_t i = 0; !rc && i < m->gguf.tensors.n; i++) {
        const struct raw_tensor *t = &m->gguf.tensors.items[i];
        const char *end = strrchr(t->name, '.');
        if (end && !strcmp(end, ".in_sum2")) rc = take_entry(m, t, (size_t)(end - t->name), e);
    }
    return rc;
}

/* ---- the older .dat ---- */

static const unsigned char *take(const unsigned char **at, const unsigned char *end, uint64_t n) {
    const unsigned char *p = *at;
    if (n > (uint64_t)(end - p)) return NULL;
    *at += n;
    return p;
}

/* A number of things that follow; 0 when it is none. */
static uint32_t take_count(const unsigned char **at, const unsigned char *end) {
    const unsigned char *p = take(at, end, 4);
    int32_t v = 0;
    if (p) memcpy(&v, p, sizeof v);
    return v > 0 ? (uint32_t)v : 0;
}

static int read_dat(struct imatrix *m, struct err *e) {
    const unsigned char *at = m->bytes.data, *end = at + m->bytes.len;
    uint32_t n = take_count(&at, end);
    if (!n || n > m->bytes.len / 16)
        return err_set(e, ERR_DATA, "no importance matrix: neither a GGUF nor llama.cpp's .dat");
    m->entries = arena_array(&m->memory, n, sizeof *m->entries, e);
    if (!m->entries) return e->code;
    for (uint32_t i = 0; i < n; i++) {
        struct entry *x = &m->entries[m->n++];
        uint32_t len = take_count(&at, end);
        const unsigned char *name = take(&at, end, len);
        uint32_t calls = take_count(&at, end), cols = take_count(&at, end);
        x->sums = take(&at, end, (uint64_t)cols * sizeof(float));
        if (!name || !len || !cols || !x->sums || !name_valid((const char *)name, len))
            return err_set(e, ERR_DATA, "entry %u of %u of the importance matrix is cut or broken", i + 1, n);
        x->cols = cols;
        x->count = calls ? calls : 1;
        x->name = arena_strndup(&m->memory, (const char *)name, len, e);
        int rc = x->name ? check_sums(x, e) : e->code;
        if (rc) return rc;
    }
    return 0;
}

int imatrix_read(struct imatrix **out, struct buf *bytes, struct err *e) {
    struct imatrix *m = mem_zalloc(sizeof *m, e);
    if (!m) return e->code;
    m->bytes = *bytes;
    *bytes = (struct buf){0};
    bool gguf = m->bytes.len >= 4 && memcmp(m->bytes.data, "GGUF", 4) == 0;
    int rc = gguf ? read_gguf(m, e) : read_dat(m, e);
    if (!rc && !m->n) rc = err_set(e, ERR_DATA, "an importance matrix without entries");
    if (rc)
        imatrix_free(m);
    else
        *out = m;
    return rc;
}

int imatrix_importance(void *imatrix, const struct model_config *c, struct model_slot s, uint64_t cols, float *out,
                       bool *found, struct err *e) {
    const struct imatrix *m = imatrix;
    char name[TENSOR_MAX_NAME + 1];
    *found = false;
    if (!target_tensor_name(c, s, name)) return 0;
    for (size_t i = 0; i < m->n; i++) {
        const struct entry *x = &m->entries[i];
        if (strcmp(x->name, name) != 0) continue;
        if (x->cols != cols)
            return err_set(e, ERR_DATA, "importance of '%s' has %llu columns, the matrix %llu: of another model", name,
                           (unsigned long long)x->cols, (unsigned long long)cols);
        float count = (float)x->count;
        for (uint64_t k = 0; k < cols; k++) out[k] = count > 0 ? float_at(x->sums, k) / count : 1;
        *found = true;
        return 0;
    }
    return 0;
}

/* ---- writing ---- */

/* Calls `each` for every matrix that something is known of, once for a tensor that several share (q, k and v). */
struct writing {
    const struct model_config *config;
    imatrix_sums_fn *sums;
    void *ctx;
    float count;
    int fd;
    struct gguf_header infos;
    uint64_t offset, n;
};
typedef int entry_fn(struct writing *w, const char *name, const double *sums, uint64_t cols, struct err *e);

static int each_entry(struct writing *w, entry_fn *each, struct err *e) {
    char before[TENSOR_MAX_NAME + 1] = "", name[TENSOR_MAX_NAME + 1];
    for (size_t i = 0; i < model_slot_count(w->config); i++) {
        struct model_slot s = model_slot_at(w->config, i);
        uint64_t cols;
        const double *sums = model_role_is_matrix(s.role) ? w->sums(w->ctx, s, &cols) : NULL;
        if (!sums || !target_tensor_name(w->config, s, name) || !strcmp(name, before)) continue;
        memcpy(before, name, sizeof before);
        int rc = each(w, name, sums, cols, e);
        if (rc) return rc;
    }
    return 0;
}

static void put_info(struct writing *w, const char *name, const char *what, uint64_t n) {
    char full[TENSOR_MAX_NAME + 16];
    snprintf(full, sizeof full, "%s.%s", name, what);
    gguf_put_string(&w->infos, full, strlen(full));
    gguf_put_u32(&w->infos, 1);
    gguf_put_u64(&w->infos, n);
    gguf_put_u32(&w->infos, (uint32_t)dtype_info(DT_F32)->ggml_type);
    gguf_put_u64(&w->infos, w->offset);
    w->offset += (n * sizeof(float) + GGUF_DEFAULT_ALIGNMENT - 1) / GGUF_DEFAULT_ALIGNMENT * GGUF_DEFAULT_ALIGNMENT;
    w->n++;
}

static int describe_entry(struct writing *w, const char *name, const double *sums, uint64_t cols, struct err *e) {
    (void)sums, (void)e;
    put_info(w, name, "in_sum2", cols);
    put_info(w, name, "counts", 1);
    return w->infos.rc;
}

static int write_floats(struct writing *w, const float *x, uint64_t n, struct err *e) {
    uint64_t bytes = n * sizeof *x, rest = bytes % GGUF_DEFAULT_ALIGNMENT;
    int rc = write_all(w->fd, x, bytes, e);
    return rc || !rest ? rc : write_zeros(w->fd, GGUF_DEFAULT_ALIGNMENT - rest, e);
}

static int write_entry(struct writing *w, const char *name, const double *sums, uint64_t cols, struct err *e) {
    float *x = mem_array(cols, sizeof *x, e);
    if (!x) return err_prefix(e, "'%s'", name);
    for (uint64_t i = 0; i < cols; i++) x[i] = (float)sums[i];
    int rc = write_floats(w, x, cols, e);
    if (!rc) rc = write_floats(w, &w->count, 1, e);
    mem_free(x);
    return rc;
}

int imatrix_write(const struct model_config *c, imatrix_sums_fn *sums, void *ctx, uint64_t positions,
                  uint64_t sequences, int fd, struct err *e) {
    struct writing w = {.config = c, .sums = sums, .ctx = ctx, .count = (float)positions, .fd = fd, .infos = {.e = e}};
    struct gguf_header keys = {.e = e};
    uint64_t chunk = sequences ? (positions + sequences - 1) / sequences : positions;
    gguf_key_string(&keys, "general.type", "imatrix");
    gguf_key_array(&keys, "imatrix.datasets", GGUF_STRING, 1);
    gguf_put_string(&keys, "rill calibrate", strlen("rill calibrate"));
    gguf_key_u32(&keys, "imatrix.chunk_count", sequences < UINT32_MAX ? (uint32_t)sequences : UINT32_MAX);
    gguf_key_u32(&keys, "imatrix.chunk_size", chunk < UINT32_MAX ? (uint32_t)chunk : UINT32_MAX);
    int rc = keys.rc ? keys.rc : each_entry(&w, describe_entry, e);
    if (!rc && !w.n) rc = err_set(e, ERR_DATA, "statistics of no matrix that llama.cpp has a name for");
    struct {
        char magic[4];
        uint32_t version;
        uint64_t n_tensors, n_keys;
    } start = {"GGUF", 3, w.n, keys.n_keys};
    uint64_t rest = (sizeof start + keys.bytes.len + w.infos.bytes.len) % GGUF_DEFAULT_ALIGNMENT;
    if (!rc) rc = write_all(fd, &start, sizeof start, e);
    if (!rc) rc = write_all(fd, keys.bytes.data, keys.bytes.len, e);
    if (!rc) rc = write_all(fd, w.infos.bytes.data, w.infos.bytes.len, e);
    if (!rc && rest) rc = write_zeros(fd, GGUF_DEFAULT_ALIGNMENT - rest, e);
    if (!rc) rc = each_entry(&w, write_entry, e);
    buf_release(&keys.bytes);
    buf_release(&w.infos.bytes);
    return rc;
}
