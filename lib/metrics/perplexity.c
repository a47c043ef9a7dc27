/* Perplexity by named protocols. */
#include "lib/metrics/metrics_internal.h"

#include <math.h>
#include <stdlib.h>

static const char *const protocol_names[] = {"gptq", "llama", "sliding", "sequences", "documents"};

int perplexity_protocol_parse(const char *name, enum perplexity_protocol *out, struct err *e) {
    for (size_t i = 0; i < COUNT_OF(protocol_names); i++)
        if (!strcmp(protocol_names[i], name)) {
            *out = (enum perplexity_protocol)i;
            return 0;
        }
    return err_set(e, ERR_USAGE, "unknown protocol '%.64s' (gptq, llama, sliding, sequences, documents)", name);
}

struct perplexity {
    struct model *m;
    struct perplexity_options o;
    struct scorer scorer;
    struct buf text;   /* u32: tokens not yet behind us */
    struct buf labels; /* u32 [context]: scratch */
    bool begun;        /* sliding: the first window is out; documents: the prefix of this document is in `text` */
    size_t unscored;   /* documents, sliding: tokens at the end of `text` that no window has scored yet */
    bool in_space;     /* documents: the last byte was white space */
    uint64_t windows, scored, bytes, words, documents;
    double nll, nll_sq;
};

int perplexity_new(struct perplexity **out, struct model *m, const struct perplexity_options *o, struct err *e) {
    if (o->context < 2) return err_set(e, ERR_USAGE, "a context of %u has nothing to score", o->context);
    if (o->context > m->config.context)
        return err_set(e, ERR_USAGE, "context %u: the model was made for %u", o->context, m->config.context);
    if (o->protocol == PPL_SLIDING && (o->stride == 0 || o->stride >= o->context))
        return err_set(e, ERR_USAGE, "stride %u: expected 1 to %u, below the context", o->stride, o->context - 1);
    if (o->protocol == PPL_DOCUMENTS && metrics_prefix_token(m) == TOKEN_NONE)
        return err_set(e, ERR_DATA, "protocol documents needs a BOS or EOS token: this model has neither");
    struct perplexity *p = mem_zalloc(sizeof *p, e);
    if (!p) return e->code;
    p->m = m;
    p->o = *o;
    int rc = scorer_init(&p->scorer, m, e);
    if (!rc) rc = buf_reserve(&p->labels, o->context * sizeof(uint32_t), e);
    if (rc)
        perplexity_free(p);
    else
        *out = p;
    return rc;
}

void perplexity_free(struct perplexity *p) {
    if (!p) return;
    scorer_release(&p->scorer);
    buf_release(&p->text);
    buf_release(&p->labels);
    mem_free(p);
}

/* ---- windows ------------------------------------------------------------------------------------------------------------ */

static int flush(struct perplexity *p, struct err *e) {
    int rc = scorer_run(&p->scorer, e);
    if (rc) return rc;
    const double *nll = (const double *)p->scorer.nll.data;
    const uint32_t *labels = (const uint32_t *)p->scorer.labels.data;
    for (size_t i = 0; i < scorer_positions(&p->scorer); i++) {
        if (labels[i] == UINT32_MAX) continue;
        p->nll += nll[i];
        p->nll_sq += nll[i] * nll[i];
        p->scored++;
        if (p->m->vocab) p->bytes += p->m->vocab->tokens[labels[i]].n_bytes;
    }
    scorer_clear(&p->scorer);
    return 0;
}

/* A window of n input tokens; targets tokens[from .. n_tokens) are scored, of which the last may lie one behind the inputs. */
static int add_window(struct perplexity *p, const uint32_t *tokens, size_t n_tokens, size_t n, size_t from,
                      struct err *e) {
    uint32_t *labels = (uint32_t *)p->labels.data;
    for (size_t i = 0; i < n; i++) labels[i] = i + 1 < n_tokens && i + 1 >= from ? tokens[i + 1] : UINT32_MAX;
    int rc = 0;
    if (scorer_positions(&p->scorer) && scorer_positions(&p->scorer) + n > p->o.batch_positions) rc = flush(p, e);
    if (!rc) rc = scorer_add(&p->scorer, tokens, labels, n, e);
    if (!rc) p->windows++;
    return rc;
}

bool perplexity_full(const struct perplexity *p) {
    return p->o.max_windows && p->windows >= p->o.max_windows;
}

static uint32_t *text_of(struct perplexity *p) {
    return (uint32_t *)p->text.data;
}
static size_t text_len(const struct perplexity *p) {
    return p->text.len / sizeof(uint32_t);
}

static void drop_text(struct perplexity *p, size_t n) {
    memmove(p->text.data, p->text.data + n * sizeof(uint32_t), p->text.len - n * sizeof(uint32_t));
    p->text.len -= n * sizeof(uint32_t);
}

/* gptq and llama: disjoint windows of one text. */
static int cut_disjoint(struct perplexity *p, struct err *e) {
    size_t n = p->o.context, used = 0;
    int rc = 0;
    for (; !rc && !perplexity_full(p) && text_len(p) - used >= n; used += n) {
        uint32_t *w = text_of(p) + used;
        /* llama-perplexity overwrites the first token; it is never scored. */
        if (p->o.protocol == PPL_LLAMA && p->m->vocab && p->m->vocab->add_bos && p->m->vocab->bos != TOKEN_NONE)
            w[0] = p->m->vocab->bos;
        rc = add_window(p, w, n, n, p->o.protocol == PPL_LLAMA ? n / 2 + 1 : 1, e);
    }
    drop_text(p, used);
    return rc;
}

/* sliding: `text` begins at the next window's first token; of it, all but the last `unscored` have been scored. */
static int cut_sliding(struct perplexity *p, bool end, struct err *e) {
    size_t n = p->o.context;
    int rc = 0;
    while (!rc && !perplexity_full(p) && (text_len(p) >= n || (end && p->unscored))) {
        size_t len = text_len(p) < n ? text_len(p) : n;
        size_t behind = text_len(p) - p->unscored; /* scored before */
        if (len >= 2) rc = add_window(p, text_of(p), len, len, behind ? behind : 1, e);
        p->unscored = text_len(p) - len;
        if (text_len(p) <= n && end) break;
        drop_text(p, p->o.stride);
    }
    return rc;
}

/* documents: full windows of context + 1 tokens, each sharing its first with the last of the one before; what is left at the
 * document's end is scored with as much context as there is. */
static int cut_document(struct perplexity *p, bool end, struct err *e) {
    size_t n = p->o.context;
    int rc = 0;
    while (!rc && p->unscored >= n) {
        size_t first = text_len(p) - p->unscored - 1;
        rc = add_window(p, text_of(p) + first, n + 1, n, 1, e);
        p->unscored -= n;
        drop_text(p, first); /* the window stays as the context of a last, partial one */
    }
    if (rc || !end) return rc;
    if (p->unscored) {
        size_t have = text_len(p), len = have < n + 1 ? have : n + 1; /* tokens of the window, targets included */
        rc = add_window(p, text_of(p) + have - len, len, len - 1, len - p->unscored, e);
    }
    p->text.len = 0;
    p->unscored = 0;
    p->begun = false;
    return rc;
}

/* White-space separated words of the text that the tokens spell: runs of white space, plus one, as lm-eval's re.split counts. */
static void count_words(struct perplexity *p, const uint32_t *tokens, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const struct token *t = &p->m->vocab->tokens[tokens[i]];
        for (uint32_t k = 0; k < t->n_bytes; k++) {
            bool space = t->bytes[k] == ' ' || (t->bytes[k] >= '\t' && t->bytes[k] <= '\r');
            p->words += space && !p->in_space;
            p->in_space = space;
        }
    }
}

static int begin_document(struct perplexity *p, struct err *e) {
    p->begun = true;
    p->in_space = false;
    p->words++;
    p->documents++;
    return push_u32(&p->text, metrics_prefix_token(p->m), e);
}

static int feed_document(struct perplexity *p, const uint32_t *tokens, size_t n, bool end, struct err *e) {
    int rc = p->begun ? 0 : begin_document(p, e);
    if (!rc) count_words(p, tokens, n);
    /* In pieces, so that a document of any length needs the memory of a few windows. */
    for (size_t at = 0, piece; !rc && at < n; at += piece) {
        piece = n - at < p->o.context ? n - at : p->o.context;
        rc = buf_append(&p->text, tokens + at, piece * sizeof *tokens, e);
        p->unscored += piece;
        if (!rc) rc = cut_document(p, false, e);
    }
    return rc || !end ? rc : cut_document(p, true, e);
}

static int feed_sequence(struct perplexity *p, const uint32_t *tokens, size_t n, struct err *e) {
    if (n > p->o.context)
        return err_set(
            e, ERR_DATA,
            "a sequence of %zu tokens is longer than the context of %u (tokenize --context, or another --protocol)", n,
            p->o.context);
    return n < 2 ? 0 : add_window(p, tokens, n, n, 1, e);
}

static int feed_by_sequence(struct perplexity *p, const struct batch *b, struct err *e) {
    const uint32_t *tokens = batch_tokens(b), *lengths = batch_lengths(b);
    bool documents = p->o.protocol == PPL_DOCUMENTS;
    if (!documents && (b->head.first_pos || (b->head.flags & BATCH_CONTINUES)))
        return err_set(
            e, ERR_DATA,
            "sequences run over several batches: longer than a context (tokenize --context, or another --protocol)");
    int rc = 0;
    for (uint32_t s = 0; !rc && s < b->head.n_seqs && !perplexity_full(p); tokens += lengths[s++]) {
        bool open = s + 1 == b->head.n_seqs && (b->head.flags & BATCH_CONTINUES);
        rc = documents ? feed_document(p, tokens, lengths[s], !open, e) : feed_sequence(p, tokens, lengths[s], e);
    }
    return rc;
}

int perplexity_feed(struct perplexity *p, const struct batch *b, struct err *e) {
    const uint32_t *tokens = batch_tokens(b);
    for (uint64_t i = 0; i < b->head.n_positions; i++)
        if (tokens[i] >= p->m->config.vocab_size)
            return err_set(e, ERR_DATA, "token %u is outside the vocabulary of %u", tokens[i], p->m->config.vocab_size);
    if (p->o.protocol == PPL_SEQUENCES || p->o.protocol == PPL_DOCUMENTS) return feed_by_sequence(p, b, e);
    int rc = buf_append(&p->text, tokens, b->head.n_positions * sizeof *tokens, e);
    p->unscored += b->head.n_positions;
    if (rc) return rc;
    return p->o.protocol == PPL_SLIDING ? cut_sliding(p, false, e) : cut_disjoint(p, e);
}

int perplexity_finish(struct perplexity *p, struct err *e) {
    int rc = 0;
    if (p->o.protocol == PPL_SLIDING) rc = cut_sliding(p, true, e);
    if (p->o.protocol == PPL_DOCUMENTS && p->begun && !perplexity_full(p)) rc = cut_document(p, true, e);
    if (!rc) rc = flush(p, e);
    if (!rc && !p->scored)
        rc = err_set(e, ERR_DATA, "not enough tokens for one window of %u by protocol %s", p->o.context,
                     protocol_names[p->o.protocol]);
    return rc;
}

/* ---- results -------------------------------------------------------------------------------------------------------------- */

uint64_t perplexity_scored(const struct perplexity *p) {
    return p->scored;
}
double perplexity_value(const struct perplexity *p) {
    return exp(p->nll / (double)p->scored);
}

cJSON *perplexity_json(const struct perplexity *p, struct err *e) {
    double n = (double)p->scored, mean = p->nll / n, ppl = exp(mean), variance = p->nll_sq / n - mean * mean;
    cJSON *o = cJSON_CreateObject();
    bool ok = o && json_put_str(o, "metric", "perplexity") &&
              json_put_str(o, "protocol", protocol_names[p->o.protocol]) && json_put_u64(o, "context", p->o.context) &&
              (p->o.protocol != PPL_SLIDING || json_put_u64(o, "stride", p->o.stride)) &&
              json_put_u64(o, "windows", p->windows) && json_put_u64(o, "scored", p->scored) &&
              json_put_f64(o, "perplexity", ppl) &&
              json_put_f64(o, "stderr", p->scored > 1 ? ppl * sqrt((variance > 0 ? variance : 0) / (n - 1)) : 0) &&
              json_put_f64(o, "nll", mean);
    if (ok && p->bytes) ok = json_put_f64(o, "bits_per_byte", p->nll / ((double)p->bytes * M_LN2));
    if (ok && p->o.protocol == PPL_DOCUMENTS)
        ok = json_put_u64(o, "documents", p->documents) && json_put_u64(o, "words", p->words) &&
             json_put_f64(o, "word_perplexity", exp(p->nll / (double)p->words)) &&
             (!p->bytes || json_put_f64(o, "byte_perplexity", exp(p->nll / (double)p->bytes)));
    if (ok) return o;
    cJSON_Delete(o);
    err_nomem(e, "results");
    return NULL;
}
