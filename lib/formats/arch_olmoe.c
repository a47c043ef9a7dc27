/* OLMoE (Muennighoff et al. 2024): Llama with experts, and RMSNorm on q and k across all heads. */
#include "lib/formats/arch_internal.h"

#define EXPERTS   64
#define PER_TOKEN 8

static const struct hf_key keys[] = {
    HF_EXPERT_KEYS,
    HF_KEY("attention_bias", HF_READ),
    HF_KEY("sliding_window", HF_OFF),
    HF_KEY("use_sliding_window", HF_OFF),
    HF_KEY("layer_types", HF_OFF),
};

static const struct arch_tensor tensors[] = {
    HF_LLAMA_TENSORS,
    HF_EXPERT_TENSORS,
    {ROLE_Q_NORM, "model.layers.#.self_attn.q_norm.weight", 0},
    {ROLE_K_NORM, "model.layers.#.self_attn.k_norm.weight", 0},
};

static int read(struct model_config *c, const cJSON *json, struct err *e) {
    static const struct hf_experts how = {EXPERTS, PER_TOKEN, NULL, 0};
    int rc = hf_read_attention_bias(c, json, e);
    return rc ? rc : hf_read_experts(c, json, &how, e);
}

static bool write(cJSON *json, const struct model_config *c) {
    return hf_put_attention_bias(json, c) && hf_put_experts(json, c, "num_experts", NULL) &&
           json_put_bool(json, "norm_topk_prob", c->norm_expert_weights);
}

static int check(const struct model_config *c, struct err *e) {
    const struct model_layer *l = &c->layers[0];
    if ((uint64_t)l->n_heads * c->head_dim != c->hidden)
        return err_set(e, ERR_DATA, "%u heads of %u, which transformers' olmoe needs as wide as the %u of the model",
                       l->n_heads, c->head_dim, c->hidden);
    return arch_all_experts(c, false, e);
}

static const struct gguf_key gguf_keys[] = {GGUF_EXPERT_KEYS(false)};

static int gguf_check(const struct model_config *c, struct err *e) {
    const struct model_layer *l = &c->layers[0];
    if (l->n_heads != l->n_kv_heads)
        return err_set(e, ERR_DATA, "%u key/value heads for %u heads: llama.cpp's olmoe has as many", l->n_kv_heads,
                       l->n_heads);
    return gguf_check_experts(c, false, false, e);
}

const struct arch arch_olmoe = {
    .name = "olmoe",
    .models = "OLMoE",
    .traits = {.qk_norm = QK_NORM_ALL, .experts_per_token = PER_TOKEN},
    .hf = {.classes = {{"OlmoeForCausalLM", "olmoe"}},
           .keys = keys,
           .n_keys = COUNT_OF(keys),
           .numbers = &hf_llama_numbers,
           .eps = 1e-5,
           .theta = 10000,
           .tensors = {tensors, COUNT_OF(tensors), "model."},
           .read = read,
           .write = write,
           .zeros = hf_attention_bias_zeros,
           .check = check},
    .gguf = {.names = {{"olmoe", false}},
             .experts = true,
             .lacks = LACKS_O_BIAS | LACKS_LLAMA3 | LACKS_LONG | LACKS_HEAD_WIDTH | LACKS_TIED,
             .keys = gguf_keys,
             .n_keys = COUNT_OF(gguf_keys),
             .read = gguf_read_experts,
             .write = gguf_put_experts,
             .check = gguf_check},
};
