/*
 * plot: curves of training logs as SVG, drawn by gnuplot.
 *
 *     plot_table_parse(&t[i], "run.tsv", text, n, e) ...      any number
 *     plot_script(&curves, &script, e)                        in gnuplot's language, data included
 *     plot_draw(&script, &svg, e)                             a gnuplot process
 *
 * Order of files, each calling only those before it: table, script, draw.
 */
#ifndef RILL_PLOT_H
#define RILL_PLOT_H

#include "lib/base/base.h"

/* ---- a table of numbers (table.c) ---------------------------------------------------------------------------------- */

#define PLOT_MAX_BYTES   ((size_t)1 << 28) /* of a table's text */
#define PLOT_MAX_COLUMNS 4096

/* Tab-separated text: a line of names, then lines of as many numbers; "nan", "inf" and "-inf" are numbers. */
struct plot_table {
    const char *name; /* of the file, in messages and the key */
    size_t n_cols, n_rows;
    const char **cols; /* [n_cols] */
    double *values;    /* [n_rows][n_cols] */
    struct arena memory;
};
/* Begin with {0}; `name` is the caller's and outlives the table. ERR_DATA names the line that is wrong. */
int plot_table_parse(struct plot_table *t, const char *name, const char *text, size_t n, struct err *e) MUST_CHECK;
void plot_table_release(struct plot_table *t);
long plot_table_column(const struct plot_table *t, const char *name); /* its number, or -1 */

/* ---- curves of tables (script.c) ------------------------------------------------------------------------------------ */

struct plot_curves {
    const struct plot_table *tables;
    size_t n_tables;
    const char *x,
        *y; /* a column; columns "a,b". y NULL: losses and evaluations, which is all but what else a log has */
    const char *title; /* NULL: none */
    bool log_x, log_y;
    unsigned width, height; /* in pixels */
};
/* Appends the script. A curve takes the rows in which it has a number: evaluations are marked points. ERR_USAGE: y is no list of
 * names; ERR_DATA: a column that is not there or has nothing to draw, or values that are not above 0 on a logarithmic
 * axis. */
int plot_script(const struct plot_curves *p, struct buf *script, struct err *e) MUST_CHECK;

/* ---- gnuplot (draw.c) ------------------------------------------------------------------------------------------------ */

/* Appends what gnuplot makes of the script. ERR_IO: it is not installed, or failed. */
int plot_draw(const struct buf *script, struct buf *svg, struct err *e) MUST_CHECK;

#endif
