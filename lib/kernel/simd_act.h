/*
 * Activation functions, over the functions of simd_math.h. A new one needs its functions of a vector, SIGMOID_UNIT or ONE_BY_ONE,
 * a line in ACTIVATIONS (kernel_internal.h) and a member of enum kernel_act.
 */
#include "lib/kernel/simd_math.h"

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

/*
 * An activation consists of the part that its value and its slope (derivative) share, and of both as functions of x and this part.
 * name_parts computes it for several vectors; UNIT makes the functions that the loops call.
 */
#define UNIT(name)                                                                                                     \
    ALL name##_all(vec *x, int count) {                                                                                \
        vec s[TOGETHER];                                                                                               \
        name##_parts(s, x, count);                                                                                     \
        EACH x[i] = name##_value(x[i], s[i]);                                                                          \
    }                                                                                                                  \
    ALL name##_with_slope(vec *x, vec *slope, int count) {                                                             \
        vec s[TOGETHER];                                                                                               \
        name##_parts(s, x, count);                                                                                     \
        EACH slope[i] = name##_slope(x[i], s[i]);                                                                      \
        EACH x[i] = name##_value(x[i], s[i]);                                                                          \
    }

/* x sigmoid(z), where z is a function of x */
#define SIGMOID_UNIT(name, z)                                                                                          \
    ALL name##_parts(vec *s, const vec *x, int count) {                                                                \
        EACH s[i] = z(x[i]);                                                                                           \
        sigmoid_all(s, count);                                                                                         \
    }                                                                                                                  \
    static inline SIMD_TARGET vec name##_value(vec x, vec s) {                                                         \
        return v_mul(x, s);                                                                                            \
    }                                                                                                                  \
    UNIT(name)

/* The part is computed for one vector after the other. */
#define ONE_BY_ONE(name)                                                                                               \
    ALL name##_parts(vec *s, const vec *x, int count) {                                                                \
        EACH s[i] = name##_part(x[i]);                                                                                 \
    }                                                                                                                  \
    UNIT(name)

/* ---- SiLU, swish: x sigmoid(x) ---- */

/* s (1 + x (1 - s)) */
static inline SIMD_TARGET vec silu_slope(vec x, vec s) {
    return v_mul(s, v_fma(x, v_sub(v_set(1), s), v_set(1)));
}
SIGMOID_UNIT(silu, )

/* ---- GELU (Hendrycks and Gimpel 2016): x F(x), F the normal distribution function -------------------------------- */

#define SQRT_HALF 0.70710678118654752f

/* F(-|x|), so that nothing cancels on either side */
static inline SIMD_TARGET vec gelu_part(vec x) {
    return v_half_erfc(v_mul(v_abs(x), v_set(SQRT_HALF)));
}
static inline SIMD_TARGET vec gelu_value(vec x, vec below) {
    return v_sub(v_max(v_set(0), x), v_mul(v_abs(x), below));
}
/* F(x) + x f(x), with f the density */
static inline SIMD_TARGET vec gelu_slope(vec x, vec below) {
    vec side = v_step(x);
    vec f = v_mul(v_set(0.39894228040143268f), v_exp(v_mul(v_mul(x, x), v_set(-0.5f))));
    vec distribution = v_add(side, v_mul(below, v_sub(v_set(1), v_add(side, side))));
    return v_fma(x, f, distribution);
}
ONE_BY_ONE(gelu)

/* The approximation with tanh, by 0.5 (1 + tanh(u)) = sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3) */
static inline SIMD_TARGET vec gelu_tanh_z(vec x) {
    vec cubic = v_fma(v_mul(x, x), v_set(2 * 0.7978845608028654f * 0.044715f), v_set(2 * 0.7978845608028654f));
    return v_mul(x, cubic);
}
static inline SIMD_TARGET vec gelu_tanh_slope(vec x, vec s) {
    vec rise = v_fma(v_mul(x, x), v_set(6 * 0.7978845608028654f * 0.044715f),
                     v_set(2 * 0.7978845608028654f)); /* derivative of 2 u */
    return v_fma(v_mul(v_mul(x, rise), s), v_sub(v_set(1), s), s);
}
SIGMOID_UNIT(gelu_tanh, gelu_tanh_z)

/* The approximation x sigmoid(1.702 x) */
static inline SIMD_TARGET vec gelu_quick_z(vec x) {
    return v_mul(x, v_set(1.702f));
}
static inline SIMD_TARGET vec gelu_quick_slope(vec x, vec s) {
    return v_mul(s, v_fma(gelu_quick_z(x), v_sub(v_set(1), s), v_set(1)));
}
SIGMOID_UNIT(gelu_quick, gelu_quick_z)

/* ---- ReLU, its square (So et al. 2021, "Primer"), tanh ---- */

static inline SIMD_TARGET vec relu_part(vec x) {
    return v_max(v_set(0), x);
}
static inline SIMD_TARGET vec relu_value(vec x, vec r) {
    (void)x;
    return r;
}
static inline SIMD_TARGET vec relu_slope(vec x, vec r) {
    (void)r;
    return v_step(x);
}
ONE_BY_ONE(relu)

#define relu_squared_part relu_part
static inline SIMD_TARGET vec relu_squared_value(vec x, vec r) {
    (void)x;
    return v_mul(r, r);
}
static inline SIMD_TARGET vec relu_squared_slope(vec x, vec r) {
    (void)x;
    return v_add(r, r);
}
ONE_BY_ONE(relu_squared)

#define tanh_part v_tanh
static inline SIMD_TARGET vec tanh_value(vec x, vec t) {
    (void)x;
    return t;
}
static inline SIMD_TARGET vec tanh_slope(vec x, vec t) {
    (void)x;
    return v_sub(v_set(1), v_mul(t, t));
}
ONE_BY_ONE(tanh)
