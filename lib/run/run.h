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
    const char *model;     /* NULL: not given */
    const char *precision; /* "auto", "int8", "bf16" or "f32" */
    bool auto_int8;        /* auto is int8 for quantized weights where it else is bf16 */
};

/* A row of the program's option table: -m, --model. `o` is the program's struct run_options. */
#define RUN_MODEL(o, placeholder, must, text)                                                                          \
    {                                                                                                                  \
        .name = "model", .letter = 'm', .type = CLI_STRING, .to = &(o).model, .arg = (placeholder),                    \
        .required = (must), .completes_files = true, .help = (text)                                                    \
    }

/* Another: --precision, of inference; the same where o.auto_int8 is set; and of training, which has no int8. */
#define RUN_PRECISION(o) RUN_PRECISION_OF(o, "auto|int8|bf16|f32", RUN_INT8_HELP RUN_AUTO_HELP)
#define RUN_PRECISION_AUTO_INT8(o)                                                                                     \
    RUN_PRECISION_OF(o, "auto|int8|bf16|f32",                                                                          \
                     RUN_INT8_HELP                                                                                     \
                     "auto: int8 where products of bf16 take no longer than those of f32 (AVX-512, AMX), "             \
                     "if weights are quantized, and bf16 if none are; ")
#define RUN_TRAINING_PRECISION(o) RUN_PRECISION_OF(o, "auto|bf16|f32", RUN_AUTO_HELP)
#define RUN_AUTO_HELP             "auto: bf16 where its products take no longer than those of f32 (AVX-512, AMX), "
#define RUN_INT8_HELP                                                                                                  \
    "int8: as bf16, but quantized weights meet activations rounded to 8 bits, as integers; one sequence is made two "  \
    "to four times as fast, and perplexity moves by 0.15% with q8_0, 0.5% with q4_0. "
#define RUN_PRECISION_OF(o, names, text)                                                                               \
    {                                                                                                                  \
        .name = "precision", .type = CLI_CHOICE, .to = &(o).precision, .choices = names, .fallback = "auto",           \
        .help = "of activations and matrix products; sums are f32 in any case. " text "else f32"                       \
    }
/* What a tape is made for, on this machine: DT_BF16 or DT_F32. */
enum dtype run_precision(const struct run_options *o);
/* What it came to into report and provenance, of a model whose weights have all been held once; what loads a model does it.
 * ERR_USAGE: int8 was asked for, and nothing is quantized. */
int run_put_precision(struct cli *c, const struct run_options *o, const struct model *m, struct err *e) MUST_CHECK;
/* How a model is held for inference in that precision. */
enum model_weight_format run_weight_format(const struct run_options *o);

/* Opens and reads the model; messages name its file. Report and provenance have the precision that it is loaded for. *digest is that of its stream; NULL when nobody asks. */
int run_load_model(struct cli *c, const struct run_options *o, enum model_weight_format format, struct model **out,
                   struct digest *digest, struct err *e) MUST_CHECK;
/* The vocabulary alone. From a file through its index, without reading the tensors; from a pipe as it comes. */
int run_load_vocab(struct cli *c, const struct run_options *o, struct vocab **out, struct err *e) MUST_CHECK;

/* ---- the data: a stream of tokens, or of tokens and knowledge ------------------------------------------------------------ */

/* A stream that can be read as often as one likes, if it is a regular file. Begin with {0}. */
struct run_file {
    bool is_file;
    const char *path, *name; /* what follows is private */
    struct stream_reader *again;
    int fd;
};
/* Asks what the path leads to; before anything reads standard input on. */
void run_file_init(struct run_file *f, const char *path);
/* A second reader at the beginning, beside the cli's, which is kept for the provenance. Valid until the next call. */
int run_file_again(struct run_file *f, enum stream_kind expect, struct stream_reader **out, struct err *e) MUST_CHECK;
void run_file_release(struct run_file *f);

/* Begin with {0}. */
/* ---- conversations: the documents of corpus_encode's CORPUS_CHAT -------------------------------------------------- */

struct run_chat_options {
    const char *path;  /* of a template; NULL: the vocabulary's */
    const char *field; /* of the messages; NULL: "messages" */
    const char *date;  /* "YYYY-MM-DD", or NULL: templates have no date */
    bool add_generation_prompt;
};
struct run_chat;
/* ERR_DATA: no template, or one that is not understood. ERR_USAGE: no date. */
int run_chat_open(struct run_chat **out, struct cli *c, const struct vocab *v, const struct run_chat_options *o,
                  struct err *e) MUST_CHECK;
void run_chat_free(struct run_chat *t); /* NULL is fine */
/* A corpus_compose, with the struct run_chat as its ctx: chat_render, whose spans are answers. */
int run_chat_compose(void *ctx, const void *line, size_t n, struct buf *text, struct buf *spans,
                     struct err *e) MUST_CHECK;

struct run_data {
    struct stream_reader *stream; /* the cli's */
    struct knowledge_format format;
    struct run_file file; /* to read it once more */
};
/* Opens the data and reads its description; see cli_open_stream. ERR_DATA unless `m` (NULL: not asked) and the data have the same
 * vocabulary; knowledge_read then keeps it so to the end. */
int run_open_data(struct cli *c, const char *path, const char *role, enum stream_kind expect, const struct model *m,
                  struct run_data *d, struct err *e) MUST_CHECK;
/* The same question to a vocabulary without its model. `what` the data is called in the message. */
int run_check_vocab(const struct vocab *v, const struct run_data *d, const char *what, struct err *e) MUST_CHECK;
void run_data_release(struct run_data *d);

/* ---- a teacher: tokens in, logits into an encoder -------------------------------------------------------------------------- */

struct run_teacher_options {
    bool layerwise; /* the weights go by once for each block of positions, layer by layer; else they stay in memory */
    uint64_t batch_tokens; /* positions of a forward pass, at most (but a whole sequence) */
    uint64_t
        block_tokens; /* of a block, at least (but the last); 0: as many as an eighth of the memory holds states of */
};
struct run_teacher;
/* Opens the model `o`, which must live as long. A layerwise teacher's has been read up to its tensors, another's whole. */
int run_teacher_open(struct run_teacher **out, struct cli *c, const struct run_options *o,
                     const struct run_teacher_options *how, struct err *e) MUST_CHECK;
/* Its configuration and vocabulary. */
const struct model *run_teacher_model(const struct run_teacher *t);
/* Called once, before the first logits; the teacher's digest is known now. Gives the encoder that is to have them. */
typedef int run_teacher_ready(void *ctx, struct digest teacher, struct knowledge_encoder **encoder, struct err *e);
/* All of the tokens, from the stream's beginning to its end, with a progress bar. Logits go into the encoder at `inv_temperature`; the
 * bytes do not depend on options.layerwise or block_tokens. */
int run_teacher_infer(struct run_teacher *t, struct run_data *tokens, double inv_temperature, run_teacher_ready *ready,
                      void *ctx, struct err *e) MUST_CHECK;
void run_teacher_free(struct run_teacher *t); /* NULL is fine */

#endif
