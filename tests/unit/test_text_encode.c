/* Tests of lib/text for all texts: nothing is lost, cuts have no effect, fast paths change nothing. */
#include <time.h>

#include <utf8proc.h>

#include "lib/text/text_internal.h"
#include "tests/unit/text_samples.h"

static struct vocab *vocabs[N_GOLDEN];

static int load_all(void **state) {
    (void)state;
    for (size_t i = 0; i < N_GOLDEN; i++) vocabs[i] = load_golden(i);
    return 0;
}

static int free_all(void **state) {
    (void)state;
    for (size_t i = 0; i < N_GOLDEN; i++) vocab_free(vocabs[i]);
    return 0;
}

static void assert_same_ids(const struct text_ids *a, const struct text_ids *b) {
    assert_int_equal(a->n, b->n);
    if (a->n) assert_memory_equal(a->ids, b->ids, a->n * sizeof *a->ids);
}

/* ---- decode(encode(x)) == x ---- */

/* Removes bytes for which the vocabulary has no token, as HF's tokenizers do. */
static size_t without_lost(const struct vocab *v, unsigned char *text, size_t n) {
    size_t k = 0;
    for (size_t i = 0; i < n; i++)
        if (v->index->byte_id[text[i]] != TOKEN_NONE) text[k++] = text[i];
    return k;
}

static void assert_decodes_to_itself(const struct vocab *v, unsigned char *text, size_t n, bool plain) {
    struct err e = {0};
    struct text_encode_options o = {.no_normalise = true, .plain_specials = plain};
    struct text_ids ids = must_encode(v, text, n, &o);
    struct buf out = {0};
    assert_int_equal(text_decode(v, ids.ids, ids.n, false, &out, &e), 0);
    size_t kept = without_lost(v, text, n);
    assert_int_equal(ids.n_lost, n - kept);
    assert_int_equal(out.len, kept);
    if (kept) assert_memory_equal(out.data, text, kept);
    text_ids_release(&ids);
    buf_release(&out);
}

static void test_round_trip(void **state) {
    (void)state;
    unsigned char text[400];
    struct rng r = rng_init(1, 0);
    for (int i = 0; i < 4000; i++) {
        size_t max = 1 + rng_below(&r, sizeof text), n = max;
        if (i % 4 == 0)
            for (size_t k = 0; k < n; k++) text[k] = (unsigned char)rng_u32(&r);
        else
            n = random_text(&r, text, max);
        for (size_t v = 0; v < N_GOLDEN; v++) assert_decodes_to_itself(vocabs[v], text, n, i % 2);
    }
}

/* ---- normalisation: must equal that of utf8proc, which is slow only on texts of combining marks ---- */

static void test_nfc(void **state) {
    (void)state;
    struct err e = {0};
    struct buf scratch = {0}, ours = {0};
    struct rng r = rng_init(2, 0);
    for (int i = 0; i < 3000; i++) {
        unsigned char text[256];
        size_t n = 0;
        while (n < 200) {
            static const int32_t bases[] = {0x20,   0x61,  0x300,  0x1100,  0x1161, 0x11a8,  0xac00,
                                            0x1e00, 0x900, 0xfb1d, 0x1d15e, 0xf900, 0x2f800, 0x4e00};
            int32_t c = bases[rng_below(&r, COUNT_OF(bases))] + (int32_t)rng_below(&r, 100);
            n += (size_t)utf8proc_encode_char(c, text + n);
        }
        text[n] = 0;
        ours.len = 0;
        assert_int_equal(text_form(NORM_NFC, text, n, &scratch, &ours, &e), 0);
        utf8proc_uint8_t *theirs = utf8proc_NFC(text);
        assert_int_equal(ours.len, strlen((char *)theirs));
        assert_memory_equal(ours.data, theirs, ours.len);
        free(theirs);
    }
    buf_release(&ours);
    buf_release(&scratch);
}

/* ---- cuts ---- */

static void assert_cut_leaves_no_trace(const struct vocab *v, const unsigned char *text, size_t n, size_t window,
                                       const struct text_encode_options *o, size_t *n_cuts) {
    struct err e = {0};
    struct text_ids whole = must_encode(v, text, n, o), parts = {0};
    for (size_t at = 0; at < n;) {
        size_t end = n - at < window ? n : at + window, cut = 0;
        if (end < n) cut = text_safe_cut(v, text + at, end - at);
        if (cut) end = at + cut, ++*n_cuts;
        if (!cut && end < n) end = n; /* no cut in this window: a reader would enlarge it */
        assert_int_equal(text_encode(v, text + at, end - at, o, &parts, &e), 0);
        at = end;
    }
    assert_same_ids(&whole, &parts);
    text_ids_release(&whole);
    text_ids_release(&parts);
}

static void test_cuts(void **state) {
    (void)state;
    static unsigned char text[2000];
    struct rng r = rng_init(3, 0);
    size_t n_cuts = 0;
    for (int i = 0; i < 3000; i++) {
        size_t n = random_text(&r, text, 1 + rng_below(&r, i % 10 ? 120 : sizeof text));
        size_t window = 2 + rng_below(&r, 60);
        struct text_encode_options o = {.plain_specials = i % 3 == 0, .no_normalise = i % 5 == 0};
        for (size_t v = 0; v < N_GOLDEN; v++) assert_cut_leaves_no_trace(vocabs[v], text, n, window, &o, &n_cuts);
    }
    assert_true(n_cuts > 10000);
}

/* With added tokens that depend on their surroundings or contain spaces: every combination of flags. */
static void test_cuts_beside_added(void **state) {
    (void)state;
    struct err e = {0};
    unsigned char text[200];
    size_t n_cuts = 0;
    for (uint32_t flags = 0; flags < 16; flags++) {
        struct vocab spec = *vocabs[2], *v; /* qwen2: NFC */
        struct token *tokens = mem_array(spec.n_tokens + 3, sizeof *tokens, &e);
        assert_non_null(tokens);
        memcpy(tokens, spec.tokens, spec.n_tokens * sizeof *tokens);
        uint32_t f = TOKEN_ADDED | (flags & 1 ? TOKEN_LSTRIP : 0) | (flags & 2 ? TOKEN_RSTRIP : 0) |
                     (flags & 4 ? TOKEN_SINGLE_WORD : 0) | (flags & 8 ? TOKEN_NORMALIZED : 0);
        tokens[spec.n_tokens++] = (struct token){.bytes = (const unsigned char *)"the", .n_bytes = 3, .flags = f};
        tokens[spec.n_tokens++] = (struct token){.bytes = (const unsigned char *)"a the\n1", .n_bytes = 7, .flags = f};
        tokens[spec.n_tokens++] =
            (struct token){.bytes = (const unsigned char *)"\xc3\xa9 a", .n_bytes = 4, .flags = f};
        spec.tokens = tokens;
        if (vocab_new(&v, &spec, &e) != 0) fail_msg("%s", e.msg);
        struct rng r = rng_init(4, flags);
        for (int i = 0; i < 1000; i++) {
            static const char *const parts[] = {"the", "a",         " ",        "\n", "1",
                                                "  ",  "e\xcc\x81", "\xc3\xa9", "!",  "a the"};
            size_t n = 0;
            for (const char *p; p = parts[rng_below(&r, COUNT_OF(parts))], n + strlen(p) < sizeof text; n += strlen(p))
                memcpy(text + n, p, strlen(p));
            assert_cut_leaves_no_trace(v, text, n, 4 + rng_below(&r, 40), NULL, &n_cuts);
        }
        vocab_free(v);
        mem_free(tokens);
    }
    assert_true(n_cuts > 1000);
}

/* Real texts in many scripts have cuts near the end of any window. */
static void test_cuts_are_near(void **state) {
    (void)state;
    struct golden_texts texts = load_golden_texts();
    struct err e = {0};
    struct buf all = {0};
    for (size_t i = 2704; i < 7904; i++) assert_int_equal(buf_append(&all, texts.text[i], texts.n_bytes[i], &e), 0);
    size_t furthest = 0;
    for (size_t at = 0; at + 4096 < all.len; at += 997) {
        size_t cut = text_safe_cut(vocabs[1], all.data + at, 4096);
        if (4096 - cut > furthest) furthest = 4096 - cut;
    }
    assert_true(furthest < 2048);
    buf_release(&all);
    free_golden_texts(&texts);
}

/* ---- fast paths against plain ones ---- */

static void test_ascii_shortcut(void **state) {
    (void)state;
    unsigned char text[120];
    struct err e = {0};
    struct rng r = rng_init(5, 0);
    for (size_t v = 0; v < N_GOLDEN; v++) {
        struct pretokenizer *p = vocabs[v]->index->pre, *slow;
        struct pre_state *s, *t;
        assert_int_equal(pretokenizer_new(&slow, vocabs[v]->pre, &e), 0);
        pretokenizer_interpret(slow);
        assert_int_equal(pre_state_new(&s, p, &e), 0);
        assert_int_equal(pre_state_new(&t, slow, &e), 0);
        for (int i = 0; i < 4000; i++) {
            size_t n = random_text(&r, text, sizeof text), fast_end = 0, jit_end = 0, slow_end = 0;
            n = utf8_valid_prefix(text, n);
            for (size_t at = 0; at < n; at = fast_end) {
                assert_int_equal(pretokenizer_next(p, s, text, n, at, &fast_end, &e), 0);
                assert_int_equal(pretokenizer_match(p, s, text, n, at, &jit_end, &e), 0);
                assert_int_equal(pretokenizer_match(slow, t, text, n, at, &slow_end, &e), 0);
                assert_int_equal(fast_end, jit_end);
                assert_int_equal(fast_end, slow_end);
                assert_true(fast_end > at);
            }
        }
        pre_state_free(s);
        pre_state_free(t);
        pretokenizer_free(slow);
    }
}

/* The definition, quadratic: merges the pair with the lowest rank, the leftmost of equals. */
static size_t merge_by_definition(const struct vocab *v, uint32_t *ids, size_t n) {
    for (;;) {
        size_t best = n;
        uint32_t rank = TOKEN_NONE, result = 0;
        for (size_t i = 0; i + 1 < n; i++) {
            const struct merge_slot *m = index_merge(v->index, ids[i], ids[i + 1]);
            if (m && m->rank < rank) best = i, rank = m->rank, result = m->result;
        }
        if (best == n) return n;
        ids[best] = result;
        memmove(ids + best + 1, ids + best + 2, (n - best - 2) * sizeof *ids);
        n--;
    }
}

static void test_merging(void **state) {
    (void)state;
    struct err e = {0};
    struct rng r = rng_init(6, 0);
    struct bpe_memory m = {0};
    struct text_ids ids = {0};
    unsigned char word[300];
    uint32_t expected[300];
    for (int i = 0; i < 2000; i++) {
        const struct vocab *v = vocabs[i % N_GOLDEN];
        size_t n = 1 + rng_below(&r, i % 2 ? 60 : sizeof word), k = 0;
        unsigned letters = 1 + (unsigned)rng_below(&r, 8);
        for (size_t j = 0; j < n; j++) word[j] = (unsigned char)"etaoinsh"[rng_below(&r, letters)];
        for (size_t j = 0; j < n; j++) expected[k++] = v->index->byte_id[word[j]];
        k = merge_by_definition(v, expected, k);
        ids.n = 0;
        assert_int_equal(bpe_merge(v, &m, word, n, &ids, NULL, &e), 0);
        assert_int_equal(ids.n, k);
        assert_memory_equal(ids.ids, expected, k * sizeof expected[0]);
    }
    bpe_release(&m);
    text_ids_release(&ids);
}

/* ---- texts that break naive tokenizers: all must be fast, and none may fail ---- */

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void test_catastrophes(void **state) {
    (void)state;
    static const char *const units[] = {"a",
                                        " ",
                                        "\n",
                                        "1",
                                        "!",
                                        "ab",
                                        " \n",
                                        "\xcc\x81",
                                        "\xcc\x81\xcc\xa3",
                                        "\xe4\xb8\xad",
                                        "'",
                                        "'s",
                                        "\xff",
                                        "\xf0\x9f\x98\x80",
                                        "<|",
                                        "<|endoftext|>",
                                        "\xc2\xa0"};
    const size_t n = 1 << 18;
    struct err e = {0};
    unsigned char *text = mem_alloc(n, &e);
    struct buf out = {0};
    assert_non_null(text);
    for (size_t i = 0; i < COUNT_OF(units); i++) {
        size_t len = strlen(units[i]), used = n / len * len;
        for (size_t at = 0; at < used; at += len) memcpy(text + at, units[i], len);
        const struct vocab *v = vocabs[i % N_GOLDEN];
        for (int nfc = 0; nfc < 2; nfc++) {
            double start = seconds();
            struct text_ids ids = must_encode(nfc ? vocabs[2] : v, text, used, NULL);
            double took = seconds() - start;
            if (took > 20)
                fail_msg("256 KiB of \"%s\" takes %.1f s", units[i], took); /* sanitizers and busy machines */
            text_ids_release(&ids);
        }
    }
    buf_release(&out);
    mem_free(text);
}

/* The interpreter has no limit either. */
static void test_catastrophes_interpreted(void **state) {
    (void)state;
    struct err e = {0};
    const size_t n = 1 << 18;
    unsigned char *text = mem_alloc(n, &e);
    struct pretokenizer *p;
    struct pre_state *s;
    assert_non_null(text);
    assert_int_equal(pretokenizer_new(&p, PRE_LLAMA_BPE, &e), 0);
    pretokenizer_interpret(p);
    assert_int_equal(pre_state_new(&s, p, &e), 0);
    static const char letters[] = "a \n!";
    for (size_t i = 0; i < 4; i++) {
        size_t end;
        memset(text, letters[i], n);
        text[n - 1] = 'x';
        if (pretokenizer_match(p, s, text, n, 0, &end, &e) != 0) fail_msg("%s", e.msg);
        assert_int_equal(end, i == 0 ? n : i == 1 ? n - 2 : n - 1);
    }
    pre_state_free(s);
    pretokenizer_free(p);
    mem_free(text);
}

/* ---- threads share a vocabulary ---- */

struct shared {
    const struct golden_texts *texts;
    struct text_ids *ids;
};

static void encode_one(void *ctx, size_t i, int thread) {
    const struct shared *s = ctx;
    struct err e = {0};
    (void)thread;
    if (text_encode(vocabs[0], s->texts->text[i], s->texts->n_bytes[i], NULL, &s->ids[i], &e) != 0) s->ids[i].n = 0;
}

static void test_threads(void **state) {
    (void)state;
    struct err e = {0};
    struct golden_texts texts = load_golden_texts();
    const size_t n = 3000;
    struct text_ids *ids = mem_array(2 * n, sizeof *ids, &e);
    assert_non_null(ids);
    int before = parallel_threads();
    parallel_set_threads(8);
    parallel_for(n, encode_one, &(struct shared){&texts, ids});
    parallel_set_threads(1);
    parallel_for(n, encode_one, &(struct shared){&texts, ids + n});
    parallel_set_threads(before);
    for (size_t i = 0; i < n; i++) {
        assert_same_ids(&ids[i], &ids[n + i]);
        text_ids_release(&ids[i]);
        text_ids_release(&ids[n + i]);
    }
    mem_free(ids);
    free_golden_texts(&texts);
}

/* ---- spelling ---- */

static void test_spelling(void **state) {
    (void)state;
    struct err e = {0};
    struct buf spelled = {0}, back = {0};
    unsigned char all[256];
    for (unsigned b = 0; b < 256; b++) all[b] = (unsigned char)b;
    assert_int_equal(text_spell(all, sizeof all, &spelled, &e), 0);
    assert_true(utf8_valid((const char *)spelled.data, spelled.len));
    assert_int_equal(text_unspell((const char *)spelled.data, spelled.len, &back, &e), 0);
    assert_int_equal(back.len, 256);
    assert_memory_equal(back.data, all, 256);
    spelled.len = 0;
    assert_int_equal(text_spell(" a\n\xc3", 4, &spelled, &e), 0);
    assert_int_equal(spelled.len, 7);
    assert_memory_equal(spelled.data,
                        "\xc4\xa0"
                        "a"
                        "\xc4\x8a"
                        "\xc3\x83",
                        7); /* as in every vocab.json: space, newline */
    assert_int_equal(text_unspell("a b", 3, &back, &e), ERR_DATA);
    assert_string_equal(e.msg, "byte 1 of \"a b\" is not of the byte-level alphabet");
    assert_int_equal(text_unspell("\xe4\xb8\xad", 3, &back, &e), ERR_DATA);
    assert_int_equal(text_unspell("\xc4", 1, &back, &e), ERR_DATA);
    assert_int_equal(back.len, 256);
    buf_release(&spelled);
    buf_release(&back);
}

static void test_pre_names(void **state) {
    (void)state;
    struct err e = {0};
    enum text_pre pre;
    for (size_t i = 0; i < N_GOLDEN; i++) {
        assert_int_equal(text_pre_parse(text_pre_name(golden_pre[i]), &pre, &e), 0);
        assert_int_equal(pre, golden_pre[i]);
    }
    assert_int_equal(text_pre_parse("llama3", &pre, &e), 0);
    assert_int_equal(pre, PRE_LLAMA_BPE);
    assert_int_equal(text_pre_parse("tekken", &pre, &e), ERR_DATA);
    assert_string_equal(e.msg, "unknown pre-tokenizer \"tekken\" (known: gpt-2, llama-bpe, qwen2, smollm)");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_nfc),
        cmocka_unit_test(test_cuts),
        cmocka_unit_test(test_cuts_beside_added),
        cmocka_unit_test(test_cuts_are_near),
        cmocka_unit_test(test_ascii_shortcut),
        cmocka_unit_test(test_merging),
        cmocka_unit_test(test_catastrophes),
        cmocka_unit_test(test_catastrophes_interpreted),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_spelling),
        cmocka_unit_test(test_pre_names),
    };
    return cmocka_run_group_tests(tests, load_all, free_all);
}
