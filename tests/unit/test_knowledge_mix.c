/*
 * Tests of mixtures of teachers against sums in f64, from streams whose batches are cut differently, and of what cannot
 * be mixed.
 */
#include "tests/unit/knowledge_samples.h"

#define VOCAB 37

/* Another teacher on the same tokens. */
static struct sample other_teacher(const struct sample *s, uint64_t seed) {
    struct sample o = *s;
    struct rng r = rng_init(seed, 9);
    struct err e;
    size_t n = s->n_positions * s->vocab;
    o.logits = mem_array(n, sizeof *o.logits, &e);
    for (size_t i = 0; i < n; i++) o.logits[i] = (float)(2 * rng_normal(&r));
    return o;
}

struct mixing {
    struct knowledge_mixture how;
    double weights[3];
    size_t n;
    int fd[3]; /* knowledge streams; closed */
    struct knowledge_mix_counts counts;
};

/* Mixes the streams; *fd receives the mixture. */
static int mix(struct mixing *x, int *fd, struct err *e) {
    struct stream_reader *r[3] = {NULL};
    struct knowledge_format f[3], out;
    struct knowledge_mix_input in[3];
    struct knowledge_mixer *m = NULL;
    struct encoding to;
    size_t bad;
    bool more = true;
    int rc = 0;
    for (size_t i = 0; !rc && i < x->n; i++) {
        rc = stream_reader_open(&r[i], x->fd[i], i ? "other" : "first", STREAM_ANY, e);
        if (!rc) rc = knowledge_meta_get(stream_reader_meta(r[i]), &f[i], e);
        in[i] = (struct knowledge_mix_input){r[i], &f[i], x->weights[i] > 0 ? x->weights[i] : 1};
    }
    if (!rc) rc = knowledge_mix_format(&x->how, in, x->n, &out, &bad, e);
    if (!rc) {
        rc = encoding_begin(&to, &out, 0, e);
        if (!rc) rc = knowledge_mixer_new(&m, &x->how, in, x->n, &out, e);
        while (!rc && more) rc = knowledge_mixer_step(m, to.k, &more, e);
        rc = encoding_end(&to, rc, e);
        if (m) x->counts = knowledge_mixer_counts(m);
        *fd = to.fd;
    }
    knowledge_mixer_free(m);
    for (size_t i = 0; i < x->n; i++) {
        stream_reader_free(r[i]);
        close(x->fd[i]);
    }
    return rc;
}

static int encoded(const struct sample *s, const char *encoding, double temperature, uint64_t seed) {
    struct knowledge_format f = format_of(encoding, s->vocab);
    struct err e;
    int fd;
    f.temperature = temperature;
    OK(encode_sample(s, &f, seed, 100, 7, &fd, &e));
    return fd;
}

static struct knowledge_rows mixed(struct mixing *x, struct knowledge_format *f) {
    struct knowledge_rows k;
    struct err e;
    int fd = -1;
    OK(mix(x, &fd, &e));
    OK(decode_all(fd, &k, f, &e));
    return k;
}

/* ---- dense ------------------------------------------------------------------------------------------------------- */

/* The mean of the two teachers' rows, in f64. */
static void mean64(double *p, const struct sample *a, const struct sample *b, size_t r, double w, double temperature,
                   bool geometric) {
    double x[VOCAB], y[VOCAB], sum = 0;
    softmax64(x, a->logits + r * VOCAB, VOCAB, temperature);
    softmax64(y, b->logits + r * VOCAB, VOCAB, temperature);
    for (size_t i = 0; i < VOCAB; i++) {
        p[i] = geometric ? exp(w * log(x[i]) + (1 - w) * log(y[i])) : w * x[i] + (1 - w) * y[i];
        sum += p[i];
    }
    for (size_t i = 0; i < VOCAB; i++) p[i] /= sum;
}

static void check_dense(enum knowledge_mean mean, double temperature, double tolerance) {
    struct sample a = sample_new(6, 40, VOCAB, 1), b = other_teacher(&a, 2);
    struct mixing x = {.how = {mean, temperature}, .weights = {3, 1}, .n = 2};
    x.fd[0] = encoded(&a, "dense", 1, 0);
    x.fd[1] = encoded(&b, "dense", 1, 0);
    struct knowledge_format f;
    struct knowledge_rows k = mixed(&x, &f);
    float scratch[VOCAB];
    double p[VOCAB];
    struct kernel_target target;
    assert_true(f.log_probs && f.temperature == (temperature > 0 ? temperature : 1));
    assert_int_equal(k.n_positions, a.n_positions);
    assert_int_equal(k.n_seqs, a.n_seqs);
    assert_memory_equal(k.tokens, a.tokens, a.n_positions * sizeof *a.tokens);
    for (size_t r = 0; r < a.n_positions; r++) {
        mean64(p, &a, &b, r, 0.75, f.temperature, mean == MEAN_GEOMETRIC);
        knowledge_target(&k, &f, f.temperature, r, 1, scratch, &target);
        for (size_t i = 0; i < VOCAB; i++)
            if (fabs(target.dense[i] - log(p[i])) > tolerance * fmax(1, -log(p[i])))
                fail_msg("row %zu, token %zu: %g, expected %g", r, i, target.dense[i], log(p[i]));
    }
    knowledge_rows_release(&k);
    mem_free(b.logits);
    sample_free(&a);
}

static void dense_answers_have_their_mean(void **state) {
    (void)state;
    check_dense(MEAN_ARITHMETIC, 0, 2e-6);
    check_dense(MEAN_ARITHMETIC, 2, 2e-6);
    check_dense(MEAN_GEOMETRIC, 0, 2e-6);
    check_dense(MEAN_GEOMETRIC, 3, 2e-6);
}

/* ---- entries ----------------------------------------------------------------------------------------------------- */

/* Marks the tokens among the k largest of a row. */
static void top_of(bool *in, const double *p, size_t k) {
    for (size_t i = 0; i < VOCAB; i++) {
        size_t larger = 0;
        for (size_t j = 0; j < VOCAB; j++) larger += p[j] > p[i] || (p[j] == p[i] && j < i);
        in[i] = larger < k;
    }
}

static void check_entries(const char *first, const char *other, size_t n, size_t m, bool common) {
    struct sample a = sample_new(6, 40, VOCAB, 3), b = other_teacher(&a, 4);
    struct mixing x = {.weights = {1, 2}, .n = 2};
    x.fd[0] = encoded(&a, first, 1, 0);
    x.fd[1] = encoded(&b, other, 1, 0);
    struct knowledge_format f;
    struct knowledge_rows k = mixed(&x, &f);
    uint64_t alone = 0;
    assert_int_equal(f.partial, !common);
    assert_int_equal(f.n, common ? (n < m ? n : m) : n + m < VOCAB ? n + m : VOCAB);
    for (size_t r = 0; r < a.n_positions; r++) {
        double p[VOCAB], q[VOCAB], sum = 0;
        bool in_a[VOCAB], in_b[VOCAB];
        size_t want = 0;
        softmax64(p, a.logits + r * VOCAB, VOCAB, 1);
        softmax64(q, b.logits + r * VOCAB, VOCAB, 1);
        top_of(in_a, p, n);
        top_of(in_b, q, m);
        for (size_t i = 0; i < VOCAB; i++) want += common ? in_a[i] && in_b[i] : in_a[i] || in_b[i];
        alone += !want;
        assert_int_equal(k.offset[r + 1] - k.offset[r], want);
        for (uint64_t t = k.offset[r]; t < k.offset[r + 1]; t++) {
            uint32_t i = k.ids[t];
            assert_true(common ? in_a[i] && in_b[i] : in_a[i] || in_b[i]);
            double exact = (in_a[i] ? p[i] / 3 : 0) + (in_b[i] ? 2 * q[i] / 3 : 0);
            /* each input and the mixture are rounded to an f16 logarithm, possibly down */
            if (fabs(log(k.probs[t]) - log(exact)) > 2 * 0x1.01p-10 * fmax(1, -log(exact)))
                fail_msg("row %zu, token %u: %g, expected %g", r, i, k.probs[t], exact);
            if (t > k.offset[r]) assert_true(k.probs[t] <= k.probs[t - 1]);
            sum += k.probs[t];
        }
        if (common) assert_true(fabs(sum + k.rest[r] - 1) < 1e-6);
    }
    assert_int_equal(x.counts.without_common, common ? alone : 0);
    knowledge_rows_release(&k);
    mem_free(b.logits);
    sample_free(&a);
}

static void ghosts_keep_what_all_teachers_tell(void **state) {
    (void)state;
    check_entries("ghost:20", "ghost:15", 20, 15, true);
    check_entries("ghost:2", "ghost:2", 2, 2, true); /* some rows have no token in common */
}

static void top_entries_are_lower_bounds(void **state) {
    (void)state;
    check_entries("topk:5", "topk:9", 5, 9, false);
    check_entries("topk:30", "topk:30", 30, 30, false);
}

/* kl is linear in the entries: its gradient for the mixture is the mean of the gradients for the teachers. */
static void top_entries_have_the_mean_gradient(void **state) {
    (void)state;
    struct sample a = sample_new(3, 20, VOCAB, 5), b = other_teacher(&a, 6);
    const struct sample *both[] = {&a, &b};
    struct mixing x = {.weights = {1, 3}, .n = 2};
    size_t n = a.n_positions * VOCAB;
    float *logits = malloc(n * sizeof *logits), *sum = calloc(n, sizeof *sum), *one = malloc(n * sizeof *one);
    struct kernel_loss how = {.temperature = 1, .kl_weight = 1};
    struct knowledge_format f;
    struct err e;
    struct rng g = rng_init(7, 7);
    for (size_t i = 0; i < n; i++) logits[i] = (float)rng_normal(&g);
    for (int i = 0; i < 2; i++) {
        struct knowledge_rows k;
        struct kernel_target target;
        x.fd[i] = encoded(both[i], "topk:6", 1, 0);
        OK(decode_all(encoded(both[i], "topk:6", 1, 0), &k, &f, &e));
        knowledge_target(&k, &f, 1, 0, a.n_positions, NULL, &target);
        kernel_distill_loss(&how, &target, NULL, kernel_f32(logits), a.n_positions, VOCAB, NULL, NULL, kernel_f32(one));
        for (size_t t = 0; t < n; t++) sum[t] += one[t] * (i ? 0.75f : 0.25f);
        knowledge_rows_release(&k);
    }
    struct knowledge_rows k = mixed(&x, &f);
    struct kernel_target target;
    knowledge_target(&k, &f, 1, 0, a.n_positions, NULL, &target);
    kernel_distill_loss(&how, &target, NULL, kernel_f32(logits), a.n_positions, VOCAB, NULL, NULL, kernel_f32(one));
    for (size_t t = 0; t < n; t++)
        if (fabs(one[t] - sum[t]) > 2e-3) fail_msg("%g, expected %g", one[t], sum[t]);
    knowledge_rows_release(&k);
    free(logits);
    free(sum);
    free(one);
    mem_free(b.logits);
    sample_free(&a);
}

/* Batches of 8000 draws are cut at 349 positions, those of 5 at 4096: sequences fall into them differently. */
static void draws_are_pooled_however_batches_are_cut(void **state) {
    static const char *const encodings[] = {"sample:5", "sample:8000", "sample:1"};
    (void)state;
    struct sample a = sample_new(9, 1500, VOCAB, 7);
    struct mixing x = {.n = 3};
    struct knowledge_rows k[4];
    struct knowledge_format f[4];
    struct err e;
    assert_true(a.n_positions > 4096);
    for (size_t i = 0; i < 3; i++) {
        x.fd[i] = encoded(&a, encodings[i], 1, i);
        OK(decode_all(encoded(&a, encodings[i], 1, i), &k[i], &f[i], &e));
    }
    k[3] = mixed(&x, &f[3]);
    assert_int_equal(f[3].n, 8006);
    assert_int_equal(k[3].n_positions, a.n_positions);
    for (size_t r = 0; r < a.n_positions; r++) {
        double seen[4][VOCAB] = {{0}};
        for (size_t i = 0; i < 4; i++)
            for (uint64_t t = k[i].offset[r]; t < k[i].offset[r + 1]; t++)
                seen[i][k[i].ids[t]] = rint(k[i].probs[t] * f[i].n);
        for (size_t i = 0; i < VOCAB; i++) assert_true(seen[3][i] == seen[0][i] + seen[1][i] + seen[2][i]);
    }
    for (size_t i = 0; i < 4; i++) knowledge_rows_release(&k[i]);
    sample_free(&a);
}

/* ---- refusals ---------------------------------------------------------------------------------------------------- */

static void check_refused(int first, int other, struct mixing how, int code, const char *says) {
    struct err e;
    int fd = -1;
    how.n = 2;
    how.fd[0] = first;
    how.fd[1] = other;
    assert_int_equal(mix(&how, &fd, &e), code);
    if (!strstr(e.msg, says)) fail_msg("%s: expected %s", e.msg, says);
    if (fd >= 0) close(fd);
}

static void what_cannot_be_mixed_is_refused(void **state) {
    (void)state;
    struct sample a = sample_new(4, 20, VOCAB, 8), b = sample_new(4, 20, VOCAB, 8), wide = sample_new(4, 20, 40, 8);
    struct mixing plain = {.n = 2}, geometric = {.how = {MEAN_GEOMETRIC, 0}}, weighted = {.weights = {1, 2}};
    struct mixing warm = {.how = {MEAN_ARITHMETIC, 2}};
    check_refused(encoded(&a, "dense", 1, 0), encoded(&b, "topk:3", 1, 0), plain, ERR_DATA, "different encodings");
    check_refused(encoded(&a, "topk:3", 1, 0), encoded(&b, "topk:3", 2, 0), plain, ERR_DATA, "temperatures differ");
    check_refused(encoded(&a, "topk:3", 1, 0), encoded(&b, "topk:3", 1, 0), warm, ERR_DATA, "temperature 2");
    check_refused(encoded(&a, "dense", 1, 0), encoded(&wide, "dense", 1, 0), plain, ERR_DATA, "columns");
    check_refused(encoded(&a, "ghost:3", 1, 0), encoded(&b, "ghost:3", 1, 0), geometric, ERR_DATA, "geometric");
    check_refused(encoded(&a, "sample:3", 1, 0), encoded(&b, "sample:3", 1, 0), weighted, ERR_USAGE, "pooled");
    check_refused(encoded(&a, "sample:60000", 1, 0), encoded(&b, "sample:60000", 1, 0), plain, ERR_DATA, "draws");
    b.tokens[b.n_positions - 1] ^= 1;
    check_refused(encoded(&a, "topk:3", 1, 0), encoded(&b, "topk:3", 1, 0), plain, ERR_DATA, "the same tokens");
    b.tokens[b.n_positions - 1] ^= 1;
    assert_true(b.lengths[0] > 1);
    b.lengths[0]--, b.lengths[1]++;
    check_refused(encoded(&a, "dense", 1, 0), encoded(&b, "dense", 1, 0), plain, ERR_DATA, "the same tokens");
    b.lengths[0]++, b.lengths[1]--;
    b.n_positions -= b.lengths[3];
    b.n_seqs--;
    check_refused(encoded(&a, "dense", 1, 0), encoded(&b, "dense", 1, 0), plain, ERR_DATA, "goes on");
    b.n_positions += b.lengths[3];
    b.n_seqs++;
    sample_free(&a);
    sample_free(&b);
    sample_free(&wide);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dense_answers_have_their_mean),
        cmocka_unit_test(ghosts_keep_what_all_teachers_tell),
        cmocka_unit_test(top_entries_are_lower_bounds),
        cmocka_unit_test(top_entries_have_the_mean_gradient),
        cmocka_unit_test(draws_are_pooled_however_batches_are_cut),
        cmocka_unit_test(what_cannot_be_mixed_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
