/*
 * model: a transformer in memory: loading and saving, inference, the training graph, generation, and inference with a
 * model larger than memory. All of them share one forward pass (on lib/grad's tape, which records for training only).
 * What a model computes is described by lib/arch.
 *
 * Functions that return int return 0 or an error code and fill *e (lib/base/base.h); those that return a pointer and
 * take an err return NULL on failure. The caller owns what comes back through `out`.
 */
#ifndef RILL_MODEL_H
#define RILL_MODEL_H

#include "lib/arch/arch.h"
#include "lib/grad/grad.h"

/* ---- a whole model in memory ------------------------------------------------------------------------------------- */

/* The format of matrices in memory. Norms and biases are f32 in each. */
enum model_weight_format {
    WEIGHTS_F32, /* for training and saving, and for inference in f32 */
    /* For inference in bf16: packed in bf16, or stored in the stream's quantized blocks. Constant; no f32 copy. */
    WEIGHTS_PACKED,
    WEIGHTS_INT8, /* as WEIGHTS_PACKED, but types with a quant_form are packed for integer products */
};

/* A low-rank update of a matrix W [out][in] (Hu et al. 2022, "LoRA"): computes W + scale b a (lib/train). */
struct model_adapter {
    uint32_t rank;
    float scale;
    struct kernel_array a, b, a_grad, b_grad; /* f32 [rank][in] and [out][rank]; a gradient without data: constant */
    bool a_begun, b_begun;
};

/* A quantized form of a matrix in training: forward passes read `forward`, the dequantized blocks, whose gradient is
 * used as that of the value (the straight-through estimator of Bengio et al. 2013, arXiv 1308.3432). See lib/train. */
struct model_grid {
    enum dtype dtype;
    unsigned char *blocks;       /* [rows] of dtype, in host memory: what model_save writes */
    struct kernel_array forward; /* f32, [rows][cols] */
};

struct model_param {
    struct model_slot slot;
    struct tensor_desc desc;       /* as stored: type and shape */
    struct kernel_array value;     /* f32 [rows][cols]; no data if the matrix is packed ... */
    struct kernel_matrix matrix;   /* ... which is here (both during a step of model_layerwise); owned by the model */
    struct kernel_array grad;      /* no data until model_enable_grad */
    bool grad_begun;               /* false: grad holds nothing yet, and the next pass overwrites it (grad_parameter) */
    uint64_t n;                    /* elements */
    struct model_adapter *adapter; /* of a matrix inside a layer, or NULL; its owner also removes it */
    const struct model_grid *grid; /* of a matrix, or NULL; owned likewise */
};

/* How a runtime stores keys and values. */
struct model_kv_cache {
    enum dtype dtype; /* with blocks of 32; 0: not quantized */
    /* Multiplied by a Hadamard matrix before quantization, if the head size is a multiple of 64. */
    bool rotated;
    bool interleaved; /* keys have the elements of a rotary pair next to each other */
};

struct model {
    struct model_config config;
    struct kernel_device *device; /* where the parameters are */
    enum model_weight_format format;
    struct model_param *params; /* [n_params], stream order */
    size_t n_params;
    bool masters;                 /* forward passes read the master weights even where a grid is set */
    struct model_kv_cache kv;     /* see model_set_kv_cache */
    size_t expert_stride;         /* distance in params between the same tensor of consecutive experts */
    struct model_param **by_role; /* [n_layers][ROLE_COUNT], roles outside layers in the first row; NULL: absent */
    size_t n_int8;                /* matrices packed for integer products so far; WEIGHTS_INT8 may find none */
    struct vocab *vocab;          /* NULL when the stream has none */
    struct buf vocab_bytes;
    struct digest vocab_digest; /* zero if there is none */
    cJSON *meta;
    double *inv_freq, *local_inv_freq; /* of rope and local_rope, by model_inv_freq; NULL: not used */
    struct arena memory;
};

/* Reads a stream to its end. The caller frees *out with model_free. ERR_DATA: not a valid model stream. */
int model_load(struct model **out, struct kernel_device *device, struct stream_reader *r,
               enum model_weight_format format, struct err *e) MUST_CHECK;
/* The precision of inference, for grad_tape_new: DT_F32 for WEIGHTS_F32, else DT_BF16 (mixed with integer products). */
enum dtype model_precision(const struct model *m);
/* Number of tokens in the vocabulary, and so of columns of the logits. Further rows of embedding and head are padding
 * (Qwen2.5 has 152064 or 151936 rows for 151665 tokens) and take part in no softmax. Without a vocabulary the padding
 * is not known, and all rows count. */
uint32_t model_n_tokens(const struct model *m);
/* A new model. Matrices are normal(0, 0.02), residual outputs scaled by 1/sqrt(2 n_layers) (GPT-2), norms 1. Models of
 * LSTMs have the standard deviations of PyTorch's modules: embedding 1, LSTMs 1/sqrt(3 units), later matrices 1/sqrt(3
 * columns). Biases are 0. ERR_DATA: invalid configuration. */
int model_init(struct model **out, struct kernel_device *device, const struct model_config *c, const void *vocab,
               size_t n_vocab, uint64_t seed, struct err *e) MUST_CHECK;
/* The same with the standard deviations of muP relative to `base`, which META records. base NULL: as model_init. */
int model_init_mup(struct model **out, struct kernel_device *device, const struct model_config *c,
                   const struct model_mup *base, const void *vocab, size_t n_vocab, uint64_t seed,
                   struct err *e) MUST_CHECK;
/* Copies embed.weight to m, in f32, from the model that `r` reads, whose head has been read and whose first tensor is
 * `item`. ERR_DATA: not of the same shape. */
int model_copy_embedding(struct model *m, struct stream_reader *r, const struct model_config *from,
                         struct stream_item *item, struct err *e) MUST_CHECK;
/* Allocates gradients for all parameters, zeroed. ERR_USAGE unless in WEIGHTS_F32. */
int model_enable_grad(struct model *m, struct err *e) MUST_CHECK;
/* The same for params[i] alone: the others stay constant. */
int model_enable_grad_of(struct model *m, size_t i, struct err *e) MUST_CHECK;
/* Frees the model and all that it owns. NULL: no-op. */
void model_free(struct model *m);
struct model_param *model_param(const struct model *m, enum model_role role, uint32_t layer); /* NULL: absent */
/* The same for a role that each expert has. */
struct model_param *model_expert_param(const struct model *m, enum model_role role, uint32_t layer, uint32_t expert);
/* Elements and gradient of a parameter in host memory, to read; in WEIGHTS_F32, after model_enable_grad. */
static inline float *model_host_value(const struct model_param *p) {
    return kernel_host(p->value, p->n);
}
static inline float *model_host_grad(const struct model_param *p) {
    return kernel_host(p->grad, p->n);
}
/* Writes head and tensors of a model in WEIGHTS_F32 (else ERR_USAGE): all tensors as `dtype`, or if it is 0 each in the
 * type it was read in, except that quantized tensors become f32 (use quantize) and one with a grid is written as its
 * blocks. ERR_DATA: an element is not finite. */
int model_save(const struct model *m, struct stream_writer *w, unsigned dtype, struct err *e) MUST_CHECK;
/* Writes one tensor, as model_save does. `scratch` is the caller's, for reuse. */
int model_save_param(const struct model_param *p, struct stream_writer *w, unsigned dtype, struct buf *scratch,
                     struct err *e) MUST_CHECK;
/* ERR_DATA "... disagree: vocabulary xxh3:.. against xxh3:.." if both name a vocabulary and they differ, or if one
 * names none and the sizes differ. `meta` is META of a tokens or knowledge stream, `what` its name for messages.
 * Padding may differ. */
int model_check_vocab(const struct model *m, const cJSON *meta, const char *what, struct err *e) MUST_CHECK;

/* ---- forward ----------------------------------------------------------------------------------------------------- */

struct model_input {
    size_t n_positions, n_seqs;
    const uint32_t *tokens;  /* [n_positions] */
    const uint32_t *lengths; /* [n_seqs], each >= 1, sum n_positions, at most config.context each */
    const uint32_t *types;   /* [n_positions] token types, NULL: all 0. Ignored by models with fewer than two */
    /* [n_positions], 1 where logits are wanted; NULL: everywhere. Not with OUTPUT_CLASSES. */
    const uint8_t *asked;
};
/* Whole sequences [first, first + n) of `in`, where the first of them begins at position `at`. */
struct model_input model_input_part(const struct model_input *in, size_t first, size_t n, size_t at);

/* The argument of a tap: values [rows][cols], valid during the call. */
struct model_seen {
    enum model_point point;
    uint32_t layer, expert; /* 0 if there is only one */
    size_t rows, cols;
    const uint32_t *positions; /* [rows] the input positions of the rows, ascending; NULL: all */
    const struct grad_var *x;  /* f32, or bf16 on a tape in bf16 */
    struct grad_tape *tape;
};
/* Sets *x to the values [rows][cols] in f32 in host memory, valid during the call. ERR_IO: out of memory. */
int model_seen_f32(const struct model_seen *seen, const float **x, struct err *e) MUST_CHECK;
/* Called at each point of a forward pass. A nonzero result stops the pass, which returns it. */
typedef int model_tap(void *ctx, const struct model_seen *seen, struct err *e);

/* The graph up to the input of the head, [model_output_rows][embed_dim]: normalized hidden states, after the transform
 * of a masked LM head; for sequence classifiers one row per sequence. `tap` may be NULL. On a recording tape this is
 * the training graph. ERR_DATA: a token id outside the vocabulary, or a sequence longer than the context. */
struct grad_var *model_graph(struct model *m, struct grad_tape *t, const struct model_input *in, model_tap *tap,
                             void *ctx, struct err *e);
/* As model_graph, and sets wants[i].var to the variable at a point, for losses that read its value and add to its
 * gradient (grad_of, before grad_backward). Layers with wanted inner points are kept whole by grad_recompute. On a tape
 * that does not record, var is a copy in f32. Layers count from 0; POINT_EMBED and POINT_HEAD_IN belong to layer 0.
 * ERR_DATA: no such point. */
struct model_want {
    enum model_point point;
    uint32_t layer;
    struct grad_var *var; /* OUT */
};
struct grad_var *model_graph_want(struct model *m, struct grad_tape *t, const struct model_input *in,
                                  struct model_want *wants, size_t n_wants, struct err *e);
/* The head's input for an early exit: as if x, the output of some layer (POINT_LAYER), were that of the last. */
struct grad_var *model_exit(struct model *m, struct grad_tape *t, const struct model_input *in, struct grad_var *x,
                            struct err *e);
/* Heads, mask, scale and soft cap of a layer's attention; the caller fills in the sequences. */
struct kernel_attention model_attention_shape(const struct model_config *c, uint32_t layer);
/* Number of rows of logits: n_positions, or n_seqs with OUTPUT_CLASSES. */
size_t model_output_rows(const struct model_config *c, const struct model_input *in);
/* The pooler's output [n_seqs][hidden] in f32, from each sequence's first row of h [n_positions][hidden] (LSTMs: see
 * OUTPUT_CLASSES); without a pooler, these rows. model_graph uses it only for sequence classifiers. */
struct grad_var *model_pooled(struct model *m, struct grad_tape *t, const struct model_input *in, struct grad_var *h,
                              struct err *e);
/* The operands of grad_head that make logits: weight (a tied head: the embedding), bias, soft cap. Without a head, w is
 * NULL. */
struct grad_head model_logits_head(struct model *m, struct grad_tape *t);

/* Columns of its logits: model_n_tokens, or classes. */
uint32_t model_columns(const struct model *m);

/* Makes later inference passes read keys (after rotation by position) and values as llama.cpp returns them from its
 * cache with --cache-type-k and --cache-type-v: at each position, including the newest, each head is quantized on its
 * own in blocks of 32 and dequantized. `rotated`, as in llama.cpp since 2026: keys are multiplied by Hadamard matrices
 * of the largest size 64 * 2^k that divides the head, values by ones of size 64, and queries and the output of
 * attention accordingly, which without rounding would change nothing. Queries are rotated as keys are and rounded to
 * q8_0, as ggml does before it multiplies them with blocks. ERR_USAGE: not a type with blocks of 32. ERR_DATA: the
 * model has no such cache, or its heads are not whole blocks. */
int model_set_kv_cache(struct model *m, const struct model_kv_cache *how, struct err *e) MUST_CHECK;

/* Inference: hidden states, then logits, passed to `fn` in blocks of rows: rows [first, first + rows) of
 * model_output_rows, or of those that in->asked selects (with the same bits); `vocab` columns: model_n_tokens, or
 * classes. `fn` may overwrite host_logits. fn, tap: may be NULL. Memory: the batch's activations and one block. */
typedef int model_logits_fn(void *ctx, size_t first, size_t rows, size_t vocab, float *host_logits, struct err *e);
int model_infer(struct model *m, struct grad_tape *scratch, const struct model_input *in, model_tap *tap, void *tap_ctx,
                model_logits_fn *fn, void *ctx, struct err *e) MUST_CHECK;

/* Parts of a forward pass, for searches that leave layers out. model_infer_layers runs n layers, in any order, from
 * host_states [n_positions][hidden] (NULL: the embedding of the input) and writes the result to host_out, which may be
 * host_states. model_infer_head makes the logits of such states as if they came from the last layer. Not for models
 * whose layers read another width than `hidden`. */
int model_infer_layers(struct model *m, struct grad_tape *scratch, const struct model_input *in,
                       const float *host_states, const uint32_t *layers, size_t n, float *host_out,
                       struct err *e) MUST_CHECK;
int model_infer_head(struct model *m, struct grad_tape *scratch, const struct model_input *in, const float *host_states,
                     model_logits_fn *fn, void *ctx, struct err *e) MUST_CHECK;

/* ---- inference with a model larger than memory ------------------------------------------------------------------- */

/* Runs a block of positions through the model layer by layer: memory holds the hidden states of the block, one layer
 * and, at the end, the head (as in the layer-wise offloading of FlexGen, Sheng et al. 2023, with a block as large as
 * memory allows). The operations, and so the bits of the results, are those of model_infer for the same inputs.
 *
 *     model_layerwise_new(&l, device, reader, format, again, ctx)
 *     for each block: model_layerwise_run(l, scratch, in, n); model_layerwise_logits(l, scratch, in, n, fn, ctx)
 *
 * The first run reads `reader` to its end. Each later run, and the head of a tied model, reads the stream again through
 * `again`, which returns a reader at the start of the stream, valid until the next call. again NULL: the stream can be
 * read only once, as from a pipe; then there is one block, and an embedding that is also the head stays in memory. */
typedef int model_again_fn(void *ctx, struct stream_reader **out, struct err *e);
/* Number of layers of this block that are done; for a progress bar. */
typedef void model_layer_fn(void *ctx, uint32_t layers);
struct model_layerwise;
int model_layerwise_new(struct model_layerwise **out, struct kernel_device *device, struct stream_reader *r,
                        enum model_weight_format format, model_again_fn *again, void *again_ctx,
                        struct err *e) MUST_CHECK;
/* Configuration, vocabulary and META; the parameters have no values. */
const struct model *model_layerwise_model(const struct model_layerwise *l);
struct digest model_layerwise_digest(const struct model_layerwise *l); /* of the stream; valid after a run */
/* Computes the hidden states of a block of n inputs, each a forward pass of its own. `progress` may be NULL. ERR_DATA:
 * the stream is damaged, or changed since the last run. ERR_USAGE: a second reading without `again`. */
int model_layerwise_run(struct model_layerwise *l, struct grad_tape *scratch, const struct model_input *in, size_t n,
                        model_layer_fn *progress, void *ctx, struct err *e) MUST_CHECK;
/* Sets a tap for later runs: it sees layer after layer, and in each the block's positions in order, in several
 * passes. */
void model_layerwise_tap(struct model_layerwise *l, model_tap *tap, void *ctx);
/* Logits of the same inputs in order; `first` counts through the block. fn NULL: only the head's input, for a tap. */
int model_layerwise_logits(struct model_layerwise *l, struct grad_tape *scratch, const struct model_input *in, size_t n,
                           model_logits_fn *fn, void *ctx, struct err *e) MUST_CHECK;
/* For several heads at once (grad_heads), after a run: the head's input for one of the inputs, which starts at position
 * `first` of the block, on a tape that is reset. */
struct grad_var *model_layerwise_hidden(struct model_layerwise *l, struct grad_tape *scratch,
                                        const struct model_input *in, size_t first, struct err *e);
/* The model, in which only the tensors in memory have values: after a run those of the head (model_logits_head), until
 * the next run; inside a visit (below) those it is called for. */
struct model *model_layerwise_held(struct model_layerwise *l);
void model_layerwise_free(struct model_layerwise *l); /* no-op if NULL */

/* Changes a model layer by layer, for methods that look at the input of each layer after changing the earlier ones
 * (GPTQ, SparseGPT, layer-wise reconstruction). Weights are in f32.
 *
 * `visit` is called with the tensors before the layers (layer -1), of each layer, and after the layers (layer n_layers)
 * in memory, once each, in stream order. It may observe the layer (model_layerwise_watch), change its weights
 * (model_layerwise_held) and write them out; then the layer runs with its current weights to make the input of the next
 * one. Memory: one layer and the states of the block, three times with `dense`. */
enum model_states {
    STATES_NOW,   /* from the layers before, as changed */
    STATES_DENSE, /* from the layers before, with the weights of the stream (needs model_changes.dense) */
};
struct model_changes {
    bool dense; /* keep STATES_DENSE: runs each layer once more */
    int (*visit)(void *ctx, struct model_layerwise *l, int64_t layer, struct err *e);
    void *ctx;
    /* Keep dense states of one pass in `dense_every`, contiguous, so for fewer positions; 0: 1, all passes. */
    size_t dense_every;
    model_tap *dense_tap; /* observes the unchanged layer, before the visit, with ctx; may be NULL */
    /* The visit promises not to change weights that act before a point once it has watched that point. Then watching a
     * later point resumes from the one before, and so does the layer's own run: in total the layer runs once. */
    bool in_order;
};
int model_layerwise_change(struct model_layerwise *l, struct grad_tape *scratch, const struct model_input *in, size_t n,
                           const struct model_changes *c, struct err *e) MUST_CHECK;
/* Number of positions of the passes over n inputs if one pass in `every` is kept. */
size_t model_layerwise_positions(const struct model_input *in, size_t n, size_t every);
/* Inside a visit to a layer: runs it, with its current weights, on its input. `tap` sees it as in model_infer, in
 * passes of whole sequences, in order. last: the point where computation stops; NULL: at the layer's end. */
int model_layerwise_watch(struct model_layerwise *l, enum model_states which, const enum model_point *last,
                          model_tap *tap, void *ctx, struct err *e) MUST_CHECK;
/* Inside a visit to a layer whose output is as wide as its input: leaves it out; its input goes into the next layer. Or
 * to the last layer, if nobody reads its output. */
void model_layerwise_skip(struct model_layerwise *l);
/* Inside a visit, owned by l: the layer's input [positions][hidden] and, with `dense`, the unchanged layer's output. */
const float *model_layerwise_states(const struct model_layerwise *l, enum model_states which);
const float *model_layerwise_dense_output(const struct model_layerwise *l);
/* A layer, or one half of it, on the caller's tape, which may record: y from x [n_positions][input width], in f32. A
 * half includes the residual connection: x + attention, or x + feed-forward part. The layer's weights must be in
 * memory. If model_has_halves is false (both parts read the same x, or layers are LSTMs), only BLOCK_LAYER is
 * allowed. */
enum model_block { BLOCK_LAYER, BLOCK_ATTENTION, BLOCK_FFN };
bool model_has_halves(const struct model_config *c); /* does a layer consist of two parts, one after the other? */
struct grad_var *model_graph_block(struct model *m, struct grad_tape *t, const struct model_input *in, uint32_t layer,
                                   enum model_block block, struct grad_var *x, struct err *e);

/* ---- generation: KV cache, many sequences at once ---------------------------------------------------------------- */

struct model_sampling {
    double temperature; /* 0: greedy */
    uint32_t top_k;     /* 0: all */
    double top_p;       /* 1: all */
    uint64_t seed;
    uint32_t max_new;
    /* [n_ends] tokens that end a sequence (and are kept), ascending; the caller's, valid as long as the generator. */
    const uint32_t *ends;
    size_t n_ends;
};
/* Called for each finished sequence, in the order they were added. The arrays are valid during the call. */
typedef int model_generated_fn(void *ctx, uint64_t seq, const uint32_t *prompt, size_t n_prompt, const uint32_t *made,
                               size_t n_made, struct err *e);
/* Called after each step with sums so far. Steps with prompts also make a token for each sequence in flight. */
struct model_generated {
    /* Tokens generated, including those of unfinished sequences, and how many of them by steps without prompts. */
    uint64_t made;
    uint64_t decoded;
    uint64_t prompted;                     /* prompt tokens */
    double decode_seconds, prompt_seconds; /* of steps without and with prompts */
};
typedef void model_step_fn(void *ctx, const struct model_generated *sum);
/* Continues up to 64 sequences at once, as far as 1 GiB of keys and values allows; when one is finished the next one
 * takes its place (the iteration-level scheduling of Yu et al., "Orca", OSDI 2022). A sequence's random numbers depend
 * only on the seed, its number and the position; the other sequences in a step can change its logits in the last bits
 * only (by the shapes of matrix products). A sequence ends at one of `ends`, at max_new or at the model's context.
 *
 *     model_generator_new(&g, model, &how, deliver, progress, ctx)
 *     model_generator_add(g, number, prompt, n) ...       copies the prompt; runs steps while enough prompts wait
 *     model_generator_finish(g)                           runs until all are delivered; more may be added afterwards
 *     model_generator_free(g)                             also after a failure, after which no other call is allowed
 *
 * progress may be NULL. ERR_DATA from model_generator_new: the model does not predict next tokens. */
struct model_generator;
int model_generator_new(struct model_generator **out, struct model *m, const struct model_sampling *how,
                        model_generated_fn *deliver, model_step_fn *progress, void *ctx, struct err *e) MUST_CHECK;
/* ERR_DATA: the prompt is empty, longer than the context or has tokens outside the vocabulary. */
int model_generator_add(struct model_generator *g, uint64_t seq, const uint32_t *prompt, size_t n,
                        struct err *e) MUST_CHECK;
int model_generator_finish(struct model_generator *g, struct err *e) MUST_CHECK;
void model_generator_free(struct model_generator *g); /* no-op if NULL */

#endif
