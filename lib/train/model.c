/* Adds the parameters of a model to a set: its own, or those of adapters. */
#include <fnmatch.h>
#include <stdio.h>
#include <string.h>

#include "lib/train/train_internal.h"

/* ---- adapters ---------------------------------------------------------------------------------------------------- */

static int add_part(struct param_set *s, const struct model_param *p, bool second, struct err *e) {
    struct model_adapter *d = p->adapter;
    char name[TENSOR_MAX_NAME + 1];
    snprintf(name, sizeof name, "%.1000s.lora_%c", p->desc.name, second ? 'b' : 'a');
    struct param part = {.name = name,
                         .value = second ? d->b : d->a,
                         .grad = second ? d->b_grad : d->a_grad,
                         .grad_begun = second ? &d->b_begun : &d->a_begun,
                         .rows = second ? p->desc.dims[0] : d->rank,
                         .cols = second ? d->rank : p->desc.dims[1],
                         .decays = true};
    if (!param_set_freezes(s, name)) return param_set_add(s, &part, e);
    struct kernel_array *grad = second ? &d->b_grad : &d->a_grad; /* frozen: needs no gradient */
    kernel_free(s->device, *grad);
    *grad = kernel_none(DT_F32);
    return 0;
}

static int add_adapters(struct param_set *s, struct model *m, struct err *e) {
    const struct train_lora *l = &s->o.lora;
    size_t before = s->n;
    s->adapted = m;
    for (size_t i = 0; i < m->n_params; i++) {
        struct model_param *p = &m->params[i];
        const struct model_role_info *role = model_role_info(p->slot.role);
        /* a matrix whose input is not a point of the graph (recurrent weights) cannot have an adapter */
        bool adapts = role->kind == KIND_MATRIX && role->in_layer && role->input != POINT_COUNT;
        if (!adapts || fnmatch(l->target, p->desc.name, 0) != 0) continue;
        if (lora_attach(s->device, p, l, e) || add_part(s, p, false, e) || add_part(s, p, true, e)) return e->code;
    }
    if (s->n > before) return 0;
    return err_set(e, ERR_USAGE, "--lora: no matrix of a layer that is trained is called \"%s\"", l->target);
}

/* ---- the model's own parameters ---------------------------------------------------------------------------------- */

/* base: for muP; NULL: not used. */
static struct param of_model(const struct model *m, struct model_param *p, const struct model_mup *base) {
    const struct model_role_info *role = model_role_info(p->slot.role);
    uint64_t cols = p->desc.dims[p->desc.rank - 1];
    struct param out = {.name = p->desc.name,
                        .value = p->value,
                        .grad = p->grad,
                        .grad_begun = &p->grad_begun,
                        .rows = p->n / cols,
                        .cols = cols,
                        .matrix = role->kind == KIND_MATRIX && role->in_layer,
                        .decays = role->kind == KIND_MATRIX && p->slot.role != ROLE_EMBED,
                        .maskable = role->kind == KIND_MATRIX};
    if (base) out.factor = model_mup_factor(&m->config, base, p->slot);
    if (base && model_mup_is_hidden(p->slot.role)) {
        out.row_width = model_mup_width(&m->config, base, role->rows, p->slot.layer);
        out.col_width = model_mup_width(&m->config, base, role->cols, p->slot.layer);
    }
    return out;
}

int train_add_model(struct param_set *s, struct model *m, struct err *e) {
    struct model_mup base;
    s->device = m->device;
    if (s->o.quantize.types) s->gridded = m;
    if (s->o.lora.rank) return add_adapters(s, m, e);
    if (s->o.mup && model_mup_get(m->meta, &base, e)) return e->code;
    if (s->o.mup && model_is_factored(&m->config))
        return err_set(e, ERR_USAGE, "--mup: this model has low-rank factors, whose ranks are no widths");
    for (size_t i = 0; i < m->n_params; i++) {
        if (param_set_freezes(s, m->params[i].desc.name)) continue;
        if (model_enable_grad_of(m, i, e)) return e->code;
        struct param p = of_model(m, &m->params[i], s->o.mup ? &base : NULL);
        if (param_set_add(s, &p, e)) return e->code;
    }
    return 0;
}
