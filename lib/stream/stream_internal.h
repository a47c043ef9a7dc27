/*
 * The state of reader and writer; shared with forward.c, batch.c and map.c.
 *
 * Order of files, each calling only those before it: wire, io, planes, sparse, codec, stream, segment, record,
 * reader_data, reader, writer, then forward, batch, map, copy, compare.
 */
#ifndef RILL_STREAM_STREAM_INTERNAL_H
#define RILL_STREAM_STREAM_INTERNAL_H

#include "lib/stream/codec_internal.h"
#include "lib/stream/io_internal.h"
#include "lib/stream/segment_internal.h"

struct stream_writer {
    char *name;
    struct output out;
    struct stream_write_options options;
    struct segment seg;
    bool began;        /* the segment head is written */
    bool partial;      /* a record was begun but not completed */
    struct err failed; /* the first failure; code 0: none */

    const struct dtype_info *dtype; /* of the open tensor */
    size_t chunk;                   /* its chunk size: whole blocks */
    struct buf pending;             /* its bytes that do not fill a group yet */
    struct chunk group[CODEC_GROUP];
    struct codecs codecs;
    struct buf scratch; /* payload of the small record being written */

    struct totals totals;
};

/* Writes a whole record; the caller has checked the rules. */
int writer_put(struct stream_writer *w, struct wire_record *r, const void *payload, struct err *e) MUST_CHECK;
/* Writes a record in pieces, with known payload hash: begin, output_write to w->out, end. */
int writer_put_begin(struct stream_writer *w, struct wire_record *r, struct err *e) MUST_CHECK;
int writer_put_end(struct stream_writer *w, const struct wire_record *r, struct err *e) MUST_CHECK;
/* Opens a tensor whose TENS payload is already encoded. */
int writer_begin_tensor(struct stream_writer *w, const struct tensor_desc *d, const void *payload, size_t n,
                        struct err *e) MUST_CHECK;
/* Call after the last chunk: flushes at the end of a batch. */
int writer_tensor_done(struct stream_writer *w, struct err *e) MUST_CHECK;
/* Adds the writer's name to *e and records the first failure. Returns e->code. */
int writer_fail(struct stream_writer *w, struct err *e);
/* Returns true, with the first failure in *e, if there was one. */
bool writer_failed(const struct stream_writer *w, struct err *e);

struct stream_reader {
    char *name;
    struct input in;
    enum stream_kind expect;
    bool skim;
    struct err failed;

    struct segment seg;
    unsigned minor;      /* version of the segment */
    uint64_t segment_at; /* offset of the segment's head */
    uint64_t index_at;   /* offset of its index within it; 0: none so far */
    bool between;        /* before a segment head, or at the end of the file */
    bool meta_pending;   /* META was read by open, but not returned yet */
    bool eof;
    bool sought; /* after stream_reader_seek: accept any number of the next record */

    struct wire_record rec; /* the latest header */
    uint64_t rec_at;        /* its offset */
    uint64_t rec_number;    /* its number in the segment */
    struct buf payload;     /* of the latest record that is not DATA */
    cJSON *meta, *scratch;  /* scratch: attributes, or a duplicate provenance entry */

    cJSON *prov;
    struct nameset prov_ids;
    uint64_t prov_bytes;
    bool prov_full;

    /* The data of the open tensor. */
    const struct dtype_info *dtype;
    bool chunk_ready;              /* a header was read, its payload was not begun */
    bool inside;                   /* a payload was begun */
    uint64_t left;                 /* bytes of it that remain */
    uint64_t given;                /* bytes of this tensor returned so far */
    struct stream_storage storage; /* of the chunks so far */
    struct buf values;             /* encoded elements, for stream_read_f32 */
    struct checksum_state *hash;
    struct buf stored; /* payloads of a group of chunks */
    struct chunk group[CODEC_GROUP];
    uint64_t group_at[CODEC_GROUP], group_number[CODEC_GROUP];
    size_t n_group;
    struct buf plain; /* a group decoded for a caller that reads in pieces */
    size_t plain_from;
    struct codecs codecs;

    struct totals totals;
};

/* record.c: read and verify headers and payloads. Every failure gets a location, is recorded in r and returned. */
int reader_header(struct stream_reader *r, struct err *e) MUST_CHECK;
/* Reads and verifies the payload of a record other than DATA into r->payload. */
int reader_payload(struct stream_reader *r, struct err *e) MUST_CHECK;
int reader_padding(struct stream_reader *r, struct err *e) MUST_CHECK;
/* Appends n bytes to b, which grows as they arrive if n is not bounded by the file's size. */
int reader_append(struct stream_reader *r, struct buf *b, uint64_t n, struct err *e) MUST_CHECK;
int reader_aborted(struct stream_reader *r, struct err *e); /* fails with the message of the ABRT record */
/* adds the location of the latest record to *e and records it */
int reader_fail(struct stream_reader *r, struct err *e);
int reader_remember(struct stream_reader *r, struct err *e); /* the same without the location */
int reader_truncated(struct stream_reader *r, struct err *e);
bool reader_failed(const struct stream_reader *r, struct err *e);

/* reader_data.c: the data of the open tensor. */
void reader_begin_data(struct stream_reader *r);
int reader_skip_data(struct stream_reader *r, struct err *e) MUST_CHECK;
bool reader_has_chunk(const struct stream_reader *r);                /* is there a chunk that was not begun? */
int reader_chunk(struct stream_reader *r, struct err *e) MUST_CHECK; /* reads its header into r->rec */
/* Read its stored bytes and hash them: begin, then take until *got is 0, which verifies the hash. */
void reader_stored_begin(struct stream_reader *r);
int reader_stored_take(struct stream_reader *r, const unsigned char **p, size_t *got, struct err *e) MUST_CHECK;

#endif
