/* Plans what stays: layers, experts and widths, from options and statistics, before anything is written. */
#include "lib/prune/prune_internal.h"

#include <math.h>

enum prune_score prune_score_parse(const char *name, bool stats, bool reconstruct) {
    static const struct {
        const char *name;
        enum prune_score score;
    } scores[] = {{"weights", PRUNE_BY_WEIGHTS},
                  {"activations", PRUNE_BY_STATS},
                  {"taylor", PRUNE_BY_TAYLOR},
                  {"fluctuation", PRUNE_BY_FLUCTUATION},
                  {"cost", PRUNE_BY_COST}};
    for (size_t i = 0; i < COUNT_OF(scores); i++)
        if (!strcmp(name, scores[i].name)) return scores[i].score;
    return reconstruct ? PRUNE_BY_COST : stats ? PRUNE_BY_STATS : PRUNE_BY_WEIGHTS;
}

/* ---- amounts ----------------------------------------------------------------------------------------------------- */

uint32_t prune_amount_of(const struct prune_amount *a, uint32_t total) {
    if (a->share == 0) return a->n ? a->n : total;
    uint32_t n = (uint32_t)(a->share * total + 0.5);
    return n < 1 ? 1 : n < total ? n : total;
}

/*
 * The same for a width that becomes a row length. Quantized types have blocks of 256 (k-quants) or 32, so a share is
 * rounded to the nearest multiple of 256 if that moves it by at most an eighth of the width, else of 32 if by at most a
 * quarter. A share below 100% never rounds to all.
 */
static uint32_t width_of(const struct prune_amount *a, uint32_t total) {
    static const struct { uint32_t block, most; /* moves by at most total / most */ } units[] = {{256, 8}, {32, 4}};
    if (a->share == 0 || a->share == 1) return prune_amount_of(a, total);
    double exact = a->share * total;
    for (size_t i = 0; i < COUNT_OF(units); i++) {
        uint32_t block = units[i].block, n = (uint32_t)(exact / block + 0.5) * block;
        if (n >= total) n = (total - 1) / block * block;
        if (n && fabs(n - exact) <= (double)total / units[i].most) return n;
    }
    return prune_amount_of(a, total);
}

static bool is_asked(const struct prune_amount *a) {
    return a->n != 0 || a->share != 0;
}

/* ---- layers ------------------------------------------------------------------------------------------------------ */

static bool has_target(const struct prune_options *o) {
    return o->target_params || o->target_share > 0 || o->target_speedup > 0 || o->target_size;
}

static int plan_layers(struct prune_plan *p, struct err *e) {
    uint32_t n = p->from->n_layers, kept = 0;
    unsigned char *gone = arena_array(&p->memory, n, 1, e);
    p->new_layer = arena_array(&p->memory, n, sizeof *p->new_layer, e);
    p->old_layer = arena_array(&p->memory, n, sizeof *p->old_layer, e);
    if (!gone || !p->new_layer || !p->old_layer) return e->code;
    int rc = 0;
    if (has_target(p->o))
        rc = prune_plan_target(p, gone, e);
    else if (p->o->n_drop_layers)
        rc = prune_drop_named(p, gone, e);
    else
        rc = prune_drop_layers(p, prune_amount_of(&p->o->layers, n), gone, e);
    if (rc) return rc;
    for (uint32_t i = 0; i < n; i++) {
        p->new_layer[i] = gone[i] ? LAYER_GONE : kept;
        if (gone[i]) continue;
        p->old_layer[kept] = i;
        p->to.layers[kept++] = p->to.layers[i];
    }
    if (!kept) return err_set(e, ERR_USAGE, "no layer would be left");
    p->to.n_layers = kept;
    return 0;
}

/* ---- experts ----------------------------------------------------------------------------------------------------- */

/* REAP (Lasby et al. 2025): the mean norm of an expert's contribution over the positions routed to it; 0 if there are
 * none. */
static int choose_experts(struct prune_plan *p, uint32_t layer, uint32_t keep, struct err *e) {
    uint32_t old = p->old_layer[layer], n = p->from->layers[old].experts;
    double *score = arena_array(&p->memory, n, sizeof *score, e);
    p->kept_experts[layer] = score ? arena_array(&p->memory, keep, sizeof **p->kept_experts, e) : NULL;
    if (!p->kept_experts[layer]) return e->code;
    for (uint32_t i = 0; i < n; i++) {
        double count = stats_expert_count(p->o->stats, old, i);
        score[i] = count > 0 ? stats_expert_output(p->o->stats, old, i) / count : 0;
    }
    return prune_choose(score, n, keep, p->kept_experts[layer], &p->memory, e);
}

static int plan_experts(struct prune_plan *p, struct err *e) {
    const struct prune_amount *a = &p->o->experts;
    bool any = false;
    if (!is_asked(a)) return 0;
    if (!p->o->stats) return err_set(e, ERR_USAGE, "choosing experts needs --stats (from rill calibrate)");
    p->kept_experts = arena_array(&p->memory, p->to.n_layers, sizeof *p->kept_experts, e);
    if (!p->kept_experts) return e->code;
    for (uint32_t i = 0; i < p->to.n_layers; i++) {
        struct model_layer *l = &p->to.layers[i];
        uint32_t keep = prune_amount_of(a, l->experts);
        if (!l->experts) continue;
        any = true;
        if (keep > l->experts)
            return err_set(e, ERR_USAGE, "cannot keep %u experts of layer %u: it has %u", keep, p->old_layer[i],
                           l->experts);
        if (choose_experts(p, i, keep, e)) return e->code;
        l->experts = keep;
        if (p->to.experts_per_token > keep) p->to.experts_per_token = keep;
    }
    return any ? 0 : err_set(e, ERR_USAGE, "no layer that stays has experts to choose from");
}

/* ---- widths ------------------------------------------------------------------------------------------------------ */

static int plan_width(const struct prune_plan *p, uint32_t layer, uint32_t *width, struct err *e) {
    uint32_t to = *width ? width_of(&p->o->ffn, *width) : 0;
    if (to > *width)
        return err_set(e, ERR_USAGE, "cannot prune the feed-forward width of layer %u to %u: it is %u", layer, to,
                       *width);
    *width = to;
    return 0;
}

/* Every remaining key/value head keeps the same number of query heads. */
static int plan_heads(const struct prune_plan *p, uint32_t layer, struct model_layer *l, uint32_t groups,
                      struct err *e) {
    uint32_t each = l->n_heads / l->n_kv_heads, most = each * groups;
    uint32_t heads = p->o->heads.n ? p->o->heads.n : prune_amount_of(&p->o->heads, each) * groups;
    if (heads > most)
        return err_set(e, ERR_USAGE, "cannot prune the query heads of layer %u to %u: its %u key/value heads have %u",
                       layer, heads, groups, most);
    if (heads % groups)
        return err_set(e, ERR_USAGE, "layer %u: %u query heads are no multiple of its %u key/value heads", layer, heads,
                       groups);
    l->n_heads = heads;
    l->n_kv_heads = groups;
    return 0;
}

/* ERR_USAGE if no remaining layer has what the options would prune. */
static int check_widths(const struct prune_plan *p, struct err *e) {
    bool ffn = false, heads = false;
    for (uint32_t i = 0; i < p->to.n_layers; i++) {
        const struct model_layer *l = &p->to.layers[i];
        ffn = ffn || l->ffn || l->expert_ffn;
        heads = heads || l->n_kv_heads;
    }
    if (is_asked(&p->o->ffn) && !ffn) return err_set(e, ERR_USAGE, "no layer that stays has a feed-forward part");
    if ((is_asked(&p->o->kv_heads) || is_asked(&p->o->heads)) && !heads)
        return err_set(e, ERR_USAGE, "no layer that stays has attention");
    return 0;
}

static int plan_widths(struct prune_plan *p, struct err *e) {
    if (check_widths(p, e)) return e->code;
    for (uint32_t i = 0; i < p->to.n_layers; i++) {
        struct model_layer *l = &p->to.layers[i];
        if (!l->n_kv_heads) continue;
        uint32_t groups = prune_amount_of(&p->o->kv_heads, l->n_kv_heads);
        if (plan_width(p, p->old_layer[i], &l->ffn, e) || plan_width(p, p->old_layer[i], &l->expert_ffn, e))
            return e->code;
        if (groups > l->n_kv_heads)
            return err_set(e, ERR_USAGE, "cannot prune the key/value heads of layer %u to %u: there are %u",
                           p->old_layer[i], groups, l->n_kv_heads);
        if (plan_heads(p, p->old_layer[i], l, groups, e)) return e->code;
    }
    return 0;
}

/* ---- structure -------------------------------------------------------------------------------------------------- */

static int plan_structure(struct prune_plan *p, struct err *e) {
    int rc = plan_layers(p, e);
    if (!rc) rc = plan_experts(p, e);
    if (!rc) rc = prune_plan_hidden(p, width_of(&p->o->hidden, p->from->hidden), e);
    return rc ? rc : plan_widths(p, e);
}

/* ERR_USAGE if the biases that are to compensate for removed heads and channels are missing. */
static int check_biases(const struct prune_plan *p, struct err *e) {
    bool heads = false, ffn = false, experts = false;
    for (uint32_t i = 0; i < p->to.n_layers; i++) {
        const struct model_layer *now = &p->to.layers[i], *was = &p->from->layers[p->old_layer[i]];
        heads |= now->n_heads != was->n_heads;
        ffn |= now->ffn != was->ffn;
        experts |= now->expert_ffn != was->expert_ffn;
    }
    const char *lacks = heads && !p->from->o_bias   ? "attn.o"
                        : ffn && !p->from->ffn_bias ? "ffn.down"
                        : experts                   ? "experts.*.down"
                                                    : NULL;
    if (!lacks) return 0;
    return err_set(e, ERR_USAGE, "this %s has no bias of %s that could compensate for what goes", p->from->arch, lacks);
}

/* ---- low-rank factors -------------------------------------------------------------------------------------------- */

bool prune_changes_widths(const struct prune_plan *p) {
    for (uint32_t i = 0; i < p->to.n_layers; i++) {
        struct model_layer now = p->to.layers[i], was = p->from->layers[p->old_layer[i]];
        memset(now.rank, 0, sizeof now.rank);
        memset(was.rank, 0, sizeof was.rank);
        if (memcmp(&now, &was, sizeof now) != 0) return true;
    }
    return false;
}

/* For o->merge: the new model has no factors. */
static int plan_merge(struct prune_plan *p, struct err *e) {
    if (!model_is_factored(p->from)) return err_set(e, ERR_USAGE, "this model has no low-rank factors to multiply");
    for (uint32_t i = 0; i < p->to.n_layers; i++) memset(p->to.layers[i].rank, 0, sizeof p->to.layers[i].rank);
    return 0;
}

/* The rank at which the two factors together have the requested share of the weights, rounded down. */
static int plan_rank(struct prune_plan *p, struct model_slot old, struct model_slot now, struct prune_sparsity *s,
                     struct err *e) {
    const struct model_role_info *info = model_role_info(old.role);
    char name[TENSOR_MAX_NAME + 1];
    double rows = (double)model_axis_size(&p->to, info->rows, now.layer);
    double cols = (double)model_axis_size(&p->to, info->cols, now.layer), rank;
    model_slot_name(old, name);
    if (model_rank(&p->to, old.role, now.layer))
        return err_set(e, ERR_USAGE, "tensor '%s' is a low-rank factor already", name);
    if (!info->out) return err_set(e, ERR_USAGE, "tensor '%s' cannot become low-rank factors", name);
    if (s->m) return err_set(e, ERR_USAGE, "tensor '%s': svd takes shares and ranks, not %u:%u", name, s->n, s->m);
    rank = s->rank ? s->rank : (1 - s->share) * rows * cols / (rows + cols);
    if (rank > (rows < cols ? rows : cols))
        return err_set(e, ERR_USAGE, "tensor '%s': a rank of %u for %.0fx%.0f", name, s->rank, rows, cols);
    *s = (struct prune_sparsity){.rank = rank < 1 ? 1 : (uint32_t)rank};
    p->to.layers[now.layer].rank[info->factored] = s->rank;
    return 0;
}

static int plan_ranks(struct prune_plan *p, struct err *e) {
    int rc = 0;
    if (model_is_factored(&p->to) && (p->kept_hidden || prune_changes_widths(p)))
        return err_set(e, ERR_USAGE,
                       "heads, channels and experts of a model with low-rank factors cannot be pruned; multiply them "
                       "first (--merge)");
    for (size_t i = 0; !rc && i < p->n_slots; i++) {
        struct model_slot s = model_slot_at(p->from, i), now;
        bool asked = p->sparse[i].rank || (p->o->method == PRUNE_SVD && prune_is_sparse(p->sparse[i]));
        if (asked && prune_new_slot(p, s, &now)) rc = plan_rank(p, s, now, &p->sparse[i], e);
    }
    if (!rc && p->kept_hidden && model_is_factored(&p->to))
        rc = err_set(
            e, ERR_USAGE,
            "channels of the residual stream go in a run of their own, before matrices become low-rank factors");
    return rc;
}

/* ---- the whole plan ---------------------------------------------------------------------------------------------- */

int prune_plan_begin(struct prune_plan *p, const struct model_head *head, const struct prune_options *o,
                     struct err *e) {
    *p = (struct prune_plan){.o = o, .from = &head->config};
    int rc = o->stats ? stats_check(o->stats, &head->config, head->vocab_digest, e) : 0;
    if (!rc) rc = model_config_copy(&p->to, &head->config, &p->memory, e);
    return rc || (!o->tokens && !o->padding) ? rc : prune_plan_vocab(p, head, e);
}

int prune_plan_make(struct prune_plan *p, const struct model_head *head, const struct prune_options *o, struct err *e) {
    *p = (struct prune_plan){.o = o, .from = &head->config};
    if (o->score == PRUNE_BY_COST && !(o->calibrated && o->reconstruct))
        return err_set(e, ERR_USAGE, "--score cost needs --data and --reconstruct");
    bool from_stats = o->score == PRUNE_BY_STATS || o->score == PRUNE_BY_TAYLOR || o->score == PRUNE_BY_FLUCTUATION;
    if ((from_stats || o->compensate) && !o->stats)
        return err_set(e, ERR_USAGE, "scores from activations or gradients need --stats (rill calibrate)");
    if (o->score == PRUNE_BY_TAYLOR && !stats_has_gradients(o->stats))
        return err_set(e, ERR_USAGE, "Taylor scores need statistics with gradients (rill calibrate --gradients)");
    if ((o->score == PRUNE_BY_FLUCTUATION || o->compensate) &&
        !stats_input_sum(o->stats, POINT_EMBED, (struct model_slot){0}))
        return err_set(
            e, ERR_DATA,
            "the statistics have no signed sums, because an older version made them: run rill calibrate again");
    if (!(o->sparsity.share >= 0 && o->sparsity.share < 1))
        return err_set(e, ERR_USAGE, "sparsity %g is not in [0, 1)", o->sparsity.share);
    int rc = prune_plan_begin(p, head, o, e);
    if (!rc && o->merge) rc = plan_merge(p, e);
    if (!rc) rc = o->plan ? prune_plan_read(p, e) : plan_structure(p, e);
    if (!rc && !o->plan) rc = prune_plan_sparse(p, e);
    if (!rc) rc = prune_check_sparse(p, e);
    if (!rc) rc = plan_ranks(p, e);
    if (!rc && o->compensate) rc = check_biases(p, e);
    return rc ? rc : model_config_check(&p->to, e);
}

/* Reports a share that was rounded to whole blocks; widths are those of the first layer. */
static void warn_share(const struct prune_plan *p, const char *what, const struct prune_amount *a, uint32_t n,
                       uint32_t total) {
    char text[128];
    if (a->share == 0 || total == 0 || fabs(a->share * total - n) < 1e-6 * total) return;
    snprintf(text, sizeof text, "%g%% of %u %s: %u stay, %.1f%%", 100 * a->share, total, what, n, 100.0 * n / total);
    p->o->warn(p->o->warn_ctx, text);
}

void prune_plan_warn(const struct prune_plan *p) {
    if (!p->o->warn) return;
    const struct model_layer *now = &p->to.layers[0], *was = &p->from->layers[p->old_layer[0]];
    warn_share(p, "layers", &p->o->layers, p->to.n_layers, p->from->n_layers);
    warn_share(p, "feed-forward channels", &p->o->ffn, now->ffn, was->ffn);
    warn_share(p, "channels of experts", &p->o->ffn, now->expert_ffn, was->expert_ffn);
    warn_share(p, "channels of the residual stream", &p->o->hidden, p->to.hidden, p->from->hidden);
    warn_share(p, "experts", &p->o->experts, now->experts, was->experts);
    if (p->to.experts_per_token < p->from->experts_per_token) {
        char text[128];
        snprintf(text, sizeof text, "a position takes %u experts now, which are all that stay, and took %u",
                 p->to.experts_per_token, p->from->experts_per_token);
        p->o->warn(p->o->warn_ctx, text);
    }
    warn_share(p, "key/value heads", &p->o->kv_heads, now->n_kv_heads, was->n_kv_heads);
    if (was->n_kv_heads)
        warn_share(p, "query heads of each key/value head", &p->o->heads, now->n_heads / now->n_kv_heads,
                   was->n_heads / was->n_kv_heads);
    if (p->o->shape) p->o->shape(p->o->warn_ctx, p->from, &p->to);
    model_row_warnings(p->from, p->old_layer, &p->to, p->o->warn, p->o->warn_ctx);
}

void prune_plan_release(struct prune_plan *p) {
    buf_release(&p->vocab);
    arena_release(&p->memory);
}
