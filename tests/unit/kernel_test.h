/*
 * What the tests of lib/kernel and lib/grad share: random data in f32 and f64, and one check for every kernel. On every
 * CPU path that this machine has, 1 and 4 threads must give the same bits, within a stated distance of the f64 twin.
 */
#ifndef RILL_TESTS_KERNEL_TEST_H
#define RILL_TESTS_KERNEL_TEST_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "lib/kernel/kernel_internal.h"

#define REAL        double
#define PLAIN(name) plain64_##name
#include "lib/kernel/kernel_plain.h"

#define REAL        float
#define PLAIN(name) plain32_##name
#include "lib/kernel/kernel_plain.h"

/*
 * The unit roundoff of f32: the relative error of each operation is at most U. A sum of n terms in any order is wrong
 * by at most (n - 1) U sum |term| (Higham 2002, section 4.2), a dot product by n U sum |x||y|.
 */
#define U 0x1p-24

static struct arena memory; /* of one test; teardown releases it */

static inline int release_memory(void **state) {
    (void)state;
    arena_release(&memory);
    return 0;
}

static inline void *take(size_t n, size_t size) {
    struct err e;
    void *p = arena_array(&memory, n, size, &e);
    assert_non_null(p);
    return p;
}

/* The same numbers in f32 and f64. */
struct pair {
    float *f;
    double *d;
    size_t n;
};

static inline struct pair zeros(size_t n) {
    return (struct pair){take(n, sizeof(float)), take(n, sizeof(double)), n};
}

static inline void set(struct pair p, size_t i, double value) {
    p.f[i] = (float)value;
    p.d[i] = p.f[i];
}

static inline struct pair normals(struct rng *r, size_t n, double scale) {
    struct pair p = zeros(n);
    for (size_t i = 0; i < n; i++) set(p, i, rng_normal(r) * scale);
    return p;
}

/* |x|, for twins that sum the magnitudes of terms. */
static inline double *magnitudes(struct pair p) {
    double *m = take(p.n, sizeof *m);
    for (size_t i = 0; i < p.n; i++) m[i] = fabs(p.d[i]);
    return m;
}

static inline float *copy_f32(const float *x, size_t n) {
    float *y = take(n, sizeof *y);
    memcpy(y, x, n * sizeof *y);
    return y;
}

static const char *const all_paths[] = {"portable", "avx2", "avx512", "avx512bf16", "amx"};

/* Runs the body on every path that the CPU has, then selects the best one again. */
#define EACH_PATH(path)                                                                                                \
    for (size_t path##_i = 0; path##_i < COUNT_OF(all_paths); path##_i++)                                              \
        if (!simd_select(all_paths[path##_i])) {                                                                       \
        } else                                                                                                         \
            for (const char *path = all_paths[path##_i]; path; path = NULL)

typedef void run_kernel(void *ctx, float *out);

static inline void check_close(const char *what, const char *path, const float *got, const double *want,
                               const double *tolerance, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (got[i] == want[i] || fabs(got[i] - want[i]) <= tolerance[i]) continue;
        fail_msg("%s, %s: element %zu is %.9g, should be %.9g +- %.3g", what, path, i, (double)got[i], want[i],
                 tolerance[i]);
    }
}

/* Runs `run` on out [n], which is initialised to `start` (NULL: to NaN). */
static inline void check_kernel(const char *what, run_kernel *run, void *ctx, size_t n, const float *start,
                                const double *want, const double *tolerance) {
    float *one = take(n, sizeof *one), *four = take(n, sizeof *four);
    EACH_PATH(path) {
        for (int threads = 1; threads <= 4; threads += 3) {
            float *out = threads == 1 ? one : four;
            for (size_t i = 0; i < n; i++) out[i] = start ? start[i] : NAN;
            parallel_set_threads(threads);
            run(ctx, out);
        }
        check_close(what, path, one, want, tolerance, n);
        if (memcmp(one, four, n * sizeof *one) != 0) fail_msg("%s, %s: four threads give other bits", what, path);
    }
    parallel_set_threads(parallel_default_threads());
}

#endif
