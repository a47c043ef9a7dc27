/* Factors of Gram matrices, and error feedback and least squares with them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "lib/obs/obs.h"

#define GROWTH 10 /* factor of the damping from one try to the next */

/* ---- factors ----------------------------------------------------------------------------------------------------- */

/* Finds dead inputs, and the mean of the diagonal, where each of them counts as 1. */
static int read_diagonal(struct obs_factor *f, const float *gram, double *mean, struct err *e) {
    double sum = 0;
    for (size_t i = 0; i < f->n; i++) {
        double d = gram[i * f->n + i];
        if (!(d >= 0) || isinf(d))
            return err_set(e, ERR_DATA, "the Gram matrix has %g at input %zu: expected the sum of squares", d, i);
        f->dead[i] = d == 0;
        f->n_dead += d == 0;
        sum += d == 0 ? 1 : d;
    }
    *mean = sum / (double)f->n;
    return 0;
}

struct place {
    float diagonal;
    uint32_t input;
};

/* Descending; ties by input, so that the order does not depend on the sorting algorithm. */
static int compare_places(const void *a, const void *b) {
    const struct place *x = a, *y = b;
    if (x->diagonal != y->diagonal) return x->diagonal < y->diagonal ? 1 : -1;
    return x->input < y->input ? -1 : x->input > y->input;
}

static int make_order(struct obs_factor *f, const float *gram, struct err *e) {
    struct place *p = mem_array(f->n, sizeof *p, e);
    f->order = p ? mem_array(f->n, sizeof *f->order, e) : NULL;
    if (f->order) {
        for (size_t i = 0; i < f->n; i++) p[i] = (struct place){gram[i * f->n + i], (uint32_t)i};
        qsort(p, f->n, sizeof *p, compare_places);
        for (size_t i = 0; i < f->n; i++) f->order[i] = p[i].input;
    }
    mem_free(p);
    return f->order ? 0 : e->code;
}

struct arrangement {
    const struct obs_factor *f;
    const float *gram;
    float *h;
};

static void arrange_row(void *ctx, size_t i, int thread) {
    const struct arrangement *a = ctx;
    const struct obs_factor *f = a->f;
    size_t from = f->order ? f->order[i] : i;
    float *h = a->h + i * f->n;
    (void)thread;
    for (size_t j = i; j < f->n; j++) {
        size_t to = f->order ? f->order[j] : j;
        h[j] = from < to ? a->gram[from * f->n + to] : a->gram[to * f->n + from];
    }
    h[i] = (float)((f->dead[from] ? 1 : (double)a->gram[from * f->n + from]) + f->added);
}

static int factor(struct obs_factor *f, const float *gram, const struct obs_options *o, double mean, struct err *e) {
    float *h = mem_array(f->n, f->n * sizeof *h, e); /* below the diagonal 0 */
    size_t at = 0;
    bool done = false;
    if (!h) return e->code;
    f->damp = o->damp;
    for (unsigned i = 0; !done && i <= o->tries; i++) {
        if (i) f->damp *= GROWTH;
        f->added = f->damp * mean;
        parallel_for(f->n, arrange_row, &(struct arrangement){f, gram, h}); /* the damped upper triangle, in order */
        done = kernel_inverse_factor(f->u, h, f->n, &at);
    }
    mem_free(h);
    if (done) return 0;
    return err_set(e, ERR_DATA, "the Gram matrix does not factor (column %zu), even with a damping of %g", at, f->damp);
}

int obs_factor_new(struct obs_factor **out, const float *gram, size_t n, const struct obs_options *o, struct err *e) {
    double mean = 0;
    struct obs_factor *f = mem_zalloc(sizeof *f, e);
    if (!f) return e->code;
    f->n = n;
    f->u = mem_array(n, n * sizeof *f->u, e);
    f->dead = f->u ? mem_array(n, 1, e) : NULL;
    int rc = f->dead ? read_diagonal(f, gram, &mean, e) : e->code;
    if (!rc && o->act_order) rc = make_order(f, gram, e);
    if (!rc) rc = factor(f, gram, o, mean, e);
    if (rc)
        obs_factor_free(f);
    else
        *out = f;
    return rc;
}

void obs_factor_free(struct obs_factor *f) {
    if (!f) return;
    mem_free(f->u);
    mem_free(f->order);
    mem_free(f->dead);
    mem_free(f);
}

/* ---- error feedback and least squares ---------------------------------------------------------------------------- */

struct placing {
    const struct obs_factor *f;
    float *places, *inputs;
    size_t rows;
    bool back;
};

static void place_column(void *ctx, size_t i, int thread) {
    const struct placing *p = ctx;
    float *place = p->places + i * p->rows, *input = p->inputs + p->f->order[i] * p->rows;
    (void)thread;
    memcpy(p->back ? input : place, p->back ? place : input, p->rows * sizeof *place);
}

/* Moves columns of w, transposed, to processing order, or back; f->order must not be NULL. */
static void place_columns(const struct obs_factor *f, float *places, float *inputs, size_t rows, bool back) {
    parallel_for(f->n, place_column, &(struct placing){f, places, inputs, rows, back});
}

int obs_sweep(const struct obs_factor *f, const struct obs_method *m, const float *w, size_t rows, float *kept,
              double *loss, struct err *e) {
    struct kernel_feedback how = {.rows = rows, .cols = f->n, .u = f->u, .block = m->block};
    size_t bytes = rows * sizeof(float);
    float *columns = mem_alloc(f->n * bytes, e);
    float *places = columns && f->order ? mem_alloc(f->n * bytes, e) : columns;
    float *scratch = places ? mem_alloc((m->block < f->n ? m->block : f->n) * bytes, e) : NULL;
    if (scratch) {
        how.begin = m->begin, how.decide = m->decide, how.ctx = m->ctx;
        kernel_transpose(columns, w, rows, f->n);
        for (size_t i = 0; i < f->n; i++)
            if (f->dead[i]) kernel_fill(kernel_f32(columns + i * rows), rows, 0);
        if (f->order) place_columns(f, places, columns, rows, false);
        kernel_feedback(&how, places, scratch, loss);
        if (kept && f->order) place_columns(f, places, columns, rows, true);
        if (kept) kernel_transpose(kept, columns, f->n, rows);
    }
    mem_free(scratch);
    if (places != columns) mem_free(places);
    mem_free(columns);
    return scratch ? 0 : e->code;
}

/* Moves the columns of x to processing order in y, or back. */
static void permute(const struct obs_factor *f, float *y, const float *x, size_t rows, bool back) {
    for (size_t r = 0; r < rows; r++, x += f->n, y += f->n)
        for (size_t i = 0; i < f->n; i++) y[back ? f->order[i] : i] = x[back ? i : f->order[i]];
}

int obs_solve(const struct obs_factor *f, const float *b, float *w, size_t rows, struct err *e) {
    float *half = mem_alloc(rows * f->n * sizeof *half, e);
    if (!half) return e->code;
    if (f->order) permute(f, w, b, rows, false);
    kernel_upper_nt(rows, f->n, f->order ? w : b, f->u, half); /* b u^T */
    kernel_upper_nn(rows, f->n, half, f->u, w);
    if (f->order) {
        memcpy(half, w, rows * f->n * sizeof *half);
        permute(f, w, half, rows, true);
    }
    mem_free(half);
    return 0;
}
