/* Reports on quantized tensors, as JSON and as a summary. */
#include "lib/quant/quant_internal.h"

bool quant_report_put(cJSON *o, const struct quant_tensor_report *t) {
    bool ok = json_put_str(o, "name", t->name) && json_put_str(o, "from", dtype_info(t->from)->name) &&
              json_put_str(o, "to", dtype_info(t->to)->name) && json_put_bool(o, "fell_back", t->fell_back) &&
              json_put_u64(o, "bytes", t->bytes) && json_put_f64(o, "rmse", t->rmse) &&
              json_put_f64(o, "relative_error", t->relative);
    if (!ok || t->output_error_nearest == 0) return ok;
    ok = json_put_f64(o, "output_error_nearest", t->output_error_nearest) &&
         json_put_f64(o, "output_error", t->output_error);
    if (!ok || t->block_error_before == 0) return ok;
    return json_put_f64(o, "block_error_before", t->block_error_before) &&
           json_put_f64(o, "block_error", t->block_error);
}

static void write_requantized(struct quant_summary *s) {
    size_t len = 0;
    const struct dtype_info *info;
    for (size_t i = 0; i < COUNT_OF(s->n_requantized) && (info = dtype_at(i)); i++)
        if (s->n_requantized[i] && len < sizeof s->requantized)
            len += (size_t)snprintf(s->requantized + len, sizeof s->requantized - len, "%s%u of %s", len ? ", " : "",
                                    s->n_requantized[i], info->name);
}

void quant_summary_add(struct quant_summary *s, const struct quant_tensor_report *t) {
    const struct dtype_info *info;
    if (t->fell_back && !s->first_fallback[0]) {
        snprintf(s->first_fallback, sizeof s->first_fallback, "%s", t->name);
        s->first_fallback_to = t->to;
    }
    if (t->unweighed && !s->first_unweighed[0]) snprintf(s->first_unweighed, sizeof s->first_unweighed, "%s", t->name);
    if (t->damp > 0 && !s->damped++) snprintf(s->first_damped, sizeof s->first_damped, "%s", t->name);
    if (t->damp > s->most_damp) s->most_damp = t->damp;
    if (t->to == t->from || !dtype_info(t->from)->is_quantized) return;
    for (size_t i = 0; i < COUNT_OF(s->n_requantized) && (info = dtype_at(i)); i++)
        s->n_requantized[i] += info->dtype == t->from;
    write_requantized(s);
}
