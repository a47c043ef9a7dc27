/* Tests of lib/quant's plans for a budget: the knapsack against brute force, predicted errors against those of
 * quantizing, Fisher traces against the divergence that noise causes. */
#include "tests/unit/model_samples.h"

#include "lib/quant/budget.h"

/* ---- the knapsack ------------------------------------------------------------------------------------------------ */

enum { MOST_ITEMS = 240, MOST_OFFERS = 6 };
struct sample {
    struct offer offers[MOST_ITEMS][MOST_OFFERS];
    struct offers of[MOST_ITEMS];
    size_t n;
};

/* `unit`: sizes are multiples of it. `convex`: errors decrease with bytes, at a decreasing rate; otherwise any. */
static void sample_offers(struct sample *s, size_t n, uint64_t unit, bool convex, uint64_t seed) {
    struct rng r = rng_init(seed, 5);
    s->n = n;
    for (size_t i = 0; i < n; i++) {
        size_t count = 1 + rng_below(&r, MOST_OFFERS);
        double weight = exp(2 * rng_normal(&r));
        for (size_t k = 0; k < count; k++) {
            double bits = 2 + (double)k + rng_f64(&r);
            s->offers[i][k].bytes = unit * (1 + (uint64_t)(convex ? bits * 8 : (double)rng_below(&r, 64)));
            s->offers[i][k].error = convex ? weight * pow(4, -bits) : rng_f64(&r);
        }
        s->of[i] = (struct offers){s->offers[i], count};
    }
}

static double brute_force(const struct sample *s, size_t i, uint64_t budget) {
    double best = HUGE_VAL;
    if (i == s->n) return 0;
    for (size_t k = 0; k < s->of[i].n; k++) {
        if (s->offers[i][k].bytes > budget) continue;
        double rest = brute_force(s, i + 1, budget - s->offers[i][k].bytes);
        if (s->offers[i][k].error + rest < best) best = s->offers[i][k].error + rest;
    }
    return best;
}

static struct allocation allocated(const struct sample *s, uint64_t budget) {
    struct err e;
    struct allocation a;
    size_t chosen[MOST_ITEMS];
    uint64_t bytes = 0;
    double error = 0;
    OK(allocate(s->of, s->n, budget, chosen, &a, &e));
    for (size_t i = 0; i < s->n; i++) {
        assert_true(chosen[i] < s->of[i].n);
        bytes += s->offers[i][chosen[i]].bytes;
        error += s->offers[i][chosen[i]].error;
    }
    assert_int_equal(bytes, a.bytes);
    assert_true(bytes <= budget);
    assert_true(fabs(error - a.error) <= 1e-12 * error);
    assert_true(a.bound <= a.error);
    return a;
}

static void as_brute_force(void **state) {
    (void)state;
    static struct sample s;
    for (uint64_t seed = 0; seed < 200; seed++) {
        sample_offers(&s, 1 + seed % 6, seed % 3 ? 1 : 1000003, seed % 2, seed);
        uint64_t least = allocate_least(s.of, s.n), most = 0;
        for (size_t i = 0; i < s.n; i++) {
            uint64_t top = 0;
            for (size_t k = 0; k < s.of[i].n; k++)
                if (s.offers[i][k].bytes > top) top = s.offers[i][k].bytes;
            most += top;
        }
        for (uint64_t k = 0; k <= 12; k++) {
            uint64_t budget = least + (most - least) * k / 11; /* at k = 12, more than all items need */
            struct allocation a = allocated(&s, budget);
            double best = brute_force(&s, 0, budget);
            if (!(fabs(a.error - best) <= 1e-9 * best)) fail_msg("seed %d: %g, best %g", (int)seed, a.error, best);
            assert_true(a.bound == a.error);
        }
    }
}

/* At the size of a real model: more bytes never raise the error, and the bound holds. */
static void more_bytes_are_never_worse(void **state) {
    (void)state;
    static struct sample s;
    sample_offers(&s, 211, 18, true, 7);
    uint64_t least = allocate_least(s.of, s.n);
    struct allocation last = allocated(&s, least);
    for (uint64_t budget = least; budget < least * 5 / 2; budget += least / 7) {
        struct allocation a = allocated(&s, budget);
        assert_true(a.error <= last.error);
        assert_true(a.bound >= a.error * (1 - 1e-3)); /* within a thousandth, in case the list was thinned */
        last = a;
    }
}

/* Only filling the budget to the last byte gains anything: the list of states has to be thinned, and the bound says
 * so. */
static void thinned_lists_still_fit(void **state) {
    (void)state;
    static struct sample s;
    struct rng r = rng_init(3, 5);
    uint64_t sum = 0;
    s.n = MOST_ITEMS;
    for (size_t i = 0; i < s.n; i++) {
        uint64_t bytes = 1000000 + rng_below(&r, 1000000);
        s.offers[i][0] = (struct offer){0, (double)bytes};
        s.offers[i][1] = (struct offer){bytes, 0};
        s.of[i] = (struct offers){s.offers[i], 2};
        sum += bytes;
    }
    struct allocation a = allocated(&s, sum / 2);
    assert_true(a.bound >= (double)(sum - sum / 2) * (1 - 1e-9)); /* the error is what was not stored */
    assert_true(a.error <= (double)(sum - sum / 2) * (1 + 1e-4));
}

/* ---- plans ------------------------------------------------------------------------------------------------------- */

static struct model_config budget_config(struct arena *a) {
    struct model_config c = sample_config(a);
    c.hidden = 256, c.head_dim = 64;
    c.layers[0] = (struct model_layer){4, 2, 512};
    c.layers[1] = (struct model_layer){4, 2, 288}; /* rows of 288 in its down: fallbacks */
    return c;
}

static int add_errors(void *ctx, const struct quant_tensor_report *t, struct err *e) {
    (void)e;
    if (t->to != DT_F32) *(double *)ctx += t->relative * t->relative;
    return 0;
}

static int planned(const struct buf *in, const struct quant_options *o, const struct quant_budget *b, struct buf *text,
                   struct quant_budget_result *r, struct err *e) {
    struct stream_reader *reader;
    int fd = file_of(in->data, in->len);
    *text = (struct buf){0};
    assert_int_equal(stream_reader_open(&reader, fd, "in.rill", STREAM_MODEL, e), 0);
    int rc = quant_budget_plan(reader, o, b, text, r, e);
    if (!rc) rc = buf_append(text, "", 1, e);
    stream_reader_free(reader);
    close(fd);
    return rc;
}

/* The sum of squared relative errors that quantizing by this plan reports. */
static double carried_out(const struct buf *in, const struct buf *text, struct quant_totals *totals) {
    struct err e;
    struct stream_reader *r;
    struct stream_writer *w;
    struct quant_options o = {.plan = (const char *)text->data, .plan_name = "plan"};
    double sum = 0;
    int from = file_of(in->data, in->len), to = memory_file();
    OK(stream_reader_open(&r, from, "in.rill", STREAM_MODEL, &e));
    OK(stream_writer_open(&w, to, "out.rill", NULL, &e));
    OK(quantize_stream(r, w, &o, add_errors, &sum, totals, &e));
    stream_writer_free(w);
    stream_reader_free(r);
    close(from);
    close(to);
    return sum;
}

static void what_is_predicted_happens(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = budget_config(&a);
    struct model *m = sample_model(&c, 1);
    struct buf in = saved_model(m, DT_F32);
    struct quant_options o = {0};
    double last = HUGE_VAL;
    char folder[64];
    snprintf(folder, sizeof folder, "/tmp/rill-budget.XXXXXX");
    assert_non_null(mkdtemp(folder));
    OK(quant_cache_open(folder, &e));
    for (int step = 0; step < 15; step++) {
        double bits = 3.2 + 0.4 * step;
        struct quant_budget b = {.bits_per_weight = bits, .cache = folder};
        struct quant_budget_result r, again;
        struct quant_totals totals;
        struct buf text, other;
        OK(planned(&in, &o, &b, &text, &r, &e));
        double error = carried_out(&in, &text, &totals);
        if (!(fabs(error - r.error) <= 1e-6 * error)) fail_msg("predicted %g, is %g", r.error, error);
        assert_int_equal(totals.bytes, r.bytes);
        assert_true(totals.bytes <= r.budget);
        assert_true((double)r.budget <= bits * (double)r.elems / 8);
        assert_int_equal(totals.elems, r.elems);
        assert_true(r.error <= last);
        last = r.error;
        /* errors do not depend on the budget: they are measured again for the first and the last one only */
        parallel_set_threads(3);
        b = (struct quant_budget){.bytes = r.budget, .cache = step % 14 ? folder : NULL};
        OK(planned(&in, &o, &b, &other, &again, &e));
        parallel_set_threads(parallel_default_threads());
        assert_string_equal((char *)text.data, (char *)other.data);
        buf_release(&text);
        buf_release(&other);
    }
    char command[96];
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    assert_int_equal(system(command), 0);
    buf_release(&in);
    model_free(m);
    arena_release(&a);
}

static bool all_fuse(const struct model_config *c) {
    (void)c;
    return true;
}

static void what_is_one_tensor_has_one_type(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = budget_config(&a);
    struct model *m = sample_model(&c, 1);
    model_host_value(model_param(m, ROLE_V, 0))[7] = 5000; /* so that v alone would get another type */
    struct buf in = saved_model(m, DT_F32), text;
    struct quant_budget b = {.bits_per_weight = 5};
    struct quant_budget_result r;
    for (int fused = 0; fused < 2; fused++) {
        struct quant_options o = {.fuses_qkv = fused ? all_fuse : NULL};
        struct quant_plan p;
        OK(planned(&in, &o, &b, &text, &r, &e));
        struct quant_options from = {.plan = (const char *)text.data, .plan_name = "plan"};
        OK(quant_plan_make(&p, &c, &from, &e));
        enum dtype types[3];
        for (unsigned i = 0; i < 3; i++)
            types[i] = p.choices[model_slot_index(&c, (struct model_slot){i == 0   ? ROLE_Q
                                                                          : i == 1 ? ROLE_K
                                                                                   : ROLE_V,
                                                                          0})]
                           .to;
        assert_true((types[0] == types[1] && types[1] == types[2]) == (fused == 1));
        quant_plan_release(&p);
        buf_release(&text);
    }
    buf_release(&in);
    model_free(m);
    arena_release(&a);
}

static void refusals(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = budget_config(&a);
    struct model *m = sample_model(&c, 1);
    struct buf in = saved_model(m, DT_F32), text;
    struct quant_options o = {0}, strict = {.strict = true};
    struct quant_budget b = {.bits_per_weight = 1.5};
    struct quant_budget_result r;
    unsigned *types;
    size_t n;
    assert_int_equal(planned(&in, &o, &b, &text, &r, &e), ERR_USAGE);
    char *least = strstr(e.msg, "cannot be reached: the smallest are ");
    assert_non_null(least);
    /* the smallest sizes in the message can be reached, by bytes and by bits */
    b = (struct quant_budget){.bytes = strtoull(least + strlen("cannot be reached: the smallest are "), NULL, 10)};
    double bits = strtod(strstr(least, "bytes, ") + 7, NULL);
    OK(planned(&in, &o, &b, &text, &r, &e));
    assert_int_equal(r.bytes, b.bytes);
    buf_release(&text);
    b.bytes--;
    assert_int_equal(planned(&in, &o, &b, &text, &r, &e), ERR_USAGE);
    b = (struct quant_budget){.bits_per_weight = bits};
    OK(planned(&in, &o, &b, &text, &r, &e));
    buf_release(&text);

    OK(quant_types_parse("q4_k,Q6_K", &types, &n, &e));
    b = (struct quant_budget){.bits_per_weight = 8, .types = types, .n_types = n};
    assert_int_equal(planned(&in, &strict, &b, &text, &r, &e), ERR_USAGE);
    assert_non_null(strstr(e.msg, "tensor 'layers.1.ffn.down.weight', rows of 288: no type to choose from"));
    mem_free(types);
    OK(quant_types_parse("iq2_xxs", &types, &n, &e));
    b.types = types, b.n_types = n;
    assert_int_equal(planned(&in, &o, &b, &text, &r, &e), ERR_USAGE);
    assert_non_null(strstr(e.msg, "some need --stats"));
    mem_free(types);
    static const char *const bad[] = {"", "q4_k,", "q4_k,q4_K", "q4_k_m", "q9"};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        assert_int_equal(quant_types_parse(bad[i], &types, &n, &e), ERR_USAGE);
        mem_free(types);
    }
    buf_release(&in);
    model_free(m);
    arena_release(&a);
}

/* ---- Fisher traces ----------------------------------------------------------------------------------------------- */

enum { SEQS = 150, LENGTH = 16, POSITIONS = SEQS * LENGTH };
struct answers {
    size_t vocab;
    float *log_p; /* [POSITIONS][vocab] */
};
static int keep(void *ctx, size_t first, size_t rows, size_t vocab, float *logits, struct err *e) {
    struct answers *a = ctx;
    (void)e;
    a->vocab = vocab;
    for (size_t r = 0; r < rows; r++) {
        double sum = 0;
        const float *x = logits + r * vocab;
        for (size_t i = 0; i < vocab; i++) sum += exp((double)x[i]);
        for (size_t i = 0; i < vocab; i++) a->log_p[(first + r) * vocab + i] = (float)(x[i] - log(sum));
    }
    return 0;
}

static void answer(struct model *m, const struct model_input *in, struct answers *a) {
    struct err e;
    struct grad_tape *t;
    OK(grad_tape_new(&t, kernel_cpu(), false, DT_F32, &e));
    OK(model_infer(m, t, in, NULL, NULL, keep, a, &e));
    grad_tape_free(t);
}

/* Noise of standard deviation s on a matrix causes a divergence of s^2 trace / 2. */
static void traces_predict_divergence(void **state) {
    (void)state;
    static uint32_t tokens[POSITIONS], lengths[SEQS];
    static float before[POSITIONS * 97], after[POSITIONS * 97];
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = sample_model(&c, 3);
    double traces[64];
    assert_true(m->n_params <= COUNT_OF(traces));
    sample_tokens(tokens, POSITIONS, 97, 1);
    for (size_t i = 0; i < SEQS; i++) lengths[i] = LENGTH;
    struct model_input in = {POSITIONS, SEQS, tokens, lengths, NULL};
    struct answers was = {.log_p = before}, is = {.log_p = after};
    OK(quant_fisher_traces(m, &in, 1, traces, &e));
    answer(m, &in, &was);
    for (size_t i = 0; i < m->n_params; i++) {
        struct model_param *p = &m->params[i];
        if (!model_role_is_matrix(p->slot.role)) continue;
        double divergence = 0, runs = 4, s = sqrt(0.002 / traces[i]);
        float *kept = mem_array(p->n, sizeof *kept, &e), *w = model_host_value(p);
        assert_non_null(kept);
        memcpy(kept, w, p->n * sizeof *w);
        for (int run = 0; run < runs; run++) {
            struct rng r = rng_init(i, (uint64_t)run);
            for (uint64_t k = 0; k < p->n; k++) w[k] = kept[k] + (float)(s * rng_normal(&r));
            answer(m, &in, &is);
            for (size_t k = 0; k < (size_t)POSITIONS * was.vocab; k++)
                divergence += exp((double)before[k]) * ((double)before[k] - after[k]);
        }
        memcpy(w, kept, p->n * sizeof *w);
        mem_free(kept);
        double ratio = divergence / runs / POSITIONS / (0.5 * s * s * traces[i]);
        if (!(ratio > 0.8 && ratio < 1.25)) fail_msg("%s: %g of what the trace predicts", p->desc.name, ratio);
    }
    model_free(m);
    arena_release(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_brute_force),
        cmocka_unit_test(more_bytes_are_never_worse),
        cmocka_unit_test(thinned_lists_still_fit),
        cmocka_unit_test(what_is_predicted_happens),
        cmocka_unit_test(what_is_one_tensor_has_one_type),
        cmocka_unit_test(refusals),
        cmocka_unit_test(traces_predict_divergence),
    };
    return cmocka_run_group_tests_name("budget", tests, NULL, NULL);
}
