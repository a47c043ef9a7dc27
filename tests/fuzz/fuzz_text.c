/*
 * Fuzzes text (max_len 512: it is encoded about fifty times), with a small vocabulary for each of the four
 * pre-tokenizers: it must decode to itself, a cut reported as safe must be safe, compiled and interpreted expressions
 * must agree, and a corpus in small windows must equal the whole text. Cuts and corpora are tested with each of the
 * other kinds as well.
 */
#include "lib/text/text_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool holds) {
    if (!holds) abort();
}

/* ---- 256 bytes, a few merges, added tokens of every sort ---- */

enum { N_MERGES = 12, N_ADDED = 5, N_TOKENS = 256 + N_MERGES + N_ADDED };

static struct vocab *make_vocab(enum text_pre pre) {
    static const char *const merges[N_MERGES][2] = {{" ", "t"}, {"h", "e"},       {" t", "he"}, {"i", "n"},
                                                    {"e", "r"}, {"\n", "\n"},     {" ", " "},   {"  ", "  "},
                                                    {"'", "s"}, {"\xc3", "\xa9"}, {"1", "2"},   {".", "."}};
    static const struct token added[N_ADDED] = {
        {(const unsigned char *)"<end>", 5, TOKEN_ADDED | TOKEN_SPECIAL, 0},
        {(const unsigned char *)"<end>x", 6, TOKEN_ADDED | TOKEN_LSTRIP, 0},
        {(const unsigned char *)"<r>", 3, TOKEN_ADDED | TOKEN_RSTRIP, 0},
        {(const unsigned char *)"the", 3, TOKEN_ADDED | TOKEN_SINGLE_WORD, 0},
        {(const unsigned char *)"\xc3\xa9 a", 4, TOKEN_ADDED | TOKEN_NORMALIZED, 0},
    };
    static unsigned char bytes[256];
    static char joined[N_MERGES][8];
    struct token tokens[N_TOKENS] = {{0}};
    struct merge rows[N_MERGES];
    struct vocab spec = {.tokens = tokens, .merges = rows, .pre = pre, .nfc = pre == PRE_QWEN2}, *v = NULL;
    struct err e;
    spec.ignore_merges = pre == PRE_LLAMA_BPE;
    spec.bos = spec.eos = spec.pad = spec.unk = TOKEN_NONE;
    for (unsigned b = 0; b < 256; b++) {
        bytes[b] = (unsigned char)b;
        tokens[b] = (struct token){.bytes = &bytes[b], .n_bytes = 1};
    }
    spec.n_tokens = 256;
    for (unsigned i = 0; i < N_MERGES; i++, spec.n_merges++) {
        vocab_free(v);
        must(vocab_new(&v, &spec, &e) == 0);
        int n = snprintf(joined[i], sizeof joined[i], "%s%s", merges[i][0], merges[i][1]);
        rows[i] = (struct merge){vocab_find(v, merges[i][0], strlen(merges[i][0])),
                                 vocab_find(v, merges[i][1], strlen(merges[i][1])), spec.n_tokens};
        tokens[spec.n_tokens++] = (struct token){.bytes = (unsigned char *)joined[i], .n_bytes = (uint32_t)n};
    }
    for (unsigned i = 0; i < N_ADDED; i++) tokens[spec.n_tokens++] = added[i];
    vocab_free(v);
    must(vocab_new(&v, &spec, &e) == 0);
    return v;
}

/* BPE over characters and the unigram model, with byte fallback and the spaces that sentencepiece adds; WordPiece. */
static struct vocab *make_pieces(enum text_kind kind) {
    static const char *const pieces[] = {"\xe2\x96\x81",
                                         "t",
                                         "h",
                                         "e",
                                         "\xe2\x96\x81t",
                                         "he",
                                         "\xe2\x96\x81the",
                                         "a",
                                         "##a",
                                         "##e",
                                         "\xc3\xa9",
                                         "in",
                                         "\n",
                                         "the",
                                         "\xe2\x96\x81\xe2\x96\x81",
                                         "1",
                                         "2",
                                         "12",
                                         "##he"};
    static const struct text_step spm[] = {
        {.op = NORM_PREPEND, .a = (const unsigned char *)METASPACE, .n_a = METASPACE_BYTES},
        {.op = NORM_REPLACE,
         .a = (const unsigned char *)" ",
         .n_a = 1,
         .b = (const unsigned char *)METASPACE,
         .n_b = 3},
    };
    static const struct text_step bert[] = {
        {.op = NORM_BERT, .arg = 15},
        {.op = WORDS_BERT},
        {.op = MODEL_WORDPIECE, .arg = 100, .a = (const unsigned char *)"##", .n_a = 2},
    };
    static char bytes[256][8];
    struct token tokens[256 + COUNT_OF(pieces) + 2] = {{0}};
    struct vocab spec = {.kind = kind, .tokens = tokens, .pre = PRE_STEPS}, *v;
    struct err e;
    spec.bos = spec.eos = spec.pad = TOKEN_NONE;
    spec.steps = kind == TEXT_WORDPIECE ? bert : spm;
    spec.n_steps = kind == TEXT_WORDPIECE ? 3 : 2;
    spec.model_flags = MODEL_FUSE_UNK | (kind == TEXT_WORDPIECE ? 0 : MODEL_BYTE_FALLBACK);
    for (unsigned b = 0; b < 256; b++) {
        snprintf(bytes[b], sizeof bytes[b], "<0x%02X>", b);
        tokens[spec.n_tokens++] = (struct token){(const unsigned char *)bytes[b], 6, 0, 0};
    }
    for (unsigned i = 0; i < COUNT_OF(pieces); i++)
        tokens[spec.n_tokens++] =
            (struct token){(const unsigned char *)pieces[i], (uint32_t)strlen(pieces[i]), 0, -1.0f - (float)i};
    spec.unk = spec.n_tokens;
    tokens[spec.n_tokens++] = (struct token){(const unsigned char *)"<unk>", 5, TOKEN_ADDED | TOKEN_SPECIAL, 0};
    tokens[spec.n_tokens++] = (struct token){(const unsigned char *)"<end>x", 6, TOKEN_ADDED | TOKEN_RSTRIP, 0};
    must(vocab_new(&v, &spec, &e) == 0);
    return v;
}

/* ---- properties ---- */

static void check_same(const struct text_ids *a, const struct text_ids *b) {
    must(a->n == b->n && (a->n == 0 || !memcmp(a->ids, b->ids, a->n * sizeof *a->ids)));
}

/* With added tokens that strip white space, the text must come back up to white space. */
static size_t visible(const unsigned char *text, size_t n, unsigned char *out) {
    size_t k = 0;
    for (size_t i = 0; i < n;) {
        size_t space = space_at_start(text + i, n - i);
        if (!space) out[k++] = text[i];
        i += space ? space : 1;
    }
    return k;
}

static void check_round_trip(const struct vocab *v, const uint8_t *text, size_t n, const struct text_ids *ids) {
    struct err e;
    struct buf out = {0};
    must(text_decode(v, ids->ids, ids->n, false, &out, &e) == 0 && ids->n_lost == 0);
    unsigned char *a = mem_alloc(n, &e), *b = mem_alloc(out.len, &e);
    must(a && b);
    size_t k = visible(text, n, a);
    must(visible(out.data, out.len, b) == k && memcmp(a, b, k) == 0);
    mem_free(a);
    mem_free(b);
    buf_release(&out);
}

struct window {
    const uint8_t *text;
    size_t n, at;
    struct text_ids ids;
};

static int read_some(void *ctx, void *dst, size_t n, size_t *got, struct err *e) {
    struct window *w = ctx;
    (void)e;
    *got = n < w->n - w->at ? n : w->n - w->at;
    if (*got) memcpy(dst, w->text + w->at, *got);
    w->at += *got;
    return 0;
}

static int take_batch(void *ctx, const struct corpus_batch *b, struct err *e) {
    struct window *w = ctx;
    int rc = text_ids_reserve(&w->ids, b->n_positions, e);
    if (rc) return rc;
    memcpy(w->ids.ids + w->ids.n, b->tokens, b->n_positions * sizeof *b->tokens);
    w->ids.n += b->n_positions;
    return 0;
}

static void check_corpus(const struct vocab *v, const uint8_t *text, size_t n, uint32_t window) {
    struct err e;
    struct corpus_options o = {.context = 5, .batch_tokens = 9, .window = window};
    struct corpus_totals totals;
    struct window w = {.text = text, .n = n};
    struct text_ids whole = {0};
    must(text_encode(v, text, n, NULL, &whole, &e) == 0);
    must(corpus_encode(v, &o, read_some, take_batch, &w, &totals, &e) == 0 && totals.tokens == whole.n);
    check_same(&whole, &w.ids);
    text_ids_release(&whole);
    text_ids_release(&w.ids);
}

/* Both ways to run an expression, created once: compiling takes longer than matching. */
struct words {
    struct pretokenizer *slow;
    struct pre_state *fast_state, *slow_state;
};

static void check_words(const struct vocab *v, struct words *w, const uint8_t *text, size_t n) {
    struct err e;
    if (!w->slow) {
        must(pretokenizer_new(&w->slow, v->pre, &e) == 0);
        pretokenizer_interpret(w->slow);
        must(pre_state_new(&w->fast_state, v->index->pre, &e) == 0);
        must(pre_state_new(&w->slow_state, w->slow, &e) == 0);
    }
    n = utf8_valid_prefix(text, n);
    for (size_t at = 0, end = 0, slow_end = 0; at < n; at = end) {
        must(pretokenizer_next(v->index->pre, w->fast_state, text, n, at, &end, &e) == 0);
        must(pretokenizer_match(w->slow, w->slow_state, text, n, at, &slow_end, &e) == 0);
        must(end == slow_end && end > at && end <= n);
    }
}

static void check_text(const struct vocab *v, const uint8_t *text, size_t n, bool plain) {
    struct err e;
    struct text_encode_options o = {.no_normalise = true, .plain_specials = plain};
    struct text_ids whole = {0}, parts = {0};
    must(text_encode(v, text, n, &o, &whole, &e) == 0);
    check_round_trip(v, text, n, &whole);
    for (size_t cut = n; cut > 0 && n - cut < 40; cut--) {
        size_t safe = text_safe_cut(v, text, cut);
        parts.n = 0;
        must(safe < cut && text_encode(v, text, safe, &o, &parts, &e) == 0);
        must(text_encode(v, text + safe, n - safe, &o, &parts, &e) == 0);
        check_same(&whole, &parts);
        if (safe < cut) cut = safe + 1;
    }
    text_ids_release(&whole);
    text_ids_release(&parts);
}

/* Cuts reported as safe must be safe, with `continues`. */
static void check_cuts(const struct vocab *v, const uint8_t *text, size_t n) {
    struct err e;
    struct text_encode_options first = {0}, second = {.continues = true};
    struct text_ids whole = {0}, parts = {0};
    struct buf back = {0};
    must(text_encode(v, text, n, &first, &whole, &e) == 0);
    must(text_decode(v, whole.ids, whole.n, false, &back, &e) == 0);
    for (size_t limit = n, cut; (cut = text_safe_cut(v, text, limit)) > 0 && n - cut < 400; limit = cut) {
        parts.n = 0;
        must(cut < limit && text_encode(v, text, cut, &first, &parts, &e) == 0);
        must(text_encode(v, text + cut, n - cut, &second, &parts, &e) == 0);
        check_same(&whole, &parts);
    }
    buf_release(&back);
    text_ids_release(&whole);
    text_ids_release(&parts);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct vocab *vocabs[4], *pieces[3];
    static struct words words[4];
    parallel_set_threads(1); /* windows of a few bytes are not worth threads */
    for (unsigned i = 0; i < 4; i++) {
        if (!vocabs[i]) vocabs[i] = make_vocab((enum text_pre)(i + 1));
        check_text(vocabs[i], data, size, size % 2);
        check_words(vocabs[i], &words[i], data, size);
        check_corpus(vocabs[i], data, size, 1 + (uint32_t)(size % 64));
    }
    for (unsigned i = 0; i < 3; i++) {
        if (!pieces[i]) pieces[i] = make_pieces((enum text_kind)(TEXT_CHAR_BPE + i));
        check_cuts(pieces[i], data, size);
        check_corpus(pieces[i], data, size, 1 + (uint32_t)(size % 64));
    }
    return 0;
}
