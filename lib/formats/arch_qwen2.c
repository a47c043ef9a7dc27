/* Qwen2 and Qwen2.5 (Yang et al. 2024): Llama with biases on q, k and v, and a window that is disabled in most
 * models. */
#include "lib/formats/arch_internal.h"

static const struct hf_key keys[] = {
    HF_KEY("attention_bias", HF_TRUE),
    HF_KEY("qkv_bias", HF_TRUE),
};

static const struct arch_tensor tensors[] = {
    HF_LLAMA_TENSORS,
};

int qwen_read_window_keys(struct model_config *c, const cJSON *json, uint32_t *window, uint64_t *first, bool *given,
                          struct err *e) {
    bool use = false;
    *window = 0;
    *first = 28;
    *given = false;
    int rc = json_opt_bool(json, "use_sliding_window", &use, e);
    if (!rc) rc = hf_read_window(c, json, 4096, window, e);
    if (!rc) rc = json_opt_u64(json, "max_window_layers", 0, UINT32_MAX, first, e);
    if (!use) *window = 0;
    return rc ? rc : hf_read_layer_types(c, json, *window, given, e);
}

/* With "use_sliding_window", layers from "max_window_layers" on have the window. */
int qwen_read_window(struct model_config *c, const cJSON *json, struct err *e) {
    uint64_t first;
    uint32_t window;
    bool given, windowed = false;
    int rc = qwen_read_window_keys(c, json, &window, &first, &given, e);
    for (uint32_t i = 0; i < c->n_layers && !rc; i++) {
        if (!given && i >= first) c->layers[i].window = window;
        windowed = windowed || c->layers[i].window;
    }
    if (!rc && given && window && first < c->n_layers && !windowed)
        rc = err_set(e, ERR_DATA, "\"layer_types\" has no window, but \"sliding_window\" is %u", window);
    return rc;
}

bool qwen_put_window(cJSON *json, const struct model_config *c) {
    uint32_t window = config_window(c), first = 0;
    while (first < c->n_layers && !c->layers[first].window) first++;
    bool ok = json_put_bool(json, "use_sliding_window", window != 0);
    if (!ok || !window) return ok;
    return json_put_u64(json, "sliding_window", window) && json_put_u64(json, "max_window_layers", first) &&
           hf_put_layer_types(json, c);
}

static int check(const struct model_config *c, struct err *e) {
    return c->qkv_bias ? 0 : err_set(e, ERR_DATA, "a qwen2 model without biases: Hugging Face's Qwen2 always has them");
}

/* llama.cpp's qwen2 requires the heads together to be as wide as the residual stream, and has no rope factor
 * tensors. */
static bool needs_deci(const struct model_config *c) {
    return (uint64_t)c->layers[0].n_heads * c->head_dim != c->hidden || c->rope.scaling == ROPE_LLAMA3 ||
           c->rope.scaling == ROPE_LONG;
}

const struct arch arch_qwen2 = {
    .name = "qwen2",
    .models = "Qwen2, Qwen2.5",
    .traits = {.qkv_bias = true},
    .hf = {.classes = {{"Qwen2ForCausalLM", "qwen2"}},
           .keys = keys,
           .n_keys = COUNT_OF(keys),
           .numbers = &hf_llama_numbers,
           .eps = 1e-6,
           .theta = 10000,
           .windows = LAYER_WINDOWS,
           .kv_heads = 32,
           .tensors = {tensors, COUNT_OF(tensors), "model."},
           .read = qwen_read_window,
           .write = qwen_put_window,
           .check = check},
    .gguf = {.names = {{"qwen2", false}}, .uneven = {"deci", true}, .needs_uneven = needs_deci},
};
