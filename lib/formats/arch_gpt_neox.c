/* GPT-NeoX (Black et al. 2022) and Pythia (Biderman et al. 2023): attention and feed-forward part in parallel, a
 * rotation of only part of each head, and q, k and v fused in one matrix head by head. */
#include "lib/formats/arch_internal.h"

static const struct hf_key keys[] = {
    HF_KEY("hidden_act", HF_READ),
    HF_KEY("layer_norm_eps", HF_READ),
    HF_KEY("use_parallel_residual", HF_READ),
    HF_KEY("attention_bias", HF_READ),
    HF_KEY("rotary_pct", HF_READ),
    HF_KEY("rotary_emb_base", HF_READ),
    /* transformers 4 writes these two at the top level beside the two above, but reads neither */
    HF_KEY_TEXT("rope_theta", HF_SAME, "rotary_emb_base"),
    HF_KEY_TEXT("partial_rotary_factor", HF_SAME, "rotary_pct"),
    HF_KEY_TEXT("rms_norm_eps", HF_SAME, "layer_norm_eps"),
    HF_KEY_TEXT("layer_norm_epsilon", HF_SAME, "layer_norm_eps"),
    HF_PLAIN_HEADS("num_attention_heads"),
    HF_NO_WINDOW,
};

static const struct hf_numbers numbers = {.layers = "num_hidden_layers",
                                          .hidden = "hidden_size",
                                          .heads = "num_attention_heads",
                                          .ffn = "intermediate_size",
                                          .context = "max_position_embeddings",
                                          .eps = "layer_norm_eps",
                                          .act = "hidden_act"};

#define LAYER(rest) "gpt_neox.layers.#." rest
static const struct arch_tensor tensors[] = {
    {ROLE_EMBED, "gpt_neox.embed_in.weight", 0},
    {ROLE_ATTN_NORM, LAYER("input_layernorm.weight"), 0},
    {ROLE_ATTN_NORM_BIAS, LAYER("input_layernorm.bias"), 0},
    {ROLE_Q, LAYER("attention.query_key_value.weight"), FUSED_HEADS},
    {ROLE_K, LAYER("attention.query_key_value.weight"), FUSED_HEADS},
    {ROLE_V, LAYER("attention.query_key_value.weight"), FUSED_HEADS},
    {ROLE_Q_BIAS, LAYER("attention.query_key_value.bias"), FUSED_HEADS},
    {ROLE_K_BIAS, LAYER("attention.query_key_value.bias"), FUSED_HEADS},
    {ROLE_V_BIAS, LAYER("attention.query_key_value.bias"), FUSED_HEADS},
    {ROLE_O, LAYER("attention.dense.weight"), 0},
    {ROLE_O_BIAS, LAYER("attention.dense.bias"), 0},
    {ROLE_FFN_NORM, LAYER("post_attention_layernorm.weight"), 0},
    {ROLE_FFN_NORM_BIAS, LAYER("post_attention_layernorm.bias"), 0},
    {ROLE_UP, LAYER("mlp.dense_h_to_4h.weight"), 0},
    {ROLE_UP_BIAS, LAYER("mlp.dense_h_to_4h.bias"), 0},
    {ROLE_DOWN, LAYER("mlp.dense_4h_to_h.weight"), 0},
    {ROLE_DOWN_BIAS, LAYER("mlp.dense_4h_to_h.bias"), 0},
    {ROLE_NORM, "gpt_neox.final_layer_norm.weight", 0},
    {ROLE_NORM_BIAS, "gpt_neox.final_layer_norm.bias", 0},
    {ROLE_HEAD, "embed_out.weight", 0},
    {ROLE_HEAD, "lm_head.weight", 0},
};
static const char *const masks[] = {".attention.bias", ".attention.masked_bias", NULL}; /* the causal mask */

/*
 * The base and the rotated share have names of their own at the top level, "rotary_emb_base" and "rotary_pct", which
 * transformers 4 reads; 5.24 reads rope_parameters first. They must agree.
 */
static int read_old(const cJSON *json, const cJSON *home, const char *old, const char *new, double min, double max,
                    double *value, struct err *e) {
    double inside = 0;
    int rc = json_opt_f64(json, old, min, max, value, e);
    if (!rc && home) rc = json_opt_f64(home, new, min, max, &inside, e);
    if (rc || !hf_member(home, new)) return rc;
    if (hf_member(json, old) && inside != *value)
        return err_set(e, ERR_DATA, "\"%s\" is %g, but the rope settings' \"%s\" is %g", old, *value, new, inside);
    *value = inside;
    return 0;
}

static int read_rotation(struct model_config *c, const cJSON *json, struct err *e) {
    const cJSON *home = hf_member(json, "rope_scaling");
    if (!home || !home->child) home = hf_member(json, "rope_parameters");
    double share = 0.25;
    c->rope.theta = 10000;
    int rc = read_old(json, home, "rotary_emb_base", "rope_theta", 1, 1e12, &c->rope.theta, e);
    if (!rc) rc = read_old(json, home, "rotary_pct", "partial_rotary_factor", 0, 1, &share, e);
    if (rc) return rc;
    uint32_t dims = (uint32_t)(c->head_dim * share);
    if (dims < 2)
        return err_set(e, ERR_DATA, "\"rotary_pct\": %g of a head of %u leaves no pair to rotate", share, c->head_dim);
    c->rope.dims = dims == c->head_dim ? 0 : dims;
    return 0;
}

static int read(struct model_config *c, const cJSON *json, struct err *e) {
    bool biases = true;
    int rc = read_rotation(c, json, e);
    if (!rc) rc = json_opt_bool(json, "use_parallel_residual", &c->parallel, e);
    if (!rc) rc = json_opt_bool(json, "attention_bias", &biases, e);
    c->qkv_bias = c->o_bias = biases;
    return rc;
}

static bool write(cJSON *json, const struct model_config *c) {
    return json_put_f64(json, "rotary_emb_base", c->rope.theta) &&
           json_put_f64(json, "rotary_pct", hf_rotary_share(c)) &&
           json_put_bool(json, "use_parallel_residual", c->parallel) &&
           json_put_bool(json, "attention_bias", c->qkv_bias);
}

static int check(const struct model_config *c, struct err *e) {
    if (c->qkv_bias != c->o_bias)
        return err_set(e, ERR_DATA, "biases on q, k and v, or on o, but not on both: GPT-NeoX's class has all or none");
    if (!c->ffn_bias || !c->norm_bias)
        return err_set(e, ERR_DATA, "a gpt_neox model without biases in its feed-forward parts and norms");
    return hf_check_plain_heads(c, e);
}

/* ---- GGUF, where the rows of q, k and v follow each other ---- */

static const struct gguf_key gguf_keys[] = {
    {"attention.layer_norm_epsilon", GGUF_READ, 0, NULL},
    {"attention.layer_norm_rms_epsilon", GGUF_SAME, 0, "attention.layer_norm_epsilon"},
    {"use_parallel_residual", GGUF_READ, 0, NULL},
    {"hidden_activation", GGUF_READ, 0, NULL},
};

static const struct arch_tensor gguf_tensors[] = {
    {ROLE_Q, "blk.#.attn_qkv.weight", FUSED_ROWS},    {ROLE_K, "blk.#.attn_qkv.weight", FUSED_ROWS},
    {ROLE_V, "blk.#.attn_qkv.weight", FUSED_ROWS},    {ROLE_Q_BIAS, "blk.#.attn_qkv.bias", FUSED_ROWS},
    {ROLE_K_BIAS, "blk.#.attn_qkv.bias", FUSED_ROWS}, {ROLE_V_BIAS, "blk.#.attn_qkv.bias", FUSED_ROWS},
};

static int gguf_read(struct model_config *c, const struct gguf_file *g, const char *prefix, struct arena *a,
                     struct err *e) {
    char key[64];
    snprintf(key, sizeof key, "%s.use_parallel_residual", prefix);
    if (!gguf_find(g, key)) return err_set(e, ERR_DATA, "key '%s' is missing", key);
    c->qkv_bias = c->o_bias = true;
    int rc = gguf_opt_bool(g, key, &c->parallel, e);
    return rc ? rc : gguf_read_act(c, g, prefix, a, e);
}

static void gguf_write(struct gguf_header *h, const struct model_config *c) {
    gguf_key_bool(h, ".use_parallel_residual", c->parallel);
    gguf_put_act(h, c, ACT_GELU);
}

/* llama.cpp's gptneox supports shared K/V heads. */
static int gguf_check(const struct model_config *c, struct err *e) {
    const struct model_layer *l = &c->layers[0];
    if ((uint64_t)l->n_heads * c->head_dim != c->hidden)
        return err_set(e, ERR_DATA, "%u heads of %u do not fill the hidden size %u, which llama.cpp's gptneox requires",
                       l->n_heads, c->head_dim, c->hidden);
    if (!c->qkv_bias || !c->o_bias || !c->ffn_bias)
        return err_set(e, ERR_DATA, "linear maps without a bias, which llama.cpp's gptneox requires");
    if (c->tied) return err_set(e, ERR_DATA, "a head tied to the embedding: llama.cpp's gptneox needs a separate one");
    if (c->act != ACT_GELU_TANH && c->act != ACT_GELU)
        return err_set(e, ERR_DATA, "activation %s: llama.cpp's gptneox has GELU", hf_act_name(c->act));
    if (c->rope.scaling == ROPE_LLAMA3 || c->rope.scaling == ROPE_LONG)
        return err_set(e, ERR_DATA, "rope type llama3 or longrope: llama.cpp's gptneox takes no tensors of factors");
    return 0;
}

const struct arch arch_gpt_neox = {
    .name = "gpt_neox",
    .models = "GPT-NeoX, Pythia, Dolly 2",
    .traits = {.norm = NORM_LAYER,
               .norm_bias = true,
               .parallel = true,
               .qkv_bias = true,
               .o_bias = true,
               .ffn_kind = FFN_PLAIN,
               .act = ACT_GELU,
               .ffn_bias = true},
    .hf = {.classes = {{"GPTNeoXForCausalLM", "gpt_neox"}},
           .keys = keys,
           .n_keys = COUNT_OF(keys),
           .numbers = &numbers,
           .eps = 1e-5,
           .theta = 10000,
           .partial_rotary = 0.25,
           .tensors = {tensors, COUNT_OF(tensors), "gpt_neox.", masks},
           .read = read,
           .write = write,
           .check = check},
    .gguf = {.names = {{"gptneox", false}},
             .keys = gguf_keys,
             .n_keys = COUNT_OF(gguf_keys),
             .tensors = {gguf_tensors, COUNT_OF(gguf_tensors), NULL, NULL},
             .read = gguf_read,
             .write = gguf_write,
             .check = gguf_check},
};
