/* How much of measured correlations is noise, and how they are shrunk by it. */
#include <math.h>

#include "lib/quant/second_order.h"

#define SHARES 64 /* interleaved sets of rows, summed separately whatever the number of threads */

struct reliability_job {
    const float *first, *second;
    size_t n;
    double both[SHARES], each[SHARES];
};

static void reliability_share(void *ctx, size_t share, int thread) {
    struct reliability_job *k = ctx;
    size_t n = k->n;
    double both = 0, each = 0;
    (void)thread;
    for (size_t i = share; i < n; i += SHARES)
        for (size_t j = i + 1; j < n; j++) {
            double a = k->first[i * n + j], b = k->second[i * n + j];
            double da = (double)k->first[i * (n + 1)] * k->first[j * (n + 1)];
            double db = (double)k->second[i * (n + 1)] * k->second[j * (n + 1)];
            if (!(da > 0 && db > 0)) continue;
            both += a * b / sqrt(da * db);
            each += (a * a / da + b * b / db) / 2;
        }
    k->both[share] = both, k->each[share] = each;
}

double shrink_reliability(const float *first, const float *second, size_t n) {
    struct reliability_job k = {.first = first, .second = second, .n = n};
    double both = 0, each = 0;
    parallel_for(SHARES, reliability_share, &k);
    for (size_t i = 0; i < SHARES; i++) both += k.both[i], each += k.each[i];
    return each > 0 && both > 0 ? both / each : 0;
}

double shrink_reliability_of(const struct stats_gram *g) {
    size_t n = g->cols;
    double both = 0, each = 0;
    for (size_t k = 0; k < g->half_rows; k++)
        for (size_t i = k * g->stride, j = 0; j < n; j++) {
            double scale = sqrt((double)g->sum[i * (n + 1)] * g->sum[j * (n + 1)]);
            if (j == i || !(scale > 0)) continue;
            double a = g->half[k * n + j] / scale, b = g->sum[i * n + j] / scale - a;
            both += a * b;
            each += (a * a + b * b) / 2;
        }
    if (!g->half_rows) return 1;
    return each > 0 && both > 0 ? both / each : 0;
}

double shrink_of_sum(double reliability) {
    return 2 * reliability / (1 + reliability);
}

struct shrinking {
    float *to;
    const float *a, *b;
    double keep;
    size_t n;
};

static void shrink_row(void *ctx, size_t i, int thread) {
    const struct shrinking *s = ctx;
    const float *a = s->a + i * s->n, *b = s->b ? s->b + i * s->n : NULL;
    float *to = s->to + i * s->n;
    (void)thread;
    for (size_t j = 0; j < s->n; j++) to[j] = (float)(s->keep * (b ? a[j] + b[j] : a[j]));
    to[i] = b ? a[i] + b[i] : a[i];
}

float *shrink_sum(const float *a, const float *b, double keep, size_t n, struct err *e) {
    float *to = mem_alloc(n * n * sizeof *to, e);
    if (to) parallel_for(n, shrink_row, &(struct shrinking){to, a, b, keep, n});
    return to;
}
