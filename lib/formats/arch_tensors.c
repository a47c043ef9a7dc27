/* Maps roles to the tensors of foreign files: their names, and how several roles share one tensor. */
#include "lib/formats/arch_internal.h"

/* ---- names ------------------------------------------------------------------------------------------------------- */

/* GGUF's names, common to all architectures; some converters fuse q, k and v. */
static const struct arch_tensor gguf_tensors[] = {
    {ROLE_EMBED, "token_embd.weight", 0},
    {ROLE_POSITION_EMBED, "position_embd.weight", 0},
    {ROLE_TYPE_EMBED, "token_types.weight", 0},
    {ROLE_EMBED_NORM, "token_embd_norm.weight", 0},
    {ROLE_EMBED_NORM_BIAS, "token_embd_norm.bias", 0},
    {ROLE_ATTN_NORM, "blk.#.attn_norm.weight", 0},
    {ROLE_ATTN_NORM_BIAS, "blk.#.attn_norm.bias", 0},
    {ROLE_Q, "blk.#.attn_q.weight", 0},
    {ROLE_K, "blk.#.attn_k.weight", 0},
    {ROLE_V, "blk.#.attn_v.weight", 0},
    {ROLE_Q_BIAS, "blk.#.attn_q.bias", 0},
    {ROLE_K_BIAS, "blk.#.attn_k.bias", 0},
    {ROLE_V_BIAS, "blk.#.attn_v.bias", 0},
    {ROLE_Q, "blk.#.attn_qkv.weight", FUSED_ROWS},
    {ROLE_K, "blk.#.attn_qkv.weight", FUSED_ROWS},
    {ROLE_V, "blk.#.attn_qkv.weight", FUSED_ROWS},
    {ROLE_Q_BIAS, "blk.#.attn_qkv.bias", FUSED_ROWS},
    {ROLE_K_BIAS, "blk.#.attn_qkv.bias", FUSED_ROWS},
    {ROLE_V_BIAS, "blk.#.attn_qkv.bias", FUSED_ROWS},
    {ROLE_Q_NORM, "blk.#.attn_q_norm.weight", 0},
    {ROLE_K_NORM, "blk.#.attn_k_norm.weight", 0},
    {ROLE_O, "blk.#.attn_output.weight", 0},
    {ROLE_O_BIAS, "blk.#.attn_output.bias", 0},
    {ROLE_ATTN_POST_NORM, "blk.#.post_attention_norm.weight", 0},
    {ROLE_FFN_NORM, "blk.#.ffn_norm.weight", 0},
    {ROLE_FFN_NORM_BIAS, "blk.#.ffn_norm.bias", 0},
    {ROLE_GATE, "blk.#.ffn_gate_shexp.weight", OF_EXPERTS},
    {ROLE_UP, "blk.#.ffn_up_shexp.weight", OF_EXPERTS},
    {ROLE_DOWN, "blk.#.ffn_down_shexp.weight", OF_EXPERTS},
    {ROLE_SHARED_GATE, "blk.#.ffn_gate_inp_shexp.weight", 0},
    {ROLE_ROUTER, "blk.#.ffn_gate_inp.weight", 0},
    {ROLE_EXPERT_GATE, "blk.#.ffn_gate_exps.weight", STACKED},
    {ROLE_EXPERT_UP, "blk.#.ffn_up_exps.weight", STACKED},
    {ROLE_EXPERT_DOWN, "blk.#.ffn_down_exps.weight", STACKED},
    {ROLE_GATE, "blk.#.ffn_gate.weight", 0},
    {ROLE_UP, "blk.#.ffn_up.weight", 0},
    {ROLE_UP_BIAS, "blk.#.ffn_up.bias", 0},
    {ROLE_DOWN, "blk.#.ffn_down.weight", 0},
    {ROLE_DOWN_BIAS, "blk.#.ffn_down.bias", 0},
    {ROLE_FFN_POST_NORM, "blk.#.post_ffw_norm.weight", 0},
    {ROLE_NORM, "output_norm.weight", 0},
    {ROLE_NORM_BIAS, "output_norm.bias", 0},
    {ROLE_HEAD, "output.weight", 0},
    {ROLE_HEAD_BIAS, "output.bias", 0},
};
const struct arch_tensors gguf_common_tensors = {gguf_tensors, COUNT_OF(gguf_tensors), NULL};

/* Expands '#' and '@' in `pattern`, leaving out its first `skip` letters. */
static void spell(const char *pattern, size_t skip, struct model_slot s, char out[TENSOR_MAX_NAME + 1]) {
    size_t n = 0, size = TENSOR_MAX_NAME + 1;
    for (const char *p = pattern + skip; *p && n < size; p++) {
        if (*p == '#' || *p == '@')
            n += (size_t)snprintf(out + n, size - n, "%u", *p == '#' ? s.layer : s.expert);
        else
            n += (size_t)snprintf(out + n, size - n, "%c", *p);
    }
}

/* ---- fused tensors ----------------------------------------------------------------------------------------------- */

static uint64_t rows_of(const struct model_config *c, enum model_role role, uint32_t layer) {
    uint64_t dims[2];
    (void)model_slot_shape(c, (struct model_slot){role, layer}, dims);
    return dims[0];
}

bool arch_is_of(const struct model_config *c, const struct arch_tensor *t, uint32_t layer) {
    bool experts = model_role_in_layer(t->role) && c->layers[layer].experts;
    if ((t->layout & OF_EXPERTS && !experts) || (t->layout & OF_NO_EXPERTS && experts)) return false;
    if ((t->layout & OF_CLASSES) && c->output != OUTPUT_CLASSES) return false;
    if ((t->layout & OF_SPAN) && c->output != OUTPUT_SPAN) return false;
    return !(t->layout & OF_UNTIED) || !c->tied;
}

/* Sets the position of the role within the tensor that it shares with others. */
static void locate(const struct model_config *c, struct model_slot s, struct arch_place *p) {
    p->first = 0;
    p->total = 0;
    for (size_t i = 0; i < p->table->n; i++) {
        const struct arch_tensor *t = &p->table->items[i];
        if (t != p->tensor &&
            (!(p->tensor->layout & (FUSED_ROWS | FUSED_HEADS)) || strcmp(t->name, p->tensor->name) != 0))
            continue;
        if (t == p->tensor) p->first = p->total;
        p->total += rows_of(c, t->role, s.layer);
    }
    if (p->tensor->layout & STACKED) {
        p->stacked = model_axis_size(c, model_role_info(s.role)->each, s.layer);
        p->first += s.expert * p->total;
        p->total *= p->stacked;
    }
    p->missing = p->tensor->layout & FROM_FIRST ? c->position_offset : 0;
    p->total -= p->missing;
    p->part = c->head_dim;
    p->parts = rows_of(c, s.role, s.layer) ? p->total / rows_of(c, s.role, s.layer) * p->part : 0;
}

static struct raw_tensor *find_in(const struct arch_tensors *table, const struct model_config *c, struct model_slot s,
                                  const struct raw_table *files, struct arch_place *p) {
    char name[TENSOR_MAX_NAME + 1];
    size_t base = table->base ? strlen(table->base) : 0;
    for (size_t i = 0; i < table->n; i++) {
        const struct arch_tensor *t = &table->items[i];
        if (t->role != s.role || !arch_is_of(c, t, s.layer)) continue;
        spell(t->name, 0, s, name);
        if (!p->name[0]) memcpy(p->name, name, sizeof name);
        struct raw_tensor *found = raw_table_find(files, name);
        if (!found && base && strncmp(t->name, table->base, base) == 0) {
            spell(t->name, base, s, name);
            found = raw_table_find(files, name);
        }
        if (!found) continue;
        p->tensor = t;
        p->table = table;
        memcpy(p->name, name, sizeof name);
        locate(c, s, p);
        return found;
    }
    return NULL;
}

struct raw_tensor *arch_find(const struct arch_tensors *own, const struct arch_tensors *common,
                             const struct model_config *c, struct model_slot s, const struct raw_table *files,
                             struct arch_place *p) {
    *p = (struct arch_place){.tensor = NULL};
    struct raw_tensor *found = find_in(own, c, s, files, p);
    return found || !common ? found : find_in(common, c, s, files, p);
}

static bool place_in(const struct arch_tensors *table, unsigned without, const struct model_config *c,
                     struct model_slot s, struct arch_place *p) {
    *p = (struct arch_place){.table = table};
    for (size_t i = 0; i < table->n; i++) {
        const struct arch_tensor *t = &table->items[i];
        if (t->role != s.role || (t->layout & without) || !arch_is_of(c, t, s.layer)) continue;
        size_t base = c->output == OUTPUT_NONE && table->base ? strlen(table->base) : 0;
        if (base && strncmp(t->name, table->base, base) != 0) base = 0;
        p->tensor = t;
        spell(t->name, base, s, p->name);
        locate(c, s, p);
        return true;
    }
    return false;
}

const struct arch_tensor *arch_named(const struct arch_tensors *table, struct model_slot s, const char *name) {
    char spelled[TENSOR_MAX_NAME + 1];
    size_t base = table->base ? strlen(table->base) : 0;
    for (size_t i = 0; i < table->n; i++) {
        const struct arch_tensor *t = &table->items[i];
        if (t->role != s.role) continue;
        spell(t->name, 0, s, spelled);
        if (strcmp(spelled, name) == 0) return t;
        if (base && strncmp(spelled, table->base, base) == 0 && strcmp(spelled + base, name) == 0) return t;
    }
    return NULL;
}

bool arch_place(const struct arch_tensors *own, const struct arch_tensors *common, const struct model_config *c,
                struct model_slot s, struct arch_place *p) {
    return place_in(own, 0, c, s, p) || (common && place_in(common, 0, c, s, p));
}

bool arch_place_apart(const struct arch_place *p, const struct model_config *c, struct model_slot s,
                      struct arch_place *apart) {
    return place_in(p->table, FUSED_ROWS | FUSED_HEADS, c, s, apart);
}

unsigned arch_foreign_shape(const struct model_config *c, struct model_slot s, const struct arch_place *p,
                            uint64_t dims[3]) {
    unsigned rank = model_slot_shape(c, s, dims);
    if (p->tensor->layout & STACKED) {
        dims[2] = dims[1];
        dims[1] = p->total / p->stacked;
        dims[0] = p->stacked;
        return 3;
    }
    if (p->tensor->layout & AS_ROW) {
        dims[1] = dims[0];
        dims[0] = 1;
        return 2;
    }
    dims[0] = p->total;
    if (!(p->tensor->layout & TRANSPOSED) || rank != 2) return rank;
    dims[0] = dims[1];
    dims[1] = p->total;
    return rank;
}

/* ---- data -------------------------------------------------------------------------------------------------------- */

bool arch_lies_plain(const struct arch_place *p, enum dtype dtype, uint64_t cols, uint64_t *offset) {
    *offset = p->first * dtype_row_bytes(dtype, cols);
    return !(p->tensor->layout & (FUSED_HEADS | TRANSPOSED)) && !p->missing;
}

/* Copies row `row` of the role from the file's tensor or to it. TRANSPOSED: its elements are `total` apart there. */
static void move_row(const struct arch_place *p, enum dtype dtype, uint64_t row, uint64_t cols, unsigned char *foreign,
                     unsigned char *own, bool gather) {
    uint64_t row_bytes = dtype_row_bytes(dtype, cols), at = p->first + row - p->missing;
    if (row < p->missing) {
        if (gather) memset(own + row * row_bytes, 0, row_bytes);
        return;
    }
    if (p->tensor->layout & FUSED_HEADS)
        at = row / p->part * p->parts + p->first / (p->total / p->parts) + row % p->part;
    if (!(p->tensor->layout & TRANSPOSED)) {
        unsigned char *there = foreign + at * row_bytes, *here = own + row * row_bytes;
        memcpy(gather ? here : there, gather ? there : here, row_bytes);
        return;
    }
    size_t size = dtype_info(dtype)->block_bytes;
    for (uint64_t i = 0; i < cols; i++) {
        unsigned char *there = foreign + (i * p->total + at) * size, *here = own + (row * cols + i) * size;
        memcpy(gather ? here : there, gather ? there : here, size);
    }
}

void arch_gather(const struct arch_place *p, enum dtype dtype, uint64_t rows, uint64_t cols, const void *from,
                 void *to) {
    for (uint64_t r = 0; r < rows; r++) move_row(p, dtype, r, cols, (unsigned char *)from, to, true);
}

void arch_scatter(const struct arch_place *p, enum dtype dtype, uint64_t rows, uint64_t cols, const void *from,
                  void *to) {
    for (uint64_t r = 0; r < rows; r++) move_row(p, dtype, r, cols, to, (unsigned char *)from, false);
}
