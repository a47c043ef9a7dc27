/* Writes curves as a gnuplot script: a data block per curve, then the plot command. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/plot/plot.h"

/* One curve: a column of a table. */
struct curve {
    const struct plot_table *t;
    size_t x, y, n; /* columns; number of rows in which both are finite */
};

struct curves {
    const struct plot_curves *p;
    struct buf list; /* struct curve */
};

/* ---- which curves ------------------------------------------------------------------------------------------------ */

static bool is_drawable(const struct curve *c, size_t row) {
    const double *v = c->t->values + row * c->t->n_cols;
    return isfinite(v[c->x]) && isfinite(v[c->y]);
}

static int no_column(const struct plot_table *t, const char *name, struct err *e) {
    char have[400];
    size_t n = 0;
    for (size_t i = 0; i < t->n_cols && n < sizeof have; i++)
        n += (size_t)snprintf(have + n, sizeof have - n, "%s%s", i ? ", " : "", t->cols[i]);
    return err_set(e, ERR_DATA, "%s has no column \"%.80s\"; it has %s", t->name, name, have);
}

/* Logarithmic axes require values above 0. */
static int check_log(const struct curve *c, size_t column, struct err *e) {
    for (size_t r = 0; r < c->t->n_rows; r++) {
        double v = c->t->values[r * c->t->n_cols + column];
        if (is_drawable(c, r) && !(v > 0))
            return err_set(e, ERR_DATA, "%s: line %zu: column \"%.80s\": %g cannot be drawn on a logarithmic axis",
                           c->t->name, r + 2, c->t->cols[column], v);
    }
    return 0;
}

/* named: the user asked for this column, so it must have something to draw. */
static int add(struct curves *s, const struct plot_table *t, size_t column, bool named, struct err *e) {
    long x = plot_table_column(t, s->p->x);
    if (x < 0) return no_column(t, s->p->x, e);
    struct curve c = {.t = t, .x = (size_t)x, .y = column};
    for (size_t r = 0; r < t->n_rows; r++) c.n += is_drawable(&c, r);
    if (!c.n && named)
        return err_set(e, ERR_DATA, "%s: column \"%.80s\" has no number to draw", t->name, t->cols[column]);
    if (!c.n) return 0;
    if ((s->p->log_x && check_log(&c, c.x, e)) || (s->p->log_y && check_log(&c, c.y, e))) return e->code;
    return buf_append(&s->list, &c, sizeof c, e);
}

static int add_named(struct curves *s, const struct plot_table *t, struct err *e) {
    char name[1025];
    for (const char *at = s->p->y; at;) {
        const char *comma = strchr(at, ',');
        size_t n = comma ? (size_t)(comma - at) : strlen(at);
        if (!n || n >= sizeof name)
            return err_set(e, ERR_USAGE, "--y %.80s: expected names of columns, a,b,...", s->p->y);
        memcpy(name, at, n);
        name[n] = 0;
        long column = plot_table_column(t, name);
        if (column < 0) return no_column(t, name, e);
        if (add(s, t, (size_t)column, true, e)) return e->code;
        at = comma ? comma + 1 : NULL;
    }
    return 0;
}

/* Columns of a log that are neither losses nor evaluations. */
static bool is_of_the_step(const char *column) {
    static const char *const names[] = {"step", "lr", "grad_norm", "tokens", "noise_scale"};
    for (size_t i = 0; i < COUNT_OF(names); i++)
        if (!strcmp(column, names[i])) return true;
    return !strncmp(column, "grad_norm:", 10);
}

static int choose(struct curves *s, struct err *e) {
    const struct plot_curves *p = s->p;
    for (size_t i = 0; i < p->n_tables; i++) {
        const struct plot_table *t = &p->tables[i];
        if (p->y && add_named(s, t, e)) return e->code;
        for (size_t k = 0; !p->y && k < t->n_cols; k++)
            if (!is_of_the_step(t->cols[k]) && strcmp(t->cols[k], p->x) != 0 && add(s, t, k, false, e)) return e->code;
    }
    return s->list.len ? 0
                       : err_set(e, ERR_DATA, "%s: no column with a loss or an evaluation: choose columns with --y",
                                 p->tables[0].name);
}

/* ---- the script ---- */

/* Appends 'text': in single quotes only the quote is special, and doubled; line ends are escaped. */
static int quote(struct buf *out, const char *text, struct err *e) {
    char shown[4096];
    escape_text(shown, sizeof shown, text, strlen(text));
    if (buf_append(out, "'", 1, e)) return e->code;
    for (const char *s = shown; *s; s++)
        if (buf_append(out, "''", *s == '\'' ? 2 : 0, e) || (*s != '\'' && buf_append(out, s, 1, e))) return e->code;
    return buf_append(out, "'", 1, e);
}

static int put_label(struct buf *out, const char *what, const char *text, struct err *e) {
    if (!text) return 0;
    if (buf_printf(out, e, "set %s ", what) || quote(out, text, e)) return e->code;
    return buf_append(out, "\n", 1, e);
}

static int put_data(struct buf *out, const struct curve *c, size_t number, struct err *e) {
    int rc = buf_printf(out, e, "$curve%zu << END\n", number);
    for (size_t r = 0; !rc && r < c->t->n_rows; r++) {
        const double *v = c->t->values + r * c->t->n_cols;
        if (is_drawable(c, r)) rc = buf_printf(out, e, "%.17g %.17g\n", v[c->x], v[c->y]);
    }
    return rc ? rc : buf_printf(out, e, "END\n");
}

/* The label includes the file's name if there are several. */
static int put_curve(struct buf *out, const struct curve *c, size_t number, bool several, struct err *e) {
    char label[2200];
    bool sparse = c->n < c->t->n_rows || c->n == 1;
    snprintf(label, sizeof label, "%s%s%s", several ? c->t->name : "", several ? ": " : "", c->t->cols[c->y]);
    if (buf_printf(out, e, "%s$curve%zu using 1:2 with %s linewidth 1.5 linecolor %zu%s title ",
                   number ? ", " : "plot ", number, sparse ? "linespoints" : "lines", number + 1,
                   sparse ? " pointtype 7 pointsize 0.5" : ""))
        return e->code;
    return quote(out, label, e);
}

static bool same_column(const struct curve *c, size_t n) {
    for (size_t i = 1; i < n; i++)
        if (strcmp(c[i].t->cols[c[i].y], c[0].t->cols[c[0].y]) != 0) return false;
    return true;
}

static int put_frame(struct buf *out, const struct curves *s, const struct curve *c, size_t n, struct err *e) {
    const struct plot_curves *p = s->p;
    if (buf_printf(out, e,
                   "set terminal svg size %u,%u noenhanced font 'sans-serif,13' background 'white'\nset encoding utf8\n"
                   "set grid\nset key noenhanced\n%s%s",
                   p->width, p->height, p->log_x ? "set logscale x\n" : "", p->log_y ? "set logscale y\n" : "") ||
        put_label(out, "xlabel", p->x, e) || put_label(out, "title", p->title, e))
        return e->code;
    return same_column(c, n) ? put_label(out, "ylabel", c->t->cols[c->y], e) : 0;
}

int plot_script(const struct plot_curves *p, struct buf *out, struct err *e) {
    struct curves s = {.p = p};
    int rc = choose(&s, e);
    const struct curve *c = (const struct curve *)s.list.data;
    size_t n = s.list.len / sizeof *c;
    if (!rc) rc = put_frame(out, &s, c, n, e);
    for (size_t i = 0; !rc && i < n; i++) rc = put_data(out, &c[i], i, e);
    for (size_t i = 0; !rc && i < n; i++) rc = put_curve(out, &c[i], i, p->n_tables > 1, e);
    if (!rc) rc = buf_append(out, "\n", 1, e);
    buf_release(&s.list);
    return rc;
}
