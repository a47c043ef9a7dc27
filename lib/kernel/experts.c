/* Mixtures of experts: routing weights, and moving rows to experts and back. */
#include <math.h>

#include "lib/kernel/kernel_internal.h"

/* ---- routing ---- */

struct route {
    const float *logits, *dweights, *kept;
    float *probs, *weights, *dlogits;
    uint32_t *ids;
    const uint32_t *chosen;
    size_t experts, k;
    bool normalise;
};

static void softmax_row(float *p, const float *x, size_t n) {
    float max = x[0];
    double sum = 0;
    for (size_t i = 1; i < n; i++) max = x[i] > max ? x[i] : max;
    for (size_t i = 0; i < n; i++) sum += p[i] = expf(x[i] - max);
    for (size_t i = 0; i < n; i++) p[i] = (float)(p[i] / sum);
}

/* The k largest, descending, ties by lower index, by insertion, as rows are short. */
static void largest(uint32_t *ids, float *values, const float *p, size_t n, size_t k) {
    size_t have = 0;
    for (size_t i = 0; i < n; i++) {
        size_t at = have;
        while (at > 0 && p[i] > values[at - 1]) at--;
        if (at == k) continue;
        if (have < k) have++;
        for (size_t j = have - 1; j > at; j--) {
            ids[j] = ids[j - 1];
            values[j] = values[j - 1];
        }
        ids[at] = (uint32_t)i;
        values[at] = p[i];
    }
}

static void route_piece(void *ctx, size_t begin, size_t end) {
    const struct route *c = ctx;
    for (size_t r = begin; r < end; r++) {
        float *p = c->probs + r * c->experts, *w = c->weights + r * c->k, sum = 0;
        softmax_row(p, c->logits + r * c->experts, c->experts);
        largest(c->ids + r * c->k, w, p, c->experts, c->k);
        for (size_t j = 0; j < c->k; j++) sum += w[j];
        for (size_t j = 0; j < c->k && c->normalise; j++) w[j] /= sum;
    }
}

void kernel_route(struct kernel_array probs, uint32_t *ids, struct kernel_array weights, struct kernel_array logits,
                  size_t rows, size_t experts, size_t k, bool normalise) {
    PROFILE(ELEMENTWISE);
    struct route c = {.logits = host_f32(logits), .probs = host_f32(probs), .weights = host_f32(weights), .ids = ids};
    c.experts = experts;
    c.k = k;
    c.normalise = normalise;
    kernel_split(rows, piece_rows(experts), route_piece, &c);
}

/* With p = softmax(x), w_j = p_j / s and s their sum: dp_j = (dw_j - sum_i w_i dw_i) / s; not normalized: dp_j = dw_j;
 * for all others 0. Then dx_i = p_i (dp_i - sum_j p_j dp_j). */
static void route_backward_piece(void *ctx, size_t begin, size_t end) {
    const struct route *c = ctx;
    for (size_t r = begin; r < end; r++) {
        const float *p = c->kept + r * c->experts, *dw = c->dweights + r * c->k;
        const uint32_t *ids = c->chosen + r * c->k;
        float *dx = c->dlogits + r * c->experts;
        double s = 0, mean = 0, inner = 0;
        for (size_t j = 0; j < c->k; j++) {
            s += p[ids[j]];
            inner += (double)p[ids[j]] * dw[j];
        }
        if (c->normalise) {
            mean = inner / s;
            inner = 0; /* sum_j p_j dp_j: weights that are normalized always sum to 1 */
        } else
            s = 1;
        for (size_t i = 0; i < c->experts; i++) dx[i] = (float)(-p[i] * inner);
        for (size_t j = 0; j < c->k; j++) dx[ids[j]] = (float)(p[ids[j]] * ((dw[j] - mean) / s - inner));
    }
}

void kernel_route_backward(struct kernel_array dlogits, struct kernel_array dweights, const uint32_t *ids,
                           struct kernel_array probs, size_t rows, size_t experts, size_t k, bool normalise) {
    PROFILE(ELEMENTWISE);
    struct route c = {
        .dlogits = host_f32(dlogits), .dweights = host_f32(dweights), .chosen = ids, .kept = host_f32(probs)};
    c.experts = experts;
    c.k = k;
    c.normalise = normalise;
    kernel_split(rows, piece_rows(experts), route_backward_piece, &c);
}

/* A counting sort, which is stable. */
void kernel_group(uint32_t *starts, uint32_t *slots, uint32_t *rows, const uint32_t *ids, size_t n, size_t k,
                  size_t experts) {
    PROFILE(ELEMENTWISE);
    memset(starts, 0, (experts + 1) * sizeof *starts);
    for (size_t i = 0; i < n * k; i++) starts[ids[i] + 1]++;
    for (size_t e = 0; e < experts; e++) starts[e + 1] += starts[e];
    for (size_t i = 0; i < n * k; i++) {
        uint32_t at = starts[ids[i]]++;
        slots[at] = (uint32_t)i;
        rows[at] = (uint32_t)(i / k);
    }
    for (size_t e = experts; e > 0; e--) starts[e] = starts[e - 1];
    starts[0] = 0;
}

void kernel_spread_weights(struct kernel_array y, const uint32_t *ids, struct kernel_array weights, size_t rows,
                           size_t experts, size_t k) {
    PROFILE(ELEMENTWISE);
    float *to = host_f32(y);
    const float *w = host_f32(weights);
    memset(to, 0, rows * experts * sizeof *to);
    for (size_t i = 0; i < rows * k; i++) to[i / k * experts + ids[i]] = w[i];
}

/* ---- rows ---- */

struct moving {
    const struct simd *v;
    struct view y, x;
    float *sum, *dweights;
    const float *dy, *weights;
    const uint32_t *rows, *slots;
    size_t d;
};

static void gather_rows_piece(void *ctx, size_t begin, size_t end) {
    const struct moving *c = ctx;
    size_t bytes = kernel_array_bytes(c->x.dtype, c->d);
    for (size_t i = begin; i < end; i++)
        memcpy((char *)c->y.data + i * bytes, (const char *)c->x.data + c->rows[i] * bytes, bytes);
}

void kernel_gather_rows(struct kernel_array y, struct kernel_array x, const uint32_t *rows, size_t n, size_t d) {
    PROFILE(ELEMENTWISE);
    kernel_split(n, piece_rows(d), gather_rows_piece,
                 &(struct moving){.y = view_of(y), .x = view_of(x), .rows = rows, .d = d});
}

static void scatter_weighted_piece(void *ctx, size_t begin, size_t end) {
    const struct moving *c = ctx;
    float scratch[WIDENED];
    for (size_t i = begin; i < end; i++)
        for (size_t at = 0, n; at < c->d; at += n) {
            n = smaller(WIDENED, c->d - at);
            c->v->axpy(c->sum + c->rows[i] * c->d + at, c->weights[c->slots[i]],
                       array_get(c->v, c->x, i * c->d + at, n, scratch), n);
        }
}

void kernel_scatter_weighted(struct kernel_array y, struct kernel_array x, struct kernel_array weights,
                             const uint32_t *slots, const uint32_t *rows, size_t n, size_t d) {
    PROFILE(ELEMENTWISE);
    struct moving c = {.v = simd(), .sum = host_f32(y), .x = view_of(x), .slots = slots, .rows = rows, .d = d};
    c.weights = host_f32(weights);
    kernel_split(n, piece_rows(d), scatter_weighted_piece, &c);
}

static void scatter_backward_piece(void *ctx, size_t begin, size_t end) {
    const struct moving *c = ctx;
    float x_scratch[WIDENED], y_scratch[WIDENED];
    for (size_t i = begin; i < end; i++) {
        double dot = 0;
        for (size_t at = 0, n; at < c->d; at += n) {
            const float *dy = c->dy + c->rows[i] * c->d + at;
            n = smaller(WIDENED, c->d - at);
            dot += c->v->dot(dy, array_get(c->v, c->x, i * c->d + at, n, x_scratch), n);
            c->v->scale_copy(array_target(c->y, i * c->d + at, y_scratch), c->weights[c->slots[i]], dy, n);
            array_put(c->v, c->y, i * c->d + at, n, y_scratch);
        }
        c->dweights[c->slots[i]] = (float)dot;
    }
}

void kernel_scatter_weighted_backward(struct kernel_array dx, struct kernel_array dweights, struct kernel_array dy,
                                      struct kernel_array x, struct kernel_array weights, const uint32_t *slots,
                                      const uint32_t *rows, size_t n, size_t d) {
    PROFILE(ELEMENTWISE);
    struct moving c = {.v = simd(), .y = view_of(dx), .x = view_of(x), .d = d};
    c.dweights = host_f32(dweights);
    c.dy = host_f32(dy);
    c.weights = host_f32(weights);
    c.slots = slots;
    c.rows = rows;
    kernel_split(n, piece_rows(d), scatter_backward_piece, &c);
}

/* ---- a gate for each row ---- */

struct gated_rows {
    const struct simd *v;
    struct view y, dy, x;
    const float *gate;
    float *dgate;
    size_t d;
};

static float sigmoid(float x) {
    return 1 / (1 + expf(-x));
}

static void gate_rows_piece(void *ctx, size_t begin, size_t end) {
    const struct gated_rows *c = ctx;
    float x_scratch[WIDENED], y_scratch[WIDENED];
    for (size_t r = begin; r < end; r++)
        for (size_t at = 0, n; at < c->d; at += n) {
            n = smaller(WIDENED, c->d - at);
            const float *x = array_get(c->v, c->x, r * c->d + at, n, x_scratch);
            c->v->scale_copy(array_target(c->y, r * c->d + at, y_scratch), sigmoid(c->gate[r]), x, n);
            array_put(c->v, c->y, r * c->d + at, n, y_scratch);
        }
}

void kernel_gate_rows(struct kernel_array y, struct kernel_array x, struct kernel_array gate, size_t rows, size_t d) {
    PROFILE(ELEMENTWISE);
    struct gated_rows c = {.v = simd(), .y = view_of(y), .x = view_of(x), .gate = host_f32(gate), .d = d};
    kernel_split(rows, piece_rows(d), gate_rows_piece, &c);
}

static void gate_rows_backward_piece(void *ctx, size_t begin, size_t end) {
    const struct gated_rows *c = ctx;
    float x_scratch[WIDENED], dy_scratch[WIDENED], dx_scratch[WIDENED];
    for (size_t r = begin; r < end; r++) {
        float s = sigmoid(c->gate[r]);
        double dot = 0;
        for (size_t at = 0, n; at < c->d; at += n) {
            n = smaller(WIDENED, c->d - at);
            const float *dy = array_get(c->v, c->dy, r * c->d + at, n, dy_scratch);
            dot += c->v->dot(dy, array_get(c->v, c->x, r * c->d + at, n, x_scratch), n);
            c->v->scale_copy(array_target(c->y, r * c->d + at, dx_scratch), s, dy, n);
            array_put(c->v, c->y, r * c->d + at, n, dx_scratch);
        }
        c->dgate[r] = (float)(dot * s * (1 - s));
    }
}

void kernel_gate_rows_backward(struct kernel_array dx, struct kernel_array dgate, struct kernel_array dy,
                               struct kernel_array x, struct kernel_array gate, size_t rows, size_t d) {
    PROFILE(ELEMENTWISE);
    struct gated_rows c = {.v = simd(), .y = view_of(dx), .dy = view_of(dy), .x = view_of(x), .d = d};
    c.dgate = host_f32(dgate);
    c.gate = host_f32(gate);
    kernel_split(rows, piece_rows(d), gate_rows_backward_piece, &c);
}
