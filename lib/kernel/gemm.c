/*
 * f32 matrix products. C is split into tiles whose size does not depend on the number of threads, and one thread
 * computes a whole tile over all of k with its path's serial product, so the assignment of tiles cannot change the
 * bits.
 */
#include "lib/kernel/kernel_internal.h"

/* README.md has the measurements. */
#define TILE_M 504
#define TILE_N 320

struct product_f32 {
    const struct simd *v;
    enum gemm_form form;
    size_t m, n, k;
    const float *a, *b;
    size_t lda, ldb, ldc; /* row strides in floats */
    float beta;
    float *c;
    size_t tile_m, tile_n, tiles_n; /* tiles_n: tiles per row */
    bool upper;                     /* skip tiles below the diagonal */
    bool triangular;                /* b is upper triangular: skip its zeros */
};

static void run_tile(void *ctx, size_t i, int thread) {
    const struct product_f32 *p = ctx;
    (void)thread;
    size_t row = i / p->tiles_n * p->tile_m, col = i % p->tiles_n * p->tile_n;
    size_t m = smaller(p->tile_m, p->m - row), n = smaller(p->tile_n, p->n - col);
    if (p->upper && col + n <= row) return;
    const float *a = p->form == GEMM_TN ? p->a + row : p->a + row * p->lda;
    const float *b = p->form == GEMM_NT ? p->b + col * p->ldb : p->b + col;
    size_t first = p->triangular && p->form == GEMM_NT ? col : 0;
    size_t last = p->triangular && p->form == GEMM_NN ? col + n : p->k;
    p->v->gemm(p->form, m, n, last - first, a + first, p->lda, b + first, p->ldb, p->beta, p->c + row * p->ldc + col,
               p->ldc);
}

/* Splits c into equal tiles of at most this size, in multiples of the micro-kernels' sizes. */
static void run_tiles(struct product_f32 *p, size_t most_m, size_t most_n) {
    p->tile_m = equal_parts(p->m, most_m, 14);
    p->tile_n = equal_parts(p->n, most_n, 32);
    p->tiles_n = (p->n - 1) / p->tile_n + 1;
    parallel_for(((p->m - 1) / p->tile_m + 1) * p->tiles_n, run_tile, p);
}

void gemm_part(enum gemm_form form, size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b,
               size_t ldb, float beta, float *c, size_t ldc) {
    if (m == 0 || n == 0) return;
    struct product_f32 p = {.v = simd(),
                            .form = form,
                            .m = m,
                            .n = n,
                            .k = k,
                            .a = a,
                            .lda = lda,
                            .b = b,
                            .ldb = ldb,
                            .beta = beta,
                            .c = c,
                            .ldc = ldc};
    run_tiles(&p, TILE_M, TILE_N);
}

static void product(enum gemm_form form, size_t m, size_t n, size_t k, const float *a, const float *b, float beta,
                    float *c) {
    if (m == 0 || n == 0) return;
    if (k == 0) {
        if (beta == 0)
            kernel_fill(kernel_f32(c), m * n, 0);
        else
            kernel_scale(kernel_f32(c), m * n, beta);
        return;
    }
    gemm_part(form, m, n, k, a, form == GEMM_TN ? m : k, b, form == GEMM_NT ? k : n, beta, c, n);
}

/* ---- half of a symmetric product, in smaller tiles: half of each tile on the diagonal is computed in vain ---- */

#define GRAM_M 252
#define GRAM_N 192

void kernel_gram(size_t n, size_t k, const float *x, float beta, float *c) {
    PROFILE(PRODUCTS);
    if (n == 0 || k == 0) return;
    struct product_f32 p = {.v = simd(), .form = GEMM_TN, .m = n, .n = n, .k = k, .a = x, .lda = n, .b = x, .ldb = n};
    p.beta = beta;
    p.c = c;
    p.ldc = n;
    p.upper = true;
    run_tiles(&p, GRAM_M, GRAM_N);
}

/* ---- half of a product with a triangular matrix ---- */

#define TRIANGLE_N 192 /* half of a block on the diagonal is computed in vain */

static void triangular_product(enum gemm_form form, size_t m, size_t n, const float *a, const float *u, float *c) {
    if (m == 0 || n == 0) return;
    struct product_f32 p = {.v = simd(), .form = form, .m = m, .n = n, .k = n, .a = a, .lda = n, .b = u, .ldb = n};
    p.c = c;
    p.ldc = n;
    p.triangular = true;
    run_tiles(&p, TILE_M, TRIANGLE_N);
}

void kernel_upper_nn(size_t m, size_t n, const float *a, const float *u, float *c) {
    PROFILE(PRODUCTS);
    triangular_product(GEMM_NN, m, n, a, u, c);
}

void kernel_upper_nt(size_t m, size_t n, const float *a, const float *u, float *c) {
    PROFILE(PRODUCTS);
    triangular_product(GEMM_NT, m, n, a, u, c);
}

static void mirror_row(void *ctx, size_t row, int thread) {
    const struct product_f32 *p = ctx;
    (void)thread;
    for (size_t i = 0; i < row; i++) p->c[row * p->n + i] = p->c[i * p->n + row];
}

void kernel_mirror(size_t n, float *c) {
    PROFILE(PRODUCTS);
    parallel_for(n, mirror_row, &(struct product_f32){.n = n, .c = c});
}

/* ---- few rows, as in generation: each row of b is read once from memory, which takes all of the time, and packing it
 * would cost more than the arithmetic ---- */

#define DOTS 64 /* columns of c per task */

static void run_dots(void *ctx, size_t begin, size_t end) {
    const struct product_f32 *p = ctx;
    float out[DOTS];
    for (size_t r = 0; r < p->m; r++) {
        float *c = p->c + r * p->n;
        p->v->dots(out, p->a + r * p->k, p->b + begin * p->k, p->k, end - begin, p->k);
        for (size_t i = begin; i < end; i++) c[i] = p->beta == 0 ? out[i - begin] : out[i - begin] + p->beta * c[i];
    }
}

void kernel_matmul_nt(size_t m, size_t n, size_t k, struct kernel_array a, struct kernel_array b, float beta,
                      struct kernel_array c) {
    PROFILE(PRODUCTS);
    if (m > KERNEL_FEW_ROWS) {
        product(GEMM_NT, m, n, k, host_f32(a), host_f32(b), beta, host_f32(c));
        return;
    }
    struct product_f32 p = {
        .v = simd(), .m = m, .n = n, .k = k, .a = host_f32(a), .b = host_f32(b), .beta = beta, .c = host_f32(c)};
    kernel_split(n, DOTS, run_dots, &p);
}

#define SUMS 1024 /* columns of c per task */

static void run_sums(void *ctx, size_t begin, size_t end) {
    const struct product_f32 *p = ctx;
    p->v->mix_rows(p->c + begin, p->a, p->b + begin, p->n, p->k, end - begin);
}

/* A vector times a matrix. */
static void one_row(size_t n, size_t k, const float *a, const float *b, float beta, float *c) {
    struct product_f32 p = {.v = simd(), .n = n, .k = k, .a = a, .b = b, .c = c};
    if (beta == 0) kernel_fill(kernel_f32(c), n, 0);
    if (beta != 0 && beta != 1) kernel_scale(kernel_f32(c), n, beta);
    kernel_split(n, SUMS, run_sums, &p);
}

void kernel_matmul_nn(size_t m, size_t n, size_t k, struct kernel_array a, struct kernel_array b, float beta,
                      struct kernel_array c) {
    PROFILE(PRODUCTS);
    if (m == 1) {
        one_row(n, k, host_f32(a), host_f32(b), beta, host_f32(c));
        return;
    }
    product(GEMM_NN, m, n, k, host_f32(a), host_f32(b), beta, host_f32(c));
}

void kernel_matmul_tn(size_t m, size_t n, size_t k, struct kernel_array a, struct kernel_array b, float beta,
                      struct kernel_array c) {
    PROFILE(PRODUCTS);
    product(GEMM_TN, m, n, k, host_f32(a), host_f32(b), beta, host_f32(c));
}
