/*
 * view: streams as text or JSON lines, as printed by rill ls, rill show and rill diff. Text from the file is escaped
 * (lib/cli).
 *
 * All functions take a reader at its start and read it to the end; those for a single stream skim, so that in a regular
 * file data that is not shown is not verified. ERR_DATA: the stream is damaged; ERR_IO.
 */
#ifndef RILL_VIEW_H
#define RILL_VIEW_H

#include <stdio.h>

#include "lib/base/base.h"
#include "lib/stream/stream.h"

struct view_list_options {
    bool json;    /* a line of JSON per part */
    bool batches; /* list each batch of a data stream instead of totals by tensor name */
};
/* Prints the kind and facts of each segment, a table of its tensors, for a model its parts, and the totals. */
int view_list(struct stream_reader *r, FILE *to, const struct view_list_options *o, struct err *e) MUST_CHECK;

/* Prints a line "38 tensors, 3253904 bytes of data, 3330304 bytes in all, xxh3:...": decoded tensor data, whole
 * stream. */
void view_put_totals(FILE *out, const struct stream_totals *t);

struct view_options {
    /* instead of tensors: META of the segments; the provenance, oldest step first; the vocabulary */
    bool meta, prov, vocab;
    /* for tensors: */
    const char *glob;      /* pattern for their names */
    const uint64_t *batch; /* only the batch of this number, from 0; NULL: all batches, and tensors outside batches */
    uint64_t head;         /* number of values to show */
    bool stats, histogram; /* show a summary instead */
    bool tsv;              /* show only the values, all of them, one line per row */
    bool json;             /* a line of JSON per tensor */
};
struct view_found {
    bool tensor;      /* a tensor matched */
    uint64_t batches; /* number of batches in the stream */
};
int view_show(struct stream_reader *r, FILE *to, const struct view_options *o, struct view_found *found,
              struct err *e) MUST_CHECK;

struct view_diff_options {
    const double *max_abs, *mean_abs, *min_cosine; /* limits of each tensor; NULL: none */
    bool all;                                      /* list equal tensors too */
    bool json;                                     /* a line of JSON per tensor */
};
struct view_diff_found {
    uint64_t pairs;   /* tensors of either stream */
    uint64_t outside; /* tensors outside the limits; without limits, tensors and members of META that differ */
};
/* Compares a with b batch by batch or, if b is NULL, with the tensors of `map`. Prints what differs in META and tensors,
 * then figures over all tensors. */
int view_diff(struct stream_reader *a, struct stream_reader *b, struct stream_map *map, FILE *to,
              const struct view_diff_options *o, struct view_diff_found *found, struct err *e) MUST_CHECK;

#endif
