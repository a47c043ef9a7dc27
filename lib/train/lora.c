/* Low-rank adapters: a student keeps its weights and learns a product of two thin matrices beside each. */
#include <fnmatch.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/train/train_internal.h"

int train_lora_parse(const char *text, struct train_lora *l, struct err *e) {
    const char *colon = strchr(text, ':');
    char rank[32];
    struct train_key keys[] = {{"alpha", .least = 1e-6, .most = 1e6, .number = &l->alpha},
                               {"target", .text = l->target}};
    *l = (struct train_lora){.target = "layers.*"};
    snprintf(rank, sizeof rank, "%.*s", colon ? (int)(colon - text < 31 ? colon - text : 31) : 31, text);
    if (parse_u64(rank, &l->rank) && l->rank >= 1 && l->rank <= 4096 &&
        train_keys_parse(colon ? colon + 1 : NULL, keys, COUNT_OF(keys))) {
        if (!keys[0].given) l->alpha = (double)l->rank;
        return 0;
    }
    return err_set(e, ERR_USAGE, "--lora \"%.80s\": expected RANK[:alpha=A,target=GLOB], RANK from 1 to 4096", text);
}

/* a is normal with the deviation 1 / sqrt(in), b zero: training begins at the model as it is. */
static int begin(struct model_adapter *d, const struct model_param *p, const struct train_lora *l, struct err *e) {
    uint64_t out = p->desc.dims[0], in = p->desc.dims[1];
    uint64_t shorter = out < in ? out : in;
    d->rank = (uint32_t)(l->rank < shorter ? l->rank : shorter);
    d->scale = (float)(l->alpha / (double)l->rank);
    float **parts[] = {&d->a, &d->a_grad, &d->b, &d->b_grad};
    for (size_t i = 0; i < COUNT_OF(parts); i++) {
        *parts[i] = mem_array((i < 2 ? in : out) * d->rank, sizeof(float), e);
        if (!*parts[i]) return err_prefix(e, "adapter of '%s'", p->desc.name);
    }
    struct rng rng = rng_init(0, digest_bytes(p->desc.name, strlen(p->desc.name)).lo);
    for (uint64_t i = 0; i < in * d->rank; i++) d->a[i] = (float)(rng_normal(&rng) / sqrt((double)in));
    return 0;
}

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
    float **grad = second ? &d->b_grad : &d->a_grad; /* a constant */
    mem_free(*grad);
    *grad = NULL;
    return 0;
}

int lora_add(struct param_set *s, struct model *m, struct err *e) {
    const struct train_lora *l = &s->o.lora;
    size_t before = s->n;
    s->adapted = m;
    for (size_t i = 0; i < m->n_params; i++) {
        struct model_param *p = &m->params[i];
        const struct model_role_info *role = model_role_info(p->slot.role);
        if (role->kind != KIND_MATRIX || !role->in_layer || fnmatch(l->target, p->desc.name, 0) != 0) continue;
        p->adapter = mem_zalloc(sizeof *p->adapter, e);
        if (!p->adapter || begin(p->adapter, p, l, e) || add_part(s, p, false, e) || add_part(s, p, true, e))
            return e->code;
    }
    if (s->n > before) return 0;
    return err_set(e, ERR_USAGE, "--lora: no matrix of a layer that is trained is called \"%s\"", l->target);
}

/* w += scale b a */
int lora_merge(struct param_set *s, struct err *e) {
    for (size_t i = 0; s->adapted && i < s->adapted->n_params; i++) {
        struct model_param *p = &s->adapted->params[i];
        struct model_adapter *d = p->adapter;
        if (!d) continue;
        uint64_t out = p->desc.dims[0], in = p->desc.dims[1];
        kernel_scale(kernel_f32(d->b), out * d->rank, d->scale);
        kernel_matmul_nn(out, in, d->rank, d->b, d->a, 1, p->value);
        if (tensor_first_nonfinite(DT_F32, p->value, p->n) < p->n)
            return err_set(e, ERR_DATA, "tensor '%s' with its adapter is not finite", p->desc.name);
    }
    return 0;
}

void lora_release(struct param_set *s) {
    for (size_t i = 0; s->adapted && i < s->adapted->n_params; i++) {
        struct model_adapter *d = s->adapted->params[i].adapter;
        if (!d) continue;
        float *parts[] = {d->a, d->a_grad, d->b, d->b_grad};
        for (size_t k = 0; k < COUNT_OF(parts); k++) mem_free(parts[k]);
        mem_free(d);
        s->adapted->params[i].adapter = NULL;
    }
    s->adapted = NULL;
}
