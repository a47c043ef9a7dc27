/* rill show: prints values of tensors, and everything else in a stream, as text. */
#include <inttypes.h>

#include "lib/cli/cli.h"
#include "lib/view/view.h"

static struct view_options how;
static uint64_t batch;

static const struct cli_option options[] = {
    {.name = "tensor",
     .type = CLI_STRING,
     .to = &how.glob,
     .arg = "GLOB",
     .fallback = "*",
     .needs = {"!meta", "!prov", "!vocab"},
     .help = "show only tensors whose names match this shell pattern"},
    {.name = "batch",
     .type = CLI_U64,
     .to = &batch,
     .arg = "N",
     .needs = {"!meta", "!prov", "!vocab"},
     .help = "show only batch number N of a data stream, counted from 0"},
    {.name = "head",
     .type = CLI_U64,
     .to = &how.head,
     .arg = "N",
     .fallback = "8",
     .needs = {"!meta", "!prov", "!vocab", "!tsv", "json|!stats", "json|!histogram"},
     .help = "how many of the first values to show"},
    {.name = "stats",
     .type = CLI_FLAG,
     .to = &how.stats,
     .needs = {"!meta", "!prov", "!vocab", "!tsv"},
     .help = "show range, mean, standard deviation, and how many values are zero, NaN or infinite"},
    {.name = "histogram",
     .type = CLI_FLAG,
     .to = &how.histogram,
     .needs = {"!meta", "!prov", "!vocab", "!tsv"},
     .help = "show a histogram of the values"},
    {.name = "tsv",
     .type = CLI_FLAG,
     .to = &how.tsv,
     .needs = {"!meta", "!prov", "!vocab"},
     .help = "print all values, one line per row, and nothing else"},
    {.name = "json",
     .type = CLI_FLAG,
     .to = &how.json,
     .needs = {"!meta", "!prov", "!vocab", "!tsv"},
     .help = "print JSON, one object per tensor; values that are not finite become null"},
    {.name = "meta", .type = CLI_FLAG, .to = &how.meta, .help = "show the metadata of each segment instead of tensors"},
    {.name = "prov",
     .type = CLI_FLAG,
     .to = &how.prov,
     .help = "show the provenance instead of tensors, oldest step first"},
    {.name = "vocab",
     .type = CLI_FLAG,
     .to = &how.vocab,
     .help = "show the vocabulary instead of tensors: sizes, digests, special tokens and end tokens"},
    {0},
};

/* ERR_USAGE: a requested tensor or batch does not exist. */
static int check_found(const struct cli *c, const struct view_found *found, struct err *e) {
    if (found->tensor) return 0;
    if (cli_given(c, "batch") && found->batches <= batch)
        return err_set(e, ERR_USAGE, "--batch %" PRIu64 ": there are %" PRIu64 " batches", batch, found->batches);
    if (cli_given(c, "tensor"))
        return err_set(e, ERR_USAGE, "--tensor '%s': no tensor has such a name (rill ls lists them)", how.glob);
    return 0;
}

static int run(struct cli *c, struct err *e) {
    struct stream_reader *r;
    struct view_found found;
    FILE *out;
    how.batch = cli_given(c, "batch") ? &batch : NULL;
    int rc = cli_open_stream(c, cli_input_path(c, 0), "stdin", STREAM_ANY, &r, e);
    if (!rc) rc = cli_text(c, &out, e);
    if (!rc) rc = view_show(r, out, &how, &found, e);
    return rc ? rc : check_found(c, &found, e);
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "show",
        .summary = "print tensor values, metadata, vocabulary or provenance",
        .operands = "[FILE]",
        .max_operands = 1,
        .reads_stdin = true,
        .writes_text = true,
        .description =
            "Prints the first values of each tensor or, with --stats or --histogram, a summary. Quantized tensors are "
            "shown dequantized. Tensors in a batch are listed under the number of the batch. --tsv writes all values "
            "for other programs, and integers with every digit.\n\nIn a regular file, data that is not shown is not "
            "verified; rill check verifies it.",
        .examples = "rill show --tensor 'layers.0.*' --stats model.rill\n"
                    "    range, mean and deviation of the first layer's tensors\n"
                    "rill show --tensor norm.weight --tsv model.rill > norm.tsv\n"
                    "    all values of one tensor\n"
                    "rill show --prov model.rill\n"
                    "    which programs made this file, and from what\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
