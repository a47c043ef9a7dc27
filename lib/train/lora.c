/* Low-rank adapters: the student keeps its weights and learns a product of two thin matrices for each. */
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

static void fill_normal(struct kernel_array y, uint64_t size, uint64_t in, struct rng rng) {
    float x[1024];
    for (uint64_t at = 0, n; at < size; at += n) {
        n = size - at < COUNT_OF(x) ? size - at : COUNT_OF(x);
        for (uint64_t i = 0; i < n; i++) x[i] = (float)(rng_normal(&rng) / sqrt((double)in));
        kernel_upload(kernel_part(y, at), x, n);
    }
}

/* a is normal with standard deviation 1 / sqrt(in) and b is zero, so training starts from the unchanged model. */
int lora_attach(struct kernel_device *device, struct model_param *p, const struct train_lora *l, struct err *e) {
    struct model_adapter *d = p->adapter = mem_zalloc(sizeof *d, e);
    if (!d) return e->code;
    uint64_t out = p->desc.dims[0], in = p->desc.dims[1];
    uint64_t shorter = out < in ? out : in;
    d->rank = (uint32_t)(l->rank < shorter ? l->rank : shorter);
    d->scale = (float)(l->alpha / (double)l->rank);
    struct kernel_array *parts[] = {&d->a, &d->a_grad, &d->b, &d->b_grad};
    for (size_t i = 0; i < COUNT_OF(parts); i++) {
        uint64_t n = (i < 2 ? in : out) * d->rank;
        *parts[i] = kernel_alloc(device, DT_F32, n, e);
        if (!kernel_has_data(*parts[i])) return err_prefix(e, "adapter of '%s'", p->desc.name);
        kernel_fill(*parts[i], n, 0);
    }
    fill_normal(d->a, in * d->rank, in, rng_init(0, digest_bytes(p->desc.name, strlen(p->desc.name)).lo));
    return 0;
}

/* w += scale b a */
int lora_merge(struct param_set *s, struct err *e) {
    for (size_t i = 0; s->adapted && i < s->adapted->n_params; i++) {
        struct model_param *p = &s->adapted->params[i];
        struct model_adapter *d = p->adapter;
        if (!d) continue;
        uint64_t out = p->desc.dims[0], in = p->desc.dims[1];
        kernel_scale(d->b, out * d->rank, d->scale);
        kernel_matmul_nn(out, in, d->rank, d->b, d->a, 1, p->value);
        if (tensor_first_nonfinite(DT_F32, model_host_value(p), p->n) < p->n)
            return err_set(e, ERR_DATA, "tensor '%s' with its adapter is not finite", p->desc.name);
    }
    return 0;
}

void lora_release(struct param_set *s) {
    for (size_t i = 0; s->adapted && i < s->adapted->n_params; i++) {
        struct model_adapter *d = s->adapted->params[i].adapter;
        if (!d) continue;
        const struct kernel_array parts[] = {d->a, d->a_grad, d->b, d->b_grad};
        for (size_t k = 0; k < COUNT_OF(parts); k++) kernel_free(s->adapted->device, parts[k]);
        mem_free(d);
        s->adapted->params[i].adapter = NULL;
    }
    s->adapted = NULL;
}
