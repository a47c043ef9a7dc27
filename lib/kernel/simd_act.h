/*
 * Activation functions and the loops that use them, over the vector of simd_body.h, which includes this file. A new one
 * needs its functions of a vector, SIGMOID_UNIT or ONE_BY_ONE, a line in ACTIVATIONS and a member of enum kernel_act.
 */

/* `piece` for all i < n: a constant `count` of vectors at a time, with `left` elements from i on. */
#define STEPS(n, piece)                                                                                                \
    do {                                                                                                               \
        size_t i = 0;                                                                                                  \
        for (; i + TOGETHER * W <= (n); i += TOGETHER * W) {                                                           \
            enum { count = TOGETHER, left = TOGETHER * W };                                                            \
            piece;                                                                                                     \
        }                                                                                                              \
        for (; i < (n); i += W) {                                                                                      \
            enum { count = 1 };                                                                                        \
            size_t left = (n)-i;                                                                                       \
            piece;                                                                                                     \
        }                                                                                                              \
    } while (0)
/* Element i of the vectors of a piece */
#define AT(p) ((p) + (size_t)i * W)
#define LEFT  (left - (size_t)i * W)

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

/* In the order of enum kernel_act. */
#define ACTIVATIONS(X) X(silu) X(gelu) X(gelu_tanh) X(gelu_quick) X(relu) X(relu_squared) X(tanh)

/* Pieces of the loops, then the loops. The second factor of a gated unit is rounded before the product in finish_glu. */
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
    GATED_PIECES(name, , float, load, store)                                                                           \
    GATED_PIECES(name, bf16_, uint16_t, load_bf16, store_bf16)                                                         \
    ALL finish_piece_##name(uint16_t *c, const float *sums, const float *bias, const uint16_t *gate, size_t left,      \
                            int count) {                                                                               \
        uint16_t up[TOGETHER * W];                                                                                     \
        vec g[TOGETHER];                                                                                               \
        EACH v_store_bf16(AT(up), finished(sums, bias, NULL, (size_t)i *W, LEFT));                                     \
        EACH g[i] = load_bf16(AT(gate), LEFT);                                                                         \
        name##_all(g, count);                                                                                          \
        EACH store_bf16(AT(c), v_mul(g[i], v_load_bf16(AT(up))), LEFT);                                                \
    }                                                                                                                  \
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
            STEPS(n, finish_piece_##name(c + i, sums + i, bias ? bias + i : NULL, gate + i, left, count));             \
    }

/* y = act(gate) up, and its gradients, for one element type */
#define GATED_PIECES(name, kind, type, get, put)                                                                       \
    ALL glu_##kind##name(type *y, const type *gate, const type *up, size_t left, int count) {                          \
        vec g[TOGETHER];                                                                                               \
        EACH g[i] = get(AT(gate), LEFT);                                                                               \
        name##_all(g, count);                                                                                          \
        EACH put(AT(y), v_mul(g[i], get(AT(up), LEFT)), LEFT);                                                         \
    }                                                                                                                  \
    ALL glu_backward_##kind##name(type *dgate, type *dup, const type *dy, const type *gate, const type *up,            \
                                  size_t left, int count) {                                                            \
        vec g[TOGETHER], slope[TOGETHER], d[TOGETHER], u[TOGETHER];                                                    \
        EACH g[i] = get(AT(gate), LEFT);                                                                               \
        name##_with_slope(g, slope, count);                                                                            \
        EACH d[i] = get(AT(dy), LEFT);                                                                                 \
        EACH u[i] = get(AT(up), LEFT);                                                                                 \
        EACH put(AT(dgate), v_mul(v_mul(d[i], u[i]), slope[i]), LEFT);                                                 \
        EACH put(AT(dup), v_mul(d[i], g[i]), LEFT);                                                                    \
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
