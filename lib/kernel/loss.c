/*
 * The distillation loss of a row of logits and its gradient, optionally in place, in two passes over the row (sums,
 * then gradient): sparse targets change only a few entries of a gradient that is otherwise a scaled softmax.
 *
 * With z = x / T, p = softmax(z), S = sum t, d(T^2 KL)/dx is
 *   sparse or dense      T (S p_i - t_i)
 *   ghost g, q = sum_K p T ((S + g) p_i - t_i)                   in K
 *                        T (S - g q / (1 - q)) p_i               outside
 */
#include <math.h>

#include "lib/kernel/kernel_internal.h"

struct loss {
    const struct simd *v;
    const struct kernel_loss *how;
    const struct kernel_target *target;
    const float *row_weight, *x;
    size_t d;
    double *kl, *ce;
    struct view dx;
};

/* A row, with its sums from the first pass. */
struct row {
    const float *x, *dense;
    const uint32_t *ids;
    const float *probs;
    size_t k;
    uint32_t label;
    float s;                  /* 1 / T */
    struct softmax_sum z, z1; /* at T; at 1, if cross-entropy is needed */
    double log_sum;           /* log z.sum */
    double mass;              /* S */
    double ghost, others;     /* g; sum over i not in K of exp((x_i - max) s), >= OTHERS_MIN */
};

/* log p of one entry, in f64 from the exact difference from the maximum. */
static double log_prob(const struct row *w, uint32_t id) {
    return ((double)w->x[id] - w->z.max) * w->s - w->log_sum;
}

static double kl_sparse(const struct loss *c, struct row *w) {
    double kl = 0;
    for (size_t j = 0; j < w->k; j++) {
        double t = w->probs[j];
        w->mass += t;
        if (t > 0) kl += t * (log(t) - log_prob(w, w->ids[j]));
    }
    if (w->ghost > 0) {
        w->others = row_others_sum(c->v, w->x, c->d, w->z.max, w->s, w->ids, w->k);
        kl += w->ghost * (log(w->ghost) - (log(w->others) - w->log_sum));
    }
    return kl;
}

static bool has_teacher(const struct kernel_target *t) {
    return t->dense || t->ids;
}

/* First pass: fills *w and returns the row's losses in *kl and *ce. */
static void measure(const struct loss *c, size_t r, struct row *w, double *kl, double *ce) {
    const struct kernel_target *t = c->target;
    *w = (struct row){.x = c->x + r * c->d, .s = 1 / c->how->temperature, .label = UINT32_MAX};
    *kl = *ce = 0;
    if (t->label) w->label = t->label[r];
    if (has_teacher(t)) {
        w->z = row_softmax_sum(c->v, w->x, c->d, w->s);
        w->log_sum = log(w->z.sum);
        if (t->dense) {
            w->dense = t->dense + r * c->d;
            *kl = c->v->kl_dense(w->dense, w->x, c->d, w->z.max, w->s, w->log_sum, &w->mass);
        } else {
            w->ids = t->ids + t->offset[r];
            w->probs = t->probs + t->offset[r];
            w->k = t->offset[r + 1] - t->offset[r];
            w->ghost = t->rest ? t->rest[r] : 0;
            *kl = kl_sparse(c, w);
        }
    }
    if (w->label != UINT32_MAX) {
        w->z1 = has_teacher(t) && w->s == 1 ? w->z : row_softmax_sum(c->v, w->x, c->d, 1);
        *ce = log(w->z1.sum) - ((double)w->x[w->label] - w->z1.max);
    }
}

/* The factors of a row's gradient, for the two softmaxes and the target. */
struct coefficients {
    double kl, ce;     /* kl_weight T and ce_weight, for this row */
    double outside, b; /* of exp((x - max) s) and of exp(x - max) */
    /* In place of `outside` for tokens in K if there is a ghost. Computed separately instead of corrected, because the
     * two may differ by many orders of magnitude. */
    double inside;
    bool ghost, ce_only;
};

static struct coefficients coefficients_of(const struct loss *c, const struct row *w, float weight) {
    struct coefficients g = {.kl =
                                 has_teacher(c->target) ? (double)weight * c->how->kl_weight * c->how->temperature : 0,
                             .ce = w->label != UINT32_MAX ? (double)weight * c->how->ce_weight : 0};
    double b = g.ce != 0 ? g.ce / w->z1.sum : 0;
    g.ce_only = g.kl == 0;
    if (g.ce_only) {
        g.outside = b;
        return g;
    }
    g.b = b;
    g.ghost = w->ghost > 0;
    if (g.ghost) {
        g.outside = g.kl * (w->mass - w->ghost * (w->z.sum - w->others) / w->others) / w->z.sum;
        g.inside = g.kl * (w->mass + w->ghost) / w->z.sum;
        return g;
    }
    g.outside = g.kl * w->mass / w->z.sum;
    if (w->s == 1) g.outside += b, g.b = 0; /* both softmaxes are the same */
    return g;
}

/* Elements [from, from + n) of the row's gradient; dx is not part of x. */
static void differentiate_part(const struct loss *c, const struct row *w, const struct coefficients *g, size_t from,
                               size_t n, float *dx) {
    const float *x = w->x + from, *dense = g->ce_only || !w->dense ? NULL : w->dense + from;
    if (g->ce_only)
        c->v->loss_gradient(dx, x, NULL, n, w->z1.max, 1, (float)g->outside, 0, 0);
    else
        c->v->loss_gradient(dx, x, dense, n, w->z.max, w->s, (float)g->outside, (float)g->b, (float)g->kl);
    for (size_t j = 0; g->kl != 0 && j < w->k; j++) {
        if (w->ids[j] < from || w->ids[j] - from >= n) continue;
        size_t at = w->ids[j] - from;
        double z = (double)x[at] - w->z.max;
        if (g->ghost) dx[at] = (float)(g->inside * exp(z * w->s) + g->b * exp(z));
        dx[at] -= (float)(g->kl * w->probs[j]);
    }
    if (g->ce != 0 && w->label >= from && w->label - from < n) dx[w->label - from] -= (float)g->ce;
}

/* Second pass, in chunks through a buffer, because dx may overwrite x or be bf16. */
static void differentiate(const struct loss *c, const struct row *w, float weight, size_t at) {
    struct coefficients g = coefficients_of(c, w, weight);
    float part[ENTRY_CHUNK];
    if (g.kl == 0 && g.ce == 0) {
        memset(view_part(c->dx, at).data, 0, kernel_array_bytes(c->dx.dtype, c->d));
        return;
    }
    for (size_t i = 0, n; i < c->d; i += n) {
        n = smaller(ENTRY_CHUNK, c->d - i);
        differentiate_part(c, w, &g, i, n, part);
        if (c->dx.dtype == DT_F32)
            memcpy((float *)c->dx.data + at + i, part, n * sizeof *part);
        else
            c->v->to_bf16((uint16_t *)c->dx.data + at + i, part, n);
    }
}

static void loss_rows(void *ctx, size_t begin, size_t end) {
    const struct loss *c = ctx;
    for (size_t r = begin; r < end; r++) {
        struct row w;
        double kl, ce;
        measure(c, r, &w, &kl, &ce);
        if (c->kl) c->kl[r] = kl;
        if (c->ce) c->ce[r] = ce;
        if (c->dx.data) differentiate(c, &w, c->row_weight ? c->row_weight[r] : 1, r * c->d);
    }
}

void kernel_distill_loss(const struct kernel_loss *how, const struct kernel_target *target, const float *row_weight,
                         struct kernel_array x, size_t rows, size_t d, double *kl, double *ce, struct kernel_array dx) {
    PROFILE(HEAD);
    struct loss c = {simd(), how, target, row_weight, host_f32(x), d, kl, ce, view_of(dx)};
    kernel_split(rows, piece_rows(d), loss_rows, &c);
}
