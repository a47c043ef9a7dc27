/* rill cat: streams behind each other, whole or in part, encoded anew or as they are. */
#include <fnmatch.h>

#include "lib/cli/cli.h"

static struct cli_list select_globs, drop_globs;
static bool merge;

static const struct cli_option options[] = {
    {.name = "select",
     .type = CLI_LIST,
     .to = &select_globs,
     .arg = "GLOB",
     .help = "keep only tensors of these names"},
    {.name = "drop", .type = CLI_LIST, .to = &drop_globs, .arg = "GLOB", .help = "leave out tensors of these names"},
    {.name = "merge",
     .type = CLI_FLAG,
     .to = &merge,
     .help = "make one segment of data streams that have the same description, with sequences numbered through"},
    {0},
};

static bool matches(const struct cli_list *globs, const char *name) {
    for (size_t i = 0; i < globs->n; i++)
        if (!fnmatch(globs->items[i], name, 0)) return true;
    return false;
}

static bool keep(void *ctx, const char *name) {
    (void)ctx;
    return (select_globs.n == 0 || matches(&select_globs, name)) && !matches(&drop_globs, name);
}

static int run(struct cli *c, struct err *e) {
    struct stream_writer *w;
    struct stream_reader *r;
    struct stream_copier *k = NULL;
    const struct stream_copy_options o = {
        .keep = select_globs.n || drop_globs.n ? keep : NULL,
        .recode = cli_given(c, "codec"),
        .merge = merge,
    };
    size_t n = cli_operands(c) ? cli_operands(c) : 1;
    int rc = cli_open_output(c, &w, e);
    if (!rc) rc = stream_copier_new(&k, w, &o, e);
    for (size_t i = 0; !rc && i < n; i++) {
        rc = cli_open_stream(c, cli_input_path(c, i), "stdin", STREAM_ANY, &r, e);
        if (!rc) rc = stream_copier_add(k, r, e);
    }
    if (!rc) rc = cli_close_output(c, e);
    stream_copier_free(k);
    return rc;
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "cat",
        .summary = "join streams, take parts of them, change how they are stored",
        .operands = "[FILE...]",
        .max_operands = -1,
        .reads_stdin = true,
        .writes_stream = true,
        .threaded = true,
        .description =
            "Writes the segments of its inputs one behind the other. Tensors are passed on as they are stored, unless "
            "--codec is given; then they are decoded and encoded anew. The system's cat joins streams too; "
            "this one "
            "verifies what it copies, and says so in the provenance.\n\n"
            "--select and --drop take shell patterns and may be repeated; what both name is dropped. The tensors "
            "`tokens` and `lengths` of a batch always stay. Batches of which tensors are chosen are encoded anew, raw "
            "without --codec.",
        .examples = "rill cat model.rill --codec planes > model.small.rill\n"
                    "    the same model in two thirds of the bytes\n"
                    "rill cat --merge a.tok.rill b.tok.rill > both.tok.rill\n"
                    "    one token stream of two\n"
                    "rill cat --drop 'hidden.*' corpus.kd.rill > small.kd.rill\n"
                    "    knowledge without the hidden states\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
