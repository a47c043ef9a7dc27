/*
 * Functions of vectors, over the vector that the including file defines (simd_body.h says which operations it has):
 * loading and storing parts, exponentials, sigmoid.
 */

static inline SIMD_TARGET vec load(const float *p, size_t left) {
    return left >= W ? v_load(p) : v_load_part(p, left, 0);
}

static inline SIMD_TARGET vec load_or(const float *p, size_t left, float fill) {
    return left >= W ? v_load(p) : v_load_part(p, left, fill);
}

static inline SIMD_TARGET void store(float *p, vec v, size_t left) {
    if (left >= W)
        v_store(p, v);
    else
        v_store_part(p, v, left);
}

/*
 * Functions of many dependent operations take `count` vectors, a constant, one operation of all of them after the other: a CPU's
 * scheduler holds the operations of two or three vectors, which then wait for each other.
 */
#define TOGETHER 4
#define ALL      static inline __attribute__((always_inline)) SIMD_TARGET void
#define EACH     _Pragma("GCC unroll 4") for (int i = 0; i < count; i++)

/*
 * exp(x) = 2^n exp(r), n = round(x / ln 2), r = x - n ln 2 in two steps (Cody and Waite; the leading part of ln 2 has 9
 * bits, so n times it is exact even without FMA); exp(r) = 1 + r + r^2 P(r) with Cephes' P of degree 5. Measured
 * against libm's double for every seventh float in [-104, 105]: at most 1.02 ulp if the result is normal, else 0.76 of
 * the smallest subnormal. NaN stays NaN, above 88.73 it is infinity, below -103.98 it is 0. exp_parts returns exp(r) -
 * 1 and sets n; |x| is at most 104.
 */
ALL exp_parts(const vec *x, vec *result, vec *n, int count) {
    static const float c[] = {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
    vec r[TOGETHER], p[TOGETHER];
    EACH n[i] = v_round(v_mul(x[i], v_set(1.44269504088896341f)));
    EACH r[i] = v_fma(n[i], v_set(-0.693359375f), x[i]);
    EACH r[i] = v_fma(n[i], v_set(2.12194440e-4f), r[i]);
    EACH p[i] = v_fma(v_set(1.9875691500e-4f), r[i], v_set(c[0]));
    EACH p[i] = v_fma(p[i], r[i], v_set(c[1]));
    EACH p[i] = v_fma(p[i], r[i], v_set(c[2]));
    EACH p[i] = v_fma(p[i], r[i], v_set(c[3]));
    EACH p[i] = v_fma(p[i], r[i], v_set(c[4]));
    EACH result[i] = v_fma(p[i], v_mul(r[i], r[i]), r[i]);
}
ALL exp_all(vec *x, int count) {
    vec n[TOGETHER];
    EACH x[i] = v_max(v_set(-104.0f), v_min(v_set(89.0f), x[i]));
    exp_parts(x, x, n, count);
    EACH x[i] = v_ldexp(v_add(x[i], v_set(1.0f)), n[i]);
}
static inline SIMD_TARGET vec v_exp(vec x) {
    exp_all(&x, 1);
    return x;
}
/* e^x - 1 without cancellation near 0. */
static inline SIMD_TARGET vec v_expm1(vec x) {
    vec one = v_set(1), n, p;
    x = v_max(v_set(-104.0f), v_min(v_set(88.0f), x));
    exp_parts(&x, &p, &n, 1);
    return v_add(v_ldexp(p, n), v_sub(v_ldexp(one, n), one));
}

/* 2^x for x <= 0, within 3 U: a minimax polynomial of degree 5 (1.5 U) plus rounding. Below -126 it is 0: VSCALEFPS took
 * 75 ns on Emerald Rapids for a vector with a result that is subnormal or underflows, and masked scores are minus infinity. NaN
 * stays NaN. */
ALL exp2_all(vec *x, int count) {
    static const float c[] = {0.001326472731307149f, 0.009671512991189957f, 0.05550733581185341f, 0.24022242426872253f,
                              0.6931470036506653f};
    vec least = v_set(-126), r[TOGETHER], n[TOGETHER], p[TOGETHER];
    EACH r[i] = v_max(least, x[i]);
    EACH n[i] = v_round(r[i]);
    EACH r[i] = v_sub(r[i], n[i]);
    EACH p[i] = v_fma(v_set(c[0]), r[i], v_set(c[1]));
    EACH p[i] = v_fma(p[i], r[i], v_set(c[2]));
    EACH p[i] = v_fma(p[i], r[i], v_set(c[3]));
    EACH p[i] = v_fma(p[i], r[i], v_set(c[4]));
    EACH p[i] = v_fma(p[i], r[i], v_set(1));
    EACH x[i] = v_if_below(x[i], least, v_set(0), v_ldexp(p[i], n[i]));
}
static inline SIMD_TARGET vec v_exp2(vec x) {
    exp2_all(&x, 1);
    return x;
}

/* 1 / (1 + e^-x) = e^x / (1 + e^x): of the two, the one whose exponential is at most 1. */
ALL sigmoid_all(vec *x, int count) {
    vec zero = v_set(0), one = v_set(1), e[TOGETHER];
    EACH e[i] = v_sub(zero, v_abs(x[i]));
    exp_all(e, count);
    EACH x[i] = v_if_below(x[i], zero, e[i], one);
    EACH e[i] = v_inverse(v_add(one, e[i]));
    EACH x[i] = v_mul(x[i], e[i]);
}
static inline SIMD_TARGET vec v_sigmoid(vec x) {
    sigmoid_all(&x, 1);
    return x;
}

static inline SIMD_TARGET vec load_bf16(const uint16_t *p, size_t left) {
    if (left >= W) return v_load_bf16(p);
    uint16_t last[W] = {0};
    memcpy(last, p, left * sizeof *p);
    return v_load_bf16(last);
}

static inline SIMD_TARGET void store_bf16(uint16_t *p, vec v, size_t left) {
    if (left >= W) {
        v_store_bf16(p, v);
        return;
    }
    uint16_t last[W];
    v_store_bf16(last, v);
    memcpy(p, last, left * sizeof *p);
}

/* Vector i of a piece: where it is, and how many elements are left */
#define FROM  ((size_t)i * W)
#define AT(p) ((p) + FROM)
#define LEFT  (left - FROM)

ALL store_all(float *p, const vec *x, size_t left, int count) {
    EACH store(AT(p), x[i], LEFT);
}
ALL store_bf16_all(uint16_t *p, const vec *x, size_t left, int count) {
    EACH store_bf16(AT(p), x[i], LEFT);
}

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
