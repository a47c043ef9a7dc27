/* hints: maps options, values and programs of other tools to ours, for the message about an unknown one. */
#include <string.h>

#include "lib/cli/cli_internal.h"

/* Options of transformers, TRL and llama.cpp, compared with '_' read as '-'. The first of `ours` that the program has
 * is the equivalent. */
static const struct {
    const char *theirs, *ours[2];
} options[] = {
    {"b", {"batch-tokens"}},
    {"batch-size", {"batch-tokens"}},
    {"bf16", {"precision", "dtype"}},
    {"bits", {"type"}},
    {"block-size", {"context", "pack"}},
    {"c", {"context"}},
    {"cache-type-k", {"kv-cache"}},
    {"cache-type-v", {"kv-cache"}},
    {"calib-data", {"data"}},
    {"calibration-data", {"data"}},
    {"ctx-size", {"context"}},
    {"dataset", {"data"}},
    {"eval-steps", {"eval-every"}},
    {"eval-dataset", {"eval"}},
    {"format", {"to"}},
    {"fp16", {"precision", "dtype"}},
    {"gradient-accumulation-steps", {"batch-tokens"}},
    {"gradient-checkpointing", {"recompute"}},
    {"imatrix", {"stats"}},
    {"kl-divergence", {"reference"}},
    {"kl-divergence-base", {"reference"}},
    {"learning-rate", {"lr"}},
    {"leave-output-tensor", {"head-type"}},
    {"lora-r", {"lora"}},
    {"lora-rank", {"lora"}},
    {"lr-scheduler-type", {"schedule"}},
    {"max-grad-norm", {"clip"}},
    {"max-length", {"context", "max-new"}},
    {"max-seq-length", {"context"}},
    {"max-steps", {"steps"}},
    {"n-predict", {"max-new"}},
    {"num-epochs", {"epochs"}},
    {"num-hidden-layers", {"layers"}},
    {"num-layers", {"layers"}},
    {"num-return-sequences", {"repeat"}},
    {"num-train-epochs", {"epochs"}},
    {"optim", {"optimizer"}},
    {"out", {"output"}},
    {"outfile", {"output"}},
    {"output-dir", {"output"}},
    {"outtype", {"dtype", "type"}},
    {"output-tensor-type", {"head-type"}},
    {"per-device-train-batch-size", {"batch-tokens"}},
    {"ppl-stride", {"stride"}},
    {"quant-method", {"method"}},
    {"quant-type", {"type"}},
    {"ratio", {"sparsity"}},
    {"resume-from-checkpoint", {"resume"}},
    {"save-steps", {"checkpoint-every"}},
    {"seq-len", {"context"}},
    {"seq-length", {"context"}},
    {"student", {"model"}},
    {"t", {"threads"}},
    {"temp", {"temperature"}},
    {"token-embedding-type", {"embed-type"}},
    {"topk", {"encode", "top-k"}},
    {"train-batch-size", {"batch-tokens"}},
    {"warmup-steps", {"warmup"}},
};

/* Options that have no equivalent option. */
static const struct {
    const char *program, *theirs, *advice;
} advices[] = {
    {"generate", "p",
     "prompts are a token stream: rill tokenize -m MODEL --lines FILE | rill generate -m MODEL --text"},
    {"generate", "prompt",
     "prompts are a token stream: rill tokenize -m MODEL --lines FILE | rill generate -m MODEL --text"},
    {"eval", "f", "text is tokenized first: rill tokenize -m MODEL FILE | rill eval -m MODEL -"},
    {"eval", "file", "text is tokenized first: rill tokenize -m MODEL FILE | rill eval -m MODEL -"},
    {"generate", "n-gpu-layers", "there is no GPU support"},
    {"eval", "n-gpu-layers", "there is no GPU support"},
};

static const struct {
    const char *option, *theirs, *advice;
} values[] = {
    {"method", "awq", "AWQ is a step of its own before: rill fold --method awq"},
    {"method", "smoothquant", "it is rill fold --method smooth"},
    {"to", "hf", "did you mean safetensors?"},
    {"to", "huggingface", "did you mean safetensors?"},
    {"to", "transformers", "did you mean safetensors?"},
    {"to", "llama.cpp", "did you mean gguf?"},
};

static const char *const programs[][2] = {
    {"chat", "generate"},     {"convert", "import"},      {"finetune", "distill"}, {"fine-tune", "distill"},
    {"imatrix", "calibrate"}, {"infer", "teacher-infer"}, {"inspect", "ls"},       {"list", "ls"},
    {"perplexity", "eval"},   {"quant", "quantize"},      {"run", "generate"},     {"sft", "distill"},
    {"train", "distill"},     {"evaluate", "eval"},
};

static bool same_word(const char *a, const char *b, size_t n) {
    for (size_t i = 0; i < n; i++)
        if ((a[i] == '_' ? '-' : a[i]) != (b[i] == '_' ? '-' : b[i])) return false;
    return true;
}

static bool same(const char *a, const char *b) {
    return strlen(a) == strlen(b) && same_word(a, b, strlen(a));
}

const char *hint_option(const char *word, const char *const *names, size_t n) {
    const char *begun = NULL;
    for (size_t i = 0; i < n; i++)
        if (same(names[i], word) && strcmp(names[i], word) != 0) return names[i]; /* --top_k */
    for (size_t k = 0; k < COUNT_OF(options); k++)
        for (size_t j = 0; same(options[k].theirs, word) && j < 2 && options[k].ours[j]; j++)
            for (size_t i = 0; i < n; i++)
                if (!strcmp(names[i], options[k].ours[j])) return names[i];
    for (size_t i = 0; i < n; i++) { /* --max-new-tokens begins with --max-new */
        size_t length = strlen(names[i]);
        if (length > 5 && strlen(word) > length && (word[length] == '-' || word[length] == '_') &&
            same_word(names[i], word, length) && (!begun || length > strlen(begun)))
            begun = names[i];
    }
    return begun;
}

const char *hint_advice(const char *program, const char *word) {
    for (size_t i = 0; i < COUNT_OF(advices); i++)
        if (!strcmp(advices[i].program, program) && same(advices[i].theirs, word)) return advices[i].advice;
    return NULL;
}

const char *hint_value(const char *option, const char *value) {
    for (size_t i = 0; i < COUNT_OF(values); i++)
        if (!strcmp(values[i].option, option) && same(values[i].theirs, value)) return values[i].advice;
    return NULL;
}

const char *hint_program(const char *name) {
    for (size_t i = 0; i < COUNT_OF(programs); i++)
        if (same(programs[i][0], name)) return programs[i][1];
    return NULL;
}
