/* Settings of config.json that several architectures share: activations, windows, biases, rotary scaling. */
#include <math.h>

#include "lib/formats/arch_internal.h"

const struct hf_numbers hf_llama_numbers = {"num_hidden_layers",       "hidden_size",  "num_attention_heads",
                                            "num_key_value_heads",     "head_dim",     "intermediate_size",
                                            "max_position_embeddings", "rms_norm_eps", "hidden_act"};

/* ---- activations by transformers' names; the first name of each is the one written ---- */

static const struct {
    const char *name;
    enum kernel_act act;
} acts[] = {{"silu", ACT_SILU},
            {"swish", ACT_SILU},
            {"gelu", ACT_GELU},
            {"gelu_python", ACT_GELU},
            {"gelu_new", ACT_GELU_TANH},
            {"gelu_pytorch_tanh", ACT_GELU_TANH},
            {"gelu_fast", ACT_GELU_TANH},
            {"gelu_accurate", ACT_GELU_TANH},
            {"quick_gelu", ACT_GELU_QUICK},
            {"relu", ACT_RELU},
            {"relu2", ACT_RELU_SQUARED},
            {"tanh", ACT_TANH}};

int hf_act_of_name(const char *name, uint32_t *act) {
    for (size_t i = 0; i < COUNT_OF(acts); i++)
        if (strcmp(acts[i].name, name) == 0) {
            *act = acts[i].act;
            return 0;
        }
    return ERR_DATA;
}

int hf_read_act(struct model_config *c, const cJSON *json, const char *key, const char *fallback, struct err *e) {
    const char *name = fallback;
    int rc = json_opt_str(json, key, &name, e);
    if (rc || !hf_act_of_name(name, &c->act)) return rc;
    return err_set(e, ERR_DATA, "\"%s\": '%.64s' is not supported", key, name);
}

const char *hf_act_name(uint32_t act) {
    for (size_t i = 0; i < COUNT_OF(acts); i++)
        if (acts[i].act == act) return acts[i].name;
    return "silu";
}

/* ---- windows ---- */

int hf_read_layer_types(struct model_config *c, const cJSON *json, uint32_t window, bool *given, struct err *e) {
    const cJSON *list = hf_member(json, "layer_types");
    uint32_t n = 0;
    *given = list != NULL;
    if (!list) return 0;
    if (!cJSON_IsArray(list)) return err_set(e, ERR_DATA, "\"layer_types\" is not a list");
    for (const cJSON *x = list->child; x; x = x->next, n++) {
        const char *type = cJSON_GetStringValue(x);
        bool sliding = type && strcmp(type, "sliding_attention") == 0;
        if (!sliding && (!type || strcmp(type, "full_attention") != 0))
            return err_set(e, ERR_DATA, "\"layer_types\": '%.64s' is not supported", type ? type : "(no text)");
        if (n < c->n_layers) c->layers[n].window = sliding ? window : 0;
    }
    if (n != c->n_layers)
        return err_set(e, ERR_DATA, "\"layer_types\" has %u entries, but \"num_hidden_layers\" is %u", n, c->n_layers);
    return 0;
}

bool hf_put_layer_types(cJSON *json, const struct model_config *c) {
    cJSON *list = cJSON_AddArrayToObject(json, "layer_types");
    for (uint32_t i = 0; list && i < c->n_layers; i++) {
        cJSON *x = cJSON_CreateString(c->layers[i].window ? "sliding_attention" : "full_attention");
        if (x && cJSON_AddItemToArray(list, x)) continue;
        cJSON_Delete(x);
        return false;
    }
    return list != NULL;
}

int hf_read_window(const struct model_config *c, const cJSON *json, uint32_t absent, uint32_t *window, struct err *e) {
    uint64_t v = cJSON_GetObjectItemCaseSensitive(json, "sliding_window") ? 0 : absent;
    int rc = json_opt_u64(json, "sliding_window", 0, JSON_MAX_INTEGER, &v, e);
    *window = v < c->context ? (uint32_t)v : 0;
    return rc;
}

int hf_read_uniform_window(struct model_config *c, const cJSON *json, uint32_t absent, struct err *e) {
    uint32_t window;
    bool given, use = true;
    int rc = hf_read_window(c, json, absent, &window, e);
    if (!rc) rc = hf_read_layer_types(c, json, window, &given, e);
    if (!rc) rc = json_opt_bool(json, "use_sliding_window", &use, e);
    if (rc) return rc;
    if (!use && window)
        return err_set(
            e, ERR_DATA,
            "\"use_sliding_window\" is false, but this class takes its \"sliding_window\" of %u all the same", window);
    for (uint32_t i = 0; i < c->n_layers && !given; i++) c->layers[i].window = window;
    return 0;
}

bool hf_put_uniform_window(cJSON *json, const struct model_config *c) {
    uint32_t window = config_window(c);
    return window ? json_put_u64(json, "sliding_window", window)
                  : cJSON_AddNullToObject(json, "sliding_window") != NULL;
}

uint32_t config_window(const struct model_config *c) {
    uint32_t window = 0;
    for (uint32_t i = 0; i < c->n_layers && !window; i++) window = c->layers[i].window;
    return window;
}

/* ---- attention biases ---- */

int hf_read_attention_bias(struct model_config *c, const cJSON *json, struct err *e) {
    int rc = json_opt_bool(json, "attention_bias", &c->qkv_bias, e);
    c->o_bias = c->qkv_bias;
    return rc;
}

bool hf_put_attention_bias(cJSON *json, const struct model_config *c) {
    return json_put_bool(json, "attention_bias", c->qkv_bias || c->o_bias);
}

bool hf_attention_bias_zeros(const struct model_config *c, enum model_role role) {
    return c->qkv_bias && role == ROLE_O_BIAS;
}

/* ---- heads and rotation ---- */

int hf_check_plain_heads(const struct model_config *c, struct err *e) {
    const struct model_layer *l = &c->layers[0];
    if (l->n_heads == l->n_kv_heads && (uint64_t)l->n_heads * c->head_dim == c->hidden) return 0;
    return err_set(e, ERR_DATA,
                   "%u heads of %u with %u key/value heads and a hidden size of %u: heads of %s fill the hidden size, "
                   "and each has a key/value head",
                   l->n_heads, c->head_dim, l->n_kv_heads, c->hidden, c->arch);
}

int hf_check_derived_width(const struct model_config *c, const char *what, struct err *e) {
    uint32_t n_heads = c->layers[0].n_heads;
    if (c->hidden / n_heads == c->head_dim) return 0;
    return err_set(e, ERR_DATA,
                   "%u heads of %u in a hidden size of %u: transformers makes %s of a %s as wide as the hidden size "
                   "divided by the heads, %u",
                   n_heads, c->head_dim, c->hidden, what, c->arch, c->hidden / n_heads);
}

double hf_rotary_share(const struct model_config *c) {
    uint32_t dims = model_rope_dims(c, &c->rope);
    double share = (double)dims / c->head_dim;
    return (uint32_t)(c->head_dim * share) < dims ? nextafter(share, 1) : share;
}
