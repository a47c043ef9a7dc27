/*
 * Tests of divergence against the same numbers computed from all logits in f64, with llama.cpp's formulas: variances
 * and covariance from sums, percentiles from a sorted copy.
 */
#include "tests/unit/metrics_samples.h"

/* Logits are f32; here the model runs one sequence at a time, there batches. */
#define TOLERANCE 3e-5

/* ---- two models and a text --------------------------------------------------------------------------------------- */

struct pair {
    struct model *teacher, *student;
    struct sample s; /* the text, with the teacher's logits */
    float *mine;     /* the student's logits */
};

/* f32 logits of each sequence alone, concatenated. */
static void fill_logits(struct model *m, const struct sample *s, float *out) {
    const uint32_t *at = s->tokens;
    for (size_t i = 0; i < s->n_seqs; at += s->lengths[i++]) {
        struct model_input in = {s->lengths[i], 1, at, &s->lengths[i]};
        float *x = logits_of(m, &in);
        memcpy(out + (size_t)(at - s->tokens) * s->vocab, x, s->lengths[i] * s->vocab * sizeof *x);
        mem_free(x);
    }
}

static size_t argmax(const float *x, size_t n) {
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

/* Replaces every other token by the model's most probable one, so that labels are often among the top entries. */
static void make_plausible(struct model *m, struct sample *s) {
    uint32_t *at = s->tokens;
    for (size_t i = 0; i < s->n_seqs; at += s->lengths[i++])
        for (uint32_t n = 1; n < s->lengths[i]; n += 2) {
            struct model_input in = {n, 1, at, &n};
            float *x = logits_of(m, &in);
            at[n] = (uint32_t)argmax(x + (n - 1) * s->vocab, s->vocab);
            mem_free(x);
        }
}

/* The student has the teacher's weights plus noise, as from quantization: divergences are small and the top tokens
 * often agree. */
static struct pair pair_new(size_t n_seqs, uint32_t longest) {
    struct err e;
    struct pair p = {byte_model(64, 1, true, false), byte_model(64, 1, true, false),
                     sample_new(n_seqs, longest, BYTE_VOCAB, 3), NULL};
    struct rng r = rng_init(9, 9);
    for (size_t i = 0; i < p.student->n_params; i++)
        for (uint64_t k = 0; k < p.student->params[i].n; k++)
            model_host_value(&p.student->params[i])[k] += 0.01f * (float)rng_normal(&r);
    p.mine = mem_array(p.s.n_positions * p.s.vocab, sizeof(float), &e);
    make_plausible(p.teacher, &p.s);
    fill_logits(p.teacher, &p.s, p.s.logits);
    fill_logits(p.student, &p.s, p.mine);
    return p;
}

static void pair_free(struct pair *p) {
    model_free(p->teacher);
    model_free(p->student);
    sample_free(&p->s);
    mem_free(p->mine);
}

/* The label of a position, or UINT32_MAX on the last one of a sequence. */
static uint32_t label_at(const struct sample *s, size_t position) {
    size_t end = 0;
    for (size_t i = 0; i < s->n_seqs; i++)
        if ((end += s->lengths[i]) > position) break;
    return position + 1 < end ? s->tokens[position + 1] : UINT32_MAX;
}

/* ---- the code under test ----------------------------------------------------------------------------------------- */

static int compare(struct model *m, int fd, cJSON **out, struct err *why) {
    struct err e;
    struct stream_reader *r;
    struct knowledge_format f;
    struct divergence *d = NULL;
    struct batch b = {0};
    bool more = true;
    OK(stream_reader_open(&r, fd, "knowledge", STREAM_ANY, &e));
    OK(knowledge_meta_get(stream_reader_meta(r), &f, &e));
    int rc = divergence_new(&d, m, &f, why);
    while (!rc && more) {
        OK(batch_read(r, &b, &more, &e));
        if (more) rc = divergence_feed(d, &b, why);
    }
    if (!rc) rc = divergence_finish(d, why);
    if (!rc && !(*out = divergence_json(d, why))) rc = why->code;
    batch_release(&b);
    divergence_free(d);
    stream_reader_free(r);
    close(fd);
    return rc;
}

static cJSON *compared(struct model *m, const struct sample *s, const struct knowledge_format *f) {
    struct err e;
    cJSON *result = NULL;
    int fd;
    OK(encode_sample(s, f, 1, 37, 11, &fd, &e));
    OK(compare(m, fd, &result, &e));
    return result;
}

/* ---- the same in f64 --------------------------------------------------------------------------------------------- */

#define MAX_POSITIONS 512

struct expected {
    size_t n, labels, known, same;
    double kld[MAX_POSITIONS], nll[MAX_POSITIONS], base[MAX_POSITIONS], delta[MAX_POSITIONS];
    double most[MAX_POSITIONS]; /* the upper bound of delta */
};

/* llama.cpp: mean_and_uncertainty and covariance, in perplexity.cpp. */
static double mean_of(const double *a, const double *b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += a[i] * (b ? b[i] : 1);
    return sum / (double)n;
}
static double covariance(const double *a, const double *b, size_t n) {
    return (mean_of(a, b, n) - mean_of(a, NULL, n) * mean_of(b, NULL, n)) / (double)(n - 1);
}
static double error_of(const double *a, size_t n) {
    return sqrt(covariance(a, a, n));
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* llama.cpp's lambda `percentile`. */
static double percentile(const double *values, size_t n, double fraction) {
    double sorted[MAX_POSITIONS], p = fraction * (double)(n - 1);
    memcpy(sorted, values, n * sizeof *values);
    qsort(sorted, n, sizeof *sorted, ascending);
    size_t i = (size_t)p;
    return (1 - (p - (double)i)) * sorted[i] + (p - (double)i) * sorted[i + 1 < n ? i + 1 : n - 1];
}

static void check_percentiles(const cJSON *o, const char *key, const double *values, size_t n) {
    static const char *const names[] = {"max", "99.9", "99", "95", "90", "median", "10", "5", "1", "0.1", "min"};
    static const double q[] = {1, 0.999, 0.99, 0.95, 0.9, 0.5, 0.1, 0.05, 0.01, 0.001, 0};
    for (size_t i = 0; i < COUNT_OF(q); i++) {
        char name[64];
        snprintf(name, sizeof name, "%s_%s", key, names[i]);
        assert_near(result_number(o, name), percentile(values, n, q[i]), TOLERANCE, name);
    }
}

static void check_company(const cJSON *o, const struct expected *x) {
    size_t n = x->labels;
    double square[MAX_POSITIONS], ppl = exp(mean_of(x->nll, NULL, n)), base = exp(mean_of(x->base, NULL, n));
    for (size_t i = 0; i < n; i++) square[i] = x->delta[i] * x->delta[i];
    double cov = covariance(x->nll, x->base, n), rms = sqrt(mean_of(square, NULL, n));
    double ratio_error = sqrt(covariance(x->nll, x->nll, n) + covariance(x->base, x->base, n) - 2 * cov);
    assert_near(result_number(o, "perplexity"), ppl, TOLERANCE, "perplexity");
    assert_near(result_number(o, "perplexity_stderr"), ppl * error_of(x->nll, n), TOLERANCE, "its error");
    assert_near(result_number(o, "perplexity_reference"), base, 1e-3, "perplexity of the reference");
    assert_near(result_number(o, "perplexity_reference_stderr"), base * error_of(x->base, n), 1e-3, "its error");
    assert_near(result_number(o, "ln_ratio"), log(ppl / base), TOLERANCE, "ln ratio");
    assert_near(result_number(o, "ln_ratio_stderr"), ratio_error, TOLERANCE, "its error");
    assert_near(result_number(o, "ln_correlation"), cov / (error_of(x->nll, n) * error_of(x->base, n)), TOLERANCE,
                "corr");
    assert_near(result_number(o, "delta_p"), mean_of(x->delta, NULL, n), TOLERANCE, "delta p");
    assert_near(result_number(o, "delta_p_stderr"), error_of(x->delta, n), TOLERANCE, "its error");
    assert_near(result_number(o, "delta_p_rms"), rms, TOLERANCE, "rms");
    assert_near(result_number(o, "delta_p_rms_stderr"), 0.5 / rms * error_of(square, n), TOLERANCE, "its error");
    check_percentiles(o, "delta_p", x->delta, n);
}

/* Top entries give only bounds for the reference's probability of labels. */
static void check_bounds(const cJSON *o, const struct expected *x) {
    static const struct {
        const char *name;
        size_t array;
    } means[] = {{"delta_p_lower_bound", offsetof(struct expected, delta)},
                 {"delta_p_upper_bound", offsetof(struct expected, most)}};
    double ppl = exp(mean_of(x->nll, NULL, x->labels)), base = exp(mean_of(x->base, NULL, x->labels));
    assert_near(result_number(o, "perplexity_reference_lower_bound"), base, 1e-4, "perplexity of the reference");
    assert_near(result_number(o, "ln_ratio_upper_bound"), log(ppl / base), TOLERANCE, "ln ratio");
    for (size_t i = 0; i < COUNT_OF(means); i++)
        assert_near(result_number(o, means[i].name),
                    mean_of((const double *)(const void *)((const char *)x + means[i].array), NULL, x->labels),
                    TOLERANCE, means[i].name);
}

static void check(const cJSON *o, const struct expected *x, const char *kld) {
    char error[64];
    snprintf(error, sizeof error, "%s_stderr", kld);
    assert_true(result_number(o, "positions") == (double)x->n);
    assert_true(result_number(o, "labels") == (double)x->labels);
    assert_true(result_number(o, "labels_known") == (double)x->known);
    assert_near(result_number(o, kld), mean_of(x->kld, NULL, x->n), TOLERANCE, kld);
    assert_near(result_number(o, error), error_of(x->kld, x->n), TOLERANCE, "its error");
    check_percentiles(o, kld, x->kld, x->n);
    assert_near(result_number(o, "same_top"), (double)x->same / (double)x->n, 1e-12, "same top");
    assert_near(result_number(o, "perplexity"), exp(mean_of(x->nll, NULL, x->labels)), TOLERANCE, "perplexity");
}

/* ln softmax(x / T) of a row. */
static void log_softmax64(double *out, const float *x, size_t n, double temperature) {
    double p[BYTE_VOCAB];
    softmax64(p, x, n, temperature);
    for (size_t i = 0; i < n; i++) out[i] = log(p[i]);
}

static void add_position(struct expected *x, double kld, bool same) {
    x->kld[x->n++] = kld;
    x->same += same;
}
/* `known`: base is the reference's log-probability of the label; otherwise it is an upper bound. */
static void add_label(struct expected *x, double log_p, double log_base, bool known) {
    x->nll[x->labels] = -log_p;
    x->base[x->labels] = -log_base;
    x->delta[x->labels] = exp(log_p) - exp(log_base);
    x->most[x->labels++] = exp(log_p) - (known ? exp(log_base) : 0);
    x->known += known;
}

static struct expected expect_dense(const struct pair *p) {
    struct expected x = {0};
    double t[BYTE_VOCAB], s[BYTE_VOCAB];
    assert_true(p->s.n_positions <= MAX_POSITIONS);
    for (size_t i = 0; i < p->s.n_positions; i++) {
        const float *teacher = p->s.logits + i * BYTE_VOCAB, *student = p->mine + i * BYTE_VOCAB;
        uint32_t label = label_at(&p->s, i);
        double kld = 0;
        log_softmax64(t, teacher, BYTE_VOCAB, 1);
        log_softmax64(s, student, BYTE_VOCAB, 1);
        for (size_t k = 0; k < BYTE_VOCAB; k++) kld += exp(t[k]) * (t[k] - s[k]);
        add_position(&x, kld, argmax(teacher, BYTE_VOCAB) == argmax(student, BYTE_VOCAB));
        if (label != UINT32_MAX) add_label(&x, s[label], t[label], true);
    }
    return x;
}

/* Expected values from decoded topk or ghost knowledge: its entries, and the rest as one more token. */
static struct expected expect_top(const struct pair *p, const struct knowledge_rows *k, double temperature) {
    struct expected x = {0};
    double s[BYTE_VOCAB], one[BYTE_VOCAB];
    for (size_t i = 0; i < k->n_positions; i++) {
        double mass = 0, covered = 0, kld = 0, base = 1;
        log_softmax64(s, p->mine + i * BYTE_VOCAB, BYTE_VOCAB, temperature);
        log_softmax64(one, p->mine + i * BYTE_VOCAB, BYTE_VOCAB, 1);
        for (uint64_t j = k->offset[i]; j < k->offset[i + 1]; j++) {
            double t = k->probs[j];
            mass += t;
            kld += t * (log(t) - s[k->ids[j]]);
            covered += exp(s[k->ids[j]]);
            if (k->ids[j] == k->labels[i]) base = log(t);
        }
        if (mass < 1) kld += (1 - mass) * log((1 - mass) / (1 - covered));
        add_position(&x, kld, k->ids[k->offset[i]] == argmax(p->mine + i * BYTE_VOCAB, BYTE_VOCAB));
        double most = fmin(k->probs[k->offset[i + 1] - 1], fmax(0, 1 - mass) + 1e-3);
        if (k->labels[i] != UINT32_MAX) add_label(&x, one[k->labels[i]], base < 1 ? base : log(most), base < 1);
    }
    return x;
}

/* ---- tests ------------------------------------------------------------------------------------------------------- */

static void a_model_does_not_diverge_from_itself(void **state) {
    (void)state;
    struct pair p = pair_new(9, 30);
    struct knowledge_format f = format_of("dense", BYTE_VOCAB);
    cJSON *o = compared(p.teacher, &p.s, &f);
    assert_true(fabs(result_number(o, "kld")) < 1e-6 && fabs(result_number(o, "kld_max")) < 1e-5);
    assert_true(result_number(o, "same_top") == 1);
    assert_true(result_number(o, "same_top_high") == 1 && result_number(o, "same_top_low") > 0.9);
    assert_near(result_number(o, "ln_ratio"), 0, 1e-6, "ln ratio");
    assert_near(result_number(o, "ln_correlation"), 1, 1e-6, "correlation");
    assert_near(result_number(o, "delta_p_rms"), 0, 1e-6, "rms");
    assert_string_equal(cJSON_GetObjectItem(o, "tail")->valuestring, "none");
    cJSON_Delete(o);
    pair_free(&p);
}

static void dense_is_the_textbook(void **state) {
    (void)state;
    struct pair p = pair_new(12, 50);
    struct expected x = expect_dense(&p);
    struct knowledge_format f = format_of("dense", BYTE_VOCAB);
    cJSON *o = compared(p.student, &p.s, &f);
    double mean = mean_of(x.kld, NULL, x.n);
    if (mean < 0.01 || mean > 1 || x.same == x.n || x.same < x.n / 2)
        fail_msg("no case worth looking at: kld %g, %zu of %zu", mean, x.same, x.n);
    check(o, &x, "kld");
    check_company(o, &x);
    cJSON_Delete(o);
    pair_free(&p);
}

/* Log-probabilities at a temperature determine the distribution at temperature 1, at which models are compared. */
static void dense_at_a_temperature(void **state) {
    (void)state;
    struct pair p = pair_new(5, 40);
    struct expected x = expect_dense(&p);
    struct knowledge_format f = format_of("dense", BYTE_VOCAB);
    f.temperature = 2;
    f.log_probs = true;
    cJSON *o = compared(p.student, &p.s, &f);
    assert_true(result_number(o, "temperature") == 1);
    check(o, &x, "kld");
    check_company(o, &x);
    cJSON_Delete(o);
    pair_free(&p);
}

/* topk and ghost store the same bytes and must give the same numbers. */
static void top_entries_give_bounds(void **state) {
    (void)state;
    static const char *const encodings[] = {"ghost:1", "ghost:12", "ghost:200", "topk:1", "topk:12"};
    struct pair p = pair_new(12, 50);
    for (size_t i = 0; i < 2 * COUNT_OF(encodings); i++) {
        struct knowledge_format f = format_of(encodings[i / 2], BYTE_VOCAB);
        f.temperature = i % 2 ? 1.5 : 1;
        struct knowledge_rows k = round_trip(&p.s, &f, 1);
        struct expected x = expect_top(&p, &k, f.temperature);
        cJSON *o = compared(p.student, &p.s, &f);
        assert_true(result_number(o, "temperature") == f.temperature);
        assert_string_equal(cJSON_GetObjectItem(o, "reference")->valuestring, encodings[i / 2]);
        check(o, &x, i % 2 ? "tempered_kld_lower_bound" : "kld_lower_bound");
        if (i % 2 == 0) check_bounds(o, &x);
        cJSON_Delete(o);
        knowledge_rows_release(&k);
    }
    pair_free(&p);
}

static void draws_give_the_cross_entropy(void **state) {
    (void)state;
    struct pair p = pair_new(12, 50);
    struct knowledge_format f = format_of("sample:7", BYTE_VOCAB);
    struct knowledge_rows k = round_trip(&p.s, &f, 1);
    double cross[MAX_POSITIONS], nll[MAX_POSITIONS], s[BYTE_VOCAB];
    size_t labels = 0;
    for (size_t i = 0; i < k.n_positions; i++) {
        cross[i] = 0;
        log_softmax64(s, p.mine + i * BYTE_VOCAB, BYTE_VOCAB, 1);
        for (uint64_t j = k.offset[i]; j < k.offset[i + 1]; j++) cross[i] -= k.probs[j] * s[k.ids[j]];
        if (k.labels[i] != UINT32_MAX) nll[labels++] = -s[k.labels[i]];
    }
    cJSON *o = compared(p.student, &p.s, &f);
    assert_near(result_number(o, "cross_entropy"), mean_of(cross, NULL, k.n_positions), TOLERANCE, "cross-entropy");
    assert_near(result_number(o, "cross_entropy_stderr"), error_of(cross, k.n_positions), TOLERANCE, "its error");
    assert_near(result_number(o, "perplexity"), exp(mean_of(nll, NULL, labels)), TOLERANCE, "perplexity");
    assert_true(result_number(o, "labels") == (double)labels);
    assert_null(cJSON_GetObjectItem(o, "kld"));
    assert_null(cJSON_GetObjectItem(o, "ln_ratio"));
    cJSON_Delete(o);
    knowledge_rows_release(&k);
    pair_free(&p);
}

/* More positions than fit in one pass, and a sequence that spans many batches. */
static void long_streams_go_in_parts(void **state) {
    (void)state;
    struct pair p = pair_new(120, 60);
    struct knowledge_format f = format_of("ghost:4", BYTE_VOCAB);
    assert_true(p.s.n_positions > METRICS_BATCH);
    struct knowledge_rows k = round_trip(&p.s, &f, 1);
    double sum = 0, s[BYTE_VOCAB];
    for (size_t i = 0; i < k.n_positions; i++) {
        double covered = 0;
        log_softmax64(s, p.mine + i * BYTE_VOCAB, BYTE_VOCAB, 1);
        for (uint64_t j = k.offset[i]; j < k.offset[i + 1]; j++) {
            sum += k.probs[j] * (log(k.probs[j]) - s[k.ids[j]]);
            covered += exp(s[k.ids[j]]);
        }
        sum += k.rest[i] * log(k.rest[i] / (1 - covered));
    }
    cJSON *o = compared(p.student, &p.s, &f);
    assert_true(result_number(o, "positions") == (double)p.s.n_positions);
    assert_near(result_number(o, "kld_lower_bound"), sum / (double)p.s.n_positions, TOLERANCE, "kld");
    cJSON_Delete(o);
    knowledge_rows_release(&k);
    pair_free(&p);
}

/* ---- a key means one number -------------------------------------------------------------------------------------- */

enum relation {
    ABSENT,
    EQUAL, /* to the dense result with the same key */
    BELOW, /* a lower bound of the dense result whose key lacks the suffix; with enough entries close to it */
    ABOVE,
    OTHER, /* a key that the dense result does not have */
};

/* How the numbers of an encoding relate to those of the whole distribution. Columns: topk and ghost at temperature
 * 1; both at another one; draws; draws at another temperature. */
#define COLUMNS 4
static const struct {
    const char *key, *dense;
    enum relation is[COLUMNS];
} cells[] = {
    {"positions", "positions", {EQUAL, EQUAL, EQUAL, EQUAL}},
    {"labels", "labels", {EQUAL, EQUAL, EQUAL, EQUAL}},
    {"labels_known", "labels_known", {BELOW, BELOW, ABSENT, ABSENT}},
    {"perplexity", "perplexity", {EQUAL, EQUAL, EQUAL, EQUAL}},
    {"perplexity_stderr", "perplexity_stderr", {EQUAL, EQUAL, EQUAL, EQUAL}},
    {"same_top", "same_top", {EQUAL, EQUAL, ABSENT, ABSENT}},
    {"same_top_low", "same_top_low", {EQUAL, EQUAL, ABSENT, ABSENT}},
    {"same_top_high", "same_top_high", {EQUAL, EQUAL, ABSENT, ABSENT}},
    {"kld", "kld", {ABSENT, ABSENT, ABSENT, ABSENT}},
    {"kld_stderr", "kld_stderr", {ABSENT, ABSENT, ABSENT, ABSENT}},
    {"kld_median", "kld_median", {ABSENT, ABSENT, ABSENT, ABSENT}},
    {"kld_lower_bound", "kld", {BELOW, ABSENT, ABSENT, ABSENT}},
    {"kld_lower_bound_max", "kld_max", {BELOW, ABSENT, ABSENT, ABSENT}},
    {"kld_lower_bound_95", "kld_95", {BELOW, ABSENT, ABSENT, ABSENT}},
    {"kld_lower_bound_median", "kld_median", {BELOW, ABSENT, ABSENT, ABSENT}},
    {"tempered_kld_lower_bound", NULL, {ABSENT, OTHER, ABSENT, ABSENT}},
    {"tempered_kld_lower_bound_median", NULL, {ABSENT, OTHER, ABSENT, ABSENT}},
    {"cross_entropy", NULL, {ABSENT, ABSENT, OTHER, ABSENT}},
    {"cross_entropy_stderr", NULL, {ABSENT, ABSENT, OTHER, ABSENT}},
    {"tempered_cross_entropy", NULL, {ABSENT, ABSENT, ABSENT, OTHER}},
    {"perplexity_reference", "perplexity_reference", {ABSENT, ABSENT, ABSENT, ABSENT}},
    {"perplexity_reference_lower_bound", "perplexity_reference", {BELOW, ABSENT, ABSENT, ABSENT}},
    {"ln_ratio", "ln_ratio", {ABSENT, ABSENT, ABSENT, ABSENT}},
    {"ln_ratio_upper_bound", "ln_ratio", {ABOVE, ABSENT, ABSENT, ABSENT}},
    {"ln_correlation", "ln_correlation", {ABSENT, ABSENT, ABSENT, ABSENT}},
    {"delta_p", "delta_p", {ABSENT, ABSENT, ABSENT, ABSENT}},
    {"delta_p_lower_bound", "delta_p", {BELOW, ABSENT, ABSENT, ABSENT}},
    {"delta_p_upper_bound", "delta_p", {ABOVE, ABSENT, ABSENT, ABSENT}},
    {"delta_p_median", "delta_p_median", {ABSENT, ABSENT, ABSENT, ABSENT}},
    {"delta_p_rms", "delta_p_rms", {ABSENT, ABSENT, ABSENT, ABSENT}},
    {"delta_p_rms_stderr", "delta_p_rms_stderr", {ABSENT, ABSENT, ABSENT, ABSENT}},
};

static void check_cell(const cJSON *dense, const cJSON *o, size_t cell, enum relation is, const char *encoding) {
    const char *key = cells[cell].key;
    if (is == ABSENT) {
        if (cJSON_GetObjectItem(o, key)) fail_msg("%s has \"%s\"", encoding, key);
        return;
    }
    double got = result_number(o, key);
    if (is == OTHER) {
        if (cJSON_GetObjectItem(dense, key)) fail_msg("dense has \"%s\", too", key);
        return;
    }
    double want = result_number(dense, cells[cell].dense), slack = 1e-3 * fmax(1, fabs(want)); /* f16 */
    bool holds = is == EQUAL ? fabs(got - want) < 1e-5 : is == BELOW ? got <= want + slack : got >= want - slack;
    if (!holds) fail_msg("%s: \"%s\" is %.9g, dense %.9g", encoding, key, got, want);
    /* 200 of 258 entries leave little mass outside */
    if (strstr(encoding, ":200") && fabs(got - want) > 0.1 * fmax(1, fabs(want)) && strcmp(key, "labels_known") != 0)
        fail_msg("%s: \"%s\" is %.9g, far from %.9g", encoding, key, got, want);
}

static void a_key_means_one_number(void **state) {
    (void)state;
    static const struct {
        const char *encoding;
        double temperature;
        int column;
    } cases[] = {{"topk:1", 1, 0},     {"topk:12", 1, 0},   {"topk:200", 1, 0},  {"ghost:1", 1, 0},
                 {"ghost:12", 1, 0},   {"ghost:200", 1, 0}, {"topk:12", 2, 1},   {"ghost:12", 2, 1},
                 {"ghost:12", 0.7, 1}, {"sample:5", 1, 2},  {"sample:50", 1, 2}, {"sample:50", 2, 3}};
    static const char *const said[] = {"metric", "reference", "tail", "temperature"};
    struct pair p = pair_new(12, 50);
    struct knowledge_format whole = format_of("dense", BYTE_VOCAB);
    cJSON *dense = compared(p.student, &p.s, &whole);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct knowledge_format f = format_of(cases[i].encoding, BYTE_VOCAB);
        f.temperature = cases[i].temperature;
        cJSON *o = compared(p.student, &p.s, &f);
        for (size_t cell = 0; cell < COUNT_OF(cells); cell++)
            check_cell(dense, o, cell, cells[cell].is[cases[i].column], cases[i].encoding);
        /* keys that the dense result has as well must be in the table and equal */
        for (const cJSON *x = o->child; x; x = x->next) {
            bool known = !cJSON_GetObjectItem(dense, x->string);
            for (size_t k = 0; k < COUNT_OF(said); k++) known |= !strcmp(x->string, said[k]);
            for (size_t cell = 0; cell < COUNT_OF(cells); cell++) known |= !strcmp(x->string, cells[cell].key);
            if (!known) fail_msg("%s: \"%s\" is not in the table", cases[i].encoding, x->string);
        }
        cJSON_Delete(o);
    }
    cJSON_Delete(dense);
    pair_free(&p);
}

static void fails(struct model *m, const struct sample *s, const struct knowledge_format *f, const char *says) {
    struct err e = {0}, ok;
    cJSON *o;
    int fd;
    if (encode_sample(s, f, 1, 10, 10, &fd, &ok)) fail_msg("%s", ok.msg);
    assert_int_equal(compare(m, fd, &o, &e), ERR_DATA);
    if (!strstr(e.msg, says)) fail_msg("'%s' does not say '%s'", e.msg, says);
}

static void what_cannot_be_compared(void **state) {
    (void)state;
    struct err e;
    struct divergence *d;
    struct model *m = byte_model(16, 1, true, false);
    struct knowledge_format f = format_of("ghost:4", BYTE_VOCAB), none = {.vocab_size = BYTE_VOCAB};
    struct sample s = sample_new(3, 10, BYTE_VOCAB, 1), other = sample_new(3, 10, 50, 1),
                  none_at_all = {.vocab = BYTE_VOCAB};
    struct sample longer = sample_new(1, 1, BYTE_VOCAB, 1);
    assert_int_equal(divergence_new(&d, m, &none, &e), ERR_DATA);
    fails(m, &none_at_all, &f, "no positions");
    f.vocab_size = 50;
    fails(m, &other, &f, "over 50 tokens, but the model has 258");
    f.vocab_size = BYTE_VOCAB;
    mem_free(longer.tokens);
    mem_free(longer.logits);
    longer.n_positions = longer.lengths[0] = 17;
    longer.tokens = mem_array(17, sizeof(uint32_t), &e);
    longer.logits = mem_array((size_t)17 * BYTE_VOCAB, sizeof(float), &e);
    fails(m, &longer, &f, "context");
    model_host_value(model_param(m, ROLE_NORM, 0))[0] = NAN;
    fails(m, &s, &f, "sequence 0, position 0: the model gives no finite");
    sample_free(&s);
    sample_free(&other);
    sample_free(&longer);
    model_free(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_model_does_not_diverge_from_itself),
        cmocka_unit_test(dense_is_the_textbook),
        cmocka_unit_test(dense_at_a_temperature),
        cmocka_unit_test(top_entries_give_bounds),
        cmocka_unit_test(draws_give_the_cross_entropy),
        cmocka_unit_test(long_streams_go_in_parts),
        cmocka_unit_test(a_key_means_one_number),
        cmocka_unit_test(what_cannot_be_compared),
    };
    parallel_set_threads(1); /* the matrices are small: threads would only wait for each other */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
