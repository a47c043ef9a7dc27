/*
 * Shared inside lib/knowledge: the tables of codecs, the encoder's state, the queue's memory.
 *
 * Order of files, each calling only those before it: cursor, codec_parts, the codecs (codec_NAME), codec, fields, meta,
 * decode, encode, source, mix, units, tsv.
 */
#ifndef RILL_KNOWLEDGE_INTERNAL_H
#define RILL_KNOWLEDGE_INTERNAL_H

#include "lib/knowledge/knowledge.h"

#define KNOWLEDGE_SUM_SLACK 1e-3 /* above 1 that the probabilities of a row may come to */
#define KNOWLEDGE_RESPONSE  "response"
#define KNOWLEDGE_COUNTED   "teacher.counted"
#define KNOWLEDGE_MAX_TYPE  15 /* of tokens */

/* ---- the response: one file a codec, one row of the table in codec.c --------------------------------------------------- */

/* Rows of logits, in f32 or as a stream holds them. */
struct logits {
    enum dtype type;
    const unsigned char *data;
};

struct knowledge_response_codec {
    const char *name; /* "sample" */
    enum knowledge_encoding encoding;
    const char *argument; /* what follows the colon, for messages: "N"; NULL: nothing */
    bool draws_any_type;  /* encode takes logits as a stream holds them, else in f32 */
    unsigned n_tensors;   /* in a batch */
    /* Parses the text after the colon into f. False: it is not such an argument. */
    bool (*parse)(const char *argument, struct knowledge_format *f);
    /* "sample:50" into out. */
    void (*text)(const struct knowledge_format *f, char *out, size_t size);
    /* Its members of META, and back. */
    bool (*describe)(cJSON *o, const struct knowledge_format *f);
    int (*read)(const cJSON *o, struct knowledge_format *f, struct err *e);
    /* Appends rows of logits to k->response. */
    int (*encode)(struct knowledge_encoder *k, size_t rows, struct logits x, float inv_temperature, struct err *e);
    /* A row that is sparse already; NULL: there are none. */
    int (*entries)(struct knowledge_encoder *k, size_t n, const uint32_t *ids, const float *values, struct err *e);
    /* The tensors of the batch, `rows` rows of them, from k->response. */
    int (*write)(struct knowledge_encoder *k, uint64_t rows, struct err *e);
    /* Checks and appends the rows of a batch to the queue. view: dense ones stay where they are, unchecked. */
    int (*decode)(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b, uint64_t rows,
                  bool view, struct err *e);
    /* Bytes of a row, at most. */
    double (*bytes)(const struct knowledge_format *f);
};
extern const struct knowledge_response_codec knowledge_codec_dense, knowledge_codec_topk, knowledge_codec_ghost,
    knowledge_codec_topp, knowledge_codec_sample;
/* `parse` and `read` of a codec that has a number of entries or draws (codec_parts.c). */
bool knowledge_parse_n(const char *argument, struct knowledge_format *f);
int knowledge_read_n(const cJSON *o, struct knowledge_format *f, struct err *e) MUST_CHECK;
/* NULL for KNOW_NONE. */
const struct knowledge_response_codec *knowledge_response_codec(enum knowledge_encoding encoding);
const struct knowledge_response_codec *knowledge_response_codec_find(const char *name, size_t len);

/* ---- fields: likewise ---------------------------------------------------------------------------------------------------- */

struct knowledge_codec {
    const char *name; /* "rows" */
    /* Is this a field that it can hold? ERR_DATA, which the caller makes its own. */
    int (*check)(const struct knowledge_field *field, struct err *e);
    /* Vectors that a row consists of, each with a scale of its own in int8. */
    uint32_t (*vectors)(const struct knowledge_field *field);
    /* Length of the vectors of the row of position `at` of a sequence of `length`. */
    uint64_t (*vector_length)(const struct knowledge_field *field, uint64_t at, uint64_t length);
};
extern const struct knowledge_codec knowledge_codec_rows, knowledge_codec_attention;
const struct knowledge_codec *knowledge_codec_find(const char *name);
const struct knowledge_codec *knowledge_codec_of(enum knowledge_per per);

/* fields.c: checks a field as META or a caller describes it, and gives it its name. */
int knowledge_field_check(struct knowledge_field *field, struct err *e) MUST_CHECK;
/* Bytes of a vector's values, and of its scale. */
size_t knowledge_vector_bytes(enum dtype dtype, uint64_t length);
static inline size_t knowledge_scale_bytes(enum dtype dtype) {
    return dtype == DT_I8 ? sizeof(float) : 0;
}

/* Values that the field has in rows [first, first + n); pair_lengths: positions that each row of pairs is over. */
uint64_t knowledge_field_values(const struct knowledge_field *field, const uint32_t *pair_lengths, size_t first,
                                size_t n);

/* The next n positions of a sequence; sampled NULL: all of them. */
int knowledge_pairs_step(struct knowledge_pairs *p, uint64_t n, const uint8_t *sampled, struct err *e) MUST_CHECK;
/* The sequence ends: appends the length of each of its rows to out, u32. */
int knowledge_pairs_end(struct knowledge_pairs *p, const struct knowledge_format *f, struct buf *out,
                        struct err *e) MUST_CHECK;
/* The first field of pairs, or NULL: all of them are alike in which rows they have, and how long these are. */
const struct knowledge_field *knowledge_pair_field(const struct knowledge_format *f);

/* ---- formats -------------------------------------------------------------------------------------------------------------- */

static inline bool knowledge_is_sparse(const struct knowledge_format *f) {
    return f->encoding >= KNOW_TOPK;
}

static inline bool knowledge_is_top(const struct knowledge_format *f) {
    return f->encoding == KNOW_TOPK || f->encoding == KNOW_GHOST || f->encoding == KNOW_TOPP;
}

/* Columns of the teacher's logits as they come and are stored. */
static inline uint32_t knowledge_stored_columns(const struct knowledge_format *f) {
    return stream_target_classes(f->target) ? f->classes : f->vocab_size;
}

/* Of teacher.n and teacher.counts, neither of which exceeds the format's n; of teacher.ids. */
static inline enum dtype knowledge_count_type(const struct knowledge_format *f) {
    return f->n <= UINT8_MAX ? DT_U8 : DT_U16;
}

static inline enum dtype knowledge_id_type(const struct knowledge_format *f) {
    return knowledge_stored_columns(f) <= 65536 ? DT_U16 : DT_U32;
}

/* Can positions be left out, of the response or of a field? */
bool knowledge_may_count(const struct knowledge_format *f);

/* Sequences that end in a batch. */
static inline uint64_t knowledge_ended(const struct stream_batch *head) {
    return head->n_seqs - (head->flags & BATCH_CONTINUES ? 1 : 0);
}

/* Does this batch go on where the one before ended, even across segments? The cursor moves to its end. */
int knowledge_cursor_step(struct knowledge_cursor *c, const struct stream_batch *head, const uint32_t *lengths,
                          struct err *e) MUST_CHECK;
/* No batch follows. */
int knowledge_cursor_end(const struct knowledge_cursor *c, struct err *e) MUST_CHECK;

/* ---- the queue (decode.c) -------------------------------------------------------------------------------------------------- */

/* One growing array per field of struct knowledge_rows; the last two are not part of the queue. */
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
    MEM_FLAGS = MEM_QUEUE, /* u8, of the batch at hand: sampled positions */
    MEM_COUNT_FLAGS,       /* likewise: those that count */
    MEM_COUNT
};
_Static_assert(MEM_COUNT <= KNOWLEDGE_MEMORIES, "struct knowledge_rows has room for all");

/* Rows of the response before row `row` that are stored. */
static inline size_t knowledge_stored_row(const struct knowledge_rows *k, const struct knowledge_format *f,
                                          size_t row) {
    return k->counted && f->target != TARGET_SEQUENCE ? (size_t)k->counted[row] : row;
}

/* n more bytes at the end of a buffer; NULL when memory is out. */
void *knowledge_extend(struct buf *b, size_t n, struct err *e);
/* Distinct ids below the columns? Writes down which were seen. */
int knowledge_check_ids(struct knowledge_rows *k, const struct knowledge_format *f, const uint32_t *ids, size_t n,
                        struct err *e) MUST_CHECK;
/* The position of the batch that its row r of the response is of, for messages. */
uint64_t knowledge_position_of_row(const struct batch *b, uint64_t r);
/* Rows without entries. */
int knowledge_append_empty(struct knowledge_rows *k, uint64_t n, struct err *e) MUST_CHECK;
/* The entries of a row are in MEM_IDS and MEM_PROBS: where they end into MEM_OFFSET. */
int knowledge_end_row(struct knowledge_rows *k, struct err *e) MUST_CHECK;

/* Rows of entries as a batch holds them, one after another: how many each has, their ids, and a value of each. */
struct knowledge_entries {
    const struct tensor *n, *ids, *values;
    uint64_t total;
};
/* Appends the n entries of a row, from entry `at` of the batch on; 1 to f->n of them (of ghost from 0), which are there. */
typedef int knowledge_entries_fn(struct knowledge_rows *k, const struct knowledge_format *f,
                                 const struct knowledge_entries *s, uint64_t at, size_t n, struct err *e);
/* All rows of a batch whose values are the tensor of this name. */
int knowledge_decode_entries(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b,
                             uint64_t rows, const char *values, enum dtype dtype, knowledge_entries_fn *row,
                             struct err *e) MUST_CHECK;
uint32_t knowledge_number_at(enum dtype dtype, const void *data, uint64_t i);

/* The rows of this batch alone, as knowledge_decode makes them, but that dense ones stay where the batch holds them and are not
 * checked: knowledge_check_dense does that, and names the value that is not finite. */
int knowledge_view(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b,
                   struct err *e) MUST_CHECK;
/* As knowledge_dense_rows, of rows numbered among those that count. */
void knowledge_dense_stored(const struct knowledge_rows *k, const struct knowledge_format *f, size_t first, size_t rows,
                            float *out);
int knowledge_check_dense(const struct knowledge_format *f, const struct batch *b, struct err *e) MUST_CHECK;

/* ---- the encoder (encode.c) ------------------------------------------------------------------------------------------------- */

struct knowledge_encoder {
    struct knowledge_format format;
    const struct knowledge_response_codec *codec; /* NULL: no response */
    struct stream_writer *w;
    uint64_t seed;
    size_t target, limit; /* positions at which a batch is closed: at a sequence's end, and anywhere */

    /* Announced by begin; rows have come for the first `done` positions. */
    struct stream_batch in;
    struct buf in_tokens, in_mask, in_lengths, in_labels, in_types, in_sampled, in_counted;
    bool some;           /* not all of the positions announced have rows */
    size_t done, in_seq; /* in_seq: index of the sequence that the next row belongs to */
    uint64_t seq_left;   /* positions of it still to come in this announcement */
    uint64_t pos;        /* of the next row in its sequence */
    struct knowledge_cursor cursor;
    struct knowledge_part waiting[KNOWLEDGE_MAX_FIELDS]; /* rows of fields, whose positions have not been taken */
    struct knowledge_part taken[KNOWLEDGE_MAX_FIELDS];   /* len: how much of `waiting` has been; no memory of its own */

    /* The batch being made. */
    struct stream_batch head;
    uint64_t rows; /* of the response in it */
    /* number of the next row's sequence: counted anew, for a concatenation's segments begin from 0 again */
    uint64_t seq;
    struct buf tokens, mask, lengths, labels, types, positions, counted, response[3];
    uint64_t bits; /* of response[0] that are in use, for codes */
    struct knowledge_part fields[KNOWLEDGE_MAX_FIELDS];
    struct knowledge_pairs pairs;

    struct buf scratch[3], pair_lengths;
    struct buf
        row_at; /* u64: positions from the next one to each row that is being encoded; empty: they are contiguous */
    struct buf offsets;            /* of entries, of rows that count */
    struct knowledge_rows decoded; /* knowledge_encoder_batch: its rows, and some of them in f32 */
    struct buf block;
    struct knowledge_counts counts;
    uint64_t drawn; /* rows of the response so far: what draws depend on */
};

/* From the next position (or sequence) to that of the r-th row being encoded. */
static inline uint64_t knowledge_row_at(const struct knowledge_encoder *k, size_t r) {
    return k->row_at.len ? ((const uint64_t *)(const void *)k->row_at.data)[r] : r;
}

static inline const uint32_t *knowledge_in_lengths(const struct knowledge_encoder *k) {
    return (const uint32_t *)k->in_lengths.data;
}

/* codec_parts.c, as knowledge_extend to knowledge_number_at above. */
/* Space for n values of each size, in scratch memory. */
int knowledge_make_room(struct knowledge_encoder *k, size_t n, const size_t sizes[3], struct err *e) MUST_CHECK;
/* "sequence 7, position 12: WHAT" for the r-th row from the next one on. */
int knowledge_fail_at_row(const struct knowledge_encoder *k, size_t r, struct err *e, const char *what);
/* ERR_DATA: rows in f32 that are not finite. */
int knowledge_check_rows(struct knowledge_encoder *k, size_t rows, const float *x, struct err *e) MUST_CHECK;
extern const char knowledge_not_finite[];
/* An unsigned integer in that type. */
int knowledge_put_number(struct buf *b, enum dtype dtype, uint32_t v, struct err *e) MUST_CHECK;
/* A tensor of the batch. rows 0: a vector of all that there is, else a matrix. */
int knowledge_put_tensor(struct knowledge_encoder *k, const char *name, enum dtype dtype, uint64_t rows, uint64_t cols,
                         const struct buf *b, struct err *e) MUST_CHECK;

#endif
