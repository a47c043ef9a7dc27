/* What the tests of lib/prune share. */
#ifndef RILL_TESTS_PRUNE_SAMPLES_H
#define RILL_TESTS_PRUNE_SAMPLES_H

#include "tests/unit/model_samples.h"

#include "lib/prune/prune.h"

/* A model by way of a stream. The report is released by the caller, whatever is returned. */
static inline int pruned(const struct model *m, const struct prune_options *o, struct model **out,
                         struct prune_report *report, struct err *e) {
    struct stream_reader *r;
    struct stream_writer *w;
    struct buf in = saved_model(m, DT_F32), written;
    int from = file_of(in.data, in.len), to = memory_file();
    int rc = stream_reader_open(&r, from, "in.rill", STREAM_MODEL, e);
    assert_int_equal(rc, 0);
    rc = stream_writer_open(&w, to, "out.rill", NULL, e);
    assert_int_equal(rc, 0);
    *report = (struct prune_report){0};
    rc = prune_stream(r, w, o, report, e);
    if (!rc) rc = stream_writer_finish(w, NULL, e);
    stream_writer_free(w);
    stream_reader_free(r);
    close(from);
    written = contents(to);
    if (!rc) rc = load_model(&written, out, e);
    buf_release(&in);
    buf_release(&written);
    return rc;
}

#endif
