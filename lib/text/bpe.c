/*
 * Byte pair encoding (Sennrich, Haddow, Birch, "Neural machine translation of rare words with subword units", ACL 2016,
 * algorithm 1, over bytes as in Radford et al. 2019 or over characters as in sentencepiece): of all adjacent pairs,
 * merge the one with the best rank, the leftmost of equals; repeat until no pair merges.
 *
 * Most words have a handful of bytes, for which rescanning all pairs after each merge is fastest; but a file may have a
 * megabyte without a space, where that is quadratic. Long words use a heap of pairs and a linked list of symbols, which
 * takes O(n log n).
 */
#include "lib/text/text_internal.h"

#define SHORT_WORD 48

struct bpe_symbol {
    uint32_t id, prev, next; /* indices of the neighbours; NO_SYMBOL at the ends */
    /* of the merge with the next symbol; TOKEN_NONE if there is none, or the symbol was merged into another */
    uint32_t rank;
    uint32_t result; /* of that merge */
};
#define NO_SYMBOL UINT32_MAX

/* The token of a byte. Without one it is unk or nothing: the byte is lost, as in Hugging Face's tokenizers, but
 * counted. */
static uint32_t byte_token(const struct vocab *v, unsigned char byte, struct text_ids *ids) {
    uint32_t id = v->index->byte_id[byte];
    if (id != TOKEN_NONE) return id;
    ids->n_lost++;
    return v->unk;
}

/* Converts a word to its initial symbols: bytes or characters. */
static int first_bytes(const struct vocab *v, const unsigned char *bytes, size_t n, struct text_ids *first,
                       struct err *e) {
    int rc = text_ids_reserve(first, n, e);
    for (size_t i = 0; i < n && !rc; i++) {
        uint32_t id = byte_token(v, bytes[i], first);
        if (id != TOKEN_NONE) first->ids[first->n++] = id;
    }
    return rc;
}

static int first_characters(const struct vocab *v, const unsigned char *bytes, size_t n, struct text_ids *first,
                            struct err *e) {
    bool fused = false;
    int rc = text_ids_reserve(first, n + 1, e);
    for (size_t i = 0, took; i < n && !rc; i += took) {
        int32_t c;
        took = text_char(bytes + i, n - i, &c);
        uint32_t id = index_find_piece(v, bytes + i, took);
        if (id == TOKEN_NONE) {
            rc = fall_back(v, bytes + i, took, &fused, first, e);
            continue;
        }
        rc = text_ids_reserve(first, 1, e);
        if (!rc) first->ids[first->n++] = id;
        fused = false;
    }
    return rc;
}

static int trace_merge(struct text_ids *trace, uint32_t result, struct err *e) {
    if (!trace) return 0;
    int rc = text_ids_reserve(trace, 1, e);
    if (!rc) trace->ids[trace->n++] = result;
    return rc;
}

/* ---- short words: arrays; all ranks are scanned for each merge ---- */

struct short_word {
    uint32_t id[SHORT_WORD], rank[SHORT_WORD], result[SHORT_WORD];
    size_t n;
};

static void short_rank(const struct text_index *x, struct short_word *w, size_t i) {
    const struct merge_slot *m = i + 1 < w->n ? index_merge(x, w->id[i], w->id[i + 1]) : NULL;
    w->rank[i] = m ? m->rank : TOKEN_NONE;
    w->result[i] = m ? m->result : TOKEN_NONE;
}

static size_t best_pair(const struct short_word *w) {
    size_t best = 0;
    for (size_t i = 1; i < w->n; i++)
        if (w->rank[i] < w->rank[best]) best = i;
    return best;
}

static void drop_symbol(struct short_word *w, size_t i) {
    size_t tail = (--w->n - i) * sizeof w->id[0];
    memmove(w->id + i, w->id + i + 1, tail);
    memmove(w->rank + i, w->rank + i + 1, tail);
    memmove(w->result + i, w->result + i + 1, tail);
}

static int merge_short(const struct vocab *v, const struct text_ids *first, struct text_ids *ids,
                       struct text_ids *trace, struct err *e) {
    struct short_word w = {.n = first->n};
    if (w.n) memcpy(w.id, first->ids, w.n * sizeof w.id[0]);
    for (size_t i = 0; i < w.n; i++) short_rank(v->index, &w, i);
    while (w.n > 1) {
        size_t i = best_pair(&w);
        if (w.rank[i] == TOKEN_NONE) break;
        int rc = trace_merge(trace, w.result[i], e);
        if (rc) return rc;
        w.id[i] = w.result[i];
        drop_symbol(&w, i + 1);
        short_rank(v->index, &w, i);
        if (i) short_rank(v->index, &w, i - 1);
    }
    int rc = text_ids_reserve(ids, w.n, e);
    if (rc) return rc;
    if (w.n) memcpy(ids->ids + ids->n, w.id, w.n * sizeof w.id[0]);
    ids->n += w.n;
    return 0;
}

/* ---- long words: a binary min-heap of rank << 32 | position ---- */

struct long_word {
    const struct text_index *index;
    struct bpe_symbol *symbols;
    uint64_t *heap;
    size_t n_heap;
};

static void sift_down(uint64_t *heap, size_t n, size_t i) {
    uint64_t x = heap[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && heap[child + 1] < heap[child]) child++;
        if (x <= heap[child]) break;
        heap[i] = heap[child];
    }
    heap[i] = x;
}

static void heap_push(struct long_word *w, uint64_t x) {
    size_t i = w->n_heap++;
    for (size_t parent; i && x < w->heap[parent = (i - 1) / 2]; i = parent) w->heap[i] = w->heap[parent];
    w->heap[i] = x;
}

static uint64_t heap_pop(struct long_word *w) {
    uint64_t top = w->heap[0];
    w->heap[0] = w->heap[--w->n_heap];
    if (w->n_heap) sift_down(w->heap, w->n_heap, 0);
    return top;
}

/* Looks up the merge of symbol i with its right neighbour. */
static bool rank_symbol(struct long_word *w, uint32_t i) {
    struct bpe_symbol *s = &w->symbols[i];
    const struct merge_slot *m = s->next == NO_SYMBOL ? NULL : index_merge(w->index, s->id, w->symbols[s->next].id);
    s->rank = m ? m->rank : TOKEN_NONE;
    s->result = m ? m->result : TOKEN_NONE;
    return m != NULL;
}

static void push_symbol(struct long_word *w, uint32_t i) {
    if (rank_symbol(w, i)) heap_push(w, (uint64_t)w->symbols[i].rank << 32 | i);
}

/* Replaces symbol i by its merge; its right neighbour is removed from the list and never has a rank again. */
static void join_symbol(struct long_word *w, uint32_t i) {
    struct bpe_symbol *s = &w->symbols[i], *right = &w->symbols[s->next];
    s->id = s->result;
    s->next = right->next;
    right->rank = TOKEN_NONE;
    if (s->next != NO_SYMBOL) w->symbols[s->next].prev = i;
    push_symbol(w, i);
    if (s->prev != NO_SYMBOL) push_symbol(w, s->prev);
}

/* Each of the n - 1 merges pops one entry and pushes at most two: 2n entries are enough. */
static int reserve_long(struct bpe_memory *m, size_t n, struct err *e) {
    if (n <= m->cap) return 0;
    mem_free(m->symbols);
    mem_free(m->heap);
    m->symbols = NULL;
    m->heap = NULL;
    m->cap = 0;
    m->symbols = mem_array(n, sizeof *m->symbols, e);
    if (!m->symbols) return e->code;
    m->heap = mem_array(n, 2 * sizeof *m->heap, e);
    if (!m->heap) return e->code;
    m->cap = n;
    return 0;
}

static void fill_long(struct long_word *w, const struct text_ids *first) {
    for (size_t i = 0; i < first->n; i++) {
        uint32_t at = (uint32_t)i;
        w->symbols[i] = (struct bpe_symbol){.id = first->ids[i], .prev = at ? at - 1 : NO_SYMBOL, .next = at + 1};
    }
    w->symbols[first->n - 1].next = NO_SYMBOL;
    for (size_t i = 0; i < first->n; i++)
        if (rank_symbol(w, (uint32_t)i)) w->heap[w->n_heap++] = (uint64_t)w->symbols[i].rank << 32 | i;
    for (size_t i = w->n_heap / 2; i-- > 0;) sift_down(w->heap, w->n_heap, i);
}

static int merge_long(const struct vocab *v, struct bpe_memory *memory, const struct text_ids *first,
                      struct text_ids *ids, struct text_ids *trace, struct err *e) {
    if (first->n >= NO_SYMBOL)
        return err_set(e, ERR_DATA, "a word of %zu symbols: more than 4 Gi without a break", first->n);
    int rc = reserve_long(memory, first->n, e);
    if (rc) return rc;
    struct long_word w = {.index = v->index, .symbols = memory->symbols, .heap = memory->heap};
    fill_long(&w, first);
    while (w.n_heap) {
        uint64_t top = heap_pop(&w);
        uint32_t i = (uint32_t)top;
        /* An entry is stale if its pair has changed. A longer pair has a different result and hence another rank, or an
         * equal one (equal scores), and then the entry is valid for that pair. */
        if (w.symbols[i].rank != top >> 32) continue;
        rc = trace_merge(trace, w.symbols[i].result, e);
        if (rc) return rc;
        join_symbol(&w, i);
    }
    rc = text_ids_reserve(ids, first->n, e);
    if (rc) return rc;
    for (uint32_t i = 0; i != NO_SYMBOL; i = w.symbols[i].next) ids->ids[ids->n++] = w.symbols[i].id;
    return 0;
}

int bpe_merge(const struct vocab *v, struct bpe_memory *m, const unsigned char *bytes, size_t n, struct text_ids *ids,
              struct text_ids *trace, struct err *e) {
    m->first.n = m->first.n_lost = 0;
    int rc =
        v->kind == TEXT_BYTE_BPE ? first_bytes(v, bytes, n, &m->first, e) : first_characters(v, bytes, n, &m->first, e);
    if (rc) return rc;
    ids->n_lost += m->first.n_lost;
    if (m->first.n <= SHORT_WORD) return merge_short(v, &m->first, ids, trace, e);
    return merge_long(v, m, &m->first, ids, trace, e);
}

void bpe_release(struct bpe_memory *m) {
    mem_free(m->symbols);
    mem_free(m->heap);
    text_ids_release(&m->first);
    *m = (struct bpe_memory){0};
}
