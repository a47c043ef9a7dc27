/*
 * Tests of lib/model with LSTM layers: configuration, tensors and initial weights, sequence boundaries, widths that
 * change between layers.
 */
#include "tests/unit/model_samples.h"

enum { EMBED = 24, HIDDEN = 32, UNITS = HIDDEN / 2, VOCAB = 50, CLASSES = 3, LAYERS = 2 };

static struct model_config lstm_config(struct arena *a) {
    struct err e;
    struct model_config c = {.arch = "bilstm",
                             .n_layers = LAYERS,
                             .hidden = HIDDEN,
                             .embed_dim = EMBED,
                             .vocab_size = VOCAB,
                             .context = 64,
                             .layer_kind = LAYER_LSTM,
                             .positions = POSITIONS_NONE,
                             .bidirectional = true,
                             .no_final_norm = true,
                             .output = OUTPUT_CLASSES,
                             .pooler = true,
                             .pooler_act = ACT_RELU,
                             .classes = CLASSES};
    c.layers = arena_array(a, LAYERS, sizeof *c.layers, &e);
    assert_non_null(c.layers);
    return c;
}

/* ---- configuration ----------------------------------------------------------------------------------------------- */

static void config_survives_json(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = lstm_config(&a), back;
    cJSON *o = model_config_to_json(&c, &e);
    assert_non_null(o);
    OK(model_config_from_json(&back, o, &a, &e));
    cJSON *again = model_config_to_json(&back, &e);
    char *one = json_text(o, &e), *two = json_text(again, &e);
    assert_string_equal(one, two);
    assert_null(strstr(one, "heads")); /* keys that such layers lack are not written */
    assert_null(strstr(one, "ffn"));
    mem_free(one);
    mem_free(two);
    cJSON_Delete(o);
    cJSON_Delete(again);
    arena_release(&a);
}

static void config_refuses_what_cannot_be(void **state) {
    static const char good[] =
        "{\"arch\":\"bilstm\",\"layers\":2,\"hidden\":8,\"vocab_size\":9,\"context\":8,\"tied\":false,\"qkv_bias\":"
        "false,"
        "\"norm_eps\":0,\"layer\":\"lstm\",\"positions\":\"none\",\"bidirectional\":true,\"no_final_norm\":true,"
        "\"output\":\"classes\",\"classes\":2}";
    static const struct config_change cases[] = {
        {"\"hidden\":8", "\"hidden\":7", "a hidden size of 7 for LSTMs of two directions"},
        {"\"lstm\"", "\"gru\"", "'gru' is not supported (transformer, lstm are)"},
        {"\"lstm\"", "\"transformer\"", "\"head_dim\""},
        {"\"bidirectional\":true", "\"bidirectional\":false", "LSTMs of one direction"},
        {"\"output\":\"classes\",\"classes\":2", "\"output\":\"none\"", "does not classify sequences"},
        {"\"positions\":\"none\",", "\"positions\":\"learned\",", "positions, token types"},
        {"\"norm_eps\":0", "\"norm_eps\":0,\"heads\":2,\"kv_heads\":2", "layer 0: attention in a layer of LSTMs"},
        {"\"norm_eps\":0", "\"norm_eps\":0,\"window\":2", "layer 0: attention in a layer of LSTMs"},
        {"\"norm_eps\":0", "\"norm_eps\":0,\"ffn\":[0,8]", "layer 1: a feed-forward part in a layer of LSTMs"},
        {"\"norm_eps\":0", "\"norm_eps\":0,\"o_bias\":true", "attention or a feed-forward part"},
        {"\"classes\":2", "\"classes\":0", "0 classes in a model that is a classifier"},
    };
    (void)state;
    assert_configs_refused(good, cases, COUNT_OF(cases));
}

static void slots_have_names_order_and_shapes(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = lstm_config(&a);
    size_t n = model_slot_count(&c);
    assert_int_equal(n, 1 + 8 * LAYERS + 2 + 2);
    for (size_t i = 0; i < n; i++) {
        char name[TENSOR_MAX_NAME + 1];
        struct model_slot s = model_slot_at(&c, i), back;
        OK(model_slot_parse(model_slot_name(s, name), &back, &e));
        assert_true(back.role == s.role && back.layer == s.layer);
        assert_int_equal(model_slot_index(&c, s), i);
    }
    uint64_t dims[2];
    assert_int_equal(model_slot_shape(&c, (struct model_slot){.role = ROLE_LSTM_INPUT}, dims), 2);
    assert_true(dims[0] == 4 * UNITS && dims[1] == EMBED);
    model_slot_shape(&c, (struct model_slot){.role = ROLE_LSTM_REVERSE_INPUT, .layer = 1}, dims);
    assert_true(dims[0] == 4 * UNITS && dims[1] == HIDDEN);
    model_slot_shape(&c, (struct model_slot){.role = ROLE_LSTM_STATE, .layer = 1}, dims);
    assert_true(dims[0] == 4 * UNITS && dims[1] == UNITS);
    assert_true(model_slot_index(&c, (struct model_slot){.role = ROLE_Q}) < 0);
    assert_int_equal(model_point_cols(&c, POINT_LSTM_IN, 0), EMBED);
    assert_int_equal(model_point_cols(&c, POINT_Q, 0), 0);
    arena_release(&a);
}

/* Standard deviations of PyTorch's modules. */
static void fresh_weights(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = lstm_config(&a);
    struct model *m;
    OK(model_init(&m, kernel_cpu(), &c, NULL, 0, 3, &e));
    for (size_t i = 0; i < m->n_params; i++) {
        const struct model_param *p = &m->params[i];
        double sum = 0, want = 1;
        for (uint64_t k = 0; k < p->n; k++) sum += model_host_value(p)[k] * (double)model_host_value(p)[k];
        if (p->slot.role != ROLE_EMBED)
            want = 1 / sqrt(3.0 * (double)(model_role_in_layer(p->slot.role) ? UNITS : HIDDEN));
        if (p->desc.rank == 1)
            assert_true(sum == 0);
        else if (fabs(sqrt(sum / (double)p->n) / want - 1) > 5 / sqrt(2.0 * (double)p->n))
            fail_msg("%s: deviation %g, should be %g", p->desc.name, sqrt(sum / (double)p->n), want);
    }
    model_free(m);
    arena_release(&a);
}

/* ---- running ----------------------------------------------------------------------------------------------------- */

/* A sequence's logits must be the same alone and among any others. */
static void sequences_end_at_their_borders(void **state) {
    (void)state;
    struct arena a = {0};
    struct model_config c = lstm_config(&a);
    struct model *m = sample_model(&c, 5);
    const uint32_t lengths[] = {7, 12, 1, 9};
    uint32_t tokens[29];
    sample_tokens(tokens, 29, VOCAB, 6);
    const struct model_input in = {29, 4, tokens, lengths};
    float *whole = logits_of(m, &in);
    for (size_t s = 0, at = 0; s < 4; at += lengths[s++]) {
        const struct model_input alone = {lengths[s], 1, tokens + at, lengths + s};
        float *own = logits_of(m, &alone);
        for (size_t i = 0; i < CLASSES; i++)
            if (fabs((double)own[i] - whole[s * CLASSES + i]) > 1e-5 * (1 + fabs(own[i])))
                fail_msg("sequence %zu: %g alone, %g beside others", s, (double)own[i], (double)whole[s * CLASSES + i]);
        mem_free(own);
    }
    /* the first and the last token matter: both directions are read at their ends */
    for (int end = 0; end < 2; end++) {
        uint32_t *token = &tokens[end ? 6 : 0];
        *token = (*token + 1) % VOCAB;
        float *other = logits_of(m, &in);
        assert_true(memcmp(other, whole, CLASSES * sizeof *other) != 0);
        assert_memory_equal(other + CLASSES, whole + CLASSES, 3 * CLASSES * sizeof *other);
        *token = (*token + VOCAB - 1) % VOCAB;
        mem_free(other);
    }
    mem_free(whole);
    model_free(m);
    arena_release(&a);
}

static int keep_widths(void *ctx, const struct model_seen *seen, struct err *e) {
    size_t *cols = ctx;
    (void)e;
    if (seen->point == POINT_EMBED) cols[0] = seen->cols;
    if (seen->point == POINT_LSTM_IN) cols[1 + seen->layer] = seen->cols;
    return 0;
}

struct visited {
    float *states[LAYERS + 1]; /* inputs of each layer, and the output of the last */
    size_t rows;
};

static int visit(void *ctx, struct model_layerwise *l, int64_t layer, struct err *e) {
    struct visited *v = ctx;
    (void)e;
    if (layer < 0) return 0;
    size_t n = v->rows * (layer == 0 ? EMBED : HIDDEN);
    memcpy(v->states[layer], model_layerwise_states(l, STATES_NOW), n * sizeof(float));
    if (layer < LAYERS)
        assert_memory_equal(v->states[layer], model_layerwise_states(l, STATES_DENSE), n * sizeof(float));
    return 0;
}

static int keep_states(void *ctx, const struct model_seen *seen, struct err *e) {
    float *const *to = ctx;
    const float *x;
    if (model_seen_f32(seen, &x, e)) return e->code;
    if (seen->point == POINT_EMBED) memcpy(to[0], x, seen->rows * seen->cols * sizeof *x);
    if (seen->point == POINT_LAYER) memcpy(to[seen->layer + 1], x, seen->rows * seen->cols * sizeof *x);
    return 0;
}

/* Running layer by layer in several passes, with wider rows after the first layer, must give the bits of the
 * resident model. */
static void widths_change_on_the_way(void **state) {
    enum { SEQS = 30, N = SEQS * 40 };
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = lstm_config(&a);
    struct model *m = sample_model(&c, 7);
    struct buf bytes = saved_model(m, 0);
    uint32_t tokens[N], lengths[SEQS];
    sample_tokens(tokens, N, VOCAB, 8);
    for (size_t i = 0; i < SEQS; i++) lengths[i] = 40;
    const struct model_input in = {N, SEQS, tokens, lengths};
    size_t cols[3] = {0};
    float *want[LAYERS + 1];
    struct visited v = {.rows = N};
    struct grad_tape *t;
    OK(grad_tape_new(&t, kernel_cpu(), false, DT_F32, &e));
    for (int i = 0; i <= LAYERS; i++) {
        want[i] = mem_array(N * HIDDEN, sizeof(float), &e);
        v.states[i] = mem_array(N * HIDDEN, sizeof(float), &e);
    }
    OK(model_infer(m, t, &in, keep_widths, cols, NULL, NULL, &e));
    assert_true(cols[0] == EMBED && cols[1] == EMBED && cols[2] == HIDDEN);
    OK(model_infer(m, t, &in, keep_states, want, NULL, NULL, &e));
    struct stream_reader *r;
    struct model_layerwise *l;
    int fd = file_of(bytes.data, bytes.len);
    OK(stream_reader_open(&r, fd, "model", STREAM_MODEL, &e));
    OK(model_layerwise_new(&l, kernel_cpu(), r, WEIGHTS_F32, NULL, NULL, &e));
    const struct model_changes how = {true, visit, &v};
    OK(model_layerwise_change(l, t, &in, 1, &how, &e));
    for (int i = 0; i <= LAYERS; i++) {
        assert_memory_equal(v.states[i], want[i], (size_t)N * (i ? HIDDEN : EMBED) * sizeof(float));
        mem_free(want[i]);
        mem_free(v.states[i]);
    }
    model_layerwise_free(l);
    stream_reader_free(r);
    close(fd);
    grad_tape_free(t);
    buf_release(&bytes);
    model_free(m);
    arena_release(&a);
}

/* Asking for a point that such layers lack is an error. */
static void no_heads_are_wanted(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = lstm_config(&a);
    struct model *m = sample_model(&c, 5);
    uint32_t tokens[] = {1, 2, 3}, length = 3;
    const struct model_input in = {3, 1, tokens, &length};
    struct model_want want = {.point = POINT_V, .layer = 1};
    struct grad_tape *t;
    OK(grad_tape_new(&t, kernel_cpu(), true, DT_F32, &e));
    assert_null(model_graph_want(m, t, &in, &want, 1, &e));
    assert_string_equal(e.msg, "point 'v' of layer 1 is wanted, which has none");
    grad_tape_free(t);
    model_free(m);
    arena_release(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(config_survives_json),
        cmocka_unit_test(config_refuses_what_cannot_be),
        cmocka_unit_test(slots_have_names_order_and_shapes),
        cmocka_unit_test(fresh_weights),
        cmocka_unit_test(sequences_end_at_their_borders),
        cmocka_unit_test(widths_change_on_the_way),
        cmocka_unit_test(no_heads_are_wanted),
    };
    return cmocka_run_group_tests_name("model lstm", tests, NULL, NULL);
}
