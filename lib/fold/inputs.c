/* Inputs of a layer's matrices: from statistics, or from a run of the layer over the data. */
#include <math.h>
#include <string.h>

#include "lib/fold/fold_internal.h"

struct fold_sums {
    size_t cols;
    double n;
    double *abs, *sq;
    float *max, *gram;
};

static const enum model_point points[] = {POINT_ATTN_IN, POINT_O_IN, POINT_FFN_IN, POINT_DOWN_IN};
static const enum model_point expert_points[] = {POINT_EXPERT_IN, POINT_EXPERT_DOWN_IN};
#define POINTS        COUNT_OF(points)
#define EXPERT_POINTS COUNT_OF(expert_points)

static size_t count_sums(const struct fold_watch *w) {
    return POINTS + (size_t)w->config->layers[w->layer].experts * EXPERT_POINTS;
}

/* Returns the sums of a point; NULL: none are kept. */
static struct fold_sums *sums_at(const struct fold_watch *w, enum model_point p, uint32_t expert) {
    for (size_t i = 0; i < POINTS; i++)
        if (points[i] == p) return &w->sums[i];
    for (size_t i = 0; i < EXPERT_POINTS; i++)
        if (expert_points[i] == p) return &w->sums[POINTS + expert * EXPERT_POINTS + i];
    return NULL;
}

/* ---- running a layer --------------------------------------------------------------------------------------------- */

static void add_row(struct fold_sums *s, const float *x) {
    for (size_t j = 0; j < s->cols; j++) {
        float a = fabsf(x[j]);
        s->abs[j] += (double)a;
        s->sq[j] += (double)x[j] * x[j];
        if (a > s->max[j]) s->max[j] = a;
    }
    s->n++;
}

static int see(void *ctx, const struct model_seen *seen, struct err *e) {
    const struct fold_watch *w = ctx;
    struct fold_sums *s = sums_at(w, seen->point, seen->expert);
    const float *x;
    if (!s || !s->cols) return 0;
    if (model_seen_f32(seen, &x, e)) return e->code;
    for (size_t r = 0; r < seen->rows; r++) add_row(s, x + r * s->cols);
    if (s->gram) kernel_matmul_tn(s->cols, s->cols, seen->rows, kernel_f32(x), kernel_f32(x), 1, kernel_f32(s->gram));
    return 0;
}

static int make_sums(struct fold_sums *s, const struct fold_watch *w, enum model_point p, bool gram, struct err *e) {
    size_t n = s->cols = model_point_cols(w->config, p, w->layer);
    if (!n) return 0;
    s->abs = mem_array(n, sizeof *s->abs, e);
    s->sq = s->abs ? mem_array(n, sizeof *s->sq, e) : NULL;
    s->max = s->sq ? mem_array(n, sizeof *s->max, e) : NULL;
    if (s->max && gram) s->gram = mem_array(n, n * sizeof *s->gram, e);
    if (!s->max || (gram && !s->gram)) return e->code;
    memset(s->abs, 0, n * sizeof *s->abs);
    memset(s->sq, 0, n * sizeof *s->sq);
    memset(s->max, 0, n * sizeof *s->max);
    if (gram) memset(s->gram, 0, n * n * sizeof *s->gram);
    return 0;
}

void fold_watch_release(struct fold_watch *w) {
    for (size_t i = 0; w->sums && i < count_sums(w); i++) {
        mem_free(w->sums[i].abs);
        mem_free(w->sums[i].sq);
        mem_free(w->sums[i].max);
        mem_free(w->sums[i].gram);
    }
    mem_free(w->sums);
    w->sums = NULL;
}

int fold_watch_layer(struct fold_watch *w, const struct fold_model *m, uint32_t layer, struct err *e) {
    fold_watch_release(w);
    w->layer = layer;
    if (w->stats) return 0;
    size_t n = count_sums(w);
    int rc = 0;
    w->sums = mem_array(n, sizeof *w->sums, e);
    if (!w->sums) return e->code;
    memset(w->sums, 0, n * sizeof *w->sums);
    for (size_t i = 0; !rc && i < n; i++)
        rc = make_sums(&w->sums[i], w, i < POINTS ? points[i] : expert_points[(i - POINTS) % EXPERT_POINTS],
                       w->gram && i < POINTS, e);
    return rc ? rc : model_layerwise_watch(m->model, STATES_NOW, NULL, see, w, e);
}

/* ---- queries ----------------------------------------------------------------------------------------------------- */

/* Returns a matrix that reads at the point; statistics are stored by matrix. */
static struct model_slot reader_of(enum model_point p, uint32_t layer, uint32_t expert) {
    struct model_slot s = {.layer = layer, .expert = expert};
    switch (p) {
    case POINT_ATTN_IN: s.role = ROLE_Q; break;
    case POINT_O_IN: s.role = ROLE_O; break;
    case POINT_FFN_IN: s.role = ROLE_UP; break;
    case POINT_DOWN_IN: s.role = ROLE_DOWN; break;
    case POINT_EXPERT_IN: s.role = ROLE_EXPERT_UP; break;
    default: s.role = ROLE_EXPERT_DOWN; break;
    }
    return s;
}

static void ask_stats(const struct fold_watch *w, enum model_point p, uint32_t expert, struct fold_inputs *out) {
    struct model_slot s = reader_of(p, w->layer, expert);
    uint64_t cols = 0;
    *out = (struct fold_inputs){.sq = stats_input_sq(w->stats, s, &cols, &out->n)};
    out->abs = stats_input_abs(w->stats, s, &cols, &out->n);
    out->cols = (size_t)cols;
}

bool fold_watch_inputs(const struct fold_watch *w, enum model_point p, uint32_t expert, struct fold_inputs *out) {
    if (w->stats) {
        ask_stats(w, p, expert, out);
    } else {
        const struct fold_sums *s = sums_at(w, p, expert);
        *out = s ? (struct fold_inputs){s->cols, s->n, s->abs, s->sq, s->max, s->gram} : (struct fold_inputs){0};
    }
    return out->cols && out->n > 0;
}
