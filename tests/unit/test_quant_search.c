/*
 * Tests of lib/quant's search for types within a budget by true divergence: moves keep the budget, the result is as
 * reported, and no worse than the start.
 */
#include "tests/unit/model_samples.h"

#include "lib/quant/quant.h"

enum { SEQUENCES = 6, LENGTH = 12, POSITIONS = SEQUENCES * LENGTH };

static struct model_input sample_input(const struct model_config *c) {
    static uint32_t tokens[POSITIONS], lengths[SEQUENCES];
    for (size_t i = 0; i < SEQUENCES; i++) lengths[i] = LENGTH - i % 3;
    size_t n = 0;
    for (size_t i = 0; i < SEQUENCES; i++) n += lengths[i];
    sample_tokens(tokens, n, c->vocab_size, 5);
    return (struct model_input){n, SEQUENCES, tokens, lengths};
}

/* Some matrices matter more than others, not only by their weights. */
static struct model *uneven(const struct model_config *c) {
    struct model *m = sample_model(c, 1);
    struct model_param *up = model_param(m, ROLE_UP, 1), *v = model_param(m, ROLE_V, 0);
    for (uint64_t i = 0; i < up->n; i += 9) model_host_value(up)[i] *= 4;
    for (uint64_t i = 0; i < v->n; i++) model_host_value(v)[i] *= 3;
    return m;
}

struct run {
    struct buf text; /* a string: the plan */
    struct quant_budget_result r;
};

static int planned(const struct buf *saved, const struct quant_options *o, struct quant_budget b,
                   const struct model_input *in, uint64_t steps, uint64_t seed, struct run *out, struct err *said) {
    struct quant_search s = {.in = in, .steps = steps, .seed = seed};
    struct stream_reader *reader;
    struct err e;
    int fd = file_of(saved->data, saved->len);
    *out = (struct run){0};
    OK(load_model(saved, &s.model, &e));
    OK(grad_tape_new(&s.scratch, kernel_cpu(), false, DT_F32, &e));
    OK(stream_reader_open(&reader, fd, "in.rill", STREAM_MODEL, &e));
    if (steps) b.search = &s;
    int rc = quant_budget_plan(reader, o, &b, &out->text, &out->r, said);
    if (!rc) rc = buf_append(&out->text, "", 1, said);
    stream_reader_free(reader);
    close(fd);
    grad_tape_free(s.scratch);
    model_free(s.model);
    return rc;
}

/* Quantizes the model by a plan; returns it and its bytes. */
static struct model *carried_out(const struct buf *saved, const struct quant_options *how, const struct run *run,
                                 uint64_t *bytes) {
    struct err e;
    struct stream_reader *r;
    struct stream_writer *w;
    struct quant_totals totals;
    struct model *m;
    struct quant_options o = *how;
    struct buf made;
    o.plan = (const char *)run->text.data, o.plan_name = "plan";
    o.rules = NULL, o.n_rules = 0, o.head_type = 0;
    int from = file_of(saved->data, saved->len), to = memory_file();
    OK(stream_reader_open(&r, from, "in.rill", STREAM_MODEL, &e));
    OK(stream_writer_open(&w, to, "out.rill", NULL, &e));
    OK(quantize_stream(r, w, &o, NULL, NULL, &totals, &e));
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    stream_reader_free(r);
    made = contents(to);
    OK(load_model(&made, &m, &e));
    buf_release(&made);
    close(from);
    *bytes = totals.bytes;
    return m;
}

static bool all_fuse(const struct model_config *c) {
    (void)c;
    return true;
}

static void assert_near(double is, double should) {
    if (!(fabs(is - should) <= 1e-4 * should + 1e-7)) fail_msg("%g, should be %g", is, should);
}

/* A plan must have the bytes and the divergence that the search reports; the search must start from the knapsack's
 * plan. */
static void check_run(struct model *m, const struct buf *saved, const struct quant_options *o, const struct run *first,
                      const struct run *found, const struct model_input *in) {
    uint64_t bytes;
    struct model *q = carried_out(saved, o, first, &bytes);
    assert_near(found->r.search.before, mean_divergence(m, q, in));
    model_free(q);
    q = carried_out(saved, o, found, &bytes);
    assert_near(found->r.search.after, mean_divergence(m, q, in));
    model_free(q);
    assert_int_equal(bytes, found->r.bytes);
    assert_true(found->r.bytes <= found->r.budget);
    assert_true(found->r.search.after <= found->r.search.before);
    assert_true((found->r.search.after < found->r.search.before) == (found->r.search.accepted > 0));
    assert_int_equal(found->r.search.positions, in->n_positions);
}

static void what_is_found_is_within_the_budget_and_no_worse(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct quant_rule rule;
    OK(quant_rule_parse("ffn.down=q8_0", &rule, &e));
    static const struct {
        double bits;
        uint64_t steps;
        bool tied, fused, hqq, ruled, gains;
    } cases[] = {
        {.bits = 5, .steps = 60, .gains = true},   {.bits = 5, .steps = 40, .tied = true, .gains = true},
        {.bits = 5.6, .steps = 20, .fused = true}, {.bits = 5.6, .steps = 20, .hqq = true},
        {.bits = 6.5, .steps = 20, .ruled = true}, {.bits = 30, .steps = 5}, /* the maximum: nothing to move */
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct model_config c = sample_config(&a);
        c.tied = cases[i].tied;
        struct model *m = uneven(&c);
        struct buf saved = saved_model(m, DT_F32);
        struct model_input in = sample_input(&c);
        struct quant_options o = {.hqq = cases[i].hqq, .fuses_qkv = cases[i].fused ? all_fuse : NULL};
        if (cases[i].ruled) o.rules = &rule, o.n_rules = 1;
        struct quant_budget b = {.bits_per_weight = cases[i].bits};
        struct run first, found[3];
        OK(planned(&saved, &o, b, &in, 0, 0, &first, &e));
        for (int k = 0; k < 3; k++) {
            parallel_set_threads(k + 1);
            OK(planned(&saved, &o, b, &in, cases[i].steps, 3, &found[k], &e));
            assert_string_equal((char *)found[k].text.data, (char *)found[0].text.data);
        }
        parallel_set_threads(parallel_default_threads());
        check_run(m, &saved, &o, &first, &found[0], &in);
        if (cases[i].gains) assert_true(found[0].r.search.after < 0.98 * found[0].r.search.before);
        assert_true(found[0].r.search.tried <= cases[i].steps);
        if (cases[i].bits == 30) assert_int_equal(found[0].r.search.tried, 0);
        for (int k = 0; k < 3; k++) buf_release(&found[k].text);
        buf_release(&first.text);
        buf_release(&saved);
        model_free(m);
    }
    arena_release(&a);
}

/* With one sequence there is no subset to judge candidates on first. Another seed takes another path. */
static void seeds_and_single_sequences(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = uneven(&c);
    struct buf saved = saved_model(m, DT_F32);
    struct model_input in = sample_input(&c);
    in.n_seqs = 1, in.n_positions = in.lengths[0];
    struct quant_options o = {0};
    struct quant_budget b = {.bits_per_weight = 5};
    struct run first, found[2];
    OK(planned(&saved, &o, b, &in, 0, 0, &first, &e));
    for (uint64_t k = 0; k < 2; k++) {
        OK(planned(&saved, &o, b, &in, 30, k, &found[k], &e));
        check_run(m, &saved, &o, &first, &found[k], &in);
    }
    assert_string_not_equal((char *)found[0].text.data, (char *)found[1].text.data);
    for (int k = 0; k < 2; k++) buf_release(&found[k].text);
    buf_release(&first.text);
    buf_release(&saved);
    model_free(m);
    arena_release(&a);
}

static void refusals(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = uneven(&c);
    struct buf saved = saved_model(m, DT_F32);
    struct model_input in = sample_input(&c);
    struct quant_options o = {0};
    struct run run;
    /* too few bytes */
    assert_int_equal(planned(&saved, &o, (struct quant_budget){.bits_per_weight = 3}, &in, 5, 0, &run, &e), ERR_USAGE);
    assert_non_null(strstr(e.msg, "cannot be reached: the smallest are "));
    buf_release(&run.text);
    /* a model in memory that differs from the stream's */
    c.layers[1].ffn = 32;
    struct model *narrow = sample_model(&c, 1);
    struct buf theirs = saved_model(narrow, DT_F32), text = {0};
    struct quant_search s = {.in = &in, .steps = 5};
    struct quant_budget b = {.bits_per_weight = 6, .search = &s};
    struct quant_budget_result r;
    struct stream_reader *reader;
    int fd = file_of(theirs.data, theirs.len);
    s.model = m;
    OK(grad_tape_new(&s.scratch, kernel_cpu(), false, DT_F32, &e));
    OK(stream_reader_open(&reader, fd, "in.rill", STREAM_MODEL, &e));
    assert_int_equal(quant_budget_plan(reader, &o, &b, &text, &r, &e), ERR_DATA);
    assert_non_null(strstr(e.msg, "tensor 'layers.1.ffn.gate.weight' is not that of the model in memory"));
    buf_release(&text);
    stream_reader_free(reader);
    close(fd);
    grad_tape_free(s.scratch);
    buf_release(&theirs);
    model_free(narrow);
    buf_release(&saved);
    model_free(m);
    arena_release(&a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_found_is_within_the_budget_and_no_worse),
        cmocka_unit_test(seeds_and_single_sequences),
        cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests_name("quant_search", tests, NULL, NULL);
}
