/*
 * The parts of Unicode needed for tokenizing: valid UTF-8, normalisation forms, white space and word characters.
 * Categories and decompositions are from utf8proc.
 */
#include <utf8proc.h>

#include "lib/text/text_internal.h"

/* ---- valid and invalid UTF-8 ---- */

/* Length of the first character, 0 if it is invalid. */
static size_t char_bytes(const unsigned char *text, size_t n, int32_t *c) {
    utf8proc_ssize_t took = utf8proc_iterate(text, n < 4 ? (utf8proc_ssize_t)n : 4, c);
    return took > 0 ? (size_t)took : 0;
}

static size_t ascii_prefix(const unsigned char *text, size_t n) {
    size_t i = 0;
    for (uint64_t word; n - i >= sizeof word; i += sizeof word) {
        memcpy(&word, text + i, sizeof word);
        if (word & UINT64_C(0x8080808080808080)) break;
    }
    while (i < n && text[i] < 0x80) i++;
    return i;
}

size_t utf8_valid_prefix(const unsigned char *text, size_t n) {
    size_t i = ascii_prefix(text, n);
    int32_t c;
    for (size_t took; i < n && (took = char_bytes(text + i, n - i, &c)) > 0;)
        i += took + (i + took < n && text[i + took] < 0x80 ? ascii_prefix(text + i + took, n - i - took) : 0);
    return i;
}

size_t utf8_invalid_prefix(const unsigned char *text, size_t n) {
    size_t i = 0;
    int32_t c;
    while (i < n && char_bytes(text + i, n - i, &c) == 0) i++;
    return i;
}

/* ---- normalisation forms (Unicode Standard Annex #15) ----
 *
 * utf8proc_map is not used because it sorts combining marks by swapping neighbours: this is quadratic, and a file of
 * only marks takes hours. Only the decomposition of a character and the composition, both linear, are utf8proc's.
 */
#define LOW_LIMIT  0x300 /* the first combining mark: nothing below it composes with what precedes it */
#define FORM_PIECE 16384

/* Characters with a lead byte below low_lead never change. */
struct form {
    int options;
    unsigned char low_lead;
};
static const struct form forms[] = {
    [NORM_NFC] = {UTF8PROC_STABLE | UTF8PROC_COMPOSE, 0xcc},
    [NORM_NFD] = {UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, 0x80},
    [NORM_NFKC] = {UTF8PROC_STABLE | UTF8PROC_COMPAT | UTF8PROC_COMPOSE, 0x80},
    [NORM_NFKD] = {UTF8PROC_STABLE | UTF8PROC_COMPAT | UTF8PROC_DECOMPOSE, 0x80},
};

static size_t low_prefix(const unsigned char *text, size_t n, unsigned char low_lead) {
    size_t i = 0;
    while (i < n && text[i] < low_lead) i += text[i] < 0x80 ? ascii_prefix(text + i, n - i) : 1;
    return i;
}

bool text_is_low(const unsigned char *text, size_t n) {
    return low_prefix(text, n, forms[NORM_NFC].low_lead) == n;
}

static unsigned combining_class(int32_t c) {
    return (unsigned)utf8proc_get_property(c)->combining_class;
}

/* Stable counting sort of marks by their combining class. */
static void order_marks(int32_t *marks, int32_t *spare, size_t n) {
    size_t start[256] = {0};
    for (size_t i = 0; i < n; i++) start[combining_class(marks[i])]++;
    for (size_t class = 0, at = 0; class < COUNT_OF(start); class ++) {
        size_t count = start[class];
        start[class] = at;
        at += count;
    }
    for (size_t i = 0; i < n; i++) spare[start[combining_class(marks[i])]++] = marks[i];
    memcpy(marks, spare, n * sizeof *marks);
}

static void order_all_marks(int32_t *chars, int32_t *spare, size_t n) {
    for (size_t i = 0, end; i < n; i = end) {
        bool sorted = true;
        for (end = i; end < n && combining_class(chars[end]); end++)
            if (end > i && combining_class(chars[end - 1]) > combining_class(chars[end])) sorted = false;
        if (!sorted) order_marks(chars + i, spare, end - i);
        if (end == i) end++;
    }
}

/* Can a text be cut before this character, and both parts normalised separately? The common cases suffice: below
 * U+0300, ideographs, Hangul syllables. */
static bool begins_anew(int32_t c) {
    return c < LOW_LIMIT || (c >= 0x3400 && c < 0xa000) || (c >= 0xac00 && c <= 0xd7a3);
}

/* Decomposes at least one character, up to the next low one or, after FORM_PIECE bytes, to the next safe cut; returns
 * the number of bytes taken. */
static size_t decompose(const struct form *form, const unsigned char *text, size_t n, struct buf *scratch, int *rc,
                        struct err *e) {
    size_t i = 0;
    scratch->len = 0;
    for (int32_t c; i < n;) {
        size_t took = char_bytes(text + i, n - i, &c);
        if (i && (i < FORM_PIECE ? c < LOW_LIMIT : begins_anew(c))) break;
        int32_t parts[32];
        int boundary = 0; /* only for grapheme breaks: unused, but must not be NULL */
        utf8proc_ssize_t k = utf8proc_decompose_char(c, parts, COUNT_OF(parts), form->options, &boundary);
        if (k < 0 || k > (utf8proc_ssize_t)COUNT_OF(parts)) {
            *rc = err_set(e, ERR_DATA, "cannot normalise U+%04X: %s", (unsigned)c, utf8proc_errmsg(k));
            return 0;
        }
        *rc = buf_append(scratch, parts, (size_t)k * sizeof parts[0], e);
        if (*rc) return 0;
        i += took;
    }
    return i;
}

static int append_chars(const int32_t *chars, size_t n, struct buf *out, struct err *e) {
    int rc = buf_reserve(out, 4 * n, e);
    if (rc) return rc;
    for (size_t i = 0; i < n; i++) out->len += (size_t)utf8proc_encode_char(chars[i], out->data + out->len);
    return 0;
}

/* Normalises valid text: low characters are copied, except the last one, which may compose with what follows; the rest
 * is processed in pieces, to keep working memory small. */
static int form_valid(const struct form *form, const unsigned char *text, size_t n, struct buf *scratch,
                      struct buf *out, struct err *e) {
    for (size_t at = 0; at < n;) {
        size_t low = low_prefix(text + at, n - at, form->low_lead);
        if (low && at + low < n) low -= text[at + low - 1] < 0x80 ? 1 : 2;
        int rc = buf_append(out, text + at, low, e);
        if (rc) return rc;
        at += low;
        if (at == n) break;
        size_t took = decompose(form, text + at, n - at, scratch, &rc, e);
        size_t n_chars = scratch->len / sizeof(int32_t);
        if (!rc) rc = buf_reserve(scratch, scratch->len, e);
        if (rc) return rc;
        int32_t *chars = (int32_t *)(void *)scratch->data;
        order_all_marks(chars, chars + n_chars, n_chars);
        utf8proc_ssize_t left = (utf8proc_ssize_t)n_chars;
        if (form->options & UTF8PROC_COMPOSE) left = utf8proc_normalize_utf32(chars, left, form->options);
        if (left < 0) return err_set(e, ERR_DATA, "cannot normalise: %s", utf8proc_errmsg(left));
        rc = append_chars(chars, (size_t)left, out, e);
        if (rc) return rc;
        at += took;
    }
    return 0;
}

int text_form(enum text_op form, const unsigned char *text, size_t n, struct buf *scratch, struct buf *out,
              struct err *e) {
    for (size_t at = 0; at < n;) {
        size_t good = utf8_valid_prefix(text + at, n - at);
        int rc = form_valid(&forms[form], text + at, good, scratch, out, e);
        if (rc) return rc;
        at += good;
        size_t bad = utf8_invalid_prefix(text + at, n - at);
        rc = buf_append(out, text + at, bad, e);
        if (rc) return rc;
        at += bad;
    }
    return 0;
}

/* ---- white space and word characters next to added tokens, like \s and \w of Rust's regex crate ---- */

/* Unicode's White_Space: in practice unchanged since version 6.3. */
bool char_is_space(int32_t c) {
    return (c >= 9 && c <= 13) || c == ' ' || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) ||
           c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

/* Unicode Technical Standard #18, annex C: alphabetic, marks, decimal digits, connectors, join controls. */
bool char_is_word(int32_t c) {
    if (c == 0x200c || c == 0x200d || (c >= 0x24b6 && c <= 0x24e9)) return true; /* joiners; circled letters */
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC: return true;
    default: return false;
    }
}

/* ---- categories ---- */

bool char_is_number(int32_t c) {
    utf8proc_category_t k = utf8proc_category(c);
    return k == UTF8PROC_CATEGORY_ND || k == UTF8PROC_CATEGORY_NL || k == UTF8PROC_CATEGORY_NO;
}

size_t char_lowercase(int32_t c, int32_t out[2]) {
    out[0] = c == 0x130 ? 'i' : utf8proc_tolower(c); /* the only character that becomes two (SpecialCasing.txt) */
    out[1] = 0x307;
    return c == 0x130 ? 2 : 1;
}

size_t text_char(const unsigned char *text, size_t n, int32_t *c) {
    size_t took = char_bytes(text, n, c);
    if (took) return took;
    *c = -1;
    return 1;
}

int text_put_char(struct buf *out, int32_t c, struct err *e) {
    unsigned char utf8[4];
    return buf_append(out, utf8, (size_t)utf8proc_encode_char(c, utf8), e);
}

/* Length of the last character, 0 if it is invalid. */
static size_t last_char(const unsigned char *text, size_t n, int32_t *c) {
    for (size_t k = 1; k <= 4 && k <= n; k++)
        if (char_bytes(text + n - k, k, c) == k) return k;
    return 0;
}

size_t space_at_end(const unsigned char *text, size_t n) {
    size_t left = n;
    int32_t c;
    for (size_t k; (k = last_char(text, left, &c)) > 0 && char_is_space(c);) left -= k;
    return n - left;
}

size_t space_at_start(const unsigned char *text, size_t n) {
    size_t i = 0;
    int32_t c;
    for (size_t k; i < n && (k = char_bytes(text + i, n - i, &c)) > 0 && char_is_space(c);) i += k;
    return i;
}

bool word_at_end(const unsigned char *text, size_t n) {
    int32_t c;
    return last_char(text, n, &c) > 0 && char_is_word(c);
}

bool word_at_start(const unsigned char *text, size_t n) {
    int32_t c;
    return n > 0 && char_bytes(text, n, &c) > 0 && char_is_word(c);
}
