/* Distributes sparsity over matrices by an evolutionary search on the measured divergence. */
#include <limits.h>
#include <math.h>
#include <string.h>

#include "lib/judge/judge.h"
#include "lib/prune/prune_internal.h"

#define MOST_SHARE 0.99 /* of a matrix */
#define SURVIVORS  4    /* the best 1 / SURVIVORS of the offspring on part of the sequences are judged on all */
#define SWITCHES   3    /* at most, per mutation */
#define DOUBLINGS  3    /* a switch moves up to 2^(DOUBLINGS - 1) steps */
#define FINENESS   16   /* steps in the smallest matrix */
#define TRIES      64   /* to find a mutation that is new */
#define NO_LEVEL   INT_MIN

/* A matrix whose share of zeros is `level` steps above the uniform share. */
struct unit {
    struct model_param *p;
    float *was;   /* [rows][cols] */
    float *norms; /* [cols]; NULL: unknown */
    size_t rows, cols;
    int lowest, highest; /* levels */
};

struct candidate {
    int *level; /* [units]; they sum to 0 */
    double kl;
};

struct search {
    const struct prune_search *o;
    struct judge j;
    struct unit *units; /* in stream order */
    size_t n;
    uint64_t step; /* weights */
    int *now;      /* [units] levels of the weights currently in the model; NO_LEVEL: dense */
    struct candidate parent, *offspring;
    uint64_t tried;
    struct rng rng;
    struct buf scratch; /* for prune_mask */
    struct arena memory;
};

/* Whether masks are Wanda's. */
static bool by_norms(const struct prune_search *o) {
    return o->stats || o->squares.mean;
}

static uint32_t layer_of(const struct search *s, size_t unit) {
    return s->units[unit].p->slot.layer;
}

static double share_at(const struct search *s, const struct unit *u, int level) {
    double share = s->o->share + (double)level * (double)s->step / (double)u->p->n;
    return share * (double)u->p->n < 0.5 ? 0 : share;
}

/* ---- judging candidates ------------------------------------------------------------------------------------------ */

static int apply(struct search *s, const int *level, struct err *e) {
    for (size_t i = 0; i < s->n; i++) {
        struct unit *u = &s->units[i];
        if (s->now[i] == level[i]) continue;
        struct prune_matrix w = {model_host_value(u->p), u->rows, u->cols, u->norms};
        memcpy(w.x, u->was, u->p->n * sizeof *w.x);
        struct prune_sparsity share = {.share = share_at(s, u, level[i])};
        if (prune_mask(&w, share, by_norms(s->o) ? PRUNE_WANDA : PRUNE_MAGNITUDE, &s->scratch, e)) return e->code;
        s->now[i] = level[i];
    }
    return 0;
}

/* The first layer in which the levels differ; the number of layers if none does. */
static uint32_t first_change(const struct search *s, const int *a, const int *b) {
    for (size_t i = 0; i < s->n; i++)
        if (a[i] != b[i]) return layer_of(s, i);
    return s->j.n;
}

static int judge(struct search *s, struct candidate *c, const struct judge_part *part, struct err *e) {
    uint32_t first = first_change(s, c->level, s->parent.level);
    int rc = apply(s, c->level, e);
    if (!rc) rc = judge_try(&s->j, first, s->j.layers + first, s->j.n - first, part, &c->kl, e);
    if (!isfinite(c->kl)) c->kl = INFINITY;
    s->tried++;
    return rc;
}

static int adopt(struct search *s, const struct candidate *c, struct err *e) {
    uint32_t first = first_change(s, c->level, s->parent.level);
    memcpy(s->parent.level, c->level, s->n * sizeof *c->level);
    s->parent.kl = c->kl;
    int rc = apply(s, s->parent.level, e);
    return rc ? rc : judge_base(&s->j, first, e);
}

/* ---- mutation ---------------------------------------------------------------------------------------------------- */

/* Draws a random unit other than `but` whose level may change by `by`; false: there is none. */
static bool draw_unit(struct search *s, const int *level, int by, size_t but, size_t *out) {
    size_t n = 0;
    for (int pass = 0; pass < 2; pass++) {
        size_t pick = pass ? (size_t)rng_below(&s->rng, n) : 0, seen = 0;
        for (size_t i = 0; i < s->n; i++) {
            const struct unit *u = &s->units[i];
            if (i == but || level[i] + by < u->lowest || level[i] + by > u->highest) continue;
            if (pass && seen == pick) return *out = i, true;
            seen++;
        }
        if (!seen) return false;
        n = seen;
    }
    return false;
}

/* Level switches (EvoPress, algorithm 1): zeros move from one matrix to another, so the total is constant. */
static void mutate(struct search *s, int *level) {
    uint64_t a = rng_below(&s->rng, SWITCHES), b = rng_below(&s->rng, SWITCHES), n = (a < b ? a : b) + 1;
    for (uint64_t i = 0; i < n; i++) {
        int by = 1 << rng_below(&s->rng, DOUBLINGS);
        size_t more, less;
        if (!draw_unit(s, level, by, s->n, &more) || !draw_unit(s, level, -by, more, &less)) continue;
        level[more] += by;
        level[less] -= by;
    }
}

/* Makes a child different from the parent and from the `before` children made so far. */
static bool make_child(struct search *s, size_t before) {
    int *level = s->offspring[before].level;
    for (int try = 0; try < TRIES; try++) {
        memcpy(level, s->parent.level, s->n * sizeof *level);
        mutate(s, level);
        bool known = !memcmp(level, s->parent.level, s->n * sizeof *level);
        for (size_t i = 0; !known && i < before; i++)
            known = !memcmp(level, s->offspring[i].level, s->n * sizeof *level);
        if (!known) return true;
    }
    return false;
}

/* ---- generations ------------------------------------------------------------------------------------------------- */

/* Moves the `best` of n candidates to the front, ascending; ties keep their order. */
static void take_best(struct candidate *c, size_t n, size_t best) {
    for (size_t i = 0; i < best; i++) {
        size_t least = i;
        for (size_t k = i + 1; k < n; k++)
            if (c[k].kl < c[least].kl) least = k;
        struct candidate first = c[least];
        memmove(c + i + 1, c + i, (least - i) * sizeof *c);
        c[i] = first;
    }
}

static int generation(struct search *s, uint64_t number, struct err *e) {
    struct judge_part part = judge_part_at(&s->j, number);
    bool in_parts = judge_parts(&s->j) > 1;
    size_t n = 0;
    int rc = 0;
    while (n < s->o->offspring && make_child(s, n)) n++;
    for (size_t i = 0; !rc && i < n; i++) rc = judge(s, &s->offspring[i], in_parts ? &part : NULL, e);
    size_t left = (n + SURVIVORS - 1) / SURVIVORS;
    take_best(s->offspring, n, left);
    for (size_t i = 0; !rc && in_parts && i < left; i++) rc = judge(s, &s->offspring[i], NULL, e);
    take_best(s->offspring, left, left ? 1 : 0);
    if (!rc && left && s->offspring[0].kl < s->parent.kl) rc = adopt(s, &s->offspring[0], e);
    if (!rc && s->o->progress) s->o->progress(s->o->progress_ctx, (uint32_t)number + 1);
    return rc;
}

/* ---- setup ------------------------------------------------------------------------------------------------------- */

static uint64_t common_multiple(uint64_t a, uint64_t b) {
    uint64_t x = a, y = b;
    while (y) {
        uint64_t rest = x % y;
        x = y, y = rest;
    }
    return a / x * b;
}

/* A step is a whole number of rows unless that is too coarse: then row-wise masks keep the total exactly. */
static void choose_step(struct search *s) {
    uint64_t smallest = UINT64_MAX, rows = 1;
    for (size_t i = 0; i < s->n; i++) {
        if (s->units[i].p->n < smallest) smallest = s->units[i].p->n;
        if (rows <= smallest) rows = common_multiple(rows, s->units[i].rows);
    }
    uint64_t fine = smallest / FINENESS ? smallest / FINENESS : 1;
    s->step = rows > smallest / 4 ? fine : rows >= fine ? rows : fine / rows * rows;
    for (size_t i = 0; i < s->n; i++) {
        struct unit *u = &s->units[i];
        double level = (double)u->p->n / (double)s->step, most = fmax(MOST_SHARE, s->o->share);
        u->lowest = -(int)floor(s->o->share * level + 1e-9);
        u->highest = (int)floor((most - s->o->share) * level + 1e-9);
    }
}

/* The levels nearest to these shares that keep the total: the rounding remainder is fixed one step at a time, where it
 * hurts least. */
static void levels_of(const struct search *s, const double *share, int *level) {
    long sum = 0;
    for (size_t i = 0; i < s->n; i++) {
        const struct unit *u = &s->units[i];
        size_t slot = (size_t)(u->p - s->o->model->params);
        double x = (share[slot] - s->o->share) * (double)u->p->n / (double)s->step;
        level[i] = (int)fmin(fmax(round(x), u->lowest), u->highest);
        sum += level[i];
    }
    while (sum) {
        int by = sum > 0 ? -1 : 1;
        size_t best = s->n;
        double least = INFINITY;
        for (size_t i = 0; i < s->n; i++) {
            const struct unit *u = &s->units[i];
            if (level[i] + by < u->lowest || level[i] + by > u->highest) continue;
            double off = fabs(share_at(s, u, level[i] + by) - share[u->p - s->o->model->params]);
            if (off < least) least = off, best = i;
        }
        if (best == s->n) break; /* unreachable: all levels 0 are in range and sum to 0 */
        level[best] += by;
        sum += by;
    }
}

static int add_unit(struct search *s, struct model_param *p, struct err *e) {
    struct unit *u = &s->units[s->n];
    *u = (struct unit){.p = p, .rows = p->desc.dims[0], .cols = p->desc.dims[1]};
    u->was = mem_array(p->n, sizeof *u->was, e);
    if (!u->was) return e->code;
    s->n++;
    memcpy(u->was, model_host_value(p), p->n * sizeof *u->was);
    if (!by_norms(s->o)) return 0;
    bool found;
    double *norms = mem_array(u->cols, sizeof *norms, e);
    int rc =
        norms ? prune_input_norms(s->o->stats, &s->o->squares, &s->o->model->config, p->slot, u->cols, norms, &found, e)
              : e->code;
    if (!rc && found) u->norms = arena_array(&s->memory, u->cols, sizeof *u->norms, e);
    if (!rc && found && !u->norms) rc = e->code;
    for (size_t i = 0; u->norms && i < u->cols; i++) u->norms[i] = (float)norms[i];
    mem_free(norms);
    return rc;
}

static int collect_units(struct search *s, struct err *e) {
    struct model *m = s->o->model;
    s->units = arena_array(&s->memory, m->n_params, sizeof *s->units, e);
    int rc = s->units ? 0 : e->code;
    for (size_t i = 0; !rc && i < m->n_params; i++) {
        enum model_role role = m->params[i].slot.role;
        if (model_role_in_layer(role) && model_role_is_matrix(role)) rc = add_unit(s, &m->params[i], e);
    }
    if (!rc && !s->n) rc = err_set(e, ERR_USAGE, "this model has no matrix in a layer");
    if (rc) return rc;
    choose_step(s);
    s->now = arena_array(&s->memory, s->n, sizeof *s->now, e);
    s->parent.level = s->now ? arena_array(&s->memory, s->n, sizeof *s->now, e) : NULL;
    s->offspring = s->parent.level ? arena_array(&s->memory, s->o->offspring, sizeof *s->offspring, e) : NULL;
    if (!s->offspring) return e->code;
    for (size_t i = 0; i < s->n; i++) s->now[i] = NO_LEVEL;
    for (uint64_t i = 0; i < s->o->offspring; i++)
        if (!(s->offspring[i].level = arena_array(&s->memory, s->n, sizeof *s->now, e))) return e->code;
    return 0;
}

/* Starts from the uniform share or, if better, the caller's starting point. */
static int begin(struct search *s, struct prune_allocation *out, struct err *e) {
    struct candidate *first = &s->offspring[0];
    int rc = apply(s, s->parent.level, e);
    if (!rc) rc = judge_base(&s->j, 0, e);
    if (!rc) rc = judge(s, &s->parent, NULL, e);
    out->uniform_kl = out->begin_kl = s->parent.kl;
    if (rc || !s->o->begin) return rc;
    levels_of(s, s->o->begin->share, first->level);
    rc = judge(s, first, NULL, e);
    out->begin_kl = first->kl;
    return rc || first->kl >= s->parent.kl ? rc : adopt(s, first, e);
}

static int put_result(const struct search *s, struct prune_allocation *out, struct err *e) {
    const struct model *m = s->o->model;
    out->n = m->n_params;
    out->share = arena_array(&out->memory, out->n, sizeof *out->share, e);
    if (!out->share) return e->code;
    for (size_t i = 0; i < s->n; i++)
        out->share[s->units[i].p - m->params] = share_at(s, &s->units[i], s->parent.level[i]);
    out->kl = s->parent.kl;
    out->tried = s->tried;
    return 0;
}

int prune_allocate_search(const struct prune_search *o, struct prune_allocation *out, struct err *e) {
    struct search s = {
        .o = o, .j = {.model = o->model, .scratch = o->scratch, .in = o->in}, .rng = rng_init(o->seed, 0)};
    int rc = o->stats ? stats_check(o->stats, &o->model->config, o->model->vocab_digest, e) : 0;
    if (!rc) rc = judge_begin(&s.j, e);
    if (!rc) rc = collect_units(&s, e);
    if (!rc) rc = begin(&s, out, e);
    for (uint64_t i = 0; !rc && i < o->generations; i++) rc = generation(&s, i, e);
    if (!rc) rc = put_result(&s, out, e);
    for (size_t i = 0; i < s.n; i++) {
        memcpy(model_host_value(s.units[i].p), s.units[i].was, s.units[i].p->n * sizeof(float));
        mem_free(s.units[i].was);
    }
    judge_release(&s.j);
    buf_release(&s.scratch);
    arena_release(&s.memory);
    return rc;
}
