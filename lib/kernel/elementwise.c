/* Elementwise loops and optimizers: each loop is split into pieces of one size, which run the CPU path's loop. */
#include <math.h>

#include "lib/kernel/kernel_internal.h"

struct vectors {
    const struct simd *v;
    float *y;
    const float *x;
    float a;
};

struct arrays {
    const struct simd *v;
    struct view y, x;
    float a;
};

static void fill_piece(void *ctx, size_t begin, size_t end) {
    const struct arrays *c = ctx;
    float scratch[WIDENED];
    for (size_t i = begin, n; i < end; i += n) {
        n = smaller(WIDENED, end - i);
        c->v->fill(array_target(c->y, i, scratch), n, c->a);
        array_put(c->v, c->y, i, n, scratch);
    }
}

void kernel_fill(struct kernel_array y, size_t n, float value) {
    PROFILE(ELEMENTWISE);
    kernel_split(n, PIECE, fill_piece, &(struct arrays){.v = simd(), .y = view_of(y), .a = value});
}

static void scale_piece(void *ctx, size_t begin, size_t end) {
    const struct arrays *c = ctx;
    float scratch[WIDENED];
    for (size_t i = begin, n; i < end; i += n) {
        n = smaller(WIDENED, end - i);
        array_get(c->v, c->y, i, n, scratch);
        c->v->scale(array_target(c->y, i, scratch), n, c->a);
        array_put(c->v, c->y, i, n, scratch);
    }
}

void kernel_scale(struct kernel_array y, size_t n, float a) {
    PROFILE(ELEMENTWISE);
    kernel_split(n, PIECE, scale_piece, &(struct arrays){.v = simd(), .y = view_of(y), .a = a});
}

static void add_piece(void *ctx, size_t begin, size_t end) {
    const struct arrays *c = ctx;
    float y_scratch[WIDENED], x_scratch[WIDENED];
    for (size_t i = begin, n; i < end; i += n) {
        n = smaller(WIDENED, end - i);
        array_get(c->v, c->y, i, n, y_scratch);
        c->v->add(array_target(c->y, i, y_scratch), array_get(c->v, c->x, i, n, x_scratch), n);
        array_put(c->v, c->y, i, n, y_scratch);
    }
}

void kernel_add(struct kernel_array y, struct kernel_array x, size_t n) {
    PROFILE(ELEMENTWISE);
    kernel_split(n, PIECE, add_piece, &(struct arrays){.v = simd(), .y = view_of(y), .x = view_of(x)});
}

void kernel_convert(struct kernel_array y, struct kernel_array x, size_t n) {
    PROFILE(ELEMENTWISE);
    if (x.dtype == y.dtype)
        copy_bytes(host_of(y), host_of(x), kernel_array_bytes(x.dtype, n));
    else if (x.dtype == DT_F32)
        to_bf16(host_of(y), host_of(x), n);
    else
        from_bf16(host_of(y), host_of(x), n);
}

static void axpy_piece(void *ctx, size_t begin, size_t end) {
    const struct vectors *c = ctx;
    c->v->axpy(c->y + begin, c->a, c->x + begin, end - begin);
}

void kernel_axpy(struct kernel_array y, float a, struct kernel_array x, size_t n) {
    PROFILE(ELEMENTWISE);
    kernel_split(n, PIECE, axpy_piece, &(struct vectors){simd(), host_f32(y), host_f32(x), a});
}

/* ---- momentum ---- */

struct momentum {
    const struct simd *v;
    const struct kernel_momentum *how;
    float *u;
    struct view m;
    const float *g;
};

/* beta x + (1 - beta) g, with g scaled */
static void blend(const struct momentum *c, float *x, size_t at, size_t n) {
    c->v->scale(x, n, c->how->beta);
    c->v->axpy(x, (1 - c->how->beta) * c->how->grad_scale, c->g + at, n);
}

static void momentum_piece(void *ctx, size_t begin, size_t end) {
    const struct momentum *c = ctx;
    float scratch[WIDENED];
    uint32_t random[WIDENED];
    for (size_t i = begin, n; i < end; i += n) {
        n = smaller(WIDENED, end - i);
        array_get(c->v, c->m, i, n, scratch);
        float *m = array_target(c->m, i, scratch);
        blend(c, m, i, n);
        memcpy(c->u + i, m, n * sizeof *m);
        blend(c, c->u + i, i, n);
        if (c->m.dtype == DT_F32) continue;
        c->v->random(random, c->how->step, c->how->stream, i / 4, (n + 63) / 64);
        c->v->to_bf16_random((uint16_t *)c->m.data + i, m, random, 0, n);
    }
}

void kernel_momentum(const struct kernel_momentum *o, struct kernel_array u, struct kernel_array m,
                     struct kernel_array g, size_t n) {
    PROFILE(OPTIMIZER);
    kernel_split(n, PIECE, momentum_piece, &(struct momentum){simd(), o, host_f32(u), view_of(m), host_f32(g)});
}

/* ---- AdamW ---- */

struct adamw {
    const struct simd *v;
    const struct kernel_adamw *how;
    float step_size, root_correction;
    float *w;
    struct view m, v2;
    const float *g;
};

static void adamw_piece(void *ctx, size_t begin, size_t end) {
    const struct adamw *c = ctx;
    c->v->adamw(c->how, c->step_size, c->root_correction, c->w + begin, (float *)c->m.data + begin,
                (float *)c->v2.data + begin, c->g + begin, end - begin);
}

/* Moments in bf16: widened, then rounded with random bits that are a function of step, tensor and element. */
static void adamw_rounded_piece(void *ctx, size_t begin, size_t end) {
    const struct adamw *c = ctx;
    float m[WIDENED], v[WIDENED];
    uint32_t random[WIDENED];
    for (size_t i = begin, n; i < end; i += n) { /* whole blocks of 64 elements, except the last */
        n = smaller(WIDENED, end - i);
        array_get(c->v, c->m, i, n, m);
        array_get(c->v, c->v2, i, n, v);
        c->v->adamw(c->how, c->step_size, c->root_correction, c->w + i, m, v, c->g + i, n);
        c->v->random(random, c->how->step, c->how->stream, i / 4, (n + 63) / 64);
        c->v->to_bf16_random((uint16_t *)c->m.data + i, m, random, 0, n);
        c->v->to_bf16_random((uint16_t *)c->v2.data + i, v, random, 16, n);
    }
}

/*
 * The bias corrections 1 - beta^t are the same for all elements, so they are folded into one step size and one factor
 * of the root.
 */
void kernel_adamw(const struct kernel_adamw *o, struct kernel_array w, struct kernel_array m, struct kernel_array v,
                  struct kernel_array g, size_t n) {
    PROFILE(OPTIMIZER);
    double t = (double)o->step;
    struct adamw c = {.v = simd(), .how = o, .w = host_f32(w), .m = view_of(m), .v2 = view_of(v), .g = host_f32(g)};
    c.step_size = (float)(o->lr / (1 - pow(o->beta1, t)));
    c.root_correction = (float)(1 / sqrt(1 - pow(o->beta2, t)));
    kernel_split(n, PIECE, m.dtype == DT_F32 ? adamw_piece : adamw_rounded_piece, &c);
}
