/* The byte offsets of two tokenizations of a text. */
#include <string.h>

#include "lib/align/align_internal.h"

int align_spell(struct spans *s, const struct vocab *v, const uint32_t *tokens, size_t n, struct err *e) {
    s->text.len = s->ends.len = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t n_bytes;
        const unsigned char *bytes = vocab_text(v, tokens[i], &n_bytes);
        if (buf_append(&s->text, bytes, n_bytes, e)) return e->code;
        uint64_t end = s->text.len;
        if (buf_append(&s->ends, &end, sizeof end, e)) return e->code;
    }
    return 0;
}

void align_spans_release(struct spans *s) {
    buf_release(&s->text);
    buf_release(&s->ends);
}

/* Removes a leading space. */
static void drop_space(struct spans *s) {
    uint64_t *ends = (uint64_t *)s->ends.data;
    s->text.len--;
    memmove(s->text.data, s->text.data + 1, s->text.len);
    for (size_t i = 0; i < s->ends.len / sizeof *ends; i++) ends[i] -= ends[i] > 0;
}

int align_check_text(struct spans *a, struct spans *b, struct err *e) {
    if (a->text.len == b->text.len + 1 && a->text.data[0] == ' ') drop_space(a);
    if (b->text.len == a->text.len + 1 && b->text.data[0] == ' ') drop_space(b);
    size_t least = a->text.len < b->text.len ? a->text.len : b->text.len, at = 0;
    while (at < least && a->text.data[at] == b->text.data[at]) at++;
    if (at == a->text.len && at == b->text.len) return 0;
    return err_set(e, ERR_DATA,
                   "the texts differ from byte %zu on, %zu bytes of the teacher's and %zu of the student's", at,
                   a->text.len, b->text.len);
}

void align_pair(const struct spans *a, size_t n, const struct spans *b, size_t m, size_t *out) {
    const uint64_t *x = align_ends(a), *y = align_ends(b);
    size_t i = n;
    for (size_t j = m; j-- > 0;) {
        while (i > 0 && x[i - 1] > y[j]) i--;
        out[j] = i > 0 && x[i - 1] == y[j] ? --i : SIZE_MAX;
    }
}

/* ---- the student's tokens for a text of the teacher ---- */

/* Encodes the text of tokens between control tokens. */
static int encode_text(const struct vocab *teacher, const struct vocab *student, const uint32_t *tokens, size_t n,
                       bool first, struct text_ids *ids, struct err *e) {
    struct buf text = {0};
    int rc =
        first ? text_decode(teacher, tokens, n, true, &text, e) : text_decode_on(teacher, tokens, n, true, &text, e);
    if (!rc) rc = align_encode_text(student, text.data, text.len, first, ids, e);
    buf_release(&text);
    return rc;
}

/* A token of the student is masked if all tokens of the teacher that share a byte with it are. */
static int encode_mask(const struct vocab *teacher, const struct vocab *student, const uint32_t *tokens,
                       const uint8_t *mask, size_t n, const uint32_t *ids, size_t m, struct buf *out, struct err *e) {
    struct spans a = {0}, b = {0};
    int rc = align_spell(&a, teacher, tokens, n, e);
    if (!rc) rc = align_spell(&b, student, ids, m, e);
    if (!rc) rc = align_check_text(&a, &b, e);
    const uint64_t *x = align_ends(&a), *y = align_ends(&b);
    for (size_t i = 0, j = 0; !rc && j < m; j++) {
        uint64_t from = j ? y[j - 1] : 0;
        uint8_t any = 0;
        while (i < n && x[i] <= from && x[i] < y[j]) i++;
        for (size_t t = i; t < n && (t == i || x[t - 1] < y[j]); t++) any |= mask[t];
        rc = buf_append(out, &any, 1, e);
    }
    align_spans_release(&a);
    align_spans_release(&b);
    return rc;
}

int align_encode(const struct vocab *teacher, const struct vocab *student, const uint32_t *map, const uint32_t *tokens,
                 const uint8_t *mask, size_t n, struct buf *out, struct buf *out_mask, struct err *e) {
    struct text_ids ids = {0};
    bool first = true;
    int rc = 0;
    for (size_t i = 0, end; !rc && i < n; i = end) {
        end = i + 1;
        if (teacher->tokens[tokens[i]].flags & TOKEN_SPECIAL) {
            uint32_t control = map[tokens[i]];
            if (control == TOKEN_NONE) continue;
            rc = buf_append(out, &control, sizeof control, e);
            if (!rc) rc = buf_append(out_mask, &mask[i], 1, e);
            continue;
        }
        while (end < n && !(teacher->tokens[tokens[end]].flags & TOKEN_SPECIAL)) end++;
        ids.n = 0;
        rc = encode_text(teacher, student, tokens + i, end - i, first, &ids, e);
        if (!rc) rc = buf_append(out, ids.ids, ids.n * sizeof *ids.ids, e);
        if (!rc) rc = encode_mask(teacher, student, tokens + i, mask + i, end - i, ids.ids, ids.n, out_mask, e);
        first = false;
    }
    text_ids_release(&ids);
    return rc;
}
