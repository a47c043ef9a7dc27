/*
 * Phi-3 mini and medium (Abdin et al. 2024) and Phi-4: Llama with q, k and v fused in one matrix, gate and
 * up in another, optionally a window and a rotation of only part of each head. Their long-context variants
 * use rope type longrope.
 */
#include "lib/formats/arch_internal.h"

static const struct hf_key keys[] = {
    HF_KEY("attention_bias", HF_OFF),
};

static const struct arch_tensor tensors[] = {
    {ROLE_EMBED, "model.embed_tokens.weight", 0},
    {ROLE_ATTN_NORM, "model.layers.#.input_layernorm.weight", 0},
    {ROLE_Q, "model.layers.#.self_attn.qkv_proj.weight", FUSED_ROWS},
    {ROLE_K, "model.layers.#.self_attn.qkv_proj.weight", FUSED_ROWS},
    {ROLE_V, "model.layers.#.self_attn.qkv_proj.weight", FUSED_ROWS},
    {ROLE_O, "model.layers.#.self_attn.o_proj.weight", 0},
    {ROLE_FFN_NORM, "model.layers.#.post_attention_layernorm.weight", 0},
    {ROLE_GATE, "model.layers.#.mlp.gate_up_proj.weight", FUSED_ROWS},
    {ROLE_UP, "model.layers.#.mlp.gate_up_proj.weight", FUSED_ROWS},
    {ROLE_DOWN, "model.layers.#.mlp.down_proj.weight", 0},
    {ROLE_NORM, "model.norm.weight", 0},
    {ROLE_HEAD, "lm_head.weight", 0},
};

/* Phi3Config.validate_rope accepts only "default" and "longrope" with its older names. */
static int check_scaling(const struct model_config *c, struct err *e) {
    if (c->rope.scaling == ROPE_PLAIN || c->rope.scaling == ROPE_LONG) return 0;
    return err_set(e, ERR_DATA, "rope type '%s': transformers gives a phi3 no such scaling", hf_rope_type(&c->rope));
}

/* validate_rope also checks the number of longrope's factors, ignoring head_dim. */
static int check(const struct model_config *c, struct err *e) {
    int rc = check_scaling(c, e);
    return rc || c->rope.scaling != ROPE_LONG ? rc : hf_check_derived_width(c, "the factors of longrope", e);
}

static int read(struct model_config *c, const cJSON *json, struct err *e) {
    int rc = check_scaling(c, e);
    return rc ? rc : hf_read_uniform_window(c, json, 0, e);
}

/* ---- GGUF -------------------------------------------------------------------------------------------------------- */

static const struct gguf_key gguf_keys[] = {
    {"attention.sliding_window", GGUF_READ, 0, NULL},
};

/* q, k and v may also be separate, and must be if their quantized types differ. */
static const struct arch_tensor gguf_tensors[] = {
    {ROLE_Q, "blk.#.attn_qkv.weight", FUSED_ROWS},
    {ROLE_K, "blk.#.attn_qkv.weight", FUSED_ROWS},
    {ROLE_V, "blk.#.attn_qkv.weight", FUSED_ROWS},
    {ROLE_Q, "blk.#.attn_q.weight", 0},
    {ROLE_K, "blk.#.attn_k.weight", 0},
    {ROLE_V, "blk.#.attn_v.weight", 0},
    {ROLE_GATE, "blk.#.ffn_up.weight", FUSED_ROWS},
    {ROLE_UP, "blk.#.ffn_up.weight", FUSED_ROWS},
};

static int gguf_read(struct model_config *c, const struct gguf_file *g, const char *prefix, struct arena *a,
                     struct err *e) {
    char key[64];
    uint64_t window = 0;
    (void)a;
    snprintf(key, sizeof key, "%s.attention.sliding_window", prefix);
    int rc = gguf_opt_u64(g, key, 0, UINT32_MAX, &window, e);
    for (uint32_t i = 0; i < c->n_layers && window < c->context; i++) c->layers[i].window = (uint32_t)window;
    return rc;
}

/* The key is written even if 0: older versions of llama.cpp assume a window without it. */
static void gguf_write(struct gguf_header *h, const struct model_config *c) {
    uint32_t window = config_window(c);
    gguf_key_u32(h, ".attention.sliding_window", window);
    if (c->rope.scaling != ROPE_LONG) gguf_key_u32(h, ".rope.scaling.original_context_length", c->context);
    if (window)
        log_line(LOG_WARN,
                 "attention sees %u positions; llama.cpp reads that of a phi3, but has its windows switched off: texts "
                 "longer than that come out differently there",
                 window);
}

const struct arch arch_phi3 = {
    .name = "phi3",
    .models = "Phi-3 and 3.5 mini and medium, Phi-4",
    .hf = {.classes = {{"Phi3ForCausalLM", "phi3"}},
           .keys = keys,
           .n_keys = COUNT_OF(keys),
           .numbers = &hf_llama_numbers,
           .eps = 1e-5,
           .theta = 10000,
           .windows = ONE_WINDOW,
           .original_context = 4096,
           .partial_rotary = 1,
           .tensors = {tensors, COUNT_OF(tensors), "model."},
           .read = read,
           .write = hf_put_uniform_window,
           .check = check},
    .gguf = {.names = {{"phi3", false}},
             .windows = true,
             .lacks = LACKS_LLAMA3 | LACKS_HEAD_WIDTH,
             .keys = gguf_keys,
             .n_keys = COUNT_OF(gguf_keys),
             .tensors = {gguf_tensors, COUNT_OF(gguf_tensors), NULL},
             .read = gguf_read,
             .write = gguf_write,
             .check = arch_uniform_window},
};
