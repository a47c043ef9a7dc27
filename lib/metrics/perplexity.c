/*
 * Perplexity by named protocols. Tokens arrive in pieces and are cut into windows, which depend on the tokens, the ends
 * of sequences and the options, but not on where the stream's batches were cut.
 */
#include "lib/metrics/metrics_internal.h"

#include <math.h>

static const char *const protocol_names[] = {"gptq", "llama", "sliding", "sequences", "documents"};

int perplexity_protocol_parse(const char *name, enum perplexity_protocol *out, struct err *e) {
    for (size_t i = 0; i < COUNT_OF(protocol_names); i++)
        if (!strcmp(protocol_names[i], name)) {
            *out = (enum perplexity_protocol)i;
            return 0;
        }
    return err_set(e, ERR_USAGE, "unknown protocol '%.64s' (gptq, llama, sliding, sequences, documents)", name);
}

int perplexity_choose(struct perplexity_options *o, const struct model *m, struct err *e) {
    uint32_t most = m->config.context;
    if (o->stride && o->protocol != PPL_SLIDING)
        return err_set(e, ERR_USAGE, "--stride is for --protocol sliding, not %s", protocol_names[o->protocol]);
    if (!o->context) o->context = most > 512 && o->protocol != PPL_SEQUENCES ? 512 : most;
    if (!o->stride) o->stride = o->context / 2;
    return 0;
}

/* Counts words of a text that arrives in pieces: runs of white space, plus one. */
struct word_count {
    uint64_t words;
    bool in_space;
    uint32_t code;    /* bits of the current code point so far */
    unsigned missing; /* its bytes still to come */
};

struct perplexity {
    struct model *m;
    struct perplexity_options o;
    struct scorer scorer;
    struct buf text;   /* u32: tokens from the start of the next window; at most a few contexts */
    struct buf labels; /* u32 [context]: scratch */
    size_t unscored;   /* sliding, documents: tokens at the end of `text` that were not targets yet */
    bool open;         /* inside a sequence; the stream guarantees that the last one is complete */
    struct word_count words;
    uint64_t windows, bytes, documents;
    uint64_t bos; /* occurrences among the targets */
    struct moments nll;
};

static int check_options(const struct model *m, const struct perplexity_options *o, struct err *e) {
    uint32_t least = o->protocol == PPL_LLAMA ? 3 : 2;
    if (o->context < least) return err_set(e, ERR_USAGE, "a context of %u leaves nothing to score", o->context);
    if (o->context > m->config.context)
        return err_set(e, ERR_USAGE, "context %u: the model's context is %u", o->context, m->config.context);
    if (o->protocol == PPL_SLIDING && (o->stride == 0 || o->stride >= o->context))
        return err_set(e, ERR_USAGE, "stride %u: expected 1 to %u, below the context", o->stride, o->context - 1);
    if (o->protocol == PPL_DOCUMENTS && metrics_prefix_token(m) == TOKEN_NONE)
        return err_set(e, ERR_DATA, "protocol documents needs a BOS or EOS token: this model has neither");
    return 0;
}

int perplexity_new(struct perplexity **out, struct model *m, const struct perplexity_options *o, struct err *e) {
    int rc = check_options(m, o, e);
    if (rc) return rc;
    struct perplexity *p = mem_zalloc(sizeof *p, e);
    if (!p) return e->code;
    p->m = m;
    p->o = *o;
    rc = scorer_init(&p->scorer, m, e);
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

/* ---- bytes and words of the scored text -------------------------------------------------------------------------- */

/* Same as Python's \s, at which lm-eval splits. */
static bool is_space(uint32_t c) {
    return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

/* A token may end inside a character. Invalid UTF-8 only has to count as something other than a space. */
static void count_byte(struct word_count *w, unsigned char b) {
    if (b >= 0x80 && b < 0xc0 && w->missing) {
        w->code = w->code << 6 | (b & 0x3f);
        w->missing--;
    } else {
        if (w->missing) w->in_space = false;
        w->missing = b < 0xc0 ? 0 : b < 0xe0 ? 1 : b < 0xf0 ? 2 : 3;
        w->code = b < 0x80 ? b : b < 0xc0 ? 0xfffd : b & (0x3fu >> w->missing);
    }
    if (w->missing) return;
    bool space = is_space(w->code);
    w->words += space && !w->in_space;
    w->in_space = space;
}

static void count_text(struct perplexity *p, uint32_t token) {
    if (!p->m->vocab) return;
    p->bos += token == p->m->vocab->bos;
    uint32_t n;
    const unsigned char *text = vocab_text(p->m->vocab, token, &n);
    p->bytes += n;
    if (p->o.protocol != PPL_DOCUMENTS) return;
    for (uint32_t i = 0; i < n; i++) count_byte(&p->words, text[i]);
}

/* ---- windows ----------------------------------------------------------------------------------------------------- */

static int flush(struct perplexity *p, struct err *e) {
    int rc = scorer_run(&p->scorer, e);
    if (rc) return rc;
    const double *nll = buf_f64(&p->scorer.nll);
    const uint32_t *labels = buf_u32(&p->scorer.labels);
    for (size_t i = 0; i < scorer_positions(&p->scorer); i++)
        if (labels[i] != UINT32_MAX) moments_add(&p->nll, nll[i]);
    scorer_clear(&p->scorer);
    return 0;
}

/* Adds a window of n tokens; tokens[from .. n) are targets, and the last one is only a target. */
static int add_window(struct perplexity *p, const uint32_t *tokens, size_t n, size_t from, struct err *e) {
    uint32_t *labels = buf_u32(&p->labels);
    int rc = 0;
    for (size_t i = 1; i < n; i++) {
        labels[i - 1] = i >= from ? tokens[i] : UINT32_MAX;
        if (i >= from) count_text(p, tokens[i]);
    }
    if (scorer_positions(&p->scorer) && scorer_positions(&p->scorer) + n - 1 > p->o.batch_positions) rc = flush(p, e);
    if (!rc) rc = scorer_add(&p->scorer, tokens, labels, n - 1, e);
    if (!rc) p->windows++;
    return rc;
}

bool perplexity_full(const struct perplexity *p) {
    return p->o.max_windows && p->windows >= p->o.max_windows;
}

static uint32_t *text_of(struct perplexity *p) {
    return buf_u32(&p->text);
}
static size_t text_len(const struct perplexity *p) {
    return p->text.len / sizeof(uint32_t);
}

static void drop_text(struct perplexity *p, size_t n) {
    p->text.len -= n * sizeof(uint32_t);
    memmove(p->text.data, text_of(p) + n, p->text.len);
}

/* gptq and llama: cuts one text into disjoint windows. */
static int cut_disjoint(struct perplexity *p, struct err *e) {
    size_t n = p->o.context;
    bool llama = p->o.protocol == PPL_LLAMA;
    int rc = 0;
    while (!rc && !perplexity_full(p) && text_len(p) >= n) {
        /* llama-perplexity overwrites the first token; it is never scored. */
        if (llama && p->m->vocab && p->m->vocab->add_bos && p->m->vocab->bos != TOKEN_NONE)
            text_of(p)[0] = p->m->vocab->bos;
        rc = add_window(p, text_of(p), n, llama ? n / 2 + 1 : 1, e);
        drop_text(p, n);
    }
    return rc;
}

/* sliding: `text` begins with the next window, whose first `after` tokens were scored in earlier windows. The last
 * window is what is left at the end of the text. */
static int cut_sliding(struct perplexity *p, bool end, struct err *e) {
    size_t n = p->o.context;
    int rc = 0;
    while (!rc && !perplexity_full(p) && p->unscored && (text_len(p) >= n || end)) {
        size_t len = text_len(p) < n ? text_len(p) : n, after = text_len(p) - p->unscored;
        if (len >= 2) rc = add_window(p, text_of(p), len, after ? after : 1, e);
        p->unscored = text_len(p) - len;
        if (len == n) drop_text(p, p->o.stride);
    }
    return rc;
}

static int cut_sequence(struct perplexity *p, bool end, struct err *e) {
    int rc = 0;
    if (text_len(p) > p->o.context)
        return err_set(e, ERR_DATA, "a sequence is longer than the context of %u (tokenize --context, or --protocol)",
                       p->o.context);
    if (!end) return 0;
    if (text_len(p) >= 2) rc = add_window(p, text_of(p), text_len(p), 1, e);
    p->text.len = 0;
    return rc;
}

/* documents: each full window has n targets, and its first input is the last target of the previous window. The
 * remainder is scored with as much context as fits. */
static int cut_document(struct perplexity *p, bool end, struct err *e) {
    size_t n = p->o.context;
    int rc = 0;
    while (!rc && !perplexity_full(p) && p->unscored >= n) {
        drop_text(p, text_len(p) - p->unscored - 1);
        rc = add_window(p, text_of(p), n + 1, 1, e); /* the text stays, as context for a partial last window */
        p->unscored -= n;
    }
    if (rc || !end) return rc;
    if (p->unscored && !perplexity_full(p)) {
        size_t len = text_len(p) < n + 1 ? text_len(p) : n + 1;
        rc = add_window(p, text_of(p) + text_len(p) - len, len, len - p->unscored, e);
    }
    p->text.len = p->unscored = 0;
    return rc;
}

/* Puts BOS (or EOS) before a document. *skip: number of its tokens to skip, 1 if it begins with that token already. */
static int begin_document(struct perplexity *p, uint32_t first, size_t *skip, struct err *e) {
    uint32_t prefix = metrics_prefix_token(p->m);
    *skip = first == prefix;
    p->documents++;
    p->words.words++;
    p->words.in_space = false;
    p->words.missing = 0;
    return buf_append(&p->text, &prefix, sizeof prefix, e);
}

/* ---- input ------------------------------------------------------------------------------------------------------- */

/* Adds at most a context of tokens. end: the sequence ends with them. */
static int feed_piece(struct perplexity *p, const uint32_t *tokens, size_t n, bool end, struct err *e) {
    size_t skip = 0;
    int rc = 0;
    if (p->o.protocol == PPL_DOCUMENTS && !p->open) rc = begin_document(p, tokens[0], &skip, e);
    if (!rc) rc = buf_append(&p->text, tokens + skip, (n - skip) * sizeof *tokens, e);
    p->unscored += n - skip;
    p->open = !end;
    if (rc) return rc;
    switch (p->o.protocol) {
    case PPL_SLIDING: return cut_sliding(p, false, e);
    case PPL_SEQUENCES: return cut_sequence(p, end, e);
    case PPL_DOCUMENTS: return cut_document(p, end, e);
    default: return cut_disjoint(p, e);
    }
}

static int check_tokens(const struct perplexity *p, const struct batch *b, struct err *e) {
    const uint32_t *tokens = batch_tokens(b);
    for (uint64_t i = 0; i < b->head.n_positions; i++)
        if (tokens[i] >= model_n_tokens(p->m))
            return err_set(e, ERR_DATA, "token %u is outside the vocabulary of %u", tokens[i], model_n_tokens(p->m));
    return 0;
}

int perplexity_feed(struct perplexity *p, const struct batch *b, struct err *e) {
    const uint32_t *tokens = batch_tokens(b), *lengths = batch_lengths(b);
    int rc = check_tokens(p, b, e);
    for (uint32_t s = 0; !rc && s < b->head.n_seqs; s++) {
        bool goes_on = s + 1 == b->head.n_seqs && (b->head.flags & BATCH_CONTINUES);
        for (uint32_t n, left = lengths[s]; !rc && left && !perplexity_full(p); left -= n, tokens += n) {
            n = left < p->o.context ? left : p->o.context;
            rc = feed_piece(p, tokens, n, n == left && !goes_on, e);
        }
    }
    return rc;
}

int perplexity_finish(struct perplexity *p, struct err *e) {
    int rc = p->o.protocol == PPL_SLIDING ? cut_sliding(p, true, e) : 0;
    if (!rc) rc = flush(p, e);
    if (!rc && !p->nll.n)
        rc = err_set(e, ERR_DATA, "not enough tokens for one window of %u by protocol %s (give a smaller --context)",
                     p->o.context, protocol_names[p->o.protocol]);
    if (!rc && p->bos && p->m->vocab->add_bos) /* otherwise BOS is an ordinary token, such as <|im_start|> in chats */
        log_line(LOG_WARN, "%llu of the %llu tokens scored are BOS, which no text has (tokenize --bos never)",
                 (unsigned long long)p->bos, (unsigned long long)p->nll.n);
    return rc;
}

int perplexity_read(struct perplexity *p, struct stream_reader *r, const struct knowledge_format *f,
                    metrics_watch *watch, void *ctx, struct err *e) {
    struct batch b = {0};
    bool more = true;
    int rc = 0;
    while (!rc && !perplexity_full(p) && !(rc = knowledge_read(r, f, &b, &more, e)) && more) {
        if (perplexity_feed(p, &b, e)) rc = err_prefix(e, "%s", stream_reader_name(r));
        if (!rc) watch(ctx);
    }
    batch_release(&b);
    if (!rc) rc = stream_drain(r, e); /* read on, so that a truncated stream is noticed despite max_windows */
    if (!rc && perplexity_finish(p, e)) rc = err_prefix(e, "%s", stream_reader_name(r));
    return rc;
}

/* ---- results ----------------------------------------------------------------------------------------------------- */

uint64_t perplexity_scored(const struct perplexity *p) {
    return p->nll.n;
}
double perplexity_value(const struct perplexity *p) {
    return exp(p->nll.mean);
}

static bool put_protocol(cJSON *o, const struct perplexity *p) {
    return json_put_str(o, "metric", "perplexity") && json_put_u64(o, "parameters", model_parameters(&p->m->config)) &&
           json_put_str(o, "protocol", protocol_names[p->o.protocol]) && json_put_u64(o, "context", p->o.context) &&
           (p->o.protocol != PPL_SLIDING || json_put_u64(o, "stride", p->o.stride)) &&
           json_put_u64(o, "windows", p->windows) && json_put_u64(o, "scored", p->nll.n);
}

/* Values per byte and per word of the targets' text, which are comparable between vocabularies. */
static bool put_text(cJSON *o, const struct perplexity *p) {
    double nll = p->nll.mean * (double)p->nll.n, bytes = (double)p->bytes;
    if (!p->bytes) return true;
    if (!json_put_f64(o, "bits_per_byte", nll / (bytes * M_LN2))) return false;
    return p->o.protocol != PPL_DOCUMENTS ||
           (json_put_u64(o, "documents", p->documents) && json_put_u64(o, "words", p->words.words) &&
            put_exp(o, "word_perplexity", nll / (double)p->words.words) && put_exp(o, "byte_perplexity", nll / bytes));
}

cJSON *perplexity_json(const struct perplexity *p, struct err *e) {
    cJSON *o = cJSON_CreateObject();
    if (o && put_protocol(o, p) && put_perplexity(o, "perplexity", &p->nll) && put_mean(o, "nll", &p->nll) &&
        put_text(o, p))
        return o;
    cJSON_Delete(o);
    err_nomem(e, "results");
    return NULL;
}
