/*
 * Tests of lib/prune's unstructured sparsity: masks and weights against published formulas (tests/golden/prune),
 * sparsities as text and by rules.
 */
#include "tests/unit/golden_samples.h"
#include "tests/unit/prune_samples.h"

#include "lib/formats/formats.h"
#include "lib/prune/second_order.h"

#define GOLDEN "tests/golden/prune/"
enum { ROWS = 16, COLS = 136 };

static float *golden_matrix(const char *name, size_t rows) {
    return golden_file(name, rows * COLS * sizeof(float));
}

/* The matrix and its norms; *gram receives the Gram matrix. */
static struct prune_matrix sample_matrix(float **gram, float *norms) {
    *gram = golden_matrix(GOLDEN "gram.f32", COLS);
    for (size_t i = 0; i < COLS; i++) norms[i] = sqrtf((*gram)[i * COLS + i]);
    return (struct prune_matrix){golden_matrix(GOLDEN "w.f32", ROWS), ROWS, COLS, norms};
}

static struct buf scratch; /* of prune_mask */

static void wanda_masks_are_those_of_the_formula(void **state) {
    (void)state;
    static const struct {
        struct prune_sparsity sparsity;
        const char *name;
    } cases[] = {{{.share = 0.5}, GOLDEN "wanda.5.f32"}, {{.n = 2, .m = 4}, GOLDEN "wanda.24.f32"}};
    struct err e;
    float *gram, norms[COLS];
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct prune_matrix w = sample_matrix(&gram, norms);
        float *expected = golden_matrix(cases[i].name, ROWS);
        OK(prune_mask(&w, cases[i].sparsity, PRUNE_WANDA, &scratch, &e));
        assert_memory_equal(w.x, expected, ROWS * COLS * sizeof *w.x);
        mem_free(w.x);
        mem_free(gram);
        mem_free(expected);
    }
}

/* ---- second order, on one matrix ---- */

static struct obs_factor *factor_of(const float *gram) {
    struct err e;
    struct obs_factor *f;
    struct obs_options o = {.damp = 0.01};
    OK(obs_factor_new(&f, gram, COLS, &o, &e));
    return f;
}

/* b = w (gram + ridge) */
static float *wanted_of(const float *w, const float *gram, double ridge) {
    struct err e;
    float *b = mem_array(ROWS * COLS, sizeof *b, &e);
    kernel_matmul_nn(ROWS, COLS, COLS, kernel_f32(w), kernel_f32(gram), 0, kernel_f32(b));
    for (size_t i = 0; i < ROWS * COLS; i++) b[i] += (float)(ridge * w[i]);
    return b;
}

/* tr(d G d^T) / tr(w G w^T) with d = x - w, in f64. */
static double error_of(const float *x, const float *w, const float *gram) {
    double sums[2] = {0};
    for (size_t r = 0; r < ROWS; r++)
        for (size_t i = 0; i < COLS; i++)
            for (size_t j = 0; j < COLS; j++) {
                const float *a = x + r * COLS, *b = w + r * COLS;
                sums[0] += ((double)a[i] - b[i]) * gram[i * COLS + j] * ((double)a[j] - b[j]);
                sums[1] += (double)b[i] * gram[i * COLS + j] * b[j];
            }
    return sums[0] / sums[1];
}

/* Zeros must be the same; weights may differ by `tolerance` of the largest. */
static void assert_weights(const float *x, const char *name, double tolerance) {
    float *expected = golden_matrix(name, ROWS);
    double largest = 0;
    for (size_t i = 0; i < ROWS * COLS; i++) largest = fmax(largest, fabs(expected[i]));
    for (size_t i = 0; i < ROWS * COLS; i++) {
        if ((x[i] == 0) != (expected[i] == 0)) fail_msg("%s: weight %zu: %g, expected %g", name, i, x[i], expected[i]);
        if (!(fabs((double)x[i] - expected[i]) <= tolerance * largest))
            fail_msg("%s: weight %zu: %g, expected %g", name, i, x[i], expected[i]);
    }
    mem_free(expected);
}

static void sparsegpt_weights_are_those_of_the_algorithm(void **state) {
    (void)state;
    static const struct {
        struct prune_sparsity sparsity;
        const char *name;
    } cases[] = {{{.share = 0.5}, GOLDEN "sparsegpt.5.f32"}, {{.n = 2, .m = 4}, GOLDEN "sparsegpt.24.f32"}};
    struct err e;
    float *gram, norms[COLS];
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct prune_matrix w = sample_matrix(&gram, norms);
        struct obs_factor *f = factor_of(gram);
        OK(prune_sparsegpt(&w, f, cases[i].sparsity, &e));
        assert_weights(w.x, cases[i].name, 1e-4);
        obs_factor_free(f);
        mem_free(w.x);
        mem_free(gram);
    }
}

static void least_squares_within_a_mask(void **state) {
    (void)state;
    struct err e;
    float *gram, norms[COLS];
    struct prune_matrix w = sample_matrix(&gram, norms);
    float *b = wanted_of(w.x, gram, 0);
    struct prune_fit fit = {.gram = gram, .b = b, .iterations = 400};
    OK(prune_mask(&w, (struct prune_sparsity){.share = 0.5}, PRUNE_WANDA, &scratch, &e));
    for (size_t r = 0; r < ROWS; r++) w.x[r * COLS + 5] = 0; /* the input that is always 0: any weight would do */
    OK(prune_refit(&w, &fit, &e));
    assert_weights(w.x, GOLDEN "refit.5.f32", 1e-4);
    mem_free(w.x);
    mem_free(b);
    mem_free(gram);
}

static double error_by(enum prune_method method, bool refit, struct prune_sparsity s) {
    struct err e;
    float *gram, norms[COLS], *was = golden_matrix(GOLDEN "w.f32", ROWS);
    struct prune_matrix w = sample_matrix(&gram, norms);
    double ridge = 0;
    for (size_t i = 0; i < COLS; i++) ridge += 0.01 * gram[i * (COLS + 1)] / COLS;
    float *b = wanted_of(w.x, gram, ridge);
    struct prune_fit fit = {.gram = gram, .b = b, .ridge = ridge, .iterations = 20};
    struct obs_factor *f = factor_of(gram);
    if (method == PRUNE_SPARSEGPT)
        OK(prune_sparsegpt(&w, f, s, &e));
    else if (method == PRUNE_ALPS)
        OK(prune_alps(&w, &fit, s, &e));
    else
        OK(prune_mask(&w, s, method, &scratch, &e));
    if (refit) OK(prune_refit(&w, &fit, &e));
    size_t zeros = kernel_count_zeros(w.x, ROWS * COLS);
    assert_in_range(zeros, ROWS * COLS / 2, ROWS * COLS / 2 + ROWS); /* plus the weights of the zero input */
    for (size_t i = 0; s.m && i < ROWS * COLS; i += s.m) assert_true(kernel_count_zeros(w.x + i, s.m) >= s.m - s.n);
    double error = error_of(w.x, was, gram);
    obs_factor_free(f);
    mem_free(b);
    mem_free(was);
    mem_free(w.x);
    mem_free(gram);
    return error;
}

static void each_method_is_better_than_the_one_before(void **state) {
    (void)state;
    static const struct prune_sparsity cases[] = {{.share = 0.5}, {.n = 2, .m = 4}, {.n = 4, .m = 8}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        double magnitude = error_by(PRUNE_MAGNITUDE, false, cases[i]), wanda = error_by(PRUNE_WANDA, false, cases[i]);
        double sparsegpt = error_by(PRUNE_SPARSEGPT, false, cases[i]), alps = error_by(PRUNE_ALPS, false, cases[i]);
        double fitted = error_by(PRUNE_SPARSEGPT, true, cases[i]);
        if (!(wanda < magnitude && sparsegpt < wanda && fitted < sparsegpt && alps < fitted))
            fail_msg("%zu: %g, %g, %g, %g, %g", i, magnitude, wanda, sparsegpt, fitted, alps);
        assert_true(error_by(PRUNE_WANDA, true, cases[i]) < wanda);
        assert_true(error_by(PRUNE_MAGNITUDE, true, cases[i]) < magnitude);
    }
}

/* A textbook loop that counts, for each element of a group, how many are smaller, or equal and earlier. */
static void check_masks(size_t rows, size_t cols, struct prune_sparsity s, enum prune_method method,
                        const float *norms) {
    struct err e;
    struct rng r = rng_init(11, rows * cols);
    float *x = mem_array(rows * cols, sizeof *x, &e), *y = mem_array(rows * cols, sizeof *y, &e);
    for (size_t i = 0; i < rows * cols; i++) x[i] = y[i] = (float)((int)rng_below(&r, 9) - 4) / 4; /* many ties */
    struct prune_matrix w = {y, rows, cols, norms};
    OK(prune_mask(&w, s, method, &scratch, &e));
    bool by_row = method == PRUNE_WANDA;
    size_t group = s.m ? s.m : by_row ? cols : rows * cols;
    size_t gone = s.m ? s.m - s.n : (size_t)(s.share * (double)group);
    for (size_t i = 0; i < rows * cols; i++) {
        size_t first = i / group * group, before = 0;
        float mine = fabsf(x[i] * (by_row ? norms[i % cols] : 1));
        for (size_t k = first; k < first + group; k++) {
            float other = fabsf(x[k] * (by_row ? norms[k % cols] : 1));
            before += other < mine || (other == mine && k < i);
        }
        assert_true(before < gone ? y[i] == 0 : y[i] == x[i]);
    }
    mem_free(x);
    mem_free(y);
}

static void masks_take_the_smallest_and_exactly_so_many(void **state) {
    (void)state;
    float norms[48];
    for (size_t i = 0; i < 48; i++) norms[i] = (float)(i % 3);
    static const struct prune_sparsity cases[] = {{.share = 0.5},   {.share = 0.01},    {.share = 0.99},
                                                  {.n = 2, .m = 4}, {.n = 4, .m = 8},   {.n = 1, .m = 2},
                                                  {.n = 5, .m = 6}, {.n = 16, .m = 48}, {.n = 1, .m = 48}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        check_masks(7, 48, cases[i], PRUNE_MAGNITUDE, NULL);
        check_masks(7, 48, cases[i], PRUNE_WANDA, norms);
        check_masks(1, 48, cases[i], PRUNE_WANDA, norms);
    }
}

static void sparsity_as_text(void **state) {
    (void)state;
    struct err e;
    struct prune_sparsity s;
    char text[PRUNE_SPARSITY_TEXT];
    static const char *const good[][2] = {{"0.5", "0.5"}, {"50%", "0.5"}, {"0", "0"}, {"2:4", "2:4"}, {"1:64", "1:64"}};
    for (size_t i = 0; i < COUNT_OF(good); i++) {
        OK(prune_sparsity_parse(good[i][0], &s, &e));
        assert_string_equal(prune_sparsity_text(s, text), good[i][1]);
    }
    static const char *const bad[] = {
        "",      "1",   "-0.1",  "nan", "100%", "x",   "2:",   ":4",    "4:4",  "0:4", "2:65",
        "2:4:8", "5:4", "2.5:4", "%",   "1e9%", "-1%", "2 :4", "50 % ", "2:4 ", "inf", "99999999:99999999999"};
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        if (prune_sparsity_parse(bad[i], &s, &e) != ERR_USAGE) fail_msg("'%s' was taken", bad[i]);
    struct prune_rule rule;
    assert_int_equal(prune_rule_parse("=0.5", &rule, &e), ERR_USAGE);
    assert_int_equal(prune_rule_parse("ffn", &rule, &e), ERR_USAGE);
    OK(prune_rule_parse("a=b=2:4", &rule, &e));
    assert_true(rule.pattern.n == 3 && rule.sparsity.n == 2);
}

/* ---- whole models ---- */

static int count_tensor(void *ctx, const struct prune_tensor_report *t, struct err *e) {
    (void)e;
    struct buf *lines = ctx;
    char line[200];
    int n = snprintf(line, sizeof line, "%s %.3f\n", t->name, (double)t->zeros / (double)t->elems);
    return buf_append(lines, line, (size_t)n, e);
}

static int sparse_model(const struct model *m, struct prune_options o, struct model **out, char lines[4000],
                        struct err *e) {
    struct prune_report report;
    struct buf seen = {0};
    o.sparse = count_tensor, o.sparse_ctx = &seen;
    int rc = pruned(m, &o, out, &report, e);
    snprintf(lines, 4000, "%.*s", (int)seen.len, (const char *)seen.data);
    prune_report_release(&report);
    buf_release(&seen);
    return rc;
}

static void rules_say_which_and_how_much(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 1), *p;
    struct prune_rule rules[3];
    char lines[4000];
    OK(prune_rule_parse("layers\\.1\\..*=0", &rules[0], &e));
    OK(prune_rule_parse("ffn_down=2:4", &rules[1], &e)); /* GGUF's name */
    OK(prune_rule_parse("^head=0.25", &rules[2], &e));
    struct prune_options o = {
        .sparsity = {.share = 0.5}, .rules = rules, .n_rules = 3, .foreign_name = target_tensor_name};
    OK(sparse_model(m, o, &p, lines, &e));
    assert_non_null(strstr(lines, "layers.0.attn.q.weight 0.5"));
    assert_non_null(strstr(lines, "layers.0.ffn.down.weight 0.500"));
    assert_non_null(strstr(lines, "layers.1.ffn.down.weight 0.500"));
    assert_null(strstr(lines, "layers.1.attn"));
    assert_null(strstr(lines, "embed"));
    assert_non_null(strstr(lines, "head.weight 0.25"));
    const struct model_param *down = model_param(p, ROLE_DOWN, 1);
    for (uint64_t i = 0; i < down->n; i += 4) assert_int_equal(kernel_count_zeros(model_host_value(down) + i, 4), 2);
    model_free(p);
    OK(prune_rule_parse("nothing=0.5", &rules[0], &e));
    assert_int_equal(sparse_model(m, o, &p, lines, &e), ERR_USAGE);
    assert_non_null(strstr(e.msg, "'nothing' matches no matrix"));
    OK(prune_rule_parse("(=0.5", &rules[0], &e));
    assert_int_equal(sparse_model(m, o, &p, lines, &e), ERR_USAGE);
    assert_non_null(strstr(e.msg, "at character 1"));
    model_free(m);
    arena_release(&a);
}

static void impossible_patterns_are_refused(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 1), *p;
    char lines[4000];
    struct prune_options o = {.sparsity = {.n = 5, .m = 7}};
    assert_int_equal(sparse_model(m, o, &p, lines, &e), ERR_USAGE);
    assert_non_null(strstr(e.msg, "tensor 'layers.0.attn.q.weight': 7 does not divide its rows of"));
    o = (struct prune_options){.sparsity = {.share = 0.5}, .method = PRUNE_WANDA};
    assert_int_equal(sparse_model(m, o, &p, lines, &e), ERR_USAGE);
    assert_non_null(strstr(e.msg, "wanda needs --stats"));
    model_free(m);
    arena_release(&a);
}

/* ---- layer by layer ---- */

/* A model as a stream in which one weight of this role is not finite. */
static struct buf stream_with(const struct model *m, enum model_role bad) {
    struct err e;
    struct stream_writer *w;
    int fd = memory_file();
    OK(stream_writer_open(&w, fd, "m.rill", NULL, &e));
    OK(model_head_write(w, &m->config, m->vocab_bytes.data, m->vocab_bytes.len, m->meta, &e));
    for (size_t i = 0; i < m->n_params; i++) {
        float *x = model_host_value(&m->params[i]), was = x[1];
        if (m->params[i].slot.role == bad) x[1] = NAN;
        OK(stream_write_tensor(w, &m->params[i].desc, NULL, x, &e));
        x[1] = was;
    }
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    return contents(fd);
}

static int layerwise(const struct buf *model, const struct model_input *in, struct prune_options o, struct buf *out,
                     char lines[4000], struct err *e) {
    struct stream_reader *r;
    struct stream_writer *w;
    struct prune_report report = {0};
    struct prune_calibration c = {.in = in, .n = 1};
    struct buf seen = {0};
    int from = file_of(model->data, model->len), to = memory_file();
    o.calibrated = true;
    o.damp = 0.01;
    o.sparse = count_tensor, o.sparse_ctx = &seen;
    assert_int_equal(stream_reader_open(&r, from, "in.rill", STREAM_MODEL, e), 0);
    assert_int_equal(stream_writer_open(&w, to, "out.rill", NULL, e), 0);
    assert_int_equal(grad_tape_new(&c.scratch, kernel_cpu(), false, DT_F32, e), 0);
    assert_int_equal(model_layerwise_new(&c.model, kernel_cpu(), r, WEIGHTS_F32, NULL, NULL, e), 0);
    int rc = prune_layerwise(&c, w, &o, &report, e);
    if (!rc) rc = stream_writer_finish(w, NULL, e);
    stream_writer_free(w);
    model_layerwise_free(c.model);
    grad_tape_free(c.scratch);
    stream_reader_free(r);
    close(from);
    *out = contents(to);
    snprintf(lines, 4000, "%.*s", (int)seen.len, (const char *)seen.data);
    buf_release(&seen);
    prune_report_release(&report);
    return rc;
}

static double distance(struct model *a, struct model *b, const struct model_input *in) {
    float *x = logits_of(a, in), *y = logits_of(b, in);
    double d = 0;
    for (size_t i = 0; i < in->n_positions * a->config.vocab_size; i++)
        d += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
    mem_free(x);
    mem_free(y);
    return d;
}

enum { POSITIONS = 300 };
static struct model_input sample_input(const struct model_config *c) {
    static uint32_t tokens[POSITIONS], lengths[20];
    for (size_t i = 0; i < 20; i++) lengths[i] = 15;
    sample_tokens(tokens, POSITIONS, c->vocab_size, 5);
    return (struct model_input){POSITIONS, 20, tokens, lengths};
}

static void layer_by_layer(void **state) {
    (void)state;
    static const struct {
        enum prune_method method;
        bool reconstruct;
    } cases[] = {{PRUNE_WANDA, false},     {PRUNE_MAGNITUDE, true}, {PRUNE_WANDA, true},
                 {PRUNE_SPARSEGPT, false}, {PRUNE_ALPS, false},     {PRUNE_ALPS, true}};
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 1), *p;
    struct model_input in = sample_input(&c);
    struct buf model = stream_with(m, ROLE_COUNT);
    double d[COUNT_OF(cases)];
    char lines[4000];
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct prune_options o = {
            .sparsity = {.n = 2, .m = 4}, .method = cases[i].method, .reconstruct = cases[i].reconstruct};
        struct buf out[2];
        for (int k = 0; k < 2; k++) {
            int threads = parallel_threads();
            parallel_set_threads(k ? 4 : 1);
            OK(layerwise(&model, &in, o, &out[k], lines, &e));
            parallel_set_threads(threads);
        }
        assert_int_equal(out[0].len, out[1].len);
        assert_memory_equal(out[0].data, out[1].data, out[0].len);
        OK(load_model(&out[0], &p, &e));
        for (size_t k = 0; k < p->n_params; k++) {
            const struct model_param *now = &p->params[k];
            bool sparse = model_role_in_layer(now->slot.role) && model_role_is_matrix(now->slot.role);
            if (!sparse) assert_memory_equal(model_host_value(now), model_host_value(&m->params[k]), now->n * 4);
            for (uint64_t w = 0; sparse && w < now->n; w += 4)
                assert_true(kernel_count_zeros(model_host_value(now) + w, 4) >= 2);
        }
        assert_non_null(strstr(lines, "layers.1.ffn.down.weight 0.5"));
        d[i] = distance(m, p, &in);
        model_free(p);
        buf_release(&out[0]);
        buf_release(&out[1]);
    }
    if (!(d[2] < d[0] && d[3] < d[0] && d[4] < d[3] && d[5] < d[0] && d[1] < d[0]))
        fail_msg("%g %g %g %g %g %g", d[0], d[1], d[2], d[3], d[4], d[5]);
    buf_release(&model);
    model_free(m);
    arena_release(&a);
}

static void layer_by_layer_a_flaw_is_found(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 1);
    struct model_input in = sample_input(&c);
    struct buf model = stream_with(m, ROLE_UP), out, cut;
    char lines[4000];
    struct prune_options o = {.sparsity = {.share = 0.5}, .method = PRUNE_SPARSEGPT};
    assert_int_equal(layerwise(&model, &in, o, &out, lines, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "tensor 'layers.0.ffn.up.weight': element 1 is not finite"));
    buf_release(&out);
    buf_release(&model);
    model = cut = stream_with(m, ROLE_COUNT);
    cut.len -= 3000;
    assert_int_equal(layerwise(&cut, &in, o, &out, lines, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "truncated"));
    buf_release(&out);
    o.ffn.n = 32;
    assert_int_equal(layerwise(&model, &in, o, &out, lines, &e), ERR_USAGE);
    assert_non_null(strstr(e.msg, "single weights cannot be pruned with --data"));
    buf_release(&out);
    struct prune_rule head;
    OK(prune_rule_parse("^head=0.5", &head, &e));
    o = (struct prune_options){.method = PRUNE_ALPS, .rules = &head, .n_rules = 1};
    assert_int_equal(layerwise(&model, &in, o, &out, lines, &e), ERR_USAGE);
    assert_non_null(strstr(e.msg, "is in no layer"));
    buf_release(&out);
    buf_release(&model);
    model_free(m);
    arena_release(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wanda_masks_are_those_of_the_formula),
        cmocka_unit_test(masks_take_the_smallest_and_exactly_so_many),
        cmocka_unit_test(sparsity_as_text),
        cmocka_unit_test(rules_say_which_and_how_much),
        cmocka_unit_test(impossible_patterns_are_refused),
        cmocka_unit_test(sparsegpt_weights_are_those_of_the_algorithm),
        cmocka_unit_test(least_squares_within_a_mask),
        cmocka_unit_test(each_method_is_better_than_the_one_before),
        cmocka_unit_test(layer_by_layer),
        cmocka_unit_test(layer_by_layer_a_flaw_is_found),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    buf_release(&scratch);
    return failed;
}
