/*
 * Private to lib/align: the map of tokens, and the byte offsets of a sequence.
 *
 * Order of files, each calling only those before it: map, spans, align.
 */
#ifndef RILL_ALIGN_INTERNAL_H
#define RILL_ALIGN_INTERNAL_H

#include "lib/align/align.h"

/* map.c: to [teacher->n_tokens] receives the student's equivalent token, or else the first token of its encoding, or
 * TOKEN_NONE. *n counts the former, *begun the latter. */
int align_map(const struct vocab *teacher, const struct vocab *student, uint32_t *to, uint64_t *n, uint64_t *begun,
              struct err *e) MUST_CHECK;
/* Appends the student's tokens for a text; if not `first`, it continues another text. */
int align_encode_text(const struct vocab *student, const void *text, size_t n, bool first, struct text_ids *ids,
                      struct err *e) MUST_CHECK;

/* spans.c: the text of a sequence of tokens, and the byte offset at which each ends. */
struct spans {
    struct buf text; /* bytes */
    struct buf ends; /* u64 [n] */
};
/* Sets *s to the text of n tokens. */
int align_spell(struct spans *s, const struct vocab *v, const uint32_t *tokens, size_t n, struct err *e) MUST_CHECK;
/* Checks that both texts are equal, after removing a leading space that only one of them has, as some tokenizers add
 * it. ERR_DATA. */
int align_check_text(struct spans *a, struct spans *b, struct err *e) MUST_CHECK;
/* For each of b's m tokens, out [m] receives the index of a's token that ends at the same byte, or SIZE_MAX. Several
 * that end at the same byte (control tokens are empty) are paired from the last one backwards. */
void align_pair(const struct spans *a, size_t n, const struct spans *b, size_t m, size_t *out);
/* Appends the student's tokens (u32) for the teacher's, and a mask for them (u8): 0 if all bytes of a token are
 * masked. */
int align_encode(const struct vocab *teacher, const struct vocab *student, const uint32_t *map, const uint32_t *tokens,
                 const uint8_t *mask, size_t n, struct buf *out, struct buf *out_mask, struct err *e) MUST_CHECK;
void align_spans_release(struct spans *s);

static inline const uint64_t *align_ends(const struct spans *s) {
    return (const uint64_t *)s->ends.data;
}

#endif
