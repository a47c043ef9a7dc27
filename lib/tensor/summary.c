/* Summary statistics, histograms and differences of tensors. */
#include "lib/tensor/tensor.h"

#include <math.h>

cJSON *tensor_desc_json(const struct tensor_desc *d) {
    cJSON *j = cJSON_CreateObject(), *shape = cJSON_CreateArray();
    bool ok = json_put_str(j, "name", d->name) && json_put_str(j, "dtype", dtype_info(d->dtype)->name);
    for (unsigned i = 0; ok && i < d->rank; i++)
        ok = cJSON_AddItemToArray(shape, cJSON_CreateNumber((double)d->dims[i]));
    if (ok && cJSON_AddItemToObject(j, "shape", shape)) return j;
    cJSON_Delete(shape);
    cJSON_Delete(j);
    return NULL;
}

/* Two passes over a piece in the cache, then a merge: Chan, Golub & LeVeque, 1979, eq. 2.1. */
void tensor_summarize(struct tensor_summary *s, const float *x, size_t n) {
    double sum = 0, m2 = 0;
    uint64_t before = s->n - s->n_nan - s->n_inf, finite = 0;
    for (size_t i = 0; i < n; i++) {
        s->n_nan += isnan(x[i]) != 0;
        s->n_inf += isinf(x[i]) != 0;
        s->n_zero += x[i] == 0;
        if (!isfinite(x[i])) continue;
        if (before + finite == 0 || x[i] < s->min) s->min = x[i];
        if (before + finite == 0 || x[i] > s->max) s->max = x[i];
        sum += x[i];
        finite++;
    }
    s->n += n;
    if (finite == 0) return;
    double mean = sum / (double)finite, delta = mean - s->mean, all = (double)(before + finite);
    for (size_t i = 0; i < n; i++)
        if (isfinite(x[i])) m2 += (x[i] - mean) * (x[i] - mean);
    s->m2 += m2 + delta * delta * (double)before * (double)finite / all;
    s->mean += delta * (double)finite / all;
}

double tensor_summary_std(const struct tensor_summary *s) {
    uint64_t finite = s->n - s->n_nan - s->n_inf;
    return finite ? sqrt(s->m2 / (double)finite) : 0;
}

void tensor_histogram(const struct tensor_summary *s, const float *x, size_t n, uint64_t *bins, size_t n_bins) {
    double width = ((double)s->max - s->min) / (double)n_bins;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(x[i])) continue;
        double bin = width > 0 ? (x[i] - (double)s->min) / width : 0;
        bins[bin < (double)n_bins ? (size_t)bin : n_bins - 1]++;
    }
}

static double distance(float a, float b) {
    if (a == b || (isnan(a) && isnan(b))) return 0;
    return isfinite(a) && isfinite(b) ? fabs((double)a - b) : INFINITY;
}

void tensor_compare(struct tensor_difference *d, const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++) {
        double x = distance(a[i], b[i]);
        if (x > d->max_abs) d->max_abs = x, d->at = d->n + i;
        d->n_different += x > 0;
        d->sum_abs += x;
        d->sum_square += x * x;
        if (!isfinite(a[i]) || !isfinite(b[i])) continue;
        d->dot += (double)a[i] * b[i];
        d->square_a += (double)a[i] * a[i];
        d->square_b += (double)b[i] * b[i];
    }
    d->n += n;
}

void tensor_difference_add(struct tensor_difference *d, const struct tensor_difference *more) {
    if (more->max_abs > d->max_abs) d->max_abs = more->max_abs, d->at = d->n + more->at;
    d->n += more->n;
    d->n_different += more->n_different;
    d->sum_abs += more->sum_abs;
    d->sum_square += more->sum_square;
    d->dot += more->dot;
    d->square_a += more->square_a;
    d->square_b += more->square_b;
}

double tensor_difference_mean_abs(const struct tensor_difference *d) {
    return d->n ? d->sum_abs / (double)d->n : 0;
}
double tensor_difference_rmse(const struct tensor_difference *d) {
    return d->n ? sqrt(d->sum_square / (double)d->n) : 0;
}

double tensor_difference_relative(const struct tensor_difference *d) {
    if (d->sum_square == 0) return 0;
    return d->square_a > 0 ? sqrt(d->sum_square) / sqrt(d->square_a) : INFINITY;
}

double tensor_difference_cosine(const struct tensor_difference *d) {
    if (d->square_a == 0 && d->square_b == 0) return 1;
    if (d->square_a == 0 || d->square_b == 0) return 0;
    double c = d->dot / (sqrt(d->square_a) * sqrt(d->square_b));
    return c > 1 ? 1 : c;
}
