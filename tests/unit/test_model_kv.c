/*
 * Tests of a quantized cache of keys and values: attention against its definition in f64, decoding against whole
 * passes.
 */
#include "lib/model/model_internal.h"
#include "tests/unit/grad_samples.h"
#include "tests/unit/model_samples.h"

enum { N = 13, D = 128, HEADS = 2, KV = 1 };
static const uint32_t tokens[N] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9};

static struct model *sample(uint32_t head_dim) {
    struct arena a = {0};
    struct model_config c = sample_config(&a);
    c.n_layers = 1;
    c.head_dim = head_dim;
    c.layers[0] = (struct model_layer){HEADS, KV, 96};
    struct model *m = sample_model(&c, 5);
    arena_release(&a);
    return m;
}

/* Inputs of attention in a pass, before keys and values are stored, and its output. */
struct seen {
    float q[N * HEADS * D], k[N * KV * D], v[N * KV * D], o[N * HEADS * D];
};

static void copy(struct model *m, struct grad_tape *t, const struct model_want *w, float *to) {
    (void)m;
    memcpy(to, grad_host_value(t, w->var), w->var->rows * w->var->cols * sizeof(float));
}

static void look(struct model *m, struct seen *s) {
    struct err e;
    struct model_want w[] = {{POINT_Q, 0}, {POINT_K, 0}, {POINT_V, 0}, {POINT_O_IN, 0}};
    const uint32_t length = N;
    const struct model_input in = {N, 1, tokens, &length, NULL};
    struct grad_tape *t = new_tape(DT_F32, false);
    assert_non_null(model_graph_want(m, t, &in, w, 4, &e));
    copy(m, t, &w[0], s->q);
    copy(m, t, &w[1], s->k);
    copy(m, t, &w[2], s->v);
    copy(m, t, &w[3], s->o);
    grad_tape_free(t);
}

/* An element of the Sylvester Hadamard matrix of order n. */
static double hadamard(size_t i, size_t k, size_t n) {
    return (__builtin_popcountll(i & k) & 1 ? -1 : 1) / sqrt((double)n);
}

/* Quantizes x [D] and decodes it again, rotated by the Hadamard matrix in parts of n (n 0: not rotated), with the
 * pairs of a head adjacent if `pairs`. */
static void through(enum dtype type, const float *x, size_t n, bool pairs, double *y) {
    struct err e;
    unsigned char blocks[D * 2];
    float ordered[D], turned[D], back[D];
    for (size_t i = 0; i < D; i++) ordered[i] = x[!pairs ? i : i % 2 * (D / 2) + i / 2];
    for (size_t i = 0; i < D; i++) {
        double sum = n ? 0 : ordered[i];
        for (size_t k = 0; k < n; k++) sum += hadamard(i % n, k, n) * ordered[i / n * n + k];
        turned[i] = (float)sum;
    }
    OK(tensor_from_f32(type, turned, blocks, D, NULL, &e));
    tensor_to_f32(type, blocks, back, D);
    for (size_t i = 0; i < D; i++) {
        double sum = n ? 0 : back[i];
        for (size_t k = 0; k < n; k++) sum += hadamard(i % n, k, n) * back[i / n * n + k];
        y[!pairs ? i : i % 2 * (D / 2) + i / 2] = sum;
    }
}

static void attend(const struct model_kv_cache *how, const struct seen *s, double o[N * HEADS * D]) {
    static double q[N][HEADS][D], k[N][D], v[N][D];
    for (size_t i = 0; i < N; i++) {
        for (size_t h = 0; h < HEADS; h++)
            through(DT_Q8_0, s->q + (i * HEADS + h) * D, how->rotated ? 128 : 0, how->interleaved, q[i][h]);
        through(how->dtype, s->k + i * D, how->rotated ? 128 : 0, how->interleaved, k[i]);
        through(how->dtype, s->v + i * D, how->rotated ? 64 : 0, false, v[i]);
    }
    for (size_t i = 0; i < N; i++)
        for (size_t h = 0; h < HEADS; h++) {
            double p[N], sum = 0, *out = o + (i * HEADS + h) * D;
            memset(out, 0, D * sizeof *out);
            for (size_t t = 0; t <= i; t++) {
                double score = 0;
                for (size_t d = 0; d < D; d++) score += q[i][h][d] * k[t][d];
                sum += p[t] = exp(score / sqrt(D));
            }
            for (size_t t = 0; t <= i; t++)
                for (size_t d = 0; d < D; d++) out[d] += p[t] / sum * v[t][d];
        }
}

static void attention_reads_what_the_cache_gives_back(void **state) {
    (void)state;
    static const enum dtype types[] = {DT_Q8_0, DT_Q4_0, DT_IQ4_NL};
    static struct seen s;
    static double want[N * HEADS * D];
    struct err e;
    struct model *m = sample(D);
    look(m, &s);
    static float exact[N * HEADS * D];
    memcpy(exact, s.o, sizeof exact);
    for (size_t i = 0; i < 4 * COUNT_OF(types); i++) {
        enum dtype type = types[i / 4];
        double worst = 0, moved = 0, largest = 0;
        const struct model_kv_cache how = {type, i & 1, i & 2};
        OK(model_set_kv_cache(m, &how, &e));
        look(m, &s);
        attend(&how, &s, want);
        for (size_t k = 0; k < N * HEADS * D; k++) {
            worst = fmax(worst, fabs(s.o[k] - want[k]));
            moved = fmax(moved, fabs(s.o[k] - exact[k]));
            largest = fmax(largest, fabs(want[k]));
        }
        /* in f32 a rotated element near a boundary could round the other way; none of these does */
        assert_true(worst < 1e-5 * largest);
        assert_true(moved > 1e-3 * largest);
    }
    model_free(m);
}

/* The last position, decoded from a cache that holds the others as a prompt, must equal that of a pass over all. */
static void decoding_reads_the_same(void **state) {
    (void)state;
    struct err e;
    static struct seen s;
    struct model *m = sample(D);
    OK(model_set_kv_cache(m, &(struct model_kv_cache){DT_Q4_0, true, true}, &e));
    look(m, &s);
    struct grad_tape *t = new_tape(DT_F32, false);
    struct kv_cache cache = {.capacity = 16}, *caches = &cache;
    cache.memory = kernel_alloc(kernel_cpu(), DT_F32, cache.capacity * kv_width(&m->config, 1), &e);
    const uint32_t lengths[] = {N - 1, 1};
    const struct model_input prompt = {N - 1, 1, tokens, &lengths[0], NULL},
                             next = {1, 1, tokens + N - 1, &lengths[1], NULL};
    assert_non_null(model_graph_cached(m, t, &prompt, &caches, NULL, NULL, &e));
    grad_reset(t);
    struct grad_var *h = model_graph_cached(m, t, &next, &caches, NULL, NULL, &e);
    assert_non_null(h);
    float got[64];
    assert_int_equal(h->cols, 64);
    memcpy(got, grad_host_value(t, h), sizeof got);
    grad_reset(t);
    const uint32_t length = N;
    const struct model_input in = {N, 1, tokens, &length, NULL};
    h = model_graph(m, t, &in, NULL, NULL, &e);
    assert_non_null(h);
    const float *want = grad_host_value(t, h) + (N - 1) * 64;
    for (size_t i = 0; i < 64; i++) assert_true(fabsf(got[i] - want[i]) < 1e-4f);
    kernel_free(kernel_cpu(), cache.memory);
    grad_tape_free(t);
    model_free(m);
}

static void what_cannot_be_is_refused(void **state) {
    (void)state;
    struct err e;
    struct model *m = sample(16);
    assert_int_equal(model_set_kv_cache(m, &(struct model_kv_cache){DT_Q8_0, false, false}, &e), ERR_DATA);
    assert_string_equal(e.msg, "heads of 16 elements are not a whole number of q8_0's blocks of 32");
    model_free(m);
    m = sample(32);
    OK(model_set_kv_cache(m, &(struct model_kv_cache){DT_Q8_0, true, false}, &e)); /* heads that are not rotated */
    assert_int_equal(model_set_kv_cache(m, &(struct model_kv_cache){DT_Q4_K, true, false}, &e), ERR_USAGE);
    assert_string_equal(e.msg, "a cache of q4_k: expected a type with blocks of 32");
    struct grad_tape *t = new_tape(DT_F32, true);
    const uint32_t length = N;
    const struct model_input in = {N, 1, tokens, &length, NULL};
    assert_null(model_graph(m, t, &in, NULL, NULL, &e));
    assert_string_equal(e.msg, "a quantized cache of keys and values is for inference, not for training");
    grad_tape_free(t);
    model_host_value(model_param(m, ROLE_K, 0))[0] = INFINITY;
    t = new_tape(DT_F32, false);
    assert_null(model_graph(m, t, &in, NULL, NULL, &e));
    assert_non_null(strstr(e.msg, "k in the cache: position 0: element "));
    grad_tape_free(t);
    m->config.bidirectional = true;
    assert_int_equal(model_set_kv_cache(m, &(struct model_kv_cache){DT_Q8_0, true, false}, &e), ERR_DATA);
    model_free(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_reads_what_the_cache_gives_back),
        cmocka_unit_test(decoding_reads_the_same),
        cmocka_unit_test(what_cannot_be_is_refused),
    };
    return cmocka_run_group_tests_name("model_kv", tests, NULL, NULL);
}
