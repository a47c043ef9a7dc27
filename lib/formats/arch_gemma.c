/*
 * Gemma (Gemma Team 2024): norm weights are stored minus 1, and embeddings are scaled by sqrt(hidden). Gemma 2 (2024)
 * and the text model of Gemma 3 (2025) also have norms after each part, scale scores by a factor independent of the
 * head size, and alternate layers with a window and layers with full attention. Gemma 2 soft-caps scores and logits;
 * Gemma 3 instead normalizes q and k, and layers with a window have a rotary base of their own.
 */
#include <math.h>

#include "lib/formats/arch_internal.h"

#define NORM(role, name)                                                                                               \
    { ROLE_##role, "model.layers.#." name ".weight", MINUS_ONE }
#define TENSORS                                                                                                        \
    {ROLE_EMBED, "model.embed_tokens.weight", 0}, NORM(ATTN_NORM, "input_layernorm"),                                  \
        {ROLE_Q, "model.layers.#.self_attn.q_proj.weight", 0}, {ROLE_K, "model.layers.#.self_attn.k_proj.weight", 0},  \
        {ROLE_V, "model.layers.#.self_attn.v_proj.weight", 0}, {ROLE_O, "model.layers.#.self_attn.o_proj.weight", 0},  \
        NORM(ATTN_POST_NORM, "post_attention_layernorm"), NORM(FFN_NORM, "pre_feedforward_layernorm"),                 \
        {ROLE_GATE, "model.layers.#.mlp.gate_proj.weight", 0}, {ROLE_UP, "model.layers.#.mlp.up_proj.weight", 0},      \
        {ROLE_DOWN, "model.layers.#.mlp.down_proj.weight", 0}, NORM(FFN_POST_NORM, "post_feedforward_layernorm"),      \
        {ROLE_NORM, "model.norm.weight", MINUS_ONE}, {                                                                 \
        ROLE_HEAD, "lm_head.weight", 0                                                                                 \
    }

static const struct arch_tensor gemma2_tensors[] = {TENSORS};
static const struct arch_tensor gemma_tensors[] = {
    {ROLE_EMBED, "model.embed_tokens.weight", 0},
    NORM(ATTN_NORM, "input_layernorm"),
    {ROLE_Q, "model.layers.#.self_attn.q_proj.weight", 0},
    {ROLE_K, "model.layers.#.self_attn.k_proj.weight", 0},
    {ROLE_V, "model.layers.#.self_attn.v_proj.weight", 0},
    {ROLE_O, "model.layers.#.self_attn.o_proj.weight", 0},
    NORM(FFN_NORM, "post_attention_layernorm"),
    {ROLE_GATE, "model.layers.#.mlp.gate_proj.weight", 0},
    {ROLE_UP, "model.layers.#.mlp.up_proj.weight", 0},
    {ROLE_DOWN, "model.layers.#.mlp.down_proj.weight", 0},
    {ROLE_NORM, "model.norm.weight", MINUS_ONE},
    {ROLE_HEAD, "lm_head.weight", 0},
};
static const struct arch_tensor gemma3_tensors[] = {TENSORS, NORM(Q_NORM, "self_attn.q_norm"),
                                                    NORM(K_NORM, "self_attn.k_norm")};

/* No key for the activation: it is read below, because transformers no longer reads "hidden_act". */
static const struct hf_numbers numbers = {"num_hidden_layers",       "hidden_size",  "num_attention_heads",
                                          "num_key_value_heads",     "head_dim",     "intermediate_size",
                                          "max_position_embeddings", "rms_norm_eps", NULL};

#define KEYS                                                                                                           \
    HF_KEY("hidden_activation", HF_READ), HF_KEY_TEXT("hidden_act", HF_SAME, "hidden_activation"),                     \
        HF_KEY("attention_bias", HF_OFF), HF_KEY("query_pre_attn_scalar", HF_READ),                                    \
        HF_KEY("final_logit_softcapping", HF_READ), HF_KEY("use_bidirectional_attention", HF_OFF),                     \
        HF_KEY("use_sliding_window", HF_TRUE)

static const struct hf_key gemma2_keys[] = {KEYS, HF_KEY("attn_logit_softcapping", HF_READ),
                                            HF_KEY_NUMBER("sliding_window_pattern", 2)};
/* transformers writes "_sliding_window_pattern" beside "layer_types", which is the one it reads. */
static const struct hf_key gemma3_keys[] = {KEYS, HF_KEY("sliding_window_pattern", HF_READ),
                                            HF_KEY("rope_local_base_freq", HF_READ),
                                            HF_KEY("_sliding_window_pattern", HF_READ)};

/* Gemma 3 from 4B up also reads images. The projector and the image tokens do not affect the language model. */
static const struct hf_key gemma3_whole_keys[] = {
    HF_KEY("text_config", HF_READ),       HF_KEY("vision_config", HF_READ),   HF_KEY("mm_tokens_per_image", HF_READ),
    HF_KEY("image_token_index", HF_READ), HF_KEY("boi_token_index", HF_READ), HF_KEY("eoi_token_index", HF_READ),
    HF_KEY("image_token_id", HF_READ),    HF_KEY("boi_token_id", HF_READ),    HF_KEY("eoi_token_id", HF_READ),
};
/* The first names are those of checkpoints. transformers 4.52 to 4.57 has the second in memory, and some files were
 * saved with them. */
static const struct hf_whole gemma3_whole = {
    .class = "Gemma3ForConditionalGeneration",
    .model_type = "gemma3",
    .keys = gemma3_whole_keys,
    .n_keys = COUNT_OF(gemma3_whole_keys),
    .names = {{"language_model.", ""}, {"model.language_model.", "model."}},
    .others = {"vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."},
};

/* ---- shared by Gemma 2 and 3 ------------------------------------------------------------------------------------- */

/* The N of a score scale of the form 1 / sqrt(N), N an integer. 0: the scale does not have this form. */
static uint32_t scalar_of(const struct model_config *c) {
    if (c->attn_scale == 0) return c->head_dim;
    double scalar = rint(1 / ((double)c->attn_scale * (double)c->attn_scale));
    return scalar <= MODEL_MAX_DIM && (float)(1 / sqrt(scalar)) == c->attn_scale ? (uint32_t)scalar : 0;
}

static void set_scalar(struct model_config *c, uint64_t scalar) {
    c->attn_scale = scalar == c->head_dim ? 0 : (float)(1 / sqrt((double)scalar));
}

static bool is_null(const cJSON *json, const char *key) {
    return cJSON_IsNull(cJSON_GetObjectItemCaseSensitive(json, key));
}

/* null: no cap; absent: the class's default */
static int read_softcap(float *cap, const cJSON *json, const char *key, double fallback, struct err *e) {
    double v = is_null(json, key) ? 0 : fallback;
    int rc = json_opt_f64(json, key, 1e-3, 1e6, &v, e);
    *cap = (float)v;
    return rc;
}

static bool put_softcap(cJSON *json, const char *key, float cap) {
    return cap == 0 ? cJSON_AddNullToObject(json, key) != NULL : json_put_float(json, key, model_shortest_float(cap));
}

/* Every layer except each `pattern`-th has a window, unless "layer_types" lists them. */
static int read_windows(struct model_config *c, const cJSON *json, uint64_t pattern, struct err *e) {
    uint64_t window = 4096;
    bool given, none = is_null(json, "sliding_window");
    int rc = json_opt_u64(json, "sliding_window", 1, UINT32_MAX, &window, e);
    if (!rc) rc = hf_read_layer_types(c, json, (uint32_t)window, &given, e);
    for (uint32_t i = 0; i < c->n_layers && !rc; i++) {
        if (!given) c->layers[i].window = (i + 1) % pattern ? (uint32_t)window : 0;
        if (none && c->layers[i].window)
            rc = err_set(e, ERR_DATA, "\"sliding_window\" is null, but layer %u is of sliding attention", i);
    }
    return rc;
}

/* No key in the file states the embedding scale. */
static void complete(struct model_config *c) {
    c->embed_scale = sqrtf((float)c->hidden);
}

static int read_both(struct model_config *c, const cJSON *json, struct err *e) {
    uint64_t scalar = 256;
    complete(c);
    int rc = json_opt_u64(json, "query_pre_attn_scalar", 1, MODEL_MAX_DIM, &scalar, e);
    if (!rc) rc = hf_read_act(c, json, "hidden_activation", "gelu_pytorch_tanh", e);
    set_scalar(c, scalar);
    return rc;
}

static bool write_both(cJSON *json, const struct model_config *c) {
    struct err e;
    uint32_t window = 0;
    const char *act = c->act == ACT_GELU_TANH ? "gelu_pytorch_tanh" : hf_act_name(c->act);
    bool ok = arch_one_window(c, &window, &e) == 0 && (!window || json_put_u64(json, "sliding_window", window));
    return ok && hf_put_layer_types(json, c) && json_put_str(json, "hidden_activation", act) &&
           json_put_u64(json, "query_pre_attn_scalar", scalar_of(c)) && json_put_bool(json, "attention_bias", false) &&
           put_softcap(json, "final_logit_softcapping", c->logit_softcap);
}

/* ---- what other programs can load -------------------------------------------------------------------------------- */

static int check_both(const struct model_config *c, struct err *e) {
    uint32_t window;
    if (c->embed_scale != sqrtf((float)c->hidden))
        return err_set(e, ERR_DATA,
                       "embeddings are scaled by %g, where a %s scales them by the root of its hidden size %u",
                       (double)c->embed_scale, c->arch, c->hidden);
    return arch_one_window(c, &window, e);
}

/* validate_architecture of transformers requires it, although head_dim is a separate key. */
static int hf_check_both(const struct model_config *c, struct err *e) {
    int rc = check_both(c, e);
    if (!rc && c->hidden % c->layers[0].n_heads)
        rc = err_set(e, ERR_DATA, "hidden size %u is not a multiple of %u heads, which transformers requires of a %s",
                     c->hidden, c->layers[0].n_heads, c->arch);
    if (!rc && !scalar_of(c))
        rc = err_set(e, ERR_DATA, "scores are scaled by %g, which is 1 / sqrt(N) of no whole number",
                     (double)c->attn_scale);
    return rc;
}

/* llama.cpp derives the score scale from the number of layers: the largest model uses hidden size / heads. */
static uint32_t gguf_scalar(const struct model_config *c, uint32_t layers_27b) {
    return c->n_layers == layers_27b ? c->hidden / c->layers[0].n_heads : c->head_dim;
}

static int gguf_check_both(const struct model_config *c, uint32_t layers_27b, struct err *e) {
    uint32_t scalar = gguf_scalar(c, layers_27b);
    int rc = check_both(c, e);
    if (!rc && scalar_of(c) != scalar)
        rc = err_set(e, ERR_DATA,
                     "scores are scaled by %g, but llama.cpp takes 1 / sqrt(%u) for a %s of %u layers, %u heads and a "
                     "head size of %u",
                     c->attn_scale != 0 ? (double)c->attn_scale : 1 / sqrt(c->head_dim), scalar, c->arch, c->n_layers,
                     c->layers[0].n_heads, c->head_dim);
    if (!rc && c->act != ACT_GELU_TANH)
        rc = err_set(e, ERR_DATA, "activation %s: llama.cpp has the tanh form of GELU for a %s", hf_act_name(c->act),
                     c->arch);
    if (!rc && (c->rope.scaling == ROPE_LLAMA3 || c->rope.scaling == ROPE_LONG))
        rc = err_set(e, ERR_DATA, "%s rotary scaling, which llama.cpp does not give to a %s", hf_rope_type(&c->rope),
                     c->arch);
    return rc;
}

static int gguf_read_softcap(float *cap, const struct gguf_file *g, const char *prefix, const char *suffix,
                             double fallback, struct err *e) {
    char key[GGUF_KEY_SIZE];
    double v = fallback;
    int rc = gguf_opt_f64(g, gguf_arch_key(key, prefix, suffix), 0, 1e6, &v, e);
    *cap = (float)v;
    return rc;
}

/* ---- Gemma 1 ----------------------------------------------------------------------------------------------------- */

static const struct hf_key gemma_keys[] = {
    HF_KEY("hidden_act", HF_READ),
    HF_KEY_TEXT("hidden_activation", HF_TEXT, "gelu_pytorch_tanh"), /* from an older class, which had its own default */
    HF_KEY("attention_bias", HF_OFF),
    HF_KEY("use_bidirectional_attention", HF_OFF),
    HF_KEY("sliding_window", HF_OFF),
    HF_KEY("layer_types", HF_OFF),
};

/* The official files say "gelu" but mean the tanh form, and transformers reads them so. */
static int gemma_read(struct model_config *c, const cJSON *json, struct err *e) {
    complete(c);
    int rc = hf_read_act(c, json, "hidden_act", "gelu_pytorch_tanh", e);
    if (c->act == ACT_GELU) c->act = ACT_GELU_TANH;
    return rc;
}

static bool gemma_write(cJSON *json, const struct model_config *c) {
    const char *act = c->act == ACT_GELU_TANH ? "gelu_pytorch_tanh" : hf_act_name(c->act);
    return json_put_str(json, "hidden_act", act) && json_put_bool(json, "attention_bias", false);
}

static int gemma_check(const struct model_config *c, struct err *e) {
    int rc = hf_check_both(c, e);
    if (!rc && c->act == ACT_GELU)
        rc = err_set(e, ERR_DATA, "the exact GELU: transformers takes the tanh form for a gemma that says gelu");
    if (!rc && c->attn_scale != 0)
        rc = err_set(e, ERR_DATA, "scores of a gemma are scaled by 1 / sqrt(%u), and not by %g", c->head_dim,
                     (double)c->attn_scale);
    return rc;
}

static const struct gguf_key gemma_gguf_keys[] = {{"hidden_activation", GGUF_OFF, 0, NULL}};

static int gemma_gguf_read(struct model_config *c, const struct gguf_file *g, const char *prefix, struct arena *a,
                           struct err *e) {
    (void)g, (void)prefix, (void)a, (void)e;
    complete(c);
    return 0;
}

static int gemma_gguf_check(const struct model_config *c, struct err *e) {
    int rc = gguf_check_both(c, 0, e);
    if (!rc && !c->tied)
        rc = err_set(e, ERR_DATA, "a gemma with a separate output matrix: llama.cpp uses the embedding");
    return rc;
}

const struct arch arch_gemma = {
    .name = "gemma",
    .models = "Gemma 1, CodeGemma",
    .traits = {.act = ACT_GELU_TANH},
    .complete = complete,
    .hf = {.classes = {{"GemmaForCausalLM", "gemma"}},
           .keys = gemma_keys,
           .n_keys = COUNT_OF(gemma_keys),
           .numbers = &numbers,
           .eps = 1e-6,
           .theta = 10000,
           .kv_heads = 16,
           .head_dim = 256,
           .tied = true,
           .tensors = {gemma_tensors, COUNT_OF(gemma_tensors), "model."},
           .read = gemma_read,
           .write = gemma_write,
           .check = gemma_check},
    .gguf = {.names = {{"gemma", false}},
             .keys = gemma_gguf_keys,
             .n_keys = COUNT_OF(gemma_gguf_keys),
             .read = gemma_gguf_read,
             .check = gemma_gguf_check},
};

/* ---- Gemma 2 ----------------------------------------------------------------------------------------------------- */

enum { GEMMA2_27B = 46, GEMMA3_27B = 62 /* numbers of layers */ };

static int gemma2_read(struct model_config *c, const cJSON *json, struct err *e) {
    int rc = read_both(c, json, e);
    if (!rc) rc = read_softcap(&c->attn_softcap, json, "attn_logit_softcapping", 50, e);
    if (!rc) rc = read_softcap(&c->logit_softcap, json, "final_logit_softcapping", 30, e);
    return rc ? rc : read_windows(c, json, 2, e);
}

static bool gemma2_write(cJSON *json, const struct model_config *c) {
    return write_both(json, c) && put_softcap(json, "attn_logit_softcapping", c->attn_softcap);
}

static const struct gguf_key gemma2_gguf_keys[] = {
    {"attention.sliding_window", GGUF_READ, 0, NULL},       {"attention.sliding_window_pattern", GGUF_READ, 0, NULL},
    {"attn_logit_softcapping", GGUF_READ, 0, NULL},         {"final_logit_softcapping", GGUF_READ, 0, NULL},
    {"rope.freq_base_swa", GGUF_SAME, 0, "rope.freq_base"}, {"hidden_activation", GGUF_OFF, 0, NULL},
};

static int gemma2_gguf_read(struct model_config *c, const struct gguf_file *g, const char *prefix, struct arena *a,
                            struct err *e) {
    (void)a;
    complete(c);
    set_scalar(c, gguf_scalar(c, GEMMA2_27B));
    int rc = gguf_read_softcap(&c->attn_softcap, g, prefix, "attn_logit_softcapping", 50, e);
    if (!rc) rc = gguf_read_softcap(&c->logit_softcap, g, prefix, "final_logit_softcapping", 30, e);
    if (!rc && (c->attn_softcap == 0 || c->logit_softcap == 0))
        rc = err_set(e, ERR_DATA, "a soft cap of 0: not supported");
    return rc ? rc : gguf_read_windows(c, g, prefix, 4096, 2, e);
}

static void gemma2_gguf_write(struct gguf_header *h, const struct model_config *c) {
    uint32_t window;
    struct err e;
    gguf_key_f32(h, ".attn_logit_softcapping", (double)c->attn_softcap);
    gguf_key_f32(h, ".final_logit_softcapping", (double)c->logit_softcap);
    if (arch_one_window(c, &window, &e) || !window) window = c->context;
    gguf_put_windows(h, c, window, 2);
}

static int gemma2_gguf_check(const struct model_config *c, struct err *e) {
    int rc = gguf_check_both(c, GEMMA2_27B, e);
    if (!rc && (c->attn_softcap == 0 || c->logit_softcap == 0))
        rc = err_set(e, ERR_DATA, "a gemma2 without soft caps: llama.cpp always has them");
    if (!rc && !c->tied)
        rc = err_set(e, ERR_DATA, "a gemma2 with a separate output matrix: llama.cpp uses the embedding");
    return rc;
}

const struct arch arch_gemma2 = {
    .name = "gemma2",
    .models = "Gemma 2",
    .traits = {.norm_place = NORM_SANDWICH, .act = ACT_GELU_TANH, .attn_softcap = 50, .logit_softcap = 30},
    .complete = complete,
    .window_pattern = 2,
    .hf = {.classes = {{"Gemma2ForCausalLM", "gemma2"}},
           .keys = gemma2_keys,
           .n_keys = COUNT_OF(gemma2_keys),
           .numbers = &numbers,
           .eps = 1e-6,
           .theta = 10000,
           .windows = LAYER_WINDOWS,
           .kv_heads = 4,
           .head_dim = 256,
           .tied = true,
           .tensors = {gemma2_tensors, COUNT_OF(gemma2_tensors), "model."},
           .read = gemma2_read,
           .write = gemma2_write,
           .check = hf_check_both},
    .gguf = {.names = {{"gemma2", false}},
             .windows = true,
             .keys = gemma2_gguf_keys,
             .n_keys = COUNT_OF(gemma2_gguf_keys),
             .read = gemma2_gguf_read,
             .write = gemma2_gguf_write,
             .check = gemma2_gguf_check},
};

/* ---- Gemma 3 ----------------------------------------------------------------------------------------------------- */

/* Layers with a window use the local rotation; if there are none, the configuration has no local rotation. */
static void set_rotations(struct model_config *c) {
    bool any = false;
    for (uint32_t i = 0; i < c->n_layers; i++) {
        c->layers[i].rope = c->layers[i].window ? ROPE_LOCAL : ROPE_MAIN;
        any = any || c->layers[i].window;
    }
    if (!any) c->local_rope = (struct model_rope){.theta = 0};
}

static void gemma3_complete(struct model_config *c) {
    complete(c);
    c->local_rope.theta = 10000;
    set_rotations(c);
}

static int gemma3_read(struct model_config *c, const cJSON *json, struct err *e) {
    uint64_t pattern = 0;
    int rc = read_both(c, json, e);
    if (!rc) rc = read_softcap(&c->logit_softcap, json, "final_logit_softcapping", 0, e);
    if (!rc) rc = json_opt_u64(json, "sliding_window_pattern", 1, UINT32_MAX, &pattern, e);
    if (!rc) rc = read_windows(c, json, pattern ? pattern : 6, e);
    for (uint32_t i = 0; i < c->n_layers && pattern && !rc; i++)
        if ((c->layers[i].window != 0) != ((i + 1) % pattern != 0))
            rc = err_set(e, ERR_DATA, "\"sliding_window_pattern\" %llu and \"layer_types\" disagree about layer %u",
                         (unsigned long long)pattern, i);
    set_rotations(c);
    return rc;
}

static int check_gemma3(const struct model_config *c, struct err *e) {
    if (c->local_rope.dims || c->rope.dims) return err_set(e, ERR_DATA, "a gemma3 rotates whole heads");
    if (c->attn_softcap != 0) return err_set(e, ERR_DATA, "a gemma3 has no soft cap of its scores");
    for (uint32_t i = 0; i < c->n_layers; i++)
        if (c->layers[i].rope != (c->layers[i].window ? ROPE_LOCAL : ROPE_MAIN))
            return err_set(e, ERR_DATA, "layer %u of a gemma3 %s", i,
                           c->layers[i].window ? "has a window, but not the local rotation"
                                               : "has no window, but not the main rotation");
    return 0;
}

static int gemma3_hf_check(const struct model_config *c, struct err *e) {
    int rc = check_gemma3(c, e);
    return rc ? rc : hf_check_both(c, e);
}

static const struct gguf_key gemma3_gguf_keys[] = {
    {"attention.sliding_window", GGUF_READ, 0, NULL}, {"attention.sliding_window_pattern", GGUF_READ, 0, NULL},
    {"final_logit_softcapping", GGUF_READ, 0, NULL},  {"rope.freq_base_swa", GGUF_READ, 0, NULL},
    {"hidden_activation", GGUF_OFF, 0, NULL},
};

static int gemma3_gguf_read(struct model_config *c, const struct gguf_file *g, const char *prefix, struct arena *a,
                            struct err *e) {
    (void)a;
    complete(c);
    set_scalar(c, gguf_scalar(c, GEMMA3_27B));
    int rc = gguf_read_softcap(&c->logit_softcap, g, prefix, "final_logit_softcapping", 0, e);
    if (!rc) rc = gguf_read_windows(c, g, prefix, 0, 6, e);
    set_rotations(c);
    return rc;
}

static void gemma3_gguf_write(struct gguf_header *h, const struct model_config *c) {
    uint32_t window;
    struct err e;
    if (c->logit_softcap != 0) gguf_key_f32(h, ".final_logit_softcapping", (double)c->logit_softcap);
    if (!arch_one_window(c, &window, &e) && window) gguf_put_windows(h, c, window, 6);
}

/* The default attention factor of YaRN scales only layers without a window, but llama.cpp applies an explicit one
 * ("attn_factor") in all layers. */
static int gemma3_gguf_check(const struct model_config *c, struct err *e) {
    const struct model_rope *r = &c->rope;
    int rc = check_gemma3(c, e);
    if (!rc && r->scaling == ROPE_YARN && c->local_rope.theta != 0 &&
        r->attention_factor != model_rope_attention(ROPE_YARN, r->factor, r->original_context))
        rc = err_set(e, ERR_DATA,
                     "yarn with an attention_factor of its own, which llama.cpp gives layers with a window, too");
    return rc ? rc : gguf_check_both(c, GEMMA3_27B, e);
}

const struct arch arch_gemma3 = {
    .name = "gemma3",
    .models = "Gemma 3 (text)",
    .traits = {.norm_place = NORM_SANDWICH, .act = ACT_GELU_TANH, .qk_norm = QK_NORM_HEADS},
    .complete = gemma3_complete,
    .window_pattern = 6,
    .hf = {.classes = {{"Gemma3ForCausalLM", "gemma3_text"}},
           .keys = gemma3_keys,
           .n_keys = COUNT_OF(gemma3_keys),
           .numbers = &numbers,
           .eps = 1e-6,
           .theta = 1e6,
           .local_theta = 10000,
           .windows = LAYER_WINDOWS,
           .kv_heads = 4,
           .head_dim = 256,
           .vocab = 262208,
           .context = 131072,
           .heads = 8,
           .tied = true,
           .whole = &gemma3_whole,
           .tensors = {gemma3_tensors, COUNT_OF(gemma3_tensors), "model."},
           .read = gemma3_read,
           .write = write_both,
           .check = gemma3_hf_check},
    .gguf = {.names = {{"gemma3", false}},
             .windows = true,
             .keys = gemma3_gguf_keys,
             .n_keys = COUNT_OF(gemma3_gguf_keys),
             .read = gemma3_gguf_read,
             .write = gemma3_gguf_write,
             .check = gemma3_gguf_check},
};
