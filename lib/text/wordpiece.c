/*
 * WordPiece (Schuster and Nakajima 2012; tokenization.py of google-research/bert): repeatedly takes the longest piece
 * that matches at the current position of a word; pieces inside the word are looked up with a prefix. A word that
 * cannot be completed is unknown.
 */
#include "lib/text/text_internal.h"

static size_t count_characters(const unsigned char *word, size_t n) {
    size_t count = 0;
    for (size_t i = 0, took; i < n; i += took, count++) {
        int32_t c;
        took = text_char(word + i, n - i, &c);
    }
    return count;
}

/* Finds the longest piece that consists of the prefix and bytes of the word after it. *took: its bytes of the word. */
static uint32_t longest_piece(const struct vocab *v, const unsigned char *text, size_t n_prefix, size_t n,
                              size_t *took) {
    for (size_t end = n; end > 0; end--) {
        if (end < n && (text[n_prefix + end] & 0xc0) == 0x80) continue; /* inside a character */
        uint32_t id = index_find_piece(v, text, n_prefix + end);
        *took = end;
        if (id != TOKEN_NONE) return id;
    }
    return TOKEN_NONE;
}

int wordpiece_encode(const struct vocab *v, struct buf *scratch, const unsigned char *word, size_t n,
                     struct text_ids *ids, struct err *e) {
    const struct text_step *s = vocab_find_step(v, MODEL_WORDPIECE);
    size_t before = ids->n, at = 0, took = 0;
    int rc = text_ids_reserve(ids, n + 1, e);
    bool bad = n / 4 > s->arg || count_characters(word, n) > s->arg;
    while (at < n && !bad && !rc) {
        const unsigned char *text = word;
        if (at) {
            scratch->len = 0;
            rc = buf_append(scratch, s->a, s->n_a, e);
            if (!rc) rc = buf_append(scratch, word + at, n - at, e);
            if (rc) return rc;
            text = scratch->data;
        }
        uint32_t id = longest_piece(v, text, at ? s->n_a : 0, n - at, &took);
        bad = id == TOKEN_NONE;
        if (!bad) ids->ids[ids->n++] = id;
        at += took;
    }
    if (rc || !bad) return rc;
    ids->n = before;
    ids->n_lost += n;
    ids->ids[ids->n++] = v->unk;
    return 0;
}
