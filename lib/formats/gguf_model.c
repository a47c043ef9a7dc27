/* Reads a model configuration from the keys of a GGUF. formats/gguf.md has the table of keys. */
#include "lib/formats/arch_internal.h"

int gguf_read_arch(const struct gguf_file *g, struct arena *a, const struct arch **out, const struct gguf_name **name,
                   struct err *e) {
    const char *text = NULL, *type = "model";
    char key[128];
    uint64_t experts = 0;
    int rc = gguf_opt_str(g, "general.type", a, &type, e);
    if (!rc && !strcmp(type, "imatrix"))
        rc = err_set(e, ERR_DATA, "an importance matrix, no model: quantize --stats reads it as it is");
    else if (!rc && strcmp(type, "model") != 0)
        rc = err_set(e, ERR_DATA, "key 'general.type': '%.64s' is not supported (model is)", type);
    if (!rc) rc = gguf_opt_str(g, "general.architecture", a, &text, e);
    if (rc) return rc;
    if (!text) return err_set(e, ERR_DATA, "key 'general.architecture' is missing");
    snprintf(key, sizeof key, "%.100s.expert_count", text);
    rc = gguf_opt_u64(g, key, 0, UINT32_MAX, &experts, e);
    if (rc) return rc;
    *out = arch_by_gguf(text, experts != 0, name);
    return *out ? 0 : arch_gguf_unknown(text, e);
}

/* ---- shapes ---- */

static uint32_t *layer_number(struct model_layer *l, size_t offset) {
    return (uint32_t *)((char *)l + offset);
}

/* The key holds a number for all layers, or an array with one per layer. */
static int read_per_layer(const struct gguf_file *g, const char *key, struct model_config *c, size_t offset,
                          struct err *e) {
    const struct gguf_kv *kv = gguf_find(g, key);
    if (!kv) return err_set(e, ERR_DATA, "key '%s' is missing", key);
    if (kv->is_array && kv->n != c->n_layers)
        return err_set(e, ERR_DATA, "key '%s' has %llu entries for %u layers", key, (unsigned long long)kv->n,
                       c->n_layers);
    for (uint32_t i = 0; i < c->n_layers; i++) {
        uint64_t v;
        if (!gguf_kv_u64(kv, kv->is_array ? i : 0, &v) || v < 1 || v > MODEL_MAX_DIM)
            return err_set(e, ERR_DATA, "key '%s', layer %u: not a whole number from 1 to %u", key, i, MODEL_MAX_DIM);
        *layer_number(&c->layers[i], offset) = (uint32_t)v;
    }
    return 0;
}

static int read_layers(const struct gguf_file *g, const char *prefix, struct model_config *c, struct arena *a,
                       struct err *e) {
    char key[GGUF_KEY_SIZE];
    c->layers = arena_array(a, c->n_layers, sizeof *c->layers, e);
    if (!c->layers) return e->code;
    int rc =
        read_per_layer(g, gguf_arch_key(key, prefix, "feed_forward_length"), c, offsetof(struct model_layer, ffn), e);
    const char *heads = gguf_arch_key(key, prefix, "attention.head_count");
    if (!rc) rc = read_per_layer(g, heads, c, offsetof(struct model_layer, n_heads), e);
    if (rc) return rc;
    const char *kv_heads = gguf_arch_key(key, prefix, "attention.head_count_kv");
    if (gguf_find(g, kv_heads)) return read_per_layer(g, kv_heads, c, offsetof(struct model_layer, n_kv_heads), e);
    for (uint32_t i = 0; i < c->n_layers; i++) c->layers[i].n_kv_heads = c->layers[i].n_heads;
    return 0;
}

/* The head size is given or follows from the first layer. Values must have the same size, and so must the rotated part
 * unless the architecture allows a partial rotation. */
static int read_head_dim(const struct gguf_file *g, const char *prefix, bool partial, struct model_config *c,
                         struct err *e) {
    char key[GGUF_KEY_SIZE];
    uint64_t head_dim = 0;
    int rc = gguf_opt_u64(g, gguf_arch_key(key, prefix, "attention.key_length"), 1, MODEL_MAX_DIM, &head_dim, e);
    if (rc) return rc;
    if (!head_dim && c->hidden % c->layers[0].n_heads)
        return err_set(e, ERR_DATA, "key '%s' is missing, and %u heads do not divide the embedding length %u", key,
                       c->layers[0].n_heads, c->hidden);
    if (!head_dim) head_dim = c->hidden / c->layers[0].n_heads;
    uint64_t value = head_dim, rotated = head_dim;
    rc = gguf_opt_u64(g, gguf_arch_key(key, prefix, "attention.value_length"), 0, UINT32_MAX, &value, e);
    if (!rc && value != head_dim)
        rc = err_set(e, ERR_DATA, "key '%s' is %llu, but heads have %llu: not supported", key,
                     (unsigned long long)value, (unsigned long long)head_dim);
    if (!rc) rc = gguf_opt_u64(g, gguf_arch_key(key, prefix, "rope.dimension_count"), 0, UINT32_MAX, &rotated, e);
    if (!rc && rotated != head_dim && !partial)
        rc = err_set(e, ERR_DATA, "key '%s' is %llu, but heads have %llu: not supported", key,
                     (unsigned long long)rotated, (unsigned long long)head_dim);
    if (rc) return rc;
    if (rotated != head_dim) c->rope.dims = (uint32_t)rotated;
    c->head_dim = (uint32_t)head_dim;
    return 0;
}

static int read_numbers(const struct gguf_file *g, const char *prefix, struct model_config *c, struct err *e) {
    const struct {
        const char *suffix;
        uint64_t max;
        uint32_t *to;
    } numbers[] = {{"block_count", MODEL_MAX_LAYERS, &c->n_layers},
                   {"embedding_length", MODEL_MAX_DIM, &c->hidden},
                   {"context_length", UINT32_MAX, &c->context}};
    char key[GGUF_KEY_SIZE];
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        uint64_t v = 0;
        int rc = gguf_get_u64(g, gguf_arch_key(key, prefix, numbers[i].suffix), 1, numbers[i].max, &v, e);
        if (rc) return rc;
        *numbers[i].to = (uint32_t)v;
    }
    double eps = -1;
    const char *name = c->norm == NORM_RMS ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon";
    int rc = gguf_opt_f64(g, gguf_arch_key(key, prefix, name), 0, 1, &eps, e);
    if (!rc && eps < 0) rc = err_set(e, ERR_DATA, "key '%s' is missing", key);
    c->norm_eps = (float)eps;
    return rc;
}

/* ---- the configuration ---- */

static int read_vocab_size(const struct gguf_file *g, const char *prefix, struct model_config *c, struct err *e) {
    const struct raw_tensor *embed = raw_table_find(&g->tensors, "token_embd.weight");
    if (!embed) return err_set(e, ERR_DATA, "tensor 'token_embd.weight' is missing");
    uint64_t rows = embed->rank == 2 ? embed->dims[0] : 0, said = rows;
    if (rows < 1 || rows > MODEL_MAX_VOCAB)
        return err_set(e, ERR_DATA, "tensor 'token_embd.weight' is not a matrix of 1 to %u rows", MODEL_MAX_VOCAB);
    char key[GGUF_KEY_SIZE];
    int rc = gguf_opt_u64(g, gguf_arch_key(key, prefix, "vocab_size"), 1, MODEL_MAX_VOCAB, &said, e);
    if (!rc && said != rows)
        rc = err_set(e, ERR_DATA, "key '%s' is %llu, but the embedding has %llu rows", key, (unsigned long long)said,
                     (unsigned long long)rows);
    c->vocab_size = (uint32_t)rows;
    return rc;
}

/* Our exports may use another architecture's name, as qwen2 written as deci; this key then has the real one. */
static int read_own_arch(const struct gguf_file *g, const struct arch **arch, const char *prefix, struct arena *a,
                         struct err *e) {
    const char *name = NULL;
    int rc = gguf_opt_str(g, "rill.architecture", a, &name, e);
    if (rc || !name) return rc;
    const struct arch *own;
    rc = arch_of_config(&(struct model_config){.arch = name}, &own, e);
    if (rc) return err_prefix(e, "key 'rill.architecture'");
    if (own != *arch && (!own->gguf.uneven.name || strcmp(prefix, own->gguf.uneven.name) != 0) &&
        strcmp(prefix, own->gguf.names[0].name ? own->gguf.names[0].name : "") != 0)
        return err_set(e, ERR_DATA, "key 'rill.architecture' is '%.64s', but 'general.architecture' is '%s'", name,
                       prefix);
    *arch = own;
    return 0;
}

/* Optional biases are detected by their tensors. */
static bool has_tensor(const struct gguf_file *g, const char *name, const char *fused) {
    return raw_table_find(&g->tensors, name) || raw_table_find(&g->tensors, fused);
}

int gguf_read_config(const struct gguf_file *g, const struct arch *arch, const char *prefix, struct model_config *c,
                     struct arena *a, struct err *e) {
    *c = (struct model_config){.n_layers = 0};
    int rc = gguf_check_keys(g, prefix, arch->gguf.keys, arch->gguf.n_keys, e);
    if (!rc) rc = read_own_arch(g, &arch, prefix, a, e);
    if (rc) return rc;
    *c = arch->traits;
    c->arch = arch->name;
    rc = read_numbers(g, prefix, c, e);
    if (!rc) rc = read_layers(g, prefix, c, a, e);
    if (!rc) rc = read_head_dim(g, prefix, arch->hf.partial_rotary, c, e);
    if (!rc) rc = gguf_read_rope(c, g, arch, prefix, a, e);
    if (!rc) rc = read_vocab_size(g, prefix, c, e);
    if (rc) return rc;
    c->tied = c->output != OUTPUT_NONE && !raw_table_find(&g->tensors, "output.weight");
    c->qkv_bias = has_tensor(g, "blk.0.attn_q.bias", "blk.0.attn_qkv.bias");
    c->o_bias = has_tensor(g, "blk.0.attn_output.bias", "");
    if (arch->gguf.read) rc = arch->gguf.read(c, g, prefix, a, e);
    return rc ? rc : model_config_check(c, e);
}

const char *const gguf_general_keys[] = {"name",     "author",      "version",    "organization",    "basename",
                                         "finetune", "description", "license",    "license.name",    "license.link",
                                         "url",      "repo_url",    "source.url", "source.repo_url", NULL};

int gguf_read_general(const struct gguf_file *g, struct arena *a, cJSON **out, struct err *e) {
    cJSON *general = cJSON_CreateObject();
    bool ok = general != NULL;
    int rc = 0;
    for (size_t i = 0; gguf_general_keys[i] && ok && !rc; i++) {
        char key[GGUF_KEY_SIZE];
        const char *value = NULL;
        snprintf(key, sizeof key, "general.%s", gguf_general_keys[i]);
        rc = gguf_opt_str(g, key, a, &value, e);
        if (!rc && value) ok = json_put_str(general, gguf_general_keys[i], value);
    }
    if (!ok) rc = err_nomem(e, "general keys");
    if (rc || !general->child) {
        cJSON_Delete(general);
        general = NULL;
    }
    *out = general;
    return rc;
}
