/* rill diff: measures how far two streams are apart, tensor by tensor. */
#include <inttypes.h>

#include "lib/cli/cli.h"
#include "lib/view/view.h"

static double max_abs, mean_abs, min_cosine;
static bool as_json, all;

static const struct cli_option options[] = {
    {.name = "max-abs", .type = CLI_F64, .to = &max_abs, .arg = "X", .help = "allow values to differ by up to X"},
    {.name = "mean-abs",
     .type = CLI_F64,
     .to = &mean_abs,
     .arg = "X",
     .help = "allow the mean difference in a tensor to be up to X"},
    {.name = "min-cosine",
     .type = CLI_F64,
     .to = &min_cosine,
     .arg = "X",
     .min = -1,
     .max = 1,
     .help = "allow the cosine between two tensors to be as low as X"},
    {.name = "all", .type = CLI_FLAG, .to = &all, .help = "list equal tensors too"},
    {.name = "json",
     .type = CLI_FLAG,
     .to = &as_json,
     .help = "print JSON, one object per tensor and one for the total"},
    {0},
};

static int compare(struct cli *c, FILE *out, const struct view_diff_options *o, struct view_diff_found *found,
                   struct err *e) {
    struct stream_reader *a, *b = NULL;
    struct stream_map *map = NULL;
    int rc = cli_open_stream(c, cli_operand(c, 0), "a", STREAM_ANY, &a, e);
    if (rc) return rc;
    enum stream_kind kind = stream_reader_kind(a);
    bool in_batches = kind == STREAM_TOKENS || kind == STREAM_KNOWLEDGE;
    rc = in_batches ? cli_open_stream(c, cli_operand(c, 1), "b", kind, &b, e)
                    : cli_open_map(c, cli_operand(c, 1), "b", kind, &map, e);
    return rc ? rc : view_diff(a, b, map, out, o, found, e);
}

static int run(struct cli *c, struct err *e) {
    struct view_diff_options o = {.all = all, .json = as_json};
    struct view_diff_found found;
    FILE *out;
    if (cli_given(c, "max-abs")) o.max_abs = &max_abs;
    if (cli_given(c, "mean-abs")) o.mean_abs = &mean_abs;
    if (cli_given(c, "min-cosine")) o.min_cosine = &min_cosine;
    if (cli_text(c, &out, e) || compare(c, out, &o, &found, e)) return e->code;
    if (found.outside == 0) return 0;
    return err_set(e, ERR_CHECK, "%" PRIu64 " differences in %" PRIu64 " tensors%s", found.outside, found.pairs,
                   o.max_abs || o.mean_abs || o.min_cosine ? " are outside the limits" : "");
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "diff",
        .summary = "compare the tensors of two streams",
        .operands = "A B",
        .min_operands = 2,
        .max_operands = 2,
        .writes_text = true,
        .threaded = true,
        .description =
            "Compares tensors of the same name, in f32 whatever their types: the largest, mean and root mean square "
            "difference, the relative error ||A - B|| / ||A||, the cosine, and the bits per element in B. Metadata is "
            "compared too. Prints what differs, then the same figures over all tensors, and fails with exit code 4 if "
            "anything differs.\n\nWith limits (--max-abs, --mean-abs, --min-cosine) it fails only if a tensor exceeds "
            "one of them, is missing, or has another shape; other differences are just printed.\n\nData streams are "
            "compared batch by batch, and printed together by tensor name. For other streams B must be a regular file; "
            "A may be standard input (-). Provenance, and how the data is stored, are not compared.",
        .examples = "rill diff model.rill other.rill\n"
                    "    what differs\n"
                    "rill diff --min-cosine 0.99 model.rill model.q4.rill\n"
                    "    how much quantization changed each tensor, and is each within the limit?\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
