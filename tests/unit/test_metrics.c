/*
 * Tests of summaries against published values, and of perplexity against each protocol written down once more for a
 * whole text: windows as lists of tokens, one model call each, log-probabilities in f64.
 */
#include "tests/unit/metrics_samples.h"

/* f32 logits of a window alone differ in the last bits from those of the same window in a batch. */
#define TOLERANCE 2e-5

/* ---- summaries --------------------------------------------------------------------------------------------------- */

static void quantiles_are_numpys(void **state) {
    (void)state;
    /* numpy.quantile([1, 2, 4, 8, 16], [0, .1, .25, .5, .9, .99, 1]) */
    const double x[] = {1, 2, 4, 8, 16}, q[] = {0, 0.1, 0.25, 0.5, 0.9, 0.99, 1},
                 want[] = {1, 1.4, 2, 4, 12.8, 15.68, 16};
    for (size_t i = 0; i < COUNT_OF(q); i++) assert_near(metrics_quantile(x, 5, q[i]), want[i], 1e-14, "quantile");
    assert_near(metrics_quantile(x, 4, 0.5), 3, 1e-14, "median of four");
    assert_near(metrics_quantile(x, 1, 0.3), 1, 0, "quantile of one");
    assert_true(isnan(metrics_quantile(x, 0, 0.5)));
}

static void wilson_is_the_published_interval(void **state) {
    (void)state;
    double low, high;
    /* Newcombe 1998, table I, method 3: 81/263, 15/148, 0/20, 1/29 */
    static const struct {
        uint64_t k, n;
        double low, high;
    } cases[] = {{81, 263, 0.2553, 0.3662}, {15, 148, 0.0624, 0.1605}, {0, 20, 0, 0.1611}, {1, 29, 0.0061, 0.1718}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        metrics_wilson(cases[i].k, cases[i].n, &low, &high);
        assert_near(low, cases[i].low, 5e-5, "low");
        assert_near(high, cases[i].high, 5e-5, "high");
        metrics_wilson(cases[i].n - cases[i].k, cases[i].n, &low, &high); /* the complement */
        assert_near(high, 1 - cases[i].low, 5e-5, "high of the mirror");
    }
    metrics_wilson(20, 20, &low, &high);
    assert_true(high == 1);
    metrics_wilson(0, 0, &low, &high);
    assert_true(low == 0 && high == 1);
}

static void moments_keep_their_digits(void **state) {
    (void)state;
    struct moments s = {0};
    for (int i = 1; i <= 5; i++) moments_add(&s, 1e9 + i);
    assert_near(s.mean, 1e9 + 3, 1e-15, "mean");
    assert_near(moments_stderr(&s), sqrt(2.0 / 4), 1e-12, "error"); /* population variance 2, n - 1 = 4 */
    assert_true(moments_stderr(&(struct moments){.n = 1}) == 0);
}

/* ---- the protocols, written down once more ----------------------------------------------------------------------- */

struct text {
    uint32_t *tokens;
    size_t n, n_seqs;
    uint32_t *lengths;
};

static struct text text_new(size_t n_seqs, uint32_t longest, uint64_t seed) {
    struct err e;
    struct rng r = rng_init(seed, 5);
    struct text t = {.n_seqs = n_seqs, .lengths = mem_array(n_seqs, sizeof(uint32_t), &e)};
    for (size_t i = 0; i < n_seqs; i++) t.n += t.lengths[i] = 1 + (uint32_t)rng_below(&r, longest);
    t.tokens = mem_array(t.n, sizeof(uint32_t), &e);
    for (size_t i = 0; i < t.n; i++) t.tokens[i] = rng_below(&r, 4) ? 'a' + (uint32_t)rng_below(&r, 26) : ' ';
    return t;
}

static void text_free(struct text *t) {
    mem_free(t->tokens);
    mem_free(t->lengths);
}

struct expected {
    uint64_t windows, scored;
    double sum, sum_sq;
};

/* Scores the last `targets` tokens of inputs[0 .. n). */
static void expect(struct expected *x, struct model *m, const uint32_t *inputs, size_t n, size_t targets) {
    double nll[256];
    assert_true(n <= COUNT_OF(nll) && targets < n);
    run_nll(m, inputs, n, nll);
    for (size_t i = n - targets; i < n; i++) {
        x->sum += nll[i];
        x->sum_sq += nll[i] * nll[i];
        x->scored++;
    }
    x->windows++;
}

static void expect_disjoint(struct expected *x, struct model *m, const struct text *t, size_t context, bool llama) {
    uint32_t w[256];
    for (size_t i = 0; i < t->n / context; i++) {
        memcpy(w, t->tokens + i * context, context * sizeof *w);
        if (llama && m->vocab->add_bos) w[0] = BOS;
        expect(x, m, w, context, llama ? context - 1 - context / 2 : context - 1);
    }
}

/* The loop of the example in huggingface.co/docs/transformers/perplexity. */
static void expect_sliding(struct expected *x, struct model *m, const struct text *t, size_t max_length,
                           size_t stride) {
    size_t prev_end = 0;
    for (size_t begin = 0; begin < t->n; begin += stride) {
        size_t end = begin + max_length < t->n ? begin + max_length : t->n, targets = end - prev_end;
        if (end - begin >= 2)
            expect(x, m, t->tokens + begin, end - begin, targets < end - begin ? targets : targets - 1);
        prev_end = end;
        if (end == t->n) break;
    }
}

static void expect_sequences(struct expected *x, struct model *m, const struct text *t) {
    const uint32_t *at = t->tokens;
    for (size_t i = 0; i < t->n_seqs; at += t->lengths[i++])
        if (t->lengths[i] >= 2) expect(x, m, at, t->lengths[i], t->lengths[i] - 1);
}

/* lm-evaluation-harness, get_rolling_token_windows with context_len 1 and make_disjoint_window, line by line. */
static void expect_document(struct expected *x, struct model *m, const uint32_t *list, size_t n, size_t max_seq_len) {
    uint32_t w[256] = {BOS};
    size_t predicted = n < max_seq_len ? n : max_seq_len;
    memcpy(w + 1, list, predicted * sizeof *w);
    expect(x, m, w, predicted + 1, predicted);
    while (predicted < n) {
        size_t pred_len = n - predicted < max_seq_len ? n - predicted : max_seq_len, end = predicted + pred_len;
        expect(x, m, list + end - max_seq_len - 1, max_seq_len + 1, pred_len);
        predicted += pred_len;
    }
}

static struct expected expected_of(struct model *m, const struct text *t, const struct perplexity_options *o) {
    struct expected x = {0};
    const uint32_t *at = t->tokens;
    switch (o->protocol) {
    case PPL_GPTQ: expect_disjoint(&x, m, t, o->context, false); break;
    case PPL_LLAMA: expect_disjoint(&x, m, t, o->context, true); break;
    case PPL_SLIDING: expect_sliding(&x, m, t, o->context, o->stride); break;
    case PPL_SEQUENCES: expect_sequences(&x, m, t); break;
    case PPL_DOCUMENTS:
        for (size_t i = 0; i < t->n_seqs; at += t->lengths[i++]) expect_document(&x, m, at, t->lengths[i], o->context);
        break;
    }
    return x;
}

/* ---- input ------------------------------------------------------------------------------------------------------- */

/* The text as a token stream in batches of at most `cut` positions, which may split sequences. */
static int token_file(const struct text *t, size_t cut) {
    struct err e;
    struct sample s = {.n_seqs = t->n_seqs, .n_positions = t->n, .lengths = t->lengths, .tokens = t->tokens};
    struct stream_writer *w;
    uint32_t *lengths = mem_array(t->n_seqs, sizeof *lengths, &e);
    int fd = memory_file();
    OK(stream_writer_open(&w, fd, "tokens", NULL, &e));
    put_meta(w, "{\"kind\":\"tokens\"}");
    for (size_t at = 0; at < t->n; at += cut) {
        struct stream_batch b = cut_batch(&s, at, piece_of(t->n - at, cut), lengths);
        put_batch(w, b, t->tokens + at, lengths);
    }
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    mem_free(lengths);
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    return fd;
}

static int feed_all(struct perplexity *p, int fd, struct err *why) {
    struct err e;
    struct stream_reader *r;
    struct batch b = {0};
    bool more = true;
    OK(stream_reader_open(&r, fd, "tokens", STREAM_TOKENS, &e));
    int rc = 0;
    while (!rc && !perplexity_full(p)) {
        OK(batch_read(r, &b, &more, &e));
        if (!more) break;
        rc = perplexity_feed(p, &b, why);
    }
    if (!rc) rc = perplexity_finish(p, why);
    batch_release(&b);
    stream_reader_free(r);
    close(fd);
    return rc;
}

/* Returns the result, or NULL with *e set. */
static cJSON *measure(struct model *m, const struct text *t, const struct perplexity_options *o, size_t cut,
                      struct err *why) {
    struct err e;
    struct perplexity *p;
    OK(perplexity_new(&p, m, o, &e));
    cJSON *result = feed_all(p, token_file(t, cut), why) ? NULL : perplexity_json(p, why);
    perplexity_free(p);
    return result;
}

static cJSON *measured(struct model *m, const struct text *t, const struct perplexity_options *o, size_t cut) {
    struct err e;
    cJSON *result = measure(m, t, o, cut, &e);
    if (!result) fail_msg("%s", e.msg);
    return result;
}

/* ---- tests ------------------------------------------------------------------------------------------------------- */

static void compare(struct model *m, const struct text *t, const struct perplexity_options *o) {
    static const size_t cuts[] = {1000, 1, 3, 17};
    struct expected x = expected_of(m, t, o);
    struct err e;
    if (!x.scored) {
        cJSON *none = measure(m, t, o, 5, &e);
        assert_null(none);
        assert_int_equal(e.code, ERR_DATA);
        return;
    }
    double n = (double)x.scored, mean = x.sum / n, value = 0;
    for (size_t i = 0; i < COUNT_OF(cuts); i++) {
        cJSON *r = measured(m, t, o, cuts[i]);
        assert_true(result_number(r, "windows") == (double)x.windows);
        assert_true(result_number(r, "scored") == n);
        assert_near(result_number(r, "nll"), mean, TOLERANCE, "nll");
        assert_near(log(result_number(r, "perplexity")), mean, TOLERANCE, "ln perplexity");
        if (x.scored > 1)
            assert_near(result_number(r, "nll_stderr"), sqrt(fmax(0, x.sum_sq / n - mean * mean) / (n - 1)), 1e-4,
                        "error");
        if (i && result_number(r, "nll") != value) fail_msg("the result depends on where batches are cut");
        value = result_number(r, "nll");
        cJSON_Delete(r);
    }
}

static void every_protocol_scores_its_windows(void **state) {
    (void)state;
    struct model *plain = byte_model(40, 1, true, false), *bos = byte_model(40, 2, true, true);
    static const uint32_t contexts[][2] = {{3, 1}, {3, 2}, {8, 3}, {9, 8}, {16, 5}, {40, 20}}; /* and strides */
    static const uint32_t shapes[][2] = {{1, 1}, {2, 3}, {9, 20}, {3, 40}};                    /* sequences, longest */
    for (size_t i = 0; i < COUNT_OF(contexts); i++)
        for (size_t k = 0; k < COUNT_OF(shapes); k++) {
            struct text t = text_new(shapes[k][0], shapes[k][1], i * 10 + k);
            for (enum perplexity_protocol p = PPL_GPTQ; p <= PPL_DOCUMENTS; p++) {
                struct perplexity_options o = {p, contexts[i][0], contexts[i][1], 0, i * 25};
                if (p == PPL_SEQUENCES) o.context = 40;
                compare(p == PPL_LLAMA ? bos : plain, &t, &o);
            }
            text_free(&t);
        }
    model_free(plain);
    model_free(bos);
}

/* Texts of exactly one window's length and its neighbours, where off-by-one errors show. */
static void edges_of_a_window(void **state) {
    (void)state;
    struct model *m = byte_model(16, 3, true, false);
    for (uint32_t n = 1; n <= 34; n++) {
        struct text t = text_new(1, 1, n);
        struct err e;
        mem_free(t.tokens);
        t.tokens = mem_array(n, sizeof(uint32_t), &e);
        sample_tokens(t.tokens, n, 256, n);
        t.n = t.lengths[0] = n;
        for (enum perplexity_protocol p = PPL_GPTQ; p <= PPL_DOCUMENTS; p++)
            if (p != PPL_SEQUENCES) compare(m, &t, &(struct perplexity_options){p, 8, 3, 0, 64});
        text_free(&t);
    }
    model_free(m);
}

static void max_windows_is_exact(void **state) {
    (void)state;
    struct model *m = byte_model(16, 4, true, false);
    struct text t = text_new(5, 60, 9);
    for (enum perplexity_protocol p = PPL_GPTQ; p <= PPL_DOCUMENTS; p++)
        for (uint64_t most = 1; most < 4 && p != PPL_SEQUENCES; most++) {
            struct perplexity_options o = {p, 8, 3, most, 16};
            cJSON *one = measured(m, &t, &o, 1), *all = measured(m, &t, &o, 1000);
            assert_true(result_number(one, "windows") == (double)most);
            assert_true(cJSON_Compare(one, all, true));
            cJSON_Delete(one);
            cJSON_Delete(all);
        }
    text_free(&t);
    model_free(m);
}

/* Words and bytes are counted over the scored text: without special tokens, with every kind of white space, and with
 * words that span tokens. */
static void documents_count_words_and_bytes(void **state) {
    (void)state;
    static const struct {
        const char *text;
        double words; /* len(re.split(r"\s+", text)) */
    } cases[] = {{"one two  three", 3},
                 {" lead", 2},
                 {"trail\n", 2},
                 {"a\xc2\xa0"
                  "b \xe3\x80\x80\xe2\x80\x83 c",
                  3},
                 {"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80", 3},
                 {"x\x1cy\x85z \xff\xe2\x80 q", 4},
                 {"word", 1}};
    struct err e;
    struct model *m = byte_model(16, 5, true, false);
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        for (int bos = 0; bos < 2; bos++) {
            size_t n = strlen(cases[i].text);
            struct text t = {mem_array(n + 1, sizeof(uint32_t), &e), n + (size_t)bos, 1,
                             mem_array(1, sizeof(uint32_t), &e)};
            t.lengths[0] = (uint32_t)t.n;
            if (bos) t.tokens[0] = BOS; /* has BOS already: no second one is added, and it is not text */
            for (size_t k = 0; k < n; k++) t.tokens[k + (size_t)bos] = (unsigned char)cases[i].text[k];
            cJSON *r = measured(m, &t, &(struct perplexity_options){PPL_DOCUMENTS, 5, 0, 0, 64}, 4);
            double sum = result_number(r, "nll") * (double)n;
            assert_true(result_number(r, "scored") == (double)n);
            assert_true(result_number(r, "documents") == 1);
            assert_near(result_number(r, "words"), cases[i].words, 0, cases[i].text);
            assert_near(result_number(r, "bits_per_byte"), sum / (double)n / log(2), 1e-12, "bits per byte");
            assert_near(log(result_number(r, "word_perplexity")), sum / cases[i].words, 1e-12, "word perplexity");
            assert_near(log(result_number(r, "byte_perplexity")), sum / (double)n, 1e-12, "byte perplexity");
            cJSON_Delete(r);
            text_free(&t);
        }
    model_free(m);
}

/* 4000 letters without a space are one word; e^(its nll) overflows. */
static void what_is_beyond_all_numbers_is_null(void **state) {
    (void)state;
    struct err e;
    struct model *m = byte_model(16, 5, true, false);
    struct text t = {mem_array(4000, sizeof(uint32_t), &e), 4000, 1, mem_array(1, sizeof(uint32_t), &e)};
    t.lengths[0] = 4000;
    for (size_t i = 0; i < t.n; i++) t.tokens[i] = 'a' + (uint32_t)(i * i % 26);
    cJSON *r = measured(m, &t, &(struct perplexity_options){PPL_DOCUMENTS, 16, 0, 0, 512}, 1000);
    assert_true(result_number(r, "words") == 1);
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(r, "word_perplexity")));
    char *text = json_text(r, &e);
    assert_non_null(text);
    mem_free(text);
    cJSON_Delete(r);
    text_free(&t);
    model_free(m);
}

static void refuses(int code, const char *says, struct model *m, struct perplexity_options o) {
    struct err e;
    struct perplexity *p = NULL;
    assert_int_equal(perplexity_new(&p, m, &o, &e), code);
    if (!strstr(e.msg, says)) fail_msg("'%s' does not say '%s'", e.msg, says);
}

static void options_that_make_no_sense(void **state) {
    (void)state;
    struct err e;
    enum perplexity_protocol p;
    struct model *m = byte_model(16, 6, false, false);
    refuses(ERR_USAGE, "context is 16", m, (struct perplexity_options){.context = 17});
    refuses(ERR_USAGE, "nothing to score", m, (struct perplexity_options){.context = 1});
    refuses(ERR_USAGE, "nothing to score", m, (struct perplexity_options){PPL_LLAMA, .context = 2});
    refuses(ERR_USAGE, "stride 8", m, (struct perplexity_options){PPL_SLIDING, .context = 8, .stride = 8});
    refuses(ERR_USAGE, "stride 0", m, (struct perplexity_options){PPL_SLIDING, .context = 8});
    m->vocab->eos = TOKEN_NONE;
    refuses(ERR_DATA, "neither", m, (struct perplexity_options){PPL_DOCUMENTS, .context = 8});
    assert_int_equal(perplexity_protocol_parse("gtpq", &p, &e), ERR_USAGE);
    OK(perplexity_protocol_parse("llama", &p, &e));
    assert_int_equal(p, PPL_LLAMA);
    model_free(m);
}

static void fails_on(const char *says, struct model *m, const struct text *t, enum perplexity_protocol protocol) {
    struct err e = {0};
    struct perplexity *p;
    struct perplexity_options o = {protocol, 8, 4, 0, 64};
    OK(perplexity_new(&p, m, &o, &e));
    assert_int_equal(feed_all(p, token_file(t, 5), &e), ERR_DATA);
    if (!strstr(e.msg, says)) fail_msg("'%s' does not say '%s'", e.msg, says);
    perplexity_free(p);
}

static void data_that_cannot_be_scored(void **state) {
    (void)state;
    struct model *m = byte_model(16, 7, true, false);
    struct text t = text_new(1, 1, 1);
    struct err e;
    mem_free(t.tokens);
    t.tokens = mem_array(12, sizeof(uint32_t), &e);
    t.n = t.lengths[0] = 12;
    fails_on("longer than the context of 8", m, &t, PPL_SEQUENCES);
    t.tokens[7] = BYTE_VOCAB;
    fails_on("token 258 is outside", m, &t, PPL_GPTQ);
    t.tokens[7] = 0;
    t.n = t.lengths[0] = 7;
    fails_on("not enough", m, &t, PPL_GPTQ);
    t.n = t.lengths[0] = 12;
    model_host_value(model_param(m, ROLE_NORM, 0))[3] = NAN;
    fails_on("no finite probability", m, &t, PPL_GPTQ);
    text_free(&t);
    model_free(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quantiles_are_numpys),
        cmocka_unit_test(wilson_is_the_published_interval),
        cmocka_unit_test(moments_keep_their_digits),
        cmocka_unit_test(every_protocol_scores_its_windows),
        cmocka_unit_test(edges_of_a_window),
        cmocka_unit_test(max_windows_is_exact),
        cmocka_unit_test(documents_count_words_and_bytes),
        cmocka_unit_test(what_is_beyond_all_numbers_is_null),
        cmocka_unit_test(options_that_make_no_sense),
        cmocka_unit_test(data_that_cannot_be_scored),
    };
    parallel_set_threads(1); /* the matrices are small: threads would only wait for each other */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
