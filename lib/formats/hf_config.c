/*
 * Reads and writes what config.json has in common for all classes of Hugging Face; arch_*.c handle the rest, and
 * formats/huggingface.md has the table of keys.
 */
#include "lib/formats/arch_internal.h"

/* ---- the class ---- */

/* transformers goes by model_type, other programs by the class, so they must agree. */
static int read_arch(const cJSON *json, const struct arch **out, const struct hf_class **class, struct err *e) {
    const cJSON *list = hf_member(json, "architectures");
    const char *type = cJSON_GetStringValue(hf_member(json, "model_type")), *first = NULL;
    const struct hf_class *named, *typed;
    *out = NULL;
    if (list && !cJSON_IsArray(list)) return err_set(e, ERR_DATA, "\"architectures\" is not a list");
    for (const cJSON *x = list ? list->child : NULL; x; x = x->next) {
        const char *name = cJSON_GetStringValue(x);
        const struct arch *found = name ? arch_by_class(name, &named) : NULL;
        if (!found) return arch_class_unknown(name ? name : "(no text)", e);
        if (first && (*out != found || (*class)->output != named->output))
            return err_set(e, ERR_DATA, "\"architectures\" names both %s and %s", first, name);
        *out = found;
        *class = named;
        first = name;
    }
    if (!type) return *out ? 0 : arch_class_unknown("(none)", e);
    const struct arch *by_type = arch_by_model_type(type, &typed);
    if (*out && *out != by_type)
        return err_set(e, ERR_DATA, "\"architectures\" says %s, but \"model_type\" says '%.64s'", first, type);
    if (!*out) *class = typed;
    *out = by_type;
    return *out ? 0 : arch_class_unknown(type, e);
}

/* transformers runs such code only if told to trust it. */
static void warn_of_code(const cJSON *json, const struct hf_class *class) {
    for (const cJSON *x = hf_member(json, "auto_map") ? hf_member(json, "auto_map")->child : NULL; x; x = x->next)
        if (x->string && strncmp(x->string, "AutoModel", 9) == 0) {
            log_line(LOG_WARN, "config.json: \"auto_map\" names code of its own for this model: it is read as %s",
                     class->class);
            return;
        }
}

/* ---- numbers ---- */

static int read_rope(const cJSON *json, const struct arch *arch, struct model_config *c, struct arena *a,
                     struct err *e) {
    double share = arch->hf.partial_rotary;
    struct hf_rope r, local = {.partial = 1};
    struct hf_rope defaults = {.rope = {.theta = arch->hf.theta, .original_context = arch->hf.original_context},
                               .partial = share != 0 ? share : 1};
    if (c->positions != POSITIONS_ROTARY) return 0;
    int rc = arch->hf.local_theta != 0 ? hf_rope_read_both(&r, &local, json, &defaults, arch->hf.local_theta, a, e)
                                       : hf_rope_read(&r, json, &defaults, a, e);
    if (rc) return rc;
    c->rope = r.rope;
    c->local_rope = local.rope;
    if (local.partial != 1)
        return err_set(e, ERR_DATA, "\"partial_rotary_factor\": %g is not supported for sliding attention (1 is)",
                       local.partial);
    if (r.partial != 1 && share == 0)
        return err_set(e, ERR_DATA, "\"partial_rotary_factor\": %g is not supported (1 is)", r.partial);
    if (c->head_dim * r.partial < 2)
        return err_set(e, ERR_DATA, "\"partial_rotary_factor\": %g leaves no pair of a head of %u to rotate", r.partial,
                       c->head_dim);
    if (r.partial != 1) c->rope.dims = (uint32_t)(c->head_dim * r.partial);
    return 0;
}

static int read_numbers(const cJSON *json, const struct hf_side *side, struct model_config *c, struct model_layer *l,
                        struct err *e) {
    const struct hf_numbers *n = side->numbers;
    const struct {
        const char *key;
        uint64_t max;
        uint32_t *to, absent;
    } numbers[] = {{n->layers, MODEL_MAX_LAYERS, &c->n_layers, 0},
                   {n->hidden, MODEL_MAX_DIM, &c->hidden, 0},
                   {"vocab_size", MODEL_MAX_VOCAB, &c->vocab_size, side->vocab},
                   {n->context, UINT32_MAX, &c->context, side->context},
                   {n->heads, MODEL_MAX_DIM, &l->n_heads, side->heads}};
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        uint64_t v = numbers[i].absent;
        if (!numbers[i].key) continue; /* layers without attention have no such key */
        int rc = v ? json_opt_u64(json, numbers[i].key, 1, numbers[i].max, &v, e)
                   : json_get_u64(json, numbers[i].key, 1, numbers[i].max, &v, e);
        if (rc) return rc;
        *numbers[i].to = (uint32_t)v;
    }
    uint64_t ffn = 4ull * c->hidden;
    if (!n->ffn) return 0;
    int rc = n->ffn_follows ? json_opt_u64(json, n->ffn, 1, MODEL_MAX_DIM, &ffn, e)
                            : json_get_u64(json, n->ffn, 1, MODEL_MAX_DIM, &ffn, e);
    l->ffn = (uint32_t)ffn;
    return rc;
}

/* An absent key means the class's default; null means derived from other values. */
static int read_defaulted(const cJSON *json, const char *key, uint32_t absent, uint64_t *out, struct err *e) {
    if (!key) return 0;
    if (absent && !cJSON_GetObjectItemCaseSensitive(json, key)) *out = absent;
    return json_opt_u64(json, key, 1, MODEL_MAX_DIM, out, e);
}

static int read_heads(const cJSON *json, const struct arch *arch, struct model_config *c, struct model_layer *l,
                      struct err *e) {
    uint64_t kv = l->n_heads, head_dim = 0;
    if (!arch->hf.numbers->heads) return 0;
    int rc = read_defaulted(json, arch->hf.numbers->kv_heads, arch->hf.kv_heads, &kv, e);
    if (!rc) rc = read_defaulted(json, arch->hf.numbers->head_dim, arch->hf.head_dim, &head_dim, e);
    if (rc) return rc;
    if (!head_dim && c->hidden % l->n_heads)
        return err_set(e, ERR_DATA, "no \"head_dim\", and %u heads do not divide the hidden size %u", l->n_heads,
                       c->hidden);
    c->head_dim = head_dim ? (uint32_t)head_dim : c->hidden / l->n_heads;
    l->n_kv_heads = (uint32_t)kv;
    return 0;
}

/* ---- reading ---- */

/* The number of names in "id2label", else "num_labels", else 2. */
static int read_classes(const cJSON *json, struct model_config *c, struct err *e) {
    const cJSON *names = hf_member(json, "id2label");
    uint64_t n = names ? (uint64_t)cJSON_GetArraySize(names) : 2, said = n;
    int rc = json_opt_u64(json, "num_labels", 1, MODEL_MAX_DIM, &said, e);
    if (rc) return rc;
    if (names && said != n)
        return err_set(e, ERR_DATA, "\"id2label\" names %llu classes, but \"num_labels\" is %llu",
                       (unsigned long long)n, (unsigned long long)said);
    c->classes = (uint32_t)said;
    if (c->output != OUTPUT_SPAN || said == 2) return 0;
    return err_set(e, ERR_DATA, "\"num_labels\" or \"id2label\": %u, where an answer has 2 ends", c->classes);
}

static bool predicts_tokens(const struct model_config *c) {
    return c->output == OUTPUT_LM || c->output == OUTPUT_MASKED_LM;
}

static int read_model(const cJSON *json, const struct arch *arch, struct model_config *c, struct arena *a,
                      struct err *e) {
    struct model_layer layer = {0};
    double eps = arch->hf.eps;
    int rc = read_numbers(json, &arch->hf, c, &layer, e);
    if (!rc) rc = read_heads(json, arch, c, &layer, e);
    if (!rc) rc = read_rope(json, arch, c, a, e);
    if (!rc && arch->hf.numbers->eps) rc = json_opt_f64(json, arch->hf.numbers->eps, 0, 1, &eps, e);
    if (!rc && arch->hf.numbers->act) rc = hf_read_act(c, json, arch->hf.numbers->act, hf_act_name(c->act), e);
    c->tied = arch->hf.tied;
    if (!rc) rc = json_opt_bool(json, "tie_word_embeddings", &c->tied, e);
    if (!rc && c->output >= OUTPUT_CLASSES) rc = read_classes(json, c, e);
    if (rc) return rc;
    if (!predicts_tokens(c)) c->tied = false; /* there is no head to tie */
    c->norm_eps = (float)eps;
    c->layers = arena_array(a, c->n_layers, sizeof *c->layers, e);
    if (!c->layers) return e->code;
    for (uint32_t i = 0; i < c->n_layers; i++) c->layers[i] = layer;
    return arch->hf.read ? arch->hf.read(c, json, e) : 0;
}

int hf_config_read(struct model_config *c, const cJSON *json, struct arena *a, struct err *e) {
    const struct arch *arch;
    const struct hf_class *class = NULL;
    *c = (struct model_config){.n_layers = 0};
    int rc = read_arch(json, &arch, &class, e);
    if (!rc) rc = hf_check_keys(json, arch->hf.keys, arch->hf.n_keys, e);
    if (rc) return rc;
    *c = arch->traits;
    c->arch = arch->name;
    c->output = class->output;
    rc = read_model(json, arch, c, a, e);
    if (rc) return rc;
    warn_of_code(json, class);
    return model_config_check(c, e);
}

/* ---- writing ---- */

/* config.json has one number for all layers, or for all layers with experts. */
static int check_uniform(const struct arch *arch, const struct model_config *c, struct err *e) {
    for (uint32_t i = 1; i < c->n_layers; i++) {
        const struct model_layer *a = &c->layers[0], *b = &c->layers[i];
        uint32_t like = 0; /* index of the first layer of the same kind: with experts or without */
        while (!c->layers[like].experts != !b->experts) like++;
        const struct model_layer *kin = &c->layers[like];
        if (b->experts != kin->experts || b->expert_ffn != kin->expert_ffn || (b->experts && b->ffn != kin->ffn))
            return err_set(e, ERR_DATA,
                           "layer %u has %u experts of %u beside a width of %u, layer %u has %u, %u and %u: Hugging "
                           "Face's config.json cannot express that",
                           i, b->experts, b->expert_ffn, b->ffn, like, kin->experts, kin->expert_ffn, kin->ffn);
        if (a->n_heads != b->n_heads || a->n_kv_heads != b->n_kv_heads || kin->ffn != b->ffn)
            return err_set(
                e, ERR_DATA,
                "layer %u has %u heads, %u key/value heads and a feed-forward width of %u, layer %u has %u, %u and "
                "%u: Hugging Face's config.json cannot express that%s",
                i, b->n_heads, b->n_kv_heads, b->ffn, kin->ffn != b->ffn ? like : 0, a->n_heads, a->n_kv_heads,
                kin->ffn, arch_gguf_name(arch, c) ? ", GGUF can (--to gguf)" : "");
    }
    return 0;
}

/* ERR_DATA: a layer has a window that the class cannot express. */
static int check_windows(const struct arch *arch, const struct model_config *c, struct err *e) {
    uint32_t window;
    if (arch->hf.windows == ONE_WINDOW) return arch_uniform_window(c, e);
    if (arch->hf.windows == LAYER_WINDOWS) return arch_one_window(c, &window, e);
    for (uint32_t i = 0; i < c->n_layers; i++)
        if (c->layers[i].window)
            return err_set(e, ERR_DATA, "layer %u sees %u positions only, and a %s of transformers has no such window",
                           i, c->layers[i].window, arch->name);
    return 0;
}

int hf_config_check(const struct model_config *c, struct err *e) {
    const struct arch *arch;
    int rc = arch_of_config(c, &arch, e);
    if (!rc) rc = check_uniform(arch, c, e);
    if (!rc) rc = check_windows(arch, c, e);
    if (!rc) rc = arch_check_rotation(arch, c, e);
    if (!rc && !arch_class(arch, c))
        rc = err_set(e, ERR_DATA, "transformers has no class of %s with such an output", arch->name);
    return rc || !arch->hf.check ? rc : arch->hf.check(c, e);
}

static const char *torch_name(enum dtype dtype) {
    return dtype == DT_BF16 ? "bfloat16" : dtype == DT_F16 ? "float16" : "float32";
}

static bool put_id(cJSON *o, const char *key, uint32_t id) {
    if (cJSON_GetObjectItemCaseSensitive(o, key)) return true; /* already written by the architecture */
    return id == TOKEN_NONE ? cJSON_AddNullToObject(o, key) != NULL : json_put_u64(o, key, id);
}

static bool put_number(cJSON *o, const char *key, uint64_t v) {
    return !key || json_put_u64(o, key, v);
}

/* transformers requires a float here: 0.0, not the integer 0. */
static bool put_eps(cJSON *o, const char *key, float eps) {
    return !key || (eps == 0 ? json_put_float(o, key, 0) : json_put_f64(o, key, model_shortest_float(eps)));
}

static bool put_numbers(cJSON *o, const struct hf_numbers *n, const struct model_config *c) {
    const struct model_layer *l = &c->layers[0];
    return put_number(o, "vocab_size", c->vocab_size) && put_number(o, n->hidden, c->hidden) &&
           put_number(o, n->ffn, config_ffn(c)) && put_number(o, n->layers, c->n_layers) &&
           put_number(o, n->heads, l->n_heads) && put_number(o, n->kv_heads, l->n_kv_heads) &&
           put_number(o, n->head_dim, c->head_dim) && put_number(o, n->context, c->context) &&
           put_eps(o, n->eps, c->norm_eps) && (!n->act || json_put_str(o, n->act, hf_act_name(c->act)));
}

static bool put_rope(cJSON *o, const struct arch *arch, const struct model_config *c) {
    if (c->positions != POSITIONS_ROTARY) return true;
    return hf_rope_put(o, c, arch->hf.original_context != 0) &&
           (arch->hf.partial_rotary == 0 || json_put_f64(o, "partial_rotary_factor", hf_rotary_share(c)));
}

cJSON *hf_config_write(const struct model_config *c, const struct vocab *v, enum dtype dtype, struct err *e) {
    const struct arch *arch;
    if (hf_config_check(c, e) || arch_of_config(c, &arch, e)) return NULL;
    cJSON *o = cJSON_CreateObject(), *classes = o ? cJSON_AddArrayToObject(o, "architectures") : NULL;
    const struct hf_class *class = arch_class(arch, c);
    cJSON *name = classes ? cJSON_CreateString(class->class) : NULL;
    bool tied = predicts_tokens(c) ? c->tied : arch->hf.tied;
    bool ok = name && cJSON_AddItemToArray(classes, name) && json_put_str(o, "model_type", class->model_type) &&
              put_numbers(o, arch->hf.numbers, c) && put_rope(o, arch, c) &&
              json_put_bool(o, "tie_word_embeddings", tied) && json_put_str(o, "torch_dtype", torch_name(dtype)) &&
              json_put_bool(o, "use_cache", true);
    if (ok && arch->hf.write) ok = arch->hf.write(o, c);
    if (ok && v)
        ok =
            put_id(o, "bos_token_id", v->bos) && put_id(o, "eos_token_id", v->eos) && put_id(o, "pad_token_id", v->pad);
    if (ok) return o;
    cJSON_Delete(o);
    err_nomem(e, "config.json");
    return NULL;
}
