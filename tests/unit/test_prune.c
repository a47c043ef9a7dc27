/*
 * Tests of lib/prune: the remaining parts compute what they did before; the parts removed are those with the least
 * effect.
 */
#include "tests/unit/golden_samples.h"
#include "tests/unit/prune_samples.h"

#include "lib/formats/formats.h"
#include "lib/prune/prune_internal.h"

/* ---- single weights ---------------------------------------------------------------------------------------------- */

static void sparsity_takes_the_smallest_and_exactly_so_many(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 1), *p;
    struct prune_report r;
    float *same = model_host_value(model_param(m, ROLE_UP, 0)); /* a tensor full of ties */
    for (uint64_t i = 0; i < model_param(m, ROLE_UP, 0)->n; i++) same[i] = i % 2 ? 0.5f : -0.5f;
    for (int head = 0; head < 2; head++) {
        struct prune_options o = {.sparsity = {.share = 0.37}, .prune_head = head};
        uint64_t total = 0;
        OK(pruned(m, &o, &p, &r, &e));
        for (size_t i = 0; i < m->n_params; i++) {
            const struct model_param *before = &m->params[i], *after = &p->params[i];
            enum model_role role = before->slot.role;
            bool touched = model_role_is_matrix(role) && (head || (role != ROLE_EMBED && role != ROLE_HEAD));
            uint64_t zeros = 0;
            float largest_gone = 0, smallest_kept = INFINITY;
            for (uint64_t k = 0; k < before->n; k++) {
                float w = fabsf(model_host_value(before)[k]);
                if (model_host_value(after)[k] == 0) {
                    zeros++;
                    largest_gone = fmaxf(largest_gone, w);
                } else {
                    assert_true(model_host_value(after)[k] == model_host_value(before)[k]);
                    smallest_kept = fminf(smallest_kept, w);
                }
            }
            assert_int_equal(zeros, touched ? (uint64_t)(0.37 * (double)before->n) : 0);
            if (touched) assert_true(largest_gone <= smallest_kept);
            total += zeros;
        }
        assert_int_equal(r.zeros, total);
        prune_report_release(&r);
        model_free(p);
    }
    model_free(m);
    arena_release(&a);
}

/* ---- layers ------------------------------------------------------------------------------------------------------ */

static void a_layer_that_adds_nothing_can_go(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 1), *p;
    struct prune_report r;
    kernel_fill(kernel_f32(model_host_value(model_param(m, ROLE_O, 0))), model_param(m, ROLE_O, 0)->n, 0);
    kernel_fill(kernel_f32(model_host_value(model_param(m, ROLE_DOWN, 0))), model_param(m, ROLE_DOWN, 0)->n, 0);
    float *before = sample_logits(m), *after;
    /* by number ... */
    uint32_t drop[] = {0};
    struct prune_options o = {.drop_layers = drop, .n_drop_layers = 1};
    OK(pruned(m, &o, &p, &r, &e));
    assert_int_equal(p->config.n_layers, 1);
    assert_int_equal(p->config.layers[0].ffn, 64); /* the second layer's shape moved down */
    assert_int_equal(r.kept_layers[0], 1);
    after = sample_logits(p);
    assert_memory_equal(before, after, 24 * c.vocab_size * sizeof(float));
    prune_report_release(&r);
    model_free(p);
    mem_free(after);
    /* ... and by block influence */
    struct stats *s = sample_stats(m, 30, 3);
    o = (struct prune_options){.layers = {.n = 1}, .stats = s};
    OK(pruned(m, &o, &p, &r, &e));
    assert_int_equal(r.kept_layers[0], 1);
    prune_report_release(&r);
    model_free(p);
    stats_free(s);
    mem_free(before);
    model_free(m);
    arena_release(&a);
}

/* ---- channels and heads ------------------------------------------------------------------------------------------ */

/* Channels whose weights are zero are found, and removing them changes nothing. */
static void idle_channels_go_first(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 1), *p;
    struct prune_report r;
    for (uint32_t l = 0; l < 2; l++) {
        uint32_t n = c.layers[l].ffn - 40;
        for (uint32_t i = 0; i < n; i++) { /* spread over the width */
            uint32_t ch = i * c.layers[l].ffn / n;
            fill_rows(model_param(m, ROLE_GATE, l), ch, 1, 0);
            fill_rows(model_param(m, ROLE_UP, l), ch, 1, 0);
            scale_cols(model_param(m, ROLE_DOWN, l), ch, 1, 0);
        }
    }
    float *before = sample_logits(m), *after;
    struct prune_options o = {.ffn = {.n = 40}};
    OK(pruned(m, &o, &p, &r, &e));
    assert_int_equal(p->config.layers[0].ffn, 40);
    assert_int_equal(p->config.layers[1].ffn, 40);
    after = sample_logits(p);
    assert_close(before, after, 24 * c.vocab_size, 1e-6); /* equal up to the order of summation */
    assert_int_equal(r.parameters_before - r.parameters_after, (56 + 24) * 3 * 64);
    prune_report_release(&r);
    model_free(p);
    mem_free(before);
    mem_free(after);
    model_free(m);
    arena_release(&a);
}

static void idle_head_groups_go_first(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    c.qkv_bias = true;
    struct model *m = sample_model(&c, 1), *p;
    struct prune_report r;
    /* Layer 0 has groups 0 (query heads 0, 1) and 1 (2, 3) of width 16: the first is idle. */
    fill_rows(model_param(m, ROLE_Q, 0), 0, 32, 0);
    fill_rows(model_param(m, ROLE_K, 0), 0, 16, 0);
    fill_rows(model_param(m, ROLE_V, 0), 0, 16, 0);
    scale_cols(model_param(m, ROLE_O, 0), 0, 32, 0);
    for (uint32_t i = 0; i < 32; i++) model_host_value(model_param(m, ROLE_V_BIAS, 0))[i] = (float)i;
    float *before = sample_logits(m), *after;
    struct prune_options o = {.kv_heads = {.n = 1}};
    OK(pruned(m, &o, &p, &r, &e));
    assert_int_equal(p->config.layers[0].n_kv_heads, 1);
    assert_int_equal(p->config.layers[0].n_heads, 2);
    assert_int_equal(p->config.layers[1].n_heads, 2);
    assert_true(model_host_value(model_param(p, ROLE_V_BIAS, 0))[0] == 16);
    after = sample_logits(p);
    assert_close(before, after, 24 * c.vocab_size, 1e-6);
    prune_report_release(&r);
    model_free(p);
    mem_free(before);
    mem_free(after);
    model_free(m);
    arena_release(&a);
}

/* By activations: channels that the data does not use are removed, whatever their weights. */
static void activations_decide_where_there_are_statistics(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 1), *p;
    struct prune_report r;
    for (uint32_t l = 0; l < 2; l++) { /* the first 30 channels have large weights behind a gate that is closed */
        fill_rows(model_param(m, ROLE_UP, l), 0, 30, 0);
        scale_cols(model_param(m, ROLE_DOWN, l), 0, 30, 100);
    }
    struct stats *s = sample_stats(m, 30, 3);
    float *before = sample_logits(m), *after;
    struct prune_options o = {.ffn = {.n = 34}, .score = PRUNE_BY_STATS, .stats = s};
    OK(pruned(m, &o, &p, &r, &e));
    /* layer 1 had 64 channels: exactly its 30 idle ones were removed */
    assert_memory_equal(model_host_value(model_param(p, ROLE_UP, 1)),
                        model_host_value(model_param(m, ROLE_UP, 1)) + 30 * 64, 34 * 64 * sizeof(float));
    after = sample_logits(p);
    prune_report_release(&r);
    model_free(p);
    mem_free(before);
    mem_free(after);
    stats_free(s);
    model_free(m);
    arena_release(&a);
}

/* ---- vocabulary -------------------------------------------------------------------------------------------------- */

/* 256 bytes, a few merges and a special token. */
static struct buf sample_vocab(struct arena *a) {
    struct err e;
    static const char *const pieces[] = {"th", "the", "in", "ing", "er", "zq"};
    struct vocab spec = {.n_tokens = 263,
                         .n_merges = 6,
                         .pre = PRE_GPT2,
                         .bos = TOKEN_NONE,
                         .eos = 262,
                         .pad = TOKEN_NONE,
                         .unk = TOKEN_NONE},
                 *v;
    spec.tokens = arena_array(a, 263, sizeof *spec.tokens, &e);
    spec.merges = arena_array(a, 6, sizeof *spec.merges, &e);
    for (uint32_t i = 0; i < 256; i++) {
        unsigned char *b = arena_alloc(a, 1, &e);
        *b = (unsigned char)i;
        spec.tokens[i] = (struct token){.bytes = b, .n_bytes = 1};
    }
    for (uint32_t i = 0; i < 6; i++)
        spec.tokens[256 + i] =
            (struct token){.bytes = (const unsigned char *)pieces[i], .n_bytes = (uint32_t)strlen(pieces[i])};
    spec.tokens[262] =
        (struct token){.bytes = (const unsigned char *)"<end>", .n_bytes = 5, .flags = TOKEN_SPECIAL | TOKEN_ADDED};
    const struct merge merges[] = {{'t', 'h', 256}, {256, 'e', 257}, {'i', 'n', 258},
                                   {258, 'g', 259}, {'e', 'r', 260}, {'z', 'q', 261}};
    memcpy(spec.merges, merges, sizeof merges);
    struct buf b = {0};
    OK(vocab_new(&v, &spec, &e));
    OK(vocab_pack(v, &b, &e));
    vocab_free(v);
    return b;
}

/* ---- scores by gradients and by variance, against PyTorch (tests/reference/make_prune_scores.py) ---- */

static void assert_scores(const double *got, const float *want, size_t n, const char *what) {
    double worst = 0, scale = 0;
    for (size_t i = 0; i < n; i++) {
        worst = fmax(worst, fabs(got[i] - want[i]));
        scale = fmax(scale, fabs((double)want[i]));
    }
    if (!(worst <= 1e-5 * scale)) fail_msg("%s: off by %g of %g", what, worst, scale);
}

/* Ids of the larger half of n scores. */
static void best_half(const float *score, uint32_t n, uint32_t *out) {
    struct err e;
    struct arena a = {0};
    double copy[CHANNELS];
    for (uint32_t i = 0; i < n; i++) copy[i] = score[i];
    OK(prune_choose(copy, n, n / 2, out, &a, &e));
    arena_release(&a);
}

static void assert_rows(const struct model *p, const struct model *m, enum model_role role, uint32_t layer,
                        const uint32_t *kept, uint32_t n) {
    const struct model_param *now = model_param(p, role, layer), *was = model_param(m, role, layer);
    uint64_t cols = now->desc.dims[1];
    assert_int_equal(now->desc.dims[0], n);
    for (uint32_t i = 0; i < n; i++)
        assert_memory_equal(model_host_value(now) + i * cols, model_host_value(was) + kept[i] * cols,
                            cols * sizeof(float));
}

static void scores_are_those_of_the_formulas(void **state) {
    (void)state;
    struct err e;
    struct model *m = imported("tests/golden/tiny-llama"), *p;
    struct stats *s = golden_stats(m);
    struct prune_report r;
    float *want = golden_file("tests/golden/prune/scores.f32", (2 * LAYER_SCORES + 3) * sizeof *want);
    for (int score = 0; score < 2; score++) {
        struct prune_options o = {
            .ffn = {.n = CHANNELS / 2}, .score = score ? PRUNE_BY_FLUCTUATION : PRUNE_BY_TAYLOR, .stats = s};
        OK(pruned(m, &o, &p, &r, &e));
        for (uint32_t layer = 0; layer < 2; layer++) {
            uint32_t kept[CHANNELS / 2];
            const float *of = want + layer * LAYER_SCORES + HEADS + KEYS;
            best_half(score ? of + CHANNELS + HEADS : of, CHANNELS, kept);
            assert_rows(p, m, ROLE_UP, layer, kept, CHANNELS / 2);
        }
        prune_report_release(&r);
        model_free(p);
    }
    for (uint32_t layer = 0; layer < 2; layer++) {
        struct model_slot slot = {.layer = layer};
        const float *of = want + layer * LAYER_SCORES;
        assert_scores(stats_taylor(s, AXIS_QUERY, slot), of, HEADS, "query");
        assert_scores(stats_taylor(s, AXIS_KEY, slot), of + HEADS, KEYS, "key");
        assert_scores(stats_taylor(s, AXIS_FFN, slot), of + HEADS + KEYS, CHANNELS, "ffn");
    }
    const double angles[] = {stats_angular(s, 0, 0), stats_angular(s, 0, 1), stats_angular(s, 1, 1)};
    assert_scores(angles, want + (size_t)2 * LAYER_SCORES, 3, "angles");
    mem_free(want);
    stats_free(s);
    model_free(m);
}

/* Channels and heads with constant outputs are moved into the bias; refused where there is none. */
static void what_goes_is_compensated(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct prune_report r;
    for (int biases = 0; biases < 2; biases++) {
        c.qkv_bias = c.o_bias = c.ffn_bias = biases;
        struct model *m = sample_model(&c, 2), *p;
        for (uint32_t l = 0; biases && l < 2; l++) {
            struct model_param *v = model_param(m, ROLE_V, l);
            if (l == 0) kernel_fill(kernel_f32(model_host_value(v)), c.head_dim * v->desc.dims[1], 0);
            kernel_fill(model_param(m, ROLE_V_BIAS, l)->value, v->desc.dims[0], 0.5f);
        }
        struct stats *s = sample_stats(m, 40, 3);
        struct prune_options o = {.kv_heads = {.n = 1}, .score = PRUNE_BY_FLUCTUATION, .compensate = true, .stats = s};
        if (!biases) {
            assert_int_equal(pruned(m, &o, &p, &r, &e), ERR_USAGE);
            assert_string_equal(e.msg, "this llama has no bias of attn.o that could compensate for what goes");
            o.kv_heads.n = 0, o.ffn.n = 32;
            assert_int_equal(pruned(m, &o, &p, &r, &e), ERR_USAGE);
            assert_non_null(strstr(e.msg, "bias of ffn.down"));
            o.compensate = false, o.score = PRUNE_BY_TAYLOR;
            assert_int_equal(pruned(m, &o, &p, &r, &e), ERR_USAGE);
            assert_non_null(strstr(e.msg, "need statistics with gradients"));
        } else {
            float *before = sample_logits(m), *after;
            OK(pruned(m, &o, &p, &r, &e));
            assert_int_equal(p->config.layers[0].n_kv_heads, 1);
            after = sample_logits(p);
            assert_close(before, after, 24 * c.vocab_size, 1e-5);
            mem_free(before);
            mem_free(after);
            prune_report_release(&r);
            model_free(p);
        }
        stats_free(s);
        model_free(m);
    }
    arena_release(&a);
}

/* By true divergence, measured on models without the layers; a layer that adds nothing is removed first. */
static void layers_go_by_divergence(void **state) {
    (void)state;
    enum { LAYERS = 4, N = 24 };
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    c.n_layers = LAYERS;
    c.layers = arena_array(&a, LAYERS, sizeof *c.layers, &e);
    for (int i = 0; i < LAYERS; i++) c.layers[i] = (struct model_layer){4, 2, 96};
    struct model *m = sample_model(&c, 1), *p;
    for (uint32_t l = 0; l < LAYERS; l++) { /* all layers have a large effect, except the third */
        kernel_scale(model_param(m, ROLE_O, l)->value, model_param(m, ROLE_O, l)->n, l == 2 ? 0 : 5);
        kernel_scale(model_param(m, ROLE_DOWN, l)->value, model_param(m, ROLE_DOWN, l)->n, l == 2 ? 0 : 5);
    }
    uint32_t tokens[N], lengths[] = {15, 9}, gone[2];
    double kl[2], alone[LAYERS], least = INFINITY;
    sample_tokens(tokens, N, c.vocab_size, 4);
    struct model_input in = {N, 2, tokens, lengths, NULL};
    struct prune_divergence d = {.model = m, .in = &in};
    OK(grad_tape_new(&d.scratch, kernel_cpu(), false, DT_F32, &e));
    OK(prune_layers_by_divergence(&d, 2, gone, kl, &e));
    OK(prune_layers_alone(&d, alone, &e));
    for (uint32_t l = 0; l < LAYERS; l++) assert_true(alone[l] >= alone[2]);
    assert_true(alone[2] == kl[0]);
    assert_int_equal(prune_layers_by_divergence(&d, LAYERS, gone, kl, &e), ERR_USAGE);
    grad_tape_free(d.scratch);
    assert_int_equal(gone[0], 2);
    assert_true(fabs(kl[0]) < 1e-9);
    float *before = sample_logits(m);
    for (uint32_t l = 0; l < LAYERS; l++) {
        uint32_t drop[] = {2, l};
        struct prune_options o = {.drop_layers = drop, .n_drop_layers = 2};
        struct prune_report r;
        if (l == 2) continue;
        OK(pruned(m, &o, &p, &r, &e));
        float *after = sample_logits(p);
        double without = 0;
        for (size_t i = 0; i < N; i++) {
            const float *x = before + i * c.vocab_size, *y = after + i * c.vocab_size;
            double sums[2] = {0};
            for (size_t v = 0; v < c.vocab_size; v++) sums[0] += exp(x[v]), sums[1] += exp(y[v]);
            for (size_t v = 0; v < c.vocab_size; v++)
                without += exp(x[v]) / sums[0] * (x[v] - log(sums[0]) - y[v] + log(sums[1])) / N;
        }
        least = fmin(least, without);
        if (l == gone[1] && !(fabs(without - kl[1]) < 1e-5 * without)) fail_msg("%g, said %g", without, kl[1]);
        mem_free(after);
        prune_report_release(&r);
        model_free(p);
    }
    assert_true(kl[1] > 0 && kl[1] < least * (1 + 1e-5));
    mem_free(before);
    model_free(m);
    arena_release(&a);
}

static void the_run_of_least_angle_goes(void **state) {
    (void)state;
    struct err e;
    struct model *m = imported("tests/golden/tiny-llama"), *p;
    struct stats *s = golden_stats(m);
    struct prune_report r;
    struct prune_options o = {.layers = {.n = 1}, .layer_score = PRUNE_LAYERS_BY_ANGLE, .stats = s};
    OK(pruned(m, &o, &p, &r, &e));
    assert_int_equal(r.kept_layers[0], stats_angular(s, 0, 0) < stats_angular(s, 1, 1));
    prune_report_release(&r);
    model_free(p);
    stats_free(s);
    model_free(m);
}

static void the_vocabulary_shrinks_to_what_is_used(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct buf vocab = sample_vocab(&a);
    struct model *m, *p;
    struct prune_report r;
    c.vocab_size = 263;
    OK(model_init(&m, kernel_cpu(), &c, vocab.data, vocab.len, 3, &e));
    struct text_ids ids = {0};
    OK(text_encode(m->vocab, "the thing", 9, NULL, &ids, &e));
    assert_int_equal(ids.n, 4); /* the, space, th, ing */
    uint32_t n = (uint32_t)ids.n;
    struct model_input in = {n, 1, ids.ids, &n};
    float *before = logits_of(m, &in);
    struct prune_tokens used = {.n = 263};
    digest_text(m->vocab_digest, used.vocab);
    used.count = arena_array(&used.memory, 263, sizeof *used.count, &e);
    for (uint32_t i = 0; i < n; i++) used.count[ids.ids[i]]++;
    struct prune_options o = {.tokens = &used, .vocab_min_count = 1};
    OK(pruned(m, &o, &p, &r, &e));
    /* "the" and "ing" need th and in; er and zq are removed; bytes and specials stay */
    assert_int_equal(p->config.vocab_size, 261);
    assert_int_equal(p->vocab->n_tokens, 261);
    assert_int_equal(vocab_find(p->vocab, "er", 2), TOKEN_NONE);
    struct text_ids now = {0};
    OK(text_encode(p->vocab, "the thing", 9, NULL, &now, &e));
    assert_int_equal(now.n, 4);
    in.tokens = now.ids;
    float *after = logits_of(p, &in);
    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t id = 0; id < 261; id++) {
            const struct token *piece = &p->vocab->tokens[id];
            uint32_t old = id == 260 ? 262 : vocab_find(m->vocab, piece->bytes, piece->n_bytes);
            if (piece->flags & TOKEN_SPECIAL) old = 262;
            assert_true(old != TOKEN_NONE);
            assert_true(fabsf(after[i * 261 + id] - before[i * 263 + old]) < 1e-5f);
        }
    prune_report_release(&r);
    text_ids_release(&ids);
    text_ids_release(&now);
    mem_free(before);
    mem_free(after);
    prune_tokens_release(&used);
    buf_release(&vocab);
    model_free(m);
    model_free(p);
    arena_release(&a);
}

/* ---- refusals ---------------------------------------------------------------------------------------------------- */

static void what_cannot_be_pruned_is_refused(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a), other = sample_config(&a);
    struct model *m = sample_model(&c, 1), *p;
    struct prune_report r;
    struct stats *s;
    struct prune_tokens none = {0};
    other.layers[0].ffn = 8;
    OK(stats_new(&s, &other, NULL, &e));
    uint32_t far[] = {2}, twice[] = {1, 1}, all[] = {0, 1};
    const struct {
        struct prune_options o;
        int code;
        const char *says;
    } cases[] = {
        {{.layers = {.n = 3}}, ERR_USAGE, "cannot keep 3 layers"},
        {{.layers = {.n = 1}}, ERR_USAGE, "needs --stats"},
        {{.drop_layers = far, .n_drop_layers = 1}, ERR_USAGE, "cannot drop layer 2"},
        {{.drop_layers = twice, .n_drop_layers = 2}, ERR_USAGE, "dropped twice"},
        {{.drop_layers = all, .n_drop_layers = 2}, ERR_USAGE, "no layer would be left"},
        {{.ffn = {.n = 65}}, ERR_USAGE, "layer 1 to 65: it is 64"},
        {{.kv_heads = {.n = 2}}, ERR_USAGE, "layer 1 to 2: there are 1"},
        {{.sparsity = {.share = 1}}, ERR_USAGE, "not in [0, 1)"},
        {{.sparsity = {.share = NAN}}, ERR_USAGE, "not in [0, 1)"},
        {{.tokens = &none, .vocab_min_count = 1}, ERR_DATA, "no vocabulary"},
        {{.score = PRUNE_BY_STATS, .ffn = {.n = 8}}, ERR_USAGE, "need --stats"},
        {{.ffn = {.n = 8}, .stats = s}, ERR_DATA, "disagree on the shape of layer 0"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        int rc = pruned(m, &cases[i].o, &p, &r, &e);
        if (rc != cases[i].code || !strstr(e.msg, cases[i].says)) fail_msg("case %zu: %d '%s'", i, rc, rc ? e.msg : "");
        prune_report_release(&r);
    }
    stats_free(s);
    model_free(m);
    arena_release(&a);
}

static void collect(void *ctx, const char *message) {
    char *all = ctx;
    size_t n = strlen(all);
    snprintf(all + n, 4001 - n, "%s\n", message);
}

/* Prunes one layer of this width. Returns its shape, and the warnings. */
static void collect_targets(void *ctx, const struct model_config *before, const struct model_config *after) {
    target_warnings(before, after, collect, ctx);
}

static struct model_layer shrunk(const struct model_layer *layer, uint32_t hidden, uint32_t head_dim,
                                 struct prune_options o, char warnings[4001]) {
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *p;
    struct prune_report r;
    *warnings = 0;
    o.warn = collect, o.warn_ctx = warnings, o.shape = collect_targets;
    c.n_layers = 1, c.hidden = hidden, c.head_dim = head_dim, c.layers[0] = *layer;
    struct model *m = sample_model(&c, 1);
    OK(pruned(m, &o, &p, &r, &e));
    struct model_layer left = p->config.layers[0];
    prune_report_release(&r);
    model_free(p);
    model_free(m);
    arena_release(&a);
    return left;
}

static void shares_of_a_width_become_blocks(void **state) {
    (void)state;
    static const struct {
        uint32_t width;
        double share;
        uint32_t left;
    } cases[] = {
        {1536, 0.75, 1280},                   /* 1152 is not a multiple of 256 */
        {1536, 0.5, 768},   {1024, 0.9, 928}, /* 768 would be too far, 1024 is everything */
        {512, 0.75, 384},   {128, 0.5, 64},   {96, 0.67, 64}, {100, 0.99, 96},
        {24, 0.5, 12},      {16, 0.01, 1},    {100, 1, 100},
    };
    char warnings[4001];
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct model_layer l = {2, 2, cases[i].width};
        l = shrunk(&l, 16, 8, (struct prune_options){.ffn = {.share = cases[i].share}}, warnings);
        if (l.ffn != cases[i].left) fail_msg("%g of %u: %u", cases[i].share, cases[i].width, l.ffn);
    }
    shrunk(&(struct model_layer){2, 2, 1536}, 16, 8, (struct prune_options){.ffn = {.share = 0.75}}, warnings);
    assert_string_equal(warnings, "75% of 1536 feed-forward channels: 1280 stay, 83.3%\n");
}

static void shapes_that_others_cannot_hold_are_warned_of(void **state) {
    (void)state;
    static const struct {
        struct model_layer layer;
        struct prune_options o;
        const char *says; /* "": no warning */
    } cases[] = {
        {{4, 4, 64},
         {.kv_heads = {.n = 3}},
         "transformers will not load this, and export --to safetensors refuses it: "
         "hidden size 64 is not a multiple of 3 heads"},
        {{4, 4, 64}, {.kv_heads = {.n = 2}}, ""},
        {{4, 4, 64}, {.ffn = {.n = 32}}, ""},
        {{4, 4, 64},
         {.ffn = {.n = 50}},
         "a feed-forward width of 50 is not a multiple of 32: when rows of that length are quantized they become f16, "
         "whatever the type (32 or 64 would fit)"},
        {{4, 4, 64}, {.ffn = {.n = 20}}, "whatever the type (32 would fit)"},
        {{4, 4, 512},
         {.ffn = {.n = 384}},
         "a feed-forward width of 384 is not a multiple of 256: when rows of that length are quantized k-quants fall "
         "back "
         "to larger types (256 or 512 would fit)"},
        {{4, 4, 512}, {.ffn = {.n = 100}}, "(96 or 128 would fit, for k-quants a multiple of 256)"},
        {{4, 4, 50}, {.ffn = {.n = 20}}, ""}, /* no worse than before */
        {{4, 2, 64}, {.kv_heads = {.n = 1}, .sparsity = {.share = 0.5}}, ""},
        {{3, 3, 64}, {.kv_heads = {.n = 1}}, ""}, /* transformers can load it again */
    };
    char warnings[4001];
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        shrunk(&cases[i].layer, 64, 16, cases[i].o, warnings);
        if (*cases[i].says ? !strstr(warnings, cases[i].says) : *warnings) fail_msg("case %zu: '%s'", i, warnings);
    }
}

static void a_pruned_model_has_another_name(void **state) {
    (void)state;
    static const struct {
        const char *name;
        uint64_t before, after;
        const char *says;
    } cases[] = {
        {"SmolLM2 135M Instruct", 134515008, 101000000, "SmolLM2 101M Instruct pruned"},
        {"org/SmolLM2-135M", 134515008, 101000000, "org/SmolLM2-101M-pruned"},
        {"Llama-3.2-1B", 1235814400, 900000000, "Llama-3.2-900M-pruned"},
        {"Smollm2 135M 8k Lc100K", 134515008, 134515000, "Smollm2 135M 8k Lc100K pruned"}, /* the same size label */
        {"Model 3 100K", 7000000000, 5000000000, "Model 3 100K pruned"},                   /* not a size */
        {"model-pruned", 100, 50, "model-pruned"},
    };
    struct err e;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        cJSON *meta = cJSON_CreateObject(), *general = cJSON_AddObjectToObject(meta, "general");
        cJSON_AddStringToObject(general, "name", cases[i].name);
        OK(prune_rename(meta, cases[i].before, cases[i].after, &e));
        assert_string_equal(cJSON_GetObjectItem(general, "name")->valuestring, cases[i].says);
        assert_string_equal(cJSON_GetObjectItem(general, "finetune")->valuestring, "pruned");
        OK(prune_rename(meta, cases[i].after, cases[i].after, &e)); /* renaming again changes nothing */
        assert_string_equal(cJSON_GetObjectItem(general, "name")->valuestring, cases[i].says);
        assert_string_equal(cJSON_GetObjectItem(general, "finetune")->valuestring, "pruned");
        cJSON_Delete(meta);
    }
    cJSON *meta = cJSON_CreateObject();
    OK(prune_rename(meta, 2, 1, &e));
    assert_null(meta->child);
    cJSON *general = cJSON_AddObjectToObject(meta, "general");
    cJSON_AddStringToObject(general, "finetune", "Instruct");
    OK(prune_rename(meta, 2, 1, &e));
    assert_string_equal(cJSON_GetObjectItem(general, "finetune")->valuestring, "Instruct-pruned");
    assert_null(cJSON_GetObjectItem(general, "name"));
    cJSON_Delete(meta);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sparsity_takes_the_smallest_and_exactly_so_many),
        cmocka_unit_test(a_layer_that_adds_nothing_can_go),
        cmocka_unit_test(layers_go_by_divergence),
        cmocka_unit_test(the_run_of_least_angle_goes),
        cmocka_unit_test(idle_channels_go_first),
        cmocka_unit_test(idle_head_groups_go_first),
        cmocka_unit_test(activations_decide_where_there_are_statistics),
        cmocka_unit_test(scores_are_those_of_the_formulas),
        cmocka_unit_test(what_goes_is_compensated),
        cmocka_unit_test(the_vocabulary_shrinks_to_what_is_used),
        cmocka_unit_test(what_cannot_be_pruned_is_refused),
        cmocka_unit_test(shares_of_a_width_become_blocks),
        cmocka_unit_test(shapes_that_others_cannot_hold_are_warned_of),
        cmocka_unit_test(a_pruned_model_has_another_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
