/* Summaries shared by all metrics: means with errors, quantiles, proportions with intervals. */
#include "lib/metrics/metrics_internal.h"

#include <math.h>
#include <stdio.h>

double metrics_quantile(const double *sorted, size_t n, double q) {
    if (n == 0) return NAN;
    double at = q * (double)(n - 1);
    size_t i = (size_t)at;
    if (i + 1 >= n) return sorted[n - 1];
    return sorted[i] + (at - (double)i) * (sorted[i + 1] - sorted[i]);
}

void metrics_wilson(uint64_t k, uint64_t n, double *low, double *high) {
    const double z = 1.959963984540054; /* the 97.5% quantile of the normal distribution */
    if (n == 0) {
        *low = 0, *high = 1;
        return;
    }
    double p = (double)k / (double)n, z2n = z * z / (double)n;
    double centre = (p + z2n / 2) / (1 + z2n);
    double half = z * sqrt(p * (1 - p) / (double)n + z2n / (4 * (double)n)) / (1 + z2n);
    *low = k == 0 ? 0 : centre - half; /* exact, whereas the difference may round to either side */
    *high = k == n ? 1 : centre + half;
}

void moments_add(struct moments *s, double x) {
    double d = x - s->mean;
    s->n++;
    s->mean += d / (double)s->n;
    s->m2 += d * (x - s->mean);
}

double moments_stderr(const struct moments *s) {
    return s->n < 2 ? 0 : sqrt(s->m2 / (double)s->n / (double)(s->n - 1));
}

bool put_mean(cJSON *o, const char *key, const struct moments *s) {
    char name[64];
    snprintf(name, sizeof name, "%s_stderr", key);
    return json_put_f64(o, key, s->mean) && json_put_f64(o, name, moments_stderr(s));
}

bool put_exp(cJSON *o, const char *key, double x) {
    return json_put_f64_or_null(o, key, exp(x));
}

bool put_perplexity(cJSON *o, const char *key, const struct moments *nll) {
    char name[64];
    double error = moments_stderr(nll);
    snprintf(name, sizeof name, "%s_stderr", key);
    return put_exp(o, key, nll->mean) &&
           (error == 0 ? json_put_f64(o, name, 0) : put_exp(o, name, nll->mean + log(error)));
}

bool put_share(cJSON *o, const char *key, uint64_t k, uint64_t n) {
    char low_name[64], high_name[64];
    double low, high;
    metrics_wilson(k, n, &low, &high);
    snprintf(low_name, sizeof low_name, "%s_low", key);
    snprintf(high_name, sizeof high_name, "%s_high", key);
    return json_put_f64(o, key, (double)k / (double)n) && json_put_f64(o, low_name, low) &&
           json_put_f64(o, high_name, high);
}
