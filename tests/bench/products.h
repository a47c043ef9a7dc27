/*
 * products: what bench_kernel and bench_bf16 share: the matrix products of SmolLM2-135M (a pass of 4 x 512 positions, the
 * head in blocks of 256), numbers to multiply, a clock.
 */
#ifndef RILL_BENCH_PRODUCTS_H
#define RILL_BENCH_PRODUCTS_H

#include "lib/kernel/kernel.h"

enum form { NT, NN, TN };

struct product {
    const char *what;
    enum form form;
    size_t m, n, k;
};
extern const struct product products[];
extern const size_t n_products;

/* Number of threads from argv[1]. One thread is measured in processor time, which is fair on a busy machine too. false: usage. */
bool bench_begin(int argc, char **argv, int *threads);
double bench_now(void);

/* Memory that is given back by mem_free; without it the program ends. */
void *bench_array(size_t n, size_t size);
float *bench_numbers(size_t n); /* in [-1, 1) */

/* c = the product in f32. */
void bench_multiply_f32(const struct product *p, const float *a, const float *b, float *c);

#endif
