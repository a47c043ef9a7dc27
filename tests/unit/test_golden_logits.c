/*
 * From foreign files to logits, compared with Hugging Face transformers in f32 (tests/golden/tiny.md): tiny models of
 * three architectures as folders, shards and GGUF files. Tolerance: 2e-5 of the largest logit, by which two orders of
 * f32 summation differ at these depths; so do transformers' own attention implementations.
 */
#include "tests/unit/golden_samples.h"

#define GOLDEN_POSITIONS 64

/* Removes the columns of padding rows, for which transformers gives logits, too. */
static float *token_columns(const float *x, size_t rows, size_t from, size_t to) {
    struct err e;
    float *out = mem_array(rows * to, sizeof *out, &e);
    for (size_t r = 0; r < rows; r++) memcpy(out + r * to, x + r * from, to * sizeof *out);
    return out;
}

static void compare(const char *model, const char *golden) {
    char path[256];
    struct model *m = imported(model);
    size_t vocab = model_n_tokens(m), n = GOLDEN_POSITIONS * vocab;
    snprintf(path, sizeof path, "%s/tokens.u32", golden);
    uint32_t *tokens = golden_file(path, GOLDEN_POSITIONS * sizeof *tokens), length = GOLDEN_POSITIONS;
    snprintf(path, sizeof path, "%s/logits.f32", golden);
    float *all = golden_file(path, GOLDEN_POSITIONS * m->config.vocab_size * sizeof *all);
    float *theirs = token_columns(all, GOLDEN_POSITIONS, m->config.vocab_size, vocab);
    struct model_input in = {GOLDEN_POSITIONS, 1, tokens, &length};
    float *ours = logits_of(m, &in);
    double worst = 0, scale = 0;
    for (size_t i = 0; i < n; i++) {
        worst = fmax(worst, fabs((double)ours[i] - theirs[i]));
        scale = fmax(scale, fabs(theirs[i]));
    }
    if (!(worst <= 2e-5 * scale)) fail_msg("%s: off by %g of %g", model, worst, scale);
    uint32_t a[GOLDEN_POSITIONS], b[GOLDEN_POSITIONS];
    kernel_argmax(a, kernel_f32(ours), GOLDEN_POSITIONS, vocab);
    kernel_argmax(b, kernel_f32(theirs), GOLDEN_POSITIONS, vocab);
    assert_memory_equal(a, b, sizeof a);
    mem_free(tokens);
    mem_free(all);
    mem_free(theirs);
    mem_free(ours);
    model_free(m);
}

static void logits_are_transformers(void **state) {
    (void)state;
    compare("tests/golden/tiny-llama", "tests/golden/tiny-llama");
    compare("tests/golden/tiny-llama/sharded", "tests/golden/tiny-llama");
    compare("tests/golden/tiny-llama/model-f32.gguf", "tests/golden/tiny-llama");
    compare("tests/golden/tiny-qwen2", "tests/golden/tiny-qwen2");
    compare("tests/golden/tiny-qwen2/model-f32.gguf", "tests/golden/tiny-qwen2");
    compare("tests/golden/tiny-smollm", "tests/golden/tiny-smollm");
}

static uint32_t made[64];
static int keep_made(void *ctx, uint64_t seq, const uint32_t *prompt, size_t n_prompt, const uint32_t *tokens, size_t n,
                     struct err *e) {
    (void)ctx, (void)seq, (void)prompt, (void)n_prompt, (void)e;
    memcpy(made, tokens, n * sizeof *tokens);
    return 0;
}

static void greedy_continuations_are_transformers(void **state) {
    (void)state;
    static const char *const folders[] = {"tests/golden/tiny-llama", "tests/golden/tiny-qwen2",
                                          "tests/golden/tiny-smollm"};
    struct err e;
    for (size_t i = 0; i < COUNT_OF(folders); i++) {
        char path[256];
        snprintf(path, sizeof path, "%s/greedy.u32", folders[i]);
        uint32_t *theirs = golden_file(path, 48 * sizeof *theirs), length = 16;
        struct model *m = imported(folders[i]);
        struct model_input in = {16, 1, theirs, &length};
        struct model_sampling how = {.top_p = 1, .max_new = 32};
        OK(generate_all(m, &in, 0, &how, keep_made, NULL, &e));
        assert_memory_equal(made, theirs + 16, 32 * sizeof *theirs);
        mem_free(theirs);
        model_free(m);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_are_transformers),
        cmocka_unit_test(greedy_continuations_are_transformers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
