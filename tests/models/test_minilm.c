/*
 * all-MiniLM-L6-v2, a BERT, against Hugging Face transformers in f32: last hidden states and the sentence embeddings of
 * sentence-transformers (tests/reference/make_minilm_golden.py). Needs the model (MINILM, default models/minilm: `make
 * -f examples/models.mk minilm`) and is skipped without it. Run by `make test-models`.
 */
#include <stdlib.h>

#include "tests/unit/formats_samples.h"
#include "tests/unit/model_samples.h"

#define EXPECTED "tests/golden/minilm/expected.safetensors"
#define HIDDEN   384

static struct buf stream; /* the model; empty if missing */
static struct mapped_file file;
static struct raw_table expected;
static struct arena memory;
static struct model_input in;

/* Returns an aligned copy of a tensor of the fixture. */
static void *wanted(const char *name, uint64_t *rows) {
    struct err e;
    const struct raw_tensor *t = raw_table_find(&expected, name);
    assert_non_null(t);
    void *to = arena_array(&memory, t->n_bytes, 1, &e);
    memcpy(to, t->data, t->n_bytes);
    *rows = t->dims[0];
    return to;
}

static int set_up(void **state) {
    (void)state;
    struct err e;
    const char *set = getenv("MINILM"), *folder = set && *set ? set : "models/minilm";
    if (access(folder, R_OK)) {
        fprintf(stderr, "test_minilm: no %s: skipped\n", folder);
        return 0;
    }
    struct foreign_options o = {.no_tokenizer = true};
    stream = imported_with(folder, 0, &o);
    OK(mapped_file_open(&file, EXPECTED, &e));
    OK(safetensors_parse(&expected, file.data, file.size, &memory, &e));
    OK(raw_table_sort(&expected, &e));
    in.tokens = wanted("tokens", &in.n_positions);
    in.lengths = wanted("lengths", &in.n_seqs);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    if (file.data) mapped_file_close(&file);
    raw_table_release(&expected);
    arena_release(&memory);
    buf_release(&stream);
    return 0;
}

static struct model *loaded(const struct buf *b, enum model_weight_format format) {
    struct err e;
    struct model *m;
    if (load_model_as(b, format, &m, &e)) fail_msg("%s", e.msg);
    return m;
}

/* The hidden states [n_positions][HIDDEN]. Free with mem_free. */
static float *states_of(struct model *m) {
    struct err e;
    struct grad_tape *t;
    float *states = mem_array(in.n_positions * HIDDEN, sizeof *states, &e);
    OK(grad_tape_new(&t, kernel_cpu(), false, model_precision(m), &e));
    struct grad_var *h = model_graph(m, t, &in, NULL, NULL, &e);
    if (!h) fail_msg("%s", e.msg);
    memcpy(states, grad_host_value(t, h), in.n_positions * HIDDEN * sizeof *states);
    grad_tape_free(t);
    return states;
}

static double farthest(const float *a, const float *b, size_t n) {
    double worst = 0;
    for (size_t i = 0; i < n; i++) worst = fmax(worst, fabs((double)a[i] - b[i]));
    return worst;
}

/* The mean of a sequence's states, normalised to length 1. */
static void pool(const float *states, uint32_t n, float *vector) {
    double sum[HIDDEN] = {0}, square = 0;
    for (uint32_t i = 0; i < n; i++)
        for (size_t k = 0; k < HIDDEN; k++) sum[k] += states[i * HIDDEN + k];
    for (size_t k = 0; k < HIDDEN; k++) square += sum[k] * sum[k];
    for (size_t k = 0; k < HIDDEN; k++) vector[k] = (float)(sum[k] / sqrt(square));
}

/* The largest distance of a sentence's embedding from that of transformers. */
static double distance_of_sentences(const float *states) {
    uint64_t n;
    const float *sentences = wanted("sentences", &n);
    double worst = 0;
    assert_int_equal(n, in.n_seqs);
    for (size_t s = 0; s < n; states += in.lengths[s++] * HIDDEN) {
        float vector[HIDDEN];
        pool(states, in.lengths[s], vector);
        worst = fmax(worst, farthest(vector, sentences + s * HIDDEN, HIDDEN));
    }
    return worst;
}

static void hidden_states_are_transformers(void **state) {
    (void)state;
    if (!stream.len) skip();
    struct model *m = loaded(&stream, WEIGHTS_F32);
    uint64_t n;
    const float *hidden = wanted("hidden", &n);
    float *states = states_of(m);
    double worst = farthest(states, hidden, n * HIDDEN), of_sentences = distance_of_sentences(states);
    printf("largest difference of %d hidden states: %.2e, of %zu sentence vectors: %.2e\n", (int)n, worst, in.n_seqs,
           of_sentences);
    assert_true(worst <= 1e-4 && of_sentences <= 1e-4);
    mem_free(states);
    model_free(m);
}

/* Through a GGUF, which omits the pooler, the bits are the same. */
static void a_gguf_of_it_gives_the_same(void **state) {
    (void)state;
    if (!stream.len) skip();
    struct err e;
    struct buf gguf = {0};
    struct foreign_model *f;
    OK(export_gguf(&stream, &gguf, &e));
    OK(foreign_open_gguf(&f, gguf.data, gguf.len, NULL, &e));
    struct buf back = foreign_stream(f, 0);
    struct model *m = loaded(&stream, WEIGHTS_F32), *again = loaded(&back, WEIGHTS_F32);
    float *states = states_of(m), *states_again = states_of(again);
    assert_true(m->config.pooler && !again->config.pooler);
    assert_memory_equal(states, states_again, in.n_positions * HIDDEN * sizeof *states);
    foreign_close(f);
    model_free(m), model_free(again), mem_free(states), mem_free(states_again);
    buf_release(&back), buf_release(&gguf);
}

/* With packed weights and bf16 activations. */
static void sentences_in_bf16_are_close(void **state) {
    (void)state;
    if (!stream.len) skip();
    struct model *m = loaded(&stream, WEIGHTS_PACKED);
    float *states = states_of(m);
    double worst = distance_of_sentences(states);
    printf("sentence vectors in bf16: %.2e\n", worst);
    assert_true(worst <= 4e-3);
    mem_free(states);
    model_free(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hidden_states_are_transformers),
        cmocka_unit_test(a_gguf_of_it_gives_the_same),
        cmocka_unit_test(sentences_in_bf16_are_close),
    };
    return cmocka_run_group_tests_name("minilm", tests, set_up, tear_down);
}
