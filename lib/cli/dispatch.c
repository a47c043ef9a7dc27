/*
 * dispatch: `rill NAME ...` execs rill-NAME, found beside this program, in ../libexec/rill or on PATH, so that a
 * third-party program needs nothing but its name. (All have a prefix because `eval` is a shell builtin and `import`
 * belongs to ImageMagick.)
 */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/cli/cli_internal.h"

#define MAX_PROGRAMS 256
#define MAX_FOLDERS  64

struct programs {
    struct arena arena;
    const char *folder[MAX_FOLDERS]; /* where to look, in order */
    size_t n_folders, n_ours;        /* the first n_ours have the programs of this release */
    const char *name[MAX_PROGRAMS], *path[MAX_PROGRAMS];
    bool ours[MAX_PROGRAMS];
    size_t n;
    const struct cli_topic *topics;
};

static const char summary[] = "compress language models with Unix filters";

static void say(const char *text) {
    char line[1200] = "rill: ";
    size_t n = strlen(line);
    n += escape_text(line + n, sizeof line - n - 1, text, strlen(text));
    line[n++] = '\n';
    (void)fd_write(STDERR_FILENO, line, n);
}

/* ---- finding ----------------------------------------------------------------------------------------------------- */

static int add_folder(struct programs *p, const char *path, size_t length, struct err *e) {
    if (p->n_folders == MAX_FOLDERS || length == 0) return 0;
    const char *copy = arena_strndup(&p->arena, path, length, e);
    if (!copy) return e->code;
    for (size_t i = 0; i < p->n_folders; i++)
        if (strcmp(p->folder[i], copy) == 0) return 0;
    p->folder[p->n_folders++] = copy;
    return 0;
}

static bool is_program(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode) && access(path, X_OK) == 0;
}

/* In the build tree the programs are beside rill; when installed they are in libexec, and all of /usr/bin is beside
 * it. */
static int find_folders(struct programs *p, struct err *e) {
    char self[PATH_MAX], installed[PATH_MAX + 24];
    struct stat st;
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    bool libexec = false;
    if (n > 0) {
        self[n] = 0;
        char *slash = strrchr(self, '/');
        if (slash) *slash = 0;
        char *above = strrchr(self, '/');
        snprintf(installed, sizeof installed, "%.*s/libexec/rill", above ? (int)(above - self) : 0, self);
        libexec = stat(installed, &st) == 0 && S_ISDIR(st.st_mode);
        if (libexec && add_folder(p, installed, strlen(installed), e)) return e->code;
        if (!libexec && add_folder(p, self, strlen(self), e)) return e->code;
        p->n_ours = p->n_folders;
        if (add_folder(p, self, strlen(self), e)) return e->code;
    }
    for (const char *s = getenv("PATH"); s && *s;) {
        size_t length = strcspn(s, ":");
        if (add_folder(p, s, length, e)) return e->code;
        s += length + (s[length] == ':');
    }
    return 0;
}

static int by_name(const struct dirent **a, const struct dirent **b) {
    return strcmp((*a)->d_name, (*b)->d_name);
}
static int has_prefix(const struct dirent *d) {
    return strncmp(d->d_name, "rill-", 5) == 0 && d->d_name[5];
}

static int list_folder(struct programs *p, size_t i, struct err *e) {
    struct dirent **found;
    int n = scandir(p->folder[i], &found, has_prefix, by_name), rc = 0;
    for (int k = 0; k < n; k++) {
        const char *path = arena_printf(&p->arena, e, "%s/%s", p->folder[i], found[k]->d_name);
        const char *name = arena_strdup(&p->arena, found[k]->d_name + 5, e);
        bool known = false;
        free(found[k]);
        if (!path || !name) rc = e->code;
        for (size_t j = 0; !rc && j < p->n; j++) known |= strcmp(p->name[j], name) == 0;
        if (rc || known || p->n == MAX_PROGRAMS || !is_program(path)) continue;
        p->ours[p->n] = i < p->n_ours;
        p->name[p->n] = name;
        p->path[p->n++] = path;
    }
    if (n >= 0) free(found);
    return rc;
}

static int list_folders(struct programs *p, struct err *e) {
    for (size_t i = 0; i < p->n_folders; i++)
        if (list_folder(p, i, e)) return e->code;
    return 0;
}

/* ---- listing ----------------------------------------------------------------------------------------------------- */

/* Copies what one of our programs prints for a hidden option. Other programs are not run: they might do anything. */
static void copy_answer(const char *path, const char *option, FILE *out) {
    char line[512];
    int fd[2];
    fflush(out);
    if (pipe(fd)) return;
    pid_t child = fork();
    if (child == 0) {
        dup2(fd[1], STDOUT_FILENO);
        close(fd[0]);
        close(fd[1]);
        execl(path, path, option, (char *)NULL);
        _exit(127);
    }
    close(fd[1]);
    FILE *f = fdopen(fd[0], "r");
    while (f && fgets(line, sizeof line, f)) fputs(line, out);
    if (f)
        fclose(f);
    else
        close(fd[0]);
    if (child > 0) waitpid(child, NULL, 0);
}

static void list_programs(const struct programs *p, FILE *f) {
    bool others = false;
    fprintf(f,
            "Usage: rill PROGRAM [OPTION]... [OPERAND]...\nCompress language models with Unix filters.\n\nPrograms:\n");
    for (size_t i = 0; i < p->n; i++) {
        others |= !p->ours[i];
        if (!p->ours[i]) continue;
        fprintf(f, "  %-14s ", p->name[i]);
        copy_answer(p->path[i], "--help-summary", f);
    }
    if (others) fprintf(f, "\nOn PATH:\n");
    for (size_t i = 0; i < p->n; i++)
        if (!p->ours[i]) {
            fputs("  ", f);
            cli_put(f, p->name[i]);
            fprintf(f, "%*s", strlen(p->name[i]) < 14 ? (int)(15 - strlen(p->name[i])) : 1, "");
            cli_put(f, p->path[i]);
            fputc('\n', f);
        }
    fprintf(f, "\nSee rill help PROGRAM for the options of a program. Other topics:\n");
    for (const struct cli_topic *t = p->topics; t->name; t++) fprintf(f, "  rill help %-14s %s\n", t->name, t->summary);
}

static void put_names(const struct programs *p, FILE *f) {
    for (size_t i = 0; i < p->n; i++)
        if (p->ours[i]) fprintf(f, " %s", p->name[i]);
}

/* The words that may follow "help". */
static void put_pages(const struct programs *p, FILE *f) {
    put_names(p, f);
    for (const struct cli_topic *t = p->topics; t->name; t++) fprintf(f, " %s", t->name);
}

/* Copies the answers of all our programs. */
static void put_answers(const struct programs *p, const char *option, FILE *f) {
    for (size_t i = 0; i < p->n; i++)
        if (p->ours[i]) copy_answer(p->path[i], option, f);
}

static void print_bash(const struct programs *p, FILE *f) {
    fprintf(f, "# bash completion for rill: made by rill --help-bash\n");
    put_answers(p, "--help-bash", f);
    fprintf(
        f,
        "_rill() {\n    local cur=${COMP_WORDS[COMP_CWORD]} f=_rill_${COMP_WORDS[1]//-/_}\n"
        "    if [ \"$COMP_CWORD\" -eq 1 ] || { [ \"$COMP_CWORD\" -eq 2 ] && [ \"${COMP_WORDS[1]}\" = help ]; }; then\n"
        "        COMPREPLY=($(compgen -W 'help --help --version");
    put_pages(p, f);
    fprintf(f, "' -- \"$cur\"))\n    elif declare -F \"$f\" >/dev/null; then \"$f\"\n"
               "    else COMPREPLY=($(compgen -f -- \"$cur\")); fi\n}\ncomplete -o filenames -F _rill rill\n");
}

static void print_zsh(const struct programs *p, FILE *f) {
    fprintf(f, "#compdef rill\n# zsh completion for rill: made by rill --help-zsh\n");
    put_answers(p, "--help-zsh", f);
    fprintf(f, "_rill() {\n    local state line context\n    typeset -A opt_args\n"
               "    _arguments -C '1:program:->program' '*::argument:->arguments'\n    case $state in\n"
               "    program) compadd help --help --version");
    put_names(p, f);
    fprintf(f, " ;;\n    arguments)\n        local f=_rill_${words[1]//-/_}\n"
               "        if [[ ${words[1]} == help ]]; then compadd");
    put_pages(p, f);
    fprintf(f, "\n        elif (( $+functions[$f] )); then $f\n        else _files; fi ;;\n    esac\n}\n"
               "if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _rill \"$@\"; else compdef _rill rill; fi\n");
}

static void print_fish(const struct programs *p, FILE *f) {
    fprintf(f, "# fish completion for rill: made by rill --help-fish\n");
    put_answers(p, "--help-fish", f);
    fprintf(f, "complete -c rill -f -n '__fish_use_subcommand' -a 'help --help --version'\n");
    fprintf(f, "complete -c rill -f -n '__fish_seen_subcommand_from help' -a '");
    for (size_t i = 0; i < p->n; i++)
        if (p->ours[i]) fprintf(f, "%s ", p->name[i]);
    for (const struct cli_topic *t = p->topics; t->name; t++) fprintf(f, "%s ", t->name);
    fprintf(f, "'\n");
}

static void print_man(const struct programs *p, FILE *f) {
    fprintf(
        f,
        ".\\\" Made by rill --help-man: edit lib/cli/dispatch.c instead.\n.Dd %s\n.Dt RILL 1\n.Os Rill %s\n"
        ".Sh NAME\n.Nm rill\n.Nd compress language models with Unix filters\n.Sh SYNOPSIS\n.Nm\n.Ar program\n.Op Ar "
        "argument ...\n"
        ".Nm\n.Cm help\n.Op Ar program\n.Sh DESCRIPTION\n"
        "Runs the program\n.Pa rill\\-NAME ,\nfound beside\n.Nm ,\nin\n.Pa ../libexec/rill\nor on\n.Ev PATH .\n"
        "Each program reads and writes one self\\-describing binary stream, so that a pipeline joins them.\n"
        "The programs of this release:\n.Bl -tag -width Ds\n",
        CLI_MAN_DATE, RILL_VERSION);
    for (size_t i = 0; i < p->n; i++) {
        if (!p->ours[i]) continue;
        fprintf(f, ".It Xr rill-%s 1\n", p->name[i]);
        copy_answer(p->path[i], "--help-summary", f);
    }
    fprintf(f, ".El\n.Pp\nOther topics of\n.Nm\n.Cm help :\n.Bl -tag -width Ds\n");
    for (const struct cli_topic *t = p->topics; t->name; t++) fprintf(f, ".It Cm %s\n%s\n", t->name, t->summary);
    fprintf(f, ".El\n.Sh EXIT STATUS\nThat of the program, or 2 if there is no such program.\n"
               ".Sh SEE ALSO\n.Xr rill-format 5 ,\n.Xr rill 7\n");
}

/* ---- running ----------------------------------------------------------------------------------------------------- */

static int unknown_program(const struct programs *p, const char *name) {
    char text[512];
    const char *ours = hint_program(name), *near = cli_nearest(name, p->name, p->n);
    if (ours)
        snprintf(text, sizeof text, "there is no program '%.100s' (here it is rill %s)", name, ours);
    else if (near)
        snprintf(text, sizeof text, "there is no program '%.100s' (did you mean %s?)", name, near);
    else
        snprintf(text, sizeof text, "there is no program '%.100s' (rill without arguments lists all)", name);
    say(text);
    return 2;
}

/* Execs the first rill-NAME found, with the given arguments; returns only on failure. The folders, which may be as
 * large as /usr/bin, are listed only if there is no such program. */
static int become(struct programs *p, const char *name, char **argv, struct err *e) {
    char path[PATH_MAX + 300], text[PATH_MAX + 500];
    for (size_t i = 0; i < p->n_folders && *name && !strchr(name, '/'); i++) {
        int n = snprintf(path, sizeof path, "%s/rill-%s", p->folder[i], name);
        if (n < 0 || (size_t)n >= sizeof path || !is_program(path)) continue;
        argv[0] = path;
        execv(path, argv);
        snprintf(text, sizeof text, "%s: %s", path, strerror(errno));
        say(text);
        return 1;
    }
    return list_folders(p, e) ? e->code : unknown_program(p, name);
}

/* Answers the options of rill itself. */
static int answer(const struct programs *p, const char *option, bool verbose) {
    struct err e;
    FILE *out = text_open(STDOUT_FILENO);
    if (!out)
        err_nomem(&e, "text output");
    else if (strcmp(option, "--version") == 0 || strcmp(option, "-V") == 0)
        cli_put_version(out, "rill", verbose);
    else if (strcmp(option, "--help-bash") == 0)
        print_bash(p, out);
    else if (strcmp(option, "--help-zsh") == 0)
        print_zsh(p, out);
    else if (strcmp(option, "--help-fish") == 0)
        print_fish(p, out);
    else if (strcmp(option, "--help-man") == 0)
        print_man(p, out);
    else if (strcmp(option, "--help-summary") == 0)
        fprintf(out, "%s\n", summary);
    else
        list_programs(p, out);
    if (out && !text_close(out, "standard output", &e)) return 0;
    say(e.msg);
    return 1;
}

static int answer_topic(const struct cli_topic *t) {
    struct err e;
    FILE *out = text_open(STDOUT_FILENO);
    if (!out)
        err_nomem(&e, "text output");
    else
        t->print(out);
    if (out && !text_close(out, "standard output", &e)) return 0;
    say(e.msg);
    return 1;
}

/* Returns the exit code, or a negative error. */
static int dispatch(struct programs *p, int argc, char **argv, struct err *e) {
    static const char *const options[] = {"help",        "--help",     "-h",          "--version",  "-V",
                                          "--help-bash", "--help-zsh", "--help-fish", "--help-man", "--help-summary"};
    const char *name = argc > 1 ? argv[1] : "help";
    bool verbose = argc > 2 && (strcmp(argv[2], "-v") == 0 || strcmp(argv[2], "--verbose") == 0);
    bool help = strcmp(name, "help") == 0 || strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0;
    for (const struct cli_topic *t = p->topics; help && argc > 2 && t->name; t++)
        if (strcmp(argv[2], t->name) == 0) return answer_topic(t);
    if (help && argc > 2) {
        char option[] = "--help", *arguments[] = {argv[0], option, NULL};
        return become(p, argv[2], arguments, e);
    }
    for (size_t i = 0; i < COUNT_OF(options); i++)
        if (strcmp(name, options[i]) == 0) return list_folders(p, e) ? e->code : answer(p, name, verbose);
    if (name[0] != '-') return become(p, name, argv + 1, e);
    say("unknown option; usage: rill PROGRAM [OPTION]... [OPERAND]...");
    return 2;
}

int cli_dispatch(int argc, char **argv, const struct cli_topic *topics) {
    struct programs p = {.topics = topics};
    struct err e;
    cli_process_setup();
    int code = find_folders(&p, &e);
    if (!code) code = dispatch(&p, argc, argv, &e);
    if (code < 0) say(e.msg);
    arena_release(&p.arena);
    return code < 0 ? 1 : code;
}
