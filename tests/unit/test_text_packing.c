/*
 * Tests of lib/text: documents separated by a line or in files of their own, and packs of documents, compared with
 * plain twins: splitting the whole text at once, and best-fit decreasing by looking at every pack.
 */
#include <stdlib.h>

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

/* ---- inputs and sequences ---- */

#define MOST_TEXTS 4

struct rig {
    const unsigned char *texts[MOST_TEXTS];
    size_t lengths[MOST_TEXTS], n_texts, text, at;
    struct rng pieces;
    struct buf tokens, lens, mask; /* u32, u32, u8 */
};

static int read_text(void *ctx, void *dst, size_t n, size_t *got, struct err *e) {
    struct rig *r = ctx;
    size_t left = r->lengths[r->text] - r->at, k = 1 + rng_below(&r->pieces, 50);
    (void)e;
    *got = k < n ? k : n;
    if (*got > left) *got = left;
    memcpy(dst, r->texts[r->text] + r->at, *got);
    r->at += *got;
    return 0;
}

static int next_text(void *ctx, bool *more, struct err *e) {
    struct rig *r = ctx;
    (void)e;
    *more = ++r->text < r->n_texts;
    r->at = 0;
    return 0;
}

static int take(void *ctx, const struct corpus_batch *b, struct err *e) {
    struct rig *r = ctx;
    assert_false(b->continues);
    assert_int_equal(b->first_seq, r->lens.len / 4);
    assert_int_equal(buf_append(&r->tokens, b->tokens, b->n_positions * 4, e), 0);
    assert_int_equal(buf_append(&r->lens, b->lengths, b->n_seqs * 4, e), 0);
    return b->mask ? buf_append(&r->mask, b->mask, b->n_positions, e) : 0;
}

static void release(struct rig *r) {
    buf_release(&r->tokens);
    buf_release(&r->lens);
    buf_release(&r->mask);
}

static void add_text(struct rig *r, const void *text, size_t n) {
    r->texts[r->n_texts] = text;
    r->lengths[r->n_texts++] = n;
}

static struct corpus_totals encode(struct rig *r, const struct corpus_options *o) {
    struct corpus_totals totals;
    struct err e = {0};
    if (corpus_encode(vocab, o, read_text, take, r, &totals, &e)) fail_msg("%s", e.msg);
    return totals;
}

static void assert_same(const struct rig *a, const struct rig *b) {
    assert_int_equal(a->lens.len, b->lens.len);
    assert_int_equal(a->tokens.len, b->tokens.len);
    if (a->lens.len) assert_memory_equal(a->lens.data, b->lens.data, a->lens.len);
    if (a->tokens.len) assert_memory_equal(a->tokens.data, b->tokens.data, a->tokens.len);
}

/* The definition: the tokens of each document are a sequence, unless it has none. */
static void define(struct rig *r, const unsigned char *text, size_t n) {
    struct err e = {0};
    struct text_ids ids = must_encode(vocab, text, n, NULL);
    uint32_t len = (uint32_t)ids.n;
    if (len) assert_int_equal(buf_append(&r->tokens, ids.ids, 4 * ids.n, &e) | buf_append(&r->lens, &len, 4, &e), 0);
    text_ids_release(&ids);
}

/* ---- documents separated by a line ---- */

static size_t without_line_end(const unsigned char *text, size_t from, size_t n) {
    if (n == from || text[n - 1] != '\n') return n;
    return n - 1 > from && text[n - 2] == '\r' ? n - 2 : n - 1;
}

static void define_separated(struct rig *r, const unsigned char *text, size_t n, const char *separator) {
    size_t from = 0;
    for (size_t line = 0, end; line < n; line = end + 1) {
        const unsigned char *nl = memchr(text + line, '\n', n - line);
        end = nl ? (size_t)(nl - text) : n;
        size_t length = end - line;
        if (length && text[end - 1] == '\r') length--;
        if (length != strlen(separator) || memcmp(text + line, separator, length) != 0) continue;
        define(r, text + from, without_line_end(text, from, line) - from);
        from = end < n ? end + 1 : n;
    }
    define(r, text + from, n - from);
}

static void test_separated(void **state) {
    static const char *const parts[] = {"a",    " word", "=",      "==",         "==\n", "\n",
                                        "\r\n", "\r",    "\n==\n", "\r\n==\r\n", "  ",   "1"};
    struct rng random = rng_init(21, 0);
    (void)state;
    for (int i = 0; i < 3000; i++) {
        unsigned char text[400];
        size_t n = 0;
        for (size_t k = rng_below(&random, 60); k-- > 0;) {
            const char *part = parts[rng_below(&random, COUNT_OF(parts))];
            memcpy(text + n, part, strlen(part));
            n += strlen(part);
        }
        struct corpus_options o = {.documents = CORPUS_SEPARATED,
                                   .separator = i % 3 ? "==" : "=",
                                   .batch_tokens = 1000,
                                   .window = 1 + (uint32_t)rng_below(&random, i % 2 ? 8 : 200)};
        struct rig got = {.pieces = rng_init((uint64_t)i, 1)}, expected = {0};
        add_text(&got, text, n);
        encode(&got, &o);
        define_separated(&expected, text, n, o.separator);
        assert_same(&got, &expected);
        release(&got);
        release(&expected);
    }
}

/* ---- several inputs ---- */

static void test_several_inputs(void **state) {
    static const char *const texts[] = {"one\ntwo", "\xef\xbb\xbfthree\n", "", "four"};
    static const char *const lines[] = {"one", "two", "three", "four"};
    (void)state;
    for (int whole = 0; whole < 2; whole++) {
        struct corpus_options o = {
            .documents = whole ? CORPUS_WHOLE : CORPUS_LINES, .next = next_text, .batch_tokens = 100};
        struct rig got = {.pieces = rng_init(1, 1)}, expected = {0};
        for (size_t i = 0; i < COUNT_OF(texts); i++) add_text(&got, texts[i], strlen(texts[i]));
        struct corpus_totals t = encode(&got, &o);
        for (size_t i = 0; i < 4; i++) {
            const char *text = whole ? texts[i] + (i == 1 ? 3 : 0) : lines[i];
            define(&expected, (const unsigned char *)text, strlen(text));
        }
        assert_same(&got, &expected);
        assert_int_equal(t.input_bytes, 7 + 9 + 4);
        release(&got);
        release(&expected);
    }
}

static void test_line_of_a_later_input(void **state) {
    struct corpus_options o = {.documents = CORPUS_JSONL, .field = "text", .next = next_text, .batch_tokens = 100};
    struct rig r = {.pieces = rng_init(1, 1)};
    struct corpus_totals totals;
    struct err e = {0};
    (void)state;
    add_text(&r, "{\"text\":\"a\"}\n{\"text\":\"b\"}\n", 26);
    add_text(&r, "\nnonsense\n", 10);
    assert_int_equal(corpus_encode(vocab, &o, read_text, take, &r, &totals, &e), ERR_DATA);
    assert_memory_equal(e.msg, "line 2: ", 8);
    release(&r);
}

/* ---- packs ---- */

/* The number of packs by best-fit decreasing. It does not depend on which of several packs with equal space is
 * taken. */
static size_t plain_best_fit(const uint32_t *lengths, size_t n, uint32_t size) {
    size_t n_packs = 0;
    uint32_t *space = calloc(n + 1, sizeof *space);
    for (uint32_t length = size; length > 0; length--)
        for (size_t i = 0; i < n; i++) {
            if (lengths[i] != length) continue;
            size_t best = n_packs;
            for (size_t p = 0; p < n_packs; p++)
                if (space[p] >= length && (best == n_packs || space[p] < space[best])) best = p;
            if (best == n_packs) space[n_packs++] = size;
            space[best] -= length;
        }
    free(space);
    return n_packs;
}

/* Counts packs as a reader finds them. */
static size_t count_packs(const struct rig *r, uint32_t size) {
    const uint32_t *lengths = (const void *)r->lens.data;
    uint64_t sum = 0;
    size_t n = 0;
    for (size_t i = 0; i < r->lens.len / 4; i++) {
        assert_true(lengths[i] <= size);
        bool begins = !sum || sum + lengths[i] > size;
        n += begins;
        sum = begins ? lengths[i] : sum + lengths[i];
    }
    return n;
}

static int compare_text(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Sequences as text in sorted order, to compare them independently of their order. */
static char *describe(const struct rig *r) {
    const uint32_t *lengths = (const void *)r->lens.data, *ids = (const void *)r->tokens.data;
    size_t n = r->lens.len / 4, at = 0;
    char **each = calloc(n + 1, sizeof *each), *all = calloc(1, 16 * (r->tokens.len + n) + 1);
    for (size_t i = 0; i < n; i++) {
        char *p = each[i] = calloc(1, 16 * (size_t)lengths[i] + 1);
        for (uint32_t k = 0; k < lengths[i]; k++, at++)
            p += snprintf(p, 16, "%u.%u ", ids[at], r->mask.len ? r->mask.data[at] : 0);
    }
    qsort(each, n, sizeof *each, compare_text);
    char *to = all;
    for (size_t i = 0; i < n; i++) {
        to = stpcpy(to, each[i]);
        *to++ = '\n';
        free(each[i]);
    }
    free(each);
    return all;
}

static size_t random_lines(struct rng *random, unsigned char *text, size_t most) {
    size_t n = 0;
    while (n + 60 < most) {
        for (size_t k = rng_below(random, rng_below(random, 4) ? 8 : 50); k-- > 0;)
            text[n++] = (unsigned char)('0' + rng_below(random, 10));
        text[n++] = '\n';
    }
    return n;
}

/* Text in < and > is marked as a label. */
static int compose(void *ctx, const void *line, size_t n, struct buf *text, struct buf *spans, struct err *e) {
    struct corpus_span span = {n / 3, n / 2};
    (void)ctx;
    return buf_append(text, line, n, e) | buf_append(spans, &span, sizeof span, e);
}

static void test_packs(void **state) {
    static unsigned char text[6000];
    struct rng random = rng_init(22, 0);
    (void)state;
    for (int i = 0; i < 300; i++) {
        size_t n = random_lines(&random, text, 100 + rng_below(&random, i % 10 ? 600 : sizeof text - 100));
        struct corpus_options o = {.documents = i % 2 ? CORPUS_CHAT : CORPUS_LINES,
                                   .compose = compose,
                                   .mask = i % 2,
                                   .pack = 2 + (uint32_t)rng_below(&random, 40),
                                   .packing = PACKING_NEXT_FIT,
                                   .bos = i / 2 % 2,
                                   .eos = i / 4 % 2 ? EOS_AFTER : EOS_NEVER,
                                   .max_tokens = i % 7 ? 0 : 50,
                                   .batch_tokens = 1 + (uint32_t)rng_below(&random, 100)};
        struct rig in_order = {.pieces = rng_init(1, 1)}, fit = {.pieces = rng_init(1, 2)},
                   pooled = {.pieces = rng_init(1, 3)};
        add_text(&in_order, text, n);
        add_text(&fit, text, n);
        add_text(&pooled, text, n);
        struct corpus_totals t = encode(&in_order, &o);
        assert_int_equal(t.packs, count_packs(&in_order, o.pack));
        char *expected = describe(&in_order);

        o.packing = PACKING_BEST_FIT;
        struct corpus_totals best = encode(&fit, &o);
        assert_int_equal(best.packs, count_packs(&fit, o.pack));
        assert_true(best.packs <= t.packs);
        assert_int_equal(best.tokens, t.tokens);
        assert_int_equal(best.sequences, fit.lens.len / 4);
        size_t n_seqs = in_order.lens.len / 4;
        const uint32_t *was = (const void *)in_order.lens.data;
        assert_int_equal(plain_best_fit(was, n_seqs, o.pack), best.packs);
        char *got = describe(&fit);
        assert_string_equal(got, expected);

        o.pool = 1 + (uint32_t)rng_below(&random, 200);
        struct corpus_totals small = encode(&pooled, &o);
        assert_int_equal(small.packs, count_packs(&pooled, o.pack));
        char *again = describe(&pooled);
        assert_string_equal(again, expected);
        free(again);
        free(got);
        free(expected);
        release(&in_order);
        release(&fit);
        release(&pooled);
    }
}

/* Figure 1 of the paper: documents of 14, 7, 5, 2 and 3 tokens in sequences of 8 take 4 sequences and cut one
 * document. */
static void test_figure_of_the_paper(void **state) {
    static const char text[] = "12345678901234\n1234567\n12345\n12\n123\n"; /* each digit is a token */
    struct corpus_options o = {.documents = CORPUS_LINES, .pack = 8, .batch_tokens = 100};
    struct rig r = {.pieces = rng_init(1, 1)};
    const uint32_t expected[] = {8, 7, 6, 2, 5, 3};
    (void)state;
    add_text(&r, text, sizeof text - 1);
    assert_int_equal(encode(&r, &o).packs, 4);
    assert_int_equal(r.lens.len, sizeof expected);
    assert_memory_equal(r.lens.data, expected, sizeof expected);
    release(&r);
}

static void test_refused(void **state) {
    static const struct {
        struct corpus_options o;
        const char *says;
    } cases[] = {
        {{.batch_tokens = 4, .pack = 4, .context = 4},
         "documents are either joined into contexts or packed beside each other"},
        {{.batch_tokens = 4, .pack = 1, .bos = true}, "a pack of 1 token leaves no room after BOS"},
        {{.batch_tokens = 4, .pack = CORPUS_MAX_BATCH + 1}, "a batch, a context or a pack has 1 to 16777216 tokens"},
        {{.batch_tokens = 4, .documents = CORPUS_SEPARATED, .separator = ""},
         "a separator is a line: it is not empty, and has no line end in it"},
        {{.batch_tokens = 4, .documents = CORPUS_SEPARATED, .separator = "a\n"},
         "a separator is a line: it is not empty, and has no line end in it"},
    };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct rig r = {0};
        struct corpus_totals t;
        struct err e = {0};
        assert_int_equal(corpus_encode(vocab, &cases[i].o, read_text, take, &r, &t, &e), ERR_USAGE);
        assert_string_equal(e.msg, cases[i].says);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_separated),
        cmocka_unit_test(test_several_inputs),
        cmocka_unit_test(test_line_of_a_later_input),
        cmocka_unit_test(test_packs),
        cmocka_unit_test(test_figure_of_the_paper),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
