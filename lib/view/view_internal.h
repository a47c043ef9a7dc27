/* Private to lib/view. Order of files, each calling only those before it: vocab, show. */
#ifndef RILL_VIEW_INTERNAL_H
#define RILL_VIEW_INTERNAL_H

#include "lib/view/view.h"

/* The vocabulary of an item. */
int view_vocab(FILE *out, const struct stream_item *item, struct err *e) MUST_CHECK;

#endif
