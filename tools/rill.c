/* rill: the dispatcher. `rill NAME ...` runs rill-NAME; lib/cli/dispatch.c defines the search path. */
#include "lib/cli/cli.h"
#include "lib/formats/formats.h"

static void print_architectures(FILE *out) {
    struct arch_summary a;
    fprintf(out, "%-12s %-34s %-10s %s\n", "name", "transformers", "llama.cpp", "models");
    for (size_t i = 0; arch_summary(i, &a); i++)
        fprintf(out, "%-12s %-34s %-10s %s\n", a.name, a.class, a.gguf ? a.gguf : "-", a.models);
    fprintf(
        out,
        "\nThe second and third columns are what import reads and export writes; '-': export --to gguf refuses.\n"
        "All programs work with the architectures that generate text. Encoders (BERT and the like) and bilstm can\n"
        "be imported, calibrated, quantized and exported, encoders also pruned. Masked-LM heads and sequence\n"
        "and token classifiers can teach, learn and be evaluated (teacher-infer, distill, eval). Programs that need\n"
        "next-token logits refuse all of these.\n");
}

static const struct cli_topic topics[] = {
    {"architectures", "supported model architectures", print_architectures},
    {"common", "options and conventions that all programs share", cli_help_common},
    {NULL, NULL, NULL},
};

int main(int argc, char **argv) {
    return cli_dispatch(argc, argv, topics);
}
