/* rill recipe: prints the Makefile that rebuilds a file, from its provenance. */
#include "lib/recipe/recipe.h"
#include "lib/cli/cli.h"

static const char *target;

static const struct cli_option options[] = {
    {.name = "target",
     .type = CLI_STRING,
     .to = &target,
     .arg = "NAME",
     .help = "name of the file in the Makefile; if not given, the name under which it was written, else the operand"},
    {0},
};

/* Without --target: the name in the provenance if the operand still has that base name, in any directory; else the
 * operand. */
static int run(struct cli *c, struct err *e) {
    struct stream_reader *r;
    FILE *out;
    const char *path = cli_input_path(c, 0), *name = target;
    if (cli_open_stream(c, path, "stdin", STREAM_ANY, &r, e) || stream_drain(r, e)) return e->code;
    if (!name && cli_operands(c)) name = recipe_target(stream_reader_prov(r), path);
    if (cli_text(c, &out, e)) return e->code;
    if (recipe_write(stream_reader_prov(r), name, out, e)) return err_prefix(e, "%s", stream_reader_name(r));
    return 0;
}

int main(int argc, char **argv) {
    static const struct cli_program p = {
        .name = "recipe",
        .summary = "print a Makefile that rebuilds a file, from its provenance",
        .operands = "[FILE]",
        .max_operands = 1,
        .reads_stdin = true,
        .writes_text = true,
        .description =
            "Every stream records each program that took part in making it, with its arguments and the digests of its "
            "inputs. recipe turns this record into rules: a file that was written under a name becomes a target, "
            "programs joined by pipes become one pipeline, and whatever was not written by a rill program (texts, "
            "model folders) becomes a prerequisite that must exist, with its digest in a comment.\n\nRun the Makefile "
            "in the folder where the original commands ran. The same version of the programs gives the same bytes. A "
            "file made with --no-provenance has no recipe.\n\nIf the file came from somebody else, read the Makefile "
            "before you run it.",
        .examples = "rill recipe student.rill > Makefile\n"
                    "    the rules that made student.rill\n"
                    "rill recipe student.rill | make -f - -n\n"
                    "    the commands that would run\n",
        .options = options,
        .run = run,
    };
    return cli_main(&p, argc, argv);
}
