/* rill prune: takes weights out of a model, in one pass. */
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
     .help = "make this share of the weights of each matrix of the layers zero (0.5, or 50%)"},
    {.name = "pattern",
     .type = CLI_STRING,
     .to = &o.pattern,
     .arg = "N:M",
     .needs = {"!sparsity"},
     .help = "keep N of each M consecutive weights of a row instead (2:4, 4:8), and make the others zero"},
    {.name = "rate",
     .type = CLI_LIST,
     .to = &o.rates,
     .arg = "REGEX=S",
     .help = "how sparse the matrices become whose name, Rill's or GGUF's, matches the regular expression: a share, 0, "
             "or N:M; the last match wins"},
    {.name = "allocate",
     .type = CLI_CHOICE,
     .to = &o.allocate,
     .arg = "HOW",
     .choices = "uniform|owl|search",
     .fallback = "uniform",
     .needs = {"sparsity", "!rate", "!layers", "!drop-layers", "!experts", "!ffn", "!heads", "!kv-heads", "!vocab",
               "!target-params", "!target-speedup", "!target-size", "!hidden", "!allocate=owl|stats",
               "!allocate=search|data", "!allocate=search|stats|method=magnitude"},
     .help = "how --sparsity is spread over the matrices: the same for all; by layer, the fewer the more outliers it "
             "has, by --stats (owl); or matrix by matrix, by an evolutionary search for the least divergence of the "
             "next token from the whole model's on --data, which begins with the better of these two; the model is "
             "read twice, from a file"},
    {.name = "outlier",
     .type = CLI_F64,
     .to = &o.outlier,
     .arg = "M",
     .fallback = "5",
     .min = 1,
     .max = 1e6,
     .needs = {"allocate=owl|allocate=search", "stats"},
     .help = "a weight whose product with the norm of its input is more than M times the layer's mean is an outlier"},
    {.name = "spread",
     .type = CLI_F64,
     .to = &o.spread,
     .arg = "SHARE",
     .fallback = "0.08",
     .max = 1,
     .needs = {"allocate=owl|allocate=search", "stats"},
     .help = "the layers of fewest and of most outliers differ by twice this share in sparsity"},
    {.name = "generations",
     .type = CLI_U64,
     .to = &o.generations,
     .arg = "N",
     .fallback = "50",
     .min = 1,
     .max = 1000000,
     .needs = {"allocate=search"},
     .help = "of the search"},
    {.name = "offspring",
     .type = CLI_U64,
     .to = &o.offspring,
     .arg = "N",
     .fallback = "8",
     .min = 1,
     .max = 4096,
     .needs = {"allocate=search"},
     .help =
         "candidates in each generation, which are judged on a quarter of the sequences, and a quarter of them on all"},
    {.name = "search-tokens",
     .type = CLI_U64,
     .to = &o.search_tokens,
     .arg = "N",
     .fallback = "4096",
     .max = 1e12,
     .needs = {"allocate=search"},
     .help = "judge candidates on whole sequences of --data up to the one that reaches N positions; 0: all; each needs "
             "memory for its logits"},
    {.name = "method",
     .type = CLI_CHOICE,
     .to = &o.method,
     .arg = "BY",
     .choices = "magnitude|wanda|sparsegpt|alps",
     .fallback = "magnitude",
     .needs = {"sparsity|pattern|rate|plan", "!method=wanda|stats|data", "!method=sparsegpt|data", "!method=alps|data"},
     .help = "which weights become zero: the smallest of the matrix (magnitude); of each row those of the smallest "
             "product with the norm of their input (wanda, with --stats or --data); with --data those that cost least "
             "when the others make up for it, column by column (sparsegpt), or by a search for the mask of least error "
             "(alps, the best and slowest)"},
    {.name = "data",
     .type = CLI_STRING,
     .to = &o.data,
     .arg = "TOKENS",
     .completes_files = true,
     .needs =
         {"!experts", "layer-score=divergence|allocate=search|candidates|!dry-run", "!vocab",
          "method=wanda|method=sparsegpt|method=alps|reconstruct|layer-score=divergence|allocate=search|candidates",
          "reconstruct|layer-score=divergence|!layers", "reconstruct|!drop-layers", "reconstruct|!ffn",
          "reconstruct|!heads", "reconstruct|!kv-heads", "reconstruct|!hidden"},
     .help =
         "prune layer by layer, with what these tokens become in the layers that are pruned already: text like that "
         "which the model will see, 128 sequences of 512 for a start"},
    {.name = "max-tokens",
     .type = CLI_U64,
     .to = &o.max_tokens,
     .arg = "N",
     .fallback = "0",
     .needs = {"data"},
     .help = "take whole sequences of --data up to the one that reaches N positions; 0: all"},
    {.name = "reconstruct",
     .type = CLI_FLAG,
     .to = &o.reconstruct,
     .needs = {"data"},
     .help = "fit the weights that stay, by least squares: each matrix to what it gave in the model as it was; where "
             "layers, heads or channels go, attn.o and ffn.down, to what the layers gave; takes twice as long"},
    {.name = "damp",
     .type = CLI_F64,
     .to = &o.damp,
     .arg = "SHARE",
     .fallback = "0.01",
     .max = 1,
     .needs = {"method=sparsegpt|method=alps|reconstruct"},
     .help = "what is added to the diagonal of the second moments of --data, as a share of its mean"},
    SESSION_DATA_PRECISION(o.how, "data"),
    {.name = "sparsify-head",
     .type = CLI_FLAG,
     .to = &o.prune_head,
     .needs = {"sparsity|pattern"},
     .help = "also the embedding and the output matrix"},
    {.name = "plan",
     .type = CLI_STRING,
     .to = &o.plan,
     .arg = "FILE",
     .completes_files = true,
     .needs = {"!sparsity", "!pattern", "!rate", "!layers", "!drop-layers", "!experts", "!ffn", "!heads", "!kv-heads",
               "!hidden"},
     .help =
         "take what stays of each layer, and how sparse each matrix becomes, from this file, as --dry-run prints it"},
    {.name = "dry-run",
     .type = CLI_FLAG,
     .to = &o.dry_run,
     .help =
         "print the plan and stop: the layers that stay with their widths, and the sparsity of each matrix, as text "
         "for --plan, edited or not"},
    {.name = "target-params",
     .type = CLI_AMOUNT,
     .to = &o.target_params,
     .arg = "N",
     .fallback = "0",
     .max = 1e15,
     .needs = {"stats", "!layers", "!drop-layers", "!experts", "!ffn", "!heads", "!kv-heads", "!hidden", "!plan"},
     .help = "prune layers, heads and channels to at most N parameters, or a share of them (60%): to that shape, alike "
             "in all layers, whose parts that go count least for the loss, by --stats with gradients, among those that "
             "load wherever the model does; --dry-run says which; 0: as the options below say"},
    {.name = "target-speedup",
     .type = CLI_F64,
     .to = &o.target_speedup,
     .arg = "S",
     .fallback = "0",
     .max = 1e6,
     .needs = {"stats", "!target-params", "!layers", "!drop-layers", "!experts", "!ffn", "!heads", "!kv-heads",
               "!hidden", "!plan"},
     .help = "the same to a model that takes S times fewer products of weights for a token (attention's own aside)"},
    {.name = "target-size",
     .type = CLI_U64,
     .to = &o.target_size,
     .arg = "BYTES",
     .min = 1,
     .max = 1e15,
     .needs = {"stats", "!target-params", "!target-speedup", "!layers", "!drop-layers", "!experts", "!ffn", "!heads",
               "!kv-heads", "!hidden", "!plan", "!vocab"},
     .help = "the same to a model whose tensors have at most so many bytes, in the types that they are written in, "
             "without header and vocabulary, as quantize counts; 90M: 90 times 1048576"},
    {.name = "target-type",
     .type = CLI_STRING,
     .to = &o.target_type,
     .arg = "TYPE",
     .needs = {"target-size"},
     .help = "... when quantize --type TYPE has made the result smaller: one budget for both. What is written is not "
             "quantized"},
    {.name = "per-layer",
     .type = CLI_FLAG,
     .to = &o.per_layer,
     .needs = {"target-params|target-speedup|target-size"},
     .help = "give each layer a shape of its own for the target: step by step go those channels, heads or layers that "
             "count least for what they save. llama.cpp loads such layers of a llama, mistral or qwen2 (as deci), "
             "transformers of none; export refuses what a format cannot hold"},
    {.name = "candidates",
     .type = CLI_U64,
     .to = &o.candidates,
     .arg = "N",
     .min = 1,
     .max = 64,
     .needs = {"target-params|target-speedup|target-size", "data", "!vocab"},
     .help =
         "prune the N best shapes for the target, each as the other options say, and take that whose distribution "
         "of the next token on --data diverges least from the model's; of a model from a file. Take few tokens: each "
         "needs memory for its logits"},
    {.name = "layers",
     .type = CLI_AMOUNT,
     .to = &o.layers,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_LAYERS,
     .needs = {"layer-score=divergence|stats"},
     .help = "keep N layers, or a share of them (67%), by --layer-score; 0: keep all"},
    {.name = "layer-score",
     .type = CLI_CHOICE,
     .to = &o.layer_score,
     .arg = "BY",
     .choices = "influence|angular|divergence",
     .fallback = "influence",
     .needs = {"layers", "!layer-score=divergence|data"},
     .help = "which layers go: those of least block influence, by --stats; the run of neighbours that turns the "
             "residual stream by the least angle, by --stats; or one after another that without which the next token's "
             "distribution on --data diverges least from the whole model's: a pass for each candidate, of a model from "
             "a file; take few tokens, of which each needs memory for its logits"},
    {.name = "drop-layers",
     .type = CLI_STRING,
     .to = &o.drop_layers,
     .arg = "LIST",
     .needs = {"!layers"},
     .help = "drop these layers instead: numbers from 0 and ranges, 3,10-14"},
    {.name = "experts",
     .type = CLI_AMOUNT,
     .to = &o.experts,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_EXPERTS,
     .needs = {"!experts|stats"},
     .help = "keep N experts of each layer that has some, or a share of them: those go that add least to the positions "
             "that take them; 0: keep all"},
    {.name = "ffn",
     .type = CLI_AMOUNT,
     .to = &o.ffn,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_DIM,
     .help = "keep the N best feed-forward channels of each layer and of each expert, or a share of them, rounded to a "
             "multiple of 256 or 32, the blocks of quantized types; 0: keep all"},
    {.name = "kv-heads",
     .type = CLI_AMOUNT,
     .to = &o.kv_heads,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_DIM,
     .help =
         "keep the N best key/value heads of each layer, each with its query heads, or a share of them; 0: keep all"},
    {.name = "heads",
     .type = CLI_AMOUNT,
     .to = &o.heads,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_DIM,
     .help = "keep N query heads of each layer, the best of each key/value head that stays and as many of each, or a "
             "share of them; 0: keep all"},
    {.name = "hidden",
     .type = CLI_AMOUNT,
     .to = &o.hidden,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_DIM,
     .needs = {"!hidden|stats"},
     .help = "keep the N channels of the residual stream, in all layers, that are the most active behind norms, by "
             "--stats, or a share of them, rounded as --ffn; --reconstruct fits what reads and writes it, and then it "
             "goes alone; 0: keep all"},
    {.name = "vocab",
     .type = CLI_STRING,
     .to = &o.vocab,
     .arg = "TOKENS",
     .completes_files = true,
     .help =
         "keep only the tokens that occur in this token stream, what their merges need, the bytes and the special "
         "tokens; \"padding\": keep all tokens, only the rows of the embedding after the last one go (a file of that "
         "name is ./padding)"},
    {.name = "vocab-min-count",
     .type = CLI_U64,
     .to = &o.vocab_min_count,
     .arg = "N",
     .fallback = "1",
     .min = 1,
     .max = 1e15,
     .needs = {"vocab", "!vocab=padding"},
     .help = "how often a token must occur to stay"},
    {.name = "score",
     .type = CLI_CHOICE,
     .to = &o.score,
     .arg = "BY",
     .choices = "auto|weights|activations|taylor|fluctuation|cost",
     .fallback = "auto",
     .needs = {"ffn|heads|kv-heads|plan|target-params|target-speedup|target-size", "!score=activations|stats",
               "!score=taylor|stats", "!score=fluctuation|stats", "!score=cost|reconstruct"},
     .help = "how channels and heads are ranked: by the norm of their weights; by --stats: their activations, what "
             "gradients say the loss would change (taylor), or the variance of what they give (fluctuation); or with "
             "--reconstruct by the error that is left when the others make up for them (cost); auto: cost, "
             "activations or weights, the first that has what it needs"},
    {.name = "compensate",
     .type = CLI_FLAG,
     .to = &o.compensate,
     .needs = {"ffn|heads|kv-heads|plan|target-params|target-speedup|target-size", "stats", "!data"},
     .help =
         "biases of attn.o and ffn.down take over what the channels and heads that go gave in the mean, by --stats; "
         "refused where a model has none"},
    {.name = "stats",
     .type = CLI_STRING,
     .to = &o.stats,
     .arg = "FILE",
     .needs = {"layers|experts|ffn|heads|kv-heads|hidden|plan|method=wanda|target-params|target-speedup|target-size|"
               "allocate=owl|allocate=search",
               "layers|experts|hidden|method=wanda|compensate|target-params|target-speedup|target-size|allocate=owl|"
               "allocate=search|!score=weights"},
     .completes_files = true,
     .help = "activation statistics of this model (rill calibrate)"},
    {0},
};

static int run(struct cli *c, struct err *e) {
    return compress_prune(c, &o, e);
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "prune",
        .summary = "take layers, experts, channels, heads, tokens or single weights out of a model",
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
            "feed-forward parts, fewer attention heads, a narrower residual stream, a smaller vocabulary. --sparsity, "
            "--pattern and --rate make "
            "single "
            "weights zero, of the matrices of layers that are left, and keep the shapes.\nWhat is removed is chosen by "
            "the norms of the weights, or by calibrate's statistics of "
            "this model. Several kinds may be combined: single weights are those of what the others leave. With --data "
            "they go alone, in a "
            "run of their own. Train the result with distill to recover what was lost.\n"
            "A quantized tensor keeps its type as long as whole rows are kept. It becomes f32 if columns are removed "
            "(ffn.down and attn.o) or single weights become zero; with --data all quantized tensors do.\n--codec "
            "sparse "
            "stores zeros in a bit each.\nWhat is to go is a plan: --dry-run prints it, --plan reads it.",
        .examples =
            "rill prune --layers 2 --stats model.stats.rill model.rill -o small.rill\n    keep the 2 layers "
            "that matter most\n"
            "rill prune --ffn 64 < model.rill > narrow.rill\n    keep the 64 strongest channels of each layer\n"
            "rill prune --sparsity 0.5 < model.rill > sparse.rill\n    half of the weights become zero\n"
            "rill prune --pattern 2:4 --method wanda --stats model.stats.rill model.rill -o sparse.24.rill\n    "
            "two of each four, by weights and activations\n"
            "rill prune --sparsity 0.5 --method sparsegpt --data tokens.rill model.rill -o sparse.rill\n    half of "
            "the "
            "weights, layer by layer, with what the others can make up for\n"
            "rill prune --sparsity 0.5 --allocate owl --stats model.stats.rill --dry-run model.rill -o owl.txt\n    "
            "more "
            "zeros where a layer has few outliers, as a plan\n"
            "rill prune --ffn 64 --rate attn=2:4 --dry-run model.rill -o plan.txt\n    what would be done\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
