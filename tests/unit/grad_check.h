/*
 * Checks the tape by central differences: a function is given both as operations of lib/grad and as f64 twins. What
 * test_grad.c says of STEP and TOLERANCE holds for every test that includes this.
 */
#ifndef RILL_TESTS_GRAD_CHECK_H
#define RILL_TESTS_GRAD_CHECK_H

#include "tests/unit/grad_samples.h"

#define STEP      1e-5
#define TOLERANCE 2e-5
#define BEFORE    0.25f /* initial parameter gradients: backward must add to them */
#define MAX_IN    20

/* A function under test: inputs, a graph on the tape, and the same from the twins. */
struct function {
    const char *name;
    size_t n_in, rows[MAX_IN], cols[MAX_IN], out_rows, out_cols;
    struct grad_var *(*build)(const struct function *f, struct grad_tape *t, struct grad_var **in);
    void (*twin)(const struct function *f, double *const *in, double *y);
    bool is_loss; /* build calls grad_head itself; the twin gives one number, y[0] */
    struct kernel_attention shape;
    const uint32_t *ids, *position;
    struct kernel_rotation rotation;
    enum kernel_act act;
    size_t layers; /* of the decoder; all share the same weights */
    bool recompute;
    double *head_loss; /* receives the total from the tape's version */
};

struct example {
    struct pair in[MAX_IN];
    double *c; /* [out] weights of the results */
    float *grad[MAX_IN];
    enum { ADD, ADD_TO_ZERO, OVERWRITE } how; /* what backward does with gradients of inputs */
    bool begun[MAX_IN];
};

static double objective(const struct function *f, const struct example *x) {
    double *in[MAX_IN], y[4096];
    for (size_t i = 0; i < f->n_in; i++) in[i] = x->in[i].d;
    assert_true(f->out_rows * f->out_cols <= COUNT_OF(y));
    f->twin(f, in, y);
    return f->is_loss ? y[0] : plain64_dot(y, x->c, f->out_rows * f->out_cols);
}

/* Runs the tape once; gradients of the inputs into x->grad, values into y. */
static void run_tape(const struct function *f, struct example *x, struct grad_tape *t, float *y) {
    struct grad_var *in[MAX_IN];
    size_t n_out = f->out_rows * f->out_cols;
    struct err e;
    for (size_t i = 0; i < f->n_in; i++) {
        float before = x->how == ADD ? BEFORE : x->how == OVERWRITE ? NAN : 0;
        for (size_t j = 0; j < x->in[i].n; j++) x->grad[i][j] = before;
        x->begun[i] = x->how != OVERWRITE;
        in[i] = grad_parameter(t, kernel_f32(x->in[i].f), kernel_f32(x->grad[i]), &x->begun[i], f->rows[i], f->cols[i]);
    }
    struct grad_var *out = f->build(f, t, in);
    if (grad_error(t, &e) != 0) fail_msg("%s: %s", f->name, e.msg);
    if (!f->is_loss) {
        memcpy(y, host_of(out->value), n_out * sizeof *y);
        float *g = host_of(grad_of(t, out));
        for (size_t i = 0; i < n_out; i++) g[i] += (float)x->c[i];
    }
    grad_backward(t);
    assert_int_equal(grad_error(t, &e), 0);
}

static void check_values(const struct function *f, const struct example *x, const float *y) {
    double *in[MAX_IN], want[4096];
    for (size_t i = 0; i < f->n_in; i++) in[i] = x->in[i].d;
    f->twin(f, in, want);
    if (f->is_loss && fabs(*f->head_loss - want[0]) > TOLERANCE * fabs(want[0]))
        fail_msg("%s: loss %.9g, should be %.9g", f->name, *f->head_loss, want[0]);
    for (size_t i = 0; !f->is_loss && i < f->out_rows * f->out_cols; i++)
        if (fabs(y[i] - want[i]) > TOLERANCE * (1 + fabs(want[i])))
            fail_msg("%s: value %zu is %.9g, should be %.9g", f->name, i, (double)y[i], want[i]);
}

static void check_input_gradient(const struct function *f, struct example *x, size_t which) {
    struct pair *in = &x->in[which];
    double *want = take(in->n, sizeof *want), largest = 1e-3;
    for (size_t i = 0; i < in->n; i++) {
        double value = in->d[i], up, down;
        in->d[i] = value + STEP;
        up = objective(f, x);
        in->d[i] = value - STEP;
        down = objective(f, x);
        in->d[i] = value;
        want[i] = (up - down) / (2 * STEP);
        largest = fmax(largest, fabs(want[i]));
    }
    for (size_t i = 0; i < in->n; i++)
        if (fabs((double)x->grad[which][i] - (double)BEFORE - want[i]) > TOLERANCE * largest + U * BEFORE)
            fail_msg("%s: gradient %zu of input %zu is %.9g, should be %.9g (largest %.3g)", f->name, i, which,
                     (double)(x->grad[which][i] - BEFORE), want[i], largest);
}

/* A gradient that is overwritten must equal one that is added to zeros. */
static void check_overwriting(const struct function *f, struct example *x, struct grad_tape *t, float *y) {
    float *want[MAX_IN];
    for (x->how = ADD_TO_ZERO; x->how <= OVERWRITE; x->how++) {
        grad_reset(t);
        run_tape(f, x, t, y);
        for (size_t i = 0; i < f->n_in; i++) {
            if (x->how == ADD_TO_ZERO) want[i] = copy_f32(x->grad[i], x->in[i].n);
            assert_true(x->begun[i]);
            for (size_t j = 0; j < x->in[i].n; j++) assert_true(x->grad[i][j] == want[i][j]);
        }
    }
}

static inline void check_function(const struct function *f, uint64_t seed) {
    struct rng r = rng_init(seed, 2);
    struct example x = {0};
    struct grad_tape *t;
    struct err e;
    size_t n_out = f->out_rows * f->out_cols;
    float *y = take(n_out + 1, sizeof *y), *again = take(n_out + 1, sizeof *again), *grads[MAX_IN];
    x.c = normals(&r, n_out + 1, 1).d;
    for (size_t i = 0; i < n_out; i++) x.c[i] = (float)x.c[i];
    for (size_t i = 0; i < f->n_in; i++) {
        x.in[i] = normals(&r, f->rows[i] * f->cols[i], 0.7);
        x.grad[i] = take(x.in[i].n, sizeof(float));
    }
    assert_int_equal(grad_tape_new(&t, kernel_cpu(), true, DT_F32, &e), 0);
    grad_recompute(t, f->recompute);
    parallel_set_threads(1);
    run_tape(f, &x, t, y);
    check_values(f, &x, y);
    for (size_t i = 0; i < f->n_in; i++) {
        check_input_gradient(f, &x, i);
        grads[i] = copy_f32(x.grad[i], x.in[i].n);
    }
    /* A second run on the same tape with four threads must give the same bits and allocate nothing. */
    struct grad_memory held = grad_memory(t);
    grad_reset(t);
    parallel_set_threads(4);
    run_tape(f, &x, t, again);
    assert_memory_equal(y, again, n_out * sizeof *y);
    for (size_t i = 0; i < f->n_in; i++) assert_memory_equal(grads[i], x.grad[i], x.in[i].n * sizeof(float));
    struct grad_memory now = grad_memory(t);
    assert_memory_equal(&now, &held, sizeof now);
    parallel_set_threads(parallel_default_threads());
    check_overwriting(f, &x, t, y);
    grad_tape_free(t);
}

/* ---- functions that several tests use ---- */

/* Two heads of 6. */
static inline struct grad_var *build_rope(const struct function *f, struct grad_tape *t, struct grad_var **in) {
    return grad_rope(t, in[0], 2, 6, f->position, &f->rotation);
}

static inline void twin_rope(const struct function *f, double *const *in, double *y) {
    memcpy(y, in[0], f->out_rows * f->out_cols * sizeof *y);
    plain64_rope(y, f->out_rows, 2, 6, f->position, &f->rotation, 1);
}

static inline struct grad_var *build_attention(const struct function *f, struct grad_tape *t, struct grad_var **in) {
    return grad_attention(t, in[0], in[1], in[2], &f->shape);
}

static inline void twin_attention(const struct function *f, double *const *in, double *y) {
    double lse[256], p[64];
    plain64_attention(&f->shape, y, lse, in[0], in[1], in[2], p);
}

#endif
