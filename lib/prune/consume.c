/* Refits the matrix that reads a pruned axis to the original outputs of its block. */
#include <string.h>

#include "lib/prune/second_order.h"

/* Gathers the kept rows and columns of the Gram matrix (both), or the kept columns of b or w. */
static float *gather(const float *x, size_t rows, size_t cols, const struct prune_kept *kept, bool both,
                     struct err *e) {
    size_t n = kept->at ? kept->n : cols, m = both ? n : rows;
    float *out = mem_array(m, n * sizeof *out, e);
    for (size_t r = 0; out && r < m; r++) {
        const float *from = x + (both && kept->at ? kept->at[r] : r) * cols;
        for (size_t i = 0; i < n; i++) out[r * n + i] = from[kept->at ? kept->at[i] : i];
    }
    return out;
}

/* w = (b + a w0)(G + a)^-1 for the kept inputs, with a the damping term. */
static int solve(const struct prune_consumer *c, const struct prune_kept *kept, float *gram, float *b, float *w,
                 struct err *e) {
    struct obs_options how = {.damp = c->damp, .tries = PRUNE_TRIES};
    struct obs_factor *f;
    size_t n = kept->at ? kept->n : c->w.cols;
    int rc = obs_factor_new(&f, gram, n, &how, e);
    if (rc) return rc;
    for (size_t i = 0; i < c->w.rows * n; i++) b[i] += (float)(f->added * w[i]);
    rc = obs_solve(f, b, w, c->w.rows, e);
    obs_factor_free(f);
    return rc;
}

static void put(const struct prune_consumer *c, const struct prune_kept *kept, const float *w) {
    size_t n = kept->at ? kept->n : c->w.cols;
    memset(c->w.x, 0, c->w.rows * c->w.cols * sizeof *c->w.x);
    for (size_t r = 0; r < c->w.rows; r++)
        for (size_t i = 0; i < n; i++) c->w.x[r * c->w.cols + (kept->at ? kept->at[i] : i)] = w[r * n + i];
    for (size_t r = 0; c->bias && r < c->w.rows; r++) {
        double gap = c->wanted[r];
        for (size_t i = 0; i < c->w.cols; i++) gap -= (double)c->w.x[r * c->w.cols + i] * c->sum[i];
        c->bias[r] += (float)(gap / c->n);
    }
}

int prune_refit_columns(const struct prune_consumer *c, const struct prune_kept *kept, struct err *e) {
    float *gram = gather(c->gram, c->w.cols, c->w.cols, kept, true, e);
    float *b = gram ? gather(c->b, c->w.rows, c->w.cols, kept, false, e) : NULL;
    float *w = b ? gather(c->w.x, c->w.rows, c->w.cols, kept, false, e) : NULL;
    int rc = w ? solve(c, kept, gram, b, w, e) : e->code;
    if (!rc) put(c, kept, w);
    mem_free(gram);
    mem_free(b);
    mem_free(w);
    return rc;
}

int prune_consumer_units(const struct prune_consumer *c, size_t width, uint32_t keep, uint32_t *kept, double *cost,
                         struct err *e) {
    struct obs_options how = {.damp = c->damp, .tries = PRUNE_TRIES};
    struct obs_factor *f = NULL;
    size_t n = c->w.cols, size = c->w.rows * n;
    float *w = mem_array(size, sizeof *w, e), *inverse = w ? mem_array(n, n * sizeof *inverse, e) : NULL;
    float *b = inverse ? mem_array(size, sizeof *b, e) : NULL;
    int rc = b ? obs_factor_new(&f, c->gram, n, &how, e) : e->code;
    if (!rc) {
        for (size_t i = 0; i < size; i++) b[i] = (float)(c->b[i] + f->added * c->w.x[i]);
        rc = obs_solve(f, b, w, c->w.rows, e);
    }
    if (!rc) {
        struct prune_matrix best = {.x = w, .rows = c->w.rows, .cols = n};
        kernel_matmul_tn(n, n, n, kernel_f32(f->u), kernel_f32(f->u), 0, kernel_f32(inverse));
        rc = cost ? prune_unit_costs(&best, inverse, width, cost, e)
                  : prune_greedy(&best, inverse, width, keep, kept, e);
    }
    obs_factor_free(f);
    mem_free(b);
    mem_free(inverse);
    mem_free(w);
    return rc;
}
