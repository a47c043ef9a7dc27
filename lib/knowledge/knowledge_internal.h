/*
 * Private to lib/knowledge: the tables of codecs, the encoder's state, the queue's memory.
 *
 * Order of files, each calling only those before it: cursor, codec_parts, the codecs (codec_NAME), codec, fields, meta,
 * decode, encode, source, mix, units, tsv.
 */
#ifndef RILL_KNOWLEDGE_INTERNAL_H
#define RILL_KNOWLEDGE_INTERNAL_H

#include "lib/knowledge/knowledge.h"

#define KNOWLEDGE_SUM_SLACK 1e-3 /* by which the probabilities of a row may exceed a sum of 1 */
#define KNOWLEDGE_RESPONSE  "response"
#define KNOWLEDGE_COUNTED   "teacher.counted"
#define KNOWLEDGE_MAX_TYPE  15 /* largest token type */

/* ---- codecs of the response: one file each, and a row of the table in codec.c ------------------------------------ */

/* Rows of logits, as f32 or in a stream's type. */
struct logits {
    enum dtype type;
    const unsigned char *data;
};

struct knowledge_response_codec {
    const char *name; /* "sample" */
    enum knowledge_encoding encoding;
    const char *argument; /* what follows the colon, for messages: "N"; NULL: nothing */
    bool draws_any_type;  /* encode takes logits of any type; otherwise only f32 */
    unsigned n_tensors;   /* per batch */
    /* Parses the text after the colon into f; returns false if it is invalid. */
    bool (*parse)(const char *argument, struct knowledge_format *f);
    /* Writes "sample:50" into out. */
    void (*text)(const struct knowledge_format *f, char *out, size_t size);
    /* Writes its members of META, and reads them. */
    bool (*describe)(cJSON *o, const struct knowledge_format *f);
    int (*read)(const cJSON *o, struct knowledge_format *f, struct err *e);
    /* Encodes rows of logits and appends them to k->response. */
    int (*encode)(struct knowledge_encoder *k, size_t rows, struct logits x, float inv_temperature, struct err *e);
    /* Appends a row that is sparse already; NULL: not supported. */
    int (*entries)(struct knowledge_encoder *k, size_t n, const uint32_t *ids, const float *values, struct err *e);
    /* Writes the batch's tensors, `rows` rows, from k->response. */
    int (*write)(struct knowledge_encoder *k, uint64_t rows, struct err *e);
    /* Checks the rows of a batch and appends them to the queue. view: dense rows are borrowed from the batch,
     * unchecked. */
    int (*decode)(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b, uint64_t rows,
                  bool view, struct err *e);
    /* Returns the bytes of a row, at most. */
    double (*bytes)(const struct knowledge_format *f);
};
extern const struct knowledge_response_codec knowledge_codec_dense, knowledge_codec_topk, knowledge_codec_ghost,
    knowledge_codec_topp, knowledge_codec_sample;
/* `parse` and `read` for a codec with a number of entries or draws (codec_parts.c). */
bool knowledge_parse_n(const char *argument, struct knowledge_format *f);
int knowledge_read_n(const cJSON *o, struct knowledge_format *f, struct err *e) MUST_CHECK;
/* Returns the codec, or NULL: KNOW_NONE, or no such name. */
const struct knowledge_response_codec *knowledge_response_codec(enum knowledge_encoding encoding);
const struct knowledge_response_codec *knowledge_response_codec_find(const char *name, size_t len);

/* ---- codecs of fields -------------------------------------------------------------------------------------------- */

struct knowledge_codec {
    const char *name; /* "rows" */
    /* Can it hold this field? Fails with ERR_DATA; the caller may change the code. */
    int (*check)(const struct knowledge_field *field, struct err *e);
    /* Returns the number of vectors in a row; for int8 each has its own scale. */
    uint32_t (*vectors)(const struct knowledge_field *field);
    /* Returns the length of the vectors in the row of position `at` of a sequence of `length`. */
    uint64_t (*vector_length)(const struct knowledge_field *field, uint64_t at, uint64_t length);
};
extern const struct knowledge_codec knowledge_codec_rows, knowledge_codec_attention;
const struct knowledge_codec *knowledge_codec_find(const char *name);
const struct knowledge_codec *knowledge_codec_of(enum knowledge_per per);

/* Checks a field from META or a caller, and sets its name and codec. ERR_DATA (fields.c). */
int knowledge_field_check(struct knowledge_field *field, struct err *e) MUST_CHECK;
/* Return the bytes of a vector's values, and of its scale. */
size_t knowledge_vector_bytes(enum dtype dtype, uint64_t length);
static inline size_t knowledge_scale_bytes(enum dtype dtype) {
    return dtype == DT_I8 ? sizeof(float) : 0;
}

/* Returns the number of values in rows [first, first + n). pair_lengths: for PER_PAIR, the length of each row. */
uint64_t knowledge_field_values(const struct knowledge_field *field, const uint32_t *pair_lengths, size_t first,
                                size_t n);

/* Advances over the next n positions of a sequence. sampled [n]: which of them have rows; NULL: all. */
int knowledge_pairs_step(struct knowledge_pairs *p, uint64_t n, const uint8_t *sampled, struct err *e) MUST_CHECK;
/* Ends the sequence: appends the length of each of its rows to out, as u32. */
int knowledge_pairs_end(struct knowledge_pairs *p, const struct knowledge_format *f, struct buf *out,
                        struct err *e) MUST_CHECK;
/* Returns the first PER_PAIR field, or NULL. All such fields have the same rows, of the same lengths. */
const struct knowledge_field *knowledge_pair_field(const struct knowledge_format *f);

/* ---- formats ----------------------------------------------------------------------------------------------------- */

static inline bool knowledge_is_sparse(const struct knowledge_format *f) {
    return f->encoding >= KNOW_TOPK;
}

static inline bool knowledge_is_top(const struct knowledge_format *f) {
    return f->encoding == KNOW_TOPK || f->encoding == KNOW_GHOST || f->encoding == KNOW_TOPP;
}

/* Returns the number of columns of the teacher's logits, as stored. */
static inline uint32_t knowledge_stored_columns(const struct knowledge_format *f) {
    return stream_target_classes(f->target) ? f->classes : f->vocab_size;
}

/* Return the types of teacher.n and teacher.counts, whose values are at most n, and of teacher.ids. */
static inline enum dtype knowledge_count_type(const struct knowledge_format *f) {
    return f->n <= UINT8_MAX ? DT_U8 : DT_U16;
}

static inline enum dtype knowledge_id_type(const struct knowledge_format *f) {
    return knowledge_stored_columns(f) <= 65536 ? DT_U16 : DT_U32;
}

/* Can the response or a field leave out positions? */
bool knowledge_may_count(const struct knowledge_format *f);

/* Returns the number of sequences that end in a batch. */
static inline uint64_t knowledge_ended(const struct stream_batch *head) {
    return head->n_seqs - (head->flags & BATCH_CONTINUES ? 1 : 0);
}

/* Advances the cursor over a batch. ERR_DATA: it does not continue the previous one, in the same or another segment. */
int knowledge_cursor_step(struct knowledge_cursor *c, const struct stream_batch *head, const uint32_t *lengths,
                          struct err *e) MUST_CHECK;
/* Call after the last batch. ERR_DATA: a sequence is open. */
int knowledge_cursor_end(const struct knowledge_cursor *c, struct err *e) MUST_CHECK;

/* ---- the queue (decode.c) ---------------------------------------------------------------------------------------- */

/* Index of the growing array for each member of struct knowledge_rows; those from MEM_QUEUE on are scratch. */
enum {
    MEM_SEQS,
    MEM_LENGTHS,
    MEM_TOKENS,
    MEM_LABELS,
    MEM_OFFSET,
    MEM_IDS,
    MEM_PROBS,
    MEM_REST,
    MEM_DENSE,
    MEM_MASK,
    MEM_TYPES,
    MEM_SAMPLED,
    MEM_PAIR_LENGTHS,
    MEM_COUNTED,
    MEM_QUEUE,
    MEM_FLAGS = MEM_QUEUE, /* u8 [positions of the batch]: 1 if sampled */
    MEM_COUNT_FLAGS,       /* likewise: 1 if counted */
    MEM_COUNT
};
_Static_assert(MEM_COUNT <= KNOWLEDGE_MEMORIES, "struct knowledge_rows has room for all");

/* Returns the number of stored rows of the response before row `row`. */
static inline size_t knowledge_stored_row(const struct knowledge_rows *k, const struct knowledge_format *f,
                                          size_t row) {
    return k->counted && f->target != TARGET_SEQUENCE ? (size_t)k->counted[row] : row;
}

/* Grows a buffer by n bytes; returns a pointer to them, or NULL if out of memory. */
void *knowledge_extend(struct buf *b, size_t n, struct err *e);
/* Checks that ids are below the number of columns and distinct; uses k->seen. */
int knowledge_check_ids(struct knowledge_rows *k, const struct knowledge_format *f, const uint32_t *ids, size_t n,
                        struct err *e) MUST_CHECK;
/* Returns the position in the batch that row r of its response belongs to, for messages. */
uint64_t knowledge_position_of_row(const struct batch *b, uint64_t r);
/* Appends n rows without entries. */
int knowledge_append_empty(struct knowledge_rows *k, uint64_t n, struct err *e) MUST_CHECK;
/* Ends a row whose entries are in MEM_IDS and MEM_PROBS: appends their end to MEM_OFFSET. */
int knowledge_end_row(struct knowledge_rows *k, struct err *e) MUST_CHECK;

/* Entries of a batch: the number in each row, and the ids and values of all rows, contiguous. */
struct knowledge_entries {
    const struct tensor *n, *ids, *values;
    uint64_t total;
};
/* Appends the n entries of a row, starting at entry `at`. n is already checked: 1 (ghost: 0) to f->n, within the
 * batch. */
typedef int knowledge_entries_fn(struct knowledge_rows *k, const struct knowledge_format *f,
                                 const struct knowledge_entries *s, uint64_t at, size_t n, struct err *e);
/* Appends all rows of a batch, whose values are in the tensor of this name. */
int knowledge_decode_entries(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b,
                             uint64_t rows, const char *values, enum dtype dtype, knowledge_entries_fn *row,
                             struct err *e) MUST_CHECK;
uint32_t knowledge_number_at(enum dtype dtype, const void *data, uint64_t i);

/* Replaces the queue by the rows of this batch, as knowledge_decode makes them, except that dense rows are borrowed
 * from the batch and unchecked. */
int knowledge_view(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b,
                   struct err *e) MUST_CHECK;
/* Same as knowledge_dense_rows, but rows are numbered among the counted ones. */
void knowledge_dense_stored(const struct knowledge_rows *k, const struct knowledge_format *f, size_t first, size_t rows,
                            float *out);
/* Checks the values of dense rows that were borrowed by knowledge_view; ERR_DATA names the one that is not finite. */
int knowledge_check_dense(const struct knowledge_format *f, const struct batch *b, struct err *e) MUST_CHECK;

/* ---- the encoder (encode.c) -------------------------------------------------------------------------------------- */

struct knowledge_encoder {
    struct knowledge_format format;
    const struct knowledge_response_codec *codec; /* NULL: no response */
    struct stream_writer *w;
    uint64_t seed;
    size_t target, limit; /* positions at which a batch is closed: at the end of a sequence, and anywhere */

    /* The current announcement; the first `done` positions have their rows. */
    struct stream_batch in;
    struct buf in_tokens, in_mask, in_lengths, in_labels, in_types, in_sampled, in_counted;
    bool some;           /* some announced positions have no row */
    size_t done, in_seq; /* in_seq: index of the sequence that the next row belongs to */
    uint64_t seq_left;   /* its positions still to come in this announcement */
    uint64_t pos;        /* of the next row in its sequence */
    struct knowledge_cursor cursor;
    struct knowledge_part waiting[KNOWLEDGE_MAX_FIELDS]; /* rows of fields, from the caller */
    struct knowledge_part taken[KNOWLEDGE_MAX_FIELDS];   /* only `len` is used: bytes taken from `waiting` */

    /* The current batch. */
    struct stream_batch head;
    uint64_t rows; /* of the response */
    /* Number of the next row's sequence. Counted here, because the segments of a concatenation start from 0 again. */
    uint64_t seq;
    struct buf tokens, mask, lengths, labels, types, positions, counted, response[3];
    uint64_t bits; /* of response[0] in use, for codes */
    struct knowledge_part fields[KNOWLEDGE_MAX_FIELDS];
    struct knowledge_pairs pairs;

    struct buf scratch[3], pair_lengths;
    struct buf row_at;             /* u64: offset of each row being encoded from the next position; empty: contiguous */
    struct buf offsets;            /* entry offsets of counted rows */
    struct knowledge_rows decoded; /* knowledge_encoder_batch: its rows; `block`: some of them in f32 */
    struct buf block;
    struct knowledge_counts counts;
    uint64_t drawn; /* positions so far, from which draws are seeded */
};

/* Returns the offset from the next position (or sequence) to that of the r-th row being encoded. */
static inline uint64_t knowledge_row_at(const struct knowledge_encoder *k, size_t r) {
    return k->row_at.len ? ((const uint64_t *)(const void *)k->row_at.data)[r] : r;
}

static inline const uint32_t *knowledge_in_lengths(const struct knowledge_encoder *k) {
    return (const uint32_t *)k->in_lengths.data;
}

/* The following are in codec_parts.c, like knowledge_extend to knowledge_number_at above. */
/* Makes scratch space for n values of each size. */
int knowledge_make_room(struct knowledge_encoder *k, size_t n, const size_t sizes[3], struct err *e) MUST_CHECK;
/* Fails with "sequence 7, position 12: WHAT" for the r-th of the next rows. */
int knowledge_fail_at_row(const struct knowledge_encoder *k, size_t r, struct err *e, const char *what);
/* ERR_DATA: a row is not finite. */
int knowledge_check_rows(struct knowledge_encoder *k, size_t rows, const float *x, struct err *e) MUST_CHECK;
extern const char knowledge_not_finite[];
/* Appends an unsigned integer of that type. */
int knowledge_put_number(struct buf *b, enum dtype dtype, uint32_t v, struct err *e) MUST_CHECK;
/* Writes a tensor of the batch. cols 0: a vector of the whole buffer; else a matrix [rows][cols]. */
int knowledge_put_tensor(struct knowledge_encoder *k, const char *name, enum dtype dtype, uint64_t rows, uint64_t cols,
                         const struct buf *b, struct err *e) MUST_CHECK;

#endif
