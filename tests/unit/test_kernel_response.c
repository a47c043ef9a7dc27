/* Tests of lib/kernel: losses on rows of logits other than the distillation loss, against their definitions in f64. */
#include "tests/unit/kernel_test.h"

enum { ROWS = 7 };

static const struct kernel_divergence kinds[] = {
    {DIVERGENCE_KL, 1, 1, 0, 1},
    {DIVERGENCE_KL, 2, 0, 1, 0.7f},
    {DIVERGENCE_KL, 1, 0.3f, 0.7f, 1},
    {DIVERGENCE_SKEW, 1, 0.1f, 0, 1},
    {DIVERGENCE_SKEW, 3, 0.6f, 0, 0.5f},
    {DIVERGENCE_SKEW_REVERSE, 1, 0.1f, 0, 1},
    {DIVERGENCE_SKEW_REVERSE, 2, 0.5f, 0},
    {DIVERGENCE_JENSEN_SHANNON, 1, 0.5f, 0, 1},
    {DIVERGENCE_VARIATION, 1, 0, 0, 1},
    {DIVERGENCE_JENSEN_SHANNON, 2, 0.1f, 0, 2},
    {DIVERGENCE_ALPHA_BETA, 1, 1, 1, 1},
    {DIVERGENCE_ALPHA_BETA, 1, 0.2f, 0.7f, 1},
    {DIVERGENCE_ADAPTIVE, 1, 0.4321f, 0, 1},
    {DIVERGENCE_ADAPTIVE, 2, 0.7713f, 0, 1},
};

struct rows {
    struct kernel_divergence how;
    struct kernel_target target;
    struct pair x;
    float *row_weight, *start;
    double *value, *dx, *value_tolerance;
    size_t d;
};

/* All errors are roundings relative to the magnitude of the logits: logs of p and t are wrong by some units of |x|. */
static double tolerance_of(const struct rows *b, size_t r) {
    double largest = 1;
    for (size_t i = 0; i < b->d; i++) largest = fmax(largest, fabs(b->x.d[r * b->d + i]));
    return 40 * U * largest;
}

static void choose_teacher(struct rng *r, struct rows *b, bool dense) {
    size_t d = b->d, k = dense ? 0 : d / 3 + 1;
    uint64_t *offset = take(ROWS + 1, sizeof *offset);
    uint32_t *ids = take(ROWS * d, sizeof *ids);
    float *probs = take(ROWS * d, sizeof *probs), *rest = take(ROWS, sizeof *rest),
          *logt = take(ROWS * d, sizeof *logt);
    for (size_t i = 0; i < ROWS * d; i++) logt[i] = (float)rng_normal(r) * 2;
    if (!dense) kernel_topk(ids, probs, kernel_f32(logt), ROWS, d, k); /* only its ids are used */
    kernel_log_softmax(kernel_f32(logt), kernel_f32(logt), ROWS, d, 1);
    for (size_t i = 0; i < ROWS; i++) {
        rest[i] = 1;
        offset[i + 1] = offset[i] + k;
        for (size_t j = 0; j < k; j++) {
            size_t at = i * k + j;
            probs[at] = expf(logt[i * d + ids[at]]);
            rest[i] -= probs[at];
        }
        bool finite = b->how.b == 0 && b->how.kind != DIVERGENCE_ADAPTIVE; /* where the teacher gives a token no mass */
        if (dense && i == 3 && finite) logt[i * d] = -INFINITY;
        if (dense && i == 4)
            for (size_t j = 0; j < d; j++) logt[i * d + j] = -logf((float)d); /* all equal */
    }
    b->target = (struct kernel_target){.offset = offset, .ids = ids, .probs = probs, .rest = rest};
    if (dense) b->target = (struct kernel_target){.dense = logt};
}

static void expect(struct rows *b) {
    size_t d = b->d;
    const struct kernel_target *t = &b->target;
    for (size_t r = 0; r < ROWS; r++) {
        size_t n = t->dense ? d : t->offset[r + 1] - t->offset[r] + 1, *of = take(d, sizeof *of);
        double *mass = take(n, sizeof *mass), *p = take(n, sizeof *p);
        for (size_t i = 0; i < d; i++) of[i] = t->dense ? i : n - 1;
        for (size_t i = 0; i < n; i++)
            mass[i] = t->dense    ? exp(t->dense[r * d + i])
                      : i < n - 1 ? t->probs[t->offset[r] + i]
                                  : fmax(t->rest[r], 1e-6);
        for (size_t i = 0; !t->dense && i < n - 1; i++) of[t->ids[t->offset[r] + i]] = i;
        for (size_t i = 0; i < d; i++) b->dx[r * d + i] = b->start[r * d + i];
        if (b->row_weight[r] == 0) continue;
        plain64_divergence(&b->how, mass, of, n, !t->dense, b->row_weight[r], b->x.d + r * d, d, p, &b->value[r],
                           b->dx + r * d);
    }
}

static void run_divergence(void *ctx, float *out) {
    const struct rows *b = ctx;
    double value[ROWS];
    kernel_divergence(&b->how, &b->target, b->row_weight, b->x.f, ROWS, b->d, value, out);
    for (size_t r = 0; r < ROWS; r++) {
        double tolerance = tolerance_of(b, r) * (1 + fabs(b->value[r]));
        if (fabs(value[r] - b->value[r]) > tolerance)
            fail_msg("kind %d, row %zu of %zu: %.9g, should be %.9g +- %.1g", b->how.kind, r, b->d, value[r],
                     b->value[r], tolerance);
    }
}

static void test_divergences(void **state) {
    static const size_t sizes[] = {2, 5, 33, 400, 9000};
    (void)state;
    struct rng r = rng_init(50, 1);
    for (size_t i = 0; i < COUNT_OF(sizes) * COUNT_OF(kinds) * 2; i++) {
        struct rows b = {.how = kinds[i / 2 % COUNT_OF(kinds)], .d = sizes[i / 2 / COUNT_OF(kinds)]};
        size_t n = ROWS * b.d;
        b.x = normals(&r, n, 2);
        b.row_weight = take(ROWS, sizeof(float));
        b.start = normals(&r, n, 0.1).f;
        b.value = take(ROWS, sizeof(double));
        b.dx = take(n, sizeof(double));
        double *tolerance = take(n, sizeof *tolerance);
        for (size_t j = 0; j < ROWS; j++) b.row_weight[j] = j == 5 ? 0 : 0.5f + (float)j;
        choose_teacher(&r, &b, i % 2);
        expect(&b);
        for (size_t row = 0; row < ROWS; row++) {
            double of_row = tolerance_of(&b, row) * b.row_weight[row];
            for (size_t j = row * b.d; j < (row + 1) * b.d; j++) tolerance[j] = of_row + U * fabs(b.dx[j]) * 2;
        }
        check_kernel("divergence", run_divergence, &b, n, b.start, b.dx, tolerance);
        arena_reset(&memory);
    }
}

/* Where the teacher gives a token no mass, the reverse divergence is infinite, not merely large. */
static void test_impossible_tokens(void **state) {
    (void)state;
    float logt[] = {-INFINITY, 0, -2}, x[] = {1, 1, 1}, dx[3] = {0};
    double value;
    struct kernel_target t = {.dense = logt};
    EACH_PATH(path) {
        kernel_divergence(&(struct kernel_divergence){DIVERGENCE_KL, 1, 0, 1, 1}, &t, NULL, x, 1, 3, &value, dx);
        assert_true(isinf(value));
    }
}

struct others {
    enum { SMOOTH, VIRTUAL, MSE, CENTRED, HINGE, LOGISTIC, OTHERS } what;
    struct pair x, z;
    float *start, *probs, *row_weight;
    uint32_t *label, *ids;
    uint64_t *offset;
    double *value, *dx;
    size_t d, k;
};

static const struct kernel_label_target label_targets[] = {{1, 0.9f, 0.01f, 0.5f, false}, {3, 0.8f, 0.1f, 1, true}};
static const struct kernel_rank ranks[] = {{false, 1, 0.5f, 5}, {true, 0.2f, 1, 4}};

static void run_other(void *ctx, float *out) {
    const struct others *b = ctx;
    double value[ROWS];
    if (b->what <= VIRTUAL)
        kernel_label_target(&label_targets[b->what], b->label, b->row_weight, b->x.f, ROWS, b->d, value, out);
    else if (b->what <= CENTRED)
        kernel_logit_mse(b->what == CENTRED, 0.5f, b->z.f, b->row_weight, b->x.f, ROWS, b->d, value, out);
    else
        kernel_rank(&ranks[b->what - HINGE], b->offset, b->ids, b->probs, b->row_weight, b->x.f, ROWS, b->d, value,
                    out);
    for (size_t r = 0; r < ROWS; r++)
        if (fabs(value[r] - b->value[r]) > 100 * U * (double)b->d * (1 + fabs(b->value[r])))
            fail_msg("loss %d, row %zu: %.9g, should be %.9g", b->what, r, value[r], b->value[r]);
}

static void expect_other(struct others *b, size_t r) {
    const double *x = b->x.d + r * b->d, *z = b->z.d + r * b->d;
    double *dx = b->dx + r * b->d, w = b->row_weight[r], t[16];
    if (w == 0) return;
    if (b->what <= VIRTUAL) {
        plain64_label_target(&label_targets[b->what], b->label[r], w, x, b->d, &b->value[r], dx);
    } else if (b->what <= CENTRED) {
        plain64_logit_mse(b->what == CENTRED, 0.5 * w, z, x, b->d, &b->value[r], dx);
    } else {
        const struct kernel_rank *how = &ranks[b->what - HINGE];
        size_t k = b->k < how->most ? b->k : how->most;
        for (size_t i = 0; i < k; i++) t[i] = b->probs[b->offset[r] + i];
        plain64_rank(how, b->ids + b->offset[r], t, k, w, x, &b->value[r], dx);
    }
}

static void test_others(void **state) {
    static const size_t sizes[] = {3, 20, 500};
    (void)state;
    struct rng r = rng_init(51, 1);
    for (size_t i = 0; i < OTHERS * COUNT_OF(sizes); i++) {
        struct others b = {.what = i % OTHERS, .d = sizes[i / OTHERS]};
        size_t n = ROWS * b.d;
        b.k = b.d < 6 ? b.d : 6;
        b.x = normals(&r, n, 2);
        b.z = normals(&r, n, 2);
        b.start = normals(&r, n, 0.1).f;
        b.row_weight = take(ROWS, sizeof(float));
        b.label = take(ROWS, sizeof *b.label);
        b.offset = take(ROWS + 1, sizeof *b.offset);
        b.ids = take(ROWS * b.k, sizeof *b.ids);
        b.probs = take(ROWS * b.k, sizeof *b.probs);
        b.value = take(ROWS, sizeof(double));
        b.dx = take(n, sizeof(double));
        double *tolerance = take(n, sizeof *tolerance);
        kernel_topk(b.ids, b.probs, kernel_f32(b.z.f), ROWS, b.d, b.k);
        for (size_t j = 0; j < ROWS; j++) {
            b.row_weight[j] = j == 5 ? 0 : 0.5f + (float)j;
            b.label[j] = j == 2 ? UINT32_MAX : (uint32_t)rng_below(&r, b.d);
            b.offset[j + 1] = b.offset[j] + b.k;
            if (j == 4) b.probs[j * b.k + 1] = b.probs[j * b.k]; /* ties do not form pairs */
        }
        for (size_t j = 0; j < n; j++) b.dx[j] = b.start[j];
        for (size_t j = 0; j < ROWS; j++) expect_other(&b, j);
        for (size_t j = 0; j < n; j++) tolerance[j] = 100 * U * (1 + fabs(b.dx[j])) * (1 + b.row_weight[j / b.d]);
        check_kernel("response", run_other, &b, n, b.start, b.dx, tolerance);
        arena_reset(&memory);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_divergences, release_memory),
        cmocka_unit_test_teardown(test_impossible_tokens, release_memory),
        cmocka_unit_test_teardown(test_others, release_memory),
    };
    return cmocka_run_group_tests_name("kernel response losses", tests, NULL, NULL);
}
