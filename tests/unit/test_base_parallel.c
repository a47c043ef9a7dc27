/* Tests of lib/base: the parallel loop. `make SANITIZER=thread` also checks its synchronisation. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "lib/base/base.h"

struct counted {
    unsigned *times; /* [n], how often each index ran: not atomic, since each index is run by one thread */
    atomic_uint threads_seen;
    atomic_bool wrong_thread;
};

static void count(void *ctx, size_t i, int thread) {
    struct counted *c = ctx;
    c->times[i]++;
    if (thread < 0 || thread >= parallel_threads()) atomic_store(&c->wrong_thread, true);
    atomic_fetch_or(&c->threads_seen, 1u << (thread & 31));
}

static void test_each_index_once(void **state) {
    (void)state;
    static const size_t sizes[] = {0, 1, 2, 3, 7, 63, 64, 65, 1000, 100003};
    struct err e = {0};
    for (int threads = 1; threads <= 8; threads++) {
        parallel_set_threads(threads);
        assert_int_equal(parallel_threads(), threads);
        for (size_t s = 0; s < COUNT_OF(sizes); s++) {
            struct counted c = {.times = mem_array(sizes[s], sizeof *c.times, &e)};
            for (int round = 0; round < 3; round++) parallel_for(sizes[s], count, &c);
            for (size_t i = 0; i < sizes[s]; i++) assert_int_equal(c.times[i], 3);
            assert_false(atomic_load(&c.wrong_thread));
            mem_free(c.times);
        }
    }
}

/* Bodies that wait for each other: this hangs unless two threads really run. */
static void meet(void *ctx, size_t i, int thread) {
    (void)i, (void)thread;
    atomic_uint *arrived = ctx;
    atomic_fetch_add(arrived, 1);
    while (atomic_load(arrived) < 2) {
    }
}

static void test_threads_run_at_the_same_time(void **state) {
    (void)state;
    parallel_set_threads(2);
    atomic_uint arrived = 0;
    parallel_for(2, meet, &arrived);
    assert_int_equal(atomic_load(&arrived), 2);
}

enum { OUTER = 20, INNER = 50 };

struct nested {
    int thread;             /* of the outer loop */
    unsigned last;          /* the index before: a serial loop runs in order */
    bool disordered, moved; /* not atomic: only this body's thread may write them */
    unsigned ran;
};

static void inner(void *ctx, size_t i, int thread) {
    struct nested *n = ctx;
    n->disordered |= n->ran && i != n->last + 1;
    n->moved |= thread != n->thread;
    n->last = (unsigned)i;
    n->ran++;
}

static void outer(void *ctx, size_t i, int thread) {
    struct nested *n = (struct nested *)ctx + i;
    n->thread = thread;
    parallel_for(INNER, inner, n);
}

static void test_nested_calls_are_serial(void **state) {
    (void)state;
    parallel_set_threads(4);
    struct nested n[OUTER] = {0};
    parallel_for(OUTER, outer, n);
    for (int i = 0; i < OUTER; i++) {
        assert_int_equal(n[i].ran, INNER);
        assert_false(n[i].disordered);
        assert_false(n[i].moved);
    }
}

/* Results pass from one loop to the next through plain memory: fork and join must synchronise it. */
static void shift(void *ctx, size_t i, int thread) {
    (void)thread;
    unsigned *v = ctx;
    v[1000 + i] = v[(i * 37) % 1000] + 1;
}

static void copy_back(void *ctx, size_t i, int thread) {
    (void)thread;
    unsigned *v = ctx;
    v[i] = v[1000 + (i * 11) % 1000];
}

static void test_loops_in_sequence(void **state) {
    (void)state;
    static unsigned v[2000], expected[2000];
    for (unsigned i = 0; i < 1000; i++) v[i] = expected[i] = i;
    parallel_set_threads(4);
    for (int round = 0; round < 100; round++) {
        parallel_for(1000, shift, v);
        parallel_for(1000, copy_back, v);
        for (size_t i = 0; i < 1000; i++) shift(expected, i, 0);
        for (size_t i = 0; i < 1000; i++) copy_back(expected, i, 0);
    }
    assert_memory_equal(v, expected, sizeof v);
}

/* Two threads of the program may both call parallel_for. */
static void *loop_in_thread(void *arg) {
    for (int round = 0; round < 20; round++) parallel_for(1000, count, arg);
    return NULL;
}

static void test_callers_in_two_threads(void **state) {
    (void)state;
    parallel_set_threads(2);
    unsigned times[2][1000] = {{0}};
    struct counted c[2] = {{.times = times[0]}, {.times = times[1]}};
    pthread_t other;
    assert_int_equal(pthread_create(&other, NULL, loop_in_thread, &c[1]), 0);
    loop_in_thread(&c[0]);
    pthread_join(other, NULL);
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < 1000; i++) assert_int_equal(times[k][i], 20);
}

static void test_thread_numbers(void **state) {
    (void)state;
    assert_true(parallel_default_threads() >= 1);
    parallel_set_threads(0);
    assert_int_equal(parallel_threads(), 1);
    parallel_set_threads(-5);
    assert_int_equal(parallel_threads(), 1);
    parallel_set_threads(1 << 30);
    assert_in_range(parallel_threads(), 1, 1 << 16);
    parallel_set_threads(parallel_default_threads());
    assert_int_equal(parallel_threads(), parallel_default_threads());
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_index_once),         cmocka_unit_test(test_threads_run_at_the_same_time),
        cmocka_unit_test(test_nested_calls_are_serial), cmocka_unit_test(test_loops_in_sequence),
        cmocka_unit_test(test_callers_in_two_threads),  cmocka_unit_test(test_thread_numbers),
    };
    return cmocka_run_group_tests_name("base_parallel", tests, NULL, NULL);
}
