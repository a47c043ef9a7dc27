/*
 * Lookup: pieces by their bytes, merges by their pair. Two open-addressing hash tables with linear probing, at most
 * half full, built once and then only read.
 */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "lib/text/text_internal.h"

/* A power of two with room for n entries at half load. n <= TEXT_MAX_TOKENS or a count of merges that is in memory. */
static uint64_t table_size(uint64_t n) {
    uint64_t size = 64;
    while (size < 2 * n) size *= 2;
    return size;
}

/* ---- pieces ---- */

static bool is_added(const struct token *t) {
    return (t->flags & (TOKEN_ADDED | TOKEN_SPECIAL)) != 0;
}

/* The slot that holds this piece, or the empty one where it belongs. */
static uint32_t *piece_slot(const struct vocab *v, const void *bytes, size_t n) {
    const struct text_index *x = v->index;
    for (uint64_t i = XXH3_64bits(bytes, n);; i++) {
        uint32_t *slot = &x->pieces[i & x->piece_mask];
        if (*slot == TOKEN_NONE) return slot;
        const struct token *t = &v->tokens[*slot];
        if (t->n_bytes == n && memcmp(t->bytes, bytes, n) == 0) return slot;
    }
}

/* An added token may be spelled like an ordinary one, which then is the one to find; nothing else may occur twice. */
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
        x->byte_id[b] = *piece_slot(v, &byte, 1);
    }
    return 0;
}

uint32_t vocab_find(const struct vocab *v, const void *bytes, size_t n) {
    return *piece_slot(v, bytes, n);
}

uint32_t index_find_ordinary(const struct vocab *v, const void *bytes, size_t n) {
    uint32_t id = *piece_slot(v, bytes, n);
    return id == TOKEN_NONE || is_added(&v->tokens[id]) ? TOKEN_NONE : id;
}

/* ---- merges ---- */

/* Pairs are small numbers side by side: a multiplication spreads them, and its upper half is the good one. */
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

int index_merges(struct vocab *v, struct err *e) {
    struct text_index *x = v->index;
    uint64_t size = table_size(v->n_merges);
    x->merges = arena_array(&v->memory, size, sizeof *x->merges, e);
    if (!x->merges) return e->code;
    for (uint64_t i = 0; i < size; i++) x->merges[i].rank = TOKEN_NONE;
    x->merge_mask = size - 1;
    for (uint32_t rank = 0; rank < v->n_merges; rank++) {
        int rc = check_merge(v, rank, e);
        if (rc) return rc;
        const struct merge *m = &v->merges[rank];
        uint64_t pair = (uint64_t)m->left << 32 | m->right;
        struct merge_slot *slot = merge_slot(x, pair);
        if (slot->rank != TOKEN_NONE) return err_set(e, ERR_DATA, "merge %u repeats merge %u", rank, slot->rank);
        *slot = (struct merge_slot){pair, rank, m->result};
    }
    return 0;
}
