/* Chooses the type of each tensor: the named types, llama.cpp's mixture, the fallbacks. */
#include "lib/quant/quant.h"

static const struct quant_type types[] = {
    {"q8_0", DT_Q8_0, false, "8.5 bits per weight, nearly lossless"},
    {"q6_k", DT_Q6_K, false, "6.56 bits per weight"},
    {"q5_k", DT_Q5_K, false, "5.5 bits per weight"},
    {"q5_1", DT_Q5_1, false, "6 bits per weight, blocks of 32 with a minimum"},
    {"q5_0", DT_Q5_0, false, "5.5 bits per weight, blocks of 32"},
    {"q4_k_m", DT_Q4_K, true, "q4_k with q6_k for the output and for v and down of half of the layers"},
    {"q4_k", DT_Q4_K, false, "4.5 bits per weight"},
    {"q4_1", DT_Q4_1, false, "5 bits per weight, blocks of 32 with a minimum"},
    {"q4_0", DT_Q4_0, false, "4.5 bits per weight, blocks of 32"},
    {"f16", DT_F16, false, "16 bits, half precision"},
    {"bf16", DT_BF16, false, "16 bits, the range of f32"},
    {"f32", DT_F32, false, "32 bits: undoes a quantization's storage, not its loss"},
};

const struct quant_type *quant_type_at(size_t i) {
    return i < COUNT_OF(types) ? &types[i] : NULL;
}

int quant_type_parse(const char *name, const struct quant_type **out, struct err *e) {
    char known[256] = "";
    size_t len = 0;
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        if (!strcmp(types[i].name, name)) {
            *out = &types[i];
            return 0;
        }
        len += (size_t)snprintf(known + len, sizeof known - len, "%s%s", i ? ", " : "", types[i].name);
    }
    return err_set(e, ERR_USAGE, "unknown type '%.64s' (known: %s)", name, known);
}

/* llama.cpp's use_more_bits: the first and last eighth of the layers and every third one between. */
static bool more_bits(uint32_t i, uint32_t n) {
    return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
}

static bool is_output(const struct model_config *c, struct model_slot s) {
    return s.role == ROLE_HEAD || (s.role == ROLE_EMBED && c->tied);
}

bool quant_is_named(const struct quant_options *o, const struct model_config *c, struct model_slot s) {
    return is_output(c, s) ? o->head_type != 0 : s.role == ROLE_EMBED && o->embed_type != 0;
}

static bool is_qkv(enum model_role role) {
    return role == ROLE_Q || role == ROLE_K || role == ROLE_V;
}

/* llama.cpp's Q4_K_M of a matrix in a layer (src/llama-quant.cpp). */
static enum dtype mixed(const struct quant_options *o, const struct model_config *c, struct model_slot s) {
    if (is_qkv(s.role) && o->fuses_qkv && o->fuses_qkv(c)) return DT_Q5_K;
    return (s.role == ROLE_V || s.role == ROLE_DOWN) && more_bits(s.layer, c->n_layers) ? DT_Q6_K : o->type->base;
}

enum dtype quant_wanted(const struct quant_options *o, const struct model_config *c, struct model_slot s) {
    const struct quant_type *t = o->type;
    if (!model_role_is_matrix(s.role)) return DT_F32;
    if (is_output(c, s)) return o->head_type ? (enum dtype)o->head_type : t->mixture ? DT_Q6_K : t->base;
    if (s.role == ROLE_EMBED && o->embed_type) return (enum dtype)o->embed_type;
    return t->mixture && model_role_in_layer(s.role) ? mixed(o, c, s) : t->base;
}

enum dtype quant_fallback(enum dtype wanted, uint64_t row_elems) {
    uint32_t block = dtype_info(wanted)->block_elems;
    if (row_elems % block == 0) return wanted;
    if (row_elems % 32) return DT_F16;
    switch (wanted) {
    case DT_Q4_K: return DT_Q5_0;
    case DT_Q5_K: return DT_Q5_1;
    default: return DT_Q8_0; /* q6_k */
    }
}
