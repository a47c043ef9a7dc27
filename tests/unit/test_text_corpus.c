/*
 * Tests of lib/text: corpora. The output is compared with the plain definition (split, encode whole documents, join,
 * cut) for all combinations of options, windows far smaller than the documents, input in uneven pieces, and threads.
 */
#include "tests/unit/text_samples.h"

static struct vocab *vocab;

static int load(void **state) {
    (void)state;
    vocab = load_golden_with_ends();
    return 0;
}

static int unload(void **state) {
    (void)state;
    vocab_free(vocab);
    return 0;
}

/* ---- sequences, as a list of tokens and a list of lengths ---- */

struct sequences {
    struct buf tokens, lengths;
    bool open;
};

static void put(struct buf *b, uint32_t x) {
    struct err e = {0};
    assert_int_equal(buf_append(b, &x, sizeof x, &e), 0);
}

static uint32_t *last_length(struct sequences *s) {
    return (uint32_t *)(void *)(s->lengths.data + s->lengths.len) - 1;
}

static void release_sequences(struct sequences *s) {
    buf_release(&s->tokens);
    buf_release(&s->lengths);
}

static void assert_same_sequences(const struct sequences *a, const struct sequences *b) {
    assert_int_equal(a->lengths.len, b->lengths.len);
    assert_int_equal(a->tokens.len, b->tokens.len);
    if (a->lengths.len) assert_memory_equal(a->lengths.data, b->lengths.data, a->lengths.len);
    if (a->tokens.len) assert_memory_equal(a->tokens.data, b->tokens.data, a->tokens.len);
}

/* ---- the definition ---- */

static void define_token(struct sequences *s, const struct corpus_options *o, uint32_t id) {
    size_t n = s->tokens.len / 4;
    if (!s->open) {
        if (o->max_tokens && n + 1 + o->bos > o->max_tokens) return;
        put(&s->lengths, o->bos);
        if (o->bos) put(&s->tokens, vocab->bos);
        s->open = true;
    } else if (o->max_tokens && n >= o->max_tokens) {
        return;
    }
    put(&s->tokens, id);
    if (++*last_length(s) == o->context) s->open = false;
}

static void define_document(struct sequences *s, const struct corpus_options *o, const void *text, size_t n) {
    struct text_ids ids = must_encode(vocab, text, n, &o->encode);
    bool first = s->lengths.len == 0;
    if (ids.n && o->context && o->eos == EOS_BETWEEN && !first) define_token(s, o, vocab->eos);
    for (size_t i = 0; i < ids.n; i++) define_token(s, o, ids.ids[i]);
    if (ids.n && o->eos == EOS_AFTER) define_token(s, o, vocab->eos);
    if (!o->context) s->open = false;
    text_ids_release(&ids);
}

static struct sequences define(const struct corpus_options *o, const unsigned char *text, size_t n) {
    struct sequences s = {0};
    if (n >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0) text += 3, n -= 3;
    if (o->documents == CORPUS_WHOLE) define_document(&s, o, text, n);
    for (size_t at = 0; at < n && o->documents == CORPUS_LINES;) {
        const unsigned char *nl = memchr(text + at, '\n', n - at);
        size_t end = nl ? (size_t)(nl - text) : n;
        size_t length = nl && end > at && text[end - 1] == '\r' ? end - 1 - at : end - at;
        define_document(&s, o, text + at, length);
        at = end + 1;
    }
    if (o->context && o->drop_last && s.lengths.len && *last_length(&s) < o->context) {
        s.tokens.len -= 4 * *last_length(&s);
        s.lengths.len -= 4;
    }
    return s;
}

/* ---- the code under test: input in pieces of random size, batches joined again ---- */

struct rig {
    const struct corpus_options *o;
    const unsigned char *text;
    size_t n, at;
    struct rng pieces;
    struct sequences out;
    uint64_t next_seq, next_pos;
    bool goes_on;
    uint64_t fail_read, fail_write; /* the n-th call fails; 0: none */
};

static int read_piece(void *ctx, void *dst, size_t n, size_t *got, struct err *e) {
    struct rig *r = ctx;
    if (r->fail_read && --r->fail_read == 0) return err_set(e, ERR_IO, "read failed");
    size_t left = r->n - r->at, k = 1 + rng_below(&r->pieces, 100);
    if (k > n) k = n;
    if (k > left) k = left;
    memcpy(dst, r->text + r->at, k);
    r->at += k;
    *got = k;
    return 0;
}

static int take_batch(void *ctx, const struct corpus_batch *b, struct err *e) {
    struct rig *r = ctx;
    if (r->fail_write && --r->fail_write == 0) return err_set(e, ERR_IO, "write failed");
    assert_int_equal(b->first_seq, r->next_seq);
    assert_int_equal(b->first_pos, r->goes_on ? r->next_pos : 0);
    assert_true(b->n_seqs > 0);
    uint64_t sum = 0;
    for (uint32_t i = 0; i < b->n_seqs; i++) {
        assert_true(b->lengths[i] > 0);
        sum += b->lengths[i];
        if (i || !r->goes_on)
            put(&r->out.lengths, b->lengths[i]);
        else
            *last_length(&r->out) += b->lengths[i];
    }
    assert_int_equal(sum, b->n_positions);
    for (uint64_t i = 0; i < b->n_positions; i++) put(&r->out.tokens, b->tokens[i]);
    /* only a document longer than a batch is split, and then its batches hold nothing else */
    if (b->continues) assert_true(b->n_seqs == 1 && b->n_positions == r->o->batch_tokens && !r->o->context);
    if (!r->o->context) assert_true(b->n_positions <= r->o->batch_tokens);
    r->goes_on = b->continues;
    r->next_seq += b->n_seqs - b->continues;
    r->next_pos = *last_length(&r->out);
    return 0;
}

static void assert_as_defined(const struct corpus_options *o, const unsigned char *text, size_t n, uint64_t seed) {
    struct err e = {0};
    struct corpus_totals totals;
    struct rig r = {.o = o, .text = text, .n = n, .pieces = rng_init(seed, 1)};
    if (corpus_encode(vocab, o, read_piece, take_batch, &r, &totals, &e) != 0) fail_msg("%s", e.msg);
    struct sequences expected = define(o, text, n);
    assert_same_sequences(&r.out, &expected);
    assert_false(r.goes_on);
    assert_int_equal(totals.tokens, expected.tokens.len / 4);
    assert_int_equal(totals.sequences, expected.lengths.len / 4);
    uint64_t text_bytes = 0;
    const uint32_t *ids = (const uint32_t *)(const void *)expected.tokens.data;
    for (size_t i = 0; i < totals.tokens; i++) text_bytes += vocab_text_bytes(vocab, ids[i]);
    assert_int_equal(totals.text_bytes, text_bytes);
    if (!totals.stopped) assert_int_equal(totals.input_bytes, n);
    assert_true(o->max_tokens || !totals.stopped);
    release_sequences(&r.out);
    release_sequences(&expected);
}

static struct corpus_options random_options(struct rng *r) {
    return (struct corpus_options){
        .documents = (enum corpus_documents)rng_below(r, 2),
        .context = rng_below(r, 3) ? (uint32_t)(2 + rng_below(r, 40)) : 0,
        .drop_last = rng_below(r, 4) == 0,
        .bos = rng_below(r, 2),
        .eos = (enum corpus_eos)rng_below(r, 3),
        .max_tokens = rng_below(r, 3) ? 0 : 1 + rng_below(r, 300),
        .batch_tokens = (uint32_t)(1 + rng_below(r, 64)),
        .window = (uint32_t)(1 + rng_below(r, rng_below(r, 2) ? 64 : 4096)),
        .encode = {.plain_specials = rng_below(r, 4) == 0},
    };
}

static void test_as_defined(void **state) {
    (void)state;
    static unsigned char text[3000];
    struct rng r = rng_init(11, 0);
    int before = parallel_threads();
    for (int i = 0; i < 1000; i++) {
        struct corpus_options o = random_options(&r);
        size_t n = random_text(&r, text, 1 + rng_below(&r, i % 4 ? 200 : sizeof text));
        parallel_set_threads(i % 64 ? 1 : 3); /* idle threads spin, which is slow where cores are few */
        assert_as_defined(&o, text, n, (uint64_t)i);
    }
    parallel_set_threads(before);
}

static void test_ends(void **state) {
    (void)state;
    static const char *const texts[] = {"",
                                        "\n",
                                        "\n\n",
                                        "a",
                                        "a\n",
                                        "a\nb",
                                        "\na",
                                        "a\n\n\nb\n",
                                        "\r\n",
                                        "a\r\n\r\nb\r\n",
                                        "a\rb\r",
                                        "a\r\r\n",
                                        "\r\n\ra bc\r\n",
                                        "\xef\xbb\xbf",
                                        "\xef\xbb\xbf\r\n",
                                        "\xef\xbb\xbf"
                                        "a\nb\r\n\xef\xbb\xbf"
                                        "c",
                                        "\xef\xbb\xbf\xef\xbb\xbf"
                                        "a"};
    for (size_t i = 0; i < COUNT_OF(texts); i++)
        for (unsigned k = 0; k < 48; k++) {
            struct corpus_options o = {.documents = k % 2 ? CORPUS_LINES : CORPUS_WHOLE,
                                       .context = k / 2 % 2 ? 2 : 0,
                                       .bos = k / 4 % 2,
                                       .drop_last = k / 8 % 2,
                                       .eos = (enum corpus_eos)(k / 16),
                                       .batch_tokens = 4,
                                       .window = 1 + k % 3};
            assert_as_defined(&o, (const unsigned char *)texts[i], strlen(texts[i]), i);
        }
}

/* Many pieces at a time, and more lines than a window holds. */
static void test_many_lines(void **state) {
    (void)state;
    struct err e = {0};
    const size_t n = 300000;
    unsigned char *text = mem_alloc(n, &e);
    assert_non_null(text);
    struct rng r = rng_init(12, 0);
    for (size_t i = 0; i < n; i++) text[i] = rng_below(&r, 3) ? '\n' : 'a';
    struct corpus_options o = {.documents = CORPUS_LINES, .context = 100, .eos = EOS_BETWEEN, .batch_tokens = 1000};
    assert_as_defined(&o, text, n, 0);
    o.context = 0;
    assert_as_defined(&o, text, n, 0);
    mem_free(text);
}

/* ---- JSON lines ---- */

static int encode_jsonl(const char *text, uint64_t max_tokens, uint32_t window, struct rig *r, struct err *e) {
    static struct corpus_options o;
    o = (struct corpus_options){.documents = CORPUS_JSONL, .field = "text", .batch_tokens = 8};
    o.max_tokens = max_tokens;
    o.window = window;
    struct corpus_totals totals;
    *r = (struct rig){.o = &o, .text = (const unsigned char *)text, .n = strlen(text), .pieces = rng_init(1, 1)};
    return corpus_encode(vocab, &o, read_piece, take_batch, r, &totals, e);
}

static void test_jsonl(void **state) {
    (void)state;
    struct err e = {0};
    struct rig r;
    const char *const texts[] = {
        "{\"text\":\"a b\\nc\"}\n\n {\"id\":1,\"text\":\"\"}\n{\"text\":\"\\u00e9\"}",
        "{\"text\":\"a b\\nc\"}\r\n\r\n {\"id\":1,\"text\":\"\"}\r\n{\"text\":\"\\u00e9\"}\r\n",
        /* files with a byte order mark, concatenated */
        "\xef\xbb\xbf{\"text\":\"a b\\nc\"}\n\xef\xbb\xbf\r\n\xef\xbb\xbf{\"text\":\"\\u00e9\"}",
    };
    for (uint32_t window = 1; window < 64; window++) {
        const char *text = texts[window % 3];
        if (encode_jsonl(text, 0, window, &r, &e) != 0) fail_msg("%s", e.msg);
        struct sequences expected = {0};
        struct corpus_options o = {0};
        define_document(&expected, &o, "a b\nc", 5);
        define_document(&expected, &o, "\xc3\xa9", 2);
        assert_same_sequences(&r.out, &expected);
        release_sequences(&r.out);
        release_sequences(&expected);
    }
}

static void test_jsonl_errors(void **state) {
    (void)state;
    static const char *const bad[][2] = {
        {"{\"text\":\"a\"}\n\n{\"txt\":\"b\"}\n", "line 3: *\"text\"*"},
        {"{\"text\":\"a\"}\n{\"text\":1}\n", "line 2: *\"text\"*"},
        {"\n{\"text\":\"a\"", "line 2: json: *"},
        {"[]", "line 1: *"},
        {"{\"text\":\"a\"} {}", "line 1: json: *"},
    };
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        for (uint32_t window = 1; window < 40; window += 13) {
            struct err e = {0};
            struct rig r;
            assert_int_equal(encode_jsonl(bad[i][0], 0, window, &r, &e), ERR_DATA);
            const char *star = strchr(bad[i][1], '*');
            assert_memory_equal(e.msg, bad[i][1], (size_t)(star - bad[i][1]));
            if (i < 2) assert_non_null(strstr(e.msg, "text"));
            release_sequences(&r.out);
        }
    struct err e = {0};
    struct rig r;
    assert_int_equal(encode_jsonl("{\"text\":\"a\"}\nnonsense", 1, 4096, &r, &e), 0); /* enough before the error */
    release_sequences(&r.out);
}

/* ---- failures ---- */

static void test_refused(void **state) {
    (void)state;
    struct rig r = {0};
    struct corpus_totals t;
    struct err e = {0};
    struct corpus_options o = {.batch_tokens = 0};
    assert_int_equal(corpus_encode(vocab, &o, read_piece, take_batch, &r, &t, &e), ERR_USAGE);
    o = (struct corpus_options){.batch_tokens = 4, .context = CORPUS_MAX_BATCH + 1};
    assert_int_equal(corpus_encode(vocab, &o, read_piece, take_batch, &r, &t, &e), ERR_USAGE);
    o = (struct corpus_options){.batch_tokens = 4, .context = 1, .bos = true};
    assert_int_equal(corpus_encode(vocab, &o, read_piece, take_batch, &r, &t, &e), ERR_USAGE);
    assert_string_equal(e.msg, "a context of 1 token leaves no room after BOS");
}

/* Input that is not text is refused by name however it arrives; input that merely looks like it is text. */
static void test_no_text(void **state) {
    (void)state;
    static const struct {
        const char *bytes;
        size_t n;
        const char *says; /* NULL: it is text */
    } cases[] = {
        {"\x89RILL\r\n\x1a\1\0", 10, "this is a Rill stream, not text in UTF-8"},
        {"GGUF\3\0\0\0\1", 9, "a GGUF model"},
        {"GGUF is a format", 16, NULL},
        {"\x1f\x8b\x08\0", 4, "compressed by gzip, not text in UTF-8: decompress it with gzip -dc"},
        {"\x28\xb5\x2f\xfd\0", 5, "compressed by zstd"},
        {"\xff\xfe"
         "a\0b\0",
         6, "UTF-16"},
        {"\xfe\xff\0a", 4, "UTF-16"},
        {"\xff\xfe\0\0a\0\0\0", 8, "UTF-32"},
        {"\0\0\xfe\xff\0\0\0a", 8, "UTF-32"},
        {"PK\3\4", 4, "a zip archive"},
        {"\x40\0\0\0\0\0\0\0{\"a\":{", 13, "a safetensors file"},
        {"PKs", 3, NULL},
        {"\x89", 1, NULL},
        {"\xff\xff\xff", 3, NULL}, /* bytes that are not UTF-8 are kept */
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        for (enum corpus_documents documents = CORPUS_WHOLE; documents <= CORPUS_LINES; documents++) {
            struct corpus_options o = {.documents = documents, .batch_tokens = 8, .window = 1 + (uint32_t)i % 2 * 99};
            struct rig r = {
                .o = &o, .text = (const unsigned char *)cases[i].bytes, .n = cases[i].n, .pieces = rng_init(i, 1)};
            struct corpus_totals totals;
            struct err e = {0};
            int rc = corpus_encode(vocab, &o, read_piece, take_batch, &r, &totals, &e);
            release_sequences(&r.out);
            assert_int_equal(rc, cases[i].says ? ERR_DATA : 0);
            if (rc && !strstr(e.msg, cases[i].says)) fail_msg("said '%s', expected '%s'", e.msg, cases[i].says);
        }
}

/* ---- composed documents and their mask ---- */

/* The line itself is the text; text between < and > is marked as a label. "!" is refused. */
static int compose_line(void *ctx, const void *line, size_t n, struct buf *text, struct buf *spans, struct err *e) {
    const char *p = line;
    struct corpus_span span = {0};
    assert_int_equal(text->len + spans->len, 0);
    if (n && *p == '!') return err_set(e, ERR_DATA, "%s", (const char *)ctx);
    for (size_t i = 0; i < n; i++) {
        if (p[i] == '<') span.start = i + 1;
        span.end = i;
        if (p[i] == '>' && buf_append(spans, &span, sizeof span, e)) return e->code;
    }
    return buf_append(text, p, n, e);
}

struct masked {
    const char *text;
    size_t at;
    struct buf tokens, mask;
};
static int read_all(void *ctx, void *dst, size_t n, size_t *got, struct err *e) {
    struct masked *m = ctx;
    size_t left = strlen(m->text) - m->at;
    (void)e;
    *got = left < n ? left : n;
    memcpy(dst, m->text + m->at, *got);
    m->at += *got;
    return 0;
}
static int take_masked(void *ctx, const struct corpus_batch *b, struct err *e) {
    struct masked *m = ctx;
    assert_non_null(b->mask);
    int rc = buf_append(&m->tokens, b->tokens, b->n_positions * sizeof *b->tokens, e);
    return rc ? rc : buf_append(&m->mask, b->mask, b->n_positions, e);
}

/* The text of every masked token lies between < and > or overlaps that range; no other token's does. */
static void test_mask(void **state) {
    static const char text[] = "ask <answer one> then\n\nno answer\n< spaces in it > x<y><zz zz>\n<all of it>\n";
    static const char learnt[] = "answer one spaces in it yzz zzall of it";
    struct corpus_totals totals;
    (void)state;
    for (unsigned how = 0; how < 24; how++) {
        struct err e = {0};
        struct masked m = {.text = text};
        struct buf got = {0};
        struct corpus_options o = {.documents = CORPUS_CHAT,
                                   .compose = compose_line,
                                   .mask = true,
                                   .context = how % 2 ? 5 : 0,
                                   .bos = how / 2 % 2,
                                   .eos = (enum corpus_eos)(how / 4 % 3),
                                   .batch_tokens = how / 12 ? 3 : 1000};
        if (corpus_encode(vocab, &o, read_all, take_masked, &m, &totals, &e)) fail_msg("%s", e.msg);
        assert_int_equal(m.tokens.len, 4 * m.mask.len);
        const uint32_t *ids = (const void *)m.tokens.data;
        for (size_t i = 0; i < m.mask.len; i++)
            if (m.mask.data[i]) assert_int_equal(text_decode(vocab, ids + i, 1, false, &got, &e), 0);
        /* tokens may include a bracket: compare without brackets */
        size_t n = 0;
        for (size_t i = 0; i < got.len; i++)
            if (got.data[i] != '<' && got.data[i] != '>') got.data[n++] = got.data[i];
        assert_int_equal(n, sizeof learnt - 1);
        assert_memory_equal(got.data, learnt, n);
        buf_release(&got);
        buf_release(&m.tokens);
        buf_release(&m.mask);
    }
}

static void test_composing_fails(void **state) {
    struct err e = {0};
    struct masked m = {.text = "good\n\n!bad\n"};
    struct corpus_totals totals;
    struct corpus_options o = {.documents = CORPUS_CHAT,
                               .compose = compose_line,
                               .compose_ctx = (void *)"not this",
                               .mask = true,
                               .batch_tokens = 10};
    (void)state;
    assert_int_equal(corpus_encode(vocab, &o, read_all, take_masked, &m, &totals, &e), ERR_DATA);
    assert_string_equal(e.msg, "line 3: not this");
    buf_release(&m.tokens);
    buf_release(&m.mask);
}

static void test_io_errors(void **state) {
    (void)state;
    unsigned char text[2000];
    struct rng random = rng_init(13, 0);
    size_t n = random_text(&random, text, sizeof text);
    struct corpus_options o = {.documents = CORPUS_LINES, .batch_tokens = 16, .window = 300};
    struct corpus_totals totals;
    for (int reading = 0; reading < 2; reading++) {
        int rc = -1;
        for (uint64_t k = 1; rc != 0; k++) {
            struct err e = {0};
            struct rig r = {.o = &o, .text = text, .n = n, .pieces = rng_init(1, 1)};
            *(reading ? &r.fail_read : &r.fail_write) = k;
            rc = corpus_encode(vocab, &o, read_piece, take_batch, &r, &totals, &e);
            if (rc) assert_string_equal(e.msg, reading ? "read failed" : "write failed");
            release_sequences(&r.out);
        }
    }
    int rc = -1;
    for (uint64_t k = 1; rc != 0; k++) {
        struct err e = {0};
        struct rig r = {.o = &o, .text = text, .n = n, .pieces = rng_init(1, 1)};
        r.fail_write = 1; /* armed before the test allocates its own memory */
        mem_fail_at(k);
        rc = corpus_encode(vocab, &o, read_piece, take_batch, &r, &totals, &e);
        mem_fail_at(0);
        assert_int_equal(rc, ERR_IO);
        if (strcmp(e.msg, "write failed") == 0) rc = 0;
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_as_defined),   cmocka_unit_test(test_ends),
        cmocka_unit_test(test_many_lines),   cmocka_unit_test(test_jsonl),
        cmocka_unit_test(test_jsonl_errors), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_mask),         cmocka_unit_test(test_composing_fails),
        cmocka_unit_test(test_no_text),      cmocka_unit_test(test_io_errors),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
