/* Which layers can be missed, by the true divergence of the model without them. */
#include <math.h>
#include <string.h>

#include "lib/prune/prune_internal.h"

#define TRIES 8 /* layers that are tried for each that goes, but for the first */

struct search {
    const struct prune_divergence *o;
    struct prune_judge *judge;
    size_t positions, hidden;
    uint32_t *kept; /* layers, ascending */
    uint32_t n_kept;
    float *prefix; /* [n_layers + 1][positions][hidden]: what comes into each layer that is kept, and out of the last */
    float *states; /* [positions][hidden] */
    double *cost;  /* [n_layers], beside kept: what the layer added to the divergence when it was last tried */
    double kl;     /* without those that went */
    struct arena memory;
};

static float *prefix_at(const struct search *s, size_t i) {
    return s->prefix + i * s->positions * s->hidden;
}

/* States into each layer from the i-th that is kept on. */
static int run_base(struct search *s, size_t i, struct err *e) {
    const struct prune_divergence *o = s->o;
    int rc = 0;
    for (; !rc && i < s->n_kept; i++)
        rc = model_infer_layers(o->model, o->scratch, o->in, prefix_at(s, i), &s->kept[i], 1, prefix_at(s, i + 1), e);
    return rc;
}

/* The mean divergence without the i-th layer that is kept. */
static int try_without(struct search *s, size_t i, double *kl, struct err *e) {
    const struct prune_divergence *o = s->o;
    int rc = model_infer_layers(o->model, o->scratch, o->in, prefix_at(s, i), s->kept + i + 1, s->n_kept - i - 1,
                                s->states, e);
    if (!rc) rc = model_infer_head(o->model, o->scratch, o->in, s->states, prune_judge_rows, s->judge, e);
    if (!rc && prune_judge_mean(s->judge, kl, e)) rc = err_prefix(e, "without layer %u", s->kept[i]);
    if (!rc) s->cost[i] = *kl - s->kl;
    return rc;
}

/* The layer that cost least when it was last tried, of those that have not been tried since; SIZE_MAX: all have. */
static size_t next_to_try(const struct search *s, const unsigned char *tried) {
    size_t best = SIZE_MAX;
    for (size_t i = 0; i < s->n_kept; i++)
        if (!tried[i] && (best == SIZE_MAX || s->cost[i] < s->cost[best])) best = i;
    return best;
}

/* Lazily: a layer that costs more than the best so far when it was last tried is not tried again, nor more than so many. */
static int drop_one(struct search *s, size_t most, uint32_t *layer, double *kl, struct err *e) {
    unsigned char tried[MODEL_MAX_LAYERS] = {0};
    size_t best = SIZE_MAX, i;
    *kl = INFINITY;
    for (size_t n = 0; n < most && (i = next_to_try(s, tried)) != SIZE_MAX; n++) {
        double without;
        if (best != SIZE_MAX && s->kl + s->cost[i] >= *kl) break;
        if (try_without(s, i, &without, e)) return e->code;
        tried[i] = 1;
        if (without < *kl) *kl = without, best = i;
    }
    *layer = s->kept[best];
    s->kl = *kl;
    s->n_kept--;
    memmove(s->kept + best, s->kept + best + 1, (s->n_kept - best) * sizeof *s->kept);
    memmove(s->cost + best, s->cost + best + 1, (s->n_kept - best) * sizeof *s->cost);
    return run_base(s, best, e);
}

static int allocate(struct search *s, struct err *e) {
    const struct model_config *c = &s->o->model->config;
    uint64_t floats;
    s->positions = s->o->in->n_positions, s->hidden = c->hidden;
    if (!u64_mul((uint64_t)s->positions * s->hidden, c->n_layers + 1, &floats))
        return err_set(e, ERR_USAGE, "states of %zu positions are too large", s->positions);
    s->kept = arena_array(&s->memory, c->n_layers, sizeof *s->kept, e);
    s->cost = s->kept ? arena_array(&s->memory, c->n_layers, sizeof *s->cost, e) : NULL;
    s->prefix = s->cost ? mem_array(floats, sizeof *s->prefix, e) : NULL;
    s->states = s->prefix ? mem_array(s->positions, s->hidden * sizeof *s->states, e) : NULL;
    if (!s->states) return err_prefix(e, "states of %zu positions", s->positions);
    s->n_kept = c->n_layers;
    for (uint32_t i = 0; i < c->n_layers; i++) s->kept[i] = i;
    return 0;
}

int prune_layers_by_divergence(const struct prune_divergence *o, uint32_t n, uint32_t *layers, double *kl,
                               struct err *e) {
    struct search s = {.o = o};
    const struct model_config *c = &o->model->config;
    int rc = n < c->n_layers ? 0 : err_set(e, ERR_USAGE, "cannot drop %u layers of %u", n, c->n_layers);
    if (!rc) rc = prune_judge_new(&s.judge, o->model, o->scratch, o->in, e);
    if (!rc) rc = allocate(&s, e);
    if (!rc) rc = model_infer_layers(o->model, o->scratch, o->in, NULL, NULL, 0, s.prefix, e);
    if (!rc) rc = run_base(&s, 0, e);
    for (uint32_t i = 0; !rc && i < n; i++) {
        rc = drop_one(&s, i ? TRIES : c->n_layers, &layers[i], &kl[i], e);
        if (!rc && o->progress) o->progress(o->progress_ctx, i + 1);
    }
    mem_free(s.prefix);
    mem_free(s.states);
    prune_judge_free(s.judge);
    arena_release(&s.memory);
    return rc;
}
