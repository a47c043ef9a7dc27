/* An evaluation as rill eval runs it: each measure reads its data and adds a result. */
#include "lib/evaluation/evaluation.h"

#include "lib/metrics/metrics.h"

struct eval {
    const struct evaluation_options *o;
    struct cli *c;
    struct model *m;
    struct stream_totals totals; /* of the model's stream */
    cJSON *results;              /* array, owned by the report */
    struct perplexity *p;
    struct labelling *l;
    struct divergence *d;
};

/* Adds the model to a result, so that lines of several models can be told apart and compared by size. */
static bool put_model(cJSON *o, const struct eval *v) {
    char digest[DIGEST_TEXT_SIZE];
    const char *path = v->o->model->model;
    uint64_t bytes = v->totals.raw_bytes;
    digest_text(v->totals.digest, digest);
    return json_put_str(o, "model", strcmp(path, "-") != 0 ? path : "standard input") &&
           json_put_str(o, "model_digest", digest) && json_put_u64(o, "model_bytes", bytes) &&
           json_put_f64(o, "bits_per_weight", 8 * (double)bytes / (double)model_parameters(&v->m->config));
}

/* Takes ownership of the result. */
static int put_result(struct eval *v, cJSON *result, struct err *e) {
    if (!result) return e->code;
    if (!put_model(result, v) || !cJSON_AddItemToArray(v->results, result)) {
        cJSON_Delete(result);
        return err_nomem(e, "results");
    }
    return v->o->table ? 0 : cli_result(v->c, result, e);
}

/* ---- perplexity -------------------------------------------------------------------------------------------------- */

static void show_perplexity(void *ctx) {
    const struct eval *v = ctx;
    if (perplexity_scored(v->p)) cli_progress(v->c, perplexity_scored(v->p), "perplexity %.4g", perplexity_value(v->p));
}

/* Documents that tokenize kept apart (packs) must not be joined here. */
static int choose_protocol(const struct eval *v, const struct session_data *in, struct perplexity_options *o,
                           struct err *e) {
    const char *name = v->o->protocol;
    if (perplexity_protocol_parse(name, &o->protocol, e)) return e->code;
    if (in->format.pack && !cli_given(v->c, "protocol")) o->protocol = PPL_SEQUENCES;
    if (in->format.pack && o->protocol != PPL_SEQUENCES && o->protocol != PPL_DOCUMENTS)
        return err_set(e, ERR_USAGE, "%s is packed, and --protocol %s would join its documents (sequences, documents)",
                       stream_reader_name(in->stream), name);
    return perplexity_choose(o, v->m, e);
}

static int eval_tokens(struct eval *v, double *value, struct err *e) {
    struct perplexity_options o = {
        .context = v->o->context, .stride = v->o->stride, .max_windows = v->o->max_windows, .batch_positions = 2048};
    struct session_data in = {0};
    int rc = session_open_data(v->c, v->o->tokens, "tokens", STREAM_ANY, v->m, &in, e);
    if (!rc) rc = choose_protocol(v, &in, &o, e);
    if (!rc) rc = perplexity_new(&v->p, v->m, &o, e);
    cli_progress_begin(v->c, "tokens", 0);
    if (!rc) rc = perplexity_read(v->p, in.stream, &in.format, show_perplexity, v, e);
    cli_progress_end(v->c);
    if (!rc) rc = put_result(v, perplexity_json(v->p, e), e);
    if (!rc) *value = perplexity_value(v->p);
    perplexity_free(v->p);
    session_data_release(&in);
    return rc;
}

/* ---- masked tokens and classes ----------------------------------------------------------------------------------- */

static void show_labels(void *ctx) {
    const struct eval *v = ctx;
    if (labelling_scored(v->l))
        cli_progress(v->c, labelling_scored(v->l), "perplexity %.4g", labelling_perplexity(v->l));
}

/* For models of masked tokens and classifiers: the data holds the labels, so no protocol is needed. */
static int eval_labels(struct eval *v, double *value, struct err *e) {
    static const char *const unused[] = {"protocol", "context", "stride", "max-windows"};
    struct session_data in = {0};
    for (size_t i = 0; i < COUNT_OF(unused); i++)
        if (cli_given(v->c, unused[i]))
            return err_set(e, ERR_USAGE, "--%s is for models that predict the next token", unused[i]);
    int rc = session_open_data(v->c, v->o->tokens, "tokens", STREAM_ANY, v->m, &in, e);
    if (!rc && labelling_new(&v->l, v->m, &in.format, e)) rc = err_prefix(e, "%s", stream_reader_name(in.stream));
    cli_progress_begin(v->c, "labels", 0);
    if (!rc) rc = labelling_read(v->l, in.stream, show_labels, v, e);
    cli_progress_end(v->c);
    if (!rc) rc = put_result(v, labelling_json(v->l, e), e);
    if (!rc) *value = labelling_perplexity(v->l);
    labelling_free(v->l);
    session_data_release(&in);
    return rc;
}

/* ---- divergence -------------------------------------------------------------------------------------------------- */

static void show_divergence(void *ctx) {
    const struct eval *v = ctx;
    cli_progress(v->c, divergence_positions(v->d), NULL);
}

static int eval_reference(struct eval *v, struct err *e) {
    struct session_data in = {0};
    int rc = session_open_data(v->c, v->o->reference, "reference", STREAM_KNOWLEDGE, v->m, &in, e);
    if (!rc && divergence_new(&v->d, v->m, &in.format, e)) rc = err_prefix(e, "%s", stream_reader_name(in.stream));
    cli_progress_begin(v->c, "positions", 0);
    if (!rc) rc = divergence_read(v->d, in.stream, show_divergence, v, e);
    cli_progress_end(v->c);
    if (!rc) rc = put_result(v, divergence_json(v->d, e), e);
    divergence_free(v->d);
    session_data_release(&in);
    return rc;
}

/* ---- tasks ------------------------------------------------------------------------------------------------------- */

static int feed_task(struct eval *v, struct cli_file *f, struct task *t, struct err *e) {
    char text[1 << 14];
    size_t got = 1;
    int rc = 0;
    cli_progress_begin(v->c, "items", 0);
    while (!rc && got) {
        rc = cli_file_read(f, text, sizeof text, &got, e);
        if (!rc && task_feed(t, text, got, e)) rc = err_prefix(e, "%s", cli_file_name(f));
        cli_progress(v->c, task_items(t), NULL);
    }
    cli_progress_end(v->c);
    if (!rc && task_finish(t, e)) rc = err_prefix(e, "%s", cli_file_name(f));
    return rc;
}

static int eval_tasks(struct eval *v, struct err *e) {
    struct task **t = mem_array(v->o->tasks->n, sizeof(struct task *), e);
    cJSON *means = cJSON_CreateArray(), *mean;
    int rc = !t ? e->code : !means ? err_nomem(e, "results") : 0;
    for (size_t i = 0; !rc && i < v->o->tasks->n; i++) {
        struct cli_file *f;
        rc = cli_open_file(v->c, v->o->tasks->items[i], "task", &f, e);
        if (!rc) rc = task_new(&t[i], v->m, v->o->tasks->items[i], e);
        if (!rc) rc = feed_task(v, f, t[i], e);
        if (!rc) rc = put_result(v, task_json(t[i], e), e);
    }
    if (!rc) rc = task_means(t, v->o->tasks->n, means, e);
    while (!rc && (mean = cJSON_DetachItemFromArray(means, 0))) rc = put_result(v, mean, e);
    cJSON_Delete(means);
    for (size_t i = 0; t && i < v->o->tasks->n; i++) task_free(t[i]);
    mem_free(t);
    return rc;
}

/* ---- the table --------------------------------------------------------------------------------------------------- */

/* Percentiles and the digest are shown only with --verbose. */
static bool is_detail(const char *key) {
    return metrics_is_percentile(key) || !strcmp(key, "model_digest");
}

static int put_table(const struct eval *v, struct err *e) {
    cJSON *shown = cJSON_Duplicate(v->results, true), *o;
    if (!shown) return err_nomem(e, "table");
    cJSON_ArrayForEach(o, shown) {
        for (cJSON *x = o->child, *next; x && !cli_verbose(v->c); x = next) {
            next = x->next;
            if (is_detail(x->string)) cJSON_Delete(cJSON_DetachItemViaPointer(o, x));
        }
    }
    int rc = cli_table(v->c, shown, e);
    cJSON_Delete(shown);
    return rc;
}

/* ---- the whole evaluation ---------------------------------------------------------------------------------------- */

int evaluation_run(struct cli *c, const struct evaluation_options *o, double *perplexity, struct err *e) {
    struct eval v = {.o = o, .c = c, .results = cJSON_AddArrayToObject(cli_report(c), "results")};
    int rc = v.results ? 0 : err_nomem(e, "results");
    *perplexity = 0;
    if (!rc) rc = session_load_model_totals(c, o->model, session_weight_format(o->model), &v.m, &v.totals, e);
    bool next = !rc && model_predicts(&v.m->config) == TARGET_NEXT;
    if (!rc && o->tokens) rc = next ? eval_tokens(&v, perplexity, e) : eval_labels(&v, perplexity, e);
    if (!rc && o->reference) rc = eval_reference(&v, e);
    if (!rc && o->tasks->n) rc = eval_tasks(&v, e);
    if (!rc && o->table) rc = put_table(&v, e);
    model_free(v.m);
    return rc;
}
