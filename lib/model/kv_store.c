/* Rounds queries, keys and values as a runtime with a quantized KV cache does. */
#include <math.h>

#include "lib/model/model_internal.h"

enum { ROTATED = 64 }; /* the smallest rotation, and the one for values */

int model_set_kv_cache(struct model *m, const struct model_kv_cache *how, struct err *e) {
    const struct model_config *c = &m->config;
    const struct dtype_info *type = dtype_info(how->dtype);
    if (c->layer_kind == LAYER_LSTM || c->bidirectional)
        return err_set(e, ERR_DATA, "this model reads its whole text at once and has no cache of keys and values");
    if (!type->is_quantized || type->read_only || type->block_elems > 32)
        return err_set(e, ERR_USAGE, "a cache of %s: expected a type with blocks of 32", type->name);
    if (c->head_dim % type->block_elems)
        return err_set(e, ERR_DATA, "heads of %u elements are not a whole number of %s's blocks of %u", c->head_dim,
                       type->name, type->block_elems);
    m->kv = *how;
    return 0;
}

/* Number of elements that are rotated together; 0: none. */
static size_t rotation_of(const struct model *m, bool key) {
    size_t n = ROTATED, head = m->config.head_dim;
    if (!m->kv.rotated || head % n) return 0;
    while (key && head % (2 * n) == 0) n *= 2;
    return n;
}

/* Multiplies x [n] by the orthonormal Hadamard matrix in Sylvester's order, which is its own inverse. */
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
    float *interleaved;    /* [threads][cols] */
    size_t cols, rotation, row_bytes;
    size_t head; /* size of the heads whose rotary pairs are interleaved; 0: none */
    enum dtype dtype;
    struct err *failed; /* [rows]; code 0: no error */
};

/* Interleaves the rotary pairs of each head, which are half a head apart, or undoes it. */
static void interleave(const struct store *s, const float *x, float *y, bool back) {
    size_t half = s->head / 2;
    for (size_t at = 0; at < s->cols; at += s->head)
        for (size_t i = 0; i < s->head; i++) {
            size_t to = i < half ? 2 * i : 2 * (i - half) + 1;
            if (back)
                y[at + i] = x[at + to];
            else
                y[at + to] = x[at + i];
        }
}

static void rotate(const struct store *s, float *x) {
    for (size_t i = 0; s->rotation && i < s->cols; i += s->rotation) hadamard(x + i, s->rotation);
}

static void store_row(void *ctx, size_t row, int thread) {
    const struct store *s = ctx;
    float *x = s->x + row * s->cols, *y = s->head ? s->interleaved + (size_t)thread * s->cols : x;
    unsigned char *blocks = s->blocks + (size_t)thread * s->row_bytes;
    if (s->head) interleave(s, x, y, false);
    rotate(s, y);
    if (tensor_from_f32(s->dtype, y, blocks, s->cols, NULL, &s->failed[row])) return;
    tensor_to_f32(s->dtype, blocks, y, s->cols);
    rotate(s, y);
    if (s->head) interleave(s, y, x, true);
}

static int store_rows(struct store *s, size_t rows, struct err *e) {
    struct arena a = {0};
    s->failed = arena_array(&a, rows, sizeof *s->failed, e);
    s->blocks = s->failed ? arena_array(&a, (size_t)parallel_threads(), s->row_bytes, e) : NULL;
    s->interleaved =
        s->blocks ? arena_array(&a, (size_t)parallel_threads() * s->cols, sizeof *s->interleaved, e) : NULL;
    int rc = s->interleaved ? 0 : e->code;
    if (!rc) parallel_for(rows, store_row, s);
    for (size_t i = 0; !rc && i < rows; i++)
        if (s->failed[i].code) *e = s->failed[i], rc = err_prefix(e, "position %zu", i);
    arena_release(&a);
    return rc;
}

struct grad_var *graph_store(struct graph *g, struct grad_var *x, enum model_point which) {
    struct model *m = g->m;
    if (!m->kv.dtype || !x) return x;
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
    /* ggml quantizes queries to q8_0 for products with blocks, rotated as the keys are */
    enum dtype dtype = which == POINT_Q ? DT_Q8_0 : m->kv.dtype;
    bool value = which == POINT_V;
    struct store s = {.x = rows,
                      .cols = x->cols,
                      .rotation = rotation_of(m, !value),
                      .head = !value && m->kv.interleaved ? m->config.head_dim : 0,
                      .dtype = dtype,
                      .row_bytes = dtype_row_bytes(dtype, x->cols)};
    if (store_rows(&s, x->rows, g->e)) {
        g->rc = err_prefix(g->e, "%s in the cache", model_point_name(which));
        return NULL;
    }
    kernel_convert(x->value, kernel_host_array(DT_F32, rows), n);
    grad_rewind(g->t, mark);
    return x;
}
