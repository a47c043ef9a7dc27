/* Which layers can be missed, by the true divergence of the model without them. */
#include <math.h>
#include <string.h>

#include "lib/judge/judge.h"
#include "lib/prune/prune.h"

struct search {
    const struct prune_divergence *o;
    struct judge j;
    uint64_t done;
};

/* The mean divergence without the i-th layer that is kept. */
static int try_without(struct search *s, size_t i, double *kl, struct err *e) {
    struct judge *j = &s->j;
    int rc = judge_try(j, i, j->layers + i + 1, j->n - i - 1, NULL, kl, e);
    if (!rc && s->o->progress) s->o->progress(s->o->progress_ctx, (uint32_t)++s->done);
    if (!rc && !isfinite(*kl)) return err_set(e, ERR_DATA, "without layer %u the divergence is %g", j->layers[i], *kl);
    return rc;
}

static int drop_one(struct search *s, uint32_t *layer, double *kl, struct err *e) {
    struct judge *j = &s->j;
    size_t best = 0;
    *kl = INFINITY;
    for (size_t i = 0; i < j->n; i++) {
        double without;
        if (try_without(s, i, &without, e)) return e->code;
        if (without < *kl) *kl = without, best = i;
    }
    *layer = j->layers[best];
    memmove(j->layers + best, j->layers + best + 1, (j->n - best - 1) * sizeof *j->layers);
    j->n--;
    return judge_base(j, best, e);
}

int prune_layers_by_divergence(const struct prune_divergence *o, uint32_t n, uint32_t *layers, double *kl,
                               struct err *e) {
    struct search s = {.o = o, .j = {.model = o->model, .scratch = o->scratch, .in = o->in}};
    const struct model_config *c = &o->model->config;
    int rc = model_check_next_token(c, e);
    if (!rc && n >= c->n_layers) rc = err_set(e, ERR_USAGE, "cannot drop %u layers of %u", n, c->n_layers);
    if (!rc) rc = judge_begin(&s.j, e);
    for (uint32_t i = 0; !rc && i < n; i++) rc = drop_one(&s, &layers[i], &kl[i], e);
    judge_release(&s.j);
    return rc;
}
