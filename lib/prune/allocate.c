/* Distributes a total sparsity over the layers by the outliers of each (OWL). */
#include <math.h>
#include <string.h>

#include "lib/prune/prune_internal.h"

#define MOST  0.999 /* share of a layer */
#define STEPS 200   /* of bisection */

/* ---- a total ----------------------------------------------------------------------------------------------------- */

static double clamp(double share) {
    return share < 0 ? 0 : share > MOST ? MOST : share;
}

/* The number of zeros after shifting all shares by `by`. */
static double zeros_at(const double *share, const double *weights, size_t n, double by) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += weights[i] * clamp(share[i] + by);
    return sum;
}

void prune_shift_to(double *share, const double *weights, size_t n, double total) {
    double low = -1 - MOST, high = 2, sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += weights[i];
        low = fmin(low, -share[i]);
        high = fmax(high, 1 - share[i]);
    }
    for (int i = 0; i < STEPS; i++) {
        double by = low + (high - low) / 2;
        if (zeros_at(share, weights, n, by) < total * sum)
            low = by;
        else
            high = by;
    }
    for (size_t i = 0; i < n; i++) share[i] = clamp(share[i] + high);
}

/* ---- outliers ---------------------------------------------------------------------------------------------------- */

struct owl {
    const struct prune_owl *o;
    const struct model_config *config;
    struct buf norms;  /* f64: of the inputs of the current matrix */
    struct buf scores; /* f32: |w| times the norm of its input, over the matrices of the current layer */
    double *outliers;  /* [n_layers] share of outliers in the layer */
    double *weights;   /* [n_layers] */
};

static int add_matrix(struct owl *w, struct model_slot s, const struct tensor_desc *d, const void *data,
                      struct err *e) {
    uint64_t n = tensor_elems(d), cols = tensor_row_elems(d);
    bool found;
    w->weights[s.layer] += (double)n;
    w->norms.len = 0;
    int rc = buf_reserve(&w->norms, cols * sizeof(double), e);
    double *norms = (void *)w->norms.data;
    if (!rc) rc = prune_input_norms(w->o->stats, &w->o->squares, w->config, s, cols, norms, &found, e);
    if (rc || !found) return rc; /* an expert that no position was routed to */
    size_t first = w->scores.len / sizeof(float);
    if (buf_reserve(&w->scores, n * sizeof(float), e)) return e->code;
    float *x = (float *)(void *)w->scores.data + first;
    tensor_to_f32(d->dtype, data, x, n);
    for (uint64_t i = 0; i < n; i++) x[i] = (float)(fabs((double)x[i]) * norms[i % cols]);
    w->scores.len += n * sizeof(float);
    return 0;
}

/* The share of scores that exceed `outlier` times their mean. */
static void end_layer(struct owl *w, uint32_t layer) {
    const float *x = (const float *)(const void *)w->scores.data;
    size_t n = w->scores.len / sizeof *x, above = 0;
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i];
    for (size_t i = 0; i < n; i++) above += x[i] > w->o->outlier * sum / (double)n;
    w->outliers[layer] = n ? (double)above / (double)n : 0;
    w->scores.len = 0;
}

static int see_tensor(void *ctx, struct model_slot s, const struct tensor_desc *d, const cJSON *attrs, const void *data,
                      struct err *e) {
    struct owl *w = ctx;
    (void)attrs;
    if (!model_role_in_layer(s.role)) return 0;
    int rc = model_role_is_matrix(s.role) ? add_matrix(w, s, d, data, e) : 0;
    if (!rc && model_slot_ends_layer(w->config, s)) end_layer(w, s.layer);
    return rc ? err_prefix(e, "tensor '%s'", d->name) : 0;
}

/* The density rises linearly with the share of outliers, over a range of 2 * spread. */
static void spread(const struct owl *w, const struct prune_owl *o, double *share) {
    size_t n = w->config->n_layers;
    double low = INFINITY, high = 0;
    for (size_t i = 0; i < n; i++) low = fmin(low, w->outliers[i]), high = fmax(high, w->outliers[i]);
    for (size_t i = 0; i < n; i++)
        share[i] = o->share - (high > low ? (w->outliers[i] - low) / (high - low) * 2 * o->spread : 0);
    prune_shift_to(share, w->weights, n, o->share);
}

int prune_allocate_owl(struct stream_reader *in, const struct prune_owl *o, struct prune_allocation *out,
                       struct err *e) {
    struct model_head head = {0};
    struct stream_item item;
    struct owl w = {.o = o, .config = &head.config};
    int rc = model_head_read(in, &head, &item, e);
    if (!rc && o->stats) rc = stats_check(o->stats, &head.config, head.vocab_digest, e);
    size_t layers = head.config.n_layers;
    out->n_layers = (uint32_t)layers;
    if (!rc) out->outliers = w.outliers = arena_array(&out->memory, layers, sizeof *w.outliers, e);
    if (!rc) out->layer = w.outliers ? arena_array(&out->memory, layers, sizeof *out->layer, e) : NULL;
    if (!rc) w.weights = out->layer ? arena_array(&out->memory, layers, sizeof *w.weights, e) : NULL;
    if (!rc) out->n = model_slot_count(&head.config);
    if (!rc) out->share = w.weights ? arena_array(&out->memory, out->n, sizeof *out->share, e) : NULL;
    if (!rc && !out->share) rc = e->code;
    if (!rc) rc = model_each_tensor(in, &head.config, &item, see_tensor, &w, e);
    if (!rc) {
        spread(&w, o, out->layer);
        for (size_t i = 0; i < out->n; i++) {
            struct model_slot s = model_slot_at(&head.config, i);
            if (model_role_in_layer(s.role) && model_role_is_matrix(s.role)) out->share[i] = out->layer[s.layer];
        }
    }
    buf_release(&w.norms);
    buf_release(&w.scores);
    model_head_release(&head);
    return rc;
}

void prune_allocation_release(struct prune_allocation *a) {
    arena_release(&a->memory);
}
