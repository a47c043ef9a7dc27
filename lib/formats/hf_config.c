/* config.json of Hugging Face's LlamaForCausalLM and Qwen2ForCausalLM. formats/huggingface.md has the table of keys. */
#include <math.h>

#include "lib/formats/formats_internal.h"

static const struct hf_arch {
    const char *class, *model_type;
    enum model_arch arch;
} archs[] = {
    {"LlamaForCausalLM", "llama", ARCH_LLAMA},
    {"Qwen2ForCausalLM", "qwen2", ARCH_QWEN2},
};

/* Null stands for absent everywhere in these files. */
static const cJSON *member(const cJSON *object, const char *key) {
    const cJSON *x = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsNull(x) ? NULL : x;
}

/* ---- reading ---- */

static int read_arch(const cJSON *json, struct model_config *c, struct err *e) {
    const cJSON *list = member(json, "architectures");
    const char *class = cJSON_IsArray(list) && list->child ? cJSON_GetStringValue(list->child) : NULL;
    const char *type = cJSON_GetStringValue(member(json, "model_type"));
    for (size_t i = 0; i < COUNT_OF(archs); i++)
        if (class ? strcmp(class, archs[i].class) == 0 : type && strcmp(type, archs[i].model_type) == 0) {
            c->arch = archs[i].arch;
            return 0;
        }
    return err_set(e, ERR_DATA, "architecture '%.64s' is not supported (LlamaForCausalLM and Qwen2ForCausalLM are)",
                   class  ? class
                   : type ? type
                          : "(none)");
}

/* What would change the arithmetic in a way that Rill does not do. Absent and null are fine. */
static const struct {
    const char *key;
    enum { BE_FALSE, BE_NUMBER, BE_TEXT, BE_ABSENT } rule;
    double number;
    const char *text;
} demands[] = {
    {"hidden_act", BE_TEXT, 0, "silu"},
    {"mlp_bias", BE_FALSE, 0, NULL},
    {"rope_interleaved", BE_FALSE, 0, NULL},
    {"use_mrope", BE_FALSE, 0, NULL},
    {"partial_rotary_factor", BE_NUMBER, 1, NULL},
    {"quantization_config", BE_ABSENT, 0, NULL},
    {"block_configs", BE_ABSENT, 0, NULL},
    {"num_local_experts", BE_ABSENT, 0, NULL},
};

static int check_demands(const cJSON *json, struct err *e) {
    for (size_t i = 0; i < COUNT_OF(demands); i++) {
        const cJSON *x = member(json, demands[i].key);
        const char *text = cJSON_GetStringValue(x);
        bool ok = !x || (demands[i].rule == BE_FALSE && cJSON_IsFalse(x)) ||
                  (demands[i].rule == BE_NUMBER && cJSON_IsNumber(x) && x->valuedouble == demands[i].number) ||
                  (demands[i].rule == BE_TEXT && text && strcmp(text, demands[i].text) == 0);
        if (!ok && text) return err_set(e, ERR_DATA, "\"%s\": '%.64s' is not supported", demands[i].key, text);
        if (!ok) return err_set(e, ERR_DATA, "\"%s\": this setting is not supported", demands[i].key);
    }
    return 0;
}

/* A window only matters when it is switched on and shorter than the context. Llama's configuration has no such
 * thing. */
static int check_window(const cJSON *json, const struct model_config *c, struct err *e) {
    for (const cJSON *x = member(json, "layer_types") ? member(json, "layer_types")->child : NULL; x; x = x->next) {
        const char *type = cJSON_GetStringValue(x);
        if (!type || strcmp(type, "full_attention") != 0)
            return err_set(e, ERR_DATA, "\"layer_types\": '%.64s' is not supported", type ? type : "(no text)");
    }
    uint64_t window = UINT32_MAX;
    bool use = false;
    int rc = json_opt_bool(json, "use_sliding_window", &use, e);
    if (!rc) rc = json_opt_u64(json, "sliding_window", 1, JSON_MAX_INTEGER, &window, e);
    if (!rc && use && window < c->context)
        rc = err_set(e, ERR_DATA, "\"use_sliding_window\": attention to the last %llu of %u positions is not supported",
                     (unsigned long long)window, c->context);
    return rc;
}

static int read_llama3(const cJSON *scaling, struct model_config *c, struct err *e) {
    uint64_t original = 0;
    c->rope_scaling = ROPE_LLAMA3;
    int rc = json_get_f64(scaling, "factor", 1e-3, 1e6, &c->rope_factor, e);
    if (!rc) rc = json_get_f64(scaling, "low_freq_factor", 1e-3, 1e6, &c->rope_low_freq, e);
    if (!rc) rc = json_get_f64(scaling, "high_freq_factor", 1e-3, 1e6, &c->rope_high_freq, e);
    if (!rc) rc = json_get_u64(scaling, "original_max_position_embeddings", 1, UINT32_MAX, &original, e);
    c->rope_original_context = (uint32_t)original;
    return rc;
}

static int read_scaling(const cJSON *scaling, struct model_config *c, struct err *e) {
    const char *type = "default";
    int rc = json_opt_str(scaling, "type", &type, e); /* the old name of the key; the new one wins */
    if (!rc) rc = json_opt_str(scaling, "rope_type", &type, e);
    if (rc || strcmp(type, "default") == 0) return rc;
    if (strcmp(type, "llama3") == 0) return read_llama3(scaling, c, e);
    if (strcmp(type, "linear") != 0)
        return err_set(e, ERR_DATA, "rope type '%.64s' is not supported (default, linear and llama3 are)", type);
    c->rope_scaling = ROPE_LINEAR;
    return json_get_f64(scaling, "factor", 1e-3, 1e6, &c->rope_factor, e);
}

/* transformers 4: "rope_theta" and "rope_scaling". transformers 5: both in "rope_parameters". */
static int read_rope(const cJSON *json, struct model_config *c, struct err *e) {
    const cJSON *parameters = member(json, "rope_parameters"), *scaling = member(json, "rope_scaling");
    c->rope_theta = 10000;
    int rc = json_opt_f64(json, "rope_theta", 1, 1e12, &c->rope_theta, e);
    if (!rc && parameters) rc = json_opt_f64(parameters, "rope_theta", 1, 1e12, &c->rope_theta, e);
    if (!rc && parameters && member(parameters, "partial_rotary_factor") &&
        member(parameters, "partial_rotary_factor")->valuedouble != 1)
        rc = err_set(e, ERR_DATA, "\"partial_rotary_factor\": this setting is not supported");
    if (!rc && (parameters || scaling)) rc = read_scaling(parameters ? parameters : scaling, c, e);
    return rc ? err_prefix(e, parameters ? "rope_parameters" : "rope") : 0;
}

static int read_numbers(const cJSON *json, struct model_config *c, struct model_layer *l, struct err *e) {
    const struct {
        const char *key;
        uint64_t max;
        uint32_t *to;
    } numbers[] = {
        {"num_hidden_layers", MODEL_MAX_LAYERS, &c->n_layers}, {"hidden_size", MODEL_MAX_DIM, &c->hidden},
        {"vocab_size", MODEL_MAX_VOCAB, &c->vocab_size},       {"max_position_embeddings", UINT32_MAX, &c->context},
        {"intermediate_size", MODEL_MAX_DIM, &l->ffn},         {"num_attention_heads", MODEL_MAX_DIM, &l->n_heads}};
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        uint64_t v = 0;
        int rc = json_get_u64(json, numbers[i].key, 1, numbers[i].max, &v, e);
        if (rc) return rc;
        *numbers[i].to = (uint32_t)v;
    }
    return 0;
}

static int read_heads(const cJSON *json, struct model_config *c, struct model_layer *l, struct err *e) {
    uint64_t kv = l->n_heads, head_dim = 0;
    int rc = json_opt_u64(json, "num_key_value_heads", 1, MODEL_MAX_DIM, &kv, e);
    if (!rc) rc = json_opt_u64(json, "head_dim", 1, MODEL_MAX_DIM, &head_dim, e);
    if (rc) return rc;
    if (!head_dim && c->hidden % l->n_heads)
        return err_set(e, ERR_DATA, "no \"head_dim\", and %u heads do not divide the hidden size %u", l->n_heads,
                       c->hidden);
    c->head_dim = head_dim ? (uint32_t)head_dim : c->hidden / l->n_heads;
    l->n_kv_heads = (uint32_t)kv;
    return 0;
}

int hf_config_read(struct model_config *c, const cJSON *json, struct arena *a, struct err *e) {
    struct model_layer layer = {0};
    double eps = 1e-6;
    *c = (struct model_config){0};
    int rc = read_arch(json, c, e);
    if (!rc) rc = check_demands(json, e);
    if (!rc) rc = read_numbers(json, c, &layer, e);
    if (!rc) rc = read_heads(json, c, &layer, e);
    if (!rc) rc = check_window(json, c, e);
    if (!rc) rc = read_rope(json, c, e);
    if (!rc) rc = json_opt_f64(json, "rms_norm_eps", 0, 1, &eps, e);
    if (!rc) rc = json_opt_bool(json, "tie_word_embeddings", &c->tied, e);
    c->qkv_bias = c->arch == ARCH_QWEN2;
    if (!rc && c->arch == ARCH_LLAMA) rc = json_opt_bool(json, "attention_bias", &c->qkv_bias, e);
    if (rc) return rc;
    c->norm_eps = (float)eps;
    c->layers = arena_array(a, c->n_layers, sizeof *c->layers, e);
    if (!c->layers) return e->code;
    for (uint32_t i = 0; i < c->n_layers; i++) c->layers[i] = layer;
    return model_config_check(c, e);
}

/* ---- writing ---- */

static int check_uniform(const struct model_config *c, struct err *e) {
    for (uint32_t i = 1; i < c->n_layers; i++) {
        const struct model_layer *a = &c->layers[0], *b = &c->layers[i];
        if (a->n_heads != b->n_heads || a->n_kv_heads != b->n_kv_heads || a->ffn != b->ffn)
            return err_set(
                e, ERR_DATA,
                "layer %u has %u heads, %u key/value heads and a feed-forward width of %u, layer 0 has %u, %u and "
                "%u: Hugging Face's config.json cannot say that, GGUF can (--to gguf)",
                i, b->n_heads, b->n_kv_heads, b->ffn, a->n_heads, a->n_kv_heads, a->ffn);
    }
    return 0;
}

static const struct hf_arch *arch_of(const struct model_config *c, struct err *e) {
    if (c->arch == ARCH_QWEN2 && !c->qkv_bias) {
        err_set(e, ERR_DATA, "a qwen2 model without biases: Hugging Face's Qwen2 always has them");
        return NULL;
    }
    for (size_t i = 0; i < COUNT_OF(archs); i++)
        if (archs[i].arch == c->arch) return &archs[i];
    err_set(e, ERR_DATA, "architecture '%s' has no Hugging Face class here", model_arch_name(c->arch));
    return NULL;
}

static bool put_scaling(cJSON *o, const struct model_config *c) {
    if (c->rope_scaling == ROPE_PLAIN) return cJSON_AddNullToObject(o, "rope_scaling") != NULL;
    cJSON *r = cJSON_AddObjectToObject(o, "rope_scaling");
    bool ok = r && json_put_str(r, "rope_type", c->rope_scaling == ROPE_LINEAR ? "linear" : "llama3") &&
              json_put_f64(r, "factor", c->rope_factor);
    if (ok && c->rope_scaling == ROPE_LLAMA3)
        ok = json_put_f64(r, "low_freq_factor", c->rope_low_freq) &&
             json_put_f64(r, "high_freq_factor", c->rope_high_freq) &&
             json_put_u64(r, "original_max_position_embeddings", c->rope_original_context);
    return ok;
}

/* As META has it: 1e-05, not 9.999999747378752e-06. */
static int shortest_eps(const struct model_config *c, double *eps, struct err *e) {
    cJSON *own = model_config_to_json(c, e);
    if (!own) return e->code;
    int rc = json_get_f64(own, "norm_eps", 0, 1, eps, e);
    cJSON_Delete(own);
    return rc;
}

static const char *torch_name(enum dtype dtype) {
    return dtype == DT_BF16 ? "bfloat16" : dtype == DT_F16 ? "float16" : "float32";
}

static bool put_id(cJSON *o, const char *key, uint32_t id) {
    return id == TOKEN_NONE ? cJSON_AddNullToObject(o, key) != NULL : json_put_u64(o, key, id);
}

static bool put_numbers(cJSON *o, const struct model_config *c, double eps) {
    const struct model_layer *l = &c->layers[0];
    return json_put_u64(o, "vocab_size", c->vocab_size) && json_put_u64(o, "hidden_size", c->hidden) &&
           json_put_u64(o, "intermediate_size", l->ffn) && json_put_u64(o, "num_hidden_layers", c->n_layers) &&
           json_put_u64(o, "num_attention_heads", l->n_heads) &&
           json_put_u64(o, "num_key_value_heads", l->n_kv_heads) && json_put_u64(o, "head_dim", c->head_dim) &&
           json_put_u64(o, "max_position_embeddings", c->context) && json_put_f64(o, "rms_norm_eps", eps) &&
           json_put_f64(o, "rope_theta", c->rope_theta) && put_scaling(o, c);
}

cJSON *hf_config_write(const struct model_config *c, const struct vocab *v, enum dtype dtype, struct err *e) {
    const struct hf_arch *arch = arch_of(c, e);
    double eps;
    if (!arch || check_uniform(c, e) != 0 || shortest_eps(c, &eps, e)) return NULL;
    cJSON *o = cJSON_CreateObject(), *classes = o ? cJSON_AddArrayToObject(o, "architectures") : NULL;
    cJSON *class = classes ? cJSON_CreateString(arch->class) : NULL;
    bool ok = class && cJSON_AddItemToArray(classes, class) && json_put_str(o, "model_type", arch->model_type) &&
              put_numbers(o, c, eps) && json_put_str(o, "hidden_act", "silu") &&
              json_put_bool(o, "tie_word_embeddings", c->tied) && json_put_str(o, "torch_dtype", torch_name(dtype)) &&
              json_put_bool(o, "use_cache", true);
    if (ok && c->arch == ARCH_LLAMA)
        ok = json_put_bool(o, "attention_bias", c->qkv_bias) && json_put_bool(o, "mlp_bias", false);
    if (ok && c->arch == ARCH_QWEN2) ok = json_put_bool(o, "use_sliding_window", false);
    if (ok && v)
        ok =
            put_id(o, "bos_token_id", v->bos) && put_id(o, "eos_token_id", v->eos) && put_id(o, "pad_token_id", v->pad);
    if (ok) return o;
    cJSON_Delete(o);
    err_nomem(e, "config.json");
    return NULL;
}
