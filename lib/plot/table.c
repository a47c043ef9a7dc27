/* Parses a table of numbers with a header line: the log of a run. */
#include <math.h>
#include <string.h>

#include "lib/plot/plot.h"

/* Text that is read line by line. */
struct lines {
    const char *at, *end;
    size_t number; /* of the last line taken */
};

static bool next_line(struct lines *l, const char **line, size_t *n) {
    if (l->at == l->end) return false;
    const char *stop = memchr(l->at, '\n', (size_t)(l->end - l->at));
    if (!stop) stop = l->end;
    *line = l->at;
    *n = (size_t)(stop - l->at);
    l->at = stop < l->end ? stop + 1 : stop;
    l->number++;
    return true;
}

static size_t count_fields(const char *line, size_t n) {
    size_t fields = 1;
    for (size_t i = 0; i < n; i++) fields += line[i] == '\t';
    return fields;
}

/* Takes the field at *line, and skips the tab after it. */
static size_t take_field(const char **line, size_t *n, const char **field) {
    const char *tab = memchr(*line, '\t', *n);
    size_t length = tab ? (size_t)(tab - *line) : *n, skip = length + (tab != NULL);
    *field = *line;
    *line += skip;
    *n -= skip;
    return length;
}

static int parse_names(struct plot_table *t, const char *line, size_t n, struct err *e) {
    t->n_cols = count_fields(line, n);
    if (t->n_cols > PLOT_MAX_COLUMNS)
        return err_set(e, ERR_DATA, "%s: line 1: %zu columns, at most %d", t->name, t->n_cols, PLOT_MAX_COLUMNS);
    t->cols = arena_array(&t->memory, t->n_cols, sizeof *t->cols, e);
    if (!t->cols) return e->code;
    for (size_t i = 0; i < t->n_cols; i++) {
        const char *field, *name;
        double number;
        size_t length = take_field(&line, &n, &field);
        name = t->cols[i] = arena_strndup(&t->memory, field, length, e);
        if (!name) return e->code;
        if (!name_valid(field, length) || parse_f64(name, &number))
            return err_set(e, ERR_DATA, "%s: line 1: expected names of columns, found \"%.80s\"", t->name, name);
        for (size_t k = 0; k < i; k++)
            if (!strcmp(t->cols[k], name))
                return err_set(e, ERR_DATA, "%s: line 1: two columns are called \"%.80s\"", t->name, name);
    }
    return 0;
}

static bool parse_number(const char *text, double *out) {
    static const struct {
        const char *name;
        double value;
    } others[] = {{"nan", NAN}, {"-nan", NAN}, {"inf", INFINITY}, {"-inf", -INFINITY}};
    for (size_t i = 0; i < COUNT_OF(others); i++)
        if (!strcmp(text, others[i].name)) {
            *out = others[i].value;
            return true;
        }
    return parse_f64(text, out);
}

static int parse_row(const struct plot_table *t, size_t number, const char *line, size_t n, double *row,
                     struct err *e) {
    size_t fields = count_fields(line, n);
    if (fields != t->n_cols)
        return err_set(e, ERR_DATA, "%s: line %zu: expected %zu columns, found %zu", t->name, number, t->n_cols,
                       fields);
    for (size_t i = 0; i < fields; i++) {
        char text[64];
        const char *field;
        size_t length = take_field(&line, &n, &field), kept = length < sizeof text - 1 ? length : sizeof text - 1;
        memcpy(text, field, kept);
        text[kept] = 0;
        if (kept < length || memchr(text, 0, kept) || !parse_number(text, &row[i]))
            return err_set(e, ERR_DATA, "%s: line %zu: column \"%.80s\": \"%s\" is not a number", t->name, number,
                           t->cols[i], text);
    }
    return 0;
}

int plot_table_parse(struct plot_table *t, const char *name, const char *text, size_t n, struct err *e) {
    struct lines l = {text, text + n, 0};
    const char *line;
    size_t length, rows = 0;
    t->name = name;
    if (n > PLOT_MAX_BYTES) return err_set(e, ERR_DATA, "%s: more than %zu bytes", name, PLOT_MAX_BYTES);
    if (!next_line(&l, &line, &length)) return err_set(e, ERR_DATA, "%s is empty", name);
    if (parse_names(t, line, length, e)) return e->code;
    for (const char *s = l.at; s < l.end; s++) rows += *s == '\n';
    rows += l.at < l.end && l.end[-1] != '\n';
    uint64_t values;
    if (!u64_mul(rows, t->n_cols, &values)) return err_nomem(e, name);
    t->values = mem_array(values, sizeof *t->values, e);
    if (!t->values) return err_prefix(e, "%s", name);
    for (; next_line(&l, &line, &length); t->n_rows++)
        if (parse_row(t, l.number, line, length, t->values + t->n_rows * t->n_cols, e)) return e->code;
    return t->n_rows ? 0 : err_set(e, ERR_DATA, "%s has no lines after the header", name);
}

void plot_table_release(struct plot_table *t) {
    mem_free(t->values);
    arena_release(&t->memory);
    *t = (struct plot_table){0};
}

long plot_table_column(const struct plot_table *t, const char *name) {
    for (size_t i = 0; i < t->n_cols; i++)
        if (!strcmp(t->cols[i], name)) return (long)i;
    return -1;
}
