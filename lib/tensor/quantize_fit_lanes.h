/*
 * The searches of quantize_fit.c for LANES groups at a time: lane g of every vector belongs to group g. No operation
 * crosses lanes, so each lane does what the scalar twin does, in its order, and the bytes are the same; that is what
 * tests/unit/test_tensor_fit.c checks. A lane whose group needs no search computes nonsense that is thrown away.
 *
 * Included by quantize_fit_avx2.c and quantize_fit_avx512.c, which say what LANES and TARGET are, and how to do what the language has no
 * operator for:
 *     larger(a, b)    a > b ? a : b in each lane, smaller(a, b) with <; so b where one is NaN, as MAXPS and MINPS have it
 *     any(m)          is a lane of the mask set?
 */
#include "lib/tensor/quantize_internal.h"

#ifdef __clang__
#define UNROLLED _Pragma("clang loop unroll_count(8)")
#else
#define UNROLLED _Pragma("GCC unroll 8")
#endif
#define INLINE TARGET static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t mask
    __attribute__((vector_size(4 * LANES))); /* all bits of a lane set or none: what a comparison gives */

INLINE lanes larger(lanes a, lanes b);
INLINE lanes smaller(lanes a, lanes b);
INLINE bool any(mask m);

/* ---- one vector ---- */

INLINE lanes all(float v) {
    return v - (lanes){0};
}
INLINE lanes choose(mask m, lanes yes, lanes no) {
    return (lanes)((m & (mask)yes) | (~m & (mask)no));
}
INLINE lanes magnitude(lanes v) {
    return (lanes)((mask)v & 0x7fffffff);
}

/* nearest_code, the code as a float. */
INLINE lanes nearest(lanes v, float low, float high) {
    return smaller(larger(v, all(low)), all(high)) + ROUNDING - ROUNDING;
}

/* ---- transposition: x[i] lane g <-> memory[g * n + i] ---- */

INLINE void load(const float *memory, int n, lanes *x) {
    for (int i = 0; i < n; i++)
        for (int g = 0; g < LANES; g++) x[i][g] = memory[g * n + i];
}

INLINE void store_codes(const lanes *codes, int n, float offset, uint8_t *memory) {
    for (int g = 0; g < LANES; g++)
        for (int i = 0; i < n; i++) memory[g * n + i] = (uint8_t)(int)(codes[i][g] + offset);
}

INLINE void replace_codes(lanes *codes, const lanes *tried, int n, mask better) {
    for (int i = 0; i < n; i++) codes[i] = choose(better, tried[i], codes[i]);
}

/* ---- affine ---- */

struct affine {
    lanes scale, min, error;
};

INLINE void affine_codes(int n, float top, const lanes *x, lanes min, lanes inverse, lanes *codes) {
    UNROLLED for (int i = 0; i < n; i++) codes[i] = nearest(inverse * (x[i] - min), 0, top);
}

INLINE lanes affine_error(int n, const lanes *x, const lanes *w, const lanes *codes, bool absolute, lanes scale,
                          lanes min) {
    lanes error = all(0);
    UNROLLED for (int i = 0; i < n; i++) {
        lanes diff = scale * codes[i] + min - x[i];
        error += w[i] * (absolute ? magnitude(diff) : diff * diff);
    }
    return error;
}

/* Returns the lanes in which the regression has a solution. */
INLINE mask affine_regression(int n, const lanes *x, const lanes *w, const lanes *codes, bool absolute, lanes sum_w,
                              lanes sum_x, struct affine *fit) {
    lanes sum_c = all(0), sum_c2 = all(0), sum_xc = all(0);
    UNROLLED for (int i = 0; i < n; i++) {
        lanes wc = w[i] * codes[i];
        sum_c += wc;
        sum_c2 += wc * codes[i];
        sum_xc += wc * x[i];
    }
    lanes determinant = sum_w * sum_c2 - sum_c * sum_c;
    fit->scale = (sum_w * sum_xc - sum_x * sum_c) / determinant;
    fit->min = (sum_c2 * sum_x - sum_c * sum_xc) / determinant;
    mask positive = fit->min > 0;
    fit->scale = choose(positive, sum_xc / sum_c2, fit->scale);
    fit->min = choose(positive, all(0), fit->min);
    fit->error = affine_error(n, x, w, codes, absolute, fit->scale, fit->min);
    return determinant > 0;
}

INLINE void affine_search(int n, int top, bool absolute, const float *x_memory, const float *w_memory,
                          const struct fit_search *search, uint8_t *code_memory, float *scales, float *minus_mins) {
    lanes x[FIT_MAX_GROUP], w[FIT_MAX_GROUP], codes[FIT_MAX_GROUP], tried[FIT_MAX_GROUP];
    load(x_memory, n, x);
    load(w_memory, n, w);
    lanes min = x[0], max = x[0], sum_w = all(0), sum_x = all(0);
    for (int i = 0; i < n; i++) {
        min = choose(x[i] < min, x[i], min);
        max = choose(x[i] > max, x[i], max);
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    min = choose(min > 0, all(0), min);
    mask flat = max == min;
    lanes first_min = min, inverse = (float)top / (max - min);
    struct affine best = {.scale = 1 / inverse, .min = min};
    affine_codes(n, (float)top, x, min, inverse, codes);
    best.error = affine_error(n, x, w, codes, absolute, best.scale, best.min);
    for (int trial = 0; trial <= search->n; trial++) {
        struct affine fit;
        inverse = (search->first + search->step * (float)trial + (float)top) / (max - best.min);
        affine_codes(n, (float)top, x, best.min, inverse, tried);
        mask better = affine_regression(n, x, w, tried, absolute, sum_w, sum_x, &fit);
        better &= fit.error < best.error;
        if (!any(better)) continue;
        best.scale = choose(better, fit.scale, best.scale);
        best.min = choose(better, fit.min, best.min);
        best.error = choose(better, fit.error, best.error);
        replace_codes(codes, tried, n, better);
    }
    best.scale = choose(flat, all(0), best.scale);
    best.min = choose(flat, first_min, best.min);
    for (int i = 0; i < n; i++) codes[i] = choose(flat, all(0), codes[i]);
    store_codes(codes, n, 0, code_memory);
    for (int g = 0; g < LANES; g++) {
        scales[g] = best.scale[g];
        minus_mins[g] = -best.min[g];
    }
}

/* ---- symmetric ---- */

INLINE void symmetric_trial(int n, float half, const lanes *x, const lanes *w, lanes inverse, lanes *codes,
                            lanes *sum_xc, lanes *sum_c2) {
    *sum_xc = *sum_c2 = all(0);
    UNROLLED for (int i = 0; i < n; i++) {
        codes[i] = nearest(inverse * x[i], -half, half - 1);
        *sum_xc += w[i] * x[i] * codes[i];
        *sum_c2 += w[i] * codes[i] * codes[i];
    }
}

INLINE void symmetric_search(int n, int half_codes, const float *x_memory, const float *w_memory, uint8_t *code_memory,
                             float *scales) {
    lanes x[FIT_MAX_GROUP], w[FIT_MAX_GROUP], codes[FIT_MAX_GROUP], tried[FIT_MAX_GROUP];
    float half = (float)half_codes;
    load(x_memory, n, x);
    load(w_memory, n, w);
    lanes extreme = all(0);
    for (int i = 0; i < n; i++) extreme = choose(magnitude(x[i]) > magnitude(extreme), x[i], extreme);
    mask zero = magnitude(extreme) < FIT_NEARLY_ZERO;
    lanes sum_xc, sum_c2, inverse = -half / extreme;
    symmetric_trial(n, half, x, w, inverse, codes, &sum_xc, &sum_c2);
    lanes scale = choose(sum_c2 > 0, sum_xc / sum_c2, 1 / inverse), gain = scale * sum_xc;
    for (int trial = -9; trial <= 9; trial++) {
        if (trial == 0) continue;
        symmetric_trial(n, half, x, w, -(half + 0.1f * (float)trial) / extreme, tried, &sum_xc, &sum_c2);
        mask better = (sum_c2 > 0) & (sum_xc * sum_xc > gain * sum_c2);
        if (!any(better)) continue;
        scale = choose(better, sum_xc / sum_c2, scale);
        gain = choose(better, scale * sum_xc, gain);
        replace_codes(codes, tried, n, better);
    }
    scale = choose(zero, all(0), scale);
    for (int i = 0; i < n; i++) codes[i] = choose(zero, all(-half), codes[i]);
    store_codes(codes, n, half, code_memory);
    for (int g = 0; g < LANES; g++) scales[g] = scale[g];
}

/* ---- group sizes and errors as constants: loops over a group have no branches, and unroll ---- */

INLINE void affine_of_size(int n, int top, const float *x, const float *w, const struct fit_search *search,
                           uint8_t *codes, float *scales, float *minus_mins) {
    if (n == 16 && search->absolute)
        affine_search(16, top, true, x, w, search, codes, scales, minus_mins);
    else if (n == 16)
        affine_search(16, top, false, x, w, search, codes, scales, minus_mins);
    else if (search->absolute)
        affine_search(32, top, true, x, w, search, codes, scales, minus_mins);
    else
        affine_search(32, top, false, x, w, search, codes, scales, minus_mins);
}

INLINE void symmetric_of_size(int n, int half, const float *x, const float *w, uint8_t *codes, float *scales) {
    if (n == 16)
        symmetric_search(16, half, x, w, codes, scales);
    else
        symmetric_search(32, half, x, w, codes, scales);
}
