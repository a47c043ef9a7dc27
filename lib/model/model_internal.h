/* Shared inside lib/model: the forward pass with a key/value cache behind it. */
#ifndef RILL_MODEL_INTERNAL_H
#define RILL_MODEL_INTERNAL_H

#include "lib/model/model.h"

/* Keys (rotated) and values of the sequences in flight. Layer l of sequence s: [length[s]][n_kv_heads][head_dim] at
 * memory + s * stride + offset[l] (keys), + offset[l] + capacity * width(l) (values). */
struct kv_cache {
    size_t n_seqs, capacity; /* positions a sequence may hold */
    size_t stride;           /* floats a sequence takes */
    size_t *offset;          /* [n_layers] */
    uint32_t *length;        /* [n_seqs] */
    float *memory;
    const float **keys, **values; /* [n_seqs], filled for a layer at a time */
};

/* As model_graph; with a cache, sequence i of the input continues cache entry seq[i]: either all of them from nothing (prefill) or
 * all by one position (decode). The cache's lengths are advanced. */
struct grad_var *model_graph_cached(struct model *m, struct grad_tape *t, const struct model_input *in,
                                    struct kv_cache *cache, const uint32_t *seq, model_tap *tap, void *ctx,
                                    struct err *e);

#endif
