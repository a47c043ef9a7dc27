/*
 * bench_kernel: GFLOP/s of the matrix products against direct calls of OpenBLAS with the same number of threads, and
 * rates of the other kernels, at the shapes of SmolLM2-135M. Prints one line per shape, the best of several runs (a
 * shared machine can only make a run slower).
 *
 *     make bench-kernel
 *     make bench-kernel THREADS=1                processor time instead of wall time: fair on a busy machine
 *     RILL_CPU=avx2 make bench-kernel
 *     OPENBLAS_CORETYPE=SkylakeX make bench-kernel
 */
#ifdef RILL_BENCH_OPENBLAS
#include <cblas.h>
#endif

#include "tests/bench/products.h"

#ifdef RILL_BENCH_OPENBLAS
enum { SIDES = 2 }; /* ours and OpenBLAS */
static void openblas(const struct product *s, const float *a, const float *b, float *c) {
    blasint m = (blasint)s->m, n = (blasint)s->n, k = (blasint)s->k;
    cblas_sgemm(CblasRowMajor, s->form == TN ? CblasTrans : CblasNoTrans, s->form == NT ? CblasTrans : CblasNoTrans, m,
                n, k, 1, a, s->form == TN ? m : k, b, s->form == NT ? k : n, 0, c, n);
}
static void openblas_begin(int threads) {
    openblas_set_num_threads(threads);
    printf("OpenBLAS: %s\n", openblas_get_config());
}
#else
enum { SIDES = 1 };
static void openblas(const struct product *s, const float *a, const float *b, float *c) {
    (void)s, (void)a, (void)b, (void)c;
}
static void openblas_begin(int threads) {
    (void)threads;
    printf("OpenBLAS is not installed (libopenblas-openmp-dev)\n");
}
#endif

static void bench_product(const struct product *s) {
    float *a = bench_numbers(s->m * s->k), *b = bench_numbers(s->n * s->k), *c = bench_numbers(s->m * s->n);
    double flops = 2e-9 * (double)s->m * (double)s->n * (double)s->k, best[2] = {1e9, 1e9};
    for (int run = 0; run < (flops < 1 ? 40 : 10); run++)
        for (int which = 0; which < SIDES; which++) {
            double t = bench_now();
            (which ? openblas : bench_multiply_f32)(s, a, b, c);
            t = bench_now() - t;
            if (t < best[which]) best[which] = t;
        }
    printf("%-16s %s %6zu x %5zu x %5zu %8.1f GFLOP/s", s->what, (const char *[]){"nt", "nn", "tn"}[s->form], s->m,
           s->n, s->k, flops / best[0]);
    if (SIDES > 1) printf(", OpenBLAS %6.1f, ratio %.2f", flops / best[1], best[1] / best[0]);
    printf("\n");
    mem_free(a);
    mem_free(b);
    mem_free(c);
}

/* ---- all other kernels: microseconds ---- */

enum { ROWS = 256, VOCAB = 49152, N = 2048, HIDDEN = 576, FFN = 1536, HEADS = 9, KV_HEADS = 3, HEAD_DIM = 64 };

struct work {
    float *x, *y, *z, *dx, *dy, *dz;
    double *u;
    uint32_t *ids;
    struct kernel_attention attention;
};

static void run_lse(struct work *w) {
    kernel_logsumexp(w->y, kernel_f32(w->x), ROWS, VOCAB, 1);
}
static void run_topk(struct work *w) {
    kernel_topk(w->ids, w->y, kernel_f32(w->x), ROWS, VOCAB, 50);
}
static void run_sample(struct work *w) {
    kernel_sample(w->ids, w->u, kernel_f32(w->x), ROWS, VOCAB, 50, 1);
}

static void run_loss_dense(struct work *w) {
    static const struct kernel_loss how = {1, 1, 0};
    double kl[ROWS];
    struct kernel_target t = {.dense = w->z};
    kernel_distill_loss(&how, &t, NULL, kernel_f32(w->x), ROWS, VOCAB, kl, NULL, kernel_f32(w->dx));
}

static void run_loss_sparse(struct work *w) {
    static const struct kernel_loss how = {2, 1, 1};
    double kl[ROWS], ce[ROWS];
    uint64_t offset[ROWS + 1];
    uint32_t label[ROWS] = {0};
    for (uint64_t i = 0; i <= ROWS; i++) offset[i] = i * 12;
    for (uint32_t i = 0; i < ROWS * 12; i++) w->ids[i] = i % 12 * 1000, w->y[i] = 1.0f / 12;
    struct kernel_target t = {.offset = offset, .ids = w->ids, .probs = w->y, .label = label};
    kernel_distill_loss(&how, &t, NULL, kernel_f32(w->x), ROWS, VOCAB, kl, ce, kernel_f32(w->dx));
}

static void run_attention(struct work *w) {
    struct kernel_array x = kernel_f32(w->x);
    kernel_attention(&w->attention, kernel_f32(w->y), kernel_f32(w->z), x, x, kernel_part(x, HIDDEN));
}

static void run_attention_backward(struct work *w) {
    struct kernel_array x = kernel_f32(w->x);
    kernel_attention_backward(&w->attention, kernel_f32(w->dx), kernel_f32(w->dy), kernel_f32(w->dz), x, x,
                              kernel_f32(w->z), x, x, x);
}

static void run_swiglu(struct work *w) {
    kernel_glu(ACT_SILU, kernel_f32(w->y), kernel_f32(w->x), kernel_f32(w->z), N * FFN);
}
static void run_swiglu_backward(struct work *w) {
    kernel_glu_backward(ACT_SILU, kernel_f32(w->dx), kernel_f32(w->dy), kernel_f32(w->y), kernel_f32(w->x),
                        kernel_f32(w->z), N * FFN);
}
static void run_rmsnorm(struct work *w) {
    kernel_rmsnorm(kernel_f32(w->y), kernel_f32(w->dy), kernel_f32(w->x), kernel_f32(w->z), N, HIDDEN, 1e-5f);
}

static void run_rmsnorm_backward(struct work *w) {
    kernel_rmsnorm_backward(kernel_f32(w->dx), kernel_f32(w->dz), kernel_f32(w->y), kernel_f32(w->x), kernel_f32(w->z),
                            kernel_f32(w->dy), N, HIDDEN);
}

static void run_rope(struct work *w) {
    kernel_rope(kernel_f32(w->y), N, HEADS, HEAD_DIM, w->ids,
                &(struct kernel_rotation){.dims = HEAD_DIM, .inv_freq = w->u}, 1);
}

static void run_adamw(struct work *w) {
    static const struct kernel_adamw how = {1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 1, 10, 0};
    kernel_adamw(&how, kernel_f32(w->dx), kernel_f32(w->dy), kernel_f32(w->dz), kernel_f32(w->x), (size_t)ROWS * VOCAB);
}

static void run_adamw_bf16(struct work *w) {
    static const struct kernel_adamw how = {1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 1, 10, 0};
    struct kernel_array m = kernel_host_array(DT_BF16, w->dy), v = kernel_host_array(DT_BF16, w->dz);
    kernel_adamw(&how, kernel_f32(w->dx), m, v, kernel_f32(w->x), (size_t)ROWS * VOCAB);
}

static const struct {
    const char *what;
    void (*run)(struct work *w);
    double per; /* units per run */
    const char *unit;
} others[] = {
    {"logsumexp 49152", run_lse, ROWS, "row"},
    {"topk 50 of 49152", run_topk, ROWS, "row"},
    {"sample 50 of 49152", run_sample, ROWS, "row"},
    {"loss dense 49152", run_loss_dense, ROWS, "row"},
    {"loss sparse + ce, T 2", run_loss_sparse, ROWS, "row"},
    {"attention 4 x 512, layer", run_attention, N, "token"},
    {"attention backward", run_attention_backward, N, "token"},
    {"swiglu", run_swiglu, N, "token"},
    {"swiglu backward", run_swiglu_backward, N, "token"},
    {"rmsnorm", run_rmsnorm, N, "token"},
    {"rmsnorm backward", run_rmsnorm_backward, N, "token"},
    {"rope", run_rope, N, "token"},
    {"adamw", run_adamw, (double)ROWS *VOCAB / 1e6, "million"},
    {"adamw, moments in bf16", run_adamw_bf16, (double)ROWS *VOCAB / 1e6, "million"},
};

static void bench_others(void) {
    static const uint32_t starts[] = {0, 512, 1024, 1536, 2048};
    size_t n = (size_t)ROWS * VOCAB;
    struct work w = {bench_numbers(n),
                     bench_numbers(n),
                     bench_numbers(n),
                     bench_numbers(n),
                     bench_numbers(n),
                     bench_numbers(n),
                     bench_array(ROWS * 50, sizeof(double)),
                     bench_array(n, 4),
                     {HEADS, KV_HEADS, HEAD_DIM, 4, starts, 0.125f}};
    for (size_t i = 0; i < ROWS * 50; i++) w.u[i] = (double)(i % 50) / 50;
    for (size_t i = 0; i < N; i++) w.ids[i] = (uint32_t)i;
    for (size_t i = 0; i < COUNT_OF(others); i++) {
        double best = 1e9;
        for (int run = 0; run < 10; run++) {
            double t = bench_now();
            others[i].run(&w);
            t = bench_now() - t;
            if (t < best) best = t;
        }
        printf("%-26s %9.3f us a %s\n", others[i].what, 1e6 * best / others[i].per, others[i].unit);
    }
}

int main(int argc, char **argv) {
    int threads;
    if (!bench_begin(argc, argv, &threads)) return 2;
    printf("%s, %d threads\n", kernel_backend().path, threads);
    openblas_begin(threads);
    for (size_t i = 0; i < n_products; i++) bench_product(&products[i]);
    bench_others();
    return 0;
}
