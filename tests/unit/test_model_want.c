/* Tests of losses on points of the graph, and of several heads over the same rows. */
#include "tests/unit/distill_samples.h"
#include "tests/unit/grad_samples.h"

enum { N = 11 };
static const uint32_t tokens[N] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5}, lengths[2] = {6, 5};
static const struct model_input in = {N, 2, tokens, lengths, NULL};

static const struct model_want all[] = {{POINT_EMBED, 0}, {POINT_ATTN_IN, 0}, {POINT_Q, 1},      {POINT_K, 1},
                                        {POINT_V, 0},     {POINT_O_IN, 1},    {POINT_FFN_IN, 0}, {POINT_DOWN_IN, 1},
                                        {POINT_LAYER, 0}, {POINT_LAYER, 1},   {POINT_HEAD_IN, 0}};

static double coefficient(size_t i) {
    return (double)(i * 7919 % 13) / 13 - 0.5;
}

/* sum c v over the values at a point. */
static double value_at(struct model *m, struct model_want w) {
    struct err e;
    struct grad_tape *t = new_tape(DT_F32, false);
    double sum = 0;
    assert_non_null(model_graph_want(m, t, &in, &w, 1, &e));
    for (size_t i = 0; i < w.var->rows * w.var->cols; i++) sum += coefficient(i) * grad_host_value(t, w.var)[i];
    grad_tape_free(t);
    return sum;
}

/* The gradient of that sum with respect to all parameters, from the tape; with `recompute`, layers are recomputed. */
static void gradients(struct model *m, struct model_want w, bool recompute) {
    struct err e;
    struct grad_tape *t = new_tape(DT_F32, true);
    float *c;
    grad_recompute(t, recompute);
    OK(model_enable_grad(m, &e));
    for (size_t i = 0; i < m->n_params; i++) {
        kernel_fill(m->params[i].grad, m->params[i].n, 0);
        m->params[i].grad_begun = true;
    }
    assert_non_null(model_graph_want(m, t, &in, &w, 1, &e));
    size_t n = w.var->rows * w.var->cols;
    c = malloc(n * sizeof *c);
    for (size_t i = 0; i < n; i++) c[i] = (float)coefficient(i);
    grad_add_to(t, w.var, c);
    grad_backward(t);
    OK(grad_error(t, &e));
    free(c);
    grad_tape_free(t);
}

static const float *grad_of_param(const struct model *m, size_t i) {
    return kernel_host(m->params[i].grad, m->params[i].n);
}

static void gradients_enter_at_points(void **state) {
    (void)state;
    for (size_t p = 0; p < COUNT_OF(all); p++) {
        struct model *m = student_new(true, 1), *again = student_new(true, 1);
        gradients(m, all[p], false);
        gradients(again, all[p], true);
        double along = 0, norm = 0;
        for (size_t i = 0; i < m->n_params; i++) {
            const float *g = grad_of_param(m, i);
            assert_memory_equal(g, grad_of_param(again, i), m->params[i].n * sizeof(float));
            for (size_t k = 0; k < m->params[i].n; k++) norm += pow(g[k], 2);
        }
        assert_true(norm > 0);
        /* a step along the gradient */
        double up, down, step = 1e-3 / sqrt(norm);
        for (int sign = 1; sign >= -1; sign -= 2) {
            for (size_t i = 0; i < m->n_params; i++) {
                struct model_param *moved = &m->params[i];
                const float *g = grad_of_param(m, i), *from = kernel_host(again->params[i].value, moved->n);
                float *to = malloc(moved->n * sizeof *to);
                for (size_t k = 0; k < moved->n; k++) to[k] = from[k] + (float)(sign * step * g[k]);
                kernel_upload(moved->value, to, moved->n);
                free(to);
            }
            *(sign > 0 ? &up : &down) = value_at(m, all[p]);
        }
        along = (up - down) / (2 * step);
        if (fabs(along / norm - 1) > 5e-3)
            fail_msg("point %s of layer %u: %g along the gradient, its square is %g", model_point_name(all[p].point),
                     all[p].layer, along, norm);
        model_free(m);
        model_free(again);
    }
}

static void points_are_checked(void **state) {
    static const struct model_want bad[] = {{POINT_LAYER, 2}, {POINT_EMBED, 1}, {POINT_COUNT, 0}, {POINT_ALL, 0}};
    struct model *m = student_new(true, 1);
    struct grad_tape *t = new_tape(DT_F32, true);
    struct err e;
    (void)state;
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        struct model_want w = bad[i];
        assert_null(model_graph_want(m, t, &in, &w, 1, &e));
        assert_int_equal(e.code, ERR_DATA);
    }
    grad_tape_free(t);
    model_free(m);
}

/* ---- heads ------------------------------------------------------------------------------------------------------- */

enum { ROWS = 700, HIDDEN = 8, TOKENS = 12 };

static void pattern(const float *logits, size_t n, double scale, struct kernel_array dlogits) {
    for (size_t i = 0; i < n; i++) {
        float g = (float)(scale * sin(logits[i]));
        kernel_convert(kernel_part(dlogits, i), kernel_f32(&g), 1);
    }
}

struct both {
    double *logits; /* [3] sums for each head */
};

static int losses(void *ctx, size_t first, size_t rows, size_t vocab, const struct kernel_array *logits,
                  const struct kernel_array *dlogits, struct err *e) {
    struct both *b = ctx;
    (void)first, (void)e;
    assert_false(kernel_has_data(dlogits[2]));
    size_t n = rows * vocab;
    for (size_t h = 0; h < 3; h++)
        for (size_t i = 0; i < n; i++) b->logits[h] += ((float *)kernel_host(logits[h], n))[i];
    pattern(kernel_host(logits[1], n), n, 0.5, dlogits[1]);
    pattern(kernel_host(logits[0], n), n, 1, dlogits[0]);
    return 0;
}

static int one(void *ctx, size_t first, size_t rows, size_t vocab, struct kernel_array host_logits,
               struct kernel_array dlogits, struct err *e) {
    const float *logits = kernel_host(host_logits, rows * vocab);
    double *sum = ctx;
    (void)first, (void)e;
    for (size_t i = 0; i < rows * vocab; i++) sum[0] += logits[i];
    if (kernel_has_data(dlogits)) pattern(logits, rows * vocab, sum[1], dlogits);
    return 0;
}

/* Three heads at once must equal one at a time: two share a weight and learn, one is on a tape of its own and does
 * not. */
static void heads_at_once_are_heads_one_by_one(void **state) {
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        struct rng r = rng_init(9, 9);
        struct pair h[3], w = normals(&r, TOKENS * HIDDEN, 0.5), other = normals(&r, TOKENS * HIDDEN, 0.5);
        float *dh[2][2], *dw[2];
        double sums[2][3] = {{0}};
        for (int i = 0; i < 3; i++) h[i] = normals(&r, ROWS * HIDDEN, 1);
        for (int way = 0; way < 2; way++) {
            struct grad_tape *t = new_tape(bf16 ? DT_BF16 : DT_F32, true), *apart = new_tape(DT_F32, false);
            dw[way] = take(TOKENS * HIDDEN, sizeof(float));
            struct grad_var *hs[2], *wv = grad_leaf(t, kernel_f32(w.f), kernel_f32(dw[way]), TOKENS, HIDDEN);
            for (int i = 0; i < 2; i++) {
                dh[way][i] = take(ROWS * HIDDEN, sizeof(float));
                hs[i] = grad_leaf(t, kernel_f32(h[i].f), kernel_f32(dh[way][i]), ROWS, HIDDEN);
            }
            struct grad_var *ho = grad_leaf(apart, kernel_f32(h[2].f), kernel_none(DT_F32), ROWS, HIDDEN),
                            *wo = grad_leaf(apart, kernel_f32(other.f), kernel_none(DT_F32), TOKENS, HIDDEN);
            if (way == 0) {
                struct grad_head_input heads[] = {{t, hs[0], {.w = wv}}, {t, hs[1], {.w = wv}}, {apart, ho, {.w = wo}}};
                struct both b = {sums[0]};
                assert_true(grad_heads(3, heads, losses, &b));
            } else {
                for (int i = 0; i < 3; i++) {
                    double ctx[] = {0, i == 1 ? 0.5 : 1};
                    struct grad_head head = {.w = i == 2 ? wo : wv};
                    assert_true(grad_head(i == 2 ? apart : t, i == 2 ? ho : hs[i], &head, one, ctx));
                    sums[1][i] = ctx[0];
                }
            }
            grad_tape_free(t);
            grad_tape_free(apart);
        }
        for (int i = 0; i < 3; i++) assert_true(fabs(sums[0][i] - sums[1][i]) < 1e-9 * ROWS);
        for (int i = 0; i < 2; i++) assert_memory_equal(dh[0][i], dh[1][i], ROWS * HIDDEN * sizeof(float));
        for (size_t i = 0; i < TOKENS * HIDDEN; i++) /* the order of two sums differs */
            assert_true(fabs(dw[0][i] - dw[1][i]) < 1e-4 * (1 + fabs(dw[1][i])));
        release_memory(NULL);
    }
}

static void heads_must_agree(void **state) {
    struct grad_tape *t = new_tape(DT_F32, true);
    struct err e;
    float x[12] = {0};
    (void)state;
    struct kernel_array at = kernel_f32(x), none = kernel_none(DT_F32);
    struct grad_var *h = grad_leaf(t, at, none, 2, 2), *w = grad_leaf(t, at, none, 3, 2),
                    *v = grad_leaf(t, at, none, 4, 2);
    struct grad_head_input heads[] = {{t, h, {.w = w}}, {t, h, {.w = v}}};
    assert_false(grad_heads(2, heads, losses, NULL));
    assert_int_equal(grad_error(t, &e), ERR_DATA);
    grad_tape_free(t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_enter_at_points),
        cmocka_unit_test(points_are_checked),
        cmocka_unit_test_teardown(heads_at_once_are_heads_one_by_one, release_memory),
        cmocka_unit_test(heads_must_agree),
    };
    return cmocka_run_group_tests_name("wanted points and heads", tests, NULL, NULL);
}
