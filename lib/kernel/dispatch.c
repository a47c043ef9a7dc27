/*
 * Which CPU path runs. It is chosen once, at the first use, and stays: a result must not depend on when it was asked
 * for. RILL_CPU=portable|avx2|avx512|avx512bf16|amx takes another path, for tests and for comparing machines. A build
 * with KERNEL_PORTABLE has the portable one alone, as on other kinds of CPU.
 */
#include <pthread.h>
#include <stdatomic.h>
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
#include <cpuid.h>
#endif

#include "lib/kernel/kernel_internal.h"

static _Atomic(const struct simd *) selected;

#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
static bool has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

/* F, BW, DQ and VL came together in every CPU that has wide registers worth using. */
static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

static bool has_avx512bf16(void) {
    return has_avx512() && __builtin_cpu_supports("avx512bf16");
}

/*
 * The CPUs whose VDPBF16PS is slower than two f32 multiply-adds: Intel's from Golden Cove on (Sapphire Rapids, Emerald
 * Rapids; Alder Lake where AVX-512 is on), which start one every two cycles and two of the others every cycle; AMX is
 * what they have for bf16, but a system or hypervisor may hide it. Cooper Lake, the one Intel CPU before them with the
 * instruction, has no AVX512-FP16. By CPUID and not by a clock: one machine must choose alike each time. README.md has
 * the measurement.
 */
static bool has_slow_bf16(void) {
    unsigned a, b, c, d;
    return __builtin_cpu_is("intel") && __get_cpuid_count(7, 0, &a, &b, &c, &d) && d >> 23 & 1; /* AVX512-FP16 */
}

/* Loops with other products. VNNI came before bf16, and not to the first CPUs with AVX-512. */
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

/* NULL when the name is unknown or the CPU lacks what it needs. */
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

/* Is another path better on this CPU, although it runs this one? */
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
    path = choose(); /* two threads may both get here; they choose alike */
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
    struct kernel_backend b = {.path = v->name, .f32 = v->name, .bf16 = v->bf16->name, .int8 = v->int8->name};
#if defined(__x86_64__) && !defined(KERNEL_PORTABLE)
    if (v->gemm == gemm_avx512) b.f32 = avx512.name;
#endif
    return b;
}

bool kernel_has_bf16(void) {
    return simd()->bf16 != &bf16_widened;
}

/* ---- cutting work ---- */

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
