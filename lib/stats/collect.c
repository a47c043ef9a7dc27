/* Collects activation statistics during forward passes. */
#include "lib/stats/stats_internal.h"

#include <math.h>

/* The number of observed positions of each sequence; NULL with *e set if memory is out. */
static const uint32_t *seen_lengths(struct stats *s, const struct model_seen *seen, struct err *e) {
    if (!seen->positions) return s->in->lengths;
    s->lengths.len = 0;
    if (buf_reserve(&s->lengths, s->in->n_seqs * sizeof(uint32_t), e)) return NULL;
    uint32_t *lengths = (uint32_t *)(void *)s->lengths.data, end = 0;
    for (size_t q = 0, r = 0; q < s->in->n_seqs; q++) {
        size_t first = r;
        end += s->in->lengths[q];
        while (r < seen->rows && seen->positions[r] < end) r++;
        lengths[q] = (uint32_t)(r - first);
    }
    return lengths;
}

static double angle(const float *x, const float *y, size_t n) {
    double xx = 0, yy = 0, xy = 0;
    for (size_t i = 0; i < n; i++) xx += (double)x[i] * x[i], yy += (double)y[i] * y[i], xy += (double)x[i] * y[i];
    double cosine = xx > 0 && yy > 0 ? xy / sqrt(xx * yy) : 0;
    return acos(fmax(-1, fmin(1, cosine)));
}

/* Keeps the states of each sequence's last position, and adds their angles to the inputs of this
 * layer and all before it. */
static int collect_angles(struct stats *s, const struct model_seen *seen, const float *x, struct err *e) {
    const double pi = 3.14159265358979323846;
    size_t n = s->in->n_seqs, at = seen->point == POINT_EMBED ? 0 : seen->layer + 1;
    size_t first = model_axis_size(&s->config, AXIS_INPUT, 0), widest = first > seen->cols ? first : seen->cols;
    if (s->config.hidden > widest) widest = s->config.hidden;
    if (at == 0) s->ends.len = 0;
    if (at == 0 && buf_reserve(&s->ends, (s->config.n_layers + 1) * n * widest * sizeof(float), e)) return e->code;
    float *ends = (float *)(void *)s->ends.data;
    for (size_t q = 0, row = 0; q < n; q++) {
        row += s->in->lengths[q];
        float *end = ends + (at * n + q) * widest;
        memcpy(end, x + (row - 1) * seen->cols, seen->cols * sizeof *end);
        for (size_t i = 0; i < at; i++) {
            bool same = model_axis_size(&s->config, AXIS_INPUT, (uint32_t)i) == seen->cols;
            double by = same ? angle(ends + (i * n + q) * widest, end, seen->cols) / pi : 0.5;
            s->layers[seen->layer].angular[i] += by;
        }
    }
    return 0;
}

/* Influence and angles of the residual stream: a layer's output is the next layer's input. */
static int collect_residual(struct stats *s, const struct model_seen *seen, const float *x, struct err *e) {
    size_t n = seen->rows * seen->cols;
    bool same = seen->point == POINT_EMBED || model_axis_size(&s->config, AXIS_INPUT, seen->layer) == seen->cols;
    if (!same) /* vectors of different sizes have no angle; counted as a right angle */
        s->layers[seen->layer].influence += (double)seen->rows;
    else if (seen->point == POINT_LAYER)
        s->layers[seen->layer].influence += kernel_cosine_distance_sum(kernel_f32((const float *)s->previous.data),
                                                                       kernel_f32(x), seen->rows, seen->cols);
    if (collect_angles(s, seen, x, e)) return e->code;
    s->previous.len = 0;
    int rc = buf_reserve(&s->previous, n * sizeof *x, e);
    if (!rc) memcpy(s->previous.data, x, n * sizeof *x);
    return rc;
}

static void add_signed(double *sum, const float *x, size_t rows, size_t cols) {
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < cols; i++) sum[i] += x[r * cols + i];
}

/* The rows are half of the batch's, now the first and now the second: the start of a sequence is unlike the rest. */
static void collect_half(struct stats *s, struct point_sums *p, const float *x, size_t rows, float *inputs) {
    size_t middle = rows / 2, first = s->batches % 2 ? middle : 0, n = s->batches % 2 ? rows - middle : middle;
    add_half(p->half, p, x + first * p->cols, n, inputs);
}

/* Keeps each of the positions so far with the same chance. */
static int keep_rows(struct stats *s, struct point_sums *p, const float *x, size_t rows, struct err *e) {
    size_t bytes = p->cols * sizeof *x;
    for (size_t r = 0; r < rows; r++, p->seen++) {
        struct rng draw = rng_init(s->moments.seed, p->seen);
        uint64_t at = p->seen < s->moments.rows ? p->seen : rng_below(&draw, p->seen + 1);
        if (at >= s->moments.rows) continue;
        if (at * bytes < p->rows.len)
            memcpy(p->rows.data + at * bytes, x + r * p->cols, bytes);
        else if (buf_append(&p->rows, x + r * p->cols, bytes, e))
            return e->code;
    }
    return 0;
}

static int collect_moments(struct stats *s, struct point_sums *p, const float *x, size_t rows, struct err *e) {
    double longest;
    if (stats_longest_row(x, rows, p->cols, &longest, e)) return e->code;
    s->bounded.len = 0;
    if (buf_reserve(&s->bounded, rows * (p->cols + p->half_rows + 1) * sizeof *x, e)) return e->code;
    float *y = (float *)(void *)s->bounded.data, *inputs = y + rows * p->cols, *by = inputs + rows * p->half_rows;
    kernel_bound_rows(by, y, NULL, kernel_f32(x), kernel_none(DT_F32), longest, rows, p->cols);
    if (p->sampled) return keep_rows(s, p, y, rows, e);
    kernel_gram(p->cols, rows, y, 1, p->gram);
    collect_half(s, p, y, rows, inputs);
    return 0;
}

static int collect_point(void *ctx, const struct model_seen *seen, struct err *e) {
    struct stats *s = ctx;
    const float *x;
    if (seen->point >= POINT_COUNT) return 0; /* not the input of a matrix */
    if (model_seen_f32(seen, &x, e)) return e->code;
    if (seen->point == POINT_EXPERT_OUT) {
        struct expert_sums *expert = &s->layers[seen->layer].experts[seen->expert];
        expert->count += (double)seen->rows;
        expert->output += kernel_row_norms_sum(kernel_f32(x), seen->rows, seen->cols);
        return 0;
    }
    struct point_sums *sums = point_of(s, seen->point, seen->layer, seen->expert);
    if (seen->cols != sums->cols)
        return err_set(e, ERR_DATA, "the statistics are of another model: %zu columns against %zu", sums->cols,
                       seen->cols);
    const uint32_t *lengths = seen_lengths(s, seen, e);
    if (!lengths) return e->code;
    kernel_col_sums(sums->sum[SUM_ABS], sums->sum[SUM_SQ], kernel_f32(x), seen->rows, seen->cols);
    add_signed(sums->sum[SUM], x, seen->rows, seen->cols);
    kernel_seq_mean_abs_sq(sums->sum[SEQ_SQ], kernel_f32(x), lengths, s->in->n_seqs, seen->cols);
    if (sums->stride && collect_moments(s, sums, x, seen->rows, e)) return e->code;
    return seen->point == POINT_EMBED || seen->point == POINT_LAYER ? collect_residual(s, seen, x, e) : 0;
}

int stats_collect(struct stats *s, struct model *m, struct grad_tape *scratch, const struct model_input *in,
                  struct err *e) {
    s->in = in;
    int rc = model_infer(m, scratch, in, collect_point, s, NULL, NULL, e);
    if (rc) return rc;
    s->positions += in->n_positions;
    s->sequences += in->n_seqs;
    s->batches++;
    return 0;
}

struct gradients {
    struct stats *s;
    const struct model *m;
};

/* sums[i] += |w dL/dw| over the tensor's row or column i. */
static void add_products(double *sums, const struct model_param *p, bool rows) {
    const float *w = model_host_value(p), *g = model_host_grad(p);
    uint64_t n = p->desc.dims[0], cols = p->desc.rank == 2 ? p->desc.dims[1] : 1;
    for (uint64_t r = 0; r < n; r++)
        for (uint64_t i = 0; i < cols; i++) sums[rows ? r : i] += fabs((double)w[r * cols + i] * g[r * cols + i]);
}

static void add_layer(void *ctx, size_t layer, int thread) {
    const struct gradients *g = ctx;
    size_t end = model_slot_of_layer(&g->m->config, (uint32_t)layer + 1);
    (void)thread;
    for (size_t i = model_slot_of_layer(&g->m->config, (uint32_t)layer); i < end; i++) {
        const struct model_param *p = &g->m->params[i];
        const struct model_role_info *info = model_role_info(p->slot.role);
        bool is_first = info->out && model_rank(&g->m->config, p->slot.role, p->slot.layer);
        double *rows = is_first ? NULL : taylor_of(g->s, info->rows, p->slot),
               *cols = taylor_of(g->s, info->cols, p->slot);
        if (rows && p->grad_begun) add_products(rows, p, true);
        if (cols && p->grad_begun) add_products(cols, p, false);
    }
}

static int add_gradients(void *ctx, const struct model *m, struct err *e) {
    struct gradients g = {ctx, m};
    (void)e;
    parallel_for(m->config.n_layers, add_layer, &g);
    return 0;
}

int stats_collect_gradients(struct stats *s, struct model *m, struct grad_tape *recording, const struct model_input *in,
                            struct err *e) {
    struct stats_labels next = {.drawn = false};
    s->gradients = true;
    return stats_each_gradient(m, recording, in, &next, add_gradients, s, e);
}
