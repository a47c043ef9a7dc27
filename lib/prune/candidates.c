/* Proposes shapes for a target, to be measured one at a time, and fits the cost model to the measurements. */
#include <math.h>

#include "lib/prune/target.h"

#define DEAR  2    /* factor on the loss of the axes spared in the first proposals */
#define PRIOR 0.05 /* weight of the prior: a factor off by e costs as much as this squared misfit (in logarithms) */
#define FLOOR 1e-12

struct judged {
    struct prune_shape *layers; /* [n] */
    double divergence;
};

struct prune_candidates {
    struct model_config from;
    struct prune_plan plan;
    struct target target;
    struct judged *judged; /* [n_judged], followed by the one to be judged next */
    size_t n_judged, proposals;
    struct arena memory;
};

/* ---- fitting the cost model -------------------------------------------------------------------------------------- */

enum { HEADS, CHANNELS, LAYERS, POWER, FACTORS };

/* x: logarithms of the factors applied to TARGET_COST. */
static struct target_cost cost_of(const double *x) {
    struct target_cost c = TARGET_COST;
    c.heads *= exp(x[HEADS]);
    c.channels *= exp(x[CHANNELS]);
    c.layers *= exp(x[LAYERS]);
    c.power *= exp(x[POWER]);
    return c;
}

static double predicted(const struct prune_candidates *c, const struct prune_shape *layers, const double *x) {
    const struct target_cost cost = cost_of(x);
    double loss = 0;
    for (uint32_t i = 0; i < c->target.n; i++) loss += target_lost(&c->target, &layers[i], i, &cost);
    return log(loss > FLOOR ? loss : FLOOR);
}

/* Squared differences of logarithms, up to a common offset, which is only the unit of the score. */
static double misfit(const struct prune_candidates *c, const double *x) {
    double sum = 0, squares = 0, prior = 0;
    for (size_t i = 0; i < c->n_judged; i++) {
        double y = c->judged[i].divergence, d = log(y > FLOOR ? y : FLOOR) - predicted(c, c->judged[i].layers, x);
        sum += d;
        squares += d * d;
    }
    for (int k = 0; k < FACTORS; k++) prior += x[k] * x[k];
    return squares - sum * sum / (double)c->n_judged + PRIOR * prior;
}

/* Coordinate descent: few variables, and no derivatives needed. */
static void fit(const struct prune_candidates *c, double x[FACTORS]) {
    double best = misfit(c, x);
    for (double step = 0.5; step > 0.01; step /= 2) {
        bool better = true;
        for (int round = 0; better && round < 50; round++) {
            better = false;
            for (int k = 0; k < 2 * FACTORS; k++) {
                double was = x[k / 2], now;
                x[k / 2] += k % 2 ? -step : step;
                now = misfit(c, x);
                if (now < best)
                    best = now, better = true;
                else
                    x[k / 2] = was;
            }
        }
    }
}

/* ---- proposals --------------------------------------------------------------------------------------------------- */

static bool is_new(const struct prune_candidates *c, const struct prune_shape *layers) {
    for (size_t i = 0; i < c->n_judged; i++)
        if (target_same(&c->target, layers, c->judged[i].layers)) return false;
    return true;
}

/* The best unmeasured shape under this cost. */
static int propose(struct prune_candidates *c, const double *x, const struct prune_shape **shape, struct err *e) {
    const struct target_cost cost = cost_of(x);
    struct target *t = &c->target;
    *shape = NULL;
    if (target_search(t, &cost, e)) return e->code;
    for (size_t i = 0; !*shape && i < t->n_best; i++)
        if (is_new(c, t->best[i].layers)) *shape = t->best[i].layers;
    return 0;
}

/* With uneven layers a cost has a single best allocation, so others are found by varying the power: larger is more
 * even. */
static int vary(struct prune_candidates *c, double *x, const struct prune_shape **shape, struct err *e) {
    static const double powers[] = {1, 1.5, 0.75, 2, 0.625, 3, 0.5, 4};
    double power = x[POWER];
    int rc = 0;
    *shape = NULL;
    for (size_t i = 0; !rc && !*shape && i < (c->plan.o->target_uneven ? COUNT_OF(powers) : 1); i++) {
        x[POWER] = power + log(powers[i]);
        rc = propose(c, x, shape, e);
    }
    return rc;
}

int prune_candidates_next(struct prune_candidates *c, const struct prune_shape **shape, struct err *e) {
    /* Which of heads, channels and layers are spared: none; heads; all but layers; all but channels. */
    static const bool spared[][LAYERS + 1] = {{false}, {[HEADS] = true}, {true, true, false}, {true, false, true}};
    double x[FACTORS] = {0};
    int rc = 0;
    *shape = NULL;
    if (c->n_judged == c->target.most) return 0;
    while (!rc && !*shape && c->proposals < COUNT_OF(spared)) {
        const bool *spare = spared[c->proposals++];
        for (int k = 0; k <= LAYERS; k++) x[k] = spare[k] ? log(DEAR) : 0;
        rc = propose(c, x, shape, e);
    }
    for (int k = 0; k <= LAYERS; k++) x[k] = 0;
    if (!rc && !*shape && c->n_judged > 0) {
        fit(c, x);
        rc = vary(c, x, shape, e);
    }
    if (rc || !*shape) return rc ? rc : c->n_judged ? 0 : target_none(&c->target, e);
    struct judged *j = &c->judged[c->n_judged];
    j->layers = arena_array(&c->memory, c->target.n, sizeof *j->layers, e);
    if (!j->layers) return e->code;
    memcpy(j->layers, *shape, c->target.n * sizeof *j->layers);
    *shape = j->layers;
    return 0;
}

void prune_candidates_judged(struct prune_candidates *c, double divergence) {
    c->judged[c->n_judged++].divergence = divergence;
}

const struct prune_shape *prune_candidates_best(const struct prune_candidates *c) {
    const struct judged *best = NULL;
    for (size_t i = 0; i < c->n_judged; i++)
        if (!best || c->judged[i].divergence < best->divergence) best = &c->judged[i];
    return best ? best->layers : NULL;
}

/* ---- lifecycle --------------------------------------------------------------------------------------------------- */

static int begin(struct prune_candidates *c, const struct model *m, const struct prune_options *o, size_t most,
                 struct err *e) {
    struct model_head head = {.config = m->config, .vocab = m->vocab_bytes, .vocab_digest = m->vocab_digest};
    int rc = model_config_copy(&c->from, &m->config, &c->memory, e);
    if (!rc) rc = prune_plan_begin(&c->plan, &head, o, e);
    c->plan.from = &c->from;
    c->judged = rc ? NULL : arena_array(&c->memory, most, sizeof *c->judged, e);
    if (!rc && !c->judged) rc = e->code;
    return rc ? rc : target_begin(&c->target, &c->plan, most, e);
}

int prune_candidates_new(struct prune_candidates **out, const struct model *m, const struct prune_options *o,
                         size_t most, struct err *e) {
    struct prune_candidates *c = mem_zalloc(sizeof *c, e);
    if (!c) return e->code;
    int rc = begin(c, m, o, most, e);
    if (rc)
        prune_candidates_free(c);
    else
        *out = c;
    return rc;
}

void prune_candidates_free(struct prune_candidates *c) {
    if (!c) return;
    prune_plan_release(&c->plan);
    arena_release(&c->memory);
    mem_free(c);
}
