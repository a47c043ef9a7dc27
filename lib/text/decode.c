/* Tokens to text, and GPT-2's printable spelling of bytes. */
#include <utf8proc.h>

#include "lib/text/text_internal.h"

int text_decode(const struct vocab *v, const uint32_t *ids, size_t n, bool skip_special, struct buf *out,
                struct err *e) {
    for (size_t i = 0; i < n; i++) {
        if (ids[i] >= v->n_tokens)
            return err_set(e, ERR_DATA, "token %u at position %zu is outside the vocabulary of %u", ids[i], i,
                           v->n_tokens);
        const struct token *t = &v->tokens[ids[i]];
        if (skip_special && (t->flags & TOKEN_SPECIAL)) continue;
        int rc = buf_append(out, t->bytes, t->n_bytes, e);
        if (rc) return rc;
    }
    return 0;
}

/* ---- spelling (bytes_to_unicode in encoder.py of openai/gpt-2): printable bytes are themselves, the others are the
 * code points from U+0100 on, in order ---- */

static bool is_printable(unsigned b) {
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
}

static int32_t byte_to_char(unsigned byte) {
    if (is_printable(byte)) return (int32_t)byte;
    int32_t c = 256;
    for (unsigned b = 0; b < byte; b++) c += !is_printable(b);
    return c;
}

/* -1: not of the alphabet. */
static int char_to_byte(int32_t c) {
    if (c < 256) return is_printable((unsigned)c) ? c : -1;
    for (unsigned b = 0; b < 256; b++)
        if (!is_printable(b) && c-- == 256) return (int)b;
    return -1;
}

int text_spell(const void *bytes, size_t n, struct buf *out, struct err *e) {
    int rc = buf_reserve(out, n, e); /* at least; most are one byte */
    for (size_t i = 0; i < n && !rc; i++) {
        unsigned char utf8[4];
        utf8proc_ssize_t k = utf8proc_encode_char(byte_to_char(((const unsigned char *)bytes)[i]), utf8);
        rc = buf_append(out, utf8, (size_t)k, e);
    }
    return rc;
}

int text_unspell(const char *spelled, size_t n, struct buf *out, struct err *e) {
    size_t before = out->len;
    int rc = buf_reserve(out, n, e);
    if (rc) return rc;
    for (size_t i = 0; i < n;) {
        int32_t c;
        utf8proc_ssize_t k = utf8proc_iterate((const unsigned char *)spelled + i, (utf8proc_ssize_t)(n - i), &c);
        int byte = k > 0 ? char_to_byte(c) : -1;
        if (byte < 0) {
            out->len = before;
            return err_set(e, ERR_DATA, "byte %zu of \"%.*s\" is not of the byte-level alphabet", i,
                           n < 80 ? (int)n : 80, spelled);
        }
        out->data[out->len++] = (unsigned char)byte;
        i += (size_t)k;
    }
    return 0;
}
