/*
 * Selection of the CPU path: once, at the first use, because results must not change within a run.
 * RILL_CPU=portable|avx2|avx512|avx512bf16|amx overrides it, for tests and for comparing machines.
 * A build with KERNEL_PORTABLE has the portable path alone, as on other architectures.
 */
#include <pthread.h>
#include <stdatomic.h>
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
#include <cpuid.h>
#endif

#include "lib/kernel/kernel_internal.h"

static _Atomic(const struct simd *) selected;

/* Tiles multiply bf16 so fast that integers gain only where reading weights takes longer. Generation of 24 sequences at once is 1.2
 * times as fast in integers, of 48 as fast, of 64 slower (README.md). */
#define AMX_INT8_ROWS 40

#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
static bool has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

/* All CPUs with useful AVX-512 have F, BW, DQ and VL together. */
static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

static bool has_avx512bf16(void) {
    return has_avx512() && __builtin_cpu_supports("avx512bf16");
}

/*
 * The CPUs whose VDPBF16PS is slower than two f32 multiply-adds: Intel's from Golden Cove on (Sapphire Rapids, Emerald
 * Rapids; Alder Lake with AVX-512 enabled), which start one every two cycles but two multiply-adds every cycle. They
 * have AMX for bf16, but the system or a hypervisor may hide it. Cooper Lake, the one earlier Intel CPU with the
 * instruction, has no AVX512-FP16. By CPUID and not by timing, because a machine must choose the same path each time.
 * README.md has the measurement.
 */
static bool has_slow_bf16(void) {
    unsigned a, b, c, d;
    return __builtin_cpu_is("intel") && __get_cpuid_count(7, 0, &a, &b, &c, &d) && d >> 23 & 1; /* AVX512-FP16 */
}

/* Path tables with other products. VNNI predates AVX512-BF16, but the first CPUs with AVX-512 do not have it. */
static struct simd avx512, avx512bf16, amx;

static void make_paths(void) {
    avx512 = simd_avx512;
    avx512bf16 = simd_avx512bf16;
    if (__builtin_cpu_supports("avx512vnni")) avx512.int8 = avx512bf16.int8 = &int8_vnni;
    if (__builtin_cpu_supports("avx512vnni")) avx512.rows16 = avx512bf16.rows16 = &rows16_vnni;
    avx512.bf16 = &bf16_avx512_fma;
    if (has_avx512bf16()) avx512.dequantize = dequantize_avx512bf16; /* the same bits */
    avx512bf16.bf16 = &bf16_avx512;
    avx512bf16.dequantize = dequantize_avx512bf16;
    avx512.decode_dots = decode_dots_avx512;
    avx512bf16.decode_dots = decode_dots_avx512bf16;
    avx512.decode_mix = avx512bf16.decode_mix = decode_mix_avx512;
    amx = avx512bf16;
    amx.name = "amx";
    amx.bf16 = &bf16_amx;
}
#endif

/* NULL if the name is unknown or the CPU does not support the path. */
static const struct simd *by_name(const char *name) {
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
    static pthread_once_t paths_once = PTHREAD_ONCE_INIT;
    pthread_once(&paths_once, make_paths);
    if (strcmp(name, "amx") == 0) return has_avx512bf16() && amx_available() ? &amx : NULL;
    if (strcmp(name, "avx512bf16") == 0) return has_avx512bf16() ? &avx512bf16 : NULL;
    if (strcmp(name, "avx512") == 0) return has_avx512() ? &avx512 : NULL;
    if (strcmp(name, "avx2") == 0) return has_avx2() ? &simd_avx2 : NULL;
#endif
    return strcmp(name, "portable") == 0 ? &simd_portable : NULL;
}

/* Is another path faster on this CPU, although it supports this one? */
static bool is_slow(const char *name) {
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
    return strcmp(name, "avx512bf16") == 0 && has_slow_bf16();
#else
    (void)name;
    return false;
#endif
}

static const struct simd *choose(void) {
    static const char *const best_first[] = {"amx", "avx512bf16", "avx512", "avx2", "portable"};
    const char *wanted = getenv("RILL_CPU");
    const struct simd *path = wanted && *wanted ? by_name(wanted) : NULL;
    if (wanted && *wanted && !path) log_line(LOG_WARN, "RILL_CPU=%s: not a path that this CPU runs; ignored", wanted);
    for (size_t i = 0; !path; i++)
        if (!is_slow(best_first[i])) path = by_name(best_first[i]);
    return path;
}

const struct simd *simd(void) {
    const struct simd *path = atomic_load_explicit(&selected, memory_order_acquire);
    if (path) return path;
    path = choose(); /* two threads may both get here; they choose the same */
    atomic_store_explicit(&selected, path, memory_order_release);
    return path;
}

bool simd_select(const char *name) {
    const struct simd *path = by_name(name);
    if (path) atomic_store_explicit(&selected, path, memory_order_release);
    return path != NULL;
}

struct kernel_backend kernel_backend(void) {
    const struct simd *v = simd();
    struct kernel_backend b = {
        .path = v->name, .f32 = v->name, .bf16 = v->bf16->name, .int8 = v->int8->name, .int8_rows = SIZE_MAX};
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
    if (v->gemm == gemm_avx512) b.f32 = avx512.name;
    if (v->bf16 == &bf16_amx) b.int8_rows = AMX_INT8_ROWS;
#endif
    return b;
}

bool kernel_has_bf16(void) {
    return simd()->bf16 != &bf16_widened;
}

/* ---- splitting work ---------------------------------------------------------------------------------------------- */

struct split {
    size_t n, piece;
    split_body *body;
    void *ctx;
};

static void run_piece(void *ctx, size_t i, int thread) {
    const struct split *s = ctx;
    (void)thread;
    size_t begin = i * s->piece, end = s->n - begin < s->piece ? s->n : begin + s->piece;
    s->body(s->ctx, begin, end);
}

void kernel_split(size_t n, size_t piece, split_body *body, void *ctx) {
    if (n == 0) return;
    struct split s = {n, piece, body, ctx};
    parallel_for((n - 1) / piece + 1, run_piece, &s);
}
