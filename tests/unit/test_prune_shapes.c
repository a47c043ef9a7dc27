/* Tests of lib/prune: shapes that meet a target, and narrower residual streams. */
#include "tests/unit/golden_samples.h"
#include "tests/unit/prune_samples.h"

#include "lib/prune/target.h"

static bool loads_even(void *ctx, const struct model_config *before, const struct model_config *after) {
    (void)ctx, (void)before;
    return after->hidden % after->layers[0].n_heads == 0;
}

/* A layer and channels without effect are removed if that meets the target. */
static void a_target_is_met_by_what_counts_least(void **state) {
    (void)state;
    struct err e;
    struct model *m = imported("tests/golden/tiny-llama"), *p;
    struct prune_report r;
    uint64_t all = model_parameters(&m->config), layer = 0;
    for (size_t i = model_slot_of_layer(&m->config, 1); i < model_slot_of_layer(&m->config, 2); i++)
        layer += m->params[i].n;
    for (int nothing = 0; nothing < 2; nothing++) { /* the first layer; half of the channels of both */
        struct model *idle = imported("tests/golden/tiny-llama");
        for (uint32_t l = 0; l < 2; l++) {
            if (nothing == 1) scale_cols(model_param(idle, ROLE_DOWN, l), 0, CHANNELS / 2, 0);
            if (nothing == 0 && l == 0) {
                scale_cols(model_param(idle, ROLE_DOWN, l), 0, CHANNELS, 0);
                scale_cols(model_param(idle, ROLE_O, l), 0, HEADS, 0);
            }
        }
        struct stats *s = golden_stats(idle);
        struct prune_options o = {.score = PRUNE_BY_TAYLOR, .stats = s, .loads = loads_even};
        o.target_params = nothing == 0 ? all - layer : all - 2 * 3 * (CHANNELS / 2) * 64;
        OK(pruned(idle, &o, &p, &r, &e));
        assert_int_equal(model_parameters(&p->config), o.target_params);
        assert_int_equal(p->config.n_layers, nothing == 0 ? 1 : 2);
        assert_int_equal(p->config.layers[0].ffn, nothing == 0 ? CHANNELS : CHANNELS / 2);
        if (nothing == 0) assert_int_equal(r.kept_layers[0], 1); /* block influence, as for --layers */
        float *before = sample_logits(idle), *after = sample_logits(p);
        assert_close(before, after, 24 * m->config.vocab_size, 1e-5);
        mem_free(before);
        mem_free(after);
        prune_report_release(&r);
        model_free(p);
        if (nothing == 0) { /* what was measured says otherwise */
            o.layer_divergence = (const double[]){2, 1};
            for (uint32_t layers = 2; layers == 2; o.target_params -= 1000) { /* until one layer has to go */
                OK(pruned(idle, &o, &p, &r, &e));
                layers = p->config.n_layers;
                assert_int_equal(r.kept_layers[0], 0);
                prune_report_release(&r);
                model_free(p);
            }
            o.layer_divergence = NULL;
        }
        o.target_params = 0, o.target_speedup = 1.4;
        OK(pruned(idle, &o, &p, &r, &e));
        prune_report_release(&r);
        model_free(p);
        o.target_speedup = 1e4;
        assert_int_equal(pruned(idle, &o, &p, &r, &e), ERR_USAGE);
        assert_non_null(strstr(e.msg, "the smallest has"));
        stats_free(s);
        model_free(idle);
    }
    model_free(m);
}

static int half_of_a_float(void *ctx, const struct model_config *after, uint64_t *bytes, struct err *e) {
    (void)ctx, (void)e;
    *bytes = 2 * model_parameters(after);
    return 0;
}

/* With layers of different shapes, all channels without effect are in one of them. */
static void each_layer_gets_what_it_needs(void **state) {
    (void)state;
    struct err e;
    struct model *m = imported("tests/golden/tiny-llama"), *p;
    struct prune_report r;
    uint64_t target = model_parameters(&m->config) - 3 * (CHANNELS / 2) * 64;
    for (uint32_t idle = 0; idle < 2; idle++) {
        struct model *one = imported("tests/golden/tiny-llama");
        scale_cols(model_param(one, ROLE_DOWN, idle), 0, CHANNELS / 2, 0);
        struct stats *s = golden_stats(one);
        struct prune_options o = {
            .score = PRUNE_BY_TAYLOR, .stats = s, .target_uneven = true, .bytes = half_of_a_float};
        for (int bytes = 0; bytes < 2; bytes++) {
            o.target_params = bytes ? 0 : target, o.target_size = bytes ? 2 * target : 0;
            OK(pruned(one, &o, &p, &r, &e));
            assert_int_equal(model_parameters(&p->config), target);
            assert_int_equal(p->config.layers[idle].ffn, CHANNELS / 2);
            assert_int_equal(p->config.layers[!idle].ffn, CHANNELS);
            float *before = sample_logits(one), *after = sample_logits(p);
            assert_close(before, after, 24 * m->config.vocab_size, 1e-5);
            mem_free(before);
            mem_free(after);
            prune_report_release(&r);
            model_free(p);
        }
        stats_free(s);
        model_free(one);
    }
    model_free(m);
}

/* The loss of a shape if the parts of the model counted as `cost` says. */
static double lost_by(const struct target *t, const struct target_cost *cost, const struct prune_shape *layers) {
    double loss = 0;
    for (uint32_t i = 0; i < t->n; i++) loss += target_lost(t, &layers[i], i, cost);
    return loss;
}

/* Each candidate comes once, within the target, best score first, until none are left. */
static void candidates_come_once_each(void **state) {
    (void)state;
    enum { MOST = 200 };
    struct err e;
    struct model *m = imported("tests/golden/tiny-llama"), *p;
    struct stats *s = golden_stats(m);
    struct prune_report r;
    for (int uneven = 0; uneven < 2; uneven++) {
        struct prune_options o = {.score = PRUNE_BY_TAYLOR, .stats = s, .target_share = 0.7, .target_uneven = uneven};
        struct prune_candidates *c;
        char seen[MOST][PRUNE_LAYERS_TEXT + 64] = {{0}};
        size_t n = 0;
        OK(prune_candidates_new(&c, m, &o, MOST, &e));
        assert_null(prune_candidates_best(c));
        while (true) {
            OK(prune_candidates_next(c, &o.target_shape, &e));
            if (!o.target_shape) break;
            char gone[PRUNE_LAYERS_TEXT];
            assert_true(n < MOST);
            OK(pruned(m, &o, &p, &r, &e));
            assert_true(10 * r.parameters_after <= 7 * r.parameters_before);
            int at = snprintf(seen[n], sizeof *seen, "%s:", prune_layers_text(&r, gone));
            for (uint32_t l = 0; l < p->config.n_layers; l++)
                at += snprintf(seen[n] + at, sizeof *seen - (size_t)at, " %u %u %u", p->config.layers[l].n_heads,
                               p->config.layers[l].n_kv_heads, p->config.layers[l].ffn);
            for (size_t k = 0; k < n; k++) assert_string_not_equal(seen[k], seen[n]);
            prune_report_release(&r);
            model_free(p);
            prune_candidates_judged(c, n == 1 ? 0.5 : 1 + (double)n);
            n++;
        }
        assert_true(n > (uneven ? 1 : 5) && n < MOST);
        o.target_shape = prune_candidates_best(c);
        OK(pruned(m, &o, &p, &r, &e)); /* the second candidate */
        assert_true(p->config.n_layers && strstr(seen[1], ":"));
        prune_report_release(&r);
        model_free(p);
        prune_candidates_free(c);
        o = (struct prune_options){.score = PRUNE_BY_TAYLOR, .stats = s, .target_params = 1, .target_uneven = uneven};
        OK(prune_candidates_new(&c, m, &o, 2, &e));
        assert_int_equal(prune_candidates_next(c, &o.target_shape, &e), ERR_USAGE);
        assert_non_null(strstr(e.msg, "the smallest has"));
        prune_candidates_free(c);
    }
    stats_free(s);
    model_free(m);
}

/* Where the true cost of parts differs from the score, a few measurements must find the shape with the least true
 * cost. */
static void the_score_learns_what_parts_are_worth(void **state) {
    (void)state;
    enum { MEASURED = 8 };
    static const struct target_cost truths[] = {{5, 1, 1, 2}, {0.2, 1, 1, 2}, {1, 1, 0.2, 2}, {1, 1, 4, 1.5}};
    struct err e;
    struct arena a = {0};
    struct model_config config = sample_config(&a);
    config.n_layers = 6;
    config.layers = arena_array(&a, config.n_layers, sizeof *config.layers, &e);
    assert_non_null(config.layers);
    for (uint32_t i = 0; i < config.n_layers; i++) config.layers[i] = (struct model_layer){6, 3, 256};
    struct model *m = sample_model(&config, 5);
    struct stats *s = golden_stats(m);
    struct model_head head = {.config = m->config};
    struct prune_options o = {.score = PRUNE_BY_TAYLOR, .stats = s, .target_share = 0.6};
    int otherwise = 0;
    for (size_t i = 0; i < COUNT_OF(truths); i++) {
        struct prune_plan plan;
        struct target t;
        struct prune_candidates *c;
        const struct prune_shape *shape;
        double first = 0, least;
        OK(prune_plan_begin(&plan, &head, &o, &e));
        OK(target_begin(&t, &plan, 1, &e));
        OK(target_search(&t, &truths[i], &e));
        least = t.best[0].loss;
        OK(prune_candidates_new(&c, m, &o, MEASURED, &e));
        for (int n = 0; n < MEASURED; n++) {
            OK(prune_candidates_next(c, &shape, &e));
            assert_non_null(shape);
            double loss = lost_by(&t, &truths[i], shape);
            if (n == 0) first = loss;
            prune_candidates_judged(c, 1e-3 * loss);
        }
        OK(prune_candidates_next(c, &shape, &e));
        assert_null(shape);
        otherwise += first > least * 1.001;
        assert_true(lost_by(&t, &truths[i], prune_candidates_best(c)) <= least * (1 + 1e-9));
        prune_candidates_free(c);
        prune_plan_release(&plan);
    }
    assert_true(otherwise >= 2); /* otherwise there was nothing to learn */
    stats_free(s);
    model_free(m);
    arena_release(&a);
}

/* Channels of the residual stream that nothing writes can be removed without effect. */
static void an_idle_part_of_the_stream_goes(void **state) {
    (void)state;
    struct err e;
    struct model *m = imported("tests/golden/tiny-llama"), *p;
    struct prune_report r;
    uint32_t n = m->config.hidden;
    for (uint32_t i = 1; i < n; i += 2) {
        scale_cols(model_param(m, ROLE_EMBED, 0), i, 1, 0);
        for (uint32_t l = 0; l < 2; l++) {
            fill_rows(model_param(m, ROLE_O, l), i, 1, 0);
            fill_rows(model_param(m, ROLE_DOWN, l), i, 1, 0);
        }
    }
    struct stats *s = golden_stats(m);
    struct prune_options o = {.score = PRUNE_BY_STATS, .stats = s, .hidden = {.n = n / 2}};
    OK(pruned(m, &o, &p, &r, &e));
    assert_int_equal(p->config.hidden, n / 2);
    assert_int_equal(p->config.head_dim, m->config.head_dim);
    float *before = sample_logits(m), *after = sample_logits(p);
    assert_close(before, after, 24 * m->config.vocab_size, 1e-4);
    mem_free(before);
    mem_free(after);
    prune_report_release(&r);
    model_free(p);
    o.hidden.n = n + 1;
    assert_int_equal(pruned(m, &o, &p, &r, &e), ERR_USAGE);
    assert_non_null(strstr(e.msg, "cannot keep"));
    prune_report_release(&r);
    o.stats = NULL, o.score = PRUNE_BY_WEIGHTS, o.hidden.n = n / 2;
    assert_int_equal(pruned(m, &o, &p, &r, &e), ERR_USAGE);
    assert_non_null(strstr(e.msg, "needs --stats"));
    prune_report_release(&r);
    stats_free(s);
    model_free(m);
}

/* Kept channels, gains and the resulting logits against PyTorch (make_prune_hidden.py). */
static void the_stream_is_narrowed_as_by_the_formulas(void **state) {
    (void)state;
    enum { KEPT = 40, SAID = 12 };
    struct err e;
    struct model *m = imported("tests/golden/tiny-llama"), *p;
    struct prune_report r;
    uint32_t n = m->config.hidden, vocab = m->config.vocab_size, tokens[SAID], length = SAID;
    float *want = golden_file("tests/golden/prune/hidden.f32", (KEPT + SAID * vocab + n * n) * sizeof *want);
    for (uint32_t i = 0; i < SAID; i++) tokens[i] = (5 * i + 1) % 300;
    struct model_input in = {SAID, 1, tokens, &length, NULL};
    struct stats *s = golden_stats(m);
    OK(pruned(m, &(struct prune_options){.score = PRUNE_BY_STATS, .stats = s, .hidden = {.n = KEPT}}, &p, &r, &e));
    const float *was = model_host_value(model_param(m, ROLE_EMBED, 0)),
                *now = model_host_value(model_param(p, ROLE_EMBED, 0));
    for (uint32_t t = 0; t < vocab; t++)
        for (uint32_t i = 0; i < KEPT; i++) assert_true(now[t * KEPT + i] == was[t * n + (uint32_t)want[i]]);
    float *got = logits_of(p, &in);
    assert_close(want + KEPT, got, SAID * vocab, 2e-6);
    mem_free(got);
    mem_free(want);
    prune_report_release(&r);
    stats_free(s);
    model_free(p);
    model_free(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_target_is_met_by_what_counts_least),
        cmocka_unit_test(each_layer_gets_what_it_needs),
        cmocka_unit_test(candidates_come_once_each),
        cmocka_unit_test(the_score_learns_what_parts_are_worth),
        cmocka_unit_test(an_idle_part_of_the_stream_goes),
        cmocka_unit_test(the_stream_is_narrowed_as_by_the_formulas),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
