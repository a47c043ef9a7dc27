/* Embedding and rotary positions; norms are in norm.c. */
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

/* A strip of columns a task: a token that occurs twice is added by one task, in order. */
static void scatter_strip(void *ctx, size_t begin, size_t end) {
    const struct embedding *c = ctx;
    for (size_t i = 0; i < c->n; i++)
        c->v->add(c->out + c->ids[i] * c->d + begin, c->in + i * c->d + begin, end - begin);
}

void kernel_scatter_add(float *table, const float *dy, const uint32_t *ids, size_t n, size_t d) {
    kernel_split(d, COLUMNS, scatter_strip, &(struct embedding){simd(), table, dy, ids, n, d});
}

/* ---- rotary positions ---- */

struct rope {
    const struct simd *v;
    struct kernel_array x;
    size_t n_heads, head_dim, dims;
    const uint32_t *position;
    const double *inv_freq;
    int sign;
};

#define ANGLES 64 /* per step: cosines and sines of a row are kept on the stack for all its heads */

static void rope_piece(void *ctx, size_t begin, size_t end) {
    const struct rope *c = ctx;
    size_t half = c->dims / 2;
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

void kernel_rope(struct kernel_array x, size_t rows, size_t n_heads, size_t head_dim, size_t dims,
                 const uint32_t *position, const double *inv_freq, int sign) {
    struct rope c = {simd(), x, n_heads, head_dim, dims, position, inv_freq, sign < 0 ? -1 : 1};
    kernel_split(rows, piece_rows(n_heads * head_dim), rope_piece, &c);
}
