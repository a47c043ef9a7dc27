/* rill fold: rewrites a model's weights without changing what it computes. */
#include "lib/compress/compress.h"

static struct compress_fold_options o;

static const struct cli_option options[] = {
    {.name = "method",
     .type = CLI_CHOICE,
     .to = &o.method,
     .choices = "awq|smooth|r1|r2|pca",
     .required = true,
     .help = "awq: channels that activations are large in get larger weights, by the power of the mean activation that "
             "leaves the least error when the weights are rounded to --type; smooth: the range of activations is "
             "shared with the weights, for products that round both (SmoothQuant); r1: the residual stream is rotated "
             "by a random Hadamard matrix, which spreads outliers over all channels; r2: the values of each head are; "
             "pca: the stream is turned into "
             "its principal axes over --data, the largest first, for prune --hidden; of a model from a file"},
    {.name = "type",
     .type = CLI_STRING,
     .to = &o.type,
     .arg = "TYPE",
     .needs = {"method=awq"},
     .help = "the file type that the model will be quantized to, as quantize has it"},
    {.name = "stats",
     .type = CLI_STRING,
     .to = &o.stats,
     .arg = "FILE",
     .completes_files = true,
     .needs = {"method=awq"},
     .help = "what calibrate saw of this model: means of activations, and of their squares, by which errors are "
             "weighed"},
    {.name = "data",
     .type = CLI_STRING,
     .to = &o.data,
     .arg = "TOKENS",
     .completes_files = true,
     .needs = {"method=awq|method=smooth|method=pca", "!stats"},
     .help = "look at these tokens instead: awq then knows how activations go together, smooth how large they get, pca "
             "where the stream lies"},
    {.name = "max-tokens",
     .type = CLI_U64,
     .to = &o.max_tokens,
     .arg = "N",
     .fallback = "0",
     .needs = {"data"},
     .help = "take whole sequences of --data up to the one that reaches N positions; 0: all"},
    SESSION_DATA_PRECISION(o.how, "data"),
    {.name = "alpha",
     .type = CLI_F64,
     .to = &o.alpha,
     .arg = "SHARE",
     .fallback = "0.5",
     .min = 0,
     .max = 1,
     .needs = {"method=smooth"},
     .help = "how much of the range of activations goes over into the weights"},
    {0},
};

static int run(struct cli *c, struct err *e) {
    return compress_fold(c, &o, e);
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "fold",
        .summary = "rewrite a model's weights without changing what it computes",
        .operands = "[MODEL]",
        .max_operands = 1,
        .reads_stdin = true,
        .writes_stream = true,
        .seeded = true,
        .seed_needs = {"method=r1|method=r2"},
        .threaded = true,
        .description =
            "Prepares a model for quantize. Scales and rotations that one tensor undoes for another are put into the "
            "weights: the model computes the same, up to rounding in f32, and its weights are easier to round. Each "
            "method is a filter of its own, and they can follow one another.\nScales go from norms to what reads "
            "them, from v to o, and from up to down; where nothing takes the factor up, the pair is left out, which "
            "is reported. What is rewritten becomes f32. r1 and pca need norms without a mean or a bias (RMSNorm) "
            "before each part of a layer, and give a model whose head is tied to its embedding a head of its own.\n"
            "Statistics of the model are no longer those of the folded one: calibrate again for quantize --stats.",
        .examples =
            "rill fold --method awq --type q4_k_m --stats model.stats.rill model.rill -o model.awq.rill\n    scales "
            "for q4_k_m\n"
            "rill fold --method awq --type q4_0 --data tokens.rill model.rill -o folded.rill\n    by second moments\n"
            "rill fold --method smooth --data tokens.rill < model.rill > model.smooth.rill\n    for q8_0 and "
            "--precision int8\n"
            "rill fold --method pca --data tokens.rill model.rill -o axes.rill\n    for prune --hidden\n"
            "rill fold --method r1 model.rill | rill fold --method r2 > model.r.rill\n    both rotations\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
