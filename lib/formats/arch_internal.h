/*
 * The registry of architectures, private to lib/formats. An architecture is one file, arch_NAME.c, that fills in a struct arch, and
 * a line in arch.c. What it describes: what all of its models compute (a model_config), and how Hugging Face and GGUF spell them:
 * keys of the configuration, names of tensors and how these lie. Everything else in Rill reads model_config, so nothing outside the
 * file asks which architecture a model is of.
 */
#ifndef RILL_FORMATS_ARCH_INTERNAL_H
#define RILL_FORMATS_ARCH_INTERNAL_H

#include "lib/formats/formats_internal.h"

/* ---- tensors (arch_tensors.c) ---------------------------------------------------------------------------------- */

/* How to get the tensor of a role from a tensor of the file. Flags; 0: it is the same. */
enum {
    FUSED_ROWS = 1,  /* several roles one after another as rows, in the order of the table: [q; k; v] */
    FUSED_HEADS = 2, /* several roles head by head: q, k, v of head 0, of head 1 ... (GPT-NeoX) */
    TRANSPOSED = 4,  /* [in][out], as GPT-2's Conv1D has it */
    MINUS_ONE = 8,   /* a norm's weight less 1: Gemma multiplies with 1 + w */
    FROM_FIRST = 16, /* a table of positions without the rows before position_offset */
    STACKED =
        128, /* those of all experts one after another, [experts][rows][columns]; with FUSED_ROWS of several roles */
    AS_ROW = 256, /* a vector as a matrix of one row */
    /* Not the layout, but which models or layers have the tensor: */
    OF_CLASSES = 32,      /* of classifiers of sequences only (OUTPUT_CLASSES) */
    OF_UNTIED = 64,       /* of models whose head is not the embedding */
    OF_SPAN = 2048,       /* of models that find answers only (OUTPUT_SPAN) */
    OF_EXPERTS = 512,     /* of layers that have experts */
    OF_NO_EXPERTS = 1024, /* of those that have none */
};
struct arch_tensor {
    enum model_role role;
    const char *name; /* '#' stands for the number of the layer, '@' for that of the expert */
    unsigned layout;
};
/* A table of tensors. A role may occur several times: import takes the first name that the file has, export the
 * first. */
struct arch_tensors {
    const struct arch_tensor *items;
    size_t n;
    const char *base; /* a prefix of names that files may leave out ("model."), and models without a head do; or NULL */
    const char *const
        *derived; /* ends of names of buffers that follow from the configuration, the last one NULL; or NULL */
};
/* GGUF's names, which all architectures share but for their own table, which is asked first. */
extern const struct arch_tensors gguf_common_tensors;

struct arch;

/* ---- Hugging Face ---------------------------------------------------------------------------------------------- */

/* Keys of config.json for the numbers; NULL: the architecture has none, and the default holds. */
struct hf_numbers {
    const char *layers, *hidden, *heads, *kv_heads, *head_dim, *ffn, *context, *eps, *act;
    bool ffn_follows; /* the feed-forward width is 4 x hidden when it is absent */
};
/* Tensor names that many architectures share with Llama: entries of a table of struct arch_tensor. */
#define HF_LLAMA_TENSORS                                                                                               \
    {ROLE_EMBED, "model.embed_tokens.weight", 0}, {ROLE_ATTN_NORM, "model.layers.#.input_layernorm.weight", 0},        \
        {ROLE_Q, "model.layers.#.self_attn.q_proj.weight", 0}, {ROLE_K, "model.layers.#.self_attn.k_proj.weight", 0},  \
        {ROLE_V, "model.layers.#.self_attn.v_proj.weight", 0},                                                         \
        {ROLE_Q_BIAS, "model.layers.#.self_attn.q_proj.bias", 0},                                                      \
        {ROLE_K_BIAS, "model.layers.#.self_attn.k_proj.bias", 0},                                                      \
        {ROLE_V_BIAS, "model.layers.#.self_attn.v_proj.bias", 0},                                                      \
        {ROLE_O, "model.layers.#.self_attn.o_proj.weight", 0},                                                         \
        {ROLE_O_BIAS, "model.layers.#.self_attn.o_proj.bias", 0},                                                      \
        {ROLE_FFN_NORM, "model.layers.#.post_attention_layernorm.weight", 0},                                          \
        {ROLE_GATE, "model.layers.#.mlp.gate_proj.weight", 0}, {ROLE_UP, "model.layers.#.mlp.up_proj.weight", 0},      \
        {ROLE_DOWN, "model.layers.#.mlp.down_proj.weight", 0}, {ROLE_NORM, "model.norm.weight", 0}, {                  \
        ROLE_HEAD, "lm_head.weight", 0                                                                                 \
    }
/* The same of layers with experts, one tensor for each of an expert or, as transformers 5 holds them, for all. */
#define HF_EXPERT_TENSORS                                                                                              \
    {ROLE_ROUTER, "model.layers.#.mlp.gate.weight", 0},                                                                \
        {ROLE_EXPERT_GATE, "model.layers.#.mlp.experts.@.gate_proj.weight", 0},                                        \
        {ROLE_EXPERT_UP, "model.layers.#.mlp.experts.@.up_proj.weight", 0},                                            \
        {ROLE_EXPERT_DOWN, "model.layers.#.mlp.experts.@.down_proj.weight", 0}, HF_STACKED_TENSORS
#define HF_STACKED_TENSORS                                                                                             \
    {ROLE_EXPERT_GATE, "model.layers.#.mlp.experts.gate_up_proj", STACKED | FUSED_ROWS},                               \
        {ROLE_EXPERT_UP, "model.layers.#.mlp.experts.gate_up_proj", STACKED | FUSED_ROWS}, {                           \
        ROLE_EXPERT_DOWN, "model.layers.#.mlp.experts.down_proj", STACKED                                              \
    }
extern const struct hf_numbers hf_llama_numbers; /* num_hidden_layers, hidden_size ... rms_norm_eps, hidden_act */

struct hf_class {
    const char *class, *model_type;
    enum model_output output; /* the output of the class */
};
/*
 * A class whose config.json has that of a language model in "text_config", and whose file has its tensors under names of their own
 * beside those of other parts (pictures). Import takes the language model (hf_part.c).
 */
struct hf_whole {
    const char *class, *model_type;
    const struct hf_key *keys; /* beside "text_config" */
    size_t n_keys;
    struct {
        const char *from, *to;
    } names[4];            /* beginnings of names: "language_model." of the file is "" of the part; ends with NULL */
    const char *others[5]; /* beginnings of names of the other parts; ends with NULL */
};
struct hf_side {
    struct hf_class
        classes[7]; /* the first of an output is what export writes, of all what a file without "architectures" is; ends
                                 * with NULL */
    const struct hf_key *keys; /* of its own, which win over the common ones */
    size_t n_keys;
    const struct hf_numbers *numbers;
    double eps, theta;  /* default of config.json */
    double local_theta; /* the same for a separate rotation of sliding layers; 0: they have none */
    enum hf_windows {
        NO_WINDOWS,
        ONE_WINDOW,   /* the same in all layers */
        LAYER_WINDOWS /* in the layers that "layer_types" names */
    } windows;
    uint32_t
        original_context; /* default of "original_max_position_embeddings" at the top level, where the class has it; 0: it is
                                * among the rotary settings */
    double partial_rotary;       /* the share of a head that rotates, by default; 0: always all of it */
    uint32_t kv_heads, head_dim; /* default if config.json has no such key; 0: as many as heads, and hidden / heads */
    uint32_t vocab, context, heads; /* default if config.json has no such key; 0: the key is required */
    bool tied;                      /* default of "tie_word_embeddings" */
    struct arch_tensors tensors;
    /* Beginnings of names, after the base, of what a file may have beside its class: heads of pre-training that
     * another class reads. They are left out, as transformers leaves them out. Ends with NULL; NULL: none. */
    const char *const *unread;
    const struct hf_whole *whole; /* the multimodal class that this is the language model of; or NULL */
    /* Reads the rest of config.json, after the numbers, the rotation, the layers and the output of the class; and
     * writes it. NULL: nothing. */
    int (*read)(struct model_config *c, const cJSON *json, struct err *e);
    bool (*write)(cJSON *json, const struct model_config *c);
    bool (*zeros)(const struct model_config *c, enum model_role role); /* see out_tensors_make */
    /* ERR_DATA when the class cannot hold this configuration. NULL: it can. */
    int (*check)(const struct model_config *c, struct err *e);
};

/* For tables of keys: features that a class does not have, which nothing else would report as ignored. */
#define HF_NO_ROTARY                                                                                                   \
    HF_KEY("rope_theta", HF_OFF), HF_KEY("rope_scaling", HF_OFF), HF_KEY("rope_parameters", HF_OFF),                   \
        HF_KEY("partial_rotary_factor", HF_OFF)
#define HF_NO_WINDOW                                                                                                   \
    HF_KEY("sliding_window", HF_OFF), HF_KEY("use_sliding_window", HF_OFF), HF_KEY("max_window_layers", HF_OFF),       \
        HF_KEY("layer_types", HF_OFF)
/* Heads fill the hidden size, and each has a key and value of its own. */
#define HF_PLAIN_HEADS(heads) HF_KEY_TEXT("num_key_value_heads", HF_SAME, heads), HF_KEY("head_dim", HF_OFF)

/* For their read, write and check. */
int hf_check_plain_heads(const struct model_config *c,
                         struct err *e) MUST_CHECK; /* ERR_DATA: not as HF_PLAIN_HEADS says */
/* ERR_DATA unless heads are as wide as hidden / heads, by which transformers makes `what` whatever head_dim says. */
int hf_check_derived_width(const struct model_config *c, const char *what, struct err *e) MUST_CHECK;
/* The share of a head that rotates; readers truncate its product with the head size. */
double hf_rotary_share(const struct model_config *c);
int hf_act_of_name(const char *name, uint32_t *act); /* negative: unknown */
int hf_read_act(struct model_config *c, const cJSON *json, const char *key, const char *fallback,
                struct err *e) MUST_CHECK;
const char *hf_act_name(uint32_t act);
/* "layer_types" or its absence: `window` for layers of "sliding_attention", 0 for "full_attention"; *given: is the list there? */
int hf_read_layer_types(struct model_config *c, const cJSON *json, uint32_t window, bool *given,
                        struct err *e) MUST_CHECK;
bool hf_put_layer_types(cJSON *json, const struct model_config *c);
/* "attention_bias": on q, k, v and o. */
int hf_read_attention_bias(struct model_config *c, const cJSON *json, struct err *e) MUST_CHECK;
bool hf_put_attention_bias(cJSON *json, const struct model_config *c);
bool hf_attention_bias_zeros(const struct model_config *c, enum model_role role); /* for hf_side.zeros */
/* The window of "sliding_window", or `absent` without the key; 0: none, or one that never takes effect. */
int hf_read_window(const struct model_config *c, const cJSON *json, uint32_t absent, uint32_t *window,
                   struct err *e) MUST_CHECK;
/* Qwen's keys of windows: *window 0 without "use_sliding_window", *first is "max_window_layers"; *given: the windows of
 * layers are set, by "layer_types". */
int qwen_read_window_keys(struct model_config *c, const cJSON *json, uint32_t *window, uint64_t *first, bool *given,
                          struct err *e) MUST_CHECK;
int qwen_read_window(struct model_config *c, const cJSON *json, struct err *e) MUST_CHECK; /* Qwen 2's and 3's */
bool qwen_put_window(cJSON *json, const struct model_config *c);
/* One window for all layers: that of hf_read_window. */
int hf_read_uniform_window(struct model_config *c, const cJSON *json, uint32_t absent, struct err *e) MUST_CHECK;
bool hf_put_uniform_window(cJSON *json, const struct model_config *c);
/*
 * Layers with experts (experts.c). Reads their number, "num_experts" or "num_local_experts", that of a position,
 * "num_experts_per_tok", and their width; each may be absent. All layers get them in place of their dense part.
 */
struct hf_experts {
    uint32_t experts, per_token; /* where config.json does not say */
    const char *width;           /* key of the width; NULL: it is that of dense parts */
    uint32_t absent_width;
};
#define HF_EXPERT_KEYS                                                                                                 \
    HF_KEY("num_experts", HF_READ), HF_KEY("num_experts_per_tok", HF_READ), HF_KEY("norm_topk_prob", HF_READ), {       \
        .name = "num_local_experts", .rule = HF_SAME, .text = "num_experts", .alone = true                             \
    }
int hf_read_experts(struct model_config *c, const cJSON *json, const struct hf_experts *how, struct err *e) MUST_CHECK;
bool hf_put_experts(cJSON *json, const struct model_config *c, const char *count, const char *width);
/* A dense part as wide as "intermediate_size" in layers that "mlp_only_layers" names or "decoder_sparse_step" skips, instead of
 * experts. To be called after hf_read_experts, with that width. */
int hf_read_dense_layers(struct model_config *c, const cJSON *json, uint32_t ffn, struct err *e) MUST_CHECK;
bool hf_put_dense_layers(cJSON *json, const struct model_config *c);
/* What "intermediate_size" and "feed_forward_length" say: the width of dense layers, or where there are none of experts. */
uint32_t config_ffn(const struct model_config *c);
/* ERR_DATA unless every layer has experts, beside a dense part or without. */
int arch_all_experts(const struct model_config *c, bool dense, struct err *e) MUST_CHECK;
uint32_t config_window(const struct model_config *c); /* of the layers that have one; 0: none has */
/* ERR_DATA: some layers have a window, or another one, and some have not. */
int arch_uniform_window(const struct model_config *c, struct err *e) MUST_CHECK;
/* ERR_DATA: heads rotate in part, in an architecture whose heads rotate whole. */
int arch_check_rotation(const struct arch *a, const struct model_config *c, struct err *e) MUST_CHECK;
/* ERR_DATA: layers have windows of several lengths, and neither format can say that. */
int arch_one_window(const struct model_config *c, uint32_t *window, struct err *e) MUST_CHECK;

/* ---- GGUF ------------------------------------------------------------------------------------------------------- */

struct gguf_name {
    const char *name;
    bool interleaved; /* q and k have the two rows of a rotary pair side by side */
};
/* What the loader of an architecture in llama.cpp does not know. */
enum {
    LACKS_O_BIAS = 1,
    LACKS_LLAMA3 = 2,     /* the tensor rope_freqs.weight */
    LACKS_HEAD_WIDTH = 4, /* requires all heads together to be as wide as the residual stream */
    LACKS_TIED = 8,
    LACKS_LONG = 16, /* the tensors rope_factors_short.weight and rope_factors_long.weight */
};
struct gguf_side {
    struct gguf_name
        names[3]; /* the first is what export writes; ends with NULL; none: GGUF does not know the architecture */
    struct gguf_name uneven; /* what export writes when layers differ; NULL: GGUF cannot hold that */
    bool (*needs_uneven)(const struct model_config *c); /* ... or for another reason; NULL: none */
    bool windows;                                       /* llama.cpp gives it windows, which read and write handle */
    unsigned lacks;                                     /* LACKS_... */
    bool experts;                /* of architectures that share a name, this one has experts ("expert_count") */
    const struct gguf_key *keys; /* of its own */
    size_t n_keys;
    struct arch_tensors tensors; /* that differ from the common ones */
    int (*read)(struct model_config *c, const struct gguf_file *g, const char *prefix, struct arena *a, struct err *e);
    void (*write)(struct gguf_header *h, const struct model_config *c);
    int (*check)(const struct model_config *c, struct err *e); /* ERR_DATA: llama.cpp cannot load it; NULL: it can */
};

/*
 * For their read and write: the activation, where llama.cpp has one for all models of an architecture and no key. A key
 * with transformers' name for it, which llama.cpp leaves alone, says when it is not `usual`.
 */
int gguf_read_act(struct model_config *c, const struct gguf_file *g, const char *prefix, struct arena *a,
                  struct err *e) MUST_CHECK;
void gguf_put_act(struct gguf_header *h, const struct model_config *c, uint32_t usual);
/* For their read and write (gguf_windows.c). "attention.sliding_window", or `window` where the key is absent, in the layers that
 * "attention.sliding_window_pattern" names: a flag for each layer, or N for all but every N-th; N is `pattern` where that key is
 * absent. */
int gguf_read_windows(struct model_config *c, const struct gguf_file *g, const char *prefix, uint32_t window,
                      uint32_t pattern, struct err *e) MUST_CHECK;
/* Both keys; the pattern only where it is not the one that readers assume. */
void gguf_put_windows(struct gguf_header *h, const struct model_config *c, uint32_t window, uint32_t pattern);

/* For keys, read and write of architectures with experts (experts.c): all layers have them. `norm`: are their weights divided by
 * their sum? llama.cpp has one answer for all models of an architecture, which gguf_check_experts asks for. */
#define GGUF_EXPERT_KEYS(norm)                                                                                         \
    {"expert_count", GGUF_READ, 0, NULL}, {"expert_used_count", GGUF_READ, 0, NULL},                                   \
        {"expert_feed_forward_length", GGUF_READ, 0, NULL}, {"expert_gating_func", GGUF_NUMBER, 1, NULL},              \
        {"expert_weights_scale", GGUF_NUMBER, 1, NULL}, {                                                              \
        "expert_weights_norm", norm ? GGUF_NUMBER : GGUF_OFF, 1, NULL                                                  \
    }
int gguf_read_experts(struct model_config *c, const struct gguf_file *g, const char *prefix, struct arena *a,
                      struct err *e) MUST_CHECK;
void gguf_put_experts(struct gguf_header *h, const struct model_config *c);
void gguf_put_wide_experts(struct gguf_header *h, const struct model_config *c); /* whose width has a key of its own */
int gguf_check_experts(const struct model_config *c, bool dense, bool norm, struct err *e) MUST_CHECK;

struct arch {
    const char *name;                         /* the label in streams */
    const char *models;                       /* models of this architecture, for help */
    struct model_config traits;               /* what every model of it computes, without shapes */
    void (*complete)(struct model_config *c); /* sets what follows from a new model's shapes; NULL: nothing */
    uint32_t window_pattern;                  /* see arch_window_pattern */
    struct hf_side hf;
    struct gguf_side gguf;
};

extern const struct arch arch_llama, arch_mistral, arch_ministral, arch_qwen2, arch_qwen3, arch_phi3, arch_smollm3,
    arch_phi;
extern const struct arch arch_minicpm, arch_olmo2;
extern const struct arch arch_mixtral, arch_olmoe, arch_qwen2_moe, arch_qwen3_moe;
extern const struct arch arch_gpt2, arch_opt, arch_gpt_neox;
extern const struct arch arch_gemma, arch_gemma2, arch_gemma3;
extern const struct arch arch_bert, arch_distilbert, arch_roberta, arch_xlm_roberta, arch_camembert;
extern const struct arch arch_bilstm;
const struct arch *arch_at(size_t i); /* NULL past the end */

/* ERR_DATA names those that are known. */
int arch_of_config(const struct model_config *c, const struct arch **out, struct err *e) MUST_CHECK;
int arch_class_unknown(const char *class, struct err *e); /* the error that names those that are known; ERR_DATA */
int arch_gguf_unknown(const char *name, struct err *e);
const struct arch *arch_by_gguf(const char *name, bool experts, const struct gguf_name **spelled); /* NULL: unknown */
/* Also return the class; for a model_type the first that has it. */
const struct arch *arch_by_class(const char *name, const struct hf_class **class);
const struct arch *arch_by_model_type(const char *type, const struct hf_class **class);
/* The class that holds this configuration's output; NULL: none. */
const struct hf_class *arch_class(const struct arch *a, const struct model_config *c);
/* What GGUF calls a model of this configuration; NULL: it has no name for it. */
const struct gguf_name *arch_gguf_name(const struct arch *a, const struct model_config *c);

/* ---- a tensor of a role in a file ------------------------------------------------------------------------------- */

/* Where the tensor is in the file, or how export writes it. */
struct arch_place {
    const struct arch_tensor *tensor;
    const struct arch_tensors *table;
    char name[TENSOR_MAX_NAME + 1]; /* in the file */
    uint64_t first, total;          /* rows of the role in the file's tensor, and all of these */
    uint64_t stacked;               /* STACKED: experts */
    uint64_t part, parts;           /* FUSED_HEADS: rows of the role in a head, and of all parts */
    uint64_t missing;               /* FROM_FIRST: rows that the file does not have; they become zeros */
};
/* Import: the first of the role's names that the file has. NULL and place->name the first name when it has none. */
struct raw_tensor *arch_find(const struct arch_tensors *own, const struct arch_tensors *common,
                             const struct model_config *c, struct model_slot s, const struct raw_table *files,
                             struct arch_place *place);
/* The row of the table that gives the role this name; NULL: none does. */
const struct arch_tensor *arch_named(const struct arch_tensors *table, struct model_slot s, const char *name);
/* Do models like this one have it, in such a layer (OF_CLASSES ...)? */
bool arch_is_of(const struct model_config *c, const struct arch_tensor *t, uint32_t layer);
/* Export: false when the architecture has no name for the role. */
bool arch_place(const struct arch_tensors *own, const struct arch_tensors *common, const struct model_config *c,
                struct model_slot s, struct arch_place *place);
/* The place of its own that the table has for a role whose tensor `p` is shared; false: none. */
bool arch_place_apart(const struct arch_place *p, const struct model_config *c, struct model_slot s,
                      struct arch_place *apart);
/* The shape that the file's tensor has, for this slot's configuration. */
unsigned arch_foreign_shape(const struct model_config *c, struct model_slot s, const struct arch_place *p,
                            uint64_t dims[3]);
/* Is the data laid out as in the slot? Then it starts at this byte of the file's tensor; else it must be rearranged. */
bool arch_lies_plain(const struct arch_place *p, enum dtype dtype, uint64_t cols, uint64_t *offset);
/* Rearranges the file's tensor into the slot's, both of `dtype`: to[rows][cols]. MINUS_ONE is left to the caller. */
void arch_gather(const struct arch_place *p, enum dtype dtype, uint64_t rows, uint64_t cols, const void *from,
                 void *to);
/* The reverse: writes its part of the file's tensor. */
void arch_scatter(const struct arch_place *p, enum dtype dtype, uint64_t rows, uint64_t cols, const void *from,
                  void *to);

/* ---- names of classes (labels.c) ------------------------------------------------------------------------------- */

#define LABELS_KEY "labels" /* of META */
#define LABEL_SIZE 24
/* From "id2label" or ARCH.classifier.output_labels (NULL: there is none) of a classifier into f->extra. ERR_DATA
 * when there is no text for each class. */
int labels_from_hf(struct foreign_model *f, const cJSON *config, struct err *e) MUST_CHECK;
int labels_from_gguf(struct foreign_model *f, const struct gguf_kv *kv, struct err *e) MUST_CHECK;
/* That of META, or "LABEL_3" in `out`. */
const char *label_of(const cJSON *meta, uint32_t class, char out[LABEL_SIZE]);
bool labels_to_hf(cJSON *config, const struct model_config *c, const cJSON *meta); /* "id2label" and its reverse */

/* ---- tensors on their way out (export_tensors.c) ---------------------------------------------------------------- */

/* One of the file, of one slot or of several that it fuses. */
struct out_tensor {
    char name[TENSOR_MAX_NAME + 1];
    unsigned rank;
    uint64_t dims[3];
    enum dtype stored; /* as the stream has it */
    enum model_role_kind kind;
    size_t n_slots;
    struct model_slot *slots; /* [n_slots] */
    struct arch_place *places;
};
struct out_tensors {
    bool
        by_value; /* set before they are made: no quantized blocks are written, so that any types may meet in a fused tensor */
    struct out_tensor *items; /* in the arena of the export_source */
    size_t n;
};
/* ERR_DATA when the format has no name for one of them, or fused ones are quantized in different types. zeros (or NULL): does the
 * format want zeros for this bias, which the model has not? */
int out_tensors_make(struct out_tensors *t, struct export_source *x, const struct arch_tensors *own,
                     const struct arch_tensors *common, bool (*zeros)(const struct model_config *, enum model_role),
                     struct err *e) MUST_CHECK;
/* While the types are not known, from a source without a map: do the names of the tensors depend on them, because the format has
 * others for parts of different types? */
bool out_tensors_follow_types(const struct out_tensors *t, const struct export_source *x);
/* One more part has this type in the stream. ERR_DATA: one tensor cannot hold it and the others. */
int out_tensor_join(const struct out_tensors *t, struct out_tensor *to, size_t part, enum dtype stored,
                    struct err *e) MUST_CHECK;
void out_tensor_like_last(struct out_tensors *t, size_t i); /* the type of zeros: that of the tensor before them */
uint64_t out_tensor_bytes(const struct out_tensor *t, enum dtype as);
/* Its data in the order of the file, rotary rows interleaved or not; valid until the next call. */
int out_tensor_data(struct export_source *x, const struct out_tensor *t, enum dtype as, bool interleaved,
                    const void **data, struct err *e) MUST_CHECK;
/* The part of slot i alone, before it is scattered. */
int out_tensor_part(struct export_source *x, const struct out_tensor *t, size_t i, enum dtype as, bool interleaved,
                    const void **data, struct tensor_desc *d, struct err *e) MUST_CHECK;

/* ---- tensors that arrive one after another (export_arrive.c) ----------------------------------------------------- */

/*
 * Writes each tensor of a stream to its place in a file as it comes, for a source that cannot be read twice. Tensors of the file
 * lie in the order in which their first parts arrive, each of the type that this part decides; parts of stacked experts go to
 * the file at once, those of other fused tensors are held until all are there (q, k and v of a layer).
 */
struct arrivals {
    struct export_source *x; /* without a map */
    struct out_tensors *tensors;
    bool interleaved;
    void *ctx;
    /* The type of a tensor in the file, once `stored` is known. */
    enum dtype (*type)(void *ctx, const struct out_tensor *t);
    /* Reserves room for tensor i, asked for in order: the descriptor, and the offset in it. */
    int (*place)(void *ctx, size_t i, uint64_t bytes, int *fd, uint64_t *at, struct err *e);
    int (*done)(void *ctx, size_t i, struct err *e); /* tensor i is complete in the file; NULL: no matter */
    /* Private. */
    struct arrival_part *parts; /* by slot of x->config */
    struct arrival_spot *spots; /* by tensor */
    size_t placed;
};
/* After out_tensors_make; the caller has set the members above. */
int arrivals_begin(struct arrivals *a, struct err *e) MUST_CHECK;
/* ERR_DATA: a part has a type that the file's tensor cannot have any more. A slot that the file leaves out is skipped. */
int arrivals_take(struct arrivals *a, struct model_slot s, const struct tensor_desc *d, const void *data,
                  struct err *e) MUST_CHECK;
int arrivals_end(struct arrivals *a, struct err *e) MUST_CHECK; /* zeros after the last */
int write_at(int fd, uint64_t at, const void *data, uint64_t n, struct err *e) MUST_CHECK;
/* Copies the rest of a stream, whose head was read, to a file without a name in TMPDIR, for random access. */
int export_spool(struct stream_map **out, struct stream_reader *in, const struct model_head *h,
                 struct stream_item *item, struct err *e) MUST_CHECK;

/* ---- GGUF on its way out (gguf_write.c, gguf_stream.c) ------------------------------------------------------------ */

struct gguf_out {
    struct export_source x;
    const struct arch *arch;
    const struct gguf_name *name;
    struct out_tensors tensors; /* under GGUF's names */
    size_t file_type_at;        /* in the keys */
};
/* Tensors of a file, in order. The factors of the rotation, which are none of the model's, come before the first. */
struct gguf_range {
    size_t from, to;
};
/* Of a stream whose tensors are yet to come, so that their types are not known. export_release(&o->x) in any case. */
int gguf_out_open_arriving(struct gguf_out *o, const struct model_head *h, struct err *e) MUST_CHECK;
/* Vectors are always f32, and so are tables of positions and types: llama.cpp adds them as they are. */
enum dtype gguf_out_type(const struct out_tensor *t);
int gguf_out_check_type(const struct out_tensor *t,
                        struct err *e) MUST_CHECK; /* ERR_DATA: llama.cpp has no such weights */
/* The keys of the model; and once the types are known, general.file_type among them, which follows from these. */
int gguf_out_keys(struct gguf_header *keys, struct gguf_out *o, const char *name, struct err *e) MUST_CHECK;
int gguf_out_label(struct gguf_header *keys, const struct gguf_out *o, struct err *e) MUST_CHECK;
void gguf_out_infos(struct gguf_header *h, const struct gguf_out *o, struct gguf_range r);

#endif
