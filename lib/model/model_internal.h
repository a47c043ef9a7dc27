/* Private to lib/model: key/value caches, the forward pass in pieces, loading of weights. */
#ifndef RILL_MODEL_INTERNAL_H
#define RILL_MODEL_INTERNAL_H

#include "lib/model/model.h"

/* Keys (after rotation) and values of one sequence: a kernel_cache for each layer, contiguous. */
struct kv_cache {
    struct kernel_array memory; /* in the tape's precision, like keys and values */
    size_t capacity;            /* positions it can hold */
    uint32_t length;            /* positions it holds */
};
/* Elements per position in the caches of the first `layers` layers; config.n_layers: of all. */
size_t kv_width(const struct model_config *c, uint32_t layers);

/* ---- the forward pass, piece by piece (graph.c) ------------------------------------------------------------------ */

/* Runs a layer in several parts, on a tape that does not record; each part resumes at the point where the one before
 * stopped. Only where model_has_halves. */
struct graph_part {
    bool resumes;          /* at `from`, with the residual as the layer's input; else starts at the beginning */
    enum model_point from; /* POINT_O_IN, POINT_FFN_IN or POINT_DOWN_IN */
    /* The value at `from`; NULL at POINT_FFN_IN, which is the norm of the residual. */
    struct grad_var *given;
    /* Called where this part stops (graph.last), with the value there and the residual that later output is added
     * to. */
    void (*end)(void *ctx, const struct grad_var *value, const struct grad_var *residual);
    void *ctx;
};

struct graph {
    struct model *m;
    struct grad_tape *t;
    struct model_input in;
    const uint32_t *position; /* [n_positions] within the sequence */
    /* [n_positions] for rope and local_rope: which table of frequencies; NULL: there is one. */
    const uint8_t *tables[2];
    const uint32_t *starts;         /* [n_seqs + 1] */
    struct kv_cache *const *caches; /* [n_seqs], or NULL */
    size_t n_decoded;               /* the first sequences, whose caches are not empty */
    model_tap *tap;
    void *tap_ctx;
    struct model_want *wants; /* [n_wants] */
    size_t n_wants;
    const enum model_point *last;    /* point inside a layer where the pass stops; NULL: none */
    bool ended;                      /* the pass has stopped there */
    const struct graph_part *part;   /* NULL: the layer runs in one go */
    const struct grad_var *residual; /* the residual stream that the next part of the layer is added to */
    struct err *e;
    int rc;
};

/* Begins a pass over `in`, whose tokens and lengths must outlive the graph: checks it and lays out positions. With
 * caches (NULL: none), sequence i continues caches[i]: the first sequences have nonempty caches and one position each
 * (decode), the others empty ones (prefill). Allocated on the tape. NULL and *e on failure. */
struct graph *graph_begin(struct model *m, struct grad_tape *t, const struct model_input *in,
                          struct kv_cache *const *caches, model_tap *tap, void *ctx, struct err *e);
/* Operations like those of lib/grad: a NULL operand gives NULL, and graph_failure returns the error. A layer's weights
 * must be in memory only while it runs. On a tape that does not record, graph_layer frees all that a layer allocates
 * except its output, which overwrites x: memory is that of one layer. */
struct grad_var *graph_embed(struct graph *g);
struct grad_var *graph_layer(struct graph *g, uint32_t layer, struct grad_var *x);
struct grad_var *graph_norm(struct graph *g, struct grad_var *x);
int graph_failure(const struct graph *g);
int model_no_head(struct err *e); /* the error for logits without a head; ERR_DATA */
/* The first rows of a parameter as a leaf: its value, or its grid's `forward`. (taps.c) */
struct grad_var *graph_parameter(const struct model *m, struct grad_tape *t, struct model_param *p, size_t rows);
/* A tensor of the model as a leaf; NULL, which is no failure: the model does not have it. (taps.c) */
struct grad_var *graph_leaf(struct graph *g, struct model_slot s);
/* y plus the output of the slot's adapter on x: y + scale (x a^T) b^T; y if it has none. */
struct grad_var *graph_adapt(struct graph *g, struct model_slot s, struct grad_var *x, struct grad_var *y);
/* added + x w^T + bias, through both factors of a factored matrix, with the adapters; bias and added may be NULL.
 * graph_linears: n <= 3 matrices that read the same x; biases may be NULL, too. */
struct grad_var *graph_linear(struct graph *g, struct model_slot s, struct grad_var *x, struct grad_var *bias,
                              struct grad_var *added);
void graph_linears(struct graph *g, size_t n, const struct model_slot *s, struct grad_var *x,
                   struct grad_var *const *biases, struct grad_var **y);
/* act(gate h) * up h, likewise. */
struct grad_var *graph_gated(struct graph *g, struct model_slot gate, struct model_slot up, struct grad_var *h);
/* Calls the tap, if any, with x or its first `seen.rows` rows; fills in seen.x and seen.cols. */
void graph_tap(struct graph *g, struct model_seen seen, const struct grad_var *x);
/* A point inside a layer: calls the tap and sets wanted variables. Returns x, or NULL where the pass stops, which all
 * later operations pass on. graph_want only sets wanted variables. (taps.c) */
struct grad_var *graph_expose(struct graph *g, enum model_point point, uint32_t layer, struct grad_var *x);
void graph_want(struct graph *g, enum model_point point, uint32_t layer, struct grad_var *x);
/* An LSTM layer: [n_positions][hidden] in f32. graph_lstm_ends: the final state of both directions, [n_seqs][hidden].
 * (lstm.c) */
struct grad_var *graph_lstm(struct graph *g, uint32_t layer, struct grad_var *x);
struct grad_var *graph_lstm_ends(struct graph *g, struct grad_var *h);
/* The weighted sum over the experts of each row of h, [n_positions][hidden] in f32. (experts.c) */
struct grad_var *graph_experts(struct graph *g, uint32_t layer, struct grad_var *h);
/* Rounds queries, keys or values (POINT_Q, POINT_K, POINT_V) in place as a quantized cache does. (kv_store.c) */
struct grad_var *graph_store(struct graph *g, struct grad_var *x, enum model_point which);
/* Attention with caches. (cache.c) */
struct grad_var *graph_attend_cached(struct graph *g, uint32_t layer, struct grad_var *q, struct grad_var *k,
                                     struct grad_var *v, const struct kernel_attention *shape);

/* Number of rows of logits that are asked for, and the head over those rows of h [model_output_rows][*]. False:
 * grad_error. */
size_t model_asked_rows(const struct model_config *c, const struct model_input *in);
bool model_run_head(struct model *m, struct grad_tape *t, const struct model_input *in, struct grad_var *h,
                    grad_loss_block *read, void *ctx);

/* As model_graph, with caches, whose lengths it advances. */
struct grad_var *model_graph_cached(struct model *m, struct grad_tape *t, const struct model_input *in,
                                    struct kv_cache *const *caches, model_tap *tap, void *ctx, struct err *e);

/* ---- loading and dropping weights (load.c) ----------------------------------------------------------------------- */

/* A model without weights. *out must be freed with model_free, also after a failure. */
int model_new(struct model **out, struct kernel_device *device, const struct model_config *c,
              enum model_weight_format format, const void *vocab, size_t n_vocab, struct err *e) MUST_CHECK;
/* Loads the next tensor of a stream, converting it to m->format in parts. */
int model_load_next(struct model *m, struct model_tensors *t, bool *more, struct err *e) MUST_CHECK;
/* Frees the values of one tensor, or of all. */
void model_drop(struct model *m, struct model_slot s);
void model_drop_all(struct model *m);

#endif
