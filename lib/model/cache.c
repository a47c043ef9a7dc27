/* Attention with a key/value cache: what generation adds to the forward pass. */
#include "lib/model/model_internal.h"

size_t kv_width(const struct model_config *c, uint32_t layers) {
    size_t width = 0;
    for (uint32_t i = 0; i < layers; i++) width += kernel_cache_size(c->layers[i].n_kv_heads, c->head_dim, 1);
    return width;
}

/* The caches of one layer. */
static struct kernel_cache *caches_of(const struct graph *g, uint32_t layer) {
    struct kernel_cache *caches = grad_alloc(g->t, g->in.n_seqs * sizeof *caches);
    for (size_t i = 0; caches && i < g->in.n_seqs; i++) {
        const struct kv_cache *all = g->caches[i];
        size_t before = all->capacity * kv_width(&g->m->config, layer);
        caches[i] = (struct kernel_cache){kernel_part(all->memory, before), all->capacity, all->length};
    }
    return caches;
}

/* Each of the first n_decoded sequences has one query, which attends to its whole cache; the others are prompts. */
struct grad_var *graph_attend_cached(struct graph *g, uint32_t layer, struct grad_var *q, struct grad_var *k,
                                     struct grad_var *v, const struct kernel_attention *shape) {
    size_t n = g->in.n_seqs, decoded = g->n_decoded;
    struct grad_var *y = grad_scratch(g->t, q->rows, q->cols, q->value.dtype);
    struct kernel_cache *caches = caches_of(g, layer);
    uint32_t *starts = grad_alloc(g->t, (n + 1) * sizeof *starts);
    if (!y || !caches || !starts) return NULL;
    kernel_cache_append(shape, caches, k->value, v->value);
    struct kernel_attention part = *shape;
    part.n_seqs = decoded;
    struct grad_var *scratch = grad_scratch(g->t, 1, kernel_attention_decode_scratch(&part, caches), DT_F32);
    if (!scratch) return NULL;
    kernel_attention_decode(&part, y->value, q->value, caches, scratch->value);
    if (decoded == n) return y;
    part.n_seqs = n - decoded;
    part.starts = starts;
    for (size_t i = 0; i <= part.n_seqs; i++) starts[i] = g->starts[decoded + i] - (uint32_t)decoded;
    size_t first = decoded * q->cols, first_kv = decoded * k->cols;
    kernel_attention(&part, kernel_part(y->value, first), kernel_none(DT_F32), kernel_part(q->value, first),
                     kernel_part(k->value, first_kv), kernel_part(v->value, first_kv));
    return y;
}
