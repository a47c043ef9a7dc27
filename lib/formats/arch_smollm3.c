/* SmolLM3 (Bakouch et al. 2025): Llama in which every fourth layer has no rotary positions (NoPE)
 * and may have a window. */
#include "lib/formats/arch_internal.h"

static const struct hf_key keys[] = {
    HF_KEY("attention_bias", HF_READ),
    HF_KEY("no_rope_layers", HF_READ),
    HF_KEY("no_rope_layer_interval", HF_READ),
};

static const struct arch_tensor tensors[] = {
    HF_LLAMA_TENSORS,
};

/* Every `interval`-th layer does not rotate. */
static uint32_t rope_of(uint32_t layer, uint64_t interval) {
    return (layer + 1) % interval ? ROPE_MAIN : ROPE_NONE;
}

/* Every 4th layer of a new model does not rotate. */
static void complete(struct model_config *c) {
    for (uint32_t i = 0; i < c->n_layers; i++) c->layers[i].rope = rope_of(i, 4);
}

/* "no_rope_layers" has 1 for layers that do rotate, and may be longer than the model. */
static int read_list(struct model_config *c, const cJSON *list, struct err *e) {
    uint32_t n = 0;
    if (!cJSON_IsArray(list)) return err_set(e, ERR_DATA, "\"no_rope_layers\" is not a list");
    for (const cJSON *x = list->child; x && n < c->n_layers; x = x->next, n++) {
        if (!cJSON_IsNumber(x) || (x->valuedouble != 0 && x->valuedouble != 1))
            return err_set(e, ERR_DATA, "\"no_rope_layers\" of layer %u is not 0 or 1", n);
        c->layers[n].rope = x->valuedouble != 0 ? ROPE_MAIN : ROPE_NONE;
    }
    if (n == c->n_layers) return 0;
    return err_set(e, ERR_DATA, "\"no_rope_layers\" has %u entries, but \"num_hidden_layers\" is %u", n, c->n_layers);
}

static int read_rope(struct model_config *c, const cJSON *json, struct err *e) {
    const cJSON *list = hf_member(json, "no_rope_layers");
    uint64_t interval = 4;
    int rc = json_opt_u64(json, "no_rope_layer_interval", 1, UINT32_MAX, &interval, e);
    if (rc || list) return rc ? rc : read_list(c, list, e);
    for (uint32_t i = 0; i < c->n_layers; i++) c->layers[i].rope = rope_of(i, interval);
    return 0;
}

/* Without "layer_types", the layers that do not rotate have the window. */
static int read_window(struct model_config *c, const cJSON *json, struct err *e) {
    uint32_t window;
    bool use = false, given;
    int rc = json_opt_bool(json, "use_sliding_window", &use, e);
    if (!rc) rc = hf_read_window(c, json, 0, &window, e);
    if (!rc) rc = hf_read_layer_types(c, json, window, &given, e);
    if (rc) return rc;
    if (!use && config_window(c))
        return err_set(e, ERR_DATA, "\"use_sliding_window\" is false, but \"layer_types\" gives layers a window");
    for (uint32_t i = 0; i < c->n_layers && use && !given; i++)
        c->layers[i].window = c->layers[i].rope == ROPE_NONE ? window : 0;
    return 0;
}

static int read(struct model_config *c, const cJSON *json, struct err *e) {
    int rc = hf_read_attention_bias(c, json, e);
    if (!rc) rc = read_rope(c, json, e);
    return rc ? rc : read_window(c, json, e);
}

static bool put_list(cJSON *json, const struct model_config *c) {
    cJSON *list = cJSON_AddArrayToObject(json, "no_rope_layers");
    for (uint32_t i = 0; list && i < c->n_layers; i++) {
        cJSON *x = cJSON_CreateNumber(c->layers[i].rope != ROPE_NONE);
        if (x && cJSON_AddItemToArray(list, x)) continue;
        cJSON_Delete(x);
        return false;
    }
    return list != NULL;
}

static bool write(cJSON *json, const struct model_config *c) {
    uint32_t window = config_window(c);
    bool ok = hf_put_attention_bias(json, c) && json_put_bool(json, "mlp_bias", false) && put_list(json, c) &&
              hf_put_layer_types(json, c) && json_put_bool(json, "use_sliding_window", window != 0);
    return ok && (!window || json_put_u64(json, "sliding_window", window));
}

/* ---- GGUF: no key says which layers do not rotate; llama.cpp hard-codes every fourth ---- */

#define GGUF_INTERVAL 4

static int gguf_read(struct model_config *c, const struct gguf_file *g, const char *prefix, struct arena *a,
                     struct err *e) {
    (void)g, (void)prefix, (void)a, (void)e;
    for (uint32_t i = 0; i < c->n_layers; i++) c->layers[i].rope = rope_of(i, GGUF_INTERVAL);
    return 0;
}

static int gguf_check(const struct model_config *c, struct err *e) {
    for (uint32_t i = 0; i < c->n_layers; i++) {
        bool rotates = c->layers[i].rope != ROPE_NONE;
        if (rotates == (rope_of(i, GGUF_INTERVAL) != ROPE_NONE)) continue;
        return err_set(
            e, ERR_DATA,
            "layer %u has %srotary positions: llama.cpp's smollm3 leaves them out of every layer whose number "
            "(from 1) %u divides, and of no other",
            i, rotates ? "" : "no ", GGUF_INTERVAL);
    }
    return 0;
}

const struct arch arch_smollm3 = {
    .name = "smollm3",
    .models = "SmolLM3",
    .complete = complete,
    .hf = {.classes = {{"SmolLM3ForCausalLM", "smollm3"}},
           .keys = keys,
           .n_keys = COUNT_OF(keys),
           .numbers = &hf_llama_numbers,
           .eps = 1e-6,
           .theta = 2000000,
           .windows = LAYER_WINDOWS,
           .kv_heads = 4,
           .tied = true,
           .tensors = {tensors, COUNT_OF(tensors), "model."},
           .read = read,
           .write = write,
           .zeros = hf_attention_bias_zeros},
    .gguf = {.names = {{"smollm3", true}},
             .lacks = LACKS_O_BIAS | LACKS_LLAMA3 | LACKS_LONG,
             .read = gguf_read,
             .check = gguf_check},
};
