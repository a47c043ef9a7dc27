/* rill eval: measures a model: perplexity, divergence from a reference, tasks. */
#include "lib/evaluation/evaluation.h"
#include "lib/formats/formats.h"

static struct session_options how = {.kv_interleaves = target_interleaves};
static struct cli_list tasks;
static struct evaluation_options what = {.model = &how, .tasks = &tasks};
static uint64_t context, stride;
static double fail_above;

static const struct cli_option options[] = {
    SESSION_MODEL(how, "FILE", true, "the model stream to evaluate"),
    SESSION_PRECISION(how),
    SESSION_KV_CACHE(how),
    {.name = "protocol",
     .type = CLI_CHOICE,
     .to = &what.protocol,
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
     .to = &what.max_windows,
     .arg = "N",
     .fallback = "0",
     .help = "score the first N windows only; 0: all"},
    {.name = "reference",
     .type = CLI_STRING,
     .to = &what.reference,
     .arg = "KNOWLEDGE",
     .completes_files = true,
     .help = "how far the model is from this knowledge (teacher-infer, logit-dump)"},
    {.name = "task",
     .type = CLI_LIST,
     .to = &tasks,
     .arg = "FILE",
     .completes_files = true,
     .help = "score the minimal pairs or multiple-choice questions of this JSON-lines file"},
    {.name = "table",
     .type = CLI_FLAG,
     .to = &what.table,
     .help = "print tables for reading instead of JSON lines; with -v also percentiles and the model's digest"},
    {.name = "fail-above",
     .type = CLI_F64,
     .to = &fail_above,
     .arg = "PPL",
     .min = 1,
     .max = 1e30,
     .help = "exit with 4 when the perplexity is above this"},
    {0},
};

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
    double perplexity;
    what.tokens = wants_tokens(c) ? cli_input_path(c, 0) : NULL;
    what.context = (uint32_t)context;
    what.stride = (uint32_t)stride;
    int rc = check_usage(c, e);
    if (!rc) rc = evaluation_run(c, &what, &perplexity, e);
    if (!rc && cli_given(c, "fail-above") && !(perplexity <= fail_above))
        rc = err_set(e, ERR_CHECK, "the perplexity is %.6g: above %.6g", perplexity, fail_above);
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
            "Prints one JSON object a line, which ends with the model, its digest, the bytes of its tensors and their "
            "bits "
            "per weight. Perplexity is of a token stream, by a protocol that is printed with it, "
            "because protocols are not comparable. The stream is standard input; with --reference or --task, which do "
            "not need one, only if it is a file (< FILE); name a pipe with -.\n  gptq       one text in disjoint "
            "windows, all but a window's first token scored\n  llama      the same windows, BOS first, only the second "
            "half scored (llama.cpp)\n  sliding    windows that overlap, each token scored once (Hugging Face)\n  "
            "sequences  each sequence on its own, all but its first token\n  documents  each sequence a document after "
            "BOS, also per word and byte (lm-eval)\n\nA masked language model is evaluated on tokens that were masked "
            "(tokenize --mask-rate), by perplexity and accuracy over them, a classifier on texts with classes "
            "(tokenize --labels), or words with tags (--tags), by accuracy and F1 over them; neither has a "
            "protocol.\n\n--reference compares with a teacher, "
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
            "rill eval -m assistant.rill --context 64 --kv-cache q4_0 tokens.rill\n"
            "    perplexity in a run time that keeps its keys and values in 4.5 bits\n"
            "rill eval -m model.rill --task pairs.jsonl\n    how often the good sentence is the more probable one\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
