/*
 * Divergences between a teacher's distribution and rows of logits, and their gradients, in two passes over a row: sums,
 * then gradient. With f the terms of the divergence and g_i = p_i df/dp_i, the gradient with respect to logits x is
 * (g_i - p_i sum g) / T.
 */
#include <math.h>

#include "lib/kernel/kernel_internal.h"

#define REST_MIN 1e-6 /* see kernel_divergence */
#define TOO_MUCH 1e8  /* no divergence of finite logits is this large: LOG_ZERO was involved */

struct divergence {
    const struct simd *v;
    const struct kernel_divergence *how;
    const struct kernel_target *target;
    const float *row_weight, *x;
    size_t d;
    double *value;
    float *dx;
};

/* One row: dense, or k entries and the rest. */
struct row {
    const float *x, *dense;
    const uint32_t *ids;
    const float *probs;
    size_t k;
    struct softmax_sum z;
    double log_sum, rest, others; /* others: sum of exp((x_i - max) s) over i outside the entries */
    enum kernel_divergence_kind kind;
    double a, b;
    float factor; /* weight / T of this row; 0: no gradient */
    float *dx;
};

/* ---- the head of ADAPTIVE ---------------------------------------------------------------------------------------- */

/*
 * Finds the threshold of the head digit by digit, from the top of the bits of t, which are ordered like the numbers.
 * For each digit a pass sums the probability of the tokens that share the digits found so far, by their next digit.
 */
struct head {
    uint32_t prefix;   /* bits of the threshold found so far */
    double mass, need; /* probability of the tokens above them; that the head needs */
};

static const struct {
    int shift;
    uint32_t size, kept; /* number of digit values; bits above the digit */
} levels[] = {{21, 2048, 0}, {10, 2048, 0xffe00000}, {0, 1024, 0xfffffc00}};

static uint32_t bits_of(float t) {
    uint32_t bits;
    memcpy(&bits, &t, sizeof bits);
    return bits;
}

static void teacher_chunk(const struct divergence *c, const struct row *w, size_t i, size_t n, float *t) {
    c->v->exp_store(t, w->dense + i, n, 0, 1);
}

static void find_digit(const struct divergence *c, const struct row *w, size_t level, struct head *h) {
    float t[ENTRY_CHUNK];
    double mass[2048] = {0};
    uint32_t digit = levels[level].size;
    for (size_t i = 0; i < c->d; i += ENTRY_CHUNK) {
        size_t n = smaller(ENTRY_CHUNK, c->d - i);
        teacher_chunk(c, w, i, n, t);
        for (size_t j = 0; j < n; j++) {
            uint32_t bits = bits_of(t[j]);
            if ((bits & levels[level].kept) == h->prefix)
                mass[bits >> levels[level].shift & (levels[level].size - 1)] += t[j];
        }
    }
    while (digit > 1 && h->mass + mass[digit - 1] < h->need) h->mass += mass[--digit];
    h->prefix |= (digit - 1) << levels[level].shift;
}

/* gaps: sums of |t - p| over the head and over all tokens. */
static void dense_gaps(const struct divergence *c, const struct row *w, double gaps[2]) {
    struct head h = {.need = w->a};
    float t[ENTRY_CHUNK], p[ENTRY_CHUNK];
    for (size_t level = 0; level < COUNT_OF(levels); level++) find_digit(c, w, level, &h);
    for (size_t i = 0; i < c->d; i += ENTRY_CHUNK) {
        size_t n = smaller(ENTRY_CHUNK, c->d - i);
        teacher_chunk(c, w, i, n, t);
        c->v->exp_store(p, w->x + i, n, w->z.max, 1 / c->how->temperature);
        for (size_t j = 0; j < n; j++) {
            double gap = fabs(t[j] - p[j] / w->z.sum);
            bool tie = bits_of(t[j]) == h.prefix && h.mass < h.need;
            gaps[1] += gap;
            if (bits_of(t[j]) > h.prefix || tie) gaps[0] += gap;
            if (tie) h.mass += t[j];
        }
    }
}

static double log_prob(const struct divergence *c, const struct row *w, uint32_t id) {
    return ((double)w->x[id] - w->z.max) / c->how->temperature - w->log_sum;
}

static void entry_gaps(const struct divergence *c, const struct row *w, double gaps[2]) {
    double mass = 0;
    for (size_t j = 0; j < w->k; j++) {
        double gap = fabs(w->probs[j] - exp(log_prob(c, w, w->ids[j])));
        gaps[1] += gap;
        if (mass < w->a) gaps[0] += gap;
        mass += w->probs[j];
    }
    gaps[1] += fabs(w->rest - w->others / w->z.sum);
}

static void adapt(const struct divergence *c, struct row *w) {
    double gaps[2] = {0};
    if (w->dense)
        dense_gaps(c, w, gaps);
    else
        entry_gaps(c, w, gaps);
    w->kind = DIVERGENCE_KL;
    w->a = gaps[1] > 0 ? gaps[0] / gaps[1] : 1;
    w->b = 1 - w->a;
}

/* ---- dense rows -------------------------------------------------------------------------------------------------- */

static double dense_row(const struct divergence *c, const struct row *w) {
    struct divergence_pass o = {.m = w->z.max,
                                .s = 1 / c->how->temperature,
                                .c = (float)w->log_sum,
                                .a = (float)w->a,
                                .b = (float)w->b,
                                .factor = w->factor};
    double sums[2] = {0}, unused[2] = {0};
    c->v->divergence[w->kind](&o, w->dense, w->x, c->d, sums, NULL);
    o.mean = (float)sums[1];
    if (w->factor != 0) c->v->divergence[w->kind](&o, w->dense, w->x, c->d, unused, w->dx);
    return sums[0] < TOO_MUCH ? sums[0] : INFINITY;
}

/* ---- rows of entries and a rest ---------------------------------------------------------------------------------- */

static double times_log(double x, double ratio) {
    return x > 0 ? x * log(ratio) : 0;
}

/* The same terms as in simd_divergence.h. */
static double terms(const struct row *w, double t, double p, double *g) {
    double a = w->a, b = w->b, m, f, mixed;
    switch (w->kind) {
    case DIVERGENCE_SKEW:
        m = a * t + (1 - a) * p;
        *g = m > 0 ? -(1 - a) * p * t / m : 0;
        return times_log(t, t / m);
    case DIVERGENCE_SKEW_REVERSE:
        m = (1 - a) * t + a * p;
        f = times_log(p, p / m);
        *g = m > 0 ? f - p * a * p / m : 0;
        return f;
    case DIVERGENCE_JENSEN_SHANNON:
        m = a * t + (1 - a) * p;
        *g = (1 - a) * times_log(p, p / m);
        return a * times_log(t, t / m) + *g;
    case DIVERGENCE_VARIATION: *g = p * ((p > t) - (p < t)) / 2; return fabs(p - t) / 2;
    case DIVERGENCE_ALPHA_BETA:
        mixed = pow(t, a) * pow(p, b);
        *g = (pow(p, a + b) - mixed) / a;
        return (a / (a + b) * pow(t, a + b) + b / (a + b) * pow(p, a + b) - mixed) / (a * b);
    default:
        f = b * times_log(p, p / t);
        *g = f - a * t;
        return f + a * times_log(t, t / p);
    }
}

/* First treats all tokens as part of the rest, whose g is distributed by p; then replaces the parts of the entries. */
static void entries_gradient(const struct divergence *c, const struct row *w, double g_rest, double mean) {
    double share = w->factor * (g_rest * w->z.sum / w->others - mean) / w->z.sum;
    float part[ENTRY_CHUNK];
    for (size_t i = 0; i < c->d; i += ENTRY_CHUNK) {
        size_t n = smaller(ENTRY_CHUNK, c->d - i);
        c->v->loss_gradient(part, w->x + i, NULL, n, w->z.max, 1 / c->how->temperature, (float)share, 0, 0);
        for (size_t j = 0; j < w->k; j++) {
            if (w->ids[j] < i || w->ids[j] - i >= n) continue;
            double g, p = exp(log_prob(c, w, w->ids[j]));
            terms(w, w->probs[j], p, &g);
            part[w->ids[j] - i] = (float)(w->factor * (g - p * mean));
        }
        c->v->add(w->dx + i, part, n);
    }
}

static double entries_row(const struct divergence *c, const struct row *w) {
    double g_rest, g, mean, f = terms(w, w->rest, w->others / w->z.sum, &g_rest);
    mean = g_rest;
    for (size_t j = 0; j < w->k; j++) {
        f += terms(w, w->probs[j], exp(log_prob(c, w, w->ids[j])), &g);
        mean += g;
    }
    if (w->factor != 0) entries_gradient(c, w, g_rest, mean);
    return f;
}

static double measure(const struct divergence *c, size_t r) {
    const struct kernel_target *t = c->target;
    float weight = c->how->weight * (c->row_weight ? c->row_weight[r] : 1);
    struct row w = {.x = c->x + r * c->d, .kind = c->how->kind, .a = c->how->a, .b = c->how->b};
    w.z = row_softmax_sum(c->v, w.x, c->d, 1 / c->how->temperature);
    w.log_sum = log(w.z.sum);
    w.factor = c->dx ? weight / c->how->temperature : 0;
    w.dx = c->dx ? c->dx + r * c->d : NULL;
    if (t->dense) {
        w.dense = t->dense + r * c->d;
    } else {
        w.ids = t->ids + t->offset[r];
        w.probs = t->probs + t->offset[r];
        w.k = t->offset[r + 1] - t->offset[r];
        w.rest = fmax(t->rest[r], REST_MIN);
        w.others = row_others_sum(c->v, w.x, c->d, w.z.max, 1 / c->how->temperature, w.ids, w.k);
    }
    if (w.kind == DIVERGENCE_ADAPTIVE) adapt(c, &w);
    return w.dense ? dense_row(c, &w) : entries_row(c, &w);
}

static void divergence_rows(void *ctx, size_t begin, size_t end) {
    const struct divergence *c = ctx;
    for (size_t r = begin; r < end; r++) {
        bool counts = !c->row_weight || c->row_weight[r] != 0;
        c->value[r] = counts ? measure(c, r) : 0;
    }
}

void kernel_divergence(const struct kernel_divergence *how, const struct kernel_target *target, const float *row_weight,
                       const float *x, size_t rows, size_t d, double *value, float *dx) {
    PROFILE(HEAD);
    struct divergence c = {simd(), how, target, row_weight, x, d, value, dx};
    kernel_split(rows, piece_rows(d), divergence_rows, &c);
}
