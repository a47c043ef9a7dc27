/* Rounding errors by layer, for -v. */
#include <math.h>

#include "lib/compress/compress_internal.h"

/* rmse^2 * elems is a tensor's squared error; divided by relative^2 it gives the squared weights. Unchanged tensors
 * have neither and only count towards the size. */
int compress_add_to_layer(struct compress *k, const struct quant_tensor_report *t, struct err *e) {
    struct model_slot slot;
    if (model_slot_parse(t->name, &slot, e)) return e->code;
    size_t at = model_role_in_layer(slot.role) ? slot.layer + 1 : 0;
    while (k->layers.len < (at + 1) * sizeof(struct compress_layer))
        if (buf_append(&k->layers, &(struct compress_layer){0}, sizeof(struct compress_layer), e)) return e->code;
    struct compress_layer *l = (struct compress_layer *)(void *)k->layers.data + at;
    double error = t->rmse * t->rmse * (double)t->elems;
    l->elems += (double)t->elems;
    l->bytes += (double)t->bytes;
    l->error += error;
    if (t->relative > 0) l->power += error / (t->relative * t->relative);
    return 0;
}

void compress_say_layers(const struct compress *k) {
    const struct compress_layer *l = (const struct compress_layer *)(const void *)k->layers.data;
    size_t n = k->layers.len / sizeof *l;
    char name[32] = "outside layers";
    for (size_t i = 0; i < n; i++) {
        if (i) snprintf(name, sizeof name, "layer %zu", i - 1);
        if (l[i].elems > 0)
            log_line(LOG_INFO, "%s: relative error %.4f, %.3f bits per weight", name,
                     l[i].power > 0 ? sqrt(l[i].error / l[i].power) : 0, 8 * l[i].bytes / l[i].elems);
    }
}
