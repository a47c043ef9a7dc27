/*
 * Tests of lib/grad with bf16 activations: values and gradients against those of the tape in f32, which test_grad.c
 * checks by central differences.
 *
 * UH is the unit roundoff of bf16. A product of n terms whose factors and result are rounded to bf16 is wrong by at
 * most 2 UH sum |a||b| + UH |result|; errors of f32 and squares of UH add less than a hundredth of that: 3.1 UH sum
 * |a||b|.
 */
#include "tests/unit/grad_samples.h"

#define UH 0x1p-8

static void finish(struct grad_tape *t) {
    struct err e;
    grad_backward(t);
    if (grad_error(t, &e)) fail_msg("%s", e.msg);
    grad_tape_free(t);
}

static void check(const char *what, const float *got, const double *want, const double *bound, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (fabs(got[i] - want[i]) > 3.1 * UH * bound[i])
            fail_msg("%s %zu is %.7g, should be %.7g +- %.3g", what, i, (double)got[i], want[i], 3.1 * UH * bound[i]);
}

typedef void plain64_product(size_t m, size_t n, size_t k, const double *a, const double *b, double beta, double *c);

/* Compares got [m][n] with the product of a and b over k terms. */
static void check_product(const char *what, const float *got, plain64_product *product, size_t m, size_t n, size_t k,
                          struct pair a, struct pair b) {
    double *want = take(m * n, sizeof *want), *bound = take(m * n, sizeof *bound);
    product(m, n, k, a.d, b.d, 0, want);
    product(m, n, k, magnitudes(a), magnitudes(b), 0, bound);
    check(what, got, want, bound, m * n);
}

/* ---- linear maps ---- */

enum { N = 37, IN = 70, OUT = 45 };

/* y = x w^T + bias + residual, and the gradients for random dy. */
static void check_linear(bool with_residual) {
    struct rng r = rng_init(41, with_residual);
    struct pair x = normals(&r, N * IN, 1), w = normals(&r, OUT * IN, 1), bias = normals(&r, OUT, 1);
    struct pair residual = normals(&r, N * OUT, 1), dy = normals(&r, N * OUT, 1);
    float *dx = take(N * IN, sizeof *dx), *dw = take(OUT * IN, sizeof *dw), *db = take(OUT, sizeof *db);
    float *dr = take(N * OUT, sizeof *dr);
    double *want = take(N * OUT, sizeof *want), *bound = take(N * OUT, sizeof *bound);
    struct grad_tape *t = new_tape(DT_BF16, true);
    struct grad_var *rest = with_residual ? grad_leaf(t, kernel_f32(residual.f), kernel_f32(dr), N, OUT) : NULL;
    struct grad_var *y = grad_linear(t, grad_leaf(t, kernel_f32(x.f), kernel_f32(dx), N, IN),
                                     grad_leaf(t, kernel_f32(w.f), kernel_f32(dw), OUT, IN),
                                     grad_leaf(t, kernel_f32(bias.f), kernel_f32(db), 1, OUT), rest);
    assert_non_null(y);
    assert_int_equal(y->value.dtype, with_residual ? DT_F32 : DT_BF16);
    plain64_multiply(N, OUT, IN, x.d, w.d, 0, bias.d, with_residual ? residual.d : NULL, want);
    plain64_multiply(N, OUT, IN, magnitudes(x), magnitudes(w), 0, magnitudes(bias),
                     with_residual ? magnitudes(residual) : NULL, bound);
    check("linear: value", grad_host_value(t, y), want, bound, N * OUT);

    kernel_add(grad_of(t, y), kernel_f32(dy.f), N * OUT);
    finish(t);
    check_product("linear: gradient of x", dx, plain64_matmul_nn, N, IN, OUT, dy, w);
    check_product("linear: gradient of w", dw, plain64_matmul_tn, OUT, IN, N, dy, x);
    memset(want, 0, OUT * sizeof *want);
    memset(bound, 0, OUT * sizeof *bound);
    plain64_sum_rows(want, dy.d, N, OUT);
    plain64_sum_rows(bound, magnitudes(dy), N, OUT);
    check("linear: gradient of the bias", db, want, bound, OUT);
    if (with_residual) assert_memory_equal(dr, dy.f, N * OUT * sizeof *dr);
}

static void test_linear(void **state) {
    (void)state;
    check_linear(false);
    check_linear(true);
}

/* ---- the head ---- */

enum { ROWS = 1050, HIDDEN = 40, VOCAB = 97 };

struct linear_loss {
    const float *logits_seen; /* [ROWS][VOCAB] */
    const float *dlogits;
};

/* A loss with a given gradient, so that everything computed from it is two products. */
static int linear_loss(void *ctx, size_t first, size_t rows, size_t vocab, struct kernel_array logits,
                       struct kernel_array dlogits, struct err *e) {
    struct linear_loss *l = ctx;
    (void)e;
    kernel_download((float *)l->logits_seen + first * vocab, logits, rows * vocab);
    kernel_convert(dlogits, kernel_f32(l->dlogits + first * vocab), rows * vocab);
    return 0;
}

static void test_head(void **state) {
    (void)state;
    struct rng r = rng_init(42, 1);
    struct pair h = normals(&r, ROWS * HIDDEN, 1), w = normals(&r, VOCAB * HIDDEN, 1), c = normals(&r, ROWS * VOCAB, 1);
    float *dh = take(ROWS * HIDDEN, sizeof *dh), *dw = take(VOCAB * HIDDEN, sizeof *dw);
    struct linear_loss l = {take(ROWS * VOCAB, sizeof(float)), c.f};
    struct grad_tape *t = new_tape(DT_BF16, true);
    assert_true(grad_head(t, grad_leaf(t, kernel_f32(h.f), kernel_f32(dh), ROWS, HIDDEN),
                          &(struct grad_head){.w = grad_leaf(t, kernel_f32(w.f), kernel_f32(dw), VOCAB, HIDDEN)},
                          linear_loss, &l));
    finish(t);
    check_product("head: logit", l.logits_seen, plain64_matmul_nt, ROWS, VOCAB, HIDDEN, h, w);
    check_product("head: gradient of h", dh, plain64_matmul_nn, ROWS, HIDDEN, VOCAB, c, w);
    check_product("head: gradient of w", dw, plain64_matmul_tn, VOCAB, HIDDEN, ROWS, c, h);
}

/* ---- a decoder ---- */

enum { WIDTH = 48, HEADS = 6, KV_HEADS = 2, HEAD_DIM = 8, FFN = 64, POSITIONS = 50, LAYERS = 3 };
enum { EMBED, NORM1, WQ, BQ, WK, WV, WO, NORM2, GATE, UP, DOWN, NORM3, PARAMETERS };
static const size_t shapes[PARAMETERS][2] = {
    {VOCAB, WIDTH}, {1, WIDTH}, {WIDTH, WIDTH}, {1, WIDTH},   {16, WIDTH},  {16, WIDTH},
    {WIDTH, WIDTH}, {1, WIDTH}, {FFN, WIDTH},   {FFN, WIDTH}, {WIDTH, FFN}, {1, WIDTH},
};
static const uint32_t starts[] = {0, 20, 21, POSITIONS};
static const double inv_freq[] = {1, 0.3, 0.1, 0.03};
static const struct kernel_rotation rotation = {.dims = HEAD_DIM, .inv_freq = inv_freq};

struct decoder {
    struct grad_var *p[PARAMETERS];
    float *value[PARAMETERS], *grad[PARAMETERS];
    uint32_t ids[POSITIONS], position[POSITIONS];
    double total;
};

static struct grad_var *layer(void *ctx, struct grad_tape *t, struct grad_var *x) {
    static const struct kernel_attention shape = {HEADS, KV_HEADS, HEAD_DIM, 3, starts, 0.35f};
    const struct decoder *d = ctx;
    struct grad_var *const *p = d->p, *qkv[3];
    struct grad_var *h = grad_rmsnorm(t, x, p[NORM1], 1e-5f, grad_precision(t));
    grad_linears(t, h, 3, (const struct grad_map[]){{p[WQ], p[BQ]}, {p[WK], NULL}, {p[WV], NULL}}, qkv);
    struct grad_var *q = grad_rope(t, qkv[0], HEADS, HEAD_DIM, d->position, &rotation);
    struct grad_var *k = grad_rope(t, qkv[1], KV_HEADS, HEAD_DIM, d->position, &rotation);
    x = grad_linear(t, grad_attention(t, q, k, qkv[2], &shape), p[WO], NULL, x);
    h = grad_rmsnorm(t, x, p[NORM2], 1e-5f, grad_precision(t));
    return grad_linear(t, grad_gated(t, ACT_SILU, h, p[GATE], p[UP]), p[DOWN], NULL, x);
}

static int label_loss(void *ctx, size_t first, size_t rows, size_t vocab, struct kernel_array logits,
                      struct kernel_array dlogits, struct err *e) {
    static const struct kernel_loss how = {1, 0, 1};
    struct decoder *d = ctx;
    double ce[POSITIONS];
    uint32_t label[POSITIONS];
    (void)e;
    for (size_t i = 0; i < rows; i++) label[i] = d->ids[(first + i + 1) % POSITIONS];
    struct kernel_target target = {.label = label};
    kernel_distill_loss(&how, &target, NULL, logits, rows, vocab, NULL, ce, dlogits);
    for (size_t i = 0; i < rows; i++) d->total += ce[i];
    return 0;
}

static struct decoder make_decoder(void) {
    struct rng r = rng_init(43, 1);
    struct decoder d = {0};
    for (size_t i = 0; i < PARAMETERS; i++) {
        size_t n = shapes[i][0] * shapes[i][1];
        bool norm = i == NORM1 || i == NORM2 || i == NORM3;
        d.value[i] = normals(&r, n, i == EMBED ? 1 : norm ? 0.1 : 0.15).f;
        for (size_t j = 0; norm && j < n; j++) d.value[i][j] += 1;
        d.grad[i] = take(n, sizeof(float));
    }
    for (uint32_t i = 0; i < POSITIONS; i++) {
        d.ids[i] = (uint32_t)rng_below(&r, VOCAB);
        d.position[i] = i < 20 ? i : i < 21 ? 0 : i - 21;
    }
    return d;
}

enum how { RECORDED, RECOMPUTED, OVERWRITTEN, FORWARD_ONLY };

static void run_decoder(struct decoder *d, enum dtype precision, enum how how) {
    struct grad_tape *t = new_tape(precision, how != FORWARD_ONLY);
    bool begun[PARAMETERS];
    grad_recompute(t, how == RECOMPUTED);
    d->total = 0;
    for (size_t i = 0; i < PARAMETERS; i++) {
        begun[i] = how != OVERWRITTEN;
        memset(d->grad[i], begun[i] ? 0 : 0xff, shapes[i][0] * shapes[i][1] * sizeof(float)); /* must be overwritten */
        d->p[i] =
            grad_parameter(t, kernel_f32(d->value[i]), kernel_f32(d->grad[i]), &begun[i], shapes[i][0], shapes[i][1]);
    }
    struct grad_var *x = grad_embed(t, d->p[EMBED], d->ids, POSITIONS);
    for (int i = 0; i < LAYERS; i++) x = grad_segment(t, x, x->cols, layer, d);
    assert_true(grad_head(t, grad_rmsnorm(t, x, d->p[NORM3], 1e-5f, DT_F32), &(struct grad_head){.w = d->p[EMBED]},
                          label_loss, d));
    finish(t);
}

static double norm_of(const float *x, const float *y, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += ((double)x[i] - (y ? (double)y[i] : 0)) * ((double)x[i] - (y ? (double)y[i] : 0));
    return sqrt(sum);
}

/*
 * A layer rounds 13 results in the forward pass (two norms, q, k, v, two rotations, attention, gate, up, their product,
 * and the operands of o and down) and 10 gradients in the backward pass, besides 7 weights in each; the head rounds two
 * operands in each. Every rounding changes its matrix by at most UH / sqrt(3) of its norm (errors are uniform in half a
 * unit), independently. A relative error is passed on at about the same size: residuals dilute it, the norm and the
 * softmax at these scales amplify it by no more than 2. Hence 2 UH sqrt(LAYERS * 37 + 6) / sqrt(3).
 */
static void test_decoder(void **state) {
    (void)state;
    struct decoder d = make_decoder();
    float *reference[PARAMETERS];
    run_decoder(&d, DT_F32, RECORDED);
    double total = d.total, bound = 2 * UH * sqrt((LAYERS * 37 + 6) / 3.0);
    for (size_t i = 0; i < PARAMETERS; i++) reference[i] = copy_f32(d.grad[i], shapes[i][0] * shapes[i][1]);
    EACH_PATH(path) {
        run_decoder(&d, DT_BF16, RECORDED);
        assert_true(fabs(d.total - total) < bound * total);
        assert_true(d.total != total);
        for (size_t i = 0; i < PARAMETERS; i++) {
            size_t n = shapes[i][0] * shapes[i][1];
            double error = norm_of(d.grad[i], reference[i], n) / norm_of(reference[i], NULL, n);
            if (!(error > 0 && error < bound))
                fail_msg("%s: the gradient of parameter %zu is off by %.4f, at most %.4f", path, i, error, bound);
        }
    }
}

/* The bits are the same with one thread, four threads and recomputed layers; so is the loss when nothing is
 * recorded. */
static void test_same_bits(void **state) {
    (void)state;
    struct decoder d = make_decoder();
    EACH_PATH(path) {
        static const char *const names[] = {"one thread", "four threads", "recomputed", "gradients overwritten"};
        static const enum how hows[] = {RECORDED, RECORDED, RECOMPUTED, OVERWRITTEN};
        float *reference[PARAMETERS];
        for (int variant = 0; variant < 4; variant++) {
            parallel_set_threads(variant == 1 ? 4 : 1);
            run_decoder(&d, DT_BF16, hows[variant]);
            for (size_t i = 0; i < PARAMETERS; i++) {
                size_t n = shapes[i][0] * shapes[i][1];
                if (variant == 0)
                    reference[i] = copy_f32(d.grad[i], n);
                else if (memcmp(reference[i], d.grad[i], n * sizeof(float)) != 0)
                    fail_msg("%s, %s: other bits in the gradient of parameter %zu", path, names[variant], i);
            }
        }
        double total = d.total;
        run_decoder(&d, DT_BF16, FORWARD_ONLY);
        assert_true(d.total == total);
    }
    parallel_set_threads(parallel_default_threads());
}

/* Activations take half the memory. */
static void test_memory(void **state) {
    (void)state;
    float *x = take(64 * 512, sizeof *x), *w = take(512, sizeof *w), *dw = take(512, sizeof *dw);
    size_t used[2];
    for (int i = 0; i < 2; i++) {
        struct grad_tape *t = new_tape(i ? DT_BF16 : DT_F32, true);
        struct grad_var *v = grad_rmsnorm(t, grad_leaf(t, kernel_f32(x), kernel_none(DT_F32), 64, 512),
                                          grad_leaf(t, kernel_f32(w), kernel_f32(dw), 1, 512), 1, grad_precision(t));
        for (int k = 0; k < 30; k++) v = grad_glu(t, ACT_SILU, v, v);
        assert_non_null(v);
        used[i] = grad_memory(t).values;
        grad_tape_free(t);
    }
    assert_true(used[1] < 0.52 * (double)used[0]);
}

/* The head needs f32, since gradients of hidden states accumulate over blocks of the vocabulary. */
static void test_head_wants_f32(void **state) {
    (void)state;
    float x[8] = {0};
    struct err e;
    struct grad_tape *t = new_tape(DT_BF16, true);
    struct grad_var *a = grad_leaf(t, kernel_f32(x), kernel_none(DT_F32), 2, 4),
                    *w = grad_leaf(t, kernel_f32(x), kernel_none(DT_F32), 2, 4);
    assert_false(grad_head(t, grad_linear(t, a, w, NULL, NULL), &(struct grad_head){.w = w}, label_loss, NULL));
    assert_int_equal(grad_error(t, &e), ERR_DATA);
    grad_tape_free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_linear, release_memory),
        cmocka_unit_test_teardown(test_head, release_memory),
        cmocka_unit_test_teardown(test_decoder, release_memory),
        cmocka_unit_test_teardown(test_same_bits, release_memory),
        cmocka_unit_test_teardown(test_memory, release_memory),
        cmocka_unit_test_teardown(test_head_wants_f32, release_memory),
    };
    return cmocka_run_group_tests_name("grad bf16", tests, NULL, NULL);
}
