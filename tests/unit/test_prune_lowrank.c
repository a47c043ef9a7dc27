/*
 * Tests of lib/prune's low-rank factors: against PyTorch (tests/golden/prune), by their optimality, and in plans,
 * streams and whole runs.
 */
#include "tests/unit/golden_samples.h"
#include "tests/unit/prune_samples.h"

#include "lib/prune/second_order.h"

#define GOLDEN "tests/golden/prune/"
enum { ROWS = 16, COLS = 136, RANK = 6 };

/* A matrix [rows][cols] with the Gram matrix of its inputs. */
struct sample {
    struct prune_matrix w;
    float *gram;
    struct obs_factor *f; /* NULL: not whitened */
};

static struct sample sample_of(bool tall, bool plain) {
    struct err e;
    float *w = golden_file(GOLDEN "w.f32", ROWS * COLS * sizeof *w);
    float *gram = golden_file(GOLDEN "gram.f32", COLS * COLS * sizeof *gram);
    struct sample s = {.w = {w, tall ? COLS : ROWS, tall ? ROWS : COLS, NULL}, .gram = gram};
    struct obs_options how = {.damp = 0.01};
    if (tall) {
        s.w.x = mem_array(ROWS * COLS, sizeof *w, &e);
        kernel_transpose(s.w.x, w, ROWS, COLS);
        mem_free(w);
        for (size_t i = 0; i < ROWS; i++)
            for (size_t k = 0; k < ROWS; k++) gram[i * ROWS + k] = gram[i * COLS + k];
    }
    if (!plain) OK(obs_factor_new(&s.f, gram, s.w.cols, &how, &e));
    return s;
}

static void release(struct sample *s) {
    obs_factor_free(s->f);
    mem_free(s->gram);
    mem_free(s->w.x);
}

/* second * first, summed in f64. */
static float *product_of(const struct sample *s, uint32_t rank) {
    struct err e;
    size_t rows = s->w.rows, cols = s->w.cols;
    float *first = mem_array(rank, cols * sizeof *first, &e), *second = mem_array(rows, rank * sizeof *second, &e);
    float *x = mem_array(rows, cols * sizeof *x, &e);
    struct prune_factors both = {first, second};
    OK(prune_low_rank(&s->w, s->f, rank, &both, &e));
    for (size_t i = 0; i < rows; i++)
        for (size_t k = 0; k < cols; k++) {
            double sum = 0;
            for (size_t r = 0; r < rank; r++) sum += (double)second[i * rank + r] * first[r * cols + k];
            x[i * cols + k] = (float)sum;
        }
    mem_free(first);
    mem_free(second);
    return x;
}

/* tr(d H d^T), H damped as in the factor, with dead columns of w taken as 0. */
static double error_of(const struct sample *s, const float *x) {
    size_t n = s->w.cols;
    double sum = 0;
    for (size_t r = 0; r < s->w.rows; r++)
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < n; j++) {
                double h = i == j ? !s->f || s->f->dead[i] : 0;
                if (s->f) h += s->gram[i * n + j] + (i == j ? s->f->added : 0);
                bool dead_i = s->f && s->f->dead[i], dead_j = s->f && s->f->dead[j];
                sum += ((dead_i ? 0 : (double)s->w.x[r * n + i]) - x[r * n + i]) * h *
                       ((dead_j ? 0 : (double)s->w.x[r * n + j]) - x[r * n + j]);
            }
    return sum;
}

static void products_are_those_of_pytorch(void **state) {
    (void)state;
    static const char *const names[] = {GOLDEN "svd.6.f32", GOLDEN "svd.tall.6.f32", GOLDEN "svd.plain.6.f32"};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        struct sample s = sample_of(i == 1, i == 2);
        float *expected = golden_file(names[i], ROWS * COLS * sizeof *expected), *x[2];
        double most = 0;
        for (size_t k = 0; k < ROWS * COLS; k++) most = fmax(most, fabs(expected[k]));
        for (int k = 0; k < 2; k++) {
            parallel_set_threads(k ? 4 : 1);
            x[k] = product_of(&s, RANK);
        }
        parallel_set_threads(1);
        assert_memory_equal(x[0], x[1], ROWS * COLS * sizeof *expected);
        for (size_t k = 0; k < ROWS * COLS; k++)
            if (!(fabs((double)x[0][k] - expected[k]) <= 2e-5 * most))
                fail_msg("%s, %zu: %.9g, expected %.9g", names[i], k, x[0][k], expected[k]);
        mem_free(x[0]);
        mem_free(x[1]);
        mem_free(expected);
        release(&s);
    }
}

/* The eigenvalues [rows] of w H w^T, which are the squared singular values of w S. */
static double *squared_singular_values(const struct sample *s) {
    struct err e;
    size_t n = s->w.rows, cols = s->w.cols;
    double *square = mem_array(n, n * sizeof *square, &e), *values = mem_array(n, sizeof *values, &e);
    double *scratch = mem_array(KERNEL_EIGEN_SCRATCH(n), sizeof *scratch, &e);
    for (size_t a = 0; a < cols; a++)
        for (size_t b = 0; b < cols; b++) {
            double h = s->f ? s->gram[a * cols + b] + (a == b ? s->f->added : 0) : a == b;
            if (s->f && (s->f->dead[a] || s->f->dead[b])) continue;
            for (size_t i = 0; i < n; i++)
                for (size_t k = 0; k < n; k++)
                    square[i * n + k] += (double)s->w.x[i * cols + a] * h * s->w.x[k * cols + b];
        }
    assert_true(kernel_eigen(square, values, n, scratch));
    mem_free(square);
    mem_free(scratch);
    return values;
}

/* Eckart and Young: the error at rank r is the sum of the squared singular values after the r-th. */
static void the_error_is_what_is_dropped(void **state) {
    (void)state;
    for (int tall = 0; tall < 2; tall++)
        for (int plain = 0; plain < 2; plain++) {
            struct sample s = sample_of(tall, plain);
            double *values = squared_singular_values(&s), whole = 0, dropped;
            for (size_t i = 0; i < ROWS; i++) whole += values[i];
            dropped = whole;
            for (uint32_t rank = 1; rank <= ROWS; rank++) {
                float *x = product_of(&s, rank);
                double error = error_of(&s, x);
                dropped -= values[rank - 1];
                if (!(fabs(error - dropped) <= 1e-6 * whole))
                    fail_msg("rank %u: %g is lost, %g is dropped", rank, error, dropped);
                mem_free(x);
            }
            mem_free(values);
            release(&s);
        }
}

/* Whitened factors have a smaller error in the outputs than plain SVD, which has a smaller one in the weights. */
static void whitening_loses_least(void **state) {
    (void)state;
    struct sample s = sample_of(false, false), plain = sample_of(false, true);
    float *x = product_of(&s, RANK), *y = product_of(&plain, RANK);
    assert_true(error_of(&s, x) < 0.9 * error_of(&s, y));
    assert_true(error_of(&plain, y) < 0.9 * error_of(&plain, x));
    mem_free(x);
    mem_free(y);
    release(&s);
    release(&plain);
}

/* If the wanted outputs are the matrix's own, the second factor by least squares is the best one for the first: that
 * of SVD. */
static void the_second_factor_is_fitted(void **state) {
    (void)state;
    struct err e;
    struct sample s = sample_of(false, false);
    float first[RANK * COLS], second[ROWS * RANK], svd[ROWS * RANK], b[ROWS * COLS];
    struct prune_factors both = {first, second};
    struct prune_fit fit = {.gram = s.gram, .b = b, .ridge = s.f->added};
    OK(prune_low_rank(&s.w, s.f, RANK, &both, &e));
    memcpy(svd, second, sizeof svd);
    for (size_t r = 0; r < ROWS; r++)
        for (size_t i = 0; i < COLS; i++) {
            double sum = s.f->added * s.w.x[r * COLS + i];
            for (size_t k = 0; k < COLS; k++) sum += (double)s.w.x[r * COLS + k] * s.gram[k * COLS + i];
            b[r * COLS + i] = (float)sum;
        }
    for (size_t i = 0; i < ROWS * RANK; i++) second[i] *= 1.5f;
    OK(prune_fit_second(&s.w, &fit, RANK, &both, &e));
    double most = 0;
    for (size_t i = 0; i < ROWS * RANK; i++) most = fmax(most, fabs(svd[i]));
    for (size_t i = 0; i < ROWS * RANK; i++)
        if (!(fabs((double)second[i] - svd[i]) <= 1e-4 * most)) fail_msg("%zu: %g, expected %g", i, second[i], svd[i]);
    release(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_are_those_of_pytorch),
        cmocka_unit_test(the_error_is_what_is_dropped),
        cmocka_unit_test(whitening_loses_least),
        cmocka_unit_test(the_second_factor_is_fitted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
