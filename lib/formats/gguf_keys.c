/*
 * The keys of a GGUF below the architecture's name ("llama."): what each may say. Names and defaults are those of
 * llama.cpp (src/llama-arch.cpp, src/llama-model.cpp). A key that is not in the table may change what the model
 * computes, so it is refused unless it is false, 0 or empty.
 */
#include "lib/formats/formats_internal.h"

enum rule {
    READ,    /* gguf_model.c reads and checks it */
    INERT,   /* changes nothing here */
    OFF,     /* false, 0 or empty: "not used" */
    NUMBER,  /* this number, or 0 for "not set" */
    TEXT,    /* this text */
    SAME,    /* another name of key `text` */
    CONTEXT, /* 0, or no less than the context */
};
static const struct known_key {
    const char *suffix;
    enum rule rule;
    double number;
    const char *text;
} known_keys[] = {
    {"block_count", READ, 0, NULL},
    {"context_length", READ, 0, NULL},
    {"embedding_length", READ, 0, NULL},
    {"feed_forward_length", READ, 0, NULL},
    {"attention.head_count", READ, 0, NULL},
    {"attention.head_count_kv", READ, 0, NULL},
    {"attention.key_length", READ, 0, NULL},
    {"attention.value_length", READ, 0, NULL},
    {"attention.layer_norm_rms_epsilon", READ, 0, NULL},
    {"rope.freq_base", READ, 0, NULL},
    {"rope.dimension_count", READ, 0, NULL},
    {"rope.scaling.type", READ, 0, NULL},
    {"rope.scaling.factor", READ, 0, NULL},
    {"rope.scale_linear", READ, 0, NULL},
    {"vocab_size", READ, 0, NULL},
    {"embedding_length_out", SAME, 0, "embedding_length"},
    {"attention.layer_norm_epsilon", SAME, 0, "attention.layer_norm_rms_epsilon"},
    {"attention.sliding_window", CONTEXT, 0, NULL},
    {"attention.causal", NUMBER, 1, NULL},
    {"logit_scale", NUMBER, 1, NULL},
    {"embedding_scale", NUMBER, 1, NULL},
    {"residual_scale", NUMBER, 1, NULL},
    {"rope.scaling.attn_factor", NUMBER, 1, NULL},
    {"rope.scaling.yarn_attn_factor", NUMBER, 1, NULL},
    {"rope.scaling.yarn_ext_factor", NUMBER, -1, NULL},
    {"rope.scaling.yarn_beta_fast", INERT, 0, NULL}, /* for yarn, which is refused, as the next four */
    {"rope.scaling.yarn_beta_slow", INERT, 0, NULL},
    {"rope.scaling.yarn_log_multiplier", INERT, 0, NULL},
    {"rope.scaling.original_context_length", INERT, 0, NULL},
    {"rope.scaling.finetuned", INERT, 0, NULL},
    {"decoder_start_token_id", INERT, 0, NULL},
    {"tensor_data_layout", TEXT, 0, "Meta AI original pth"}, /* the order of q and k that the architecture implies */
    {"hidden_activation", TEXT, 0, "silu"},
    {"expert_count", OFF, 0, NULL},
    {"expert_used_count", OFF, 0, NULL},
    {"nextn_predict_layers", OFF, 0, NULL},
    {"pooling_type", OFF, 0, NULL},
    {"use_parallel_residual", OFF, 0, NULL},
    {"attention.scale", OFF, 0, NULL},
    {"attention.clamp_kqv", OFF, 0, NULL},
    {"attention.max_alibi_bias", OFF, 0, NULL},
    {"attn_logit_softcapping", OFF, 0, NULL},
    {"final_logit_softcapping", OFF, 0, NULL},
};

/* One number, or a list of equal ones (a number for each layer). */
static bool as_number(const struct gguf_kv *kv, double *out) {
    if (kv->type == GGUF_STRING || kv->n == 0) return false;
    for (uint64_t i = 0; i < kv->n; i++) {
        double v;
        uint64_t u;
        if (kv->type == GGUF_BOOL)
            v = kv->data[i] != 0;
        else if (gguf_kv_u64(kv, i, &u))
            v = (double)u;
        else if (!gguf_kv_f64(kv, i, &v))
            return false;
        if (i && v != *out) return false;
        *out = v;
    }
    return true;
}

static bool text_is(const struct gguf_kv *kv, const char *wanted) {
    uint64_t at = 0;
    if (kv->is_array || kv->type != GGUF_STRING) return false;
    struct span s = gguf_kv_next_string(kv, &at);
    return s.n == strlen(wanted) && memcmp(s.s, wanted, s.n) == 0;
}

/* False, 0, "" or an empty list. */
static bool says_nothing(const struct gguf_kv *kv) {
    double v;
    return kv->n == 0 || text_is(kv, "") || (as_number(kv, &v) && v == 0);
}

static int check_same(const struct gguf_file *g, const struct gguf_kv *kv, const char *prefix, const char *suffix,
                      struct err *e) {
    char key[128];
    double x, y;
    snprintf(key, sizeof key, "%s.%s", prefix, suffix);
    const struct gguf_kv *main = gguf_find(g, key);
    if (main && as_number(main, &x) && as_number(kv, &y) && x == y) return 0;
    return err_set(e, ERR_DATA, "key '%s' differs from '%s', which is what counts", kv->key, key);
}

static int check_context(const struct gguf_file *g, const struct gguf_kv *kv, const char *prefix, struct err *e) {
    char key[128];
    uint64_t context = UINT64_MAX;
    double window;
    snprintf(key, sizeof key, "%s.context_length", prefix);
    int rc = gguf_opt_u64(g, key, 1, UINT32_MAX, &context, e);
    if (rc || (as_number(kv, &window) && (window == 0 || window >= (double)context))) return rc;
    return err_set(e, ERR_DATA, "key '%s': a window shorter than the context is not supported", kv->key);
}

static int check_key(const struct gguf_file *g, const struct gguf_kv *kv, const char *prefix,
                     const struct known_key *key, struct err *e) {
    double v;
    switch (key->rule) {
    case READ:
    case INERT: return 0;
    case SAME: return check_same(g, kv, prefix, key->text, e);
    case CONTEXT: return check_context(g, kv, prefix, e);
    case OFF:
        if (says_nothing(kv)) return 0;
        return err_set(e, ERR_DATA, "key '%s' asks for something that is not supported", kv->key);
    case NUMBER:
        /* a flag that is false was set, and to false */
        if (as_number(kv, &v) && (v == key->number || (v == 0 && kv->type != GGUF_BOOL))) return 0;
        return err_set(e, ERR_DATA, "key '%s' asks for something that is not supported (only %g is)", kv->key,
                       key->number);
    case TEXT:
        if (text_is(kv, key->text)) return 0;
        return err_set(e, ERR_DATA, "key '%s' asks for something that is not supported (only '%s' is)", kv->key,
                       key->text);
    }
    return 0;
}

static int check_below_arch(const struct gguf_file *g, const struct gguf_kv *kv, const char *prefix, struct err *e) {
    const char *suffix = kv->key + strlen(prefix) + 1;
    for (size_t i = 0; i < COUNT_OF(known_keys); i++)
        if (strcmp(known_keys[i].suffix, suffix) == 0) return check_key(g, kv, prefix, &known_keys[i], e);
    if (says_nothing(kv)) return 0;
    return err_set(e, ERR_DATA, "key '%s' is not known, and may change what the model computes", kv->key);
}

int gguf_check_keys(const struct gguf_file *g, const struct gguf_arch *arch, struct arena *a, struct err *e) {
    const char *type = "model";
    size_t n = strlen(arch->name);
    int rc = gguf_opt_str(g, "general.type", a, &type, e);
    if (!rc && strcmp(type, "model") != 0)
        rc = err_set(e, ERR_DATA, "key 'general.type': '%.64s' is not supported (model is)", type);
    for (size_t i = 0; i < g->n_kv && !rc; i++)
        if (strncmp(g->kv[i].key, arch->name, n) == 0 && g->kv[i].key[n] == '.')
            rc = check_below_arch(g, &g->kv[i], arch->name, e);
    return rc;
}
