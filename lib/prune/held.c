/* Helpers for pruning layer by layer with data: the head of the output, and tensors held in memory. */
#include <string.h>

#include "lib/prune/second_order.h"

int prune_walk_begin(const struct prune_walk *k, const struct prune_plan *plan, struct err *e) {
    struct model *m = model_layerwise_held(k->c->model);
    struct prune_report *r = k->report;
    int rc = prune_fill_report(r, plan, e);
    if (!rc) rc = prune_rename(m->meta, r->parameters_before, r->parameters_after, e);
    const struct buf *vocab = plan->vocab.len ? &plan->vocab : &m->vocab_bytes;
    return rc ? rc : model_head_write(k->out, &plan->to, vocab->data, vocab->len, m->meta, e);
}

int prune_write_param(const struct prune_walk *k, const struct prune_plan *plan, const struct model_param *p,
                      struct buf *scratch, struct err *e) {
    if (!plan->kept_tokens || model_role_info(p->slot.role)->rows != AXIS_VOCAB)
        return model_save_param(p, k->out, 0, scratch, e);
    struct model_param few = *p;
    uint64_t cols = p->desc.rank == 2 ? p->desc.dims[1] : 1;
    few.desc.dims[0] = plan->to.vocab_size;
    few.n = few.desc.dims[0] * cols;
    float *x = mem_array(few.n, sizeof *x, e);
    if (!x) return err_prefix(e, "tensor '%s'", p->desc.name);
    kernel_gather(kernel_f32(x), kernel_f32(model_host_value(p)), plan->kept_tokens, few.desc.dims[0], cols);
    few.value = kernel_f32(x);
    int rc = model_save_param(&few, k->out, 0, scratch, e);
    mem_free(x);
    return rc;
}

int prune_check_finite(const struct model *m, size_t first, size_t end, struct err *e) {
    for (size_t i = first; i < end; i++) {
        const struct model_param *p = &m->params[i];
        uint64_t bad = tensor_first_nonfinite(DT_F32, model_host_value(p), p->n);
        if (bad != p->n)
            return err_set(e, ERR_DATA, "tensor '%s': element %llu is not finite", p->desc.name,
                           (unsigned long long)bad);
    }
    return 0;
}

int prune_round(struct model_param *p, struct buf *scratch, struct err *e) {
    enum dtype type = p->desc.dtype;
    if (type == DT_F32 || dtype_info(type)->is_quantized) return 0;
    scratch->len = 0;
    if (buf_reserve(scratch, tensor_bytes(&p->desc), e) ||
        tensor_from_f32_checked(type, model_host_value(p), scratch->data, p->n, NULL, e))
        return err_prefix(e, "tensor '%s'", p->desc.name);
    tensor_to_f32(type, scratch->data, model_host_value(p), p->n);
    return 0;
}

float *prune_wanted(const struct prune_matrix *w, const float *gram, const float *shift, double ridge, struct err *e) {
    size_t n = w->cols;
    float *b = mem_array(w->rows, n * sizeof *b, e);
    if (!b) return NULL;
    kernel_matmul_nn(w->rows, n, n, kernel_f32(w->x), kernel_f32(gram), 0, kernel_f32(b));
    if (shift) kernel_matmul_nn(w->rows, n, n, kernel_f32(w->x), kernel_f32(shift), 1, kernel_f32(b));
    for (size_t i = 0; i < w->rows * n; i++) b[i] += (float)(ridge * w->x[i]);
    return b;
}

int prune_output_error(const struct prune_matrix *w, const float *gram, const float *was, double *out, struct err *e) {
    size_t n = w->rows * w->cols;
    float *d = mem_array(n, sizeof *d, e), *y = d ? mem_array(n, sizeof *y, e) : NULL;
    double sums[2] = {0};
    for (int k = 0; y && k < 2; k++) {
        for (size_t i = 0; i < n; i++) d[i] = k ? was[i] : w->x[i] - was[i];
        kernel_matmul_nn(w->rows, w->cols, w->cols, kernel_f32(d), kernel_f32(gram), 0, kernel_f32(y));
        for (size_t i = 0; i < n; i++) sums[k] += (double)d[i] * y[i];
    }
    *out = sums[1] > 0 ? sums[0] / sums[1] : 0;
    bool ok = y;
    mem_free(d);
    mem_free(y);
    return ok ? 0 : e->code;
}
