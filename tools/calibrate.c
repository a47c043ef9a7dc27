/* rill calibrate: collects activation statistics of a model on tokens. */
#include "lib/session/session.h"
#include "lib/stats/stats.h"

static struct session_options how;
static uint64_t limit, rows;
static bool gradients, moments, head_moments;

static const struct cli_option options[] = {
    SESSION_MODEL(how, "FILE", true, "the model to observe"),
    SESSION_PRECISION(how),
    {.name = "max-tokens",
     .type = CLI_U64,
     .to = &limit,
     .arg = "N",
     .fallback = "0",
     .help = "stop after the batch that reaches N tokens; 0: use all"},
    {.name = "gradients",
     .type = CLI_FLAG,
     .to = &gradients,
     .needs = {"!precision=bf16", "!precision=int8"},
     .help = "also collect, from gradients, how much each channel and head matters to the loss, for prune --score "
             "taylor and --target-params; in f32, with a backward pass per sequence and memory for the gradient of "
             "every weight"},
    {.name = "moments",
     .type = CLI_FLAG,
     .to = &moments,
     .help = "also collect the second moments of the inputs of all matrices but those of experts (columns x columns "
             "numbers each, in memory until the end), with which quantize --method gptq needs no data"},
    {.name = "rows",
     .type = CLI_U64,
     .to = &rows,
     .arg = "N",
     .fallback = "0",
     .max = UINT32_MAX,
     .needs = {"moments|head-moments"},
     .help = "for inputs of more than N columns keep the rows of N positions, drawn at random, instead of second "
             "moments, which are then estimated from these; 0: never"},
    {.name = "head-moments",
     .type = CLI_FLAG,
     .to = &head_moments,
     .needs = {"!moments"},
     .help = "the same for the inputs of the head alone, with which quantize --method gptq --data quantizes the head, "
             "too"},
    {0},
};

static int collect(struct cli *c, struct session_data *in, struct model *m, struct stats *s, struct err *e) {
    struct grad_tape *tape = NULL, *recording = NULL;
    struct batch b = {0};
    bool more = true;
    const char *name = stream_reader_name(in->stream);
    int rc = grad_tape_new(&tape, kernel_cpu(), false, model_precision(m), e);
    if (!rc && gradients) rc = model_enable_grad(m, e);
    if (!rc && gradients) rc = grad_tape_new(&recording, kernel_cpu(), true, DT_F32, e);
    cli_progress_begin(c, "tokens", limit);
    while (!rc && more && (!limit || stats_positions(s) < limit)) {
        rc = knowledge_read(in->stream, &in->format, &b, &more, e);
        if (rc || !more) break;
        if (b.head.first_pos || (b.head.flags & BATCH_CONTINUES)) {
            rc = err_set(e, ERR_DATA, "%s: sequences run over several batches (tokenize --context N)", name);
            break;
        }
        struct model_input input = {.n_positions = b.head.n_positions,
                                    .n_seqs = b.head.n_seqs,
                                    .tokens = batch_tokens(&b),
                                    .lengths = batch_lengths(&b)};
        rc = stats_collect(s, m, tape, &input, e);
        if (!rc && gradients) rc = stats_collect_gradients(s, m, recording, &input, e);
        if (rc) err_prefix(e, "%s", name);
        cli_progress(c, stats_positions(s), NULL);
    }
    cli_progress_end(c);
    batch_release(&b);
    grad_tape_free(tape);
    grad_tape_free(recording);
    return rc;
}

/* Prints the layers that prune --layers would remove first; all of them with -v and in the report. */
static int report(struct cli *c, const struct stats *s, struct err *e) {
    enum { FEW = 8 };
    uint32_t ranked[MODEL_MAX_LAYERS], n = stats_config(s)->n_layers;
    char text[FEW * 32] = "";
    cJSON *list = cJSON_AddArrayToObject(cli_report(c), "influence");
    bool ok = list != NULL;
    stats_rank_layers(s, ranked);
    for (uint32_t i = 0; i < n && i < FEW; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%u (%.3g)", i ? ", " : "", ranked[i],
                 stats_influence(s, ranked[i]));
    cli_say(c, "%llu positions; layers of least influence: %s%s", (unsigned long long)stats_positions(s), text,
            n > FEW ? ", ..." : "");
    for (uint32_t i = 0; cli_verbose(c) && i < n; i++)
        cli_say(c, "influence %.5f: layer %u", stats_influence(s, ranked[i]), ranked[i]);
    for (uint32_t i = 0; ok && i < n; i++) ok = cJSON_AddItemToArray(list, cJSON_CreateNumber(stats_influence(s, i)));
    ok = ok && json_put_u64(cli_report(c), "positions", stats_positions(s)) &&
         json_put_u64(cli_report(c), "sequences", stats_sequences(s));
    return ok ? 0 : err_nomem(e, "report");
}

static int run(struct cli *c, struct err *e) {
    struct stream_writer *out;
    struct session_data in = {0};
    struct model *m = NULL;
    struct stats *s = NULL;
    struct stats_moments_wanted wanted = {.rows = rows, .seed = cli_seed(c)};
    wanted.of = moments ? STATS_MOMENTS_ALL : head_moments ? STATS_MOMENTS_HEAD : STATS_MOMENTS_NONE;
    if (gradients) how.precision = "f32"; /* so that auto means f32: the recording tape works on f32 weights */
    int rc = session_load_model(c, &how, session_weight_format(&how), &m, NULL, e);
    if (!rc) rc = session_open_data(c, cli_input_path(c, 0), "tokens", STREAM_ANY, m, &in, e);
    if (!rc) rc = cli_open_output(c, &out, e);
    if (!rc) rc = stats_new(&s, &m->config, m->vocab ? &m->vocab_digest : NULL, e);
    if (!rc) rc = stats_want_moments(s, &wanted, e);
    if (!rc) rc = collect(c, &in, m, s, e);
    if (!rc && stats_positions(s) == 0) rc = err_set(e, ERR_DATA, "%s: no tokens", stream_reader_name(in.stream));
    if (!rc) rc = stats_write(s, out, e);
    if (!rc) rc = cli_close_output(c, e);
    if (!rc) rc = report(c, s, e);
    stats_free(s);
    model_free(m);
    session_data_release(&in);
    return rc;
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "calibrate",
        .summary = "collect activation statistics of a model on calibration data",
        .operands = "[TOKENS]",
        .max_operands = 1,
        .reads_stdin = true,
        .writes_stream = true,
        .threaded = true,
        .seeded = true,
        .seed_needs = {"rows"},
        .description =
            "Runs a model over a token stream and collects statistics of the inputs of its matrices: |x|, x^2 and "
            "per-sequence means of every channel, the block influence of every layer (how much it changes the "
            "direction of the residual stream), and the angle between the input of each layer and the output of "
            "another. The layers with the least influence are named on standard error; -v lists all of them.\n\nThe "
            "result is for prune --stats and quantize --stats. Statistics are sums: `cat a.stats.rill b.stats.rill` "
            "gives the statistics of both corpora together.",
        .examples = "rill calibrate -m model.rill tokens.rill -o model.stats.rill\n"
                    "    statistics of model.rill on tokens.rill\n"
                    "rill calibrate -m model.rill --gradients tokens.rill -o model.stats.rill\n"
                    "    also for prune --score taylor\n"
                    "rill calibrate -m model.rill --head-moments tokens.rill -o head.stats.rill\n"
                    "    also for the head in quantize --method gptq\n"
                    "rill calibrate -m model.rill --moments tokens.rill -o moments.stats.rill\n"
                    "    also for all matrices, so that GPTQ needs no data\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
