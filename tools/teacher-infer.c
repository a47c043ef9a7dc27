/* rill teacher-infer: runs a teacher over tokens and records its prediction at each position. */
#include <stdio.h>
#include <string.h>

#include "lib/formats/formats.h"
#include "lib/session/session.h"

static struct session_options how = {.kv_interleaves = target_interleaves};
static struct session_teacher_options teaching;
static const char *encode, *dtype, *weights, *rows;
static double temperature;
static bool raw_logits, dry_run;
static struct cli_list taps;
static uint64_t tap_positions;

static const struct cli_option options[] = {
    SESSION_MODEL(how, "TEACHER", true, "the teacher model"),
    SESSION_PRECISION(how),
    SESSION_KV_CACHE(how),
    {.name = "encode",
     .type = CLI_STRING,
     .to = &encode,
     .arg = "ENC",
     .suggests = "dense|topk:|ghost:|topp:|sample:",
     .fallback = "dense",
     .help =
         "what to keep of each prediction: dense: everything; topk:K, ghost:K, topp:P, sample:N: see rill "
         "logit-dump, without sending dense log-probabilities through a pipe; none: nothing but what --tap records"},
    {.name = "tap", .type = CLI_LIST, .to = &taps, .arg = "POINT", .help = SESSION_TAP_HELP},
    {.name = "tap-positions",
     .type = CLI_U64,
     .to = &tap_positions,
     .arg = "N",
     .min = 1,
     .max = UINT32_MAX,
     .needs = {"tap"},
     .help = "record --tap at N random positions of each sequence (chosen by --seed, the same for all points), or at "
             "all positions of a shorter one"},
    {.name = "rows",
     .type = CLI_CHOICE,
     .to = &rows,
     .choices = "counted|all",
     .fallback = "counted",
     .help = "if the tokens have a mask or labels (tokenize --chat, --mask-rate, --tags), compute and keep predictions "
             "only at the positions that count in training; all: at every position"},
    {.name = "dry-run",
     .type = CLI_FLAG,
     .to = &dry_run,
     .help =
         "do not run the teacher: print how many bytes each field would take for these tokens, per token and in "
         "total, before compression. The estimate for sample is close to the maximum, that for topp a typical size"},
    {.name = "temperature",
     .type = CLI_F64,
     .to = &temperature,
     .arg = "T",
     .fallback = "1",
     .min = 0.01,
     .max = 1000,
     .needs = {"!encode=none", "!dry-run"},
     .help = "temperature of the distribution that is stored"},
    {.name = "dtype",
     .type = CLI_CHOICE,
     .to = &dtype,
     .choices = "f16|bf16|f32",
     .fallback = "f16",
     .needs = {"encode=dense"},
     .help = "element type of dense predictions"},
    {.name = "logits",
     .type = CLI_FLAG,
     .to = &raw_logits,
     .needs = {"encode=dense", "!temperature", "!dry-run"},
     .help = "store raw logits instead of log-probabilities"},
    {.name = "batch-tokens",
     .type = CLI_U64,
     .to = &teaching.batch_tokens,
     .arg = "N",
     .fallback = "2048",
     .min = 1,
     .max = 1 << 24,
     .help = "positions per forward pass, at most (but at least one sequence); memory grows with it"},
    {.name = "weights",
     .type = CLI_CHOICE,
     .to = &weights,
     .choices = "resident|stream",
     .fallback = "resident",
     .help = "stream: read the model layer by layer, once per block of tokens, holding one layer in memory; for "
             "teachers larger than memory. The output is the same"},
    {.name = "block-tokens",
     .type = CLI_U64,
     .to = &teaching.block_tokens,
     .arg = "N",
     .min = 1,
     .max = 1ull << 40,
     .needs = {"weights=stream"},
     .help = "tokens processed each time the model is read; memory holds their hidden states. If not given: as many as "
             "fit in an eighth of memory, or all of them when the model comes from a pipe"},
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

/* Sets the format of the knowledge, except the teacher's digest, which is not known yet. */
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
        .summary = "run a teacher over tokens and record its predictions",
        .operands = "[TOKENS]",
        .max_operands = 1,
        .reads_stdin = true,
        .writes_stream = true,
        .seeded = true,
        .stream_needs = "!dry-run",
        .seed_needs = {"encode=sample:N|tap-positions", "!dry-run"},
        .threaded = true,
        .description =
            "Reads a token stream and writes a knowledge stream: the same tokens with, for each position, the "
            "teacher's log-probabilities of the next token. Dense log-probabilities are large (98 KB per token for a "
            "vocabulary of 49152): make them small right here with --encode, or pipe them into logit-dump. Memory does "
            "not grow with the stream.\n\nLog-probabilities are stored rather than logits because rounding then costs "
            "less where it matters: for SmolLM2-135M, rounding them to f16 costs a KL divergence of 3e-7 and to bf16 "
            "2e-5, against 6e-6 and 4e-4 for logits. The other encodings store what they keep without this "
            "rounding.\n\nA teacher larger than memory is read once per block of tokens (--weights stream), or just "
            "once if it comes from a pipe.\n\n--tap also records hidden states, attention or q, k and v, in fields of "
            "their own, for losses that compare them; see with --dry-run first how large that gets. A masked language "
            "model predicts the masked tokens (tokenize --mask-rate), a classifier one class per sequence (tokenize "
            "--labels) or per token (--tags).\n\nThe tokens must come from the teacher's own tokenizer, and no "
            "sequence may be longer than the teacher's context.",
        .examples = "rill teacher-infer -m teacher.rill --encode sample:50 < tokens.rill > corpus.kd.rill\n"
                    "    50 draws per position: about 30 bytes instead of 98 KB\n"
                    "rill teacher-infer -m teacher.rill < tokens.rill | rill logit-dump > corpus.kd.rill\n"
                    "    the same in two steps, with log-probabilities in f16 between them\n"
                    "rill teacher-infer -m teacher.rill --dtype f32 tokens.rill -o dense.kd.rill\n"
                    "    dense log-probabilities in f32\n"
                    "rill teacher-infer -m teacher.rill --tap hidden:all --tap-positions 4 tokens.rill > tap.rill\n"
                    "    also the hidden states of all layers at four positions per sequence\n"
                    "zstd -c teacher.rill | zstd -dc | rill teacher-infer -m - --weights stream tokens.rill > kd.rill\n"
                    "    a teacher that is never whole on disk or in memory\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
