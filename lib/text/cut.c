/*
 * Where a text of any length may be cut without changing its tokens: between two words, whatever text surrounds the
 * window, and such that the words before the cut stay the same if the text ends there.
 *
 * The expressions of pretokenize.c do not look back before a word. They look ahead by one character, and only after
 * white space: `\s+(?!\S)` leaves the last of several spaces to the next word, but not at the end of a text. So a cut
 * after a single line end is safe, a cut after two of them is not.
 *
 * Between which characters does a word always end? Let L be a letter, N a number, R one of \r and \n, S other white
 * space, P the rest. In all four expressions
 *     after L   a run of letters continues only with letters;
 *     after N   likewise with numbers;
 *     after P   S and N begin a new word (R does not: punctuation includes the line ends after it);
 *     after R   L, N and P begin a new word (white space does not).
 */
#include <utf8proc.h>

#include "lib/text/text_internal.h"

enum char_class { CLASS_UNKNOWN, CLASS_L, CLASS_N, CLASS_P, CLASS_R, CLASS_S };

/* Classifies only characters that exist since Unicode 3 and start a new composition: then it does not matter how PCRE2
 * classifies new scripts, and the cut is also one of the normalised text. Few texts go long without such characters. */
static enum char_class classify(int32_t c) {
    if (c < 0x80) {
        if (c == '\n' || c == '\r') return CLASS_R;
        if (c == ' ' || c == '\t' || c == '\v' || c == '\f') return CLASS_S;
        if (c >= '0' && c <= '9') return CLASS_N;
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ? CLASS_L : CLASS_P;
    }
    static const struct {
        int32_t first, last;
        enum char_class class;
    } known[] = {
        {0xc0, 0xd6, CLASS_L},     {0xd8, 0xf6, CLASS_L},     {0xf8, 0x17f, CLASS_L},    /* Latin */
        {0x391, 0x3a1, CLASS_L},   {0x3b1, 0x3c9, CLASS_L},   {0x410, 0x44f, CLASS_L},   /* Greek, Cyrillic */
        {0x5d0, 0x5ea, CLASS_L},   {0x627, 0x63a, CLASS_L},   {0x641, 0x64a, CLASS_L},   /* Hebrew, Arabic */
        {0x905, 0x939, CLASS_L},   {0xe01, 0xe30, CLASS_L},                              /* Devanagari, Thai */
        {0x2010, 0x2027, CLASS_P}, {0x3001, 0x3003, CLASS_P}, {0x3008, 0x3011, CLASS_P}, /* dashes, quotes, brackets */
        {0x3041, 0x3094, CLASS_L}, {0x30a1, 0x30fa, CLASS_L}, {0x4e00, 0x9fa5, CLASS_L}, /* kana, ideographs */
        {0xac00, 0xd7a3, CLASS_L}, {0xff01, 0xff0f, CLASS_P}, {0xff1a, 0xff1f, CLASS_P}, /* Hangul, full width */
    };
    for (size_t i = 0; i < COUNT_OF(known); i++)
        if (c >= known[i].first && c <= known[i].last) return known[i].class;
    return CLASS_UNKNOWN;
}

static bool word_ends_between(enum char_class before, enum char_class after) {
    if (before == CLASS_UNKNOWN || after == CLASS_UNKNOWN) return false;
    switch (before) {
    case CLASS_L:
    case CLASS_N: return after != before;
    case CLASS_P: return after == CLASS_S || after == CLASS_N;
    case CLASS_R: return after == CLASS_L || after == CLASS_N || after == CLASS_P;
    default: return false;
    }
}

/* Class of the character at `at`, if it is complete. */
static enum char_class class_at(const unsigned char *text, size_t n, size_t at) {
    int32_t c;
    utf8proc_ssize_t k = utf8proc_iterate(text + at, (utf8proc_ssize_t)(n - at < 4 ? n - at : 4), &c);
    return k > 0 ? classify(c) : CLASS_UNKNOWN;
}

static enum char_class class_before(const unsigned char *text, size_t at) {
    for (size_t k = 1; k <= 4 && k <= at; k++) {
        int32_t c;
        if ((text[at - k] & 0xc0) == 0x80) continue;
        return utf8proc_iterate(text + at - k, (utf8proc_ssize_t)k, &c) == (utf8proc_ssize_t)k ? classify(c)
                                                                                               : CLASS_UNKNOWN;
    }
    return CLASS_UNKNOWN;
}

/* Does the text end with several white space characters, or possibly so? */
static bool ends_in_spaces(const unsigned char *text, size_t n) {
    enum char_class last = class_before(text, n);
    if (last != CLASS_R && last != CLASS_S) return false;
    enum char_class before = n > 1 ? class_before(text, n - 1) : CLASS_UNKNOWN;
    return before != CLASS_L && before != CLASS_N && before != CLASS_P;
}

/* Tokens matched in normalised text are searched for here in raw text, so the two must be equal within the reach of
 * such a token. */
static bool is_low_around(const struct vocab *v, const unsigned char *text, size_t n, size_t p) {
    size_t reach = v->index->normalised.max_bytes;
    if (!v->nfc || !reach) return true;
    return n - p > reach && text_is_low(text + (p > reach ? p - reach : 0), (p > reach ? reach : p) + reach + 1);
}

/* ---- the other kinds: words are split by steps ---- */

/* A word of BPE or of the unigram model, which may be a whole text, can be split before a space if no piece has a space
 * after the preceding character. Two unknown characters must not meet there. Not with f32 sums: they depend on what
 * came before. */
bool vocab_parts_at_spaces(const struct vocab *v) {
    return (v->kind == TEXT_CHAR_BPE || v->kind == TEXT_UNIGRAM) && v->index->has_space &&
           !(v->model_flags & MODEL_FLOAT_SUMS);
}

bool text_parts_at(const struct vocab *v, const unsigned char *word, size_t n, size_t p) {
    if (word[p] != (unsigned char)METASPACE[0] || n - p < METASPACE_BYTES) return false;
    if (memcmp(word + p, METASPACE, METASPACE_BYTES) != 0 || v->index->joins_space[word[p - 1]]) return false;
    return p < METASPACE_BYTES || memcmp(word + p - METASPACE_BYTES, METASPACE, METASPACE_BYTES) != 0;
}

static bool cuts_at_white_space(const struct vocab *v) {
    return vocab_find_step(v, WORDS_WHITESPACE_SPLIT) || vocab_find_step(v, WORDS_BERT) ||
           vocab_find_step(v, WORDS_WHITESPACE);
}

/* Does the normaliser map line ends, letters and digits to themselves in any context? */
static bool keeps_lines(const struct vocab *v) {
    for (uint32_t i = 0; i < v->n_steps; i++) {
        uint32_t op = v->steps[i].op;
        if (op == NORM_STRIP || op == NORM_CHARSMAP || op == NORM_SPACES || op == NORM_COLLAPSE) return false;
        if (op == NORM_REPLACE && !(v->steps[i].n_a == 1 && v->steps[i].a[0] == ' ')) return false;
    }
    return true;
}

static bool replaces_words(const struct vocab *v) {
    for (uint32_t i = 0; i < v->n_steps; i++) {
        const struct text_step *s = &v->steps[i];
        if (s->op == NORM_REPLACE && memchr(s->a, ' ', s->n_a) && s->n_a > 1) return true;
        if (s->op == WORDS_SPLIT && s->n_a > 1 && memchr(s->a, ' ', s->n_a)) return true;
    }
    return false;
}

static bool is_plain(unsigned char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* Is p the space between two ASCII letters or digits? No normaliser looks across it, and the second part begins with a
 * space, so that it lacks no prefix. The letter before it may change when normalised. */
static bool parts_before_space(const struct vocab *v, const unsigned char *text, size_t n, size_t p) {
    if (text[p] != ' ' || p + 1 >= n || !is_plain(text[p - 1]) || !is_plain(text[p + 1])) return false;
    if (cuts_at_white_space(v) || v->kind == TEXT_WORDPIECE) return cuts_at_white_space(v);
    const struct text_step *m = vocab_find_step(v, WORDS_METASPACE);
    if (m && (m->arg & METASPACE_SPLIT)) return true;
    if (!v->index->has_space) return false;
    for (int b = 0; b < 256 && !keeps_lines(v); b++)
        if (v->index->joins_space[b]) return false;
    unsigned char lower = (unsigned char)(text[p - 1] | 0x20);
    return !v->index->joins_space[text[p - 1]] && !v->index->joins_space[lower];
}

/* Is p after a line end, with a letter or digit of a known script next? */
static bool parts_after_line(const struct vocab *v, const unsigned char *text, size_t n, size_t p) {
    if (text[p - 1] != '\n' || !keeps_lines(v)) return false;
    enum char_class next = class_at(text, n, p);
    if (next != CLASS_L && next != CLASS_N) return false;
    if (cuts_at_white_space(v)) return true;
    bool known = index_find_piece(v, "\n", 1) != TOKEN_NONE || v->index->byte_id['\n'] != TOKEN_NONE;
    return (v->kind == TEXT_CHAR_BPE || v->kind == TEXT_UNIGRAM) && known && !v->index->joins_newline;
}

/* Is there a token matched in normalised text that may span a space between letters? Raw text cannot be searched for
 * it. */
static bool has_spaced_token(const struct vocab *v) {
    for (uint32_t id = 0; id < v->n_tokens; id++) {
        const struct token *t = &v->tokens[id];
        bool plain = false, space = false;
        if (!(t->flags & TOKEN_NORMALIZED) || !(t->flags & TOKEN_ADDED)) continue;
        for (uint32_t i = 0; i < t->n_bytes; i++) {
            plain = plain || is_plain(t->bytes[i]);
            space = space || t->bytes[i] == ' ' || t->bytes[i] == (unsigned char)METASPACE[0];
        }
        if (plain && space) return true;
    }
    return false;
}

static size_t safe_cut_of_words(const struct vocab *v, const unsigned char *text, size_t n) {
    const struct text_index *x = v->index;
    if (replaces_words(v) || (x->normalised.n_nodes && (x->normalised.any_flagged || has_spaced_token(v)))) return 0;
    for (size_t p = n; p-- > 1;) {
        if (!parts_before_space(v, text, n, p) && !parts_after_line(v, text, n, p)) continue;
        if (added_crosses(&x->raw, v, text, n, p) || added_ends_at(&x->raw, text, p)) continue;
        if (added_crosses(&x->normalised, v, text, n, p) || added_ends_at(&x->normalised, text, p)) continue;
        return p;
    }
    return 0;
}

size_t text_safe_cut(const struct vocab *v, const void *data, size_t n) {
    const unsigned char *text = data;
    const struct text_index *x = v->index;
    if (v->kind != TEXT_BYTE_BPE) return safe_cut_of_words(v, text, n);
    bool prefix = vocab_find_step(v, WORDS_PREFIX_SPACE);
    for (size_t p = n; p-- > 1;) {
        if ((text[p] & 0xc0) == 0x80) continue; /* inside a character */
        if (!word_ends_between(class_before(text, p), class_at(text, n, p)) || ends_in_spaces(text, p)) continue;
        if (added_crosses(&x->raw, v, text, n, p) || added_crosses(&x->normalised, v, text, n, p)) continue;
        if (prefix && (added_ends_at(&x->raw, text, p) || added_ends_at(&x->normalised, text, p))) continue;
        if (v->n_steps && v->steps[0].op < WORDS_METASPACE && !(is_plain(text[p - 1]) && text[p] == ' ')) continue;
        if (is_low_around(v, text, n, p)) return p;
    }
    return 0;
}
