/* rill cat: concatenates streams or selected tensors of them, re-encoded or unchanged. */
#include <fnmatch.h>

#include "lib/cli/cli.h"

static struct cli_list select_globs, drop_globs;
static bool merge;

static const struct cli_option options[] = {
    {.name = "select",
     .type = CLI_LIST,
     .to = &select_globs,
     .arg = "GLOB",
     .help = "keep only tensors whose names match GLOB"},
    {.name = "drop",
     .type = CLI_LIST,
     .to = &drop_globs,
     .arg = "GLOB",
     .help = "leave out tensors whose names match GLOB"},
    {.name = "merge",
     .type = CLI_FLAG,
     .to = &merge,
     .help = "join data streams with the same description into one segment, and number their sequences consecutively"},
    {0},
};

/* Marks all globs that match, not only the first, so that unused ones can be reported. */
static bool matches(const struct cli_list *globs, bool *used, const char *name) {
    bool any = false;
    for (size_t i = 0; i < globs->n; i++)
        if (!fnmatch(globs->items[i], name, 0)) any = used[i] = true;
    return any;
}

struct chosen {
    bool *selected, *dropped; /* which GLOBs have matched a tensor */
};

static bool keep(void *ctx, const char *name) {
    struct chosen *k = ctx;
    bool drop = matches(&drop_globs, k->dropped, name), select = matches(&select_globs, k->selected, name);
    return (select_globs.n == 0 || select) && !drop;
}

static int check_used(const char *option, const struct cli_list *globs, const bool *used, struct err *e) {
    for (size_t i = 0; i < globs->n; i++)
        if (!used[i])
            return err_set(e, ERR_USAGE, "--%s '%s': no tensor has such a name (rill ls lists them)", option,
                           globs->items[i]);
    return 0;
}

static int run(struct cli *c, struct err *e) {
    struct stream_writer *w;
    struct stream_reader *r;
    struct stream_copier *k = NULL;
    struct chosen chosen = {mem_zalloc(select_globs.n + 1, e), mem_zalloc(drop_globs.n + 1, e)};
    const struct stream_copy_options o = {
        .keep = select_globs.n || drop_globs.n ? keep : NULL,
        .ctx = &chosen,
        .recode = cli_given(c, "codec"),
        .merge = merge,
    };
    size_t n = cli_operands(c) ? cli_operands(c) : 1;
    int rc = chosen.selected && chosen.dropped ? cli_open_output(c, &w, e) : err_nomem(e, "patterns");
    if (!rc) rc = stream_copier_new(&k, w, &o, e);
    for (size_t i = 0; !rc && i < n; i++) {
        rc = cli_open_stream(c, cli_input_path(c, i), "stdin", STREAM_ANY, &r, e);
        if (!rc) rc = stream_copier_add(k, r, e);
    }
    if (!rc) rc = check_used("select", &select_globs, chosen.selected, e);
    if (!rc) rc = check_used("drop", &drop_globs, chosen.dropped, e);
    if (!rc) rc = cli_close_output(c, e);
    mem_free(chosen.selected);
    mem_free(chosen.dropped);
    stream_copier_free(k);
    return rc;
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "cat",
        .summary = "join streams, extract parts of them, or recompress them",
        .operands = "[FILE...]",
        .max_operands = -1,
        .reads_stdin = true,
        .writes_stream = true,
        .threaded = true,
        .description =
            "Writes the segments of its inputs one after another. Tensors are copied as they are stored, or stored "
            "anew with --codec. The system's cat can join streams too; this one verifies what it copies, and records "
            "it in the provenance.\n\n--select and --drop take shell patterns and may be repeated; --drop wins over "
            "--select. The tensors `tokens` and `lengths` of a batch are always kept. Batches that lose tensors are "
            "stored raw unless --codec is given.",
        .examples = "rill cat model.rill --codec planes > model.small.rill\n"
                    "    the same model in two thirds of the bytes\n"
                    "rill cat --merge a.tok.rill b.tok.rill > both.tok.rill\n"
                    "    one token stream from two\n"
                    "rill cat --select 'layers.0.*' --select norm.weight model.rill > part.rill\n"
                    "    some of the tensors\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
