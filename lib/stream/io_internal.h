/*
 * io: buffered reading and writing of a descriptor: large calls, enlarged pipes, no copying of large payloads. Messages
 * carry no file name; the caller adds it.
 */
#ifndef RILL_STREAM_IO_INTERNAL_H
#define RILL_STREAM_IO_INTERNAL_H

#include "lib/base/base.h"

struct input {
    int fd;
    bool regular;
    uint64_t start;     /* of a regular file: the file offset where reading began */
    uint64_t at;        /* bytes consumed since then */
    uint64_t size;      /* of a regular file: bytes from `start` to the end; else UINT64_MAX */
    unsigned char *buf; /* [cap], buffered bytes in [from, to) */
    size_t cap, from, to;
    bool ended;
    bool direct; /* the last read went past the buffer */
};
int input_open(struct input *in, int fd, struct err *e) MUST_CHECK;
void input_close(struct input *in); /* the descriptor stays open */
/* Reads n bytes; *got < n only at the end of the file. */
int input_read(struct input *in, void *dst, size_t n, size_t *got, struct err *e) MUST_CHECK;
/* n <= 4096 bytes are returned without consuming them; *got < n only at the end of the file. */
int input_peek(struct input *in, size_t n, const unsigned char **p, size_t *got, struct err *e) MUST_CHECK;
/* Consumes up to `max` bytes without copying: *p is valid until the next call. *got is 0 only at the end of the
 * file. */
int input_take(struct input *in, uint64_t max, const unsigned char **p, size_t *got, struct err *e) MUST_CHECK;
/* Skips n bytes of a regular file without reading them; the caller has checked that they exist. */
int input_seek_past(struct input *in, uint64_t n, struct err *e) MUST_CHECK;
/* Moves to `at`, counted from the start of reading, in a regular file. */
int input_seek(struct input *in, uint64_t at, struct err *e) MUST_CHECK;

struct output {
    int fd;
    uint64_t at; /* bytes written so far, buffered ones included */
    unsigned char *buf;
    size_t cap, len;
};
int output_open(struct output *out, int fd, struct err *e) MUST_CHECK;
void output_close(struct output *out); /* frees the buffer; neither flushes nor closes the descriptor */
int output_write(struct output *out, const void *data, size_t n, struct err *e) MUST_CHECK;
int output_flush(struct output *out, struct err *e) MUST_CHECK;

#endif
