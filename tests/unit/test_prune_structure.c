/*
 * Tests of lib/prune's structured pruning with data: columns and their fit against PyTorch (tests/golden/prune), and
 * whole models.
 */
#include "tests/unit/golden_samples.h"
#include "tests/unit/model_samples.h"

#include "lib/prune/second_order.h"

#define GOLDEN "tests/golden/prune/"
enum { ROWS = 16, COLS = 136, INPUTS = 400, UNIT = 8 };

static void assert_near(const float *got, const float *want, size_t n, double tolerance, const char *what) {
    double worst = 0, scale = 0;
    for (size_t i = 0; i < n; i++) {
        worst = fmax(worst, fabs((double)got[i] - want[i]));
        scale = fmax(scale, fabs((double)want[i]));
    }
    if (!(worst <= tolerance * scale)) fail_msg("%s: off by %g of %g", what, worst, scale);
}

/* ---- columns of a matrix, against PyTorch ---- */

/* Inputs and wanted outputs are centred, as for a layer with a bias. */
static struct prune_consumer sample_consumer(void) {
    struct err e;
    float *sums = golden_file(GOLDEN "columns.f32", (COLS + ROWS) * (COLS + 1) * sizeof(float));
    struct prune_consumer c = {.w = {.x = golden_file(GOLDEN "w.f32", ROWS * COLS * sizeof(float)), ROWS, COLS},
                               .bias = mem_array(ROWS, sizeof(float), &e),
                               .gram = sums,
                               .b = sums + COLS * COLS,
                               .sum = sums + (COLS + ROWS) * COLS,
                               .wanted = sums + (COLS + ROWS) * COLS + COLS,
                               .n = INPUTS,
                               .damp = 0.01};
    for (size_t r = 0; r < ROWS; r++) c.bias[r] = 1;
    for (size_t r = 0; r < COLS + ROWS; r++)
        for (size_t i = 0; i < COLS; i++)
            sums[r * COLS + i] -= (float)((double)c.sum[r] * c.sum[i] / INPUTS); /* wanted follows sum */
    return c;
}

static void release_consumer(struct prune_consumer *c) {
    mem_free(c->w.x);
    mem_free(c->bias);
    mem_free(c->gram);
}

static void costs_of_units_are_those_of_the_problem_without_them(void **state) {
    (void)state;
    struct err e;
    struct prune_consumer c = sample_consumer();
    float *want = golden_file(GOLDEN "units.f32", COLS / UNIT * sizeof *want), got[COLS / UNIT];
    double cost[COLS / UNIT];
    OK(prune_consumer_units(&c, UNIT, 0, NULL, cost, &e));
    for (size_t i = 0; i < COLS / UNIT; i++) got[i] = (float)cost[i];
    assert_near(got, want, COLS / UNIT, 1e-4, "costs");
    mem_free(want);
    release_consumer(&c);
}

static void columns_go_one_after_another(void **state) {
    (void)state;
    struct err e;
    struct prune_consumer c = sample_consumer();
    uint32_t *want = golden_file(GOLDEN "greedy.u32", COLS / 2 * sizeof *want), got[COLS / 2];
    for (int threads = 1; threads <= 4; threads += 3) {
        int before = parallel_threads();
        parallel_set_threads(threads);
        OK(prune_consumer_units(&c, 1, COLS / 2, got, NULL, &e));
        parallel_set_threads(before);
        assert_memory_equal(got, want, sizeof got);
    }
    mem_free(want);
    release_consumer(&c);
}

static void columns_and_bias_are_fitted(void **state) {
    (void)state;
    struct err e;
    struct prune_consumer c = sample_consumer();
    float *want = golden_file(GOLDEN "columns.refit.f32", ROWS * (COLS + 1) * sizeof *want);
    uint32_t keep[COLS - 36];
    for (uint32_t i = 0; i < COUNT_OF(keep); i++) keep[i] = 36 + i;
    OK(prune_refit_columns(&c, &(struct prune_kept){keep, COUNT_OF(keep)}, &e));
    assert_near(c.w.x, want, ROWS * COLS, 1e-4, "weights");
    assert_near(c.bias, want + ROWS * COLS, ROWS, 1e-4, "bias");
    mem_free(want);
    release_consumer(&c);
}

/* ---- whole models ---- */

enum { POSITIONS = 600, LENGTH = 15 };
static struct model_input sample_input(const struct model_config *c) {
    static uint32_t tokens[POSITIONS], lengths[POSITIONS / LENGTH];
    for (size_t i = 0; i < COUNT_OF(lengths); i++) lengths[i] = LENGTH;
    sample_tokens(tokens, POSITIONS, c->vocab_size, 5);
    return (struct model_input){POSITIONS, COUNT_OF(lengths), tokens, lengths, NULL};
}

static int pruned(const struct model *m, struct prune_options o, struct model **out, struct err *e) {
    struct stream_reader *r;
    struct stream_writer *w;
    struct prune_report report = {0};
    struct model_input in = sample_input(&m->config);
    struct prune_calibration c = {.in = &in, .n = 1};
    struct buf model = saved_model(m, DT_F32), written;
    int from = file_of(model.data, model.len), to = memory_file();
    o.calibrated = true;
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
    written = contents(to);
    if (!rc) rc = load_model(&written, out, e);
    buf_release(&written);
    buf_release(&model);
    prune_report_release(&report);
    return rc;
}

/* The squared distance of the logits, relative to those of a. */
static double distance(struct model *a, struct model *b) {
    struct model_input in = sample_input(&a->config);
    float *x = logits_of(a, &in), *y = logits_of(b, &in);
    double d = 0, all = 0;
    for (size_t i = 0; i < in.n_positions * a->config.vocab_size; i++) {
        d += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
        all += (double)x[i] * x[i];
    }
    mem_free(x);
    mem_free(y);
    return d / all;
}

/* Overwrites rows [from, from + n) of a tensor with those from `like` on. */
static void repeat_rows(struct model *m, enum model_role role, uint32_t layer, uint32_t from, uint32_t n,
                        uint32_t like) {
    struct model_param *p = model_param(m, role, layer);
    uint64_t cols = p->desc.rank == 2 ? p->desc.dims[1] : 1;
    memcpy(model_host_value(p) + from * cols, model_host_value(p) + like * cols, n * cols * sizeof(float));
}

/* Channels and heads that duplicate others are removed, and nothing changes. */
static void what_others_say_goes(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 1), *p;
    const struct prune_options amounts[] = {{.ffn = {.n = 48}},
                                            {.kv_heads = {.n = 1}},
                                            {.heads = {.n = 2}},
                                            {.ffn = {.n = 48}, .heads = {.n = 1}, .kv_heads = {.n = 1}}};
    const uint32_t expected[][3] = {{4, 2, 48}, {2, 1, 96}, {2, 2, 96}, {1, 1, 48}}; /* of the first layer */
    for (uint32_t l = 0; l < 2; l++) {
        repeat_rows(m, ROLE_GATE, l, 48, l ? 16 : 48, 0);
        repeat_rows(m, ROLE_UP, l, 48, l ? 16 : 48, 0);
        for (uint32_t h = 1; h < (l ? 2 : 4); h++) repeat_rows(m, ROLE_Q, l, h * c.head_dim, c.head_dim, 0);
    }
    repeat_rows(m, ROLE_K, 0, c.head_dim, c.head_dim, 0);
    repeat_rows(m, ROLE_V, 0, c.head_dim, c.head_dim, 0);
    for (size_t i = 0; i < COUNT_OF(amounts); i++) {
        struct prune_options o = amounts[i];
        o.reconstruct = true, o.score = PRUNE_BY_COST, o.damp = 1e-7;
        if (i == 2) o.heads = (struct prune_amount){.share = 0.5};
        OK(pruned(m, o, &p, &e));
        const struct model_layer *l = &p->config.layers[0];
        const uint32_t got[] = {l->n_heads, l->n_kv_heads, l->ffn};
        assert_memory_equal(got, expected[i], sizeof got);
        if (!(distance(m, p) < 1e-8)) fail_msg("case %zu: %g", i, distance(m, p));
        model_free(p);
    }
    model_free(m);
    arena_release(&a);
}

/* Constant channels are moved into the bias. */
static void constants_go_into_the_bias(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    c.norm = NORM_LAYER, c.norm_bias = true;
    c.qkv_bias = c.o_bias = c.ffn_bias = true, c.ffn_kind = FFN_PLAIN, c.act = ACT_GELU;
    struct model *m = sample_model(&c, 2), *p;
    for (uint32_t l = 0; l < 2; l++) { /* every second channel and the first key/value head */
        struct model_param *up = model_param(m, ROLE_UP, l), *v = model_param(m, ROLE_V, l);
        for (uint64_t i = 0; i < up->desc.dims[0]; i += 2)
            kernel_fill(kernel_f32(model_host_value(up) + i * up->desc.dims[1]), up->desc.dims[1], 0);
        for (uint64_t i = 0; i < up->desc.dims[0]; i++)
            model_host_value(model_param(m, ROLE_UP_BIAS, l))[i] = 0.5f + (float)i / 16;
        if (l == 0) kernel_fill(kernel_f32(model_host_value(v)), c.head_dim * v->desc.dims[1], 0);
        for (uint64_t i = 0; i < v->desc.dims[0]; i++)
            model_host_value(model_param(m, ROLE_V_BIAS, l))[i] = (1 + (float)i) / 32;
    }
    for (int k = 0; k < 2; k++) {
        struct prune_options o = {.reconstruct = true, .score = PRUNE_BY_COST, .damp = 1e-6};
        if (k == 0) o.kv_heads.n = 1;
        if (k == 1) o.ffn.n = 48;
        OK(pruned(m, o, &p, &e));
        if (!(distance(m, p) < 1e-7)) fail_msg("case %d: %g", k, distance(m, p));
        model_free(p);
    }
    model_free(m);
    arena_release(&a);
}

/* The remaining weights compensate for removed ones: closer than without, wherever an architecture has its norms. */
static void the_rest_makes_up(void **state) {
    (void)state;
    static const enum model_norm_place places[] = {NORM_PRE, NORM_SANDWICH, NORM_OUTPUT, NORM_POST};
    static const uint32_t drop[] = {1};
    struct err e;
    for (size_t i = 0; i < COUNT_OF(places); i++) {
        struct arena a = {0};
        struct model_config c = sample_config(&a);
        c.n_layers = 3;
        c.layers = arena_array(&a, 3, sizeof *c.layers, &e);
        for (int l = 0; l < 3; l++) c.layers[l] = (struct model_layer){4, 2, 96};
        c.norm_place = places[i];
        if (places[i] == NORM_POST) c.no_final_norm = true;
        struct model *m = sample_model(&c, 3), *p;
        for (int k = 0; k < 3; k++) {
            struct prune_options o = {.reconstruct = true, .score = PRUNE_BY_WEIGHTS, .damp = 0.01};
            double d[2];
            if (k == 0) o.ffn.n = 48;
            if (k == 1) o.kv_heads.n = 1;
            if (k == 2) o.drop_layers = drop, o.n_drop_layers = 1;
            for (int damped = 0; damped < 2; damped++) { /* by so much that no weight changes */
                o.damp = damped ? 1e6 : 0.01;
                OK(pruned(m, o, &p, &e));
                d[damped] = distance(m, p);
                model_free(p);
            }
            bool sums = places[i] == NORM_PRE;
            if (!(d[0] < (sums || k < 2 ? 0.97 : 1.03) * d[1]))
                fail_msg("place %d, case %d: %g, without %g", places[i], k, d[0], d[1]);
        }
        model_free(m);
        arena_release(&a);
    }
}

static void what_cannot_be_is_refused(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 1), *p;
    struct prune_options o = {.ffn = {.n = 48}, .damp = 0.01};
    assert_int_equal(pruned(m, o, &p, &e), ERR_USAGE);
    assert_non_null(strstr(e.msg, "needs --reconstruct"));
    o.score = PRUNE_BY_COST;
    assert_int_equal(pruned(m, o, &p, &e), ERR_USAGE);
    o.reconstruct = true, o.sparsity.share = 0.5;
    assert_int_equal(pruned(m, o, &p, &e), ERR_USAGE);
    assert_non_null(strstr(e.msg, "single weights cannot be pruned with --data"));
    o = (struct prune_options){.heads = {.n = 3}, .reconstruct = true, .damp = 0.01};
    assert_int_equal(pruned(m, o, &p, &e), ERR_USAGE);
    assert_non_null(strstr(e.msg, "layer 0: 3 query heads are no multiple of its 2 key/value heads"));
    o.heads.n = 5;
    assert_int_equal(pruned(m, o, &p, &e), ERR_USAGE);
    model_host_value(model_param(m, ROLE_UP, 1))[3] = 1e30f;
    o.heads.n = 2, o.ffn.n = 32;
    assert_int_equal(pruned(m, o, &p, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "layer 1"));
    model_free(m);
    arena_release(&a);
}

/* ---- the residual stream ----------------------------------------------------------------------------------------- */

static struct model *untied_model(struct arena *a, bool tied) {
    struct model_config c = sample_config(a);
    c.tied = tied;
    return sample_model(&c, 5);
}

/* Half of the residual stream duplicates the other half: matrices that read it use the half that is kept. */
static void a_stream_that_repeats_itself_is_narrowed(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model *m = untied_model(&a, false), *p;
    uint32_t n = m->config.hidden;
    for (size_t k = 0; k < m->n_params; k++) {
        struct model_param *t = &m->params[k];
        const struct model_role_info *info = model_role_info(t->slot.role);
        float *x = model_host_value(t);
        if (t->slot.role == ROLE_EMBED)
            for (uint64_t i = 0; i < t->n; i += 2) x[i + 1] = x[i] / 2;
        if (info->to_residual)
            for (uint32_t i = 0; i < n; i += 2)
                for (uint64_t c = 0; c < t->desc.dims[1]; c++)
                    x[(i + 1) * t->desc.dims[1] + c] = x[i * t->desc.dims[1] + c] / 2;
    }
    struct model_input in = sample_input(&m->config);
    struct stats *s = stats_of(m, &in);
    struct prune_options o = {.reconstruct = true, .stats = s, .hidden = {.n = n / 2}, .damp = 1e-7};
    OK(pruned(m, o, &p, &e));
    assert_int_equal(p->config.hidden, n / 2);
    if (!(distance(m, p) < 1e-5)) fail_msg("%g", distance(m, p));
    model_free(p);
    stats_free(s);
    model_free(m);
    arena_release(&a);
}

/* In general the fit is closer than removal alone; and for a tied model no other gain before the head is better. */
static void a_narrow_stream_is_fitted(void **state) {
    (void)state;
    struct err e;
    for (int tied = 0; tied < 2; tied++) {
        struct arena a = {0};
        struct model *m = untied_model(&a, tied), *p, *loose;
        struct model_input in = sample_input(&m->config);
        struct stats *s = stats_of(m, &in);
        struct prune_options o = {.reconstruct = true, .stats = s, .hidden = {.n = 48}, .damp = 1e-6};
        OK(pruned(m, o, &p, &e));
        o.damp = 1e6;
        OK(pruned(m, o, &loose, &e));
        double d = distance(m, p);
        if (!(d < distance(m, loose))) fail_msg("%g of %g", d, distance(m, loose));
        float *gain = model_host_value(model_param(p, ROLE_NORM, 0));
        for (uint32_t i = 0; tied && i < 48; i += 5)
            for (int up = 0; up < 2; up++) {
                float was = gain[i];
                gain[i] *= up ? 1.02f : 0.98f;
                assert_true(distance(m, p) > d);
                gain[i] = was;
            }
        model_free(p);
        model_free(loose);
        stats_free(s);
        model_free(m);
        arena_release(&a);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(costs_of_units_are_those_of_the_problem_without_them),
        cmocka_unit_test(columns_go_one_after_another),
        cmocka_unit_test(columns_and_bias_are_fitted),
        cmocka_unit_test(what_others_say_goes),
        cmocka_unit_test(constants_go_into_the_bias),
        cmocka_unit_test(the_rest_makes_up),
        cmocka_unit_test(a_stream_that_repeats_itself_is_narrowed),
        cmocka_unit_test(a_narrow_stream_is_fitted),
        cmocka_unit_test(what_cannot_be_is_refused),
    };
    return cmocka_run_group_tests_name("structure with data", tests, NULL, NULL);
}
