/* rill quantize: quantizes a model stream, one tensor at a time. */
#include "lib/cli/cli.h"
#include "lib/formats/formats.h"
#include "lib/quant/quant.h"

static const char *type_name, *stats_path, *head_type, *embed_type;
static bool strict;

static const struct cli_option options[] = {
    {.name = "type",
     .type = CLI_STRING,
     .to = &type_name,
     .arg = "TYPE",
     .required = true,
     .help = "q8_0, q6_k, q5_k, q5_1, q5_0, q4_k_m, q4_k, q4_1, q4_0, f16, bf16 or f32. Norms and biases stay f32"},
    {.name = "stats",
     .type = CLI_STRING,
     .to = &stats_path,
     .arg = "FILE",
     .completes_files = true,
     .help = "weight the error of each input channel by calibrate's statistics"},
    {.name = "head-type",
     .type = CLI_STRING,
     .to = &head_type,
     .arg = "TYPE",
     .help = "another type for the output matrix (the embedding where they are tied)"},
    {.name = "embed-type",
     .type = CLI_STRING,
     .to = &embed_type,
     .arg = "TYPE",
     .help = "another type for the embedding of a model whose output is not tied to it"},
    {.name = "strict",
     .type = CLI_FLAG,
     .to = &strict,
     .help = "refuse a model with rows that are not a whole number of blocks, rather than use a larger type for them"},
    {0},
};

/* The type of --head-type and --embed-type, which take no mixtures. */
static int parse_dtype(const char *option, const char *name, unsigned *out, struct err *e) {
    const struct quant_type *t;
    if (!name) return 0;
    int rc = quant_type_parse(name, &t, e);
    if (!rc && t->mixture) rc = err_set(e, ERR_USAGE, "'%s' is a mixture, not a type", name);
    if (rc) return err_prefix(e, "--%s", option);
    *out = t->base;
    return 0;
}

static int report_tensor(void *ctx, const struct quant_tensor_report *t, struct err *e) {
    struct cli *c = ctx;
    cJSON *list = cJSON_GetObjectItemCaseSensitive(cli_report(c), "tensors"), *o = cJSON_CreateObject();
    bool ok = o && json_put_str(o, "name", t->name) && json_put_str(o, "from", dtype_info(t->from)->name) &&
              json_put_str(o, "to", dtype_info(t->to)->name) && json_put_bool(o, "fell_back", t->fell_back) &&
              json_put_u64(o, "bytes", t->bytes) && json_put_f64(o, "rmse", t->rmse) &&
              json_put_f64(o, "relative_error", t->relative);
    if (!ok || !cJSON_AddItemToArray(list, o)) {
        cJSON_Delete(o);
        return err_nomem(e, "report");
    }
    log_line(LOG_INFO, "%s: %s -> %s, relative error %.4f%s%s", t->name, dtype_info(t->from)->name,
             dtype_info(t->to)->name, t->relative, t->fell_back ? ", fell back from " : "",
             t->fell_back ? dtype_info(t->wanted)->name : "");
    return 0;
}

/* Reports in one line which tensors fell back: the size differs from what was asked for. */
static void say_fallbacks(struct cli *c, const struct quant_totals *totals) {
    const cJSON *t, *first = NULL;
    cJSON_ArrayForEach(t, cJSON_GetObjectItemCaseSensitive(cli_report(c), "tensors")) {
        if (!first && cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(t, "fell_back"))) first = t;
    }
    if (!first) return;
    cli_say(c,
            "%llu tensors fell back to a larger type because their rows are not a whole number of blocks: first '%s', "
            "now %s "
            "(-v lists all, --strict refuses)",
            (unsigned long long)totals->fell_back, cJSON_GetObjectItemCaseSensitive(first, "name")->valuestring,
            cJSON_GetObjectItemCaseSensitive(first, "to")->valuestring);
}

/* Reports in one line the types of tensors that were quantized already and are stored in another type now. */
static void say_requantized(struct cli *c, const struct quant_type *type) {
    const cJSON *t, *tensors = cJSON_GetObjectItemCaseSensitive(cli_report(c), "tensors");
    char list[256] = "";
    size_t len = 0;
    const struct dtype_info *info;
    for (size_t i = 0; (info = dtype_at(i)); i++) {
        unsigned n = 0;
        if (!info->is_quantized) continue;
        cJSON_ArrayForEach(t, tensors) {
            const char *from = cJSON_GetObjectItemCaseSensitive(t, "from")->valuestring;
            n += !strcmp(from, info->name) && strcmp(cJSON_GetObjectItemCaseSensitive(t, "to")->valuestring, from) != 0;
        }
        if (n && len < sizeof list)
            len += (size_t)snprintf(list + len, sizeof list - len, "%s%u of %s", len ? ", " : "", n, info->name);
    }
    if (!len) return;
    cli_say(c, "tensors are quantized already (%s): %s", list,
            dtype_info(type->base)->is_quantized ? "rounding them again loses more than quantizing the original would"
                                                 : "they stay as coarse as they are");
}

static int run(struct cli *c, struct err *e) {
    struct stream_reader *in, *stats_in;
    struct stream_writer *out;
    struct quant_options o = {.strict = strict, .grow = cli_given(c, "force"), .fuses_qkv = target_fuses_qkv};
    struct stats *stats = NULL;
    struct quant_totals totals;
    int rc = quant_type_parse(type_name, &o.type, e);
    if (!rc) rc = parse_dtype("head-type", head_type, &o.head_type, e);
    if (!rc) rc = parse_dtype("embed-type", embed_type, &o.embed_type, e);
    if (!rc && stats_path) rc = cli_open_stream(c, stats_path, "stats", STREAM_STATS, &stats_in, e);
    if (!rc && stats_path) rc = stats_load(&stats, stats_in, e);
    o.stats = stats;
    if (!rc) rc = cli_open_stream(c, cli_input_path(c, 0), "model", STREAM_MODEL, &in, e);
    if (!rc) rc = cli_open_output(c, &out, e);
    if (!rc && !cJSON_AddArrayToObject(cli_report(c), "tensors")) rc = err_nomem(e, "report");
    if (!rc) rc = quantize_stream(in, out, &o, report_tensor, c, &totals, e);
    if (!rc) rc = cli_close_output(c, e);
    if (!rc) {
        double bits = 8.0 * (double)totals.bytes / (double)totals.elems;
        cJSON *r = cli_report(c);
        if (!json_put_u64(r, "weights", totals.elems) || !json_put_u64(r, "bytes", totals.bytes) ||
            !json_put_u64(r, "bytes_before", totals.bytes_before) || !json_put_u64(r, "fell_back", totals.fell_back) ||
            !json_put_f64(r, "bits_per_weight", bits))
            rc = err_nomem(e, "report");
        say_requantized(c, o.type);
        say_fallbacks(c, &totals);
        cli_say(c, "%.3f bits per weight, %.1f MB from %.1f MB", bits, (double)totals.bytes / 1e6,
                (double)totals.bytes_before / 1e6);
    }
    stats_free(stats);
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
        .force_help = "replace an output file that exists; let binary output go to a terminal; let tensors that are "
                      "quantized already take more bits",
        .threaded = true,
        .description =
            "Rounds the matrices of a model to one of GGUF's grids, one tensor at a time: a model larger than memory "
            "passes through a pipe.\nq4_k_m is llama.cpp's mixture: q6_k for the output and for v and down of half of "
            "the layers, q4_k elsewhere; where GGUF has q, k and v in one tensor (GPT-2, GPT-NeoX) all three get q5_k. "
            "A row that is not a whole number of blocks of 256 falls back to a type with blocks of 32, as llama.cpp "
            "does; the program reports it, with the resulting bits per weight, and --strict refuses it.\nTensors that "
            "are quantized already are rounded again, which is reported. They get no more bits than they have: a "
            "tensor that only a mixture would raise stays as it is, anything else is refused without --force.",
        .examples = "rill quantize --type q4_k_m model.rill -o model.q4.rill\n    the usual mixture\n"
                    "rill quantize --type q8_0 < model.rill > model.q8.rill\n    nearly lossless, half of f16\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
