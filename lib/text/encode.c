/*
 * Encodes text to tokens: first finds added tokens, then normalises the text between them, splits it into words with
 * the pre-tokenizer, and merges each word or finds it in the cache of recent words.
 */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "lib/text/text_internal.h"

static int append_id(struct text_ids *ids, uint32_t id, struct err *e) {
    int rc = text_ids_reserve(ids, 1, e);
    if (!rc) ids->ids[ids->n++] = id;
    return rc;
}

/* ---- the cache of words and their tokens: direct-mapped, newer entries replace older ones ---- */

#define CACHE_ENTRIES  16384 /* 1 MiB: fits into a second-level cache */
#define CACHE_MAX_WORD 30
#define CACHE_MAX_IDS  8

struct cache_entry { /* one cache line */
    uint32_t ids[CACHE_MAX_IDS];
    uint8_t n_ids, n_bytes; /* 0 bytes: empty */
    unsigned char bytes[CACHE_MAX_WORD];
};
_Static_assert(sizeof(struct cache_entry) == 64, "a cache entry is a cache line");

static struct cache_entry *cache_place(const struct text_worker *w, const unsigned char *word, size_t n) {
    return &w->cache[XXH3_64bits(word, n) % CACHE_ENTRIES];
}

static bool cache_holds(const struct cache_entry *c, const unsigned char *word, size_t n) {
    return c->n_bytes == n && memcmp(c->bytes, word, n) == 0;
}

/* Words that lost a byte are not cached, because each loss is counted. */
static void cache_keep(struct cache_entry *c, const unsigned char *word, size_t n, const struct text_ids *ids,
                       size_t before, bool lost) {
    size_t n_ids = ids->n - before;
    if (lost || n_ids < 1 || n_ids > CACHE_MAX_IDS) return;
    c->n_bytes = (uint8_t)n;
    c->n_ids = (uint8_t)n_ids;
    memcpy(c->bytes, word, n);
    memcpy(c->ids, ids->ids + before, n_ids * sizeof c->ids[0]);
}

/* ---- working memory: kept by the vocabulary for later calls, as many as there were concurrent calls ---- */

int worker_take(struct text_worker **out, const struct vocab *v, struct err *e) {
    struct text_index *x = v->index;
    pthread_mutex_lock(&x->lock);
    struct text_worker *w = x->idle;
    if (w) x->idle = w->next;
    pthread_mutex_unlock(&x->lock);
    if (!w) {
        w = mem_zalloc(sizeof *w, e);
        if (!w) return e->code;
        int rc = x->pre ? pre_state_new(&w->pre, x->pre, e) : 0;
        w->cache = rc ? NULL : mem_array(CACHE_ENTRIES, sizeof *w->cache, e);
        if (!w->cache) {
            worker_free(w);
            return e->code;
        }
    }
    *out = w;
    return 0;
}

#define WORKER_MAX_KEPT ((size_t)16 << 20) /* after a huge word or text, memory is released */

void worker_give(const struct vocab *v, struct text_worker *w) {
    if (w->bpe.cap * sizeof(uint64_t) > WORKER_MAX_KEPT) bpe_release(&w->bpe);
    if (w->normal.text[0].cap > WORKER_MAX_KEPT || w->normal.text[1].cap > WORKER_MAX_KEPT)
        step_memory_release(&w->normal);
    if (w->words.text[0].cap > WORKER_MAX_KEPT || w->words.text[1].cap > WORKER_MAX_KEPT)
        step_memory_release(&w->words);
    if (w->scratch.cap > WORKER_MAX_KEPT) buf_release(&w->scratch);
    struct text_index *x = v->index;
    pthread_mutex_lock(&x->lock);
    w->next = x->idle;
    x->idle = w;
    pthread_mutex_unlock(&x->lock);
}

void worker_free(struct text_worker *w) {
    pre_state_free(w->pre);
    bpe_release(&w->bpe);
    mem_free(w->cache);
    step_memory_release(&w->normal);
    step_memory_release(&w->words);
    buf_release(&w->scratch);
    mem_free(w);
}

/* ---- words ---- */

static int model_encode(struct text_worker *w, const struct vocab *v, const unsigned char *word, size_t n,
                        struct text_ids *ids, struct err *e) {
    if (v->kind == TEXT_UNIGRAM) return unigram_encode(v, &w->scratch, word, n, ids, e);
    if (v->kind == TEXT_WORDPIECE) return wordpiece_encode(v, &w->scratch, word, n, ids, e);
    uint32_t whole = v->ignore_merges ? index_find_ordinary(v, word, n) : TOKEN_NONE;
    return whole != TOKEN_NONE ? append_id(ids, whole, e) : bpe_merge(v, &w->bpe, word, n, ids, NULL, e);
}

static int encode_word(struct text_worker *w, const struct vocab *v, const unsigned char *word, size_t n,
                       struct text_ids *ids, struct err *e) {
    struct cache_entry *c = n <= CACHE_MAX_WORD ? cache_place(w, word, n) : NULL;
    if (c && cache_holds(c, word, n)) {
        int rc = text_ids_reserve(ids, CACHE_MAX_IDS, e);
        if (rc) return rc;
        memcpy(ids->ids + ids->n, c->ids, sizeof c->ids); /* fixed size: faster, and reserved above */
        ids->n += c->n_ids;
        return 0;
    }
    size_t before = ids->n;
    uint64_t lost = ids->n_lost;
    int rc = model_encode(w, v, word, n, ids, e);
    if (!rc && c) cache_keep(c, word, n, ids, before, ids->n_lost != lost);
    return rc;
}

/* Splits each stretch of valid UTF-8 into words separately; a run of other bytes is one word. */
static int encode_bytes(struct text_worker *w, const struct vocab *v, const unsigned char *text, size_t n,
                        struct text_ids *ids, struct err *e) {
    for (size_t at = 0; at < n;) {
        size_t good = utf8_valid_prefix(text + at, n - at);
        for (size_t i = 0, end; i < good; i = end) {
            int rc = pretokenizer_next(v->index->pre, w->pre, text + at, good, i, &end, e);
            if (!rc) rc = encode_word(w, v, text + at + i, end - i, ids, e);
            if (rc) return rc;
        }
        at += good;
        size_t bad = utf8_invalid_prefix(text + at, n - at);
        int rc = bad ? encode_word(w, v, text + at, bad, ids, e) : 0;
        if (rc) return rc;
        at += bad;
    }
    return 0;
}

/* A word may be a whole text. It is split at spaces that no merge or piece can cross, so that its parts can be
 * cached. */
static int encode_parts(struct text_worker *w, const struct vocab *v, const unsigned char *word, size_t n,
                        struct text_ids *ids, struct err *e) {
    bool parts = vocab_parts_at_spaces(v);
    for (size_t at = 0, end; at < n; at = end) {
        for (end = at + 1; parts && end < n; end++)
            if (text_parts_at(v, word, n, end)) break;
        if (!parts) end = n;
        int rc = encode_word(w, v, word + at, end - at, ids, e);
        if (rc) return rc;
    }
    return 0;
}

static int encode_plain(struct text_worker *w, const struct vocab *v, const unsigned char *text, size_t n,
                        struct place place, struct text_ids *ids, struct err *e) {
    struct word_list words;
    if (v->kind == TEXT_BYTE_BPE) {
        if (!vocab_find_step(v, WORDS_PREFIX_SPACE) || place.continues || !n || *text == ' ')
            return encode_bytes(w, v, text, n, ids, e);
        w->words.text[0].len = 0;
        int rc = buf_append(&w->words.text[0], " ", 1, e);
        if (!rc) rc = buf_append(&w->words.text[0], text, n, e);
        return rc ? rc : encode_bytes(w, v, w->words.text[0].data, n + 1, ids, e);
    }
    int rc = words_cut(v, &w->words, text, n, place, &words, e);
    for (size_t i = 0, at = 0; i < words.n && !rc; at = words.ends[i++])
        rc = encode_parts(w, v, words.text + at, words.ends[i] - at, ids, e);
    return rc;
}

/* ---- the text between added tokens ---- */

typedef int encode_between(struct text_worker *w, const struct vocab *v, const unsigned char *text, size_t n,
                           struct place place, const struct text_encode_options *o, struct text_ids *ids,
                           struct err *e);

static int encode_added(struct text_worker *w, const struct vocab *v, const struct added *a, const unsigned char *text,
                        size_t n, struct place place, const struct text_encode_options *o, encode_between *between,
                        struct text_ids *ids, struct err *e) {
    static const struct place inside = {0};
    struct added_match m;
    size_t from = 0;
    for (size_t at = 0; added_next(a, v, text, n, &at, from, o->plain_specials, &m); from = m.end) {
        int rc = m.start > from ? between(w, v, text + from, m.start - from, from ? inside : place, o, ids, e) : 0;
        if (!rc) rc = append_id(ids, m.id, e);
        if (rc) return rc;
    }
    return from < n ? between(w, v, text + from, n - from, from ? inside : place, o, ids, e) : 0;
}

static int between_normalised(struct text_worker *w, const struct vocab *v, const unsigned char *text, size_t n,
                              struct place place, const struct text_encode_options *o, struct text_ids *ids,
                              struct err *e) {
    (void)o;
    return encode_plain(w, v, text, n, place, ids, e);
}

static int between_raw(struct text_worker *w, const struct vocab *v, const unsigned char *text, size_t n,
                       struct place place, const struct text_encode_options *o, struct text_ids *ids, struct err *e) {
    if (!o->no_normalise) {
        int rc = normalize(v, &w->normal, text, n, &place, &text, &n, e);
        if (rc) return rc;
    }
    return encode_added(w, v, &v->index->normalised, text, n, place, o, between_normalised, ids, e);
}

int worker_encode(struct text_worker *w, const struct vocab *v, const void *text, size_t n,
                  const struct text_encode_options *o, struct text_ids *ids, struct err *e) {
    static const struct text_encode_options defaults = {0};
    if (!o) o = &defaults;
    const struct place place = {.start = !o->continues, .continues = o->continues};
    return encode_added(w, v, &v->index->raw, text, n, place, o, between_raw, ids, e);
}

int text_encode(const struct vocab *v, const void *text, size_t n, const struct text_encode_options *o,
                struct text_ids *ids, struct err *e) {
    struct text_worker *w;
    int rc = worker_take(&w, v, e);
    if (rc) return rc;
    rc = worker_encode(w, v, text, n, o, ids, e);
    worker_give(v, w);
    return rc;
}
