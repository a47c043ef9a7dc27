/* Private to lib/cli: a provenance as the graph of files and steps that a Makefile is. */
#ifndef RILL_RECIPE_INTERNAL_H
#define RILL_RECIPE_INTERNAL_H

#include "lib/cli/cli_internal.h"

#define NO_STEP ((size_t)-1)

/* What a file of the Makefile is made by. */
enum file_rule {
    FILE_LEAF, /* nothing: it must be there */
    FILE_STEP, /* one program run, with the runs whose output it read through a pipe */
    FILE_COPY, /* a file that was renamed */
    FILE_CAT,  /* streams that were joined with plain cat */
};

struct recipe_file {
    const char *name;   /* in the Makefile and on disk */
    const char *wanted; /* as the provenance has it; another name when one path stood for two contents */
    enum file_rule rule;
    size_t *steps; /* FILE_STEP: one; FILE_CAT: in order */
    size_t n_steps;
    struct recipe_file *from; /* FILE_COPY */
    const char *digest;       /* of a leaf, "" when unknown */
    const char *note;         /* of a leaf: NULL, or why it has no name of its own */
    bool emitted;
    size_t needed_by; /* number of the rule that named it last, from 1 */
};

struct recipe_input {
    const char *path;     /* NULL: a pipe */
    const char *digest;   /* "" when it is none */
    bool is_stdin, is_fd; /* is_fd: a shell's <(...) */
    size_t *parents;      /* steps whose outputs, one behind the other, it was */
    size_t n_parents;
    struct recipe_file *file; /* what the Makefile reads; NULL: straight from the parents' pipes */
};

struct recipe_step {
    const char *id, *tool, *version;
    const char **argv; /* without the program's name */
    size_t n_argv;
    const char *output; /* NULL: a pipe */
    struct recipe_input *inputs;
    size_t n_inputs;
    struct recipe_file *file; /* where its output is kept; NULL: it is only piped */
    size_t n_pipe_readers;
};

struct recipe {
    struct arena arena;
    struct recipe_step *steps;
    size_t n_steps;
    struct recipe_file **files;
    size_t n_files, cap_files;
    struct recipe_file *target;
};

/* "./a//b" is "a/b" */
int recipe_normal_path(struct arena *a, const char *path, const char **out, struct err *e) MUST_CHECK;
/* The graph of all entries; `target`: the file's name, or NULL for the name it was written under. */
int recipe_build(struct recipe *r, const cJSON *entries, const char *target, struct err *e) MUST_CHECK;
void recipe_release(struct recipe *r);

/* A word for the shell inside a Makefile's recipe line, and a file name for its rule lines. */
int recipe_quote_shell(struct buf *b, const char *word, struct err *e) MUST_CHECK;
int recipe_quote_make(struct buf *b, const char *name, bool is_target, struct err *e) MUST_CHECK;
int recipe_print(const struct recipe *r, struct buf *b, struct err *e) MUST_CHECK;

#endif
