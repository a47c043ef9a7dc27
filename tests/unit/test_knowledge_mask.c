/* Tests of the mask of a token stream: which positions have a label, through encoding, re-encoding and any cut. */
#include "tests/unit/knowledge_samples.h"

/* A mask that depends on the position alone. */
static uint8_t mask_at(size_t i) {
    return i * 7 % 5 < 2;
}

/* encode_sample with a mask, or NULL. */
static int encode_masked(const struct sample *s, const struct knowledge_format *f, const uint8_t *mask, size_t cut) {
    struct err e;
    struct encoding out;
    uint32_t *lengths = calloc(s->n_seqs, sizeof *lengths);
    OK(encoding_begin(&out, f, 0, &e));
    for (size_t at = 0; at < s->n_positions; at += cut) {
        size_t n = piece_of(s->n_positions - at, cut);
        struct stream_batch head = cut_batch(s, at, n, lengths);
        struct knowledge_input in = {
            .head = head, .tokens = s->tokens + at, .lengths = lengths, .mask = mask ? mask + at : NULL};
        OK(knowledge_encoder_begin(out.k, &in, &e));
        OK(knowledge_encoder_rows(out.k, n, s->logits + at * s->vocab, 1 / f->temperature, &e));
    }
    OK(encoding_end(&out, 0, &e));
    free(lengths);
    return out.fd;
}

/* Labels must follow the mask; expected values come from the sample itself. */
static void check_labels(const struct sample *s, const struct knowledge_rows *k, const uint8_t *mask) {
    assert_int_equal(k->n_positions, s->n_positions);
    for (size_t i = 0, at = 0; i < s->n_seqs; i++)
        for (uint32_t t = 0; t < s->lengths[i]; t++, at++) {
            bool labelled = t + 1 < s->lengths[i] && (!mask || mask[at + 1]);
            assert_int_equal(k->labels[at], labelled ? s->tokens[at + 1] : UINT32_MAX);
            assert_int_equal(k->mask[at], !mask || mask[at]);
        }
}

static void labels_follow_the_mask_however_batches_are_cut(void **state) {
    static const char *const encodings[] = {"dense", "topk:3", "ghost:3", "sample:10"};
    struct sample s = sample_new(40, 30, 50, 3);
    uint8_t *mask = malloc(s.n_positions);
    (void)state;
    for (size_t i = 0; i < s.n_positions; i++) mask[i] = mask_at(i);
    for (size_t i = 0; i < COUNT_OF(encodings); i++)
        for (size_t cut = 1; cut <= s.n_positions; cut = cut * 3 + 1) {
            struct err e;
            struct knowledge_format f = format_of(encodings[i], s.vocab), got;
            struct knowledge_rows k;
            OK(decode_all(encode_masked(&s, &f, mask, cut), &k, &got, &e));
            check_labels(&s, &k, mask);
            knowledge_drop(&k, &got, 1);
            assert_int_equal(k.mask[0], mask[s.lengths[0]]);
            knowledge_rows_release(&k);
        }
    free(mask);
    sample_free(&s);
}

/* as in logit-dump */
static void encoding_again_keeps_the_mask(void **state) {
    struct err e;
    struct sample s = sample_new(40, 30, 50, 4);
    struct knowledge_format from = format_of("dense", s.vocab), to = format_of("ghost:4", s.vocab), got;
    struct stream_reader *r = NULL;
    struct stream_writer *w = NULL;
    struct knowledge_encoder *enc = NULL;
    struct knowledge_rows k;
    struct batch b = {0};
    uint8_t *mask = malloc(s.n_positions);
    bool more = true;
    int out = memory_file();
    cJSON *meta = cJSON_CreateObject();
    (void)state;
    for (size_t i = 0; i < s.n_positions; i++) mask[i] = mask_at(i);
    OK(stream_reader_open(&r, encode_masked(&s, &from, mask, 17), "in", STREAM_ANY, &e));
    OK(stream_writer_open(&w, out, "out", &(struct stream_write_options){0}, &e));
    OK(knowledge_meta_put(meta, &to, &e));
    OK(stream_write_meta(w, meta, &e));
    OK(knowledge_encoder_new(&enc, w, &to, 0, &e));
    while (true) {
        OK(batch_read(r, &b, &more, &e));
        if (!more) break;
        OK(knowledge_encoder_batch(enc, &from, &b, &e));
    }
    OK(knowledge_encoder_end(enc, &e));
    OK(stream_writer_finish(w, NULL, &e));
    lseek(out, 0, SEEK_SET);
    OK(decode_all(out, &k, &got, &e));
    check_labels(&s, &k, mask);
    knowledge_rows_release(&k);
    knowledge_encoder_free(enc);
    stream_writer_free(w);
    stream_reader_free(r);
    batch_release(&b);
    cJSON_Delete(meta);
    free(mask);
    sample_free(&s);
}

static void a_mask_of_ones_is_none(void **state) {
    struct err e;
    struct sample s = sample_new(10, 30, 50, 5);
    struct knowledge_format f = format_of("sample:5", s.vocab), got;
    struct knowledge_rows k;
    uint8_t *mask = malloc(s.n_positions);
    (void)state;
    memset(mask, 1, s.n_positions);
    int with = encode_masked(&s, &f, mask, 9), without = encode_masked(&s, &f, NULL, 9);
    off_t n = lseek(with, 0, SEEK_END);
    assert_int_equal(n, lseek(without, 0, SEEK_END));
    char *a = malloc((size_t)n), *b = malloc((size_t)n);
    assert_int_equal(pread(with, a, (size_t)n, 0), n);
    assert_int_equal(pread(without, b, (size_t)n, 0), n);
    assert_memory_equal(a, b, (size_t)n);
    close(with);
    lseek(without, 0, SEEK_SET);
    OK(decode_all(without, &k, &got, &e));
    check_labels(&s, &k, NULL);
    knowledge_rows_release(&k);
    free(a);
    free(b);
    free(mask);
    sample_free(&s);
}

static void what_is_no_mask_is_refused(void **state) {
    static const uint8_t two[] = {0, 2, 1};
    static const struct {
        enum dtype dtype;
        uint64_t n;
        const char *says;
    } cases[] = {{DT_U8, 3, "the mask is 2"}, {DT_U8, 2, "tensor 'mask' is u8 [2]"}, {DT_I8, 3, "tensor 'mask' is i8"}};
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct err e;
        const struct stream_batch head = {.n_positions = 3, .n_seqs = 1, .n_tensors = 3};
        struct knowledge_format got;
        struct knowledge_rows k;
        struct stream_writer *w = NULL;
        struct tensor_desc d;
        cJSON *meta = json_parse("{\"kind\":\"tokens\"}", 17, &e);
        int fd = memory_file();
        OK(stream_writer_open(&w, fd, "out", &(struct stream_write_options){0}, &e));
        OK(stream_write_meta(w, meta, &e));
        OK(batch_write(w, &head, (uint32_t[]){1, 2, 3}, (uint32_t[]){3}, &e));
        OK(tensor_desc_init(&d, BATCH_MASK, cases[i].dtype, 1, &cases[i].n, &e));
        OK(stream_write_tensor(w, &d, NULL, two, &e));
        OK(stream_writer_finish(w, NULL, &e));
        stream_writer_free(w);
        cJSON_Delete(meta);
        lseek(fd, 0, SEEK_SET);
        assert_int_equal(decode_all(fd, &k, &got, &e), ERR_DATA);
        if (!strstr(e.msg, cases[i].says)) fail_msg("%s", e.msg);
        knowledge_rows_release(&k);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(labels_follow_the_mask_however_batches_are_cut),
        cmocka_unit_test(encoding_again_keeps_the_mask),
        cmocka_unit_test(a_mask_of_ones_is_none),
        cmocka_unit_test(what_is_no_mask_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
