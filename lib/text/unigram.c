/*
 * The unigram model (Kudo, "Subword regularization", ACL 2018): finds the sequence of pieces that forms a word with the
 * highest sum of log-probabilities, by the Viterbi algorithm. As in unigram_model.cc of google/sentencepiece and in
 * `tokenizers`: candidates are tried from the left, shorter ones first, and a later one wins only if it is better; if
 * no piece is a single character, the character itself is a candidate that costs 10 more than the worst piece.
 */
#include <float.h>
#include <stdlib.h>

#include "lib/text/text_internal.h"

#define UNKNOWN_PENALTY 10.0
#define NOT_REACHED     SIZE_MAX

/* ---- pieces sorted by their bytes: those with a common prefix are adjacent ---- */

static int compare_pieces(const struct token *a, const struct token *b) {
    uint32_t n = a->n_bytes < b->n_bytes ? a->n_bytes : b->n_bytes;
    int order = memcmp(a->bytes, b->bytes, n);
    return order ? order : (a->n_bytes > b->n_bytes) - (a->n_bytes < b->n_bytes);
}

static int by_piece(const void *a, const void *b, void *v) {
    const struct token *tokens = v;
    return compare_pieces(&tokens[*(const uint32_t *)a], &tokens[*(const uint32_t *)b]);
}

static bool is_candidate(const struct vocab *v, uint32_t id) {
    const struct token *t = &v->tokens[id];
    return !(t->flags & TOKEN_UNUSED) && index_find_piece(v, t->bytes, t->n_bytes) == id;
}

int unigram_build(struct vocab *v, struct err *e) {
    struct text_index *x = v->index;
    float worst = 0;
    x->sorted = arena_array(&v->memory, v->n_tokens, sizeof *x->sorted, e);
    if (!x->sorted) return e->code;
    for (uint32_t id = 0; id < v->n_tokens; id++) {
        if (!is_candidate(v, id)) continue;
        if (!x->n_sorted || v->tokens[id].score < worst) worst = v->tokens[id].score;
        x->sorted[x->n_sorted++] = id;
    }
    x->unk_score = (double)worst - UNKNOWN_PENALTY;
    if (x->n_sorted) qsort_r(x->sorted, x->n_sorted, sizeof *x->sorted, by_piece, v->tokens);
    for (uint32_t b = 0, i = 0; b <= 256; b++) {
        while (i < x->n_sorted && v->tokens[x->sorted[i]].bytes[0] < b) i++;
        x->first[b] = i;
    }
    return 0;
}

/* Narrows sorted[*lo .. *hi), whose pieces share their first `at` bytes, to those whose byte `at` is b. */
static void narrow(const struct vocab *v, uint32_t *lo, uint32_t *hi, uint32_t at, unsigned char b) {
    const uint32_t *sorted = v->index->sorted;
    uint32_t l = *lo, r = *hi;
    while (l < r) { /* the first piece whose byte there is at least b */
        uint32_t mid = l + (r - l) / 2;
        const struct token *t = &v->tokens[sorted[mid]];
        if (t->n_bytes <= at || t->bytes[at] < b)
            l = mid + 1;
        else
            r = mid;
    }
    *lo = l;
    r = *hi;
    while (l < r) {
        uint32_t mid = l + (r - l) / 2;
        if (v->tokens[sorted[mid]].bytes[at] <= b)
            l = mid + 1;
        else
            r = mid;
    }
    *hi = l;
}

/* ---- the lattice ---- */

struct node {
    double score;
    size_t from; /* NOT_REACHED: no path yet */
    uint32_t id; /* TOKEN_NONE: a character without a piece */
};

static void reach(const struct vocab *v, struct node *to, double before, double score, size_t from, uint32_t id) {
    double sum = v->model_flags & MODEL_FLOAT_SUMS ? (double)((float)before + (float)score) : before + score;
    if (to->from == NOT_REACHED || sum > to->score) *to = (struct node){sum, from, id};
}

static void step(const struct vocab *v, struct node *nodes, const unsigned char *word, size_t n, size_t at,
                 size_t char_bytes) {
    const struct text_index *x = v->index;
    uint32_t lo = x->first[word[at]], hi = x->first[word[at] + 1];
    bool single = false;
    for (uint32_t i = 1; lo < hi; i++) {
        uint32_t id = x->sorted[lo];
        if (v->tokens[id].n_bytes == i) {
            reach(v, &nodes[at + i], nodes[at].score, (double)v->tokens[id].score, at, id);
            single = single || i == char_bytes;
        }
        if (at + i == n) break;
        narrow(v, &lo, &hi, i, word[at + i]);
    }
    if (!single) reach(v, &nodes[at + char_bytes], nodes[at].score, x->unk_score, at, TOKEN_NONE);
}

/* Reverses the links of the best path, so that it can be followed from the front: `from` of each start becomes its
 * end. */
static void turn_round(struct node *nodes, size_t n) {
    size_t next = NOT_REACHED;
    for (size_t at = n;;) {
        size_t from = nodes[at].from;
        nodes[at].from = next;
        next = at;
        if (!at) break;
        at = from;
    }
}

static int collect(const struct vocab *v, struct node *nodes, const unsigned char *word, size_t n, struct text_ids *ids,
                   struct err *e) {
    bool fused = false;
    turn_round(nodes, n);
    for (size_t at = 0; at < n; at = nodes[at].from) {
        size_t end = nodes[at].from;
        uint32_t id = nodes[end].id;
        int rc = id == TOKEN_NONE ? fall_back(v, word + at, end - at, &fused, ids, e) : text_ids_reserve(ids, 1, e);
        if (rc) return rc;
        if (id == TOKEN_NONE) continue;
        ids->ids[ids->n++] = id;
        fused = false;
    }
    return 0;
}

int unigram_encode(const struct vocab *v, struct buf *lattice, const unsigned char *word, size_t n,
                   struct text_ids *ids, struct err *e) {
    uint64_t bytes;
    if (!u64_mul(n + 1, sizeof(struct node), &bytes) || bytes > PTRDIFF_MAX) return err_nomem(e, "lattice");
    lattice->len = 0;
    int rc = buf_reserve(lattice, bytes, e);
    if (rc) return rc;
    struct node *nodes = (struct node *)(void *)lattice->data;
    for (size_t i = 0; i <= n; i++) nodes[i] = (struct node){.from = NOT_REACHED};
    for (size_t at = 0, took; at < n; at += took) {
        int32_t c;
        took = text_char(word + at, n - at, &c);
        step(v, nodes, word, n, at, took);
    }
    return collect(v, nodes, word, n, ids, e);
}
