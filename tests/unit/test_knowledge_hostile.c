/*
 * Tests of hostile knowledge: well-formed streams with impossible batches; also descriptions, and failing allocations.
 */
#include "tests/unit/knowledge_samples.h"

/* A batch of one sequence of two positions over a vocabulary of 8. Members that a case omits have valid values. */
struct lie {
    const char *meta;           /* the "knowledge" object */
    const uint32_t *tokens;     /* [2] */
    const uint8_t *n;           /* [2] */
    size_t entries;             /* 0: 3 */
    const uint16_t *ids;        /* [entries] */
    const uint8_t *counts;      /* [entries]: sample */
    const uint16_t *logprobs;   /* [entries]: topk, ghost */
    const float *logits;        /* [2][8]: dense */
    enum dtype id_type, n_type; /* 0: as they should be */
    struct stream_batch head;
    const char *says; /* part of the message; NULL: must succeed */
};

#define SAMPLE "{\"encoding\":\"sample\",\"n\":5,\"temperature\":1}"
#define TOPK   "{\"encoding\":\"topk\",\"n\":2,\"temperature\":1}"
#define GHOST  "{\"encoding\":\"ghost\",\"n\":2,\"temperature\":1}"
#define DENSE  "{\"encoding\":\"dense\",\"dtype\":\"f32\",\"log_probs\":true,\"temperature\":1}"

static const uint8_t good_n[] = {2, 1}, good_counts[] = {2, 3, 5};
static const uint16_t good_ids[] = {1, 3, 2}, good_logprobs[] = {0xBC00, 0xC000, 0xC000}; /* -1, -2, -2 */
static const uint32_t good_tokens[] = {7, 0};
static const float good_logits[16] = {0};

static void put_tensor(struct stream_writer *w, const char *name, enum dtype dtype, unsigned rank, const uint64_t *dims,
                       const void *data) {
    struct err e;
    struct tensor_desc d = desc_of(name, dtype, rank, dims);
    OK(stream_write_tensor(w, &d, NULL, data, &e));
}

static void put_lie(struct stream_writer *w, const struct lie *l) {
    struct err e;
    char meta[512];
    uint64_t entries = l->entries ? l->entries : 3;
    struct stream_batch b = l->head;
    bool dense = strstr(l->meta, "dense"), sample = strstr(l->meta, "sample");
    snprintf(meta, sizeof meta, "{\"kind\":\"knowledge\",\"vocab_size\":8,\"knowledge\":%s}", l->meta);
    put_meta(w, meta);
    b.n_positions = 2;
    b.n_seqs = 1;
    b.n_tensors = dense ? 3 : 5;
    OK(stream_write_batch(w, &b, &e));
    put_u32(w, "tokens", l->tokens ? l->tokens : good_tokens, 2);
    put_u32(w, "lengths", (uint32_t[]){2}, 1);
    if (dense) {
        put_tensor(w, "teacher.logits", DT_F32, 2, (uint64_t[]){2, 8}, l->logits ? l->logits : good_logits);
        return;
    }
    put_tensor(w, "teacher.n", l->n_type ? l->n_type : DT_U8, 1, (uint64_t[]){2}, l->n ? l->n : good_n);
    put_tensor(w, "teacher.ids", l->id_type ? l->id_type : DT_U16, 1, &entries, l->ids ? l->ids : good_ids);
    if (sample)
        put_tensor(w, "teacher.counts", DT_U8, 1, &entries, l->counts ? l->counts : good_counts);
    else
        put_tensor(w, "teacher.logprobs", DT_F16, 1, &entries, l->logprobs ? l->logprobs : good_logprobs);
}

static void check_lie(const struct lie *l) {
    struct err e = {0};
    struct stream_writer *w;
    struct knowledge_rows k;
    struct knowledge_format f;
    int fd = memory_file();
    OK(stream_writer_open(&w, fd, "out", &(struct stream_write_options){0}, &e));
    put_lie(w, l);
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    lseek(fd, 0, SEEK_SET);
    int rc = decode_all(fd, &k, &f, &e);
    knowledge_rows_release(&k);
    if (!l->says) {
        if (rc) fail_msg("%s", e.msg);
        return;
    }
    if (rc != ERR_DATA || !strstr(e.msg, l->says)) fail_msg("%d \"%s\", expected \"%s\"", rc, rc ? e.msg : "", l->says);
}

static void lies_are_found_out(void **state) {
    (void)state;
    const struct lie lies[] = {
        {.meta = SAMPLE},
        {.meta = TOPK},
        {.meta = GHOST},
        {.meta = DENSE},
        {.meta = SAMPLE, .tokens = (uint32_t[]){7, 8}, .says = "position 1 of the batch: token 8 of a vocabulary of 8"},
        {.meta = SAMPLE, .ids = (uint16_t[]){1, 8, 2}, .says = "position 0 of the batch: entry 8 of a vocabulary of 8"},
        {.meta = SAMPLE, .ids = (uint16_t[]){3, 3, 2}, .says = "entry 3 occurs twice"},
        {.meta = SAMPLE, .ids = (uint16_t[]){3, 1, 2}, .says = "not in ascending order"},
        {.meta = TOPK, .ids = (uint16_t[]){3, 3, 2}, .says = "entry 3 occurs twice"},
        {.meta = TOPK, .ids = (uint16_t[]){3, 1, 9}, .says = "position 1 of the batch: entry 9"},
        {.meta = SAMPLE, .counts = (uint8_t[]){2, 2, 5}, .says = "the counts sum to 4: expected 5"},
        {.meta = SAMPLE, .counts = (uint8_t[]){2, 3, 255}, .says = "the counts sum to 255"},
        {.meta = SAMPLE, .counts = (uint8_t[]){0, 5, 5}, .says = "never drawn"},
        {.meta = SAMPLE, .n = (uint8_t[]){3, 0}, .ids = (uint16_t[]){1, 3, 4}, .says = "the counts sum to 10"},
        {.meta = SAMPLE, .n = (uint8_t[]){0, 3}, .says = "0 entries"},
        {.meta = SAMPLE, .n = (uint8_t[]){2, 2}, .says = "1 are left"},
        {.meta = SAMPLE, .n = (uint8_t[]){255, 255}, .says = "255 entries"},
        {.meta = SAMPLE,
         .entries = 4,
         .ids = (uint16_t[]){1, 3, 2, 4},
         .counts = (uint8_t[]){2, 3, 5, 5},
         .says = "sums to 3: expected the 4 entries"},
        {.meta = TOPK, .n = (uint8_t[]){0, 2}, .says = "0 entries: expected 1 to 2"},
        {.meta = GHOST, .entries = 2, .n = (uint8_t[]){0, 2}, .ids = (uint16_t[]){1, 3}}, /* without entries */
        {.meta = GHOST, .n = (uint8_t[]){0, 3}, .says = "3 entries: expected 0 to 2"},
        {.meta = TOPK, .n = (uint8_t[]){3, 0}, .says = "3 entries: expected 1 to 2"},
        {.meta = TOPK, .logprobs = (uint16_t[]){0xC000, 0xBC00, 0xC000}, .says = "expected descending"},
        {.meta = TOPK, .logprobs = (uint16_t[]){0x3C00, 0xBC00, 0xC000}, .says = "at most 0"},
        {.meta = TOPK, .logprobs = (uint16_t[]){0x7E00, 0xBC00, 0xC000}, .says = "log-probability nan"},
        {.meta = TOPK, .logprobs = (uint16_t[]){0xBC00, 0xFC00, 0xC000}, .says = "log-probability -inf"},
        {.meta = GHOST, .logprobs = (uint16_t[]){0x8000, 0xBC00, 0xC000}, .says = "the probabilities sum to 1.36"},
        {.meta = DENSE,
         .logits = (float[16]){[11] = NAN},
         .says = "position 1 of the batch: the value of token 3 is not"},
        {.meta = DENSE, .logits = (float[16]){[2] = -INFINITY}, .says = "the value of token 2 is not finite"},
        {.meta = SAMPLE, .id_type = DT_I16, .says = "teacher.ids"},
        {.meta = SAMPLE, .n_type = DT_I8, .says = "teacher.n"},
        {.meta = SAMPLE, .head = {.first_pos = 3}, .says = "whose beginning is missing"},
    };
    for (size_t i = 0; i < COUNT_OF(lies); i++) check_lie(&lies[i]);
}

/* Tensors of another encoding are no substitute. */
static void missing_tensors_are_named(void **state) {
    (void)state;
    struct err e = {0};
    struct stream_writer *w;
    struct knowledge_rows k;
    struct knowledge_format f;
    int fd = memory_file();
    OK(stream_writer_open(&w, fd, "out", &(struct stream_write_options){0}, &e));
    put_meta(w, "{\"kind\":\"knowledge\",\"vocab_size\":8,\"knowledge\":" SAMPLE "}");
    put_batch(w, (struct stream_batch){.n_positions = 2, .n_seqs = 1}, good_tokens, (uint32_t[]){2});
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    lseek(fd, 0, SEEK_SET);
    assert_int_equal(decode_all(fd, &k, &f, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "teacher.draws"));
    knowledge_rows_release(&k);
}

/* ---- descriptions ------------------------------------------------------------------------------------------------ */

static void descriptions_are_checked(void **state) {
    (void)state;
    static const struct {
        const char *meta, *says;
    } cases[] = {
        {"{\"kind\":\"knowledge\",\"vocab_size\":8,\"knowledge\":" SAMPLE "}", NULL},
        {"{\"kind\":\"tokens\"}", NULL},
        {"{\"kind\":\"model\"}", "expected tokens or knowledge"},
        {"{\"kind\":\"knowledge\",\"vocab_size\":8}", "no \"fields\""},
        {"{\"kind\":\"knowledge\",\"knowledge\":" SAMPLE "}", "vocab_size"},
        {"{\"kind\":\"knowledge\",\"vocab_size\":99999999,\"knowledge\":" SAMPLE "}", "vocab_size"},
        {"{\"kind\":\"knowledge\",\"vocab_size\":0,\"knowledge\":" SAMPLE "}", "vocab_size"},
        {"{\"kind\":\"knowledge\",\"vocab_size\":8,\"vocab\":\"xxh3:12\",\"knowledge\":" SAMPLE "}", "not a digest"},
        {"{\"kind\":\"knowledge\",\"vocab_size\":8,\"knowledge\":{\"encoding\":\"top\",\"temperature\":1}}",
         "unknown encoding"},
        {"{\"kind\":\"knowledge\",\"vocab_size\":8,\"knowledge\":{\"encoding\":\"topk\",\"temperature\":1}}", "\"n\""},
        {"{\"kind\":\"knowledge\",\"vocab_size\":8,\"knowledge\":{\"encoding\":\"topk\",\"n\":0,\"temperature\":1}}",
         "n"},
        {"{\"kind\":\"knowledge\",\"vocab_size\":8,\"knowledge\":{\"encoding\":\"topk\",\"n\":65536,\"temperature\":1}"
         "}",
         "n"},
        {"{\"kind\":\"knowledge\",\"vocab_size\":8,\"knowledge\":{\"encoding\":\"topk\",\"n\":1,\"temperature\":0}}",
         "temperature"},
        {"{\"kind\":\"knowledge\",\"vocab_size\":8,\"knowledge\":{\"encoding\":\"dense\",\"dtype\":\"q4_k\",\"log_"
         "probs\":true,"
         "\"temperature\":1}}",
         "expected f32"},
        {"{\"kind\":\"knowledge\",\"vocab_size\":8,\"knowledge\":{\"encoding\":\"dense\",\"dtype\":\"f32\",\"log_"
         "probs\":false,"
         "\"temperature\":2}}",
         "only log-probabilities"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct err e = {0};
        struct knowledge_format f;
        cJSON *meta = json_of(cases[i].meta);
        int rc = knowledge_meta_get(meta, &f, &e);
        cJSON_Delete(meta);
        if (!cases[i].says)
            assert_int_equal(rc, 0);
        else if (rc != ERR_DATA || !strstr(e.msg, cases[i].says))
            fail_msg("%s: %d \"%s\"", cases[i].meta, rc, e.msg);
    }
}

static void descriptions_come_back(void **state) {
    (void)state;
    static const char *const encodings[] = {"dense", "topk:65535", "ghost:1", "sample:300"};
    for (size_t i = 0; i < COUNT_OF(encodings); i++) {
        struct err e;
        char text[64];
        struct knowledge_format f = format_of(encodings[i], 70000), back;
        if (i) f.dtype = 0;
        f.log_probs = i == 0;
        f.temperature = 1.25;
        digest_text(digest_bytes("v", 1), f.vocab);
        digest_text(digest_bytes("t", 1), f.teacher);
        cJSON *meta = json_of("{\"kind\":\"tokens\",\"context\":512,\"vocab_size\":5}");
        OK(knowledge_meta_put(meta, &f, &e));
        OK(knowledge_meta_put(meta, &f, &e)); /* putting it twice must not duplicate a key */
        char *json = json_text(meta, &e);
        assert_non_null(json);
        assert_non_null(strstr(json, "\"context\":512"));
        OK(knowledge_meta_get(meta, &back, &e));
        assert_string_equal(knowledge_encoding_text(&back, text, sizeof text), encodings[i]);
        assert_true(back.temperature == 1.25 && back.vocab_size == 70000 && back.dtype == f.dtype);
        assert_string_equal(back.vocab, f.vocab);
        assert_string_equal(back.teacher, f.teacher);
        mem_free(json);
        cJSON_Delete(meta);
    }
}

static void encodings_are_spelled_one_way(void **state) {
    (void)state;
    static const char *const bad[] = {"",        "top:5",     "topk",      "topk:",   "topk:0", "topk:65536", "topk:-1",
                                      "topk:5x", "sample:5:", "sample: 5", "dense:1", "Topk:5", "topk :5"};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        struct err e;
        struct knowledge_format f = {0};
        assert_int_equal(knowledge_encoding_parse(bad[i], &f, &e), ERR_USAGE);
    }
}

static void conversions_that_cannot_be_are_refused(void **state) {
    (void)state;
    static const struct {
        const char *from, *to;
        double temperature;
        int rc;
    } cases[] = {
        {"dense", "topk:8", 3, 0},           {"dense", "sample:50", 3, 0},        {"topk:5", "ghost:5", 1, 0},
        {"ghost:5", "topk:2", 1, 0},         {"dense", "dense", 1, ERR_USAGE},    {"topk:5", "topk:6", 1, ERR_DATA},
        {"topk:5", "topk:2", 2, ERR_DATA},   {"topk:5", "sample:5", 1, ERR_DATA}, {"sample:5", "sample:5", 1, ERR_DATA},
        {"sample:5", "topk:2", 1, ERR_DATA}, {"dense", "topk:9", 1, ERR_DATA},    {"dense", "topk:2", 0.001, ERR_USAGE},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct err e;
        struct knowledge_format from = format_of(cases[i].from, 8), to = format_of(cases[i].to, 8);
        to.temperature = cases[i].temperature;
        assert_int_equal(knowledge_check_encode(&from, &to, &e), cases[i].rc);
    }
}

/* ---- encoding values that are not finite ------------------------------------------------------------------------- */

static void values_that_are_not_finite_are_located(void **state) {
    (void)state;
    static const char *const encodings[] = {"dense", "topk:3", "sample:10"};
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < 9; i++) {
        struct sample s = sample_new(6, 9, 8, 2);
        size_t at = s.lengths[0] + s.lengths[1] + 1; /* position 1 of sequence 2 */
        assert_true(s.lengths[2] > 1);
        s.logits[at * 8 + 5] = bad[i % 3];
        struct knowledge_format f = format_of(encodings[i / 3], 8);
        struct err e;
        int fd;
        assert_int_equal(encode_sample(&s, &f, 0, 1000, 1000, &fd, &e), ERR_DATA);
        assert_string_equal(e.msg, "sequence 2, position 1: the teacher's output is not finite");
        close(fd);
        sample_free(&s);
    }
}

static void values_beyond_f16_are_refused(void **state) {
    (void)state;
    struct sample s = sample_new(1, 1, 8, 1);
    struct knowledge_format f = format_of("dense", 8);
    struct err e;
    int fd;
    f.dtype = DT_F16;
    s.logits[3] = 70000;
    assert_int_equal(encode_sample(&s, &f, 0, 10, 10, &fd, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "too large for f16"));
    close(fd);
    sample_free(&s);
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

/* The n-th allocation fails, for all n until one run succeeds: each must be an error without a leak
 * (AddressSanitizer checks). */
static void every_allocation_may_fail(void **state) {
    (void)state;
    static const char *const encodings[] = {"dense", "ghost:3", "sample:10"};
    struct sample s = sample_new(5, 20, 8, 3);
    for (size_t i = 0; i < COUNT_OF(encodings); i++) {
        int rc = -1;
        for (uint64_t n = 1; rc; n++) {
            struct knowledge_format f = format_of(encodings[i], 8);
            struct knowledge_rows k = {0};
            struct err e;
            int fd;
            mem_fail_at(n);
            rc = encode_sample(&s, &f, 0, 30, 10, &fd, &e);
            if (rc)
                close(fd);
            else
                rc = decode_all(fd, &k, &f, &e);
            mem_fail_at(0);
            knowledge_rows_release(&k);
            if (rc && rc != ERR_IO) fail_msg("allocation %llu: %d %s", (unsigned long long)n, rc, e.msg);
            assert_true(n < 10000);
        }
    }
    sample_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lies_are_found_out),
        cmocka_unit_test(missing_tensors_are_named),
        cmocka_unit_test(descriptions_are_checked),
        cmocka_unit_test(descriptions_come_back),
        cmocka_unit_test(encodings_are_spelled_one_way),
        cmocka_unit_test(conversions_that_cannot_be_are_refused),
        cmocka_unit_test(values_that_are_not_finite_are_located),
        cmocka_unit_test(values_beyond_f16_are_refused),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests_name("knowledge_hostile", tests, NULL, NULL);
}
