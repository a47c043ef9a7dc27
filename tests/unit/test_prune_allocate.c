/*
 * Tests of lib/prune: how sparsity is allocated to layers, by outliers (OWL) and by the search, which minimises the
 * true divergence.
 */
#include "tests/unit/prune_samples.h"

#include "lib/prune/prune_internal.h"

enum { SEQUENCES = 6, LENGTH = 10, POSITIONS = SEQUENCES * LENGTH };

static struct model_input sample_input(const struct model_config *c) {
    static uint32_t tokens[POSITIONS], lengths[SEQUENCES];
    for (size_t i = 0; i < SEQUENCES; i++) lengths[i] = LENGTH;
    sample_tokens(tokens, POSITIONS, c->vocab_size, 5);
    return (struct model_input){POSITIONS, SEQUENCES, tokens, lengths};
}

/* A model with some large weights in layer 1. */
static struct model *with_outliers(const struct model_config *c) {
    struct model *m = sample_model(c, 1);
    struct model_param *up = model_param(m, ROLE_UP, 1);
    for (uint64_t i = 0; i < up->n; i += 9) model_host_value(up)[i] *= 8;
    return m;
}

static bool counts(const struct model *m, size_t i) {
    enum model_role role = m->params[i].slot.role;
    return model_role_in_layer(role) && model_role_is_matrix(role);
}

static double zeros_of(const struct model *m, const struct prune_allocation *a, double *all) {
    double zeros = 0;
    *all = 0;
    for (size_t i = 0; i < m->n_params; i++) {
        if (!counts(m, i)) {
            assert_true(a->share[i] == 0);
            continue;
        }
        assert_true(a->share[i] >= 0 && a->share[i] < 1);
        zeros += a->share[i] * (double)m->params[i].n;
        *all += (double)m->params[i].n;
    }
    return zeros;
}

static int owl_of(const struct model *m, const struct prune_owl *o, struct prune_allocation *out, struct err *e) {
    struct stream_reader *r;
    struct buf saved = saved_model(m, DT_F32);
    int fd = file_of(saved.data, saved.len);
    assert_int_equal(stream_reader_open(&r, fd, "m.rill", STREAM_MODEL, e), 0);
    *out = (struct prune_allocation){0};
    int rc = prune_allocate_owl(r, o, out, e);
    stream_reader_free(r);
    close(fd);
    buf_release(&saved);
    return rc;
}

/* ---- outliers ---- */

/* The paper's definition for one layer, in f64. */
static double outliers_of(const struct model *m, const struct stats *s, uint32_t layer, double times) {
    double sum = 0, n = 0, above = 0;
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < m->n_params; i++) {
            const struct model_param *p = &m->params[i];
            if (!counts(m, i) || p->slot.layer != layer) continue;
            uint64_t cols;
            double positions;
            const double *sq = stats_input_sq(s, p->slot, &cols, &positions);
            for (uint64_t k = 0; k < p->n; k++) {
                double a = fabs((double)model_host_value(p)[k]) * sqrt(sq[k % cols]);
                if (pass)
                    above += a > times * sum / n;
                else
                    sum += a, n++;
            }
        }
    return above / n;
}

static void layers_with_outliers_keep_more(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = with_outliers(&c);
    struct model_input in = sample_input(&c);
    struct stats *s = stats_of(m, &in);
    struct prune_owl o = {.stats = s, .share = 0.6, .outlier = 4, .spread = 0.08};
    struct prune_allocation out;
    double all;
    OK(owl_of(m, &o, &out, &e));
    assert_int_equal(out.n, m->n_params);
    for (uint32_t i = 0; i < 2; i++) assert_true(fabs(out.outliers[i] - outliers_of(m, s, i, 4)) < 1e-4);
    assert_true(out.outliers[1] > out.outliers[0]);
    assert_true(fabs(out.layer[0] - out.layer[1] - 0.16) < 1e-9);
    double zeros = zeros_of(m, &out, &all);
    assert_true(fabs(zeros - 0.6 * all) < 1e-9 * all);
    prune_allocation_release(&out);
    /* at the limits, and with layers that do not differ */
    o.share = 0.97, o.spread = 0.5;
    OK(owl_of(m, &o, &out, &e));
    assert_true(out.layer[0] > 0.998 && out.layer[1] < 0.97);
    zeros = zeros_of(m, &out, &all);
    assert_true(fabs(zeros - 0.97 * all) < 1e-9 * all);
    prune_allocation_release(&out);
    o.share = 0.5, o.outlier = 1e6;
    OK(owl_of(m, &o, &out, &e));
    assert_true(fabs(out.layer[0] - 0.5) < 1e-9 && fabs(out.layer[1] - 0.5) < 1e-9);
    prune_allocation_release(&out);
    c.layers[0].ffn = 64;
    struct model *other = sample_model(&c, 1);
    assert_int_equal(owl_of(other, &o, &out, &e), ERR_DATA);
    prune_allocation_release(&out);
    model_free(other);
    stats_free(s);
    model_free(m);
    arena_release(&a);
}

/* ---- the search ---- */

static int search_of(struct model *m, struct prune_search o, struct prune_allocation *out, struct err *e) {
    *out = (struct prune_allocation){0};
    assert_int_equal(grad_tape_new(&o.scratch, kernel_cpu(), false, DT_F32, e), 0);
    o.model = m;
    int rc = prune_allocate_search(&o, out, e);
    grad_tape_free(o.scratch);
    return rc;
}

static void what_is_found_is_no_worse_and_as_sparse(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    struct model *m = with_outliers(&c), *p;
    struct model_input in = sample_input(&c);
    struct stats *s = stats_of(m, &in);
    struct prune_owl owl = {.stats = s, .share = 0.6, .outlier = 4, .spread = 0.08};
    struct prune_allocation begin, out[3];
    struct prune_report report;
    OK(owl_of(m, &owl, &begin, &e));
    const struct prune_search cases[] = {
        {.in = &in, .share = 0.6, .generations = 12, .offspring = 8, .seed = 3},
        {.in = &in, .stats = s, .share = 0.6, .generations = 12, .offspring = 8, .seed = 3},
        {.in = &in, .stats = s, .share = 0.6, .begin = &begin, .generations = 12, .offspring = 5, .seed = 3},
        {.in = &in, .stats = s, .share = 0.02, .generations = 3, .offspring = 8, .seed = 3},
        {.in = &in, .share = 0.985, .generations = 3, .offspring = 1, .seed = 3},
    };
    struct buf before = saved_model(m, DT_F32);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        double all;
        int threads = parallel_threads();
        struct prune_search other = cases[i];
        other.seed++;
        parallel_set_threads(1);
        OK(search_of(m, cases[i], &out[0], &e));
        parallel_set_threads(4);
        OK(search_of(m, cases[i], &out[1], &e));
        OK(search_of(m, other, &out[2], &e));
        parallel_set_threads(threads);
        assert_memory_equal(out[0].share, out[1].share, out[0].n * sizeof(double));
        assert_true(out[0].kl == out[1].kl && out[0].tried == out[1].tried);
        for (int k = 0; k < 3; k++) {
            double zeros = zeros_of(m, &out[k], &all);
            assert_true(fabs(zeros - cases[i].share * all) < 1e-9 * all);
            assert_true(out[k].kl <= fmin(out[k].begin_kl, out[k].uniform_kl));
        }
        if (i < 3) {
            assert_true(out[0].kl < out[0].uniform_kl);
            assert_memory_not_equal(out[0].share, out[2].share, out[0].n * sizeof(double));
        }
        struct buf after = saved_model(m, DT_F32);
        assert_int_equal(before.len, after.len);
        assert_memory_equal(before.data, after.data, before.len);
        buf_release(&after);
        /* the model pruned this way has the divergence that the search reports, and exactly as many zeros */
        struct prune_options o = {.sparsity = {.share = cases[i].share},
                                  .allocation = &out[0],
                                  .method = cases[i].stats ? PRUNE_WANDA : PRUNE_MAGNITUDE,
                                  .stats = cases[i].stats};
        OK(pruned(m, &o, &p, &report, &e));
        double kl = mean_divergence(m, p, &in);
        if (!(fabs(kl - out[0].kl) <= 1e-5 + 1e-4 * kl)) fail_msg("case %zu: %g, said %g", i, kl, out[0].kl);
        double uniform = 0;
        for (size_t k = 0; k < m->n_params; k++) {
            const struct model_param *q = &m->params[k];
            uint64_t rows = q->desc.dims[0], cols = q->n / rows;
            if (!counts(m, k)) continue;
            uniform += cases[i].stats ? (double)rows * floor(cases[i].share * (double)cols)
                                      : floor(cases[i].share * (double)q->n);
        }
        /* masks by row keep the total exactly; those of matrices round down, each by less than one */
        assert_true(fabs((double)report.zeros - uniform) <= (cases[i].stats ? 0 : 14));
        prune_report_release(&report);
        model_free(p);
        for (int k = 0; k < 3; k++) prune_allocation_release(&out[k]);
    }
    buf_release(&before);
    prune_allocation_release(&begin);
    stats_free(s);
    model_free(m);
    arena_release(&a);
}

static void what_has_no_next_token_is_refused(void **state) {
    (void)state;
    struct err e;
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    c.bidirectional = true;
    struct model *m = sample_model(&c, 1);
    struct model_input in = sample_input(&c);
    struct prune_allocation out;
    struct prune_search o = {.in = &in, .share = 0.5, .generations = 1, .offspring = 1};
    assert_int_equal(search_of(m, o, &out, &e), ERR_DATA);
    prune_allocation_release(&out);
    model_free(m);
    arena_release(&a);
}

/* ---- shares ---- */

static void shares_are_text_to_the_bit_and_whole_weights(void **state) {
    (void)state;
    struct err e;
    struct rng r = rng_init(5, 1);
    char text[PRUNE_SPARSITY_TEXT];
    for (int i = 0; i < 20000; i++) {
        size_t n = 1 + (size_t)rng_below(&r, 1u << (1 + i % 30)), k = (size_t)rng_below(&r, n);
        double share = (double)k / (double)n;
        struct prune_sparsity s = {.share = share}, back;
        if (prune_gone(share, n) != k) fail_msg("%zu of %zu: %zu", k, n, prune_gone(share, n));
        OK(prune_sparsity_parse(prune_sparsity_text(s, text), &back, &e));
        assert_true(back.share == share);
    }
    assert_int_equal(prune_gone(0.5, 3), 1);
    assert_int_equal(prune_gone(0.999, 10), 9);
}

static void totals_are_met_within_bounds(void **state) {
    (void)state;
    struct rng r = rng_init(6, 1);
    for (int i = 0; i < 500; i++) {
        double share[7], weights[7], all = 0, zeros = 0, total = 0.999 * rng_f64(&r);
        for (int k = 0; k < 7; k++) share[k] = 4 * rng_f64(&r) - 2, weights[k] = 1 + 1e6 * rng_f64(&r);
        prune_shift_to(share, weights, 7, total);
        for (int k = 0; k < 7; k++) {
            assert_true(share[k] >= 0 && share[k] < 1);
            all += weights[k], zeros += share[k] * weights[k];
        }
        if (!(fabs(zeros - total * all) < 1e-9 * all)) fail_msg("%g of %g: %g", total * all, all, zeros);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layers_with_outliers_keep_more),
        cmocka_unit_test(what_is_found_is_no_worse_and_as_sparse),
        cmocka_unit_test(what_has_no_next_token_is_refused),
        cmocka_unit_test(shares_are_text_to_the_bit_and_whole_weights),
        cmocka_unit_test(totals_are_met_within_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
