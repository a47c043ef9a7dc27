/*
 * knowledge: what a teacher says about tokens. How it is encoded in batches, and how a training loss reads it.
 *
 * Position convention, stated once for all of Rill: row t of a sequence holds the distribution of the token at t + 1 given
 * tokens 0..t. The label of row t is tokens[t + 1]; the last row of a sequence has a distribution but no label.
 *
 * A token stream may have a mask, tensor `mask` u8 [n_positions] of its batches: 1 where the token is to be learnt, as what
 * the assistant says in a conversation, 0 where it is only read. Row t has no label when the mask is 0 at t + 1, so that
 * neither a loss nor what is measured on labels counts it. A batch without the tensor is all 1.
 *
 * That is the target `next`. With `masked` the label of row t is in the tensor `labels`, and so is with `sequence` the class of a
 * sequence, which then has one row; see stream.h.
 *
 * Positions that no loss counts need no answer: a batch with the tensor teacher.counted u8 [n_positions] has rows of the response, and
 * of fields that say so, only where it is 1. A position with a label always has them. Where it is 0 a row of the response is empty.
 *
 * A knowledge stream is a token stream (tokens, lengths) whose batches also hold fields: a response, which is what the teacher
 * answers, and rows of what flows through it. formats/rill.md lays them out.
 *
 * topk and ghost are the same bytes: the k largest log-probabilities of the whole distribution, not renormalised. They
 * differ in what the loss makes of the rest: topk leaves it out (the student learns a truncated teacher), ghost takes
 * 1 - (sum of the entries) as one further pseudo-token. The rest is not stored, so entries and rest always sum to 1. A ghost may
 * have rows without entries, of which nothing is known: their kl and its gradient are 0.
 * Log-probabilities are rounded to the nearest f16 (half a unit is 0.02% of the probability at p = 0.5, 0.4% at 10^-5);
 * where that would lift the sum of a row above 1, all of the row is rounded down instead. topp stores as few of them as have at
 * least the share p, and is otherwise like topk.
 *
 * sample holds n draws with replacement from the teacher (Anshumann et al. 2025, "Sparse logit sampling", arXiv 2503.16870):
 * probability count/n, an unbiased estimate of the distribution, hence of any loss that is linear in it.
 *
 * A batch may end inside a sequence (stream.h, BATCH_CONTINUES). Nothing here depends on where batches are cut: the
 * encoder cuts anew by a rule of its own, the decoder puts the pieces of a sequence together again.
 */
#ifndef RILL_KNOWLEDGE_H
#define RILL_KNOWLEDGE_H

#include <stdio.h>

#include "lib/base/base.h"
#include "lib/kernel/kernel.h"
#include "lib/stream/stream.h"

/* How the response is encoded. KNOW_NONE: there is none. Without fields the stream is then one of plain tokens. */
enum knowledge_encoding { KNOW_NONE, KNOW_DENSE, KNOW_TOPK, KNOW_GHOST, KNOW_SAMPLE, KNOW_TOPP };

#define KNOWLEDGE_MAX_N     65535
#define KNOWLEDGE_MAX_VOCAB (1u << 24)

/* ---- fields: what a stream holds of a teacher beside its response --------------------------------------------------- */

#define KNOWLEDGE_MAX_FIELDS 128
#define KNOWLEDGE_MAX_COLS   (1u << 20)
#define KNOWLEDGE_FIELD_NAME 32

enum knowledge_per {
    PER_POSITION, /* a row of `cols` values for each position */
    PER_SEQUENCE, /* ... for each sequence */
    PER_PAIR, /* for each position and head the weights of the positions that it attends to: see knowledge_feature_pairs */
};
const char *knowledge_per_name(enum knowledge_per per); /* "position" */

struct knowledge_codec;
struct knowledge_field {
    char name[KNOWLEDGE_FIELD_NAME]; /* "hidden.11": unique in the stream; the tensor in a batch is teacher.hidden.11 */
    char point[16];                  /* where in the teacher: "embed", "hidden", "attention", "q", "k", "v", "pooled" */
    uint32_t layer;                  /* 0 for points outside layers */
    enum knowledge_per per;
    const struct knowledge_codec *codec;
    enum dtype dtype; /* f32, bf16, or i8 with a scale for each row */
    uint32_t cols;    /* values in a row; of pairs: in all heads */
    uint32_t heads;   /* that a row consists of: attention, q, k, v; else 0 */
    bool sampled;     /* only of the stream's sampled positions (tap_positions) */
    bool counted;     /* only of positions that count, where batches tell which; not of sampled fields */
    bool causal;      /* pairs: a position attends to itself and those before it, and no others are stored */
};

struct knowledge_format {
    enum knowledge_encoding encoding;
    uint32_t n;         /* k, number of draws, or of top-p the most entries; 0 for dense */
    double p;           /* of top-p: the share that the entries have at least */
    double temperature; /* that the distribution was taken at (dense logits: 1, not yet applied) */
    enum dtype dtype;   /* dense only */
    bool log_probs;     /* dense only: normalised log-probabilities rather than logits */
    bool partial;       /* topk, topp: entries are lower bounds, see knowledge_mixer_new */
    enum stream_target target;
    uint32_t pack; /* consecutive sequences are a pack as long as their sum is at most this; 0: there are no packs */
    uint32_t vocab_size;          /* tokens; 0: a token stream that does not say */
    uint32_t classes;             /* stream_target_classes: columns of the teacher's logits; 0: labels only, not told */
    uint32_t n_used;              /* dense: columns that rows are cut to before their softmax; 0: all (knowledge_fit) */
    char vocab[DIGEST_TEXT_SIZE]; /* "" when the stream names none */
    char teacher[DIGEST_TEXT_SIZE]; /* content digest of the teacher's stream, "" likewise */
    uint32_t tap_positions; /* of each sequence that sampled fields have rows of, at most; 0: no field is sampled */
    uint32_t n_fields;
    struct knowledge_field fields[KNOWLEDGE_MAX_FIELDS];
};
/* Number of the field of that point and layer, or -1. */
long knowledge_field_find(const struct knowledge_format *f, const char *point, uint32_t layer);
/* Adds a field, which is named after its point and layer, or its point alone where layer is KNOWLEDGE_NO_LAYER. `field` has
 * all but name and codec. ERR_USAGE: it is there already, there are too many, or its values cannot be stored so. */
#define KNOWLEDGE_NO_LAYER UINT32_MAX
int knowledge_field_add(struct knowledge_format *f, const struct knowledge_field *field, struct err *e) MUST_CHECK;
/* Bytes that a sequence takes: in a field, and in the response, where nearly all draws take less, and top-p is a typical size. */
struct knowledge_extent {
    uint64_t length, counted, sampled; /* positions; those that count, and that are sampled */
    uint64_t
        reach; /* positions that those that count attend to when attention is causal: the sum of their numbers from 1 */
};
double knowledge_field_bytes(const struct knowledge_field *field, const struct knowledge_extent *x);
double knowledge_response_bytes(const struct knowledge_format *f, uint64_t counted);
/* Bytes that a position takes in all fields, where sequences have a typical length, on which attention depends. */
#define KNOWLEDGE_TYPICAL_LENGTH 512
double knowledge_typical_bytes(const struct knowledge_format *f);
/*
 * Which positions count: those with a label; of next tokens all of a sequence that has no mask, its last one included.
 * mask [n_positions] for TARGET_NEXT, labels [n_positions] for TARGET_MASKED and TARGET_TOKEN, whose rows are of positions
 * too. counted [n_positions] becomes 1 or 0; returns how many count.
 */
size_t knowledge_count_positions(enum stream_target target, size_t n_seqs, const uint32_t *lengths, const uint8_t *mask,
                                 const uint32_t *labels, uint8_t *counted);
/* Which positions of a sequence are sampled: `n` of those that count (NULL: all do), or all of fewer, the same for the same seed, number
 * of the sequence, length and `counted`. chosen [length] becomes 1 or 0. Selection sampling: Knuth, TAOCP vol. 2, 3.4.2, algorithm S. */
void knowledge_sample_positions(uint64_t seed, uint64_t seq, uint32_t n, uint32_t length, const uint8_t *counted,
                                uint8_t *chosen);

/* Rows of a field as a batch stores them, collected by whoever runs the teacher. Begin with {0}. */
struct knowledge_part {
    struct buf values, scales;
};
/* Appends n vectors x [n][length] of a field: its rows, or of pairs the heads of a position, as long as what it attends to.
 * ERR_DATA when a value is not finite. */
int knowledge_part_add(struct knowledge_part *p, const struct knowledge_field *field, size_t n, size_t length,
                       const float *x, struct err *e) MUST_CHECK;
void knowledge_part_release(struct knowledge_part *p);

/* "topk:50", "ghost:20", "sample:50", "dense" set encoding and n. ERR_USAGE says what there is. */
int knowledge_encoding_parse(const char *text, struct knowledge_format *f, struct err *e) MUST_CHECK;
/* "sample:50" into out; returns out. */
char *knowledge_encoding_text(const struct knowledge_format *f, char *out, size_t size);
/* Makes the META object of a tokens or knowledge stream describe this one: replaces "kind", "vocab", "vocab_size" and
 * "knowledge", leaves other members alone. */
int knowledge_meta_put(cJSON *meta, const struct knowledge_format *f, struct err *e) MUST_CHECK;
/* Reads and checks them. The meta of a tokens stream gives KNOW_NONE, any other kind is refused. */
int knowledge_meta_get(const cJSON *meta, struct knowledge_format *f, struct err *e) MUST_CHECK;
/* The option of rill tokenize that makes labels of the target, for messages. */
const char *knowledge_labels_option(enum stream_target target);
/* Cuts dense rows over the tokens of a named vocabulary to its n_tokens: further columns are padding of the embedding of
 * a teacher that had no vocabulary to tell. */
void knowledge_cut_padding(struct knowledge_format *f, uint32_t n_tokens);
/* Columns of the rows that a loss gets. */
uint32_t knowledge_columns(const struct knowledge_format *f);
/*
 * Fits a format read from META to a model of the same vocabulary that predicts n_tokens (model_n_tokens). Padding of
 * dense rows is cut (knowledge_cut_padding), which is exact; a sparse row cannot lose the padding's share of its
 * softmax. ERR_DATA for that, and for all other differences. What plain tokens say is replaced.
 */
int knowledge_fit(struct knowledge_format *f, uint32_t n_tokens, struct err *e) MUST_CHECK;
/* The same to a model of any target, whose logits have so many columns (model_predicts, model_columns). */
int knowledge_fit_target(struct knowledge_format *f, enum stream_target target, uint32_t columns,
                         struct err *e) MUST_CHECK;
/* Do both hold the same: vocabulary, response, fields? Teachers may differ. ERR_DATA says what does not agree. */
int knowledge_check_same(const struct knowledge_format *first, const struct knowledge_format *other,
                         struct err *e) MUST_CHECK;
/* batch_read of a stream of format f: ERR_DATA when the segment that the batch is in (`cat` makes several) speaks of another one. */
int knowledge_read(struct stream_reader *r, const struct knowledge_format *f, struct batch *b, bool *more,
                   struct err *e) MUST_CHECK;

/* ---- encoding ---------------------------------------------------------------------------------------------------- */

/*
 * Rows of logits in, batches out:
 *
 *     knowledge_encoder_open(&k, writer, meta, &format, seed)   writes META
 *     for each batch of input:
 *         knowledge_encoder_begin(k, input)                    announces positions
 *         knowledge_encoder_field(k, i, part) ...              gives them their rows of each field
 *         knowledge_encoder_rows(k, n, logits, ...) ...        ... and of the response, in any number of pieces
 *     knowledge_encoder_end(k)
 *
 * Without a response knowledge_encoder_rows is called with NULL for the rows, which then are all positions. Positions after the last one
 * that counts are taken when the next ones are announced, or at the end; rows of fields are given before that.
 *
 * Sparse batches are closed at the end of the sequence in which they reach 4096 positions or 16 MiB (at the latest after 16
 * times that), dense ones at the number of positions, a power of two, that fits 16 MiB: memory is constant. The draws of
 * a position depend on the seed and on its number in the whole stream only.
 */
struct knowledge_encoder;
/* Writes META, which is that of the stream that the knowledge is made from (NULL: there is none) with what
 * knowledge_meta_put puts into it. */
int knowledge_encoder_open(struct knowledge_encoder **out, struct stream_writer *w, const cJSON *meta,
                           const struct knowledge_format *f, uint64_t seed, struct err *e) MUST_CHECK;
/* The same where the caller has written META. */
int knowledge_encoder_new(struct knowledge_encoder **out, struct stream_writer *w, const struct knowledge_format *f,
                          uint64_t seed, struct err *e) MUST_CHECK;
/* Positions to come. */
struct knowledge_input {
    struct stream_batch head;
    const uint32_t *tokens, *lengths; /* [n_positions], [n_seqs] */
    const uint8_t *mask;              /* [n_positions]; NULL: all 1 */
    const uint32_t *
        labels; /* TARGET_MASKED, TARGET_TOKEN: [n_positions]; TARGET_SEQUENCE: [n_seqs], that of an open sequence is not read; else NULL */
    const uint32_t *types; /* token types, [n_positions]; NULL: all 0 */
    const uint8_t *
        counted; /* [n_positions] 1: the response and fields that are `counted` have a row; NULL: at all. Not TARGET_SEQUENCE */
    const uint8_t *sampled; /* [n_positions], where fields are sampled */
};
/* Copies them. ERR_DATA when they do not continue what came before. */
int knowledge_encoder_begin(struct knowledge_encoder *k, const struct knowledge_input *in, struct err *e) MUST_CHECK;
/* Rows of field number i of what was announced, in order and in any pieces, each before the response's rows of its positions; of
 * sequences and pairs those of the sequences that end in it. */
int knowledge_encoder_field(struct knowledge_encoder *k, size_t i, const struct knowledge_part *part,
                            struct err *e) MUST_CHECK;
/* The next rows [rows][columns] of the response, of positions that count or (TARGET_SEQUENCE) of sequences that end: the
 * teacher's distribution is softmax(x * inv_temperature). ERR_DATA names the position that is not finite (or not within
 * f16). NULL x where there is no response. */
int knowledge_encoder_rows(struct knowledge_encoder *k, size_t rows, const float *x, double inv_temperature,
                           struct err *e) MUST_CHECK;
/* The same for rows that are sparse already, of all positions, where those that do not count are empty. topk and ghost:
 * probabilities, descending, at least as many as the vocabulary has room for up to n; the first n are taken. sample:
 * counts that sum to n, ascending ids. offset is [rows + 1]. */
int knowledge_encoder_entries(struct knowledge_encoder *k, size_t rows, const uint64_t *offset, const uint32_t *ids,
                              const float *values, struct err *e) MUST_CHECK;
/* A batch of a stream of another format, all of it at once: whether that can be, knowledge_check_encode says. A response of the very
 * same format is left as it is. The encoder's fields are some of the batch's, in any type. */
int knowledge_encoder_batch(struct knowledge_encoder *k, const struct knowledge_format *from, const struct batch *b,
                            struct err *e) MUST_CHECK;
/* Writes what is left. ERR_DATA when the last sequence is open. */
int knowledge_encoder_end(struct knowledge_encoder *k, struct err *e) MUST_CHECK;
/* So far: positions, entries, and bytes of teacher.* tensors before compression. */
struct knowledge_counts {
    uint64_t positions, entries, bytes;
};
struct knowledge_counts knowledge_encoder_counts(const struct knowledge_encoder *k);
void knowledge_encoder_free(struct knowledge_encoder *k); /* NULL is fine */

/* ---- decoding: a queue of whole sequences as the loss wants them ------------------------------------------------- */

/* Where a run of batches has come to. */
struct knowledge_cursor {
    bool open;         /* inside a sequence: BATCH_CONTINUES */
    uint64_t seq, pos; /* number of the sequence last seen, positions of it so far */
};

/* Begin with {0}. Pointers lead into `memory` and are valid until the next call. */
#define KNOWLEDGE_MEMORIES 16
struct knowledge_feature;
/*
 * The rows of fields of pairs come with the batch in which their sequence ends, because how long they are may depend on
 * its length. This counts on: positions of an open sequence that will have a row. Private.
 */
struct knowledge_pairs {
    struct buf open; /* u32: (sampled) positions of the sequence so far */
    uint64_t at;     /* positions of it so far */
};
struct knowledge_rows {
    size_t n_positions, n_seqs;
    bool open;          /* the last sequence goes on in a batch to come: it is not whole yet */
    uint64_t first_pos; /* of the first row in its sequence: 0 unless its beginning has been cleared */
    uint64_t *seqs;     /* [n_seqs] numbers of the sequences in their stream */
    uint32_t *lengths;  /* [n_seqs] */
    uint32_t *tokens;   /* [n_positions] */
    uint32_t *
        labels; /* [n_rows], UINT32_MAX where there is none: next: on the last position of a sequence and before a masked
                         * token; masked: where the token was left as it is; token: where it has no tag. (TARGET_SEQUENCE: [n_seqs]; an open one has none yet) */
    uint8_t *mask;    /* [n_positions], 1: the token may be a label. All 1 where the stream has no mask */
    uint64_t *offset; /* [n_rows + 1], entries of each row; no entries for KNOW_NONE and KNOW_DENSE */
    uint32_t *ids;
    float *probs;
    float *rest; /* ghost: probability outside the entries; NULL otherwise */
    const void
        *dense; /* KNOW_DENSE: rows that count [*][stored columns] of the format's type; see knowledge_dense_rows */
    uint64_t
        *counted;    /* [n_positions + 1]: positions before each that have a row; NULL: all, or rows are of sequences */
    uint32_t *types; /* [n_positions] token types; NULL: the stream has none, all are 0 */
    uint64_t *sampled; /* [n_positions + 1]: sampled positions before each; NULL: no field is sampled */
    uint32_t
        *pair_lengths; /* of each row of a field of pairs: positions that it has a weight for; NULL: there is none */
    size_t n_rows;     /* of the response: n_positions, or (TARGET_SEQUENCE) whole sequences */
    size_t n_fields;
    struct knowledge_feature *fields; /* [n_fields], in the order of the format's */
    const void *viewed;               /* private, as what follows: dense rows that are a batch's */
    struct buf memory[KNOWLEDGE_MEMORIES];
    struct buf seen;
    uint32_t stamp;
    struct knowledge_cursor cursor;
    struct knowledge_pairs pairs;
};
/* A field's rows in the queue, as stored. */
struct knowledge_feature {
    const struct knowledge_field *field; /* of the format that was decoded with first, which must live as long */
    size_t n_rows;                       /* of pairs: a row for each (sampled) position, with all of its heads */
    struct knowledge_part stored;
};
/*
 * Appends a batch. Checks everything: shapes, tokens and ids below the vocabulary, distinct entries in order, counts that
 * sum to n, probabilities that sum to at most 1 (within 0.1%, for writers that round otherwise), finite values, and that
 * the batch goes on where the one before ended. After a failure only knowledge_rows_release is allowed.
 */
int knowledge_decode(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b,
                     struct err *e) MUST_CHECK;
size_t knowledge_whole_seqs(const struct knowledge_rows *k); /* n_seqs without an open last one */
/* Appends whole sequences [seq, seq + n) of another queue of the same format, which has no open sequence at its end. */
int knowledge_append_seqs(struct knowledge_rows *k, const struct knowledge_rows *from, const struct knowledge_format *f,
                          size_t seq, size_t n, struct err *e) MUST_CHECK;
/* Forgets the first n sequences, all of them whole. */
void knowledge_drop(struct knowledge_rows *k, const struct knowledge_format *f, size_t n_seqs);
/* Is every sequence, an open one included, at most `context` positions long? ERR_DATA names the sequence and `whose` limit it is. */
int knowledge_check_context(const struct knowledge_rows *k, uint32_t context, const char *whose,
                            struct err *e) MUST_CHECK;
/* Forgets all, also the beginning of an open sequence: for those who take batches as they come. */
void knowledge_clear(struct knowledge_rows *k);
/*
 * The number of sequences of the next forward pass, counted from sequence `first` of the queue: as many whole ones as fit
 * into `fit` positions, but at least one, and none after the one that reaches `enough`. 0 while that depends on sequences
 * still to come; `last`: none will. Passes depend on the sequences alone, not on the batches that brought them.
 */
size_t knowledge_next_pass(const struct knowledge_rows *k, size_t first, uint64_t fit, uint64_t enough, bool last,
                           size_t *n_positions);
/* What a whole sequence of the queue says, into a digest: its tokens and labels, and as it is stored what the teacher says. `position`:
 * number of its first one. */
void knowledge_digest_seq(struct digest_state *d, const struct knowledge_rows *k, const struct knowledge_format *f,
                          size_t seq, size_t position);
/* Does a pack, of at most `most` positions, begin with the next sequence, which has n? *pack: positions so far of the
 * pack before it (0: there is none), then of its own. most 0: each sequence is a pack. */
static inline bool knowledge_begins_pack(uint64_t most, uint64_t *pack, uint64_t n) {
    bool begins = !*pack || *pack + n > most;
    *pack = begins ? n : *pack + n;
    return begins;
}
/* No batch follows: ERR_DATA when the last sequence is open. */
int knowledge_decode_end(const struct knowledge_rows *k, struct err *e) MUST_CHECK;
void knowledge_rows_release(struct knowledge_rows *k);

/*
 * Which rows a field has of whole sequences [first, first + n) of the queue: their number, and that of the first one.
 * knowledge_feature_before: NULL where a field has a row of each position; else its rows are those of the positions p with
 * before[p + 1] > before[p], in order.
 */
const uint64_t *knowledge_feature_before(const struct knowledge_rows *k, size_t field);
size_t knowledge_feature_span(const struct knowledge_rows *k, size_t field, size_t first_seq, size_t n_seqs,
                              size_t *first_row);
/* Rows [first, first + rows) of a field of positions or sequences, in f32 [rows][cols]. */
void knowledge_feature_rows(const struct knowledge_rows *k, size_t field, size_t first, size_t rows, float *out);
/* Rows [first, first + rows) of a field of pairs, those of one sequence of `length` positions or some of them: [rows][heads][length],
 * 0 where nothing is attended to. */
void knowledge_feature_pairs(const struct knowledge_rows *k, size_t field, size_t first, size_t rows, size_t length,
                             float *out);
/* The first row of the response that belongs to the sequence, whose first position is number `position` of the queue:
 * the number of rows that the sequences before it have. */
static inline size_t knowledge_first_row(const struct knowledge_format *f, size_t seq, size_t position) {
    return f->target == TARGET_SEQUENCE ? seq : position;
}

/* Is there an answer of this row? Else its position does not count. */
static inline bool knowledge_answered(const struct knowledge_rows *k, const struct knowledge_format *f, size_t row) {
    return !k->counted || f->target == TARGET_SEQUENCE || k->counted[row + 1] > k->counted[row];
}

/* ---- where training rows come from ---------------------------------------------------------------------------------------- */

/*
 * Anything that gives rows to a trainer, batch after batch: a stream today. `next` appends to the queue whole sequences or
 * pieces of them, as knowledge_decode does; *more = false at the end, when nothing was appended.
 */
struct knowledge_source {
    int (*next)(void *ctx, struct knowledge_rows *k, bool *more, struct err *e);
    void *ctx;
    const struct knowledge_format *format; /* of the rows */
};
/* A stream of batches as a source; it and the format (fitted to the student) live as long as the source. Begin with {0}. */
struct knowledge_stream {
    struct stream_reader *r;
    const struct knowledge_format *meta, *format; /* as META says, and as rows are decoded */
    struct batch batch;
};
struct knowledge_source knowledge_stream_source(struct knowledge_stream *s);
void knowledge_stream_release(struct knowledge_stream *s);

/* ---- any sequence of a file, without reading those before it (units.c) ---------------------------------------------------- */

/*
 * What is shuffled and mixed: a sequence, or in a stream of packs a pack. An index of the units of a file takes 16 bytes for
 * each; it is made in one pass over the file that reads headers and lengths alone.
 */
struct knowledge_unit {
    uint64_t offset; /* of the batch in which it begins */
    uint32_t skip;   /* sequences between the front of that batch and it */
    uint32_t positions;
};
struct knowledge_units {
    struct knowledge_format format; /* as META says */
    struct knowledge_unit *units;   /* [n] */
    size_t n;
    uint64_t positions;    /* of all units */
    struct digest content; /* the file's content digest */
    /* Where units are read; from here on private. */
    struct stream_reader *r;
    struct batch batch;
    struct knowledge_rows rows; /* of the batches from `at` on */
    uint64_t at;                /* 0: none */
    struct buf memory;
};
/* Reads `scan`, a reader at the beginning of a regular file, to its end. Begin with {0}. ERR_DATA: the file is cut or
 * damaged, its segments disagree, it begins inside a sequence, or holds none. */
int knowledge_units_find(struct knowledge_units *u, struct stream_reader *scan, struct err *e) MUST_CHECK;
/* Where to read from: another reader of the same file, the caller's, as long as the units are read. */
void knowledge_units_open(struct knowledge_units *u, struct stream_reader *r);
/* Appends the sequences of unit i to the queue, as rows of format f, which is u->format fitted to a model. The batch that it is in
 * stays in memory, so units in order read each batch once. ERR_DATA: the file is damaged, or is no longer what it was. */
int knowledge_units_read(struct knowledge_units *u, const struct knowledge_format *f, size_t i,
                         struct knowledge_rows *k, struct err *e) MUST_CHECK;
void knowledge_units_release(struct knowledge_units *u);

/* Of a dense format: values as stored times this are logits at `temperature`. */
double knowledge_inv_temperature(const struct knowledge_format *f, double temperature);
/* Rows [first, first + rows) as stored, in f32 [rows][knowledge_columns]; zeros where a position does not count. */
void knowledge_dense_rows(const struct knowledge_rows *k, const struct knowledge_format *f, size_t first, size_t rows,
                          float *out);
/* Rows [first, first + rows) as the loss at `temperature` wants them. scratch: [rows][knowledge_columns] for a dense
 * format, else NULL. `out` points into k and scratch. */
void knowledge_target(const struct knowledge_rows *k, const struct knowledge_format *f, double temperature,
                      size_t first, size_t rows, float *scratch, struct kernel_target *out);
/* Of row r of a sparse target: the sum of t ln t over its entries, and of t into *mass. With them the kernel's sum of
 * t ln(t / p) becomes what it may be called: -sum t ln p, or a divergence of the normalised entries. */
double knowledge_t_ln_t(const struct kernel_target *t, size_t r, double *mass);
/* Can this format serve a loss at `temperature`? Sparse encodings only at the one they were made at: ERR_DATA says so. */
int knowledge_check_temperature(const struct knowledge_format *f, double temperature, struct err *e) MUST_CHECK;
/* Can `to` be made of `from`? Of dense everything can, of the top entries fewer, at the same temperature. ERR_DATA says why not. */
int knowledge_check_encode(const struct knowledge_format *from, const struct knowledge_format *to,
                           struct err *e) MUST_CHECK;

/* Is a tensor of that name in a batch a part of the response? */
bool knowledge_is_response(const char *tensor);

/* ---- mixing: several teachers on the same tokens ------------------------------------------------------------------- */

enum knowledge_mean { MEAN_ARITHMETIC, MEAN_GEOMETRIC };
struct knowledge_mixture {
    enum knowledge_mean mean;
    double temperature; /* that distributions are mixed at; 0: their own, which must be one */
};
struct knowledge_mix_input {
    struct stream_reader *r;
    const struct knowledge_format *format;
    double weight; /* above 0; their sum does not matter */
};
/*
 * The mean of the teachers' distributions ("an arithmetic or geometric mean of their individual predictive distributions": Hinton,
 * Vinyals, Dean 2015, section 1), by encoding:
 *   dense       sum_j w_j t_j, or exp(sum_j w_j ln t_j) normalised, which is a mean of the logits. Log-probabilities in the first
 *               stream's type
 *   ghost       entries are the tokens that all teachers have among theirs, so that entries and rest are exact: rows have at most as many
 *               as the shortest of the inputs. A row without such a token is empty (`without_common`)
 *   topk, topp  entries are the tokens that any teacher has, which counts as 0 what a teacher does not tell: lower bounds, and
 *               marked so (`partial`). The gradient of kl, which is linear in entries, is the weighted mean of the gradients on each teacher
 *   sample      counts are added up: sum_j c_j of N = sum_j n_j draws, whose mean is the mixture with weights n_j / N; their variance
 *               is that of N draws from the mixture less what the teachers differ by
 * knowledge_mix_format says whether the inputs can be mixed, and into what. ERR_DATA, ERR_USAGE: no; *bad is the input at fault.
 */
int knowledge_mix_format(const struct knowledge_mixture *how, const struct knowledge_mix_input *in, size_t n,
                         struct knowledge_format *out, size_t *bad, struct err *e) MUST_CHECK;
struct knowledge_mixer;
/* `in` has been through knowledge_mix_format, which made `format`. Readers and formats must outlive the mixer. */
int knowledge_mixer_new(struct knowledge_mixer **out, const struct knowledge_mixture *how,
                        const struct knowledge_mix_input *in, size_t n, const struct knowledge_format *format,
                        struct err *e) MUST_CHECK;
/* Reads and encodes a piece of the streams; *more false: they have ended. ERR_DATA where they are not about the same tokens, labels
 * and sequences. Memory: a batch of each, and 64 dense rows. */
int knowledge_mixer_step(struct knowledge_mixer *m, struct knowledge_encoder *k, bool *more, struct err *e) MUST_CHECK;
struct knowledge_mix_counts {
    uint64_t positions, without_common;
};
struct knowledge_mix_counts knowledge_mixer_counts(const struct knowledge_mixer *m);
void knowledge_mixer_free(struct knowledge_mixer *m); /* NULL is fine */

/* ---- looking ----------------------------------------------------------------------------------------------------- */

/* Appends the text of a token, without white space, to `out`; see knowledge_tsv_rows. */
typedef int knowledge_spell(void *ctx, uint32_t id, struct buf *out, struct err *e);
struct knowledge_tsv {
    uint32_t top;
    knowledge_spell *spell; /* NULL: ids alone */
    void *ctx;
};
/*
 * Tab-separated text of rows [first, first + rows), one line each, into out: sequence, position, token, label, the label's
 * probability and rank ("-" where there is none, or the label is not among the top entries), the probability outside
 * the entries shown, and the `top` most probable entries as "id:probability", or "id:piece:probability" when there is
 * a `spell`, which also adds a column of pieces behind token and label. All at the temperature of the knowledge. Of
 * draws the same columns have their share in the draws, 0 for a label that was not drawn, and are named so:
 * frequency, frequency_rank, frequency_rest, drawn. A row of TARGET_SEQUENCE is a sequence, whose first token is shown. Then
 * comes a column for each field: the root mean square of its row, or of pairs the position with the largest weight in
 * the mean over heads, as "position:weight".
 */
int knowledge_tsv_rows(const struct knowledge_tsv *t, struct buf *out, const struct knowledge_rows *k,
                       const struct knowledge_format *f, size_t first, size_t rows, struct err *e) MUST_CHECK;
/* The same of n positions from number `first` of a stream on, behind a line of column names, to a file whose errors are the caller's
 * to see. Reads no further than they need. */
int knowledge_tsv_print(const struct knowledge_tsv *t, struct stream_reader *r, const struct knowledge_format *f,
                        uint64_t first, uint64_t n, FILE *out, struct err *e) MUST_CHECK;

#endif
