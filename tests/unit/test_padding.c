/*
 * Tests of models whose embedding and head have more rows than the vocabulary has tokens. The extra rows are large
 * here, so that any contribution to a softmax would show; every result must be that of the same model without them.
 */
#include "tests/unit/metrics_samples.h"

#include "lib/distill/distill.h"

/* Row counts of two models with one tokenizer, as in Qwen2.5 7B and 0.5B; only the second is a multiple of the panel
 * width (32). */
static const uint32_t paddings[] = {BYTE_VOCAB + 2, 352};

/* ---- the same model with and without padding --------------------------------------------------------------------- */

static struct model *even_model(bool tied) {
    struct err e;
    struct arena a = {0};
    struct model *bytes = byte_model(64, 1, true, false), *m;
    struct model_config c;
    OK(model_config_copy(&c, &bytes->config, &a, &e));
    c.tied = tied;
    OK(model_init(&m, kernel_cpu(), &c, bytes->vocab_bytes.data, bytes->vocab_bytes.len, 5, &e));
    for (size_t i = 0; i < m->n_params; i++)
        if (model_role_is_matrix(m->params[i].slot.role))
            for (uint64_t k = 0; k < m->params[i].n; k++) model_host_value(&m->params[i])[k] *= 6;
    model_free(bytes);
    arena_release(&a);
    return m;
}

static struct model *padded_model(const struct model *even, uint32_t rows) {
    struct err e;
    struct arena a = {0};
    struct model_config c;
    struct vocab *v, spec = *even->vocab;
    struct buf packed = {0};
    struct model *m;
    spec.tokens = arena_array(&a, rows, sizeof *spec.tokens, &e);
    spec.n_tokens = rows;
    for (uint32_t i = 0; i < rows; i++)
        spec.tokens[i] = i < BYTE_VOCAB ? even->vocab->tokens[i] : (struct token){.flags = TOKEN_UNUSED};
    OK(vocab_new(&v, &spec, &e));
    OK(vocab_pack(v, &packed, &e));
    OK(model_config_copy(&c, &even->config, &a, &e));
    c.vocab_size = rows;
    OK(model_init(&m, kernel_cpu(), &c, packed.data, packed.len, 99, &e));
    for (size_t i = 0; i < m->n_params; i++) {
        memcpy(model_host_value(&m->params[i]), model_host_value(&even->params[i]), even->params[i].n * sizeof(float));
        for (uint64_t k = even->params[i].n; k < m->params[i].n; k++) model_host_value(&m->params[i])[k] *= 200;
    }
    assert_int_equal(model_n_tokens(m), BYTE_VOCAB);
    assert_true(digest_equal(m->vocab_digest, even->vocab_digest));
    vocab_free(v);
    buf_release(&packed);
    arena_release(&a);
    return m;
}

static const bool both[] = {false, true};

/* ---- logits ------------------------------------------------------------------------------------------------------ */

static void check_logits(struct model *even, struct model *padded, const char *what) {
    uint32_t tokens[40], lengths[] = {25, 15};
    sample_tokens(tokens, 40, BYTE_VOCAB, 3);
    struct model_input in = {40, 2, tokens, lengths};
    float *want = logits_of(even, &in), *got = logits_of(padded, &in);
    for (size_t i = 0; i < (size_t)40 * BYTE_VOCAB; i++)
        if (!(fabsf(got[i] - want[i]) <= 1e-5f * fmaxf(1, fabsf(want[i]))))
            fail_msg("%s, %u rows: logit %zu is %g, expected %g", what, padded->config.vocab_size, i, got[i], want[i]);
    mem_free(want);
    mem_free(got);
}

static void logits_are_of_tokens(void **state) {
    (void)state;
    static const struct {
        const char *name;
        unsigned dtype;
        enum model_weight_format format;
    } ways[] = {{"f32", DT_F32, WEIGHTS_F32},
                {"bf16", DT_BF16, WEIGHTS_PACKED},
                {"q8_0", DT_Q8_0, WEIGHTS_PACKED},
                {"int8", DT_Q8_0, WEIGHTS_INT8}};
    for (size_t t = 0; t < 2; t++) {
        struct model *even = even_model(both[t]);
        for (size_t p = 0; p < COUNT_OF(paddings); p++) {
            struct model *padded = padded_model(even, paddings[p]);
            for (size_t w = 0; w < COUNT_OF(ways); w++) {
                struct model *a = packed_model(even, ways[w].dtype, ways[w].format);
                struct model *b = packed_model(padded, ways[w].dtype, ways[w].format);
                check_logits(a, b, ways[w].name);
                model_free(a);
                model_free(b);
            }
            model_free(padded);
        }
        model_free(even);
    }
}

/* Padding rows must not be read: an id of padding is not a token of the vocabulary. */
static void padding_is_no_input(void **state) {
    (void)state;
    struct err e;
    struct model *even = even_model(true), *m = padded_model(even, 352);
    struct grad_tape *t;
    uint32_t tokens[] = {5, BYTE_VOCAB}, length = 2;
    struct model_input in = {2, 1, tokens, &length};
    OK(grad_tape_new(&t, kernel_cpu(), false, DT_F32, &e));
    assert_int_equal(model_infer(m, t, &in, NULL, NULL, NULL, NULL, &e), ERR_DATA);
    assert_string_equal(e.msg, "token 258 at position 1 of sequence 0 is outside the vocabulary of 258");
    grad_tape_free(t);
    model_free(m);
    model_free(even);
}

/* ---- generation -------------------------------------------------------------------------------------------------- */

struct made {
    uint32_t ids[64];
    size_t n;
};

static int keep(void *ctx, uint64_t seq, const uint32_t *prompt, size_t n_prompt, const uint32_t *ids, size_t n,
                struct err *e) {
    struct made *to = ctx;
    (void)seq, (void)prompt, (void)n_prompt, (void)e;
    memcpy(to->ids, ids, n * sizeof *ids);
    to->n = n;
    return 0;
}

static void padding_is_never_sampled(void **state) {
    (void)state;
    static const struct model_sampling ways[] = {{.temperature = 0, .top_p = 1},
                                                 {.temperature = 5, .top_p = 1},
                                                 {.temperature = 5, .top_p = 0.99},
                                                 {.temperature = 5, .top_p = 1, .top_k = 300}};
    struct err e;
    struct model *even = even_model(true), *padded = padded_model(even, 352);
    uint32_t prompt[] = {1, 2}, length = 2;
    struct model_input in = {2, 1, prompt, &length};
    for (size_t i = 0; i < COUNT_OF(ways); i++) {
        struct model_sampling how = ways[i];
        struct made want = {0}, got = {0};
        how.max_new = 60;
        OK(generate_all(even, &in, 0, &how, keep, &want, &e));
        OK(generate_all(padded, &in, 0, &how, keep, &got, &e));
        assert_int_equal(got.n, 60);
        for (size_t k = 0; k < got.n; k++) assert_true(got.ids[k] < BYTE_VOCAB);
        assert_memory_equal(want.ids, got.ids, sizeof want.ids);
    }
    model_free(even);
    model_free(padded);
}

/* ---- evaluation -------------------------------------------------------------------------------------------------- */

static double divergence_of(struct model *m, int fd, const char *key) {
    struct err e;
    struct stream_reader *r;
    struct knowledge_format f;
    struct divergence *d;
    struct batch b = {0};
    bool more = true;
    lseek(fd, 0, SEEK_SET);
    OK(stream_reader_open(&r, fd, "in", STREAM_ANY, &e));
    OK(knowledge_meta_get(stream_reader_meta(r), &f, &e));
    OK(model_check_vocab(m, stream_reader_meta(r), "in", &e));
    OK(divergence_new(&d, m, &f, &e));
    while (true) {
        OK(knowledge_read(r, &f, &b, &more, &e));
        if (!more) break;
        OK(divergence_feed(d, &b, &e));
    }
    OK(divergence_finish(d, &e));
    cJSON *o = divergence_json(d, &e);
    double x = result_number(o, key);
    cJSON_Delete(o);
    batch_release(&b);
    divergence_free(d);
    stream_reader_free(r);
    return x;
}

/* With knowledge over as many columns as there are tokens, and with dense knowledge of all rows, as a teacher
 * without a vocabulary gives it. */
static void judged_as_without_padding(void **state) {
    (void)state;
    static const char *const encodings[] = {"dense", "ghost:12", "topk:12", "sample:50"};
    struct err e;
    struct model *even = even_model(true), *padded = padded_model(even, 352);
    struct sample s = sample_new(5, 40, BYTE_VOCAB, 3), wide = sample_new(5, 40, 384, 3);
    for (size_t i = 0; i < s.n_positions; i++) {
        wide.tokens[i] = s.tokens[i];
        memcpy(wide.logits + i * 384, s.logits + i * BYTE_VOCAB, BYTE_VOCAB * sizeof(float));
        for (size_t k = BYTE_VOCAB; k < 384; k++) wide.logits[i * 384 + k] += 20;
    }
    for (size_t i = 0; i < COUNT_OF(encodings); i++) {
        struct knowledge_format f = format_of(encodings[i], BYTE_VOCAB);
        const char *key = f.encoding == KNOW_DENSE    ? "kld"
                          : f.encoding == KNOW_SAMPLE ? "cross_entropy"
                                                      : "kld_lower_bound";
        int fd, wide_fd;
        digest_text(even->vocab_digest, f.vocab);
        OK(encode_sample(&s, &f, 1, 50, 20, &fd, &e));
        double want = divergence_of(even, fd, key), perplexity = divergence_of(even, fd, "perplexity");
        assert_near(divergence_of(padded, fd, key), want, 1e-6, encodings[i]);
        assert_near(divergence_of(padded, fd, "perplexity"), perplexity, 1e-6, encodings[i]);
        close(fd);
        f.vocab_size = 384;
        OK(encode_sample(&wide, &f, 1, 50, 20, &wide_fd, &e));
        if (f.encoding == KNOW_DENSE) {
            assert_near(divergence_of(padded, wide_fd, key), want, 1e-6, "wide");
            assert_near(divergence_of(even, wide_fd, key), want, 1e-6, "wide");
        } else {
            struct divergence *d;
            assert_int_equal(divergence_new(&d, padded, &f, &e), ERR_DATA);
        }
        close(wide_fd);
    }
    sample_free(&s);
    sample_free(&wide);
    model_free(even);
    model_free(padded);
}

/* ---- training ---------------------------------------------------------------------------------------------------- */

static void train(struct model *m, const struct sample *s, const struct knowledge_format *f, enum dtype precision,
                  struct distill_progress *p) {
    struct err e;
    struct trainer *t;
    struct stream_reader *r;
    struct knowledge_format read;
    struct distill_options o = {
        .plan.now = {.lr = 1e-2, .steps = 6},
        .batch_tokens = 20,
        .micro_tokens = 1000,
        .train = {.weight_decay = 0.1, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-2, .state = DT_F32},
        .clip = 1,
        .precision = precision};
    bool more = true, stepped;
    int fd;
    OK(loss_list_add(&o.losses, "kl", &e));
    OK(loss_list_add(&o.losses, "ce:weight=0.5", &e));
    OK(encode_sample(s, f, 1, 50, 20, &fd, &e));
    OK(stream_reader_open(&r, fd, "in", STREAM_ANY, &e));
    OK(knowledge_meta_get(stream_reader_meta(r), &read, &e));
    OK(trainer_new(&t, m, &o, &read, &e));
    struct knowledge_stream data = {.r = r, .meta = &read, .format = trainer_format(t)};
    struct knowledge_source source = knowledge_stream_source(&data);
    do {
        OK(trainer_feed(t, &source, &more, &e));
        do OK(trainer_step(t, !more, &stepped, &e));
        while (stepped);
        trainer_progress(t, p);
    } while (more);
    knowledge_stream_release(&data);
    trainer_free(t);
    stream_reader_free(r);
    close(fd);
}

/* Weights, loss and gradient agree to the last bits. Padding rows learn nothing: tied ones keep their bits, untied
 * ones change only by weight decay. */
static void trained_as_without_padding(void **state) {
    (void)state;
    for (size_t i = 0; i < 2 * 2 * 2; i++) {
        bool tied = i & 1;
        struct model *even = even_model(tied), *padded = padded_model(even, 352), *before = padded_model(even, 352);
        struct sample s = sample_new(6, 30, BYTE_VOCAB, 3);
        struct knowledge_format f = format_of(i & 2 ? "dense" : "sample:20", BYTE_VOCAB);
        enum dtype precision = i & 4 ? DT_BF16 : DT_F32;
        struct distill_progress want, got;
        digest_text(even->vocab_digest, f.vocab);
        train(even, &s, &f, precision, &want);
        train(padded, &s, &f, precision, &got);
        assert_true(want.step > 2 && want.step == got.step);
        assert_near(got.loss, want.loss, 1e-5, "loss");
        assert_near(got.grad_norm, want.grad_norm, 1e-5, "norm of the gradient");
        for (size_t p = 0; p < even->n_params; p++) {
            const struct model_param *a = &even->params[p], *b = &padded->params[p], *c = &before->params[p];
            for (uint64_t k = 0; k < a->n; k++)
                if (fabsf(model_host_value(a)[k] - model_host_value(b)[k]) > 1e-5f)
                    fail_msg("case %zu, %s: element %zu is %g, expected %g", i, b->desc.name, (size_t)k,
                             (double)model_host_value(b)[k], (double)model_host_value(a)[k]);
            for (uint64_t k = a->n; k < b->n; k++) {
                bool decays = b->slot.role == ROLE_HEAD;
                float most = decays ? 0.01f * fabsf(model_host_value(c)[k]) : 0;
                assert_true(fabsf(model_host_value(b)[k] - model_host_value(c)[k]) <= most);
            }
        }
        sample_free(&s);
        model_free(even);
        model_free(padded);
        model_free(before);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_are_of_tokens),       cmocka_unit_test(padding_is_no_input),
        cmocka_unit_test(padding_is_never_sampled),   cmocka_unit_test(judged_as_without_padding),
        cmocka_unit_test(trained_as_without_padding),
    };
    parallel_set_threads(1); /* the matrices are small: threads would only wait for each other */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
