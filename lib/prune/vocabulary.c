/* Plans which tokens stay: counts how often each occurs, and reduces the vocabulary to the frequent ones. */
#include "lib/prune/prune_internal.h"

/* ---- counting ---------------------------------------------------------------------------------------------------- */

/* META of a segment; its vocabulary must be that of the first segment. */
static int take_meta(struct prune_tokens *t, const struct stream_reader *r, const cJSON *meta, struct err *e) {
    const char *vocab = NULL;
    uint64_t n = 0;
    int rc = json_get_str(meta, "vocab", &vocab, e);
    if (!rc) rc = json_get_u64(meta, "vocab_size", 1, MODEL_MAX_VOCAB, &n, e);
    if (rc) return err_prefix(e, "%s: tokens of an unknown vocabulary", stream_reader_name(r));
    /* Sizes of one vocabulary differ by padding, whose tokens never occur. */
    if (t->count && strcmp(vocab, t->vocab) != 0)
        return err_set(e, ERR_DATA, "%s: tokens of two vocabularies: %s and %.64s", stream_reader_name(r), t->vocab,
                       vocab);
    if (t->count) return 0;
    t->n = (uint32_t)n;
    snprintf(t->vocab, sizeof t->vocab, "%s", vocab);
    t->count = arena_array(&t->memory, n, sizeof *t->count, e);
    return t->count ? 0 : e->code;
}

static int count_batch(struct prune_tokens *t, const struct stream_reader *r, const struct batch *b, struct err *e) {
    const uint32_t *tokens = batch_tokens(b);
    for (uint64_t i = 0; i < b->head.n_positions; i++) {
        if (tokens[i] >= t->n)
            return err_set(e, ERR_DATA, "%s: token %u is outside the vocabulary of %u", stream_reader_name(r),
                           tokens[i], t->n);
        t->count[tokens[i]]++;
    }
    return 0;
}

int prune_tokens_count(struct prune_tokens *t, struct stream_reader *r, struct err *e) {
    struct batch b = {0};
    struct stream_item item = {0};
    int rc = 0;
    while (!rc && !(rc = stream_next(r, &item, e)) && item.type != ITEM_EOF) {
        if (item.type == ITEM_META) rc = take_meta(t, r, item.json, e);
        if (item.type != ITEM_BATCH) continue;
        rc = batch_load(r, &b, &item, e);
        if (!rc) rc = count_batch(t, r, &b, e);
    }
    batch_release(&b);
    return rc;
}

void prune_tokens_release(struct prune_tokens *t) {
    arena_release(&t->memory);
}

/* ---- the new vocabulary ------------------------------------------------------------------------------------------ */

static int check_tokens(const struct prune_plan *p, const struct model_head *head, struct err *e) {
    char ours[DIGEST_TEXT_SIZE];
    if (!head->vocab.len) return err_set(e, ERR_DATA, "this model has no vocabulary to prune");
    digest_text(head->vocab_digest, ours);
    if (p->o->tokens && strcmp(ours, p->o->tokens->vocab) != 0)
        return err_set(e, ERR_DATA, "model and tokens disagree: vocabulary %s against %s (tokenize with this model)",
                       ours, p->o->tokens->vocab);
    return 0;
}

/* Whether the options keep this token, if there is room for it. */
static bool keep_token(const struct prune_options *o, const struct vocab *v, uint32_t id) {
    if (o->padding) return id < v->n_unpadded;
    return id < o->tokens->n && o->tokens->count[id] >= o->vocab_min_count;
}

/* A vocabulary that is being reduced. */
struct fewer_tokens {
    const struct vocab *old;
    double *count;       /* [n_tokens] how often a token occurs; -1: it does not stay */
    uint32_t *ids, n;    /* [n_tokens]; tokens that may stay */
    unsigned char *keep; /* [n_tokens] */
    uint32_t *map;       /* [n_tokens] new ids */
};

/* Makes a vocabulary of the `n` most frequent tokens and those that they need. Replaces *out. */
static int most_frequent(const struct fewer_tokens *f, uint32_t n, struct vocab **out, struct err *e) {
    struct arena a = {0};
    vocab_free(*out);
    *out = NULL;
    int rc = prune_choose(f->count, f->old->n_tokens, n, f->ids, &a, e);
    arena_release(&a);
    if (rc) return rc;
    memset(f->keep, 0, f->old->n_tokens);
    for (uint32_t i = 0; i < n; i++) f->keep[f->ids[i]] = 1;
    return vocab_prune(out, f->old, f->keep, f->map, e);
}

/* Keeps as many of the most frequent tokens as `most` has room for: a vocabulary grows with each token to keep. */
static int fit_vocab(const struct fewer_tokens *f, uint32_t most, struct vocab **out, struct err *e) {
    uint32_t fits = 0, too_many = f->n;
    int rc = most_frequent(f, f->n, out, e);
    if (rc || !most || (*out)->n_tokens <= most) return rc;
    while (!rc && too_many - fits > 1) {
        uint32_t half = fits + (too_many - fits) / 2;
        rc = most_frequent(f, half, out, e);
        if (!rc) *((*out)->n_tokens <= most ? &fits : &too_many) = half;
    }
    if (!rc) rc = most_frequent(f, fits ? fits : 1, out, e);
    if (!rc && !fits)
        rc = err_set(e, ERR_USAGE,
                     "no vocabulary of %u tokens: single bytes, special tokens and the most frequent one are %u", most,
                     (*out)->n_tokens);
    return rc;
}

static int begin(struct fewer_tokens *f, struct prune_plan *p, struct err *e) {
    uint32_t n = f->old->n_tokens;
    f->count = arena_array(&p->memory, n, sizeof *f->count, e);
    f->ids = f->count ? arena_array(&p->memory, n, sizeof *f->ids, e) : NULL;
    f->keep = f->ids ? arena_array(&p->memory, n, 1, e) : NULL;
    f->map = f->keep ? arena_array(&p->memory, n, sizeof *f->map, e) : NULL;
    p->kept_tokens = f->map ? arena_array(&p->memory, n, sizeof *p->kept_tokens, e) : NULL;
    if (!p->kept_tokens) return e->code;
    for (uint32_t i = 0; i < n; i++) {
        bool stays = keep_token(p->o, f->old, i);
        f->n += stays;
        f->count[i] = !stays ? -1 : p->o->padding ? 0 : (double)p->o->tokens->count[i];
    }
    return 0;
}

int prune_plan_vocab(struct prune_plan *p, const struct model_head *head, struct err *e) {
    struct vocab *old = NULL, *pruned = NULL;
    struct fewer_tokens f = {0};
    int rc = check_tokens(p, head, e);
    if (!rc) rc = vocab_unpack(&old, head->vocab.data, head->vocab.len, e);
    if (!rc && old->n_tokens != p->from->vocab_size)
        rc = err_set(e, ERR_DATA, "the vocabulary has %u tokens, the model %u", old->n_tokens, p->from->vocab_size);
    f.old = old;
    if (!rc) rc = begin(&f, p, e);
    if (!rc) rc = fit_vocab(&f, p->o->vocab_size, &pruned, e);
    if (!rc) rc = vocab_pack(pruned, &p->vocab, e);
    if (!rc) {
        p->to.vocab_size = pruned->n_tokens;
        for (uint32_t i = 0; i < old->n_tokens; i++)
            if (f.map[i] != TOKEN_NONE) p->kept_tokens[f.map[i]] = i;
    }
    vocab_free(old);
    vocab_free(pruned);
    return rc;
}
