/* The shape of a model of so many parameters that loses least: layers, heads and channels, weighed by one score. */
#include "lib/prune/prune_internal.h"

#include <math.h>
#include <stdlib.h>

/* All layers alike. */
struct shape {
    uint32_t layers, groups, each, ffn; /* each: query heads of a key/value head */
};

struct target {
    struct prune_plan *p;
    const struct model_config *from;
    struct shape whole, best;
    uint32_t unit;     /* widths are multiples of it */
    double *all;       /* [layers] what all of the layer counts */
    double *ffn_loss;  /* [layers][ffn + 1] what is lost when so many channels stay */
    double *head_loss; /* [layers][groups + 1][each + 1] ... so many groups, and so many heads of each */
    double *gain;      /* [layers] what a layer keeps */
    uint32_t *kept;    /* [layers] */
    double loss;       /* of the best */
    double least;      /* measure of the smallest shape that loads */
    struct model_config trial;
};

/* ---- what is lost ---------------------------------------------------------------------------------------------------------- */

static int descending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

static int weigh_channels(struct target *t, uint32_t layer, struct arena *a, struct err *e) {
    uint32_t n = t->whole.ffn;
    const double *score = stats_taylor(t->p->o->stats, AXIS_FFN, (struct model_slot){.layer = layer});
    double *sorted = arena_array(a, n + 1, sizeof *sorted, e), *loss = t->ffn_loss + (size_t)layer * (n + 1);
    if (!sorted) return e->code;
    for (uint32_t i = 0; i < n; i++) sorted[i] = score[i];
    qsort(sorted, n, sizeof *sorted, descending);
    loss[n] = 0;
    for (uint32_t i = n; i-- > 0;) loss[i] = loss[i + 1] + sorted[i];
    t->all[layer] += loss[0];
    return 0;
}

static double sum_of(const double *x, uint32_t first, uint32_t n) {
    double s = 0;
    for (uint32_t i = 0; i < n; i++) s += x[first + i];
    return s;
}

static int weigh_heads(struct target *t, uint32_t layer, struct arena *a, struct err *e) {
    uint32_t groups = t->whole.groups, each = t->whole.each, width = t->from->head_dim;
    struct model_slot slot = {.layer = layer};
    const double *query = stats_taylor(t->p->o->stats, AXIS_QUERY, slot);
    const double *key = stats_taylor(t->p->o->stats, AXIS_KEY, slot);
    double *heads = arena_array(a, (uint64_t)groups * each, sizeof *heads, e);
    double *value = heads ? arena_array(a, groups, sizeof *value, e) : NULL;
    double *loss = t->head_loss + (size_t)layer * (groups + 1) * (each + 1), all = 0;
    if (!value) return e->code;
    for (uint32_t h = 0; h < groups * each; h++) all += heads[h] = sum_of(query, h * width, width);
    for (uint32_t g = 0; g < groups; g++) {
        qsort(heads + g * each, each, sizeof *heads, descending);
        all += sum_of(key, g * width, width);
    }
    for (uint32_t of = 1; of <= each; of++) {
        for (uint32_t g = 0; g < groups; g++) value[g] = sum_of(key, g * width, width) + sum_of(heads, g * each, of);
        qsort(value, groups, sizeof *value, descending);
        for (uint32_t g = 0; g <= groups; g++) loss[g * (each + 1) + of] = all - sum_of(value, 0, g);
    }
    t->all[layer] += all;
    return 0;
}

/*
 * The square of the share of a layer that goes, as if the loss were quadratic in it: what goes of a layer adds up. (As plain sums, whole
 * layers seem too cheap: lib/prune/README.md has the numbers.)
 */
static double lost(const struct target *t, const struct shape *s, uint32_t layer) {
    size_t heads = ((size_t)layer * (t->whole.groups + 1) + s->groups) * (t->whole.each + 1) + s->each;
    double sum = t->ffn_loss[(size_t)layer * (t->whole.ffn + 1) + s->ffn] + t->head_loss[heads];
    return t->all[layer] > 0 ? sum * sum / t->all[layer] : 0;
}

/* Which layers stay: those that keep most. */
static int choose(struct target *t, const struct shape *s, double *loss, struct arena *a, struct err *e) {
    *loss = 0;
    for (uint32_t i = 0; i < t->whole.layers; i++) {
        t->gain[i] = t->all[i] - lost(t, s, i);
        *loss += t->all[i];
    }
    if (prune_choose(t->gain, t->whole.layers, s->layers, t->kept, a, e)) return e->code;
    for (uint32_t i = 0; i < s->layers; i++) *loss -= t->gain[t->kept[i]];
    return 0;
}

/* ---- what it comes to ------------------------------------------------------------------------------------------------------ */

/* Multiplications of a position by weights; attention's own, which hang on the length, are left out. */
static double products(const struct model_config *c) {
    double sum = 0;
    for (size_t i = 0; i < model_slot_count(c); i++) {
        struct model_slot s = model_slot_at(c, i);
        uint64_t dims[2];
        bool looked_up = s.role == ROLE_EMBED && !c->tied;
        if (model_role_is_matrix(s.role) && !looked_up && model_slot_shape(c, s, dims) == 2)
            sum += (double)dims[0] * (double)dims[1];
    }
    return sum;
}

static double measure(const struct target *t, const struct model_config *c) {
    return t->p->o->target_speedup > 0 ? products(c) : (double)model_parameters(c);
}

static double limit(const struct target *t) {
    const struct prune_options *o = t->p->o;
    if (o->target_speedup > 0) return products(t->from) / o->target_speedup;
    return o->target_share > 0 ? o->target_share * (double)model_parameters(t->from) : (double)o->target_params;
}

static void form(const struct target *t, const struct shape *s, struct model_config *c) {
    c->n_layers = s->layers;
    for (uint32_t i = 0; i < s->layers; i++) {
        c->layers[i] = t->from->layers[0];
        c->layers[i].n_kv_heads = s->groups;
        c->layers[i].n_heads = s->groups * s->each;
        c->layers[i].ffn = s->ffn;
    }
}

static int try_shape(struct target *t, const struct shape *s, struct arena *a, struct err *e) {
    const struct prune_options *o = t->p->o;
    double loss, size;
    form(t, s, &t->trial);
    size = measure(t, &t->trial);
    if (size > limit(t) && size >= t->least) return 0;
    if (o->loads && !o->loads(o->warn_ctx, t->from, &t->trial)) return 0;
    if (size < t->least) t->least = size;
    if (size > limit(t)) return 0;
    if (choose(t, s, &loss, a, e)) return e->code;
    if (loss < t->loss) t->loss = loss, t->best = *s;
    return 0;
}

static int search(struct target *t, struct err *e) {
    struct shape s;
    int rc = 0;
    for (s.layers = t->whole.layers; !rc && s.layers; s.layers--) {
        struct arena a = {0};
        for (s.groups = t->whole.groups; !rc && s.groups; s.groups--)
            for (s.each = t->whole.each; !rc && s.each; s.each--)
                for (s.ffn = t->whole.ffn; !rc && s.ffn; s.ffn = s.ffn > t->unit ? (s.ffn - 1) / t->unit * t->unit : 0)
                    rc = try_shape(t, &s, &a, e);
        arena_release(&a);
    }
    if (rc || isfinite(t->loss)) return rc;
    return err_set(e, ERR_USAGE, "no shape of this model is that small: the smallest has %.4g of %.4g %s", t->least,
                   measure(t, t->from), t->p->o->target_speedup > 0 ? "products" : "parameters");
}

/* ---- the plan ---------------------------------------------------------------------------------------------------------------- */

/* Layers alike, with attention and a dense feed-forward part. */
static int begin(struct target *t, struct err *e) {
    const struct model_layer *l = &t->from->layers[0];
    uint32_t n = t->from->n_layers;
    if (!l->n_kv_heads || !l->ffn || l->experts)
        return err_set(e, ERR_USAGE,
                       "a target is met by layers with attention and a feed-forward part, without experts");
    for (uint32_t i = 1; i < n; i++)
        if (t->from->layers[i].n_heads != l->n_heads || t->from->layers[i].n_kv_heads != l->n_kv_heads ||
            t->from->layers[i].ffn != l->ffn)
            return err_set(e, ERR_USAGE,
                           "a target is met by layers of one shape, and layer %u has another than layer 0", i);
    if (!t->p->o->stats || !stats_has_gradients(t->p->o->stats))
        return err_set(e, ERR_USAGE, "a target needs statistics with gradients (rill calibrate --gradients)");
    t->whole = (struct shape){n, l->n_kv_heads, l->n_heads / l->n_kv_heads, l->ffn};
    t->unit = l->ffn >= 8 * 256 ? 256 : l->ffn >= 8 * 64 ? 64 : l->ffn >= 64 ? 32 : 1;
    t->loss = t->least = INFINITY;
    struct arena *a = &t->p->memory;
    size_t heads = (size_t)(t->whole.groups + 1) * (t->whole.each + 1);
    t->all = arena_array(a, n, sizeof *t->all, e);
    t->ffn_loss = t->all ? arena_array(a, (uint64_t)n * (l->ffn + 1), sizeof *t->ffn_loss, e) : NULL;
    t->head_loss = t->ffn_loss ? arena_array(a, n * heads, sizeof *t->head_loss, e) : NULL;
    t->gain = t->head_loss ? arena_array(a, n, sizeof *t->gain, e) : NULL;
    t->kept = t->gain ? arena_array(a, n, sizeof *t->kept, e) : NULL;
    return t->kept ? model_config_copy(&t->trial, t->from, a, e) : e->code;
}

int prune_plan_target(struct prune_plan *p, unsigned char *gone, struct err *e) {
    struct target t = {.p = p, .from = p->from};
    struct arena a = {0};
    double loss;
    int rc = begin(&t, e);
    for (uint32_t i = 0; !rc && i < t.whole.layers; i++) {
        rc = weigh_channels(&t, i, &a, e);
        if (!rc) rc = weigh_heads(&t, i, &a, e);
    }
    if (!rc) rc = search(&t, e);
    if (!rc) rc = choose(&t, &t.best, &loss, &a, e);
    arena_release(&a);
    if (rc) return rc;
    memset(gone, 1, t.whole.layers);
    for (uint32_t i = 0; i < t.best.layers; i++) gone[t.kept[i]] = 0;
    for (uint32_t i = 0; i < t.whole.layers; i++) {
        p->to.layers[i].n_kv_heads = t.best.groups;
        p->to.layers[i].n_heads = t.best.groups * t.best.each;
        p->to.layers[i].ffn = t.best.ffn;
    }
    return 0;
}
