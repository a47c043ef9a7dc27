/* What GGUF and Hugging Face call the tensor of a role, and the order of rotary rows. */
#include "lib/formats/formats_internal.h"

/* Those of a layer stand behind "blk.N." and "model.layers.N.". */
static const struct {
    const char *gguf, *hf;
} names[ROLE_COUNT] = {
    [ROLE_EMBED] = {"token_embd.weight", "model.embed_tokens.weight"},
    [ROLE_ATTN_NORM] = {"attn_norm.weight", "input_layernorm.weight"},
    [ROLE_Q] = {"attn_q.weight", "self_attn.q_proj.weight"},
    [ROLE_K] = {"attn_k.weight", "self_attn.k_proj.weight"},
    [ROLE_V] = {"attn_v.weight", "self_attn.v_proj.weight"},
    [ROLE_Q_BIAS] = {"attn_q.bias", "self_attn.q_proj.bias"},
    [ROLE_K_BIAS] = {"attn_k.bias", "self_attn.k_proj.bias"},
    [ROLE_V_BIAS] = {"attn_v.bias", "self_attn.v_proj.bias"},
    [ROLE_O] = {"attn_output.weight", "self_attn.o_proj.weight"},
    [ROLE_FFN_NORM] = {"ffn_norm.weight", "post_attention_layernorm.weight"},
    [ROLE_GATE] = {"ffn_gate.weight", "mlp.gate_proj.weight"},
    [ROLE_UP] = {"ffn_up.weight", "mlp.up_proj.weight"},
    [ROLE_DOWN] = {"ffn_down.weight", "mlp.down_proj.weight"},
    [ROLE_NORM] = {"output_norm.weight", "model.norm.weight"},
    [ROLE_HEAD] = {"output.weight", "lm_head.weight"},
};

char *slot_foreign_name(enum naming naming, struct model_slot s, char out[TENSOR_MAX_NAME + 1]) {
    const char *name = naming == NAMES_GGUF ? names[s.role].gguf : names[s.role].hf;
    const char *layers = naming == NAMES_GGUF ? "blk" : "model.layers";
    if (model_role_in_layer(s.role))
        snprintf(out, TENSOR_MAX_NAME + 1, "%s.%u.%s", layers, s.layer, name);
    else
        snprintf(out, TENSOR_MAX_NAME + 1, "%s", name);
    return out;
}

bool slot_is_rotary(struct model_slot s) {
    return s.role == ROLE_Q || s.role == ROLE_K || s.role == ROLE_Q_BIAS || s.role == ROLE_K_BIAS;
}

/*
 * A head's rows are pairs that rotate together. Hugging Face has the first halves of all pairs, then the second halves
 * (x0 x1 .. y0 y1 ..); GGUF's llama architecture has them side by side (x0 y0 x1 y1 ..). Rows move whole, so quantized
 * blocks stay as they are.
 */
void rows_interleave(unsigned char *to, const unsigned char *from, uint64_t rows, uint64_t row_bytes, uint32_t heads) {
    uint64_t per_head = rows / heads, half = per_head / 2;
    for (uint64_t h = 0; h < heads; h++)
        for (uint64_t i = 0; i < per_head; i++) {
            uint64_t source = h * per_head + (i % 2) * half + i / 2;
            memcpy(to + (h * per_head + i) * row_bytes, from + source * row_bytes, row_bytes);
        }
}

void rows_split(unsigned char *to, const unsigned char *from, uint64_t rows, uint64_t row_bytes, uint32_t heads) {
    uint64_t per_head = rows / heads, half = per_head / 2;
    for (uint64_t h = 0; h < heads; h++)
        for (uint64_t i = 0; i < per_head; i++) {
            uint64_t target = h * per_head + (i % 2) * half + i / 2;
            memcpy(to + target * row_bytes, from + (h * per_head + i) * row_bytes, row_bytes);
        }
}
