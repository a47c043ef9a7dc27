/*
 * bench_bf16: GFLOP/s of bf16 products at the shapes of SmolLM2-135M, next to f32 in the same run and as a share of the
 * rate of the CPU's bf16 instructions in registers. The best of several interleaved runs.
 *
 *     make bench-kernel THREADS=1                processor time instead of wall time: fair on a busy machine
 *     RILL_CPU=avx512 make bench-kernel          another path, which widens bf16 to f32
 */
#include "tests/bench/products.h"
#include "tests/bench/registers.h"

/* GFLOP/s of one thread in registers with the path's instruction, or 0 if there is no loop for it. */
static double measure_limit(void) {
    static const struct {
        const char *bf16, *loop; /* the instruction that multiplies */
    } limits[] = {{"amx", "bf16-amx"}, {"vdpbf16ps", "bf16-avx512"}, {"avx512-fma", "f32-avx512"}};
    for (size_t i = 0; i < COUNT_OF(limits); i++) {
        const struct register_loop *loop = register_loop(limits[i].loop);
        if (!loop || strcmp(kernel_backend().bf16, limits[i].bf16) != 0) continue;
        double t = bench_now(), done = register_work(loop, 2.5e8);
        return 1e-9 * done / (bench_now() - t);
    }
    return 0;
}

/* ---- products ---- */

/* a and b in both types, in the layout that the form needs. */
struct operands {
    float *a, *b, *c;
    uint16_t *a16;
    void *memory;
    struct kernel_matrix panels;
};

static void run_f32(const struct product *s, struct operands *o) {
    bench_multiply_f32(s, o->a, o->b, o->c);
}

static void run_multiply(const struct product *s, struct operands *o) {
    if (s->form == TN)
        kernel_multiply_tn(s->m, kernel_bf16(o->a16), &o->panels, NULL, kernel_f32(o->c));
    else
        kernel_multiply(s->m, kernel_bf16(o->a16), &o->panels, NULL, kernel_f32(o->c));
}

static void run_pack(const struct product *s, struct operands *o) {
    struct kernel_matrix stored = kernel_matrix_of(kernel_f32(o->b), s->n, s->k);
    o->panels = s->form == NT ? kernel_pack_nt(kernel_bf16(o->memory), &stored)
                              : kernel_pack_nn(kernel_bf16(o->memory), s->n, s->k, kernel_f32(o->b));
}

typedef void run_fn(const struct product *s, struct operands *o);
static run_fn *const parts[] = {run_pack, run_f32, run_multiply};
enum { PACK, PRODUCT_F32, MULTIPLY, PARTS };

static void bench_product(const struct product *s, int threads) {
    struct operands o = {.a = bench_numbers(s->m * s->k), .b = bench_numbers(s->n * s->k)};
    o.c = bench_array(s->m * s->n, sizeof *o.c);
    o.a16 = bench_array(s->m * s->k, sizeof *o.a16);
    o.memory = bench_array(kernel_matrix_bytes(KERNEL_PACKED_BF16, DT_BF16, s->n, s->k), 1);
    kernel_convert(kernel_bf16(o.a16), kernel_f32(o.a), s->m * s->k);
    double gflop = 2e-9 * (double)s->m * (double)s->n * (double)s->k, best[PARTS] = {1e9, 1e9, 1e9}, limit = 0;
    for (int run = 0; run < (gflop < 1 ? 40 : gflop < 8 ? 20 : 6); run++) {
        for (int i = 0; i < PARTS; i++) {
            double t = bench_now();
            parts[i](s, &o);
            t = bench_now() - t;
            if (t < best[i]) best[i] = t;
        }
        double l = measure_limit();
        if (l > limit) limit = l;
    }
    double rate = gflop / best[MULTIPLY], whole = gflop / (best[MULTIPLY] + best[PACK]);
    printf("%-16s %6zu x %5zu x %5zu %8.1f GFLOP/s", s->what, s->m, s->n, s->k, rate);
    if (limit > 0) printf(", %3.0f%% of the limit", 100 * rate / limit / threads);
    printf(", f32 %6.1f, ratio %.2f", gflop / best[PRODUCT_F32], best[PRODUCT_F32] / best[MULTIPLY]);
    if (s->form == TN) printf(", with packing %.1f", whole); /* of activations, packed anew each time */
    printf("; packing %.2f ns an element\n", 1e9 * best[PACK] / (double)(s->n * s->k));
    mem_free(o.a);
    mem_free(o.b);
    mem_free(o.c);
    mem_free(o.a16);
    mem_free(o.memory);
}

/* ---- quantized weights: straight from their blocks, and packed for integer products ---- */

static void bench_quantized_type(size_t m, size_t n, size_t k, enum dtype type, const float *weights, const uint16_t *a,
                                 const struct kernel_matrix *bf16, float *c) {
    struct err e;
    size_t bytes = kernel_matrix_bytes(KERNEL_PACKED_INT8, type, n, k);
    void *rows = bench_array(dtype_row_bytes(type, n * k), 1), *memory = bench_array(bytes, 1);
    if (tensor_from_f32(type, weights, rows, n * k, NULL, &e)) exit(1);
    struct kernel_matrix blocks = kernel_matrix_of(kernel_host_array(type, rows), n, k);
    struct kernel_matrix int8 = kernel_matrix_in(kernel_host_array(type, memory), KERNEL_PACKED_INT8, type, n, k);
    double packing = bench_now();
    kernel_matrix_fill(&int8, 0, n, type, rows);
    packing = bench_now() - packing;
    const struct kernel_matrix *const forms[] = {bf16, &blocks, &int8};
    double best[COUNT_OF(forms)] = {1e9, 1e9, 1e9}, ns = 1e9 / ((double)n * (double)k);
    for (int run = 0; run < (m < 64 ? 20 : 8); run++)
        for (size_t i = 0; i < COUNT_OF(forms); i++) {
            double t = bench_now();
            kernel_multiply(m, kernel_bf16(a), forms[i], NULL, kernel_f32(c));
            t = bench_now() - t;
            if (t < best[i]) best[i] = t;
        }
    printf("  %-5s %.4f ns a weight packed in bf16, %.4f from blocks, %.4f as integers (%.1f and %.1f times as fast",
           dtype_info(type)->name, ns * best[0], ns * best[1], ns * best[2], best[0] / best[2], best[1] / best[2]);
    if (m < 64) printf(", %.1f GB/s", 1e-9 * (double)bytes / best[2]);
    printf("); packing %.2f ns\n", ns * packing);
    mem_free(rows);
    mem_free(memory);
}

static void bench_quantized(size_t m, size_t n, size_t k, int threads) {
    float *b = bench_numbers(n * k), *c = bench_array(m * n, sizeof *c);
    uint16_t *a = bench_array(m * k, sizeof *a);
    void *memory = bench_array(kernel_matrix_bytes(KERNEL_PACKED_BF16, DT_BF16, n, k), 1);
    kernel_convert(kernel_bf16(a), kernel_f32(b), m * k < n * k ? m * k : n * k);
    struct kernel_matrix stored = kernel_matrix_of(kernel_f32(b), n, k);
    struct kernel_matrix packed = kernel_pack_nt(kernel_bf16(memory), &stored);
    printf("quantized weights, %zu x %zu x %zu, %d threads\n", m, n, k, threads);
    for (size_t i = 0; dtype_at(i); i++)
        if (dtype_at(i)->is_quantized) bench_quantized_type(m, n, k, dtype_at(i)->dtype, b, a, &packed, c);
    mem_free(a);
    mem_free(b);
    mem_free(c);
    mem_free(memory);
}

int main(int argc, char **argv) {
    int threads;
    if (!bench_begin(argc, argv, &threads)) return 2;
    printf("bf16: %s, %d threads; from registers %.0f GFLOP/s a thread\n", kernel_backend().bf16, threads,
           measure_limit());
    const char *only = argc > 2 ? argv[2] : ""; /* part of a shape's name, or "quantized" */
    for (size_t i = 0; i < n_products; i++)
        if (strstr(products[i].what, only)) bench_product(&products[i], threads);
    if (!strstr("quantized", only)) return 0;
    bench_quantized(2048, 1536, 768, threads);
    bench_quantized(2048, 576, 1536, threads);
    bench_quantized(1, 49152, 768, threads);
    bench_quantized(8, 49152, 768, threads);
    bench_quantized(64, 49152, 768, threads);
    return 0;
}
