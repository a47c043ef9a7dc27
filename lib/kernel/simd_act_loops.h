/* Loops of the activation functions in simd_act.h; simd_body.h includes this file. */

/* Pieces of the loops, then the loops */
#define ACTIVATION_LOOPS(name)                                                                                         \
    ALL activate_##name(float *y, const float *x, size_t left, int count) {                                            \
        vec a[TOGETHER];                                                                                               \
        EACH a[i] = load(AT(x), LEFT);                                                                                 \
        name##_all(a, count);                                                                                          \
        EACH store(AT(y), a[i], LEFT);                                                                                 \
    }                                                                                                                  \
    ALL backward_##name(float *dx, const float *dy, const float *x, size_t left, int count) {                          \
        vec a[TOGETHER], slope[TOGETHER];                                                                              \
        EACH a[i] = load(AT(x), LEFT);                                                                                 \
        name##_with_slope(a, slope, count);                                                                            \
        EACH store(AT(dx), v_mul(load(AT(dy), LEFT), slope[i]), LEFT);                                                 \
    }                                                                                                                  \
    GATED_PIECES(name, , float, load, store_all)                                                                       \
    GATED_PIECES(name, bf16_, uint16_t, load_bf16, store_bf16_all)                                                     \
    FN void op_##name(float *y, const float *x, size_t n) {                                                            \
        STEPS(n, activate_##name(y + i, x + i, left, count));                                                          \
    }                                                                                                                  \
    FN void op_##name##_backward(float *dx, const float *dy, const float *x, size_t n) {                               \
        STEPS(n, backward_##name(dx + i, dy + i, x + i, left, count));                                                 \
    }                                                                                                                  \
    FN void op_glu_##name(float *y, const float *gate, const float *up, size_t n) {                                    \
        STEPS(n, glu_##name(y + i, gate + i, up + i, left, count));                                                    \
    }                                                                                                                  \
    FN void op_glu_bf16_##name(uint16_t *y, const uint16_t *gate, const uint16_t *up, size_t n) {                      \
        STEPS(n, glu_bf16_##name(y + i, gate + i, up + i, left, count));                                               \
    }                                                                                                                  \
    FN void op_glu_backward_##name(float *dgate, float *dup, const float *dy, const float *gate, const float *up,      \
                                   size_t n) {                                                                         \
        STEPS(n, glu_backward_##name(dgate + i, dup + i, dy + i, gate + i, up + i, left, count));                      \
    }                                                                                                                  \
    FN void op_glu_backward_bf16_##name(uint16_t *dgate, uint16_t *dup, const uint16_t *dy, const uint16_t *gate,      \
                                        const uint16_t *up, size_t n) {                                                \
        STEPS(n, glu_backward_bf16_##name(dgate + i, dup + i, dy + i, gate + i, up + i, left, count));                 \
    }                                                                                                                  \
    FN void op_finish_glu_##name(uint16_t *c, size_t ldc, size_t rows, size_t n, const float *sums, size_t ld,         \
                                 const float *bias, const uint16_t *gate) {                                            \
        for (size_t r = 0; r < rows; r++, c += ldc, sums += ld, gate += ldc)                                           \
            STEPS(n, finish_##name(c + i, sums + i, bias ? bias + i : NULL, gate + i, left, count));                   \
    }

/* y = act(gate) up, and its gradients, for one element type */
#define GATED_PIECES(name, kind, type, get, put)                                                                       \
    ALL glu_##kind##name(type *y, const type *gate, const type *up, size_t left, int count) {                          \
        vec g[TOGETHER];                                                                                               \
        EACH g[i] = get(AT(gate), LEFT);                                                                               \
        name##_all(g, count);                                                                                          \
        EACH g[i] = v_mul(g[i], get(AT(up), LEFT));                                                                    \
        put(y, g, left, count);                                                                                        \
    }                                                                                                                  \
    ALL glu_backward_##kind##name(type *dgate, type *dup, const type *dy, const type *gate, const type *up,            \
                                  size_t left, int count) {                                                            \
        vec g[TOGETHER], slope[TOGETHER], d[TOGETHER], u[TOGETHER];                                                    \
        EACH g[i] = get(AT(gate), LEFT);                                                                               \
        name##_with_slope(g, slope, count);                                                                            \
        EACH d[i] = get(AT(dy), LEFT);                                                                                 \
        EACH u[i] = get(AT(up), LEFT);                                                                                 \
        EACH u[i] = v_mul(v_mul(d[i], u[i]), slope[i]);                                                                \
        put(dgate, u, left, count);                                                                                    \
        EACH d[i] = v_mul(d[i], g[i]);                                                                                 \
        put(dup, d, left, count);                                                                                      \
    }

#define ACTIVATION_TABLE(name)                                                                                         \
    {op_##name,           op_##name##_backward,   op_glu_##name,                                                       \
     op_glu_bf16_##name,  op_glu_backward_##name, op_glu_backward_bf16_##name,                                         \
     op_finish_glu_##name},

ACTIVATIONS(ACTIVATION_LOOPS)

/* ---- soft caps: y = cap tanh(x / cap) (Bello et al. 2016; Gemma 2) ---- */

/* y = cap tanh(factor x): factor is 1 / cap, possibly times a scale of x. */
FN void op_softcap(float *y, const float *x, size_t n, float cap, float factor) {
    for (size_t i = 0; i < n; i += W)
        store(y + i, v_mul(v_set(cap), v_tanh(v_mul(v_set(factor), load(x + i, n - i)))), n - i);
}

/* dx *= 1 - (y / cap)^2 */
FN void op_softcap_backward(float *dx, const float *y, size_t n, float inv_cap) {
    for (size_t i = 0; i < n; i += W) {
        vec t = v_mul(load(y + i, n - i), v_set(inv_cap));
        store(dx + i, v_mul(load(dx + i, n - i), v_sub(v_set(1), v_mul(t, t))), n - i);
    }
}
