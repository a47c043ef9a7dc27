/*
 * Fuzzes task files, for a small model whose tokens are bytes. max_len 2048: every line costs a forward pass. Small
 * pieces must give the same scores, or the same error, as one piece.
 */
#include "lib/metrics/metrics_internal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool holds) {
    if (!holds) abort();
}

enum { BOS = 256, EOS, N_TOKENS };

static struct model *make_model(void) {
    static struct token tokens[N_TOKENS];
    static unsigned char bytes[256];
    struct model_layer layer = {2, 1, 32};
    struct model_config config = {.arch = "llama",
                                  .n_layers = 1,
                                  .hidden = 16,
                                  .head_dim = 8,
                                  .vocab_size = N_TOKENS,
                                  .context = 24,
                                  .tied = true,
                                  .norm_eps = 1e-5f,
                                  .rope.theta = 10000,
                                  .layers = &layer};
    struct vocab *v, spec = {.n_tokens = N_TOKENS,
                             .tokens = tokens,
                             .pre = PRE_GPT2,
                             .bos = BOS,
                             .eos = EOS,
                             .pad = TOKEN_NONE,
                             .unk = TOKEN_NONE};
    struct buf packed = {0};
    struct model *m;
    struct err e;
    for (unsigned i = 0; i < 256; i++) {
        bytes[i] = (unsigned char)i;
        tokens[i] = (struct token){.bytes = &bytes[i], .n_bytes = 1};
    }
    tokens[BOS] = (struct token){(const unsigned char *)"<s>", 3, TOKEN_SPECIAL | TOKEN_ADDED, 0};
    tokens[EOS] = (struct token){(const unsigned char *)"</s>", 4, TOKEN_SPECIAL | TOKEN_ADDED, 0};
    must(vocab_new(&v, &spec, &e) == 0 && vocab_pack(v, &packed, &e) == 0);
    vocab_free(v);
    must(model_init(&m, kernel_cpu(), &config, packed.data, packed.len, 1, &e) == 0);
    buf_release(&packed);
    return m;
}

/* Returns the scores as text, or the error message. The caller frees it. */
static char *run(struct model *m, const uint8_t *data, size_t size, size_t piece) {
    struct err e = {0};
    struct task *t;
    cJSON *result = NULL;
    must(task_new(&t, m, "fuzz.jsonl", &e) == 0);
    int rc = 0;
    for (size_t at = 0; !rc && at < size; at += piece)
        rc = task_feed(t, (const char *)data + at, size - at < piece ? size - at : piece, &e);
    if (!rc) rc = task_finish(t, &e);
    if (!rc) rc = (result = task_json(t, &e)) ? 0 : e.code;
    task_free(t);
    must(rc == 0 || rc == ERR_DATA);
    char *text = rc ? strdup(e.msg) : NULL;
    if (!rc) {
        char *json = json_text(result, &e);
        must(json != NULL);
        text = strdup(json);
        mem_free(json);
    }
    cJSON_Delete(result);
    must(text != NULL);
    return text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static struct model *m;
    parallel_set_threads(1);
    if (!m) m = make_model();
    char *whole = run(m, data, size, size + 1), *parts = run(m, data, size, 7);
    must(strcmp(whole, parts) == 0);
    free(whole);
    free(parts);
    return 0;
}
