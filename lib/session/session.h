/*
 * session: what programs that take a model share: the options for the model and its precision, loading it, the data
 * stream that goes through it, chat templates, running a teacher over a stream of tokens, and what it said in fewer
 * bytes or as a table.
 * Order of files, each calling only those before it: file, model, data, tokens, chat, tokenize, tap, sizes, teacher,
 * record; generate calls model and data, reduce model, data and tap.
 *
 *     static struct session_options how;
 *     static const struct cli_option options[] = {SESSION_MODEL(how, "FILE", true, "the model stream"), ..., {0}};
 *     ...
 *     struct session_data d = {0};
 *     session_load_model(c, &how, WEIGHTS_F32, &m, NULL, e)
 *     session_open_data(c, cli_input_path(c, 0), "tokens", STREAM_ANY, m, &d, e)
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
    const char *role;      /* in the provenance; NULL: "model". Otherwise the precision is reported as ROLE-precision */
    const char *kv_cache;  /* type of the KV cache; NULL: not quantized */
    bool kv_plain;         /* quantize without rotation */
    bool (*kv_interleaves)(const struct model_config *); /* target_interleaves of lib/formats; NULL: no model does */
    bool auto_int8;                                      /* auto means int8 instead of bf16 if weights are quantized */
    const uint64_t *at_once; /* ... unless so many continuations of a prompt are faster in bf16; NULL: one */
};

/* Row of the option table for -m, --model. `o` is the program's struct session_options. */
#define SESSION_MODEL(o, placeholder, must, text)                                                                      \
    {                                                                                                                  \
        .name = "model", .letter = 'm', .type = CLI_STRING, .to = &(o).model, .arg = (placeholder),                    \
        .required = (must), .completes_files = true, .help = (text)                                                    \
    }

/* Rows for --precision: of inference; of inference with o.auto_int8; of training, which has no int8. */
#define SESSION_PRECISION(o) SESSION_PRECISION_OF(o, "auto|int8|bf16|f32", SESSION_INT8_HELP SESSION_AUTO_HELP)
#define SESSION_PRECISION_AUTO_INT8(o)                                                                                 \
    SESSION_PRECISION_OF(o, "auto|int8|bf16|f32",                                                                      \
                         SESSION_INT8_HELP                                                                             \
                         "auto: on CPUs with fast bf16 products (AVX-512, AMX), int8 if weights are quantized "        \
                         "(bf16 with AMX and a --repeat above 40, where that is faster) and bf16 if none are; ")
#define SESSION_TRAINING_PRECISION(o) SESSION_PRECISION_OF(o, "auto|bf16|f32", SESSION_AUTO_HELP)
#define SESSION_AUTO_HELP             "auto: bf16 on CPUs where its products are as fast as those of f32 (AVX-512, AMX), "
#define SESSION_INT8_HELP                                                                                              \
    "int8: like bf16, but quantized weights are multiplied as integers, with activations rounded to 8 bits: two "      \
    "to four times as fast for a single sequence, at a cost of 0.15% in perplexity with q8_0 and 0.5% with q4_0. "
/* Row for --precision in a program that runs the model only with another option. */
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
/* Applies these options to a model that has been opened; session_load_model calls it. ERR_USAGE. */
int session_set_kv_cache(const struct session_options *o, struct model *m, struct err *e) MUST_CHECK;
/* Returns the precision of the tape on this machine: DT_BF16 or DT_F32. */
enum dtype session_precision(const struct session_options *o);
/* Records the resolved precision in report and provenance; call it when all weights of `m` are loaded
 * (session_load_model does). ERR_USAGE: int8 was requested, and no weights have a type for it. */
int session_put_precision(struct cli *c, const struct session_options *o, const struct model *m,
                          struct err *e) MUST_CHECK;
const char *session_role(const struct session_options *o); /* never NULL */
/* Returns the weight format for inference in that precision. */
enum model_weight_format session_weight_format(const struct session_options *o);

/* Loads the model and records the resolved precision; messages name its file. *digest becomes the digest of its stream,
 * unless digest is NULL. The caller frees *out. */
int session_load_model(struct cli *c, const struct session_options *o, enum model_weight_format format,
                       struct model **out, struct digest *digest, struct err *e) MUST_CHECK;
/* Same, with all totals of the stream; raw_bytes is the size of its tensors as stored. */
int session_load_model_totals(struct cli *c, const struct session_options *o, enum model_weight_format format,
                              struct model **out, struct stream_totals *totals, struct err *e) MUST_CHECK;
/* Loads only the vocabulary: from a file by its index, without reading the tensors; from a pipe by reading up to it.
 * The caller frees *out, and *meta, which becomes the model's META unless meta is NULL. ERR_DATA: there is none. */
int session_load_vocab(struct cli *c, const struct session_options *o, struct vocab **out, cJSON **meta,
                       struct err *e) MUST_CHECK;

/* ---- the data: a stream of tokens, or of tokens and knowledge ---------------------------------------------------- */

/* A stream that can be read several times if it is a regular file. Initialise with {0}. */
struct session_file {
    bool is_file;
    const char *path, *name; /* from here on private */
    struct stream_reader *again;
    int fd;
};
/* Looks up the path. Call it before anything reads from standard input. */
void session_file_init(struct session_file *f, const char *path);
/* Opens another reader from the beginning, besides the cli's, which provenance needs. Valid until the next call. */
int session_file_again(struct session_file *f, enum stream_kind expect, struct stream_reader **out,
                       struct err *e) MUST_CHECK;
void session_file_release(struct session_file *f);

/* Initialise with {0}. */
struct session_data {
    struct stream_reader *stream; /* the cli's */
    struct knowledge_format format;
    struct session_file file; /* for reading it again */
};
/* Opens the data with cli_open_stream and reads its format. ERR_DATA: the vocabulary is not that of `m` (NULL: not
 * checked). knowledge_read checks that it stays the same. */
int session_open_data(struct cli *c, const char *path, const char *role, enum stream_kind expect, const struct model *m,
                      struct session_data *d, struct err *e) MUST_CHECK;
/* The same check with only a vocabulary. `what`: name of the data in the message. */
int session_check_vocab(const struct vocab *v, const struct session_data *d, const char *what,
                        struct err *e) MUST_CHECK;
void session_data_release(struct session_data *d);

/* All tokens of a stream, in memory. Initialise with {0}. */
struct session_tokens {
    struct model_input in;
    struct buf tokens, lengths;
};
/* Opens the data like session_open_data and reads whole sequences, up to the one that reaches `limit` positions; 0:
 * all. ERR_DATA: there are none, or a sequence spans several batches. Call session_tokens_release even after a
 * failure. */
int session_read_tokens(struct cli *c, const char *path, const char *role, const struct model *m, uint64_t limit,
                        struct session_tokens *t, struct err *e) MUST_CHECK;
void session_tokens_release(struct session_tokens *t);

/* ---- conversations, the documents of CORPUS_CHAT for corpus_encode ----------------------------------------------- */

struct session_chat_options {
    const char *path;  /* template file; NULL: the vocabulary's template */
    const char *field; /* member with the messages; NULL: "messages" */
    const char *date;  /* "YYYY-MM-DD" for templates; NULL: none */
    bool add_generation_prompt;
};
struct session_chat;
/* Opens the template. ERR_DATA: there is none, or it cannot be parsed. ERR_USAGE: o->date is not a date. */
int session_chat_open(struct session_chat **out, struct cli *c, const struct vocab *v,
                      const struct session_chat_options *o, struct err *e) MUST_CHECK;
void session_chat_free(struct session_chat *t); /* no-op if NULL */
/* A corpus_compose with a struct session_chat as ctx: renders one conversation; spans are the assistant's answers. */
int session_chat_compose(void *ctx, const void *line, size_t n, struct buf *text, struct buf *spans,
                         struct err *e) MUST_CHECK;

/* ---- tokenize: text to tokens and back --------------------------------------------------------------------------- */

struct session_corpus {
    struct corpus_options corpus; /* except what depends on the vocabulary */
    const char *bos, *eos;        /* "auto", "always" or "never" */
    double mask_rate;             /* for masked language models; 0: no masking */
    struct session_chat_options chat;
};
/* Writes the text of the operands as a token stream to the program's output. `model`: META of the vocabulary's model,
 * which may name classes. */
int session_tokenize(struct cli *c, const struct vocab *v, const cJSON *model, const struct session_corpus *how,
                     struct err *e) MUST_CHECK;
/* Writes the tokens of operand 0 as text. skip_special: omits control tokens. */
int session_detokenize(struct cli *c, const struct vocab *v, bool skip_special, struct err *e) MUST_CHECK;

/* ---- taps: fields with activations of a teacher ------------------------------------------------------------------ */

/* Adds the fields of a --tap option to the format: "POINT[:LAYERS][:dtype=TYPE]", with a point embed, hidden,
 * attention, q, k, v or output, and layers "3,5-7", "all" or "last" (the default for points of layers). Fields are
 * sampled if the format has tap_positions. Otherwise, with `counted`, fields whose rows are used one by one omit
 * positions that are not counted. ERR_USAGE. */
int session_tap_parse(const char *text, const struct model_config *c, bool counted, struct knowledge_format *f,
                      struct err *e) MUST_CHECK;
/* Parses "bf16", "int8" or "f32". ERR_USAGE. */
int session_field_dtype(const char *name, enum dtype *out, struct err *e) MUST_CHECK;
/* Applies --drop and --field-dtype to a format: removes fields (or the response) that match a pattern of `drop`, and
 * stores the others in that type unless dtype is NULL. ERR_USAGE: a pattern matches nothing, or there are no fields for
 * the type. */
int session_choose_fields(const struct cli_list *drop, const char *dtype, struct knowledge_format *f,
                          struct err *e) MUST_CHECK;
/* Help text of --tap. */
#define SESSION_TAP_HELP                                                                                               \
    "record more than predictions, as POINT[:LAYERS][:dtype=bf16|int8|f32]. POINT is embed (the embedding), hidden "   \
    "(output of a layer), attention (attention probabilities), q, k, v (inputs of attention) or output (input of "     \
    "the output matrix). LAYERS are numbers from 0 and ranges (3,5-7), all, or last, the default"

/* Collects rows of fields from a block of sequences, and passes them to an encoder. */
struct session_taps;
/* Creates a collector for fields of a model with this configuration. Configuration and format must outlive it. */
int session_taps_new(struct session_taps **out, const struct model_config *c, const struct knowledge_format *f,
                     uint64_t seed, struct err *e) MUST_CHECK;
/* Starts the next block, which must remain valid until session_taps_give. */
struct session_tap_block {
    size_t n_seqs;
    const uint32_t *lengths; /* [n_seqs] */
    const uint64_t *seqs;    /* [n_seqs] numbers of the sequences */
    const uint8_t *counted;  /* [positions] 1 if counted; NULL: all */
};
int session_taps_begin(struct session_taps *t, const struct session_tap_block *b, struct err *e) MUST_CHECK;
/* Returns which positions of the block are sampled; NULL: fields are not sampled. */
const uint8_t *session_taps_sampled(const struct session_taps *t);
model_tap session_taps_see; /* collects rows; ctx is the struct session_taps */
/* Passes the rows collected since the last call to the encoder. */
int session_taps_give(struct session_taps *t, struct knowledge_encoder *k, struct err *e) MUST_CHECK;
void session_taps_free(struct session_taps *t); /* no-op if NULL */

/* Prints the estimated size of a stream of this format for the sequences of `tokens`, which is read to its end: a line
 * for the response and each field, with bytes per token and in total, and their sum. all_rows: including positions that
 * are not counted. */
int session_print_sizes(const struct knowledge_format *f, struct session_data *tokens, bool all_rows, FILE *out,
                        struct err *e) MUST_CHECK;

/* Marks counted positions of complete sequences of the queue in `counted`, u8 [n_positions], for knowledge of that
 * target made from tokens of that format. *some becomes false if all are counted, or if the labels are not of that
 * target. */
int session_count_positions(const struct knowledge_format *tokens, enum stream_target target,
                            const struct knowledge_rows *rows, size_t n_seqs, size_t n_positions, struct buf *counted,
                            bool *some, struct err *e) MUST_CHECK;

/* ---- running a teacher: tokens in, logits into an encoder -------------------------------------------------------- */

struct session_teacher_options {
    /* Read the weights layer by layer, once per block of positions, instead of keeping them in memory. */
    bool layerwise;
    /* Most positions of a forward pass; a longer sequence gets a pass of its own. */
    uint64_t batch_tokens;
    /* Also produce rows at positions that are not counted (knowledge_count_positions). */
    bool all_rows;
    /* Fewest positions of a block, except the last; 0: as many as have states within an eighth of the free memory. */
    uint64_t block_tokens;
};
struct session_teacher;
/* Opens the model of `o`, which must outlive the teacher. A layerwise teacher is read up to its tensors, any other
 * completely. The caller frees *out. */
int session_teacher_open(struct session_teacher **out, struct cli *c, const struct session_options *o,
                         const struct session_teacher_options *how, struct err *e) MUST_CHECK;
/* Returns the model, for its configuration and vocabulary; owned by the teacher. */
const struct model *session_teacher_model(const struct session_teacher *t);
/* Taps the fields of this format in the following session_teacher_infer. The format must outlive the teacher. */
int session_teacher_tap(struct session_teacher *t, const struct knowledge_format *f, uint64_t seed,
                        struct err *e) MUST_CHECK;
/* Called once, before the first logits, when the teacher's digest is known. Sets the encoder to use. */
typedef int session_teacher_ready(void *ctx, struct digest teacher, struct knowledge_encoder **encoder, struct err *e);
/* Runs over all tokens of the stream with a progress bar, and passes logits, scaled by `inv_temperature` (0: no logits,
 * for an encoder without a response), and rows of tapped fields to the encoder. The output does not depend on layerwise
 * or block_tokens. */
int session_teacher_infer(struct session_teacher *t, struct session_data *tokens, double inv_temperature,
                          session_teacher_ready *ready, void *ctx, struct err *e) MUST_CHECK;
/* Sets the model in the form that it was opened in, the other one to NULL, for other uses; owned by the teacher. */
void session_teacher_parts(struct session_teacher *t, struct model **model, struct model_layerwise **layerwise);
void session_teacher_free(struct session_teacher *t); /* no-op if NULL */

struct session_record_options {
    const struct session_options *model;
    struct session_teacher_options teacher;
    const char *encode;     /* as knowledge_encoding_parse reads it, or "none": only what is tapped */
    const char *dtype;      /* of dense predictions */
    double temperature;     /* of the stored distribution */
    bool raw_logits;        /* instead of log-probabilities */
    struct cli_list taps;   /* for session_tap_parse */
    uint64_t tap_positions; /* of each sequence, at random; 0: all */
    bool dry_run;           /* print the estimated size instead */
};
/* Runs the teacher over a token stream and writes knowledge to the program's output. Adds counts to its report. */
int session_record(struct cli *c, const char *tokens, const struct session_record_options *o, struct err *e) MUST_CHECK;

/* ---- existing knowledge ------------------------------------------------------------------------------------------ */

struct session_reduce_options {
    const char *encode;        /* as knowledge_encoding_parse reads it, or "keep" */
    const double *temperature; /* of the stored distribution; NULL: the input's */
    struct cli_list drop;      /* patterns for session_choose_fields */
    const char *field_dtype;   /* for session_choose_fields; NULL: unchanged */
};
/* Writes knowledge in fewer bytes to the program's output. Adds counts to its report. */
int session_reduce(struct cli *c, const char *knowledge, const struct session_reduce_options *o,
                   struct err *e) MUST_CHECK;

struct session_table_options {
    const struct session_options *model; /* spells tokens if it names a model */
    const char *positions;               /* "FIRST:N" */
    uint64_t top;                        /* entries per position */
};
/* Prints predictions at some positions as a table. */
int session_print_table(struct cli *c, const char *knowledge, const struct session_table_options *o,
                        struct err *e) MUST_CHECK;

/* ---- generation: continuing prompts ------------------------------------------------------------------------------ */

struct session_generate_options {
    const struct session_options *model;
    struct model_sampling sampling; /* seed and ends are set by session_generate */
    uint64_t repeat;                /* continuations per prompt */
    bool text;                      /* write a line of text for each, instead of a stream */
    bool only_new;                  /* omit the prompts */
    bool past_eos;                  /* ignore the vocabulary's end tokens */
};
/* Continues the prompts of a token stream and writes them to the program's output, with a progress bar. Adds counts and
 * speeds to its report. */
int session_generate(struct cli *c, const char *prompts, const struct session_generate_options *o,
                     struct err *e) MUST_CHECK;

#endif
