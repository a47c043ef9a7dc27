/* OLMo 2 (OLMo team 2025): Llama with norms on the output of each part of a layer, and on q and k across all heads. */
#include "lib/formats/arch_internal.h"

static const struct hf_key keys[] = {
    HF_KEY("attention_bias", HF_READ),
    HF_KEY("sliding_window", HF_OFF),
    HF_KEY("use_sliding_window", HF_OFF),
    HF_KEY("layer_types", HF_OFF),
};

static const struct arch_tensor tensors[] = {
    HF_LLAMA_TENSORS,
    {ROLE_Q_NORM, "model.layers.#.self_attn.q_norm.weight", 0},
    {ROLE_K_NORM, "model.layers.#.self_attn.k_norm.weight", 0},
    {ROLE_ATTN_POST_NORM, "model.layers.#.post_attention_layernorm.weight", 0},
    {ROLE_FFN_POST_NORM, "model.layers.#.post_feedforward_layernorm.weight", 0},
};

const struct arch arch_olmo2 = {
    .name = "olmo2",
    .models = "OLMo 2",
    .traits = {.norm_place = NORM_OUTPUT, .qk_norm = QK_NORM_ALL},
    .hf = {.classes = {{"Olmo2ForCausalLM", "olmo2"}},
           .keys = keys,
           .n_keys = COUNT_OF(keys),
           .numbers = &hf_llama_numbers,
           .eps = 1e-5,
           .theta = 10000,
           .tensors = {tensors, COUNT_OF(tensors), "model."},
           .read = hf_read_attention_bias,
           .write = hf_put_attention_bias,
           .zeros = hf_attention_bias_zeros},
    .gguf = {.names = {{"olmo2", false}},
             .lacks = LACKS_O_BIAS | LACKS_LLAMA3 | LACKS_LONG | LACKS_HEAD_WIDTH | LACKS_TIED},
};
