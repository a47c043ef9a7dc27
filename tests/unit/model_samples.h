/* Small random models for the tests of lib/model and of the modules above it. */
#ifndef RILL_TESTS_MODEL_SAMPLES_H
#define RILL_TESTS_MODEL_SAMPLES_H

#include <math.h>

#include "tests/unit/stream_samples.h"

#include "lib/model/model.h"
#include "lib/stats/stats.h"

/* Two layers of different shapes, grouped queries, untied. */
static inline struct model_config sample_config(struct arena *a) {
    struct err e;
    struct model_config c = {.arch = "llama",
                             .n_layers = 2,
                             .hidden = 64,
                             .head_dim = 16,
                             .vocab_size = 97,
                             .context = 64,
                             .norm_eps = 1e-5f,
                             .rope.theta = 10000};
    c.layers = arena_array(a, 2, sizeof *c.layers, &e);
    assert_non_null(c.layers);
    c.layers[0] = (struct model_layer){4, 2, 96};
    c.layers[1] = (struct model_layer){2, 1, 64};
    return c;
}

/* A replacement in the text of a configuration, and what the error message must then contain. */
struct config_change {
    const char *from, *to, *says;
};
static inline void assert_configs_refused(const char *good, const struct config_change *cases, size_t n) {
    struct err e;
    struct arena a = {0};
    struct model_config c;
    cJSON *o = json_of(good);
    OK(model_config_from_json(&c, o, &a, &e));
    cJSON_Delete(o);
    for (size_t i = 0; i < n; i++) {
        const char *at = strstr(good, cases[i].from);
        char *bad = arena_printf(&a, &e, "%.*s%s%s", (int)(at - good), good, cases[i].to, at + strlen(cases[i].from));
        o = json_of(bad);
        assert_int_equal(model_config_from_json(&c, o, &a, &e), ERR_DATA);
        if (!strstr(e.msg, cases[i].says)) fail_msg("'%s' does not say '%s'", e.msg, cases[i].says);
        cJSON_Delete(o);
    }
    arena_release(&a);
}

/* Weights large enough that the logits are far from uniform. */
static inline struct model *sample_model(const struct model_config *c, uint64_t seed) {
    struct err e;
    struct model *m;
    OK(model_init(&m, kernel_cpu(), c, NULL, 0, seed, &e));
    for (size_t i = 0; i < m->n_params; i++)
        if (model_role_is_matrix(m->params[i].slot.role))
            for (uint64_t k = 0; k < m->params[i].n; k++) model_host_value(&m->params[i])[k] *= 6;
    return m;
}

static inline struct buf saved_model(const struct model *m, unsigned dtype) {
    struct err e;
    struct stream_writer *w;
    int fd = memory_file();
    OK(stream_writer_open(&w, fd, "model", NULL, &e));
    OK(model_save(m, w, dtype, &e));
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    return contents(fd);
}

static inline int load_model_as(const struct buf *b, enum model_weight_format format, struct model **out,
                                struct err *e) {
    struct stream_reader *r;
    int fd = file_of(b->data, b->len);
    int rc = stream_reader_open(&r, fd, "model.rill", STREAM_MODEL, e);
    if (!rc) {
        rc = model_load(out, kernel_cpu(), r, format, e);
        stream_reader_free(r);
    }
    close(fd);
    return rc;
}

static inline int load_model(const struct buf *b, struct model **out, struct err *e) {
    return load_model_as(b, WEIGHTS_F32, out, e);
}

/* A copy for inference: saved as a stream of `dtype`, loaded with weights in `format`. */
static inline struct model *packed_model(const struct model *m, unsigned dtype, enum model_weight_format format) {
    struct err e;
    struct model *packed;
    struct buf bytes = saved_model(m, dtype);
    OK(load_model_as(&bytes, format, &packed, &e));
    buf_release(&bytes);
    return packed;
}

static inline void sample_tokens(uint32_t *tokens, size_t n, uint32_t vocab, uint64_t seed) {
    struct rng r = rng_init(seed, 77);
    for (size_t i = 0; i < n; i++) tokens[i] = (uint32_t)rng_below(&r, vocab);
}

/* Collects all logits of an input. */
struct all_logits {
    float *x; /* [n_positions][vocab] */
};
static inline int keep_logits(void *ctx, size_t first, size_t rows, size_t vocab, float *host_logits, struct err *e) {
    (void)e;
    memcpy(((struct all_logits *)ctx)->x + first * vocab, host_logits, rows * vocab * sizeof(float));
    return 0;
}
static inline float *logits_of(struct model *m, const struct model_input *in) {
    struct err e;
    struct grad_tape *t;
    struct all_logits all = {mem_array(in->n_positions * m->config.vocab_size, sizeof(float), &e)};
    assert_non_null(all.x);
    OK(grad_tape_new(&t, kernel_cpu(), false, model_precision(m), &e));
    OK(model_infer(m, t, in, NULL, NULL, keep_logits, &all, &e));
    grad_tape_free(t);
    return all.x;
}

/* Mean KL(p || q) in nats per position, in f64, from whole runs of both. */
static inline double mean_divergence(struct model *p, struct model *q, const struct model_input *in) {
    float *x = logits_of(p, in), *y = logits_of(q, in);
    size_t n = p->config.vocab_size;
    double sum = 0;
    for (size_t r = 0; r < in->n_positions; r++) {
        double zx = 0, zy = 0, kl = 0;
        for (size_t i = 0; i < n; i++) zx += exp(x[r * n + i]), zy += exp(y[r * n + i]);
        for (size_t i = 0; i < n; i++)
            kl += exp(x[r * n + i]) / zx * ((double)x[r * n + i] - log(zx) - y[r * n + i] + log(zy));
        sum += kl;
    }
    mem_free(x);
    mem_free(y);
    return sum / (double)in->n_positions;
}

static inline struct stats *stats_of(struct model *m, const struct model_input *in) {
    struct err e;
    struct stats *s;
    struct grad_tape *t;
    OK(grad_tape_new(&t, kernel_cpu(), false, DT_F32, &e));
    OK(stats_new(&s, &m->config, NULL, &e));
    OK(stats_collect(s, m, t, in, &e));
    grad_tape_free(t);
    return s;
}
/* Statistics of one sequence of n <= 64 random tokens. */
static inline struct stats *sample_stats(struct model *m, uint32_t n, uint64_t seed) {
    uint32_t tokens[64];
    sample_tokens(tokens, n, m->config.vocab_size, seed);
    return stats_of(m, &(struct model_input){n, 1, tokens, &n});
}

/* Generates for all sequences of `in`, numbered from first_seq, at once. */
static inline int generate_all(struct model *m, const struct model_input *in, uint64_t first_seq,
                               const struct model_sampling *how, model_generated_fn *fn, void *ctx, struct err *e) {
    struct model_generator *g = NULL;
    const uint32_t *prompt = in->tokens;
    int rc = model_generator_new(&g, m, how, fn, NULL, ctx, e);
    for (size_t i = 0; !rc && i < in->n_seqs; prompt += in->lengths[i++])
        rc = model_generator_add(g, first_seq + i, prompt, in->lengths[i], e);
    if (!rc) rc = model_generator_finish(g, e);
    model_generator_free(g);
    return rc;
}

#endif
