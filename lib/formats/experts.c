/* Reads and writes the layers with experts of config.json and GGUF, for all architectures that have them. */
#include "lib/formats/arch_internal.h"

uint32_t config_ffn(const struct model_config *c) {
    for (uint32_t i = 0; i < c->n_layers; i++)
        if (!c->layers[i].experts) return c->layers[i].ffn;
    return c->layers[0].expert_ffn;
}

/* The first layer with experts; NULL: none. */
static const struct model_layer *with_experts(const struct model_config *c) {
    for (uint32_t i = 0; i < c->n_layers; i++)
        if (c->layers[i].experts) return &c->layers[i];
    return NULL;
}

int arch_all_experts(const struct model_config *c, bool dense, struct err *e) {
    for (uint32_t i = 0; i < c->n_layers; i++) {
        const struct model_layer *l = &c->layers[i];
        if (!l->experts)
            return err_set(e, ERR_DATA, "layer %u has no experts, which all layers of %s have there", i, c->arch);
        if (!l->ffn == dense)
            return err_set(e, ERR_DATA, "layer %u has %s part beside its experts, which layers of %s have %s", i,
                           dense ? "no dense" : "a dense", c->arch, dense ? "there" : "not");
    }
    return 0;
}

/* Replaces the dense part of all layers by experts; width 0: as wide as the dense part. */
static void give_experts(struct model_config *c, uint64_t experts, uint64_t per_token, uint64_t width) {
    c->experts_per_token = (uint32_t)per_token;
    for (uint32_t i = 0; i < c->n_layers; i++) {
        struct model_layer *l = &c->layers[i];
        l->experts = (uint32_t)experts;
        l->expert_ffn = width ? (uint32_t)width : l->ffn;
        l->ffn = 0;
    }
}

/* ---- Hugging Face ---- */

int hf_read_experts(struct model_config *c, const cJSON *json, const struct hf_experts *how, struct err *e) {
    const char *count = hf_member(json, "num_experts") ? "num_experts" : "num_local_experts";
    uint64_t experts = how->experts, per_token = how->per_token, width = how->width ? how->absent_width : 0;
    int rc = json_opt_u64(json, count, 1, MODEL_MAX_EXPERTS, &experts, e);
    if (!rc) rc = json_opt_u64(json, "num_experts_per_tok", 1, MODEL_MAX_EXPERTS, &per_token, e);
    if (!rc && how->width) rc = json_opt_u64(json, how->width, 1, MODEL_MAX_DIM, &width, e);
    if (!rc) rc = json_opt_bool(json, "norm_topk_prob", &c->norm_expert_weights, e);
    if (!rc) give_experts(c, experts, per_token, width);
    return rc;
}

bool hf_put_experts(cJSON *json, const struct model_config *c, const char *count, const char *width) {
    const struct model_layer *l = with_experts(c);
    if (!l) l = &c->layers[0];
    return json_put_u64(json, count, l->experts) && json_put_u64(json, "num_experts_per_tok", c->experts_per_token) &&
           (!width || json_put_u64(json, width, l->expert_ffn));
}

static void make_dense(struct model_layer *l, uint32_t ffn) {
    l->experts = l->expert_ffn = 0;
    l->ffn = ffn;
}

int hf_read_dense_layers(struct model_config *c, const cJSON *json, uint32_t ffn, struct err *e) {
    static const char key[] = "mlp_only_layers";
    const cJSON *list = hf_member(json, key);
    uint64_t step = 1;
    int rc = json_opt_u64(json, "decoder_sparse_step", 1, UINT32_MAX, &step, e);
    if (rc) return rc;
    if (list && !cJSON_IsArray(list)) return err_set(e, ERR_DATA, "\"%s\" is not a list", key);
    for (uint32_t i = 0; i < c->n_layers; i++)
        if ((i + 1) % step) make_dense(&c->layers[i], ffn);
    for (const cJSON *x = list ? list->child : NULL; x; x = x->next) {
        double v = cJSON_IsNumber(x) ? x->valuedouble : -1;
        if (!(v >= 0 && v < c->n_layers) || v != (double)(uint32_t)v)
            return err_set(e, ERR_DATA, "\"%s\" names a layer that is not there", key);
        make_dense(&c->layers[(uint32_t)v], ffn);
    }
    return 0;
}

bool hf_put_dense_layers(cJSON *json, const struct model_config *c) {
    cJSON *list = json_put_u64(json, "decoder_sparse_step", 1) ? cJSON_AddArrayToObject(json, "mlp_only_layers") : NULL;
    for (uint32_t i = 0; list && i < c->n_layers; i++) {
        if (c->layers[i].experts) continue;
        cJSON *x = cJSON_CreateNumber(i);
        if (x && cJSON_AddItemToArray(list, x)) continue;
        cJSON_Delete(x);
        return false;
    }
    return list != NULL;
}

/* ---- GGUF ---- */

int gguf_read_experts(struct model_config *c, const struct gguf_file *g, const char *prefix, struct arena *a,
                      struct err *e) {
    (void)a;
    char key[GGUF_KEY_SIZE];
    uint64_t experts = 0, per_token = 0, width = 0;
    int rc = gguf_get_u64(g, gguf_arch_key(key, prefix, "expert_count"), 1, MODEL_MAX_EXPERTS, &experts, e);
    if (!rc) rc = gguf_get_u64(g, gguf_arch_key(key, prefix, "expert_used_count"), 1, experts, &per_token, e);
    if (!rc)
        rc = gguf_opt_u64(g, gguf_arch_key(key, prefix, "expert_feed_forward_length"), 0, MODEL_MAX_DIM, &width, e);
    if (!rc) give_experts(c, experts, per_token, width);
    return rc;
}

void gguf_put_experts(struct gguf_header *h, const struct model_config *c) {
    gguf_key_u32(h, ".expert_count", c->layers[0].experts);
    gguf_key_u32(h, ".expert_used_count", c->experts_per_token);
}

void gguf_put_wide_experts(struct gguf_header *h, const struct model_config *c) {
    gguf_put_experts(h, c);
    gguf_key_u32(h, ".expert_feed_forward_length", c->layers[0].expert_ffn);
}

int gguf_check_experts(const struct model_config *c, bool dense, bool norm, struct err *e) {
    int rc = arch_all_experts(c, dense, e);
    if (rc || c->norm_expert_weights == norm) return rc;
    return err_set(e, ERR_DATA, "the weights of experts are %sdivided by their sum, which llama.cpp's %s %s",
                   norm ? "not " : "", c->arch, norm ? "always does" : "never does");
}
