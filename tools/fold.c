/* rill fold: rewrites a model's weights without changing what it computes. */
#include <math.h>
#include <string.h>

#include "lib/cli/cli.h"
#include "lib/fold/fold.h"
#include "lib/formats/formats.h"
#include "lib/session/session.h"

static const char *method, *type, *stats_path, *data_path;
static struct session_options how;
static uint64_t max_tokens;
static double alpha;

static const char *const methods[] = {[FOLD_AWQ] = "awq", [FOLD_SMOOTH] = "smooth", [FOLD_R1] = "r1", [FOLD_R2] = "r2"};

static const struct cli_option options[] = {
    {.name = "method",
     .type = CLI_CHOICE,
     .to = &method,
     .choices = "awq|smooth|r1|r2",
     .required = true,
     .help = "awq: channels that activations are large in get larger weights, by the power of the mean activation that "
             "leaves the least error when the weights are rounded to --type; smooth: the range of activations is "
             "shared with the weights, for products that round both (SmoothQuant); r1: the residual stream is rotated "
             "by a random Hadamard matrix, which spreads outliers over all channels; r2: the values of each head are"},
    {.name = "type",
     .type = CLI_STRING,
     .to = &type,
     .arg = "TYPE",
     .needs = {"method=awq"},
     .help = "the file type that the model will be quantized to, as quantize has it"},
    {.name = "stats",
     .type = CLI_STRING,
     .to = &stats_path,
     .arg = "FILE",
     .completes_files = true,
     .needs = {"method=awq"},
     .help = "what calibrate saw of this model: means of activations, and of their squares, by which errors are "
             "weighed"},
    {.name = "data",
     .type = CLI_STRING,
     .to = &data_path,
     .arg = "TOKENS",
     .completes_files = true,
     .needs = {"method=awq|method=smooth", "!stats"},
     .help = "look at these tokens instead: awq then knows how activations go together, smooth how large they get"},
    {.name = "max-tokens",
     .type = CLI_U64,
     .to = &max_tokens,
     .arg = "N",
     .fallback = "0",
     .needs = {"data"},
     .help = "take whole sequences of --data up to the one that reaches N positions; 0: all"},
    SESSION_DATA_PRECISION(how, "data"),
    {.name = "alpha",
     .type = CLI_F64,
     .to = &alpha,
     .arg = "SHARE",
     .fallback = "0.5",
     .min = 0,
     .max = 1,
     .needs = {"method=smooth"},
     .help = "how much of the range of activations goes over into the weights"},
    {0},
};

/* ---- report ------------------------------------------------------------------------------------------------------ */

struct told {
    struct cli *c;
    size_t folded, left_out;
    double error; /* sum of logarithms */
    char why[96]; /* of the first that was left out */
};

static int report_pair(void *ctx, const struct fold_report *r, struct err *e) {
    struct told *t = ctx;
    cJSON *list = cJSON_GetObjectItemCaseSensitive(cli_report(t->c), "pairs"), *o = cJSON_CreateObject();
    bool ok = o && json_put_u64(o, "layer", r->layer) && json_put_u64(o, "expert", r->expert) &&
              json_put_str(o, "point", r->point);
    if (r->obstacle)
        ok = ok && json_put_str(o, "left_out", r->obstacle);
    else if (!strcmp(method, "awq"))
        ok = ok && json_put_f64(o, "ratio", r->ratio) && json_put_f64(o, "error", r->error);
    if (!ok || !cJSON_AddItemToArray(list, o)) {
        cJSON_Delete(o);
        return err_nomem(e, "report");
    }
    if (r->obstacle) {
        if (!t->left_out++) snprintf(t->why, sizeof t->why, "layer %u, %s: %s", r->layer, r->point, r->obstacle);
        log_line(LOG_INFO, "layer %u, %s: left out: %s", r->layer, r->point, r->obstacle);
        return 0;
    }
    t->folded++;
    t->error += log(r->error > 0 ? r->error : 1);
    log_line(LOG_INFO, "layer %u, %s: ratio %.2f, error of the outputs %.4f", r->layer, r->point, r->ratio, r->error);
    return 0;
}

static void say_summary(const struct told *t) {
    bool awq = !strcmp(method, "awq");
    if (awq && t->folded)
        cli_say(t->c, "%zu pairs, squared error of their outputs %.3f of rounding the model as it was (geometric mean)",
                t->folded, exp(t->error / (double)t->folded));
    if (t->left_out) cli_say(t->c, "%zu left out: first %s (-v lists all)", t->left_out, t->why);
}

/* ---- wiring ------------------------------------------------------------------------------------------------------ */

static int fill_options(struct cli *c, struct fold_options *o, struct quant_options *types, struct stats **stats,
                        struct err *e) {
    struct stream_reader *in;
    int rc = 0;
    for (size_t i = 0; i < COUNT_OF(methods); i++)
        if (!strcmp(methods[i], method)) o->method = (enum fold_method)i;
    o->seed = cli_seed(c), o->alpha = alpha;
    bool awq = o->method == FOLD_AWQ;
    if (awq && !type) return err_set(e, ERR_USAGE, "--method awq needs --type");
    if (awq && !stats_path && !data_path) return err_set(e, ERR_USAGE, "--method awq needs --stats or --data");
    if (o->method == FOLD_SMOOTH && !data_path) return err_set(e, ERR_USAGE, "--method smooth needs --data");
    if (awq) rc = quant_type_parse(type, &types->type, e);
    if (!rc && stats_path) rc = cli_open_stream(c, stats_path, "stats", STREAM_STATS, &in, e);
    if (!rc && stats_path) rc = stats_load(stats, in, e);
    /* whoever folds has data, and will have statistics of the folded model: the mixture that those give */
    types->calibrated = true, types->fuses_qkv = target_fuses_qkv, types->foreign_name = target_tensor_name;
    o->stats = types->stats = *stats;
    o->types = types;
    return rc;
}

static int fold(struct cli *c, const struct fold_options *o, struct told *t, struct err *e) {
    struct stream_reader *in;
    struct stream_writer *out;
    struct session_tokens data = {0};
    struct fold_model f = {.in = &data.in};
    int rc = cli_open_stream(c, cli_input_path(c, 0), "model", STREAM_MODEL, &in, e);
    if (!rc) rc = model_layerwise_new(&f.model, kernel_cpu(), in, WEIGHTS_F32, NULL, NULL, e);
    const struct model *m = rc ? NULL : model_layerwise_model(f.model);
    if (!rc && data_path) rc = session_read_tokens(c, data_path, "data", m, max_tokens, &data, e);
    if (!rc && data_path) rc = session_put_precision(c, &how, m, e);
    if (!rc) rc = grad_tape_new(&f.scratch, kernel_cpu(), false, data_path ? session_precision(&how) : DT_F32, e);
    f.n = data_path != NULL;
    if (!rc) rc = cli_open_output(c, &out, e);
    if (!rc && !cJSON_AddArrayToObject(cli_report(c), "pairs")) rc = err_nomem(e, "report");
    if (!rc) rc = fold_model(&f, out, o, report_pair, t, e);
    if (!rc) rc = cli_close_output(c, e);
    grad_tape_free(f.scratch);
    model_layerwise_free(f.model);
    session_tokens_release(&data);
    return rc;
}

static int run(struct cli *c, struct err *e) {
    struct fold_options o = {0};
    struct quant_options types = {0};
    struct stats *stats = NULL;
    struct told t = {.c = c};
    int rc = fill_options(c, &o, &types, &stats, e);
    if (!rc) rc = fold(c, &o, &t, e);
    if (!rc) say_summary(&t);
    stats_free(stats);
    return rc;
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
            "is reported. What is rewritten becomes f32. r1 needs norms without a mean or a bias (RMSNorm) before "
            "each part of a layer, and gives a model whose head is tied to its embedding a head of its own.\n"
            "Statistics of the model are no longer those of the folded one: calibrate again for quantize --stats.",
        .examples =
            "rill fold --method awq --type q4_k_m --stats model.stats.rill model.rill -o model.awq.rill\n    scales "
            "for q4_k_m\n"
            "rill fold --method awq --type q4_0 --data tokens.rill model.rill | rill quantize --type q4_0 > "
            "model.q4.rill\n    in one pipe\n"
            "rill fold --method smooth --data tokens.rill < model.rill > model.smooth.rill\n    for q8_0 and "
            "--precision int8\n"
            "rill fold --method r1 model.rill | rill fold --method r2 > model.r.rill\n    both rotations\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
