/*
 * Checks the keys of a GGUF below the architecture's name ("llama."). Names and defaults are those of llama.cpp
 * (src/llama-arch.cpp, src/llama-model.cpp). A key that is not in the table may change what the model computes, so it
 * is refused unless it is false, 0 or empty.
 */
#include "lib/formats/formats_internal.h"

static const struct gguf_key common_keys[] = {
    {"block_count", GGUF_READ, 0, NULL},
    {"context_length", GGUF_READ, 0, NULL},
    {"embedding_length", GGUF_READ, 0, NULL},
    {"feed_forward_length", GGUF_READ, 0, NULL},
    {"attention.head_count", GGUF_READ, 0, NULL},
    {"attention.head_count_kv", GGUF_READ, 0, NULL},
    {"attention.key_length", GGUF_READ, 0, NULL},
    {"attention.value_length", GGUF_READ, 0, NULL},
    {"attention.layer_norm_rms_epsilon", GGUF_READ, 0, NULL},
    {"rope.freq_base", GGUF_READ, 0, NULL},
    {"rope.dimension_count", GGUF_READ, 0, NULL},
    {"rope.scaling.type", GGUF_READ, 0, NULL},
    {"rope.scaling.factor", GGUF_READ, 0, NULL},
    {"rope.scale_linear", GGUF_READ, 0, NULL},
    {"vocab_size", GGUF_READ, 0, NULL},
    {"embedding_length_out", GGUF_SAME, 0, "embedding_length"},
    {"attention.layer_norm_epsilon", GGUF_SAME, 0, "attention.layer_norm_rms_epsilon"},
    {"attention.sliding_window", GGUF_CONTEXT, 0, NULL},
    {"attention.causal", GGUF_NUMBER, 1, NULL},
    {"logit_scale", GGUF_NUMBER, 1, NULL},
    {"embedding_scale", GGUF_NUMBER, 1, NULL},
    {"residual_scale", GGUF_NUMBER, 1, NULL},
    {"rope.scaling.attn_factor", GGUF_READ, 0, NULL},
    {"rope.scaling.yarn_attn_factor", GGUF_NUMBER, 1, NULL},
    {"rope.scaling.yarn_ext_factor", GGUF_NUMBER, -1, NULL},
    {"rope.scaling.yarn_beta_fast", GGUF_READ, 0, NULL},
    {"rope.scaling.yarn_beta_slow", GGUF_READ, 0, NULL},
    {"rope.scaling.yarn_log_multiplier", GGUF_READ, 0, NULL},
    {"rope.scaling.original_context_length", GGUF_READ, 0, NULL},
    {"rope.scaling.finetuned", GGUF_INERT, 0, NULL},
    {"decoder_start_token_id", GGUF_INERT, 0, NULL},
    {"tensor_data_layout", GGUF_TEXT, 0,
     "Meta AI original pth"}, /* the order of q and k rows that the architecture implies */
    {"hidden_activation", GGUF_TEXT, 0, "silu"},
    {"expert_count", GGUF_OFF, 0, NULL},
    {"expert_used_count", GGUF_OFF, 0, NULL},
    {"nextn_predict_layers", GGUF_OFF, 0, NULL},
    {"pooling_type", GGUF_OFF, 0, NULL},
    {"use_parallel_residual", GGUF_OFF, 0, NULL},
    {"attention.scale", GGUF_OFF, 0, NULL},
    {"attention.clamp_kqv", GGUF_OFF, 0, NULL},
    {"attention.max_alibi_bias", GGUF_OFF, 0, NULL},
    {"attn_logit_softcapping", GGUF_OFF, 0, NULL},
    {"final_logit_softcapping", GGUF_OFF, 0, NULL},
};

/* A scalar, or a list of equal numbers (one per layer). */
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

const char *gguf_arch_key(char out[GGUF_KEY_SIZE], const char *prefix, const char *suffix) {
    snprintf(out, GGUF_KEY_SIZE, "%s.%s", prefix, suffix);
    return out;
}

/* False, 0, "" or an empty list. */
static bool says_nothing(const struct gguf_kv *kv) {
    double v;
    return kv->n == 0 || text_is(kv, "") || (as_number(kv, &v) && v == 0);
}

static int check_same(const struct gguf_file *g, const struct gguf_kv *kv, const char *prefix, const char *suffix,
                      struct err *e) {
    char key[GGUF_KEY_SIZE];
    double x, y;
    const struct gguf_kv *main = gguf_find(g, gguf_arch_key(key, prefix, suffix));
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
                     const struct gguf_key *key, struct err *e) {
    double v;
    switch (key->rule) {
    case GGUF_READ:
    case GGUF_INERT: return 0;
    case GGUF_SAME: return check_same(g, kv, prefix, key->text, e);
    case GGUF_CONTEXT: return check_context(g, kv, prefix, e);
    case GGUF_OFF:
        if (says_nothing(kv)) return 0;
        return err_set(e, ERR_DATA, "key '%s' asks for something that is not supported", kv->key);
    case GGUF_NUMBER:
        /* 0 means "not set", but an explicit false does not */
        if (as_number(kv, &v) && (v == key->number || (v == 0 && kv->type != GGUF_BOOL))) return 0;
        return err_set(e, ERR_DATA, "key '%s' asks for something that is not supported (only %g is)", kv->key,
                       key->number);
    case GGUF_TEXT:
        if (text_is(kv, key->text)) return 0;
        return err_set(e, ERR_DATA, "key '%s' asks for something that is not supported (only '%s' is)", kv->key,
                       key->text);
    }
    return 0;
}

static const struct gguf_key *find_key(const struct gguf_key *keys, size_t n, const char *suffix) {
    for (size_t i = 0; i < n; i++)
        if (strcmp(keys[i].suffix, suffix) == 0) return &keys[i];
    return NULL;
}

int gguf_check_keys(const struct gguf_file *g, const char *prefix, const struct gguf_key *own, size_t n_own,
                    struct err *e) {
    size_t n = strlen(prefix);
    int rc = 0;
    for (size_t i = 0; i < g->n_kv && !rc; i++) {
        const struct gguf_kv *kv = &g->kv[i];
        if (strncmp(kv->key, prefix, n) != 0 || kv->key[n] != '.') continue;
        const struct gguf_key *key = find_key(own, n_own, kv->key + n + 1);
        if (!key) key = find_key(common_keys, COUNT_OF(common_keys), kv->key + n + 1);
        if (key)
            rc = check_key(g, kv, prefix, key, e);
        else if (!says_nothing(kv))
            rc = err_set(e, ERR_DATA, "key '%s' is not known, and may change what the model computes", kv->key);
    }
    return rc;
}
