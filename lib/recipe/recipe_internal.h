/* Private to lib/recipe: provenance as a graph of files and the steps that make them. */
#ifndef RILL_RECIPE_INTERNAL_H
#define RILL_RECIPE_INTERNAL_H

#include "lib/recipe/recipe.h"

#define NO_STEP ((size_t)-1)

/* How the Makefile makes a file. */
enum file_rule {
    FILE_LEAF, /* it does not: the file must exist */
    FILE_STEP, /* by one command, with those whose output it reads through pipes */
    FILE_COPY, /* by copying a file: it was renamed */
    FILE_CAT,  /* by concatenating streams with plain cat */
};

struct recipe_file {
    const char *name;   /* in the Makefile and on disk */
    const char *wanted; /* as recorded; differs from name if one path had two contents */
    enum file_rule rule;
    size_t *steps; /* FILE_STEP: one; FILE_CAT: in order */
    size_t n_steps;
    struct recipe_file *from; /* FILE_COPY */
    const char *digest;       /* of a leaf; "" if unknown */
    const char *note;         /* of a leaf: why it has no recorded name, or NULL */
    bool emitted;
    size_t needed_by; /* number of the last rule that has it as a prerequisite, from 1 */
};

struct recipe_input {
    const char *path;     /* NULL: a pipe */
    const char *digest;   /* "" if invalid or missing */
    bool is_stdin, is_fd; /* is_fd: the <(...) of a shell */
    size_t *parents;      /* steps whose concatenated outputs it was */
    size_t n_parents;
    struct recipe_file *file; /* what the Makefile reads; NULL: pipes from the parents */
};

struct recipe_step {
    const char *id, *tool, *version;
    const char **argv; /* without the program's name */
    size_t n_argv;
    const char *output; /* NULL: a pipe */
    struct recipe_input *inputs;
    size_t n_inputs;
    struct recipe_file *file; /* where its output is stored; NULL: only in a pipe */
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

/* Simplifies a path: "./a//b" becomes "a/b". */
int recipe_normal_path(struct arena *a, const char *path, const char **out, struct err *e) MUST_CHECK;
/* Builds the graph of all entries. `target` is the file's name; NULL: the name it was written under. */
int recipe_build(struct recipe *r, const cJSON *entries, const char *target, struct err *e) MUST_CHECK;
void recipe_release(struct recipe *r);

/* Quote a word for the shell in a recipe line, and a file name for a rule line; print the Makefile. All append to b. */
int recipe_quote_shell(struct buf *b, const char *word, struct err *e) MUST_CHECK;
int recipe_quote_make(struct buf *b, const char *name, bool is_target, struct err *e) MUST_CHECK;
int recipe_print(const struct recipe *r, struct buf *b, struct err *e) MUST_CHECK;

#endif
