/* general.file_type: the label that llama.cpp prints for the types of a file's weights (enum llama_ftype). */
#include "lib/formats/formats_internal.h"

/* The mixtures, which have no file_type in dtype_info. */
enum { Q2_K = 10, Q3_K_S = 11, Q3_K_M = 12, Q3_K_L = 13, Q4_K_S = 14, Q4_K_M = 15, Q5_K_S = 16, Q5_K_M = 17 };
enum { Q6_K = 18, IQ2_XS = 20, Q2_K_S = 21, IQ3_XS = 22, IQ3_XXS = 23, IQ3_S = 26, IQ3_M = 27, IQ2_S = 28 };

bool gguf_has_weights_of(enum dtype dtype) {
    return dtype_info(dtype)->file_type >= 0;
}

static bool is_k(unsigned dtype) {
    return dtype >= DT_Q2_K && dtype <= DT_Q6_K;
}

/* May this type be a fallback, used because the rows are not a whole number of blocks of the requested type? */
static bool may_be_fallback(enum dtype dtype, uint64_t row) {
    uint32_t block = model_row_block(row);
    if (block < 32) return dtype == DT_F16;
    const struct dtype_info *t;
    for (size_t i = 0; block < 256 && (t = dtype_at(i)); i++)
        if (t->fallback == (unsigned)dtype) return true;
    return false;
}

void gguf_label_add(struct gguf_label *l, struct model_slot s, enum dtype dtype, uint64_t row, uint64_t elems) {
    if (dtype >= GGUF_LABEL_DTYPES || !gguf_has_weights_of(dtype) || !model_role_is_matrix(s.role)) return;
    if (!model_role_in_layer(s.role)) { /* embedding and head often have another type than the layers */
        l->outside = dtype;
        return;
    }
    bool fallback = may_be_fallback(dtype, row);
    l->elems[fallback][dtype] += elems;
    if (s.role == ROLE_V || s.role == ROLE_DOWN || s.role == ROLE_EXPERT_DOWN) l->v_or_down[fallback][dtype] = true;
    if (s.role == ROLE_O) l->o[dtype] = true;
    if (s.role == ROLE_Q) l->q[dtype] = true;
}

/* Which of llama.cpp's mixtures (S, M, L) of this k-quant. */
static uint32_t k_label(const struct gguf_label *l, unsigned base) {
    const bool *mixed = l->v_or_down[0];
    bool more = mixed[DT_Q6_K] || l->v_or_down[1][DT_Q8_0];
    switch (base) {
    case DT_Q2_K: return mixed[DT_Q3_K] ? Q2_K : Q2_K_S;
    case DT_Q3_K: return l->o[DT_Q5_K] || l->o[DT_Q5_1] ? Q3_K_L : mixed[DT_Q4_K] || mixed[DT_Q5_K] ? Q3_K_M : Q3_K_S;
    case DT_Q4_K: return more ? Q4_K_M : Q4_K_S;
    case DT_Q5_K: return more ? Q5_K_M : Q5_K_S;
    default: return Q6_K;
    }
}

/* The same for codebook types: mixtures of one base type differ in the types of q, o, v and down. */
static uint32_t codebook_label(const struct gguf_label *l, unsigned base) {
    const bool *mixed = l->v_or_down[0];
    switch (base) {
    case DT_IQ2_XS: return mixed[DT_IQ3_S] || l->o[DT_IQ3_S] ? IQ2_S : IQ2_XS;
    case DT_IQ3_S:
    case DT_IQ3_XXS:
        if (l->q[DT_IQ2_S]) return IQ3_XXS;
        if (l->q[DT_IQ3_XXS] && (mixed[DT_IQ3_S] || l->o[DT_IQ3_S])) return IQ3_XS;
        return base == DT_IQ3_XXS ? IQ3_XXS : l->o[DT_Q4_K] ? IQ3_M : IQ3_S;
    default: return (uint32_t)dtype_info(base)->file_type;
    }
}

/* The type of most weights, counting possible fallbacks only if there is nothing else. For k-quants, whose mixtures
 * give some tensors more bits, the smallest type that has a quarter of the weights. */
uint32_t gguf_label_file_type(const struct gguf_label *l) {
    uint64_t elems[GGUF_LABEL_DTYPES] = {0}, all = 0, k = 0;
    unsigned best = DT_F32;
    for (unsigned t = 0; t < GGUF_LABEL_DTYPES; t++) all += l->elems[0][t];
    for (unsigned t = 0; t < GGUF_LABEL_DTYPES; t++) {
        elems[t] = l->elems[0][t] + (all ? 0 : l->elems[1][t]);
        if (elems[t] > elems[best]) best = t;
        if (is_k(t)) k += elems[t];
    }
    if (is_k(best)) {
        for (best = DT_Q2_K; elems[best] < k / 4 || !elems[best];) best++;
        /* of the k-quants, only Q2_K and Q3_K fall back to Q4_0 */
        if (l->elems[1][DT_Q4_0] && best > DT_Q3_K) best = DT_Q3_K;
        return k_label(l, best);
    }
    if (best == DT_F32 && l->outside && l->outside != DT_F32) best = l->outside;
    return is_k(best) ? k_label(l, best) : codebook_label(l, best);
}
