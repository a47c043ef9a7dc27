/* rill quantize: quantizes a model stream, one tensor at a time. */
#include "lib/cli/cli.h"
#include "lib/formats/formats.h"
#include "lib/quant/quant.h"
#include "lib/session/session.h"

static const char *type_name, *stats_path, *head_type, *embed_type, *plan_path, *method, *data_path;
static struct cli_list rules;
static bool strict, pure, dry_run, symmetric;
static struct session_options how;
static uint64_t max_tokens, sweeps;
static double damp;

static const struct cli_option options[] = {
    {.name = "type",
     .type = CLI_STRING,
     .to = &type_name,
     .arg = "TYPE",
     .needs = {"!plan"},
     .help = "a file type of llama-quantize, in upper or lower case: q8_0, q6_k, q5_k_m, q5_k_s, q5_1, q5_0, q4_k_m, "
             "q4_k_s, q4_1, q4_0, iq4_nl, iq4_xs, mxfp4, q3_k_l, q3_k_m, q3_k_s, iq3_m, iq3_s, iq3_xs, iq3_xxs, q2_k, "
             "q2_k_s, iq2_m, iq2_s, iq2_xs, iq2_xxs, tq2_0, tq1_0, f16, bf16 or f32; q3_k, q4_k and q5_k are short for "
             "q3_k_m, q4_k_m and q5_k_m. Norms and biases stay f32"},
    {.name = "pure",
     .type = CLI_FLAG,
     .to = &pure,
     .needs = {"type"},
     .help = "no mixture: every matrix gets the type that most have in TYPE"},
    {.name = "tensor-type",
     .type = CLI_LIST,
     .to = &rules,
     .arg = "REGEX=TYPE",
     .needs = {"type"},
     .help =
         "the type of the matrices whose name, Rill's or GGUF's, matches the regular expression; the last match wins"},
    {.name = "head-type",
     .type = CLI_STRING,
     .to = &head_type,
     .arg = "TYPE",
     .needs = {"type"},
     .help = "another type for the output matrix (the embedding where they are tied)"},
    {.name = "embed-type",
     .type = CLI_STRING,
     .to = &embed_type,
     .arg = "TYPE",
     .needs = {"type"},
     .help = "another type for the embedding of a model whose output is not tied to it"},
    {.name = "plan",
     .type = CLI_STRING,
     .to = &plan_path,
     .arg = "FILE",
     .completes_files = true,
     .help = "take the type of each matrix from this file, as --dry-run prints it"},
    {.name = "dry-run",
     .type = CLI_FLAG,
     .to = &dry_run,
     .help =
         "print the plan and stop: each matrix with its type, size and the reason, as text for --plan, edited or not"},
    {.name = "stats",
     .type = CLI_STRING,
     .to = &stats_path,
     .arg = "FILE",
     .completes_files = true,
     .help = "weight the error of each input channel by the statistics of calibrate, or of llama-imatrix (a GGUF or a "
             ".dat)"},
    {.name = "method",
     .type = CLI_CHOICE,
     .to = &method,
     .choices = "rtn|gptq",
     .fallback = "rtn",
     .help = "rtn: each weight to the nearest value, with the scales that a search finds; gptq: with --data, codes by "
             "error "
             "feedback on the grid of each type and descent over codes and scales, layer by layer"},
    {.name = "data",
     .type = CLI_STRING,
     .to = &data_path,
     .arg = "TOKENS",
     .completes_files = true,
     .needs = {"method=gptq", "!dry-run"},
     .help = "the tokens to calibrate on: text like that which the model will see, 128 sequences of 512 for a start"},
    {.name = "max-tokens",
     .type = CLI_U64,
     .to = &max_tokens,
     .arg = "N",
     .fallback = "0",
     .needs = {"data"},
     .help = "calibrate on whole sequences up to the one that reaches N positions; 0: all"},
    {.name = "damp",
     .type = CLI_F64,
     .to = &damp,
     .arg = "SHARE",
     .fallback = "0.01",
     .max = 1,
     .needs = {"data"},
     .help = "what is added to the diagonal of the second moments, as a share of its mean; ten times as much when they "
             "do not factor, up to four times"},
    {.name = "sweeps",
     .type = CLI_U64,
     .to = &sweeps,
     .arg = "N",
     .fallback = "4",
     .max = 1000,
     .needs = {"data"},
     .help = "passes of descent over codes and scales after the feedback, at most; 0: plain GPTQ"},
    {.name = "symmetric",
     .type = CLI_FLAG,
     .to = &symmetric,
     .needs = {"data"},
     .help = "towards what the original's matrices make of the inputs that they have now, as GPTQ has it, in half the "
             "time; "
             "without it, towards what they made of the original's inputs"},
    {.name = "precision",
     .type = CLI_CHOICE,
     .to = &how.precision,
     .choices = "auto|bf16|f32",
     .fallback = "auto",
     .needs = {"data"},
     .help = "of the forward pass over the data; sums are f32 in any case. " SESSION_AUTO_HELP "else f32"},
    {.name = "strict",
     .type = CLI_FLAG,
     .to = &strict,
     .help =
         "refuse a model with rows that are not a whole number of blocks, rather than use another type for them, and "
         "types that need --stats when there are none"},
    {0},
};

/* ---- the report ------------------------------------------------------------------------------------------------- */

struct progress {
    struct cli *c;
    struct quant_summary sum;
};

static int report_tensor(void *ctx, const struct quant_tensor_report *t, struct err *e) {
    struct progress *p = ctx;
    quant_summary_add(&p->sum, t);
    cJSON *list = cJSON_GetObjectItemCaseSensitive(cli_report(p->c), "tensors"), *o = cJSON_CreateObject();
    if (!o || !quant_report_put(o, t) || !cJSON_AddItemToArray(list, o)) {
        cJSON_Delete(o);
        return err_nomem(e, "report");
    }
    log_line(LOG_INFO, "%s: %s -> %s, relative error %.4f%s%s", t->name, dtype_info(t->from)->name,
             dtype_info(t->to)->name, t->relative, t->fell_back ? ", fell back from " : "",
             t->fell_back ? dtype_info(t->wanted)->name : "");
    if (t->output_error_nearest > 0)
        log_line(LOG_INFO, "%s: squared error of its outputs %.3f of rounding to nearest", t->name,
                 t->output_error / t->output_error_nearest);
    return 0;
}

/* What differs from what was asked for, a line each. */
static void say_summary(struct cli *c, const struct quant_summary *s, const struct quant_options *o,
                        const struct quant_totals *totals) {
    if (s->requantized[0])
        cli_say(c, "tensors are quantized already (%s): %s", s->requantized,
                !o->type || dtype_info(o->type->base)->is_quantized
                    ? "rounding them again loses more than quantizing the original would"
                    : "they stay as coarse as they are");
    if (totals->fell_back)
        cli_say(c,
                "%llu tensors fell back to a larger type because their rows are not a whole number of blocks: first "
                "'%s', now %s (-v lists all, --strict refuses)",
                (unsigned long long)totals->fell_back, s->first_fallback, dtype_info(s->first_fallback_to)->name);
    if (totals->blind)
        cli_say(c, "%llu tensors got a type that is made for weights whose importance is known: use --stats",
                (unsigned long long)totals->blind);
}

/* ---- the options ------------------------------------------------------------------------------------------------ */

static int parse_dtype(const char *option, const char *name, unsigned *out, struct err *e) {
    int rc = name ? quant_dtype_parse(name, out, e) : 0;
    return rc ? err_prefix(e, "--%s", option) : 0;
}

static int parse_rules(struct quant_options *o, struct err *e) {
    struct quant_rule *parsed = mem_array(rules.n ? rules.n : 1, sizeof *parsed, e);
    if (!parsed) return e->code;
    o->rules = parsed;
    o->n_rules = rules.n;
    for (size_t i = 0; i < rules.n; i++)
        if (quant_rule_parse(rules.items[i], &parsed[i], e)) return err_prefix(e, "--tensor-type");
    return 0;
}

static int read_whole(struct cli *c, const char *path, const char *role, struct buf *bytes, struct err *e) {
    enum { MOST = 1 << 30 };
    struct cli_file *f;
    int rc = cli_open_file(c, path, role, &f, e);
    if (!rc) rc = cli_file_read_all(f, MOST, bytes, e);
    if (!rc && bytes->len > MOST) rc = err_set(e, ERR_DATA, "%s: more than %d bytes", cli_file_name(f), MOST);
    return rc;
}

/* As a string. */
static int read_plan(struct cli *c, struct buf *text, struct err *e) {
    int rc = read_whole(c, plan_path, "plan", text, e);
    if (!rc && text->len && memchr(text->data, 0, text->len))
        rc = err_set(e, ERR_DATA, "%s: no text: it has zero bytes", plan_path);
    return rc ? rc : buf_append(text, "", 1, e);
}

/* Statistics of ours or of llama.cpp's: the first bytes tell, where they can be looked at. */
static int read_stats(struct cli *c, struct stats **stats, struct imatrix **imatrix, struct err *e) {
    struct stream_reader *in;
    struct buf bytes = {0};
    char begin[4];
    size_t n = 0;
    FILE *f = cli_is_file(stats_path) && strcmp(stats_path, "-") != 0 ? fopen(stats_path, "rb") : NULL;
    if (f) {
        n = fread(begin, 1, sizeof begin, f);
        fclose(f);
    }
    if (!n || !imatrix_is(stats_path, begin, n)) {
        int rc = cli_open_stream(c, stats_path, "stats", STREAM_STATS, &in, e);
        return rc ? rc : stats_load(stats, in, e);
    }
    int rc = read_whole(c, stats_path, "stats", &bytes, e);
    if (!rc && imatrix_read(imatrix, &bytes, e)) rc = err_prefix(e, "%s", stats_path);
    buf_release(&bytes);
    return rc;
}

static int parse_options(struct cli *c, struct quant_options *o, struct buf *plan, struct err *e) {
    if (!type_name && !plan_path) return err_set(e, ERR_USAGE, "--type or --plan is required");
    if (o->calibrated && !data_path && !dry_run) return err_set(e, ERR_USAGE, "--method %s needs --data", method);
    int rc = type_name ? quant_type_parse(type_name, &o->type, e) : 0;
    if (!rc && pure && !o->type->mixture)
        rc = err_set(e, ERR_USAGE, "--pure: %s is the same everywhere, it has no mixture", o->type->name);
    if (!rc) rc = parse_dtype("head-type", head_type, &o->head_type, e);
    if (!rc) rc = parse_dtype("embed-type", embed_type, &o->embed_type, e);
    if (!rc) rc = parse_rules(o, e);
    if (!rc && plan_path) rc = read_plan(c, plan, e);
    if (!rc && plan_path) o->plan = (const char *)plan->data, o->plan_name = plan_path;
    return rc;
}

/* ---- the run ---------------------------------------------------------------------------------------------------- */

static int report_totals(struct cli *c, const struct quant_totals *totals, struct err *e) {
    double bits = 8.0 * (double)totals->bytes / (double)totals->elems;
    cJSON *r = cli_report(c);
    cli_say(c, "%.3f bits per weight, %.1f MB from %.1f MB", bits, (double)totals->bytes / 1e6,
            (double)totals->bytes_before / 1e6);
    bool ok = json_put_u64(r, "weights", totals->elems) && json_put_u64(r, "bytes", totals->bytes) &&
              json_put_u64(r, "bytes_before", totals->bytes_before) &&
              json_put_u64(r, "fell_back", totals->fell_back) && json_put_u64(r, "without_importance", totals->blind) &&
              json_put_f64(r, "bits_per_weight", bits);
    return ok ? 0 : err_nomem(e, "report");
}

static int print_plan(struct cli *c, struct stream_reader *in, const struct quant_options *o, struct err *e) {
    struct quant_totals totals;
    struct buf plan = {0};
    FILE *out;
    int rc = cli_text(c, &out, e);
    if (!rc) rc = quantize_dry_run(in, o, &plan, &totals, e);
    if (!rc) fwrite(plan.data, 1, plan.len, out);
    if (!rc && totals.refused)
        cli_say(c,
                "%llu tensors are quantized already and would grow, which gains nothing: without --dry-run this is "
                "refused (quantize the original, or --force)",
                (unsigned long long)totals.refused);
    if (!rc) rc = report_totals(c, &totals, e);
    buf_release(&plan);
    return rc;
}

static int with_data(struct cli *c, struct stream_reader *in, struct stream_writer *out, const struct quant_options *o,
                     struct progress *p, struct quant_totals *totals, struct err *e) {
    struct session_tokens data = {0};
    struct quant_calibration k = {
        .damp = damp, .act_order = true, .asymmetric = !symmetric, .sweeps = (unsigned)sweeps};
    int rc = model_layerwise_new(&k.model, kernel_cpu(), in, WEIGHTS_F32, NULL, NULL, e);
    if (!rc) rc = session_read_tokens(c, data_path, "data", model_layerwise_model(k.model), max_tokens, &data, e);
    if (!rc) rc = session_put_precision(c, &how, model_layerwise_model(k.model), e);
    if (!rc) rc = grad_tape_new(&k.scratch, kernel_cpu(), false, session_precision(&how), e);
    k.in = &data.in, k.n = 1;
    if (!rc) rc = quantize_layerwise(&k, out, o, report_tensor, p, totals, e);
    grad_tape_free(k.scratch);
    model_layerwise_free(k.model);
    session_tokens_release(&data);
    return rc;
}

static int quantize(struct cli *c, struct stream_reader *in, const struct quant_options *o, struct err *e) {
    struct stream_writer *out;
    struct quant_totals totals;
    struct progress p = {.c = c};
    int rc = cli_open_output(c, &out, e);
    if (!rc && !cJSON_AddArrayToObject(cli_report(c), "tensors")) rc = err_nomem(e, "report");
    if (!rc)
        rc = o->calibrated ? with_data(c, in, out, o, &p, &totals, e)
                           : quantize_stream(in, out, o, report_tensor, &p, &totals, e);
    if (!rc) rc = cli_close_output(c, e);
    if (rc) return rc;
    say_summary(c, &p.sum, o, &totals);
    return report_totals(c, &totals, e);
}

static int run(struct cli *c, struct err *e) {
    struct stream_reader *in;
    struct imatrix *imatrix = NULL;
    struct quant_options o = {.pure = pure,
                              .strict = strict,
                              .grow = cli_given(c, "force"),
                              .calibrated = strcmp(method, "rtn") != 0,
                              .fuses_qkv = target_fuses_qkv,
                              .foreign_name = target_tensor_name};
    struct stats *stats = NULL;
    struct buf plan = {0};
    int rc = parse_options(c, &o, &plan, e);
    if (!rc && stats_path) rc = read_stats(c, &stats, &imatrix, e);
    o.stats = stats;
    if (imatrix) o.importance = imatrix_importance, o.importance_ctx = imatrix;
    if (!rc) rc = cli_open_stream(c, cli_input_path(c, 0), "model", STREAM_MODEL, &in, e);
    if (!rc) rc = dry_run ? print_plan(c, in, &o, e) : quantize(c, in, &o, e);
    stats_free(stats);
    imatrix_free(imatrix);
    buf_release(&plan);
    mem_free((void *)o.rules);
    return rc;
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "quantize",
        .summary = "store a model's weights in fewer bits",
        .operands = "[MODEL]",
        .max_operands = 1,
        .reads_stdin = true,
        .writes_stream = true,
        .stream_needs = "!dry-run",
        .force_help = "replace an output file that exists; let binary output go to a terminal; let tensors that are "
                      "quantized already take more bits",
        .threaded = true,
        .description =
            "Rounds the matrices of a model to one of GGUF's grids, one tensor at a time: a model larger than memory "
            "passes through a pipe.\nTYPE is a file type of llama-quantize, and each matrix gets the type that it gets "
            "there: in q4_k_m q6_k for the output and for v and down of half of the layers, q4_k elsewhere. A row that "
            "is "
            "not a whole number of blocks of 256 falls back to a type with blocks of 32, as llama.cpp does; the "
            "program "
            "reports it, with the resulting bits per weight, and --strict refuses it.\nTypes below 3.4 bits need "
            "--stats. "
            "Tensors that are quantized already are rounded again, which is reported. They get no more bits than they "
            "have: a tensor that only a mixture would raise stays as it is, anything else is refused without "
            "--force.\nThe types are a plan: --dry-run prints it, --plan reads it.",
        .examples =
            "rill quantize --type q4_k_m model.rill -o model.q4.rill\n    the usual mixture\n"
            "rill quantize --type q8_0 < model.rill > model.q8.rill\n    nearly lossless, half of f16\n"
            "rill quantize --type q4_0 --tensor-type attn_v=q8_0 model.rill -o model.qv.rill\n    v in more bits\n"
            "rill quantize --type q4_k_m --method gptq --data tokens.rill model.rill -o model.gptq.rill\n    by error "
            "feedback\n"
            "rill quantize --type q4_0 --dry-run model.rill -o plan.txt\n    what would be done\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
