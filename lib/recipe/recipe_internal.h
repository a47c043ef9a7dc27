/* Private to lib/recipe: a provenance as a graph of files and the steps that make them. */
#ifndef RILL_RECIPE_INTERNAL_H
#define RILL_RECIPE_INTERNAL_H

#include "lib/recipe/recipe.h"

#define NO_STEP ((size_t)-1)

/* How a file of the Makefile is made. */
enum file_rule {
    FILE_LEAF, /* not at all: it must exist */
    FILE_STEP, /* by one command, with the commands whose output it read through a pipe */
    FILE_COPY, /* a file that was renamed */
    FILE_CAT,  /* streams that were joined with plain cat */
};

struct recipe_file {
    const char *name;   /* in the Makefile and on disk */
    const char *wanted; /* as recorded; differs from name when one path had two contents */
    enum file_rule rule;
    size_t *steps; /* FILE_STEP: one; FILE_CAT: in order */
    size_t n_steps;
    struct recipe_file *from; /* FILE_COPY */
    const char *digest;       /* of a leaf, "" when unknown */
    const char *note;         /* of a leaf: NULL, or why it has no recorded name */
    bool emitted;
    size_t needed_by; /* number of the last rule that needed it, from 1 */
};

struct recipe_input {
    const char *path;     /* NULL: a pipe */
    const char *digest;   /* "" when it is none */
    bool is_stdin, is_fd; /* is_fd: a shell's <(...) */
    size_t *parents;      /* steps whose concatenated outputs it was */
    size_t n_parents;
    struct recipe_file *file; /* what the Makefile reads; NULL: the parents' pipes */
};

struct recipe_step {
    const char *id, *tool, *version;
    const char **argv; /* without the program's name */
    size_t n_argv;
    const char *output; /* NULL: a pipe */
    struct recipe_input *inputs;
    size_t n_inputs;
    struct recipe_file *file; /* where its output is kept; NULL: in a pipe only */
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
