/* rill prune: takes weights out of a model, in one pass. */
#include "lib/prune/prune.h"
#include "lib/cli/cli.h"
#include "lib/formats/formats.h"
#include "lib/session/session.h"

static double sparsity;
static uint64_t min_count;
static struct cli_amount layers, experts, ffn, heads, kv_heads, target_params;
static double target_speedup;
static const char *drop, *score, *layer_score, *stats_path, *vocab_path, *pattern, *method, *data_path;
static struct session_options how;
static uint64_t max_tokens;
static double damp;
static bool reconstruct;
static struct cli_list rates;
static bool prune_head, dry_run, compensate;
static const char *plan_path;

static const struct cli_option options[] = {
    {.name = "sparsity",
     .type = CLI_SHARE,
     .to = &sparsity,
     .arg = "SHARE",
     .fallback = "0",
     .min = 0,
     .max = 0.999999,
     .help = "make this share of the weights of each matrix of the layers zero (0.5, or 50%)"},
    {.name = "pattern",
     .type = CLI_STRING,
     .to = &pattern,
     .arg = "N:M",
     .needs = {"!sparsity"},
     .help = "keep N of each M consecutive weights of a row instead (2:4, 4:8), and make the others zero"},
    {.name = "rate",
     .type = CLI_LIST,
     .to = &rates,
     .arg = "REGEX=S",
     .help = "how sparse the matrices become whose name, Rill's or GGUF's, matches the regular expression: a share, 0, "
             "or N:M; the last match wins"},
    {.name = "method",
     .type = CLI_CHOICE,
     .to = &method,
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
     .to = &data_path,
     .arg = "TOKENS",
     .completes_files = true,
     .needs = {"!experts", "layer-score=divergence|!dry-run", "!vocab",
               "method=wanda|method=sparsegpt|method=alps|reconstruct|layer-score=divergence",
               "reconstruct|layer-score=divergence|!layers", "reconstruct|!drop-layers", "reconstruct|!ffn",
               "reconstruct|!heads", "reconstruct|!kv-heads"},
     .help =
         "prune layer by layer, with what these tokens become in the layers that are pruned already: text like that "
         "which the model will see, 128 sequences of 512 for a start"},
    {.name = "max-tokens",
     .type = CLI_U64,
     .to = &max_tokens,
     .arg = "N",
     .fallback = "0",
     .needs = {"data"},
     .help = "take whole sequences of --data up to the one that reaches N positions; 0: all"},
    {.name = "reconstruct",
     .type = CLI_FLAG,
     .to = &reconstruct,
     .needs = {"data"},
     .help = "fit the weights that stay, by least squares: each matrix to what it gave in the model as it was; where "
             "layers, heads or channels go, attn.o and ffn.down, to what the layers gave; takes twice as long"},
    {.name = "damp",
     .type = CLI_F64,
     .to = &damp,
     .arg = "SHARE",
     .fallback = "0.01",
     .max = 1,
     .needs = {"method=sparsegpt|method=alps|reconstruct"},
     .help = "what is added to the diagonal of the second moments of --data, as a share of its mean"},
    SESSION_DATA_PRECISION(how, "data"),
    {.name = "sparsify-head",
     .type = CLI_FLAG,
     .to = &prune_head,
     .needs = {"sparsity|pattern"},
     .help = "also the embedding and the output matrix"},
    {.name = "plan",
     .type = CLI_STRING,
     .to = &plan_path,
     .arg = "FILE",
     .completes_files = true,
     .needs = {"!sparsity", "!pattern", "!rate", "!layers", "!drop-layers", "!experts", "!ffn", "!heads", "!kv-heads"},
     .help =
         "take what stays of each layer, and how sparse each matrix becomes, from this file, as --dry-run prints it"},
    {.name = "dry-run",
     .type = CLI_FLAG,
     .to = &dry_run,
     .help =
         "print the plan and stop: the layers that stay with their widths, and the sparsity of each matrix, as text "
         "for --plan, edited or not"},
    {.name = "target-params",
     .type = CLI_AMOUNT,
     .to = &target_params,
     .arg = "N",
     .fallback = "0",
     .max = 1e15,
     .needs = {"stats", "!layers", "!drop-layers", "!experts", "!ffn", "!heads", "!kv-heads", "!plan"},
     .help = "prune layers, heads and channels to at most N parameters, or a share of them (60%): to that shape, alike "
             "in all layers, whose parts that go count least for the loss, by --stats with gradients, among those that "
             "load wherever the model does; --dry-run says which; 0: as the options below say"},
    {.name = "target-speedup",
     .type = CLI_F64,
     .to = &target_speedup,
     .arg = "S",
     .fallback = "0",
     .max = 1e6,
     .needs = {"stats", "!target-params", "!layers", "!drop-layers", "!experts", "!ffn", "!heads", "!kv-heads",
               "!plan"},
     .help = "the same to a model that takes S times fewer products of weights for a token (attention's own aside)"},
    {.name = "layers",
     .type = CLI_AMOUNT,
     .to = &layers,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_LAYERS,
     .needs = {"layer-score=divergence|stats"},
     .help = "keep N layers, or a share of them (67%), by --layer-score; 0: keep all"},
    {.name = "layer-score",
     .type = CLI_CHOICE,
     .to = &layer_score,
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
     .to = &drop,
     .arg = "LIST",
     .needs = {"!layers"},
     .help = "drop these layers instead: numbers from 0 and ranges, 3,10-14"},
    {.name = "experts",
     .type = CLI_AMOUNT,
     .to = &experts,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_EXPERTS,
     .needs = {"!experts|stats"},
     .help = "keep N experts of each layer that has some, or a share of them: those go that add least to the positions "
             "that take them; 0: keep all"},
    {.name = "ffn",
     .type = CLI_AMOUNT,
     .to = &ffn,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_DIM,
     .help = "keep the N best feed-forward channels of each layer and of each expert, or a share of them, rounded to a "
             "multiple of 256 or 32, the blocks of quantized types; 0: keep all"},
    {.name = "kv-heads",
     .type = CLI_AMOUNT,
     .to = &kv_heads,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_DIM,
     .help =
         "keep the N best key/value heads of each layer, each with its query heads, or a share of them; 0: keep all"},
    {.name = "heads",
     .type = CLI_AMOUNT,
     .to = &heads,
     .arg = "N",
     .fallback = "0",
     .max = MODEL_MAX_DIM,
     .help = "keep N query heads of each layer, the best of each key/value head that stays and as many of each, or a "
             "share of them; 0: keep all"},
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
     .choices = "auto|weights|activations|taylor|fluctuation|cost",
     .fallback = "auto",
     .needs = {"ffn|heads|kv-heads|plan|target-params|target-speedup", "!score=activations|stats",
               "!score=taylor|stats", "!score=fluctuation|stats", "!score=cost|reconstruct"},
     .help = "how channels and heads are ranked: by the norm of their weights; by --stats: their activations, what "
             "gradients say the loss would change (taylor), or the variance of what they give (fluctuation); or with "
             "--reconstruct by the error that is left when the others make up for them (cost); auto: cost, "
             "activations or weights, the first that has what it needs"},
    {.name = "compensate",
     .type = CLI_FLAG,
     .to = &compensate,
     .needs = {"ffn|heads|kv-heads|plan|target-params|target-speedup", "stats", "!data"},
     .help =
         "biases of attn.o and ffn.down take over what the channels and heads that go gave in the mean, by --stats; "
         "refused where a model has none"},
    {.name = "stats",
     .type = CLI_STRING,
     .to = &stats_path,
     .arg = "FILE",
     .needs = {"layers|experts|ffn|heads|kv-heads|plan|method=wanda|target-params|target-speedup",
               "layers|experts|method=wanda|compensate|target-params|target-speedup|!score=weights"},
     .completes_files = true,
     .help = "activation statistics of this model (rill calibrate)"},
    {0},
};

static int report_tensor(void *ctx, const struct prune_tensor_report *t, struct err *e) {
    struct cli *c = ctx;
    if (t->zeros) log_line(LOG_INFO, "%s: %.4f of the weights are zero", t->name, (double)t->zeros / (double)t->elems);
    if (t->has_error) log_line(LOG_INFO, "%s: squared error of its outputs %.4g", t->name, t->output_error);
    return prune_tensor_report_put(t, cJSON_GetObjectItemCaseSensitive(cli_report(c), "tensors"), e);
}

static int report(struct cli *c, const struct prune_report *r, struct err *e) {
    char sparse[64] = "";
    if (r->matrix_weights)
        snprintf(sparse, sizeof sparse, ", %.1f%% of the weights of sparse matrices are zero",
                 100 * (double)r->zeros / (double)r->matrix_weights);
    cli_say(c, "%.2f M parameters of %.2f M, %u layers of %u%s", (double)r->parameters_after / 1e6,
            (double)r->parameters_before / 1e6, r->after.n_layers, r->before.n_layers, sparse);
    return prune_report_put(r, cli_report(c), e);
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

static int parse_rates(struct prune_options *o, struct err *e) {
    struct prune_rule *parsed = mem_array(rates.n ? rates.n : 1, sizeof *parsed, e);
    if (!parsed) return e->code;
    o->rules = parsed;
    o->n_rules = rates.n;
    for (size_t i = 0; i < rates.n; i++)
        if (prune_rule_parse(rates.items[i], &parsed[i], e)) return err_prefix(e, "--rate");
    return 0;
}

static bool goes_layer_by_layer(void) {
    return data_path && (reconstruct || strcmp(method, "magnitude") != 0);
}

static int fill_options(struct prune_options *o, uint32_t *drop_list, const struct stats *stats,
                        const struct prune_tokens *tokens, struct err *e) {
    *o = (struct prune_options){.sparsity = {.share = sparsity},
                                .prune_head = prune_head,
                                .calibrated = goes_layer_by_layer(),
                                .reconstruct = reconstruct,
                                .damp = damp,
                                .target_params = target_params.n,
                                .target_share = target_params.share,
                                .target_speedup = target_speedup,
                                .compensate = compensate,
                                .foreign_name = target_tensor_name,
                                .tokens = reads_tokens() ? tokens : NULL,
                                .padding = vocab_path && !reads_tokens(),
                                .vocab_min_count = min_count,
                                .stats = stats,
                                .drop_layers = drop_list,
                                .layers = amount(&layers),
                                .experts = amount(&experts),
                                .ffn = amount(&ffn),
                                .heads = amount(&heads),
                                .kv_heads = amount(&kv_heads)};
    o->score = prune_score_parse(score, stats != NULL, reconstruct);
    o->layer_score = strcmp(layer_score, "angular") ? PRUNE_LAYERS_BY_INFLUENCE : PRUNE_LAYERS_BY_ANGLE;
    prune_method_parse(method, &o->method);
    int rc = drop ? prune_layers_parse(drop, drop_list, &o->n_drop_layers, e) : 0;
    if (rc) return err_prefix(e, "--drop-layers");
    if (pattern && prune_sparsity_parse(pattern, &o->sparsity, e)) return err_prefix(e, "--pattern");
    if (pattern && !o->sparsity.m) return err_set(e, ERR_USAGE, "--pattern: '%s' is no N:M, such as 2:4", pattern);
    if (!plan_path && sparsity <= 0 && !pattern && !rates.n && !asked(&target_params) && target_speedup <= 0 &&
        !asked(&layers) && !drop && !asked(&experts) && !asked(&ffn) && !asked(&heads) && !asked(&kv_heads) &&
        !vocab_path)
        return err_set(e, ERR_USAGE,
                       "nothing to prune: give --sparsity, --pattern, --rate, --plan, --target-params, "
                       "--target-speedup, --layers, --drop-layers, --experts, "
                       "--ffn, --heads, --kv-heads or --vocab");
    return parse_rates(o, e);
}

static void say(void *c, const char *message) {
    cli_say(c, "%s", message);
}

static void say_targets(void *c, const struct model_config *before, const struct model_config *after) {
    target_warnings(before, after, say, c);
}

/* transformers and llama.cpp, each if it loads the model before. */
static bool loads(void *c, const struct model_config *before, const struct model_config *after) {
    struct err e;
    (void)c;
    for (enum model_target t = 0; t < TARGET_COUNT; t++)
        if (!target_check(t, before, &e) && target_check(t, after, &e)) return false;
    return true;
}

static void layer_done(void *c, uint32_t layers_done) {
    cli_progress(c, layers_done, NULL);
}

/* Their numbers into the list of what to drop. */
static int choose_layers(struct cli *c, struct prune_options *o, uint32_t *drop_list, struct err *e) {
    static double kl[MODEL_MAX_LAYERS];
    struct session_tokens data = {0};
    struct model *m = NULL;
    struct grad_tape *scratch = NULL;
    struct stream_reader *in;
    struct prune_divergence d = {.in = &data.in, .progress = layer_done, .progress_ctx = c};
    if (!cli_input_path(c, 0) || !strcmp(cli_input_path(c, 0), "-"))
        return err_set(e, ERR_USAGE, "--layer-score divergence reads the model twice: give it as a file");
    int rc = cli_open_stream(c, cli_input_path(c, 0), "model", STREAM_MODEL, &in, e);
    if (!rc) rc = model_load(&m, kernel_cpu(), in, session_weight_format(&how), e);
    if (!rc) rc = session_read_tokens(c, data_path, "data", m, max_tokens, &data, e);
    if (!rc) rc = grad_tape_new(&scratch, kernel_cpu(), false, model_precision(m), e);
    if (!rc) {
        uint32_t n = m->config.n_layers, keep = prune_amount_of(&o->layers, n);
        d.model = m, d.scratch = scratch;
        cli_progress_begin(c, "candidates", (uint64_t)(n - keep) * (n + keep + 1) / 2);
        if (keep < n) rc = prune_layers_by_divergence(&d, n - keep, drop_list, kl, e);
        cli_progress_end(c);
        for (uint32_t i = 0; !rc && i < n - keep; i++)
            cli_say(c, "without layer %u too: divergence %.5f", drop_list[i], kl[i]);
        o->drop_layers = drop_list, o->n_drop_layers = n - keep, o->layers = (struct prune_amount){0};
    }
    grad_tape_free(scratch);
    session_tokens_release(&data);
    model_free(m);
    return rc;
}

static int with_data(struct cli *c, struct stream_reader *in, struct stream_writer *out, const struct prune_options *o,
                     struct prune_report *r, struct err *e) {
    struct session_tokens data = {0};
    struct prune_calibration k = {.in = &data.in, .n = 1, .progress = layer_done, .progress_ctx = c};
    int rc = model_layerwise_new(&k.model, kernel_cpu(), in, WEIGHTS_F32, NULL, NULL, e);
    if (!rc) rc = session_read_tokens(c, data_path, "data", model_layerwise_model(k.model), max_tokens, &data, e);
    if (!rc) rc = grad_tape_new(&k.scratch, kernel_cpu(), false, session_precision(&how), e);
    if (!rc) cli_progress_begin(c, "layers", model_layerwise_model(k.model)->config.n_layers);
    if (!rc) rc = prune_layerwise(&k, out, o, r, e);
    cli_progress_end(c);
    grad_tape_free(k.scratch);
    model_layerwise_free(k.model);
    session_tokens_release(&data);
    return rc;
}

static int print_plan(struct cli *c, struct stream_reader *in, const struct prune_options *o, struct prune_report *r,
                      struct err *e) {
    struct buf plan = {0};
    FILE *out;
    int rc = cli_text(c, &out, e);
    if (!rc) rc = prune_dry_run(in, o, &plan, r, e);
    if (!rc) fwrite(plan.data, 1, plan.len, out);
    buf_release(&plan);
    return rc;
}

static int prune(struct cli *c, struct stream_reader *in, const struct prune_options *o, struct prune_report *r,
                 struct err *e) {
    struct stream_writer *out;
    int rc = cli_open_output(c, &out, e);
    if (!rc && !cJSON_AddArrayToObject(cli_report(c), "tensors")) rc = err_nomem(e, "report");
    if (!rc) rc = goes_layer_by_layer() ? with_data(c, in, out, o, r, e) : prune_stream(in, out, o, r, e);
    return rc ? rc : cli_close_output(c, e);
}

/* As a string. */
static int read_plan(struct cli *c, struct buf *text, struct prune_options *o, struct err *e) {
    enum { MOST = 1 << 28 };
    struct cli_file *f;
    int rc = cli_open_file(c, plan_path, "plan", &f, e);
    if (!rc) rc = cli_file_read_all(f, MOST, text, e);
    if (!rc && (text->len > MOST || (text->len && memchr(text->data, 0, text->len))))
        rc = err_set(e, ERR_DATA, "%s: no text of at most %d bytes", plan_path, MOST);
    if (!rc) rc = buf_append(text, "", 1, e);
    o->plan = (const char *)text->data, o->plan_name = plan_path;
    return rc;
}

static int run(struct cli *c, struct err *e) {
    static uint32_t drop_list[MODEL_MAX_LAYERS];
    struct stream_reader *in, *stats_in, *tokens_in;
    struct prune_options o = {0};
    struct buf plan = {0};
    struct prune_report r = {0};
    struct stats *stats = NULL;
    struct prune_tokens tokens = {0};
    int rc = 0;
    if (stats_path) rc = cli_open_stream(c, stats_path, "stats", STREAM_STATS, &stats_in, e);
    if (!rc && stats_path) rc = stats_load(&stats, stats_in, e);
    if (!rc && reads_tokens()) rc = cli_open_stream(c, vocab_path, "tokens", STREAM_ANY, &tokens_in, e);
    if (!rc && reads_tokens()) rc = prune_tokens_count(&tokens, tokens_in, e);
    if (!rc) rc = fill_options(&o, drop_list, stats, &tokens, e);
    if (!rc && plan_path) rc = read_plan(c, &plan, &o, e);
    if (!rc && !strcmp(layer_score, "divergence")) rc = choose_layers(c, &o, drop_list, e);
    o.warn = say, o.warn_ctx = c, o.shape = say_targets, o.loads = loads, o.sparse = report_tensor, o.sparse_ctx = c;
    if (!rc) rc = cli_open_stream(c, cli_input_path(c, 0), "model", STREAM_MODEL, &in, e);
    if (!rc) rc = dry_run ? print_plan(c, in, &o, &r, e) : prune(c, in, &o, &r, e);
    if (!rc) rc = report(c, &r, e);
    buf_release(&plan);
    prune_report_release(&r);
    prune_tokens_release(&tokens);
    stats_free(stats);
    mem_free((void *)o.rules);
    return rc;
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
        .description =
            "Structured pruning makes a smaller dense model that any program can run: fewer layers, narrower "
            "feed-forward parts, fewer attention heads, a smaller vocabulary. --sparsity, --pattern and --rate make "
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
            "rill prune --ffn 64 --rate attn=2:4 --dry-run model.rill -o plan.txt\n    what would be done\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
