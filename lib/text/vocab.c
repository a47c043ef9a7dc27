/* Makes a vocabulary: copies, checks and indexes it. */
#include <stdlib.h>

#include "lib/text/text_internal.h"

#define KNOWN_FLAGS                                                                                                    \
    (TOKEN_SPECIAL | TOKEN_ADDED | TOKEN_LSTRIP | TOKEN_RSTRIP | TOKEN_SINGLE_WORD | TOKEN_NORMALIZED | TOKEN_UNUSED)

/* ---- checks that need no index ---- */

static int check_token(const struct token *t, uint32_t id, struct err *e) {
    if (t->flags & ~(uint32_t)KNOWN_FLAGS) return err_set(e, ERR_DATA, "token %u: unknown flags %#x", id, t->flags);
    if (t->flags & TOKEN_UNUSED) {
        if (t->n_bytes) return err_set(e, ERR_DATA, "token %u: unused, but has %u bytes", id, t->n_bytes);
        return 0;
    }
    if (t->n_bytes < 1 || t->n_bytes > TEXT_MAX_PIECE)
        return err_set(e, ERR_DATA, "token %u: %u bytes, expected 1 to %u", id, t->n_bytes, TEXT_MAX_PIECE);
    if (!(t->score >= -3.4e38f && t->score <= 3.4e38f))
        return err_set(e, ERR_DATA, "token %u: score is not a number", id);
    return 0;
}

static int check_role(const struct vocab *v, const char *role, uint32_t id, struct err *e) {
    if (id == TOKEN_NONE || id < v->n_tokens) return 0;
    return err_set(e, ERR_DATA, "%s: token %u is outside the vocabulary of %u", role, id, v->n_tokens);
}

static uint32_t count_unpadded(const struct vocab *v) {
    uint32_t n = v->n_tokens;
    while (n && (v->tokens[n - 1].flags & TOKEN_UNUSED)) n--;
    return n;
}

static int check_spec(const struct vocab *v, struct err *e) {
    int rc = steps_check(v, e);
    if (rc) return rc;
    if (v->n_tokens < 1 || v->n_tokens > TEXT_MAX_TOKENS)
        return err_set(e, ERR_DATA, "%u tokens, expected 1 to %u", v->n_tokens, TEXT_MAX_TOKENS);
    if (v->n_merges > TEXT_MAX_MERGES)
        return err_set(e, ERR_DATA, "%u merges, expected at most %u", v->n_merges, TEXT_MAX_MERGES);
    for (uint32_t id = 0; id < v->n_tokens && !rc; id++) rc = check_token(&v->tokens[id], id, e);
    if (!rc && !count_unpadded(v)) rc = err_set(e, ERR_DATA, "none of the %u tokens has a piece", v->n_tokens);
    if (!rc) rc = check_role(v, "bos", v->bos, e);
    if (!rc) rc = check_role(v, "eos", v->eos, e);
    if (!rc) rc = check_role(v, "pad", v->pad, e);
    if (!rc) rc = check_role(v, "unk", v->unk, e);
    if (v->n_ends > TEXT_MAX_ENDS)
        return err_set(e, ERR_DATA, "%u end tokens, expected at most %u", v->n_ends, TEXT_MAX_ENDS);
    for (uint32_t i = 0; i < v->n_ends && !rc; i++)
        rc = v->ends[i] == TOKEN_NONE ? err_set(e, ERR_DATA, "an end token is none")
                                      : check_role(v, "end", v->ends[i], e);
    if (!rc && v->chat_template && !utf8_valid(v->chat_template, strlen(v->chat_template)))
        rc = err_set(e, ERR_DATA, "chat template: invalid UTF-8");
    return rc;
}

/* ---- the copy ---- */

static int copy_tokens(struct vocab *v, const struct token *from, struct err *e) {
    uint64_t total = 0;
    for (uint32_t id = 0; id < v->n_tokens; id++) total += from[id].n_bytes;
    unsigned char *bytes = arena_alloc(&v->memory, total, e);
    v->tokens = bytes ? arena_array(&v->memory, v->n_tokens, sizeof *v->tokens, e) : NULL;
    if (!v->tokens) return e->code;
    for (uint32_t id = 0; id < v->n_tokens; id++) {
        v->tokens[id] = from[id];
        v->tokens[id].bytes = bytes;
        if (from[id].n_bytes) memcpy(bytes, from[id].bytes, from[id].n_bytes);
        bytes += from[id].n_bytes;
    }
    return 0;
}

static int by_id(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* Copies them sorted, without duplicates, and including eos. */
static int copy_ends(struct vocab *v, const struct vocab *spec, struct err *e) {
    uint32_t *ends = arena_array(&v->memory, (size_t)spec->n_ends + 1, sizeof *ends, e), n = spec->n_ends;
    if (!ends) return e->code;
    if (n) memcpy(ends, spec->ends, n * sizeof *ends);
    if (spec->eos != TOKEN_NONE) ends[n++] = spec->eos;
    if (n) qsort(ends, n, sizeof *ends, by_id);
    v->ends = ends;
    v->n_ends = 0;
    for (uint32_t i = 0; i < n; i++)
        if (!i || ends[i] != ends[i - 1]) ends[v->n_ends++] = ends[i];
    return 0;
}

static int copy_spec(struct vocab *v, const struct vocab *spec, struct err *e) {
    *v = *spec;
    v->memory = (struct arena){0};
    v->index = NULL;
    v->n_unpadded = count_unpadded(spec);
    int rc = copy_tokens(v, spec->tokens, e);
    if (!rc) rc = copy_ends(v, spec, e);
    if (!rc) rc = steps_copy(v, spec, e);
    if (rc) return rc;
    v->merges = arena_array(&v->memory, v->n_merges, sizeof *v->merges, e);
    if (!v->merges) return e->code;
    if (v->n_merges) memcpy(v->merges, spec->merges, v->n_merges * sizeof *v->merges);
    if (spec->chat_template) {
        v->chat_template = arena_strdup(&v->memory, spec->chat_template, e);
        if (!v->chat_template) return e->code;
    }
    return 0;
}

/* ---- identity ---- */

static void digest_u32(struct digest_state *s, uint32_t x) {
    const unsigned char le[4] = {(unsigned char)x, (unsigned char)(x >> 8), (unsigned char)(x >> 16),
                                 (unsigned char)(x >> 24)};
    digest_update(s, le, sizeof le);
}

/* Normative description: formats/vocb.md, "Identity". */
int vocab_identify(struct vocab *v, struct err *e) {
    struct digest_state *s = digest_new(e);
    if (!s) return e->code;
    uint32_t n = count_unpadded(v);
    digest_u32(s, v->pre);
    digest_u32(s, (v->nfc ? 1u : 0u) | (v->ignore_merges ? 2u : 0u));
    bool merges = v->kind == TEXT_BYTE_BPE; /* for the other kinds, some files list merges and others scores */
    if (!merges) digest_u32(s, v->kind);
    digest_u32(s, n);
    digest_u32(s, merges ? v->n_merges : 0);
    for (uint32_t id = 0; id < n; id++) {
        const struct token *t = &v->tokens[id];
        digest_u32(s, t->n_bytes);
        digest_u32(s, t->flags & (TOKEN_SPECIAL | TOKEN_ADDED | TOKEN_UNUSED));
        digest_update(s, t->bytes, t->n_bytes);
    }
    for (uint32_t i = 0; i < v->n_merges && merges; i++) {
        digest_u32(s, v->merges[i].left);
        digest_u32(s, v->merges[i].right);
        digest_u32(s, v->merges[i].result);
    }
    v->digest = digest_get(s);
    digest_free(s);
    return 0;
}

/* ---- the whole ---- */

static int build_index(struct vocab *v, struct err *e) {
    v->index = arena_array(&v->memory, 1, sizeof *v->index, e);
    if (!v->index) return e->code;
    pthread_mutex_init(&v->index->lock, NULL); /* cannot fail with default attributes on Linux */
    int rc = v->kind == TEXT_BYTE_BPE ? pretokenizer_new(&v->index->pre, v->pre, e) : 0;
    if (!rc) rc = index_pieces(v, e);
    if (!rc) rc = index_merges(v, e);
    if (!rc) rc = index_kind(v, e);
    if (!rc && v->kind == TEXT_UNIGRAM) rc = unigram_build(v, e);
    if (!rc) rc = decode_build(v, e);
    if (!rc) rc = added_build(&v->index->raw, v, false, e);
    if (!rc) rc = added_build(&v->index->normalised, v, true, e);
    return rc;
}

int vocab_new(struct vocab **out, const struct vocab *spec, struct err *e) {
    int rc = check_spec(spec, e);
    if (rc) return rc;
    struct vocab *v = mem_zalloc(sizeof *v, e);
    if (!v) return e->code;
    rc = copy_spec(v, spec, e);
    if (!rc) rc = build_index(v, e);
    if (!rc) rc = vocab_identify(v, e);
    if (rc) {
        vocab_free(v);
        return rc;
    }
    *out = v;
    return 0;
}

void vocab_free(struct vocab *v) {
    if (!v) return;
    if (v->index) {
        for (struct text_worker *w = v->index->idle, *next; w; w = next) {
            next = w->next;
            worker_free(w);
        }
        pretokenizer_free(v->index->pre);
        pthread_mutex_destroy(&v->index->lock);
    }
    arena_release(&v->memory);
    mem_free(v);
}

/* ---- pruning ---- */

/* Marks the intermediate tokens of token `id`: the results of the merges when its own bytes are encoded. If these do
 * not end in it (it is only matched as a whole, or never), it needs none. */
static int keep_parts(const struct vocab *v, uint32_t id, struct bpe_memory *m, struct text_ids *ids,
                      struct text_ids *trace, unsigned char *kept, struct err *e) {
    const struct token *t = &v->tokens[id];
    if (v->kind > TEXT_CHAR_BPE) return 0; /* tokens are not built from other tokens */
    ids->n = trace->n = 0;
    int rc = bpe_merge(v, m, t->bytes, t->n_bytes, ids, trace, e);
    if (rc) return rc;
    if (ids->n == 1 && ids->ids[0] == id)
        for (size_t i = 0; i < trace->n; i++) kept[trace->ids[i]] = 1;
    return 0;
}

/* Is it a single ASCII character, without which texts could not be encoded? In WordPiece, also inside a word. */
static bool is_character(const struct vocab *v, const struct token *t) {
    const struct text_step *s = vocab_find_step(v, MODEL_WORDPIECE);
    if (t->n_bytes == 1) return true;
    if (v->kind != TEXT_BYTE_BPE && t->n_bytes == METASPACE_BYTES && memcmp(t->bytes, METASPACE, METASPACE_BYTES) == 0)
        return true;
    return s && t->n_bytes == s->n_a + 1 && memcmp(t->bytes, s->a, s->n_a) == 0;
}

static bool must_keep(const struct vocab *v, uint32_t id) {
    const struct token *t = &v->tokens[id];
    bool byte = v->kind != TEXT_BYTE_BPE && text_byte_piece(t) >= 0;
    return (t->flags & (TOKEN_SPECIAL | TOKEN_ADDED)) || byte || is_character(v, t) || id == v->bos || id == v->eos ||
           id == v->pad || id == v->unk;
}

static void keep_ends(const struct vocab *v, unsigned char *kept) {
    for (uint32_t i = 0; i < v->n_ends; i++) kept[v->ends[i]] = 1;
}

static int close_over_merges(const struct vocab *v, const unsigned char *keep, unsigned char *kept, struct err *e) {
    struct bpe_memory m = {0};
    struct text_ids ids = {0}, trace = {0};
    int rc = 0;
    keep_ends(v, kept);
    for (uint32_t id = 0; id < v->n_tokens && !rc; id++) {
        if (must_keep(v, id)) kept[id] = 1;
        if (!keep[id]) continue;
        kept[id] = 1;
        rc = keep_parts(v, id, &m, &ids, &trace, kept, e);
    }
    bpe_release(&m);
    text_ids_release(&ids);
    text_ids_release(&trace);
    return rc;
}

static uint32_t renumber(const uint32_t *map, uint32_t id) {
    return id == TOKEN_NONE ? TOKEN_NONE : map[id];
}

/* Builds the spec of the pruned vocabulary in `memory`; the tokens' bytes are still v's. */
static int pruned_spec(struct vocab *spec, const struct vocab *v, const uint32_t *map, uint32_t n_kept,
                       struct arena *memory, struct err *e) {
    *spec = *v;
    spec->tokens = arena_array(memory, n_kept, sizeof *spec->tokens, e);
    spec->merges = spec->tokens ? arena_array(memory, v->n_merges, sizeof *spec->merges, e) : NULL;
    uint32_t *ends = spec->merges ? arena_array(memory, v->n_ends, sizeof *ends, e) : NULL;
    if (!ends) return e->code;
    spec->n_tokens = n_kept;
    spec->n_merges = 0;
    for (uint32_t id = 0; id < v->n_tokens; id++)
        if (map[id] != TOKEN_NONE) spec->tokens[map[id]] = v->tokens[id];
    for (uint32_t i = 0; i < v->n_merges; i++) {
        const struct merge m = {map[v->merges[i].left], map[v->merges[i].right], map[v->merges[i].result]};
        if (m.left != TOKEN_NONE && m.right != TOKEN_NONE && m.result != TOKEN_NONE) spec->merges[spec->n_merges++] = m;
    }
    spec->bos = renumber(map, v->bos);
    spec->eos = renumber(map, v->eos);
    spec->pad = renumber(map, v->pad);
    spec->unk = renumber(map, v->unk);
    for (uint32_t i = 0; i < v->n_ends; i++) ends[i] = map[v->ends[i]];
    spec->ends = ends;
    return 0;
}

int vocab_prune(struct vocab **out, const struct vocab *v, const unsigned char *keep, uint32_t *map, struct err *e) {
    struct arena memory = {0};
    struct vocab spec;
    unsigned char *kept = arena_array(&memory, v->n_tokens, 1, e);
    int rc = kept ? close_over_merges(v, keep, kept, e) : e->code;
    uint32_t n_kept = 0;
    for (uint32_t id = 0; id < v->n_tokens && !rc; id++) map[id] = kept[id] ? n_kept++ : TOKEN_NONE;
    if (!rc && !n_kept) rc = err_set(e, ERR_USAGE, "no token would be left of the vocabulary");
    if (!rc) rc = pruned_spec(&spec, v, map, n_kept, &memory, e);
    if (!rc) rc = vocab_new(out, &spec, e);
    arena_release(&memory);
    return rc;
}
