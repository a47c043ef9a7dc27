/*
 * The searches of quantize_fit.c for LANES groups at a time: lane g of every vector belongs to group g. No operation
 * crosses lanes, so each lane does what the scalar twin does, in its order, and the bytes are the same; that is what
 * tests/unit/test_tensor_fit.c checks. In a lane whose group needs no search the results are garbage and are discarded.
 *
 * Included by quantize_fit_avx2.c and quantize_fit_avx512.c, which define LANES and TARGET and these operations, for
 * which the language has no operators:
 *     larger(a, b)    a > b ? a : b in each lane; smaller(a, b) with <; hence b if one is NaN, like MAXPS and MINPS
 *     any(m)          whether any lane of the mask is set
 *     root(a)         the square root of each lane
 *     whole(a)        each lane rounded to an integer, ties to even
 *     lower(a, b), upper(a, b)    a and b interleaved, of their lower or upper halves: a0 b0 a1 b1 ...
 */
#include <string.h>

#include "lib/tensor/quantize_internal.h"

#ifdef __clang__
#define UNROLLED _Pragma("clang loop unroll_count(8)")
#else
#define UNROLLED _Pragma("GCC unroll 8")
#endif
#define INLINE TARGET static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t mask
    __attribute__((vector_size(4 * LANES))); /* all bits of a lane set or clear: the result of a comparison */

INLINE lanes larger(lanes a, lanes b);
INLINE lanes smaller(lanes a, lanes b);
INLINE bool any(mask m);
INLINE lanes root(lanes a);
INLINE lanes whole(lanes a);
INLINE lanes lower(lanes a, lanes b);
INLINE lanes upper(lanes a, lanes b);

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

/* nearest_code, with the code as a float, and with the given limits only. */
enum { LIMIT_LOW = 1, LIMIT_HIGH = 2, LIMIT_BOTH = 3 };
INLINE lanes nearest(lanes v, float low, float high, int limits) {
    if (limits & LIMIT_LOW) v = larger(v, all(low));
    if (limits & LIMIT_HIGH) v = smaller(v, all(high));
    return whole(v);
}

/* The limits that the values of a group can exceed in a lane that matters. Rounding is monotonic, so they lie between
 * those of the extremes, a and b, in either order: the factor is negative if a grid starts above all elements. A NaN
 * needs both limits. Most trials need none. */
INLINE int limits_for(lanes a, lanes b, float low, float high, mask matters) {
    mask above = (a >= low - 0.5f) & (b >= low - 0.5f), below = (a < high + 0.5f) & (b < high + 0.5f);
    int limits = any(~above & matters) ? LIMIT_LOW : 0;
    return any(~below & matters) ? limits | LIMIT_HIGH : limits;
}

INLINE lanes read(const float *memory) {
    lanes v;
    memcpy(&v, memory, sizeof v);
    return v;
}

/* ---- transposition: x[i] lane g <-> memory[g * n + i] ---- */

/* Each round moves the highest bit of the row's number to the lowest of the lane's, and the other way round. */
INLINE void transpose(lanes *v) {
    lanes other[LANES];
    UNROLLED for (int done = 1; done < LANES; done *= 2) {
        for (int i = 0; i < LANES / 2; i++) {
            other[2 * i] = lower(v[i], v[i + LANES / 2]);
            other[2 * i + 1] = upper(v[i], v[i + LANES / 2]);
        }
        for (int i = 0; i < LANES; i++) v[i] = other[i];
    }
}

INLINE void load(const float *memory, int n, lanes *x) {
    for (int first = 0; first < n; first += LANES) {
        for (int g = 0; g < LANES; g++) x[first + g] = read(memory + g * n + first);
        transpose(x + first);
    }
}

/* Four codes at a time. */
INLINE void store_codes(const lanes *codes, int n, float offset, uint8_t *memory) {
    mask four[FIT_MAX_GROUP / 4];
    for (int i = 0; i < n / 4; i++) {
        four[i] = (mask){0};
        for (int k = 0; k < 4; k++) four[i] |= __builtin_convertvector(codes[4 * i + k] + offset, mask) << (8 * k);
    }
    for (int g = 0; g < LANES; g++)
        for (int i = 0; i < n / 4; i++) memcpy(memory + g * n + 4 * i, (const char *)&four[i] + 4 * g, 4);
}

/* ---- codes for a known scale ---- */

INLINE void round_to_codes(size_t n, const float *x, float add, float scale, int low, int high, uint8_t *codes) {
    typedef uint8_t bytes __attribute__((vector_size(LANES)));
    for (size_t i = 0; i < n; i += LANES) {
        lanes code = nearest((read(x + i) + add) / scale, (float)low, (float)high, LIMIT_BOTH) - (float)low;
        bytes b = __builtin_convertvector(__builtin_convertvector(code, mask), bytes);
        memcpy(codes + i, &b, sizeof b);
    }
}

/* ---- weights ---- */

INLINE void weigh(size_t n, const float *x, const float *importance, float mean_square, float *w) {
    for (size_t i = 0; i < n; i += LANES) {
        lanes v = read(x + i), weight = read(importance + i) * root(mean_square + v * v);
        memcpy(w + i, &weight, sizeof weight);
    }
}

INLINE void weigh_plainly(int n, const lanes *x, bool rms, lanes *w) {
    lanes sum = all(0);
    for (int i = 0; rms && i < n; i++) sum += x[i] * x[i];
    lanes base = rms ? root(sum / (float)n) : sum;
    for (int i = 0; i < n; i++) w[i] = base + magnitude(x[i]);
}

/* ---- affine ---- */

struct affine {
    lanes scale, min, error;
};

INLINE void affine_codes(int n, float top, const lanes *x, lanes min, lanes inverse, lanes *codes) {
    UNROLLED for (int i = 0; i < n; i++) codes[i] = nearest(inverse * (x[i] - min), 0, top, LIMIT_BOTH);
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

/* Sums over a group of w, w x, w c, w c^2 and w x c. */
struct affine_sums {
    lanes w, x, c, c2, xc;
};

/* Rounds to codes and sums over them. */
INLINE void affine_codes_and_sums(int n, float top, int limits, const lanes *x, const lanes *w, lanes start,
                                  lanes inverse, lanes *codes, struct affine_sums *s) {
    lanes sum_c = all(0), sum_c2 = all(0), sum_xc = all(0);
    UNROLLED for (int i = 0; i < n; i++) {
        codes[i] = nearest(inverse * (x[i] - start), 0, top, limits);
        lanes wc = w[i] * codes[i];
        sum_c += wc;
        sum_c2 += wc * codes[i];
        sum_xc += wc * x[i];
    }
    s->c = sum_c;
    s->c2 = sum_c2;
    s->xc = sum_xc;
}

INLINE void affine_trial(int n, float top, int limits, const lanes *x, const lanes *w, lanes start, lanes inverse,
                         lanes *codes, struct affine_sums *s) {
    if (limits == 0)
        affine_codes_and_sums(n, top, 0, x, w, start, inverse, codes, s);
    else if (limits == LIMIT_HIGH)
        affine_codes_and_sums(n, top, LIMIT_HIGH, x, w, start, inverse, codes, s);
    else if (limits == LIMIT_LOW)
        affine_codes_and_sums(n, top, LIMIT_LOW, x, w, start, inverse, codes, s);
    else
        affine_codes_and_sums(n, top, LIMIT_BOTH, x, w, start, inverse, codes, s);
}

/* Fits scale and min to the codes. Returns the lanes in which the regression has a solution. */
INLINE mask affine_regression(const struct affine_sums *s, struct affine *fit) {
    lanes determinant = s->w * s->c2 - s->c * s->c;
    fit->scale = (s->w * s->xc - s->x * s->c) / determinant;
    fit->min = (s->c2 * s->x - s->c * s->xc) / determinant;
    mask positive = fit->min > 0;
    fit->scale = choose(positive, s->xc / s->c2, fit->scale);
    fit->min = choose(positive, all(0), fit->min);
    return determinant > 0;
}

/* Keeps where the best codes came from instead of the codes. */
INLINE void affine_search(int n, int top, bool absolute, const float *x_memory, const float *w_memory,
                          const struct fit_search *search, const struct fit_result *out) {
    lanes x[FIT_MAX_GROUP], w[FIT_MAX_GROUP], codes[FIT_MAX_GROUP];
    load(x_memory, n, x);
    if (w_memory)
        load(w_memory, n, w);
    else
        weigh_plainly(n, x, search->rms, w);
    lanes min = x[0], max = x[0];
    struct affine_sums sums = {.w = all(0), .x = all(0)};
    for (int i = 0; i < n; i++) {
        min = choose(x[i] < min, x[i], min);
        max = choose(x[i] > max, x[i], max);
        sums.w += w[i];
        sums.x += w[i] * x[i];
    }
    min = choose(min > 0, all(0), min);
    mask flat = max == min;
    lanes first_min = min, inverse = (float)top / (max - min), best_inverse = inverse, best_start = min;
    struct affine best = {.scale = 1 / inverse, .min = min};
    affine_codes(n, (float)top, x, min, inverse, codes);
    best.error = affine_error(n, x, w, codes, absolute, best.scale, best.min);
    for (int trial = 0; trial <= search->n; trial++) {
        struct affine fit;
        inverse = (search->first + search->step * (float)trial + (float)top) / (max - best.min);
        int limits = limits_for(inverse * (min - best.min), inverse * (max - best.min), 0, (float)top, ~flat);
        affine_trial(n, (float)top, limits, x, w, best.min, inverse, codes, &sums);
        mask better = affine_regression(&sums, &fit);
        fit.error = affine_error(n, x, w, codes, absolute, fit.scale, fit.min);
        better &= fit.error < best.error;
        if (!any(better)) continue;
        best_inverse = choose(better, inverse, best_inverse);
        best_start = choose(better, best.min, best_start);
        best.scale = choose(better, fit.scale, best.scale);
        best.min = choose(better, fit.min, best.min);
        best.error = choose(better, fit.error, best.error);
    }
    best.scale = choose(flat, all(0), best.scale);
    best.min = choose(flat, first_min, best.min);
    affine_codes(n, (float)top, x, best_start, best_inverse, codes);
    for (int i = 0; i < n; i++) codes[i] = choose(flat, all(0), codes[i]);
    store_codes(codes, n, 0, out->codes);
    for (int g = 0; g < LANES; g++) {
        out->scales[g] = best.scale[g];
        out->minus_mins[g] = -best.min[g];
        out->sum_w[g] = sums.w[g];
    }
}

/* ---- symmetric ---- */

/* wx: w x. */
INLINE void symmetric_sums(int n, float half, int limits, const lanes *x, const lanes *w, const lanes *wx,
                           lanes inverse, lanes *sum_xc, lanes *sum_c2) {
    *sum_xc = *sum_c2 = all(0);
    UNROLLED for (int i = 0; i < n; i++) {
        lanes code = nearest(inverse * x[i], -half, half - 1, limits);
        *sum_xc += wx[i] * code;
        *sum_c2 += w[i] * code * code;
    }
}

INLINE void symmetric_trial(int n, float half, int limits, const lanes *x, const lanes *w, const lanes *wx,
                            lanes inverse, lanes *sum_xc, lanes *sum_c2) {
    if (limits == 0)
        symmetric_sums(n, half, 0, x, w, wx, inverse, sum_xc, sum_c2);
    else if (limits == LIMIT_HIGH)
        symmetric_sums(n, half, LIMIT_HIGH, x, w, wx, inverse, sum_xc, sum_c2);
    else
        symmetric_sums(n, half, LIMIT_BOTH, x, w, wx, inverse, sum_xc, sum_c2);
}

INLINE void symmetric_search(int n, int half_codes, const float *x_memory, const float *w_memory, uint8_t *code_memory,
                             float *scales) {
    lanes x[FIT_MAX_GROUP], w[FIT_MAX_GROUP], wx[FIT_MAX_GROUP];
    float half = (float)half_codes;
    load(x_memory, n, x);
    load(w_memory, n, w);
    lanes extreme = all(0), min = x[0], max = x[0];
    for (int i = 0; i < n; i++) wx[i] = w[i] * x[i];
    for (int i = 0; i < n; i++) min = smaller(x[i], min), max = larger(x[i], max);
    for (int i = 0; i < n; i++) extreme = choose(magnitude(x[i]) > magnitude(extreme), x[i], extreme);
    mask zero = magnitude(extreme) < FIT_NEARLY_ZERO;
    lanes sum_xc, sum_c2, inverse = -half / extreme, best_inverse = inverse;
    symmetric_trial(n, half, LIMIT_BOTH, x, w, wx, inverse, &sum_xc, &sum_c2);
    lanes scale = choose(sum_c2 > 0, sum_xc / sum_c2, 1 / inverse), gain = scale * sum_xc;
    for (int trial = -9; trial <= 9; trial++) {
        if (trial == 0) continue;
        inverse = -(half + 0.1f * (float)trial) / extreme;
        int limits = limits_for(inverse * min, inverse * max, -half, half - 1, ~zero);
        symmetric_trial(n, half, limits, x, w, wx, inverse, &sum_xc, &sum_c2);
        mask better = (sum_c2 > 0) & (sum_xc * sum_xc > gain * sum_c2);
        if (!any(better)) continue;
        scale = choose(better, sum_xc / sum_c2, scale);
        gain = choose(better, scale * sum_xc, gain);
        best_inverse = choose(better, inverse, best_inverse);
    }
    scale = choose(zero, all(0), scale);
    for (int i = 0; i < n; i++)
        x[i] = choose(zero, all(-half), nearest(best_inverse * x[i], -half, half - 1, LIMIT_BOTH));
    store_codes(x, n, half, code_memory);
    for (int g = 0; g < LANES; g++) scales[g] = scale[g];
}

/* ---- group sizes and error norms as constants, so that loops over a group unroll and have no branches ---- */

INLINE void affine_of_size(int n, int top, const float *x, const float *w, const struct fit_search *search,
                           const struct fit_result *fit) {
    if (n == 16 && search->absolute)
        affine_search(16, top, true, x, w, search, fit);
    else if (n == 16)
        affine_search(16, top, false, x, w, search, fit);
    else if (search->absolute)
        affine_search(32, top, true, x, w, search, fit);
    else
        affine_search(32, top, false, x, w, search, fit);
}

INLINE void symmetric_of_size(int n, int half, const float *x, const float *w, uint8_t *codes, float *scales) {
    if (n == 16)
        symmetric_search(16, half, x, w, codes, scales);
    else
        symmetric_search(32, half, x, w, codes, scales);
}
