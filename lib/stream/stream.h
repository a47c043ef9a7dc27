/*
 * stream: Rill's one file and pipe format (formats/rill.md is normative). Records in, records out; this module is the
 * only code that knows the bytes on the wire.
 *
 * A stream is one or more segments. A segment is META, then in any order VOCB (models), tensors (TENS + DATA...) or
 * batches (BTCH + its tensors) and PROV entries (ours come last, because the digests of the inputs are known only
 * then), then the advisory index and ENDS. End of file anywhere else is an error, in a pipe and in a file.
 *
 * Three ways to read:
 *   stream_reader  sequential, from any descriptor, in constant memory; used by filters.
 *   batch_*        on top of it: one batch of a data stream at a time, its named tensors in reused memory.
 *   stream_map     random access to a regular file through the index, zero-copy for tensors stored raw.
 * One way to write: stream_writer, to any descriptor, without seeking.
 *
 * Invariant: the bytes written depend only on the content and the options, never on whether the descriptor is a file or
 * a pipe, nor on the number of threads.
 */
#ifndef RILL_STREAM_H
#define RILL_STREAM_H

#include "lib/base/base.h"
#include "lib/tensor/tensor.h"

#define STREAM_VERSION_MAJOR 1
#define STREAM_VERSION_MINOR 0

/* The "kind" in META: what a stream holds. */
enum stream_kind {
    STREAM_ANY = 0, /* only as an expectation */
    STREAM_MODEL,
    STREAM_TOKENS,     /* batches with `tokens` and `lengths` */
    STREAM_KNOWLEDGE,  /* tokens plus a teacher's predictions */
    STREAM_STATS,      /* activation statistics: named tensors */
    STREAM_CHECKPOINT, /* the state of a training run: named tensors */
};
const char *stream_kind_name(enum stream_kind kind);
int stream_kind_parse(const char *name, enum stream_kind *out, struct err *e) MUST_CHECK;

/* The "target" in META: what the labels of a data stream, and hence the model's logits, stand for (default: next). */
enum stream_target {
    TARGET_NEXT, /* each position: the next token */
    /* each position: the original token, before masking; tensor `labels` [n_positions] */
    TARGET_MASKED,
    /* each sequence: its class; tensor `labels`, one per sequence that ends in the batch */
    TARGET_SEQUENCE,
    TARGET_TOKEN, /* each position: its class, a tag; tensor `labels` [n_positions] */
};
/* Are labels and columns of the logits classes rather than tokens? */
static inline bool stream_target_classes(enum stream_target target) {
    return target == TARGET_SEQUENCE || target == TARGET_TOKEN;
}
const char *stream_target_name(enum stream_target target);

enum stream_codec {
    CODEC_RAW = 0,
    CODEC_ZSTD = 1,
    CODEC_PLANES = 2, /* byte planes of the element type, each entropy-coded by zstd or stored */
    CODEC_SPARSE = 3, /* a map of the zero elements, and byte planes of the others */
};
const char *stream_codec_name(enum stream_codec codec);
int stream_codec_parse(const char *name, enum stream_codec *out, struct err *e) MUST_CHECK;
/* Computes the bytes that a writer would store n bytes of data in, without headers, in chunks of 1 MiB; a chunk that
 * does not shrink counts as raw. */
int stream_stored_bytes(enum stream_codec codec, int level, enum dtype dtype, const void *data, uint64_t n,
                        uint64_t *stored, struct err *e) MUST_CHECK;

/* BTCH. Sequences are concatenated without padding: n_positions is the sum of their lengths in this batch. */
struct stream_batch {
    uint64_t first_seq; /* number of the first sequence in the stream */
    uint64_t first_pos; /* > 0: the first sequence continues from the previous batch, at this position */
    uint64_t n_positions;
    uint32_t n_seqs;
    uint32_t n_tensors;
    uint32_t flags; /* BATCH_CONTINUES */
};
#define BATCH_CONTINUES 1u /* the last sequence continues in the next batch */

/* ---- writing ----------------------------------------------------------------------------------------------------- */

struct stream_writer;
struct stream_write_options {
    enum stream_codec codec; /* default: raw. A chunk that does not shrink is stored raw with any codec */
    int level;               /* zstd level; 0: the codec's default */
    size_t chunk_bytes;      /* 0: 1 MiB. A tensor written whole and raw is one chunk of any size, for mmap */
};
struct stream_totals {
    struct digest digest; /* identifies the content without provenance: see formats/rill.md */
    uint64_t bytes, raw_bytes, records, tensors, batches, positions, segments;
};

/* Writes the head of the first segment. `name` appears in messages and is copied; the caller keeps the descriptor.
 * `options` may be NULL. Every function of a writer repeats its first error: a stream with an error is never
 * completed. */
int stream_writer_open(struct stream_writer **out, int fd, const char *name, const struct stream_write_options *options,
                       struct err *e) MUST_CHECK;
/* Must come first in each segment: describes the stream. `meta` needs the string "kind". */
int stream_write_meta(struct stream_writer *w, const cJSON *meta, struct err *e) MUST_CHECK;
int stream_write_prov(struct stream_writer *w, const cJSON *entry, struct err *e) MUST_CHECK;
int stream_write_vocab(struct stream_writer *w, const void *data, size_t n, struct err *e) MUST_CHECK;
int stream_write_batch(struct stream_writer *w, const struct stream_batch *batch, struct err *e) MUST_CHECK;
/* Writes a whole tensor. `attrs` (an object or NULL; NULL in a batch) is small JSON stored with it. */
int stream_write_tensor(struct stream_writer *w, const struct tensor_desc *d, const cJSON *attrs, const void *data,
                        struct err *e) MUST_CHECK;
/* The same in pieces, for tensors that are not in memory as a whole. */
int stream_begin_tensor(struct stream_writer *w, const struct tensor_desc *d, const cJSON *attrs,
                        struct err *e) MUST_CHECK;
int stream_write_data(struct stream_writer *w, const void *data, size_t n, struct err *e) MUST_CHECK;
int stream_end_tensor(struct stream_writer *w, struct err *e) MUST_CHECK;
/* Ends this segment and begins another (used by cat). */
int stream_writer_segment(struct stream_writer *w, struct err *e) MUST_CHECK;
/* Writes index and end record and flushes. `totals` may be NULL. */
int stream_writer_finish(struct stream_writer *w, struct stream_totals *totals, struct err *e) MUST_CHECK;
/* Writes an ABRT record with the reason, best effort, so that the downstream reader fails with the same message. */
void stream_writer_abort(struct stream_writer *w, const char *why);
void stream_writer_free(struct stream_writer *w);            /* no-op if NULL */
uint64_t stream_writer_bytes(const struct stream_writer *w); /* bytes written so far */

/* ---- reading in order -------------------------------------------------------------------------------------------- */

enum stream_item_type {
    ITEM_META,   /* json; kind. Starts each segment */
    ITEM_PROV,   /* json */
    ITEM_VOCAB,  /* bytes, n_bytes */
    ITEM_BATCH,  /* batch */
    ITEM_TENSOR, /* desc, attrs; the next call skips and verifies data that was not read */
    ITEM_OTHER,  /* an optional record of a type unknown to this version: tag, bytes, n_bytes */
    ITEM_SEGMENT_END,
    ITEM_EOF,
};

struct stream_item {
    enum stream_item_type type;
    enum stream_kind kind;
    char tag[5];
    const cJSON *json;  /* owned by the reader, valid until its next call */
    const cJSON *attrs; /* likewise; NULL if there are none */
    const void *bytes;  /* likewise */
    size_t n_bytes;
    struct stream_batch batch;
    struct tensor_desc desc;
    bool in_batch;         /* belongs to the latest batch */
    bool safe_to_copy;     /* ITEM_OTHER: may be forwarded even by programs that change other records */
    uint64_t offset;       /* of the record's header in the stream */
    uint64_t stored_bytes; /* stored size of the payload (ITEM_TENSOR: 0, known only after its data) */
};

struct stream_reader;
/* Opens a reader and checks the head and META of the first segment (META is also returned as the first item). ERR_DATA
 * for an empty file, a text file, a newer major version or an unknown incompatible flag, and, in every segment, for a
 * kind other than `expect`. The caller keeps the descriptor. Every function of a reader repeats its first error. */
int stream_reader_open(struct stream_reader **out, int fd, const char *name, enum stream_kind expect,
                       struct err *e) MUST_CHECK;
int stream_next(struct stream_reader *r, struct stream_item *item, struct err *e) MUST_CHECK;
/* The data of the tensor that stream_next returned: all of it, into dst, which has exactly the tensor's size ... */
int stream_read_tensor(struct stream_reader *r, void *dst, uint64_t n_bytes, struct err *e) MUST_CHECK;
/* ... or all of it, into a buffer that grows as data arrives (so a hostile size costs nothing); a tensor larger than
 * the memory left (mem_check) is refused before it is read ... */
int stream_load_tensor(struct stream_reader *r, struct buf *b, struct err *e) MUST_CHECK;
/* ... or up to n bytes at a time; *got is 0 at its end. A chunk is verified once its last byte was read, so part of a
 * large raw chunk is returned before its checksum is known: after a later error discard what was derived from it ... */
int stream_read_data(struct stream_reader *r, void *dst, size_t n, size_t *got, struct err *e) MUST_CHECK;
/* ... or as f32, up to n elements at a time (n at least a block of the type; not mixed with stream_read_data) ... */
int stream_read_f32(struct stream_reader *r, float *dst, size_t n, size_t *got, struct err *e) MUST_CHECK;
/* ... or not at all: verified and discarded. stream_next does this too. */
int stream_skip_tensor(struct stream_reader *r, struct err *e) MUST_CHECK;
/* Copies the item to w in its stored form, a tensor with its data. Not for ends of segments or of the file. */
int stream_forward(struct stream_reader *r, struct stream_writer *w, const struct stream_item *item,
                   struct err *e) MUST_CHECK;
/* For inspection only: in a regular file, unread data is skipped without verification. */
void stream_reader_skim(struct stream_reader *r);
/* Seeks in a regular file to `offset`, the stream_item.offset of an ITEM_BATCH: stream_next then returns that batch and
 * what follows it. Everything read is still verified; but since the records before are unknown, reading fails at the
 * end record and therefore cannot enter the next segment. */
int stream_reader_seek(struct stream_reader *r, uint64_t offset, struct err *e) MUST_CHECK;
/* How the latest tensor is stored; complete once its data was read or skipped. */
struct stream_storage {
    uint64_t bytes, chunks;
    enum stream_codec codec; /* raw if every chunk is */
};
void stream_reader_storage(const struct stream_reader *r, struct stream_storage *out);
/* Reads and verifies everything up to the end of the file. */
int stream_drain(struct stream_reader *r, struct err *e) MUST_CHECK;
const char *stream_reader_name(const struct stream_reader *r);
const cJSON *stream_reader_meta(const struct stream_reader *r);     /* of the current segment */
enum stream_kind stream_reader_kind(const struct stream_reader *r); /* likewise */
/* All provenance entries so far, without duplicates, in stream order: an array owned by the reader. */
const cJSON *stream_reader_prov(const struct stream_reader *r);
/* After ITEM_EOF: totals, and the content digest of the only segment or over those of all segments. */
void stream_reader_totals(const struct stream_reader *r, struct stream_totals *out);
void stream_reader_free(struct stream_reader *r); /* no-op if NULL */

/* ---- batches of a data stream ------------------------------------------------------------------------------------ */

#define BATCH_MAX_TENSORS 1024
struct batch {
    struct stream_batch head;
    struct tensor *tensors; /* [head.n_tensors]; data owned by the batch, valid until the next batch_read */
    struct batch_memory *memory;
};
/* Writes the batch's head, `tokens` [n_positions] and `lengths` [n_seqs]. head->n_tensors counts these two and the
 * tensors that the caller writes after them. */
int batch_write(struct stream_writer *w, const struct stream_batch *head, const uint32_t *tokens,
                const uint32_t *lengths, struct err *e) MUST_CHECK;
/* Writes another tensor [n] of the batch. */
int batch_write_vector(struct stream_writer *w, const char *name, enum dtype dtype, const void *data, uint64_t n,
                       struct err *e) MUST_CHECK;
/* An optional mask [n_positions] of 0 and 1: the tokens to train on. Without it all are trained on. */
#define BATCH_MASK "mask"
int batch_write_mask(struct stream_writer *w, const struct stream_batch *head, const uint8_t *mask,
                     struct err *e) MUST_CHECK;
/* Other optional tensors of a batch of tokens. */
/* u32: one per position (masked language models) or per sequence that ends in the batch (classes); UINT32_MAX: none */
#define BATCH_LABELS "labels"
#define BATCH_TYPES  "types" /* u8 [n_positions]: token types of models that distinguish two texts; all 0 if absent */
/* Reads the next batch with all its tensors. *more = false at the end of the stream, which has then been verified.
 * ERR_DATA if `lengths` (u32 [n_seqs]) or `tokens` (u32 [n_positions]) is missing or contradicts the head. Initialise
 * *b to {0}; free with batch_release. */
int batch_read(struct stream_reader *r, struct batch *b, bool *more, struct err *e) MUST_CHECK;
/* The same for the ITEM_BATCH that stream_next just returned. */
int batch_load(struct stream_reader *r, struct batch *b, const struct stream_item *item, struct err *e) MUST_CHECK;
/* After stream_reader_seek: the next batch need not continue this one. */
void batch_forget(struct batch *b);
/* Returns the tensor of that name, or NULL. */
const struct tensor *batch_find(const struct batch *b, const char *name);
/* Finds a tensor and checks type and rank; ERR_DATA names what is missing or different. dims[i] 0 matches any size. */
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
/* Maps a regular file with one segment; model, stats and checkpoint streams only. Uses the index, or scans a file
 * without one. Everything is verified on first use. ERR_IO if it is not a regular file, ERR_DATA for its content. */
int stream_map_open(struct stream_map **out, const char *path, enum stream_kind expect, struct err *e) MUST_CHECK;
const cJSON *stream_map_meta(const struct stream_map *m);
/* owned by m; *n 0: none */
int stream_map_vocab(struct stream_map *m, const void **data, size_t *n, struct err *e) MUST_CHECK;
size_t stream_map_count(const struct stream_map *m);
int stream_map_entry(struct stream_map *m, size_t i, struct stream_map_entry *out, struct err *e) MUST_CHECK;
/* Index of the tensor of that name, or -1. */
long stream_map_find(const struct stream_map *m, const char *name);
/* Returns verified data: *data points into the mapping if the tensor is one raw chunk, else into `scratch`. */
int stream_map_data(struct stream_map *m, size_t i, struct buf *scratch, const void **data, struct err *e) MUST_CHECK;
/* The same chunk by chunk, in the memory of one chunk: fn gets all chunks in order, each verified. An error of fn ends
 * the loop and is returned. */
typedef int stream_map_piece_fn(void *ctx, const void *data, size_t n, struct err *e);
int stream_map_pieces(struct stream_map *m, size_t i, struct buf *scratch, stream_map_piece_fn *fn, void *ctx,
                      struct err *e) MUST_CHECK;
/* Lets pages of the mapping with this tensor's data leave memory, which what was read of it so far then no longer
 * occupies; they are read and verified again when they are needed. */
void stream_map_forget(struct stream_map *m, size_t i);
const cJSON *stream_map_prov(struct stream_map *m); /* array, owned by m */
/* Totals from the end record; the first call computes the digest from the headers of all records. */
int stream_map_totals(struct stream_map *m, struct stream_totals *out, struct err *e) MUST_CHECK;
void stream_map_free(struct stream_map *m);

/* ---- copying: what cat does -------------------------------------------------------------------------------------- */

struct stream_copier;
struct stream_copy_options {
    bool (*keep)(void *ctx, const char *tensor); /* NULL: all. `tokens` and `lengths` are always kept */
    void *ctx;
    /* Decode and re-encode with the writer's codec; otherwise tensors are forwarded as stored, except in batches with
     * `keep`. */
    bool recode;
    bool merge; /* data streams of equal META become one segment with renumbered sequences */
};
int stream_copier_new(struct stream_copier **out, struct stream_writer *w, const struct stream_copy_options *options,
                      struct err *e) MUST_CHECK;
/* Appends all segments of r to the output. The last segment's provenance is left to the caller to write. */
int stream_copier_add(struct stream_copier *k, struct stream_reader *r, struct err *e) MUST_CHECK;
void stream_copier_free(struct stream_copier *k); /* no-op if NULL */

/* ---- comparing: what diff does ----------------------------------------------------------------------------------- */

/* Two tensors of the same name, or in data streams all tensors of that name in the batches. */
struct stream_pair {
    /* NULL: only in the other stream. In batches: the first pair of different shapes */
    const struct tensor_desc *a, *b;
    bool compared; /* the shapes agree; otherwise `d` is incomplete */
    struct tensor_difference d;
};
typedef int stream_pair_fn(void *ctx, const struct stream_pair *p, struct err *e);
/* Calls fn for each tensor of a, in order, then for those only in b. Uses the memory of a few chunks. */
int stream_compare_map(struct stream_reader *a, struct stream_map *b, stream_pair_fn *fn, void *ctx,
                       struct err *e) MUST_CHECK;
/* Compares batch by batch, then calls fn for each name. ERR_CHECK if the batches do not hold the same sequences. */
int stream_compare_batches(struct stream_reader *a, struct stream_reader *b, stream_pair_fn *fn, void *ctx,
                           struct err *e) MUST_CHECK;

#endif
