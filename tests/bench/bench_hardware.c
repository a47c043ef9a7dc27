/*
 * bench_hardware: the limits of the machine, so that a program's speed can be given as a share of them.
 *
 *     bench_hardware [THREADS] NAME...       prints a line for each: name, figure, unit
 *     bench_hardware --names                 the names that this CPU supports
 *
 * Arithmetic is measured in registers only, with more independent accumulators than the instruction's latency needs;
 * memory on arrays far larger than any cache. All threads start together. The best of several slices counts, since a
 * limit is what the machine reaches undisturbed.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/bench/registers.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { SLICES = 8, MAX_THREADS = 256, MEMORY_BYTES = 128 << 20 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- memory: one pass over this thread's share, `n` bytes of each array; returns the bytes moved ---- */

static volatile float sink;

typedef float vec16 __attribute__((vector_size(64)));

struct arrays {
    float *a, *b, *c;
    size_t n;
};

/* Prefetching 1 KiB ahead reads a seventh faster than the hardware's own prefetching. */
static double pass_read(const struct arrays *m) {
    const vec16 *x = (const vec16 *)m->b;
    vec16 s[4] = {{0}};
    for (size_t i = 0; i + 4 <= m->n / sizeof(vec16); i += 4)
        for (size_t j = 0; j < 4; j++) {
            __builtin_prefetch(x + i + j + 16);
            s[j] += x[i + j];
        }
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

/* Everything but arithmetic (registers.h). */
static const struct figure {
    const char *name;
    double (*pass)(const struct arrays *m); /* NULL: the pipe */
} figures[] = {
    {"memory-read", pass_read},         {"memory-triad", pass_triad},
#if defined(__x86_64__)
    {"memory-triad-nt", pass_triad_nt},
#endif
    {"memory-copy", pass_copy},         {"pipe", NULL},
};

struct crew {
    const struct register_loop *loop;       /* either this ... */
    double (*pass)(const struct arrays *m); /* ... or this */
    pthread_barrier_t barrier;
    int threads;
    struct arrays memory;
};

struct member {
    struct crew *crew;
    int index;
    double amount, begin[SLICES], end[SLICES];
};

/* One slice of work: 4e9 operations, which take some milliseconds, or one pass over this thread's part of the
 * memory. */
static double slice(struct member *m) {
    const struct register_loop *loop = m->crew->loop;
    if (loop) return register_work(loop, 4e9);
    size_t part = m->crew->memory.n / (size_t)m->crew->threads / 4096 * 4096;
    struct arrays mine = m->crew->memory;
    mine.a += part / sizeof(float) * (size_t)m->index;
    mine.b += part / sizeof(float) * (size_t)m->index;
    mine.c += part / sizeof(float) * (size_t)m->index;
    mine.n = part;
    return m->crew->pass(&mine);
}

static void *work(void *arg) {
    struct member *m = arg;
    slice(m); /* warms up clocks and pages */
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

static double measure_threads(const struct register_loop *loop, double (*pass)(const struct arrays *m), int threads) {
    static struct member member[MAX_THREADS];
    pthread_t thread[MAX_THREADS];
    struct crew crew = {.loop = loop, .pass = pass, .threads = threads, .memory = {.n = MEMORY_BYTES}};
    if (pass) {
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
    for (int k = 0; k < 3 && pass; k++)
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

/* From one process to another through a pipe of 1 MiB, as programs of a pipeline are connected. */
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
    const struct register_loop *loop = register_loop(name);
    if (loop) {
        printf("%s %.3f GFLOP/s\n", name, measure_threads(loop, NULL, threads));
        return 0;
    }
    for (size_t i = 0; i < COUNT_OF(figures); i++) {
        if (strcmp(figures[i].name, name) != 0) continue;
        double (*pass)(const struct arrays *) = figures[i].pass;
        printf("%s %.3f GB/s\n", name, pass ? measure_threads(NULL, pass, threads) : measure_pipe());
        return 0;
    }
    fprintf(stderr, "bench_hardware: %s: not on this machine\n", name);
    return 1;
}

int main(int argc, char **argv) {
    uint64_t threads = (uint64_t)parallel_default_threads();
    if (argc == 2 && strcmp(argv[1], "--names") == 0) {
        const struct register_loop *loop;
        for (size_t i = 0; (loop = register_loop_at(i)); i++)
            if (loop->has()) puts(loop->name);
        for (size_t i = 0; i < COUNT_OF(figures); i++) puts(figures[i].name);
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
