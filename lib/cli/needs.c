/*
 * needs: which options have an effect only with, or only without, others. A row of the option table has clauses, all of
 * which must hold when the option is given. One check refuses options that would be ignored; help prints the same
 * clauses.
 *
 *     clause = term { "|" term }            at least one holds
 *     term   = ["!"] NAME ["=" VALUE]
 *
 *
 * NAME holds if that option was given with a value other than its default; NAME=VALUE if its value, given or default,
 * is VALUE. A VALUE with a colon matches all values with the prefix up to the colon: "sample:N" matches sample:50. A
 * negated term of the option itself restricts the clause to that value: "!score=activations|stats" of --score means
 * that activations needs --stats. The VALUE of a share or an amount is a number, never a percentage.
 */
#include <string.h>

#include "lib/cli/cli_internal.h"

struct term {
    bool negated;
    char name[32], value[48]; /* value "": none */
};

/* Parses the next term of *s and advances *s; false at the end of the clause. */
static bool next_term(const char **s, struct term *t) {
    if (!**s) return false;
    size_t n = strcspn(*s, "|");
    const char *p = *s, *end = p + n;
    t->negated = *p == '!';
    if (t->negated) p++;
    size_t name = strcspn(p, "=|");
    snprintf(t->name, sizeof t->name, "%.*s", (int)name, p);
    p += name;
    snprintf(t->value, sizeof t->value, "%.*s", p < end ? (int)(end - p - 1) : 0, p + 1);
    *s = end + (*end == '|');
    return true;
}

static bool same_text(const char *is, const char *wanted) {
    const char *colon = strchr(wanted, ':');
    if (!is) return false;
    return colon ? strncmp(is, wanted, (size_t)(colon - wanted) + 1) == 0 : strcmp(is, wanted) == 0;
}

static bool has_value(const struct cli_option *o, const char *value) {
    double number = 0;
    switch (o->type) {
    case CLI_FLAG: return false;
    case CLI_STRING:
    case CLI_CHOICE: return same_text(*(const char **)o->to, value);
    case CLI_U64: return parse_f64(value, &number) && (double)*(uint64_t *)o->to == number;
    case CLI_F64:
    case CLI_SHARE: return parse_f64(value, &number) && *(double *)o->to == number;
    case CLI_AMOUNT: {
        const struct cli_amount *a = o->to;
        return parse_f64(value, &number) && !(a->share > 0) && (double)a->n == number;
    }
    case CLI_LIST:
        for (size_t i = 0; i < ((struct cli_list *)o->to)->n; i++)
            if (same_text(((struct cli_list *)o->to)->items[i], value)) return true;
        return false;
    }
    return false;
}

static bool holds(const struct cli_args *a, const struct term *t) {
    for (size_t i = 0; i < a->n_rows; i++) {
        const struct cli_option *o = &a->rows[i];
        if (strcmp(o->name, t->name) != 0) continue;
        bool set =
            *t->value ? has_value(o, t->value) : a->values[i].given && !(o->fallback && has_value(o, o->fallback));
        return set != t->negated;
    }
    return t->negated;
}

/* ---- descriptions ---- */

struct words {
    char *out;
    size_t size, n;
};

static void add(struct words *w, const char *text) {
    if (w->n < w->size) w->n += (size_t)snprintf(w->out + w->n, w->size - w->n, "%s", text);
}

static void add_option(struct words *w, const char *name, const char *value) {
    add(w, "--");
    add(w, name);
    if (*value) add(w, " "), add(w, value);
}

/* Writes "--a, --b VALUE or --c": either the negated terms or the others, except those of the option itself. Returns
 * their number; w NULL: only counts. */
static size_t add_terms(struct words *w, const char *clause, const char *self, bool negated, const char *last) {
    struct term t;
    size_t total = 0, i = 0;
    for (const char *s = clause; next_term(&s, &t);) total += t.negated == negated && strcmp(t.name, self) != 0;
    for (const char *s = clause; w && next_term(&s, &t);) {
        if (t.negated != negated || strcmp(t.name, self) == 0) continue;
        if (i) add(w, i + 1 < total ? ", " : last);
        add_option(w, t.name, t.value);
        i++;
    }
    return total;
}

/* The term that restricts a clause to a value of the option itself; value "": any. */
static struct term of_self(const char *clause, const char *self) {
    struct term t;
    for (const char *s = clause; next_term(&s, &t);)
        if (t.negated && strcmp(t.name, self) == 0) return t;
    return (struct term){0};
}

static int refuse(const struct cli_option *o, const char *clause, struct err *e) {
    char text[512] = "";
    struct words w = {.out = text, .size = sizeof text};
    bool wants = add_terms(NULL, clause, o->name, false, "") > 0,
         beside = add_terms(NULL, clause, o->name, true, "") > 0;
    add_option(&w, o->name, of_self(clause, o->name).value);
    if (!wants) add(&w, " has no effect");
    if (beside) add(&w, " with ");
    add_terms(&w, clause, o->name, true, " and ");
    if (wants) add(&w, " needs ");
    add_terms(&w, clause, o->name, false, " or ");
    return err_set(e, ERR_USAGE, "%s", text);
}

int needs_check(const struct cli_args *a, struct err *e) {
    for (size_t i = 0; i < a->n_rows; i++) {
        const struct cli_option *o = &a->rows[i];
        for (size_t k = 0; a->values[i].given && k < CLI_MAX_NEEDS && o->needs[k]; k++) {
            struct term t;
            bool ok = false;
            for (const char *s = o->needs[k]; !ok && next_term(&s, &t);) ok = holds(a, &t);
            if (!ok) return refuse(o, o->needs[k], e);
        }
    }
    return 0;
}

/* Writes "with --tsv" or "not with --a, --b" for unrestricted clauses, "VALUE: with ..." for those of a value. */
void needs_describe(const struct cli_option *o, char *out, size_t size) {
    struct words w = {.out = out, .size = size};
    bool first = true;
    if (size) *out = 0;
    for (size_t k = 0; k < CLI_MAX_NEEDS && o->needs[k]; k++) {
        const char *clause = o->needs[k];
        size_t wants = add_terms(NULL, clause, o->name, false, ""), beside = add_terms(NULL, clause, o->name, true, "");
        struct term self = of_self(clause, o->name);
        if (!wants && !*self.value && beside == 1) continue; /* combined below */
        if (!first) add(&w, "; ");
        first = false;
        if (*self.value) add(&w, self.value), add(&w, ": ");
        if (!wants) add(&w, "not ");
        if (beside) add(&w, "with ");
        add_terms(&w, clause, o->name, true, " and ");
        if (wants) add(&w, beside ? " only with " : "only with ");
        add_terms(&w, clause, o->name, false, " or ");
    }
    bool any = false;
    for (size_t k = 0; k < CLI_MAX_NEEDS && o->needs[k]; k++) {
        if (o->needs[k][0] != '!' || strchr(o->needs[k], '|') || *of_self(o->needs[k], o->name).name) continue;
        add(&w, any ? ", " : first ? "not with " : "; not with ");
        add_terms(&w, o->needs[k], o->name, true, "");
        any = true;
    }
}
