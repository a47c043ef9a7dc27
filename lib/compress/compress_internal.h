/* Shared inside lib/compress: a run, and the order of its files, which is that of this page. */
#ifndef RILL_COMPRESS_INTERNAL_H
#define RILL_COMPRESS_INTERNAL_H

#include "lib/compress/compress.h"
#include "lib/formats/formats.h"

struct compress {
    struct cli *c;
    const struct compress_options *o;
    struct session_file model;
    struct stream_reader *in; /* its first reading */
    struct quant_options how; /* for lib/quant; what it points to is below */
    struct stats *stats;
    struct imatrix *imatrix;
    struct quant_rule *rules;
    struct buf plan; /* a string: read, or made for a target */
    struct quant_summary sum;
};

/* ---- settings.c ---------------------------------------------------------------------------------------------------- */

bool compress_has_target(const struct compress_options *o);
/* The options as lib/quant takes them, from texts and files. */
int compress_read_settings(struct compress *k, struct err *e) MUST_CHECK;
void compress_release(struct compress *k); /* what they have read */

/* ---- target.c ------------------------------------------------------------------------------------------------------ */

/* The plan for --target-bpw or --target-size. From a pipe it is the model's only reading. */
int compress_plan_target(struct compress *k, struct err *e) MUST_CHECK;

#endif
