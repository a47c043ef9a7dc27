/*
 * The epilogue of a product for a few vectors, over simd_math.h and simd_act.h: sums in f32, bias, residual and gate become elements of
 * c. simd_body.h makes loops of it; the micro-kernel for AMX does it between its steps.
 */
#include "lib/kernel/simd_act.h"

/* Sums plus bias and residual, which may be NULL */
static inline SIMD_TARGET vec finished(const float *x, const float *bias, const float *residual, size_t i,
                                       size_t left) {
    vec v = load(x + i, left);
    if (bias) v = v_add(v, load(bias + i, left));
    if (residual) v = v_add(v, load(residual + i, left));
    return v;
}

ALL finish_f32(float *c, const float *sums, const float *bias, const float *residual, size_t left, int count) {
    EACH store(AT(c), finished(sums, bias, residual, FROM, LEFT), LEFT);
}
ALL finish_bf16(uint16_t *c, const float *sums, const float *bias, const float *residual, size_t left, int count) {
    EACH store_bf16(AT(c), finished(sums, bias, residual, FROM, LEFT), LEFT);
}

/* A gated unit; its second factor is rounded before the product. */
#define FINISH_GATED(name)                                                                                             \
    ALL finish_##name(uint16_t *c, const float *sums, const float *bias, const uint16_t *gate, size_t left,            \
                      int count) {                                                                                     \
        uint16_t up[TOGETHER * W];                                                                                     \
        vec g[TOGETHER];                                                                                               \
        EACH v_store_bf16(AT(up), finished(sums, bias, NULL, FROM, LEFT));                                             \
        EACH g[i] = load_bf16(AT(gate), LEFT);                                                                         \
        name##_all(g, count);                                                                                          \
        EACH store_bf16(AT(c), v_mul(g[i], v_load_bf16(AT(up))), LEFT);                                                \
    }
ACTIVATIONS(FINISH_GATED)
