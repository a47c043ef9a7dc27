/*
 * session: what programs that take a model share: the options that name the model and its precision, loading it, the
 * data stream that goes through it, chat templates, and a teacher over a stream of tokens.
 * Order of files, each calling only those before it: file, model, data, tokens, chat, tokenize, tap, sizes, teacher; generate
 * calls model and data.
 *
 *     static struct session_options how;
 *     static const struct cli_option options[] = {SESSION_MODEL(how, "FILE", true, "the model stream to watch"), ..., {0}};
 *     ...
 *     struct session_data d = {0};
 *     session_load_model(c, &how, &m, NULL, e), session_open_data(c, cli_input_path(c, 0), "tokens", STREAM_ANY, m, &d, e)
 *     while (!knowledge_read(d.stream, &d.format, &batch, &more, e) && more) ...
 */
#ifndef RILL_SESSION_H
#define RILL_SESSION_H

#include <stdio.h>

#include "lib/base/base.h"
#include "lib/cli/cli.h"
#include "lib/knowledge/knowledge.h"
#include "lib/model/model.h"
#include "lib/text/text.h"

/* ---- the model --------------------------------------------------------------------------------------------------- */

struct session_options {
    const char *model;     /* NULL: not given */
    const char *precision; /* "auto", "int8", "bf16" or "f32" */
    const char *role;      /* in the provenance; NULL: "model". Another's precision is reported as ROLE-precision */
    const char *kv_cache;  /* the type of keys and values; NULL: as they are computed */
    bool kv_plain;         /* ... without a rotation */
    bool (*kv_interleaves)(const struct model_config *); /* target_interleaves of lib/formats; NULL: no model does */
    bool auto_int8;                                      /* auto is int8 for quantized weights where it else is bf16 */
};

/* A row of the program's option table: -m, --model. `o` is the program's struct session_options. */
#define SESSION_MODEL(o, placeholder, must, text)                                                                      \
    {                                                                                                                  \
        .name = "model", .letter = 'm', .type = CLI_STRING, .to = &(o).model, .arg = (placeholder),                    \
        .required = (must), .completes_files = true, .help = (text)                                                    \
    }

/* Rows for --precision: of inference; of inference where o.auto_int8 is set; of training, which has no int8. */
#define SESSION_PRECISION(o) SESSION_PRECISION_OF(o, "auto|int8|bf16|f32", SESSION_INT8_HELP SESSION_AUTO_HELP)
#define SESSION_PRECISION_AUTO_INT8(o)                                                                                 \
    SESSION_PRECISION_OF(o, "auto|int8|bf16|f32",                                                                      \
                         SESSION_INT8_HELP                                                                             \
                         "auto: on CPUs with fast bf16 products (AVX-512, AMX), int8 if weights are quantized "        \
                         "and bf16 if none are; ")
#define SESSION_TRAINING_PRECISION(o) SESSION_PRECISION_OF(o, "auto|bf16|f32", SESSION_AUTO_HELP)
#define SESSION_AUTO_HELP             "auto: bf16 on CPUs where its products are as fast as those of f32 (AVX-512, AMX), "
#define SESSION_INT8_HELP                                                                                              \
    "int8: like bf16, but quantized weights are multiplied as integers, with activations rounded to 8 bits: two "      \
    "to four times as fast for a single sequence, at a cost of 0.15% in perplexity with q8_0 and 0.5% with q4_0. "
/* ... of the passes of a program that runs the model only with another option */
#define SESSION_DATA_PRECISION(o, option)    SESSION_PRECISION_WITH(o, "auto|bf16|f32", SESSION_AUTO_HELP, option)
#define SESSION_PRECISION_OF(o, names, text) SESSION_PRECISION_WITH(o, names, text, NULL)
#define SESSION_PRECISION_WITH(o, names, text, option)                                                                 \
    {                                                                                                                  \
        .name = "precision", .type = CLI_CHOICE, .to = &(o).precision, .choices = names, .fallback = "auto",           \
        .needs = {option},                                                                                             \
        .help = "precision of activations and matrix products; sums are always f32. " text "otherwise f32"             \
    }
/* Rows for --kv-cache and --kv-plain. */
#define SESSION_KV_CACHE(o)                                                                                            \
    {.name = "kv-cache",                                                                                               \
     .type = CLI_CHOICE,                                                                                               \
     .to = &(o).kv_cache,                                                                                              \
     .choices = "q8_0|q5_1|q5_0|q4_1|q4_0|iq4_nl",                                                                     \
     .help =                                                                                                           \
         "quantize the KV cache as llama.cpp's --cache-type-k and --cache-type-v with this type do: in blocks of 32 "  \
         "elements of a head, position by position"},                                                                  \
    {                                                                                                                  \
        .name = "kv-plain", .type = CLI_FLAG, .to = &(o).kv_plain, .needs = {"kv-cache"},                              \
        .help =                                                                                                        \
            "quantize the KV cache without the rotation that llama.cpp applies first since 2026 if the width of a "    \
            "head is a multiple of 64"                                                                                 \
    }
/* What these options say, to a model that has been opened; session_load_model calls it. */
int session_set_kv_cache(const struct session_options *o, struct model *m, struct err *e) MUST_CHECK;
/* The precision of the tape on this machine: DT_BF16 or DT_F32. */
enum dtype session_precision(const struct session_options *o);
/* Records the resolved precision in report and provenance, once all weights of `m` have been loaded; session_load_model
 * calls it. ERR_USAGE: int8 was asked for, and no weights are of a type for it. */
int session_put_precision(struct cli *c, const struct session_options *o, const struct model *m,
                          struct err *e) MUST_CHECK;
const char *session_role(const struct session_options *o); /* "model" without one */
/* The weight format for inference in that precision. */
enum model_weight_format session_weight_format(const struct session_options *o);

/* Opens and reads the model; messages name its file. Records the resolved precision. *digest (NULL: not wanted) is the
 * digest of its stream. The caller frees *out. */
int session_load_model(struct cli *c, const struct session_options *o, enum model_weight_format hold,
                       struct model **out, struct digest *digest, struct err *e) MUST_CHECK;
/* The same with all totals of its stream: raw_bytes are those of its tensors as they are stored. */
int session_load_model_totals(struct cli *c, const struct session_options *o, enum model_weight_format format,
                              struct model **out, struct stream_totals *totals, struct err *e) MUST_CHECK;
/* The vocabulary alone: from a file through its index, without reading the tensors; from a pipe by reading up to it.
 * The caller frees *out. */
/* *meta, if meta is not NULL, becomes the model's META and the caller's. */
int session_load_vocab(struct cli *c, const struct session_options *o, struct vocab **out, cJSON **meta,
                       struct err *e) MUST_CHECK;

/* ---- the data: a stream of tokens, or of tokens and knowledge ---------------------------------------------------- */

/* A stream that can be read several times if it is a regular file. Begin with {0}. */
struct session_file {
    bool is_file;
    const char *path, *name; /* from here on private */
    struct stream_reader *again;
    int fd;
};
/* Looks at what the path leads to. Call it before anything reads from standard input. */
void session_file_init(struct session_file *f, const char *path);
/* A second reader from the beginning, in addition to the cli's, which the provenance needs. Valid until the next call. */
int session_file_again(struct session_file *f, enum stream_kind expect, struct stream_reader **out,
                       struct err *e) MUST_CHECK;
void session_file_release(struct session_file *f);

/* Begin with {0}. */
struct session_data {
    struct stream_reader *stream; /* the cli's */
    struct knowledge_format format;
    struct session_file file; /* to read it again */
};
/* Opens the data with cli_open_stream and reads its description. ERR_DATA unless `m` (NULL: not checked) and the data
 * have the same vocabulary; knowledge_read checks that it stays the same. */
int session_open_data(struct cli *c, const char *path, const char *role, enum stream_kind expect, const struct model *m,
                      struct session_data *d, struct err *e) MUST_CHECK;
/* The same check for a vocabulary without its model. `what`: the data's name in the message. */
int session_check_vocab(const struct vocab *v, const struct session_data *d, const char *what,
                        struct err *e) MUST_CHECK;
void session_data_release(struct session_data *d);

/* The tokens of a stream, whole in memory. Begin with {0}. */
struct session_tokens {
    struct model_input in;
    struct buf tokens, lengths;
};
/* Opens the data as session_open_data does and reads whole sequences, up to the one that reaches `limit` positions; 0: all.
 * ERR_DATA when there are none, or a sequence runs over several batches. On failure too, session_tokens_release. */
int session_read_tokens(struct cli *c, const char *path, const char *role, const struct model *m, uint64_t limit,
                        struct session_tokens *t, struct err *e) MUST_CHECK;
void session_tokens_release(struct session_tokens *t);

/* ---- conversations: the documents of corpus_encode's CORPUS_CHAT ------------------------------------------------- */

struct session_chat_options {
    const char *path;  /* of a template; NULL: the vocabulary's */
    const char *field; /* of the messages; NULL: "messages" */
    const char *date;  /* "YYYY-MM-DD", or NULL: templates have no date */
    bool add_generation_prompt;
};
struct session_chat;
/* ERR_DATA: no template, or one that cannot be parsed. ERR_USAGE: o->date is not a date. */
int session_chat_open(struct session_chat **out, struct cli *c, const struct vocab *v,
                      const struct session_chat_options *o, struct err *e) MUST_CHECK;
void session_chat_free(struct session_chat *t); /* NULL is fine */
/* A corpus_compose whose ctx is a struct session_chat: renders one conversation; the spans are its answers. */
int session_chat_compose(void *ctx, const void *line, size_t n, struct buf *text, struct buf *spans,
                         struct err *e) MUST_CHECK;

/* ---- text to tokens, and back: what tokenize does ----------------------------------------------------------------- */

struct session_corpus {
    struct corpus_options corpus; /* without what depends on the vocabulary */
    const char *bos, *eos;        /* "auto", "always" or "never" */
    double mask_rate;             /* for masked language models; 0: tokens stay */
    struct session_chat_options chat;
};
/* Writes the operands' text as the program's output, a token stream. `model`: META of the vocabulary's model, which may
 * name classes. */
int session_tokenize(struct cli *c, const struct vocab *v, const cJSON *model, const struct session_corpus *how,
                     struct err *e) MUST_CHECK;
/* Writes operand 0, tokens, as text. skip_special: without control tokens. */
int session_detokenize(struct cli *c, const struct vocab *v, bool skip_special, struct err *e) MUST_CHECK;

/* ---- taps: fields of what flows through a teacher ---------------------------------------------------------------------- */

/* Adds to the format the fields that --tap asks for: "POINT[:LAYERS][:dtype=TYPE]", the point embed, hidden, attention, q, k, v or
 * output, layers as "3,5-7", "all" or "last", which is what a point of layers has without them. They are sampled if the format has
 * tap_positions; else `counted`: rows that are used alone are left out where positions do not count. ERR_USAGE. */
int session_tap_parse(const char *text, const struct model_config *c, bool counted, struct knowledge_format *f,
                      struct err *e) MUST_CHECK;
/* "bf16", "int8" or "f32". ERR_USAGE. */
int session_field_dtype(const char *name, enum dtype *out, struct err *e) MUST_CHECK;
/* What --drop and --field-dtype make of the format of a stream: fields, or the response, that a pattern of `drop`
 * matches go, and fields that stay are stored in the type, unless it is NULL. ERR_USAGE: a pattern names nothing, or
 * there is no field for the type. */
int session_choose_fields(const struct cli_list *drop, const char *dtype, struct knowledge_format *f,
                          struct err *e) MUST_CHECK;
/* For --help: what --tap takes. */
#define SESSION_TAP_HELP                                                                                               \
    "record more than predictions, as POINT[:LAYERS][:dtype=bf16|int8|f32]. POINT is embed (the embedding), hidden "   \
    "(output of a layer), attention (attention probabilities), q, k, v (inputs of attention) or output (input of "     \
    "the output matrix). LAYERS are numbers from 0 and ranges (3,5-7), all, or last, the default"

/* Collects the rows of fields of a block of sequences, and hands them over to an encoder. */
struct session_taps;
/* The format, whose fields are of this configuration, must outlive it. */
int session_taps_new(struct session_taps **out, const struct model_config *c, const struct knowledge_format *f,
                     uint64_t seed, struct err *e) MUST_CHECK;
/* The next block. It must live until session_taps_give. */
struct session_tap_block {
    size_t n_seqs;
    const uint32_t *lengths; /* [n_seqs] */
    const uint64_t *seqs;    /* [n_seqs] numbers of the sequences */
    const uint8_t *counted;  /* [positions] which of them count; NULL: all */
};
int session_taps_begin(struct session_taps *t, const struct session_tap_block *b, struct err *e) MUST_CHECK;
/* Which positions of it are sampled; NULL: fields are not. */
const uint8_t *session_taps_sampled(const struct session_taps *t);
model_tap session_taps_see; /* ctx is the struct session_taps */
/* Hands over what it has seen since it last did. */
int session_taps_give(struct session_taps *t, struct knowledge_encoder *k, struct err *e) MUST_CHECK;
void session_taps_free(struct session_taps *t); /* NULL is fine */

/* Prints what a stream of this format would take for the sequences of `tokens`, which is read to its end: a line for the response and
 * each field with bytes a token and in all, and their sum. all_rows: also where positions do not count. */
int session_print_sizes(const struct knowledge_format *f, struct session_data *tokens, bool all_rows, FILE *out,
                        struct err *e) MUST_CHECK;

/* Which positions of whole sequences of the queue count, for knowledge of the target that is made of tokens of this format, into
 * `counted`, u8 [n_positions]; *some false: all do, or none is told from the others. */
int session_count_positions(const struct knowledge_format *tokens, enum stream_target target,
                            const struct knowledge_rows *rows, size_t n_seqs, size_t n_positions, struct buf *counted,
                            bool *some, struct err *e) MUST_CHECK;

/* ---- a teacher: tokens in, logits into an encoder -------------------------------------------------------------------------- */

struct session_teacher_options {
    /* The weights are read layer by layer, once for each block of positions; else they stay in memory. */
    bool layerwise;
    /* Most positions of a forward pass; a longer sequence is a pass of its own. */
    uint64_t batch_tokens;
    /* Answers and what is tapped are also made where positions do not count (knowledge_count_positions). */
    bool all_rows;
    /* Fewest positions of a block, except the last; 0: as many as an eighth of the free memory holds states of. */
    uint64_t block_tokens;
};
struct session_teacher;
/* Opens the model of `o`, which must outlive the teacher. A layerwise teacher has been read up to its tensors, any other
 * completely. */
int session_teacher_open(struct session_teacher **out, struct cli *c, const struct session_options *o,
                         const struct session_teacher_options *how, struct err *e) MUST_CHECK;
/* Its configuration and vocabulary. */
const struct model *session_teacher_model(const struct session_teacher *t);
/* The fields of this format are tapped in the run to come; it must outlive the teacher. */
int session_teacher_tap(struct session_teacher *t, const struct knowledge_format *f, uint64_t seed,
                        struct err *e) MUST_CHECK;
/* Called once, before the first logits, when the teacher's digest is known. Returns the encoder that takes them. */
typedef int session_teacher_ready(void *ctx, struct digest teacher, struct knowledge_encoder **encoder, struct err *e);
/* Runs over all tokens of the stream with a progress bar. Logits go into the encoder at `inv_temperature` (0: none are made, for
 * an encoder without a response), and rows of tapped fields; the bytes do not depend on layerwise or block_tokens. */
int session_teacher_infer(struct session_teacher *t, struct session_data *tokens, double inv_temperature,
                          session_teacher_ready *ready, void *ctx, struct err *e) MUST_CHECK;
/* The model that it was opened as, for whoever runs it otherwise: one of the two, the session_teacher's. */
void session_teacher_parts(struct session_teacher *t, struct model **model, struct model_layerwise **layerwise);
void session_teacher_free(struct session_teacher *t); /* NULL is fine */

/* ---- generation: prompts in, their continuations out ---------------------------------------------------------------------- */

struct session_generate_options {
    const struct session_options *model;
    struct model_sampling sampling; /* without seed and ends, which are the program's and the vocabulary's */
    uint64_t repeat;                /* continuations of each prompt */
    bool text;                      /* a line of text for each, in place of a stream */
    bool only_new;                  /* without the prompts */
    bool past_eos;                  /* ends of the vocabulary end nothing */
};
/* Continues the prompts of a token stream into the program's output, with a progress bar; counts and speeds go into its report. */
int session_generate(struct cli *c, const char *prompts, const struct session_generate_options *o,
                     struct err *e) MUST_CHECK;

#endif
