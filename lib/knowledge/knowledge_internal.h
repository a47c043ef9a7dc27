/*
 * What the files of lib/knowledge share about sparse batches and the pieces of sequences.
 *
 * Order of files, each calling only those before it: cursor, meta, decode, encode, tsv.
 */
#ifndef RILL_KNOWLEDGE_INTERNAL_H
#define RILL_KNOWLEDGE_INTERNAL_H

#include "lib/knowledge/knowledge.h"

static inline bool knowledge_is_sparse(const struct knowledge_format *f) {
    return f->encoding >= KNOW_TOPK;
}

static inline bool knowledge_is_top(const struct knowledge_format *f) {
    return f->encoding == KNOW_TOPK || f->encoding == KNOW_GHOST;
}

/* Of teacher.n and teacher.counts, neither of which exceeds the format's n; of teacher.ids. */
static inline enum dtype knowledge_count_type(const struct knowledge_format *f) {
    return f->n <= UINT8_MAX ? DT_U8 : DT_U16;
}

static inline enum dtype knowledge_id_type(const struct knowledge_format *f) {
    return f->vocab_size <= 65536 ? DT_U16 : DT_U32;
}

/* Does this batch continue the one before, even across segments? Moves the cursor to its end. */
int knowledge_cursor_step(struct knowledge_cursor *c, const struct stream_batch *head, const uint32_t *lengths,
                          struct err *e) MUST_CHECK;
/* No batch follows. */
int knowledge_cursor_end(const struct knowledge_cursor *c, struct err *e) MUST_CHECK;

/* The rows of this batch alone, as knowledge_decode makes them, but dense ones stay in the batch and are not
 * checked: knowledge_check_dense checks them and names a value that is not finite. */
int knowledge_view(struct knowledge_rows *k, const struct knowledge_format *f, const struct batch *b,
                   struct err *e) MUST_CHECK;
int knowledge_check_dense(const struct knowledge_format *f, const struct batch *b, struct err *e) MUST_CHECK;

#endif
