/* Tests of lib/quant's learned rounding: gradients of half a layer, the resulting grid, and the reported error. */
#include "tests/unit/kernel_test.h"
#include "tests/unit/model_samples.h"

#include "lib/quant/learn.h"

/* ---- halves of a layer ---- */

enum { SEQS = 9, LENGTH = 12, POSITIONS = SEQS * LENGTH };

/* A layer with 256 inputs, so that all types fit, and its input. */
struct sample {
    struct arena a;
    struct model_config c;
    struct model *m;
    struct grad_tape *record, *scratch;
    uint32_t tokens[POSITIONS], lengths[SEQS];
    struct model_input in;
    float *x, *target;
    size_t n; /* positions * hidden */
};

static void sample_begin(struct sample *s, bool parallel) {
    struct err e;
    struct rng r = rng_init(5, 6);
    *s = (struct sample){0};
    s->c = sample_config(&s->a);
    s->c.hidden = 256, s->c.head_dim = 64, s->c.parallel = parallel;
    s->c.layers[0] = (struct model_layer){4, 2, 256};
    s->m = sample_model(&s->c, 3);
    OK(grad_tape_new(&s->record, kernel_cpu(), true, DT_F32, &e));
    OK(grad_tape_new(&s->scratch, kernel_cpu(), false, DT_F32, &e));
    sample_tokens(s->tokens, POSITIONS, 97, 1);
    for (size_t i = 0; i < SEQS; i++) s->lengths[i] = LENGTH;
    s->in = (struct model_input){POSITIONS, SEQS, s->tokens, s->lengths, NULL};
    s->n = POSITIONS * s->c.hidden;
    s->x = take(s->n, sizeof *s->x);
    s->target = take(s->n, sizeof *s->target);
    for (size_t i = 0; i < s->n; i++) s->x[i] = (float)rng_normal(&r);
}

static void sample_end(struct sample *s) {
    grad_tape_free(s->record);
    grad_tape_free(s->scratch);
    model_free(s->m);
    arena_release(&s->a);
    parallel_set_threads(1);
}

static struct learn_block block_of(const struct sample *s, enum model_block block) {
    return (struct learn_block){.model = s->m,
                                .record = s->record,
                                .scratch = s->scratch,
                                .in = &s->in,
                                .n = 1,
                                .block = block,
                                .x = s->x,
                                .target = s->target};
}

/* The two halves in sequence are the layer. */
static void test_halves(void **state) {
    (void)state;
    struct sample s;
    struct err e;
    sample_begin(&s, false);
    float *whole = take(s.n, sizeof *whole), *half = take(s.n, sizeof *half), *again = take(s.n, sizeof *again);
    struct learn_block b = block_of(&s, BLOCK_LAYER);
    OK(learn_run(&b, whole, &e));
    b.block = BLOCK_ATTENTION;
    OK(learn_run(&b, half, &e));
    assert_memory_not_equal(half, whole, s.n * sizeof *half);
    b.block = BLOCK_FFN;
    b.x = half;
    OK(learn_run(&b, again, &e));
    assert_memory_equal(whole, again, s.n * sizeof *whole);
    assert_true(model_has_halves(&s.c));
    s.c.parallel = true;
    assert_false(model_has_halves(&s.c));
    sample_end(&s);
}

/* sum y c, and its gradient with respect to a weight, against a difference of the whole half in f32; the step is so
 * large that rounding is negligible */
static double weighted(struct sample *s, enum model_block block, const float *c, struct grad_var **y) {
    struct err e;
    struct grad_tape *t = s->record;
    grad_reset(t);
    struct grad_var *x = grad_leaf(t, kernel_f32(s->x), kernel_none(DT_F32), POSITIONS, s->c.hidden);
    *y = model_graph_block(s->m, t, &s->in, 0, block, x, &e);
    assert_non_null(*y);
    const float *host = grad_host_value(t, *y);
    double sum = 0;
    for (size_t i = 0; i < s->n; i++) sum += (double)host[i] * c[i];
    return sum;
}

static void test_gradients(void **state) {
    (void)state;
    static const enum model_role roles[] = {ROLE_Q, ROLE_K, ROLE_V, ROLE_O, ROLE_GATE, ROLE_UP, ROLE_DOWN};
    struct sample s;
    sample_begin(&s, false);
    float *c = take(s.n, sizeof *c);
    struct rng r = rng_init(8, 9);
    for (size_t i = 0; i < s.n; i++) c[i] = (float)rng_normal(&r);
    for (size_t i = 0; i < COUNT_OF(roles); i++) {
        struct err e;
        enum model_block block = i < 4 ? BLOCK_ATTENTION : BLOCK_FFN;
        struct model_param *p = model_param(s.m, roles[i], 0);
        struct grad_var *y;
        OK(model_enable_grad_of(s.m, (size_t)(p - s.m->params), &e));
        p->grad_begun = false;
        weighted(&s, block, c, &y);
        grad_add_to(s.record, y, c);
        grad_backward(s.record);
        OK(grad_error(s.record, &e));
        /* along a random direction of ascent */
        float *d = take(p->n, sizeof *d), *w = model_host_value(p), *was = take(p->n, sizeof *was);
        double by = 0, slope = 0, size = 0;
        memcpy(was, w, p->n * sizeof *was);
        size = kernel_sum_squares(p->grad, p->n);
        for (uint64_t k = 0; k < p->n; k++) {
            float g = model_host_grad(p)[k];
            d[k] = (float)(rng_normal(&r) + 2 * g / sqrt(size));
            by += (double)d[k] * g;
        }
        const float step = 1.0f / 512;
        for (int sign = -1; sign <= 1; sign += 2) {
            for (uint64_t k = 0; k < p->n; k++) w[k] = was[k] + (float)sign * step * d[k];
            slope += sign * weighted(&s, block, c, &y) / (2.0 * step);
        }
        memcpy(w, was, p->n * sizeof *was);
        if (!(size > 0 && fabs(slope - by) < 0.01 * sqrt(size)))
            fail_msg("%s: %g, by differences %g, of a length of %g", model_role_info(roles[i])->name, by, slope,
                     sqrt(size));
    }
    sample_end(&s);
}

/* ---- the grid ---- */

/* Trial values must equal those read back, before and after steps, in each type; a step along the gradient must
 * reduce the objective. */
static void test_bits(void **state) {
    (void)state;
    enum { ROWS = 6, COLS = 256 };
    const struct dtype_info *t;
    unsigned n_types = 0;
    for (size_t i = 0; (t = dtype_at(i)); i++) {
        if (!t->is_quantized || t->read_only || !second_order_takes(t->dtype)) continue;
        struct err e;
        struct rounding r;
        struct rng rng = rng_init(i, 1);
        size_t bytes = dtype_row_bytes(t->dtype, COLS) * ROWS, n = ROWS * COLS;
        float *w = take(n, sizeof *w), *gram = take(COLS * COLS, sizeof *gram), *gradient = take(n, sizeof *gradient);
        float *now = take(n, sizeof *now), *back = take(n, sizeof *back), *scratch = take(n, sizeof *scratch);
        unsigned char *packed = take(bytes, 1), *first = take(bytes, 1);
        n_types++;
        for (size_t k = 0; k < n; k++) w[k] = (float)rng_normal(&rng), gradient[k] = (float)rng_normal(&rng);
        for (size_t k = 0; k < COLS; k++) gram[k * (COLS + 1)] = 1;
        for (size_t row = 0; row < ROWS; row++)
            OK(tensor_from_f32(t->dtype, w + row * COLS, packed + row * dtype_row_bytes(t->dtype, COLS), COLS, NULL,
                               &e));
        memcpy(first, packed, bytes);
        OK(rounding_new(&r, t->dtype, ROWS, COLS, gram, packed, &e));
        rounding_put(&r, packed);
        rounding_value(&r, now);
        tensor_to_f32(t->dtype, first, back, n);
        assert_memory_equal(now, back, n * sizeof *now);
        tensor_to_f32(t->dtype, packed, back, n);
        assert_memory_equal(now, back, n * sizeof *now);
        /* probes whose rows have the power of the trace: b is 1 */
        for (size_t k = 0; k < n; k++) scratch[k] = 1;
        rounding_probe(&r, scratch);
        rounding_accept(&r, gradient);
        OK(rounding_step(&r, 1, scratch, &e));
        rounding_value(&r, now);
        double linear = 0, square = 0;
        for (size_t k = 0; k < n; k++) {
            linear += (double)gradient[k] * ((double)now[k] - back[k]);
            square += ((double)now[k] - back[k]) * ((double)now[k] - back[k]);
        }
        if (!(square > 0 && linear + square < 0)) fail_msg("%s: %g + %g", t->name, linear, square);
        rounding_put(&r, packed); /* not kept */
        assert_memory_equal(packed, first, bytes);
        rounding_keep(&r);
        rounding_put(&r, packed);
        tensor_to_f32(t->dtype, packed, scratch, n);
        assert_memory_equal(now, scratch, n * sizeof *now);
        rounding_back(&r);
        rounding_value(&r, now);
        assert_memory_equal(now, back, n * sizeof *now);
        rounding_release(&r);
    }
    assert_true(n_types >= 14);
}

/* ---- the loop ---- */

enum { MATRICES = 2 };

/* gate and up of the first layer in q2_k, rounded to nearest; both have the same inputs. */
struct rounded {
    struct learn_matrix m[MATRICES];
    float *gram;
    size_t bytes;
};

static struct rounded round_ffn(struct sample *s) {
    struct err e;
    struct rounded r = {.gram = take(256 * 256, sizeof *r.gram), .bytes = dtype_row_bytes(DT_Q2_K, 256 * 256)};
    struct learn_block b = block_of(s, BLOCK_FFN);
    OK(learn_run(&b, s->target, &e));
    for (size_t i = 0; i < POSITIONS; i++) {
        float y[256], scale = (float)sqrt(256 / kernel_sum_squares(kernel_f32(s->x + i * 256), 256));
        for (size_t j = 0; j < 256; j++) y[j] = s->x[i * 256 + j] * scale; /* the norm's gain is 1 */
        for (size_t j = 0; j < 256; j++)
            for (size_t k = 0; k < 256; k++) r.gram[j * 256 + k] += y[j] * y[k];
    }
    for (size_t i = 0; i < MATRICES; i++) {
        struct model_param *p = model_param(s->m, i ? ROLE_UP : ROLE_GATE, 0);
        unsigned char *packed = take(r.bytes, 1);
        OK(tensor_from_f32(DT_Q2_K, model_host_value(p), packed, p->n, NULL, &e));
        tensor_to_f32(DT_Q2_K, packed, model_host_value(p), p->n);
        r.m[i] = (struct learn_matrix){p, r.gram, DT_Q2_K, packed};
    }
    return r;
}

/* The error over sequences [first, first + n), in f64. */
static double error_of(struct sample *s, const struct rounded *r, size_t first, size_t n) {
    struct err e;
    double sum = 0;
    float *y = take(s->n, sizeof *y);
    for (size_t i = 0; i < MATRICES; i++)
        tensor_to_f32(r->m[i].dtype, r->m[i].packed, model_host_value(r->m[i].param), r->m[i].param->n);
    struct learn_block b = block_of(s, BLOCK_FFN);
    OK(learn_run(&b, y, &e));
    for (size_t i = first * LENGTH; i < (first + n) * LENGTH; i++) {
        double by = 0, of = 0;
        for (size_t j = 0; j < 256; j++) {
            double d = (double)y[i * 256 + j] - s->target[i * 256 + j];
            by += d * d;
            of += (double)s->target[i * 256 + j] * s->target[i * 256 + j];
        }
        sum += by / of;
    }
    return sum / (double)(n * LENGTH);
}

/* The error must be as reported and smaller than before, also on held-out sequences; 1 and 4 threads give the same
 * bits. */
static void learns(size_t sample) {
    unsigned char *first = NULL;
    for (int threads = 1; threads <= 4; threads += 3) {
        struct sample s;
        struct err e;
        struct learn_error error;
        sample_begin(&s, false);
        parallel_set_threads(threads);
        struct rounded r = round_ffn(&s);
        struct learn_block b = block_of(&s, BLOCK_FFN);
        b.matrices = r.m, b.n_matrices = MATRICES, b.sample = sample;
        double held = error_of(&s, &r, SEQS - 1, 1),
               seen = error_of(&s, &r, 0, SEQS - 1); /* the last of nine is held out */
        OK(learn_rounding(&b, 6, &error, &e));
        assert_true(fabs(error.before - held) < 1e-4 * held);
        double after = error_of(&s, &r, SEQS - 1, 1);
        assert_true(fabs(error.after - after) < 1e-4 * after);
        if (!(after < held && error_of(&s, &r, 0, SEQS - 1) < 0.95 * seen)) fail_msg("%g of %g", after, held);
        for (size_t i = 0; i < MATRICES; i++) assert_false(kernel_has_data(r.m[i].param->grad));
        if (!first) {
            first = take(r.bytes, MATRICES);
            for (size_t i = 0; i < MATRICES; i++) memcpy(first + i * r.bytes, r.m[i].packed, r.bytes);
        }
        for (size_t i = 0; i < MATRICES; i++) assert_memory_equal(first + i * r.bytes, r.m[i].packed, r.bytes);
        sample_end(&s);
    }
}

static void test_learns(void **state) {
    (void)state;
    learns(0);
}

/* From three of eight sequences after the first step. */
static void test_learns_from_a_sample(void **state) {
    (void)state;
    learns(3 * LENGTH);
}

/* Losses that are not quadratic, on two halves of the data: at the start the estimate from one half must be the gradient of
 * both, and elsewhere the sample's change scaled up, plus to first order what the other half adds. */
static void test_estimate(void **state) {
    (void)state;
    enum { ROWS = 2, COLS = 256, N = ROWS * COLS };
    struct err e;
    struct rounding r;
    struct rng rng = rng_init(3, 4);
    const double scale = 2;
    float *w = take(N, sizeof *w), *gram = take(COLS * COLS, sizeof *gram), *now = take(N, sizeof *now);
    float *half = take(N, sizeof *half), *all = take(N, sizeof *all), *later = take(N, sizeof *later);
    unsigned char *packed = take(ROWS, dtype_row_bytes(DT_Q8_0, COLS));
    for (size_t i = 0; i < N; i++) {
        w[i] = (float)rng_normal(&rng);
        now[i] = w[i] + (float)rng_normal(&rng) / 8;
        half[i] = (float)rng_normal(&rng);
        all[i] = 2 * half[i] + (float)rng_normal(&rng) / 4;
        later[i] = half[i] + (now[i] - w[i]) * 3;
    }
    OK(rounding_new(&r, DT_Q8_0, ROWS, COLS, gram, packed, &e));
    OK(rounding_sampled(&r, scale, half, &e));
    rounding_rest(&r, all, w);
    double change = 0;
    for (size_t i = 0; i < N; i++) change += ((double)all[i] - scale * half[i]) * ((double)now[i] - w[i]);
    assert_true(fabs(change) > 0.1);
    assert_true(fabs(rounding_extend(&r, scale, later, now) - change) < 1e-5 * fabs(change));
    for (size_t i = 0; i < N; i++) assert_true(fabs(later[i] - (all[i] + scale * 3 * (now[i] - w[i]))) < 1e-5);
    assert_true(rounding_extend(&r, scale, half, w) == 0);
    for (size_t i = 0; i < N; i++) assert_true(fabs(half[i] - all[i]) < 1e-5);
    rounding_release(&r);
}

/* Values that are not finite change nothing; when any allocation fails, the blocks keep their bits. */
static void test_nothing_is_lost(void **state) {
    (void)state;
    struct sample s;
    struct err e;
    struct learn_error error;
    sample_begin(&s, false);
    struct rounded r = round_ffn(&s);
    struct learn_block b = block_of(&s, BLOCK_FFN);
    b.matrices = r.m, b.n_matrices = MATRICES, b.sample = 2 * LENGTH;
    unsigned char *was = take(r.bytes, 1);
    memcpy(was, r.m[0].packed, r.bytes);
    s.target[0] = NAN;
    OK(learn_rounding(&b, 2, &error, &e));
    assert_memory_equal(was, r.m[0].packed, r.bytes);
    s.target[0] = 1;
    int rc = ERR_IO;
    for (uint64_t n = 1; rc; n++) {
        mem_fail_at(n);
        rc = learn_rounding(&b, 1, &error, &e);
        mem_fail_at(0);
        if (!rc) break;
        assert_int_equal(rc, ERR_IO);
        assert_memory_equal(was, r.m[0].packed, r.bytes);
        for (size_t i = 0; i < MATRICES; i++) assert_false(kernel_has_data(r.m[i].param->grad));
    }
    sample_end(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_halves, release_memory),
        cmocka_unit_test_teardown(test_gradients, release_memory),
        cmocka_unit_test_teardown(test_bits, release_memory),
        cmocka_unit_test_teardown(test_learns, release_memory),
        cmocka_unit_test_teardown(test_learns_from_a_sample, release_memory),
        cmocka_unit_test_teardown(test_estimate, release_memory),
        cmocka_unit_test_teardown(test_nothing_is_lost, release_memory),
    };
    return cmocka_run_group_tests_name("learned rounding", tests, NULL, NULL);
}
