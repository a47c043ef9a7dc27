/*
 * plot: curves of training logs as SVG, drawn by gnuplot.
 *
 *     plot_table_parse(&t[i], "run.tsv", text, n, e) ...      any number of tables
 *     plot_script(&curves, &script, e)                        a gnuplot script that includes the data
 *     plot_draw(&script, &svg, e)                             runs gnuplot
 *
 *
 * Order of files, each calling only those before it: table, script, draw.
 */
#ifndef RILL_PLOT_H
#define RILL_PLOT_H

#include "lib/base/base.h"

/* ---- a table of numbers (table.c) -------------------------------------------------------------------------------- */

#define PLOT_MAX_BYTES   ((size_t)1 << 28) /* of a table's text */
#define PLOT_MAX_COLUMNS 4096

/* Tab-separated text: a line of column names, then lines of as many numbers, which may be "nan", "inf" or "-inf". */
struct plot_table {
    const char *name; /* of the file, for messages and the key */
    size_t n_cols, n_rows;
    const char **cols; /* [n_cols] */
    double *values;    /* [n_rows][n_cols] */
    struct arena memory;
};
/* Initialise *t to {0}. `name` is not copied and must outlive the table. ERR_DATA names the line. Free with
 * plot_table_release, also after a failure. */
int plot_table_parse(struct plot_table *t, const char *name, const char *text, size_t n, struct err *e) MUST_CHECK;
void plot_table_release(struct plot_table *t);
long plot_table_column(const struct plot_table *t, const char *name); /* index, or -1 */

/* ---- curves of tables (script.c) --------------------------------------------------------------------------------- */

struct plot_curves {
    const struct plot_table *tables;
    size_t n_tables;
    /* x: a column; y: columns "a,b", or NULL for all losses and evaluations, i.e. all but the known other columns of a
     * log */
    const char *x, *y;
    const char *title; /* NULL: none */
    bool log_x, log_y;
    unsigned width, height; /* in pixels */
};
/* Appends the script. A curve has the rows in which both values are finite; evaluations are drawn with points.
 * ERR_USAGE: y is not a list of names. ERR_DATA: a column does not exist or has nothing to draw, or a value on a
 * logarithmic axis is not above 0. */
int plot_script(const struct plot_curves *p, struct buf *script, struct err *e) MUST_CHECK;

/* ---- gnuplot (draw.c) -------------------------------------------------------------------------------------------- */

/* Appends gnuplot's output for the script. ERR_IO: it is not installed, or failed. */
int plot_draw(const struct buf *script, struct buf *svg, struct err *e) MUST_CHECK;

#endif
