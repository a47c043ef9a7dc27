/* Llama (Touvron et al. 2023; Llama 2, 3.x, SmolLM2, TinyLlama) and Mistral (Jiang et al. 2023), which adds a
 * window. */
#include "lib/formats/arch_internal.h"

static const struct hf_key keys[] = {
    HF_KEY("attention_bias", HF_READ),
    HF_KEY_TEXT("qkv_bias", HF_SAME, "attention_bias"),
};

static const struct arch_tensor tensors[] = {
    HF_LLAMA_TENSORS,
};

/* transformers' Llama has no window, so one that would take effect is refused. */
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

static int read(struct model_config *c, const cJSON *json, struct err *e) {
    bool given;
    int rc = hf_read_attention_bias(c, json, e);
    if (!rc) rc = refuse_window(c, json, e);
    if (!rc) rc = hf_read_layer_types(c, json, 0, &given, e);
    return rc;
}

static bool write(cJSON *json, const struct model_config *c) {
    return hf_put_attention_bias(json, c) && json_put_bool(json, "mlp_bias", false);
}

/* LlamaConfig.validate_architecture requires it, although head_dim is a separate key. */
static int check(const struct model_config *c, struct err *e) {
    if (c->hidden % c->layers[0].n_heads == 0) return 0;
    return err_set(
        e, ERR_DATA,
        "hidden size %u is not a multiple of %u heads, which transformers requires of a llama; GGUF can hold it "
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
           .zeros = hf_attention_bias_zeros,
           .check = check},
    /* deci is llama.cpp's name for a llama whose shapes differ from layer to layer */
    .gguf = {.names = {{"llama", true}, {"deci", true}}, .uneven = {"deci", true}},
};

/* ---- Mistral: Llama with a window, of 4096 positions if "sliding_window" is absent ---- */

static const struct hf_key mistral_keys[] = {
    HF_KEY("attention_bias", HF_OFF),
    HF_KEY("qkv_bias", HF_OFF),
};

static int mistral_read(struct model_config *c, const cJSON *json, struct err *e) {
    return hf_read_uniform_window(c, json, 4096, e);
}

/* ---- Ministral: a window in the layers that "layer_types" lists, or in all ---- */

static bool ministral_write(cJSON *json, const struct model_config *c) {
    return hf_put_uniform_window(json, c) && hf_put_layer_types(json, c);
}

const struct arch arch_ministral = {
    .name = "ministral",
    .models = "Ministral 8B",
    .hf = {.classes = {{"MinistralForCausalLM", "ministral"}},
           .keys = mistral_keys,
           .n_keys = COUNT_OF(mistral_keys),
           .numbers = &hf_llama_numbers,
           .eps = 1e-6,
           .theta = 10000,
           .windows = LAYER_WINDOWS,
           .kv_heads = 8,
           .tensors = {tensors, COUNT_OF(tensors), "model."},
           .read = mistral_read,
           .write = ministral_write},
    .gguf = {.names = {{"llama", true}}, .uneven = {"deci", true}},
};

const struct arch arch_mistral = {
    .name = "mistral",
    .models = "Mistral 7B",
    .hf = {.classes = {{"MistralForCausalLM", "mistral"}},
           .keys = mistral_keys,
           .n_keys = COUNT_OF(mistral_keys),
           .numbers = &hf_llama_numbers,
           .eps = 1e-6,
           .theta = 10000,
           .windows = ONE_WINDOW,
           .kv_heads = 8,
           .tensors = {tensors, COUNT_OF(tensors), "model."},
           .read = mistral_read,
           .write = hf_put_uniform_window},
    /* llama.cpp loads Mistral as a llama, which has no window */
    .gguf = {.names = {{"llama", true}}, .uneven = {"deci", true}},
};
