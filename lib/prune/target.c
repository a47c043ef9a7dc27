/* The shape of a model of so many parameters that loses least: layers, heads and channels, weighed by one score. */
#include "lib/prune/target.h"

#include <math.h>

/*
 * The square of the share of a layer that goes, as if the loss were quadratic in it: what goes of a layer adds up. (As plain sums, whole
 * layers seem too cheap: lib/prune/README.md has the numbers.)
 */
#define POWER 2

/* ---- all layers alike ------------------------------------------------------------------------------------------------------- */

struct alike {
    struct target *t;
    double *gain;         /* [n] what a layer keeps */
    uint32_t *kept;       /* [n] */
    struct shape *layers; /* [n] */
};

/* Which layers stay in this shape: the `n` that keep most. */
static int choose(struct alike *k, const struct shape *s, uint32_t n, double *loss, struct arena *a, struct err *e) {
    struct target *t = k->t;
    *loss = 0;
    for (uint32_t i = 0; i < t->n; i++) {
        k->gain[i] = t->all[i] - target_lost(t, s, i, POWER);
        *loss += t->all[i];
    }
    if (prune_choose(k->gain, t->n, n, k->kept, a, e)) return e->code;
    memset(k->layers, 0, t->n * sizeof *k->layers);
    for (uint32_t i = 0; i < n; i++) {
        *loss -= k->gain[k->kept[i]];
        k->layers[k->kept[i]] = *s;
    }
    return 0;
}

static int try_shape(struct alike *k, const struct shape *s, uint32_t n, bool *fits, struct arena *a, struct err *e) {
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

/* The widest that fits loses least. */
static int try_widths(struct alike *k, struct shape s, uint32_t n, struct err *e) {
    struct target *t = k->t;
    struct arena a = {0};
    bool fits = false;
    int rc = 0;
    for (s.ffn = t->whole.ffn; !rc && !fits && s.ffn; s.ffn = s.ffn > t->unit ? (s.ffn - 1) / t->unit * t->unit : 0)
        rc = try_shape(k, &s, n, &fits, &a, e);
    arena_release(&a);
    return rc;
}

static int search_alike(struct target *t, struct err *e) {
    struct arena *a = &t->p->memory;
    struct alike k = {.t = t, .gain = arena_array(a, t->n, sizeof *k.gain, e)};
    k.kept = k.gain ? arena_array(a, t->n, sizeof *k.kept, e) : NULL;
    k.layers = k.kept ? arena_array(a, t->n, sizeof *k.layers, e) : NULL;
    int rc = k.layers ? 0 : e->code;
    struct shape s;
    for (uint32_t n = t->n; !rc && n; n--)
        for (s.groups = t->whole.groups; !rc && s.groups; s.groups--)
            for (s.each = t->whole.each; !rc && s.each; s.each--) rc = try_widths(&k, s, n, e);
    return rc;
}

/* ---- each layer its own ----------------------------------------------------------------------------------------------------- */

/* The larger the power, the more even the shares that layers lose. What they lose cannot be compared, so they come in this order. */
static int search_uneven(struct target *t, struct err *e) {
    static const double powers[] = {POWER, 3, 1.5, 4, 1.25, 6};
    struct shape *layers = arena_array(&t->p->memory, t->n, sizeof *layers, e);
    int rc = layers ? 0 : e->code;
    for (size_t i = 0; !rc && i < COUNT_OF(powers) && t->n_best < t->most; i++) {
        bool fits, there = false;
        rc = target_allocate(t, powers[i], layers, &fits, e);
        for (size_t k = 0; !rc && k < t->n_best; k++) there |= target_same(t, layers, t->best[k].layers);
        if (!rc && fits && !there) target_keep(t, layers, (double)i);
    }
    return rc;
}

/* ---- the plan ---------------------------------------------------------------------------------------------------------------- */

/* The best `most` into t->best. */
static int search(struct target *t, struct prune_plan *p, size_t most, struct err *e) {
    double all;
    int rc = target_begin(t, p, most, e);
    if (!rc) rc = p->o->target_uneven ? search_uneven(t, e) : search_alike(t, e);
    if (rc || t->n_best) return rc;
    for (uint32_t i = 0; i < t->n; i++) t->best[0].layers[i] = t->whole;
    rc = target_measure(t, t->best[0].layers, &all, e);
    return rc ? rc
              : err_set(e, ERR_USAGE, "no shape of this model is that small: the smallest has %.4g of %.4g %s",
                        t->least, all, target_unit(t));
}

int prune_plan_target(struct prune_plan *p, unsigned char *gone, struct err *e) {
    struct target t;
    size_t nth = p->o->target_nth;
    int rc = search(&t, p, nth + 1, e);
    if (rc) return rc;
    if (nth >= t.n_best)
        return err_set(e, ERR_USAGE, "there are only %zu shapes for this target, not %zu", t.n_best, nth + 1);
    for (uint32_t i = 0; i < t.n; i++) {
        const struct shape *s = &t.best[nth].layers[i];
        gone[i] = !s->groups;
        if (gone[i]) continue;
        p->to.layers[i].n_kv_heads = s->groups;
        p->to.layers[i].n_heads = s->groups * s->each;
        p->to.layers[i].ffn = s->ffn;
    }
    return 0;
}

int prune_target_shapes(const struct model *m, const struct prune_options *o, size_t most, size_t *n, struct err *e) {
    struct prune_plan p = {.o = o, .from = &m->config};
    struct target t;
    int rc = o->stats ? stats_check(o->stats, &m->config, m->vocab_digest, e) : 0;
    if (!rc) rc = search(&t, &p, most, e);
    if (!rc) *n = t.n_best;
    arena_release(&p.memory);
    return rc;
}
