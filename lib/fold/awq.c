/* AWQ: scales derived from the mean magnitude of activations. */
#include <math.h>
#include <string.h>

#include "lib/fold/fold_internal.h"

#define GRID    20   /* ratios 0, 1/20 .. 19/20 */
#define MIN_RAW 1e-4 /* lower limit for the power of a channel's magnitude */

/* A matrix that reads the pair's output; and the memory for trying scales on it. */
struct reader {
    const struct model_param *param;
    enum dtype to;
    struct fold_inputs in;
    size_t rows, cols;
};
struct search {
    const struct fold_scaling *s;
    const struct fold_pair *p;
    struct reader *readers; /* [n], those that will be quantized */
    size_t n;
    float *scaled, *product; /* [largest matrix] */
    float *importance, *scratch;
    unsigned char *packed;
};

/* ---- the error of a scale ---------------------------------------------------------------------------------------- */

struct errors {
    const struct search *k;
    const struct reader *r;
    const float *scale;
    float *back; /* [rows][cols]: w scale, rounded; becomes the error in w */
    double *sum; /* [rows], weighted by the squares of the inputs */
};

static void error_row(void *ctx, size_t row, int thread) {
    const struct errors *j = ctx;
    const float *w = model_host_value(j->r->param) + row * j->r->cols;
    float *x = j->back + row * j->r->cols;
    double sum = 0;
    (void)thread;
    for (size_t i = 0; i < j->r->cols; i++) {
        x[i] = x[i] / j->scale[fold_pair_factor(j->k->p, i)] - w[i];
        sum += (double)x[i] * x[i] * j->r->in.sq[i];
    }
    j->sum[row] = sum;
}

/* sum over positions of |(Q(W s) / s - W) x|^2, computed from x x^T; without it, inputs are taken as uncorrelated. */
static int output_error(const struct search *k, const struct reader *r, const float *scale, double *out,
                        struct err *e) {
    struct errors j = {k, r, scale, k->scaled, mem_array(r->rows, sizeof *j.sum, e)};
    if (!j.sum) return e->code;
    parallel_for(r->rows, error_row, &j);
    *out = 0;
    for (size_t i = 0; i < r->rows; i++) *out += j.sum[i];
    mem_free(j.sum);
    if (!r->in.gram) return 0;
    kernel_matmul_nn(r->rows, r->cols, r->cols, kernel_f32(k->scaled), kernel_f32(r->in.gram), 0,
                     kernel_f32(k->product));
    *out = kernel_dot(kernel_f32(k->scaled), kernel_f32(k->product), r->rows * r->cols);
    return 0;
}

/* Returns the weights that quantize will use, the mean squares of the scaled inputs; NULL: it will use none. */
static const float *importance_of(const struct search *k, const struct reader *r, const float *scale) {
    bool any = false;
    for (size_t i = 0; i < r->cols; i++) {
        double s = scale[fold_pair_factor(k->p, i)];
        k->importance[i] = (float)(r->in.sq[i] / r->in.n / (s * s));
        any |= k->importance[i] > 0;
    }
    return any && dtype_info(r->to)->weighed ? k->importance : NULL;
}

static int try_reader(const struct search *k, const struct reader *r, const float *scale, double *error,
                      struct err *e) {
    const float *w = model_host_value(r->param);
    struct quant_rows rows = {.to = r->to,
                              .x = k->scaled,
                              .rows = r->rows,
                              .cols = r->cols,
                              .importance = importance_of(k, r, scale),
                              .scratch = k->scratch,
                              .packed = k->packed};
    for (size_t i = 0; i < r->rows * r->cols; i++) k->scaled[i] = w[i] * scale[fold_pair_factor(k->p, i % r->cols)];
    int rc = quant_round_rows(&rows, NULL, e);
    if (rc) return err_prefix(e, "tensor '%s'", r->param->desc.name);
    tensor_to_f32(r->to, k->packed, k->scaled, r->rows * r->cols);
    return output_error(k, r, scale, error, e);
}

static int try_scale(const struct search *k, const float *scale, double *error, struct err *e) {
    double sum = 0;
    int rc = 0;
    for (size_t i = 0; !rc && i < k->n; i++) {
        double one = 0;
        rc = try_reader(k, &k->readers[i], scale, &one, e);
        sum += one;
    }
    *error = sum;
    return rc;
}

/* ---- the search -------------------------------------------------------------------------------------------------- */

/* s = max(mean|x|^ratio, MIN_RAW) / sqrt(max s min s). */
static void make_scale(const double *magnitude, size_t n, double ratio, float *scale) {
    double low = INFINITY, high = 0;
    for (size_t i = 0; i < n; i++) {
        double s = pow(magnitude[i], ratio);
        if (!(s > MIN_RAW)) s = MIN_RAW;
        if (s < low) low = s;
        if (s > high) high = s;
    }
    for (size_t i = 0; i < n; i++) {
        double s = pow(magnitude[i], ratio);
        scale[i] = (float)((s > MIN_RAW ? s : MIN_RAW) / sqrt(low * high));
    }
}

/* Computes the mean magnitude for each factor, over the columns that share it. */
static void magnitudes(const struct fold_pair *p, const struct fold_inputs *in, double *out) {
    memset(out, 0, p->n * sizeof *out);
    for (size_t i = 0; i < in->cols; i++) out[fold_pair_factor(p, i)] += in->abs[i] / in->n / (double)p->share;
}

static int choose(const struct search *k, const struct fold_inputs *in, struct fold_report *r, float *best,
                  struct err *e) {
    double *magnitude = mem_array(k->p->n, sizeof *magnitude, e), first = 0, least = 0;
    float *scale = magnitude ? mem_array(k->p->n, sizeof *scale, e) : NULL;
    int rc = scale ? 0 : e->code;
    if (!rc) magnitudes(k->p, in, magnitude);
    for (int i = 0; !rc && i < GRID; i++) {
        double ratio = (double)i / GRID, error;
        make_scale(magnitude, k->p->n, ratio, scale);
        rc = try_scale(k, scale, &error, e);
        if (rc || (i && !(error < least))) continue;
        if (!i) first = error;
        least = error;
        r->ratio = ratio;
        memcpy(best, scale, k->p->n * sizeof *best);
    }
    r->error = first > 0 ? least / first : 1;
    mem_free(magnitude);
    mem_free(scale);
    return rc;
}

/* ---- matrices that read a pair ----------------------------------------------------------------------------------- */

static bool takes_part(const struct search *k, const struct model_param *p, struct reader *r) {
    const struct fold_scaling *s = k->s;
    if (!fold_pair_feeds(&s->m->config, k->p, p->slot) || !model_role_is_matrix(p->slot.role)) return false;
    *r = (struct reader){.param = p, .to = s->plan.choices[p - s->m->params].to};
    r->cols = tensor_row_elems(&p->desc);
    r->rows = p->n / r->cols;
    return dtype_info(r->to)->is_quantized &&
           fold_watch_inputs(s->watch, model_role_info(p->slot.role)->input, p->slot.expert, &r->in);
}

static int find_readers(struct search *k, struct err *e) {
    const struct model *m = k->s->m;
    size_t first = model_slot_of_layer(&m->config, k->p->from.layer), largest = 0, bytes = 0, cols = 0;
    size_t end = model_slot_of_layer(&m->config, k->p->from.layer + 1);
    k->readers = mem_array(end - first, sizeof *k->readers, e);
    if (!k->readers) return e->code;
    for (size_t i = first; i < end; i++) {
        struct reader *r = &k->readers[k->n];
        if (!takes_part(k, &m->params[i], r)) continue;
        size_t stored = r->rows * dtype_row_bytes(r->to, r->cols);
        if (m->params[i].n > largest) largest = m->params[i].n;
        if (stored > bytes) bytes = stored;
        if (r->cols > cols) cols = r->cols;
        k->n++;
    }
    if (!k->n) return 0;
    k->scaled = mem_array(largest, sizeof *k->scaled, e);
    k->product = k->scaled ? mem_array(largest, sizeof *k->product, e) : NULL;
    k->packed = k->product ? mem_array(bytes, 1, e) : NULL;
    k->importance = k->packed ? mem_array(cols, sizeof *k->importance, e) : NULL;
    k->scratch = k->importance ? mem_array((size_t)parallel_threads(), cols * sizeof *k->scratch, e) : NULL;
    return k->scratch ? 0 : e->code;
}

static void search_release(struct search *k) {
    mem_free(k->readers);
    mem_free(k->scaled);
    mem_free(k->product);
    mem_free(k->packed);
    mem_free(k->importance);
    mem_free(k->scratch);
}

int fold_awq(const struct fold_scaling *s, const struct fold_pair *p, struct fold_report *r, struct err *e) {
    struct search k = {.s = s, .p = p};
    struct fold_inputs in;
    float *scale = mem_array(p->n, sizeof *scale, e);
    int rc = scale ? find_readers(&k, e) : e->code;
    if (!rc && !k.n)
        r->obstacle = "nothing that reads it is quantized, or was seen";
    else if (!rc && fold_watch_inputs(s->watch, p->point, p->from.expert, &in)) {
        rc = choose(&k, &in, r, scale, e);
        if (!rc && r->ratio > 0) rc = fold_pair_scale(s->m, p, scale, s->changed, e);
    }
    search_release(&k);
    mem_free(scale);
    return rc;
}
