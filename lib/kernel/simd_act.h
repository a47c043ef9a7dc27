/*
 * Activation functions and the loops that use them, over the vector of simd_body.h, which includes this file. A new one
 * needs two functions of a vector, SIGMOID_UNIT or ONE_BY_ONE, a line in ACTIVATIONS and a member of enum kernel_act.
 */

/* tanh x = (e^2x - 1) / (e^2x + 1), which rounds to 1 in f32 long before e^2x overflows. */
static inline SIMD_TARGET vec v_tanh(vec x) {
    vec limited = v_max(v_set(-20), v_min(v_set(20), x));
    vec e = v_expm1(v_add(limited, limited));
    return v_div(e, v_add(e, v_set(2)));
}

/* 1 for x > 0, 0 for x < 0 */
static inline SIMD_TARGET vec v_step(vec x) {
    return v_max(v_set(0), v_min(v_set(1), v_mul(x, v_set(1e38f))));
}

/* erfc(x) / 2 for x >= 0 by Chebyshev's fit in t = 1 / (1 + x / 2): relative error 1.2e-7 (Press et al., "Numerical
 * Recipes in C", section 6.2). */
static inline SIMD_TARGET vec v_half_erfc(vec x) {
    static const float c[] = {0.17087277f,  -0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f,
                              -0.18628806f, 0.09678418f,  0.37409196f, 1.00002368f,  -1.26551223f};
    vec t = v_div(v_set(1), v_fma(x, v_set(0.5f), v_set(1))), p = v_set(c[0]);
    for (int i = 1; i < 10; i++) p = v_fma(p, t, v_set(c[i]));
    return v_mul(v_mul(v_set(0.5f), t), v_exp(v_sub(p, v_mul(x, x))));
}

/* x sigmoid(z), for several vectors and for one */
#define SIGMOID_UNIT(name, z)                                                                                          \
    ALL name##_all(vec *x, int count) {                                                                                \
        vec s[TOGETHER];                                                                                               \
        EACH s[i] = z(x[i]);                                                                                           \
        sigmoid_all(s, count);                                                                                         \
        EACH x[i] = v_mul(x[i], s[i]);                                                                                 \
    }                                                                                                                  \
    static inline SIMD_TARGET vec act_##name(vec x) {                                                                  \
        name##_all(&x, 1);                                                                                             \
        return x;                                                                                                      \
    }

/* ---- SiLU, swish: x sigmoid(x) ---- */

SIGMOID_UNIT(silu, )
/* s (1 + x (1 - s)), s = sigmoid(x) */
static inline SIMD_TARGET vec slope_silu(vec x) {
    vec s = v_sigmoid(x);
    return v_mul(s, v_fma(x, v_sub(v_set(1), s), v_set(1)));
}

/* ---- GELU (Hendrycks and Gimpel 2016): x F(x), F the normal distribution function -------------------------------- */

#define SQRT_HALF 0.70710678118654752f

/* Uses F(-|x|), so that nothing cancels on either side. */
static inline SIMD_TARGET vec act_gelu(vec x) {
    vec size = v_abs(x), below = v_half_erfc(v_mul(size, v_set(SQRT_HALF)));
    return v_sub(v_max(v_set(0), x), v_mul(size, below));
}
/* F(x) + x f(x), with f the density */
static inline SIMD_TARGET vec slope_gelu(vec x) {
    vec below = v_half_erfc(v_mul(v_abs(x), v_set(SQRT_HALF))), side = v_step(x);
    vec f = v_mul(v_set(0.39894228040143268f), v_exp(v_mul(v_mul(x, x), v_set(-0.5f))));
    vec distribution = v_add(side, v_mul(below, v_sub(v_set(1), v_add(side, side))));
    return v_fma(x, f, distribution);
}

/* The approximation with tanh, by 0.5 (1 + tanh(u)) = sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3) */
static inline SIMD_TARGET vec gelu_tanh_z(vec x) {
    vec cubic = v_fma(v_mul(x, x), v_set(2 * 0.7978845608028654f * 0.044715f), v_set(2 * 0.7978845608028654f));
    return v_mul(x, cubic);
}
SIGMOID_UNIT(gelu_tanh, gelu_tanh_z)
static inline SIMD_TARGET vec slope_gelu_tanh(vec x) {
    vec s = v_sigmoid(gelu_tanh_z(x)), rise = v_fma(v_mul(x, x), v_set(6 * 0.7978845608028654f * 0.044715f),
                                                    v_set(2 * 0.7978845608028654f)); /* derivative of 2 u */
    return v_fma(v_mul(v_mul(x, rise), s), v_sub(v_set(1), s), s);
}

/* The approximation x sigmoid(1.702 x) */
static inline SIMD_TARGET vec gelu_quick_z(vec x) {
    return v_mul(x, v_set(1.702f));
}
SIGMOID_UNIT(gelu_quick, gelu_quick_z)
static inline SIMD_TARGET vec slope_gelu_quick(vec x) {
    vec z = gelu_quick_z(x), s = v_sigmoid(z);
    return v_mul(s, v_fma(z, v_sub(v_set(1), s), v_set(1)));
}

/* ---- ReLU, its square (So et al. 2021, "Primer"), tanh ---- */

static inline SIMD_TARGET vec act_relu(vec x) {
    return v_max(v_set(0), x);
}
static inline SIMD_TARGET vec slope_relu(vec x) {
    return v_step(x);
}
static inline SIMD_TARGET vec act_relu_squared(vec x) {
    vec r = act_relu(x);
    return v_mul(r, r);
}
static inline SIMD_TARGET vec slope_relu_squared(vec x) {
    vec r = act_relu(x);
    return v_add(r, r);
}
static inline SIMD_TARGET vec act_tanh(vec x) {
    return v_tanh(x);
}
static inline SIMD_TARGET vec slope_tanh(vec x) {
    vec t = v_tanh(x);
    return v_sub(v_set(1), v_mul(t, t));
}

/* In the order of enum kernel_act. */
#define ACTIVATIONS(X) X(silu) X(gelu) X(gelu_tanh) X(gelu_quick) X(relu) X(relu_squared) X(tanh)

/* Activations whose vectors are taken one after the other. */
#define ONE_BY_ONE(name)                                                                                               \
    ALL name##_all(vec *x, int count) {                                                                                \
        EACH x[i] = act_##name(x[i]);                                                                                  \
    }
ONE_BY_ONE(gelu)
ONE_BY_ONE(relu)
ONE_BY_ONE(relu_squared)
ONE_BY_ONE(tanh)

#define ACTIVATION_LOOPS(name)                                                                                         \
    FN void op_##name(float *y, const float *x, size_t n) {                                                            \
        for (size_t i = 0; i < n; i += W) store(y + i, act_##name(load(x + i, n - i)), n - i);                         \
    }                                                                                                                  \
    FN void op_##name##_backward(float *dx, const float *dy, const float *x, size_t n) {                               \
        for (size_t i = 0; i < n; i += W)                                                                              \
            store(dx + i, v_mul(load(dy + i, n - i), slope_##name(load(x + i, n - i))), n - i);                        \
    }                                                                                                                  \
    static inline SIMD_TARGET vec gated_##name(vec gate, vec up) {                                                     \
        return v_mul(act_##name(gate), up);                                                                            \
    }                                                                                                                  \
    static inline SIMD_TARGET void gated_back_##name(vec *dg, vec *du, vec d, vec g, vec u) {                          \
        *du = v_mul(d, act_##name(g));                                                                                 \
        *dg = v_mul(v_mul(d, u), slope_##name(g));                                                                     \
    }                                                                                                                  \
    FN void op_glu_##name(float *y, const float *gate, const float *up, size_t n) {                                    \
        for (size_t i = 0; i < n; i += W)                                                                              \
            store(y + i, gated_##name(load(gate + i, n - i), load(up + i, n - i)), n - i);                             \
    }                                                                                                                  \
    FN void op_glu_bf16_##name(uint16_t *y, const uint16_t *gate, const uint16_t *up, size_t n) {                      \
        for (size_t i = 0; i < n; i += W)                                                                              \
            store_bf16(y + i, gated_##name(load_bf16(gate + i, n - i), load_bf16(up + i, n - i)), n - i);              \
    }                                                                                                                  \
    FN void op_glu_backward_##name(float *dgate, float *dup, const float *dy, const float *gate, const float *up,      \
                                   size_t n) {                                                                         \
        for (size_t i = 0; i < n; i += W) {                                                                            \
            size_t left = n - i;                                                                                       \
            vec dg, du;                                                                                                \
            gated_back_##name(&dg, &du, load(dy + i, left), load(gate + i, left), load(up + i, left));                 \
            store(dgate + i, dg, left);                                                                                \
            store(dup + i, du, left);                                                                                  \
        }                                                                                                              \
    }                                                                                                                  \
    FN void op_glu_backward_bf16_##name(uint16_t *dgate, uint16_t *dup, const uint16_t *dy, const uint16_t *gate,      \
                                        const uint16_t *up, size_t n) {                                                \
        for (size_t i = 0; i < n; i += W) {                                                                            \
            size_t left = n - i;                                                                                       \
            vec dg, du;                                                                                                \
            gated_back_##name(&dg, &du, load_bf16(dy + i, left), load_bf16(gate + i, left), load_bf16(up + i, left));  \
            store_bf16(dgate + i, dg, left);                                                                           \
            store_bf16(dup + i, du, left);                                                                             \
        }                                                                                                              \
    }                                                                                                                  \
    ALL finish_glu_together_##name(uint16_t *c, const float *sums, const float *bias, const uint16_t *gate) {          \
        enum { count = TOGETHER };                                                                                     \
        uint16_t up[TOGETHER * W];                                                                                     \
        vec g[TOGETHER];                                                                                               \
        EACH v_store_bf16(up + i * W, finished(sums, bias, NULL, (size_t)i * W, W));                                   \
        EACH g[i] = v_load_bf16(gate + i * W);                                                                         \
        name##_all(g, count);                                                                                          \
        EACH v_store_bf16(c + i * W, v_mul(g[i], v_load_bf16(up + i * W)));                                            \
    }                                                                                                                  \
    FN void op_finish_glu_##name(uint16_t *c, size_t ldc, size_t rows, size_t n, const float *sums, size_t ld,         \
                                 const float *bias, const uint16_t *gate) {                                            \
        for (size_t r = 0; r < rows; r++, c += ldc, sums += ld, gate += ldc) {                                         \
            size_t i = 0;                                                                                              \
            for (; i + TOGETHER * W <= n; i += TOGETHER * W)                                                           \
                finish_glu_together_##name(c + i, sums + i, bias ? bias + i : NULL, gate + i);                         \
            for (; i < n; i += W) {                                                                                    \
                uint16_t up[W];                                                                                        \
                v_store_bf16(up, finished(sums, bias, NULL, i, n - i));                                                \
                store_bf16(c + i, gated_##name(load_bf16(gate + i, n - i), v_load_bf16(up)), n - i);                   \
            }                                                                                                          \
        }                                                                                                              \
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
