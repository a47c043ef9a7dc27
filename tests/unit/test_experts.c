/*
 * Tests of layers with experts across modules: slots, runs layer by layer in several passes, statistics of each expert,
 * importance from its own statistics, pruning of experts and of their channels. Their values are compared with
 * transformers in test_architectures.c.
 */
#include "tests/unit/model_samples.h"

#include "lib/prune/prune.h"
#include "lib/quant/quant.h"

enum { EXPERTS = 6, PER_TOKEN = 2, UNUSED = 4 };

/* One layer with experts beside a gated part, one without experts, one with experts alone. */
static struct model_config mixed_config(struct arena *a) {
    struct err e;
    struct model_config c = {.arch = "qwen2_moe",
                             .n_layers = 3,
                             .hidden = 64,
                             .head_dim = 16,
                             .vocab_size = 97,
                             .context = 600,
                             .norm_eps = 1e-5f,
                             .experts_per_token = PER_TOKEN,
                             .norm_expert_weights = true,
                             .shared_gate = true,
                             .rope.theta = 10000};
    c.layers = arena_array(a, 3, sizeof *c.layers, &e);
    assert_non_null(c.layers);
    c.layers[0] = (struct model_layer){.n_heads = 4, .n_kv_heads = 2, .ffn = 96, .experts = EXPERTS, .expert_ffn = 32};
    c.layers[1] = (struct model_layer){.n_heads = 4, .n_kv_heads = 2, .ffn = 64};
    c.layers[2] = (struct model_layer){.n_heads = 2, .n_kv_heads = 1, .experts = EXPERTS, .expert_ffn = 64};
    return c;
}

/* Router scores are far apart. */
static struct model *mixed_model(const struct model_config *c) {
    struct model *m = sample_model(c, 3);
    for (uint32_t l = 0; l < 3; l += 2) {
        struct model_param *p = model_param(m, ROLE_ROUTER, l);
        for (uint64_t i = 0; p && i < p->n; i++) model_host_value(p)[i] *= 50;
    }
    return m;
}

/* No position takes expert UNUSED of layer 2: the first channel of the residual stream is positive everywhere, and
 * the expert's router row turns it into a score far below all others. */
static void forbid_expert(struct model *m) {
    struct model_param *embed = model_param(m, ROLE_EMBED, 0), *router = model_param(m, ROLE_ROUTER, 2);
    for (uint64_t i = 0; i < embed->n; i += 64) model_host_value(embed)[i] = 1;
    for (uint32_t i = 0; i < EXPERTS; i++) model_host_value(router)[(uint64_t)i * 64] = i == UNUSED ? -100 : 0;
}

/* ---- slots ------------------------------------------------------------------------------------------------------- */

static void slots_have_names_and_order(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = mixed_config(&a);
    const char *first[] = {"embed.weight", "layers.0.attn_norm.weight"};
    char name[TENSOR_MAX_NAME + 1], all[20000] = "";
    size_t n = model_slot_count(&c), at[4];
    for (size_t i = 0; i < n; i++) {
        struct model_slot s = model_slot_at(&c, i), back;
        model_slot_name(s, name);
        if (i < 2) assert_string_equal(name, first[i]);
        OK(model_slot_parse(name, &back, &e));
        assert_true(back.role == s.role && back.layer == s.layer && back.expert == s.expert);
        assert_int_equal(model_slot_index(&c, s), i);
        snprintf(all + strlen(all), sizeof all - strlen(all), "%s\n", name);
    }
    assert_non_null(strstr(all, "layers.0.ffn.down.weight\nlayers.0.shared_gate.weight\nlayers.0.router.weight\n"
                                "layers.0.experts.0.gate.weight\nlayers.0.experts.0.up.weight\n"
                                "layers.0.experts.0.down.weight\nlayers.0.experts.1.gate.weight\n"));
    assert_non_null(strstr(all, "layers.0.experts.5.down.weight\nlayers.1.attn_norm.weight\n"));
    assert_non_null(strstr(all, "layers.1.ffn.down.weight\nlayers.2.attn_norm.weight\n"));
    assert_non_null(strstr(all, "layers.2.ffn_norm.weight\nlayers.2.router.weight\nlayers.2.experts.0.gate.weight\n"));
    assert_non_null(strstr(all, "layers.2.experts.5.down.weight\nnorm.weight\n"));
    for (uint32_t l = 0; l <= 3; l++) at[l] = model_slot_of_layer(&c, l);
    for (uint32_t l = 0; l < 3; l++) {
        assert_int_equal(model_slot_at(&c, at[l]).role, ROLE_ATTN_NORM);
        for (size_t i = at[l]; i < at[l + 1]; i++)
            assert_int_equal(model_slot_ends_layer(&c, model_slot_at(&c, i)), i + 1 == at[l + 1]);
    }
    assert_false(model_slot_ends_expert(&c, (struct model_slot){ROLE_EXPERT_UP, 0, 2}));
    assert_true(model_slot_ends_expert(&c, (struct model_slot){ROLE_EXPERT_DOWN, 0, 2}));
    assert_int_equal(model_slot_index(&c, (struct model_slot){ROLE_EXPERT_UP, 1, 0}), -1);
    assert_int_equal(model_slot_index(&c, (struct model_slot){ROLE_EXPERT_UP, 0, EXPERTS}), -1);
    assert_int_equal(model_slot_index(&c, (struct model_slot){ROLE_GATE, 2, 0}), -1);
    const char *bad[] = {"layers.0.experts.07.up.weight",   "layers.0.experts..up.weight",
                         "layers.0.experts.4096.up.weight", "layers.0.experts.1.up",
                         "layers.0.experts.weight",         "experts.1.up.weight"};
    struct model_slot s;
    for (size_t i = 0; i < COUNT_OF(bad); i++) assert_int_equal(model_slot_parse(bad[i], &s, &e), ERR_DATA);
    arena_release(&a);
}

static void config_survives_json_and_refuses_what_cannot_be(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = mixed_config(&a), back;
    cJSON *json = model_config_to_json(&c, &e);
    OK(model_config_from_json(&back, json, &a, &e));
    cJSON_Delete(json);
    assert_memory_equal(c.layers, back.layers, 3 * sizeof *c.layers);
    assert_true(back.experts_per_token == PER_TOKEN && back.norm_expert_weights && back.shared_gate);
    struct model_layer good = c.layers[2];
    const struct {
        uint32_t experts, width, ffn, per_token;
        bool parallel;
        const char *says;
    } cases[] = {{4, 0, 0, 2, false, "layer 2: width of experts is 0"},
                 {0, 8, 8, 2, false, "layer 2: a width of experts, 8, and no experts"},
                 {0, 0, 0, 2, false, "layer 2: feed-forward width is 0"},
                 {5000, 8, 0, 2, false, "layer 2: number of experts is 5000"},
                 {1, 8, 0, 2, false, "layer 2: a position takes 2 of 1 experts"},
                 {4, 8, 0, 0, false, "layer 0: a position takes 0 of 6 experts"},
                 {4, 8, 0, 2, true, "layer 0: experts in a part parallel to attention"}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        c.layers[2].experts = cases[i].experts;
        c.layers[2].expert_ffn = cases[i].width;
        c.layers[2].ffn = cases[i].ffn;
        c.experts_per_token = cases[i].per_token;
        c.parallel = cases[i].parallel;
        assert_int_equal(model_config_check(&c, &e), ERR_DATA);
        if (strncmp(e.msg, cases[i].says, strlen(cases[i].says)) != 0) fail_msg("'%s', not '%s'", e.msg, cases[i].says);
        c.layers[2] = good;
    }
    c.parallel = false;
    c.experts_per_token = PER_TOKEN;
    /* Even where every count is valid, the number of tensors is limited. */
    c.n_layers = 4096;
    c.layers = arena_array(&a, c.n_layers, sizeof *c.layers, &e);
    for (uint32_t i = 0; i < c.n_layers; i++)
        c.layers[i] = (struct model_layer){1, 1, .experts = 4096, .expert_ffn = 1};
    assert_int_equal(model_config_check(&c, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "tensors, at most 524288 are allowed"));
    arena_release(&a);
}

/* ---- layer by layer, in passes that give each expert few rows ---------------------------------------------------- */

static void layer_by_layer_and_threads_change_nothing(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    enum { SEQS = 3, LENGTH = 520, POSITIONS = SEQS * LENGTH };
    static uint32_t tokens[POSITIONS];
    const uint32_t lengths[SEQS] = {LENGTH, LENGTH, LENGTH};
    struct model_config c = mixed_config(&a);
    c.layers[0].experts = 300; /* most get a handful of rows per pass, more in total */
    struct model *made = mixed_model(&c);
    sample_tokens(tokens, POSITIONS, c.vocab_size, 5);
    const struct model_input in = {POSITIONS, SEQS, tokens, lengths};
    const struct {
        unsigned dtype;
        enum model_weight_format format;
    } cases[] = {{DT_F32, WEIGHTS_F32}, {DT_BF16, WEIGHTS_PACKED}, {DT_Q8_0, WEIGHTS_INT8}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct buf bytes = saved_model(made, DT_F32);
        struct stream_reader *r;
        struct model_layerwise *l;
        struct model *m;
        struct grad_tape *t;
        if (cases[i].dtype != DT_F32) {
            struct quant_options o = {.type = NULL};
            struct quant_totals totals;
            struct stream_writer *w;
            int from = file_of(bytes.data, bytes.len), to = memory_file();
            OK(quant_type_parse(cases[i].dtype == DT_BF16 ? "bf16" : "q8_0", &o.type, &e));
            OK(stream_reader_open(&r, from, "model", STREAM_MODEL, &e));
            OK(stream_writer_open(&w, to, "model", NULL, &e));
            if (quantize_stream(r, w, &o, NULL, NULL, &totals, &e)) fail_msg("%s", e.msg);
            OK(stream_writer_finish(w, NULL, &e));
            stream_writer_free(w);
            stream_reader_free(r);
            close(from);
            buf_release(&bytes);
            bytes = contents(to);
        }
        OK(load_model_as(&bytes, cases[i].format, &m, &e));
        parallel_set_threads(1);
        float *whole = logits_of(m, &in);
        parallel_set_threads(4);
        float *again = logits_of(m, &in);
        assert_memory_equal(whole, again, POSITIONS * c.vocab_size * sizeof *whole);
        int fd = file_of(bytes.data, bytes.len);
        OK(stream_reader_open(&r, fd, "model", STREAM_MODEL, &e));
        OK(model_layerwise_new(&l, kernel_cpu(), r, cases[i].format, NULL, NULL, &e));
        OK(grad_tape_new(&t, kernel_cpu(), false, model_precision(m), &e));
        struct all_logits parts = {again};
        OK(model_layerwise_run(l, t, &in, 1, NULL, NULL, &e));
        OK(model_layerwise_logits(l, t, &in, 1, keep_logits, &parts, &e));
        assert_memory_equal(whole, parts.x, POSITIONS * c.vocab_size * sizeof *whole);
        parallel_set_threads(parallel_default_threads());
        grad_tape_free(t);
        model_layerwise_free(l);
        stream_reader_free(r);
        close(fd);
        mem_free(whole);
        mem_free(again);
        buf_release(&bytes);
        model_free(m);
    }
    model_free(made);
    arena_release(&a);
}

/* ---- statistics -------------------------------------------------------------------------------------------------- */

/* What was observed at one expert, and at the router. */
struct expert_seen {
    uint32_t layer, expert;
    float *in, *out, *routed;
    uint32_t *positions;
    size_t rows;
};

static float *copied(const struct model_seen *s) {
    struct err e;
    const float *x;
    assert_int_equal(model_seen_f32(s, &x, &e), 0);
    float *copy = mem_array(s->rows * s->cols, sizeof *copy, &e);
    memcpy(copy, x, s->rows * s->cols * sizeof *copy);
    return copy;
}

static int keep_expert(void *ctx, const struct model_seen *s, struct err *e) {
    struct expert_seen *k = ctx;
    if (s->layer != k->layer) return 0;
    if (s->point == POINT_ROUTED) k->routed = copied(s);
    if (s->expert != k->expert) return 0;
    if (s->point == POINT_EXPERT_OUT) k->out = copied(s);
    if (s->point != POINT_EXPERT_IN) return 0;
    k->in = copied(s);
    k->rows = s->rows;
    k->positions = mem_array(s->rows, sizeof *k->positions, e);
    memcpy(k->positions, s->positions, s->rows * sizeof *k->positions);
    return 0;
}

static void check_close(const char *what, double got, double want) {
    if (!(fabs(got - want) <= 1e-6 * (fabs(want) + 1e-6))) fail_msg("%s is %.9g, should be %.9g", what, got, want);
}

static void each_expert_has_its_statistics(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = mixed_config(&a);
    struct model *m = mixed_model(&c);
    const uint32_t lengths[] = {20, 1, 9};
    uint32_t tokens[30];
    forbid_expert(m);
    sample_tokens(tokens, 30, c.vocab_size, 3);
    struct model_input in = {30, 3, tokens, lengths};
    struct stats *s = stats_of(m, &in);
    struct grad_tape *t;
    OK(grad_tape_new(&t, kernel_cpu(), false, DT_F32, &e));
    for (uint32_t layer = 0; layer < 3; layer += 2) {
        double count = 0, mass = 0;
        for (uint32_t i = 0; i < EXPERTS; i++) {
            struct expert_seen k = {layer, i, .in = NULL};
            double sum = 0, output = 0, seq = 0, positions, mean[3] = {0}, n[3] = {0};
            OK(model_infer(m, t, &in, keep_expert, &k, NULL, NULL, &e));
            for (size_t r = 0; r < k.rows; r++) {
                double norm = 0, x = k.in[r * 64 + 5];
                size_t q = k.positions[r] < 20 ? 0 : k.positions[r] == 20 ? 1 : 2;
                for (size_t j = 0; j < 64; j++) norm += (double)k.out[r * 64 + j] * k.out[r * 64 + j];
                assert_true(k.routed[k.positions[r] * EXPERTS + i] > 0);
                assert_true(r == 0 || k.positions[r] > k.positions[r - 1]);
                output += sqrt(norm);
                sum += x * x;
                mean[q] += fabs(x);
                n[q]++;
            }
            for (size_t q = 0; q < 3; q++) seq += n[q] > 0 ? mean[q] / n[q] * mean[q] / n[q] : 0;
            double routed = 0;
            for (size_t r = 0; r < 30; r++) routed += k.routed[r * EXPERTS + i];
            struct model_slot slot = {ROLE_EXPERT_UP, layer, i};
            uint64_t cols;
            assert_true(stats_expert_count(s, layer, i) == (double)k.rows);
            check_close("output", stats_expert_output(s, layer, i), output);
            check_close("mass", stats_sum_abs(s, POINT_ROUTED, layer)[i], routed);
            check_close("squares", stats_input_sq(s, slot, &cols, &positions)[5], sum);
            check_close("means", stats_input_seq_sq(s, POINT_EXPERT_IN, slot)[5], seq);
            assert_true(positions == (double)k.rows);
            if (layer == 2 && i == UNUSED) assert_int_equal(k.rows, 0);
            count += (double)k.rows;
            mass += routed;
            mem_free(k.in);
            mem_free(k.out);
            mem_free(k.routed);
            mem_free(k.positions);
        }
        assert_true(count == 30 * PER_TOKEN);
        check_close("mass of all", mass, 30); /* normalised */
    }
    grad_tape_free(t);
    stats_free(s);
    model_free(m);
    arena_release(&a);
}

/* Statistics through a stream, and two of them added. */
static void statistics_survive_a_stream(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = mixed_config(&a);
    struct model *m = mixed_model(&c);
    struct stats *s = sample_stats(m, 40, 6), *back;
    struct buf all = {0};
    for (int i = 0; i < 2; i++) {
        struct stream_writer *w;
        int fd = memory_file();
        OK(stream_writer_open(&w, fd, "stats", NULL, &e));
        OK(stats_write(s, w, &e));
        OK(stream_writer_finish(w, NULL, &e));
        stream_writer_free(w);
        struct buf one = contents(fd);
        OK(buf_append(&all, one.data, one.len, &e));
        buf_release(&one);
    }
    struct stream_reader *r;
    int fd = file_of(all.data, all.len);
    OK(stream_reader_open(&r, fd, "stats", STREAM_STATS, &e));
    if (stats_load(&back, r, NULL, &e)) fail_msg("%s", e.msg);
    for (uint32_t i = 0; i < EXPERTS; i++) {
        struct model_slot slot = {ROLE_EXPERT_DOWN, 2, i};
        double n;
        uint64_t cols;
        assert_true(stats_expert_count(back, 2, i) == 2 * stats_expert_count(s, 2, i));
        assert_true(stats_expert_output(back, 0, i) == 2 * stats_expert_output(s, 0, i));
        const double *x = stats_input_sq(back, slot, &cols, &n), *y = stats_input_sq(s, slot, &cols, &n);
        for (size_t j = 0; j < 64; j++) assert_true(x[j] == 2 * y[j]);
    }
    OK(stats_check(back, &c, (struct digest){0}, &e));
    c.layers[2].experts--;
    assert_int_equal(stats_check(back, &c, (struct digest){0}, &e), ERR_DATA);
    stream_reader_free(r);
    close(fd);
    stats_free(back);
    stats_free(s);
    buf_release(&all);
    model_free(m);
    arena_release(&a);
}

/* ---- through filters --------------------------------------------------------------------------------------------- */

static struct model *pruned(const struct model *m, const struct prune_options *o, struct prune_report *report) {
    struct err e;
    struct stream_reader *r;
    struct stream_writer *w;
    struct model *out;
    struct buf in = saved_model(m, DT_F32);
    int from = file_of(in.data, in.len), to = memory_file();
    OK(stream_reader_open(&r, from, "in", STREAM_MODEL, &e));
    OK(stream_writer_open(&w, to, "out", NULL, &e));
    *report = (struct prune_report){0};
    if (prune_stream(r, w, o, report, &e)) fail_msg("%s", e.msg);
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    stream_reader_free(r);
    close(from);
    buf_release(&in);
    struct buf written = contents(to);
    if (load_model(&written, &out, &e)) fail_msg("%s", e.msg);
    buf_release(&written);
    return out;
}

static void the_experts_that_add_most_stay(void **state) {
    (void)state;
    struct arena a = {0};
    struct model_config c = mixed_config(&a);
    struct model *m = mixed_model(&c);
    struct prune_report r;
    forbid_expert(m);
    struct stats *s = sample_stats(m, 60, 8);
    struct prune_options o = {.experts = {.n = 3}, .stats = s, .score = PRUNE_BY_STATS};
    struct model *p = pruned(m, &o, &r);
    assert_int_equal(p->config.experts_per_token, PER_TOKEN);
    for (uint32_t l = 0; l < 3; l += 2) {
        double least = INFINITY, best_gone = 0;
        assert_int_equal(p->config.layers[l].experts, 3);
        for (uint32_t i = 0, k = 0; i < EXPERTS; i++) {
            double n = stats_expert_count(s, l, i), score = n > 0 ? stats_expert_output(s, l, i) / n : 0;
            bool kept = k < 3 && r.kept_experts[l][k] == i;
            if (!kept) {
                best_gone = fmax(best_gone, score);
                continue;
            }
            least = fmin(least, score);
            for (int role = ROLE_EXPERT_GATE; role <= ROLE_EXPERT_DOWN; role++) {
                const struct model_param *was = model_expert_param(m, (enum model_role)role, l, i),
                                         *now = model_expert_param(p, (enum model_role)role, l, k);
                assert_int_equal(was->n, now->n);
                assert_memory_equal(model_host_value(was), model_host_value(now), was->n * sizeof(float));
            }
            assert_memory_equal(model_host_value(model_param(m, ROLE_ROUTER, l)) + i * 64,
                                model_host_value(model_param(p, ROLE_ROUTER, l)) + k * 64, 64 * sizeof(float));
            k++;
        }
        assert_true(least >= best_gone && least > 0);
    }
    for (uint32_t k = 0; k < 3; k++) assert_int_not_equal(r.kept_experts[2][k], UNUSED);
    assert_int_equal(p->config.layers[1].experts, 0);
    assert_memory_equal(model_host_value(model_param(m, ROLE_DOWN, 1)), model_host_value(model_param(p, ROLE_DOWN, 1)),
                        64 * 64 * sizeof(float));
    prune_report_release(&r);
    model_free(p);
    /* fewer experts than a position took: all are taken */
    o.experts.n = 1;
    p = pruned(m, &o, &r);
    assert_int_equal(p->config.experts_per_token, 1);
    uint32_t tokens[] = {1, 2, 3}, length = 3;
    float *logits = logits_of(p, &(struct model_input){3, 1, tokens, &length});
    assert_true(isfinite(logits[0]));
    mem_free(logits);
    prune_report_release(&r);
    model_free(p);
    stats_free(s);
    model_free(m);
    arena_release(&a);
}

/* Removing an expert that no position takes must leave the outputs as they are. */
static void an_expert_that_nothing_takes_is_not_missed(void **state) {
    (void)state;
    struct arena a = {0};
    struct model_config c = mixed_config(&a);
    c.layers[0] = c.layers[1]; /* only the last layer has experts */
    struct model *m = mixed_model(&c);
    struct prune_report r;
    static uint32_t tokens[60];
    uint32_t length = 60;
    forbid_expert(m);
    sample_tokens(tokens, 60, c.vocab_size, 8);
    struct model_input in = {60, 1, tokens, &length};
    struct stats *s = stats_of(m, &in);
    struct model *p = pruned(m, &(struct prune_options){.experts = {.n = EXPERTS - 1}, .stats = s}, &r);
    float *before = logits_of(m, &in), *after = logits_of(p, &in);
    assert_memory_equal(before, after, 60 * c.vocab_size * sizeof *before);
    mem_free(before);
    mem_free(after);
    prune_report_release(&r);
    model_free(p);
    stats_free(s);
    model_free(m);
    arena_release(&a);
}

/* Channels that are zero are removed first, different ones in each expert. */
static void channels_of_experts_go_one_by_one(void **state) {
    (void)state;
    struct arena a = {0};
    struct model_config c = mixed_config(&a);
    struct model *m = mixed_model(&c);
    struct prune_report r;
    for (uint32_t i = 0; i < EXPERTS; i++) {
        struct model_param *up = model_expert_param(m, ROLE_EXPERT_UP, 2, i),
                           *gate = model_expert_param(m, ROLE_EXPERT_GATE, 2, i),
                           *down = model_expert_param(m, ROLE_EXPERT_DOWN, 2, i);
        for (uint32_t k = 0; k < 64; k += 2) {
            uint32_t channel = (k + i) % 64;
            for (uint32_t j = 0; j < 64; j++)
                model_host_value(up)[channel * 64 + j] = model_host_value(gate)[channel * 64 + j] =
                    model_host_value(down)[j * 64 + channel] = 0;
        }
    }
    c.layers[0].ffn = 32;
    struct model *p = pruned(m, &(struct prune_options){.ffn = {.n = 32}}, &r);
    assert_int_equal(p->config.layers[0].ffn, 32);
    assert_int_equal(p->config.layers[0].expert_ffn, 32);
    assert_int_equal(p->config.layers[2].expert_ffn, 32);
    for (uint32_t i = 0; i < EXPERTS; i++)
        for (uint32_t k = 0; k < 32; k++)
            assert_memory_equal(
                model_host_value(model_expert_param(m, ROLE_EXPERT_UP, 2, i)) + (2 * k + (i + 1) % 2) * 64,
                model_host_value(model_expert_param(p, ROLE_EXPERT_UP, 2, i)) + k * 64, 64 * sizeof(float));
    prune_report_release(&r);
    model_free(p);
    model_free(m);
    arena_release(&a);
}

static void pruning_experts_is_refused_with_a_reason(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = mixed_config(&a), dense = sample_config(&a);
    struct model *m[] = {mixed_model(&c), sample_model(&dense, 1)};
    struct stats *s[] = {sample_stats(m[0], 20, 1), sample_stats(m[1], 20, 1)};
    const struct {
        int which;
        struct prune_options o;
        const char *says;
    } cases[] = {{0, {.experts = {.n = 2}}, "choosing experts needs --stats"},
                 {0, {.experts = {.n = 7}, .stats = s[0]}, "cannot keep 7 experts of layer 0: it has 6"},
                 {1, {.experts = {.n = 2}, .stats = s[1]}, "no layer that stays has experts"},
                 {0, {.ffn = {.n = 65}}, "cannot prune the feed-forward width of layer 0 to 65: it is 32"}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct stream_reader *r;
        struct stream_writer *w;
        struct prune_report report = {0};
        struct buf in = saved_model(m[cases[i].which], DT_F32);
        int from = file_of(in.data, in.len), to = memory_file();
        OK(stream_reader_open(&r, from, "in", STREAM_MODEL, &e));
        OK(stream_writer_open(&w, to, "out", NULL, &e));
        assert_int_equal(prune_stream(r, w, &cases[i].o, &report, &e), ERR_USAGE);
        if (!strstr(e.msg, cases[i].says)) fail_msg("'%s', not '%s'", e.msg, cases[i].says);
        prune_report_release(&report);
        stream_writer_free(w);
        stream_reader_free(r);
        close(from);
        close(to);
        buf_release(&in);
    }
    for (int i = 0; i < 2; i++) {
        stats_free(s[i]);
        model_free(m[i]);
    }
    arena_release(&a);
}

/* ---- quantization ------------------------------------------------------------------------------------------------ */

static struct model *quantized(const struct model *m, const struct stats *s) {
    struct err e;
    struct stream_reader *r;
    struct stream_writer *w;
    struct quant_options o = {.stats = s};
    struct quant_totals totals;
    struct model *out;
    struct buf in = saved_model(m, DT_F32);
    int from = file_of(in.data, in.len), to = memory_file();
    OK(quant_type_parse("q4_0", &o.type, &e));
    OK(stream_reader_open(&r, from, "in", STREAM_MODEL, &e));
    OK(stream_writer_open(&w, to, "out", NULL, &e));
    if (quantize_stream(r, w, &o, NULL, NULL, &totals, &e)) fail_msg("%s", e.msg);
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    stream_reader_free(r);
    close(from);
    buf_release(&in);
    struct buf written = contents(to);
    OK(load_model(&written, &out, &e));
    buf_release(&written);
    return out;
}

/* Error of an expert's up matrix, weighted by the inputs that the expert received. */
static double weighed_error(const struct model *m, const struct model *q, const struct stats *s, uint32_t expert) {
    const struct model_param *x = model_expert_param(m, ROLE_EXPERT_UP, 2, expert),
                             *y = model_expert_param(q, ROLE_EXPERT_UP, 2, expert);
    double n, sum = 0;
    uint64_t cols;
    const double *w = stats_input_sq(s, x->slot, &cols, &n);
    for (uint64_t i = 0; i < x->n; i++)
        sum += w[i % 64] * pow((double)model_host_value(x)[i] - model_host_value(y)[i], 2);
    return sum;
}

static void an_expert_is_quantized_by_its_own_statistics(void **state) {
    (void)state;
    struct arena a = {0};
    struct model_config c = mixed_config(&a);
    struct model *m = mixed_model(&c);
    forbid_expert(m);
    struct stats *s = sample_stats(m, 60, 8);
    struct model *plain = quantized(m, NULL), *weighed = quantized(m, s);
    assert_true(stats_expert_count(s, 2, UNUSED) == 0);
    for (uint32_t i = 0; i < EXPERTS; i++) {
        const struct model_param *x = model_expert_param(plain, ROLE_EXPERT_UP, 2, i),
                                 *y = model_expert_param(weighed, ROLE_EXPERT_UP, 2, i);
        bool same = !memcmp(model_host_value(x), model_host_value(y), x->n * sizeof(float));
        assert_int_equal(same, stats_expert_count(s, 2, i) == 0); /* experts without statistics */
        if (!same) assert_true(weighed_error(m, weighed, s, i) < weighed_error(m, plain, s, i));
    }
    /* routers and gates are not quantized */
    const struct model_param *router = model_param(plain, ROLE_ROUTER, 2),
                             *gate = model_param(plain, ROLE_SHARED_GATE, 0);
    assert_int_equal(router->desc.dtype, DT_F32);
    assert_int_equal(gate->desc.dtype, DT_F32);
    assert_memory_equal(model_host_value(router), model_host_value(model_param(m, ROLE_ROUTER, 2)),
                        router->n * sizeof(float));
    model_free(plain);
    model_free(weighed);
    stats_free(s);
    model_free(m);
    arena_release(&a);
}

static enum dtype chosen(const struct model_config *c, const char *type, enum model_role role, uint32_t layer) {
    struct err e;
    struct quant_options o = {.type = NULL};
    struct quant_plan p;
    bool in_experts = role == ROLE_EXPERT_GATE || role == ROLE_EXPERT_UP || role == ROLE_EXPERT_DOWN;
    OK(quant_type_parse(type, &o.type, &e));
    OK(quant_plan_make(&p, c, &o, &e));
    struct model_slot s = {role, layer, in_experts ? 1 : 0};
    enum dtype wanted = p.choices[model_slot_index(c, s)].wanted;
    quant_plan_release(&p);
    return wanted;
}

/* llama.cpp's mixtures (src/llama-quant.cpp): down of experts is treated as down, and eight experts give attention
 * more. */
static void mixtures_know_experts(void **state) {
    (void)state;
    struct arena a = {0};
    struct model_config c = mixed_config(&a);
    assert_int_equal(chosen(&c, "q4_k_m", ROLE_EXPERT_DOWN, 2), DT_Q6_K);
    assert_int_equal(chosen(&c, "q4_k_m", ROLE_EXPERT_DOWN, 0), DT_Q4_K);
    assert_int_equal(chosen(&c, "q4_k_m", ROLE_EXPERT_UP, 2), DT_Q4_K);
    assert_int_equal(chosen(&c, "q4_k_m", ROLE_K, 2), DT_Q4_K);
    assert_int_equal(chosen(&c, "q4_k_m", ROLE_ROUTER, 2), DT_F32);
    assert_int_equal(chosen(&c, "iq3_xs", ROLE_EXPERT_GATE, 0), DT_IQ3_XXS);
    c.layers[2].experts = 4;
    assert_int_equal(chosen(&c, "iq2_xs", ROLE_V, 2), DT_Q4_K);
    assert_int_equal(chosen(&c, "iq2_xs", ROLE_K, 2), DT_IQ2_XS);
    c.layers[2].experts = 8;
    static const struct {
        const char *type;
        enum dtype k, v, o, down;
    } eight[] = {
        {"q4_k_m", DT_Q8_0, DT_Q8_0, DT_Q5_K, DT_Q6_K},   {"q5_k_m", DT_Q8_0, DT_Q8_0, DT_Q5_K, DT_Q6_K},
        {"q6_k", DT_Q8_0, DT_Q8_0, DT_Q6_K, DT_Q6_K},     {"q4_0", DT_Q8_0, DT_Q8_0, DT_Q4_0, DT_Q4_0},
        {"q3_k_s", DT_Q8_0, DT_Q8_0, DT_Q5_K, DT_Q3_K},   {"q3_k_l", DT_Q8_0, DT_Q8_0, DT_Q3_K, DT_Q5_K},
        {"q2_k", DT_Q8_0, DT_Q8_0, DT_Q5_K, DT_Q3_K},     {"q2_k_s", DT_Q8_0, DT_Q8_0, DT_Q2_K, DT_Q2_K},
        {"iq4_xs", DT_Q8_0, DT_Q8_0, DT_Q5_K, DT_IQ4_XS}, {"iq3_m", DT_Q8_0, DT_Q8_0, DT_Q5_K, DT_Q4_K},
        {"iq2_m", DT_Q4_K, DT_Q4_K, DT_Q5_K, DT_IQ2_S},   {"iq2_xxs", DT_Q4_K, DT_Q4_K, DT_Q5_K, DT_IQ2_XXS},
    };
    for (size_t i = 0; i < COUNT_OF(eight); i++) {
        assert_int_equal(chosen(&c, eight[i].type, ROLE_K, 2), eight[i].k);
        assert_int_equal(chosen(&c, eight[i].type, ROLE_V, 2), eight[i].v);
        assert_int_equal(chosen(&c, eight[i].type, ROLE_O, 2), eight[i].o);
        assert_int_equal(chosen(&c, eight[i].type, ROLE_EXPERT_DOWN, 2), eight[i].down);
    }
    arena_release(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slots_have_names_and_order),
        cmocka_unit_test(config_survives_json_and_refuses_what_cannot_be),
        cmocka_unit_test(layer_by_layer_and_threads_change_nothing),
        cmocka_unit_test(each_expert_has_its_statistics),
        cmocka_unit_test(statistics_survive_a_stream),
        cmocka_unit_test(the_experts_that_add_most_stay),
        cmocka_unit_test(an_expert_that_nothing_takes_is_not_missed),
        cmocka_unit_test(channels_of_experts_go_one_by_one),
        cmocka_unit_test(pruning_experts_is_refused_with_a_reason),
        cmocka_unit_test(an_expert_is_quantized_by_its_own_statistics),
        cmocka_unit_test(mixtures_know_experts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
