/* The layers that go row by row: embedding, RMSNorm, rotary positions. */
#include <math.h>

#include "lib/kernel/kernel_internal.h"

/* ---- embedding ---- */

struct embedding {
    const struct simd *v;
    float *out;
    const float *in;
    const uint32_t *ids;
    size_t n, d;
};

static void gather_piece(void *ctx, size_t begin, size_t end) {
    const struct embedding *c = ctx;
    for (size_t i = begin; i < end; i++) memcpy(c->out + i * c->d, c->in + c->ids[i] * c->d, c->d * sizeof(float));
}

void kernel_gather(float *y, const float *table, const uint32_t *ids, size_t n, size_t d) {
    kernel_split(n, piece_rows(d), gather_piece, &(struct embedding){NULL, y, table, ids, n, d});
}

/* A strip of columns a task: a token that comes up twice meets the same task twice, in order. */
static void scatter_strip(void *ctx, size_t begin, size_t end) {
    const struct embedding *c = ctx;
    for (size_t i = 0; i < c->n; i++)
        c->v->add(c->out + c->ids[i] * c->d + begin, c->in + i * c->d + begin, end - begin);
}

void kernel_scatter_add(float *table, const float *dy, const uint32_t *ids, size_t n, size_t d) {
    kernel_split(d, COLUMNS, scatter_strip, &(struct embedding){simd(), table, dy, ids, n, d});
}

/* ---- RMSNorm ---- */

struct rmsnorm {
    const struct simd *v;
    struct kernel_array y, x, dx, dy;
    float *inv, *dw;
    const float *w, *kept_inv;
    size_t rows, d;
    float eps;
};

/* Columns of a row that are taken at a time: all, unless something must be widened. */
static size_t row_step(const struct rmsnorm *c) {
    bool f32 = c->x.dtype == DT_F32 && c->y.dtype == DT_F32 && c->dx.dtype == DT_F32 && c->dy.dtype == DT_F32;
    return f32 ? c->d : WIDENED;
}

static float row_inv(const struct rmsnorm *c, size_t at, size_t step) {
    float room[WIDENED];
    double sum = 0;
    for (size_t i = 0, n; i < c->d; i += n) {
        n = smaller(step, c->d - i);
        const float *x = array_get(c->v, c->x, at + i, n, room);
        sum += c->v->dot(x, x, n);
    }
    return (float)(1 / sqrt(sum / (double)c->d + c->eps));
}

static void rmsnorm_piece(void *ctx, size_t begin, size_t end) {
    const struct rmsnorm *c = ctx;
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
        if (c->inv) c->inv[r] = inv;
    }
}

void kernel_rmsnorm(struct kernel_array y, float *inv, struct kernel_array x, const float *w, size_t rows, size_t d,
                    float eps) {
    struct rmsnorm c = {.v = simd(), .y = y, .x = x, .dx = x, .dy = y, .inv = inv, .w = w, .d = d, .eps = eps};
    kernel_split(rows, piece_rows(d), rmsnorm_piece, &c);
}

/*
 * y = x w i with i = (mean(x^2) + eps)^(-1/2), di/dx = -i^3 x / d:
 *   dx = i w dy - x i^3 / d sum(dy w x)
 */
static void rmsnorm_dx_row(const struct rmsnorm *c, size_t r, size_t step) {
    float dx[WIDENED], dy[WIDENED], x[WIDENED];
    size_t at = r * c->d;
    double inv = c->kept_inv[r], sum = 0;
    for (size_t i = 0, n; i < c->d; i += n) {
        n = smaller(step, c->d - i);
        sum += c->v->dot3(array_get(c->v, c->dy, at + i, n, dy), c->w + i, array_get(c->v, c->x, at + i, n, x), n);
    }
    double a = inv * inv * inv / (double)c->d * sum;
    for (size_t i = 0, n; i < c->d; i += n) {
        n = smaller(step, c->d - i);
        array_get(c->v, c->dx, at + i, n, dx);
        c->v->rmsnorm_dx(array_room(c->dx, at + i, dx), array_get(c->v, c->dy, at + i, n, dy),
                         array_get(c->v, c->x, at + i, n, x), c->w + i, (float)inv, (float)a, n);
        array_put(c->v, c->dx, at + i, n, dx);
    }
}

/* sum[n] += dy x i of columns [col, col + n) of a row */
static void rmsnorm_dw_row(const struct rmsnorm *c, size_t r, size_t col, size_t n, float *sum) {
    float dy[WIDENED], x[WIDENED];
    for (size_t i = 0, m; i < n; i += m) {
        m = smaller(WIDENED, n - i);
        size_t at = r * c->d + col + i;
        c->v->mul_acc(sum + i, c->kept_inv[r], array_get(c->v, c->dy, at, m, dy), array_get(c->v, c->x, at, m, x), m);
    }
}

/*
 * dw = sum over rows of dy x i. As in reduce.c, rows are summed in blocks and the blocks in order. A task takes a block
 * for dx and dw while its rows are in the cache; sums of as many blocks as fit wait on the stack to be added.
 */
#define NORM_ROWS 128
#define NORM_SUMS (32 * 1024)

struct norm_blocks {
    const struct rmsnorm *c;
    size_t first; /* row */
    float *sums;  /* [blocks][d], or NULL */
};

static void norm_block(void *ctx, size_t i, int thread) {
    const struct norm_blocks *b = ctx;
    const struct rmsnorm *c = b->c;
    size_t begin = b->first + i * NORM_ROWS, end = smaller(begin + NORM_ROWS, c->rows);
    float *sum = b->sums ? b->sums + i * c->d : NULL;
    (void)thread;
    if (sum) memset(sum, 0, c->d * sizeof *sum);
    for (size_t r = begin; r < end; r++) {
        if (c->dx.data) rmsnorm_dx_row(c, r, row_step(c));
        if (sum) rmsnorm_dw_row(c, r, 0, c->d, sum);
    }
}

/* The same of rows that are too long for that. */
static void rmsnorm_dw_strip(void *ctx, size_t begin, size_t end) {
    const struct rmsnorm *c = ctx;
    float sum[COLUMNS];
    for (size_t first = 0; first < c->rows; first += NORM_ROWS) {
        memset(sum, 0, sizeof sum);
        for (size_t r = first; r < smaller(first + NORM_ROWS, c->rows); r++)
            rmsnorm_dw_row(c, r, begin, end - begin, sum);
        c->v->add(c->dw + begin, sum, end - begin);
    }
}

void kernel_rmsnorm_backward(struct kernel_array dx, float *dw, struct kernel_array dy, struct kernel_array x,
                             const float *w, const float *inv, size_t rows, size_t d) {
    struct rmsnorm c = {
        .v = simd(), .y = dy, .x = x, .dx = dx, .dy = dy, .dw = dw, .w = w, .kept_inv = inv, .rows = rows, .d = d};
    _Alignas(64) float sums[NORM_SUMS];
    bool with_dw = dw && d <= NORM_SUMS;
    size_t blocks = with_dw ? NORM_SUMS / (d ? d : 1) : rows / NORM_ROWS + 1;
    for (size_t first = 0; first < rows; first += blocks * NORM_ROWS) {
        size_t n = smaller(blocks, (rows - first - 1) / NORM_ROWS + 1);
        parallel_for(n, norm_block, &(struct norm_blocks){&c, first, with_dw ? sums : NULL});
        for (size_t i = 0; with_dw && i < n; i++) c.v->add(dw, sums + i * d, d);
    }
    if (dw && !with_dw) kernel_split(d, COLUMNS, rmsnorm_dw_strip, &c);
}

/* ---- rotary positions ---- */

struct rope {
    const struct simd *v;
    struct kernel_array x;
    size_t n_heads, head_dim;
    const uint32_t *position;
    const double *inv_freq;
    int sign;
};

#define ANGLES 64 /* per step: cosines and sines of a row wait on the stack for all its heads */

static void rope_piece(void *ctx, size_t begin, size_t end) {
    const struct rope *c = ctx;
    size_t half = c->head_dim / 2;
    float cosine[ANGLES], sine[ANGLES];
    for (size_t r = begin; r < end; r++) {
        for (size_t first = 0; first < half; first += ANGLES) {
            size_t n = half - first < ANGLES ? half - first : ANGLES;
            c->v->angles(cosine, sine, c->position[r], c->inv_freq + first, c->sign, n);
            for (size_t h = 0; h < c->n_heads; h++) {
                size_t at = (r * c->n_heads + h) * c->head_dim + first;
                struct kernel_array x1 = kernel_part(c->x, at), x2 = kernel_part(c->x, at + half);
                if (c->x.dtype == DT_F32)
                    c->v->rotate(x1.data, x2.data, cosine, sine, n);
                else
                    c->v->rotate_bf16(x1.data, x2.data, cosine, sine, n);
            }
        }
    }
}

void kernel_rope(struct kernel_array x, size_t rows, size_t n_heads, size_t head_dim, const uint32_t *position,
                 const double *inv_freq, int sign) {
    struct rope c = {simd(), x, n_heads, head_dim, position, inv_freq, sign < 0 ? -1 : 1};
    kernel_split(rows, piece_rows(n_heads * head_dim), rope_piece, &c);
}
