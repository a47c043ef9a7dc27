/* Shared inside lib/model: the forward pass with a key/value cache behind it. */
#ifndef RILL_MODEL_INTERNAL_H
#define RILL_MODEL_INTERNAL_H

#include "lib/model/model.h"

/* Keys (rotated) and values of one sequence. Those of a layer lie behind those of the layers before it: keys [capacity][width], then
 * values [capacity][width], with width = n_kv_heads * head_dim of the layer. */
struct kv_cache {
    float *memory;
    size_t capacity; /* positions there is room for */
    uint32_t length; /* positions it holds */
};
/* Floats that a position takes in the first `layers` layers; of all: config.n_layers. */
size_t kv_width(const struct model_config *c, uint32_t layers);

/* As model_graph; with caches (NULL: none), sequence i of the input continues caches[i]: the first ones from what they hold, by one
 * position each (decode), those behind them from nothing (prefill). The caches' lengths are advanced. */
struct grad_var *model_graph_cached(struct model *m, struct grad_tape *t, const struct model_input *in,
                                    struct kv_cache *const *caches, model_tap *tap, void *ctx, struct err *e);

#endif
