/* The epilogue of a product: from sums in f32 to the result, with bias, residual, gate and rounding. */
#include "lib/kernel/kernel_internal.h"

void result_begin(const struct result *c, const struct part *x) {
    const float *from = (const float *)c->data + x->row * c->n + x->col;
    for (size_t i = 0; i < x->rows; i++) memcpy(x->sums + i * x->ld, from + i * c->n, x->cols * sizeof *from);
}

void result_finish(const struct result *c, const struct part *x) {
    const struct simd *v = simd();
    const float *bias = c->how.bias ? c->how.bias + x->col : NULL;
    size_t n = c->n, at = x->row * n + x->col;
    const float *residual = c->how.residual ? c->how.residual + at : NULL;
    if (c->type == DT_F32)
        v->finish_f32((float *)c->data + at, n, x->rows, x->cols, x->sums, x->ld, bias, residual);
    else if (c->how.gate)
        v->act[c->how.act].finish_glu((uint16_t *)c->data + at, n, x->rows, x->cols, x->sums, x->ld, bias,
                                      c->how.gate + at);
    else
        v->finish_bf16((uint16_t *)c->data + at, n, x->rows, x->cols, x->sums, x->ld, bias, residual);
}
