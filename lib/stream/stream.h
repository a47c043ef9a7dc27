/*
 * stream: Rill's one file and pipe format (formats/rill.md is the normative page). Records in, records out; this
 * module is the only code that knows bytes on the wire.
 *
 * A stream is one or more segments. A segment is: META, then in any order VOCB (models), tensors (TENS + DATA...) or
 * batches (BTCH + its tensors), PROV entries (ours come last, because only then are the digests of the inputs known),
 * the advisory index and ENDS. End of file anywhere else is an error, in a pipe and in a file.
 *
 * Three ways in:
 *   stream_reader  sequential, from any descriptor, constant memory; the way filters read.
 *   batch_*        on top of it: one batch of a data stream at a time, with its named tensors in reused memory.
 *   stream_map     random access to a regular file through the index, zero-copy where tensors are stored raw.
 * One way out: stream_writer, to any descriptor, without seeking.
 *
 * Property kept by all of it: the bytes written depend on what is written and the options, never on whether the
 * descriptor is a file or a pipe, nor on the number of threads.
 */
#ifndef RILL_STREAM_H
#define RILL_STREAM_H

#include "lib/base/base.h"
#include "lib/tensor/tensor.h"

#define STREAM_VERSION_MAJOR 1
#define STREAM_VERSION_MINOR 0

/* What META says a stream holds ("kind"). */
enum stream_kind {
    STREAM_ANY = 0, /* as an expectation only */
    STREAM_MODEL,
    STREAM_TOKENS,     /* batches with `tokens` and `lengths` */
    STREAM_KNOWLEDGE,  /* the same plus a teacher's knowledge */
    STREAM_STATS,      /* activation statistics: named tensors */
    STREAM_CHECKPOINT, /* the state of a training run: named tensors */
};
const char *stream_kind_name(enum stream_kind kind);
int stream_kind_parse(const char *name, enum stream_kind *out, struct err *e) MUST_CHECK;

/* What the labels of a data stream are, and so what a model's logits are of ("target"; absent: next). */
enum stream_target {
    TARGET_NEXT,   /* at each position the next token */
    TARGET_MASKED, /* at each position the token there, before it was masked: tensor `labels`, one for each position */
    TARGET_SEQUENCE, /* of each sequence its class: tensor `labels`, one for each sequence that ends in the batch */
};
const char *stream_target_name(enum stream_target target);

enum stream_codec {
    CODEC_RAW = 0,
    CODEC_ZSTD = 1,
    CODEC_PLANES = 2, /* byte planes of the element type, each plane through zstd's entropy stage or stored */
    CODEC_SPARSE = 3, /* a map of the elements that are 0, and planes of the others */
};
const char *stream_codec_name(enum stream_codec codec);
int stream_codec_parse(const char *name, enum stream_codec *out, struct err *e) MUST_CHECK;
/* Bytes that a writer would store n bytes of data of a type in, without headers: chunks of 1 MiB, each raw if it does not shrink. */
int stream_stored_bytes(enum stream_codec codec, int level, enum dtype dtype, const void *data, uint64_t n,
                        uint64_t *stored, struct err *e) MUST_CHECK;

/* BTCH. Sequences are contiguous, without padding: n_positions is the sum of their lengths in this batch. */
struct stream_batch {
    uint64_t first_seq; /* number of the first sequence, counted through the stream */
    uint64_t first_pos; /* > 0: the first sequence continues from an earlier batch, at this position */
    uint64_t n_positions;
    uint32_t n_seqs;
    uint32_t n_tensors;
    uint32_t flags; /* BATCH_CONTINUES */
};
#define BATCH_CONTINUES 1u /* the last sequence goes on in the next batch */

/* ---- writing ----------------------------------------------------------------------------------------------------- */

struct stream_writer;
struct stream_write_options {
    enum stream_codec codec; /* zero: raw. A chunk that does not shrink is stored raw whatever the codec */
    int level;               /* zstd level, 0: the codec's default */
    size_t chunk_bytes;      /* 0: 1 MiB. A whole tensor stored raw is one chunk whatever its size, for mmap */
};
struct stream_totals {
    struct digest digest; /* identifies the content, provenance left out: see formats/rill.md */
    uint64_t bytes, raw_bytes, records, tensors, batches, positions, segments;
};

/* `name` is for messages and is copied. The descriptor stays the caller's. Writes the segment head. */
int stream_writer_open(struct stream_writer **out, int fd, const char *name, const struct stream_write_options *options,
                       struct err *e) MUST_CHECK;
/* Must come first: what the stream is. `meta` needs the string "kind". Also first after stream_writer_segment. */
int stream_write_meta(struct stream_writer *w, const cJSON *meta, struct err *e) MUST_CHECK;
int stream_write_prov(struct stream_writer *w, const cJSON *entry, struct err *e) MUST_CHECK;
int stream_write_vocab(struct stream_writer *w, const void *data, size_t n, struct err *e) MUST_CHECK;
int stream_write_batch(struct stream_writer *w, const struct stream_batch *batch, struct err *e) MUST_CHECK;
/* A whole tensor. `attrs` (an object, or NULL; not in a batch) is small JSON that travels with it. */
int stream_write_tensor(struct stream_writer *w, const struct tensor_desc *d, const cJSON *attrs, const void *data,
                        struct err *e) MUST_CHECK;
/* The same in pieces, for tensors that are not in memory whole. */
int stream_begin_tensor(struct stream_writer *w, const struct tensor_desc *d, const cJSON *attrs,
                        struct err *e) MUST_CHECK;
int stream_write_data(struct stream_writer *w, const void *data, size_t n, struct err *e) MUST_CHECK;
int stream_end_tensor(struct stream_writer *w, struct err *e) MUST_CHECK;
/* Ends this segment and begins another (cat). */
int stream_writer_segment(struct stream_writer *w, struct err *e) MUST_CHECK;
/* Index and end record, everything flushed. `totals` may be NULL. */
int stream_writer_finish(struct stream_writer *w, struct stream_totals *totals, struct err *e) MUST_CHECK;
/* Writes the reason in band (ABRT), best effort, so that the reader downstream fails with the same message. */
void stream_writer_abort(struct stream_writer *w, const char *why);
void stream_writer_free(struct stream_writer *w);            /* NULL is fine */
uint64_t stream_writer_bytes(const struct stream_writer *w); /* so far */

/* ---- reading in order -------------------------------------------------------------------------------------------- */

enum stream_item_type {
    ITEM_META,   /* json; kind. Starts each segment */
    ITEM_PROV,   /* json */
    ITEM_VOCAB,  /* bytes, n_bytes */
    ITEM_BATCH,  /* batch */
    ITEM_TENSOR, /* desc, attrs; the data follows through stream_read_* or is skipped, verified, by the next call */
    ITEM_OTHER,  /* an optional record of a type that this version does not know: tag, bytes, n_bytes */
    ITEM_SEGMENT_END,
    ITEM_EOF,
};

struct stream_item {
    enum stream_item_type type;
    enum stream_kind kind;
    char tag[5];
    const cJSON *json;  /* owned by the reader, until its next call */
    const cJSON *attrs; /* likewise; NULL when there are none */
    const void *bytes;  /* likewise */
    size_t n_bytes;
    struct stream_batch batch;
    struct tensor_desc desc;
    bool in_batch;         /* a tensor of the batch last opened */
    bool safe_to_copy;     /* ITEM_OTHER: may be forwarded by a program that changes other records */
    uint64_t offset;       /* of the record's header in the stream */
    uint64_t stored_bytes; /* payload as stored (ITEM_TENSOR: 0, known only after its data) */
};

struct stream_reader;
/* Reads and checks the head and META of the first segment (META comes back as the first item too). An empty file, a
 * text file, a newer major version or an unknown incompatible flag is ERR_DATA. `expect`: refuse another kind, in every
 * segment, with a message that says what was found and what was expected. The descriptor stays the caller's. */
int stream_reader_open(struct stream_reader **out, int fd, const char *name, enum stream_kind expect,
                       struct err *e) MUST_CHECK;
int stream_next(struct stream_reader *r, struct stream_item *item, struct err *e) MUST_CHECK;
/* The data of the tensor that stream_next returned: whole, into dst of exactly the tensor's size ... */
int stream_read_tensor(struct stream_reader *r, void *dst, uint64_t n_bytes, struct err *e) MUST_CHECK;
/* ... or whole, into a buffer that grows only as data arrives (a hostile size costs nothing); one that does not fit into the
 * memory that is left (mem_check) is refused before it is read ... */
int stream_load_tensor(struct stream_reader *r, struct buf *b, struct err *e) MUST_CHECK;
/* ... or up to n bytes more of it; *got is 0 at its end. A chunk is verified with its last byte, so a large raw one is
 * handed out in part before its checksum is known: an error may follow bytes; the caller then drops what it made. */
int stream_read_data(struct stream_reader *r, void *dst, size_t n, size_t *got, struct err *e) MUST_CHECK;
/* ... or as f32, up to n elements more (n at least a block of the type; not mixed with stream_read_data) ... */
int stream_read_f32(struct stream_reader *r, float *dst, size_t n, size_t *got, struct err *e) MUST_CHECK;
/* ... or not at all: verified and dropped. stream_next does this too. */
int stream_skip_tensor(struct stream_reader *r, struct err *e) MUST_CHECK;
/* Forwards the item as it is stored, a tensor with its data. Not for the ends of segments and of the file. */
int stream_forward(struct stream_reader *r, struct stream_writer *w, const struct stream_item *item,
                   struct err *e) MUST_CHECK;
/* For inspection only: in a regular file, data that nobody reads is skipped instead of verified. */
void stream_reader_skim(struct stream_reader *r);
/* Random access to the batches of a regular file: stream_next gives the ITEM_BATCH that a reader of the same file found at
 * this offset (stream_item.offset), then what follows it. Everything that is read is verified; where the next segment begins,
 * or at the end record, reading fails. */
int stream_reader_seek(struct stream_reader *r, uint64_t offset, struct err *e) MUST_CHECK;
/* How the latest tensor is stored; complete once its data was read or skipped. */
struct stream_storage {
    uint64_t bytes, chunks;
    enum stream_codec codec; /* raw when every chunk is */
};
void stream_reader_storage(const struct stream_reader *r, struct stream_storage *out);
/* Reads and verifies everything up to the end of the file. */
int stream_drain(struct stream_reader *r, struct err *e) MUST_CHECK;
const char *stream_reader_name(const struct stream_reader *r);
const cJSON *stream_reader_meta(const struct stream_reader *r);     /* of the current segment */
enum stream_kind stream_reader_kind(const struct stream_reader *r); /* likewise */
/* All provenance entries met so far, each once, oldest first: an array owned by the reader. */
const cJSON *stream_reader_prov(const struct stream_reader *r);
/* After ITEM_EOF: digest (of the one segment, or over the segments' content digests) and totals. */
void stream_reader_totals(const struct stream_reader *r, struct stream_totals *out);
void stream_reader_free(struct stream_reader *r); /* NULL is fine */

/* ---- batches of a data stream ------------------------------------------------------------------------------------ */

#define BATCH_MAX_TENSORS 1024
struct batch {
    struct stream_batch head;
    struct tensor *tensors; /* [head.n_tensors], data owned by the batch, valid until the next batch_read */
    struct batch_memory *memory;
};
/* Writes the batch's head, `tokens` [n_positions] and `lengths` [n_seqs]. head->n_tensors counts these two and those that the caller
 * writes after them. */
int batch_write(struct stream_writer *w, const struct stream_batch *head, const uint32_t *tokens,
                const uint32_t *lengths, struct err *e) MUST_CHECK;
/* A further tensor [n]. */
int batch_write_vector(struct stream_writer *w, const char *name, enum dtype dtype, const void *data, uint64_t n,
                       struct err *e) MUST_CHECK;
/* A mask [n_positions] of 0 and 1, one of the further tensors: which tokens are trained on. A batch without it is
 * all 1. */
#define BATCH_MASK "mask"
int batch_write_mask(struct stream_writer *w, const struct stream_batch *head, const uint8_t *mask,
                     struct err *e) MUST_CHECK;
/* Further tensors that a batch of tokens may have. */
#define BATCH_LABELS                                                                                                   \
    "labels" /* u32: of positions (masked language models) or of sequences that end in the batch (classes); UINT32_MAX: none */
#define BATCH_TYPES                                                                                                    \
    "types" /* u8 [n_positions]: token types of models that tell two texts apart; without it all are 0 */
/* The next batch with all its tensors. *more = false at the end of the stream (which has then been verified). Checks
 * that `lengths` (u32 [n_seqs]) and `tokens` (u32 [n_positions]) are there and agree with the head. Begin with {0}. */
int batch_read(struct stream_reader *r, struct batch *b, bool *more, struct err *e) MUST_CHECK;
/* The same for the ITEM_BATCH that stream_next just gave. */
int batch_load(struct stream_reader *r, struct batch *b, const struct stream_item *item, struct err *e) MUST_CHECK;
/* The batch to come need not go on where this one ended: after stream_reader_seek. */
void batch_forget(struct batch *b);
/* By name; NULL when it is not there. */
const struct tensor *batch_find(const struct batch *b, const char *name);
/* By name, type and rank: ERR_DATA that says what is missing or different. dims[i] != 0 must match, 0 matches any. */
int batch_need(const struct batch *b, const char *name, enum dtype dtype, unsigned rank, const uint64_t *dims,
               const struct tensor **out, struct err *e) MUST_CHECK;
const uint32_t *batch_tokens(const struct batch *b);
const uint32_t *batch_lengths(const struct batch *b);
void batch_release(struct batch *b);

/* ---- random access to a regular file ----------------------------------------------------------------------------- */

struct stream_map;
struct stream_map_entry {
    struct tensor_desc desc;
    const cJSON *attrs;
    uint64_t offset;       /* of the TENS record */
    uint64_t stored_bytes; /* data as stored */
};
/* Opens by index; a file without one is scanned. Model, stats and checkpoint streams of one segment. ERR_IO when it
 * is not a regular file. Everything is verified on first use. */
int stream_map_open(struct stream_map **out, const char *path, enum stream_kind expect, struct err *e) MUST_CHECK;
const cJSON *stream_map_meta(const struct stream_map *m);
int stream_map_vocab(struct stream_map *m, const void **data, size_t *n, struct err *e) MUST_CHECK; /* *n 0: none */
size_t stream_map_count(const struct stream_map *m);
int stream_map_entry(struct stream_map *m, size_t i, struct stream_map_entry *out, struct err *e) MUST_CHECK;
/* Number of the tensor of that name, or -1. */
long stream_map_find(const struct stream_map *m, const char *name);
/* Verified data: *data points into the mapping where the tensor is stored raw in one chunk, else into `scratch`. */
int stream_map_data(struct stream_map *m, size_t i, struct buf *scratch, const void **data, struct err *e) MUST_CHECK;
/* The same piece by piece, in memory for one group of chunks: fn gets all pieces in order, each verified and of the
 * size of the chunks as written. An error of fn ends it. */
typedef int stream_map_piece_fn(void *ctx, const void *data, size_t n, struct err *e);
int stream_map_pieces(struct stream_map *m, size_t i, struct buf *scratch, stream_map_piece_fn *fn, void *ctx,
                      struct err *e) MUST_CHECK;
const cJSON *stream_map_prov(struct stream_map *m); /* array, owned by m */
/* From the end record; the digest from the headers of all records, which the first call walks. */
int stream_map_totals(struct stream_map *m, struct stream_totals *out, struct err *e) MUST_CHECK;
void stream_map_free(struct stream_map *m);

/* ---- copying: what cat does -------------------------------------------------------------------------------------- */

struct stream_copier;
struct stream_copy_options {
    bool (*keep)(void *ctx, const char *tensor); /* NULL: all. `tokens` and `lengths` of a batch always stay */
    void *ctx;
    /* Decode, and encode as the writer does; otherwise data is forwarded as it is stored, but with `keep` not that of batches. */
    bool recode;
    bool merge; /* data streams of equal META become one segment, sequences numbered through */
};
int stream_copier_new(struct stream_copier **out, struct stream_writer *w, const struct stream_copy_options *options,
                      struct err *e) MUST_CHECK;
/* All segments of r, after what was copied before. The last segment's provenance is left to the caller. */
int stream_copier_add(struct stream_copier *k, struct stream_reader *r, struct err *e) MUST_CHECK;
void stream_copier_free(struct stream_copier *k); /* NULL is fine */

/* ---- comparing: what diff does ----------------------------------------------------------------------------------- */

/* Two tensors of one name, or all tensors of one name in the batches of data streams. */
struct stream_pair {
    const struct tensor_desc *a, *b; /* NULL: only in the other stream. Of batches: where they first differ in shape */
    bool compared;                   /* the shapes agree; else `d` covers less than everything */
    struct tensor_difference d;
};
typedef int stream_pair_fn(void *ctx, const struct stream_pair *p, struct err *e);
/* Calls fn for each tensor of either, in a's order, then for those only b has. Memory: a few chunks. */
int stream_compare_map(struct stream_reader *a, struct stream_map *b, stream_pair_fn *fn, void *ctx,
                       struct err *e) MUST_CHECK;
/* Batch by batch; calls fn at the end. ERR_CHECK when the batches do not hold the same sequences. */
int stream_compare_batches(struct stream_reader *a, struct stream_reader *b, stream_pair_fn *fn, void *ctx,
                           struct err *e) MUST_CHECK;

#endif
