/* rill ls: lists what is in a stream, one line for each part. */
#include "lib/cli/cli.h"
#include "lib/view/view.h"

static struct view_list_options how;

static const struct cli_option options[] = {
    {.name = "batches",
     .type = CLI_FLAG,
     .to = &how.batches,
     .help = "list every batch of a data stream, rather than their totals"},
    {.name = "json", .type = CLI_FLAG, .to = &how.json, .help = "write JSON, a line for each part"},
    {0},
};

static int run(struct cli *c, struct err *e) {
    struct stream_reader *r;
    FILE *out;
    int rc = cli_open_stream(c, cli_input_path(c, 0), "stdin", STREAM_ANY, &r, e);
    if (!rc) rc = cli_text(c, &out, e);
    return rc ? rc : view_list(r, out, &how, e);
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "ls",
        .summary = "list what is in a stream",
        .operands = "[FILE]",
        .max_operands = 1,
        .reads_stdin = true,
        .writes_text = true,
        .description =
            "Prints the kind and the plain facts of each segment, a line for each tensor (element type, "
            "shape, bytes, what share of them is stored, codec, name) and the totals with the digest of the "
            "content, which does not cover the provenance or the file's name. Numbers of each layer are "
            "shown as 5x512,0 (five times 512, then 0); ends lists the tokens that end a text. Tensors in "
            "batches are summed up by name: their first dimension counts through all batches.\n\nIn a regular "
            "file the data is skipped and not verified; use check for that.",
        .examples = "rill ls model.rill\n"
                    "    the tensors of a model\n"
                    "rill ls --json model.rill\n"
                    "    the same for programs\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
