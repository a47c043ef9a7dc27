/*
 * bench_bf16: GFLOP/s of the products in bf16 at the shapes of SmolLM2-135M, beside f32 in the same run and as a share of
 * what the CPU's bf16 instructions do from registers. The best of several runs, taken in turn.
 *
 *     make bench-kernel THREADS=1                processor time instead of wall time: fair on a busy machine
 *     RILL_CPU=avx512 make bench-kernel          another path: bf16 widened to f32 there
 */
#include <time.h>

#include "lib/kernel/kernel.h"

static clockid_t the_clock;

static double now(void) {
    struct timespec t;
    clock_gettime(the_clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- the hardware's limit: independent accumulators, no memory ---- */

#define LOOPS 200000

#if defined(__x86_64__)
#define EACH_REGISTER(X)                                                                                               \
    X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15) X(16) X(17) X(18) X(19)
#define CLEAR(i) "vpxord %%zmm" #i ", %%zmm" #i ", %%zmm" #i "\n"
#define BF16(i)  "vdpbf16ps %%zmm30, %%zmm31, %%zmm" #i "\n"
#define F32(i)   "vfmadd231ps %%zmm30, %%zmm31, %%zmm" #i "\n"
#define LOOP(OPERATION)                                                                                                \
    long n = LOOPS;                                                                                                    \
    __asm__ volatile(CLEAR(30) CLEAR(31) EACH_REGISTER(CLEAR) "1:\n" EACH_REGISTER(OPERATION) "dec %0\njnz 1b\n"       \
                     : "+r"(n)::"cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",  \
                       "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19",       \
                       "xmm30", "xmm31")

__attribute__((target("avx512f"))) static void loop_bf16(void) {
    LOOP(BF16);
}

__attribute__((target("avx512f"))) static void loop_f32(void) {
    LOOP(F32);
}

/* Tiles as gemm_amx.c has them; lib/kernel has asked the system for them by now. */
__attribute__((target("avx512f"))) static void loop_amx(void) {
    _Alignas(64) unsigned char config[64] = {1};
    for (int i = 0; i < 8; i++) config[16 + 2 * i] = 64, config[48 + i] = 16;
    long n = LOOPS;
    __asm__ volatile("ldtilecfg %1\n"
                     "1:\ntdpbf16ps %%tmm6, %%tmm4, %%tmm0\ntdpbf16ps %%tmm7, %%tmm4, %%tmm1\n"
                     "tdpbf16ps %%tmm6, %%tmm5, %%tmm2\ntdpbf16ps %%tmm7, %%tmm5, %%tmm3\ndec %0\njnz 1b\ntilerelease\n"
                     : "+r"(n)
                     : "m"(config)
                     : "cc");
}

static const struct limit {
    const char *path; /* the name that kernel_backend() begins with */
    void (*loop)(void);
    double flops; /* in a loop */
} limits[] = {
    {"amx,", loop_amx, 4.0 * 16 * 16 * 32 * 2},
    {"avx512bf16,", loop_bf16, 20.0 * 64},
    {"avx512,", loop_f32, 20.0 * 32},
};

/* GFLOP/s of one thread, or 0 where there is no loop for the path. */
static double measure_limit(void) {
    for (size_t i = 0; i < COUNT_OF(limits); i++) {
        if (strncmp(kernel_backend(), limits[i].path, strlen(limits[i].path)) != 0) continue;
        double t = now();
        limits[i].loop();
        return 1e-9 * LOOPS * limits[i].flops / (now() - t);
    }
    return 0;
}
#else
static double measure_limit(void) {
    return 0;
}
#endif

/* ---- products ---- */

enum form { NT, NN, TN };

struct shape {
    const char *what;
    enum form form;
    size_t m, n, k;
};

static const struct shape shapes[] = {
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
    {"8 rows, head", NT, 8, 49152, 576},
    {"64 rows, head", NT, 64, 49152, 576},
    {"64 rows, gate", NT, 64, 1536, 576},
};

/* a in both types as its form has it, b likewise; a as the left operand of a product of bf16. */
struct operands {
    float *a, *b, *c;
    uint16_t *a16, *left;
    void *memory;
    struct kernel_panels panels;
};

static void *allocate(size_t n, size_t size) {
    struct err e;
    void *p = mem_array(n, size, &e);
    if (!p) exit(1);
    return p;
}

static float *random_floats(size_t n) {
    float *x = allocate(n, sizeof *x);
    struct rng r = rng_init(1, n);
    for (size_t i = 0; i < n; i++) x[i] = (float)rng_u32(&r) * 0x1p-31f - 1;
    return x;
}

static void run_f32(const struct shape *s, struct operands *o) {
    if (s->form == NT) kernel_matmul_nt(s->m, s->n, s->k, o->a, o->b, 0, o->c);
    if (s->form == NN) kernel_matmul_nn(s->m, s->n, s->k, o->a, o->b, 0, o->c);
    if (s->form == TN) kernel_matmul_tn(s->m, s->n, s->k, o->a, o->b, 0, o->c);
}

static void run_multiply(const struct shape *s, struct operands *o) {
    kernel_multiply(s->m, DT_BF16, s->form == TN ? o->left : o->a16, &o->panels, NULL, DT_F32, o->c);
}

/* What a step does anew each time: of dW both operands; weights are packed once. */
static void run_prepare(const struct shape *s, struct operands *o) {
    if (s->form != TN) return;
    kernel_transpose_bf16(o->left, DT_BF16, o->a16, s->k, s->m);
    kernel_pack_nn(o->memory, s->n, s->k, DT_F32, o->b);
}

static void run_pack(const struct shape *s, struct operands *o) {
    o->panels = s->form == NT ? kernel_pack_nt(o->memory, s->n, s->k, DT_F32, o->b)
                              : kernel_pack_nn(o->memory, s->n, s->k, DT_F32, o->b);
}

typedef void run_fn(const struct shape *s, struct operands *o);
static run_fn *const parts[] = {run_pack, run_f32, run_multiply, run_prepare};
enum { PACK, PRODUCT_F32, MULTIPLY, PREPARE, PARTS };

static void bench_shape(const struct shape *s, int threads) {
    struct operands o = {.a = random_floats(s->m * s->k), .b = random_floats(s->n * s->k)};
    o.c = allocate(s->m * s->n, sizeof *o.c);
    o.a16 = allocate(s->m * s->k, sizeof *o.a16);
    o.left = allocate(s->m * s->k, sizeof *o.left);
    o.memory = allocate(kernel_panels_bytes(s->n, s->k), 1);
    kernel_to_bf16(o.a16, o.a, s->m * s->k);
    double gflop = 2e-9 * (double)s->m * (double)s->n * (double)s->k, best[PARTS] = {1e9, 1e9, 1e9, 1e9}, limit = 0;
    for (int run = 0; run < (gflop < 1 ? 40 : gflop < 8 ? 20 : 6); run++) {
        for (int i = 0; i < PARTS; i++) {
            double t = now();
            parts[i](s, &o);
            t = now() - t;
            if (t < best[i]) best[i] = t;
        }
        double l = measure_limit();
        if (l > limit) limit = l;
    }
    double rate = gflop / best[MULTIPLY], whole = gflop / (best[MULTIPLY] + best[PREPARE]);
    printf("%-16s %6zu x %5zu x %5zu %8.1f GFLOP/s", s->what, s->m, s->n, s->k, rate);
    if (limit > 0) printf(", %3.0f%% of the limit", 100 * rate / limit / threads);
    printf(", f32 %6.1f, ratio %.2f", gflop / best[PRODUCT_F32], best[PRODUCT_F32] / best[MULTIPLY]);
    if (s->form == TN) printf(", with its operands' layout %.1f", whole);
    printf("; packing %.2f ns an element\n", 1e9 * best[PACK] / (double)(s->n * s->k));
    mem_free(o.a);
    mem_free(o.b);
    mem_free(o.c);
    mem_free(o.a16);
    mem_free(o.left);
    mem_free(o.memory);
}

/* ---- quantized weights, multiplied from their blocks ---- */

static void bench_quantized(size_t m, size_t n, size_t k, int threads) {
    static const enum dtype types[] = {DT_F32, DT_BF16, DT_Q8_0, DT_Q4_0, DT_Q4_1, DT_Q4_K, DT_Q6_K};
    uint16_t *a = allocate(m * k, sizeof *a);
    float *b = random_floats(n * k), *c = allocate(m * n, sizeof *c);
    void *memory = allocate(kernel_panels_bytes(n, k), 1), *rows = allocate(n * k, sizeof(float));
    kernel_to_bf16(a, b, m * k < n * k ? m * k : n * k);
    struct kernel_panels packed = kernel_pack_nt(memory, n, k, DT_F32, b);
    printf("%zu x %zu x %zu, rows of", m, n, k);
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        struct err e;
        if (tensor_from_f32(types[i], b, rows, n * k, NULL, &e)) exit(1);
        struct kernel_panels blocks = {.n = n, .k = k, .dtype = types[i], .data = rows};
        double best[2] = {1e9, 1e9};
        for (int run = 0; run < 40; run++) {
            int from_blocks = run % 2;
            double t = now();
            kernel_multiply(m, DT_BF16, a, from_blocks ? &blocks : &packed, NULL, DT_F32, c);
            t = now() - t;
            if (t < best[from_blocks]) best[from_blocks] = t;
        }
        double bytes = (double)dtype_row_bytes(types[i], n * k);
        printf("%s %s %.0f us, %.2f of packed", i ? ";" : "", dtype_info(types[i])->name, 1e6 * best[1],
               best[0] / best[1]);
        if (m < 64) printf(", %.1f GB/s", 1e-9 * bytes / best[1]);
    }
    printf(" (%d threads)\n", threads);
    mem_free(a);
    mem_free(b);
    mem_free(c);
    mem_free(memory);
    mem_free(rows);
}

int main(int argc, char **argv) {
    uint64_t threads = (uint64_t)parallel_default_threads();
    if (argc > 1 && !parse_u64(argv[1], &threads)) return 2;
    the_clock = threads == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC;
    parallel_set_threads((int)threads);
    printf("bf16: %s, %d threads; from registers %.0f GFLOP/s a thread\n", kernel_backend(), (int)threads,
           measure_limit());
    const char *only = argc > 2 ? argv[2] : ""; /* part of a shape's name, or "rows" */
    for (size_t i = 0; i < COUNT_OF(shapes); i++)
        if (strstr(shapes[i].what, only)) bench_shape(&shapes[i], (int)threads);
    if (!strstr("rows", only)) return 0;
    bench_quantized(2048, 1536, 768, (int)threads);
    bench_quantized(2048, 576, 1536, (int)threads);
    bench_quantized(1, 49152, 768, (int)threads);
    bench_quantized(8, 49152, 768, (int)threads);
    return 0;
}
