/* PCA: the principal axes of the residual stream as seen by the norms. */
#include <math.h>
#include <string.h>

#include "lib/fold/fold_internal.h"

/* ---- outputs of norms without their gains ------------------------------------------------------------------------ */

struct sums {
    const struct fold_model *f;
    size_t n;
    float *gram; /* [n][n] */
    float *z;    /* [rows of a pass][n] */
    size_t rows;
};

static const struct model_param *norm_at(const struct sums *s, const struct model_seen *seen) {
    struct model *m = model_layerwise_held(s->f->model);
    switch (seen->point) {
    case POINT_ATTN_IN: return model_param(m, ROLE_ATTN_NORM, seen->layer);
    case POINT_FFN_IN: return model_param(m, ROLE_FFN_NORM, seen->layer);
    case POINT_HEAD_IN: return model_param(m, ROLE_NORM, 0);
    default: return NULL;
    }
}

static int see(void *ctx, const struct model_seen *seen, struct err *e) {
    struct sums *s = ctx;
    const struct model_param *p = norm_at(s, seen);
    const float *x;
    if (!p) return 0;
    if (model_seen_f32(seen, &x, e)) return e->code;
    const float *gain = model_host_value(p);
    if (seen->rows > s->rows) {
        mem_free(s->z);
        s->rows = 0;
        s->z = mem_array(seen->rows, s->n * sizeof *s->z, e);
        if (!s->z) return e->code;
        s->rows = seen->rows;
    }
    for (size_t i = 0; i < seen->rows * s->n; i++) s->z[i] = gain[i % s->n] != 0 ? x[i] / gain[i % s->n] : 0;
    kernel_matmul_tn(s->n, s->n, seen->rows, kernel_f32(s->z), kernel_f32(s->z), 1, kernel_f32(s->gram));
    return 0;
}

/* ---- axes -------------------------------------------------------------------------------------------------------- */

/* Transposes v, so that row k becomes column k, with the sign that makes its largest element positive. */
static void arrange(const double *v, double *r, size_t n) {
    for (size_t k = 0; k < n; k++) {
        size_t top = 0;
        for (size_t i = 0; i < n; i++)
            if (fabs(v[k * n + i]) > fabs(v[k * n + top])) top = i;
        double sign = v[k * n + top] < 0 ? -1 : 1;
        for (size_t i = 0; i < n; i++) r[i * n + k] = sign * v[k * n + i];
    }
}

static int axes_of(const float *gram, double *r, size_t n, struct err *e) {
    double *a = mem_array(n, n * sizeof *a, e), *values = a ? mem_array(n, sizeof *values, e) : NULL;
    double *scratch = values ? mem_array(KERNEL_EIGEN_SCRATCH(n), sizeof *scratch, e) : NULL;
    int rc = scratch ? 0 : e->code;
    for (size_t i = 0; !rc && i < n * n; i++) {
        a[i] = ((double)gram[i] + gram[i % n * n + i / n]) / 2;
        if (!isfinite(a[i])) rc = err_set(e, ERR_DATA, "second moments of the residual stream are not finite");
    }
    if (!rc && !kernel_eigen(a, values, n, scratch))
        rc = err_set(e, ERR_DATA, "the second moments of the residual stream have no eigenvectors that are found");
    if (!rc) arrange(a, r, n);
    mem_free(a);
    mem_free(values);
    mem_free(scratch);
    return rc;
}

int fold_principal_axes(const struct fold_model *f, double *axes, struct err *e) {
    size_t n = model_layerwise_model(f->model)->config.hidden;
    struct sums s = {.f = f, .n = n};
    int rc = fold_check_r1(&model_layerwise_model(f->model)->config, e);
    if (rc) return rc;
    s.gram = mem_array(n, n * sizeof *s.gram, e);
    if (!s.gram) return e->code;
    memset(s.gram, 0, n * n * sizeof *s.gram);
    model_layerwise_tap(f->model, see, &s);
    rc = model_layerwise_run(f->model, f->scratch, f->in, f->n, NULL, NULL, e);
    if (!rc) rc = model_layerwise_logits(f->model, f->scratch, f->in, f->n, NULL, NULL, e);
    model_layerwise_tap(f->model, NULL, NULL);
    if (!rc) rc = axes_of(s.gram, axes, n, e);
    mem_free(s.gram);
    mem_free(s.z);
    return rc;
}
