/*
 * The loops of one CPU path, over an abstract vector. simd_portable.c, simd_avx2.c and simd_avx512.h each define the
 * vector and then include this file, so an algorithm is written once. The including file defines:
 *
 *   SIMD_TARGET           function attribute that lets the compiler use the path's instructions
 *   SIMD_NAME, SIMD_TABLE the path's name and the table defined at the end; SIMD_GEMM its f32 matrix product,
 *                         SIMD_INT8 its integer micro-kernel, SIMD_TRANSPOSE its transposition of words
 *   vec, W                a vector of W floats
 *   v_set v_load v_store v_load_part(p, n, fill) v_store_part(p, v, n)   part: only the first n < W lanes
 *   v_add v_sub v_mul v_div v_sqrt v_abs v_fma(a, b, c) = a b + c        (portable: rounded twice)
 *   v_max v_min(a, b)     b if either is NaN
 *   v_round               to the nearest integer; v_ldexp(x, n) = x 2^n for integral n in [-150, 128]
 *   v_exponent(x)         floor(log2 x) of a positive normal number
 *   v_hmax v_hsum         over the lanes, in a fixed order
 *   v_above(a, b)         bit i: a > b in lane i; v_if_below(a, b, x, y): x where a < b, else y
 *   v_inverse(a)          1 / a for a in [1, 2], within 1.1 U of it
 *   dvec                  W numbers in f64: d_zero d_set d_load_part(p, n; padded with 0) d_muladd(a, b, c) = a b + c
 *   d_round d_sum         as above
 *   d_add(d, v) d_fma(d, a, b)   d + v, d + a b for vectors of f32, exact products
 *   d_widen(p)            W floats from memory, where AVX-512 widens without exchanging halves
 *   d_narrow(d)           to f32
 *   v_load_bf16(p) v_store_bf16(p, v)   W bf16: widened; rounded to nearest even, NaN stays NaN
 *   v_load_f16(p) v_store_f16(p, v)     W f16, likewise
 *   v_store_bf16_two(p, a, b)   the same of two vectors
 *   v_pair(p, q)          the bits of p[i] | q[i] << 16 in lane i
 *   v_pair_f32(a, b)      the same of a and b rounded
 */

#define FN static SIMD_TARGET

#include "lib/kernel/simd_finish.h"

/* ---- element by element ---- */

FN void op_fill(float *y, size_t n, float a) {
    for (size_t i = 0; i < n; i += W) store(y + i, v_set(a), n - i);
}

FN void op_scale(float *y, size_t n, float a) {
    for (size_t i = 0; i < n; i += W) store(y + i, v_mul(load(y + i, n - i), v_set(a)), n - i);
}

FN void op_scale_copy(float *y, float a, const float *x, size_t n) {
    for (size_t i = 0; i < n; i += W) store(y + i, v_mul(v_set(a), load(x + i, n - i)), n - i);
}

FN void op_add(float *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i += W) store(y + i, v_add(load(y + i, n - i), load(x + i, n - i)), n - i);
}

FN void op_axpy(float *y, float a, const float *x, size_t n) {
    for (size_t i = 0; i < n; i += W) store(y + i, v_fma(v_set(a), load(x + i, n - i), load(y + i, n - i)), n - i);
}

/* Eight doubles, in as many registers of the path as they take. */
typedef double wide __attribute__((vector_size(8 * sizeof(double)), aligned(sizeof(double)), may_alias));
typedef float narrow __attribute__((vector_size(8 * sizeof(float)), aligned(sizeof(float)), may_alias));

FN void op_solve_side(double (*x)[FACTOR_SIDE], const double (*d)[FACTOR_BLOCK], size_t b) {
    wide *v = (wide *)x;
    for (size_t c = b; c-- > 0;) {
        wide sum = v[c];
        for (size_t k = c + 1; k < b; k++) sum -= v[k] * d[c][k];
        v[c] = sum / d[c][c];
    }
}

FN void op_subtract_wide(double *y, double a, const float *x, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) *(wide *)(y + i) -= a * __builtin_convertvector(*(const narrow *)(x + i), wide);
    for (; i < n; i++) y[i] -= a * (double)x[i];
}

FN void op_mul_scaled(float *y, const float *x, const float *w, float a, size_t n) {
    for (size_t i = 0; i < n; i += W)
        store(y + i, v_mul(v_mul(load(x + i, n - i), v_set(a)), load(w + i, n - i)), n - i);
}

FN void op_square_acc(float *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i += W) {
        vec a = load(x + i, n - i);
        store(y + i, v_fma(a, a, load(y + i, n - i)), n - i);
    }
}

FN void op_abs_acc(float *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i += W) store(y + i, v_add(load(y + i, n - i), v_abs(load(x + i, n - i))), n - i);
}

FN void op_mul_acc(float *y, float a, const float *x, const float *z, size_t n) {
    for (size_t i = 0; i < n; i += W) {
        vec t = v_mul(v_mul(load(x + i, n - i), v_set(a)), load(z + i, n - i));
        store(y + i, v_add(load(y + i, n - i), t), n - i);
    }
}

/* Two sums, because each addition waits for the one before. */
FN double op_dot(const float *x, const float *y, size_t n) {
    dvec a = d_zero(), b = a;
    size_t i = 0;
    for (; x == y && i + 2 * W <= n; i += 2 * W) { /* a sum of squares widens half as much */
        dvec p = d_widen(x + i), q = d_widen(x + i + W);
        a = d_muladd(p, p, a);
        b = d_muladd(q, q, b);
    }
    for (; i + 2 * W <= n; i += 2 * W) {
        a = d_muladd(d_widen(x + i), d_widen(y + i), a);
        b = d_muladd(d_widen(x + i + W), d_widen(y + i + W), b);
    }
    for (; i < n; i += W) a = d_fma(a, load(x + i, n - i), load(y + i, n - i));
    return d_sum(d_muladd(a, d_set(1), b));
}

FN double op_distance(const float *x, const float *y, size_t n) {
    dvec sum = d_zero();
    for (size_t i = 0; i < n; i += W) {
        vec by = v_sub(load(x + i, n - i), load(y + i, n - i));
        sum = d_fma(sum, by, by);
    }
    return d_sum(sum);
}

FN double op_sum(const float *x, size_t n) {
    dvec sum = d_zero();
    for (size_t i = 0; i < n; i += W) sum = d_add(sum, load(x + i, n - i));
    return d_sum(sum);
}

FN double op_dot3(const float *x, const float *y, const float *z, size_t n) {
    dvec sum = d_zero();
    for (size_t i = 0; i < n; i += W)
        sum = d_fma(sum, v_mul(load(x + i, n - i), load(y + i, n - i)), load(z + i, n - i));
    return d_sum(sum);
}

/* ---- softmax and its parts ---- */

FN float op_max(const float *x, size_t n) {
    vec a = v_set(-INFINITY), b = a;
    size_t i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {
        a = v_max(v_load(x + i), a);
        b = v_max(v_load(x + i + W), b);
    }
    for (; i < n; i += W) a = v_max(load_or(x + i, n - i, -INFINITY), a);
    return v_hmax(v_max(a, b));
}

/* 0 * x is 0, or NaN if x is not finite. */
FN float op_max_finite(const float *x, size_t n, bool *finite) {
    vec a = v_set(-INFINITY), b = a, bad = v_set(0), worse = bad;
    size_t i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {
        vec p = v_load(x + i), q = v_load(x + i + W);
        a = v_max(p, a);
        b = v_max(q, b);
        bad = v_fma(p, v_set(0), bad);
        worse = v_fma(q, v_set(0), worse);
    }
    for (; i < n; i += W) {
        a = v_max(load_or(x + i, n - i, -INFINITY), a);
        bad = v_fma(load(x + i, n - i), v_set(0), bad);
    }
    if (v_hsum(v_add(bad, worse)) != 0) *finite = false;
    return v_hmax(v_max(a, b));
}

FN size_t op_find_above(const float *x, size_t n, float bound) {
    vec b = v_set(bound);
    size_t i = 0;
    for (; i < n; i += W) {
        unsigned lanes = v_above(load_or(x + i, n - i, -INFINITY), b);
        if (lanes) return i + (size_t)__builtin_ctz(lanes);
    }
    return n;
}

/* e = exp((x - m) s), where elements that are missing count as minus infinity; added to sum in order. */
ALL add_exps(dvec *sum, vec *e, const float *x, vec m, vec s, size_t left, int count) {
    EACH e[i] = v_mul(v_sub(load_or(AT(x), LEFT, -INFINITY), m), s);
    exp_all(e, count);
    EACH *sum = d_add(*sum, e[i]);
}

FN double op_exp_sum(const float *x, size_t n, float m, float s) {
    dvec sum = d_zero();
    vec e[TOGETHER], top = v_set(m), scale = v_set(s);
    STEPS(n, add_exps(&sum, e, x + i, top, scale, left, count));
    return d_sum(sum);
}

FN double op_exp_store(float *y, const float *x, size_t n, float m, float s) {
    dvec sum = d_zero();
    vec e[TOGETHER], top = v_set(m), scale = v_set(s);
    STEPS(n, add_exps(&sum, e, x + i, top, scale, left, count); store_all(y + i, e, left, count));
    return d_sum(sum);
}

static inline SIMD_TARGET vec weight(const float *x, size_t left, vec m, vec s) {
    return v_exp2(v_mul(v_sub(load_or(x, left, -INFINITY), m), s));
}
/* The weights of `count` whole vectors. */
ALL weights(vec *e, const float *x, vec m, vec s, int count) {
    EACH e[i] = v_mul(v_sub(v_load(x + i * W), m), s);
    exp2_all(e, count);
}

FN float op_exp2_sum(const float *x, size_t n, float m, float s) {
    vec a = v_set(0), b = a, top = v_set(m), scale = v_set(s);
    size_t i = 0;
    for (; i + TOGETHER * W <= n; i += TOGETHER * W) {
        vec e[TOGETHER];
        weights(e, x + i, top, scale, TOGETHER);
        a = v_add(v_add(a, e[0]), e[2]);
        b = v_add(v_add(b, e[1]), e[3]);
    }
    for (; i < n; i += W) a = v_add(a, weight(x + i, n - i, top, scale));
    return v_hsum(v_add(a, b));
}

FN void op_exp2_store(float *y, const float *x, size_t n, float m, float s) {
    for (size_t i = 0; i < n; i += W) store(y + i, weight(x + i, n - i, v_set(m), v_set(s)), n - i);
}

FN void op_affine(float *y, const float *x, size_t n, float m, float s, float c) {
    for (size_t i = 0; i < n; i += W) {
        vec z = v_mul(v_sub(load(x + i, n - i), v_set(m)), v_set(s));
        store(y + i, v_sub(z, v_set(c)), n - i);
    }
}

FN void op_softmax_backward(float *ds, const float *p, const float *dp, float a, size_t n) {
    for (size_t i = 0; i < n; i += W)
        store(ds + i, v_mul(load(p + i, n - i), v_sub(load(dp + i, n - i), v_set(a))), n - i);
}

/* ---- layers ---- */

FN void op_rmsnorm_dx(float *dx, const float *dy, const float *x, const float *w, float inv, float a, size_t n) {
    for (size_t i = 0; i < n; i += W) {
        size_t left = n - i;
        vec g = v_mul(v_mul(v_set(inv), load(w + i, left)), load(dy + i, left));
        g = v_sub(g, v_mul(v_set(a), load(x + i, left)));
        store(dx + i, v_add(load(dx + i, left), g), left);
    }
}

/* y = (x - mean) inv w + b; b may be NULL */
FN void op_layernorm(float *y, const float *x, const float *w, const float *b, float mean, float inv, size_t n) {
    for (size_t i = 0; i < n; i += W) {
        size_t left = n - i;
        vec g = v_mul(v_mul(v_sub(load(x + i, left), v_set(mean)), v_set(inv)), load(w + i, left));
        store(y + i, b ? v_add(g, load(b + i, left)) : g, left);
    }
}

/* dx += inv w dy - a - c (x - mean) */
FN void op_layernorm_dx(float *dx, const float *dy, const float *x, const float *w, float mean, float inv, float a,
                        float c, size_t n) {
    for (size_t i = 0; i < n; i += W) {
        size_t left = n - i;
        vec g = v_sub(v_mul(v_mul(v_set(inv), load(w + i, left)), load(dy + i, left)), v_set(a));
        g = v_sub(g, v_mul(v_set(c), v_sub(load(x + i, left), v_set(mean))));
        store(dx + i, v_add(load(dx + i, left), g), left);
    }
}

/*
 * Cosines and sines of position * inv_freq, in f64 until the last rounding. The angle is reduced to [-pi, pi] in three
 * steps (2 pi in parts of 22, 22 and 53 bits: a multiple below 2^31 times either of the first two is exact), then
 * polynomials in its square, interpolated at Chebyshev's nodes: sin to 7.5e-10 of r, cos to 1.2e-10, far below half an
 * ulp.
 */
FN void op_angles(float *cosine, float *sine, double position, const double *inv_freq, double sign, size_t n) {
    static const double s[] = {0.99999999925022021,     -0.16666665921891699,   0.0083333212359772858,
                               -0.00019840531555422378, 2.7535800485794529e-06, -2.4728366504509055e-08,
                               1.3611596264829657e-10};
    static const double c[] = {0.99999999988461774,    -0.49999999850320775,   0.041666663477680735,
                               -0.001388886297374907,  2.4800551330008773e-05, -2.7534767446172551e-07,
                               2.0603330026132627e-09, -9.7217340133762124e-12};
    for (size_t i = 0; i < n; i += W) {
        dvec t = d_muladd(d_set(position), d_load_part(inv_freq + i, n - i), d_zero());
        dvec turns = d_round(d_muladd(t, d_set(0.15915494309189535), d_zero()));
        dvec r = d_muladd(turns, d_set(-0x1.921fb00000000p+2), t);
        r = d_muladd(turns, d_set(-0x1.5110b00000000p-20), r);
        r = d_muladd(turns, d_set(-0x1.18469898cc517p-42), r);
        dvec u = d_muladd(r, r, d_zero()), y = d_set(s[6]), z = d_set(c[7]);
        for (int k = 5; k >= 0; k--) y = d_muladd(y, u, d_set(s[k]));
        for (int k = 6; k >= 0; k--) z = d_muladd(z, u, d_set(c[k]));
        store(cosine + i, d_narrow(z), n - i);
        store(sine + i, d_narrow(d_muladd(d_muladd(y, r, d_zero()), d_set(sign), d_zero())), n - i);
    }
}

FN void op_rotate(float *x1, float *x2, const float *cosine, const float *sine, size_t n) {
    for (size_t i = 0; i < n; i += W) {
        size_t left = n - i;
        vec a = load(x1 + i, left), b = load(x2 + i, left), c = load(cosine + i, left), s = load(sine + i, left);
        store(x1 + i, v_sub(v_mul(a, c), v_mul(b, s)), left);
        store(x2 + i, v_fma(b, c, v_mul(a, s)), left);
    }
}

/* ---- a vector against rows ---- */

/* A dot product in f32: four sums of W lanes, so that additions need not wait for each other. */
static inline SIMD_TARGET float dot_f32(const float *x, const float *y, size_t n) {
    vec s0 = v_set(0), s1 = s0, s2 = s0, s3 = s0;
    size_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W) {
        s0 = v_fma(v_load(x + i), v_load(y + i), s0);
        s1 = v_fma(v_load(x + i + W), v_load(y + i + W), s1);
        s2 = v_fma(v_load(x + i + 2 * W), v_load(y + i + 2 * W), s2);
        s3 = v_fma(v_load(x + i + 3 * W), v_load(y + i + 3 * W), s3);
    }
    for (; i < n; i += W) s0 = v_fma(load(x + i, n - i), load(y + i, n - i), s0);
    return v_hsum(v_add(v_add(s0, s1), v_add(s2, s3)));
}

FN void op_dots(float *out, const float *x, const float *rows, size_t ld, size_t count, size_t k) {
    for (size_t r = 0; r < count; r++) out[r] = dot_f32(x, rows + r * ld, k);
}

FN void op_mix_rows(float *y, const float *p, const float *rows, size_t ld, size_t count, size_t k) {
    size_t i = 0;
    for (; i + 4 * W <= k; i += 4 * W) {
        vec s0 = v_load(y + i), s1 = v_load(y + i + W), s2 = v_load(y + i + 2 * W), s3 = v_load(y + i + 3 * W);
        for (size_t r = 0; r < count; r++) {
            const float *row = rows + r * ld + i;
            vec a = v_set(p[r]);
            s0 = v_fma(a, v_load(row), s0);
            s1 = v_fma(a, v_load(row + W), s1);
            s2 = v_fma(a, v_load(row + 2 * W), s2);
            s3 = v_fma(a, v_load(row + 3 * W), s3);
        }
        v_store(y + i, s0);
        v_store(y + i + W, s1);
        v_store(y + i + 2 * W, s2);
        v_store(y + i + 3 * W, s3);
    }
    for (; i < k; i += W) {
        vec s = load(y + i, k - i);
        for (size_t r = 0; r < count; r++) s = v_fma(v_set(p[r]), load(rows + r * ld + i, k - i), s);
        store(y + i, s, k - i);
    }
}

/* ---- the loss ---- */

/* Log-probabilities of minus infinity are raised to a number whose exp is still 0, so that 0 log 0 is 0, not NaN. */
#define LOG_ZERO (-1e30f)

FN double op_kl_dense(const float *logt, const float *x, size_t n, float m, float s, double c, double *mass) {
    dvec kl = d_zero(), total = d_zero();
    vec offset = v_set((float)c);
    for (size_t i = 0; i < n; i += W) {
        vec z = v_mul(v_sub(load_or(x + i, n - i, m), v_set(m)), v_set(s));
        vec lp = v_max(v_set(LOG_ZERO), v_sub(z, offset));
        vec lt = v_max(v_set(LOG_ZERO), load_or(logt + i, n - i, -INFINITY));
        vec t = v_exp(lt);
        kl = d_fma(kl, t, v_sub(lt, lp));
        total = d_add(total, t);
    }
    *mass += d_sum(total);
    return d_sum(kl);
}

/* The flags are constants in each call, so each combination is a loop without branches. */
ALL loss_gradient_piece(float *dx, const float *x, const float *logt, vec m, vec s, vec a, vec b, vec c, bool two,
                        bool dense, size_t left, int count) {
    vec z[TOGETHER], g[TOGETHER], t[TOGETHER];
    EACH z[i] = v_sub(load(AT(x), LEFT), m);
    EACH g[i] = v_mul(z[i], s);
    exp_all(g, count);
    EACH g[i] = v_mul(a, g[i]);
    if (two) {
        exp_all(z, count);
        EACH g[i] = v_fma(b, z[i], g[i]);
    }
    if (dense) {
        EACH t[i] = load(AT(logt), LEFT);
        exp_all(t, count);
        EACH g[i] = v_sub(g[i], v_mul(c, t[i]));
    }
    store_all(dx, g, left, count);
}
static inline SIMD_TARGET void loss_gradient(float *dx, const float *x, const float *logt, size_t n, float m, float s,
                                             float a, float b, float c, bool two, bool dense) {
    STEPS(n, loss_gradient_piece(dx + i, x + i, dense ? logt + i : NULL, v_set(m), v_set(s), v_set(a), v_set(b),
                                 v_set(c), two, dense, left, count));
}

FN void op_loss_gradient(float *dx, const float *x, const float *logt, size_t n, float m, float s, float a, float b,
                         float c) {
    if (logt && b != 0)
        loss_gradient(dx, x, logt, n, m, s, a, b, c, true, true);
    else if (logt)
        loss_gradient(dx, x, logt, n, m, s, a, b, c, false, true);
    else if (b != 0)
        loss_gradient(dx, x, logt, n, m, s, a, b, c, true, false);
    else
        loss_gradient(dx, x, logt, n, m, s, a, b, c, false, false);
}

#include "lib/kernel/simd_divergence.h"

/* ---- bf16 ---- */

/* Two vectors at a time; in loops that do more than this it was slower (README.md). */
FN void op_to_bf16(uint16_t *y, const float *x, size_t n) {
    size_t i = 0;
    for (; i + 2 * W <= n; i += 2 * W) v_store_bf16_two(y + i, v_load(x + i), v_load(x + i + W));
    for (; i < n; i += W) store_bf16(y + i, load(x + i, n - i), n - i);
}

FN void op_from_bf16(float *y, const uint16_t *x, size_t n) {
    for (size_t i = 0; i < n; i += W) store(y + i, load_bf16(x + i, n - i), n - i);
}

FN void op_scale_bf16(uint16_t *y, float a, const float *x, size_t n) {
    for (size_t i = 0; i < n; i += W) store_bf16(y + i, v_mul(v_set(a), load(x + i, n - i)), n - i);
}

FN void op_mul_scaled_bf16(uint16_t *y, const float *x, const float *w, float a, size_t n) {
    for (size_t i = 0; i < n; i += W)
        store_bf16(y + i, v_mul(v_mul(load(x + i, n - i), v_set(a)), load(w + i, n - i)), n - i);
}

FN void op_rotate_bf16(uint16_t *x1, uint16_t *x2, const float *cosine, const float *sine, size_t n) {
    for (size_t i = 0; i < n; i += W) {
        size_t left = n - i;
        vec a = load_bf16(x1 + i, left), b = load_bf16(x2 + i, left), c = load(cosine + i, left),
            s = load(sine + i, left);
        store_bf16(x1 + i, v_sub(v_mul(a, c), v_mul(b, s)), left);
        store_bf16(x2 + i, v_fma(b, c, v_mul(a, s)), left);
    }
}

FN void op_pair(uint32_t *y, const uint16_t *x, const uint16_t *z, size_t n) {
    size_t i = 0;
    for (; n - i >= W; i += W) v_store((float *)(void *)(y + i), v_pair(x + i, z + i));
    for (; i < n; i++) y[i] = x[i] | (uint32_t)z[i] << 16;
}

FN void op_pair_f32(uint32_t *y, const float *x, const float *z, size_t n) {
    size_t i = 0;
    for (; n - i >= W; i += W) v_store((float *)(void *)(y + i), v_pair_f32(v_load(x + i), v_load(z + i)));
    if (i == n) return;
    uint32_t last[W];
    v_store((float *)(void *)last, v_pair_f32(load(x + i, n - i), load(z + i, n - i)));
    memcpy(y + i, last, (n - i) * sizeof *y);
}

FN void op_pair_rows(uint32_t *y, const uint16_t *x, size_t ld, size_t pairs) {
    for (; pairs > 0; pairs--, y += PANEL, x += 2 * ld)
        for (size_t i = 0; i < PANEL; i += W) v_store((float *)(void *)(y + i), v_pair(x + i, x + ld + i));
}

FN void op_finish_f32(float *c, size_t ldc, size_t rows, size_t n, const float *sums, size_t ld, const float *bias,
                      const float *residual) {
    for (size_t r = 0; r < rows; r++, c += ldc, sums += ld, residual = residual ? residual + ldc : NULL)
        STEPS(n, finish_f32(c + i, sums + i, bias ? bias + i : NULL, residual ? residual + i : NULL, left, count));
}

FN void op_finish_bf16(uint16_t *c, size_t ldc, size_t rows, size_t n, const float *sums, size_t ld, const float *bias,
                       const float *residual) {
    for (size_t r = 0; r < rows; r++, c += ldc, sums += ld, residual = residual ? residual + ldc : NULL)
        STEPS(n, finish_bf16(c + i, sums + i, bias ? bias + i : NULL, residual ? residual + i : NULL, left, count));
}

#include "lib/kernel/simd_act_loops.h"
#include "lib/kernel/simd_lstm.h"

/* ---- f16 ---- */

FN void op_from_f16(float *y, const uint16_t *x, size_t n) {
    size_t i = 0;
    for (; n - i >= W; i += W) v_store(y + i, v_load_f16(x + i));
    uint16_t last[W] = {0};
    if (i == n) return;
    memcpy(last, x + i, (n - i) * sizeof *x);
    v_store_part(y + i, v_load_f16(last), n - i);
}

/* What rounds to at most 65504 is less than 65520; NaN is not. */
FN bool op_affine_f16(uint16_t *y, const float *x, size_t n, float m, float s, float c) {
    const unsigned all = (1u << W) - 1;
    unsigned good = all;
    for (size_t i = 0; i < n; i += W) {
        vec z = v_sub(v_mul(v_sub(load_or(x + i, n - i, m), v_set(m)), v_set(s)), v_set(c));
        good &= v_above(v_set(65520), v_abs(z));
        uint16_t last[W], *to = n - i >= W ? y + i : last;
        v_store_f16(to, z);
        if (to == last) memcpy(y + i, last, (n - i) * sizeof *y);
    }
    return good == all;
}

/* ---- the softmax of attention, one block of scores --------------------------------------------------------------- */

#define SOFTMAX_ROWS 64 /* rows at a time: their factors are on the stack */

/* Updates the maxima of n rows, and returns the factors for the old sums. */
static inline SIMD_TARGET void new_maxima(const float *x, size_t n, size_t ld, const uint32_t *seen, float s, float *m,
                                          float *shrink) {
    for (size_t r = 0; r < n; r++) {
        vec a = v_set(-INFINITY);
        for (size_t i = 0; i < seen[r]; i += W) a = v_max(load_or(x + r * ld + i, seen[r] - i, -INFINITY), a);
        float top = v_hmax(a), before = m[r];
        m[r] = top > before ? top : before;
        shrink[r] = before == m[r] ? 0 : before - m[r]; /* minus infinity for the first block of keys */
    }
    for (size_t r = 0; r < n; r += W) store(shrink + r, v_exp2(v_mul(load(shrink + r, n - r), v_set(s))), n - r);
}

FN void op_softmax_rows(uint16_t *p, const float *x, size_t rows, size_t ld, const uint32_t *seen, size_t width,
                        float s, float *m, double *l, float *o, size_t d) {
    float shrink[SOFTMAX_ROWS];
    s *= LOG2_E; /* base 2 */
    for (size_t first = 0; first < rows; first += SOFTMAX_ROWS) {
        size_t n = rows - first < SOFTMAX_ROWS ? rows - first : SOFTMAX_ROWS;
        new_maxima(x + first * ld, n, ld, seen + first, s, m + first, shrink);
        for (size_t j = 0; j < n; j++) {
            size_t r = first + j, i = 0;
            vec sum = v_set(0), top = v_set(m[r]), scale = v_set(s);
            for (; i + TOGETHER * W <= seen[r]; i += TOGETHER * W) {
                vec e[TOGETHER];
                weights(e, x + r * ld + i, top, scale, TOGETHER);
                store_bf16_all(p + r * ld + i, e, TOGETHER * W, TOGETHER);
                sum = v_add(sum, v_add(v_add(e[0], e[1]), v_add(e[2], e[3])));
            }
            for (; i < seen[r]; i += W) {
                vec e = weight(x + r * ld + i, seen[r] - i, top, scale);
                v_store_bf16(p + r * ld + i, e);
                sum = v_add(sum, e);
            }
            for (; i < width; i += W) v_store_bf16(p + r * ld + i, v_set(0));
            for (size_t k = 0; k < d && l[r] != 0; k += W)
                store(o + r * d + k, v_mul(load(o + r * d + k, d - k), v_set(shrink[j])), d - k);
            l[r] = l[r] * shrink[j] + v_hsum(sum);
        }
    }
}

/* Whole vectors: p and ds are padded. */
ALL softmax_backward_piece(uint16_t *p, uint16_t *ds, const float *x, const float *dp, vec m, vec base2, vec s,
                           vec mean, size_t left, int count) {
    vec e[TOGETHER];
    EACH e[i] = v_mul(v_sub(load_or(AT(x), LEFT, -INFINITY), m), base2);
    exp2_all(e, count);
    store_bf16_all(p, e, (size_t)count * W, count);
    EACH e[i] = v_mul(v_mul(e[i], v_sub(load(AT(dp), LEFT), mean)), s);
    store_bf16_all(ds, e, (size_t)count * W, count);
}

FN void op_softmax_backward_bf16(uint16_t *p, uint16_t *ds, const float *x, const float *dp, size_t n, size_t width,
                                 float m, float s, float a) {
    vec top = v_set(m), scale = v_set(s), base2 = v_set(s * 1.44269504088896341f), mean = v_set(a);
    STEPS(n, softmax_backward_piece(p + i, ds + i, x + i, dp + i, top, base2, scale, mean, left, count));
    for (size_t i = (n + W - 1) / W * W; i < width; i += W) {
        v_store_bf16(p + i, v_set(0));
        v_store_bf16(ds + i, v_set(0));
    }
}

/* ---- random numbers: Philox4x32-10 as in lib/base, sixteen counters at once -------------------------------------- */

typedef uint32_t lanes32 __attribute__((vector_size(64)));
typedef uint64_t lanes64 __attribute__((vector_size(64)));
typedef uint16_t lanes16 __attribute__((vector_size(32)));

FN void op_random(uint32_t *out, uint64_t seed, uint64_t stream, uint64_t counter, size_t blocks) {
    const lanes64 low = (lanes64){} + 0xffffffffu;
    for (; blocks > 0; blocks--, counter += 16, out += 64) {
        uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
        lanes32 c0, c1, c2 = (lanes32){} + (uint32_t)stream, c3 = (lanes32){} + (uint32_t)(stream >> 32);
        for (unsigned i = 0; i < 16; i++) {
            c0[i] = (uint32_t)(counter + i);
            c1[i] = (uint32_t)((counter + i) >> 32);
        }
        for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
            /* 32 x 32 to 64 bits, for even and odd lanes separately */
            lanes64 even0 = ((lanes64)c0 & low) * 0xD2511F53u, odd0 = ((lanes64)c0 >> 32) * 0xD2511F53u;
            lanes64 even1 = ((lanes64)c2 & low) * 0xCD9E8D57u, odd1 = ((lanes64)c2 >> 32) * 0xCD9E8D57u;
            c0 = (lanes32)((even1 >> 32) | (odd1 & ~low)) ^ c1 ^ k0;
            c2 = (lanes32)((even0 >> 32) | (odd0 & ~low)) ^ c3 ^ k1;
            c1 = (lanes32)((even1 & low) | (odd1 << 32));
            c3 = (lanes32)((even0 & low) | (odd0 << 32));
        }
        memcpy(out, &c0, sizeof c0);
        memcpy(out + 16, &c1, sizeof c1);
        memcpy(out + 32, &c2, sizeof c2);
        memcpy(out + 48, &c3, sizeof c3);
    }
}

FN void op_to_bf16_random(uint16_t *y, const float *x, const uint32_t *random, int shift, size_t n) {
    size_t i = 0;
    for (; n - i >= 16; i += 16) {
        lanes32 bits, r;
        memcpy(&bits, x + i, sizeof bits);
        memcpy(&r, random + i, sizeof r);
        lanes16 h = __builtin_convertvector((bits + (r >> shift & 0xffff)) >> 16, lanes16);
        memcpy(y + i, &h, sizeof h);
    }
    for (; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        y[i] = (uint16_t)((bits + (random[i] >> shift & 0xffff)) >> 16);
    }
}

/* ---- optimizer ---- */

FN void op_adamw(const struct kernel_adamw *o, float step_size, float root_correction, float *w, float *m, float *v,
                 const float *g, size_t n) {
    vec b1 = v_set(o->beta1), b2 = v_set(o->beta2), c1 = v_set(1 - o->beta1), c2 = v_set(1 - o->beta2);
    vec keep = v_set((float)(1 - (double)o->lr * o->weight_decay));
    for (size_t i = 0; i < n; i += W) {
        size_t left = n - i;
        vec d = v_mul(load(g + i, left), v_set(o->grad_scale));
        vec m1 = v_fma(b1, load(m + i, left), v_mul(c1, d));
        vec v1 = v_fma(b2, load(v + i, left), v_mul(c2, v_mul(d, d)));
        vec root = v_fma(v_sqrt(v1), v_set(root_correction), v_set(o->eps));
        vec step = v_mul(v_set(step_size), v_div(m1, root));
        store(m + i, m1, left);
        store(v + i, v1, left);
        store(w + i, v_sub(v_mul(load(w + i, left), keep), step), left);
    }
}

const struct simd SIMD_TABLE = {
    .name = SIMD_NAME,
    .gemm = SIMD_GEMM,
    .bf16 = &bf16_widened,
    .int8 = SIMD_INT8,
    .transpose_words = SIMD_TRANSPOSE(words),
    .transpose_bf16 = SIMD_TRANSPOSE(bf16),
    .fill = op_fill,
    .scale = op_scale,
    .scale_copy = op_scale_copy,
    .add = op_add,
    .axpy = op_axpy,
    .solve_side = op_solve_side,
    .subtract_wide = op_subtract_wide,
    .mul_scaled = op_mul_scaled,
    .dot = op_dot,
    .dot3 = op_dot3,
    .distance = op_distance,
    .square_acc = op_square_acc,
    .abs_acc = op_abs_acc,
    .mul_acc = op_mul_acc,
    .to_bf16 = op_to_bf16,
    .from_bf16 = op_from_bf16,
    .scale_bf16 = op_scale_bf16,
    .mul_scaled_bf16 = op_mul_scaled_bf16,
    .rotate_bf16 = op_rotate_bf16,
    .pair = op_pair,
    .pair_f32 = op_pair_f32,
    .pair_rows = op_pair_rows,
    .finish_f32 = op_finish_f32,
    .finish_bf16 = op_finish_bf16,
    .max = op_max,
    .max_finite = op_max_finite,
    .find_above = op_find_above,
    .exp_sum = op_exp_sum,
    .exp_store = op_exp_store,
    .exp2_sum = op_exp2_sum,
    .exp2_store = op_exp2_store,
    .softmax_rows = op_softmax_rows,
    .affine = op_affine,
    .from_f16 = op_from_f16,
    .affine_f16 = op_affine_f16,
    .softmax_backward_bf16 = op_softmax_backward_bf16,
    .act = {ACTIVATIONS(ACTIVATION_TABLE)},
    .softcap = op_softcap,
    .softcap_backward = op_softcap_backward,
    .rmsnorm_dx = op_rmsnorm_dx,
    .sum = op_sum,
    .layernorm = op_layernorm,
    .layernorm_dx = op_layernorm_dx,
    .angles = op_angles,
    .rotate = op_rotate,
    .softmax_backward = op_softmax_backward,
    .dots = op_dots,
    .mix_rows = op_mix_rows,
    .mix_block = op_mix_block,
    .lstm_cell = op_lstm_cell,
    .lstm_cell_backward = op_lstm_cell_backward,
    .kl_dense = op_kl_dense,
    .loss_gradient = op_loss_gradient,
    .divergence = {[DIVERGENCE_KL] = op_divergence_kl,
                   [DIVERGENCE_SKEW] = op_divergence_skew,
                   [DIVERGENCE_SKEW_REVERSE] = op_divergence_skew_reverse,
                   [DIVERGENCE_JENSEN_SHANNON] = op_divergence_jensen_shannon,
                   [DIVERGENCE_VARIATION] = op_divergence_variation,
                   [DIVERGENCE_ALPHA_BETA] = op_divergence_alpha_beta},
    .random = op_random,
    .to_bf16_random = op_to_bf16_random,
    .adamw = op_adamw,
};
