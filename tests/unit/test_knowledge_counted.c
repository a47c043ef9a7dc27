/*
 * Tests of knowledge with rows only for positions that count (teacher.counted): encoding, cuts, queues, encoding again,
 * and hostile streams.
 */
#include <errno.h>
#include <fcntl.h>

#include "tests/unit/knowledge_samples.h"

static const char *const encodings[] = {"dense", "topk:3", "ghost:3", "topp:0.4", "sample:10"};

/* A mask with runs of both kinds. */
static uint8_t mask_at(size_t i) {
    return i * 7 % 23 < 9;
}

/* A field of each kind that can be counted; values encode position and column. */
static struct knowledge_format with_fields(const char *encoding, size_t vocab, bool counted) {
    struct err e;
    struct knowledge_format f = format_of(encoding, vocab);
    struct knowledge_field hidden = {
        .point = "hidden", .layer = 1, .per = PER_POSITION, .dtype = DT_F32, .cols = 2, .counted = counted};
    struct knowledge_field pairs = {.point = "attention",
                                    .layer = 0,
                                    .per = PER_PAIR,
                                    .dtype = DT_I8,
                                    .cols = 2,
                                    .heads = 2,
                                    .counted = counted,
                                    .causal = true};
    struct knowledge_field keys = {.point = "k", .layer = 0, .per = PER_POSITION, .dtype = DT_BF16, .cols = 1};
    OK(knowledge_field_add(&f, &hidden, &e));
    OK(knowledge_field_add(&f, &pairs, &e));
    OK(knowledge_field_add(&f, &keys, &e));
    return f;
}

struct made {
    struct sample s;
    uint8_t *mask, *counted;
    uint32_t *at; /* [positions] number in the sequence */
    size_t count;
};

static struct made made_new(uint64_t seed) {
    struct made m = {.s = sample_new(40, 30, 50, seed)};
    m.mask = malloc(m.s.n_positions);
    m.counted = malloc(m.s.n_positions);
    m.at = malloc(m.s.n_positions * sizeof *m.at);
    for (size_t i = 0; i < m.s.n_positions; i++) m.mask[i] = mask_at(i);
    for (size_t q = 0, i = 0; q < m.s.n_seqs; q++)
        for (uint32_t t = 0; t < m.s.lengths[q]; t++) m.at[i++] = t;
    m.count = knowledge_count_positions(TARGET_NEXT, m.s.n_seqs, m.s.lengths, m.mask, NULL, m.counted);
    return m;
}

static void made_free(struct made *m) {
    sample_free(&m->s);
    free(m->mask);
    free(m->counted);
    free(m->at);
}

/* Passes the rows of all fields for positions [from, from + n). */
static void give_fields(struct knowledge_encoder *k, const struct knowledge_format *f, const struct made *m,
                        size_t from, size_t n) {
    struct err e;
    for (uint32_t i = 0; i < f->n_fields; i++) {
        const struct knowledge_field *field = &f->fields[i];
        struct knowledge_part part = {0};
        for (size_t p = from; p < from + n; p++) {
            float x[64];
            size_t length = field->per == PER_PAIR ? m->at[p] + 1 : field->cols;
            for (size_t c = 0; c < length; c++) x[c] = (float)(p % 8) + (float)c / 4;
            if (field->counted && !m->counted[p]) continue;
            for (uint32_t h = 0; h < (field->per == PER_PAIR ? field->heads : 1); h++)
                OK(knowledge_part_add(&part, field, 1, length, x, &e));
        }
        OK(knowledge_encoder_field(k, i, &part, &e));
        knowledge_part_release(&part);
    }
}

/* Announced in batches of `cut`, with rows in blocks of `block`: only positions that count, or all. */
static int encode_made(const struct made *m, const struct knowledge_format *f, bool counted, size_t cut, size_t block) {
    struct err e;
    struct encoding out;
    const struct sample *s = &m->s;
    uint32_t *lengths = calloc(s->n_seqs, sizeof *lengths);
    float *x = malloc(cut * s->vocab * sizeof *x);
    OK(encoding_begin(&out, f, 3, &e));
    for (size_t at = 0; at < s->n_positions; at += cut) {
        size_t n = piece_of(s->n_positions - at, cut), rows = 0;
        struct knowledge_input in = {.head = cut_batch(s, at, n, lengths),
                                     .tokens = s->tokens + at,
                                     .lengths = lengths,
                                     .mask = m->mask + at,
                                     .counted = counted ? m->counted + at : NULL};
        OK(knowledge_encoder_begin(out.k, &in, &e));
        give_fields(out.k, f, m, at, n);
        for (size_t i = 0; i < n; i++)
            if (!counted || m->counted[at + i])
                memcpy(x + rows++ * s->vocab, s->logits + (at + i) * s->vocab, s->vocab * sizeof *x);
        for (size_t i = 0; i < rows; i += block)
            OK(knowledge_encoder_rows(out.k, piece_of(rows - i, block), x + i * s->vocab, 1, &e));
    }
    OK(encoding_end(&out, 0, &e));
    free(lengths);
    free(x);
    return out.fd;
}

/* Compares queue k, which starts at position `from` of the sample, with the queue that has all rows. */
static void check_queue(const struct made *m, const struct knowledge_rows *k, const struct knowledge_format *f,
                        const struct knowledge_rows *all, size_t from) {
    size_t vocab = m->s.vocab, n = k->n_positions;
    float *x = malloc(n * vocab * sizeof *x), *y = malloc(n * vocab * sizeof *y);
    assert_int_equal(k->n_rows, n);
    for (size_t i = 0; i < n; i++) {
        uint64_t own = k->offset[i + 1] - k->offset[i], had = all->offset[from + i + 1] - all->offset[from + i];
        assert_int_equal(knowledge_answered(k, f, i), m->counted[from + i]);
        assert_int_equal(k->labels[i], all->labels[from + i]);
        assert_int_equal(own, m->counted[from + i] ? had : 0);
        if (own) assert_memory_equal(k->ids + k->offset[i], all->ids + all->offset[from + i], own * sizeof *k->ids);
        if (own)
            assert_memory_equal(k->probs + k->offset[i], all->probs + all->offset[from + i], own * sizeof *k->probs);
        if (k->rest) assert_true(k->rest[i] == (m->counted[from + i] ? all->rest[from + i] : 1));
    }
    if (f->encoding == KNOW_DENSE) {
        knowledge_dense_rows(k, f, 0, n, x);
        knowledge_dense_rows(all, f, from, n, y);
        for (size_t i = 0; i < n * vocab; i++) assert_true(x[i] == (m->counted[from + i / vocab] ? y[i] : 0));
    }
    for (size_t i = 0, begin = 0; i < k->n_fields; begin = 0, i++)
        for (size_t q = 0; q < k->n_seqs; begin += k->lengths[q++]) {
            size_t first, rows = knowledge_feature_span(k, i, q, 1, &first), row = first;
            const uint64_t *before = knowledge_feature_before(k, i);
            for (size_t p = begin; p < begin + k->lengths[q]; p++) {
                size_t at = from + p, length = m->at[at] + 1;
                if (before && before[p + 1] == before[p]) continue;
                float got[64], want = (float)(at % 8) + (i != 2 ? 0.25f : 0);
                if (k->fields[i].field->per == PER_PAIR)
                    knowledge_feature_pairs(k, i, row++, 1, length, got);
                else
                    knowledge_feature_rows(k, i, row++, 1, got);
                if (k->fields[i].field->per != PER_PAIR || length > 1)
                    assert_true(fabsf(got[i == 2 ? 0 : 1] - want) < 0.06f);
            }
            assert_int_equal(row - first, rows);
        }
    free(x);
    free(y);
}

static void rows_that_count_are_those_of_all(void **state) {
    struct made m = made_new(5);
    (void)state;
    assert_true(m.count > m.s.n_positions / 5 && m.count < m.s.n_positions / 2);
    for (size_t i = 0; i < COUNT_OF(encodings); i++) {
        struct err e;
        struct knowledge_format f = with_fields(encodings[i], m.s.vocab, true),
                                g = with_fields(encodings[i], m.s.vocab, false), got, other;
        struct knowledge_rows all, k, part = {0};
        OK(decode_all(encode_made(&m, &g, false, 100, 7), &all, &other, &e));
        for (size_t cut = 1; cut <= m.s.n_positions; cut = cut * 3 + 1) {
            OK(decode_all(encode_made(&m, &f, true, cut, 1 + cut % 5), &k, &got, &e));
            check_queue(&m, &k, &got, &all, 0);
            size_t from = m.s.lengths[0] + m.s.lengths[1];
            OK(knowledge_append_seqs(&part, &k, &got, 2, 30, &e));
            check_queue(&m, &part, &got, &all, from);
            knowledge_drop(&k, &got, 2);
            check_queue(&m, &k, &got, &all, from);
            knowledge_rows_release(&part);
            part = (struct knowledge_rows){0};
            knowledge_rows_release(&k);
        }
        knowledge_rows_release(&all);
    }
    made_free(&m);
}

/* Re-encodes the stream in fd, which has format f, as logit-dump does. */
static int encode_again(int fd, const struct knowledge_format *f, const struct knowledge_format *to) {
    struct err e;
    struct encoding out;
    struct stream_reader *r = NULL;
    struct batch b = {0};
    bool more = true;
    OK(stream_reader_open(&r, fd, "in", STREAM_ANY, &e));
    OK(encoding_begin(&out, to, 3, &e));
    while (true) {
        OK(batch_read(r, &b, &more, &e));
        if (!more) break;
        OK(knowledge_encoder_batch(out.k, f, &b, &e));
    }
    OK(encoding_end(&out, 0, &e));
    stream_reader_free(r);
    batch_release(&b);
    close(fd);
    return out.fd;
}

static void encoding_again_keeps_what_counts(void **state) {
    struct made m = made_new(6);
    (void)state;
    for (size_t i = 0; i < COUNT_OF(encodings); i++) {
        struct err e;
        struct knowledge_format from = with_fields("dense", m.s.vocab, true),
                                to = with_fields(encodings[i], m.s.vocab, true),
                                g = with_fields(encodings[i], m.s.vocab, false), got, other;
        struct knowledge_rows all, k;
        OK(decode_all(encode_made(&m, &g, false, 100, 7), &all, &other, &e));
        OK(decode_all(encode_again(encode_again(encode_made(&m, &from, true, 17, 3), &from, &to), &to, &to), &k, &got,
                      &e));
        check_queue(&m, &k, &got, &all, 0);
        knowledge_rows_release(&k);
        knowledge_rows_release(&all);
    }
    made_free(&m);
}

/* ---- a stream that every later version must read ----------------------------------------------------------------- */

#define GOLDEN "formats/golden/v1-knowledge-counted.rill"

static struct knowledge_format golden_format(bool counted) {
    return with_fields("topk:3", 50, counted);
}

static void the_golden_stream_is_read(void **state) {
    struct err e;
    struct made m = made_new(9);
    struct knowledge_format g = golden_format(false), got, other;
    struct knowledge_rows all, k;
    int fd = open(GOLDEN, O_RDONLY | O_CLOEXEC);
    (void)state;
    if (fd < 0) fail_msg("%s: %s", GOLDEN, strerror(errno));
    OK(decode_all(encode_made(&m, &g, false, 100, 7), &all, &other, &e));
    OK(decode_all(fd, &k, &got, &e));
    assert_int_equal(k.n_positions, m.s.n_positions);
    assert_true(got.fields[0].counted && got.fields[1].counted && !got.fields[2].counted);
    check_queue(&m, &k, &got, &all, 0);
    knowledge_rows_release(&k);
    knowledge_rows_release(&all);
    made_free(&m);
}

/* Run once, when the format was extended; never write the file again. */
static int write_golden(void) {
    struct made m = made_new(9);
    struct knowledge_format f = golden_format(true);
    struct buf b = contents(encode_made(&m, &f, true, 100, 7));
    FILE *out = fopen(GOLDEN, "wx");
    bool ok = out && fwrite(b.data, 1, b.len, out) == b.len;
    ok = out && !fclose(out) && ok;
    buf_release(&b);
    made_free(&m);
    return !ok;
}

/* ---- hostile streams --------------------------------------------------------------------------------------------- */

struct lie {
    uint8_t counted[3];
    uint64_t n; /* number of counted positions that is written */
    enum dtype dtype;
    uint64_t rows, hidden; /* rows of the response and of a counted field */
    const char *says;
};

/* One sequence of three positions over a vocabulary of 4. Only the second is a label, so only the first row counts. */
static int write_lie(const struct lie *l, bool dense) {
    static const float zeros[16] = {0};
    static const uint8_t ones[4] = {1, 1, 1, 1}, mask[] = {0, 1, 0};
    static const uint16_t ids[4] = {0};
    struct err e;
    struct stream_writer *w = NULL;
    struct knowledge_format f = with_fields(dense ? "dense" : "topk:1", 4, true);
    const struct stream_batch head = {.n_positions = 3, .n_seqs = 1, .n_tensors = dense ? 6 : 8};
    cJSON *meta = cJSON_CreateObject();
    int fd = memory_file();
    f.n_fields = 1;
    OK(stream_writer_open(&w, fd, "out", &(struct stream_write_options){0}, &e));
    OK(knowledge_meta_put(meta, &f, &e));
    OK(stream_write_meta(w, meta, &e));
    OK(batch_write(w, &head, (uint32_t[]){1, 2, 3}, (uint32_t[]){3}, &e));
    OK(batch_write_mask(w, &head, mask, &e));
    struct tensor_desc d = desc_of("teacher.counted", l->dtype, 1, (uint64_t[]){l->n});
    OK(stream_write_tensor(w, &d, NULL, l->counted, &e));
    d = desc_of("teacher.hidden.1", DT_F32, 2, (uint64_t[]){l->hidden, 2});
    OK(stream_write_tensor(w, &d, NULL, zeros, &e));
    struct tensor_desc response[] = {desc_of("teacher.logits", DT_F32, 2, (uint64_t[]){l->rows, 4}),
                                     desc_of("teacher.n", DT_U8, 1, (uint64_t[]){l->rows}),
                                     desc_of("teacher.ids", DT_U16, 1, (uint64_t[]){l->rows}),
                                     desc_of("teacher.logprobs", DT_F16, 1, (uint64_t[]){l->rows})};
    const void *data[] = {zeros, ones, ids, ids};
    for (size_t i = dense ? 0 : 1; i < (dense ? 1 : 4); i++)
        OK(stream_write_tensor(w, &response[i], NULL, data[i], &e));
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    cJSON_Delete(meta);
    lseek(fd, 0, SEEK_SET);
    return fd;
}

static void lies_about_what_counts_are_found_out(void **state) {
    static const struct lie cases[] = {
        {{1, 0, 0}, 3, DT_U8, 1, 1, NULL},
        {{1, 1, 0}, 3, DT_U8, 2, 2, NULL},
        {{1, 2, 0}, 3, DT_U8, 2, 2, "position 1 of the batch: \"teacher.counted\" is 2"},
        {{0, 1, 1}, 3, DT_U8, 2, 2, "position 0 of the batch has a label, and its \"teacher.counted\" is 0"},
        {{0, 0, 0}, 3, DT_U8, 0, 0, "has a label"},
        {{1, 0, 0}, 2, DT_U8, 1, 1, "'teacher.counted' is u8 [2]"},
        {{1, 0, 0}, 3, DT_I8, 1, 1, "'teacher.counted' is i8"},
        {{1, 0, 0}, 3, DT_U8, 3, 1, "expected "},
        {{1, 0, 0}, 3, DT_U8, 0, 1, "expected "},
        {{1, 0, 0}, 3, DT_U8, 1, 3, "'teacher.hidden.1' is f32 [3, 2], expected f32 [1, 2]"},
    };
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        for (int dense = 0; dense < 2; dense++) {
            struct err e;
            struct knowledge_format got;
            struct knowledge_rows k;
            int rc = decode_all(write_lie(&cases[i], dense), &k, &got, &e);
            if (rc != (cases[i].says ? ERR_DATA : 0)) fail_msg("case %zu: %s", i, rc ? e.msg : "taken");
            if (rc && !strstr(e.msg, cases[i].says)) fail_msg("case %zu: %s", i, e.msg);
            knowledge_rows_release(&k);
        }
}

static void samples_are_of_what_counts(void **state) {
    uint8_t counted[100], chosen[100], all[100];
    (void)state;
    for (uint32_t length = 1; length <= 100; length += 9)
        for (uint32_t n = 1; n < 20; n += 6) {
            size_t sum = 0, count = 0;
            for (uint32_t i = 0; i < length; i++) count += counted[i] = mask_at(i);
            knowledge_sample_positions(3, length, n, length, counted, chosen);
            for (uint32_t i = 0; i < length; i++) sum += chosen[i], assert_true(!chosen[i] || counted[i]);
            assert_int_equal(sum, n < count ? n : count);
            memset(counted, 1, length);
            knowledge_sample_positions(3, length, n, length, counted, chosen);
            knowledge_sample_positions(3, length, n, length, NULL, all);
            assert_memory_equal(chosen, all, length);
        }
}

int main(int argc, char **argv) {
    if (argc == 2 && !strcmp(argv[1], "--write")) return write_golden();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_that_count_are_those_of_all), cmocka_unit_test(encoding_again_keeps_what_counts),
        cmocka_unit_test(the_golden_stream_is_read),        cmocka_unit_test(lies_about_what_counts_are_found_out),
        cmocka_unit_test(samples_are_of_what_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
