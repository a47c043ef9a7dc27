/* Keys and values as a run time that keeps them quantized reads them back. */
#include <math.h>

#include "lib/model/model_internal.h"

enum { ROTATED = 64 }; /* the smallest rotation */

int model_set_kv_cache(struct model *m, enum dtype dtype, bool rotate, struct err *e) {
    const struct model_config *c = &m->config;
    const struct dtype_info *type = dtype_info(dtype);
    if (c->layer_kind == LAYER_LSTM || c->bidirectional)
        return err_set(e, ERR_DATA, "this model reads its whole text at once and has no cache of keys and values");
    if (!type->is_quantized || type->read_only || type->block_elems > 32)
        return err_set(e, ERR_USAGE, "a cache of %s: expected a type with blocks of 32", type->name);
    if (c->head_dim % type->block_elems)
        return err_set(e, ERR_DATA, "heads of %u elements are not a whole number of %s's blocks of %u", c->head_dim,
                       type->name, type->block_elems);
    m->kv_type = dtype;
    m->kv_rotation_k = m->kv_rotation_v = 0;
    if (!rotate || c->head_dim % ROTATED) return 0;
    m->kv_rotation_k = m->kv_rotation_v = ROTATED;
    while (c->head_dim % (2 * m->kv_rotation_k) == 0) m->kv_rotation_k *= 2;
    return 0;
}

/* x [n] by the orthonormal Hadamard matrix of Sylvester's order, which is its own inverse. */
static void hadamard(float *x, size_t n) {
    float scale = 1 / sqrtf((float)n);
    for (size_t s = 1; s < n; s *= 2)
        for (size_t i = 0; i < n; i += 2 * s)
            for (size_t k = i; k < i + s; k++) {
                float a = x[k], b = x[k + s];
                x[k] = a + b;
                x[k + s] = a - b;
            }
    for (size_t i = 0; i < n; i++) x[i] *= scale;
}

struct store {
    float *x;
    unsigned char *blocks; /* [threads][row_bytes] */
    size_t cols, rotation, row_bytes;
    enum dtype dtype;
    struct err *failed; /* [rows]; code 0: fine */
};

static void store_row(void *ctx, size_t row, int thread) {
    const struct store *s = ctx;
    float *x = s->x + row * s->cols;
    unsigned char *blocks = s->blocks + (size_t)thread * s->row_bytes;
    for (size_t i = 0; s->rotation && i < s->cols; i += s->rotation) hadamard(x + i, s->rotation);
    if (tensor_from_f32(s->dtype, x, blocks, s->cols, NULL, &s->failed[row])) return;
    tensor_to_f32(s->dtype, blocks, x, s->cols);
    for (size_t i = 0; s->rotation && i < s->cols; i += s->rotation) hadamard(x + i, s->rotation);
}

static int store_rows(struct store *s, size_t rows, struct err *e) {
    struct arena a = {0};
    s->failed = arena_array(&a, rows, sizeof *s->failed, e);
    s->blocks = s->failed ? arena_array(&a, (size_t)parallel_threads(), s->row_bytes, e) : NULL;
    int rc = s->blocks ? 0 : e->code;
    if (!rc) parallel_for(rows, store_row, s);
    for (size_t i = 0; !rc && i < rows; i++)
        if (s->failed[i].code) *e = s->failed[i], rc = err_prefix(e, "position %zu", i);
    arena_release(&a);
    return rc;
}

struct grad_var *graph_store(struct graph *g, struct grad_var *x, bool key) {
    struct model *m = g->m;
    if (!m->kv_type || !x) return x;
    if (grad_records(g->t)) {
        g->rc = err_set(g->e, ERR_USAGE, "a quantized cache of keys and values is for inference, not for training");
        return NULL;
    }
    size_t n = x->rows * x->cols;
    struct grad_mark mark = grad_mark(g->t);
    float *rows = grad_alloc(g->t, n * sizeof *rows);
    const float *host = grad_host_value(g->t, x);
    if (!rows || !host) return NULL;
    memcpy(rows, host, n * sizeof *rows);
    struct store s = {.x = rows,
                      .cols = x->cols,
                      .rotation = key ? m->kv_rotation_k : m->kv_rotation_v,
                      .dtype = m->kv_type,
                      .row_bytes = dtype_row_bytes(m->kv_type, x->cols)};
    if (store_rows(&s, x->rows, g->e)) {
        g->rc = err_prefix(g->e, key ? "a key" : "a value");
        return NULL;
    }
    kernel_convert(x->value, kernel_host_array(DT_F32, rows), n);
    grad_rewind(g->t, mark);
    return x;
}
