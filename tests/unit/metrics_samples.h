/* Models whose tokens are bytes, and log-probabilities in f64, for the tests of lib/metrics. */
#ifndef RILL_TESTS_METRICS_SAMPLES_H
#define RILL_TESTS_METRICS_SAMPLES_H

#include "tests/unit/knowledge_samples.h"
#include "tests/unit/model_samples.h"

#include "lib/metrics/metrics_internal.h"

/* Token i is the byte i; BOS and EOS follow. */
enum { BOS = 256, EOS = 257, BYTE_VOCAB = 258 };

/* A model with one small layer. `bos`: the vocabulary has BOS; `add_bos`: texts begin with it. */
static inline struct model *byte_model(uint32_t context, uint64_t seed, bool bos, bool add_bos) {
    static struct token tokens[BYTE_VOCAB];
    static unsigned char bytes[256];
    struct err e;
    struct arena a = {0};
    struct vocab *v, spec = {.n_tokens = BYTE_VOCAB,
                             .tokens = tokens,
                             .pre = PRE_GPT2,
                             .bos = bos ? BOS : TOKEN_NONE,
                             .eos = EOS,
                             .pad = TOKEN_NONE,
                             .unk = TOKEN_NONE,
                             .add_bos = add_bos};
    for (unsigned i = 0; i < 256; i++) {
        bytes[i] = (unsigned char)i;
        tokens[i] = (struct token){.bytes = &bytes[i], .n_bytes = 1};
    }
    tokens[BOS] = (struct token){(const unsigned char *)"<s>", 3, TOKEN_SPECIAL | TOKEN_ADDED, 0};
    tokens[EOS] = (struct token){(const unsigned char *)"</s>", 4, TOKEN_SPECIAL | TOKEN_ADDED, 0};
    OK(vocab_new(&v, &spec, &e));
    struct buf packed = {0};
    OK(vocab_pack(v, &packed, &e));
    vocab_free(v);
    struct model_config c = sample_config(&a);
    c.n_layers = 1;
    c.vocab_size = BYTE_VOCAB;
    c.context = context;
    struct model *m;
    OK(model_init(&m, kernel_cpu(), &c, packed.data, packed.len, seed, &e));
    for (size_t i = 0; i < m->n_params; i++)
        if (model_role_is_matrix(m->params[i].slot.role))
            for (uint64_t k = 0; k < m->params[i].n; k++) model_host_value(&m->params[i])[k] *= 6;
    buf_release(&packed);
    arena_release(&a);
    return m;
}

/* ln softmax(x)[label] in f64, independent of lib/kernel. */
static inline double log_prob64(const float *x, size_t n, uint32_t label) {
    double max = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++) max = fmax(max, x[i]);
    for (size_t i = 0; i < n; i++) sum += exp(x[i] - max);
    return x[label] - max - log(sum);
}

/* nll[i] = -ln p(tokens[i] | tokens before it); nll[0] is 0. */
static inline void run_nll(struct model *m, const uint32_t *tokens, size_t n, double *nll) {
    uint32_t length = (uint32_t)n;
    struct model_input in = {n, 1, tokens, &length};
    float *x = logits_of(m, &in);
    nll[0] = 0;
    for (size_t i = 1; i < n; i++)
        nll[i] = -log_prob64(x + (i - 1) * m->config.vocab_size, m->config.vocab_size, tokens[i]);
    mem_free(x);
}

static inline double result_number(const cJSON *o, const char *key) {
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(o, key);
    if (!cJSON_IsNumber(v)) fail_msg("the result has no number \"%s\"", key);
    return v->valuedouble;
}

/* |got - want| must be at most `tolerance` times the larger of 1 and |want|. */
static inline void assert_near(double got, double want, double tolerance, const char *what) {
    if (!(fabs(got - want) <= tolerance * fmax(1, fabs(want)))) fail_msg("%s: %.17g, expected %.17g", what, got, want);
}

#endif
