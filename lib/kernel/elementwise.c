/* Element by element, and the optimizer: each loop is cut in pieces of one size and a CPU path's loop runs on each. */
#include <math.h>

#include "lib/kernel/kernel_internal.h"

struct vectors {
    const struct simd *v;
    float *y;
    const float *x;
    float a;
};

static void fill_piece(void *ctx, size_t begin, size_t end) {
    const struct vectors *c = ctx;
    c->v->fill(c->y + begin, end - begin, c->a);
}

void kernel_fill(float *y, size_t n, float value) {
    kernel_split(n, PIECE, fill_piece, &(struct vectors){simd(), y, NULL, value});
}

static void copy_piece(void *ctx, size_t begin, size_t end) {
    const struct vectors *c = ctx;
    memcpy(c->y + begin, c->x + begin, (end - begin) * sizeof(float));
}

void kernel_copy(float *y, const float *x, size_t n) {
    kernel_split(n, PIECE, copy_piece, &(struct vectors){NULL, y, x, 0});
}

static void scale_piece(void *ctx, size_t begin, size_t end) {
    const struct vectors *c = ctx;
    c->v->scale(c->y + begin, end - begin, c->a);
}

void kernel_scale(float *y, size_t n, float a) {
    kernel_split(n, PIECE, scale_piece, &(struct vectors){simd(), y, NULL, a});
}

static void add_piece(void *ctx, size_t begin, size_t end) {
    const struct vectors *c = ctx;
    c->v->add(c->y + begin, c->x + begin, end - begin);
}

void kernel_add(float *y, const float *x, size_t n) {
    kernel_split(n, PIECE, add_piece, &(struct vectors){simd(), y, x, 0});
}

static void axpy_piece(void *ctx, size_t begin, size_t end) {
    const struct vectors *c = ctx;
    c->v->axpy(c->y + begin, c->a, c->x + begin, end - begin);
}

void kernel_axpy(float *y, float a, const float *x, size_t n) {
    kernel_split(n, PIECE, axpy_piece, &(struct vectors){simd(), y, x, a});
}

/* ---- SwiGLU ---- */

struct gated {
    const struct simd *v;
    float *y, *dgate, *dup;
    const float *dy, *gate, *up;
};

static void swiglu_piece(void *ctx, size_t begin, size_t end) {
    const struct gated *c = ctx;
    c->v->swiglu(c->y + begin, c->gate + begin, c->up + begin, end - begin);
}

void kernel_swiglu(float *y, const float *gate, const float *up, size_t n) {
    kernel_split(n, PIECE, swiglu_piece, &(struct gated){.v = simd(), .y = y, .gate = gate, .up = up});
}

static void swiglu_backward_piece(void *ctx, size_t begin, size_t end) {
    const struct gated *c = ctx;
    c->v->swiglu_backward(c->dgate + begin, c->dup + begin, c->dy + begin, c->gate + begin, c->up + begin, end - begin);
}

void kernel_swiglu_backward(float *dgate, float *dup, const float *dy, const float *gate, const float *up, size_t n) {
    struct gated c = {.v = simd(), .dgate = dgate, .dup = dup, .dy = dy, .gate = gate, .up = up};
    kernel_split(n, PIECE, swiglu_backward_piece, &c);
}

/* ---- AdamW ---- */

struct adamw {
    const struct simd *v;
    const struct kernel_adamw *how;
    float step_size, root_correction;
    float *w, *m, *v2;
    const float *g;
};

static void adamw_piece(void *ctx, size_t begin, size_t end) {
    const struct adamw *c = ctx;
    c->v->adamw(c->how, c->step_size, c->root_correction, c->w + begin, c->m + begin, c->v2 + begin, c->g + begin,
                end - begin);
}

/*
 * The bias corrections 1 - beta^t are the same for all elements: they become one step size and one factor of the
 * root.
 */
void kernel_adamw(const struct kernel_adamw *o, float *w, float *m, float *v, const float *g, size_t n) {
    double t = (double)o->step;
    struct adamw c = {.v = simd(), .how = o, .w = w, .m = m, .v2 = v, .g = g};
    c.step_size = (float)(o->lr / (1 - pow(o->beta1, t)));
    c.root_correction = (float)(1 / sqrt(1 - pow(o->beta2, t)));
    kernel_split(n, PIECE, adamw_piece, &c);
}
