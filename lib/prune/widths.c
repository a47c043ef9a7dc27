/* Chooses a separate shape for each layer, greedily by loss per saving. */
#include "lib/prune/target.h"

#include <math.h>

enum step { CHANNELS, GROUP, HEAD_OF_EACH, REST, STEPS };

struct allocation {
    struct target *t;
    const struct target_cost *cost;
    struct prune_shape *layers;
    double size;   /* current measure */
    uint32_t left; /* remaining layers */
    /* The best step of each layer and its price, loss per size; stale: to be recomputed. */
    struct prune_shape *to;
    double *price;
    unsigned char *stale;
};

/* The shape after one step down; false: impossible. */
static bool shrink(const struct allocation *a, enum step k, const struct prune_shape *s, struct prune_shape *to) {
    uint32_t unit = a->t->unit;
    *to = *s;
    switch (k) {
    case CHANNELS: return (to->ffn = (s->ffn - 1) / unit * unit) > 0;
    case GROUP: return --to->groups > 0;
    case HEAD_OF_EACH: return --to->each > 0;
    case REST: return *to = (struct prune_shape){0}, a->left > 1;
    case STEPS: break;
    }
    return false;
}

static bool grow(const struct allocation *a, enum step k, const struct prune_shape *s, struct prune_shape *to) {
    const struct prune_shape *whole = &a->t->whole;
    uint32_t unit = a->t->unit, ffn = s->ffn - s->ffn % unit + unit;
    *to = *s;
    switch (k) {
    case CHANNELS: return to->ffn = ffn < whole->ffn ? ffn : whole->ffn, s->ffn < whole->ffn;
    case GROUP: return ++to->groups <= whole->groups;
    case HEAD_OF_EACH: return ++to->each <= whole->each;
    case REST: /* removed layers are not restored */
    case STEPS: break;
    }
    return false;
}

/* The change in size if this layer took that shape. */
static int difference(struct allocation *a, uint32_t layer, const struct prune_shape *to, double *by, struct err *e) {
    struct prune_shape was = a->layers[layer];
    double size;
    a->layers[layer] = *to;
    int rc = target_measure(a->t, a->layers, &size, e);
    a->layers[layer] = was;
    *by = size - a->size;
    return rc;
}

static int find_step(struct allocation *a, uint32_t layer, struct err *e) {
    const struct prune_shape *s = &a->layers[layer];
    double now = target_lost(a->t, s, layer, a->cost), by;
    a->price[layer] = INFINITY;
    a->stale[layer] = 0;
    for (enum step k = 0; s->groups && k < STEPS; k++) {
        struct prune_shape to;
        if (!shrink(a, k, s, &to)) continue;
        if (difference(a, layer, &to, &by, e)) return e->code;
        double price = by < 0 ? (target_lost(a->t, &to, layer, a->cost) - now) / -by : INFINITY;
        if (price < a->price[layer]) a->price[layer] = price, a->to[layer] = to;
    }
    return 0;
}

/* Takes one step down; *done false: there is none. */
static int step_down(struct allocation *a, bool *done, struct err *e) {
    uint32_t best = 0;
    for (uint32_t i = 0; i < a->t->n; i++) {
        if (a->stale[i] && find_step(a, i, e)) return e->code;
        if (a->price[i] < a->price[best]) best = i;
    }
    *done = isfinite(a->price[best]);
    if (!*done) return 0;
    a->layers[best] = a->to[best];
    a->stale[best] = 1;
    if (!a->layers[best].groups && --a->left == 1) memset(a->stale, 1, a->t->n); /* the last layer must stay */
    return target_measure(a->t, a->layers, &a->size, e);
}

/* Undoes the step with the greatest gain per size among those that fit. */
static int step_up(struct allocation *a, bool *done, struct err *e) {
    uint32_t best = 0;
    double gain = 0, by;
    struct prune_shape to, best_to = {0};
    for (uint32_t i = 0; i < a->t->n; i++)
        for (enum step k = 0; a->layers[i].groups && k < STEPS; k++) {
            if (!grow(a, k, &a->layers[i], &to)) continue;
            if (difference(a, i, &to, &by, e)) return e->code;
            if (by <= 0 || a->size + by > a->t->limit) continue;
            double g = (target_lost(a->t, &a->layers[i], i, a->cost) - target_lost(a->t, &to, i, a->cost)) / by;
            if (g > gain) gain = g, best = i, best_to = to;
        }
    *done = gain > 0;
    if (!*done) return 0;
    a->layers[best] = best_to;
    return target_measure(a->t, a->layers, &a->size, e);
}

int target_allocate(struct target *t, const struct target_cost *cost, struct prune_shape *layers, bool *fits,
                    struct err *e) {
    struct arena memory = {0};
    struct allocation a = {.t = t, .cost = cost, .layers = layers, .left = t->n};
    bool done = true;
    a.to = arena_array(&memory, t->n, sizeof *a.to, e);
    a.price = a.to ? arena_array(&memory, t->n, sizeof *a.price, e) : NULL;
    a.stale = a.price ? arena_array(&memory, t->n, 1, e) : NULL;
    int rc = a.stale ? 0 : e->code;
    for (uint32_t i = 0; !rc && i < t->n; i++) layers[i] = t->whole, a.stale[i] = 1;
    if (!rc) rc = target_measure(t, layers, &a.size, e);
    while (!rc && done && a.size > t->limit) rc = step_down(&a, &done, e);
    *fits = a.size <= t->limit;
    if (a.size < t->least) t->least = a.size;
    while (!rc && done && *fits) rc = step_up(&a, &done, e);
    arena_release(&memory);
    return rc;
}
