/* A stream of batches as a source of training rows. */
#include "lib/knowledge/knowledge_internal.h"

static int next_batch(void *ctx, struct knowledge_rows *k, bool *more, struct err *e) {
    struct knowledge_stream *s = ctx;
    if (knowledge_read(s->r, s->meta, &s->batch, more, e)) return e->code;
    if (!*more) return 0;
    return knowledge_decode(k, s->format, &s->batch, e);
}

struct knowledge_source knowledge_stream_source(struct knowledge_stream *s) {
    return (struct knowledge_source){next_batch, s, s->format};
}

void knowledge_stream_release(struct knowledge_stream *s) {
    batch_release(&s->batch);
}
