/*
 * Lookup of pieces by their bytes and of merges by their pair: two hash tables with open addressing and linear probing,
 * at most half full, built once and then read-only.
 */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "lib/text/text_internal.h"

/* A power of two that holds n entries at half load. n <= TEXT_MAX_TOKENS or a number of merges in memory. */
static uint64_t table_size(uint64_t n) {
    uint64_t size = 64;
    while (size < 2 * n) size *= 2;
    return size;
}

/* ---- pieces ---- */

static bool is_added(const struct token *t) {
    return (t->flags & (TOKEN_ADDED | TOKEN_SPECIAL)) != 0;
}

/* The slot that has this piece, or the empty one for it. */
static uint32_t *piece_slot(const struct vocab *v, const void *bytes, size_t n) {
    const struct text_index *x = v->index;
    for (uint64_t i = XXH3_64bits(bytes, n);; i++) {
        uint32_t *slot = &x->pieces[i & x->piece_mask];
        if (*slot == TOKEN_NONE) return slot;
        const struct token *t = &v->tokens[*slot];
        if (t->n_bytes == n && memcmp(t->bytes, bytes, n) == 0) return slot;
    }
}

/* An added token may be spelled like an ordinary one, which is then preferred; no other piece may occur twice. */
static int insert_piece(struct vocab *v, uint32_t id, struct err *e) {
    const struct token *t = &v->tokens[id];
    uint32_t *slot = piece_slot(v, t->bytes, t->n_bytes);
    if (*slot == TOKEN_NONE)
        *slot = id;
    else if (is_added(&v->tokens[*slot]) == is_added(t))
        return err_set(e, ERR_DATA, "tokens %u and %u are the same piece", *slot, id);
    else if (!is_added(t))
        *slot = id;
    return 0;
}

int index_pieces(struct vocab *v, struct err *e) {
    struct text_index *x = v->index;
    uint64_t size = table_size(v->n_tokens);
    x->pieces = arena_array(&v->memory, size, sizeof *x->pieces, e);
    if (!x->pieces) return e->code;
    memset(x->pieces, 0xff, size * sizeof *x->pieces); /* TOKEN_NONE */
    x->piece_mask = size - 1;
    for (uint32_t id = 0; id < v->n_tokens; id++) {
        if (v->tokens[id].flags & TOKEN_UNUSED) continue;
        int rc = insert_piece(v, id, e);
        if (rc) return rc;
    }
    for (unsigned b = 0; b < 256; b++) {
        unsigned char byte = (unsigned char)b;
        x->byte_id[b] = v->kind == TEXT_BYTE_BPE ? *piece_slot(v, &byte, 1) : TOKEN_NONE;
    }
    return 0;
}

int text_byte_piece(const struct token *t) {
    static const char digits[] = "0123456789ABCDEF";
    if (t->n_bytes != 6 || memcmp(t->bytes, "<0x", 3) != 0 || t->bytes[5] != '>') return -1;
    const char *high = memchr(digits, t->bytes[3], 16), *low = memchr(digits, t->bytes[4], 16);
    return high && low ? (int)((high - digits) * 16 + (low - digits)) : -1;
}

/* Records which neighbours occur in pieces: no merge or piece crosses the others. */
static void index_neighbours(struct text_index *x, const struct token *t) {
    for (uint32_t i = 1; i < t->n_bytes; i++) {
        bool space = t->n_bytes - i >= METASPACE_BYTES && memcmp(t->bytes + i, METASPACE, METASPACE_BYTES) == 0;
        bool after_space =
            i >= METASPACE_BYTES && memcmp(t->bytes + i - METASPACE_BYTES, METASPACE, METASPACE_BYTES) == 0;
        if (space && !after_space) x->joins_space[t->bytes[i - 1]] = true;
    }
    if (t->n_bytes > 1 && memchr(t->bytes, '\n', t->n_bytes)) x->joins_newline = true;
}

int index_kind(struct vocab *v, struct err *e) {
    struct text_index *x = v->index;
    if (v->kind == TEXT_BYTE_BPE) return 0;
    for (uint32_t id = 0; id < v->n_tokens; id++) {
        const struct token *t = &v->tokens[id];
        if (t->flags & (TOKEN_UNUSED | TOKEN_SPECIAL)) continue;
        int byte = text_byte_piece(t);
        if (byte >= 0) x->byte_id[byte] = id;
        index_neighbours(x, t);
    }
    x->has_space = index_find_piece(v, METASPACE, METASPACE_BYTES) != TOKEN_NONE;
    return v->kind == TEXT_CHAR_BPE && !v->n_merges ? index_scores(v, e) : 0;
}

uint32_t vocab_find(const struct vocab *v, const void *bytes, size_t n) {
    return *piece_slot(v, bytes, n);
}

uint32_t index_find_piece(const struct vocab *v, const void *bytes, size_t n) {
    uint32_t id = *piece_slot(v, bytes, n);
    return id == TOKEN_NONE || (v->tokens[id].flags & TOKEN_SPECIAL) ? TOKEN_NONE : id;
}

uint32_t index_find_ordinary(const struct vocab *v, const void *bytes, size_t n) {
    uint32_t id = *piece_slot(v, bytes, n);
    return id == TOKEN_NONE || is_added(&v->tokens[id]) ? TOKEN_NONE : id;
}

/* ---- merges ---- */

/* Pairs are small consecutive numbers: multiplication spreads them best in its upper half. */
static uint64_t hash_pair(uint64_t pair) {
    pair *= UINT64_C(0x9e3779b97f4a7c15);
    return pair ^ pair >> 32;
}

static struct merge_slot *merge_slot(const struct text_index *x, uint64_t pair) {
    for (uint64_t i = hash_pair(pair);; i++) {
        struct merge_slot *slot = &x->merges[i & x->merge_mask];
        if (slot->rank == TOKEN_NONE || slot->pair == pair) return slot;
    }
}

const struct merge_slot *index_merge(const struct text_index *x, uint32_t left, uint32_t right) {
    const struct merge_slot *slot = merge_slot(x, (uint64_t)left << 32 | right);
    return slot->rank == TOKEN_NONE ? NULL : slot;
}

static int check_merge(const struct vocab *v, uint32_t rank, struct err *e) {
    const struct merge *m = &v->merges[rank];
    const uint32_t ids[] = {m->left, m->right, m->result};
    for (size_t i = 0; i < COUNT_OF(ids); i++) {
        if (ids[i] >= v->n_tokens)
            return err_set(e, ERR_DATA, "merge %u: token %u is outside the vocabulary of %u", rank, ids[i],
                           v->n_tokens);
        if (v->tokens[ids[i]].flags & TOKEN_UNUSED)
            return err_set(e, ERR_DATA, "merge %u: token %u is unused", rank, ids[i]);
    }
    const struct token *l = &v->tokens[m->left], *r = &v->tokens[m->right], *t = &v->tokens[m->result];
    if (t->n_bytes != l->n_bytes + r->n_bytes || memcmp(t->bytes, l->bytes, l->n_bytes) != 0 ||
        memcmp(t->bytes + l->n_bytes, r->bytes, r->n_bytes) != 0)
        return err_set(e, ERR_DATA, "merge %u: token %u is not tokens %u and %u joined", rank, m->result, m->left,
                       m->right);
    return 0;
}

static int merge_table(struct vocab *v, uint32_t n, struct err *e) {
    struct text_index *x = v->index;
    uint64_t size = table_size(n);
    x->merges = arena_array(&v->memory, size, sizeof *x->merges, e);
    if (!x->merges) return e->code;
    for (uint64_t i = 0; i < size; i++) x->merges[i].rank = TOKEN_NONE;
    x->merge_mask = size - 1;
    return 0;
}

int index_merges(struct vocab *v, struct err *e) {
    struct text_index *x = v->index;
    if (v->kind == TEXT_CHAR_BPE && !v->n_merges) return 0; /* index_scores derives them */
    int rc = merge_table(v, v->n_merges, e);
    if (rc) return rc;
    for (uint32_t rank = 0; rank < v->n_merges; rank++) {
        rc = check_merge(v, rank, e);
        if (rc) return rc;
        const struct merge *m = &v->merges[rank];
        uint64_t pair = (uint64_t)m->left << 32 | m->right;
        struct merge_slot *slot = merge_slot(x, pair);
        if (slot->rank != TOKEN_NONE) return err_set(e, ERR_DATA, "merge %u repeats merge %u", rank, slot->rank);
        *slot = (struct merge_slot){pair, rank, m->result};
    }
    return 0;
}

/* ---- merges derived from scores ---- */

struct derived {
    struct merge m;
    float score;
    uint32_t n_left, n_right; /* in characters */
};

static uint32_t characters(const struct token *t) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < t->n_bytes; i++) n += (t->bytes[i] & 0xc0) != 0x80;
    return n;
}

/* Highest score first; like `generate_merges` of transformers, then longer pieces; then by id. */
static int by_score(const void *a, const void *b) {
    const struct derived *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    if (x->n_left != y->n_left) return x->n_left > y->n_left ? -1 : 1;
    if (x->n_right != y->n_right) return x->n_right > y->n_right ? -1 : 1;
    if (x->m.result != y->m.result) return x->m.result < y->m.result ? -1 : 1;
    return x->m.left < y->m.left ? -1 : x->m.left > y->m.left;
}

/* Added tokens are matched before and never merge. */
static int derive(const struct vocab *v, struct buf *out, struct err *e) {
    int rc = 0;
    for (uint32_t id = 0; id < v->n_tokens && !rc; id++) {
        const struct token *t = &v->tokens[id];
        if (t->flags & (TOKEN_UNUSED | TOKEN_SPECIAL | TOKEN_ADDED)) continue;
        for (uint32_t i = 1; i < t->n_bytes && !rc; i++) {
            if ((t->bytes[i] & 0xc0) == 0x80) continue;
            struct derived d = {.m = {index_find_ordinary(v, t->bytes, i), TOKEN_NONE, id}, .score = t->score};
            if (d.m.left != TOKEN_NONE) d.m.right = index_find_ordinary(v, t->bytes + i, t->n_bytes - i);
            if (d.m.right == TOKEN_NONE) continue;
            d.n_left = characters(&v->tokens[d.m.left]);
            d.n_right = characters(&v->tokens[d.m.right]);
            rc = buf_append(out, &d, sizeof d, e);
        }
    }
    size_t n = out->len / sizeof(struct derived);
    if (!rc && n > TEXT_MAX_MERGES)
        return err_set(e, ERR_DATA, "the pieces make %zu merges, at most %u are taken", n, TEXT_MAX_MERGES);
    if (!rc && n) qsort(out->data, n, sizeof(struct derived), by_score);
    return rc;
}

int vocab_derive_merges(const struct vocab *v, struct arena *a, struct merge **merges, uint32_t *n, struct err *e) {
    struct buf all = {0};
    int rc = derive(v, &all, e);
    const struct derived *d = (const struct derived *)(const void *)all.data;
    *n = rc ? 0 : (uint32_t)(all.len / sizeof *d);
    *merges = rc ? NULL : arena_array(a, *n, sizeof **merges, e);
    if (!*merges) rc = e->code;
    for (uint32_t i = 0; i < *n && !rc; i++) (*merges)[i] = d[i].m;
    buf_release(&all);
    return rc;
}

/* Pieces with equal scores share a rank, so that the leftmost of their merges comes first, as in sentencepiece. */
int index_scores(struct vocab *v, struct err *e) {
    struct buf all = {0};
    int rc = derive(v, &all, e);
    const struct derived *d = (const struct derived *)(const void *)all.data;
    uint32_t n = rc ? 0 : (uint32_t)(all.len / sizeof *d), rank = 0;
    if (!rc) rc = merge_table(v, n, e);
    for (uint32_t i = 0; i < n && !rc; i++) {
        if (i && d[i].score != d[i - 1].score) rank++;
        uint64_t pair = (uint64_t)d[i].m.left << 32 | d[i].m.right;
        *merge_slot(v->index, pair) = (struct merge_slot){pair, rank, d[i].m.result};
    }
    buf_release(&all);
    return rc;
}
