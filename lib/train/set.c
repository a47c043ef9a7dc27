/* A set of parameters: who is in it, and a step of all of them. */
#include <math.h>
#include <string.h>

#include "lib/train/train_internal.h"

void param_set_init(struct param_set *s, const struct train_options *o) {
    *s = (struct param_set){.o = *o};
    if (!s->o.optimizer) s->o.optimizer = &train_optimizers[0];
}

void param_set_release(struct param_set *s) {
    for (size_t i = 0; i < s->n; i++)
        for (size_t k = 0; k < TRAIN_MAX_MOMENTS; k++) mem_free(s->params[i].moments[k].data);
    mem_free(s->params);
    *s = (struct param_set){0};
}

/* ---- who is in it ----------------------------------------------------------------------------------------------------- */

static int grow(struct param_set *s, struct err *e) {
    if (s->n < s->capacity) return 0;
    size_t capacity = s->capacity ? 2 * s->capacity : 64;
    struct param *params = mem_array(capacity, sizeof *params, e);
    if (!params) return e->code;
    if (s->n) memcpy(params, s->params, s->n * sizeof *params);
    mem_free(s->params);
    s->params = params;
    s->capacity = capacity;
    return 0;
}

int param_set_add(struct param_set *s, const struct param *p, struct err *e) {
    if (grow(s, e)) return e->code;
    struct param *own = &s->params[s->n++];
    *own = *p;
    own->n = p->rows * p->cols;
    own->stream = digest_bytes(p->name, strlen(p->name)).lo;
    own->optimizer = s->o.optimizer;
    memset(own->moments, 0, sizeof own->moments);
    return 0;
}

static struct param of_model(struct model_param *p) {
    const struct model_role_info *role = model_role_info(p->slot.role);
    uint64_t cols = p->desc.dims[p->desc.rank - 1];
    return (struct param){.name = p->desc.name,
                          .value = p->value,
                          .grad = p->grad,
                          .grad_begun = &p->grad_begun,
                          .rows = p->n / cols,
                          .cols = cols,
                          .matrix = role->kind == KIND_MATRIX && role->in_layer,
                          .decays = role->kind == KIND_MATRIX && p->slot.role != ROLE_EMBED};
}

int train_add_model(struct param_set *s, struct model *m, struct err *e) {
    if (model_enable_grad(m, e)) return e->code;
    for (size_t i = 0; i < m->n_params; i++) {
        struct param p = of_model(&m->params[i]);
        if (param_set_add(s, &p, e)) return e->code;
    }
    return 0;
}

static int begin(struct param_set *s, struct param *p, struct err *e) {
    for (size_t k = 0; k < TRAIN_MAX_MOMENTS && p->optimizer->moments[k]; k++) {
        p->moments[k] = (struct kernel_array){s->o.state, mem_array(p->n, kernel_array_bytes(s->o.state, 1), e)};
        if (!p->moments[k].data) return err_prefix(e, "moments of '%s'", p->name);
    }
    return 0;
}

int param_set_begin(struct param_set *s, struct err *e) {
    for (size_t i = 0; i < s->n; i++)
        if (begin(s, &s->params[i], e)) return e->code;
    return 0;
}

uint64_t param_set_elements(const struct param_set *s) {
    uint64_t n = 0;
    for (size_t i = 0; i < s->n; i++) n += s->params[i].n;
    return n;
}

uint64_t param_set_state_bytes(const struct param_set *s) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < s->n; i++)
        for (size_t k = 0; k < TRAIN_MAX_MOMENTS && s->params[i].moments[k].data; k++)
            bytes += kernel_array_bytes(s->o.state, s->params[i].n);
    return bytes;
}

/* ---- a step ----------------------------------------------------------------------------------------------------------- */

double train_gradient_norm(struct param_set *s, double scale) {
    double sum = 0;
    for (size_t i = 0; i < s->n; i++) {
        struct param *p = &s->params[i];
        if (!*p->grad_begun) kernel_fill(p->grad, p->n, 0);
        *p->grad_begun = true;
        sum += kernel_sum_squares(p->grad, p->n);
    }
    return sqrt(sum) * scale;
}

void train_step(struct param_set *s, uint64_t step, double lr, double scale) {
    for (size_t i = 0; i < s->n; i++) {
        struct param *p = &s->params[i];
        struct train_update u = {&s->o, step, lr, scale, p->decays ? s->o.weight_decay : 0};
        p->optimizer->step(&u, p);
        *p->grad_begun = false;
    }
}
