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

void kernel_gather(struct kernel_array y, struct kernel_array table, const uint32_t *ids, size_t n, size_t d) {
    PROFILE(ELEMENTWISE);
    kernel_split(n, piece_rows(d), gather_piece, &(struct embedding){NULL, host_f32(y), host_f32(table), ids, n, d});
}

/* One strip of columns per task: a token that occurs twice is added by one task, in order. */
static void scatter_strip(void *ctx, size_t begin, size_t end) {
    const struct embedding *c = ctx;
    for (size_t i = 0; i < c->n; i++)
        c->v->add(c->out + c->ids[i] * c->d + begin, c->in + i * c->d + begin, end - begin);
}

void kernel_scatter_add(struct kernel_array table, struct kernel_array dy, const uint32_t *ids, size_t n, size_t d) {
    PROFILE(ELEMENTWISE);
    kernel_split(d, COLUMNS, scatter_strip, &(struct embedding){simd(), host_f32(table), host_f32(dy), ids, n, d});
}

/* ---- rotary positions ---- */

struct rope {
    const struct simd *v;
    struct view x;
    size_t n_heads, head_dim;
    const uint32_t *position;
    const struct kernel_rotation *how;
    int sign;
};

#define ANGLES 64 /* pairs at a time: their cosines and sines stay on the stack for all heads of a row */

/* n cosines and sines of row r, starting at pair `first`. */
static void rope_angles(const struct rope *c, size_t r, size_t first, size_t n, float *cosine, float *sine) {
    const struct kernel_rotation *how = c->how;
    size_t table = how->table ? how->table[r] : 0;
    c->v->angles(cosine, sine, c->position[r], how->inv_freq + table * (how->dims / 2) + first, c->sign, n);
    for (size_t i = 0; how->scale != 0 && i < n; i++) cosine[i] *= how->scale, sine[i] *= how->scale;
}

static void rope_piece(void *ctx, size_t begin, size_t end) {
    const struct rope *c = ctx;
    size_t half = c->how->dims / 2;
    float cosine[ANGLES], sine[ANGLES];
    for (size_t r = begin; r < end; r++) {
        for (size_t first = 0; first < half; first += ANGLES) {
            size_t n = half - first < ANGLES ? half - first : ANGLES;
            rope_angles(c, r, first, n, cosine, sine);
            for (size_t h = 0; h < c->n_heads; h++) {
                size_t at = (r * c->n_heads + h) * c->head_dim + first;
                struct view x1 = view_part(c->x, at), x2 = view_part(c->x, at + half);
                if (c->x.dtype == DT_F32)
                    c->v->rotate(x1.data, x2.data, cosine, sine, n);
                else
                    c->v->rotate_bf16(x1.data, x2.data, cosine, sine, n);
            }
        }
    }
}

void kernel_rope(struct kernel_array x, size_t rows, size_t n_heads, size_t head_dim, const uint32_t *position,
                 const struct kernel_rotation *rotation, int sign) {
    PROFILE(ELEMENTWISE);
    struct rope c = {simd(), view_of(x), n_heads, head_dim, position, rotation, sign < 0 ? -1 : 1};
    kernel_split(rows, piece_rows(n_heads * head_dim), rope_piece, &c);
}
