/* What the tests of lib/grad share. */
#ifndef RILL_TESTS_GRAD_SAMPLES_H
#define RILL_TESTS_GRAD_SAMPLES_H

#include "tests/unit/kernel_test.h"

#include "lib/grad/grad.h"

static inline struct grad_tape *new_tape(enum dtype precision, bool record) {
    struct grad_tape *t;
    struct err e;
    assert_int_equal(grad_tape_new(&t, kernel_cpu(), record, precision, &e), 0);
    return t;
}

/* Returns 2 x as the result of an operation, even where x is a leaf. */
static inline struct grad_var *twice(struct grad_tape *t, struct grad_var *x) {
    float *identity = take(x->cols * x->cols, sizeof *identity);
    for (size_t i = 0; i < x->cols; i++) identity[i * x->cols + i] = 1;
    return grad_linear(t, x, grad_leaf(t, kernel_f32(identity), kernel_none(DT_F32), x->cols, x->cols), NULL, x);
}

#endif
