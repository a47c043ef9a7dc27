/* Tests of lib/text: building, packing, finding and pruning vocabularies; what is refused, and the messages. */
#include "lib/text/text_internal.h"
#include "tests/unit/text_samples.h"

/* ---- a small vocabulary: the 256 bytes as themselves, "th", "the", and two added tokens ---- */

enum { T_TH = 256, T_THE, T_END, T_PAD, N_SMALL };

struct small {
    unsigned char bytes[256];
    struct token tokens[N_SMALL];
    struct merge merges[2];
    struct vocab spec;
};

static struct token piece(const char *s, uint32_t flags) {
    return (struct token){.bytes = (const unsigned char *)s, .n_bytes = (uint32_t)strlen(s), .flags = flags};
}

static struct small *small_spec(struct small *s) {
    memset(s, 0, sizeof *s);
    for (unsigned b = 0; b < 256; b++) {
        s->bytes[b] = (unsigned char)b;
        s->tokens[b] = (struct token){.bytes = &s->bytes[b], .n_bytes = 1};
    }
    s->tokens[T_TH] = piece("th", 0);
    s->tokens[T_THE] = piece("the", 0);
    s->tokens[T_END] = piece("<end>", TOKEN_ADDED | TOKEN_SPECIAL);
    s->tokens[T_PAD] = (struct token){.flags = TOKEN_UNUSED};
    s->merges[0] = (struct merge){'t', 'h', T_TH};
    s->merges[1] = (struct merge){T_TH, 'e', T_THE};
    s->spec = (struct vocab){.n_tokens = N_SMALL,
                             .n_merges = 2,
                             .tokens = s->tokens,
                             .merges = s->merges,
                             .pre = PRE_GPT2,
                             .bos = TOKEN_NONE,
                             .eos = T_END,
                             .pad = TOKEN_NONE,
                             .unk = TOKEN_NONE,
                             .chat_template = "{{ messages }}"};
    return s;
}

static struct vocab *must_build(const struct vocab *spec) {
    struct err e = {0};
    struct vocab *v = NULL;
    if (vocab_new(&v, spec, &e) != 0) fail_msg("%s", e.msg);
    return v;
}

static void assert_ids(const struct vocab *v, const char *text, const struct text_encode_options *o, size_t n,
                       const uint32_t *expected) {
    struct text_ids ids = must_encode(v, text, strlen(text), o);
    assert_int_equal(ids.n, n);
    assert_memory_equal(ids.ids, expected, n * sizeof *expected);
    text_ids_release(&ids);
}
#define IDS(...)                                                                                                       \
    sizeof((uint32_t[]){__VA_ARGS__}) / 4, (const uint32_t[]) {                                                        \
        __VA_ARGS__                                                                                                    \
    }

static void test_small(void **state) {
    (void)state;
    struct small s;
    struct vocab *v = must_build(&small_spec(&s)->spec);
    assert_ids(v, "the", NULL, IDS(T_THE));
    assert_ids(v, "thth e", NULL, IDS(T_TH, T_TH, ' ', 'e'));
    assert_ids(v, "a<end>the", NULL, IDS('a', T_END, T_THE));
    assert_ids(v, "<end", NULL, IDS('<', 'e', 'n', 'd'));
    assert_ids(v, "<end>", &(struct text_encode_options){.plain_specials = true}, IDS('<', 'e', 'n', 'd', '>'));
    assert_int_equal(vocab_find(v, "the", 3), T_THE);
    assert_int_equal(vocab_find(v, "<end>", 5), T_END);
    assert_int_equal(vocab_find(v, "xyz", 3), TOKEN_NONE);
    assert_int_equal(vocab_find(v, "", 0), TOKEN_NONE);
    assert_int_equal(vocab_text_bytes(v, T_THE), 3);
    assert_int_equal(vocab_text_bytes(v, T_END), 0);
    struct err e = {0};
    struct buf out = {0};
    assert_int_equal(text_decode(v, (const uint32_t[]){T_THE, T_END, T_PAD, 'x'}, 4, true, &out, &e), 0);
    assert_int_equal(out.len, 4);
    assert_memory_equal(out.data, "thex", 4);
    assert_int_equal(text_decode(v, (const uint32_t[]){'x', N_SMALL}, 2, true, &out, &e), ERR_DATA);
    assert_string_equal(e.msg, "token 260 at position 1 is outside the vocabulary of 260");
    buf_release(&out);
    vocab_free(v);
}

/* Bytes without a token are counted, and become unk if the vocabulary has it. */
static void test_lost_bytes(void **state) {
    (void)state;
    struct small s;
    small_spec(&s)->tokens['!'] = (struct token){.flags = TOKEN_UNUSED};
    struct vocab *v = must_build(&s.spec);
    for (int again = 0; again < 2; again++) { /* the second result may come from the cache */
        struct text_ids ids = must_encode(v, "!t!h!", 5, NULL);
        assert_int_equal(ids.n_lost, 3);
        assert_int_equal(ids.n, 2); /* "t" and "h": the pre-tokenizer has split them */
        text_ids_release(&ids);
    }
    vocab_free(v);
    s.spec.unk = T_END;
    v = must_build(&s.spec);
    assert_ids(v, "a!b", NULL, IDS('a', T_END, 'b'));
    vocab_free(v);
}

/* ---- flags of added tokens: HF's AddedToken ---- */

static void test_added_flags(void **state) {
    (void)state;
    struct small s;
    small_spec(&s)->tokens[T_END].flags = TOKEN_ADDED | TOKEN_LSTRIP | TOKEN_RSTRIP;
    struct vocab *v = must_build(&s.spec);
    assert_ids(v, "a  <end>\n b", NULL, IDS('a', T_END, 'b'));
    assert_ids(v, "<end>  <end>", NULL, IDS(T_END, T_END));
    assert_ids(v, "a\xe3\x80\x80<end>", NULL, IDS('a', T_END));
    vocab_free(v);
    s.tokens[T_END] = piece("end", TOKEN_ADDED | TOKEN_SINGLE_WORD);
    v = must_build(&s.spec);
    assert_ids(v, "end", NULL, IDS(T_END));
    assert_ids(v, "(end)", NULL, IDS('(', T_END, ')'));
    assert_ids(v, "bend", NULL, IDS('b', 'e', 'n', 'd'));
    assert_ids(v, "end1", NULL, IDS('e', 'n', 'd', '1'));
    vocab_free(v);
}

/* The longest of the added tokens that start at the leftmost position. */
static void test_longest_added(void **state) {
    (void)state;
    struct small s;
    small_spec(&s)->tokens[T_END] = piece("<a>", TOKEN_ADDED);
    s.tokens[T_PAD] = piece("<a><b", TOKEN_ADDED);
    struct vocab *v = must_build(&s.spec);
    assert_ids(v, "<a><c", NULL, IDS(T_END, '<', 'c'));
    assert_ids(v, "<a><b", NULL, IDS(T_PAD));
    assert_ids(v, "<<a>", NULL, IDS('<', T_END));
    vocab_free(v);
}

/* A normalised token is found in the normalised text. */
static void test_normalised_added(void **state) {
    (void)state;
    struct small s;
    small_spec(&s)->tokens[T_END] = piece("\xc3\xa9!", TOKEN_ADDED | TOKEN_NORMALIZED);
    s.spec.nfc = true;
    struct vocab *v = must_build(&s.spec);
    assert_ids(v, "ae\xcc\x81!", NULL, IDS('a', T_END));
    assert_ids(v, "\xc3\xa9!", NULL, IDS(T_END));
    assert_ids(v, "e\xcc\x81!", &(struct text_encode_options){.no_normalise = true}, IDS('e', 0xcc, 0x81, '!'));
    vocab_free(v);
}

/* ---- what is refused ---- */

static void assert_refused(const struct vocab *spec, const char *message) {
    struct err e = {0};
    struct vocab *v = NULL;
    assert_int_equal(vocab_new(&v, spec, &e), ERR_DATA);
    assert_string_equal(e.msg, message);
    assert_null(v);
}

static void test_refused(void **state) {
    (void)state;
    struct small s;
    small_spec(&s)->tokens[3].n_bytes = 0;
    assert_refused(&s.spec, "token 3: 0 bytes, expected 1 to 65536");
    small_spec(&s)->tokens[T_PAD].n_bytes = 1;
    assert_refused(&s.spec, "token 259: unused, but has 1 bytes");
    small_spec(&s)->tokens[T_TH].flags = 1u << 20;
    assert_refused(&s.spec, "token 256: unknown flags 0x100000");
    small_spec(&s)->tokens[T_TH].score = (float)(0.0 / 0.0 * -1);
    assert_refused(&s.spec, "token 256: score is not a number");
    small_spec(&s)->tokens[T_TH] = piece("the", 0);
    assert_refused(&s.spec, "tokens 256 and 257 are the same piece");
    small_spec(&s)->merges[1].result = N_SMALL;
    assert_refused(&s.spec, "merge 1: token 260 is outside the vocabulary of 260");
    small_spec(&s)->merges[1].left = TOKEN_NONE;
    assert_refused(&s.spec, "merge 1: token 4294967295 is outside the vocabulary of 260");
    small_spec(&s)->merges[1].right = T_PAD;
    assert_refused(&s.spec, "merge 1: token 259 is unused");
    small_spec(&s)->merges[1].right = 'x';
    assert_refused(&s.spec, "merge 1: token 257 is not tokens 256 and 120 joined");
    small_spec(&s)->merges[1] = s.merges[0];
    assert_refused(&s.spec, "merge 1 repeats merge 0");
    small_spec(&s)->spec.eos = N_SMALL;
    assert_refused(&s.spec, "eos: token 260 is outside the vocabulary of 260");
    small_spec(&s)->spec.pre = (enum text_pre)9;
    assert_refused(&s.spec, "unknown pre-tokenizer 9");
    small_spec(&s)->spec.n_tokens = 0;
    assert_refused(&s.spec, "0 tokens, expected 1 to 16777216");
    small_spec(&s)->spec.chat_template = "\xff";
    assert_refused(&s.spec, "chat template: invalid UTF-8");
}

/* ---- packing ---- */

static void assert_same_vocab(const struct vocab *a, const struct vocab *b) {
    assert_int_equal(a->n_tokens, b->n_tokens);
    for (uint32_t i = 0; i < a->n_tokens; i++) {
        assert_int_equal(a->tokens[i].n_bytes, b->tokens[i].n_bytes);
        assert_memory_equal(a->tokens[i].bytes, b->tokens[i].bytes, a->tokens[i].n_bytes);
        assert_int_equal(a->tokens[i].flags, b->tokens[i].flags);
        assert_true(a->tokens[i].score == b->tokens[i].score);
    }
    assert_int_equal(a->n_merges, b->n_merges);
    assert_memory_equal(a->merges, b->merges, a->n_merges * sizeof *a->merges);
    assert_true(a->pre == b->pre && a->nfc == b->nfc && a->ignore_merges == b->ignore_merges);
    assert_true(a->add_bos == b->add_bos && a->add_eos == b->add_eos && a->bos == b->bos && a->eos == b->eos);
    assert_true(a->pad == b->pad && a->unk == b->unk && !a->chat_template == !b->chat_template);
    if (a->chat_template) assert_string_equal(a->chat_template, b->chat_template);
    assert_int_equal(a->n_ends, b->n_ends);
    if (a->n_ends) assert_memory_equal(a->ends, b->ends, a->n_ends * sizeof *a->ends);
    assert_true(digest_equal(a->digest, b->digest));
}

static void assert_round_trip(const struct vocab *v) {
    struct err e = {0};
    struct buf packed = {0}, again = {0};
    struct vocab *w = NULL;
    struct digest identity;
    uint32_t ends[TEXT_MAX_ENDS + 1], n_ends;
    assert_int_equal(vocab_pack(v, &packed, &e), 0);
    if (vocab_unpack(&w, packed.data, packed.len, &e) != 0) fail_msg("%s", e.msg);
    assert_same_vocab(v, w);
    assert_int_equal(vocab_pack(w, &again, &e), 0);
    assert_int_equal(packed.len, again.len);
    assert_memory_equal(packed.data, again.data, packed.len);
    assert_int_equal(vocab_identity(packed.data, packed.len, &identity, &e), 0);
    assert_true(digest_equal(identity, v->digest));
    assert_int_equal(vocab_read_ends(packed.data, packed.len, ends, &n_ends, &e), 0);
    assert_int_equal(n_ends, v->n_ends);
    if (n_ends) assert_memory_equal(ends, v->ends, n_ends * sizeof *ends);
    vocab_free(w);
    buf_release(&packed);
    buf_release(&again);
}

/* Any order, with repetitions, with eos or without: one list, one record. */
static void test_ends(void **state) {
    (void)state;
    static const uint32_t orders[][4] = {
        {T_THE, 'a', T_END, 'a'}, {'a', T_THE, 'a', T_THE}, {T_END, T_END, T_THE, 'a'}};
    struct small s;
    struct err e = {0};
    struct vocab *plain = must_build(&small_spec(&s)->spec), *v;
    struct buf first = {0}, packed = {0};
    assert_int_equal(plain->n_ends, 1);
    assert_int_equal(plain->ends[0], T_END);
    for (size_t i = 0; i < COUNT_OF(orders); i++) {
        s.spec.ends = orders[i];
        s.spec.n_ends = 4;
        v = must_build(&s.spec);
        assert_int_equal(v->n_ends, 3);
        assert_true(v->ends[0] == 'a' && v->ends[1] == T_THE && v->ends[2] == T_END && v->eos == T_END);
        assert_true(digest_equal(v->digest, plain->digest));
        packed.len = 0;
        assert_int_equal(vocab_pack(v, i ? &packed : &first, &e), 0);
        if (i) assert_true(packed.len == first.len && memcmp(packed.data, first.data, first.len) == 0);
        assert_round_trip(v);
        vocab_free(v);
    }
    s.spec.eos = TOKEN_NONE; /* separating documents is another matter */
    v = must_build(&s.spec);
    assert_int_equal(v->n_ends, 3);
    assert_round_trip(v);
    vocab_free(v);
    unsigned char keep[N_SMALL] = {0};
    uint32_t map[N_SMALL];
    s.spec.eos = T_END;
    struct vocab *whole = must_build(&s.spec);
    assert_int_equal(vocab_prune(&v, whole, keep, map, &e), 0);
    assert_int_equal(v->n_ends, 3);
    assert_true(v->ends[1] == map[T_THE] && v->ends[1] != TOKEN_NONE);
    vocab_free(v);
    vocab_free(whole);
    static const uint32_t outside[] = {N_SMALL}, none[] = {TOKEN_NONE};
    s.spec.ends = outside;
    s.spec.n_ends = 1;
    assert_refused(&s.spec, "end: token 260 is outside the vocabulary of 260");
    s.spec.ends = none;
    assert_refused(&s.spec, "an end token is none");
    vocab_free(plain);
    buf_release(&first);
    buf_release(&packed);
}

static void test_pack(void **state) {
    (void)state;
    struct small s;
    struct vocab *v = must_build(&small_spec(&s)->spec);
    assert_round_trip(v);
    vocab_free(v);
    s.tokens[7].score = -1.5f;
    s.spec.nfc = s.spec.ignore_merges = s.spec.add_bos = s.spec.add_eos = true;
    s.spec.bos = s.spec.pad = s.spec.unk = 0;
    s.spec.chat_template = NULL;
    v = must_build(&s.spec);
    assert_round_trip(v);
    vocab_free(v);
    for (size_t i = 0; i < N_GOLDEN; i++) {
        v = load_golden(i);
        assert_round_trip(v);
        vocab_free(v);
    }
}

/* The layout is a format: these bytes must not change while the version is 1. */
static void test_pinned_layout(void **state) {
    (void)state;
    struct err e = {0};
    struct token tokens[] = {piece("a", 0), piece("b", 0), piece("ab", 0), {.flags = TOKEN_UNUSED}};
    struct merge merge = {0, 1, 2};
    struct vocab spec = {.n_tokens = 4, .n_merges = 1, .tokens = tokens, .merges = &merge, .pre = PRE_QWEN2};
    spec.nfc = true;
    spec.bos = 1;
    spec.eos = spec.pad = spec.unk = TOKEN_NONE;
    spec.chat_template = "T";
    static const unsigned char expected[] =
        "\x01\0\0\0\x01\0\0\0\x03\0\0\0\x04\0\0\0\x01\0\0\0\x01\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"
        "\x01\0\0\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
        "\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\x40\0\0\0"
        "\0\0\0\0\x01\0\0\0\x02\0\0\0"
        "abab"
        "T";
    struct vocab *v = must_build(&spec);
    struct buf packed = {0};
    assert_int_equal(vocab_pack(v, &packed, &e), 0);
    assert_int_equal(packed.len, sizeof expected - 1);
    assert_memory_equal(packed.data, expected, packed.len);
    char text[DIGEST_TEXT_SIZE];
    digest_text(v->digest, text);
    assert_string_equal(text, "xxh3:2e0627848a152b693d269376e658f9e6");
    buf_release(&packed);
    vocab_free(v);
}

/* The same with more end tokens. */
static void test_pinned_ends(void **state) {
    (void)state;
    struct err e = {0};
    struct token tokens[] = {piece("a", 0), piece("b", TOKEN_ADDED | TOKEN_SPECIAL), piece("c", TOKEN_ADDED)};
    static const uint32_t ends[] = {2, 1};
    struct vocab spec = {.n_tokens = 3, .tokens = tokens, .pre = PRE_GPT2, .ends = ends, .n_ends = 2};
    spec.eos = 1;
    spec.bos = spec.pad = spec.unk = TOKEN_NONE;
    static const unsigned char expected[] =
        "\x01\0\0\0\x20\0\0\0\x01\0\0\0\x03\0\0\0\0\0\0\0\xff\xff\xff\xff\x01\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"
        "\0\0\0\0\x03\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
        "\x01\0\0\0\0\0\0\0\x01\0\0\0\x03\0\0\0\x01\0\0\0\x02\0\0\0"
        "\x02\0\0\0"
        "abc";
    struct vocab *v = must_build(&spec);
    struct buf packed = {0};
    assert_int_equal(vocab_pack(v, &packed, &e), 0);
    assert_int_equal(packed.len, sizeof expected - 1);
    assert_memory_equal(packed.data, expected, packed.len);
    buf_release(&packed);
    vocab_free(v);
}

/* The identity covers the meaning of tokens, not the chat template. */
static void test_identity(void **state) {
    (void)state;
    struct small s;
    struct vocab *v = must_build(&small_spec(&s)->spec);
    struct digest base = v->digest;
    vocab_free(v);
    s.spec.chat_template = NULL;
    s.spec.eos = TOKEN_NONE;
    s.spec.add_bos = true;
    s.spec.n_tokens--; /* padding */
    v = must_build(&s.spec);
    assert_true(digest_equal(base, v->digest));
    vocab_free(v);
    s.spec.ignore_merges = true;
    v = must_build(&s.spec);
    assert_false(digest_equal(base, v->digest));
    vocab_free(v);
    small_spec(&s)->tokens[T_END] = piece("<fin>", TOKEN_ADDED | TOKEN_SPECIAL);
    v = must_build(&s.spec);
    assert_false(digest_equal(base, v->digest));
    vocab_free(v);
}

/* Every truncation is detected; every flipped bit is refused or gives a vocabulary that packs to the flipped bytes. */
static void test_hostile_bytes(void **state) {
    (void)state;
    struct small s;
    struct err e = {0};
    static const uint32_t ends[] = {'a', T_THE};
    uint32_t all[TEXT_MAX_ENDS + 1], n_all;
    small_spec(&s)->spec.ends = ends;
    s.spec.n_ends = 2;
    struct vocab *v = must_build(&s.spec), *w;
    struct buf packed = {0}, again = {0};
    assert_int_equal(vocab_pack(v, &packed, &e), 0);
    for (size_t n = 0; n < packed.len; n++) {
        unsigned char *cut = mem_alloc(n, &e); /* of exactly n bytes, so that a sanitizer catches a read past the end */
        assert_non_null(cut);
        memcpy(cut, packed.data, n);
        assert_int_equal(vocab_unpack(&w, cut, n, &e), ERR_DATA);
        assert_int_equal(vocab_read_ends(cut, n, all, &n_all, &e), ERR_DATA);
        mem_free(cut);
    }
    size_t accepted = 0;
    for (size_t bit = 0; bit < 8 * packed.len; bit += bit < 512 ? 1 : 7) {
        packed.data[bit / 8] ^= (unsigned char)(1u << bit % 8);
        int rc = vocab_unpack(&w, packed.data, packed.len, &e);
        int ends_rc = vocab_read_ends(packed.data, packed.len, all, &n_all, &e);
        if (rc == 0) {
            assert_true(ends_rc == 0 && n_all == w->n_ends);
            accepted++;
            again.len = 0;
            assert_int_equal(vocab_pack(w, &again, &e), 0);
            if (again.len == packed.len) assert_memory_equal(again.data, packed.data, packed.len);
            vocab_free(w);
        } else {
            assert_int_equal(rc, ERR_DATA);
            assert_memory_equal(e.msg, "vocabulary: ", 12);
        }
        packed.data[bit / 8] ^= (unsigned char)(1u << bit % 8);
    }
    assert_true(accepted > 0); /* bits of pieces, of flags */
    buf_release(&packed);
    buf_release(&again);
    vocab_free(v);
}

/* ---- pruning ---- */

/* Every merge that is kept has its three tokens, and every kept token that was reachable still is. */
static void assert_closed(const struct vocab *v, const struct vocab *w, const unsigned char *keep,
                          const uint32_t *map) {
    struct err e = {0};
    struct bpe_memory m = {0};
    struct text_ids before = {0}, after = {0};
    size_t reached = 0;
    for (uint32_t id = 0; id < v->n_tokens; id++) {
        const struct token *t = &v->tokens[id];
        if (keep[id] || t->n_bytes == 1 || (t->flags & (TOKEN_SPECIAL | TOKEN_ADDED)))
            assert_true(map[id] < w->n_tokens);
        if (map[id] == TOKEN_NONE || t->n_bytes == 0) continue;
        assert_int_equal(w->tokens[map[id]].n_bytes, t->n_bytes);
        assert_memory_equal(w->tokens[map[id]].bytes, t->bytes, t->n_bytes);
        before.n = after.n = 0;
        assert_int_equal(bpe_merge(v, &m, t->bytes, t->n_bytes, &before, NULL, &e), 0);
        assert_int_equal(bpe_merge(w, &m, t->bytes, t->n_bytes, &after, NULL, &e), 0);
        if (before.n != 1 || before.ids[0] != id) continue;
        reached++;
        assert_int_equal(after.n, 1);
        assert_int_equal(after.ids[0], map[id]);
    }
    assert_true(reached > 0);
    bpe_release(&m);
    text_ids_release(&before);
    text_ids_release(&after);
}

static void test_prune(void **state) {
    (void)state;
    struct err e = {0};
    for (size_t which = 0; which < N_GOLDEN; which++) {
        struct vocab *v = load_golden(which), *w;
        unsigned char *keep = mem_zalloc(v->n_tokens, &e);
        uint32_t *map = mem_array(v->n_tokens, sizeof *map, &e);
        assert_true(keep && map);
        struct rng r = rng_init(7, which);
        for (unsigned share = 0; share <= 8; share += 2) {
            for (uint32_t id = 0; id < v->n_tokens; id++) keep[id] = rng_below(&r, 8) < share;
            if (vocab_prune(&w, v, keep, map, &e) != 0) fail_msg("%s", e.msg);
            assert_closed(v, w, keep, map);
            if (share == 8) assert_same_vocab(v, w);
            uint32_t next = 0; /* the order is kept */
            for (uint32_t id = 0; id < v->n_tokens; id++)
                if (map[id] != TOKEN_NONE) assert_int_equal(map[id], next++);
            assert_int_equal(next, w->n_tokens);
            vocab_free(w);
        }
        mem_free(keep);
        mem_free(map);
        vocab_free(v);
    }
}

/* ---- allocation failures: each in turn ---- */

static void test_out_of_memory(void **state) {
    (void)state;
    struct small s;
    small_spec(&s)->spec.nfc = true;
    s.tokens[T_PAD] = piece("\xc3\xa9\xc3\xa9", TOKEN_ADDED | TOKEN_NORMALIZED);
    struct vocab *whole = must_build(&s.spec);
    struct buf packed = {0};
    struct err e = {0};
    assert_int_equal(vocab_pack(whole, &packed, &e), 0);
    /* One failure is not fatal: without memory for compiled code, PCRE2 interprets. So continue until many runs
     * succeed in a row. */
    size_t failures = 0;
    for (uint64_t n = 1, good = 0; good < 20; n++) {
        struct vocab *v = NULL;
        struct text_ids ids = {0};
        struct buf out = {0};
        mem_fail_at(n);
        int rc = vocab_unpack(&v, packed.data, packed.len, &e);
        if (!rc) rc = text_encode(v, "the <end>e\xcc\x81 the\xff", 16, NULL, &ids, &e);
        if (!rc) rc = text_decode(v, ids.ids, ids.n, false, &out, &e);
        mem_fail_at(0);
        if (rc) assert_int_equal(rc, ERR_IO);
        failures += rc != 0;
        good = rc ? 0 : good + 1;
        buf_release(&out);
        text_ids_release(&ids);
        vocab_free(v);
    }
    assert_true(failures > 10);
    buf_release(&packed);
    vocab_free(whole);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small),
        cmocka_unit_test(test_lost_bytes),
        cmocka_unit_test(test_added_flags),
        cmocka_unit_test(test_longest_added),
        cmocka_unit_test(test_normalised_added),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_pack),
        cmocka_unit_test(test_pinned_layout),
        cmocka_unit_test(test_pinned_ends),
        cmocka_unit_test(test_ends),
        cmocka_unit_test(test_identity),
        cmocka_unit_test(test_hostile_bytes),
        cmocka_unit_test(test_prune),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
