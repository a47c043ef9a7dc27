/* Shapes of the benchmarked matrix products, and the helpers of products.h. */
#include "tests/bench/products.h"

#include <time.h>

const struct product products[] = {
    {"q, o", NT, 2048, 576, 576},
    {"k, v", NT, 2048, 192, 576},
    {"gate, up", NT, 2048, 1536, 576},
    {"down", NT, 2048, 576, 1536},
    {"head, 256 rows", NT, 256, 49152, 576},
    {"dx of q, o", NN, 2048, 576, 576},
    {"dx of gate, up", NN, 2048, 576, 1536},
    {"dx of down", NN, 2048, 1536, 576},
    {"dx of head", NN, 256, 576, 49152},
    {"dw of q, o", TN, 576, 576, 2048},
    {"dw of gate, up", TN, 1536, 576, 2048},
    {"dw of down", TN, 576, 1536, 2048},
    {"dw of head", TN, 49152, 576, 256},
    {"one row, head", NT, 1, 49152, 576},
    {"one row, gate", NT, 1, 1536, 576},
    {"8 rows, head", NT, 8, 49152, 576},
    {"64 rows, head", NT, 64, 49152, 576},
    {"64 rows, gate", NT, 64, 1536, 576},
};
const size_t n_products = COUNT_OF(products);

static clockid_t the_clock;

bool bench_begin(int argc, char **argv, int *threads) {
    uint64_t n = (uint64_t)parallel_default_threads();
    if (argc > 1 && !parse_u64(argv[1], &n)) return false;
    *threads = (int)n;
    the_clock = n == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC;
    parallel_set_threads(*threads);
    return true;
}

double bench_now(void) {
    struct timespec t;
    clock_gettime(the_clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void *bench_array(size_t n, size_t size) {
    struct err e;
    void *p = mem_array(n, size, &e);
    if (!p) exit(1);
    return p;
}

float *bench_numbers(size_t n) {
    float *x = bench_array(n, sizeof *x);
    struct rng r = rng_init(1, n);
    for (size_t i = 0; i < n; i++) x[i] = (float)rng_u32(&r) * 0x1p-31f - 1;
    return x;
}

void bench_multiply_f32(const struct product *p, const float *a, const float *b, float *c) {
    if (p->form == NT) kernel_matmul_nt(p->m, p->n, p->k, kernel_f32(a), kernel_f32(b), 0, kernel_f32(c));
    if (p->form == NN) kernel_matmul_nn(p->m, p->n, p->k, kernel_f32(a), kernel_f32(b), 0, kernel_f32(c));
    if (p->form == TN) kernel_matmul_tn(p->m, p->n, p->k, kernel_f32(a), kernel_f32(b), 0, kernel_f32(c));
}
