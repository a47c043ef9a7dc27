/* rill plot: draws the learning curves of training logs. */
#include <stdio.h>
#include <string.h>

#include "lib/cli/cli.h"
#include "lib/plot/plot.h"

static struct plot_curves curves;
static const char *logarithmic, *size;

static const struct cli_option options[] = {
    {.name = "y",
     .type = CLI_STRING,
     .to = &curves.y,
     .arg = "COLUMNS",
     .help = "NAME,NAME,...: columns to draw, which every log must have (default: all losses and evaluations)"},
    {.name = "x",
     .type = CLI_STRING,
     .to = &curves.x,
     .arg = "COLUMN",
     .fallback = "step",
     .help = "column for the horizontal axis: step, or tokens to compare runs with different batch sizes"},
    {.name = "log",
     .type = CLI_CHOICE,
     .to = &logarithmic,
     .choices = "none|x|y|xy",
     .fallback = "none",
     .help = "which axes are logarithmic"},
    {.name = "title", .type = CLI_STRING, .to = &curves.title, .arg = "TEXT", .help = "title above the curves"},
    {.name = "size",
     .type = CLI_STRING,
     .to = &size,
     .arg = "WxH",
     .fallback = "900x560",
     .help = "width and height in pixels, 100 to 10000 each"},
    {0},
};

static int parse_size(struct err *e) {
    char width[16];
    uint64_t w, h;
    const char *x = strchr(size, 'x');
    snprintf(width, sizeof width, "%.*s", x && x - size < 15 ? (int)(x - size) : 0, size);
    if (!x || !parse_u64(width, &w) || !parse_u64(x + 1, &h) || w < 100 || w > 10000 || h < 100 || h > 10000)
        return err_set(e, ERR_USAGE, "--size %s: expected WxH, each from 100 to 10000", size);
    curves.width = (unsigned)w;
    curves.height = (unsigned)h;
    return 0;
}

static int read_log(struct cli *c, const char *path, struct plot_table *t, struct err *e) {
    struct cli_file *f;
    struct buf text = {0};
    int rc = cli_open_file(c, path, "log", &f, e);
    if (!rc) rc = cli_file_read_all(f, PLOT_MAX_BYTES, &text, e);
    if (!rc) rc = plot_table_parse(t, cli_file_name(f), (const char *)text.data, text.len, e);
    buf_release(&text);
    return rc;
}

static int draw(struct cli *c, struct plot_table *t, size_t n, struct err *e) {
    struct buf script = {0}, svg = {0};
    FILE *out;
    int rc = 0;
    for (size_t i = 0; !rc && i < n; i++) rc = read_log(c, cli_input_path(c, i), &t[i], e);
    if (!rc) rc = plot_script(&curves, &script, e);
    if (!rc) rc = plot_draw(&script, &svg, e);
    if (!rc) rc = cli_text(c, &out, e);
    if (!rc) fwrite(svg.data, 1, svg.len, out); /* the cli reports errors on closing */
    buf_release(&script);
    buf_release(&svg);
    return rc;
}

static int run(struct cli *c, struct err *e) {
    size_t n = cli_operands(c) ? cli_operands(c) : 1;
    curves.log_x = strchr(logarithmic, 'x') != NULL;
    curves.log_y = strchr(logarithmic, 'y') != NULL;
    if (parse_size(e)) return e->code;
    struct plot_table *t = mem_array(n, sizeof *t, e);
    if (!t) return e->code;
    curves.tables = t;
    curves.n_tables = n;
    int rc = draw(c, t, n, e);
    for (size_t i = 0; i < n; i++) plot_table_release(&t[i]);
    mem_free(t);
    return rc;
}

int main(int argc, char **argv) {
    static const struct cli_program program = {
        .name = "plot",
        .summary = "draw learning curves from training logs",
        .operands = "[LOG]...",
        .max_operands = -1,
        .reads_stdin = true,
        .writes_text = true,
        .description =
            "Reads what distill --log writes, or any tab-separated table of numbers with a header line, and draws the "
            "curves as SVG, which any browser shows. Several logs are drawn into one picture, each curve labelled with "
            "its file name. A column that has numbers only in some lines, such as an evaluation, is drawn as connected "
            "points.\n\nIt is an error if a line has a different number of columns, or anything but numbers. gnuplot "
            "does the drawing and must be installed.",
        .examples = "rill plot run.tsv > run.svg\n"
                    "    all losses and evaluations\n"
                    "rill plot --y ce --log y --title 'two runs' run.tsv again.tsv -o ce.svg\n"
                    "    one loss of two runs, on a logarithmic axis\n"
                    "tail -n +1 run.tsv | rill plot --x tokens - > tokens.svg\n"
                    "    from a pipe, against the number of tokens trained on\n",
        .options = options,
        .run = run,
    };
    return cli_main(&program, argc, argv);
}
