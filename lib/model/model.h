/*
 * model: a transformer described by its configuration. Reading and writing model streams, inference,
 * the training graph and generation. The same forward code serves all of them (lib/grad's tape with or without record).
 *
 * A model stream is META (kind "model", with the configuration), VOCB (the whole tokenizer, optional) and the tensors in
 * the order in which a forward pass needs them, named by their role:
 *
 *     embed.weight
 *     layers.N.attn_norm.weight  layers.N.attn.{q,k,v}.weight [.bias]  layers.N.attn.o.weight
 *     layers.N.ffn_norm.weight   layers.N.ffn.{gate,up,down}.weight
 *     [layers.N.router.weight    layers.N.experts.E.{gate,up,down}.weight, one expert after another]
 *     norm.weight  [head.weight, unless the head is tied to the embedding]
 *
 * and more where the configuration has more: the table of roles (roles.c) names all of them, their axes, and when they exist.
 *
 * Matrices are [out][in]. Rotary pairs are half-split (Hugging Face's order; GGUF's interleaved rows are undone on import).
 */
#ifndef RILL_MODEL_H
#define RILL_MODEL_H

#include "lib/base/base.h"
#include "lib/grad/grad.h"
#include "lib/stream/stream.h"
#include "lib/text/text.h"

/* ---- configuration ----------------------------------------------------------------------------------------------- */

/*
 * A model is described by what it computes, not by who made it. Zero is what Llama does, so a feature that a
 * description does not name is absent. `arch` is a label: which row of lib/formats' registry names the tensors outside
 * and reads their configuration. Nothing in lib/model asks for it.
 */
#define MODEL_MAX_LAYERS  4096
#define MODEL_MAX_DIM     (1u << 20)
#define MODEL_MAX_VOCAB   TEXT_MAX_TOKENS
#define MODEL_MAX_ARCH    23 /* letters of a label */
#define MODEL_MAX_EXPERTS 4096
#define MODEL_MAX_TENSORS (1u << 19)

/* What layers are. */
enum model_layer_kind {
    LAYER_TRANSFORMER,
    LAYER_LSTM, /* two LSTMs, one from each end of the sequence, side by side: hidden / 2 units each. No residual */
};
enum model_norm { NORM_RMS, NORM_LAYER };
/* Where the norms of attention and feed-forward part stand. */
enum model_norm_place {
    NORM_PRE,      /* x + f(norm(x)) */
    NORM_POST,     /* norm(x + f(x)): BERT, OPT 350m */
    NORM_SANDWICH, /* x + norm'(f(norm(x))): Gemma 2 and 3 */
    NORM_OUTPUT,   /* x + norm'(f(x)): OLMo 2 */
};
enum model_qk_norm {
    QK_NORM_NONE,
    QK_NORM_HEADS, /* RMSNorm of each head of q and k before rotation, weight [head_dim]: Qwen 3, Gemma 3 */
    QK_NORM_ALL,   /* ... of all heads as one row, weights [heads * head_dim]: OLMo 2, OLMoE */
    QK_NORM_LAYER, /* LayerNorm of each head, weight and bias [head_dim]: Phi */
};
enum model_ffn { FFN_GATED, /* down(act(gate x) * up x) */ FFN_PLAIN /* down(act(up x)) */ };
enum model_positions {
    POSITIONS_ROTARY,
    POSITIONS_LEARNED, /* a table [context + position_offset][hidden] that is added to the embedding */
    POSITIONS_NONE,
};
enum model_output {
    OUTPUT_LM,        /* logits of the next token */
    OUTPUT_MASKED_LM, /* logits of the token itself, through a dense layer, its activation and a norm: BERT */
    OUTPUT_NONE,      /* hidden states */
    /* logits of classes, a row for each sequence: of its first position, or of LSTMs of the state in which each direction ends, at the
     * last position and at the first; by way of a pooler */
    OUTPUT_CLASSES,
    OUTPUT_TOKEN_CLASSES, /* logits of classes, a row for each position: tags */
    OUTPUT_SPAN,          /* two logits for each position: how likely an answer begins there, and ends */
};

enum rope_scaling {
    ROPE_PLAIN,
    ROPE_LINEAR, /* factor */
    ROPE_LLAMA3, /* factor, low_freq, high_freq, original_context */
    ROPE_YARN,   /* factor, beta_fast, beta_slow, no_truncate, original_context, attention_factor: Peng et al. 2023 */
    ROPE_LONG,   /* short_factor, long_factor, original_context, attention_factor: LongRoPE, Ding et al. 2024 */
};
struct model_rope {
    double theta;
    uint32_t dims; /* of a head that are rotated, the first ones; 0: all */
    enum rope_scaling scaling;
    double factor, low_freq, high_freq;
    uint32_t original_context;
    double beta_fast,
        beta_slow;           /* turns within the original context: more than fast is kept, less than slow stretched */
    bool no_truncate;        /* the bounds between them are not made whole */
    double attention_factor; /* cosines and sines are multiplied by this */
    /* What divides each frequency [n_factors = pairs], in sequences of up to original_context positions and in longer ones. In the
     * arena of the layers. */
    const float *short_factor, *long_factor;
    uint32_t n_factors;
};
/* Which rotation a layer has. */
enum model_layer_rope { ROPE_MAIN, ROPE_LOCAL, ROPE_NONE };

/* The matrices of a layer that may be kept as two low-rank factors. */
enum model_factored { FACTOR_Q, FACTOR_K, FACTOR_V, FACTOR_O, FACTOR_GATE, FACTOR_UP, FACTOR_DOWN, FACTOR_COUNT };

/* Shapes may differ from layer to layer: pruning makes them so. */
struct model_layer {
    uint32_t n_heads, n_kv_heads; /* n_heads a multiple of n_kv_heads */
    uint32_t ffn; /* intermediate width of the part that all positions take (beside experts: the shared one); 0: none */
    uint32_t window;     /* positions that attention sees, its own included; 0: all */
    uint32_t rope;       /* enum model_layer_rope */
    uint32_t experts;    /* feed-forward parts of which a position takes a few; 0: none */
    uint32_t expert_ffn; /* ... and the intermediate width of each */
    /* By enum model_factored: W [out][in] is kept as the product B A of A [rank][in], which has the matrix's own role, and B [out][rank],
     * which has the role ROLE_*_OUT. 0: W is whole. */
    uint32_t rank[FACTOR_COUNT];
};

struct model_config {
    const char *arch; /* static, or in the arena of the layers */
    uint32_t n_layers, hidden, head_dim;
    uint32_t vocab_size; /* rows of embedding and head, padding included: see model_n_tokens */
    uint32_t context;    /* positions the model was trained for */
    /* embedding */
    uint32_t
        embed_dim; /* width of the embedding, which a matrix brings to `hidden`, and back before the head, or which the
                      first LSTM reads; 0: hidden */
    float embed_scale;        /* 0: 1 */
    uint32_t positions;       /* enum model_positions */
    uint32_t position_offset; /* rows of the table of positions before that of the first */
    uint32_t token_types;     /* rows of the table of token types; 0: none */
    bool embed_norm;
    /* layers */
    uint32_t layer_kind;       /* enum model_layer_kind */
    uint32_t norm, norm_place; /* enum model_norm, model_norm_place */
    bool norm_bias;
    float norm_eps;
    bool parallel;        /* x + attention(norm(x)) + ffn(norm'(x)): GPT-NeoX */
    bool shared_norm;     /* ... with one norm for both: Phi */
    float residual_scale; /* of what attention and feed-forward part add; 0: 1 */
    bool bidirectional;
    uint32_t qk_norm; /* enum model_qk_norm */
    bool qkv_bias, o_bias;
    float attn_scale;   /* of the scores; 0: 1 / sqrt(head_dim) */
    float attn_softcap; /* 0: none */
    uint32_t ffn_kind;  /* enum model_ffn */
    uint32_t act;       /* enum kernel_act */
    bool ffn_bias;
    /* Layers with experts (Shazeer et al. 2017): probabilities are the softmax of router h over all of them, and a position takes the
     * sum over its experts_per_token most probable of probability times expert(h). */
    uint32_t experts_per_token; /* 0: no layer has experts */
    bool norm_expert_weights;   /* the probabilities of those that are taken are divided by their sum */
    bool shared_gate;           /* beside experts, the part of width ffn is multiplied by sigmoid(shared_gate h) */
    struct model_rope rope, local_rope; /* local_rope.theta 0: no layer has it */
    /* output */
    bool no_final_norm;
    float logit_scale;   /* of the hidden states before the head; 0: 1 */
    float logit_softcap; /* 0: none */
    uint32_t output;     /* enum model_output */
    bool tied;           /* head.weight is embed.weight */
    bool head_bias;
    bool pooler;         /* a dense layer and an activation over the first position: BERT */
    uint32_t pooler_act; /* enum kernel_act, that of the pooler */
    uint32_t classes;    /* rows of the classifier; 0: the output is no logits of classes */

    struct model_layer *layers; /* [n_layers]; owned by the arena it was made with */
};

/* The decimal with the fewest digits that reads back as the same float: 1e-05 rather than 9.999999747378752e-06. */
double model_shortest_float(float f);
/* The "model" object of META and back. All ranges are checked; layers come from `a`. */
cJSON *model_config_to_json(const struct model_config *c, struct err *e) MUST_CHECK;
/* Adds the text of that object to a digest. */
int model_config_digest(const struct model_config *c, struct digest_state *to, struct err *e) MUST_CHECK;
int model_config_from_json(struct model_config *c, const cJSON *object, struct arena *a, struct err *e) MUST_CHECK;
int model_config_copy(struct model_config *to, const struct model_config *from, struct arena *a,
                      struct err *e) MUST_CHECK;
int model_config_check(const struct model_config *c, struct err *e) MUST_CHECK;
/* What one of its factors multiplies by: embed_scale, residual_scale or logit_scale, where 0 stands for 1. */
float model_factor(float factor);
uint64_t model_parameters(const struct model_config *c); /* a tied head is counted once */
/* "135M", "1.2B": what GGUF calls general.size_label, at least two digits. Returns out. */
#define MODEL_SIZE_LABEL 16
char *model_size_label(uint64_t parameters, char out[MODEL_SIZE_LABEL]);
/* Width of the embedding's rows; rotated dimensions of a head. */
uint32_t model_embed_dim(const struct model_config *c);
uint32_t model_rope_dims(const struct model_config *c, const struct model_rope *r);
/* Frequencies [model_rope_tables][model_rope_dims / 2] of a rotation with its scaling applied: one table, or of ROPE_LONG that of short
 * sequences and that of long ones. */
uint32_t model_rope_tables(const struct model_rope *r);
void model_inv_freq(const struct model_config *c, const struct model_rope *r, double *inv_freq);
/* The pairs of YaRN up to which frequencies are kept, and from which on they are stretched, within 0 and dims - 1. */
void model_yarn_bounds(const struct model_rope *r, uint32_t dims, double *low, double *high);
/* LongRoPE's lists "short_factor" and "long_factor" of an object, into the arena; and back. ERR_DATA: one is missing, or holds
 * something that is no number in range, or they differ in length. */
int model_rope_get_factors(struct model_rope *r, const cJSON *o, struct arena *a, struct err *e) MUST_CHECK;
bool model_rope_put_factors(cJSON *o, const struct model_rope *r);
/* transformers' attention_factor where nobody says one: of YaRN 1 + ln(factor) / 10, of LongRoPE sqrt(1 + ln(factor) /
 * ln(original_context)); 1 where factor <= 1. */
double model_rope_attention(enum rope_scaling scaling, double factor, uint32_t original_context);

/* ---- rows and blocks (rows.c) ---- */

/* The largest block of a quantized type that divides a row: 256 (k-quants), 32 (q4_0 to q8_0), or 1: none does. */
uint32_t model_row_block(uint64_t row);
/*
 * Calls `warn` with a line for each kind of row that quantize cannot store as asked. `before`: the model that `c` was
 * made from, NULL for a new one; only what was better there is said. old_layer [c->n_layers]: the numbers of c's layers
 * in `before`; NULL: the same.
 */
typedef void model_warn_fn(void *ctx, const char *message);
void model_row_warnings(const struct model_config *before, const uint32_t *old_layer, const struct model_config *c,
                        model_warn_fn *warn, void *ctx);

/* ---- roles ------------------------------------------------------------------------------------------------------- */

/* Where a forward pass can be tapped: calibrate, features for distillation. */
enum model_point {
    POINT_EMBED,   /* embedding: input of layer 0 [hidden] */
    POINT_ATTN_IN, /* input of q, k, v [hidden] */
    POINT_O_IN,    /* input of o [n_heads * head_dim] */
    POINT_FFN_IN,  /* input of gate and up [hidden] */
    POINT_DOWN_IN, /* input of down [ffn] */
    POINT_LSTM_IN, /* input of an LSTM [embed_dim] in the first layer, [hidden] in others */
    POINT_LAYER,   /* output of the layer: residual stream [hidden] */
    POINT_HEAD_IN, /* input of the head [embed_dim]; layer 0 */
    POINT_ROUTED,  /* weights of a layer's experts, 0 where one is not taken [experts] */
    /* Of each expert, the positions that take it: */
    POINT_EXPERT_IN,      /* input of its gate and up [hidden] */
    POINT_EXPERT_DOWN_IN, /* input of its down [expert_ffn] */
    POINT_EXPERT_OUT,     /* what it adds, weighted [hidden] */
    POINT_COUNT,          /* of those that statistics know; in a role: its input has no tap */
    /* Queries and keys as attention takes them, rotated, and values. */
    POINT_Q, /* [n_heads * head_dim] */
    POINT_K, /* [n_kv_heads * head_dim] */
    POINT_V, /* [n_kv_heads * head_dim] */
    POINT_ALL
};
const char *model_point_name(enum model_point p);                                            /* "attn_in" */
uint64_t model_point_cols(const struct model_config *c, enum model_point p, uint32_t layer); /* 0: it has none */

/* In stream order. */
enum model_role {
    ROLE_EMBED,
    ROLE_EMBED_PROJECTION, /* embed_dim to hidden */
    ROLE_POSITION_EMBED,
    ROLE_TYPE_EMBED,
    ROLE_EMBED_NORM,
    ROLE_EMBED_NORM_BIAS,
    ROLE_LSTM_INPUT, /* of LSTMs: what the input adds to the gates, by gate i, f, g, o */
    ROLE_LSTM_STATE, /* ... and the state of the step before */
    ROLE_LSTM_INPUT_BIAS,
    ROLE_LSTM_STATE_BIAS,
    ROLE_LSTM_REVERSE_INPUT, /* the same of the one that begins at the end, in the same order */
    ROLE_LSTM_REVERSE_STATE,
    ROLE_LSTM_REVERSE_INPUT_BIAS,
    ROLE_LSTM_REVERSE_STATE_BIAS,
    ROLE_ATTN_NORM,
    ROLE_ATTN_NORM_BIAS,
    ROLE_Q,
    ROLE_K,
    ROLE_V,
    ROLE_Q_BIAS,
    ROLE_K_BIAS,
    ROLE_V_BIAS,
    ROLE_Q_OUT, /* second factors of factored matrices */
    ROLE_K_OUT,
    ROLE_V_OUT,
    ROLE_Q_NORM,
    ROLE_Q_NORM_BIAS,
    ROLE_K_NORM,
    ROLE_K_NORM_BIAS,
    ROLE_O,
    ROLE_O_BIAS,
    ROLE_O_OUT,
    ROLE_ATTN_POST_NORM, /* of the sum, or of what attention adds: norm_place says */
    ROLE_ATTN_POST_NORM_BIAS,
    ROLE_FFN_NORM,
    ROLE_FFN_NORM_BIAS,
    ROLE_GATE,
    ROLE_UP,
    ROLE_UP_BIAS,
    ROLE_GATE_OUT,
    ROLE_UP_OUT,
    ROLE_DOWN,
    ROLE_DOWN_BIAS,
    ROLE_DOWN_OUT,
    ROLE_SHARED_GATE,
    ROLE_ROUTER,
    ROLE_EXPERT_GATE, /* of each expert */
    ROLE_EXPERT_UP,
    ROLE_EXPERT_DOWN,
    ROLE_FFN_POST_NORM,
    ROLE_FFN_POST_NORM_BIAS,
    ROLE_NORM,
    ROLE_NORM_BIAS,
    ROLE_HEAD_PROJECTION, /* hidden to embed_dim */
    ROLE_POOLER,
    ROLE_POOLER_BIAS,
    ROLE_TRANSFORM, /* of a masked-LM head */
    ROLE_TRANSFORM_BIAS,
    ROLE_TRANSFORM_NORM,
    ROLE_TRANSFORM_NORM_BIAS,
    ROLE_HEAD,
    ROLE_HEAD_BIAS,
    ROLE_CLASSIFIER,
    ROLE_CLASSIFIER_BIAS,
    ROLE_COUNT
};

/* The axis of a tensor's rows or columns: what is pruned together, and how long it is. */
enum model_axis {
    AXIS_ONE, /* a vector has no columns */
    AXIS_VOCAB,
    AXIS_EMBED,    /* embed_dim */
    AXIS_HIDDEN,   /* the residual stream */
    AXIS_INPUT,    /* what the layer reads: embed_dim in the first of LSTMs, else hidden */
    AXIS_GATES,    /* of an LSTM: 4 * units */
    AXIS_UNITS,    /* of an LSTM: hidden / 2 */
    AXIS_QUERY,    /* n_heads * head_dim */
    AXIS_KEY,      /* n_kv_heads * head_dim */
    AXIS_HEAD_DIM, /* within a head */
    AXIS_Q_NORM,   /* head_dim, or of QK_NORM_ALL the query's width ... */
    AXIS_K_NORM,   /* ... and the key's */
    AXIS_FFN,
    AXIS_EXPERT,     /* experts */
    AXIS_EXPERT_FFN, /* within an expert */
    AXIS_POSITION,
    AXIS_TYPE,
    AXIS_CLASSES,
    AXIS_RANK, /* of a factored matrix: its length is model_rank */
    AXIS_COUNT
};
enum model_role_kind {
    KIND_MATRIX, /* multiplies activations, or is the embedding: what pruning and quantization work on */
    KIND_ROUTER, /* multiplies activations, but decides what is computed: small, and kept in full */
    KIND_TABLE,  /* rows that are looked up: positions, token types */
    KIND_GAIN,   /* of a norm */
    KIND_BIAS,
};
/* What a layer must have for a tensor of it to exist. */
enum model_part { PART_ANY, PART_DENSE /* ffn */, PART_EXPERTS, PART_BOTH };
struct model_role_info {
    const char *name; /* after "layers.N." for those of a layer; '#' stands for the expert's number */
    bool in_layer;
    enum model_part part;
    enum model_axis each; /* there is one tensor for each index of this axis; AXIS_ONE: one */
    enum model_role_kind kind;
    enum model_axis rows, cols; /* of the whole matrix; a first factor has the rank instead of the rows */
    enum model_point input;     /* where its input can be tapped */
    bool to_residual;           /* its product is added to the residual stream */
    bool (*exists)(const struct model_config *c);
    enum model_role out;          /* of a matrix that may be factored: the role of its second factor; 0: it never is */
    bool is_out;                  /* is a second factor: exists in layers where the matrix has a rank */
    enum model_factored factored; /* of both factors: which matrix */
};
const struct model_role_info *model_role_info(enum model_role role);
uint64_t model_axis_size(const struct model_config *c, enum model_axis axis, uint32_t layer);
enum model_axis model_point_axis(enum model_point p); /* of the columns that are seen there */

struct model_slot {
    enum model_role role;
    uint32_t layer;  /* 0 for roles outside layers */
    uint32_t expert; /* 0 for roles of which a layer has one */
};
/* The rank of a matrix in this layer, by the role of either factor; 0: it is whole, or never factored. */
uint32_t model_rank(const struct model_config *c, enum model_role role, uint32_t layer);
bool model_is_factored(const struct model_config *c); /* is any matrix? */
/* Is there such a tensor, in some layer? */
bool model_has_role(const struct model_config *c, enum model_role role);
bool model_role_in_layer(enum model_role role);
bool model_role_is_matrix(enum model_role role);
/* The role of the matrix that makes logits: the head, the embedding it is tied to, or the classifier. */
enum model_role model_head_role(const struct model_config *c);
/* "layers.3.attn.q.weight"; out has TENSOR_MAX_NAME + 1 bytes. Returns out. */
char *model_slot_name(struct model_slot s, char *out);
int model_slot_parse(const char *name, struct model_slot *out, struct err *e) MUST_CHECK;
/* A regular expression (PCRE2) that matches somewhere in a tensor's name: the n bytes at text (pattern.c). */
struct model_pattern {
    const char *text;
    size_t n;
};
struct model_matcher;
/* ERR_USAGE: it is no regular expression, and where. The caller frees *out. */
int model_matcher_new(struct model_matcher **out, const struct model_pattern *p, struct err *e) MUST_CHECK;
/* 1: it matches the name, 0: it does not; ERR_USAGE: it takes too long. */
int model_matches(const struct model_matcher *m, const char *name, struct err *e) MUST_CHECK;
void model_matcher_free(struct model_matcher *m); /* NULL is fine */
/* Number of tensors of this configuration, and the i-th in stream order. */
size_t model_slot_count(const struct model_config *c);
struct model_slot model_slot_at(const struct model_config *c, size_t i);
/* Position of a slot in stream order, or -1 when the configuration has none (a tied head, no biases). */
long model_slot_index(const struct model_config *c, struct model_slot s);
/* Shape by configuration; the rank is returned (2 for matrices [out][in] and tables, 1 for norms and biases). */
unsigned model_slot_shape(const struct model_config *c, struct model_slot s, uint64_t dims[2]);
/* Is this the layer's last tensor in stream order? */
bool model_slot_ends_layer(const struct model_config *c, struct model_slot s);
/* Is it the last of those of which the layer has one for each expert, of its expert? */
bool model_slot_ends_expert(const struct model_config *c, struct model_slot s);
size_t model_expert_roles(const struct model_config *c); /* tensors of one expert */
/* Position in stream order of the first tensor of a layer; of n_layers: of what comes after the layers. */
size_t model_slot_of_layer(const struct model_config *c, uint32_t layer);
/* Does this tensor fit its slot? ERR_DATA with found and expected shape. */
int model_slot_check(const struct model_config *c, struct model_slot s, const struct tensor_desc *d,
                     struct err *e) MUST_CHECK;

/* ---- maximal update parametrization (mup.c) -----------------------------------------------------------------------
 *
 * Yang et al. 2022, "Tensor Programs V", table 8: what is tuned on a narrow model, the base, holds for a wider one. Against
 * a base with which it shares depth, a hidden matrix (both axes are widths) starts with the deviation 1 / sqrt(w) and
 * learns with Adam at 1 / w times the rate, w how much wider its input is. Logits count 1 / w, and scores sqrt(1 / w) of
 * the width of a head: by their symmetry (lemma J.1) these factors lie in the value and the rate of the last norm and of
 * q, so that a model computes as any other of its architecture. At the base's widths all of this is 1.
 */
struct model_mup {
    uint64_t size[AXIS_COUNT]; /* of the base, in its first layer; 0: the axis is no width */
};
void model_mup_of(const struct model_config *base, struct model_mup *out);
bool model_mup_put(cJSON *meta, const struct model_mup *m);                            /* "mup" */
int model_mup_get(const cJSON *meta, struct model_mup *out, struct err *e) MUST_CHECK; /* ERR_DATA: it has none */
bool model_mup_is_hidden(enum model_role role);
/* How many times as wide as in the base. */
double model_mup_width(const struct model_config *c, const struct model_mup *base, enum model_axis axis,
                       uint32_t layer);
/* The factor of logits or scores that lies in this slot: its initial values and its rate are so many times as large. */
double model_mup_factor(const struct model_config *c, const struct model_mup *base, struct model_slot s);
/* ERR_USAGE: it has no norm before the head that could take the factor. */
int model_mup_check(const struct model_config *c, struct err *e) MUST_CHECK;

/* ---- the head of a model stream: what a one-pass filter needs before the tensors --------------------------------- */

struct model_head {
    struct model_config config;
    cJSON *meta;      /* META as read; owned */
    struct buf vocab; /* VOCB bytes; len 0: none */
    struct digest vocab_digest;
    struct arena memory;
};
/* Reads up to the first tensor, which is left in *item for the caller's loop (or ITEM_SEGMENT_END). Begin with {0}. */
int model_head_read(struct stream_reader *r, struct model_head *h, struct stream_item *item, struct err *e) MUST_CHECK;
/* The member of META that says what a model's errors were weighed by when it was quantized: as GGUF's quantize.imatrix.* (formats/gguf.md). */
#define MODEL_IMATRIX_META "imatrix"
/* META (kind, "model", "vocab" digest, and the members of `extra` when not NULL) and VOCB. */
int model_head_write(struct stream_writer *w, const struct model_config *c, const void *vocab, size_t n_vocab,
                     const cJSON *extra, struct err *e) MUST_CHECK;
void model_head_release(struct model_head *h);

/*
 * One pass over the tensors of a model stream in order, for filters: calls `fn` with each tensor's slot, desc and data
 * (valid during the call), and checks that every tensor of the configuration came exactly once, in order and shape,
 * with finite values. Memory: the largest tensor. Continue from the item that model_head_read left.
 */
typedef int model_tensor_fn(void *ctx, struct model_slot s, const struct tensor_desc *d, const cJSON *attrs,
                            const void *data, struct err *e);
int model_each_tensor(struct stream_reader *r, const struct model_config *c, struct stream_item *item,
                      model_tensor_fn *fn, void *ctx, struct err *e) MUST_CHECK;
/* The same without the data, which are skipped and NULL. */
int model_each_desc(struct stream_reader *r, const struct model_config *c, struct stream_item *item,
                    model_tensor_fn *fn, void *ctx, struct err *e) MUST_CHECK;

/* ---- a whole model in memory ------------------------------------------------------------------------------------- */

/* The format of matrices in memory. Norms and biases are f32 in all. */
enum model_weight_format {
    WEIGHTS_F32, /* for training and saving, and for inference in f32 */
    /* For inference in bf16: packed in bf16 or, when the stream has them quantized, in those blocks. They are constant, and
     * no copy in f32 is kept. */
    WEIGHTS_PACKED,
    WEIGHTS_INT8, /* as WEIGHTS_PACKED, and matrices of types with a quant_form packed for products of integers */
};

/* A low-rank addition to a matrix W [out][in] (Hu et al. 2022, "LoRA"): the model computes with W + scale b a. lib/train's. */
struct model_adapter {
    uint32_t rank;
    float scale;
    struct kernel_array a, b, a_grad, b_grad; /* f32 [rank][in], [out][rank]; a gradient without data: constant */
    bool a_begun, b_begun;
};

/* A quantized form of a matrix that is trained: forward passes read `forward`, which is what the blocks say, and the gradient is taken
 * for that of the value, the master (the straight-through estimator of Bengio et al. 2013, arXiv 1308.3432). lib/train's. */
struct model_grid {
    enum dtype dtype;
    unsigned char *blocks;       /* [rows] of dtype, on the host: what model_save writes */
    struct kernel_array forward; /* f32, [rows][cols] */
};

struct model_param {
    struct model_slot slot;
    struct tensor_desc desc;       /* as stored: type and shape */
    struct kernel_array value;     /* f32, [rows][cols]; no data for a packed matrix, which is ... */
    struct kernel_matrix matrix;   /* ... here; both in memory owned by the model */
    struct kernel_array grad;      /* no data until model_enable_grad */
    bool grad_begun;               /* is there a gradient? False: the next pass overwrites it (grad_parameter) */
    uint64_t n;                    /* elements */
    struct model_adapter *adapter; /* of a matrix inside a layer; NULL: none. The owner's, who takes it away again */
    const struct model_grid *grid; /* of a matrix; NULL: none. The owner's, too */
};

/* How a run time keeps keys and values. */
struct model_kv_cache {
    enum dtype dtype; /* with blocks of 32; 0: they stay as they are computed */
    bool
        rotated; /* multiplied by a Hadamard matrix before they are quantized, where heads are a multiple of 64 elements */
    bool interleaved; /* keys have the two elements of a rotary pair side by side */
};

struct model {
    struct model_config config;
    struct kernel_device *device; /* where its parameters are */
    enum model_weight_format format;
    struct model_param *params; /* [n_params], stream order */
    size_t n_params;
    bool masters;                 /* forward passes read values, whatever grids there are */
    struct model_kv_cache kv;     /* of model_set_kv_cache */
    size_t expert_stride;         /* parameters from one expert's to the same of the next */
    struct model_param **by_role; /* [n_layers][ROLE_COUNT], roles outside layers in the first row; NULL: has none */
    size_t n_int8;       /* matrices that were packed for products of integers so far; WEIGHTS_INT8 may find none */
    struct vocab *vocab; /* NULL when the stream has none */
    struct buf vocab_bytes;
    struct digest vocab_digest; /* zero when there is none */
    cJSON *meta;
    double *inv_freq, *local_inv_freq; /* of rope and local_rope, by model_inv_freq; NULL: no such rotation */
    struct arena memory;
};

/* Reads a whole stream (also from a pipe). The reader is at its end afterwards. */
int model_load(struct model **out, struct kernel_device *device, struct stream_reader *r,
               enum model_weight_format format, struct err *e) MUST_CHECK;
/* The precision that inference with this model has: DT_BF16 when its weights are packed (products of integers stand
 * among those of bf16), else DT_F32. For grad_tape_new. */
enum dtype model_precision(const struct model *m);
/* Tokens that it reads and predicts, and so the columns of its logits: those of its vocabulary. Rows of the embedding
 * and the head beyond them are padding (Qwen2.5 has 152064 or 151936 rows for 151665 tokens) and in no softmax.
 * Without a vocabulary, nothing tells: all rows. */
uint32_t model_n_tokens(const struct model *m);
/* Fresh weights: matrices normal(0, 0.02), residual outputs scaled by 1/sqrt(2 n_layers) (GPT-2), norms 1. Those of LSTMs have the
 * deviations that PyTorch's modules begin with: 1 of the embedding, 1/sqrt(3 units), and 1/sqrt(3 columns) of what follows. Biases 0. */
int model_init(struct model **out, struct kernel_device *device, const struct model_config *c, const void *vocab,
               size_t n_vocab, uint64_t seed, struct err *e) MUST_CHECK;
/* The same with the deviations of muP, and META says so. */
int model_init_mup(struct model **out, struct kernel_device *device, const struct model_config *c,
                   const struct model_mup *base, const void *vocab, size_t n_vocab, uint64_t seed,
                   struct err *e) MUST_CHECK;
/* Zeroed gradients for all parameters, which are in WEIGHTS_F32. */
int model_enable_grad(struct model *m, struct err *e) MUST_CHECK;
/* Of params[i] alone: the others stay constant. */
int model_enable_grad_of(struct model *m, size_t i, struct err *e) MUST_CHECK;
void model_free(struct model *m);
struct model_param *model_param(const struct model *m, enum model_role role, uint32_t layer); /* NULL: has none */
/* The same of a role of which each expert has one. */
struct model_param *model_expert_param(const struct model *m, enum model_role role, uint32_t layer, uint32_t expert);
/* Its elements, and their gradient, for the host to read (kernel_host); of WEIGHTS_F32, and after model_enable_grad. */
static inline float *model_host_value(const struct model_param *p) {
    return kernel_host(p->value, p->n);
}
static inline float *model_host_grad(const struct model_param *p) {
    return kernel_host(p->grad, p->n);
}
/* Writes head and tensors; every tensor in `dtype`, or each in the type it was read in when dtype is 0 (quantized
 * ones in f32: say what you want with quantize; one with a grid as the blocks of that). Of a model in WEIGHTS_F32. */
int model_save(const struct model *m, struct stream_writer *w, unsigned dtype, struct err *e) MUST_CHECK;
/* One tensor of it, as model_save does. `scratch` may be used again; the caller's. */
int model_save_param(const struct model_param *p, struct stream_writer *w, unsigned dtype, struct buf *scratch,
                     struct err *e) MUST_CHECK;
/* ERR_DATA "... disagree: vocabulary xxh3:.. against xxh3:.." when both name a vocabulary and not the same, or when
 * one names none and the sizes differ. `meta` is of a tokens or knowledge stream. The same vocabulary may come with
 * other padding. */
int model_check_vocab(const struct model *m, const cJSON *meta, const char *what, struct err *e) MUST_CHECK;

/* ---- forward ----------------------------------------------------------------------------------------------------- */

struct model_input {
    size_t n_positions, n_seqs;
    const uint32_t *tokens;  /* [n_positions] */
    const uint32_t *lengths; /* [n_seqs], each >= 1, sum n_positions, at most config.context each */
    const uint32_t *types;   /* [n_positions] token types, or NULL: all 0. A model without two of them does not look */
    const uint8_t *asked; /* [n_positions] 1 where logits are asked for, or NULL: everywhere. Not of OUTPUT_CLASSES */
};

/* What is seen at a point: x [rows][cols], valid during the call. */
struct model_seen {
    enum model_point point;
    uint32_t layer, expert; /* 0 where there is one */
    const float *x;         /* on the host */
    size_t rows, cols;
    const uint32_t *positions; /* [rows] of the input, ascending, that are seen; NULL: all */
};
typedef int model_tap(void *ctx, const struct model_seen *seen, struct err *e);

/* The graph up to what the head reads, [model_output_rows][embed_dim]; NULL on failure (grad_error): the normalised
 * hidden states, after the transform of a masked-LM head, or of a classifier one row for each sequence. Refuses token
 * ids from model_n_tokens up and sequences longer than the context with ERR_DATA. With a recording tape it is the
 * training graph. */
struct grad_var *model_graph(struct model *m, struct grad_tape *t, const struct model_input *in, model_tap *tap,
                             void *ctx, struct err *e);
/*
 * Points of the graph that the caller takes part in: wants[i].var becomes the variable at a point, for losses that read its value and
 * add to its gradient (grad_of, before grad_backward). A layer whose inner points are wanted is kept whole by grad_recompute. On a
 * tape that does not record a var is a copy in f32. A point of layer numbers from 0 up; embed and head_in are of layer 0. ERR_DATA
 * when there is no such point.
 */
struct model_want {
    enum model_point point;
    uint32_t layer;
    struct grad_var *var; /* OUT */
};
struct grad_var *model_graph_want(struct model *m, struct grad_tape *t, const struct model_input *in,
                                  struct model_want *wants, size_t n_wants, struct err *e);
/* What the head reads, made of a layer's output x (POINT_LAYER) as of the last one's: the input of an exit's head. NULL on failure. */
struct grad_var *model_exit(struct model *m, struct grad_tape *t, const struct model_input *in, struct grad_var *x,
                            struct err *e);
/* Heads, mask, scale and cap of a layer's attention; the sequences are the caller's to add. */
struct kernel_attention model_attention_shape(const struct model_config *c, uint32_t layer);
/* Rows of logits of an input: its positions, or its sequences (OUTPUT_CLASSES). */
size_t model_output_rows(const struct model_config *c, const struct model_input *in);
/* The pooler of each sequence's first row of h [n_positions][hidden] (of LSTMs: see OUTPUT_CLASSES): [n_seqs][hidden], in f32.
 * Without a pooler, these rows. Takes no part in model_graph but that of a classifier. NULL on failure. */
struct grad_var *model_pooled(struct model *m, struct grad_tape *t, const struct model_input *in, struct grad_var *h,
                              struct err *e);
/* What grad_head needs to make logits: weight (embed.weight when tied, the classifier's), bias, soft cap. w is NULL
 * when the model has no head. */
struct grad_head model_logits_head(struct model *m, struct grad_tape *t);
/* ERR_DATA unless its logits are of the next token, and of what comes before it alone: what generation, perplexity and
 * distillation stand on. Says what the model is instead. */
int model_check_next_token(const struct model_config *c, struct err *e) MUST_CHECK;

/* What its logits are of. Of a model without a head: TARGET_NEXT, by which nothing is meant. */
enum stream_target model_predicts(const struct model_config *c);
/* Columns of its logits: model_n_tokens or classes. */
uint32_t model_columns(const struct model *m);
/* ERR_DATA unless it has logits that say something: a head, and not of tokens that it sees. */
int model_check_head(const struct model_config *c, struct err *e) MUST_CHECK;

/*
 * From now on, forward passes of inference read keys (rotated by position) and values as llama.cpp's cache gives them back
 * (--cache-type-k, --cache-type-v): of each position, each head quantized on its own in blocks of 32 and dequantized, the newest position
 * too. `rotated`, as llama.cpp does since 2026: keys in parts of the largest 64 * 2^k elements that divides the head, values in parts
 * of 64; queries and what attention returns turn with them, so without rounding nothing would change. Queries are rounded to q8_0, turned as
 * the keys are, as ggml does before it multiplies them with blocks. ERR_USAGE: no type with blocks of 32. ERR_DATA: the model has no such
 * cache, or its heads are not whole blocks.
 */
int model_set_kv_cache(struct model *m, const struct model_kv_cache *how, struct err *e) MUST_CHECK;

/* Inference: hidden states, then logits in blocks of rows through `fn` (rows [first, first + rows) of
 * model_output_rows, or of those that in->asked asks for, to the bit the same ones; `vocab` columns: model_n_tokens, or
 * classes); host_logits may be overwritten. Memory: activations of the batch and one block. */
typedef int model_logits_fn(void *ctx, size_t first, size_t rows, size_t vocab, float *host_logits, struct err *e);
int model_infer(struct model *m, struct grad_tape *scratch, const struct model_input *in, model_tap *tap, void *tap_ctx,
                model_logits_fn *fn, void *ctx, struct err *e) MUST_CHECK;

/*
 * Parts of a forward pass, for searches that leave layers out: host_states [n_positions][hidden] are what comes into the first of these
 * layers, in any order and number; NULL: the embedding of the input. What comes out of the last goes to host_out, which may be the
 * same. Then the logits of such states, as those after the last layer. Not of models whose layers read another width than `hidden`.
 */
int model_infer_layers(struct model *m, struct grad_tape *scratch, const struct model_input *in,
                       const float *host_states, const uint32_t *layers, size_t n, float *host_out,
                       struct err *e) MUST_CHECK;
int model_infer_head(struct model *m, struct grad_tape *scratch, const struct model_input *in, const float *host_states,
                     model_logits_fn *fn, void *ctx, struct err *e) MUST_CHECK;

/* ---- inference with a model larger than memory ------------------------------------------------------------------- */

/*
 * A block of positions goes through the model layer by layer: in memory are the hidden states of the block, one layer, and at the end
 * the head (the layer-wise offloading of FlexGen, Sheng et al. 2023, with the block as large as memory allows). The operations, and so
 * the numbers to the bit, are those of model_infer for the same inputs.
 *
 *     model_layerwise_new(&l, device, reader, format, again, ctx)
 *     for each block: model_layerwise_run(l, scratch, inputs, n), then model_layerwise_logits(l, scratch, inputs, n, fn, ctx)
 *
 * The first run reads `reader` to its end. Each further one, and the head of a model that is tied, reads the stream again through
 * `again`, which gives a reader at its beginning, valid until the next call. again NULL: the stream can be read once, as a pipe; then
 * there is one block, and an embedding that is also the head stays in memory meanwhile.
 */
typedef int model_again_fn(void *ctx, struct stream_reader **out, struct err *e);
/* Layers done of this block; for a progress bar. */
typedef void model_layer_fn(void *ctx, uint32_t layers);
struct model_layerwise;
int model_layerwise_new(struct model_layerwise **out, struct kernel_device *device, struct stream_reader *r,
                        enum model_weight_format format, model_again_fn *again, void *again_ctx,
                        struct err *e) MUST_CHECK;
/* Configuration, vocabulary and META; its parameters have no values. */
const struct model *model_layerwise_model(const struct model_layerwise *l);
struct digest model_layerwise_digest(const struct model_layerwise *l); /* of the stream, after a run */
/* The hidden states of a block that consists of n inputs, each of which is a forward pass of its own. `progress` may
 * be NULL. */
int model_layerwise_run(struct model_layerwise *l, struct grad_tape *scratch, const struct model_input *in, size_t n,
                        model_layer_fn *progress, void *ctx, struct err *e) MUST_CHECK;
/* `tap` watches the passes of all runs to come: layer after layer, and in each the positions of the block in order, some sequences at a
 * time. */
void model_layerwise_tap(struct model_layerwise *l, model_tap *tap, void *ctx);
/* Logits of the same inputs, one after another; `first` counts through the block. fn NULL: what the head reads is made, for a tap, and
 * no logits. */
int model_layerwise_logits(struct model_layerwise *l, struct grad_tape *scratch, const struct model_input *in, size_t n,
                           model_logits_fn *fn, void *ctx, struct err *e) MUST_CHECK;
/* For heads beside others (grad_heads), after a run: what the head reads of one of its inputs, which begins at position `first` of the
 * block, on a tape that is reset. NULL on failure. */
struct grad_var *model_layerwise_hidden(struct model_layerwise *l, struct grad_tape *scratch,
                                        const struct model_input *in, size_t first, struct err *e);
/* The model, of which the tensors at hand have values: after a run those of the head, until the next one
 * (model_logits_head); in visit (below) what it is called for. */
struct model *model_layerwise_held(struct model_layerwise *l);
void model_layerwise_free(struct model_layerwise *l); /* NULL is fine */

/*
 * Changing a model on its way through, for methods that go from layer to layer and look at what comes into each one after what they
 * did to those before (GPTQ, SparseGPT, reconstruction layer by layer). Weights are held in f32.
 *
 * `visit` has the tensors before the layers (layer -1), of each layer, and after the layers (layer n_layers) in memory, once
 * each, in stream order. It may watch the layer run, change its weights (model_layerwise_held) and write them out; then
 * the layer runs with them as they are, and what comes out is what goes into the next. Memory: one layer and the states of the
 * block, thrice with `dense`.
 */
enum model_states {
    STATES_NOW,   /* out of the layers before as they are now */
    STATES_DENSE, /* out of the layers before as they were in the stream (model_changes.dense) */
};
struct model_changes {
    bool dense; /* keep STATES_DENSE: costs another run of each layer */
    int (*visit)(void *ctx, struct model_layerwise *l, int64_t layer, struct err *e);
    void *ctx;
    /* Of so many passes the dense states of one are kept, side by side; 0: 1, all. Of another number of positions, then. */
    size_t dense_every;
    model_tap *dense_tap; /* watches the run of the layer as it was, before the visit, with ctx; may be NULL */
    /* A visit promises that when it watches a point, weights that act before it change no more. Then a later point is watched from the
     * one before on, and the layer's own run goes on from the last: all in all the layer runs once. */
    bool in_order;
};
int model_layerwise_change(struct model_layerwise *l, struct grad_tape *scratch, const struct model_input *in, size_t n,
                           const struct model_changes *c, struct err *e) MUST_CHECK;
/* Positions of the passes over n inputs of which one in `every` is kept. */
size_t model_layerwise_positions(const struct model_input *in, size_t n, size_t every);
/* In visit, of a layer: runs it, with its weights as they are, over what comes into it. `tap` sees it as in model_infer, in passes
 * of whole sequences, in order. last: a point inside the layer after which nothing is computed; NULL: the whole layer. */
int model_layerwise_watch(struct model_layerwise *l, enum model_states which, const enum model_point *last,
                          model_tap *tap, void *ctx, struct err *e) MUST_CHECK;
/* In visit, of a layer whose output is as wide as its input: it goes, and what comes into it goes into the next. */
void model_layerwise_skip(struct model_layerwise *l);
/* In visit: what comes into the layer [positions of the block][hidden], and, with `dense`, what came out of it before it was
 * changed. */
const float *model_layerwise_states(const struct model_layerwise *l, enum model_states which);
const float *model_layerwise_dense_output(const struct model_layerwise *l);
/*
 * A layer, or one half of it, on a tape of the caller's, which may record: y of x [n_positions][what goes into it], in f32. Halves are of
 * the residual stream: x + attention, x + feed-forward part. The layer's weights must be there. NULL on failure. Of a model that
 * has no halves, for both read the same x or its layers are no transformer's, there is BLOCK_LAYER alone.
 */
enum model_block { BLOCK_LAYER, BLOCK_ATTENTION, BLOCK_FFN };
bool model_has_halves(const struct model_config *c);
struct grad_var *model_graph_block(struct model *m, struct grad_tape *t, const struct model_input *in, uint32_t layer,
                                   enum model_block block, struct grad_var *x, struct err *e);

/* ---- generation: KV cache, many sequences at once ---------------------------------------------------------------- */

struct model_sampling {
    double temperature; /* 0: greedy */
    uint32_t top_k;     /* 0: all */
    double top_p;       /* 1: all */
    uint64_t seed;
    uint32_t max_new;
    const uint32_t
        *ends; /* [n_ends] tokens that end a sequence (kept), ascending; the caller's, as long as the generator */
    size_t n_ends;
};
/* Called for each finished sequence, in the order in which they were added. */
typedef int model_generated_fn(void *ctx, uint64_t seq, const uint32_t *prompt, size_t n_prompt, const uint32_t *made,
                               size_t n_made, struct err *e);
/* Called after each step with sums so far. A step that takes prompts makes a token for each sequence in flight, too. */
struct model_generated {
    uint64_t made; /* tokens, those of sequences that are not finished included; of them by steps without prompts: */
    uint64_t decoded;
    uint64_t prompted;                     /* tokens of prompts */
    double decode_seconds, prompt_seconds; /* of steps without prompts, and with */
};
typedef void model_step_fn(void *ctx, const struct model_generated *sum);
/*
 * Continues sequences, up to 64 at once as far as 1 GiB of keys and values goes; when one is finished the next one
 * takes its place (the iteration-level scheduling of Yu et al., "Orca", OSDI 2022). A sequence's draws depend on the
 * seed, its number and the position alone; what runs beside it can change its logits in the last bits only (shapes of
 * the matrix products). A sequence ends at one of `ends`, at max_new or at the model's context.
 *
 *     model_generator_new(&g, model, &how, deliver, progress, ctx)
 *     model_generator_add(g, number, prompt, n) ...       copies the prompt; runs steps while enough prompts wait
 *     model_generator_finish(g)                           runs until all are delivered; more may be added after it
 *     model_generator_free(g)                             also after a failure, after which it takes nothing else
 */
struct model_generator;
int model_generator_new(struct model_generator **out, struct model *m, const struct model_sampling *how,
                        model_generated_fn *deliver, model_step_fn *progress, void *ctx, struct err *e) MUST_CHECK;
/* ERR_DATA when the prompt is empty, longer than the context or has tokens outside the vocabulary. */
int model_generator_add(struct model_generator *g, uint64_t seq, const uint32_t *prompt, size_t n,
                        struct err *e) MUST_CHECK;
int model_generator_finish(struct model_generator *g, struct err *e) MUST_CHECK;
void model_generator_free(struct model_generator *g); /* NULL is fine */

#endif
