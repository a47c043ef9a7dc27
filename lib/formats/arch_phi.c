/*
 * Phi-1, Phi-1.5 and Phi-2 (Gunasekar et al. 2023, Li et al. 2023): attention and feed-forward part in
 * parallel after one LayerNorm, a rotation of only part of each head, biases everywhere, optionally a
 * LayerNorm on each head of q and k.
 */
#include "lib/formats/arch_internal.h"

static const struct hf_key keys[] = {
    HF_KEY("layer_norm_eps", HF_READ),
    HF_KEY("hidden_act", HF_READ),
    HF_KEY_TEXT("rms_norm_eps", HF_SAME, "layer_norm_eps"),
    HF_KEY("qk_layernorm", HF_READ),
    HF_KEY("sliding_window", HF_OFF),
    HF_KEY("use_sliding_window", HF_OFF),
    HF_KEY("layer_types", HF_OFF),
};

static const struct hf_numbers numbers = {"num_hidden_layers",       "hidden_size",    "num_attention_heads",
                                          "num_key_value_heads",     "head_dim",       "intermediate_size",
                                          "max_position_embeddings", "layer_norm_eps", "hidden_act"};

static const struct arch_tensor tensors[] = {
    {ROLE_EMBED, "model.embed_tokens.weight", 0},
    {ROLE_ATTN_NORM, "model.layers.#.input_layernorm.weight", 0},
    {ROLE_ATTN_NORM_BIAS, "model.layers.#.input_layernorm.bias", 0},
    {ROLE_Q, "model.layers.#.self_attn.q_proj.weight", 0},
    {ROLE_K, "model.layers.#.self_attn.k_proj.weight", 0},
    {ROLE_V, "model.layers.#.self_attn.v_proj.weight", 0},
    {ROLE_Q_BIAS, "model.layers.#.self_attn.q_proj.bias", 0},
    {ROLE_K_BIAS, "model.layers.#.self_attn.k_proj.bias", 0},
    {ROLE_V_BIAS, "model.layers.#.self_attn.v_proj.bias", 0},
    {ROLE_Q_NORM, "model.layers.#.self_attn.q_layernorm.weight", 0},
    {ROLE_Q_NORM_BIAS, "model.layers.#.self_attn.q_layernorm.bias", 0},
    {ROLE_K_NORM, "model.layers.#.self_attn.k_layernorm.weight", 0},
    {ROLE_K_NORM_BIAS, "model.layers.#.self_attn.k_layernorm.bias", 0},
    {ROLE_O, "model.layers.#.self_attn.dense.weight", 0},
    {ROLE_O_BIAS, "model.layers.#.self_attn.dense.bias", 0},
    {ROLE_UP, "model.layers.#.mlp.fc1.weight", 0},
    {ROLE_UP_BIAS, "model.layers.#.mlp.fc1.bias", 0},
    {ROLE_DOWN, "model.layers.#.mlp.fc2.weight", 0},
    {ROLE_DOWN_BIAS, "model.layers.#.mlp.fc2.bias", 0},
    {ROLE_NORM, "model.final_layernorm.weight", 0},
    {ROLE_NORM_BIAS, "model.final_layernorm.bias", 0},
    {ROLE_HEAD, "lm_head.weight", 0},
    {ROLE_HEAD_BIAS, "lm_head.bias", 0},
};

static int read(struct model_config *c, const cJSON *json, struct err *e) {
    bool norms = false;
    int rc = json_opt_bool(json, "qk_layernorm", &norms, e);
    c->qk_norm = norms ? QK_NORM_LAYER : QK_NORM_NONE;
    return rc;
}

static bool write(cJSON *json, const struct model_config *c) {
    return c->qk_norm == QK_NORM_NONE || json_put_bool(json, "qk_layernorm", true);
}

/* PhiAttention reads head_dim, but its q_layernorm and k_layernorm use hidden size / heads. */
static int check(const struct model_config *c, struct err *e) {
    return c->qk_norm == QK_NORM_NONE ? 0 : hf_check_derived_width(c, "the norms of q and k", e);
}

static const struct gguf_key gguf_keys[] = {
    {"attention.layer_norm_epsilon", GGUF_READ, 0, NULL},
};

/* llama.cpp uses LLM_FFN_GELU, which ggml computes in the tanh form. */
static int gguf_check(const struct model_config *c, struct err *e) {
    if (c->qk_norm != QK_NORM_NONE)
        return err_set(e, ERR_DATA,
                       "norms of the heads of q and k (qk_layernorm), which llama.cpp's phi2 does not have");
    if (c->act == ACT_GELU_TANH) return 0;
    return err_set(e, ERR_DATA, "activation %s, where llama.cpp's phi2 has gelu_new", hf_act_name(c->act));
}

const struct arch arch_phi = {
    .name = "phi",
    .models = "Phi-1, Phi-1.5, Phi-2",
    .traits = {.norm = NORM_LAYER,
               .norm_bias = true,
               .parallel = true,
               .shared_norm = true,
               .qkv_bias = true,
               .o_bias = true,
               .ffn_kind = FFN_PLAIN,
               .act = ACT_GELU_TANH,
               .ffn_bias = true,
               .head_bias = true},
    .hf = {.classes = {{"PhiForCausalLM", "phi"}},
           .keys = keys,
           .n_keys = COUNT_OF(keys),
           .numbers = &numbers,
           .eps = 1e-5,
           .theta = 10000,
           .partial_rotary = 0.5,
           .tensors = {tensors, COUNT_OF(tensors), "model."},
           .read = read,
           .write = write,
           .check = check},
    .gguf = {.names = {{"phi2", false}},
             .lacks = LACKS_LLAMA3 | LACKS_LONG | LACKS_HEAD_WIDTH | LACKS_TIED,
             .keys = gguf_keys,
             .n_keys = COUNT_OF(gguf_keys),
             .check = gguf_check},
};
