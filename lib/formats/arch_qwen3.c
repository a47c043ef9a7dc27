/* Qwen3 (Yang et al. 2025): Qwen2 with RMSNorm on each head of q and k, and in most models without biases. */
#include "lib/formats/arch_internal.h"

static const struct hf_key keys[] = {
    HF_KEY("attention_bias", HF_READ),
};

static const struct arch_tensor tensors[] = {
    HF_LLAMA_TENSORS,
    {ROLE_Q_NORM, "model.layers.#.self_attn.q_norm.weight", 0},
    {ROLE_K_NORM, "model.layers.#.self_attn.k_norm.weight", 0},
};

static int read(struct model_config *c, const cJSON *json, struct err *e) {
    int rc = hf_read_attention_bias(c, json, e);
    return rc ? rc : qwen_read_window(c, json, e);
}

static bool write(cJSON *json, const struct model_config *c) {
    return hf_put_attention_bias(json, c) && qwen_put_window(json, c);
}

const struct arch arch_qwen3 = {
    .name = "qwen3",
    .models = "Qwen3",
    .traits = {.qk_norm = QK_NORM_HEADS},
    .hf = {.classes = {{"Qwen3ForCausalLM", "qwen3"}},
           .keys = keys,
           .n_keys = COUNT_OF(keys),
           .numbers = &hf_llama_numbers,
           .eps = 1e-6,
           .theta = 10000,
           .windows = LAYER_WINDOWS,
           .kv_heads = 32,
           .head_dim = 128,
           .tensors = {tensors, COUNT_OF(tensors), "model."},
           .read = read,
           .write = write,
           .zeros = hf_attention_bias_zeros},
    .gguf = {.names = {{"qwen3", false}}, .lacks = LACKS_O_BIAS | LACKS_LLAMA3 | LACKS_LONG},
};
