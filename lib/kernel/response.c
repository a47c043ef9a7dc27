/* Further losses on rows of logits: against targets made from labels, against the teacher's logits, and on the order of
 * tokens. */
#include <math.h>

#include "lib/kernel/kernel_internal.h"

struct response {
    const struct simd *v;
    double (*row)(const struct response *c, size_t r); /* returns the loss of row r; adds to dx */
    const struct kernel_label_target *label_how;
    const struct kernel_rank *rank;
    bool centred;
    float weight;
    const uint32_t *label, *ids;
    const uint64_t *offset;
    const float *probs, *z, *row_weight, *x;
    size_t d;
    double *value;
    float *dx;
};

static float weight_of(const struct response *c, size_t r) {
    return c->weight * (c->row_weight ? c->row_weight[r] : 1);
}

static void response_rows(void *ctx, size_t begin, size_t end) {
    const struct response *c = ctx;
    for (size_t r = begin; r < end; r++) c->value[r] = !c->row_weight || c->row_weight[r] != 0 ? c->row(c, r) : 0;
}

/* ---- targets made from labels ------------------------------------------------------------------------------------ */

/* dx += weight T (p - t) */
static void label_gradient(const struct response *c, size_t r, const struct softmax_sum *z, float weight) {
    const struct kernel_label_target *o = c->label_how;
    const float *x = c->x + r * c->d;
    float part[ENTRY_CHUNK], *dx = c->dx + r * c->d, scale = weight * o->temperature;
    for (size_t i = 0; i < c->d; i += ENTRY_CHUNK) {
        size_t n = smaller(ENTRY_CHUNK, c->d - i);
        c->v->loss_gradient(part, x + i, NULL, n, z->max, 1 / o->temperature, (float)(scale / z->sum), 0, 0);
        for (size_t j = 0; j < n; j++) dx[i + j] += part[j] - scale * o->other;
    }
    dx[c->label[r]] -= scale * (o->own - o->other);
}

static double label_row(const struct response *c, size_t r) {
    const struct kernel_label_target *o = c->label_how;
    const float *x = c->x + r * c->d;
    if (c->label[r] == UINT32_MAX) return 0;
    double s = 1 / (double)o->temperature, d = (double)c->d;
    struct softmax_sum z = row_softmax_sum(c->v, x, c->d, (float)s);
    double log_sum = log(z.sum) + z.max * s, own = x[c->label[r]] * s - log_sum;
    double all = c->v->sum(x, c->d) * s - d * log_sum, value = -o->own * own - o->other * (all - own);
    if (o->divergence && o->own > 0) value += o->own * log(o->own);
    if (o->divergence && o->other > 0) value += (d - 1) * o->other * log(o->other);
    if (c->dx) label_gradient(c, r, &z, weight_of(c, r));
    return value;
}

void kernel_label_target(const struct kernel_label_target *how, const uint32_t *label, const float *row_weight,
                         const float *x, size_t rows, size_t d, double *value, float *dx) {
    PROFILE(HEAD);
    struct response c = {.v = simd(),
                         .row = label_row,
                         .label_how = how,
                         .weight = how->weight,
                         .label = label,
                         .row_weight = row_weight,
                         .x = x,
                         .d = d,
                         .value = value,
                         .dx = dx};
    kernel_split(rows, piece_rows(d), response_rows, &c);
}

/* ---- against the teacher's logits -------------------------------------------------------------------------------- */

static double mse_row(const struct response *c, size_t r) {
    const float *x = c->x + r * c->d, *z = c->z + r * c->d;
    double n = (double)c->d, shift = c->centred ? (c->v->sum(x, c->d) - c->v->sum(z, c->d)) / n : 0, sum = 0;
    float *dx = c->dx ? c->dx + r * c->d : NULL, scale = 2 * weight_of(c, r) / (float)n;
    for (size_t i = 0; i < c->d; i++) {
        double y = (double)x[i] - z[i] - shift;
        sum += y * y;
        if (dx) dx[i] += scale * (float)y;
    }
    return sum / n;
}

void kernel_logit_mse(bool centred, float weight, const float *z, const float *row_weight, const float *x, size_t rows,
                      size_t d, double *value, float *dx) {
    PROFILE(HEAD);
    struct response c = {.v = simd(),
                         .row = mse_row,
                         .centred = centred,
                         .weight = weight,
                         .z = z,
                         .row_weight = row_weight,
                         .x = x,
                         .d = d,
                         .value = value,
                         .dx = dx};
    kernel_split(rows, piece_rows(d), response_rows, &c);
}

/* ---- the order of tokens ----------------------------------------------------------------------------------------- */

/* The function of y = x_i - x_j, and its derivative. */
static double pair_loss(const struct kernel_rank *o, double y, double *slope) {
    double u = o->margin - y;
    if (!o->logistic) {
        *slope = u > 0 ? -1 : 0;
        return u > 0 ? u : 0;
    }
    *slope = -1 / (1 + exp(-u));
    return u > 0 ? u + log1p(exp(-u)) : log1p(exp(u));
}

static double rank_row(const struct response *c, size_t r) {
    const uint32_t *ids = c->ids + c->offset[r];
    const float *t = c->probs + c->offset[r], *x = c->x + r * c->d;
    size_t k = smaller(c->offset[r + 1] - c->offset[r], c->rank->most), pairs = 0;
    double sum = 0, slope;
    for (size_t i = 0; i < k; i++)
        for (size_t j = i + 1; j < k; j++) pairs += t[i] > t[j];
    for (size_t i = 0; i < k; i++)
        for (size_t j = i + 1; j < k; j++) {
            if (!(t[i] > t[j])) continue;
            sum += pair_loss(c->rank, (double)x[ids[i]] - x[ids[j]], &slope);
            if (!c->dx) continue;
            float step = (float)(weight_of(c, r) * slope / (double)pairs);
            c->dx[r * c->d + ids[i]] += step;
            c->dx[r * c->d + ids[j]] -= step;
        }
    return pairs ? sum / (double)pairs : 0;
}

void kernel_rank(const struct kernel_rank *how, const uint64_t *offset, const uint32_t *ids, const float *probs,
                 const float *row_weight, const float *x, size_t rows, size_t d, double *value, float *dx) {
    PROFILE(HEAD);
    struct response c = {.v = simd(),
                         .row = rank_row,
                         .rank = how,
                         .weight = how->weight,
                         .offset = offset,
                         .ids = ids,
                         .probs = probs,
                         .row_weight = row_weight,
                         .x = x,
                         .d = d,
                         .value = value,
                         .dx = dx};
    kernel_split(rows, 16, response_rows, &c);
}
