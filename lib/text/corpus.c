/*
 * Encodes a corpus through a window: reads, divides the window into pieces at positions where a cut changes no token
 * (text_safe_cut), encodes them on all threads, packs their tokens in order, and moves on. Memory use is that of one
 * window, whatever the length of the input.
 */
#include "lib/text/corpus_internal.h"
#include "lib/text/text_internal.h"

#define WINDOW_BYTES  ((size_t)4 << 20)
#define FIRST_WINDOW  ((size_t)256 << 10) /* small, for early output; doubled each time */
#define MAX_WINDOW    ((size_t)1 << 30)   /* for text that cannot be cut, or a line of JSON */
#define WINDOW_PIECES 64                  /* pieces per window: enough for any number of cores */
#define MAX_PIECES    ((size_t)64 << 10)  /* per window; reached by short lines */

struct piece {
    size_t start, n; /* in the window */
    size_t n_ids, n_lost;
    uint32_t label;
    bool ends_document;
};
/* Unit of work of a thread: consecutive pieces of at least piece_bytes together. */
struct share {
    size_t first, end; /* pieces */
    struct text_ids ids;
    struct buf mask;        /* of ids, if one is wanted */
    struct buf tags;        /* u32, likewise */
    struct buf text, spans; /* a composed document */
    struct text_ids part;   /* tokens of its beginning */
    int rc;
    struct err err;
};
struct corpus {
    const struct vocab *v;
    const struct corpus_options *o;
    struct buf window;
    size_t usual, goal; /* bytes to have in the window: usually, and now */
    size_t piece_bytes, max_pieces;
    bool begun, at_end;
    uint64_t bytes, lines; /* before the window */
    struct piece *pieces;  /* [max_pieces] */
    struct share *shares;
    size_t n_pieces, n_shares, cap_shares;
    bool mid_line; /* CORPUS_SEPARATED: the window begins inside a line */
    void *ctx;     /* the caller's */
    struct packer packer;
    struct pool *pool; /* receives the packer's output, or NULL */
    struct corpus_totals *totals;
};

/* Is each line a record to be parsed, rather than text? */
static bool is_record(const struct corpus *c) {
    return c->o->documents == CORPUS_JSONL || c->o->documents == CORPUS_CHAT || c->o->label;
}

/* ---- reading ---- */

static int fill_window(struct corpus *c, corpus_read *read, void *ctx, struct err *e) {
    int rc = c->goal > c->window.len ? buf_reserve(&c->window, c->goal - c->window.len, e) : 0;
    while (!rc && c->window.len < c->goal && !c->at_end) {
        size_t got = 0;
        rc = read(ctx, c->window.data + c->window.len, c->goal - c->window.len, &got, e);
        c->window.len += got;
        if (!rc && got == 0) c->at_end = true;
    }
    return rc;
}

/* The first window has at least TEXT_BEGIN_BYTES, unless the input is shorter. */
static int begin_text(struct corpus *c, struct err *e) {
    size_t skip;
    int rc = text_begin(c->window.data, c->window.len, &skip, e);
    if (rc || !skip) return rc;
    c->window.len -= skip;
    memmove(c->window.data, c->window.data + skip, c->window.len);
    c->bytes += skip;
    return 0;
}

/* ---- cutting ---- */

static void add_piece(struct corpus *c, size_t start, size_t n, bool ends_document) {
    c->pieces[c->n_pieces++] = (struct piece){.start = start, .n = n, .ends_document = ends_document};
}

/* Length of the first part of a text to encode on its own: about piece_bytes, or n if it cannot be cut. */
static size_t piece_length(const struct corpus *c, size_t start, size_t n) {
    for (size_t limit = c->piece_bytes; limit < n; limit *= 2) {
        size_t cut = text_safe_cut(c->v, c->window.data + start, limit);
        if (cut) return cut;
    }
    return n;
}

/* Adds a document, or a part of one that ends at a safe cut. Returns how much of it was added. */
static size_t add_text(struct corpus *c, size_t start, size_t n, bool ends_document) {
    size_t at = 0;
    while (n - at > c->piece_bytes && c->n_pieces < c->max_pieces) {
        size_t len = piece_length(c, start + at, n - at);
        add_piece(c, start + at, len, ends_document && at + len == n);
        at += len;
    }
    if (c->n_pieces == c->max_pieces || (at == n && at > 0)) return at;
    add_piece(c, start + at, n - at, ends_document);
    return n;
}

/* Adds text of a document that continues after the window. */
static size_t add_open_text(struct corpus *c, size_t start, size_t n) {
    size_t cut = text_safe_cut(c->v, c->window.data + start, n);
    return cut ? add_text(c, start, cut, false) : 0;
}

static size_t plan_whole(struct corpus *c) {
    return c->at_end ? add_text(c, 0, c->window.len, true) : add_open_text(c, 0, c->window.len);
}

/* Adds the last line of the window, which has no end. It usually ends in the next window, so wait for it, unless the
 * line fills this window. A record always waits. */
static size_t plan_last_line(struct corpus *c, size_t at) {
    size_t n = c->window.len - at;
    bool json = is_record(c);
    if (c->at_end && json) {
        add_piece(c, at, n, true);
        return n;
    }
    if (c->at_end) return add_text(c, at, n, true);
    return at > 0 || json ? 0 : add_open_text(c, at, n);
}

static size_t plan_lines(struct corpus *c) {
    const unsigned char *text = c->window.data, *nl;
    size_t at = 0, len = c->window.len;
    while (at < len && c->n_pieces < c->max_pieces && (nl = memchr(text + at, '\n', len - at)) != NULL) {
        size_t length = (size_t)(nl - text) - at, n = text_line_length(text + at, length);
        size_t used = n;
        if (is_record(c))
            add_piece(c, at, n, true);
        else
            used = add_text(c, at, n, true);
        if (used < n) return at + used;
        at += length + 1;
    }
    bool all_ended = at == len && (at > 0 || !c->packer.in_document);
    return all_ended || c->n_pieces == c->max_pieces ? at : at + plan_last_line(c, at);
}

/* The end of the text before `at`, if the line that begins there is a separator: the line end before it is dropped. */
static size_t before_line(const struct corpus *c, size_t start, size_t at) {
    return at > start && c->window.data[at - 1] == '\n'
               ? start + text_line_length(c->window.data + start, at - 1 - start)
               : at;
}

/* Finds the first separator from `line` on, which is the start of a line. True: *at is its start, *after that of the
 * next line. False: *at is the start of the last line, which may continue in the next window. */
static bool find_separator(const struct corpus *c, size_t line, size_t *at, size_t *after) {
    const unsigned char *text = c->window.data, *nl = text;
    size_t len = c->window.len, wanted = strlen(c->o->separator);
    for (*at = line; nl && *at < len; *at = *after) {
        nl = memchr(text + *at, '\n', len - *at);
        if (!nl && !c->at_end) return false;
        size_t end = nl ? (size_t)(nl - text) : len;
        *after = nl ? end + 1 : len;
        if (text_line_length(text + *at, end - *at) == wanted && !memcmp(text + *at, c->o->separator, wanted))
            return true;
    }
    return false;
}

static size_t first_line(const struct corpus *c) {
    const unsigned char *nl = c->window.len ? memchr(c->window.data, '\n', c->window.len) : NULL;
    if (!c->mid_line) return 0;
    return nl ? (size_t)(nl - c->window.data) + 1 : c->window.len;
}

/* Adds the part of a document that fills the window which cannot belong to a separator or the line end before it. */
static size_t plan_open_document(struct corpus *c, size_t last_line) {
    bool may_be_one = c->window.len - last_line <= strlen(c->o->separator) + 1; /* and a \r */
    size_t end = may_be_one ? before_line(c, 0, last_line) : c->window.len;
    if (end == c->window.len && end && c->window.data[end - 1] == '\r') end--;
    return end ? add_open_text(c, 0, end) : 0;
}

static size_t plan_separated(struct corpus *c) {
    size_t start = 0, line = first_line(c), at = 0, after = 0, used;
    while (c->n_pieces < c->max_pieces && find_separator(c, line, &at, &after)) {
        size_t n = before_line(c, start, at) - start;
        used = add_text(c, start, n, true);
        c->mid_line = false;
        if (used < n) {
            c->mid_line = true;
            return start + used;
        }
        start = line = after;
    }
    if (c->n_pieces == c->max_pieces) return start;
    if (c->at_end)
        used = start < c->window.len || (!start && c->packer.in_document)
                   ? add_text(c, start, c->window.len - start, true)
                   : 0;
    else
        used = start ? 0 : plan_open_document(c, at);
    if (used) c->mid_line = true;
    return start + used;
}

static int reserve_shares(struct corpus *c, size_t n, struct err *e) {
    if (n <= c->cap_shares) return 0;
    struct share *grown = mem_array(2 * n, sizeof *grown, e);
    if (!grown) return e->code;
    if (c->cap_shares) memcpy(grown, c->shares, c->cap_shares * sizeof *grown);
    mem_free(c->shares);
    c->shares = grown;
    c->cap_shares = 2 * n;
    return 0;
}

static int share_out(struct corpus *c, struct err *e) {
    c->n_shares = 0;
    for (size_t i = 0, end; i < c->n_pieces; i = end) {
        size_t bytes = 0;
        for (end = i; end < c->n_pieces && bytes < c->piece_bytes; end++) bytes += c->pieces[end].n;
        int rc = reserve_shares(c, c->n_shares + 1, e);
        if (rc) return rc;
        struct share *s = &c->shares[c->n_shares++];
        s->first = i;
        s->end = end;
    }
    return 0;
}

/* ---- encoding ---- */

/* Counts the tokens of the document, ids[0..n), that cover the first `bytes` of its text; with `crossing` includes a
 * token that extends beyond them. Encodes these bytes again, which is correct for every kind of vocabulary. */
static int count_tokens(struct text_worker *w, const struct corpus *c, struct share *s, size_t bytes, bool crossing,
                        const uint32_t *ids, size_t n, size_t *out, struct err *e) {
    s->part.n = 0;
    int rc = worker_encode(w, c->v, s->text.data, bytes, &c->o->encode, &s->part, e);
    *out = 0;
    while (!rc && *out < n && *out < s->part.n && s->part.ids[*out] == ids[*out]) ++*out;
    if (*out < s->part.n && *out < n && crossing) ++*out;
    return rc;
}

/* Appends the mask of the document in s->text, whose tokens are ids[0..n). */
static int mask_document(struct text_worker *w, const struct corpus *c, struct share *s, const uint32_t *ids, size_t n,
                         struct err *e) {
    const struct corpus_span *spans = (const void *)s->spans.data;
    if (buf_reserve(&s->mask, n, e)) return e->code;
    uint8_t *mask = s->mask.data + s->mask.len;
    memset(mask, 0, n);
    s->mask.len += n;
    for (size_t i = 0; i < s->spans.len / sizeof *spans; i++) {
        size_t first, end;
        if (count_tokens(w, c, s, spans[i].start, false, ids, n, &first, e) ||
            count_tokens(w, c, s, spans[i].end, true, ids, n, &end, e))
            return e->code;
        if (end > first) memset(mask + first, 1, end - first);
    }
    return 0;
}

static int encode_composed(struct text_worker *w, const struct corpus *c, const unsigned char *line, size_t n,
                           struct share *s, struct err *e) {
    size_t before = s->ids.n;
    s->text.len = s->spans.len = 0;
    int rc = c->o->compose(c->o->compose_ctx, line, n, &s->text, &s->spans, e);
    if (!rc) rc = worker_encode(w, c->v, s->text.data, s->text.len, &c->o->encode, &s->ids, e);
    return rc || !c->o->mask ? rc : mask_document(w, c, s, s->ids.ids + before, s->ids.n - before, e);
}

/* Appends n marks of one type. */
static int mark(struct share *s, uint8_t type, size_t n, struct err *e) {
    if (buf_reserve(&s->mask, n, e)) return e->code;
    memset(s->mask.data + s->mask.len, type, n);
    s->mask.len += n;
    return 0;
}

/* The tokens of the first text are in s->ids from `before` on; adds the separator and the second text. */
static int encode_second(struct text_worker *w, const struct corpus *c, const struct labelled *x, size_t before,
                         struct share *s, struct err *e) {
    struct text_ids *ids = &s->ids;
    s->part.n = 0;
    if (worker_encode(w, c->v, x->text[1], x->n[1], &c->o->encode, &s->part, e)) return e->code;
    size_t n[2] = {ids->n - before, s->part.n}, between = labelled_separators(c->v);
    labelled_cut(c->v, c->o, n);
    ids->n = before + n[0];
    if (text_ids_reserve(ids, between + n[1], e)) return e->code;
    for (size_t i = 0; i < between; i++) ids->ids[ids->n++] = c->v->eos;
    if (n[1]) memcpy(ids->ids + ids->n, s->part.ids, n[1] * sizeof *ids->ids);
    ids->n += n[1];
    if (mark(s, 0, n[0] + between, e)) return e->code;
    return mark(s, between == 1, n[1], e); /* RoBERTa has no types */
}

static int encode_labelled(struct text_worker *w, const struct corpus *c, const unsigned char *line, size_t n,
                           struct piece *p, struct share *s, struct err *e) {
    struct labelled x;
    size_t before = s->ids.n;
    if (labelled_read(&x, c->o, (const char *)line, n, e)) return e->code;
    p->label = x.label;
    int rc = worker_encode(w, c->v, x.text[0], x.n[0], &c->o->encode, &s->ids, e);
    if (!rc && c->o->pair)
        rc = encode_second(w, c, &x, before, s, e);
    else if (!rc) {
        size_t kept[2] = {s->ids.n - before, 0};
        labelled_cut(c->v, c->o, kept);
        s->ids.n = before + kept[0];
    }
    labelled_release(&x);
    return rc;
}

static int encode_object(struct text_worker *w, const struct corpus *c, const unsigned char *text, size_t n,
                         struct piece *p, struct share *s, struct err *e) {
    struct text_ids *ids = &s->ids;
    size_t bom = text_bom(text, n); /* also after the first line, since files may be joined with cat */
    text += bom;
    n -= bom;
    if (space_at_start(text, n) == n) return 0; /* an empty line */
    if (c->o->label) return encode_labelled(w, c, text, n, p, s, e);
    if (c->o->tags) return tagged_encode(w, c->v, c->o, (const char *)text, n, ids, &s->tags, &s->text, e);
    if (c->o->documents == CORPUS_CHAT) return encode_composed(w, c, text, n, s, e);
    cJSON *object = json_parse((const char *)text, n, e);
    if (!object) return e->code;
    const char *string;
    int rc = json_get_str(object, c->o->field, &string, e);
    if (!rc) rc = worker_encode(w, c->v, string, strlen(string), &c->o->encode, ids, e);
    cJSON_Delete(object);
    return rc;
}

static int encode_pieces(struct text_worker *w, const struct corpus *c, struct share *s, struct err *e) {
    for (size_t i = s->first; i < s->end; i++) {
        struct piece *p = &c->pieces[i];
        const unsigned char *text = c->window.data + p->start;
        struct text_encode_options o = c->o->encode;
        o.continues = i ? !c->pieces[i - 1].ends_document : c->packer.in_document;
        size_t before = s->ids.n;
        s->ids.n_lost = 0;
        int rc = is_record(c) ? encode_object(w, c, text, p->n, p, s, e)
                              : worker_encode(w, c->v, text, p->n, &o, &s->ids, e);
        p->n_ids = s->ids.n - before;
        p->n_lost = s->ids.n_lost;
        if (rc) {
            s->end = i; /* the pieces before it are valid */
            return rc;
        }
    }
    return 0;
}

static void encode_share(void *ctx, size_t i, int thread) {
    struct corpus *c = ctx;
    struct share *s = &c->shares[i];
    struct text_worker *w;
    (void)thread;
    s->ids.n = 0;
    s->mask.len = s->tags.len = 0;
    s->rc = worker_take(&w, c->v, &s->err);
    if (s->rc) {
        s->end = s->first;
        return;
    }
    s->rc = encode_pieces(w, c, s, &s->err);
    worker_give(c->v, w);
}

/* ---- packing ---- */

static uint64_t count_lines(const unsigned char *text, size_t n) {
    uint64_t lines = 0;
    for (const unsigned char *end = text + n; (text = memchr(text, '\n', (size_t)(end - text))) != NULL; text++)
        lines++;
    return lines;
}

static int pack_share(struct corpus *c, const struct share *s, struct err *e) {
    size_t at = 0;
    for (size_t i = s->first; i < s->end && !c->packer.full; i++) {
        const struct piece *p = &c->pieces[i];
        c->totals->input_bytes = c->bytes + p->start + p->n;
        c->totals->lost_bytes += p->n_lost;
        const uint8_t *mask = c->o->mask || c->o->pair ? s->mask.data + at : NULL;
        const uint32_t *tags = c->o->tags ? (const uint32_t *)(const void *)s->tags.data + at : NULL;
        int rc = p->n_ids ? packer_add(&c->packer, s->ids.ids + at, mask, tags, p->n_ids, e) : 0;
        if (!rc && p->ends_document) rc = packer_end_document(&c->packer, p->label, e);
        if (rc) return rc;
        at += p->n_ids;
    }
    return 0;
}

/* Packs in order; an error counts only if the tokens before it were not enough. */
static int pack_window(struct corpus *c, struct err *e) {
    for (size_t i = 0; i < c->n_shares && !c->packer.full; i++) {
        const struct share *s = &c->shares[i];
        int rc = pack_share(c, s, e);
        if (rc) return rc;
        if (!s->rc || c->packer.full) continue;
        *e = s->err;
        if (!is_record(c)) return e->code;
        uint64_t line = c->lines + count_lines(c->window.data, c->pieces[s->end].start) + 1;
        return err_prefix(e, "line %llu", (unsigned long long)line);
    }
    return 0;
}

/* ---- windows and inputs ---- */

static int grow_window(struct corpus *c, struct err *e) {
    if (c->goal >= MAX_WINDOW)
        return err_set(e, ERR_DATA, "%zu bytes from byte %llu on cannot be cut: %s", c->window.len,
                       (unsigned long long)c->bytes, is_record(c) ? "a line is too long" : "nothing but one word");
    c->goal *= 2;
    return 0;
}

static void move_on(struct corpus *c, size_t used) {
    if (is_record(c)) c->lines += count_lines(c->window.data, used);
    c->bytes += used;
    if (!c->packer.full) c->totals->input_bytes = c->bytes;
    memmove(c->window.data, c->window.data + used, c->window.len - used);
    c->window.len -= used;
    c->goal = c->goal < c->usual / 2 ? 2 * c->goal : c->usual;
}

/* Processes one window. *done: nothing is left to do. */
static int step(struct corpus *c, corpus_read *read, bool *done, struct err *e) {
    int rc = fill_window(c, read, c->ctx, e);
    if (!rc && !c->begun) rc = begin_text(c, e);
    if (rc) return rc;
    c->begun = true;
    c->n_pieces = 0;
    size_t used = c->o->documents == CORPUS_WHOLE       ? plan_whole(c)
                  : c->o->documents == CORPUS_SEPARATED ? plan_separated(c)
                                                        : plan_lines(c);
    if (!used && !c->at_end) return grow_window(c, e);
    rc = share_out(c, e);
    if (rc) return rc;
    parallel_for(c->n_shares, encode_share, c);
    rc = pack_window(c, e);
    *done = c->packer.full || (c->at_end && used == c->window.len);
    if (!rc) move_on(c, used);
    return rc;
}

static int check_options(const struct vocab *v, const struct corpus_options *o, struct err *e) {
    if (o->batch_tokens < 1 || o->batch_tokens > CORPUS_MAX_BATCH || o->context > CORPUS_MAX_BATCH ||
        o->pack > CORPUS_MAX_BATCH)
        return err_set(e, ERR_USAGE, "a batch, a context or a pack has 1 to %u tokens", CORPUS_MAX_BATCH);
    if (o->context == 1 && o->bos) return err_set(e, ERR_USAGE, "a context of 1 token leaves no room after BOS");
    if (o->pack == 1 && o->bos) return err_set(e, ERR_USAGE, "a pack of 1 token leaves no room after BOS");
    if (o->context && o->pack)
        return err_set(e, ERR_USAGE, "documents are either joined into contexts or packed beside each other");
    if ((o->label || o->tags) && (o->context || o->pack))
        return err_set(e, ERR_USAGE, "texts with labels are not packed");
    if (o->tags && (o->label || o->pair || o->mask || o->documents != CORPUS_JSONL))
        return err_set(e, ERR_USAGE, "tags are of words in lines of JSON, without other labels");
    if (o->documents == CORPUS_SEPARATED && (!*o->separator || strpbrk(o->separator, "\r\n")))
        return err_set(e, ERR_USAGE, "a separator is a line: it is not empty, and has no line end in it");
    if (o->pair && v->eos == TOKEN_NONE)
        return err_set(e, ERR_USAGE, "the vocabulary has no EOS token to stand between two texts");
    if (o->bos && v->bos == TOKEN_NONE) return err_set(e, ERR_USAGE, "the vocabulary has no BOS token");
    if (o->eos == EOS_AFTER && v->eos == TOKEN_NONE) return err_set(e, ERR_USAGE, "the vocabulary has no EOS token");
    return 0;
}

static void release(struct corpus *c) {
    for (size_t i = 0; i < c->cap_shares; i++) {
        struct share *s = &c->shares[i];
        text_ids_release(&s->ids);
        text_ids_release(&s->part);
        buf_release(&s->mask);
        buf_release(&s->tags);
        buf_release(&s->text);
        buf_release(&s->spans);
    }
    mem_free(c->shares);
    mem_free(c->pieces);
    buf_release(&c->window);
    packer_release(&c->packer);
    pool_free(c->pool);
}

static int begin(struct corpus *c, corpus_write *write, struct err *e) {
    c->packer = (struct packer){.v = c->v, .o = c->o, .write = write, .ctx = c->ctx, .totals = c->totals};
    c->pieces = mem_alloc(c->max_pieces * sizeof *c->pieces, e);
    if (!c->pieces || packer_init(&c->packer, e)) return e->code;
    if (!c->o->pack || c->o->packing != PACKING_BEST_FIT) return 0;
    c->packer.write = pool_add;
    if (pool_new(&c->pool, c->o, write, c->ctx, c->totals, e)) return e->code;
    c->packer.ctx = c->pool;
    return 0;
}

/* Encodes one input to its end, or to max_tokens. */
static int encode_input(struct corpus *c, corpus_read *read, struct err *e) {
    c->begun = c->at_end = c->mid_line = false;
    c->lines = 0;
    for (bool done = false; !done;)
        if (step(c, read, &done, e)) return e->code;
    return 0;
}

int corpus_encode(const struct vocab *v, const struct corpus_options *o, corpus_read *read, corpus_write *write,
                  void *ctx, struct corpus_totals *totals, struct err *e) {
    *totals = (struct corpus_totals){0};
    int rc = check_options(v, o, e);
    if (rc) return rc;
    size_t usual = o->window ? o->window : WINDOW_BYTES, first = usual < FIRST_WINDOW ? usual : FIRST_WINDOW;
    struct corpus c = {
        .v = v,
        .o = o,
        .usual = usual,
        .goal = first < TEXT_BEGIN_BYTES ? TEXT_BEGIN_BYTES : first,
        .piece_bytes = usual / WINDOW_PIECES + 1,
        .ctx = ctx,
        .totals = totals,
        .max_pieces = usual < MAX_PIECES ? usual + 1 : MAX_PIECES,
    };
    rc = begin(&c, write, e);
    for (bool more = true; !rc && more;) {
        rc = encode_input(&c, read, e);
        more = o->next && !c.packer.full;
        if (!rc && more) rc = o->next(ctx, &more, e);
    }
    if (!rc) rc = packer_finish(&c.packer, e);
    if (!rc && c.pool) rc = pool_finish(c.pool, e);
    release(&c);
    return rc;
}
