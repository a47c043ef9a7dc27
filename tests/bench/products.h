/*
 * products: shared by bench_kernel, bench_bf16 and bench_layers: the matrix products of SmolLM2-135M (a pass of 4 x 512
 * positions, the head in blocks of 256), random matrices, a clock.
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

/* Sets the number of threads from argv[1]. One thread is measured in processor time, which is fair on a busy
 * machine. Returns false on wrong usage. */
bool bench_begin(int argc, char **argv, int *threads);
double bench_now(void);

/* Allocates memory, to be freed with mem_free; exits if there is none. */
void *bench_array(size_t n, size_t size);
float *bench_numbers(size_t n); /* in [-1, 1) */

/* Computes c, the product in f32. */
void bench_multiply_f32(const struct product *p, const float *a, const float *b, float *c);

#endif
