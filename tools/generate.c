/* rill generate: continues prompts with a model. */
#include "lib/formats/formats.h"
#include "lib/session/session.h"

static struct session_options how;
static struct session_generate_options what = {.model = &how};
static struct session_options how = {.auto_int8 = true, .at_once = &what.repeat, .kv_interleaves = target_interleaves};
static uint64_t max_new, top_k;

static const struct cli_option options[] = {
    SESSION_MODEL(how, "FILE", true, "the model to generate with"),
    SESSION_PRECISION_AUTO_INT8(how),
    SESSION_KV_CACHE(how),
    {.name = "max-new",
     .letter = 'n',
     .type = CLI_U64,
     .to = &max_new,
     .arg = "N",
     .fallback = "128",
     .min = 1,
     .max = 1 << 24,
     .help = "generate at most N tokens per prompt"},
    {.name = "temperature",
     .type = CLI_F64,
     .to = &what.sampling.temperature,
     .arg = "T",
     .fallback = "1",
     .min = 0,
     .max = 100,
     .help = "sampling temperature; 0: greedy, always the most probable token"},
    {.name = "top-k",
     .type = CLI_U64,
     .to = &top_k,
     .arg = "K",
     .fallback = "0",
     .max = 1 << 24,
     .needs = {"!temperature=0"},
     .help = "sample from the K most probable tokens; 0: from all"},
    {.name = "top-p",
     .type = CLI_SHARE,
     .to = &what.sampling.top_p,
     .arg = "P",
     .fallback = "1",
     .min = 0.000001,
     .max = 1,
     .needs = {"!temperature=0"},
     .help = "nucleus sampling: sample from the fewest tokens whose probabilities sum to P"},
    {.name = "repeat",
     .type = CLI_U64,
     .to = &what.repeat,
     .arg = "N",
     .fallback = "1",
     .min = 1,
     .max = 1 << 20,
     .help = "continue each prompt N times, with different draws"},
    {.name = "past-eos", .type = CLI_FLAG, .to = &what.past_eos, .help = "do not stop at end tokens"},
    {.name = "text",
     .type = CLI_FLAG,
     .to = &what.text,
     .help =
         "print text, one line per sequence, instead of a token stream; control characters are escaped on a terminal"},
    {.name = "only-new", .type = CLI_FLAG, .to = &what.only_new, .help = "leave the prompts out of the output"},
    {0},
};

static int run(struct cli *c, struct err *e) {
    what.sampling.max_new = (uint32_t)max_new;
    what.sampling.top_k = (uint32_t)top_k;
    return session_generate(c, cli_input_path(c, 0), &what, e);
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "generate",
        .summary = "continue prompts with a model",
        .operands = "[PROMPTS]",
        .max_operands = 1,
        .reads_stdin = true,
        .writes_stream = true,
        .stream_needs = "!text",
        .seeded = true,
        .seed_needs = {"!temperature=0"},
        .threaded = true,
        .description =
            "Reads prompts as a token stream (rill tokenize --lines), continues many of them at once, and writes token "
            "sequences, or text with --text.\n\nRandom draws depend on --seed and the number of the sequence, not on "
            "how many sequences run together. A sequence ends at any end token of the model (rill show --vocab lists "
            "them), after --max-new tokens, or where the model's context is full.",
        .examples =
            "rill generate -m model.rill --max-new 8 --text prompts.rill\n    continue each prompt by up to 8 tokens\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
