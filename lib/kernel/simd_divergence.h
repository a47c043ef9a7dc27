/*
 * Divergences between the teacher's and the student's distribution, element by element, over the vector of a CPU path;
 * included by simd_body.h. Each kind is one function of its term f and of p df/dp; kernel_divergence has the formulas.
 */

/* Cephes' logf: x = 2^n (1 + r) with 1 + r in [sqrt(1/2), sqrt(2)]. For positive normal x; the error is at most 2 U
 * times the larger of |log x| and 1. */
static inline SIMD_TARGET vec v_log(vec x) {
    vec n = v_exponent(v_mul(x, v_set(1.41421356f)));
    vec r = v_sub(v_ldexp(x, v_sub(v_set(0), n)), v_set(1)), p = v_set(7.0376836292e-2f);
    p = v_fma(p, r, v_set(-1.1514610310e-1f));
    p = v_fma(p, r, v_set(1.1676998740e-1f));
    p = v_fma(p, r, v_set(-1.2420140846e-1f));
    p = v_fma(p, r, v_set(1.4249322787e-1f));
    p = v_fma(p, r, v_set(-1.6668057665e-1f));
    p = v_fma(p, r, v_set(2.0000714765e-1f));
    p = v_fma(p, r, v_set(-2.4999993993e-1f));
    p = v_fma(p, r, v_set(3.3333331174e-1f));
    vec z = v_mul(r, r), y = v_mul(v_mul(p, r), z);
    y = v_fma(n, v_set(-2.12194440e-4f), y);
    y = v_fma(z, v_set(-0.5f), y);
    return v_fma(n, v_set(0.693359375f), v_add(r, y));
}

/* The logarithm of a mixture; where both probabilities are 0 it is multiplied by 0. */
static inline SIMD_TARGET vec log_mixture(vec m) {
    return v_log(v_max(v_set(1.2e-38f), m));
}

struct divergence_terms {
    vec f, g; /* g: p df/dp, up to a multiple of p, which cancels in the gradient */
};

static inline SIMD_TARGET struct divergence_terms kl_terms(vec lt, vec lp, vec a, vec b) {
    vec t = v_exp(lt), p = v_exp(lp), reverse = v_mul(b, v_mul(p, v_sub(lp, lt)));
    vec forward = v_mul(a, v_mul(t, v_sub(lt, lp)));
    return (struct divergence_terms){v_add(forward, reverse), v_sub(reverse, v_mul(a, t))};
}

static inline SIMD_TARGET struct divergence_terms skew_terms(vec lt, vec lp, vec a, vec b) {
    vec t = v_exp(lt), p = v_exp(lp), other = v_sub(v_set(1), a), m = v_fma(a, t, v_mul(other, p));
    vec share = v_div(v_mul(other, p), v_max(v_set(1.2e-38f), m));
    (void)b;
    return (struct divergence_terms){v_mul(t, v_sub(lt, log_mixture(m))), v_sub(v_set(0), v_mul(t, share))};
}

static inline SIMD_TARGET struct divergence_terms skew_reverse_terms(vec lt, vec lp, vec a, vec b) {
    vec t = v_exp(lt), p = v_exp(lp), m = v_fma(a, p, v_mul(v_sub(v_set(1), a), t));
    vec share = v_div(v_mul(a, p), v_max(v_set(1.2e-38f), m)), f = v_mul(p, v_sub(lp, log_mixture(m)));
    (void)b;
    return (struct divergence_terms){f, v_sub(f, v_mul(p, share))};
}

static inline SIMD_TARGET struct divergence_terms jensen_shannon_terms(vec lt, vec lp, vec a, vec b) {
    vec t = v_exp(lt), p = v_exp(lp), other = v_sub(v_set(1), a), m = v_fma(a, t, v_mul(other, p));
    vec lm = log_mixture(m), g = v_mul(other, v_mul(p, v_sub(lp, lm)));
    (void)b;
    return (struct divergence_terms){v_fma(a, v_mul(t, v_sub(lt, lm)), g), g};
}

/* p df/dp = p sign(p - t) / 2. The sign is d / |d|, and 0 where d is 0. */
static inline SIMD_TARGET struct divergence_terms variation_terms(vec lt, vec lp, vec a, vec b) {
    vec t = v_exp(lt), p = v_exp(lp), half = v_set(0.5f), d = v_sub(p, t);
    vec sign = v_div(d, v_max(v_set(1.2e-38f), v_abs(d)));
    (void)a, (void)b;
    return (struct divergence_terms){v_mul(half, v_abs(d)), v_mul(half, v_mul(p, sign))};
}

static inline SIMD_TARGET struct divergence_terms alpha_beta_terms(vec lt, vec lp, vec a, vec b) {
    vec sum = v_add(a, b), mixed = v_exp(v_fma(a, lt, v_mul(b, lp)));
    vec whole = v_exp(v_mul(sum, lp)), teacher = v_exp(v_mul(sum, lt));
    vec f = v_div(v_fma(v_div(a, sum), teacher, v_sub(v_mul(v_div(b, sum), whole), mixed)), v_mul(a, b));
    return (struct divergence_terms){f, v_div(v_sub(whole, mixed), a)};
}

#define DIVERGENCE(kind)                                                                                               \
    FN void op_divergence_##kind(const struct divergence_pass *o, const float *logt, const float *x, size_t n,         \
                                 double sums[2], float *dx) {                                                          \
        vec a = v_set(o->a), b = v_set(o->b), mean = v_set(o->mean), factor = v_set(o->factor);                        \
        dvec f = d_zero(), g = d_zero();                                                                               \
        for (size_t i = 0; i < n; i += W) {                                                                            \
            vec z = v_mul(v_sub(load_or(x + i, n - i, -INFINITY), v_set(o->m)), v_set(o->s));                          \
            vec lp = v_max(v_set(LOG_ZERO), v_sub(z, v_set(o->c)));                                                    \
            vec lt = v_max(v_set(LOG_ZERO), load_or(logt + i, n - i, -INFINITY));                                      \
            struct divergence_terms y = kind##_terms(lt, lp, a, b);                                                    \
            if (dx) {                                                                                                  \
                vec part = v_sub(y.g, v_mul(mean, v_exp(lp)));                                                         \
                store(dx + i, v_fma(factor, part, load(dx + i, n - i)), n - i);                                        \
            } else {                                                                                                   \
                f = d_add(f, y.f);                                                                                     \
                g = d_add(g, y.g);                                                                                     \
            }                                                                                                          \
        }                                                                                                              \
        sums[0] += d_sum(f);                                                                                           \
        sums[1] += d_sum(g);                                                                                           \
    }

DIVERGENCE(kl)
DIVERGENCE(skew)
DIVERGENCE(skew_reverse)
DIVERGENCE(jensen_shannon)
DIVERGENCE(variation)
DIVERGENCE(alpha_beta)
#undef DIVERGENCE
