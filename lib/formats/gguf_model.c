/* What the keys of a GGUF say about the model. formats/gguf.md has the table of keys. */
#include <math.h>

#include "lib/formats/formats_internal.h"

/* deci is llama.cpp's name for llama with shapes that differ from layer to layer. */
static const struct gguf_arch archs[] = {
    {"llama", "llama", true},
    {"deci", "llama", true},
    {"qwen2", "qwen2", false},
};

int gguf_read_arch(const struct gguf_file *g, struct arena *a, const struct gguf_arch **out, struct err *e) {
    const char *name = NULL;
    int rc = gguf_opt_str(g, "general.architecture", a, &name, e);
    if (rc) return rc;
    if (!name) return err_set(e, ERR_DATA, "key 'general.architecture' is missing");
    for (size_t i = 0; i < COUNT_OF(archs); i++)
        if (strcmp(archs[i].name, name) == 0) {
            *out = &archs[i];
            return 0;
        }
    return err_set(e, ERR_DATA, "key 'general.architecture': '%.100s' is not supported (llama, deci and qwen2 are)",
                   name);
}

/* ---- keys below the architecture's name ---- */

#define KEY_SIZE 128
static const char *arch_key(char out[KEY_SIZE], const struct gguf_arch *arch, const char *suffix) {
    snprintf(out, KEY_SIZE, "%s.%s", arch->name, suffix);
    return out;
}

/* Either read elsewhere, or known to change the arithmetic in a way that Rill does not do, unless it has this value. */
static const struct {
    const char *suffix;
    enum { READ, IGNORED, MUST_BE } rule;
    double value;
} known_keys[] = {
    {"block_count", READ, 0},
    {"context_length", READ, 0},
    {"embedding_length", READ, 0},
    {"feed_forward_length", READ, 0},
    {"attention.head_count", READ, 0},
    {"attention.head_count_kv", READ, 0},
    {"attention.key_length", READ, 0},
    {"attention.value_length", READ, 0},
    {"attention.layer_norm_rms_epsilon", READ, 0},
    {"rope.freq_base", READ, 0},
    {"rope.dimension_count", READ, 0},
    {"rope.scaling.type", READ, 0},
    {"rope.scaling.factor", READ, 0},
    {"rope.scale_linear", READ, 0},
    {"vocab_size", READ, 0},
    {"rope.scaling.original_context_length", IGNORED, 0}, /* for yarn, which is refused */
    {"rope.scaling.finetuned", IGNORED, 0},
    {"rope.scaling.attn_factor", MUST_BE, 1},
    {"expert_count", MUST_BE, 0},
    {"expert_used_count", MUST_BE, 0},
    {"nextn_predict_layers", MUST_BE, 0},
    {"attention.causal", MUST_BE, 1},
    {"attention.sliding_window", MUST_BE, 0},
    {"attention.scale", MUST_BE, 0},
    {"attention.clamp_kqv", MUST_BE, 0},
    {"attn_logit_softcapping", MUST_BE, 0},
    {"final_logit_softcapping", MUST_BE, 0},
    {"logit_scale", MUST_BE, 1},
    {"embedding_scale", MUST_BE, 1},
    {"residual_scale", MUST_BE, 1},
};

static bool value_is(const struct gguf_kv *kv, double wanted) {
    uint64_t u;
    double d;
    if (kv->is_array) return false;
    if (kv->type == GGUF_BOOL) return (kv->data[0] != 0) == (wanted != 0);
    if (gguf_kv_u64(kv, 0, &u)) return (double)u == wanted;
    return gguf_kv_f64(kv, 0, &d) && d == wanted;
}

static int check_known(const struct gguf_kv *kv, const char *suffix, struct err *e) {
    for (size_t i = 0; i < COUNT_OF(known_keys); i++) {
        if (strcmp(known_keys[i].suffix, suffix) != 0) continue;
        if (known_keys[i].rule != MUST_BE || value_is(kv, known_keys[i].value)) return 0;
        return err_set(e, ERR_DATA, "key '%s' asks for something that is not supported (only %g is)", kv->key,
                       known_keys[i].value);
    }
    log_line(LOG_WARN, "key '%s' is not known and is left out", kv->key);
    return 0;
}

static int check_keys(const struct gguf_file *g, const struct gguf_arch *arch, struct err *e) {
    size_t n = strlen(arch->name);
    int rc = 0;
    for (size_t i = 0; i < g->n_kv && !rc; i++)
        if (strncmp(g->kv[i].key, arch->name, n) == 0 && g->kv[i].key[n] == '.')
            rc = check_known(&g->kv[i], g->kv[i].key + n + 1, e);
    return rc;
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

static int read_layers(const struct gguf_file *g, const struct gguf_arch *arch, struct model_config *c, struct arena *a,
                       struct err *e) {
    char key[KEY_SIZE];
    c->layers = arena_array(a, c->n_layers, sizeof *c->layers, e);
    if (!c->layers) return e->code;
    int rc = read_per_layer(g, arch_key(key, arch, "feed_forward_length"), c, offsetof(struct model_layer, ffn), e);
    const char *heads = arch_key(key, arch, "attention.head_count");
    if (!rc) rc = read_per_layer(g, heads, c, offsetof(struct model_layer, n_heads), e);
    if (rc) return rc;
    const char *kv_heads = arch_key(key, arch, "attention.head_count_kv");
    if (gguf_find(g, kv_heads)) return read_per_layer(g, kv_heads, c, offsetof(struct model_layer, n_kv_heads), e);
    for (uint32_t i = 0; i < c->n_layers; i++) c->layers[i].n_kv_heads = c->layers[i].n_heads;
    return 0;
}

/* The head size is said, or follows from the first layer; values and rotation must use all of it. */
static int read_head_dim(const struct gguf_file *g, const struct gguf_arch *arch, struct model_config *c,
                         struct err *e) {
    static const char *const must_agree[] = {"attention.value_length", "rope.dimension_count"};
    char key[KEY_SIZE];
    uint64_t head_dim = 0;
    int rc = gguf_opt_u64(g, arch_key(key, arch, "attention.key_length"), 1, MODEL_MAX_DIM, &head_dim, e);
    if (rc) return rc;
    if (!head_dim && c->hidden % c->layers[0].n_heads)
        return err_set(e, ERR_DATA, "key '%s' is missing, and %u heads do not divide the embedding length %u", key,
                       c->layers[0].n_heads, c->hidden);
    if (!head_dim) head_dim = c->hidden / c->layers[0].n_heads;
    for (size_t i = 0; i < COUNT_OF(must_agree); i++) {
        uint64_t v = head_dim;
        rc = gguf_opt_u64(g, arch_key(key, arch, must_agree[i]), 0, UINT32_MAX, &v, e);
        if (rc) return rc;
        if (v != head_dim)
            return err_set(e, ERR_DATA, "key '%s' is %llu, but heads have %llu: not supported", key,
                           (unsigned long long)v, (unsigned long long)head_dim);
    }
    c->head_dim = (uint32_t)head_dim;
    return 0;
}

static int read_numbers(const struct gguf_file *g, const struct gguf_arch *arch, struct model_config *c,
                        struct err *e) {
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
        int rc = gguf_get_u64(g, arch_key(key, arch, numbers[i].suffix), 1, numbers[i].max, &v, e);
        if (rc) return rc;
        *numbers[i].to = (uint32_t)v;
    }
    double eps = -1;
    int rc = gguf_opt_f64(g, arch_key(key, arch, "attention.layer_norm_rms_epsilon"), 0, 1, &eps, e);
    if (!rc && eps < 0) rc = err_set(e, ERR_DATA, "key '%s' is missing", key);
    c->norm_eps = (float)eps;
    return rc;
}

/* ---- rotary positions ---- */

static int read_scaling(const struct gguf_file *g, const struct gguf_arch *arch, struct model_config *c,
                        struct arena *a, struct err *e) {
    char key[KEY_SIZE];
    const char *type = "linear"; /* llama.cpp's default when there is a factor */
    double factor = 1;
    int rc = gguf_opt_f64(g, arch_key(key, arch, "rope.scale_linear"), 0, 1e6, &factor, e);
    if (!rc) rc = gguf_opt_f64(g, arch_key(key, arch, "rope.scaling.factor"), 0, 1e6, &factor, e);
    if (!rc) rc = gguf_opt_str(g, arch_key(key, arch, "rope.scaling.type"), a, &type, e);
    if (rc) return rc;
    bool none = strcmp(type, "none") == 0;
    if (!none && strcmp(type, "linear") != 0)
        return err_set(e, ERR_DATA,
                       "key '%s': '%.64s' is not supported (none and linear are, and llama3 by rope_freqs.weight)", key,
                       type);
    if (none || factor == 1 || factor == 0) return 0; /* 0 stands for "not set" in older files */
    c->rope.scaling = ROPE_LINEAR;
    c->rope.factor = factor;
    return gguf_opt_f64(g, "rill.rope.factor", 1e-3, 1e6, &c->rope.factor, e);
}

/* What our own export says about the factors in rope_freqs.weight, which GGUF has no keys for. */
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
    uint32_t n = c->head_dim / 2;
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

static int read_rope(const struct gguf_file *g, const struct gguf_arch *arch, struct model_config *c, struct arena *a,
                     struct err *e) {
    char key[KEY_SIZE];
    c->rope.theta = 10000;
    int rc = gguf_opt_f64(g, arch_key(key, arch, "rope.freq_base"), 1, 1e12, &c->rope.theta, e);
    if (!rc)
        rc = gguf_opt_f64(g, "rill.rope.theta", 1, 1e12, &c->rope.theta, e); /* in full, where f32 would round it */
    if (!rc) rc = read_scaling(g, arch, c, a, e);
    const struct raw_tensor *factors = raw_table_find(&g->tensors, "rope_freqs.weight");
    if (!rc && factors) rc = read_factors(g, factors, c, a, e);
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

static int read_vocab_size(const struct gguf_file *g, const struct gguf_arch *arch, struct model_config *c,
                           struct err *e) {
    const struct raw_tensor *embed = raw_table_find(&g->tensors, "token_embd.weight");
    if (!embed) return err_set(e, ERR_DATA, "tensor 'token_embd.weight' is missing");
    uint64_t rows = embed->rank == 2 ? embed->dims[0] : 0, said = rows;
    if (rows < 1 || rows > MODEL_MAX_VOCAB)
        return err_set(e, ERR_DATA, "tensor 'token_embd.weight' is no matrix of 1 to %u rows", MODEL_MAX_VOCAB);
    char key[KEY_SIZE];
    int rc = gguf_opt_u64(g, arch_key(key, arch, "vocab_size"), 1, MODEL_MAX_VOCAB, &said, e);
    if (!rc && said != rows)
        rc = err_set(e, ERR_DATA, "key '%s' is %llu, but the embedding has %llu rows", key, (unsigned long long)said,
                     (unsigned long long)rows);
    c->vocab_size = (uint32_t)rows;
    return rc;
}

int gguf_read_config(const struct gguf_file *g, const struct gguf_arch *arch, struct model_config *c, struct arena *a,
                     struct err *e) {
    *c = (struct model_config){.arch = arch->arch};
    const char *own_name = NULL; /* our export of a qwen2 that only deci can express */
    int rc = check_split(g, e);
    if (!rc) rc = check_keys(g, arch, e);
    if (!rc) rc = gguf_opt_str(g, "rill.architecture", a, &own_name, e);
    if (!rc && own_name) c->arch = own_name;
    if (!rc) rc = read_numbers(g, arch, c, e);
    if (!rc) rc = read_layers(g, arch, c, a, e);
    if (!rc) rc = read_head_dim(g, arch, c, e);
    if (!rc) rc = read_rope(g, arch, c, a, e);
    if (!rc) rc = read_vocab_size(g, arch, c, e);
    if (rc) return rc;
    c->tied = !raw_table_find(&g->tensors, "output.weight");
    c->qkv_bias = raw_table_find(&g->tensors, "blk.0.attn_q.bias") != NULL;
    return model_config_check(c, e);
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
