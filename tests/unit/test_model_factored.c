/*
 * Tests of lib/model with matrices stored as two factors: they compute what their product does, learn from its
 * gradient, and are loaded and checked.
 */
#include "tests/unit/model_samples.h"

enum { POSITIONS = 24 };

static struct model_input sample_input(const struct model_config *c) {
    static uint32_t tokens[POSITIONS];
    static const uint32_t lengths[] = {10, 14};
    sample_tokens(tokens, POSITIONS, c->vocab_size, 5);
    return (struct model_input){POSITIONS, 2, tokens, lengths};
}

/* Some matrices of layer 0 and all of layer 1 are factored. */
static struct model_config factored_config(struct arena *a) {
    struct model_config c = sample_config(a);
    c.layers[0].rank[FACTOR_K] = 7;
    c.layers[0].rank[FACTOR_UP] = 13;
    for (int f = 0; f < FACTOR_COUNT; f++) c.layers[1].rank[f] = 5 + (uint32_t)f;
    return c;
}

/* The product of a role's factors. */
static float *product_of(const struct model *m, enum model_role role, uint32_t layer, size_t *rows, size_t *cols) {
    struct err e;
    const struct model_param *first = model_param(m, role, layer), *second = NULL;
    if (model_rank(&m->config, role, layer)) second = model_param(m, model_role_info(role)->out, layer);
    *rows = second ? second->desc.dims[0] : first->desc.dims[0];
    *cols = first->desc.dims[1];
    float *x = mem_array(*rows, *cols * sizeof *x, &e);
    if (second)
        kernel_matmul_nn(*rows, *cols, first->desc.dims[0], second->value, first->value, 0, kernel_f32(x));
    else
        memcpy(x, model_host_value(first), first->n * sizeof *x);
    return x;
}

/* The same model with whole matrices. */
static struct model *whole_model(const struct model *m, const struct model_config *c) {
    struct model *w = sample_model(c, 9);
    for (size_t i = 0; i < w->n_params; i++) {
        const struct model_slot s = w->params[i].slot;
        size_t rows, cols;
        if (w->params[i].desc.rank == 1) {
            memcpy(model_host_value(&w->params[i]), model_host_value(model_param(m, s.role, s.layer)),
                   w->params[i].n * sizeof(float));
            continue;
        }
        float *x = product_of(m, s.role, s.layer, &rows, &cols);
        assert_int_equal(rows * cols, w->params[i].n);
        memcpy(model_host_value(&w->params[i]), x, rows * cols * sizeof *x);
        mem_free(x);
    }
    return w;
}

static void assert_near(const float *x, const float *y, size_t n, double tolerance, const char *what) {
    double most = 0;
    for (size_t i = 0; i < n; i++) most = fmax(most, fabs(y[i]));
    for (size_t i = 0; i < n; i++)
        if (!(fabs((double)x[i] - y[i]) <= tolerance * most)) fail_msg("%s, %zu: %g, expected %g", what, i, x[i], y[i]);
}

static void the_product_is_what_is_computed(void **state) {
    (void)state;
    struct err e;
    for (int plain = 0; plain < 2; plain++) {
        struct arena a = {0};
        struct model_config c = factored_config(&a), whole = sample_config(&a);
        if (plain) {
            c.ffn_kind = whole.ffn_kind = FFN_PLAIN;
            c.ffn_bias = whole.ffn_bias = c.qkv_bias = whole.qkv_bias = c.o_bias = whole.o_bias = true;
            c.layers[1].rank[FACTOR_GATE] = 0;
        }
        OK(model_config_check(&c, &e));
        struct model *m = sample_model(&c, 1), *w = whole_model(m, &whole);
        for (size_t i = 0; plain && i < m->n_params; i++)
            if (model_role_info(m->params[i].slot.role)->kind == KIND_BIAS)
                for (uint64_t k = 0; k < m->params[i].n; k++) {
                    const struct model_slot s = m->params[i].slot;
                    model_host_value(&m->params[i])[k] = model_host_value(model_param(w, s.role, s.layer))[k] =
                        0.1f * (float)(k % 7);
                }
        struct model_input in = sample_input(&c);
        float *x = logits_of(m, &in), *y = logits_of(w, &in);
        assert_near(x, y, POSITIONS * c.vocab_size, 1e-4, "logits");
        /* packed within rounding; layer by layer to the bit */
        struct model *packed = packed_model(m, DT_BF16, WEIGHTS_PACKED);
        float *z = logits_of(packed, &in);
        assert_near(z, y, POSITIONS * c.vocab_size, 0.1, "logits in bf16");
        mem_free(x);
        mem_free(y);
        mem_free(z);
        model_free(packed);
        model_free(m);
        model_free(w);
        arena_release(&a);
    }
}

static int square_loss(void *ctx, size_t first, size_t rows, size_t vocab, struct kernel_array logits,
                       struct kernel_array dlogits, struct err *e) {
    float *x = kernel_host(logits, rows * vocab), *d = kernel_host(dlogits, rows * vocab);
    (void)ctx, (void)first, (void)e;
    for (size_t i = 0; i < rows * vocab; i++) d[i] = x[i] * (float)(1 + i % 3);
    return 0;
}

static void learn(struct model *m, const struct model_input *in) {
    struct err e;
    struct grad_tape *t;
    OK(grad_tape_new(&t, kernel_cpu(), true, DT_F32, &e));
    OK(model_enable_grad(m, &e));
    struct grad_var *h = model_graph(m, t, in, NULL, NULL, &e);
    assert_non_null(h);
    struct grad_head head = model_logits_head(m, t);
    assert_true(grad_head(t, h, &head, square_loss, NULL));
    grad_backward(t);
    grad_tape_free(t);
}

/* dB = dW A^T, dA = B^T dW; all other gradients are equal. */
static void gradients_are_those_of_the_product(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = factored_config(&a), whole = sample_config(&a);
    struct model *m = sample_model(&c, 1), *w = whole_model(m, &whole);
    struct model_input in = sample_input(&c);
    learn(m, &in);
    learn(w, &in);
    for (size_t i = 0; i < m->n_params; i++) {
        struct model_param *p = &m->params[i];
        const struct model_role_info *info = model_role_info(p->slot.role);
        enum model_role role = p->slot.role;
        for (int r = 0; info->is_out && r < ROLE_COUNT; r++)
            if (model_role_info((enum model_role)r)->out == p->slot.role) role = (enum model_role)r;
        const struct model_param *q = model_param(w, role, p->slot.layer);
        uint32_t rank = model_rank(&c, role, p->slot.layer);
        if (!rank) {
            assert_near(model_host_grad(p), model_host_grad(q), p->n, 2e-4, p->desc.name);
            continue;
        }
        float *expected = mem_array(p->n, sizeof *expected, &e);
        size_t rows = q->desc.dims[0], cols = q->desc.dims[1];
        if (info->is_out)
            kernel_matmul_nt(rows, rank, cols, q->grad, model_param(m, role, p->slot.layer)->value, 0,
                             kernel_f32(expected));
        else
            kernel_matmul_tn(rank, cols, rows, model_param(m, info->out, p->slot.layer)->value, q->grad, 0,
                             kernel_f32(expected));
        assert_near(model_host_grad(p), expected, p->n, 2e-4, p->desc.name);
        mem_free(expected);
    }
    model_free(m);
    model_free(w);
    arena_release(&a);
}

/* Slots in stream order with names and shapes; a stream must load back to the bit. */
static void slots_and_streams(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = factored_config(&a), whole = sample_config(&a), back;
    size_t n = model_slot_count(&c);
    assert_int_equal(n, model_slot_count(&whole) + 9);
    uint64_t parameters = 0;
    for (size_t i = 0; i < n; i++) {
        struct model_slot s = model_slot_at(&c, i), again;
        char name[TENSOR_MAX_NAME + 1];
        uint64_t dims[2] = {1, 1};
        assert_int_equal(model_slot_index(&c, s), (long)i);
        OK(model_slot_parse(model_slot_name(s, name), &again, &e));
        assert_true(again.role == s.role && again.layer == s.layer);
        if (model_slot_shape(&c, s, dims) == 1) dims[1] = 1;
        parameters += dims[0] * dims[1];
        bool ends = i + 1 == n || !model_role_in_layer(model_slot_at(&c, i + 1).role) ||
                    model_slot_at(&c, i + 1).layer != s.layer;
        if (model_role_in_layer(s.role)) assert_true(model_slot_ends_layer(&c, s) == ends);
    }
    assert_int_equal(parameters, model_parameters(&c));
    assert_int_equal(model_rank(&c, ROLE_K_OUT, 0), 7);
    assert_int_equal(model_rank(&c, ROLE_Q, 0), 0);
    assert_true(model_is_factored(&c) && !model_is_factored(&whole));
    cJSON *o = model_config_to_json(&c, &e);
    OK(model_config_from_json(&back, o, &a, &e));
    for (uint32_t i = 0; i < 2; i++) assert_memory_equal(&back.layers[i], &c.layers[i], sizeof *c.layers);
    cJSON_Delete(o);
    o = model_config_to_json(&whole, &e);
    char *text = cJSON_PrintUnformatted(o);
    assert_null(strstr(text, "rank"));
    cJSON_free(text);
    cJSON_Delete(o);
    struct model *m = sample_model(&c, 1), *loaded;
    struct buf bytes = saved_model(m, DT_F32);
    OK(load_model(&bytes, &loaded, &e));
    for (size_t i = 0; i < n; i++)
        assert_memory_equal(model_host_value(&m->params[i]), model_host_value(&loaded->params[i]),
                            m->params[i].n * sizeof(float));
    buf_release(&bytes);
    model_free(loaded);
    model_free(m);
    arena_release(&a);
}

static void ranks_that_cannot_be_are_refused(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = factored_config(&a);
    c.layers[1].rank[FACTOR_V] = 17; /* its matrix is 16 x 64 */
    assert_int_equal(model_config_check(&c, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "layer 1: attn.v.weight has rank 17 and is 16x64"));
    c = factored_config(&a);
    c.ffn_kind = FFN_PLAIN;
    assert_int_equal(model_config_check(&c, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "layer 1: \"gate_rank\" of a matrix that it does not have"));
    arena_release(&a);
}

/* A stream of m's tensors without the one at `without`, under the configuration c, must be refused. */
static void assert_stream_refused(const struct model_config *c, const struct model *m, size_t without,
                                  const char *says) {
    struct err e;
    struct stream_writer *w;
    struct model *loaded;
    struct buf scratch = {0};
    int fd = memory_file();
    OK(stream_writer_open(&w, fd, "model", NULL, &e));
    OK(model_head_write(w, c, NULL, 0, NULL, &e));
    for (size_t i = 0; i < m->n_params; i++)
        if (i != without) OK(model_save_param(&m->params[i], w, 0, &scratch, &e));
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    struct buf bytes = contents(fd);
    assert_int_equal(load_model(&bytes, &loaded, &e), ERR_DATA);
    if (!strstr(e.msg, says)) fail_msg("'%s' does not say '%s'", e.msg, says);
    buf_release(&bytes);
    buf_release(&scratch);
}

static void streams_whose_ranks_lie_are_refused(void **state) {
    (void)state;
    struct arena a = {0};
    struct model_config c = factored_config(&a), whole = sample_config(&a), other = factored_config(&a);
    struct model *m = sample_model(&c, 1);
    long out = model_slot_index(&c, (struct model_slot){ROLE_K_OUT, 0, 0});
    long first = model_slot_index(&c, (struct model_slot){ROLE_UP, 0, 0});
    assert_true(out > 0 && first > 0);
    assert_stream_refused(&c, m, (size_t)out, "layers.0.attn.k.out.weight");
    assert_stream_refused(&c, m, (size_t)first, "layers.0.ffn.up.weight");
    assert_stream_refused(&whole, m, m->n_params, "layers.0.attn.k.weight");
    other.layers[0].rank[FACTOR_UP] = 14;
    assert_stream_refused(&other, m, m->n_params, "layers.0.ffn.up.weight");
    other.layers[0].rank[FACTOR_UP] = 0;
    assert_stream_refused(&other, m, m->n_params, "layers.0.ffn.up.weight");
    model_free(m);
    arena_release(&a);
}

/* META's ranks: numbers no larger than the matrix, for each layer. */
static void configurations_are_checked(void **state) {
    (void)state;
    static const struct config_change cases[] = {
        {"[0,5]", "[0,-5]", "q_rank"},
        {"[0,5]", "[0,2.5]", "q_rank"},
        {"[0,5]", "[5]", "q_rank"},
        {"[0,5]", "[0,33]", "layer 1: attn.q.weight has rank 33 and is 32x64"},
        {"[0,5]", "65", "layer 0: attn.q.weight has rank 65 and is 64x64"},
        {"[0,5]", "1e30", "q_rank"},
    };
    struct err e;
    struct arena a = {0};
    struct model_config c = factored_config(&a);
    cJSON *o = model_config_to_json(&c, &e);
    char *text = cJSON_PrintUnformatted(o);
    assert_non_null(strstr(text, "\"q_rank\":[0,5]"));
    assert_configs_refused(text, cases, COUNT_OF(cases));
    cJSON_free(text);
    cJSON_Delete(o);
    arena_release(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_product_is_what_is_computed),
        cmocka_unit_test(gradients_are_those_of_the_product),
        cmocka_unit_test(slots_and_streams),
        cmocka_unit_test(ranks_that_cannot_be_are_refused),
        cmocka_unit_test(streams_whose_ranks_lie_are_refused),
        cmocka_unit_test(configurations_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
