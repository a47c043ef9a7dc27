/*
 * Small tokenizers of every family (tests/golden/tokenizers/families) against Hugging Face's tokenizers and
 * sentencepiece: ids and decoded text of every golden text, also after a round trip through a VOCB record, our
 * tokenizer.json and our GGUF.
 */
#include "lib/formats/formats_internal.h"
#include "tests/unit/formats_samples.h"
#include "tests/unit/text_samples.h"

#define N_SETTLED 14521
#define GROUP     16

static const char *const families[] = {
    "llama2.json",  "phi3.json",   "llama-class.json", "gemma.json",          "t5.json",    "xlmr.json",
    "albert.json",  "bert.json",   "bert-cased.json",  "roberta.json",        "opt.json",   "gpt-neox.json",
    "llama2.model", "gemma.model", "t5.model",         "unigram-bytes.model", "tiny.model",
};

static struct buf family_file(const char *name, const char *suffix) {
    char path[256];
    snprintf(path, sizeof path, TOKENIZERS "families/%s%s", name, suffix);
    if (strcmp(suffix, ".zst") == 0) return read_zst(path);
    struct err e = {0};
    struct buf b = {0};
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s: cannot open", path);
    assert_int_equal(buf_reserve(&b, 1 << 16, &e), 0);
    b.len = fread(b.data, 1, 1 << 16, f);
    fclose(f);
    return b;
}

static bool is_model(const char *name) {
    return strstr(name, ".model") != NULL;
}

static struct vocab *load_family(const char *name) {
    struct err e = {0};
    struct buf text = family_file(name, ".zst");
    struct vocab *v = NULL;
    int rc;
    if (is_model(name)) {
        struct vocab spec;
        draft_init(&spec);
        rc = spm_read(&spec, (struct span){(const char *)text.data, text.len}, &e);
        if (!rc) rc = draft_finish(&spec, &v, &e);
        arena_release(&spec.memory);
    } else {
        rc = hf_tokenizer_read(&v, text.data, text.len, NULL, 0, &e);
    }
    if (rc) fail_msg("%s: %s", name, e.msg);
    buf_release(&text);
    return v;
}

/* CRC-32 as in zlib. */
static uint32_t crc(uint32_t sum, const void *data, size_t n) {
    const unsigned char *p = data;
    sum = ~sum;
    for (size_t i = 0; i < n; i++) {
        sum ^= p[i];
        for (int k = 0; k < 8; k++) sum = sum >> 1 ^ (sum & 1 ? 0xedb88320u : 0);
    }
    return ~sum;
}

static uint32_t counted(uint32_t sum, size_t n, const void *data, size_t bytes) {
    const unsigned char le[4] = {(unsigned char)n, (unsigned char)(n >> 8), (unsigned char)(n >> 16),
                                 (unsigned char)(n >> 24)};
    return crc(crc(sum, le, 4), data, bytes);
}

/* sentencepiece does not parse control tokens in a text. */
static struct text_encode_options options_of(const char *name) {
    return (struct text_encode_options){.plain_specials = is_model(name)};
}

static void check_family(const char *name, const struct golden_texts *texts) {
    struct err e = {0};
    struct vocab *v = load_family(name);
    struct buf sums = family_file(name, ".sums"), back = {0};
    const struct text_encode_options o = options_of(name);
    size_t groups = 0, bad_ids = 0, bad_text = 0;
    for (size_t at = 0; at < N_SETTLED; at += GROUP, groups++) {
        uint32_t ids_sum = 0, text_sum = 0;
        for (size_t i = at; i < at + GROUP && i < N_SETTLED; i++) {
            struct text_ids ids = must_encode(v, texts->text[i], texts->n_bytes[i], &o);
            back.len = 0;
            assert_int_equal(text_decode(v, ids.ids, ids.n, false, &back, &e), 0);
            ids_sum = counted(ids_sum, ids.n, ids.ids, ids.n * sizeof *ids.ids);
            text_sum = counted(text_sum, back.len, back.data, back.len);
            text_ids_release(&ids);
        }
        uint32_t want_ids = u32_at(&sums, 8 * groups), want_text = u32_at(&sums, 8 * groups + 4);
        bad_ids += want_ids && want_ids != ids_sum;
        bad_text += want_text && want_text != text_sum;
    }
    assert_int_equal(8 * groups, sums.len);
    if (bad_ids || bad_text)
        fail_msg("%s: of %zu groups of texts %zu have other ids, %zu decode otherwise", name, groups, bad_ids,
                 bad_text);
    buf_release(&back);
    buf_release(&sums);
    vocab_free(v);
}

static void test_reference(void **state) {
    (void)state;
    struct golden_texts texts = load_golden_texts();
    for (size_t i = 0; i < COUNT_OF(families); i++) check_family(families[i], &texts);
    free_golden_texts(&texts);
}

/* ---- the same tokenizer after a round trip ---- */

static void check_same(const char *name, const char *how, const struct vocab *a, const struct vocab *b,
                       const struct golden_texts *texts, size_t stride) {
    const struct text_encode_options o = options_of(name);
    struct err e = {0};
    struct buf x = {0}, y = {0};
    assert_int_equal(a->n_tokens, b->n_tokens);
    for (size_t i = 0; i < texts->n; i += stride) {
        struct text_ids p = must_encode(a, texts->text[i], texts->n_bytes[i], &o);
        struct text_ids q = must_encode(b, texts->text[i], texts->n_bytes[i], &o);
        if (p.n != q.n || (p.n && memcmp(p.ids, q.ids, p.n * sizeof *p.ids) != 0))
            fail_msg("%s, %s: text %zu has other ids", name, how, i);
        x.len = y.len = 0;
        assert_int_equal(text_decode(a, p.ids, p.n, false, &x, &e), 0);
        assert_int_equal(text_decode(b, p.ids, p.n, false, &y, &e), 0);
        if (x.len != y.len || (x.len && memcmp(x.data, y.data, x.len) != 0))
            fail_msg("%s, %s: text %zu decodes otherwise", name, how, i);
        text_ids_release(&p);
        text_ids_release(&q);
    }
    buf_release(&x);
    buf_release(&y);
}

static void test_record(void **state) {
    (void)state;
    struct golden_texts texts = load_golden_texts();
    for (size_t i = 0; i < COUNT_OF(families); i++) {
        struct err e = {0};
        struct vocab *v = load_family(families[i]), *w;
        struct buf record = {0}, again = {0};
        assert_int_equal(vocab_pack(v, &record, &e), 0);
        if (vocab_unpack(&w, record.data, record.len, &e)) fail_msg("%s: %s", families[i], e.msg);
        assert_int_equal(vocab_pack(w, &again, &e), 0);
        assert_int_equal(record.len, again.len);
        assert_memory_equal(record.data, again.data, record.len);
        assert_memory_equal(&v->digest, &w->digest, sizeof v->digest);
        check_same(families[i], "VOCB", v, w, &texts, 97);
        vocab_free(w);
        /* a record cut anywhere is refused */
        for (size_t n = 0; n < record.len; n += 1 + record.len / 200)
            assert_int_equal(vocab_unpack(&w, record.data, n, &e), ERR_DATA);
        buf_release(&record);
        buf_release(&again);
        vocab_free(v);
    }
    free_golden_texts(&texts);
}

/* ---- bad input ---- */

static void test_cut_models(void **state) {
    (void)state;
    struct buf text = family_file("tiny.model", ".zst");
    for (size_t n = 0; n + 40 < text.len; n += 7) {
        struct err e = {0};
        struct vocab spec;
        draft_init(&spec);
        assert_int_equal(spm_read(&spec, (struct span){(const char *)text.data, n}, &e), ERR_DATA);
        if (!strstr(e.msg, "SentencePiece model: ")) fail_msg("%s", e.msg);
        arena_release(&spec.memory);
    }
    buf_release(&text);
}

/* ---- cuts ---- */

static void check_cuts(const char *name, const struct vocab *v, const unsigned char *text, size_t n, size_t *cuts) {
    struct err e = {0};
    struct text_encode_options o = options_of(name);
    struct text_ids whole = must_encode(v, text, n, &o), parts = {0};
    for (size_t limit = n; limit > 1;) {
        size_t cut = text_safe_cut(v, text, limit);
        if (!cut) break;
        parts.n = 0;
        o.continues = false;
        assert_int_equal(text_encode(v, text, cut, &o, &parts, &e), 0);
        o.continues = true;
        assert_int_equal(text_encode(v, text + cut, n - cut, &o, &parts, &e), 0);
        if (parts.n != whole.n || memcmp(parts.ids, whole.ids, whole.n * sizeof *whole.ids) != 0)
            fail_msg("%s: a cut at %zu of '%.*s' shows", name, cut, (int)n, (const char *)text);
        ++*cuts;
        limit = cut;
    }
    text_ids_release(&whole);
    text_ids_release(&parts);
}

static void test_cuts(void **state) {
    (void)state;
    struct golden_texts texts = load_golden_texts();
    for (size_t i = 0; i < COUNT_OF(families); i++) {
        struct vocab *v = load_family(families[i]);
        size_t cuts = 0;
        for (size_t k = 0; k < texts.n; k += 23)
            if (texts.n_bytes[k] < 2000) check_cuts(families[i], v, texts.text[k], texts.n_bytes[k], &cuts);
        if (cuts < 300) fail_msg("%s: only %zu places to cut", families[i], cuts);
        vocab_free(v);
    }
    free_golden_texts(&texts);
}

/* With half of the tokens removed, the rest keep their text, and texts still encode, to bytes where pieces are
 * missing. */
static void test_prune(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT_OF(families); i++) {
        struct err e = {0};
        struct vocab *v = load_family(families[i]), *w;
        unsigned char *keep = mem_array(v->n_tokens, 1, &e);
        uint32_t *map = mem_array(v->n_tokens, sizeof *map, &e);
        assert_true(keep && map);
        for (uint32_t id = 0; id < v->n_tokens; id++) keep[id] = id % 2;
        if (vocab_prune(&w, v, keep, map, &e)) fail_msg("%s: %s", families[i], e.msg);
        assert_true(w->n_tokens < v->n_tokens && w->kind == v->kind && w->n_steps == v->n_steps);
        for (uint32_t id = 0; id < v->n_tokens; id++) {
            if (map[id] == TOKEN_NONE) continue;
            assert_int_equal(w->tokens[map[id]].n_bytes, v->tokens[id].n_bytes);
            assert_memory_equal(w->tokens[map[id]].bytes, v->tokens[id].bytes, v->tokens[id].n_bytes);
        }
        struct text_ids ids = must_encode(w, "The quick caf\xc3\xa9", 15, NULL);
        assert_true(ids.n > 0 && (!(v->model_flags & MODEL_BYTE_FALLBACK) || ids.n_lost == 0));
        text_ids_release(&ids);
        mem_free(keep);
        mem_free(map);
        vocab_free(v);
        vocab_free(w);
    }
}

/* ---- export and import ---- */

static void test_tokenizer_json(void **state) {
    (void)state;
    struct golden_texts texts = load_golden_texts();
    for (size_t i = 0; i < COUNT_OF(families); i++) {
        struct err e = {0};
        struct vocab *v = load_family(families[i]), *w;
        struct buf json = {0}, config = {0};
        if (hf_tokenizer_write(v, &json, &config, &e)) fail_msg("%s: %s", families[i], e.msg);
        if (hf_tokenizer_read(&w, json.data, json.len, NULL, 0, &e)) fail_msg("%s: %s", families[i], e.msg);
        /* export reports where `tokenizers` differs from sentencepiece; a tokenizer.json comes back in full */
        if (!is_model(families[i])) {
            struct buf a = {0}, b = {0};
            OK(vocab_pack(v, &a, &e));
            OK(vocab_pack(w, &b, &e));
            assert_int_equal(a.len, b.len);
            assert_memory_equal(a.data, b.data, a.len);
            buf_release(&a);
            buf_release(&b);
        }
        if (!is_model(families[i])) check_same(families[i], "tokenizer.json", v, w, &texts, 97);
        buf_release(&json);
        buf_release(&config);
        vocab_free(v);
        vocab_free(w);
    }
    free_golden_texts(&texts);
}

/* A GGUF of a model with one small layer and this vocabulary. */
static int make_gguf(const struct vocab *v, struct buf *gguf, struct err *refusal) {
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct buf packed = {0};
    struct model *m;
    c.layers[1] = c.layers[0];
    c.vocab_size = v->n_tokens;
    OK(vocab_pack(v, &packed, &e));
    OK(model_init(&m, kernel_cpu(), &c, packed.data, packed.len, 7, &e));
    struct buf model = saved_model(m, DT_F32);
    int rc = export_gguf(&model, gguf, refusal);
    model_free(m);
    buf_release(&packed);
    buf_release(&model);
    arena_release(&a);
    return rc;
}

static struct vocab *read_gguf(const struct buf *gguf) {
    struct err e = {0};
    struct gguf_file g = {0};
    struct arena a = {0};
    struct vocab spec, *v = NULL;
    bool found = false;
    draft_init(&spec);
    int rc = gguf_parse(&g, gguf->data, gguf->len, &a, &e);
    if (!rc) rc = gguf_read_vocab(&g, &spec, &found, &e);
    if (!rc) rc = draft_finish(&spec, &v, &e);
    if (rc) fail_msg("%s", e.msg);
    gguf_release(&g);
    arena_release(&spec.memory);
    arena_release(&a);
    return v;
}

/* Hides the keys that only we read, to see what llama.cpp sees. */
static void hide_own_keys(struct buf *gguf) {
    static const char *const own[] = {"rill.tokenizer.steps", "rill.tokenizer.flags"};
    for (size_t i = 0; i < COUNT_OF(own); i++) {
        unsigned char *at = memmem(gguf->data, gguf->len, own[i], strlen(own[i]));
        if (at) *at = 'R';
    }
}

static void test_gguf(void **state) {
    (void)state;
    static const struct {
        const char *name, *refused;
        bool exact; /* llama.cpp's keys say everything */
    } cases[] = {
        {"llama2.json", NULL, true},
        {"phi3.json", NULL, false}, /* white space after an added token */
        {"llama-class.json", NULL, false},
        {"gemma.json", NULL, true},
        {"t5.json", NULL, false},
        {"xlmr.json", NULL, false},
        {"albert.json", "changes or cuts the text", false},
        {"bert.json", NULL, true},
        {"bert-cased.json", "leaves upper case", false},
        {"opt.json", "a space in front", false},
        {"llama2.model", NULL, false},
        {"gemma.model", NULL, true},
        {"t5.model", NULL, false},
        {"unigram-bytes.model", NULL, false},
    };
    struct golden_texts texts = load_golden_texts();
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct err e = {0};
        struct vocab *v = load_family(cases[i].name);
        struct buf gguf = {0};
        int rc = make_gguf(v, &gguf, &e);
        if (cases[i].refused) {
            assert_int_equal(rc, ERR_DATA);
            if (!strstr(e.msg, cases[i].refused)) fail_msg("%s: said '%s'", cases[i].name, e.msg);
        } else {
            if (rc) fail_msg("%s: %s", cases[i].name, e.msg);
            struct vocab *w = read_gguf(&gguf);
            assert_memory_equal(&v->digest, &w->digest, sizeof v->digest);
            check_same(cases[i].name, "GGUF", v, w, &texts, 41);
            vocab_free(w);
            hide_own_keys(&gguf);
            w = read_gguf(&gguf);
            if (cases[i].exact) check_same(cases[i].name, "GGUF for others", v, w, &texts, 41);
            vocab_free(w);
        }
        buf_release(&gguf);
        vocab_free(v);
    }
    free_golden_texts(&texts);
}

/* ---- tagged words, encoded as in transformers' examples (tests/reference/make_tags.py) --------------------------- */

struct tagged {
    struct span line;
    size_t read;            /* bytes of the line that were read */
    struct buf ids, labels; /* the output of corpus_encode */
};

static int read_line(void *ctx, void *dst, size_t n, size_t *got, struct err *e) {
    struct tagged *t = ctx;
    (void)e;
    *got = t->line.n - t->read < n ? t->line.n - t->read : n;
    memcpy(dst, t->line.s + t->read, *got);
    t->read += *got;
    return 0;
}

static int take_tags(void *ctx, const struct corpus_batch *b, struct err *e) {
    struct tagged *t = ctx;
    assert_non_null(b->labels);
    if (buf_append(&t->ids, b->tokens, b->n_positions * sizeof *b->tokens, e)) return e->code;
    return buf_append(&t->labels, b->labels, b->n_positions * sizeof *b->labels, e);
}

static void assert_numbers(const char *what, const cJSON *wanted, const uint32_t *got, size_t n) {
    size_t i = 0;
    const cJSON *x;
    if ((size_t)cJSON_GetArraySize(wanted) != n) fail_msg("%s: %zu, should be %d", what, n, cJSON_GetArraySize(wanted));
    cJSON_ArrayForEach(x, wanted) {
        uint32_t number = cJSON_IsNull(x) ? UINT32_MAX : (uint32_t)x->valuedouble;
        if (got[i] != number) fail_msg("%s: number %zu is %u, should be %u", what, i, got[i], number);
        i++;
    }
}

/* The tokens of a line and their labels: plain, between BOS and EOS (which have none), and cut to `longest`. */
static void check_tags(struct span line, const cJSON *x) {
    struct err e;
    char file[64], what[96];
    const char *family = cJSON_GetStringValue(cJSON_GetObjectItem(x, "family"));
    snprintf(file, sizeof file, "%s.json", family);
    struct vocab *v = load_family(file);
    const cJSON *ids = cJSON_GetObjectItem(x, "ids"), *labels = cJSON_GetObjectItem(x, "labels");
    for (int pass = 0; pass < 2; pass++) {
        bool around = pass && v->bos != TOKEN_NONE && v->eos != TOKEN_NONE;
        struct corpus_options o = {.documents = CORPUS_JSONL,
                                   .field = "words",
                                   .tags = "tags",
                                   .batch_tokens = pass ? 3 : 1000, /* sequences continue over batches */
                                   .bos = around,
                                   .eos = around ? EOS_AFTER : EOS_NEVER};
        struct corpus_totals totals;
        struct tagged t = {.line = line};
        if (corpus_encode(v, &o, read_line, take_tags, &t, &totals, &e)) fail_msg("%s: %s", family, e.msg);
        const uint32_t *got = (const uint32_t *)(const void *)t.ids.data, *tags = (const void *)t.labels.data;
        size_t n = t.ids.len / sizeof *got;
        if (around) {
            assert_int_equal(got[0], v->bos);
            assert_int_equal(got[n - 1], v->eos);
            assert_int_equal(tags[0], TOKEN_NONE);
            assert_int_equal(tags[n - 1], TOKEN_NONE);
        }
        snprintf(what, sizeof what, "%s, pass %d", family, pass);
        assert_numbers(what, ids, got + around, n - 2 * around);
        assert_numbers(what, labels, tags + around, n - 2 * around);
        buf_release(&t.ids);
        buf_release(&t.labels);
    }
    vocab_free(v);
}

static void test_tags(void **state) {
    struct err e;
    struct mapped_file file;
    size_t lines = 0;
    (void)state;
    OK(mapped_file_open(&file, TOKENIZERS "tags.jsonl", &e));
    const char *at = (const char *)file.data, *end = at + file.size, *nl;
    for (; at < end && (nl = memchr(at, '\n', (size_t)(end - at))); at = nl + 1, lines++) {
        cJSON *x = json_parse(at, (size_t)(nl - at), &e);
        assert_non_null(x);
        check_tags((struct span){at, (size_t)(nl - at)}, x);
        cJSON_Delete(x);
    }
    assert_int_equal(lines, 60);
    mapped_file_close(&file);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference), cmocka_unit_test(test_record), cmocka_unit_test(test_cut_models),
        cmocka_unit_test(test_cuts),      cmocka_unit_test(test_prune),  cmocka_unit_test(test_tokenizer_json),
        cmocka_unit_test(test_gguf),      cmocka_unit_test(test_tags),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
