/* Coordinate descent on codes and scales, row by row. */
#include <math.h>
#include <string.h>

#include "lib/quant/second_order.h"

#define ENOUGH 0.01 /* stop after a sweep that lowers the error by less: the next lowers it by about half of that */
#define SPAN   256  /* columns processed before the others are updated: whole blocks of every type */

/* Data on columns [first, first + n) shared by all rows. */
struct span {
    size_t first, n;
    float *h;        /* [n][n]: H restricted to these columns */
    float *diagonal; /* [n] of h */
    float *within;   /* [n / group][group][group]: diagonal blocks of h, by group */
    float *sums;     /* [n] row sums of within */
    float *groups;   /* [n / group][n]: sums of h over the columns of each group */
};

/* One row, within a span. */
struct descent {
    struct grid *g;
    const struct span *s;
    size_t row;
    float *r;    /* [n] H (t - q) */
    double gain; /* total reduction of the error */
};

/* Updates r after q grew by `by` at column j, relative to the span, as all columns below are. */
static void move(struct descent *d, size_t j, float by) {
    kernel_axpy(kernel_f32(d->r), -by, kernel_f32(d->s->h + j * d->s->n), d->s->n);
}

/* ---- codes ---- */

/* Improves the codes of the group starting at column j. */
static void improve_codes(struct descent *d, size_t j) {
    const struct grid *g = d->g;
    const struct quant_form *form = g->form;
    size_t col = d->s->first + j, at = d->row * g->groups + col / form->group;
    float scale = g->scales[at], min = g->mins[at];
    uint8_t *codes = grid_code(g, d->row, col);
    if (scale == 0) return;
    for (size_t i = 0; i < form->group; i++) {
        float h = d->s->diagonal[j + i], r = d->r[j + i];
        if (!(h > 0)) continue;
        if (!form->steps && fabsf(r) < 0.499f * fabsf(scale) * h) continue; /* less than half a step away */
        float now = scale * (float)(codes[i] - form->offset) + min;
        uint8_t best = quant_nearest(form, (now + r / h - min) / scale);
        float by = scale * (float)(best - codes[i]);
        double gain = 2.0 * by * r - (double)by * by * h;
        if (best == codes[i] || !(gain > 0)) continue;
        codes[i] = best;
        d->gain += gain;
        move(d, j + i, by);
    }
}

/* ---- scales: q = s u + m v with fixed u and v ---- */

/* Error as a quadratic in two directions: error(s + ds, m + dm) = error - gain. */
struct plane {
    double bu, bv, uu, uv, vv; /* r.u, r.v, u^T H u, u^T H v, v^T H v */
};

static double plane_gain(const struct plane *p, double ds, double dm) {
    return 2 * (ds * p->bu + dm * p->bv) - (ds * ds * p->uu + 2 * ds * dm * p->uv + dm * dm * p->vv);
}

/* The maximum of the gain; has_min false: along u alone. */
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

/* ---- scales of a group ---- */

/* The quadratic for the group starting at column `first`; fills u [len]. */
static struct plane group_plane(const struct descent *d, size_t first, size_t len, float *u) {
    struct plane p = {0};
    float hu[QUANT_MAX_BLOCK];
    const uint8_t *codes = grid_code(d->g, d->row, d->s->first + first);
    for (size_t i = 0; i < len; i++) u[i] = (float)(codes[i] - d->g->form->offset);
    kernel_matmul_nt(1, len, len, kernel_f32(u), kernel_f32(d->s->within + first * len), 0, kernel_f32(hu));
    for (size_t i = 0; i < len; i++) {
        p.uu += (double)u[i] * hu[i];
        p.uv += hu[i];
        p.vv += d->s->sums[first + i];
        p.bu += (double)u[i] * d->r[first + i];
        p.bv += d->r[first + i];
    }
    return p;
}

/* Scale and min are small integers times the block's d and min: tries the two nearest scales, each with its best
 * min. */
static double try_group(const struct grid *g, struct grid_block *p, size_t k, const struct plane *q) {
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

/* Stores d and min as f16; false: unchanged or not finite. */
static bool set_units(struct grid_block *p, double d, double min) {
    uint16_t hd = f32_to_f16((float)d), hm = f32_to_f16((float)min);
    if ((hd & 0x7c00) == 0x7c00 || (hm & 0x7c00) == 0x7c00 || (hd == p->d && hm == p->min)) return false;
    p->d = hd;
    p->min = hm;
    return true;
}

/* For blocks of one group, whose scale and min are f16. */
static double try_single(const struct grid *g, struct grid_block *p, const struct plane *q) {
    struct grid_block before = *p;
    double d = f16_to_f32(p->d), min = f16_to_f32(p->min), ds, dm;
    plane_top(q, g->form->has_min, &ds, &dm);
    if (!set_units(p, d + ds, min + dm)) return 0;
    double gain = plane_gain(q, f16_to_f32(p->d) - d, f16_to_f32(p->min) - min);
    if (gain > 0) return gain;
    p->d = before.d, p->min = before.min;
    return 0;
}

/* Improves scale and min of the group starting at column j. */
static void improve_group(struct descent *d, size_t j) {
    struct grid *g = d->g;
    size_t len = g->form->group, col = d->s->first + j, block = col / g->block, k = col % g->block / len;
    size_t at = d->row * g->groups + col / len;
    float u[QUANT_MAX_BLOCK], scale = g->scales[at], min = g->mins[at];
    struct grid_block *p = &g->stored[d->row * g->blocks + block];
    struct plane q = group_plane(d, j, len, u);
    double gain = g->form->has_scales ? try_group(g, p, k, &q) : try_single(g, p, &q);
    if (!(gain > 0)) return;
    d->gain += gain;
    grid_read_scales(g, d->row, block);
    float by = g->scales[at] - scale, shift = g->mins[at] - min;
    for (size_t i = 0; i < len; i++) u[i] = -(by * u[i] + shift);
    kernel_matmul_nn(1, d->s->n, len, kernel_f32(u), kernel_f32(d->s->h + j * d->s->n), 1, kernel_f32(d->r));
}

/* ---- scales of a block: d and min, shared by its groups ---- */

struct refine_job {
    struct grid *g;
    struct span span;
    float *residual;    /* [rows][cols], from before the span */
    float *change;      /* [rows][n]: increase of t - q */
    float *r;           /* [rows][n]: H (t - q) after codes and groups */
    float *u, *hu, *hv; /* [rows][n]: derivative of q by d; it and the mins times H */
    float *mins;        /* [rows][n / group] */
    double *gain;       /* [rows] */
};

/* Improves d and min of the block starting at column j. Later columns of the span do not see the change: the span ends
 * here. */
static double improve_block(const struct refine_job *s, size_t row, size_t j) {
    struct grid *g = s->g;
    size_t n = s->span.n, block = (s->span.first + j) / g->block, groups = n / g->form->group;
    struct grid_block *p = &g->stored[row * g->blocks + block], before = *p;
    struct plane q = {0};
    double d0 = f16_to_f32(p->d), min0 = f16_to_f32(p->min), ds, dm;
    for (size_t i = j; i < j + g->block; i++) {
        double u = s->u[row * n + i], v = s->mins[row * groups + i / g->form->group], r = s->r[row * n + i];
        q.bu += u * r;
        q.bv += v * r;
        q.uu += u * s->hu[row * n + i];
        if (!g->form->has_min) continue;
        q.uv += u * s->hv[row * n + i];
        q.vv += v * s->hv[row * n + i];
    }
    plane_top(&q, g->form->has_min, &ds, &dm);
    if (!set_units(p, d0 + ds, min0 + dm)) return 0;
    double gain = plane_gain(&q, f16_to_f32(p->d) - d0, f16_to_f32(p->min) - min0);
    if (!(gain > 0)) {
        p->d = before.d, p->min = before.min;
        return 0;
    }
    grid_read_scales(g, row, block);
    return gain;
}

static void take_directions(void *ctx, size_t row, int thread) {
    const struct refine_job *s = ctx;
    const struct grid *g = s->g;
    size_t n = s->span.n, len = g->form->group, groups = n / len;
    (void)thread;
    for (size_t i = 0; i < n; i += len) {
        const struct grid_block *p = &g->stored[row * g->blocks + (s->span.first + i) / g->block];
        const uint8_t *codes = grid_code(g, row, s->span.first + i);
        size_t at = (s->span.first + i) % g->block;
        for (size_t k = 0; k < len; k++)
            s->u[row * n + i + k] = (float)(p->scales[at / len] * (codes[k] - g->form->offset));
        s->mins[row * groups + i / len] = g->form->has_min ? p->mins[at / len] : 0;
    }
}

static void improve_blocks_of_row(void *ctx, size_t row, int thread) {
    const struct refine_job *s = ctx;
    (void)thread;
    for (size_t j = 0; j < s->span.n; j += s->g->block) s->gain[row] += improve_block(s, row, j);
}

/* Multiplies the directions of a block by H for all rows at once. Spans are one block, so that no other block needs an
 * update. */
static void improve_blocks(const struct refine_job *s) {
    size_t rows = s->g->rows, n = s->span.n, groups = n / s->g->form->group;
    parallel_for(rows, take_directions, (void *)s);
    kernel_matmul_nn(rows, n, n, kernel_f32(s->u), kernel_f32(s->span.h), 0, kernel_f32(s->hu));
    if (s->g->form->has_min)
        kernel_matmul_nn(rows, n, groups, kernel_f32(s->mins), kernel_f32(s->span.groups), 0, kernel_f32(s->hv));
    parallel_for(rows, improve_blocks_of_row, (void *)s);
}

/* ---- all rows ---- */

static void refine_codes_of_row(void *ctx, size_t row, int thread) {
    const struct refine_job *s = ctx;
    const struct grid *g = s->g;
    size_t n = s->span.n, first = s->span.first;
    float *change = s->change + row * n;
    struct descent d = {.g = s->g, .row = row, .s = &s->span, .r = s->r + row * n};
    (void)thread;
    memcpy(d.r, s->residual + row * g->cols + first, n * sizeof *d.r);
    grid_values(g, row, first, n, change);
    for (size_t j = 0; j < n; j += g->form->group) {
        improve_codes(&d, j);
        improve_group(&d, j);
    }
    s->gain[row] = d.gain;
}

static void finish_change_of_row(void *ctx, size_t row, int thread) {
    const struct refine_job *s = ctx;
    const struct grid *g = s->g;
    float *change = s->change + row * s->span.n;
    (void)thread;
    float now[SPAN];
    grid_values(g, row, s->span.first, s->span.n, now);
    for (size_t j = 0; j < s->span.n; j++) change[j] -= now[j];
}

static void take_span(struct span *s, const struct grid *g, const float *gram) {
    size_t len = g->form->group;
    s->n = g->cols - s->first < SPAN ? g->cols - s->first : SPAN;
    for (size_t i = 0; i < s->n; i++) {
        const float *row = gram + (s->first + i) * g->cols + s->first;
        float *sum = s->groups + i / len * s->n;
        memcpy(s->h + i * s->n, row, s->n * sizeof *row);
        memcpy(s->within + i * len, row + i / len * len, len * sizeof *row);
        if (i % len == 0) memset(sum, 0, s->n * sizeof *sum);
        kernel_add(kernel_f32(sum), kernel_f32(row), s->n);
        s->diagonal[i] = row[i];
        s->sums[i] = 0;
        for (size_t k = 0; k < len; k++) s->sums[i] += s->within[i * len + k];
    }
}

/* Refines a span in all rows, then updates the residual of all columns. Returns the gain. */
static double refine_span(struct refine_job *s, const float *gram) {
    double gain = 0;
    size_t cols = s->g->cols, rows = s->g->rows;
    take_span(&s->span, s->g, gram);
    parallel_for(rows, refine_codes_of_row, s);
    if (s->g->form->has_scales) improve_blocks(s);
    parallel_for(rows, finish_change_of_row, s);
    kernel_matmul_nn(rows, cols, s->span.n, kernel_f32(s->change), kernel_f32(gram + s->span.first * cols), 1,
                     kernel_f32(s->residual));
    for (size_t i = 0; i < rows; i++) gain += s->gain[i];
    return gain;
}

static int allocate(struct refine_job *s, struct arena *a, struct err *e) {
    size_t rows = s->g->rows, len = s->g->form->group;
    float **const parts[] = {&s->change, &s->r, &s->u, &s->hu, &s->hv};
    for (size_t i = 0; i < (s->g->form->has_scales ? COUNT_OF(parts) : 2); i++)
        if (!(*parts[i] = arena_array(a, rows, SPAN * sizeof(float), e))) return e->code;
    s->gain = arena_array(a, rows, sizeof *s->gain, e);
    s->mins = s->gain ? arena_array(a, rows, SPAN / len * sizeof(float), e) : NULL;
    s->span.h = s->mins ? arena_array(a, SPAN, SPAN * sizeof(float), e) : NULL;
    s->span.within = s->span.h ? arena_array(a, SPAN, len * sizeof(float), e) : NULL;
    s->span.groups = s->span.within ? arena_array(a, SPAN / len, SPAN * sizeof(float), e) : NULL;
    s->span.sums = s->span.groups ? arena_array(a, SPAN, sizeof(float), e) : NULL;
    s->span.diagonal = s->span.sums ? arena_array(a, SPAN, sizeof(float), e) : NULL;
    return s->span.diagonal ? 0 : e->code;
}

int grid_refine(struct grid *g, const float *gram, float *residual, double error, unsigned sweeps, struct err *e) {
    struct arena a = {0};
    struct refine_job s = {.g = g, .residual = residual};
    double total = error;
    int rc = allocate(&s, &a, e);
    for (unsigned i = 0; !rc && i < sweeps && total > ENOUGH * error; i++) {
        total = 0;
        for (s.span.first = 0; s.span.first < g->cols; s.span.first += SPAN) total += refine_span(&s, gram);
        error -= total;
    }
    arena_release(&a);
    return rc;
}
