/* complete: the option table as completions for bash, zsh and fish. The script for rill is composed of those of the
 * programs. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "lib/cli/cli_internal.h"

/* The words, separated by bars, to offer for an option's value; NULL: unknown. */
static const char *offered(const struct cli_option *o) {
    return o->choices ? o->choices : o->suggests;
}

/* Writes the words separated by blanks. */
static void put_words(FILE *f, const char *words, const char *escaped) {
    for (const char *s = words; *s; s++) {
        if (strchr(escaped, *s)) fputc('\\', f);
        fputc(*s == '|' ? ' ' : *s, f);
    }
}

/* Writes e.g. _rill_teacher_infer. */
static void put_function(FILE *f, const char *program) {
    fputs("_rill_", f);
    for (const char *s = program; *s; s++) fputc(*s == '-' ? '_' : *s, f);
}

/* Writes the first clause of a help text, short enough for a line, inside single quotes, with the shell's special
 * characters escaped. */
static void put_clause(FILE *f, const char *text, const char *escaped) {
    enum { MOST = 72 };
    size_t n = 0, space = 0;
    for (; text[n] && n < MOST && !strchr(";(", text[n]) &&
           !(strchr(".:,", text[n]) && isspace((unsigned char)text[n + 1]));
         n++)
        if (text[n] == ' ') space = n;
    if (text[n] == '(' && n) n--;
    if (n == MOST) n = space;
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '\'')
            fputs("'\\''", f);
        else if (strchr(escaped, text[i]))
            fprintf(f, "\\%c", text[i]);
        else
            fputc(text[i] == '\n' ? ' ' : text[i], f);
    }
}

/* ---- bash -------------------------------------------------------------------------------------------------------- */

static void bash_case(FILE *f, const struct cli_option *o) {
    fputs("    ", f);
    if (o->letter) fprintf(f, "-%c|", o->letter);
    fprintf(f, "--%s) ", o->name);
    if (offered(o)) {
        fputs("COMPREPLY=($(compgen -W '", f);
        put_words(f, offered(o), "");
        fputs("' -- \"$cur\"))", f);
    } else if (o->completes_files) {
        fputs("COMPREPLY=($(compgen -f -- \"$cur\"))", f);
    } else {
        fputs("COMPREPLY=()", f);
    }
    fputs("; return ;;\n", f);
}

void complete_bash(FILE *f, const struct cli_program *p, const struct cli_args *a) {
    put_function(f, p->name);
    fputs("() {\n    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}\n", f);
    /* bash splits --codec=zs at the equals sign */
    fputs("    if [ \"$cur\" = = ]; then cur=; elif [ \"$prev\" = = ]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi\n"
          "    case $prev in\n",
          f);
    for (size_t i = 0; i < a->n_rows; i++)
        if (!option_is_hidden(&a->rows[i]) && option_takes_value(&a->rows[i])) bash_case(f, &a->rows[i]);
    fputs("    esac\n    case $cur in\n    -*) COMPREPLY=($(compgen -W '", f);
    for (size_t i = 0; i < a->n_rows; i++)
        if (!option_is_hidden(&a->rows[i])) fprintf(f, "%s--%s", i ? " " : "", a->rows[i].name);
    fputs("' -- \"$cur\")) ;;\n    *) COMPREPLY=($(compgen -f -- \"$cur\")) ;;\n    esac\n}\ncomplete -o filenames -F ",
          f);
    put_function(f, p->name);
    fprintf(f, " rill-%s\n", p->name);
}

/* ---- zsh: _arguments --------------------------------------------------------------------------------------------- */

/* One line per option: '(-o --output)'{-o+,--output=}'[write FILE]:FILE:_files'. '*' lets a list be repeated. */
static void zsh_option(FILE *f, const struct cli_option *o) {
    const char *value = option_takes_value(o) ? "=" : "";
    fputs(" \\\n        ", f);
    if (o->type == CLI_LIST)
        fputs("'*'", f);
    else if (o->letter)
        fprintf(f, "'(-%c --%s)'", o->letter, o->name);
    if (o->letter)
        fprintf(f, "{-%c%s,--%s%s}'[", o->letter, *value ? "+" : "", o->name, value);
    else
        fprintf(f, "'--%s%s[", o->name, value);
    put_clause(f, o->help, "[]\\:");
    fputs("]", f);
    if (option_takes_value(o)) {
        fputc(':', f);
        for (const char *s = option_arg(o); *s; s++) fprintf(f, *s == ':' ? "\\%c" : "%c", *s);
        fputc(':', f);
        if (offered(o)) {
            fputc('(', f);
            put_words(f, offered(o), ":");
            fputc(')', f);
        } else if (o->completes_files) {
            fputs("_files", f);
        }
    }
    fputc('\'', f);
}

void complete_zsh(FILE *f, const struct cli_program *p, const struct cli_args *a) {
    put_function(f, p->name);
    fputs("() {\n    _arguments -s -S", f);
    for (size_t i = 0; i < a->n_rows; i++)
        if (!option_is_hidden(&a->rows[i])) zsh_option(f, &a->rows[i]);
    fputs(" \\\n        '*:file:_files'\n}\n", f);
}

/* ---- fish -------------------------------------------------------------------------------------------------------- */

static void fish_option(FILE *f, const char *program, const struct cli_option *o) {
    fprintf(f, "complete -c rill -n '__fish_seen_subcommand_from %s'", program);
    if (o->letter) fprintf(f, " -s %c", o->letter);
    fprintf(f, " -l %s", o->name);
    if (offered(o)) {
        fputs(" -x -a '", f);
        put_words(f, offered(o), "");
        fputc('\'', f);
    } else if (o->completes_files) {
        fputs(" -r -F", f);
    } else if (option_takes_value(o)) {
        fputs(" -x", f);
    }
    fputs(" -d '", f);
    /* inside single quotes fish accepts \' as well as closing, escaping and reopening */
    put_clause(f, o->help, "\\");
    fputs("'\n", f);
}

void complete_fish(FILE *f, const struct cli_program *p, const struct cli_args *a) {
    fprintf(f, "complete -c rill -f -n '__fish_use_subcommand' -a %s -d '", p->name);
    put_clause(f, p->summary, "\\");
    fputs("'\n", f);
    for (size_t i = 0; i < a->n_rows; i++)
        if (!option_is_hidden(&a->rows[i])) fish_option(f, p->name, &a->rows[i]);
}
