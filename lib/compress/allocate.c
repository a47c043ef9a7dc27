/* Chooses the sparsity of each matrix for --allocate. */
#include <string.h>

#include "lib/compress/compress_internal.h"

/* By outliers, in a pass over the model. */
static int by_outliers(struct prune_allocation *out, const struct session_file *model,
                       const struct compress_prune_options *o, const struct compress_calibration *of, struct err *e) {
    struct prune_owl owl = {.stats = of->stats,
                            .squares = compress_squares(of),
                            .share = o->sparsity,
                            .outlier = o->outlier,
                            .spread = o->spread};
    struct stream_reader *in;
    struct session_file own = {0};
    const char *why = !strcmp(o->allocate, "owl") ? "--allocate owl" : "--allocate search";
    int rc = compress_open_first(model, why, &own, &in, e);
    if (!rc) rc = prune_allocate_owl(in, &owl, out, e);
    session_file_release(&own);
    return rc;
}

static int by_search(struct prune_allocation *out, struct cli *c, const struct session_file *model,
                     const struct compress_prune_options *o, const struct compress_calibration *of,
                     const struct prune_allocation *begin, struct err *e) {
    bool by_norms = strcmp(o->method, "magnitude") != 0;
    struct compress_judged j = {0};
    int rc =
        compress_judged_open(&j, c, model, "--allocate search", o->data, o->search_tokens, &o->how, WEIGHTS_F32, e);
    struct prune_search how = {.model = j.model,
                               .scratch = j.scratch,
                               .in = &j.tokens.in,
                               .stats = by_norms ? of->stats : NULL,
                               .squares = by_norms ? compress_squares(of) : (struct prune_importance){0},
                               .share = o->sparsity,
                               .begin = begin,
                               .generations = o->generations,
                               .offspring = o->offspring,
                               .seed = cli_seed(c),
                               .progress = compress_advance,
                               .progress_ctx = c};
    if (!rc) cli_progress_begin(c, "generations", o->generations);
    if (!rc) rc = prune_allocate_search(&how, out, e);
    cli_progress_end(c);
    compress_judged_release(&j);
    return rc;
}

/* ---- messages and report ----------------------------------------------------------------------------------------- */

static bool put_numbers(cJSON *o, const char *name, const double *x, size_t n) {
    cJSON *list = cJSON_AddArrayToObject(o, name);
    for (size_t i = 0; list && i < n; i++)
        if (!cJSON_AddItemToArray(list, cJSON_CreateNumber(x[i]))) return false;
    return list;
}

static int put_owl(struct cli *c, const struct prune_allocation *a, struct err *e) {
    double least = 1, most = 0;
    for (uint32_t i = 0; i < a->n_layers; i++) {
        least = a->layer[i] < least ? a->layer[i] : least;
        most = a->layer[i] > most ? a->layer[i] : most;
    }
    cli_say(c, "by outliers: layers from %.4f to %.4f", least, most);
    cJSON *o = cJSON_AddObjectToObject(cli_report(c), "owl");
    bool ok =
        o && put_numbers(o, "outliers", a->outliers, a->n_layers) && put_numbers(o, "shares", a->layer, a->n_layers);
    return ok ? 0 : err_nomem(e, "report");
}

static int put_search(struct cli *c, const struct prune_allocation *a, struct err *e) {
    cli_say(c,
            "divergence on the data of the search, before weights are fitted: uniform %.5f, at its beginning %.5f, "
            "found %.5f (%llu tried)",
            a->uniform_kl, a->begin_kl, a->kl, (unsigned long long)a->tried);
    cJSON *o = cJSON_AddObjectToObject(cli_report(c), "search");
    bool ok = o && json_put_f64_or_null(o, "uniform", a->uniform_kl) && json_put_f64_or_null(o, "begin", a->begin_kl) &&
              json_put_f64_or_null(o, "found", a->kl) && json_put_u64(o, "tried", a->tried);
    return ok ? 0 : err_nomem(e, "report");
}

int compress_allocate(struct prune_allocation *out, struct cli *c, const struct session_file *model,
                      const struct compress_prune_options *o, const struct compress_calibration *of, struct err *e) {
    bool searches = !strcmp(o->allocate, "search"), calibrated = of->stats || of->imatrix;
    struct prune_allocation owl = {0}, *first = searches ? &owl : out;
    int rc = calibrated ? by_outliers(first, model, o, of, e) : 0;
    if (!rc && calibrated) rc = put_owl(c, first, e);
    if (!rc && searches) rc = by_search(out, c, model, o, of, calibrated ? &owl : NULL, e);
    if (!rc && searches) rc = put_search(c, out, e);
    prune_allocation_release(&owl);
    return rc;
}
