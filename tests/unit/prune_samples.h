/* What the tests of lib/prune share. */
#ifndef RILL_TESTS_PRUNE_SAMPLES_H
#define RILL_TESTS_PRUNE_SAMPLES_H

#include "tests/unit/model_samples.h"

#include "lib/prune/prune.h"

/* Prunes a model by way of a stream. The caller releases the report, on failure too. */
static inline int pruned(const struct model *m, const struct prune_options *o, struct model **out,
                         struct prune_report *report, struct err *e) {
    struct stream_reader *r;
    struct stream_writer *w;
    struct buf in = saved_model(m, DT_F32), written;
    int from = file_of(in.data, in.len), to = memory_file();
    int rc = stream_reader_open(&r, from, "in.rill", STREAM_MODEL, e);
    assert_int_equal(rc, 0);
    rc = stream_writer_open(&w, to, "out.rill", NULL, e);
    assert_int_equal(rc, 0);
    *report = (struct prune_report){0};
    rc = prune_stream(r, w, o, report, e);
    if (!rc) rc = stream_writer_finish(w, NULL, e);
    stream_writer_free(w);
    stream_reader_free(r);
    close(from);
    written = contents(to);
    if (!rc) rc = load_model(&written, out, e);
    buf_release(&in);
    buf_release(&written);
    return rc;
}

static inline float *sample_logits(struct model *m) {
    static uint32_t tokens[24];
    const uint32_t lengths[] = {15, 9};
    sample_tokens(tokens, 24, m->config.vocab_size, 4);
    struct model_input in = {24, 2, tokens, lengths};
    return logits_of(m, &in);
}

static inline void assert_close(const float *a, const float *b, size_t n, double tolerance) {
    double worst = 0, scale = 0;
    for (size_t i = 0; i < n; i++) {
        worst = fmax(worst, fabs((double)a[i] - b[i]));
        scale = fmax(scale, fabs(a[i]));
    }
    if (!(worst <= tolerance * scale)) fail_msg("off by %g of %g", worst, scale);
}

static inline void fill_rows(struct model_param *p, uint32_t first, uint32_t n, float v) {
    kernel_fill(kernel_f32(model_host_value(p) + first * p->desc.dims[1]), n * p->desc.dims[1], v);
}
static inline void scale_cols(struct model_param *p, uint32_t first, uint32_t n, float v) {
    for (uint64_t r = 0; r < p->desc.dims[0]; r++)
        for (uint32_t c = first; c < first + n; c++) model_host_value(p)[r * p->desc.dims[1] + c] *= v;
}

/* ---- tests/golden/tiny-llama, with the statistics of the 41 tokens by which PyTorch scored it ---- */

enum {
    SCORED_SEQUENCES = 3,
    SCORED = 41,
    HEADS = 64,
    KEYS = 32,
    CHANNELS = 128,
    LAYER_SCORES = 2 * HEADS + KEYS + 2 * CHANNELS
};

static inline struct stats *golden_stats(struct model *m) {
    struct err e;
    struct grad_tape *t;
    static const uint32_t lengths[SCORED_SEQUENCES] = {20, 9, 12};
    uint32_t tokens[SCORED];
    for (uint32_t i = 0; i < SCORED; i++) tokens[i] = (7 * i + 3) % 300 % m->config.vocab_size;
    struct model_input in = {SCORED, SCORED_SEQUENCES, tokens, lengths, NULL};
    struct stats *s = stats_of(m, &in);
    OK(model_enable_grad(m, &e));
    OK(grad_tape_new(&t, kernel_cpu(), true, DT_F32, &e));
    OK(stats_collect_gradients(s, m, t, &in, &e));
    grad_tape_free(t);
    return s;
}

#endif
