/* The principal axes of the residual stream, as the norms see it. */
#include <math.h>
#include <string.h>

#include "lib/fold/fold_internal.h"

/* ---- what comes out of norms, less their gains --------------------------------------------------------------------------- */

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
    if (!p) return 0;
    const float *gain = model_host_value(p);
    if (seen->rows > s->rows) {
        mem_free(s->z);
        s->rows = 0;
        s->z = mem_array(seen->rows, s->n * sizeof *s->z, e);
        if (!s->z) return e->code;
        s->rows = seen->rows;
    }
    for (size_t i = 0; i < seen->rows * s->n; i++) s->z[i] = gain[i % s->n] != 0 ? seen->x[i] / gain[i % s->n] : 0;
    kernel_matmul_tn(s->n, s->n, seen->rows, kernel_f32(s->z), kernel_f32(s->z), 1, kernel_f32(s->gram));
    return 0;
}

/* ---- eigenvectors ----------------------------------------------------------------------------------------------------------- */

/* Rows of a [n][n] are turned against each other until they are orthogonal, and those of v, at first the identity, along with them:
 * then v a a^T v^T is diagonal (one-sided Jacobi). */
struct jacobi {
    double *a, *v;
    size_t n, round;
    unsigned char *turned; /* [pairs] in this sweep */
};

#define SWEEPS     60
#define ORTHOGONAL 1e-13 /* the cosine of two rows */

static void turn(double *x, double *y, size_t n, double c, double s) {
    for (size_t i = 0; i < n; i++) {
        double a = x[i], b = y[i];
        x[i] = c * a - s * b;
        y[i] = s * a + c * b;
    }
}

/* The pairs of a round of a tournament: each row meets each other one once in n - 1 rounds (n even; the row n of an odd number is
 * nobody). */
static void pair_of(const struct jacobi *j, size_t i, size_t *p, size_t *q) {
    size_t even = j->n + j->n % 2, others = even - 1;
    *p = i ? (j->round + i) % others : others;
    *q = (j->round + others - i) % others;
}

static void turn_pair(void *ctx, size_t i, int thread) {
    const struct jacobi *j = ctx;
    size_t p, q, n = j->n;
    (void)thread;
    pair_of(j, i, &p, &q);
    if (p >= n || q >= n) return;
    double *x = j->a + p * n, *y = j->a + q * n, xx = 0, yy = 0, xy = 0;
    for (size_t k = 0; k < n; k++) xx += x[k] * x[k], yy += y[k] * y[k], xy += x[k] * y[k];
    if (fabs(xy) <= ORTHOGONAL * sqrt(xx * yy)) return;
    double zeta = (yy - xx) / (2 * xy), t = copysign(1, zeta) / (fabs(zeta) + sqrt(1 + zeta * zeta));
    double c = 1 / sqrt(1 + t * t);
    turn(x, y, n, c, c * t);
    turn(j->v + p * n, j->v + q * n, n, c, c * t);
    j->turned[i] = 1;
}

static bool sweep(struct jacobi *j) {
    size_t even = j->n + j->n % 2;
    bool any = false;
    memset(j->turned, 0, even / 2);
    for (j->round = 0; j->round + 1 < even; j->round++) parallel_for(even / 2, turn_pair, j);
    for (size_t i = 0; i < even / 2; i++) any |= j->turned[i];
    return any;
}

int fold_eigenvectors(double *a, double *v, size_t n, struct err *e) {
    struct jacobi j = {.a = a, .v = v, .n = n, .turned = mem_array(n / 2 + 1, 1, e)};
    bool any = true;
    if (!j.turned) return e->code;
    memset(v, 0, n * n * sizeof *v);
    for (size_t i = 0; i < n; i++) v[i * n + i] = 1;
    for (int s = 0; any && s < SWEEPS; s++) any = sweep(&j);
    mem_free(j.turned);
    return 0;
}

/* ---- in order ---------------------------------------------------------------------------------------------------------------- */

/* Row i of v becomes column k of r, by falling length of the rows of a; the sign is that which makes its largest element positive. */
static int arrange(const double *a, const double *v, double *r, size_t n, struct err *e) {
    double *length = mem_array(n, sizeof *length, e);
    if (!length) return e->code;
    for (size_t i = 0; i < n; i++) {
        length[i] = 0;
        for (size_t k = 0; k < n; k++) length[i] += a[i * n + k] * a[i * n + k];
    }
    for (size_t k = 0; k < n; k++) {
        size_t best = 0, top = 0;
        for (size_t i = 0; i < n; i++)
            if (length[i] > length[best]) best = i;
        for (size_t i = 0; i < n; i++)
            if (fabs(v[best * n + i]) > fabs(v[best * n + top])) top = i;
        double sign = v[best * n + top] < 0 ? -1 : 1;
        for (size_t i = 0; i < n; i++) r[i * n + k] = sign * v[best * n + i];
        length[best] = -1;
    }
    mem_free(length);
    return 0;
}

static int axes_of(const float *gram, double *r, size_t n, struct err *e) {
    double *a = mem_array(n, n * sizeof *a, e), *v = a ? mem_array(n, n * sizeof *v, e) : NULL;
    int rc = v ? 0 : e->code;
    for (size_t i = 0; !rc && i < n * n; i++) {
        a[i] = gram[i];
        if (!isfinite(a[i])) rc = err_set(e, ERR_DATA, "second moments of the residual stream are not finite");
    }
    if (!rc) rc = fold_eigenvectors(a, v, n, e);
    if (!rc) rc = arrange(a, v, r, n, e);
    mem_free(a);
    mem_free(v);
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
