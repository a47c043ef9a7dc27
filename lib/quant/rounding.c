/* Moves codes and scales of one matrix on their grid by gradients. */
#include <string.h>

#include "lib/quant/learn.h"

/* ---- memory ---- */

int rounding_new(struct rounding *r, enum dtype dtype, size_t rows, size_t cols, const float *gram,
                 const unsigned char *packed, struct err *e) {
    *r = (struct rounding){.gram = gram};
    int rc = grid_new(&r->g, dtype, rows, cols, e);
    if (rc) return rc;
    r->kept = mem_array(1, grid_state_bytes(&r->g), e);
    r->last = r->kept ? mem_array(1, grid_state_bytes(&r->g), e) : NULL;
    r->row_power = r->last ? mem_array(rows, sizeof *r->row_power, e) : NULL;
    r->gradient = r->row_power ? mem_array(rows, cols * sizeof *r->gradient, e) : NULL;
    if (!r->gradient) return e->code;
    grid_take(&r->g, packed);
    rounding_keep(r);
    return 0;
}

void rounding_release(struct rounding *r) {
    grid_release(&r->g);
    mem_free(r->kept);
    mem_free(r->last);
    mem_free(r->row_power);
    mem_free(r->gradient);
    mem_free(r->rest);
    mem_free(r->start);
    *r = (struct rounding){0};
}

/* ---- states ---- */

void rounding_accept(struct rounding *r, const float *gradient) {
    memcpy(r->last, r->g.stored, grid_state_bytes(&r->g));
    memcpy(r->gradient, gradient, r->g.rows * r->g.cols * sizeof *gradient);
}

void rounding_back(struct rounding *r) {
    memcpy(r->g.stored, r->last, grid_state_bytes(&r->g));
    for (size_t i = 0; i < r->g.rows; i++)
        for (size_t b = 0; b < r->g.blocks; b++) grid_read_scales(&r->g, i, b);
}

void rounding_keep(struct rounding *r) {
    memcpy(r->kept, r->g.stored, grid_state_bytes(&r->g));
}

struct values {
    const struct grid *g;
    float *value;
};

static void put_row(void *ctx, size_t row, int thread) {
    const struct values *v = ctx;
    float *value = v->value + row * v->g->cols;
    (void)thread;
    for (size_t j = 0; j < v->g->cols; j++) value[j] = grid_value(v->g, row, j, *grid_code(v->g, row, j));
}

void rounding_value(const struct rounding *r, float *value) {
    parallel_for(r->g.rows, put_row, &(struct values){&r->g, value});
}

void rounding_put(const struct rounding *r, unsigned char *packed) {
    struct grid kept = r->g; /* a view of that state, without decoded scales */
    kept.scales = kept.mins = NULL;
    grid_view(&kept, r->kept);
    for (size_t i = 0; i < kept.rows; i++) grid_put(&kept, i, packed + i * kept.blocks * kept.block_bytes);
}

/* ---- steps on a sample ---- */

int rounding_sampled(struct rounding *r, double scale, const float *gradient, struct err *e) {
    size_t n = r->g.rows * r->g.cols;
    if (!(r->rest = mem_array(n, sizeof *r->rest, e))) return e->code;
    if (!(r->start = mem_array(n, sizeof *r->start, e))) return e->code;
    for (size_t i = 0; i < n; i++) r->rest[i] = (float)(-scale * gradient[i]);
    return 0;
}

void rounding_rest(struct rounding *r, const float *gradient, const float *value) {
    size_t n = r->g.rows * r->g.cols;
    for (size_t i = 0; i < n; i++) r->rest[i] += gradient[i];
    memcpy(r->start, value, n * sizeof *value);
}

double rounding_extend(const struct rounding *r, double scale, float *gradient, const float *value) {
    size_t n = r->g.rows * r->g.cols;
    double change = 0;
    for (size_t i = 0; i < n; i++) {
        gradient[i] = (float)(scale * gradient[i]) + r->rest[i];
        change += (double)r->rest[i] * (value[i] - r->start[i]);
    }
    return change;
}

/* ---- a step ---- */

void rounding_probe(struct rounding *r, const float *probe) {
    for (size_t i = 0; i < r->g.rows; i++)
        r->row_power[i] += kernel_sum_squares(kernel_f32(probe + i * r->g.cols), r->g.cols);
}

/*
 * grid_refine minimises (t - q)^T H (t - q) given its gradient in q, -2 (t - q) H. Divided by the row's b and the
 * damping, the loss has that form. The squared norm of a probe is b times the sum of squares of the inputs, so b is its
 * sum over the row divided by the trace.
 */
int rounding_step(struct rounding *r, double damp, float *scratch, struct err *e) {
    static const double anything = 1e-30; /* initial error, small enough that grid_refine always does its sweep */
    size_t n = r->g.cols;
    double trace = 0;
    for (size_t j = 0; j < n; j++) trace += r->gram[j * (n + 1)];
    for (size_t i = 0; i < r->g.rows; i++) {
        double b = trace > 0 ? r->row_power[i] / trace : 0;
        for (size_t j = 0; j < n; j++)
            scratch[i * n + j] = b > 0 ? (float)(-r->gradient[i * n + j] / (2 * b * damp)) : 0;
    }
    return grid_refine(&r->g, r->gram, scratch, anything, 1, e);
}
