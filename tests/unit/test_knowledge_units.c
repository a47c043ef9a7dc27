/*
 * Tests of random access: sequences and packs of a file in any order must have the same rows as in sequence, however
 * batches are cut; and what is refused.
 */
#include "tests/unit/knowledge_samples.h"

#define VOCAB 19

/* The sample as a token stream in batches of `cut` positions, with a mask; pack 0: no packs. */
static int write_tokens(const struct sample *s, size_t cut, uint32_t pack, size_t from, int segments) {
    struct err e;
    struct stream_writer *w;
    int fd = memory_file();
    uint32_t *lengths = calloc(s->n_seqs, sizeof *lengths);
    uint8_t *mask = calloc(s->n_positions, 1);
    for (size_t i = 0; i < s->n_positions; i++) mask[i] = i % 3 > 0;
    cJSON *meta = json_of("{\"kind\":\"tokens\",\"vocab_size\":19}");
    if (pack) assert_true(json_put_u64(meta, "pack", pack));
    OK(stream_writer_open(&w, fd, "out", &(struct stream_write_options){0}, &e));
    for (int segment = 0; segment < segments; segment++) {
        if (segment) OK(stream_writer_segment(w, &e));
        OK(stream_write_meta(w, meta, &e));
        for (size_t at = from; at < s->n_positions; at += cut) {
            size_t n = piece_of(s->n_positions - at, cut);
            struct stream_batch head = cut_batch(s, at, n, lengths);
            head.n_tensors = 3;
            OK(batch_write(w, &head, s->tokens + at, lengths, &e));
            OK(batch_write_mask(w, &head, mask + at, &e));
        }
    }
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    cJSON_Delete(meta);
    free(lengths);
    free(mask);
    lseek(fd, 0, SEEK_SET);
    return fd;
}

struct rig {
    struct knowledge_units u;
    struct stream_reader *r;
    int fd;
};

/* Indexes the file, which the rig then owns. */
static int rig_find(struct rig *x, int fd, struct err *e) {
    struct stream_reader *scan;
    *x = (struct rig){.fd = fd};
    if (stream_reader_open(&scan, fd, "in", STREAM_ANY, e)) return e->code;
    int rc = knowledge_units_find(&x->u, scan, e);
    stream_reader_free(scan);
    lseek(fd, 0, SEEK_SET);
    if (!rc) rc = stream_reader_open(&x->r, fd, "in", STREAM_ANY, e);
    knowledge_units_open(&x->u, x->r);
    return rc;
}

static void rig_release(struct rig *x) {
    knowledge_units_release(&x->u);
    stream_reader_free(x->r);
    close(x->fd);
}

static struct knowledge_rows all_rows(int fd, struct knowledge_format *f) {
    struct err e;
    struct stream_reader *r;
    struct batch b = {0};
    struct knowledge_rows k = {0};
    lseek(fd, 0, SEEK_SET);
    OK(stream_reader_open(&r, fd, "in", STREAM_ANY, &e));
    OK(knowledge_meta_get(stream_reader_meta(r), f, &e));
    for (bool more = true; more;) {
        OK(knowledge_read(r, f, &b, &more, &e));
        if (more) OK(knowledge_decode(&k, f, &b, &e));
    }
    batch_release(&b);
    stream_reader_free(r);
    lseek(fd, 0, SEEK_SET);
    return k;
}

static struct digest digest_of(const struct knowledge_rows *k, const struct knowledge_format *f, size_t seq) {
    struct err e;
    struct digest_state *d = digest_new(&e);
    size_t at = 0;
    for (size_t i = 0; i < seq; i++) at += k->lengths[i];
    knowledge_digest_seq(d, k, f, seq, at);
    digest_update(d, k->mask + at, k->lengths[seq]);
    digest_update(d, k->labels + at, k->lengths[seq] * sizeof *k->labels);
    struct digest out = digest_get(d);
    digest_free(d);
    return out;
}

/* Reads every unit, backwards and then at random, and compares with the rows of the whole file. */
static void assert_same_rows(struct rig *x, const struct knowledge_rows *all, const struct knowledge_format *f) {
    struct err e;
    struct rng random = rng_init(9, 9);
    size_t *first = calloc(x->u.n + 1, sizeof *first), seq = 0;
    for (size_t i = 0; i < x->u.n; i++) {
        first[i] = seq;
        for (uint64_t sum = 0; sum < x->u.units[i].positions; sum += all->lengths[seq++]) {
        }
    }
    assert_int_equal(first[x->u.n] = seq, all->n_seqs);
    for (size_t turn = 0; turn < 3 * x->u.n; turn++) {
        struct knowledge_rows k = {0};
        size_t i = turn < x->u.n ? x->u.n - 1 - turn : (size_t)rng_below(&random, x->u.n);
        OK(knowledge_units_read(&x->u, f, i, &k, &e));
        assert_int_equal(k.n_seqs, first[i + 1] - first[i]);
        for (size_t s = 0; s < k.n_seqs; s++)
            assert_true(digest_equal(digest_of(&k, f, s), digest_of(all, f, first[i] + s)));
        knowledge_rows_release(&k);
    }
    free(first);
}

static void test_tokens(void **state) {
    (void)state;
    static const size_t cuts[] = {1, 2, 7, 16, 1000};
    for (size_t c = 0; c < COUNT_OF(cuts); c++)
        for (uint32_t pack = 0; pack <= 20; pack += 10)
            for (int segments = 1; segments < 3; segments++) {
                struct sample s = sample_new(30, 10, VOCAB, c);
                struct err e = {0};
                struct rig x;
                struct knowledge_format f;
                int fd = write_tokens(&s, cuts[c], pack, 0, segments);
                struct knowledge_rows all = all_rows(fd, &f);
                if (rig_find(&x, fd, &e)) fail_msg("%s", e.msg);
                assert_int_equal(x.u.positions, all.n_positions);
                if (!pack) assert_int_equal(x.u.n, all.n_seqs);
                for (size_t i = 0; i < x.u.n && pack; i++) assert_true(x.u.units[i].positions <= pack);
                assert_same_rows(&x, &all, &f);
                knowledge_rows_release(&all);
                rig_release(&x);
                sample_free(&s);
            }
}

static void test_encodings(void **state) {
    (void)state;
    static const char *const encodings[] = {"dense", "topk:4", "ghost:3", "topp:0.8", "sample:9"};
    for (size_t i = 0; i < COUNT_OF(encodings); i++) {
        struct sample s = sample_new(40, 300, VOCAB, i); /* more than one batch */
        struct knowledge_format f = format_of(encodings[i], VOCAB);
        struct err e = {0};
        struct rig x;
        int fd;
        OK(encode_sample(&s, &f, 1, 64, 16, &fd, &e));
        struct knowledge_rows all = all_rows(fd, &f);
        if (rig_find(&x, fd, &e)) fail_msg("%s", e.msg);
        assert_same_rows(&x, &all, &f);
        knowledge_rows_release(&all);
        rig_release(&x);
        sample_free(&s);
    }
}

static void assert_refused(int fd, const char *says) {
    struct rig x;
    struct err e = {0};
    assert_int_equal(rig_find(&x, fd, &e), ERR_DATA);
    if (!strstr(e.msg, says)) fail_msg("said '%s', expected '%s'", e.msg, says);
    rig_release(&x);
}

static void test_refused(void **state) {
    (void)state;
    struct sample s = sample_new(8, 10, VOCAB, 2);
    assert_true(s.lengths[0] > 1);
    assert_refused(write_tokens(&s, 4, 0, 1, 1), "in: the file begins at position 1 of sequence 0");
    int fd = write_tokens(&s, 1000, 0, 0, 1);
    off_t size = lseek(fd, 0, SEEK_END);
    assert_int_equal(ftruncate(fd, size - 200), 0);
    lseek(fd, 0, SEEK_SET);
    assert_refused(fd, "truncated");
    assert_refused(write_tokens(&s, 4, 0, s.n_positions, 1), "in holds no sequences");
    sample_free(&s);
}

/* A file that is overwritten after it was indexed. */
static void test_changed(void **state) {
    (void)state;
    struct sample s = sample_new(20, 10, VOCAB, 3), other = sample_new(20, 10, VOCAB, 4);
    struct err e = {0};
    struct rig x;
    int fd = write_tokens(&s, 1000, 0, 0, 1), now = write_tokens(&other, 1000, 0, 0, 1);
    if (rig_find(&x, fd, &e)) fail_msg("%s", e.msg);
    struct buf b = contents(now);
    assert_int_equal(pwrite(fd, b.data, b.len, 0), b.len);
    int rc = 0;
    struct knowledge_rows k = {0};
    for (size_t i = 0; i < x.u.n && !rc; i++) rc = knowledge_units_read(&x.u, &x.u.format, i, &k, &e);
    assert_int_equal(rc, ERR_DATA);
    assert_memory_equal(e.msg, "in", 2);
    buf_release(&b);
    knowledge_rows_release(&k);
    rig_release(&x);
    sample_free(&s);
    sample_free(&other);
}

/* Running out of memory anywhere must be an error without leaks. */
static void test_no_memory(void **state) {
    (void)state;
    struct sample s = sample_new(10, 10, VOCAB, 5);
    int rc = -1;
    for (uint64_t n = 1; rc; n++) {
        struct err e = {0};
        struct rig x;
        int fd = write_tokens(&s, 16, 8, 0, 1);
        if (rig_find(&x, fd, &e)) fail_msg("%s", e.msg);
        struct knowledge_rows k = {0};
        mem_fail_at(n);
        rc = 0;
        for (size_t i = x.u.n; i-- > 0 && !rc;) rc = knowledge_units_read(&x.u, &x.u.format, i, &k, &e);
        mem_fail_at(0);
        knowledge_rows_release(&k);
        rig_release(&x);
    }
    sample_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokens),  cmocka_unit_test(test_encodings), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_changed), cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
