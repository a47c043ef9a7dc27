/* rill eval: measures a model: perplexity, divergence from a reference, tasks. */
#include "lib/evaluation/evaluation.h"
#include "lib/formats/formats.h"

static struct session_options how = {.kv_interleaves = target_interleaves};
static struct cli_list tasks;
static struct evaluation_options what = {.model = &how, .tasks = &tasks};
static uint64_t context, stride;
static double fail_above;

static const struct cli_option options[] = {
    SESSION_MODEL(how, "FILE", true, "the model to evaluate"),
    SESSION_PRECISION(how),
    SESSION_KV_CACHE(how),
    {.name = "protocol",
     .type = CLI_CHOICE,
     .to = &what.protocol,
     .arg = "NAME",
     .choices = "gptq|llama|sliding|sequences|documents",
     .fallback = "gptq",
     .help = "which tokens are scored after which context, see above; for packed tokens (tokenize --pack) the default "
             "is sequences"},
    {.name = "context",
     .type = CLI_U64,
     .to = &context,
     .arg = "N",
     .min = 2,
     .max = UINT32_MAX,
     .help = "tokens per window; if not given, 512 or the model's context, whichever is smaller (protocol sequences: "
             "the model's context)"},
    {.name = "stride",
     .type = CLI_U64,
     .to = &stride,
     .arg = "N",
     .min = 1,
     .max = UINT32_MAX,
     .needs = {"protocol=sliding"},
     .help = "tokens from the start of one window to the next; if not given, half the context"},
    {.name = "max-windows",
     .type = CLI_U64,
     .to = &what.max_windows,
     .arg = "N",
     .fallback = "0",
     .help = "score only the first N windows; 0: all"},
    {.name = "reference",
     .type = CLI_STRING,
     .to = &what.reference,
     .arg = "KNOWLEDGE",
     .completes_files = true,
     .help = "compare with these predictions of a teacher (teacher-infer, logit-dump)"},
    {.name = "task",
     .type = CLI_LIST,
     .to = &tasks,
     .arg = "FILE",
     .completes_files = true,
     .help = "score the minimal pairs or multiple-choice questions in this JSON Lines file"},
    {.name = "table",
     .type = CLI_FLAG,
     .to = &what.table,
     .help = "print tables for reading instead of JSON; -v adds percentiles and the model's digest"},
    {.name = "fail-above",
     .type = CLI_F64,
     .to = &fail_above,
     .arg = "PPL",
     .min = 1,
     .max = 1e30,
     .help = "exit with code 4 if the perplexity is above PPL"},
    {0},
};

/* With --reference or --task a token stream is optional. */
static bool wants_tokens(const struct cli *c) {
    return cli_operands(c) || cli_wants_stdin(c);
}

static int check_usage(const struct cli *c, struct err *e) {
    static const char *const for_tokens[] = {"protocol", "context", "stride", "max-windows", "fail-above"};
    for (size_t i = 0; !wants_tokens(c) && i < COUNT_OF(for_tokens); i++)
        if (cli_given(c, for_tokens[i]))
            return err_set(e, ERR_USAGE, "--%s applies to tokens: name a token stream, or - for standard input",
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
        .summary = "measure perplexity, divergence from a teacher, and accuracy on tasks",
        .operands = "[TOKENS]",
        .max_operands = 1,
        .reads_stdin = true,
        .stdin_unless = "reference|task",
        .writes_text = true,
        .threaded = true,
        .description =
            "Prints one JSON object per result, which also names the model with its digest, the bytes of its tensors "
            "and its bits per weight.\n\nPerplexity is measured on a token stream by one of these protocols. The "
            "result names the protocol, because values from different protocols cannot be compared.\n  gptq       one "
            "text in disjoint windows, all but a window's first token scored\n  llama      the same windows, BOS "
            "first, only the second half scored (llama.cpp)\n  sliding    windows that overlap, each token scored once "
            "(Hugging Face)\n  sequences  each sequence on its own, all but its first token\n  documents  each "
            "sequence a document after BOS, also per word and byte (lm-eval)\n\nThe token stream is the operand or "
            "standard input. With --reference or --task, which work without one, standard input is read only if it is "
            "a regular file (< FILE); write - to read a pipe.\n\nA masked language model is evaluated on masked tokens "
            "(tokenize --mask-rate), by perplexity and accuracy; a classifier on labelled texts (tokenize --labels) or "
            "labelled words (--tags), by accuracy and F1. Protocols do not apply to either.\n\n--reference compares "
            "the model with a teacher, as llama.cpp's --kl-divergence does. A key always means the same, whatever the "
            "encoding of the knowledge; what an encoding does not determine is bounded under another key, or left "
            "out:\n  all           perplexity of all labels, at temperature 1\n  dense         kld, same_top, "
            "perplexity_reference, ln_ratio, ln_correlation,\n                delta_p\n  topk, ghost   same_top, "
            "labels_known (share of labels among the entries), and bounds:\n                kld_lower_bound, "
            "perplexity_reference_lower_bound,\n                ln_ratio_upper_bound, delta_p_lower_bound, "
            "delta_p_upper_bound\n  sample        cross_entropy: kld plus the teacher's entropy\nDense knowledge is "
            "compared at temperature 1, other knowledge at its own temperature: the names of such keys begin with "
            "tempered_, and keys that need the teacher at temperature 1 are left out.\n\n--task files hold minimal "
            "pairs (sentence_good, sentence_bad) or multiple-choice questions (context, choices, answer), one JSON "
            "object per line. acc compares log-probabilities; acc_norm, acc_bytes and acc_tokens divide them by length "
            "first; _low and _high are the bounds of Wilson's 95% interval.",
        .examples = "rill eval -m model.rill --context 64 tokens.rill\n"
                    "    perplexity\n"
                    "rill eval -m model.rill --protocol sliding --context 64 --stride 16 --table < tokens.rill\n"
                    "    perplexity over overlapping windows, as a table\n"
                    "rill eval -m student.rill --reference corpus.kd.rill --context 64 < tokens.rill\n"
                    "    perplexity, and divergence from the teacher\n"
                    "rill eval -m assistant.rill --context 64 --kv-cache q4_0 tokens.rill\n"
                    "    perplexity with keys and values cached in 4.5 bits, as a runtime would\n"
                    "rill eval -m model.rill --task pairs.jsonl\n"
                    "    how often the good sentence is the more probable one\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
