/* rill eval: measures a model: perplexity, divergence from a reference, tasks. */
#include "lib/metrics/metrics.h"
#include "lib/session/session.h"

static struct session_options how;
static const char *protocol, *reference;
static uint64_t context, stride, max_windows;
static double fail_above;
static struct cli_list tasks;
static bool table;

static const struct cli_option options[] = {
    SESSION_MODEL(how, "FILE", true, "the model stream to evaluate"),
    SESSION_PRECISION(how),
    {.name = "protocol",
     .type = CLI_CHOICE,
     .to = &protocol,
     .arg = "NAME",
     .choices = "gptq|llama|sliding|sequences|documents",
     .fallback = "gptq",
     .help =
         "which tokens are scored after which context, see above; of a stream of packs (tokenize --pack) sequences, "
         "if it is not given"},
    {.name = "context",
     .type = CLI_U64,
     .to = &context,
     .arg = "N",
     .min = 2,
     .max = UINT32_MAX,
     .help = "tokens in a window; without it, 512 or the model's context if that is less (protocol sequences: the "
             "model's context)"},
    {.name = "stride",
     .type = CLI_U64,
     .to = &stride,
     .arg = "N",
     .min = 1,
     .max = UINT32_MAX,
     .needs = {"protocol=sliding"},
     .help = "tokens from one window to the next; without it, half the context"},
    {.name = "max-windows",
     .type = CLI_U64,
     .to = &max_windows,
     .arg = "N",
     .fallback = "0",
     .help = "score the first N windows only; 0: all"},
    {.name = "reference",
     .type = CLI_STRING,
     .to = &reference,
     .arg = "KNOWLEDGE",
     .completes_files = true,
     .help = "how far the model is from this knowledge (teacher-infer, logit-dump)"},
    {.name = "task",
     .type = CLI_LIST,
     .to = &tasks,
     .arg = "FILE",
     .completes_files = true,
     .help = "score the minimal pairs or multiple-choice questions of this JSON-lines file"},
    {.name = "table", .type = CLI_FLAG, .to = &table, .help = "print tables for reading instead of JSON lines"},
    {.name = "fail-above",
     .type = CLI_F64,
     .to = &fail_above,
     .arg = "PPL",
     .min = 1,
     .max = 1e30,
     .help = "exit with 4 when the perplexity is above this"},
    {0},
};

struct eval {
    struct cli *c;
    struct model *m;
    cJSON *results; /* array; belongs to the report */
    struct perplexity *p;
    struct labelling *l;
    struct divergence *d;
};

/* Takes ownership of the result. */
static int put_result(struct eval *v, cJSON *result, struct err *e) {
    if (!result) return e->code;
    if (!cJSON_AddItemToArray(v->results, result)) {
        cJSON_Delete(result);
        return err_nomem(e, "results");
    }
    return table ? 0 : cli_result(v->c, result, e);
}

/* ---- perplexity -------------------------------------------------------------------------------------------------- */

static void show_perplexity(void *ctx) {
    const struct eval *v = ctx;
    if (perplexity_scored(v->p)) cli_progress(v->c, perplexity_scored(v->p), "perplexity %.4g", perplexity_value(v->p));
}

/* Documents that tokenize has kept apart are not joined here. */
static int choose_protocol(struct eval *v, const struct session_data *in, struct perplexity_options *o, struct err *e) {
    if (perplexity_protocol_parse(protocol, &o->protocol, e)) return e->code;
    if (in->format.pack && !cli_given(v->c, "protocol")) o->protocol = PPL_SEQUENCES;
    if (in->format.pack && o->protocol != PPL_SEQUENCES && o->protocol != PPL_DOCUMENTS)
        return err_set(e, ERR_USAGE, "%s is packed, and --protocol %s would join its documents (sequences, documents)",
                       stream_reader_name(in->stream), protocol);
    return perplexity_choose(o, v->m, e);
}

static int eval_tokens(struct eval *v, double *value, struct err *e) {
    struct perplexity_options o = {
        .context = (uint32_t)context, .stride = (uint32_t)stride, .max_windows = max_windows, .batch_positions = 2048};
    struct session_data in = {0};
    int rc = session_open_data(v->c, cli_input_path(v->c, 0), "tokens", STREAM_ANY, v->m, &in, e);
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

/* ---- masked tokens and classes ------------------------------------------------------------------------------------------- */

static void show_labels(void *ctx) {
    const struct eval *v = ctx;
    if (labelling_scored(v->l))
        cli_progress(v->c, labelling_scored(v->l), "perplexity %.4g", labelling_perplexity(v->l));
}

/* The model is one of masked tokens, or a classifier: its data holds the labels, and no protocol is needed. */
static int eval_labels(struct eval *v, double *value, struct err *e) {
    static const char *const unused[] = {"protocol", "context", "stride", "max-windows"};
    struct session_data in = {0};
    for (size_t i = 0; i < COUNT_OF(unused); i++)
        if (cli_given(v->c, unused[i]))
            return err_set(e, ERR_USAGE, "--%s is for models that predict the next token", unused[i]);
    int rc = session_open_data(v->c, cli_input_path(v->c, 0), "tokens", STREAM_ANY, v->m, &in, e);
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

/* ---- divergence ------------------------------------------------------------------------------------------------------------- */

static void show_divergence(void *ctx) {
    const struct eval *v = ctx;
    cli_progress(v->c, divergence_positions(v->d), NULL);
}

static int eval_reference(struct eval *v, struct err *e) {
    struct session_data in = {0};
    int rc = session_open_data(v->c, reference, "reference", STREAM_KNOWLEDGE, v->m, &in, e);
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
    struct task **t = mem_array(tasks.n, sizeof(struct task *), e);
    cJSON *means = cJSON_CreateArray(), *mean;
    int rc = !t ? e->code : !means ? err_nomem(e, "results") : 0;
    for (size_t i = 0; !rc && i < tasks.n; i++) {
        struct cli_file *f;
        rc = cli_open_file(v->c, tasks.items[i], "task", &f, e);
        if (!rc) rc = task_new(&t[i], v->m, tasks.items[i], e);
        if (!rc) rc = feed_task(v, f, t[i], e);
        if (!rc) rc = put_result(v, task_json(t[i], e), e);
    }
    if (!rc) rc = task_means(t, tasks.n, means, e);
    while (!rc && (mean = cJSON_DetachItemFromArray(means, 0))) rc = put_result(v, mean, e);
    cJSON_Delete(means);
    for (size_t i = 0; t && i < tasks.n; i++) task_free(t[i]);
    mem_free(t);
    return rc;
}

/* ---- all of it --------------------------------------------------------------------------------------------------- */

/* With --reference or --task there need not be a stream. */
static bool wants_tokens(const struct cli *c) {
    return cli_operands(c) || cli_wants_stdin(c);
}

static int check_usage(const struct cli *c, struct err *e) {
    static const char *const for_tokens[] = {"protocol", "context", "stride", "max-windows", "fail-above"};
    for (size_t i = 0; !wants_tokens(c) && i < COUNT_OF(for_tokens); i++)
        if (cli_given(c, for_tokens[i]))
            return err_set(e, ERR_USAGE, "--%s is for tokens: name their stream too, - for standard input",
                           for_tokens[i]);
    return 0;
}

static int run(struct cli *c, struct err *e) {
    struct eval v = {.c = c, .results = cJSON_AddArrayToObject(cli_report(c), "results")};
    double perplexity = 0;
    int rc = v.results ? check_usage(c, e) : err_nomem(e, "results");
    if (!rc) rc = session_load_model(c, &how, session_weight_format(&how), &v.m, NULL, e);
    bool next = !rc && model_predicts(&v.m->config) == TARGET_NEXT;
    if (!rc && wants_tokens(c)) rc = next ? eval_tokens(&v, &perplexity, e) : eval_labels(&v, &perplexity, e);
    if (!rc && reference) rc = eval_reference(&v, e);
    if (!rc && tasks.n) rc = eval_tasks(&v, e);
    if (!rc && table) rc = cli_table(c, v.results, e);
    if (!rc && cli_given(c, "fail-above") && !(perplexity <= fail_above))
        rc = err_set(e, ERR_CHECK, "the perplexity is %.6g: above %.6g", perplexity, fail_above);
    model_free(v.m);
    return rc;
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "eval",
        .summary = "measure a model: perplexity, divergence from a reference, tasks",
        .operands = "[TOKENS]",
        .max_operands = 1,
        .reads_stdin = true,
        .stdin_unless = "reference|task",
        .writes_text = true,
        .threaded = true,
        .description =
            "Prints one JSON object a line. Perplexity is of a token stream, by a protocol that is printed with it, "
            "because protocols are not comparable. The stream is standard input; with --reference or --task, which do "
            "not need one, only if it is a file (< FILE); name a pipe with -.\n  gptq       one text in disjoint "
            "windows, all but a window's first token scored\n  llama      the same windows, BOS first, only the second "
            "half scored (llama.cpp)\n  sliding    windows that overlap, each token scored once (Hugging Face)\n  "
            "sequences  each sequence on its own, all but its first token\n  documents  each sequence a document after "
            "BOS, also per word and byte (lm-eval)\n\nA masked language model is evaluated on tokens that were masked "
            "(tokenize --mask-rate), by perplexity and accuracy over them, a classifier on texts with classes "
            "(tokenize --labels), by accuracy and F1; neither has a protocol.\n\n--reference compares with a teacher, "
            "as llama.cpp does. A key "
            "means the same whatever the encoding of the knowledge; what an encoding does not determine is bounded "
            "under another key, or left out:\n  all           perplexity of all labels, at temperature 1\n  dense      "
            "   kld, same_top, perplexity_reference, ln_ratio, ln_correlation,\n                delta_p\n  topk, ghost "
            "  same_top, labels_known (labels among the entries), and bounds:\n                kld_lower_bound, "
            "perplexity_reference_lower_bound,\n                ln_ratio_upper_bound, delta_p_lower_bound, "
            "delta_p_upper_bound\n  sample        cross_entropy: kld plus the teacher's entropy\nDense knowledge is "
            "compared at temperature 1, other knowledge at its own: keys at another temperature begin with tempered_, "
            "and what needs the teacher at 1 is left out.\n\n--task files hold minimal pairs (sentence_good, "
            "sentence_bad) or questions (context, choices, answer), one JSON object a line. acc compares "
            "log-probabilities, acc_norm, acc_bytes and acc_tokens divide them by length first; _low and _high bound "
            "Wilson's 95% interval.",
        .examples =
            "rill eval -m model.rill --context 64 tokens.rill\n    perplexity\n"
            "rill eval -m model.rill --protocol sliding --context 64 --stride 16 --table < tokens.rill\n"
            "    by overlapping windows, for reading\n"
            "rill eval -m student.rill --reference corpus.kd.rill --context 64 < tokens.rill\n"
            "    perplexity, and how far the student is from its teacher\n"
            "rill eval -m model.rill --task pairs.jsonl\n    how often the good sentence is the more probable one\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
