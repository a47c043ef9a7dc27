/* rill prune: removes weights from a model, in one pass. */
#include "lib/compress/compress.h"

static struct compress_prune_options o;

static const struct cli_option options[] = {
    {.name = "sparsity",
     .type = CLI_SHARE,
     .to = &o.sparsity,
     .arg = "SHARE",
     .fallback = "0",
     .min = 0,
     .max = 0.999999,
     .help = "set this share of the weights of each matrix in the layers to zero (0.5 or 50%)"},
    {.name = "pattern",
     .type = CLI_STRING,
     .to = &o.pattern,
     .arg = "N:M",
     .needs = {"!sparsity"},
     .help = "N:M sparsity: keep N of every M consecutive weights in a row (2:4, 4:8) and set the others to zero"},
    {.name = "rate",
     .type = CLI_LIST,
     .to = &o.rates,
     .arg = "REGEX=S",
     .help = "sparsity of the matrices whose names (Rill's or GGUF's) match the regular expression: a share, 0, N:M, "
             "or rank:N for two low-rank factors; the last match wins"},
    {.name = "allocate",
     .type = CLI_CHOICE,
     .to = &o.allocate,
     .arg = "HOW",
     .choices = "uniform|owl|search",
     .fallback = "uniform",
     .needs = {"sparsity", "!rate", "!layers", "!drop-layers", "!experts", "!ffn", "!heads", "!kv-heads", "!vocab",
               "!target-params", "!target-speedup", "!target-size", "!hidden", "!allocate=owl|stats",
               "!allocate=search|data", "!allocate=search|stats|method=magnitude"},
     .help = "how to spread --sparsity over the matrices. uniform: the same for all. owl: by layer, fewer zeros in "
             "layers with more outliers; needs --stats. search: by matrix, an evolutionary search for the least "
             "divergence from the whole model on --data; it starts from the better of the other two and reads the "
             "model twice, so MODEL must be a file"},
    {.name = "outlier",
     .type = CLI_F64,
     .to = &o.outlier,
     .arg = "M",
     .fallback = "5",
     .min = 1,
     .max = 1e6,
     .needs = {"allocate=owl|allocate=search", "stats"},
     .help =
         "a weight is an outlier if its magnitude times the norm of its input is above M times the mean of its layer"},
    {.name = "spread",
     .type = CLI_F64,
     .to = &o.spread,
     .arg = "SHARE",
     .fallback = "0.08",
     .max = 1,
     .needs = {"allocate=owl|allocate=search", "stats"},
     .help = "the sparsities of the layers with the fewest and the most outliers differ by twice this share"},
    {.name = "generations",
     .type = CLI_U64,
     .to = &o.generations,
     .arg = "N",
     .fallback = "50",
     .min = 1,
     .max = 1000000,
     .needs = {"allocate=search"},
     .help = "generations of the search"},
    {.name = "offspring",
     .type = CLI_U64,
     .to = &o.offspring,
     .arg = "N",
     .fallback = "8",
     .min = 1,
     .max = 4096,
     .needs = {"allocate=search"},
     .help = "candidates in each generation: all are evaluated on a quarter of the sequences, the best quarter of them "
             "on all sequences"},
    {.name = "search-tokens",
     .type = CLI_U64,
     .to = &o.search_tokens,
     .arg = "N",
     .fallback = "4096",
     .max = 1e12,
     .needs = {"allocate=search|candidates"},
     .help = "evaluate candidates, sparsities or shapes, on the first whole sequences of --data that hold N positions; "
             "0: on all. With --reconstruct on half of the sequences at most, and candidates are fitted to the others. "
             "Memory is needed for the logits of each"},
    {.name = "method",
     .type = CLI_CHOICE,
     .to = &o.method,
     .arg = "BY",
     .choices = "magnitude|wanda|sparsegpt|alps|svd",
     .fallback = "magnitude",
     .needs = {"sparsity|pattern|rate|plan", "!method=wanda|stats|data", "!method=sparsegpt|data|stats",
               "!method=alps|data|stats", "!method=svd|!allocate=search"},
     .help =
         "which weights become zero. magnitude: the smallest of each matrix; wanda: in each row, those with the "
         "smallest product of weight and input norm; sparsegpt: those that cost least when the others are updated "
         "to compensate, column by column; alps: search for the mask with the least error (the best and slowest); "
         "these two "
         "layer by layer with --data, or tensor by tensor with --stats of calibrate --moments. svd "
         "leaves no zeros: "
         "each matrix becomes two low-rank factors with that share of its weights less, by its own singular values, "
         "or with --data by those of its outputs"},
    {.name = "data",
     .type = CLI_STRING,
     .to = &o.data,
     .arg = "TOKENS",
     .completes_files = true,
     .needs =
         {"!experts", "layer-score=divergence|allocate=search|candidates|!dry-run",
          "method=wanda|method=sparsegpt|method=alps|method=svd|reconstruct|layer-score=divergence|allocate=search|"
          "candidates",
          "reconstruct|layer-score=divergence|!layers", "reconstruct|!drop-layers", "reconstruct|!ffn",
          "reconstruct|!heads", "reconstruct|!kv-heads", "reconstruct|!hidden"},
     .help = "calibration data: prune layer by layer, using the activations that these tokens have after the already "
             "pruned layers. Use text like that which the model will see; 128 sequences of 512 are a good start"},
    {.name = "max-tokens",
     .type = CLI_U64,
     .to = &o.max_tokens,
     .arg = "N",
     .fallback = "0",
     .needs = {"data"},
     .help = "use whole sequences of --data, up to the one that reaches N tokens; 0: all"},
    {.name = "reconstruct",
     .type = CLI_FLAG,
     .to = &o.reconstruct,
     .needs = {"data"},
     .help =
         "fit the remaining weights by least squares to the outputs of the original model: for single weights every "
         "matrix; if layers, heads or channels are removed, attn.o and ffn.down. Takes twice as long"},
    {.name = "damp",
     .type = CLI_F64,
     .to = &o.damp,
     .arg = "SHARE",
     .fallback = "0.01",
     .max = 1,
     .needs = {"method=sparsegpt|method=alps|method=svd|reconstruct", "data|method=sparsegpt|method=alps",
               "data|!dry-run"},
     .help = "damping: added to the diagonal of the second moments of --data or --stats, as a share of its mean"},
    SESSION_DATA_PRECISION(o.how, "data"),
    {.name = "merge",
     .type = CLI_FLAG,
     .to = &o.merge,
     .needs = {"!data", "!plan", "!target-params", "!target-speedup", "!target-size"},
     .help = "multiply the low-rank factors of --method svd, so that other programs can load the model again: matrices "
             "are whole and as large as before, then pruned as the other options say"},
    {.name = "sparsify-head",
     .type = CLI_FLAG,
     .to = &o.prune_head,
     .needs = {"sparsity|pattern"},
     .help = "also sparsify the embedding and the output matrix"},
    {.name = "plan",
     .type = CLI_STRING,
     .to = &o.plan,
     .arg = "FILE",
     .completes_files = true,
     .needs = {"!sparsity", "!pattern", "!rate", "!layers", "!drop-layers", "!experts", "!ffn", "!heads", "!kv-heads",
               "!hidden"},
     .help =
         "read what to keep of each layer, and the sparsity of each matrix, from this file, as printed by --dry-run"},
    {.name = "dry-run",
     .type = CLI_FLAG,
     .to = &o.dry_run,
     .help = "print the plan and stop: the layers to keep with their widths, and the sparsity of each matrix, as text "
             "for --plan, which you can edit"},
    {.name = "target-params",
     .type = CLI_AMOUNT,
     .to = &o.target_params,
     .arg = "N",
     .fallback = "0",
     .max = 1e15,
     .needs = {"stats", "!layers", "!drop-layers", "!experts", "!ffn", "!heads", "!kv-heads", "!hidden", "!plan"},
     .help =
         "prune layers, heads and channels to at most N parameters, or a share of them (60%). Tries all shapes with "
         "equal layers that programs can load wherever they load this model, and takes the one whose removed parts "
         "matter least for the loss, by --stats with gradients; --dry-run prints it. With --vocab the vocabulary is "
         "pruned "
         "first. 0: no target"},
    {.name = "target-speedup",
     .type = CLI_F64,
     .to = &o.target_speedup,
     .arg = "S",
     .fallback = "0",
     .max = 1e6,
     .needs = {"stats", "!target-params", "!layers", "!drop-layers", "!experts", "!ffn", "!heads", "!kv-heads",
               "!hidden", "!plan"},
     .help = "the same, to a model with S times fewer multiplications by weights per token (not counting attention "
             "itself)"},
    {.name = "target-size",
     .type = CLI_U64,
     .to = &o.target_size,
     .arg = "BYTES",
     .min = 1,
     .max = 1e15,
     .needs = {"stats", "!target-params", "!target-speedup", "!layers", "!drop-layers", "!experts", "!ffn", "!heads",
               "!kv-heads", "!hidden", "!plan"},
     .help = "the same, to a model whose tensors take at most this many bytes in their types, without header and "
             "vocabulary, as quantize counts; 90M is 90 times 1048576"},
    {.name = "target-type",
     .type = CLI_STRING,
     .to = &o.target_type,
     .arg = "TYPE",
     .needs = {"target-size"},
     .help = "measure --target-size as if quantize --type TYPE had quantized the result: one budget for both. The "
             "output is not quantized"},
    {.name = "per-layer",
     .type = CLI_FLAG,
     .to = &o.per_layer,
     .needs = {"target-params|target-speedup|target-size"},
     .help = "give each layer its own shape for the target: remove step by step those channels, heads or layers that "
             "matter least for what they save. llama.cpp loads such layers of a llama, mistral or qwen2 (as deci), "
             "transformers of no model; export refuses what a format cannot hold"},
    {.name = "candidates",
     .type = CLI_U64,
     .to = &o.candidates,
     .arg = "N",
     .min = 1,
     .max = 64,
     .needs = {"target-params|target-speedup|target-size", "data"},
     .help = "prune to N shapes for the target, one after another, as the other options say, and take the one whose "
             "next-token distributions on --data diverge least from the original's. The first are the best by --stats, "
             "as they are and if heads, or all but layers, or all but channels mattered more; the others the best by "
             "what was measured. "
             "MODEL must be a file"},
    {.name = "layers",
     .type = CLI_AMOUNT,
     .to = &o.layers,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_LAYERS,
     .needs = {"layer-score=divergence|stats"},
     .help = "keep N layers, or a share of them (67%), chosen by --layer-score; 0: keep all"},
    {.name = "layer-score",
     .type = CLI_CHOICE,
     .to = &o.layer_score,
     .arg = "BY",
     .choices = "influence|angular|divergence",
     .fallback = "influence",
     .needs = {"layers", "!layer-score=divergence|data"},
     .help = "which layers to drop. influence: those with the least block influence (--stats); angular: the block of "
             "consecutive layers that changes the direction of the residual stream least (--stats); divergence: one "
             "after another, the layer without which next-token distributions on --data diverge least from the "
             "original's; this takes a pass per candidate, a model from a file, and few tokens, as memory holds the "
             "logits of each"},
    {.name = "drop-layers",
     .type = CLI_STRING,
     .to = &o.drop_layers,
     .arg = "LIST",
     .needs = {"!layers"},
     .help = "drop exactly these layers: numbers from 0 and ranges, such as 3,10-14"},
    {.name = "experts",
     .type = CLI_AMOUNT,
     .to = &o.experts,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_EXPERTS,
     .needs = {"!experts|stats"},
     .help = "keep N experts per layer in a mixture of experts, or a share of them; drops those that contribute least "
             "to the tokens routed to them. 0: keep all"},
    {.name = "ffn",
     .type = CLI_AMOUNT,
     .to = &o.ffn,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_DIM,
     .help =
         "keep the N best feed-forward channels of each layer and expert, or a share of them, rounded to a multiple "
         "of 256 or 32, the block sizes of quantized types; 0: keep all"},
    {.name = "kv-heads",
     .type = CLI_AMOUNT,
     .to = &o.kv_heads,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_DIM,
     .help = "keep the N best key/value heads of each layer with their query heads, or a share of them; 0: keep all"},
    {.name = "heads",
     .type = CLI_AMOUNT,
     .to = &o.heads,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_DIM,
     .help = "keep N query heads per layer, or a share of them: the best of each remaining key/value head, the same "
             "number for each; 0: keep all"},
    {.name = "hidden",
     .type = CLI_AMOUNT,
     .to = &o.hidden,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_DIM,
     .needs = {"!hidden|stats"},
     .help = "keep the N channels of the residual stream, or a share of them, that are most active after norms, by "
             "--stats, in all layers; rounded as --ffn. With --reconstruct, everything that reads or writes the stream "
             "is fitted, and nothing else can be pruned in that run; 0: keep all"},
    {.name = "vocab",
     .type = CLI_STRING,
     .to = &o.vocab,
     .arg = "TOKENS",
     .completes_files = true,
     .help =
         "keep only the tokens that occur in this token stream, with the tokens their merges need, single bytes and "
         "special tokens; \"padding\": keep all tokens and remove only unused rows at the end of the embedding (for "
         "a file of that name write ./padding)"},
    {.name = "vocab-min-count",
     .type = CLI_U64,
     .to = &o.vocab_min_count,
     .arg = "N",
     .fallback = "1",
     .min = 1,
     .max = 1e15,
     .needs = {"vocab", "!vocab=padding"},
     .help = "keep tokens that occur at least N times"},
    {.name = "vocab-size",
     .type = CLI_U64,
     .to = &o.vocab_size,
     .arg = "N",
     .max = MODEL_MAX_VOCAB,
     .fallback = "0",
     .needs = {"vocab", "!vocab=padding"},
     .help = "keep N tokens: those that occur most often, and those that these need; 0: no limit"},
    {.name = "score",
     .type = CLI_CHOICE,
     .to = &o.score,
     .arg = "BY",
     .choices = "auto|weights|activations|taylor|fluctuation|cost",
     .fallback = "auto",
     .needs = {"ffn|heads|kv-heads|plan|target-params|target-speedup|target-size", "!score=activations|stats",
               "!score=taylor|stats", "!score=fluctuation|stats", "!score=cost|reconstruct"},
     .help =
         "how to rank channels and heads: weights: by the norm of their weights; activations, taylor (effect on the "
         "loss, from gradients), fluctuation (variance of their output): by --stats; cost: by the error that "
         "remains after the others are updated to compensate, with --reconstruct; auto: the first of cost, "
         "activations, weights that has what it needs"},
    {.name = "compensate",
     .type = CLI_FLAG,
     .to = &o.compensate,
     .needs = {"ffn|heads|kv-heads|plan|target-params|target-speedup|target-size", "stats", "!data"},
     .help =
         "add the mean output of removed channels and heads, from --stats, to the biases of attn.o and ffn.down; an "
         "error if the model has no such biases"},
    {.name = "stats",
     .type = CLI_STRING,
     .to = &o.stats,
     .arg = "FILE",
     .needs = {"layers|experts|ffn|heads|kv-heads|hidden|plan|method=wanda|method=sparsegpt|method=alps|target-params|"
               "target-speedup|target-size|allocate=owl|allocate=search",
               "layers|experts|hidden|method=wanda|method=sparsegpt|method=alps|compensate|target-params|"
               "target-speedup|target-size|allocate=owl|allocate=search|!score=weights",
               "!method=sparsegpt|!data|layers|plan|hidden|target-params|target-speedup|target-size|allocate=owl|"
               "allocate=search",
               "!method=alps|!data|layers|plan|hidden|target-params|target-speedup|target-size|allocate=owl|allocate="
               "search"},
     .completes_files = true,
     .help = "activation statistics of this model, from rill calibrate; for wanda and --allocate also an importance "
             "matrix of llama.cpp; sparsegpt and alps without --data need those of calibrate --moments"},
    {0},
};

static int run(struct cli *c, struct err *e) {
    return compress_prune(c, &o, e);
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "prune",
        .summary = "remove layers, experts, channels, heads, vocabulary or single weights",
        .operands = "[MODEL]",
        .max_operands = 1,
        .reads_stdin = true,
        .writes_stream = true,
        .stream_needs = "!dry-run",
        .threaded = true,
        .seeded = true,
        .seed_needs = {"allocate=search"},
        .description =
            "Structured pruning makes a smaller dense model that any program can run: fewer layers, narrower "
            "feed-forward layers, fewer attention heads, a narrower residual stream, a smaller vocabulary. --sparsity, "
            "--pattern and --rate set "
            "single weights in the matrices of layers to zero and keep all shapes.\n\nWhat to remove is decided by the "
            "norms of the weights or by the statistics of rill calibrate for this model. Several kinds can be "
            "combined; single weights are then chosen from what the others leave. With --data, single weights need a "
            "run of their own. Train the result with distill to recover quality.\n\nA quantized tensor keeps its type "
            "if whole rows are kept. It becomes f32 if columns are removed (ffn.down and attn.o) or single weights are "
            "zeroed; with --data all quantized tensors do.\n\n--codec sparse stores each zero in one bit.\n\nOnly "
            "Rill's "
            "programs load a model with low-rank factors (--method svd); export refuses it until --merge has "
            "multiplied "
            "them.\n\nWhat to "
            "remove is a plan: --dry-run prints it and --plan reads it.",
        .examples =
            "rill prune --layers 2 --stats model.stats.rill model.rill -o small.rill\n"
            "    keep the 2 layers that matter most\n"
            "rill prune --ffn 64 < model.rill > narrow.rill\n"
            "    keep the 64 strongest channels of each layer\n"
            "rill prune --sparsity 0.5 < model.rill > sparse.rill\n"
            "    half of the weights become zero\n"
            "rill prune --pattern 2:4 --method wanda --stats model.stats.rill model.rill -o sparse.24.rill\n"
            "    two of every four weights, by weights and activations\n"
            "rill prune --sparsity 0.5 --method sparsegpt --data tokens.rill model.rill -o sparse.rill\n"
            "    half of the weights, layer by layer, with the others updated to compensate\n"
            "rill prune --sparsity 0.5 --method sparsegpt --stats moments.stats.rill model.rill -o sparse.rill\n"
            "    the same tensor by tensor, with statistics of calibrate --moments\n"
            "rill prune --sparsity 0.5 --method svd --data tokens.rill model.rill -o factored.small.rill\n"
            "    each matrix as two low-rank factors with half of its weights\n"
            "rill prune --merge factored.rill -o whole.rill\n"
            "    multiply the factors, for export\n"
            "rill prune --sparsity 0.5 --allocate owl --stats model.stats.rill --dry-run model.rill -o owl.txt\n"
            "    a plan with more zeros in layers that have few outliers\n"
            "rill prune --ffn 64 --rate attn=2:4 --dry-run model.rill -o plan.txt\n"
            "    print the plan\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
