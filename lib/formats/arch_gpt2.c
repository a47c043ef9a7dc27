/* GPT-2 (Radford et al. 2019; DistilGPT2) and models trained with its class, such as Cerebras-GPT (Dey et al. 2023). */
#include "lib/formats/arch_internal.h"

static const struct hf_key keys[] = {
    HF_KEY("n_embd", HF_READ),
    HF_KEY("n_layer", HF_READ),
    HF_KEY("n_head", HF_READ),
    HF_KEY("n_positions", HF_READ),
    HF_KEY("n_inner", HF_READ),
    HF_KEY("activation_function", HF_READ),
    HF_KEY("layer_norm_epsilon", HF_READ),
    HF_KEY("scale_attn_weights", HF_READ),
    HF_KEY("scale_attn_by_inverse_layer_idx", HF_OFF),
    HF_KEY("reorder_and_upcast_attn", HF_READ), /* order of operations, for training in f16 */
    HF_KEY("summary_type", HF_READ),            /* this and the next ones: the summary of GPT2DoubleHeadsModel */
    HF_KEY("summary_use_proj", HF_READ),
    HF_KEY("summary_activation", HF_READ),
    HF_KEY("summary_proj_to_labels", HF_READ),
    HF_KEY("summary_first_dropout", HF_READ),
    HF_KEY("_num_labels", HF_READ),
    HF_KEY_TEXT("hidden_size", HF_SAME, "n_embd"),
    HF_KEY_TEXT("num_hidden_layers", HF_SAME, "n_layer"),
    HF_KEY_TEXT("num_attention_heads", HF_SAME, "n_head"),
    HF_KEY_TEXT("max_position_embeddings", HF_SAME, "n_positions"),
    HF_KEY_TEXT("intermediate_size", HF_SAME, "n_inner"),
    HF_KEY_TEXT("hidden_act", HF_SAME, "activation_function"),
    HF_KEY_TEXT("rms_norm_eps", HF_SAME, "layer_norm_epsilon"),
    HF_KEY_TEXT("position_embedding_type", HF_TEXT, "learned|absolute|learned_absolute"),
    HF_PLAIN_HEADS("n_head"),
    HF_NO_ROTARY,
    HF_NO_WINDOW,
};

static const struct hf_numbers numbers = {.layers = "n_layer",
                                          .hidden = "n_embd",
                                          .heads = "n_head",
                                          .ffn = "n_inner",
                                          .context = "n_positions",
                                          .eps = "layer_norm_epsilon",
                                          .act = "activation_function",
                                          .ffn_follows = true};

/* Conv1D weights are [in][out], so q, k and v are column blocks of one matrix. */
#define QKV (TRANSPOSED | FUSED_ROWS)
static const struct arch_tensor tensors[] = {
    {ROLE_EMBED, "transformer.wte.weight", 0},
    {ROLE_POSITION_EMBED, "transformer.wpe.weight", 0},
    {ROLE_ATTN_NORM, "transformer.h.#.ln_1.weight", 0},
    {ROLE_ATTN_NORM_BIAS, "transformer.h.#.ln_1.bias", 0},
    {ROLE_Q, "transformer.h.#.attn.c_attn.weight", QKV},
    {ROLE_K, "transformer.h.#.attn.c_attn.weight", QKV},
    {ROLE_V, "transformer.h.#.attn.c_attn.weight", QKV},
    {ROLE_Q_BIAS, "transformer.h.#.attn.c_attn.bias", FUSED_ROWS},
    {ROLE_K_BIAS, "transformer.h.#.attn.c_attn.bias", FUSED_ROWS},
    {ROLE_V_BIAS, "transformer.h.#.attn.c_attn.bias", FUSED_ROWS},
    {ROLE_O, "transformer.h.#.attn.c_proj.weight", TRANSPOSED},
    {ROLE_O_BIAS, "transformer.h.#.attn.c_proj.bias", 0},
    {ROLE_FFN_NORM, "transformer.h.#.ln_2.weight", 0},
    {ROLE_FFN_NORM_BIAS, "transformer.h.#.ln_2.bias", 0},
    {ROLE_UP, "transformer.h.#.mlp.c_fc.weight", TRANSPOSED},
    {ROLE_UP_BIAS, "transformer.h.#.mlp.c_fc.bias", 0},
    {ROLE_DOWN, "transformer.h.#.mlp.c_proj.weight", TRANSPOSED},
    {ROLE_DOWN_BIAS, "transformer.h.#.mlp.c_proj.bias", 0},
    {ROLE_NORM, "transformer.ln_f.weight", 0},
    {ROLE_NORM_BIAS, "transformer.ln_f.bias", 0},
    {ROLE_HEAD, "lm_head.weight", 0},
};
static const char *const masks[] = {".attn.bias", ".attn.masked_bias", NULL}; /* the causal mask */

static int read(struct model_config *c, const cJSON *json, struct err *e) {
    bool scaled = true;
    int rc = json_opt_bool(json, "scale_attn_weights", &scaled, e);
    if (!scaled) c->attn_scale = 1;
    return rc;
}

static bool write(cJSON *json, const struct model_config *c) {
    return json_put_bool(json, "scale_attn_weights", c->attn_scale == 0);
}

static int check_biases(const struct model_config *c, struct err *e) {
    if (c->qkv_bias && c->o_bias && c->ffn_bias && c->norm_bias) return 0;
    return err_set(e, ERR_DATA, "a gpt2 model without biases: GPT-2's class always has them");
}

static int check(const struct model_config *c, struct err *e) {
    if (c->attn_scale != 0 && c->attn_scale != 1)
        return err_set(e, ERR_DATA, "scores scaled by %g: \"scale_attn_weights\" knows 1 and the root of the head size",
                       (double)c->attn_scale);
    int rc = check_biases(c, e);
    return rc ? rc : hf_check_plain_heads(c, e);
}

/* ---- GGUF ---- */

static const struct gguf_key gguf_keys[] = {
    {"attention.layer_norm_epsilon", GGUF_READ, 0, NULL},
    {"attention.layer_norm_rms_epsilon", GGUF_SAME, 0, "attention.layer_norm_epsilon"},
    {"hidden_activation", GGUF_READ, 0, NULL},
    {"rope.freq_base", GGUF_OFF, 0, NULL},
    {"rope.dimension_count", GGUF_OFF, 0, NULL},
    {"rope.scaling.type", GGUF_TEXT, 0, "none"},
    {"rope.scaling.factor", GGUF_NUMBER, 1, NULL},
    {"rope.scale_linear", GGUF_NUMBER, 1, NULL},
};

/* llama.cpp requires q, k and v in one tensor; older files have three. */
static const struct arch_tensor gguf_tensors[] = {
    {ROLE_Q, "blk.#.attn_qkv.weight", FUSED_ROWS},    {ROLE_K, "blk.#.attn_qkv.weight", FUSED_ROWS},
    {ROLE_V, "blk.#.attn_qkv.weight", FUSED_ROWS},    {ROLE_Q_BIAS, "blk.#.attn_qkv.bias", FUSED_ROWS},
    {ROLE_K_BIAS, "blk.#.attn_qkv.bias", FUSED_ROWS}, {ROLE_V_BIAS, "blk.#.attn_qkv.bias", FUSED_ROWS},
};

static int gguf_read(struct model_config *c, const struct gguf_file *g, const char *prefix, struct arena *a,
                     struct err *e) {
    c->qkv_bias = c->o_bias = true;
    return gguf_read_act(c, g, prefix, a, e);
}

static void gguf_write(struct gguf_header *h, const struct model_config *c) {
    gguf_put_act(h, c, ACT_GELU_TANH);
}

/* llama.cpp's gpt2 supports shared K/V heads. */
static int gguf_check(const struct model_config *c, struct err *e) {
    const struct model_layer *l = &c->layers[0];
    if ((uint64_t)l->n_heads * c->head_dim != c->hidden)
        return err_set(e, ERR_DATA, "%u heads of %u do not fill the hidden size %u, which llama.cpp's gpt2 requires",
                       l->n_heads, c->head_dim, c->hidden);
    if (c->attn_scale != 0) return err_set(e, ERR_DATA, "scores that are not scaled: llama.cpp's gpt2 scales them");
    if (c->act != ACT_GELU_TANH && c->act != ACT_GELU)
        return err_set(e, ERR_DATA, "activation %s: llama.cpp's gpt2 has GELU", hf_act_name(c->act));
    return check_biases(c, e);
}

const struct arch arch_gpt2 = {
    .name = "gpt2",
    .models = "GPT-2, DistilGPT2, Cerebras-GPT",
    .traits = {.positions = POSITIONS_LEARNED,
               .norm = NORM_LAYER,
               .norm_bias = true,
               .qkv_bias = true,
               .o_bias = true,
               .ffn_kind = FFN_PLAIN,
               .act = ACT_GELU_TANH,
               .ffn_bias = true},
    .hf = {.classes = {{"GPT2LMHeadModel", "gpt2"}},
           .keys = keys,
           .n_keys = COUNT_OF(keys),
           .numbers = &numbers,
           .eps = 1e-5,
           .tied = true,
           .tensors = {tensors, COUNT_OF(tensors), "transformer.", masks},
           .read = read,
           .write = write,
           .check = check},
    .gguf = {.names = {{"gpt2", false}},
             .keys = gguf_keys,
             .n_keys = COUNT_OF(gguf_keys),
             .tensors = {gguf_tensors, COUNT_OF(gguf_tensors), NULL, NULL},
             .read = gguf_read,
             .write = gguf_write,
             .check = gguf_check},
};
