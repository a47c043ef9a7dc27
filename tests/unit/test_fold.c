/*
 * Tests of lib/fold: every method preserves the outputs of every architecture up to the rounding of f32; scales are
 * those of PyTorch's AWQ and SmoothQuant; rotations are orthogonal; what cannot be folded is left out and reported.
 */
#include <dirent.h>
#include <stdlib.h>

#include "tests/unit/golden_samples.h"

#include "lib/fold/fold_internal.h"

#define GOLDEN_ARCH "tests/golden/arch/"
#define TOLERANCE   3e-5 /* relative to the largest output */

/* ---- a model and its outputs ------------------------------------------------------------------------------------- */

static uint32_t tokens[48];
static const uint32_t lengths[2] = {20, 28};

static struct model_input sample_input(const struct model *m) {
    sample_tokens(tokens, COUNT_OF(tokens), model_n_tokens(m), 5);
    return (struct model_input){COUNT_OF(tokens), 2, tokens, lengths};
}

/* Logits, or hidden states of a model without a head. */
static float *outputs_of(struct model *m, const struct model_input *in, size_t *n) {
    struct err e;
    struct grad_tape *t;
    *n = model_output_rows(&m->config, in) * (m->config.classes ? m->config.classes : m->config.vocab_size);
    if (m->config.output != OUTPUT_NONE) {
        *n = model_output_rows(&m->config, in) * model_columns(m);
        return logits_of(m, in);
    }
    *n = in->n_positions * m->config.hidden;
    float *x = mem_array(*n, sizeof *x, &e);
    OK(grad_tape_new(&t, kernel_cpu(), false, DT_F32, &e));
    struct grad_var *h = model_graph(m, t, in, NULL, NULL, &e);
    assert_non_null(h);
    memcpy(x, grad_host_value(t, h), *n * sizeof *x);
    grad_tape_free(t);
    return x;
}

static void check_same(const char *what, struct model *a, struct model *b, const struct model_input *in) {
    size_t n, m;
    float *x = outputs_of(a, in, &n), *y = outputs_of(b, in, &m);
    double worst = 0, scale = 0;
    assert_int_equal(n, m);
    for (size_t i = 0; i < n; i++) {
        worst = fmax(worst, fabs((double)x[i] - y[i]));
        scale = fmax(scale, fabs((double)x[i]));
    }
    if (!(worst <= TOLERANCE * scale)) fail_msg("%s: outputs off by %g of %g", what, worst, scale);
    mem_free(x);
    mem_free(y);
}

static size_t count_changed(const struct model *a, const struct model *b) {
    size_t n = 0;
    for (size_t i = 0; i < a->n_params && a->n_params == b->n_params; i++)
        n += memcmp(model_host_value(&a->params[i]), model_host_value(&b->params[i]), a->params[i].n * sizeof(float)) !=
             0;
    return n;
}

/* ---- folding ----------------------------------------------------------------------------------------------------- */

struct told {
    size_t n, left_out;
    struct fold_report pairs[256];
};
static int tell(void *ctx, const struct fold_report *r, struct err *e) {
    struct told *t = ctx;
    (void)e;
    assert_true(t->n < COUNT_OF(t->pairs));
    t->pairs[t->n++] = *r;
    t->left_out += r->obstacle != NULL;
    return 0;
}

static int folded(const struct model *m, const struct model_input *in, const struct fold_options *o, struct told *t,
                  struct model **out, struct err *failed) {
    struct err e;
    struct buf bytes = saved_model(m, DT_F32), after;
    struct stream_reader *r;
    struct stream_writer *w;
    struct fold_model f = {.in = in, .n = in ? 1 : 0};
    int fd = file_of(bytes.data, bytes.len), to = memory_file();
    OK(stream_reader_open(&r, fd, "model.rill", STREAM_MODEL, &e));
    OK(model_layerwise_new(&f.model, kernel_cpu(), r, WEIGHTS_F32, NULL, NULL, &e));
    OK(grad_tape_new(&f.scratch, kernel_cpu(), false, DT_F32, &e));
    OK(stream_writer_open(&w, to, "model", NULL, &e));
    int rc = fold_model(&f, w, o, tell, t, failed);
    if (!rc) {
        OK(stream_writer_finish(w, NULL, &e));
        after = contents(to);
        OK(load_model(&after, out, &e));
        buf_release(&after);
    } else
        close(to);
    stream_writer_free(w);
    grad_tape_free(f.scratch);
    model_layerwise_free(f.model);
    stream_reader_free(r);
    close(fd);
    buf_release(&bytes);
    return rc;
}

/* The caller frees the axes [hidden][hidden]. */
static double *axes_of_model(const struct model *m, const struct model_input *in) {
    struct err e;
    struct buf bytes = saved_model(m, DT_F32);
    struct stream_reader *r;
    struct fold_model f = {.in = in, .n = 1};
    size_t n = m->config.hidden;
    double *axes = mem_array(n, n * sizeof *axes, &e);
    int fd = file_of(bytes.data, bytes.len);
    OK(stream_reader_open(&r, fd, "model.rill", STREAM_MODEL, &e));
    OK(model_layerwise_new(&f.model, kernel_cpu(), r, WEIGHTS_F32, NULL, NULL, &e));
    OK(grad_tape_new(&f.scratch, kernel_cpu(), false, DT_F32, &e));
    OK(fold_principal_axes(&f, axes, &e));
    grad_tape_free(f.scratch);
    model_layerwise_free(f.model);
    stream_reader_free(r);
    close(fd);
    buf_release(&bytes);
    return axes;
}

/* Scales every pair of every layer by random factors between e^-2 and e^2. */
static size_t scale_at_random(struct model *m, bool *changed) {
    struct err e;
    struct fold_pair p;
    struct rng r = rng_init(3, 0);
    size_t n = 0;
    for (uint32_t layer = 0; layer < m->config.n_layers; layer++)
        for (size_t i = 0; fold_pair_at(&m->config, layer, i, &p); i++) {
            if (p.obstacle || !p.n) continue;
            float *scale = mem_array(p.n, sizeof *scale, &e);
            for (size_t k = 0; k < p.n; k++) scale[k] = (float)exp(4 * rng_f64(&r) - 2);
            OK(fold_pair_scale(m, &p, scale, changed, &e));
            mem_free(scale);
            n++;
        }
    return n;
}

static void check_random_scales(const char *name, struct model *m, const struct model_input *in) {
    struct err e;
    struct model *scaled;
    struct buf bytes = saved_model(m, DT_F32);
    OK(load_model(&bytes, &scaled, &e));
    bool *changed = mem_array(m->n_params, sizeof *changed, &e);
    memset(changed, 0, m->n_params * sizeof *changed);
    size_t pairs = scale_at_random(scaled, changed), n = 0;
    for (size_t i = 0; i < m->n_params; i++) n += changed[i];
    assert_int_equal(n, count_changed(m, scaled));
    assert_true(pairs ? n >= 2 * pairs - m->config.n_layers * 2 : m->config.layer_kind == LAYER_LSTM);
    check_same(name, m, scaled, in);
    mem_free(changed);
    model_free(scaled);
    buf_release(&bytes);
}

static void check_method(const char *name, struct model *m, const struct model_input *in, const struct fold_options *o,
                         bool with_data) {
    static const char *const methods[] = {"awq", "smooth", "r1", "r2", "pca"};
    struct err e;
    struct model *other;
    struct told t = {0};
    char what[128];
    snprintf(what, sizeof what, "%s, %s", name, methods[o->method]);
    bool lstm = m->config.layer_kind == LAYER_LSTM;
    bool stream = o->method == FOLD_R1 || o->method == FOLD_PCA;
    if (lstm || (stream && fold_check_r1(&m->config, &e))) {
        assert_int_equal(folded(m, NULL, o, &t, &other, &e), ERR_DATA);
        return;
    }
    if (folded(m, with_data ? in : NULL, o, &t, &other, &e)) fail_msg("%s: %s", what, e.msg);
    check_same(what, m, other, in);
    if (stream) {
        assert_false(other->config.tied);
        assert_true(model_host_value(model_param(other, ROLE_ATTN_NORM, 0))[0] == 1);
    }
    if (o->method == FOLD_SMOOTH || o->method == FOLD_R2) assert_true(t.left_out == t.n || count_changed(m, other) > 0);
    model_free(other);
}

static void test_architectures(void **state) {
    (void)state;
    DIR *d = opendir(GOLDEN_ARCH);
    struct dirent *entry;
    size_t n = 0, rotated = 0;
    assert_non_null(d);
    while ((entry = readdir(d))) {
        char path[512];
        struct err e;
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, GOLDEN_ARCH "%s", entry->d_name);
        struct model *m = imported(path);
        struct model_input in = sample_input(m);
        struct quant_options types = {.calibrated = true};
        struct stats *s = stats_of(m, &in);
        OK(quant_type_parse("q4_0", &types.type, &e));
        check_random_scales(entry->d_name, m, &in);
        check_method(entry->d_name, m, &in, &(struct fold_options){FOLD_AWQ, &types, s}, false);
        check_method(entry->d_name, m, &in, &(struct fold_options){FOLD_AWQ, &types}, true);
        check_method(entry->d_name, m, &in, &(struct fold_options){FOLD_SMOOTH, .alpha = 0.5}, true);
        check_method(entry->d_name, m, &in, &(struct fold_options){FOLD_R1, .seed = 4}, false);
        check_method(entry->d_name, m, &in, &(struct fold_options){FOLD_R2, .seed = 4}, false);
        bool rotates = !fold_check_r1(&m->config, &e);
        double *axes = rotates ? axes_of_model(m, &in) : NULL;
        if (rotates) check_method(entry->d_name, m, &in, &(struct fold_options){FOLD_PCA, .axes = axes}, false);
        mem_free(axes);
        rotated += rotates;
        n++;
        stats_free(s);
        model_free(m);
    }
    closedir(d);
    assert_true(n > 40 && rotated > 8);
}

/* ---- what is left out -------------------------------------------------------------------------------------------- */

static void test_obstacles(void **state) {
    (void)state;
    static const struct {
        const char *arch;
        bool attn_in, o_in, ffn_in, down_in, r1; /* whether it can be folded */
    } cases[] = {
        {"llama", true, true, true, true, true},    {"gpt2", true, true, true, false, false},
        {"bert", false, true, false, false, false}, {"olmo2", false, true, false, true, false},
        {"gemma2", true, true, true, true, false},  {"opt", true, true, true, true, false},
        {"phi", true, true, false, false, false},   {"qwen3", true, true, true, true, true},
        {"mixtral", true, true, true, true, true},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        char path[128];
        struct fold_pair p;
        struct err e;
        snprintf(path, sizeof path, GOLDEN_ARCH "%s", cases[i].arch);
        struct model *m = imported(path);
        const bool want[] = {cases[i].attn_in, cases[i].o_in, cases[i].ffn_in, cases[i].down_in};
        for (size_t k = 0; k < 4; k++) {
            assert_true(fold_pair_at(&m->config, 0, k, &p));
            if ((p.obstacle == NULL) != want[k]) fail_msg("%s: pair %zu: %s", cases[i].arch, k, p.obstacle);
        }
        assert_int_equal(!fold_check_r1(&m->config, &e), cases[i].r1);
        model_free(m);
    }
}

/* ---- rotations --------------------------------------------------------------------------------------------------- */

static void test_rotation(void **state) {
    (void)state;
    static const size_t widths[] = {1, 2, 64, 96, 45, 576};
    for (size_t k = 0; k < COUNT_OF(widths); k++) {
        struct err e;
        struct fold_rotation r;
        size_t n = widths[k];
        OK(fold_rotation_new(&r, n, rng_init(k, 0), &e));
        double *rows = mem_array(n, n * sizeof *rows, &e), *scratch = mem_array(n, sizeof *scratch, &e), largest = 0;
        memset(rows, 0, n * n * sizeof *rows);
        for (size_t i = 0; i < n; i++) {
            rows[i * n + i] = 1;
            fold_rotate_vector(&r, rows + i * n, scratch);
        }
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j <= i; j++) {
                double dot = 0;
                for (size_t c = 0; c < n; c++) dot += rows[i * n + c] * rows[j * n + c];
                assert_true(fabs(dot - (i == j)) < 1e-12);
            }
        for (size_t i = 0; i < n * n; i++) largest = fmax(largest, fabs(rows[i]));
        if (r.m == 1) assert_true(fabs(largest - 1 / sqrt((double)n)) < 1e-12); /* a Hadamard matrix */
        mem_free(rows);
        mem_free(scratch);
        fold_rotation_release(&r);
    }
}

/* After rotation into its principal axes, a model's own axes are its channels. */
static void test_axes(void **state) {
    (void)state;
    struct err e;
    struct told t = {0};
    struct model *m = imported("tests/golden/tiny-llama"), *turned;
    struct model_input in = sample_input(m);
    size_t n = m->config.hidden;
    double *axes = axes_of_model(m, &in);
    OK(folded(m, NULL, &(struct fold_options){FOLD_PCA, .axes = axes}, &t, &turned, &e));
    double *again = axes_of_model(turned, &in);
    for (size_t k = 0; k < 8; k++) assert_true(fabs(fabs(again[k * n + k]) - 1) < 1e-3); /* these are far apart */
    mem_free(axes);
    mem_free(again);
    model_free(turned);
    model_free(m);
}

/* The axes are orthonormal eigenvectors, largest first, of the sum that PyTorch computes (make_prune_hidden.py). */
static void test_axes_against_torch(void **state) {
    (void)state;
    enum { CHANNELS = 64, BEFORE = 40 + 12 * 352, POSITIONS = 41 };
    struct model *m = imported("tests/golden/tiny-llama");
    uint32_t ids[POSITIONS], of[] = {20, 9, 12};
    for (uint32_t i = 0; i < POSITIONS; i++) ids[i] = (7 * i + 3) % 300;
    struct model_input in = {POSITIONS, 3, ids, of, NULL};
    float *file = golden_file("tests/golden/prune/hidden.f32", (BEFORE + CHANNELS * CHANNELS) * sizeof *file);
    const float *gram = file + BEFORE;
    double *axes = axes_of_model(m, &in), last = INFINITY, largest = 0;
    assert_int_equal(m->config.hidden, CHANNELS);
    for (size_t i = 0; i < CHANNELS; i++)
        for (size_t j = 0; j < CHANNELS; j++) {
            double dot = 0, between = 0;
            for (size_t c = 0; c < CHANNELS; c++) dot += axes[c * CHANNELS + i] * axes[c * CHANNELS + j];
            for (size_t c = 0; c < (size_t)CHANNELS * CHANNELS; c++)
                between += axes[c / CHANNELS * CHANNELS + i] * (double)gram[c] * axes[c % CHANNELS * CHANNELS + j];
            assert_true(fabs(dot - (i == j)) < 1e-12);
            if (i == 0 && j == 0) largest = between;
            if (i != j) assert_true(fabs(between) < 1e-5 * largest);
            if (i == j) assert_true(between <= last + 1e-5 * largest), last = between;
        }
    mem_free(axes);
    mem_free(file);
    model_free(m);
}

/* The result must not depend on the number of threads. */
static void test_threads(void **state) {
    (void)state;
    struct model *m = imported(GOLDEN_ARCH "mixtral"), *a, *b;
    struct model_input in = sample_input(m);
    struct quant_options types = {.calibrated = true};
    struct told t = {0};
    struct err e;
    OK(quant_type_parse("q4_0", &types.type, &e));
    for (enum fold_method method = FOLD_AWQ; method <= FOLD_R2; method++) {
        struct fold_options o = {method, &types, .alpha = 0.5, .seed = 1};
        t.n = 0;
        parallel_set_threads(1);
        OK(folded(m, &in, &o, &t, &a, &e));
        parallel_set_threads(4);
        t.n = 0;
        OK(folded(m, &in, &o, &t, &b, &e));
        assert_int_equal(count_changed(a, b), 0);
        model_free(a);
        model_free(b);
    }
    model_free(m);
}

/* ---- PyTorch ----------------------------------------------------------------------------------------------------- */

static cJSON *golden(void) {
    FILE *f = fopen("tests/golden/quant/fold.json", "rb");
    static char text[1 << 16];
    assert_non_null(f);
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = 0;
    cJSON *j = cJSON_Parse(text);
    assert_non_null(j);
    return j;
}

static double number(const cJSON *o, const char *key) {
    return cJSON_GetObjectItemCaseSensitive(o, key)->valuedouble;
}

/* The scales of a pair, recovered as the ratio of its weights before and after. */
static void check_scales(const cJSON *want, const struct model *before, const struct model *after) {
    uint32_t layer = (uint32_t)number(want, "layer");
    const char *point = cJSON_GetObjectItemCaseSensitive(want, "point")->valuestring;
    const cJSON *scale = cJSON_GetObjectItemCaseSensitive(want, "scale");
    struct fold_pair p;
    size_t i = 0;
    while (fold_pair_at(&before->config, layer, i, &p) && strcmp(model_point_name(p.point), point) != 0) i++;
    const struct model_param *a = model_param(before, p.from.role, layer), *b = model_param(after, p.from.role, layer);
    bool by_columns = a->desc.rank == 2; /* v and up are scaled as readers, too: compare their readers instead */
    if (by_columns) {
        enum model_role reader = p.point == POINT_O_IN ? ROLE_O : ROLE_DOWN;
        a = model_param(before, reader, layer), b = model_param(after, reader, layer);
    }
    for (size_t k = 0; k < p.n; k++) {
        size_t at = k;
        while (by_columns && fold_pair_factor(&p, at) != k) at++;
        double x = model_host_value(a)[at], y = model_host_value(b)[at], got = by_columns ? y / x : x / y;
        double wanted = cJSON_GetArrayItem(scale, (int)k)->valuedouble;
        if (!(fabs(got - wanted) <= 1e-4 * wanted))
            fail_msg("layer %u, %s: scale %zu is %g, PyTorch's %g", layer, point, k, got, wanted);
    }
}

static void test_against_torch(void **state) {
    (void)state;
    struct err e;
    cJSON *j = golden();
    struct model *m = imported("tests/golden/tiny-llama"), *awq, *smooth;
    uint32_t n = 64, *ids = golden_file("tests/golden/tiny-llama/tokens.u32", n * sizeof *ids);
    struct model_input in = {n, 1, ids, &n};
    struct quant_options types = {.calibrated = true};
    struct told t = {0};
    OK(quant_type_parse("q8_0", &types.type, &e));
    OK(folded(m, &in, &(struct fold_options){FOLD_AWQ, &types}, &t, &awq, &e));
    const cJSON *want, *list = cJSON_GetObjectItemCaseSensitive(j, "awq");
    assert_int_equal(t.n, cJSON_GetArraySize(list));
    size_t i = 0;
    cJSON_ArrayForEach(want, list) {
        const struct fold_report *r = &t.pairs[i++];
        assert_true(r->ratio == number(want, "ratio"));
        assert_true(fabs(r->error - number(want, "error")) < 1e-3);
        check_scales(want, m, awq);
    }
    t.n = 0;
    OK(folded(m, &in, &(struct fold_options){FOLD_SMOOTH, .alpha = 0.5}, &t, &smooth, &e));
    cJSON_ArrayForEach(want, cJSON_GetObjectItemCaseSensitive(j, "smooth")) check_scales(want, m, smooth);
    mem_free(ids);
    model_free(awq);
    model_free(smooth);
    model_free(m);
    cJSON_Delete(j);
}

/* ---- refusals ---------------------------------------------------------------------------------------------------- */

static void test_refusals(void **state) {
    (void)state;
    struct arena a = {0};
    struct err e;
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 1), *other = imported(GOLDEN_ARCH "llama"), *out;
    struct stats *s = sample_stats(other, 20, 1), *own = sample_stats(m, 20, 1);
    struct quant_options types = {.calibrated = true};
    struct told t = {0};
    OK(quant_type_parse("q4_0", &types.type, &e));
    assert_int_equal(folded(m, NULL, &(struct fold_options){FOLD_AWQ, &types, s}, &t, &out, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "disagree"));
    OK(quant_type_parse("f16", &types.type, &e));
    assert_int_equal(folded(m, NULL, &(struct fold_options){FOLD_AWQ, &types, own}, &t, &out, &e), ERR_USAGE);
    stats_free(s);
    stats_free(own);
    model_free(m);
    model_free(other);
    arena_release(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_architectures),      cmocka_unit_test(test_obstacles),
        cmocka_unit_test(test_rotation),           cmocka_unit_test(test_axes),
        cmocka_unit_test(test_axes_against_torch), cmocka_unit_test(test_threads),
        cmocka_unit_test(test_against_torch),      cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
