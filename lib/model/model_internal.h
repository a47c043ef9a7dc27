/* Private to lib/model: the forward pass with key/value caches, tensors of a stream, loading of weights. */
#ifndef RILL_MODEL_INTERNAL_H
#define RILL_MODEL_INTERNAL_H

#include "lib/model/model.h"

/* Keys (rotated) and values of one sequence: a kernel_cache for each layer, contiguous. */
struct kv_cache {
    struct kernel_array memory; /* in the tape's precision, which keys and values have */
    size_t capacity;            /* positions it can hold */
    uint32_t length;            /* positions it holds */
};
/* Elements that a position takes in the first `layers` layers; of all: config.n_layers. */
size_t kv_width(const struct model_config *c, uint32_t layers);

/* ---- parts of the configuration (config_json.c, rope.c) ---------------------------------------------------------- */

/* The number of a name in a list that ends with NULL. */
int config_get_name(const cJSON *o, const char *key, const char *const *names, uint32_t *out, struct err *e) MUST_CHECK;
/* A rotation's object of META and back; factors come from `a`. False: out of memory. */
bool rope_to_json(cJSON *o, const char *key, const struct model_rope *rope);
int rope_from_json(struct model_rope *rope, const cJSON *r, struct arena *a, struct err *e) MUST_CHECK;
int rope_copy(struct model_rope *to, const struct model_rope *from, struct arena *a, struct err *e) MUST_CHECK;
int rope_check(const struct model_config *c, const struct model_rope *r, struct err *e) MUST_CHECK;

/* ---- the forward pass, piece by piece (graph.c) ------------------------------------------------------------------ */

/* A layer run in several goes, on a tape that does not record: each begins at the point where the one before ended. Of models whose
 * parts follow each other (model_layer_resumes). */
struct graph_part {
    bool resumes;          /* at `from`; the layer's input is what is added to from there on. Else: from the start */
    enum model_point from; /* POINT_O_IN, POINT_FFN_IN or POINT_DOWN_IN */
    struct grad_var
        *given; /* the value at `from`; NULL at POINT_FFN_IN, whose value is the norm of the layer's input */
    /* At the point where this go ends (graph.last): its value, and what is added to from there on. */
    void (*end)(void *ctx, const struct grad_var *value, const struct grad_var *residual);
    void *ctx;
};

struct graph {
    struct model *m;
    struct grad_tape *t;
    struct model_input in;
    const uint32_t *position; /* [n_positions] within the sequence */
    const uint8_t
        *tables[2]; /* [n_positions] of rope and of local_rope: which table of frequencies; NULL: the only one */
    const uint32_t *starts;         /* [n_seqs + 1] */
    struct kv_cache *const *caches; /* [n_seqs], or NULL */
    size_t n_decoded;               /* sequences, the first ones, whose caches hold something */
    model_tap *tap;
    void *tap_ctx;
    struct model_want *wants; /* [n_wants] */
    size_t n_wants;
    const enum model_point *last;    /* inside a layer, where the pass ends; NULL: it is whole */
    bool ended;                      /* there it is */
    const struct graph_part *part;   /* NULL: the layer is run in one go */
    const struct grad_var *residual; /* what the next part of the layer is added to */
    struct err *e;
    int rc;
};

/* Begins a pass over `in`, whose tokens and lengths must live as long as the graph: checks it and lays out
 * positions. With caches (NULL: none), sequence i continues caches[i]: the first ones from what they hold, by one
 * position each (decode), the others from nothing (prefill). NULL and *e on failure. */
struct graph *graph_begin(struct model *m, struct grad_tape *t, const struct model_input *in,
                          struct kv_cache *const *caches, model_tap *tap, void *ctx, struct err *e);
/* Operations like those of lib/grad: NULL gives NULL, and graph_failure says what went wrong. A layer's weights need
 * to be there only while it is made. On a tape that does not record, graph_layer drops all that a layer makes but
 * its output, which is where x was: memory is that of one layer. */
struct grad_var *graph_embed(struct graph *g);
struct grad_var *graph_layer(struct graph *g, uint32_t layer, struct grad_var *x);
struct grad_var *graph_norm(struct graph *g, struct grad_var *x);
int graph_failure(const struct graph *g);
bool model_layer_resumes(const struct model_config *c); /* may its layers be run in several goes? */
int model_no_head(struct err *e);                       /* the refusal to make logits; ERR_DATA */
/* The first rows of a parameter as a leaf: of its value, or of its grid. (taps.c) */
struct grad_var *graph_parameter(const struct model *m, struct grad_tape *t, struct model_param *p, size_t rows);
/* A tensor of the model as a leaf; NULL without failure: the model has none. (taps.c) */
struct grad_var *graph_leaf(struct graph *g, struct model_slot s);
/* y of an input x and this weight, and what its adapter adds: y + scale (x a^T) b^T; y where it has none. */
struct grad_var *graph_adapt(struct graph *g, struct model_slot s, struct grad_var *x, struct grad_var *y);
/* added + x w^T + bias with the matrix's adapter, through both factors and their adapters if it is factored; bias and added may be NULL.
 * graph_linears: of n <= 3 matrices that read the same x; biases may be NULL, too. */
struct grad_var *graph_linear(struct graph *g, struct model_slot s, struct grad_var *x, struct grad_var *bias,
                              struct grad_var *added);
void graph_linears(struct graph *g, size_t n, const struct model_slot *s, struct grad_var *x,
                   struct grad_var *const *biases, struct grad_var **y);
/* act(gate h) * up h, likewise */
struct grad_var *graph_gated(struct graph *g, struct model_slot gate, struct model_slot up, struct grad_var *h);
/* Calls the tap with x, or its first `seen.rows` rows; x and cols of `seen` are filled in. */
void graph_tap(struct graph *g, struct model_seen seen, const struct grad_var *x);
/* A point inside a layer: for whoever watches, and for whoever wants it. NULL where the pass ends, which all that would follow passes
 * on; else x. graph_want is for who wants it alone. (taps.c) */
struct grad_var *graph_expose(struct graph *g, enum model_point point, uint32_t layer, struct grad_var *x);
void graph_want(struct graph *g, enum model_point point, uint32_t layer, struct grad_var *x);
/* A layer of LSTMs: [n_positions][hidden] in f32 (lstm.c). And of its output the states in which the directions end, [n_seqs][hidden]. */
struct grad_var *graph_lstm(struct graph *g, uint32_t layer, struct grad_var *x);
struct grad_var *graph_lstm_ends(struct graph *g, struct grad_var *h);
/* The weighted sum of the experts that each row of h takes, [n_positions][hidden] in f32 (experts.c). */
struct grad_var *graph_experts(struct graph *g, uint32_t layer, struct grad_var *h);
/* Queries, keys or values (POINT_Q, POINT_K, POINT_V) as attention with a quantized cache has them, in the memory of x (kv_store.c). */
struct grad_var *graph_store(struct graph *g, struct grad_var *x, enum model_point which);
/* Attention with caches (cache.c). */
struct grad_var *graph_attend_cached(struct graph *g, uint32_t layer, struct grad_var *q, struct grad_var *k,
                                     struct grad_var *v, const struct kernel_attention *shape);

/* Rows of logits that are asked for; and the head over h [model_output_rows][*], of these rows alone. False: grad_error. */
size_t model_asked_rows(const struct model_config *c, const struct model_input *in);
bool model_run_head(struct model *m, struct grad_tape *t, const struct model_input *in, struct grad_var *h,
                    grad_loss_block *read, void *ctx);

/* As model_graph, with caches, whose lengths are advanced. */
struct grad_var *model_graph_cached(struct model *m, struct grad_tape *t, const struct model_input *in,
                                    struct kv_cache *const *caches, model_tap *tap, void *ctx, struct err *e);

/* ---- the tensors of a stream, one after another (head.c) --------------------------------------------------------- */

/* As model_each_tensor, as a pull-style iterator: whole tensors, or one's description and then its elements in
 * parts. */
struct model_tensors {
    struct stream_reader *r;
    const struct model_config *config;
    struct stream_item *item; /* where model_head_read left off */
    size_t next;              /* position in stream order of the next one */
    struct model_slot slot;   /* of the latest */
    struct tensor_desc desc;
    cJSON *attrs;
    struct buf data; /* whole, valid until the next call; or scratch for parts */
    uint64_t given;  /* elements given in parts */
};
void model_tensors_begin(struct model_tensors *t, struct stream_reader *r, const struct model_config *c,
                         struct stream_item *item);
int model_tensors_next(struct model_tensors *t, bool *more, struct err *e) MUST_CHECK;
int model_tensors_open(struct model_tensors *t, bool *more, struct err *e) MUST_CHECK;
/* The next n elements, whole blocks. All are to be asked for. A checksum may fail after parts were given. */
int model_tensors_part(struct model_tensors *t, void *dst, uint64_t n, struct err *e) MUST_CHECK;
void model_tensors_release(struct model_tensors *t);

/* ---- loading and dropping weights (load.c) ----------------------------------------------------------------------- */

/* A model without weights. On failure too *out is what model_free takes. */
int model_new(struct model **out, struct kernel_device *device, const struct model_config *c,
              enum model_weight_format format, const void *vocab, size_t n_vocab, struct err *e) MUST_CHECK;
/* Loads the next tensor of a stream in m->format, converting it in parts. */
int model_load_next(struct model *m, struct model_tensors *t, bool *more, struct err *e) MUST_CHECK;
void model_drop(struct model *m, struct model_slot s);
void model_drop_all(struct model *m);

#endif
