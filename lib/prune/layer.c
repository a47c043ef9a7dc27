/* Removes channels and head groups from a layer: scores, choice, and the rows and columns that belong together. */
#include "lib/prune/prune_internal.h"

/* ---- taking out -------------------------------------------------------------------------------------------------- */

static float *values(struct prune_layer *l, enum model_role role) {
    return (float *)l->tensor[role].data.data;
}

/* Gathers into the tensor's spare buffer and swaps the two: both keep their memory from layer to layer. */
static float *spare(struct prune_layer *l, enum model_role role, uint64_t n, struct err *e) {
    struct buf *b = &l->tensor[role].spare;
    b->len = 0;
    return buf_reserve(b, n * sizeof(float), e) ? NULL : (float *)(void *)b->data;
}

static void swap_spare(struct prune_layer *l, enum model_role role) {
    struct buf data = l->tensor[role].data;
    l->tensor[role].data = l->tensor[role].spare;
    l->tensor[role].spare = data;
}

int prune_keep_blocks(struct prune_tensor *t, const uint32_t *keep, uint64_t n, struct err *e) {
    struct buf kept = {0};
    uint64_t row = t->desc.rank == 2 ? t->blocks.len / t->desc.dims[0] : 0;
    int rc = row ? buf_reserve(&kept, n * row, e) : 0;
    if (rc) return rc;
    for (uint64_t i = 0; row && i < n; i++) memcpy(kept.data + i * row, t->blocks.data + keep[i] * row, row);
    kept.len = n * row;
    buf_release(&t->blocks);
    t->blocks = kept;
    return 0;
}

static int keep_rows(struct prune_layer *l, enum model_role role, const uint32_t *keep, uint32_t n, struct err *e) {
    struct tensor_desc *d = &l->tensor[role].desc;
    uint64_t cols = d->rank == 2 ? d->dims[1] : 1;
    float *to = spare(l, role, n * cols, e);
    if (!to || prune_keep_blocks(&l->tensor[role], keep, n, e)) return e->code;
    kernel_gather(kernel_f32(to), kernel_f32(values(l, role)), keep, n, cols);
    d->dims[0] = n;
    swap_spare(l, role);
    return 0;
}

static int keep_cols(struct prune_layer *l, enum model_role role, const uint32_t *keep, uint32_t n, struct err *e) {
    struct tensor_desc *d = &l->tensor[role].desc;
    float *to = spare(l, role, d->dims[0] * n, e);
    if (!to) return e->code;
    kernel_gather_cols(to, values(l, role), keep, d->dims[0], d->dims[1], n);
    float *norms = (float *)l->tensor[role].norms.data;
    for (uint32_t i = 0; l->tensor[role].norms.len && i < n; i++) norms[i] = norms[keep[i]]; /* keep ascends */
    d->dims[1] = n;
    l->tensor[role].blocks.len = 0;
    swap_spare(l, role);
    return 0;
}

/* All tensors of the layer along an axis, whatever the architecture calls them. */
static int keep_along(struct prune_layer *l, enum model_axis axis, const uint32_t *keep, uint32_t n, struct err *e) {
    int rc = 0;
    for (int r = 0; !rc && r < ROLE_COUNT; r++) {
        const struct model_role_info *info = model_role_info((enum model_role)r);
        if (!l->tensor[r].here) continue;
        if (info->rows == axis) rc = keep_rows(l, (enum model_role)r, keep, n, e);
        if (!rc && info->cols == axis) rc = keep_cols(l, (enum model_role)r, keep, n, e);
    }
    return rc;
}

/* ---- scores ------------------------------------------------------------------------------------------------------ */

static double sum_range(const float *x, uint64_t first, uint64_t n) {
    double s = 0;
    for (uint64_t i = 0; i < n; i++) s += x[first + i];
    return s;
}

/* score[i / width] += |w|^2 over the matrices' rows or columns i along an axis. */
static int add_weight_norms(struct prune_layer *l, enum model_axis axis, uint32_t width, double *score, struct arena *a,
                            struct err *e) {
    for (int r = 0; r < ROLE_COUNT; r++) {
        const struct model_role_info *info = model_role_info((enum model_role)r);
        const struct tensor_desc *d = &l->tensor[r].desc;
        if (!l->tensor[r].here || info->kind != KIND_MATRIX || (info->rows != axis && info->cols != axis)) continue;
        uint64_t n = info->rows == axis ? d->dims[0] : d->dims[1];
        float *norm = arena_array(a, n, sizeof *norm, e);
        if (!norm) return e->code;
        if (info->rows == axis)
            kernel_row_norms2(norm, values(l, (enum model_role)r), n, d->dims[1]);
        else
            kernel_col_norms2(norm, values(l, (enum model_role)r), d->dims[0], n);
        for (uint64_t i = 0; i < n; i += width) score[i / width] += sum_range(norm, i, width);
    }
    return 0;
}

/* The same from activations at a calibration point, whose columns lie along the axis (Minitron, Muralidharan et al.
 * 2024). */
static void add_activations(const struct stats *s, enum model_point point, struct model_slot slot, uint64_t n,
                            uint32_t width, double *score) {
    const double *seen = stats_input_seq_sq(s, point, slot);
    for (uint64_t i = 0; i < n; i++) score[i / width] += seen[i];
}

/* ---- feed-forward channels: rows of gate and up, the column of down ---------------------------------------------- */

/* Of n channels along an axis, which down reads at a point, as many as are to be kept. */
static int shrink_channels(struct prune_layer *l, const struct prune_plan *p, enum model_axis axis,
                           enum model_point point, struct model_slot slot, uint32_t keep, struct err *e) {
    uint32_t n = (uint32_t)model_axis_size(p->from, axis, slot.layer);
    struct arena a = {0};
    if (keep == n) return 0;
    double *score = arena_array(&a, n, sizeof *score, e);
    uint32_t *kept = score ? arena_array(&a, keep, sizeof *kept, e) : NULL;
    int rc = kept ? 0 : e->code;
    if (!rc && p->o->score == PRUNE_BY_STATS)
        add_activations(p->o->stats, point, slot, n, 1, score);
    else if (!rc)
        rc = add_weight_norms(l, axis, 1, score, &a, e);
    if (!rc) rc = prune_choose(score, n, keep, kept, &a, e);
    if (!rc) rc = keep_along(l, axis, kept, keep, e);
    arena_release(&a);
    return rc;
}

/* ---- attention head groups: a key/value head with the query heads that read it ----------------------------------- */

/* Elements [i * width, (i + 1) * width) for each kept i. */
static uint32_t *spread(const uint32_t *kept, uint32_t n, uint32_t width, struct arena *a, struct err *e) {
    uint32_t *out = arena_array(a, (uint64_t)n * width, sizeof *out, e);
    for (uint32_t i = 0; out && i < n * width; i++) out[i] = kept[i / width] * width + i % width;
    return out;
}

static int shrink_heads(struct prune_layer *l, const struct prune_plan *p, uint32_t layer, struct arena *a,
                        struct err *e) {
    const struct model_layer *from = &p->from->layers[layer];
    uint32_t groups = from->n_kv_heads, keep = p->to.layers[p->new_layer[layer]].n_kv_heads;
    if (keep == groups) return 0;
    uint32_t kv_width = p->from->head_dim, q_width = from->n_heads / groups * kv_width;
    double *score = arena_array(a, groups, sizeof *score, e);
    uint32_t *kept = arena_array(a, keep, sizeof *kept, e);
    if (!score || !kept) return e->code;
    int rc = 0;
    if (p->o->score == PRUNE_BY_STATS)
        add_activations(p->o->stats, POINT_O_IN, (struct model_slot){.layer = layer}, (uint64_t)groups * q_width,
                        q_width, score);
    else
        rc = add_weight_norms(l, AXIS_QUERY, q_width, score, a, e);
    if (!rc && p->o->score != PRUNE_BY_STATS) rc = add_weight_norms(l, AXIS_KEY, kv_width, score, a, e);
    if (!rc) rc = prune_choose(score, groups, keep, kept, a, e);
    uint32_t *q = rc ? NULL : spread(kept, keep, q_width, a, e), *kv = q ? spread(kept, keep, kv_width, a, e) : NULL;
    if (!kv) return e->code;
    rc = keep_along(l, AXIS_QUERY, q, keep * q_width, e);
    if (!rc) rc = keep_along(l, AXIS_KEY, kv, keep * kv_width, e);
    if (!rc && p->from->qk_norm == QK_NORM_ALL) rc = keep_along(l, AXIS_Q_NORM, q, keep * q_width, e);
    if (!rc && p->from->qk_norm == QK_NORM_ALL) rc = keep_along(l, AXIS_K_NORM, kv, keep * kv_width, e);
    return rc;
}

int prune_layer_shrink(struct prune_layer *l, const struct prune_plan *p, uint32_t old_layer, struct err *e) {
    struct arena a = {0};
    uint32_t layer = p->new_layer[old_layer];
    const struct model_layer *to = &p->to.layers[layer];
    int rc = shrink_heads(l, p, old_layer, &a, e);
    arena_release(&a);
    if (!rc) rc = shrink_channels(l, p, AXIS_FFN, POINT_DOWN_IN, (struct model_slot){.layer = old_layer}, to->ffn, e);
    if (!rc && p->kept_experts && to->experts) rc = keep_along(l, AXIS_EXPERT, p->kept_experts[layer], to->experts, e);
    return rc ? err_prefix(e, "layer %u", old_layer) : 0;
}

int prune_expert_shrink(struct prune_layer *l, const struct prune_plan *p, struct model_slot old, struct err *e) {
    uint32_t keep = p->to.layers[p->new_layer[old.layer]].expert_ffn;
    int rc = shrink_channels(l, p, AXIS_EXPERT_FFN, POINT_EXPERT_DOWN_IN, old, keep, e);
    return rc ? err_prefix(e, "layer %u, expert %u", old.layer, old.expert) : 0;
}
