/* The multiple-choice knapsack: chooses one offer per matrix for the least error within a budget of bytes. */
#include "lib/quant/budget.h"

#include <stdlib.h>
#include <string.h>

uint64_t allocate_least(const struct offers *of, size_t n) {
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t least = of[i].at[0].bytes;
        for (size_t k = 1; k < of[i].n; k++)
            if (of[i].at[k].bytes < least) least = of[i].at[k].bytes;
        sum += least;
    }
    return sum;
}

/* ---- greedy solution along the convex hulls ---------------------------------------------------------------------- */

struct step { /* from the previous corner of the hull to this offer */
    size_t item, order, to;
    uint64_t bytes;
    double gain; /* reduction of the error */
};

/* Greatest reduction per byte first; ties in the original order. */
static int by_rate(const void *a, const void *b) {
    const struct step *s = a, *t = b;
    double x = s->gain * (double)t->bytes, y = t->gain * (double)s->bytes;
    if (x != y) return x > y ? -1 : 1;
    if (s->item != t->item) return s->item < t->item ? -1 : 1;
    return s->order < t->order ? -1 : s->order > t->order;
}

/* The offer with the fewest bytes and, among those, the least error. */
static size_t smallest(const struct offers *o) {
    size_t best = 0;
    for (size_t k = 1; k < o->n; k++) {
        const struct offer *a = &o->at[k], *b = &o->at[best];
        if (a->bytes < b->bytes || (a->bytes == b->bytes && a->error < b->error)) best = k;
    }
    return best;
}

/* The next corner of the hull after `from`, by the steepest descent; SIZE_MAX: none. */
static size_t next_corner(const struct offers *o, size_t from) {
    size_t best = SIZE_MAX;
    double best_rate = 0;
    for (size_t k = 0; k < o->n; k++) {
        if (o->at[k].bytes <= o->at[from].bytes || o->at[k].error >= o->at[from].error) continue;
        double rate = (o->at[from].error - o->at[k].error) / (double)(o->at[k].bytes - o->at[from].bytes);
        bool longer = best != SIZE_MAX && rate == best_rate && o->at[k].bytes > o->at[best].bytes;
        if (rate > best_rate || longer) best = k, best_rate = rate;
    }
    return best;
}

struct search {
    const struct offers *of;
    size_t n;
    uint64_t budget;
    double lambda;      /* price: error per byte */
    size_t *best;       /* [n] the best choice so far */
    double error;       /* of best */
    double *rest;       /* [n + 1] least error + lambda bytes of items i and later */
    uint64_t *rest_min; /* [n + 1] fewest bytes of items i and later */
    bool thinned;
    double least_lost; /* lowest bound of a state dropped by thinning */
};

static double total_error(const struct search *s, const size_t *choice) {
    double sum = 0;
    for (size_t i = 0; i < s->n; i++) sum += s->of[i].at[choice[i]].error;
    return sum;
}

/* Takes the steps that fit; sets lambda to the rate of the first that does not. */
static int start_greedily(struct search *s, struct err *e) {
    size_t n_steps = 0, most = 0;
    uint64_t bytes = allocate_least(s->of, s->n);
    for (size_t i = 0; i < s->n; i++) most += s->of[i].n;
    struct step *steps = mem_array(most, sizeof *steps, e);
    bool *stuck = steps ? mem_array(s->n, sizeof *stuck, e) : NULL;
    for (size_t i = 0; stuck && i < s->n; i++) {
        size_t from = s->best[i] = smallest(&s->of[i]), to;
        for (size_t order = 0; (to = next_corner(&s->of[i], from)) != SIZE_MAX; order++, from = to)
            steps[n_steps++] = (struct step){i, order, to, s->of[i].at[to].bytes - s->of[i].at[from].bytes,
                                             s->of[i].at[from].error - s->of[i].at[to].error};
    }
    if (stuck) qsort(steps, n_steps, sizeof *steps, by_rate);
    for (size_t i = 0; stuck && i < n_steps; i++) {
        const struct step *t = &steps[i];
        bool fits = t->bytes <= s->budget - bytes;
        if (!fits && s->lambda == 0) s->lambda = t->gain / (double)t->bytes;
        if (!fits) stuck[t->item] = true;
        if (stuck[t->item]) continue;
        s->best[t->item] = t->to;
        bytes += t->bytes;
    }
    s->error = total_error(s, s->best);
    mem_free(steps);
    mem_free(stuck);
    return stuck ? 0 : e->code;
}

/* ---- dynamic programming over undominated states ----------------------------------------------------------------- */

struct state {
    uint64_t bytes;
    double error;
    uint32_t parent, choice; /* index in the previous item's list; offer of this item */
};
struct origin {
    uint32_t parent, choice;
};

static int by_bytes(const void *a, const void *b) {
    const struct state *s = a, *t = b;
    if (s->bytes != t->bytes) return s->bytes < t->bytes ? -1 : 1;
    if (s->error != t->error) return s->error < t->error ? -1 : 1;
    if (s->parent != t->parent) return s->parent < t->parent ? -1 : 1;
    return s->choice < t->choice ? -1 : s->choice > t->choice;
}

/* Lower bound on any completion of this state: Lagrangian bound at price lambda. */
static double bound_of(const struct search *s, const struct state *t, size_t next) {
    return t->error + s->rest[next] - s->lambda * (double)(s->budget - t->bytes);
}

/* Extends all states by item i; keeps those that can still win, sorted and undominated. */
static size_t extend(const struct search *s, size_t i, const struct state *from, size_t n, struct state *to) {
    size_t m = 0, kept = 0;
    for (size_t p = 0; p < n; p++)
        for (size_t k = 0; k < s->of[i].n; k++) {
            struct state t = {from[p].bytes + s->of[i].at[k].bytes, from[p].error + s->of[i].at[k].error, (uint32_t)p,
                              (uint32_t)k};
            if (t.bytes + s->rest_min[i + 1] > s->budget || bound_of(s, &t, i + 1) >= s->error) continue;
            to[m++] = t;
        }
    qsort(to, m, sizeof *to, by_bytes);
    for (size_t j = 0; j < m; j++)
        if (!kept || to[j].error < to[kept - 1].error) to[kept++] = to[j];
    return kept;
}

/* Keeps the state with the lowest bound in each interval of bytes. */
static size_t thin(struct search *s, size_t next, struct state *t, size_t n) {
    if (n <= ALLOCATE_STATES) return n;
    uint64_t first = t[0].bytes, share = (t[n - 1].bytes - first) / ALLOCATE_STATES + 1;
    size_t kept = 0;
    for (size_t j = 0; j < n; j++) {
        bool same = kept && (t[j].bytes - first) / share == (t[kept - 1].bytes - first) / share;
        if (!same) {
            t[kept++] = t[j];
            continue;
        }
        double a = bound_of(s, &t[j], next), b = bound_of(s, &t[kept - 1], next), lost = a < b ? b : a;
        if (!s->thinned || lost < s->least_lost) s->least_lost = lost;
        s->thinned = true;
        if (a < b) t[kept - 1] = t[j];
    }
    return kept;
}

/* Backtracks from the best state of the last list, which is its last. */
static void take_best(struct search *s, struct origin *const *lists, const struct state *last) {
    size_t at = last->parent;
    s->best[s->n - 1] = last->choice;
    for (size_t i = s->n - 1; i-- > 0;) {
        const struct origin *o = &lists[i][at];
        s->best[i] = o->choice;
        at = o->parent;
    }
    s->error = total_error(s, s->best);
}

static int search_exactly(struct search *s, struct err *e) {
    size_t most = 1, n = 1;
    for (size_t i = 0; i < s->n; i++)
        if (s->of[i].n > most) most = s->of[i].n;
    struct arena a = {0};
    struct origin **lists = arena_array(&a, s->n, sizeof(struct origin *), e);
    struct state *now = lists ? mem_array(most * (ALLOCATE_STATES + 1), sizeof *now, e) : NULL;
    struct state *next = now ? mem_array(most * (ALLOCATE_STATES + 1), sizeof *next, e) : NULL;
    int rc = next ? 0 : e->code;
    if (next) now[0] = (struct state){0};
    for (size_t i = 0; !rc && i < s->n && n; i++) {
        n = thin(s, i + 1, next, extend(s, i, now, n, next));
        lists[i] = arena_array(&a, n ? n : 1, sizeof *lists[i], e);
        if (!lists[i]) rc = e->code;
        for (size_t j = 0; !rc && j < n; j++) lists[i][j] = (struct origin){next[j].parent, next[j].choice};
        struct state *t = now;
        now = next;
        next = t;
    }
    if (!rc && n && now[n - 1].error < s->error) take_best(s, lists, &now[n - 1]);
    mem_free(now);
    mem_free(next);
    arena_release(&a);
    return rc;
}

/* Bounds for the remaining items, computed from the end. */
static void bound_rest(struct search *s) {
    for (size_t i = s->n; i-- > 0;) {
        const struct offers *o = &s->of[i];
        double least = o->at[0].error + s->lambda * (double)o->at[0].bytes;
        for (size_t k = 1; k < o->n; k++) {
            double cost = o->at[k].error + s->lambda * (double)o->at[k].bytes;
            if (cost < least) least = cost;
        }
        s->rest[i] = s->rest[i + 1] + least;
        s->rest_min[i] = s->rest_min[i + 1] + o->at[smallest(o)].bytes;
    }
}

int allocate(const struct offers *of, size_t n, uint64_t budget, size_t *chosen, struct allocation *out,
             struct err *e) {
    struct search s = {.of = of, .n = n, .budget = budget, .best = chosen};
    *out = (struct allocation){0};
    s.rest = mem_array(n + 1, sizeof *s.rest, e);
    s.rest_min = s.rest ? mem_array(n + 1, sizeof *s.rest_min, e) : NULL;
    int rc = s.rest_min ? 0 : e->code;
    if (!rc && n) rc = start_greedily(&s, e);
    if (!rc) bound_rest(&s);
    if (!rc && n && s.lambda > 0) rc = search_exactly(&s, e); /* otherwise every item already has its least error */
    for (size_t i = 0; !rc && i < n; i++) out->bytes += of[i].at[chosen[i]].bytes;
    out->error = s.error;
    out->bound = s.thinned && s.least_lost < s.error ? s.least_lost : s.error;
    mem_free(s.rest);
    mem_free(s.rest_min);
    return rc;
}
