/*
 * view: a stream as text or JSON lines for people and programs: what rill ls and rill show print. What a file says is escaped on its way
 * out (lib/cli).
 *
 * A reader is at its beginning, and at its end afterwards; skimming, so that in a regular file data that is not shown is not
 * verified. ERR_DATA: the stream is damaged; ERR_IO.
 */
#ifndef RILL_VIEW_H
#define RILL_VIEW_H

#include <stdio.h>

#include "lib/base/base.h"
#include "lib/stream/stream.h"

struct view_list_options {
    bool json;    /* a line of JSON for each part */
    bool batches; /* each batch of a data stream, rather than the totals of its tensors by name */
};
/* The kind and facts of each segment, a table of its tensors, of a model its parts, and the totals. */
int view_list(struct stream_reader *r, FILE *to, const struct view_list_options *o, struct err *e) MUST_CHECK;

/* "38 tensors, 3253904 bytes of data, 3330304 bytes in all, xxh3:...": the tensors' values, and all of the stream. A line. */
void view_put_totals(FILE *out, const struct stream_totals *t);

struct view_options {
    bool meta, prov,
        vocab; /* descriptions of the segments; the provenance, oldest step first; the vocabulary. In place of: */
    /* tensors: */
    const char *glob;      /* of their names */
    const uint64_t *batch; /* number of the only batch, from 0; NULL: all, and what is in none */
    uint64_t head;         /* first values */
    bool stats, histogram; /* a summary instead */
    bool tsv;              /* all values, a line for each row, and nothing else */
    bool json;             /* a line for each tensor */
};
struct view_found {
    bool tensor;      /* one that was asked for */
    uint64_t batches; /* in the stream */
};
int view_show(struct stream_reader *r, FILE *to, const struct view_options *o, struct view_found *found,
              struct err *e) MUST_CHECK;

#endif
