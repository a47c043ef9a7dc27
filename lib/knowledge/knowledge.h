/*
 * knowledge: a teacher's predictions for tokens: how batches encode them, and how a training loss reads them.
 *
 * Position convention, stated once for all of Rill: row t of a sequence holds the distribution of the token at t + 1
 * given tokens 0..t. The label of row t is tokens[t + 1]; the last row of a sequence has a distribution but no label.
 *
 * A token stream may have a mask, tensor `mask` u8 [n_positions] of its batches: 1 where the token is to be learned,
 * such as the assistant's turns of a conversation, 0 where it is context only. Row t has no label when the mask is 0 at
 * t + 1, so neither losses nor metrics on labels count it. A batch without the tensor is all 1.
 *
 * That is the target `next`. With the target `masked` the label of row t is in the tensor `labels`. With `sequence`
 * that tensor holds one class per sequence, and each sequence has one row; see stream.h.
 *
 * Positions that no loss uses need no prediction: a batch with the tensor teacher.counted u8 [n_positions] has rows of
 * the response, and of fields marked `counted`, only where it is 1. A position with a label always has them. Where it
 * is 0 the row of the response is empty after decoding.
 *
 * A knowledge stream is a token stream (tokens, lengths) whose batches also hold fields: a response, which is the
 * teacher's prediction, and rows of the teacher's activations. formats/rill.md defines the layout.
 *
 * topk and ghost store the same bytes: the k largest log-probabilities of the whole distribution, not renormalised.
 * They differ in how the loss treats the rest: topk leaves it out (the student learns a truncated teacher), ghost takes
 * 1 - (sum of the entries) as one further pseudo-token. The rest is not stored, so entries and rest always sum to 1. A
 * ghost row without entries says that nothing is known: its kl and gradient are 0.
 * Log-probabilities are rounded to the nearest f16 (half a unit is 0.02% of the probability at p = 0.5, 0.4% at 10^-5);
 * where that would raise the sum of a row above 1, the whole row is rounded down instead. topp stores the fewest
 * entries whose probabilities sum to at least p, and is otherwise like topk.
 *
 * sample holds n draws with replacement from the teacher (Anshumann et al. 2025, "Sparse logit sampling", arXiv
 * 2503.16870): probability count/n, an unbiased estimate of the distribution, hence of any loss that is linear in it.
 *
 * A batch may end inside a sequence (stream.h, BATCH_CONTINUES). Nothing here depends on where batches are cut: the
 * encoder cuts by its own rule, and the decoder reassembles sequences.
 */
#ifndef RILL_KNOWLEDGE_H
#define RILL_KNOWLEDGE_H

#include <stdio.h>

#include "lib/base/base.h"
#include "lib/kernel/kernel.h"
#include "lib/stream/stream.h"

/* How the response is encoded. KNOW_NONE: no response; without fields, too, it is a stream of plain tokens. */
enum knowledge_encoding { KNOW_NONE, KNOW_DENSE, KNOW_TOPK, KNOW_GHOST, KNOW_SAMPLE, KNOW_TOPP };

#define KNOWLEDGE_MAX_N     65535
#define KNOWLEDGE_MAX_VOCAB (1u << 24)

/* ---- fields: what a stream holds of a teacher besides its response ----------------------------------------------- */

#define KNOWLEDGE_MAX_FIELDS 128
#define KNOWLEDGE_MAX_COLS   (1u << 20)
#define KNOWLEDGE_FIELD_NAME 32

enum knowledge_per {
    PER_POSITION, /* a row of `cols` values for each position */
    PER_SEQUENCE, /* a row of `cols` values for each sequence */
    PER_PAIR,     /* attention weights, for each position and head: see knowledge_feature_pairs */
};
const char *knowledge_per_name(enum knowledge_per per); /* "position" */

struct knowledge_codec;
struct knowledge_field {
    char name[KNOWLEDGE_FIELD_NAME]; /* "hidden.11": unique in the stream; the tensor in a batch is teacher.hidden.11 */
    char point[16];                  /* where in the teacher: "embed", "hidden", "attention", "q", "k", "v", "pooled" */
    uint32_t layer;                  /* KNOWLEDGE_NO_LAYER for points outside layers */
    enum knowledge_per per;
    const struct knowledge_codec *codec;
    enum dtype dtype; /* f32, bf16, or i8 with a scale for each row */
    uint32_t cols;    /* values in a row; PER_PAIR: equal to heads */
    uint32_t heads;   /* heads in a row: attention, q, k, v; else 0 */
    bool sampled;     /* has rows only at sampled positions (tap_positions) */
    bool counted;     /* has rows only at counted positions, if batches have teacher.counted; never with `sampled` */
    bool causal;      /* PER_PAIR: a position attends to itself and earlier ones only; no other weights are stored */
};

struct knowledge_format {
    enum knowledge_encoding encoding;
    uint32_t n;         /* topk, ghost: k; sample: draws; topp: upper limit on entries; 0 for dense */
    double p;           /* topp: least sum of the probabilities of the entries */
    double temperature; /* of the stored distribution (dense logits: 1, not yet applied) */
    enum dtype dtype;   /* dense only */
    bool log_probs;     /* dense only: normalised log-probabilities rather than logits */
    bool partial;       /* topk, topp: entries are lower bounds, see knowledge_mixer_new */
    enum stream_target target;
    uint32_t pack;                  /* consecutive sequences of at most this many positions form a pack; 0: no packs */
    uint32_t vocab_size;            /* tokens; 0: unknown (plain tokens only) */
    uint32_t classes;               /* columns of the logits of a classifier; 0: unknown (labels only) */
    uint32_t n_used;                /* dense: columns kept for the softmax; 0: all (see knowledge_fit) */
    char vocab[DIGEST_TEXT_SIZE];   /* digest of the vocabulary; "" if the stream names none */
    char teacher[DIGEST_TEXT_SIZE]; /* content digest of the teacher's stream; "" if unknown */
    uint32_t tap_positions;         /* positions per sequence at which sampled fields have rows, at most; 0: none */
    uint32_t n_fields;
    struct knowledge_field fields[KNOWLEDGE_MAX_FIELDS];
};
/* Returns the index of the field of that point and layer, or -1. */
long knowledge_field_find(const struct knowledge_format *f, const char *point, uint32_t layer);
/* Adds a copy of `field`, in which all but name and codec is set. Its name becomes "point.layer", or "point" if layer
 * is KNOWLEDGE_NO_LAYER. ERR_USAGE: it exists already, there are too many, or such values cannot be stored. */
#define KNOWLEDGE_NO_LAYER UINT32_MAX
int knowledge_field_add(struct knowledge_format *f, const struct knowledge_field *field, struct err *e) MUST_CHECK;
/* What the size of a sequence depends on. */
struct knowledge_extent {
    uint64_t length, counted, sampled; /* positions: all, counted, sampled */
    uint64_t reach;                    /* sum over counted positions of their number from 1 (causal attention) */
};
/* Return the bytes of one sequence in a field, and in the response. For sample nearly all rows take less; for topp it
 * is a typical size. */
double knowledge_field_bytes(const struct knowledge_field *field, const struct knowledge_extent *x);
double knowledge_response_bytes(const struct knowledge_format *f, uint64_t counted);
/* Returns the bytes per position of all fields, in sequences of typical length (on which attention depends). */
#define KNOWLEDGE_TYPICAL_LENGTH 512
double knowledge_typical_bytes(const struct knowledge_format *f);
/*
 * Marks counted positions: those with a label, and for TARGET_NEXT all positions of a sequence without a mask,
 * including its last one.
 * mask [n_positions] for TARGET_NEXT; labels [n_positions] for TARGET_MASKED and TARGET_TOKEN, the other targets with a
 * row per position. counted [n_positions] becomes 1 or 0; returns how many are 1.
 */
size_t knowledge_count_positions(enum stream_target target, size_t n_seqs, const uint32_t *lengths, const uint8_t *mask,
                                 const uint32_t *labels, uint8_t *counted);
/* Chooses min(n, counted positions) of the counted positions of a sequence (counted NULL: all are); chosen [length]
 * becomes 1 or 0. Depends only on seed, seq, length and `counted`. Selection sampling: Knuth, TAOCP vol. 2, 3.4.2,
 * algorithm S. */
void knowledge_sample_positions(uint64_t seed, uint64_t seq, uint32_t n, uint32_t length, const uint8_t *counted,
                                uint8_t *chosen);

/* Rows of a field in the layout of a batch, collected by the caller who runs the teacher. Initialise with {0}. */
struct knowledge_part {
    struct buf values, scales;
};
/* Appends n vectors x [n][length]: rows of a field, or for PER_PAIR the heads of one position, whose length is the
 * number of positions that it attends to. ERR_DATA: a value is not finite. */
int knowledge_part_add(struct knowledge_part *p, const struct knowledge_field *field, size_t n, size_t length,
                       const float *x, struct err *e) MUST_CHECK;
void knowledge_part_release(struct knowledge_part *p);

/* Sets encoding and its parameters from "topk:50", "ghost:20", "topp:0.9", "sample:50" or "dense". ERR_USAGE lists
 * them. */
int knowledge_encoding_parse(const char *text, struct knowledge_format *f, struct err *e) MUST_CHECK;
/* Writes "sample:50" into out; returns out. */
char *knowledge_encoding_text(const struct knowledge_format *f, char *out, size_t size);
/* Makes the META object of a tokens or knowledge stream describe f: replaces the members that this module owns ("kind",
 * "vocab", "target", "fields", ...) and leaves the others alone. */
int knowledge_meta_put(cJSON *meta, const struct knowledge_format *f, struct err *e) MUST_CHECK;
/* Reads and checks those members. META of a tokens stream gives KNOW_NONE. ERR_DATA: malformed, or any other kind. */
int knowledge_meta_get(const cJSON *meta, struct knowledge_format *f, struct err *e) MUST_CHECK;
/* Returns the option of rill tokenize that makes labels of this target, for messages. */
const char *knowledge_labels_option(enum stream_target target);
/* Sets n_used to n_tokens, for dense rows over the tokens of a named vocabulary: further columns are padding of the
 * embedding, from a teacher whose number of tokens was unknown. No-op for other formats. */
void knowledge_cut_padding(struct knowledge_format *f, uint32_t n_tokens);
/* Returns the number of columns of the rows that a loss gets. */
uint32_t knowledge_columns(const struct knowledge_format *f);
/*
 * Fits a format read from META to a model of the same vocabulary that predicts n_tokens (model_n_tokens). Padding of
 * dense rows is cut (knowledge_cut_padding), which is exact; from a sparse row the padding's share of the softmax
 * cannot be removed. ERR_DATA for that, and for any other difference. The vocab_size of plain tokens is replaced.
 */
int knowledge_fit(struct knowledge_format *f, uint32_t n_tokens, struct err *e) MUST_CHECK;
/* Same, for a model of any target with this many logits per row (model_predicts, model_columns). */
int knowledge_fit_target(struct knowledge_format *f, enum stream_target target, uint32_t columns,
                         struct err *e) MUST_CHECK;
/* Checks that vocabulary, response and fields of both are the same; teachers may differ. ERR_DATA names the
 * difference. */
int knowledge_check_same(const struct knowledge_format *first, const struct knowledge_format *other,
                         struct err *e) MUST_CHECK;
/* batch_read from a stream of format f. ERR_DATA: the batch's segment (`cat` makes several) has another format. */
int knowledge_read(struct stream_reader *r, const struct knowledge_format *f, struct batch *b, bool *more,
                   struct err *e) MUST_CHECK;

/* ---- encoding ---------------------------------------------------------------------------------------------------- */

/*
 * Rows of logits in, batches out:
 *
 *     knowledge_encoder_open(&k, writer, meta, &format, seed)  writes META
 *     for each batch of input:
 *         knowledge_encoder_begin(k, input)                    announces positions
 *         knowledge_encoder_field(k, i, part) ...              passes their rows of each field
 *         knowledge_encoder_rows(k, n, logits, ...) ...        passes rows of the response, in any number of pieces
 *     knowledge_encoder_end(k)
 *
 * Without a response, knowledge_encoder_rows is called with x NULL and counts all positions. Positions after the last
 * counted one are written when the next ones are announced, or at the end; pass rows of fields before that.
 *
 * Sparse batches are closed at the end of the sequence in which they reach 4096 positions or 16 MiB (at the latest
 * after 16 times that), dense ones at the number of positions, a power of two, that fits 16 MiB: memory is constant.
 * The draws of a position depend only on the seed and on its number in the whole stream.
 */
struct knowledge_encoder;
/* Creates an encoder and writes META: `meta` of the input stream (NULL: none) as changed by knowledge_meta_put. The
 * caller frees *out; the writer must outlive it. */
int knowledge_encoder_open(struct knowledge_encoder **out, struct stream_writer *w, const cJSON *meta,
                           const struct knowledge_format *f, uint64_t seed, struct err *e) MUST_CHECK;
/* Same, if the caller has written META already. */
int knowledge_encoder_new(struct knowledge_encoder **out, struct stream_writer *w, const struct knowledge_format *f,
                          uint64_t seed, struct err *e) MUST_CHECK;
/* Positions to encode. */
struct knowledge_input {
    struct stream_batch head;
    const uint32_t *tokens, *lengths; /* [n_positions], [n_seqs] */
    const uint8_t *mask;              /* [n_positions]; NULL: all 1 */
    const uint32_t *labels;           /* TARGET_MASKED, TARGET_TOKEN: [n_positions]; TARGET_SEQUENCE: [n_seqs], without
                                         an open last one; else NULL */
    const uint32_t *types;            /* token types, [n_positions]; NULL: all 0 */
    const uint8_t *counted;           /* [n_positions]; NULL: all 1. TARGET_SEQUENCE: applies to fields only */
    const uint8_t *sampled;           /* [n_positions], if fields are sampled */
};
/* Announces positions; copies them. ERR_DATA: they do not continue the ones before. */
int knowledge_encoder_begin(struct knowledge_encoder *k, const struct knowledge_input *in, struct err *e) MUST_CHECK;
/* Appends rows of field i for announced positions, in order and in pieces of any size, but before the response's rows
 * of the same positions. PER_SEQUENCE, PER_PAIR: rows of the sequences that end in the announcement. */
int knowledge_encoder_field(struct knowledge_encoder *k, size_t i, const struct knowledge_part *part,
                            struct err *e) MUST_CHECK;
/* Encodes the next rows x [rows][columns] of the response, of counted positions or (TARGET_SEQUENCE) of sequences that
 * end: the teacher's distribution is softmax(x * inv_temperature). x is NULL if there is no response. ERR_DATA names
 * the position of a value that is not finite (or exceeds f16). */
int knowledge_encoder_rows(struct knowledge_encoder *k, size_t rows, const float *x, double inv_temperature,
                           struct err *e) MUST_CHECK;
/* Same for rows that are sparse already; here rows are of all positions, empty where they are not counted. topk, ghost:
 * probabilities in descending order, of which the first n are taken. sample: counts that sum to n, ids ascending.
 * offset is [rows + 1]. */
int knowledge_encoder_entries(struct knowledge_encoder *k, size_t rows, const uint64_t *offset, const uint32_t *ids,
                              const float *values, struct err *e) MUST_CHECK;
/* Encodes a whole batch of a stream of another format, if knowledge_check_encode allows it. A response of the same
 * format is passed on unchanged. The encoder's fields must be a subset of the batch's, in any type. */
int knowledge_encoder_batch(struct knowledge_encoder *k, const struct knowledge_format *from, const struct batch *b,
                            struct err *e) MUST_CHECK;
/* Writes the last batch. ERR_DATA: the last sequence is incomplete. */
int knowledge_encoder_end(struct knowledge_encoder *k, struct err *e) MUST_CHECK;
/* Totals so far: positions, entries, and bytes of teacher.* tensors before compression. */
struct knowledge_counts {
    uint64_t positions, entries, bytes;
};
struct knowledge_counts knowledge_encoder_counts(const struct knowledge_encoder *k);
void knowledge_encoder_free(struct knowledge_encoder *k); /* no-op if NULL */

/* ---- decoding: a queue of sequences, in the form that a loss reads ----------------------------------------------- */

/* How far a sequence of batches has been read. */
struct knowledge_cursor {
    bool open;         /* inside a sequence: BATCH_CONTINUES */
    uint64_t seq, pos; /* number of the last sequence, and its positions so far */
};

/* Initialise with {0}. Pointers point into `memory` and are valid until the next call that changes the queue. */
#define KNOWLEDGE_MEMORIES 16
struct knowledge_feature;
/*
 * PER_PAIR rows come with the batch in which their sequence ends, because their lengths may depend on the length of the
 * sequence. This collects the positions of an open sequence that will have a row. Private.
 */
struct knowledge_pairs {
    struct buf open; /* u32: positions of the open sequence that will have a row */
    uint64_t at;     /* its positions so far */
};
struct knowledge_rows {
    size_t n_positions, n_seqs;
    bool open;          /* the last sequence continues in a later batch */
    uint64_t first_pos; /* of the first row in its sequence: 0 unless its beginning has been cleared */
    uint64_t *seqs;     /* [n_seqs] their numbers in the stream */
    uint32_t *lengths;  /* [n_seqs] */
    uint32_t *tokens;   /* [n_positions] */
    uint32_t *labels;   /* [n_rows], UINT32_MAX for none: at the last position of a sequence and before a masked token
                         (next), where the token was not replaced (masked), or where it has no tag (token) */
    uint8_t *mask;      /* [n_positions] 1: the token may be a label */
    uint64_t *offset;   /* [n_rows + 1] first entry of each row; all 0 for KNOW_NONE and KNOW_DENSE */
    uint32_t *ids;
    float *probs;
    float *rest;            /* KNOW_GHOST: probability outside the entries; else NULL */
    const void *dense;      /* KNOW_DENSE: counted rows [*][stored columns] in the format's type */
    uint64_t *counted;      /* [n_positions + 1] counted positions before each; NULL: each position has a row */
    uint32_t *types;        /* [n_positions] token types; NULL: all 0 */
    uint64_t *sampled;      /* [n_positions + 1] sampled positions before each; NULL: no field is sampled */
    uint32_t *pair_lengths; /* for each PER_PAIR row, the positions that it has a weight for; NULL: no such field */
    size_t n_rows;          /* of the response: n_positions, or (TARGET_SEQUENCE) complete sequences */
    size_t n_fields;
    struct knowledge_feature *fields; /* [n_fields], in the format's order */
    const void *viewed;               /* this and what follows is private: dense rows borrowed from a batch */
    struct buf memory[KNOWLEDGE_MEMORIES];
    struct buf seen;
    uint32_t stamp;
    struct knowledge_cursor cursor;
    struct knowledge_pairs pairs;
};
/* A field's rows in the queue, as stored. */
struct knowledge_feature {
    const struct knowledge_field *field; /* of the format of the first knowledge_decode, which must outlive the queue */
    size_t n_rows;                       /* PER_PAIR: a row for each (sampled) position, with all of its heads */
    struct knowledge_part stored;
};
/*
 * Appends a batch, after checking everything: shapes, tokens and ids below the vocabulary size, distinct entries in
 * order, counts that sum to n, probabilities that sum to at most 1 (within 0.1%, for writers that round differently),
 * finite values, and that the batch continues the one before. ERR_DATA names what is wrong and where. After a failure
 * only knowledge_rows_release is allowed.
 */
int knowledge_decode(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b,
                     struct err *e) MUST_CHECK;
size_t knowledge_whole_seqs(const struct knowledge_rows *k); /* n_seqs without an open last one */
/* Appends complete sequences [seq, seq + n) of `from`. Both have the same format, and k has no open sequence. */
int knowledge_append_seqs(struct knowledge_rows *k, const struct knowledge_rows *from, const struct knowledge_format *f,
                          size_t seq, size_t n, struct err *e) MUST_CHECK;
/* Removes the first n sequences, all of them complete. */
void knowledge_drop(struct knowledge_rows *k, const struct knowledge_format *f, size_t n_seqs);
/* Checks that every sequence has at most `context` positions. ERR_DATA names the sequence and `whose` limit it is. */
int knowledge_check_context(const struct knowledge_rows *k, uint32_t context, const char *whose,
                            struct err *e) MUST_CHECK;
/* Empties the queue, even of the beginning of an open sequence: for callers that handle one batch at a time. */
void knowledge_clear(struct knowledge_rows *k);
/*
 * Returns the number of sequences of the next forward pass, starting with sequence `first` of the queue: as many
 * complete ones as fit into `fit` positions, but at least one, and none after the one that reaches `enough`. Returns 0
 * while that depends on sequences still to come (`last`: none will). Passes do not depend on where batches are cut.
 */
size_t knowledge_next_pass(const struct knowledge_rows *k, size_t first, uint64_t fit, uint64_t enough, bool last,
                           size_t *n_positions);
/* Adds a complete sequence to a digest: tokens, labels, and the teacher's data as stored. `position`: index of its
 * first position in the queue. */
void knowledge_digest_seq(struct digest_state *d, const struct knowledge_rows *k, const struct knowledge_format *f,
                          size_t seq, size_t position);
/* Does a new pack begin with the next sequence, which has n positions? most: limit on the positions of a pack; 0: each
 * sequence is a pack. *pack: positions of the current pack so far (0: none); updated. */
static inline bool knowledge_begins_pack(uint64_t most, uint64_t *pack, uint64_t n) {
    bool begins = !*pack || *pack + n > most;
    *pack = begins ? n : *pack + n;
    return begins;
}
/* Call after the last batch. ERR_DATA: the last sequence is incomplete. */
int knowledge_decode_end(const struct knowledge_rows *k, struct err *e) MUST_CHECK;
void knowledge_rows_release(struct knowledge_rows *k);

/*
 * knowledge_feature_span returns the number of rows of a field in complete sequences [first, first + n), and the index
 * of the first. knowledge_feature_before returns NULL if a field has a row at each position; otherwise it has rows at
 * the positions p with before[p + 1] > before[p], in order.
 */
const uint64_t *knowledge_feature_before(const struct knowledge_rows *k, size_t field);
size_t knowledge_feature_span(const struct knowledge_rows *k, size_t field, size_t first_seq, size_t n_seqs,
                              size_t *first_row);
/* Loads rows [first, first + rows) of a PER_POSITION or PER_SEQUENCE field as f32 [rows][cols]. */
void knowledge_feature_rows(const struct knowledge_rows *k, size_t field, size_t first, size_t rows, float *out);
/* Loads rows [first, first + rows) of a PER_PAIR field, all of one sequence of `length` positions, as
 * [rows][heads][length] with zeros where there is no attention. */
void knowledge_feature_pairs(const struct knowledge_rows *k, size_t field, size_t first, size_t rows, size_t length,
                             float *out);
/* Returns the index of the sequence's first row of the response. position: index of its first position in the queue. */
static inline size_t knowledge_first_row(const struct knowledge_format *f, size_t seq, size_t position) {
    return f->target == TARGET_SEQUENCE ? seq : position;
}

/* Does this row have a prediction? False if its position is not counted. */
static inline bool knowledge_answered(const struct knowledge_rows *k, const struct knowledge_format *f, size_t row) {
    return !k->counted || f->target == TARGET_SEQUENCE || k->counted[row + 1] > k->counted[row];
}

/* ---- where training rows come from ------------------------------------------------------------------------------- */

/*
 * An iterator that supplies a trainer with rows. `next` appends complete sequences or parts of them to the queue, as
 * knowledge_decode does; *more becomes false at the end, when nothing was appended.
 */
struct knowledge_source {
    int (*next)(void *ctx, struct knowledge_rows *k, bool *more, struct err *e);
    void *ctx;
    const struct knowledge_format *format; /* of the rows */
};
/* A stream of batches as a source; it and the format (fitted to the student) must outlive the source. Start with
 * {0}. */
struct knowledge_stream {
    struct stream_reader *r;
    const struct knowledge_format *meta, *format; /* as in META, and as rows are decoded */
    struct batch batch;
};
struct knowledge_source knowledge_stream_source(struct knowledge_stream *s);
void knowledge_stream_release(struct knowledge_stream *s);

/* ---- random access to the sequences of a file (units.c) --------------------------------------------------------- */

/*
 * The unit of shuffling and mixing: a sequence, or a pack in a stream of packs. An index takes 16 bytes per unit and is
 * made in one pass over the file that reads only headers and lengths.
 */
struct knowledge_unit {
    uint64_t offset; /* file offset of the batch in which it begins */
    uint32_t skip;   /* sequences between the front of that batch and the unit */
    uint32_t positions;
};
struct knowledge_units {
    struct knowledge_format format; /* as in META */
    struct knowledge_unit *units;   /* [n] */
    size_t n;
    uint64_t positions;    /* of all units */
    struct digest content; /* the file's content digest */
    /* Private: where units are read. */
    struct stream_reader *r;
    struct batch batch;
    struct knowledge_rows rows; /* decoded batches from offset `at` on */
    uint64_t at;                /* 0: none */
    struct buf memory;
};
/* Indexes a file by reading `scan`, a reader at its beginning, to the end. Initialise u with {0}. ERR_DATA: the file is
 * truncated or damaged, its segments disagree, it begins inside a sequence, or has none. */
int knowledge_units_find(struct knowledge_units *u, struct stream_reader *scan, struct err *e) MUST_CHECK;
/* Sets the reader to read units from: another reader of the same file, owned by the caller, that must outlive u. */
void knowledge_units_open(struct knowledge_units *u, struct stream_reader *r);
/* Appends the sequences of unit i to the queue, as rows of format f, which is u->format fitted to a model. Keeps the
 * current batch in memory, so reading units in order reads each batch once. ERR_DATA: the file is damaged or has
 * changed. */
int knowledge_units_read(struct knowledge_units *u, const struct knowledge_format *f, size_t i,
                         struct knowledge_rows *k, struct err *e) MUST_CHECK;
void knowledge_units_release(struct knowledge_units *u);

/* Returns the factor that turns stored values of a dense format into logits at `temperature`. */
double knowledge_inv_temperature(const struct knowledge_format *f, double temperature);
/* Loads rows [first, first + rows) as stored, as f32 [rows][knowledge_columns]; zeros where a position is not
 * counted. */
void knowledge_dense_rows(const struct knowledge_rows *k, const struct knowledge_format *f, size_t first, size_t rows,
                          float *out);
/* Sets `out` to the targets of rows [first, first + rows) for a loss at `temperature`; it points into k and scratch.
 * scratch: [rows][knowledge_columns] for a dense format, else NULL. */
void knowledge_target(const struct knowledge_rows *k, const struct knowledge_format *f, double temperature,
                      size_t first, size_t rows, float *scratch, struct kernel_target *out);
/* Returns the sum of t ln t over the entries of row r of a sparse target; *mass becomes the sum of t. They turn the
 * kernel's sum of t ln(t / p) into -sum t ln p, or into a divergence of the normalised entries. */
double knowledge_t_ln_t(const struct kernel_target *t, size_t r, double *mass);
/* Checks that a loss at `temperature` can use this format; sparse encodings serve only their own. ERR_DATA,
 * ERR_USAGE. */
int knowledge_check_temperature(const struct knowledge_format *f, double temperature, struct err *e) MUST_CHECK;
/* Checks that `to` can be made from `from`: anything from dense, fewer entries from top entries, both at a temperature
 * that `from` can serve. ERR_DATA or ERR_USAGE says why not. */
int knowledge_check_encode(const struct knowledge_format *from, const struct knowledge_format *to,
                           struct err *e) MUST_CHECK;

/* Is a tensor of this name part of the response? */
bool knowledge_is_response(const char *tensor);

/* ---- mixing: several teachers on the same tokens ----------------------------------------------------------------- */

enum knowledge_mean { MEAN_ARITHMETIC, MEAN_GEOMETRIC };
struct knowledge_mixture {
    enum knowledge_mean mean;
    double temperature; /* at which distributions are mixed; 0: their own, which must be equal */
};
struct knowledge_mix_input {
    struct stream_reader *r;
    const struct knowledge_format *format;
    double weight; /* above 0; they are normalised by their sum */
};
/*
 * The mean of the teachers' distributions ("an arithmetic or geometric mean of their individual predictive
 * distributions": Hinton, Vinyals, Dean 2015, section 1), by encoding:
 *   dense       sum_j w_j t_j, or exp(sum_j w_j ln t_j) normalised, which is a mean of the logits. Log-probabilities in
 *               the first stream's type
 *   ghost       keeps the tokens that all teachers list, so that entries and rest are exact: at most as many entries as
 *               the shortest input has. A row without such a token is empty (`without_common`)
 *   topk, topp  keep the tokens that any teacher lists, with 0 where a teacher does not list one: lower bounds, marked
 *               `partial`. The gradient of kl, which is linear in the entries, is the weighted mean of the teachers'
 *   sample      adds up counts: sum_j c_j of N = sum_j n_j draws, whose mean is the mixture with weights n_j / N; their
 *               variance is that of N draws from the mixture, less the part due to differences between teachers
 * knowledge_mix_format checks that the inputs can be mixed, and sets the output's format. ERR_DATA, ERR_USAGE: they
 * cannot; *bad is the index of the input at fault.
 */
int knowledge_mix_format(const struct knowledge_mixture *how, const struct knowledge_mix_input *in, size_t n,
                         struct knowledge_format *out, size_t *bad, struct err *e) MUST_CHECK;
struct knowledge_mixer;
/* Creates a mixer; `format` was made by knowledge_mix_format from the same `in`. Readers and formats must outlive
 * it. */
int knowledge_mixer_new(struct knowledge_mixer **out, const struct knowledge_mixture *how,
                        const struct knowledge_mix_input *in, size_t n, const struct knowledge_format *format,
                        struct err *e) MUST_CHECK;
/* Reads and encodes the next piece of the streams; *more becomes false at their end. ERR_DATA: tokens, labels or
 * sequences differ. Memory: a batch of each stream, and 64 dense rows. */
int knowledge_mixer_step(struct knowledge_mixer *m, struct knowledge_encoder *k, bool *more, struct err *e) MUST_CHECK;
struct knowledge_mix_counts {
    uint64_t positions, without_common;
};
struct knowledge_mix_counts knowledge_mixer_counts(const struct knowledge_mixer *m);
void knowledge_mixer_free(struct knowledge_mixer *m); /* no-op if NULL */

/* ---- printing ---------------------------------------------------------------------------------------------------- */

/* Appends the text of a token, without white space, to `out`. */
typedef int knowledge_spell(void *ctx, uint32_t id, struct buf *out, struct err *e);
struct knowledge_tsv {
    uint32_t top;           /* entries to print */
    knowledge_spell *spell; /* NULL: ids only */
    void *ctx;
};
/*
 * Appends rows [first, first + rows) to `out` as tab-separated text, one line each: sequence, position, token, label,
 * the label's probability and rank ("-" if there is none, or if the label is not among the top entries), the
 * probability outside the entries shown, and the `top` most probable entries as "id:probability", or
 * "id:piece:probability" if there is a `spell`, which also adds a column of pieces after token and label. All at the
 * temperature of the knowledge. For draws these columns have relative frequencies, 0 for a label that was not drawn,
 * and are named frequency, frequency_rank, frequency_rest, drawn. For TARGET_SEQUENCE a row is a sequence, shown with
 * its first token. Each field adds a column: the root mean square of its row, or for PER_PAIR the position with the
 * largest weight in the mean over heads, as "position:weight".
 */
int knowledge_tsv_rows(const struct knowledge_tsv *t, struct buf *out, const struct knowledge_rows *k,
                       const struct knowledge_format *f, size_t first, size_t rows, struct err *e) MUST_CHECK;
/* Prints a header line and n positions of a stream, starting with number `first`. Reads no further than needed. The
 * caller checks `out` for write errors. */
int knowledge_tsv_print(const struct knowledge_tsv *t, struct stream_reader *r, const struct knowledge_format *f,
                        uint64_t first, uint64_t n, FILE *out, struct err *e) MUST_CHECK;

#endif
