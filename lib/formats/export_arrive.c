/* Writes the tensors of a stream to their places in files as they arrive. */
#include <errno.h>
#include <unistd.h>

#include "lib/formats/arch_internal.h"

struct arrival_part {
    size_t tensor, part;
    bool wanted; /* false: the file has no place for it */
};
struct arrival_spot {
    int fd;
    uint64_t at;
    size_t missing; /* parts that are not in the file yet */
    enum dtype type;
};

int write_at(int fd, uint64_t at, const void *data, uint64_t n, struct err *e) {
    return lseek(fd, (off_t)at, SEEK_SET) < 0 ? err_sys(e, errno, "seek") : write_all(fd, data, n, e);
}

int arrivals_begin(struct arrivals *a, struct err *e) {
    struct export_source *x = a->x;
    a->parts = arena_array(&x->memory, model_slot_count(&x->config), sizeof *a->parts, e);
    a->spots = arena_array(&x->memory, a->tensors->n, sizeof *a->spots, e);
    if (!a->parts || !a->spots) return e->code;
    for (size_t i = 0; i < a->tensors->n; i++) {
        const struct out_tensor *t = &a->tensors->items[i];
        a->spots[i] = (struct arrival_spot){.missing = t->n_slots};
        for (size_t k = 0; k < t->n_slots; k++)
            a->parts[model_slot_index(&x->config, t->slots[k])] = (struct arrival_part){i, k, true};
    }
    return 0;
}

/* ---- placing tensors ---- */

/* Places tensor number a->placed, whose type is known. */
static int place_next(struct arrivals *a, struct err *e) {
    const struct out_tensor *t = &a->tensors->items[a->placed];
    struct arrival_spot *spot = &a->spots[a->placed];
    spot->type = a->type(a->ctx, t);
    return a->place(a->ctx, a->placed++, out_tensor_bytes(t, spot->type), &spot->fd, &spot->at, e);
}

static int finish(struct arrivals *a, size_t i, struct err *e) {
    const struct arrival_spot *spot = &a->spots[i];
    const void *data;
    int rc = out_tensor_data(a->x, &a->tensors->items[i], spot->type, a->interleaved, &data, e);
    if (!rc) rc = write_at(spot->fd, spot->at, data, out_tensor_bytes(&a->tensors->items[i], spot->type), e);
    return rc || !a->done ? rc : a->done(a->ctx, i, e);
}

/* Writes zeros, which need no data from the stream. */
static int put_zeros(struct arrivals *a, struct err *e) {
    int rc = 0;
    while (!rc && a->placed < a->tensors->n && a->tensors->items[a->placed].n_slots == 0) {
        size_t i = a->placed;
        out_tensor_like_last(a->tensors, i);
        rc = place_next(a, e);
        if (!rc) rc = finish(a, i, e);
    }
    return rc;
}

/* ---- held parts ---- */

static int hold(struct export_source *x, struct model_slot s, const struct tensor_desc *d, const void *data,
                struct export_held **out, struct err *e) {
    for (size_t i = 0; i < COUNT_OF(x->held); i++) {
        if (x->held[i].data) continue;
        *out = &x->held[i];
        (*out)->slot = s;
        (*out)->desc = *d;
        (*out)->data = data;
        return 0;
    }
    return err_set(e, ERR_DATA, "tensor '%s': %u others wait for their parts", d->name, EXPORT_MAX_HELD);
}

static void let_go(struct export_source *x, const struct out_tensor *t) {
    for (size_t i = 0; i < COUNT_OF(x->held); i++) {
        struct export_held *h = &x->held[i];
        for (size_t k = 0; h->data && k < t->n_slots; k++)
            if (h->slot.role == t->slots[k].role && h->slot.layer == t->slots[k].layer) h->data = NULL;
    }
}

static int keep(struct export_held *h, struct err *e) {
    uint64_t n = tensor_bytes(&h->desc);
    h->copy.len = 0;
    int rc = buf_append(&h->copy, h->data, n, e);
    h->data = rc ? NULL : h->copy.data;
    return rc;
}

/* ---- a part arrives ---- */

static int decide_type(struct arrivals *a, const struct arrival_part *p, const struct tensor_desc *d, struct err *e) {
    struct out_tensor *t = &a->tensors->items[p->tensor];
    const struct arrival_spot *spot = &a->spots[p->tensor];
    if (p->tensor == a->placed) {
        t->stored = d->dtype;
        return place_next(a, e);
    }
    int rc = out_tensor_join(a->tensors, t, p->part, d->dtype, e);
    if (rc || a->type(a->ctx, t) == spot->type) return rc;
    return err_set(e, ERR_DATA,
                   "tensor '%s' is of type %s, but shares '%s' with others of type %s: from a pipe they need one type "
                   "(write the model to a file first)",
                   d->name, dtype_info(d->dtype)->name, t->name, dtype_info(spot->type)->name);
}

/* Writes a part that has a contiguous range of the file's tensor to itself. */
static int put_part(struct arrivals *a, const struct arrival_part *p, uint64_t offset, struct err *e) {
    const struct out_tensor *t = &a->tensors->items[p->tensor];
    const struct arrival_spot *spot = &a->spots[p->tensor];
    struct tensor_desc d;
    const void *data;
    int rc = out_tensor_part(a->x, t, p->part, spot->type, a->interleaved, &data, &d, e);
    if (rc) return rc;
    uint64_t cols = d.rank == 2 ? d.dims[1] : 1;
    return write_at(spot->fd, spot->at + offset, data, d.dims[0] * dtype_row_bytes(spot->type, cols), e);
}

static int take(struct arrivals *a, const struct arrival_part *p, struct export_held *h, struct err *e) {
    const struct out_tensor *t = &a->tensors->items[p->tensor];
    struct arrival_spot *spot = &a->spots[p->tensor];
    const struct arch_place *place = &t->places[p->part];
    uint64_t offset, cols = h->desc.rank == 2 ? h->desc.dims[1] : 1;
    bool last = --spot->missing == 0;
    int rc = 0;
    if (place->tensor->layout & STACKED && arch_lies_plain(place, spot->type, cols, &offset)) {
        rc = put_part(a, p, offset, e);
        h->data = NULL;
        return rc || !last || !a->done ? rc : a->done(a->ctx, p->tensor, e);
    }
    if (!last) return keep(h, e);
    rc = finish(a, p->tensor, e);
    let_go(a->x, t);
    return rc;
}

int arrivals_take(struct arrivals *a, struct model_slot s, const struct tensor_desc *d, const void *data,
                  struct err *e) {
    long i = model_slot_index(&a->x->config, s);
    const struct arrival_part *p = i < 0 ? NULL : &a->parts[i];
    struct export_held *h = NULL;
    if (!p || !p->wanted) return 0;
    int rc = put_zeros(a, e);
    if (!rc) rc = decide_type(a, p, d, e);
    if (!rc) rc = hold(a->x, s, d, data, &h, e);
    return rc ? rc : take(a, p, h, e);
}

int arrivals_end(struct arrivals *a, struct err *e) {
    return put_zeros(a, e);
}
