/* Private to lib/text: shared by the files on corpora. Order, each calling only those before it: corpus_label,
 * corpus_tags, corpus_pack, corpus_fit, corpus. */
#ifndef RILL_CORPUS_INTERNAL_H
#define RILL_CORPUS_INTERNAL_H

#include "lib/text/text.h"

/* Takes the tokens of documents and writes batches. At most one sequence is open, at the end of `tokens`. */
struct packer {
    const struct vocab *v;
    const struct corpus_options *o;
    corpus_write *write;
    void *ctx;
    struct corpus_totals *totals;
    uint32_t *tokens, *lengths; /* the batch: [cap], [cap] */
    uint8_t *mask;              /* [cap], or NULL if neither mask nor token types are wanted */
    uint32_t *labels;           /* [cap]: of closed sequences or, with tags, of positions; or NULL */
    uint8_t last_mark;          /* mask or token type of the last token taken */
    size_t cap, n;
    uint32_t n_seqs;   /* closed ones */
    size_t open_start; /* index in tokens where the open sequence begins */
    uint64_t open_pos; /* number of its positions in batches already written */
    uint64_t first_seq, first_pos;
    uint64_t pack; /* PACKING_NEXT_FIT: positions in the current pack */
    bool open, in_document, eos_due;
    bool full; /* max_tokens is reached: nothing more is taken */
};
int packer_init(struct packer *p, struct err *e) MUST_CHECK; /* v, o, write, ctx and totals must be set */
void packer_release(struct packer *p);
/* mask and tags: [n], or NULL. */
int packer_add(struct packer *p, const uint32_t *ids, const uint8_t *mask, const uint32_t *tags, size_t n,
               struct err *e) MUST_CHECK;
/* `label` is that of the document's sequence. */
int packer_end_document(struct packer *p, uint32_t label, struct err *e) MUST_CHECK;
int packer_finish(struct packer *p, struct err *e) MUST_CHECK;

/* ---- best-fit packing (corpus_fit.c) ---- */

/* Takes whole sequences as a packer writes them, and writes packs of them. */
struct pool;
int pool_new(struct pool **out, const struct corpus_options *o, corpus_write *write, void *ctx,
             struct corpus_totals *totals, struct err *e) MUST_CHECK;
corpus_write pool_add;                                     /* ctx is the pool */
int pool_finish(struct pool *p, struct err *e) MUST_CHECK; /* writes what is left */
void pool_free(struct pool *p);                            /* no-op if NULL */

/* ---- labelled texts (corpus_label.c) ---- */

/* The text of a line, or its two texts, and its class. The texts point into the line or into `memory`. */
struct labelled {
    const char *text[2];
    size_t n[2];
    uint32_t label;
    cJSON *memory;
};
int labelled_read(struct labelled *out, const struct corpus_options *o, const char *line, size_t n,
                  struct err *e) MUST_CHECK;
void labelled_release(struct labelled *x);
/* Parses a class given by name or number. ERR_DATA. */
int label_named(const struct corpus_options *o, const char *name, size_t n, uint32_t *out, struct err *e) MUST_CHECK;
/* Reduces n, the lengths of the two texts in tokens, to what fits. */
void labelled_cut(const struct vocab *v, const struct corpus_options *o, size_t n[2]);
/* Number of EOS tokens between the two texts. */
unsigned labelled_separators(const struct vocab *v);

/* ---- tagged words (corpus_tags.c) ---- */

/* Appends the tokens of a line's words to ids, and to tags (u32) a label for each token: that of the word for its first
 * token, TOKEN_NONE for the others. */
struct text_worker;
int tagged_encode(struct text_worker *w, const struct vocab *v, const struct corpus_options *o, const char *line,
                  size_t n, struct text_ids *ids, struct buf *tags, struct buf *scratch, struct err *e) MUST_CHECK;

#endif
