/* Groups of parameters by name patterns: learning rates, decay, and what is frozen. */
#include <fnmatch.h>
#include <string.h>

#include "lib/train/train_internal.h"

int train_group_parse(const char *text, struct train_group *g, struct err *e) {
    const char *colon = strrchr(text, ':');
    struct train_key keys[] = {{"lr", .least = 0, .most = 1e6, .number = &g->lr},
                               {"decay", .least = 0, .most = 1, .number = &g->decay}};
    *g = (struct train_group){.lr = 1};
    if (colon && train_glob_copy(g->glob, text, (size_t)(colon - text)) &&
        train_keys_parse(colon + 1, keys, COUNT_OF(keys))) {
        g->has_decay = keys[1].given;
        return 0;
    }
    return err_set(e, ERR_USAGE, "--group \"%.80s\": expected GLOB:lr=FACTOR,decay=W, decay from 0 to 1", text);
}

bool param_set_freezes(struct param_set *s, const char *name) {
    bool frozen = false;
    for (size_t i = 0; i < s->o.n_frozen; i++) {
        if (fnmatch(s->o.frozen[i], name, 0) != 0) continue;
        s->used |= UINT32_C(1) << i;
        frozen = true;
    }
    return frozen;
}

static void join(struct param_set *s, struct param *p) {
    const struct train_options *o = &s->o;
    p->lr = 1;
    p->decay = p->decays ? o->weight_decay : 0;
    p->group = 0;
    for (size_t i = 0; i < o->n_groups && !p->group; i++)
        if (!fnmatch(o->groups[i].glob, p->name, 0)) p->group = i + 1;
    if (p->group) {
        const struct train_group *g = &o->groups[p->group - 1];
        p->lr = g->lr;
        if (g->has_decay) p->decay = g->decay;
    }
    double factor = p->factor > 0 ? p->factor : 1;
    if (p->col_width > 0) factor *= p->optimizer->mup(p); /* keep rate times decay */
    p->lr *= factor;
    p->decay /= factor;
}

/* A pattern that matches nothing is an error. */
static int check_used(const struct param_set *s, struct err *e) {
    for (size_t i = 0; i < s->o.n_frozen; i++)
        if (!(s->used >> i & 1))
            return err_set(e, ERR_USAGE, "--freeze: no parameter is called \"%.80s\"", s->o.frozen[i]);
    for (size_t i = 0; i < s->o.n_groups; i++) {
        size_t k = 0;
        while (k < s->n && s->params[k].group != i + 1) k++;
        if (k == s->n)
            return err_set(e, ERR_USAGE,
                           "--group: no parameter that is trained, and in no group before, is called \"%s\"",
                           s->o.groups[i].glob);
    }
    return 0;
}

int groups_begin(struct param_set *s, struct err *e) {
    for (size_t i = 0; i < s->n; i++) join(s, &s->params[i]);
    return check_used(s, e);
}
