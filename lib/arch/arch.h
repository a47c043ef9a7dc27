/*
 * arch: the architecture of a model, described by what it computes: configuration, the roles of tensors, and model
 * streams tensor by tensor. File formats, and programs that only look at a model, need no more; lib/model runs what is
 * described here. Names begin with model_, because that is what they describe.
 *
 * A model stream is META (kind "model", with the configuration), VOCB (the whole tokenizer, optional) and the tensors
 * in the order in which a forward pass needs them, named by their roles:
 *
 *     embed.weight
 *     layers.N.attn_norm.weight  layers.N.attn.{q,k,v}.weight [.bias]  layers.N.attn.o.weight
 *     layers.N.ffn_norm.weight   layers.N.ffn.{gate,up,down}.weight
 *     [layers.N.router.weight    layers.N.experts.E.{gate,up,down}.weight, one expert after another]
 *     norm.weight  [head.weight, unless the head is tied to the embedding]
 *
 * More features bring more tensors: the table of roles (roles.c) names all tensors, their axes, and when they exist.
 *
 * Matrices are [out][in]. Rotary pairs are half-split as in Hugging Face's models; import undoes GGUF's interleaving.
 *
 * Functions that return int return 0 or an error code and fill *e (lib/base/base.h); those that return a pointer and
 * take an err return NULL on failure. The caller owns what comes back through `out`.
 */
#ifndef RILL_ARCH_H
#define RILL_ARCH_H

#include "lib/base/base.h"
#include "lib/kernel/kernel.h" /* the activation functions */
#include "lib/stream/stream.h"
#include "lib/text/text.h"

/* ---- configuration ----------------------------------------------------------------------------------------------- */

/* A model is described by what it computes, not by who made it. Zero means what Llama does, so a feature that a
 * description does not name is absent. `arch` is a label: it selects the row of lib/formats' registry that knows the
 * names of external tensors and how to read their configuration. Nothing else reads it. */
#define MODEL_MAX_LAYERS  4096
#define MODEL_MAX_DIM     (1u << 20)
#define MODEL_MAX_VOCAB   TEXT_MAX_TOKENS
#define MODEL_MAX_ARCH    23 /* characters of a label */
#define MODEL_MAX_EXPERTS 4096
#define MODEL_MAX_TENSORS (1u << 19)

/* The kind of all layers. */
enum model_layer_kind {
    LAYER_TRANSFORMER,
    /* Two LSTMs, one from each end of the sequence, hidden / 2 units each, concatenated. No residual connection. */
    LAYER_LSTM,
};
enum model_norm { NORM_RMS, NORM_LAYER };
/* Where the norms of attention and of the feed-forward part are. */
enum model_norm_place {
    NORM_PRE,      /* x + f(norm(x)) */
    NORM_POST,     /* norm(x + f(x)): BERT, OPT 350m */
    NORM_SANDWICH, /* x + norm'(f(norm(x))): Gemma 2 and 3 */
    NORM_OUTPUT,   /* x + norm'(f(x)): OLMo 2 */
};
enum model_qk_norm {
    QK_NORM_NONE,
    QK_NORM_HEADS, /* RMSNorm of each head of q and k before rotation, weight [head_dim]: Qwen 3, Gemma 3 */
    QK_NORM_ALL,   /* RMSNorm over all heads as one row, weights [heads * head_dim]: OLMo 2, OLMoE */
    QK_NORM_LAYER, /* LayerNorm of each head, weight and bias [head_dim]: Phi */
};
enum model_ffn { FFN_GATED, /* down(act(gate x) * up x) */ FFN_PLAIN /* down(act(up x)) */ };
enum model_positions {
    POSITIONS_ROTARY,
    POSITIONS_LEARNED, /* a table [context + position_offset][hidden], added to the embedding */
    POSITIONS_NONE,
};
enum model_output {
    OUTPUT_LM,        /* logits of the next token */
    OUTPUT_MASKED_LM, /* logits of the token itself, through a dense layer, its activation and a norm: BERT */
    OUTPUT_NONE,      /* hidden states */
    /* Logits of classes, one row per sequence: from its first position or, with LSTMs, from the final state of each
     * direction (the last position and the first), through the pooler if there is one. */
    OUTPUT_CLASSES,
    OUTPUT_TOKEN_CLASSES, /* logits of classes, one row per position: tagging */
    OUTPUT_SPAN,          /* two logits per position: an answer starts here, or ends here */
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
    uint32_t dims; /* dimensions of a head that are rotated, the first ones; 0: all */
    enum rope_scaling scaling;
    double factor, low_freq, high_freq;
    uint32_t original_context;
    /* Rotations within the original context: more than beta_fast is kept, fewer than beta_slow is stretched. */
    double beta_fast, beta_slow;
    bool no_truncate;        /* YaRN's bounds on pairs are not rounded */
    double attention_factor; /* multiplies cosines and sines */
    /* Divisors of the frequencies [n_factors = pairs], for sequences of up to original_context positions and for longer
     * ones. Arena of the layers. */
    const float *short_factor, *long_factor;
    uint32_t n_factors;
};
/* The rotation of a layer. */
enum model_layer_rope { ROPE_MAIN, ROPE_LOCAL, ROPE_NONE };

/* The matrices of a layer that may be stored as two low-rank factors. */
enum model_factored { FACTOR_Q, FACTOR_K, FACTOR_V, FACTOR_O, FACTOR_GATE, FACTOR_UP, FACTOR_DOWN, FACTOR_COUNT };

/* Layers may differ in shape, as they do after pruning. */
struct model_layer {
    uint32_t n_heads, n_kv_heads; /* n_heads is a multiple of n_kv_heads */
    uint32_t ffn;                 /* width of the dense feed-forward part (with experts: the shared one); 0: none */
    uint32_t window;              /* positions that attention sees, including its own; 0: all */
    uint32_t rope;                /* enum model_layer_rope */
    uint32_t experts;             /* number of experts; 0: none */
    uint32_t expert_ffn;          /* intermediate width of each expert */
    /* By enum model_factored: W [out][in] is stored as the product B A, where A [rank][in] has the matrix's own role
     * and B [out][rank] the role ROLE_*_OUT. 0: W is stored whole. */
    uint32_t rank[FACTOR_COUNT];
};

struct model_config {
    const char *arch; /* static, or in the arena of the layers */
    uint32_t n_layers, hidden, head_dim;
    uint32_t vocab_size; /* rows of embedding and head, padding included: see model_n_tokens */
    uint32_t context;    /* positions the model was trained for */
    /* embedding */
    /* Width of the embedding's rows, 0: hidden. A matrix projects them to `hidden`, and back before the head; with
     * LSTMs the first layer reads this width instead. */
    uint32_t embed_dim;
    float embed_scale;        /* 0: 1 */
    uint32_t positions;       /* enum model_positions */
    uint32_t position_offset; /* rows of the position table before that of position 0 */
    uint32_t token_types;     /* rows of the token type table; 0: none */
    bool embed_norm;
    /* layers */
    uint32_t layer_kind;       /* enum model_layer_kind */
    uint32_t norm, norm_place; /* enum model_norm, model_norm_place */
    bool norm_bias;
    float norm_eps;
    bool parallel;        /* x + attention(norm(x)) + ffn(norm'(x)): GPT-NeoX */
    bool shared_norm;     /* one norm for both: Phi */
    float residual_scale; /* factor of what attention and feed-forward part add to the residual stream; 0: 1 */
    bool bidirectional;
    uint32_t qk_norm; /* enum model_qk_norm */
    bool qkv_bias, o_bias;
    float attn_scale;   /* factor of the scores; 0: 1 / sqrt(head_dim) */
    float attn_softcap; /* 0: none */
    uint32_t ffn_kind;  /* enum model_ffn */
    uint32_t act;       /* enum kernel_act */
    bool ffn_bias;
    /* Layers with experts (Shazeer et al. 2017): the router's probabilities are a softmax over all experts, and the
     * output is the sum of probability times expert(h) over the experts_per_token most probable ones. */
    uint32_t experts_per_token;         /* 0: no layer has experts */
    bool norm_expert_weights;           /* the selected probabilities are divided by their sum */
    bool shared_gate;                   /* the shared expert's output is multiplied by sigmoid(shared_gate h) */
    struct model_rope rope, local_rope; /* local_rope.theta 0: no layer uses it */
    /* output */
    bool no_final_norm;
    float logit_scale;   /* factor of the hidden states before the head; 0: 1 */
    float logit_softcap; /* 0: none */
    uint32_t output;     /* enum model_output */
    bool tied;           /* head.weight is embed.weight */
    bool head_bias;
    bool pooler;         /* a dense layer with an activation over the first position: BERT */
    uint32_t pooler_act; /* enum kernel_act */
    uint32_t classes;    /* rows of the classifier; 0: not a classifier */

    struct model_layer *layers; /* [n_layers]; owned by the arena it was made with */
};

/* The decimal with the fewest digits that reads back as the same float: 1e-05, not 9.999999747378752e-06. */
double model_shortest_float(float f);
/* The "model" object of META. The caller owns it; NULL: out of memory. */
cJSON *model_config_to_json(const struct model_config *c, struct err *e) MUST_CHECK;
/* Updates a digest with the text of that object. */
int model_config_digest(const struct model_config *c, struct digest_state *to, struct err *e) MUST_CHECK;
/* The inverse of model_config_to_json. Checks all ranges; `arch` and layers are allocated from `a`. ERR_DATA names the
 * key that is missing, unknown or out of range. */
int model_config_from_json(struct model_config *c, const cJSON *object, struct arena *a, struct err *e) MUST_CHECK;
/* A deep copy, allocated from `a`. */
int model_config_copy(struct model_config *to, const struct model_config *from, struct arena *a,
                      struct err *e) MUST_CHECK;
/* ERR_DATA: a size is out of range, or features exclude each other. */
int model_config_check(const struct model_config *c, struct err *e) MUST_CHECK;
/* The value of embed_scale, residual_scale or logit_scale, with 1 in place of 0. */
float model_factor(float factor);
uint64_t model_parameters(const struct model_config *c); /* Number of parameters; a tied head is counted once. */
/* "135M", "1.2B": GGUF's general.size_label. Returns out. */
#define MODEL_SIZE_LABEL 16
char *model_size_label(uint64_t parameters, char out[MODEL_SIZE_LABEL]);
/* Width of the embedding's rows, and rotated dimensions of a head, with their defaults resolved. */
uint32_t model_embed_dim(const struct model_config *c);
uint32_t model_rope_dims(const struct model_config *c, const struct model_rope *r);
/* Frequencies [model_rope_tables][model_rope_dims / 2] of a rotation with its scaling applied. There is one table,
 * except with ROPE_LONG: one for short sequences, then one for long sequences. */
uint32_t model_rope_tables(const struct model_rope *r);
void model_inv_freq(const struct model_config *c, const struct model_rope *r, double *inv_freq);
/* YaRN's bounds, from 0 to dims - 1: pairs below `low` keep their frequency, those from `high` on are stretched. */
void model_yarn_bounds(const struct model_rope *r, uint32_t dims, double *low, double *high);
/* Reads LongRoPE's lists "short_factor" and "long_factor" from an object, into the arena, and writes them. ERR_DATA: a
 * list is missing, has an element that is no number in range, or the lengths differ. False: out of memory. */
int model_rope_get_factors(struct model_rope *r, const cJSON *o, struct arena *a, struct err *e) MUST_CHECK;
bool model_rope_put_factors(cJSON *o, const struct model_rope *r);
/* transformers' attention_factor where the configuration names none: YaRN 1 + ln(factor) / 10, LongRoPE sqrt(1 +
 * ln(factor) / ln(original_context)); 1 if factor <= 1. */
double model_rope_attention(enum rope_scaling scaling, double factor, uint32_t original_context);

/* ERR_DATA, saying what the model is instead, unless its logits are of the next token and depend only on tokens before
 * it, as generation, perplexity and distillation require. */
int model_check_next_token(const struct model_config *c, struct err *e) MUST_CHECK;
/* The target of its logits. TARGET_NEXT, without meaning, for a model without a head. */
enum stream_target model_predicts(const struct model_config *c);
/* ERR_DATA unless it has logits that can be evaluated: a head, and not of next tokens that it can see. */
int model_check_head(const struct model_config *c, struct err *e) MUST_CHECK;

/* ---- rows and blocks --------------------------------------------------------------------------------------------- */

/* The largest block size of quantized types that divides a row: 256 (k-quants), 32 (q4_0 to q8_0); 1: none. */
uint32_t model_row_block(uint64_t row);
/* Calls `warn` with a one-line message for each kind of row that quantize cannot store as asked. `before` is the model
 * that `c` was made from, NULL for a new one: it limits warnings to rows that quantized better there. old_layer
 * [c->n_layers] gives the numbers of c's layers in `before`; NULL: the same. */
typedef void model_warn_fn(void *ctx, const char *message);
void model_row_warnings(const struct model_config *before, const uint32_t *old_layer, const struct model_config *c,
                        model_warn_fn *warn, void *ctx);

/* ---- roles ------------------------------------------------------------------------------------------------------- */

/* Where values of the forward pass can be observed, by calibration and as features for distillation. */
enum model_point {
    POINT_EMBED,   /* embedding: input of layer 0 [hidden] */
    POINT_ATTN_IN, /* input of q, k and v [hidden] */
    POINT_O_IN,    /* input of o [n_heads * head_dim] */
    POINT_FFN_IN,  /* input of gate and up [hidden] */
    POINT_DOWN_IN, /* input of down [ffn] */
    POINT_LSTM_IN, /* input of an LSTM: [embed_dim] in the first layer, [hidden] in others */
    POINT_LAYER,   /* output of the layer, the residual stream [hidden] */
    POINT_HEAD_IN, /* input of the head [embed_dim]; layer 0 */
    POINT_ROUTED,  /* routing weights of a layer's experts, 0 for those not selected [experts] */
    /* Of each expert, over the positions routed to it: */
    POINT_EXPERT_IN,      /* input of its gate and up [hidden] */
    POINT_EXPERT_DOWN_IN, /* input of its down [expert_ffn] */
    POINT_EXPERT_OUT,     /* its contribution, weighted [hidden] */
    POINT_COUNT,          /* number of points that have statistics; in the table of roles: the input has no point */
    /* Queries and keys, after rotation, and values, as attention reads them. */
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
    ROLE_LSTM_INPUT, /* the input's contribution to the gates, in the order i, f, g, o */
    ROLE_LSTM_STATE, /* the previous state's contribution */
    ROLE_LSTM_INPUT_BIAS,
    ROLE_LSTM_STATE_BIAS,
    ROLE_LSTM_REVERSE_INPUT, /* the same for the reverse direction, in the same order */
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
    ROLE_Q_OUT, /* second factors of low-rank matrices */
    ROLE_K_OUT,
    ROLE_V_OUT,
    ROLE_Q_NORM,
    ROLE_Q_NORM_BIAS,
    ROLE_K_NORM,
    ROLE_K_NORM_BIAS,
    ROLE_O,
    ROLE_O_BIAS,
    ROLE_O_OUT,
    ROLE_ATTN_POST_NORM, /* of the sum, or of what attention adds: see norm_place */
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
    ROLE_EXPERT_GATE, /* one for each expert, as are the next two */
    ROLE_EXPERT_UP,
    ROLE_EXPERT_DOWN,
    ROLE_FFN_POST_NORM,
    ROLE_FFN_POST_NORM_BIAS,
    ROLE_NORM,
    ROLE_NORM_BIAS,
    ROLE_HEAD_PROJECTION, /* hidden to embed_dim */
    ROLE_POOLER,
    ROLE_POOLER_BIAS,
    ROLE_TRANSFORM, /* of a masked LM head */
    ROLE_TRANSFORM_BIAS,
    ROLE_TRANSFORM_NORM,
    ROLE_TRANSFORM_NORM_BIAS,
    ROLE_HEAD,
    ROLE_HEAD_BIAS,
    ROLE_CLASSIFIER,
    ROLE_CLASSIFIER_BIAS,
    ROLE_COUNT
};

/* The axis of a tensor's rows or columns: what pruning removes together, and how long it is. */
enum model_axis {
    AXIS_ONE, /* of a vector's columns */
    AXIS_VOCAB,
    AXIS_EMBED,    /* embed_dim */
    AXIS_HIDDEN,   /* the residual stream */
    AXIS_INPUT,    /* what the layer reads: embed_dim in the first LSTM layer, else hidden */
    AXIS_GATES,    /* of an LSTM: 4 * units */
    AXIS_UNITS,    /* of an LSTM: hidden / 2 */
    AXIS_QUERY,    /* n_heads * head_dim */
    AXIS_KEY,      /* n_kv_heads * head_dim */
    AXIS_HEAD_DIM, /* within a head */
    AXIS_Q_NORM,   /* head_dim or, with QK_NORM_ALL, the width of all query heads */
    AXIS_K_NORM,   /* the same for keys */
    AXIS_FFN,
    AXIS_EXPERT,     /* number of experts */
    AXIS_EXPERT_FFN, /* within an expert */
    AXIS_POSITION,
    AXIS_TYPE,
    AXIS_CLASSES,
    AXIS_RANK, /* of a low-rank factor: see model_rank */
    AXIS_COUNT
};
enum model_role_kind {
    KIND_MATRIX, /* multiplies activations, or is the embedding: pruned and quantized */
    KIND_ROUTER, /* multiplies activations, but selects what is computed: small, and kept in f32 */
    KIND_TABLE,  /* rows to look up: positions, token types */
    KIND_GAIN,   /* gain of a norm */
    KIND_BIAS,
};
/* What a layer must have for the tensor to exist. */
enum model_part { PART_ANY, PART_DENSE /* ffn */, PART_EXPERTS, PART_BOTH };
struct model_role_info {
    const char *name; /* after "layers.N." if in_layer; '#' stands for the expert's number */
    bool in_layer;
    enum model_part part;
    enum model_axis each; /* one tensor for each index of this axis; AXIS_ONE: one */
    enum model_role_kind kind;
    enum model_axis rows, cols; /* of the whole matrix; a first factor has the rank in place of the rows */
    enum model_point input;     /* where its input can be observed */
    bool to_residual;           /* its product is added to the residual stream */
    bool (*exists)(const struct model_config *c);
    enum model_role out;          /* of a matrix that may be factored: the role of its second factor; else 0 */
    bool is_out;                  /* is a second factor: exists in layers where the matrix has a rank */
    enum model_factored factored; /* of both factors: the matrix */
};
const struct model_role_info *model_role_info(enum model_role role);
uint64_t model_axis_size(const struct model_config *c, enum model_axis axis, uint32_t layer);
enum model_axis model_point_axis(enum model_point p); /* of the columns at this point */

struct model_slot {
    enum model_role role;
    uint32_t layer;  /* 0 outside layers */
    uint32_t expert; /* 0 for roles that a layer has once */
};
/* The rank of a matrix in this layer, by the role of either factor; 0: stored whole, or never factored. */
uint32_t model_rank(const struct model_config *c, enum model_role role, uint32_t layer);
bool model_is_factored(const struct model_config *c); /* is any matrix stored as factors? */
/* May this configuration have tensors of the role? */
bool model_has_role(const struct model_config *c, enum model_role role);
bool model_role_in_layer(enum model_role role);
bool model_role_is_matrix(enum model_role role);
/* The role of the matrix that makes the logits: the head, the embedding if tied, or the classifier. */
enum model_role model_head_role(const struct model_config *c);
/* Writes "layers.3.attn.q.weight"; out has TENSOR_MAX_NAME + 1 bytes. Returns out. */
char *model_slot_name(struct model_slot s, char *out);
/* The inverse. ERR_DATA: no role has this name. */
int model_slot_parse(const char *name, struct model_slot *out, struct err *e) MUST_CHECK;
/* A regular expression (PCRE2), searched for in names of tensors: n bytes at text (pattern.c). */
struct model_pattern {
    const char *text;
    size_t n;
};
struct model_matcher;
/* Compiles p, whose text must outlive the matcher. The caller frees *out. ERR_USAGE: syntax error, and where. */
int model_matcher_new(struct model_matcher **out, const struct model_pattern *p, struct err *e) MUST_CHECK;
/* 1: the name matches, 0: it does not; ERR_USAGE: PCRE2's limit on backtracking was reached. */
int model_matches(const struct model_matcher *m, const char *name, struct err *e) MUST_CHECK;
void model_matcher_free(struct model_matcher *m); /* no-op if NULL */
/* Number of tensors of this configuration, and the i-th in stream order. */
size_t model_slot_count(const struct model_config *c);
struct model_slot model_slot_at(const struct model_config *c, size_t i);
/* Index of a slot in stream order, or -1 if the configuration does not have it (a tied head, no biases). */
long model_slot_index(const struct model_config *c, struct model_slot s);
/* Writes the shape to dims and returns the rank: 2 for matrices [out][in] and tables, 1 for norms and biases. */
unsigned model_slot_shape(const struct model_config *c, struct model_slot s, uint64_t dims[2]);
/* Is this the layer's last tensor in stream order? */
bool model_slot_ends_layer(const struct model_config *c, struct model_slot s);
/* Is this the last tensor of its expert? */
bool model_slot_ends_expert(const struct model_config *c, struct model_slot s);
size_t model_expert_roles(const struct model_config *c); /* tensors of one expert */
/* Index in stream order of the first tensor of a layer; layer n_layers: of the first tensor after the layers. */
size_t model_slot_of_layer(const struct model_config *c, uint32_t layer);
/* ERR_DATA, with found and expected shape, unless the tensor fits its slot. */
int model_slot_check(const struct model_config *c, struct model_slot s, const struct tensor_desc *d,
                     struct err *e) MUST_CHECK;

/* ---- maximal update parametrization -----------------------------------------------------------------------------
 *
 * Yang et al. 2022, "Tensor Programs V", table 8: hyperparameters tuned on a narrow model, the base, carry over to a
 * wider one of the same depth. With w the ratio of the widths of its input, a hidden matrix (both axes are widths) is
 * initialized with 1 / sqrt(w) times the standard deviation, and Adam's rate is 1 / w times as large. Logits are
 * multiplied by 1 / w, and scores by sqrt(1 / w) with w the ratio of head widths. By lemma J.1 these factors can be
 * moved into the values and the rates of the last norm and of q, so the model computes what any other of its
 * architecture does. At the base's widths all factors are 1. */
struct model_mup {
    uint64_t size[AXIS_COUNT]; /* sizes of the base, in its first layer; 0: the axis is not a width */
};
/* The widths of a configuration, as the base of others. */
void model_mup_of(const struct model_config *base, struct model_mup *out);
bool model_mup_put(cJSON *meta, const struct model_mup *m);                            /* "mup"; false: no memory */
int model_mup_get(const cJSON *meta, struct model_mup *out, struct err *e) MUST_CHECK; /* ERR_DATA: none */
/* Does the role have a hidden matrix? */
bool model_mup_is_hidden(enum model_role role);
/* The ratio of an axis to that of the base. */
double model_mup_width(const struct model_config *c, const struct model_mup *base, enum model_axis axis,
                       uint32_t layer);
/* The factor of logits or scores carried by this slot, 1 for most: of its initial values and of its learning rate. */
double model_mup_factor(const struct model_config *c, const struct model_mup *base, struct model_slot s);
/* ERR_USAGE: not a next-token model, or no norm before the head that could carry the factor. */
int model_mup_check(const struct model_config *c, struct err *e) MUST_CHECK;

/* ---- the head of a model stream: what a one-pass filter needs before the tensors --------------------------------- */

struct model_head {
    struct model_config config;
    cJSON *meta;      /* META as read; owned by the head */
    struct buf vocab; /* bytes of VOCB; len 0: none */
    struct digest vocab_digest;
    struct arena memory;
};
/* Reads up to the first tensor, which is left in *item for the caller's loop (or ITEM_SEGMENT_END). Initialize *h with
 * {0}; call model_head_release even after a failure. ERR_DATA: not one model stream, a bad configuration, or VOCB is
 * not what META names. */
int model_head_read(struct stream_reader *r, struct model_head *h, struct stream_item *item, struct err *e) MUST_CHECK;
/* The member of META on the importance data used in quantization, as GGUF's quantize.imatrix.* (formats/gguf.md). */
#define MODEL_IMATRIX_META "imatrix"
/* Writes META (kind, "model", digest of "vocab", and other members of `extra`, if not NULL) and VOCB if n_vocab > 0. */
int model_head_write(struct stream_writer *w, const struct model_config *c, const void *vocab, size_t n_vocab,
                     const cJSON *extra, struct err *e) MUST_CHECK;
void model_head_release(struct model_head *h);

/* One pass over the tensors of a model stream in order, for filters. Checks that each tensor of the configuration comes
 * exactly once, in order, with its shape and finite values (ERR_DATA names the tensor). */
struct model_tensors {
    struct stream_reader *r;
    const struct model_config *config;
    struct stream_item *item; /* the current item, at first the one that model_head_read left */
    size_t next;              /* index of the next tensor in stream order */
    struct model_slot slot;   /* of the current tensor */
    struct tensor_desc desc;
    cJSON *attrs;    /* NULL: none */
    struct buf data; /* after model_tensors_load: its data, valid until the next call; or scratch for parts */
    uint64_t given;  /* elements returned in parts */
};
void model_tensors_begin(struct model_tensors *t, struct stream_reader *r, const struct model_config *c,
                         struct stream_item *item);
/* Describes the next tensor. *more = false after the last one. */
int model_tensors_open(struct model_tensors *t, bool *more, struct err *e) MUST_CHECK;
/* Reads all of its data ... */
int model_tensors_load(struct model_tensors *t, struct err *e) MUST_CHECK;
/* ... or the next n elements, whole blocks, to dst, until the tensor's end. Parts may be wrong if a later checksum
 * fails. model_tensors_open skips what was not read. */
int model_tensors_part(struct model_tensors *t, void *dst, uint64_t n, struct err *e) MUST_CHECK;
/* Call if a part holds values that make no sense, with the complaint in *e: replaces it by the damage, if the rest of
 * the tensor shows that the file is damaged. Returns e->code. */
int model_tensors_doubt(struct model_tensors *t, struct err *e);
void model_tensors_release(struct model_tensors *t);

/* Calls `fn` with each tensor's slot, description and data, valid during the call. Memory: the largest tensor. */
typedef int model_tensor_fn(void *ctx, struct model_slot s, const struct tensor_desc *d, const cJSON *attrs,
                            const void *data, struct err *e);
int model_each_tensor(struct stream_reader *r, const struct model_config *c, struct stream_item *item,
                      model_tensor_fn *fn, void *ctx, struct err *e) MUST_CHECK;
/* The same, but data is skipped and NULL. */
int model_each_desc(struct stream_reader *r, const struct model_config *c, struct stream_item *item,
                    model_tensor_fn *fn, void *ctx, struct err *e) MUST_CHECK;

#endif
