/* Finds the shape with the least estimated loss within a target: number of layers, heads and channels. */
#include "lib/prune/target.h"

/* ---- identical layers -------------------------------------------------------------------------------------------- */

struct alike {
    struct target *t;
    const struct target_cost *cost;
    double *gain;               /* [n] score that the layer keeps */
    uint32_t *kept;             /* [n] */
    struct prune_shape *layers; /* [n] */
};

/* Keeps the `n` layers that preserve most in this shape. */
static int choose(struct alike *k, const struct prune_shape *s, uint32_t n, double *loss, struct arena *a,
                  struct err *e) {
    struct target *t = k->t;
    *loss = 0;
    for (uint32_t i = 0; i < t->n; i++) {
        double all = target_lost(t, &(struct prune_shape){0}, i, k->cost);
        k->gain[i] = all - target_lost(t, s, i, k->cost);
        *loss += all;
    }
    if (prune_choose(k->gain, t->n, n, k->kept, a, e)) return e->code;
    memset(k->layers, 0, t->n * sizeof *k->layers);
    for (uint32_t i = 0; i < n; i++) {
        *loss -= k->gain[k->kept[i]];
        k->layers[k->kept[i]] = *s;
    }
    return 0;
}

static int try_shape(struct alike *k, const struct prune_shape *s, uint32_t n, bool *fits, struct arena *a,
                     struct err *e) {
    struct target *t = k->t;
    const struct prune_options *o = t->p->o;
    double loss, size;
    *fits = false;
    int rc = choose(k, s, n, &loss, a, e);
    if (!rc) rc = target_measure(t, k->layers, &size, e);
    if (rc || (size > t->limit && size >= t->least)) return rc;
    if (o->loads && !o->loads(o->warn_ctx, t->from, &t->trial)) return 0;
    if (size < t->least) t->least = size;
    *fits = size <= t->limit;
    if (*fits) target_keep(t, k->layers, loss);
    return 0;
}

/* For given heads the widest shape that fits loses least. */
static int try_widths(struct alike *k, struct prune_shape s, uint32_t n, struct err *e) {
    struct target *t = k->t;
    struct arena a = {0};
    bool fits = false;
    int rc = 0;
    for (s.ffn = t->whole.ffn; !rc && !fits && s.ffn; s.ffn = s.ffn > t->unit ? (s.ffn - 1) / t->unit * t->unit : 0)
        rc = try_shape(k, &s, n, &fits, &a, e);
    arena_release(&a);
    return rc;
}

static int search_alike(struct target *t, const struct target_cost *cost, struct arena *a, struct err *e) {
    struct alike k = {.t = t, .cost = cost, .gain = arena_array(a, t->n, sizeof *k.gain, e)};
    k.kept = k.gain ? arena_array(a, t->n, sizeof *k.kept, e) : NULL;
    k.layers = k.kept ? arena_array(a, t->n, sizeof *k.layers, e) : NULL;
    int rc = k.layers ? 0 : e->code;
    struct prune_shape s;
    for (uint32_t n = t->n; !rc && n; n--)
        for (s.groups = t->whole.groups; !rc && s.groups; s.groups--)
            for (s.each = t->whole.each; !rc && s.each; s.each--) rc = try_widths(&k, s, n, e);
    return rc;
}

/* ---- layers of different shapes ---------------------------------------------------------------------------------- */

static int search_uneven(struct target *t, const struct target_cost *cost, struct arena *a, struct err *e) {
    struct prune_shape *layers = arena_array(a, t->n, sizeof *layers, e);
    bool fits = false;
    int rc = layers ? target_allocate(t, cost, layers, &fits, e) : e->code;
    if (!rc && fits) target_keep(t, layers, 0);
    return rc;
}

/* ---- the plan ---------------------------------------------------------------------------------------------------- */

int target_search(struct target *t, const struct target_cost *cost, struct err *e) {
    struct arena a = {0};
    t->n_best = 0;
    int rc = t->p->o->target_uneven ? search_uneven(t, cost, &a, e) : search_alike(t, cost, &a, e);
    arena_release(&a);
    return rc;
}

int target_none(const struct target *t, struct err *e) {
    return err_set(e, ERR_USAGE, "no shape of this model is that small: the smallest has %.4g of %.4g %s", t->least,
                   t->all_size, target_unit(t));
}

static int search(struct prune_plan *p, const struct prune_shape **layers, struct err *e) {
    struct target t;
    int rc = target_begin(&t, p, 1, e);
    if (!rc) rc = target_search(&t, &TARGET_COST, e);
    if (!rc && !t.n_best) rc = target_none(&t, e);
    if (!rc) *layers = t.best[0].layers;
    return rc;
}

int prune_plan_target(struct prune_plan *p, unsigned char *gone, struct err *e) {
    const struct prune_shape *layers = p->o->target_shape;
    int rc = layers ? 0 : search(p, &layers, e);
    for (uint32_t i = 0; !rc && i < p->from->n_layers; i++) {
        const struct prune_shape *s = &layers[i];
        gone[i] = !s->groups;
        if (gone[i]) continue;
        p->to.layers[i].n_kv_heads = s->groups;
        p->to.layers[i].n_heads = s->groups * s->each;
        p->to.layers[i].ffn = s->ffn;
    }
    return rc;
}
