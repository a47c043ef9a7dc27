/*
 * bench_hardware: what the machine can do at most, so that a program's speed can be given as a share of it.
 *
 *     bench_hardware [THREADS] NAME...       a line each: name, figure, unit
 *     bench_hardware --names                 the names that this CPU has
 *
 * Arithmetic is measured in registers only, with more independent accumulators than the instruction's latency needs;
 * memory on arrays far larger than any cache. All threads start together; the best of several slices counts, because
 * a limit is what the machine reaches when nothing disturbs it.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "lib/base/base.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#endif

enum { SLICES = 8, MAX_THREADS = 256, MEMORY_BYTES = 128 << 20 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- arithmetic in registers: each does `n` rounds and returns the operations of one round ---- */

#if defined(__x86_64__)
#define REPEAT_16(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define REPEAT_12(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

/* In assembler: a compiler copies accumulators about, or sees that they are all the same one. */
#define IN_REGISTERS(name, isa, vector, repeat, accumulators, instruction, operations)                                 \
    __attribute__((target(isa))) static double name(size_t n) {                                                        \
        vector c[16] = {0}, a = (vector){0} + 0.5f, b = (vector){0} + 0.25f;                                           \
        for (size_t k = 0; k < n; k++) {                                                                               \
            repeat(instruction)                                                                                        \
        }                                                                                                              \
        return (double)(accumulators) * (operations);                                                                  \
    }
#define FMA(i)  __asm__ volatile("vfmadd231ps %2, %1, %0" : "+v"(c[i]) : "v"(a), "v"(b));
#define BF16(i) __asm__ volatile("vdpbf16ps %2, %1, %0" : "+v"(c[i]) : "v"(a), "v"(b));
#define INT8(i) __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(c[i]) : "v"(a), "v"(b));
IN_REGISTERS(fma_avx2, "avx2,fma", __m256, REPEAT_12, 12, FMA, 8 * 2)
IN_REGISTERS(fma_avx512, "avx512f", __m512, REPEAT_16, 16, FMA, 16 * 2)
IN_REGISTERS(bf16_avx512, "avx512f,avx512bf16", __m512, REPEAT_16, 16, BF16, 32 * 2)
IN_REGISTERS(int8_avx512, "avx512f,avx512vnni", __m512, REPEAT_16, 16, INT8, 64 * 2)

/* Tiles of 16 rows of 64 bytes; six accumulators, because one product takes 52 cycles and one starts every 16. */
struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

__attribute__((target("amx-tile"))) static void tiles_begin(void) {
    struct tile_config config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.row_bytes[i] = 64, config.rows[i] = 16;
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    _tile_zero(6);
    _tile_zero(7);
}

__attribute__((target("amx-tile,amx-bf16"))) static double bf16_amx(size_t n) {
    tiles_begin();
    for (size_t k = 0; k < n; k++) {
        _tile_dpbf16ps(0, 6, 7);
        _tile_dpbf16ps(1, 6, 7);
        _tile_dpbf16ps(2, 6, 7);
        _tile_dpbf16ps(3, 6, 7);
        _tile_dpbf16ps(4, 6, 7);
        _tile_dpbf16ps(5, 6, 7);
    }
    _tile_release();
    return 6.0 * 16 * 16 * 32 * 2;
}

__attribute__((target("amx-tile,amx-int8"))) static double int8_amx(size_t n) {
    tiles_begin();
    for (size_t k = 0; k < n; k++) {
        _tile_dpbssd(0, 6, 7);
        _tile_dpbssd(1, 6, 7);
        _tile_dpbssd(2, 6, 7);
        _tile_dpbssd(3, 6, 7);
        _tile_dpbssd(4, 6, 7);
        _tile_dpbssd(5, 6, 7);
    }
    _tile_release();
    return 6.0 * 16 * 16 * 64 * 2;
}

static bool has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
static bool has_avx512(void) {
    return __builtin_cpu_supports("avx512f");
}
static bool has_avx512_bf16(void) {
    return has_avx512() && __builtin_cpu_supports("avx512bf16");
}
static bool has_avx512_vnni(void) {
    return has_avx512() && __builtin_cpu_supports("avx512vnni");
}

/* Linux hands out the tiles' registers on request (arch_prctl ARCH_REQ_XCOMP_PERM, feature 18). */
static bool has_amx(unsigned bit) {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 24 & 1) || !(d >> bit & 1)) return false;
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}
static bool has_amx_bf16(void) {
    return has_amx(22);
}
static bool has_amx_int8(void) {
    return has_amx(25);
}
#endif

/* ---- memory: a pass over this thread's share, `n` bytes of each array; returns the bytes moved ---- */

static volatile float sink;

typedef float vec16 __attribute__((vector_size(64)));

struct arrays {
    float *a, *b, *c;
    size_t n;
};

static double pass_read(const struct arrays *m) {
    const vec16 *x = (const vec16 *)m->b;
    vec16 s[4] = {{0}};
    for (size_t i = 0; i + 4 <= m->n / sizeof(vec16); i += 4)
        for (size_t j = 0; j < 4; j++) s[j] += x[i + j];
    sink = s[0][0] + s[1][1] + s[2][2] + s[3][3];
    return (double)m->n;
}

static double pass_triad(const struct arrays *m) {
    vec16 *a = (vec16 *)m->a;
    const vec16 *b = (const vec16 *)m->b, *c = (const vec16 *)m->c;
    for (size_t i = 0; i < m->n / sizeof(vec16); i++) a[i] = b[i] + 0.5f * c[i];
    return 3 * (double)m->n;
}

static double pass_copy(const struct arrays *m) {
    memcpy(m->a, m->b, m->n);
    return 2 * (double)m->n;
}

#if defined(__x86_64__)
static double pass_triad_nt(const struct arrays *m) {
    __m128 half = _mm_set1_ps(0.5f);
    for (size_t i = 0; i < m->n / sizeof(float); i += 4)
        _mm_stream_ps(m->a + i, _mm_add_ps(_mm_load_ps(m->b + i), _mm_mul_ps(half, _mm_load_ps(m->c + i))));
    _mm_sfence();
    return 3 * (double)m->n;
}
#endif

/* ---- the figures ---- */

static bool always(void) {
    return true;
}

static const struct figure {
    const char *name, *unit;
    bool (*has)(void);
    double (*rounds)(size_t n);
    double (*pass)(const struct arrays *m);
} figures[] = {
#if defined(__x86_64__)
    {"f32-avx2", "GFLOP/s", has_avx2, fma_avx2, NULL},
    {"f32-avx512", "GFLOP/s", has_avx512, fma_avx512, NULL},
    {"bf16-avx512", "GFLOP/s", has_avx512_bf16, bf16_avx512, NULL},
    {"int8-avx512", "GFLOP/s", has_avx512_vnni, int8_avx512, NULL},
    {"bf16-amx", "GFLOP/s", has_amx_bf16, bf16_amx, NULL},
    {"int8-amx", "GFLOP/s", has_amx_int8, int8_amx, NULL},
#endif
    {"memory-read", "GB/s", always, NULL, pass_read},
    {"memory-triad", "GB/s", always, NULL, pass_triad},
#if defined(__x86_64__)
    {"memory-triad-nt", "GB/s", always, NULL, pass_triad_nt},
#endif
    {"memory-copy", "GB/s", always, NULL, pass_copy},
    {"pipe", "GB/s", always, NULL, NULL},
};

struct crew {
    const struct figure *figure;
    pthread_barrier_t barrier;
    int threads;
    struct arrays memory;
};

struct member {
    struct crew *crew;
    int index;
    double amount, begin[SLICES], end[SLICES];
};

/* One slice of work: 4e9 operations, some milliseconds, or one pass over this thread's part of the memory. */
static double slice(struct member *m) {
    const struct figure *f = m->crew->figure;
    if (f->rounds) {
        size_t n = (size_t)(4e9 / f->rounds(1));
        return (double)n * f->rounds(n);
    }
    size_t part = m->crew->memory.n / (size_t)m->crew->threads / 4096 * 4096;
    struct arrays mine = m->crew->memory;
    mine.a += part / sizeof(float) * (size_t)m->index;
    mine.b += part / sizeof(float) * (size_t)m->index;
    mine.c += part / sizeof(float) * (size_t)m->index;
    mine.n = part;
    return f->pass(&mine);
}

static void *work(void *arg) {
    struct member *m = arg;
    slice(m); /* warms up: clocks, pages */
    for (int i = 0; i < SLICES; i++) {
        pthread_barrier_wait(&m->crew->barrier);
        m->begin[i] = now();
        m->amount = slice(m);
        m->end[i] = now();
    }
    return NULL;
}

static float *mapped(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    madvise(p, bytes, MADV_HUGEPAGE);
    memset(p, 0, bytes);
    return p;
}

static double measure_threads(const struct figure *f, int threads) {
    static struct member member[MAX_THREADS];
    pthread_t thread[MAX_THREADS];
    struct crew crew = {.figure = f, .threads = threads, .memory = {.n = MEMORY_BYTES}};
    if (f->pass) {
        struct arrays *m = &crew.memory;
        if (!(m->a = mapped(m->n)) || !(m->b = mapped(m->n)) || !(m->c = mapped(m->n))) return 0;
    }
    pthread_barrier_init(&crew.barrier, NULL, (unsigned)threads);
    for (int i = 0; i < threads; i++) {
        member[i] = (struct member){.crew = &crew, .index = i};
        if (pthread_create(&thread[i], NULL, work, &member[i])) exit(1);
    }
    for (int i = 0; i < threads; i++) pthread_join(thread[i], NULL);
    pthread_barrier_destroy(&crew.barrier);
    for (int k = 0; k < 3 && f->pass; k++)
        munmap((float *[]){crew.memory.a, crew.memory.b, crew.memory.c}[k], MEMORY_BYTES);
    double best = 0;
    for (int i = 0; i < SLICES; i++) {
        double first = member[0].begin[i], last = member[0].end[i], amount = 0;
        for (int t = 0; t < threads; t++) {
            if (member[t].begin[i] < first) first = member[t].begin[i];
            if (member[t].end[i] > last) last = member[t].end[i];
            amount += member[t].amount;
        }
        if (amount / (last - first) > best) best = amount / (last - first);
    }
    return best / 1e9;
}

/* From one process to another through a pipe of 1 MiB, as the programs have them. */
static double measure_pipe(void) {
    enum { BLOCK = 1 << 20, BLOCKS = 128 };
    static char block[BLOCK];
    double best = 0;
    for (int run = 0; run < 4; run++) {
        int ends[2];
        if (pipe(ends)) return 0;
        fcntl(ends[1], F_SETPIPE_SZ, BLOCK);
        double begin = now();
        pid_t child = fork();
        if (child < 0) return 0;
        if (child == 0) {
            close(ends[1]);
            while (read(ends[0], block, sizeof block) > 0) {
            }
            _exit(0);
        }
        close(ends[0]);
        for (int i = 0; i < BLOCKS; i++)
            for (ssize_t at = 0, n; at < BLOCK; at += n)
                if ((n = write(ends[1], block + at, (size_t)(BLOCK - at))) <= 0) return 0;
        close(ends[1]);
        waitpid(child, NULL, 0);
        double rate = (double)BLOCK * BLOCKS / (now() - begin) / 1e9;
        if (rate > best) best = rate;
    }
    return best;
}

static int print_figure(const char *name, int threads) {
    for (size_t i = 0; i < COUNT_OF(figures); i++) {
        const struct figure *f = &figures[i];
        if (strcmp(f->name, name) != 0) continue;
        if (!f->has()) break;
        printf("%s %.3f %s\n", name, f->rounds || f->pass ? measure_threads(f, threads) : measure_pipe(), f->unit);
        return 0;
    }
    fprintf(stderr, "bench_hardware: %s: not on this machine\n", name);
    return 1;
}

int main(int argc, char **argv) {
    uint64_t threads = (uint64_t)parallel_default_threads();
    if (argc == 2 && strcmp(argv[1], "--names") == 0) {
        for (size_t i = 0; i < COUNT_OF(figures); i++)
            if (figures[i].has()) puts(figures[i].name);
        return 0;
    }
    int first = argc > 1 && parse_u64(argv[1], &threads) ? 2 : 1;
    if (first >= argc || threads < 1 || threads > MAX_THREADS) {
        fprintf(stderr, "Usage: bench_hardware [THREADS] NAME... | --names\n");
        return 2;
    }
    int rc = 0;
    for (int i = first; i < argc; i++) rc |= print_figure(argv[i], (int)threads);
    return rc;
}
