/*
 * options: the parser. No abbreviations (git and GNU guess, and scripts break when an option is added), no repetition,
 * any order; errors suggest the nearest option.
 */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "lib/cli/cli_internal.h"

bool option_takes_value(const struct cli_option *o) {
    return o->type != CLI_FLAG;
}
const char *option_arg(const struct cli_option *o) {
    return o->arg ? o->arg : "VALUE";
}
bool option_is_action(const struct cli_option *o) {
    return o->type == CLI_FLAG && !o->to;
}
bool option_is_hidden(const struct cli_option *o) {
    return !o->help;
}

/* ---- nearest name ------------------------------------------------------------------------------------------------ */

/* Damerau-Levenshtein distance (optimal string alignment); `limit` + 1 if a word is too long to compare. */
static size_t edit_distance(const char *a, const char *b, size_t limit) {
    enum { MAX = 64 };
    size_t n = strlen(a), m = strlen(b), d[3][MAX + 1];
    if (n > MAX || m > MAX) return limit + 1;
    size_t *before = d[0], *last = d[1], *now = d[2];
    for (size_t j = 0; j <= m; j++) before[j] = last[j] = j;
    for (size_t i = 1; i <= n; i++) {
        now[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t cost = last[j - 1] + (a[i - 1] != b[j - 1]);
            if (last[j] + 1 < cost) cost = last[j] + 1;
            if (now[j - 1] + 1 < cost) cost = now[j - 1] + 1;
            bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped && before[j - 2] + 1 < cost) cost = before[j - 2] + 1;
            now[j] = cost;
        }
        size_t *t = before;
        before = last, last = now, now = t;
    }
    return last[m];
}

const char *cli_nearest(const char *word, const char *const *names, size_t n) {
    const char *best = NULL;
    size_t length = strlen(word), limit = length < 4 ? 1 : length / 3 + 1, found = limit + 1;
    for (size_t i = 0; i < n; i++) {
        /* An abbreviation is not a spelling mistake, but deserves the same hint. */
        size_t d = length > 1 && strncmp(names[i], word, length) == 0 ? 1 : edit_distance(word, names[i], limit);
        if (d < found && d < strlen(names[i])) found = d, best = names[i];
    }
    return best;
}

/* Programs that change a model read it as their input, programs that run one take it by -m: explains a mix-up. */
static bool is_model_operand(const struct cli_program *p, const char *written) {
    return p->operands && (strstr(p->operands, "MODEL") || strstr(p->operands, "PATH")) &&
           (!strncmp(written, "-m", 2) || !strncmp(written, "--model", 7));
}

static int unknown_option(const struct cli_args *a, const char *written, const char *name, size_t length,
                          struct err *e) {
    char word[80];
    const char *names[256];
    size_t n = 0;
    snprintf(word, sizeof word, "%.*s", (int)(length < 79 ? length : 79), name);
    for (size_t i = 0; i < a->n_rows && n < COUNT_OF(names); i++)
        if (!option_is_hidden(&a->rows[i])) names[n++] = a->rows[i].name;
    if (is_model_operand(a->program, written))
        return err_set(e, ERR_USAGE, "unknown option %.80s: the model is the operand here%s (rill %s %s)", written,
                       a->program->reads_stdin ? ", or standard input" : "", a->program->name, a->program->operands);
    const char *advice = hint_advice(a->program->name, word), *ours = hint_option(word, names, n);
    if (advice) return err_set(e, ERR_USAGE, "unknown option %.80s (%s)", written, advice);
    if (ours) return err_set(e, ERR_USAGE, "unknown option %.80s (here it is --%s)", written, ours);
    const char *near = cli_nearest(word, names, n);
    if (near) return err_set(e, ERR_USAGE, "unknown option %.80s (did you mean --%s?)", written, near);
    return err_set(e, ERR_USAGE, "unknown option %.80s (--help lists the options)", written);
}

/* ---- values ------------------------------------------------------------------------------------------------------ */

static int bad_choice(const struct cli_option *o, const char *text, struct err *e) {
    char all[512];
    const char *names[64];
    size_t n = 0;
    snprintf(all, sizeof all, "%s", o->choices);
    for (char *s = all; s && n < COUNT_OF(names);) {
        names[n++] = s;
        s = strchr(s, '|');
        if (s) *s++ = 0;
    }
    const char *advice = hint_value(o->name, text), *near = cli_nearest(text, names, n);
    if (advice) return err_set(e, ERR_USAGE, "--%s: '%.80s' is not one of %s (%s)", o->name, text, o->choices, advice);
    if (near)
        return err_set(e, ERR_USAGE, "--%s: '%.80s' is not one of %s (did you mean %s?)", o->name, text, o->choices,
                       near);
    return err_set(e, ERR_USAGE, "--%s: '%.80s' is not one of %s", o->name, text, o->choices);
}

/* Stores `text` itself, which is in argv or the option table, so that programs may keep the pointer. */
static int set_choice(const struct cli_option *o, const char *text, struct err *e) {
    size_t length = strlen(text);
    for (const char *s = o->choices; *s;) {
        size_t n = strcspn(s, "|");
        if (length && n == length && memcmp(s, text, n) == 0) {
            *(const char **)o->to = text;
            return 0;
        }
        s += n + (s[n] == '|');
    }
    return bad_choice(o, text, e);
}

/* "50%" gives 0.5. Returns false if it is not a percentage. */
static bool parse_percentage(const char *text, double *out) {
    char number[64];
    size_t n = strlen(text);
    if (n < 2 || n > sizeof number || text[n - 1] != '%') return false;
    memcpy(number, text, n - 1);
    number[n - 1] = 0;
    if (!parse_f64(number, out)) return false;
    *out /= 100;
    return true;
}

static int set_amount(const struct cli_option *o, const char *text, struct err *e) {
    struct cli_amount *a = o->to;
    *a = (struct cli_amount){.text = text};
    if (parse_percentage(text, &a->share)) {
        if (a->share > 0 && a->share <= 1) return 0;
        return err_set(e, ERR_USAGE, "--%s: '%.32s': expected more than 0%% and at most 100%%", o->name, text);
    }
    if (!parse_u64(text, &a->n))
        return err_set(e, ERR_USAGE, "--%s: '%.32s' is neither a whole number nor a percentage", o->name, text);
    if ((double)a->n > o->max) return err_set(e, ERR_USAGE, "--%s: %.32s is above %.17g", o->name, text, o->max);
    return 0;
}

/* Writes a bound as people do: 4096, 0.999999. */
static void limit_text(double v, char *out, size_t size) {
    snprintf(out, size, v == floor(v) && fabs(v) < 1e17 ? "%.0f" : "%.10g", v);
}

static int set_number(const struct cli_option *o, const char *text, struct err *e) {
    bool has_min = o->min != 0 || o->max != 0, has_max = has_min && o->max > o->min;
    bool whole = o->type == CLI_U64, share = o->type == CLI_SHARE;
    uint64_t u = 0;
    double f = 0;
    if (whole ? !parse_u64(text, &u) : !parse_f64(text, &f) && !(share && parse_percentage(text, &f)))
        return err_set(e, ERR_USAGE, "--%s: '%.80s' is not a %s", o->name, text,
                       whole   ? "whole number"
                       : share ? "number or a percentage"
                               : "number");
    double v = whole ? (double)u : f;
    if (!isfinite(v)) return err_set(e, ERR_USAGE, "--%s: '%.80s' is not a finite number", o->name, text);
    if (whole && u > JSON_MAX_INTEGER) /* provenance and report could not represent it */
        return err_set(e, ERR_USAGE, "--%s: %.80s is above %llu", o->name, text, (unsigned long long)JSON_MAX_INTEGER);
    if ((has_min && v < o->min) || (has_max && v > o->max)) {
        char low[32], high[32];
        limit_text(o->min, low, sizeof low);
        limit_text(o->max, high, sizeof high);
        if (!has_max) return err_set(e, ERR_USAGE, "--%s: %.80s is below %s", o->name, text, low);
        bool percent = share && v > 1 && v <= 100 && !strchr(text, '%') && v / 100 <= o->max;
        return err_set(e, ERR_USAGE, "--%s: %.80s is outside of %s to %s%s%.20s%s", o->name, text, low, high,
                       percent ? " (did you mean " : "", percent ? text : "", percent ? "%?)" : "");
    }
    if (whole)
        *(uint64_t *)o->to = u;
    else
        *(double *)o->to = f;
    return 0;
}

static int set_value(const struct cli_option *o, const char *text, struct err *e) {
    switch (o->type) {
    case CLI_FLAG: *(bool *)o->to = true; return 0;
    case CLI_STRING: *(const char **)o->to = text; return 0;
    case CLI_CHOICE: return set_choice(o, text, e);
    case CLI_LIST: {
        struct cli_list *list = o->to; /* args_parse has allocated enough for all of argv */
        list->items[list->n++] = text;
        return 0;
    }
    case CLI_U64:
    case CLI_F64:
    case CLI_SHARE: return set_number(o, text, e);
    case CLI_AMOUNT: return set_amount(o, text, e);
    }
    return err_set(e, ERR_USAGE, "--%s: unknown type of option", o->name);
}

/* ---- the loop over argv ---- */

struct parse {
    struct cli_args *a;
    int argc, at; /* argv[at] is next */
    char **argv;
    struct err *e;
};

static long find_long(const struct cli_args *a, const char *name, size_t length) {
    for (size_t i = 0; i < a->n_rows; i++)
        if (strlen(a->rows[i].name) == length && memcmp(a->rows[i].name, name, length) == 0) return (long)i;
    return -1;
}

static long find_letter(const struct cli_args *a, char letter) {
    for (size_t i = 0; i < a->n_rows; i++)
        if (a->rows[i].letter == letter) return (long)i;
    return -1;
}

static void keep(struct parse *p, const char *token) {
    p->a->kept[p->a->n_kept++] = token;
}

/* The same for a word that is, or ends with, a file name: `file` points into it; NULL: none. */
static void keep_file(struct parse *p, const char *token, const char *file) {
    p->a->kept_file[p->a->n_kept] = file ? (size_t)(file - token) + 1 : 0;
    keep(p, token);
}

/* Takes the word after an option as its value. If it is the name of an option, the value was probably forgotten. */
static int next_value(struct parse *p, const struct cli_option *o, const char **value) {
    const char *v = p->at < p->argc ? p->argv[p->at] : NULL;
    if (!v) return err_set(p->e, ERR_USAGE, "--%s needs a value (%s)", o->name, option_arg(o));
    size_t length = strcspn(v, "=");
    if (length > 2 && v[0] == '-' && v[1] == '-' && find_long(p->a, v + 2, length - 2) >= 0)
        return err_set(p->e, ERR_USAGE, "--%s needs a value (%s) but %.80s follows (write --%s=%.80s if it is meant)",
                       o->name, option_arg(o), v, o->name, v);
    p->at++;
    *value = v;
    return 0;
}

static int take(struct parse *p, size_t i, const char *value) {
    const struct cli_option *o = &p->a->rows[i];
    if (option_is_action(o)) {
        p->a->action = o;
        return 0;
    }
    if (p->a->values[i].given && o->type != CLI_LIST) return err_set(p->e, ERR_USAGE, "--%s is given twice", o->name);
    if (o->type == CLI_LIST && !p->a->values[i].given)
        ((struct cli_list *)o->to)->n = 0; /* the first given value replaces the default */
    p->a->values[i].given = true;
    return set_value(o, value, p->e);
}

static int parse_long(struct parse *p, const char *token) {
    const char *name = token + 2;
    size_t length = strcspn(name, "=");
    const char *value = name[length] ? name + length + 1 : NULL;
    long i = find_long(p->a, name, length);
    if (i < 0) return unknown_option(p->a, token, name, length, p->e);
    const struct cli_option *o = &p->a->rows[i];
    if (!o->transient) keep_file(p, token, o->completes_files ? value : NULL);
    if (!option_takes_value(o)) {
        if (value) return err_set(p->e, ERR_USAGE, "--%s takes no value", o->name);
    } else if (!value) {
        if (next_value(p, o, &value)) return p->e->code;
        if (!o->transient) keep_file(p, value, o->completes_files ? value : NULL);
    }
    return take(p, (size_t)i, value);
}

/* Parses -j4, -j 4, -qv. Letters are recorded separately, because a bundle may mix transient options with others. */
static int parse_letters(struct parse *p, const char *token) {
    static const char spelled[][3] = {"-h", "-V", "-v", "-q", "-o", "-j", "-m", "-n"};
    for (const char *s = token + 1; *s; s++) {
        long i = find_letter(p->a, *s);
        if (i < 0) return unknown_option(p->a, token, token + 1, strcspn(token + 1, "="), p->e);
        const struct cli_option *o = &p->a->rows[i];
        const char *value = NULL;
        if (!o->transient)
            for (size_t k = 0; k < COUNT_OF(spelled); k++)
                if (spelled[k][1] == *s) keep(p, spelled[k]);
        if (!option_takes_value(o)) {
            if (take(p, (size_t)i, NULL)) return p->e->code;
            if (p->a->action) return 0;
            continue;
        }
        if (s[1])
            value = s + 1;
        else if (next_value(p, o, &value))
            return p->e->code;
        if (!o->transient) keep_file(p, value, o->completes_files ? value : NULL);
        return take(p, (size_t)i, value);
    }
    return 0;
}

static int parse_all(struct parse *p) {
    bool options = true;
    while (p->at < p->argc && !p->a->action) {
        const char *token = p->argv[p->at++];
        int rc = 0;
        if (options && strcmp(token, "--") == 0) {
            options = false;
            keep(p, token);
        } else if (!options || token[0] != '-' || !token[1]) {
            p->a->operands[p->a->n_operands++] = token;
            keep_file(p, token, token);
        } else if (token[1] == '-') {
            rc = parse_long(p, token);
        } else {
            rc = parse_letters(p, token);
        }
        if (rc) return rc;
    }
    return 0;
}

static int missing_option(const struct cli_args *a, const struct cli_option *o, struct err *e) {
    if (o->letter && a->n_operands)
        return err_set(e, ERR_USAGE, "--%s %s is required: it is not an operand here (rill %s -%c %s %s)", o->name,
                       option_arg(o), a->program->name, o->letter, option_arg(o), a->program->operands);
    return err_set(e, ERR_USAGE, "--%s %s is required", o->name, option_arg(o));
}

int args_check(const struct cli_args *a, const struct cli_program *p, struct err *e) {
    size_t n = a->n_operands, min = (size_t)p->min_operands;
    for (size_t i = 0; i < a->n_rows; i++)
        if (a->rows[i].required && !a->values[i].given) return missing_option(a, &a->rows[i], e);
    if (n < min) return err_set(e, ERR_USAGE, "%s needed: %s", n ? "more operands are" : "an operand is", p->operands);
    if (p->max_operands >= 0 && n > (size_t)p->max_operands)
        return err_set(e, ERR_USAGE, "unexpected operand '%.200s'%s", a->operands[p->max_operands],
                       p->writes_stream || p->makes_folder ? " (the output is named with -o)" : "");
    return needs_check(a, e);
}

static int set_defaults(struct cli_args *a, struct arena *arena, size_t n_words, struct err *e) {
    for (size_t i = 0; i < a->n_rows; i++) {
        struct cli_option *o = &a->rows[i];
        if (o->type == CLI_LIST) {
            struct cli_list *list = o->to;
            list->n = 0;
            list->items = arena_array(arena, n_words, sizeof *list->items, e);
            if (!list->items) return e->code;
        }
        if (o->fallback && set_value(o, o->fallback, e)) return err_prefix(e, "default of --%s", o->name);
    }
    return 0;
}

int args_parse(struct cli_args *a, struct arena *arena, const struct cli_program *p, const struct cli_option *common,
               size_t n_common, int argc, char **argv, struct err *e) {
    static const struct cli_option none[] = {{0}};
    const struct cli_option *own = p->options ? p->options : none;
    size_t n_words = 1;
    for (int i = 1; i < argc; i++) n_words += 1 + strlen(argv[i]); /* -abc is recorded as three words */
    *a = (struct cli_args){.program = p};
    while (own[a->n_own].name) a->n_own++;
    a->n_rows = a->n_own + n_common;
    a->rows = arena_array(arena, a->n_rows + 1, sizeof *a->rows, e);
    if (!a->rows) return e->code;
    a->values = arena_array(arena, a->n_rows + 1, sizeof *a->values, e);
    if (!a->values) return e->code;
    a->operands = arena_array(arena, n_words, sizeof *a->operands, e);
    if (!a->operands) return e->code;
    a->kept = arena_array(arena, n_words, sizeof *a->kept, e);
    if (!a->kept) return e->code;
    a->kept_file = arena_array(arena, n_words, sizeof *a->kept_file, e);
    if (!a->kept_file) return e->code;
    memcpy(a->rows, own, a->n_own * sizeof *own);
    if (n_common) memcpy(a->rows + a->n_own, common, n_common * sizeof *common);
    if (set_defaults(a, arena, n_words, e)) return e->code;

    struct parse parse = {.a = a, .argc = argc, .at = 1, .argv = argv, .e = e};
    keep(&parse, p->name);
    return parse_all(&parse);
}

/* ---- the recorded command ---- */

/* Number of words from kept[i] on that make up this long option and its value; 0: a different option. */
static size_t words_of_option(const struct cli_args *a, size_t i, const char *option) {
    const char *word = a->kept[i];
    size_t length = strlen(option);
    if (strncmp(word, "--", 2) != 0 || strncmp(word + 2, option, length) != 0) return 0;
    return word[2 + length] == '=' ? 1 : word[2 + length] ? 0 : 2;
}

int args_remember(struct cli_args *a, struct arena *arena, const char *option, const char *const *values, size_t n,
                  struct err *e) {
    size_t n_new = 0;
    const char **kept = arena_array(arena, a->n_kept + n, sizeof *kept, e);
    if (!kept) return e->code;
    size_t *kept_file = arena_array(arena, a->n_kept + n, sizeof *kept_file, e);
    if (!kept_file) return e->code;
    kept[n_new++] = a->kept[0];
    for (size_t i = 0; i < n; i++) {
        kept[n_new] = arena_printf(arena, e, "--%s=%s", option, values[i]);
        if (!kept[n_new++]) return e->code;
    }
    bool options = true;
    for (size_t i = 1; i < a->n_kept;) {
        options &= strcmp(a->kept[i], "--") != 0;
        size_t skip = options ? words_of_option(a, i, option) : 0;
        i += skip;
        if (skip) continue;
        kept_file[n_new] = a->kept_file[i];
        kept[n_new++] = a->kept[i++];
    }
    a->kept = kept;
    a->kept_file = kept_file;
    a->n_kept = n_new;
    return 0;
}
