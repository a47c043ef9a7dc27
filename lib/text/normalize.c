/* Normalises a fragment of text before it is split into words, applying the normaliser's steps in order. */
#include "lib/text/text_internal.h"

/* ---- character by character ---- */

typedef int map_char(int32_t c, const struct text_step *s, struct buf *out, struct err *e);

/* Invalid UTF-8 is copied. */
static int map_chars(map_char *fn, const struct text_step *s, const unsigned char *text, size_t n, struct buf *out,
                     struct err *e) {
    int rc = buf_reserve(out, n, e);
    for (size_t i = 0, took; i < n && !rc; i += took) {
        int32_t c;
        took = text_char(text + i, n - i, &c);
        rc = c < 0 ? buf_append(out, text + i, took, e) : fn(c, s, out, e);
    }
    return rc;
}

static int lowercase(int32_t c, const struct text_step *s, struct buf *out, struct err *e) {
    int32_t to[2];
    size_t n = char_lowercase(c, to);
    int rc = 0;
    (void)s;
    for (size_t i = 0; i < n && !rc; i++) rc = text_put_char(out, to[i], e);
    return rc;
}

static int drop_marks(int32_t c, const struct text_step *s, struct buf *out, struct err *e) {
    (void)s;
    return char_is_mark(c) ? 0 : text_put_char(out, c, e);
}

static int drop_nonspacing(int32_t c, const struct text_step *s, struct buf *out, struct err *e) {
    (void)s;
    return char_is_nonspacing(c) ? 0 : text_put_char(out, c, e);
}

/* ---- BERT's normaliser (tokenization.py of google-research/bert, as implemented in `tokenizers`) ---- */

static bool is_control(int32_t c) {
    return c != '\t' && c != '\n' && c != '\r' && char_is_other(c);
}

static bool is_ideograph(int32_t c) {
    return (c >= 0x4e00 && c <= 0x9fff) || (c >= 0x3400 && c <= 0x4dbf) || (c >= 0x20000 && c <= 0x2a6df) ||
           (c >= 0x2a700 && c <= 0x2b73f) || (c >= 0x2b740 && c <= 0x2b81f) || (c >= 0x2b920 && c <= 0x2ceaf) ||
           (c >= 0xf900 && c <= 0xfaff) || (c >= 0x2f800 && c <= 0x2fa1f);
}

static int clean(int32_t c, const struct text_step *s, struct buf *out, struct err *e) {
    (void)s;
    if (c == 0 || c == 0xfffd || is_control(c)) return 0;
    return text_put_char(out, char_is_space(c) ? ' ' : c, e);
}

static int space_ideographs(int32_t c, const struct text_step *s, struct buf *out, struct err *e) {
    (void)s;
    if (!is_ideograph(c)) return text_put_char(out, c, e);
    int rc = buf_append(out, " ", 1, e);
    if (!rc) rc = text_put_char(out, c, e);
    return rc ? rc : buf_append(out, " ", 1, e);
}

/* ---- strings ---- */

static int replace(const struct text_step *s, const unsigned char *text, size_t n, struct buf *out, struct err *e) {
    int rc = 0;
    for (size_t at = 0; at < n && !rc;) {
        const unsigned char *hit = s->n_a ? memmem(text + at, n - at, s->a, s->n_a) : NULL;
        size_t before = hit ? (size_t)(hit - text) - at : n - at;
        rc = buf_append(out, text + at, before, e);
        if (!rc && hit) rc = buf_append(out, s->b, s->n_b, e);
        at += before + (hit ? s->n_a : 0);
    }
    return rc;
}

static int prepend(const struct text_step *s, const unsigned char *text, size_t n, const struct place *place,
                   struct buf *out, struct err *e) {
    bool wanted = n && !place->continues && (place->start || !s->arg);
    int rc = wanted ? buf_append(out, s->a, s->n_a, e) : 0;
    return rc ? rc : buf_append(out, text, n, e);
}

static int strip(const struct text_step *s, const unsigned char *text, size_t n, struct place *place, struct buf *out,
                 struct err *e) {
    size_t front = (s->arg & 1) && !place->continues ? space_at_start(text, n) : 0;
    size_t back = s->arg & 2 ? space_at_end(text + front, n - front) : 0;
    if (front) place->start = false;
    return buf_append(out, text + front, n - front - back, e);
}

static int collapse(const struct text_step *s, const unsigned char *text, size_t n, struct buf *out, struct err *e) {
    int rc = 0;
    for (size_t i = 0, run; i < n && !rc; i += run) {
        for (run = 0; i + run < n && text[i + run] == ' ';) run++;
        if (run > 1) {
            rc = buf_append(out, s->b, s->n_b, e);
            continue;
        }
        while (i + run < n && (text[i + run] != ' ' || i + run + 1 == n || text[i + run + 1] != ' ')) run++;
        rc = buf_append(out, text + i, run, e);
    }
    return rc;
}

static bool ends_with(const unsigned char *text, size_t n, const char *what, size_t n_what) {
    return n >= n_what && memcmp(text + n - n_what, what, n_what) == 0;
}

/* Removes spaces at the front and the end, and all but one of consecutive spaces (normalizer.cc of
 * google/sentencepiece). */
static int spaces(const unsigned char *text, size_t n, const struct place *place, struct buf *out, struct err *e) {
    bool after_space = !place->continues;
    size_t from = out->len;
    int rc = buf_reserve(out, n, e);
    for (size_t i = 0; i < n && !rc; i++) {
        if (text[i] == ' ' && after_space) continue;
        after_space = text[i] == ' ';
        out->data[out->len++] = text[i];
    }
    while (out->len > from) {
        if (ends_with(out->data + from, out->len - from, " ", 1))
            out->len--;
        else if (ends_with(out->data + from, out->len - from, METASPACE, METASPACE_BYTES))
            out->len -= METASPACE_BYTES;
        else
            break;
    }
    return rc;
}

/* ---- applying the steps ---- */

static struct buf *other(const struct step_memory *m, const unsigned char *text) {
    return (struct buf *)(text == m->text[0].data ? &m->text[1] : &m->text[0]);
}

static int bert(const struct text_step *s, struct step_memory *m, const unsigned char **text, size_t *n,
                struct err *e) {
    static const struct {
        uint32_t flag;
        map_char *fn;
    } parts[] = {{BERT_CLEAN, clean},
                 {BERT_CHINESE, space_ideographs},
                 {BERT_ACCENTS, NULL},
                 {BERT_ACCENTS, drop_nonspacing},
                 {BERT_LOWERCASE, lowercase}};
    for (size_t i = 0; i < COUNT_OF(parts); i++) {
        if (!(s->arg & parts[i].flag)) continue;
        struct buf *out = other(m, *text);
        out->len = 0;
        int rc = parts[i].fn ? map_chars(parts[i].fn, s, *text, *n, out, e)
                             : text_form(NORM_NFD, *text, *n, &m->scratch, out, e);
        if (rc) return rc;
        *text = out->data;
        *n = out->len;
    }
    return 0;
}

static int apply(const struct text_step *s, struct step_memory *m, const unsigned char *text, size_t n,
                 struct place *place, struct buf *out, struct err *e) {
    switch (s->op) {
    case NORM_NFC:
    case NORM_NFD:
    case NORM_NFKC:
    case NORM_NFKD: return text_form((enum text_op)s->op, text, n, &m->scratch, out, e);
    case NORM_LOWERCASE: return map_chars(lowercase, s, text, n, out, e);
    case NORM_STRIP_ACCENTS: return map_chars(drop_marks, s, text, n, out, e);
    case NORM_STRIP: return strip(s, text, n, place, out, e);
    case NORM_REPLACE: return replace(s, text, n, out, e);
    case NORM_PREPEND: return prepend(s, text, n, place, out, e);
    case NORM_CHARSMAP: return charsmap_apply(s, text, n, out, e);
    case NORM_COLLAPSE: return collapse(s, text, n, out, e);
    case NORM_SPACES: return spaces(text, n, place, out, e);
    default: return err_set(e, ERR_DATA, "step %u is not a normaliser", s->op);
    }
}

/* sentencepiece reads a byte that is not UTF-8 as U+FFFD, before anything else. */
static int replace_bad(const unsigned char *text, size_t n, struct buf *out, struct err *e) {
    int rc = 0;
    for (size_t at = 0; at < n && !rc;) {
        size_t good = utf8_valid_prefix(text + at, n - at);
        rc = buf_append(out, text + at, good, e);
        at += good;
        size_t bad = utf8_invalid_prefix(text + at, n - at);
        for (size_t i = 0; i < bad && !rc; i++) rc = text_put_char(out, 0xfffd, e);
        at += bad;
    }
    return rc;
}

int normalize(const struct vocab *v, struct step_memory *m, const unsigned char *text, size_t n, struct place *place,
              const unsigned char **out, size_t *n_out, struct err *e) {
    static const struct text_step nfc = {.op = NORM_NFC};
    int rc = 0;
    if ((v->model_flags & MODEL_REPLACE_BAD) && utf8_valid_prefix(text, n) < n) {
        struct buf *to = other(m, text);
        to->len = 0;
        rc = replace_bad(text, n, to, e);
        text = to->data;
        n = to->len;
    }
    for (uint32_t i = 0; !rc && (i < v->n_steps || (v->nfc && !i)); i++) {
        const struct text_step *s = v->nfc && !i ? &nfc : &v->steps[i];
        if (s == &nfc && text_is_low(text, n)) break;
        if (s->op >= WORDS_METASPACE) break;
        if (s->op == NORM_BERT) {
            rc = bert(s, m, &text, &n, e);
            continue;
        }
        struct buf *to = other(m, text);
        to->len = 0;
        rc = apply(s, m, text, n, place, to, e);
        text = to->data;
        n = to->len;
        if (s == &nfc) break;
    }
    *out = text;
    *n_out = n;
    return rc;
}

void step_memory_release(struct step_memory *m) {
    for (int i = 0; i < 2; i++) {
        buf_release(&m->text[i]);
        buf_release(&m->ends[i]);
    }
    buf_release(&m->scratch);
}
