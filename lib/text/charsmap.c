/*
 * sentencepiece's precompiled character map: a double-array trie (Aoe 1989, in the layout of darts-clone) from UTF-8 to
 * offsets of NUL-terminated replacements. sentencepiece takes the longest match; Hugging Face's `tokenizers` works on
 * grapheme clusters and takes the shortest one, and that is the meaning of a tokenizer.json.
 */
#include <utf8proc.h>

#include "lib/text/text_internal.h"

#define SHORT_GRAPHEME 6 /* `tokenizers` looks up whole clusters of fewer bytes */

struct charsmap {
    const unsigned char *units, *texts;
    size_t n_units, n_texts;
};

static uint32_t u32_at(const unsigned char *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static bool charsmap_open(const struct text_step *s, struct charsmap *m) {
    uint32_t bytes = s->n_a >= 4 ? u32_at(s->a) : 0;
    if (bytes < 4 || bytes % 4 || bytes > s->n_a - 4) return false;
    *m = (struct charsmap){s->a + 4, s->a + 4 + bytes, bytes / 4, s->n_a - 4 - bytes};
    return true;
}

int charsmap_check(const struct text_step *s, struct err *e) {
    struct charsmap m;
    if (!charsmap_open(s, &m)) return err_set(e, ERR_DATA, "the precompiled charsmap is cut or damaged");
    if (m.n_texts && m.texts[m.n_texts - 1]) return err_set(e, ERR_DATA, "the precompiled charsmap has no end");
    return 0;
}

/* An offset outside the array means no match: a damaged map is harmless. */
static bool charsmap_unit(const struct charsmap *m, size_t at, uint32_t *unit) {
    if (at >= m->n_units) return false;
    *unit = u32_at(m->units + 4 * at);
    return true;
}

static size_t unit_offset(uint32_t unit) {
    return (size_t)(unit >> 10) << ((unit & 1u << 9) >> 6);
}

/* Returns the length of the match at the start of text[0..n), 0 if none; *value is the offset of its replacement. */
static size_t charsmap_match(const struct charsmap *m, const unsigned char *text, size_t n, bool longest,
                             uint32_t *value) {
    uint32_t unit, leaf;
    size_t best = 0, at = 0;
    if (!charsmap_unit(m, 0, &unit)) return 0;
    at ^= unit_offset(unit);
    for (size_t i = 0; i < n && text[i]; i++) {
        at ^= text[i];
        if (!charsmap_unit(m, at, &unit) || (unit & 0x800000ffu) != text[i]) return best;
        at ^= unit_offset(unit);
        if (!(unit >> 8 & 1)) continue;
        if (!charsmap_unit(m, at, &leaf)) return best;
        *value = leaf & 0x7fffffffu;
        best = i + 1;
        if (!longest) return best;
    }
    return best;
}

static int put_replacement(const struct charsmap *m, uint32_t value, struct buf *out, struct err *e) {
    if (value >= m->n_texts) return 0;
    const unsigned char *end = memchr(m->texts + value, 0, m->n_texts - value);
    return buf_append(out, m->texts + value, end ? (size_t)(end - m->texts) - value : 0, e);
}

static int map_longest(const struct charsmap *m, const unsigned char *text, size_t n, struct buf *out, struct err *e) {
    int rc = 0;
    for (size_t i = 0, took; i < n && !rc; i += took) {
        uint32_t value;
        int32_t c;
        took = charsmap_match(m, text + i, n - i, true, &value);
        if (took) {
            rc = put_replacement(m, value, out, e);
            continue;
        }
        took = text_char(text + i, n - i, &c);
        rc = buf_append(out, text + i, took, e);
    }
    return rc;
}

/* Length of the first grapheme cluster. */
static size_t cluster(const unsigned char *text, size_t n) {
    int32_t c, next, state = 0;
    size_t i = text_char(text, n, &c);
    while (c >= 0 && i < n) {
        size_t took = text_char(text + i, n - i, &next);
        if (next < 0 || utf8proc_grapheme_break_stateful(c, next, &state)) break;
        c = next;
        i += took;
    }
    return i;
}

static int map_cluster(const struct charsmap *m, const unsigned char *text, size_t n, struct buf *out, struct err *e) {
    uint32_t value;
    if (n < SHORT_GRAPHEME && charsmap_match(m, text, n, false, &value)) return put_replacement(m, value, out, e);
    int rc = 0;
    for (size_t i = 0, took; i < n && !rc; i += took) {
        int32_t c;
        took = text_char(text + i, n - i, &c);
        rc = charsmap_match(m, text + i, took, false, &value) ? put_replacement(m, value, out, e)
                                                              : buf_append(out, text + i, took, e);
    }
    return rc;
}

int charsmap_apply(const struct text_step *s, const unsigned char *text, size_t n, struct buf *out, struct err *e) {
    struct charsmap m;
    if (!charsmap_open(s, &m)) return charsmap_check(s, e);
    if (s->arg) return map_longest(&m, text, n, out, e);
    int rc = 0;
    for (size_t i = 0, took; i < n && !rc; i += took) {
        took = cluster(text + i, n - i);
        rc = map_cluster(&m, text + i, took, out, e);
    }
    return rc;
}
