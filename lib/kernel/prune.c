/* Pruning of tensors: zeroing the smallest weights, removing columns. */
#include "lib/kernel/kernel.h"

#include <math.h>
#include <stdlib.h>

size_t kernel_zero_smallest(float *x, size_t n, size_t k, float *scratch) {
    size_t zeros = 0;
    if (k) {
        float threshold = kernel_kth_abs(x, n, k - 1, scratch);
        size_t below = 0;
        for (size_t i = 0; i < n; i++) below += fabsf(x[i]) < threshold;
        size_t ties = k - below; /* how many of those equal to the threshold are zeroed, the first ones */
        for (size_t i = 0; i < n; i++) {
            float a = fabsf(x[i]);
            if (a < threshold)
                x[i] = 0;
            else if (a == threshold && ties) {
                x[i] = 0;
                ties--;
            }
        }
    }
    for (size_t i = 0; i < n; i++) zeros += x[i] == 0;
    return zeros;
}

struct gather_job {
    float *y;
    const float *x;
    const uint32_t *keep;
    size_t d, n;
};

static void gather_row(void *ctx, size_t r, int thread) {
    (void)thread;
    const struct gather_job *j = ctx;
    for (size_t i = 0; i < j->n; i++) j->y[r * j->n + i] = j->x[r * j->d + j->keep[i]];
}

void kernel_gather_cols(float *y, const float *x, const uint32_t *keep, size_t rows, size_t d, size_t n) {
    struct gather_job j = {y, x, keep, d, n};
    parallel_for(rows, gather_row, &j);
}
