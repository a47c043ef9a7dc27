/* Tests of mixtures and shuffling: which sequences are drawn from which file, and when, against the definition. */
#include "lib/distill/distill.h"
#include "tests/unit/knowledge_samples.h"

#define VOCAB      1000
#define BATCH      40
#define LONGEST    12
#define MOST_DRAWN 4000

/* A file of `n` sequences; the first token of each says which file and sequence it is. */
struct source {
    struct buf bytes;
    int fd;
    struct stream_reader *r;
    uint32_t lengths[100];
    size_t n;
};

static struct source source_new(unsigned number, size_t n, const char *vocab) {
    struct err e;
    struct stream_writer *w;
    struct source s = {.n = n, .fd = -1};
    struct rng random = rng_init(number, 77);
    int fd = memory_file();
    char text[120];
    snprintf(text, sizeof text, "{\"kind\":\"tokens\",\"vocab_size\":1000%s%s}", *vocab ? ",\"vocab\":" : "", vocab);
    cJSON *meta = json_of(text);
    OK(stream_writer_open(&w, fd, "out", &(struct stream_write_options){0}, &e));
    OK(stream_write_meta(w, meta, &e));
    for (size_t i = 0; i < n; i++) {
        uint32_t tokens[LONGEST] = {0}, length = s.lengths[i] = 1 + (uint32_t)rng_below(&random, LONGEST);
        struct stream_batch head = {.first_seq = i, .n_positions = length, .n_seqs = 1, .n_tensors = 2};
        tokens[0] = 100 * number + (uint32_t)i;
        OK(batch_write(w, &head, tokens, &length, &e));
    }
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    cJSON_Delete(meta);
    s.bytes = contents(fd);
    return s;
}

static int source_open(void *ctx, struct stream_reader **r, struct err *e) {
    struct source *s = ctx;
    stream_reader_free(s->r);
    if (s->fd >= 0) close(s->fd);
    s->r = NULL;
    s->fd = file_of(s->bytes.data, s->bytes.len);
    int rc = stream_reader_open(&s->r, s->fd, "in", STREAM_ANY, e);
    *r = s->r;
    return rc;
}

static void source_free(struct source *s) {
    stream_reader_free(s->r);
    if (s->fd >= 0) close(s->fd);
    buf_release(&s->bytes);
}

static struct mixture *mixture_of(struct source *s, size_t n, const double weights[][2], bool shuffle, uint64_t seed) {
    struct err e;
    struct mixture *m;
    OK(mixture_new(&m, shuffle, seed, &e));
    for (size_t i = 0; i < n; i++) {
        struct mixture_file f = {
            .name = "file", .weight = weights[i][0], .decay_weight = weights[i][1], .open = source_open, .ctx = &s[i]};
        OK(mixture_add(m, &f, &e));
    }
    return m;
}

/* Draws a whole epoch, at most `most` sequences: first tokens and lengths. Returns the count. */
struct drawn {
    uint32_t token, length;
};
static size_t draw_epoch(struct mixture *m, size_t most, struct drawn *out) {
    struct err e;
    struct knowledge_rows k = {0};
    struct knowledge_format f = {.temperature = 1, .vocab_size = VOCAB};
    struct knowledge_source source = mixture_source(m, &f);
    size_t n = 0;
    for (bool more = true; n < most; n++) {
        OK(source.next(source.ctx, &k, &more, &e));
        if (!more) break;
        assert_int_equal(k.n_seqs, 1);
        out[n] = (struct drawn){k.tokens[0], k.lengths[0]};
        knowledge_drop(&k, &f, 1);
    }
    knowledge_rows_release(&k);
    return n;
}

static void test_a_shuffle_is_algorithm_p(void **state) {
    (void)state;
    struct source s = source_new(0, 60, "");
    struct mixture *m = mixture_of(&s, 1, (const double[][2]){{1, 0}}, true, 5);
    struct drawn got[3][100];
    mixture_begin(m, NULL, BATCH, 0);
    for (uint64_t epoch = 0; epoch < 3; epoch++) {
        size_t order[60];
        struct rng r = rng_init(5, epoch);
        for (size_t i = 0; i < 60; i++) order[i] = i;
        for (size_t i = 59; i > 0; i--) {
            size_t k = rng_below(&r, i + 1), x = order[k];
            order[k] = order[i];
            order[i] = x;
        }
        assert_int_equal(draw_epoch(m, 100, got[epoch]), 60);
        for (size_t i = 0; i < 60; i++) {
            assert_int_equal(got[epoch][i].token, order[i]);
            assert_int_equal(got[epoch][i].length, s.lengths[order[i]]);
        }
        mixture_next_epoch(m);
    }
    assert_memory_not_equal(got[0], got[1], 60 * sizeof **got);
    struct drawn again[100];
    mixture_begin(m, NULL, BATCH, 2);
    assert_int_equal(draw_epoch(m, 100, again), 60);
    assert_memory_equal(again, got[2], 60 * sizeof *again);
    mixture_free(m);
    m = mixture_of(&s, 1, (const double[][2]){{1, 0}}, true, 6);
    mixture_begin(m, NULL, BATCH, 0);
    draw_epoch(m, 100, again);
    assert_memory_not_equal(again, got[0], 60 * sizeof *again);
    mixture_free(m);
    source_free(&s);
}

static void test_shares_are_kept_at_all_times(void **state) {
    (void)state;
    struct source s[] = {source_new(0, 90, ""), source_new(1, 7, ""), source_new(2, 30, "")};
    static const double weights[][2] = {{1, 0}, {0.25, 0}, {2.5, 0}};
    static struct drawn got[MOST_DRAWN];
    struct mixture *m = mixture_of(s, 3, weights, false, 0);
    mixture_begin(m, NULL, BATCH, 0);
    size_t n = draw_epoch(m, MOST_DRAWN, got), at[3] = {0};
    double positions[3] = {0};
    for (size_t i = 0; i < n; i++) {
        unsigned file = got[i].token / 100;
        assert_int_equal(got[i].token % 100, at[file]++ % s[file].n); /* in order, starting again at the end */
        positions[file] += got[i].length;
        for (size_t a = 0; a < 3; a++)
            for (size_t b = 0; b < 3; b++)
                assert_true(positions[a] / weights[a][0] - positions[b] / weights[b][0] <= LONGEST / weights[a][0]);
    }
    assert_int_equal(at[0], 90); /* an epoch is one pass over the first file */
    assert_true(at[1] > 7 && at[2] > 60);
    mixture_free(m);
    for (size_t i = 0; i < 3; i++) source_free(&s[i]);
}

static void test_the_decay_has_its_own_data(void **state) {
    (void)state;
    struct source s[] = {source_new(0, 40, ""), source_new(1, 20, ""), source_new(2, 15, "")};
    static const double weights[][2] = {{1, 0}, {1, 1}, {0, 3}};
    struct train_plan plan = {.now = {.lr = 1, .steps = 20, .type = NULL, .decay = 0.3}};
    for (const struct schedule_type *t = train_schedules; t->name; t++)
        if (t->has_decay) plan.now.type = t;
    for (int shuffle = 0; shuffle < 2; shuffle++) {
        static struct drawn got[MOST_DRAWN], later[MOST_DRAWN];
        struct mixture *m = mixture_of(s, 3, weights, shuffle, 3);
        mixture_begin(m, &plan, BATCH, 0);
        size_t n = 0, begins[8] = {0}, epochs = 0, next_of_1 = 0;
        uint64_t step = 1, in_step = 0, positions[3] = {0};
        while (step <= plan.now.steps && epochs < 7) {
            size_t more = draw_epoch(m, 1, got + n);
            if (!more) {
                mixture_next_epoch(m);
                begins[++epochs] = n;
                step += in_step > 0; /* the last step of an epoch takes the remainder */
                in_step = 0;
                continue;
            }
            unsigned file = got[n].token / 100;
            bool decay = step > 14;
            assert_true(decay ? file > 0 : file < 2);
            if (file == 1 && !shuffle)
                assert_int_equal(got[n].token % 100, next_of_1++ % 20); /* continues where it was */
            if (decay) positions[file] += got[n].length;
            in_step += got[n++].length;
            if (in_step >= BATCH) step++, in_step = 0;
        }
        assert_int_equal(step, 21);
        assert_true(positions[2] > 2 * positions[1]);
        assert_true(epochs >= 1);
        mixture_begin(m, &plan, BATCH, 1); /* what a run resumed there draws */
        size_t count = draw_epoch(m, begins[2] ? begins[2] - begins[1] : n - begins[1], later);
        assert_memory_equal(later, got + begins[1], count * sizeof *later);
        mixture_begin(m, &plan, BATCH, UINT64_MAX); /* an absurd step count stops at the end of the plan */
        mixture_free(m);
    }
    for (size_t i = 0; i < 3; i++) source_free(&s[i]);
}

static void test_steps_are_counted_as_they_are_taken(void **state) {
    (void)state;
    struct source s[] = {source_new(0, 33, ""), source_new(1, 20, "")};
    struct mixture *m = mixture_of(s, 2, (const double[][2]){{1, 0}, {0.7, 0}}, true, 8);
    struct distill_options o = {.batch_tokens = BATCH, .micro_tokens = 16};
    struct distill_extent x;
    static struct drawn got[MOST_DRAWN];
    uint64_t counted = mixture_count(m, &o, 3, &x), steps = 0, first = 0, positions = 0;
    mixture_begin(m, NULL, BATCH, 0);
    for (int epoch = 0; epoch < 3; epoch++, mixture_next_epoch(m)) {
        size_t n = draw_epoch(m, MOST_DRAWN, got);
        uint64_t in_step = 0;
        for (size_t i = 0; i < n; i++) {
            in_step += got[i].length;
            if (!epoch) positions += got[i].length;
            if (in_step >= BATCH || i + 1 == n) steps++, in_step = 0;
        }
        if (!epoch) first = steps;
    }
    assert_int_equal(counted, steps);
    assert_int_equal(x.steps, first);
    assert_int_equal(x.positions, positions);
    assert_in_range(x.largest_pass, LONGEST, 16);
    mixture_free(m);
    source_free(&s[0]);
    source_free(&s[1]);
}

static void test_other_data_is_refused(void **state) {
    (void)state;
    struct err e = {0};
    struct source s[] = {source_new(0, 3, ""), source_new(1, 3, "\"xxh3:0123456789abcdef0123456789abcdef\"")};
    struct mixture *m = mixture_of(s, 1, (const double[][2]){{1, 0}}, true, 8);
    struct mixture_file f = {.name = "other", .weight = 1, .open = source_open, .ctx = &s[1]};
    assert_int_equal(mixture_add(m, &f, &e), ERR_DATA);
    assert_memory_equal(e.msg, "file and other disagree: ", 25);
    s[1].bytes.len -= 130;
    assert_int_equal(mixture_add(m, &f, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "truncated"));
    mixture_free(m);
    source_free(&s[0]);
    source_free(&s[1]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_shuffle_is_algorithm_p),   cmocka_unit_test(test_shares_are_kept_at_all_times),
        cmocka_unit_test(test_the_decay_has_its_own_data), cmocka_unit_test(test_steps_are_counted_as_they_are_taken),
        cmocka_unit_test(test_other_data_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
