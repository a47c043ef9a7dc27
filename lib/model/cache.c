/* Attention of sequences whose earlier keys and values are kept: what generation adds to the forward pass. */
#include "lib/model/model_internal.h"

size_t kv_width(const struct model_config *c, uint32_t layers) {
    size_t width = 0;
    for (uint32_t i = 0; i < layers; i++) width += 2 * (size_t)c->layers[i].n_kv_heads * c->head_dim;
    return width;
}

/* Appends this pass's keys and values of one layer to the caches and gives the whole of each. */
static void cache_append(const struct graph *g, uint32_t layer, const struct grad_var *k, const struct grad_var *v,
                         struct kernel_array *keys, struct kernel_array *values) {
    size_t width = k->cols, before = kv_width(&g->m->config, layer);
    for (size_t i = 0; i < g->in.n_seqs; i++) {
        const struct kv_cache *cache = g->caches[i];
        size_t n = g->in.lengths[i], from = g->starts[i] * width, to = cache->length * width;
        keys[i] = kernel_part(cache->memory, cache->capacity * before);
        values[i] = kernel_part(keys[i], cache->capacity * width);
        kernel_convert(kernel_part(keys[i], to), kernel_part(k->value, from), n * width);
        kernel_convert(kernel_part(values[i], to), kernel_part(v->value, from), n * width);
    }
}

/* The first n_decoded sequences bring one query to all that their cache holds; the others are whole. */
struct grad_var *graph_attend_cached(struct graph *g, uint32_t layer, struct grad_var *q, struct grad_var *k,
                                     struct grad_var *v, const struct kernel_attention *shape) {
    size_t n = g->in.n_seqs, decoded = g->n_decoded;
    struct grad_var *y = grad_scratch(g->t, q->rows, q->cols);
    struct kernel_array *keys = grad_alloc(g->t, n * sizeof *keys), *values = grad_alloc(g->t, n * sizeof *values);
    uint32_t *length = grad_alloc(g->t, n * sizeof *length);
    uint32_t *starts = grad_alloc(g->t, (n + 1) * sizeof *starts);
    const float *queries = grad_value(g->t, q);
    if (!y || !keys || !values || !length || !starts || !queries) return NULL;
    cache_append(g, layer, k, v, keys, values);
    for (size_t i = 0; i < n; i++) length[i] = g->caches[i]->length + g->in.lengths[i];
    struct kernel_attention part = *shape;
    part.n_seqs = decoded;
    if (decoded) kernel_attention_decode(&part, y->value.data, queries, keys, values, length);
    if (decoded == n) return y;
    part.n_seqs = n - decoded;
    part.starts = starts;
    for (size_t i = 0; i <= part.n_seqs; i++) starts[i] = g->starts[decoded + i] - (uint32_t)decoded;
    size_t first = decoded * q->cols, first_kv = decoded * k->cols;
    kernel_attention(&part, kernel_part(y->value, first), NULL, kernel_part(q->value, first),
                     kernel_part(k->value, first_kv), kernel_part(v->value, first_kv));
    return y;
}
