/* rill fold: rewrites a model's weights without changing what it computes. */
#include "lib/compress/compress.h"

static struct compress_fold_options o;

static const struct cli_option options[] = {
    {.name = "method",
     .type = CLI_CHOICE,
     .to = &o.method,
     .choices = "awq|smooth|r1|r2|pca",
     .required = true,
     .help =
         "awq: enlarge the weights of channels with large activations, by the power of the mean activation that "
         "gives the least error when the weights are rounded to --type; smooth: share the range of activations with "
         "the weights, for products that quantize both (SmoothQuant); r1: rotate the residual stream by a random "
         "Hadamard matrix, which spreads outliers over all channels; r2: rotate the values of each head likewise; "
         "pca: rotate the residual stream to its principal axes over --data, the largest first, for prune --hidden; "
         "MODEL "
         "must be a file"},
    {.name = "type",
     .type = CLI_STRING,
     .to = &o.type,
     .arg = "TYPE",
     .needs = {"method=awq"},
     .help = "the type that the model will be quantized to, as in rill quantize --type"},
    {.name = "stats",
     .type = CLI_STRING,
     .to = &o.stats,
     .arg = "FILE",
     .completes_files = true,
     .needs = {"method=awq"},
     .help =
         "statistics of this model from rill calibrate: mean activations for the scales, mean squares to weight the "
         "errors"},
    {.name = "data",
     .type = CLI_STRING,
     .to = &o.data,
     .arg = "TOKENS",
     .completes_files = true,
     .needs = {"method=awq|method=smooth|method=pca", "!stats"},
     .help = "use these calibration tokens instead of --stats: awq then knows the correlations of activations, smooth "
             "their maxima, pca the principal axes"},
    {.name = "max-tokens",
     .type = CLI_U64,
     .to = &o.max_tokens,
     .arg = "N",
     .fallback = "0",
     .needs = {"data"},
     .help = "use whole sequences of --data, up to the one that reaches N tokens; 0: all"},
    SESSION_DATA_PRECISION(o.how, "data"),
    {.name = "alpha",
     .type = CLI_F64,
     .to = &o.alpha,
     .arg = "SHARE",
     .fallback = "0.5",
     .min = 0,
     .max = 1,
     .needs = {"method=smooth"},
     .help = "how much of the range of activations moves into the weights"},
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
            "Prepares a model for quantize: multiplies scales or rotations into one weight tensor and their inverse "
            "into another, so that the model computes the same function (up to f32 rounding) with weights that are "
            "easier to quantize. Each run applies one method; methods can be chained.\n\nScales move from norms to the "
            "matrices that read them, from v to o, and from up to down; a pair whose inverse has nowhere to go is "
            "skipped, and reported. Rewritten tensors become f32. r1 and pca need a norm without mean or bias "
            "(RMSNorm) "
            "before each part of a layer, and untie an output matrix that is tied to the embedding.\n\nStatistics of "
            "the original model do not fit the folded one: run calibrate again before quantize --stats.",
        .examples = "rill fold --method awq --type q4_k_m --stats model.stats.rill model.rill -o model.awq.rill\n"
                    "    scales for q4_k_m\n"
                    "rill fold --method awq --type q4_0 --data tokens.rill model.rill -o folded.rill\n"
                    "    scales by second moments of the activations\n"
                    "rill fold --method smooth --data tokens.rill < model.rill > model.smooth.rill\n"
                    "    for q8_0 and --precision int8\n"
                    "rill fold --method pca --data tokens.rill model.rill -o axes.rill\n"
                    "    for prune --hidden\n"
                    "rill fold --method r1 model.rill | rill fold --method r2 > model.r.rill\n"
                    "    both rotations\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
