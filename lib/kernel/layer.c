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
    float *y, *inv, *dx, *dw;
    const float *x, *w, *dy, *kept_inv;
    size_t rows, d;
    float eps;
};

static void rmsnorm_piece(void *ctx, size_t begin, size_t end) {
    const struct rmsnorm *c = ctx;
    for (size_t r = begin; r < end; r++) {
        const float *x = c->x + r * c->d;
        float inv = (float)(1 / sqrt(c->v->dot(x, x, c->d) / (double)c->d + c->eps));
        c->v->mul_scaled(c->y + r * c->d, x, c->w, inv, c->d);
        if (c->inv) c->inv[r] = inv;
    }
}

void kernel_rmsnorm(float *y, float *inv, const float *x, const float *w, size_t rows, size_t d, float eps) {
    struct rmsnorm c = {.v = simd(), .y = y, .inv = inv, .x = x, .w = w, .rows = rows, .d = d, .eps = eps};
    kernel_split(rows, piece_rows(d), rmsnorm_piece, &c);
}

/*
 * y = x w i with i = (mean(x^2) + eps)^(-1/2), di/dx = -i^3 x / d:
 *   dx = i w dy - x i^3 / d sum(dy w x)
 */
static void rmsnorm_dx_piece(void *ctx, size_t begin, size_t end) {
    const struct rmsnorm *c = ctx;
    for (size_t r = begin; r < end; r++) {
        const float *x = c->x + r * c->d, *dy = c->dy + r * c->d;
        double i = c->kept_inv[r];
        double a = i * i * i / (double)c->d * c->v->dot3(dy, c->w, x, c->d);
        c->v->rmsnorm_dx(c->dx + r * c->d, dy, x, c->w, (float)i, (float)a, c->d);
    }
}

/* dw = sum over rows of dy x i, in strips of columns and blocks of rows as in reduce.c. */
static void rmsnorm_dw_strip(void *ctx, size_t begin, size_t end) {
    const struct rmsnorm *c = ctx;
    float sum[COLUMNS];
    for (size_t first = 0; first < c->rows; first += 128) {
        size_t last = c->rows - first < 128 ? c->rows : first + 128;
        memset(sum, 0, sizeof sum);
        for (size_t r = first; r < last; r++) {
            size_t at = r * c->d + begin;
            c->v->mul_acc(sum, c->kept_inv[r], c->dy + at, c->x + at, end - begin);
        }
        c->v->add(c->dw + begin, sum, end - begin);
    }
}

void kernel_rmsnorm_backward(float *dx, float *dw, const float *dy, const float *x, const float *w, const float *inv,
                             size_t rows, size_t d) {
    struct rmsnorm c = {
        .v = simd(), .dx = dx, .dw = dw, .x = x, .w = w, .dy = dy, .kept_inv = inv, .rows = rows, .d = d};
    if (dx) kernel_split(rows, piece_rows(d), rmsnorm_dx_piece, &c);
    if (dw) kernel_split(d, COLUMNS, rmsnorm_dw_strip, &c);
}

/* ---- rotary positions ---- */

struct rope {
    const struct simd *v;
    float *x;
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
                float *x = c->x + (r * c->n_heads + h) * c->head_dim + first;
                c->v->rotate(x, x + half, cosine, sine, n);
            }
        }
    }
}

void kernel_rope(float *x, size_t rows, size_t n_heads, size_t head_dim, const uint32_t *position,
                 const double *inv_freq, int sign) {
    struct rope c = {simd(), x, n_heads, head_dim, position, inv_freq, sign < 0 ? -1 : 1};
    kernel_split(rows, piece_rows(n_heads * head_dim), rope_piece, &c);
}
