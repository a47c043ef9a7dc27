/* Mixtral (Jiang et al. 2024): Mistral with experts in place of the feed-forward part. */
#include "lib/formats/arch_internal.h"

#define EXPERTS   8
#define PER_TOKEN 2

static const struct hf_key keys[] = {
    HF_KEY("num_local_experts", HF_READ),
    {.name = "num_experts", .rule = HF_SAME, .text = "num_local_experts", .alone = true},
    HF_KEY("num_experts_per_tok", HF_READ),
    HF_KEY("norm_topk_prob", HF_TRUE),
    HF_KEY("attention_bias", HF_OFF),
    HF_KEY("qkv_bias", HF_OFF),
};

static const struct arch_tensor tensors[] = {
    HF_LLAMA_TENSORS,
    {ROLE_ROUTER, "model.layers.#.block_sparse_moe.gate.weight", 0},
    {ROLE_EXPERT_GATE, "model.layers.#.block_sparse_moe.experts.@.w1.weight", 0},
    {ROLE_EXPERT_UP, "model.layers.#.block_sparse_moe.experts.@.w3.weight", 0},
    {ROLE_EXPERT_DOWN, "model.layers.#.block_sparse_moe.experts.@.w2.weight", 0},
    {ROLE_ROUTER, "model.layers.#.mlp.gate.weight", 0}, /* names of transformers 5 */
    HF_STACKED_TENSORS,
};

static int read(struct model_config *c, const cJSON *json, struct err *e) {
    static const struct hf_experts how = {EXPERTS, PER_TOKEN, NULL, 0};
    int rc = hf_read_uniform_window(c, json, 0, e);
    return rc ? rc : hf_read_experts(c, json, &how, e);
}

static bool write(cJSON *json, const struct model_config *c) {
    return hf_put_uniform_window(json, c) && hf_put_experts(json, c, "num_local_experts", NULL);
}

static int check(const struct model_config *c, struct err *e) {
    if (!c->norm_expert_weights)
        return err_set(e, ERR_DATA, "the weights of experts are not divided by their sum, which mixtral always does");
    return arch_all_experts(c, false, e);
}

static const struct gguf_key gguf_keys[] = {GGUF_EXPERT_KEYS(true)};

static int gguf_check(const struct model_config *c, struct err *e) {
    return gguf_check_experts(c, false, true, e);
}

const struct arch arch_mixtral = {
    .name = "mixtral",
    .models = "Mixtral 8x7B, 8x22B",
    .traits = {.experts_per_token = PER_TOKEN, .norm_expert_weights = true},
    .hf = {.classes = {{"MixtralForCausalLM", "mixtral"}},
           .keys = keys,
           .n_keys = COUNT_OF(keys),
           .numbers = &hf_llama_numbers,
           .eps = 1e-5,
           .theta = 1000000,
           .windows = ONE_WINDOW,
           .kv_heads = 8,
           .tensors = {tensors, COUNT_OF(tensors), "model."},
           .read = read,
           .write = write,
           .check = check},
    /* llama.cpp loads Mixtral as a llama with experts, which has no window */
    .gguf = {.names = {{"llama", true}},
             .experts = true,
             .keys = gguf_keys,
             .n_keys = COUNT_OF(gguf_keys),
             .read = gguf_read_experts,
             .write = gguf_put_experts,
             .check = gguf_check},
};
