/* Llama (Touvron et al. 2023; Llama 2, 3.x, SmolLM2, TinyLlama) and Mistral (Jiang et al. 2023), which adds a window. */
#include "lib/formats/arch_internal.h"

static const struct hf_key keys[] = {
    HF_KEY("attention_bias", HF_READ),
    HF_KEY_TEXT("qkv_bias", HF_SAME, "attention_bias"),
};

static const struct arch_tensor tensors[] = {
    {ROLE_EMBED, "model.embed_tokens.weight", 0},
    {ROLE_ATTN_NORM, "model.layers.#.input_layernorm.weight", 0},
    {ROLE_Q, "model.layers.#.self_attn.q_proj.weight", 0},
    {ROLE_K, "model.layers.#.self_attn.k_proj.weight", 0},
    {ROLE_V, "model.layers.#.self_attn.v_proj.weight", 0},
    {ROLE_Q_BIAS, "model.layers.#.self_attn.q_proj.bias", 0},
    {ROLE_K_BIAS, "model.layers.#.self_attn.k_proj.bias", 0},
    {ROLE_V_BIAS, "model.layers.#.self_attn.v_proj.bias", 0},
    {ROLE_O, "model.layers.#.self_attn.o_proj.weight", 0},
    {ROLE_O_BIAS, "model.layers.#.self_attn.o_proj.bias", 0},
    {ROLE_FFN_NORM, "model.layers.#.post_attention_layernorm.weight", 0},
    {ROLE_GATE, "model.layers.#.mlp.gate_proj.weight", 0},
    {ROLE_UP, "model.layers.#.mlp.up_proj.weight", 0},
    {ROLE_DOWN, "model.layers.#.mlp.down_proj.weight", 0},
    {ROLE_NORM, "model.norm.weight", 0},
    {ROLE_HEAD, "lm_head.weight", 0},
};

/* transformers' Llama knows no window, so nobody means one that would be felt. */
static int refuse_window(const struct model_config *c, const cJSON *json, struct err *e) {
    const cJSON *types = hf_member(json, "layer_types");
    uint64_t window = 0;
    int rc = json_opt_u64(json, "sliding_window", 0, JSON_MAX_INTEGER, &window, e);
    for (const cJSON *x = cJSON_IsArray(types) ? types->child : NULL; x && !rc; x = x->next)
        if (!cJSON_IsString(x) || strcmp(x->valuestring, "full_attention") != 0)
            rc = err_set(e, ERR_DATA, "\"layer_types\": '%.64s' is not supported",
                         cJSON_IsString(x) ? x->valuestring : "(no text)");
    if (rc || !window || window >= c->context) return rc;
    return err_set(e, ERR_DATA, "\"sliding_window\": attention to the last %llu of %u positions is not supported",
                   (unsigned long long)window, c->context);
}

/* "attention_bias" means biases on q, k, v and o. */
static int read(struct model_config *c, const cJSON *json, struct err *e) {
    bool given;
    int rc = json_opt_bool(json, "attention_bias", &c->qkv_bias, e);
    if (!rc) rc = refuse_window(c, json, e);
    if (!rc) rc = hf_read_layer_types(c, json, 0, &given, e);
    c->o_bias = c->qkv_bias;
    return rc;
}

static bool write(cJSON *json, const struct model_config *c) {
    return json_put_bool(json, "attention_bias", c->qkv_bias || c->o_bias) && json_put_bool(json, "mlp_bias", false);
}

static bool zeros(const struct model_config *c, enum model_role role) {
    return c->qkv_bias && role == ROLE_O_BIAS;
}

/* LlamaConfig.validate_architecture, although head_dim is a key of its own. */
static int check(const struct model_config *c, struct err *e) {
    if (c->hidden % c->layers[0].n_heads == 0) return 0;
    return err_set(e, ERR_DATA,
                   "hidden size %u is not a multiple of %u heads, which transformers asks of a llama; GGUF can hold it "
                   "(--to gguf)",
                   c->hidden, c->layers[0].n_heads);
}

const struct arch arch_llama = {
    .name = "llama",
    .models = "Llama 1 to 3.x, SmolLM2, TinyLlama",
    .hf = {.classes = {{"LlamaForCausalLM", "llama"}},
           .keys = keys,
           .n_keys = COUNT_OF(keys),
           .numbers = &hf_llama_numbers,
           .eps = 1e-6,
           .theta = 10000,
           .tensors = {tensors, COUNT_OF(tensors), "model."},
           .read = read,
           .write = write,
           .zeros = zeros,
           .check = check},
    /* deci is llama.cpp's name for llama with shapes that differ from layer to layer. */
    .gguf = {.names = {{"llama", true}, {"deci", true}}, .uneven = {"deci", true}},
};

/* ---- Mistral: the same with a window, of 4096 positions where "sliding_window" is absent ---------------------------- */

static const struct hf_key mistral_keys[] = {
    HF_KEY("attention_bias", HF_OFF),
    HF_KEY("qkv_bias", HF_OFF),
};

/* 8 key/value heads where config.json does not say (null: as many as heads). */
static int mistral_read(struct model_config *c, const cJSON *json, struct err *e) {
    uint64_t window = 4096;
    bool given;
    if (cJSON_IsNull(cJSON_GetObjectItemCaseSensitive(json, "sliding_window"))) window = 0;
    int rc = json_opt_u64(json, "sliding_window", 0, JSON_MAX_INTEGER, &window, e);
    if (window >= c->context) window = 0; /* never felt */
    if (!rc) rc = hf_read_layer_types(c, json, (uint32_t)window, &given, e);
    if (rc) return rc;
    bool use = true;
    rc = json_opt_bool(json, "use_sliding_window", &use, e);
    if (!rc && !use && window)
        rc = err_set(
            e, ERR_DATA,
            "\"use_sliding_window\" is false, but MistralForCausalLM takes its \"sliding_window\" of %u all the "
            "same",
            (unsigned)window);
    for (uint32_t i = 0; i < c->n_layers && !rc; i++) {
        if (!given) c->layers[i].window = (uint32_t)window;
        if (!cJSON_GetObjectItemCaseSensitive(json, "num_key_value_heads")) c->layers[i].n_kv_heads = 8;
    }
    return rc;
}

static bool mistral_write(cJSON *json, const struct model_config *c) {
    uint32_t window = c->layers[0].window;
    return window ? json_put_u64(json, "sliding_window", window)
                  : cJSON_AddNullToObject(json, "sliding_window") != NULL;
}

const struct arch arch_mistral = {
    .name = "mistral",
    .models = "Mistral 7B",
    .hf = {.classes = {{"MistralForCausalLM", "mistral"}},
           .keys = mistral_keys,
           .n_keys = COUNT_OF(mistral_keys),
           .numbers = &hf_llama_numbers,
           .eps = 1e-6,
           .theta = 10000,
           .tensors = {tensors, COUNT_OF(tensors), "model."},
           .read = mistral_read,
           .write = mistral_write},
    /* llama.cpp reads Mistral as a llama, which has no window. */
    .gguf = {.names = {{"llama", true}}, .uneven = {"deci", true}},
};
