/* Half-quadratic quantization: adjusts scales and mins without data. */
#include <math.h>

#include "lib/quant/second_order.h"

#define NORM       0.7 /* p of |w - q|^p */
#define BETA       10.0
#define KAPPA      1.01 /* growth of beta per step */
#define ITERATIONS 20

/* One group of one row. */
struct group {
    const struct quant_form *form;
    struct quant_parts *p; /* the block of the group */
    size_t k;              /* index of the group in the block */
    const float *w;        /* [form->group] */
};

static double scale_of(const struct group *g) {
    return (double)f16_to_f32(g->p->d) * g->p->scales[g->k];
}
static double min_of(const struct group *g) {
    return g->form->has_min ? (double)f16_to_f32(g->p->min) * g->p->mins[g->k] : 0;
}
static uint8_t *codes_of(const struct group *g) {
    return g->p->codes + g->k * g->form->group;
}
static double step_of(const struct group *g, size_t i) {
    return codes_of(g)[i] - g->form->offset;
}

/* Rounds to the nearest codes. */
static void round_codes(const struct group *g) {
    double s = scale_of(g), m = min_of(g);
    for (size_t i = 0; s != 0 && i < g->form->group; i++)
        codes_of(g)[i] = quant_nearest(g->form, (float)((g->w[i] - m) / s));
}

/* The stopping criterion of the reference implementation, which does not use p. */
static double error_of(const struct group *g) {
    double s = scale_of(g), m = min_of(g), sum = 0;
    for (size_t i = 0; i < g->form->group; i++) sum += fabs(g->w[i] - (s * step_of(g, i) + m));
    return sum;
}

/* Generalised soft thresholding for |x|^p with weight 1 / beta. */
static double shrink(double x, double beta) {
    double a = fabs(x), left = a > 0 ? a - pow(a, NORM - 1) / beta : 0;
    return left > 0 ? copysign(left, x) : 0;
}

static int8_t whole(double v, int low, int top) {
    return (int8_t)(v <= low ? low : v >= top ? top : lrint(v));
}

/* v as f16; `was` if that is not finite. */
static uint16_t as_f16(double v, uint16_t was) {
    uint16_t h = f32_to_f16((float)v);
    return (h & 0x7c00) == 0x7c00 ? was : h;
}

/* Moves the min (or, on a grid without mins, the scale) to the optimum for the codes and w without outliers, rounded as
 * stored. */
static void move_grid(const struct group *g, double beta) {
    double s = scale_of(g), m = min_of(g), sum = 0, square = 0;
    for (size_t i = 0; i < g->form->group; i++) {
        double u = step_of(g, i), t = g->w[i] - shrink(g->w[i] - (s * u + m), beta);
        sum += g->form->has_min ? t - s * u : t * u;
        square += g->form->has_min ? 1 : u * u;
    }
    if (!(square > 0)) return;
    double best = sum / square, unit = f16_to_f32(g->form->has_min ? g->p->min : g->p->d);
    if (!g->form->has_scales) {
        uint16_t *at = g->form->has_min ? &g->p->min : &g->p->d;
        *at = as_f16(best, *at);
    } else if (unit != 0 && g->form->has_min)
        g->p->mins[g->k] = whole(best / unit, 0, g->form->scale_top);
    else if (unit != 0)
        g->p->scales[g->k] = whole(best / unit, g->form->scale_low, g->form->scale_top);
}

static void improve_group(const struct group *g) {
    struct quant_parts best = *g->p;
    double least = error_of(g), beta = BETA;
    for (int i = 0; i < ITERATIONS; i++, beta *= KAPPA) {
        move_grid(g, beta);
        round_codes(g);
        double error = error_of(g);
        if (!(error < least)) break;
        least = error;
        best = *g->p;
    }
    *g->p = best;
}

struct job {
    const struct quant_form *form;
    size_t block, block_bytes, blocks; /* blocks: of a row */
    const float *w;
    unsigned char *packed;
};

static void improve_row(void *ctx, size_t row, int thread) {
    const struct job *j = ctx;
    const struct quant_form *f = j->form;
    (void)thread;
    for (size_t at = row * j->blocks; at < (row + 1) * j->blocks; at++) {
        struct quant_parts p;
        quant_take_apart(f->dtype, j->packed + at * j->block_bytes, &p);
        for (size_t k = 0; k < j->block / f->group; k++)
            improve_group(&(struct group){f, &p, k, j->w + at * j->block + k * f->group});
        quant_put_together(f->dtype, &p, j->packed + at * j->block_bytes);
    }
}

bool hqq_takes(enum dtype dtype) {
    return quant_form(dtype) != NULL;
}

void hqq_improve(enum dtype dtype, const float *w, size_t rows, size_t cols, unsigned char *packed) {
    const struct dtype_info *type = dtype_info(dtype);
    struct job j = {quant_form(dtype), type->block_elems, type->block_bytes, cols / type->block_elems, w, packed};
    parallel_for(rows, improve_row, &j);
}
