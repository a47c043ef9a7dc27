/* rill teacher-infer: runs a teacher over tokens and records its prediction at each position. */
#include <string.h>

#include "lib/formats/formats.h"
#include "lib/session/session.h"

static struct session_options how = {.kv_interleaves = target_interleaves};
static struct session_record_options o = {.model = &how};
static const char *weights, *rows;

static const struct cli_option options[] = {
    SESSION_MODEL(how, "TEACHER", true, "the teacher model"),
    SESSION_PRECISION(how),
    SESSION_KV_CACHE(how),
    {.name = "encode",
     .type = CLI_STRING,
     .to = &o.encode,
     .arg = "ENC",
     .suggests = "dense|topk:|ghost:|topp:|sample:",
     .fallback = "dense",
     .help =
         "what to keep of each prediction: dense: everything; topk:K, ghost:K, topp:P, sample:N: see rill "
         "logit-dump, without sending dense log-probabilities through a pipe; none: nothing but what --tap records"},
    {.name = "tap", .type = CLI_LIST, .to = &o.taps, .arg = "POINT", .help = SESSION_TAP_HELP},
    {.name = "tap-positions",
     .type = CLI_U64,
     .to = &o.tap_positions,
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
     .to = &o.dry_run,
     .help =
         "do not run the teacher: print how many bytes each field would take for these tokens, per token and in "
         "total, before compression. The estimate for sample is close to the maximum, that for topp a typical size"},
    {.name = "temperature",
     .type = CLI_F64,
     .to = &o.temperature,
     .arg = "T",
     .fallback = "1",
     .min = 0.01,
     .max = 1000,
     .needs = {"!encode=none", "!dry-run"},
     .help = "temperature of the distribution that is stored"},
    {.name = "dtype",
     .type = CLI_CHOICE,
     .to = &o.dtype,
     .choices = "f16|bf16|f32",
     .fallback = "f16",
     .needs = {"encode=dense"},
     .help = "element type of dense predictions"},
    {.name = "logits",
     .type = CLI_FLAG,
     .to = &o.raw_logits,
     .needs = {"encode=dense", "!temperature", "!dry-run"},
     .help = "store raw logits instead of log-probabilities"},
    {.name = "batch-tokens",
     .type = CLI_U64,
     .to = &o.teacher.batch_tokens,
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
     .to = &o.teacher.block_tokens,
     .arg = "N",
     .min = 1,
     .max = 1ull << 40,
     .needs = {"weights=stream"},
     .help = "tokens processed each time the model is read; memory holds their hidden states. If not given: as many as "
             "fit in an eighth of memory, or all of them when the model comes from a pipe"},
    {0},
};

static int run(struct cli *c, struct err *e) {
    o.teacher.layerwise = !strcmp(weights, "stream");
    o.teacher.all_rows = !strcmp(rows, "all");
    return session_record(c, cli_input_path(c, 0), &o, e);
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
