/* Tests of lib/kernel: the distillation loss with every kind of target, against the definition in f64. */
#include "tests/unit/kernel_test.h"

enum kind { SPARSE, TRUNCATED, GHOST, DENSE, NO_TEACHER, KINDS };

/* Rows with their targets, for the kernel (sparse or dense arrays) and for the twin (whole rows of t). */
struct batch {
    enum kind kind;
    size_t rows, d;
    struct kernel_loss how;
    struct kernel_target target;
    struct pair x;
    float *row_weight;
    enum { APART, IN_PLACE, ROUNDED } where; /* dx */
    double *t;                               /* [rows][d] */
    bool *in_k;                              /* [rows][d] */
    double *kl, *ce, *dx, *kl_tolerance, *ce_tolerance, *dx_tolerance;
};

/* Chooses k distinct tokens of d, in no particular order. */
static void choose_ids(struct rng *r, uint32_t *ids, size_t k, size_t d) {
    uint32_t *all = take(d, sizeof *all);
    for (size_t i = 0; i < d; i++) all[i] = (uint32_t)i;
    for (size_t i = 0; i < k; i++) {
        size_t other = i + rng_below(r, d - i);
        ids[i] = all[other];
        all[other] = all[i];
    }
}

static void make_sparse(struct rng *r, struct batch *b) {
    uint64_t *offset = take(b->rows + 1, sizeof *offset);
    uint32_t *ids = take(b->rows * b->d, sizeof *ids);
    float *probs = take(b->rows * b->d, sizeof *probs), *rest = take(b->rows, sizeof *rest);
    for (size_t i = 0; i < b->rows; i++) {
        size_t k = b->kind == SPARSE ? b->d : 1 + rng_below(r, b->d - 1);
        if (b->d > 100 && b->kind != SPARSE) k = 1 + rng_below(r, 30);
        offset[i + 1] = offset[i] + k;
        choose_ids(r, ids + offset[i], k, b->d);
        double sum = 0;
        for (size_t j = 0; j < k; j++) sum += probs[offset[i] + j] = (float)exp(2 * rng_normal(r));
        rest[i] = 1;
        for (size_t j = 0; j < k; j++) {
            float *p = &probs[offset[i] + j];
            *p = (float)(*p / sum * (b->kind == SPARSE ? 1 : 0.9));
            if (j % 7 == 3) *p = 0; /* an entry of weight 0 is still an entry */
            rest[i] -= *p;
            b->t[i * b->d + ids[offset[i] + j]] = *p;
            b->in_k[i * b->d + ids[offset[i] + j]] = true;
        }
    }
    b->target.offset = offset;
    b->target.ids = ids;
    b->target.probs = probs;
    if (b->kind == GHOST) b->target.rest = rest;
}

static void make_dense(struct rng *r, struct batch *b) {
    float *logt = take(b->rows * b->d, sizeof *logt);
    for (size_t i = 0; i < b->rows * b->d; i++) logt[i] = (float)(3 * rng_normal(r));
    kernel_log_softmax(kernel_f32(logt), kernel_f32(logt), b->rows, b->d, 1);
    for (size_t i = 0; i < b->rows * b->d; i++) {
        if (i % 11 == 5) logt[i] = -INFINITY;
        b->t[i] = exp(logt[i]);
        b->in_k[i] = true;
    }
    b->target.dense = logt;
}

/* Logits of five kinds. With a ghost, the other tokens have at least e^-20; smaller masses have a test of their own. */
static void make_logits(struct rng *r, struct batch *b) {
    b->x = normals(r, b->rows * b->d, 2);
    for (size_t i = 0; i < b->rows; i++)
        for (size_t j = 0; j < b->d; j++) {
            size_t at = i * b->d + j;
            if (i % 5 == 1) set(b->x, at, -3);
            if (i % 5 == 2) set(b->x, at, b->x.d[at] + 1e4);
            if (i % 5 == 3 && b->kind != GHOST) set(b->x, at, b->x.d[at] * 2000);
            if (i % 5 == 4 && b->kind == GHOST) set(b->x, at, b->x.d[at] + (b->in_k[at] ? 20 * b->how.temperature : 0));
        }
}

static struct batch make_batch(struct rng *r, enum kind kind, size_t rows, size_t d, struct kernel_loss how) {
    struct batch b = {.kind = kind, .rows = rows, .d = d, .how = how};
    b.t = take(rows * d, sizeof *b.t);
    b.in_k = take(rows * d, sizeof *b.in_k);
    b.row_weight = take(rows, sizeof *b.row_weight);
    if (kind == DENSE)
        make_dense(r, &b);
    else if (kind != NO_TEACHER)
        make_sparse(r, &b);
    make_logits(r, &b);
    uint32_t *label = take(rows, sizeof *label);
    for (size_t i = 0; i < rows; i++) {
        label[i] = i % 4 == 2 ? UINT32_MAX : (uint32_t)rng_below(r, d);
        b.row_weight[i] = i % 6 == 5 ? 0 : (float)rng_f64(r) * 2;
    }
    b.target.label = label;
    b.kl = take(rows, sizeof *b.kl);
    b.ce = take(rows, sizeof *b.ce);
    b.dx = take(rows * d, sizeof *b.dx);
    b.kl_tolerance = take(rows, sizeof *b.kl_tolerance);
    b.ce_tolerance = take(rows, sizeof *b.ce_tolerance);
    b.dx_tolerance = take(rows * d, sizeof *b.dx_tolerance);
    return b;
}

/*
 * The twin's results for row i, and error bounds for the kernel's. With z = (x - max) / T, relative errors: of a sum of
 * exponentials (2 log d + 4) U (see test_kernel_logits.c); of a probability 2 |z| U more, and 6 U for exp, factor and
 * product; of the ghost's share of the student likewise, with z of its largest token.
 */
static void expect_row(struct batch *b, size_t i) {
    const double *x = b->x.d + i * b->d, *t = b->t + i * b->d;
    const bool *in_k = b->in_k + i * b->d;
    double temperature = b->how.temperature, max = -INFINITY, max_others = -INFINITY, mass = 0, others = 0;
    double ghost = b->target.rest ? b->target.rest[i] : 0, logs = 2 * log((double)b->d) + 4;
    double lse = plain64_logsumexp(x, b->d, 1 / temperature), lse1 = plain64_logsumexp(x, b->d, 1);
    uint32_t label = b->target.label[i];
    plain64_distill_loss(&b->how, t, in_k, ghost, label, b->row_weight[i], x, b->d, &b->kl[i], &b->ce[i],
                         b->dx + i * b->d);
    for (size_t j = 0; j < b->d; j++) {
        max = fmax(max, x[j]);
        mass += t[j];
        if (!in_k[j]) max_others = fmax(max_others, x[j]), others += exp(x[j] / temperature - lse);
    }
    double ghost_error = ghost > 0 ? 2 * (max - max_others) / temperature + 2 * logs : 0;
    b->kl_tolerance[i] = U * (mass * logs + ghost * (ghost_error + logs));
    b->ce_tolerance[i] = U * logs;
    for (size_t j = 0; j < b->d; j++) {
        double z = (max - x[j]) / temperature, p = exp(x[j] / temperature - lse), p1 = exp(x[j] - lse1);
        double lp = fabs(x[j] / temperature - lse), lt = t[j] > 0 ? -log(t[j]) : 0;
        b->kl_tolerance[i] += U * t[j] * (8 * (lp + lt) + z + 4);
        double from_kl = mass * p * (2 * z + logs + 8) + 4 * t[j], from_ce = 0;
        if (ghost > 0) from_kl += ghost * p * (in_k[j] ? 1 : 1 / others) * (2 * z + 2 * logs + ghost_error + 8);
        if (label != UINT32_MAX) from_ce = p1 * (2 * (max - x[j]) + logs + 8) + 4 * (j == label);
        b->dx_tolerance[i * b->d + j] =
            b->row_weight[i] * U * (b->how.kl_weight * temperature * from_kl + b->how.ce_weight * from_ce) + 1e-38;
    }
}

/* out: dx [rows][d], kl [rows], ce [rows] */
static void run_loss(void *ctx, float *out) {
    const struct batch *b = ctx;
    size_t n = b->rows * b->d;
    double *kl = take(b->rows, sizeof *kl), *ce = take(b->rows, sizeof *ce);
    const float *x = b->where == IN_PLACE ? out : b->x.f;
    struct kernel_array dx = kernel_f32(out);
    if (b->where == IN_PLACE) memcpy(out, b->x.f, n * sizeof *out);
    if (b->where == ROUNDED) dx = kernel_bf16(take(n, sizeof(uint16_t)));
    kernel_distill_loss(&b->how, &b->target, b->row_weight, kernel_f32(x), b->rows, b->d, kl, ce, dx);
    if (b->where == ROUNDED) kernel_convert(kernel_f32(out), dx, n);
    for (size_t i = 0; i < b->rows; i++) {
        if (fabs(kl[i] - b->kl[i]) > b->kl_tolerance[i] || fabs(ce[i] - b->ce[i]) > b->ce_tolerance[i])
            fail_msg("kind %d, row %zu: kl %.9g ce %.9g, should be %.9g +- %.1g, %.9g +- %.1g", b->kind, i, kl[i],
                     ce[i], b->kl[i], b->kl_tolerance[i], b->ce[i], b->ce_tolerance[i]);
        out[n + i] = (float)kl[i];
        out[n + b->rows + i] = (float)ce[i];
    }
}

static void check_batch(struct batch *b) {
    size_t n = b->rows * b->d;
    double *want = take(n + 2 * b->rows, sizeof *want), *tolerance = take(n + 2 * b->rows, sizeof *tolerance);
    for (size_t i = 0; i < b->rows; i++) expect_row(b, i);
    if (b->kind == NO_TEACHER) memset(b->kl, 0, b->rows * sizeof *b->kl);
    memcpy(want, b->dx, n * sizeof *want);
    memcpy(tolerance, b->dx_tolerance, n * sizeof *tolerance);
    for (size_t i = 0; i < b->rows; i++) { /* run_loss has compared these in f64; this checks the bits with threads */
        want[n + i] = b->kl[i], tolerance[n + i] = b->kl_tolerance[i] + U * fabs(b->kl[i]);
        want[n + b->rows + i] = b->ce[i], tolerance[n + b->rows + i] = b->ce_tolerance[i] + U * fabs(b->ce[i]);
    }
    for (b->where = APART; b->where <= ROUNDED; b->where++) {
        for (size_t i = 0; i < n && b->where == ROUNDED; i++) tolerance[i] += 0x1p-8 * (fabs(want[i]) + tolerance[i]);
        check_kernel("distill_loss", run_loss, b, n + 2 * b->rows, NULL, want, tolerance);
    }
}

static const struct kernel_loss hows[] = {{1, 1, 0},          {1, 0.7f, 0.3f}, {2, 1, 0},   {2, 0.5f, 0.5f},
                                          {0.5f, 0.9f, 0.1f}, {4, 0, 1},       {1, 0, 0.5f}};

static void test_every_kind_of_target(void **state) {
    static const size_t sizes[] = {2, 3, 17, 100, 3000};
    (void)state;
    struct rng r = rng_init(40, 1);
    for (enum kind kind = SPARSE; kind < KINDS; kind++)
        for (size_t i = 0; i < COUNT_OF(sizes) * COUNT_OF(hows); i++) {
            struct kernel_loss how = hows[i % COUNT_OF(hows)];
            if (kind == NO_TEACHER) how.kl_weight = 0; /* for the twin: the kernel ignores it */
            struct batch b = make_batch(&r, kind, 11, sizes[i / COUNT_OF(hows)], how);
            if (kind == NO_TEACHER) b.how.kl_weight = 0;
            check_batch(&b);
            arena_reset(&memory);
        }
}

/* A ghost row longer than the pieces of its loops. */
static void test_long_ghost_rows(void **state) {
    (void)state;
    struct rng r = rng_init(41, 1);
    struct batch b = make_batch(&r, GHOST, 5, 20000, (struct kernel_loss){2, 1, 0.5f});
    check_batch(&b);
}

/* The gradient with respect to logits is orthogonal to constants, since adding a constant to all logits changes
 * nothing. */
static void test_gradients_sum_to_zero(void **state) {
    (void)state;
    struct rng r = rng_init(42, 1);
    for (enum kind kind = SPARSE; kind < KINDS; kind++)
        for (size_t i = 0; i < COUNT_OF(hows); i++) {
            enum { ROWS = 11, D = 500 };
            struct batch b = make_batch(&r, kind, ROWS, D, hows[i]);
            float *dx = take(ROWS * D, sizeof *dx);
            kernel_distill_loss(&b.how, &b.target, NULL, kernel_f32(b.x.f), ROWS, D, NULL, NULL, kernel_f32(dx));
            for (size_t row = 0; row < ROWS; row++) {
                double sum = 0, terms = 0;
                for (size_t j = 0; j < D; j++) sum += dx[row * D + j], terms += fabs((double)dx[row * D + j]);
                if (fabs(sum) > 300 * U * (terms + 1))
                    fail_msg("kind %d how %zu row %zu sum %g terms %g", kind, i, row, sum, terms);
            }
            arena_reset(&memory);
        }
}

/* If the student gives the ghost's tokens no mass at all, the loss is large, but everything stays finite. */
static void test_ghost_of_impossible_tokens(void **state) {
    (void)state;
    enum { D = 40 };
    const uint64_t offset[] = {0, 1};
    const uint32_t ids[] = {7}, label[] = {3};
    const float probs[] = {0.5f}, rest[] = {0.5f};
    struct kernel_target target = {.offset = offset, .ids = ids, .probs = probs, .rest = rest, .label = label};
    EACH_PATH(path) {
        float x[D], dx[D];
        double kl, ce;
        for (size_t i = 0; i < D; i++) x[i] = i == 7 ? 1e4f : -1e4f;
        kernel_distill_loss(&(struct kernel_loss){1, 1, 1}, &target, NULL, kernel_f32(x), 1, D, &kl, &ce,
                            kernel_f32(dx));
        assert_true(isfinite(kl) && kl > 30 && ce == 2e4);
        for (size_t i = 0; i < D; i++) assert_true(isfinite(dx[i]));
        assert_true(fabs(dx[7] - (1 - 0.5 + 1)) < 1e-6 && fabs(dx[3] + 1) < 1e-6);
    }
}

/* Outputs that are NULL are skipped; without label and teacher the gradient is zero. */
static void test_optional_parts(void **state) {
    (void)state;
    float x[5] = {1, 2, 3, 4, 5}, dx[5] = {9, 9, 9, 9, 9};
    double kl = 7, ce = 7;
    struct kernel_target nothing = {0};
    kernel_distill_loss(&(struct kernel_loss){1, 1, 1}, &nothing, NULL, kernel_f32(x), 1, 5, &kl, &ce, kernel_f32(dx));
    assert_true(kl == 0 && ce == 0 && dx[0] == 0 && dx[4] == 0);
    uint32_t label = 4;
    struct kernel_target labelled = {.label = &label};
    kernel_distill_loss(&(struct kernel_loss){1, 1, 1}, &labelled, NULL, kernel_f32(x), 1, 5, NULL, &ce,
                        kernel_none(DT_F32));
    assert_true(fabs(ce - (plain64_logsumexp((double[]){1, 2, 3, 4, 5}, 5, 1) - 5)) < 1e-6);
}

/*
 * Targets of N draws: the gradient is linear in the target, so its mean over many draws is the gradient for the whole
 * distribution. The bound is five standard deviations of the frequency in n draws of probability p: 5 sqrt(p / n).
 */
static void test_sampled_targets_are_unbiased(void **state) {
    enum { D = 50, N = 20, ROWS = 4000 };
    (void)state;
    struct rng r = rng_init(43, 1);
    struct pair teacher = normals(&r, D, 1.5), student = normals(&r, D, 1.5);
    float *z = take(ROWS * D, sizeof *z), *x = take(ROWS * D, sizeof *x), *probs = take(ROWS * N, sizeof *probs);
    double *u = take(ROWS * N, sizeof *u), mean[D] = {0}, t[D], full[D], kl, ce;
    uint32_t *ids = take(ROWS * N, sizeof *ids);
    uint64_t *offset = take(ROWS + 1, sizeof *offset);
    for (size_t i = 0; i < ROWS; i++) {
        memcpy(z + i * D, teacher.f, D * sizeof *z);
        memcpy(x + i * D, student.f, D * sizeof *x);
        for (size_t j = 0; j < N; j++) u[i * N + j] = rng_f64(&r);
    }
    kernel_sample(ids, u, kernel_f32(z), ROWS, D, N, 1);
    size_t at = 0; /* equal draws in a row are merged to one entry */
    for (size_t i = 0; i < ROWS; i++) {
        for (size_t j = 0; j < N; j++) {
            if (j > 0 && ids[i * N + j] == ids[at - 1]) {
                probs[at - 1] += 1.0f / N;
                continue;
            }
            ids[at] = ids[i * N + j];
            probs[at++] = 1.0f / N;
        }
        offset[i + 1] = at;
    }
    struct kernel_target target = {.offset = offset, .ids = ids, .probs = probs};
    struct kernel_loss how = {1, 1, 0};
    kernel_distill_loss(&how, &target, NULL, kernel_f32(x), ROWS, D, NULL, NULL, kernel_f32(x));
    for (size_t i = 0; i < ROWS * D; i++) mean[i % D] += (double)x[i] / ROWS;
    bool in_k[D] = {0};
    plain64_log_softmax(t, teacher.d, D, 1);
    for (size_t i = 0; i < D; i++) t[i] = exp(t[i]);
    plain64_distill_loss(&how, t, in_k, 0, UINT32_MAX, 1, student.d, D, &kl, &ce, full);
    for (size_t i = 0; i < D; i++) assert_true(fabs(mean[i] - full[i]) < 5 * sqrt(t[i] / (ROWS * N)));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_every_kind_of_target, release_memory),
        cmocka_unit_test_teardown(test_long_ghost_rows, release_memory),
        cmocka_unit_test_teardown(test_gradients_sum_to_zero, release_memory),
        cmocka_unit_test_teardown(test_ghost_of_impossible_tokens, release_memory),
        cmocka_unit_test_teardown(test_optional_parts, release_memory),
        cmocka_unit_test_teardown(test_sampled_targets_are_unbiased, release_memory),
    };
    return cmocka_run_group_tests_name("kernel loss", tests, NULL, NULL);
}
