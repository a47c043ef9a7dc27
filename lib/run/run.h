/*
 * run: what programs that take a model have in common, so that each says only what is its own: the options that name
 * the model and say how it runs, loading it, and the data stream that goes through it.
 *
 *     static struct run_options how;
 *     static const struct cli_option options[] = {RUN_MODEL(how, "FILE", true, "the model stream to watch"), ..., {0}};
 *     ...
 *     struct run_data d = {0};
 *     run_load_model(c, &how, &m, NULL, e), run_open_data(c, cli_input_path(c, 0), "tokens", STREAM_ANY, m, &d, e)
 *     while (!knowledge_read(d.stream, &d.format, &batch, &more, e) && more) ...
 */
#ifndef RILL_RUN_H
#define RILL_RUN_H

#include "lib/base/base.h"
#include "lib/cli/cli.h"
#include "lib/knowledge/knowledge.h"
#include "lib/model/model.h"

/* ---- the model ------------------------------------------------------------------------------------------------------ */

struct run_options {
    const char *model; /* NULL: not given */
};

/* A row of the program's option table: -m, --model. `o` is the program's struct run_options. */
#define RUN_MODEL(o, placeholder, must, text)                                                                          \
    {                                                                                                                  \
        .name = "model", .letter = 'm', .type = CLI_STRING, .to = &(o).model, .arg = (placeholder),                    \
        .required = (must), .completes_files = true, .help = (text)                                                    \
    }

/* Opens and reads the model; messages name its file. *digest is that of its stream; NULL when nobody asks. */
int run_load_model(struct cli *c, const struct run_options *o, struct model **out, struct digest *digest,
                   struct err *e) MUST_CHECK;
/* The vocabulary alone. From a file through its index, without reading the tensors; from a pipe as it comes. */
int run_load_vocab(struct cli *c, const struct run_options *o, struct vocab **out, struct err *e) MUST_CHECK;

/* ---- the data: a stream of tokens, or of tokens and knowledge ------------------------------------------------------------ */

/* Begin with {0}. */
struct run_data {
    struct stream_reader *stream; /* the cli's */
    struct knowledge_format format;
    bool is_file; /* run_again can read it once more */

    const char *path; /* what follows is private */
    struct stream_reader *again;
    int again_fd;
};
/* Opens the data and reads its description; see cli_open_stream. ERR_DATA unless `m` (NULL: not asked) and the data have the same
 * vocabulary; knowledge_read then keeps it so to the end. */
int run_open_data(struct cli *c, const char *path, const char *role, enum stream_kind expect, const struct model *m,
                  struct run_data *d, struct err *e) MUST_CHECK;
/* The same question to a vocabulary without its model. `what` the data is called in the message. */
int run_check_vocab(const struct vocab *v, const struct run_data *d, const char *what, struct err *e) MUST_CHECK;
/* A second reader at the beginning of the data, beside d->stream, which the cli keeps for the provenance. Valid until the next
 * call. Only of a file. */
int run_again(struct run_data *d, struct stream_reader **out, struct err *e) MUST_CHECK;
void run_data_release(struct run_data *d);

#endif
