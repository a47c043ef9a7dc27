/* Imports a foreign model as a model stream. */
#include "lib/formats/formats_internal.h"

/* A NaN in a weight makes every output NaN, so import refuses it. */
static int check_finite(const struct tensor_desc *d, const void *data, struct err *e) {
    uint64_t n = tensor_elems(d), bad = tensor_first_nonfinite(d->dtype, data, n);
    if (bad == n) return 0;
    return err_set(e, ERR_DATA, "tensor '%s': element %llu is not a finite number", d->name, (unsigned long long)bad);
}

static int write_slot(struct foreign_model *f, struct model_slot s, unsigned dtype, struct stream_writer *w,
                      struct buf *values, struct buf *made, struct err *e) {
    struct tensor_desc d;
    const void *data;
    int rc = foreign_tensor(f, s, &d, &data, e);
    if (!rc) rc = check_finite(&d, data, e);
    if (rc || !dtype || dtype == d.dtype) return rc ? rc : stream_write_tensor(w, &d, NULL, data, e);
    uint64_t n = tensor_elems(&d);
    values->len = made->len = 0;
    rc = buf_reserve(values, n * sizeof(float), e);
    if (!rc) rc = buf_reserve(made, n * dtype_info(dtype)->block_bytes, e);
    if (rc) return rc;
    float *f32 = (void *)values->data;
    tensor_to_f32(d.dtype, data, f32, n);
    if (tensor_from_f32_checked((enum dtype)dtype, f32, made->data, n, NULL, e))
        return err_prefix(e, "tensor '%s'", d.name);
    d.dtype = (enum dtype)dtype;
    return stream_write_tensor(w, &d, NULL, made->data, e);
}

int foreign_write(struct foreign_model *f, struct stream_writer *w, unsigned dtype, foreign_progress *progress,
                  void *ctx, struct err *e) {
    struct buf vocab = {0}, values = {0}, made = {0};
    int rc = f->vocab ? vocab_pack(f->vocab, &vocab, e) : 0;
    if (!rc) rc = model_head_write(w, &f->config, vocab.data, vocab.len, f->extra, e);
    size_t n = model_slot_count(&f->config);
    for (size_t i = 0; i < n && !rc; i++) {
        rc = write_slot(f, model_slot_at(&f->config, i), dtype, w, &values, &made, e);
        if (!rc && progress) progress(ctx, i + 1, n);
    }
    buf_release(&vocab);
    buf_release(&values);
    buf_release(&made);
    return rc;
}
