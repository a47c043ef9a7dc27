/* Private to lib/view. Order of files, each calling only those before it: totals, vocab, rows, list, show; diff is
 * apart. */
#ifndef RILL_VIEW_INTERNAL_H
#define RILL_VIEW_INTERNAL_H

#include "lib/view/view.h"

/* Prints the vocabulary of an item. */
int view_vocab(FILE *out, const struct stream_item *item, struct err *e) MUST_CHECK;

/* A tensor, or the total of all tensors of one name in the batches of a segment. */
struct view_row {
    struct tensor_desc desc;
    uint64_t n, bytes, stored; /* n: number of batches that have it */
    enum stream_codec codec;
};
/* Prints a table of tensors. The columns on storage are omitted if all are stored raw, unless all_columns. */
void view_put_rows(FILE *out, const struct view_row *rows, size_t n, bool all_columns);

/* Parameters and bytes of embedding, attention, ffn, ... of a model. Initialise to {0}. */
enum { VIEW_PARTS = 7 };
struct view_part {
    uint64_t elems, bytes;
};
void view_add_to_parts(struct view_part parts[VIEW_PARTS], const struct view_row *r);
void view_put_parts(FILE *out, const struct view_part parts[VIEW_PARTS]);

#endif
