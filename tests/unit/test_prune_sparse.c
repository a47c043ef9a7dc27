/* lib/prune, single weights: masks and weights as published formulas make them (tests/golden/prune), sparsities as text and by rules. */
#include "tests/unit/golden_samples.h"
#include "tests/unit/model_samples.h"

#include "lib/formats/formats.h"
#include "lib/prune/prune_internal.h"

#define GOLDEN "tests/golden/prune/"
enum { ROWS = 16, COLS = 136 };

static float *golden_matrix(const char *name, size_t rows) {
    return golden_file(name, rows * COLS * sizeof(float));
}

/* The matrix, its norms, and another copy to be compared. */
static struct prune_matrix sample_matrix(float **gram, float *norms) {
    *gram = golden_matrix(GOLDEN "gram.f32", COLS);
    for (size_t i = 0; i < COLS; i++) norms[i] = sqrtf((*gram)[i * COLS + i]);
    return (struct prune_matrix){golden_matrix(GOLDEN "w.f32", ROWS), ROWS, COLS, norms};
}

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
        OK(prune_mask(&w, cases[i].sparsity, PRUNE_WANDA, &e));
        assert_memory_equal(w.x, expected, ROWS * COLS * sizeof *w.x);
        mem_free(w.x);
        mem_free(gram);
        mem_free(expected);
    }
}

/* A textbook loop: of the elements of a group, how many are smaller, or equal and earlier? */
static void check_masks(size_t rows, size_t cols, struct prune_sparsity s, enum prune_method method,
                        const float *norms) {
    struct err e;
    struct rng r = rng_init(11, rows * cols);
    float *x = mem_array(rows * cols, sizeof *x, &e), *y = mem_array(rows * cols, sizeof *y, &e);
    for (size_t i = 0; i < rows * cols; i++) x[i] = y[i] = (float)((int)rng_below(&r, 9) - 4) / 4; /* many ties */
    struct prune_matrix w = {y, rows, cols, norms};
    OK(prune_mask(&w, s, method, &e));
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
    struct stream_reader *r;
    struct stream_writer *w;
    struct prune_report report = {0};
    struct buf in = saved_model(m, DT_F32), written, seen = {0};
    int from = file_of(in.data, in.len), to = memory_file();
    o.sparse = count_tensor, o.sparse_ctx = &seen;
    assert_int_equal(stream_reader_open(&r, from, "in.rill", STREAM_MODEL, e), 0);
    assert_int_equal(stream_writer_open(&w, to, "out.rill", NULL, e), 0);
    int rc = prune_stream(r, w, &o, &report, e);
    if (!rc) rc = stream_writer_finish(w, NULL, e);
    stream_writer_free(w);
    stream_reader_free(r);
    close(from);
    written = contents(to);
    if (!rc) rc = load_model(&written, out, e);
    snprintf(lines, 4000, "%.*s", (int)seen.len, (const char *)seen.data);
    prune_report_release(&report);
    buf_release(&seen);
    buf_release(&in);
    buf_release(&written);
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
    assert_non_null(strstr(e.msg, "wanda needs the statistics"));
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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
