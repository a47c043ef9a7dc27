/* A set's part of a checkpoint: its options and its tensors. */
#include <stdio.h>
#include <string.h>

#include "lib/train/train_internal.h"

bool train_options_put(cJSON *to, const struct train_options *o) {
    return json_put_f64(to, "weight-decay", o->weight_decay) && json_put_f64(to, "beta1", o->beta1) &&
           json_put_f64(to, "beta2", o->beta2) && json_put_f64(to, "eps", o->eps) &&
           json_put_str(to, "optimizer-state", dtype_info(o->state)->name);
}

/* ---- the tensors of a parameter ------------------------------------------------------------------------------------ */

/* Part 0 is the value, part 1 + k moment k. False: it has no such part. */
#define PARTS (1 + TRAIN_MAX_MOMENTS)
static bool part_of(const struct param *p, size_t part, struct kernel_array *data, const char **suffix) {
    *data = part ? p->moments[part - 1] : kernel_f32(p->value);
    *suffix = part ? p->optimizer->moments[part - 1] : NULL;
    return data->data != NULL;
}

static int part_desc(const struct param *p, struct kernel_array data, const char *suffix, struct tensor_desc *d,
                     struct err *e) {
    char name[TENSOR_MAX_NAME + 1];
    uint64_t dims[] = {p->rows, p->cols};
    snprintf(name, sizeof name, "%.1000s%s%s", p->name, suffix ? "." : "", suffix ? suffix : "");
    return tensor_desc_init(d, name, data.dtype, p->rows > 1 ? 2 : 1, p->rows > 1 ? dims : dims + 1, e);
}

/* A moment can overflow where the gradient's norm, a sum in f64, is still finite. */
static int check_finite(const struct tensor_desc *d, const void *data, struct err *e) {
    uint64_t n = tensor_elems(d), bad = tensor_first_nonfinite(d->dtype, data, n);
    if (bad == n) return 0;
    return err_set(e, ERR_DATA, "checkpoint: tensor '%s': element %llu is not finite", d->name,
                   (unsigned long long)bad);
}

static int save_param(const struct param *p, struct stream_writer *w, struct err *e) {
    struct kernel_array data;
    struct tensor_desc d;
    const char *suffix;
    for (size_t part = 0; part < PARTS; part++) {
        if (!part_of(p, part, &data, &suffix)) continue;
        if (part_desc(p, data, suffix, &d, e) || check_finite(&d, data.data, e) ||
            stream_write_tensor(w, &d, NULL, data.data, e))
            return e->code;
    }
    return 0;
}

int train_save(const struct param_set *s, struct stream_writer *w, struct err *e) {
    for (size_t i = 0; i < s->n; i++)
        if (save_param(&s->params[i], w, e)) return e->code;
    return 0;
}

/* The next tensor must be this one. */
static int read_tensor(struct stream_reader *r, const struct tensor_desc *d, void *data, struct err *e) {
    struct stream_item item;
    char found[128], wanted[128];
    do {
        if (stream_next(r, &item, e)) return e->code;
    } while (item.type == ITEM_PROV || item.type == ITEM_OTHER);
    if (item.type != ITEM_TENSOR) return err_set(e, ERR_DATA, "tensor '%s' is missing", d->name);
    if (strcmp(item.desc.name, d->name) != 0 || item.desc.dtype != d->dtype || !tensor_same_shape(&item.desc, d))
        return err_set(e, ERR_DATA, "tensor '%s' %s: expected '%s' %s of the student", item.desc.name,
                       tensor_shape_text(&item.desc, found, sizeof found), d->name,
                       tensor_shape_text(d, wanted, sizeof wanted));
    return stream_read_tensor(r, data, tensor_bytes(d), e);
}

int train_restore(struct param_set *s, struct stream_reader *r, struct err *e) {
    struct kernel_array data;
    struct tensor_desc d;
    const char *suffix;
    for (size_t i = 0; i < s->n; i++)
        for (size_t part = 0; part < PARTS; part++) {
            if (!part_of(&s->params[i], part, &data, &suffix)) continue;
            if (part_desc(&s->params[i], data, suffix, &d, e) || read_tensor(r, &d, data.data, e)) return e->code;
        }
    return 0;
}
