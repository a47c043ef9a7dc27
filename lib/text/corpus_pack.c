/* Cuts documents into sequences and collects them into batches. Sequential, so that the result cannot depend on
 * threads. */
#include "lib/text/corpus_internal.h"

/* Maximum length of a sequence; 0: no limit. */
static uint32_t longest(const struct corpus_options *o) {
    return o->context ? o->context : o->pack;
}

/* A batch has whole contexts or packs, as many as fit but at least one. */
static size_t batch_capacity(const struct corpus_options *o) {
    if (o->pack) return o->batch_tokens < o->pack ? o->pack : o->batch_tokens;
    if (!o->context) return o->batch_tokens;
    return o->batch_tokens < o->context ? o->context : o->batch_tokens / o->context * o->context;
}

int packer_init(struct packer *p, struct err *e) {
    p->cap = batch_capacity(p->o);
    p->tokens = mem_array(p->cap, sizeof *p->tokens, e);
    p->lengths = p->tokens ? mem_array(p->cap, sizeof *p->lengths, e) : NULL;
    bool marks = p->o->mask || p->o->pair;
    if (p->lengths && marks) p->mask = mem_array(p->cap, sizeof *p->mask, e);
    bool labels = p->o->label || p->o->tags;
    if (p->lengths && labels) p->labels = mem_array(p->cap, sizeof *p->labels, e);
    return p->lengths && (p->mask || !marks) && (p->labels || !labels) ? 0 : e->code;
}

void packer_release(struct packer *p) {
    mem_free(p->tokens);
    mem_free(p->lengths);
    mem_free(p->mask);
    mem_free(p->labels);
}

/* ---- batches ---- */

static int write_batch(struct packer *p, size_t n, uint32_t n_seqs, bool continues, struct err *e) {
    const struct corpus_batch b = {.first_seq = p->first_seq,
                                   .first_pos = p->first_pos,
                                   .n_positions = n,
                                   .n_seqs = n_seqs,
                                   .continues = continues,
                                   .tokens = p->tokens,
                                   .mask = p->o->pair ? NULL : p->mask,
                                   .types = p->o->pair ? p->mask : NULL,
                                   .labels = p->labels,
                                   .lengths = p->lengths};
    for (size_t i = 0; i < n; i++) p->totals->text_bytes += vocab_text_bytes(p->v, p->tokens[i]);
    p->totals->tokens += n;
    p->totals->batches++;
    p->totals->sequences += n_seqs - (continues ? 1 : 0);
    return p->write(p->ctx, &b, e);
}

/* Writes the closed sequences and moves the open one to the front. */
static int write_closed(struct packer *p, struct err *e) {
    size_t n = p->open ? p->open_start : p->n;
    int rc = write_batch(p, n, p->n_seqs, false, e);
    if (rc) return rc;
    memmove(p->tokens, p->tokens + n, (p->n - n) * sizeof *p->tokens);
    if (p->mask) memmove(p->mask, p->mask + n, p->n - n);
    if (p->o->tags) memmove(p->labels, p->labels + n, (p->n - n) * sizeof *p->labels);
    p->n -= n;
    p->first_seq += p->n_seqs;
    p->first_pos = 0;
    p->n_seqs = 0;
    p->open_start = 0;
    return 0;
}

/* The batch is full, of closed sequences or of one that is longer than a batch: writes it. */
static int make_room(struct packer *p, struct err *e) {
    if (p->n_seqs) return write_closed(p, e);
    p->lengths[0] = (uint32_t)p->n;
    int rc = write_batch(p, p->n, 1, true, e);
    p->open_pos += p->n;
    p->first_pos = p->open_pos;
    p->n = 0;
    return rc;
}

/* ---- sequences ---- */

static uint64_t open_length(const struct packer *p) {
    return p->open_pos + (p->n - p->open_start);
}

/* Applies the rule by which readers recover packs. */
static void count_packs(struct packer *p, uint64_t n) {
    if (!p->o->pack || p->o->packing != PACKING_NEXT_FIT) return;
    bool begins = !p->pack || p->pack + n > p->o->pack;
    p->totals->packs += begins;
    p->pack = begins ? n : p->pack + n;
}

static void close_sequence(struct packer *p) {
    count_packs(p, open_length(p));
    p->lengths[p->n_seqs++] = (uint32_t)(p->n - p->open_start);
    p->open = false;
}

/* Number of tokens left before max_tokens, counting those in the batch. */
static uint64_t tokens_left(const struct packer *p) {
    return p->o->max_tokens ? p->o->max_tokens - p->totals->tokens - p->n : UINT64_MAX;
}

/* Called only when a token follows: a sequence of just BOS is useless. */
static int open_sequence(struct packer *p, struct err *e) {
    if (tokens_left(p) < 1u + p->o->bos) {
        p->full = true;
        return 0;
    }
    int rc = p->n == p->cap ? make_room(p, e) : 0;
    if (rc) return rc;
    p->open = true;
    p->open_start = p->n;
    p->open_pos = 0;
    if (p->o->bos && p->mask) p->mask[p->n] = 0;
    if (p->o->bos && p->o->tags) p->labels[p->n] = TOKEN_NONE;
    if (p->o->bos) p->tokens[p->n++] = p->v->bos;
    return 0;
}

static size_t min_size(size_t a, uint64_t b) {
    return b < a ? (size_t)b : a;
}

/* Takes as many ids as fit into the open sequence, the batch and max_tokens. mask NULL: all 0; tags NULL: none. */
static size_t take(struct packer *p, const uint32_t *ids, const uint8_t *mask, const uint32_t *tags, size_t n) {
    n = min_size(n, p->cap - p->n);
    n = min_size(n, tokens_left(p));
    if (longest(p->o)) n = min_size(n, longest(p->o) - open_length(p));
    memcpy(p->tokens + p->n, ids, n * sizeof *ids);
    if (p->mask && mask) memcpy(p->mask + p->n, mask, n);
    if (p->mask && !mask) memset(p->mask + p->n, 0, n);
    if (p->o->tags && tags) memcpy(p->labels + p->n, tags, n * sizeof *tags);
    if (p->o->tags && !tags) memset(p->labels + p->n, 0xFF, n * sizeof *tags);
    p->n += n;
    if (p->mask && n) p->last_mark = p->mask[p->n - 1];
    return n;
}

static int append(struct packer *p, const uint32_t *ids, const uint8_t *mask, const uint32_t *tags, size_t n,
                  struct err *e) {
    while (n && !p->full) {
        int rc = 0;
        if (!p->open)
            rc = open_sequence(p, e);
        else if (p->n == p->cap)
            rc = make_room(p, e);
        if (rc) return rc;
        if (!p->open || p->n == p->cap) continue; /* full, or BOS has filled the batch */
        size_t taken = take(p, ids, mask, tags, n);
        ids += taken;
        if (mask) mask += taken;
        if (tags) tags += taken;
        n -= taken;
        if (tokens_left(p) == 0) p->full = true;
        if (longest(p->o) && open_length(p) == longest(p->o)) close_sequence(p);
    }
    return 0;
}

/* ---- documents ---- */

int packer_add(struct packer *p, const uint32_t *ids, const uint8_t *mask, const uint32_t *tags, size_t n,
               struct err *e) {
    if (!n || p->full) return 0;
    p->in_document = true;
    int rc = p->eos_due ? append(p, &p->v->eos, NULL, NULL, 1, e) : 0;
    p->eos_due = false;
    return rc ? rc : append(p, ids, mask, tags, n, e);
}

int packer_end_document(struct packer *p, uint32_t label, struct err *e) {
    if (!p->in_document) {
        if (!p->full) p->totals->empty_documents++;
        return 0;
    }
    p->in_document = false;
    p->totals->documents++;
    uint8_t type = p->last_mark;
    bool alone = p->o->pack && !p->open; /* EOS would be a sequence by itself, which teaches nothing */
    int rc = p->o->eos == EOS_AFTER && !alone ? append(p, &p->v->eos, p->o->pair ? &type : NULL, NULL, 1, e) : 0;
    p->eos_due = p->o->context && p->o->eos == EOS_BETWEEN && p->v->eos != TOKEN_NONE;
    if (!rc && !p->o->context && p->open) {
        if (p->o->label) p->labels[p->n_seqs] = label;
        close_sequence(p);
    }
    return rc;
}

int packer_finish(struct packer *p, struct err *e) {
    if (p->in_document) p->totals->documents++; /* truncated by max_tokens */
    p->totals->stopped = p->full;
    if (p->open && p->o->context && p->o->drop_last) {
        p->n = p->open_start; /* a context is never split, so all of it is here */
        p->open = false;
    }
    if (p->open) close_sequence(p);
    return p->n_seqs ? write_closed(p, e) : 0;
}
