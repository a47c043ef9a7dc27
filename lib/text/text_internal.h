/* What the files of lib/text share. Nobody else includes this (tests may). */
#ifndef RILL_TEXT_INTERNAL_H
#define RILL_TEXT_INTERNAL_H

#include <pthread.h>

#include "lib/text/text.h"

/* ---- pre-tokenizers (pretokenize.c) ---------------------------------------------------------------------------- */

struct pretokenizer;
struct pre_state; /* one thread's working memory for it */

int pretokenizer_new(struct pretokenizer **out, enum text_pre pre, struct err *e) MUST_CHECK;
void pretokenizer_free(struct pretokenizer *p);
/* Without the just-in-time compiler: what a system that forbids writable code runs. For tests. */
void pretokenizer_interpret(struct pretokenizer *p);
int pre_state_new(struct pre_state **out, const struct pretokenizer *p, struct err *e) MUST_CHECK;
void pre_state_free(struct pre_state *s);

/* The end of the pre-token that begins at `at` < n. text[0..n) is valid UTF-8; `at` is where one begins. */
int pretokenizer_next(const struct pretokenizer *p, struct pre_state *s, const unsigned char *text, size_t n, size_t at,
                      size_t *end, struct err *e) MUST_CHECK;
/* The same without the shortcut for ASCII words: the regular expression alone. For tests. */
int pretokenizer_match(const struct pretokenizer *p, struct pre_state *s, const unsigned char *text, size_t n,
                       size_t at, size_t *end, struct err *e) MUST_CHECK;

/* ---- Unicode (unicode.c) ----------------------------------------------------------------------------------------- */

/* Length of the longest valid UTF-8 at the front; and of the bytes at the front that begin no valid character. */
size_t utf8_valid_prefix(const unsigned char *text, size_t n);
size_t utf8_invalid_prefix(const unsigned char *text, size_t n);
/* Appends text[0..n) in normalisation form C to *out; bytes that are no UTF-8 pass through. `scratch`: working memory. */
int text_nfc(const unsigned char *text, size_t n, struct buf *scratch, struct buf *out, struct err *e) MUST_CHECK;
/* No code point from U+0300 on, hence in form C as it stands, whatever surrounds it. */
bool text_is_low(const unsigned char *text, size_t n);

/* Bytes of white space (Unicode's White_Space) at the end and at the front of text[0..n). */
size_t space_at_end(const unsigned char *text, size_t n);
size_t space_at_start(const unsigned char *text, size_t n);
/* Is the last, the first character a word character (\w of Unicode TR18: letters, marks, digits, connectors)? */
bool word_at_end(const unsigned char *text, size_t n);
bool word_at_start(const unsigned char *text, size_t n);

/* ---- added tokens (added.c) -------------------------------------------------------------------------------------- */

/* A trie over the bytes of the added tokens: children of a node are a list sorted by nothing, they are few. */
struct trie_node {
    uint32_t child, next; /* first child, next sibling; 0: none (the root is nobody's child) */
    uint32_t id;          /* of the token that ends here, or TOKEN_NONE */
    unsigned char byte;
};
struct added {
    struct trie_node *nodes; /* nodes[0] is the root */
    uint32_t n_nodes, max_bytes;
    bool starts[256];
    bool any_flagged; /* a token that looks at what is around it: lstrip, rstrip, single_word */
};
/* Over the tokens with TOKEN_ADDED whose TOKEN_NORMALIZED is `normalised`; memory from v->memory. */
int added_build(struct added *a, struct vocab *v, bool normalised, struct err *e) MUST_CHECK;

struct added_match {
    size_t start, end; /* with the white space it swallows */
    uint32_t id;
};
/* Goes through text[0..n): *at is where to look from (begin with 0), `from` is where the last match ended. */
bool added_next(const struct added *a, const struct vocab *v, const unsigned char *text, size_t n, size_t *at,
                size_t from, bool plain_specials, struct added_match *m);
/* May a cut at p change what is matched, whatever follows text[0..n)? */
bool added_crosses(const struct added *a, const struct vocab *v, const unsigned char *text, size_t n, size_t p);

/* ---- the index of a vocabulary (index.c) ------------------------------------------------------------------------- */

struct merge_slot {
    uint64_t pair;         /* left << 32 | right */
    uint32_t rank, result; /* rank TOKEN_NONE: empty */
};
struct text_index {
    uint32_t *pieces; /* hash table of ids, TOKEN_NONE: empty */
    uint64_t piece_mask;
    struct merge_slot *merges;
    uint64_t merge_mask;
    uint32_t byte_id[256]; /* the token of a single byte, or TOKEN_NONE */
    struct added raw, normalised;
    struct pretokenizer *pre;
    pthread_mutex_t lock;     /* of idle */
    struct text_worker *idle; /* working memory that waits for the next call */
};
/* Both fill v->index from v's tokens, and then its merges, checking them. */
int index_pieces(struct vocab *v, struct err *e) MUST_CHECK;
int index_merges(struct vocab *v, struct err *e) MUST_CHECK;
/* NULL when the two do not merge. */
const struct merge_slot *index_merge(const struct text_index *x, uint32_t left, uint32_t right);
/* As vocab_find, but never an added token: what a merge or ignore_merges may give. */
uint32_t index_find_ordinary(const struct vocab *v, const void *bytes, size_t n);

/* Sets v->digest (vocab.c). */
int vocab_identify(struct vocab *v, struct err *e) MUST_CHECK;

/* ---- one thread's working memory (encode.c) ---------------------------------------------------------------------- */

struct bpe_memory {
    uint64_t *heap;
    struct bpe_symbol *symbols;
    size_t cap; /* symbols; the heap has twice as many */
};
struct cache_entry;
struct text_worker {
    struct text_worker *next; /* in the index's list of idle ones */
    struct pre_state *pre;
    struct bpe_memory bpe;
    struct cache_entry *cache;
    struct buf normal, scratch;
};
int worker_take(struct text_worker **out, const struct vocab *v, struct err *e) MUST_CHECK;
void worker_give(const struct vocab *v, struct text_worker *w);
void worker_free(struct text_worker *w);
int worker_encode(struct text_worker *w, const struct vocab *v, const void *text, size_t n,
                  const struct text_encode_options *o, struct text_ids *ids, struct err *e) MUST_CHECK;
int text_ids_reserve(struct text_ids *ids, size_t extra, struct err *e) MUST_CHECK;

/* ---- merging (bpe.c) --------------------------------------------------------------------------------------------- */

/* Appends the tokens of one pre-token. `trace`, unless NULL, gets the result of every merge that was applied. */
int bpe_merge(const struct vocab *v, struct bpe_memory *m, const unsigned char *bytes, size_t n, struct text_ids *ids,
              struct text_ids *trace, struct err *e) MUST_CHECK;
void bpe_release(struct bpe_memory *m);

#endif
