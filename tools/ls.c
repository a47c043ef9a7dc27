/* rill ls: lists the contents of a stream, one line per item. */
#include "lib/cli/cli.h"
#include "lib/view/view.h"

static struct view_list_options how;

static const struct cli_option options[] = {
    {.name = "batches",
     .type = CLI_FLAG,
     .to = &how.batches,
     .help = "list every batch of a data stream instead of totals"},
    {.name = "json", .type = CLI_FLAG, .to = &how.json, .help = "print JSON, one object per line"},
    {0},
};

/* With several files, prints a line with the name before each. */
static int put_name(FILE *out, const char *name, bool first, struct err *e) {
    if (how.json) {
        cJSON *j = cJSON_CreateObject();
        return cli_put_json(out, j, json_put_str(j, "type", "file") && json_put_str(j, "name", name), e);
    }
    if (!first) fputc('\n', out);
    cli_put(out, name);
    fputs(":\n", out);
    return 0;
}

static int run(struct cli *c, struct err *e) {
    struct stream_reader *r;
    FILE *out;
    size_t n = cli_operands(c) ? cli_operands(c) : 1;
    int rc = 0;
    for (size_t i = 0; !rc && i < n; i++) {
        rc = cli_open_stream(c, cli_input_path(c, i), "stdin", STREAM_ANY, &r, e);
        if (!rc) rc = cli_text(c, &out, e);
        if (!rc && n > 1) rc = put_name(out, stream_reader_name(r), i == 0, e);
        if (!rc) rc = view_list(r, out, &how, e);
    }
    return rc;
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "ls",
        .summary = "list the contents of a stream",
        .operands = "[FILE...]",
        .max_operands = -1,
        .reads_stdin = true,
        .writes_text = true,
        .description =
            "Prints the kind and the main facts of each segment, then a table of its tensors: element type, shape, "
            "bytes, name and, for compressed ones, the codec and the share of bytes it needs. For a model, the "
            "parameters and bytes of its parts follow; norms and biases count with the part they belong to, and a tied "
            "output matrix counts as embedding. The last line has the bytes of all tensors, the bytes of the whole "
            "stream, and the digest of the content, which covers neither provenance nor file name.\n\nNumbers of each "
            "layer are abbreviated: 5x512,0 is five times 512, then 0. Long lists are cut, and facts that do not apply "
            "are left out (there is no tied=false). \"ends\" lists the end tokens. Tensors in batches are summed up by "
            "name, with their first dimension counted over all batches.\n\nIn a regular file the data is skipped, not "
            "verified; rill check verifies it.",
        .examples = "rill ls model.rill\n"
                    "    the tensors of a model, and the size of its parts\n"
                    "rill ls model.rill tokens.rill\n"
                    "    two files\n"
                    "rill ls --json model.rill\n"
                    "    for other programs\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
