/* A set of parameters: its members, an optimizer step for all, and the result of training. */
#include <math.h>
#include <string.h>

#include "lib/train/train_internal.h"

#define MAX_FROZEN 32 /* bits of `used` */

int param_set_init(struct param_set *s, const struct train_options *o, struct err *e) {
    *s = (struct param_set){.o = *o, .device = kernel_cpu()};
    if (!s->o.optimizer) s->o.optimizer = &train_optimizers[0];
    if (o->n_groups > TRAIN_MAX_GROUPS) return err_set(e, ERR_USAGE, "--group: at most %d", TRAIN_MAX_GROUPS);
    if (o->n_frozen > MAX_FROZEN) return err_set(e, ERR_USAGE, "--freeze: at most %d", MAX_FROZEN);
    return 0;
}

void param_set_release(struct param_set *s) {
    for (size_t i = 0; i < s->n; i++) {
        for (size_t k = 0; k < TRAIN_MAX_MOMENTS; k++) kernel_free(s->device, s->params[i].moments[k]);
        kernel_free(s->device, s->params[i].average);
        kernel_free(s->device, s->params[i].zeros);
        kernel_free(s->device, s->params[i].best);
    }
    lora_release(s);
    grids_release(s);
    mem_free(s->params);
    kernel_free(s->device, s->scratch);
    arena_release(&s->memory);
    *s = (struct param_set){0};
}

/* ---- members ----------------------------------------------------------------------------------------------------- */

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
    const struct optimizer_type *type = s->o.optimizer;
    char *name = arena_strdup(&s->memory, p->name, e);
    if (!name || grow(s, e)) return e->code;
    struct param *own = &s->params[s->n++];
    *own = *p;
    own->name = name;
    own->n = p->rows * p->cols;
    own->stream = digest_bytes(name, strlen(name)).lo;
    own->optimizer = !type->takes || type->takes(p) ? type : &train_optimizers[0];
    own->average = own->best = kernel_none(DT_F32);
    own->zeros = kernel_none(DT_U8);
    memset(own->moments, 0, sizeof own->moments);
    return 0;
}

static uint64_t mask_bytes(const struct param *p) {
    return (p->n + 7) / 8;
}

/* A parameter without zeros gets no mask. */
static int begin_mask(const struct param_set *s, struct param *p, struct err *e) {
    p->zeros = kernel_alloc(s->device, DT_U8, mask_bytes(p), e);
    if (!kernel_has_data(p->zeros)) return err_prefix(e, "mask of '%s'", p->name);
    if (kernel_zero_bits(p->zeros, p->value, p->n)) return 0;
    kernel_free(s->device, p->zeros);
    p->zeros = kernel_none(DT_U8);
    return 0;
}

static int begin(struct param_set *s, struct param *p, struct err *e) {
    if (s->o.keep_mask && p->maskable && begin_mask(s, p, e)) return e->code;
    for (size_t k = 0; k < TRAIN_MAX_MOMENTS && p->optimizer->moments[k]; k++) {
        p->moments[k] = kernel_alloc(s->device, s->o.state, p->n, e);
        if (!kernel_has_data(p->moments[k])) return err_prefix(e, "moments of '%s'", p->name);
        kernel_fill(p->moments[k], p->n, 0);
    }
    if (s->o.keep_best) {
        p->best = kernel_alloc(s->device, DT_F32, p->n, e);
        if (!kernel_has_data(p->best)) return err_prefix(e, "best state of '%s'", p->name);
        kernel_fill(p->best, p->n, 0);
    }
    if (!(s->o.ema > 0)) return 0;
    p->average = kernel_alloc(s->device, DT_F32, p->n, e);
    if (!kernel_has_data(p->average)) return err_prefix(e, "average of '%s'", p->name);
    kernel_convert(p->average, p->value, p->n);
    return 0;
}

int param_set_begin(struct param_set *s, struct err *e) {
    bool taken = false, masked = false;
    if (!s->n) return err_set(e, ERR_USAGE, "--freeze leaves no parameter to train");
    if (groups_begin(s, e)) return e->code;
    for (size_t i = 0; i < s->n; i++) {
        struct param *p = &s->params[i];
        size_t scratch = p->optimizer->scratch ? p->optimizer->scratch(&s->o, p) : 0;
        if (scratch > s->scratch_bytes) s->scratch_bytes = scratch;
        taken = taken || p->optimizer == s->o.optimizer;
        if (begin(s, p, e)) return e->code;
        masked = masked || kernel_has_data(p->zeros);
    }
    if (s->o.keep_mask && !masked)
        return err_set(e, ERR_USAGE, "--keep-mask: no weight of the matrices that are trained is 0");
    if (!taken)
        return err_set(e, ERR_USAGE, "--optimizer %s: nothing that is trained is a matrix inside a layer",
                       s->o.optimizer->name);
    if (grids_begin(s, e)) return e->code;
    if (!s->scratch_bytes) return 0;
    s->scratch = kernel_alloc(s->device, DT_U8, s->scratch_bytes, e);
    return kernel_has_data(s->scratch) ? 0 : err_prefix(e, "scratch of %s", s->o.optimizer->name);
}

/* Returns the array that would become the result now. */
static struct kernel_array to_save(const struct param *p) {
    return kernel_has_data(p->average) ? p->average : p->value;
}

void param_set_keep(struct param_set *s) {
    for (size_t i = 0; i < s->n; i++) kernel_convert(s->params[i].best, to_save(&s->params[i]), s->params[i].n);
    grids_keep(s);
    s->kept = true;
}

int param_set_finish(struct param_set *s, struct err *e) {
    if (grids_finish(s, e)) return e->code;
    for (size_t i = 0; i < s->n; i++) {
        struct param *p = &s->params[i];
        struct kernel_array result = s->kept ? p->best : to_save(p);
        if (!kernel_same_data(result, p->value)) kernel_convert(p->value, result, p->n);
    }
    int rc = lora_merge(s, e);
    lora_release(s);
    return rc;
}

/* Replaces one array by the other, wherever the parameter uses it. */
static void exchange(struct model_param *m, struct kernel_array from, struct kernel_array to) {
    struct model_adapter *d = m->adapter;
    if (kernel_same_data(m->value, from)) m->value = to;
    if (d && kernel_same_data(d->a, from)) d->a = to;
    if (d && kernel_same_data(d->b, from)) d->b = to;
}

void train_use_averages(const struct param_set *s, struct model *m, bool on) {
    for (size_t i = 0; i < s->n; i++) {
        const struct param *p = &s->params[i];
        for (size_t k = 0; kernel_has_data(p->average) && k < m->n_params; k++)
            exchange(&m->params[k], on ? p->value : p->average, on ? p->average : p->value);
    }
}

uint64_t param_set_elements(const struct param_set *s) {
    uint64_t n = 0;
    for (size_t i = 0; i < s->n; i++) n += s->params[i].n;
    return n;
}

uint64_t param_set_state_bytes(const struct param_set *s) {
    uint64_t bytes = param_set_saved_bytes(s) + s->scratch_bytes + grids_bytes(s);
    for (size_t i = 0; i < s->n; i++)
        if (kernel_has_data(s->params[i].zeros)) bytes += mask_bytes(&s->params[i]);
    return bytes;
}

uint64_t param_set_saved_bytes(const struct param_set *s) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < s->n; i++) {
        const struct param *p = &s->params[i];
        for (size_t k = 0; k < TRAIN_MAX_MOMENTS && kernel_has_data(p->moments[k]); k++)
            bytes += kernel_array_bytes(s->o.state, p->n);
        if (kernel_has_data(p->average)) bytes += kernel_array_bytes(DT_F32, p->n);
    }
    return bytes + param_set_kept_bytes(s);
}

uint64_t param_set_kept_bytes(const struct param_set *s) {
    return s->o.keep_best ? kernel_array_bytes(DT_F32, param_set_elements(s)) : 0;
}

/* ---- a step ------------------------------------------------------------------------------------------------------ */

double train_gradient_norm(struct param_set *s, double scale) {
    double sum = 0;
    memset(s->group_square, 0, sizeof s->group_square);
    for (size_t i = 0; i < s->n; i++) {
        struct param *p = &s->params[i];
        if (!*p->grad_begun) kernel_fill(p->grad, p->n, 0);
        *p->grad_begun = true;
        if (kernel_has_data(p->zeros)) kernel_zero_by_bits(p->grad, p->zeros, p->n);
        double square = kernel_sum_squares(p->grad, p->n);
        s->group_square[p->group] += square;
        sum += square;
    }
    return sqrt(sum) * scale;
}

double train_gradient_square(const struct param_set *s) {
    double sum = 0;
    for (size_t i = 0; i < s->n; i++) {
        const struct param *p = &s->params[i];
        if (!*p->grad_begun) continue;
        if (kernel_has_data(p->zeros)) kernel_zero_by_bits(p->grad, p->zeros, p->n);
        sum += kernel_sum_squares(p->grad, p->n);
    }
    return sum;
}

static void average(struct param_set *s, struct param *p, uint64_t step) {
    double ramp = (1 + (double)step) / (10 + (double)step), d = s->o.ema < ramp ? s->o.ema : ramp;
    kernel_scale(p->average, p->n, (float)d);
    kernel_axpy(p->average, (float)(1 - d), p->value, p->n);
}

void train_step(struct param_set *s, uint64_t step, double lr, double scale) {
    for (size_t i = 0; i < s->n; i++) {
        struct param *p = &s->params[i];
        struct train_update u = {&s->o, s->updates + step, lr * p->lr, scale, p->decay, s->scratch};
        p->optimizer->step(&u, p);
        *p->grad_begun = false;
        if (kernel_has_data(p->zeros)) kernel_zero_by_bits(p->value, p->zeros, p->n); /* Muon's update is dense */
        if (kernel_has_data(p->average)) average(s, p, step);
    }
}
