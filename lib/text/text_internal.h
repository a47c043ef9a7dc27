/*
 * Shared inside lib/text (tests may include it).
 *
 * Order of files, each calling only those before it: unicode_old, unicode, ids, index, charsmap, normalize, words,
 * pretokenize, added, steps, cut, bpe, unigram, wordpiece, encode, decode, vocab, vocab_pack, begin, corpus_mask,
 * corpus_meta, then those in corpus_internal.h.
 */
#ifndef RILL_TEXT_INTERNAL_H
#define RILL_TEXT_INTERNAL_H

#include <pthread.h>

#include "lib/text/text.h"

/* ---- pre-tokenizers (pretokenize.c) ---------------------------------------------------------------------------- */

struct pretokenizer;
struct pre_state; /* working memory of one thread */

int pretokenizer_new(struct pretokenizer **out, enum text_pre pre, struct err *e) MUST_CHECK;
void pretokenizer_free(struct pretokenizer *p);
/* Turns off the just-in-time compiler, as on systems that forbid writable code. For tests. */
void pretokenizer_interpret(struct pretokenizer *p);
int pre_state_new(struct pre_state **out, const struct pretokenizer *p, struct err *e) MUST_CHECK;
void pre_state_free(struct pre_state *s);

/* Finds the end of the pre-token that begins at `at` < n. text[0..n) is valid UTF-8; `at` is a pre-token boundary. */
int pretokenizer_next(const struct pretokenizer *p, struct pre_state *s, const unsigned char *text, size_t n, size_t at,
                      size_t *end, struct err *e) MUST_CHECK;
/* The same without the fast path for ASCII words: the regular expression alone. For tests. */
int pretokenizer_match(const struct pretokenizer *p, struct pre_state *s, const unsigned char *text, size_t n,
                       size_t at, size_t *end, struct err *e) MUST_CHECK;

/* ---- Unicode (unicode.c) ----------------------------------------------------------------------------------------- */

/* Length of the longest valid UTF-8 prefix; and of the longest prefix in which no valid character begins. */
size_t utf8_valid_prefix(const unsigned char *text, size_t n);
size_t utf8_invalid_prefix(const unsigned char *text, size_t n);
/* Appends text[0..n) in a normalisation form (NORM_NFC ... NORM_NFKD) to *out; bytes that are not UTF-8 are copied.
 * `scratch` is working memory. */
int text_form(enum text_op form, const unsigned char *text, size_t n, struct buf *scratch, struct buf *out,
              struct err *e) MUST_CHECK;
/* Decodes the first character of text[0..n), n > 0, and returns its length; *c = -1 and length 1 for an invalid
 * byte. */
size_t text_char(const unsigned char *text, size_t n, int32_t *c);
int text_put_char(struct buf *out, int32_t c, struct err *e) MUST_CHECK;
bool char_is_space(int32_t c);  /* White_Space */
bool char_is_word(int32_t c);   /* \w of Unicode TR18 */
bool char_is_number(int32_t c); /* Nd, Nl, No */
/* unicode_old.c: as in `tokenizers`. */
bool char_is_mark(int32_t c);        /* Mn, Mc, Me */
bool char_is_nonspacing(int32_t c);  /* Mn */
bool char_is_punctuation(int32_t c); /* BERT's: P*, and ASCII but letters, digits, space and control characters */
bool char_is_other(int32_t c);       /* Cc, Cf, Co */
/* Like Rust's char::to_lowercase: gives at most 2 characters. */
size_t char_lowercase(int32_t c, int32_t out[2]);
/* No code point from U+0300 on: then the text is in NFC, whatever surrounds it. */
bool text_is_low(const unsigned char *text, size_t n);

/* Length of the white space (Unicode's White_Space) at the end and at the start of text[0..n). */
size_t space_at_end(const unsigned char *text, size_t n);
size_t space_at_start(const unsigned char *text, size_t n);
/* Is the last, or first, character a word character (\w of Unicode TR18: letters, marks, digits, connectors)? */
bool word_at_end(const unsigned char *text, size_t n);
bool word_at_start(const unsigned char *text, size_t n);

/* ---- steps (steps.c, normalize.c, charsmap.c, words.c) ----------------------------------------------------------- */

#define METASPACE       METASPACE_TEXT
#define METASPACE_BYTES 3

/* ERR_DATA names a step that is unknown, out of order or does not fit the kind. */
int steps_check(const struct vocab *v, struct err *e) MUST_CHECK;
int steps_copy(struct vocab *v, const struct vocab *spec, struct err *e) MUST_CHECK; /* into v->memory */
uint64_t steps_measure(const struct vocab *v);                                       /* size of their record in bytes */
void steps_put(const struct vocab *v, unsigned char **at);
/* Parses all of data[0..n); a and b point into it. */
int steps_get(struct vocab *spec, const unsigned char *data, size_t n, struct arena *memory, struct err *e) MUST_CHECK;

/* Position of a fragment: at the start of its text, or at that of a continuation (text_encode_options.continues). */
struct place {
    bool start, continues;
};
/* Working memory for steps: two buffers used alternately. */
struct step_memory {
    struct buf text[2], scratch;
    struct buf ends[2]; /* size_t: end offsets of words */
};
void step_memory_release(struct step_memory *m);

static inline bool vocab_normalises(const struct vocab *v) {
    return v->nfc || (v->n_steps && v->steps[0].op < WORDS_METASPACE);
}
/* Normalises text[0..n). *out points into m or to the text itself. Clears place->start if the front was removed. */
int normalize(const struct vocab *v, struct step_memory *m, const unsigned char *text, size_t n, struct place *place,
              const unsigned char **out, size_t *n_out, struct err *e) MUST_CHECK;
/* Applies sentencepiece's precompiled map. */
int charsmap_check(const struct text_step *s, struct err *e) MUST_CHECK;
int charsmap_apply(const struct text_step *s, const unsigned char *text, size_t n, struct buf *out,
                   struct err *e) MUST_CHECK;
struct word_list {
    const unsigned char *text;
    const size_t *ends; /* [n]: word i is text[ends[i - 1] .. ends[i]) */
    size_t n;
};
/* Splits a normalised fragment into words; their text and ends are in m (not the m used for normalize) or the
 * caller's. */
int words_cut(const struct vocab *v, struct step_memory *m, const unsigned char *text, size_t n, struct place place,
              struct word_list *out, struct err *e) MUST_CHECK;

/* ---- added tokens (added.c) -------------------------------------------------------------------------------------- */

/* A trie over the bytes of the added tokens. Children are an unsorted list, because there are few. */
struct trie_node {
    uint32_t child, next; /* first child, next sibling; 0: none (the root is never a child) */
    uint32_t id;          /* of the token that ends here, or TOKEN_NONE */
    unsigned char byte;
};
struct added {
    struct trie_node *nodes; /* nodes[0] is the root */
    uint32_t n_nodes, max_bytes;
    bool starts[256];
    bool any_flagged; /* some token depends on its surroundings: lstrip, rstrip, single_word */
};
/* Covers the tokens with TOKEN_ADDED whose TOKEN_NORMALIZED is `normalised`; memory from v->memory. */
int added_build(struct added *a, struct vocab *v, bool normalised, struct err *e) MUST_CHECK;

struct added_match {
    size_t start, end; /* including the white space it absorbs */
    uint32_t id;
};
/* Finds the next match in text[0..n): *at is where to search (0 first), `from` is the end of the last match. */
bool added_next(const struct added *a, const struct vocab *v, const unsigned char *text, size_t n, size_t *at,
                size_t from, bool plain_specials, struct added_match *m);
/* Does an added token end at p? */
bool added_ends_at(const struct added *a, const unsigned char *text, size_t p);
/* Could a cut at p change what is matched, whatever follows text[0..n)? */
bool added_crosses(const struct added *a, const struct vocab *v, const unsigned char *text, size_t n, size_t p);

/* ---- the index of a vocabulary (index.c) ------------------------------------------------------------------------- */

struct merge_slot {
    uint64_t pair;         /* left << 32 | right */
    uint32_t rank, result; /* rank TOKEN_NONE: empty slot */
};
struct text_index {
    uint32_t *pieces; /* hash table of ids; TOKEN_NONE: empty slot */
    uint64_t piece_mask;
    struct merge_slot *merges;
    uint64_t merge_mask;
    uint32_t byte_id[256]; /* token of a single byte, or TOKEN_NONE; other kinds: "<0xHH>" with byte fallback */
    bool all_bytes;        /* every byte has one */
    bool joins_space[256]; /* some piece has U+2581 after a character that ends with this byte */
    bool joins_newline;    /* some piece has a line end and something else */
    bool has_space;        /* U+2581 is a piece */
    uint32_t *sorted;      /* unigram: ids sorted by their bytes ... */
    uint32_t n_sorted;
    uint32_t first[257]; /* ... those that begin with byte b are sorted[first[b] .. first[b + 1]) */
    double unk_score;    /* unigram: score of a character without a piece */
    struct token_text {
        const unsigned char *bytes;
        uint32_t n;
    } * texts; /* [n_tokens]: decoded text; NULL: the tokens' own bytes */
    struct added raw, normalised;
    struct pretokenizer *pre;
    pthread_mutex_t lock;     /* protects idle */
    struct text_worker *idle; /* working memory for later calls */
};
/* Check v's tokens or merges and build the hash tables of v->index. */
int index_pieces(struct vocab *v, struct err *e) MUST_CHECK;
int index_merges(struct vocab *v, struct err *e) MUST_CHECK;
/* NULL if the two do not merge. */
const struct merge_slot *index_merge(const struct text_index *x, uint32_t left, uint32_t right);
/* Like vocab_find, but never a control token: the pieces that a model may produce. */
uint32_t index_find_piece(const struct vocab *v, const void *bytes, size_t n);
/* Derives merges from scores; merges with equal scores share a rank. */
int index_scores(struct vocab *v, struct err *e) MUST_CHECK;
/* The parts of the index specific to a kind. */
int index_kind(struct vocab *v, struct err *e) MUST_CHECK;
int decode_build(struct vocab *v, struct err *e) MUST_CHECK;
/* Like vocab_find, but never an added token: the pieces that a merge or ignore_merges may produce. */
uint32_t index_find_ordinary(const struct vocab *v, const void *bytes, size_t n);

/* Computes v->digest (vocab.c). */
int vocab_identify(struct vocab *v, struct err *e) MUST_CHECK;

/* ---- where a word of BPE over characters or of the unigram model can be split (cut.c) ---- */

bool vocab_parts_at_spaces(const struct vocab *v);
/* For 0 < p < n: is there a U+2581 at p where encoding word[0..p) and word[p..n) separately gives the same tokens? */
bool text_parts_at(const struct vocab *v, const unsigned char *word, size_t n, size_t p);

/* ---- working memory of one thread (encode.c) ---- */

struct bpe_memory {
    uint64_t *heap;
    struct bpe_symbol *symbols;
    size_t cap;            /* capacity in symbols; the heap has twice as many entries */
    struct text_ids first; /* symbols of a word before any merge */
};
struct cache_entry;
struct text_worker {
    struct text_worker *next; /* in the index's list of idle workers */
    struct pre_state *pre;
    struct bpe_memory bpe;
    struct cache_entry *cache;
    struct step_memory normal, words;
    struct buf scratch; /* the lattice of the unigram model; WordPiece: the rest of a word with its prefix */
};
int worker_take(struct text_worker **out, const struct vocab *v, struct err *e) MUST_CHECK;
void worker_give(const struct vocab *v, struct text_worker *w);
void worker_free(struct text_worker *w);
int worker_encode(struct text_worker *w, const struct vocab *v, const void *text, size_t n,
                  const struct text_encode_options *o, struct text_ids *ids, struct err *e) MUST_CHECK;

/* ---- ids (ids.c) ------------------------------------------------------------------------------------------------- */

int text_ids_reserve(struct text_ids *ids, size_t extra, struct err *e) MUST_CHECK;
/* Appends the tokens of a character without a piece: byte pieces, else unk, counted as lost. *fused: follows an unk. */
int fall_back(const struct vocab *v, const unsigned char *bytes, size_t n, bool *fused, struct text_ids *ids,
              struct err *e) MUST_CHECK;

/* ---- merging (bpe.c) --------------------------------------------------------------------------------------------- */

/* Appends the tokens of one pre-token. `trace`, unless NULL, receives the result of every merge applied. */
int bpe_merge(const struct vocab *v, struct bpe_memory *m, const unsigned char *bytes, size_t n, struct text_ids *ids,
              struct text_ids *trace, struct err *e) MUST_CHECK;
void bpe_release(struct bpe_memory *m);

/* ---- unigram.c, wordpiece.c: append the tokens of one word ---- */

/* Builds the part of v->index for the unigram model. */
int unigram_build(struct vocab *v, struct err *e) MUST_CHECK;
int unigram_encode(const struct vocab *v, struct buf *lattice, const unsigned char *word, size_t n,
                   struct text_ids *ids, struct err *e) MUST_CHECK;
int wordpiece_encode(const struct vocab *v, struct buf *scratch, const unsigned char *word, size_t n,
                     struct text_ids *ids, struct err *e) MUST_CHECK;

#endif
