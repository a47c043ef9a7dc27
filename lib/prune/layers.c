/* Chooses which layers to remove: by divergence or block influence, by the angle between states, or by name. */
#include "lib/prune/prune_internal.h"

#include <math.h>

/* A layer whose input and output widths differ cannot be removed: the next layer could not read its input. */
static bool changes_width(const struct model_config *c, uint32_t layer) {
    return model_axis_size(c, AXIS_INPUT, layer) != c->hidden;
}

/* Gromov et al. 2024, section 3.2: the block of n_go layers that rotates the residual stream least. */
static int drop_run(const struct prune_plan *p, uint32_t n_go, unsigned char *gone, struct err *e) {
    uint32_t n = p->from->n_layers, best = n;
    double least = INFINITY;
    for (uint32_t first = 0; first + n_go <= n; first++) {
        double angle = stats_angular(p->o->stats, first, first + n_go - 1);
        bool fits = !changes_width(p->from, first);
        if (fits && angle < least) least = angle, best = first;
    }
    if (best == n)
        return err_set(e, ERR_DATA,
                       "these statistics do not allow removing %u consecutive layers: are they from an older version?",
                       n_go);
    memset(gone + best, 1, n_go);
    return 0;
}

/* What the model loses without this layer: the measured divergence, or its block influence (ShortGPT, Men et al. 2024,
 * section 3). */
static double layer_loss(const struct prune_plan *p, uint32_t layer) {
    if (changes_width(p->from, layer)) return INFINITY;
    return p->o->layer_divergence ? p->o->layer_divergence[layer] : stats_influence(p->o->stats, layer);
}

static int drop_least(const struct prune_plan *p, uint32_t n_go, unsigned char *gone, struct err *e) {
    uint32_t n = p->from->n_layers;
    struct arena a = {0};
    double *score = arena_array(&a, n, sizeof *score, e);
    uint32_t *go = score ? arena_array(&a, n_go, sizeof *go, e) : NULL;
    int rc = go ? 0 : e->code;
    for (uint32_t i = 0; !rc && i < n; i++) score[i] = -layer_loss(p, i);
    if (!rc) rc = prune_choose(score, n, n_go, go, &a, e);
    for (uint32_t i = 0; !rc && i < n_go; i++) gone[go[i]] = 1;
    arena_release(&a);
    return rc;
}

int prune_drop_layers(const struct prune_plan *p, uint32_t keep, unsigned char *gone, struct err *e) {
    uint32_t n = p->from->n_layers;
    if (keep == n) return 0;
    if (keep > n) return err_set(e, ERR_USAGE, "cannot keep %u layers: the model has %u", keep, n);
    if (!p->o->stats && !p->o->layer_divergence)
        return err_set(e, ERR_USAGE,
                       "choosing layers by block influence needs --stats (from rill calibrate); or name the layers "
                       "with --drop-layers");
    bool by_angle = !p->o->layer_divergence && p->o->layer_score == PRUNE_LAYERS_BY_ANGLE;
    return by_angle ? drop_run(p, n - keep, gone, e) : drop_least(p, n - keep, gone, e);
}

int prune_layers_parse(const char *text, uint32_t *out, size_t *n, struct err *e) {
    *n = 0;
    for (const char *s = text; *s;) {
        char item[32];
        size_t len = strcspn(s, ",");
        if (len == 0 || len >= sizeof item) return err_set(e, ERR_USAGE, "'%s' is not a list of layers", text);
        memcpy(item, s, len);
        item[len] = 0;
        char *dash = strchr(item, '-');
        uint64_t first, last;
        if (dash) *dash++ = 0;
        if (!parse_u64(item, &first) || !parse_u64(dash ? dash : item, &last) || first > last ||
            last >= MODEL_MAX_LAYERS)
            return err_set(e, ERR_USAGE, "'%s' is not a list of layers", text);
        for (uint64_t l = first; l <= last && *n < MODEL_MAX_LAYERS; l++) out[(*n)++] = (uint32_t)l;
        s += len;
        if (*s == ',' && !*++s) return err_set(e, ERR_USAGE, "'%s' ends in a comma", text);
    }
    return 0;
}

int prune_drop_named(const struct prune_plan *p, unsigned char *gone, struct err *e) {
    for (size_t i = 0; i < p->o->n_drop_layers; i++) {
        uint32_t l = p->o->drop_layers[i];
        if (l >= p->from->n_layers)
            return err_set(e, ERR_USAGE, "cannot drop layer %u: the model has layers 0 to %u", l,
                           p->from->n_layers - 1);
        if (gone[l]) return err_set(e, ERR_USAGE, "layer %u is dropped twice", l);
        if (changes_width(p->from, l))
            return err_set(e, ERR_USAGE, "cannot drop layer %u: it makes rows of %u from rows of %llu", l,
                           p->from->hidden, (unsigned long long)model_axis_size(p->from, AXIS_INPUT, l));
        gone[l] = 1;
    }
    return 0;
}
