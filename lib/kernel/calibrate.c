/* Sums over activations. Columns are split into pieces of a fixed width, so the order of each sum does not depend on
 * threads. */
#include "lib/kernel/kernel_internal.h"

#include <math.h>
#include <stdlib.h>

#define COLUMNS 64
#define ROWS    64

struct col_job {
    double *sum_abs, *sum_sq;
    const float *x;
    const uint32_t *lengths;
    size_t rows, d;
};

static size_t pieces(size_t d) {
    return (d + COLUMNS - 1) / COLUMNS;
}

static void col_sums_piece(void *ctx, size_t i, int thread) {
    (void)thread;
    const struct col_job *j = ctx;
    size_t first = i * COLUMNS, last = first + COLUMNS < j->d ? first + COLUMNS : j->d;
    for (size_t r = 0; r < j->rows; r++)
        for (size_t c = first; c < last; c++) {
            double v = j->x[r * j->d + c];
            j->sum_abs[c] += fabs(v);
            j->sum_sq[c] += v * v;
        }
}

void kernel_col_sums(double *sum_abs, double *sum_sq, struct kernel_array x, size_t rows, size_t d) {
    PROFILE(ELEMENTWISE);
    struct col_job j = {.sum_abs = sum_abs, .sum_sq = sum_sq, .x = host_f32(x), .rows = rows, .d = d};
    parallel_for(pieces(d), col_sums_piece, &j);
}

static void seq_mean_piece(void *ctx, size_t i, int thread) {
    (void)thread;
    const struct col_job *j = ctx;
    size_t first = i * COLUMNS, width = first + COLUMNS < j->d ? COLUMNS : j->d - first;
    const float *x = j->x + first;
    for (size_t s = 0; s < j->rows; s++) {
        double sum[COLUMNS] = {0};
        if (j->lengths[s] == 0) continue;
        for (uint32_t r = 0; r < j->lengths[s]; r++, x += j->d)
            for (size_t c = 0; c < width; c++) sum[c] += fabsf(x[c]);
        for (size_t c = 0; c < width; c++) {
            double mean = sum[c] / j->lengths[s];
            j->sum_sq[first + c] += mean * mean;
        }
    }
}

void kernel_seq_mean_abs_sq(double *out, struct kernel_array x, const uint32_t *lengths, size_t n_seqs, size_t d) {
    PROFILE(ELEMENTWISE);
    struct col_job j = {.sum_sq = out, .x = host_f32(x), .lengths = lengths, .rows = n_seqs, .d = d};
    parallel_for(pieces(d), seq_mean_piece, &j);
}

double kernel_row_norms_sum(struct kernel_array x, size_t rows, size_t d) {
    PROFILE(ELEMENTWISE);
    const struct simd *v = simd();
    const float *row = host_f32(x);
    double sum = 0;
    for (size_t r = 0; r < rows; r++, row += d) sum += sqrt(v->dot(row, row, d));
    return sum;
}

struct cosine_job {
    const float *x, *y;
    size_t rows, d;
    double *sum; /* one for each piece of ROWS rows */
};

static void cosine_piece(void *ctx, size_t i, int thread) {
    (void)thread;
    const struct cosine_job *j = ctx;
    size_t last = (i + 1) * ROWS < j->rows ? (i + 1) * ROWS : j->rows;
    for (size_t r = i * ROWS; r < last; r++) {
        const float *x = j->x + r * j->d, *y = j->y + r * j->d;
        double xy = 0, xx = 0, yy = 0;
        for (size_t c = 0; c < j->d; c++) {
            xy += (double)x[c] * y[c];
            xx += (double)x[c] * x[c];
            yy += (double)y[c] * y[c];
        }
        j->sum[i] += 1 - (xx > 0 && yy > 0 ? xy / sqrt(xx * yy) : 0);
    }
}

double kernel_cosine_distance_sum(struct kernel_array x, struct kernel_array y, size_t rows, size_t d) {
    PROFILE(ELEMENTWISE);
    /* A fixed number of pieces at a time, so that their sums need no allocation. */
    enum { ROUND = 64 };
    double total = 0;
    for (size_t first = 0; first < rows; first += ROUND * ROWS) {
        double sum[ROUND] = {0};
        size_t n = rows - first < ROUND * ROWS ? rows - first : ROUND * ROWS;
        struct cosine_job j = {host_f32(x) + first * d, host_f32(y) + first * d, n, d, sum};
        parallel_for((n + ROWS - 1) / ROWS, cosine_piece, &j);
        for (size_t i = 0; i < ROUND; i++) total += sum[i];
    }
    return total;
}

struct bound_job {
    const struct simd *v;
    float *by, *y, *diff;
    struct view x, other;
    double most;
    size_t d;
};

static double squared_length(const struct bound_job *j, size_t row) {
    float scratch[WIDENED];
    double sum = 0;
    for (size_t c = 0, n; c < j->d; c += n) {
        n = smaller(WIDENED, j->d - c);
        const float *x = array_get(j->v, j->x, row * j->d + c, n, scratch);
        sum += j->v->dot(x, x, n);
    }
    return sum;
}

static void scale_row(const struct bound_job *j, size_t row, float by) {
    float scratch[WIDENED], scratch_other[WIDENED];
    for (size_t c = 0, n; c < j->d; c += n) {
        size_t at = row * j->d + c;
        n = smaller(WIDENED, j->d - c);
        const float *x = array_get(j->v, j->x, at, n, scratch);
        const float *other = j->diff ? array_get(j->v, j->other, at, n, scratch_other) : NULL;
        for (size_t i = 0; j->y && i < n; i++) j->y[at + i] = by * x[i];
        for (size_t i = 0; other && i < n; i++) j->diff[at + i] = by * (other[i] - x[i]);
    }
}

static void bound_rows_piece(void *ctx, size_t begin, size_t end) {
    const struct bound_job *j = ctx;
    for (size_t r = begin; r < end; r++) {
        double square = squared_length(j, r);
        j->by[r] = square > j->most ? (float)sqrt(j->most / square) : 1;
        if (j->y || j->diff) scale_row(j, r, j->by[r]);
    }
}

void kernel_bound_rows(float *by, float *y, float *diff, struct kernel_array x, struct kernel_array other, double most,
                       size_t rows, size_t d) {
    PROFILE(ELEMENTWISE);
    struct bound_job j = {simd(), by, y, diff, view_of(x), view_of(other), most, d};
    kernel_split(rows, piece_rows(d), bound_rows_piece, &j);
}
