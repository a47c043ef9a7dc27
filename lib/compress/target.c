/* Plans quantization for a number of bytes or bits per weight. */
#include "lib/compress/compress_internal.h"

/* Estimates the importance of each matrix; the caller frees *traces. Holds the model in memory meanwhile. */
static int read_fisher(struct compress *k, double **traces, struct err *e) {
    struct stream_reader *in;
    struct model *m = NULL;
    struct session_tokens data = {0};
    int rc = session_file_again(&k->model, STREAM_MODEL, &in, e);
    if (!rc) rc = model_load(&m, kernel_cpu(), in, WEIGHTS_F32, e);
    if (!rc) rc = session_read_tokens(k->c, k->o->fisher, "fisher", m, 0, &data, e);
    if (!rc && !(*traces = mem_array(m->n_params, sizeof **traces, e))) rc = e->code;
    if (!rc) rc = quant_fisher_traces(m, &data.in, cli_seed(k->c), *traces, e);
    session_tokens_release(&data);
    model_free(m);
    return rc;
}

static int put_search(struct compress *k, const struct quant_search_result *r, struct err *e) {
    struct cli *c = k->c;
    cli_say(c, "divergence on the data of the search, %s: %.5f, found %.5f (%llu tried, %llu accepted)",
            k->how.calibrated ? "with what the method is expected to leave" : "all to nearest", r->before, r->after,
            (unsigned long long)r->tried, (unsigned long long)r->accepted);
    cJSON *o = cJSON_AddObjectToObject(cli_report(c), "search");
    bool ok = o && json_put_u64(o, "positions", r->positions) && json_put_f64_or_null(o, "before", r->before) &&
              json_put_f64_or_null(o, "after", r->after) && json_put_u64(o, "tried", r->tried) &&
              json_put_u64(o, "accepted", r->accepted);
    return ok ? 0 : err_nomem(e, "report");
}

static int put_budget(struct cli *c, const struct quant_budget_result *r, struct err *e) {
    cJSON *o = cJSON_AddObjectToObject(cli_report(c), "target");
    bool ok = o && json_put_u64(o, "bytes", r->budget) && json_put_u64(o, "used", r->bytes) &&
              json_put_f64(o, "predicted_error", r->error) && json_put_f64(o, "least_possible", r->bound);
    if (r->blocked)
        cli_say(c, "%llu matrices have no importance: types that need it were left out for them (--stats)",
                (unsigned long long)r->blocked);
    return ok ? 0 : err_nomem(e, "report");
}

/* Measures, chooses and, with --search, improves the plan by the divergence of a second copy of the model held in
 * memory. */
static int make_plan(struct compress *k, struct quant_budget *b, struct stream_reader *in,
                     struct quant_budget_result *r, struct err *e) {
    const struct compress_quantize_options *o = k->o;
    struct compress_judged d = {0};
    int rc = o->search ? compress_judged_open(&d, k->c, &k->model, "--search", o->data, o->search_tokens, &o->how,
                                              WEIGHTS_F32, e)
                       : 0;
    struct quant_search how = {.model = d.model,
                               .scratch = d.scratch,
                               .in = &d.tokens.in,
                               .steps = o->search,
                               .seed = cli_seed(k->c),
                               .progress = compress_advance,
                               .progress_ctx = k->c};
    if (o->search) b->search = &how;
    if (!rc && o->search) cli_progress_begin(k->c, "moves", o->search);
    if (!rc) rc = quant_budget_plan(in, &k->how, b, &k->plan, r, e);
    if (o->search) cli_progress_end(k->c);
    b->search = NULL;
    compress_judged_release(&d);
    return rc;
}

int compress_plan_target(struct compress *k, struct err *e) {
    const struct compress_quantize_options *o = k->o;
    struct quant_budget b = {.bytes = o->target_size, .bits_per_weight = o->target_bpw, .cache = o->cache};
    struct quant_budget_result r;
    unsigned *types = NULL;
    double *traces = NULL;
    struct stream_reader *in = k->in;
    int rc = o->types ? quant_types_parse(o->types, &types, &b.n_types, e) : 0;
    if (rc) err_prefix(e, "--types");
    if (!rc && o->fisher) rc = read_fisher(k, &traces, e);
    if (!rc && k->model.is_file) rc = session_file_again(&k->model, STREAM_MODEL, &in, e);
    b.types = types;
    b.traces = traces;
    if (!rc) rc = make_plan(k, &b, in, &r, e);
    if (!rc) rc = put_budget(k->c, &r, e);
    if (!rc && o->search) rc = put_search(k, &r.search, e);
    if (!rc) rc = buf_append(&k->plan, "", 1, e);
    mem_free(types);
    mem_free(traces);
    if (rc) return rc;
    k->how.plan = (const char *)k->plan.data;
    k->how.plan_name = "the plan for the target";
    k->how.planned_by_stats = true;
    return 0;
}
