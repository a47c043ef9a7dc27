/*
 * The only place that knows OpenMP. The iterations are shared through one atomic counter instead of `omp for`: it is as
 * fast, and ThreadSanitizer understands it. It does not understand the runtime's own barriers (libgomp waits on futexes
 * and is not instrumented), so the two edges fork -> body and body -> join are told to it by hand.
 */
#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

#include <omp.h>

#include "lib/base/base.h"
#include "lib/base/base_internal.h"

#if defined(RILL_ASAN) && defined(__clang__)
/* libomp never frees the records of its threads. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
    return "leak:libomp.so";
}
#endif

#ifdef RILL_TSAN
void __tsan_acquire(void *address);
void __tsan_release(void *address);
#define HAPPENS_BEFORE(address) __tsan_release(address)
#define HAPPENS_AFTER(address)  __tsan_acquire(address)
/* The compiler's hidden argument block is read before the first of our own statements: hide the region's frame. */
#define REGION __attribute__((noinline, no_sanitize("thread")))
#ifdef __clang__
/* libomp calls intercepted functions (pthread_mutex_lock) from code that is not instrumented, and is blamed. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void) {
    return "ignore_noninstrumented_modules=1";
}
#endif
#else
#define HAPPENS_BEFORE(address) ((void)(address))
#define HAPPENS_AFTER(address)  ((void)(address))
#define REGION
#endif

#define MAX_THREADS 1024

struct job {
    parallel_body *body;
    void *ctx;
    size_t n, chunk;
    atomic_size_t next;
    char fork, join; /* addresses for the two edges */
};

static atomic_int wanted_threads; /* 0: the default */
static _Thread_local bool inside; /* this thread runs a body: calls from it are serial */
static _Thread_local int my_thread;

/* One thread's part: pieces of the range until there are none. */
static __attribute__((noinline)) void run_share(struct job *job, int thread) {
    HAPPENS_AFTER(&job->fork);
    bool outer_inside = inside;
    int outer_thread = my_thread;
    inside = true;
    my_thread = thread;
    for (size_t begin; (begin = atomic_fetch_add_explicit(&job->next, job->chunk, memory_order_relaxed)) < job->n;) {
        size_t end = job->n - begin < job->chunk ? job->n : begin + job->chunk;
        for (size_t i = begin; i < end; i++) job->body(job->ctx, i, thread);
    }
    inside = outer_inside;
    my_thread = outer_thread;
    HAPPENS_BEFORE(&job->join);
}

static REGION void run_region(struct job *job, int threads) {
#pragma omp parallel num_threads(threads)
    run_share(job, omp_get_thread_num());
}

void parallel_for(size_t n, parallel_body *body, void *ctx) {
    int threads = parallel_threads();
    if ((size_t)threads > n) threads = (int)n;
    /* A nested call keeps its thread's number, so that scratch indexed by it stays private. */
    if (threads <= 1 || inside) {
        for (size_t i = 0; i < n; i++) body(ctx, i, my_thread);
        return;
    }
    /* Some 16 pieces each: enough to even out unequal bodies, few enough that the counter costs nothing. The cap keeps
     * the counter, which every thread pushes one chunk past n, from wrapping. */
    struct job job = {.body = body, .ctx = ctx, .n = n, .chunk = n / ((size_t)threads * 16)};
    if (job.chunk < 1) job.chunk = 1;
    HAPPENS_BEFORE(&job.fork);
    run_region(&job, threads);
    HAPPENS_AFTER(&job.join);
}

void parallel_set_threads(int n) {
    atomic_store(&wanted_threads, n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n);
}

int parallel_threads(void) {
    int n = atomic_load(&wanted_threads);
    if (n) return n;
    n = parallel_default_threads();
    atomic_store(&wanted_threads, n);
    return n;
}

int parallel_default_threads(void) {
    /* The mask must be as large as the kernel's: grow until it fits. */
    for (int cpus = 1024; cpus <= 1 << 20; cpus *= 4) {
        cpu_set_t *set = CPU_ALLOC((size_t)cpus);
        if (!set) break;
        size_t size = CPU_ALLOC_SIZE((size_t)cpus);
        int n = sched_getaffinity(0, size, set) == 0 ? CPU_COUNT_S(size, set) : 0;
        CPU_FREE(set);
        if (n > 0) return n < MAX_THREADS ? n : MAX_THREADS;
    }
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online < 1 ? 1 : online > MAX_THREADS ? MAX_THREADS : (int)online;
}
