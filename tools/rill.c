/* rill: the dispatcher. `rill NAME ...` runs rill-NAME; lib/cli/dispatch.c says where it is looked for. */
#include "lib/cli/cli.h"
#include "lib/formats/formats.h"

static void print_architectures(FILE *out) {
    struct arch_summary a;
    fprintf(out, "%-12s %-34s %-10s %s\n", "name", "transformers", "llama.cpp", "models");
    for (size_t i = 0; arch_summary(i, &a); i++)
        fprintf(out, "%-12s %-34s %-10s %s\n", a.name, a.class, a.gguf ? a.gguf : "-", a.models);
    fprintf(
        out,
        "\nImport and export read and write what the second and third column name; '-': export --to gguf refuses.\n"
        "Every program works on every architecture that generates. Encoders (BERT and its like) are imported,\n"
        "calibrated, pruned, quantized and exported, and so is bilstm, which has no heads or feed-forward parts to\n"
        "prune. Masked-LM heads and classifiers of sequences teach and learn (teacher-infer, distill, eval). Where\n"
        "logits of the next token are meant, all of these are refused.\n");
}

static const struct cli_topic topics[] = {
    {"architectures", "models that are known, and who else reads them", print_architectures},
    {"common", "options that programs share, and what holds for all of them", cli_help_common},
    {NULL, NULL, NULL},
};

int main(int argc, char **argv) {
    return cli_dispatch(argc, argv, topics);
}
