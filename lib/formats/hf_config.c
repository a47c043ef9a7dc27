/* config.json of Hugging Face's Llama, Mistral and Qwen2 for causal language modelling. formats/huggingface.md has the
 * table of keys. */
#include "lib/formats/formats_internal.h"

/* ---- the classes: keys that mean something of their own in one, and what it takes for keys that are absent ---- */

static const struct hf_key llama_keys[] = {
    HF_KEY("attention_bias", HF_READ),
    HF_KEY_TEXT("qkv_bias", HF_SAME, "attention_bias"),
};
static const struct hf_key mistral_keys[] = {
    HF_KEY("attention_bias", HF_OFF),
    HF_KEY("qkv_bias", HF_OFF),
};
/* Its q, k and v always have biases, its o never. */
static const struct hf_key qwen2_keys[] = {
    HF_KEY("attention_bias", HF_TRUE),
    HF_KEY("qkv_bias", HF_TRUE),
};

/* When a class heeds "sliding_window": Llama never, so one there is refused; Mistral always; Qwen2 when
 * "use_sliding_window" is true, and only in layers from "max_window_layers" on. */
enum window_use { WINDOW_NONE, WINDOW_ALWAYS, WINDOW_SWITCHED };

static const struct hf_arch {
    const char *class, *model_type;
    enum model_arch arch;
    const struct hf_key *keys;
    size_t n_keys;
    enum window_use window_use;
    uint32_t window;        /* when "sliding_window" is absent; 0: none */
    uint32_t window_layers; /* when "max_window_layers" is absent: those below have no window */
    uint32_t kv_heads;      /* when "num_key_value_heads" is absent; 0: as many as heads */
} archs[] = {
    {"LlamaForCausalLM", "llama", ARCH_LLAMA, llama_keys, COUNT_OF(llama_keys), WINDOW_NONE, 0, 0, 0},
    {"MistralForCausalLM", "mistral", ARCH_LLAMA, mistral_keys, COUNT_OF(mistral_keys), WINDOW_ALWAYS, 4096, 0, 8},
    {"Qwen2ForCausalLM", "qwen2", ARCH_QWEN2, qwen2_keys, COUNT_OF(qwen2_keys), WINDOW_SWITCHED, 4096, 28, 0},
};

/* ---- reading ---- */

static const struct hf_arch *arch_by_type(const char *type) {
    for (size_t i = 0; i < COUNT_OF(archs); i++)
        if (strcmp(type, archs[i].model_type) == 0) return &archs[i];
    return NULL;
}

static const struct hf_arch *arch_by_class(const char *class) {
    for (size_t i = 0; i < COUNT_OF(archs); i++)
        if (strcmp(class, archs[i].class) == 0) return &archs[i];
    return NULL;
}

static int not_supported(const char *name, struct err *e) {
    char list[256];
    size_t n = 0;
    for (size_t i = 0; i < COUNT_OF(archs); i++)
        n += (size_t)snprintf(list + n, sizeof list - n, "%s%s",
                              i == 0                    ? ""
                              : i + 1 < COUNT_OF(archs) ? ", "
                                                        : " and ",
                              archs[i].class);
    return err_set(e, ERR_DATA, "architecture '%.64s' is not supported (%s are)", name, list);
}

/* transformers goes by model_type, everybody else by the class: they must be of one kind. */
static int read_arch(const cJSON *json, const struct hf_arch **out, struct err *e) {
    const cJSON *list = hf_member(json, "architectures");
    const char *type = cJSON_GetStringValue(hf_member(json, "model_type"));
    *out = NULL;
    if (list && !cJSON_IsArray(list)) return err_set(e, ERR_DATA, "\"architectures\" is not a list");
    for (const cJSON *x = list ? list->child : NULL; x; x = x->next) {
        const char *class = cJSON_GetStringValue(x);
        const struct hf_arch *found = class ? arch_by_class(class) : NULL;
        if (!found) return not_supported(class ? class : "(no text)", e);
        if (*out && *out != found)
            return err_set(e, ERR_DATA, "\"architectures\" names both %s and %s", (*out)->class, found->class);
        *out = found;
    }
    if (!type) return *out ? 0 : not_supported("(none)", e);
    if (!*out) {
        *out = arch_by_type(type);
        return *out ? 0 : not_supported(type, e);
    }
    if (strcmp(type, (*out)->model_type) == 0) return 0;
    return err_set(e, ERR_DATA, "\"architectures\" says %s, but \"model_type\" says '%.64s'", (*out)->class, type);
}

/* transformers runs such code only when it is told to trust it. */
static void warn_of_code(const cJSON *json, const struct hf_arch *arch) {
    for (const cJSON *x = hf_member(json, "auto_map") ? hf_member(json, "auto_map")->child : NULL; x; x = x->next)
        if (x->string && strncmp(x->string, "AutoModel", 9) == 0) {
            log_line(LOG_WARN, "config.json: \"auto_map\" names code of its own for this model: it is read as %s",
                     arch->class);
            return;
        }
}

/* ---- windows ---- */

/* One entry a layer, and all of them full attention. */
static int check_layer_types(const cJSON *json, const struct model_config *c, bool *given, struct err *e) {
    const cJSON *list = hf_member(json, "layer_types");
    uint32_t n = 0;
    *given = list != NULL;
    if (!list) return 0;
    if (!cJSON_IsArray(list)) return err_set(e, ERR_DATA, "\"layer_types\" is not a list");
    for (const cJSON *x = list->child; x; x = x->next, n++) {
        const char *type = cJSON_GetStringValue(x);
        if (!type || strcmp(type, "full_attention") != 0)
            return err_set(e, ERR_DATA, "\"layer_types\": '%.64s' is not supported", type ? type : "(no text)");
    }
    if (n != c->n_layers)
        return err_set(e, ERR_DATA, "\"layer_types\" has %u entries, but \"num_hidden_layers\" is %u", n, c->n_layers);
    return 0;
}

/* A window changes something only where it is shorter than the context. */
static int check_window(const cJSON *json, const struct hf_arch *arch, const struct model_config *c, struct err *e) {
    static const char key[] = "sliding_window";
    bool types_given, use = arch->window_use != WINDOW_SWITCHED;
    uint64_t window = arch->window, first = arch->window_layers;
    if (cJSON_IsNull(cJSON_GetObjectItemCaseSensitive(json, key))) window = 0; /* switched off, unlike absent */
    int rc = check_layer_types(json, c, &types_given, e);
    if (!rc) rc = json_opt_bool(json, "use_sliding_window", &use, e);
    if (!rc) rc = json_opt_u64(json, key, 0, JSON_MAX_INTEGER, &window, e);
    if (!rc && arch->window_use == WINDOW_SWITCHED)
        rc = json_opt_u64(json, "max_window_layers", 0, UINT32_MAX, &first, e);
    if (rc) return rc;
    bool felt = window && window < c->context && first < c->n_layers;
    if (!felt || !use) {
        if (felt && arch->window_use == WINDOW_ALWAYS)
            return err_set(e, ERR_DATA, "\"use_sliding_window\" is false, but %s takes its \"%s\" of %llu all the same",
                           arch->class, key, (unsigned long long)window);
        return 0;
    }
    if (types_given)
        return err_set(e, ERR_DATA, "\"layer_types\" has no window, but \"%s\" is %llu", key,
                       (unsigned long long)window);
    return err_set(e, ERR_DATA, "\"%s\": attention to the last %llu of %u positions is not supported%s", key,
                   (unsigned long long)window, c->context,
                   arch->window_use == WINDOW_SWITCHED ? " (\"use_sliding_window\" is true)" : "");
}

/* ---- numbers ---- */

static int read_rope(const cJSON *json, struct model_config *c, struct err *e) {
    struct hf_rope r;
    int rc = hf_rope_read(&r, json, 10000, e);
    if (rc) return rc;
    if (r.partial != 1) return err_set(e, ERR_DATA, "\"partial_rotary_factor\": %g is not supported (1 is)", r.partial);
    c->rope_theta = r.theta;
    c->rope_scaling = r.scaling;
    c->rope_factor = r.factor;
    c->rope_low_freq = r.low_freq;
    c->rope_high_freq = r.high_freq;
    c->rope_original_context = r.original_context;
    return 0;
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

static int read_heads(const cJSON *json, const struct hf_arch *arch, struct model_config *c, struct model_layer *l,
                      struct err *e) {
    bool absent = !cJSON_GetObjectItemCaseSensitive(json, "num_key_value_heads"); /* null: as many as heads */
    uint64_t kv = absent && arch->kv_heads ? arch->kv_heads : l->n_heads, head_dim = 0;
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
    const struct hf_arch *arch;
    struct model_layer layer = {0};
    double eps = 1e-6;
    *c = (struct model_config){0};
    int rc = read_arch(json, &arch, e);
    if (!rc) rc = hf_check_keys(json, arch->keys, arch->n_keys, e);
    if (!rc) rc = read_numbers(json, c, &layer, e);
    if (!rc) rc = read_heads(json, arch, c, &layer, e);
    if (!rc) rc = check_window(json, arch, c, e);
    if (!rc) rc = read_rope(json, c, e);
    if (!rc) rc = json_opt_f64(json, "rms_norm_eps", 0, 1, &eps, e);
    if (!rc) rc = json_opt_bool(json, "tie_word_embeddings", &c->tied, e);
    if (rc) return rc;
    c->arch = arch->arch;
    c->qkv_bias = c->arch == ARCH_QWEN2;
    if (arch->keys == llama_keys) rc = json_opt_bool(json, "attention_bias", &c->qkv_bias, e);
    if (rc) return rc;
    warn_of_code(json, arch);
    c->norm_eps = (float)eps;
    c->layers = arena_array(a, c->n_layers, sizeof *c->layers, e);
    if (!c->layers) return e->code;
    for (uint32_t i = 0; i < c->n_layers; i++) c->layers[i] = layer;
    return model_config_check(c, e);
}

/* ---- writing ---- */

static const struct hf_arch *arch_of(const struct model_config *c, struct err *e) {
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
    if (!arch || model_target_check(TARGET_TRANSFORMERS, c, e) || shortest_eps(c, &eps, e)) return NULL;
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
