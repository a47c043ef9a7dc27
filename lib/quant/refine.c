/* Coordinate descent over codes and scales, row by row. */
#include <math.h>
#include <string.h>

#include "lib/quant/second_order.h"

#define ENOUGH 1e-3 /* a sweep that lowers the error by a smaller share is the last one */
#define SPAN   256  /* columns that are gone through before the others hear of it: whole blocks of every type */

/* One row, within the columns from `first` on. */
struct descent {
    struct grid *g;
    size_t row, first, n;
    const float *h; /* [n][n] of these columns */
    float *r;       /* [n] H (t - q) */
    double gain;    /* by how much the error has become smaller */
};

/* q grows by `by` at column j, counted from d->first. */
static void move(struct descent *d, size_t j, float by) {
    kernel_axpy(kernel_f32(d->r), -by, kernel_f32(d->h + j * d->n), d->n);
}

/* ---- codes ---- */

static void improve_code(struct descent *d, size_t j) {
    const struct grid *g = d->g;
    size_t col = d->first + j, at = d->row * g->groups + col / g->form->group;
    float scale = g->scales[at], hjj = d->h[j * d->n + j];
    if (scale == 0 || !(hjj > 0)) return;
    uint8_t *code = grid_code(g, d->row, col);
    float now = grid_value(g, d->row, col, *code);
    uint8_t best = quant_nearest(g->form, (now + d->r[j] / hjj - g->mins[at]) / scale);
    if (best == *code) return;
    float by = grid_value(g, d->row, col, best) - now;
    double gain = 2.0 * by * d->r[j] - (double)by * by * hjj;
    if (!(gain > 0)) return;
    *code = best;
    d->gain += gain;
    move(d, j, by);
}

/* ---- scales: of q = s u + m v with fixed u and v ---- */

/* The quadratic form of two directions: error(s + ds, m + dm) = error - gain. */
struct plane {
    double bu, bv, uu, uv, vv; /* r.u, r.v, u^T H u, u^T H v, v^T H v */
};

static double plane_gain(const struct plane *p, double ds, double dm) {
    return 2 * (ds * p->bu + dm * p->bv) - (ds * ds * p->uu + 2 * ds * dm * p->uv + dm * dm * p->vv);
}

/* Where the gain is largest; has_min false: along u alone. */
static void plane_top(const struct plane *p, bool has_min, double *ds, double *dm) {
    double det = p->uu * p->vv - p->uv * p->uv;
    *dm = 0;
    *ds = p->uu > 0 ? p->bu / p->uu : 0;
    if (!has_min || !(det > 1e-9 * p->uu * p->vv)) return;
    *ds = (p->bu * p->vv - p->bv * p->uv) / det;
    *dm = (p->bv * p->uu - p->bu * p->uv) / det;
}

static int clamp(double v, int low, int high) {
    return v <= low ? low : v >= high ? high : (int)lrint(v);
}

/* ---- of a group ---- */

/* From column `first` on, counted from d->first. */
static struct plane group_plane(const struct descent *d, size_t first, size_t len, float *u) {
    struct plane p = {0};
    for (size_t i = 0; i < len; i++)
        u[i] = (float)(*grid_code(d->g, d->row, d->first + first + i) - d->g->form->offset);
    for (size_t i = 0; i < len; i++) {
        const float *h = d->h + (first + i) * d->n + first;
        float hu = 0, hv = 0;
        for (size_t k = 0; k < len; k++) hu += h[k] * u[k], hv += h[k];
        p.uu += (double)u[i] * hu;
        p.uv += hu;
        p.vv += hv;
        p.bu += (double)u[i] * d->r[first + i];
        p.bv += d->r[first + i];
    }
    return p;
}

/* Both are small integers times the block's d and min: the two next to the best scale, each with its best min. */
static double try_group(const struct grid *g, struct quant_parts *p, size_t k, const struct plane *q) {
    double d = f16_to_f32(p->d), unit = g->form->has_min ? f16_to_f32(p->min) : 0, ds, dm, best = 0;
    int scale = p->scales[k], min = p->mins[k], best_scale = scale, best_min = min;
    int mins_top = g->form->scale_top;
    plane_top(q, unit != 0, &ds, &dm);
    for (int up = 0; up <= 1; up++) {
        double at = d != 0 ? scale + ds / d : scale;
        int s = clamp(up ? ceil(at) : floor(at), g->form->scale_low, g->form->scale_top), m = min;
        double by = d * (s - scale);
        if (unit != 0 && q->vv > 0) m = clamp(min + (q->bv - by * q->uv) / q->vv / unit, 0, mins_top);
        double gain = plane_gain(q, by, unit * (m - min));
        if (gain > best) best = gain, best_scale = s, best_min = m;
    }
    p->scales[k] = (int8_t)best_scale;
    if (g->form->has_min) p->mins[k] = (int8_t)best_min;
    return best;
}

/* d and min as f16 that are finite; false: they did not change, or cannot. */
static bool set_units(struct quant_parts *p, double d, double min) {
    uint16_t hd = f32_to_f16((float)d), hm = f32_to_f16((float)min);
    if ((hd & 0x7c00) == 0x7c00 || (hm & 0x7c00) == 0x7c00 || (hd == p->d && hm == p->min)) return false;
    p->d = hd;
    p->min = hm;
    return true;
}

/* A block that is one group has a scale and a min in f16. */
static double try_single(const struct grid *g, struct quant_parts *p, const struct plane *q) {
    struct quant_parts before = *p;
    double d = f16_to_f32(p->d), min = f16_to_f32(p->min), ds, dm;
    plane_top(q, g->form->has_min, &ds, &dm);
    if (!set_units(p, d + ds, min + dm)) return 0;
    double gain = plane_gain(q, f16_to_f32(p->d) - d, f16_to_f32(p->min) - min);
    if (gain > 0) return gain;
    p->d = before.d, p->min = before.min;
    return 0;
}

/* The group that begins at column j, counted from d->first. */
static void improve_group(struct descent *d, size_t j) {
    struct grid *g = d->g;
    size_t len = g->form->group, col = d->first + j, block = col / g->block, k = col % g->block / len;
    size_t at = d->row * g->groups + col / len;
    float u[QUANT_MAX_BLOCK], scale = g->scales[at], min = g->mins[at];
    struct quant_parts *p = &g->parts[d->row * g->blocks + block];
    struct plane q = group_plane(d, j, len, u);
    double gain = g->form->has_scales ? try_group(g, p, k, &q) : try_single(g, p, &q);
    if (!(gain > 0)) return;
    d->gain += gain;
    grid_read_scales(g, d->row, block);
    float by = g->scales[at] - scale, shift = g->mins[at] - min;
    for (size_t i = 0; i < len; i++) move(d, j + i, by * u[i] + shift);
}

/* ---- of a block of several groups: d and min, which all of them share ---- */

/* The block that begins at column j, counted from d->first. */
static void improve_block(struct descent *d, size_t j) {
    struct grid *g = d->g;
    size_t block = (d->first + j) / g->block;
    struct quant_parts *p = &g->parts[d->row * g->blocks + block], before = *p;
    struct plane q = {0};
    double d0 = f16_to_f32(p->d), min0 = f16_to_f32(p->min), ds, dm;
    float u[SPAN], v[SPAN], hu[SPAN] = {0}, hv[SPAN] = {0};
    for (size_t i = 0; i < g->block; i++) {
        size_t k = i / g->form->group;
        const struct kernel_array h = kernel_f32(d->h + (j + i) * d->n);
        u[i] = (float)(p->scales[k] * (p->codes[i] - g->form->offset));
        v[i] = g->form->has_min ? p->mins[k] : 0;
        if (u[i] != 0) kernel_axpy(kernel_f32(hu), u[i], h, d->n);
        if (v[i] != 0) kernel_axpy(kernel_f32(hv), v[i], h, d->n);
    }
    for (size_t i = 0; i < g->block; i++) {
        q.bu += (double)u[i] * d->r[j + i];
        q.bv += (double)v[i] * d->r[j + i];
        q.uu += (double)u[i] * hu[j + i];
        q.uv += (double)u[i] * hv[j + i];
        q.vv += (double)v[i] * hv[j + i];
    }
    plane_top(&q, g->form->has_min, &ds, &dm);
    if (!set_units(p, d0 + ds, min0 + dm)) return;
    double by = f16_to_f32(p->d) - d0, shift = f16_to_f32(p->min) - min0, gain = plane_gain(&q, by, shift);
    if (!(gain > 0)) {
        p->d = before.d, p->min = before.min;
        return;
    }
    d->gain += gain;
    grid_read_scales(g, d->row, block);
    kernel_axpy(kernel_f32(d->r), (float)-by, kernel_f32(hu), d->n);
    kernel_axpy(kernel_f32(d->r), (float)-shift, kernel_f32(hv), d->n);
}

/* ---- all rows ---- */

struct refine_job {
    struct grid *g;
    const float *h;        /* [n][n] of the span */
    const float *residual; /* [rows][cols], as it was when the span began */
    float *change;         /* [rows][n]: by how much t - q grows */
    double *gain;          /* [rows] */
    size_t first, n;
};

static void refine_span_of_row(void *ctx, size_t row, int thread) {
    const struct refine_job *s = ctx;
    const struct grid *g = s->g;
    float r[SPAN], *change = s->change + row * s->n;
    struct descent d = {.g = s->g, .row = row, .first = s->first, .n = s->n, .h = s->h, .r = r};
    (void)thread;
    memcpy(r, s->residual + row * g->cols + s->first, s->n * sizeof *r);
    for (size_t j = 0; j < s->n; j++) change[j] = grid_value(g, row, s->first + j, *grid_code(g, row, s->first + j));
    for (size_t j = 0; j < s->n; j += g->form->group) {
        for (size_t i = 0; i < g->form->group; i++) improve_code(&d, j + i);
        improve_group(&d, j);
    }
    for (size_t j = 0; g->form->has_scales && j < s->n; j += g->block) improve_block(&d, j);
    for (size_t j = 0; j < s->n; j++) change[j] -= grid_value(g, row, s->first + j, *grid_code(g, row, s->first + j));
    s->gain[row] = d.gain;
}

/* A span of all rows; then all columns hear of it. Returns the gain. */
static double refine_span(struct refine_job *s, const float *gram, float *residual, float *h) {
    double gain = 0;
    size_t cols = s->g->cols;
    s->n = cols - s->first < SPAN ? cols - s->first : SPAN;
    for (size_t i = 0; i < s->n; i++) memcpy(h + i * s->n, gram + (s->first + i) * cols + s->first, s->n * sizeof *h);
    parallel_for(s->g->rows, refine_span_of_row, s);
    kernel_matmul_nn(s->g->rows, cols, s->n, kernel_f32(s->change), kernel_f32(gram + s->first * cols), 1,
                     kernel_f32(residual));
    for (size_t i = 0; i < s->g->rows; i++) gain += s->gain[i];
    return gain;
}

int grid_refine(struct grid *g, const float *gram, float *residual, double error, unsigned sweeps, struct err *e) {
    float *h = mem_array(SPAN, SPAN * sizeof *h, e);
    float *change = h ? mem_array(g->rows, SPAN * sizeof *change, e) : NULL;
    double *gain = change ? mem_array(g->rows, sizeof *gain, e) : NULL, total = error;
    struct refine_job s = {.g = g, .h = h, .residual = residual, .change = change, .gain = gain};
    for (unsigned i = 0; gain && i < sweeps && total > ENOUGH * error; i++) {
        total = 0;
        for (s.first = 0; s.first < g->cols; s.first += SPAN) total += refine_span(&s, gram, residual, h);
        error -= total;
    }
    mem_free(h);
    mem_free(change);
    mem_free(gain);
    return gain ? 0 : e->code;
}
