/* RMSNorm and LayerNorm: rows of any length, in f32 or widened in pieces. */
#include <math.h>

#include "lib/kernel/kernel_internal.h"

struct norm {
    const struct simd *v;
    struct view y, x, dx, dy;
    float *kept, *dw;
    const float *w, *b, *moments; /* moments: those kept by the forward pass */
    size_t rows, d;
    float eps;
    const struct norm_rows *how; /* backward */
};

/* Backward of one row; dw: of columns [col, col + n) of it, to the gradient of w. */
struct norm_rows {
    void (*dx)(const struct norm *c, size_t r, size_t step);
    void (*dw)(const struct norm *c, size_t r, size_t col, size_t n, float *sum);
};

/* Columns per step: whole rows, unless something must be widened. */
static size_t row_step(const struct norm *c) {
    bool f32 = c->x.dtype == DT_F32 && c->y.dtype == DT_F32 && c->dx.dtype == DT_F32 && c->dy.dtype == DT_F32;
    return f32 ? c->d : WIDENED;
}

/*
 * dw is a sum over rows. As in reduce.c, rows are summed in blocks and the blocks in order. A task computes dx and dw
 * of a block while its rows are in cache; the sums of as many blocks as fit are on the stack.
 */
#define NORM_ROWS 128
#define NORM_SUMS (32 * 1024)

struct norm_blocks {
    const struct norm *c;
    size_t first; /* row */
    float *sums;  /* [blocks][d], or NULL */
};

static void norm_block(void *ctx, size_t i, int thread) {
    const struct norm_blocks *b = ctx;
    const struct norm *c = b->c;
    size_t begin = b->first + i * NORM_ROWS, end = smaller(begin + NORM_ROWS, c->rows);
    float *sum = b->sums ? b->sums + i * c->d : NULL;
    (void)thread;
    if (sum) memset(sum, 0, c->d * sizeof *sum);
    for (size_t r = begin; r < end; r++) {
        if (c->dx.data) c->how->dx(c, r, row_step(c));
        if (sum) c->how->dw(c, r, 0, c->d, sum);
    }
}

/* The same for rows that are too long for that. */
static void dw_strip(void *ctx, size_t begin, size_t end) {
    const struct norm *c = ctx;
    float sum[COLUMNS];
    for (size_t first = 0; first < c->rows; first += NORM_ROWS) {
        memset(sum, 0, sizeof sum);
        for (size_t r = first; r < smaller(first + NORM_ROWS, c->rows); r++) c->how->dw(c, r, begin, end - begin, sum);
        c->v->add(c->dw + begin, sum, end - begin);
    }
}

static void norm_backward(const struct norm_rows *how, struct view dx, float *dw, struct view dy, struct view x,
                          const float *w, const float *moments, size_t rows, size_t d) {
    _Alignas(64) float sums[NORM_SUMS];
    struct norm c = {.v = simd(),
                     .y = dy,
                     .x = x,
                     .dx = dx,
                     .dy = dy,
                     .dw = dw,
                     .w = w,
                     .moments = moments,
                     .rows = rows,
                     .d = d,
                     .how = how};
    bool with_dw = dw && d <= NORM_SUMS;
    size_t blocks = with_dw ? NORM_SUMS / (d ? d : 1) : rows / NORM_ROWS + 1;
    for (size_t first = 0; first < rows; first += blocks * NORM_ROWS) {
        size_t n = smaller(blocks, (rows - first - 1) / NORM_ROWS + 1);
        parallel_for(n, norm_block, &(struct norm_blocks){&c, first, with_dw ? sums : NULL});
        for (size_t i = 0; with_dw && i < n; i++) c.v->add(dw, sums + i * d, d);
    }
    if (dw && !with_dw) kernel_split(d, COLUMNS, dw_strip, &c);
}

/* ---- RMSNorm ---- */

static float row_inv(const struct norm *c, size_t at, size_t step) {
    float scratch[WIDENED];
    double sum = 0;
    for (size_t i = 0, n; i < c->d; i += n) {
        n = smaller(step, c->d - i);
        const float *x = array_get(c->v, c->x, at + i, n, scratch);
        sum += c->v->dot(x, x, n);
    }
    return (float)(1 / sqrt(sum / (double)c->d + c->eps));
}

static void rmsnorm_piece(void *ctx, size_t begin, size_t end) {
    const struct norm *c = ctx;
    float x[WIDENED];
    size_t step = row_step(c);
    for (size_t r = begin; r < end; r++) {
        size_t at = r * c->d;
        float inv = row_inv(c, at, step);
        for (size_t i = 0, n; i < c->d; i += n) {
            n = smaller(step, c->d - i);
            const float *from = array_get(c->v, c->x, at + i, n, x);
            if (c->y.dtype == DT_F32)
                c->v->mul_scaled((float *)c->y.data + at + i, from, c->w + i, inv, n);
            else
                c->v->mul_scaled_bf16((uint16_t *)c->y.data + at + i, from, c->w + i, inv, n);
        }
        if (c->kept) c->kept[r] = inv;
    }
}

void kernel_rmsnorm(struct kernel_array y, struct kernel_array inv, struct kernel_array x, struct kernel_array w,
                    size_t rows, size_t d, float eps) {
    PROFILE(ELEMENTWISE);
    struct norm c = {.v = simd(),
                     .y = view_of(y),
                     .x = view_of(x),
                     .dx = view_of(x),
                     .dy = view_of(y),
                     .kept = host_f32(inv),
                     .w = host_f32(w),
                     .d = d,
                     .eps = eps};
    kernel_split(rows, piece_rows(d), rmsnorm_piece, &c);
}

/*
 * With y = x w i, i = (mean(x^2) + eps)^(-1/2), di/dx = -i^3 x / d:
 *   dx = i w dy - x i^3 / d sum(dy w x)
 */
static void rmsnorm_dx_row(const struct norm *c, size_t r, size_t step) {
    float dx[WIDENED], dy[WIDENED], x[WIDENED];
    size_t at = r * c->d;
    double inv = c->moments[r], sum = 0;
    for (size_t i = 0, n; i < c->d; i += n) {
        n = smaller(step, c->d - i);
        sum += c->v->dot3(array_get(c->v, c->dy, at + i, n, dy), c->w + i, array_get(c->v, c->x, at + i, n, x), n);
    }
    double a = inv * inv * inv / (double)c->d * sum;
    for (size_t i = 0, n; i < c->d; i += n) {
        n = smaller(step, c->d - i);
        array_get(c->v, c->dx, at + i, n, dx);
        c->v->rmsnorm_dx(array_target(c->dx, at + i, dx), array_get(c->v, c->dy, at + i, n, dy),
                         array_get(c->v, c->x, at + i, n, x), c->w + i, (float)inv, (float)a, n);
        array_put(c->v, c->dx, at + i, n, dx);
    }
}

/* sum[n] += dy x i for columns [col, col + n) of a row */
static void rmsnorm_dw_row(const struct norm *c, size_t r, size_t col, size_t n, float *sum) {
    float dy[WIDENED], x[WIDENED];
    for (size_t i = 0, m; i < n; i += m) {
        m = smaller(WIDENED, n - i);
        size_t at = r * c->d + col + i;
        c->v->mul_acc(sum + i, c->moments[r], array_get(c->v, c->dy, at, m, dy), array_get(c->v, c->x, at, m, x), m);
    }
}

void kernel_rmsnorm_backward(struct kernel_array dx, struct kernel_array dw, struct kernel_array dy,
                             struct kernel_array x, struct kernel_array w, struct kernel_array inv, size_t rows,
                             size_t d) {
    PROFILE(ELEMENTWISE);
    static const struct norm_rows how = {rmsnorm_dx_row, rmsnorm_dw_row};
    norm_backward(&how, view_of(dx), host_f32(dw), view_of(dy), view_of(x), host_f32(w), host_f32(inv), rows, d);
}

/* ---- LayerNorm ---- */

/* Mean and 1 / standard deviation. Squares are summed after subtracting the mean, so that a large mean costs no
 * precision. */
static void row_moments(const struct norm *c, size_t at, size_t step, float out[2]) {
    float scratch[WIDENED], centred[WIDENED];
    double sum = 0, squares = 0;
    for (size_t i = 0, n; i < c->d; i += n) {
        n = smaller(step, c->d - i);
        sum += c->v->sum(array_get(c->v, c->x, at + i, n, scratch), n);
    }
    out[0] = (float)(sum / (double)c->d);
    for (size_t i = 0, n; i < c->d; i += n) {
        n = smaller(WIDENED, c->d - i);
        c->v->affine(centred, array_get(c->v, c->x, at + i, n, scratch), n, out[0], 1, 0);
        squares += c->v->dot(centred, centred, n);
    }
    out[1] = (float)(1 / sqrt(squares / (double)c->d + c->eps));
}

static void layernorm_piece(void *ctx, size_t begin, size_t end) {
    const struct norm *c = ctx;
    float x[WIDENED], y[WIDENED], moments[2];
    size_t step = row_step(c);
    for (size_t r = begin; r < end; r++) {
        size_t at = r * c->d;
        row_moments(c, at, step, moments);
        for (size_t i = 0, n; i < c->d; i += n) {
            n = smaller(step, c->d - i);
            c->v->layernorm(array_target(c->y, at + i, y), array_get(c->v, c->x, at + i, n, x), c->w + i,
                            c->b ? c->b + i : NULL, moments[0], moments[1], n);
            array_put(c->v, c->y, at + i, n, y);
        }
        if (c->kept) memcpy(c->kept + 2 * r, moments, sizeof moments);
    }
}

void kernel_layernorm(struct kernel_array y, struct kernel_array moments, struct kernel_array x, struct kernel_array w,
                      struct kernel_array b, size_t rows, size_t d, float eps) {
    PROFILE(ELEMENTWISE);
    struct norm c = {.v = simd(),
                     .y = view_of(y),
                     .x = view_of(x),
                     .dx = view_of(x),
                     .dy = view_of(y),
                     .kept = host_f32(moments),
                     .w = host_f32(w),
                     .b = host_f32(b),
                     .d = d,
                     .eps = eps};
    kernel_split(rows, piece_rows(d), layernorm_piece, &c);
}

/*
 * With z = (x - mean) i, i = 1 / standard deviation, g = w dy:
 *   dx = i (g - mean(g) - z mean(g z))
 */
static void layernorm_dx_row(const struct norm *c, size_t r, size_t step) {
    float dx[WIDENED], dy[WIDENED], x[WIDENED], z[WIDENED];
    size_t at = r * c->d;
    float mean = c->moments[2 * r], inv = c->moments[2 * r + 1];
    double sum_g = 0, sum_gz = 0;
    for (size_t i = 0, n; i < c->d; i += n) {
        n = smaller(WIDENED, c->d - i);
        const float *g = array_get(c->v, c->dy, at + i, n, dy);
        c->v->affine(z, array_get(c->v, c->x, at + i, n, x), n, mean, inv, 0);
        sum_g += c->v->dot(g, c->w + i, n);
        sum_gz += c->v->dot3(g, c->w + i, z, n);
    }
    float a = (float)(inv * sum_g / (double)c->d), b = (float)((double)inv * inv * sum_gz / (double)c->d);
    for (size_t i = 0, n; i < c->d; i += n) {
        n = smaller(step, c->d - i);
        array_get(c->v, c->dx, at + i, n, dx);
        c->v->layernorm_dx(array_target(c->dx, at + i, dx), array_get(c->v, c->dy, at + i, n, dy),
                           array_get(c->v, c->x, at + i, n, x), c->w + i, mean, inv, a, b, n);
        array_put(c->v, c->dx, at + i, n, dx);
    }
}

static void layernorm_dw_row(const struct norm *c, size_t r, size_t col, size_t n, float *sum) {
    float dy[WIDENED], x[WIDENED], z[WIDENED];
    for (size_t i = 0, m; i < n; i += m) {
        m = smaller(WIDENED, n - i);
        size_t at = r * c->d + col + i;
        c->v->affine(z, array_get(c->v, c->x, at, m, x), m, c->moments[2 * r], c->moments[2 * r + 1], 0);
        c->v->mul_acc(sum + i, 1, array_get(c->v, c->dy, at, m, dy), z, m);
    }
}

void kernel_layernorm_backward(struct kernel_array dx, struct kernel_array dw, struct kernel_array db,
                               struct kernel_array dy, struct kernel_array x, struct kernel_array w,
                               struct kernel_array moments, size_t rows, size_t d) {
    PROFILE(ELEMENTWISE);
    static const struct norm_rows how = {layernorm_dx_row, layernorm_dw_row};
    norm_backward(&how, view_of(dx), host_f32(dw), view_of(dy), view_of(x), host_f32(w), host_f32(moments), rows, d);
    if (kernel_has_data(db)) kernel_sum_rows(db, dy, rows, d);
}
