/*
 * llama.cpp's importance matrix, as llama-imatrix writes it and llama-quantize reads it: for each matrix the sums
 * of x^2 over its inputs, one per column, and the number of input rows. A GGUF of general.type "imatrix"
 * (NAME.in_sum2, NAME.counts), or the older .dat: i32 number of entries; per entry i32 length, name, i32 calls, i32
 * columns, f32 [columns] sums / rows x calls; optionally at the end i32 chunks, i32 length, name of the text. The
 * experts of a layer are one tensor with sums [experts][columns] and counts [experts]; the number of columns in a
 * .dat then covers all experts.
 */
#include <math.h>

#include "lib/formats/arch_internal.h"

struct entry {
    const char *name; /* of the matrix */
    const unsigned char *sums;
    uint64_t cols;               /* over all experts */
    const unsigned char *counts; /* f32 [n_counts], one or one per expert; NULL: `calls` applies to all */
    uint64_t n_counts;
    uint32_t calls;
};
struct imatrix {
    struct buf bytes; /* the whole file */
    struct gguf_file gguf;
    struct arena memory;
    struct entry *entries;
    size_t n;
    const char *dataset; /* NULL: unknown */
    uint64_t chunks;
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

/* Adds the entry of tensor NAME.in_sum2, where NAME has `name` bytes. */
static int take_entry(struct imatrix *m, const struct raw_tensor *t, size_t name, struct err *e) {
    char counts[GGUF_MAX_TENSOR_NAME + 16];
    snprintf(counts, sizeof counts, "%.*s.counts", (int)name, t->name);
    const struct raw_tensor *c = raw_table_find(&m->gguf.tensors, counts);
    if (!c) return err_set(e, ERR_DATA, "'%s' without '%s'", t->name, counts);
    if (t->dtype != DT_F32 || c->dtype != DT_F32)
        return err_set(e, ERR_DATA, "'%.*s' has sums or counts of another type than f32", (int)name, t->name);
    if (elems_of(c) == 0 || elems_of(t) % elems_of(c))
        return err_set(e, ERR_DATA, "'%s' has %llu elements for %llu sums", counts, (unsigned long long)elems_of(c),
                       (unsigned long long)elems_of(t));
    struct entry *x = &m->entries[m->n++];
    *x = (struct entry){.sums = t->data, .cols = elems_of(t), .counts = c->data, .n_counts = elems_of(c)};
    x->name = arena_strndup(&m->memory, t->name, name, e);
    if (!x->name) return e->code;
    for (uint64_t i = 0; i < x->n_counts; i++) {
        double n = (double)float_at(x->counts, i);
        if (!(n >= 0) || isinf(n))
            return err_set(e, ERR_DATA, "'%s': element %llu is %g", counts, (unsigned long long)i, n);
    }
    return check_sums(x, e);
}

/* Reads the number of chunks and the first data set's name. */
static int read_origin(struct imatrix *m, struct err *e) {
    const struct gguf_kv *kv = gguf_find(&m->gguf, "imatrix.datasets");
    uint64_t at = 0;
    int rc = gguf_opt_u64(&m->gguf, "imatrix.chunk_count", 0, UINT32_MAX, &m->chunks, e);
    if (rc || !kv || kv->type != GGUF_STRING || !kv->n) return rc;
    struct span s = gguf_kv_next_string(kv, &at);
    if (!s.n || memchr(s.s, 0, s.n) || !utf8_valid(s.s, s.n)) return 0;
    m->dataset = arena_strndup(&m->memory, s.s, s.n, e);
    return m->dataset ? 0 : e->code;
}

static int read_gguf(struct imatrix *m, struct err *e) {
    const char *type = "model";
    int rc = gguf_parse(&m->gguf, m->bytes.data, m->bytes.len, &m->memory, e);
    if (!rc) rc = gguf_opt_str(&m->gguf, "general.type", &m->memory, &type, e);
    if (!rc && strcmp(type, "imatrix") != 0)
        rc = err_set(e, ERR_DATA, "general.type is '%.64s', expected 'imatrix'", type);
    if (!rc) rc = read_origin(m, e);
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

/* The count of what follows; 0 if it is not positive or missing. */
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
        x->calls = calls ? calls : 1;
        x->name = arena_strndup(&m->memory, (const char *)name, len, e);
        int rc = x->name ? check_sums(x, e) : e->code;
        if (rc) return rc;
    }
    m->chunks = take_count(&at, end);
    uint32_t len = take_count(&at, end);
    const unsigned char *dataset = take(&at, end, len);
    if (!dataset || !len || memchr(dataset, 0, len) || !utf8_valid((const char *)dataset, len)) return 0;
    m->dataset = arena_strndup(&m->memory, (const char *)dataset, len, e);
    return m->dataset ? 0 : e->code;
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

bool imatrix_describe(const struct imatrix *m, cJSON *to) {
    return (!m->dataset || json_put_str(to, "dataset", m->dataset)) && json_put_u64(to, "entries_count", m->n) &&
           (!m->chunks || json_put_u64(to, "chunks_count", m->chunks));
}

/* Number of experts that share the tensor of this slot; 1 if it is not an expert's. */
static uint64_t stacked_in(const struct model_config *c, struct model_slot s) {
    return model_axis_size(c, model_role_info(s.role)->each, s.layer);
}

static float count_of(const struct entry *x, uint32_t expert) {
    return x->counts ? float_at(x->counts, x->n_counts > 1 ? expert : 0) : (float)x->calls;
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
        uint64_t stacked = stacked_in(c, s);
        if (x->cols != cols * stacked || (x->n_counts > 1 && x->n_counts != stacked))
            return err_set(e, ERR_DATA, "importance of '%s' has %llu columns, the matrix %llu: of another model", name,
                           (unsigned long long)x->cols, (unsigned long long)(cols * stacked));
        float count = count_of(x, s.expert);
        for (uint64_t k = 0; k < cols; k++) out[k] = count > 0 ? float_at(x->sums, s.expert * cols + k) / count : 1;
        *found = true;
        return 0;
    }
    return 0;
}

/* ---- writing ---- */

/* Passed to each_entry, which calls `each` for every matrix with sums, once per tensor if several matrices
 * share one (q, k and v). */
struct writing {
    const struct model_config *config;
    imatrix_sums_fn *sums;
    void *ctx;
    int fd;
    struct gguf_header infos;
};
/* `s` is the slot of the first expert if the tensor stacks several. */
typedef int entry_fn(struct writing *w, const char *name, struct model_slot s, uint64_t cols, struct err *e);

static int each_entry(struct writing *w, entry_fn *each, struct err *e) {
    char before[TENSOR_MAX_NAME + 1] = "", name[TENSOR_MAX_NAME + 1];
    for (size_t i = 0; i < model_slot_count(w->config); i++) {
        struct model_slot s = model_slot_at(w->config, i);
        uint64_t cols;
        double n;
        bool known = s.expert == 0 && model_role_is_matrix(s.role) && w->sums(w->ctx, s, &cols, &n);
        if (!known || !target_tensor_name(w->config, s, name) || !strcmp(name, before)) continue;
        memcpy(before, name, sizeof before);
        int rc = each(w, name, s, cols, e);
        if (rc) return rc;
    }
    return 0;
}

/* Shape [stacked][cols], or [cols] if stacked is 1. */
static void put_info(struct writing *w, const char *name, const char *what, uint64_t cols, uint64_t stacked) {
    char full[TENSOR_MAX_NAME + 16];
    uint64_t dims[2] = {stacked, cols};
    unsigned rank = stacked > 1 ? 2 : 1;
    snprintf(full, sizeof full, "%s.%s", name, what);
    gguf_put_tensor(&w->infos, full, rank, dims + 2 - rank, DT_F32, cols * stacked * sizeof(float));
}

static int describe_entry(struct writing *w, const char *name, struct model_slot s, uint64_t cols, struct err *e) {
    (void)e;
    put_info(w, name, "in_sum2", cols, stacked_in(w->config, s));
    put_info(w, name, "counts", 1, stacked_in(w->config, s));
    return w->infos.rc;
}

static int write_entry(struct writing *w, const char *name, struct model_slot s, uint64_t cols, struct err *e) {
    uint64_t stacked = stacked_in(w->config, s);
    struct arena a = {0};
    float *x = arena_array(&a, cols * stacked, sizeof *x, e),
          *counts = x ? arena_array(&a, stacked, sizeof *x, e) : NULL;
    int rc = counts ? 0 : err_prefix(e, "'%s'", name);
    for (; !rc && s.expert < stacked; s.expert++) {
        double n;
        const double *sums = w->sums(w->ctx, s, &cols, &n);
        for (uint64_t i = 0; i < cols; i++) x[s.expert * cols + i] = (float)sums[i];
        counts[s.expert] = (float)n;
    }
    if (!rc) rc = gguf_write_padded(w->fd, x, cols * stacked * sizeof *x, e);
    if (!rc) rc = gguf_write_padded(w->fd, counts, stacked * sizeof *counts, e);
    arena_release(&a);
    return rc;
}

int imatrix_write(const struct model_config *c, imatrix_sums_fn *sums, void *ctx, uint64_t positions,
                  uint64_t sequences, int fd, struct err *e) {
    struct writing w = {.config = c, .sums = sums, .ctx = ctx, .fd = fd, .infos = {.e = e}};
    struct gguf_header keys = {.e = e};
    uint64_t chunk = sequences ? (positions + sequences - 1) / sequences : positions;
    gguf_key_string(&keys, "general.type", "imatrix");
    gguf_key_array(&keys, "imatrix.datasets", GGUF_STRING, 1);
    gguf_put_string(&keys, "rill calibrate", strlen("rill calibrate"));
    gguf_key_u32(&keys, "imatrix.chunk_count", sequences < UINT32_MAX ? (uint32_t)sequences : UINT32_MAX);
    gguf_key_u32(&keys, "imatrix.chunk_size", chunk < UINT32_MAX ? (uint32_t)chunk : UINT32_MAX);
    int rc = keys.rc ? keys.rc : each_entry(&w, describe_entry, e);
    if (!rc && !w.infos.n_tensors) rc = err_set(e, ERR_DATA, "statistics of no matrix that llama.cpp has a name for");
    if (!rc) rc = gguf_write_header(fd, &keys, &w.infos, e);
    if (!rc) rc = each_entry(&w, write_entry, e);
    buf_release(&keys.bytes);
    buf_release(&w.infos.bytes);
    return rc;
}
