/* rill prune: takes weights out of a model, in one pass. */
#include "lib/prune/prune.h"
#include "lib/cli/cli.h"
#include "lib/formats/formats.h"

static double sparsity;
static uint64_t min_count;
static struct cli_amount layers, ffn, kv_heads;
static const char *drop, *score, *stats_path, *vocab_path;
static bool prune_head;

static const struct cli_option options[] = {
    {.name = "sparsity",
     .type = CLI_SHARE,
     .to = &sparsity,
     .arg = "SHARE",
     .fallback = "0",
     .min = 0,
     .max = 0.999999,
     .help = "make this share of the weights of smallest magnitude of each matrix zero (0.5, or 50%)"},
    {.name = "sparsify-head",
     .type = CLI_FLAG,
     .to = &prune_head,
     .needs = {"sparsity"},
     .help = "also in the embedding and the output matrix"},
    {.name = "layers",
     .type = CLI_AMOUNT,
     .to = &layers,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_LAYERS,
     .needs = {"!layers|stats"},
     .help = "keep N layers, or a share of them (67%): those of least block influence go; 0: keep all"},
    {.name = "drop-layers",
     .type = CLI_STRING,
     .to = &drop,
     .arg = "LIST",
     .needs = {"!layers"},
     .help = "drop these layers instead: numbers from 0 and ranges, 3,10-14"},
    {.name = "ffn",
     .type = CLI_AMOUNT,
     .to = &ffn,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_DIM,
     .help =
         "keep the N best feed-forward channels of each layer, or a share of them, rounded to a multiple of 256 or 32, "
         "the blocks of quantized types; 0: keep all"},
    {.name = "kv-heads",
     .type = CLI_AMOUNT,
     .to = &kv_heads,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_DIM,
     .help =
         "keep the N best key/value heads of each layer, each with its query heads, or a share of them; 0: keep all"},
    {.name = "vocab",
     .type = CLI_STRING,
     .to = &vocab_path,
     .arg = "TOKENS",
     .completes_files = true,
     .help =
         "keep only the tokens that occur in this token stream, what their merges need, the bytes and the special "
         "tokens; \"padding\": keep all tokens, only the rows of the embedding after the last one go (a file of that "
         "name is ./padding)"},
    {.name = "vocab-min-count",
     .type = CLI_U64,
     .to = &min_count,
     .arg = "N",
     .fallback = "1",
     .min = 1,
     .max = 1e15,
     .needs = {"vocab", "!vocab=padding"},
     .help = "how often a token must occur to stay"},
    {.name = "score",
     .type = CLI_CHOICE,
     .to = &score,
     .arg = "BY",
     .choices = "auto|weights|activations",
     .fallback = "auto",
     .needs = {"ffn|kv-heads", "!score=activations|stats"},
     .help = "how channels and heads are ranked: by the norm of their weights, or their activations in --stats; auto: "
             "activations when there are statistics"},
    {.name = "stats",
     .type = CLI_STRING,
     .to = &stats_path,
     .arg = "FILE",
     .needs = {"layers|ffn|kv-heads", "layers|!score=weights"},
     .completes_files = true,
     .help = "activation statistics of this model (rill calibrate)"},
    {0},
};

/* Parses "3,10-14". */
static int parse_layers(const char *text, uint32_t *out, size_t *n, struct err *e) {
    for (const char *s = text; s && *s;) {
        char item[32];
        size_t len = strcspn(s, ",");
        if (len == 0 || len >= sizeof item)
            return err_set(e, ERR_USAGE, "--drop-layers: '%s' is not a list of layers", text);
        memcpy(item, s, len);
        item[len] = 0;
        char *dash = strchr(item, '-');
        uint64_t first, last;
        if (dash) *dash++ = 0;
        if (!parse_u64(item, &first) || !parse_u64(dash ? dash : item, &last) || first > last ||
            last >= MODEL_MAX_LAYERS)
            return err_set(e, ERR_USAGE, "--drop-layers: '%s' is not a list of layers", text);
        for (uint64_t l = first; l <= last && *n < MODEL_MAX_LAYERS; l++) out[(*n)++] = (uint32_t)l;
        s += len;
        if (*s == ',' && !*++s) return err_set(e, ERR_USAGE, "--drop-layers: '%s' ends in a comma", text);
    }
    return 0;
}

static int report(struct cli *c, const struct prune_report *r, struct err *e) {
    cJSON *o = cli_report(c), *before = model_config_to_json(&r->before, e),
          *after = before ? model_config_to_json(&r->after, e) : NULL;
    cJSON *kept = cJSON_AddArrayToObject(o, "kept_layers");
    bool ok = after && kept && json_put_u64(o, "parameters_before", r->parameters_before) &&
              json_put_u64(o, "parameters_after", r->parameters_after) && json_put_u64(o, "zeros", r->zeros);
    for (uint32_t i = 0; ok && i < r->after.n_layers; i++)
        ok = cJSON_AddItemToArray(kept, cJSON_CreateNumber(r->kept_layers[i]));
    if (!ok || !cJSON_AddItemToObject(o, "before", before) || !cJSON_AddItemToObject(o, "after", after))
        return err_nomem(e, "report");
    cli_say(c, "%.2f M parameters of %.2f M, %u layers of %u%s", (double)r->parameters_after / 1e6,
            (double)r->parameters_before / 1e6, r->after.n_layers, r->before.n_layers, sparsity > 0 ? ", sparse" : "");
    return 0;
}

static struct prune_amount amount(const struct cli_amount *a) {
    return (struct prune_amount){(uint32_t)a->n, a->share};
}

static bool asked(const struct cli_amount *a) {
    return a->n || a->share > 0;
}

/* --vocab names a stream, except "padding", which needs none. */
static bool reads_tokens(void) {
    return vocab_path && strcmp(vocab_path, "padding") != 0;
}

static int fill_options(struct prune_options *o, uint32_t *drop_list, const struct stats *stats,
                        const struct prune_tokens *tokens, struct err *e) {
    *o = (struct prune_options){.sparsity = sparsity,
                                .prune_head = prune_head,
                                .tokens = reads_tokens() ? tokens : NULL,
                                .padding = vocab_path && !reads_tokens(),
                                .vocab_min_count = min_count,
                                .stats = stats,
                                .drop_layers = drop_list,
                                .layers = amount(&layers),
                                .ffn = amount(&ffn),
                                .kv_heads = amount(&kv_heads)};
    o->score = !strcmp(score, "activations") || (!strcmp(score, "auto") && stats) ? PRUNE_BY_STATS : PRUNE_BY_WEIGHTS;
    int rc = parse_layers(drop, drop_list, &o->n_drop_layers, e);
    if (!rc && sparsity <= 0 && !asked(&layers) && !drop && !asked(&ffn) && !asked(&kv_heads) && !vocab_path)
        rc = err_set(e, ERR_USAGE,
                     "nothing to prune: give --sparsity, --layers, --drop-layers, --ffn, --kv-heads or --vocab");
    return rc;
}

static void say(void *c, const char *message) {
    cli_say(c, "%s", message);
}

static void say_targets(void *c, const struct model_config *before, const struct model_config *after) {
    target_warnings(before, after, say, c);
}

static int run(struct cli *c, struct err *e) {
    static uint32_t drop_list[MODEL_MAX_LAYERS];
    struct stream_reader *in, *stats_in, *tokens_in;
    struct stream_writer *out;
    struct prune_options o;
    struct prune_report r = {0};
    struct stats *stats = NULL;
    struct prune_tokens tokens = {0};
    int rc = 0;
    if (stats_path) rc = cli_open_stream(c, stats_path, "stats", STREAM_STATS, &stats_in, e);
    if (!rc && stats_path) rc = stats_load(&stats, stats_in, e);
    if (!rc && reads_tokens()) rc = cli_open_stream(c, vocab_path, "tokens", STREAM_ANY, &tokens_in, e);
    if (!rc && reads_tokens()) rc = prune_tokens_count(&tokens, tokens_in, e);
    if (!rc) rc = fill_options(&o, drop_list, stats, &tokens, e);
    o.warn = say, o.warn_ctx = c, o.shape = say_targets;
    if (!rc) rc = cli_open_stream(c, cli_input_path(c, 0), "model", STREAM_MODEL, &in, e);
    if (!rc) rc = cli_open_output(c, &out, e);
    if (!rc) rc = prune_stream(in, out, &o, &r, e);
    if (!rc) rc = report(c, &r, e);
    if (!rc) rc = cli_close_output(c, e);
    prune_report_release(&r);
    prune_tokens_release(&tokens);
    stats_free(stats);
    return rc;
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "prune",
        .summary = "take layers, channels, heads, tokens or single weights out of a model",
        .operands = "[MODEL]",
        .max_operands = 1,
        .reads_stdin = true,
        .writes_stream = true,
        .threaded = true,
        .description =
            "Structured pruning makes a smaller dense model that any program can run: fewer layers, narrower "
            "feed-forward parts, fewer attention heads, a smaller vocabulary. --sparsity makes single weights zero and "
            "keeps the shapes.\nWhat is removed is chosen by the norms of the weights, or by calibrate's statistics of "
            "this model. Several kinds may be combined. Train the result with distill to recover what was lost.\n"
            "A quantized tensor keeps its type as long as whole rows are kept. It becomes f32 if columns are removed "
            "(ffn.down and attn.o) or single weights become zero.",
        .examples = "rill prune --layers 2 --stats model.stats.rill model.rill -o small.rill\n    keep the 2 layers "
                    "that matter most\n"
                    "rill prune --ffn 64 < model.rill > narrow.rill\n    keep the 64 strongest channels of each layer\n"
                    "rill prune --sparsity 0.5 < model.rill > sparse.rill\n    half of the weights become zero\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
