/* rill teacher-infer: runs a teacher over tokens and writes its distribution at each position. */
#include <stdio.h>
#include <string.h>

#include "lib/session/session.h"

static struct session_options how;
static struct session_teacher_options teaching;
static const char *encode, *dtype, *weights, *rows;
static double temperature;
static bool raw_logits, dry_run;
static struct cli_list taps;
static uint64_t tap_positions;

static const struct cli_option options[] = {
    SESSION_MODEL(how, "TEACHER", true, "the teacher, a model stream"),
    SESSION_PRECISION(how),
    {.name = "encode",
     .type = CLI_STRING,
     .to = &encode,
     .arg = "ENC",
     .suggests = "dense|topk:|ghost:|topp:|sample:",
     .fallback = "dense",
     .help = "what to keep of each position: dense is everything, topk:K, ghost:K, topp:P and sample:N are as in "
             "logit-dump, without sending dense logits through a pipe; none: nothing, only what is tapped"},
    {.name = "tap", .type = CLI_LIST, .to = &taps, .arg = "POINT", .help = SESSION_TAP_HELP},
    {.name = "tap-positions",
     .type = CLI_U64,
     .to = &tap_positions,
     .arg = "N",
     .min = 1,
     .max = UINT32_MAX,
     .needs = {"tap"},
     .help =
         "keep what is tapped at N random positions of each sequence, the same ones for all points, by the seed; of "
         "a shorter sequence at all of them"},
    {.name = "rows",
     .type = CLI_CHOICE,
     .to = &rows,
     .choices = "counted|all",
     .fallback = "counted",
     .help =
         "where tokens have a mask or labels of their own (tokenize --chat, --mask-rate, --tags), answers and states "
         "are made and kept at positions that training counts alone; all: everywhere"},
    {.name = "dry-run",
     .type = CLI_FLAG,
     .to = &dry_run,
     .help = "run nothing: print the bytes that each field would take, per token and in all, for these "
             "tokens, before compression. Draws are counted at nearly their most, top-p at a typical size"},
    {.name = "temperature",
     .type = CLI_F64,
     .to = &temperature,
     .arg = "T",
     .fallback = "1",
     .min = 0.01,
     .max = 1000,
     .needs = {"!encode=none", "!dry-run"},
     .help = "of the distribution that is encoded"},
    {.name = "dtype",
     .type = CLI_CHOICE,
     .to = &dtype,
     .choices = "f16|bf16|f32",
     .fallback = "f16",
     .needs = {"encode=dense"},
     .help = "element type of the output"},
    {.name = "logits",
     .type = CLI_FLAG,
     .to = &raw_logits,
     .needs = {"encode=dense", "!temperature", "!dry-run"},
     .help = "write logits as they leave the head, not log-probabilities, which say the same at any temperature"},
    {.name = "batch-tokens",
     .type = CLI_U64,
     .to = &teaching.batch_tokens,
     .arg = "N",
     .fallback = "2048",
     .min = 1,
     .max = 1 << 24,
     .help = "positions in one forward pass, at most, unless a sequence is longer; memory grows with it"},
    {.name = "weights",
     .type = CLI_CHOICE,
     .to = &weights,
     .choices = "resident|stream",
     .fallback = "resident",
     .help = "stream: the model is read layer by layer, once for each block of tokens, and memory holds one layer; for "
             "teachers larger than memory. The output is the same"},
    {.name = "block-tokens",
     .type = CLI_U64,
     .to = &teaching.block_tokens,
     .arg = "N",
     .min = 1,
     .max = 1ull << 40,
     .needs = {"weights=stream"},
     .help = "tokens for which the model is read once; memory holds their hidden states. Without "
             "it, as many as fit an eighth of the memory, or all of them when the model comes through a pipe"},
    {0},
};

struct work {
    struct cli *c;
    struct session_teacher *teacher;
    struct knowledge_encoder *encoder;
    struct session_data tokens;
    struct knowledge_format format; /* of the output */
    struct stream_writer *out;
};

/* What the knowledge will be. The digest of the teacher is not known yet. */
static int choose_format(struct work *w, struct err *e) {
    const struct model *m = session_teacher_model(w->teacher);
    struct knowledge_format *f = &w->format;
    *f = w->tokens.format;
    f->temperature = temperature;
    f->dtype = dtype_by_name(dtype)->dtype;
    f->log_probs = !raw_logits;
    bool none = !strcmp(encode, "none");
    if (!none && knowledge_encoding_parse(encode, f, e)) return e->code;
    if (none && !taps.n) return err_set(e, ERR_USAGE, "--encode none needs --tap: there is nothing to keep");
    f->target = model_predicts(&m->config);
    f->vocab_size = model_n_tokens(m);
    if (stream_target_classes(f->target)) f->classes = m->config.classes;
    f->tap_positions = (uint32_t)tap_positions;
    for (size_t i = 0; i < taps.n; i++)
        if (session_tap_parse(taps.items[i], &m->config, !teaching.all_rows, f, e)) return e->code;
    if (m->vocab) digest_text(m->vocab_digest, f->vocab);
    return session_teacher_tap(w->teacher, f, cli_seed(w->c), e);
}

/* Writes the META of the knowledge and creates its encoder. */
static int begin_output(void *ctx, struct digest teacher, struct knowledge_encoder **encoder, struct err *e) {
    struct work *w = ctx;
    digest_text(teacher, w->format.teacher);
    const cJSON *meta = stream_reader_meta(w->tokens.stream);
    int rc = knowledge_encoder_open(&w->encoder, w->out, meta, &w->format, cli_seed(w->c), e);
    *encoder = w->encoder;
    return rc;
}

static int infer(struct work *w, struct err *e) {
    struct cli *c = w->c;
    double inv_temperature = w->format.encoding ? 1 / temperature : 0;
    if (cli_open_output(c, &w->out, e) ||
        session_teacher_infer(w->teacher, &w->tokens, inv_temperature, begin_output, w, e) ||
        knowledge_encoder_end(w->encoder, e))
        return e->code;
    struct knowledge_counts n = knowledge_encoder_counts(w->encoder);
    if (!json_put_u64(cli_report(c), "positions", n.positions) ||
        !json_put_u64(cli_report(c), "teacher_bytes", n.bytes))
        return err_nomem(e, "report");
    return cli_close_output(c, e);
}

static int print_sizes(struct work *w, struct err *e) {
    FILE *out;
    if (cli_text(w->c, &out, e)) return e->code;
    return session_print_sizes(&w->format, &w->tokens, teaching.all_rows, out, e);
}

static int infer_stream(struct work *w, struct err *e) {
    struct cli *c = w->c;
    struct knowledge_format f = {0};
    teaching.layerwise = !strcmp(weights, "stream");
    teaching.all_rows = !strcmp(rows, "all");
    if ((strcmp(encode, "none") != 0 && knowledge_encoding_parse(encode, &f, e)) ||
        session_teacher_open(&w->teacher, c, &how, &teaching, e) ||
        session_open_data(c, cli_input_path(c, 0), "tokens", STREAM_TOKENS, session_teacher_model(w->teacher),
                          &w->tokens, e) ||
        choose_format(w, e))
        return e->code;
    return dry_run ? print_sizes(w, e) : infer(w, e);
}

static int run(struct cli *c, struct err *e) {
    struct work w = {.c = c};
    int rc = infer_stream(&w, e);
    knowledge_encoder_free(w.encoder);
    session_teacher_free(w.teacher);
    session_data_release(&w.tokens);
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
        .seeded = true,
        .stream_needs = "!dry-run",
        .seed_needs = {"encode=sample:N|tap-positions", "!dry-run"},
        .threaded = true,
        .description =
            "Reads a token stream and writes a knowledge stream: the same tokens, and for each position the teacher's "
            "log-probabilities of all tokens that may follow. That is large (98 KB a token for a vocabulary of 49152): "
            "--encode makes it small here, or pipe it into logit-dump. Memory does not grow with the stream. Rounding "
            "log-probabilities costs probable tokens the least precision: for SmolLM2-135M, rounding to f16 costs a KL "
            "divergence of 3e-7, to bf16 2e-5; rounding logits costs 6e-6 and 4e-4. --encode rounds none.\n\nA teacher "
            "larger than memory is read once for each block of tokens (--weights stream), or once in all from a "
            "pipe.\n\n--tap keeps more than answers: rows of hidden states, attention or q, k and v, in fields of "
            "their own, for the losses that compare them. --dry-run prints first how large that becomes. A masked "
            "language model answers at each position of masked tokens (tokenize --mask-rate), a classifier once for "
            "each sequence (tokenize --labels), or at each token (--tags).\n\nTokens and teacher must name the same "
            "vocabulary; a sequence may "
            "not be longer than the "
            "teacher's context.",
        .examples = "rill teacher-infer -m teacher.rill --encode sample:50 < tokens.rill > corpus.kd.rill\n"
                    "    50 draws a position: some 30 bytes instead of 98 KB\n"
                    "rill teacher-infer -m teacher.rill < tokens.rill | rill logit-dump > corpus.kd.rill\n"
                    "    the same in two steps, by way of log-probabilities in f16\n"
                    "rill teacher-infer -m teacher.rill --dtype f32 tokens.rill -o dense.kd.rill\n"
                    "    everything the teacher says, to a file\n"
                    "rill teacher-infer -m teacher.rill --tap hidden:all --tap-positions 4 tokens.rill > tap.rill\n"
                    "    also the hidden states of four positions of each sequence\n"
                    "zstd -c teacher.rill | zstd -dc | rill teacher-infer -m - --weights stream tokens.rill "
                    "> kd.rill\n"
                    "    a teacher that is neither on disk nor in memory whole\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
