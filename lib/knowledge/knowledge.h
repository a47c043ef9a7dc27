/*
 * knowledge: what a teacher says about tokens. How it is encoded in batches, how a training loss reads it, how far
 * an encoding is from the truth.
 *
 * Position convention, stated once for all of Rill: row t of a sequence holds the distribution of the token at t + 1 given
 * tokens 0..t. The label of row t is tokens[t + 1]; the last row of a sequence has a distribution but no label.
 *
 * A knowledge stream is a token stream (tokens, lengths) whose batches also hold:
 *   dense   teacher.logits  [n_positions][vocab]  f32, f16 or bf16: logits, or log-probabilities at the temperature
 *   topk    teacher.n u16 [n_positions], teacher.ids u16 or u32 [total], teacher.logprobs f16 [total]
 *   ghost   the same and teacher.rest f16 [n_positions]: log of the probability outside the entries
 *   sample  teacher.n u16 [n_positions], teacher.ids u16 or u32 [total], teacher.counts u8 or u16 [total]
 * ids are u16 when the vocabulary has at most 65536 tokens. Entries of a position are in ascending order of id (sample) or
 * descending probability (topk, ghost).
 */
#ifndef RILL_KNOWLEDGE_H
#define RILL_KNOWLEDGE_H

#include "lib/base/base.h"
#include "lib/kernel/kernel.h"
#include "lib/stream/stream.h"

enum knowledge_encoding { KNOW_NONE = 0 /* labels only: a plain token stream */, KNOW_DENSE, KNOW_TOPK, KNOW_GHOST, KNOW_SAMPLE };

struct knowledge_format {
    enum knowledge_encoding encoding;
    uint32_t n;            /* k, or number of draws */
    double temperature;    /* that the distribution was taken at (dense logits: 1, not yet applied) */
    enum dtype dtype;      /* dense only */
    bool log_probs;        /* dense only: normalised log-probabilities rather than logits */
    uint32_t vocab_size;
    char vocab[DIGEST_TEXT_SIZE];   /* "" when the stream names none */
    char teacher[DIGEST_TEXT_SIZE]; /* digest of the teacher's stream */
};

/* "topk:50", "ghost:20", "sample:50", "dense" */
int knowledge_encoding_parse(const char *text, struct knowledge_format *f, struct err *e) MUST_CHECK;
/* Puts the members into META's object / reads and checks them. A tokens stream gives KNOW_NONE. */
int knowledge_meta_put(cJSON *meta, const struct knowledge_format *f, struct err *e) MUST_CHECK;
int knowledge_meta_get(const cJSON *meta, struct knowledge_format *f, struct err *e) MUST_CHECK;

/* ---- encoding ------------------------------------------------------------------------------------------------------------ */

/* Collects the rows of one batch, in order, and writes them. Memory is reused from batch to batch. */
struct knowledge_encoder;
int knowledge_encoder_new(struct knowledge_encoder **out, const struct knowledge_format *f, uint64_t seed, struct err *e) MUST_CHECK;
/* `head`, tokens and lengths of the batch to come. Draws depend on seed and the position's number in the whole stream only. */
int knowledge_encoder_begin(struct knowledge_encoder *k, const struct stream_batch *head, const uint32_t *tokens,
                            const uint32_t *lengths, struct err *e) MUST_CHECK;
/* Rows of logits (or log-probabilities when `log_probs`) of the next positions; may overwrite them. ERR_DATA on NaN. */
int knowledge_encoder_rows(struct knowledge_encoder *k, size_t rows, float *logits, struct err *e) MUST_CHECK;
int knowledge_encoder_write(struct knowledge_encoder *k, struct stream_writer *w, struct err *e) MUST_CHECK;
/* So far: positions, and bytes of teacher.* tensors as stored before compression. */
void knowledge_encoder_counts(const struct knowledge_encoder *k, uint64_t *positions, uint64_t *bytes);
void knowledge_encoder_free(struct knowledge_encoder *k);

/* ---- decoding: a batch as the loss wants it ------------------------------------------------------------------------------------- */

struct knowledge_rows {
    size_t n_positions, n_seqs;
    const uint32_t *tokens, *lengths;
    uint32_t *labels;          /* [n_positions], UINT32_MAX on the last position of a sequence that ends in this batch */
    uint64_t *offset;          /* [n_positions + 1], sparse encodings */
    uint32_t *ids;
    float *probs;
    float *rest;               /* ghost: probability outside the entries; NULL otherwise */
    const struct tensor *dense; /* KNOW_DENSE: convert block by block with knowledge_dense_rows */
    struct buf memory[5];      /* private */
};
/* Checks everything: shapes, ids below the vocabulary, counts that sum to n, probabilities at most 1. Begin with {0}; reused. */
int knowledge_decode(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b, struct err *e) MUST_CHECK;
void knowledge_rows_release(struct knowledge_rows *k);
/* Log-probabilities at `temperature` of rows [first, first + rows) of a dense batch into out [rows][vocab]. */
int knowledge_dense_rows(const struct knowledge_rows *k, const struct knowledge_format *f, double temperature, size_t first, size_t rows,
                         float *out, struct err *e) MUST_CHECK;
/* Can this format serve a loss at `temperature`? Sparse encodings only at the one they were made at: ERR_DATA says so. */
int knowledge_check_temperature(const struct knowledge_format *f, double temperature, struct err *e) MUST_CHECK;

#endif
