/*
 * Added tokens: matched in the raw text before it is split into words. The leftmost match wins, and the longest of
 * those that start together, as in Hugging Face's tokenizers (tokenizer/added_vocabulary.rs), whose treatment of the
 * flags this follows.
 */
#include "lib/text/text_internal.h"

#define FLAGGED         (TOKEN_LSTRIP | TOKEN_RSTRIP | TOKEN_SINGLE_WORD)
#define MAX_ADDED_BYTES (4u << 20) /* limit for all added tokens together: a trie node is 16 bytes */

/* ---- the trie ---- */

static uint32_t find_child(const struct added *a, uint32_t node, unsigned char byte) {
    uint32_t c = a->nodes[node].child;
    while (c && a->nodes[c].byte != byte) c = a->nodes[c].next;
    return c;
}

/* The array is large enough: added_build has counted the bytes of all tokens. */
static uint32_t add_child(struct added *a, uint32_t node, unsigned char byte) {
    uint32_t c = a->n_nodes++;
    a->nodes[c] = (struct trie_node){.next = a->nodes[node].child, .id = TOKEN_NONE, .byte = byte};
    a->nodes[node].child = c;
    return c;
}

static void insert_token(struct added *a, uint32_t id, uint32_t flags, const unsigned char *bytes, size_t n) {
    uint32_t node = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t c = find_child(a, node, bytes[i]);
        node = c ? c : add_child(a, node, bytes[i]);
    }
    a->nodes[node].id = id;
    a->starts[bytes[0]] = true;
    if (n > a->max_bytes) a->max_bytes = (uint32_t)n;
    if (flags & FLAGGED) a->any_flagged = true;
}

static bool belongs(const struct token *t, bool normalised) {
    return (t->flags & TOKEN_ADDED) && !(t->flags & TOKEN_UNUSED) && !!(t->flags & TOKEN_NORMALIZED) == normalised;
}

/* Adds the text to search for: the token as normalised by itself, like a text of its own. */
static int add_content(const struct vocab *v, uint32_t id, bool changes, struct step_memory *m, struct buf *contents,
                       struct buf *lengths, struct err *e) {
    const struct token *t = &v->tokens[id];
    const unsigned char *text = t->bytes;
    size_t n = t->n_bytes;
    struct place place = {.start = true};
    int rc = changes ? normalize(v, m, t->bytes, t->n_bytes, &place, &text, &n, e) : 0;
    if (!rc) rc = buf_append(contents, text, n, e);
    return rc ? rc : buf_append(lengths, &n, sizeof n, e);
}

static void insert_all(struct added *a, const struct vocab *v, bool normalised, const struct buf *contents,
                       const struct buf *lengths) {
    const size_t *length = (const size_t *)(void *)lengths->data;
    const unsigned char *at = contents->data;
    a->nodes[0].id = TOKEN_NONE;
    a->n_nodes = 1;
    for (uint32_t id = 0; id < v->n_tokens; id++) {
        if (!belongs(&v->tokens[id], normalised)) continue;
        if (*length) insert_token(a, id, v->tokens[id].flags, at, *length);
        at += *length++;
    }
}

int added_build(struct added *a, struct vocab *v, bool normalised, struct err *e) {
    uint64_t bytes = 0;
    for (uint32_t id = 0; id < v->n_tokens; id++)
        if (belongs(&v->tokens[id], normalised)) bytes += v->tokens[id].n_bytes;
    if (!bytes) return 0;
    if (bytes > MAX_ADDED_BYTES)
        return err_set(e, ERR_DATA, "the added tokens have %llu bytes, at most %u are taken", (unsigned long long)bytes,
                       MAX_ADDED_BYTES);
    /* sentencepiece matches its symbols as they are written. */
    bool changes = normalised && vocab_normalises(v) && !(v->model_flags & MODEL_REPLACE_BAD);
    struct buf contents = {0}, lengths = {0};
    struct step_memory memory = {0};
    int rc = 0;
    for (uint32_t id = 0; id < v->n_tokens && !rc; id++)
        if (belongs(&v->tokens[id], normalised)) rc = add_content(v, id, changes, &memory, &contents, &lengths, e);
    if (!rc && contents.len > 3 * (uint64_t)MAX_ADDED_BYTES)
        rc = err_set(e, ERR_DATA, "the added tokens have %zu bytes when normalised", contents.len);
    a->nodes = rc ? NULL : arena_array(&v->memory, contents.len + 1, sizeof *a->nodes, e);
    if (!a->nodes) rc = e->code;
    if (!rc) insert_all(a, v, normalised, &contents, &lengths);
    step_memory_release(&memory);
    buf_release(&contents);
    buf_release(&lengths);
    return rc;
}

/* ---- matching ---- */

/* Returns the length of the longest token at the start of text[0..n), 0 if there is none. */
static size_t longest(const struct added *a, const unsigned char *text, size_t n, uint32_t *id) {
    size_t best = 0;
    uint32_t node = 0;
    for (size_t i = 0; i < n && (node = find_child(a, node, text[i])) != 0; i++)
        if (a->nodes[node].id != TOKEN_NONE) {
            *id = a->nodes[node].id;
            best = i + 1;
        }
    return best;
}

static bool stands_alone(const unsigned char *text, size_t n, size_t start, size_t end) {
    return !word_at_end(text, start) && !word_at_start(text + end, n - end);
}

bool added_next(const struct added *a, const struct vocab *v, const unsigned char *text, size_t n, size_t *at,
                size_t from, bool plain_specials, struct added_match *m) {
    if (!a->n_nodes) return false;
    for (size_t i = *at, len; i < n; i += len) {
        uint32_t id = TOKEN_NONE;
        while (i < n && !a->starts[text[i]]) i++;
        len = i < n ? longest(a, text + i, n - i, &id) : 0;
        if (!len) {
            len = 1;
            continue;
        }
        /* A rejected match is skipped as a whole: there is no search inside it. */
        uint32_t flags = v->tokens[id].flags;
        if (plain_specials && (flags & TOKEN_SPECIAL)) continue;
        if ((flags & TOKEN_SINGLE_WORD) && !stands_alone(text, n, i, i + len)) continue;
        if (i < from) continue; /* inside the white space absorbed by the last match */
        *m = (struct added_match){.start = i, .end = i + len, .id = id};
        *at = i + len;
        if (flags & TOKEN_LSTRIP) m->start -= space_at_end(text + from, i - from);
        if (flags & TOKEN_RSTRIP) m->end += space_at_start(text + m->end, n - m->end);
        return true;
    }
    *at = n;
    return false;
}

/* ---- unsafe cuts ---- */

bool added_ends_at(const struct added *a, const unsigned char *text, size_t p) {
    if (!a->n_nodes) return false;
    for (size_t s = p > a->max_bytes ? p - a->max_bytes : 0; s < p; s++) {
        uint32_t node = 0;
        size_t i = s;
        while (i < p && (node = find_child(a, node, text[i])) != 0) i++;
        if (i == p && node && a->nodes[node].id != TOKEN_NONE) return true;
    }
    return false;
}

/* Can a token that begins at s extend past p, or end there and depend on what follows? */
static bool reaches(const struct added *a, const struct vocab *v, const unsigned char *text, size_t n, size_t s,
                    size_t p) {
    uint32_t node = 0;
    for (size_t i = s; i < n; i++) {
        node = find_child(a, node, text[i]);
        if (!node) return false;
        uint32_t id = a->nodes[node].id;
        if (id == TOKEN_NONE) continue;
        if (s < p && i + 1 > p) return true;
        if ((v->tokens[id].flags & FLAGGED) && i + 1 >= p) return true;
    }
    /* The text may end inside a token. */
    return a->nodes[node].child && (s < p || a->any_flagged);
}

bool added_crosses(const struct added *a, const struct vocab *v, const unsigned char *text, size_t n, size_t p) {
    if (!a->n_nodes) return false;
    for (size_t s = p > a->max_bytes ? p - a->max_bytes : 0; s <= p; s++)
        if (s < n && a->starts[text[s]] && reaches(a, v, text, n, s, p)) return true;
    return false;
}
