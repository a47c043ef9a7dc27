/* lib/prune: shapes for a target, and narrower residual streams. */
#include "tests/unit/golden_samples.h"
#include "tests/unit/prune_samples.h"

#include "lib/prune/prune_internal.h"

static bool loads_even(void *ctx, const struct model_config *before, const struct model_config *after) {
    (void)ctx, (void)before;
    return after->hidden % after->layers[0].n_heads == 0;
}

/* A layer and channels that count nothing are what goes, when the target can be met so. */
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
        if (nothing == 0) assert_int_equal(r.kept_layers[0], 1);
        float *before = sample_logits(idle), *after = sample_logits(p);
        assert_close(before, after, 24 * m->config.vocab_size, 1e-5);
        mem_free(before);
        mem_free(after);
        prune_report_release(&r);
        model_free(p);
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

/* Layers that differ: the channels that count nothing are in one of them. */
static void each_layer_gets_what_it_needs(void **state) {
    (void)state;
    struct err e;
    struct model *m = imported("tests/golden/tiny-llama"), *p;
    struct prune_report r;
    size_t shapes;
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
        OK(prune_target_shapes(one, &o, 10, &shapes, &e));
        assert_true(shapes >= 1 && shapes <= 6);
        o.target_nth = shapes;
        assert_int_equal(pruned(one, &o, &p, &r, &e), ERR_USAGE);
        assert_non_null(strstr(e.msg, "shapes for this target"));
        prune_report_release(&r);
        stats_free(s);
        model_free(one);
    }
    model_free(m);
}

/* Shapes come in the order of what they lose, each once, and each within the target. */
static void shapes_come_in_order(void **state) {
    (void)state;
    struct err e;
    struct model *m = imported("tests/golden/tiny-llama"), *p;
    struct stats *s = golden_stats(m);
    struct prune_report r;
    size_t shapes;
    for (int uneven = 0; uneven < 2; uneven++) {
        struct prune_options o = {.score = PRUNE_BY_TAYLOR, .stats = s, .target_share = 0.7, .target_uneven = uneven};
        char seen[8][PRUNE_LAYERS_TEXT + 64] = {{0}};
        OK(prune_target_shapes(m, &o, COUNT_OF(seen), &shapes, &e));
        assert_true(shapes > (uneven ? 0 : 2));
        for (o.target_nth = 0; o.target_nth < shapes; o.target_nth++) {
            char gone[PRUNE_LAYERS_TEXT];
            OK(pruned(m, &o, &p, &r, &e));
            assert_true(10 * r.parameters_after <= 7 * r.parameters_before);
            int at = snprintf(seen[o.target_nth], sizeof *seen, "%s:", prune_layers_text(&r, gone));
            for (uint32_t l = 0; l < p->config.n_layers; l++)
                at += snprintf(seen[o.target_nth] + at, sizeof *seen - (size_t)at, " %u %u %u",
                               p->config.layers[l].n_heads, p->config.layers[l].n_kv_heads, p->config.layers[l].ffn);
            for (size_t k = 0; k < o.target_nth; k++) assert_string_not_equal(seen[k], seen[o.target_nth]);
            prune_report_release(&r);
            model_free(p);
        }
    }
    stats_free(s);
    model_free(m);
}

/* Channels of the stream that nothing writes can go; as many as that keeps. */
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

/* The channels that stay, the gains and what the model says then, as PyTorch has them (make_prune_hidden.py). */
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
        cmocka_unit_test(shapes_come_in_order),
        cmocka_unit_test(an_idle_part_of_the_stream_goes),
        cmocka_unit_test(the_stream_is_narrowed_as_by_the_formulas),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
