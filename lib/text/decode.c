/* Decodes tokens to text, and converts GPT-2's printable spelling of bytes. */
#include <utf8proc.h>

#include "lib/text/text_internal.h"

/* ---- the text of a token, computed once: the decoder steps that act on single tokens ---- */

static int replace_in(const struct text_step *s, struct buf *text, struct buf *scratch, struct err *e) {
    scratch->len = 0;
    int rc = 0;
    for (size_t at = 0; at < text->len && !rc;) {
        bool hit = text->len - at >= s->n_a && memcmp(text->data + at, s->a, s->n_a) == 0;
        rc = hit ? buf_append(scratch, s->b, s->n_b, e) : buf_append(scratch, text->data + at, 1, e);
        at += hit ? s->n_a : 1;
    }
    const struct buf swap = *text;
    *text = *scratch;
    *scratch = swap;
    return rc;
}

#define STEP(from, to)                                                                                                 \
    {                                                                                                                  \
        .a = (const unsigned char *)(from), .n_a = sizeof(from) - 1, .b = (const unsigned char *)(to),                 \
        .n_b = sizeof(to) - 1                                                                                          \
    }

/* WordPiece's cleanup, in this order. */
static int clean_up(struct buf *text, struct buf *scratch, struct err *e) {
    static const struct text_step known[] = {
        STEP(" .", "."),   STEP(" ?", "?"),     STEP(" !", "!"),     STEP(" ,", ","),
        STEP(" ' ", "'"),  STEP(" n't", "n't"), STEP(" 'm", "'m"),   STEP(" do not", " don't"),
        STEP(" 's", "'s"), STEP(" 've", "'ve"), STEP(" 're", "'re"),
    };
    int rc = 0;
    for (size_t i = 0; i < COUNT_OF(known) && !rc; i++) rc = replace_in(&known[i], text, scratch, e);
    return rc;
}

/* Does the token begin with the prefix inside words? */
static bool is_inside(const struct text_step *s, const struct token *t) {
    return t->n_bytes >= s->n_a && memcmp(t->bytes, s->a, s->n_a) == 0;
}

/* `front`: the token is the first. */
static int token_text(const struct vocab *v, const struct token *t, bool front, struct buf *out, struct buf *scratch,
                      struct err *e) {
    static const struct text_step space = STEP(METASPACE, " "), nothing = STEP(METASPACE, "");
    int rc = 0;
    out->len = 0;
    for (uint32_t i = 0; i < v->n_steps && !rc; i++) {
        const struct text_step *s = &v->steps[i];
        bool inside = s->op == DECODE_WORDPIECE && !front && is_inside(s, t);
        if ((s->op == DECODE_JOIN && !front) || (s->op == DECODE_WORDPIECE && !front && !inside))
            rc = buf_append(out, " ", 1, e);
        if (inside) {
            rc = buf_append(out, t->bytes + s->n_a, t->n_bytes - s->n_a, e);
            return rc || !s->arg ? rc : clean_up(out, scratch, e);
        }
    }
    if (!rc) rc = buf_append(out, t->bytes, t->n_bytes, e);
    for (uint32_t i = 0; i < v->n_steps && !rc; i++) {
        const struct text_step *s = &v->steps[i];
        int byte = s->op == DECODE_BYTES ? text_byte_piece(t) : -1;
        if (s->op == DECODE_REPLACE) rc = replace_in(s, out, scratch, e);
        if (s->op == DECODE_METASPACE) rc = replace_in(front && s->arg ? &nothing : &space, out, scratch, e);
        if (s->op == DECODE_WORDPIECE && s->arg) rc = clean_up(out, scratch, e);
        if (byte < 0) continue;
        out->len = 1;
        out->data[0] = (unsigned char)byte;
    }
    return rc;
}

int decode_build(struct vocab *v, struct err *e) {
    struct buf text = {0}, scratch = {0};
    if (v->kind == TEXT_BYTE_BPE) return 0;
    struct token_text *texts = arena_array(&v->memory, v->n_tokens, sizeof *texts, e);
    int rc = texts ? 0 : e->code;
    for (uint32_t id = 0; id < v->n_tokens && !rc; id++) {
        const struct token *t = &v->tokens[id];
        if (t->flags & TOKEN_UNUSED) continue;
        rc = token_text(v, t, false, &text, &scratch, e);
        unsigned char *copy = rc ? NULL : arena_alloc(&v->memory, text.len, e);
        if (!copy) rc = e->code;
        if (!rc && text.len) memcpy(copy, text.data, text.len);
        if (!rc) texts[id] = (struct token_text){copy, (uint32_t)text.len};
    }
    v->index->texts = texts;
    buf_release(&text);
    buf_release(&scratch);
    return rc;
}

const unsigned char *vocab_text(const struct vocab *v, uint32_t id, uint32_t *n) {
    const struct token *t = &v->tokens[id];
    const struct token_text *text = v->index->texts ? &v->index->texts[id] : NULL;
    *n = t->flags & TOKEN_SPECIAL ? 0 : text ? text->n : t->n_bytes;
    return text ? text->bytes : t->bytes;
}

/* ---- tokens ---- */

static bool front_matters(const struct vocab *v) {
    for (uint32_t i = 0; i < v->n_steps; i++)
        if (v->steps[i].op >= DECODE_METASPACE && v->steps[i].op <= DECODE_JOIN) return true;
    return false;
}

/* Appends the first token of a text. */
static int decode_front(const struct vocab *v, const struct token *t, struct buf *out, struct err *e) {
    struct buf text = {0}, scratch = {0};
    int rc = token_text(v, t, true, &text, &scratch, e);
    if (!rc) rc = buf_append(out, text.data, text.len, e);
    buf_release(&text);
    buf_release(&scratch);
    return rc;
}

static void strip_front(const struct vocab *v, struct buf *out, size_t from) {
    const struct text_step *s = vocab_find_step(v, DECODE_STRIP);
    size_t n = 0;
    while (s && n < s->arg && from + n < out->len && out->data[from + n] == s->a[0]) n++;
    if (!n) return;
    memmove(out->data + from, out->data + from + n, out->len - from - n);
    out->len -= n;
}

static int decode(const struct vocab *v, const uint32_t *ids, size_t n, bool skip_special, bool front, struct buf *out,
                  struct err *e) {
    const struct token_text *texts = v->index->texts;
    size_t from = out->len;
    bool strips = front;
    front = front && front_matters(v);
    for (size_t i = 0; i < n; i++) {
        if (ids[i] >= v->n_tokens)
            return err_set(e, ERR_DATA, "token %u at position %zu is outside the vocabulary of %u", ids[i], i,
                           v->n_tokens);
        const struct token *t = &v->tokens[ids[i]];
        if ((skip_special && (t->flags & TOKEN_SPECIAL)) || (t->flags & TOKEN_UNUSED)) continue;
        int rc = front   ? decode_front(v, t, out, e)
                 : texts ? buf_append(out, texts[ids[i]].bytes, texts[ids[i]].n, e)
                         : buf_append(out, t->bytes, t->n_bytes, e);
        if (rc) return rc;
        front = false;
    }
    if (strips) strip_front(v, out, from);
    return 0;
}

int text_decode(const struct vocab *v, const uint32_t *ids, size_t n, bool skip_special, struct buf *out,
                struct err *e) {
    return decode(v, ids, n, skip_special, true, out, e);
}

int text_decode_on(const struct vocab *v, const uint32_t *ids, size_t n, bool skip_special, struct buf *out,
                   struct err *e) {
    return decode(v, ids, n, skip_special, false, out, e);
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

/* Returns -1 if c is not in the alphabet. */
static int char_to_byte(int32_t c) {
    if (c < 256) return is_printable((unsigned)c) ? c : -1;
    for (unsigned b = 0; b < 256; b++)
        if (!is_printable(b) && c-- == 256) return (int)b;
    return -1;
}

int text_spell(const void *bytes, size_t n, struct buf *out, struct err *e) {
    int rc = buf_reserve(out, n, e); /* a lower bound; most take one byte */
    for (size_t i = 0; i < n && !rc; i++) {
        unsigned char utf8[4];
        utf8proc_ssize_t k = utf8proc_encode_char(byte_to_char(((const unsigned char *)bytes)[i]), utf8);
        rc = buf_append(out, utf8, (size_t)k, e);
    }
    return rc;
}

int vocab_spell(const struct vocab *v, uint32_t id, struct buf *out, struct err *e) {
    const struct token *t = &v->tokens[id];
    if (v->kind == TEXT_BYTE_BPE) return text_spell(t->bytes, t->n_bytes, out, e);
    return buf_append(out, t->bytes, t->n_bytes, e);
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
