/*
 * Tests of knowledge encodings: each against probabilities in f64, through a round trip, however batches are cut. Draws
 * are tested statistically: a chi-square bound, and a mean over many.
 */
#include "tests/unit/knowledge_samples.h"

#define VOCAB 37

static double *exact_probs(const struct sample *s, double temperature) {
    double *p = malloc(s->n_positions * s->vocab * sizeof *p);
    for (size_t r = 0; r < s->n_positions; r++)
        softmax64(p + r * s->vocab, s->logits + r * s->vocab, s->vocab, temperature);
    return p;
}

static void check_tokens(const struct sample *s, const struct knowledge_rows *k) {
    assert_int_equal(k->n_positions, s->n_positions);
    assert_int_equal(k->n_seqs, s->n_seqs);
    assert_false(k->open);
    assert_memory_equal(k->tokens, s->tokens, s->n_positions * sizeof *s->tokens);
    assert_memory_equal(k->lengths, s->lengths, s->n_seqs * sizeof *s->lengths);
    size_t at = 0;
    for (size_t i = 0; i < s->n_seqs; i++) {
        assert_int_equal(k->seqs[i], i);
        for (uint32_t t = 0; t < s->lengths[i]; t++, at++)
            assert_int_equal(k->labels[at], t + 1 < s->lengths[i] ? s->tokens[at + 1] : UINT32_MAX);
    }
}

/* ---- dense ------------------------------------------------------------------------------------------------------- */

/* `tolerance` of a log-probability l is relative to max(|l|, 1). f32 arithmetic 1e-6; half a unit of f16 2^-12, of
 * bf16 2^-9. */
static void check_dense(enum dtype dtype, bool log_probs, double tolerance) {
    struct sample s = sample_new(20, 50, VOCAB, 1);
    struct knowledge_format f = format_of("dense", VOCAB);
    f.dtype = dtype;
    f.log_probs = log_probs;
    struct knowledge_rows k = round_trip(&s, &f, 0);
    check_tokens(&s, &k);
    double *p = exact_probs(&s, 2);
    float *x = malloc(s.n_positions * VOCAB * sizeof *x);
    struct kernel_target target;
    knowledge_target(&k, &f, 2, 0, s.n_positions, x, &target);
    for (size_t i = 0; i < s.n_positions * VOCAB; i++) {
        double l = log(p[i]);
        if (fabs(target.dense[i] - l) > tolerance * fmax(fabs(l), 1)) fail_msg("%g, expected %g", target.dense[i], l);
    }
    free(p);
    free(x);
    knowledge_rows_release(&k);
    sample_free(&s);
}

static void dense_comes_back(void **state) {
    (void)state;
    check_dense(DT_F32, false, 2e-6);
    check_dense(DT_F32, true, 2e-6);
    check_dense(DT_F16, false, 3 * 0x1p-12); /* the error of z passes into the row's sum as well, at half (T = 2) */
    check_dense(DT_F16, true, 3 * 0x1p-12);
    check_dense(DT_BF16, true, 3 * 0x1p-9);
}

/* Log-probabilities stored at one temperature serve every other. */
static void dense_changes_temperature(void **state) {
    (void)state;
    struct sample s = sample_new(5, 10, VOCAB, 2);
    struct knowledge_format f = format_of("dense", VOCAB);
    f.log_probs = true;
    f.temperature = 4;
    struct knowledge_rows k = round_trip(&s, &f, 0);
    float x[VOCAB];
    double p[VOCAB];
    struct kernel_target target;
    for (size_t r = 0; r < s.n_positions; r++) {
        knowledge_target(&k, &f, 0.5, r, 1, x, &target);
        softmax64(p, s.logits + r * VOCAB, VOCAB, 0.5);
        for (size_t i = 0; i < VOCAB; i++)
            if (fabs(exp(target.dense[i]) - p[i]) > 1e-5) fail_msg("%g, expected %g", exp(target.dense[i]), p[i]);
    }
    knowledge_rows_release(&k);
    sample_free(&s);
}

/* ---- topk and ghost ---------------------------------------------------------------------------------------------- */

static int descending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* The k largest, each within a unit of its f16 logarithm (half a unit, unless its row was rounded down); with the
 * rest they sum to 1. */
static void check_top(const char *encoding, double temperature) {
    struct sample s = sample_new(30, 40, VOCAB, 3);
    struct knowledge_format f = format_of(encoding, VOCAB);
    f.temperature = temperature;
    struct knowledge_rows k = round_trip(&s, &f, 0);
    check_tokens(&s, &k);
    double *p = exact_probs(&s, temperature);
    for (size_t r = 0; r < s.n_positions; r++) {
        double sorted[VOCAB], sum = 0;
        memcpy(sorted, p + r * VOCAB, sizeof sorted);
        qsort(sorted, VOCAB, sizeof *sorted, descending);
        assert_int_equal(k.offset[r + 1] - k.offset[r], f.n);
        for (size_t i = 0; i < f.n; i++) {
            double got = k.probs[k.offset[r] + i], want = sorted[i];
            uint32_t id = k.ids[k.offset[r] + i];
            assert_true(fabs(p[r * VOCAB + id] - want) < 1e-12);
            if (fabs(log(got) - log(want)) > fmax(0x1.01p-10 * -log(want), 6.1e-8))
                fail_msg("%g, expected %g", got, want);
            sum += got;
        }
        assert_true(sum <= 1 + 1e-6); /* f32 probabilities of entries that sum to at most 1 */
        if (f.encoding == KNOW_GHOST) assert_true(fabs(sum + k.rest[r] - 1) < 1e-6);
    }
    assert_true((k.rest != NULL) == (f.encoding == KNOW_GHOST));
    free(p);
    knowledge_rows_release(&k);
    sample_free(&s);
}

static void top_entries_come_back(void **state) {
    (void)state;
    check_top("topk:1", 1);
    check_top("topk:5", 3);
    check_top("ghost:5", 1);
    check_top("ghost:12", 0.5);
    check_top("ghost:37", 1); /* the whole vocabulary: rounding to nearest would exceed 1 in half of the rows */
}

/* ---- sample ------------------------------------------------------------------------------------------------------ */

/* Draws from one distribution at many positions: the sum of (observed - expected)^2 / expected must be chi-square
 * distributed. */
static void draws_are_unbiased(void **state) {
    (void)state;
    enum { N = 20, POSITIONS = 4000, DRAWS = 50 };
    struct sample s = sample_new(1, 1, N, 4);
    uint32_t length = POSITIONS, *tokens = calloc(POSITIONS, sizeof *tokens);
    float *logits = malloc(POSITIONS * N * sizeof *logits);
    for (size_t r = 0; r < POSITIONS; r++) memcpy(logits + r * N, s.logits, N * sizeof *logits);
    struct sample same = {1, POSITIONS, N, &length, tokens, logits};
    struct knowledge_format f = format_of("sample:50", N);
    f.temperature = 1.5;
    struct knowledge_rows k = round_trip(&same, &f, 7);
    double p[N], seen[N] = {0}, chi2 = 0, distinct = 0;
    softmax64(p, s.logits, N, 1.5);
    for (size_t r = 0; r < POSITIONS; r++)
        for (uint64_t i = k.offset[r]; i < k.offset[r + 1]; i++) seen[k.ids[i]] += k.probs[i] * DRAWS, distinct++;
    for (size_t i = 0; i < N; i++) {
        double expected = p[i] * POSITIONS * DRAWS;
        chi2 += (seen[i] - expected) * (seen[i] - expected) / expected;
    }
    /* with 19 degrees of freedom one seed in a thousand is above 43.8, and one below 4.9 */
    if (chi2 < 4.9 || chi2 > 43.8) fail_msg("chi-square %g", chi2);
    /* independent draws: a token occurs at a position with probability 1 - (1 - p)^50; three standard deviations */
    double expected = 0, variance = 0;
    for (size_t i = 0; i < N; i++) {
        double met = 1 - pow(1 - p[i], DRAWS);
        expected += met * POSITIONS;
        variance += met * (1 - met) * POSITIONS;
    }
    if (fabs(distinct - expected) > 3 * sqrt(variance)) fail_msg("%g distinct, expected %g", distinct, expected);
    knowledge_rows_release(&k);
    free(tokens);
    free(logits);
    sample_free(&s);
}

/* Averaged over seeds, the targets of every position are its distribution. */
static void mean_over_seeds_is_the_distribution(void **state) {
    (void)state;
    enum { SEEDS = 400, DRAWS = 20 };
    struct sample s = sample_new(3, 5, VOCAB, 5);
    double *p = exact_probs(&s, 1), *mean = calloc(s.n_positions * VOCAB, sizeof *mean);
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct knowledge_format f = format_of("sample:20", VOCAB);
        struct knowledge_rows k = round_trip(&s, &f, seed);
        for (size_t r = 0; r < s.n_positions; r++)
            for (uint64_t i = k.offset[r]; i < k.offset[r + 1]; i++) mean[r * VOCAB + k.ids[i]] += k.probs[i] / SEEDS;
        knowledge_rows_release(&k);
    }
    /* five standard deviations of a binomial mean: exceeded by chance once in two million */
    for (size_t i = 0; i < s.n_positions * VOCAB; i++) {
        double bound = 5 * sqrt(p[i] * (1 - p[i]) / (SEEDS * DRAWS)) + 1.0 / (SEEDS * DRAWS);
        if (fabs(mean[i] - p[i]) > bound) fail_msg("mean %g, probability %g", mean[i], p[i]);
    }
    free(p);
    free(mean);
    sample_free(&s);
}

static void counts_take_two_bytes_above_255(void **state) {
    (void)state;
    struct sample s = sample_new(2, 5, 3, 6);
    struct knowledge_format f = format_of("sample:5000", 3);
    struct knowledge_rows k = round_trip(&s, &f, 0);
    double p[3];
    softmax64(p, s.logits, 3, 1);
    assert_int_equal(k.offset[1], 3);
    for (size_t i = 0; i < 3; i++) assert_true(fabs(k.probs[i] - p[i]) < 5 * 0.5 / sqrt(5000));
    knowledge_rows_release(&k);
    sample_free(&s);
}

/* ---- what the bytes depend on ------------------------------------------------------------------------------------ */

static struct buf encoded(const struct sample *s, const char *encoding, uint64_t seed, size_t cut, size_t block) {
    struct err e;
    struct knowledge_format f = format_of(encoding, s->vocab);
    int fd;
    OK(encode_sample(s, &f, seed, cut, block, &fd, &e));
    return contents(fd);
}

static void assert_same_bytes(struct buf *a, struct buf *b, bool same) {
    assert_int_equal(a->len == b->len && !memcmp(a->data, b->data, a->len), same);
    buf_release(b);
}

/* The bytes depend neither on how the input is cut (here by position) nor on threads, but with draws on the seed. */
static void bytes_depend_on_content_only(void **state) {
    (void)state;
    static const char *const encodings[] = {"dense", "topk:3", "ghost:3", "sample:10"};
    struct sample s = sample_new(60, 300, 8, 8); /* about 9000 positions: several sparse batches */
    for (size_t i = 0; i < COUNT_OF(encodings); i++) {
        parallel_set_threads(2);
        struct buf a = encoded(&s, encodings[i], 1, 5000, 512), b = encoded(&s, encodings[i], 1, 77, 10);
        assert_same_bytes(&a, &b, true);
        parallel_set_threads(1);
        b = encoded(&s, encodings[i], 1, 5000, 512);
        assert_same_bytes(&a, &b, true);
        b = encoded(&s, encodings[i], 2, 5000, 512);
        assert_same_bytes(&a, &b, strcmp(encodings[i], "sample:10") != 0);
        buf_release(&a);
    }
    sample_free(&s);
}

/* A long sequence is cut inside and joined again. */
static void long_sequences_span_batches(void **state) {
    (void)state;
    uint32_t lengths[] = {3, 70000, 2};
    struct err e;
    struct sample s = {3, 70005, 2, lengths, calloc(70005, sizeof(uint32_t)), calloc(2 * 70005, sizeof(float))};
    for (size_t i = 0; i < s.n_positions; i++) s.tokens[i] = i & 1;
    struct knowledge_format f = format_of("sample:4", 2);
    int fd;
    OK(encode_sample(&s, &f, 0, 1 << 20, 4096, &fd, &e));
    struct stream_totals totals;
    OK(read_all(fd, &totals, &e));
    assert_int_equal(totals.batches, 3); /* at 65536 positions; at the end of the long sequence; at the end */
    lseek(fd, 0, SEEK_SET);
    struct knowledge_rows k;
    OK(decode_all(fd, &k, &f, &e));
    check_tokens(&s, &k);
    knowledge_rows_release(&k);
    free(s.tokens);
    free(s.logits);
}

/* Dropping the front of the queue leaves the rest unchanged. */
static void dropped_sequences_are_gone(void **state) {
    (void)state;
    struct sample s = sample_new(9, 30, VOCAB, 9);
    struct knowledge_format f = format_of("ghost:4", VOCAB);
    struct knowledge_rows all = round_trip(&s, &f, 0), k = round_trip(&s, &f, 0);
    size_t n = 0;
    for (size_t i = 0; i < 4; i++) n += s.lengths[i];
    knowledge_drop(&k, &f, 4);
    assert_int_equal(k.n_seqs, 5);
    assert_int_equal(k.seqs[0], 4);
    assert_int_equal(k.n_positions, all.n_positions - n);
    for (size_t r = 0; r < k.n_positions; r++) {
        assert_int_equal(k.tokens[r], all.tokens[n + r]);
        assert_int_equal(k.labels[r], all.labels[n + r]);
        assert_true(k.rest[r] == all.rest[n + r]);
        for (size_t i = 0; i < 4; i++) {
            assert_int_equal(k.ids[k.offset[r] + i], all.ids[all.offset[n + r] + i]);
            assert_true(k.probs[k.offset[r] + i] == all.probs[all.offset[n + r] + i]);
        }
    }
    knowledge_rows_release(&k);
    knowledge_rows_release(&all);
    sample_free(&s);
}

/* Runs of whole sequences: as many as fit, none beyond the limit, none whose end is not known yet. */
static void runs_are_whole_sequences(void **state) {
    (void)state;
    uint32_t lengths[] = {4, 3, 9, 2, 2};
    struct knowledge_rows k = {.n_seqs = 5, .lengths = lengths};
    static const struct {
        size_t first, fit, enough;
        bool open, last;
        size_t n, positions;
    } cases[] = {
        {0, 7, 100, false, false, 2, 7},  {0, 6, 100, false, false, 1, 4},  {2, 5, 100, false, false, 1, 9},
        {0, 100, 7, false, false, 2, 7},  {0, 100, 8, false, false, 3, 16}, {3, 100, 100, false, false, 0, 4},
        {3, 100, 100, false, true, 2, 4}, {3, 100, 4, false, false, 2, 4},  {3, 100, 4, true, false, 0, 2},
        {3, 2, 100, false, false, 1, 2},  {5, 9, 9, false, true, 0, 0},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        size_t positions;
        k.open = cases[i].open;
        assert_int_equal(
            knowledge_next_pass(&k, cases[i].first, cases[i].fit, cases[i].enough, cases[i].last, &positions),
            cases[i].n);
        assert_int_equal(positions, cases[i].positions);
    }
}

/* Re-encoding to fewer entries gives the entries of the distribution itself. */
static void fewer_entries_from_more(void **state) {
    (void)state;
    struct err e;
    struct sample s = sample_new(9, 30, VOCAB, 10);
    struct knowledge_format many = format_of("topk:20", VOCAB), few = format_of("ghost:6", VOCAB);
    struct knowledge_rows k = round_trip(&s, &many, 0), got, want = round_trip(&s, &few, 0);
    struct knowledge_encoder *enc;
    struct stream_writer *w;
    struct stream_batch head = {.n_positions = s.n_positions, .n_seqs = (uint32_t)s.n_seqs};
    int fd = memory_file();
    OK(stream_writer_open(&w, fd, "out", &(struct stream_write_options){0}, &e));
    cJSON *meta = cJSON_CreateObject();
    OK(knowledge_meta_put(meta, &few, &e));
    OK(stream_write_meta(w, meta, &e));
    OK(knowledge_encoder_new(&enc, w, &few, 0, &e));
    struct knowledge_input in = {.head = head, .tokens = k.tokens, .lengths = k.lengths, .mask = k.mask};
    OK(knowledge_encoder_begin(enc, &in, &e));
    OK(knowledge_encoder_entries(enc, k.n_positions, k.offset, k.ids, k.probs, &e));
    OK(knowledge_encoder_end(enc, &e));
    OK(stream_writer_finish(w, NULL, &e));
    lseek(fd, 0, SEEK_SET);
    OK(decode_all(fd, &got, &few, &e));
    assert_int_equal(got.offset[got.n_positions], want.offset[want.n_positions]);
    assert_memory_equal(got.ids, want.ids, want.offset[want.n_positions] * sizeof *want.ids);
    assert_memory_equal(got.probs, want.probs, want.offset[want.n_positions] * sizeof *want.probs);
    assert_memory_equal(got.rest, want.rest, want.n_positions * sizeof *want.rest);
    cJSON_Delete(meta);
    knowledge_encoder_free(enc);
    stream_writer_free(w);
    knowledge_rows_release(&k);
    knowledge_rows_release(&got);
    knowledge_rows_release(&want);
    sample_free(&s);
}

/* ---- the table --------------------------------------------------------------------------------------------------- */

static int spell(void *ctx, uint32_t id, struct buf *out, struct err *e) {
    (void)ctx;
    return buf_printf(out, e, "<%u>", id);
}

static void the_table_reads_as_stated(void **state) {
    (void)state;
    struct err e;
    uint32_t length = 2, tokens[] = {2, 1};
    float logits[] = {0, logf(2), logf(5), 0, 0, 0};
    struct sample s = {1, 2, 3, &length, tokens, logits};
    static const struct {
        const char *encoding, *want;
    } tables[] = {
        {"dense", "0\t0\t2\t<2>\t1\t<1>\t0.25\t2\t0.125\t2:<2>:0.625 1:<1>:0.25\n"
                  "0\t1\t1\t<1>\t-\t-\t-\t-\t0.3333\t0:<0>:0.3333 1:<1>:0.3333\n"},
        {"topk:1", "0\t0\t2\t<2>\t1\t<1>\t-\t-\t0.375\t2:<2>:0.625\n"
                   "0\t1\t1\t<1>\t-\t-\t-\t-\t0.6667\t0:<0>:0.3333\n"},
        {"ghost:2", "0\t0\t2\t<2>\t1\t<1>\t0.2499\t2\t0.1251\t2:<2>:0.625 1:<1>:0.2499\n" /* f16 */
                    "0\t1\t1\t<1>\t-\t-\t-\t-\t0.3333\t0:<0>:0.3333 1:<1>:0.3333\n"},
        {"sample:1", "0\t0\t2\t<2>\t1\t<1>\t0\t-\t0\t2:<2>:1\n"
                     "0\t1\t1\t<1>\t-\t-\t-\t-\t0\t2:<2>:1\n"},
    };
    for (size_t i = 0; i < COUNT_OF(tables); i++) {
        struct knowledge_format f = format_of(tables[i].encoding, 3);
        struct knowledge_rows k = round_trip(&s, &f, 0);
        struct buf text = {0};
        OK(knowledge_tsv_rows(&(struct knowledge_tsv){.top = 2, .spell = spell}, &text, &k, &f, 0, 2, &e));
        OK(buf_append(&text, "", 1, &e));
        assert_string_equal((char *)text.data, tables[i].want);
        buf_release(&text);
        knowledge_rows_release(&k);
    }
}

/* The header names the columns: shares of draws are not called probabilities. */
static void the_table_has_the_names_of_its_encoding(void **state) {
    (void)state;
    struct err e;
    static const char *const encodings[] = {"dense", "topk:2", "ghost:2", "sample:5"};
    struct sample s = sample_new(2, 5, VOCAB, 4);
    for (size_t i = 0; i < COUNT_OF(encodings); i++) {
        struct knowledge_format f = format_of(encodings[i], VOCAB);
        struct stream_reader *r;
        char *text;
        size_t n;
        int fd;
        FILE *out = open_memstream(&text, &n);
        OK(encode_sample(&s, &f, 0, 10, 10, &fd, &e));
        OK(stream_reader_open(&r, fd, "in", STREAM_ANY, &e));
        OK(knowledge_meta_get(stream_reader_meta(r), &f, &e));
        OK(knowledge_tsv_print(&(struct knowledge_tsv){.top = 2}, r, &f, 0, 3, out, &e));
        fclose(out);
        const char *want = f.encoding == KNOW_SAMPLE
                               ? "sequence\tposition\ttoken\tlabel\tfrequency\tfrequency_rank\tfrequency_rest\tdrawn\n"
                               : "sequence\tposition\ttoken\tlabel\tprobability\trank\trest\ttop\n";
        if (strncmp(text, want, strlen(want)) != 0) fail_msg("%s: %s", encodings[i], text);
        free(text);
        stream_reader_free(r);
        close(fd);
    }
    sample_free(&s);
}

/* ---- padding of the teacher's vocabulary ------------------------------------------------------------------------- */

/* Dense rows wider than the model's vocabulary are cut before their softmax; other encodings cannot be. */
static void columns_of_padding_are_cut(void **state) {
    (void)state;
    struct err e;
    const uint32_t used = VOCAB - 7;
    struct sample s = sample_new(4, 9, VOCAB, 6);
    for (size_t i = 0; i < s.n_positions; i++) s.tokens[i] %= used;
    for (int log_probs = 0; log_probs < 2; log_probs++) {
        struct knowledge_format f = format_of("dense", VOCAB), as;
        f.log_probs = log_probs;
        snprintf(f.vocab, sizeof f.vocab, "xxh3:%032d", 1);
        struct knowledge_rows k = round_trip(&s, &f, 0);
        float *x = malloc(s.n_positions * VOCAB * sizeof *x);
        struct kernel_target target;
        double p[VOCAB];
        as = f;
        OK(knowledge_fit(&as, VOCAB, &e));
        assert_int_equal(knowledge_columns(&as), VOCAB);
        OK(knowledge_fit(&f, used, &e));
        assert_int_equal(knowledge_columns(&f), used);
        knowledge_target(&k, &f, 1.5, 0, s.n_positions, x, &target);
        for (size_t r = 0; r < s.n_positions; r++) {
            softmax64(p, s.logits + r * VOCAB, used, 1.5);
            for (size_t i = 0; i < used; i++)
                if (fabs(exp(target.dense[r * used + i]) - p[i]) > 1e-6)
                    fail_msg("row %zu, token %zu: %g, expected %g", r, i, exp(target.dense[r * used + i]), p[i]);
        }
        free(x);
        knowledge_rows_release(&k);
    }
    struct knowledge_format sparse = format_of("sample:5", VOCAB), dense = format_of("dense", VOCAB),
                            none = {.vocab_size = 1};
    assert_int_equal(knowledge_fit(&dense, used, &e), ERR_DATA); /* no names: may be tokens */
    snprintf(sparse.vocab, sizeof sparse.vocab, "xxh3:%032d", 1);
    assert_int_equal(knowledge_fit(&sparse, used, &e), ERR_DATA);
    if (!strstr(e.msg, "of them tokens: the rest has a share")) fail_msg("%s", e.msg);
    assert_int_equal(knowledge_fit(&dense, VOCAB + 1, &e), ERR_DATA);
    OK(knowledge_fit(&none, used, &e));
    assert_int_equal(none.vocab_size, used);
    dense.target = TARGET_SEQUENCE; /* its columns are classes, none of which is padding */
    dense.classes = 3;
    snprintf(dense.vocab, sizeof dense.vocab, "xxh3:%032d", 1);
    knowledge_cut_padding(&dense, used);
    assert_int_equal(knowledge_columns(&dense), 3);
    sample_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dense_comes_back),
        cmocka_unit_test(dense_changes_temperature),
        cmocka_unit_test(top_entries_come_back),
        cmocka_unit_test(draws_are_unbiased),
        cmocka_unit_test(mean_over_seeds_is_the_distribution),
        cmocka_unit_test(counts_take_two_bytes_above_255),
        cmocka_unit_test(bytes_depend_on_content_only),
        cmocka_unit_test(long_sequences_span_batches),
        cmocka_unit_test(dropped_sequences_are_gone),
        cmocka_unit_test(runs_are_whole_sequences),
        cmocka_unit_test(fewer_entries_from_more),
        cmocka_unit_test(the_table_reads_as_stated),
        cmocka_unit_test(the_table_has_the_names_of_its_encoding),
        cmocka_unit_test(columns_of_padding_are_cut),
    };
    return cmocka_run_group_tests_name("knowledge", tests, NULL, NULL);
}
