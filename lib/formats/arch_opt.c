/* OPT (Zhang et al. 2022): learned positions that start at row 2 of their table. 350m is post-norm without a final
 * norm, and its embedding is narrower than its layers. llama.cpp does not support OPT. */
#include "lib/formats/arch_internal.h"

static const struct hf_key keys[] = {
    HF_KEY("ffn_dim", HF_READ),
    HF_KEY("activation_function", HF_READ),
    HF_KEY("do_layer_norm_before", HF_READ),
    HF_KEY("_remove_final_layer_norm", HF_READ),
    HF_KEY("word_embed_proj_dim", HF_READ),
    HF_KEY("enable_bias", HF_READ),
    HF_KEY("layer_norm_elementwise_affine", HF_TRUE),
    HF_KEY("init_std", HF_READ), /* for training, as the next one */
    HF_KEY("activation_dropout", HF_READ),
    HF_KEY("output_projection", HF_TRUE), /* always so in the class, as the next three */
    HF_KEY("share_decoder_input_output_embed", HF_TRUE),
    HF_KEY("learned_embeddings", HF_TRUE),
    HF_KEY("scale_embeddings", HF_OFF),
    HF_KEY_TEXT("intermediate_size", HF_SAME, "ffn_dim"),
    HF_KEY_TEXT("hidden_act", HF_SAME, "activation_function"),
    HF_KEY_NUMBER("rms_norm_eps", 1e-5),
    HF_KEY_NUMBER("layer_norm_eps", 1e-5),
    HF_KEY_NUMBER("layer_norm_epsilon", 1e-5),
    HF_KEY_TEXT("position_embedding_type", HF_TEXT, "learned|absolute|learned_absolute"),
    HF_PLAIN_HEADS("num_attention_heads"),
    HF_NO_ROTARY,
    HF_NO_WINDOW,
};

static const struct hf_numbers numbers = {.layers = "num_hidden_layers",
                                          .hidden = "hidden_size",
                                          .heads = "num_attention_heads",
                                          .ffn = "ffn_dim",
                                          .context = "max_position_embeddings",
                                          .act = "activation_function"};

/* The norms of a layer have the same names in pre-norm and post-norm models. */
#define LAYER(rest) "model.decoder.layers.#." rest
static const struct arch_tensor tensors[] = {
    {ROLE_EMBED, "model.decoder.embed_tokens.weight", 0},
    {ROLE_EMBED_PROJECTION, "model.decoder.project_in.weight", 0},
    {ROLE_POSITION_EMBED, "model.decoder.embed_positions.weight", 0},
    {ROLE_ATTN_NORM, LAYER("self_attn_layer_norm.weight"), 0},
    {ROLE_ATTN_NORM_BIAS, LAYER("self_attn_layer_norm.bias"), 0},
    {ROLE_Q, LAYER("self_attn.q_proj.weight"), 0},
    {ROLE_K, LAYER("self_attn.k_proj.weight"), 0},
    {ROLE_V, LAYER("self_attn.v_proj.weight"), 0},
    {ROLE_Q_BIAS, LAYER("self_attn.q_proj.bias"), 0},
    {ROLE_K_BIAS, LAYER("self_attn.k_proj.bias"), 0},
    {ROLE_V_BIAS, LAYER("self_attn.v_proj.bias"), 0},
    {ROLE_O, LAYER("self_attn.out_proj.weight"), 0},
    {ROLE_O_BIAS, LAYER("self_attn.out_proj.bias"), 0},
    {ROLE_ATTN_POST_NORM, LAYER("self_attn_layer_norm.weight"), 0},
    {ROLE_ATTN_POST_NORM_BIAS, LAYER("self_attn_layer_norm.bias"), 0},
    {ROLE_FFN_NORM, LAYER("final_layer_norm.weight"), 0},
    {ROLE_FFN_NORM_BIAS, LAYER("final_layer_norm.bias"), 0},
    {ROLE_UP, LAYER("fc1.weight"), 0},
    {ROLE_UP_BIAS, LAYER("fc1.bias"), 0},
    {ROLE_DOWN, LAYER("fc2.weight"), 0},
    {ROLE_DOWN_BIAS, LAYER("fc2.bias"), 0},
    {ROLE_FFN_POST_NORM, LAYER("final_layer_norm.weight"), 0},
    {ROLE_FFN_POST_NORM_BIAS, LAYER("final_layer_norm.bias"), 0},
    {ROLE_NORM, "model.decoder.final_layer_norm.weight", 0},
    {ROLE_NORM_BIAS, "model.decoder.final_layer_norm.bias", 0},
    {ROLE_HEAD_PROJECTION, "model.decoder.project_out.weight", 0},
    {ROLE_HEAD, "lm_head.weight", 0},
};

static int read(struct model_config *c, const cJSON *json, struct err *e) {
    bool before = true, remove = false, biases = true;
    uint64_t width = c->hidden;
    int rc = json_opt_bool(json, "do_layer_norm_before", &before, e);
    if (!rc) rc = json_opt_bool(json, "_remove_final_layer_norm", &remove, e);
    if (!rc) rc = json_opt_bool(json, "enable_bias", &biases, e);
    if (!rc) rc = json_opt_u64(json, "word_embed_proj_dim", 1, MODEL_MAX_DIM, &width, e);
    c->norm_place = before ? NORM_PRE : NORM_POST;
    c->no_final_norm = !before || remove;
    c->qkv_bias = c->o_bias = c->ffn_bias = biases;
    c->embed_dim = width != c->hidden ? (uint32_t)width : 0;
    return rc;
}

static bool write(cJSON *json, const struct model_config *c) {
    bool before = c->norm_place == NORM_PRE;
    return json_put_bool(json, "do_layer_norm_before", before) &&
           json_put_bool(json, "_remove_final_layer_norm", before && c->no_final_norm) &&
           json_put_bool(json, "enable_bias", c->qkv_bias) &&
           json_put_u64(json, "word_embed_proj_dim", model_embed_dim(c));
}

static int check(const struct model_config *c, struct err *e) {
    if (c->norm_eps != 1e-5f)
        return err_set(e, ERR_DATA, "norm epsilon %g: OPT's class has 1e-05, and no key for another",
                       (double)c->norm_eps);
    if (c->qkv_bias != c->o_bias || c->qkv_bias != c->ffn_bias)
        return err_set(e, ERR_DATA, "biases in some linear maps only: OPT's \"enable_bias\" speaks of all");
    return hf_check_plain_heads(c, e);
}

const struct arch arch_opt = {
    .name = "opt",
    .models = "OPT",
    .traits = {.positions = POSITIONS_LEARNED,
               .position_offset = 2,
               .norm = NORM_LAYER,
               .norm_bias = true,
               .qkv_bias = true,
               .o_bias = true,
               .ffn_kind = FFN_PLAIN,
               .act = ACT_RELU,
               .ffn_bias = true},
    .hf = {.classes = {{"OPTForCausalLM", "opt"}},
           .keys = keys,
           .n_keys = COUNT_OF(keys),
           .numbers = &numbers,
           .eps = 1e-5,
           .tied = true,
           .tensors = {tensors, COUNT_OF(tensors), "model.", NULL},
           .read = read,
           .write = write,
           .check = check},
};
