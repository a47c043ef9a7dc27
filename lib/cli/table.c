/*
 * table: prints results, flat JSON objects, as lines for programs or as a table for people. Consecutive objects with
 * the same keys become rows under one header; a single object becomes one line per member.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/cli/cli_internal.h"

/* Flush every result: the next one may be hours away. */
static int flush_text(const struct cli *c, FILE *f, struct err *e) {
    bool to_file = c->output_path && strcmp(c->output_path, "-") != 0;
    if (fflush(f) == 0 && !ferror(f)) return 0;
    return err_sys(e, errno, "%s", to_file ? c->output_path : "standard output");
}

int cli_result(struct cli *c, const cJSON *object, struct err *e) {
    FILE *f;
    if (cli_text(c, &f, e)) return e->code;
    char *text = json_text_shown(object, e);
    if (!text) return e->code;
    fprintf(f, "%s\n", text);
    mem_free(text);
    return flush_text(c, f, e);
}

/* ---- cells ------------------------------------------------------------------------------------------------------- */

#define CELL_SIZE 256

/* Whole numbers in full, others with six digits: the table is for reading, the JSON lines have all digits. */
static void cell_text(const cJSON *v, char out[CELL_SIZE]) {
    if (cJSON_IsNumber(v)) {
        double x = v->valuedouble;
        snprintf(out, CELL_SIZE, x == floor(x) && fabs(x) < 1e15 ? "%.0f" : "%.6g", x);
    } else {
        const char *text = cJSON_IsString(v) ? v->valuestring : cJSON_IsTrue(v) ? "yes" : cJSON_IsFalse(v) ? "no" : "-";
        escape_text(out, CELL_SIZE, text, strlen(text));
    }
}

static int characters(const char *s) {
    int n = 0;
    for (; *s; s++) n += ((unsigned char)*s & 0xc0) != 0x80;
    return n;
}

static void put_cell(FILE *f, const char *text, int width, bool right, bool last) {
    int pad = width - characters(text);
    if (pad < 0) pad = 0;
    fprintf(f, "%*s%s%*s%s", right ? pad : 0, "", text, right || last ? 0 : pad, "", last ? "\n" : "  ");
}

/* ---- tables ------------------------------------------------------------------------------------------------------ */

static bool same_keys(const cJSON *a, const cJSON *b) {
    const cJSON *x = a->child, *y = b->child;
    while (x && y && strcmp(x->string, y->string) == 0) x = x->next, y = y->next;
    return !x && !y;
}

static void put_sideways(FILE *f, const cJSON *object) {
    char cell[CELL_SIZE];
    int width = 0;
    const cJSON *v;
    cJSON_ArrayForEach(v, object) width = characters(v->string) > width ? characters(v->string) : width;
    cJSON_ArrayForEach(v, object) {
        cell_text(v, cell);
        put_cell(f, v->string, width, false, false);
        put_cell(f, cell, 0, false, true);
    }
}

/* The width of column i, including its key, over the objects [first, end). */
static int column_width(const cJSON *first, const cJSON *end, int i) {
    char cell[CELL_SIZE];
    int width = characters(cJSON_GetArrayItem(first, i)->string);
    for (const cJSON *row = first; row != end; row = row->next) {
        cell_text(cJSON_GetArrayItem(row, i), cell);
        if (characters(cell) > width) width = characters(cell);
    }
    return width;
}

#define MAX_COLUMNS 128

/* Numbers are right-aligned, everything else left-aligned. */
static void put_rows(FILE *f, const cJSON *first, const cJSON *end) {
    char cell[CELL_SIZE];
    int width[MAX_COLUMNS], n = cJSON_GetArraySize(first), i = 0;
    const cJSON *v;
    cJSON_ArrayForEach(v, first) {
        width[i] = column_width(first, end, i);
        put_cell(f, v->string, width[i], cJSON_IsNumber(v), i + 1 == n);
        i++;
    }
    for (const cJSON *row = first; row != end; row = row->next) {
        i = 0;
        cJSON_ArrayForEach(v, row) {
            cell_text(v, cell);
            put_cell(f, cell, width[i], cJSON_IsNumber(v), i + 1 == n);
            i++;
        }
    }
}

int cli_table(struct cli *c, const cJSON *objects, struct err *e) {
    FILE *f;
    if (cli_text(c, &f, e)) return e->code;
    for (const cJSON *first = objects->child, *end; first; first = end) {
        for (end = first->next; end && same_keys(first, end);) end = end->next;
        if (first != objects->child) fputc('\n', f);
        if (end == first->next || cJSON_GetArraySize(first) > MAX_COLUMNS)
            for (const cJSON *row = first; row != end; row = row->next) put_sideways(f, row);
        else
            put_rows(f, first, end);
    }
    return flush_text(c, f, e);
}
