/* help: prints the option table and the program's texts as --help and as a man page (mdoc). */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "lib/cli/cli_internal.h"

#define WIDTH       80
#define TEXT_COLUMN 27
#define HELP_TEXT   2048 /* size for an option's help or condition; tests/cli/every.bats notices truncation */

/* ---- facts about an option, for both formats ---- */

/* Writes e.g. "one of raw, zstd; default: raw", "required", "may be repeated" or "". */
static void option_facts(const struct cli_option *o, char *out, size_t size) {
    char choices[HELP_TEXT] = "", range[96] = "", needs[HELP_TEXT];
    if (o->choices) {
        size_t n = (size_t)snprintf(choices, sizeof choices, "one of ");
        for (const char *s = o->choices; *s && n + 3 < sizeof choices; s++) {
            if (*s == '|')
                choices[n++] = ',', choices[n++] = ' ';
            else
                choices[n++] = *s;
        }
        choices[n] = 0;
    }
    if (o->max > o->min && o->max < 1e6) snprintf(range, sizeof range, "%.10g to %.10g", o->min, o->max);
    needs_describe(o, needs, sizeof needs);
    const char *part[] = {o->required ? "required" : "", needs, o->type == CLI_LIST ? "may be repeated" : "", choices,
                          range};
    size_t n = 0;
    out[0] = 0;
    for (size_t i = 0; i < COUNT_OF(part); i++)
        if (*part[i] && n < size) n += (size_t)snprintf(out + n, size - n, "%s%s", n ? "; " : "", part[i]);
    if (o->fallback && n < size) n += (size_t)snprintf(out + n, size - n, "%sdefault: %s", n ? "; " : "", o->fallback);
    /* every.bats notices this */
    if (n >= size || strlen(needs) + 1 == sizeof needs) snprintf(out + size - 4, 4, "...");
}

/* ---- --help ------------------------------------------------------------------------------------------------------ */

/* Wraps the words of `text` at WIDTH, indented to `column`, where the first line already is. */
static void fill(FILE *f, const char *text, int column) {
    int at = column;
    for (const char *s = text; *s;) {
        size_t n = strcspn(s, " \n");
        if (n && at > column && at + 1 + (int)n > WIDTH) {
            fprintf(f, "\n%*s", column, "");
            at = column;
        }
        if (n) {
            if (at > column) fputc(' ', f), at++;
            fwrite(s, 1, n, f);
            at += (int)n;
        }
        s += n;
        s += strspn(s, " \n");
    }
    fputc('\n', f);
}

/* Each line is a paragraph and is wrapped, except lines that begin with a space. */
static void fill_paragraphs(FILE *f, const char *text) {
    char paragraph[4096];
    bool text_before = false;
    for (const char *s = text; *s;) {
        size_t length = strcspn(s, "\n");
        bool blank = length == 0, literal = *s == ' ';
        if (!blank && !literal && text_before) fputc('\n', f);
        if (blank || literal) {
            fprintf(f, "%.*s\n", (int)length, s);
        } else {
            snprintf(paragraph, sizeof paragraph, "%.*s", (int)length, s);
            fill(f, paragraph, 0);
        }
        text_before = !blank && !literal;
        s += length + (s[length] == '\n');
    }
}

static void print_option(FILE *f, const struct cli_option *o) {
    char head[128], text[3 * HELP_TEXT], facts[2 * HELP_TEXT];
    int n = o->letter ? snprintf(head, sizeof head, "  -%c, --%s", o->letter, o->name)
                      : snprintf(head, sizeof head, "      --%s", o->name);
    if (option_takes_value(o) && n > 0 && n < (int)sizeof head)
        snprintf(head + n, sizeof head - (size_t)n, " %s", option_arg(o));
    option_facts(o, facts, sizeof facts);
    snprintf(text, sizeof text, *facts ? "%s (%s)" : "%s%s", o->help, facts);
    if ((int)strlen(head) + 2 > TEXT_COLUMN)
        fprintf(f, "%s\n%*s", head, TEXT_COLUMN, "");
    else
        fprintf(f, "%-*s", TEXT_COLUMN, head);
    fill(f, text, TEXT_COLUMN);
}

void help_usage(FILE *f, const struct cli_program *p, const struct cli_args *a) {
    fprintf(f, "Usage: rill %s", p->name);
    for (size_t i = 0; i < a->n_rows; i++) {
        const struct cli_option *o = &a->rows[i];
        if (!o->required) continue;
        if (o->letter)
            fprintf(f, " -%c %s", o->letter, option_arg(o));
        else
            fprintf(f, " --%s %s", o->name, option_arg(o));
    }
    fprintf(f, " [OPTION]...%s%s\n", *p->operands ? " " : "", p->operands);
    fprintf(f, "%c%s. See rill %s --help.\n", toupper((unsigned char)*p->summary), p->summary + 1, p->name);
}

static void print_options(FILE *f, const struct cli_args *a, size_t from, size_t to) {
    for (size_t i = from; i < to; i++)
        if (!option_is_hidden(&a->rows[i])) print_option(f, &a->rows[i]);
}

#define EXIT_STATUS                                                                                                    \
    "\nExit status: 0 success, 1 I/O error or out of resources, 2 wrong usage, 3 malformed or\n"                       \
    "mismatched input, 4 a requested check failed.\n"

/* Does a common option have a text or condition specific to this program? Others are left to `rill help common`. */
static bool is_special(const struct cli_program *p, const struct cli_option *o) {
    return (p->force_help && !strcmp(o->name, "force")) || (p->seed_needs[0] && !strcmp(o->name, "seed"));
}

static void name_common_options(FILE *f, const struct cli_program *p, const struct cli_args *a) {
    char text[HELP_TEXT] = "Options that programs share (see rill help common):";
    for (size_t i = a->n_own; i < a->n_rows; i++) {
        const struct cli_option *o = &a->rows[i];
        size_t n = strlen(text);
        if (option_is_hidden(o) || is_special(p, o)) continue;
        const char *comma = text[n - 1] == ':' ? "" : ",";
        if (o->letter)
            snprintf(text + n, sizeof text - n, "%s -%c --%s", comma, o->letter, o->name);
        else
            snprintf(text + n, sizeof text - n, "%s --%s", comma, o->name);
    }
    fputc('\n', f);
    fill(f, text, 0);
}

void cli_help_common(FILE *out) {
    static const struct cli_program p = {
        .name = "", .operands = "", .writes_stream = true, .writes_text = true, .seeded = true, .threaded = true};
    struct cli c = {.program = &p, .codec = "raw", .progress_mode = "auto"};
    struct cli_option rows[CLI_MAX_COMMON];
    size_t n = common_options(&c, &p, rows);
    fill_paragraphs(
        out, "Programs read standard input or the files named as operands (- is standard input), write their "
             "result to standard output, and messages to standard error. Binary output to a terminal is "
             "refused. Options may come in any order, before or after the operands; -- ends them. An option may be "
             "given once, unless its help says that it may be repeated. An option that would have no effect "
             "together with the others is refused.\n\nEach program has those of the following options that "
             "apply to it: --codec, --level and --no-provenance if it writes a stream, --seed if it draws random "
             "numbers, -j if it computes on several threads.\n");
    fputc('\n', out);
    for (size_t i = 0; i < n; i++)
        if (!option_is_hidden(&rows[i])) print_option(out, &rows[i]);
    fputs("\nEnvironment: RILL_DEBUG, if set, prints debugging messages; RILL_CPU selects a slower CPU path (rill\n"
          "--version -v shows the one in use).\n",
          out);
    fputs(EXIT_STATUS, out);
}

void help_text(FILE *f, const struct cli_program *p, const struct cli_args *a) {
    fprintf(f, "Usage: rill %s [OPTION]...%s%s\n", p->name, *p->operands ? " " : "", p->operands);
    fprintf(f, "%c%s.\n", toupper((unsigned char)*p->summary), p->summary + 1);
    if (p->description) {
        fputc('\n', f);
        fill_paragraphs(f, p->description);
    }
    if (a->n_own) {
        fprintf(f, "\nOptions:\n");
        print_options(f, a, 0, a->n_own);
    }
    for (size_t i = a->n_own; i < a->n_rows; i++)
        if (is_special(p, &a->rows[i])) print_option(f, &a->rows[i]);
    name_common_options(f, p, a);
    if (p->examples) {
        fprintf(f, "\nExamples:\n");
        for (const char *s = p->examples; *s;) {
            size_t length = strcspn(s, "\n");
            fprintf(f, "  %.*s\n", (int)length, s);
            s += length + (s[length] == '\n');
        }
    }
    fputs(EXIT_STATUS, f);
}

/* ---- --help-man -------------------------------------------------------------------------------------------------- */

/* Escapes text for roff: backslashes, control lines; one sentence per line, as mandoc wants it. */
static void roff_text(FILE *f, const char *s, size_t n, bool sentences) {
    for (size_t i = 0; i < n; i++) {
        bool first = i == 0 || (sentences && s[i - 1] == '\n');
        if (s[i] == '\\')
            fputs("\\e", f);
        else if (first && (s[i] == '.' || s[i] == '\''))
            fprintf(f, "\\&%c", s[i]);
        else if (s[i] == '-')
            fputs("\\-", f);
        else if (s[i] == '"' && !sentences)
            fputs("\\(dq", f);
        else
            fputc(s[i], f);
        bool stop = sentences && (s[i] == '.' || s[i] == ')') && i > 1 && i + 2 < n && s[i + 1] == ' ' && s[i] == '.' &&
                    isupper((unsigned char)s[i + 2]);
        if (stop) fputc('\n', f), i++;
    }
    if (sentences) fputc('\n', f);
}

/* Adds a capital and a full stop, so that an option's text reads as prose. */
static void roff_sentence(FILE *f, const char *text) {
    char copy[3 * HELP_TEXT];
    size_t n = (size_t)snprintf(copy, sizeof copy - 2, "%s", text);
    if (n > sizeof copy - 3) n = sizeof copy - 3;
    if (!n) return;
    copy[0] = (char)toupper((unsigned char)copy[0]);
    if (copy[n - 1] != '.') copy[n++] = '.';
    roff_text(f, copy, n, true);
}

static void man_paragraphs(FILE *f, const char *text) {
    bool literal = false, gap = false, any = false; /* gap: a new paragraph begins */
    for (const char *s = text; *s;) {
        size_t length = strcspn(s, "\n");
        bool block = *s == ' ';
        if (length == 0) {
            gap = true;
        } else {
            if (literal && !block) fputs(".Ed\n", f);
            if (block && !literal)
                fputs(any ? ".Bd -literal -offset indent\n" : ".Bd -literal -offset indent -compact\n", f);
            else if (gap && any && !block)
                fputs(".Pp\n", f);
            if (block) {
                size_t skip = strspn(s, " ");
                roff_text(f, s + skip, length - skip, false);
                fputc('\n', f);
            } else {
                roff_text(f, s, length, true);
            }
            literal = block;
            gap = !block;
            any = true;
        }
        s += length + (s[length] == '\n');
    }
    if (literal) fputs(".Ed\n", f);
}

static void man_option(FILE *f, const struct cli_option *o) {
    char facts[2 * HELP_TEXT];
    fputs(".It ", f);
    if (o->letter) fprintf(f, "Fl %c , ", o->letter);
    fputs("Fl Fl ", f);
    roff_text(f, o->name, strlen(o->name), false);
    if (option_takes_value(o)) {
        fputs(" Ar \"", f);
        roff_text(f, option_arg(o), strlen(option_arg(o)), false);
        fputc('"', f);
    }
    fputc('\n', f);
    roff_sentence(f, o->help);
    option_facts(o, facts, sizeof facts);
    roff_sentence(f, facts);
}

static void man_examples(FILE *f, const char *examples) {
    fputs(".Sh EXAMPLES\n", f);
    bool literal = false;
    for (const char *s = examples; *s;) {
        size_t length = strcspn(s, "\n"), skip = strspn(s, " ");
        bool command = skip == 0 && length;
        if (command && !literal) fputs(".Bd -literal\n", f);
        if (!command && literal) fputs(".Ed\n.Pp\n", f);
        literal = command;
        if (command) {
            roff_text(f, s, length, false);
            fputc('\n', f);
        } else if (length > skip) {
            char line[512];
            snprintf(line, sizeof line, "%.*s", (int)(length - skip), s + skip);
            roff_sentence(f, line);
        }
        s += length + (s[length] == '\n');
    }
    if (literal) fputs(".Ed\n", f);
}

static void man_options(FILE *f, const struct cli_args *a) {
    fputs(".Sh OPTIONS\n.Bl -tag -width Ds\n", f);
    for (size_t i = 0; i < a->n_rows; i++)
        if (!option_is_hidden(&a->rows[i])) man_option(f, &a->rows[i]);
    fputs(".El\n", f);
}

void help_man(FILE *f, const struct cli_program *p, const struct cli_args *a) {
    fprintf(f, ".\\\" Made by rill %s --help-man: edit tools/%s.c instead.\n", p->name, p->name);
    if (p->reads_stdin) fputs(".\\\" Reads standard input.\n", f); /* tests/cli/every.bats looks for it */
    fprintf(f, ".Dd %s\n.Dt RILL-", CLI_MAN_DATE);
    for (const char *s = p->name; *s; s++) fputc(toupper((unsigned char)*s), f);
    fprintf(f, " 1\n.Os Rill %s\n.Sh NAME\n.Nm rill-%s\n.Nd ", RILL_VERSION, p->name);
    roff_text(f, p->summary, strlen(p->summary), false);
    fprintf(f, "\n.Sh SYNOPSIS\n.Nm rill %s\n.Op Ar OPTION ...\n", p->name);
    if (*p->operands) {
        fputs(".Ar \"", f);
        roff_text(f, p->operands, strlen(p->operands), false);
        fputs("\"\n", f);
    }
    fputs(".Sh DESCRIPTION\n", f);
    if (p->description)
        man_paragraphs(f, p->description);
    else
        roff_sentence(f, p->summary);
    man_options(f, a);
    fputs(".Sh ENVIRONMENT\n.Bl -tag -width Ds\n.It Ev RILL_DEBUG\nIf set, debugging messages are printed on standard "
          "error.\n.El\n"
          ".Sh EXIT STATUS\n.Bl -tag -width Ds\n.It 0\nSuccess.\n.It 1\nInput or output failed, or resources ran out.\n"
          ".It 2\nWrong usage.\n.It 3\nMalformed, truncated or mismatched input.\n.It 4\nA requested check "
          "failed.\n.El\n",
          f);
    if (p->examples) man_examples(f, p->examples);
    fputs(".Sh SEE ALSO\n.Xr rill 1 ,\n.Xr rill 7\n", f);
}

/* ---- --help-options ---------------------------------------------------------------------------------------------- */

/* Prints one line per option: letter, name, type, range or choices, default, needs. A test compares it with the
 * released interface. */
void help_options(FILE *f, const struct cli_args *a) {
    static const char *const type[] = {"flag", "string", "integer", "number", "share", "amount", "choice", "list"};
    for (size_t i = 0; i < a->n_rows; i++) {
        const struct cli_option *o = &a->rows[i];
        if (option_is_hidden(o)) continue;
        if (o->letter) fprintf(f, "-%c ", o->letter);
        fprintf(f, "--%s %s", o->name, type[o->type]);
        if (o->choices) fprintf(f, " %s", o->choices);
        if (o->min != 0 || o->max != 0) fprintf(f, " %.10g..", o->min);
        if (o->max > o->min) fprintf(f, "%.10g", o->max);
        fprintf(f, "%s%s%s", o->required ? " required" : "", o->fallback ? " = " : "", o->fallback ? o->fallback : "");
        for (size_t k = 0; k < CLI_MAX_NEEDS && o->needs[k]; k++) fprintf(f, "%s %s", k ? "," : " needs", o->needs[k]);
        fputc('\n', f);
    }
}
