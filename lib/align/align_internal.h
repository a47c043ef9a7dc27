/*
 * Shared inside lib/align: the map of tokens, a sequence laid over its bytes.
 *
 * Order of files, each calling only those before it: map, spans, align.
 */
#ifndef RILL_ALIGN_INTERNAL_H
#define RILL_ALIGN_INTERNAL_H

#include "lib/align/align.h"

/* map.c: to [teacher->n_tokens], the student's token that says the same, or with which it begins, or TOKEN_NONE. How many there are of
 * the former in *n, of the latter in *begun. */
int align_map(const struct vocab *teacher, const struct vocab *student, uint32_t *to, uint64_t *n, uint64_t *begun,
              struct err *e) MUST_CHECK;
/* Appends the student's tokens for a text, which goes on where another ended if it is not the `first`. */
int align_encode_text(const struct vocab *student, const void *text, size_t n, bool first, struct text_ids *ids,
                      struct err *e) MUST_CHECK;

/* spans.c: tokens, and the byte of the text at which each ends. */
struct spans {
    struct buf text; /* bytes */
    struct buf ends; /* u64 [n] */
};
/* The text of n tokens. */
int align_spell(struct spans *s, const struct vocab *v, const uint32_t *tokens, size_t n, struct err *e) MUST_CHECK;
/* Both are the same text: a space in front that only one of them has, as tokenizers of words put it there, is taken away. ERR_DATA. */
int align_check_text(struct spans *a, struct spans *b, struct err *e) MUST_CHECK;
/* Which of a's n tokens ends where b's token j does, for each of b's m, or SIZE_MAX. Several that end at one byte (control tokens have
 * none of their own) are taken in pairs from the last one backwards. out [m]. */
void align_pair(const struct spans *a, size_t n, const struct spans *b, size_t m, size_t *out);
/* Appends the student's tokens for the teacher's, u32, and a mask for them, u8: 0 where all of a token's bytes are masked. */
int align_encode(const struct vocab *teacher, const struct vocab *student, const uint32_t *map, const uint32_t *tokens,
                 const uint8_t *mask, size_t n, struct buf *out, struct buf *out_mask, struct err *e) MUST_CHECK;
void align_spans_release(struct spans *s);

static inline const uint64_t *align_ends(const struct spans *s) {
    return (const uint64_t *)s->ends.data;
}

#endif
