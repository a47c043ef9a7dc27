/*
 * What libllama computes, for compare_llama_cpp.py, which compiles this: in f32 throughout, keys and values too, without flash
 * attention. Usage: llama_logits MODEL.gguf < SEQUENCES > NUMBERS. A line of stdin is a sequence of token ids; stdout gets, as
 * f32, a row of logits for each position, or of an encoder its hidden states, or of a classifier a row for each sequence.
 */
#include <stdio.h>
#include <stdlib.h>

#include <llama.h>

enum { MAX_POSITIONS = 4096 };

static void only_errors(enum ggml_log_level level, const char *text, void *ctx) {
    (void)ctx;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static int fail(const char *what) {
    fprintf(stderr, "llama_logits: %s\n", what);
    return 1;
}

/* The ids of a line; 0 at the end of the file. */
static int read_sequence(llama_token *ids) {
    char *line = NULL, *at;
    size_t size = 0;
    int n = 0;
    if (getline(&line, &size, stdin) < 0) return 0;
    at = line;
    for (char *end; n < MAX_POSITIONS; at = end) {
        long id = strtol(at, &end, 10);
        if (end == at) break;
        ids[n++] = (llama_token)id;
    }
    free(line);
    return n;
}

static void put(const float *row, size_t n) {
    if (!row || fwrite(row, sizeof *row, n, stdout) != n) exit(fail("no row, or it cannot be written"));
}

static int run(struct llama_context *ctx, const struct llama_model *m, llama_token *ids, int n) {
    bool encoder = !llama_get_memory(ctx);
    bool rank = llama_pooling_type(ctx) == LLAMA_POOLING_TYPE_RANK;
    struct llama_batch b = llama_batch_init(n, 0, 1);
    for (int i = 0; i < n; i++) {
        b.token[i] = ids[i];
        b.pos[i] = i;
        b.n_seq_id[i] = 1;
        b.seq_id[i][0] = 0;
        b.logits[i] = 1;
    }
    b.n_tokens = n;
    if (!encoder) llama_memory_clear(llama_get_memory(ctx), true);
    if (encoder ? llama_encode(ctx, b) : llama_decode(ctx, b)) return fail("the forward pass failed");
    if (rank) put(llama_get_embeddings_seq(ctx, 0), llama_model_n_cls_out(m));
    for (int i = 0; i < n && !rank; i++)
        if (encoder)
            put(llama_get_embeddings_ith(ctx, i), (size_t)llama_model_n_embd(m));
        else
            put(llama_get_logits_ith(ctx, i), (size_t)llama_vocab_n_tokens(llama_model_get_vocab(m)));
    llama_batch_free(b);
    return 0;
}

int main(int argc, char **argv) {
    static llama_token ids[MAX_POSITIONS];
    if (argc != 2) return fail("usage: llama_logits MODEL.gguf < SEQUENCES > NUMBERS");
    llama_log_set(only_errors, NULL);
    llama_backend_init();
    struct llama_model_params how = llama_model_default_params();
    struct llama_model *m = llama_model_load_from_file(argv[1], how);
    if (!m) return fail("the model cannot be loaded");
    struct llama_context_params c = llama_context_default_params();
    c.n_ctx = c.n_batch = c.n_ubatch = MAX_POSITIONS;
    c.n_seq_max = 1;
    c.n_threads = c.n_threads_batch = 1;
    c.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    c.type_k = c.type_v = GGML_TYPE_F32;
    c.swa_full = true;
    struct llama_context *ctx = llama_init_from_model(m, c);
    if (!ctx) return fail("no context");
    llama_set_embeddings(ctx, !llama_get_memory(ctx));
    int rc = 0;
    for (int n; !rc && (n = read_sequence(ids)) > 0;) rc = run(ctx, m, ids, n);
    if (fflush(stdout)) rc = fail("stdout");
    llama_free(ctx);
    llama_model_free(m);
    return rc;
}
