/* Runs prune, from the options to the written model or plan. */
#include <string.h>

#include "lib/compress/compress_internal.h"

struct pruning {
    struct cli *c;
    const struct compress_prune_options *o;
    struct stream_reader *in;
    struct prune_options how; /* for lib/prune; points to the fields below */
    struct session_file model;
    struct compress_sizes sizes;
    struct compress_calibration of;
    struct prune_tokens tokens;
    struct prune_rule *rules;
    uint32_t drop[MODEL_MAX_LAYERS];
    double layer_divergence[MODEL_MAX_LAYERS];
    struct buf plan; /* a string */
    struct prune_allocation allocation;
    struct prune_candidates *candidates;
    struct prune_report report;
};

/* ---- messages and report ----------------------------------------------------------------------------------------- */

static int report_tensor(void *c, const struct prune_tensor_report *t, struct err *e) {
    if (t->zeros) log_line(LOG_INFO, "%s: %.4f of the weights are zero", t->name, (double)t->zeros / (double)t->elems);
    if (t->rank) log_line(LOG_INFO, "%s: low-rank factors of rank %u", t->name, t->rank);
    if (t->has_error) log_line(LOG_INFO, "%s: squared error of its outputs %.4g", t->name, t->output_error);
    return prune_tensor_report_put(t, cJSON_GetObjectItemCaseSensitive(cli_report(c), "tensors"), e);
}

static void say(void *c, const char *message) {
    cli_say(c, "%s", message);
}

static void say_targets(void *c, const struct model_config *before, const struct model_config *after) {
    target_warnings(before, after, say, c);
}

/* Checks transformers and llama.cpp, each only if it loads the model before. */
static bool loads(void *c, const struct model_config *before, const struct model_config *after) {
    struct err e;
    (void)c;
    for (enum model_target t = 0; t < TARGET_COUNT; t++)
        if (!target_check(t, before, &e) && target_check(t, after, &e)) return false;
    return true;
}

static int report(const struct pruning *k, struct err *e) {
    const struct prune_report *r = &k->report;
    char sparse[128] = "", factored[64] = "", gone[PRUNE_LAYERS_TEXT];
    prune_layers_text(r, gone);
    if (r->matrix_weights)
        snprintf(sparse, sizeof sparse, ", %llu zeros in sparse matrices, %.1f%% of their weights",
                 (unsigned long long)r->zeros, 100 * (double)r->zeros / (double)r->matrix_weights);
    if (r->n_factored)
        snprintf(factored, sizeof factored, ", %llu matrices in low-rank factors", (unsigned long long)r->n_factored);
    cli_say(k->c, "%.2f M parameters of %.2f M, %u layer%s of %u%s%s%s%s%s", (double)r->parameters_after / 1e6,
            (double)r->parameters_before / 1e6, r->after.n_layers, r->after.n_layers == 1 ? "" : "s",
            r->before.n_layers, *gone ? " (without " : "", gone, *gone ? ")" : "", sparse, factored);
    return prune_report_put(r, cli_report(k->c), e);
}

/* ---- options ----------------------------------------------------------------------------------------------------- */

static struct prune_amount amount(const struct cli_amount *a) {
    return (struct prune_amount){(uint32_t)a->n, a->share};
}

static bool asked(const struct cli_amount *a) {
    return a->n || a->share > 0;
}

static bool asks_for_nothing(const struct compress_prune_options *o) {
    return !o->plan && o->sparsity <= 0 && !o->pattern && !o->rates.n && !asked(&o->target_params) &&
           o->target_speedup <= 0 && !o->target_size && !asked(&o->layers) && !o->drop_layers && !asked(&o->experts) &&
           !asked(&o->ffn) && !asked(&o->hidden) && !asked(&o->heads) && !asked(&o->kv_heads) && !o->vocab && !o->merge;
}

/* --vocab names a stream, except "padding", which needs none. */
static bool reads_tokens(const struct compress_prune_options *o) {
    return o->vocab && strcmp(o->vocab, "padding") != 0;
}

/* An importance matrix suffices for the norms of Wanda and for allocating sparsity by them, but for nothing else. */
static int check_imatrix(const struct compress_prune_options *o, struct err *e) {
    bool widths = asked(&o->ffn) || asked(&o->heads) || asked(&o->kv_heads);
    const struct {
        bool asked;
        const char *what, *use;
    } needs[] = {
        {asked(&o->layers) && strcmp(o->layer_score, "divergence"), "how much each layer changes its input",
         "--layers"},
        {asked(&o->experts), "what each expert adds", "--experts"},
        {asked(&o->hidden), "activations of each sequence", "--hidden"},
        {!strcmp(o->score, "activations") || (widths && !strcmp(o->score, "auto") && !o->reconstruct),
         "activations of each sequence", "ranking channels and heads by activations"},
        {!strcmp(o->score, "fluctuation"), "mean values", "--score fluctuation"},
        {o->compensate, "mean values", "--compensate"},
        {!strcmp(o->score, "taylor"), "gradients", "--score taylor"},
        {asked(&o->target_params) || o->target_speedup > 0 || o->target_size, "gradients", "a target"},
        {strcmp(o->method, "wanda") && !strcmp(o->allocate, "uniform"), "more", "anything but wanda"},
    };
    for (size_t i = 0; i < COUNT_OF(needs); i++)
        if (needs[i].asked) return compress_imatrix_lacks(o->stats, needs[i].what, needs[i].use, e);
    return 0;
}

static int read_streams(struct pruning *k, struct err *e) {
    const struct compress_prune_options *o = k->o;
    struct stream_reader *in;
    int rc = o->stats ? compress_read_calibration(&k->of, k->c, o->stats, e) : 0;
    if (!rc && k->of.imatrix) rc = check_imatrix(o, e);
    if (rc || !reads_tokens(o)) return rc;
    rc = cli_open_stream(k->c, o->vocab, "tokens", STREAM_ANY, &in, e);
    return rc ? rc : prune_tokens_count(&k->tokens, in, e);
}

static int parse_rates(struct pruning *k, struct err *e) {
    const struct cli_list *list = &k->o->rates;
    k->rules = mem_array(list->n ? list->n : 1, sizeof *k->rules, e);
    if (!k->rules) return e->code;
    k->how.rules = k->rules;
    k->how.n_rules = list->n;
    for (size_t i = 0; i < list->n; i++)
        if (prune_rule_parse(list->items[i], &k->rules[i], e)) return err_prefix(e, "--rate");
    return 0;
}

static int parse_texts(struct pruning *k, struct err *e) {
    const struct compress_prune_options *o = k->o;
    struct prune_options *how = &k->how;
    prune_method_parse(o->method, &how->method);
    how->layer_score = strcmp(o->layer_score, "angular") ? PRUNE_LAYERS_BY_INFLUENCE : PRUNE_LAYERS_BY_ANGLE;
    if (o->drop_layers && prune_layers_parse(o->drop_layers, k->drop, &how->n_drop_layers, e))
        return err_prefix(e, "--drop-layers");
    if (o->pattern && prune_sparsity_parse(o->pattern, &how->sparsity, e)) return err_prefix(e, "--pattern");
    if (o->pattern && !how->sparsity.m)
        return err_set(e, ERR_USAGE, "--pattern: '%s' is not N:M, such as 2:4", o->pattern);
    if (asks_for_nothing(o))
        return err_set(
            e, ERR_USAGE,
            "nothing to prune: give --sparsity, --pattern, --rate, --plan, --target-params, --target-speedup, "
            "--target-size, --layers, --drop-layers, --experts, --ffn, --heads, --kv-heads, --hidden, --vocab or "
            "--merge");
    return parse_rates(k, e);
}

/* Reads the plan as a string. */
static bool goes_layer_by_layer(const struct compress_prune_options *o) {
    return o->data && (o->reconstruct || strcmp(o->method, "magnitude") != 0);
}

static int read_settings(struct pruning *k, struct err *e) {
    const struct compress_prune_options *o = k->o;
    int rc = read_streams(k, e);
    if (rc) return rc;
    k->how = (struct prune_options){.sparsity = {.share = o->sparsity},
                                    .prune_head = o->prune_head,
                                    .calibrated = goes_layer_by_layer(o),
                                    .reconstruct = o->reconstruct,
                                    .merge = o->merge,
                                    .damp = o->damp,
                                    .foreign_name = target_tensor_name,
                                    .tokens = reads_tokens(o) ? &k->tokens : NULL,
                                    .padding = o->vocab && !reads_tokens(o),
                                    .vocab_min_count = o->vocab_min_count,
                                    .vocab_size = (uint32_t)o->vocab_size,
                                    .score = prune_score_parse(o->score, k->of.stats != NULL, o->reconstruct),
                                    .compensate = o->compensate,
                                    .target_params = o->target_params.n,
                                    .target_share = o->target_params.share,
                                    .target_speedup = o->target_speedup,
                                    .target_size = o->target_size,
                                    .target_uneven = o->per_layer,
                                    .bytes = compress_bytes,
                                    .bytes_ctx = &k->sizes,
                                    .loads = loads,
                                    .stats = k->of.stats,
                                    .squares = compress_squares(&k->of),
                                    .drop_layers = k->drop,
                                    .layers = amount(&o->layers),
                                    .experts = amount(&o->experts),
                                    .ffn = amount(&o->ffn),
                                    .hidden = amount(&o->hidden),
                                    .heads = amount(&o->heads),
                                    .kv_heads = amount(&o->kv_heads),
                                    .warn = say,
                                    .warn_ctx = k->c,
                                    .shape = say_targets,
                                    .sparse = report_tensor,
                                    .sparse_ctx = k->c};
    k->sizes = (struct compress_sizes){.c = k->c, .type = o->target_type, .floats = k->how.calibrated};
    rc = parse_texts(k, e);
    if (!rc && o->target_size) rc = compress_sizes_begin(&k->sizes, &k->model, e);
    if (!rc && o->plan) rc = compress_read_plan(k->c, o->plan, &k->plan, e);
    if (!rc && o->plan) k->how.plan = (const char *)k->plan.data, k->how.plan_name = o->plan;
    return rc;
}

/* ---- running ----------------------------------------------------------------------------------------------------- */

static int with_data(struct pruning *k, struct stream_writer *out, struct err *e) {
    const struct compress_prune_options *o = k->o;
    struct compress_data d = {0};
    int rc = compress_data_open(&d, k->c, k->in, o->data, o->max_tokens, &o->how, e);
    struct prune_calibration p = {.model = d.model,
                                  .scratch = d.scratch,
                                  .in = &d.tokens.in,
                                  .n = 1,
                                  .progress = compress_advance,
                                  .progress_ctx = k->c};
    if (!rc) cli_progress_begin(k->c, "layers", model_layerwise_model(d.model)->config.n_layers);
    if (!rc) rc = prune_layerwise(&p, out, &k->how, &k->report, e);
    cli_progress_end(k->c);
    compress_data_release(&d);
    return rc;
}

/* Chooses layers by divergence and stores their numbers in the list of layers to drop. */
static int drop_layers(struct pruning *k, struct model *m, struct grad_tape *scratch, const struct model_input *in,
                       struct err *e) {
    uint32_t n = m->config.n_layers, keep = prune_amount_of(&k->how.layers, n);
    struct prune_divergence d = {
        .model = m, .scratch = scratch, .in = in, .progress = compress_advance, .progress_ctx = k->c};
    double *kl = mem_array(n, sizeof *kl, e);
    if (!kl) return e->code;
    uint32_t go = keep < n ? n - keep : 0;
    cli_progress_begin(k->c, "layers that go", go);
    int rc = go ? prune_layers_by_divergence(&d, go, k->drop, kl, e) : 0;
    cli_progress_end(k->c);
    for (uint32_t i = 0; !rc && i < go; i++) cli_say(k->c, "without layer %u too: divergence %.5f", k->drop[i], kl[i]);
    mem_free(kl);
    k->how.n_drop_layers = go;
    k->how.layers = (struct prune_amount){0};
    return rc;
}

static int choose_layers(struct pruning *k, struct err *e) {
    const struct compress_prune_options *o = k->o;
    struct compress_judged j = {0};
    int rc = compress_judged_open(&j, k->c, &k->model, "--layer-score divergence", o->data, o->max_tokens, &o->how,
                                  session_weight_format(&o->how), e);
    if (!rc) rc = drop_layers(k, j.model, j.scratch, &j.tokens.in, e);
    compress_judged_release(&j);
    return rc;
}

static int print_plan(struct pruning *k, struct err *e) {
    struct buf plan = {0};
    FILE *out;
    int rc = cli_text(k->c, &out, e);
    if (!rc) rc = prune_dry_run(k->in, &k->how, &plan, &k->report, e);
    if (!rc) fwrite(plan.data, 1, plan.len, out);
    buf_release(&plan);
    return rc;
}

static int write_pruned(struct pruning *k, struct err *e) {
    struct stream_writer *out;
    int rc = cli_open_output(k->c, &out, e);
    if (!rc && !cJSON_AddArrayToObject(cli_report(k->c), "tensors")) rc = err_nomem(e, "report");
    if (!rc) rc = goes_layer_by_layer(k->o) ? with_data(k, out, e) : prune_stream(k->in, out, &k->how, &k->report, e);
    return rc ? rc : cli_close_output(k->c, e);
}

static int choose_shape(struct pruning *k, struct err *e) {
    struct compress_judging j = {.c = k->c, .options = k->o, .prune = &k->how, .model = &k->model};
    if (!k->o->per_layer) k->how.layer_divergence = j.layer_divergence = k->layer_divergence;
    int rc = compress_judge_shapes(&j, &k->candidates, e);
    if (!rc) k->how.target_shape = prune_candidates_best(k->candidates);
    return rc;
}

int compress_prune(struct cli *c, const struct compress_prune_options *o, struct err *e) {
    struct pruning k = {.c = c, .o = o};
    session_file_init(&k.model, cli_input_path(c, 0));
    int rc = read_settings(&k, e);
    if (!rc && o->candidates) rc = choose_shape(&k, e);
    if (!rc && !strcmp(o->layer_score, "divergence")) rc = choose_layers(&k, e);
    if (!rc && strcmp(o->allocate, "uniform") != 0) {
        rc = compress_allocate(&k.allocation, c, &k.model, o, &k.of, e);
        k.how.allocation = &k.allocation;
    }
    if (!rc) rc = cli_open_stream(c, cli_input_path(c, 0), "model", STREAM_MODEL, &k.in, e);
    if (!rc) rc = o->dry_run ? print_plan(&k, e) : write_pruned(&k, e);
    if (!rc) rc = report(&k, e);
    prune_report_release(&k.report);
    prune_allocation_release(&k.allocation);
    prune_candidates_free(k.candidates);
    prune_tokens_release(&k.tokens);
    compress_calibration_release(&k.of);
    compress_sizes_release(&k.sizes);
    session_file_release(&k.model);
    buf_release(&k.plan);
    mem_free(k.rules);
    return rc;
}
