/* Channels and head groups out of one layer: scores, choice, and the rows and columns that belong together. */
#include "lib/prune/prune_internal.h"

/* ---- taking out ----------------------------------------------------------------------------------------------------- */

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

static int keep_rows(struct prune_layer *l, enum model_role role, const uint32_t *keep, uint32_t n, struct err *e) {
    if (!l->tensor[role].here) return 0;
    struct tensor_desc *d = &l->tensor[role].desc;
    uint64_t cols = d->rank == 2 ? d->dims[1] : 1;
    float *to = spare(l, role, n * cols, e);
    if (!to) return e->code;
    kernel_gather(to, values(l, role), keep, n, cols);
    d->dims[0] = n;
    swap_spare(l, role);
    return 0;
}

static int keep_cols(struct prune_layer *l, enum model_role role, const uint32_t *keep, uint32_t n, struct err *e) {
    struct tensor_desc *d = &l->tensor[role].desc;
    float *to = spare(l, role, d->dims[0] * n, e);
    if (!to) return e->code;
    kernel_gather_cols(to, values(l, role), keep, d->dims[0], d->dims[1], n);
    d->dims[1] = n;
    swap_spare(l, role);
    return 0;
}

/* ---- feed-forward channels ------------------------------------------------------------------------------------------------ */

/* A channel's weights are its rows of gate and up and its column of down. */
static int ffn_scores(struct prune_layer *l, const struct prune_plan *p, uint32_t layer, double *score, struct arena *a,
                      struct err *e) {
    uint32_t n = p->from->layers[layer].ffn, hidden = p->from->hidden;
    if (p->o->score == PRUNE_BY_STATS) {
        const double *s = stats_seq_sq(p->o->stats, POINT_DOWN_IN, layer);
        for (uint32_t i = 0; i < n; i++) score[i] = s[i];
        return 0;
    }
    float *norm = arena_array(a, n, sizeof *norm, e);
    if (!norm) return e->code;
    kernel_row_norms2(norm, values(l, ROLE_GATE), n, hidden);
    for (uint32_t i = 0; i < n; i++) score[i] = norm[i];
    kernel_row_norms2(norm, values(l, ROLE_UP), n, hidden);
    for (uint32_t i = 0; i < n; i++) score[i] += norm[i];
    kernel_fill(norm, n, 0);
    kernel_col_norms2(norm, values(l, ROLE_DOWN), hidden, n);
    for (uint32_t i = 0; i < n; i++) score[i] += norm[i];
    return 0;
}

static int shrink_ffn(struct prune_layer *l, const struct prune_plan *p, uint32_t layer, struct arena *a,
                      struct err *e) {
    uint32_t n = p->from->layers[layer].ffn, keep = p->to.layers[p->new_layer[layer]].ffn;
    if (keep == n) return 0;
    double *score = arena_array(a, n, sizeof *score, e);
    uint32_t *kept = arena_array(a, keep, sizeof *kept, e);
    if (!score || !kept) return e->code;
    int rc = ffn_scores(l, p, layer, score, a, e);
    if (!rc) rc = prune_choose(score, n, keep, kept, a, e);
    if (!rc) rc = keep_rows(l, ROLE_GATE, kept, keep, e);
    if (!rc) rc = keep_rows(l, ROLE_UP, kept, keep, e);
    return rc ? rc : keep_cols(l, ROLE_DOWN, kept, keep, e);
}

/* ---- attention head groups: a key/value head with the query heads that read it ----------------------------------------------- */

struct heads {
    uint32_t groups, per_group, dim; /* query heads per group */
    uint64_t hidden;
};

static double sum_range(const float *x, uint64_t first, uint64_t n) {
    double s = 0;
    for (uint64_t i = 0; i < n; i++) s += x[first + i];
    return s;
}

static int group_scores(struct prune_layer *l, const struct prune_plan *p, uint32_t layer, const struct heads *h,
                        double *score, struct arena *a, struct err *e) {
    uint64_t q = (uint64_t)h->groups * h->per_group * h->dim, kv = (uint64_t)h->groups * h->dim,
             wide = (uint64_t)h->per_group * h->dim;
    if (p->o->score == PRUNE_BY_STATS) {
        const double *s = stats_seq_sq(p->o->stats, POINT_O_IN, layer);
        for (uint64_t i = 0; i < q; i++) score[i / wide] += s[i];
        return 0;
    }
    float *norm = arena_array(a, q, sizeof *norm, e);
    if (!norm) return e->code;
    kernel_row_norms2(norm, values(l, ROLE_Q), q, h->hidden);
    for (uint32_t g = 0; g < h->groups; g++) score[g] += sum_range(norm, g * wide, wide);
    kernel_fill(norm, q, 0);
    kernel_col_norms2(norm, values(l, ROLE_O), h->hidden, q);
    for (uint32_t g = 0; g < h->groups; g++) score[g] += sum_range(norm, g * wide, wide);
    static const enum model_role both[] = {ROLE_K, ROLE_V};
    for (size_t i = 0; i < COUNT_OF(both); i++) {
        kernel_row_norms2(norm, values(l, both[i]), kv, h->hidden);
        for (uint32_t g = 0; g < h->groups; g++) score[g] += sum_range(norm, (uint64_t)g * h->dim, h->dim);
    }
    return 0;
}

static int shrink_heads(struct prune_layer *l, const struct prune_plan *p, uint32_t layer, struct arena *a,
                        struct err *e) {
    const struct model_layer *from = &p->from->layers[layer];
    struct heads h = {from->n_kv_heads, from->n_heads / from->n_kv_heads, p->from->head_dim, p->from->hidden};
    uint32_t keep = p->to.layers[p->new_layer[layer]].n_kv_heads;
    if (keep == h.groups) return 0;
    uint32_t kv = keep * h.dim, q = kv * h.per_group, wide = h.per_group * h.dim;
    double *score = arena_array(a, h.groups, sizeof *score, e);
    uint32_t *kept = arena_array(a, keep, sizeof *kept, e), *q_rows = arena_array(a, q, sizeof *q_rows, e),
             *kv_rows = arena_array(a, kv, sizeof *kv_rows, e);
    if (!score || !kept || !q_rows || !kv_rows) return e->code;
    int rc = group_scores(l, p, layer, &h, score, a, e);
    if (!rc) rc = prune_choose(score, h.groups, keep, kept, a, e);
    for (uint32_t i = 0; !rc && i < q; i++) q_rows[i] = kept[i / wide] * wide + i % wide;
    for (uint32_t i = 0; !rc && i < kv; i++) kv_rows[i] = kept[i / h.dim] * h.dim + i % h.dim;
    static const enum model_role kv_roles[] = {ROLE_K, ROLE_V, ROLE_K_BIAS, ROLE_V_BIAS};
    for (size_t i = 0; !rc && i < COUNT_OF(kv_roles); i++) rc = keep_rows(l, kv_roles[i], kv_rows, kv, e);
    if (!rc) rc = keep_rows(l, ROLE_Q, q_rows, q, e);
    if (!rc) rc = keep_rows(l, ROLE_Q_BIAS, q_rows, q, e);
    return rc ? rc : keep_cols(l, ROLE_O, q_rows, q, e);
}

int prune_layer_shrink(struct prune_layer *l, const struct prune_plan *p, uint32_t old_layer, struct err *e) {
    struct arena a = {0};
    int rc = shrink_heads(l, p, old_layer, &a, e);
    if (!rc) rc = shrink_ffn(l, p, old_layer, &a, e);
    arena_release(&a);
    return rc ? err_prefix(e, "layer %u", old_layer) : 0;
}
