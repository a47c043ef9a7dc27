/*
 * Error feedback column by column. The matrix is transposed, so that a column's values of neighboring rows are
 * contiguous: rows are independent, and a task takes a strip of them through a block of columns.
 */
#include <string.h>

#include "lib/kernel/kernel_internal.h"

#define STRIP     64 /* rows per task: 32 KiB of a block of 128 columns */
#define WORD_ROWS 16 /* maximum for transpose_words */

struct sweep {
    const struct simd *v;
    const struct kernel_feedback *f;
    float *w, *error; /* [cols][rows]; [block][rows] */
    double *loss;
    size_t first, last;
};

static void sweep_strip(void *ctx, size_t begin, size_t end) {
    const struct sweep *s = ctx;
    const struct kernel_feedback *f = s->f;
    size_t n = end - begin;
    float kept[STRIP];
    for (size_t j = s->first; j < s->last; j++) {
        float *w = s->w + j * f->rows + begin, *e = s->error + (j - s->first) * f->rows + begin;
        const float *u = f->u + j * f->cols;
        f->decide(f->ctx, j, s->last - j, begin, n, w, kept);
        for (size_t r = 0; r < n; r++) {
            e[r] = (kept[r] - w[r]) / u[j]; /* negated, so that it can be added */
            if (s->loss) s->loss[begin + r] += (double)e[r] * e[r];
        }
        memcpy(w, kept, n * sizeof *kept);
        for (size_t k = j + 1; k < s->last; k++) s->v->axpy(s->w + k * f->rows + begin, u[k], e, n);
    }
}

void kernel_feedback(const struct kernel_feedback *f, float *w, float *scratch, double *loss) {
    PROFILE(SOLVING);
    struct sweep s = {.v = simd(), .f = f, .w = w, .error = scratch, .loss = loss};
    for (s.first = 0; s.first < f->cols; s.first = s.last) {
        s.last = f->cols - s.first < f->block ? f->cols : s.first + f->block;
        size_t rest = f->cols - s.last;
        if (f->begin) f->begin(f->ctx, s.first, s.last - s.first, w + s.first * f->rows);
        kernel_split(f->rows, STRIP, sweep_strip, &s);
        if (rest)
            gemm_part(GEMM_TN, rest, f->rows, s.last - s.first, f->u + s.first * f->cols + s.last, f->cols, s.error,
                      f->rows, 1, w + s.last * f->rows, f->rows);
    }
}

/* ---- transposition ----------------------------------------------------------------------------------------------- */

struct transposition {
    const struct simd *v;
    float *y;
    const float *x;
    size_t rows, cols;
};

/* Rows [begin, end) of y. */
static void transpose_rows(void *ctx, size_t begin, size_t end) {
    const struct transposition *t = ctx;
    uint32_t *y = (uint32_t *)t->y + begin * t->rows;
    const uint32_t *x = (const uint32_t *)t->x + begin;
    for (size_t r = 0; r < t->rows; r += WORD_ROWS)
        t->v->transpose_words(y + r, t->rows, x + r * t->cols, t->cols, smaller(WORD_ROWS, t->rows - r), end - begin);
}

void kernel_transpose(float *y, const float *x, size_t rows, size_t cols) {
    PROFILE(SOLVING);
    struct transposition t = {simd(), y, x, rows, cols};
    kernel_split(cols, 16, transpose_rows, &t); /* so that one task reads whole cache lines of x */
}
