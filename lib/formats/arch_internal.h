/*
 * The registry of architectures, private to lib/formats. An architecture is one file, arch_NAME.c, that defines a
 * struct arch, and a line in arch.c. It states what all of its models compute (a model_config) and how Hugging Face and
 * GGUF represent them: configuration keys, tensor names and tensor layouts. All other code in Rill reads model_config,
 * so nothing outside that file asks for a model's architecture.
 */
#ifndef RILL_FORMATS_ARCH_INTERNAL_H
#define RILL_FORMATS_ARCH_INTERNAL_H

#include "lib/formats/formats_internal.h"

/* ---- tensors (arch_tensors.c) ------------------------------------------------------------------------------------ */

/* How a role's tensor is stored in a tensor of the file: flags; 0: as it is. */
enum {
    FUSED_ROWS = 1,  /* several roles as consecutive rows, in the order of the table: [q; k; v] */
    FUSED_HEADS = 2, /* several roles interleaved by head: q, k, v of head 0, of head 1, ... (GPT-NeoX) */
    TRANSPOSED = 4,  /* [in][out], as in GPT-2's Conv1D */
    MINUS_ONE = 8,   /* a norm's weight minus 1: Gemma multiplies by 1 + w */
    FROM_FIRST = 16, /* a position table without the rows before position_offset */
    /* all experts, consecutive: [experts][rows][cols]; with FUSED_ROWS: of several roles */
    STACKED = 128,
    AS_ROW = 256, /* a vector stored as a matrix of one row */
    /* Not layouts, but which models or layers have the tensor: */
    OF_CLASSES = 32,      /* only sequence classifiers (OUTPUT_CLASSES) */
    OF_UNTIED = 64,       /* only models whose head is not the embedding */
    OF_SPAN = 2048,       /* only models that find answers (OUTPUT_SPAN) */
    OF_EXPERTS = 512,     /* only layers with experts */
    OF_NO_EXPERTS = 1024, /* only layers without experts */
};
struct arch_tensor {
    enum model_role role;
    const char *name; /* '#' stands for the layer's number, '@' for the expert's */
    unsigned layout;
};
/* A table of tensors. A role may occur several times: import takes the first name that the file has,
 * export writes the first. */
struct arch_tensors {
    const struct arch_tensor *items;
    size_t n;
    const char *base; /* prefix that files may omit ("model."), and that models without a head do omit; or NULL */
    /* Suffixes of buffers that follow from the configuration, NULL-terminated; or NULL. */
    const char *const *derived;
};
/* GGUF's names for all architectures; an architecture's own table is searched first. */
extern const struct arch_tensors gguf_common_tensors;

struct arch;

/* ---- Hugging Face ------------------------------------------------------------------------------------------------ */

/* Names of numeric keys in config.json; NULL: the architecture has no such key, and the default applies. */
struct hf_numbers {
    const char *layers, *hidden, *heads, *kv_heads, *head_dim, *ffn, *context, *eps, *act;
    bool ffn_follows; /* a missing feed-forward width means 4 x hidden */
};
/* Entries of a struct arch_tensor table: the tensor names that many architectures share with Llama. */
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
/* The same for layers with experts: a tensor per expert, or one for all experts, as in transformers 5. */
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
    enum model_output output;
};
/*
 * A class whose config.json contains a language model's configuration in "text_config", and whose files contain its
 * tensors under other names, beside those of other parts (vision). Import takes the language model (hf_part.c).
 */
struct hf_whole {
    const char *class, *model_type;
    const struct hf_key *keys; /* besides "text_config" */
    size_t n_keys;
    struct {
        const char *from, *to;
    } names[4];            /* prefixes: `from` in the file becomes `to` in the language model; ends with NULL */
    const char *others[5]; /* prefixes of the other parts' names; ends with NULL */
};
struct hf_side {
    /* Ends with NULL. Export writes the first class with the model's output; for a file without "architectures", import
     * takes the first class of the model_type. */
    struct hf_class classes[7];
    const struct hf_key *keys; /* the class's own, which take precedence over the common ones */
    size_t n_keys;
    const struct hf_numbers *numbers;
    double eps, theta;  /* defaults of config.json */
    double local_theta; /* default theta of sliding layers with a rotation of their own; 0: they have none */
    enum hf_windows {
        NO_WINDOWS,
        ONE_WINDOW,   /* the same in all layers */
        LAYER_WINDOWS /* in the layers that "layer_types" lists */
    } windows;
    /* Default of "original_max_position_embeddings" if the class has it at the top level; 0: it is among
     * the rotary settings. */
    uint32_t original_context;
    double partial_rotary;          /* default share of a head that rotates; 0: always the whole head */
    uint32_t kv_heads, head_dim;    /* defaults for missing keys; 0: as many as heads, and hidden / heads */
    uint32_t vocab, context, heads; /* defaults for missing keys; 0: the key is required */
    bool tied;                      /* default of "tie_word_embeddings" */
    struct arch_tensors tensors;
    /* Prefixes, after the base, of tensors that the class does not read: heads of pre-training, for another class. They
     * are left out, as in transformers. Ends with NULL; NULL: none. */
    const char *const *unread;
    const struct hf_whole *whole; /* the multimodal class that contains this language model; or NULL */
    /* Reads the rest of config.json, once numbers, rotation, layers and output are set; writes it. NULL: nothing to
     * do. */
    int (*read)(struct model_config *c, const cJSON *json, struct err *e);
    bool (*write)(cJSON *json, const struct model_config *c);
    bool (*zeros)(const struct model_config *c, enum model_role role); /* see out_tensors_make */
    /* ERR_DATA: the class cannot hold this configuration. NULL: it always can. */
    int (*check)(const struct model_config *c, struct err *e);
};

/* Entries for tables of keys: features that a class lacks, whose keys would otherwise be ignored silently. */
#define HF_NO_ROTARY                                                                                                   \
    HF_KEY("rope_theta", HF_OFF), HF_KEY("rope_scaling", HF_OFF), HF_KEY("rope_parameters", HF_OFF),                   \
        HF_KEY("partial_rotary_factor", HF_OFF)
#define HF_NO_WINDOW                                                                                                   \
    HF_KEY("sliding_window", HF_OFF), HF_KEY("use_sliding_window", HF_OFF), HF_KEY("max_window_layers", HF_OFF),       \
        HF_KEY("layer_types", HF_OFF)
/* Heads fill the hidden size, and each has its own K/V head. */
#define HF_PLAIN_HEADS(heads) HF_KEY_TEXT("num_key_value_heads", HF_SAME, heads), HF_KEY("head_dim", HF_OFF)

/* ---- helpers for read, write and check --------------------------------------------------------------------------- */
/* ERR_DATA unless heads are as HF_PLAIN_HEADS requires. */
int hf_check_plain_heads(const struct model_config *c, struct err *e) MUST_CHECK;
/* ERR_DATA unless the head size is hidden / heads, from which transformers derives the size of `what`
 * whatever head_dim says. */
int hf_check_derived_width(const struct model_config *c, const char *what, struct err *e) MUST_CHECK;
/* The share of a head that rotates, such that its product with the head size, which readers truncate, is exact. */
double hf_rotary_share(const struct model_config *c);
int hf_act_of_name(const char *name, uint32_t *act); /* ERR_DATA, without a message: unknown */
int hf_read_act(struct model_config *c, const cJSON *json, const char *key, const char *fallback,
                struct err *e) MUST_CHECK;
const char *hf_act_name(uint32_t act);
/* Reads "layer_types": `window` for layers of "sliding_attention", 0 for "full_attention". *given: the list is present;
 * otherwise windows are unchanged. */
int hf_read_layer_types(struct model_config *c, const cJSON *json, uint32_t window, bool *given,
                        struct err *e) MUST_CHECK;
bool hf_put_layer_types(cJSON *json, const struct model_config *c);
/* "attention_bias" applies to q, k, v and o. */
int hf_read_attention_bias(struct model_config *c, const cJSON *json, struct err *e) MUST_CHECK;
bool hf_put_attention_bias(cJSON *json, const struct model_config *c);
bool hf_attention_bias_zeros(const struct model_config *c, enum model_role role); /* for hf_side.zeros */
/* *window = "sliding_window", or `absent` without the key; 0: no window, or one that is not shorter than the
 * context. */
int hf_read_window(const struct model_config *c, const cJSON *json, uint32_t absent, uint32_t *window,
                   struct err *e) MUST_CHECK;
/* Reads Qwen's window keys: *window = 0 without "use_sliding_window", *first = "max_window_layers"; *given:
 * "layer_types" has set the windows. */
int qwen_read_window_keys(struct model_config *c, const cJSON *json, uint32_t *window, uint64_t *first, bool *given,
                          struct err *e) MUST_CHECK;
int qwen_read_window(struct model_config *c, const cJSON *json, struct err *e) MUST_CHECK; /* Qwen2's and Qwen3's */
bool qwen_put_window(cJSON *json, const struct model_config *c);
/* One window for all layers, as read by hf_read_window, unless "layer_types" is given. */
int hf_read_uniform_window(struct model_config *c, const cJSON *json, uint32_t absent, struct err *e) MUST_CHECK;
bool hf_put_uniform_window(cJSON *json, const struct model_config *c);
/*
 * Layers with experts (experts.c). Reads the number of experts, "num_experts" or "num_local_experts", the
 * number per position, "num_experts_per_tok", and their width; each may be absent. All layers get experts in
 * place of their dense part.
 */
struct hf_experts {
    uint32_t experts, per_token; /* defaults for missing keys */
    const char *width;           /* key of the width; NULL: as wide as dense parts */
    uint32_t absent_width;
};
#define HF_EXPERT_KEYS                                                                                                 \
    HF_KEY("num_experts", HF_READ), HF_KEY("num_experts_per_tok", HF_READ), HF_KEY("norm_topk_prob", HF_READ), {       \
        .name = "num_local_experts", .rule = HF_SAME, .text = "num_experts", .alone = true                             \
    }
int hf_read_experts(struct model_config *c, const cJSON *json, const struct hf_experts *how, struct err *e) MUST_CHECK;
bool hf_put_experts(cJSON *json, const struct model_config *c, const char *count, const char *width);
/* Replaces the experts by a dense part of width `ffn`, "intermediate_size", in layers that "mlp_only_layers" lists or
 * "decoder_sparse_step" skips. Call after hf_read_experts. */
int hf_read_dense_layers(struct model_config *c, const cJSON *json, uint32_t ffn, struct err *e) MUST_CHECK;
bool hf_put_dense_layers(cJSON *json, const struct model_config *c);
/* The value for "intermediate_size" and "feed_forward_length": the width of dense layers, or of
 * experts if there are none. */
uint32_t config_ffn(const struct model_config *c);
/* ERR_DATA unless every layer has experts, and beside them a dense part if `dense`, none otherwise. */
int arch_all_experts(const struct model_config *c, bool dense, struct err *e) MUST_CHECK;
uint32_t config_window(const struct model_config *c); /* of the layers that have one; 0: none has */
/* ERR_DATA unless all layers have the same window, or none has one. */
int arch_uniform_window(const struct model_config *c, struct err *e) MUST_CHECK;
/* ERR_DATA: heads rotate only in part, but the architecture rotates whole heads. */
int arch_check_rotation(const struct arch *a, const struct model_config *c, struct err *e) MUST_CHECK;
/* *window = the length of all windows, 0: there are none. ERR_DATA: lengths differ, which neither format can
 * express. */
int arch_one_window(const struct model_config *c, uint32_t *window, struct err *e) MUST_CHECK;

/* ---- GGUF -------------------------------------------------------------------------------------------------------- */

struct gguf_name {
    const char *name;
    bool interleaved; /* the two rows of a rotary pair of q and k are adjacent */
};
/* Features that llama.cpp's loader of an architecture does not support. */
enum {
    LACKS_O_BIAS = 1,
    LACKS_LLAMA3 = 2,     /* the tensor rope_freqs.weight */
    LACKS_HEAD_WIDTH = 4, /* heads whose total width is not that of the residual stream */
    LACKS_TIED = 8,
    LACKS_LONG = 16, /* the tensors rope_factors_short.weight and rope_factors_long.weight */
};
struct gguf_side {
    /* Export writes the first; ends with NULL. None: GGUF does not know the architecture. */
    struct gguf_name names[3];
    struct gguf_name uneven; /* name to write if layers differ; NULL: GGUF cannot hold such a model */
    bool (*needs_uneven)(const struct model_config *c); /* needs `uneven` for another reason; NULL: never */
    bool windows;                                       /* llama.cpp supports windows; read and write handle them */
    unsigned lacks;                                     /* LACKS_... */
    bool experts;                /* distinguishes architectures of one name: this one has experts ("expert_count") */
    const struct gguf_key *keys; /* the architecture's own */
    size_t n_keys;
    struct arch_tensors tensors; /* those that differ from the common ones */
    int (*read)(struct model_config *c, const struct gguf_file *g, const char *prefix, struct arena *a, struct err *e);
    void (*write)(struct gguf_header *h, const struct model_config *c);
    /* ERR_DATA: llama.cpp cannot load it. NULL: it always can. */
    int (*check)(const struct model_config *c, struct err *e);
};

/*
 * For read and write: the activation. llama.cpp has no key for it, but one activation per architecture. If it is not
 * `usual`, an additional key, which llama.cpp ignores, has transformers' name for it.
 */
int gguf_read_act(struct model_config *c, const struct gguf_file *g, const char *prefix, struct arena *a,
                  struct err *e) MUST_CHECK;
void gguf_put_act(struct gguf_header *h, const struct model_config *c, uint32_t usual);
/* For read and write (gguf_windows.c). Reads "attention.sliding_window" (`window` if absent) into the layers
 * that "attention.sliding_window_pattern" selects: a flag per layer, or N for all but every N-th layer
 * (`pattern` if absent). */
int gguf_read_windows(struct model_config *c, const struct gguf_file *g, const char *prefix, uint32_t window,
                      uint32_t pattern, struct err *e) MUST_CHECK;
/* Writes both keys; the pattern only if it is not the one that readers assume. */
void gguf_put_windows(struct gguf_header *h, const struct model_config *c, uint32_t window, uint32_t pattern);

/* For keys, read and write of architectures with experts in all layers (experts.c). `norm`: are expert weights divided
 * by their sum? llama.cpp has one answer per architecture, which gguf_check_experts requires. */
#define GGUF_EXPERT_KEYS(norm)                                                                                         \
    {"expert_count", GGUF_READ, 0, NULL}, {"expert_used_count", GGUF_READ, 0, NULL},                                   \
        {"expert_feed_forward_length", GGUF_READ, 0, NULL}, {"expert_gating_func", GGUF_NUMBER, 1, NULL},              \
        {"expert_weights_scale", GGUF_NUMBER, 1, NULL}, {                                                              \
        "expert_weights_norm", norm ? GGUF_NUMBER : GGUF_OFF, 1, NULL                                                  \
    }
int gguf_read_experts(struct model_config *c, const struct gguf_file *g, const char *prefix, struct arena *a,
                      struct err *e) MUST_CHECK;
void gguf_put_experts(struct gguf_header *h, const struct model_config *c);
void gguf_put_wide_experts(struct gguf_header *h, const struct model_config *c); /* also writes the width of experts */
int gguf_check_experts(const struct model_config *c, bool dense, bool norm, struct err *e) MUST_CHECK;

struct arch {
    const char *name;                         /* name in streams */
    const char *models;                       /* models of this architecture, for help */
    struct model_config traits;               /* what all of its models compute, without shapes */
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

/* *out = the architecture of c. ERR_DATA: unknown; the message lists the known ones. */
int arch_of_config(const struct model_config *c, const struct arch **out, struct err *e) MUST_CHECK;
/* Set the error that lists the known ones and return ERR_DATA. */
int arch_class_unknown(const char *class, struct err *e);
int arch_gguf_unknown(const char *name, struct err *e);
/* NULL: unknown; *spelled: the entry with this name. */
const struct arch *arch_by_gguf(const char *name, bool experts, const struct gguf_name **spelled);
/* Also return the class: for a model_type, the first one that has it. NULL: unknown. */
const struct arch *arch_by_class(const char *name, const struct hf_class **class);
const struct arch *arch_by_model_type(const char *type, const struct hf_class **class);
/* The class with this configuration's output; NULL: none. */
const struct hf_class *arch_class(const struct arch *a, const struct model_config *c);
/* GGUF's name for a model of this configuration; NULL: it has none. */
const struct gguf_name *arch_gguf_name(const struct arch *a, const struct model_config *c);

/* ---- a tensor of a role in a file -------------------------------------------------------------------------------- */

/* Where a role's tensor is in the file, or where export puts it. */
struct arch_place {
    const struct arch_tensor *tensor;
    const struct arch_tensors *table;
    char name[TENSOR_MAX_NAME + 1]; /* in the file */
    uint64_t first, total;          /* first row of the role in the file's tensor; rows of that tensor */
    uint64_t stacked;               /* STACKED: number of experts */
    uint64_t part, parts;           /* FUSED_HEADS: rows of the role per head; rows of all roles per head */
    uint64_t missing;               /* FROM_FIRST: leading rows that the file lacks; import fills them with zeros */
};
/* Import: finds the first of the role's names that the file has. NULL: it has none; then place->name is the first
 * name. */
struct raw_tensor *arch_find(const struct arch_tensors *own, const struct arch_tensors *common,
                             const struct model_config *c, struct model_slot s, const struct raw_table *files,
                             struct arch_place *place);
/* The entry of the table that gives the role this name; NULL: none. */
const struct arch_tensor *arch_named(const struct arch_tensors *table, struct model_slot s, const char *name);
/* Do such models have the tensor in this layer (OF_CLASSES, ...)? */
bool arch_is_of(const struct model_config *c, const struct arch_tensor *t, uint32_t layer);
/* Export: where the role's tensor goes. False: the format has no name for it. */
bool arch_place(const struct arch_tensors *own, const struct arch_tensors *common, const struct model_config *c,
                struct model_slot s, struct arch_place *place);
/* A place in the table for the role alone, if `p` fuses it with others; false: there is none. */
bool arch_place_apart(const struct arch_place *p, const struct model_config *c, struct model_slot s,
                      struct arch_place *apart);
/* dims = the shape of the file's tensor for this slot; returns its rank. */
unsigned arch_foreign_shape(const struct model_config *c, struct model_slot s, const struct arch_place *p,
                            uint64_t dims[3]);
/* Is the data laid out as in the slot? Then *offset = its first byte in the file's tensor; otherwise
 * it must be rearranged. */
bool arch_lies_plain(const struct arch_place *p, enum dtype dtype, uint64_t cols, uint64_t *offset);
/* Copies the role's part of the file's tensor to to[rows][cols], both of `dtype`. The caller handles MINUS_ONE. */
void arch_gather(const struct arch_place *p, enum dtype dtype, uint64_t rows, uint64_t cols, const void *from,
                 void *to);
/* The reverse: writes the role's part of the file's tensor. */
void arch_scatter(const struct arch_place *p, enum dtype dtype, uint64_t rows, uint64_t cols, const void *from,
                  void *to);

/* ---- names of classes (labels.c) --------------------------------------------------------------------------------- */

#define LABELS_KEY "labels" /* in META */
#define LABEL_SIZE 24
/* Put the class names of a classifier into f->extra, from "id2label" or from ARCH.classifier.output_labels (NULL:
 * absent). ERR_DATA: a class has no name. */
int labels_from_hf(struct foreign_model *f, const cJSON *config, struct err *e) MUST_CHECK;
int labels_from_gguf(struct foreign_model *f, const struct gguf_kv *kv, struct err *e) MUST_CHECK;
/* The name in META, or "LABEL_3", written to `out`. */
const char *label_of(const cJSON *meta, uint32_t class, char out[LABEL_SIZE]);
bool labels_to_hf(cJSON *config, const struct model_config *c, const cJSON *meta); /* "id2label" and its reverse */

/* ---- tensors for export (export_tensors.c) ----------------------------------------------------------------------- */

/* A tensor of the file: of one slot, or of several slots that it fuses. */
struct out_tensor {
    char name[TENSOR_MAX_NAME + 1];
    unsigned rank;
    uint64_t dims[3];
    enum dtype stored; /* type in the stream */
    enum model_role_kind kind;
    size_t n_slots;
    struct model_slot *slots; /* [n_slots] */
    struct arch_place *places;
};
struct out_tensors {
    /* Set by the caller before out_tensors_make: no quantized blocks are written, so any types may be fused. */
    bool by_value;
    struct out_tensor *items; /* in the arena of the export_source */
    size_t n;
};
/* Makes the list of the file's tensors. zeros (or NULL): does the format require zeros for this bias, which the model
 * lacks? ERR_DATA: the format has no name for a tensor, or tensors to be fused have different quantized types. */
int out_tensors_make(struct out_tensors *t, struct export_source *x, const struct arch_tensors *own,
                     const struct arch_tensors *common, bool (*zeros)(const struct model_config *, enum model_role),
                     struct err *e) MUST_CHECK;
/* For a source without a map, before the types are known: do tensor names depend on the types, because the format has
 * other names for parts of different types? */
bool out_tensors_follow_types(const struct out_tensors *t, const struct export_source *x);
/* Part number `part` has type `stored` in the stream. ERR_DATA: the tensor cannot hold it together
 * with its other parts. */
int out_tensor_join(const struct out_tensors *t, struct out_tensor *to, size_t part, enum dtype stored,
                    struct err *e) MUST_CHECK;
void out_tensor_like_last(struct out_tensors *t, size_t i); /* sets the type of zeros: that of the tensor before them */
uint64_t out_tensor_bytes(const struct out_tensor *t, enum dtype as);
/* *data = the tensor as it is in the file, rotary rows interleaved or not; valid until the next call. */
int out_tensor_data(struct export_source *x, const struct out_tensor *t, enum dtype as, bool interleaved,
                    const void **data, struct err *e) MUST_CHECK;
/* The same for the part of slot i alone, before it is scattered. */
int out_tensor_part(struct export_source *x, const struct out_tensor *t, size_t i, enum dtype as, bool interleaved,
                    const void **data, struct tensor_desc *d, struct err *e) MUST_CHECK;

/* ---- tensors that arrive in stream order (export_arrive.c) ------------------------------------------------------- */

/*
 * Writes each tensor of a stream that can be read only once to its place in a file as it arrives. The file's tensors
 * are in the order in which their first parts arrive, and that part decides the type. Parts of stacked experts are
 * written at once; other fused tensors are held until all parts have arrived (q, k and v of a layer).
 */
struct arrivals {
    struct export_source *x; /* has no map */
    struct out_tensors *tensors;
    bool interleaved;
    void *ctx;
    /* Returns the type in the file, once t->stored is known. */
    enum dtype (*type)(void *ctx, const struct out_tensor *t);
    /* Reserves space for tensor i; called in order. *fd, *at = descriptor and offset. */
    int (*place)(void *ctx, size_t i, uint64_t bytes, int *fd, uint64_t *at, struct err *e);
    int (*done)(void *ctx, size_t i, struct err *e); /* called when tensor i is complete; may be NULL */
    /* Private: */
    struct arrival_part *parts; /* by slot of x->config */
    struct arrival_spot *spots; /* by tensor */
    size_t placed;
};
/* Call after out_tensors_make, with the members above set. */
int arrivals_begin(struct arrivals *a, struct err *e) MUST_CHECK;
/* Takes the tensor of slot s; ignores a slot that the file leaves out. ERR_DATA: its type does not fit the file's
 * tensor, whose type is already decided. */
int arrivals_take(struct arrivals *a, struct model_slot s, const struct tensor_desc *d, const void *data,
                  struct err *e) MUST_CHECK;
int arrivals_end(struct arrivals *a, struct err *e) MUST_CHECK; /* writes zeros that follow the last tensor */
int write_at(int fd, uint64_t at, const void *data, uint64_t n, struct err *e) MUST_CHECK;
/* Copies the rest of a stream, whose head has been read, to an unnamed file in TMPDIR, for random access. */
int export_spool(struct stream_map **out, struct stream_reader *in, const struct model_head *h,
                 struct stream_item *item, struct err *e) MUST_CHECK;

/* ---- GGUF export (gguf_write.c, gguf_stream.c) ------------------------------------------------------------------- */

struct gguf_out {
    struct export_source x;
    const struct arch *arch;
    const struct gguf_name *name;
    struct out_tensors tensors; /* under GGUF's names */
    size_t file_type_at;        /* offset of general.file_type in the keys */
};
/* Consecutive tensors that go into one file. The rotary factors, which are not tensors of the model, precede tensor
 * 0. */
struct gguf_range {
    size_t from, to;
};
/* Opens a stream whose tensors have not arrived yet, so that their types are unknown.
 * export_release(&o->x) in any case. */
int gguf_out_open_arriving(struct gguf_out *o, const struct model_head *h, struct err *e) MUST_CHECK;
/* Vectors are always f32, and so are tables of positions and types, because llama.cpp adds them unconverted. */
enum dtype gguf_out_type(const struct out_tensor *t);
/* ERR_DATA: llama.cpp does not support weights of this type. */
int gguf_out_check_type(const struct out_tensor *t, struct err *e) MUST_CHECK;
/* Writes the model's keys; gguf_out_label sets general.file_type among them once the types are known. */
int gguf_out_keys(struct gguf_header *keys, struct gguf_out *o, const char *name, struct err *e) MUST_CHECK;
int gguf_out_label(struct gguf_header *keys, const struct gguf_out *o, struct err *e) MUST_CHECK;
void gguf_out_infos(struct gguf_header *h, const struct gguf_out *o, struct gguf_range r);

#endif
