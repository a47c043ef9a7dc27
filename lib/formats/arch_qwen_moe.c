/* Qwen2 MoE (Qwen team 2024) and Qwen3 MoE (Yang et al. 2025): Qwen2 and Qwen3 with experts. Qwen2 MoE also has a gated
 * shared expert, which every position uses. */
#include "lib/formats/arch_internal.h"

static const struct hf_key qwen2_keys[] = {
    HF_EXPERT_KEYS,
    HF_KEY("moe_intermediate_size", HF_READ),
    HF_KEY("shared_expert_intermediate_size", HF_READ),
    HF_KEY("decoder_sparse_step", HF_READ),
    HF_KEY("mlp_only_layers", HF_READ),
    HF_KEY("qkv_bias", HF_READ),
};

static const struct arch_tensor qwen2_tensors[] = {
    {ROLE_GATE, "model.layers.#.mlp.shared_expert.gate_proj.weight", OF_EXPERTS},
    {ROLE_UP, "model.layers.#.mlp.shared_expert.up_proj.weight", OF_EXPERTS},
    {ROLE_DOWN, "model.layers.#.mlp.shared_expert.down_proj.weight", OF_EXPERTS},
    {ROLE_SHARED_GATE, "model.layers.#.mlp.shared_expert_gate.weight", AS_ROW},
    HF_LLAMA_TENSORS,
    HF_EXPERT_TENSORS,
};

/* ---- Qwen2 MoE ---- */

/* Without "layer_types", every other one of the first "max_window_layers" layers has the window. */
static int qwen2_read_window(struct model_config *c, const cJSON *json, struct err *e) {
    uint64_t first;
    uint32_t window;
    bool given;
    int rc = qwen_read_window_keys(c, json, &window, &first, &given, e);
    for (uint32_t i = 0; i < c->n_layers && !rc && !given; i++)
        if (i % 2 == 0 && i < first) c->layers[i].window = window;
    return rc;
}

static int qwen2_read(struct model_config *c, const cJSON *json, struct err *e) {
    static const struct hf_experts how = {60, 4, "moe_intermediate_size", 1408};
    uint32_t ffn = c->layers[0].ffn;
    uint64_t shared = 5632;
    int rc = qwen2_read_window(c, json, e);
    if (!rc) rc = json_opt_bool(json, "qkv_bias", &c->qkv_bias, e);
    if (!rc) rc = hf_read_experts(c, json, &how, e);
    if (!rc) rc = json_opt_u64(json, "shared_expert_intermediate_size", 1, MODEL_MAX_DIM, &shared, e);
    for (uint32_t i = 0; !rc && i < c->n_layers; i++) c->layers[i].ffn = (uint32_t)shared;
    return rc ? rc : hf_read_dense_layers(c, json, ffn, e);
}

static uint32_t shared_width(const struct model_config *c) {
    uint32_t width = 0;
    for (uint32_t i = 0; i < c->n_layers && !width; i++) width = c->layers[i].experts ? c->layers[i].ffn : 0;
    return width;
}

static bool qwen2_write(cJSON *json, const struct model_config *c) {
    return qwen_put_window(json, c) && json_put_bool(json, "qkv_bias", c->qkv_bias) &&
           hf_put_experts(json, c, "num_experts", "moe_intermediate_size") &&
           json_put_bool(json, "norm_topk_prob", c->norm_expert_weights) &&
           json_put_u64(json, "shared_expert_intermediate_size", shared_width(c)) && hf_put_dense_layers(json, c);
}

/* config.json has one width for all dense layers and one for all shared experts. */
static int qwen2_check(const struct model_config *c, struct err *e) {
    for (uint32_t i = 0; i < c->n_layers; i++)
        if (c->layers[i].experts && (!c->layers[i].ffn || !c->shared_gate))
            return err_set(e, ERR_DATA, "layer %u has no gated part beside its experts, which layers of %s have", i,
                           c->arch);
    if (shared_width(c)) return 0;
    return err_set(e, ERR_DATA, "no layer has experts: such a model is not a %s", c->arch);
}

/* A new model's shared expert is as wide as the experts of one position together. */
static void qwen2_complete(struct model_config *c) {
    for (uint32_t i = 0; i < c->n_layers; i++) {
        struct model_layer *l = &c->layers[i];
        if (l->experts) l->ffn = l->expert_ffn * c->experts_per_token;
    }
}

static const struct gguf_key qwen2_gguf_keys[] = {
    GGUF_EXPERT_KEYS(false),
    {"expert_shared_feed_forward_length", GGUF_READ, 0, NULL},
};

static int qwen2_gguf_read(struct model_config *c, const struct gguf_file *g, const char *prefix, struct arena *a,
                           struct err *e) {
    char key[128];
    uint64_t shared = 0, ffn = c->layers[0].ffn;
    int rc = gguf_read_experts(c, g, prefix, a, e);
    snprintf(key, sizeof key, "%.80s.expert_shared_feed_forward_length", prefix);
    if (!rc) rc = gguf_opt_u64(g, key, 0, MODEL_MAX_DIM, &shared, e);
    for (uint32_t i = 0; !rc && i < c->n_layers; i++) c->layers[i].ffn = (uint32_t)(shared ? shared : ffn);
    return rc;
}

static void qwen2_gguf_write(struct gguf_header *h, const struct model_config *c) {
    gguf_put_wide_experts(h, c);
    gguf_key_u32(h, ".expert_shared_feed_forward_length", c->layers[0].ffn);
}

static int qwen2_gguf_check(const struct model_config *c, struct err *e) {
    if (!c->shared_gate) return err_set(e, ERR_DATA, "a part beside the experts without a gate");
    return gguf_check_experts(c, true, false, e);
}

const struct arch arch_qwen2_moe = {
    .name = "qwen2_moe",
    .models = "Qwen1.5 MoE, Qwen2 57B-A14B",
    .traits = {.qkv_bias = true, .experts_per_token = 4, .shared_gate = true},
    .complete = qwen2_complete,
    .hf = {.classes = {{"Qwen2MoeForCausalLM", "qwen2_moe"}},
           .keys = qwen2_keys,
           .n_keys = COUNT_OF(qwen2_keys),
           .numbers = &hf_llama_numbers,
           .eps = 1e-6,
           .theta = 10000,
           .windows = LAYER_WINDOWS,
           .kv_heads = 16,
           .tensors = {qwen2_tensors, COUNT_OF(qwen2_tensors), "model."},
           .read = qwen2_read,
           .write = qwen2_write,
           .check = qwen2_check},
    .gguf = {.names = {{"qwen2moe", false}},
             .experts = true,
             .lacks = LACKS_O_BIAS | LACKS_LLAMA3 | LACKS_LONG | LACKS_HEAD_WIDTH | LACKS_TIED,
             .keys = qwen2_gguf_keys,
             .n_keys = COUNT_OF(qwen2_gguf_keys),
             .read = qwen2_gguf_read,
             .write = qwen2_gguf_write,
             .check = qwen2_gguf_check},
};

/* ---- Qwen3 MoE ---- */

static const struct hf_key qwen3_keys[] = {
    HF_EXPERT_KEYS,
    HF_KEY("moe_intermediate_size", HF_READ),
    HF_KEY("decoder_sparse_step", HF_READ),
    HF_KEY("mlp_only_layers", HF_READ),
    HF_KEY("attention_bias", HF_READ),
};

static const struct arch_tensor qwen3_tensors[] = {
    HF_LLAMA_TENSORS,
    HF_EXPERT_TENSORS,
    {ROLE_Q_NORM, "model.layers.#.self_attn.q_norm.weight", 0},
    {ROLE_K_NORM, "model.layers.#.self_attn.k_norm.weight", 0},
};

/* One window for all layers, if it is enabled. */
static int qwen3_read_window(struct model_config *c, const cJSON *json, struct err *e) {
    uint32_t window = 0;
    bool use = false;
    int rc = json_opt_bool(json, "use_sliding_window", &use, e);
    if (!rc && use) rc = hf_read_window(c, json, 4096, &window, e);
    for (uint32_t i = 0; i < c->n_layers && !rc; i++) c->layers[i].window = window;
    return rc;
}

static int qwen3_read(struct model_config *c, const cJSON *json, struct err *e) {
    static const struct hf_experts how = {128, 8, "moe_intermediate_size", 768};
    uint32_t ffn = c->layers[0].ffn;
    int rc = hf_read_attention_bias(c, json, e);
    if (!rc) rc = qwen3_read_window(c, json, e);
    if (!rc) rc = hf_read_experts(c, json, &how, e);
    return rc ? rc : hf_read_dense_layers(c, json, ffn, e);
}

static bool qwen3_write(cJSON *json, const struct model_config *c) {
    return hf_put_attention_bias(json, c) && hf_put_uniform_window(json, c) &&
           json_put_bool(json, "use_sliding_window", config_window(c) != 0) &&
           hf_put_experts(json, c, "num_experts", "moe_intermediate_size") &&
           json_put_bool(json, "norm_topk_prob", c->norm_expert_weights) && hf_put_dense_layers(json, c);
}

static int qwen3_check(const struct model_config *c, struct err *e) {
    bool experts = false;
    for (uint32_t i = 0; i < c->n_layers; i++) {
        const struct model_layer *l = &c->layers[i];
        experts = experts || l->experts;
        if (l->experts && l->ffn)
            return err_set(e, ERR_DATA, "layer %u has a dense part beside its experts, which layers of %s do not have",
                           i, c->arch);
    }
    return experts ? 0 : err_set(e, ERR_DATA, "no layer has experts: such a model is not a %s", c->arch);
}

static const struct gguf_key qwen3_gguf_keys[] = {GGUF_EXPERT_KEYS(true)};

static int qwen3_gguf_read(struct model_config *c, const struct gguf_file *g, const char *prefix, struct arena *a,
                           struct err *e) {
    c->norm_expert_weights = true;
    return gguf_read_experts(c, g, prefix, a, e);
}

static int qwen3_gguf_check(const struct model_config *c, struct err *e) {
    return gguf_check_experts(c, false, true, e);
}

const struct arch arch_qwen3_moe = {
    .name = "qwen3_moe",
    .models = "Qwen3 30B-A3B, 235B-A22B",
    .traits = {.qk_norm = QK_NORM_HEADS, .experts_per_token = 8},
    .hf = {.classes = {{"Qwen3MoeForCausalLM", "qwen3_moe"}},
           .keys = qwen3_keys,
           .n_keys = COUNT_OF(qwen3_keys),
           .numbers = &hf_llama_numbers,
           .eps = 1e-6,
           .theta = 10000,
           .windows = ONE_WINDOW,
           .kv_heads = 4,
           .tensors = {qwen3_tensors, COUNT_OF(qwen3_tensors), "model."},
           .read = qwen3_read,
           .write = qwen3_write,
           .zeros = hf_attention_bias_zeros,
           .check = qwen3_check},
    .gguf = {.names = {{"qwen3moe", false}},
             .experts = true,
             .lacks = LACKS_O_BIAS | LACKS_LLAMA3 | LACKS_LONG,
             .keys = qwen3_gguf_keys,
             .n_keys = COUNT_OF(qwen3_gguf_keys),
             .read = qwen3_gguf_read,
             .write = gguf_put_wide_experts,
             .check = qwen3_gguf_check},
};
