/* The configuration of a model: its JSON form in META, its limits, and what is derived from it. */
#include "lib/arch/arch_internal.h"

#include <math.h>
#include <stdlib.h>

static const char *const layer_names[] = {"transformer", "lstm", NULL};
static const char *const norm_names[] = {"rms", "layer", NULL};
static const char *const place_names[] = {"pre", "post", "sandwich", "output", NULL};
static const char *const qk_norm_names[] = {"none", "heads", "all", "layer", NULL};
static const char *const ffn_names[] = {"gated", "plain", NULL};
static const char *const act_names[] = {"silu", "gelu",         "gelu_tanh", "gelu_quick",
                                        "relu", "relu_squared", "tanh",      NULL};
static const char *const position_names[] = {"rotary", "learned", "none", NULL};
static const char *const output_names[] = {"lm", "masked_lm", "none", "classes", "token_classes", "span", NULL};

/* Optional features: zero is not written, and an absent key means zero. */
static const struct feature {
    const char *key;
    enum { FEATURE_BOOL, FEATURE_SIZE, FEATURE_FLOAT, FEATURE_NAME } type;
    size_t offset;
    const char *const *names;
} features[] = {
    {"embed_dim", FEATURE_SIZE, offsetof(struct model_config, embed_dim), NULL},
    {"embed_scale", FEATURE_FLOAT, offsetof(struct model_config, embed_scale), NULL},
    {"positions", FEATURE_NAME, offsetof(struct model_config, positions), position_names},
    {"position_offset", FEATURE_SIZE, offsetof(struct model_config, position_offset), NULL},
    {"token_types", FEATURE_SIZE, offsetof(struct model_config, token_types), NULL},
    {"embed_norm", FEATURE_BOOL, offsetof(struct model_config, embed_norm), NULL},
    {"layer", FEATURE_NAME, offsetof(struct model_config, layer_kind), layer_names},
    {"norm", FEATURE_NAME, offsetof(struct model_config, norm), norm_names},
    {"norm_place", FEATURE_NAME, offsetof(struct model_config, norm_place), place_names},
    {"norm_bias", FEATURE_BOOL, offsetof(struct model_config, norm_bias), NULL},
    {"parallel", FEATURE_BOOL, offsetof(struct model_config, parallel), NULL},
    {"shared_norm", FEATURE_BOOL, offsetof(struct model_config, shared_norm), NULL},
    {"residual_scale", FEATURE_FLOAT, offsetof(struct model_config, residual_scale), NULL},
    {"bidirectional", FEATURE_BOOL, offsetof(struct model_config, bidirectional), NULL},
    {"qk_norm", FEATURE_NAME, offsetof(struct model_config, qk_norm), qk_norm_names},
    {"o_bias", FEATURE_BOOL, offsetof(struct model_config, o_bias), NULL},
    {"attn_scale", FEATURE_FLOAT, offsetof(struct model_config, attn_scale), NULL},
    {"attn_softcap", FEATURE_FLOAT, offsetof(struct model_config, attn_softcap), NULL},
    {"ffn_kind", FEATURE_NAME, offsetof(struct model_config, ffn_kind), ffn_names},
    {"act", FEATURE_NAME, offsetof(struct model_config, act), act_names},
    {"ffn_bias", FEATURE_BOOL, offsetof(struct model_config, ffn_bias), NULL},
    {"experts_per_token", FEATURE_SIZE, offsetof(struct model_config, experts_per_token), NULL},
    {"norm_expert_weights", FEATURE_BOOL, offsetof(struct model_config, norm_expert_weights), NULL},
    {"shared_gate", FEATURE_BOOL, offsetof(struct model_config, shared_gate), NULL},
    {"no_final_norm", FEATURE_BOOL, offsetof(struct model_config, no_final_norm), NULL},
    {"logit_scale", FEATURE_FLOAT, offsetof(struct model_config, logit_scale), NULL},
    {"logit_softcap", FEATURE_FLOAT, offsetof(struct model_config, logit_softcap), NULL},
    {"output", FEATURE_NAME, offsetof(struct model_config, output), output_names},
    {"head_bias", FEATURE_BOOL, offsetof(struct model_config, head_bias), NULL},
    {"pooler", FEATURE_BOOL, offsetof(struct model_config, pooler), NULL},
    {"pooler_act", FEATURE_NAME, offsetof(struct model_config, pooler_act), act_names},
    {"classes", FEATURE_SIZE, offsetof(struct model_config, classes), NULL},
};

/* Written as a number if all layers agree, else as an array; `optional` ones are absent if all are 0. */
static const struct per_layer {
    const char *key;
    size_t offset;
    uint32_t min, max;
    bool optional; /* the others are required of transformers */
} per_layer[] = {
    {"heads", offsetof(struct model_layer, n_heads), 1, MODEL_MAX_DIM, false},
    {"kv_heads", offsetof(struct model_layer, n_kv_heads), 1, MODEL_MAX_DIM, false},
    {"ffn", offsetof(struct model_layer, ffn), 0, MODEL_MAX_DIM, false},
    {"window", offsetof(struct model_layer, window), 0, UINT32_MAX, true},
    {"layer_rope", offsetof(struct model_layer, rope), 0, ROPE_NONE, true}, /* 0 main, 1 local, 2 none */
    {"experts", offsetof(struct model_layer, experts), 0, MODEL_MAX_EXPERTS, true},
    {"expert_ffn", offsetof(struct model_layer, expert_ffn), 0, MODEL_MAX_DIM, true},
    {"q_rank", offsetof(struct model_layer, rank[FACTOR_Q]), 0, MODEL_MAX_DIM, true},
    {"k_rank", offsetof(struct model_layer, rank[FACTOR_K]), 0, MODEL_MAX_DIM, true},
    {"v_rank", offsetof(struct model_layer, rank[FACTOR_V]), 0, MODEL_MAX_DIM, true},
    {"o_rank", offsetof(struct model_layer, rank[FACTOR_O]), 0, MODEL_MAX_DIM, true},
    {"gate_rank", offsetof(struct model_layer, rank[FACTOR_GATE]), 0, MODEL_MAX_DIM, true},
    {"up_rank", offsetof(struct model_layer, rank[FACTOR_UP]), 0, MODEL_MAX_DIM, true},
    {"down_rank", offsetof(struct model_layer, rank[FACTOR_DOWN]), 0, MODEL_MAX_DIM, true},
};

/* ---- to JSON ------------------------------------------------------------------------------------------------- */

static bool is_optional(const struct model_config *c, const struct per_layer *p) {
    return p->optional || c->layer_kind != LAYER_TRANSFORMER;
}

static uint32_t *layer_member(const struct model_config *c, uint32_t layer, const struct per_layer *p) {
    return (uint32_t *)(void *)((char *)&c->layers[layer] + p->offset);
}

static bool put_per_layer(cJSON *o, const struct model_config *c, const struct per_layer *p) {
    bool same = true;
    uint32_t first = c->n_layers ? *layer_member(c, 0, p) : 0;
    for (uint32_t i = 1; i < c->n_layers; i++) same = same && *layer_member(c, i, p) == first;
    if (same && is_optional(c, p) && first == 0) return true;
    if (same) return json_put_u64(o, p->key, first);
    cJSON *array = cJSON_AddArrayToObject(o, p->key);
    for (uint32_t i = 0; array && i < c->n_layers; i++) {
        cJSON *n = cJSON_CreateNumber(*layer_member(c, i, p));
        if (!n || !cJSON_AddItemToArray(array, n)) {
            cJSON_Delete(n);
            return false;
        }
    }
    return array != NULL;
}

static const void *feature_at(const struct model_config *c, const struct feature *f) {
    return (const char *)c + f->offset;
}

static bool put_feature(cJSON *o, const struct model_config *c, const struct feature *f) {
    const void *at = feature_at(c, f);
    switch (f->type) {
    case FEATURE_BOOL: return !*(const bool *)at || json_put_bool(o, f->key, true);
    case FEATURE_SIZE: return !*(const uint32_t *)at || json_put_u64(o, f->key, *(const uint32_t *)at);
    case FEATURE_FLOAT:
        return *(const float *)at == 0 || json_put_f64(o, f->key, model_shortest_float(*(const float *)at));
    case FEATURE_NAME: return !*(const uint32_t *)at || json_put_str(o, f->key, f->names[*(const uint32_t *)at]);
    }
    return false;
}

cJSON *model_config_to_json(const struct model_config *c, struct err *e) {
    cJSON *o = cJSON_CreateObject();
    bool ok = o && json_put_str(o, "arch", c->arch) && json_put_u64(o, "layers", c->n_layers) &&
              json_put_u64(o, "hidden", c->hidden) && (!c->head_dim || json_put_u64(o, "head_dim", c->head_dim));
    for (size_t i = 0; ok && i < COUNT_OF(per_layer); i++) ok = put_per_layer(o, c, &per_layer[i]);
    ok = ok && json_put_u64(o, "vocab_size", c->vocab_size) && json_put_u64(o, "context", c->context) &&
         json_put_bool(o, "tied", c->tied) && json_put_bool(o, "qkv_bias", c->qkv_bias) &&
         json_put_f64(o, "norm_eps", model_shortest_float(c->norm_eps));
    if (ok && c->rope.theta != 0) ok = rope_to_json(o, "rope", &c->rope);
    if (ok && c->local_rope.theta != 0) ok = rope_to_json(o, "local_rope", &c->local_rope);
    for (size_t i = 0; ok && i < COUNT_OF(features); i++) ok = put_feature(o, c, &features[i]);
    if (ok) return o;
    cJSON_Delete(o);
    err_nomem(e, "model configuration");
    return NULL;
}

int model_config_digest(const struct model_config *c, struct digest_state *to, struct err *e) {
    cJSON *config = model_config_to_json(c, e);
    char *text = config ? json_text(config, e) : NULL;
    cJSON_Delete(config);
    if (!text) return e->code;
    digest_update(to, text, strlen(text));
    mem_free(text);
    return 0;
}

/* ---- from JSON ----------------------------------------------------------------------------------------------- */

static int get_per_layer(struct model_config *c, const cJSON *o, const struct per_layer *p, struct err *e) {
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, p->key);
    if (!v && is_optional(c, p)) return 0;
    if (!cJSON_IsArray(v)) {
        uint64_t n;
        int rc = json_get_u64(o, p->key, p->min, p->max, &n, e);
        for (uint32_t i = 0; !rc && i < c->n_layers; i++) *layer_member(c, i, p) = (uint32_t)n;
        return rc;
    }
    uint32_t i = 0;
    for (const cJSON *x = v->child; x; x = x->next, i++) {
        if (i == c->n_layers)
            return err_set(e, ERR_DATA, "\"%s\" has more entries than the %u layers", p->key, c->n_layers);
        if (!cJSON_IsNumber(x) || !(x->valuedouble >= p->min && x->valuedouble <= p->max) ||
            x->valuedouble != floor(x->valuedouble))
            return err_set(e, ERR_DATA, "\"%s\" of layer %u is not an integer from %u to %u", p->key, i, p->min,
                           p->max);
        *layer_member(c, i, p) = (uint32_t)x->valuedouble;
    }
    if (i != c->n_layers) return err_set(e, ERR_DATA, "\"%s\" has %u entries for %u layers", p->key, i, c->n_layers);
    return 0;
}

static int get_ropes(struct model_config *c, const cJSON *o, struct arena *a, struct err *e) {
    const cJSON *main = cJSON_GetObjectItemCaseSensitive(o, "rope");
    const cJSON *local = cJSON_GetObjectItemCaseSensitive(o, "local_rope");
    if (!cJSON_IsObject(main) && c->positions == POSITIONS_ROTARY) return err_set(e, ERR_DATA, "\"rope\" is missing");
    int rc = main ? rope_from_json(&c->rope, main, a, e) : 0;
    if (rc) return err_prefix(e, "\"rope\"");
    rc = local ? rope_from_json(&c->local_rope, local, a, e) : 0;
    return rc ? err_prefix(e, "\"local_rope\"") : 0;
}

static int get_feature(struct model_config *c, const cJSON *o, const struct feature *f, struct err *e) {
    void *at = (char *)c + f->offset;
    uint64_t n = 0;
    double x = 0;
    int rc = 0;
    if (!cJSON_GetObjectItemCaseSensitive(o, f->key)) return 0;
    switch (f->type) {
    case FEATURE_BOOL: return json_get_bool(o, f->key, at, e);
    case FEATURE_NAME: return config_get_name(o, f->key, f->names, at, e);
    case FEATURE_SIZE:
        rc = json_get_u64(o, f->key, 0, MODEL_MAX_DIM, &n, e);
        *(uint32_t *)at = (uint32_t)n;
        return rc;
    case FEATURE_FLOAT:
        rc = json_get_f64(o, f->key, 1e-6, 1e6, &x, e);
        *(float *)at = (float)x;
        return rc;
    }
    return rc;
}

/* An unknown feature must be refused: without it the model would compute something else. */
static int check_keys(const cJSON *o, struct err *e) {
    static const char *const others[] = {"arch", "layers",   "hidden",   "head_dim", "vocab_size", "context",
                                         "tied", "qkv_bias", "norm_eps", "rope",     "local_rope"};
    for (const cJSON *x = o->child; x; x = x->next) {
        bool known = false;
        for (size_t i = 0; i < COUNT_OF(others); i++) known = known || !strcmp(others[i], x->string);
        for (size_t i = 0; i < COUNT_OF(per_layer); i++) known = known || !strcmp(per_layer[i].key, x->string);
        for (size_t i = 0; i < COUNT_OF(features); i++) known = known || !strcmp(features[i].key, x->string);
        if (!known) return err_set(e, ERR_DATA, "\"%.64s\" is a feature that this version does not know", x->string);
    }
    return 0;
}

static int get_arch(struct model_config *c, const cJSON *o, struct arena *a, struct err *e) {
    const char *arch;
    int rc = json_get_str(o, "arch", &arch, e);
    if (rc) return rc;
    size_t n = strlen(arch);
    if (n == 0 || n > MODEL_MAX_ARCH || strspn(arch, "abcdefghijklmnopqrstuvwxyz0123456789_-.") != n)
        return err_set(e, ERR_DATA, "\"arch\": '%.64s' is not the name of an architecture", arch);
    c->arch = arena_strndup(a, arch, n, e);
    return c->arch ? 0 : e->code;
}

static int get_numbers(struct model_config *c, const cJSON *o, struct err *e) {
    const struct {
        const char *key;
        uint64_t max;
        uint32_t *to;
    } numbers[] = {{"layers", MODEL_MAX_LAYERS, &c->n_layers},
                   {"hidden", MODEL_MAX_DIM, &c->hidden},
                   {"head_dim", MODEL_MAX_DIM, &c->head_dim},
                   {"vocab_size", MODEL_MAX_VOCAB, &c->vocab_size},
                   {"context", UINT32_MAX, &c->context}};
    int rc = 0;
    for (size_t i = 0; !rc && i < COUNT_OF(numbers); i++) {
        uint64_t v = 0;
        if (numbers[i].to == &c->head_dim && c->layer_kind != LAYER_TRANSFORMER) continue;
        rc = json_get_u64(o, numbers[i].key, 1, numbers[i].max, &v, e);
        *numbers[i].to = (uint32_t)v;
    }
    double eps = 0;
    if (!rc) rc = json_get_bool(o, "tied", &c->tied, e);
    if (!rc) rc = json_get_bool(o, "qkv_bias", &c->qkv_bias, e);
    if (!rc) rc = json_get_f64(o, "norm_eps", 0, 1, &eps, e);
    c->norm_eps = (float)eps;
    return rc;
}

int model_config_from_json(struct model_config *c, const cJSON *o, struct arena *a, struct err *e) {
    *c = (struct model_config){.n_layers = 0};
    if (!cJSON_IsObject(o)) return err_set(e, ERR_DATA, "\"model\" is not an object");
    int rc = get_arch(c, o, a, e);
    if (!rc) rc = check_keys(o, e);
    for (size_t i = 0; !rc && i < COUNT_OF(features); i++) rc = get_feature(c, o, &features[i], e);
    if (!rc) rc = get_numbers(c, o, e); /* after `layer`, on which they depend */
    if (!rc) rc = get_ropes(c, o, a, e);
    if (rc) return rc;
    c->layers = arena_array(a, c->n_layers, sizeof *c->layers, e);
    if (!c->layers) return e->code;
    for (size_t i = 0; !rc && i < COUNT_OF(per_layer); i++) rc = get_per_layer(c, o, &per_layer[i], e);
    return rc ? rc : model_config_check(c, e);
}

int model_config_copy(struct model_config *to, const struct model_config *from, struct arena *a, struct err *e) {
    *to = *from;
    to->arch = arena_strndup(a, from->arch, strlen(from->arch), e);
    to->layers = arena_array(a, from->n_layers, sizeof *to->layers, e);
    if (!to->arch || !to->layers) return e->code;
    memcpy(to->layers, from->layers, from->n_layers * sizeof *to->layers);
    int rc = rope_copy(&to->rope, &from->rope, a, e);
    return rc ? rc : rope_copy(&to->local_rope, &from->local_rope, a, e);
}

/* ---- limits ---------------------------------------------------------------------------------------------------- */

static int check_range(const char *what, uint64_t v, uint64_t max, struct err *e) {
    if (v >= 1 && v <= max) return 0;
    return err_set(e, ERR_DATA, "%s is %llu, expected 1 to %llu", what, (unsigned long long)v, (unsigned long long)max);
}

static int check_experts(const struct model_config *c, const struct model_layer *l, struct err *e) {
    if (l->experts > MODEL_MAX_EXPERTS) return check_range("number of experts", l->experts, MODEL_MAX_EXPERTS, e);
    if (c->ffn_bias) return err_set(e, ERR_DATA, "experts with biases");
    if (c->parallel) return err_set(e, ERR_DATA, "experts in a part parallel to attention");
    if (l->ffn > MODEL_MAX_DIM) return check_range("feed-forward width", l->ffn, MODEL_MAX_DIM, e);
    if (c->experts_per_token < 1 || c->experts_per_token > l->experts)
        return err_set(e, ERR_DATA, "a position takes %u of %u experts", c->experts_per_token, l->experts);
    return check_range("width of experts", l->expert_ffn, MODEL_MAX_DIM, e);
}

/* Ranks are only for matrices that exist, and at most the lesser of their rows and columns. */
static int check_ranks(const struct model_config *c, uint32_t layer, struct err *e) {
    const struct model_layer *l = &c->layers[layer];
    static const char *const keys[FACTOR_COUNT] = {"q", "k", "v", "o", "gate", "up", "down"};
    bool known[FACTOR_COUNT] = {false};
    for (int r = 0; r < ROLE_COUNT; r++) {
        const struct model_role_info *info = model_role_info((enum model_role)r);
        uint32_t rank = info->out ? l->rank[info->factored] : 0;
        if (!rank || !info->exists(c) || (info->part == PART_DENSE && !l->ffn)) continue;
        known[info->factored] = true;
        uint64_t rows = model_axis_size(c, info->rows, layer), cols = model_axis_size(c, info->cols, layer);
        if (rank > (rows < cols ? rows : cols))
            return err_set(e, ERR_DATA, "%s has rank %u and is %llux%llu", info->name, rank, (unsigned long long)rows,
                           (unsigned long long)cols);
    }
    for (int f = 0; f < FACTOR_COUNT; f++)
        if (l->rank[f] && !known[f])
            return err_set(e, ERR_DATA, "\"%s_rank\" of a matrix that it does not have", keys[f]);
    return 0;
}

static int check_lstm_layer(const struct model_layer *l, struct err *e) {
    if (l->n_heads || l->n_kv_heads || l->window) return err_set(e, ERR_DATA, "attention in a layer of LSTMs");
    return l->ffn || l->experts || l->expert_ffn ? err_set(e, ERR_DATA, "a feed-forward part in a layer of LSTMs") : 0;
}

static int check_layer(const struct model_config *c, const struct model_layer *l, struct err *e) {
    if (c->layer_kind == LAYER_LSTM) return check_lstm_layer(l, e);
    if (!l->n_heads || !l->n_kv_heads || l->n_heads % l->n_kv_heads)
        return err_set(e, ERR_DATA, "%u heads for %u key/value heads: not a multiple", l->n_heads, l->n_kv_heads);
    if ((uint64_t)l->n_heads * c->head_dim > MODEL_MAX_DIM)
        return err_set(e, ERR_DATA, "%u heads of %u are too wide", l->n_heads, c->head_dim);
    if (l->window && c->bidirectional) return err_set(e, ERR_DATA, "a window of attention that is not causal");
    if (l->rope > ROPE_NONE || (l->rope == ROPE_LOCAL && c->local_rope.theta == 0) ||
        (l->rope == ROPE_MAIN && c->positions == POSITIONS_ROTARY && c->rope.theta == 0))
        return err_set(e, ERR_DATA, "its rotation is not described");
    if (l->experts) return check_experts(c, l, e);
    if (l->expert_ffn) return err_set(e, ERR_DATA, "a width of experts, %u, and no experts", l->expert_ffn);
    return check_range("feed-forward width", l->ffn, MODEL_MAX_DIM, e);
}

/* LSTMs are bidirectional, classify sequences, and have nothing of a transformer's layers. */
static int check_lstm(const struct model_config *c, struct err *e) {
    if (c->hidden % 2) return err_set(e, ERR_DATA, "a hidden size of %u for LSTMs of two directions", c->hidden);
    if (!c->bidirectional) return err_set(e, ERR_DATA, "LSTMs of one direction");
    if (c->output != OUTPUT_CLASSES) return err_set(e, ERR_DATA, "LSTMs in a model that does not classify sequences");
    if (c->positions != POSITIONS_NONE || c->token_types || c->embed_norm)
        return err_set(e, ERR_DATA, "positions, token types or a norm of the embedding before LSTMs");
    if (c->norm_place != NORM_PRE || c->norm_bias || c->parallel || c->qk_norm || c->qkv_bias || c->o_bias ||
        c->ffn_bias || c->experts_per_token || c->shared_gate || c->head_dim)
        return err_set(e, ERR_DATA, "attention or a feed-forward part in layers of LSTMs");
    return check_range("width of the embedding", model_embed_dim(c), MODEL_MAX_DIM, e);
}

/* Features that exclude or require each other. */
static int check_features(const struct model_config *c, struct err *e) {
    if (c->parallel && c->norm_place != NORM_PRE)
        return err_set(e, ERR_DATA, "parallel attention and feed-forward parts have their norms before them");
    if (c->shared_norm && !c->parallel) return err_set(e, ERR_DATA, "a shared norm is for parallel parts");
    if (c->norm_bias && c->norm == NORM_RMS) return err_set(e, ERR_DATA, "RMSNorm has no bias");
    bool tokens = c->output == OUTPUT_LM || c->output == OUTPUT_MASKED_LM;
    if (c->tied && !tokens) return err_set(e, ERR_DATA, "a tied head in a model without a head");
    bool classifies = c->output >= OUTPUT_CLASSES;
    if ((c->classes != 0) != classifies)
        return err_set(e, ERR_DATA, "%u classes in a model that %s", c->classes,
                       classifies ? "is a classifier" : "is not a classifier");
    if (c->output == OUTPUT_SPAN && c->classes != 2)
        return err_set(e, ERR_DATA, "%u logits for each position of a span: expected 2, of its start and its end",
                       c->classes);
    return 0;
}

float model_factor(float factor) {
    return factor != 0 ? factor : 1;
}

int model_config_check(const struct model_config *c, struct err *e) {
    int rc = check_range("number of layers", c->n_layers, MODEL_MAX_LAYERS, e);
    if (!rc) rc = check_range("hidden size", c->hidden, MODEL_MAX_DIM, e);
    if (!rc && c->layer_kind == LAYER_TRANSFORMER) rc = check_range("head size", c->head_dim, MODEL_MAX_DIM, e);
    if (!rc && c->layer_kind == LAYER_LSTM) rc = check_lstm(c, e);
    if (!rc) rc = check_range("vocabulary size", c->vocab_size, MODEL_MAX_VOCAB, e);
    if (!rc) rc = check_range("context", c->context, UINT32_MAX, e);
    if (!rc && c->positions == POSITIONS_LEARNED) rc = check_range("table of positions", c->context, MODEL_MAX_DIM, e);
    if (!rc && c->rope.theta != 0) rc = rope_check(c, &c->rope, e);
    if (!rc && c->local_rope.theta != 0) rc = rope_check(c, &c->local_rope, e);
    if (!rc) rc = check_features(c, e);
    if (rc) return rc;
    if (!(c->norm_eps >= 0 && c->norm_eps < 1))
        return err_set(e, ERR_DATA, "norm epsilon %g is out of range", (double)c->norm_eps);
    for (uint32_t i = 0; i < c->n_layers; i++)
        if (check_layer(c, &c->layers[i], e) || check_ranks(c, i, e)) return err_prefix(e, "layer %u", i);
    size_t tensors = model_slot_count(c);
    if (tensors <= MODEL_MAX_TENSORS) return 0;
    return err_set(e, ERR_DATA, "%zu tensors, at most %u are allowed", tensors, MODEL_MAX_TENSORS);
}

enum stream_target model_predicts(const struct model_config *c) {
    if (c->output == OUTPUT_CLASSES) return TARGET_SEQUENCE;
    if (c->output == OUTPUT_TOKEN_CLASSES) return TARGET_TOKEN;
    return c->output == OUTPUT_MASKED_LM ? TARGET_MASKED : TARGET_NEXT;
}

int model_check_head(const struct model_config *c, struct err *e) {
    return model_predicts(c) != TARGET_NEXT ? 0 : model_check_next_token(c, e);
}

int model_check_next_token(const struct model_config *c, struct err *e) {
    switch (c->output) {
    case OUTPUT_NONE:
        return err_set(e, ERR_DATA, "the model has no head: it makes hidden states, and no logits of tokens");
    case OUTPUT_CLASSES:
    case OUTPUT_TOKEN_CLASSES:
        return err_set(e, ERR_DATA, "the model is a classifier: its logits are of %u classes, and not of tokens",
                       c->classes);
    case OUTPUT_SPAN:
        return err_set(e, ERR_DATA, "the model finds answers: its logits are of where one begins and ends");
    case OUTPUT_MASKED_LM:
        return err_set(e, ERR_DATA,
                       "the model is a masked language model: its logits are of the token itself, and not of the next");
    }
    if (!c->bidirectional) return 0;
    return err_set(e, ERR_DATA, "the model sees the tokens after a position, too: its logits do not predict them");
}

/* ---- derived values ---------------------------------------------------------------------------------------------- */

uint64_t model_parameters(const struct model_config *c) {
    uint64_t total = 0;
    for (size_t i = 0; i < model_slot_count(c); i++) {
        uint64_t dims[2];
        unsigned rank = model_slot_shape(c, model_slot_at(c, i), dims);
        total += rank == 2 ? dims[0] * dims[1] : dims[0];
    }
    return total;
}

char *model_size_label(uint64_t parameters, char out[MODEL_SIZE_LABEL]) {
    static const struct {
        double unit;
        char letter;
    } units[] = {{1e12, 'T'}, {1e9, 'B'}, {1e6, 'M'}, {1e3, 'K'}};
    size_t i = 0;
    while (i + 1 < COUNT_OF(units) && (double)parameters <= units[i].unit) i++;
    double v = (double)parameters / units[i].unit;
    int decimals = rint(v) >= 10 ? 0 : rint(v) >= 1 ? 1 : 2; /* as in gguf-py's model_weight_count_rounded_notation */
    snprintf(out, MODEL_SIZE_LABEL, "%.*f%c", decimals, v, units[i].letter);
    return out;
}
