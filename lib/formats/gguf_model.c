/* Reads the configuration of a model from the keys of a GGUF. formats/gguf.md has the table of keys. */
#include "lib/formats/arch_internal.h"

int gguf_read_arch(const struct gguf_file *g, struct arena *a, const struct arch **out, const struct gguf_name **name,
                   struct err *e) {
    const char *text = NULL, *type = "model";
    int rc = gguf_opt_str(g, "general.type", a, &type, e);
    if (!rc && !strcmp(type, "imatrix"))
        rc = err_set(e, ERR_DATA, "an importance matrix, no model: quantize --stats reads it as it is");
    else if (!rc && strcmp(type, "model") != 0)
        rc = err_set(e, ERR_DATA, "key 'general.type': '%.64s' is not supported (model is)", type);
    if (!rc) rc = gguf_opt_str(g, "general.architecture", a, &text, e);
    if (rc) return rc;
    if (!text) return err_set(e, ERR_DATA, "key 'general.architecture' is missing");
    *out = arch_by_gguf(text, name);
    return *out ? 0 : arch_gguf_unknown(text, e);
}

/* A key below the architecture's name. */
#define KEY_SIZE 128
static const char *arch_key(char out[KEY_SIZE], const char *prefix, const char *suffix) {
    snprintf(out, KEY_SIZE, "%s.%s", prefix, suffix);
    return out;
}

/* ---- shapes ---- */

static uint32_t *layer_number(struct model_layer *l, size_t offset) {
    return (uint32_t *)((char *)l + offset);
}

/* One number for all layers, or an array with one for each. */
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
    char key[KEY_SIZE];
    c->layers = arena_array(a, c->n_layers, sizeof *c->layers, e);
    if (!c->layers) return e->code;
    int rc = read_per_layer(g, arch_key(key, prefix, "feed_forward_length"), c, offsetof(struct model_layer, ffn), e);
    const char *heads = arch_key(key, prefix, "attention.head_count");
    if (!rc) rc = read_per_layer(g, heads, c, offsetof(struct model_layer, n_heads), e);
    if (rc) return rc;
    const char *kv_heads = arch_key(key, prefix, "attention.head_count_kv");
    if (gguf_find(g, kv_heads)) return read_per_layer(g, kv_heads, c, offsetof(struct model_layer, n_kv_heads), e);
    for (uint32_t i = 0; i < c->n_layers; i++) c->layers[i].n_kv_heads = c->layers[i].n_heads;
    return 0;
}

/* The head size is stated, or follows from the first layer; values use all of it, and so does the rotation unless it
 * may be partial. */
static int read_head_dim(const struct gguf_file *g, const char *prefix, bool partial, struct model_config *c,
                         struct err *e) {
    char key[KEY_SIZE];
    uint64_t head_dim = 0;
    int rc = gguf_opt_u64(g, arch_key(key, prefix, "attention.key_length"), 1, MODEL_MAX_DIM, &head_dim, e);
    if (rc) return rc;
    if (!head_dim && c->hidden % c->layers[0].n_heads)
        return err_set(e, ERR_DATA, "key '%s' is missing, and %u heads do not divide the embedding length %u", key,
                       c->layers[0].n_heads, c->hidden);
    if (!head_dim) head_dim = c->hidden / c->layers[0].n_heads;
    uint64_t value = head_dim, rotated = head_dim;
    rc = gguf_opt_u64(g, arch_key(key, prefix, "attention.value_length"), 0, UINT32_MAX, &value, e);
    if (!rc && value != head_dim)
        rc = err_set(e, ERR_DATA, "key '%s' is %llu, but heads have %llu: not supported", key,
                     (unsigned long long)value, (unsigned long long)head_dim);
    if (!rc) rc = gguf_opt_u64(g, arch_key(key, prefix, "rope.dimension_count"), 0, UINT32_MAX, &rotated, e);
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
    char key[KEY_SIZE];
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        uint64_t v = 0;
        int rc = gguf_get_u64(g, arch_key(key, prefix, numbers[i].suffix), 1, numbers[i].max, &v, e);
        if (rc) return rc;
        *numbers[i].to = (uint32_t)v;
    }
    double eps = -1;
    const char *name = c->norm == NORM_RMS ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon";
    int rc = gguf_opt_f64(g, arch_key(key, prefix, name), 0, 1, &eps, e);
    if (!rc && eps < 0) rc = err_set(e, ERR_DATA, "key '%s' is missing", key);
    c->norm_eps = (float)eps;
    return rc;
}

/* ---- rotary positions ---- */

#define LLAMA_CPP_THETA 10000 /* the default of all architectures */

/* A number in full beside the f32 that other programs read (export writes it where f32 would round). Both must round
 * to the same. */
static int read_exact(const struct gguf_file *g, const char *key, const char *own_key, double min, double max,
                      double *out, struct err *e) {
    double exact = 0;
    int rc = gguf_opt_f64(g, key, min, max, out, e);
    if (!rc) rc = gguf_opt_f64(g, own_key, min, max, &exact, e);
    if (rc || exact == 0) return rc;
    if (!gguf_find(g, key) || (float)exact != (float)*out)
        return err_set(e, ERR_DATA, "key '%s' is %g, but '%s' is %g", own_key, exact, key, *out);
    *out = exact;
    return 0;
}

/* The factor has an old and a new name. 0 stands for "not set" in older files. */
static int read_factor(const struct gguf_file *g, const char *prefix, double *factor, struct err *e) {
    char key[KEY_SIZE], old_key[KEY_SIZE];
    double old = 0;
    arch_key(key, prefix, "rope.scaling.factor");
    *factor = 0;
    int rc = gguf_opt_f64(g, arch_key(old_key, prefix, "rope.scale_linear"), 0, 1e6, &old, e);
    if (!rc) rc = gguf_opt_f64(g, key, 0, 1e6, factor, e);
    if (rc) return rc;
    if (old != 0 && *factor != 0 && old != *factor)
        return err_set(e, ERR_DATA, "key '%s' is %g, but '%s' is %g", key, *factor, old_key, old);
    if (*factor == 0) *factor = old != 0 ? old : 1;
    return 0;
}

static int read_scaling(const struct gguf_file *g, const char *prefix, struct model_config *c, struct arena *a,
                        struct err *e) {
    char key[KEY_SIZE], factor_key[KEY_SIZE];
    const char *type = "linear"; /* llama.cpp's default when there is a factor */
    double factor;
    int rc = read_factor(g, prefix, &factor, e);
    if (!rc) rc = gguf_opt_str(g, arch_key(key, prefix, "rope.scaling.type"), a, &type, e);
    if (rc) return rc;
    bool none = strcmp(type, "none") == 0;
    if (!none && strcmp(type, "linear") != 0)
        return err_set(e, ERR_DATA,
                       "key '%s': '%.64s' is not supported (none and linear are, and llama3 by rope_freqs.weight)", key,
                       type);
    if (factor == 1) return 0;
    if (none) return err_set(e, ERR_DATA, "key '%s' is 'none', but there is a factor of %g", key, factor);
    c->rope.scaling = ROPE_LINEAR;
    c->rope.factor = factor;
    if (!gguf_find(g, "rill.rope.factor")) return 0;
    return read_exact(g, arch_key(factor_key, prefix, "rope.scaling.factor"), "rill.rope.factor", 1e-3, 1e6,
                      &c->rope.factor, e);
}

/* What our export states about the factors in rope_freqs.weight, for which GGUF has no keys. */
static int read_llama3_keys(const struct gguf_file *g, struct model_config *c, struct err *e) {
    uint64_t original = 0;
    int rc = gguf_opt_f64(g, "rill.rope.factor", 1e-3, 1e6, &c->rope.factor, e);
    if (!rc) rc = gguf_opt_f64(g, "rill.rope.low_freq_factor", 1e-3, 1e6, &c->rope.low_freq, e);
    if (!rc) rc = gguf_opt_f64(g, "rill.rope.high_freq_factor", 1e-3, 1e6, &c->rope.high_freq, e);
    if (!rc) rc = gguf_get_u64(g, "rill.rope.original_context", 1, UINT32_MAX, &original, e);
    if (rc) return rc;
    if (!c->rope.factor || !c->rope.low_freq || !c->rope.high_freq)
        return err_set(e, ERR_DATA, "one of the keys 'rill.rope.*' is missing");
    c->rope.original_context = (uint32_t)original;
    c->rope.scaling = ROPE_LLAMA3;
    return 0;
}

static int read_factors(const struct gguf_file *g, const struct raw_tensor *t, struct model_config *c, struct arena *a,
                        struct err *e) {
    uint32_t n = model_rope_dims(c, &c->rope) / 2;
    if (t->dtype != DT_F32 || t->rank != 1 || t->dims[0] != n)
        return err_set(e, ERR_DATA, "tensor '%s' is not %u numbers of f32", t->name, n);
    if (c->rope.scaling != ROPE_PLAIN)
        return err_set(e, ERR_DATA, "tensor '%s' beside another rope scaling is not supported", t->name);
    float *factors = arena_array(a, n, sizeof *factors, e);
    if (!factors) return e->code;
    memcpy(factors, t->data, n * sizeof *factors);
    int rc = 0;
    if (gguf_find(g, "rill.rope.factor")) rc = read_llama3_keys(g, c, e);
    if (!rc) rc = gguf_rope_recover(c, factors, e);
    return rc ? err_prefix(e, "tensor '%s'", t->name) : 0;
}

static int read_rope(const struct gguf_file *g, const struct arch *arch, const char *prefix, struct model_config *c,
                     struct arena *a, struct err *e) {
    char key[KEY_SIZE];
    if (c->positions != POSITIONS_ROTARY) return 0;
    c->rope.theta = LLAMA_CPP_THETA;
    int rc = read_exact(g, arch_key(key, prefix, "rope.freq_base"), "rill.rope.theta", 1, 1e12, &c->rope.theta, e);
    if (!rc && arch->hf.local_theta != 0) {
        c->local_rope.theta = LLAMA_CPP_THETA;
        rc = read_exact(g, arch_key(key, prefix, "rope.freq_base_swa"), "rill.rope.local_theta", 1, 1e12,
                        &c->local_rope.theta, e);
    }
    if (!rc) rc = read_scaling(g, prefix, c, a, e);
    const struct raw_tensor *factors = raw_table_find(&g->tensors, "rope_freqs.weight");
    if (!rc && factors) return read_factors(g, factors, c, a, e);
    if (!rc && c->rope.scaling == ROPE_PLAIN && gguf_find(g, "rill.rope.factor"))
        rc = err_set(e, ERR_DATA, "key 'rill.rope.factor' without a rope scaling or rope_freqs.weight");
    return rc;
}

/* ---- the whole ---- */

/* llama-gguf-split's parts have the keys of the whole in the first one only, and tensors in all. */
static int check_split(const struct gguf_file *g, struct err *e) {
    uint64_t parts = 1;
    int rc = gguf_opt_u64(g, "split.count", 0, UINT32_MAX, &parts, e);
    if (rc || parts <= 1) return rc;
    return err_set(e, ERR_DATA, "one of %llu parts of a split GGUF: join them first (llama-gguf-split --merge)",
                   (unsigned long long)parts);
}

static int read_vocab_size(const struct gguf_file *g, const char *prefix, struct model_config *c, struct err *e) {
    const struct raw_tensor *embed = raw_table_find(&g->tensors, "token_embd.weight");
    if (!embed) return err_set(e, ERR_DATA, "tensor 'token_embd.weight' is missing");
    uint64_t rows = embed->rank == 2 ? embed->dims[0] : 0, said = rows;
    if (rows < 1 || rows > MODEL_MAX_VOCAB)
        return err_set(e, ERR_DATA, "tensor 'token_embd.weight' is not a matrix of 1 to %u rows", MODEL_MAX_VOCAB);
    char key[KEY_SIZE];
    int rc = gguf_opt_u64(g, arch_key(key, prefix, "vocab_size"), 1, MODEL_MAX_VOCAB, &said, e);
    if (!rc && said != rows)
        rc = err_set(e, ERR_DATA, "key '%s' is %llu, but the embedding has %llu rows", key, (unsigned long long)said,
                     (unsigned long long)rows);
    c->vocab_size = (uint32_t)rows;
    return rc;
}

/* Our export of an architecture under another name: qwen2 as deci. */
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

/* Optional biases of a family are found by their tensors. */
static bool has_tensor(const struct gguf_file *g, const char *name, const char *fused) {
    return raw_table_find(&g->tensors, name) || raw_table_find(&g->tensors, fused);
}

int gguf_read_config(const struct gguf_file *g, const struct arch *arch, const char *prefix, struct model_config *c,
                     struct arena *a, struct err *e) {
    *c = (struct model_config){.n_layers = 0};
    int rc = check_split(g, e);
    if (!rc) rc = gguf_check_keys(g, prefix, arch->gguf.keys, arch->gguf.n_keys, e);
    if (!rc) rc = read_own_arch(g, &arch, prefix, a, e);
    if (rc) return rc;
    *c = arch->traits;
    c->arch = arch->name;
    rc = read_numbers(g, prefix, c, e);
    if (!rc) rc = read_layers(g, prefix, c, a, e);
    if (!rc) rc = read_head_dim(g, prefix, arch->hf.partial_rotary, c, e);
    if (!rc) rc = read_rope(g, arch, prefix, c, a, e);
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
        char key[KEY_SIZE];
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
