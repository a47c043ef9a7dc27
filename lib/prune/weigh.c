/* Scores the parts of a model for targets, and measures the size of a shape. */
#include "lib/prune/target.h"

#include <math.h>
#include <stdlib.h>

/* ---- loss -------------------------------------------------------------------------------------------------------- */

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

double target_lost(const struct target *t, const struct prune_shape *s, uint32_t layer,
                   const struct target_cost *cost) {
    size_t heads = ((size_t)layer * (t->whole.groups + 1) + s->groups) * (t->whole.each + 1) + s->each;
    double all = t->all[layer];
    if (!s->groups || all <= 0) return cost->layers * all;
    double sum =
        cost->channels * t->ffn_loss[(size_t)layer * (t->whole.ffn + 1) + s->ffn] + cost->heads * t->head_loss[heads];
    return sum > 0 ? all * pow(sum / all, cost->power) : 0;
}

/* ---- size -------------------------------------------------------------------------------------------------------- */

/* Multiplications by weights per position; those of attention scores, which depend on the length, are not counted. */
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

static int measure(const struct target *t, const struct model_config *c, double *size, struct err *e) {
    const struct prune_options *o = t->p->o;
    uint64_t bytes = 0;
    int rc = o->target_size ? o->bytes(o->bytes_ctx, c, &bytes, e) : 0;
    *size = o->target_size ? (double)bytes : o->target_speedup > 0 ? products(c) : (double)model_parameters(c);
    return rc;
}

const char *target_unit(const struct target *t) {
    return t->p->o->target_size ? "bytes" : t->p->o->target_speedup > 0 ? "products" : "parameters";
}

static int find_limit(struct target *t, struct err *e) {
    const struct prune_options *o = t->p->o;
    double all = 0;
    int rc = measure(t, t->from, &all, e);
    t->all_size = all;
    t->limit = o->target_size          ? (double)o->target_size
               : o->target_speedup > 0 ? all / o->target_speedup
               : o->target_share > 0   ? o->target_share * all
                                       : (double)o->target_params;
    return rc;
}

int target_measure(struct target *t, const struct prune_shape *layers, double *size, struct err *e) {
    t->trial.n_layers = 0;
    for (uint32_t i = 0; i < t->n; i++) {
        if (!layers[i].groups) continue;
        struct model_layer *l = &t->trial.layers[t->trial.n_layers++];
        *l = t->from->layers[i];
        l->n_kv_heads = layers[i].groups;
        l->n_heads = layers[i].groups * layers[i].each;
        l->ffn = layers[i].ffn;
    }
    return measure(t, &t->trial, size, e);
}

/* ---- the best solutions ------------------------------------------------------------------------------------------ */

bool target_same(const struct target *t, const struct prune_shape *a, const struct prune_shape *b) {
    for (uint32_t i = 0; i < t->n; i++)
        if (a[i].groups != b[i].groups || (a[i].groups && (a[i].each != b[i].each || a[i].ffn != b[i].ffn)))
            return false;
    return true;
}

void target_keep(struct target *t, const struct prune_shape *layers, double loss) {
    size_t at = t->n_best;
    if (at == t->most && loss >= t->best[at - 1].loss) return;
    if (at == t->most) at--;
    struct solution s = t->best[at]; /* reuses its memory */
    for (; at && loss < t->best[at - 1].loss; at--) t->best[at] = t->best[at - 1];
    memcpy(s.layers, layers, t->n * sizeof *layers);
    s.loss = loss;
    t->best[at] = s;
    if (t->n_best < t->most) t->n_best++;
}

/* ---- setup ------------------------------------------------------------------------------------------------------- */

static int check_layers(const struct target *t, struct err *e) {
    const struct model_layer *l = &t->from->layers[0];
    if (!l->n_kv_heads || !l->ffn || l->experts)
        return err_set(e, ERR_USAGE, "a target needs layers with attention and a feed-forward part, without experts");
    for (uint32_t i = 1; i < t->n; i++)
        if (t->from->layers[i].n_heads != l->n_heads || t->from->layers[i].n_kv_heads != l->n_kv_heads ||
            t->from->layers[i].ffn != l->ffn)
            return err_set(e, ERR_USAGE, "a target needs layers of one shape, but layer %u differs from layer 0", i);
    if (!t->p->o->stats || !stats_has_gradients(t->p->o->stats))
        return err_set(e, ERR_USAGE, "a target needs statistics with gradients (rill calibrate --gradients)");
    return 0;
}

static int allocate(struct target *t, struct arena *a, struct err *e) {
    size_t heads = (size_t)(t->whole.groups + 1) * (t->whole.each + 1);
    t->all = arena_array(a, t->n, sizeof *t->all, e);
    t->ffn_loss = t->all ? arena_array(a, (uint64_t)t->n * (t->whole.ffn + 1), sizeof *t->ffn_loss, e) : NULL;
    t->head_loss = t->ffn_loss ? arena_array(a, t->n * heads, sizeof *t->head_loss, e) : NULL;
    t->best = t->head_loss ? arena_array(a, t->most, sizeof *t->best, e) : NULL;
    for (size_t i = 0; t->best && i < t->most; i++)
        if (!(t->best[i].layers = arena_array(a, t->n, sizeof *t->best[i].layers, e))) return e->code;
    return t->best ? model_config_copy(&t->trial, &t->p->to, a, e) : e->code;
}

int target_begin(struct target *t, struct prune_plan *p, size_t most, struct err *e) {
    const struct model_layer *l = &p->from->layers[0];
    struct arena a = {0};
    *t = (struct target){.p = p, .from = p->from, .n = p->from->n_layers, .most = most, .least = INFINITY};
    if (check_layers(t, e)) return e->code;
    t->whole = (struct prune_shape){l->n_kv_heads, l->n_heads / l->n_kv_heads, l->ffn};
    t->unit = l->ffn >= 8 * 256 ? 256 : l->ffn >= 8 * 64 ? 64 : l->ffn >= 64 ? 32 : 1;
    int rc = allocate(t, &p->memory, e);
    for (uint32_t i = 0; !rc && i < t->n; i++) {
        rc = weigh_channels(t, i, &a, e);
        if (!rc) rc = weigh_heads(t, i, &a, e);
    }
    arena_release(&a);
    return rc ? rc : find_limit(t, e);
}
