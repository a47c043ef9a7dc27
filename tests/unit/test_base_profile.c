/* Tests of lib/base: the profile. Durations depend on the machine; the tests check which part they are counted for,
 * and that shares sum to 1. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <cmocka.h>

#include "lib/base/base.h"

static void spend(void) {
    struct timespec t = {.tv_nsec = 2000000}; /* a sleep lasts at least this long */
    nanosleep(&t, NULL);
}

static void norms(void) {
    PROFILE(ELEMENTWISE);
    spend();
}

static void read_some(void) {
    PROFILE(READING);
    spend();
    norms(); /* while reading too: the outer mark counts */
}

static void products(void) {
    PROFILE(PRODUCTS);
    spend();
    norms();
    read_some();
    spend();
}

static void pack(void *ctx, size_t i, int thread) {
    (void)ctx, (void)i;
    PROFILE(PACKING);
    if (thread) spend();
}

static double sum_of(const struct profile_shares *s) {
    double sum = s->other;
    for (int i = 0; i < PROFILE_PARTS; i++) sum += s->part[i];
    return sum;
}

static void parts(void **state) {
    (void)state;
    struct profile_shares s;
    products();
    assert_false(profile_read(&s, 1)); /* no profile is kept */
    profile_start();
    products();
    assert_true(profile_read(&s, 1));
    assert_true(s.part[PROFILE_PRODUCTS] * s.seconds >= 0.006);
    assert_true(s.part[PROFILE_READING] * s.seconds >= 0.004);
    assert_true(s.part[PROFILE_ELEMENTWISE] == 0);
    assert_true(s.seconds >= 0.010);
    assert_float_equal(sum_of(&s), 1, 1e-9);
    norms();
    assert_true(profile_read(&s, 1));
    assert_true(s.part[PROFILE_ELEMENTWISE] * s.seconds >= 0.002);
    assert_float_equal(sum_of(&s), 1, 1e-9);
}

/* Work on other threads belongs to no part, but is not idle time either. */
static void threads(void **state) {
    (void)state;
    struct profile_shares s;
    parallel_set_threads(2);
    for (int i = 0; i < 20; i++) parallel_for(8, pack, NULL);
    assert_true(profile_read(&s, 2));
    assert_float_equal(sum_of(&s), 1, 1e-9);
    assert_in_range((uintmax_t)(s.idle * 1e6), 0, 1000000);
    assert_true(profile_read(&s, 1000)); /* of a thousand threads most were idle */
    assert_true(s.idle > 0.99);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(parts), cmocka_unit_test(threads)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
