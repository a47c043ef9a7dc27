/* general.file_type: the name that llama.cpp prints for the types of a file's weights (enum llama_ftype). */
#include "lib/formats/formats_internal.h"

enum { F32 = 0, F16 = 1, BF16 = 32, Q2_K = 10, Q2_K_S = 21, Q3_K_S = 11, Q3_K_M = 12, Q3_K_L = 13 };
enum { Q4_K_S = 14, Q4_K_M = 15, Q5_K_S = 16, Q5_K_M = 17, Q6_K = 18 };

/* Types of weights that llama.cpp has, k-quants by size. A k-quant's label depends on its mixture. */
static const struct {
    enum dtype dtype;
    uint32_t file_type;
} types[] = {
    {DT_F32, F32}, {DT_F16, F16}, {DT_BF16, BF16}, {DT_Q4_0, 2}, {DT_Q4_1, 3}, {DT_Q5_0, 8},    {DT_Q5_1, 9},
    {DT_Q8_0, 7},  {DT_Q2_K, 0},  {DT_Q3_K, 0},    {DT_Q4_K, 0}, {DT_Q5_K, 0}, {DT_Q6_K, Q6_K},
};
#define N_TYPES COUNT_OF(types)

static size_t type_index(enum dtype dtype) {
    size_t t = 0;
    while (t < N_TYPES && types[t].dtype != dtype) t++;
    return t;
}

bool gguf_has_weights_of(enum dtype dtype) {
    return type_index(dtype) < N_TYPES;
}

static bool is_k(size_t t) {
    return types[t].dtype >= DT_Q2_K && types[t].dtype <= DT_Q6_K;
}

/* Can this type be a fallback, because the rows are not a whole number of the blocks that were asked for? */
static bool may_be_fallback(enum dtype dtype, uint64_t row) {
    uint32_t block = model_row_block(row);
    bool of_k = dtype == DT_Q4_0 || dtype == DT_Q5_0 || dtype == DT_Q5_1 || dtype == DT_Q8_0;
    return (block < 256 && of_k) || (block < 32 && dtype == DT_F16);
}

void gguf_label_add(struct gguf_label *l, struct model_slot s, enum dtype dtype, uint64_t row, uint64_t elems) {
    size_t t = type_index(dtype);
    if (t == N_TYPES || !model_role_is_matrix(s.role)) return;
    if (!model_role_in_layer(s.role)) { /* embedding and head are often of another type than the rest */
        l->outside = dtype;
        return;
    }
    bool fallback = may_be_fallback(dtype, row);
    l->elems[fallback][t] += elems;
    if (s.role == ROLE_V || s.role == ROLE_DOWN) l->v_or_down[fallback][t] = true;
    if (s.role == ROLE_O) l->o[t] = true;
}

/* llama.cpp's mixtures: which letter. `mixed`: v or down are of this type. */
static uint32_t k_label(const struct gguf_label *l, enum dtype base) {
    const bool *mixed = l->v_or_down[0];
    bool more = mixed[type_index(DT_Q6_K)] || l->v_or_down[1][type_index(DT_Q8_0)];
    bool five = mixed[type_index(DT_Q5_K)], four = mixed[type_index(DT_Q4_K)];
    switch (base) {
    case DT_Q2_K: return mixed[type_index(DT_Q3_K)] ? Q2_K : Q2_K_S;
    case DT_Q3_K:
        return l->o[type_index(DT_Q5_K)] || l->o[type_index(DT_Q5_1)] ? Q3_K_L : four || five ? Q3_K_M : Q3_K_S;
    case DT_Q4_K: return more ? Q4_K_M : Q4_K_S;
    case DT_Q5_K: return more ? Q5_K_M : Q5_K_S;
    default: return Q6_K;
    }
}

/* The type of most weights, without fallbacks. Of k-quants, whose mixtures give some tensors more bits, the smallest
 * that has a quarter of them. */
uint32_t gguf_label_file_type(const struct gguf_label *l) {
    uint64_t elems[N_TYPES] = {0}, all = 0, k = 0;
    size_t best = 0;
    for (size_t t = 0; t < N_TYPES; t++) all += l->elems[0][t];
    for (size_t t = 0; t < N_TYPES; t++) {
        elems[t] = l->elems[0][t] + (all ? 0 : l->elems[1][t]);
        if (elems[t] > elems[best]) best = t;
        if (is_k(t)) k += elems[t];
    }
    if (is_k(best)) {
        for (best = type_index(DT_Q2_K); elems[best] < k / 4 || !elems[best];) best++;
        if (l->elems[1][type_index(DT_Q4_0)] && best > type_index(DT_Q3_K))
            best = type_index(DT_Q3_K); /* falls back to it */
        return k_label(l, types[best].dtype);
    }
    if (best == 0 && l->outside && l->outside != DT_F32) best = type_index(l->outside);
    return is_k(best) ? k_label(l, types[best].dtype) : types[best].file_type;
}
