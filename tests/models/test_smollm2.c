/*
 * SmolLM2-135M-Instruct against Hugging Face transformers in f32 on the same dequantized weights
 * (tests/golden/smollm2/README.md): tokens, logits at 512 positions, perplexity over 64 windows. Needs the model
 * (SMOLLM2_GGUF, default models/smollm2.gguf: `make -f examples/models.mk smollm2`) and WikiText-2's validation text
 * (WIKITEXT, default ../shared/data/wikitext2-valid.txt); skipped if either is missing. Run by `make test-models`.
 */
#include <stdlib.h>

#include "tests/unit/golden_samples.h"

#include "lib/metrics/metrics.h"

#define GOLDEN    "tests/golden/smollm2/"
#define POSITIONS 512
#define WINDOWS   64

static const char *from_env(const char *name, const char *otherwise) {
    const char *v = getenv(name);
    return v && *v ? v : otherwise;
}

static struct model *model;
static struct text_ids tokens;

static int set_up(void **state) {
    (void)state;
    struct err e;
    const char *gguf = from_env("SMOLLM2_GGUF", "models/smollm2.gguf"),
               *text = from_env("WIKITEXT", "../shared/data/wikitext2-valid.txt");
    FILE *f = fopen(text, "rb");
    if (!f || access(gguf, R_OK)) {
        fprintf(stderr, "test_smollm2: no %s: skipped\n", f ? gguf : text);
        if (f) fclose(f);
        return 0;
    }
    struct buf b = {0};
    for (size_t got = 1; got; b.len += got) {
        OK(buf_reserve(&b, 1 << 20, &e));
        got = fread(b.data + b.len, 1, 1 << 20, f);
    }
    fclose(f);
    model = imported(gguf);
    OK(text_encode(model->vocab, b.data, b.len, NULL, &tokens, &e));
    buf_release(&b);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    model_free(model);
    text_ids_release(&tokens);
    return 0;
}

/* The count is the reference tokenizer's. Ids are checked through the logits: a wrong one would change them. */
static void the_text_has_as_many_tokens(void **state) {
    (void)state;
    if (!model) skip();
    assert_int_equal(tokens.n, 273868);
}

static void logits_are_transformers(void **state) {
    (void)state;
    if (!model) skip();
    size_t vocab = model->config.vocab_size;
    uint32_t length = POSITIONS;
    struct model_input in = {POSITIONS, 1, tokens.ids, &length};
    float *ours = logits_of(model, &in);
    uint32_t *argmax = golden_file(GOLDEN "argmax.u32", POSITIONS * 4),
             *ids = golden_file(GOLDEN "top64-ids.u32", POSITIONS * 64 * 4);
    uint32_t *rows = golden_file(GOLDEN "positions.u32", 8 * 4), found[POSITIONS];
    float *top = golden_file(GOLDEN "top64-logits.f32", POSITIONS * 64 * 4),
          *full = golden_file(GOLDEN "logits8.f32", 8 * vocab * 4);
    float *lse = golden_file(GOLDEN "logsumexp.f32", POSITIONS * 4), ours_lse[POSITIONS];
    double worst = 0, worst_full = 0, worst_lse = 0;
    for (size_t i = 0; i < POSITIONS; i++)
        for (size_t k = 0; k < 64; k++)
            worst = fmax(worst, fabs((double)ours[i * vocab + ids[i * 64 + k]] - top[i * 64 + k]));
    for (size_t r = 0; r < 8; r++)
        for (size_t k = 0; k < vocab; k++)
            worst_full = fmax(worst_full, fabs((double)ours[rows[r] * vocab + k] - full[r * vocab + k]));
    kernel_argmax(found, kernel_f32(ours), POSITIONS, vocab);
    kernel_logsumexp(ours_lse, kernel_f32(ours), POSITIONS, vocab, 1);
    for (size_t i = 0; i < POSITIONS; i++) worst_lse = fmax(worst_lse, fabs((double)ours_lse[i] - lse[i]));
    printf("largest difference of logits: %.2e over the 64 largest of %d rows, %.2e over 8 whole rows; of log-sum-exp "
           "%.2e\n",
           worst, POSITIONS, worst_full, worst_lse);
    assert_true(worst <= 2e-3 && worst_full <= 2e-3 && worst_lse <= 2e-3);
    assert_memory_equal(found, argmax, sizeof found);
    mem_free(argmax), mem_free(ids), mem_free(rows), mem_free(top), mem_free(full), mem_free(lse), mem_free(ours);
}

static double golden_perplexity(const char *protocol) {
    struct err e;
    FILE *f = fopen(GOLDEN "perplexity.json", "rb");
    assert_non_null(f);
    static char text[1 << 20];
    size_t n = fread(text, 1, sizeof text, f);
    fclose(f);
    cJSON *j = json_parse(text, n, &e);
    if (!j) fail_msg("%s", e.msg);
    double ppl;
    OK(json_get_f64(cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(j, protocol), "first64"), "ppl",
                    1, 1e6, &ppl, &e));
    cJSON_Delete(j);
    return ppl;
}

/* The tokens of the first windows as a stream. */
static int token_file(void) {
    struct err e;
    struct stream_writer *w;
    uint64_t n = WINDOWS * 512, one = 1;
    uint32_t length = (uint32_t)n;
    struct stream_batch head = {.n_positions = n, .n_seqs = 1, .n_tensors = 2};
    struct tensor_desc ids = desc_of("tokens", DT_U32, 1, &n), lengths = desc_of("lengths", DT_U32, 1, &one);
    int fd = memory_file();
    OK(stream_writer_open(&w, fd, "tokens", NULL, &e));
    put_meta(w, "{\"kind\":\"tokens\"}");
    OK(stream_write_batch(w, &head, &e));
    OK(stream_write_tensor(w, &ids, NULL, tokens.ids, &e));
    OK(stream_write_tensor(w, &lengths, NULL, &length, &e));
    OK(stream_writer_finish(w, NULL, &e));
    stream_writer_free(w);
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    return fd;
}

static double perplexity_of(struct model *m, const char *protocol) {
    struct err e;
    struct perplexity *p;
    struct perplexity_options o = {.context = 512, .max_windows = WINDOWS, .batch_positions = 2048};
    OK(perplexity_protocol_parse(protocol, &o.protocol, &e));
    OK(perplexity_new(&p, m, &o, &e));
    struct stream_reader *r;
    struct batch b = {0};
    bool more;
    int fd = token_file();
    OK(stream_reader_open(&r, fd, "tokens", STREAM_TOKENS, &e));
    while (batch_read(r, &b, &more, &e) == 0 && more) OK(perplexity_feed(p, &b, &e));
    assert_false(more);
    batch_release(&b);
    stream_reader_free(r);
    close(fd);
    OK(perplexity_finish(p, &e));
    double value = perplexity_value(p);
    perplexity_free(p);
    return value;
}

static double in_f32; /* by the protocol gptq */

static void perplexity_is_transformers(void **state) {
    (void)state;
    static const char *const names[] = {"llama", "gptq"};
    if (!model) skip();
    for (size_t i = 0; i < 2; i++) {
        double ours = perplexity_of(model, names[i]), theirs = golden_perplexity(names[i]);
        printf("perplexity by protocol %s, %d windows: %.5f, transformers %.5f\n", names[i], WINDOWS, ours, theirs);
        assert_true(fabs(ours / theirs - 1) <= 1e-3);
        in_f32 = ours;
    }
}

/* With packed weights and bf16 activations: within 0.3%. */
static void perplexity_in_bf16_is_close(void **state) {
    (void)state;
    if (!model || !in_f32) skip();
    struct model *packed = packed_model(model, DT_BF16, WEIGHTS_PACKED);
    double in_bf16 = perplexity_of(packed, "gptq");
    printf("perplexity in bf16: %.5f, %+.4f%% from f32\n", in_bf16, 100 * (in_bf16 / in_f32 - 1));
    assert_true(in_bf16 != in_f32 && fabs(in_bf16 / in_f32 - 1) <= 3e-3);
    model_free(packed);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_text_has_as_many_tokens),
        cmocka_unit_test(logits_are_transformers),
        cmocka_unit_test(perplexity_is_transformers),
        cmocka_unit_test(perplexity_in_bf16_is_close),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
