/*
 * The bytes of a VOCB record and back. formats/vocb.md has the layout; everything is little-endian. Unpacking trusts
 * nothing: counts are checked against the number of bytes before they size anything, and vocab_new checks the contents.
 */
#include "lib/text/text_internal.h"

#define VOCAB_VERSION 1
#define HEAD_BYTES    64
#define MAX_TEMPLATE  (1u << 20)
#define PER_TOKEN     8u  /* length, flags */
#define PER_MERGE     12u /* left, right, result */
#define PER_SCORE     4u
#define PER_END       4u

enum vocab_pack_flags {
    PACK_NFC = 1,
    PACK_IGNORE_MERGES = 2,
    PACK_ADD_BOS = 4,
    PACK_ADD_EOS = 8,
    PACK_SCORES = 16,
    PACK_ENDS = 32,
    PACK_STEPS = 64,
};
#define PACK_KNOWN (PACK_NFC | PACK_IGNORE_MERGES | PACK_ADD_BOS | PACK_ADD_EOS | PACK_SCORES | PACK_ENDS | PACK_STEPS)

static void put_u32(unsigned char **at, uint32_t x) {
    for (int i = 0; i < 4; i++) *(*at)++ = (unsigned char)(x >> 8 * i);
}

static uint32_t get_u32(const unsigned char **at) {
    const unsigned char *p = *at;
    *at += 4;
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void put_f32(unsigned char **at, float f) {
    uint32_t x;
    memcpy(&x, &f, sizeof x);
    put_u32(at, x);
}

static float get_f32(const unsigned char **at) {
    uint32_t x = get_u32(at);
    float f;
    memcpy(&f, &x, sizeof f);
    return f;
}

struct pack_head {
    uint32_t version, flags, pre, n_tokens, n_merges, bos, eos, pad, unk, n_template, n_bytes, n_ends,
        n_steps; /* n_steps: in bytes */
};

/* ---- out ---- */

static void put_head(unsigned char **at, const struct pack_head *h) {
    unsigned char *end = *at + HEAD_BYTES;
    const uint32_t words[] = {h->version, h->flags, h->pre,        h->n_tokens, h->n_merges, h->bos,    h->eos,
                              h->pad,     h->unk,   h->n_template, h->n_bytes,  h->n_ends,   h->n_steps};
    for (size_t i = 0; i < COUNT_OF(words); i++) put_u32(at, words[i]);
    while (*at < end) *(*at)++ = 0;
}

static bool is_further_end(const struct vocab *v, uint32_t i) {
    return v->ends[i] != v->eos;
}

static int measure(const struct vocab *v, struct pack_head *h, uint64_t *total, struct err *e) {
    uint64_t n_bytes = 0;
    bool scores = false;
    for (uint32_t id = 0; id < v->n_tokens; id++) {
        n_bytes += v->tokens[id].n_bytes;
        if (v->tokens[id].score != 0) scores = true;
    }
    uint32_t n_ends = 0;
    for (uint32_t i = 0; i < v->n_ends; i++) n_ends += is_further_end(v, i);
    uint64_t n_steps = steps_measure(v);
    size_t n_template = v->chat_template ? strlen(v->chat_template) : 0;
    if (n_bytes > UINT32_MAX) return err_set(e, ERR_DATA, "the pieces have more than 4 GiB");
    if (n_template > MAX_TEMPLATE)
        return err_set(e, ERR_DATA, "the chat template has %zu bytes, at most %u are taken", n_template, MAX_TEMPLATE);
    *h = (struct pack_head){
        .version = VOCAB_VERSION,
        .flags = (v->nfc ? PACK_NFC : 0) | (v->ignore_merges ? PACK_IGNORE_MERGES : 0) |
                 (v->add_bos ? PACK_ADD_BOS : 0) | (v->add_eos ? PACK_ADD_EOS : 0) | (scores ? PACK_SCORES : 0) |
                 (n_ends ? PACK_ENDS : 0) | (n_steps ? PACK_STEPS : 0),
        .pre = v->pre,
        .n_tokens = v->n_tokens,
        .n_merges = v->n_merges,
        .bos = v->bos,
        .eos = v->eos,
        .pad = v->pad,
        .unk = v->unk,
        .n_template = (uint32_t)n_template,
        .n_bytes = (uint32_t)n_bytes,
        .n_ends = n_ends,
        .n_steps = (uint32_t)n_steps, /* vocab_new has limited it */
    };
    *total = HEAD_BYTES + (uint64_t)v->n_tokens * (PER_TOKEN + (scores ? PER_SCORE : 0)) +
             (uint64_t)v->n_merges * PER_MERGE + (uint64_t)n_ends * PER_END + n_bytes + n_template + n_steps;
    return 0;
}

int vocab_pack(const struct vocab *v, struct buf *out, struct err *e) {
    struct pack_head h = {0};
    uint64_t total = 0;
    int rc = measure(v, &h, &total, e);
    if (!rc) rc = buf_reserve(out, total, e);
    if (rc) return rc;
    unsigned char *at = out->data + out->len;
    put_head(&at, &h);
    for (uint32_t id = 0; id < v->n_tokens; id++) {
        put_u32(&at, v->tokens[id].n_bytes);
        put_u32(&at, v->tokens[id].flags);
    }
    for (uint32_t id = 0; id < v->n_tokens && (h.flags & PACK_SCORES); id++) put_f32(&at, v->tokens[id].score);
    for (uint32_t i = 0; i < v->n_merges; i++) {
        put_u32(&at, v->merges[i].left);
        put_u32(&at, v->merges[i].right);
        put_u32(&at, v->merges[i].result);
    }
    for (uint32_t i = 0; i < v->n_ends; i++)
        if (is_further_end(v, i)) put_u32(&at, v->ends[i]);
    for (uint32_t id = 0; id < v->n_tokens; id++) {
        if (v->tokens[id].n_bytes) memcpy(at, v->tokens[id].bytes, v->tokens[id].n_bytes);
        at += v->tokens[id].n_bytes;
    }
    if (h.n_template) memcpy(at, v->chat_template, h.n_template);
    at += h.n_template;
    if (h.n_steps) steps_put(v, &at);
    out->len += total;
    return 0;
}

/* ---- in ---- */

static int get_head(const unsigned char **at, size_t n, struct pack_head *h, struct err *e) {
    if (n < HEAD_BYTES) return err_set(e, ERR_DATA, "%zu bytes, too few for a vocabulary", n);
    const unsigned char *end = *at + HEAD_BYTES;
    uint32_t *words[] = {&h->version, &h->flags, &h->pre,        &h->n_tokens, &h->n_merges, &h->bos,    &h->eos,
                         &h->pad,     &h->unk,   &h->n_template, &h->n_bytes,  &h->n_ends,   &h->n_steps};
    for (size_t i = 0; i < COUNT_OF(words); i++) *words[i] = get_u32(at);
    if (h->version != VOCAB_VERSION)
        return err_set(e, ERR_DATA, "version %u, this program reads version %u", h->version, VOCAB_VERSION);
    if (h->flags & ~(uint32_t)PACK_KNOWN) return err_set(e, ERR_DATA, "unknown flags %#x", h->flags);
    for (; *at < end; (*at)++)
        if (**at) return err_set(e, ERR_DATA, "bytes that should be zero are not");
    return 0;
}

/* The sum cannot overflow: eight terms below 2^36. */
static int check_size(const struct pack_head *h, size_t n, struct err *e) {
    uint64_t want = HEAD_BYTES + (uint64_t)h->n_tokens * (PER_TOKEN + (h->flags & PACK_SCORES ? PER_SCORE : 0)) +
                    (uint64_t)h->n_merges * PER_MERGE + (uint64_t)h->n_ends * PER_END + h->n_bytes + h->n_template +
                    h->n_steps;
    if (!(h->flags & PACK_ENDS) != !h->n_ends)
        return err_set(e, ERR_DATA, "%u further end tokens, which the flags do not say", h->n_ends);
    if (!(h->flags & PACK_STEPS) != !h->n_steps)
        return err_set(e, ERR_DATA, "%u bytes of steps, which the flags do not say", h->n_steps);
    if (h->n_template > MAX_TEMPLATE)
        return err_set(e, ERR_DATA, "a chat template of %u bytes, at most %u are taken", h->n_template, MAX_TEMPLATE);
    if (want != n)
        return err_set(e, ERR_DATA,
                       "%zu bytes, but %u tokens, %u merges, %u end tokens, %u bytes of text and %u of steps need %llu",
                       n, h->n_tokens, h->n_merges, h->n_ends, h->n_bytes, h->n_steps, (unsigned long long)want);
    return 0;
}

/* So that a vocabulary has only one encoding, they ascend and do not include eos, which is in the head. */
static int get_ends(const unsigned char **at, const struct pack_head *h, struct vocab *spec, struct arena *memory,
                    struct err *e) {
    uint32_t *ends = arena_array(memory, h->n_ends, sizeof *ends, e);
    if (!ends) return e->code;
    for (uint32_t i = 0; i < h->n_ends; i++) {
        ends[i] = get_u32(at);
        if (ends[i] == h->eos || (i && ends[i] <= ends[i - 1]))
            return err_set(e, ERR_DATA, "end token %u out of order", ends[i]);
    }
    spec->ends = ends;
    spec->n_ends = h->n_ends;
    return 0;
}

static int get_tokens(const unsigned char **at, const struct pack_head *h, struct vocab *spec, struct arena *memory,
                      struct err *e) {
    for (uint32_t id = 0; id < h->n_tokens; id++) {
        spec->tokens[id].n_bytes = get_u32(at);
        spec->tokens[id].flags = get_u32(at);
    }
    for (uint32_t id = 0; id < h->n_tokens && (h->flags & PACK_SCORES); id++) spec->tokens[id].score = get_f32(at);
    for (uint32_t i = 0; i < h->n_merges; i++) {
        spec->merges[i].left = get_u32(at);
        spec->merges[i].right = get_u32(at);
        spec->merges[i].result = get_u32(at);
    }
    int rc = get_ends(at, h, spec, memory, e);
    if (rc) return rc;
    uint64_t left = h->n_bytes;
    for (uint32_t id = 0; id < h->n_tokens; id++) {
        struct token *t = &spec->tokens[id];
        if (t->n_bytes > left)
            return err_set(e, ERR_DATA, "token %u: %u bytes, %llu are left", id, t->n_bytes, (unsigned long long)left);
        t->bytes = *at;
        *at += t->n_bytes;
        left -= t->n_bytes;
    }
    if (left) return err_set(e, ERR_DATA, "%llu bytes after the last token", (unsigned long long)left);
    return 0;
}

static int get_template(const unsigned char *at, const struct pack_head *h, struct vocab *spec, struct arena *memory,
                        struct err *e) {
    if (!h->n_template) return 0;
    if (memchr(at, 0, h->n_template)) return err_set(e, ERR_DATA, "chat template: a zero byte");
    spec->chat_template = arena_strndup(memory, (const char *)at, h->n_template, e);
    return spec->chat_template ? 0 : e->code;
}

/* Parses a record, checking only its layout; arrays are in `memory`, pieces point into the record. */
static int unpack(struct vocab *spec, const unsigned char *at, size_t n, struct arena *memory, struct err *e) {
    struct pack_head h;
    int rc = get_head(&at, n, &h, e);
    if (!rc) rc = check_size(&h, n, e);
    if (rc) return rc;
    *spec = (struct vocab){
        .n_tokens = h.n_tokens,
        .n_merges = h.n_merges,
        .pre = (enum text_pre)h.pre,
        .nfc = h.flags & PACK_NFC,
        .ignore_merges = h.flags & PACK_IGNORE_MERGES,
        .add_bos = h.flags & PACK_ADD_BOS,
        .add_eos = h.flags & PACK_ADD_EOS,
        .bos = h.bos,
        .eos = h.eos,
        .pad = h.pad,
        .unk = h.unk,
        .tokens = arena_array(memory, h.n_tokens, sizeof *spec->tokens, e),
    };
    spec->merges = spec->tokens ? arena_array(memory, h.n_merges, sizeof *spec->merges, e) : NULL;
    if (!spec->merges) return e->code;
    rc = get_tokens(&at, &h, spec, memory, e);
    if (!rc) rc = get_template(at, &h, spec, memory, e);
    return rc || !h.n_steps ? rc : steps_get(spec, at + h.n_template, h.n_steps, memory, e);
}

int vocab_unpack(struct vocab **out, const void *data, size_t n, struct err *e) {
    struct arena memory = {0};
    struct vocab spec;
    int rc = unpack(&spec, data, n, &memory, e);
    if (!rc) rc = vocab_new(out, &spec, e);
    arena_release(&memory);
    return rc == ERR_DATA ? err_prefix(e, "vocabulary") : rc;
}

int vocab_read_ends(const void *data, size_t n, uint32_t *ends, uint32_t *n_ends, struct err *e) {
    struct pack_head h;
    const unsigned char *at = data;
    int rc = get_head(&at, n, &h, e);
    if (!rc) rc = check_size(&h, n, e);
    if (!rc && h.n_ends > TEXT_MAX_ENDS)
        rc = err_set(e, ERR_DATA, "%u further end tokens, at most %u are taken", h.n_ends, TEXT_MAX_ENDS);
    if (rc) return err_prefix(e, "vocabulary");
    at +=
        (uint64_t)h.n_tokens * (PER_TOKEN + (h.flags & PACK_SCORES ? PER_SCORE : 0)) + (uint64_t)h.n_merges * PER_MERGE;
    bool eos = h.eos != TOKEN_NONE; /* it is only in the head; insert it in order */
    *n_ends = 0;
    for (uint32_t i = 0; i < h.n_ends; i++) {
        uint32_t end = get_u32(&at);
        if (eos && h.eos < end) ends[(*n_ends)++] = h.eos;
        eos = eos && h.eos > end;
        ends[(*n_ends)++] = end;
    }
    if (eos) ends[(*n_ends)++] = h.eos;
    return 0;
}

int vocab_identity(const void *data, size_t n, struct digest *out, struct err *e) {
    struct arena memory = {0};
    struct vocab spec;
    int rc = unpack(&spec, data, n, &memory, e);
    if (!rc) rc = vocab_identify(&spec, e);
    if (!rc) *out = spec.digest;
    arena_release(&memory);
    return rc == ERR_DATA ? err_prefix(e, "vocabulary") : rc;
}
