/*
 * Searches for the scales and codes of quantized types, in the order of operations of ggml's reference, so that the
 * same weights give the same bytes (tests/unit/test_tensor_quantize.c has the digests). README.md explains the
 * searches. Build without fused multiply-add and without reassociation, as the Makefile does.
 */
#include <math.h>
#include <string.h>

#include "lib/tensor/quantize_internal.h"

/* ---- affine ---- */

struct affine {
    float scale, min, error;
};

static float affine_error(int n, const float *x, const float *w, const uint8_t *codes, bool absolute, float scale,
                          float min) {
    float error = 0;
    for (int i = 0; i < n; i++) {
        float diff = scale * codes[i] + min - x[i];
        error += w[i] * (absolute ? fabsf(diff) : diff * diff);
    }
    return error;
}

/* Finds the best scale and min for given codes: weighted linear regression, with min held at 0 if it would be
 * positive. */
static bool affine_regression(int n, const float *x, const float *w, const uint8_t *codes, bool absolute, float sum_w,
                              float sum_x, struct affine *fit) {
    float sum_c = 0, sum_c2 = 0, sum_xc = 0;
    for (int i = 0; i < n; i++) {
        float wc = w[i] * codes[i];
        sum_c += wc;
        sum_c2 += wc * codes[i];
        sum_xc += wc * x[i];
    }
    float determinant = sum_w * sum_c2 - sum_c * sum_c;
    if (!(determinant > 0)) return false;
    fit->scale = (sum_w * sum_xc - sum_x * sum_c) / determinant;
    fit->min = (sum_c2 * sum_x - sum_c * sum_xc) / determinant;
    if (fit->min > 0) {
        fit->min = 0;
        fit->scale = sum_xc / sum_c2;
    }
    fit->error = affine_error(n, x, w, codes, absolute, fit->scale, fit->min);
    return true;
}

void fit_weigh_scalar(size_t n, const float *x, const float *importance, float mean_square, float *w) {
    for (size_t i = 0; i < n; i++) w[i] = importance[i] * sqrtf(mean_square + x[i] * x[i]);
}

void fit_round_scalar(size_t n, const float *x, float add, float scale, int low, int high, uint8_t *codes) {
    for (size_t i = 0; i < n; i++) codes[i] = (uint8_t)(nearest_code((x[i] + add) / scale, low, high) - low);
}

/* The weights of a group that has no importance. */
static void weigh_plainly(int n, const float *x, bool rms, float *w) {
    float sum = 0;
    for (int i = 0; rms && i < n; i++) sum += x[i] * x[i];
    float root = rms ? sqrtf(sum / (float)n) : 0;
    for (int i = 0; i < n; i++) w[i] = root + fabsf(x[i]);
}

void fit_affine_scalar(int n, int top, const float *x, const float *w, const struct fit_search *search,
                       const struct fit_result *fit) {
    float own[FIT_MAX_GROUP], min = x[0], max = x[0], sum_w = 0, sum_x = 0;
    uint8_t *codes = fit->codes;
    if (!w) weigh_plainly(n, x, search->rms, own), w = own;
    for (int i = 0; i < n; i++) {
        if (x[i] < min) min = x[i];
        if (x[i] > max) max = x[i];
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    if (min > 0) min = 0;
    *fit->sum_w = sum_w;
    *fit->minus_mins = -min;
    *fit->scales = 0;
    if (max == min) {
        memset(codes, 0, (size_t)n);
        return;
    }
    float inverse = (float)top / (max - min);
    for (int i = 0; i < n; i++) codes[i] = (uint8_t)nearest_code(inverse * (x[i] - min), 0, top);
    struct affine best = {.scale = 1 / inverse, .min = min};
    best.error = affine_error(n, x, w, codes, search->absolute, best.scale, best.min);
    for (int trial = 0; trial <= search->n; trial++) {
        /* The grid starts at the best min so far, not at that of the data: each success moves the later trials. */
        uint8_t tried[FIT_MAX_GROUP];
        struct affine found;
        inverse = (search->first + search->step * (float)trial + (float)top) / (max - best.min);
        for (int i = 0; i < n; i++) tried[i] = (uint8_t)nearest_code(inverse * (x[i] - best.min), 0, top);
        if (!affine_regression(n, x, w, tried, search->absolute, sum_w, sum_x, &found) || !(found.error < best.error))
            continue;
        best = found;
        memcpy(codes, tried, (size_t)n);
    }
    *fit->minus_mins = -best.min;
    *fit->scales = best.scale;
}

/* ---- symmetric ---- */

/* Returns the element of largest magnitude. It gets the code -half, which has no positive counterpart. */
static float extreme_of(int n, const float *x) {
    float extreme = 0;
    for (int i = 0; i < n; i++)
        if (fabsf(x[i]) > fabsf(extreme)) extreme = x[i];
    return extreme;
}

/* Rounds x to codes c under a trial scale, and sums w x c and w c^2 over them: the best scale is the quotient. */
static void symmetric_trial(int n, int half, const float *x, const float *w, float inverse, uint8_t *codes,
                            float *sum_xc, float *sum_c2) {
    *sum_xc = *sum_c2 = 0;
    for (int i = 0; i < n; i++) {
        int code = nearest_code(inverse * x[i], -half, half - 1);
        codes[i] = (uint8_t)(code + half);
        *sum_xc += w[i] * x[i] * (float)code;
        *sum_c2 += w[i] * (float)code * (float)code;
    }
}

float fit_symmetric_scalar(int n, int half, const float *x, const float *w, uint8_t *codes) {
    float extreme = extreme_of(n, x);
    if (fabsf(extreme) < FIT_NEARLY_ZERO) {
        memset(codes, 0, (size_t)n);
        return 0;
    }
    float sum_xc, sum_c2, inverse = -(float)half / extreme;
    symmetric_trial(n, half, x, w, inverse, codes, &sum_xc, &sum_c2);
    /* If all weights of a group are 0 (columns inactive during calibration), round plainly; ggml stores zeros. */
    float scale = sum_c2 > 0 ? sum_xc / sum_c2 : 1 / inverse;
    float gain = scale * sum_xc; /* the part of sum w x^2 that the fit explains; the error is the rest */
    for (int trial = -9; trial <= 9; trial++) {
        uint8_t tried[FIT_MAX_GROUP];
        if (trial == 0) continue;
        symmetric_trial(n, half, x, w, -((float)half + 0.1f * (float)trial) / extreme, tried, &sum_xc, &sum_c2);
        if (!(sum_c2 > 0 && sum_xc * sum_xc > gain * sum_c2)) continue;
        memcpy(codes, tried, (size_t)n);
        scale = sum_xc / sum_c2;
        gain = scale * sum_xc;
    }
    return scale;
}

/* ---- coordinate descent over the codes ---- */

struct descent {
    int8_t codes[FIT_MAX_GROUP];
    float sum_xc, sum_c2; /* sum w x c and sum w c^2 over the codes */
};

static void descent_begin(int n, int low, int high, const float *x, const float *w, float inverse, struct descent *d) {
    d->sum_xc = d->sum_c2 = 0;
    for (int i = 0; i < n; i++) {
        d->codes[i] = (int8_t)nearest_code(inverse * x[i], low, high);
        d->sum_xc += w[i] * x[i] * d->codes[i];
        d->sum_c2 += w[i] * d->codes[i] * d->codes[i];
    }
}

/* One sweep: moves each code to its optimum for the scale that the other codes imply, if that raises the gain. */
static bool descent_sweep(int n, int low, int high, const float *x, const float *w, struct descent *d) {
    bool changed = false;
    for (int i = 0; i < n; i++) {
        float xc = d->sum_xc - w[i] * x[i] * d->codes[i], c2 = d->sum_c2 - w[i] * d->codes[i] * d->codes[i];
        if (!(xc > 0)) continue;
        int code = nearest_code(x[i] * c2 / xc, low, high);
        if (code == d->codes[i]) continue;
        xc += w[i] * x[i] * (float)code;
        c2 += w[i] * (float)code * (float)code;
        if (!(c2 > 0 && xc * xc * d->sum_c2 > d->sum_xc * d->sum_xc * c2)) continue;
        d->codes[i] = (int8_t)code;
        d->sum_xc = xc;
        d->sum_c2 = c2;
        changed = true;
    }
    return changed;
}

/* Starts from the codes for 1 / inverse. Stores code - low in `codes`; all weights 0: as in fit_symmetric. */
static float descend(int n, int low, int high, const float *x, const float *w, float inverse, uint8_t *codes) {
    struct descent d;
    descent_begin(n, low, high, x, w, inverse, &d);
    for (int sweep = 0; sweep < 5; sweep++)
        if (!descent_sweep(n, low, high, x, w, &d)) break;
    for (int i = 0; i < n; i++) codes[i] = (uint8_t)(d.codes[i] - low);
    return d.sum_c2 > 0 ? d.sum_xc / d.sum_c2 : 1 / inverse;
}

float fit_descent(int n, int half, const float *x, const float *w, uint8_t *codes) {
    float extreme = extreme_of(n, x);
    if (fabsf(extreme) < FIT_NEARLY_ZERO) {
        memset(codes, 0, (size_t)n);
        return 0;
    }
    return descend(n, -half, half - 1, x, w, -(float)half / extreme, codes);
}

static float positive_error(int n, int top, const float *x, const float *w, float inverse) {
    float error = 0, scale = 1 / inverse;
    for (int i = 0; i < n; i++) {
        float diff = x[i] - scale * (float)nearest_code(inverse * x[i], 0, top);
        error += w[i] * diff * diff;
    }
    return error;
}

float fit_positive(int n, int top, const float *x, const float *w, uint8_t *codes) {
    float max = 0;
    for (int i = 0; i < n; i++)
        if (x[i] > max) max = x[i];
    if (max < FIT_NEARLY_ZERO) {
        memset(codes, 0, (size_t)n);
        return 0;
    }
    float inverse = (float)top / max, error = positive_error(n, top, x, w, inverse);
    for (int trial = -4; trial <= 4; trial++) {
        float tried = (0.1f * (float)trial + (float)top) / max;
        float trial_error = trial ? positive_error(n, top, x, w, tried) : error;
        if (!(trial_error < error)) continue;
        error = trial_error;
        inverse = tried;
    }
    return descend(n, 0, top, x, w, inverse, codes);
}

/* ---- many groups ---- */

void fit_weigh(size_t n, const float *x, const float *importance, float mean_square, float *w) {
    size_t done = 0;
#ifdef __x86_64__
    if (fit_has_avx512())
        done = n / 16 * 16, fit_weigh_avx512(done, x, importance, mean_square, w);
    else if (fit_has_avx2())
        done = n / 8 * 8, fit_weigh_avx2(done, x, importance, mean_square, w);
#endif
    fit_weigh_scalar(n - done, x + done, importance + done, mean_square, w + done);
}

void fit_round(size_t n, const float *x, float add, float scale, int low, int high, uint8_t *codes) {
    size_t done = 0;
#ifdef __x86_64__
    if (fit_has_avx512())
        done = n / 16 * 16, fit_round_avx512(done, x, add, scale, low, high, codes);
    else if (fit_has_avx2())
        done = n / 8 * 8, fit_round_avx2(done, x, add, scale, low, high, codes);
#endif
    fit_round_scalar(n - done, x + done, add, scale, low, high, codes + done);
}

static struct fit_result result_from(const struct fit_result *all, size_t group, size_t n) {
    return (struct fit_result){all->codes + group * n, all->scales + group, all->minus_mins + group,
                               all->sum_w + group};
}

void fit_affine(size_t n_groups, int n, int top, const float *x, const float *w, const struct fit_search *search,
                const struct fit_result *fit) {
    size_t size = (size_t)n;
    for (size_t g = 0, at_once; g < n_groups; g += at_once) {
        struct fit_result out = result_from(fit, g, size);
        const float *of = w ? w + g * size : NULL;
        fit_affine_fn *affine = fit_affine_scalar;
        at_once = 1;
#ifdef __x86_64__
        if (fit_has_avx512() && n_groups - g >= 16)
            affine = fit_affine_avx512, at_once = 16;
        else if (fit_has_avx2() && n_groups - g >= 8)
            affine = fit_affine_avx2, at_once = 8;
#endif
        affine(n, top, x + g * size, of, search, &out);
    }
}

void fit_symmetric(size_t n_groups, int n, int half, const float *x, const float *w, uint8_t *codes, float *scales) {
    size_t g = 0, size = (size_t)n;
#ifdef __x86_64__
    for (; fit_has_avx512() && n_groups - g >= 16; g += 16)
        fit_symmetric_avx512(n, half, x + g * size, w + g * size, codes + g * size, scales + g);
    for (; fit_has_avx2() && n_groups - g >= 8; g += 8)
        fit_symmetric_avx2(n, half, x + g * size, w + g * size, codes + g * size, scales + g);
#endif
    for (; g < n_groups; g++) scales[g] = fit_symmetric_scalar(n, half, x + g * size, w + g * size, codes + g * size);
}
