/* Measures the divergence of a model without some of its layers, and chooses layers to remove by it. */
#include <math.h>
#include <string.h>

#include "lib/judge/judge.h"
#include "lib/prune/prune.h"

#define TRIES 8 /* layers tried per removal after the first */

struct search {
    struct judge j;
    double *cost; /* [n_layers], parallel to j.layers: increase in divergence when the layer was last tried */
    double kl;    /* without the layers removed so far */
};

/* The mean divergence without the i-th remaining layer. */
static int try_without(struct search *s, size_t i, double *kl, struct err *e) {
    struct judge *j = &s->j;
    int rc = judge_try(j, i, j->layers + i + 1, j->n - i - 1, NULL, kl, e);
    if (!rc && !isfinite(*kl)) return err_set(e, ERR_DATA, "without layer %u the divergence is %g", j->layers[i], *kl);
    s->cost[i] = *kl - s->kl;
    return rc;
}

/* The cheapest untried layer by its last known cost; SIZE_MAX: all have been tried. */
static size_t next_to_try(const struct search *s, const unsigned char *tried) {
    size_t best = SIZE_MAX;
    for (size_t i = 0; i < s->j.n; i++)
        if (!tried[i] && (best == SIZE_MAX || s->cost[i] < s->cost[best])) best = i;
    return best;
}

/* Lazy evaluation: stops at the first layer whose last known cost is no better than the best found, or after `most`
 * trials. */
static int drop_one(struct search *s, size_t most, uint32_t *layer, double *kl, struct err *e) {
    struct judge *j = &s->j;
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
    *layer = j->layers[best];
    s->kl = *kl;
    j->n--;
    memmove(j->layers + best, j->layers + best + 1, (j->n - best) * sizeof *j->layers);
    memmove(s->cost + best, s->cost + best + 1, (j->n - best) * sizeof *s->cost);
    return judge_base(j, best, e);
}

int prune_layers_by_divergence(const struct prune_divergence *o, uint32_t n, uint32_t *layers, double *kl,
                               struct err *e) {
    struct search s = {.j = {.model = o->model, .scratch = o->scratch, .in = o->in}};
    const struct model_config *c = &o->model->config;
    int rc = model_check_next_token(c, e);
    if (!rc && n >= c->n_layers) rc = err_set(e, ERR_USAGE, "cannot drop %u layers of %u", n, c->n_layers);
    if (!rc) s.cost = mem_array(c->n_layers, sizeof *s.cost, e);
    if (!rc) rc = s.cost ? judge_begin(&s.j, e) : e->code;
    for (uint32_t i = 0; !rc && i < n; i++) {
        rc = drop_one(&s, i ? TRIES : c->n_layers, &layers[i], &kl[i], e);
        if (!rc && o->progress) o->progress(o->progress_ctx, i + 1);
    }
    judge_release(&s.j);
    mem_free(s.cost);
    return rc;
}

int prune_layers_alone(const struct prune_divergence *o, double *kl, struct err *e) {
    struct judge j = {.model = o->model, .scratch = o->scratch, .in = o->in};
    int rc = model_check_next_token(&o->model->config, e);
    if (!rc) rc = judge_begin(&j, e);
    for (uint32_t i = 0; !rc && i < j.n; i++) {
        rc = judge_try(&j, i, j.layers + i + 1, j.n - i - 1, NULL, &kl[i], e);
        if (!rc && !isfinite(kl[i])) kl[i] = INFINITY;
        if (!rc && o->progress) o->progress(o->progress_ctx, i + 1);
    }
    judge_release(&j);
    return rc;
}
