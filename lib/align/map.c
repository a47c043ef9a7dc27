/* Maps tokens of the teacher to equivalent tokens of the student, or to those that begin them. */
#include <stdlib.h>
#include <string.h>

#include "lib/align/align_internal.h"

struct text {
    const unsigned char *bytes;
    uint32_t n, id;
    bool added;
};

/* By bytes; of equal ones ordinary tokens before added ones, then by id. */
static int by_text(const void *a, const void *b) {
    const struct text *x = a, *y = b;
    int order = memcmp(x->bytes, y->bytes, x->n < y->n ? x->n : y->n);
    if (order) return order;
    if (x->n != y->n) return x->n < y->n ? -1 : 1;
    if (x->added != y->added) return x->added ? 1 : -1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static size_t list_texts(const struct vocab *v, struct text *out) {
    size_t n = 0;
    for (uint32_t i = 0; i < v->n_tokens; i++) {
        struct text *t = &out[n];
        t->bytes = vocab_text(v, i, &t->n);
        t->id = i;
        t->added = v->tokens[i].flags & TOKEN_ADDED;
        n += t->n > 0;
    }
    if (n) qsort(out, n, sizeof *out, by_text);
    return n;
}

static uint32_t find_text(const struct text *all, size_t n, const unsigned char *bytes, uint32_t n_bytes) {
    struct text key = {bytes, n_bytes, 0, false};
    size_t low = 0, high = n;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (by_text(&all[mid], &key) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    bool same = low < n && all[low].n == n_bytes && !memcmp(all[low].bytes, bytes, n_bytes);
    return same ? all[low].id : TOKEN_NONE;
}

/* Finds a control token by its role, or else by its spelling. */
static uint32_t find_control(const struct vocab *teacher, const struct vocab *student, uint32_t id) {
    if (id == teacher->bos && student->bos != TOKEN_NONE) return student->bos;
    if (id == teacher->eos && student->eos != TOKEN_NONE) return student->eos;
    const struct token *t = &teacher->tokens[id];
    uint32_t found = t->n_bytes ? vocab_find(student, t->bytes, t->n_bytes) : TOKEN_NONE;
    return found != TOKEN_NONE && (student->tokens[found].flags & TOKEN_SPECIAL) ? found : TOKEN_NONE;
}

int align_encode_text(const struct vocab *student, const void *text, size_t n, bool first, struct text_ids *ids,
                      struct err *e) {
    /* NFC would change the text; the other normalisers encode spaces, and are needed */
    struct text_encode_options how = {.plain_specials = true, .no_normalise = student->nfc, .continues = !first};
    return text_encode(student, text, n, &how, ids, e);
}

/* Finds the first token in the student's encoding of a text for which it has no single token. */
static int find_beginning(const struct vocab *student, const unsigned char *bytes, uint32_t n, struct text_ids *ids,
                          uint32_t *out, struct err *e) {
    uint32_t n_first;
    ids->n = 0;
    *out = TOKEN_NONE;
    if (align_encode_text(student, bytes, n, false, ids, e)) return e->code;
    if (!ids->n) return 0;
    const unsigned char *first = vocab_text(student, ids->ids[0], &n_first);
    if (n_first && n_first < n && !memcmp(first, bytes, n_first)) *out = ids->ids[0];
    return 0;
}

/* Does this for all tokens with text that have no equivalent. */
static int find_beginnings(const struct vocab *teacher, const struct vocab *student, uint32_t *to, uint64_t *begun,
                           struct err *e) {
    struct text_ids ids = {0};
    int rc = 0;
    for (uint32_t i = 0; !rc && i < teacher->n_tokens; i++) {
        uint32_t n;
        const unsigned char *bytes = vocab_text(teacher, i, &n);
        if (to[i] != TOKEN_NONE || !n) continue;
        rc = find_beginning(student, bytes, n, &ids, &to[i], e);
        *begun += !rc && to[i] != TOKEN_NONE;
    }
    text_ids_release(&ids);
    return rc;
}

int align_map(const struct vocab *teacher, const struct vocab *student, uint32_t *to, uint64_t *n, uint64_t *begun,
              struct err *e) {
    bool same = !memcmp(&teacher->digest, &student->digest, sizeof teacher->digest);
    struct text *all = mem_array(student->n_tokens, sizeof *all, e);
    if (!all) return e->code;
    size_t n_texts = list_texts(student, all);
    *n = 0;
    for (uint32_t i = 0; i < teacher->n_tokens; i++) {
        uint32_t n_bytes;
        const unsigned char *bytes = vocab_text(teacher, i, &n_bytes);
        if (same)
            to[i] = i < student->n_unpadded ? i : TOKEN_NONE;
        else
            to[i] = n_bytes ? find_text(all, n_texts, bytes, n_bytes) : find_control(teacher, student, i);
        *n += to[i] != TOKEN_NONE;
    }
    mem_free(all);
    *begun = 0;
    return same ? 0 : find_beginnings(teacher, student, to, begun, e);
}
