/* rill logit-dump: encodes a teacher's knowledge compactly, or prints some of it as a table. */
#include "lib/session/session.h"

static struct session_options how;
static struct session_reduce_options o;
static struct session_table_options table = {.model = &how};
static double temperature;
static bool tsv;

static const struct cli_option options[] = {
    {.name = "encode",
     .type = CLI_STRING,
     .to = &o.encode,
     .arg = "ENC",
     .suggests = "dense|topk:|ghost:|topp:|sample:",
     .fallback = "sample:50",
     .needs = {"!tsv"},
     .help = "topk:K: the K largest probabilities; topp:P: the fewest that sum to P; ghost:K: topk:K plus one "
             "pseudo-token for all the rest; sample:N: N random draws, an unbiased estimate of the whole distribution; "
             "keep: leave the predictions as they are"},
    {.name = "drop",
     .type = CLI_LIST,
     .to = &o.drop,
     .arg = "FIELD",
     .needs = {"!tsv"},
     .help = "drop fields by name or pattern (hidden.3, 'attention.*', response)"},
    {.name = "field-dtype",
     .type = CLI_CHOICE,
     .to = &o.field_dtype,
     .choices = "bf16|int8|f32",
     .needs = {"!tsv"},
     .help = "store tapped fields (teacher-infer --tap) in this type; int8 has one scale per row"},
    {.name = "temperature",
     .type = CLI_F64,
     .to = &temperature,
     .arg = "T",
     .min = 0.01,
     .max = 1000,
     .needs = {"!tsv", "!encode=keep"},
     .help = "temperature of the stored distribution, the only one distill can then use (default: the input's, 1 for "
             "logits)"},
    {.name = "tsv",
     .type = CLI_FLAG,
     .to = &tsv,
     .help = "print a table instead of encoding; for sampled predictions it has frequencies, not probabilities"},
    {.name = "positions",
     .type = CLI_STRING,
     .to = &table.positions,
     .arg = "FIRST:N",
     .fallback = "0:20",
     .needs = {"tsv"},
     .help = "print N positions, starting with number FIRST of the stream"},
    {.name = "top",
     .type = CLI_U64,
     .to = &table.top,
     .arg = "K",
     .fallback = "5",
     .min = 1,
     .max = 1000,
     .needs = {"tsv"},
     .help = "entries to print per position"},
    {.name = "model",
     .letter = 'm',
     .type = CLI_STRING,
     .to = &how.model,
     .arg = "MODEL",
     .completes_files = true,
     .needs = {"tsv"},
     .help = "print tokens as text, using this model's vocabulary"},
    {0},
};

static int run(struct cli *c, struct err *e) {
    if (tsv) return session_print_table(c, cli_input_path(c, 0), &table, e);
    if (cli_given(c, "temperature")) o.temperature = &temperature;
    return session_reduce(c, cli_input_path(c, 0), &o, e);
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "logit-dump",
        .summary = "compress a teacher's predictions, or print some of them",
        .operands = "[KNOWLEDGE]",
        .max_operands = 1,
        .reads_stdin = true,
        .writes_stream = true,
        .stream_needs = "!tsv",
        .seeded = true,
        .seed_needs = {"encode=sample:N", "!tsv"},
        .threaded = true,
        .description =
            "Reads the dense output of teacher-infer and keeps what a student needs of each position. Random draws "
            "(sample:N) are unbiased: on average the student learns the whole distribution, at about 2 bytes per "
            "distinct token drawn. Keeping only the largest probabilities (topk:K) teaches a truncated distribution; "
            "ghost:K corrects most of that error.\n\nFields recorded by teacher-infer --tap are passed on, except "
            "those named by --drop. Predictions in topk:K or ghost:K can later be reduced to fewer entries or "
            "converted into each other. The output does not depend on how the input is split into batches, nor on -j.",
        .examples =
            "rill logit-dump --encode keep --drop 'attention.*' --field-dtype int8 < tapped.kd.rill > s.kd.rill\n"
            "    the same predictions with fewer fields, in a quarter of the bytes of f32\n"
            "rill logit-dump --encode sample:50 --temperature 2 < dense.kd.rill > corpus.kd.rill\n"
            "    50 draws per position from the teacher at temperature 2\n"
            "rill logit-dump --tsv -m teacher.rill corpus.kd.rill --positions 100:10\n"
            "    what the teacher expects after positions 100 to 109\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
