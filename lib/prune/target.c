/* Finds the shape with the least estimated loss within a target: number of layers, heads and channels. */
#include "lib/prune/target.h"

/* ---- identical layers -------------------------------------------------------------------------------------------- */

struct alike {
    struct target *t;
    const struct target_cost *cost;
    unsigned char *gone;        /* [n] layers that go, the same for all shapes with as many layers */
    struct prune_shape *layers; /* [n] */
};

/* Gives this shape to all layers that stay. */
static double fill(struct alike *k, const struct prune_shape *s) {
    const struct target *t = k->t;
    double loss = 0;
    for (uint32_t i = 0; i < t->n; i++) {
        k->layers[i] = k->gone[i] ? (struct prune_shape){0} : *s;
        loss += target_lost(t, &k->layers[i], i, k->cost);
    }
    return loss;
}

static int try_shape(struct alike *k, const struct prune_shape *s, bool *fits, struct err *e) {
    struct target *t = k->t;
    const struct prune_options *o = t->p->o;
    double loss = fill(k, s), size;
    *fits = false;
    int rc = target_measure(t, k->layers, &size, e);
    if (rc || (size > t->limit && size >= t->least)) return rc;
    if (o->loads && !o->loads(o->warn_ctx, t->from, &t->trial)) return 0;
    if (size < t->least) t->least = size;
    *fits = size <= t->limit;
    if (*fits) target_keep(t, k->layers, loss);
    return 0;
}

/* For given heads the widest shape that fits loses least. */
static int try_widths(struct alike *k, struct prune_shape s, struct err *e) {
    struct target *t = k->t;
    bool fits = false;
    int rc = 0;
    for (s.ffn = t->whole.ffn; !rc && !fits && s.ffn; s.ffn = s.ffn > t->unit ? (s.ffn - 1) / t->unit * t->unit : 0)
        rc = try_shape(k, &s, &fits, e);
    return rc;
}

static int search_alike(struct target *t, const struct target_cost *cost, struct arena *a, struct err *e) {
    struct alike k = {.t = t, .cost = cost, .gone = arena_array(a, t->n, 1, e)};
    k.layers = k.gone ? arena_array(a, t->n, sizeof *k.layers, e) : NULL;
    int rc = k.layers ? 0 : e->code;
    struct prune_shape s;
    for (uint32_t n = t->n; !rc && n; n--) {
        memset(k.gone, 0, t->n);
        rc = prune_drop_layers(t->p, n, k.gone, e);
        for (s.groups = t->whole.groups; !rc && s.groups; s.groups--)
            for (s.each = t->whole.each; !rc && s.each; s.each--) rc = try_widths(&k, s, e);
    }
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
