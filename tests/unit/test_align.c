/* Tests of lib/align: alignment against a plain one over strings (tests/reference/make_realign.py), and edge cases. */
#include <stdio.h>

#include "lib/align/align_internal.h"
#include "tests/unit/knowledge_samples.h"

#define MOST 128 /* tokens of a vocabulary or of a text in the cases */

/* ---- a vocabulary of given texts --------------------------------------------------------------------------------- */

struct texts {
    size_t n;
    unsigned char bytes[MOST][8];
    struct token tokens[MOST];
};

/* Token i is texts[i]. "<...>" are control tokens: the first is BOS, the second EOS. */
static struct vocab *vocab_of(struct texts *t) {
    struct err e;
    struct vocab *v, spec = {.n_tokens = (uint32_t)t->n,
                             .tokens = t->tokens,
                             .pre = PRE_GPT2,
                             .bos = TOKEN_NONE,
                             .eos = TOKEN_NONE,
                             .pad = TOKEN_NONE,
                             .unk = TOKEN_NONE};
    for (uint32_t i = 0; i < t->n; i++) {
        const char *text = (const char *)t->bytes[i];
        bool control = text[0] == '<' && text[1];
        t->tokens[i] =
            (struct token){t->bytes[i], (uint32_t)strlen(text), control ? TOKEN_SPECIAL | TOKEN_ADDED : 0, 0};
        if (control && spec.bos == TOKEN_NONE)
            spec.bos = i;
        else if (control)
            spec.eos = i;
    }
    OK(vocab_new(&v, &spec, &e));
    return v;
}

static struct texts texts_of(const char *const *all, size_t n) {
    struct texts t = {.n = n};
    for (size_t i = 0; i < n; i++) snprintf((char *)t.bytes[i], sizeof t.bytes[i], "%s", all[i]);
    return t;
}

/* ---- running an alignment ---------------------------------------------------------------------------------------- */

struct run {
    struct vocab *teacher, *student;
    struct sample s;        /* the teacher's tokens and logits */
    const char *encoding;   /* of the teacher's knowledge */
    const uint32_t *tokens; /* the student's, or NULL */
    uint32_t *lengths;      /* [n_seqs] of the student's tokens */
    size_t n_seqs, n_tokens;
    uint32_t entries;
    struct align_counts counts;
};

static void no_watch(void *ctx) {
    (void)ctx;
}

/* A stream of the student's tokens. */
static int tokens_of(const struct run *x) {
    struct err e;
    struct stream_writer *w;
    cJSON *meta = cJSON_CreateObject();
    struct knowledge_format f = {.temperature = 1, .vocab_size = x->student->n_unpadded};
    struct stream_batch head = {.n_positions = x->n_tokens, .n_seqs = (uint32_t)x->n_seqs, .n_tensors = 2};
    int fd = memory_file();
    OK(stream_writer_open(&w, fd, "tokens", &(struct stream_write_options){0}, &e));
    OK(knowledge_meta_put(meta, &f, &e));
    OK(stream_write_meta(w, meta, &e));
    OK(batch_write(w, &head, x->tokens, x->lengths, &e));
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    cJSON_Delete(meta);
    lseek(fd, 0, SEEK_SET);
    return fd;
}

static int realign(struct run *x, struct knowledge_rows *k, struct knowledge_format *out, struct err *why) {
    struct knowledge_format from = format_of(x->encoding, x->s.vocab), is, of_tokens;
    struct stream_reader *r, *t = NULL;
    struct encoding to = {.fd = -1};
    struct align *a = NULL;
    struct err e;
    int fd, given = x->tokens ? tokens_of(x) : -1;
    digest_text(x->teacher->digest, from.vocab);
    OK(encode_sample(&x->s, &from, 1, 100, 7, &fd, &e));
    OK(stream_reader_open(&r, fd, "knowledge", STREAM_ANY, &e));
    OK(knowledge_meta_get(stream_reader_meta(r), &is, &e));
    if (x->tokens) {
        OK(stream_reader_open(&t, given, "tokens", STREAM_ANY, &e));
        OK(knowledge_meta_get(stream_reader_meta(t), &of_tokens, &e));
    }
    struct align_options o = {x->teacher, x->student, &is, x->entries};
    int rc = align_format(&o, out, why);
    if (!rc) rc = align_new(&a, &o, why);
    if (!rc) {
        rc = encoding_begin(&to, out, 0, why);
        if (!rc) rc = align_read(a, r, t ? &(struct align_tokens){t, &of_tokens} : NULL, to.k, no_watch, NULL, why);
        rc = encoding_end(&to, rc, why);
        x->counts = align_counts(a);
        if (rc)
            close(to.fd);
        else
            OK(decode_all(to.fd, k, out, &e));
    }
    align_free(a);
    stream_reader_free(r);
    stream_reader_free(t);
    close(fd);
    if (given >= 0) close(given);
    return rc;
}

static struct knowledge_rows realigned(struct run *x) {
    struct knowledge_rows k = {0};
    struct knowledge_format f;
    struct err e;
    if (realign(x, &k, &f, &e)) fail_msg("%s", e.msg);
    assert_int_equal(f.encoding, KNOW_GHOST);
    return k;
}

/* ---- cases of the reference -------------------------------------------------------------------------------------- */

static void read_texts(FILE *f, struct texts *t, size_t n) {
    char hex[32];
    *t = (struct texts){.n = n};
    for (size_t i = 0; i < n; i++) {
        unsigned byte;
        assert_int_equal(fscanf(f, "%31s", hex), 1);
        for (size_t c = 0; hex[2 * c] && sscanf(hex + 2 * c, "%2x", &byte) == 1; c++)
            t->bytes[i][c] = (unsigned char)byte;
    }
}

static void read_ids(FILE *f, uint32_t *ids, size_t n) {
    for (size_t i = 0; i < n; i++) assert_int_equal(fscanf(f, "%u", &ids[i]), 1);
}

static void check_rows(FILE *f, const struct knowledge_rows *k, size_t n) {
    for (size_t r = 0; r < n; r++) {
        size_t entries;
        uint32_t id;
        double p;
        assert_int_equal(fscanf(f, "%zu", &entries), 1);
        assert_int_equal(k->offset[r + 1] - k->offset[r], entries);
        for (uint64_t t = k->offset[r]; t < k->offset[r + 1]; t++) {
            assert_int_equal(fscanf(f, "%u %lf", &id, &p), 2);
            assert_int_equal(k->ids[t], id);
            if (fabs(log(k->probs[t]) - log(p)) > 0x1.02p-10 * fmax(1, -log(p)))
                fail_msg("row %zu, token %u: %g, expected %g", r, id, k->probs[t], p);
        }
    }
}

static bool check_case(FILE *f, const char *encoding) {
    size_t na, nb, n, m;
    struct run x = {.encoding = encoding, .n_seqs = 1};
    struct texts ta, tb;
    double mass;
    if (fscanf(f, "%zu %zu %zu %zu %u %lf", &na, &nb, &n, &m, &x.entries, &mass) != 6) return false;
    uint32_t length = (uint32_t)n, other = (uint32_t)m;
    uint32_t *a = malloc(n * sizeof *a), *b = malloc(m * sizeof *b);
    float *logits = malloc(n * na * sizeof *logits);
    read_texts(f, &ta, na);
    read_texts(f, &tb, nb);
    read_ids(f, a, n);
    read_ids(f, b, m);
    for (size_t i = 0; i < n * na; i++) assert_int_equal(fscanf(f, "%f", &logits[i]), 1);
    x.teacher = vocab_of(&ta);
    x.student = vocab_of(&tb);
    x.s = (struct sample){1, n, na, &length, a, logits};
    x.tokens = b;
    x.lengths = &other;
    x.n_tokens = m;
    struct knowledge_rows k = realigned(&x);
    assert_int_equal(k.n_positions, m);
    assert_memory_equal(k.tokens, b, m * sizeof *b);
    check_rows(f, &k, m);
    if (fabs(x.counts.mass - mass) > 1e-3 * mass) fail_msg("mass %g, expected %g", x.counts.mass, mass);
    knowledge_rows_release(&k);
    vocab_free(x.teacher);
    vocab_free(x.student);
    free(a);
    free(b);
    free(logits);
    return true;
}

static void rows_are_those_of_the_reference(void **state) {
    (void)state;
    FILE *f = fopen("tests/golden/realign/cases.txt", "r");
    size_t n = 0;
    assert_non_null(f);
    while (check_case(f, "dense")) n++;
    assert_int_equal(n, 6);
    fclose(f);
}

/* ---- edge cases -------------------------------------------------------------------------------------------------- */

static const char *const first_texts[] = {"<s>", "</s>", "a", "b", "c", " ", "ab", " a", "abc", "bc"};
static const char *const other_texts[] = {"<b>", "<e>", "a", "b", "c", " ", "ca", "bc"};

static struct run run_of(struct texts *a, struct texts *b, const uint32_t *tokens, uint32_t *length) {
    struct rng r = rng_init(3, 3);
    struct err e;
    *a = texts_of(first_texts, COUNT_OF(first_texts));
    *b = texts_of(other_texts, COUNT_OF(other_texts));
    struct run x = {.teacher = vocab_of(a), .student = vocab_of(b), .encoding = "dense", .entries = 50};
    x.s = (struct sample){1, *length, a->n, length, (uint32_t *)tokens, mem_array(*length * a->n, sizeof(float), &e)};
    for (size_t i = 0; i < *length * a->n; i++) x.s.logits[i] = (float)rng_normal(&r);
    return x;
}

static void run_free(struct run *x) {
    vocab_free(x->teacher);
    vocab_free(x->student);
    mem_free(x->s.logits);
}

/* With equal vocabularies every position is aligned, and entries are the teacher's own. */
static void equal_vocabularies_change_nothing(void **state) {
    (void)state;
    struct texts a, b;
    uint32_t length = 6;
    struct run x = run_of(&a, &b, (uint32_t[]){0, 6, 4, 7, 9, 1}, &length);
    vocab_free(x.student);
    x.student = vocab_of(&a);
    x.entries = 4;
    x.tokens = x.s.tokens; /* encoding anew with a vocabulary without merges would give other tokens */
    x.lengths = &length;
    x.n_seqs = 1;
    x.n_tokens = length;
    struct knowledge_rows k = realigned(&x), want;
    struct knowledge_format f = format_of("ghost:4", a.n);
    struct err e;
    int fd;
    OK(encode_sample(&x.s, &f, 1, 100, 7, &fd, &e));
    OK(decode_all(fd, &want, &f, &e));
    assert_int_equal(x.counts.aligned, x.counts.positions);
    assert_int_equal(x.counts.chained, 0);
    assert_memory_equal(k.tokens, x.s.tokens, length * sizeof *k.tokens);
    assert_memory_equal(k.offset, want.offset, (length + 1) * sizeof *k.offset);
    assert_memory_equal(k.ids, want.ids, want.offset[length] * sizeof *k.ids);
    for (uint64_t i = 0; i < want.offset[length]; i++)
        assert_true(fabs(log(k.probs[i]) - log(want.probs[i])) <= 0x1.02p-10 * fmax(1, -log(want.probs[i])));
    knowledge_rows_release(&k);
    knowledge_rows_release(&want);
    run_free(&x);
}

/* The teacher has "ab" and "c", the student "a" and "bc": after "a" nothing is known. Control tokens are mapped. */
static void the_text_is_encoded_anew(void **state) {
    (void)state;
    struct texts a, b;
    uint32_t length = 6;
    struct run x = run_of(&a, &b, (uint32_t[]){0, 6, 4, 1, 0, 2}, &length); /* <s> ab c </s> <s> a */
    struct knowledge_rows k = realigned(&x);
    assert_int_equal(k.tokens[0], 0);
    assert_int_equal(k.tokens[k.n_positions - 3], 1);
    assert_int_equal(k.tokens[k.n_positions - 2], 0);
    assert_int_equal(k.tokens[k.n_positions - 1], 2);
    assert_int_equal(k.n_positions, 7);             /* no merges in this vocabulary: a, b, c */
    assert_int_equal(k.offset[2] - k.offset[1], 0); /* after "a" */
    for (size_t r = 0; r < 7; r++)
        if (r != 1) assert_true(k.offset[r + 1] > k.offset[r]);
    assert_int_equal(x.counts.aligned, 6);
    /* after </s>, the teacher's own distribution there, with <s> mapped to <b> and " " to " " */
    double p[10];
    softmax64(p, x.s.logits + 3 * a.n, a.n, 1);
    for (uint64_t t = k.offset[4]; t < k.offset[5]; t++)
        if (k.ids[t] == 0) assert_true(fabs(k.probs[t] / p[0] - 1) < 2e-3);
    knowledge_rows_release(&k);
    run_free(&x);
}

static void rows_without_entries_teach_nothing(void **state) {
    (void)state;
    struct texts a, b;
    uint32_t length = 3;
    struct run x = run_of(&a, &b, (uint32_t[]){6, 4, 2}, &length);
    struct knowledge_rows k = realigned(&x);
    struct knowledge_format f = format_of("ghost:8", b.n);
    struct kernel_target target;
    struct kernel_loss how = {.temperature = 1, .kl_weight = 1};
    float logits[8] = {1, -2, 3, 0.5f, 0, 0, 2, 1}, dx[8];
    double kl;
    assert_int_equal(k.offset[1], 0);
    knowledge_target(&k, &f, 1, 0, 1, NULL, &target);
    kernel_distill_loss(&how, &target, NULL, kernel_f32(logits), 1, 8, &kl, NULL, kernel_f32(dx));
    assert_true(fabs(kl) < 1e-6);
    for (size_t i = 0; i < 8; i++) assert_true(fabs(dx[i]) < 1e-6);
    knowledge_rows_release(&k);
    run_free(&x);
}

static void check_refused(struct run *x, const char *says) {
    struct knowledge_rows k = {0};
    struct knowledge_format f;
    struct err e;
    assert_int_equal(realign(x, &k, &f, &e), ERR_DATA);
    if (!strstr(e.msg, says)) fail_msg("%s: expected %s", e.msg, says);
}

static void what_does_not_fit_is_refused(void **state) {
    (void)state;
    struct texts a, b;
    uint32_t length = 4, others[2] = {4, 1};
    struct run x = run_of(&a, &b, (uint32_t[]){2, 3, 4, 2}, &length);
    x.lengths = others;
    x.n_seqs = 1;
    x.n_tokens = 4;
    x.tokens = (uint32_t[]){2, 3, 3, 2, 2};
    check_refused(&x, "sequence 0: the texts differ from byte 2 on");
    x.tokens = (uint32_t[]){2, 3, 4, 2, 2};
    others[0] = 3;
    x.n_tokens = 3;
    check_refused(&x, "the texts differ from byte 3 on, 4 bytes of the teacher's and 3");
    others[0] = 4;
    x.n_tokens = 5;
    x.n_seqs = 2;
    check_refused(&x, "tokens has more sequences than knowledge");
    x.tokens = NULL;
    x.encoding = "sample:5";
    check_refused(&x, "does not tell how much probability is left");
    run_free(&x);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_those_of_the_reference), cmocka_unit_test(equal_vocabularies_change_nothing),
        cmocka_unit_test(the_text_is_encoded_anew),        cmocka_unit_test(rows_without_entries_teach_nothing),
        cmocka_unit_test(what_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
