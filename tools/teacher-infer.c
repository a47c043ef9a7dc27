/* rill teacher-infer: runs a teacher over tokens and writes what it says about each position, whole. */
#include <string.h>

#include "lib/run/run.h"

static struct run_options how;
static const char *dtype;
static bool raw_logits;
static uint64_t run_tokens;

static const struct cli_option options[] = {
    RUN_MODEL(how, "TEACHER", true, "the teacher, a model stream"),
    {.name = "dtype",
     .type = CLI_CHOICE,
     .to = &dtype,
     .choices = "f16|bf16|f32",
     .fallback = "f16",
     .help = "element type of the output"},
    {.name = "logits",
     .type = CLI_FLAG,
     .to = &raw_logits,
     .help = "write logits as they leave the head, not log-probabilities, which say the same at any temperature"},
    {.name = "batch-tokens",
     .type = CLI_U64,
     .to = &run_tokens,
     .arg = "N",
     .fallback = "2048",
     .min = 1,
     .max = 1 << 24,
     .help = "positions in one forward pass, at most (but a whole sequence); memory grows with it"},
    {0},
};

struct work {
    struct model *teacher;
    struct grad_tape *scratch;
    struct knowledge_encoder *encoder;
    struct run_data tokens;
    struct knowledge_format in, out; /* in: of the tokens, with the teacher's vocabulary where they name none */
    struct knowledge_rows rows;
    struct batch batch;
};

static int load_teacher(struct cli *c, struct work *w, struct err *e) {
    struct digest digest;
    if (run_load_model(c, &how, &w->teacher, &digest, e)) return e->code;
    digest_text(digest, w->out.teacher);
    return grad_tape_new(&w->scratch, false, e);
}

/* Reads what the tokens are, writes what the knowledge will be. */
static int begin(struct cli *c, struct work *w, struct err *e) {
    struct stream_writer *writer;
    uint32_t vocab_size = w->teacher->config.vocab_size;
    if (run_open_data(c, cli_input_path(c, 0), "tokens", STREAM_TOKENS, w->teacher, &w->tokens, e)) return e->code;
    w->in = w->tokens.format;
    w->in.vocab_size = vocab_size;
    w->out.encoding = KNOW_DENSE;
    w->out.temperature = 1;
    w->out.dtype = dtype_by_name(dtype)->dtype;
    w->out.log_probs = !raw_logits;
    w->out.vocab_size = vocab_size;
    if (w->teacher->vocab)
        digest_text(w->teacher->vocab_digest, w->out.vocab);
    else
        memcpy(w->out.vocab, w->in.vocab, sizeof w->out.vocab);
    cJSON *meta = cJSON_Duplicate(stream_reader_meta(w->tokens.stream), true);
    int rc = meta ? knowledge_meta_put(meta, &w->out, e) : err_nomem(e, "META");
    if (!rc) rc = cli_open_output(c, &writer, e);
    if (!rc) rc = stream_write_meta(writer, meta, e);
    if (!rc) rc = knowledge_encoder_new(&w->encoder, writer, &w->out, 0, e);
    cJSON_Delete(meta);
    return rc;
}

static int put_logits(void *ctx, size_t first, size_t rows, size_t vocab, float *logits, struct err *e) {
    (void)first, (void)vocab; /* blocks come in order */
    return knowledge_encoder_rows(ctx, rows, logits, 1, e);
}

/* One forward pass over n sequences of the queue. */
static int infer(struct work *w, size_t first_seq, size_t first_pos, size_t n, size_t n_positions, struct err *e) {
    const uint32_t *tokens = w->rows.tokens + first_pos, *lengths = w->rows.lengths + first_seq;
    struct stream_batch head = {
        .first_seq = w->rows.seqs[first_seq], .n_positions = n_positions, .n_seqs = (uint32_t)n};
    struct model_input in = {.n_positions = n_positions, .n_seqs = n, .tokens = tokens, .lengths = lengths};
    if (knowledge_encoder_begin(w->encoder, &head, tokens, lengths, e)) return e->code;
    return model_infer(w->teacher, w->scratch, &in, NULL, NULL, put_logits, w->encoder, e);
}

/* All runs of sequences that are complete in the queue. */
static int infer_runs(struct cli *c, struct work *w, bool last, struct err *e) {
    size_t seq = 0, pos = 0, n, n_positions;
    while ((n = knowledge_run(&w->rows, seq, run_tokens, run_tokens, last, &n_positions)) > 0) {
        if (infer(w, seq, pos, n, n_positions, e)) return e->code;
        seq += n;
        pos += n_positions;
        cli_progress(c, knowledge_encoder_counts(w->encoder).positions, NULL);
    }
    knowledge_drop(&w->rows, &w->in, seq);
    return 0;
}

static int infer_stream(struct cli *c, struct work *w, struct err *e) {
    bool more;
    if (load_teacher(c, w, e) || begin(c, w, e)) return e->code;
    cli_progress_begin(c, "token", 0);
    while (true) {
        if (knowledge_read(w->tokens.stream, &w->tokens.format, &w->batch, &more, e)) return e->code;
        if (!more) break;
        if (knowledge_decode(&w->rows, &w->in, &w->batch, e) ||
            knowledge_check_context(&w->rows, w->teacher->config.context, "teacher", e) || infer_runs(c, w, false, e))
            return e->code;
    }
    if (knowledge_decode_end(&w->rows, e) || infer_runs(c, w, true, e) || knowledge_encoder_end(w->encoder, e))
        return e->code;
    cli_progress_end(c);
    struct knowledge_counts n = knowledge_encoder_counts(w->encoder);
    if (!json_put_u64(cli_report(c), "positions", n.positions) ||
        !json_put_u64(cli_report(c), "teacher_bytes", n.bytes) ||
        !json_put_str(cli_report(c), "backend", kernel_backend()))
        return err_nomem(e, "report");
    return cli_close_output(c, e);
}

static int run(struct cli *c, struct err *e) {
    struct work w = {0};
    int rc = infer_stream(c, &w, e);
    knowledge_encoder_free(w.encoder);
    knowledge_rows_release(&w.rows);
    batch_release(&w.batch);
    grad_tape_free(w.scratch);
    model_free(w.teacher);
    run_data_release(&w.tokens);
    return rc;
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "teacher-infer",
        .summary = "run a teacher over tokens, write what it says about each",
        .operands = "[TOKENS]",
        .max_operands = 1,
        .reads_stdin = true,
        .writes_stream = true,
        .threaded = true,
        .description =
            "Reads a token stream and writes a knowledge stream: the same tokens, and for each position the teacher's "
            "log-probabilities of all tokens that may follow. That is large (98 KB a token for a vocabulary of "
            "49152), and meant for a pipe into logit-dump, which makes it small. Memory does not grow with the "
            "stream. Log-probabilities lose least where the probability is: for SmolLM2-135M, rounding them to f16 "
            "costs a KL divergence of 3e-7, to bf16 2e-5; rounding logits costs 6e-6 and 4e-4.\n\n"
            "Tokens and teacher must name the same vocabulary; a sequence may not be longer than the teacher's "
            "context.",
        .examples = "rill teacher-infer -m teacher.rill < tokens.rill | rill logit-dump > corpus.kd.rill\n"
                    "    50 draws a position: some 50 bytes instead of 98 KB\n"
                    "rill teacher-infer -m teacher.rill --dtype f32 tokens.rill -o dense.kd.rill\n"
                    "    everything the teacher says, to a file\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
