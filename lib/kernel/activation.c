/* Activation functions, gated linear units and soft caps over arrays in f32, or in bf16 that is widened and rounded in
 * pieces. */
#include "lib/kernel/kernel_internal.h"

struct activation {
    const struct simd *v;
    const struct simd_act *act;
    struct view y, x, dx, dy;
};

static void activate_piece(void *ctx, size_t begin, size_t end) {
    const struct activation *c = ctx;
    float y[WIDENED], x[WIDENED];
    for (size_t i = begin, n; i < end; i += n) {
        n = smaller(WIDENED, end - i);
        c->act->apply(array_target(c->y, i, y), array_get(c->v, c->x, i, n, x), n);
        array_put(c->v, c->y, i, n, y);
    }
}

void kernel_activate(enum kernel_act act, struct kernel_array y, struct kernel_array x, size_t n) {
    PROFILE(ELEMENTWISE);
    const struct simd *v = simd();
    kernel_split(n, PIECE, activate_piece,
                 &(struct activation){.v = v, .act = &v->act[act], .y = view_of(y), .x = view_of(x)});
}

static void activate_backward_piece(void *ctx, size_t begin, size_t end) {
    const struct activation *c = ctx;
    float dx[WIDENED], dy[WIDENED], x[WIDENED];
    for (size_t i = begin, n; i < end; i += n) {
        n = smaller(WIDENED, end - i);
        c->act->backward(array_target(c->dx, i, dx), array_get(c->v, c->dy, i, n, dy), array_get(c->v, c->x, i, n, x),
                         n);
        array_put(c->v, c->dx, i, n, dx);
    }
}

void kernel_activate_backward(enum kernel_act act, struct kernel_array dx, struct kernel_array dy,
                              struct kernel_array x, size_t n) {
    PROFILE(ELEMENTWISE);
    const struct simd *v = simd();
    struct activation c = {.v = v, .act = &v->act[act], .x = view_of(x), .dx = view_of(dx), .dy = view_of(dy)};
    kernel_split(n, PIECE, activate_backward_piece, &c);
}

/* ---- gated linear units ---- */

struct glu {
    const struct simd *v;
    const struct simd_act *act;
    struct view y, dgate, dup, dy, gate, up;
};

static void glu_piece(void *ctx, size_t begin, size_t end) {
    const struct glu *c = ctx;
    float y[WIDENED], gate[WIDENED], up[WIDENED];
    if (c->y.dtype == DT_BF16 && c->gate.dtype == DT_BF16 && c->up.dtype == DT_BF16) {
        c->act->glu_bf16((uint16_t *)c->y.data + begin, (const uint16_t *)c->gate.data + begin,
                         (const uint16_t *)c->up.data + begin, end - begin);
        return;
    }
    for (size_t i = begin, n; i < end; i += n) {
        n = smaller(WIDENED, end - i);
        c->act->glu(array_target(c->y, i, y), array_get(c->v, c->gate, i, n, gate), array_get(c->v, c->up, i, n, up),
                    n);
        array_put(c->v, c->y, i, n, y);
    }
}

void kernel_glu(enum kernel_act act, struct kernel_array y, struct kernel_array gate, struct kernel_array up,
                size_t n) {
    PROFILE(ELEMENTWISE);
    const struct simd *v = simd();
    kernel_split(n, PIECE, glu_piece,
                 &(struct glu){.v = v, .act = &v->act[act], .y = view_of(y), .gate = view_of(gate), .up = view_of(up)});
}

static bool all_bf16(const struct glu *c) {
    return c->dgate.dtype == DT_BF16 && c->dup.dtype == DT_BF16 && c->dy.dtype == DT_BF16 && c->gate.dtype == DT_BF16 &&
           c->up.dtype == DT_BF16;
}

static void glu_backward_piece(void *ctx, size_t begin, size_t end) {
    const struct glu *c = ctx;
    float dgate[WIDENED], dup[WIDENED], dy[WIDENED], gate[WIDENED], up[WIDENED];
    if (all_bf16(c)) {
        c->act->glu_backward_bf16((uint16_t *)c->dgate.data + begin, (uint16_t *)c->dup.data + begin,
                                  (const uint16_t *)c->dy.data + begin, (const uint16_t *)c->gate.data + begin,
                                  (const uint16_t *)c->up.data + begin, end - begin);
        return;
    }
    for (size_t i = begin, n; i < end; i += n) {
        n = smaller(WIDENED, end - i);
        c->act->glu_backward(array_target(c->dgate, i, dgate), array_target(c->dup, i, dup),
                             array_get(c->v, c->dy, i, n, dy), array_get(c->v, c->gate, i, n, gate),
                             array_get(c->v, c->up, i, n, up), n);
        array_put(c->v, c->dgate, i, n, dgate);
        array_put(c->v, c->dup, i, n, dup);
    }
}

void kernel_glu_backward(enum kernel_act act, struct kernel_array dgate, struct kernel_array dup,
                         struct kernel_array dy, struct kernel_array gate, struct kernel_array up, size_t n) {
    PROFILE(ELEMENTWISE);
    const struct simd *v = simd();
    struct glu c = {.v = v,
                    .act = &v->act[act],
                    .dgate = view_of(dgate),
                    .dup = view_of(dup),
                    .dy = view_of(dy),
                    .gate = view_of(gate),
                    .up = view_of(up)};
    kernel_split(n, PIECE, glu_backward_piece, &c);
}

/* ---- soft caps ---- */

struct softcap {
    const struct simd *v;
    float *y;
    const float *x, *capped;
    struct view dx;
    float cap;
};

static void softcap_piece(void *ctx, size_t begin, size_t end) {
    const struct softcap *c = ctx;
    c->v->softcap(c->y + begin, c->x + begin, end - begin, c->cap, 1 / c->cap);
}

void kernel_softcap(struct kernel_array y, struct kernel_array x, size_t n, float cap) {
    PROFILE(ELEMENTWISE);
    kernel_split(n, PIECE, softcap_piece,
                 &(struct softcap){.v = simd(), .y = host_f32(y), .x = host_f32(x), .cap = cap});
}

static void softcap_backward_piece(void *ctx, size_t begin, size_t end) {
    const struct softcap *c = ctx;
    float dx[WIDENED];
    for (size_t i = begin, n; i < end; i += n) {
        n = smaller(WIDENED, end - i);
        array_get(c->v, c->dx, i, n, dx);
        c->v->softcap_backward(array_target(c->dx, i, dx), c->capped + i, n, 1 / c->cap);
        array_put(c->v, c->dx, i, n, dx);
    }
}

void kernel_softcap_backward(struct kernel_array dx, struct kernel_array y, size_t n, float cap) {
    PROFILE(ELEMENTWISE);
    kernel_split(n, PIECE, softcap_backward_piece,
                 &(struct softcap){.v = simd(), .capped = host_f32(y), .dx = view_of(dx), .cap = cap});
}
