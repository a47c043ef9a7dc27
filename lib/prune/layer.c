/* Removes channels and head groups from a layer: scores, selection, and the rows and columns that belong together. */
#include "lib/prune/prune_internal.h"

#include <math.h>

void prune_layer_release(struct prune_layer *l) {
    for (int r = 0; r < ROLE_COUNT; r++) {
        struct prune_tensor *t = &l->tensor[r];
        buf_release(&t->data);
        buf_release(&t->spare);
        buf_release(&t->blocks);
        buf_release(&t->norms);
    }
}

/* ---- removal ----------------------------------------------------------------------------------------------------- */

static float *values(struct prune_layer *l, enum model_role role) {
    return (float *)l->tensor[role].data.data;
}

/* Returns the tensor's spare buffer for gathering; swap_spare then swaps the two, so both are reused across layers. */
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

int prune_keep_along_role(struct prune_layer *l, enum model_role role, enum model_axis axis, const uint32_t *keep,
                          uint32_t n, struct err *e) {
    const struct model_role_info *info = model_role_info(role);
    int rc = 0;
    if (info->rows == axis) rc = keep_rows(l, role, keep, n, e);
    if (!rc && info->cols == axis) rc = keep_cols(l, role, keep, n, e);
    return rc;
}

int prune_keep_along(struct prune_layer *l, enum model_axis axis, const uint32_t *keep, uint32_t n, struct err *e) {
    int rc = 0;
    for (int r = 0; !rc && r < ROLE_COUNT; r++)
        if (l->tensor[r].here) rc = prune_keep_along_role(l, (enum model_role)r, axis, keep, n, e);
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

/* Likewise from activations at a calibration point, whose columns lie along the axis (Minitron, Muralidharan et al.
 * 2024). */
static void add_activations(const struct stats *s, enum model_point point, struct model_slot slot, uint64_t n,
                            uint32_t width, double *score) {
    const double *seen = stats_input_seq_sq(s, point, slot);
    for (uint64_t i = 0; i < n; i++) score[i / width] += seen[i];
}

/* Likewise from |w dL/dw|, summed over all tensors along the axis. */
static void add_taylor(const struct stats *s, enum model_axis axis, struct model_slot slot, uint64_t n, uint32_t width,
                       double *score) {
    const double *seen = stats_taylor(s, axis, slot);
    for (uint64_t i = 0; i < n; i++) score[i / width] += seen[i];
}

/* Likewise from the variances of the inputs of a matrix, times the squared norms of its columns. */
static int add_fluctuation(struct prune_layer *l, const struct stats *s, enum model_point point, struct model_slot slot,
                           uint32_t width, double *score, struct arena *a, struct err *e) {
    const struct tensor_desc *d = &l->tensor[slot.role].desc;
    uint64_t n;
    double positions;
    const double *sq = stats_input_sq(s, slot, &n, &positions), *sum = stats_input_sum(s, point, slot);
    float *norm = arena_array(a, n, sizeof *norm, e);
    if (!norm) return e->code;
    kernel_col_norms2(norm, values(l, slot.role), d->dims[0], n);
    for (uint64_t i = 0; positions > 0 && i < n; i++) {
        double mean = sum[i] / positions;
        score[i / width] += norm[i] * fmax(0, sq[i] / positions - mean * mean);
    }
    return 0;
}

/* Adds the scores of the elements along an axis to score[i / width]; slot: the matrix that reads them at `point`. */
static int add_scores(struct prune_layer *l, const struct prune_plan *p, enum model_axis axis, enum model_point point,
                      struct model_slot slot, uint32_t width, double *score, struct arena *a, struct err *e) {
    uint64_t n = model_axis_size(p->from, axis, slot.layer);
    bool is_read = model_point_axis(point) == axis; /* not keys and values, read only through attention */
    switch (p->o->score) {
    case PRUNE_BY_STATS:
        if (is_read) add_activations(p->o->stats, point, slot, n, width, score);
        return 0;
    case PRUNE_BY_TAYLOR: add_taylor(p->o->stats, axis, slot, n, width, score); return 0;
    case PRUNE_BY_FLUCTUATION: return is_read ? add_fluctuation(l, p->o->stats, point, slot, width, score, a, e) : 0;
    case PRUNE_BY_WEIGHTS:
    case PRUNE_BY_COST: break; /* with data: structure.c */
    }
    return add_weight_norms(l, axis, width, score, a, e);
}

/* bias += w mean(x) over the removed inputs. */
static void compensate(struct prune_layer *l, const struct prune_plan *p, enum model_point point,
                       struct model_slot slot, enum model_role bias, const struct prune_kept *kept) {
    const struct tensor_desc *d = &l->tensor[slot.role].desc;
    if (!p->o->compensate || !kept->at || !l->tensor[bias].here) return;
    const double *sum = stats_input_sum(p->o->stats, point, slot);
    double n = (double)stats_positions(p->o->stats);
    for (uint64_t r = 0; n > 0 && r < d->dims[0]; r++) {
        double gave = 0;
        for (uint64_t i = 0, k = 0; i < d->dims[1]; i++) {
            if (k < kept->n && kept->at[k] == i)
                k++;
            else
                gave += values(l, slot.role)[r * d->dims[1] + i] * sum[i] / n;
        }
        values(l, bias)[r] += (float)gave;
    }
}

/* ---- feed-forward channels: rows of gate and up, the column of down ---------------------------------------------- */

int prune_choose_channels(struct prune_layer *l, const struct prune_plan *p, const struct prune_part *part,
                          struct prune_kept *kept, struct arena *a, struct err *e) {
    uint32_t n = (uint32_t)model_axis_size(p->from, part->axis, part->slot.layer);
    *kept = (struct prune_kept){.n = part->keep};
    if (part->keep == n) return 0;
    double *score = arena_array(a, n, sizeof *score, e);
    kept->at = score ? arena_array(a, part->keep, sizeof *kept->at, e) : NULL;
    if (!kept->at) return e->code;
    int rc = add_scores(l, p, part->axis, part->point, part->slot, 1, score, a, e);
    return rc ? rc : prune_choose(score, n, part->keep, kept->at, a, e);
}

struct prune_part prune_dense_part(const struct prune_plan *p, uint32_t old_layer) {
    return (struct prune_part){
        AXIS_FFN, POINT_DOWN_IN, {.role = ROLE_DOWN, .layer = old_layer}, p->to.layers[p->new_layer[old_layer]].ffn};
}

struct prune_part prune_expert_part(const struct prune_plan *p, struct model_slot of) {
    return (struct prune_part){AXIS_EXPERT_FFN,
                               POINT_EXPERT_DOWN_IN,
                               {ROLE_EXPERT_DOWN, of.layer, of.expert},
                               p->to.layers[p->new_layer[of.layer]].expert_ffn};
}

static int shrink_channels(struct prune_layer *l, const struct prune_plan *p, const struct prune_part *part,
                           struct err *e) {
    struct prune_kept kept;
    struct arena a = {0};
    int rc = prune_choose_channels(l, p, part, &kept, &a, e);
    if (!rc && part->axis == AXIS_FFN) compensate(l, p, part->point, part->slot, ROLE_DOWN_BIAS, &kept);
    if (!rc && kept.at) rc = prune_keep_along(l, part->axis, kept.at, kept.n, e);
    arena_release(&a);
    return rc;
}

/* ---- attention: key/value heads with the query heads that read them, and query heads of these -------------------- */

/* Elements [i * width, (i + 1) * width) for each kept i. */
static int spread(struct prune_kept *out, const uint32_t *kept, uint32_t n, uint32_t width, struct arena *a,
                  struct err *e) {
    out->n = n * width;
    out->at = arena_array(a, out->n, sizeof *out->at, e);
    for (uint32_t i = 0; out->at && i < out->n; i++) out->at[i] = kept[i / width] * width + i % width;
    return out->at ? 0 : e->code;
}

int prune_take_heads(const struct prune_plan *p, uint32_t layer, const struct prune_head_scores *s,
                     struct prune_heads *kept, struct arena *a, struct err *e) {
    const struct model_layer *from = &p->from->layers[layer], *to = &p->to.layers[p->new_layer[layer]];
    uint32_t groups = from->n_kv_heads, each = from->n_heads / groups, of_each = to->n_heads / to->n_kv_heads;
    double *score = arena_array(a, groups, sizeof *score, e);
    uint32_t *best = score ? arena_array(a, from->n_heads, sizeof *best, e) : NULL;
    uint32_t *key = best ? arena_array(a, to->n_kv_heads, sizeof *key, e) : NULL;
    uint32_t *query = key ? arena_array(a, to->n_heads, sizeof *query, e) : NULL;
    if (!query) return e->code;
    for (uint32_t g = 0; g < groups; g++) { /* a group scores by its heads that would stay */
        if (prune_choose(s->query + g * each, each, of_each, best + g * of_each, a, e)) return e->code;
        score[g] = s->key[g];
        for (uint32_t i = 0; i < of_each; i++) score[g] += s->query[g * each + best[g * of_each + i]];
    }
    if (prune_choose(score, groups, to->n_kv_heads, key, a, e)) return e->code;
    for (uint32_t i = 0; i < to->n_heads; i++)
        query[i] = key[i / of_each] * each + best[key[i / of_each] * of_each + i % of_each];
    if (spread(&kept->query, query, to->n_heads, p->from->head_dim, a, e)) return e->code;
    return spread(&kept->key, key, to->n_kv_heads, p->from->head_dim, a, e);
}

bool prune_keeps_heads(const struct prune_plan *p, uint32_t layer) {
    const struct model_layer *from = &p->from->layers[layer], *to = &p->to.layers[p->new_layer[layer]];
    return from->n_heads == to->n_heads && from->n_kv_heads == to->n_kv_heads;
}

int prune_choose_heads(struct prune_layer *l, const struct prune_plan *p, uint32_t layer, struct prune_heads *kept,
                       struct arena *a, struct err *e) {
    const struct model_layer *from = &p->from->layers[layer];
    struct model_slot slot = {.role = ROLE_O, .layer = layer};
    *kept = (struct prune_heads){0};
    if (prune_keeps_heads(p, layer)) return 0;
    struct prune_head_scores s = {.query = arena_array(a, from->n_heads, sizeof *s.query, e)};
    s.key = s.query ? arena_array(a, from->n_kv_heads, sizeof *s.key, e) : NULL;
    if (!s.key) return e->code;
    int rc = add_scores(l, p, AXIS_QUERY, POINT_O_IN, slot, p->from->head_dim, s.query, a, e);
    if (!rc) rc = add_scores(l, p, AXIS_KEY, POINT_O_IN, slot, p->from->head_dim, s.key, a, e);
    return rc ? rc : prune_take_heads(p, layer, &s, kept, a, e);
}

int prune_keep_heads(struct prune_layer *l, const struct prune_plan *p, const struct prune_heads *kept, struct err *e) {
    const struct prune_kept *q = &kept->query, *k = &kept->key;
    if (!q->at) return 0;
    int rc = prune_keep_along(l, AXIS_QUERY, q->at, q->n, e);
    if (!rc) rc = prune_keep_along(l, AXIS_KEY, k->at, k->n, e);
    if (!rc && p->from->qk_norm == QK_NORM_ALL) rc = prune_keep_along(l, AXIS_Q_NORM, q->at, q->n, e);
    if (!rc && p->from->qk_norm == QK_NORM_ALL) rc = prune_keep_along(l, AXIS_K_NORM, k->at, k->n, e);
    return rc;
}

int prune_layer_shrink(struct prune_layer *l, const struct prune_plan *p, uint32_t old_layer, struct err *e) {
    struct arena a = {0};
    struct prune_heads heads;
    struct prune_part dense = prune_dense_part(p, old_layer);
    uint32_t layer = p->new_layer[old_layer];
    const struct model_layer *to = &p->to.layers[layer];
    struct model_slot o = {.role = ROLE_O, .layer = old_layer};
    int rc = prune_choose_heads(l, p, old_layer, &heads, &a, e);
    if (!rc) compensate(l, p, POINT_O_IN, o, ROLE_O_BIAS, &heads.query);
    if (!rc) rc = prune_keep_heads(l, p, &heads, e);
    arena_release(&a);
    if (!rc) rc = shrink_channels(l, p, &dense, e);
    if (!rc && p->kept_experts && to->experts)
        rc = prune_keep_along(l, AXIS_EXPERT, p->kept_experts[layer], to->experts, e);
    return rc ? err_prefix(e, "layer %u", old_layer) : 0;
}

int prune_expert_shrink(struct prune_layer *l, const struct prune_plan *p, struct model_slot old, struct err *e) {
    struct prune_part part = prune_expert_part(p, old);
    int rc = shrink_channels(l, p, &part, e);
    return rc ? err_prefix(e, "layer %u, expert %u", old.layer, old.expert) : 0;
}
