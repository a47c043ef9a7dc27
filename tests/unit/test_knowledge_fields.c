/* Tests of the fields of a knowledge stream: round trips in each type, however batches are cut, sampled or not. */
#include "tests/unit/knowledge_samples.h"

#define VOCAB 11
#define COLS  6
#define HEADS 3

/* The value that the teacher gives for row r and column c of a field, made up. */
static float value_of(size_t field, size_t row, size_t col) {
    uint32_t word[4];
    philox(field + 1, row, col, word);
    return (float)((int32_t)word[0] % 1000) / 250;
}

static struct knowledge_field field_of(const char *point, uint32_t layer, enum knowledge_per per, enum dtype dtype,
                                       bool sampled) {
    struct knowledge_field x = {.layer = layer, .per = per, .dtype = dtype, .cols = COLS, .sampled = sampled};
    snprintf(x.point, sizeof x.point, "%s", point);
    if (per == PER_PAIR) x.cols = x.heads = HEADS;
    return x;
}

static void add_fields(struct knowledge_format *f, bool sampled, bool causal, enum dtype pairs) {
    struct err e;
    struct knowledge_field all[] = {
        field_of("embed", KNOWLEDGE_NO_LAYER, PER_POSITION, DT_F32, false),
        field_of("hidden", 0, PER_POSITION, DT_BF16, sampled),
        field_of("hidden", 7, PER_POSITION, DT_I8, sampled),
        field_of("pooled", KNOWLEDGE_NO_LAYER, PER_SEQUENCE, DT_F32, false),
        field_of("attention", 1, PER_PAIR, pairs, sampled),
    };
    f->tap_positions = sampled ? 4 : 0;
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        all[i].causal = causal;
        OK(knowledge_field_add(f, &all[i], &e));
    }
}

/* Collects the rows of field i for positions [from, from + n) of the sample, as a teacher would. */
static void collect(const struct sample *s, const struct knowledge_format *f, size_t i, size_t from, size_t n,
                    const uint8_t *sampled, struct knowledge_part *part) {
    struct err e;
    const struct knowledge_field *field = &f->fields[i];
    float x[HEADS * 64];
    size_t begin = 0;
    for (size_t q = 0; q < s->n_seqs; begin += s->lengths[q++]) {
        size_t length = s->lengths[q], end = begin + length;
        bool ends = end > from && end <= from + n;
        for (size_t p = begin; p < end; p++) {
            bool here = field->per == PER_POSITION ? p >= from && p < from + n : ends;
            if (!here || (field->sampled && !sampled[p])) continue;
            size_t cols = field->per != PER_PAIR ? COLS : field->causal ? p - begin + 1 : length;
            size_t vectors = field->per == PER_PAIR ? HEADS : 1;
            for (size_t c = 0; c < vectors * cols; c++)
                x[c] = field->per == PER_PAIR ? fabsf(value_of(i, p, c)) : value_of(i, p, c);
            if (field->per != PER_SEQUENCE || p == begin) OK(knowledge_part_add(part, field, vectors, cols, x, &e));
        }
    }
}

static uint8_t *sample_flags(const struct sample *s, const struct knowledge_format *f) {
    uint8_t *flags = calloc(s->n_positions, 1);
    size_t at = 0;
    for (size_t q = 0; q < s->n_seqs; at += s->lengths[q++])
        knowledge_sample_positions(5, q, f->tap_positions, s->lengths[q], NULL, flags + at);
    return flags;
}

/* Announces `cut` positions at a time. */
static struct buf encode_fields(const struct sample *s, const struct knowledge_format *f, size_t cut) {
    struct err e;
    struct encoding out;
    uint32_t *lengths = calloc(s->n_seqs, sizeof *lengths);
    uint8_t *flags = sample_flags(s, f);
    OK(encoding_begin(&out, f, 3, &e));
    for (size_t at = 0; at < s->n_positions; at += cut) {
        size_t n = piece_of(s->n_positions - at, cut);
        struct knowledge_input in = {
            .head = cut_batch(s, at, n, lengths), .tokens = s->tokens + at, .lengths = lengths};
        if (f->tap_positions) in.sampled = flags + at;
        OK(knowledge_encoder_begin(out.k, &in, &e));
        for (uint32_t i = 0; i < f->n_fields; i++) {
            struct knowledge_part part = {0};
            collect(s, f, i, at, n, flags, &part);
            OK(knowledge_encoder_field(out.k, i, &part, &e));
            knowledge_part_release(&part);
        }
        OK(knowledge_encoder_rows(out.k, n, f->encoding ? s->logits + at * VOCAB : NULL, 1, &e));
    }
    OK(encoding_end(&out, 0, &e));
    free(lengths);
    free(flags);
    return contents(out.fd);
}

static double tolerance_of(const struct knowledge_field *field, float most) {
    return field->dtype == DT_F32 ? 0 : field->dtype == DT_BF16 ? 0x1p-8 * most : most / 254 * 1.001;
}

static void check_value(const struct knowledge_field *field, float got, float want) {
    if (fabsf(got - want) > tolerance_of(field, 4)) fail_msg("%s: %g, expected %g", field->name, got, want);
}

/* Checks every row of the queue, whose first sequence is number `seq` of the sample. */
static void check_rows(const struct sample *s, const struct knowledge_rows *k, size_t seq) {
    size_t first, begin = 0, at = 0;
    for (size_t q = 0; q < seq; q++) begin += s->lengths[q];
    for (size_t q = 0; q < k->n_seqs; at += k->lengths[q], begin += k->lengths[q++]) {
        for (size_t i = 0; i < k->n_fields; i++) {
            const struct knowledge_field *field = k->fields[i].field;
            size_t rows = knowledge_feature_span(k, i, q, 1, &first), row = first, length = k->lengths[q];
            float x[HEADS * 64];
            for (size_t p = 0; p < length; p++) {
                if (field->per == PER_SEQUENCE && p) break;
                if (field->sampled && k->sampled[at + p + 1] == k->sampled[at + p]) continue;
                if (field->per != PER_PAIR) {
                    knowledge_feature_rows(k, i, row++, 1, x);
                    for (size_t c = 0; c < COLS; c++) check_value(field, x[c], value_of(i, begin + p, c));
                    continue;
                }
                size_t n = field->causal ? p + 1 : length;
                knowledge_feature_pairs(k, i, row++, 1, length, x);
                for (size_t h = 0; h < HEADS; h++)
                    for (size_t c = 0; c < length; c++)
                        check_value(field, x[h * length + c], c < n ? fabsf(value_of(i, begin + p, h * n + c)) : 0);
            }
            assert_int_equal(row - first, rows);
        }
    }
}

/* Reads sequences in random order, some of them twice, each alone in a queue or after another. */
static void check_units(const struct sample *s, const struct buf *bytes) {
    struct err e;
    struct stream_reader *scan, *r;
    struct knowledge_units u = {0};
    struct rng random = rng_init(4, 0);
    int fds[] = {file_of(bytes->data, bytes->len), file_of(bytes->data, bytes->len)};
    OK(stream_reader_open(&scan, fds[0], "in", STREAM_ANY, &e));
    OK(stream_reader_open(&r, fds[1], "in", STREAM_ANY, &e));
    OK(knowledge_units_find(&u, scan, &e));
    assert_int_equal(u.n, s->n_seqs);
    assert_int_equal(u.positions, s->n_positions);
    knowledge_units_open(&u, r);
    for (size_t i = 0; i < 3 * s->n_seqs; i++) {
        struct knowledge_rows k = {0};
        size_t seq = (size_t)rng_below(&random, s->n_seqs), other = (size_t)rng_below(&random, s->n_seqs);
        OK(knowledge_units_read(&u, &u.format, other, &k, &e));
        OK(knowledge_units_read(&u, &u.format, seq, &k, &e));
        assert_int_equal(k.n_seqs, 2);
        assert_int_equal(k.seqs[1], seq);
        if (i % 2) knowledge_drop(&k, &u.format, 1);
        if (k.n_seqs == 1) check_rows(s, &k, seq);
        if (k.n_seqs == 2) {
            knowledge_rows_release(&k);
            OK(knowledge_units_read(&u, &u.format, other, &k, &e));
            check_rows(s, &k, other);
        }
        knowledge_rows_release(&k);
    }
    knowledge_units_release(&u);
    stream_reader_free(scan);
    stream_reader_free(r);
    close(fds[0]);
    close(fds[1]);
}

/* Reads batch after batch, dropping whole sequences now and then. */
static void check_stream(const struct sample *s, const struct buf *bytes) {
    struct err e;
    struct stream_reader *r;
    struct batch b = {0};
    struct knowledge_rows k = {0};
    struct knowledge_format f;
    bool more;
    size_t seq = 0;
    int fd = file_of(bytes->data, bytes->len);
    OK(stream_reader_open(&r, fd, "in", STREAM_KNOWLEDGE, &e));
    OK(knowledge_meta_get(stream_reader_meta(r), &f, &e));
    for (;;) {
        OK(knowledge_read(r, &f, &b, &more, &e));
        if (!more) break;
        OK(knowledge_decode(&k, &f, &b, &e));
        size_t whole = knowledge_whole_seqs(&k);
        if (whole < 3 || k.open) continue;
        check_rows(s, &k, seq);
        knowledge_drop(&k, &f, whole / 2);
        seq += whole / 2;
        check_rows(s, &k, seq);
    }
    OK(knowledge_decode_end(&k, &e));
    check_rows(s, &k, seq);
    assert_int_equal(seq + k.n_seqs, s->n_seqs);
    knowledge_rows_release(&k);
    batch_release(&b);
    stream_reader_free(r);
    close(fd);
}

/* Fields in all forms; the bytes must not depend on how positions were announced. */
static void fields_come_back(void **state) {
    (void)state;
    static const char *const encodings[] = {"sample:10", "dense", NULL};
    static const enum dtype pairs[] = {DT_F32, DT_BF16, DT_I8};
    struct sample s = sample_new(90, 60, VOCAB, 12);
    for (int i = 0; i < 12; i++) {
        struct knowledge_format f = {.temperature = 1, .dtype = DT_F32, .vocab_size = VOCAB};
        if (encodings[i % 3]) f = format_of(encodings[i % 3], VOCAB);
        add_fields(&f, i & 1, i & 2, pairs[i / 4]);
        struct buf a = encode_fields(&s, &f, s.n_positions), b = encode_fields(&s, &f, 7);
        assert_int_equal(a.len, b.len);
        assert_memory_equal(a.data, b.data, a.len);
        check_stream(&s, &a);
        check_units(&s, &a);
        buf_release(&a);
        buf_release(&b);
    }
    sample_free(&s);
}

/* ---- hostile streams --------------------------------------------------------------------------------------------- */

/* The first batch of a stream with fields, to be changed before it is decoded. */
struct lie {
    struct knowledge_format f;
    struct stream_reader *r;
    struct batch b;
    int fd;
};

static struct lie lie_begin(const struct buf *bytes) {
    struct err e;
    struct lie l = {.fd = file_of(bytes->data, bytes->len)};
    bool more;
    OK(stream_reader_open(&l.r, l.fd, "in", STREAM_KNOWLEDGE, &e));
    OK(knowledge_meta_get(stream_reader_meta(l.r), &l.f, &e));
    OK(knowledge_read(l.r, &l.f, &l.b, &more, &e));
    assert_true(more);
    return l;
}

static struct tensor *tensor_of(struct lie *l, const char *name) {
    for (uint32_t i = 0; i < l->b.head.n_tensors; i++)
        if (!strcmp(l->b.tensors[i].desc.name, name)) return &l->b.tensors[i];
    fail_msg("no %s", name);
    return NULL;
}

/* says NULL: must be refused or give rows that are valid. */
static void lie_end(struct lie *l, const char *says) {
    struct err e = {0};
    struct knowledge_rows k = {0};
    int rc = knowledge_decode(&k, &l->f, &l->b, &e);
    if (says && (rc != ERR_DATA || !strstr(e.msg, says))) fail_msg("%d \"%s\", expected \"%s\"", rc, e.msg, says);
    if (rc && rc != ERR_DATA) fail_msg("%d \"%s\"", rc, e.msg);
    for (size_t r = 0; !rc && r < k.n_rows; r++) {
        double sum = 0;
        for (uint64_t i = k.offset[r]; i < k.offset[r + 1]; i++) {
            assert_true(k.ids[i] < VOCAB && k.probs[i] > 0);
            sum += k.probs[i];
        }
        assert_true(fabs(sum - 1) < 1e-6);
    }
    knowledge_rows_release(&k);
    batch_release(&l->b);
    stream_reader_free(l->r);
    close(l->fd);
}

static void lies_about_fields_are_found_out(void **state) {
    (void)state;
    struct sample s = sample_new(9, 20, VOCAB, 13);
    struct knowledge_format f = format_of("sample:10", VOCAB);
    add_fields(&f, true, true, DT_I8);
    struct buf bytes = encode_fields(&s, &f, 30);
    struct lie l = lie_begin(&bytes);
    ((float *)tensor_of(&l, "teacher.embed")->data)[3] = NAN;
    lie_end(&l, "teacher.embed': a value is not finite");
    l = lie_begin(&bytes);
    tensor_of(&l, "teacher.embed")->desc.dims[0]--;
    lie_end(&l, "teacher.embed");
    l = lie_begin(&bytes);
    tensor_of(&l, "teacher.hidden.0")->desc.dtype = DT_F16;
    lie_end(&l, "teacher.hidden.0");
    l = lie_begin(&bytes);
    tensor_of(&l, "teacher.hidden.0")->desc.name[15] = '1';
    lie_end(&l, "no tensor 'teacher.hidden.0'");
    l = lie_begin(&bytes);
    ((float *)tensor_of(&l, "teacher.hidden.7.scale")->data)[0] = -1;
    lie_end(&l, "a scale is -1");
    l = lie_begin(&bytes);
    ((int8_t *)tensor_of(&l, "teacher.attention.1")->data)[0] = -1;
    lie_end(&l, "a weight is -1");
    l = lie_begin(&bytes);
    tensor_of(&l, "teacher.attention.1")->desc.dims[0]--;
    lie_end(&l, "teacher.attention.1");
    l = lie_begin(&bytes);
    ((uint32_t *)tensor_of(&l, "teacher.positions")->data)[1] = 1 << 30;
    lie_end(&l, "expected positions of the batch, ascending");
    l = lie_begin(&bytes);
    ((uint32_t *)tensor_of(&l, "teacher.positions")->data)[1] =
        ((uint32_t *)tensor_of(&l, "teacher.positions")->data)[0];
    lie_end(&l, "expected positions of the batch, ascending");
    l = lie_begin(&bytes);
    tensor_of(&l, "teacher.pooled")->desc.dims[0]--;
    lie_end(&l, "teacher.pooled");
    buf_release(&bytes);
    sample_free(&s);
}

/* With any bit flipped, or the string cut at any byte. */
static void draws_of_any_bits_are_refused_or_whole(void **state) {
    (void)state;
    struct sample s = sample_new(6, 9, VOCAB, 14);
    struct knowledge_format f = format_of("sample:7", VOCAB);
    struct buf bytes = encode_fields(&s, &f, 1000);
    struct lie l = lie_begin(&bytes);
    uint64_t n = tensor_of(&l, "teacher.draws")->n_bytes;
    lie_end(&l, NULL);
    for (uint64_t i = 0; i < 8 * n; i++) {
        l = lie_begin(&bytes);
        ((uint8_t *)tensor_of(&l, "teacher.draws")->data)[i / 8] ^= 1 << i % 8;
        lie_end(&l, NULL);
    }
    for (uint64_t i = 0; i < n; i++) {
        l = lie_begin(&bytes);
        tensor_of(&l, "teacher.draws")->n_bytes = tensor_of(&l, "teacher.draws")->desc.dims[0] = i;
        lie_end(&l, "the codes of \"teacher.draws\" end early");
    }
    buf_release(&bytes);
    sample_free(&s);
}

static void fields_of_meta_are_checked(void **state) {
    (void)state;
    static const struct {
        const char *fields, *says;
    } cases[] = {
        {"[]", "\"fields\" is empty"},
        {"{}", "\"fields\" is not an array"},
        {"[{\"name\":\"response\",\"codec\":\"sample\",\"n\":5,\"temperature\":1},{\"name\":\"response\"}]",
         "two responses"},
        {"[{\"name\":\"x\",\"per\":\"position\",\"codec\":\"rows\",\"dtype\":\"f16\",\"point\":\"x\",\"cols\":3}]",
         "expected f32"},
        {"[{\"name\":\"x\",\"per\":\"pair\",\"codec\":\"rows\",\"dtype\":\"f32\",\"point\":\"x\",\"cols\":3}]",
         "codec"},
        {"[{\"name\":\"y\",\"per\":\"position\",\"codec\":\"rows\",\"dtype\":\"f32\",\"point\":\"x\",\"cols\":3}]",
         "expected \"x\""},
        {"[{\"name\":\"logits\",\"per\":\"position\",\"codec\":\"rows\",\"dtype\":\"f32\",\"point\":\"logits\","
         "\"cols\":3}]",
         "not the name of a point"},
        {"[{\"name\":\"x\",\"per\":\"position\",\"codec\":\"rows\",\"dtype\":\"f32\",\"point\":\"x\",\"cols\":0}]",
         "cols"},
        {"[{\"name\":\"x\",\"per\":\"position\",\"codec\":\"rows\",\"dtype\":\"f32\",\"point\":\"x\",\"cols\":3,"
         "\"heads\":2}]",
         "heads"},
        {"[{\"name\":\"x\",\"per\":\"position\",\"codec\":\"rows\",\"dtype\":\"f32\",\"point\":\"x\",\"cols\":3,"
         "\"sampled\":true}]",
         "no \"tap_positions\""},
        {"[{\"name\":\"x\",\"per\":\"hour\",\"codec\":\"rows\",\"dtype\":\"f32\",\"point\":\"x\",\"cols\":3}]",
         "per \"hour\""},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct err e = {0};
        struct knowledge_format f;
        char text[1024];
        snprintf(text, sizeof text, "{\"kind\":\"knowledge\",\"vocab_size\":8,\"fields\":%s}", cases[i].fields);
        cJSON *meta = json_of(text);
        int rc = knowledge_meta_get(meta, &f, &e);
        cJSON_Delete(meta);
        if (rc != ERR_DATA || !strstr(e.msg, cases[i].says)) fail_msg("%s: %d \"%s\"", text, rc, e.msg);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fields_come_back),
        cmocka_unit_test(lies_about_fields_are_found_out),
        cmocka_unit_test(draws_of_any_bits_are_refused_or_whole),
        cmocka_unit_test(fields_of_meta_are_checked),
    };
    return cmocka_run_group_tests_name("knowledge_fields", tests, NULL, NULL);
}
