/* Runs quantize, from the options to the written model or plan. */
#include <string.h>

#include "lib/compress/compress_internal.h"

#define DENSE_POSITIONS   11000 /* positions at which the original's inputs are kept; up to twice as many are all kept */
#define LEARNED_POSITIONS 8192 /* in each step of learned rounding after the first; up to twice as many all take part */

/* ---- messages and report ----------------------------------------------------------------------------------------- */

static int report_tensor(void *ctx, const struct quant_tensor_report *t, struct err *e) {
    struct compress *k = ctx;
    if (!k->how.calibrated) cli_progress(k->c, ++k->done, "%s", t->name);
    quant_summary_add(&k->sum, t);
    if (compress_add_to_layer(k, t, e)) return e->code;
    cJSON *list = cJSON_GetObjectItemCaseSensitive(cli_report(k->c), "tensors"), *o = cJSON_CreateObject();
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
    if (t->block_error_before > 0)
        log_line(LOG_INFO, "%s: error of its half of the layer %.4g, before learning %.4g", t->name, t->block_error,
                 t->block_error_before);
    return 0;
}

/* Prints deviations from the request, one line each. */
static void say_summary(const struct compress *k, const struct quant_totals *totals) {
    const struct quant_summary *s = &k->sum;
    compress_say_layers(k);
    if (s->requantized[0])
        cli_say(k->c, "tensors are quantized already (%s): %s", s->requantized,
                !k->how.type || dtype_info(k->how.type->base)->is_quantized
                    ? "rounding them again loses more than quantizing the original would"
                    : "they stay as coarse as they are");
    if (totals->fell_back)
        cli_say(k->c,
                "%llu tensor%s fell back to a larger type because %s rows are not a whole number of blocks: first "
                "'%s', now %s (-v lists all, --strict refuses)",
                (unsigned long long)totals->fell_back, totals->fell_back == 1 ? "" : "s",
                totals->fell_back == 1 ? "its" : "their", s->first_fallback, dtype_info(s->first_fallback_to)->name);
    if (totals->recalled)
        cli_say(k->c, "%llu tensor%s from the cache", (unsigned long long)totals->recalled,
                totals->recalled == 1 ? "" : "s");
    if (totals->unweighed)
        cli_say(k->c,
                "no importance is known of %llu tensor%s, whose errors were not weighed: first '%s' (--strict refuses)",
                (unsigned long long)totals->unweighed, totals->unweighed == 1 ? "" : "s", s->first_unweighed);
    if (s->damped)
        cli_say(
            k->c,
            "second moments of the inputs of %llu tensor%s did not factor with --damp %g: up to %g was added, first "
            "for '%s' (--strict refuses)",
            (unsigned long long)s->damped, s->damped == 1 ? "" : "s", k->o->damp, s->most_damp, s->first_damped);
    if (totals->blind)
        cli_say(k->c, "%llu tensor%s got a type that is made for weights whose importance is known: use --stats",
                (unsigned long long)totals->blind, totals->blind == 1 ? "" : "s");
}

static bool put_phases(cJSON *r, const struct quant_totals *totals) {
    cJSON *o = cJSON_AddObjectToObject(r, "cpu_seconds_of");
    bool ok = o;
    for (enum quant_phase p = 0; ok && p < QUANT_PHASES; p++) {
        ok = json_put_f64(o, quant_phase_name(p), totals->seconds[p]);
        log_line(LOG_INFO, "%s: %.2f s of processor time", quant_phase_name(p), totals->seconds[p]);
    }
    return ok;
}

static int report_totals(struct cli *c, const struct quant_totals *totals, struct err *e) {
    double bits = 8.0 * (double)totals->bytes / (double)totals->elems;
    cJSON *r = cli_report(c);
    cli_say(c, "%.3f bits per weight, %.1f MB from %.1f MB", bits, (double)totals->bytes / 1e6,
            (double)totals->bytes_before / 1e6);
    bool ok = json_put_u64(r, "weights", totals->elems) && json_put_u64(r, "bytes", totals->bytes) &&
              json_put_u64(r, "bytes_before", totals->bytes_before) &&
              json_put_u64(r, "fell_back", totals->fell_back) && json_put_u64(r, "without_importance", totals->blind) &&
              json_put_u64(r, "unweighed", totals->unweighed) && json_put_u64(r, "from_cache", totals->recalled) &&
              json_put_f64(r, "bits_per_weight", bits);
    return ok ? 0 : err_nomem(e, "report");
}

/* ---- printing a plan --------------------------------------------------------------------------------------------- */

static int print_target(struct compress *k, struct err *e) {
    FILE *out;
    int rc = cli_text(k->c, &out, e);
    if (!rc) fwrite(k->plan.data, 1, k->plan.len - 1, out);
    return rc;
}

static int print_plan(struct compress *k, struct err *e) {
    struct quant_totals totals;
    struct buf plan = {0};
    FILE *out;
    int rc = cli_text(k->c, &out, e);
    if (!rc) rc = quantize_dry_run(k->in, &k->how, &plan, &totals, e);
    if (!rc) fwrite(plan.data, 1, plan.len, out);
    if (!rc && totals.refused)
        cli_say(k->c,
                "%llu tensor%s quantized already and would grow, which gains nothing: without --dry-run this is "
                "refused (quantize the original, or --force)",
                (unsigned long long)totals.refused, totals.refused == 1 ? " is" : "s are");
    if (!rc) rc = report_totals(k->c, &totals, e);
    buf_release(&plan);
    return rc;
}

/* ---- writing a model --------------------------------------------------------------------------------------------- */

static void show_progress(void *cli, uint64_t done, const char *what) {
    cli_progress(cli, done, "%s", what);
}

static int with_data(struct compress *k, struct stream_writer *out, struct quant_totals *totals, struct err *e) {
    const struct compress_quantize_options *o = k->o;
    struct compress_data d = {0};
    struct quant_calibration q = {.asymmetric = !o->symmetric, .dense_positions = DENSE_POSITIONS};
    if (strcmp(o->method, "learned") == 0) q.passes = (unsigned)o->passes, q.learned_positions = LEARNED_POSITIONS;
    int rc = compress_data_open(&d, k->c, k->in, o->data, o->max_tokens, &o->how, e);
    if (!rc) rc = session_put_precision(k->c, &o->how, model_layerwise_model(d.model), e);
    q.progress = show_progress, q.progress_ctx = k->c;
    q.model = d.model, q.scratch = d.scratch, q.in = &d.tokens.in, q.n = 1;
    if (!rc) cli_progress_begin(k->c, "tensors", model_slot_count(&model_layerwise_model(d.model)->config));
    if (!rc) rc = quantize_layerwise(&q, out, &k->how, report_tensor, k, totals, e);
    compress_data_release(&d);
    return rc;
}

static int nearest(struct compress *k, struct stream_writer *out, struct quant_totals *totals, struct err *e) {
    cli_progress_begin(k->c, "tensors", 0);
    return quantize_stream(k->in, out, &k->how, report_tensor, k, totals, e);
}

static int quantize(struct compress *k, struct err *e) {
    struct stream_writer *out;
    struct quant_totals totals;
    int rc = cli_open_output(k->c, &out, e);
    if (!rc && !cJSON_AddArrayToObject(cli_report(k->c), "tensors")) rc = err_nomem(e, "report");
    if (!rc) rc = k->how.calibrated ? with_data(k, out, &totals, e) : nearest(k, out, &totals, e);
    cli_progress_end(k->c);
    if (!rc) rc = cli_close_output(k->c, e);
    if (rc) return rc;
    say_summary(k, &totals);
    if (k->how.calibrated && !put_phases(cli_report(k->c), &totals)) return err_nomem(e, "report");
    return report_totals(k->c, &totals, e);
}

static int carry_out(struct compress *k, struct err *e) {
    const struct compress_quantize_options *o = k->o;
    bool target = compress_has_target(o);
    int rc = compress_read_settings(k, e);
    if (!rc && target && !k->model.is_file && (!o->dry_run || o->fisher || o->search))
        rc = err_set(e, ERR_USAGE,
                     "a target reads the model twice: from a file, or as --dry-run without --fisher and --search, then "
                     "--plan");
    if (!rc) rc = cli_open_stream(k->c, cli_input_path(k->c, 0), "model", STREAM_MODEL, &k->in, e);
    if (!rc && target) rc = compress_plan_target(k, e);
    if (rc) return rc;
    if (o->dry_run) return target ? print_target(k, e) : print_plan(k, e);
    return quantize(k, e);
}

int compress_quantize(struct cli *c, const struct compress_quantize_options *o, struct err *e) {
    struct compress k = {.c = c, .o = o};
    session_file_init(&k.model, cli_input_path(c, 0));
    int rc = carry_out(&k, e);
    session_file_release(&k.model);
    compress_release(&k);
    return rc;
}
