/*
 * Tests of lib/grad: gradients of the operations in which architectures differ - LayerNorm, norms of heads,
 * activations, gated units, scaling, sums, partial rotation, masks, the head's bias and soft cap - against central
 * differences of the f64 twins (test_grad.c).
 */
#include "tests/unit/grad_check.h"

/* ---- norms ---- */

static struct grad_var *build_layernorm(const struct function *f, struct grad_tape *t, struct grad_var **in) {
    return grad_layernorm(t, in[0], in[1], f->n_in == 3 ? in[2] : NULL, 1e-3f, DT_F32);
}

static void twin_layernorm(const struct function *f, double *const *in, double *y) {
    double moments[64];
    plain64_layernorm(y, moments, in[0], in[1], f->n_in == 3 ? in[2] : NULL, f->out_rows, f->out_cols, 1e-3f);
}

static struct grad_var *build_head_norm(const struct function *f, struct grad_tape *t, struct grad_var **in) {
    (void)f;
    return grad_rmsnorm_heads(t, in[0], in[1], 1e-3f);
}

static void twin_head_norm(const struct function *f, double *const *in, double *y) {
    double inv[64];
    size_t d = f->cols[1];
    plain64_rmsnorm(y, inv, in[0], in[1], f->out_rows * f->out_cols / d, d, 1e-3f);
}

static struct grad_var *build_head_layernorm(const struct function *f, struct grad_tape *t, struct grad_var **in) {
    return grad_layernorm_heads(t, in[0], in[1], f->n_in == 3 ? in[2] : NULL, 1e-3f);
}

static void twin_head_layernorm(const struct function *f, double *const *in, double *y) {
    double moments[64];
    size_t d = f->cols[1];
    plain64_layernorm(y, moments, in[0], in[1], f->n_in == 3 ? in[2] : NULL, f->out_rows * f->out_cols / d, d, 1e-3f);
}

static void test_norms(void **state) {
    (void)state;
    struct function f = {"layernorm", 3, {5, 1, 1}, {19, 19, 19}, 5, 19, build_layernorm, .twin = twin_layernorm};
    check_function(&f, 1);
    f.name = "layernorm without bias";
    f.n_in = 2;
    check_function(&f, 2);
    f = (struct function){"norm of heads", 2, {5, 1}, {18, 6}, 5, 18, build_head_norm, .twin = twin_head_norm};
    check_function(&f, 3);
    f = (struct function){"layernorm of heads",       3, {5, 1, 1}, {18, 6, 6}, 5, 18, build_head_layernorm,
                          .twin = twin_head_layernorm};
    check_function(&f, 3);
}

/* ---- elementwise ---- */

static struct grad_var *build_activate(const struct function *f, struct grad_tape *t, struct grad_var **in) {
    return grad_activate(t, f->act, in[0]);
}
static void twin_activate(const struct function *f, double *const *in, double *y) {
    plain64_activate(f->act, y, in[0], f->out_rows * f->out_cols);
}
static struct grad_var *build_glu(const struct function *f, struct grad_tape *t, struct grad_var **in) {
    return grad_glu(t, f->act, in[0], in[1]);
}
static void twin_glu(const struct function *f, double *const *in, double *y) {
    plain64_glu(f->act, y, in[0], in[1], f->out_rows * f->out_cols);
}

static void test_activations(void **state) {
    (void)state;
    for (int act = 0; act < KERNEL_ACTS; act++) {
        struct function f = {"activation", 1, {3}, {21}, 3, 21, build_activate, .twin = twin_activate, .act = act};
        check_function(&f, 4);
        f = (struct function){"gated", 2, {3, 3}, {21, 21}, 3, 21, build_glu, .twin = twin_glu, .act = act};
        check_function(&f, 5);
        release_memory(NULL);
    }
}

/* Scaled results, leaves and sums of both, with a gradient that two of them share. */
static struct grad_var *build_sums(const struct function *f, struct grad_tape *t, struct grad_var **in) {
    (void)f;
    struct grad_var *y = grad_scale(t, grad_linear(t, in[0], in[1], NULL, NULL), 1.5f);
    struct grad_var *sum = grad_add(t, in[0], y);
    return grad_add(t, grad_add(t, sum, grad_scale(t, in[0], -0.25f)), sum);
}
static void twin_sums(const struct function *f, double *const *in, double *y) {
    size_t n = f->out_rows * f->out_cols;
    plain64_matmul_nt(f->out_rows, f->out_cols, f->cols[0], in[0], in[1], 0, y);
    for (size_t i = 0; i < n; i++) y[i] = 2 * (in[0][i] + 1.5 * y[i]) - 0.25 * in[0][i];
}

static void test_sums(void **state) {
    (void)state;
    struct function f = {"sums", 2, {4, 6}, {6, 6}, 4, 6, build_sums, .twin = twin_sums};
    check_function(&f, 6);
}

/* ---- partial rotation, attention masks ---- */

static void test_partial_rope(void **state) {
    static const double frequencies[] = {1, 0.1, 0.4, 0.01}; /* two tables */
    static const uint32_t positions[] = {0, 1, 2, 0, 1, 900};
    static const uint8_t table[] = {0, 0, 0, 1, 1, 1};
    (void)state;
    struct function f = {"partial rope",
                         1,
                         {6},
                         {12},
                         6,
                         12,
                         build_rope,
                         .twin = twin_rope,
                         .position = positions,
                         .rotation = {4, frequencies, table, 1.5f}};
    check_function(&f, 7);
}

static void test_masks(void **state) {
    static const uint32_t starts[] = {0, 4, 5, 11};
    (void)state;
    struct kernel_attention shape = {6, 2, 4, 3, starts, 0.5f};
    for (int i = 0; i < 4; i++) {
        struct function f = {
            "attention, masked", 3, {11, 11, 11}, {24, 8, 8}, 11, 24, build_attention, .twin = twin_attention,
            .shape = shape};
        f.shape.bidirectional = i == 0;
        f.shape.window = i == 1 || i == 3 ? 2 : 0;
        f.shape.softcap = i >= 2 ? 1.5f : 0;
        check_function(&f, 8);
    }
}

/* ---- the head: bias and soft cap under a cross-entropy ---- */

enum { VOCAB = 9, ROWS = 6 };
#define CAP 2.0f

static const uint32_t labels[ROWS] = {3, 0, 8, 8, 1, 5};

static int cross_entropy(void *ctx, size_t first, size_t rows, size_t vocab, struct kernel_array logits,
                         struct kernel_array dlogits, struct err *e) {
    double ce[ROWS], *total = ctx;
    struct kernel_loss how = {1, 0, 1};
    struct kernel_target target = {.label = labels + first};
    (void)e;
    kernel_distill_loss(&how, &target, NULL, logits, rows, vocab, NULL, ce, dlogits);
    for (size_t i = 0; i < rows; i++) *total += ce[i];
    return 0;
}

static struct grad_var *build_head(const struct function *f, struct grad_tape *t, struct grad_var **in) {
    struct grad_head head = {in[1], f->n_in == 3 ? in[2] : NULL, f->shape.softcap};
    *f->head_loss = 0;
    assert_true(grad_head(t, twice(t, in[0]), &head, cross_entropy, f->head_loss));
    return NULL;
}

static void twin_head(const struct function *f, double *const *in, double *y) {
    double logits[ROWS * VOCAB];
    plain64_matmul_nt(ROWS, VOCAB, f->cols[0], in[0], in[1], 0, logits);
    plain64_scale(logits, ROWS * VOCAB, 2);
    if (f->n_in == 3) plain64_add_bias(logits, in[2], ROWS, VOCAB);
    if (f->shape.softcap > 0) plain64_softcap(logits, logits, ROWS * VOCAB, f->shape.softcap);
    y[0] = 0;
    for (size_t r = 0; r < ROWS; r++)
        y[0] += plain64_logsumexp(logits + r * VOCAB, VOCAB, 1) - logits[r * VOCAB + labels[r]];
}

static void test_head(void **state) {
    double total;
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct function f = {"head", i == 1 ? 2 : 3, {ROWS, VOCAB, 1},  {5, 5, VOCAB},   0,
                             0,      build_head,     .twin = twin_head, .is_loss = true, .head_loss = &total};
        f.shape.softcap = i ? CAP : 0;
        check_function(&f, 9);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_norms, release_memory),
        cmocka_unit_test_teardown(test_activations, release_memory),
        cmocka_unit_test_teardown(test_sums, release_memory),
        cmocka_unit_test_teardown(test_partial_rope, release_memory),
        cmocka_unit_test_teardown(test_masks, release_memory),
        cmocka_unit_test_teardown(test_head, release_memory),
    };
    return cmocka_run_group_tests_name("grad parts", tests, NULL, NULL);
}
