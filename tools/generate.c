/* rill generate: continues prompts with a model. */
#include "lib/session/session.h"

static struct session_options how = {.auto_int8 = true};
static struct session_generate_options what = {.model = &how};
static uint64_t max_new, top_k;

static const struct cli_option options[] = {
    SESSION_MODEL(how, "FILE", true, "the model stream to generate with"),
    SESSION_PRECISION_AUTO_INT8(how),
    {.name = "max-new",
     .letter = 'n',
     .type = CLI_U64,
     .to = &max_new,
     .arg = "N",
     .fallback = "128",
     .min = 1,
     .max = 1 << 24,
     .help = "at most N new tokens for each prompt"},
    {.name = "temperature",
     .type = CLI_F64,
     .to = &what.sampling.temperature,
     .arg = "T",
     .fallback = "1",
     .min = 0,
     .max = 100,
     .help = "divides the logits; 0 takes the most probable token each time"},
    {.name = "top-k",
     .type = CLI_U64,
     .to = &top_k,
     .arg = "K",
     .fallback = "0",
     .max = 1 << 24,
     .needs = {"!temperature=0"},
     .help = "draw among the K most probable tokens only; 0: among all"},
    {.name = "top-p",
     .type = CLI_SHARE,
     .to = &what.sampling.top_p,
     .arg = "P",
     .fallback = "1",
     .min = 0.000001,
     .max = 1,
     .needs = {"!temperature=0"},
     .help = "draw among the fewest tokens that hold this much probability"},
    {.name = "repeat",
     .type = CLI_U64,
     .to = &what.repeat,
     .arg = "N",
     .fallback = "1",
     .min = 1,
     .max = 1 << 20,
     .help = "continue each prompt N times, each with draws of its own"},
    {.name = "past-eos",
     .type = CLI_FLAG,
     .to = &what.past_eos,
     .help = "do not stop at the end tokens of the vocabulary"},
    {.name = "text",
     .type = CLI_FLAG,
     .to = &what.text,
     .help = "write text, a line for each sequence, instead of a token stream; on a terminal control "
             "characters are escaped"},
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
        .description = "Reads prompts as a token stream (rill tokenize --lines), continues them, many at once, and "
                       "writes token sequences, or "
                       "text with --text.\n"
                       "Draws depend on the seed and the number of the sequence, not on how many run together. A "
                       "sequence ends with any end token of the model (rill show --vocab names them), after --max-new "
                       "tokens, or where the model's context ends.",
        .examples =
            "rill generate -m model.rill --max-new 8 --text prompts.rill\n    continue each prompt by up to 8 tokens\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
