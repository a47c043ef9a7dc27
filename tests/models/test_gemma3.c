/*
 * Gemma 3 270M from its GGUF in Q4_K_M against Hugging Face transformers in f32 on the same dequantized weights
 * (tests/reference/make_gemma3_golden.py): the best tokens, their logits and the perplexity over more positions than
 * its window has. Needs the model (GEMMA3_GGUF, default models/gemma3-270m.gguf: `make -f examples/models.mk gemma3`)
 * and is skipped without it. Run by `make test-models`.
 */
#include <stdlib.h>

#include "tests/unit/formats_samples.h"
#include "tests/unit/model_samples.h"

#define EXPECTED  "tests/golden/gemma3/expected.safetensors"
#define POSITIONS 768
#define TOP       8

static struct buf stream; /* the model; empty if missing */
static struct mapped_file file;
static struct raw_table expected;
static struct arena memory;

/* Returns an aligned copy of a tensor of the fixture. */
static void *wanted(const char *name, uint64_t n_bytes) {
    struct err e;
    const struct raw_tensor *t = raw_table_find(&expected, name);
    assert_non_null(t);
    assert_int_equal(t->n_bytes, n_bytes);
    void *to = arena_array(&memory, n_bytes, 1, &e);
    memcpy(to, t->data, n_bytes);
    return to;
}

static int set_up(void **state) {
    (void)state;
    struct err e;
    const char *path = getenv("GEMMA3_GGUF");
    if (!path || !*path) path = "models/gemma3-270m.gguf";
    if (access(path, R_OK)) {
        fprintf(stderr, "test_gemma3: no %s: skipped\n", path);
        return 0;
    }
    stream = imported_with(path, 0, &(struct foreign_options){.no_tokenizer = true});
    OK(mapped_file_open(&file, EXPECTED, &e));
    OK(safetensors_parse(&expected, file.data, file.size, &memory, &e));
    OK(raw_table_sort(&expected, &e));
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    buf_release(&stream);
    raw_table_release(&expected);
    mapped_file_close(&file);
    arena_release(&memory);
    return 0;
}

/* Statistics of the rows of logits; keeping all rows would take 800 MB. */
struct rows {
    const uint32_t *ids, *top; /* of the reference: tokens [POSITIONS] and best tokens [POSITIONS][TOP] */
    const float *logits;       /* ... and their logits */
    size_t differ;             /* rows with another best token */
    double worst;
    double nll;
    float lse[POSITIONS];
};

static int look(void *ctx, size_t first, size_t rows, size_t vocab, float *host_logits, struct err *e) {
    struct rows *r = ctx;
    uint32_t best[POSITIONS];
    (void)e;
    kernel_argmax(best, kernel_f32(host_logits), rows, vocab);
    kernel_logsumexp(r->lse + first, kernel_f32(host_logits), rows, vocab, 1);
    for (size_t i = 0; i < rows; i++) {
        const float *row = host_logits + i * vocab;
        size_t at = first + i;
        r->differ += best[i] != r->top[at * TOP];
        for (size_t k = 0; k < TOP; k++)
            r->worst = fmax(r->worst, fabs((double)row[r->top[at * TOP + k]] - r->logits[at * TOP + k]));
        if (at + 1 < POSITIONS) r->nll += r->lse[at] - row[r->ids[at + 1]];
    }
    return 0;
}

/* Returns the perplexity of the reference's tokens, and compares the logits. */
static double compare(enum model_weight_format format, struct rows *r) {
    struct err e;
    struct model *m;
    struct grad_tape *t;
    uint32_t length = POSITIONS;
    OK(load_model_as(&stream, format, &m, &e));
    *r = (struct rows){.ids = wanted("ids", POSITIONS * sizeof *r->ids),
                       .top = wanted("top_ids", POSITIONS * TOP * sizeof *r->top),
                       .logits = wanted("top_logits", POSITIONS * TOP * sizeof *r->logits)};
    OK(grad_tape_new(&t, kernel_cpu(), false, model_precision(m), &e));
    OK(model_infer(m, t, &(struct model_input){POSITIONS, 1, r->ids, &length}, NULL, NULL, look, r, &e));
    grad_tape_free(t);
    model_free(m);
    return exp(r->nll / (POSITIONS - 1));
}

static double in_f32;

static void logits_are_transformers(void **state) {
    (void)state;
    struct rows r;
    if (!stream.len) skip();
    const float *lse = wanted("logsumexp", POSITIONS * sizeof *lse);
    double worst_lse = 0, theirs = *(double *)wanted("ppl", sizeof(double));
    in_f32 = compare(WEIGHTS_F32, &r);
    for (size_t i = 0; i < POSITIONS; i++) worst_lse = fmax(worst_lse, fabs((double)r.lse[i] - lse[i]));
    printf("largest difference over the 8 best of %d rows: %.2e, of log-sum-exp %.2e; best tokens that differ: %zu; "
           "perplexity %.5f, transformers %.5f\n",
           POSITIONS, r.worst, worst_lse, r.differ, in_f32, theirs);
    assert_true(r.worst <= 2e-3 && worst_lse <= 2e-3);
    assert_int_equal(r.differ, 0);
    assert_true(fabs(in_f32 / theirs - 1) <= 1e-3);
}

/* With packed weights and bf16 activations: within 1%. */
static void perplexity_in_bf16_is_close(void **state) {
    (void)state;
    struct rows r;
    if (!stream.len || in_f32 == 0) skip();
    double in_bf16 = compare(WEIGHTS_PACKED, &r);
    printf("perplexity in bf16: %.5f, %+.4f%% from f32\n", in_bf16, 100 * (in_bf16 / in_f32 - 1));
    assert_true(in_bf16 != in_f32 && fabs(in_bf16 / in_f32 - 1) <= 1e-2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_are_transformers),
        cmocka_unit_test(perplexity_in_bf16_is_close),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
