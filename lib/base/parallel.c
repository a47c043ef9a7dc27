/*
 * The only place that creates threads. A pool of our own rather than OpenMP: the programs of a pipeline share the
 * cores, and a runtime whose idle threads spin takes CPU time from the process that has work (libgomp by default spins
 * for milliseconds at every join; two pipelines on two cores ran four times slower). Here a waiting thread spins for
 * some microseconds, the gap between two loops of a forward pass, and then sleeps.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

#include "lib/base/base_internal.h"

#define MAX_THREADS 1024
#define SPINS       500 /* pause instructions; 15 to 50 us */

static atomic_int wanted_threads;   /* 0: the default */
static _Thread_local bool inside;   /* this thread is running a body: nested calls are serial */
static _Thread_local int my_thread; /* its number in the current loop */

/* The loop that is running; there is at most one. A worker joins under the lock while the loop is open. A late one
 * finds it closed and goes back to waiting, so that a loop never waits for a thread that the system has not woken
 * up. */
static struct {
    pthread_mutex_t busy; /* held by the thread that started the loop */
    pthread_mutex_t lock; /* protects what follows */
    pthread_cond_t wake, left;
    int workers; /* threads created so far, not counting the caller */
    bool open;
    int seats, taken;       /* workers that may join, and have joined; the latter numbers them */
    atomic_int running;     /* workers still in the loop */
    atomic_uint generation; /* counts loops */
    parallel_body *body;
    void *ctx;
    size_t n, chunk;
    atomic_size_t next;
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER,
          .left = PTHREAD_COND_INITIALIZER};

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

/* One thread's share of the loop: takes chunks of the range until none are left. */
static void run_share(int thread) {
    inside = true;
    my_thread = thread;
    for (size_t begin; (begin = atomic_fetch_add_explicit(&pool.next, pool.chunk, memory_order_relaxed)) < pool.n;) {
        size_t end = pool.n - begin < pool.chunk ? pool.n : begin + pool.chunk;
        for (size_t i = begin; i < end; i++) pool.body(pool.ctx, i, thread);
    }
    inside = false;
    my_thread = 0;
}

static void *work(void *arg) {
    unsigned seen = *(unsigned *)arg;
    mem_free(arg);
    for (;;) {
        for (int i = 0; i < SPINS && atomic_load_explicit(&pool.generation, memory_order_relaxed) == seen; i++) relax();
        pthread_mutex_lock(&pool.lock);
        while (atomic_load_explicit(&pool.generation, memory_order_relaxed) == seen)
            pthread_cond_wait(&pool.wake, &pool.lock);
        seen = atomic_load_explicit(&pool.generation, memory_order_relaxed);
        bool in = pool.open && pool.taken < pool.seats;
        int thread = 0;
        if (in) {
            thread = ++pool.taken;
            atomic_fetch_add_explicit(&pool.running, 1, memory_order_relaxed);
        }
        pthread_mutex_unlock(&pool.lock);
        if (!in) continue;
        uint64_t since = profile_is_on() ? profile_clock() : 0;
        run_share(thread);
        if (since) profile_add_work(since);
        pthread_mutex_lock(&pool.lock);
        if (atomic_fetch_sub_explicit(&pool.running, 1, memory_order_relaxed) == 1) pthread_cond_signal(&pool.left);
        pthread_mutex_unlock(&pool.lock);
    }
    return NULL;
}

/* Creates workers up to the given number, or as many as the system allows: the result does not depend on it. They block
 * signals, which are for the main thread. */
static void hire(int workers) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (; pool.workers < workers; pool.workers++) {
        struct err e;
        pthread_t id;
        unsigned *seen = mem_alloc(sizeof *seen, &e);
        if (!seen) break;
        *seen = atomic_load_explicit(&pool.generation, memory_order_relaxed);
        if (pthread_create(&id, NULL, work, seen) != 0) {
            mem_free(seen);
            break;
        }
        pthread_detach(id);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void open_loop(size_t n, parallel_body *body, void *ctx, int threads) {
    pthread_mutex_lock(&pool.lock);
    hire(threads - 1);
    pool.body = body;
    pool.ctx = ctx;
    pool.n = n;
    /* About 16 chunks per thread: enough to balance uneven bodies, few enough that the counter costs nothing. */
    pool.chunk = n / ((size_t)threads * 16);
    if (pool.chunk < 1) pool.chunk = 1;
    atomic_store_explicit(&pool.next, 0, memory_order_relaxed);
    pool.seats = threads - 1;
    pool.taken = 0;
    pool.open = true;
    atomic_fetch_add_explicit(&pool.generation, 1, memory_order_relaxed);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
}

/* Closes the loop and waits for the workers that joined. */
static void close_loop(void) {
    pthread_mutex_lock(&pool.lock);
    pool.open = false;
    pthread_mutex_unlock(&pool.lock);
    uint64_t since = profile_is_on() ? profile_clock() : 0;
    for (int i = 0; i < SPINS && atomic_load_explicit(&pool.running, memory_order_relaxed); i++) relax();
    pthread_mutex_lock(&pool.lock);
    while (atomic_load_explicit(&pool.running, memory_order_relaxed)) pthread_cond_wait(&pool.left, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    if (since) profile_add_wait(since);
}

void parallel_for(size_t n, parallel_body *body, void *ctx) {
    int threads = parallel_threads();
    if ((size_t)threads > n) threads = (int)n;
    /* A nested call keeps its thread's number, so that scratch memory indexed by it stays private. A loop of another
     * thread of the program, while one is running, runs serially. */
    if (threads <= 1 || inside || pthread_mutex_trylock(&pool.busy) != 0) {
        for (size_t i = 0; i < n; i++) body(ctx, i, my_thread);
        return;
    }
    open_loop(n, body, ctx, threads);
    run_share(0);
    close_loop();
    pthread_mutex_unlock(&pool.busy);
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
    /* The mask must be at least as large as the kernel's: try larger ones until it fits. */
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
